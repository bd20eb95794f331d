/* Slow work in the background; see upkeep.h.
 *
 *  - disk: each second one statvfs; too little means that this node takes no
 *    writes any more and, if it leads, hands leadership to one that has space
 *  - log: when its entries since the last snapshot are many bytes, raft's
 *    threshold is set to 1, so that it takes a snapshot with the next one
 *  - snapshot: each replica applies up to what the manifest says, is fsync'd,
 *    and only then raft may write the manifest and drop entries
 *  - WAL: a long one is checkpointed in the background, then restarted by the
 *    replica's worker while no writer has the fence
 *
 * Failure modes: statvfs or a checkpoint fails: one line, tried again. A sync
 * fails, or a replica is desynced: the snapshot waits, the log grows until it
 * is repaired. A reader or a writer is in the way of a restart: tried again
 * after CHECKPOINT_RETRY_MS or when the WAL grew by an eighth. Under writers
 * that leave no pause there are always new frames when a checkpoint ends; so
 * from CHECKPOINT_FRAMES_URGENT on the worker checkpoints the rest itself,
 * while nothing else can append, and restarts the WAL in the same job; when
 * readers are in the way it insists a little (insist()).
 *
 * A background job on a replica counts as a view (db->n_views), which keeps
 * the database from being closed, and as checkpointing where it must exclude
 * others of its kind; a job on the replica's worker as applying. */
#include "daemon/upkeep.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"

#define RESTART_TRIES 15
#define RESTART_PAUSE_US 2000

static uint64_t now(const struct node *n)
{
    return uv_now(n->loop);
}

/* ---- Disk space ------------------------------------------------------------------ */

static struct upkeep *upkeep_of_disk(struct job *job)
{
    return (struct upkeep *)((char *)job - offsetof(struct upkeep, disk_job));
}

static void disk_run(struct job *job)
{
    struct upkeep *u = upkeep_of_disk(job);
    struct statvfs v;

    u->disk_errno = statvfs(u->node->settings.dir, &v) == 0 ? 0 : errno;
    if (u->disk_errno == 0) {
        u->disk_found = (uint64_t)v.f_bavail * v.f_frsize;
    }
}

static void disk_failed(struct upkeep *u)
{
    if (!u->disk_failing) {
        log_warn("disk_check_failed", "dir=%s reason=%s hint=%s",
                 log_quote(u->node->settings.dir),
                 log_quote(strerror(u->disk_errno)),
                 log_quote("is the directory still there? the free space is "
                           "not known until it is"));
    }
    u->disk_failing = true;
}

static void set_disk_low(struct upkeep *u, bool low)
{
    struct node *n = u->node;

    if (low == u->disk_low) {
        return;
    }
    u->disk_low = low;
    if (low) {
        log_warn("disk_low", "free_bytes=%llu min_free_bytes=%llu hint=%s",
                 (unsigned long long)u->free_bytes,
                 (unsigned long long)n->settings.min_free_bytes,
                 log_quote("writes are refused here until there is space; free "
                           "some, or lower min_free"));
    } else {
        log_info("disk_ok", "free_bytes=%llu",
                 (unsigned long long)u->free_bytes);
    }
    node_changed(n);
}

static void disk_judge(struct upkeep *u)
{
    uint64_t least = u->node->settings.min_free_bytes;

    u->disk_failing = false;
    u->disk_known = true;
    u->free_bytes = u->disk_found;
    if (u->free_bytes < least) {
        set_disk_low(u, true);
    } else if (u->free_bytes >= least + DISK_HYSTERESIS) {
        set_disk_low(u, false);
    }
}

/* The connected member with the most space, if it has enough; else NULL. */
static const struct peer *roomiest(const struct node *n)
{
    const struct peer *best = NULL;
    uint64_t most = n->settings.min_free_bytes + DISK_HYSTERESIS;

    for (unsigned i = 0; i < n->peers.n; i++) {
        const struct peer *p = &n->peers.list[i];
        if (p->link != NULL && p->free_bytes >= most) {
            best = p;
            most = p->free_bytes;
        }
    }
    return best;
}

static void transferred(struct raft_transfer *req)
{
    struct node *n = req->data;

    n->transferring = false;
}

