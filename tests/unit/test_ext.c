/* The extension against the system's SQLite and a scripted daemon.
 *
 * Loads ext/flotilla.so of TEST_BUILDDIR (default: this directory). Each test has a
 * node directory of its own and a fake daemon (fake_daemon.h) in it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "core/error.h"
#include "core/wire.h"
#include "tests/unit/fake_daemon.h"

/* ---- fixture ------------------------------------------------------------------- */

static struct fake *fake;
static pid_t daemon_pid;
static char top[64];   /* temporary directory */
static char node[256]; /* node directory in it */
static char so[4096];

static int group_setup(void **state)
{
    const char *build = getenv("TEST_BUILDDIR");
    sqlite3 *db;
    char *error = NULL;
    char name[4096];

    (void)state;
    snprintf(name, sizeof name, "%s/ext/flotilla.so",
             build != NULL ? build : ".");
    assert_non_null(realpath(name, so));
    assert_int_equal(sqlite3_open(":memory:", &db), SQLITE_OK);
    sqlite3_enable_load_extension(db, 1);
    if (sqlite3_load_extension(db, so, "sqlite3_flotilla_init", &error)) {
        fail_msg("%s", error);
    }
    sqlite3_close(db);
    fake = fake_new();
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    fake_free(fake);
    return 0;
}

static int setup(void **state)
{
    (void)state;
    memset(fake, 0, sizeof *fake);
    snprintf(top, sizeof top, "/tmp/test_ext.XXXXXX");
    assert_non_null(mkdtemp(top));
    snprintf(node, sizeof node, "%s/n1", top);
    assert_int_equal(mkdir(node, 0700), 0);
    daemon_pid = fake_start(fake, node);
    return 0;
}

static void stop_daemon(void)
{
    fake_stop(daemon_pid, SIGKILL);
    daemon_pid = 0;
}

static int teardown(void **state)
{
    char command[128];

    (void)state;
    stop_daemon();
    snprintf(command, sizeof command, "rm -rf %s", top);
    return system(command);
}

/* ---- helpers ------------------------------------------------------------------- */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static sqlite3 *open_flags(const char *name, int flags)
{
    char path[512];
    sqlite3 *db = NULL;

    snprintf(path, sizeof path, "%s/%s", node, name);
    if (sqlite3_open_v2(path, &db, flags, NULL) != SQLITE_OK) {
        fail_msg("%s: %s", path, sqlite3_errmsg(db));
    }
    return db;
}

static sqlite3 *open_app(void)
{
    return open_flags("app.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
}

static int run(sqlite3 *db, const char *text)
{
    sqlite3_exec(db, text, NULL, NULL, NULL);
    return sqlite3_extended_errcode(db);
}

static void ok(sqlite3 *db, const char *text)
{
    char *error = NULL;

    if (sqlite3_exec(db, text, NULL, NULL, &error) != SQLITE_OK) {
        fail_msg("%s: %s (%d)", text, error, sqlite3_extended_errcode(db));
    }
}

/* The first column of the first row, as text; "NULL", "none". */
static const char *text_of(sqlite3 *db, const char *sql)
{
    static char out[1024];
    sqlite3_stmt *s = NULL;

    if (sqlite3_prepare_v2(db, sql, -1, &s, NULL) != SQLITE_OK) {
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    }
    switch (sqlite3_step(s)) {
    case SQLITE_ROW:
        snprintf(out, sizeof out, "%s", sqlite3_column_text(s, 0)
                 ? (const char *)sqlite3_column_text(s, 0) : "NULL");
        break;
    case SQLITE_DONE:
        snprintf(out, sizeof out, "none");
        break;
    default:
        snprintf(out, sizeof out, "error: %s", sqlite3_errmsg(db));
    }
    sqlite3_finalize(s);
    return out;
}

static int number(sqlite3 *db, const char *sql)
{
    return atoi(text_of(db, sql));
}

/* app.db with a table t of n rows. */
static sqlite3 *app_with_rows(int n)
{
    sqlite3 *db = open_app();
    int i;

    ok(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    for (i = 0; i < n; i++) {
        ok(db, "INSERT INTO t(b) VALUES(1)");
    }
    return db;
}

/* After anything that failed: nothing half done, and it goes on. */
static void assert_usable(sqlite3 *db, int rows)
{
    memset(fake->action, 0, sizeof fake->action);
    memset(fake->code, 0, sizeof fake->code);
    fake->hold_lock = 0;
    assert_int_equal(sqlite3_get_autocommit(db), 1);
    assert_string_equal(text_of(db, "PRAGMA integrity_check"), "ok");
    assert_int_equal(number(db, "SELECT count(*) FROM t"), rows);
    ok(db, "INSERT INTO t(b) VALUES(2)");
    assert_int_equal(number(db, "SELECT count(*) FROM t"), rows + 1);
    assert_string_equal(text_of(db, "PRAGMA integrity_check"), "ok");
}

static void no_journal(void)
{
    char path[512];

    snprintf(path, sizeof path, "%s/app.db-journal", node);
    assert_int_equal(access(path, F_OK), -1);
}

static void assert_wal_never_early(void)
{
    assert_true(fake->count[MSG_COMMIT] > 0);
    assert_int_equal(fake->header_too_early, 0);
    assert_int_equal(fake->frames_missing, 0);
}

/* ---- other files ------------------------------------------------------------------ */

/* A database elsewhere has the real VFS's methods themselves. */
static void test_pass_through(void **state)
{
    char path[128];
    sqlite3 *a, *b;
    sqlite3_file *fa, *fb;

    (void)state;
    snprintf(path, sizeof path, "%s/plain.sqlite", top);
    assert_int_equal(sqlite3_open(path, &a), SQLITE_OK);
    assert_int_equal(sqlite3_open_v2(path, &b, SQLITE_OPEN_READWRITE, "unix"),
                     SQLITE_OK);
    sqlite3_file_control(a, "main", SQLITE_FCNTL_FILE_POINTER, &fa);
    sqlite3_file_control(b, "main", SQLITE_FCNTL_FILE_POINTER, &fb);
    assert_ptr_equal(fa->pMethods, fb->pMethods);
    ok(a, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
    assert_string_equal(text_of(a, "PRAGMA journal_mode"), "delete");
    assert_int_equal(number(a, "PRAGMA busy_timeout"), 0);
    ok(a, "PRAGMA journal_mode=WAL; INSERT INTO t VALUES(2); PRAGMA "
          "wal_checkpoint; PRAGMA journal_mode=MEMORY");
    assert_string_equal(text_of(a, "SELECT flotilla_position()"), "NULL");
    assert_non_null(strstr(text_of(a, "SELECT flotilla_leader()"),
                           "no replicated database"));
    sqlite3_close(a);
    sqlite3_close(b);
    assert_int_equal(fake->connections, 0);
}

/* A file that is no database of a node is refused in a node's directory. */
static void test_names(void **state)
{
    char path[512];
    sqlite3 *db;

    (void)state;
    snprintf(path, sizeof path, "%s/app.sqlite", node);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_CANTOPEN);
    sqlite3_close(db);
    snprintf(path, sizeof path, "%s/a b.db", node);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_CANTOPEN);
    sqlite3_close(db);
}

/* Loading again, from another connection too, changes nothing. */
static void test_load_twice(void **state)
{
    sqlite3 *db = app_with_rows(1);

    (void)state;
    sqlite3_enable_load_extension(db, 1);
    assert_int_equal(sqlite3_load_extension(db, so, "sqlite3_flotilla_init",
                                            NULL), SQLITE_OK);
    assert_int_equal(sqlite3_load_extension(db, so, "sqlite3_flotilla_init",
                                            NULL), SQLITE_OK);
    assert_usable(db, 1);
    sqlite3_close(db);
}

/* ---- the first page ----------------------------------------------------------------- */

static void first_write(const char *before, const char *sql)
{
    sqlite3 *db = open_app();

    assert_int_equal(number(db, "SELECT count(*) FROM sqlite_schema"), 0);
    assert_int_equal(fake->count[MSG_INIT], 0); /* a reader makes nothing */
    ok(db, before);
    ok(db, sql);
    assert_int_equal(fake->count[MSG_INIT], 1);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 0);
    assert_string_equal(text_of(db, "PRAGMA integrity_check"), "ok");
    assert_wal_never_early();
    no_journal();
    sqlite3_close(db);
}

