/* The HTTP server on the loop; http.h says what it serves, http_routes.c makes
 * the replies.
 *
 * libmicrohttpd keeps all its sockets in one epoll descriptor. uv_poll watches
 * that, a timer stands for what MHD_get_timeout says, and both call MHD_run,
 * which calls us back:
 *
 *   - connected: the connection gets a deadline (struct conn)
 *   - answer, first: the headers are complete; a body that is announced as too
 *     long is refused right here, before it is sent
 *   - answer, again: pieces of the body; counted and thrown away, since no
 *     request of ours has one
 *   - answer, last: the request is complete; the route makes the reply from a
 *     struct node_status
 *   - completed: the reply was sent (or not); the deadline starts anew
 *
 * Nothing here blocks: a reply is made from memory and sent by MHD as the
 * socket takes it. MHD's own timeout counts from the last byte, so a client
 * that sends one byte every now and then would stay for ever; the sweep closes
 * those. */
#include "daemon/http.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/http_routes.h"
#include "daemon/log.h"

/* A body that goes on after its 413 is due is cut off here. */
#define BODY_ABORT_MAX (1u << 20)
#define SWEEP_MS 1000
#define IDLE_S 30u /* MHD's own timeout, from the last byte */

unsigned http_deadline_ms = 30000;

struct conn
{
    struct conn *prev, *next;
    int fd; /* MHD's */
    uint64_t deadline_ms;
};

struct http
{
    uv_loop_t *loop;
    struct node *node;
    struct MHD_Daemon *mhd;
    uv_poll_t poll;
    uv_timer_t timer; /* MHD's timeout */
    uv_timer_t sweep; /* runs while there are connections */
    struct conn *conns;
    bool some_closed; /* in the last run */
    unsigned n_closing;
    void (*stop_cb)(void *data);
    void *stop_data;
};

/* ---- One request --------------------------------------------------------- */

struct request
{
    uint64_t body_bytes;
};

static enum MHD_Result refuse_body(struct MHD_Connection *c)
{
    return http_reply_error(c, MHD_HTTP_CONTENT_TOO_LARGE, "too_large",
                       "the body is over 64 KiB; no request needs one", NULL);
}

/* A length that is not a number is MHD's to refuse. */
static bool announces_too_much(struct MHD_Connection *c)
{
    const char *v = MHD_lookup_connection_value(c, MHD_HEADER_KIND,
                                                "Content-Length");
    char *end;
    unsigned long long n;

    if (v == NULL) {
        return false;
    }
    errno = 0;
    n = strtoull(v, &end, 10);
    return errno != 0 || n > HTTP_BODY_MAX;
}

static enum MHD_Result begin(struct MHD_Connection *c, void **data)
{
    if (announces_too_much(c)) {
        return refuse_body(c);
    }
    *data = calloc(1, sizeof(struct request));
    return *data != NULL ? MHD_YES : MHD_NO;
}

static enum MHD_Result answer(void *cls, struct MHD_Connection *c,
                              const char *path, const char *method,
                              const char *version, const char *upload,
                              size_t *upload_n, void **data)
{
    struct request *req = *data;

    (void)version;
    (void)upload;
    if (req == NULL) {
        return begin(c, data);
    }
    if (*upload_n > 0) {
        req->body_bytes += *upload_n;
        *upload_n = 0;
        return req->body_bytes <= BODY_ABORT_MAX ? MHD_YES : MHD_NO;
    }
    if (req->body_bytes > HTTP_BODY_MAX) {
        return refuse_body(c);
    }
    return http_route(((struct http *)cls)->node, c, path, method);
}

static void push_deadline(struct http *h, struct conn *conn)
{
    conn->deadline_ms = uv_now(h->loop) + http_deadline_ms;
}

static void completed(void *cls, struct MHD_Connection *c, void **data,
                      enum MHD_RequestTerminationCode how)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    (void)how;
    free(*data);
    *data = NULL;
    if (info != NULL && info->socket_context != NULL) {
        push_deadline(cls, info->socket_context);
    }
}

