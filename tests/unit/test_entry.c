/* Entries and records: what is encoded is decoded, and nothing else is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "core/entry.h"
#include "core/error.h"
#include "core/wal.h"

/* ---- Fixture ------------------------------------------------------------------ */

#define PAGE 4096u
#define MAX (64u << 20)

static const struct record head = {.db = "app",
                                   .txid = 7,
                                   .before = 11,
                                   .commit_id = 13,
                                   .origin = 3,
                                   .page_size = PAGE,
                                   .n_pages = 2000};

/* ---- Helpers ------------------------------------------------------------------ */

/* Every third page cannot be compressed. */
static void fill_page(uint32_t pgno, uint8_t *page)
{
    uint64_t x = pgno;
    size_t i;

    for (i = 0; i < PAGE; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        page[i] = pgno % 3 == 0 ? (uint8_t)(x >> 40) : (uint8_t)(pgno + i / 64);
    }
}

/* A transaction of the pages 2, 4, 6 … 2n. */
static void build(struct txn_builder *b, uint32_t n)
{
    uint8_t page[PAGE];
    uint32_t i;

    assert_int_equal(txn_builder_init(b, &head, MAX), FLO_OK);
    for (i = 1; i <= n; i++) {
        fill_page(2 * i, page);
        assert_int_equal(txn_builder_page(b, 2 * i, page), FLO_OK);
    }
    assert_int_equal(txn_builder_finish(b, 99), FLO_OK);
}

/* Decode as the replica does, images too. */
static int decode_all(const void *entry, size_t n)
{
    static uint8_t page[65536];
    struct cursor c;
    const void *bytes;
    size_t record_n;
    int rc = entry_open(entry, n, &c);

    while (rc == FLO_OK) {
        struct cursor images;
        struct record r;
        uint32_t pgno;
        rc = entry_next(&c, &bytes, &record_n);
        if (rc != FLO_OK) {
            break;
        }
        rc = record_decode(bytes, record_n, &r);
        if (rc != FLO_OK) {
            return rc;
        }
        images = cursor_of(r.images.data, r.images.len);
        while (rc == FLO_OK && r.kind == RECORD_TRANSACTION) {
            rc = record_next_image(&images, r.page_size, &pgno, page);
        }
        rc = rc == FLO_NOTFOUND ? FLO_OK : rc;
    }
    return rc == FLO_NOTFOUND ? FLO_OK : rc;
}

/* ---- Tests -------------------------------------------------------------------- */

/* Every page comes back as it was, from fragments in order, each of which fits
 * into one message. */
static void test_roundtrip(void **state)
{
    struct txn_builder b;
    uint8_t expected[PAGE];
    uint8_t page[PAGE];
    uint32_t seen = 0;
    size_t i;

    (void)state;
    build(&b, 1000);
    assert_true(b.n_records > 1);
    for (i = 0; i < b.n_records; i++) {
        struct cursor c;
        struct record r;
        uint32_t pgno;
        assert_true(b.records[i].len + ENTRY_HEADER + 64 < WIRE_BODY_MAX);
        assert_int_equal(
            record_decode(b.records[i].data, b.records[i].len, &r), FLO_OK);
        assert_string_equal(r.db, "app");
        assert_int_equal(r.txid, 7);
        assert_int_equal(r.before, 11);
        assert_int_equal(r.after, 99);
        assert_int_equal(r.commit_id, 13);
        assert_int_equal(r.origin, 3);
        assert_int_equal(r.n_pages, 2000);
        assert_int_equal(r.fragment, i);
        assert_int_equal(r.n_fragments, b.n_records);
        c = cursor_of(r.images.data, r.images.len);
        while (record_next_image(&c, PAGE, &pgno, page) == FLO_OK) {
            seen++;
            assert_int_equal(pgno, 2 * seen);
            fill_page(pgno, expected);
            assert_memory_equal(page, expected, PAGE);
        }
    }
    assert_int_equal(seen, 1000);
    txn_builder_close(&b);
}

/* A transaction without pages is one record. */
static void test_no_pages(void **state)
{
    struct txn_builder b;
    struct record r;

    (void)state;
    build(&b, 0);
    assert_int_equal(b.n_records, 1);
    assert_int_equal(record_decode(b.records[0].data, b.records[0].len, &r),
                     FLO_OK);
    assert_int_equal(r.n_images, 0);
    txn_builder_close(&b);
}

/* Memory is bounded by what the caller says. */
static void test_too_big(void **state)
{
    struct txn_builder b;
    uint8_t page[PAGE];
    uint32_t pgno = 0;
    int rc = FLO_OK;

    (void)state;
    fill_page(3, page);
    assert_int_equal(txn_builder_init(&b, &head, 100000), FLO_OK);
    while (rc == FLO_OK) {
        rc = txn_builder_page(&b, ++pgno, page);
    }
    assert_int_equal(rc, FLO_TOOBIG);
    assert_in_range(pgno, 20, 25);
    assert_true(b.bytes <= 100000);
    txn_builder_close(&b);
}

