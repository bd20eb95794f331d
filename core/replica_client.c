/* What a client of this node wrote into the WAL: reading it as a transaction,
 * and taking it over once raft has committed it. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "core/error.h"
#include "core/replica_impl.h"

/* ---- The frames ------------------------------------------------------------------- */

struct frame_ref
{
    uint32_t pgno;
    uint32_t frame;
};

static int compare_refs(const void *a, const void *b)
{
    const struct frame_ref *x = a;
    const struct frame_ref *y = b;

    if (x->pgno != y->pgno) {
        return x->pgno < y->pgno ? -1 : 1;
    }
    return x->frame < y->frame ? -1 : x->frame > y->frame;
}

static int read_wal(struct replica *r, void *data, size_t n, sqlite3_int64 at)
{
    sqlite3_file *f = r->impl->walf;
    int rc = f->pMethods->xRead(f, data, (int)n, at);

    return rc == SQLITE_IOERR_SHORT_READ ? FLO_CORRUPT : sqlite_error(rc, NULL);
}

/* The salts that the client's frames have. A client that writes the first
 * frame of a WAL writes its header too, and may choose new salts. */
static int expected_salt(struct replica *r, uint8_t salt[8])
{
    uint8_t raw[WAL_HEADER_BYTES];
    struct wal_header h;
    int rc;

    if (r->impl->hdr.mx_frame > 0) {
        memcpy(salt, r->impl->hdr.salt, 8);
        return FLO_OK;
    }
    rc = read_wal(r, raw, sizeof raw, 0);
    if (rc == FLO_OK) {
        rc = wal_decode_header(raw, &h);
    }
    if (rc == FLO_OK && h.page_size != r->page_size) {
        rc = FLO_CORRUPT;
    }
    if (rc == FLO_OK) {
        memcpy(salt, h.salt, 8);
    }
    return rc;
}

/* Frames whose checksums SQLite is going to rewrite after the commit have
 * neither salts nor checksums yet; so the chain cannot be checked here. */
static bool frame_plausible(const struct wal_frame *f, const uint8_t salt[8])
{
    static const uint8_t none[8];

    return f->pgno != 0 && (memcmp(f->salt, salt, 8) == 0 ||
                            memcmp(f->salt, none, sizeof none) == 0);
}

static int load_refs(struct replica *r, uint32_t last_frame, uint32_t n_pages,
                     const uint8_t header[24], const uint8_t salt[8],
                     struct frame_ref *refs)
{
    uint32_t first = r->impl->hdr.mx_frame + 1;
    uint32_t frame;

    for (frame = first; frame <= last_frame; frame++) {
        uint8_t raw[WAL_FRAME_HEADER];
        struct wal_frame f;
        int rc = FLO_OK;
        if (frame == last_frame) {
            memcpy(raw, header, sizeof raw);
        } else {
            rc = read_wal(r, raw, sizeof raw,
                          wal_frame_offset(frame, r->page_size));
        }
        if (rc != FLO_OK) {
            return rc;
        }
        wal_decode_frame(raw, &f);
        if (!frame_plausible(&f, salt) ||
            f.pgno == wal_lock_page(r->page_size) ||
            f.commit != (frame == last_frame ? n_pages : 0)) {
            return replica_error(r, FLO_CORRUPT,
                                 "frame %u is not what the client said", frame);
        }
        refs[frame - first] = (struct frame_ref){f.pgno, frame};
    }
    return FLO_OK;
}

/* Sort by page; of several frames of a page the last one stays. */
static size_t sort_refs(struct frame_ref *refs, size_t n)
{
    size_t out = 0;
    size_t i;

    qsort(refs, n, sizeof *refs, compare_refs);
    for (i = 0; i < n; i++) {
        if (i + 1 == n || refs[i + 1].pgno != refs[i].pgno) {
            refs[out++] = refs[i];
        }
    }
    return out;
}

/* ---- Building the transaction ------------------------------------------------------ */

static int add_page(struct replica *r, struct txn_builder *b, uint32_t pgno,
                    const uint8_t *image, uint64_t *sum)
{
    uint64_t hash = page_hash(pgno, image, r->page_size);
    int rc = txn_builder_page(b, pgno, image);

    if (rc == FLO_OK) {
        rc = page_list_add(&r->impl->col.pages, pgno, hash);
    }
    if (pgno <= r->n_pages) {
        *sum ^= posfile_hashes(&r->impl->pos)[pgno - 1];
    }
    *sum ^= hash;
    return rc;
}