/* ---- Connections and their deadlines ------------------------------------- */

static void run(struct http *h);

/* Shutting the socket down makes MHD see its end, and close it. */
static void on_sweep(uv_timer_t *timer)
{
    struct http *h = timer->data;
    uint64_t now = uv_now(h->loop);

    for (struct conn *conn = h->conns; conn != NULL; conn = conn->next) {
        if (now >= conn->deadline_ms) {
            shutdown(conn->fd, SHUT_RDWR);
            conn->deadline_ms = UINT64_MAX;
        }
    }
    run(h);
}

static void conn_open(struct http *h, struct MHD_Connection *c, void **context)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct conn *conn = calloc(1, sizeof *conn);
    unsigned every = http_deadline_ms < SWEEP_MS ? http_deadline_ms : SWEEP_MS;

    *context = conn;
    if (conn == NULL || info == NULL) {
        free(conn); /* it is served all the same, under MHD's timeout only */
        *context = NULL;
        return;
    }
    conn->fd = info->connect_fd;
    push_deadline(h, conn);
    conn->next = h->conns;
    if (h->conns != NULL) {
        h->conns->prev = conn;
    } else {
        uv_timer_start(&h->sweep, on_sweep, every, every);
    }
    h->conns = conn;
}

static void conn_close(struct http *h, struct conn *conn)
{
    if (conn->prev != NULL) {
        conn->prev->next = conn->next;
    } else {
        h->conns = conn->next;
    }
    if (conn->next != NULL) {
        conn->next->prev = conn->prev;
    }
    if (h->conns == NULL && h->n_closing == 0) {
        uv_timer_stop(&h->sweep);
    }
    free(conn);
}

static void on_connection(void *cls, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        conn_open(cls, c, context);
        return;
    }
    ((struct http *)cls)->some_closed = true;
    if (*context != NULL) {
        conn_close(cls, *context);
        *context = NULL;
    }
}

/* ---- MHD on the loop ----------------------------------------------------- */

static void on_timer(uv_timer_t *timer)
{
    run(timer->data);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    run(poll->data);
}

/* Serve what is there, and come back when MHD wants to, or at once if some
 * connection was closed: MHD that had reached its limit listens again only at
 * the beginning of the next MHD_run, and does not say so (seen with 0.9.75). */
static void run(struct http *h)
{
    MHD_UNSIGNED_LONG_LONG ms = 0;

    h->some_closed = false;
    MHD_run(h->mhd);
    if (h->some_closed || MHD_get_timeout(h->mhd, &ms) == MHD_YES) {
        uv_timer_start(&h->timer, on_timer, ms, 0);
    } else {
        uv_timer_stop(&h->timer);
    }
}

static void on_mhd_log(void *cls, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));

/* What MHD complains of is the client's doing: not worth more than debug. */
static void on_mhd_log(void *cls, const char *fmt, va_list ap)
{
    char line[256];

    (void)cls;
    vsnprintf(line, sizeof line, fmt, ap);
    line[strcspn(line, "\r\n")] = '\0';
    log_debug("http", "message=%s", log_quote(line));
}

/* ---- Start and stop ------------------------------------------------------ */

