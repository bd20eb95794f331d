/* flotilla resync: order a follower to fetch the pages in which it differs
 * from the leader, and watch until it has.
 *
 *   1. find the leader; note the newest resync of that follower that it tells
 *   2. POST /_raft/force-resync; if that node no longer leads, ask the one that
 *      it names, once
 *   3. poll /_raft/resync_stats: newer records of that follower are ours, one
 *      per database; done when there are as many as databases and none runs,
 *      or when nothing new was seen for a while after some have ended (one may
 *      have failed, or its database have been dropped meanwhile)
 *
 * The leader keeps the last 16 records: with more databases than that, the
 * early ones are not listed. If the leader changes on the way, the outcome is
 * not known here, and the exit code says so. */
#include <stdlib.h>
#include <string.h>

#include "cli/leader.h"

#define POLL_MS 200
#define QUIET_MS 3000  /* nothing new: no further database will come */
#define BEGIN_MS 10000 /* within which the first one must have begun */
#define TIMEOUT_S 3600
#define RECORDS_MAX 16 /* that the leader keeps */

static const char usage[] =
    "usage: flotilla resync --target ADDRESS-OR-NUMBER [--leader HOST:PORT]\n"
    "                       [--dir D | --nodes HOST:PORT,…] [--timeout S]\n"
    "                       [-o table|json]\n"
    "\n"
    "Send a follower the pages in which it differs from the leader.\n"
    "\n"
    "  --target T       the follower: its address for peers, or its number\n"
    "  --leader A       the leader's HTTP address; found out if not given\n"
    "  --dir D          the cluster that 'flotilla cluster start' made in D\n"
    "                   (default ./run)\n"
    "  --nodes LIST     HTTP addresses of some of its nodes\n"
    "  --timeout S      wait so many seconds for the end (default 3600)\n"
    "  -o, --output F   table (default) or json\n"
    "\n"
    "Exit code 0 if all databases were resynced, 1 if refused or failed, 3 if\n"
    "no node answers, 4 if the end was not seen.\n";

struct resync
{
    const char *target;
    char *http;   /* the leader's */
    json_t *sync; /* its sync-status before */
    long long id; /* the follower's number, from the answer */
    size_t n_expected;
    char *since;     /* records begun later are ours */
    json_t *records; /* ours, newest first; owned */
};

/* ---- The order ----------------------------------------------------------- */

/* Percent-encode what is not plain in a query. */
static char *encoded(const char *s)
{
    char *out = must(malloc(3 * strlen(s) + 1));
    char *p = out;

    for (; *s != '\0'; s++) {
        if (strchr("0123456789abcdefghijklmnopqrstuvwxyz"
                   "ABCDEFGHIJKLMNOPQRSTUVWXYZ.:-_[]",
                   *s) != NULL) {
            *p++ = *s;
        } else {
            p += sprintf(p, "%%%02x", (unsigned char)*s);
        }
    }
    *p = '\0';
    return out;
}

/* The newest record's beginning. RFC 3339 in UTC compares as text. */
static int note_newest(struct resync *r)
{
    json_t *doc = NULL;
    int rc = get_document(r->http, "/_raft/resync_stats", &doc);
    json_t *last = json_at(doc, "last");

    if (rc != CLI_OK) {
        return rc;
    }
    free(r->since);
    r->since = must(strdup(""));
    for (size_t i = 0; i < json_array_size(last); i++) {
        const char *at =
            json_text(json_array_get(last, i), "started_at", "");

        if (strcmp(at, r->since) > 0) {
            free(r->since);
            r->since = must(strdup(at));
        }
    }
    json_decref(doc);
    return CLI_OK;
}

static void post(const struct resync *r, struct fetch *f)
{
    char *target = encoded(r->target);
    char *path = format("/_raft/force-resync?target=%s", target);

    fetch_init(f, r->http, path);
    f->post = true;
    fetch_all(f, 1);
    free(path);
    free(target);
}