/* Grown pages that SQLite never wrote (it always does in WAL mode, in the
 * versions known) would read as whatever was there before, and differ between
 * replicas: they are defined to be zero, here and everywhere. */
static int add_holes(struct replica *r, struct txn_builder *b, uint32_t from,
                     uint32_t to, uint8_t *image, uint64_t *sum)
{
    uint32_t pgno = from > r->n_pages ? from : r->n_pages + 1;
    int rc = FLO_OK;

    for (; pgno < to && rc == FLO_OK; pgno++) {
        if (pgno == wal_lock_page(r->page_size)) {
            continue;
        }
        memset(image, 0, r->page_size);
        rc = add_page(r, b, pgno, image, sum);
        if (rc == FLO_OK) {
            rc = page_list_add(&r->impl->col.holes, pgno, 0);
        }
    }
    return rc;
}

static int add_pages(struct replica *r, struct txn_builder *b,
                     const struct frame_ref *refs, size_t n, uint8_t *image,
                     uint64_t *sum)
{
    uint32_t n_pages = b->head.n_pages;
    uint32_t next = 1;
    uint32_t pgno;
    size_t i;
    int rc = FLO_OK;

    for (i = 0; i < n && refs[i].pgno <= n_pages && rc == FLO_OK; i++) {
        rc = add_holes(r, b, next, refs[i].pgno, image, sum);
        if (rc == FLO_OK) {
            rc = read_wal(r, image, r->page_size,
                          wal_frame_offset(refs[i].frame, r->page_size) +
                              WAL_FRAME_HEADER);
        }
        if (rc == FLO_OK) {
            rc = add_page(r, b, refs[i].pgno, image, sum);
        }
        next = refs[i].pgno + 1;
    }
    if (rc == FLO_OK) {
        rc = add_holes(r, b, next, n_pages + 1, image, sum);
    }
    for (pgno = n_pages + 1; pgno <= r->n_pages; pgno++) {
        *sum ^= posfile_hashes(&r->impl->pos)[pgno - 1];
    }
    return rc;
}

/* The position to come goes to disk before the client may publish it. */
static void store_collected(struct replica *r, const uint8_t header[24])
{
    struct collected *c = &r->impl->col;
    struct wal_index_hdr hdr = r->impl->hdr;
    struct position p = {.txid = c->txid, .checksum = c->after};
    struct wal_frame f;
    struct pos_slot slot;

    wal_decode_frame(header, &f);
    hdr.mx_frame = c->last_frame;
    memcpy(hdr.salt, c->salt, sizeof hdr.salt);
    /* Zero while SQLite is going to rewrite it: not known. */
    memcpy(hdr.frame_cksum, f.cksum, sizeof hdr.frame_cksum);
    slot = replica_slot(r, p, c->n_pages, &hdr);
    replica_store_pending(r, &slot);
}

static int collect(struct replica *r, const uint8_t header[24],
                   struct frame_ref *refs, uint8_t *image,
                   struct txn_builder *b)
{
    struct collected *c = &r->impl->col;
    size_t n = c->last_frame - c->first_frame + 1;
    uint64_t sum = r->position.checksum;
    int rc = load_refs(r, c->last_frame, c->n_pages, header, c->salt, refs);

    if (rc != FLO_OK) {
        return rc;
    }
    c->last_pgno = load_u32_be(header);
    n = sort_refs(refs, n);
    rc = add_pages(r, b, refs, n, image, &sum);
    if (rc == FLO_OK) {
        rc = posfile_reserve(&r->impl->pos, c->n_pages);
    }
    if (rc == FLO_OK) {
        rc = txn_builder_finish(b, sum);
    }
    if (rc == FLO_OK) {
        c->after = sum;
        store_collected(r, header);
        c->valid = true;
    }
    return rc;
}

