/* The leader's service; see leader.h.
 *
 *  - raft says leader: a barrier; when it is applied, everything that any
 *    earlier leader may have committed is applied too: ready
 *  - PEER_LOCK waits in the database's queue; the grant carries what the asking
 *    replica lacks, if it is recent
 *  - PROPOSE: checked against the tail of the chain, wrapped, given to raft;
 *    the answer follows when raft has applied it here; that ends the grant
 *
 * Leadership lost: waiters are refused (they ask the next leader), proposals
 * under way are answered FLO_UNKNOWN (they are asked for again). A proposal
 * whose sender is gone goes on: raft decides. */
#include "daemon/leader.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"

/* The transaction that a database has in raft's hands. */
struct proposed
{
    struct db *db;
    uint32_t from;
    uint64_t request; /* 0 until the last record was received */
    uint64_t grant, txid, commit_id;
    uint32_t next_fragment, n_fragments;
    unsigned inflight; /* raft_guard_apply's not called back yet */
    bool detached;     /* no longer db->proposed; freed with the last callback */
};

struct propose_req
{
    struct raft_guard_apply apply;
    struct leader *leader;
    struct proposed *proposed; /* NULL: CREATE or DROP */
    bool last;
    uint32_t from;
    uint64_t request;
};

static uint64_t now(const struct leader *l)
{
    return uv_now(l->node->loop);
}

static bool is_ready(const struct leader *l)
{
    return l->ready_term != 0 && raft_state(&l->node->raft) == RAFT_LEADER &&
           l->ready_term == raft_current_term(&l->node->raft);
}

static void reply(struct leader *l, uint32_t to, uint64_t request, int rc,
                  uint64_t txid, const char *text)
{
    struct wire_msg m = {.type = MSG_RESULT, .request = request};

    m.result.code = (uint32_t)rc;
    m.result.txid = txid;
    snprintf(m.result.text, sizeof m.result.text, "%s", text);
    peers_send(&l->node->peers, to, &m);
}

/* ---- Becoming ready -------------------------------------------------------------- */

static void barrier_done(struct raft_barrier *req, int status)
{
    struct leader *l = req->data;
    struct node *n = l->node;

    l->barrier_pending = false;
    if (status != 0 || raft_state(&n->raft) != RAFT_LEADER ||
        raft_current_term(&n->raft) != l->barrier_term) {
        l->barrier_term = 0; /* asked again if this node still leads */
        return;
    }
    l->ready_term = l->barrier_term;
    l->ready_index = raft_last_applied(&n->raft);
    log_info("leader_ready", "term=%llu index=%llu",
             (unsigned long long)l->ready_term,
             (unsigned long long)l->ready_index);
    raft_guard_announce(&n->guard);
    peers_announce(&n->peers);
    node_changed(n);
}

static void lost(struct leader *l)
{
    l->ready_term = 0;
    l->barrier_term = 0;
    for (struct db *db = l->node->dbs; db != NULL; db = db->next) {
        lockq_clear(&db->lockq, FLO_NOTLEADER);
    }
}

void leader_changed(struct leader *l)
{
    struct node *n = l->node;
    uint64_t term = raft_current_term(&n->raft);

    if (raft_state(&n->raft) != RAFT_LEADER) {
        if (l->ready_term != 0 || l->barrier_term != 0) {
            lost(l);
        }
        return;
    }
    if (l->ready_term != 0 && l->ready_term != term) {
        lost(l);
    }
    if (l->barrier_term == term || l->barrier_pending) {
        return;
    }
    l->barrier.data = l;
    if (raft_barrier(&n->raft, &l->barrier, barrier_done) == 0) {
        l->barrier_pending = true;
        l->barrier_term = term;
    }
}

/* ---- The write lock ------------------------------------------------------------------ */

static void send_missing(struct db *db, uint32_t to, uint64_t txid)
{
    bool reaches;
    struct db_record *r = db_ring_after(db, txid, &reaches);

    /* Without them the replica catches up through raft: slower, not wrong. */
    for (; reaches && r != NULL; r = r->next) {
        struct wire_msg m = {.type = MSG_ENTRY};
        m.entry.record =
            (struct wire_blob){.data = r->bytes, .len = (uint32_t)r->n};
        peers_send(&db->node->peers, to, &m);
    }
}