/* What the answer to the order means. *next: another node to ask, malloc'd. */
static int judge_answer(struct resync *r, const struct fetch *f, char **next)
{
    const char *http = json_text(f->json, "error.leader.http", NULL);

    if (f->code == 202) {
        r->id = json_number(f->json, "target.id", 0);
        return CLI_OK;
    }
    if (f->code == 0) {
        complain("%s: %s", r->http, f->error);
        return f->timed_out ? CLI_TIMEOUT : CLI_UNREACHABLE;
    }
    if (f->code == 409 && http != NULL && strcmp(http, r->http) != 0 &&
        strcmp(json_text(f->json, "error.code", ""), "not_leader") == 0) {
        *next = format("%s", http);
    }
    complain("%s refused (HTTP %ld): %s", r->http, f->code,
             json_text(f->json, "error.message", "no reason given"));
    return CLI_REFUSED;
}

static int order_once(struct resync *r, char **next)
{
    struct fetch f;
    int rc = note_newest(r);

    if (rc != CLI_OK) {
        return rc;
    }
    post(r, &f);
    rc = judge_answer(r, &f, next);
    fetch_close(&f);
    return rc;
}

static int order(struct resync *r)
{
    char *next = NULL;
    int rc = order_once(r, &next);

    if (next != NULL) {
        fprintf(stderr, "asking %s, which leads now\n", next);
        free(r->http);
        r->http = next;
        next = NULL;
        rc = order_once(r, &next);
        free(next);
    }
    return rc;
}

/* ---- Watching ------------------------------------------------------------ */

static bool is_ours(const struct resync *r, json_t *record)
{
    return json_number(record, "target", -1) == r->id &&
           strcmp(json_text(record, "started_at", ""), r->since) > 0;
}

static size_t count(json_t *records, const char *result)
{
    size_t n = 0;

    for (size_t i = 0; i < json_array_size(records); i++) {
        n += strcmp(json_text(json_array_get(records, i), "result", ""),
                    result) == 0;
    }
    return n;
}

/* Once for each database, as soon as its end is seen. */
static void tell_progress(const struct resync *r, size_t n_told)
{
    size_t n = json_array_size(r->records);

    for (size_t i = n_told; i < n; i++) {
        json_t *x = json_array_get(r->records, n - 1 - i);

        fprintf(stderr, "%s: %s, node %lld to node %lld\n",
                json_text(x, "database", "?"), json_text(x, "reason", "?"),
                json_number(x, "source", 0), json_number(x, "target", 0));
    }
}

static int poll_once(struct resync *r)
{
    json_t *doc = NULL;
    int rc = get_document(r->http, "/_raft/resync_stats", &doc);
    json_t *last = json_at(doc, "last");

    if (rc != CLI_OK) {
        return CLI_TIMEOUT; /* it was ordered; how it ends is not known */
    }
    json_decref(r->records);
    r->records = must(json_array());
    for (size_t i = 0; i < json_array_size(last); i++) {
        if (is_ours(r, json_array_get(last, i))) {
            json_array_append(r->records, json_array_get(last, i));
        }
    }
    json_decref(doc);
    return CLI_OK;
}

static size_t expected(const struct resync *r)
{
    return r->n_expected < RECORDS_MAX ? r->n_expected : RECORDS_MAX;
}

/* A failed one is tried again by the follower, so it gets the same while. */
static bool is_over(const struct resync *r, uint64_t quiet_ms)
{
    size_t n = json_array_size(r->records);

    if (n == 0 || count(r->records, "running") > 0) {
        return false;
    }
    return quiet_ms > QUIET_MS ||
           (n >= expected(r) && count(r->records, "failed") == 0);
}

/* CLI_OK at the end; CLI_TIMEOUT after a complaint. */
static int watch(struct resync *r, unsigned timeout_s)
{
    uint64_t begin = now_ms(), changed = begin;
    size_t n_seen = 0;

    while (now_ms() - begin < (uint64_t)timeout_s * 1000) {
        size_t n;

        if (poll_once(r) != CLI_OK) {
            return CLI_TIMEOUT;
        }
        n = json_array_size(r->records);
        if (n > n_seen || count(r->records, "running") > 0) {
            changed = now_ms();
        }
        tell_progress(r, n_seen);
        n_seen = n > n_seen ? n : n_seen;
        if (is_over(r, now_ms() - changed)) {
            return CLI_OK;
        }
        if (n_seen == 0 && now_ms() - begin > BEGIN_MS) {
            break;
        }
        sleep_ms(POLL_MS);
    }
    complain("it was ordered, and %s after %u s; see '%s sync-status'",
             n_seen == 0 ? "has not begun" : "still runs",
             (unsigned)((now_ms() - begin) / 1000), cli_program);
    return CLI_TIMEOUT;
}

