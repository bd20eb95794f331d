/* A consistent view of all pages, readable in the background.
 *
 * Each view has a connection of its own, because SQLite counts locks per
 * connection, and takes a WAL read lock on it by hand, as SQLite's readers do:
 *
 *   - everything copied into the database file: READ 0. Nobody copies while
 *     it is held, so the file alone is the content.
 *   - otherwise READ i (1 to 4) whose mark is our mxFrame: checkpoints copy
 *     nothing beyond a mark in use, and the WAL is not restarted.
 *
 * After the lock is taken, what is published must still be what it was. */
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/replica_impl.h"

#define TRIES 100

struct replica_view_impl
{
    sqlite3 *db;
    sqlite3_file *dbf;
    sqlite3_file *walf;
    int reader;     /* READ lock held, -1: none */
    uint32_t first; /* frames [first, last] are looked at; none: last 0 */
    uint32_t last;
};

/* ---- The read lock -------------------------------------------------------------------- */

static bool still_published(struct replica_view_impl *vi, wal_region *index,
                            const struct wal_index_hdr *hdr)
{
    struct wal_index_hdr h;

    vi->dbf->pMethods->xShmBarrier(vi->dbf);
    return wal_index_read(index, &h) && wal_index_equal(&h, hdr);
}

static int lock_whole_file(struct replica_view_impl *vi, wal_region *index,
                           const struct wal_index_hdr *hdr)
{
    int rc = shm_lock(vi->dbf, WAL_LOCK_READ, 1, false);

    if (rc != FLO_OK) {
        return rc;
    }
    if (!still_published(vi, index, hdr)) {
        shm_unlock(vi->dbf, WAL_LOCK_READ, 1, false);
        return FLO_BUSY;
    }
    vi->reader = 0;
    vi->first = 1;
    vi->last = 0;
    return FLO_OK;
}

/* The reader whose mark is the highest that is not beyond frame; 0: none. */
static int best_mark(wal_region *index, uint32_t frame, uint32_t *mark)
{
    int best = 0;
    int i;

    *mark = 0;
    for (i = 1; i < WAL_READERS; i++) {
        uint32_t m = wal_index_mark(index, i);
        if (m <= frame && m >= *mark) {
            *mark = m;
            best = i;
        }
    }
    return best;
}

/* Set the mark of a reader that nobody uses; 0: all are in use. */
static int claim_mark(struct replica_view_impl *vi, wal_region *index,
                      uint32_t frame)
{
    int i;

    for (i = 1; i < WAL_READERS; i++) {
        if (shm_lock(vi->dbf, WAL_LOCK_READ + i, 1, true) == FLO_OK) {
            wal_index_set_mark(index, i, frame);
            shm_unlock(vi->dbf, WAL_LOCK_READ + i, 1, true);
            return i;
        }
    }
    return 0;
}

static int lock_mark(struct replica_view_impl *vi, wal_region *index,
                     const struct wal_index_hdr *hdr)
{
    uint32_t mark;
    int reader = best_mark(index, hdr->mx_frame, &mark);
    int rc;

    if (reader == 0 || mark < hdr->mx_frame) {
        int claimed = claim_mark(vi, index, hdr->mx_frame);
        if (claimed != 0) {
            reader = claimed;
            mark = hdr->mx_frame;
        }
    }
    if (reader == 0) {
        return FLO_BUSY;
    }
    rc = shm_lock(vi->dbf, WAL_LOCK_READ + reader, 1, false);
    if (rc != FLO_OK) {
        return rc;
    }
    /* Read before the header is looked at again: a checkpointer that got this
     * far had seen no frame beyond ours. */
    vi->first = wal_index_backfill(index) + 1;
    if (!still_published(vi, index, hdr) ||
        wal_index_mark(index, reader) != mark) {
        shm_unlock(vi->dbf, WAL_LOCK_READ + reader, 1, false);
        return FLO_BUSY;
    }
    vi->reader = reader;
    vi->last = hdr->mx_frame;
    return FLO_OK;
}

