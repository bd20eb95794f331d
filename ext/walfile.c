/* The methods of a replicated database's WAL: where a commit waits for raft.
 *
 * SQLite writes a transaction as frames, each a 24-byte header and then a
 * page; bytes 4..7 of the last one's header are not zero: the commit mark.
 * Frames before it go to the file as they come, since nobody takes them for
 * committed. The happy path of the last one:
 *
 *   - the header is held back here; reading it gives the held bytes
 *   - its page goes to the file
 *   - COMMIT tells the daemon, which reads the frames from the file, and
 *     answers when a majority of nodes has them
 *   - the header goes to the file, and xWrite returns: SQLite publishes
 *
 * From then on writes pass through: SQLite may still rewrite frame headers of
 * this transaction, because the checksum of a page that it wrote twice changes
 * all that follow.
 *
 * When COMMIT fails, the header is dropped and xWrite returns the error; SQLite
 * rolls back, and the next writer overwrites the frames. When the connection is
 * lost after COMMIT was sent, the daemon (perhaps a new one) is asked for the
 * outcome. We still have the fence, so nobody has touched the WAL: if the
 * transaction turns out committed, it is published as if nothing had happened.
 *
 * Nothing is synced here: raft's log is the durable copy. Only a new WAL header
 * is, because frames behind an old header would be lost to recovery. */
#include "ext/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "core/buf.h"
#include "core/error.h"

#define OUTCOME_MS 2000 /* least time spent on finding out */
#define OUTCOME_PAUSE_MS 20

static struct wal_file *self(sqlite3_file *f)
{
    return (struct wal_file *)f;
}

static sqlite3_file *real(sqlite3_file *f)
{
    return self(f)->real;
}

/* ---- The outcome of a commit ----------------------------------------------------- */

/* Never 0, never the same in two processes: a forked child inherits SQLite's
 * generator, so the kernel's is used. */
static uint64_t random_id(void)
{
    uint64_t id = 0;

    while (id == 0) {
        if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id &&
            errno != EINTR) {
            struct timespec t;
            clock_gettime(CLOCK_REALTIME, &t);
            id = ((uint64_t)getpid() << 40) ^ ((uint64_t)t.tv_sec << 30) ^
                 (uint64_t)t.tv_nsec;
        }
    }
    return id;
}

/* What a RESULT to COMMIT means. A code that no daemon of this protocol sends
 * says nothing about the outcome. */
static int commit_code(int flo)
{
    switch (flo) {
    case FLO_OK:
        return SQLITE_OK;
    case FLO_BUSY:
    case FLO_NOLEADER:
    case FLO_NOTLEADER:
    case FLO_SHUTDOWN:
    case FLO_DESYNCED:
    case FLO_NOTFOUND:
        return SQLITE_BUSY;
    case FLO_LOST:
        return SQLITE_BUSY_SNAPSHOT;
    case FLO_FULL:
        return SQLITE_FULL;
    case FLO_TOOBIG:
        return SQLITE_TOOBIG;
    case FLO_NOMEM:
    case FLO_IO:
    case FLO_CORRUPT:
    case FLO_PROTOCOL:
    case FLO_INVALID:
    case FLO_MISMATCH:
    case FLO_VERSION:
        return SQLITE_IOERR;
    default:
        return FLOTILLA_SQLITE_UNKNOWN;
    }
}

/* Ask until somebody knows, or time is up: FLO_OK, FLO_NOTFOUND (certainly not
 * committed), FLO_UNKNOWN. */
static int find_outcome(struct replicated *r)
{
    int least = r->timeout_ms > OUTCOME_MS ? r->timeout_ms : OUTCOME_MS;
    int64_t deadline = client_now() + least;

    do {
        struct wire_msg m = {.type = MSG_OUTCOME}, answer;
        int rc;

        snprintf(m.outcome.db, sizeof m.outcome.db, "%s", r->db);
        m.outcome.txid = r->commit_txid;
        m.outcome.commit_id = r->commit_id;
        rc = client_call(&r->client, &m, &answer, deadline);
        if (rc == FLO_OK && answer.type == MSG_RESULT &&
            (answer.result.code == FLO_OK ||
             answer.result.code == FLO_NOTFOUND)) {
            return (int)answer.result.code;
        }
        client_sleep(OUTCOME_PAUSE_MS);
    } while (client_now() < deadline);
    return FLO_UNKNOWN;
}