static void test_first_autocommit(void **state)
{
    (void)state;
    first_write("", "CREATE TABLE t(a)");
    assert_int_equal(fake->init_page_size, 4096);
    assert_int_equal(fake->init_auto_vacuum, 0);
    assert_int_equal(fake->init_encoding, 1);
}

static void test_first_immediate(void **state)
{
    (void)state;
    first_write("", "BEGIN IMMEDIATE; CREATE TABLE t(a); COMMIT");
}

static void test_first_deferred(void **state)
{
    (void)state;
    first_write("", "BEGIN; CREATE TABLE t(a); COMMIT");
}

static void test_first_exclusive_without_timeout(void **state)
{
    (void)state;
    first_write("PRAGMA busy_timeout=0",
                "BEGIN EXCLUSIVE; CREATE TABLE t(a); COMMIT");
}

static void test_first_without_timeout(void **state)
{
    (void)state;
    first_write("PRAGMA busy_timeout=0", "CREATE TABLE t(a)");
}

static void test_first_properties(void **state)
{
    (void)state;
    first_write("PRAGMA page_size=1024; PRAGMA encoding='UTF-16be'",
                "PRAGMA auto_vacuum=incremental; CREATE TABLE t(a)");
    assert_int_equal(fake->init_page_size, 1024);
    assert_int_equal(fake->init_auto_vacuum, 2);
    assert_int_equal(fake->init_encoding, 3);
}

/* A read transaction was open already: SQLite asks nobody, the application
 * gets SQLITE_BUSY once, and the next try is fine. */
static void test_first_after_read(void **state)
{
    sqlite3 *db = open_app();

    (void)state;
    ok(db, "BEGIN; SELECT * FROM sqlite_schema");
    assert_int_equal(run(db, "CREATE TABLE t(a)") & 0xff, SQLITE_BUSY);
    ok(db, "ROLLBACK; BEGIN; CREATE TABLE t(a); COMMIT");
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 0);
    no_journal();
    sqlite3_close(db);
}

/* sqlite3_backup into an empty replica, page size and all. */
static void test_first_backup(void **state)
{
    sqlite3 *db = open_app(), *from;
    sqlite3_backup *b;

    (void)state;
    sqlite3_open(":memory:", &from);
    ok(from, "PRAGMA page_size=8192; CREATE TABLE t(a); "
             "INSERT INTO t VALUES(randomblob(100000))");
    b = sqlite3_backup_init(db, "main", from, "main");
    assert_non_null(b);
    assert_int_equal(sqlite3_backup_step(b, -1), SQLITE_DONE);
    assert_int_equal(sqlite3_backup_finish(b), SQLITE_OK);
    assert_int_equal(fake->init_page_size, 8192);
    assert_int_equal(number(db, "SELECT length(a) FROM t"), 100000);
    assert_string_equal(text_of(db, "PRAGMA journal_mode"), "wal");
    assert_wal_never_early();
    sqlite3_close(from);
    sqlite3_close(db);
}

static void test_first_attached(void **state)
{
    char sql[512];
    sqlite3 *db;

    (void)state;
    sqlite3_open(":memory:", &db);
    ok(db, "PRAGMA encoding='UTF-16le'; CREATE TABLE m(a)");
    snprintf(sql, sizeof sql, "PRAGMA busy_timeout=1000; ATTACH '%s/two.db' "
             "AS two; CREATE TABLE two.t(a); INSERT INTO two.t VALUES('x')",
             node);
    ok(db, sql);
    assert_int_equal(fake->init_encoding, 2);
    assert_string_equal(text_of(db, "SELECT a FROM two.t"), "x");
    assert_non_null(strstr(text_of(db, "SELECT flotilla_leader()"), "9001"));
    sqlite3_close(db);
}

