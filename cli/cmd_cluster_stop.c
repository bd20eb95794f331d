/* flotilla cluster stop: end the processes that `cluster start` started, and
 * leave their data. A node that is asked to stop hands over and drains; SIGKILL
 * is safe too, but the others notice only after an election timeout. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/layout.h"
#include "cli/process.h"

#define STOP_S 35 /* draining and handing over take a node some seconds */
#define POLL_MS 20

static const char usage[] =
    "usage: flotilla cluster stop [--dir D] [--force] [--timeout S]\n"
    "\n"
    "Stop the nodes of the cluster in D (default ./run) and keep their data;\n"
    "'flotilla cluster start' starts them again.\n"
    "\n"
    "  --dir D      where the cluster is\n"
    "  --force      do not ask: SIGKILL instead of SIGTERM. Nothing that was\n"
    "               acknowledged is lost\n"
    "  --timeout S  wait so many seconds for their end (default 35)\n"
    "\n"
    "Exit code 0 if none runs any more, 4 if one still does.\n";

/* flotillad is only needed to recognise a script that stands for it. */
static unsigned count_running(const struct layout *l, const char *flotillad,
                              pid_t *pids)
{
    unsigned n = 0;

    for (unsigned i = 1; i <= l->nodes; i++) {
        pids[i] = node_process(l, i, flotillad);
        n += pids[i] > 0;
    }
    return n;
}

static int signal_all(const struct layout *l, const pid_t *pids, int sig)
{
    int rc = CLI_OK;

    for (unsigned i = 1; i <= l->nodes; i++) {
        if (pids[i] > 0 && kill(pids[i], sig) != 0 && errno != ESRCH) {
            complain("node %u, process %d: %s", i, (int)pids[i],
                     strerror(errno));
            rc = CLI_REFUSED;
        }
    }
    return rc;
}

static int wait_stopped(const struct layout *l, const char *flotillad,
                        pid_t *pids, unsigned timeout_s)
{
    uint64_t deadline = now_ms() + (uint64_t)timeout_s * 1000;

    while (count_running(l, flotillad, pids) > 0 && now_ms() < deadline) {
        sleep_ms(POLL_MS);
    }
    if (count_running(l, flotillad, pids) == 0) {
        return CLI_OK;
    }
    for (unsigned i = 1; i <= l->nodes; i++) {
        if (pids[i] > 0) {
            complain("node %u, process %d, still runs after %u s; "
                     "'%s cluster stop --force' ends it",
                     i, (int)pids[i], timeout_s, cli_program);
        }
    }
    return CLI_TIMEOUT;
}

static int stop(const struct layout *l, const char *flotillad, bool force,
                unsigned timeout_s)
{
    pid_t pids[MEMBERS_MAX + 1];
    unsigned n = count_running(l, flotillad, pids);
    int rc = signal_all(l, pids, force ? SIGKILL : SIGTERM);

    if (rc == CLI_OK) {
        rc = wait_stopped(l, flotillad, pids, timeout_s);
    }
    for (unsigned i = 1; i <= l->nodes && rc == CLI_OK; i++) {
        node_forget(l, i);
    }
    if (rc == CLI_OK && n == 0) {
        printf("no node was running in %s\n", l->dir);
    } else if (rc == CLI_OK) {
        printf("stopped %u of %u nodes; their data stays in %s\n", n, l->nodes,
               l->dir);
    }
    return rc;
}

int cmd_cluster_stop(int argc, char **argv)
{
    unsigned timeout_s = STOP_S;
    const char *dir;
    const char *script = getenv("FLOTILLAD");
    char *flotillad;
    struct layout l;
    struct args a;
    int rc = args_parse(&a, argc, argv, ARG_DIR | ARG_FORCE | ARG_TIMEOUT,
                        "cluster stop", usage);

    if (rc != -1) {
        return rc;
    }
    if (args_timeout(&a, "cluster stop", &timeout_s) != CLI_OK) {
        return CLI_USAGE;
    }
    dir = a.dir != NULL ? a.dir : LAYOUT_DIR;
    rc = layout_read(&l, dir);
    if (rc == -1) {
        complain("no cluster in %s; say where with --dir", dir);
        return CLI_USAGE;
    }
    if (rc != CLI_OK) {
        return rc;
    }
    flotillad = script != NULL ? realpath(script, NULL) : NULL;
    rc = stop(&l, flotillad, a.force, timeout_s);
    free(flotillad);
    return rc;
}
