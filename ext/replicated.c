/* The methods of a replicated database file, and its PRAGMAs.
 *
 * Reading passes straight to the real file. Nothing is ever written through
 * this file: pages reach it by the daemon's checkpoints. What a replica must
 * not suffer is refused here:
 *
 *   xLock RESERVED, EXCLUSIVE     rollback journals, checkpoint on close,
 *                                 leaving WAL mode: SQLITE_BUSY
 *   xShmLock CHECKPOINT           checkpoints by the application: SQLITE_BUSY
 *   xShmLock READ(1..4) at once   restarting the WAL: SQLITE_BUSY
 *   xShmLock WRITE                becomes the cluster's write lock (lock.c)
 *   xWrite, xTruncate             an error
 *   PRAGMA journal_mode, locking_mode   an error with a message */
#include "ext/internal.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"

#define LOCK_WRITE 0
#define LOCK_CHECKPOINT 1
#define LOCK_READ_0 3
#define LOCK_COUNT 8

static struct replicated *self(sqlite3_file *f)
{
    return (struct replicated *)f;
}

static sqlite3_file *real(sqlite3_file *f)
{
    return self(f)->real;
}

/* ---- Plain methods ------------------------------------------------------------ */

static int file_close(sqlite3_file *f)
{
    struct replicated *r = self(f);

    registry_remove(r);
    if (r->write != WRITE_NONE) {
        lock_write_release(r);
    }
    fence_close(&r->fence);
    client_close(&r->client);
    sqlite3_mutex_free(r->mutex);
    sqlite3_free(r->dir);
    sqlite3_free(r->fence_path);
    return r->real->pMethods->xClose(r->real);
}

static int file_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
    return real(f)->pMethods->xRead(real(f), p, n, at);
}

static int file_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    (void)p;
    (void)n;
    (void)at;
    replicated_error(self(f), SQLITE_IOERR_WRITE,
                     "writing past the WAL is refused");
    return SQLITE_IOERR_WRITE;
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    (void)size;
    replicated_error(self(f), SQLITE_IOERR_TRUNCATE,
                     "truncating the file is refused");
    return SQLITE_IOERR_TRUNCATE;
}

static int file_sync(sqlite3_file *f, int flags)
{
    (void)f;
    (void)flags;
    return SQLITE_OK; /* nothing was written */
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return real(f)->pMethods->xFileSize(real(f), size);
}

static int file_lock(sqlite3_file *f, int level)
{
    struct replicated *r = self(f);
    int rc = SQLITE_OK;

    if (level == SQLITE_LOCK_SHARED) {
        if (replicated_pristine(r)) {
            rc = lock_pristine_shared(r);
        }
        return rc != SQLITE_OK
                   ? rc : real(f)->pMethods->xLock(real(f), level);
    }
    if (level == SQLITE_LOCK_RESERVED && !r->readonly &&
        replicated_pristine(r)) {
        return lock_pristine_reserved(r);
    }
    return SQLITE_BUSY;
}

static int file_unlock(sqlite3_file *f, int level)
{
    return real(f)->pMethods->xUnlock(real(f), level);
}

static int file_check_reserved(sqlite3_file *f, int *out)
{
    return real(f)->pMethods->xCheckReservedLock(real(f), out);
}

static int file_sector_size(sqlite3_file *f)
{
    return real(f)->pMethods->xSectorSize(real(f));
}

