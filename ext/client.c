/* The client side of a node's unix socket; see client.h.
 *
 * The socket does not block: every wait is a poll() with what is left of the
 * caller's time. Sending is complete or the connection is closed, so a message
 * is never half sent on a connection that is used again. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_PATH */
#endif
#include "ext/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "core/error.h"

#define SOCKET_NAME "flotilla.sock"
#define SEND_MS 2000 /* a daemon that does not read for so long is gone */
#define BACKOFF_FIRST_MS 5
#define BACKOFF_MAX_MS 100

/* ---- Time -------------------------------------------------------------------- */

int64_t client_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void client_sleep(int ms)
{
    struct timespec t = {.tv_sec = ms / 1000,
                         .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* Wait for events on the socket: 1 ready, 0 the deadline passed. */
static int wait_ready(int fd, short events, int64_t deadline)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        int64_t left = deadline - client_now();
        int n;

        if (left < 0) {
            left = 0;
        }
        n = poll(&p, 1, left > 3600000 ? 3600000 : (int)left);
        if (n > 0) {
            return 1;
        }
        if (n == 0 && left <= 0) {
            return 0;
        }
        if (n < 0 && errno != EINTR) {
            return 1; /* the read or write that follows reports it */
        }
    }
}

/* ---- Connection -------------------------------------------------------------- */

static int fail(struct client *c, int rc, const char *what, int err)
{
    snprintf(c->error, sizeof c->error, "%.80s%s%.40s (in %.100s)", what,
             err != 0 ? ": " : "", err != 0 ? strerror(err) : "", c->dir);
    return rc;
}

void client_init(struct client *c, const char *dir)
{
    memset(c, 0, sizeof *c);
    c->dir = dir;
    c->fd = -1;
    buf_init(&c->in, 2 * (size_t)(WIRE_BODY_MAX + WIRE_HEADER));
    buf_init(&c->out, WIRE_BODY_MAX + WIRE_HEADER);
}

void client_disconnect(struct client *c)
{
    if (c->fd >= 0) {
        close(c->fd); /* not shutdown(): a parent may still use its copy */
        c->fd = -1;
    }
    c->decoded = 0;
    c->in.len = 0;
}

void client_close(struct client *c)
{
    client_disconnect(c);
    buf_close(&c->in);
    buf_close(&c->out);
}

/* Fill the address. A path too long for it goes through a descriptor of the
 * directory, which the caller closes; -1 when none was needed. */
static int socket_address(const char *dir, struct sockaddr_un *a, int *dir_fd)
{
    int n;

    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    *dir_fd = -1;
    if (strlen(dir) + sizeof "/" SOCKET_NAME <= sizeof a->sun_path) {
        n = snprintf(a->sun_path, sizeof a->sun_path, "%s/" SOCKET_NAME, dir);
    } else {
        *dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (*dir_fd < 0) {
            return -1;
        }
        n = snprintf(a->sun_path, sizeof a->sun_path,
                     "/proc/self/fd/%d/" SOCKET_NAME, *dir_fd);
    }
    return n > 0 && (size_t)n < sizeof a->sun_path ? 0 : -1;
}

static int connect_once(struct client *c)
{
    struct sockaddr_un a;
    int dir_fd, err = 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return fail(c, FLO_IO, "cannot make a socket", errno);
    }
    if (socket_address(c->dir, &a, &dir_fd) != 0 ||
        connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        err = errno;
        close(fd);
        fd = -1;
    }
    if (dir_fd >= 0) {
        close(dir_fd);
    }
    if (fd < 0) {
        return fail(c, FLO_IO, "flotillad does not answer", err);
    }
    client_disconnect(c);
    c->fd = fd;
    c->pid = getpid();
    return FLO_OK;
}

/* The name of this program, for the daemon's log; best effort. */
static void program_name(char *name, size_t n)
{
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, name, n - 1) : -1;

    name[got > 0 ? (size_t)got : 0] = '\0';
    name[strcspn(name, "\n")] = '\0';
    if (fd >= 0) {
        close(fd);
    }
}

static int handshake(struct client *c, int64_t deadline)
{
    struct wire_msg m = {.type = MSG_HELLO}, answer;
    int64_t least = client_now() + CLIENT_GRACE_MS;
    int rc;

    m.hello.pid = (uint32_t)getpid();
    program_name(m.hello.program, 64);
    rc = client_send(c, &m);
    if (rc == FLO_OK) {
        rc = client_receive(c, m.request, &answer,
                            deadline > least ? deadline : least);
    }
    if (rc == FLO_OK && answer.type == MSG_WELCOME) {
        c->node_id = answer.welcome.node_id;
        c->max_transaction_bytes = answer.welcome.max_transaction_bytes;
        c->error[0] = '\0';
        return FLO_OK;
    }
    if (rc == FLO_OK && answer.type == MSG_RESULT) {
        rc = (int)answer.result.code;
        fail(c, rc, answer.result.text, 0);
    } else if (rc == FLO_OK) {
        rc = fail(c, FLO_PROTOCOL, "unexpected answer to HELLO", 0);
    }
    client_disconnect(c);
    return rc == FLO_OK || rc == FLO_TIMEOUT ? FLO_IO : rc;
}

