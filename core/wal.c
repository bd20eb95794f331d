/* The WAL and wal-index formats; see wal.h. */
#include "core/wal.h"

#include <assert.h>
#include <string.h>

#include "core/buf.h"
#include "core/error.h"
#include "core/position.h"

#define MAGIC 0x377f0682u /* the lowest bit: big-endian checksums */
#define FORMAT 3007000u
#define LOCK_BYTE 0x40000000u

/* ---- Checksums and frames -------------------------------------------------- */

bool wal_native_big_endian(void)
{
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
}

void wal_checksum(bool big_endian, const void *data, size_t n,
                  uint32_t cksum[2])
{
    const uint8_t *p = data;
    uint32_t s0 = cksum[0];
    uint32_t s1 = cksum[1];
    size_t i;

    assert(n % 8 == 0);
    if (big_endian) {
        for (i = 0; i < n; i += 8) {
            s0 += load_u32_be(p + i) + s1;
            s1 += load_u32_be(p + i + 4) + s0;
        }
    } else {
        for (i = 0; i < n; i += 8) {
            s0 += load_u32(p + i) + s1;
            s1 += load_u32(p + i + 4) + s0;
        }
    }
    cksum[0] = s0;
    cksum[1] = s1;
}

void wal_encode_header(struct wal_header *h, uint8_t out[WAL_HEADER_BYTES])
{
    store_u32_be(out, MAGIC | (h->big_endian ? 1 : 0));
    store_u32_be(out + 4, FORMAT);
    store_u32_be(out + 8, h->page_size);
    store_u32_be(out + 12, h->sequence);
    memcpy(out + 16, h->salt, 8);
    h->cksum[0] = h->cksum[1] = 0;
    wal_checksum(h->big_endian, out, 24, h->cksum);
    store_u32_be(out + 24, h->cksum[0]);
    store_u32_be(out + 28, h->cksum[1]);
}

int wal_decode_header(const uint8_t in[WAL_HEADER_BYTES], struct wal_header *h)
{
    uint32_t magic = load_u32_be(in);
    struct wal_header out = {.big_endian = magic & 1,
                             .page_size = load_u32_be(in + 8),
                             .sequence = load_u32_be(in + 12)};

    if ((magic & ~1u) != MAGIC || load_u32_be(in + 4) != FORMAT ||
        !page_size_valid(out.page_size)) {
        return FLO_CORRUPT;
    }
    memcpy(out.salt, in + 16, 8);
    wal_checksum(out.big_endian, in, 24, out.cksum);
    if (out.cksum[0] != load_u32_be(in + 24) ||
        out.cksum[1] != load_u32_be(in + 28)) {
        return FLO_CORRUPT;
    }
    *h = out;
    return FLO_OK;
}

void wal_encode_frame(bool big_endian, const uint8_t salt[8], uint32_t pgno,
                      uint32_t commit, const void *page, size_t page_size,
                      uint32_t cksum[2], uint8_t out[WAL_FRAME_HEADER])
{
    store_u32_be(out, pgno);
    store_u32_be(out + 4, commit);
    memcpy(out + 8, salt, 8);
    wal_checksum(big_endian, out, 8, cksum);
    wal_checksum(big_endian, page, page_size, cksum);
    store_u32_be(out + 16, cksum[0]);
    store_u32_be(out + 20, cksum[1]);
}

void wal_decode_frame(const uint8_t in[WAL_FRAME_HEADER], struct wal_frame *f)
{
    f->pgno = load_u32_be(in);
    f->commit = load_u32_be(in + 4);
    memcpy(f->salt, in + 8, 8);
    f->cksum[0] = load_u32_be(in + 16);
    f->cksum[1] = load_u32_be(in + 20);
}

int64_t wal_frame_offset(uint32_t frame, uint32_t page_size)
{
    assert(frame > 0);
    return WAL_HEADER_BYTES +
           (int64_t)(frame - 1) * ((int64_t)page_size + WAL_FRAME_HEADER);
}

uint32_t wal_lock_page(uint32_t page_size)
{
    return LOCK_BYTE / page_size + 1;
}

/* ---- The wal-index header --------------------------------------------------- */

#define HEADER_WORDS (sizeof(struct wal_index_hdr) / 4)
#define BACKFILL_WORD 24
#define MARK_WORD 25
#define ATTEMPTED_WORD 32
#define FIRST_WORD 34 /* of region 0's page numbers: 136 bytes */

_Static_assert(sizeof(struct wal_index_hdr) == 48, "as SQLite lays it out");

static uint32_t load_word(wal_region *p, size_t i)
{
    return __atomic_load_n((volatile uint32_t *)p + i, __ATOMIC_RELAXED);
}

static void store_word(wal_region *p, size_t i, uint32_t v)
{
    __atomic_store_n((volatile uint32_t *)p + i, v, __ATOMIC_RELAXED);
}

static void load_copy(wal_region *index, size_t copy, struct wal_index_hdr *h)
{
    uint32_t words[HEADER_WORDS];
    size_t i;

    for (i = 0; i < HEADER_WORDS; i++) {
        words[i] = load_word(index, copy * HEADER_WORDS + i);
    }
    memcpy(h, words, sizeof *h);
}

static void header_checksum(const struct wal_index_hdr *h, uint32_t cksum[2])
{
    cksum[0] = cksum[1] = 0;
    wal_checksum(wal_native_big_endian(), h,
                 offsetof(struct wal_index_hdr, cksum), cksum);
}

bool wal_index_read(wal_region *index, struct wal_index_hdr *h)
{
    struct wal_index_hdr a;
    struct wal_index_hdr b;
    uint32_t cksum[2];

    load_copy(index, 0, &a);
    __sync_synchronize();
    load_copy(index, 1, &b);
    if (!wal_index_equal(&a, &b) || a.is_init == 0 || a.version != FORMAT) {
        return false;
    }
    header_checksum(&a, cksum);
    if (cksum[0] != a.cksum[0] || cksum[1] != a.cksum[1]) {
        return false;
    }
    *h = a;
    return true;
}

