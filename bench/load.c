/* load: the client of bench/run. It loads SQLite (and, with -e, flotilla.so)
 * with one kind of work from one or more processes, and prints one line of
 * JSON that says what was done and how long it took.
 *
 *   load commit [-e SO] [-s FULL|NORMAL] [-p PROCS] [-t SECONDS] [-b BYTES]
 *               [-n ROWS] DB...
 *       autocommitted transactions of one row: INSERT INTO load, or with -n an
 *       UPDATE of a random one of ROWS rows of big. Process i uses the i-th DB,
 *       and the first again after the last.
 *   load read   [-e SO] [-p PROCS] [-t SECONDS] -n ROWS DB...
 *       point reads by rowid of a random one of ROWS rows of point
 *   load fill   [-e SO] [-s …] -n ROWS -r ROWS_PER_TRANSACTION -b BYTES
 *               -T TABLE DB
 *       rows of random bytes, numbered from 1
 *   load sql    [-e SO] DB SQL…
 *       run SQL, and print the first column of each row, one per line
 *   load raw    [-t SECONDS] [-b BYTES] FILE
 *       what the disk takes: O_DSYNC writes over an allocated file
 *   load fsync  [-t SECONDS] [-b BYTES] FILE
 *       … and write at the end of a file, then fdatasync
 *
 * How it measures: processes, not threads, as applications are. Each opens its
 * database, does one operation that is not counted, and waits at a gate; the
 * gate opens when all are there. A latency is the time of sqlite3_step plus
 * sqlite3_reset, so it includes what the busy handler waits. "ops" are those
 * that ended before the deadline; "acknowledged" are all that succeeded, with
 * those before the gate and after the deadline, so that the caller can count
 * the rows. The busy timeout is 5 s everywhere; what is SQLITE_BUSY after that
 * is counted, and the process goes on with the next operation; the shortest wait
 * that ended so is told, because one below 5 s is a mistake of somebody's.
 *
 * Reads are not timed one by one: the clock would cost as much as one hundredth
 * of a read, on both sides, and make the ratio better than it is.
 *
 * Exit code: 0 if the line was printed (look at "errors"), 1 if nothing could
 * be measured, 2 wrong usage. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/error.h"

#define BUSY_MS 5000
#define PROCS_MAX 64
#define SAMPLES_MAX (1u << 20) /* latencies that one process may keep */
#define BODY_MAX 65536
#define RAW_FILE_BYTES (8 << 20)
#define READS_PER_CLOCK 64
#define READY_S 60

struct options
{
    const char *verb, *extension, *synchronous, *table;
    unsigned procs, bytes, rows_per_txn;
    uint64_t rows;
    double seconds;
    char **paths;
    int n_paths;
};

/* What one process tells, in memory shared with the parent. */
struct result
{
    uint64_t ops, acknowledged, busy, unknown, errors;
    uint64_t busy_soonest_ns; /* the shortest wait that ended in SQLITE_BUSY */
    uint32_t n_samples;
    char error[200]; /* the first one */
    uint32_t sample_us10[SAMPLES_MAX]; /* tenths of a microsecond */
};

struct gate
{
    unsigned ready; /* atomic */
    uint64_t open_ns; /* atomic; 0: closed */
};

static struct options opt;
static struct gate *gate;
static struct result *results;

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "load %s: %s: %s\n", opt.verb, what, why);
    exit(1);
}

static void *shared(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        die("mmap", strerror(errno));
    }
    return p;
}

/* xorshift64*: fast, and good enough to choose rows. */
static uint64_t prng(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717u;
}

static uint64_t seed(void)
{
    uint64_t s = 0;

    if (getrandom(&s, sizeof s, 0) != sizeof s) {
        s = now_ns();
    }
    return s | 1;
}

/* ---- SQLite ---------------------------------------------------------------- */

static void sql_check(sqlite3 *db, int rc, const char *what)
{
    if (rc != SQLITE_OK && rc != SQLITE_DONE && rc != SQLITE_ROW) {
        die(what, sqlite3_errmsg(db));
    }
}

/* Loading registers the VFS for the whole process; the connection that it was
 * loaded with is not needed any more. */
static void extension_load(const char *path)
{
    sqlite3 *db;
    char *error = NULL;

    sql_check(NULL, sqlite3_open(":memory:", &db), "open :memory:");
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    if (sqlite3_load_extension(db, path, NULL, &error) != SQLITE_OK) {
        die(path, error != NULL ? error : "cannot load");
    }
    sqlite3_close(db);
}

