/* The replica against SQLite itself.
 *
 * Test doubles:
 *
 * "double" is a VFS over the plain one that stands for the extension. It grants
 * WRITE without taking the real lock, refuses checkpoints and WAL restarts,
 * and holds the commit frame's header back until the transaction was collected.
 * It reports the moments `stage` names, at which a test may end the process, as
 * kill -9 does: nothing of it is cleaned up but what the kernel does.
 *
 * "unix", registered by the kill tests over the real one of that name, counts
 * each write, truncation, sync, barrier and exclusive shared-memory lock, and
 * ends the process at the n-th: after a write it does half of, so that torn
 * writes occur. Stores to memory between two of these steps are not told
 * apart.
 *
 * The oracle: SQLite recovers a copy of the database and its WAL, without the
 * wal-index; what it serializes must hash to the position's checksum, and what
 * it recovered must equal what we published. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/error.h"
#include "core/replica_impl.h"

/* ---- Fixture ------------------------------------------------------------------ */

struct fixture
{
    char root[256];
    char a[300];
    char b[300];
};

static void run(const char *format, const char *arg)
{
    char command[2048];

    snprintf(command, sizeof command, format, arg);
    assert_int_equal(system(command), 0);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    const char *tmp = getenv("TMPDIR");

    snprintf(f->root, sizeof f->root, "%s/flotilla-replica-XXXXXX",
             tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->root));
    snprintf(f->a, sizeof f->a, "%s/a", f->root);
    snprintf(f->b, sizeof f->b, "%s/b", f->root);
    assert_int_equal(mkdir(f->a, 0700), 0);
    assert_int_equal(mkdir(f->b, 0700), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    run("rm -rf '%s'", f->root);
    free(f);
    return 0;
}

/* ---- Helpers: random numbers, SQL ----------------------------------------------- */

static uint64_t seed = 1;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

static int try_exec(sqlite3 *db, const char *sql)
{
    return sqlite3_exec(db, sql, NULL, NULL, NULL);
}

static void exec_ok(sqlite3 *db, const char *sql)
{
    int rc = try_exec(db, sql);

    if (rc != SQLITE_OK) {
        fail_msg("%s: %s (%d)", sql, sqlite3_errmsg(db), rc);
    }
}

static sqlite3_int64 query_int(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt;
    sqlite3_int64 v;

    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
    v = sqlite3_column_int64(stmt, 0);
    sqlite3_finalize(stmt);
    return v;
}

static sqlite3 *open_plain(const char *dir)
{
    char path[2048];
    sqlite3 *db;

    snprintf(path, sizeof path, "%s/app.db", dir);
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, "unix"),
                     SQLITE_OK);
    return db;
}

static void open_ok(struct replica *r, const char *dir)
{
    int rc = replica_open(r, dir, "app", 2000);

    if (rc != FLO_OK) {
        fail_msg("open: %s: %s", flo_strerror(rc), r->errmsg);
    }
}

/* ---- Helpers: the oracle ---------------------------------------------------------- */

static uint64_t image_checksum(const uint8_t *image, uint32_t n,
                               uint32_t page_size)
{
    uint64_t sum = 0;
    uint32_t i;

    for (i = 0; i < n; i++) {
        if (i + 1 != wal_lock_page(page_size)) {
            sum ^= page_hash(i + 1, image + (size_t)i * page_size, page_size);
        }
    }
    return sum;
}

/* What SQLite makes of a copy of the files: malloc'd, n bytes. */
static uint8_t *recovered_image(const char *dir, size_t *n,
                                struct wal_index_hdr *hdr)
{
    char command[9000];
    char copy[2000];
    sqlite3 *db;
    sqlite3_int64 bytes = 0;
    unsigned char *s;
    uint8_t *out;
    FILE *shm;

    snprintf(copy, sizeof copy, "%s/copy", dir);
    snprintf(command, sizeof command,
             "rm -rf '%s' && mkdir '%s' && cp '%s'/app.db '%s' && "
             "if [ -e '%s'/app.db-wal ]; then cp '%s'/app.db-wal '%s'; fi",
             copy, copy, dir, copy, dir, dir, copy);
    assert_int_equal(system(command), 0);
    db = open_plain(copy);
    assert_int_equal(query_int(db, "SELECT count(*) FROM "
                                   "pragma_integrity_check "
                                   "WHERE integrity_check <> 'ok'"),
                     0);
    snprintf(command, sizeof command, "%s/app.db-shm", copy);
    shm = fopen(command, "r");
    assert_non_null(shm);
    assert_int_equal(fread(hdr, sizeof *hdr, 1, shm), 1);
    fclose(shm);
    s = sqlite3_serialize(db, "main", &bytes, 0);
    assert_non_null(s);
    out = malloc((size_t)bytes);
    memcpy(out, s, (size_t)bytes);
    *n = (size_t)bytes;
    sqlite3_free(s);
    sqlite3_close(db);
    return out;
}

