/* A client's write transaction on this node; see txn.h.
 *
 *  - LOCK: asked of the leader once the local replica is good
 *  - granted: the replica is where the grant says, the fence is given away
 *  - COMMIT: pages collected from the WAL, proposed, the client told to publish
 *  - RELEASE or the client's death: the fence is taken back, and what raft
 *    committed is recorded or, if the client did not publish it, published
 *
 * Failure modes: no leader or no majority (QUEUED until the deadline);
 * leadership lost while PROPOSED (the proposal asks the next leader); the
 * grant revoked (COMMIT is refused); the client stopped with the fence in hand
 * (TAKEBACK is tried again for as long as it takes: this replica stands still,
 * the cluster does not). */
#include "daemon/txn.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"
#include "daemon/status_json.h"

#define TRY_MS 200        /* for a lock that is wanted only if it is free */
#define INLINE_FRAMES 64  /* collected on the loop: microseconds */
#define INLINE_BYTES (256u << 10)
#define STUCK_MS 1000

static void takeback(struct txn *t);

static uint64_t now(const struct txn *t)
{
    return uv_now(t->node->loop);
}

/* ---- Life ------------------------------------------------------------------------- */

int txn_init(struct txn *t, struct node *n)
{
    *t = (struct txn){.node = n};
    t->timer = malloc(sizeof *t->timer);
    if (t->timer == NULL) {
        return FLO_NOMEM;
    }
    uv_timer_init(n->loop, t->timer);
    t->timer->data = t;
    t->next = n->txns;
    if (t->next != NULL) {
        t->next->prev = t;
    }
    n->txns = t;
    return FLO_OK;
}

static void destroy(struct txn *t)
{
    assert(t->state == TXN_IDLE);
    if (t->prev != NULL) {
        t->prev->next = t->next;
    } else {
        t->node->txns = t->next;
    }
    if (t->next != NULL) {
        t->next->prev = t->prev;
    }
    uv_close((uv_handle_t *)t->timer, (uv_close_cb)free);
    free(t);
}

/* Back to IDLE; an orphan ends here. */
static void idle(struct txn *t)
{
    uv_timer_stop(t->timer);
    t->state = TXN_IDLE;
    t->db = NULL;
    if (t->orphan) {
        destroy(t);
    }
}

static void stop_waiting(struct txn *t)
{
    if (t->wait.cb != NULL) {
        db_unwait(t->db, &t->wait);
        t->wait.cb = NULL;
    }
}

static void tell_leader_released(struct txn *t)
{
    struct wire_msg m = {.type = MSG_PEER_RELEASE};

    if (t->leader_grant != 0) {
        m.peer_release.term = t->leader_term;
        m.peer_release.grant = t->leader_grant;
        peers_send(&t->node->peers, t->leader_id, &m);
        t->leader_grant = 0;
    }
}

/* The lock is not had: QUEUED or CATCHUP without the fence. */
static void refuse(struct txn *t, int rc, const char *text)
{
    bool orphan = t->orphan;

    if (t->asked) {
        struct wire_msg m = {.type = MSG_CANCEL};
        m.cancel.cancelled = t->ask.number;
        peers_forget(&t->node->peers, &t->ask);
        t->asked = false;
        peers_send(&t->node->peers, t->ask.to, &m);
    }
    tell_leader_released(t);
    stop_waiting(t);
    idle(t);
    if (!orphan) {
        t->on_lock(t, rc, text);
    }
}

/* ---- Getting the lock ---------------------------------------------------------------- */

struct txn_job
{
    struct job job;
    struct txn *t;
    struct replica *replica;
    uint32_t last_frame, n_pages;
    uint8_t header[24];
    bool settle;
    int rc;
};

static struct txn_job *job_new(struct txn *t, void (*run)(struct job *),
                               void (*done)(struct job *))
{
    struct txn_job *j = calloc(1, sizeof *j);

    if (j == NULL) {
        log_error("out_of_memory", "hint=%s",
                  log_quote("the node stops; give it more memory"));
        abort();
    }
    j->job.run = run;
    j->job.done = done;
    j->t = t;
    j->replica = &t->db->replica;
    return j;
}

