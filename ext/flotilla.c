/* flotilla.so: makes the SQLite it is loaded into a member of a cluster.
 *
 *     .load ./flotilla
 *     .open /var/lib/flotilla/app.db
 *
 * Loading registers a VFS named "flotilla" in front of the default one, for
 * the whole process and for good (SQLITE_OK_LOAD_PERMANENTLY): database files
 * in a node's directory are replicated from then on, all others are opened by
 * the VFS that was the default before, untouched. It also registers functions
 * and virtual tables on this connection and on all that are opened later, and
 * gives connections whose main database is replicated a busy timeout.
 *
 * Limits: a connection that was open before loading keeps its own VFS, so its
 * main database is not replicated, nor is what it attaches (except by
 * "file:…?vfs=flotilla"). One process may load it into one copy of the SQLite
 * library only; the second copy is refused. */
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1

#include "ext/internal.h"

#define EXPORT __attribute__((visibility("default")))

/* Runs when a connection is opened. It must return SQLITE_OK, or no database
 * at all can be opened in this process any more. */
static int connection_opened(sqlite3 *db, char **error,
                             const sqlite3_api_routines *api)
{
    (void)error;
    (void)api;
    functions_register(db);
    vtabs_register(db);
    if (replicated_is_main(db)) {
        sqlite3_busy_timeout(db, BUSY_TIMEOUT_MS);
    }
    return SQLITE_OK;
}

/* sqlite3_auto_extension takes void(*)(void); the cast back is SQLite's. */
static int register_all(sqlite3 *db)
{
    int rc = vfs_register();

    if (rc == SQLITE_DONE) {
        return SQLITE_OK_LOAD_PERMANENTLY; /* the other copy does the work */
    }
    if (rc != SQLITE_OK) {
        return rc;
    }
    rc = sqlite3_auto_extension((void (*)(void))connection_opened);
    if (rc == SQLITE_OK) {
        rc = functions_register(db);
    }
    if (rc == SQLITE_OK) {
        rc = vtabs_register(db);
    }
    if (rc == SQLITE_OK) {
        vfs_warn_opened_before(db);
    }
    /* With the VFS registered, an error would unload what is in use. */
    return SQLITE_OK_LOAD_PERMANENTLY;
}

EXPORT int sqlite3_flotilla_init(sqlite3 *db, char **error,
                                 const sqlite3_api_routines *api);

EXPORT int sqlite3_flotilla_init(sqlite3 *db, char **error,
                                 const sqlite3_api_routines *api)
{
    if (api->libversion_number() < 3037000) {
        *error = api->mprintf("flotilla needs SQLite 3.37 or later, this is %s",
                              api->libversion());
        return SQLITE_ERROR;
    }
    if (sqlite3_api != NULL && sqlite3_api != api) {
        *error = api->mprintf("flotilla is already loaded into another copy "
                              "of SQLite in this process");
        return SQLITE_ERROR;
    }
    SQLITE_EXTENSION_INIT2(api);
    return register_all(db);
}
