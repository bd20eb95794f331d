/* Virtual tables to look at the cluster from SQL. All are eponymous (nothing
 * is created) and read-only:
 *
 *   flotilla_status      this node, one row
 *   flotilla_nodes       all nodes, as this one sees them
 *   flotilla_databases   the databases of this node
 *   flotilla_client      the replicated files open in this process; local
 *
 * The first three are asked of the daemon each time they are scanned (TABLE /
 * ROWS): a snapshot of texts, in the column order below, which daemon/ shares.
 * Columns declared INTEGER come back as integers, an empty one as NULL. */
#include "ext/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"

#define TABLE_CLIENT 0 /* not asked of the daemon */
#define TABLE_MS 5000
#define COLUMNS_MAX 16

struct table
{
    int number;
    const char *name;
    unsigned n_columns;
    const char *declaration;
};

static const struct table tables[] = {
    {TABLE_STATUS, "flotilla_status", 11,
     "CREATE TABLE x(node_id INTEGER, cluster TEXT, role TEXT, "
     "leader_id INTEGER, leader TEXT, term INTEGER, commit_index INTEGER, "
     "last_applied INTEGER, ready INTEGER, ready_reason TEXT, version TEXT)"},
    {TABLE_NODES, "flotilla_nodes", 10,
     "CREATE TABLE x(id INTEGER, address TEXT, role TEXT, is_leader INTEGER, "
     "is_self INTEGER, connected INTEGER, health TEXT, applied_index INTEGER, "
     "lag INTEGER, last_contact_ms INTEGER)"},
    {TABLE_DATABASES, "flotilla_databases", 8,
     "CREATE TABLE x(name TEXT, txid INTEGER, checksum TEXT, "
     "page_size INTEGER, n_pages INTEGER, wal_frames INTEGER, state TEXT, "
     "health TEXT)"},
    {TABLE_CLIENT, "flotilla_client", 13,
     "CREATE TABLE x(db TEXT, socket TEXT, state TEXT, connected INTEGER, "
     "last_error TEXT, commits INTEGER, busy INTEGER, unknown INTEGER, "
     "grants INTEGER, last_txid INTEGER, wait_ms INTEGER, node_id INTEGER, "
     "read_level TEXT)"},
};

/* bit n: column n is INTEGER */
static const unsigned integer_columns[] = {
    [TABLE_CLIENT] = 1u << 3 | 0x7fu << 5,
    [TABLE_STATUS] = 1u << 0 | 1u << 3 | 0xfu << 5,
    [TABLE_NODES] = 1u << 0 | 7u << 3 | 7u << 7,
    [TABLE_DATABASES] = 1u << 1 | 7u << 3,
};

struct vtab
{
    sqlite3_vtab base; /* first */
    sqlite3 *db;
    const struct table *table;
};

/* Cells are copied: the answer they came in is gone by then. */
struct vtab_cursor
{
    sqlite3_vtab_cursor base; /* first */
    struct buf cells;         /* rows of strings, as in ROWS */
    struct cursor next;       /* behind the current row */
    uint32_t n_rows;
    uint32_t row; /* from 0 */
    wire_str row_cells[COLUMNS_MAX];
};

/* ---- Rows ------------------------------------------------------------------------ */

int table_fetch(struct replicated *r, int table, struct wire_msg *rows,
                unsigned n_columns)
{
    struct wire_msg m = {.type = MSG_TABLE};
    int rc;

    m.table.table = (uint8_t)table;
    rc = client_call(&r->client, &m, rows, client_now() + TABLE_MS);
    if (rc == FLO_OK && rows->type == MSG_RESULT && rows->result.code != 0) {
        return (int)rows->result.code;
    }
    if (rc == FLO_OK &&
        (rows->type != MSG_ROWS || rows->rows.n_columns != n_columns)) {
        return FLO_PROTOCOL;
    }
    return rc;
}

static int set_error(struct vtab *v, const char *text, const char *dir)
{
    sqlite3_free(v->base.zErrMsg);
    v->base.zErrMsg = dir != NULL
        ? sqlite3_mprintf("flotillad is not running in %s: start it with its "
                          "flags or \"flotilla cluster start\" (%s)", dir, text)
        : sqlite3_mprintf("flotilla: %s", text);
    return SQLITE_ERROR;
}

