/* What raft committed, and what resync brings, into the replica. */
#include <string.h>

#include "core/error.h"
#include "core/replica_impl.h"

/* ---- Records --------------------------------------------------------------------- */

static int check_record(struct replica *r, const struct record *rec)
{
    if (rec->kind != RECORD_TRANSACTION || !page_size_valid(rec->page_size) ||
        rec->n_pages == 0) {
        return FLO_INVALID;
    }
    if (!r->has_fence) {
        return FLO_BUSY;
    }
    if (r->state != REPLICA_GOOD && r->state != REPLICA_PRISTINE) {
        return replica_error(r, FLO_MISMATCH,
                             "%s: the content is of no known position",
                             r->name);
    }
    if (rec->txid <= r->position.txid) {
        return FLO_DUPLICATE;
    }
    if (rec->txid != r->position.txid + 1 ||
        rec->before != r->position.checksum) {
        return replica_error(
            r, FLO_MISMATCH, "%s: transaction %llu does not follow %llu",
            r->name, (unsigned long long)rec->txid,
            (unsigned long long)r->position.txid);
    }
    if (r->state == REPLICA_GOOD && rec->page_size != r->page_size) {
        return replica_error(r, FLO_MISMATCH, "%s: page size %u, not %u",
                             r->name, rec->page_size, r->page_size);
    }
    return FLO_OK;
}

/* On PRISTINE: have an empty database of this page size to append to. */
static int prepare_base(struct replica *r, uint32_t page_size)
{
    struct replica_impl *im = r->impl;

    if (r->state != REPLICA_PRISTINE) {
        return FLO_OK;
    }
    if (im->db == NULL) {
        return replica_make_base(r, page_size);
    }
    if (im->base_page_size == page_size) {
        return FLO_OK;
    }
    return replica_remake(r, page_size);
}

static int start_fragments(struct replica *r, const struct record *rec)
{
    struct append *a = &r->impl->app;
    int rc = prepare_base(r, rec->page_size);

    if (rc == FLO_OK) {
        r->page_size = rec->page_size;
        rc = append_begin(r);
    }
    if (rc == FLO_OK) {
        a->txid = rec->txid;
        a->after = rec->after;
        a->n_pages = rec->n_pages;
        a->n_fragments = rec->n_fragments;
    }
    return rc;
}

static bool follows(const struct append *a, const struct record *rec)
{
    return a->active && !a->replacing && a->txid == rec->txid &&
           a->after == rec->after && a->n_pages == rec->n_pages &&
           a->n_fragments == rec->n_fragments &&
           a->next_fragment == rec->fragment;
}

static int append_images(struct replica *r, const struct record *rec)
{
    struct cursor c = cursor_of(rec->images.data, rec->images.len);
    const struct page_list *pages = &r->impl->app.pages;
    int rc = FLO_OK;

    while (rc == FLO_OK && c.n > 0) {
        uint8_t *image;
        uint32_t pgno;
        rc = append_slot(r, &image);
        if (rc == FLO_OK) {
            rc = record_next_image(&c, rec->page_size, &pgno, image);
        }
        if (rc == FLO_OK && pages->n > 0 &&
            pgno <= pages->pgno[pages->n - 1]) {
            rc = FLO_CORRUPT;
        }
        if (rc == FLO_OK) {
            rc = append_hold(r, pgno);
        }
    }
    return rc;
}

int replica_apply(struct replica *r, const struct record *rec)
{
    struct append *a = &r->impl->app;
    struct position after = {.txid = rec->txid, .checksum = rec->after};
    int rc = check_record(r, rec);

    if (rc != FLO_OK) {
        return rc;
    }
    if (rec->fragment == 0) {
        rc = start_fragments(r, rec);
    } else if (!follows(a, rec)) {
        rc = replica_error(r, FLO_MISMATCH, "%s: fragment %u is out of turn",
                           r->name, rec->fragment);
    }
    if (rc == FLO_OK) {
        rc = append_images(r, rec);
    }
    if (rc == FLO_OK && ++a->next_fragment < a->n_fragments) {
        return FLO_OK;
    }
    if (rc == FLO_OK) {
        rc = append_commit(r, rec->n_pages, after);
    }
    if (rc != FLO_OK) {
        append_abort(r);
        if (r->state == REPLICA_PRISTINE) {
            r->page_size = 0;
        }
    }
    return rc;
}

/* ---- Resync ------------------------------------------------------------------------ */

int replica_replace_begin(struct replica *r, uint32_t page_size)
{
    int rc = FLO_OK;

    if (!page_size_valid(page_size)) {
        return FLO_INVALID;
    }
    if (!r->has_fence) {
        return FLO_BUSY;
    }
    append_abort(r);
    if (r->state == REPLICA_BROKEN ||
        (r->state != REPLICA_PRISTINE && r->page_size != page_size)) {
        rc = replica_remake(r, page_size);
    } else {
        rc = prepare_base(r, page_size);
    }
    if (rc == FLO_OK) {
        r->page_size = page_size;
        rc = append_begin(r);
    }
    if (rc == FLO_OK) {
        r->impl->app.replacing = true;
    }
    return rc;
}

int replica_replace_page(struct replica *r, uint32_t pgno, const void *image)
{
    uint8_t *slot;
    int rc;

    if (!r->impl->app.replacing || pgno == 0 ||
        pgno == wal_lock_page(r->page_size)) {
        return FLO_INVALID;
    }
    rc = append_slot(r, &slot);
    if (rc == FLO_OK) {
        memcpy(slot, image, r->page_size);
        rc = append_hold(r, pgno);
    }
    return rc;
}

/* The source has nothing: then neither have we. */
static int replace_by_nothing(struct replica *r, struct position p)
{
    replica_replace_abort(r);
    if (p.txid != 0 || p.checksum != 0) {
        return FLO_MISMATCH;
    }
    return replica_remake(r, 0);
}

int replica_replace_commit(struct replica *r, uint32_t n_pages,
                           struct position p)
{
    int rc;

    if (!r->impl->app.replacing) {
        return FLO_INVALID;
    }
    if (n_pages == 0) {
        return replace_by_nothing(r, p);
    }
    rc = append_commit(r, n_pages, p);
    replica_replace_abort(r);
    return rc;
}

void replica_replace_abort(struct replica *r)
{
    append_abort(r);
    if (r->state == REPLICA_PRISTINE) {
        r->page_size = 0;
    }
}
