/* The replica's files: connections, locks, the wal-index, reading and hashing
 * pages, and making the files. See replica_impl.h. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/error.h"
#include "core/replica_impl.h"

/* How long making an empty database waits for somebody who looks at it. */
#define BASE_WAIT_MS 1000

/* How long remaking the files waits for others to close them, before it
 * leaves them with the old ones. */
#define REMAKE_WAIT_MS 500

uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void sleep_ms(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000,
                          .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&ts, NULL);
}

/* ---- SQLite's files --------------------------------------------------------- */

static bool disk_full(sqlite3_file *f)
{
    int err = 0;

    if (f == NULL || f->pMethods == NULL) {
        return false;
    }
    (void)f->pMethods->xFileControl(f, SQLITE_FCNTL_LAST_ERRNO, &err);
    return err == ENOSPC || err == EDQUOT || err == EFBIG;
}

int sqlite_error(int rc, sqlite3_file *f)
{
    switch (rc & 0xff) {
        case SQLITE_OK:
        case SQLITE_ROW:
        case SQLITE_DONE:
            return FLO_OK;
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
        case SQLITE_PROTOCOL:
            return FLO_BUSY;
        case SQLITE_NOMEM:
            return FLO_NOMEM;
        case SQLITE_FULL:
            return FLO_FULL;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
            return FLO_CORRUPT;
        default:
            return disk_full(f) ? FLO_FULL : FLO_IO;
    }
}

int connection_query(sqlite3 *db, const char *sql, char *text, size_t n)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (text != NULL) {
        text[0] = '\0';
    }
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(stmt);
    }
    if (rc == SQLITE_ROW && text != NULL) {
        const char *value = (const char *)sqlite3_column_text(stmt, 0);
        snprintf(text, n, "%s", value != NULL ? value : "");
    }
    (void)sqlite3_finalize(stmt);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* The plain VFS by name, so that a flotilla shim in the process never sees
 * these connections. */
int connection_open(const char *path, unsigned busy_ms, sqlite3 **out)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                SQLITE_OPEN_PRIVATECACHE;
    sqlite3 *db = NULL;
    int on = 1;
    int rc = sqlite3_open_v2(path, &db, flags, "unix");

    if (rc == SQLITE_OK) {
        (void)sqlite3_extended_result_codes(db, 1);
        (void)sqlite3_busy_timeout(db, (int)busy_ms);
        (void)sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
        (void)sqlite3_file_control(db, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
        (void)sqlite3_wal_autocheckpoint(db, 0);
        rc = connection_query(db, "PRAGMA mmap_size=0", NULL, 0);
    }
    if (rc != SQLITE_OK) {
        (void)sqlite3_close(db);
        return rc;
    }
    *out = db;
    return SQLITE_OK;
}

int connection_files(sqlite3 *db, sqlite3_file **dbf, sqlite3_file **walf)
{
    sqlite3_file *d = NULL;
    sqlite3_file *w = NULL;

    (void)sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &d);
    (void)sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &w);
    if (d == NULL || d->pMethods == NULL || w == NULL || w->pMethods == NULL) {
        return FLO_IO;
    }
    *dbf = d;
    *walf = w;
    return FLO_OK;
}

int shm_lock(sqlite3_file *dbf, int first, int n, bool exclusive)
{
    int mode = exclusive ? SQLITE_SHM_EXCLUSIVE : SQLITE_SHM_SHARED;
    int rc = dbf->pMethods->xShmLock(dbf, first, n, SQLITE_SHM_LOCK | mode);

    return sqlite_error(rc, NULL);
}

void shm_unlock(sqlite3_file *dbf, int first, int n, bool exclusive)
{
    int mode = exclusive ? SQLITE_SHM_EXCLUSIVE : SQLITE_SHM_SHARED;

    (void)dbf->pMethods->xShmLock(dbf, first, n, SQLITE_SHM_UNLOCK | mode);
}