/* The first write waits as any other does, and leaves nothing behind. */
static void test_first_without_daemon(void **state)
{
    sqlite3 *db = open_app();
    int64_t t;

    (void)state;
    stop_daemon();
    ok(db, "PRAGMA busy_timeout=200");
    t = now_ms();
    assert_int_equal(run(db, "CREATE TABLE t(a)"), SQLITE_BUSY);
    assert_in_range(now_ms() - t, 100, 400);
    assert_int_equal(number(db, "SELECT count(*) FROM sqlite_schema"), 0);
    no_journal();
    daemon_pid = fake_start(fake, node);
    fake->code[MSG_INIT] = FLO_NOLEADER;
    t = now_ms();
    assert_int_equal(run(db, "CREATE TABLE t(a)"), SQLITE_BUSY);
    assert_in_range(now_ms() - t, 100, 400);
    fake->code[MSG_INIT] = 0;
    ok(db, "CREATE TABLE t(a)");
    sqlite3_close(db);
}

static void test_create_without_daemon(void **state)
{
    char path[512];
    sqlite3 *db;

    (void)state;
    stop_daemon();
    snprintf(path, sizeof path, "%s/new.db", node);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_CANTOPEN);
    sqlite3_close(db);
    assert_int_equal(access(path, F_OK), -1);
}

/* ---- transactions ------------------------------------------------------------------- */

/* Savepoints, rollback, pages spilled and written twice, VACUUM: what was
 * committed is there for a program without the extension too, and after a
 * recovery from the files alone. */
static void test_transactions(void **state)
{
    char path[512], command[2048];
    sqlite3 *db = app_with_rows(2), *plain;

    (void)state;
    ok(db, "BEGIN; INSERT INTO t(b) VALUES(3); ROLLBACK");
    ok(db, "BEGIN; SAVEPOINT s; INSERT INTO t(b) VALUES(4); ROLLBACK TO s; "
           "INSERT INTO t(b) VALUES(5); COMMIT");
    ok(db, "PRAGMA cache_size=5; PRAGMA synchronous=FULL; BEGIN");
    ok(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n "
           "WHERE i<200) INSERT INTO t(b) SELECT randomblob(3000) FROM n");
    ok(db, "UPDATE t SET b=randomblob(3100); SAVEPOINT x; UPDATE t SET b=7; "
           "ROLLBACK TO x; UPDATE t SET b=zeroblob(2900) WHERE a%3=0; COMMIT");
    ok(db, "DELETE FROM t WHERE a%2=0; VACUUM");
    assert_string_equal(text_of(db, "PRAGMA integrity_check"), "ok");
    assert_wal_never_early();

    snprintf(command, sizeof command, "mkdir %s/copy && cp %s/app.db "
             "%s/app.db-wal %s/copy", top, node, node, top);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof path, "%s/copy/app.db", top);
    assert_int_equal(sqlite3_open(path, &plain), SQLITE_OK);
    assert_string_equal(text_of(plain, "PRAGMA integrity_check"), "ok");
    assert_int_equal(number(plain, "SELECT sum(a) FROM t"),
                     number(db, "SELECT sum(a) FROM t"));
    sqlite3_close(plain);
    sqlite3_close(db);
}

/* Every answer to COMMIT becomes the right code, and SQLite rolls back. */
static void test_commit_codes(void **state)
{
    static const int codes[][2] = {
        {FLO_BUSY, SQLITE_BUSY}, {FLO_NOLEADER, SQLITE_BUSY},
        {FLO_NOTLEADER, SQLITE_BUSY}, {FLO_LOST, SQLITE_BUSY_SNAPSHOT},
        {FLO_FULL, SQLITE_FULL}, {FLO_TOOBIG, SQLITE_TOOBIG},
        {FLO_UNKNOWN, FLOTILLA_SQLITE_UNKNOWN}, {FLO_CORRUPT, SQLITE_IOERR},
        {FLO_IO, SQLITE_IOERR}, {FLO_SHUTDOWN, SQLITE_BUSY},
        {FLO_TIMEOUT, FLOTILLA_SQLITE_UNKNOWN}, {99, FLOTILLA_SQLITE_UNKNOWN}};
    sqlite3 *db = app_with_rows(1);
    int rows = 1;
    unsigned i;

    (void)state;
    for (i = 0; i < sizeof codes / sizeof *codes; i++) {
        fake->code[MSG_COMMIT] = codes[i][0];
        assert_int_equal(run(db, "INSERT INTO t(b) VALUES(9)"), codes[i][1]);
        assert_usable(db, rows++);

        fake->code[MSG_COMMIT] = codes[i][0];
        ok(db, "BEGIN; INSERT INTO t(b) VALUES(9); INSERT INTO t(b) VALUES(8)");
        assert_int_equal(run(db, "COMMIT"), codes[i][1]);
        if (codes[i][1] == SQLITE_BUSY) {
            /* SQLite keeps the transaction, as it does when a COMMIT meets a
             * busy lock; here it can only roll back. */
            assert_int_equal(run(db, "COMMIT"), SQLITE_BUSY_SNAPSHOT);
        }
        assert_usable(db, rows++);
    }
    assert_wal_never_early();
    sqlite3_close(db);
}