static int begin_collect(struct replica *r, uint32_t last_frame,
                         uint32_t n_pages)
{
    struct collected *c = &r->impl->col;

    page_list_close(&c->pages);
    page_list_close(&c->holes);
    *c = (struct collected){.txid = r->position.txid + 1,
                            .first_frame = r->impl->hdr.mx_frame + 1,
                            .last_frame = last_frame,
                            .n_pages = n_pages};
    if (r->state != REPLICA_GOOD) {
        return FLO_DESYNCED;
    }
    if (last_frame < c->first_frame || n_pages == 0) {
        return replica_error(r, FLO_CORRUPT, "frames %u to %u",
                             c->first_frame, last_frame);
    }
    return expected_salt(r, c->salt);
}

int replica_collect(struct replica *r, uint32_t last_frame, uint32_t n_pages,
                    const uint8_t header[24], uint64_t commit_id,
                    uint32_t origin, size_t max_bytes, struct txn_builder *b)
{
    struct record head = {.kind = RECORD_TRANSACTION,
                          .txid = r->position.txid + 1,
                          .before = r->position.checksum,
                          .commit_id = commit_id,
                          .origin = origin,
                          .page_size = r->page_size,
                          .n_pages = n_pages};
    struct frame_ref *refs = NULL;
    uint8_t *image = NULL;
    int rc;

    *b = (struct txn_builder){0};
    memcpy(head.db, r->name, sizeof head.db);
    rc = begin_collect(r, last_frame, n_pages);
    if (rc == FLO_OK) {
        rc = txn_builder_init(b, &head, max_bytes);
    }
    if (rc != FLO_OK) {
        return rc;
    }
    refs = calloc(last_frame - r->impl->hdr.mx_frame, sizeof *refs);
    image = malloc(r->page_size);
    rc = refs != NULL && image != NULL ? collect(r, header, refs, image, b)
                                       : FLO_NOMEM;
    free(refs);
    free(image);
    return rc;
}

/* ---- Taking it over ------------------------------------------------------------------ */

/* Did the client publish exactly what was collected from it, and is the
 * commit frame in the file? Then h is the published header. */
static bool was_published(struct replica *r, const struct txn_builder *b,
                          struct wal_index_hdr *h)
{
    const struct collected *c = &r->impl->col;
    uint8_t raw[WAL_FRAME_HEADER];
    struct wal_frame f;
    wal_region *index;

    if (!c->valid || c->txid != b->head.txid || c->after != b->head.after ||
        shm_region(r->impl->dbf, 0, false, &index) != FLO_OK ||
        !wal_index_read(index, h)) {
        return false;
    }
    if (h->mx_frame != c->last_frame || h->n_page != c->n_pages ||
        memcmp(h->salt, c->salt, sizeof h->salt) != 0 ||
        wal_index_page_size(h) != r->page_size ||
        read_wal(r, raw, sizeof raw,
                 wal_frame_offset(h->mx_frame, r->page_size)) != FLO_OK) {
        return false;
    }
    wal_decode_frame(raw, &f);
    return f.pgno == c->last_pgno && f.commit == c->n_pages &&
           memcmp(f.salt, h->salt, sizeof f.salt) == 0 &&
           f.cksum[0] == h->frame_cksum[0] && f.cksum[1] == h->frame_cksum[1];
}

/* Pages that the transaction defines as zero and the client has no frame for:
 * write them, as one more transaction in the WAL at the same position. */
static int fill_holes(struct replica *r)
{
    struct collected *c = &r->impl->col;
    size_t i;
    int rc;

    if (c->holes.n == 0) {
        return FLO_OK;
    }
    rc = append_begin(r);
    for (i = 0; i < c->holes.n && rc == FLO_OK; i++) {
        uint8_t *image;
        rc = append_slot(r, &image);
        if (rc == FLO_OK) {
            memset(image, 0, r->page_size);
            rc = append_hold(r, c->holes.pgno[i]);
        }
    }
    return rc == FLO_OK ? append_commit(r, r->n_pages, r->position) : rc;
}

static int adopt(struct replica *r, struct wal_index_hdr *h)
{
    struct replica_impl *im = r->impl;
    struct collected *c = &im->col;
    struct position p = {.txid = c->txid, .checksum = c->after};
    int rc = replica_mend(r, c->first_frame, h);

    if (rc != FLO_OK) {
        return rc; /* asked again, or the replica is repaired by resync */
    }
    im->hdr = *h;
    r->wal_frames = h->mx_frame;
    replica_advance(r, &c->pages, c->n_pages, p);
    c->valid = false;
    if (fill_holes(r) != FLO_OK) {
        /* Committed, but these pages are not what they should be. */
        (void)replica_rehash(r);
    }
    return FLO_OK;
}

