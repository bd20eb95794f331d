/* flotilla cluster start: a cluster on this machine, for a try or for tests.
 *
 * Ports are looked at before anything is made, so the commonest failure leaves
 * nothing behind. A node that ends while it starts (its own one line is shown)
 * ends the command, and the nodes that this call started are stopped again. A
 * node that runs but does not become ready in time is left running: it may be
 * reading a large database, and what it waits for is shown.
 *
 * A directory that a node has begun to use is never removed: what is in it may
 * have been acknowledged to somebody. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/process.h"
#include "cli/start.h"

#define READY_S 30
#define POLL_MS 100
#define STOP_MS 10000

static const char usage[] =
    "usage: flotilla cluster start [--nodes N] [--base-port P] [--dir D]\n"
    "                              [--timeout S]\n"
    "\n"
    "Start N nodes on this machine, each a flotillad process with its own\n"
    "directory D/node1 … D/nodeN, and wait until all are ready. In a\n"
    "directory that has a cluster, start those of its nodes that do not run.\n"
    "\n"
    "  --nodes N      how many, 1 to 9 (default 3)\n"
    "  --base-port P  node I uses P+10·(I-1), and one port above for HTTP\n"
    "                 (default 7400)\n"
    "  --dir D        where (default ./run)\n"
    "  --timeout S    wait so many seconds until all are ready (default 30)\n"
    "\n"
    "FLOTILLAD in the environment says which flotillad to run. FLOTILLA_*\n"
    "variables are settings of the nodes; see flotillad(8).\n";

/* ---- What is asked for --------------------------------------------------- */

static int wanted(const struct args *a, struct layout *l)
{
    l->nodes = LAYOUT_NODES;
    l->base_port = LAYOUT_BASE_PORT;
    if (a->nodes != NULL &&
        !parse_number(a->nodes, 1, MEMBERS_MAX, &l->nodes)) {
        complain("cluster start: --nodes takes a number from 1 to %d",
                 MEMBERS_MAX);
        return CLI_USAGE;
    }
    if (a->base_port != NULL &&
        !parse_number(a->base_port, 1, 65535, &l->base_port)) {
        complain("cluster start: --base-port takes a number from 1 to 65535");
        return CLI_USAGE;
    }
    if (layout_port(l, l->nodes) + 1 > 65535) {
        complain("cluster start: --base-port %u leaves no room for the ports "
                 "of %u nodes",
                 l->base_port, l->nodes);
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int conflict(const char *option, unsigned has, unsigned asked,
                    const char *dir)
{
    complain("cluster start: %s %u, but the cluster in %s has %u; leave the "
             "option out, or choose another --dir",
             option, asked, dir, has);
    return CLI_USAGE;
}

/* What is there counts; options may only say the same. */
static int plan(struct start *s, const struct args *a,
                const struct layout *asked)
{
    const char *dir = a->dir != NULL ? a->dir : LAYOUT_DIR;
    int rc = layout_read(&s->l, dir);

    s->fresh = rc == -1;
    if (s->fresh) {
        s->l.nodes = asked->nodes;
        s->l.base_port = asked->base_port;
        return CLI_OK;
    }
    if (rc == CLI_OK && a->nodes != NULL && asked->nodes != s->l.nodes) {
        return conflict("--nodes", s->l.nodes, asked->nodes, dir);
    }
    if (rc == CLI_OK && a->base_port != NULL &&
        asked->base_port != s->l.base_port) {
        return conflict("--base-port", s->l.base_port, asked->base_port, dir);
    }
    return rc;
}

/* ---- Before anything is made --------------------------------------------- */

static int port_free(unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1, rc = 0;

    if (fd < 0) {
        return 0; /* the daemon will say it better */
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        listen(fd, 1) != 0) {
        rc = errno;
    }
    close(fd);
    return rc;
}

static int check_ports(const struct start *s)
{
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        for (unsigned k = 0; k < 2 && s->node[i].pid == 0; k++) {
            unsigned port = layout_port(&s->l, i) + k;
            int error = port_free(port);

            if (error != 0) {
                complain("127.0.0.1:%u, which node %u needs for %s: %s; %s",
                         port, i, k == 0 ? "its peers" : "HTTP",
                         strerror(error),
                         s->fresh ? "choose other ports with --base-port"
                                  : "stop what uses it");
                return CLI_USAGE;
            }
        }
    }
    return CLI_OK;
}

static void find_running(struct start *s)
{
    for (unsigned i = 1; !s->fresh && i <= s->l.nodes; i++) {
        s->node[i].pid = node_process(&s->l, i, s->flotillad);
    }
}

/* ---- Making directories -------------------------------------------------- */

static int make_dir(const char *path, bool *made)
{
    if (mkdir(path, 0777) == 0) {
        *made = true;
        return CLI_OK;
    }
    if (errno == EEXIST) {
        return CLI_OK;
    }
    complain("%s: %s; choose another with --dir", path, strerror(errno));
    return CLI_USAGE;
}

static int make_dirs(const char *dir, bool *made)
{
    char *path = must(strdup(dir));
    bool ignored;
    int rc = CLI_OK;

    for (char *p = path + 1; rc == CLI_OK && *p != '\0'; p++) {
        if (*p == '/') {
            *p = '\0';
            rc = make_dir(path, &ignored);
            *p = '/';
        }
    }
    free(path);
    return rc == CLI_OK ? make_dir(dir, made) : rc;
}

/* Make it, and let one start at a time work in it. */
static int open_dir(struct start *s, const char *dir)
{
    int rc = make_dirs(dir, &s->made);

    if (rc != CLI_OK) {
        return rc;
    }
    s->lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->lock < 0) {
        complain("%s: %s; choose another with --dir", dir, strerror(errno));
        return CLI_USAGE;
    }
    if (flock(s->lock, LOCK_EX | LOCK_NB) != 0) {
        complain("%s: another 'cluster start' is at work there", dir);
        return CLI_REFUSED;
    }
    return CLI_OK;
}

