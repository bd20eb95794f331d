/* A cluster that this command made on this machine, and which nodes a command
 * is about.
 *
 *   DIR/cluster.json          {"nodes": 3, "base_port": 7400}
 *   DIR/node1 …               each node's own directory
 *   DIR/node1/flotillad.log   its output
 *   DIR/node1/flotillad.pid   its process, while it runs
 *
 * Node I listens for peers on base_port + 10·(I−1), and serves HTTP one port
 * above, on 127.0.0.1. */
#ifndef FLOTILLA_CLI_LAYOUT_H
#define FLOTILLA_CLI_LAYOUT_H

#include <limits.h>

#include "cli/cli.h"
#include "daemon/settings.h"

#define LAYOUT_DIR "./run"
#define LAYOUT_NODES 3
#define LAYOUT_BASE_PORT 7400
#define LAYOUT_PORT_STEP 10

struct layout
{
    char dir[PATH_MAX]; /* absolute */
    unsigned nodes, base_port;
};

/* Read DIR/cluster.json. CLI_OK; CLI_USAGE when it cannot be used, after a
 * complaint; -1, silently, when there is none. */
int layout_read(struct layout *l, const char *dir);
int layout_write(const struct layout *l);

/* Malloc'd strings. */
char *layout_node_dir(const struct layout *l, unsigned i);
char *layout_file(const struct layout *l, unsigned i, const char *name);
char *layout_address(const struct layout *l, unsigned i);
char *layout_http(const struct layout *l, unsigned i);
char *layout_members(const struct layout *l);
unsigned layout_port(const struct layout *l, unsigned i);

/* The nodes a command is about: those of --nodes, else of the cluster in --dir,
 * else of the one in ./run. CLI_OK or CLI_USAGE after a complaint. */
struct targets
{
    unsigned n;
    char *http[MEMBERS_MAX];    /* owned */
    unsigned id[MEMBERS_MAX];   /* 0: not known */
};
int targets_find(struct targets *t, const struct args *a);
void targets_close(struct targets *t);

#endif
