/* How a replicated database gets the cluster's write lock.
 *
 * SQLite asks for the WRITE lock of the wal-index; we ask the daemon, which
 * queues us at the leader, and then take the write fence. The real WRITE lock
 * is the daemon's and is touched only when SQLite asks without a read lock: it
 * is then not writing, but re-reading or recovering the wal-index.
 *
 * WAITING. SQLite does not tell a VFS its busy timeout T, so we ask the
 * connection (PRAGMA busy_timeout) once per attempt, and wait here for up to T,
 * in the leader's queue. When that was not enough, SQLite would call its busy
 * handler, which knows nothing of our waiting: it sleeps 1, 2, 5 … 100 ms, T in
 * all, and has the call repeated after each. So the handler, which SQLite hands
 * to the VFS (SQLITE_FCNTL_BUSYHANDLER), is used up here before SQLITE_BUSY is
 * returned: it is called until it gives up, with its sleeps skipped, since they
 * go through our xSleep. SQLite then asks it once more, hears no, and tells the
 * application: T was waited, once. (A connection that was opened through
 * another VFS, with this database attached by URI, sleeps for real: 2 T.)
 *
 * T = 0 is no busy handler, or one of the application's own. The lock is had if
 * it is free; else the handler is called as SQLite would, and on its word we
 * try again: it sees its count of calls grow, but has no place in the queue.
 *
 * Asking by PRAGMA sets the handler's count back to 0, so it must not happen on
 * SQLite's own retries, or they would never end. There is only one kind left,
 * that after a stale snapshot; it uses what is left of the first one's time.
 *
 * No request outlives a call: giving up sends CANCEL and waits for its effect,
 * so a grant never lies about unused. (A grant that crosses the CANCEL is
 * taken; a daemon that does not answer loses the connection, and with it
 * everything it may have granted.)
 *
 * STALE SNAPSHOT. The grant may bring this node's replica forward, beyond the
 * snapshot the connection reads. Where SQLite will retry by itself with a fresh
 * one (no transaction open yet, and a busy timeout), the lock is parked: we keep
 * lock and fence, answer SQLITE_BUSY, skip the busy handler's sleep, and give
 * SQLite the lock when it comes back with a new read lock. Should it end that
 * read instead, the parked lock is released. Otherwise SQLite finds out itself,
 * unlocks and answers SQLITE_BUSY_SNAPSHOT; the lock is then left with the
 * daemon for LINGER_MS if a busy handler of the application's may retry.
 *
 * When the WAL is long and readers' snapshots keep the daemon from restarting
 * it, those of waiting writers among them, it answers FLO_STALE to writers
 * whose statement SQLite will retry by itself: they come back with a snapshot
 * of the database file alone.
 *
 * PRISTINE. An empty file is a rollback-mode database to SQLite. The first
 * write must make page 1 through the cluster instead. When SQLite takes SHARED
 * on an empty file for a statement that writes, INIT is sent before the lock is
 * taken, and SQLite then finds a WAL database. When it comes to RESERVED (a
 * read transaction was open already, or sqlite3_backup), INIT is sent then, and
 * SQLITE_BUSY makes it start over. RESERVED is never granted. */
#include "ext/internal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"

#define LINGER_MS 20
#define READ_TIMEOUT_MS 5000  /* for READ when the busy timeout is 0 */
#define ANSWER_SLACK_MS 20    /* the leader's "not in time" is on its way */
#define SLICE_MS 100          /* how often sqlite3_interrupt() is looked for */
#define FENCE_WAIT_MS 250
#define RETRY_WITHIN_MS 150 /* the busy handler sleeps 100 at most */
#define RETRY_FIRST_MS 10
#define PARK_TIMEOUT_MS 10 /* of the busy handler: enough for one retry */
#define RETRY_MAX_MS 50

/* ---- Asking the connection ------------------------------------------------------- */

static int ask_int(sqlite3 *db, const char *sql, int *value)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (rc == SQLITE_OK) {
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW) {
            *value = sqlite3_column_int(stmt, 0);
            rc = SQLITE_OK;
        }
    }
    sqlite3_finalize(stmt);
    return rc;
}