static void test_lock_codes(void **state)
{
    static const int codes[][2] = {
        {FLO_BUSY, SQLITE_BUSY}, {FLO_NOLEADER, SQLITE_BUSY},
        {FLO_TIMEOUT, SQLITE_BUSY}, {FLO_DESYNCED, SQLITE_BUSY},
        {FLO_SHUTDOWN, SQLITE_BUSY}, {FLO_FULL, SQLITE_FULL},
        {FLO_IDENTITY, SQLITE_IOERR_LOCK}};
    sqlite3 *db = app_with_rows(1);
    int rows = 1;
    unsigned i;

    (void)state;
    ok(db, "PRAGMA busy_timeout=60");
    for (i = 0; i < sizeof codes / sizeof *codes; i++) {
        int64_t t = now_ms();
        fake->code[MSG_LOCK] = codes[i][0];
        assert_int_equal(run(db, "INSERT INTO t(b) VALUES(9)"), codes[i][1]);
        t = now_ms() - t;
        assert_in_range(t, codes[i][1] == SQLITE_BUSY ? 59 : 0, 140);
        assert_usable(db, rows++);
    }
    sqlite3_close(db);
}

static void test_too_big(void **state)
{
    sqlite3 *db;
    int i;

    (void)state;
    fake->max_transaction_bytes = 100000;
    db = app_with_rows(1);
    ok(db, "PRAGMA cache_size=5");
    for (i = 0; i < 2; i++) {
        ok(db, "BEGIN");
        assert_int_equal(run(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL "
                                 "SELECT i+1 FROM n WHERE i<500) INSERT INTO "
                                 "t(b) SELECT randomblob(3000) FROM n"),
                         SQLITE_TOOBIG);
        run(db, "ROLLBACK");
        assert_usable(db, 1 + i);
    }
    sqlite3_close(db);
}

/* A transaction that only reads, or changes nothing, sends no COMMIT. */
static void test_empty_write(void **state)
{
    sqlite3 *db = app_with_rows(1);
    int commits = fake->count[MSG_COMMIT];

    (void)state;
    ok(db, "BEGIN IMMEDIATE; SELECT * FROM t; COMMIT; DELETE FROM t WHERE a<0");
    assert_int_equal(fake->count[MSG_COMMIT], commits);
    assert_usable(db, 1);
    sqlite3_close(db);
}

/* ---- waiting --------------------------------------------------------------------------- */

static void waits(const char *begin, int timeout_ms)
{
    sqlite3 *db = app_with_rows(1);
    char sql[64];
    int64_t t;

    snprintf(sql, sizeof sql, "PRAGMA busy_timeout=%d", timeout_ms);
    ok(db, sql);
    fake->hold_lock = 1;
    t = now_ms();
    assert_int_equal(run(db, begin), SQLITE_BUSY);
    t = now_ms() - t;
    print_message("timeout %d ms: waited %d ms\n", timeout_ms, (int)t);
    assert_in_range(t, timeout_ms, timeout_ms + 90 + timeout_ms / 10);
    t = now_ms(); /* the next attempt waits anew */
    assert_int_equal(run(db, begin), SQLITE_BUSY);
    t = now_ms() - t;
    assert_in_range(t, timeout_ms, timeout_ms + 90 + timeout_ms / 10);
    run(db, "ROLLBACK");
    assert_usable(db, 1);
    sqlite3_close(db);
}

static void test_busy_timeout(void **state)
{
    (void)state;
    waits("INSERT INTO t(b) VALUES(9)", 300);
}

static void test_busy_timeout_immediate(void **state)
{
    (void)state;
    waits("BEGIN IMMEDIATE", 1000);
}

static void test_busy_timeout_zero(void **state)
{
    (void)state;
    waits("INSERT INTO t(b) VALUES(9)", 0);
}

/* In an explicit transaction the application gets SQLITE_BUSY after T, and its
 * own sleep afterwards is not skipped. */
static void test_busy_in_transaction(void **state)
{
    sqlite3 *db = app_with_rows(1);
    int64_t t;

    (void)state;
    ok(db, "PRAGMA busy_timeout=100");
    fake->hold_lock = 1;
    ok(db, "BEGIN; SELECT * FROM t");
    t = now_ms();
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"), SQLITE_BUSY);
    assert_in_range(now_ms() - t, 100, 180);
    t = now_ms();
    sqlite3_sleep(50);
    assert_in_range(now_ms() - t, 50, 90);
    ok(db, "ROLLBACK");
    assert_usable(db, 1);
    sqlite3_close(db);
}

static int handler_calls, handler_last;

static int custom_handler(void *limit, int count)
{
    handler_calls++;
    handler_last = count;
    sqlite3_sleep(20);
    return count < *(int *)limit;
}

/* An application's own busy handler sees its count grow, is obeyed, sleeps for
 * real, and stays the connection's. */
static void test_custom_busy_handler(void **state)
{
    sqlite3 *db = app_with_rows(1);
    int limit = 5;
    int64_t t;

    (void)state;
    sqlite3_busy_handler(db, custom_handler, &limit);
    fake->hold_lock = 1;
    t = now_ms();
    handler_calls = 0;
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(9)"), SQLITE_BUSY);
    assert_int_equal(handler_calls, 6);
    assert_int_equal(handler_last, 5);
    assert_in_range(now_ms() - t, 120, 250);
    ok(db, "BEGIN; SELECT * FROM t"); /* SQLite would not ask it now */
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(9)"), SQLITE_BUSY);
    assert_int_equal(handler_calls, 6);
    ok(db, "ROLLBACK");
    assert_usable(db, 1);
    fake->move_on_grant = 1;
    ok(db, "INSERT INTO t(b) VALUES(9)"); /* a stale snapshot does not upset it */
    sqlite3_close(db);
}

/* Writers elsewhere that make every snapshot stale before the lock is had do
 * not keep this one out: the lock is kept while the snapshot is renewed. */
static void test_always_stale(void **state)
{
    sqlite3 *db = app_with_rows(1);
    int i, locks;

    (void)state;
    ok(db, "PRAGMA busy_timeout=300");
    fake->move_on_grant = 1; /* changes the schema: the statement starts over */
    ok(db, "INSERT INTO t(b) VALUES(9)");
    locks = fake->count[MSG_LOCK];
    fake->always_stale = 1;
    fake->move_on_grant = 100000;
    for (i = 0; i < 10; i++) {
        ok(db, "INSERT INTO t(b) VALUES(9)");
    }
    fake->always_stale = 0;
    fake->move_on_grant = 0;
    assert_int_equal(fake->count[MSG_LOCK], locks + 10);
    assert_usable(db, 12);
    sqlite3_close(db);
}