static void granted(struct lockq *q, const struct lock_waiter *w)
{
    struct db *db = q->data;
    struct leader *l = &db->node->leader;
    struct wire_msg m = {.type = MSG_PEER_GRANT, .request = w->request};

    if (w->node != db->node->settings.id) {
        send_missing(db, w->node, w->txid);
    }
    m.peer_grant.term = l->ready_term;
    m.peer_grant.grant = q->holder;
    m.peer_grant.txid = db->fsm.txid;
    m.peer_grant.checksum = db->fsm.checksum;
    peers_send(&db->node->peers, w->node, &m);
}

static void refused(struct lockq *q, const struct lock_waiter *w, int rc)
{
    struct db *db = q->data;

    reply(&db->node->leader, w->node, w->request, rc, db->fsm.txid,
          rc == FLO_BUSY ? "another transaction holds the write lock" : "");
}

static void revoked(struct lockq *q, uint32_t node, uint64_t grant)
{
    struct db *db = q->data;
    struct wire_msg m = {.type = MSG_REVOKED};

    log_warn("grant_revoked", "db=%s node=%u hint=%s", db->name, node,
             log_quote("the transaction lasted longer than "
                       "max-transaction-ms while others waited, or its node "
                       "is gone"));
    m.revoked.term = raft_current_term(&db->node->raft);
    m.revoked.grant = grant;
    peers_send(&db->node->peers, node, &m);
}

static uint64_t next_grant(struct lockq *q)
{
    struct db *db = q->data;
    return ++db->node->leader.next_grant;
}

void leader_db_init(struct leader *l, struct db *db)
{
    (void)l;
    db->lockq = (struct lockq){.data = db,
                               .granted = granted,
                               .refused = refused,
                               .revoked = revoked,
                               .next_grant = next_grant};
}


static void ask_lock(struct leader *l, uint32_t from, const struct wire_msg *m)
{
    struct node *n = l->node;
    struct db *db = db_find(n, m->peer_lock.db);

    if (!is_ready(l) || n->lame_duck) {
        reply(l, from, m->request, FLO_NOTLEADER, 0, "");
    } else if (db == NULL) {
        reply(l, from, m->request, FLO_NOTFOUND, 0, "no such database");
    } else if (n->upkeep.disk_low) {
        reply(l, from, m->request, FLO_FULL, 0,
              "the leader's disk is full: free some space");
    } else {
        lockq_ask(&db->lockq, from, m->request, m->peer_lock.timeout_ms,
                  m->peer_lock.txid, now(l));
    }
}

/* ---- Proposals ------------------------------------------------------------------------- */

static void proposed_detach(struct proposed *p)
{
    if (p->db != NULL) {
        p->db->lockq.pinned = false;
        p->db->proposed = NULL;
        p->db = NULL;
    }
    p->detached = true;
    if (p->inflight == 0) {
        free(p);
    }
}

void leader_db_close(struct db *db)
{
    lockq_clear(&db->lockq, FLO_NOTFOUND);
    if (db->proposed != NULL) {
        proposed_detach(db->proposed);
    }
}

/* The last record was applied, or will never be told. */
static void proposed_done(struct leader *l, struct proposed *p, int rc)
{
    struct db *db = p->db;
    uint64_t grant = p->grant, request = p->request, txid = p->txid;
    uint32_t from = p->from;

    proposed_detach(p);
    if (rc == FLO_OK) {
        l->node->counters.proposals_committed++;
        raft_guard_announce(&l->node->guard);
    } else {
        l->node->counters.proposals_failed++;
    }
    if (request != 0) {
        reply(l, from, request, rc, txid, "");
    }
    if (db != NULL && !db->dropped) {
        lockq_release(&db->lockq, grant, now(l));
    }
}

static void apply_done(struct raft_guard_apply *apply, int rc)
{
    struct propose_req *req = apply->data;
    struct leader *l = req->leader;
    struct proposed *p = req->proposed;

    l->inflight--;
    if (p == NULL) {
        reply(l, req->from, req->request, rc, 0, "");
        raft_guard_announce(&l->node->guard);
    } else {
        p->inflight--;
        if (p->detached) {
            if (p->inflight == 0) {
                free(p);
            }
        } else if (req->last || rc != FLO_OK) {
            proposed_done(l, p, rc == FLO_OK ? FLO_OK : FLO_UNKNOWN);
        }
    }
    free(req);
}

