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

static void __attribute__((format(printf, 1, 2))) run(const char *format, ...)
{
    char command[2048];
    va_list ap;

    va_start(ap, format);
    vsnprintf(command, sizeof command, format, ap);
    va_end(ap);
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
    STAGE_NONE,      /* it lives */
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

/* ---- Helpers: a recorded chain of transactions ------------------------------------------------ */

#define CHAIN_MAX 24

static struct
{
    struct txn_builder txn[CHAIN_MAX];
    struct position pos[CHAIN_MAX + 1]; /* pos[i]: after i transactions */
    unsigned n;
} chain;

static int chain_commit(const struct commit_request *q)
{
    struct txn_builder b;

    assert_true(chain.n < CHAIN_MAX);
    assert_int_equal(pair_commit(q), 0);
    assert_int_equal(replica_collect(&pair.a, q->last_frame, q->n_pages,
                                     q->header, 42, 1, 64 << 20, &b),
                     FLO_OK);
    chain.txn[chain.n++] = b;
    chain.pos[chain.n] = (struct position){b.head.txid, b.head.after};
    return 0;
}

/* Grows, rewrites, shrinks, grows again. */
static void record_chain(struct fixture *f, uint32_t page_size)
{
    static const char *const sql[] = {
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        "INSERT INTO t(v) WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT "
        "x+1 FROM c WHERE x<20) SELECT randomblob(700) FROM c",
        "UPDATE t SET v = randomblob(600) WHERE id % 3 = 0",
        "DELETE FROM t WHERE id > 4",
        "VACUUM",
        "INSERT INTO t(v) WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT "
        "x+1 FROM c WHERE x<12) SELECT randomblob(900) FROM c",
        "UPDATE t SET v = 'x' WHERE id = 2"};
    sqlite3 *db;
    size_t i;

    memset(&chain, 0, sizeof chain);
    memset(&pair, 0, sizeof pair);
    memset(&client, 0, sizeof client);
    client.commit = chain_commit;
    client.locked = pair_locked;
    client.unlocked = pair_unlocked;
    open_ok(&pair.a, f->a);
    open_ok(&pair.b, f->b);
    assert_int_equal(
        replica_make_first(&pair.a, page_size, 0, 1, 9, 1, &chain.txn[0]),
        FLO_OK);
    chain.n = 1;
    chain.pos[1] = (struct position){1, chain.txn[0].head.after};
    apply_records(&pair.a, &chain.txn[0]);
    apply_records(&pair.b, &chain.txn[0]);
    db = open_client(f->a);
    for (i = 0; i < sizeof sql / sizeof sql[0]; i++) {
        exec_ok(db, sql[i]);
    }
    sqlite3_close(db);
    pair_close();
}

static void forget_chain(void)
{
    unsigned i;

    for (i = 0; i < chain.n; i++) {
        txn_builder_close(&chain.txn[i]);
    }
    chain.n = 0;
}

static void apply_chain(struct replica *r, unsigned from, unsigned to)
{
    for (; from < to; from++) {
        apply_records(r, &chain.txn[from]);
    }
}

/* ---- Helpers: killing at the n-th step ---------------------------------------------------------- */

static struct
{
    unsigned at;
    unsigned steps;
} killer;

static sqlite3_io_methods killer_methods;
static sqlite3_vfs killer_vfs;

static bool killed_now(void)
{
    return ++killer.steps == killer.at;
}

static int k_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    if (killed_now()) {
        (void)REAL(f)->pMethods->xWrite(REAL(f), p, n / 2, at);
        _exit(77);
    }
    return REAL(f)->pMethods->xWrite(REAL(f), p, n, at);
}
static int k_truncate(sqlite3_file *f, sqlite3_int64 n)
{
    if (killed_now()) {
        _exit(77);
    }
    return d_truncate(f, n);
}
static int k_sync(sqlite3_file *f, int flags)
{
    if (killed_now()) {
        _exit(77);
    }
    return d_sync(f, flags);
}
static int k_shm_lock(sqlite3_file *f, int first, int n, int flags)
{
    if ((flags & SQLITE_SHM_EXCLUSIVE) && killed_now()) {
        _exit(77);
    }
    return REAL(f)->pMethods->xShmLock(REAL(f), first, n, flags);
}
static void k_barrier(sqlite3_file *f)
{
    if (killed_now()) {
        _exit(77);
    }
    REAL(f)->pMethods->xShmBarrier(REAL(f));
}
static int killer_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file,
                       int flags, int *out)
{
    struct double_file *f = (struct double_file *)file;
    int rc;

    (void)vfs;
    f->real = (sqlite3_file *)(f + 1);
    rc = real_vfs->xOpen(real_vfs, name, f->real, flags, out);
    f->base.pMethods = rc == SQLITE_OK ? &killer_methods : NULL;
    return rc;
}

