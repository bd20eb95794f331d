/* The HTTP server and the documents it makes, over real sockets.
 *
 * The server runs on a libuv loop in a thread of its own; the test asks it
 * through libcurl and, where curl is too well-behaved, through a bare socket.
 * node_status_get and node_force_resync are fakes that answer from `fake` and
 * `fake_resync_rc`, so each test says what the node would say. */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/error.h"
#include "daemon/http.h"
#include "daemon/status_json.h"

/* ---- Fixture ------------------------------------------------------------- */

struct fixture
{
    uv_loop_t loop;
    uv_async_t stop;
    pthread_t thread;
    struct http *http;
    bool stopped;
    unsigned port;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct node_status fake;
static int fake_status_rc;
static int fake_resync_rc;
static char fake_resync_text[128];
static char resync_target[300];

static struct db_status *copy_databases(const struct db_status *d, unsigned n)
{
    struct db_status *copy = calloc(n > 0 ? n : 1, sizeof *copy);

    if (copy != NULL && n > 0) {
        memcpy(copy, d, n * sizeof *d);
    }
    return copy;
}

int node_status_get(struct node *n, struct node_status *s)
{
    int rc;

    (void)n;
    pthread_mutex_lock(&lock);
    rc = fake_status_rc;
    if (rc == FLO_OK) {
        *s = fake;
        s->databases = copy_databases(fake.databases, fake.n_databases);
        for (unsigned i = 0; i < s->n_members; i++) {
            s->members[i].databases =
                copy_databases(fake.members[i].databases,
                               fake.members[i].n_databases);
        }
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

int node_force_resync(struct node *n, const char *target, char *text,
                      size_t text_n)
{
    int rc;

    (void)n;
    pthread_mutex_lock(&lock);
    rc = fake_resync_rc;
    snprintf(resync_target, sizeof resync_target, "%s", target);
    snprintf(text, text_n, "%s", fake_resync_text);
    pthread_mutex_unlock(&lock);
    return rc;
}

/* Three nodes, this one is 1 and leads; one database at a txid and checksum
 * that a double cannot hold. */
static struct db_status databases[1];

static void fake_healthy(void)
{
    databases[0] = (struct db_status){.name = "app",
                                      .position = {UINT64_C(9007199254740993),
                                                   UINT64_C(0xfedcba98)},
                                      .page_size = 4096,
                                      .n_pages = 1000,
                                      .wal_frames = 12,
                                      .state = "good",
                                      .queued_bytes = 77};
    fake = (struct node_status){.version = "1.2\"3",
                                .cluster = "flotilla",
                                .id = 1,
                                .raft_state = "leader",
                                .is_leader = true,
                                .leader_id = 1,
                                .leader_address = "127.0.0.1:7400",
                                .leader_http = "127.0.0.1:7401",
                                .term = 7,
                                .commit_index = 1234,
                                .last_applied = 1233,
                                .last_index = 1235,
                                .started_ms = INT64_C(1769860800123),
                                .live = true,
                                .ready = true,
                                .n_members = 3,
                                .n_databases = 1,
                                .databases = databases};
    for (unsigned i = 0; i < 3; i++) {
        fake.members[i] = (struct member_status){.id = i + 1,
                                                 .self = i == 0,
                                                 .leader = i == 0,
                                                 .connected = true,
                                                 .role = "voter",
                                                 .last_replicated_index = 1230,
                                                 .applied_index = 1229,
                                                 .lag = 6,
                                                 .last_contact_ms = 20,
                                                 .last_latency_ms = 0.25,
                                                 .n_databases = 1,
                                                 .databases = databases};
        snprintf(fake.members[i].address, sizeof fake.members[i].address,
                 "127.0.0.1:%u", 7400 + 10 * i);
    }
    fake_status_rc = FLO_OK;
    fake_resync_rc = FLO_OK;
    fake_resync_text[0] = '\0';
}

static void fake_no_leader(void)
{
    fake.is_leader = false;
    fake.leader_id = 0;
    fake.raft_state = "candidate";
    fake.ready = false;
    snprintf(fake.ready_reason, sizeof fake.ready_reason, "no leader");
}

static void fake_follower(void)
{
    fake.is_leader = false;
    fake.leader_id = 2;
    fake.raft_state = "follower";
    snprintf(fake.leader_address, sizeof fake.leader_address,
             "127.0.0.1:7410");
    snprintf(fake.leader_http, sizeof fake.leader_http, "127.0.0.1:7411");
}

static void on_stopped(void *data)
{
    ((struct fixture *)data)->stopped = true;
}

static void on_stop(uv_async_t *async)
{
    struct fixture *f = async->data;

    http_stop(f->http, on_stopped, f);
    uv_close((uv_handle_t *)async, NULL);
}

static void *loop_thread(void *arg)
{
    uv_run(arg, UV_RUN_DEFAULT);
    return NULL;
}

/* A port that was free just now. */
static unsigned free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, n), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    close(fd);
    return ntohs(a.sin_port);
}

/* On a port that nobody takes between free_port and the call. */
static void start_server(struct fixture *f)
{
    char address[32], errmsg[256] = "";
    int rc = FLO_IO;

    for (unsigned i = 0; i < 5 && rc == FLO_IO; i++) {
        f->port = free_port();
        snprintf(address, sizeof address, "127.0.0.1:%u", f->port);
        rc = http_start(&f->http, &f->loop, NULL, address, errmsg,
                        sizeof errmsg);
    }
    if (rc != FLO_OK) {
        fail_msg("%s", errmsg);
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    assert_non_null(f);
    fake_healthy();
    assert_int_equal(uv_loop_init(&f->loop), 0);
    assert_int_equal(uv_async_init(&f->loop, &f->stop, on_stop), 0);
    f->stop.data = f;
    start_server(f);
    assert_int_equal(pthread_create(&f->thread, NULL, loop_thread, &f->loop),
                     0);
    *state = f;
    return 0;
}

static void stop_server(struct fixture *f)
{
    uv_async_send(&f->stop);
    pthread_join(f->thread, NULL);
    assert_true(f->stopped);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    f->http = NULL;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->http != NULL) {
        stop_server(f);
    }
    http_deadline_ms = 30000;
    free(f);
    return 0;
}

/* ---- Helpers ------------------------------------------------------------- */

struct answer
{
    long code;
    char body[65536];
    size_t n;
    char allow[64];
    char type[96];
};

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct answer *a = arg;

