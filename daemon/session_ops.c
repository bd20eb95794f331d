/* Requests of clients that wait for something: OPEN, INIT, WAIT, READ.
 *
 * A session has at most one of them: its `op` is a condition that is looked at
 * again whenever raft or a replica moved, and at least every OP_POLL_MS, until
 * it holds or its deadline passes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/session_impl.h"

#define OP_POLL_MS 2

/* ---- Operations that wait ------------------------------------------------------------ */

static void op_end(struct session *s, int rc, uint64_t txid, const char *text)
{
    uv_timer_stop(&s->timer);
    s->op = OP_NONE;
    session_result(s, s->op_request, rc, txid, text);
}

static void op_poll(uv_timer_t *timer)
{
    session_op_check(timer->data);
}

void session_op_cancel(struct session *s)
{
    if (s->op != OP_NONE) {
        proposal_cancel(&s->proposal);
        peers_forget(&s->owner->node->peers, &s->ask);
        s->op = OP_NONE;
    }
}

/* FLO_OK when the session is free for it. */
static int op_start(struct session *s, const struct wire_msg *m, const char *db,
                    unsigned timeout_ms)
{
    if (s->op != OP_NONE || s->job_running) {
        session_result(s, m->request, FLO_BUSY, 0, "one request at a time");
        return FLO_BUSY;
    }
    if (!db_name_valid(db)) {
        session_result(s, m->request, FLO_INVALID, 0,
               "a database name has 1 to 63 letters, digits, '_', '.' and '-'");
        return FLO_INVALID;
    }
    s->op_request = m->request;
    s->op_deadline = session_now(s) + timeout_ms;
    snprintf(s->op_db, sizeof s->op_db, "%s", db);
    uv_timer_start(&s->timer, op_poll, OP_POLL_MS, OP_POLL_MS);
    return FLO_OK;
}

static void check_open(struct session *s, struct db *db)
{
    if (db != NULL && db->state != DB_IS_OPENING) {
        op_end(s, FLO_OK, db->fsm.txid, "");
    }
}

static void check_wait(struct session *s, struct db *db)
{
    if (db == NULL) {
        op_end(s, FLO_NOTFOUND, 0, "no such database");
    } else if (db->state == DB_IS_GOOD && db->applied.txid >= s->op_txid) {
        op_end(s, FLO_OK, db->applied.txid, "");
    }
}

static void index_answered(struct peer_request *r, const struct wire_msg *m,
                           int rc)
{
    struct session *s = r->data;

    (void)rc;
    if (m != NULL && m->type == MSG_READ_INDEX_IS) {
        s->op_index = m->read_index_is.index;
        s->op = OP_APPLY;
        session_op_check(s);
    } else {
        s->op = OP_ASK; /* the next leader may know */
    }
}

static void check_ask(struct session *s)
{
    struct node *n = s->owner->node;
    struct wire_msg m = {.type = MSG_READ_INDEX};

    if (n->view.ready) {
        m.read_index.timeout_ms = (uint32_t)(s->op_deadline - session_now(s));
        s->op = OP_INDEX;
        s->ask.data = s;
        s->ask.cb = index_answered;
        peers_request(&n->peers, &s->ask, n->view.id, &m);
    }
}

static void check_apply(struct session *s, struct db *db)
{
    if (raft_last_applied(&s->owner->node->raft) >= s->op_index) {
        s->op_txid = db != NULL ? db->fsm.txid : 0;
        s->op = OP_WAIT;
        check_wait(s, db);
    }
}

void session_op_check(struct session *s)
{
    struct db *db = db_find(s->owner->node, s->op_db);

    if (s->op != OP_NONE && session_now(s) >= s->op_deadline) {
        proposal_cancel(&s->proposal);
        peers_forget(&s->owner->node->peers, &s->ask);
        op_end(s, FLO_TIMEOUT, 0, "timed out: is there a majority of nodes?");
        return;
    }
    switch (s->op) {
        case OP_OPEN:
            check_open(s, db);
            break;
        case OP_WAIT:
            check_wait(s, db);
            break;
        case OP_ASK:
            check_ask(s);
            break;
        case OP_APPLY:
            check_apply(s, db);
            break;
        case OP_NONE:
        case OP_CREATE:
        case OP_MAKE:
        case OP_INIT:
        case OP_INDEX:
            break; /* a callback comes */
    }
}

/* ---- OPEN ------------------------------------------------------------------------------- */

static void created(struct proposal *p, int rc, uint64_t txid)
{
    struct session *s = p->data;

    (void)txid;
    if (rc == FLO_OK) {
        s->op = OP_OPEN;
        session_op_check(s);
    } else {
        op_end(s, rc, 0, rc == FLO_TOOBIG ? "max-databases is reached" : "");
    }
}

static void create(struct session *s, unsigned timeout_ms)
{
    struct proposal *p = &s->proposal;

    s->record.len = 0;
    if (record_encode_simple(&s->record, RECORD_CREATE, s->op_db) != FLO_OK) {
        op_end(s, FLO_NOMEM, 0, "");
        return;
    }
    s->op = OP_CREATE;
    *p = (struct proposal){.node = s->owner->node,
                           .records = &s->record,
                           .n_records = 1,
                           .data = s,
                           .done = created};
    proposal_start(p, timeout_ms);
}