static void hand_over(struct upkeep *u)
{
    struct node *n = u->node;
    const struct peer *to;
    int rv;

    if (!u->disk_low || n->transferring || n->closing || !n->raft_started ||
        raft_state(&n->raft) != RAFT_LEADER || now(n) < u->next_transfer) {
        return;
    }
    to = roomiest(n);
    if (to == NULL) {
        return;
    }
    u->next_transfer = now(n) + DISK_TRANSFER_MS;
    n->transfer.data = n;
    n->transferring = true;
    rv = raft_transfer(&n->raft, &n->transfer, to->id, transferred);
    if (rv != 0) {
        n->transferring = false;
        log_debug("transfer_refused", "to=%u reason=%s", to->id,
                  log_quote(raft_strerror(rv)));
        return;
    }
    log_info("leadership_transfer", "to=%u reason=%s", to->id,
             log_quote("disk low here"));
}

static void disk_done(struct job *job)
{
    struct upkeep *u = upkeep_of_disk(job);

    u->checking_disk = false;
    if (u->disk_errno != 0) {
        disk_failed(u);
    } else {
        disk_judge(u);
    }
}

static void disk_tick(struct upkeep *u)
{
    struct node *n = u->node;

    if (u->checking_disk || now(n) < u->next_disk_check) {
        return;
    }
    u->next_disk_check = now(n) + DISK_CHECK_MS;
    u->checking_disk = true;
    u->disk_job.run = disk_run;
    u->disk_job.done = disk_done;
    worker_post(&n->background, &u->disk_job);
}

/* ---- Log compaction --------------------------------------------------------------- */

/* How many of the newest entries stay in the log: half of snapshot_bytes, so
 * that a follower that is a little behind needs no resync. */
static unsigned trailing(const struct upkeep *u)
{
    uint64_t room = u->node->settings.snapshot_bytes / 2;
    uint64_t known = u->n_entries < ENTRY_SIZES ? u->n_entries : ENTRY_SIZES;
    unsigned n = 0;

    while (n < known) {
        uint64_t size = u->sizes[(u->n_entries - 1 - n) % ENTRY_SIZES];
        if (n >= TRAILING_MIN && size > room) {
            break;
        }
        room -= size < room ? size : room;
        n++;
    }
    return n > TRAILING_MIN ? n : TRAILING_MIN;
}

static void set_threshold(struct upkeep *u, unsigned threshold)
{
    if (u->threshold != threshold) {
        u->threshold = threshold;
        raft_set_snapshot_threshold(&u->node->raft, threshold);
    }
}

void upkeep_entry(struct upkeep *u, size_t bytes)
{
    struct node *n = u->node;
    bool due;

    u->sizes[u->n_entries % ENTRY_SIZES] =
        bytes < UINT32_MAX ? (uint32_t)bytes : UINT32_MAX;
    u->n_entries++;
    u->bytes_since_snapshot += bytes;
    u->entries_since_snapshot++;
    due = u->bytes_since_snapshot >= n->settings.snapshot_bytes ||
          u->entries_since_snapshot >= ENTRY_SIZES;
    /* raft reads the trailing count when a snapshot begins and once more when
     * it is written: it must not change in between. */
    if (due && u->threshold != 1 && !raft_guard_taking_snapshot(&n->guard)) {
        raft_set_snapshot_trailing(&n->raft, trailing(u));
        set_threshold(u, 1);
    } else if (!due) {
        set_threshold(u, UINT_MAX);
    }
}

void upkeep_snapshot_taken(struct upkeep *u)
{
    u->bytes_since_snapshot = 0;
    u->entries_since_snapshot = 0;
    set_threshold(u, UINT_MAX);
}

/* ---- Durability before a snapshot ---------------------------------------------------- */

enum sync_state { SYNC_WAITING, SYNC_RUNNING, SYNC_DONE };

/* One database that the manifest names. By name: it may be dropped meanwhile;
 * db is valid while the job runs, because that counts as a view. */
struct upkeep_sync
{
    struct upkeep_sync *next;
    struct job job;
    struct node *node;
    struct db *db;
    char name[DB_NAME_MAX + 1];
    uint64_t txid;
    enum sync_state state;
    bool failed; /* logged */
    int rc;
};