    assert_true(a->n + size * n < sizeof a->body);
    memcpy(a->body + a->n, data, size * n);
    a->n += size * n;
    a->body[a->n] = '\0';
    return size * n;
}

static size_t on_header(char *data, size_t size, size_t n, void *arg)
{
    struct answer *a = arg;
    char line[256];

    snprintf(line, sizeof line, "%.*s", (int)(size * n), data);
    line[strcspn(line, "\r\n")] = '\0';
    if (strncasecmp(line, "allow: ", 7) == 0) {
        snprintf(a->allow, sizeof a->allow, "%.63s", line + 7);
    }
    if (strncasecmp(line, "content-type: ", 14) == 0) {
        snprintf(a->type, sizeof a->type, "%.95s", line + 14);
    }
    return size * n;
}

static size_t endless_body(char *data, size_t size, size_t n, void *arg)
{
    size_t *left = arg;
    size_t k = size * n < *left ? size * n : *left;

    memset(data, 'x', k);
    *left -= k;
    return k;
}

/* One request. header: one more header, or NULL. body_n: a chunked body of so
 * many bytes, or 0. The answer's code is 0 when the connection broke. */
static struct answer *ask(struct fixture *f, const char *method,
                          const char *path, const char *header, size_t body_n)
{
    static struct answer a;
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = NULL;
    char url[600];

    memset(&a, 0, sizeof a);
    snprintf(url, sizeof url, "http://127.0.0.1:%u%s", f->port, path);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, 20000L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &a);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &a);
    if (strcmp(method, "HEAD") == 0) {
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    } else if (body_n > 0) {
        curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(curl, CURLOPT_READFUNCTION, endless_body);
        curl_easy_setopt(curl, CURLOPT_READDATA, &body_n);
        headers = curl_slist_append(headers, "Expect:");
    } else if (strcmp(method, "POST") == 0) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "");
    }
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST,
                     strcmp(method, "HEAD") == 0 ? NULL : method);
    if (header != NULL) {
        headers = curl_slist_append(headers, header);
    }
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &a.code);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return &a;
}

