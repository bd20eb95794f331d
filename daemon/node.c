/* A node: start, stop, and what connects the parts; see node.h.
 *
 * Start: directory, ports and socket first, so that a name that is taken ends
 * the start before anything else exists; then raft. Stop: finish what is open,
 * hand over leadership, then close from the outside inwards. */
#include "daemon/node.h"

#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/fsm.h"
#include "daemon/identity.h"
#include "daemon/log.h"
#include "daemon/session.h"

#define TICK_MS 20
#define DRAIN_MS 5000
#define TRANSFER_MS 3000

int64_t node_wall_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- Who leads -------------------------------------------------------------------- */

static struct leader_view look(struct node *n, uint64_t *ready_index)
{
    struct leader_view v = {0};
    const char *address;
    raft_id id;
    struct peer *peer;

    raft_leader(&n->raft, &id, &address);
    v.id = (uint32_t)id;
    v.term = raft_current_term(&n->raft);
    if (v.id == n->settings.id) {
        v.ready = n->leader.ready_term == v.term && n->leader.ready_term != 0;
        *ready_index = n->leader.ready_index;
        return v;
    }
    peer = peers_find(&n->peers, v.id);
    if (peer != NULL && peer->link != NULL && peer->ready_term == v.term) {
        v.ready = true;
        *ready_index = peer->ready_index;
    }
    return v;
}

static void replayed(struct node *n)
{
    struct db *next;

    n->replayed = true;
    log_info("replayed", "index=%llu",
             (unsigned long long)raft_last_applied(&n->raft));
    for (struct db *db = n->dbs; db != NULL; db = next) {
        next = db->next;
        db_replayed(db);
    }
}

void node_changed(struct node *n)
{
    struct leader_view v;
    uint64_t ready_index = 0;
    bool news;

    if (!n->raft_started || n->closing) {
        return;
    }
    leader_changed(&n->leader);
    v = look(n, &ready_index);
    if (v.ready && !n->replayed) {
        if (raft_last_applied(&n->raft) >= ready_index) {
            replayed(n);
        } else {
            v.ready = false;
        }
    }
    if (v.id != n->view.id && v.id != 0) {
        n->counters.leader_changes++;
        log_info("leader", "leader=%u term=%llu", v.id,
                 (unsigned long long)v.term);
    }
    news = v.id != n->view.id || v.term != n->view.term ||
           v.ready != n->view.ready;
    n->view = v;
    if (news && v.ready) {
        proposals_kick(n);
        txns_kick(n);
    }
    sessions_kick(n);
}

/* ---- Messages ------------------------------------------------------------------------ */

static void learn(struct node *n, const struct wire_msg *m)
{
    struct record rec;
    struct db *db;

    if (record_decode(m->entry.record.data, m->entry.record.len, &rec) !=
            FLO_OK ||
        rec.kind != RECORD_TRANSACTION) {
        return; /* raft brings it as well */
    }
    db = db_find(n, rec.db);
    if (db != NULL && n->replayed) {
        db_learn(db, &rec, m->entry.record.data, m->entry.record.len);
    }
}

/* A grant that nobody waits for any more. */
static void return_grant(struct node *n, uint32_t from,
                         const struct wire_msg *grant)
{
    struct wire_msg m = {.type = MSG_PEER_RELEASE};

    m.peer_release.term = grant->peer_grant.term;
    m.peer_release.grant = grant->peer_grant.grant;
    peers_send(&n->peers, from, &m);
}

static void resync_order(struct node *n, uint32_t from,
                         const struct wire_msg *m)
{
    struct wire_msg answer = {.type = MSG_RESULT, .request = m->request};

    answer.result.code = (uint32_t)resync_force(n, m->resync_order.reason);
    peers_send(&n->peers, from, &answer);
}