/* Give the fence away, if nobody else wrote meanwhile. */
static void give_run(struct job *job)
{
    struct txn_job *j = (struct txn_job *)job;

    j->rc = replica_check_foreign(j->replica);
    if (j->rc == FLO_OK) {
        j->rc = replica_give_fence(j->replica, j->t->grant);
    }
}

static void give_done(struct job *job)
{
    struct txn_job *j = (struct txn_job *)job;
    struct txn *t = j->t;
    int rc = j->rc;

    free(j);
    t->state = TXN_HELD;
    if (rc == FLO_MISMATCH) {
        struct db *db = t->db;
        db->writer = NULL;
        db_desync(db, "foreign write");
        t->state = TXN_CATCHUP;
        refuse(t, FLO_DESYNCED, "a program without the extension wrote here");
    } else if (rc != FLO_OK || t->cancelled || t->orphan) {
        if (!t->orphan) {
            t->on_lock(t, FLO_BUSY, flo_strerror(rc));
        }
        takeback(t);
    } else {
        uv_timer_stop(t->timer);
        t->on_lock(t, FLO_OK, "");
    }
}

/* PRISTINE has no WAL to write to: WIRE_INIT comes first. */
static void catch_up(struct txn *t)
{
    struct db *db = t->db;

    if (db->writer != NULL || db->applying || db->pending_head != NULL) {
        if (db->state == DB_IS_GOOD) {
            return; /* told again when it moves */
        }
    }
    if (db->state != DB_IS_GOOD) {
        refuse(t, FLO_DESYNCED, "this node's replica is being repaired");
    } else if (db->applied.txid < t->base.txid) {
        return;
    } else if (!position_equal(db->applied, t->base)) {
        refuse(t, FLO_BUSY, "the grant was taken back");
    } else {
        stop_waiting(t);
        db->writer = t;
        t->grant = ++t->node->next_grant;
        worker_run_or_post(&db->worker, &job_new(t, give_run, give_done)->job);
    }
}

static void asked(struct peer_request *r, const struct wire_msg *m, int rc)
{
    struct txn *t = r->data;

    t->asked = false;
    if (m != NULL && m->type == MSG_PEER_GRANT) {
        t->leader_id = r->to;
        t->leader_term = m->peer_grant.term;
        t->leader_grant = m->peer_grant.grant;
        t->base = (struct position){m->peer_grant.txid, m->peer_grant.checksum};
        t->state = TXN_CATCHUP;
        catch_up(t);
        return;
    }
    if (m != NULL && m->type == MSG_RESULT) {
        rc = (int)m->result.code;
    }
    if (rc == FLO_NOTLEADER || rc == FLO_NOLEADER) {
        if (t->try_only) {
            refuse(t, FLO_NOLEADER, "no leader: is there a majority of nodes?");
        }
        return; /* asked again when a leader is ready */
    }
    refuse(t, rc, m != NULL ? m->result.text : "");
}

static void ask(struct txn *t)
{
    struct node *n = t->node;
    struct wire_msg m = {.type = MSG_PEER_LOCK};
    uint64_t left = t->deadline > now(t) ? t->deadline - now(t) : 0;

    if (t->asked || !n->view.ready || t->db->state != DB_IS_GOOD) {
        return;
    }
    strcpy(m.peer_lock.db, t->db->name);
    m.peer_lock.timeout_ms = t->try_only ? 0 : (uint32_t)left;
    m.peer_lock.txid = t->db->applied.txid;
    t->asked = true;
    t->ask.data = t;
    t->ask.cb = asked;
    peers_request(&n->peers, &t->ask, n->view.id, &m);
}

/* The replica moved or changed its state. */
static void waited(struct db_waiter *w)
{
    struct txn *t = w->data;

    if (t->state == TXN_QUEUED) {
        ask(t);
    } else if (t->state == TXN_CATCHUP && t->db->writer != t) {
        catch_up(t);
    }
}

static void lock_timeout(uv_timer_t *timer)
{
    struct txn *t = timer->data;

    txn_cancel(t);
}

static int regrant(struct txn *t)
{
    uv_timer_stop(t->timer);
    t->state = TXN_HELD;
    t->on_lock(t, FLO_OK, "");
    return FLO_OK;
}

