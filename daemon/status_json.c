/* The node's status as JSON and as the text of /livez and /readyz; see
 * status_json.h. Metrics are in status_metrics.c.
 *
 * Each document is one json_pack: it takes the references it is given, and
 * yields NULL if any part of it is NULL, so memory that runs out anywhere
 * makes the whole NULL and leaks nothing. */
#include "daemon/status_json.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/error.h"

/* ---- Values -------------------------------------------------------------- */

/* A string. What is not UTF-8 (a message cut in the middle of a character, a
 * path in another encoding) is shown with '?' rather than not at all. */
static json_t *text(const char *s)
{
    json_t *v = json_string(s != NULL ? s : "");
    char *copy;

    if (v != NULL) {
        return v;
    }
    copy = strdup(s);
    if (copy == NULL) {
        return NULL;
    }
    for (char *p = copy; *p != '\0'; p++) {
        *p = (unsigned char)*p < 0x80 ? *p : '?';
    }
    v = json_string(copy);
    free(copy);
    return v;
}

/* Numbers that are below 2^53 in every world we can live to see; one that is
 * not is a bug elsewhere, and is shown as the greatest that fits. */
static json_t *number(uint64_t n)
{
    return json_integer(n <= INT64_MAX ? (json_int_t)n : INT64_MAX);
}

static json_t *txid_text(uint64_t txid)
{
    char s[24];

    snprintf(s, sizeof s, "%" PRIu64, txid);
    return json_string(s);
}

static json_t *checksum_text(uint64_t checksum)
{
    char s[24];

    snprintf(s, sizeof s, "%016" PRIx64, checksum);
    return json_string(s);
}

/* UTC milliseconds since the epoch as RFC 3339; 0 is "not yet": null. */
static json_t *time_text(int64_t ms)
{
    time_t seconds = (time_t)(ms / 1000);
    char date[32], s[48];
    struct tm tm;

    if (ms <= 0 || gmtime_r(&seconds, &tm) == NULL) {
        return json_null();
    }
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(s, sizeof s, "%s.%03dZ", date, (int)(ms % 1000));
    return json_string(s);
}

/* Append, unless something failed before; then array is NULL and stays so. */
static void append(json_t **array, json_t *value)
{
    if (*array == NULL) {
        json_decref(value);
    } else if (json_array_append_new(*array, value) != 0) {
        json_decref(*array);
        *array = NULL;
    }
}

static void set(json_t **object, const char *key, json_t *value)
{
    if (*object == NULL) {
        json_decref(value);
    } else if (json_object_set_new(*object, key, value) != 0) {
        json_decref(*object);
        *object = NULL;
    }
}

/* ---- Parts --------------------------------------------------------------- */

static json_t *database_json(const struct db_status *d)
{
    return json_pack(
        "{s:o, s:o, s:o, s:s, s:o, s:I, s:I, s:o, s:I, s:I, s:I, s:o, s:I}",
        "name", text(d->name), "txid", txid_text(d->position.txid), "checksum",
        checksum_text(d->position.checksum), "health",
        db_health_name(d->health), "state", text(d->state), "page_size",
        (json_int_t)d->page_size, "pages", (json_int_t)d->n_pages,
        "size_bytes", number((uint64_t)d->page_size * d->n_pages),
        "wal_frames", (json_int_t)d->wal_frames, "lock_waiters",
        (json_int_t)d->lock_waiters, "lock_holder",
        (json_int_t)d->lock_holder, "queued_bytes", number(d->queued_bytes),
        "stuck_pid", (json_int_t)d->stuck_pid);
}

static json_t *databases_json(const struct node_status *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->n_databases; i++) {
        append(&list, database_json(&s->databases[i]));
    }
    return list;
}

