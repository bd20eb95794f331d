/* The replica: one database's files on one node, and the only code that
 * writes to them besides the application's own SQLite.
 *
 *   app.db app.db-wal app.db-shm   a plain SQLite database in WAL mode
 *   app.db-pos                     position and page hashes (core/posfile.h)
 *   app.db-fence                   the write fence (core/fence.h)
 *
 * It is always in one of these states:
 *
 *   PRISTINE   app.db is empty or absent; position (0, 0)
 *   GOOD       the content is exactly that of position
 *   SUSPECT    the content is consistent, but its checksum matches no known
 *              position: position.checksum is what it hashes to, txid is 0.
 *              replica_identify() may still turn it GOOD; else resync.
 *   BROKEN     the files cannot be read as a database; resync rebuilds them
 *
 * and, orthogonally, has the fence or has given it to a client.
 *
 * While open, the replica holds the real WAL WRITE lock through its own
 * SQLite connection, so a program without the extension gets SQLITE_BUSY when
 * it writes. It never gives that lock away: it restarts the WAL by hand.
 *
 * Only committed frames become visible: frames are appended beyond mxFrame
 * with the commit frame's header last, and the wal-index header is published
 * after that. Nothing is fsync'd here except in replica_sync, checkpoints and
 * WAL restarts: raft's log is the durable copy.
 *
 * Thread rule: a replica is used by one thread at a time (the owner), except
 * where a function says "background": those may run on one other thread while
 * the owner goes on. Errors: enum flo_error; replica->errmsg says more. */
#ifndef FLOTILLA_REPLICA_H
#define FLOTILLA_REPLICA_H

#include <stdbool.h>
#include <stdint.h>

#include "core/entry.h"
#include "core/position.h"

enum replica_state {
    REPLICA_PRISTINE,
    REPLICA_GOOD,
    REPLICA_SUSPECT,
    REPLICA_BROKEN
};

struct replica
{
    char name[DB_NAME_MAX + 1];
    enum replica_state state;
    struct position position;
    uint32_t page_size;  /* 0 while PRISTINE */
    uint32_t n_pages;    /* size of the database in pages */
    uint32_t wal_frames; /* committed frames in the WAL (mxFrame) */
    bool has_fence;
    char errmsg[256];
    struct replica_impl *impl; /* owned; core/replica.c */
};

/* ---- Opening --------------------------------------------------------------- */

/* Open dir/name.db, creating the files (0 bytes, PRISTINE) when absent. Takes
 * the fence and the WRITE lock, waiting up to wait_ms for either (FLO_BUSY: a
 * client sits in a transaction, or a foreign writer does). Lets SQLite recover
 * the WAL, and then finds the position:
 *  - same boot, and the WAL is exactly where the position file expects it, or
 *    one published-but-unrecorded transaction further: no page is read but
 *    those of that transaction;
 *  - otherwise all pages are hashed, and the checksum is looked up among what
 *    the position file knows. */
int replica_open(struct replica *r, const char *dir, const char *name,
                 unsigned wait_ms);

/* Release everything; the files stay as they are. Safe after a failed open. */
void replica_close(struct replica *r);

/* Close and delete all the files of the replica. */
int replica_drop(struct replica *r);

/* SUSPECT → GOOD if p.checksum is the checksum of the content. FLO_OK when it
 * became GOOD, FLO_MISMATCH otherwise. Of a GOOD replica: FLO_OK if equal. */
int replica_identify(struct replica *r, struct position p);

/* ---- Applying what raft committed ------------------------------------------ */

/* Apply a TRANSACTION record. On PRISTINE, SQLite first makes an empty
 * database of that page size in WAL mode. Fragments are appended as they come
 * and published with the last one; a fragment 0 discards an unfinished one.
 * FLO_OK; FLO_DUPLICATE (txid at or below the position); FLO_MISMATCH (does not
 * extend the position, or the result's checksum is not `after`: nothing was
 * published); FLO_FULL; FLO_IO; FLO_CORRUPT; FLO_BUSY (fence is away). */
int replica_apply(struct replica *r, const struct record *rec);

/* ---- A client's transaction --------------------------------------------------
 * give_fence → client writes → collect → (raft) → client publishes →
 * take_fence → settle. */

/* Store the grant number in the fence and unlock it. */
int replica_give_fence(struct replica *r, uint64_t grant);

/* Take it back. FLO_BUSY while the client (or its zombie) holds it. Once it is
 * ours, hash entries beyond mxFrame are cleaned and a header that was torn in
 * the middle of a publication is repaired (to the committed one). */