int txn_lock(struct txn *t, struct db *db, unsigned timeout_ms, bool fresh)
{
    struct node *n = t->node;

    if (t->state == TXN_LINGER && t->db == db && !t->revoked) {
        return regrant(t);
    }
    if (t->state != TXN_IDLE) {
        return FLO_BUSY;
    }
    t->db = db;
    t->try_only = timeout_ms == 0;
    t->fresh = fresh;
    t->deadline = now(t) + (t->try_only ? TRY_MS : timeout_ms);
    t->revoked = t->cancelled = t->released = false;
    t->committed = t->stuck = t->open = false;
    t->leader_grant = 0;
    t->state = TXN_QUEUED;
    t->wait.data = t;
    t->wait.cb = waited;
    db_wait(db, &t->wait);
    if (n->lame_duck) {
        refuse(t, FLO_SHUTDOWN, "this node is stopping");
    } else if (n->upkeep.disk_low) {
        refuse(t, FLO_FULL, "this node's disk is full: free some space");
    } else if (fresh && db->wal_bouncing) {
        refuse(t, FLO_STALE, "the WAL is being restarted");
    } else if (t->try_only && (!n->view.ready || db->state != DB_IS_GOOD)) {
        refuse(t, FLO_NOLEADER, n->view.ready ? "the replica is not ready"
                                              : "no leader");
    } else {
        uv_timer_start(t->timer, lock_timeout, t->deadline - now(t), 0);
        ask(t);
    }
    return FLO_OK;
}

void txn_cancel(struct txn *t)
{
    if (t->state == TXN_QUEUED) {
        refuse(t, FLO_BUSY, t->node->view.ready
                                ? "another transaction holds the write lock"
                                : "no leader: is there a majority of nodes?");
    } else if (t->state == TXN_CATCHUP) {
        if (t->db->writer == t) {
            t->cancelled = true; /* give_done goes on */
        } else {
            refuse(t, FLO_BUSY, "this node's replica lags behind");
        }
    }
}

/* ---- Committing ------------------------------------------------------------------------- */

static void answer_commit(struct txn *t, int rc, uint64_t txid)
{
    struct node_counters *c = &t->node->counters;

    if (rc == FLO_OK) {
        c->txn_committed++;
    } else if (rc == FLO_UNKNOWN) {
        c->txn_unknown++;
    } else {
        c->txn_rejected++;
    }
    commit_latency_add(c, (double)(uv_hrtime() - t->committed_at) / 1e6);
    if (!t->orphan) {
        t->on_commit(t, rc, txid);
    }
    if (t->orphan || t->released) {
        takeback(t);
    }
}

static void proposed(struct proposal *p, int rc, uint64_t txid)
{
    struct txn *t = p->data;

    if (rc == FLO_OK) {
        t->committed = true;
        t->leader_grant = 0; /* the leader ended it by itself */
        t->state = TXN_PUBLISH;
    } else {
        t->state = TXN_HELD;
        t->open = rc == FLO_UNKNOWN;
        if (rc == FLO_NOTFOUND || rc == FLO_CORRUPT || rc == FLO_INVALID) {
            rc = FLO_LOST;
        }
    }
    answer_commit(t, rc, txid);
}

static void collect_run(struct job *job)
{
    struct txn_job *j = (struct txn_job *)job;
    struct txn *t = j->t;
    const struct settings *s = &t->node->settings;

    j->rc = replica_collect(j->replica, j->last_frame, j->n_pages, j->header,
                            t->commit_id, s->id, s->max_transaction_bytes,
                            &t->builder);
}

static void collect_done(struct job *job)
{
    struct txn_job *j = (struct txn_job *)job;
    struct txn *t = j->t;
    struct proposal *p = &t->proposal;
    int rc = j->rc;

    free(j);
    t->built = true;
    if (rc != FLO_OK) {
        log_warn("collect_failed", "db=%s pid=%u reason=%s text=%s",
                 t->db->name, t->pid, log_quote(flo_strerror(rc)),
                 log_quote(t->db->replica.errmsg));
        txn_builder_close(&t->builder);
        t->built = false;
        t->state = TXN_HELD;
        answer_commit(t, rc, 0);
        return;
    }
    t->state = TXN_PROPOSED;
    p->node = t->node;
    p->records = t->builder.records;
    p->n_records = t->builder.n_records;
    p->grant = t->leader_grant;
    p->txid = t->builder.head.txid;
    p->commit_id = t->commit_id;
    p->data = t;
    p->done = proposed;
    proposal_start(p, t->node->settings.commit_timeout_ms);
}