int shm_region(sqlite3_file *dbf, uint32_t region, bool extend,
               wal_region **out)
{
    void volatile *p = NULL;
    int rc = dbf->pMethods->xShmMap(dbf, (int)region, WAL_REGION_BYTES, extend,
                                    &p);

    if (rc != SQLITE_OK) {
        /* The shared memory's errno is not kept: it can only be space. */
        return rc == SQLITE_IOERR_SHMSIZE ? FLO_FULL : sqlite_error(rc, dbf);
    }
    if (p == NULL) {
        return FLO_CORRUPT;
    }
    *out = p;
    return FLO_OK;
}

/* ---- Attaching --------------------------------------------------------------- */

static unsigned remaining(uint64_t deadline_ms)
{
    uint64_t now = now_ms();

    return now >= deadline_ms ? 0 : (unsigned)(deadline_ms - now);
}

/* A database that somebody took out of WAL mode is put back into it: its
 * content then tells whether anything else was changed. */
static int enter_wal_mode(struct replica *r, sqlite3 *db)
{
    char mode[16];
    int rc = connection_query(db, "PRAGMA journal_mode", mode, sizeof mode);

    if (rc == SQLITE_OK && strcmp(mode, "wal") != 0) {
        rc = connection_query(db, "PRAGMA journal_mode=WAL", mode, sizeof mode);
    }
    if (rc == SQLITE_OK && strcmp(mode, "wal") != 0) {
        rc = SQLITE_BUSY;
    }
    /* Opens the WAL, and recovers it when its index is not valid. */
    if (rc == SQLITE_OK) {
        rc = connection_query(db, "PRAGMA schema_version", NULL, 0);
    }
    if (rc != SQLITE_OK) {
        return replica_error(r, sqlite_error(rc, NULL), "%s: %s",
                             r->impl->path, sqlite3_errmsg(db));
    }
    return FLO_OK;
}

/* Once the WRITE lock is ours and the header is valid, nobody changes it. */
static int lock_and_read_header(struct replica *r, uint64_t deadline_ms)
{
    struct replica_impl *im = r->impl;
    wal_region *index;
    int rc = shm_region(im->dbf, 0, true, &index);

    while (rc == FLO_OK) {
        rc = shm_lock(im->dbf, WAL_LOCK_WRITE, 1, true);
        if (rc == FLO_OK) {
            if (wal_index_read(index, &im->hdr)) {
                im->write_locked = true;
                return FLO_OK;
            }
            /* Torn by somebody who died publishing: SQLite recovers it. */
            shm_unlock(im->dbf, WAL_LOCK_WRITE, 1, true);
            rc = enter_wal_mode(r, im->db);
        } else if (rc == FLO_BUSY && remaining(deadline_ms) > 0) {
            sleep_ms(2);
            rc = FLO_OK;
        }
    }
    return replica_error(r, rc, "%s: cannot take the WAL write lock%s",
                         im->path,
                         rc == FLO_BUSY ? ": another program is writing" : "");
}

/* A WAL without committed frames may be what a restart that was killed left:
 * it must not come back after a power loss. */
static int drop_stale_wal(struct replica *r)
{
    struct replica_impl *im = r->impl;
    sqlite3_int64 bytes = 0;
    int rc = im->walf->pMethods->xFileSize(im->walf, &bytes);

    if (rc == SQLITE_OK && im->hdr.mx_frame == 0 && bytes > 0) {
        rc = im->walf->pMethods->xTruncate(im->walf, 0);
        if (rc == SQLITE_OK) {
            rc = im->walf->pMethods->xSync(im->walf, SQLITE_SYNC_NORMAL);
        }
    }
    return rc == SQLITE_OK ? FLO_OK
                           : replica_error(r, sqlite_error(rc, im->walf),
                                           "%s-wal: cannot truncate", im->path);
}