/* In the child only. */
static void arm_killer(unsigned at)
{
    killer_methods = double_methods;
    killer_methods.xWrite = k_write;
    killer_methods.xTruncate = k_truncate;
    killer_methods.xSync = k_sync;
    killer_methods.xShmLock = k_shm_lock;
    killer_methods.xShmBarrier = k_barrier;
    killer_vfs = double_vfs;
    killer_vfs.zName = "unix";
    killer_vfs.xOpen = killer_open;
    sqlite3_vfs_register(&killer_vfs, 1);
    killer.at = at;
    killer.steps = 0;
}

/* A process that keeps the files open, so that the wal-index outlives the
 * killed one. */
static pid_t start_holder(const char *dir, int *stop)
{
    int ready[2];
    int done[2];
    char c;
    pid_t pid;

    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(done), 0);
    pid = fork();
    if (pid == 0) {
        sqlite3 *db;
        char path[2048];
        close(done[1]);
        snprintf(path, sizeof path, "%s/app.db", dir);
        if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, "unix") !=
                SQLITE_OK ||
            try_exec(db, "SELECT count(*) FROM sqlite_master") != SQLITE_OK) {
            _exit(1);
        }
        if (write(ready[1], "r", 1) != 1 || read(done[0], &c, 1) != 0) {
            _exit(1);
        }
        _exit(0);
    }
    close(ready[1]);
    close(done[0]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    *stop = done[1];
    return pid;
}

