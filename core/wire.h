/* The message codec of the client socket and of the peer links.
 *
 * A message is a 16-byte header and a body, all numbers little-endian:
 *
 *   0       4       8              16
 *   +-------+---+---+---------------+----------------------------+
 *   | body  |ty |ver|   request     | body: the fields of WIRE_* |
 *   | bytes |pe |   |               | below, in order, no padding|
 *   +-------+---+---+---------------+----------------------------+
 *
 * It is valid if and only if body bytes <= WIRE_BODY_MAX, ver == WIRE_VERSION,
 * type is one of those listed, and the fields fill the body exactly.
 *
 * request is chosen by whoever asks and repeated in the answer; 0 where no
 * answer is expected. Fields are u8, u32, u64, str (u16 length, bytes, at most
 * WIRE_STR_MAX, no NUL inside) and blob (u32 length, bytes). Decoded blobs are
 * borrowed from the buffer that was decoded; strings are copied.
 *
 * The list of messages is the X-macro table below; the structs, the encoder
 * and the decoder are made from it, so they cannot disagree. */
#ifndef FLOTILLA_WIRE_H
#define FLOTILLA_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"

#define WIRE_VERSION 1
#define WIRE_HEADER 16
#define WIRE_BODY_MAX (2u << 20)
#define WIRE_STR_MAX 255

/* Longest database name, its ".db" not counted. */
#define DB_NAME_MAX 63

typedef char wire_str[WIRE_STR_MAX + 1];
struct wire_blob
{
    const uint8_t *data; /* borrowed */
    uint32_t len;
};

/* ---- Answers that several requests share -------------------------------- */

/* code: enum flo_error; text: what happened and what to do next, or "". */
#define WIRE_RESULT(F) F(u32, code) F(u64, txid) F(str, text)

/* ---- Application -> its node's daemon ------------------------------------ */

/* First message on the client socket. Answer: WELCOME or RESULT. */
#define WIRE_HELLO(F) F(u32, pid) F(str, program)
#define WIRE_WELCOME(F) \
    F(u32, node_id) F(u64, max_transaction_bytes) F(str, cluster)

/* Make the database known to the whole cluster if create is set and it is not
 * there yet. Answer: RESULT; txid 0 says that nothing was ever written. */
#define WIRE_OPEN(F) F(str, db) F(u8, create) F(u32, timeout_ms)

/* First write to an empty database: commit page 1 with these properties.
 * page_size 512..65536; auto_vacuum 0..2; encoding 1..3 as in SQLite's header.
 * Answer: RESULT; FLO_EXISTS when it has pages already. */
#define WIRE_INIT(F) \
    F(str, db) F(u32, page_size) F(u8, auto_vacuum) F(u8, encoding) \
    F(u32, timeout_ms)

/* Ask for the write lock. timeout_ms 0: only if it is free now. fresh: SQLite
 * will retry with a new read snapshot if told that it is busy, so the daemon
 * may answer FLO_STALE to get an old snapshot out of the WAL. Answer: GRANT or
 * RESULT (FLO_BUSY, FLO_FULL, FLO_NOLEADER, FLO_DESYNCED, FLO_STALE, …). */
#define WIRE_LOCK(F) F(str, db) F(u32, timeout_ms) F(u8, fresh)

/* grant names this grant on this node; the holder takes the write fence and
 * finds the same number there (core/fence.h) before it touches the WAL. */
#define WIRE_GRANT(F) F(u64, grant) F(u64, txid)

/* Stop waiting for the LOCK with this request number. No answer of its own:
 * the LOCK is answered with FLO_BUSY, or with the GRANT that was under way,
 * which the client then releases. */
#define WIRE_CANCEL(F) F(u64, cancelled)

/* Commit WAL frames (mxFrame, last_frame]; the last one's header is not in the
 * file yet, it is here. commit_id: random, tells outcomes apart. Answer:
 * RESULT with the txid; FLO_LOST, FLO_BUSY (certainly not), FLO_UNKNOWN, … */
#define WIRE_COMMIT(F) \
    F(u64, grant) F(u64, commit_id) F(u32, last_frame) F(u32, n_pages) \
    F(blob, header)

/* The holder is done. linger_ms > 0: keep the lock for it that long, because
 * it will ask again with a fresh snapshot. No answer. */
