/* Frames by hand: append them to the WAL, then publish them.
 *
 * In this order, so that whoever is killed at any point leaves either the old
 * state or the new one:
 *
 *   1. all frames but the last one, as the pages come
 *   2. room for the wal-index entries and page hashes: can fail
 *   3. the last frame's page
 *   4. the position to come, in the position file's other slot
 *   5. the last frame's header, with the commit mark: for recovery it is
 *      committed now
 *   6. wal-index entries
 *   7. wal-index header, copy 1, then copy 0: for readers it is committed now
 *   8. page hashes; the other slot is the position
 *
 * Nothing can fail after 5. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/replica_impl.h"

/* ---- Lists of pages -------------------------------------------------------------- */

int page_list_add(struct page_list *l, uint32_t pgno, uint64_t hash)
{
    if (l->n == l->cap) {
        size_t cap = l->cap > 0 ? l->cap * 2 : 64;
        uint32_t *p = realloc(l->pgno, cap * sizeof *p);
        uint64_t *h;
        if (p == NULL) {
            return FLO_NOMEM;
        }
        l->pgno = p;
        h = realloc(l->hash, cap * sizeof *h);
        if (h == NULL) {
            return FLO_NOMEM;
        }
        l->hash = h;
        l->cap = cap;
    }
    l->ascending = l->n == 0 || (l->ascending && pgno > l->pgno[l->n - 1]);
    l->pgno[l->n] = pgno;
    l->hash[l->n] = hash;
    l->n++;
    return FLO_OK;
}

void page_list_close(struct page_list *l)
{
    free(l->pgno);
    free(l->hash);
    *l = (struct page_list){0};
}

struct entry
{
    uint64_t hash;
    uint32_t pgno;
    uint32_t order;
};

static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;

    if (x->pgno != y->pgno) {
        return x->pgno < y->pgno ? -1 : 1;
    }
    return x->order < y->order ? -1 : x->order > y->order;
}

int page_list_sort(struct page_list *l)
{
    struct entry *e;
    size_t out = 0;
    size_t i;

    if (l->n == 0 || l->ascending) {
        return FLO_OK;
    }
    e = malloc(l->n * sizeof *e);
    if (e == NULL) {
        return FLO_NOMEM;
    }
    for (i = 0; i < l->n; i++) {
        e[i] = (struct entry){l->hash[i], l->pgno[i], (uint32_t)i};
    }
    qsort(e, l->n, sizeof *e, compare_entries);
    for (i = 0; i < l->n; i++) {
        if (i + 1 == l->n || e[i + 1].pgno != e[i].pgno) {
            l->pgno[out] = e[i].pgno;
            l->hash[out] = e[i].hash;
            out++;
        }
    }
    l->n = out;
    l->ascending = true;
    free(e);
    return FLO_OK;
}

/* ---- Frames ------------------------------------------------------------------------ */

static int write_wal(struct replica *r, const void *data, size_t n,
                     sqlite3_int64 at)
{
    sqlite3_file *f = r->impl->walf;
    int rc = f->pMethods->xWrite(f, data, (int)n, at);

    if (rc == SQLITE_OK) {
        return FLO_OK;
    }
    rc = sqlite_error(rc, f);
    return replica_error(r, rc, "%s-wal: cannot write: %s", r->impl->path,
                         flo_strerror(rc));
}

/* The first frame of a WAL comes after a new header. */
static int start_wal(struct replica *r)
{
    static const uint8_t none[8];
    struct replica_impl *im = r->impl;
    struct append *a = &im->app;
    uint8_t raw[WAL_HEADER_BYTES];
    struct wal_header h = {.big_endian = wal_native_big_endian(),
                           .page_size = r->page_size,
                           .sequence = im->wal_sequence};

    memcpy(h.salt, im->hdr.salt, sizeof h.salt);
    if (memcmp(h.salt, none, sizeof none) == 0) {
        sqlite3_randomness(sizeof h.salt, h.salt);
    }
    wal_encode_header(&h, raw);
    a->big_endian = h.big_endian;
    memcpy(a->salt, h.salt, sizeof a->salt);
    memcpy(a->cksum, h.cksum, sizeof a->cksum);
    return write_wal(r, raw, sizeof raw, 0);
}