int replica_take_fence(struct replica *r);

/* Read the frames (mxFrame, last_frame] that the client wrote; the last one's
 * 24-byte header is in `header` because it is not in the file yet. Builds the
 * records of txid position.txid + 1 with the given origin and commit_id, one
 * image per page (last frame wins), all page hashes and the checksum after.
 * Works while the fence is away; changes nothing. b is initialised here and
 * the caller's to close, on error too. FLO_CORRUPT: the frames are not what
 * the client said; FLO_TOOBIG. */
int replica_collect(struct replica *r, uint32_t last_frame, uint32_t n_pages,
                    const uint8_t header[24], uint64_t commit_id,
                    uint32_t origin, size_t max_bytes, struct txn_builder *b);

/* The transaction in b was committed by raft, and the fence is ours again:
 * record it if the client published it, else apply it from the records.
 * Afterwards the position is that of b. */
int replica_settle(struct replica *r, const struct txn_builder *b);

/* Make page 1 of an empty database with these properties, as a transaction
 * with txid 1 to be proposed (WIRE_INIT). PRISTINE only. Changes nothing. */
int replica_make_first(struct replica *r, uint32_t page_size, int auto_vacuum,
                       int encoding, uint64_t commit_id, uint32_t origin,
                       struct txn_builder *b);

/* ---- Replacing content: resync ------------------------------------------------ */

/* Start replacing pages; the images given so far stay invisible. page_size
 * must be the replica's, unless it is PRISTINE or BROKEN, or differs: then the
 * files are made anew (readers see an empty database until the commit). */
int replica_replace_begin(struct replica *r, uint32_t page_size);
int replica_replace_page(struct replica *r, uint32_t pgno, const void *image);

/* Publish them as one transaction and set the position. FLO_MISMATCH when the
 * result's checksum is not p.checksum: nothing was published. */
int replica_replace_commit(struct replica *r, uint32_t n_pages,
                           struct position p);
void replica_replace_abort(struct replica *r);

/* The page hashes, n_pages of them; valid until the next call that changes the
 * replica, replica_collect included. NULL while PRISTINE or BROKEN. */
const uint64_t *replica_hashes(const struct replica *r);

/* Hash all pages again from the files. GOOD stays GOOD when the checksum is
 * the position's, else → SUSPECT (or BROKEN). Long: seconds per GB. */
int replica_rehash(struct replica *r);

/* ---- Reading: a consistent view of all pages ------------------------------------ */

/* Holds a WAL read lock of its own, so neither checkpoint nor restart changes
 * what it sees. hashes is a copy. */
struct replica_view
{
    struct position position;
    uint32_t page_size;
    uint32_t n_pages;
    uint64_t *hashes; /* owned */
    struct replica_view_impl *impl;
};

/* Owner thread, cheap. FLO_DESYNCED unless GOOD. PRISTINE gives n_pages 0.
 * FLO_BUSY: a client has published a commit that is not settled yet; retry. */
int replica_view_open(struct replica *r, struct replica_view *v);

/* Background: read one page image (1 <= pgno <= n_pages). */
int replica_view_read(struct replica_view *v, uint32_t pgno, uint8_t *image);

/* Background, or owner. Must be closed before the replica is. */
void replica_view_close(struct replica_view *v);

/* ---- Housekeeping ------------------------------------------------------------------ */

/* Background: fsync the WAL and the position file: everything published before
 * the call survives power loss. */
int replica_sync(struct replica *r);

/* Background: PASSIVE checkpoint with fsync, in SQLite's order. *done is set
 * when every frame is in the database file. FLO_OK and not done when somebody
 * else is at it, or readers hold it up.
 *
 * Background functions leave errmsg alone. While one runs, the owner may do
 * everything but replica_close, replica_drop and what makes the files anew:
 * replica_replace_begin with another page size or on BROKEN, and the first
 * transaction or replica_replace_begin on PRISTINE. */
int replica_checkpoint(struct replica *r, bool *done);

/* Owner, fence in hand: if every frame is in the database file (as the last
 * replica_checkpoint of ours saw and synced it) and no reader uses the WAL,
 * restart it (new salts, mxFrame 0) and truncate and sync the file. FLO_BUSY
 * when that is not so now. */
int replica_restart_wal(struct replica *r);

/* Owner: is the wal-index still what this replica published? FLO_MISMATCH: a
 * foreign program wrote; all pages were hashed again (long), and the state is
 * SUSPECT from then on. FLO_BUSY: the fence is away. Otherwise cheap. */
int replica_check_foreign(struct replica *r);

#endif