/* The answer to a COMMIT that was sent: an SQLite code. */
static int await_commit(struct replicated *r, uint64_t request)
{
    struct wire_msg answer;
    int code, rc;

    rc = client_receive(&r->client, request, &answer,
                        client_now() + r->commit_timeout_ms);
    if (rc == FLO_OK && answer.type == MSG_RESULT) {
        code = commit_code((int)answer.result.code);
        if (code == SQLITE_OK && answer.result.txid != 0) {
            r->commit_txid = answer.result.txid;
        } else if (code != SQLITE_OK) {
            replicated_error(r, 0, "commit: %s: %s",
                             flo_strerror((int)answer.result.code),
                             answer.result.text);
        }
        return code;
    }
    if (rc == FLO_TIMEOUT) { /* it is alive, and does not know */
        client_disconnect(&r->client);
        return FLOTILLA_SQLITE_UNKNOWN;
    }
    rc = find_outcome(r);
    return rc == FLO_OK ? SQLITE_OK
           : rc == FLO_NOTFOUND ? SQLITE_BUSY : FLOTILLA_SQLITE_UNKNOWN;
}

static void count_commit(struct replicated *r, int code)
{
    if (code == SQLITE_OK) {
        r->commit_state = COMMIT_OK;
        atomic_store(&r->counters.last_txid, r->commit_txid);
        atomic_fetch_add(&r->counters.commits, 1);
    } else if (code == FLOTILLA_SQLITE_UNKNOWN) {
        r->commit_state = COMMIT_UNKNOWN;
        atomic_fetch_add(&r->counters.unknown, 1);
        replicated_error(r, FLOTILLA_SQLITE_UNKNOWN,
                         "the outcome of commit %llu:%016llx is unknown; ask "
                         "flotilla_committed()",
                         (unsigned long long)r->commit_txid,
                         (unsigned long long)r->commit_id);
    } else {
        r->commit_state = COMMIT_NOT;
        atomic_fetch_add(&r->counters.busy, code == SQLITE_BUSY ||
                                            code == SQLITE_BUSY_SNAPSHOT);
    }
}

/* Every frame but the held header is in the file: have it committed. */
static int commit(struct replicated *r)
{
    struct wire_msg m = {.type = MSG_COMMIT};
    uint32_t frame_size = FRAME_HEADER + r->txn.page_size;
    int code;

    r->commit_id = random_id();
    r->commit_txid = r->txn.txid + 1;
    m.commit.grant = r->txn.grant;
    m.commit.commit_id = r->commit_id;
    m.commit.last_frame =
        (uint32_t)((r->txn.held_at - WAL_HEADER) / frame_size + 1);
    m.commit.n_pages = load_u32_be(r->txn.header + 4);
    m.commit.header = (struct wire_blob){r->txn.header, FRAME_HEADER};
    sqlite3_mutex_enter(r->mutex);
    if (client_send(&r->client, &m) == FLO_OK) {
        code = await_commit(r, m.request);
    } else {
        /* Not sent whole, so not understood: certainly not committed, and the
         * grant ended with the connection. */
        code = SQLITE_BUSY;
    }
    sqlite3_mutex_leave(r->mutex);
    r->txn.lost = code != SQLITE_OK;
    count_commit(r, code);
    return code;
}

/* ---- Writing -------------------------------------------------------------------------- */

/* The page size: from the wal-index, else from the WAL's own header. */
static uint32_t page_size(struct wal_file *w)
{
    uint8_t raw[4];

    if (w->db->txn.page_size == 0) {
        w->db->txn.page_size = index_page_size(w->db);
    }
    if (w->db->txn.page_size == 0 &&
        w->real->pMethods->xRead(w->real, raw, 4, 8) == SQLITE_OK) {
        w->db->txn.page_size = load_u32_be(raw);
    }
    return w->db->txn.page_size;
}

/* Pages may repeat among the frames, so twice the limit is let through here;
 * the daemon counts exactly. */
static int check_limit(struct replicated *r, uint64_t frame)
{
    uint64_t limit = r->client.max_transaction_bytes;
    uint64_t frames = frame > r->txn.first ? frame - r->txn.first : 0;

    if (limit == 0 || frames * r->txn.page_size <= 2 * limit) {
        return SQLITE_OK;
    }
    replicated_error(r, SQLITE_TOOBIG, "the transaction is over the limit of "
                     "%llu bytes: see max_transaction in the node's "
                     "configuration, or write less at a time",
                     (unsigned long long)limit);
    return SQLITE_TOOBIG;
}

/* May this connection write to the WAL at all? */
static int check_grant(struct replicated *r)
{
    if (r->write != WRITE_CLUSTER || r->fence_pid != getpid()) {
        replicated_error(r, SQLITE_BUSY,
                         "a write without the cluster's write lock is refused");
        return SQLITE_BUSY;
    }
    if (r->txn.lost) {
        return SQLITE_BUSY_SNAPSHOT; /* this transaction can only roll back */
    }
    return SQLITE_OK;
}

static int write_through(struct wal_file *w, const void *p, int n,
                         sqlite3_int64 at)
{
    return w->real->pMethods->xWrite(w->real, p, n, at);
}