static int read_sizes(struct replica *r)
{
    struct replica_impl *im = r->impl;
    sqlite3_int64 bytes = 0;
    char text[24];
    uint32_t page_size = wal_index_page_size(&im->hdr);
    int rc;

    /* From the checkpoint connection: the owner's runs no SQL any more. */
    if (im->hdr.mx_frame == 0) {
        rc = connection_query(im->ckpt, "PRAGMA page_size", text, sizeof text);
        if (rc != SQLITE_OK) {
            return replica_error(r, sqlite_error(rc, NULL), "%s: %s", im->path,
                                 sqlite3_errmsg(im->ckpt));
        }
        page_size = (uint32_t)strtoul(text, NULL, 10);
    }
    rc = im->dbf->pMethods->xFileSize(im->dbf, &bytes);
    if (rc != SQLITE_OK || !page_size_valid(page_size)) {
        return replica_error(r, FLO_CORRUPT, "%s: no valid page size",
                             im->path);
    }
    r->page_size = page_size;
    r->n_pages = im->hdr.n_page != 0
                     ? im->hdr.n_page
                     : (uint32_t)((bytes + page_size - 1) / page_size);
    r->wal_frames = im->hdr.mx_frame;
    return FLO_OK;
}

static void read_wal_sequence(struct replica_impl *im)
{
    uint8_t raw[WAL_HEADER_BYTES];
    struct wal_header h;

    im->wal_sequence = 0;
    if (im->walf->pMethods->xRead(im->walf, raw, sizeof raw, 0) == SQLITE_OK &&
        wal_decode_header(raw, &h) == FLO_OK) {
        im->wal_sequence = h.sequence;
    }
}

static int attach_checkpointer(struct replica *r, uint64_t deadline_ms)
{
    struct replica_impl *im = r->impl;
    int rc = connection_open(im->path, remaining(deadline_ms), &im->ckpt);

    if (rc == SQLITE_OK) {
        rc = connection_query(im->ckpt, "PRAGMA synchronous=NORMAL", NULL, 0);
    }
    if (rc == SQLITE_OK) {
        rc = connection_query(im->ckpt, "PRAGMA schema_version", NULL, 0);
    }
    if (rc != SQLITE_OK) {
        return replica_error(
            r, sqlite_error(rc, NULL), "%s: %s", im->path,
            im->ckpt != NULL ? sqlite3_errmsg(im->ckpt) : sqlite3_errstr(rc));
    }
    return connection_files(im->ckpt, &im->ckpt_dbf, &im->ckpt_walf);
}

int replica_attach(struct replica *r, uint64_t deadline_ms)
{
    struct replica_impl *im = r->impl;
    int rc = connection_open(im->path, remaining(deadline_ms), &im->db);

    if (rc != SQLITE_OK) {
        return replica_error(r, sqlite_error(rc, NULL), "%s: %s", im->path,
                             sqlite3_errstr(rc));
    }
    rc = enter_wal_mode(r, im->db);
    if (rc == FLO_OK) {
        rc = connection_files(im->db, &im->dbf, &im->walf);
    }
    if (rc == FLO_OK) {
        rc = lock_and_read_header(r, deadline_ms);
    }
    if (rc == FLO_OK) {
        rc = drop_stale_wal(r);
    }
    if (rc == FLO_OK) {
        rc = attach_checkpointer(r, deadline_ms);
    }
    if (rc == FLO_OK) {
        rc = read_sizes(r);
    }
    if (rc != FLO_OK) {
        replica_detach(r);
        return rc;
    }
    read_wal_sequence(im);
    return FLO_OK;
}

void replica_detach(struct replica *r)
{
    struct replica_impl *im = r->impl;

    if (im->write_locked) {
        shm_unlock(im->dbf, WAL_LOCK_WRITE, 1, true);
        im->write_locked = false;
    }
    (void)sqlite3_close(im->ckpt);
    (void)sqlite3_close(im->db);
    im->ckpt = im->db = NULL;
    im->dbf = im->walf = im->ckpt_dbf = im->ckpt_walf = NULL;
}

