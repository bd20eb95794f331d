/* The VFS "flotilla": decides which files are replicated, and opens them.
 *
 * A main database is replicated when its directory holds flotilla.sock or
 * flotilla.id, which the daemon makes. Every other file is opened by the VFS
 * that was the default before, right in the sqlite3_file that SQLite gave us,
 * so its methods are the real ones and cost nothing.
 *
 * A replicated file is ours with the real one behind it in the same memory:
 *
 *     +------------------------------+---------------------------+
 *     | struct replicated / wal_file | the real VFS's file       |
 *     +------------------------------+---------------------------+
 *
 * A WAL finds its database by the name SQLite passes: the names of a database
 * and its WAL are one block of memory. All other methods of the VFS are the
 * real ones, except xDelete, which protects a replica, and xSleep (lock.c). */
#include "ext/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"

#define MEMBERS_AT(size) (((size) + 15) & ~(size_t)15)

static sqlite3_vfs ours; /* written once, under registry_enter() */
static sqlite3_vfs *real_vfs;
static struct replicated *registry;
static uint64_t last_id;

/* ---- Registry ------------------------------------------------------------------ */

void registry_enter(void)
{
    sqlite3_mutex_enter(sqlite3_mutex_alloc(SQLITE_MUTEX_STATIC_VFS2));
}

void registry_leave(void)
{
    sqlite3_mutex_leave(sqlite3_mutex_alloc(SQLITE_MUTEX_STATIC_VFS2));
}

struct replicated *registry_first(void)
{
    return registry;
}

static void registry_add(struct replicated *r)
{
    registry_enter();
    r->id = ++last_id;
    r->next = registry;
    registry = r;
    registry_leave();
}

void registry_remove(struct replicated *r)
{
    struct replicated **p;

    registry_enter();
    for (p = &registry; *p != NULL; p = &(*p)->next) {
        if (*p == r) {
            *p = r->next;
            break;
        }
    }
    registry_leave();
}

/* The open database whose name SQLite stores at this very address. */
static struct replicated *registry_find_name(const char *name)
{
    struct replicated *r;

    registry_enter();
    for (r = registry; r != NULL && r->name != name; r = r->next) {
    }
    registry_leave();
    return r;
}

/* The main database of a connection if it is one of ours. */
static struct replicated *main_of(sqlite3 *db)
{
    sqlite3_file *f = NULL;

    if (sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &f) !=
            SQLITE_OK || f == NULL || !replicated_methods_ours(f->pMethods)) {
        return NULL;
    }
    return (struct replicated *)f;
}

bool replicated_is_main(sqlite3 *db)
{
    return main_of(db) != NULL;
}

struct replicated *replicated_of(sqlite3 *db)
{
    struct replicated *r = main_of(db), *oldest = NULL;

    if (r != NULL) {
        return r;
    }
    registry_enter();
    for (r = registry; r != NULL; r = r->next) {
        if (r->pdb != NULL && *r->pdb == db) {
            oldest = r; /* the list is newest first */
        }
    }
    registry_leave();
    return oldest;
}

void replicated_error(struct replicated *r, int log_code, const char *format,
                      ...)
{
    char text[sizeof r->error];
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    registry_enter();
    memcpy(r->error, text, sizeof text);
    registry_leave();
    if (log_code != 0) {
        sqlite3_log(log_code, "flotilla: %s.db: %s", r->db, text);
    }
}

/* ---- Which files are ours --------------------------------------------------------- */