void wal_index_seal(struct wal_index_hdr *h)
{
    h->version = FORMAT;
    h->is_init = 1;
    header_checksum(h, h->cksum);
}

void wal_index_store(wal_region *index, int copy,
                     const struct wal_index_hdr *h)
{
    uint32_t words[HEADER_WORDS];
    size_t i;

    memcpy(words, h, sizeof words);
    for (i = 0; i < HEADER_WORDS; i++) {
        store_word(index, (size_t)copy * HEADER_WORDS + i, words[i]);
    }
}

bool wal_index_equal(const struct wal_index_hdr *a,
                     const struct wal_index_hdr *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

uint32_t wal_index_page_size(const struct wal_index_hdr *h)
{
    return (h->page_size & 0xfe00u) + ((h->page_size & 1u) << 16);
}

void wal_index_set_page_size(struct wal_index_hdr *h, uint32_t page_size)
{
    h->page_size = (uint16_t)((page_size & 0xff00u) | page_size >> 16);
}

uint32_t wal_index_backfill(wal_region *index)
{
    return load_word(index, BACKFILL_WORD);
}

void wal_index_set_backfill(wal_region *index, uint32_t done,
                            uint32_t attempted)
{
    store_word(index, BACKFILL_WORD, done);
    store_word(index, ATTEMPTED_WORD, attempted);
}

uint32_t wal_index_mark(wal_region *index, int reader)
{
    return load_word(index, MARK_WORD + (size_t)reader);
}

void wal_index_set_mark(wal_region *index, int reader, uint32_t frame)
{
    store_word(index, MARK_WORD + (size_t)reader, frame);
}

/* ---- Page numbers and hash tables --------------------------------------------- */

#define SLOTS 8192u
#define PER_REGION 4096u
#define PER_REGION_0 (PER_REGION - FIRST_WORD)

uint32_t wal_region_of(uint32_t frame)
{
    assert(frame > 0);
    return (frame - 1 + FIRST_WORD) / PER_REGION;
}

uint32_t wal_region_first(uint32_t region)
{
    return region == 0 ? 1 : region * PER_REGION - FIRST_WORD + 1;
}

uint32_t wal_region_last(uint32_t region)
{
    return (region + 1) * PER_REGION - FIRST_WORD;
}

/* Word of the region that holds the page number of its idx-th frame (1 …). */
static size_t pgno_word(uint32_t region, uint32_t idx)
{
    return (region == 0 ? FIRST_WORD : 0) + idx - 1;
}

static uint16_t load_slot(wal_region *p, uint32_t slot)
{
    return __atomic_load_n((volatile uint16_t *)p + PER_REGION * 2 + slot,
                           __ATOMIC_ACQUIRE);
}

static void store_slot(wal_region *p, uint32_t slot, uint16_t v)
{
    __atomic_store_n((volatile uint16_t *)p + PER_REGION * 2 + slot, v,
                     __ATOMIC_RELEASE);
}

static uint32_t slot_of(uint32_t pgno)
{
    return pgno * 383u & (SLOTS - 1);
}

static uint32_t next_slot(uint32_t slot)
{
    return (slot + 1) & (SLOTS - 1);
}

static void forget_after(wal_region *p, uint32_t region, uint32_t idx)
{
    size_t word;
    uint32_t slot;

    for (slot = 0; slot < SLOTS; slot++) {
        if (load_slot(p, slot) > idx) {
            store_slot(p, slot, 0);
        }
    }
    for (word = pgno_word(region, idx + 1); word < PER_REGION; word++) {
        store_word(p, word, 0);
    }
}

void wal_region_append(wal_region *p, uint32_t frame, uint32_t pgno)
{
    uint32_t region = wal_region_of(frame);
    uint32_t idx = frame - wal_region_first(region) + 1;
    uint32_t slot = slot_of(pgno);
    uint32_t tried;

    /* A region's first frame: what is there belongs to an earlier WAL. */
    if (idx == 1 || load_word(p, pgno_word(region, idx)) != 0) {
        forget_after(p, region, idx - 1);
    }
    for (tried = 0; tried < SLOTS && load_slot(p, slot) != 0; tried++) {
        slot = next_slot(slot);
    }
    store_word(p, pgno_word(region, idx), pgno);
    store_slot(p, slot, (uint16_t)idx);
}

void wal_region_clean(wal_region *p, uint32_t mx_frame)
{
    uint32_t region = wal_region_of(mx_frame);

    forget_after(p, region, mx_frame - wal_region_first(region) + 1);
}

uint32_t wal_region_find(wal_region *p, uint32_t region, uint32_t pgno,
                         uint32_t first, uint32_t last)
{
    uint32_t base = wal_region_first(region) - 1;
    uint32_t slot = slot_of(pgno);
    uint32_t found = 0;
    uint32_t tried;
    uint16_t idx;

    /* Entries after last may be changing: they are looked at, not believed. */
    for (tried = 0; tried < SLOTS && (idx = load_slot(p, slot)) != 0; tried++) {
        uint32_t frame = base + idx;
        if (idx <= PER_REGION && frame >= first && frame <= last &&
            load_word(p, pgno_word(region, idx)) == pgno) {
            found = frame > found ? frame : found;
        }
        slot = next_slot(slot);
    }
    return found;
}

uint32_t wal_region_pgno(wal_region *p, uint32_t frame)
{
    uint32_t region = wal_region_of(frame);

    return load_word(p,
                     pgno_word(region, frame - wal_region_first(region) + 1));
}
