/* From raft's chain to the replica; see db.h.
 *
 *  - db_committed: the chain moves on, the record waits in pending (or is the
 *    writer's own, and only the writer is told)
 *  - db_pump: all that waits goes to the worker in one job, which applies it
 *    record by record
 *  - the job is done: the loop's copy of the position moves, waiters are told
 *
 * Failure modes of an apply: the record does not extend the replica, or its
 * result has another checksum: DESYNCED. Disk full: tried again each second.
 * Out of bounds: pending is dropped, DESYNCED. A torn record: the node stops,
 * because raft's log cannot be trusted any more. */
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/db_impl.h"
#include "daemon/log.h"
#include "daemon/node.h"

#define RETRY_MS 1000

static uint64_t now(const struct db *db)
{
    return uv_now(db->node->loop);
}

/* ---- Records ------------------------------------------------------------------ */

static struct db_record *record_copy(const struct record *rec,
                                     const void *bytes, size_t n)
{
    struct db_record *r = malloc(sizeof *r + n);

    if (r == NULL) {
        return NULL;
    }
    *r = (struct db_record){.n = n,
                            .refs = 1,
                            .txid = rec->txid,
                            .before = rec->before,
                            .after = rec->after,
                            .last = rec->fragment + 1 == rec->n_fragments};
    memcpy(r->bytes, bytes, n);
    return r;
}

void db_records_free(struct db_record *list)
{
    while (list != NULL) {
        struct db_record *next = list->next;
        free(list);
        list = next;
    }
}

void db_pending_drop(struct db *db)
{
    db_records_free(db->pending_head);
    db->pending_head = db->pending_tail = NULL;
    db->pending_bytes = 0;
    db->pending_txid = db->applied.txid;
}

/* The ring keeps copies of its own: what is recent is small. */
static void ring_add(struct db *db, const struct record *rec,
                     const void *bytes, size_t n)
{
    struct db_record *r;

    if (n > DB_RING_BYTES / 4) {
        return; /* leaves a gap: db_ring_after notices */
    }
    r = record_copy(rec, bytes, n);
    if (r == NULL) {
        return;
    }
    if (db->ring_tail != NULL) {
        db->ring_tail->next = r;
    } else {
        db->ring_head = r;
    }
    db->ring_tail = r;
    db->ring_bytes += n;
    db->ring_n++;
    while (db->ring_bytes > DB_RING_BYTES || db->ring_n > DB_RING_MAX) {
        struct db_record *old = db->ring_head;
        db->ring_head = old->next;
        db->ring_bytes -= old->n;
        db->ring_n--;
        free(old);
    }
    if (db->ring_head == NULL) {
        db->ring_tail = NULL;
    }
}

struct db_record *db_ring_after(struct db *db, uint64_t txid, bool *ok)
{
    struct db_record *r = db->ring_head;
    uint64_t expect = txid + 1;

    while (r != NULL && r->txid <= txid) {
        r = r->next;
    }
    for (struct db_record *i = r; i != NULL; i = i->next) {
        if (i->txid != expect) {
            break; /* a gap */
        }
        expect += i->last ? 1 : 0;
    }
    *ok = expect == db->fsm.txid + 1;
    return r;
}

/* ---- Applying ------------------------------------------------------------------------- */

/* At its own txid a replica must have the chain's checksum, too. */
static int apply_record(struct replica *r, const struct record *rec)
{
    if (rec->txid == r->position.txid && rec->after != r->position.checksum) {
        return FLO_MISMATCH;
    }
    return replica_apply(r, rec);
}

static void apply_run(struct job *job)
{
    struct db_job *j = (struct db_job *)job;

    for (struct db_record *r = j->records; r != NULL; r = r->next) {
        struct record rec;
        int rc = record_decode(r->bytes, r->n, &rec);
        if (rc == FLO_OK) {
            rc = apply_record(&j->db->replica, &rec);
        }
        if (rc != FLO_OK && rc != FLO_DUPLICATE) {
            j->rc = rc;
            j->stopped_at = r;
            return;
        }
    }
}