/* A lock that was kept for a retry which ends otherwise is given back. */
static void test_parked_lock_is_released(void **state)
{
    sqlite3 *db = app_with_rows(1);
    sqlite3 *other = open_app();

    (void)state;
    fake->move_on_grant = 1; /* changes the schema: the statement starts over */
    ok(db, "INSERT INTO t(b) VALUES(9)");
    ok(other, "PRAGMA busy_timeout=100");
    ok(other, "INSERT INTO t(b) VALUES(9)");
    ok(db, "SELECT count(*) FROM t");
    ok(other, "INSERT INTO t(b) VALUES(9)");
    assert_usable(db, 4);
    sqlite3_close(other);
    sqlite3_close(db);
}

/* Opened through another VFS and attached by URI: SQLite's sleeps are not ours
 * to skip, and the caller waits at most twice its timeout. */
static void test_foreign_vfs(void **state)
{
    char sql[512];
    sqlite3 *db = app_with_rows(1);
    int64_t t;

    (void)state;
    sqlite3_close(db);
    assert_int_equal(sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE |
                                     SQLITE_OPEN_URI, "unix"), SQLITE_OK);
    snprintf(sql, sizeof sql, "PRAGMA busy_timeout=300; ATTACH "
             "'file:%s/app.db?vfs=flotilla' AS a", node);
    ok(db, sql);
    ok(db, "INSERT INTO a.t(b) VALUES(1)");
    fake->hold_lock = 1;
    t = now_ms();
    assert_int_equal(run(db, "INSERT INTO a.t(b) VALUES(9)"), SQLITE_BUSY);
    assert_in_range(now_ms() - t, 300, 750);
    fake->hold_lock = 0;
    ok(db, "INSERT INTO a.t(b) VALUES(1)");
    assert_int_equal(number(db, "SELECT count(*) FROM a.t"), 3);
    sqlite3_close(db);
}

static void *let_go(void *arg)
{
    usleep((unsigned)(intptr_t)arg * 1000);
    fake->hold_lock = 0;
    return NULL;
}

/* A lock that comes free is had at once, not after the busy handler's sleep. */
static void test_grant_is_prompt(void **state)
{
    sqlite3 *db = app_with_rows(1);
    pthread_t thread;
    int64_t t;

    (void)state;
    fake->hold_lock = 1;
    pthread_create(&thread, NULL, let_go, (void *)300);
    t = now_ms();
    ok(db, "INSERT INTO t(b) VALUES(9)");
    t = now_ms() - t;
    assert_in_range(t, 290, 330);
    pthread_join(thread, NULL);
    assert_usable(db, 2);
    sqlite3_close(db);
}

/* The grant crossed our CANCEL: it is used. */
static void test_late_grant(void **state)
{
    sqlite3 *db = app_with_rows(1);

    (void)state;
    ok(db, "PRAGMA busy_timeout=100");
    fake->hold_lock = 1;
    fake->grant_on_cancel = 1;
    fake->delay_ms[MSG_LOCK] = 150; /* its own timeout comes after ours */
    ok(db, "INSERT INTO t(b) VALUES(9)");
    assert_int_equal(fake->count[MSG_CANCEL], 1);
    fake->grant_on_cancel = 0;
    fake->delay_ms[MSG_LOCK] = 0;
    assert_usable(db, 2);
    sqlite3_close(db);
}

static void *interrupt(void *db)
{
    usleep(150000);
    sqlite3_interrupt(db);
    return NULL;
}

static void test_interrupt(void **state)
{
    sqlite3 *db = app_with_rows(1);
    pthread_t thread;
    int64_t t = now_ms();

    (void)state;
    fake->hold_lock = 1;
    pthread_create(&thread, NULL, interrupt, db);
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(9)"), SQLITE_INTERRUPT);
    assert_in_range(now_ms() - t, 140, 600);
    pthread_join(thread, NULL);
    assert_usable(db, 1);
    sqlite3_close(db);
}

/* The grant moved the replica on: an autocommit statement retries by itself,
 * and has the lock already. */
static void test_stale_snapshot(void **state)
{
    sqlite3 *db = app_with_rows(1);
    int locks;

    (void)state;
    fake->move_on_grant = 1; /* this one changes the schema as well */
    ok(db, "INSERT INTO t(b) VALUES(9)");
    assert_int_equal(number(db, "SELECT count(*) FROM foreign_writes"), 1);
    locks = fake->count[MSG_LOCK];
    fake->move_on_grant = 1;
    ok(db, "INSERT INTO t(b) VALUES(9)");
    assert_int_equal(fake->count[MSG_LOCK], locks + 1);
    fake->move_on_grant = 1;
    ok(db, "BEGIN IMMEDIATE; INSERT INTO t(b) VALUES(9); COMMIT");
    assert_int_equal(fake->count[MSG_LOCK], locks + 2);
    assert_int_equal(number(db, "SELECT count(*) FROM foreign_writes"), 3);

    /* With a transaction open SQLite does not retry: nothing lingers. */
    ok(db, "BEGIN; SELECT * FROM t");
    fake->move_on_grant = 1;
    fake->last_linger_ms = -1;
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(9)"),
                     SQLITE_BUSY_SNAPSHOT);
    ok(db, "ROLLBACK");
    usleep(5000);
    assert_int_equal(fake->last_linger_ms, 0);
    assert_usable(db, 4);
    sqlite3_close(db);
}

static void test_wrong_fence(void **state)
{
    sqlite3 *db = app_with_rows(1);

    (void)state;
    ok(db, "PRAGMA busy_timeout=100");
    fake->wrong_fence = 1;
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(9)"), SQLITE_BUSY);
    fake->wrong_fence = 0;
    ok(db, "PRAGMA busy_timeout=3000");
    sqlite3_close(db);
    stop_daemon();
    daemon_pid = fake_start(fake, node);
    db = open_app();
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 1);
    sqlite3_close(db);
}