static sqlite3_stmt *prepare(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt = NULL;

    sql_check(db, sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT,
                                     &stmt, NULL), sql);
    return stmt;
}

/* The first column of the first row; "" if there is none. */
static void query(sqlite3 *db, const char *sql, char *out, size_t n)
{
    sqlite3_stmt *stmt = prepare(db, sql);

    out[0] = '\0';
    if (sqlite3_step(stmt) == SQLITE_ROW &&
        sqlite3_column_text(stmt, 0) != NULL) {
        snprintf(out, n, "%s", (const char *)sqlite3_column_text(stmt, 0));
    }
    sql_check(db, sqlite3_finalize(stmt), sql);
}

static void expect(sqlite3 *db, const char *sql, const char *wanted)
{
    char text[64];

    query(db, sql, text, sizeof text);
    if (strcmp(text, wanted) != 0) {
        die(sql, text[0] != '\0' ? text : "no value");
    }
}

/* What is measured must be what is said: the replicated VFS or the plain one,
 * WAL mode, and the durability asked for. */
static sqlite3 *database_open(const char *path, bool checked)
{
    char sql[64], text[128];
    sqlite3 *db;

    if (opt.extension != NULL) {
        extension_load(opt.extension);
    }
    sql_check(NULL, sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE |
              SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL), path);
    sqlite3_busy_timeout(db, BUSY_MS);
    if (opt.extension != NULL) {
        query(db, "SELECT flotilla_position()", text, sizeof text);
        if (text[0] == '\0' && checked) {
            die(path, "not a replicated database");
        }
    } else if (opt.synchronous != NULL) {
        snprintf(sql, sizeof sql, "PRAGMA synchronous = %s", opt.synchronous);
        query(db, sql, text, sizeof text);
        expect(db, "PRAGMA synchronous",
               strcmp(opt.synchronous, "FULL") == 0 ? "2" : "1");
    }
    if (checked) {
        expect(db, "PRAGMA journal_mode", "wal");
    }
    return db;
}

/* ---- One process ------------------------------------------------------------ */

static void gate_wait(void)
{
    struct timespec nap = {.tv_nsec = 100000};

    __atomic_add_fetch(&gate->ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&gate->open_ns, __ATOMIC_SEQ_CST) == 0) {
        nanosleep(&nap, NULL);
    }
    while (now_ns() < gate->open_ns) {
        nanosleep(&nap, NULL);
    }
}

static uint64_t deadline_ns(void)
{
    return gate->open_ns + (uint64_t)(opt.seconds * 1e9);
}

static void sample(struct result *r, uint64_t ns)
{
    uint64_t t = ns / 100;

    if (r->n_samples < SAMPLES_MAX) {
        r->sample_us10[r->n_samples++] = t < UINT32_MAX ? (uint32_t)t
                                                        : UINT32_MAX;
    }
}

static void failure(struct result *r, sqlite3 *db, int rc, uint64_t waited_ns)
{
    bool busy = (rc & 0xff) == SQLITE_BUSY;
    bool unknown = rc == FLOTILLA_SQLITE_UNKNOWN;

    r->busy += busy ? 1 : 0;
    if (busy && (r->busy == 1 || waited_ns < r->busy_soonest_ns)) {
        r->busy_soonest_ns = waited_ns;
    }
    r->unknown += unknown ? 1 : 0;
    r->errors += !busy && !unknown ? 1 : 0;
    if (r->error[0] == '\0') {
        snprintf(r->error, sizeof r->error, "%d: %s", rc, sqlite3_errmsg(db));
    }
}

static bool commit_once(struct result *r, sqlite3 *db, sqlite3_stmt *stmt,
                        uint64_t *random)
{
    uint8_t body[BODY_MAX];
    uint64_t begin;
    int rc;

    for (unsigned i = 0; i < opt.bytes; i += 8) {
        uint64_t v = prng(random);
        memcpy(body + i, &v, 8);
    }
    sqlite3_bind_blob(stmt, 1, body, (int)opt.bytes, SQLITE_STATIC);
    if (opt.rows > 0) {
        sqlite3_bind_int64(stmt, 2, (int64_t)(prng(random) % opt.rows) + 1);
    }
    begin = now_ns();
    (void)sqlite3_step(stmt);
    rc = sqlite3_reset(stmt);
    if (rc != SQLITE_OK) {
        failure(r, db, sqlite3_extended_errcode(db), now_ns() - begin);
        return false;
    }
    r->acknowledged++;
    return true;
}