/* ---- Reading pages -------------------------------------------------------------- */

int wal_find(sqlite3_file *dbf, uint32_t pgno, uint32_t first, uint32_t last,
             uint32_t *frame)
{
    uint32_t lowest;
    uint32_t region;

    *frame = 0;
    if (last < first || last == 0) {
        return FLO_OK;
    }
    lowest = wal_region_of(first);
    region = wal_region_of(last);
    for (;; region--) {
        wal_region *p;
        int rc = shm_region(dbf, region, false, &p);
        if (rc != FLO_OK) {
            return rc;
        }
        *frame = wal_region_find(p, region, pgno, first, last);
        if (*frame != 0 || region == lowest) {
            return FLO_OK;
        }
    }
}

/* A page that is in no frame and beyond the end of the file reads as zeros,
 * as it does for SQLite. */
int wal_read_page(sqlite3_file *dbf, sqlite3_file *walf, uint32_t page_size,
                  uint32_t pgno, uint32_t first, uint32_t last, uint8_t *image)
{
    sqlite3_file *f = dbf;
    sqlite3_int64 at = (sqlite3_int64)(pgno - 1) * page_size;
    uint32_t frame;
    int rc = wal_find(dbf, pgno, first, last, &frame);

    if (rc != FLO_OK) {
        return rc;
    }
    if (frame != 0) {
        f = walf;
        at = wal_frame_offset(frame, page_size) + WAL_FRAME_HEADER;
    }
    rc = f->pMethods->xRead(f, image, (int)page_size, at);
    if (rc == SQLITE_IOERR_SHORT_READ) {
        return frame == 0 ? FLO_OK : FLO_CORRUPT;
    }
    return sqlite_error(rc, NULL);
}

static int hash_pages(struct replica *r, uint8_t *image, uint64_t *checksum)
{
    struct replica_impl *im = r->impl;
    uint64_t *hashes = posfile_hashes(&im->pos);
    uint32_t lock_page = wal_lock_page(r->page_size);
    uint64_t sum = 0;
    wal_region *index;
    uint32_t first;
    uint32_t pgno;
    int rc = shm_region(im->dbf, 0, false, &index);

    if (rc != FLO_OK) {
        return rc;
    }
    first = wal_index_backfill(index) + 1;
    for (pgno = 1; pgno <= r->n_pages; pgno++) {
        hashes[pgno - 1] = 0;
        if (pgno == lock_page) {
            continue;
        }
        rc = wal_read_page(im->dbf, im->walf, r->page_size, pgno, first,
                           im->hdr.mx_frame, image);
        if (rc != FLO_OK) {
            return rc;
        }
        hashes[pgno - 1] = page_hash(pgno, image, r->page_size);
        sum ^= hashes[pgno - 1];
    }
    *checksum = sum;
    return FLO_OK;
}

int replica_hash_all(struct replica *r, uint64_t *checksum)
{
    uint8_t *image;
    int rc = posfile_reserve(&r->impl->pos, r->n_pages);

    if (rc != FLO_OK) {
        return replica_error(r, rc, "%s-pos: cannot grow", r->impl->path);
    }
    image = malloc(r->page_size);
    if (image == NULL) {
        return FLO_NOMEM;
    }
    rc = hash_pages(r, image, checksum);
    free(image);
    return rc == FLO_OK
               ? FLO_OK
               : replica_error(r, rc, "%s: cannot read the pages: %s",
                               r->impl->path, flo_strerror(rc));
}

/* ---- Publishing ------------------------------------------------------------------ */

int replica_publish(struct replica *r, struct wal_index_hdr *hdr)
{
    struct replica_impl *im = r->impl;
    wal_region *index;
    int rc = shm_region(im->dbf, 0, true, &index);

    if (rc != FLO_OK) {
        return rc;
    }
    wal_index_seal(hdr);
    im->dbf->pMethods->xShmBarrier(im->dbf);
    wal_index_store(index, 1, hdr);
    im->dbf->pMethods->xShmBarrier(im->dbf);
    wal_index_store(index, 0, hdr);
    im->dbf->pMethods->xShmBarrier(im->dbf);
    im->hdr = *hdr;
    r->wal_frames = hdr->mx_frame;
    return FLO_OK;
}

