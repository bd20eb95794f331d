/* The peer links; see peers.h.
 *
 *  - timer: connect what is missing, close what is silent, report to all
 *  - a link is made by transport.c (which trusts it) and handed to link.c
 *  - answers are told from requests by their number: numbers of this node's
 *    requests are odd for the smaller id of the two, even for the larger, so
 *    the two ends of a link never use the same one
 *
 * A lost link fails all requests to that member and tells the node. */
#include "daemon/peers.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"

static uint64_t now(const struct peers *p)
{
    return uv_now(p->node->loop);
}

struct peer *peers_find(struct peers *p, uint32_t id)
{
    for (unsigned i = 0; i < p->n; i++) {
        if (p->list[i].id == id) {
            return &p->list[i];
        }
    }
    return NULL;
}

/* ---- Requests --------------------------------------------------------------- */

static void unlink_request(struct peers *p, struct peer_request *r)
{
    if (r->prev != NULL) {
        r->prev->next = r->next;
    } else {
        p->requests = r->next;
    }
    if (r->next != NULL) {
        r->next->prev = r->prev;
    }
    r->prev = r->next = NULL;
    r->number = 0;
    p->n_requests--;
}

static void finish(struct peers *p, struct peer_request *r,
                   const struct wire_msg *answer, int rc)
{
    unlink_request(p, r);
    r->cb(r, answer, rc);
}

static struct peer_request *find_request(struct peers *p, uint32_t from,
                                         uint64_t number)
{
    struct peer_request *r = p->requests;

    while (r != NULL && (r->number != number || r->to != from)) {
        r = r->next;
    }
    return r;
}

static bool is_answer(enum wire_type type)
{
    return type == MSG_RESULT || type == MSG_PEER_GRANT ||
           type == MSG_READ_INDEX_IS || type == MSG_RESYNC_END;
}

static uint64_t next_number(struct peers *p, uint32_t to)
{
    p->next_number += 2;
    return p->next_number | (p->node->settings.id < to ? 1 : 0);
}

void peers_request(struct peers *p, struct peer_request *r, uint32_t to,
                   struct wire_msg *m)
{
    r->number = next_number(p, to);
    r->to = to;
    r->prev = NULL;
    r->next = p->requests;
    if (r->next != NULL) {
        r->next->prev = r;
    }
    p->requests = r;
    p->n_requests++;
    m->request = r->number;
    if (peers_send(p, to, m) != FLO_OK && r->number != 0) {
        finish(p, r, NULL, FLO_NOLEADER);
    }
}

void peers_forget(struct peers *p, struct peer_request *r)
{
    if (r->number != 0) {
        unlink_request(p, r);
    }
}

static void fail_requests(struct peers *p, uint32_t id, int rc)
{
    struct peer_request *r = p->requests;

    while (r != NULL) {
        if (id == 0 || r->to == id) {
            finish(p, r, NULL, rc);
            r = p->requests; /* the callback may have changed the list */
        } else {
            r = r->next;
        }
    }
}

/* An answer to a request of ours, or something for the node to handle. */
static void dispatch(struct peers *p, uint32_t from, const struct wire_msg *m)
{
    if (is_answer(m->type)) {
        struct peer_request *r = find_request(p, from, m->request);
        if (r != NULL) {
            finish(p, r, m, FLO_OK);
            return;
        }
        if (m->type != MSG_PEER_GRANT) {
            return; /* nobody waits for it any more */
        }
    }
    node_handle(p->node, from, m);
}

int peers_send(struct peers *p, uint32_t to, const struct wire_msg *m)
{
    struct peer *peer;

    if (to == p->node->settings.id) {
        dispatch(p, to, m);
        return FLO_OK;
    }
    peer = peers_find(p, to);
    if (peer == NULL || peer->link == NULL) {
        return FLO_NOLEADER;
    }
    return link_send(peer->link, m);
}

/* ---- Reports ------------------------------------------------------------------ */

static int put_databases(struct node *n, struct buf *b, uint32_t *count)
{
    int rc = FLO_OK;

    *count = 0;
    for (struct db *db = n->dbs; db != NULL && rc == FLO_OK; db = db->next) {
        if (db->dropped) {
            continue;
        }
        rc = wire_put_str(b, db->name);
        rc = rc != FLO_OK ? rc : buf_put_u64(b, db->applied.txid);
        rc = rc != FLO_OK ? rc : buf_put_u64(b, db->applied.checksum);
        rc = rc != FLO_OK ? rc : buf_put_u8(b, (uint8_t)db_health(db));
        ++*count;
    }
    return rc;
}