int lock_busy_timeout(struct replicated *r)
{
    int ms = 0;
    int rc = SQLITE_OK;

    if (r->pdb != NULL && *r->pdb != NULL) {
        rc = ask_int(*r->pdb, "PRAGMA busy_timeout", &ms);
    }
    if (rc == SQLITE_INTERRUPT) {
        return -1;
    }
    return ms > 0 ? ms : 0;
}

/* The name under which the connection knows this file, or NULL. */
static const char *schema_of(struct replicated *r)
{
    sqlite3 *db = r->pdb != NULL ? *r->pdb : NULL;

    if (db == NULL) {
        return NULL;
    }
    if (replicated_is_main(db) && replicated_of(db) == r) {
        return "main";
    }
#if SQLITE_VERSION_NUMBER >= 3039000
    if (sqlite3_libversion_number() >= 3039000) {
        sqlite3_file *f;
        const char *name;
        int i;

        for (i = 2; (name = sqlite3_db_name(db, i)) != NULL; i++) {
            f = NULL;
            if (sqlite3_file_control(db, name, SQLITE_FCNTL_FILE_POINTER,
                                     &f) == SQLITE_OK && f == &r->base) {
                return name;
            }
        }
    }
#endif
    return NULL;
}

/* Will SQLite ask its busy handler when we answer SQLITE_BUSY? It does only
 * while no transaction is open on this database. When in doubt, yes. */
static bool retried_by_sqlite(struct replicated *r)
{
    const char *schema = schema_of(r);

    return schema == NULL ||
           sqlite3_txn_state(*r->pdb, schema) == SQLITE_TXN_NONE;
}

/* ---- The busy handler --------------------------------------------------------------- */

/* The thread is using up a busy handler: its sleeps are skipped. */
static _Thread_local bool draining;

/* The next sleep is the busy handler's before the retry after a stale snapshot;
 * the grant lies with the daemon and everybody else waits for it: skipped. */
static _Thread_local bool hurry;

bool lock_skip_sleep(void)
{
    bool skip = draining || hurry;

    hurry = false;
    return skip;
}

/* Call it once, as SQLite would: true means try again. */
static bool busy_handler(struct replicated *r)
{
    int (*call)(void *) = NULL;

    if (r->busy == NULL || r->busy[0] == NULL) {
        return false;
    }
    memcpy(&call, &r->busy[0], sizeof call);
    return call(r->busy[1]) != 0;
}

/* Our waiting is over: so is the busy handler's. It gives up after T, however
 * often that makes; the bound is for one that never does. */
static void use_up_busy_handler(struct replicated *r)
{
    long calls = 0;

    draining = true;
    while (calls < 1000 + r->timeout_ms && busy_handler(r)) {
        calls++;
    }
    draining = false;
}

/* ---- Time ----------------------------------------------------------------------------- */

/* An attempt begins, or SQLite repeats one. SQLITE_OK: try until r->deadline. */
static int attempt_begin(struct replicated *r)
{
    int ms;

    if (r->retry && client_now() - r->retry_since < RETRY_WITHIN_MS) {
        r->retry = false;
        r->retried = true;
        return SQLITE_OK;
    }
    r->retried = false;
    r->retry = false; /* SQLite gave up instead: this is another attempt */
    ms = lock_busy_timeout(r);
    if (ms < 0) {
        return SQLITE_INTERRUPT;
    }
    r->timeout_ms = ms;
    r->deadline = client_now() + ms;
    return SQLITE_OK;
}

/* It failed with rc: true when the application's busy handler wants another. */
static bool attempt_again(struct replicated *r, int rc)
{
    if ((rc & 0xff) != SQLITE_BUSY) {
        return false;
    }
    if (r->timeout_ms == 0 && retried_by_sqlite(r) && busy_handler(r)) {
        return true;
    }
    if (r->timeout_ms > 0) {
        use_up_busy_handler(r);
    }
    atomic_fetch_add(&r->counters.busy, 1);
    return false;
}

/* ---- Error codes ---------------------------------------------------------------------- */