/* Make the first frame after the committed ones invalid: what follows may be a
 * transaction with its commit mark that was never published, and no recovery
 * is to find it later. */
static int break_tail(struct replica *r)
{
    static const uint8_t none[WAL_FRAME_HEADER];
    struct replica_impl *im = r->impl;
    sqlite3_int64 at = wal_frame_offset(im->hdr.mx_frame + 1, r->page_size);
    uint8_t raw[WAL_FRAME_HEADER];
    int rc = im->walf->pMethods->xRead(im->walf, raw, sizeof raw, at);

    if (rc == SQLITE_IOERR_SHORT_READ ||
        (rc == SQLITE_OK && memcmp(raw, none, sizeof none) == 0)) {
        return FLO_OK;
    }
    if (rc == SQLITE_OK) {
        rc = im->walf->pMethods->xWrite(im->walf, none, sizeof none, at);
    }
    return sqlite_error(rc, im->walf);
}

int replica_drop_tail(struct replica *r)
{
    struct replica_impl *im = r->impl;
    uint32_t mx_frame = im->hdr.mx_frame;
    wal_region *p;
    int rc = r->page_size != 0 ? break_tail(r) : FLO_OK;

    /* Later regions are wiped when their first frame is entered. */
    if (rc != FLO_OK || mx_frame == 0) {
        return rc;
    }
    rc = shm_region(im->dbf, wal_region_of(mx_frame), true, &p);
    if (rc == FLO_OK) {
        wal_region_clean(p, mx_frame);
    }
    return rc;
}

/* ---- Making files ----------------------------------------------------------------- */

int replica_stamp(const struct replica_impl *im, uint8_t out[8])
{
    struct stat st;
    uint64_t parts[6];
    uint64_t hash;

    /* By path: a descriptor of our own must never be closed. */
    if (stat(im->path, &st) != 0) {
        return FLO_IO;
    }
    parts[0] = (uint64_t)st.st_ino;
    parts[1] = (uint64_t)st.st_size;
    parts[2] = (uint64_t)st.st_mtim.tv_sec;
    parts[3] = (uint64_t)st.st_mtim.tv_nsec;
    parts[4] = (uint64_t)st.st_ctim.tv_sec;
    parts[5] = (uint64_t)st.st_ctim.tv_nsec;
    hash = XXH3_64bits(parts, sizeof parts);
    memcpy(out, &hash, 8);
    return FLO_OK;
}

int replica_looks_empty(struct replica *r, bool *empty)
{
    static const char *const zero[] = {
        "SELECT count(*) FROM sqlite_master", "PRAGMA user_version",
        "PRAGMA application_id", "PRAGMA freelist_count"};
    char text[24];
    size_t i;

    *empty = r->n_pages == 1;
    for (i = 0; *empty && i < sizeof zero / sizeof zero[0]; i++) {
        int rc =
            connection_query(r->impl->ckpt, zero[i], text, sizeof text);
        if (rc != SQLITE_OK) {
            return sqlite_error(rc, NULL);
        }
        *empty = strcmp(text, "0") == 0;
    }
    return FLO_OK;
}

static int create_base(struct replica *r, uint32_t page_size)
{
    char sql[64];
    sqlite3 *db;
    int rc = connection_open(r->impl->path, BASE_WAIT_MS, &db);

    if (rc != SQLITE_OK) {
        return replica_error(r, sqlite_error(rc, NULL), "%s: %s",
                             r->impl->path, sqlite3_errstr(rc));
    }
    snprintf(sql, sizeof sql, "PRAGMA page_size=%u", page_size);
    rc = connection_query(db, sql, NULL, 0);
    if (rc == SQLITE_OK) {
        rc = connection_query(db, "PRAGMA journal_mode=WAL", NULL, 0);
    }
    if (rc != SQLITE_OK) {
        replica_error(r, FLO_IO, "%s: %s", r->impl->path, sqlite3_errmsg(db));
    }
    (void)sqlite3_close(db);
    return sqlite_error(rc, NULL);
}