static void report(struct peers *p, struct peer *peer, const struct buf *dbs,
                   uint32_t n_dbs)
{
    struct node *n = p->node;
    struct wire_msg m = {.type = MSG_PROGRESS};

    m.progress.term = raft_current_term(&n->raft);
    m.progress.index = raft_last_applied(&n->raft);
    m.progress.ready_term = n->leader.ready_term;
    m.progress.ready_index = n->leader.ready_index;
    m.progress.free_bytes = n->upkeep.free_bytes;
    m.progress.sent_us = uv_hrtime() / 1000;
    if (peer->echo_us != 0) { /* less the time it waited here */
        m.progress.echo_us = peer->echo_us + uv_hrtime() / 1000 - peer->echo_at;
    }
    m.progress.n_databases = n_dbs;
    m.progress.databases =
        (struct wire_blob){.data = dbs->data, .len = (uint32_t)dbs->len};
    peer->echo_us = 0;
    link_send(peer->link, &m);
}

static void report_to(struct peers *p, struct peer *only)
{
    struct buf dbs;
    uint32_t n_dbs;

    if (!p->node->raft_started) {
        return;
    }
    buf_init(&dbs, WIRE_BODY_MAX / 2);
    if (put_databases(p->node, &dbs, &n_dbs) == FLO_OK) {
        for (unsigned i = 0; i < p->n; i++) {
            struct peer *peer = &p->list[i];
            if (peer->link != NULL && (only == NULL || only == peer)) {
                report(p, peer, &dbs, n_dbs);
            }
        }
    }
    buf_close(&dbs);
}

void peers_announce(struct peers *p)
{
    report_to(p, NULL);
}

static int parse_databases(struct wire_blob blob, uint32_t n,
                           struct peer_db **out)
{
    struct cursor c = cursor_of(blob.data, blob.len);
    struct peer_db *dbs;

    if (n > blob.len / 19 + 1) { /* smallest encoding of one */
        return FLO_PROTOCOL;
    }
    dbs = calloc(n > 0 ? n : 1, sizeof *dbs);
    if (dbs == NULL) {
        return FLO_NOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        wire_str name;
        wire_get_str(&c, name);
        dbs[i].position.txid = cursor_u64(&c);
        dbs[i].position.checksum = cursor_u64(&c);
        dbs[i].health = cursor_u8(&c);
        if (c.bad || !db_name_valid(name) || dbs[i].health > DB_UNKNOWN) {
            free(dbs);
            return FLO_PROTOCOL;
        }
        memcpy(dbs[i].name, name, strlen(name) + 1);
    }
    *out = dbs;
    return FLO_OK;
}

static void progress(struct peer *peer, const struct wire_msg *m)
{
    struct peer_db *dbs;
    int rc = parse_databases(m->progress.databases, m->progress.n_databases,
                             &dbs);

    if (rc != FLO_OK) {
        link_close(peer->link, rc);
        return;
    }
    free(peer->dbs);
    peer->dbs = dbs;
    peer->n_dbs = m->progress.n_databases;
    peer->term = m->progress.term;
    peer->index = m->progress.index;
    peer->ready_term = m->progress.ready_term;
    peer->ready_index = m->progress.ready_index;
    peer->free_bytes = m->progress.free_bytes;
    if (m->progress.echo_us != 0) {
        uint64_t rtt = uv_hrtime() / 1000 - m->progress.echo_us;
        peer->latency_ms = (double)rtt / 1000.0;
    } else {
        peer->echo_us = m->progress.sent_us;
        peer->echo_at = uv_hrtime() / 1000;
    }
    node_changed(peer->node);
}

/* ---- Links --------------------------------------------------------------------- */

static void on_message(struct link *l, const struct wire_msg *m)
{
    struct peer *peer = l->data;

    if (m->type == MSG_PROGRESS) {
        progress(peer, m);
        return;
    }
    dispatch(&peer->node->peers, peer->id, m);
}

static void on_close(struct link *l, int reason)
{
    struct peer *peer = l->data;
    struct peers *p = &peer->node->peers;

    if (peer->link != l) {
        free(l); /* replaced by a newer one */
        return;
    }
    free(l);
    peer->link = NULL;
    peer->retry_at = now(p) + PEER_RETRY_MS;
    peer->ready_term = 0;
    peer->latency_ms = -1;
    if (!p->closing) {
        log_warn("peer_lost", "peer=%u addr=%s reason=%s", peer->id,
                 peer->address,
                 log_quote(reason == FLO_OK ? "closed by the peer"
                                            : flo_strerror(reason)));
    }
    fail_requests(p, peer->id, p->closing ? FLO_SHUTDOWN : FLO_NOLEADER);
    node_peer_down(peer->node, peer->id);
}

