/* What each path answers: from a struct node_status to a queued reply. */
#include "daemon/http_routes.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <uv.h>

#include "core/error.h"
#include "daemon/http.h"
#include "daemon/log.h"
#include "daemon/status_json.h"

/* ---- Replies ------------------------------------------------------------- */

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
    size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(9);
    char *dump = v != NULL ? json_dumps(v, flags) : NULL;
    char *body = NULL;

    if (dump != NULL && asprintf(&body, "%s\n", dump) < 0) {
        body = NULL;
    }
    free(dump);
    json_decref(v);
    return reply(c, code, type_json, body, allow);
}

enum MHD_Result http_reply_error(struct MHD_Connection *c, unsigned http,
                                   const char *code, const char *message,
                                   const struct node_status *s)
{
    return reply_json(c, http, status_error_json(code, message, s), NULL);
}

/* ---- Routes -------------------------------------------------------------- */

struct exchange
{
    struct node *node;
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

static const struct refusal
{
    int rc;
    unsigned http;
    const char *code;
} refusals[] = {
    {FLO_NOTLEADER, MHD_HTTP_CONFLICT, "not_leader"},
    {FLO_INVALID, MHD_HTTP_CONFLICT, "is_leader"},
    {FLO_BUSY, MHD_HTTP_CONFLICT, "resync_running"},
    {FLO_NOTFOUND, MHD_HTTP_NOT_FOUND, "not_found"},
    {FLO_NOLEADER, MHD_HTTP_SERVICE_UNAVAILABLE, "not_connected"},
    {FLO_SHUTDOWN, MHD_HTTP_SERVICE_UNAVAILABLE, "shutting_down"},
    {-1, MHD_HTTP_INTERNAL_SERVER_ERROR, "internal"},
};

static enum MHD_Result resync_refused(const struct exchange *x, int rc,
                                      const char *why)
{
    const struct refusal *r = refusals;

    if (rc == FLO_NOTLEADER && x->s->leader_id == 0) {
        return http_reply_error(x->c, MHD_HTTP_SERVICE_UNAVAILABLE,
                                "no_leader", no_leader_text, x->s);
    }
    while (r->rc != rc && r->rc != -1) {
        r++;
    }
    return http_reply_error(x->c, r->http, r->code,
                            why[0] != '\0' ? why : flo_strerror(rc), x->s);
}

static enum MHD_Result post_force_resync(const struct exchange *x)
{
    char why[256] = "";
    const char *target;
    int rc;

    if (cross_origin(x->c)) {
        return http_reply_error(x->c, MHD_HTTP_FORBIDDEN, "cross_origin",
                           "another site may not order this", x->s);
    }
    target = target_argument(x->c);
    if (target == NULL) {
        return http_reply_error(x->c, MHD_HTTP_BAD_REQUEST, "bad_target",
                           "say which follower: "
                           "?target=HOST:PORT, or ?target=NUMBER",
                           x->s);
    }
    rc = node_force_resync(x->node, target, why, sizeof why);
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

enum MHD_Result http_route(struct node *n, struct MHD_Connection *c,
                           const char *path, const char *method)
{
    const struct route *r = route_of(path);
    struct exchange x = {.node = n, .c = c};
    struct node_status s;
    enum MHD_Result result;
    int rc;

    if (r == NULL) {
        return http_reply_error(c, MHD_HTTP_NOT_FOUND, "not_found",
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
    rc = node_status_get(n, &s);
    if (rc != FLO_OK) {
        return http_reply_error(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "internal",
                           flo_strerror(rc), NULL);
    }
    x.s = &s;
    result = r->answer(&x);
    node_status_close(&s);
    return result;
}