/* Give one record to raft. */
static int submit(struct leader *l, struct proposed *p, uint32_t from,
                  const struct wire_msg *m)
{
    struct propose_req *req = calloc(1, sizeof *req);
    void *entry;
    size_t entry_n;
    int rc;

    if (req == NULL) {
        return FLO_NOMEM;
    }
    *req = (struct propose_req){.leader = l,
                                .proposed = p,
                                .last = m->propose.last,
                                .from = from,
                                .request = m->request};
    req->apply.data = req;
    rc = entry_wrap(m->propose.record.data, m->propose.record.len, &entry,
                    &entry_n);
    if (rc == FLO_OK) {
        rc = raft_guard_apply(&l->node->guard, &req->apply, entry, entry_n,
                              apply_done);
    }
    if (rc != FLO_OK) {
        free(req);
        return rc;
    }
    l->inflight++;
    if (p != NULL) {
        p->inflight++;
    }
    return FLO_OK;
}

/* May this transaction start now? */
static int check_first(struct db *db, const struct record *rec, uint64_t grant)
{
    if (db->proposed != NULL && db->proposed->request != 0) {
        return FLO_LOST;
    }
    if (db->lockq.holder != 0 && db->lockq.holder != grant) {
        return FLO_LOST;
    }
    if (rec->txid != db->fsm.txid + 1 || rec->before != db->fsm.checksum) {
        return FLO_LOST;
    }
    return FLO_OK;
}

static int begin(struct db *db, const struct record *rec, uint32_t from,
                 uint64_t grant)
{
    struct proposed *p;
    int rc = check_first(db, rec, grant);

    if (rc != FLO_OK) {
        return rc;
    }
    p = calloc(1, sizeof *p);
    if (p == NULL) {
        return FLO_NOMEM;
    }
    if (db->proposed != NULL) {
        proposed_detach(db->proposed); /* never completed by its sender */
    }
    *p = (struct proposed){.db = db,
                           .from = from,
                           .grant = grant,
                           .txid = rec->txid,
                           .commit_id = rec->commit_id,
                           .n_fragments = rec->n_fragments};
    db->proposed = p;
    db->lockq.pinned = true;
    return FLO_OK;
}

/* One record of a transaction. FLO_DUPLICATE: it is under way already. */
static int propose_record(struct leader *l, struct db *db, uint32_t from,
                          const struct record *rec, const struct wire_msg *m)
{
    struct proposed *p = db->proposed;
    int rc;

    if (p != NULL && p->request != 0 && p->commit_id == rec->commit_id &&
        p->txid == rec->txid) {
        if (m->propose.last) {
            p->from = from; /* sent again: answer the newest question */
            p->request = m->request;
        }
        return FLO_DUPLICATE;
    }
    if (rec->fragment == 0) {
        rc = begin(db, rec, from, m->propose.grant);
        if (rc != FLO_OK) {
            return rc;
        }
        p = db->proposed;
    }
    if (p == NULL || p->from != from || p->commit_id != rec->commit_id ||
        p->next_fragment != rec->fragment ||
        m->propose.last != (rec->fragment + 1 == p->n_fragments)) {
        return FLO_LOST; /* follows a fragment that was refused */
    }
    p->next_fragment++;
    if (m->propose.last) {
        p->request = m->request;
    }
    rc = submit(l, p, from, m);
    if (rc != FLO_OK) {
        proposed_detach(p);
    }
    return rc;
}

static int propose_transaction(struct leader *l, uint32_t from,
                               const struct record *rec,
                               const struct wire_msg *m)
{
    struct db *db = db_find(l->node, rec->db);
    int rc;

    if (db == NULL) {
        return FLO_NOTFOUND;
    }
    if (db_outcome(db, rec->txid, rec->commit_id) == FLO_OK) {
        if (m->propose.last) {
            reply(l, from, m->request, FLO_OK, rec->txid, "");
        }
        return FLO_DUPLICATE;
    }
    rc = propose_record(l, db, from, rec, m);
    return rc;
}

static int propose_simple(struct leader *l, uint32_t from,
                          const struct record *rec, const struct wire_msg *m)
{
    bool there = db_find(l->node, rec->db) != NULL;

    if (there == (rec->kind == RECORD_CREATE)) {
        reply(l, from, m->request, FLO_OK, 0, "");
        return FLO_DUPLICATE;
    }
    if (rec->kind == RECORD_CREATE &&
        l->node->n_dbs >= l->node->settings.max_databases) {
        return FLO_TOOBIG;
    }
    return submit(l, NULL, from, m);
}