/* POWERSAFE_OVERWRITE: without it SQLite repeats the commit frame. */
static int file_characteristics(sqlite3_file *f)
{
    int flags = real(f)->pMethods->xDeviceCharacteristics(real(f));

    return (flags & ~SQLITE_IOCAP_BATCH_ATOMIC) |
           SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static int file_fetch(sqlite3_file *f, sqlite3_int64 at, int n, void **p)
{
    return real(f)->pMethods->xFetch(real(f), at, n, p);
}

static int file_unfetch(sqlite3_file *f, sqlite3_int64 at, void *p)
{
    return real(f)->pMethods->xUnfetch(real(f), at, p);
}

/* ---- Shared memory -------------------------------------------------------------- */

static int shm_map(sqlite3_file *f, int region, int size, int extend,
                   void volatile **p)
{
    int rc = real(f)->pMethods->xShmMap(real(f), region, size, extend, p);

    if (rc == SQLITE_OK && region == 0) {
        self(f)->index = *p;
    }
    return rc;
}

static int shm_unlock(struct replicated *r, int offset, int n, int flags)
{
    if (offset == LOCK_WRITE && n == 1 && (flags & SQLITE_SHM_EXCLUSIVE) &&
        r->write != WRITE_NONE) {
        return lock_write_release(r);
    }
    if (flags & SQLITE_SHM_SHARED) {
        r->read_locks &= ~(((1u << n) - 1) << offset);
        if (r->parked == PARK_NEW_SNAPSHOT) {
            lock_write_release(r); /* it did not come back for the lock */
        }
    }
    return r->real->pMethods->xShmLock(r->real, offset, n, flags);
}

static int shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
    struct replicated *r = self(f);
    bool exclusive = (flags & SQLITE_SHM_EXCLUSIVE) != 0;

    if (flags & SQLITE_SHM_UNLOCK) {
        return shm_unlock(r, offset, n, flags);
    }
    if (exclusive && offset == LOCK_WRITE && n == 1) {
        return lock_write(r);
    }
    if (exclusive && ((offset == LOCK_CHECKPOINT && n == 1) ||
                      (offset == LOCK_READ_0 + 1 &&
                       n == LOCK_COUNT - LOCK_READ_0 - 1))) {
        return SQLITE_BUSY;
    }
    if (!exclusive && offset >= LOCK_READ_0 && n == 1) {
        return lock_read(r, offset, flags);
    }
    return r->real->pMethods->xShmLock(r->real, offset, n, flags);
}

static void shm_barrier(sqlite3_file *f)
{
    real(f)->pMethods->xShmBarrier(real(f));
}

static int shm_unmap(sqlite3_file *f, int delete_it)
{
    struct replicated *r = self(f);

    (void)delete_it; /* others use it, the daemon first of all */
    if (r->write != WRITE_NONE) {
        lock_write_release(r);
    }
    r->index = NULL;
    r->read_locks = 0;
    return r->real->pMethods->xShmUnmap(r->real, 0);
}

/* ---- PRAGMAs ----------------------------------------------------------------------- */

static int answer(char **args, const char *text)
{
    args[0] = sqlite3_mprintf("%s", text);
    return args[0] != NULL ? SQLITE_OK : SQLITE_NOMEM;
}

static int refuse(char **args, const char *text)
{
    args[0] = sqlite3_mprintf("flotilla: %s", text);
    return SQLITE_ERROR;
}

static int pragma_read_level(struct replicated *r, char **args)
{
    const char *level = args[2];

    if (level != NULL && sqlite3_stricmp(level, "linearizable") == 0) {
        r->linearizable = true;
    } else if (level != NULL && sqlite3_stricmp(level, "local") == 0) {
        r->linearizable = false;
    } else if (level != NULL) {
        return refuse(args, "flotilla_read is \"local\" or \"linearizable\"");
    }
    return answer(args, r->linearizable ? "linearizable" : "local");
}

static int pragma_commit_timeout(struct replicated *r, char **args)
{
    char text[24];

    if (args[2] != NULL) {
        int ms = atoi(args[2]);
        if (ms < 1 || ms > 3600000) {
            return refuse(args, "flotilla_commit_timeout is in milliseconds, "
                                "1 to 3600000");
        }
        r->commit_timeout_ms = ms;
    }
    sqlite3_snprintf(sizeof text, text, "%d", r->commit_timeout_ms);
    return answer(args, text);
}

/* As SQLite's getAutoVacuum(). */
static int auto_vacuum_value(const char *s)
{
    int n;

    if (sqlite3_stricmp(s, "none") == 0) {
        return 0;
    }
    if (sqlite3_stricmp(s, "full") == 0) {
        return 1;
    }
    if (sqlite3_stricmp(s, "incremental") == 0) {
        return 2;
    }
    n = atoi(s);
    return n >= 0 && n <= 2 ? n : 0;
}