static int fetch_rows(struct vtab *v, struct vtab_cursor *c)
{
    struct replicated *r = replicated_of(v->db);
    struct wire_msg rows;
    int rc, code = SQLITE_OK;

    if (r == NULL) {
        return set_error(v, "no replicated database is open on this connection",
                         NULL);
    }
    sqlite3_mutex_enter(r->mutex);
    rc = table_fetch(r, v->table->number, &rows, v->table->n_columns);
    if (rc == FLO_OK) {
        rc = buf_append(&c->cells, rows.rows.cells.data, rows.rows.cells.len);
        c->n_rows = rows.rows.n_rows;
    }
    if (rc == FLO_IO || rc == FLO_TIMEOUT) {
        code = set_error(v, r->client.error, r->dir);
    } else if (rc != FLO_OK) {
        code = set_error(v, flo_strerror(rc), NULL);
    }
    sqlite3_mutex_leave(r->mutex);
    return code;
}

static const char *state_name(const struct replicated *r)
{
    return r->commit_state == COMMIT_UNKNOWN ? "unknown"
           : r->write == WRITE_CLUSTER ? "writing"
           : r->read_locks != 0 ? "reading" : "idle";
}

static int put_number(struct buf *b, unsigned long long v)
{
    char text[24];

    snprintf(text, sizeof text, "%llu", v);
    return wire_put_str(b, text);
}

static int put_clipped(struct buf *b, const char *s)
{
    char text[WIRE_STR_MAX + 1];

    snprintf(text, sizeof text, "%s", s);
    return wire_put_str(b, text);
}

/* Numbers of other connections are read while they change; each is right at
 * some moment, they need not fit together. */
static int put_client(struct buf *b, struct replicated *r)
{
    const unsigned long long numbers[] = {
        atomic_load(&r->counters.commits), atomic_load(&r->counters.busy),
        atomic_load(&r->counters.unknown), atomic_load(&r->counters.grants),
        atomic_load(&r->counters.last_txid), atomic_load(&r->counters.wait_ms),
        r->client.node_id};
    char socket[WIRE_STR_MAX + 1];
    unsigned i;
    int rc;

    snprintf(socket, sizeof socket, "%.240s/flotilla.sock", r->dir);
    rc = put_clipped(b, r->db);
    rc |= put_clipped(b, socket);
    rc |= put_clipped(b, state_name(r));
    rc |= put_number(b, r->client.fd >= 0);
    rc |= put_clipped(b, r->error);
    for (i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        rc |= put_number(b, numbers[i]);
    }
    return rc | put_clipped(b, r->linearizable ? "linearizable" : "local");
}

static int client_rows(struct vtab_cursor *c)
{
    struct replicated *r;
    int rc = FLO_OK;

    registry_enter();
    for (r = registry_first(); r != NULL && rc == FLO_OK; r = r->next) {
        rc = put_client(&c->cells, r);
        c->n_rows++;
    }
    registry_leave();
    return rc == FLO_OK ? SQLITE_OK : SQLITE_NOMEM;
}

/* ---- Module methods ------------------------------------------------------------------ */

static int vtab_connect(sqlite3 *db, void *table, int argc,
                        const char *const *argv, sqlite3_vtab **out,
                        char **error)
{
    const struct table *t = table;
    struct vtab *v;
    int rc = sqlite3_declare_vtab(db, t->declaration);

    (void)argc;
    (void)argv;
    (void)error;
    if (rc != SQLITE_OK) {
        return rc;
    }
    v = sqlite3_malloc(sizeof *v);
    if (v == NULL) {
        return SQLITE_NOMEM;
    }
    memset(v, 0, sizeof *v);
    v->db = db;
    v->table = t;
    *out = &v->base;
    return SQLITE_OK;
}

static int vtab_disconnect(sqlite3_vtab *v)
{
    sqlite3_free(v);
    return SQLITE_OK;
}

