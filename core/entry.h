/* What raft replicates: entries made of records.
 *
 * ENTRY, one raft log entry; all numbers little-endian; a multiple of 8 bytes
 * (libraft stores nothing else readably, guard G6):
 *
 *   0      4       8        12       16          24
 *   +------+-------+--------+--------+-----------+------------------+
 *   | FLE1 | bytes | records| 0      | XXH3-64   | record, record … |
 *   +------+-------+--------+--------+-----------+------------------+
 *
 * valid if and only if the magic matches, bytes is the length of the buffer,
 * the hash is that of all that follows it, and the records fill it exactly.
 *
 * RECORD, a multiple of 8 bytes:
 *
 *   0       4     5     6      8
 *   +-------+-----+-----+------+-------------------+--------+
 *   | bytes |kind | 0   | name | name, padded to 8 | body   |
 *   |       |     |     | bytes|                   |        |
 *   +-------+-----+-----+------+-------------------+--------+
 *
 * kinds: CREATE and DROP have no body. TRANSACTION's body:
 *
 *   u64 txid           the position after it
 *   u64 before         checksum before it
 *   u64 after          checksum after it
 *   u64 commit_id      chosen by the client; tells outcomes apart
 *   u32 origin         node the client was on
 *   u32 page_size
 *   u32 n_pages        size of the database after it, in pages
 *   u32 n_images       page images in this record
 *   u32 fragment       0 …  a large transaction is cut into several records,
 *   u32 n_fragments    which follow each other in the log; 1: not cut
 *   images: u32 pgno, u8 encoding (0 raw, 1 LZ4 block), u8 0 ×3,
 *           u32 stored bytes, u32 0, bytes padded to 8
 *
 * Each page occurs once in a transaction, in ascending page order. An unknown
 * kind, encoding or magic is FLO_VERSION: the node stops, never skips. */
#ifndef FLOTILLA_ENTRY_H
#define FLOTILLA_ENTRY_H

#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/position.h"
#include "core/wire.h"

#define ENTRY_HEADER 24

/* A transaction is cut into records of about this many bytes. Stays below
 * WIRE_BODY_MAX with one more page of 64 KiB and the headers. */
#define RECORD_BYTES_TARGET (1u << 20)

enum record_kind { RECORD_TRANSACTION = 1, RECORD_CREATE = 2, RECORD_DROP = 3 };

struct record
{
    enum record_kind kind;
    char db[DB_NAME_MAX + 1];
    /* The rest for RECORD_TRANSACTION only. */
    uint64_t txid;
    uint64_t before;
    uint64_t after;
    uint64_t commit_id;
    uint32_t origin;
    uint32_t page_size;
    uint32_t n_pages;
    uint32_t n_images;
    uint32_t fragment;
    uint32_t n_fragments;
    struct wire_blob images; /* borrowed from the decoded bytes */
};

/* Decode one record that fills data[0..n) exactly. FLO_CORRUPT, FLO_VERSION.
 * The images are checked too, except for the content of LZ4 blocks. */
int record_decode(const void *data, size_t n, struct record *r);

/* Encode CREATE or DROP, appending to out. FLO_INVALID for a bad name. */
int record_encode_simple(struct buf *out, enum record_kind kind, const char *db);

/* Walk the images of a decoded record: c starts as cursor_of(r->images.data,
 * r->images.len). Writes the page into image (page_size bytes) and its number
 * into *pgno. FLO_NOTFOUND at the end, FLO_CORRUPT. */
int record_next_image(struct cursor *c, uint32_t page_size, uint32_t *pgno,
                      uint8_t *image);

/* Wrap one encoded record into an entry. The memory is malloc'd (raft_malloc's
 * default is malloc) and the caller's. FLO_NOMEM. */
int entry_wrap(const void *record, size_t n, void **entry, size_t *entry_n);

/* Check an entry's header and hash, and walk its records: c starts as
 * whatever entry_open made of it; entry_next gives each record's bytes (for
 * record_decode) and FLO_NOTFOUND at the end. FLO_CORRUPT, FLO_VERSION. */
int entry_open(const void *data, size_t n, struct cursor *c);
int entry_next(struct cursor *c, const void **record, size_t *n);

/* Builds the records of one transaction from its pages. Memory is bounded by
 * max_bytes of encoded records (FLO_TOOBIG over it). */
struct txn_builder
{
    struct record head; /* fields common to all fragments; no images */
    struct buf *records; /* n_records, each one encoded record; owned */
    size_t n_records;
    size_t n_cap;
    size_t bytes;
    size_t max_bytes;
    uint8_t *scratch; /* LZ4 output, LZ4_compressBound(page_size); owned */
};

/* head gives db, txid, before, commit_id, origin, page_size, n_pages; copied.
 * after, fragment and n_fragments are set at the end. */
int txn_builder_init(struct txn_builder *b, const struct record *head,
                     size_t max_bytes);

/* Add a page; ascending pgno. FLO_TOOBIG, FLO_NOMEM. */
int txn_builder_page(struct txn_builder *b, uint32_t pgno, const void *image);

/* Fix up after, fragment and n_fragments in every record. */
int txn_builder_finish(struct txn_builder *b, uint64_t after);

/* Free everything; safe on a zeroed builder and after a failed init. */
void txn_builder_close(struct txn_builder *b);

#endif