static json_t *ask_json(struct fixture *f, const char *method,
                        const char *path, long code)
{
    struct answer *a = ask(f, method, path, NULL, 0);
    json_error_t error;
    json_t *v;

    assert_int_equal(a->code, code);
    assert_string_equal(a->type, "application/json");
    assert_int_equal(a->body[a->n - 1], '\n');
    v = json_loads(a->body, JSON_REJECT_DUPLICATES, &error);
    assert_non_null(v);
    return v;
}

/* The value at "a.b.0.c". */
static json_t *at(json_t *v, const char *path)
{
    char copy[128], *save = NULL;

    snprintf(copy, sizeof copy, "%s", path);
    for (char *p = strtok_r(copy, ".", &save); p != NULL;
         p = strtok_r(NULL, ".", &save)) {
        v = json_is_array(v) ? json_array_get(v, (size_t)atoi(p))
                             : json_object_get(v, p);
    }
    if (v == NULL) {
        fail_msg("no %s", path);
    }
    return v;
}

static const char *str_at(json_t *v, const char *path)
{
    const char *s = json_string_value(at(v, path));

    assert_non_null(s);
    return s;
}

static long long int_at(json_t *v, const char *path)
{
    assert_true(json_is_integer(at(v, path)));
    return json_integer_value(at(v, path));
}

static uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

static int raw_connect(struct fixture *f)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)f->port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void raw_send(int fd, const char *s)
{
    assert_int_equal(send(fd, s, strlen(s), MSG_NOSIGNAL),
                     (ssize_t)strlen(s));
}

/* What comes until the other side closes, or "" when it does not in time. */
static const char *raw_read_all(int fd, int timeout_ms)
{
    static char text[65536];
    struct pollfd p = {.fd = fd, .events = POLLIN};
    size_t n = 0;
    ssize_t k = 1;

    while (k > 0 && n < sizeof text - 1) {
        if (poll(&p, 1, timeout_ms) <= 0) {
            fail_msg("the server kept the connection");
        }
        k = recv(fd, text + n, sizeof text - 1 - n, 0);
        n += k > 0 ? (size_t)k : 0;
    }
    text[n] = '\0';
    return text;
}

/* ---- Documents ----------------------------------------------------------- */

/* A healthy leader says so, with everything the design lists. */
static void test_health_leader(void **state)
{
    json_t *v = ask_json(*state, "GET", "/_raft/health", 200);

    assert_string_equal(str_at(v, "status"), "healthy");
    assert_int_equal(int_at(v, "node_id"), 1);
    assert_true(json_is_true(at(v, "is_leader")));
    assert_int_equal(int_at(v, "term"), 7);
    assert_int_equal(int_at(v, "commit_index"), 1234);
    assert_int_equal(int_at(v, "last_applied"), 1233);
    assert_int_equal(int_at(v, "leader.id"), 1);
    assert_string_equal(str_at(v, "leader.address"), "127.0.0.1:7400");
    assert_int_equal(json_array_size(at(v, "followers")), 2);
    assert_int_equal(int_at(v, "followers.0.id"), 2);
    assert_string_equal(str_at(v, "followers.1.address"), "127.0.0.1:7420");
    assert_string_equal(str_at(v, "followers.1.health"), "healthy");
    json_decref(v);
}

/* One follower that is away makes the cluster degraded, and only the leader
 * says so: another node does not know. */
static void test_health_degraded(void **state)
{
    json_t *v;

    fake.members[2].connected = false;
    fake.members[2].health = DB_UNKNOWN;
    v = ask_json(*state, "GET", "/_raft/health", 200);
    assert_string_equal(str_at(v, "status"), "degraded");
    assert_string_equal(str_at(v, "followers.1.health"), "unknown");
    json_decref(v);
    fake_follower();
    v = ask_json(*state, "GET", "/_raft/health", 200);
    assert_string_equal(str_at(v, "status"), "healthy");
    json_decref(v);
    databases[0].health = DB_DESYNCED;
    v = ask_json(*state, "GET", "/_raft/health", 200);
    assert_string_equal(str_at(v, "status"), "degraded");
    json_decref(v);
}

/* Without a leader: 503, and the document all the same. */
static void test_health_no_leader(void **state)
{
    json_t *v;

    fake_no_leader();
    v = ask_json(*state, "GET", "/_raft/health", 503);
    assert_string_equal(str_at(v, "status"), "no_leader");
    assert_true(json_is_null(at(v, "leader")));
    assert_int_equal(json_array_size(at(v, "followers")), 3);
    json_decref(v);
}

