/* SQLite's WAL and wal-index, as bytes: pure functions, no files.
 *
 * The format is https://www.sqlite.org/walformat.html; checked against 3.40.1.
 *
 * WAL: a 32-byte header, then frames of 24 + page_size bytes; big-endian.
 *
 *   0       4        8          12          16      20      24         32
 *   +-------+--------+----------+-----------+-------+-------+----------+
 *   | magic | 3007000| page size| ckpt seq. | salt1 | salt2 | checksum |
 *   +-------+--------+----------+-----------+-------+-------+----------+
 *
 *   0       4                    8       12      16         24
 *   +-------+--------------------+-------+-------+----------+---------+
 *   | pgno  | commit: db size, 0 | salt1 | salt2 | checksum |  page   |
 *   +-------+--------------------+-------+-------+----------+---------+
 *
 * A frame is valid if and only if its salts are the header's and its checksum,
 * which runs on from the frame before it (frame 1: from the header) over the
 * first 8 bytes of its header and its page, is right. A transaction is
 * committed if and only if a valid frame with a commit size ends it.
 *
 * WAL-INDEX: regions of 32 KiB of shared memory, in the machine's byte order.
 * Region 0 starts with two copies of struct wal_index_hdr and checkpoint
 * information, 136 bytes; a copy is valid if and only if its checksum is right
 * and both are equal. The rest of each region maps pages to frames: an array
 * of page numbers, one per frame, and a hash table of 8192 u16 slots, each 0
 * or the 1-based index into that array. Region 0 has room for 4062 frames,
 * later ones for 4096. Collisions go to the next slot; for one page, later
 * frames are found later in the chain.
 *
 * Other processes read this memory while we write it: words go through
 * atomic accesses, and the order is made with barriers by the caller. */
#ifndef FLOTILLA_WAL_H
#define FLOTILLA_WAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WAL_HEADER_BYTES 32
#define WAL_FRAME_HEADER 24

/* ---- WAL ------------------------------------------------------------------- */

struct wal_header
{
    bool big_endian; /* byte order of the checksums */
    uint32_t page_size;
    uint32_t sequence;  /* counts checkpoints; informative */
    uint8_t salt[8];    /* as in the file */
    uint32_t cksum[2];
};

struct wal_frame
{
    uint32_t pgno;
    uint32_t commit; /* database size in pages, 0: not a commit frame */
    uint8_t salt[8];
    uint32_t cksum[2];
};

/* The running checksum: continue cksum over n bytes, a multiple of 8. */
void wal_checksum(bool big_endian, const void *data, size_t n,
                  uint32_t cksum[2]);

/* The byte order that checksums have in WALs started on this machine. */
bool wal_native_big_endian(void);

/* Fill h->cksum and out. */
void wal_encode_header(struct wal_header *h, uint8_t out[WAL_HEADER_BYTES]);

/* FLO_CORRUPT when the header is not valid. */
int wal_decode_header(const uint8_t in[WAL_HEADER_BYTES], struct wal_header *h);

/* Continue cksum over the frame and write its header to out. */
void wal_encode_frame(bool big_endian, const uint8_t salt[8], uint32_t pgno,
                      uint32_t commit, const void *page, size_t page_size,
                      uint32_t cksum[2], uint8_t out[WAL_FRAME_HEADER]);

/* Splits the fields; checks nothing. */
void wal_decode_frame(const uint8_t in[WAL_FRAME_HEADER], struct wal_frame *f);

/* Where frame number frame (1 …) starts in the file. */
int64_t wal_frame_offset(uint32_t frame, uint32_t page_size);

/* The page that holds SQLite's lock bytes (at 1 GiB). It is never written to a
 * WAL and never part of a replica's content. */
uint32_t wal_lock_page(uint32_t page_size);

/* ---- WAL-index ------------------------------------------------------------- */

#define WAL_REGION_BYTES 32768
#define WAL_READERS 5

/* Lock numbers for xShmLock. */
enum {
    WAL_LOCK_WRITE = 0,
    WAL_LOCK_CHECKPOINT = 1,
    WAL_LOCK_RECOVER = 2,
    WAL_LOCK_READ = 3 /* … 7 */
};

struct wal_index_hdr
{
    uint32_t version; /* 3007000 */
    uint32_t unused;
    uint32_t change; /* counts transactions */
    uint8_t is_init;
    uint8_t big_endian;
    uint16_t page_size; /* 1 means 65536 */
    uint32_t mx_frame;
    uint32_t n_page;
    uint32_t frame_cksum[2]; /* of frame mx_frame */
    uint8_t salt[8];         /* as in the WAL's header */
    uint32_t cksum[2];       /* of all the above, native byte order */
};

/* A mark that no reader uses. */
#define WAL_MARK_UNUSED 0xffffffffu

/* All of these take a pointer to a mapped region; "index" is region 0. */
typedef volatile void wal_region;

/* Read both copies. False when they differ or are not valid. */
bool wal_index_read(wal_region *index, struct wal_index_hdr *h);

/* Set h->cksum and the constant fields; before wal_index_store. */
void wal_index_seal(struct wal_index_hdr *h);

/* Store one copy (0 or 1). To publish: copy 1, barrier, copy 0. */
void wal_index_store(wal_region *index, int copy,
                     const struct wal_index_hdr *h);

bool wal_index_equal(const struct wal_index_hdr *a,
                     const struct wal_index_hdr *b);

uint32_t wal_index_page_size(const struct wal_index_hdr *h);
void wal_index_set_page_size(struct wal_index_hdr *h, uint32_t page_size);

/* Checkpoint information. */
uint32_t wal_index_backfill(wal_region *index);
void wal_index_set_backfill(wal_region *index, uint32_t done,
                            uint32_t attempted);
uint32_t wal_index_mark(wal_region *index, int reader);
void wal_index_set_mark(wal_region *index, int reader, uint32_t frame);

/* Which region indexes a frame, and the first and last frame of a region. */
uint32_t wal_region_of(uint32_t frame);
uint32_t wal_region_first(uint32_t region);
uint32_t wal_region_last(uint32_t region);

/* Enter a frame; the region is that of wal_region_of(frame), and all earlier
 * frames are entered already and no later ones. */
void wal_region_append(wal_region *p, uint32_t frame, uint32_t pgno);

/* Forget all frames after mx_frame; the region is that of mx_frame > 0. */
void wal_region_clean(wal_region *p, uint32_t mx_frame);

/* The last frame in [first, last] of this region that holds pgno, 0: none. */
uint32_t wal_region_find(wal_region *p, uint32_t region, uint32_t pgno,
                         uint32_t first, uint32_t last);

/* The page in a frame. */
uint32_t wal_region_pgno(wal_region *p, uint32_t frame);

#endif
