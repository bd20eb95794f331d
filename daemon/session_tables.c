/* Rows for the extension's virtual tables, and the admin verbs. The columns are
 * those of ext/vtab.c, in the same order. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "daemon/session_impl.h"
#include "daemon/status.h"

/* ---- Tables and admin verbs --------------------------------------------------------------------------- */

static int put_u64(struct buf *b, uint64_t v)
{
    char text[32];

    snprintf(text, sizeof text, "%" PRIu64, v);
    return wire_put_str(b, text);
}

static void table_status(const struct node_status *st, struct buf *b)
{
    put_u64(b, st->id);
    wire_put_str(b, st->cluster);
    wire_put_str(b, st->raft_state);
    put_u64(b, st->leader_id);
    wire_put_str(b, st->leader_address);
    put_u64(b, st->term);
    put_u64(b, st->commit_index);
    put_u64(b, st->last_applied);
    put_u64(b, st->ready);
    wire_put_str(b, st->ready_reason);
    wire_put_str(b, st->version);
}

static void table_node(const struct member_status *ms, struct buf *b)
{
    put_u64(b, ms->id);
    wire_put_str(b, ms->address);
    wire_put_str(b, ms->role);
    put_u64(b, ms->leader);
    put_u64(b, ms->self);
    put_u64(b, ms->connected);
    wire_put_str(b, db_health_name(ms->health));
    put_u64(b, ms->applied_index);
    put_u64(b, ms->lag);
    if (ms->last_contact_ms == UINT64_MAX) {
        wire_put_str(b, ""); /* never: NULL */
    } else {
        put_u64(b, ms->last_contact_ms);
    }
}

static void table_database(const struct db_status *ds, struct buf *b)
{
    char sum[20];

    snprintf(sum, sizeof sum, "%016" PRIx64, ds->position.checksum);
    wire_put_str(b, ds->name);
    put_u64(b, ds->position.txid);
    wire_put_str(b, sum);
    put_u64(b, ds->page_size);
    put_u64(b, ds->n_pages);
    put_u64(b, ds->wal_frames);
    wire_put_str(b, ds->state);
    wire_put_str(b, db_health_name(ds->health));
}

static void fill_table(struct wire_msg *m, uint8_t table,
                       const struct node_status *st, struct buf *b)
{
    switch (table) {
        case TABLE_STATUS:
            m->rows.n_rows = 1;
            m->rows.n_columns = 11;
            table_status(st, b);
            break;
        case TABLE_NODES:
            m->rows.n_rows = st->n_members;
            m->rows.n_columns = 10;
            for (unsigned i = 0; i < st->n_members; i++) {
                table_node(&st->members[i], b);
            }
            break;
        case TABLE_DATABASES:
            m->rows.n_rows = st->n_databases;
            m->rows.n_columns = 8;
            for (unsigned i = 0; i < st->n_databases; i++) {
                table_database(&st->databases[i], b);
            }
            break;
        default:
            break;
    }
}

void session_table(struct session *s, const struct wire_msg *q)
{
    struct wire_msg m = {.type = MSG_ROWS, .request = q->request};
    struct node_status st;
    struct buf b;

    if (node_status_get(s->owner->node, &st) != FLO_OK) {
        session_result(s, q->request, FLO_NOMEM, 0, "");
        return;
    }
    buf_init(&b, WIRE_BODY_MAX / 2);
    fill_table(&m, q->table.table, &st, &b);
    m.rows.cells = (struct wire_blob){.data = b.data, .len = (uint32_t)b.len};
    link_send(&s->link, &m);
    buf_close(&b);
    node_status_close(&st);
}

void session_admin(struct session *s, const struct wire_msg *m)
{
    char text[WIRE_STR_MAX + 1] = "";
    int rc = FLO_INVALID;

    if (strcmp(m->admin.verb, "resync") == 0) {
        rc = node_force_resync(s->owner->node, m->admin.arg, text, sizeof text);
    } else {
        snprintf(text, sizeof text, "unknown verb");
    }
    session_result(s, m->request, rc, 0, text);
}