static int wait_status(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Applies the chain with housekeeping in between; tells how far it came. */
static void victim(const char *dir, int progress)
{
    struct replica r;
    unsigned i;
    bool done;

    if (replica_open(&r, dir, "app", 0) != FLO_OK) {
        _exit(3);
    }
    for (i = (unsigned)r.position.txid; i < chain.n; i++) {
        struct record rec;
        size_t k;
        for (k = 0; k < chain.txn[i].n_records; k++) {
            struct buf *b = &chain.txn[i].records[k];
            if (record_decode(b->data, b->len, &rec) != FLO_OK ||
                replica_apply(&r, &rec) != FLO_OK) {
                _exit(4);
            }
        }
        if (write(progress, "x", 1) != 1) {
            _exit(5);
        }
        if (i == 3 || i == 5) {
            if (replica_checkpoint(&r, &done) != FLO_OK) {
                _exit(6);
            }
            (void)replica_restart_wal(&r);
        }
    }
    replica_close(&r);
    _exit(0);
}

/* False when the victim was not killed any more. */
static bool kill_once(struct fixture *f, unsigned at, bool held)
{
    struct replica r;
    unsigned reached = 0;
    int progress[2];
    int stop = -1;
    int status;
    pid_t holder = -1;
    pid_t pid;
    char c;

    run("rm -rf '%s'/app*", f->b);
    if (held) {
        open_ok(&r, f->b);
        apply_chain(&r, 0, 1);
        replica_close(&r);
        reached = 1;
        holder = start_holder(f->b, &stop);
    }
    assert_int_equal(pipe(progress), 0);
    pid = fork();
    if (pid == 0) {
        close(progress[0]);
        arm_killer(at);
        victim(f->b, progress[1]);
    }
    close(progress[1]);
    while (read(progress[0], &c, 1) == 1) {
        reached++;
    }
    close(progress[0]);
    status = wait_status(pid);
    assert_true(status == 77 || status == 0);
    open_ok(&r, f->b);
    assert_true(r.state == REPLICA_GOOD ||
                (r.state == REPLICA_PRISTINE && reached == 0));
    assert_in_range(r.position.txid, reached, reached + 1);
    assert_true(position_equal(r.position, chain.pos[r.position.txid]));
    if (r.state == REPLICA_GOOD) {
        check_good(&r, f->b);
    }
    apply_chain(&r, (unsigned)r.position.txid, chain.n);
    check_good(&r, f->b);
    replica_close(&r);
    if (held) {
        close(stop);
        assert_int_equal(wait_status(holder), 0);
    }
    return status == 77;
}

/* ---- Tests: kill -9 -------------------------------------------------------------------------------- */

/* Killed at any write or publication step, the replica comes back at the
 * position before or after the transaction, and goes on from there; whether
 * or not another process kept the wal-index alive. */
static void test_killed_anywhere(void **state)
{
    struct fixture *f = *state;
    unsigned at;
    int held;

    record_chain(f, 1024);
    for (held = 0; held <= 1; held++) {
        for (at = 1; kill_once(f, at, held); at++) {
        }
        print_message("%u steps\n", at - 1);
        assert_true(at > 100);
    }
    forget_chain();
}

/* ---- Helpers: a client in a process of its own ---------------------------------------------------------- */

static int to_daemon;
static int from_daemon;
static const char *fence_path;
static struct fence client_fence;

static int remote_commit(const struct commit_request *q)
{
    char answer;

    if (write(to_daemon, q, sizeof *q) != (ssize_t)sizeof *q ||
        read(from_daemon, &answer, 1) != 1) {
        _exit(9);
    }
    return answer;
}

static void remote_locked(void)
{
    uint64_t grant;

    if (fence_open(&client_fence, fence_path, 0) != FLO_OK ||
        fence_try_lock(&client_fence) != FLO_OK ||
        fence_get(&client_fence, &grant) != FLO_OK || grant != 7) {
        _exit(8);
    }
}

static void remote_unlocked(void)
{
    fence_close(&client_fence);
}

static void remote_client(const char *dir, const char *sql, enum stage die_at)
{
    static char path[2048];
    sqlite3 *db;
    char go;

    if (read(from_daemon, &go, 1) != 1) {
        _exit(7);
    }
    snprintf(path, sizeof path, "%s/app.db-fence", dir);
    fence_path = path;
    memset(&client, 0, sizeof client);
    client.commit = remote_commit;
    client.locked = remote_locked;
    client.unlocked = remote_unlocked;
    client.die_at = die_at;
    snprintf(path + 1024, sizeof path - 1024, "%s/app.db", dir);
    if (sqlite3_open_v2(path + 1024, &db, SQLITE_OPEN_READWRITE, "double") !=
            SQLITE_OK ||
        try_exec(db, "PRAGMA cache_size=5; PRAGMA cache_spill=2") !=
            SQLITE_OK) {
        _exit(6);
    }
    if (try_exec(db, sql) != SQLITE_OK) {
        _exit(5);
    }
    _exit(die_at == STAGE_NONE ? 0 : 4);
}

static pid_t start_client(const char *dir, const char *sql, enum stage die_at)
{
    int up[2];
    int down[2];
    pid_t pid;

    assert_int_equal(pipe(up), 0);
    assert_int_equal(pipe(down), 0);
    pid = fork();
    if (pid == 0) {
        close(up[0]);
        close(down[1]);
        to_daemon = up[1];
        from_daemon = down[0];
        remote_client(dir, sql, die_at);
    }
    close(up[1]);
    close(down[0]);
    from_daemon = up[0]; /* here: from the client, and to it */
    to_daemon = down[1];
    return pid;
}

static void client_dies(struct fixture *f, const char *sql, enum stage stage,
                        bool daemon_too, bool empty_wal)
{
    struct commit_request q;
    struct position old;
    sqlite3 *db;
    pid_t pid;
    bool done;

    run("rm -f '%s'/app*", f->a);
    run("rm -f '%s'/app*", f->b);
    pid = start_client(f->a, sql, stage);
    pair_open(f, 1024, 0);
    db = open_client(f->a);
    exec_ok(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    exec_ok(db, "INSERT INTO t(v) VALUES(randomblob(3000))");
    sqlite3_close(db);
    if (empty_wal) {
        assert_int_equal(replica_checkpoint(&pair.a, &done), FLO_OK);
        assert_int_equal(replica_restart_wal(&pair.a), FLO_OK);
    }
    old = pair.a.position;
    assert_int_equal(replica_give_fence(&pair.a, 7), FLO_OK);
    assert_int_equal(write(to_daemon, "g", 1), 1);
    if (stage != STAGE_DATA) {
        if (read(from_daemon, &q, sizeof q) != (ssize_t)sizeof q) {
            fail_msg("the client ended with %d", wait_status(pid));
        }
        assert_int_equal(replica_take_fence(&pair.a), FLO_BUSY);
        assert_int_equal(pair_commit(&q), 0);
        assert_int_equal(write(to_daemon, "\0", 1), 1);
    }
    assert_int_equal(wait_status(pid), 0);
    close(to_daemon);
    close(from_daemon);
    if (daemon_too) {
        replica_close(&pair.a);
        open_ok(&pair.a, f->a);
        assert_int_equal(pair.a.state, REPLICA_GOOD);
        assert_true(
            position_equal(pair.a.position, old) ||
            ((stage == STAGE_NONE || stage >= STAGE_HEADER) &&
             position_equal(pair.a.position, pair.b.position)));
    } else {
        assert_int_equal(replica_take_fence(&pair.a), FLO_OK);
    }
    if (pair.has_txn) {
        int rc = replica_settle(&pair.a, &pair.txn);
        assert_true(rc == FLO_OK || (daemon_too && rc == FLO_DUPLICATE));
        txn_builder_close(&pair.txn);
        pair.has_txn = false;
    }
    check_same(&pair.a, f->a, &pair.b, f->b);
    db = open_client(f->a);
    exec_ok(db, "INSERT INTO t(v) VALUES('after')");
    check_same(&pair.a, f->a, &pair.b, f->b);
    sqlite3_close(db);
    pair_close();
}

/* Wherever a client dies, its transaction is there if raft committed it and
 * not there if it did not; also if the daemon dies with it. */
static void test_client_dies(void **state)
{
    static const char *const sql[] = {
        "INSERT INTO t(v) VALUES('one')",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE "
        "x<90) INSERT INTO t(v) SELECT randomblob(700) FROM c",
        "BEGIN; UPDATE t SET v=1; WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL "
        "SELECT x+1 FROM c WHERE x<40) INSERT INTO t(v) SELECT "
        "randomblob(700) FROM c; UPDATE t SET v=2 WHERE id < 9; DELETE FROM "
        "t WHERE id > 30; COMMIT"};
    struct fixture *f = *state;
    int i;

    for (i = 0; i < 3 * 4 * (STAGE_PUBLISHED + 1); i++) {
        client_dies(f, sql[i % 3], (enum stage)(i / 12), (i / 3) % 2,
                    (i / 6) % 2);
    }
}

/* ---- Tests: foreign programs and damage ------------------------------------------------------------------- */

static void open_chain(struct fixture *f, struct replica *r)
{
    run("rm -f '%s'/app*", f->b);
    open_ok(r, f->b);
    apply_chain(r, 0, chain.n);
}

/* While the replica is open, a plain program can read but not write. */
static void test_foreign_locked_out(void **state)
{
    struct fixture *f = *state;
    struct replica r;
    sqlite3 *db;

    record_chain(f, 4096);
    open_chain(f, &r);
    db = open_plain(f->b);
    assert_true(query_int(db, "SELECT count(*) FROM t") > 0);
    assert_int_equal(try_exec(db, "INSERT INTO t VALUES(99,99)"), SQLITE_BUSY);
    sqlite3_close(db);
    assert_int_equal(replica_check_foreign(&r), FLO_OK);
    check_good(&r, f->b);
    replica_close(&r);
    forget_chain();
}

/* What a plain program changed while the replica was closed is found; what it
 * left as it was, is not taken for a change. */
static void test_foreign_while_closed(void **state)
{
    static const struct
    {
        const char *sql;
        bool changes;
    } cases[] = {
        {"SELECT * FROM t", false},
        {"PRAGMA wal_checkpoint(TRUNCATE)", false},
        {"PRAGMA wal_autocheckpoint=0; UPDATE t SET v='f' WHERE id=1", true},
        {"UPDATE t SET v='f' WHERE id=1; PRAGMA wal_checkpoint(TRUNCATE)",
         true},
        {"DELETE FROM t; VACUUM", true},
        {"PRAGMA journal_mode=DELETE", true},
        {"PRAGMA journal_mode=DELETE; INSERT INTO t(v) VALUES(5)", true}};
    struct fixture *f = *state;
    size_t i;
    int restart;

    record_chain(f, 4096);
    for (i = 0; i < 2 * (sizeof cases / sizeof cases[0]); i++) {
        const char *sql = cases[i / 2].sql;
        struct replica r;
        sqlite3 *db;
        bool done;
        int on = 1;
        restart = i % 2;
        open_chain(f, &r);
        if (restart) {
            assert_int_equal(replica_checkpoint(&r, &done), FLO_OK);
            assert_int_equal(replica_restart_wal(&r), FLO_OK);
        }
        replica_close(&r);
        db = open_plain(f->b);
        sqlite3_file_control(db, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
        exec_ok(db, sql);
        sqlite3_close(db);
        open_ok(&r, f->b);
        assert_int_equal(r.state,
                         cases[i / 2].changes ? REPLICA_SUSPECT : REPLICA_GOOD);
        if (!cases[i / 2].changes) {
            check_good(&r, f->b);
        }
        replica_close(&r);
    }
    forget_chain();
}

/* A replica found changed is repaired by resync, and is then like any other. */
static void test_replace(void **state)
{
    struct fixture *f = *state;
    struct replica a;
    struct replica b;
    struct replica_view v;
    uint8_t *image;
    sqlite3 *db;
    uint32_t pgno;
    int round;

    record_chain(f, 1024);
    open_ok(&a, f->a);
    image = malloc(65536);
    for (round = 0; round < 4; round++) {
        run("rm -f '%s'/app*", f->b);
        if (round == 1 || round == 2) {
            char path[2048];
            snprintf(path, sizeof path, "%s/app.db", f->b);
            assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
            exec_ok(db, round == 1 ? "PRAGMA page_size=1024"
                                   : "PRAGMA page_size=8192");
            exec_ok(db, "CREATE TABLE z(a); INSERT INTO z VALUES(zeroblob("
                        "100000))");
            sqlite3_close(db);
        } else if (round == 3) {
            run("head -c 9999 /dev/urandom > '%s'/app.db", f->b);
        }
        open_ok(&b, f->b);
        assert_int_equal(b.state, round == 0   ? REPLICA_PRISTINE
                                  : round == 3 ? REPLICA_BROKEN
                                               : REPLICA_SUSPECT);
        assert_int_equal(replica_view_open(&a, &v), FLO_OK);
        assert_int_equal(replica_replace_begin(&b, v.page_size), FLO_OK);
        for (pgno = v.n_pages; pgno >= 1; pgno--) {
            assert_int_equal(replica_view_read(&v, pgno, image), FLO_OK);
            assert_int_equal(replica_replace_page(&b, pgno, image), FLO_OK);
        }
        assert_int_equal(replica_replace_commit(&b, v.n_pages,
                                                (struct position){9, 9}),
                         FLO_MISMATCH);
        assert_int_equal(replica_replace_begin(&b, v.page_size), FLO_OK);
        for (pgno = 1; pgno <= v.n_pages; pgno++) {
            assert_int_equal(replica_view_read(&v, pgno, image), FLO_OK);
            assert_int_equal(replica_replace_page(&b, pgno, image), FLO_OK);
        }
        assert_int_equal(replica_replace_commit(&b, v.n_pages, v.position),
                         FLO_OK);
        replica_view_close(&v);
        check_same(&a, f->a, &b, f->b);
        replica_close(&b);
        open_ok(&b, f->b);
        check_same(&a, f->a, &b, f->b);
        replica_close(&b);
    }
    free(image);
    replica_close(&a);
    forget_chain();
}

static void flip(const char *dir, const char *file, long at)
{
    char path[2048];
    FILE *fp;
    int c;

    snprintf(path, sizeof path, "%s/%s", dir, file);
    fp = fopen(path, "r+");
    assert_non_null(fp);
    fseek(fp, at, SEEK_SET);
    c = fgetc(fp);
    fseek(fp, at, SEEK_SET);
    fputc(c ^ 0x10, fp);
    fclose(fp);
}

/* No flipped byte in the position file makes the replica take itself for
 * something that it is not. */
static void test_flipped_position(void **state)
{
    struct fixture *f = *state;
    struct replica r;
    struct position p;
    long at;

    record_chain(f, 4096);
    open_chain(f, &r);
    p = r.position;
    replica_close(&r);
    for (at = 0; at < 4096 + 40; at += at < 264 ? 1 : 37) {
        flip(f->b, "app.db-pos", at);
        open_ok(&r, f->b);
        assert_true(r.position.checksum == p.checksum);
        assert_true(r.state == REPLICA_GOOD || r.state == REPLICA_SUSPECT);
        if (r.state == REPLICA_SUSPECT) {
            assert_non_null(strstr(r.errmsg, "app.db-pos"));
            assert_int_equal(
                replica_identify(&r, (struct position){p.txid, 1}),
                FLO_MISMATCH);
        }
        assert_int_equal(replica_identify(&r, p), FLO_OK);
        check_good(&r, f->b);
        replica_close(&r);
    }
    forget_chain();
}

/* When the disk is full nothing is published, and what failed succeeds once
 * there is room. */
static void test_disk_full(void **state)
{
    struct fixture *f = *state;
    struct rlimit limit;
    struct rlimit old;
    struct replica r;
    unsigned full = 0;
    unsigned i;

    record_chain(f, 1024);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    run("rm -f '%s'/app*", f->b);
    open_ok(&r, f->b);
    apply_chain(&r, 0, 1);
    for (i = 1; i < chain.n; i++) {
        rlim_t bytes = 0;
        int rc = FLO_FULL;
        for (bytes = 64; rc != FLO_OK; bytes += 777) {
            struct position before = r.position;
            size_t k;
            limit = old;
            limit.rlim_cur = bytes;
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
            for (k = 0, rc = FLO_OK; k < chain.txn[i].n_records && !rc; k++) {
                struct record rec;
                assert_int_equal(record_decode(chain.txn[i].records[k].data,
                                               chain.txn[i].records[k].len,
                                               &rec),
                                 FLO_OK);
                rc = replica_apply(&r, &rec);
            }
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
            if (rc != FLO_OK) {
                assert_int_equal(rc, FLO_FULL);
                assert_true(position_equal(before, r.position));
                full++;
            }
        }
    }
    assert_true(full > 10);
    check_good(&r, f->b);
    replica_close(&r);
    forget_chain();
}

/* ---- Tests: readers ---------------------------------------------------------------------------------------- */

/* A view sees its position's pages, all of them and nothing else, whatever is
 * applied, checkpointed or restarted meanwhile. */
static void test_views(void **state)
{
    struct fixture *f = *state;
    struct replica_view v[CHAIN_MAX];
    uint8_t image[1024];
    struct replica r;
    unsigned round;
    unsigned i;
    unsigned k;

    record_chain(f, 1024);
    for (round = 0; round < 3; round++) {
        run("rm -f '%s'/app*", f->b);
        open_ok(&r, f->b);
        for (i = 0; i < chain.n; i++) {
            bool done;
            apply_chain(&r, i, i + 1);
            if (round == 1 && i == 2) {
                assert_int_equal(replica_checkpoint(&r, &done), FLO_OK);
                assert_true(!done);
                assert_int_equal(replica_restart_wal(&r), FLO_BUSY);
            }
            if (round == 2 && i == 1) {
                for (k = 0; k < i; k++) {
                    replica_view_close(&v[k]);
                }
                assert_int_equal(replica_checkpoint(&r, &done), FLO_OK);
                assert_true(done);
                assert_int_equal(replica_view_open(&r, &v[0]), FLO_OK);
                assert_int_equal(replica_restart_wal(&r), FLO_OK);
            }
            assert_int_equal(replica_view_open(&r, &v[i]), FLO_OK);
            assert_int_equal(replica_checkpoint(&r, &done), FLO_OK);
            for (k = 0; k <= i; k++) {
                uint32_t pgno;
                for (pgno = 1; pgno <= v[k].n_pages; pgno++) {
                    assert_int_equal(replica_view_read(&v[k], pgno, image),
                                     FLO_OK);
                    assert_true(page_hash(pgno, image, 1024) ==
                                v[k].hashes[pgno - 1]);
                }
            }
        }
        for (i = 0; i < chain.n; i++) {
            replica_view_close(&v[i]);
        }
        check_good(&r, f->b);
        replica_close(&r);
    }
    forget_chain();
}

static void reader(const char *dir, int done)
{
    sqlite3_int64 last = 0;
    char path[2048];
    sqlite3_stmt *stmt;
    sqlite3 *db;
    int reads = 0;
    char c;

    snprintf(path, sizeof path, "%s/app.db", dir);
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, "unix") ||
        sqlite3_prepare_v2(db,
                           "SELECT (SELECT max(n) FROM t), count(DISTINCT n), "
                           "count(*) FROM t",
                           -1, &stmt, NULL)) {
        _exit(1);
    }
    sqlite3_busy_timeout(db, 1000);
    fcntl(done, F_SETFL, O_NONBLOCK);
    while (read(done, &c, 1) != 0) {
        if (sqlite3_step(stmt) != SQLITE_ROW) {
            _exit(2);
        }
        if (sqlite3_column_int64(stmt, 0) < last) {
            _exit(3);
        }
        if (sqlite3_column_int(stmt, 1) != 1 ||
            sqlite3_column_int(stmt, 2) != 50) {
            _exit(4);
        }
        last = sqlite3_column_int64(stmt, 0);
        sqlite3_reset(stmt);
        reads++;
    }
    _exit(reads > 50 ? 0 : 5);
}

/* Readers in another process see committed states only, and never go back. */
static void test_reader_process(void **state)
{
    struct fixture *f = *state;
    sqlite3 *db;
    pid_t pid;
    int done[2];
    int i;

    pair_open(f, 1024, 0);
    db = open_client(f->a);
    exec_ok(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, n, pad)");
    exec_ok(db, "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c "
                "WHERE x<50) INSERT INTO t SELECT x, 0, randomblob(200) FROM "
                "c");
    assert_int_equal(pipe(done), 0);
    pid = fork();
    if (pid == 0) {
        char program[64];
        char fd[16];
        close(done[1]);
        /* A fresh process: this one's SQLite has files open. */
        snprintf(program, sizeof program, "/proc/%d/exe", getpid());
        snprintf(fd, sizeof fd, "%d", done[0]);
        execl(program, "test_replica", "reader", f->b, fd, (char *)NULL);
        _exit(99);
    }
    close(done[0]);
    for (i = 0; i < 400; i++) {
        exec_ok(db, "UPDATE t SET n = n + 1, pad = randomblob(200)");
        housekeeping(&pair.b);
    }
    close(done[1]);
    assert_int_equal(wait_status(pid), 0);
    check_same(&pair.a, f->a, &pair.b, f->b);
    sqlite3_close(db);
    pair_close();
}

/* ---- Tests: the fence, duplicates, corruption ------------------------------------------------------------------ */

/* Nothing is written while the fence is away. */
static void test_fence_away(void **state)
{
    struct fixture *f = *state;
    struct fence other;
    struct record rec;
    struct replica r;
    char path[2048];

    record_chain(f, 4096);
    run("rm -f '%s'/app*", f->b);
    open_ok(&r, f->b);
    apply_chain(&r, 0, 2);
    assert_int_equal(record_decode(chain.txn[2].records[0].data,
                                   chain.txn[2].records[0].len, &rec),
                     FLO_OK);
    assert_int_equal(replica_give_fence(&r, 5), FLO_OK);
    assert_int_equal(replica_give_fence(&r, 6), FLO_BUSY);
    assert_int_equal(replica_apply(&r, &rec), FLO_BUSY);
    assert_int_equal(replica_replace_begin(&r, 4096), FLO_BUSY);
    assert_int_equal(replica_restart_wal(&r), FLO_BUSY);
    snprintf(path, sizeof path, "%s/app.db-fence", f->b);
    assert_int_equal(fence_open(&other, path, 0), FLO_OK);
    assert_int_equal(fence_try_lock(&other), FLO_OK);
    assert_int_equal(replica_take_fence(&r), FLO_BUSY);
    fence_close(&other);
    assert_int_equal(replica_take_fence(&r), FLO_OK);
    assert_int_equal(replica_apply(&r, &rec), FLO_OK);
    replica_close(&r);
    forget_chain();
}

/* Out of order, twice, or with a wrong result: refused, and nothing changes. */
static void test_chain_rules(void **state)
{
    struct fixture *f = *state;
    struct record rec;
    struct replica r;

    record_chain(f, 4096);
    run("rm -f '%s'/app*", f->b);
    open_ok(&r, f->b);
    apply_chain(&r, 0, 2);
    record_decode(chain.txn[1].records[0].data, chain.txn[1].records[0].len,
                  &rec);
    assert_int_equal(replica_apply(&r, &rec), FLO_DUPLICATE);
    record_decode(chain.txn[3].records[0].data, chain.txn[3].records[0].len,
                  &rec);
    assert_int_equal(replica_apply(&r, &rec), FLO_MISMATCH);
    record_decode(chain.txn[2].records[0].data, chain.txn[2].records[0].len,
                  &rec);
    rec.after ^= 1;
    assert_int_equal(replica_apply(&r, &rec), FLO_MISMATCH);
    check_good(&r, f->b);
    apply_chain(&r, 2, chain.n);
    check_good(&r, f->b);
    replica_close(&r);
    forget_chain();
}

/* An empty database that SQLite made for a first transaction that never came
 * is still nothing; somebody's data in it is not. */
static void test_pristine_base(void **state)
{
    struct fixture *f = *state;
    struct record rec;
    struct replica r;
    sqlite3 *db;

    record_chain(f, 4096);
    run("rm -f '%s'/app*", f->b);
    open_ok(&r, f->b);
    record_decode(chain.txn[0].records[0].data, chain.txn[0].records[0].len,
                  &rec);
    rec.after ^= 1;
    assert_int_equal(replica_apply(&r, &rec), FLO_MISMATCH);
    assert_int_equal(r.state, REPLICA_PRISTINE);
    replica_close(&r);
    open_ok(&r, f->b);
    assert_int_equal(r.state, REPLICA_PRISTINE);
    assert_int_equal(r.page_size, 0);
    replica_close(&r);
    db = open_plain(f->b);
    exec_ok(db, "PRAGMA user_version=3");
    sqlite3_close(db);
    open_ok(&r, f->b);
    assert_int_equal(r.state, REPLICA_SUSPECT);
    replica_close(&r);
    forget_chain();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_chain_rules, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_fence_away, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_pristine_base, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_foreign_locked_out, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_foreign_while_closed, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_replace, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flipped_position, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_disk_full, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_views, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_reader_process, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_client_dies, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_killed_anywhere, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_churn, set_up, tear_down),
    };

    if (argc == 4 && strcmp(argv[1], "reader") == 0) {
        reader(argv[2], atoi(argv[3]));
    }
    register_double();
    if (argc == 2) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
