/* The WAL and wal-index formats, against SQLite's own files and against a dumb
 * reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/buf.h"
#include "core/error.h"
#include "core/wal.h"

/* ---- Fixture: a WAL with its index, written by SQLite ------------------------------- */

#define PAGE 512u

struct files
{
    sqlite3 *db; /* keeps the index alive */
    char dir[200];
    uint8_t *wal;
    size_t wal_n;
    uint8_t *shm;
    size_t shm_n;
};

static uint8_t *slurp(const char *dir, const char *name, size_t *n)
{
    char path[300];
    FILE *fp;
    uint8_t *p;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    fp = fopen(path, "r");
    assert_non_null(fp);
    fseek(fp, 0, SEEK_END);
    *n = (size_t)ftell(fp);
    rewind(fp);
    p = malloc(*n);
    assert_int_equal(fread(p, 1, *n, fp), *n);
    fclose(fp);
    return p;
}

static int set_up(void **state)
{
    struct files *f = calloc(1, sizeof *f);
    const char *tmp = getenv("TMPDIR");
    char path[300];

    snprintf(f->dir, sizeof f->dir, "%s/flotilla-wal-XXXXXX",
             tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->dir));
    snprintf(path, sizeof path, "%s/t.db", f->dir);
    assert_int_equal(sqlite3_open(path, &f->db), SQLITE_OK);
    assert_int_equal(
        sqlite3_exec(
            f->db,
            "PRAGMA page_size=512; PRAGMA journal_mode=WAL; "
            "PRAGMA wal_autocheckpoint=0; CREATE TABLE t(v);"
            "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT "
            "x+1 FROM c WHERE x<9000) SELECT randomblob(400) FROM c;"
            "UPDATE t SET v=1 WHERE rowid % 50 = 0",
            NULL, NULL, NULL),
        SQLITE_OK);
    f->wal = slurp(f->dir, "t.db-wal", &f->wal_n);
    f->shm = slurp(f->dir, "t.db-shm", &f->shm_n);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct files *f = *state;
    char path[300];

    sqlite3_close(f->db);
    snprintf(path, sizeof path, "%s/t.db", f->dir);
    unlink(path);
    free(f->wal);
    free(f->shm);
    assert_int_equal(rmdir(f->dir), 0);
    free(f);
    return 0;
}

/* ---- Tests ---------------------------------------------------------------------------- */

/* Encoding SQLite's header and frames again gives SQLite's bytes, and ends at
 * the checksum in its index. */
static void test_sqlite_wal(void **state)
{
    struct files *f = *state;
    struct wal_index_hdr index;
    struct wal_header h;
    uint8_t header[WAL_HEADER_BYTES];
    uint32_t cksum[2];
    uint32_t frame;

    assert_int_equal(wal_decode_header(f->wal, &h), FLO_OK);
    assert_int_equal(h.page_size, PAGE);
    memcpy(cksum, h.cksum, sizeof cksum);
    wal_encode_header(&h, header);
    assert_memory_equal(header, f->wal, sizeof header);
    assert_true(wal_index_read(f->shm, &index));
    assert_int_equal(wal_index_page_size(&index), PAGE);
    assert_true(index.mx_frame > 9000);
    for (frame = 1; frame <= index.mx_frame; frame++) {
        uint8_t *at = f->wal + wal_frame_offset(frame, PAGE);
        uint8_t out[WAL_FRAME_HEADER];
        struct wal_frame fr;
        wal_decode_frame(at, &fr);
        wal_encode_frame(h.big_endian, h.salt, fr.pgno, fr.commit, at + 24,
                         PAGE, cksum, out);
        assert_memory_equal(out, at, sizeof out);
    }
    assert_memory_equal(cksum, index.frame_cksum, sizeof cksum);
}

/* The index that we make of SQLite's frames is byte for byte SQLite's, across
 * all its regions. */