static bool exists_in(const char *dir, int dir_n, const char *name)
{
    char path[4096];
    int n = snprintf(path, sizeof path, "%.*s/%s", dir_n, dir, name);

    return n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* Is this full path in a node's directory? *base: what follows the slash. */
static bool in_node_directory(const char *path, const char **base)
{
    const char *slash = path != NULL ? strrchr(path, '/') : NULL;
    int n;

    if (slash == NULL) {
        return false;
    }
    n = (int)(slash - path);
    *base = slash + 1;
    return exists_in(path, n, "flotilla.sock") ||
           exists_in(path, n, "flotilla.id");
}

/* "app.db" → "app"; false unless it is a valid database's file. */
static bool database_name(const char *base, char name[DB_NAME_MAX + 1])
{
    size_t n = strlen(base);

    if (!ends_with(base, ".db") || n - 3 > DB_NAME_MAX) {
        return false;
    }
    memcpy(name, base, n - 3);
    name[n - 3] = '\0';
    return db_name_valid(name);
}

void vfs_warn_opened_before(sqlite3 *db)
{
    const char *path = sqlite3_db_filename(db, "main"), *base = NULL;

    if (!replicated_is_main(db) && in_node_directory(path, &base)) {
        sqlite3_log(SQLITE_WARNING, "flotilla: %s was opened before the "
                    "extension was loaded and can only be read so: open it "
                    "again", path);
    }
}

/* ---- Opening ------------------------------------------------------------------------ */

static void replicated_free(struct replicated *r)
{
    client_close(&r->client);
    sqlite3_mutex_free(r->mutex);
    sqlite3_free(r->dir);
    sqlite3_free(r->fence_path);
}

static int replicated_init(struct replicated *r, const char *path,
                           const char *base, int flags)
{
    const char *level = sqlite3_uri_parameter(path, "flotilla_read");

    memset(r, 0, sizeof *r);
    if (!database_name(base, r->db)) {
        sqlite3_log(SQLITE_CANTOPEN,
                    "flotilla: %s: databases in a node's directory are named "
                    "NAME.db, NAME being up to %d of A-Z a-z 0-9 _ . -", path,
                    DB_NAME_MAX);
        return SQLITE_CANTOPEN;
    }
    r->real = (sqlite3_file *)((char *)r + MEMBERS_AT(sizeof *r));
    r->real->pMethods = NULL;
    r->name = path;
    r->readonly = (flags & SQLITE_OPEN_READONLY) != 0;
    r->linearizable = level != NULL && strcmp(level, "linearizable") == 0;
    r->commit_timeout_ms = (int)sqlite3_uri_int64(
        path, "flotilla_commit_timeout", COMMIT_TIMEOUT_MS);
    r->fence.fd = -1;
    r->first_auto_vacuum = sqlite3_compileoption_used("DEFAULT_AUTOVACUUM=1")
                           ? 1 : sqlite3_compileoption_used(
                                     "DEFAULT_AUTOVACUUM=2") ? 2 : 0;
    r->mutex = sqlite3_mutex_alloc(SQLITE_MUTEX_FAST);
    r->dir = sqlite3_mprintf("%.*s", base - path > 1 ? (int)(base - path - 1)
                                                     : 1, path);
    r->fence_path = sqlite3_mprintf("%s-fence", path);
    client_init(&r->client, r->dir);
    if (r->dir == NULL || r->fence_path == NULL) {
        replicated_free(r);
        return SQLITE_NOMEM;
    }
    return SQLITE_OK;
}

/* The file is not there: the whole cluster has to learn about it first. */
static int create_everywhere(struct replicated *r)
{
    struct wire_msg m = {.type = MSG_OPEN}, answer;
    int rc;

    snprintf(m.open.db, sizeof m.open.db, "%s", r->db);
    m.open.create = 1;
    m.open.timeout_ms = BUSY_TIMEOUT_MS;
    rc = client_call(&r->client, &m, &answer, client_now() + BUSY_TIMEOUT_MS);
    if (rc == FLO_OK && answer.type == MSG_RESULT) {
        rc = (int)answer.result.code;
        if (rc == FLO_OK || rc == FLO_EXISTS) {
            return SQLITE_OK;
        }
        sqlite3_log(SQLITE_CANTOPEN, "flotilla: cannot create %s: %s%s%s",
                    r->name, flo_strerror(rc), answer.result.text[0] ? ": " : "",
                    answer.result.text);
    } else {
        sqlite3_log(SQLITE_CANTOPEN,
                    "flotilla: cannot create %s: %s; start the node with "
                    "\"flotillad %s\" and try again", r->name, r->client.error,
                    r->dir);
    }
    return rc == FLO_FULL ? SQLITE_FULL : SQLITE_CANTOPEN;
}

static int open_database(const char *path, const char *base,
                         struct replicated *r, int flags, int *out_flags)
{
    int rc = replicated_init(r, path, base, flags);

    if (rc != SQLITE_OK) {
        return rc;
    }
    if ((flags & SQLITE_OPEN_CREATE) && access(path, F_OK) != 0) {
        rc = create_everywhere(r);
    }
    if (rc == SQLITE_OK) {
        rc = real_vfs->xOpen(real_vfs, path, r->real,
                             flags & ~(SQLITE_OPEN_CREATE |
                                       SQLITE_OPEN_EXCLUSIVE), out_flags);
    }
    if (rc == SQLITE_OK) {
        r->base.pMethods = replicated_methods_for(r->real->pMethods);
        if (r->base.pMethods == NULL) {
            sqlite3_log(SQLITE_CANTOPEN, "flotilla: the VFS \"%s\" has no "
                        "shared memory", real_vfs->zName);
            r->real->pMethods->xClose(r->real);
            rc = SQLITE_CANTOPEN;
        }
    }
    if (rc != SQLITE_OK) {
        r->base.pMethods = NULL;
        replicated_free(r);
        return rc;
    }
    registry_add(r);
    return SQLITE_OK;
}

static int open_wal(const char *path, struct replicated *db,
                    struct wal_file *w, int flags, int *out_flags)
{
    int rc;

    memset(w, 0, sizeof *w);
    w->real = (sqlite3_file *)((char *)w + MEMBERS_AT(sizeof *w));
    w->real->pMethods = NULL;
    w->db = db;
    rc = real_vfs->xOpen(real_vfs, path, w->real, flags, out_flags);
    if (rc == SQLITE_OK) {
        w->base.pMethods = &wal_methods;
    }
    return rc;
}

static int vfs_open(sqlite3_vfs *v, const char *path, sqlite3_file *f,
                    int flags, int *out_flags)
{
    const char *base = NULL;
    struct replicated *db = NULL;

    (void)v;
    f->pMethods = NULL;
    if (path != NULL && (flags & SQLITE_OPEN_MAIN_DB) &&
        in_node_directory(path, &base)) {
        return open_database(path, base, (struct replicated *)f, flags,
                             out_flags);
    }
    if (path != NULL && (flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL))) {
        db = registry_find_name(sqlite3_filename_database(path));
    }
    if (db != NULL && (flags & SQLITE_OPEN_WAL)) {
        return open_wal(path, db, (struct wal_file *)f, flags, out_flags);
    }
    if (db != NULL && (flags & SQLITE_OPEN_CREATE)) {
        sqlite3_log(SQLITE_CANTOPEN, "flotilla: %s: a replicated database has "
                    "no rollback journal", path);
        return SQLITE_CANTOPEN;
    }
    return real_vfs->xOpen(real_vfs, path, f, flags, out_flags);
}