/* Another node's databases, of which only position and health are known. */
static json_t *positions_json(const struct member_status *m)
{
    json_t *map = json_object();

    for (unsigned i = 0; i < m->n_databases; i++) {
        const struct db_status *d = &m->databases[i];

        set(&map, d->name,
            json_pack("{s:o, s:o, s:s}", "txid", txid_text(d->position.txid),
                      "checksum", checksum_text(d->position.checksum),
                      "health", db_health_name(d->health)));
    }
    return map;
}

static json_t *latency_json(double ms)
{
    return ms >= 0 ? json_real(ms) : json_null();
}

static json_t *contact_json(uint64_t ms)
{
    return ms != UINT64_MAX ? number(ms) : json_null();
}

/* What sync-status tells of a follower. */
static json_t *follower_json(const struct member_status *m)
{
    return json_pack(
        "{s:I, s:o, s:s, s:o, s:b, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:o, "
        "s:o}",
        "id", (json_int_t)m->id, "address", text(m->address), "health",
        db_health_name(m->health), "role", text(m->role), "connected",
        m->connected, "last_replicated_index",
        number(m->last_replicated_index), "applied_index",
        number(m->applied_index), "lag", number(m->lag), "databases",
        positions_json(m), "last_latency_ms",
        latency_json(m->last_latency_ms), "pending_count",
        (json_int_t)m->pending_count, "consecutive_failures",
        (json_int_t)m->consecutive_failures, "last_contact_ms",
        contact_json(m->last_contact_ms), "free_bytes",
        number(m->free_bytes));
}

static json_t *followers_json(const struct node_status *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->n_members; i++) {
        if (s->members[i].id != s->leader_id) {
            append(&list, follower_json(&s->members[i]));
        }
    }
    return list;
}

static json_t *members_json(const struct node_status *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->n_members; i++) {
        json_t *m = follower_json(&s->members[i]);

        set(&m, "self", json_boolean(s->members[i].self));
        set(&m, "leader", json_boolean(s->members[i].leader));
        append(&list, m);
    }
    return list;
}

static json_t *resync_json(const struct resync_record *r)
{
    const char *result = r->finished_ms == 0 ? "running"
                         : r->rc == FLO_OK   ? "finished"
                                             : "failed";
    int64_t ms = r->finished_ms - r->started_ms;
    json_t *v = json_pack(
        "{s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:s}", "database",
        text(r->db), "reason", text(r->reason), "source",
        (json_int_t)r->source, "target", (json_int_t)r->target, "started_at",
        time_text(r->started_ms), "finished_at", time_text(r->finished_ms),
        "pages_compared", number(r->pages_compared), "pages_sent",
        number(r->pages_sent), "bytes_sent", number(r->bytes_sent), "result",
        result);

    set(&v, "duration_ms",
        r->finished_ms == 0 ? json_null() : number(ms > 0 ? (uint64_t)ms : 0));
    set(&v, "error",
        r->rc == FLO_OK ? json_null() : json_string(flo_strerror(r->rc)));
    return v;
}

static json_t *counters_json(const struct node_counters *c)
{
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:f}",
        "txn_committed", number(c->txn_committed), "txn_rejected",
        number(c->txn_rejected), "txn_unknown", number(c->txn_unknown),
        "leader_changes", number(c->leader_changes), "proposals_committed",
        number(c->proposals_committed), "proposals_failed",
        number(c->proposals_failed), "snapshots", number(c->snapshots),
        "checkpoints", number(c->checkpoints), "clients_accepted",
        number(c->clients_accepted), "protocol_errors",
        number(c->protocol_errors), "commit_seconds_sum",
        c->commit_seconds_sum);
}

/* ---- Documents ----------------------------------------------------------- */

json_t *status_leader_json(const struct node_status *s)
{
    if (s->leader_id == 0) {
        return json_null();
    }
    return json_pack("{s:I, s:o, s:o}", "id", (json_int_t)s->leader_id,
                     "address", text(s->leader_address), "http",
                     s->leader_http[0] != '\0' ? text(s->leader_http)
                                               : json_null());
}