static void sync_step(struct upkeep *u);

static void sync_run(struct job *job)
{
    struct upkeep_sync *s = (struct upkeep_sync *)
        ((char *)job - offsetof(struct upkeep_sync, job));

    s->rc = replica_sync(&s->db->replica);
}

static void sync_failed(struct upkeep_sync *s)
{
    if (!s->failed) {
        log_error("replica_sync_failed", "db=%s reason=%s hint=%s", s->name,
                  log_quote(flo_strerror(s->rc)),
                  log_quote("raft's log grows until it works: check the disk"));
    }
    s->failed = true;
    s->state = SYNC_WAITING;
}

static void sync_done(struct job *job)
{
    struct upkeep_sync *s = (struct upkeep_sync *)
        ((char *)job - offsetof(struct upkeep_sync, job));
    struct upkeep *u = &s->node->upkeep;

    s->db->n_views--;
    s->db = NULL;
    if (s->rc != FLO_OK) {
        sync_failed(s); /* the next tick tries again */
        return;
    }
    s->state = SYNC_DONE;
    sync_step(u);
}

/* Was it dropped since the manifest was made (and made anew, maybe)? */
static bool gone(const struct upkeep_sync *s, const struct db *db)
{
    return db == NULL || db->state == DB_IS_DROPPED || db->fsm.txid < s->txid;
}

static void sync_look(struct upkeep_sync *s)
{
    struct node *n = s->node;
    struct db *db;

    if (s->state != SYNC_WAITING) {
        return;
    }
    db = db_find(n, s->name);
    if (gone(s, db) || s->txid == 0) {
        s->state = SYNC_DONE;
        return;
    }
    if (db->state != DB_IS_GOOD || db->applied.txid < s->txid ||
        db->checkpointing) {
        return;
    }
    s->state = SYNC_RUNNING;
    s->db = db;
    db->n_views++;
    s->job.run = sync_run;
    s->job.done = sync_done;
    worker_post(&n->background, &s->job);
}

static void syncs_free(struct upkeep *u)
{
    while (u->syncs != NULL) {
        struct upkeep_sync *next = u->syncs->next;
        assert(u->syncs->state != SYNC_RUNNING);
        free(u->syncs);
        u->syncs = next;
    }
}

/* Go on with what can be synced; when all is, raft may write. */
static void sync_step(struct upkeep *u)
{
    unsigned left = 0;

    if (!u->snapshot_waiting || u->node->closing) {
        return;
    }
    for (struct upkeep_sync *s = u->syncs; s != NULL; s = s->next) {
        sync_look(s);
        left += s->state != SYNC_DONE ? 1 : 0;
    }
    u->syncs_left = left;
    if (left == 0) {
        u->snapshot_waiting = false;
        syncs_free(u);
        raft_guard_snapshot_go(&u->node->guard);
    }
}

static struct upkeep_sync *sync_new(const struct db *db)
{
    struct upkeep_sync *s = calloc(1, sizeof *s);

    if (s == NULL) {
        log_error("out_of_memory", "db=%s hint=%s", db->name,
                  log_quote("the node stops; give it more memory"));
        abort();
    }
    s->node = db->node;
    s->txid = db->fsm.txid;
    snprintf(s->name, sizeof s->name, "%s", db->name);
    return s;
}

void upkeep_before_snapshot(struct upkeep *u)
{
    assert(!u->snapshot_waiting); /* raft takes one at a time */
    u->snapshot_waiting = true;
    for (struct db *db = u->node->dbs; db != NULL; db = db->next) {
        if (db->state != DB_IS_DROPPED) {
            struct upkeep_sync *s = sync_new(db);
            s->next = u->syncs;
            u->syncs = s;
        }
    }
    for (struct upkeep_sync *s = u->syncs; s != NULL; s = s->next) {
        sync_look(s);
    }
}

/* ---- Checkpoints ---------------------------------------------------------------------- */

/* Do not try again before the WAL is longer, or later. By name: databases come
 * and go, a note only delays. */
struct upkeep_wal_note
{
    struct upkeep_wal_note *next;
    char name[DB_NAME_MAX + 1];
    uint32_t frames;
    uint64_t until;
    bool restart_due; /* the checkpoint is done, a writer was in the way */
};