/* On the leader: each follower with position, lag, latency; 64-bit values
 * survive because they are strings. */
static void test_sync_leader(void **state)
{
    json_t *v;

    fake.members[1].last_contact_ms = UINT64_MAX;
    fake.members[1].last_latency_ms = -1;
    v = ask_json(*state, "GET", "/_raft/sync-status", 200);
    assert_true(json_is_true(at(v, "is_leader")));
    assert_int_equal(int_at(v, "commit_index"), 1234);
    assert_int_equal(json_array_size(at(v, "followers")), 2);
    assert_true(json_is_null(at(v, "followers.0.last_contact_ms")));
    assert_true(json_is_null(at(v, "followers.0.last_latency_ms")));
    assert_int_equal(int_at(v, "followers.1.last_contact_ms"), 20);
    assert_true(json_real_value(at(v, "followers.1.last_latency_ms")) == 0.25);
    assert_int_equal(int_at(v, "followers.1.last_replicated_index"), 1230);
    assert_int_equal(int_at(v, "followers.1.applied_index"), 1229);
    assert_int_equal(int_at(v, "followers.1.lag"), 6);
    assert_int_equal(int_at(v, "followers.1.pending_count"), 0);
    assert_int_equal(int_at(v, "followers.1.consecutive_failures"), 0);
    assert_string_equal(str_at(v, "followers.1.databases.app.txid"),
                        "9007199254740993");
    assert_string_equal(str_at(v, "followers.1.databases.app.checksum"),
                        "00000000fedcba98");
    assert_string_equal(str_at(v, "followers.1.databases.app.health"),
                        "healthy");
    assert_string_equal(str_at(v, "databases.0.name"), "app");
    assert_int_equal(int_at(v, "databases.0.size_bytes"), 4096000);
    json_decref(v);
}

/* On a follower: who leads and where its HTTP is; no followers. */
static void test_sync_follower(void **state)
{
    json_t *v;

    fake_follower();
    v = ask_json(*state, "GET", "/_raft/sync-status", 200);
    assert_true(json_is_false(at(v, "is_leader")));
    assert_int_equal(int_at(v, "leader.id"), 2);
    assert_string_equal(str_at(v, "leader.http"), "127.0.0.1:7411");
    assert_null(json_object_get(v, "followers"));
    assert_string_equal(str_at(v, "databases.0.txid"), "9007199254740993");
    json_decref(v);
}

/* Without a leader: 503, an error, and what this node knows. */
static void test_sync_no_leader(void **state)
{
    json_t *v;

    fake_no_leader();
    v = ask_json(*state, "GET", "/_raft/sync-status", 503);
    assert_string_equal(str_at(v, "error.code"), "no_leader");
    assert_true(json_is_null(at(v, "error.leader")));
    assert_string_equal(str_at(v, "databases.0.name"), "app");
    json_decref(v);
}

/* Running, finished and failed resyncs are told apart; times are RFC 3339. */
static void test_resync_stats(void **state)
{
    struct resync_stats *r = &fake.resync;
    json_t *v;

    *r = (struct resync_stats){
        .started = 3, .finished = 1, .failed = 1, .bytes_sent = 99,
        .n_last = 3};
    r->last[0] = (struct resync_record){
        .db = "app", .reason = "forced", .source = 1, .target = 2,
        .started_ms = INT64_C(1769860800123)};
    r->last[1] = r->last[0];
    r->last[1].finished_ms = r->last[1].started_ms + 1500;
    r->last[2] = r->last[1];
    r->last[2].rc = FLO_MISMATCH;
    v = ask_json(*state, "GET", "/_raft/resync_stats", 200);
    assert_int_equal(int_at(v, "running"), 1);
    assert_int_equal(int_at(v, "bytes_sent"), 99);
    assert_string_equal(str_at(v, "last.0.result"), "running");
    assert_true(json_is_null(at(v, "last.0.finished_at")));
    assert_true(json_is_null(at(v, "last.0.duration_ms")));
    assert_string_equal(str_at(v, "last.0.started_at"),
                        "2026-01-31T12:00:00.123Z");
    assert_string_equal(str_at(v, "last.1.result"), "finished");
    assert_string_equal(str_at(v, "last.1.finished_at"),
                        "2026-01-31T12:00:01.623Z");
    assert_int_equal(int_at(v, "last.1.duration_ms"), 1500);
    assert_true(json_is_null(at(v, "last.1.error")));
    assert_string_equal(str_at(v, "last.2.result"), "failed");
    assert_string_equal(str_at(v, "last.2.error"), flo_strerror(FLO_MISMATCH));
    json_decref(v);
}