static bool self_well(const struct node_status *s)
{
    for (unsigned i = 0; i < s->n_databases; i++) {
        if (s->databases[i].health == DB_DESYNCED) {
            return false;
        }
    }
    return s->live && s->ready && !s->disk_low;
}

static bool members_well(const struct node_status *s)
{
    for (unsigned i = 0; i < s->n_members; i++) {
        const struct member_status *m = &s->members[i];

        if (!m->self && (!m->connected || m->health != DB_HEALTHY)) {
            return false;
        }
    }
    return true;
}

const char *status_health_word(const struct node_status *s)
{
    if (s->leader_id == 0) {
        return "no_leader";
    }
    if (!self_well(s) || (s->is_leader && !members_well(s))) {
        return "degraded";
    }
    return "healthy";
}

json_t *status_health_json(const struct node_status *s)
{
    json_t *followers = json_array();

    for (unsigned i = 0; i < s->n_members; i++) {
        const struct member_status *m = &s->members[i];

        if (m->id != s->leader_id) {
            append(&followers,
                   json_pack("{s:I, s:o, s:s}", "id", (json_int_t)m->id,
                             "address", text(m->address), "health",
                             db_health_name(m->health)));
        }
    }
    return json_pack("{s:s, s:I, s:b, s:o, s:o, s:o, s:o, s:o}", "status",
                     status_health_word(s), "node_id", (json_int_t)s->id,
                     "is_leader", s->is_leader, "term", number(s->term),
                     "commit_index", number(s->commit_index), "last_applied",
                     number(s->last_applied), "leader",
                     status_leader_json(s), "followers", followers);
}

json_t *status_sync_json(const struct node_status *s)
{
    json_t *v = json_pack(
        "{s:I, s:b, s:o, s:o, s:o, s:o, s:o}", "node_id", (json_int_t)s->id,
        "is_leader", s->is_leader, "leader", status_leader_json(s), "term",
        number(s->term), "commit_index", number(s->commit_index),
        "last_applied", number(s->last_applied), "databases",
        databases_json(s));

    /* Only the leader hears from all; what others know is old. */
    if (s->is_leader) {
        set(&v, "followers", followers_json(s));
    }
    return v;
}

json_t *status_resync_json(const struct node_status *s)
{
    const struct resync_stats *r = &s->resync;
    json_t *last = json_array();
    uint64_t done = r->finished + r->failed;

    for (unsigned i = 0; i < r->n_last; i++) {
        append(&last, resync_json(&r->last[i]));
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "started",
                     number(r->started), "finished", number(r->finished),
                     "failed", number(r->failed), "running",
                     number(r->started > done ? r->started - done : 0),
                     "pages_compared", number(r->pages_compared), "pages_sent",
                     number(r->pages_sent), "bytes_sent",
                     number(r->bytes_sent), "last", last);
}

json_t *status_node_json(const struct node_status *s)
{
    json_t *v = json_pack(
        "{s:o, s:o, s:I, s:s, s:o, s:b, s:o, s:o, s:o, s:o, s:o}", "version",
        text(s->version), "cluster", text(s->cluster), "node_id",
        (json_int_t)s->id, "status", status_health_word(s), "raft_state",
        text(s->raft_state), "is_leader", s->is_leader, "leader",
        status_leader_json(s), "term", number(s->term), "commit_index",
        number(s->commit_index), "last_applied", number(s->last_applied),
        "last_index", number(s->last_index));

    set(&v, "live", json_boolean(s->live));
    set(&v, "ready", json_boolean(s->ready));
    set(&v, "ready_reason", text(s->ready_reason));
    set(&v, "started_at", time_text(s->started_ms));
    set(&v, "uptime_ms", number(s->uptime_ms));
    set(&v, "free_bytes", number(s->free_bytes));
    set(&v, "disk_low", json_boolean(s->disk_low));
    set(&v, "clients", json_integer(s->n_clients));
    set(&v, "members", members_json(s));
    set(&v, "databases", databases_json(s));
    set(&v, "resync", status_resync_json(s));
    set(&v, "counters", counters_json(&s->counters));
    return v;
}