/* ---- The result ---------------------------------------------------------- */

static uint64_t database_size(const struct resync *r, const char *name)
{
    json_t *list = json_at(r->sync, "databases");

    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *d = json_array_get(list, i);

        if (strcmp(json_text(d, "name", ""), name) == 0) {
            return (uint64_t)json_number(d, "size_bytes", 0);
        }
    }
    return 0;
}

static void show_table(const struct resync *r)
{
    static const char *const headers[] = {"DATABASE", "RESULT", "COMPARED",
                                          "PAGES",    "SENT",   "SIZE",
                                          "TIME",     "ERROR"};
    struct table t;

    table_init(&t, 8, headers);
    for (size_t i = json_array_size(r->records); i-- > 0;) {
        json_t *x = json_array_get(r->records, i);
        const char *name = json_text(x, "database", "?");
        const char *result = json_text(x, "result", "?");
        char *sent = format_bytes((uint64_t)json_number(x, "bytes_sent", 0));
        char *size = format_bytes(database_size(r, name));

        table_cell(&t, COLOUR_NONE, "%s", name);
        table_cell(&t,
                   strcmp(result, "finished") == 0 ? COLOUR_GOOD : COLOUR_BAD,
                   "%s", result);
        table_cell(&t, COLOUR_NONE, "%lld",
                   json_number(x, "pages_compared", 0));
        table_cell(&t, COLOUR_NONE, "%lld", json_number(x, "pages_sent", 0));
        table_cell(&t, COLOUR_NONE, "%s", sent);
        table_cell(&t, COLOUR_NONE, "%s", size);
        table_cell(&t, COLOUR_NONE, "%lld ms",
                   json_number(x, "duration_ms", 0));
        table_cell(&t, COLOUR_NONE, "%s", json_text(x, "error", ""));
        free(sent);
        free(size);
    }
    table_print(&t, stdout);
    table_close(&t);
}

static void show(const struct resync *r, bool as_json)
{
    if (as_json) {
        json_dumpf(r->records, stdout, JSON_DUMP_FLAGS);
        putchar('\n');
    } else {
        show_table(r);
    }
}

static int run(struct resync *r, const struct args *a, unsigned timeout_s)
{
    int rc = leader_find(a, &r->http, &r->sync);

    if (rc != CLI_OK) {
        return rc;
    }
    r->n_expected = json_array_size(json_at(r->sync, "databases"));
    rc = order(r);
    if (rc != CLI_OK) {
        return rc;
    }
    if (r->n_expected == 0) {
        fprintf(stderr, "there is no database yet\n");
        return CLI_OK;
    }
    rc = watch(r, timeout_s);
    if (r->records != NULL) {
        show(r, a->json);
    }
    if (rc == CLI_OK && count(r->records, "failed") > 0) {
        rc = CLI_REFUSED;
    }
    return rc;
}

int cmd_resync(int argc, char **argv)
{
    struct resync r = {0};
    unsigned timeout_s = TIMEOUT_S;
    struct args a;
    int rc = args_parse(&a, argc, argv,
                        ARG_TARGET | ARG_LEADER | ARG_DIR | ARG_NODES |
                            ARG_OUTPUT | ARG_TIMEOUT,
                        "resync", usage);

    if (rc != -1) {
        return rc;
    }
    if (a.target == NULL) {
        complain("resync: say which follower with --target ADDRESS-OR-NUMBER");
        return CLI_USAGE;
    }
    if (args_timeout(&a, "resync", &timeout_s) != CLI_OK) {
        return CLI_USAGE;
    }
    r.target = a.target;
    rc = run(&r, &a, timeout_s);
    json_decref(r.records);
    json_decref(r.sync);
    free(r.since);
    free(r.http);
    return rc;
}