int replica_make_base(struct replica *r, uint32_t page_size)
{
    struct replica_impl *im = r->impl;
    uint64_t checksum;
    bool empty = false;
    int rc = create_base(r, page_size);

    if (rc == FLO_OK) {
        rc = replica_attach(r, now_ms() + BASE_WAIT_MS);
    }
    if (rc == FLO_OK) {
        rc = replica_looks_empty(r, &empty);
    }
    if (rc == FLO_OK && (!empty || r->page_size != page_size)) {
        rc = replica_error(r, FLO_MISMATCH, "%s: another program made it",
                           im->path);
    }
    if (rc == FLO_OK) {
        rc = replica_hash_all(r, &checksum);
    }
    if (rc != FLO_OK) {
        if (im->db != NULL) {
            replica_detach(r);
        }
        replica_set_pristine(r);
        return rc;
    }
    replica_set_base(r, checksum);
    replica_store_position(r);
    return FLO_OK;
}

/* Alone with the files: everybody in WAL mode keeps SHARED on the database. */
static int truncate_alone(struct replica *r)
{
    struct replica_impl *im = r->impl;
    uint64_t deadline = now_ms() + REMAKE_WAIT_MS;
    char other[PATH_BYTES + 8];
    sqlite3_file *f = NULL;
    sqlite3 *db;
    int rc = connection_open(im->path, 0, &db);

    if (rc != SQLITE_OK) {
        return sqlite_error(rc, NULL);
    }
    (void)sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &f);
    do {
        rc = f->pMethods->xLock(f, SQLITE_LOCK_SHARED);
        if (rc == SQLITE_OK) {
            rc = f->pMethods->xLock(f, SQLITE_LOCK_EXCLUSIVE);
        }
        if (rc != SQLITE_OK) {
            (void)f->pMethods->xUnlock(f, SQLITE_LOCK_NONE);
            sleep_ms(5);
        }
    } while (rc == SQLITE_BUSY && remaining(deadline) > 0);
    if (rc == SQLITE_OK) {
        /* The WAL first: without it, what is left is still a database. */
        replica_path(im, "-wal", other);
        (void)unlink(other);
        replica_path(im, "-shm", other);
        (void)unlink(other);
        replica_path(im, "-journal", other);
        (void)unlink(other);
        rc = f->pMethods->xTruncate(f, 0);
        (void)f->pMethods->xUnlock(f, SQLITE_LOCK_NONE);
    }
    (void)sqlite3_close(db);
    return sqlite_error(rc, NULL);
}

/* Others keep the files they have open, and see the old content for as long as
 * they do; whoever opens from now on gets the new ones. */
static int unlink_all(struct replica *r)
{
    static const char *const suffix[] = {"-wal", "-shm", "-journal", ""};
    char path[PATH_BYTES + 8];
    size_t i;

    for (i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
        replica_path(r->impl, suffix[i], path);
        if (unlink(path) != 0 && errno != ENOENT) {
            return replica_error(r, FLO_IO, "%s: cannot delete: %s", path,
                                 strerror(errno));
        }
    }
    return FLO_OK;
}

int replica_remake(struct replica *r, uint32_t page_size)
{
    int rc;

    if (r->impl->db != NULL) {
        replica_detach(r);
    }
    /* The position goes first: killed from here on, nothing is believed. */
    replica_set_pristine(r);
    replica_store_position(r);
    rc = truncate_alone(r);
    if (rc != FLO_OK) {
        rc = unlink_all(r);
    }
    if (rc == FLO_OK && page_size != 0) {
        rc = replica_make_base(r, page_size);
    }
    return rc;
}
