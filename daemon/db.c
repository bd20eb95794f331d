/* A database on this node; see db.h.
 *
 *  - db_committed: raft's chain moves on, the record waits in pending (or is
 *    the writer's own, and only the writer is told)
 *  - db_pump: all that waits goes to the worker in one job, which applies it
 *    record by record
 *  - the job is done: the loop's copy of the position moves, waiters are told
 *
 * Failure modes of an apply: the record does not extend the replica, or its
 * result has another checksum: DESYNCED. Disk full: tried again each second.
 * Out of bounds: pending is dropped, DESYNCED. A torn record: the node stops,
 * because raft's log cannot be trusted any more. */
#include "daemon/db.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"

#define OPEN_WAIT_MS 500 /* for the fence; then again */
#define RETRY_MS 1000

/* What a worker's job does for a database. */
struct db_job
{
    struct job job;
    struct db *db;
    struct db_record *records; /* apply: taken from pending */
    struct db_record *stopped_at;
    struct position identity;
    int rc;
};

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

static void records_free(struct db_record *list)
{
    while (list != NULL) {
        struct db_record *next = list->next;
        free(list);
        list = next;
    }
}

static void pending_drop(struct db *db)
{
    records_free(db->pending_head);
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

/* ---- Waiters ------------------------------------------------------------------- */

void db_wait(struct db *db, struct db_waiter *w)
{
    w->due = false;
    w->prev = NULL;
    w->next = db->waiters;
    if (w->next != NULL) {
        w->next->prev = w;
    }
    db->waiters = w;
}

void db_unwait(struct db *db, struct db_waiter *w)
{
    if (w->prev != NULL) {
        w->prev->next = w->next;
    } else if (db->waiters == w) {
        db->waiters = w->next;
    }
    if (w->next != NULL) {
        w->next->prev = w->prev;
    }
    w->prev = w->next = NULL;
}

/* Callbacks may add and remove waiters, others too, so start over after each:
 * the lists are short. */
static void tell(struct db *db)
{
    struct db_waiter *w;

    for (w = db->waiters; w != NULL; w = w->next) {
        w->due = true;
    }
    w = db->waiters;
    while (w != NULL) {
        if (w->due) {
            w->due = false;
            w->cb(w);
            w = db->waiters;
        } else {
            w = w->next;
        }
    }
}

/* ---- State ---------------------------------------------------------------------- */

static void set_state(struct db *db, enum db_state state)
{
    if (db->state == state || db->state == DB_IS_DROPPED) {
        return;
    }
    db->state = state;
    log_info("replica_state", "db=%s state=%s txid=%llu why=%s", db->name,
             db_state_name(db), (unsigned long long)db->applied.txid,
             log_quote(state == DB_IS_DESYNCED ? db->why : ""));
    node_changed(db->node);
}

void db_desync(struct db *db, const char *why)
{
    if (db->state == DB_IS_DROPPED || db->state == DB_IS_RESYNCING ||
        db->state == DB_IS_OPENING) {
        return;
    }
    snprintf(db->why, sizeof db->why, "%s", why);
    pending_drop(db);
    set_state(db, DB_IS_DESYNCED);
    tell(db);
}

const char *db_state_name(const struct db *db)
{
    switch (db->state) {
        case DB_IS_OPENING:
            return "opening";
        case DB_IS_SUSPECT:
            return "suspect";
        case DB_IS_GOOD:
            return db->disk_full ? "disk full" : "good";
        case DB_IS_DESYNCED:
            return "desynced";
        case DB_IS_RESYNCING:
            return "resync";
        case DB_IS_DROPPED:
            return "dropped";
    }
    return "?";
}

enum db_health db_health(const struct db *db)
{
    switch (db->state) {
        case DB_IS_GOOD:
            return db->applied.txid >= db->fsm.txid ? DB_HEALTHY : DB_LAGGING;
        case DB_IS_DESYNCED:
        case DB_IS_RESYNCING:
            return DB_DESYNCED;
        case DB_IS_OPENING:
        case DB_IS_SUSPECT:
        case DB_IS_DROPPED:
            break;
    }
    return DB_UNKNOWN;
}

bool db_current(const struct db *db)
{
    return db->state == DB_IS_GOOD && db->writer == NULL && !db->applying &&
           db->pending_head == NULL && db->applied.txid == db->fsm.txid;
}

/* ---- Opening ---------------------------------------------------------------------- */

static void open_start(struct db *db);
static void identify(struct db *db, uint64_t txid);

static void open_run(struct job *job)
{
    struct db_job *j = (struct db_job *)job;

    j->rc = replica_open(&j->db->replica, j->db->node->settings.dir,
                         j->db->name, OPEN_WAIT_MS);
}

/* Copy what the loop needs, while no job runs. */
static void refresh(struct db *db)
{
    db->applied = db->replica.position;
    db->n_pages = db->replica.n_pages;
    db->wal_frames = db->replica.wal_frames;
    if (db->replica.page_size != 0) {
        db->page_size = db->replica.page_size;
    }
}

static void opened(struct db *db)
{
    refresh(db);
    db->pending_txid = db->applied.txid;
    if (db->replica.errmsg[0] != '\0') {
        log_warn("replica_opened", "db=%s text=%s hint=%s", db->name,
                 log_quote(db->replica.errmsg),
                 log_quote("it is checked against the log and repaired by "
                           "resync if need be"));
    }
    switch (db->replica.state) {
        case REPLICA_PRISTINE:
        case REPLICA_GOOD:
            set_state(db, DB_IS_GOOD);
            break;
        case REPLICA_SUSPECT:
            set_state(db, DB_IS_SUSPECT);
            break;
        case REPLICA_BROKEN:
            set_state(db, DB_IS_SUSPECT);
            db_desync(db, "unreadable");
            break;
    }
    if (db->state == DB_IS_GOOD && db->applied.txid == db->fsm.txid &&
        db->applied.checksum != db->fsm.checksum) {
        db_desync(db, "diverged");
    }
    if (db->state == DB_IS_SUSPECT && db->fsm.txid > 0 &&
        db->applied.checksum == db->fsm.checksum) {
        identify(db, db->fsm.txid);
    }
    db_pump(db);
    if (db->node->replayed) {
        db_replayed(db);
    }
    tell(db);
}

static void open_done(struct job *job)
{
    struct db_job *j = (struct db_job *)job;
    struct db *db = j->db;
    int rc = j->rc;

    free(j);
    db->applying = false;
    if (db->dropped || db->node->closing) {
        return;
    }
    if (rc == FLO_OK) {
        opened(db);
        return;
    }
    if (db->why[0] == '\0') {
        log_warn("replica_open_failed", "db=%s reason=%s text=%s hint=%s",
                 db->name, log_quote(flo_strerror(rc)),
                 log_quote(db->replica.errmsg),
                 log_quote("trying again; a program may hold a lock on it"));
    }
    snprintf(db->why, sizeof db->why, "%s", flo_strerror(rc));
    db->full_retry_at = now(db) + RETRY_MS;
}

static struct db_job *job_new(struct db *db, void (*run)(struct job *),
                              void (*done)(struct job *))
{
    struct db_job *j = calloc(1, sizeof *j);

    if (j == NULL) {
        log_error("out_of_memory", "db=%s hint=%s", db->name,
                  log_quote("the node stops; give it more memory"));
        abort();
    }
    j->job.run = run;
    j->job.done = done;
    j->db = db;
    return j;
}

static void open_start(struct db *db)
{
    db->applying = true;
    worker_post(&db->worker, &job_new(db, open_run, open_done)->job);
}

struct db *db_find(struct node *n, const char *name)
{
    struct db *db = n->dbs;

    while (db != NULL && (db->dropped || strcmp(db->name, name) != 0)) {
        db = db->next;
    }
    return db;
}

int db_create(struct node *n, const char *name, struct db **out)
{
    struct db *db;
    int rc;

    if (db_find(n, name) != NULL) {
        return FLO_EXISTS;
    }
    if (n->n_dbs >= STATUS_DATABASES_MAX) {
        return FLO_TOOBIG;
    }
    db = calloc(1, sizeof *db);
    if (db == NULL) {
        return FLO_NOMEM;
    }
    db->node = n;
    snprintf(db->name, sizeof db->name, "%s", name);
    db->state = DB_IS_OPENING;
    rc = worker_start(&db->worker, n->loop, "replica");
    if (rc != FLO_OK) {
        free(db);
        return rc;
    }
    db->worker.data = db;
    db->worker_running = true;
    leader_db_init(&n->leader, db);
    db->next = n->dbs;
    n->dbs = db;
    n->n_dbs++;
    n->n_workers++;
    open_start(db);
    *out = db;
    return FLO_OK;
}

/* ---- Closing ------------------------------------------------------------------------- */

static void close_run(struct job *job)
{
    struct db_job *j = (struct db_job *)job;

    if (j->db->dropped) {
        replica_drop(&j->db->replica);
    } else {
        replica_close(&j->db->replica);
    }
}

static void forget(struct db *db)
{
    struct node *n = db->node;
    struct db **link = &n->dbs;

    while (*link != db) {
        link = &(*link)->next;
    }
    *link = db->next;
    n->n_dbs--;
    free(db);
}

static void worker_closed(struct worker *w)
{
    struct db *db = w->data;

    db->node->n_workers--;
    forget(db);
}

static void close_done(struct job *job)
{
    struct db_job *j = (struct db_job *)job;

    worker_close(&j->db->worker, worker_closed);
    free(j);
}

static void close_when_unused(struct db *db)
{
    if (db->worker_running && db->n_views == 0 && db->writer == NULL &&
        !db->checkpointing) {
        db->worker_running = false;
        worker_post(&db->worker, &job_new(db, close_run, close_done)->job);
    }
}

static void shut(struct db *db)
{
    db->state = DB_IS_DROPPED;
    resync_db_close(db);
    leader_db_close(db);
    txns_db_closed(db);
    pending_drop(db);
    records_free(db->ring_head);
    db->ring_head = db->ring_tail = NULL;
    tell(db);
    close_when_unused(db);
}

void db_drop(struct db *db)
{
    db->dropped = true;
    shut(db);
}

void db_close(struct db *db)
{
    if (db->state != DB_IS_DROPPED) {
        shut(db);
    } else {
        close_when_unused(db);
    }
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
    refresh(db);
    if (!db->dropped && db->state != DB_IS_DROPPED) {
        if (j->rc != FLO_OK) {
            apply_failed(db, j);
        } else {
            db->disk_full = false;
            upkeep_wal(db);
            db_pump(db);
        }
        tell(db);
    }
    records_free(j->records);
    free(j);
}

static void pump_good(struct db *db)
{
    struct db_job *j = job_new(db, apply_run, apply_done);

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
    refresh(db);
    if (!db->dropped && db->state == DB_IS_SUSPECT) {
        if (j->rc == FLO_OK) {
            set_state(db, DB_IS_GOOD);
        } else {
            db_desync(db, "diverged");
        }
        db_pump(db);
        tell(db);
    }
    free(j);
}

static void identify(struct db *db, uint64_t txid)
{
    struct db_job *j = job_new(db, identify_run, identify_done);

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
            identify(db, r->txid - 1);
            return;
        }
        if (r->after == db->applied.checksum && r->last) {
            identify(db, r->txid);
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

void db_retry(struct db *db)
{
    if (db->full_retry_at == 0 || now(db) < db->full_retry_at) {
        return;
    }
    db->full_retry_at = 0;
    if (db->state == DB_IS_OPENING && !db->applying) {
        open_start(db);
    } else {
        db_pump(db);
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
            pending_drop(db); /* leaves a gap: noticed when it is applied */
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

static void restored_suspect(struct db *db, struct position p)
{
    if (db->applied.checksum == p.checksum && !db->applying) {
        identify(db, p.txid);
    }
}

void db_restored(struct db *db, struct position p, uint32_t n_pages,
                 uint32_t page_size)
{
    db->fsm = p;
    db->fsm_pages = n_pages;
    if (page_size != 0) {
        db->page_size = page_size;
    }
    if (db->state == DB_IS_SUSPECT) {
        restored_suspect(db, p);
    } else if (db->state == DB_IS_GOOD && !db->applying &&
               db->applied.txid < p.txid) {
        db_desync(db, "log compacted");
    }
}

void db_replayed(struct db *db)
{
    if (db->state == DB_IS_SUSPECT && !db->applying) {
        if (db->applied.checksum == db->fsm.checksum) {
            identify(db, db->fsm.txid);
        } else if (db->pending_head == NULL) {
            db_desync(db, "diverged");
        }
    } else if (db->state == DB_IS_GOOD && !db->applying &&
               db->writer == NULL && db->pending_head == NULL) {
        if (db->applied.txid > db->fsm.txid) {
            db_desync(db, "ahead of the log");
        } else if (db->applied.txid < db->fsm.txid) {
            db_desync(db, "log compacted");
        }
    }
}

void db_moved(struct db *db)
{
    refresh(db);
    if (db->state == DB_IS_DROPPED) {
        return;
    }
    if (db->replica.state == REPLICA_GOOD ||
        db->replica.state == REPLICA_PRISTINE) {
        db->why[0] = '\0';
        set_state(db, DB_IS_GOOD);
    }
    if (db->pending_txid < db->applied.txid) {
        db->pending_txid = db->applied.txid;
    }
    upkeep_wal(db);
    db_pump(db);
    if (db->state == DB_IS_GOOD && db->pending_head == NULL && !db->applying &&
        db->writer == NULL && db->applied.txid < db->fsm.txid) {
        db_desync(db, "fell behind"); /* entries were dropped meanwhile */
    }
    tell(db);
    node_changed(db->node);
}

int db_outcome(const struct db *db, uint64_t txid, uint64_t commit_id)
{
    const struct db_outcome *o = &db->outcomes[txid % DB_OUTCOMES];

    if (txid > db->fsm.txid || txid == 0) {
        return FLO_UNKNOWN; /* not yet */
    }
    if (o->txid != txid) {
        return FLO_UNKNOWN; /* too long ago */
    }
    return o->commit_id == commit_id ? FLO_OK : FLO_NOTFOUND;
}
