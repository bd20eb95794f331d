/* How `cluster start` tells what it did; see start.h. */
#include "cli/start.h"

#include <stdlib.h>
#include <string.h>

#include "cli/process.h"

#define TAIL_LINES 5

void start_fetch(const struct start *s, struct fetch *f, const char *path)
{
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        char *http = layout_http(&s->l, i);

        fetch_init(&f[i], http, path);
        free(http);
    }
    fetch_all(f + 1, s->l.nodes);
}

void start_fetch_close(const struct start *s, struct fetch *f)
{
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        fetch_close(&f[i]);
    }
}

/* ---- What went well ------------------------------------------------------ */

void start_show_nodes(const struct start *s)
{
    static const char *const headers[] = {"NODE", "DIRECTORY", "ADDRESS",
                                          "HTTP", "ROLE"};
    struct fetch f[MEMBERS_MAX + 1];
    struct table t;

    table_init(&t, 5, headers);
    start_fetch(s, f, "/status");
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        char *dir = layout_node_dir(&s->l, i);
        char *address = layout_address(&s->l, i);
        char *http = layout_http(&s->l, i);

        table_cell(&t, COLOUR_NONE, "%u", i);
        table_cell(&t, COLOUR_NONE, "%s", dir);
        table_cell(&t, COLOUR_NONE, "%s", address);
        table_cell(&t, COLOUR_NONE, "%s", http);
        table_cell(&t, COLOUR_NONE, "%s",
                   json_text(f[i].json, "raft_state", "unknown"));
        free(dir);
        free(address);
        free(http);
    }
    table_print(&t, stdout);
    table_close(&t);
    start_fetch_close(s, f);
}

/* As the shell and sqlite3's dot commands take it. */
static char *quoted(const char *path)
{
    return strpbrk(path, " ;&|$()<>*?#\"\\") != NULL ? format("'%s'", path)
                                                   : format("%s", path);
}

void start_show_next(const struct start *s, const struct args *a)
{
    char *library = find_extension();
    char *extension = quoted(library);
    char *file = format("%s/node1/app.db", s->l.dir);
    char *first = quoted(file);
    char *dir = quoted(a->dir != NULL ? a->dir : "");
    const char *option = a->dir != NULL ? " --dir " : "";

    printf("\nWrite on one node:\n\n"
           "  sqlite3\n"
           "  .load %s\n"
           "  .open %s\n"
           "  CREATE TABLE t(x); INSERT INTO t VALUES('hello');\n",
           extension, first);
    free(file);
    free(first);
    file = format("%s/node%u/app.db", s->l.dir, s->l.nodes > 1 ? 2 : 1);
    first = quoted(file);
    printf("\nRead %s, look at the cluster, and stop it:\n\n"
           "  sqlite3 %s 'SELECT * FROM t'\n"
           "  curl http://127.0.0.1:%u/_raft/health\n"
           "  %s status%s%s\n"
           "  %s cluster stop%s%s\n",
           s->l.nodes > 1 ? "on another" : "it back", first,
           layout_port(&s->l, 1) + 1, cli_program, option, dir, cli_program,
           option, dir);
    free(file);
    free(first);
    free(library);
    free(extension);
    free(dir);
}

/* ---- What did not -------------------------------------------------------- */

/* The last lines that node i has written since it was started. */
void start_show_log(const struct start *s, unsigned i)
{
    char *path = layout_file(&s->l, i, "flotillad.log");
    FILE *f = fopen(path, "re");
    char *lines[TAIL_LINES] = {NULL};
    char *line = NULL;
    size_t cap = 0;
    unsigned n = 0;

    if (f != NULL && fseeko(f, s->node[i].log_from, SEEK_SET) == 0) {
        while (getline(&line, &cap, f) > 0) {
            free(lines[n % TAIL_LINES]);
            lines[n++ % TAIL_LINES] = must(strdup(line));
        }
    }
    for (unsigned k = n > TAIL_LINES ? n - TAIL_LINES : 0; k < n; k++) {
        fprintf(stderr, "  %s", lines[k % TAIL_LINES]);
    }
    for (unsigned k = 0; k < TAIL_LINES; k++) {
        free(lines[k]);
    }
    if (f != NULL) {
        fclose(f);
    }
    free(line);
    free(path);
}

void start_say_why_not_ready(const struct start *s)
{
    struct fetch f[MEMBERS_MAX + 1];

    complain("not ready after %u s; the nodes are left running:",
             s->timeout_s);
    start_fetch(s, f, "/status");
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        const char *why = f[i].code == 0 ? f[i].error
                                         : json_text(f[i].json, "ready_reason",
                                                     "no reason given");

        if (f[i].code != 0 && json_flag(f[i].json, "ready")) {
            continue;
        }
        complain("node %u: %s", i, why[0] != '\0' ? why : "starting");
        start_show_log(s, i);
    }
    start_fetch_close(s, f);
    complain("see '%s status --dir %s', and flotillad.log of each node",
             cli_program, s->l.dir);
}