static int vtab_best_index(sqlite3_vtab *v, sqlite3_index_info *info)
{
    (void)v;
    info->estimatedCost = 1000;
    info->estimatedRows = 10;
    return SQLITE_OK;
}

static int vtab_open(sqlite3_vtab *v, sqlite3_vtab_cursor **out)
{
    struct vtab_cursor *c = sqlite3_malloc(sizeof *c);

    (void)v;
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    memset(c, 0, sizeof *c);
    buf_init(&c->cells, WIRE_BODY_MAX);
    *out = &c->base;
    return SQLITE_OK;
}

static int vtab_close(sqlite3_vtab_cursor *cursor)
{
    struct vtab_cursor *c = (struct vtab_cursor *)cursor;

    buf_close(&c->cells);
    sqlite3_free(c);
    return SQLITE_OK;
}

static int load_row(struct vtab_cursor *c)
{
    const struct vtab *v = (const struct vtab *)c->base.pVtab;
    unsigned i;

    if (c->row >= c->n_rows) {
        return SQLITE_OK;
    }
    for (i = 0; i < v->table->n_columns; i++) {
        wire_get_str(&c->next, c->row_cells[i]);
    }
    return c->next.bad ? set_error((struct vtab *)c->base.pVtab,
                                   "the daemon sent a damaged table", NULL)
                       : SQLITE_OK;
}

static int vtab_filter(sqlite3_vtab_cursor *cursor, int index,
                       const char *index_text, int argc, sqlite3_value **argv)
{
    struct vtab_cursor *c = (struct vtab_cursor *)cursor;
    struct vtab *v = (struct vtab *)cursor->pVtab;
    int rc;

    (void)index;
    (void)index_text;
    (void)argc;
    (void)argv;
    c->cells.len = 0;
    c->n_rows = 0;
    c->row = 0;
    rc = v->table->number == TABLE_CLIENT ? client_rows(c) : fetch_rows(v, c);
    if (rc != SQLITE_OK) {
        return rc;
    }
    c->next = cursor_of(c->cells.data, c->cells.len);
    return load_row(c);
}

static int vtab_next(sqlite3_vtab_cursor *cursor)
{
    struct vtab_cursor *c = (struct vtab_cursor *)cursor;

    c->row++;
    return load_row(c);
}

static int vtab_eof(sqlite3_vtab_cursor *cursor)
{
    const struct vtab_cursor *c = (const struct vtab_cursor *)cursor;
    return c->row >= c->n_rows;
}

static int vtab_column(sqlite3_vtab_cursor *cursor, sqlite3_context *ctx,
                       int column)
{
    struct vtab_cursor *c = (struct vtab_cursor *)cursor;
    const struct vtab *v = (const struct vtab *)cursor->pVtab;
    const char *text = c->row_cells[column];
    char *end;

    if (integer_columns[v->table->number] >> column & 1) {
        long long n = strtoll(text, &end, 10);
        if (end != text && *end == '\0') {
            sqlite3_result_int64(ctx, n);
            return SQLITE_OK;
        }
        if (text[0] == '\0') {
            return SQLITE_OK; /* NULL */
        }
    }
    sqlite3_result_text(ctx, text, -1, SQLITE_TRANSIENT);
    return SQLITE_OK;
}

static int vtab_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *rowid)
{
    *rowid = ((const struct vtab_cursor *)cursor)->row;
    return SQLITE_OK;
}

static const sqlite3_module module = {
    .iVersion = 0,
    .xCreate = NULL, /* eponymous only */
    .xConnect = vtab_connect,
    .xBestIndex = vtab_best_index,
    .xDisconnect = vtab_disconnect,
    .xOpen = vtab_open,
    .xClose = vtab_close,
    .xFilter = vtab_filter,
    .xNext = vtab_next,
    .xEof = vtab_eof,
    .xColumn = vtab_column,
    .xRowid = vtab_rowid,
};

int vtabs_register(sqlite3 *db)
{
    int rc = SQLITE_OK;
    unsigned i;

    for (i = 0; i < sizeof tables / sizeof *tables && rc == SQLITE_OK; i++) {
        rc = sqlite3_create_module(db, tables[i].name, &module,
                                   (void *)&tables[i]);
    }
    return rc;
}