static int apply_by_hand(struct replica *r, const struct txn_builder *b)
{
    struct wal_index_hdr committed = r->impl->hdr;
    struct record rec;
    size_t i;
    int rc;

    r->impl->col.valid = false;
    rc = replica_drop_tail(r);
    if (rc == FLO_OK) {
        rc = replica_publish(r, &committed);
    }
    for (i = 0; i < b->n_records && rc == FLO_OK; i++) {
        rc = record_decode(b->records[i].data, b->records[i].len, &rec);
        if (rc == FLO_OK) {
            rc = replica_apply(r, &rec);
        }
    }
    return rc;
}

int replica_settle(struct replica *r, const struct txn_builder *b)
{
    struct wal_index_hdr h;

    if (!r->has_fence) {
        return FLO_BUSY;
    }
    if (b->head.txid <= r->position.txid) {
        return FLO_DUPLICATE;
    }
    if (r->state == REPLICA_GOOD && b->head.txid == r->position.txid + 1 &&
        b->head.before == r->position.checksum && was_published(r, b, &h)) {
        return adopt(r, &h);
    }
    if (r->impl->db == NULL) {
        return FLO_MISMATCH;
    }
    return apply_by_hand(r, b);
}

/* ---- The first transaction -------------------------------------------------------------- */

/* SQLite makes the page, in memory; WAL mode is two bytes of it. Writing a
 * user_version of 0 makes it, and nothing else: schema cookie and format stay 0
 * as in any new database, and so does the encoding, which SQLite writes down
 * with the first table, as the connection that makes it wants. */
static int make_page_1(uint32_t page_size, int auto_vacuum, int encoding,
                       uint8_t *image)
{
    static const char *const names[] = {"UTF-8", "UTF-16le", "UTF-16be"};
    sqlite3 *db = NULL;
    sqlite3_int64 bytes = 0;
    unsigned char *copy;
    char sql[256];
    int rc = sqlite3_open_v2(":memory:", &db,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);

    snprintf(sql, sizeof sql,
             "PRAGMA page_size=%u; PRAGMA auto_vacuum=%d; "
             "PRAGMA encoding='%s'; PRAGMA user_version=0",
             page_size, auto_vacuum, names[encoding - 1]);
    if (rc == SQLITE_OK) {
        rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
    }
    copy = rc == SQLITE_OK ? sqlite3_serialize(db, "main", &bytes, 0) : NULL;
    if (copy != NULL && bytes == page_size) {
        memcpy(image, copy, page_size);
        image[18] = image[19] = 2;
    } else if (rc == SQLITE_OK) {
        rc = SQLITE_NOMEM;
    }
    sqlite3_free(copy);
    (void)sqlite3_close(db);
    return sqlite_error(rc, NULL);
}

int replica_make_first(struct replica *r, uint32_t page_size, int auto_vacuum,
                       int encoding, uint64_t commit_id, uint32_t origin,
                       struct txn_builder *b)
{
    struct record head = {.kind = RECORD_TRANSACTION,
                          .txid = 1,
                          .commit_id = commit_id,
                          .origin = origin,
                          .page_size = page_size,
                          .n_pages = 1};
    uint8_t *image;
    int rc;

    *b = (struct txn_builder){0};
    if (!page_size_valid(page_size) || auto_vacuum < 0 || auto_vacuum > 2 ||
        encoding < 1 || encoding > 3) {
        return FLO_INVALID;
    }
    if (r->state != REPLICA_PRISTINE) {
        return FLO_EXISTS;
    }
    memcpy(head.db, r->name, sizeof head.db);
    image = malloc(page_size);
    rc = image != NULL ? txn_builder_init(b, &head, (size_t)page_size * 2 + 4096)
                       : FLO_NOMEM;
    if (rc == FLO_OK) {
        rc = make_page_1(page_size, auto_vacuum, encoding, image);
    }
    if (rc == FLO_OK) {
        rc = txn_builder_page(b, 1, image);
    }
    if (rc == FLO_OK) {
        rc = txn_builder_finish(b, page_hash(1, image, page_size));
    }
    free(image);
    return rc;
}