/* CREATE and DROP come back; names that are none are refused both ways. */
static void test_simple(void **state)
{
    struct buf out;
    struct record r;
    char name[DB_NAME_MAX + 2];
    size_t n;

    (void)state;
    buf_init(&out, 4096);
    memset(name, 'n', sizeof name);
    name[DB_NAME_MAX + 1] = '\0';
    assert_int_equal(record_encode_simple(&out, RECORD_CREATE, name),
                     FLO_INVALID);
    assert_int_equal(record_encode_simple(&out, RECORD_CREATE, "../x"),
                     FLO_INVALID);
    assert_int_equal(record_encode_simple(&out, RECORD_CREATE, ""),
                     FLO_INVALID);
    for (n = 1; n <= DB_NAME_MAX; n++) {
        name[n] = '\0';
        memset(name, 'n', n);
        out.len = 0;
        assert_int_equal(record_encode_simple(&out, RECORD_DROP, name), FLO_OK);
        assert_int_equal(out.len % 8, 0);
        assert_int_equal(record_decode(out.data, out.len, &r), FLO_OK);
        assert_int_equal(r.kind, RECORD_DROP);
        assert_string_equal(r.db, name);
    }
    buf_close(&out);
}

/* No flipped bit and no cut-off entry is taken for an entry. */
static void test_damage(void **state)
{
    struct txn_builder b;
    void *entry;
    uint8_t *p;
    size_t n;
    size_t i;

    (void)state;
    build(&b, 4);
    assert_int_equal(
        entry_wrap(b.records[0].data, b.records[0].len, &entry, &n), FLO_OK);
    assert_int_equal(n % 8, 0);
    assert_int_equal(decode_all(entry, n), FLO_OK);
    p = entry;
    for (i = 0; i < n; i++) {
        p[i] ^= (uint8_t)(1 << i % 8);
        assert_int_not_equal(decode_all(entry, n), FLO_OK);
        p[i] ^= (uint8_t)(1 << i % 8);
    }
    for (i = 0; i < n; i++) {
        uint8_t *cut = malloc(i + 1);
        memcpy(cut, entry, i);
        assert_int_not_equal(decode_all(cut, i), FLO_OK);
        free(cut);
    }
    free(entry);
    txn_builder_close(&b);
}

/* With a right checksum, what makes no sense is still refused, and never read
 * past its end. */
static void test_hostile(void **state)
{
    struct txn_builder b;
    void *entry;
    uint8_t *p;
    size_t n;
    size_t i;
    int v;

    (void)state;
    build(&b, 2);
    assert_int_equal(
        entry_wrap(b.records[0].data, b.records[0].len, &entry, &n), FLO_OK);
    p = entry;
    for (i = 8; i < n && i < 200; i++) {
        for (v = 0; v < 256; v += 51) {
            uint8_t old = p[i];
            uint64_t hash;
            p[i] = (uint8_t)v;
            hash = XXH3_64bits(p + ENTRY_HEADER, n - ENTRY_HEADER);
            store_u64(p + 16, hash);
            (void)decode_all(entry, n);
            p[i] = old;
        }
    }
    free(entry);
    txn_builder_close(&b);
}

/* Unknown kinds, encodings and magics are FLO_VERSION, not damage. */
static void test_unknown(void **state)
{
    struct txn_builder b;
    struct record r;
    uint8_t *p;
    size_t n;
    void *entry;
    struct cursor c;

    (void)state;
    build(&b, 1);
    p = b.records[0].data;
    n = b.records[0].len;
    p[4] = 9;
    assert_int_equal(record_decode(p, n, &r), FLO_VERSION);
    p[4] = RECORD_TRANSACTION;
    p[16 + 56 + 4] = 2;
    assert_int_equal(record_decode(p, n, &r), FLO_VERSION);
    p[16 + 56 + 4] = 1;
    assert_int_equal(record_decode(p, n, &r), FLO_OK);
    assert_int_equal(entry_wrap(p, n, &entry, &n), FLO_OK);
    ((uint8_t *)entry)[3] = '2';
    assert_int_equal(entry_open(entry, n, &c), FLO_VERSION);
    free(entry);
    txn_builder_close(&b);
}

/* Pages out of order, beyond the end, or the lock page are refused. */
static void test_page_rules(void **state)
{
    static const uint32_t bad[] = {0, 1, 2, 2001};
    struct txn_builder b;
    struct record r;
    uint8_t page[PAGE];
    size_t second;
    size_t i;

    (void)state;
    assert_int_equal(txn_builder_init(&b, &head, MAX), FLO_OK);
    memset(page, 1, sizeof page);
    assert_int_equal(txn_builder_page(&b, 2, page), FLO_OK);
    second = b.records[0].len;
    assert_int_equal(txn_builder_page(&b, 3, page), FLO_OK);
    assert_int_equal(txn_builder_finish(&b, 1), FLO_OK);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        store_u32(b.records[0].data + second, bad[i]);
        assert_int_equal(
            record_decode(b.records[0].data, b.records[0].len, &r),
            FLO_CORRUPT);
    }
    store_u32(b.records[0].data + 16 + 40, wal_lock_page(PAGE) + 10);
    store_u32(b.records[0].data + second, wal_lock_page(PAGE));
    assert_int_equal(record_decode(b.records[0].data, b.records[0].len, &r),
                     FLO_CORRUPT);
    store_u32(b.records[0].data + second, wal_lock_page(PAGE) + 1);
    assert_int_equal(record_decode(b.records[0].data, b.records[0].len, &r),
                     FLO_OK);
    txn_builder_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roundtrip),  cmocka_unit_test(test_no_pages),
        cmocka_unit_test(test_too_big),    cmocka_unit_test(test_simple),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_unknown),    cmocka_unit_test(test_page_rules),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
