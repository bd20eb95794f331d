/* The position file; see posfile.h. */
#define _GNU_SOURCE
#include "core/posfile.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/error.h"

#define HEAD_BYTES 4096
#define BOOT_AT 8
#define HEAD_CHECK_AT 24
#define SLOT_CHECK_AT 64
#define GROWTH 65536 /* bytes of hashes that are allocated at a time, at least */
#define SEED 1

_Static_assert(sizeof(struct pos_slot) == SLOT_CHECK_AT, "as drawn");

static const char magic[8] = {'F', 'L', 'O', 'P', 'O', 'S', '0', '1'};

static int io_error(int err)
{
    return err == ENOSPC || err == EDQUOT || err == EFBIG ? FLO_FULL : FLO_IO;
}

/* The boot id as it is written: 36 characters; only its hash matters here. */
static void read_boot_id(uint8_t out[16])
{
    char text[64] = {0};
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    XXH128_hash_t hash;
    ssize_t n = 0;

    if (fd >= 0) {
        n = read(fd, text, sizeof text - 1);
        close(fd);
    }
    hash = XXH3_128bits(text, n > 0 ? (size_t)n : 0);
    memcpy(out, &hash, 16);
    if (n <= 0) {
        /* Unknown is never the same boot as unknown. */
        memset(out, 0, 16);
    }
}

static size_t slot_at(int slot)
{
    assert(slot == 0 || slot == 1);
    return slot == 0 ? 64 : 192;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        if (p[i] != 0) {
            return false;
        }
    }
    return true;
}

/* ---- Mapping --------------------------------------------------------------- */

static int map_bytes(struct posfile *p, size_t bytes)
{
    void *map;
    int err = posix_fallocate(p->fd, 0, (off_t)bytes);

    if (err != 0) {
        return io_error(err);
    }
    if (p->map == NULL) {
        map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
    } else {
        map = mremap(p->map, p->bytes, bytes, MREMAP_MAYMOVE);
    }
    if (map == MAP_FAILED) {
        return FLO_IO;
    }
    p->map = map;
    p->bytes = bytes;
    return FLO_OK;
}

static int map_file(struct posfile *p)
{
    struct stat st;
    size_t bytes = HEAD_BYTES;

    if (fstat(p->fd, &st) != 0) {
        return FLO_IO;
    }
    if ((uint64_t)st.st_size > HEAD_BYTES) {
        bytes = (size_t)st.st_size & ~(size_t)(HEAD_BYTES - 1);
    }
    return map_bytes(p, bytes);
}

/* A head that is all zero is that of a file just made. */
static void check_head(struct posfile *p)
{
    uint8_t boot[16];
    uint64_t check;

    p->same_boot = false;
    if (all_zero(p->map, HEAD_CHECK_AT + 8)) {
        return;
    }
    memcpy(&check, p->map + HEAD_CHECK_AT, 8);
    if (memcmp(p->map, magic, sizeof magic) != 0 ||
        XXH3_64bits_withSeed(p->map, HEAD_CHECK_AT, SEED) != check) {
        p->damaged = true;
        return;
    }
    read_boot_id(boot);
    p->same_boot =
        memcmp(boot, p->map + BOOT_AT, 16) == 0 && !all_zero(boot, 16);
}

int posfile_open(struct posfile *p, const char *path)
{
    struct pos_slot slot;
    int rc;

    *p = (struct posfile){.fd = -1};
    p->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0660);
    if (p->fd < 0) {
        return io_error(errno);
    }
    rc = map_file(p);
    if (rc != FLO_OK) {
        posfile_close(p);
        return rc;
    }
    check_head(p);
    if (posfile_load(p, 0, &slot) == FLO_CORRUPT ||
        posfile_load(p, 1, &slot) == FLO_CORRUPT) {
        p->damaged = true;
    }
    return FLO_OK;
}

void posfile_close(struct posfile *p)
{
    if (p->map != NULL) {
        munmap(p->map, p->bytes);
    }
    if (p->fd >= 0) {
        close(p->fd);
    }
    *p = (struct posfile){.fd = -1};
}

/* ---- Slots and hashes --------------------------------------------------------- */

int posfile_load(const struct posfile *p, int slot, struct pos_slot *out)
{
    const uint8_t *at = p->map + slot_at(slot);
    uint64_t check;

    if (all_zero(at, SLOT_CHECK_AT + 8)) {
        return FLO_NOTFOUND;
    }
    memcpy(&check, at + SLOT_CHECK_AT, 8);
    if (XXH3_64bits_withSeed(at, SLOT_CHECK_AT, SEED) != check) {
        return FLO_CORRUPT;
    }
    memcpy(out, at, sizeof *out);
    return FLO_OK;
}

void posfile_store(struct posfile *p, int slot, const struct pos_slot *in)
{
    uint8_t *at = p->map + slot_at(slot);
    uint64_t check = XXH3_64bits_withSeed(in, sizeof *in, SEED);

    memcpy(at, in, sizeof *in);
    __sync_synchronize();
    memcpy(at + SLOT_CHECK_AT, &check, 8);
    __sync_synchronize();
}

uint64_t *posfile_hashes(const struct posfile *p)
{
    return (uint64_t *)(void *)(p->map + HEAD_BYTES);
}

uint32_t posfile_capacity(const struct posfile *p)
{
    return (uint32_t)((p->bytes - HEAD_BYTES) / 8);
}

int posfile_reserve(struct posfile *p, uint32_t n_pages)
{
    size_t bytes = (size_t)n_pages * 8;

    if (n_pages <= posfile_capacity(p)) {
        return FLO_OK;
    }
    /* An eighth more, so that a growing database remaps seldom. */
    bytes = (bytes + bytes / 8 + GROWTH - 1) / GROWTH * GROWTH;
    return map_bytes(p, HEAD_BYTES + bytes);
}

/* Writes what was stored through the mapping too, on Linux; and needs no
 * address, which may be moving meanwhile. */
int posfile_sync(const struct posfile *p)
{
    return fsync(p->fd) == 0 ? FLO_OK : io_error(errno);
}

void posfile_set_boot(struct posfile *p)
{
    uint8_t head[HEAD_CHECK_AT];
    uint64_t check;

    memcpy(head, magic, sizeof magic);
    read_boot_id(head + BOOT_AT);
    check = XXH3_64bits_withSeed(head, sizeof head, SEED);
    memcpy(p->map, head, sizeof head);
    memcpy(p->map + HEAD_CHECK_AT, &check, 8);
    __sync_synchronize();
    p->same_boot = true;
}