void node_handle(struct node *n, uint32_t from, const struct wire_msg *m)
{
    if (n->closing) {
        return;
    }
    switch (m->type) {
        case MSG_PEER_LOCK:
        case MSG_CANCEL:
        case MSG_PROPOSE:
        case MSG_PEER_RELEASE:
        case MSG_READ_INDEX:
            leader_handle(&n->leader, from, m);
            break;
        case MSG_PEER_GRANT:
            return_grant(n, from, m);
            break;
        case MSG_ENTRY:
            learn(n, m);
            break;
        case MSG_REVOKED:
            txns_revoked(n, m->revoked.term, m->revoked.grant);
            break;
        case MSG_RESYNC_BEGIN:
        case MSG_RESYNC_HASHES:
        case MSG_PAGES:
        case MSG_PAGES_ACK:
            resync_handle(n, from, m);
            break;
        case MSG_RESYNC_ORDER:
            resync_order(n, from, m);
            break;
        default: {
            struct peer *peer = peers_find(&n->peers, from);
            log_warn("peer_protocol", "peer=%u message=%s", from,
                     wire_name(m->type));
            if (peer != NULL && peer->link != NULL) {
                link_close(peer->link, FLO_PROTOCOL);
            }
        }
    }
}

void node_peer_down(struct node *n, uint32_t id)
{
    leader_drop_node(&n->leader, id);
    resync_peer_down(n, id);
    node_changed(n);
}

void node_peer_up(struct node *n, uint32_t id)
{
    (void)id;
    node_changed(n);
}

int node_check_identity(struct node *n, uint32_t id, uint64_t identity)
{
    return identity_check(n, id, identity);
}

/* ---- Stopping --------------------------------------------------------------------------- */

static void finished(struct worker *w)
{
    struct node *n = w->data;

    n->background_running = false;
    uv_close((uv_handle_t *)&n->tick, NULL);
    upkeep_close(&n->upkeep);
    uv_close((uv_handle_t *)&n->sigterm, NULL);
    uv_close((uv_handle_t *)&n->sigint, NULL);
    raft_guard_close(&n->guard);
    raft_uv_close(&n->io);
    log_info("stopped", "uptime_ms=%llu",
             (unsigned long long)(uv_now(n->loop) - n->started_at));
}

static void raft_closed(struct raft *r)
{
    struct node *n = r->data;

    n->raft_closed = true;
}

static void close_all(struct node *n)
{
    struct db *next;

    n->closing = true;
    sessions_close(n);
    for (struct db *db = n->dbs; db != NULL; db = next) {
        next = db->next;
        db_close(db);
    }
    peers_close(&n->peers);
    http_stop(n->http, NULL, NULL);
    raft_close(&n->raft, raft_closed);
}

static bool writing(const struct node *n)
{
    for (const struct txn *t = n->txns; t != NULL; t = t->next) {
        if (t->state != TXN_IDLE && t->state != TXN_QUEUED &&
            t->state != TXN_LINGER) {
            return true;
        }
    }
    return n->leader.inflight > 0;
}

static void transferred(struct raft_transfer *req)
{
    struct node *n = req->data;

    n->transferring = false;
}

static bool somebody_connected(const struct node *n)
{
    for (unsigned i = 0; i < n->peers.n; i++) {
        if (n->peers.list[i].link != NULL) {
            return true;
        }
    }
    return false;
}

/* Ask raft once to hand leadership over. True while that may still happen. */
static bool handing_over(struct node *n, uint64_t now)
{
    if (n->transfer_deadline == 0) {
        n->transfer_deadline = now + TRANSFER_MS;
        n->transfer.data = n;
        if (raft_state(&n->raft) == RAFT_LEADER && somebody_connected(n) &&
            !n->transferring &&
            raft_transfer(&n->raft, &n->transfer, 0, transferred) == 0) {
            log_info("leadership_transfer", "reason=stopping");
            n->transferring = true;
        }
    }
    /* Without a majority nobody takes over, and raft waits for ever. */
    return n->transferring && somebody_connected(n) &&
           now < n->transfer_deadline;
}