struct wal_job
{
    struct job job;
    struct db *db;
    bool complete, urgent, insist;
    uint32_t wal_frames;
    int rc;
};

static struct upkeep_wal_note **note_find(struct upkeep *u, const char *name)
{
    struct upkeep_wal_note **link = &u->notes;

    while (*link != NULL && strcmp((*link)->name, name) != 0) {
        link = &(*link)->next;
    }
    return link;
}

static void note_remove(struct upkeep_wal_note **link)
{
    struct upkeep_wal_note *note = *link;

    *link = note->next;
    free(note);
}

static void notes_prune(struct upkeep *u, uint64_t at)
{
    struct upkeep_wal_note **link = &u->notes;

    while (*link != NULL) {
        if (at >= (*link)->until) {
            note_remove(link);
        } else {
            link = &(*link)->next;
        }
    }
}

static void note_retry(struct db *db, bool restart_due)
{
    struct upkeep *u = &db->node->upkeep;
    struct upkeep_wal_note **link = note_find(u, db->name);
    struct upkeep_wal_note *note = *link;
    uint32_t more = db->wal_frames / 8;

    if (note == NULL) {
        note = calloc(1, sizeof *note);
        if (note == NULL) {
            return; /* tried again sooner than it should */
        }
        snprintf(note->name, sizeof note->name, "%s", db->name);
        *link = note;
    }
    note->frames = db->wal_frames + (more > CHECKPOINT_RETRY_FRAMES
                                         ? more
                                         : CHECKPOINT_RETRY_FRAMES);
    note->until = now(db->node) + CHECKPOINT_RETRY_MS;
    note->restart_due = restart_due;
}

static struct wal_job *wal_job_new(struct db *db, void (*run)(struct job *),
                                   void (*done)(struct job *))
{
    struct wal_job *j = calloc(1, sizeof *j);

    if (j != NULL) {
        j->db = db;
        j->job.run = run;
        j->job.done = done;
    }
    return j;
}

static bool wal_idle(const struct db *db)
{
    return db->state == DB_IS_GOOD && !db->dropped && !db->node->closing &&
           db->node->background_running;
}

/* On the replica's worker: nothing is appended meanwhile, unless a client has
 * the fence: then nothing is done. */
static void restart_run(struct job *job)
{
    struct wal_job *j = (struct wal_job *)job;
    struct replica *r = &j->db->replica;
    bool all = false;

    j->rc = r->has_fence ? replica_restart_wal(r) : FLO_BUSY;
    if (j->rc == FLO_BUSY && r->has_fence && j->urgent) {
        j->rc = replica_checkpoint(r, &all);
        j->complete = all;
        if (j->rc == FLO_OK) {
            j->rc = all ? replica_restart_wal(r) : FLO_BUSY;
        }
    }
    for (int i = 0; j->insist && j->rc == FLO_BUSY && i < RESTART_TRIES; i++) {
        usleep(RESTART_PAUSE_US);
        j->rc = r->has_fence ? replica_restart_wal(r) : FLO_BUSY;
    }
    j->wal_frames = r->wal_frames;
}

static void checkpoint_failed(struct db *db, int rc)
{
    struct upkeep_wal_note **link = note_find(&db->node->upkeep, db->name);

    if (*link == NULL) { /* else it failed a moment ago, too */
        log_warn("checkpoint_failed", "db=%s reason=%s hint=%s", db->name,
                 log_quote(flo_strerror(rc)),
                 log_quote("the WAL grows until it works: check the disk"));
    }
}

/* What waited for the worker goes on. */
static void worker_free(struct db *db)
{
    db->applying = false;
    if (db->state == DB_IS_GOOD) {
        db_moved(db);
    }
}

/* Only readers are in the way. Those that wait for the write lock are sent
 * away, and come back reading the database file alone; the others end. Until
 * then nothing is granted or applied here (db->applying is still set), for
 * RESTART_TRIES pauses at most. */
static void insist(struct db *db, struct wal_job *j)
{
    j->insist = true;
    db->wal_bouncing = true;
    txns_bounce(db);
    worker_post(&db->worker, &j->job);
}

