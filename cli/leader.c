/* Finding the leader: ask all, believe the newest term, follow one hint. */
#include "cli/leader.h"

#include <stdlib.h>
#include <string.h>

#include "cli/layout.h"

static const char sync_path[] = "/_raft/sync-status";

int get_document(const char *http, const char *path, json_t **doc)
{
    struct fetch f;
    int rc = CLI_OK;

    fetch_init(&f, http, path);
    fetch_all(&f, 1);
    if (f.code == 0) {
        complain("%s: %s", http, f.error);
        rc = f.timed_out ? CLI_TIMEOUT : CLI_UNREACHABLE;
    } else if (!json_is_object(f.json)) {
        complain("%s: HTTP %ld, and no document that this program knows", http,
                 f.code);
        rc = CLI_UNREACHABLE;
    } else {
        *doc = json_incref(f.json);
    }
    fetch_close(&f);
    return rc;
}

/* A deposed leader may still believe in itself: the newest term is right. */
static const struct fetch *newest_leader(const struct fetch *f, unsigned n)
{
    const struct fetch *best = NULL;

    for (unsigned i = 0; i < n; i++) {
        if (json_flag(f[i].json, "is_leader") &&
            (best == NULL || json_number(f[i].json, "term", 0) >
                                 json_number(best->json, "term", 0))) {
            best = &f[i];
        }
    }
    return best;
}

static const char *hint(const struct fetch *f, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const char *http = json_text(f[i].json, "leader.http", NULL);

        if (http != NULL) {
            return http;
        }
    }
    return NULL;
}

static int follow_hint(const char *where, char **http, json_t **sync)
{
    json_t *doc = NULL;
    int rc = get_document(where, sync_path, &doc);

    if (rc != CLI_OK) {
        return rc;
    }
    if (!json_flag(doc, "is_leader")) {
        json_decref(doc);
        complain("%s was said to lead, and does not: an election; try again",
                 where);
        return CLI_REFUSED;
    }
    *http = format("%s", where);
    *sync = doc;
    return CLI_OK;
}

static int choose(const struct targets *t, const struct fetch *f, char **http,
                  json_t **sync)
{
    const struct fetch *leader = newest_leader(f, t->n);
    const char *where = hint(f, t->n);
    unsigned n_reached = 0;

    if (leader != NULL) {
        *http = format("%s", t->http[leader - f]);
        *sync = json_incref(leader->json);
        return CLI_OK;
    }
    if (where != NULL) {
        return follow_hint(where, http, sync);
    }
    for (unsigned i = 0; i < t->n; i++) {
        n_reached += f[i].code != 0;
        if (f[i].code == 0) {
            complain("%s: %s", t->http[i], f[i].error);
        }
    }
    if (n_reached == 0) {
        return CLI_UNREACHABLE;
    }
    complain("no leader: the cluster has no majority, or elects one now; see "
             "'%s status'",
             cli_program);
    return CLI_REFUSED;
}

static int find_among(const struct targets *t, char **http, json_t **sync)
{
    struct fetch f[MEMBERS_MAX];
    int rc;

    for (unsigned i = 0; i < t->n; i++) {
        fetch_init(&f[i], t->http[i], sync_path);
    }
    fetch_all(f, t->n);
    rc = choose(t, f, http, sync);
    for (unsigned i = 0; i < t->n; i++) {
        fetch_close(&f[i]);
    }
    return rc;
}

int leader_find(const struct args *a, char **http, json_t **sync)
{
    struct args only = {.nodes = a->leader};
    struct targets t;
    int rc = targets_find(&t, a->leader != NULL ? &only : a);

    if (rc == CLI_OK) {
        rc = find_among(&t, http, sync);
    }
    targets_close(&t);
    return rc;
}