/* One step of leaving, at each tick. */
static void leave(struct node *n)
{
    uint64_t now = uv_now(n->loop);

    if (n->closing || (writing(n) && now < n->stop_deadline)) {
        return;
    }
    if (!handing_over(n, now)) {
        close_all(n);
    }
}

/* One step of closing, at each tick. */
static void close_rest(struct node *n)
{
    struct db *next;

    for (struct db *db = n->dbs; db != NULL; db = next) {
        next = db->next;
        db_close(db);
    }
    if (n->n_workers == 0 && n->raft_closed && !n->finished) {
        n->finished = true;
        worker_close(&n->background, finished);
    }
}

void node_stop(struct node *n)
{
    if (n->lame_duck) {
        log_warn("stopped_at_once", "reason=%s", log_quote("second signal"));
        _exit(0);
    }
    log_info("stopping", "clients=%u", sessions_count(n));
    n->lame_duck = true;
    n->stop_deadline = uv_now(n->loop) + DRAIN_MS;
    sessions_stop_listening(n);
}

static void signalled(uv_signal_t *handle, int signum)
{
    (void)signum;
    node_stop(handle->data);
}

/* ---- Starting ----------------------------------------------------------------------------- */

static void tick(uv_timer_t *timer)
{
    struct node *n = timer->data;
    struct db *next;

    if (n->closing) {
        close_rest(n);
        return;
    }
    for (struct db *db = n->dbs; db != NULL; db = next) {
        next = db->next;
        if (db->state == DB_IS_DROPPED) {
            db_close(db);
        } else {
            db_retry(db);
        }
    }
    leader_tick(&n->leader);
    proposals_tick(n);
    txns_kick(n);
    resync_tick(n);
    upkeep_tick(&n->upkeep);
    node_changed(n);
    if (n->lame_duck) {
        leave(n);
    }
}

static void raft_moved(void *data)
{
    node_changed(data);
}

static void before_snapshot(void *data)
{
    struct node *n = data;

    upkeep_before_snapshot(&n->upkeep);
}

static int check_identity(void *data, uint32_t id, uint64_t identity)
{
    return node_check_identity(data, id, identity);
}

static void peer_accepted(void *data, uint32_t id, uv_tcp_t *stream)
{
    struct node *n = data;

    peers_accept(&n->peers, id, stream);
}

static int fail(struct node *n, const char *what, const char *why)
{
    snprintf(n->errmsg, sizeof n->errmsg, "%.100s: %.350s", what, why);
    return 2;
}

static int start_transport(struct node *n)
{
    const struct settings *s = &n->settings;
    struct transport_hooks hooks = {.data = n,
                                    .check_identity = check_identity,
                                    .peer_accepted = peer_accepted};
    int rc = transport_init(&n->transport, n->loop, s->id, s->cluster,
                            n->identity, settings_self(s)->address,
                            s->listen[0] != '\0' ? s->listen
                                                 : settings_self(s)->address,
                            &hooks);

    if (rc == FLO_OK) {
        rc = transport_bind(&n->transport);
    }
    if (rc != FLO_OK) {
        snprintf(n->errmsg, sizeof n->errmsg,
                 "cannot listen for peers: %.300s; change --listen, or this "
                 "node's address in --members",
                 n->transport.errmsg);
        return 2;
    }
    return 0;
}

static int bootstrap(struct node *n)
{
    struct raft_configuration conf;
    int rv = 0;

    raft_configuration_init(&conf);
    for (unsigned i = 0; i < n->settings.n_members && rv == 0; i++) {
        rv = raft_configuration_add(&conf, n->settings.members[i].id,
                                    n->settings.members[i].address,
                                    RAFT_VOTER);
    }
    if (rv == 0) {
        rv = raft_bootstrap(&n->raft, &conf);
    }
    raft_configuration_close(&conf);
    return rv == RAFT_CANTBOOTSTRAP ? 0 : rv; /* it has a log already */
}