/* What the first page will be like; SQLite goes on to do its own part. */
static int pragma_first_page(struct replicated *r, const char *name,
                             const char *value)
{
    if (value == NULL) {
        return SQLITE_NOTFOUND;
    }
    if (sqlite3_stricmp(name, "page_size") == 0) {
        int n = atoi(value);
        if (n >= 512 && n <= 65536 && (n & (n - 1)) == 0) {
            r->first_page_size = (unsigned)n;
        }
    } else if (sqlite3_stricmp(name, "auto_vacuum") == 0) {
        r->first_auto_vacuum = auto_vacuum_value(value);
    }
    return SQLITE_NOTFOUND;
}

/* args: [0] out: answer or message, [1] name, [2] value or NULL. */
static int pragma(struct replicated *r, char **args)
{
    const char *name = args[1], *value = args[2];

    if (sqlite3_stricmp(name, "journal_mode") == 0) {
        /* An empty database says "delete" and becomes a WAL database with its
         * first write, of which setting the mode is one, as in SQLite. */
        return value == NULL || sqlite3_stricmp(value, "wal") == 0
                   ? SQLITE_NOTFOUND
                   : refuse(args, "journal_mode is always WAL on a replicated "
                                  "database");
    }
    if (sqlite3_stricmp(name, "locking_mode") == 0) {
        return value != NULL && sqlite3_stricmp(value, "exclusive") == 0
                   ? refuse(args, "locking_mode is always NORMAL on a "
                                  "replicated database")
                   : SQLITE_NOTFOUND;
    }
    if (sqlite3_stricmp(name, "flotilla_read") == 0) {
        return pragma_read_level(r, args);
    }
    if (sqlite3_stricmp(name, "flotilla_commit_timeout") == 0) {
        return pragma_commit_timeout(r, args);
    }
    return pragma_first_page(r, name, value);
}

static int file_control(sqlite3_file *f, int op, void *arg)
{
    struct replicated *r = self(f);
    int rc;

    switch (op) {
    case SQLITE_FCNTL_PDB:
        r->pdb = arg;
        return SQLITE_OK;
    case SQLITE_FCNTL_BUSYHANDLER:
        r->busy = arg;
        return SQLITE_OK;
    case SQLITE_FCNTL_PRAGMA:
        rc = pragma(r, arg);
        if (rc != SQLITE_NOTFOUND) {
            return rc;
        }
        break;
    case SQLITE_FCNTL_SIZE_HINT: /* would make the file longer */
    case SQLITE_FCNTL_CHUNK_SIZE:
        return SQLITE_OK;
    default:
        break;
    }
    rc = r->real->pMethods->xFileControl(r->real, op, arg);
    if (rc == SQLITE_OK && op == SQLITE_FCNTL_VFSNAME) {
        *(char **)arg = sqlite3_mprintf("flotilla/%z", *(char **)arg);
    }
    return rc;
}

/* ---- Tables ---------------------------------------------------------------------------- */

#define METHODS(version)                                                     \
    {                                                                        \
        .iVersion = version, .xClose = file_close, .xRead = file_read,       \
        .xWrite = file_write, .xTruncate = file_truncate,                    \
        .xSync = file_sync, .xFileSize = file_size, .xLock = file_lock,      \
        .xUnlock = file_unlock, .xCheckReservedLock = file_check_reserved,   \
        .xFileControl = file_control, .xSectorSize = file_sector_size,       \
        .xDeviceCharacteristics = file_characteristics, .xShmMap = shm_map,  \
        .xShmLock = shm_lock, .xShmBarrier = shm_barrier,                    \
        .xShmUnmap = shm_unmap, .xFetch = file_fetch,                        \
        .xUnfetch = file_unfetch                                             \
    }

/* A real file without xFetch must not look as if it had one. */
static const sqlite3_io_methods methods_2 = METHODS(2);
static const sqlite3_io_methods methods_3 = METHODS(3);

const sqlite3_io_methods *replicated_methods_for(const sqlite3_io_methods *m)
{
    if (m->iVersion < 2 || m->xShmMap == NULL) {
        return NULL;
    }
    return m->iVersion >= 3 && m->xFetch != NULL ? &methods_3 : &methods_2;
}

bool replicated_methods_ours(const sqlite3_io_methods *m)
{
    return m == &methods_2 || m == &methods_3;
}