/* Put what was not applied back in front. */
static void give_back(struct db *db, struct db_job *j)
{
    struct db_record *r = j->stopped_at, *last = r;

    /* A transaction starts again at its first fragment. */
    for (struct db_record *i = j->records; i != NULL && i != r; i = i->next) {
        if (i->txid == r->txid) {
            r = i;
            break;
        }
    }
    while (j->records != r) {
        struct db_record *next = j->records->next;
        free(j->records);
        j->records = next;
    }
    for (last = r;; last = last->next) {
        db->pending_bytes += last->n;
        if (last->next == NULL) {
            break;
        }
    }
    last->next = db->pending_head;
    if (db->pending_head == NULL) {
        db->pending_tail = last;
    }
    db->pending_head = r;
    j->records = NULL;
}

static void apply_failed(struct db *db, struct db_job *j)
{
    switch (j->rc) {
        case FLO_FULL:
            if (!db->disk_full) {
                log_error("replica_disk_full", "db=%s hint=%s", db->name,
                          log_quote("free some space; it goes on by itself"));
            }
            db->disk_full = true;
            db->full_retry_at = now(db) + RETRY_MS;
            give_back(db, j);
            break;
        case FLO_BUSY: /* the fence is away: db_pump waits for the writer */
            give_back(db, j);
            break;
        case FLO_CORRUPT:
        case FLO_VERSION:
            log_error("record_unreadable", "db=%s reason=%s hint=%s", db->name,
                      log_quote(flo_strerror(j->rc)),
                      log_quote("raft's log on this node cannot be trusted, or "
                                "a newer version wrote it: see doc/operations"));
            abort();
        default:
            log_warn("replica_diverged", "db=%s txid=%llu reason=%s text=%s",
                     db->name, (unsigned long long)j->stopped_at->txid,
                     log_quote(flo_strerror(j->rc)),
                     log_quote(db->replica.errmsg));
            db_desync(db, j->rc == FLO_MISMATCH ? "diverged" : "I/O error");
    }
}

static void apply_done(struct job *job)
{
    struct db_job *j = (struct db_job *)job;
    struct db *db = j->db;

    db->applying = false;
    db_refresh(db);
    if (!db->dropped && db->state != DB_IS_DROPPED) {
        if (j->rc != FLO_OK) {
            apply_failed(db, j);
        } else {
            db->disk_full = false;
            upkeep_wal(db);
            db_pump(db);
        }
        db_tell(db);
    }
    db_records_free(j->records);
    free(j);
}

static void pump_good(struct db *db)
{
    struct db_job *j = db_job_new(db, apply_run, apply_done);

    j->records = db->pending_head;
    db->pending_head = db->pending_tail = NULL;
    db->pending_bytes = 0;
    db->applying = true;
    worker_post(&db->worker, &j->job);
}

/* ---- Identifying a suspect replica ------------------------------------------------------ */

static void identify_run(struct job *job)
{
    struct db_job *j = (struct db_job *)job;

    j->rc = replica_identify(&j->db->replica, j->identity);
}

static void identify_done(struct job *job)
{
    struct db_job *j = (struct db_job *)job;
    struct db *db = j->db;

    db->applying = false;
    db_refresh(db);
    if (!db->dropped && db->state == DB_IS_SUSPECT) {
        if (j->rc == FLO_OK) {
            db_set_state(db, DB_IS_GOOD);
        } else {
            db_desync(db, "diverged");
        }
        db_pump(db);
        db_tell(db);
    }
    free(j);
}

void db_identify(struct db *db, uint64_t txid)
{
    struct db_job *j = db_job_new(db, identify_run, identify_done);

    j->identity = (struct position){txid, db->applied.checksum};
    db->applying = true;
    worker_post(&db->worker, &j->job);
}

/* Look for the content's checksum in the chain; what does not know it was
 * applied before the content, or after what the content will be found at. */
