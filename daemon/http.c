/* The HTTP server; see http.h for what it serves.
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
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/status_json.h"

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
    unsigned port;
    void (*stop_cb)(void *data);
    void *stop_data;
};

/* ---- Replies --------------------------------------------------------------------- */

static const char type_json[] = "application/json";
static const char type_text[] = "text/plain; charset=utf-8";
static const char type_metrics[] = "text/plain; version=0.0.4; charset=utf-8";

/* Queue body, which is malloc'd and ours to free; NULL: out of memory. */
static enum MHD_Result reply(struct MHD_Connection *c, unsigned code,
                             const char *type, char *body, const char *allow)
{
    static char nomem[] = "{\"error\": {\"code\": \"out_of_memory\", "
                          "\"message\": \"out of memory\", "
                          "\"leader\": null}}\n";
    struct MHD_Response *r;
    enum MHD_Result rc;

    if (body == NULL) {
        code = MHD_HTTP_INTERNAL_SERVER_ERROR;
        type = type_json;
        r = MHD_create_response_from_buffer(sizeof nomem - 1, nomem,
                                            MHD_RESPMEM_PERSISTENT);
    } else {
        r = MHD_create_response_from_buffer(strlen(body), body,
                                            MHD_RESPMEM_MUST_FREE);
    }
    if (r == NULL) {
        free(body);
        return MHD_NO;
    }
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (allow != NULL) {
        MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, allow);
    }
    rc = MHD_queue_response(c, code, r);
    MHD_destroy_response(r);
    return rc;
}

/* Takes the reference to v. */
static enum MHD_Result reply_json(struct MHD_Connection *c, unsigned code,
                                  json_t *v, const char *allow)
{
    char *dump = v != NULL ? json_dumps(v, JSON_INDENT(2)) : NULL;
    char *body = NULL;

    if (dump != NULL && asprintf(&body, "%s\n", dump) < 0) {
        body = NULL;
    }
    free(dump);
    json_decref(v);
    return reply(c, code, type_json, body, allow);
}

static enum MHD_Result reply_error(struct MHD_Connection *c, unsigned http,
                                   const char *code, const char *message,
                                   const struct node_status *s)
{
    return reply_json(c, http, status_error_json(code, message, s), NULL);
}

/* ---- Routes ------------------------------------------------------------------------ */

struct exchange
{
    struct http *h;
    struct MHD_Connection *c;
    const struct node_status *s;
};

static const char no_leader_text[] =
    "no leader is known: the cluster has no majority, or elects one now; "
    "try again, and look at /readyz of each node";

static bool asked(const struct exchange *x, const char *name)
{
    const char *value;

    return MHD_lookup_connection_value_n(x->c, MHD_GET_ARGUMENT_KIND, name,
                                         strlen(name), &value,
                                         NULL) == MHD_YES;
}

static unsigned good_code(bool good)
{
    return good ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
}

static enum MHD_Result get_health(const struct exchange *x)
{
    return reply_json(x->c, good_code(x->s->leader_id != 0),
                      status_health_json(x->s), NULL);
}

/* Without a leader it is an error that still tells what this node knows. */
static enum MHD_Result get_sync_status(const struct exchange *x)
{
    json_t *v = status_sync_json(x->s);
    json_t *error = NULL;

    if (x->s->leader_id == 0 && v != NULL) {
        error = status_error_json("no_leader", no_leader_text, x->s);
        if (error == NULL || json_object_update(v, error) != 0) {
            json_decref(v);
            v = NULL;
        }
        json_decref(error);
    }
    return reply_json(x->c, good_code(x->s->leader_id != 0), v, NULL);
}

static enum MHD_Result get_resync_stats(const struct exchange *x)
{
    return reply_json(x->c, MHD_HTTP_OK, status_resync_json(x->s), NULL);
}

static enum MHD_Result get_status(const struct exchange *x)
{
    return reply_json(x->c, MHD_HTTP_OK, status_node_json(x->s), NULL);
}

static enum MHD_Result get_live(const struct exchange *x)
{
    return reply(x->c, good_code(x->s->live), type_text,
                 status_live_text(x->s, asked(x, "verbose")), NULL);
}