static void check_hashes(const struct replica *r, const uint8_t *image)
{
    const uint64_t *hashes = replica_hashes(r);
    uint32_t i;

    for (i = 0; i < r->n_pages; i++) {
        assert_true(hashes[i] == page_hash(i + 1,
                                           image + (size_t)i * r->page_size,
                                           r->page_size));
    }
}

/* The caller frees what it returns. */
static uint8_t *check_oracle(struct replica *r, const char *dir)
{
    struct wal_index_hdr hdr;
    size_t n;
    uint8_t *image = recovered_image(dir, &n, &hdr);

    assert_int_equal(r->state, REPLICA_GOOD);
    assert_int_equal(n, (size_t)r->n_pages * r->page_size);
    assert_true(image_checksum(image, r->n_pages, r->page_size) ==
                r->position.checksum);
    check_hashes(r, image);
    assert_int_equal(hdr.mx_frame, r->wal_frames);
    if (r->wal_frames > 0) {
        assert_int_equal(hdr.n_page, r->n_pages);
        assert_memory_equal(hdr.salt, r->impl->hdr.salt, 8);
        assert_memory_equal(hdr.frame_cksum, r->impl->hdr.frame_cksum, 8);
    }
    return image;
}

static void check_good(struct replica *r, const char *dir)
{
    free(check_oracle(r, dir));
}

static void check_same(struct replica *a, const char *dir_a, struct replica *b,
                       const char *dir_b)
{
    uint8_t *x = check_oracle(a, dir_a);
    uint8_t *y = check_oracle(b, dir_b);

    assert_true(position_equal(a->position, b->position));
    assert_int_equal(a->n_pages, b->n_pages);
    assert_memory_equal(x, y, (size_t)a->n_pages * a->page_size);
    free(x);
    free(y);
}

/* ---- Helpers: the client's VFS ------------------------------------------------------- */

enum stage {
    STAGE_NONE,
    STAGE_DATA,      /* the last frame's page is written, not its header */
    STAGE_COMMITTED, /* raft has committed */
    STAGE_HEADER,    /* the last frame's header is written */
    STAGE_TORN,      /* one copy of the wal-index header is stored */
    STAGE_PUBLISHED  /* both are */
};

/* What the double asks: may this transaction be committed? */
struct commit_request
{
    uint32_t last_frame;
    uint32_t n_pages;
    uint8_t header[24];
};

static struct
{
    int (*commit)(const struct commit_request *q); /* 0: committed */
    void (*locked)(void);
    void (*unlocked)(void);
    enum stage die_at;
    bool committed; /* in this transaction */
    bool held;
    sqlite3_int64 held_at;
    uint8_t header[24];
} client;

struct double_file
{
    sqlite3_file base;
    sqlite3_file *real;
    bool is_wal;
};

static sqlite3_vfs *real_vfs;
static sqlite3_io_methods double_methods;
static sqlite3_vfs double_vfs;

#define REAL(f) (((struct double_file *)(f))->real)

static void pass_stage(enum stage stage)
{
    if (client.die_at == stage) {
        _exit(0);
    }
}

static int d_close(sqlite3_file *f)
{
    return REAL(f)->pMethods->xClose(REAL(f));
}
static int d_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
    return REAL(f)->pMethods->xRead(REAL(f), p, n, at);
}
static int d_truncate(sqlite3_file *f, sqlite3_int64 n)
{
    return REAL(f)->pMethods->xTruncate(REAL(f), n);
}
static int d_sync(sqlite3_file *f, int flags)
{
    return REAL(f)->pMethods->xSync(REAL(f), flags);
}
static int d_size(sqlite3_file *f, sqlite3_int64 *n)
{
    return REAL(f)->pMethods->xFileSize(REAL(f), n);
}
static int d_lock(sqlite3_file *f, int level)
{
    return REAL(f)->pMethods->xLock(REAL(f), level);
}
static int d_unlock(sqlite3_file *f, int level)
{
    return REAL(f)->pMethods->xUnlock(REAL(f), level);
}
static int d_reserved(sqlite3_file *f, int *out)
{
    return REAL(f)->pMethods->xCheckReservedLock(REAL(f), out);
}
static int d_control(sqlite3_file *f, int op, void *arg)
{
    return REAL(f)->pMethods->xFileControl(REAL(f), op, arg);
}
static int d_sector(sqlite3_file *f)
{
    return REAL(f)->pMethods->xSectorSize(REAL(f));
}
static int d_traits(sqlite3_file *f)
{
    return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}