/* The node document has all parts, and a reason that is not UTF-8 does not
 * make it vanish. */
static void test_status(void **state)
{
    json_t *v;

    snprintf(fake.ready_reason, sizeof fake.ready_reason, "disk \xff\xfe bad");
    v = ask_json(*state, "GET", "/status", 200);
    assert_string_equal(str_at(v, "version"), "1.2\"3");
    assert_string_equal(str_at(v, "ready_reason"), "disk ?? bad");
    assert_string_equal(str_at(v, "started_at"), "2026-01-31T12:00:00.123Z");
    assert_int_equal(json_array_size(at(v, "members")), 3);
    assert_true(json_is_true(at(v, "members.0.self")));
    assert_int_equal(int_at(v, "members.1.lag"), 6);
    assert_int_equal(int_at(v, "databases.0.wal_frames"), 12);
    assert_int_equal(int_at(v, "resync.started"), 0);
    assert_int_equal(int_at(v, "counters.txn_committed"), 0);
    json_decref(v);
}

/* /livez and /readyz: "ok", or the lines that are not; ?verbose has all. */
static void test_live_and_ready(void **state)
{
    struct answer *a = ask(*state, "GET", "/livez", NULL, 0);

    assert_int_equal(a->code, 200);
    assert_string_equal(a->body, "ok\n");
    a = ask(*state, "GET", "/readyz", NULL, 0);
    assert_int_equal(a->code, 200);
    assert_string_equal(a->body, "ok\n");
    a = ask(*state, "GET", "/readyz?verbose", NULL, 0);
    assert_string_equal(a->body, "[+]raft ok\n[+]leader ok\n"
                                 "[+]database app ok\n[+]disk ok\n"
                                 "[+]node ok\nreadyz ok\n");
    fake.disk_low = true;
    a = ask(*state, "GET", "/readyz", NULL, 0);
    assert_int_equal(a->code, 200);
    assert_string_equal(a->body,
                        "[!]disk low: 0 bytes free, writes are refused\nok\n");
    fake_no_leader();
    a = ask(*state, "GET", "/readyz", NULL, 0);
    assert_int_equal(a->code, 503);
    assert_string_equal(a->type, "text/plain; charset=utf-8");
    assert_non_null(strstr(a->body, "[-]leader unknown: this node is candidate"
                                    " in term 7"));
    assert_non_null(strstr(a->body, "[-]node waits: no leader\n"));
    assert_null(strstr(a->body, "[+]"));
    fake.live = false;
    a = ask(*state, "GET", "/livez?verbose", NULL, 0);
    assert_int_equal(a->code, 503);
    assert_string_equal(
        a->body,
        "[+]loop ok\n[-]raft failed: restart this node\nlivez failed\n");
}

/* Not ready always has a line that says why, whatever the node left out. */
static void test_ready_always_says_why(void **state)
{
    struct answer *a;

    fake.ready = false;
    a = ask(*state, "GET", "/readyz", NULL, 0);
    assert_int_equal(a->code, 503);
    assert_string_equal(a->body, "[-]node waits: starting\nreadyz failed\n");
}

static void assert_line(const char *text, const char *line)
{
    const char *p = strstr(text, line);

    if (p == NULL || p[strlen(line)] != '\n' ||
        (p != text && p[-1] != '\n')) {
        fail_msg("no line \"%s\" in:\n%s", line, text);
    }
}

/* Metrics: etcd's names with our prefix, labels escaped, every sample's name
 * announced by a TYPE line, a histogram that adds up. */