static int make_node_dirs(struct start *s)
{
    int rc = CLI_OK;

    for (unsigned i = 1; rc == CLI_OK && i <= s->l.nodes; i++) {
        char *dir = layout_node_dir(&s->l, i);

        rc = make_dir(dir, &s->node[i].made);
        free(dir);
    }
    return rc;
}

/* Nothing in it but the log of a node that ended at once? */
static bool is_unused(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *e;
    bool unused = dir != NULL;

    while (unused && (e = readdir(dir)) != NULL) {
        unused = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
                 strcmp(e->d_name, "flotillad.log") == 0;
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return unused;
}

/* After a failure: take away what this call made and no node has used. */
static void clean_up(const struct start *s)
{
    bool all = s->fresh;

    for (unsigned i = 1; i <= s->l.nodes; i++) {
        char *dir = layout_node_dir(&s->l, i);
        char *log = layout_file(&s->l, i, "flotillad.log");

        if (s->node[i].made && is_unused(dir)) {
            unlink(log);
            rmdir(dir);
        }
        all = all && access(dir, F_OK) != 0;
        free(dir);
        free(log);
    }
    if (all) {
        char *file = format("%s/cluster.json", s->l.dir);

        unlink(file);
        free(file);
    } else if (s->fresh) {
        complain("%s keeps what the nodes have made; remove it to begin anew",
                 s->l.dir);
    }
    if (all && s->made) {
        rmdir(s->l.dir);
    }
}

/* ---- Starting and waiting ------------------------------------------------ */

static off_t log_size(const struct layout *l, unsigned i)
{
    char *path = layout_file(l, i, "flotillad.log");
    struct stat st;
    off_t n = stat(path, &st) == 0 ? st.st_size : 0;

    free(path);
    return n;
}

static int spawn_all(struct start *s)
{
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        struct start_node *node = &s->node[i];
        pid_t pid;

        if (node->pid != 0) {
            continue;
        }
        node->log_from = log_size(&s->l, i);
        pid = node_spawn(&s->l, i, s->flotillad);
        if (pid < 0) {
            return CLI_USAGE;
        }
        node->pid = pid;
        node->ours = true;
    }
    return CLI_OK;
}