#define WIRE_RELEASE(F) F(u64, grant) F(u32, linger_ms)

/* Wait until the local replica has applied txid. Answer: RESULT. */
#define WIRE_WAIT(F) F(str, db) F(u64, txid) F(u32, timeout_ms)

/* Confirm leadership with a majority, then wait until the local replica has
 * applied all that was committed when the question was asked (raft
 * dissertation, section 6.4). Answer: RESULT. */
#define WIRE_READ(F) F(str, db) F(u32, timeout_ms)

/* Was this commit committed? Answer: RESULT: FLO_OK yes, FLO_NOTFOUND
 * certainly not, FLO_UNKNOWN cannot tell (yet, or any more). */
#define WIRE_OUTCOME(F) F(str, db) F(u64, txid) F(u64, commit_id)

/* Rows for the virtual tables. table: enum wire_table. Answer: ROWS. */
#define WIRE_TABLE(F) F(u8, table)

/* cells: for each row, for each column, a str; in the table's column order. */
#define WIRE_ROWS(F) F(u32, n_rows) F(u32, n_columns) F(blob, cells)

/* Admin verbs as functions. verb: "resync" (arg: a node's address or number).
 * Answer: RESULT. */
#define WIRE_ADMIN(F) F(str, verb) F(str, arg)

/* ---- Daemon -> daemon ---------------------------------------------------- */

/* Sent on every link when it opens, when a replica's state changes, when a
 * leader becomes ready, and ten times a second: the truth behind sync-status.
 * sent_us and echo_us are microseconds of the asking side's clock, for the round
 * trip. index: last raft index applied. ready_term and
 * ready_index: the term this node leads and has a committed barrier in, or 0.
 * databases: n times (str name, u64 txid, u64 checksum, u8 enum db_health). */
#define WIRE_PROGRESS(F) \
    F(u64, term) F(u64, index) F(u64, ready_term) F(u64, ready_index) \
    F(u64, free_bytes) F(u64, sent_us) F(u64, echo_us) F(u32, n_databases) \
    F(blob, databases)

/* As LOCK, forwarded to the leader; txid is the asking replica's position.
 * Answer: any ENTRYs that it lacks, then PEER_GRANT; or RESULT. */
#define WIRE_PEER_LOCK(F) F(str, db) F(u32, timeout_ms) F(u64, txid)
#define WIRE_PEER_GRANT(F) \
    F(u64, term) F(u64, grant) F(u64, txid) F(u64, checksum)

/* A committed record (core/entry.h), ahead of raft's own announcement. */
#define WIRE_ENTRY(F) F(blob, record)

/* One record of a transaction, in order; last set on the final one, which is
 * answered: RESULT. Refused unless the receiver leads this very term. */
#define WIRE_PROPOSE(F) F(u64, term) F(u64, grant) F(u8, last) F(blob, record)
#define WIRE_PEER_RELEASE(F) F(u64, term) F(u64, grant)

/* The leader took this grant back (it lasted too long, or leadership ended). */
#define WIRE_REVOKED(F) F(u64, term) F(u64, grant)

/* Read index. Answer: READ_INDEX_IS or RESULT. */
#define WIRE_READ_INDEX(F) F(u32, timeout_ms)
#define WIRE_READ_INDEX_IS(F) F(u64, index)

/* Page-difference resync, asked by the one that needs it. hashes: u64 each, of
 * pages first .. ; n_pages 0 when it has none. Answer: PAGES …, then
 * RESYNC_END (or RESULT on failure). The source sends no more than a window of
 * PAGES messages that were not answered by PAGES_ACK. */
#define WIRE_RESYNC_BEGIN(F) F(str, db) F(u32, page_size) F(u32, n_pages)
#define WIRE_RESYNC_HASHES(F) F(u32, first) F(u8, last) F(blob, hashes)
/* pages: repeated (u32 pgno, u32 stored bytes, bytes: LZ4 block, or the raw
 * image when stored bytes == page size). */
#define WIRE_PAGES(F) F(u32, page_size) F(u32, n_images) F(blob, pages)
#define WIRE_PAGES_ACK(F) F(u32, n_images)
#define WIRE_RESYNC_END(F) \
    F(u64, txid) F(u64, checksum) F(u32, n_pages) F(u32, page_size) \
    F(u64, compared) F(u64, sent_pages) F(u64, sent_bytes)