/* ---- The other methods ----------------------------------------------------------------- */

static int vfs_delete(sqlite3_vfs *v, const char *path, int sync_dir)
{
    const char *base = NULL;

    (void)v;
    if ((ends_with(path, ".db") || ends_with(path, ".db-wal")) &&
        in_node_directory(path, &base)) {
        if (ends_with(path, "-wal")) {
            return SQLITE_OK; /* stays: the daemon's, and never stale */
        }
        sqlite3_log(SQLITE_IOERR_DELETE,
                    "flotilla: %s is replicated; deleting it is refused", path);
        return SQLITE_IOERR_DELETE;
    }
    return real_vfs->xDelete(real_vfs, path, sync_dir);
}

static int vfs_access(sqlite3_vfs *v, const char *path, int flags, int *out)
{
    (void)v;
    return real_vfs->xAccess(real_vfs, path, flags, out);
}

static int vfs_full_pathname(sqlite3_vfs *v, const char *path, int n, char *out)
{
    (void)v;
    return real_vfs->xFullPathname(real_vfs, path, n, out);
}

static void *vfs_dl_open(sqlite3_vfs *v, const char *path)
{
    (void)v;
    return real_vfs->xDlOpen(real_vfs, path);
}

static void vfs_dl_error(sqlite3_vfs *v, int n, char *text)
{
    (void)v;
    real_vfs->xDlError(real_vfs, n, text);
}