/* The page of the commit frame: the moment of truth. */
static int write_commit_page(struct wal_file *w, const void *p, int n,
                             sqlite3_int64 at)
{
    struct transaction *t = &w->db->txn;
    int rc = write_through(w, p, n, at);

    if (rc == SQLITE_OK) {
        rc = commit(w->db);
    }
    if (rc == SQLITE_OK) {
        t->committed = true;
        rc = write_through(w, t->header, FRAME_HEADER,
                           (sqlite3_int64)t->held_at);
        if (rc != SQLITE_OK) {
            replicated_error(w->db, rc, "committed, but this node's WAL could "
                             "not be written; the daemon will apply it");
            rc = FLOTILLA_SQLITE_UNKNOWN;
        }
    }
    t->held = false;
    return rc;
}

static int wal_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    struct wal_file *w = self(f);
    struct transaction *t = &w->db->txn;
    uint32_t size;
    int rc = check_grant(w->db);

    if (rc != SQLITE_OK) {
        return rc;
    }
    t->wrote = true;
    if (at == 0 && n == WAL_HEADER) {
        t->page_size = load_u32_be((const uint8_t *)p + 8);
        t->first = 0;
        w->header_written = true;
        return write_through(w, p, n, at);
    }
    if (t->held && (uint64_t)at == t->held_at + FRAME_HEADER) {
        return write_commit_page(w, p, n, at);
    }
    size = page_size(w);
    if (n != FRAME_HEADER || size == 0 || at < WAL_HEADER ||
        (at - WAL_HEADER) % (FRAME_HEADER + size) != 0 || t->committed) {
        return write_through(w, p, n, at);
    }
    rc = check_limit(w->db,
                     (uint64_t)(at - WAL_HEADER) / (FRAME_HEADER + size) + 1);
    if (rc != SQLITE_OK || load_u32_be((const uint8_t *)p + 4) == 0) {
        return rc != SQLITE_OK ? rc : write_through(w, p, n, at);
    }
    t->held = true;
    t->held_at = (uint64_t)at;
    memcpy(t->header, p, FRAME_HEADER);
    return SQLITE_OK;
}

/* ---- The other methods ------------------------------------------------------------------ */

static int wal_close(sqlite3_file *f)
{
    return real(f)->pMethods->xClose(real(f));
}

/* Lay the held header over what the file has there. */
static void overlay(const struct transaction *t, uint8_t *p, int n,
                    sqlite3_int64 at)
{
    int i;

    for (i = 0; i < FRAME_HEADER; i++) {
        int64_t to = (int64_t)t->held_at + i - at;
        if (to >= 0 && to < n) {
            p[to] = t->header[i];
        }
    }
}

static int wal_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
    const struct transaction *t = &self(f)->db->txn;
    int rc = real(f)->pMethods->xRead(real(f), p, n, at);

    if (t->held && (rc == SQLITE_OK || rc == SQLITE_IOERR_SHORT_READ)) {
        overlay(t, p, n, at);
    }
    return rc;
}

static int wal_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    (void)f;
    (void)size;
    return SQLITE_OK; /* journal_size_limit: the daemon keeps the WAL short */
}

static int wal_sync(sqlite3_file *f, int flags)
{
    struct wal_file *w = self(f);

    if (!w->header_written) {
        return SQLITE_OK;
    }
    w->header_written = false;
    return w->real->pMethods->xSync(w->real, flags);
}

static int wal_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return real(f)->pMethods->xFileSize(real(f), size);
}

static int wal_lock(sqlite3_file *f, int level)
{
    return real(f)->pMethods->xLock(real(f), level);
}

static int wal_unlock(sqlite3_file *f, int level)
{
    return real(f)->pMethods->xUnlock(real(f), level);
}

static int wal_check_reserved(sqlite3_file *f, int *out)
{
    return real(f)->pMethods->xCheckReservedLock(real(f), out);
}

static int wal_control(sqlite3_file *f, int op, void *arg)
{
    if (op == SQLITE_FCNTL_SIZE_HINT || op == SQLITE_FCNTL_CHUNK_SIZE) {
        return SQLITE_OK;
    }
    return real(f)->pMethods->xFileControl(real(f), op, arg);
}

static int wal_sector_size(sqlite3_file *f)
{
    return real(f)->pMethods->xSectorSize(real(f));
}

static int wal_characteristics(sqlite3_file *f)
{
    return real(f)->pMethods->xDeviceCharacteristics(real(f)) |
           SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

const sqlite3_io_methods wal_methods = {
    .iVersion = 1,
    .xClose = wal_close,
    .xRead = wal_read,
    .xWrite = wal_write,
    .xTruncate = wal_truncate,
    .xSync = wal_sync,
    .xFileSize = wal_size,
    .xLock = wal_lock,
    .xUnlock = wal_unlock,
    .xCheckReservedLock = wal_check_reserved,
    .xFileControl = wal_control,
    .xSectorSize = wal_sector_size,
    .xDeviceCharacteristics = wal_characteristics,
};
