/* The node's directory and the members' identities; see identity.h. */
#include "daemon/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"

#define PATH_BYTES 600
#define LOCK_WAIT_MS 2000

static void path_of(const struct node *n, const char *file, char *out)
{
    snprintf(out, PATH_BYTES, "%s/%s", n->settings.dir, file);
}

static int fail(struct node *n, const char *path, const char *what)
{
    snprintf(n->errmsg, sizeof n->errmsg, "%.300s: %s", path, what);
    return FLO_IO;
}

/* Write a small file so that it is there as a whole or not at all. */
static int write_file(const struct node *n, const char *file, const char *text)
{
    char path[PATH_BYTES], tmp[PATH_BYTES + 8];
    size_t len = strlen(text);
    int fd, ok;

    path_of(n, file, path);
    snprintf(tmp, sizeof tmp, "%s.new", path);
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (fd < 0) {
        return FLO_IO;
    }
    ok = write(fd, text, len) == (ssize_t)len && fsync(fd) == 0;
    ok = close(fd) == 0 && ok && rename(tmp, path) == 0;
    fd = open(n->settings.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        ok = fsync(fd) == 0 && ok;
        close(fd);
    }
    return ok ? FLO_OK : FLO_IO;
}

static int read_file(const struct node *n, const char *file, char *out,
                     size_t max)
{
    char path[PATH_BYTES];
    ssize_t got;
    int fd;

    path_of(n, file, path);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? FLO_NOTFOUND : FLO_IO;
    }
    got = read(fd, out, max - 1);
    close(fd);
    if (got < 0) {
        return FLO_IO;
    }
    out[got] = '\0';
    return FLO_OK;
}

/* A predecessor that was killed keeps its lock until the kernel has finished
 * its last disk writes, so wait a little. */
static bool lock_within(int fd, unsigned ms)
{
    for (unsigned waited = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; waited += 10) {
        if (waited >= ms) {
            return false;
        }
        usleep(10000);
    }
    return true;
}

static int lock_directory(struct node *n)
{
    char path[PATH_BYTES];

    if (mkdir(n->settings.dir, 0750) != 0 && errno != EEXIST) {
        return fail(n, n->settings.dir, strerror(errno));
    }
    path_of(n, "flotilla.lock", path);
    n->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
    if (n->lock_fd < 0) {
        return fail(n, path, strerror(errno));
    }
    if (!lock_within(n->lock_fd, LOCK_WAIT_MS)) {
        return fail(n, n->settings.dir,
                    "another flotillad uses this directory; choose another "
                    "--dir or stop that one");
    }
    return FLO_OK;
}

static int write_identity(const struct node *n, int joined)
{
    char text[256];

    snprintf(text, sizeof text,
             "flotilla 1\ncluster %s\nnode %" PRIu32 "\nidentity %016" PRIx64
             "\njoined %d\n",
             n->settings.cluster, n->settings.id, n->identity, joined);
    return write_file(n, "flotilla.id", text);
}

static int make_identity(struct node *n)
{
    do {
        if (getrandom(&n->identity, sizeof n->identity, 0) !=
            sizeof n->identity) {
            return fail(n, n->settings.dir, "no random numbers");
        }
    } while (n->identity == 0);
    if (write_identity(n, 0) != FLO_OK) {
        return fail(n, n->settings.dir, strerror(errno));
    }
    n->fresh = true;
    return FLO_OK;
}

static bool raft_is_empty(const struct node *n)
{
    char path[PATH_BYTES];
    struct stat st;

    path_of(n, "raft/metadata1", path);
    return stat(path, &st) != 0;
}

static int check_identity_file(struct node *n, const char *text)
{
    char cluster[64] = "";
    uint32_t id = 0;
    int joined = 0;

    if (sscanf(text,
               "flotilla 1\ncluster %63s\nnode %" SCNu32
               "\nidentity %" SCNx64 "\njoined %d\n",
               cluster, &id, &n->identity, &joined) != 4) {
        return fail(n, n->settings.dir,
                    "flotilla.id is damaged or of another version; restore it "
                    "from a backup, or replace this node");
    }
    if (id != n->settings.id || strcmp(cluster, n->settings.cluster) != 0) {
        snprintf(n->errmsg, sizeof n->errmsg,
                 "%.200s belongs to node %" PRIu32 " of cluster %s, not to "
                 "node %" PRIu32 " of cluster %s",
                 n->settings.dir, id, cluster, n->settings.id,
                 n->settings.cluster);
        return FLO_IDENTITY;
    }
    if (joined && raft_is_empty(n)) {
        return fail(n, n->settings.dir,
                    "raft's log is gone, so this node has forgotten what it "
                    "acknowledged; replace the node instead of starting it");
    }
    return FLO_OK;
}

