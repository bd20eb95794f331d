/* The write fence; see fence.h. */
#define _GNU_SOURCE
#include "core/fence.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/buf.h"
#include "core/error.h"

#define FENCE_BYTES 16

static const char magic[8] = {'F', 'L', 'O', 'F', 'E', 'N', 'C', '1'};

static int io_error(void)
{
    return errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? FLO_FULL
                                                                : FLO_IO;
}

static int set_lock(int fd, short type)
{
    struct flock lock = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    int rv;

    do {
        rv = fcntl(fd, F_OFD_SETLK, &lock);
    } while (rv != 0 && errno == EINTR);
    if (rv == 0) {
        return FLO_OK;
    }
    return errno == EAGAIN || errno == EACCES ? FLO_BUSY : FLO_IO;
}

/* Two daemons that create the file at the same time write the same bytes. */
static int fill(int fd)
{
    uint8_t raw[FENCE_BYTES] = {0};
    ssize_t n;

    memcpy(raw, magic, sizeof magic);
    n = pwrite(fd, raw, sizeof raw, 0);
    return n == (ssize_t)sizeof raw ? FLO_OK : io_error();
}

/* What it held is worth nothing once nobody holds the lock. */
static int refill(int fd)
{
    int rc;

    if (set_lock(fd, F_WRLCK) != FLO_OK) {
        return FLO_CORRUPT;
    }
    rc = ftruncate(fd, 0) == 0 ? fill(fd) : io_error();
    (void)set_lock(fd, F_UNLCK);
    return rc;
}

static int check_or_fill(int fd, int create)
{
    uint8_t raw[FENCE_BYTES] = {0};
    ssize_t n = pread(fd, raw, sizeof raw, 0);

    if (n < 0) {
        return FLO_IO;
    }
    if (n == 0) {
        return fill(fd);
    }
    if (n != (ssize_t)sizeof raw || memcmp(raw, magic, sizeof magic) != 0) {
        return create ? refill(fd) : FLO_CORRUPT;
    }
    return FLO_OK;
}

int fence_open(struct fence *f, const char *path, int create)
{
    int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0);
    int fd;
    int rc;

    f->fd = -1;
    do {
        fd = open(path, flags, 0660);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return errno == ENOENT ? FLO_NOTFOUND : io_error();
    }
    rc = check_or_fill(fd, create);
    if (rc != FLO_OK) {
        close(fd);
        return rc;
    }
    f->fd = fd;
    return FLO_OK;
}

void fence_close(struct fence *f)
{
    if (f->fd >= 0) {
        close(f->fd);
        f->fd = -1;
    }
}

int fence_try_lock(struct fence *f)
{
    return set_lock(f->fd, F_WRLCK);
}

void fence_unlock(struct fence *f)
{
    (void)set_lock(f->fd, F_UNLCK);
}

int fence_set(struct fence *f, uint64_t grant)
{
    uint8_t raw[8];
    ssize_t n;

    store_u64(raw, grant);
    n = pwrite(f->fd, raw, sizeof raw, sizeof magic);
    return n == (ssize_t)sizeof raw ? FLO_OK : io_error();
}

int fence_get(struct fence *f, uint64_t *grant)
{
    uint8_t raw[8];
    ssize_t n = pread(f->fd, raw, sizeof raw, sizeof magic);

    if (n != (ssize_t)sizeof raw) {
        return n < 0 ? FLO_IO : FLO_CORRUPT;
    }
    *grant = load_u64(raw);
    return FLO_OK;
}
