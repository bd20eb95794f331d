/* SQL functions. They speak for the main database of the connection, or else
 * for the first replicated one that is attached:
 *
 *   flotilla_position()         'txid:checksum' of this node's replica
 *   flotilla_wait(txid [,ms])   1 when the replica has applied txid, 0 when it
 *                               has not within ms (default 5000)
 *   flotilla_leader()           the leader's address, NULL when none is known
 *   flotilla_last_commit()      'txid:id' of this connection's last commit
 *                               attempt, NULL before the first
 *   flotilla_committed(token)   of such a token: 1 committed, 0 certainly not,
 *                               NULL not known (yet, or any more)
 *   flotilla_resync(target)     repair a follower, named by address or number;
 *                               not from triggers and views
 *   flotilla_version()          this extension's version
 *
 * position is NULL where nothing is replicated; the others fail then. */
#include "ext/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"

#define CALL_MS 5000
#define WAIT_MS_MAX 3600000

/* ---- Encoding of the connection ---------------------------------------------------- */

/* Registered once for each encoding; SQLite picks the connection's own. */
static void encoding_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    sqlite3_result_int(ctx, *(const int *)sqlite3_user_data(ctx));
}

int encoding_of(sqlite3 *db)
{
    sqlite3_stmt *stmt = NULL;
    int encoding = SQLITE_UTF8;

    if (sqlite3_prepare_v2(db, "SELECT flotilla_encoding()", -1, &stmt, NULL) ==
            SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) {
        encoding = sqlite3_column_int(stmt, 0);
    }
    sqlite3_finalize(stmt);
    return encoding >= 1 && encoding <= 3 ? encoding : SQLITE_UTF8;
}

static int register_encodings(sqlite3 *db)
{
    static const int encodings[] = {SQLITE_UTF8, SQLITE_UTF16LE, SQLITE_UTF16BE};
    int i, rc = SQLITE_OK;

    for (i = 0; i < 3 && rc == SQLITE_OK; i++) {
        rc = sqlite3_create_function_v2(db, "flotilla_encoding", 0,
                                        encodings[i], (void *)&encodings[i],
                                        encoding_function, NULL, NULL, NULL);
    }
    return rc;
}

/* ---- Asking the daemon ---------------------------------------------------------------- */

static void result_failure(sqlite3_context *ctx, const struct replicated *r,
                           int rc, const char *text)
{
    char *message;

    if (rc == FLO_IO || rc == FLO_TIMEOUT) {
        message = sqlite3_mprintf("flotillad is not running in %s: start it "
                                  "with \"flotillad %s\" (%s)", r->dir, r->dir,
                                  text);
    } else {
        message = sqlite3_mprintf("flotilla: %s%s%s", flo_strerror(rc),
                                  text[0] != '\0' ? ": " : "", text);
    }
    if (message == NULL) {
        sqlite3_result_error_nomem(ctx);
        return;
    }
    sqlite3_result_error(ctx, message, -1);
    sqlite3_free(message);
}

static struct replicated *database_of(sqlite3_context *ctx)
{
    struct replicated *r = replicated_of(sqlite3_context_db_handle(ctx));

    if (r == NULL) {
        sqlite3_result_error(
            ctx, "flotilla: no replicated database is open on this connection",
            -1);
    }
    return r;
}

/* A request with a RESULT for answer. Its code; or -1 after the function was
 * made to fail. text: what the daemon says. */
static int call_result(sqlite3_context *ctx, struct replicated *r,
                       struct wire_msg *m, int ms, wire_str text)
{
    struct wire_msg answer;
    int rc;

    sqlite3_mutex_enter(r->mutex);
    rc = client_call(&r->client, m, &answer, client_now() + ms);
    if (rc == FLO_OK && answer.type != MSG_RESULT) {
        rc = FLO_PROTOCOL;
    }
    if (rc != FLO_OK) {
        result_failure(ctx, r, rc, r->client.error);
    } else {
        memcpy(text, answer.result.text, sizeof answer.result.text);
    }
    sqlite3_mutex_leave(r->mutex);
    return rc != FLO_OK ? -1 : (int)answer.result.code;
}