static void *insert_many(void *arg)
{
    sqlite3 *db = open_app();
    int i;

    (void)arg;
    ok(db, "PRAGMA busy_timeout=20000");
    for (i = 0; i < 50; i++) {
        ok(db, "INSERT INTO t(b) VALUES(1)");
        ok(db, "BEGIN IMMEDIATE; UPDATE t SET b=b+1 WHERE a=1; COMMIT");
    }
    sqlite3_close(db);
    return NULL;
}

/* Many writers in one process: each gets its turn, no update is lost. */
static void test_contention(void **state)
{
    sqlite3 *db = app_with_rows(1);
    pthread_t threads[6];
    int i;

    (void)state;
    for (i = 0; i < 6; i++) {
        pthread_create(&threads[i], NULL, insert_many, NULL);
    }
    for (i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(number(db, "SELECT b FROM t WHERE a=1"), 301);
    assert_wal_never_early();
    assert_usable(db, 301);
    sqlite3_close(db);
}

/* ---- a daemon that fails ------------------------------------------------------------------ */

static void test_daemon_down(void **state)
{
    sqlite3 *db = app_with_rows(3), *fresh;
    int64_t t;

    (void)state;
    stop_daemon();
    fresh = open_app();
    assert_int_equal(number(fresh, "SELECT count(*) FROM t"), 3);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 3);
    ok(db, "PRAGMA busy_timeout=200");
    t = now_ms();
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"), SQLITE_BUSY);
    assert_in_range(now_ms() - t, 200, 320);
    assert_non_null(strstr(text_of(db, "SELECT * FROM flotilla_status"),
                           "flotillad is not running in"));
    assert_non_null(strstr(text_of(db, "SELECT flotilla_position()"),
                           "flotillad is not running in"));
    sqlite3_close(fresh);
    daemon_pid = fake_start(fake, node);
    ok(db, "PRAGMA busy_timeout=3000; SELECT 1");
    sqlite3_close(db);
}

static void test_read_only(void **state)
{
    sqlite3 *db = app_with_rows(3);

    (void)state;
    sqlite3_close(db);
    stop_daemon();
    db = open_flags("app.db", SQLITE_OPEN_READONLY);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 3);
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"), SQLITE_READONLY);
    sqlite3_close(db);
}

static void test_dies_at_lock(void **state)
{
    sqlite3 *db = app_with_rows(1);

    (void)state;
    ok(db, "PRAGMA busy_timeout=200");
    fake->action[MSG_LOCK] = FAKE_DIE;
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"), SQLITE_BUSY);
    fake->action[MSG_LOCK] = FAKE_CLOSE;
    stop_daemon();
    daemon_pid = fake_start(fake, node);
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"), SQLITE_BUSY);
    fake->action[MSG_LOCK] = FAKE_SILENT;
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"), SQLITE_BUSY);
    sqlite3_close(db);
}

/* It dies while the transaction is open: certainly not committed. */
static void test_dies_before_commit(void **state)
{
    sqlite3 *db = app_with_rows(1);

    (void)state;
    ok(db, "BEGIN; INSERT INTO t(b) VALUES(1)");
    stop_daemon();
    assert_int_equal(run(db, "COMMIT"), SQLITE_BUSY);
    assert_int_equal(run(db, "COMMIT"), SQLITE_BUSY_SNAPSHOT);
    assert_int_equal(sqlite3_get_autocommit(db), 1);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 1);
    assert_string_equal(text_of(db, "PRAGMA integrity_check"), "ok");
    sqlite3_close(db);
}

static void test_dies_at_commit(void **state)
{
    sqlite3 *db = app_with_rows(1);

    (void)state;
    fake->action[MSG_COMMIT] = FAKE_DIE;
    ok(db, "PRAGMA busy_timeout=100");
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"),
                     FLOTILLA_SQLITE_UNKNOWN);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 1);
    assert_int_equal(number(db, "SELECT unknown FROM flotilla_client"), 1);
    sqlite3_close(db);
}

static void test_commit_outcomes(void **state)
{
    sqlite3 *db = app_with_rows(1);

    (void)state;
    fake->action[MSG_COMMIT] = FAKE_COMMIT_AND_CLOSE; /* found: committed */
    ok(db, "INSERT INTO t(b) VALUES(1)");
    assert_usable(db, 2);
    assert_string_equal(text_of(db, "SELECT flotilla_committed("
                                    "flotilla_last_commit())"), "1");
    fake->action[MSG_COMMIT] = FAKE_CLOSE; /* found: not committed */
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"), SQLITE_BUSY);
    assert_usable(db, 3);
    fake->action[MSG_COMMIT] = FAKE_CLOSE; /* nobody knows */
    fake->code[MSG_OUTCOME] = FLO_UNKNOWN;
    ok(db, "PRAGMA busy_timeout=100");
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"),
                     FLOTILLA_SQLITE_UNKNOWN);
    assert_string_equal(text_of(db, "SELECT flotilla_committed("
                                    "flotilla_last_commit())"), "NULL");
    ok(db, "PRAGMA busy_timeout=3000; PRAGMA flotilla_commit_timeout=200");
    assert_usable(db, 4);
    fake->action[MSG_COMMIT] = FAKE_SILENT;
    assert_int_equal(run(db, "INSERT INTO t(b) VALUES(1)"),
                     FLOTILLA_SQLITE_UNKNOWN);
    assert_usable(db, 5);
    sqlite3_close(db);
}

/* ---- what is refused, and what is told --------------------------------------------------- */