static int d_map(sqlite3_file *f, int i, int n, int extend, void volatile **p)
{
    return REAL(f)->pMethods->xShmMap(REAL(f), i, n, extend, p);
}
static int d_unmap(sqlite3_file *f, int delete_it)
{
    return REAL(f)->pMethods->xShmUnmap(REAL(f), delete_it);
}

static int double_shm_lock(sqlite3_file *f, int first, int n, int flags)
{
    bool lock = (flags & SQLITE_SHM_LOCK) != 0;

    if (first == WAL_LOCK_WRITE && n == 1) {
        if (lock) {
            client.committed = client.held = false;
            client.locked();
        } else {
            if (client.committed) {
                pass_stage(STAGE_PUBLISHED);
            }
            client.unlocked();
        }
        return SQLITE_OK;
    }
    if (lock && (first == WAL_LOCK_CHECKPOINT || n == 4)) {
        return SQLITE_BUSY;
    }
    return REAL(f)->pMethods->xShmLock(REAL(f), first, n, flags);
}

static void double_barrier(sqlite3_file *f)
{
    REAL(f)->pMethods->xShmBarrier(REAL(f));
    if (client.committed) {
        pass_stage(STAGE_TORN);
    }
}

static int double_commit(sqlite3_file *f, int page_size)
{
    struct commit_request q = {.n_pages = load_u32_be(client.header + 4)};

    client.held = false;
    q.last_frame =
        (uint32_t)((client.held_at - WAL_HEADER_BYTES) / (page_size + 24) + 1);
    memcpy(q.header, client.header, sizeof q.header);
    pass_stage(STAGE_DATA);
    if (client.commit(&q) != 0) {
        return SQLITE_BUSY;
    }
    client.committed = true;
    pass_stage(STAGE_COMMITTED);
    if (REAL(f)->pMethods->xWrite(REAL(f), client.header, 24,
                                  client.held_at) != SQLITE_OK) {
        return SQLITE_IOERR_WRITE;
    }
    pass_stage(STAGE_HEADER);
    return SQLITE_OK;
}

static int double_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    bool is_wal = ((struct double_file *)f)->is_wal;
    int rc;

    if (is_wal && n == 24 && !client.committed &&
        load_u32_be((const uint8_t *)p + 4) != 0) {
        memcpy(client.header, p, 24);
        client.held = true;
        client.held_at = at;
        return SQLITE_OK;
    }
    rc = REAL(f)->pMethods->xWrite(REAL(f), p, n, at);
    if (rc == SQLITE_OK && is_wal && client.held &&
        at == client.held_at + 24) {
        rc = double_commit(f, n);
    }
    return rc;
}

static int double_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file,
                       int flags, int *out)
{
    struct double_file *f = (struct double_file *)file;
    int rc;

    (void)vfs;
    f->real = (sqlite3_file *)(f + 1);
    f->is_wal = (flags & SQLITE_OPEN_WAL) != 0;
    rc = real_vfs->xOpen(real_vfs, name, f->real, flags, out);
    f->base.pMethods = rc == SQLITE_OK ? &double_methods : NULL;
    return rc;
}

static void register_double(void)
{
    real_vfs = sqlite3_vfs_find("unix");
    double_methods = (sqlite3_io_methods){.iVersion = 2,
                                          .xClose = d_close,
                                          .xRead = d_read,
                                          .xWrite = double_write,
                                          .xTruncate = d_truncate,
                                          .xSync = d_sync,
                                          .xFileSize = d_size,
                                          .xLock = d_lock,
                                          .xUnlock = d_unlock,
                                          .xCheckReservedLock = d_reserved,
                                          .xFileControl = d_control,
                                          .xSectorSize = d_sector,
                                          .xDeviceCharacteristics = d_traits,
                                          .xShmMap = d_map,
                                          .xShmLock = double_shm_lock,
                                          .xShmBarrier = double_barrier,
                                          .xShmUnmap = d_unmap};
    double_vfs = *real_vfs;
    double_vfs.szOsFile = (int)sizeof(struct double_file) + real_vfs->szOsFile;
    double_vfs.zName = "double";
    double_vfs.xOpen = double_open;
    sqlite3_vfs_register(&double_vfs, 0);
}

