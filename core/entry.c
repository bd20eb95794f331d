/* Entries and records; the format is drawn in entry.h. */
#include "core/entry.h"

#include <assert.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/error.h"
#include "core/wal.h"

#define ENTRY_MAGIC 0x31454c46u /* "FLE1" */
#define RECORD_HEADER 8
#define RECORD_FIXED 56 /* a TRANSACTION's body without its images */
#define IMAGE_HEADER 16

enum { ENCODING_RAW = 0, ENCODING_LZ4 = 1 };

/* Offsets in a TRANSACTION's body that are filled in at the end. */
enum { AT_AFTER = 16, AT_IMAGES = 44, AT_FRAGMENT = 48, AT_FRAGMENTS = 52 };

/* One record holds at most the target and one page more. */
#define RECORD_BYTES_MAX (RECORD_BYTES_TARGET + 65536 + 4096)

static size_t pad8(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

/* ---- Images ---------------------------------------------------------------- */

struct image
{
    uint32_t pgno;
    uint8_t encoding;
    uint32_t stored;
    const uint8_t *bytes;
};

static int check_padding(struct cursor *c, size_t used)
{
    size_t n = pad8(used) - used;
    const uint8_t *p = cursor_bytes(c, n);
    size_t i;

    for (i = 0; p != NULL && i < n; i++) {
        if (p[i] != 0) {
            return FLO_CORRUPT;
        }
    }
    return p != NULL ? FLO_OK : FLO_CORRUPT;
}

static int parse_image(struct cursor *c, uint32_t page_size, struct image *im)
{
    const uint8_t *zero;
    uint32_t tail;

    im->pgno = cursor_u32(c);
    im->encoding = cursor_u8(c);
    zero = cursor_bytes(c, 3);
    im->stored = cursor_u32(c);
    tail = cursor_u32(c);
    if (c->bad || zero[0] != 0 || zero[1] != 0 || zero[2] != 0 || tail != 0 ||
        im->pgno == 0 || im->pgno == wal_lock_page(page_size)) {
        return FLO_CORRUPT;
    }
    if (im->encoding != ENCODING_RAW && im->encoding != ENCODING_LZ4) {
        return FLO_VERSION;
    }
    if (im->encoding == ENCODING_RAW ? im->stored != page_size
                                     : im->stored >= page_size ||
                                           im->stored == 0) {
        return FLO_CORRUPT;
    }
    im->bytes = cursor_bytes(c, im->stored);
    return c->bad ? FLO_CORRUPT : check_padding(c, im->stored);
}

int record_next_image(struct cursor *c, uint32_t page_size, uint32_t *pgno,
                      uint8_t *image)
{
    struct image im;
    int rc;

    if (c->n == 0 && !c->bad) {
        return FLO_NOTFOUND;
    }
    rc = parse_image(c, page_size, &im);
    if (rc != FLO_OK) {
        return rc;
    }
    if (im.encoding == ENCODING_RAW) {
        memcpy(image, im.bytes, page_size);
    } else if (LZ4_decompress_safe((const char *)im.bytes, (char *)image,
                                   (int)im.stored,
                                   (int)page_size) != (int)page_size) {
        return FLO_CORRUPT;
    }
    *pgno = im.pgno;
    return FLO_OK;
}

static int check_images(const struct record *r)
{
    struct cursor c = cursor_of(r->images.data, r->images.len);
    uint32_t last = 0;
    uint32_t i;

    for (i = 0; i < r->n_images; i++) {
        struct image im;
        int rc = parse_image(&c, r->page_size, &im);
        if (rc != FLO_OK) {
            return rc;
        }
        if (im.pgno <= last || im.pgno > r->n_pages) {
            return FLO_CORRUPT;
        }
        last = im.pgno;
    }
    return c.n == 0 ? FLO_OK : FLO_CORRUPT;
}

/* ---- Records --------------------------------------------------------------- */

static int decode_transaction(struct cursor *c, struct record *r)
{
    r->txid = cursor_u64(c);
    r->before = cursor_u64(c);
    r->after = cursor_u64(c);
    r->commit_id = cursor_u64(c);
    r->origin = cursor_u32(c);
    r->page_size = cursor_u32(c);
    r->n_pages = cursor_u32(c);
    r->n_images = cursor_u32(c);
    r->fragment = cursor_u32(c);
    r->n_fragments = cursor_u32(c);
    if (c->bad || r->txid == 0 || !page_size_valid(r->page_size) ||
        r->n_pages == 0 || r->fragment >= r->n_fragments) {
        return FLO_CORRUPT;
    }
    r->images = (struct wire_blob){.data = c->p, .len = (uint32_t)c->n};
    return check_images(r);
}

static int decode_name(struct cursor *c, size_t n, char *db)
{
    const uint8_t *name = cursor_bytes(c, n);

    if (name == NULL || n > DB_NAME_MAX || memchr(name, 0, n) != NULL) {
        return FLO_CORRUPT;
    }
    memcpy(db, name, n);
    db[n] = '\0';
    if (!db_name_valid(db)) {
        return FLO_CORRUPT;
    }
    return check_padding(c, n);
}

int record_decode(const void *data, size_t n, struct record *r)
{
    struct cursor c = cursor_of(data, n);
    struct record out = {0};
    uint32_t bytes = cursor_u32(&c);
    uint8_t kind = cursor_u8(&c);
    uint8_t zero = cursor_u8(&c);
    uint16_t name = cursor_u16(&c);
    int rc;

    if (c.bad || bytes != n || n % 8 != 0 || zero != 0) {
        return FLO_CORRUPT;
    }
    if (kind < RECORD_TRANSACTION || kind > RECORD_DROP) {
        return FLO_VERSION;
    }
    out.kind = (enum record_kind)kind;
    rc = decode_name(&c, name, out.db);
    if (rc == FLO_OK && out.kind == RECORD_TRANSACTION) {
        rc = decode_transaction(&c, &out);
    } else if (rc == FLO_OK && c.n != 0) {
        rc = FLO_CORRUPT;
    }
    if (rc == FLO_OK) {
        *r = out;
    }
    return rc;
}

static int put_header(struct buf *out, enum record_kind kind, const char *db)
{
    size_t n = strlen(db);
    int rc = buf_reserve(out, RECORD_HEADER + pad8(n));

    if (rc != FLO_OK) {
        return rc;
    }
    (void)buf_put_u32(out, (uint32_t)(RECORD_HEADER + pad8(n)));
    (void)buf_put_u8(out, (uint8_t)kind);
    (void)buf_put_u8(out, 0);
    (void)buf_put_u16(out, (uint16_t)n);
    (void)buf_append(out, db, n);
    while (n++ % 8 != 0) {
        (void)buf_put_u8(out, 0);
    }
    return FLO_OK;
}

int record_encode_simple(struct buf *out, enum record_kind kind, const char *db)
{
    if (!db_name_valid(db) || (kind != RECORD_CREATE && kind != RECORD_DROP)) {
        return FLO_INVALID;
    }
    return put_header(out, kind, db);
}

/* ---- Entries --------------------------------------------------------------- */

int entry_wrap(const void *record, size_t n, void **entry, size_t *entry_n)
{
    uint8_t *p;

    assert(n % 8 == 0 && n <= UINT32_MAX - ENTRY_HEADER);
    p = malloc(ENTRY_HEADER + n);
    if (p == NULL) {
        return FLO_NOMEM;
    }
    store_u32(p, ENTRY_MAGIC);
    store_u32(p + 4, (uint32_t)(ENTRY_HEADER + n));
    store_u32(p + 8, 1);
    store_u32(p + 12, 0);
    store_u64(p + 16, XXH3_64bits(record, n));
    memcpy(p + ENTRY_HEADER, record, n);
    *entry = p;
    *entry_n = ENTRY_HEADER + n;
    return FLO_OK;
}

static int count_records(struct cursor c, uint32_t expected)
{
    const void *record;
    uint32_t found = 0;
    size_t n;
    int rc;

    while ((rc = entry_next(&c, &record, &n)) == FLO_OK) {
        found++;
    }
    return rc == FLO_NOTFOUND && found == expected ? FLO_OK : FLO_CORRUPT;
}

int entry_open(const void *data, size_t n, struct cursor *c)
{
    struct cursor in = cursor_of(data, n);
    uint32_t magic = cursor_u32(&in);
    uint32_t bytes = cursor_u32(&in);
    uint32_t records = cursor_u32(&in);
    uint32_t zero = cursor_u32(&in);
    uint64_t hash = cursor_u64(&in);
    int rc;

    if (in.bad) {
        return FLO_CORRUPT;
    }
    if (magic != ENTRY_MAGIC) {
        return FLO_VERSION;
    }
    if (bytes != n || n % 8 != 0 || zero != 0 || records == 0 ||
        XXH3_64bits(in.p, in.n) != hash) {
        return FLO_CORRUPT;
    }
    rc = count_records(in, records);
    if (rc == FLO_OK) {
        *c = in;
    }
    return rc;
}

int entry_next(struct cursor *c, const void **record, size_t *n)
{
    uint32_t bytes;

    if (c->n == 0 && !c->bad) {
        return FLO_NOTFOUND;
    }
    if (c->bad || c->n < RECORD_HEADER) {
        return FLO_CORRUPT;
    }
    bytes = load_u32(c->p);
    if (bytes < RECORD_HEADER || bytes % 8 != 0 || bytes > c->n) {
        return FLO_CORRUPT;
    }
    *record = cursor_bytes(c, bytes);
    *n = bytes;
    return FLO_OK;
}

/* ---- Building a transaction ------------------------------------------------ */

static size_t body_offset(const struct txn_builder *b)
{
    return RECORD_HEADER + pad8(strlen(b->head.db));
}

int txn_builder_init(struct txn_builder *b, const struct record *head,
                     size_t max_bytes)
{
    *b = (struct txn_builder){.head = *head, .max_bytes = max_bytes};
    if (!db_name_valid(head->db) || !page_size_valid(head->page_size) ||
        head->n_pages == 0 || head->txid == 0) {
        return FLO_INVALID;
    }
    b->head.kind = RECORD_TRANSACTION;
    b->head.images = (struct wire_blob){0};
    b->head.n_images = 0;
    b->scratch = malloc((size_t)LZ4_compressBound((int)head->page_size));
    return b->scratch != NULL ? FLO_OK : FLO_NOMEM;
}

static int grow_records(struct txn_builder *b)
{
    size_t cap = b->n_cap > 0 ? b->n_cap * 2 : 4;
    struct buf *p;

    if (b->n_records < b->n_cap) {
        return FLO_OK;
    }
    p = realloc(b->records, cap * sizeof *p);
    if (p == NULL) {
        return FLO_NOMEM;
    }
    b->records = p;
    b->n_cap = cap;
    return FLO_OK;
}

static int put_fixed(struct buf *out, const struct record *r)
{
    int rc = buf_reserve(out, RECORD_FIXED);

    if (rc != FLO_OK) {
        return rc;
    }
    (void)buf_put_u64(out, r->txid);
    (void)buf_put_u64(out, r->before);
    (void)buf_put_u64(out, 0); /* after, at the end */
    (void)buf_put_u64(out, r->commit_id);
    (void)buf_put_u32(out, r->origin);
    (void)buf_put_u32(out, r->page_size);
    (void)buf_put_u32(out, r->n_pages);
    (void)buf_put_u32(out, 0); /* images, with each one */
    (void)buf_put_u32(out, 0); /* fragment, at the end */
    (void)buf_put_u32(out, 0); /* fragments, at the end */
    return FLO_OK;
}

static int start_record(struct txn_builder *b)
{
    size_t fixed = body_offset(b) + RECORD_FIXED;
    struct buf *out;
    int rc = grow_records(b);

    if (rc != FLO_OK) {
        return rc;
    }
    if (b->bytes + fixed > b->max_bytes) {
        return FLO_TOOBIG;
    }
    out = &b->records[b->n_records];
    buf_init(out, RECORD_BYTES_MAX);
    rc = put_header(out, RECORD_TRANSACTION, b->head.db);
    if (rc == FLO_OK) {
        rc = put_fixed(out, &b->head);
    }
    if (rc != FLO_OK) {
        buf_close(out);
        return rc;
    }
    store_u32(out->data, (uint32_t)out->len);
    b->n_records++;
    b->bytes += fixed;
    return FLO_OK;
}

static int put_image(struct txn_builder *b, struct buf *out,
                     const struct image *im)
{
    size_t bytes = IMAGE_HEADER + pad8(im->stored);
    uint8_t *images;
    int rc;

    if (b->bytes + bytes > b->max_bytes) {
        return FLO_TOOBIG;
    }
    rc = buf_reserve(out, bytes);
    if (rc != FLO_OK) {
        return rc;
    }
    (void)buf_put_u32(out, im->pgno);
    (void)buf_put_u32(out, im->encoding);
    (void)buf_put_u32(out, im->stored);
    (void)buf_put_u32(out, 0);
    (void)buf_append(out, im->bytes, im->stored);
    (void)buf_pad(out, 8);
    store_u32(out->data, (uint32_t)out->len);
    images = out->data + body_offset(b) + AT_IMAGES;
    store_u32(images, load_u32(images) + 1);
    b->bytes += bytes;
    return FLO_OK;
}

int txn_builder_page(struct txn_builder *b, uint32_t pgno, const void *image)
{
    int page_size = (int)b->head.page_size;
    struct image im = {.pgno = pgno,
                       .encoding = ENCODING_RAW,
                       .stored = b->head.page_size,
                       .bytes = image};
    int n;

    assert(pgno > 0 && pgno <= b->head.n_pages);
    if (b->n_records == 0 ||
        b->records[b->n_records - 1].len >= RECORD_BYTES_TARGET) {
        int rc = start_record(b);
        if (rc != FLO_OK) {
            return rc;
        }
    }
    n = LZ4_compress_default(image, (char *)b->scratch, page_size,
                             LZ4_compressBound(page_size));
    if (n > 0 && n + 8 <= page_size) {
        im.encoding = ENCODING_LZ4;
        im.stored = (uint32_t)n;
        im.bytes = b->scratch;
    }
    return put_image(b, &b->records[b->n_records - 1], &im);
}

int txn_builder_finish(struct txn_builder *b, uint64_t after)
{
    size_t i;

    if (b->n_records == 0) {
        int rc = start_record(b);
        if (rc != FLO_OK) {
            return rc;
        }
    }
    for (i = 0; i < b->n_records; i++) {
        uint8_t *body = b->records[i].data + body_offset(b);
        store_u64(body + AT_AFTER, after);
        store_u32(body + AT_FRAGMENT, (uint32_t)i);
        store_u32(body + AT_FRAGMENTS, (uint32_t)b->n_records);
    }
    b->head.after = after;
    b->head.n_fragments = (uint32_t)b->n_records;
    return FLO_OK;
}

void txn_builder_close(struct txn_builder *b)
{
    size_t i;

    for (i = 0; i < b->n_records; i++) {
        buf_close(&b->records[i]);
    }
    free(b->records);
    free(b->scratch);
    *b = (struct txn_builder){0};
}