int client_connect(struct client *c, int64_t deadline)
{
    int pause = BACKOFF_FIRST_MS;

    if (c->fd >= 0 && c->pid != getpid()) {
        client_disconnect(c);
    }
    for (;;) {
        int64_t left;
        int rc = FLO_OK;

        if (c->fd < 0) {
            rc = connect_once(c);
            rc = rc != FLO_OK ? rc : handshake(c, deadline);
        }
        left = deadline - client_now();
        if (rc == FLO_OK || rc == FLO_PROTOCOL || rc == FLO_VERSION ||
            left <= 0) {
            return rc;
        }
        client_sleep(pause < left ? pause : (int)left);
        pause = pause * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : pause * 2;
    }
}

/* ---- Messages ---------------------------------------------------------------- */

static int send_all(struct client *c)
{
    int64_t deadline = client_now() + SEND_MS;
    size_t sent = 0;

    while (sent < c->out.len) {
        ssize_t n = send(c->fd, c->out.data + sent, c->out.len - sent,
                         MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!wait_ready(c->fd, POLLOUT, deadline)) {
                return fail(c, FLO_IO, "flotillad does not read", 0);
            }
        } else {
            return fail(c, FLO_IO, "lost the connection to flotillad", errno);
        }
    }
    return FLO_OK;
}

int client_send(struct client *c, struct wire_msg *m)
{
    int rc;

    if (c->fd < 0 || c->pid != getpid()) {
        return fail(c, FLO_IO, "not connected to flotillad", 0);
    }
    m->request = ++c->last_request;
    c->out.len = 0;
    rc = wire_encode(&c->out, m);
    if (rc != FLO_OK) {
        return fail(c, rc, "cannot encode a request", 0);
    }
    rc = send_all(c);
    if (rc != FLO_OK) {
        client_disconnect(c);
    }
    return rc;
}

/* Read what is there: FLO_OK (something), FLO_TIMEOUT, FLO_IO, FLO_NOMEM. */
static int fill(struct client *c, int64_t deadline)
{
    ssize_t n;

    if (c->in.len == c->in.cap && buf_reserve(&c->in, 4096) != FLO_OK) {
        return fail(c, FLO_NOMEM, "out of memory", 0);
    }
    for (;;) {
        n = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len, 0);
        if (n > 0) {
            c->in.len += (size_t)n;
            return FLO_OK;
        }
        if (n == 0) {
            return fail(c, FLO_IO, "flotillad closed the connection", 0);
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_ready(c->fd, POLLIN, deadline)) {
                return FLO_TIMEOUT;
            }
        } else if (errno != EINTR) {
            return fail(c, FLO_IO, "lost the connection to flotillad", errno);
        }
    }
}

/* An answer nobody waits for any more. A lock granted too late goes back. */
static int drop_answer(struct client *c, const struct wire_msg *m)
{
    struct wire_msg release = {.type = MSG_RELEASE};

    if (m->type != MSG_GRANT) {
        return FLO_OK;
    }
    release.release.grant = m->grant.grant;
    return client_send(c, &release);
}

/* The next whole message, if there is one: FLO_OK with *got set or not. */
static int next_message(struct client *c, struct wire_msg *m, bool *got)
{
    size_t consumed = 0;
    int rc;

    buf_consume(&c->in, c->decoded);
    c->decoded = 0;
    if (c->in.len == 0) {
        *got = false;
        return FLO_OK;
    }
    rc = wire_decode(c->in.data, c->in.len, m, &consumed);
    if (rc != FLO_OK) {
        return fail(c, rc, "flotillad speaks another protocol", 0);
    }
    c->decoded = consumed;
    *got = consumed > 0;
    return FLO_OK;
}

int client_receive(struct client *c, uint64_t request, struct wire_msg *answer,
                   int64_t deadline)
{
    int rc = FLO_OK;

    if (c->fd < 0 || c->pid != getpid()) {
        return fail(c, FLO_IO, "not connected to flotillad", 0);
    }
    while (rc == FLO_OK) {
        bool got = false;

        rc = next_message(c, answer, &got);
        if (rc == FLO_OK && got) {
            if (answer->request == request) {
                return FLO_OK;
            }
            rc = drop_answer(c, answer);
        } else if (rc == FLO_OK) {
            rc = fill(c, deadline);
        }
    }
    if (rc != FLO_TIMEOUT) {
        client_disconnect(c);
    }
    return rc;
}

int client_call(struct client *c, struct wire_msg *m, struct wire_msg *answer,
                int64_t deadline)
{
    int64_t least;
    int attempt, rc = FLO_IO;

    /* A connection that died while idle is noticed only when it is used. */
    for (attempt = 0; attempt < 2 && rc == FLO_IO; attempt++) {
        rc = client_connect(c, deadline);
        if (rc != FLO_OK) {
            return rc;
        }
        least = client_now() + CLIENT_GRACE_MS;
        rc = client_send(c, m);
        if (rc == FLO_OK) {
            rc = client_receive(c, m->request, answer,
                                deadline > least ? deadline : least);
        }
    }
    if (rc == FLO_TIMEOUT) {
        client_disconnect(c);
        fail(c, rc, "flotillad did not answer in time", 0);
    }
    return rc;
}