static void link_up(struct peers *p, struct peer *peer, uv_tcp_t *stream)
{
    struct link *l = calloc(1, sizeof *l);

    if (l == NULL) {
        uv_close((uv_handle_t *)stream, (uv_close_cb)free);
        return;
    }
    if (peer->link != NULL) {
        /* The other side lost its end before we did. */
        struct link *old = peer->link;
        peer->link = NULL;
        link_close(old, FLO_OK);
        fail_requests(p, peer->id, FLO_NOLEADER);
        node_peer_down(peer->node, peer->id);
    }
    l->data = peer;
    l->out_max = PEER_OUT_MAX;
    l->on_message = on_message;
    l->on_close = on_close;
    peer->link = l;
    peer->failures = 0;
    peer->echo_us = 0;
    link_start(l, (uv_stream_t *)stream);
    log_info("peer_connected", "peer=%u addr=%s", peer->id, peer->address);
    report_to(p, peer);
    node_peer_up(peer->node, peer->id);
}

void peers_accept(struct peers *p, uint32_t id, uv_tcp_t *stream)
{
    struct peer *peer = peers_find(p, id);

    if (peer == NULL || p->closing) {
        uv_close((uv_handle_t *)stream, (uv_close_cb)free);
        return;
    }
    link_up(p, peer, stream);
}

static void connected(struct transport_connect *req, uv_tcp_t *stream, int rc)
{
    struct peer *peer = req->data;
    struct peers *p = &peer->node->peers;

    peer->connecting = false;
    if (rc == FLO_OK && !p->closing) {
        link_up(p, peer, stream);
        return;
    }
    if (stream != NULL) {
        uv_close((uv_handle_t *)stream, (uv_close_cb)free);
    }
    peer->retry_at =
        now(p) + (rc == FLO_IDENTITY ? PEER_REFUSED_MS : PEER_RETRY_MS);
    if (peer->failures++ == 0 && !p->closing) {
        log_warn("peer_unreachable", "peer=%u addr=%s reason=%s hint=%s",
                 peer->id, peer->address, log_quote(flo_strerror(rc)),
                 log_quote("is flotillad running there? retrying"));
    }
}

static void connect_to(struct peers *p, struct peer *peer)
{
    int rc;

    peer->connecting = true;
    peer->connect.data = peer;
    peer->connect.cb = connected;
    rc = transport_connect(&p->node->transport, &peer->connect, peer->id,
                           peer->address);
    if (rc != FLO_OK) {
        connected(&peer->connect, NULL, rc);
    }
}

static void tick(uv_timer_t *timer)
{
    struct peers *p = timer->data;

    for (unsigned i = 0; i < p->n; i++) {
        struct peer *peer = &p->list[i];
        if (peer->link != NULL) {
            if (now(p) - peer->link->last_in > PEER_SILENCE_MS) {
                link_close(peer->link, FLO_TIMEOUT);
            }
        } else if (!peer->connecting && p->node->settings.id < peer->id &&
                   now(p) >= peer->retry_at) {
            connect_to(p, peer);
        }
    }
    peers_announce(p);
}

int peers_start(struct peers *p, struct node *n)
{
    const struct settings *s = &n->settings;

    *p = (struct peers){.node = n};
    p->list = calloc(s->n_members, sizeof *p->list);
    if (p->list == NULL) {
        return FLO_NOMEM;
    }
    for (unsigned i = 0; i < s->n_members; i++) {
        if (s->members[i].id != s->id) {
            p->list[p->n++] = (struct peer){.node = n,
                                            .id = s->members[i].id,
                                            .address = s->members[i].address,
                                            .latency_ms = -1};
        }
    }
    uv_timer_init(n->loop, &p->timer);
    p->timer.data = p;
    uv_timer_start(&p->timer, tick, 0, PEER_TICK_MS);
    return FLO_OK;
}

void peers_close(struct peers *p)
{
    if (p->closing || p->node == NULL) {
        return;
    }
    p->closing = true;
    uv_close((uv_handle_t *)&p->timer, NULL);
    for (unsigned i = 0; i < p->n; i++) {
        if (p->list[i].link != NULL) {
            link_close(p->list[i].link, FLO_SHUTDOWN);
        }
    }
    fail_requests(p, 0, FLO_SHUTDOWN);
}