int txn_commit(struct txn *t, uint64_t grant, uint64_t commit_id,
               uint32_t last_frame, uint32_t n_pages, const uint8_t header[24])
{
    struct txn_job *j;
    struct db *db = t->db;

    if (t->state != TXN_HELD || t->grant != grant || t->revoked || t->open ||
        commit_id == 0) {
        return FLO_LOST;
    }
    if (t->built) { /* COMMIT again, after one that was refused as busy */
        txn_builder_close(&t->builder);
        t->built = false;
    }
    t->commit_id = commit_id;
    t->committed_at = uv_hrtime();
    t->state = TXN_COLLECT;
    j = job_new(t, collect_run, collect_done);
    j->last_frame = last_frame;
    j->n_pages = n_pages;
    memcpy(j->header, header, sizeof j->header);
    if (last_frame - db->wal_frames <= INLINE_FRAMES) {
        worker_run_or_post(&db->worker, &j->job);
    } else {
        worker_post(&db->worker, &j->job);
    }
    return FLO_OK;
}

bool txn_is_own(const struct txn *t, const struct record *rec)
{
    return t->built && rec->origin == t->node->settings.id &&
           rec->txid == t->builder.head.txid && rec->commit_id == t->commit_id;
}

void txn_applied(struct txn *t, const struct record *rec)
{
    assert(txn_is_own(t, rec));
    t->committed = true;
}

/* ---- Giving it back ------------------------------------------------------------------------ */

static void back_run(struct job *job)
{
    struct txn_job *j = (struct txn_job *)job;

    j->rc = replica_take_fence(j->replica);
    if (j->rc == FLO_OK && j->settle) {
        j->rc = replica_settle(j->replica, &j->t->builder);
    }
}

static void back_done(struct job *job);

static void back_start(struct txn *t)
{
    struct txn_job *j = job_new(t, back_run, back_done);

    j->settle = t->committed;
    t->state = t->committed ? TXN_SETTLE : TXN_TAKEBACK;
    if (!t->committed || t->builder.bytes <= INLINE_BYTES) {
        worker_run_or_post(&t->db->worker, &j->job);
    } else {
        worker_post(&t->db->worker, &j->job);
    }
}

static void back_retry(uv_timer_t *timer)
{
    back_start(timer->data);
}

static void say_stuck(struct txn *t)
{
    t->stuck = true;
    log_warn("client_stuck", "db=%s pid=%u hint=%s", t->db->name, t->pid,
             log_quote("it sits in a write transaction that is over; this "
                       "replica waits until it goes on or ends"));
}

static void back_later(struct txn *t)
{
    uint64_t waited_ms = now(t) - t->since;

    if (waited_ms > STUCK_MS && !t->stuck) {
        say_stuck(t);
    }
    if (t->node->closing) {
        t->db->writer = NULL;
        if (t->built) {
            txn_builder_close(&t->builder);
            t->built = false;
        }
        idle(t);
        return;
    }
    uv_timer_start(t->timer, back_retry, waited_ms < 100 ? 1 : 20, 0);
}

/* The replica is ours again. */
static void back_finish(struct txn *t, int rc)
{
    struct db *db = t->db;

    if (t->stuck) {
        log_info("client_released", "db=%s pid=%u", db->name, t->pid);
    }
    db->writer = NULL;
    if (t->built) {
        txn_builder_close(&t->builder);
        t->built = false;
    }
    idle(t);
    if (rc != FLO_OK) {
        log_warn("settle_failed", "db=%s reason=%s text=%s", db->name,
                 log_quote(flo_strerror(rc)), log_quote(db->replica.errmsg));
        db_desync(db, "settle failed");
    }
    db_moved(db);
}

