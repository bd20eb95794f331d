/* What the parts of the extension share.
 *
 *   flotilla.c    entry point, auto-extension
 *   vfs.c         the VFS: which files are ours, opening them, the registry
 *   replicated.c  methods of a replicated database file, its PRAGMAs
 *   lock.c        how it gets the cluster's write lock, page 1, a fresh read
 *   walfile.c     methods of its WAL: holding back a commit until it is safe
 *   client.c      the unix socket
 *   functions.c   SQL functions     vtab.c  virtual tables
 *
 * Ownership and threads: a struct replicated is the sqlite3_file of one
 * connection's (or shared cache's) database, and lives from xOpen to xClose.
 * SQLite calls its methods under the connection's mutex. The socket, which SQL
 * functions of other connections to the same shared cache may use too, is
 * under r->mutex. The list of all open ones, and the texts that flotilla_client
 * shows, are under registry_enter(). Counters are atomic. */
#ifndef FLOTILLA_EXT_INTERNAL_H
#define FLOTILLA_EXT_INTERNAL_H

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/fence.h"
#include "ext/client.h"

#ifndef FLOTILLA_VERSION /* from configure */
#define FLOTILLA_VERSION "0.1.0"
#endif
#define BUSY_TIMEOUT_MS 5000    /* default of a replicated main database */
#define COMMIT_TIMEOUT_MS 15000 /* for the answer to a COMMIT */
#define WAL_HEADER 32
#define FRAME_HEADER 24
#define INDEX_HEADER 48 /* first copy of the wal-index header */

/* Where the write lock of a connection is. */
enum write_state {
    WRITE_NONE,
    WRITE_LOCAL,  /* the real one: SQLite recovers or re-reads the wal-index */
    WRITE_CLUSTER /* granted by the leader; the fence is ours */
};

/* How the last commit attempt ended; flotilla_client shows it. */
enum commit_state { COMMIT_NONE, COMMIT_OK, COMMIT_NOT, COMMIT_UNKNOWN };

/* The write transaction under way. */
struct transaction
{
    uint64_t grant;
    uint64_t txid;      /* position before it */
    uint32_t first;     /* mxFrame when it began */
    uint32_t page_size; /* 0: not known yet */
    bool wrote;         /* something was written to the WAL */
    bool committed;     /* the commit frame is out: the rest passes through */
    bool lost;          /* the grant is gone: every commit is refused */
    bool held;          /* a commit frame's header is held back: */
    uint64_t held_at;   /*   its offset */
    uint8_t header[FRAME_HEADER];
};

struct counters
{
    atomic_ullong commits, busy, unknown, grants, wait_ms, last_txid;
};

/* The write lock is held while SQLite takes a fresh snapshot; lock.c. */
enum parking { PARK_NONE, PARK_OLD_SNAPSHOT, PARK_NEW_SNAPSHOT };

struct replicated
{
    sqlite3_file base; /* first */
    sqlite3_file *real;
    struct replicated *next; /* registry */
    uint64_t id;             /* never used twice */
    const char *name;        /* as given to xOpen: valid until xClose */
    char *dir;               /* owned; node directory */
    char *fence_path;        /* owned */
    char db[DB_NAME_MAX + 1];
    sqlite3 **pdb; /* the connection, as SQLite tells; or NULL */
    void **busy;   /* its busy handler: function and argument; or NULL */
    sqlite3_mutex *mutex;
    struct client client;
    struct fence fence;
    pid_t fence_pid;
    bool readonly;

    bool linearizable;
    int commit_timeout_ms;
    unsigned first_page_size; /* 0, or as a PRAGMA asked for */
    int first_auto_vacuum;

    volatile void *index;    /* wal-index region 0 while mapped */
    uint32_t read_locks;     /* bit n: SHARED on lock n */
    uint8_t read_index[INDEX_HEADER]; /* header when the read lock was taken */
    bool skip_confirm;       /* SQLite is retrying: see lock_confirm_read */
    int64_t skip_until;

    enum write_state write;
    bool bounced;       /* the daemon answered FLO_STALE */
    enum parking parked;
    bool retry;         /* SQLite repeats the attempt after a stale snapshot */
    int64_t retry_since;
    bool retried;       /* this attempt is such a repetition */
    int timeout_ms;     /* the connection's busy timeout at the last attempt */
    int64_t deadline;   /* and when that attempt ends */
    struct transaction txn;

    uint64_t commit_txid; /* last commit attempt; 0: none */
    uint64_t commit_id;
    enum commit_state commit_state;
    struct counters counters;
    char error[256]; /* under registry_enter() */
};

/* A WAL file; the state is in its database's struct. */
struct wal_file
{
    sqlite3_file base; /* first */
    sqlite3_file *real;
    struct replicated *db; /* outlives it */
    bool header_written;   /* the next sync is a real one */
};

/* ---- vfs.c ------------------------------------------------------------------- */

/* Register the VFS as the default. SQLITE_DONE: another copy of this extension
 * is there already. */
int vfs_register(void);

/* sqlite3_log a hint when main is a replica that is not opened through us. */
void vfs_warn_opened_before(sqlite3 *db);

void registry_enter(void);
void registry_leave(void);
struct replicated *registry_first(void);

void registry_remove(struct replicated *r);

/* The replicated database that stands for a connection: main, or else the
 * first attached one; NULL when there is none. */
struct replicated *replicated_of(sqlite3 *db);
bool replicated_is_main(sqlite3 *db);

/* Remember an error for flotilla_client, and tell sqlite3_log if log is set. */
void replicated_error(struct replicated *r, int log_code, const char *format,
                      ...) __attribute__((format(printf, 3, 4)));

/* ---- replicated.c, walfile.c: methods ---------------------------------------- */

/* For a real file with methods m; NULL when it has no shared memory. */
const sqlite3_io_methods *replicated_methods_for(const sqlite3_io_methods *m);
bool replicated_methods_ours(const sqlite3_io_methods *m);
extern const sqlite3_io_methods wal_methods;

/* ---- lock.c -------------------------------------------------------------------- */

/* xShmLock for WRITE. SQLite codes. */
int lock_write(struct replicated *r);
int lock_write_release(struct replicated *r);

/* A read lock (3..7), SHARED. SQLite codes. */
int lock_read(struct replicated *r, int offset, int flags);

/* xLock SHARED and RESERVED while the file is empty. SQLite codes. */
int lock_pristine_shared(struct replicated *r);
int lock_pristine_reserved(struct replicated *r);
bool replicated_pristine(struct replicated *r);

/* The busy timeout of the connection; -1: interrupted. */
int lock_busy_timeout(struct replicated *r);

/* True while this thread's sleeps are those of a busy handler whose time was
 * spent in waiting already. */
bool lock_skip_sleep(void);

/* What an error code of the daemon means for SQLite before a commit. */
int lock_sqlite_code(int flo);

/* mxFrame and page size from the wal-index header; 0 when not mapped. */
uint32_t index_frames(const struct replicated *r);
uint32_t index_page_size(const struct replicated *r);

/* ---- functions.c, vtab.c ---------------------------------------------------------- */

int functions_register(sqlite3 *db);
int vtabs_register(sqlite3 *db);

/* Ask the daemon for a table; walks rows of n_columns strings. The caller
 * holds r->mutex while it uses *rows. FLO_* */
int table_fetch(struct replicated *r, int table, struct wire_msg *rows,
                unsigned n_columns);

/* What flotilla_encoding() is called with depends on the encoding of the
 * connection: 1, 2 or 3. */
int encoding_of(sqlite3 *db);

#endif
