/* Page hashes; see position.h. */
#include "core/position.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/buf.h"

uint64_t page_hash(uint32_t pgno, const void *image, size_t page_size)
{
    XXH3_state_t state;
    uint8_t prefix[4];

    store_u32(prefix, pgno);
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, prefix, sizeof prefix);
    XXH3_64bits_update(&state, image, page_size);
    return XXH3_64bits_digest(&state);
}