/* Leader to follower: resync now (all databases). Answer: RESULT. */
#define WIRE_RESYNC_ORDER(F) F(str, reason)

#define WIRE_MESSAGES(M)                      \
    M(RESULT, result, 1)                      \
    M(HELLO, hello, 2)                        \
    M(WELCOME, welcome, 3)                    \
    M(OPEN, open, 4)                          \
    M(INIT, init, 5)                          \
    M(LOCK, lock, 6)                          \
    M(GRANT, grant, 7)                        \
    M(CANCEL, cancel, 8)                      \
    M(COMMIT, commit, 9)                      \
    M(RELEASE, release, 10)                   \
    M(WAIT, wait, 11)                         \
    M(READ, read, 12)                         \
    M(OUTCOME, outcome, 13)                   \
    M(TABLE, table, 14)                       \
    M(ROWS, rows, 15)                         \
    M(ADMIN, admin, 16)                       \
    M(PROGRESS, progress, 32)                 \
    M(PEER_LOCK, peer_lock, 33)               \
    M(PEER_GRANT, peer_grant, 34)             \
    M(ENTRY, entry, 35)                       \
    M(PROPOSE, propose, 36)                   \
    M(PEER_RELEASE, peer_release, 37)         \
    M(REVOKED, revoked, 38)                   \
    M(READ_INDEX, read_index, 39)             \
    M(READ_INDEX_IS, read_index_is, 40)       \
    M(RESYNC_BEGIN, resync_begin, 41)         \
    M(RESYNC_HASHES, resync_hashes, 42)       \
    M(PAGES, pages, 43)                       \
    M(PAGES_ACK, pages_ack, 44)               \
    M(RESYNC_END, resync_end, 45)             \
    M(RESYNC_ORDER, resync_order, 46)

enum wire_type {
#define M(NAME, member, number) MSG_##NAME = number,
    WIRE_MESSAGES(M)
#undef M
};

/* The virtual tables that a TABLE request can fill (columns in ext/vtab.c and
 * daemon/status.c, in the same order). */
enum wire_table {
    TABLE_STATUS = 1, /* one row */
    TABLE_NODES = 2,
    TABLE_DATABASES = 3
};

/* A replica as sync-status tells it. */
enum db_health {
    DB_HEALTHY = 0,
    DB_LAGGING = 1,
    DB_DESYNCED = 2,
    DB_UNKNOWN = 3
};

/* One message. type says which member of the union holds the fields. */
struct wire_msg
{
    enum wire_type type;
    uint64_t request;
    union {
#define WIRE_FIELD_u8(name) uint8_t name;
#define WIRE_FIELD_u32(name) uint32_t name;
#define WIRE_FIELD_u64(name) uint64_t name;
#define WIRE_FIELD_str(name) wire_str name;
#define WIRE_FIELD_blob(name) struct wire_blob name;
#define F(type, name) WIRE_FIELD_##type(name)
#define M(NAME, member, number) \
    struct                      \
    {                           \
        WIRE_##NAME(F)          \
    } member;
        WIRE_MESSAGES(M)
#undef M
#undef F
    };
};

/* Append the encoding of m. FLO_INVALID for an unknown type or an overlong
 * string, FLO_TOOBIG for a body over WIRE_BODY_MAX, and buf_append's errors;
 * on error out is as it was. */
int wire_encode(struct buf *out, const struct wire_msg *m);

/* Decode the message at the start of data. *consumed is its length, or 0 when
 * more bytes are needed; m is filled only when *consumed > 0. FLO_PROTOCOL and
 * FLO_VERSION: close the connection. Blobs point into data. Allocates nothing.
 */
int wire_decode(const uint8_t *data, size_t n, struct wire_msg *m,
                size_t *consumed);

/* The message's name, for logs: "LOCK"; "?" when unknown. */
const char *wire_name(enum wire_type type);

/* Strings inside blobs (ROWS cells, PROGRESS databases). */
int wire_put_str(struct buf *out, const char *s);
void wire_get_str(struct cursor *c, wire_str out);

/* A database name is 1..DB_NAME_MAX of [A-Za-z0-9_.-], not starting with '.'
 * or '-'. Returns 1 when valid. */
int db_name_valid(const char *name);

#endif
