/* Opening a replica, and finding out which position it is at.
 *
 * The position file has two slots; the WAL says which one it is:
 *
 *   same boot, the WAL is where the newer slot expects it
 *       its hashes XOR to its checksum       that position
 *       else: killed before the hashes were  hash the frames in between;
 *       brought up to date                   right now? that position
 *   same boot, the WAL is where the older slot expects it
 *       its hashes XOR to its checksum       that position: the newer one
 *                                            was never published
 *   otherwise                                hash all pages: the checksum is
 *                                            one of the two slots', or nobody's
 *
 * An empty WAL has no place; then the file's inode, size and times have to be
 * what they were. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/error.h"
#include "core/replica_impl.h"

struct known
{
    struct pos_slot slot[2];
    int newer; /* index, -1: none is valid */
    int older;
};

static bool has_slot(const struct posfile *p, int i, struct pos_slot *out)
{
    return posfile_load(p, i, out) == FLO_OK;
}

static void load_known(struct replica *r, struct known *k)
{
    struct replica_impl *im = r->impl;
    bool a = has_slot(&im->pos, 0, &k->slot[0]);
    bool b = has_slot(&im->pos, 1, &k->slot[1]);

    k->newer = a ? 0 : b ? 1 : -1;
    k->older = -1;
    if (a && b) {
        k->newer = k->slot[1].sequence > k->slot[0].sequence;
        k->older = 1 - k->newer;
    }
    im->slot = k->newer < 0 ? 0 : k->newer;
    im->sequence = k->newer < 0 ? 0 : k->slot[k->newer].sequence;
}

/* ---- By the WAL ------------------------------------------------------------------------ */

static bool fits_empty_wal(struct replica *r, const struct pos_slot *s)
{
    static const uint8_t none[8];
    uint8_t stamp[8];

    return replica_stamp(r->impl, stamp) == FLO_OK &&
           memcmp(stamp, none, 8) != 0 && memcmp(stamp, s->frame_cksum, 8) == 0;
}

static bool fits_wal(struct replica *r, const struct pos_slot *s)
{
    const struct wal_index_hdr *h = &r->impl->hdr;
    bool cksum_known = s->frame_cksum[0] != 0 || s->frame_cksum[1] != 0;

    if (s->n_pages == 0 || s->n_pages != r->n_pages ||
        s->page_size != r->page_size || s->mx_frame != h->mx_frame ||
        s->n_pages > posfile_capacity(&r->impl->pos)) {
        return false;
    }
    if (h->mx_frame == 0) {
        return fits_empty_wal(r, s);
    }
    return memcmp(s->salt, h->salt, sizeof s->salt) == 0 &&
           (!cksum_known || (s->frame_cksum[0] == h->frame_cksum[0] &&
                             s->frame_cksum[1] == h->frame_cksum[1]));
}

static bool hashes_match(struct replica *r, const struct pos_slot *s)
{
    const uint64_t *hashes = posfile_hashes(&r->impl->pos);
    uint64_t sum = 0;
    uint32_t i;

    for (i = 0; i < s->n_pages; i++) {
        sum ^= hashes[i];
    }
    return sum == s->checksum;
}

/* Hash the page of a frame, unless a later frame has it too. */
static int redo_frame(struct replica *r, uint32_t frame, uint32_t n_pages,
                      uint8_t *image)
{
    struct replica_impl *im = r->impl;
    uint32_t mx_frame = im->hdr.mx_frame;
    uint32_t last;
    uint32_t pgno;
    wal_region *p;
    int rc = shm_region(im->dbf, wal_region_of(frame), false, &p);

    if (rc != FLO_OK) {
        return rc;
    }
    pgno = wal_region_pgno(p, frame);
    if (pgno == 0 || pgno > n_pages) {
        return FLO_OK;
    }
    rc = wal_find(im->dbf, pgno, frame, mx_frame, &last);
    if (rc != FLO_OK || last != frame) {
        return rc;
    }
    rc = wal_read_page(im->dbf, im->walf, r->page_size, pgno, frame, frame,
                       image);
    if (rc == FLO_OK) {
        posfile_hashes(&im->pos)[pgno - 1] =
            page_hash(pgno, image, r->page_size);
    }
    return rc;
}