/* Has one of our children ended? Says so, and gives the exit code. */
static int check_children(struct start *s)
{
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        struct start_node *node = &s->node[i];
        int status;

        if (!node->ours || node->pid == 0 ||
            waitpid(node->pid, &status, WNOHANG) != node->pid) {
            continue;
        }
        node->pid = 0;
        node_forget(&s->l, i);
        if (WIFEXITED(status)) {
            complain("node %u ended with exit code %d:", i,
                     WEXITSTATUS(status));
        } else {
            complain("node %u was ended by signal %d (%s):", i,
                     WTERMSIG(status), strsignal(WTERMSIG(status)));
        }
        start_show_log(s, i);
        return WIFEXITED(status) && WEXITSTATUS(status) == 2 ? CLI_USAGE
                                                             : CLI_REFUSED;
    }
    return CLI_OK;
}

static bool all_ready(const struct start *s)
{
    struct fetch f[MEMBERS_MAX + 1];
    bool ready = true;

    start_fetch(s, f, "/readyz");
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        ready = ready && f[i].code == 200;
    }
    start_fetch_close(s, f);
    return ready;
}

static int wait_ready(struct start *s)
{
    uint64_t deadline = now_ms() + (uint64_t)s->timeout_s * 1000;

    while (now_ms() < deadline) {
        int rc = check_children(s);

        if (rc != CLI_OK) {
            return rc;
        }
        if (all_ready(s)) {
            return CLI_OK;
        }
        sleep_ms(POLL_MS);
    }
    start_say_why_not_ready(s);
    return CLI_TIMEOUT; /* for cmd_cluster_start only: leave them running */
}

/* Our own children, which nobody has been told of yet. */
static void stop_ours(struct start *s)
{
    uint64_t deadline = now_ms() + STOP_MS;

    for (unsigned i = 1; i <= s->l.nodes; i++) {
        if (s->node[i].ours && s->node[i].pid != 0) {
            kill(s->node[i].pid, SIGTERM);
        }
    }
    for (unsigned i = 1; i <= s->l.nodes; i++) {
        struct start_node *node = &s->node[i];

        if (!node->ours || node->pid == 0) {
            continue;
        }
        while (waitpid(node->pid, NULL, WNOHANG) == 0) {
            if (now_ms() >= deadline) {
                kill(node->pid, SIGKILL); /* always safe for a node */
                waitpid(node->pid, NULL, 0);
                break;
            }
            sleep_ms(20);
        }
        node->pid = 0;
        node_forget(&s->l, i);
    }
}

/* ---- All of it ----------------------------------------------------------- */

/* What this starts, it stops again on failure. */
static int bring_up(struct start *s)
{
    int rc = check_ports(s);

    if (rc == CLI_OK) {
        rc = make_node_dirs(s);
    }
    if (rc == CLI_OK && s->fresh) {
        rc = layout_write(&s->l);
    }
    if (rc == CLI_OK) {
        rc = spawn_all(s);
    }
    if (rc == CLI_OK) {
        rc = wait_ready(s);
    }
    if (rc == CLI_TIMEOUT) {
        return CLI_REFUSED;
    }
    if (rc != CLI_OK) {
        stop_ours(s);
        clean_up(s);
    }
    return rc;
}

static int run(struct start *s, const struct args *a)
{
    struct layout asked;
    int rc = wanted(a, &asked);

    if (rc == CLI_OK) {
        rc = args_timeout(a, "cluster start", &s->timeout_s);
    }
    if (rc != CLI_OK) {
        return rc;
    }
    s->flotillad = find_flotillad();
    if (s->flotillad == NULL) {
        return CLI_USAGE;
    }
    rc = open_dir(s, a->dir != NULL ? a->dir : LAYOUT_DIR);
    if (rc != CLI_OK) {
        return rc;
    }
    rc = plan(s, a, &asked);
    if (rc != CLI_OK) {
        return rc;
    }
    find_running(s);
    rc = bring_up(s);
    if (rc == CLI_OK) {
        start_show_nodes(s);
        start_show_next(s, a);
    }
    return rc;
}

int cmd_cluster_start(int argc, char **argv)
{
    struct start s = {.lock = -1, .timeout_s = READY_S};
    struct args a;
    int rc = args_parse(&a, argc, argv,
                        ARG_DIR | ARG_NODES | ARG_BASE_PORT | ARG_TIMEOUT,
                        "cluster start", usage);

    if (rc != -1) {
        return rc;
    }
    rc = run(&s, &a);
    if (s.lock >= 0) {
        close(s.lock);
    }
    free(s.flotillad);
    return rc;
}