static void back_done(struct job *job)
{
    struct txn_job *j = (struct txn_job *)job;
    struct txn *t = j->t;
    int rc = j->rc;
    bool settled = j->settle;

    free(j);
    if (rc == FLO_BUSY) {
        back_later(t);
    } else if (rc == FLO_FULL) {
        t->since = now(t); /* not the client's fault */
        uv_timer_start(t->timer, back_retry, 1000, 0);
    } else if (rc == FLO_OK && t->committed && !settled) {
        back_start(t); /* raft committed it while the fence was coming back */
    } else {
        back_finish(t, rc);
    }
}

static void takeback(struct txn *t)
{
    if (!t->committed) {
        tell_leader_released(t);
    }
    t->since = now(t);
    back_start(t);
}

static void linger_over(uv_timer_t *timer)
{
    takeback(timer->data);
}

void txn_release(struct txn *t, uint64_t grant, unsigned linger_ms)
{
    if (t->grant != grant) {
        return;
    }
    switch (t->state) {
        case TXN_HELD:
            if (linger_ms > 0 && !t->revoked && !t->built) {
                t->state = TXN_LINGER;
                uv_timer_start(t->timer, linger_over,
                               linger_ms < 100 ? linger_ms : 100, 0);
                break;
            }
            takeback(t);
            break;
        case TXN_PUBLISH:
            takeback(t);
            break;
        case TXN_COLLECT:
        case TXN_PROPOSED:
            t->released = true;
            break;
        default:
            break;
    }
}

void txn_abandon(struct txn *t)
{
    t->orphan = true;
    t->data = NULL;
    switch (t->state) {
        case TXN_IDLE:
            destroy(t);
            break;
        case TXN_QUEUED:
        case TXN_CATCHUP:
            txn_cancel(t);
            break;
        case TXN_HELD:
        case TXN_LINGER:
        case TXN_PUBLISH:
            takeback(t);
            break;
        case TXN_COLLECT:
        case TXN_PROPOSED:
        case TXN_TAKEBACK:
        case TXN_SETTLE:
            break; /* goes on by itself */
    }
}

/* ---- Events ----------------------------------------------------------------------------------- */

void txns_kick(struct node *n)
{
    struct txn *next;

    for (struct txn *t = n->txns; t != NULL; t = next) {
        next = t->next;
        if (t->state == TXN_QUEUED) {
            ask(t);
        }
    }
}

void txns_revoked(struct node *n, uint64_t term, uint64_t grant)
{
    for (struct txn *t = n->txns; t != NULL; t = t->next) {
        if (t->leader_grant == grant && t->leader_term == term) {
            t->revoked = true;
            t->leader_grant = 0;
            if (t->state == TXN_HELD && !t->stuck) {
                say_stuck(t);
            }
            if (t->state == TXN_LINGER) {
                takeback(t);
            } else if (t->state == TXN_CATCHUP) {
                txn_cancel(t);
            }
            return;
        }
    }
}

void txns_bounce(struct db *db)
{
    struct txn *next;

    for (struct txn *t = db->node->txns; t != NULL; t = next) {
        next = t->next;
        if (t->db == db && t->fresh &&
            (t->state == TXN_QUEUED ||
             (t->state == TXN_CATCHUP && db->writer != t))) {
            refuse(t, FLO_STALE, "the WAL is being restarted");
        }
    }
}

void txns_db_closed(struct db *db)
{
    struct txn *next;

    for (struct txn *t = db->node->txns; t != NULL; t = next) {
        next = t->next;
        if (t->db != db) {
            continue;
        }
        if (t->proposal.active) {
            proposal_cancel(&t->proposal);
            t->state = TXN_HELD;
            answer_commit(t, t->committed ? FLO_OK : FLO_UNKNOWN, 0);
        }
        if (t->state == TXN_QUEUED ||
            (t->state == TXN_CATCHUP && db->writer != t)) {
            refuse(t, FLO_SHUTDOWN, "the database or the node is closing");
        } else if (t->state == TXN_HELD || t->state == TXN_LINGER ||
                   t->state == TXN_PUBLISH) {
            takeback(t);
        }
    }
}