static void test_refusals(void **state)
{
    char path[512];
    sqlite3 *db = app_with_rows(1);
    sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);
    struct stat st;

    (void)state;
    assert_string_equal(vfs->zName, "flotilla");
    assert_string_equal(text_of(db, "PRAGMA journal_mode"), "wal");
    assert_string_equal(text_of(db, "PRAGMA journal_mode=WAL"), "wal");
    assert_int_equal(run(db, "PRAGMA journal_mode=DELETE"), SQLITE_ERROR);
    assert_non_null(strstr(sqlite3_errmsg(db), "always WAL"));
    assert_int_equal(run(db, "PRAGMA locking_mode=EXCLUSIVE"), SQLITE_ERROR);
    assert_string_equal(text_of(db, "PRAGMA locking_mode"), "normal");
    assert_string_equal(text_of(db, "PRAGMA wal_checkpoint"), "1");
    assert_string_equal(text_of(db, "PRAGMA wal_checkpoint(TRUNCATE)"), "1");
    ok(db, "PRAGMA wal_autocheckpoint=1; INSERT INTO t(b) VALUES(1); "
           "PRAGMA journal_size_limit=1; INSERT INTO t(b) VALUES(1)");
    snprintf(path, sizeof path, "%s/app.db", node);
    assert_int_equal(vfs->xDelete(vfs, path, 0), SQLITE_IOERR_DELETE);
    assert_int_equal(run(db, "PRAGMA flotilla_read=never"), SQLITE_ERROR);
    assert_usable(db, 3);
    sqlite3_close(db); /* neither checkpoints nor deletes the WAL */
    snprintf(path, sizeof path, "%s/app.db-wal", node);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > 0);
}