static enum MHD_Result get_ready(const struct exchange *x)
{
    return reply(x->c, good_code(x->s->ready), type_text,
                 status_ready_text(x->s, asked(x, "verbose")), NULL);
}

static uint64_t count_open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint64_t n = 0;

    if (d == NULL) {
        return 0;
    }
    while (readdir(d) != NULL) {
        n++;
    }
    closedir(d);
    return n > 3 ? n - 3 : 0; /* ".", ".." and the directory itself */
}

static void usage_of_self(struct process_usage *u)
{
    struct rusage r;
    size_t rss = 0;

    uv_resident_set_memory(&rss);
    getrusage(RUSAGE_SELF, &r);
    u->resident_bytes = rss;
    u->open_fds = count_open_fds();
    u->cpu_seconds = (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
                     (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static enum MHD_Result get_metrics(const struct exchange *x)
{
    struct process_usage u;

    usage_of_self(&u);
    return reply(x->c, MHD_HTTP_OK, type_metrics,
                 status_metrics_text(x->s, &u), NULL);
}

/* A browser sends Origin with a POST from any page. Only one that this server
 * served itself (none today) may order something. */
static bool cross_origin(struct MHD_Connection *c)
{
    const char *origin =
        MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Origin");
    const char *host =
        MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host");
    const char *p;

    if (origin == NULL) {
        return false;
    }
    p = strstr(origin, "://");
    return p == NULL || host == NULL || strcasecmp(p + 3, host) != 0;
}

/* The target argument, or NULL when it is missing or cannot be an address. */
static const char *target_argument(struct MHD_Connection *c)
{
    const char *v = NULL;
    size_t n = 0;

    if (MHD_lookup_connection_value_n(c, MHD_GET_ARGUMENT_KIND, "target", 6,
                                      &v, &n) != MHD_YES ||
        v == NULL || n == 0 || n > HTTP_TARGET_MAX || strlen(v) != n) {
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        if (v[i] <= ' ' || v[i] > '~') {
            return NULL;
        }
    }
    return v;
}

/* {"id", "address"} of the member that target names; null if none. */
static json_t *target_json(const struct node_status *s, const char *target)
{
    char id[16];

    for (unsigned i = 0; i < s->n_members; i++) {
        const struct member_status *m = &s->members[i];

        snprintf(id, sizeof id, "%u", m->id);
        if (strcmp(m->address, target) == 0 || strcmp(id, target) == 0) {
            return json_pack("{s:I, s:s}", "id", (json_int_t)m->id, "address",
                             m->address);
        }
    }
    return json_null();
}

static enum MHD_Result resync_refused(const struct exchange *x, int rc,
                                      const char *why)
{
    const char *text = why[0] != '\0' ? why : flo_strerror(rc);

    switch (rc) {
    case FLO_NOTLEADER:
        if (x->s->leader_id == 0) {
            return reply_error(x->c, MHD_HTTP_SERVICE_UNAVAILABLE,
                               "no_leader", no_leader_text, x->s);
        }
        return reply_error(x->c, MHD_HTTP_CONFLICT, "not_leader", text, x->s);
    case FLO_NOTFOUND:
        return reply_error(x->c, MHD_HTTP_NOT_FOUND, "not_found", text, x->s);
    case FLO_INVALID:
        return reply_error(x->c, MHD_HTTP_CONFLICT, "is_leader", text, x->s);
    case FLO_BUSY:
        return reply_error(x->c, MHD_HTTP_CONFLICT, "resync_running", text,
                           x->s);
    case FLO_NOLEADER:
        return reply_error(x->c, MHD_HTTP_SERVICE_UNAVAILABLE,
                           "not_connected", text, x->s);
    case FLO_SHUTDOWN:
        return reply_error(x->c, MHD_HTTP_SERVICE_UNAVAILABLE,
                           "shutting_down", text, x->s);
    default:
        return reply_error(x->c, MHD_HTTP_INTERNAL_SERVER_ERROR, "internal",
                           text, x->s);
    }
}

static enum MHD_Result post_force_resync(const struct exchange *x)
{
    char why[256] = "";
    const char *target;
    int rc;

    if (cross_origin(x->c)) {
        return reply_error(x->c, MHD_HTTP_FORBIDDEN, "cross_origin",
                           "another site may not order this", x->s);
    }
    target = target_argument(x->c);
    if (target == NULL) {
        return reply_error(x->c, MHD_HTTP_BAD_REQUEST, "bad_target",
                           "say which follower: "
                           "?target=HOST:PORT, or ?target=NUMBER",
                           x->s);
    }
    rc = node_force_resync(x->h->node, target, why, sizeof why);
    if (rc != FLO_OK) {
        return resync_refused(x, rc, why);
    }
    log_info("resync_ordered", "target=%s by=http", log_quote(target));
    return reply_json(x->c, MHD_HTTP_ACCEPTED,
                      json_pack("{s:s, s:o, s:s, s:s}", "status", "started",
                                "target", target_json(x->s, target), "message",
                                why, "see", "/_raft/resync_stats"),
                      NULL);
}

struct route
{
    const char *path;
    bool post;
    enum MHD_Result (*answer)(const struct exchange *x);
};

static const struct route routes[] = {
    {"/_raft/health", false, get_health},
    {"/_raft/sync-status", false, get_sync_status},
    {"/_raft/resync_stats", false, get_resync_stats},
    {"/_raft/force-resync", true, post_force_resync},
    {"/status", false, get_status},
    {"/livez", false, get_live},
    {"/readyz", false, get_ready},
    {"/metrics", false, get_metrics},
};
#define N_ROUTES (sizeof routes / sizeof routes[0])

static const struct route *route_of(const char *path)
{
    for (size_t i = 0; i < N_ROUTES; i++) {
        if (strcmp(routes[i].path, path) == 0) {
            return &routes[i];
        }
    }
    return NULL;
}

static bool method_fits(const struct route *r, const char *method)
{
    if (r->post) {
        return strcmp(method, MHD_HTTP_METHOD_POST) == 0;
    }
    return strcmp(method, MHD_HTTP_METHOD_GET) == 0 ||
           strcmp(method, MHD_HTTP_METHOD_HEAD) == 0;
}

static enum MHD_Result route(struct http *h, struct MHD_Connection *c,
                             const char *path, const char *method)
{
    const struct route *r = route_of(path);
    struct exchange x = {.h = h, .c = c};
    struct node_status s;
    enum MHD_Result result;
    int rc;

    if (r == NULL) {
        return reply_error(c, MHD_HTTP_NOT_FOUND, "not_found",
                           "no such path; there are /status, /livez, "
                           "/readyz, /metrics and /_raft/…",
                           NULL);
    }
    if (!method_fits(r, method)) {
        return reply_json(c, MHD_HTTP_METHOD_NOT_ALLOWED,
                          status_error_json("method_not_allowed",
                                            r->post ? "use POST" : "use GET",
                                            NULL),
                          r->post ? "POST" : "GET, HEAD");
    }
    rc = node_status_get(h->node, &s);
    if (rc != FLO_OK) {
        return reply_error(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "internal",
                           flo_strerror(rc), NULL);
    }
    x.s = &s;
    result = r->answer(&x);
    node_status_close(&s);
    return result;
}

/* ---- One request ------------------------------------------------------------------- */

struct request
{
    uint64_t body_bytes;
};

static enum MHD_Result refuse_body(struct MHD_Connection *c)
{
    return reply_error(c, MHD_HTTP_CONTENT_TOO_LARGE, "too_large",
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
    return route(cls, c, path, method);
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

/* ---- Connections and their deadlines ------------------------------------------------- */

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

/* ---- MHD on the loop -------------------------------------------------------------------- */

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

/* ---- Start and stop ------------------------------------------------------------------------ */

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

static unsigned port_of(int fd)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof a;

    if (getsockname(fd, (struct sockaddr *)&a, &n) != 0) {
        return 0;
    }
    if (a.ss_family == AF_INET6) {
        return ntohs(((struct sockaddr_in6 *)&a)->sin6_port);
    }
    return ntohs(((struct sockaddr_in *)&a)->sin_port);
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
    new->port = port_of(fd);
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

unsigned http_port(const struct http *h)
{
    return h->port;
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
