/* Slow work in the background: checkpoints, making replicas durable before a
 * raft snapshot is written, free disk space; and when raft compacts its log. */
#ifndef FLOTILLA_UPKEEP_H
#define FLOTILLA_UPKEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/worker.h"

struct node;
struct db;
struct upkeep_sync;
struct upkeep_wal_note;

#define CHECKPOINT_FRAMES 1000 /* SQLite's own default */
/* The WAL is this long: the replica's worker itself finishes the checkpoint. */
#define CHECKPOINT_FRAMES_URGENT (4 * CHECKPOINT_FRAMES)
#define CHECKPOINT_RETRY_FRAMES 100
#define CHECKPOINT_RETRY_MS 1000
#define DISK_CHECK_MS 1000
#define DISK_HYSTERESIS (16u << 20) /* bytes */
#define DISK_TRANSFER_MS 5000
#define ENTRY_SIZES 8192 /* also: entries between snapshots at most */
#define TRAILING_MIN 4   /* entries that stay in the log, however large */

struct upkeep
{
    struct node *node;
    uint64_t next_disk_check;
    bool checking_disk;
    struct job disk_job;
    bool disk_known;     /* free_bytes was found out at least once */
    uint64_t disk_found; /* the job's: bytes */
    int disk_errno;      /* the job's */
    bool disk_failing;   /* logged */
    uint64_t free_bytes;
    bool disk_low;
    uint64_t next_transfer; /* uv_now() */
    /* log compaction follows bytes: sizes of the newest entries */
    uint32_t sizes[ENTRY_SIZES];
    uint64_t n_entries; /* since start */
    uint64_t bytes_since_snapshot, entries_since_snapshot;
    unsigned threshold; /* as raft was told; 0: not yet */
    /* raft waits for durability */
    bool snapshot_waiting;
    unsigned syncs_left;
    struct upkeep_sync *syncs;     /* owned */
    struct upkeep_wal_note *notes; /* owned; checkpoints not to be tried yet */
};

/* Finds out how much disk is free at once, if the settings name a directory. */
void upkeep_init(struct upkeep *u, struct node *n);
void upkeep_tick(struct upkeep *u);

/* Free what it owns; after the background worker was closed. */
void upkeep_close(struct upkeep *u);

/* fsm.c applied an entry of this many bytes. */
void upkeep_entry(struct upkeep *u, size_t bytes);

/* The manifest was made (raft's snapshot callback), or one was restored. */
void upkeep_snapshot_taken(struct upkeep *u);

/* raft_guard's before_snapshot: sync every replica once it has applied what is
 * applied now, then raft_guard_snapshot_go: later, never from within this. */
void upkeep_before_snapshot(struct upkeep *u);

/* The WAL of db grew, or its writer is done: checkpoint it in the background
 * if it is time. */
void upkeep_wal(struct db *db);

#endif
