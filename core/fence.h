/* The write fence: who may touch the WAL beyond its last commit.
 *
 * One file per replica, "<database>-fence", 16 bytes, little-endian:
 *
 *   0                8                16
 *   +----------------+----------------+
 *   | "FLOFENC1"     | grant, 0: none |
 *   +----------------+----------------+
 *
 * Whoever holds the exclusive lock on byte 0 may append to the WAL and change
 * the wal-index; nobody else may. The daemon holds it, except while a client
 * of its node has the write lock: then it stores that grant's number, unlocks,
 * and the client locks, reads the number back and goes on only if it is its
 * own. A client that was stopped or has died can so never write over frames
 * that the daemon put there since: the kernel keeps the lock while the process
 * lives, and drops it when it ends.
 *
 * It is an open-file-description lock (F_OFD_SETLK), so closing another
 * descriptor of the file in the process does not drop it, and two connections
 * of one process exclude each other. A forked child shares it: the lock ends
 * when the holder unlocks, or when all that share it have exited. */
#ifndef FLOTILLA_FENCE_H
#define FLOTILLA_FENCE_H

#include <stdint.h>

struct fence
{
    int fd; /* -1 when closed; owned */
};

/* Open, creating it when create is set (mode 0660 & ~umask). The descriptor is
 * close-on-exec. FLO_NOTFOUND, FLO_CORRUPT (not a fence file; with create it
 * is made one, unless somebody holds its lock), FLO_FULL, FLO_IO. */
int fence_open(struct fence *f, const char *path, int create);
void fence_close(struct fence *f);

/* FLO_OK, FLO_BUSY when somebody else has it, FLO_IO. Taking it twice is ok. */
int fence_try_lock(struct fence *f);
void fence_unlock(struct fence *f);

/* The grant number. Only the holder of the lock calls fence_set. */
int fence_set(struct fence *f, uint64_t grant);
int fence_get(struct fence *f, uint64_t *grant);

#endif