static int lock_view(struct replica_view_impl *vi,
                     const struct wal_index_hdr *hdr)
{
    wal_region *index;
    int i;
    int rc = shm_region(vi->dbf, 0, false, &index);

    for (i = 0; rc == FLO_OK && i < TRIES; i++) {
        rc = FLO_BUSY;
        if (!still_published(vi, index, hdr)) {
            return FLO_BUSY; /* a client's commit is being settled */
        }
        if (wal_index_backfill(index) == hdr->mx_frame) {
            rc = lock_whole_file(vi, index, hdr);
        }
        if (rc == FLO_BUSY) {
            rc = lock_mark(vi, index, hdr);
        }
        if (rc != FLO_BUSY) {
            return rc;
        }
        sleep_ms(i < 10 ? 0 : 1);
        rc = FLO_OK;
    }
    return rc == FLO_OK ? FLO_BUSY : rc;
}

/* ---- Opening, reading, closing ----------------------------------------------------------- */

static int open_files(struct replica *r, struct replica_view *v)
{
    struct replica_view_impl *vi = v->impl;
    int rc = connection_open(r->impl->path, 100, &vi->db);

    if (rc == SQLITE_OK) {
        rc = connection_query(vi->db, "PRAGMA schema_version", NULL, 0);
    }
    if (rc != SQLITE_OK) {
        return replica_error(r, sqlite_error(rc, NULL), "%s: view: %s",
                             r->impl->path, sqlite3_errstr(rc));
    }
    rc = connection_files(vi->db, &vi->dbf, &vi->walf);
    return rc == FLO_OK ? lock_view(vi, &r->impl->hdr) : rc;
}

static int copy_hashes(const struct replica *r, struct replica_view *v)
{
    size_t bytes = (size_t)r->n_pages * sizeof *v->hashes;

    v->hashes = malloc(bytes);
    if (v->hashes == NULL) {
        return FLO_NOMEM;
    }
    memcpy(v->hashes, posfile_hashes(&r->impl->pos), bytes);
    return FLO_OK;
}

int replica_view_open(struct replica *r, struct replica_view *v)
{
    struct replica_view out = {.position = r->position,
                               .page_size = r->page_size,
                               .n_pages = r->n_pages};
    int rc;

    if (r->state == REPLICA_PRISTINE) {
        *v = (struct replica_view){0};
        return FLO_OK;
    }
    if (r->state != REPLICA_GOOD) {
        return FLO_DESYNCED;
    }
    out.impl = calloc(1, sizeof *out.impl);
    if (out.impl == NULL) {
        return FLO_NOMEM;
    }
    out.impl->reader = -1;
    rc = open_files(r, &out);
    if (rc == FLO_OK) {
        rc = copy_hashes(r, &out);
    }
    if (rc != FLO_OK) {
        replica_view_close(&out);
        return rc;
    }
    *v = out;
    return FLO_OK;
}

int replica_view_read(struct replica_view *v, uint32_t pgno, uint8_t *image)
{
    struct replica_view_impl *vi = v->impl;

    if (vi == NULL || pgno == 0 || pgno > v->n_pages) {
        return FLO_INVALID;
    }
    if (pgno == wal_lock_page(v->page_size)) {
        memset(image, 0, v->page_size);
        return FLO_OK;
    }
    return wal_read_page(vi->dbf, vi->walf, v->page_size, pgno, vi->first,
                         vi->last, image);
}

void replica_view_close(struct replica_view *v)
{
    struct replica_view_impl *vi = v->impl;

    if (vi != NULL) {
        if (vi->reader >= 0) {
            shm_unlock(vi->dbf, WAL_LOCK_READ + vi->reader, 1, false);
        }
        (void)sqlite3_close(vi->db);
        free(vi);
    }
    free(v->hashes);
    *v = (struct replica_view){0};
}
