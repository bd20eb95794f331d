/* The replica: fence, identity and the end of its life. What else belongs to
 * it, and where, is listed in replica_impl.h. */
#define _GNU_SOURCE
#include "core/replica.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/replica_impl.h"

int replica_error(struct replica *r, int rc, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(r->errmsg, sizeof r->errmsg, format, args);
    va_end(args);
    return rc;
}

void replica_path(const struct replica_impl *im, const char *suffix,
                  char out[PATH_BYTES + 8])
{
    assert(strlen(suffix) < 8 + 1);
    snprintf(out, PATH_BYTES + 8, "%s%s", im->path, suffix);
}

/* ---- Position slots ----------------------------------------------------------- */

struct pos_slot replica_slot(const struct replica *r, struct position p,
                             uint32_t n_pages, const struct wal_index_hdr *hdr)
{
    struct pos_slot s = {.txid = p.txid,
                         .checksum = p.checksum,
                         .n_pages = n_pages,
                         .page_size = r->page_size,
                         .mx_frame = hdr->mx_frame};

    memcpy(s.salt, hdr->salt, sizeof s.salt);
    if (s.mx_frame != 0) {
        memcpy(s.frame_cksum, hdr->frame_cksum, sizeof s.frame_cksum);
    } else {
        /* An empty WAL tells nothing; the file's times and size do. */
        uint8_t stamp[8] = {0};
        (void)replica_stamp(r->impl, stamp);
        memcpy(s.frame_cksum, stamp, sizeof s.frame_cksum);
    }
    return s;
}

void replica_store_pending(struct replica *r, const struct pos_slot *s)
{
    struct pos_slot out = *s;

    out.sequence = r->impl->sequence + 1;
    posfile_store(&r->impl->pos, 1 - r->impl->slot, &out);
}

void replica_use_pending(struct replica *r)
{
    r->impl->slot = 1 - r->impl->slot;
    r->impl->sequence++;
}

void replica_store_position(struct replica *r)
{
    struct pos_slot s =
        replica_slot(r, r->position, r->n_pages, &r->impl->hdr);

    s.base = r->impl->base;
    replica_store_pending(r, &s);
    replica_use_pending(r);
}

void replica_set_pristine(struct replica *r)
{
    r->state = REPLICA_PRISTINE;
    r->position = (struct position){0};
    r->page_size = 0;
    r->n_pages = 0;
    r->impl->base = 0;
    r->impl->base_page_size = 0;
    r->impl->col.valid = false;
    if (r->impl->db == NULL) {
        r->wal_frames = 0;
        r->impl->hdr = (struct wal_index_hdr){0};
    }
}

void replica_set_base(struct replica *r, uint64_t hash)
{
    uint32_t page_size = r->page_size;

    assert(r->impl->db != NULL);
    replica_set_pristine(r);
    r->impl->base = hash;
    r->impl->base_page_size = page_size;
}

/* ---- Fence ---------------------------------------------------------------------- */

int replica_give_fence(struct replica *r, uint64_t grant)
{
    int rc;

    if (!r->has_fence) {
        return FLO_BUSY;
    }
    /* A frame of ours beyond mxFrame would be written over by the client. */
    append_abort(r);
    rc = fence_set(&r->impl->fence, grant);
    if (rc != FLO_OK) {
        return replica_error(r, rc, "%s-fence: cannot write", r->impl->path);
    }
    r->impl->col.valid = false;
    fence_unlock(&r->impl->fence);
    r->has_fence = false;
    return FLO_OK;
}

static bool is_collected(const struct replica_impl *im,
                         const struct wal_index_hdr *h)
{
    return im->col.valid && h->mx_frame == im->col.last_frame &&
           h->n_page == im->col.n_pages &&
           memcmp(h->salt, im->col.salt, sizeof h->salt) == 0;
}

/* Is the last committed frame still in the file? Whoever restarted the WAL
 * without asking has written over it. */
static bool wal_is_ours(const struct replica *r)
{
    struct replica_impl *im = r->impl;
    uint8_t raw[WAL_FRAME_HEADER];
    struct wal_frame f;

    if (im->hdr.mx_frame == 0) {
        return true;
    }
    if (im->walf->pMethods->xRead(
            im->walf, raw, sizeof raw,
            wal_frame_offset(im->hdr.mx_frame, r->page_size)) != SQLITE_OK) {
        return false;
    }
    wal_decode_frame(raw, &f);
    return memcmp(f.salt, im->hdr.salt, sizeof f.salt) == 0 &&
           f.cksum[0] == im->hdr.frame_cksum[0] &&
           f.cksum[1] == im->hdr.frame_cksum[1];
}

/* Put back the committed header, unless the client published just what was
 * collected from it: that is replica_settle's to judge. */