static void pump_suspect(struct db *db)
{
    while (db->pending_head != NULL) {
        struct db_record *r = db->pending_head;
        if (r->before == db->applied.checksum) {
            db_identify(db, r->txid - 1);
            return;
        }
        if (r->after == db->applied.checksum && r->last) {
            db_identify(db, r->txid);
            return;
        }
        db->pending_head = r->next;
        db->pending_bytes -= r->n;
        free(r);
    }
    db->pending_tail = NULL;
}

void db_pump(struct db *db)
{
    if (db->writer != NULL || db->applying || db->pending_head == NULL ||
        now(db) < db->full_retry_at) {
        return;
    }
    if (db->state == DB_IS_GOOD) {
        pump_good(db);
    } else if (db->state == DB_IS_SUSPECT) {
        pump_suspect(db);
    }
}


/* ---- What raft says ------------------------------------------------------------------------ */

static void enqueue(struct db *db, const struct record *rec, const void *bytes,
                    size_t n)
{
    struct db_record *r;

    if (db->state == DB_IS_DESYNCED || db->state == DB_IS_DROPPED) {
        return; /* resync brings it */
    }
    if (db->pending_bytes + n > db->node->settings.replica_queue_bytes +
                                    db->node->settings.max_transaction_bytes) {
        if (db->state != DB_IS_RESYNCING && db->state != DB_IS_OPENING) {
            db_desync(db, "fell behind");
        } else {
            db_pending_drop(db); /* leaves a gap: noticed when it is applied */
        }
        return;
    }
    r = record_copy(rec, bytes, n);
    if (r == NULL) {
        db_desync(db, "out of memory");
        return;
    }
    if (db->pending_tail != NULL) {
        db->pending_tail->next = r;
    } else {
        db->pending_head = r;
    }
    db->pending_tail = r;
    db->pending_bytes += n;
    if (r->last) {
        db->pending_txid = rec->txid;
    }
    db_pump(db);
}

/* Does the local replica contradict the chain? */
static bool diverged(const struct db *db, const struct record *rec)
{
    return db->state == DB_IS_GOOD && !db->applying && db->writer == NULL &&
           db->applied.txid == rec->txid &&
           db->applied.checksum != rec->after;
}

static void advance(struct db *db, const struct record *rec)
{
    db->fsm = (struct position){rec->txid, rec->after};
    db->fsm_pages = rec->n_pages;
    db->outcomes[rec->txid % DB_OUTCOMES] =
        (struct db_outcome){rec->txid, rec->commit_id};
}

void db_committed(struct db *db, const struct record *rec, const void *bytes,
                  size_t n)
{
    bool last = rec->fragment + 1 == rec->n_fragments;
    bool own = db->writer != NULL && txn_is_own(db->writer, rec);

    if (rec->txid != db->fsm.txid + 1 || rec->before != db->fsm.checksum) {
        /* Raft's log is one chain by construction. */
        log_error("chain_broken", "db=%s txid=%llu expected=%llu hint=%s",
                  db->name, (unsigned long long)rec->txid,
                  (unsigned long long)db->fsm.txid + 1,
                  log_quote("the entry was not applied; report this"));
        return;
    }
    if (last) {
        advance(db, rec);
    }
    ring_add(db, rec, bytes, n);
    if (own) {
        if (last) {
            txn_applied(db->writer, rec);
        }
    } else if (diverged(db, rec)) {
        db_desync(db, "diverged");
    } else if (rec->txid > db->pending_txid && rec->txid > db->applied.txid) {
        enqueue(db, rec, bytes, n);
    }
    if (last) {
        proposals_applied(db->node, rec->txid, rec->commit_id);
    }
}

void db_learn(struct db *db, const struct record *rec, const void *bytes,
              size_t n)
{
    uint64_t have = db->pending_txid > db->applied.txid ? db->pending_txid
                                                        : db->applied.txid;

    /* Only whole transactions that come next: fragments take raft's way. */
    if (db->writer == NULL && rec->txid == have + 1 && rec->n_fragments == 1) {
        enqueue(db, rec, bytes, n);
    }
}
