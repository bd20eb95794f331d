/* flotilla status: every node on one line, each as it sees itself.
 *
 * LAG is how many entries a node has still to apply of what the most advanced
 * of the nodes asked knows to be committed ("trails leader by"). */
#include <stdlib.h>
#include <string.h>

#include "cli/fetch.h"
#include "cli/layout.h"

#define DATABASES_SHOWN 3

static const char usage[] =
    "usage: flotilla status [--dir D | --nodes HOST:PORT,…] [-o table|json]\n"
    "\n"
    "Ask every node how it is.\n"
    "\n"
    "  --dir D          the cluster that 'flotilla cluster start' made in D\n"
    "                   (default ./run)\n"
    "  --nodes LIST     the HTTP addresses of the nodes to ask\n"
    "  -o, --output F   table (default) or json\n"
    "\n"
    "Exit code 0 if all nodes answer and are ready, 1 if not, 3 if none\n"
    "answers.\n";

/* A list that grows: "a; b". */
static void add(char **list, const char *separator, char *item)
{
    char *longer = (*list)[0] != '\0'
                       ? format("%s%s%s", *list, separator, item)
                       : format("%s", item);

    free(*list);
    free(item);
    *list = longer;
}

static char *databases_text(json_t *doc)
{
    json_t *list = json_at(doc, "databases");
    char *text = must(strdup(""));
    size_t n = json_array_size(list);

    for (size_t i = 0; i < n && i < DATABASES_SHOWN; i++) {
        json_t *d = json_array_get(list, i);

        add(&text, ", ",
            format("%s %s", json_text(d, "name", "?"),
                   json_text(d, "txid", "?")));
    }
    if (n > DATABASES_SHOWN) {
        add(&text, ", ", format("%zu more", n - DATABASES_SHOWN));
    }
    return text;
}

static void add_database_errors(char **text, json_t *doc)
{
    json_t *list = json_at(doc, "databases");

    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *d = json_array_get(list, i);
        long long pid = json_number(d, "stuck_pid", 0);

        if (strcmp(json_text(d, "health", ""), "desynced") == 0) {
            add(text, "; ",
                format("%s desynced (%s)", json_text(d, "name", "?"),
                       json_text(d, "state", "?")));
        }
        if (pid != 0) {
            add(text, "; ",
                format("%s held by process %lld", json_text(d, "name", "?"),
                       pid));
        }
    }
}

/* Malloc'd; "" when nothing is wrong. */
static char *errors_text(const struct fetch *f)
{
    char *text = must(strdup(""));
    const char *why = json_text(f->json, "ready_reason", "");

    if (f->code == 0) {
        add(&text, "; ", format("cannot reach: %s", f->error));
        return text;
    }
    if (f->code != 200 || !json_is_object(f->json)) {
        add(&text, "; ", format("answered with HTTP %ld", f->code));
        return text;
    }
    if (!json_flag(f->json, "live")) {
        add(&text, "; ", format("raft failed: restart it"));
    }
    if (json_at(f->json, "leader.id") == NULL) {
        add(&text, "; ", format("no leader"));
    }
    if (!json_flag(f->json, "ready") && why[0] != '\0') {
        add(&text, "; ", format("%s", why));
    }
    if (json_flag(f->json, "disk_low")) {
        add(&text, "; ", format("disk low"));
    }
    add_database_errors(&text, f->json);
    return text;
}

static bool usable(const struct fetch *f)
{
    return f->code == 200 && json_is_object(f->json);
}

static long long lag_of(const struct fetch *f, long long committed)
{
    long long applied = json_number(f->json, "last_applied", 0);

    return applied < committed ? committed - applied : 0;
}

/* Its peers' address: what this node's own document says. */
static const char *own_address(json_t *doc)
{
    json_t *list = json_at(doc, "members");

    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *m = json_array_get(list, i);

        if (json_flag(m, "self")) {
            return json_text(m, "address", "?");
        }
    }
    return "?";
}

/* All but the last cell of a node that gave no document. */
static void add_unknown(struct table *t, const char *http, unsigned id)
{
    if (id != 0) {
        table_cell(t, COLOUR_NONE, "%u", id);
    } else {
        table_cell(t, COLOUR_NONE, "?");
    }
    table_cell(t, COLOUR_NONE, "%s", http);
    for (unsigned i = 2; i < 8; i++) {
        table_cell(t, COLOUR_NONE, "%s", "");
    }
    table_cell(t, COLOUR_BAD, "no");
}