static void restart_done(struct job *job)
{
    struct wal_job *j = (struct wal_job *)job;
    struct db *db = j->db;
    struct upkeep_wal_note **link = note_find(&db->node->upkeep, db->name);

    db->wal_frames = j->wal_frames;
    if (j->urgent && j->complete && j->rc == FLO_BUSY && !j->insist &&
        wal_idle(db)) {
        insist(db, j);
        return;
    }
    db->wal_bouncing = false;
    db->checkpointing = false;
    db->node->counters.checkpoints += j->complete ? 1 : 0;
    if (j->rc == FLO_OK && *link != NULL) {
        note_remove(link);
    } else if (j->rc != FLO_OK) {
        if (j->rc != FLO_BUSY) {
            checkpoint_failed(db, j->rc);
        }
        note_retry(db, false);
    }
    free(j);
    worker_free(db);
}

/* db->checkpointing is set already. */
static void restart_post(struct db *db)
{
    struct wal_job *j = wal_job_new(db, restart_run, restart_done);

    if (j == NULL) {
        db->checkpointing = false;
        return;
    }
    /* The snapshot's fsync may be running in the background: one of the two at
     * a time. */
    j->urgent = db->wal_frames >= CHECKPOINT_FRAMES_URGENT && db->n_views == 0;
    db->applying = true;
    worker_post(&db->worker, &j->job);
}

static void checkpoint_run(struct job *job)
{
    struct wal_job *j = (struct wal_job *)job;

    j->rc = replica_checkpoint(&j->db->replica, &j->complete);
}

static void checkpoint_done(struct job *job)
{
    struct wal_job *j = (struct wal_job *)job;
    struct db *db = j->db;
    int rc = j->rc;
    bool try = j->complete || db->wal_frames >= CHECKPOINT_FRAMES_URGENT;

    free(j);
    db->n_views--;
    if (rc != FLO_OK) {
        checkpoint_failed(db, rc);
        try = false;
    } else {
        db->node->counters.checkpoints++;
    }
    if (try && wal_idle(db) && db->writer == NULL && !db->applying) {
        restart_post(db);
        return;
    }
    db->checkpointing = false;
    note_retry(db, try);
}

static void checkpoint_post(struct db *db)
{
    struct wal_job *j = wal_job_new(db, checkpoint_run, checkpoint_done);

    if (j == NULL) {
        return;
    }
    db->checkpointing = true;
    db->n_views++;
    worker_post(&db->node->background, &j->job);
}

void upkeep_wal(struct db *db)
{
    const struct upkeep_wal_note *note;

    if (db->wal_frames < CHECKPOINT_FRAMES || db->checkpointing ||
        !wal_idle(db)) {
        return;
    }
    note = *note_find(&db->node->upkeep, db->name);
    if (note != NULL && note->restart_due) {
        if (db->writer == NULL && !db->applying) {
            db->checkpointing = true;
            restart_post(db);
            return;
        }
    }
    if (note == NULL || db->wal_frames >= note->frames ||
        now(db->node) >= note->until) {
        checkpoint_post(db);
    }
}

static void wal_tick(struct upkeep *u)
{
    for (struct db *db = u->node->dbs; db != NULL; db = db->next) {
        upkeep_wal(db);
    }
    notes_prune(u, now(u->node));
}

/* ---- All of it -------------------------------------------------------------------------- */

void upkeep_init(struct upkeep *u, struct node *n)
{
    *u = (struct upkeep){.node = n};
    if (n->settings.dir[0] == '\0') {
        return;
    }
    disk_run(&u->disk_job);
    if (u->disk_errno == 0) {
        u->disk_known = true;
        u->free_bytes = u->disk_found;
        u->disk_low = u->free_bytes < n->settings.min_free_bytes;
    }
}

void upkeep_tick(struct upkeep *u)
{
    if (u->node->closing || !u->node->background_running) {
        return;
    }
    disk_tick(u);
    hand_over(u);
    sync_step(u);
    wal_tick(u);
}

void upkeep_close(struct upkeep *u)
{
    syncs_free(u);
    while (u->notes != NULL) {
        note_remove(&u->notes);
    }
}