static void load_peers(struct node *n)
{
    char text[1024], *save = NULL;

    if (read_file(n, "peers", text, sizeof text) != FLO_OK) {
        return;
    }
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        uint32_t id;
        uint64_t identity;
        if (sscanf(line, "%" SCNu32 " %" SCNx64, &id, &identity) == 2) {
            identity_check(n, id, identity);
        }
    }
}

int identity_open(struct node *n)
{
    char text[512], path[PATH_BYTES];
    int rc = lock_directory(n);

    if (rc != FLO_OK) {
        return rc;
    }
    path_of(n, "raft", path);
    if (mkdir(path, 0750) != 0 && errno != EEXIST) {
        return fail(n, path, strerror(errno));
    }
    rc = read_file(n, "flotilla.id", text, sizeof text);
    if (rc == FLO_NOTFOUND) {
        rc = make_identity(n);
    } else if (rc != FLO_OK) {
        rc = fail(n, n->settings.dir, "flotilla.id cannot be read");
    } else {
        rc = check_identity_file(n, text);
    }
    if (rc == FLO_OK) {
        load_peers(n);
    }
    return rc;
}

void identity_undo(struct node *n)
{
    static const char *const files[] = {"flotilla.id", "flotilla.lock"};
    char path[PATH_BYTES];

    path_of(n, "raft", path);
    if (!n->fresh || rmdir(path) != 0) { /* not empty: raft has begun */
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        path_of(n, files[i], path);
        unlink(path);
    }
    rmdir(n->settings.dir); /* stays when something else is in it */
}

int identity_joined(struct node *n)
{
    if (write_identity(n, 1) != FLO_OK) {
        return fail(n, n->settings.dir, strerror(errno));
    }
    return FLO_OK;
}

/* ---- Members ------------------------------------------------------------------- */

struct save_job
{
    struct job job;
    struct node *n;
    char text[1024];
};

static void save_run(struct job *job)
{
    struct save_job *j = (struct save_job *)job;

    if (write_file(j->n, "peers", j->text) != FLO_OK) {
        log_warn("peers_not_saved", "hint=%s",
                 log_quote("is the disk full? a wiped member may not be "
                           "recognised after a restart"));
    }
}

static void save_done(struct job *job)
{
    free(job);
}

static void save(struct node *n)
{
    struct save_job *j = calloc(1, sizeof *j);
    size_t at = 0;

    if (j == NULL) {
        return;
    }
    j->job.run = save_run;
    j->job.done = save_done;
    j->n = n;
    for (unsigned i = 0; i < n->settings.n_members; i++) {
        if (n->known_identity[i] != 0) {
            at += (size_t)snprintf(j->text + at, sizeof j->text - at,
                                   "%" PRIu32 " %016" PRIx64 "\n",
                                   n->settings.members[i].id,
                                   n->known_identity[i]);
        }
    }
    worker_post(&n->background, &j->job);
}

int identity_check(struct node *n, uint32_t id, uint64_t identity)
{
    for (unsigned i = 0; i < n->settings.n_members; i++) {
        if (n->settings.members[i].id != id) {
            continue;
        }
        if (n->known_identity[i] == 0 && identity != 0) {
            n->known_identity[i] = identity;
            if (n->background_running) {
                save(n);
            }
        }
        if (n->known_identity[i] == identity) {
            return FLO_OK;
        }
        if (n->refused_identity[i] == identity) {
            return FLO_IDENTITY; /* said already */
        }
        n->refused_identity[i] = identity;
        log_error("member_wiped", "peer=%" PRIu32 " hint=%s", id,
                  log_quote("it came back with another directory: it forgot "
                            "what it acknowledged and is not counted; replace "
                            "it as a new member"));
        return FLO_IDENTITY;
    }
    return FLO_IDENTITY;
}