static sqlite3 *open_client(const char *dir)
{
    char path[2048];
    sqlite3 *db;

    snprintf(path, sizeof path, "%s/app.db", dir);
    assert_int_equal(
        sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, "double"), SQLITE_OK);
    sqlite3_busy_timeout(db, 1000);
    return db;
}

/* ---- Helpers: a cluster of two in one process ------------------------------------------ */

/* A is the client's node, B follows. "Raft" commits at once, unless refused. */
static struct
{
    struct replica a;
    struct replica b;
    struct txn_builder txn;
    bool has_txn;
    bool refuse;
    unsigned commits;
} pair;

static void apply_records(struct replica *r, const struct txn_builder *txn)
{
    size_t i;

    for (i = 0; i < txn->n_records; i++) {
        struct record rec;
        int rc;
        assert_int_equal(record_decode(txn->records[i].data,
                                       txn->records[i].len, &rec),
                         FLO_OK);
        rc = replica_apply(r, &rec);
        if (rc != FLO_OK) {
            fail_msg("apply: %s: %s", flo_strerror(rc), r->errmsg);
        }
    }
}

static void pair_locked(void)
{
    assert_int_equal(replica_give_fence(&pair.a, 7), FLO_OK);
}

static int pair_commit(const struct commit_request *q)
{
    int rc = replica_collect(&pair.a, q->last_frame, q->n_pages, q->header, 42,
                             1, 64 << 20, &pair.txn);

    if (rc != FLO_OK) {
        fail_msg("collect: %s: %s", flo_strerror(rc), pair.a.errmsg);
    }
    if (pair.refuse) {
        txn_builder_close(&pair.txn);
        return 1;
    }
    apply_records(&pair.b, &pair.txn);
    pair.has_txn = true;
    pair.commits++;
    return 0;
}

static void pair_unlocked(void)
{
    if (pair.a.has_fence) {
        return;
    }
    assert_int_equal(replica_take_fence(&pair.a), FLO_OK);
    if (pair.has_txn) {
        int rc = replica_settle(&pair.a, &pair.txn);
        if (rc != FLO_OK) {
            fail_msg("settle: %s: %s", flo_strerror(rc), pair.a.errmsg);
        }
        txn_builder_close(&pair.txn);
        pair.has_txn = false;
    }
}

static void first_transaction(struct replica *r, struct replica *other,
                              uint32_t page_size, int auto_vacuum)
{
    struct txn_builder b;

    assert_int_equal(
        replica_make_first(r, page_size, auto_vacuum, 1, 9, 1, &b), FLO_OK);
    apply_records(r, &b);
    if (other != NULL) {
        apply_records(other, &b);
    }
    txn_builder_close(&b);
}

static void pair_open(struct fixture *f, uint32_t page_size, int auto_vacuum)
{
    memset(&pair, 0, sizeof pair);
    memset(&client, 0, sizeof client);
    client.commit = pair_commit;
    client.locked = pair_locked;
    client.unlocked = pair_unlocked;
    open_ok(&pair.a, f->a);
    open_ok(&pair.b, f->b);
    first_transaction(&pair.a, &pair.b, page_size, auto_vacuum);
}

static void pair_close(void)
{
    replica_close(&pair.a);
    replica_close(&pair.b);
}

/* ---- Helpers: a workload ------------------------------------------------------------------ */

static void random_statement(sqlite3 *db)
{
    char sql[256];

    switch (rnd(12)) {
        case 0:
            snprintf(sql, sizeof sql, "CREATE TABLE IF NOT EXISTS t%u(a, b)",
                     rnd(4));
            break;
        case 1:
            snprintf(sql, sizeof sql, "DROP TABLE IF EXISTS t%u", rnd(4));
            break;
        case 2:
            snprintf(sql, sizeof sql, "DELETE FROM main_t WHERE id %% %u = 0",
                     2 + rnd(5));
            break;
        case 3:
            snprintf(sql, sizeof sql,
                     "UPDATE main_t SET v = randomblob(%u) WHERE id %% %u = 1",
                     rnd(3000), 1 + rnd(4));
            break;
        case 4:
            snprintf(sql, sizeof sql, "PRAGMA incremental_vacuum(%u)", rnd(9));
            break;
        case 5:
            snprintf(sql, sizeof sql,
                     "CREATE INDEX IF NOT EXISTS i%u ON main_t(v)", rnd(2));
            break;
        case 6:
            snprintf(sql, sizeof sql, "DROP INDEX IF EXISTS i%u", rnd(2));
            break;
        default:
            snprintf(sql, sizeof sql,
                     "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 "
                     "FROM c WHERE x<%u) INSERT INTO main_t(v) SELECT "
                     "randomblob(abs(random()) %% %u) FROM c",
                     1 + rnd(60), 1 + rnd(4000));
    }
    exec_ok(db, sql);
}

