/* Clusters on this machine: names, ports and cluster.json; see layout.h. */
#include "cli/layout.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int bad_file(const char *path, const char *why)
{
    complain("%s: %s; remove its directory to begin anew", path, why);
    return CLI_USAGE;
}

static int read_json(struct layout *l, const char *path)
{
    json_error_t error;
    json_t *v = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    json_int_t nodes = json_integer_value(json_object_get(v, "nodes"));
    json_int_t port = json_integer_value(json_object_get(v, "base_port"));

    if (v == NULL) {
        return bad_file(path, error.text);
    }
    json_decref(v);
    if (nodes < 1 || nodes > MEMBERS_MAX || port < 1 || port > 65535) {
        return bad_file(path, "not a cluster of this program");
    }
    l->nodes = (unsigned)nodes;
    l->base_port = (unsigned)port;
    return CLI_OK;
}

int layout_read(struct layout *l, const char *dir)
{
    char *path = NULL;
    int rc;

    if (realpath(dir, l->dir) == NULL) {
        if (errno == ENOENT) {
            return -1;
        }
        complain("%s: %s", dir, strerror(errno));
        return CLI_USAGE;
    }
    path = format("%s/cluster.json", l->dir);
    if (access(path, R_OK) == 0) {
        rc = read_json(l, path);
    } else if (errno == ENOENT) {
        rc = -1;
    } else {
        rc = bad_file(path, strerror(errno));
    }
    free(path);
    return rc;
}

int layout_write(const struct layout *l)
{
    char *path = format("%s/cluster.json", l->dir);
    char *tmp = format("%s/cluster.json.new", l->dir);
    json_t *v = must(json_pack("{s:i, s:i}", "nodes", (int)l->nodes,
                               "base_port", (int)l->base_port));
    int rc = CLI_OK;

    if (json_dump_file(v, tmp, JSON_INDENT(2)) != 0 ||
        rename(tmp, path) != 0) {
        complain("%s: %s; choose another with --dir", path, strerror(errno));
        unlink(tmp);
        rc = CLI_USAGE;
    }
    json_decref(v);
    free(path);
    free(tmp);
    return rc;
}

unsigned layout_port(const struct layout *l, unsigned i)
{
    assert(i >= 1 && i <= l->nodes);
    return l->base_port + LAYOUT_PORT_STEP * (i - 1);
}

char *layout_node_dir(const struct layout *l, unsigned i)
{
    return format("%s/node%u", l->dir, i);
}

char *layout_file(const struct layout *l, unsigned i, const char *name)
{
    return format("%s/node%u/%s", l->dir, i, name);
}

char *layout_address(const struct layout *l, unsigned i)
{
    return format("127.0.0.1:%u", layout_port(l, i));
}

char *layout_http(const struct layout *l, unsigned i)
{
    return format("127.0.0.1:%u", layout_port(l, i) + 1);
}

char *layout_members(const struct layout *l)
{
    char *list = must(strdup(""));

    for (unsigned i = 1; i <= l->nodes; i++) {
        char *longer = format("%s%s%u=127.0.0.1:%u", list, i > 1 ? "," : "", i,
                              layout_port(l, i));

        free(list);
        list = longer;
    }
    return list;
}

/* ---- Which nodes --------------------------------------------------------- */

static int targets_of_list(struct targets *t, const char *list)
{
    while (list[0] != '\0') {
        size_t n = strcspn(list, ",");

        if (n > 0 && t->n == MEMBERS_MAX) {
            complain("--nodes: at most %d of them", MEMBERS_MAX);
            return CLI_USAGE;
        }
        if (n > 0) {
            t->http[t->n++] = format("%.*s", (int)n, list);
        }
        list += n + (list[n] == ',');
    }
    if (t->n == 0) {
        complain("--nodes: give HOST:PORT of each node's HTTP, separated by "
                 "commas");
        return CLI_USAGE;
    }
    return CLI_OK;
}

int targets_find(struct targets *t, const struct args *a)
{
    const char *dir = a->dir != NULL ? a->dir : LAYOUT_DIR;
    struct layout l;
    int rc;

    *t = (struct targets){0};
    if (a->nodes != NULL && a->dir != NULL) {
        complain("give --dir or --nodes, not both");
        return CLI_USAGE;
    }
    if (a->nodes != NULL) {
        return targets_of_list(t, a->nodes);
    }
    rc = layout_read(&l, dir);
    if (rc == -1) {
        complain("no cluster in %s: say where with --dir DIR or --nodes "
                 "HOST:PORT,…, or make one with '%s cluster start'",
                 dir, cli_program);
        return CLI_USAGE;
    }
    for (unsigned i = 1; rc == CLI_OK && i <= l.nodes; i++) {
        t->id[t->n] = i;
        t->http[t->n++] = layout_http(&l, i);
    }
    return rc;
}

void targets_close(struct targets *t)
{
    for (unsigned i = 0; i < t->n; i++) {
        free(t->http[i]);
    }
    *t = (struct targets){0};
}
