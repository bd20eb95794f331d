/* What a node says of itself: fills status.h's plain data from the parts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/node.h"
#include "daemon/session.h"
#include "daemon/status.h"

#define LAGGING_ENTRIES 64

/* "host:port" → "host:port+1": where HTTP listens by default. */
static void http_of(const char *address, char *out, size_t n)
{
    char host[ADDRESS_MAX + 1], port[ADDRESS_MAX + 1];

    out[0] = '\0';
    if (address_split(address, host, port) == FLO_OK) {
        snprintf(out, n, strchr(host, ':') != NULL ? "[%s]:%d" : "%s:%d", host,
                 atoi(port) + 1);
    }
}

static void fill_db(const struct db *db, struct db_status *d)
{
    memcpy(d->name, db->name, sizeof d->name);
    d->position = db->applied;
    d->page_size = db->page_size;
    d->n_pages = db->n_pages;
    d->wal_frames = db->wal_frames;
    d->health = db_health(db);
    d->state = db_state_name(db);
    d->lock_waiters = db->lockq.n_waiters;
    d->lock_holder = db->lockq.holder != 0 ? db->lockq.holder_node : 0;
    d->queued_bytes = db->pending_bytes;
    if (db->writer != NULL && db->writer->stuck) {
        d->stuck_pid = db->writer->pid;
        d->state = "stuck";
    }
}

static int fill_databases(const struct node *n, struct node_status *s)
{
    s->databases = calloc(n->n_dbs + 1, sizeof *s->databases);
    if (s->databases == NULL) {
        return FLO_NOMEM;
    }
    for (const struct db *db = n->dbs; db != NULL; db = db->next) {
        if (!db->dropped) {
            fill_db(db, &s->databases[s->n_databases++]);
        }
    }
    return FLO_OK;
}

static const char *role_of(const struct node *n, uint32_t id)
{
    const struct raft_configuration *c = &n->raft.configuration;

    for (unsigned i = 0; n->raft_started && i < c->n; i++) {
        if (c->servers[i].id == id) {
            return raft_role_name(c->servers[i].role);
        }
    }
    return "unknown";
}

/* The worst of its databases, and lagging when raft itself is behind. */
static enum db_health health_of(const struct peer_db *dbs, unsigned n_dbs,
                                uint64_t lag)
{
    enum db_health worst = lag > LAGGING_ENTRIES ? DB_LAGGING : DB_HEALTHY;

    for (unsigned i = 0; i < n_dbs; i++) {
        if (dbs[i].health > worst) {
            worst = dbs[i].health;
        }
    }
    return worst;
}

static int fill_peer(struct node *n, const struct peer *p,
                     struct member_status *m)
{
    uint64_t last = raft_last_index(&n->raft);
    uint64_t contact = raft_guard_last_contact(&n->guard, p->id);
    raft_index match;

    m->connected = p->link != NULL;
    m->applied_index = p->index;
    m->lag = last > p->index ? last - p->index : 0;
    m->health = m->connected ? health_of(p->dbs, p->n_dbs, m->lag) : DB_UNKNOWN;
    m->last_replicated_index = p->index;
    if (raft_state(&n->raft) == RAFT_LEADER &&
        raft_match_index(&n->raft, p->id, &match) == 0) {
        m->last_replicated_index = match;
    }
    m->last_contact_ms =
        contact != 0 ? (uv_hrtime() - contact) / 1000000 : UINT64_MAX;
    m->last_latency_ms = p->latency_ms;
    m->consecutive_failures = p->failures;
    m->free_bytes = p->free_bytes;
    for (struct peer_request *r = n->peers.requests; r != NULL; r = r->next) {
        m->pending_count += r->to == p->id;
    }
    m->databases = calloc(p->n_dbs + 1, sizeof *m->databases);
    if (m->databases == NULL) {
        return FLO_NOMEM;
    }
    for (unsigned i = 0; i < p->n_dbs; i++) {
        struct db_status *d = &m->databases[m->n_databases++];
        memcpy(d->name, p->dbs[i].name, sizeof d->name);
        d->position = p->dbs[i].position;
        d->health = p->dbs[i].health;
        d->state = db_health_name(d->health);
    }
    return FLO_OK;
}

static enum db_health own_health(const struct node_status *s)
{
    enum db_health worst = DB_HEALTHY;

    for (unsigned i = 0; i < s->n_databases; i++) {
        if (s->databases[i].health > worst) {
            worst = s->databases[i].health;
        }
    }
    return worst;
}

static int fill_member(struct node *n, const struct member *from,
                       struct node_status *s, struct member_status *m)
{
    m->id = from->id;
    snprintf(m->address, sizeof m->address, "%s", from->address);
    m->self = from->id == n->settings.id;
    m->leader = from->id == s->leader_id;
    m->role = role_of(n, from->id);
    if (!m->self) {
        return fill_peer(n, peers_find(&n->peers, from->id), m);
    }
    m->connected = true;
    m->health = own_health(s);
    m->last_replicated_index = raft_last_index(&n->raft);
    m->applied_index = s->last_applied;
    m->lag = s->last_index - s->last_applied;
    m->last_contact_ms = 0;
    m->last_latency_ms = 0;
    m->free_bytes = s->free_bytes;
    return FLO_OK;
}