static void test_metrics(void **state)
{
    struct answer *a;

    for (unsigned i = 0; i < 10; i++) {
        commit_latency_add(&fake.counters, i < 9 ? 1.0 : 1e9);
    }
    fake.counters.txn_committed = 10;
    a = ask(*state, "GET", "/metrics", NULL, 0);
    assert_int_equal(a->code, 200);
    assert_string_equal(a->type, "text/plain; version=0.0.4; charset=utf-8");
    assert_line(a->body, "flotilla_build_info{version=\"1.2\\\"3\"} 1");
    assert_line(a->body, "flotilla_has_leader 1");
    assert_line(a->body, "flotilla_txn_total{result=\"committed\"} 10");
    assert_line(a->body, "flotilla_commit_seconds_bucket{le=\"0.0005\"} 0");
    assert_line(a->body, "flotilla_commit_seconds_bucket{le=\"0.001\"} 9");
    assert_line(a->body, "flotilla_commit_seconds_bucket{le=\"5\"} 9");
    assert_line(a->body, "flotilla_commit_seconds_bucket{le=\"+Inf\"} 10");
    assert_line(a->body, "flotilla_commit_seconds_count 10");
    assert_line(a->body, "flotilla_db_txid{db=\"app\"} 9007199254740993");
    assert_line(a->body, "flotilla_replica_queue_bytes{db=\"app\"} 77");
    assert_line(a->body, "flotilla_follower_lag{id=\"3\"} 6");
    assert_null(strstr(a->body, "flotilla_follower_lag{id=\"1\"}"));
    assert_line(a->body, "flotilla_resyncs_total{result=\"failed\"} 0");
    assert_line(a->body, "process_start_time_seconds 1769860800.123");
    assert_non_null(strstr(a->body, "\nprocess_resident_memory_bytes "));
    assert_null(strstr(a->body, "process_open_fds 0\n"));
    fake_follower();
    a = ask(*state, "GET", "/metrics", NULL, 0);
    assert_line(a->body, "flotilla_is_leader 0");
    assert_null(strstr(a->body, "flotilla_follower_lag"));
}

