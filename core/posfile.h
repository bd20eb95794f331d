/* The position file, "<database>-pos": which position the replica is at, where
 * in the WAL that is, and one hash per page. Mapped into memory, so what was
 * stored survives kill -9 at any instruction; after a restart of the machine
 * (another boot id) nothing in it is believed but the checksums.
 *
 *   0            8           24      32       64     136      192    264   4096
 *   +------------+-----------+-------+--------+------+--------+------+------+--
 *   | "FLOPOS01" | boot id   | check | 0      |slot 0| 0      |slot 1| 0    |…
 *   +------------+-----------+-------+--------+------+--------+------+------+--
 *   from 4096: u64 per page, page_hash() of page 1, 2, …
 *
 *   slot: 0   u64 sequence         the higher one was stored later
 *         8   u64 txid             0: of no known position
 *         16  u64 checksum         XOR of the first n_pages hashes
 *         24  u64 base             PRISTINE: hash of SQLite's empty page 1, or 0
 *         32  u32 n_pages
 *         36  u32 page_size
 *         40  u32 mx_frame         the WAL's last committed frame
 *         44  u32 0
 *         48  u8[8] salt           the WAL's salts
 *         56  u32[2] frame_cksum   of frame mx_frame; 0, 0: not known
 *         64  u64 check
 *
 * A slot is valid if and only if check is the XXH3-64 of the 64 bytes before
 * it, seeded with 1; the head likewise of its 24 bytes. An all-zero slot is
 * empty. The numbers are in the machine's byte order: the file never travels.
 *
 * One slot is the position, the other one the position before it or the next
 * one. The next one is stored before it is published in the wal-index, and the
 * page hashes are changed after that; so whoever opens the file finds out by
 * the WAL which of the two it is, and by the XOR whether the hashes are in
 * step. Storing never touches the slot that is the position. */
#ifndef FLOTILLA_POSFILE_H
#define FLOTILLA_POSFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pos_slot
{
    uint64_t sequence;
    uint64_t txid;
    uint64_t checksum;
    uint64_t base;
    uint32_t n_pages;
    uint32_t page_size;
    uint32_t mx_frame;
    uint32_t zero;
    uint8_t salt[8];
    uint32_t frame_cksum[2];
};

struct posfile
{
    int fd;         /* owned; the same for as long as the file is open */
    uint8_t *map;   /* owned */
    size_t bytes;   /* mapped, and allocated on disk */
    bool same_boot; /* written since the machine started */
    bool damaged;   /* the head or a slot failed its check at open */
};

/* Open or create. A file that is something else, or damaged, is no error: its
 * slots read as FLO_CORRUPT, and damaged is set. FLO_IO, FLO_FULL. */
int posfile_open(struct posfile *p, const char *path);
void posfile_close(struct posfile *p);

/* Read slot 0 or 1. FLO_NOTFOUND: empty. FLO_CORRUPT. */
int posfile_load(const struct posfile *p, int slot, struct pos_slot *out);

/* Store a slot; its check is written last. */
void posfile_store(struct posfile *p, int slot, const struct pos_slot *in);

/* Room for n page hashes, allocated on disk so that storing them cannot fail.
 * May move the hashes. FLO_FULL, FLO_IO. */
int posfile_reserve(struct posfile *p, uint32_t n_pages);

/* The page hashes, and how many there is room for. */
uint64_t *posfile_hashes(const struct posfile *p);
uint32_t posfile_capacity(const struct posfile *p);

/* Write everything to disk. Any thread. FLO_IO. */
int posfile_sync(const struct posfile *p);

/* From now on the file is of this boot. */
void posfile_set_boot(struct posfile *p);

#endif