int lock_sqlite_code(int flo)
{
    switch (flo) {
    case FLO_OK:
        return SQLITE_OK;
    case FLO_NOMEM:
        return SQLITE_NOMEM;
    case FLO_FULL:
        return SQLITE_FULL;
    case FLO_TOOBIG:
        return SQLITE_TOOBIG;
    case FLO_CORRUPT:
    case FLO_PROTOCOL:
    case FLO_VERSION:
    case FLO_INVALID:
    case FLO_IDENTITY:
        return SQLITE_IOERR_LOCK;
    default:
        return SQLITE_BUSY; /* nothing was changed, retry is safe */
    }
}

/* These pass by themselves: worth asking again while there is time. */
static bool transient(int flo)
{
    return flo == FLO_BUSY || flo == FLO_IO || flo == FLO_LOST ||
           flo == FLO_NOTLEADER || flo == FLO_NOLEADER || flo == FLO_TIMEOUT ||
           flo == FLO_DESYNCED || flo == FLO_SHUTDOWN || flo == FLO_MISMATCH;
}

/* ---- Waiting for an answer --------------------------------------------------------------- */

/* client_receive in slices, so that sqlite3_interrupt() ends it. */
static int receive_patiently(struct replicated *r, uint64_t request,
                             struct wire_msg *answer, int64_t deadline,
                             bool *interrupted)
{
    for (;;) {
        int64_t now = client_now();
        int64_t until = deadline - now > SLICE_MS ? now + SLICE_MS : deadline;
        int rc = client_receive(&r->client, request, answer, until);

        if (rc != FLO_TIMEOUT || until == deadline) {
            return rc;
        }
        *interrupted = lock_busy_timeout(r) < 0;
        if (*interrupted) {
            return FLO_TIMEOUT;
        }
    }
}

/* No longer wait for the LOCK. FLO_OK: a grant was under way and is in answer. */
static int cancel_lock(struct client *c, uint64_t request,
                       struct wire_msg *answer)
{
    struct wire_msg m = {.type = MSG_CANCEL};
    int rc;

    m.cancel.cancelled = request;
    rc = client_send(c, &m);
    if (rc == FLO_OK) {
        rc = client_receive(c, request, answer, client_now() + CLIENT_GRACE_MS);
    }
    if (rc == FLO_TIMEOUT) {
        client_disconnect(c);
    }
    return rc;
}

/* One LOCK request, to its answer: FLO_OK with *grant, or why not. */
static int request_lock(struct replicated *r, int64_t deadline,
                        struct wire_msg *answer, bool *interrupted)
{
    struct wire_msg m = {.type = MSG_LOCK};
    int64_t now, until;
    int rc = client_connect(&r->client, deadline);

    if (rc != FLO_OK) {
        return rc;
    }
    now = client_now();
    snprintf(m.lock.db, sizeof m.lock.db, "%s", r->db);
    m.lock.timeout_ms = deadline > now ? (uint32_t)(deadline - now) : 0;
    m.lock.fresh = r->timeout_ms > 0 && retried_by_sqlite(r);
    until = m.lock.timeout_ms > 0 ? deadline + ANSWER_SLACK_MS
                                  : now + CLIENT_GRACE_MS;
    rc = client_send(&r->client, &m);
    if (rc == FLO_OK) {
        rc = receive_patiently(r, m.request, answer, until, interrupted);
    }
    if (rc == FLO_TIMEOUT) {
        rc = cancel_lock(&r->client, m.request, answer);
    }
    if (rc == FLO_OK && answer->type == MSG_GRANT) {
        return FLO_OK;
    }
    if (rc == FLO_OK && answer->type == MSG_RESULT &&
        answer->result.code != FLO_OK) {
        replicated_error(r, 0, "%s: %s", flo_strerror((int)answer->result.code),
                         answer->result.text);
        return (int)answer->result.code;
    }
    return rc == FLO_OK ? FLO_PROTOCOL : rc;
}

