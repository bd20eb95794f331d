/* flotilla sync-status: how far each follower is, as the leader sees it. */
#include <stdlib.h>
#include <string.h>

#include "cli/leader.h"

static const char usage[] =
    "usage: flotilla sync-status [--dir D | --nodes HOST:PORT,…]\n"
    "                            [-o table|json]\n"
    "\n"
    "Find the leader, and show what it knows of each follower.\n"
    "\n"
    "  --dir D          the cluster that 'flotilla cluster start' made in D\n"
    "                   (default ./run)\n"
    "  --nodes LIST     HTTP addresses of some of its nodes\n"
    "  -o, --output F   table (default) or json\n"
    "\n"
    "Exit code 0 if all followers are healthy, 1 if not or there is no\n"
    "leader, 3 if no node answers.\n";

/* "app 42, other 7 desynced" */
static char *positions_text(json_t *databases)
{
    char *text = must(strdup(""));
    const char *name;
    json_t *d;

    json_object_foreach(databases, name, d)
    {
        const char *health = json_text(d, "health", "?");
        bool healthy = strcmp(health, "healthy") == 0;
        char *longer =
            format("%s%s%s %s%s%s", text, text[0] != '\0' ? ", " : "", name,
                   json_text(d, "txid", "?"), healthy ? "" : " ",
                   healthy ? "" : health);

        free(text);
        text = longer;
    }
    return text;
}

static enum colour colour_of(const char *health)
{
    return strcmp(health, "healthy") == 0    ? COLOUR_GOOD
           : strcmp(health, "desynced") == 0 ? COLOUR_BAD
                                             : COLOUR_WARN;
}

static void add_row(struct table *t, json_t *m)
{
    const char *health = json_text(m, "health", "unknown");
    char *databases = positions_text(json_at(m, "databases"));
    char *free_space =
        format_bytes((uint64_t)json_number(m, "free_bytes", 0));
    json_t *latency = json_at(m, "last_latency_ms");
    long long contact = json_number(m, "last_contact_ms", -1);

    table_cell(t, COLOUR_NONE, "%lld", json_number(m, "id", 0));
    table_cell(t, COLOUR_NONE, "%s", json_text(m, "address", "?"));
    table_cell(t, colour_of(health), "%s", health);
    table_cell(t, COLOUR_NONE, "%lld",
               json_number(m, "last_replicated_index", 0));
    table_cell(t, COLOUR_NONE, "%lld", json_number(m, "applied_index", 0));
    table_cell(t, COLOUR_NONE, "%lld", json_number(m, "lag", 0));
    table_cell(t, COLOUR_NONE, "%s", databases);
    if (json_is_number(latency)) {
        table_cell(t, COLOUR_NONE, "%.2f ms", json_number_value(latency));
    } else {
        table_cell(t, COLOUR_NONE, "%s", "");
    }
    if (contact >= 0) {
        table_cell(t, COLOUR_NONE, "%lld ms", contact);
    } else {
        table_cell(t, COLOUR_WARN, "never");
    }
    table_cell(t, COLOUR_NONE, "%lld", json_number(m, "pending_count", 0));
    table_cell(t, COLOUR_NONE, "%lld",
               json_number(m, "consecutive_failures", 0));
    table_cell(t, COLOUR_NONE, "%s", free_space);
    free(databases);
    free(free_space);
}

static void show_table(json_t *sync)
{
    static const char *const headers[] = {
        "NODE",    "ADDRESS", "HEALTH",  "REPLICATED", "APPLIED",
        "LAG",     "DATABASES/TXID",     "LATENCY",    "CONTACT",
        "PENDING", "FAILURES", "FREE"};
    json_t *followers = json_at(sync, "followers");
    struct table t;

    printf("leader: node %lld at %s, term %lld, commit index %lld\n",
           json_number(sync, "leader.id", 0),
           json_text(sync, "leader.address", "?"),
           json_number(sync, "term", 0), json_number(sync, "commit_index", 0));
    table_init(&t, 12, headers);
    for (size_t i = 0; i < json_array_size(followers); i++) {
        add_row(&t, json_array_get(followers, i));
    }
    table_print(&t, stdout);
    table_close(&t);
}

static bool all_healthy(json_t *sync)
{
    json_t *followers = json_at(sync, "followers");

    for (size_t i = 0; i < json_array_size(followers); i++) {
        json_t *m = json_array_get(followers, i);

        if (strcmp(json_text(m, "health", ""), "healthy") != 0) {
            return false;
        }
    }
    return true;
}

int cmd_sync_status(int argc, char **argv)
{
    json_t *sync = NULL;
    char *http = NULL;
    struct args a;
    int rc = args_parse(&a, argc, argv, ARG_DIR | ARG_NODES | ARG_OUTPUT,
                        "sync-status", usage);

    if (rc != -1) {
        return rc;
    }
    rc = leader_find(&a, &http, &sync);
    if (rc != CLI_OK) {
        return rc;
    }
    if (a.json) {
        json_dumpf(sync, stdout, JSON_DUMP_FLAGS);
        putchar('\n');
    } else {
        show_table(sync);
    }
    rc = all_healthy(sync) ? CLI_OK : CLI_REFUSED;
    json_decref(sync);
    free(http);
    return rc;
}