static void test_linearizable(void **state)
{
    sqlite3 *db = app_with_rows(1);
    int reads;

    (void)state;
    assert_int_equal(fake->count[MSG_READ], 0);
    assert_string_equal(text_of(db, "PRAGMA flotilla_read"), "local");
    ok(db, "PRAGMA flotilla_read=linearizable; PRAGMA busy_timeout=100");
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 1);
    reads = fake->count[MSG_READ];
    assert_true(reads >= 1);
    ok(db, "BEGIN; SELECT * FROM t; SELECT * FROM t; COMMIT");
    assert_int_equal(fake->count[MSG_READ], reads + 1);
    fake->code[MSG_READ] = FLO_NOLEADER;
    assert_int_equal(run(db, "SELECT * FROM t"), SQLITE_LOCKED);
    fake->code[MSG_READ] = 0;
    assert_usable(db, 1);
    sqlite3_close(db);

    char uri[512];
    snprintf(uri, sizeof uri, "file:%s/app.db?flotilla_read=linearizable",
             node);
    assert_int_equal(sqlite3_open_v2(uri, &db, SQLITE_OPEN_URI |
                                     SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    assert_string_equal(text_of(db, "PRAGMA flotilla_read"), "linearizable");
    sqlite3_close(db);
}

static void test_functions(void **state)
{
    sqlite3 *db = open_app();

    (void)state;
    assert_int_equal(number(db, "PRAGMA busy_timeout"), 5000);
    assert_string_equal(text_of(db, "SELECT flotilla_last_commit()"), "NULL");
    ok(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    assert_string_equal(text_of(db, "SELECT flotilla_position()"), "5:00ff");
    assert_string_equal(text_of(db, "SELECT flotilla_leader()"),
                        "127.0.0.1:9001");
    assert_string_equal(text_of(db, "SELECT flotilla_wait(3)"), "1");
    fake->code[MSG_WAIT] = FLO_TIMEOUT;
    assert_string_equal(text_of(db, "SELECT flotilla_wait(3, 10)"), "0");
    fake->code[MSG_WAIT] = FLO_NOTFOUND;
    assert_non_null(strstr(text_of(db, "SELECT flotilla_wait(3)"), "error"));
    assert_non_null(strstr(text_of(db, "SELECT flotilla_wait(-1)"), "error"));
    assert_non_null(strstr(text_of(db, "SELECT flotilla_wait(NULL)"), "error"));
    assert_non_null(strstr(text_of(db, "SELECT flotilla_committed('x')"),
                           "error"));
    assert_non_null(strstr(text_of(db, "SELECT flotilla_committed(NULL)"),
                           "error"));
    assert_string_equal(text_of(db, "SELECT flotilla_committed('1:2')"), "0");
    assert_string_equal(text_of(db, "SELECT flotilla_committed("
                                    "flotilla_last_commit())"), "1");
    assert_string_equal(text_of(db, "SELECT flotilla_resync('2')"), "scripted");
    assert_non_null(strstr(text_of(db, "SELECT flotilla_resync("
                                       "zeroblob(300))"), "error"));
    sqlite3_close(db);
}

static void test_tables(void **state)
{
    sqlite3 *db = app_with_rows(2);

    (void)state;
    assert_string_equal(text_of(db, "SELECT typeof(commit_index)||commit_index"
                                    " FROM flotilla_status"),
                        "integer9007199254740993");
    assert_string_equal(text_of(db, "SELECT role||ready||typeof(ready_reason) "
                                    "FROM flotilla_status"), "leader1text");
    assert_string_equal(text_of(db, "SELECT health||typeof(last_contact_ms) "
                                    "FROM flotilla_nodes"), "healthynull");
    assert_string_equal(text_of(db, "SELECT name||n_pages||typeof(wal_frames) "
                                    "FROM flotilla_databases"), "app2integer");
    assert_string_equal(text_of(db, "SELECT db||commits||connected||grants FROM"
                                    " flotilla_client"), "app313");
    assert_int_equal(number(db, "SELECT last_txid FROM flotilla_client"), 4);
    assert_int_equal(run(db, "DELETE FROM flotilla_client"), SQLITE_ERROR);
    fake->action[MSG_TABLE] = FAKE_CLOSE;
    assert_non_null(strstr(text_of(db, "SELECT * FROM flotilla_nodes"),
                           "not running"));
    assert_usable(db, 2);
    sqlite3_close(db);
}

/* A daemon that restarted while the connection was idle is no reason to fail,
 * not even for those who do not wait. */
static void test_restarted_while_idle(void **state)
{
    sqlite3 *db = app_with_rows(1), *keep = open_app();

    (void)state;
    number(keep, "SELECT count(*) FROM t");
    ok(db, "PRAGMA busy_timeout=0");
    stop_daemon();
    daemon_pid = fake_start(fake, node);
    /* the fake takes the fence when it is first used */
    ok(db, "INSERT INTO t(b) VALUES(1)");
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 2);
    sqlite3_close(keep);
    sqlite3_close(db);
}

/* A child neither speaks on its parent's socket nor drops its fence. */
static void test_fork(void **state)
{
    sqlite3 *db = app_with_rows(1);
    int status;
    pid_t pid;

    (void)state;
    ok(db, "BEGIN IMMEDIATE; INSERT INTO t(b) VALUES(5)");
    pid = fork();
    if (pid == 0) {
        sqlite3 *own = open_app();
        run(own, "PRAGMA busy_timeout=100");
        int rc = run(own, "INSERT INTO t(b) VALUES(6)");
        _exit(rc == SQLITE_BUSY ? 0 : 1);
    }
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    ok(db, "COMMIT");
    pid = fork();
    if (pid == 0) {
        sqlite3 *own = open_app();
        _exit(run(own, "INSERT INTO t(b) VALUES(6)") == SQLITE_OK ? 0 : 1);
    }
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    assert_usable(db, 3);
    sqlite3_close(db);
}

/* A socket path that does not fit into sun_path. */
static void test_long_path(void **state)
{
    sqlite3 *db;

    (void)state;
    stop_daemon();
    memset(node, 0, sizeof node);
    snprintf(node, sizeof node, "%s/%0150d", top, 1);
    assert_int_equal(mkdir(node, 0700), 0);
    daemon_pid = fake_start(fake, node);
    db = app_with_rows(1);
    assert_usable(db, 1);
    sqlite3_close(db);
}

static void test_shared_cache(void **state)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                SQLITE_OPEN_SHAREDCACHE;
    sqlite3 *a = open_flags("app.db", flags), *b = open_flags("app.db", flags);

    (void)state;
    ok(a, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    ok(b, "INSERT INTO t(b) VALUES(1)");
    sqlite3_close(a);
    assert_usable(b, 1);
    sqlite3_close(b);
}

/* ---- other programs ---------------------------------------------------------------------- */

/* TEST_PRELOAD: the sanitizer's library, when the extension needs one. */
static void shell(const char *command, const char *expected)
{
    const char *preload = getenv("TEST_PRELOAD");
    char out[512] = "";
    FILE *p;
    size_t n;

    if (preload != NULL && preload[0] != '\0') {
        setenv("LD_PRELOAD", preload, 1);
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* of python */
    }
    p = popen(command, "r");
    unsetenv("LD_PRELOAD");
    assert_non_null(p);
    n = fread(out, 1, sizeof out - 1, p);
    out[n] = '\0';
    pclose(p);
    assert_string_equal(out, expected);
}

static void test_sqlite_shell(void **state)
{
    char command[8192];

    (void)state;
    if (system("command -v sqlite3 >/dev/null") != 0) {
        skip();
    }
    snprintf(command, sizeof command,
             "printf '.load %s\\n.open %s/app.db\\nCREATE TABLE t(a);\\n"
             "INSERT INTO t VALUES(42);\\nSELECT * FROM t;\\n"
             "SELECT flotilla_leader();\\n' | sqlite3 2>&1", so, node);
    shell(command, "42\n127.0.0.1:9001\n");
    snprintf(command, sizeof command,
             "sqlite3 %s/app.db 'SELECT a FROM t'", node);
    shell(command, "42\n");
}

static void test_python(void **state)
{
    char command[9000];

    (void)state;
    if (access("/usr/bin/python3", X_OK) != 0) {
        skip();
    }
    snprintf(command, sizeof command,
             "/usr/bin/python3 -c '\n"
             "import sqlite3\n"
             "m = sqlite3.connect(\":memory:\")\n"
             "m.enable_load_extension(True)\n"
             "m.load_extension(\"%s\")\n"
             "m.close()\n"
             "d = sqlite3.connect(\"%s/app.db\")\n"
             "with d:\n"
             "    d.execute(\"CREATE TABLE t(a)\")\n"
             "    d.executemany(\"INSERT INTO t VALUES(?)\", [(1,),(2,)])\n"
             "print(d.execute(\"SELECT sum(a) FROM t\").fetchone()[0])\n"
             "' 2>&1", so, node);
    shell(command, "3\n");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(test_pass_through), TEST(test_names), TEST(test_load_twice),
        TEST(test_first_autocommit), TEST(test_first_immediate),
        TEST(test_first_deferred), TEST(test_first_exclusive_without_timeout),
        TEST(test_first_without_timeout), TEST(test_first_properties),
        TEST(test_first_after_read), TEST(test_first_backup),
        TEST(test_first_attached), TEST(test_first_without_daemon),
        TEST(test_create_without_daemon),
        TEST(test_transactions), TEST(test_commit_codes), TEST(test_lock_codes),
        TEST(test_too_big), TEST(test_empty_write), TEST(test_busy_timeout),
        TEST(test_busy_timeout_immediate), TEST(test_busy_timeout_zero),
        TEST(test_busy_in_transaction), TEST(test_custom_busy_handler),
        TEST(test_always_stale), TEST(test_parked_lock_is_released),
        TEST(test_foreign_vfs), TEST(test_grant_is_prompt),
        TEST(test_late_grant), TEST(test_interrupt), TEST(test_stale_snapshot),
        TEST(test_wrong_fence), TEST(test_contention), TEST(test_daemon_down),
        TEST(test_read_only), TEST(test_dies_at_lock),
        TEST(test_dies_before_commit), TEST(test_dies_at_commit),
        TEST(test_commit_outcomes), TEST(test_refusals),
        TEST(test_linearizable), TEST(test_functions), TEST(test_tables),
        TEST(test_restarted_while_idle),
        TEST(test_fork), TEST(test_long_path), TEST(test_shared_cache),
        TEST(test_sqlite_shell), TEST(test_python),
    };

    fake_main(argc, argv);
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