static int try_listen(const struct addrinfo *ai)
{
    int on = 1;
    int fd = socket(ai->ai_family,
                    ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    ai->ai_protocol);
    int saved;

    if (fd < 0) {
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 &&
        listen(fd, HTTP_CONNECTIONS_MAX) == 0) {
        return fd;
    }
    saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* The first of the name's addresses that can be bound. */
static int listen_on(const char *address, int *fd, char *errmsg,
                     size_t errmsg_n)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE};
    char host[ADDRESS_MAX + 1], port[ADDRESS_MAX + 1];
    struct addrinfo *list = NULL;
    const char *why = NULL;
    int rc = address_split(address, host, port);

    if (rc != FLO_OK) {
        snprintf(errmsg, errmsg_n, "%s: not an address; use HOST:PORT",
                 address);
        return rc;
    }
    rc = getaddrinfo(host[0] != '\0' ? host : NULL, port, &hints, &list);
    if (rc != 0) {
        why = rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc);
    }
    *fd = -1;
    for (struct addrinfo *ai = list; ai != NULL && *fd < 0; ai = ai->ai_next) {
        *fd = try_listen(ai);
        why = *fd < 0 ? strerror(errno) : NULL;
    }
    if (list != NULL) {
        freeaddrinfo(list);
    }
    if (*fd < 0) {
        snprintf(errmsg, errmsg_n, "%s: %s; choose another with --http",
                 address, why != NULL ? why : "no such address");
        return FLO_IO;
    }
    return FLO_OK;
}

/* MHD owns fd when this succeeds. */
static int start_mhd(struct http *h, int fd)
{
    h->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_ERROR_LOG, 0, NULL, NULL, answer, h,
        MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, h, MHD_OPTION_LISTEN_SOCKET,
        fd, MHD_OPTION_CONNECTION_LIMIT, HTTP_CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_CONNECTION_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, IDLE_S, MHD_OPTION_NOTIFY_COMPLETED,
        completed, h, MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    return h->mhd != NULL ? FLO_OK : FLO_NOMEM;
}

/* uv_poll_init is the only step that can fail, so it comes first: a handle
 * that was initialised could only be closed later, on the loop. */
static int start_handles(struct http *h)
{
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD);

    if (info == NULL || uv_poll_init(h->loop, &h->poll, info->epoll_fd) != 0) {
        return FLO_IO;
    }
    uv_timer_init(h->loop, &h->timer);
    uv_timer_init(h->loop, &h->sweep);
    h->poll.data = h;
    h->timer.data = h;
    h->sweep.data = h;
    uv_poll_start(&h->poll, UV_READABLE, on_poll);
    return FLO_OK;
}

int http_start(struct http **h, uv_loop_t *loop, struct node *n,
               const char *address, char *errmsg, size_t errmsg_n)
{
    struct http *new = calloc(1, sizeof *new);
    int fd, rc;

    if (new == NULL) {
        snprintf(errmsg, errmsg_n, "out of memory");
        return FLO_NOMEM;
    }
    new->loop = loop;
    new->node = n;
    rc = listen_on(address, &fd, errmsg, errmsg_n);
    if (rc != FLO_OK) {
        goto failed;
    }
    rc = start_mhd(new, fd);
    if (rc != FLO_OK) {
        close(fd);
        snprintf(errmsg, errmsg_n, "%s: cannot start the HTTP server",
                 address);
        goto failed;
    }
    rc = start_handles(new);
    if (rc != FLO_OK) {
        MHD_stop_daemon(new->mhd);
        snprintf(errmsg, errmsg_n, "%s: cannot watch the HTTP server",
                 address);
        goto failed;
    }
    *h = new;
    return FLO_OK;

failed:
    free(new);
    return rc;
}

static void on_closed(uv_handle_t *handle)
{
    struct http *h = handle->data;

    assert(h->n_closing > 0);
    if (--h->n_closing > 0) {
        return;
    }
    if (h->stop_cb != NULL) {
        h->stop_cb(h->stop_data);
    }
    free(h);
}

/* uv_close takes the epoll descriptor out of the loop at once, so MHD may
 * close it right after. */
void http_stop(struct http *h, void (*cb)(void *data), void *data)
{
    assert(h->n_closing == 0);
    h->stop_cb = cb;
    h->stop_data = data;
    h->n_closing = 3;
    uv_close((uv_handle_t *)&h->poll, on_closed);
    uv_close((uv_handle_t *)&h->timer, on_closed);
    uv_close((uv_handle_t *)&h->sweep, on_closed);
    MHD_stop_daemon(h->mhd);
    h->mhd = NULL;
}