static void (*vfs_dl_sym(sqlite3_vfs *v, void *lib, const char *name))(void)
{
    (void)v;
    return real_vfs->xDlSym(real_vfs, lib, name);
}

static void vfs_dl_close(sqlite3_vfs *v, void *lib)
{
    (void)v;
    real_vfs->xDlClose(real_vfs, lib);
}

static int vfs_randomness(sqlite3_vfs *v, int n, char *out)
{
    (void)v;
    return real_vfs->xRandomness(real_vfs, n, out);
}

static int vfs_sleep(sqlite3_vfs *v, int microseconds)
{
    (void)v;
    if (lock_skip_sleep()) {
        return microseconds;
    }
    return real_vfs->xSleep(real_vfs, microseconds);
}

static int vfs_current_time(sqlite3_vfs *v, double *out)
{
    (void)v;
    return real_vfs->xCurrentTime(real_vfs, out);
}

static int vfs_last_error(sqlite3_vfs *v, int n, char *text)
{
    (void)v;
    return real_vfs->xGetLastError(real_vfs, n, text);
}

static int vfs_current_time_int64(sqlite3_vfs *v, sqlite3_int64 *out)
{
    (void)v;
    return real_vfs->xCurrentTimeInt64(real_vfs, out);
}

static int vfs_set_system_call(sqlite3_vfs *v, const char *name,
                               sqlite3_syscall_ptr call)
{
    (void)v;
    return real_vfs->xSetSystemCall(real_vfs, name, call);
}

static sqlite3_syscall_ptr vfs_get_system_call(sqlite3_vfs *v, const char *name)
{
    (void)v;
    return real_vfs->xGetSystemCall(real_vfs, name);
}

static const char *vfs_next_system_call(sqlite3_vfs *v, const char *name)
{
    (void)v;
    return real_vfs->xNextSystemCall(real_vfs, name);
}

/* ---- Registration ---------------------------------------------------------------------- */

static void fill_vfs(void)
{
    size_t size = sizeof(struct replicated);

    ours.iVersion = real_vfs->iVersion < 3 ? real_vfs->iVersion : 3;
    ours.szOsFile = (int)MEMBERS_AT(size) + real_vfs->szOsFile;
    ours.mxPathname = real_vfs->mxPathname;
    ours.zName = "flotilla";
    ours.xOpen = vfs_open;
    ours.xDelete = vfs_delete;
    ours.xAccess = vfs_access;
    ours.xFullPathname = vfs_full_pathname;
    ours.xDlOpen = vfs_dl_open;
    ours.xDlError = vfs_dl_error;
    ours.xDlSym = vfs_dl_sym;
    ours.xDlClose = vfs_dl_close;
    ours.xRandomness = vfs_randomness;
    ours.xSleep = vfs_sleep;
    ours.xCurrentTime = vfs_current_time;
    ours.xGetLastError = vfs_last_error;
    ours.xCurrentTimeInt64 = vfs_current_time_int64;
    ours.xSetSystemCall = vfs_set_system_call;
    ours.xGetSystemCall = vfs_get_system_call;
    ours.xNextSystemCall = vfs_next_system_call;
}

int vfs_register(void)
{
    sqlite3_vfs *there = sqlite3_vfs_find("flotilla");

    if (there != NULL) {
        return there == &ours ? SQLITE_OK : SQLITE_DONE;
    }
    registry_enter();
    if (real_vfs == NULL) {
        real_vfs = sqlite3_vfs_find(NULL);
        if (real_vfs != NULL) {
            fill_vfs();
        }
    }
    registry_leave();
    return real_vfs != NULL ? sqlite3_vfs_register(&ours, 1) : SQLITE_ERROR;
}