/* Find one cell of a table: the row whose column 0 is key (or the first row),
 * column by number. FLO_OK, FLO_NOTFOUND, or why the daemon cannot be asked. */
static int find_cell(struct replicated *r, int table, unsigned n_columns,
                     const char *key, const unsigned *columns,
                     wire_str *cells, unsigned n_cells)
{
    struct wire_msg rows;
    struct cursor c;
    uint32_t i;
    unsigned j, k;
    int rc = table_fetch(r, table, &rows, n_columns);

    if (rc != FLO_OK) {
        return rc;
    }
    c = cursor_of(rows.rows.cells.data, rows.rows.cells.len);
    for (i = 0; i < rows.rows.n_rows && !c.bad; i++) {
        bool match = key == NULL;
        for (j = 0; j < n_columns; j++) {
            wire_str cell;
            wire_get_str(&c, cell);
            match = match || (j == 0 && strcmp(cell, key) == 0);
            for (k = 0; k < n_cells; k++) {
                if (columns[k] == j) {
                    memcpy(cells[k], cell, sizeof cell);
                }
            }
        }
        if (match && !c.bad) {
            return FLO_OK;
        }
    }
    return FLO_NOTFOUND;
}

/* ---- The functions -------------------------------------------------------------------- */

static void position_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    static const unsigned columns[] = {1, 2}; /* txid, checksum */
    struct replicated *r = replicated_of(sqlite3_context_db_handle(ctx));
    wire_str cells[2];
    char text[2 * WIRE_STR_MAX + 2];
    int rc;

    (void)n;
    (void)v;
    if (r == NULL) {
        return; /* NULL */
    }
    sqlite3_mutex_enter(r->mutex);
    rc = find_cell(r, TABLE_DATABASES, 8, r->db, columns, cells, 2);
    if (rc == FLO_OK) {
        snprintf(text, sizeof text, "%s:%s", cells[0], cells[1]);
        sqlite3_result_text(ctx, text, -1, SQLITE_TRANSIENT);
    } else if (rc != FLO_NOTFOUND) {
        result_failure(ctx, r, rc, r->client.error);
    }
    sqlite3_mutex_leave(r->mutex);
}

static void leader_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    static const unsigned columns[] = {4}; /* leader */
    struct replicated *r = database_of(ctx);
    wire_str cell;
    int rc;

    (void)n;
    (void)v;
    if (r == NULL) {
        return;
    }
    sqlite3_mutex_enter(r->mutex);
    rc = find_cell(r, TABLE_STATUS, 11, NULL, columns, &cell, 1);
    if (rc == FLO_OK && cell[0] != '\0') {
        sqlite3_result_text(ctx, cell, -1, SQLITE_TRANSIENT);
    } else if (rc != FLO_OK && rc != FLO_NOTFOUND) {
        result_failure(ctx, r, rc, r->client.error);
    }
    sqlite3_mutex_leave(r->mutex);
}

static void wait_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    struct wire_msg m = {.type = MSG_WAIT};
    struct replicated *r;
    sqlite3_int64 ms = n > 1 ? sqlite3_value_int64(v[1]) : CALL_MS;
    wire_str text;
    int code;

    if (sqlite3_value_type(v[0]) == SQLITE_NULL ||
        sqlite3_value_int64(v[0]) < 0 || ms < 0 || ms > WAIT_MS_MAX) {
        sqlite3_result_error(ctx, "flotilla_wait(txid [, milliseconds]): txid "
                                  "is not negative, milliseconds are at most "
                                  "3600000", -1);
        return;
    }
    r = database_of(ctx);
    if (r == NULL) {
        return;
    }
    snprintf(m.wait.db, sizeof m.wait.db, "%s", r->db);
    m.wait.txid = (uint64_t)sqlite3_value_int64(v[0]);
    m.wait.timeout_ms = (uint32_t)ms;
    code = call_result(ctx, r, &m, (int)ms + CLIENT_GRACE_MS, text);
    if (code == FLO_OK || code == FLO_TIMEOUT || code == FLO_BUSY) {
        sqlite3_result_int(ctx, code == FLO_OK);
    } else if (code > 0) {
        result_failure(ctx, r, code, text);
    }
}