/* Ask until granted, the deadline, or an error that will not pass. */
static int wait_for_grant(struct replicated *r, int64_t deadline,
                          struct wire_msg *answer, bool *interrupted)
{
    bool connected = r->client.fd >= 0;
    int pause = RETRY_FIRST_MS;

    for (;;) {
        int rc = request_lock(r, deadline, answer, interrupted);
        int64_t left = deadline - client_now();

        if (rc == FLO_IO && connected && !*interrupted) {
            connected = false; /* it died while idle: that is no failure yet */
            continue;
        }
        if (rc == FLO_OK || !transient(rc) || left <= 0 || *interrupted) {
            return rc;
        }
        client_sleep(pause < left ? pause : (int)left);
        pause = pause * 2 > RETRY_MAX_MS ? RETRY_MAX_MS : pause * 2;
    }
}

/* ---- The fence ----------------------------------------------------------------------------- */

static int fence_ready(struct replicated *r)
{
    if (r->fence.fd >= 0 && r->fence_pid != getpid()) {
        fence_close(&r->fence); /* the lock on it is the parent's */
    }
    if (r->fence.fd >= 0) {
        return FLO_OK;
    }
    r->fence_pid = getpid();
    return fence_open(&r->fence, r->fence_path, 0);
}

static int fence_lock_wait(struct replicated *r, int64_t deadline)
{
    int rc;

    while ((rc = fence_try_lock(&r->fence)) == FLO_BUSY &&
           client_now() < deadline) {
        client_sleep(1);
    }
    return rc;
}

/* Take the fence and find our grant in it. A file that was replaced since it
 * was opened is opened again. */
static int fence_take(struct replicated *r, uint64_t grant)
{
    uint64_t found = 0;
    int attempt, rc = FLO_OK;

    for (attempt = 0; attempt < 2; attempt++) {
        rc = fence_ready(r);
        if (rc == FLO_OK) {
            rc = fence_lock_wait(r, client_now() + FENCE_WAIT_MS);
        }
        if (rc == FLO_OK) {
            rc = fence_get(&r->fence, &found);
            if (rc == FLO_OK && found == grant) {
                return FLO_OK;
            }
            fence_unlock(&r->fence);
        }
        fence_close(&r->fence);
    }
    replicated_error(r, SQLITE_BUSY, "the write fence %s is not ours: %s",
                     r->fence_path, flo_strerror(rc));
    return rc != FLO_OK ? rc : FLO_BUSY;
}

static void fence_drop(struct replicated *r)
{
    if (r->fence.fd >= 0 && r->fence_pid == getpid()) {
        fence_unlock(&r->fence);
    } else {
        fence_close(&r->fence);
    }
}

/* ---- The wal-index --------------------------------------------------------------------------- */

uint32_t index_frames(const struct replicated *r)
{
    const volatile uint32_t *h = r->index;
    return h != NULL ? h[4] : 0;
}

uint32_t index_page_size(const struct replicated *r)
{
    const volatile uint16_t *h = r->index;
    uint32_t n = h != NULL ? h[7] : 0;

    return (n & 0xfe00) + ((n & 1) << 16);
}

static void copy_index(const struct replicated *r, uint8_t out[INDEX_HEADER])
{
    const volatile uint8_t *h = r->index;
    int i;

    for (i = 0; i < INDEX_HEADER; i++) {
        out[i] = h != NULL ? h[i] : 0;
    }
}

static bool snapshot_is_stale(const struct replicated *r)
{
    uint8_t now[INDEX_HEADER];

    copy_index(r, now);
    return memcmp(now, r->read_index, sizeof now) != 0;
}

/* ---- WRITE ------------------------------------------------------------------------------------- */

/* SQLite is recovering or re-reading the wal-index, not writing. The fence too
 * must be free then: a client of a daemon that died may be publishing. */