static int repair_header(struct replica *r)
{
    struct replica_impl *im = r->impl;
    struct wal_index_hdr committed = im->hdr;
    struct wal_index_hdr h;
    wal_region *index;
    int rc = shm_region(im->dbf, 0, true, &index);

    if (rc != FLO_OK) {
        return rc;
    }
    if (wal_index_read(index, &h)) {
        if (is_collected(im, &h)) {
            return FLO_OK;
        }
        if (wal_index_equal(&h, &im->hdr)) {
            return replica_drop_tail(r);
        }
    }
    if (!wal_is_ours(r)) {
        return FLO_OK; /* replica_check_foreign finds it, and nothing is safe */
    }
    rc = replica_drop_tail(r);
    return rc == FLO_OK ? replica_publish(r, &committed) : rc;
}

int replica_take_fence(struct replica *r)
{
    int rc;

    if (r->has_fence) {
        return FLO_OK;
    }
    rc = fence_try_lock(&r->impl->fence);
    if (rc != FLO_OK) {
        return rc;
    }
    /* A late client that looks now must not find its number. */
    rc = fence_set(&r->impl->fence, 0);
    if (rc == FLO_OK && r->impl->db != NULL) {
        rc = repair_header(r);
    }
    if (rc != FLO_OK) {
        fence_unlock(&r->impl->fence);
        return replica_error(r, rc, "%s-fence: cannot take it back: %s",
                             r->impl->path, flo_strerror(rc));
    }
    r->has_fence = true;
    return FLO_OK;
}

/* ---- Identity -------------------------------------------------------------------- */

int replica_identify(struct replica *r, struct position p)
{
    if (r->state == REPLICA_GOOD) {
        return position_equal(r->position, p) ? FLO_OK : FLO_MISMATCH;
    }
    if (r->state != REPLICA_SUSPECT || p.txid == 0 ||
        r->position.checksum != p.checksum) {
        return FLO_MISMATCH;
    }
    r->position = p;
    r->state = REPLICA_GOOD;
    replica_store_position(r);
    return FLO_OK;
}

const uint64_t *replica_hashes(const struct replica *r)
{
    if (r->state == REPLICA_PRISTINE || r->state == REPLICA_BROKEN) {
        return NULL;
    }
    return posfile_hashes(&r->impl->pos);
}

static void set_content(struct replica *r, uint64_t checksum)
{
    if (r->state == REPLICA_GOOD && r->position.checksum == checksum) {
        return;
    }
    r->state = REPLICA_SUSPECT;
    r->position = (struct position){.txid = 0, .checksum = checksum};
}

int replica_rehash(struct replica *r)
{
    uint64_t checksum;
    int rc;

    if (r->impl->db == NULL || r->state == REPLICA_PRISTINE) {
        return FLO_OK;
    }
    if (!r->has_fence) {
        return FLO_BUSY;
    }
    append_abort(r);
    rc = replica_hash_all(r, &checksum);
    if (rc == FLO_OK) {
        set_content(r, checksum);
        replica_store_position(r);
    } else if (rc == FLO_IO || rc == FLO_CORRUPT) {
        r->state = REPLICA_BROKEN;
        r->position = (struct position){0};
    }
    return rc;
}

int replica_check_foreign(struct replica *r)
{
    struct replica_impl *im = r->impl;
    struct wal_index_hdr h;
    wal_region *index;
    uint64_t checksum;
    int rc;

    if (!r->has_fence) {
        return FLO_BUSY;
    }
    if (im->db == NULL) {
        return FLO_OK;
    }
    rc = shm_region(im->dbf, 0, true, &index);
    if (rc != FLO_OK) {
        return rc;
    }
    if (wal_index_read(index, &h) && wal_index_equal(&h, &im->hdr)) {
        return FLO_OK;
    }
    append_abort(r);
    if (wal_index_read(index, &h)) {
        im->hdr = h;
        r->wal_frames = h.mx_frame;
        r->n_pages = h.n_page;
    } else {
        h = im->hdr;
        rc = replica_publish(r, &h);
    }
    if (rc == FLO_OK) {
        rc = replica_hash_all(r, &checksum);
    }
    if (rc == FLO_OK) {
        r->state = REPLICA_SUSPECT;
        r->position = (struct position){.checksum = checksum};
        replica_store_position(r);
    } else {
        r->state = REPLICA_BROKEN;
        r->position = (struct position){0};
    }
    return replica_error(r, FLO_MISMATCH,
                         "%s: another program wrote to the WAL", im->path);
}

/* ---- The end ---------------------------------------------------------------------- */

void replica_close(struct replica *r)
{
    struct replica_impl *im = r->impl;

    if (im == NULL) {
        return;
    }
    append_abort(r);
    page_list_close(&im->col.pages);
    page_list_close(&im->col.holes);
    replica_detach(r);
    posfile_close(&im->pos);
    fence_close(&im->fence);
    free(im);
    r->impl = NULL;
    r->has_fence = false;
}

int replica_drop(struct replica *r)
{
    static const char *const suffix[] = {"-wal", "-shm",   "-journal",
                                         "-pos", "-fence", ""};
    struct replica_impl im = *r->impl;
    char path[PATH_BYTES + 8];
    int rc = FLO_OK;
    size_t i;

    replica_close(r);
    for (i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
        replica_path(&im, suffix[i], path);
        if (unlink(path) != 0 && access(path, F_OK) == 0) {
            rc = replica_error(r, FLO_IO, "%s: cannot delete", path);
        }
    }
    return rc;
}