static void test_sqlite_index(void **state)
{
    struct files *f = *state;
    struct wal_index_hdr index;
    uint8_t *ours;
    uint32_t frame;

    assert_true(wal_index_read(f->shm, &index));
    ours = malloc(f->shm_n);
    memset(ours, 0xee, f->shm_n);
    memset(ours, 0, 136);
    for (frame = 1; frame <= index.mx_frame; frame++) {
        uint32_t pgno =
            load_u32_be(f->wal + wal_frame_offset(frame, PAGE));
        uint32_t region = wal_region_of(frame);
        uint8_t *p = ours + (size_t)region * WAL_REGION_BYTES;
        assert_true(frame >= wal_region_first(region) &&
                    frame <= wal_region_last(region));
        wal_region_append(p, frame, pgno);
        assert_int_equal(wal_region_pgno(p, frame), pgno);
    }
    assert_true(wal_region_of(index.mx_frame) >= 2);
    assert_memory_equal(
        ours + 136, f->shm + 136,
        (wal_region_of(index.mx_frame) + 1) * (size_t)WAL_REGION_BYTES - 136);
    free(ours);
}

/* Any flipped byte makes the WAL header, or one copy of the index header,
 * not valid. */
static void test_flipped(void **state)
{
    struct files *f = *state;
    struct wal_index_hdr index;
    struct wal_header h;
    size_t i;

    for (i = 0; i < WAL_HEADER_BYTES; i++) {
        f->wal[i] ^= 4;
        assert_int_equal(wal_decode_header(f->wal, &h), FLO_CORRUPT);
        f->wal[i] ^= 4;
    }
    for (i = 0; i < 96; i++) {
        f->shm[i] ^= 4;
        assert_false(wal_index_read(f->shm, &index));
        f->shm[i] ^= 4;
    }
    for (i = 0; i < 48; i++) {
        f->shm[i] ^= 4;
        f->shm[48 + i] ^= 4;
        assert_false(wal_index_read(f->shm, &index));
        f->shm[i] ^= 4;
        f->shm[48 + i] ^= 4;
    }
    assert_true(wal_index_read(f->shm, &index));
}

/* Looking up a page in any window of frames finds what a linear search does,
 * also after frames were forgotten and others entered. */
static void test_find(void **state)
{
    static uint32_t region[WAL_REGION_BYTES / 4];
    static uint32_t pages[5000];
    uint32_t n = 0;
    int round;

    (void)state;
    srand(1);
    memset(region, 0xff, sizeof region);
    for (round = 0; round < 3000; round++) {
        uint32_t first;
        uint32_t last;
        uint32_t pgno = 1 + (uint32_t)rand() % 40 * 8192;
        uint32_t expected = 0;
        uint32_t i;
        if (rand() % 50 == 0 && n > 1) {
            n = 1 + (uint32_t)rand() % n;
            wal_region_clean(region, n);
        }
        for (i = 0; i < 3 && n < wal_region_last(0); i++) {
            pages[++n] = 1 + (uint32_t)rand() % 40 * 8192;
            wal_region_append(region, n, pages[n]);
        }
        first = 1 + (uint32_t)rand() % n;
        last = first + (uint32_t)rand() % (n - first + 1);
        for (i = first; i <= last; i++) {
            expected = pages[i] == pgno ? i : expected;
        }
        assert_int_equal(wal_region_find(region, 0, pgno, first, last),
                         expected);
    }
}

/* Both byte orders of checksums, against numbers worked out by hand. */
static void test_byte_orders(void **state)
{
    static const uint8_t data[8] = {1, 0, 0, 0, 0, 0, 0, 2};
    uint32_t little[2] = {10, 20};
    uint32_t big[2] = {10, 20};

    (void)state;
    wal_checksum(false, data, 8, little);
    assert_int_equal(little[0], 10 + 1 + 20);
    assert_int_equal(little[1], 20 + 0x02000000 + little[0]);
    wal_checksum(true, data, 8, big);
    assert_int_equal(big[0], 10 + 0x01000000 + 20);
    assert_int_equal(big[1], 20 + 2 + big[0]);
}

/* The largest page size has its own spelling in the index. */
static void test_page_sizes(void **state)
{
    uint32_t n;

    (void)state;
    for (n = 512; n <= 65536; n *= 2) {
        struct wal_index_hdr h = {0};
        wal_index_set_page_size(&h, n);
        assert_int_equal(wal_index_page_size(&h), n);
        assert_int_equal((uint64_t)(wal_lock_page(n) - 1) * n, 0x40000000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sqlite_wal),  cmocka_unit_test(test_sqlite_index),
        cmocka_unit_test(test_flipped),     cmocka_unit_test(test_find),
        cmocka_unit_test(test_byte_orders), cmocka_unit_test(test_page_sizes),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