static void run_commits(struct result *r, sqlite3 *db)
{
    sqlite3_stmt *stmt = prepare(
        db, opt.rows > 0 ? "UPDATE big SET body = ?1 WHERE id = ?2"
                         : "INSERT INTO load(body) VALUES (?1)");
    uint64_t random = seed(), begin, end;

    commit_once(r, db, stmt, &random);
    gate_wait();
    for (begin = now_ns(); begin < deadline_ns(); begin = end) {
        bool good = commit_once(r, db, stmt, &random);
        end = now_ns();
        if (good) {
            sample(r, end - begin);
            r->ops += end <= deadline_ns() ? 1 : 0;
        } else if (r->errors > 100) {
            break; /* not a benchmark any more */
        }
    }
    sqlite3_finalize(stmt);
}

static bool read_once(struct result *r, sqlite3 *db, sqlite3_stmt *stmt,
                      uint64_t *random)
{
    int rc;

    sqlite3_bind_int64(stmt, 1, (int64_t)(prng(random) % opt.rows) + 1);
    rc = sqlite3_step(stmt);
    if (rc != SQLITE_ROW || sqlite3_column_bytes(stmt, 0) == 0) {
        failure(r, db, rc == SQLITE_ROW || rc == SQLITE_DONE
                           ? SQLITE_NOTFOUND
                           : sqlite3_extended_errcode(db), 0);
        sqlite3_reset(stmt);
        return false;
    }
    sqlite3_reset(stmt);
    r->acknowledged++;
    return true;
}

static void run_reads(struct result *r, sqlite3 *db)
{
    sqlite3_stmt *stmt = prepare(db, "SELECT body FROM point WHERE id = ?1");
    uint64_t random = seed();

    for (unsigned i = 0; i < 1000; i++) {
        read_once(r, db, stmt, &random); /* fill the page cache */
    }
    gate_wait();
    while (now_ns() < deadline_ns() && r->errors <= 100) {
        for (unsigned i = 0; i < READS_PER_CLOCK; i++) {
            r->ops += read_once(r, db, stmt, &random) ? 1 : 0;
        }
    }
    sqlite3_finalize(stmt);
}

static void run_raw(struct result *r, const char *path, bool append)
{
    int flags = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC;
    int fd = open(path, append ? flags : flags | O_DSYNC, 0600);
    uint8_t *body = aligned_alloc(4096, BODY_MAX);
    off_t at = 0;
    uint64_t begin, end;

    if (fd < 0 || body == NULL) {
        die(path, strerror(errno));
    }
    memset(body, 'x', BODY_MAX);
    for (off_t i = 0; !append && i < RAW_FILE_BYTES; i += BODY_MAX) {
        if (pwrite(fd, body, BODY_MAX, i) != BODY_MAX) {
            die(path, strerror(errno));
        }
    }
    gate_wait();
    for (begin = now_ns(); begin < deadline_ns(); begin = end) {
        if (pwrite(fd, body, opt.bytes, at) != (ssize_t)opt.bytes ||
            (append && fdatasync(fd) != 0)) {
            die(path, strerror(errno));
        }
        end = now_ns();
        sample(r, end - begin);
        r->ops++;
        at += opt.bytes;
        at = !append && at + opt.bytes > RAW_FILE_BYTES ? 0 : at;
    }
    close(fd);
    unlink(path);
}

static void process_run(unsigned i)
{
    struct result *r = &results[i];
    const char *path = opt.paths[i % (unsigned)opt.n_paths];
    bool raw = strcmp(opt.verb, "raw") == 0;
    sqlite3 *db;

    if (raw || strcmp(opt.verb, "fsync") == 0) {
        run_raw(r, path, !raw);
        return;
    }
    db = database_open(path, true);
    if (strcmp(opt.verb, "commit") == 0) {
        run_commits(r, db);
    } else {
        run_reads(r, db);
    }
    sqlite3_close(db);
}

/* ---- All of them ------------------------------------------------------------- */

