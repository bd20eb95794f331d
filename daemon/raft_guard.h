/* What an application of libraft 0.22 must do so that it is safe and fast:
 * guards G1–G12 (doc/libraft.md has the reasons and the measurements).
 *
 * The guard wraps the functions of struct raft_io between raft_uv_init and
 * raft_init. All of it runs on the loop's thread. */
#ifndef FLOTILLA_RAFT_GUARD_H
#define FLOTILLA_RAFT_GUARD_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#define GUARD_PEERS_MAX 16

/* G5: what may be on its way to one peer before messages to it are dropped;
 * one message may exceed it. */
#define GUARD_PEER_BYTES (16u << 20)

/* G6: entries under way from raft_guard_apply. */
#define GUARD_WINDOW_COUNT 256
#define GUARD_WINDOW_BYTES (80u << 20)

struct raft_guard;

struct raft_guard_hooks
{
    void *data;
    /* After every tick, received message, finished log write and finished
     * snapshot: raft's state may differ. raft's functions may be called from
     * it, except raft_close. May be NULL. */
    void (*changed)(void *data);
    /* A local snapshot is about to be written: make everything up to it
     * durable, then call raft_guard_snapshot_go(), now or later. Not for
     * installed ones. Called from within raft: do not call it. May be NULL. */
    void (*before_snapshot)(void *data);
};

struct raft_guard
{
    struct raft *raft;
    struct raft_io *io;      /* wrapped in place */
    struct raft_io inner;    /* the functions as raft_uv_init left them */
    struct raft_guard_hooks hooks;
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    unsigned heartbeat_ms;
    unsigned depth;       /* > 0: somewhere inside raft */
    unsigned apply_count; /* G6: under way */
    size_t apply_bytes;
    struct raft_guard_impl *impl;
};

/* io after raft_uv_init, raft before raft_init (its address only). Wraps:
 *  send          G2 corrects last_term of InstallSnapshot; G5 always returns 0:
 *                a message over the peer's queue bound (bytes) is dropped
 *  recv, tick    G1 InstallSnapshot waits while a snapshot is being taken;
 *                G8 every tick of a leader is a heartbeat; last contact per
 *                peer; hooks.changed
 *  append, truncate, set_term, set_vote, snapshot_put
 *                G4 a failure is fatal: one log line with what to do, abort()
 *  snapshot_put  waits for hooks.before_snapshot (local ones); cancelled with
 *                RAFT_CANCELED when io is closed meanwhile
 *  snapshot_get  a snapshot that cannot be read, or that is read while
 *                closing, is not sent (libraft would crash)
 *  close         cancels what the guard holds back
 * All guards of a thread's loops are found through their io: the guard belongs
 * to the thread that made it. FLO_NOMEM. */
int raft_guard_init(struct raft_guard *g, uv_loop_t *loop, struct raft *raft,
                    struct raft_io *io, unsigned heartbeat_ms,
                    const struct raft_guard_hooks *hooks);

/* For an io that is raft_uv, after raft_guard_init and before raft_init: no
 * auto-recovery (G12), segments of 8 MiB (G9), connect retry 100 ms (G7), and
 * the disk errors that raft_uv only mentions in its trace are fatal (G4). */
void raft_guard_configure_uv(struct raft_guard *g);

/* After raft_init, before raft_start: timeouts (checks what took effect),
 * pre-vote, capacity threshold 0 (G9), max inflight 32 (G5). The caller sets
 * snapshot threshold and trailing; trailing must not be 0, which raft_uv takes
 * for an installed snapshot. */
void raft_guard_configure(struct raft_guard *g, unsigned election_ms);

/* The put that hooks.before_snapshot was told of may proceed. No-op when there
 * is none (any more). */
void raft_guard_snapshot_go(struct raft_guard *g);
bool raft_guard_taking_snapshot(const struct raft_guard *g);

/* G8: on the leader, tell followers the commit index at once: before the loop
 * waits for events again, and only those that were not told yet. The guard
 * does so by itself whenever the commit index moved; safe from anywhere. */
void raft_guard_announce(struct raft_guard *g);

/* uv_hrtime() of the last message from that server, 0: never. */
uint64_t raft_guard_last_contact(const struct raft_guard *g, raft_id id);

/* uv_hrtime() at which the oldest log write that has not finished was given to
 * the disk, 0: none is under way. A leader whose oldest write is seconds old
 * should hand over. */
uint64_t raft_guard_oldest_append(const struct raft_guard *g);

/* G6: propose one entry; the only way to raft_apply. Takes the malloc'd entry
 * (length a multiple of 8) in every case. At most GUARD_WINDOW entries and
 * bytes are under way at once: FLO_BUSY beyond. FLO_NOTLEADER, FLO_FULL,
 * FLO_SHUTDOWN after raft_close. Not from within fsm->apply and the like.
 * cb, only after FLO_OK was returned, and later: FLO_OK; FLO_UNKNOWN
 * (leadership lost, or raft_close); FLO_SHUTDOWN. */
struct raft_guard_apply
{
    struct raft_apply raft;
    void *data;
    void (*cb)(struct raft_guard_apply *req, int rc);
    struct raft_guard *guard;
    size_t bytes;
};
int raft_guard_apply(struct raft_guard *g, struct raft_guard_apply *req,
                     void *entry, size_t n,
                     void (*cb)(struct raft_guard_apply *req, int rc));

/* Free what the guard owns, after raft_close's callback and before
 * raft_uv_close; the loop must turn once more. Idempotent. */
void raft_guard_close(struct raft_guard *g);

#endif