static int start_raft(struct node *n)
{
    const struct settings *s = &n->settings;
    struct raft_guard_hooks hooks = {.data = n,
                                     .changed = raft_moved,
                                     .before_snapshot = before_snapshot};
    char dir[600];
    unsigned seed;

    snprintf(dir, sizeof dir, "%s/raft", s->dir);
    if (raft_uv_init(&n->io, n->loop, dir, &n->transport.raft) != 0) {
        return fail(n, dir, n->io.errmsg);
    }
    if (raft_guard_init(&n->guard, n->loop, &n->raft, &n->io, s->heartbeat_ms,
                        &hooks) != FLO_OK) {
        return fail(n, dir, "out of memory");
    }
    raft_guard_configure_uv(&n->guard);
    fsm_init(n);
    if (raft_init(&n->raft, &n->io, &n->fsm, s->id,
                  settings_self(s)->address) != 0) {
        return fail(n, dir, raft_errmsg(&n->raft));
    }
    n->raft.data = n;
    if (getrandom(&seed, sizeof seed, 0) == sizeof seed) {
        raft_seed(&n->raft, seed);
    }
    raft_guard_configure(&n->guard, s->election_ms);
    if (bootstrap(n) != 0 || raft_start(&n->raft) != 0) {
        snprintf(n->errmsg, sizeof n->errmsg,
                 "%.200s: %.150s hint=\"raft's files are damaged: replace this "
                 "node, see doc/operations.md\"",
                 dir, raft_errmsg(&n->raft));
        return 2;
    }
    n->raft_started = true;
    return identity_joined(n) == FLO_OK ? 0 : 2;
}

static int start_background(struct node *n)
{
    if (worker_start(&n->background, n->loop, "background") != FLO_OK) {
        return fail(n, "background thread", "cannot be started");
    }
    n->background.data = n;
    n->background_running = true;
    return 0;
}

static void start_signals(struct node *n)
{
    signal(SIGPIPE, SIG_IGN);
    uv_signal_init(n->loop, &n->sigterm);
    uv_signal_init(n->loop, &n->sigint);
    n->sigterm.data = n->sigint.data = n;
    uv_signal_start(&n->sigterm, signalled, SIGTERM);
    uv_signal_start(&n->sigint, signalled, SIGINT);
    uv_timer_init(n->loop, &n->tick);
    n->tick.data = n;
    uv_timer_start(&n->tick, tick, TICK_MS, TICK_MS);
}

static int start_all(struct node *n, uv_loop_t *loop, const struct settings *s)
{
    *n = (struct node){.settings = *s, .loop = loop, .lock_fd = -1};
    n->started_ms = node_wall_ms();
    n->started_at = uv_now(loop);
    if (getrandom(&n->next_grant, sizeof n->next_grant, 0) !=
        sizeof n->next_grant) {
        return fail(n, "random numbers", "not available");
    }
    n->next_grant = (n->next_grant & 0x7fffffffffff0000u) | 1;
    leader_init(&n->leader, n);
    upkeep_init(&n->upkeep, n);
    if (identity_open(n) != FLO_OK || start_transport(n) != 0 ||
        start_background(n) != 0) {
        return 2;
    }
    if (http_start(&n->http, loop, n, s->http, n->errmsg, sizeof n->errmsg) !=
        FLO_OK) {
        return 2;
    }
    if (peers_start(&n->peers, n) != FLO_OK || start_raft(n) != 0 ||
        sessions_start(n) != FLO_OK) {
        return 2;
    }
    start_signals(n);
    return 0;
}

int node_start(struct node *n, uv_loop_t *loop, const struct settings *s)
{
    int rc = start_all(n, loop, s);

    if (rc != 0) {
        identity_undo(n);
    }
    return rc;
}
