/* What `cluster start` is doing, and how it tells of it (start_report.c). */
#ifndef FLOTILLA_CLI_START_H
#define FLOTILLA_CLI_START_H

#include <sys/types.h>

#include "cli/fetch.h"
#include "cli/layout.h"

struct start
{
    struct layout l;
    bool fresh; /* there was no cluster.json */
    bool made;  /* nor its directory */
    int lock;   /* descriptor of the directory; -1 */
    unsigned timeout_s;
    char *flotillad;
    struct start_node
    {
        pid_t pid; /* 0: not running */
        bool ours; /* started by this call, so our child */
        bool made; /* its directory was made by this call */
        off_t log_from;
    } node[MEMBERS_MAX + 1]; /* by number, from 1 */
};

/* Ask every node for path: f[1] … f[nodes]. */
void start_fetch(const struct start *s, struct fetch *f, const char *path);
void start_fetch_close(const struct start *s, struct fetch *f);

/* On stdout: the nodes, and what to type next. */
void start_show_nodes(const struct start *s);
void start_show_next(const struct start *s, const struct args *a);

/* On stderr: the last lines that node i has written since this call started
 * it; and what keeps the cluster from being ready. */
void start_show_log(const struct start *s, unsigned i);
void start_say_why_not_ready(const struct start *s);

#endif