static void propose(struct leader *l, uint32_t from, const struct wire_msg *m)
{
    struct record rec;
    int rc;

    rc = record_decode(m->propose.record.data, m->propose.record.len, &rec);
    if (rc == FLO_OK && (!is_ready(l) || m->propose.term != l->ready_term)) {
        rc = FLO_NOTLEADER;
    }
    if (rc == FLO_OK) {
        rc = rec.kind == RECORD_TRANSACTION
                 ? propose_transaction(l, from, &rec, m)
                 : propose_simple(l, from, &rec, m);
    }
    if (rc != FLO_OK && rc != FLO_DUPLICATE && m->propose.last) {
        reply(l, from, m->request, rc, 0, "");
    }
}

/* ---- Read index --------------------------------------------------------------------------- */

struct read_req
{
    struct raft_barrier barrier;
    struct leader *leader;
    uint32_t from;
    uint64_t request;
};

static void read_done(struct raft_barrier *barrier, int status)
{
    struct read_req *r = barrier->data;
    struct leader *l = r->leader;
    struct wire_msg m = {.type = MSG_READ_INDEX_IS, .request = r->request};

    if (status != 0) {
        reply(l, r->from, r->request, FLO_NOTLEADER, 0, "");
    } else {
        m.read_index_is.index = barrier->index;
        peers_send(&l->node->peers, r->from, &m);
        raft_guard_announce(&l->node->guard);
    }
    free(r);
}

/* A barrier confirms leadership with a majority (guard G11), at the price of a
 * log entry without content. */
static void read_index(struct leader *l, uint32_t from,
                       const struct wire_msg *m)
{
    struct read_req *r = NULL;

    if (is_ready(l)) {
        r = calloc(1, sizeof *r);
    }
    if (r == NULL) {
        reply(l, from, m->request, FLO_NOTLEADER, 0, "");
        return;
    }
    r->leader = l;
    r->from = from;
    r->request = m->request;
    r->barrier.data = r;
    if (raft_barrier(&l->node->raft, &r->barrier, read_done) != 0) {
        free(r);
        reply(l, from, m->request, FLO_NOTLEADER, 0, "");
    }
}

/* ---- Entry points -------------------------------------------------------------------------- */

static void cancel(struct leader *l, uint32_t from, uint64_t request)
{
    for (struct db *db = l->node->dbs; db != NULL; db = db->next) {
        lockq_cancel(&db->lockq, from, request);
    }
}

static void release(struct leader *l, const struct wire_msg *m)
{
    if (m->peer_release.term != l->ready_term) {
        return; /* a grant of another term is void already */
    }
    for (struct db *db = l->node->dbs; db != NULL; db = db->next) {
        if (!db->lockq.pinned) {
            lockq_release(&db->lockq, m->peer_release.grant, now(l));
        }
    }
}

void leader_handle(struct leader *l, uint32_t from, const struct wire_msg *m)
{
    switch (m->type) {
        case MSG_PEER_LOCK:
            ask_lock(l, from, m);
            break;
        case MSG_CANCEL:
            cancel(l, from, m->cancel.cancelled);
            break;
        case MSG_PROPOSE:
            propose(l, from, m);
            break;
        case MSG_PEER_RELEASE:
            release(l, m);
            break;
        case MSG_READ_INDEX:
            read_index(l, from, m);
            break;
        default:
            assert(0 && "node_handle sends nothing else here");
    }
}

void leader_drop_node(struct leader *l, uint32_t id)
{
    for (struct db *db = l->node->dbs; db != NULL; db = db->next) {
        struct proposed *p = db->proposed;
        if (p != NULL && p->from == id && p->request == 0) {
            proposed_detach(p); /* its fragments will not be completed */
        }
        lockq_drop_node(&db->lockq, id, now(l));
    }
}

void leader_tick(struct leader *l)
{
    if (!is_ready(l)) {
        return;
    }
    for (struct db *db = l->node->dbs; db != NULL; db = db->next) {
        lockq_tick(&db->lockq, l->node->settings.max_transaction_ms, now(l));
    }
}

void leader_init(struct leader *l, struct node *n)
{
    *l = (struct leader){.node = n};
}