/* Each sample line of the metrics belongs to the TYPE announced last. */
static void test_metrics_are_grouped(void **state)
{
    struct answer *a = ask(*state, "GET", "/metrics", NULL, 0);
    char name[128] = "", *save = NULL;
    unsigned n = 0;

    for (char *line = strtok_r(a->body, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        if (sscanf(line, "# TYPE %127s", name) == 1 || line[0] == '#') {
            continue;
        }
        assert_int_equal(strncmp(line, name, strlen(name)), 0);
        n++;
    }
    assert_true(n > 40);
}

/* ---- force-resync -------------------------------------------------------- */

/* Accepted: 202, the target resolved, the order passed on decoded. */
static void test_resync_started(void **state)
{
    json_t *v = ask_json(*state, "POST",
                         "/_raft/force-resync?target=127.0.0.1%3A7410", 202);

    assert_string_equal(str_at(v, "status"), "started");
    assert_int_equal(int_at(v, "target.id"), 2);
    assert_string_equal(str_at(v, "target.address"), "127.0.0.1:7410");
    assert_string_equal(resync_target, "127.0.0.1:7410");
    json_decref(v);
    v = ask_json(*state, "POST", "/_raft/force-resync?target=3", 202);
    assert_int_equal(int_at(v, "target.id"), 3);
    json_decref(v);
}

static void expect_refusal(struct fixture *f, int rc, long http,
                           const char *code)
{
    json_t *v;

    fake_resync_rc = rc;
    v = ask_json(f, "POST", "/_raft/force-resync?target=127.0.0.1:7410", http);
    assert_string_equal(str_at(v, "error.code"), code);
    assert_true(strlen(str_at(v, "error.message")) > 0);
    json_decref(v);
}

/* Each reason has its own status and code; a follower names the leader. */
static void test_resync_refused(void **state)
{
    json_t *v;

    expect_refusal(*state, FLO_NOTFOUND, 404, "not_found");
    expect_refusal(*state, FLO_INVALID, 409, "is_leader");
    expect_refusal(*state, FLO_BUSY, 409, "resync_running");
    expect_refusal(*state, FLO_NOLEADER, 503, "not_connected");
    expect_refusal(*state, FLO_SHUTDOWN, 503, "shutting_down");
    expect_refusal(*state, FLO_CORRUPT, 500, "internal");
    fake_follower();
    snprintf(fake_resync_text, sizeof fake_resync_text, "ask node 2");
    fake_resync_rc = FLO_NOTLEADER;
    v = ask_json(*state, "POST", "/_raft/force-resync?target=3", 409);
    assert_string_equal(str_at(v, "error.code"), "not_leader");
    assert_string_equal(str_at(v, "error.message"), "ask node 2");
    assert_string_equal(str_at(v, "error.leader.http"), "127.0.0.1:7411");
    json_decref(v);
    fake_no_leader();
    expect_refusal(*state, FLO_NOTLEADER, 503, "no_leader");
}

/* A target that is missing, empty, too long or no text never reaches the node;
 * neither does an order that a browser brings from another site. */
static void test_resync_bad_requests(void **state)
{
    char path[600] = "/_raft/force-resync?target=";
    struct answer *a;

    resync_target[0] = '\0';
    memset(path + strlen(path), 'a', 300);
    assert_int_equal(
        ask(*state, "POST", "/_raft/force-resync", NULL, 0)->code, 400);
    assert_int_equal(
        ask(*state, "POST", "/_raft/force-resync?target=", NULL, 0)->code,
        400);
    assert_int_equal(
        ask(*state, "POST", "/_raft/force-resync?target", NULL, 0)->code, 400);
    assert_int_equal(ask(*state, "POST", path, NULL, 0)->code, 400);
    assert_int_equal(
        ask(*state, "POST", "/_raft/force-resync?target=2%00x", NULL, 0)->code,
        400);
    assert_int_equal(
        ask(*state, "POST", "/_raft/force-resync?target=%0a", NULL, 0)->code,
        400);
    a = ask(*state, "POST", "/_raft/force-resync?target=2",
            "Origin: https://example.com", 0);
    assert_int_equal(a->code, 403);
    assert_string_equal(resync_target, "");
}

/* ---- The protocol's edges ------------------------------------------------ */

/* Unknown paths are 404; known ones with another method 405 with Allow; HEAD
 * is GET without the body. */
static void test_paths_and_methods(void **state)
{
    struct answer *a = ask(*state, "GET", "/nothing", NULL, 0);

    assert_int_equal(a->code, 404);
    assert_non_null(strstr(a->body, "\"not_found\""));
    assert_int_equal(ask(*state, "GET", "/status/", NULL, 0)->code, 404);
    a = ask(*state, "DELETE", "/status", NULL, 0);
    assert_int_equal(a->code, 405);
    assert_string_equal(a->allow, "GET, HEAD");
    a = ask(*state, "GET", "/_raft/force-resync?target=2", NULL, 0);
    assert_int_equal(a->code, 405);
    assert_string_equal(a->allow, "POST");
    a = ask(*state, "HEAD", "/readyz", NULL, 0);
    assert_int_equal(a->code, 200);
    assert_int_equal(a->n, 0);
}

/* A body over 64 KiB: refused at its announcement, or at its end, or cut off
 * when it has none. One of exactly 64 KiB is fine. */
static void test_body_limit(void **state)
{
    const char *path = "/_raft/force-resync?target=2";
    int fd = raw_connect(*state);

    raw_send(fd, "POST /_raft/force-resync?target=2 HTTP/1.1\r\nHost: a\r\n"
                 "Content-Length: 65537\r\n\r\n");
    assert_non_null(strstr(raw_read_all(fd, 5000), " 413 "));
    close(fd);
    assert_int_equal(ask(*state, "POST", path, NULL, 65536)->code, 202);
    assert_int_equal(ask(*state, "POST", path, NULL, 65537)->code, 413);
    assert_int_equal(ask(*state, "POST", path, NULL, 64 << 20)->code, 0);
    assert_int_equal(ask(*state, "POST", path, NULL, 0)->code, 202);
}

/* Garbage is 400, headers without an end 431 or a closed connection; the
 * server goes on. */
static void test_malformed(void **state)
{
    int fd = raw_connect(*state);
    char big[200];

    raw_send(fd, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n");
    assert_non_null(strstr(raw_read_all(fd, 5000), " 400 "));
    close(fd);
    fd = raw_connect(*state);
    raw_send(fd, "GET /status HTTP/1.1\r\nHost: a\r\n");
    memset(big, 'h', sizeof big);
    memcpy(big + sizeof big - 8, ": 1\r\n", 6);
    for (unsigned i = 0; i < 400; i++) {
        if (send(fd, big, strlen(big), MSG_NOSIGNAL) < 0) {
            break;
        }
    }
    raw_read_all(fd, 5000);
    close(fd);
    assert_int_equal(ask(*state, "GET", "/livez", NULL, 0)->code, 200);
}

/* The node cannot tell its status: 500 with an error. */
static void test_status_fails(void **state)
{
    json_t *v;

    fake_status_rc = FLO_NOMEM;
    v = ask_json(*state, "GET", "/status", 500);
    assert_string_equal(str_at(v, "error.code"), "internal");
    json_decref(v);
}

/* A client that sends a byte now and then is closed at its deadline, although
 * it was never idle. */
static void test_slow_client_is_closed(void **state)
{
    int fd = raw_connect(*state);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    unsigned sent = 0;

    close(fd);
    http_deadline_ms = 300;
    fd = raw_connect(*state);
    p.fd = fd;
    while (sent < 200 && poll(&p, 1, 50) == 0) {
        send(fd, "G", 1, MSG_NOSIGNAL);
        sent++;
    }
    assert_true(sent >= 3);
    assert_true(sent < 200);
    close(fd);
}

/* Twice as many idle connections as there may be: the server serves again as
 * soon as the deadline has thrown them out, and not before. */
static void test_connection_limit(void **state)
{
    int fds[2 * HTTP_CONNECTIONS_MAX];
    uint64_t begin;

    http_deadline_ms = 1500;
    for (unsigned i = 0; i < 2 * HTTP_CONNECTIONS_MAX; i++) {
        fds[i] = raw_connect(*state);
    }
    begin = now_ms();
    assert_int_equal(ask(*state, "GET", "/livez", NULL, 0)->code, 200);
    assert_in_range(now_ms() - begin, 500, 10000);
    for (unsigned i = 0; i < 2 * HTTP_CONNECTIONS_MAX; i++) {
        close(fds[i]);
    }
}

/* Several requests on one connection. */
static void test_keep_alive(void **state)
{
    int fd = raw_connect(*state);
    const char *text, *first;

    raw_send(fd, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
                 "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n"
                 "GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                 "\r\n");
    text = raw_read_all(fd, 5000);
    first = strstr(text, " 200 ");
    assert_non_null(first);
    assert_non_null(strstr(first + 1, " 200 "));
    assert_non_null(strstr(text, " 404 "));
    close(fd);
}

/* ---- Start and stop ------------------------------------------------------ */

/* A taken port: FLO_IO with a line that names address and flag, and nothing is
 * left on the loop. A bad address: FLO_INVALID. */
static void test_bind_fails(void **state)
{
    struct fixture *f = *state;
    struct http *h = NULL;
    char address[64], errmsg[256];
    uv_loop_t loop;

    assert_int_equal(uv_loop_init(&loop), 0);
    snprintf(address, sizeof address, "127.0.0.1:%u", f->port);
    assert_int_equal(
        http_start(&h, &loop, NULL, address, errmsg, sizeof errmsg), FLO_IO);
    assert_null(h);
    assert_non_null(strstr(errmsg, address));
    assert_non_null(strstr(errmsg, strerror(EADDRINUSE)));
    assert_non_null(strstr(errmsg, "--http"));
    assert_int_equal(
        http_start(&h, &loop, NULL, "nonsense", errmsg, sizeof errmsg),
        FLO_INVALID);
    assert_non_null(strstr(errmsg, "nonsense"));
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* Stopping closes the connections that are open, at once. */
static void test_stop_closes(void **state)
{
    struct fixture *f = *state;
    int idle = raw_connect(f);
    int half = raw_connect(f);

    raw_send(half, "GET /status HTTP/1.1\r\n");
    assert_int_equal(ask(f, "GET", "/livez", NULL, 0)->code, 200);
    stop_server(f);
    raw_read_all(idle, 2000);
    raw_read_all(half, 2000);
    close(idle);
    close(half);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(test_health_leader),     T(test_health_degraded),
        T(test_health_no_leader),  T(test_sync_leader),
        T(test_sync_follower),     T(test_sync_no_leader),
        T(test_resync_stats),      T(test_status),
        T(test_live_and_ready),    T(test_ready_always_says_why),
        T(test_metrics),           T(test_metrics_are_grouped),
        T(test_resync_started),    T(test_resync_refused),
        T(test_resync_bad_requests), T(test_paths_and_methods),
        T(test_body_limit),        T(test_malformed),
        T(test_status_fails),      T(test_slow_client_is_closed),
        T(test_connection_limit),  T(test_keep_alive),
        T(test_bind_fails),        T(test_stop_closes),
    };

    curl_global_init(CURL_GLOBAL_DEFAULT);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