static void fill_ready(const struct node *n, struct node_status *s)
{
    char *why = s->ready_reason;
    size_t max = sizeof s->ready_reason;

    if (n->lame_duck) {
        snprintf(why, max, "stopping");
    } else if (n->view.id == 0) {
        snprintf(why, max, "leader unknown: waiting for a majority of members");
    } else if (!n->replayed) {
        snprintf(why, max, "replaying the log: %llu applied",
                 (unsigned long long)s->last_applied);
    } else if (!n->view.ready) {
        snprintf(why, max, "leader %u is not ready yet", n->view.id);
    } else {
        for (unsigned i = 0; i < s->n_databases; i++) {
            if (s->databases[i].health > DB_LAGGING) {
                snprintf(why, max, "database %s: %s", s->databases[i].name,
                         s->databases[i].state);
            }
        }
    }
    s->ready = why[0] == '\0';
}

static void fill_raft(struct node *n, struct node_status *s)
{
    const char *address = NULL;
    raft_id id = 0;

    s->raft_state = raft_state_name((int)raft_state(&n->raft));
    raft_leader(&n->raft, &id, &address);
    s->leader_id = (uint32_t)id;
    if (address != NULL) {
        snprintf(s->leader_address, sizeof s->leader_address, "%s", address);
        http_of(address, s->leader_http, sizeof s->leader_http);
    }
    s->is_leader = n->view.ready && n->view.id == n->settings.id;
    s->term = raft_current_term(&n->raft);
    s->commit_index = raft_commit_index(&n->raft);
    s->last_applied = raft_last_applied(&n->raft);
    s->last_index = raft_last_index(&n->raft);
}

int node_status_get(struct node *n, struct node_status *s)
{
    int rc;

    memset(s, 0, sizeof *s);
    s->version = FLOTILLA_VERSION;
    s->cluster = n->settings.cluster;
    s->id = n->settings.id;
    s->started_ms = n->started_ms;
    s->uptime_ms = uv_now(n->loop) - n->started_at;
    s->free_bytes = n->upkeep.free_bytes;
    s->disk_low = n->upkeep.disk_low;
    s->n_clients = sessions_count(n);
    s->live = !n->closing;
    s->resync = n->resync_stats;
    s->counters = n->counters;
    s->raft_state = "unavailable";
    if (n->raft_started) {
        fill_raft(n, s);
    }
    rc = fill_databases(n, s);
    for (unsigned i = 0; rc == FLO_OK && i < n->settings.n_members; i++) {
        rc = fill_member(n, &n->settings.members[i], s,
                         &s->members[s->n_members++]);
    }
    if (rc != FLO_OK) {
        node_status_close(s);
        return rc;
    }
    fill_ready(n, s);
    return FLO_OK;
}

static const struct member *find_member(const struct node *n,
                                        const char *target)
{
    for (unsigned i = 0; i < n->settings.n_members; i++) {
        const struct member *m = &n->settings.members[i];
        char id[16];
        snprintf(id, sizeof id, "%u", m->id);
        if (strcmp(m->address, target) == 0 || strcmp(id, target) == 0) {
            return m;
        }
    }
    return NULL;
}

static bool resyncing(const struct peer *p)
{
    for (unsigned i = 0; i < p->n_dbs; i++) {
        if (p->dbs[i].health == DB_DESYNCED) {
            return true;
        }
    }
    return false;
}

int node_force_resync(struct node *n, const char *target, char *text,
                      size_t text_n)
{
    const struct member *member = find_member(n, target);
    struct wire_msg m = {.type = MSG_RESYNC_ORDER};
    struct peer *peer;

    if (!n->view.ready || n->view.id != n->settings.id) {
        snprintf(text, text_n, "this node does not lead; ask node %u",
                 n->view.id);
        return FLO_NOTLEADER;
    }
    if (member == NULL) {
        snprintf(text, text_n, "no member has that address or number");
        return FLO_NOTFOUND;
    }
    if (member->id == n->settings.id) {
        snprintf(text, text_n, "that is the leader, the source of resyncs");
        return FLO_INVALID;
    }
    peer = peers_find(&n->peers, member->id);
    if (peer->link == NULL) {
        snprintf(text, text_n, "node %u is not connected", member->id);
        return FLO_NOLEADER;
    }
    if (resyncing(peer)) {
        snprintf(text, text_n, "a resync of node %u is running", member->id);
        return FLO_BUSY;
    }
    snprintf(m.resync_order.reason, sizeof m.resync_order.reason, "forced");
    snprintf(text, text_n, "resync of node %u started", member->id);
    return peers_send(&n->peers, member->id, &m);
}
