/* One database on this node: where raft stands with it, where the replica
 * stands, and what lies between.
 *
 *   raft (fsm.c) --db_committed--> pending --apply job--> replica (worker)
 *
 * States of the replica, as the loop sees them:
 *
 *   OPENING ---> GOOD <-----------------+
 *      |          | mismatch, gap,      | resync done (resync.c)
 *      |          v overflow, foreign   |
 *      +-----> DESYNCED -----> RESYNCING
 *      |          ^  ^-----------+ failed
 *      +-----> SUSPECT  (its checksum is looked for in the log's replay)
 *
 * and beside it `writer`: the local write transaction that has the fence. While
 * there is one, nothing is applied: pending grows. pending is bounded in
 * bytes; beyond that its content is dropped and the replica is DESYNCED, to be
 * brought forward by resync. Loop thread only; the replica itself is the
 * worker's while a job runs. */
#ifndef FLOTILLA_DB_H
#define FLOTILLA_DB_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "core/entry.h"
#include "core/replica.h"
#include "daemon/lockq.h"
#include "daemon/worker.h"

#define DB_OUTCOMES 256
#define DB_RING_BYTES (4u << 20)
#define DB_RING_MAX 256

struct node;
struct txn;
struct resync;

enum db_state {
    DB_IS_OPENING,
    DB_IS_SUSPECT,
    DB_IS_GOOD,
    DB_IS_DESYNCED,
    DB_IS_RESYNCING,
    DB_IS_DROPPED
};

/* A committed record waiting for the replica, or kept for others. */
struct db_record
{
    struct db_record *next;
    size_t n;
    unsigned refs; /* pending list, ring, running job */
    uint64_t txid;
    uint64_t before, after;
    bool last; /* final fragment */
    uint8_t bytes[];
};

/* Called when the replica may have moved, or its state changed. */
struct db_waiter
{
    struct db_waiter *prev, *next;
    bool due; /* db.c's */
    void *data;
    void (*cb)(struct db_waiter *w);
};

struct db_outcome
{
    uint64_t txid, commit_id;
};

struct db
{
    struct node *node;
    char name[DB_NAME_MAX + 1];
    struct db *next; /* node's list */

    /* raft's view: the chain up to last_applied */
    struct position fsm;
    uint32_t fsm_pages, page_size;
    struct db_outcome outcomes[DB_OUTCOMES]; /* by txid % DB_OUTCOMES */

    /* the replica */
    enum db_state state;
    char why[96]; /* of DESYNCED: "diverged", "log compacted", … */
    struct replica replica;
    struct worker worker;
    bool worker_running;
    struct position applied; /* the loop's copy of replica.position */
    uint32_t n_pages, wal_frames;
    struct db_record *pending_head, *pending_tail;
    size_t pending_bytes;
    uint64_t pending_txid; /* newest complete transaction in pending or applied */
    bool applying; /* an apply job is under way */
    struct txn *writer;
    struct resync *resync; /* target side, while RESYNCING */
    unsigned n_views;      /* open replica_views: resync sources */
    bool checkpointing;
    bool wal_bouncing; /* upkeep.c: readers are asked to leave the WAL */
    uint64_t full_retry_at; /* disk full: apply again then; 0: not */
    bool disk_full;
    uint64_t resync_after; /* uv_now(): not before */

    /* the leader's part */
    struct lockq lockq;
    struct proposed *proposed; /* leader.c: the proposal under way */
    struct db_record *ring_head, *ring_tail; /* recent records, for grants */
    size_t ring_bytes;
    unsigned ring_n;

    struct db_waiter *waiters;
    bool dropped;
};

/* Find, or NULL. */
struct db *db_find(struct node *n, const char *name);

/* Make it known and open its files. FLO_TOOBIG over max_databases, FLO_EXISTS,
 * FLO_NOMEM. */
int db_create(struct node *n, const char *name, struct db **out);

/* End it, deleting its files. Asynchronous; the object goes away by itself. */
void db_drop(struct db *db);

/* Close everything without deleting; node_stop waits for n->n_workers == 0. */
void db_close(struct db *db);

/* raft committed this record (bytes are copied). own: it belongs to `writer`,
 * which publishes it itself. */
void db_committed(struct db *db, const struct record *rec, const void *bytes,
                  size_t n);

/* The same, learnt from the leader's grant ahead of raft. */
void db_learn(struct db *db, const struct record *rec, const void *bytes,
              size_t n);

/* raft's snapshot says that the database is here. */
void db_restored(struct db *db, struct position p, uint32_t n_pages,
                 uint32_t page_size);

/* All of the log as it was when the leader became ready is applied: what could
 * not be identified by now is desynced. */
void db_replayed(struct db *db);

/* Apply what waits, if that is possible now. */
void db_pump(struct db *db);

/* Called at each tick: open or apply again after a failure. */
void db_retry(struct db *db);

/* Mark DESYNCED (why: short, for sync-status) and drop what waits. */
void db_desync(struct db *db, const char *why);

/* The replica has position p now, by other means than apply jobs. */
void db_moved(struct db *db);

/* Is the replica where raft is, with nothing under way? */
bool db_current(const struct db *db);

/* DESYNCED/SUSPECT/OPENING ones are not healthy; lagging: behind raft. */
enum db_health db_health(const struct db *db);
const char *db_state_name(const struct db *db);

/* Outcome of a commit: FLO_OK, FLO_NOTFOUND (certainly not), FLO_UNKNOWN. */
int db_outcome(const struct db *db, uint64_t txid, uint64_t commit_id);

void db_wait(struct db *db, struct db_waiter *w);
void db_unwait(struct db *db, struct db_waiter *w);

/* Records in the ring after txid, oldest first; NULL when it does not reach
 * back that far (ok is false) or there are none (ok is true). */
struct db_record *db_ring_after(struct db *db, uint64_t txid, bool *ok);

#endif