static int lock_local(struct replicated *r)
{
    const sqlite3_io_methods *m = r->real->pMethods;
    int rc = m->xShmLock(r->real, 0, 1,
                         SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE);

    if (rc != SQLITE_OK) {
        return rc;
    }
    if (fence_ready(r) == FLO_OK && fence_try_lock(&r->fence) == FLO_BUSY) {
        m->xShmLock(r->real, 0, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
        return SQLITE_BUSY;
    }
    r->write = WRITE_LOCAL;
    return SQLITE_OK;
}

static void send_release(struct replicated *r, uint64_t grant, uint32_t linger)
{
    struct wire_msg m = {.type = MSG_RELEASE};

    m.release.grant = grant;
    m.release.linger_ms = linger;
    if (r->client.fd >= 0) {
        client_send(&r->client, &m); /* lost: the daemon knows already */
    }
}

static int lock_cluster(struct replicated *r, int64_t deadline)
{
    struct wire_msg answer;
    bool interrupted = false;
    int rc = wait_for_grant(r, deadline, &answer, &interrupted);

    if (rc == FLO_OK && interrupted) {
        send_release(r, answer.grant.grant, 0);
    }
    if (interrupted) {
        return SQLITE_INTERRUPT;
    }
    if (rc == FLO_OK) {
        rc = fence_take(r, answer.grant.grant);
        if (rc != FLO_OK) {
            send_release(r, answer.grant.grant, 0);
        }
    } else if (rc != FLO_STALE && (r->client.fd < 0 || !transient(rc))) {
        replicated_error(r, transient(rc) ? 0 : SQLITE_BUSY,
                         "no write lock: %s%s%s", flo_strerror(rc),
                         r->client.error[0] != '\0' ? ": " : "",
                         r->client.error);
    }
    r->bounced = rc == FLO_STALE;
    if (rc == FLO_OK) {
        r->write = WRITE_CLUSTER;
        memset(&r->txn, 0, sizeof r->txn);
        r->txn.grant = answer.grant.grant;
        r->txn.txid = answer.grant.txid;
        r->txn.first = index_frames(r);
        r->txn.page_size = index_page_size(r);
        atomic_fetch_add(&r->counters.grants, 1);
    }
    return lock_sqlite_code(rc);
}

/* Is SQLite about to find its snapshot stale, and sure to come back? Its busy
 * handler has not been asked yet in this attempt, so it will say yes. */
static bool may_park(struct replicated *r)
{
    return r->timeout_ms >= PARK_TIMEOUT_MS && !r->retried &&
           snapshot_is_stale(r) && retried_by_sqlite(r);
}

/* Keep lock and fence, and have SQLite take a fresh snapshot first. */
static int park(struct replicated *r)
{
    r->parked = PARK_OLD_SNAPSHOT;
    hurry = true;
    return SQLITE_BUSY;
}

int lock_write(struct replicated *r)
{
    int64_t started = client_now();
    int rc;

    if (r->read_locks == 0) {
        return lock_local(r);
    }
    if (r->parked != PARK_NONE) {
        r->parked = PARK_NONE; /* SQLite came back, as it always does */
        return SQLITE_OK;
    }
    r->bounced = false;
    hurry = false;
    rc = attempt_begin(r);
    while (rc == SQLITE_OK) {
        sqlite3_mutex_enter(r->mutex);
        rc = lock_cluster(r, r->deadline);
        sqlite3_mutex_leave(r->mutex);
        if (r->bounced) {
            r->retry = true; /* SQLite's own, in a millisecond */
            r->retry_since = client_now();
            break;
        }
        if (!attempt_again(r, rc)) {
            break;
        }
        rc = SQLITE_OK;
    }
    atomic_fetch_add(&r->counters.wait_ms,
                     (unsigned long long)(client_now() - started));
    return rc == SQLITE_OK && may_park(r) ? park(r) : rc;
}

int lock_write_release(struct replicated *r)
{
    bool linger = r->write == WRITE_CLUSTER && !r->txn.wrote &&
                  r->parked == PARK_NONE && snapshot_is_stale(r) &&
                  retried_by_sqlite(r);

    r->parked = PARK_NONE;
    if (r->write == WRITE_LOCAL) {
        r->write = WRITE_NONE;
        fence_drop(r);
        return r->real->pMethods->xShmLock(
            r->real, 0, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
    }
    if (r->write == WRITE_CLUSTER) {
        r->write = WRITE_NONE;
        fence_drop(r); /* before RELEASE: the daemon takes it back then */
        sqlite3_mutex_enter(r->mutex);
        send_release(r, r->txn.grant, linger ? LINGER_MS : 0);
        sqlite3_mutex_leave(r->mutex);
        r->txn.held = false;
        r->retry = linger;
        r->retry_since = client_now();
        /* Once per attempt: the handler counts its sleeps, skipped or not. */
        hurry = linger && !r->retried;
    }
    return SQLITE_OK;
}

/* ---- Read locks -------------------------------------------------------------------------------- */

/* READ: what is committed anywhere is applied here when it returns. */
static int confirm_read(struct replicated *r)
{
    struct wire_msg m = {.type = MSG_READ}, answer;
    int ms = lock_busy_timeout(r);
    int rc;

    if (ms < 0) {
        return SQLITE_INTERRUPT;
    }
    ms = ms > 0 ? ms : READ_TIMEOUT_MS;
    snprintf(m.read.db, sizeof m.read.db, "%s", r->db);
    m.read.timeout_ms = (uint32_t)ms;
    sqlite3_mutex_enter(r->mutex);
    rc = client_call(&r->client, &m, &answer,
                     client_now() + ms + ANSWER_SLACK_MS);
    if (rc == FLO_OK) {
        rc = answer.type == MSG_RESULT ? (int)answer.result.code : FLO_PROTOCOL;
    }
    sqlite3_mutex_leave(r->mutex);
    if (rc != FLO_OK) {
        replicated_error(r, SQLITE_BUSY, "a linearizable read could not be "
                         "confirmed: %s", flo_strerror(rc));
    }
    return lock_sqlite_code(rc);
}

/* Before a read transaction's lock. When the replica moved while we waited,
 * SQLite finds its header outdated and comes back at once: it is not made to
 * wait for a second confirmation then.
 *
 * SQLite takes SQLITE_BUSY for a read lock as "try again", a hundred times, and
 * would end with SQLITE_PROTOCOL; so a failure is SQLITE_LOCKED here. */
static int confirm_before_lock(struct replicated *r)
{
    uint8_t before[INDEX_HEADER], after[INDEX_HEADER];
    int rc;

    if (r->skip_confirm && client_now() <= r->skip_until) {
        r->skip_confirm = false;
        return SQLITE_OK;
    }
    copy_index(r, before);
    rc = confirm_read(r);
    if ((rc & 0xff) == SQLITE_BUSY) {
        return SQLITE_LOCKED;
    }
    copy_index(r, after);
    r->skip_confirm = memcmp(before, after, sizeof before) != 0;
    return rc;
}

int lock_read(struct replicated *r, int offset, int flags)
{
    bool asks = r->linearizable && r->read_locks == 0 &&
                r->write == WRITE_NONE;
    int rc = SQLITE_OK;

    if (asks) {
        rc = confirm_before_lock(r);
    }
    if (rc == SQLITE_OK) {
        rc = r->real->pMethods->xShmLock(r->real, offset, 1, flags);
    }
    if (rc == SQLITE_BUSY && asks) {
        r->skip_confirm = true;
    }
    r->skip_until = client_now() + 50;
    if (rc == SQLITE_OK) {
        r->read_locks |= 1u << offset;
        if (r->parked != PARK_NONE) {
            r->parked = PARK_NEW_SNAPSHOT;
        }
        if (r->write != WRITE_CLUSTER || r->parked != PARK_NONE) {
            copy_index(r, r->read_index);
        }
    }
    return rc;
}

/* ---- Pristine databases ------------------------------------------------------------------------ */

bool replicated_pristine(struct replicated *r)
{
    sqlite3_int64 size = 0;

    return r->real->pMethods->xFileSize(r->real, &size) == SQLITE_OK &&
           size == 0;
}

/* Is a statement running that may write? SQLite tells readers and writers
 * apart only after it has taken SHARED. */
static bool writer_is_running(sqlite3 *db)
{
    sqlite3_stmt *s = NULL;

    while ((s = sqlite3_next_stmt(db, s)) != NULL) {
        if (sqlite3_stmt_busy(s) && !sqlite3_stmt_readonly(s)) {
            return true;
        }
    }
    return false;
}

/* The page size SQLite would use for this file. */
static uint32_t first_page_size(struct replicated *r)
{
    const char *schema = schema_of(r);
    char *sql = schema != NULL
                    ? sqlite3_mprintf("PRAGMA \"%w\".page_size", schema) : NULL;
    int n = 0;

    if (sql != NULL) {
        ask_int(*r->pdb, sql, &n);
        sqlite3_free(sql);
    }
    if (n < 512 || n > 65536) {
        n = r->first_page_size != 0 ? (int)r->first_page_size : 4096;
    }
    return (uint32_t)n;
}

/* INIT until it is done, the deadline, or an error that will not pass. */
static int request_first_page(struct replicated *r, struct wire_msg *m,
                              int64_t deadline)
{
    struct wire_msg answer;
    int rc;

    for (;;) {
        int64_t left = deadline - client_now();

        m->init.timeout_ms = left > 0 ? (uint32_t)left : 0;
        rc = client_call(&r->client, m, &answer, deadline + ANSWER_SLACK_MS);
        if (rc == FLO_OK) {
            rc = answer.type == MSG_RESULT ? (int)answer.result.code
                                           : FLO_PROTOCOL;
        }
        if (rc == FLO_OK || rc == FLO_EXISTS) {
            return FLO_OK;
        }
        replicated_error(r, 0, "the first page was not made: %s",
                         flo_strerror(rc));
        left = deadline - client_now();
        if (!transient(rc) || left <= 0) {
            return rc;
        }
        client_sleep(RETRY_MAX_MS < left ? RETRY_MAX_MS : (int)left);
    }
}

/* Make page 1 everywhere. SQLITE_OK: it is there now, in this file too. */
static int make_first_page(struct replicated *r)
{
    struct wire_msg m = {.type = MSG_INIT};
    int rc;

    snprintf(m.init.db, sizeof m.init.db, "%s", r->db);
    m.init.page_size = first_page_size(r);
    m.init.auto_vacuum = (uint8_t)r->first_auto_vacuum;
    m.init.encoding = (uint8_t)(r->pdb != NULL && *r->pdb != NULL
                                ? encoding_of(*r->pdb) : SQLITE_UTF8);
    r->retry = false;
    rc = attempt_begin(r);
    while (rc == SQLITE_OK) {
        sqlite3_mutex_enter(r->mutex);
        rc = request_first_page(r, &m, r->deadline);
        sqlite3_mutex_leave(r->mutex);
        if (rc == FLO_OK) {
            return SQLITE_OK;
        }
        /* Asking again is safe even when the outcome is unknown. */
        rc = rc == FLO_UNKNOWN ? SQLITE_BUSY : lock_sqlite_code(rc);
        if (!attempt_again(r, rc)) {
            break;
        }
        rc = SQLITE_OK;
    }
    return rc;
}

int lock_pristine_shared(struct replicated *r)
{
    sqlite3 *db = r->pdb != NULL ? *r->pdb : NULL;
    int rc;

    if (r->linearizable) {
        rc = confirm_read(r);
        if (rc != SQLITE_OK) {
            return rc;
        }
    }
    if (r->readonly || db == NULL || !replicated_pristine(r) ||
        !writer_is_running(db)) {
        return SQLITE_OK;
    }
    return make_first_page(r);
}

/* The daemon may need the file for itself, so SHARED is let go meanwhile: the
 * connection has nothing of it in its cache but an empty page 1, and will start
 * over. */
int lock_pristine_reserved(struct replicated *r)
{
    int rc, attempt;

    r->real->pMethods->xUnlock(r->real, SQLITE_LOCK_NONE);
    rc = make_first_page(r);
    for (attempt = 0; attempt < 100; attempt++) {
        if (r->real->pMethods->xLock(r->real, SQLITE_LOCK_SHARED) ==
            SQLITE_OK) {
            break;
        }
        client_sleep(1);
    }
    return rc == SQLITE_OK ? SQLITE_BUSY : rc;
}