static void random_transaction(sqlite3 *db)
{
    uint32_t n = 1 + rnd(4);
    bool rollback_to = rnd(5) == 0;
    uint32_t i;

    if (rnd(12) == 0) {
        exec_ok(db, "VACUUM");
        return;
    }
    exec_ok(db, "BEGIN IMMEDIATE");
    for (i = 0; i < n; i++) {
        random_statement(db);
        if (rollback_to && i == 0) {
            exec_ok(db, "SAVEPOINT s");
        }
    }
    if (rollback_to) {
        exec_ok(db, "ROLLBACK TO s");
        random_statement(db);
    }
    exec_ok(db, rnd(8) == 0 ? "ROLLBACK" : "COMMIT");
}

static void housekeeping(struct replica *r)
{
    bool done;

    switch (rnd(6)) {
        case 0:
            assert_int_equal(replica_checkpoint(r, &done), FLO_OK);
            break;
        case 1: {
            int rc;
            assert_int_equal(replica_checkpoint(r, &done), FLO_OK);
            rc = replica_restart_wal(r);
            assert_true(rc == FLO_OK || rc == FLO_BUSY);
            break;
        }
        case 2:
            assert_int_equal(replica_sync(r), FLO_OK);
            break;
        default:
            break;
    }
}

/* ---- Tests: two replicas --------------------------------------------------------------------- */

static void churn(struct fixture *f, uint32_t page_size, int auto_vacuum,
                  int rounds)
{
    sqlite3 *db;
    int i;

    seed = page_size * 31 + (uint32_t)auto_vacuum;
    pair_open(f, page_size, auto_vacuum);
    db = open_client(f->a);
    exec_ok(db, "PRAGMA cache_size=10; PRAGMA cache_spill=5");
    exec_ok(db, "CREATE TABLE main_t(id INTEGER PRIMARY KEY, v)");
    for (i = 0; i < rounds; i++) {
        random_transaction(db);
        housekeeping(&pair.a);
        housekeeping(&pair.b);
        if (i % 5 == 0) {
            check_same(&pair.a, f->a, &pair.b, f->b);
        }
        if (i % 13 == 12) {
            struct position p = pair.b.position;
            replica_close(&pair.b);
            open_ok(&pair.b, f->b);
            assert_true(position_equal(p, pair.b.position));
        }
    }
    assert_int_equal(pair.a.position.txid, pair.commits + 1);
    check_same(&pair.a, f->a, &pair.b, f->b);
    sqlite3_close(db);
    pair_close();
}

/* Whatever a client writes, both replicas hold the same bytes, and SQLite
 * recovers them from the files. */
static void test_churn(void **state)
{
    static const uint32_t sizes[] = {512, 1024, 4096, 16384, 65536};
    struct fixture *f = *state;
    size_t i;
    int av;

    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (av = 0; av <= 2; av++) {
            run("rm -f '%s'/app*", f->a);
            run("rm -f '%s'/app*", f->b);
            churn(f, sizes[i], av, sizes[i] > 4096 ? 25 : 60);
        }
    }
}

/* A transaction that raft refuses leaves nothing behind, and the next one is
 * committed as if it had never been. */
static void test_refused(void **state)
{
    struct fixture *f = *state;
    struct position before;
    sqlite3 *db;

    pair_open(f, 4096, 0);
    db = open_client(f->a);
    exec_ok(db, "CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    before = pair.a.position;
    pair.refuse = true;
    assert_int_equal(try_exec(db, "INSERT INTO t VALUES(randomblob(20000))") &
                         0xff,
                     SQLITE_BUSY);
    pair.refuse = false;
    assert_true(position_equal(before, pair.a.position));
    check_same(&pair.a, f->a, &pair.b, f->b);
    check_good(&pair.b, f->b);
    exec_ok(db, "INSERT INTO t VALUES(2)");
    assert_int_equal(query_int(db, "SELECT sum(x) FROM t"), 3);
    check_same(&pair.a, f->a, &pair.b, f->b);
    sqlite3_close(db);
    pair_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_churn, set_up, tear_down),
    };

    register_double();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