static void add_row(struct table *t, const struct fetch *f, const char *http,
                    unsigned id, long long committed)
{
    char *databases = databases_text(f->json);
    char *errors = errors_text(f);
    bool ready = json_flag(f->json, "ready");

    if (!usable(f)) {
        add_unknown(t, http, id);
    } else {
        long long lag = lag_of(f, committed);

        table_cell(t, COLOUR_NONE, "%lld", json_number(f->json, "node_id", 0));
        table_cell(t, COLOUR_NONE, "%s", own_address(f->json));
        table_cell(t, COLOUR_NONE, "%s", json_text(f->json, "raft_state", "?"));
        table_cell(t, COLOUR_NONE, "%lld", json_number(f->json, "term", 0));
        table_cell(t, COLOUR_NONE, "%lld",
                   json_number(f->json, "commit_index", 0));
        table_cell(t, COLOUR_NONE, "%lld",
                   json_number(f->json, "last_applied", 0));
        table_cell(t, COLOUR_NONE, "%lld", lag);
        table_cell(t, COLOUR_NONE, "%s", databases);
        table_cell(t, ready ? COLOUR_GOOD : COLOUR_BAD, ready ? "yes" : "no");
    }
    table_cell(t, errors[0] != '\0' ? COLOUR_BAD : COLOUR_NONE, "%s", errors);
    free(databases);
    free(errors);
}

static void show_table(const struct fetch *f, const struct targets *t,
                       long long committed)
{
    static const char *const headers[] = {
        "NODE",    "ADDRESS", "ROLE",           "TERM",  "INDEX",
        "APPLIED", "LAG",     "DATABASES/TXID", "READY", "ERRORS"};
    struct table table;

    table_init(&table, 10, headers);
    for (unsigned i = 0; i < t->n; i++) {
        add_row(&table, &f[i], t->http[i], t->id[i], committed);
    }
    table_print(&table, stdout);
    table_close(&table);
}

static void show_json(const struct fetch *f, const struct targets *t,
                      long long committed, bool healthy)
{
    json_t *nodes = must(json_array());
    json_t *doc;

    for (unsigned i = 0; i < t->n; i++) {
        char *errors = errors_text(&f[i]);
        bool ok = usable(&f[i]);

        json_array_append_new(
            nodes,
            must(json_pack("{s:s, s:b, s:o, s:o, s:O?}", "http", t->http[i],
                           "reachable", f[i].code != 0, "errors",
                           errors[0] != '\0' ? json_string(errors)
                                             : json_null(),
                           "lag",
                           ok ? json_integer(lag_of(&f[i], committed))
                              : json_null(),
                           "status", ok ? f[i].json : NULL)));
        free(errors);
    }
    doc = must(json_pack("{s:b, s:o}", "healthy", healthy, "nodes", nodes));
    json_dumpf(doc, stdout, JSON_DUMP_FLAGS);
    putchar('\n');
    json_decref(doc);
}

/* All of the nodes' documents, judged together. */
static int judge(const struct fetch *f, unsigned n, long long *committed)
{
    unsigned n_reached = 0, n_ready = 0;

    *committed = 0;
    for (unsigned i = 0; i < n; i++) {
        long long index = json_number(f[i].json, "commit_index", 0);

        n_reached += f[i].code != 0;
        n_ready += usable(&f[i]) && json_flag(f[i].json, "ready");
        *committed = index > *committed ? index : *committed;
    }
    return n_reached == 0 ? CLI_UNREACHABLE
           : n_ready == n ? CLI_OK
                          : CLI_REFUSED;
}

int cmd_status(int argc, char **argv)
{
    struct fetch f[MEMBERS_MAX];
    struct targets t;
    struct args a;
    long long committed;
    int rc = args_parse(&a, argc, argv, ARG_DIR | ARG_NODES | ARG_OUTPUT,
                        "status", usage);

    if (rc != -1) {
        return rc;
    }
    rc = targets_find(&t, &a);
    if (rc != CLI_OK) {
        targets_close(&t);
        return rc;
    }
    for (unsigned i = 0; i < t.n; i++) {
        fetch_init(&f[i], t.http[i], "/status");
    }
    fetch_all(f, t.n);
    rc = judge(f, t.n, &committed);
    if (a.json) {
        show_json(f, &t, committed, rc == CLI_OK);
    } else {
        show_table(f, &t, committed);
    }
    for (unsigned i = 0; i < t.n; i++) {
        fetch_close(&f[i]);
    }
    targets_close(&t);
    return rc;
}