/* Bring the hashes from the older slot's position to the newer one's. */
static bool redo(struct replica *r, const struct pos_slot *from,
                 const struct pos_slot *to)
{
    uint32_t lock_page = wal_lock_page(r->page_size);
    uint32_t frame = 1;
    uint8_t *image;
    int rc = FLO_OK;

    if (memcmp(from->salt, to->salt, sizeof to->salt) == 0 &&
        from->mx_frame <= to->mx_frame) {
        frame = from->mx_frame + 1;
    }
    image = malloc(r->page_size);
    if (image == NULL) {
        return false;
    }
    if (lock_page <= to->n_pages) {
        posfile_hashes(&r->impl->pos)[lock_page - 1] = 0;
    }
    for (; frame <= to->mx_frame && rc == FLO_OK; frame++) {
        rc = redo_frame(r, frame, to->n_pages, image);
    }
    free(image);
    return rc == FLO_OK && hashes_match(r, to);
}

static int slot_by_wal(struct replica *r, const struct known *k)
{
    if (!r->impl->pos.same_boot || k->newer < 0) {
        return -1;
    }
    if (fits_wal(r, &k->slot[k->newer])) {
        if (hashes_match(r, &k->slot[k->newer]) ||
            (k->older >= 0 &&
             redo(r, &k->slot[k->older], &k->slot[k->newer]))) {
            return k->newer;
        }
    }
    if (k->older >= 0 && fits_wal(r, &k->slot[k->older]) &&
        hashes_match(r, &k->slot[k->older])) {
        return k->older;
    }
    return -1;
}

/* ---- By the checksum ---------------------------------------------------------------------- */

/* The older one first: if both have it, records from there on are the same. */
static int slot_by_checksum(const struct replica *r, const struct known *k,
                            uint64_t checksum)
{
    int order[2] = {k->older, k->newer};
    int i;

    for (i = 0; i < 2; i++) {
        const struct pos_slot *s = &k->slot[order[i] < 0 ? 0 : order[i]];
        if (order[i] >= 0 && s->txid != 0 && s->n_pages == r->n_pages &&
            s->page_size == r->page_size && s->checksum == checksum) {
            return order[i];
        }
    }
    return -1;
}

/* SQLite's own empty page, made before the first transaction came. It is known
 * by its hash; if it was made just before a kill, by being empty. */
static int is_base(struct replica *r, const struct known *k, uint64_t hash,
                   bool *base)
{
    bool anything_known = false;
    int i;

    *base = false;
    if (r->n_pages != 1) {
        return FLO_OK;
    }
    for (i = 0; i < 2; i++) {
        const struct pos_slot *s = &k->slot[i];
        if (i != k->newer && i != k->older) {
            continue;
        }
        if (s->base != 0 && s->base == hash) {
            *base = true;
            return FLO_OK;
        }
        anything_known |= s->base != 0 || s->n_pages != 0;
    }
    return anything_known ? FLO_OK : replica_looks_empty(r, base);
}

static int find_by_checksum(struct replica *r, const struct known *k)
{
    uint64_t checksum;
    bool base;
    int slot;
    int rc = replica_hash_all(r, &checksum);

    if (rc != FLO_OK) {
        return rc;
    }
    slot = slot_by_checksum(r, k, checksum);
    if (slot >= 0) {
        r->impl->slot = slot;
        r->state = REPLICA_GOOD;
        r->position = (struct position){k->slot[slot].txid, checksum};
        return FLO_OK;
    }
    rc = is_base(r, k, checksum, &base);
    if (rc == FLO_OK && base) {
        replica_set_base(r, checksum);
    } else if (rc == FLO_OK) {
        r->state = REPLICA_SUSPECT;
        r->position = (struct position){0, checksum};
        if (r->errmsg[0] == '\0') {
            replica_error(r, 0, "%s: the content is of no known position",
                          r->impl->path);
        }
    }
    return rc;
}