int append_begin(struct replica *r)
{
    struct replica_impl *im = r->impl;
    struct append *a = &im->app;
    int rc = FLO_OK;

    append_abort(r);
    assert(im->write_locked && r->has_fence && r->page_size != 0);
    a->buf = malloc(WAL_FRAME_HEADER + (size_t)r->page_size);
    if (a->buf == NULL) {
        return FLO_NOMEM;
    }
    a->active = true;
    a->frame = im->hdr.mx_frame;
    if (a->frame == 0) {
        rc = start_wal(r);
    } else {
        a->big_endian = im->hdr.big_endian != 0;
        memcpy(a->salt, im->hdr.salt, sizeof a->salt);
        memcpy(a->cksum, im->hdr.frame_cksum, sizeof a->cksum);
    }
    if (rc != FLO_OK) {
        append_abort(r);
    }
    return rc;
}

void append_abort(struct replica *r)
{
    struct append *a = &r->impl->app;

    free(a->buf);
    page_list_close(&a->pages);
    *a = (struct append){0};
}

static void encode_held(struct replica *r, uint32_t commit)
{
    struct append *a = &r->impl->app;

    wal_encode_frame(a->big_endian, a->salt, a->pages.pgno[a->pages.n - 1],
                     commit, a->buf + WAL_FRAME_HEADER, r->page_size, a->cksum,
                     a->buf);
    a->held = false;
}

int append_slot(struct replica *r, uint8_t **image)
{
    struct append *a = &r->impl->app;

    assert(a->active);
    if (a->frame == UINT32_MAX) {
        return replica_error(r, FLO_TOOBIG, "the WAL has too many frames");
    }
    if (a->held) {
        int rc;
        encode_held(r, 0);
        rc = write_wal(r, a->buf, WAL_FRAME_HEADER + (size_t)r->page_size,
                       wal_frame_offset(a->frame, r->page_size));
        if (rc != FLO_OK) {
            return rc;
        }
    }
    *image = a->buf + WAL_FRAME_HEADER;
    return FLO_OK;
}

int append_hold(struct replica *r, uint32_t pgno)
{
    struct append *a = &r->impl->app;
    uint64_t hash =
        page_hash(pgno, a->buf + WAL_FRAME_HEADER, r->page_size);
    int rc = page_list_add(&a->pages, pgno, hash);

    if (rc == FLO_OK) {
        a->held = true;
        a->frame++;
    }
    return rc;
}

/* ---- Checking and publishing ---------------------------------------------------- */

/* The checksum that the result would have. Pages new to the database must all
 * have come, but for the one that holds SQLite's lock bytes. */
static int check_result(struct replica *r, const struct page_list *pages,
                        uint32_t n_pages, uint64_t expected)
{
    const uint64_t *hashes = posfile_hashes(&r->impl->pos);
    uint32_t lock_page = wal_lock_page(r->page_size);
    uint64_t sum = r->position.checksum;
    uint64_t grown = n_pages > r->n_pages ? n_pages - r->n_pages : 0;
    uint32_t pgno;
    size_t i;

    if (lock_page > r->n_pages && lock_page <= n_pages) {
        grown--;
    }
    for (i = 0; i < pages->n && pages->pgno[i] <= n_pages; i++) {
        pgno = pages->pgno[i];
        sum ^= pages->hash[i];
        if (pgno <= r->n_pages) {
            sum ^= hashes[pgno - 1];
        } else {
            grown--;
        }
    }
    for (pgno = n_pages + 1; pgno != 0 && pgno <= r->n_pages; pgno++) {
        sum ^= hashes[pgno - 1];
    }
    if (grown != 0) {
        return replica_error(r, FLO_MISMATCH, "%s: new pages are missing",
                             r->name);
    }
    if (sum != expected) {
        return replica_error(r, FLO_MISMATCH,
                             "%s: checksum %016llx instead of %016llx",
                             r->name, (unsigned long long)sum,
                             (unsigned long long)expected);
    }
    return FLO_OK;
}

static int check_pages(struct replica *r, uint32_t n_pages, uint64_t expected)
{
    struct append *a = &r->impl->app;
    struct page_list sorted = {0};
    size_t i;
    int rc = FLO_OK;

    if (a->pages.ascending) {
        return check_result(r, &a->pages, n_pages, expected);
    }
    for (i = 0; i < a->pages.n && rc == FLO_OK; i++) {
        rc = page_list_add(&sorted, a->pages.pgno[i], a->pages.hash[i]);
    }
    if (rc == FLO_OK) {
        rc = page_list_sort(&sorted);
    }
    if (rc == FLO_OK) {
        rc = check_result(r, &sorted, n_pages, expected);
    }
    page_list_close(&sorted);
    return rc;
}