static void json_text(const char *s)
{
    putchar('"');
    for (; *s != '\0'; s++) {
        if (*s == '"' || *s == '\\') {
            putchar('\\');
        }
        putchar((unsigned char)*s < ' ' ? ' ' : *s);
    }
    putchar('"');
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static double quantile_us(const uint32_t *sorted, size_t n, double q)
{
    size_t i = (size_t)(q * (double)n);

    return n == 0 ? 0.0 : sorted[i < n ? i : n - 1] / 10.0;
}

static void print_latencies(void)
{
    size_t n = 0;
    uint32_t *all;

    for (unsigned i = 0; i < opt.procs; i++) {
        n += results[i].n_samples;
    }
    all = malloc((n + 1) * sizeof *all);
    if (all == NULL) {
        die("latencies", "out of memory");
    }
    n = 0;
    for (unsigned i = 0; i < opt.procs; i++) {
        memcpy(all + n, results[i].sample_us10,
               results[i].n_samples * sizeof *all);
        n += results[i].n_samples;
    }
    qsort(all, n, sizeof *all, compare_u32);
    printf(", \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f",
           quantile_us(all, n, 0.50), quantile_us(all, n, 0.99),
           quantile_us(all, n, 1.0));
    free(all);
}

static void print_results(void)
{
    struct totals
    {
        uint64_t ops, acknowledged, busy, unknown, errors, busy_soonest_ns;
    } sum = {0};
    const char *error = "";

    for (unsigned i = 0; i < opt.procs; i++) {
        const struct result *r = &results[i];
        sum.ops += r->ops;
        sum.acknowledged += r->acknowledged;
        if (r->busy > 0 && (sum.busy == 0 ||
                            r->busy_soonest_ns < sum.busy_soonest_ns)) {
            sum.busy_soonest_ns = r->busy_soonest_ns;
        }
        sum.busy += r->busy;
        sum.unknown += r->unknown;
        sum.errors += r->errors;
        error = error[0] == '\0' ? r->error : error;
    }
    printf("{\"ops\": %" PRIu64 ", \"seconds\": %.3f, \"per_second\": %.1f, "
           "\"acknowledged\": %" PRIu64 ", \"busy\": %" PRIu64
           ", \"busy_soonest_ms\": %.1f, \"unknown\": %" PRIu64
           ", \"errors\": %" PRIu64, sum.ops, opt.seconds,
           (double)sum.ops / opt.seconds, sum.acknowledged, sum.busy,
           (double)sum.busy_soonest_ns / 1e6, sum.unknown, sum.errors);
    print_latencies();
    printf(", \"by_process\": [");
    for (unsigned i = 0; i < opt.procs; i++) {
        printf("%s%" PRIu64, i > 0 ? ", " : "", results[i].ops);
    }
    printf("], \"first_error\": ");
    json_text(error);
    printf("}\n");
}

/* False when a process ended before it was ready. */
static bool all_ready(void)
{
    struct timespec nap = {.tv_nsec = 1000000};
    uint64_t until = now_ns() + READY_S * 1000000000ull;
    siginfo_t info = {0};

    while (__atomic_load_n(&gate->ready, __ATOMIC_SEQ_CST) < opt.procs) {
        waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT);
        if (info.si_pid != 0 || now_ns() > until) {
            return false;
        }
        nanosleep(&nap, NULL);
    }
    return true;
}

static int run_processes(void)
{
    pid_t pids[PROCS_MAX];
    int failed = 0;

    gate = shared(sizeof *gate);
    results = shared(sizeof *results * opt.procs);
    for (unsigned i = 0; i < opt.procs; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            process_run(i);
            _exit(0);
        }
        if (pids[i] < 0) {
            die("fork", strerror(errno)); /* the others die with us */
        }
    }
    if (!all_ready()) {
        die("processes", "not all became ready");
    }
    __atomic_store_n(&gate->open_ns, now_ns() + 2000000, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < opt.procs; i++) {
        int status = 0;
        waitpid(pids[i], &status, 0);
        failed += status != 0 ? 1 : 0;
    }
    if (failed > 0) {
        die("processes", "one failed");
    }
    print_results();
    return 0;
}

/* ---- fill and sql -------------------------------------------------------------- */

