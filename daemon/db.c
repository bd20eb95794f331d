/* A database on this node: its life, its state, who waits for it; see db.h.
 * What happens between raft and the replica is in db_apply.c. */
#include "daemon/db.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/db_impl.h"
#include "daemon/log.h"
#include "daemon/node.h"

#define OPEN_WAIT_MS 500 /* for the fence; then again */
#define RETRY_MS 1000

static uint64_t now(const struct db *db)
{
    return uv_now(db->node->loop);
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
void db_tell(struct db *db)
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

void db_set_state(struct db *db, enum db_state state)
{
    if (db->state == state || db->state == DB_IS_DROPPED) {
        return;
    }
    db->state = state;
    log_info("replica_state", "db=%s state=%s txid=%llu why=%s", db->name,
             db_state_name(db), (unsigned long long)db->applied.txid,
             log_quote(state == DB_IS_DESYNCED ? db->why : ""));
    peers_announce(&db->node->peers);
    node_changed(db->node);
}

void db_desync(struct db *db, const char *why)
{
    if (db->state == DB_IS_DROPPED || db->state == DB_IS_RESYNCING ||
        db->state == DB_IS_OPENING) {
        return;
    }
    snprintf(db->why, sizeof db->why, "%s", why);
    db_pending_drop(db);
    db_set_state(db, DB_IS_DESYNCED);
    db_tell(db);
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


static void open_run(struct job *job)
{
    struct db_job *j = (struct db_job *)job;

    j->rc = replica_open(&j->db->replica, j->db->node->settings.dir,
                         j->db->name, OPEN_WAIT_MS);
}

/* Copy what the loop needs, while no job runs. */
void db_refresh(struct db *db)
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
    db_refresh(db);
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
            db_set_state(db, DB_IS_GOOD);
            break;
        case REPLICA_SUSPECT:
            db_set_state(db, DB_IS_SUSPECT);
            break;
        case REPLICA_BROKEN:
            db_set_state(db, DB_IS_SUSPECT);
            db_desync(db, "unreadable");
            break;
    }
    if (db->state == DB_IS_GOOD && db->applied.txid == db->fsm.txid &&
        db->applied.checksum != db->fsm.checksum) {
        db_desync(db, "diverged");
    }
    if (db->state == DB_IS_SUSPECT && db->fsm.txid > 0 &&
        db->applied.checksum == db->fsm.checksum) {
        db_identify(db, db->fsm.txid);
    }
    db_pump(db);
    if (db->node->replayed) {
        db_replayed(db);
    }
    db_tell(db);
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

struct db_job *db_job_new(struct db *db, void (*run)(struct job *),
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
    worker_post(&db->worker, &db_job_new(db, open_run, open_done)->job);
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
        worker_post(&db->worker, &db_job_new(db, close_run, close_done)->job);
    }
}

static void shut(struct db *db)
{
    db->state = DB_IS_DROPPED;
    resync_db_close(db);
    leader_db_close(db);
    txns_db_closed(db);
    db_pending_drop(db);
    db_records_free(db->ring_head);
    db->ring_head = db->ring_tail = NULL;
    db_tell(db);
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

/* ---- Raft and resync tell ------------------------------------------------------------------ */

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

static void restored_suspect(struct db *db, struct position p)
{
    if (db->applied.checksum == p.checksum && !db->applying) {
        db_identify(db, p.txid);
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
            db_identify(db, db->fsm.txid);
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
    db_refresh(db);
    if (db->state == DB_IS_DROPPED) {
        return;
    }
    if (db->replica.state == REPLICA_GOOD ||
        db->replica.state == REPLICA_PRISTINE) {
        db->why[0] = '\0';
        db_set_state(db, DB_IS_GOOD);
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
    db_tell(db);
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