static int find_position(struct replica *r)
{
    struct known k;
    int rc = FLO_OK;
    int slot;

    load_known(r, &k);
    slot = slot_by_wal(r, &k);
    if (slot >= 0) {
        const struct pos_slot *s = &k.slot[slot];
        r->impl->slot = slot;
        r->position = (struct position){s->txid, s->checksum};
        r->state = s->txid != 0 ? REPLICA_GOOD : REPLICA_SUSPECT;
    } else {
        rc = find_by_checksum(r, &k);
    }
    if (rc == FLO_OK) {
        /* Into the slot that is not the one just found. */
        replica_store_position(r);
    }
    return rc;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static int wait_fence(struct replica *r, uint64_t deadline_ms)
{
    struct replica_impl *im = r->impl;
    char path[PATH_BYTES + 8];
    int rc;

    replica_path(im, "-fence", path);
    rc = fence_open(&im->fence, path, 1);
    while (rc == FLO_OK && !r->has_fence) {
        rc = fence_try_lock(&im->fence);
        if (rc == FLO_OK) {
            r->has_fence = true;
            rc = fence_set(&im->fence, 0);
        } else if (rc == FLO_BUSY && now_ms() < deadline_ms) {
            sleep_ms(2);
            rc = FLO_OK;
        }
    }
    return rc == FLO_OK
               ? FLO_OK
               : replica_error(r, rc, "%s: %s", path,
                               rc == FLO_BUSY ? "a client is writing"
                                              : flo_strerror(rc));
}

static int open_position_file(struct replica *r)
{
    struct replica_impl *im = r->impl;
    char path[PATH_BYTES + 8];
    int rc;

    replica_path(im, "-pos", path);
    rc = posfile_open(&im->pos, path);
    if (rc != FLO_OK) {
        return replica_error(r, rc, "%s: %s", path, flo_strerror(rc));
    }
    if (im->pos.damaged) {
        replica_error(r, 0, "%s: wrong checksum; hashing all pages", path);
        im->pos.same_boot = false;
    }
    return FLO_OK;
}

static bool file_has_content(const struct replica_impl *im)
{
    struct stat st;

    return stat(im->path, &st) == 0 && st.st_size > 0;
}

/* Makes app.db itself too, with 0 bytes, when it is not there. */
static int touch_database(struct replica *r)
{
    sqlite3 *db;
    int rc = connection_open(r->impl->path, 0, &db);

    if (rc != SQLITE_OK) {
        return replica_error(r, sqlite_error(rc, NULL), "%s: %s",
                             r->impl->path, sqlite3_errstr(rc));
    }
    (void)sqlite3_close(db);
    return FLO_OK;
}

static int open_pristine(struct replica *r)
{
    struct known k;
    int rc = touch_database(r);

    if (rc == FLO_OK) {
        load_known(r, &k);
        replica_set_pristine(r);
        replica_store_position(r);
    }
    return rc;
}

static int open_database(struct replica *r, uint64_t deadline_ms)
{
    int rc = replica_attach(r, deadline_ms);

    if (rc == FLO_OK) {
        rc = find_position(r);
    }
    if (rc == FLO_CORRUPT) {
        struct known k;
        load_known(r, &k);
        replica_detach(r);
        replica_set_pristine(r);
        r->state = REPLICA_BROKEN;
        return FLO_OK;
    }
    return rc == FLO_OK && r->impl->db != NULL ? replica_drop_tail(r) : rc;
}

int replica_open(struct replica *r, const char *dir, const char *name,
                 unsigned wait_ms)
{
    uint64_t deadline = now_ms() + wait_ms;
    struct replica_impl *im;
    int n;
    int rc;

    *r = (struct replica){0};
    if (!db_name_valid(name)) {
        return FLO_INVALID;
    }
    im = calloc(1, sizeof *im);
    if (im == NULL) {
        return FLO_NOMEM;
    }
    im->fence.fd = im->pos.fd = -1;
    r->impl = im;
    snprintf(r->name, sizeof r->name, "%s", name);
    n = snprintf(im->path, sizeof im->path, "%s/%s.db", dir, name);
    rc = n > 0 && (size_t)n < sizeof im->path ? wait_fence(r, deadline)
                                              : FLO_INVALID;
    if (rc == FLO_OK) {
        rc = open_position_file(r);
    }
    if (rc == FLO_OK) {
        rc = file_has_content(im) ? open_database(r, deadline)
                                  : open_pristine(r);
    }
    if (rc == FLO_OK) {
        posfile_set_boot(&im->pos);
    } else {
        replica_close(r);
    }
    return rc;
}