static void last_commit_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    struct replicated *r = database_of(ctx);
    char text[64];

    (void)n;
    (void)v;
    if (r != NULL && r->commit_txid != 0) {
        snprintf(text, sizeof text, "%" PRIu64 ":%016" PRIx64, r->commit_txid,
                 r->commit_id);
        sqlite3_result_text(ctx, text, -1, SQLITE_TRANSIENT);
    }
}

/* "12:00ab…": decimal, colon, 1 to 16 hexadecimal digits, nothing else. */
static bool parse_token(const char *s, size_t n, uint64_t *txid, uint64_t *id)
{
    char rest;

    return s != NULL && n < 48 && strspn(s, "0123456789:abcdefABCDEF") == n &&
           sscanf(s, "%20" SCNu64 ":%16" SCNx64 "%c", txid, id, &rest) == 2;
}

static void committed_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    struct wire_msg m = {.type = MSG_OUTCOME};
    const char *token = (const char *)sqlite3_value_text(v[0]);
    struct replicated *r;
    wire_str text;
    int code;

    (void)n;
    if (!parse_token(token, (size_t)sqlite3_value_bytes(v[0]), &m.outcome.txid,
                     &m.outcome.commit_id)) {
        sqlite3_result_error(ctx, "flotilla_committed(token): the token is what "
                                  "flotilla_last_commit() returned", -1);
        return;
    }
    r = database_of(ctx);
    if (r == NULL) {
        return;
    }
    snprintf(m.outcome.db, sizeof m.outcome.db, "%s", r->db);
    code = call_result(ctx, r, &m, CALL_MS, text);
    if (code == FLO_OK || code == FLO_NOTFOUND) {
        sqlite3_result_int(ctx, code == FLO_OK);
    } else if (code > 0 && code != FLO_UNKNOWN) {
        result_failure(ctx, r, code, text);
    }
}

static void resync_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    struct wire_msg m = {.type = MSG_ADMIN};
    const char *target = (const char *)sqlite3_value_text(v[0]);
    struct replicated *r;
    wire_str text;
    int code;

    (void)n;
    if (target == NULL || sqlite3_value_bytes(v[0]) > WIRE_STR_MAX) {
        sqlite3_result_error(ctx, "flotilla_resync(target): the target is a "
                                  "node's address or number", -1);
        return;
    }
    r = database_of(ctx);
    if (r == NULL) {
        return;
    }
    snprintf(m.admin.verb, sizeof m.admin.verb, "resync");
    snprintf(m.admin.arg, sizeof m.admin.arg, "%s", target);
    code = call_result(ctx, r, &m, CALL_MS, text);
    if (code == FLO_OK) {
        sqlite3_result_text(ctx, text[0] != '\0' ? text : "ok", -1,
                            SQLITE_TRANSIENT);
    } else if (code > 0) {
        result_failure(ctx, r, code, text);
    }
}

static void version_function(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    sqlite3_result_text(ctx, FLOTILLA_VERSION, -1, SQLITE_STATIC);
}

int functions_register(sqlite3 *db)
{
    static const struct
    {
        const char *name;
        int n_args;
        int flags;
        void (*call)(sqlite3_context *, int, sqlite3_value **);
    } functions[] = {
        {"flotilla_position", 0, 0, position_function},
        {"flotilla_leader", 0, 0, leader_function},
        {"flotilla_wait", 1, 0, wait_function},
        {"flotilla_wait", 2, 0, wait_function},
        {"flotilla_last_commit", 0, 0, last_commit_function},
        {"flotilla_committed", 1, 0, committed_function},
        {"flotilla_resync", 1, SQLITE_DIRECTONLY, resync_function},
        {"flotilla_version", 0, SQLITE_INNOCUOUS, version_function},
    };
    int rc = register_encodings(db);
    unsigned i;

    for (i = 0; i < sizeof functions / sizeof *functions && rc == SQLITE_OK;
         i++) {
        rc = sqlite3_create_function_v2(
            db, functions[i].name, functions[i].n_args,
            SQLITE_UTF8 | functions[i].flags, NULL, functions[i].call, NULL,
            NULL, NULL);
    }
    return rc;
}