json_t *status_error_json(const char *code, const char *message,
                          const struct node_status *s)
{
    return json_pack("{s:{s:s, s:o, s:o}}", "error", "code", code, "message",
                     text(message), "leader",
                     s != NULL ? status_leader_json(s) : json_null());
}

/* ---- /livez and /readyz -------------------------------------------------- */

/* The lines of one answer, and how many of them speak of a failure. */
struct checks
{
    FILE *f; /* writes into text */
    char *text;
    size_t n;
    bool verbose;
    unsigned n_failed;
};

/* why is used when the check is not passed. mark: '-' failed, '!' a warning. */
static void check(struct checks *c, const char *name, bool passed, char mark,
                  const char *why)
{
    if (!passed && mark == '-') {
        c->n_failed++;
    }
    if (!passed) {
        fprintf(c->f, "[%c]%s %s\n", mark, name, why);
    } else if (c->verbose) {
        fprintf(c->f, "[+]%s ok\n", name);
    }
}

static void check_leader(struct checks *c, const struct node_status *s,
                         char mark)
{
    char why[256];

    snprintf(why, sizeof why, "unknown: this node is %s in term %" PRIu64
             ", and no leader was heard from",
             s->raft_state != NULL ? s->raft_state : "starting", s->term);
    check(c, "leader", s->leader_id != 0, mark, why);
}

static void check_disk(struct checks *c, const struct node_status *s)
{
    char why[128];

    snprintf(why, sizeof why,
             "low: %" PRIu64 " bytes free, writes are refused",
             s->free_bytes);
    check(c, "disk", !s->disk_low, '!', why);
}

static void check_databases(struct checks *c, const struct node_status *s,
                            char mark)
{
    char name[sizeof "database " + DB_NAME_MAX];

    for (unsigned i = 0; i < s->n_databases; i++) {
        const struct db_status *d = &s->databases[i];
        char why[64];

        snprintf(name, sizeof name, "database %s", d->name);
        snprintf(why, sizeof why, "%s: %s", db_health_name(d->health),
                 d->state != NULL ? d->state : "");
        check(c, name, d->health != DB_DESYNCED, mark, why);
    }
}

static int checks_begin(struct checks *c, bool verbose)
{
    *c = (struct checks){.verbose = verbose};
    c->f = open_memstream(&c->text, &c->n);
    return c->f != NULL ? FLO_OK : FLO_NOMEM;
}

static char *checks_end(struct checks *c, const char *name, bool good)
{
    if (good && !c->verbose) {
        fprintf(c->f, "ok\n");
    } else {
        fprintf(c->f, "%s %s\n", name, good ? "ok" : "failed");
    }
    if (fclose(c->f) != 0) {
        free(c->text);
        return NULL;
    }
    return c->text;
}

char *status_live_text(const struct node_status *s, bool verbose)
{
    struct checks c;

    if (checks_begin(&c, verbose) != FLO_OK) {
        return NULL;
    }
    check(&c, "loop", true, '-', ""); /* it is what is answering */
    check(&c, "raft", s->live, '-', "failed: restart this node");
    return checks_end(&c, "livez", s->live);
}

char *status_ready_text(const struct node_status *s, bool verbose)
{
    char mark = s->ready ? '!' : '-';
    char why[sizeof s->ready_reason + 16];
    struct checks c;

    if (checks_begin(&c, verbose) != FLO_OK) {
        return NULL;
    }
    check(&c, "raft", s->live, mark, "failed: restart this node");
    check_leader(&c, s, mark);
    check_databases(&c, s, mark);
    check_disk(&c, s);
    if (s->ready_reason[0] != '\0' || c.n_failed == 0) {
        snprintf(why, sizeof why, "waits: %s",
                 s->ready_reason[0] != '\0' ? s->ready_reason : "starting");
        check(&c, "node", s->ready, mark, why);
    }
    return checks_end(&c, "readyz", s->ready);
}
