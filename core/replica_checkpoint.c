/* Syncing, checkpointing and restarting the WAL.
 *
 * SQLite does the checkpoints, PASSIVE ones, in the background. The restart is
 * by hand, because one through SQLite's API would give the WRITE lock away.
 * It takes the checkpoint lock too: a checkpointer that has read the header
 * before a restart and looks at the checkpoint information after it would take
 * old frame numbers for new ones. */
#include <string.h>

#include "core/buf.h"
#include "core/error.h"
#include "core/replica_impl.h"
#include "core/wal.h"

/* The salts and mxFrame of a WAL, in one word. */
static uint64_t wal_state(const struct wal_index_hdr *h)
{
    return load_u64(h->salt) ^ ((uint64_t)h->mx_frame << 32 | h->mx_frame);
}

int replica_sync(struct replica *r)
{
    struct replica_impl *im = r->impl;
    int rc = SQLITE_OK;

    if (im->ckpt != NULL) {
        rc = im->ckpt_walf->pMethods->xSync(im->ckpt_walf, SQLITE_SYNC_NORMAL);
    }
    if (rc != SQLITE_OK) {
        return sqlite_error(rc, im->ckpt_walf);
    }
    return posfile_sync(&im->pos);
}

/* A checkpoint by somebody else may have left out the sync. */
static int sync_database(struct replica_impl *im,
                         const struct wal_index_hdr *before)
{
    struct wal_index_hdr after;
    wal_region *index;
    int rc = shm_region(im->ckpt_dbf, 0, false, &index);

    if (rc != FLO_OK) {
        return rc;
    }
    rc = im->ckpt_dbf->pMethods->xSync(im->ckpt_dbf, SQLITE_SYNC_NORMAL);
    if (rc != SQLITE_OK) {
        return sqlite_error(rc, im->ckpt_dbf);
    }
    if (wal_index_read(index, &after) && wal_index_equal(before, &after)) {
        __atomic_store_n(&im->synced_state, wal_state(&after),
                         __ATOMIC_RELEASE);
    }
    return FLO_OK;
}

int replica_checkpoint(struct replica *r, bool *done)
{
    struct replica_impl *im = r->impl;
    struct wal_index_hdr hdr;
    wal_region *index;
    int frames = 0;
    int copied = 0;
    int rc;

    *done = true;
    if (im->ckpt == NULL) {
        return FLO_OK;
    }
    *done = false;
    rc = shm_region(im->ckpt_dbf, 0, false, &index);
    if (rc != FLO_OK || !wal_index_read(index, &hdr)) {
        return rc;
    }
    rc = sqlite3_wal_checkpoint_v2(im->ckpt, "main", SQLITE_CHECKPOINT_PASSIVE,
                                   &frames, &copied);
    if ((rc & 0xff) == SQLITE_BUSY) {
        return FLO_OK;
    }
    if (rc != SQLITE_OK) {
        return sqlite_error(rc, im->ckpt_dbf);
    }
    if (frames != copied || (uint32_t)frames < hdr.mx_frame) {
        return FLO_OK;
    }
    rc = sync_database(im, &hdr);
    if (rc == FLO_OK) {
        *done = true;
    }
    return rc;
}

/* ---- Restart ------------------------------------------------------------------------ */

static void new_header(struct replica_impl *im, struct wal_index_hdr *h)
{
    *h = im->hdr;
    h->mx_frame = 0;
    memset(h->frame_cksum, 0, sizeof h->frame_cksum);
    store_u32_be(h->salt, load_u32_be(h->salt) + 1);
    sqlite3_randomness(4, h->salt + 4);
}

/* With the locks: nobody reads the WAL, nobody copies it. */
static int restart_locked(struct replica *r, wal_region *index)
{
    struct replica_impl *im = r->impl;
    struct wal_index_hdr h;
    struct pos_slot slot;
    int i;
    int rc;

    new_header(im, &h);
    slot = replica_slot(r, r->position, r->n_pages, &h);
    slot.base = im->base;
    replica_store_pending(r, &slot);
    /* First: frames of the new WAL must never count as copied. Killed after
     * this, the old ones are copied once more. */
    wal_index_set_backfill(index, 0, 0);
    rc = replica_publish(r, &h);
    if (rc != FLO_OK) {
        return rc;
    }
    replica_use_pending(r);
    im->wal_sequence++;
    wal_index_set_mark(index, 1, 0);
    for (i = 2; i < WAL_READERS; i++) {
        wal_index_set_mark(index, i, WAL_MARK_UNUSED);
    }
    rc = im->walf->pMethods->xTruncate(im->walf, 0);
    if (rc == SQLITE_OK) {
        rc = im->walf->pMethods->xSync(im->walf, SQLITE_SYNC_NORMAL);
    }
    return rc == SQLITE_OK ? FLO_OK
                           : replica_error(r, sqlite_error(rc, im->walf),
                                           "%s-wal: cannot truncate", im->path);
}

int replica_restart_wal(struct replica *r)
{
    struct replica_impl *im = r->impl;
    wal_region *index;
    int rc;

    if (!r->has_fence || im->app.active) {
        return FLO_BUSY;
    }
    if (im->db == NULL || im->hdr.mx_frame == 0) {
        return FLO_OK;
    }
    rc = shm_region(im->dbf, 0, true, &index);
    if (rc != FLO_OK) {
        return rc;
    }
    if (wal_index_backfill(index) != im->hdr.mx_frame ||
        __atomic_load_n(&im->synced_state, __ATOMIC_ACQUIRE) !=
            wal_state(&im->hdr)) {
        return FLO_BUSY;
    }
    rc = shm_lock(im->dbf, WAL_LOCK_CHECKPOINT, 1, true);
    if (rc != FLO_OK) {
        return rc;
    }
    rc = shm_lock(im->dbf, WAL_LOCK_READ + 1, WAL_READERS - 1, true);
    if (rc == FLO_OK) {
        rc = restart_locked(r, index);
        shm_unlock(im->dbf, WAL_LOCK_READ + 1, WAL_READERS - 1, true);
    }
    shm_unlock(im->dbf, WAL_LOCK_CHECKPOINT, 1, true);
    return rc;
}
