/* A position: where a replica stands in its database's history.
 *
 * Two replicas at the same position hold the same bytes. The checksum is the
 * XOR over all pages of page_hash(), so a transaction changes it by the old
 * and new hashes of the pages it touches and nothing else. */
#ifndef FLOTILLA_POSITION_H
#define FLOTILLA_POSITION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct position
{
    uint64_t txid;     /* 0: nothing was ever written */
    uint64_t checksum; /* 0 at txid 0 */
};

/* XXH3-64 of (pgno as u32 little-endian ‖ page image). Never depends on the
 * machine. Thread-safe. */
uint64_t page_hash(uint32_t pgno, const void *image, size_t page_size);

static inline bool position_equal(struct position a, struct position b)
{
    return a.txid == b.txid && a.checksum == b.checksum;
}

/* SQLite's page sizes: a power of two from 512 to 65536. */
static inline bool page_size_valid(uint32_t n)
{
    return n >= 512 && n <= 65536 && (n & (n - 1)) == 0;
}

#endif