static int run_fill(void)
{
    sqlite3 *db = database_open(opt.paths[0], true);
    uint64_t begin = now_ns(), slowest = 0, txns = 0;
    char sql[128];
    sqlite3_stmt *insert;

    snprintf(sql, sizeof sql, "INSERT INTO %s(body) VALUES (randomblob(?1))",
             opt.table);
    insert = prepare(db, sql);
    sqlite3_bind_int(insert, 1, (int)opt.bytes);
    for (uint64_t i = 0; i < opt.rows; txns++) {
        uint64_t t = now_ns();
        sql_check(db, sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL),
                  "BEGIN");
        for (unsigned k = 0; k < opt.rows_per_txn && i < opt.rows; k++, i++) {
            sql_check(db, sqlite3_step(insert), sql);
            sql_check(db, sqlite3_reset(insert), sql);
        }
        sql_check(db, sqlite3_exec(db, "COMMIT", NULL, NULL, NULL), "COMMIT");
        t = now_ns() - t;
        slowest = t > slowest ? t : slowest;
    }
    sqlite3_finalize(insert);
    sqlite3_close(db);
    printf("{\"rows\": %" PRIu64 ", \"transactions\": %" PRIu64
           ", \"seconds\": %.3f, \"slowest_ms\": %.1f}\n",
           opt.rows, txns, (double)(now_ns() - begin) / 1e9,
           (double)slowest / 1e6);
    return 0;
}

static int run_sql(void)
{
    sqlite3 *db = database_open(opt.paths[0], false);

    for (int i = 1; i < opt.n_paths; i++) {
        sqlite3_stmt *stmt = prepare(db, opt.paths[i]);
        while (sqlite3_step(stmt) == SQLITE_ROW) {
            const char *text = (const char *)sqlite3_column_text(stmt, 0);
            printf("%s\n", text != NULL ? text : "");
        }
        sql_check(db, sqlite3_finalize(stmt), opt.paths[i]);
    }
    sqlite3_close(db);
    return 0;
}

/* ---- Command line ---------------------------------------------------------------- */

static int usage(void)
{
    fprintf(stderr, "usage: load commit|read|fill|sql|raw|fsync [-e SO] "
                    "[-s FULL|NORMAL] [-p PROCS] [-t SECONDS] [-b BYTES] "
                    "[-n ROWS] [-r ROWS_PER_TRANSACTION] [-T TABLE] PATH...\n"
                    "see the head of bench/load.c\n");
    return 2;
}

static bool options_good(void)
{
    bool good = opt.n_paths > 0 && opt.procs >= 1 && opt.procs <= PROCS_MAX &&
                opt.bytes <= BODY_MAX && opt.seconds > 0 &&
                opt.rows_per_txn > 0;

    if (strcmp(opt.verb, "fill") == 0 || strcmp(opt.verb, "read") == 0) {
        good = good && opt.rows > 0;
    }
    return good && (opt.synchronous == NULL ||
                    strcmp(opt.synchronous, "FULL") == 0 ||
                    strcmp(opt.synchronous, "NORMAL") == 0);
}

static int parse(int argc, char **argv)
{
    int c;

    opt = (struct options){.verb = argc > 1 ? argv[1] : "", .table = "big",
                           .procs = 1, .bytes = 100, .rows_per_txn = 2000,
                           .seconds = 1};
    while ((c = getopt(argc - 1, argv + 1, "e:s:p:t:b:n:r:T:")) != -1) {
        switch (c) {
        case 'e': opt.extension = optarg; break;
        case 's': opt.synchronous = optarg; break;
        case 'p': opt.procs = (unsigned)strtoul(optarg, NULL, 10); break;
        case 't': opt.seconds = strtod(optarg, NULL); break;
        case 'b': opt.bytes = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'n': opt.rows = strtoull(optarg, NULL, 10); break;
        case 'r': opt.rows_per_txn = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'T': opt.table = optarg; break;
        default: return 2;
        }
    }
    opt.paths = argv + 1 + optind;
    opt.n_paths = argc - 1 - optind;
    return options_good() ? 0 : 2;
}

int main(int argc, char **argv)
{
    static const char *const measured[] = {"commit", "read", "raw", "fsync"};

    if (argc < 2 || parse(argc, argv) != 0) {
        return usage();
    }
    for (unsigned i = 0; i < sizeof measured / sizeof *measured; i++) {
        if (strcmp(opt.verb, measured[i]) == 0) {
            return run_processes();
        }
    }
    if (strcmp(opt.verb, "fill") == 0) {
        return run_fill();
    }
    return strcmp(opt.verb, "sql") == 0 ? run_sql() : usage();
}
