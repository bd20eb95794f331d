/* Frames whose headers SQLite left unfinished.
 *
 * When a transaction rewrites a page that it had spilled into the WAL already,
 * SQLite writes the headers of later frames with salt and checksum zero, and
 * fills them in at the commit. After a ROLLBACK TO in between it starts too
 * late (measured on 3.40.1: of a hundred random transactions with a tiny cache
 * and savepoints, plain SQLite lost 83 in the recovery that followed a crash).
 * Readers do not care, they go through the wal-index; but a recovery stops at
 * such a frame, and drops this transaction and all later ones in the WAL.
 *
 * So when the daemon takes over what a client published, it looks at the salts;
 * if one is missing it writes all the transaction's frame headers anew, and
 * publishes the wal-index header with the checksum that the next frame must
 * continue. A kill in between leaves what SQLite left: raft's log has it all. */
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "core/error.h"
#include "core/replica_impl.h"

struct chain
{
    bool big_endian;
    uint32_t cksum[2];
};

static int read_at(struct replica *r, void *data, size_t n, sqlite3_int64 at)
{
    sqlite3_file *f = r->impl->walf;

    return sqlite_error(f->pMethods->xRead(f, data, (int)n, at), f);
}

/* Is a frame of [first, last] without its salt? */
static int find_unfinished(struct replica *r, uint32_t first,
                           const struct wal_index_hdr *h, bool *found)
{
    *found = false;
    for (uint32_t frame = first; frame <= h->mx_frame && !*found; frame++) {
        uint8_t raw[WAL_FRAME_HEADER];
        struct wal_frame f;
        int rc = read_at(r, raw, sizeof raw,
                         wal_frame_offset(frame, r->page_size));
        if (rc != FLO_OK) {
            return rc;
        }
        wal_decode_frame(raw, &f);
        *found = memcmp(f.salt, h->salt, sizeof f.salt) != 0;
    }
    return FLO_OK;
}

/* The checksum that frame `first` continues. */
static int chain_before(struct replica *r, uint32_t first, struct chain *c)
{
    uint8_t raw[WAL_HEADER_BYTES];
    struct wal_header h;
    int rc;

    if (first > 1) {
        c->big_endian = r->impl->hdr.big_endian != 0;
        memcpy(c->cksum, r->impl->hdr.frame_cksum, sizeof c->cksum);
        return FLO_OK;
    }
    rc = read_at(r, raw, sizeof raw, 0);
    if (rc == FLO_OK) {
        rc = wal_decode_header(raw, &h);
    }
    if (rc == FLO_OK) {
        c->big_endian = h.big_endian;
        memcpy(c->cksum, h.cksum, sizeof c->cksum);
    }
    return rc;
}

static int mend_frame(struct replica *r, uint32_t frame,
                      const struct wal_index_hdr *h, struct chain *c,
                      uint8_t *buf)
{
    sqlite3_file *wal = r->impl->walf;
    sqlite3_int64 at = wal_frame_offset(frame, r->page_size);
    struct wal_frame f;
    int rc = read_at(r, buf, WAL_FRAME_HEADER + (size_t)r->page_size, at);

    if (rc != FLO_OK) {
        return rc;
    }
    wal_decode_frame(buf, &f);
    wal_encode_frame(c->big_endian, h->salt, f.pgno, f.commit,
                     buf + WAL_FRAME_HEADER, r->page_size, c->cksum, buf);
    return sqlite_error(wal->pMethods->xWrite(wal, buf, WAL_FRAME_HEADER, at),
                        wal);
}

int replica_mend(struct replica *r, uint32_t first, struct wal_index_hdr *h)
{
    struct chain c;
    uint8_t *buf;
    bool unfinished;
    int rc = find_unfinished(r, first, h, &unfinished);

    if (rc != FLO_OK || !unfinished) {
        return rc;
    }
    buf = malloc(WAL_FRAME_HEADER + (size_t)r->page_size);
    rc = buf != NULL ? chain_before(r, first, &c) : FLO_NOMEM;
    for (uint32_t i = first; i <= h->mx_frame && rc == FLO_OK; i++) {
        rc = mend_frame(r, i, h, &c, buf);
    }
    free(buf);
    if (rc == FLO_OK) {
        memcpy(h->frame_cksum, c.cksum, sizeof h->frame_cksum);
        rc = replica_publish(r, h);
    }
    return rc;
}