void session_open(struct session *s, const struct wire_msg *m)
{
    if (op_start(s, m, m->open.db, m->open.timeout_ms) != FLO_OK) {
        return;
    }
    if (db_find(s->owner->node, s->op_db) != NULL) {
        s->op = OP_OPEN;
        session_op_check(s);
    } else if (m->open.create) {
        create(s, m->open.timeout_ms);
    } else {
        op_end(s, FLO_NOTFOUND, 0, "the cluster does not know this database");
    }
}

/* ---- INIT ---------------------------------------------------------------------------------- */

struct make_job
{
    struct job job;
    struct session *s;
    struct db *db;
    uint32_t page_size;
    uint8_t auto_vacuum, encoding;
    uint64_t commit_id;
    int rc;
};

static void make_run(struct job *job)
{
    struct make_job *j = (struct make_job *)job;

    if (j->db->replica.state != REPLICA_PRISTINE) {
        j->rc = FLO_EXISTS;
        return;
    }
    j->rc = replica_make_first(&j->db->replica, j->page_size, j->auto_vacuum,
                               j->encoding, j->commit_id,
                               j->s->owner->node->settings.id,
                               &j->s->builder);
}

static void initialised(struct proposal *p, int rc, uint64_t txid)
{
    struct session *s = p->data;

    txn_builder_close(&s->builder);
    if (rc == FLO_OK || rc == FLO_LOST) {
        /* Lost: another client was first. Its page 1 comes all the same. */
        s->op_txid = rc == FLO_OK ? txid : 1;
        s->op = OP_WAIT;
        session_op_check(s);
    } else {
        op_end(s, rc, 0, "");
    }
}

static void make_done(struct job *job)
{
    struct make_job *j = (struct make_job *)job;
    struct session *s = j->s;
    struct proposal *p = &s->proposal;
    int rc = j->rc;

    s->job_running = false;
    if (s->gone) {
        session_maybe_free(s);
    } else if (s->op != OP_MAKE) {
        txn_builder_close(&s->builder); /* timed out meanwhile */
    } else if (rc != FLO_OK) {
        op_end(s, rc, 0, "");
    } else {
        s->op = OP_INIT;
        *p = (struct proposal){.node = s->owner->node,
                               .records = s->builder.records,
                               .n_records = s->builder.n_records,
                               .txid = 1,
                               .commit_id = j->commit_id,
                               .data = s,
                               .done = initialised};
        proposal_start(p, s->op_deadline > session_now(s)
                              ? (unsigned)(s->op_deadline - session_now(s))
                              : 0);
    }
    free(j);
}

static void make_first(struct session *s, struct db *db,
                       const struct wire_msg *m)
{
    struct make_job *j = calloc(1, sizeof *j);

    if (j == NULL) {
        op_end(s, FLO_NOMEM, 0, "");
        return;
    }
    j->job.run = make_run;
    j->job.done = make_done;
    j->s = s;
    j->db = db;
    j->page_size = m->init.page_size;
    j->auto_vacuum = m->init.auto_vacuum;
    j->encoding = m->init.encoding;
    j->commit_id = uv_hrtime() | 1;
    s->op = OP_MAKE;
    s->job_running = true;
    worker_post(&db->worker, &j->job);
}

void session_init(struct session *s, const struct wire_msg *m)
{
    struct db *db;

    if (op_start(s, m, m->init.db, m->init.timeout_ms) != FLO_OK) {
        return;
    }
    db = db_find(s->owner->node, s->op_db);
    if (db == NULL) {
        op_end(s, FLO_NOTFOUND, 0, "the cluster does not know this database");
    } else if (!page_size_valid(m->init.page_size) ||
               m->init.auto_vacuum > 2 || m->init.encoding < 1 ||
               m->init.encoding > 3) {
        op_end(s, FLO_INVALID, 0, "");
    } else if (db->fsm.txid > 0) {
        s->op_txid = db->fsm.txid;
        s->op = OP_WAIT;
        session_op_check(s);
    } else if (db->state != DB_IS_GOOD) {
        op_end(s, FLO_DESYNCED, 0, "");
    } else {
        make_first(s, db, m);
    }
}

/* ---- WAIT, READ, OUTCOME ------------------------------------------------------------------------ */

void session_wait(struct session *s, const struct wire_msg *m)
{
    if (op_start(s, m, m->wait.db, m->wait.timeout_ms) == FLO_OK) {
        s->op_txid = m->wait.txid;
        s->op = OP_WAIT;
        session_op_check(s);
    }
}

void session_read(struct session *s, const struct wire_msg *m)
{
    if (op_start(s, m, m->read.db, m->read.timeout_ms) == FLO_OK) {
        s->op = OP_ASK;
        session_op_check(s);
    }
}

void session_outcome(struct session *s, const struct wire_msg *m)
{
    struct db *db = db_find(s->owner->node, m->outcome.db);
    int rc = FLO_NOTFOUND;

    if (db == NULL) {
        session_result(s, m->request, FLO_UNKNOWN, 0, "no such database");
        return;
    }
    rc = db_outcome(db, m->outcome.txid, m->outcome.commit_id);
    session_result(s, m->request, rc, m->outcome.txid, "");
}