/* A commit needs a frame to carry its mark: page 1 again, as it is. */
static int append_something(struct replica *r)
{
    struct replica_impl *im = r->impl;
    uint8_t *image;
    int rc = append_slot(r, &image);

    if (rc == FLO_OK) {
        rc = wal_read_page(im->dbf, im->walf, r->page_size, 1, 1,
                           im->hdr.mx_frame, image);
    }
    return rc == FLO_OK ? append_hold(r, 1) : rc;
}

static int make_room(struct replica *r, uint32_t n_pages)
{
    struct replica_impl *im = r->impl;
    uint32_t region = wal_region_of(im->hdr.mx_frame + 1);
    uint32_t last = wal_region_of(im->app.frame);
    int rc = posfile_reserve(&im->pos, n_pages);

    if (rc != FLO_OK) {
        return replica_error(r, rc, "%s-pos: cannot grow", im->path);
    }
    for (; region <= last; region++) {
        wal_region *p;
        rc = shm_region(im->dbf, region, true, &p);
        if (rc != FLO_OK) {
            return replica_error(r, rc, "%s-shm: cannot grow", im->path);
        }
    }
    return FLO_OK;
}

static int enter_frames(struct replica *r)
{
    struct replica_impl *im = r->impl;
    uint32_t frame = im->hdr.mx_frame;
    size_t i;

    for (i = 0; i < im->app.pages.n; i++) {
        wal_region *p;
        int rc = shm_region(im->dbf, wal_region_of(++frame), true, &p);
        if (rc != FLO_OK) {
            return rc;
        }
        wal_region_append(p, frame, im->app.pages.pgno[i]);
    }
    assert(frame == im->app.frame);
    return FLO_OK;
}

/* Steps 3 to 5. */
static int write_commit(struct replica *r, uint32_t n_pages, struct position p,
                        struct wal_index_hdr *hdr)
{
    struct replica_impl *im = r->impl;
    struct append *a = &im->app;
    sqlite3_int64 at = wal_frame_offset(a->frame, r->page_size);
    struct pos_slot slot;
    int rc;

    encode_held(r, n_pages);
    rc = write_wal(r, a->buf + WAL_FRAME_HEADER, r->page_size,
                   at + WAL_FRAME_HEADER);
    if (rc != FLO_OK) {
        return rc;
    }
    *hdr = im->hdr;
    hdr->change++;
    hdr->mx_frame = a->frame;
    hdr->n_page = n_pages;
    hdr->big_endian = a->big_endian;
    wal_index_set_page_size(hdr, r->page_size);
    memcpy(hdr->salt, a->salt, sizeof hdr->salt);
    memcpy(hdr->frame_cksum, a->cksum, sizeof hdr->frame_cksum);
    slot = replica_slot(r, p, n_pages, hdr);
    replica_store_pending(r, &slot);
    im->dbf->pMethods->xShmBarrier(im->dbf);
    return write_wal(r, a->buf, WAL_FRAME_HEADER, at);
}

int append_commit(struct replica *r, uint32_t n_pages, struct position p)
{
    struct append *a = &r->impl->app;
    struct wal_index_hdr hdr;
    int rc = FLO_OK;

    assert(a->active && n_pages > 0);
    if (a->pages.n == 0) {
        rc = append_something(r);
    }
    if (rc == FLO_OK) {
        rc = check_pages(r, n_pages, p.checksum);
    }
    if (rc == FLO_OK) {
        rc = make_room(r, n_pages);
    }
    if (rc == FLO_OK) {
        rc = write_commit(r, n_pages, p, &hdr);
    }
    if (rc == FLO_OK) {
        rc = enter_frames(r);
    }
    if (rc == FLO_OK) {
        rc = replica_publish(r, &hdr);
    }
    if (rc == FLO_OK) {
        replica_advance(r, &a->pages, n_pages, p);
    }
    append_abort(r);
    return rc;
}

void replica_advance(struct replica *r, const struct page_list *pages,
                     uint32_t n_pages, struct position p)
{
    struct replica_impl *im = r->impl;
    uint64_t *hashes = posfile_hashes(&im->pos);
    uint32_t lock_page = wal_lock_page(r->page_size);
    size_t i;

    assert(n_pages <= posfile_capacity(&im->pos));
    if (lock_page <= n_pages) {
        hashes[lock_page - 1] = 0;
    }
    for (i = 0; i < pages->n; i++) {
        if (pages->pgno[i] <= n_pages) {
            hashes[pages->pgno[i] - 1] = pages->hash[i];
        }
    }
    r->n_pages = n_pages;
    r->position = p;
    r->state = p.txid != 0 ? REPLICA_GOOD : REPLICA_SUSPECT;
    im->base = 0;
    replica_use_pending(r);
}
