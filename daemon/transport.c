/* The port between nodes: listen, connect, handshake, hand over.
 *
 * The happy path of an incoming connection:
 *
 * - uv_accept it, start its deadline, read exactly 128 bytes.
 * - judge() them: version, kind, cluster, addressee, identity. This is the one
 *   place where a connection becomes trusted.
 * - Answer with 16 bytes and hand the stream to raft (kind 1) or to the peers
 *   (kind 2). What follows the handshake is still in the socket: nothing
 *   beyond the 128 bytes was read.
 *
 * The happy path of an outgoing one:
 *
 * - Resolve the name (numeric addresses without a thread), try its addresses
 *   in turn until one connects.
 * - Send 128 bytes, read exactly 16, check the other side's identity, and hand
 *   the stream over.
 *
 * Failure modes:
 *
 * - The other side closes, sends something else, or is too slow: the
 *   connection is closed; an outgoing request gets its error.
 * - It is refused by judge(): the answer names the error, and each side logs
 *   one line per peer and reason, until the reason changes.
 * - The transport is closed: every connection in its handshake is closed, and
 *   requests end with FLO_SHUTDOWN (raft's with RAFT_CANCELED).
 *
 * Both messages fit the empty send buffer of a fresh socket, so they are sent
 * with uv_try_write; a short write is an error.
 *
 * Ownership: a conn owns its uv_tcp_t until it is handed over. It is freed
 * when its handles are closed and its name lookup has returned (refs == 0);
 * the impl when the last of them is gone. Requests' callbacks are called
 * exactly once and never from within the call that made them. */
#include "daemon/transport.h"

#include <assert.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <xxhash.h>

#include "core/buf.h"
#include "core/error.h"
#include "daemon/log.h"
#include "daemon/settings.h"

#define HELLO_BYTES 128
#define ANSWER_BYTES 16
#define ADDRESS_BYTES 96
#define HANDSHAKE_MS 5000
#define HANDSHAKES_MAX 64
#define LISTENERS_MAX 4
#define BACKLOG 128
#define USER_TIMEOUT_MS 10000
#define KEEPALIVE_SECONDS 5
#define NOTES_MAX 32
#define NOTE_QUIET_NS (10ull * 1000 * 1000 * 1000)

enum kind { KIND_RAFT = 1, KIND_PEER = 2 };

/* What was last said about a peer, so that it is not said again. */
struct note
{
    uint32_t id;
    bool outgoing;
    const char *reason; /* a literal; NULL: fine */
};

struct transport_impl
{
    struct transport *t;
    char listen[ADDRESS_MAX + 1];
    uv_tcp_t *listeners[LISTENERS_MAX]; /* owned */
    unsigned n_listeners;
    raft_uv_accept_cb accept_cb; /* NULL until raft listens */
    struct conn *conns;          /* all that are not freed yet */
    unsigned n_incoming;         /* in their handshake */
    struct note notes[NOTES_MAX];
    unsigned n_notes;
    uint64_t strangers_logged_ns;
    unsigned refs; /* conns, listeners, and the closing timer */
    uv_timer_t closing_timer;
    bool closing;
    raft_uv_transport_close_cb raft_close_cb;
    void (*close_cb)(struct transport *t);
};

struct conn
{
    struct transport_impl *impl;
    struct conn *prev, *next;
    unsigned refs; /* open handles and the lookup */
    bool incoming;
    bool finished; /* handed over or failed; only cleaning up is left */
    enum kind kind;
    uint32_t peer;  /* outgoing: whom we connect to */
    uv_tcp_t *tcp;  /* owned; NULL after it was handed over */
    uv_timer_t deadline;
    size_t n_read;
    uint8_t bytes[HELLO_BYTES]; /* incoming: the hello; outgoing: the answer */
    /* outgoing only */
    int status; /* enum flo_error, for the request */
    uv_getaddrinfo_t lookup;
    bool looking_up;
    struct addrinfo *addresses; /* owned */
    struct addrinfo *next_address;
    uv_connect_t connect;
    struct raft_uv_connect *raft_req; /* one of these two; NULL once called */
    struct transport_connect *peer_req;
    char address[ADDRESS_MAX + 1];
};

/* --- saying things once ------------------------------------------------- */

static struct note *find_note(struct transport_impl *impl, uint32_t id,
                              bool outgoing)
{
    unsigned i;

    for (i = 0; i < impl->n_notes; i++) {
        if (impl->notes[i].id == id && impl->notes[i].outgoing == outgoing) {
            return &impl->notes[i];
        }
    }
    return NULL;
}

/* At most one line in 10 s for those who have no note of their own. */
static bool may_log_stranger(struct transport_impl *impl)
{
    uint64_t now = uv_hrtime();

    if (impl->strangers_logged_ns != 0 &&
        now - impl->strangers_logged_ns < NOTE_QUIET_NS) {
        return false;
    }
    impl->strangers_logged_ns = now;
    return true;
}

/* Whether this is news about that peer. reason NULL: all is well again. */
static bool is_news(struct transport_impl *impl, uint32_t id, bool outgoing,
                    const char *reason)
{
    struct note *note = find_note(impl, id, outgoing);

    if (note == NULL && reason == NULL) {
        return false;
    }
    if (note == NULL) {
        if (impl->n_notes == NOTES_MAX) {
            return may_log_stranger(impl);
        }
        note = &impl->notes[impl->n_notes++];
        note->id = id;
        note->outgoing = outgoing;
        note->reason = NULL;
    }
    if (note->reason == reason) {
        return false;
    }
    note->reason = reason;
    return reason != NULL;
}

/* --- life and death of a connection -------------------------------------- */

static void impl_unref(struct transport_impl *impl)
{
    struct transport *t = impl->t;
    raft_uv_transport_close_cb raft_cb = impl->raft_close_cb;
    void (*cb)(struct transport *) = impl->close_cb;

    assert(impl->refs > 0);
    if (--impl->refs > 0) {
        return;
    }
    assert(impl->closing && impl->conns == NULL);
    free(impl);
    t->impl = NULL;
    if (raft_cb != NULL) {
        raft_cb(&t->raft);
    }
    if (cb != NULL) {
        cb(t);
    }
}

static struct conn *conn_new(struct transport_impl *impl, bool incoming)
{
    struct conn *conn = calloc(1, sizeof *conn);

    if (conn == NULL) {
        return NULL;
    }
    conn->impl = impl;
    conn->incoming = incoming;
    conn->next = impl->conns;
    if (conn->next != NULL) {
        conn->next->prev = conn;
    }
    impl->conns = conn;
    impl->refs++;
    impl->n_incoming += incoming;
    uv_timer_init(impl->t->loop, &conn->deadline);
    conn->deadline.data = conn;
    conn->refs = 1;
    return conn;
}

static void conn_unref(struct conn *conn)
{
    struct transport_impl *impl = conn->impl;

    assert(conn->refs > 0);
    if (--conn->refs > 0) {
        return;
    }
    if (conn->prev != NULL) {
        conn->prev->next = conn->next;
    } else {
        impl->conns = conn->next;
    }
    if (conn->next != NULL) {
        conn->next->prev = conn->prev;
    }
    uv_freeaddrinfo(conn->addresses);
    free(conn);
    impl_unref(impl);
}

/* Tell whoever asked for an outgoing connection; exactly once. */
static void conn_report(struct conn *conn, uv_tcp_t *stream)
{
    struct raft_uv_connect *raft_req = conn->raft_req;
    struct transport_connect *peer_req = conn->peer_req;
    int raft_status = 0;

    conn->raft_req = NULL;
    conn->peer_req = NULL;
    if (raft_req != NULL) {
        if (conn->status != FLO_OK) {
            raft_status = conn->status == FLO_SHUTDOWN ? RAFT_CANCELED
                                                       : RAFT_NOCONNECTION;
        }
        raft_req->cb(raft_req, (uv_stream_t *)stream, raft_status);
    }
    if (peer_req != NULL) {
        peer_req->cb(peer_req, stream, conn->status);
    }
}

static void on_deadline_closed(uv_handle_t *handle)
{
    struct conn *conn = handle->data;

    conn_report(conn, NULL); /* nothing, if it was handed over */
    conn_unref(conn);
}

static void on_tcp_closed(uv_handle_t *handle)
{
    struct conn *conn = handle->data;

    raft_free(handle);
    conn_unref(conn);
}

static void conn_close_tcp(struct conn *conn)
{
    if (conn->tcp != NULL) {
        uv_close((uv_handle_t *)conn->tcp, on_tcp_closed);
        conn->tcp = NULL;
    }
}

/* The handshake is over; start cleaning up. */
static void conn_finish(struct conn *conn, int status)
{
    assert(!conn->finished);
    conn->finished = true;
    conn->status = status;
    conn->impl->n_incoming -= conn->incoming;
    conn_close_tcp(conn);
    if (conn->looking_up) {
        uv_cancel((uv_req_t *)&conn->lookup);
    }
    uv_close((uv_handle_t *)&conn->deadline, on_deadline_closed);
}

/* Take the stream out of a finished handshake. */
static uv_tcp_t *conn_release(struct conn *conn)
{
    uv_tcp_t *tcp = conn->tcp;

    uv_read_stop((uv_stream_t *)tcp);
    tcp->data = NULL;
    conn->tcp = NULL;
    conn->refs--; /* never the last: the deadline is still open */
    assert(conn->refs > 0);
    return tcp;
}

static void on_deadline(uv_timer_t *timer)
{
    struct conn *conn = timer->data;

    if (conn->incoming && may_log_stranger(conn->impl)) {
        log_warn("handshake_timeout", "received=%zu wanted=%d", conn->n_read,
                 HELLO_BYTES);
    }
    conn_finish(conn, FLO_TIMEOUT);
}

static int conn_open_tcp(struct conn *conn)
{
    uv_tcp_t *tcp = raft_malloc(sizeof *tcp);

    if (tcp == NULL) {
        return FLO_NOMEM;
    }
    if (uv_tcp_init(conn->impl->t->loop, tcp) != 0) {
        raft_free(tcp);
        return FLO_IO;
    }
    tcp->data = conn;
    conn->tcp = tcp;
    conn->refs++;
    return FLO_OK;
}

/* G7. Failures only cost latency or a slower detection, so they are ignored. */
static void set_options(uv_tcp_t *tcp)
{
    unsigned user_timeout = USER_TIMEOUT_MS;
    int seconds = KEEPALIVE_SECONDS;
    int probes = 3;
    uv_os_fd_t fd;

    uv_tcp_nodelay(tcp, 1);
    uv_tcp_keepalive(tcp, 1, KEEPALIVE_SECONDS);
    if (uv_fileno((uv_handle_t *)tcp, &fd) != 0) {
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof seconds);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout,
               sizeof user_timeout);
}

static size_t conn_wanted(const struct conn *conn)
{
    return conn->incoming ? HELLO_BYTES : ANSWER_BYTES;
}

/* Offers only what is missing, so that no byte beyond the handshake is read. */
static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct conn *conn = handle->data;

    (void)suggested;
    buf->base = (char *)conn->bytes + conn->n_read;
    buf->len = conn_wanted(conn) - conn->n_read;
}

static void judge_and_answer(struct conn *conn);
static void read_answer(struct conn *conn);

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct conn *conn = stream->data;

    (void)buf;
    if (n == 0) {
        return;
    }
    if (n < 0) {
        conn_finish(conn, FLO_IO);
        return;
    }
    conn->n_read += (size_t)n;
    if (conn->n_read < conn_wanted(conn)) {
        return;
    }
    uv_read_stop(stream);
    if (conn->incoming) {
        judge_and_answer(conn);
    } else {
        read_answer(conn);
    }
}

static bool send_now(uv_tcp_t *tcp, uint8_t *bytes, size_t n)
{
    uv_buf_t buf = uv_buf_init((char *)bytes, (unsigned)n);

    return uv_try_write((uv_stream_t *)tcp, &buf, 1) == (int)n;
}

/* --- incoming -------------------------------------------------------------- */

struct hello
{
    uint16_t version;
    uint8_t kind;
    uint32_t sender;
    uint32_t to;
    uint64_t cluster;
    uint64_t identity;
    const char *address;
};

static bool hello_decode(const uint8_t *p, struct hello *h)
{
    if (memcmp(p, "FLOH", 4) != 0) {
        return false;
    }
    h->version = load_u16(p + 4);
    h->kind = p[6];
    h->sender = load_u32(p + 8);
    h->to = load_u32(p + 12);
    h->cluster = load_u64(p + 16);
    h->identity = load_u64(p + 24);
    h->address = (const char *)p + 32;
    return true;
}

static void hello_encode(const struct transport *t, enum kind kind, uint32_t to,
                         uint8_t p[HELLO_BYTES])
{
    memset(p, 0, HELLO_BYTES);
    memcpy(p, "FLOH", 4);
    store_u16(p + 4, TRANSPORT_VERSION);
    p[6] = (uint8_t)kind;
    store_u32(p + 8, t->id);
    store_u32(p + 12, to);
    store_u64(p + 16, t->cluster);
    store_u64(p + 24, t->identity);
    memcpy(p + 32, t->address, strlen(t->address));
}

/* The one place where a connection becomes trusted. */
static int judge(struct transport_impl *impl, const struct hello *h,
                 const char **reason)
{
    const struct transport *t = impl->t;

    if (h->version != TRANSPORT_VERSION) {
        *reason = "it speaks another protocol version";
        return FLO_VERSION;
    }
    if ((h->kind != KIND_RAFT && h->kind != KIND_PEER) ||
        h->address[ADDRESS_BYTES - 1] != '\0') {
        *reason = "its handshake is malformed";
        return FLO_PROTOCOL;
    }
    if (h->cluster != t->cluster) {
        *reason = "it belongs to another cluster";
        return FLO_IDENTITY;
    }
    if (h->to != t->id) {
        *reason = "it wants to reach another node number here";
        return FLO_IDENTITY;
    }
    if (h->sender == 0 || h->sender == t->id) {
        *reason = "it claims a node number that cannot be its own";
        return FLO_IDENTITY;
    }
    if (t->hooks.check_identity(t->hooks.data, h->sender, h->identity) !=
        FLO_OK) {
        *reason = "its directory is not the one known under its node number";
        return FLO_IDENTITY;
    }
    if (h->kind == KIND_RAFT && impl->accept_cb == NULL) {
        *reason = NULL; /* a matter of milliseconds while starting */
        return FLO_BUSY;
    }
    return FLO_OK;
}

static bool send_answer(struct conn *conn, int rc)
{
    uint8_t answer[ANSWER_BYTES];

    memcpy(answer, "FLOA", 4);
    store_u16(answer + 4, TRANSPORT_VERSION);
    store_u16(answer + 6, (uint16_t)rc);
    store_u64(answer + 8, conn->impl->t->identity);
    return send_now(conn->tcp, answer, sizeof answer);
}

static void refuse_garbage(struct conn *conn)
{
    if (may_log_stranger(conn->impl)) {
        log_warn("handshake_garbage",
                 "hint=\"something that is no Flotilla node connects to %s\"",
                 log_quote(conn->impl->listen));
    }
    conn_finish(conn, FLO_PROTOCOL);
}

static void log_refused_incoming(struct conn *conn, const struct hello *h,
                                 int rc, const char *reason)
{
    char address[ADDRESS_BYTES + 1];

    if (reason == NULL || !is_news(conn->impl, h->sender, false, reason)) {
        return;
    }
    snprintf(address, sizeof address, "%.*s", ADDRESS_BYTES, h->address);
    log_warn("peer_refused",
             "peer=%u addr=%s error=%s reason=%s hint=\"compare --members, "
             "--cluster and --id of both nodes\"",
             h->sender, log_quote(address), log_quote(flo_strerror(rc)),
             log_quote(reason));
}

static void judge_and_answer(struct conn *conn)
{
    struct transport_impl *impl = conn->impl;
    struct transport *t = impl->t;
    const char *reason = NULL;
    char address[ADDRESS_BYTES];
    struct hello h;
    uv_tcp_t *tcp;
    int rc;

    if (!hello_decode(conn->bytes, &h)) {
        refuse_garbage(conn);
        return;
    }
    rc = judge(impl, &h, &reason);
    if (rc != FLO_OK) {
        log_refused_incoming(conn, &h, rc, reason);
    }
    if (!send_answer(conn, rc) || rc != FLO_OK) {
        conn_finish(conn, rc != FLO_OK ? rc : FLO_IO);
        return;
    }
    is_news(impl, h.sender, false, NULL);
    memcpy(address, h.address, sizeof address); /* conn is freed later */
    tcp = conn_release(conn);
    conn_finish(conn, FLO_OK);
    if (h.kind == KIND_RAFT) {
        impl->accept_cb(&t->raft, h.sender, address, (uv_stream_t *)tcp);
    } else {
        t->hooks.peer_accepted(t->hooks.data, h.sender, tcp);
    }
}

static void drop_connection(struct transport_impl *impl, uv_stream_t *listener);

static void on_connection(uv_stream_t *listener, int status)
{
    struct transport_impl *impl = listener->data;
    struct conn *conn;

    if (status < 0) {
        log_warn("accept_failed", "error=%s", log_quote(uv_strerror(status)));
        return;
    }
    if (impl->n_incoming >= HANDSHAKES_MAX) {
        drop_connection(impl, listener);
        return;
    }
    conn = conn_new(impl, true);
    if (conn == NULL) {
        return;
    }
    if (conn_open_tcp(conn) != FLO_OK ||
        uv_accept(listener, (uv_stream_t *)conn->tcp) != 0) {
        conn_finish(conn, FLO_IO);
        return;
    }
    set_options(conn->tcp);
    uv_timer_start(&conn->deadline, on_deadline, impl->t->handshake_ms, 0);
    if (uv_read_start((uv_stream_t *)conn->tcp, on_alloc, on_read) != 0) {
        conn_finish(conn, FLO_IO);
    }
}

/* Over the limit: libuv wants it accepted before it reports the next one. */
static void drop_connection(struct transport_impl *impl, uv_stream_t *listener)
{
    uv_tcp_t *tcp = raft_malloc(sizeof *tcp);

    if (may_log_stranger(impl)) {
        log_warn("handshakes_full", "limit=%d", HANDSHAKES_MAX);
    }
    if (tcp == NULL) {
        return;
    }
    uv_tcp_init(impl->t->loop, tcp);
    uv_accept(listener, (uv_stream_t *)tcp);
    uv_close((uv_handle_t *)tcp, (uv_close_cb)raft_free);
}

/* --- outgoing -------------------------------------------------------------- */

static void log_refused_outgoing(struct conn *conn, int rc, const char *reason)
{
    if (is_news(conn->impl, conn->peer, true, reason)) {
        log_warn("peer_refused_us",
                 "peer=%u addr=%s error=%s reason=%s hint=\"its log says "
                 "more; compare --members, --cluster and --id of both\"",
                 conn->peer, log_quote(conn->address),
                 log_quote(flo_strerror(rc)), log_quote(reason));
    }
}

/* FLO_OK when the other side took us and is who it should be. */
static int judge_answer(struct conn *conn)
{
    const struct transport *t = conn->impl->t;
    int rc = load_u16(conn->bytes + 6);

    if (memcmp(conn->bytes, "FLOA", 4) != 0) {
        log_refused_outgoing(conn, FLO_PROTOCOL, "no Flotilla node answers");
        return FLO_PROTOCOL;
    }
    if (load_u16(conn->bytes + 4) != TRANSPORT_VERSION) {
        rc = FLO_VERSION;
    } else if (rc > FLO_VERSION) {
        rc = FLO_PROTOCOL;
    }
    if (rc == FLO_OK &&
        t->hooks.check_identity(t->hooks.data, conn->peer,
                                load_u64(conn->bytes + 8)) != FLO_OK) {
        log_refused_outgoing(conn, FLO_IDENTITY,
                             "its directory is not the one known under its "
                             "node number");
        return FLO_IDENTITY;
    }
    if (rc != FLO_OK && rc != FLO_BUSY) {
        log_refused_outgoing(conn, rc, flo_strerror(rc));
    }
    return rc;
}

static void read_answer(struct conn *conn)
{
    int rc = judge_answer(conn);
    uv_tcp_t *tcp;

    if (rc != FLO_OK) {
        conn_finish(conn, rc);
        return;
    }
    is_news(conn->impl, conn->peer, true, NULL);
    tcp = conn_release(conn);
    conn_finish(conn, FLO_OK);
    conn_report(conn, tcp);
}

static void try_next_address(struct conn *conn);

static void on_connect(uv_connect_t *req, int status)
{
    struct conn *conn = req->data;
    struct transport *t = conn->impl->t;
    uint8_t hello[HELLO_BYTES];

    if (conn->finished) {
        return;
    }
    if (status != 0) {
        snprintf(t->raft.errmsg, sizeof t->raft.errmsg, "connect: %s",
                 uv_strerror(status));
        conn_close_tcp(conn);
        try_next_address(conn);
        return;
    }
    set_options(conn->tcp);
    hello_encode(t, conn->kind, conn->peer, hello);
    if (!send_now(conn->tcp, hello, sizeof hello) ||
        uv_read_start((uv_stream_t *)conn->tcp, on_alloc, on_read) != 0) {
        conn_finish(conn, FLO_IO);
    }
}

static void try_next_address(struct conn *conn)
{
    while (conn->next_address != NULL) {
        struct addrinfo *ai = conn->next_address;
        int rc = conn_open_tcp(conn);

        conn->next_address = ai->ai_next;
        if (rc != FLO_OK) {
            conn_finish(conn, rc);
            return;
        }
        conn->connect.data = conn;
        if (uv_tcp_connect(&conn->connect, conn->tcp, ai->ai_addr,
                           on_connect) == 0) {
            return;
        }
        conn_close_tcp(conn);
    }
    conn_finish(conn, FLO_IO);
}

static void on_lookup(uv_getaddrinfo_t *req, int status, struct addrinfo *res)
{
    struct conn *conn = req->data;

    conn->looking_up = false;
    conn->addresses = res;
    conn->next_address = res;
    if (!conn->finished) {
        if (status != 0) {
            struct raft_uv_transport *raft = &conn->impl->t->raft;
            snprintf(raft->errmsg, sizeof raft->errmsg, "look up %.200s: %s",
                     conn->address, uv_strerror(status));
            conn_finish(conn, FLO_NOTFOUND);
        } else {
            try_next_address(conn);
        }
    }
    conn_unref(conn);
}

static bool numeric_address(const char *host, const char *port,
                            struct sockaddr_storage *out)
{
    int n = atoi(port);

    return uv_ip4_addr(host, n, (struct sockaddr_in *)out) == 0 ||
           uv_ip6_addr(host, n, (struct sockaddr_in6 *)out) == 0;
}

/* Start the lookup, or connect right away to a numeric address. */
static int conn_dial(struct conn *conn)
{
    char host[ADDRESS_MAX + 1];
    char port[ADDRESS_MAX + 1];
    struct sockaddr_storage numeric;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM};
    int rc = address_split(conn->address, host, port);

    if (rc != FLO_OK) {
        return rc;
    }
    if (numeric_address(host, port, &numeric)) {
        rc = conn_open_tcp(conn);
        if (rc != FLO_OK) {
            return rc;
        }
        conn->connect.data = conn;
        return uv_tcp_connect(&conn->connect, conn->tcp,
                              (struct sockaddr *)&numeric, on_connect) == 0
                   ? FLO_OK
                   : FLO_IO;
    }
    conn->lookup.data = conn;
    if (uv_getaddrinfo(conn->impl->t->loop, &conn->lookup, on_lookup, host,
                       port, &hints) != 0) {
        return FLO_IO;
    }
    conn->looking_up = true;
    conn->refs++;
    return FLO_OK;
}

/* Returns an error without calling the request, or FLO_OK and will call it. */
static int start_connect(struct transport_impl *impl, enum kind kind,
                         uint32_t id, const char *address,
                         struct raft_uv_connect *raft_req,
                         struct transport_connect *peer_req)
{
    struct conn *conn;
    int rc;

    if (impl == NULL || impl->closing) {
        return FLO_SHUTDOWN;
    }
    if (strlen(address) > ADDRESS_MAX) {
        return FLO_INVALID;
    }
    conn = conn_new(impl, false);
    if (conn == NULL) {
        return FLO_NOMEM;
    }
    conn->kind = kind;
    conn->peer = id;
    snprintf(conn->address, sizeof conn->address, "%s", address);
    rc = conn_dial(conn);
    if (rc != FLO_OK) {
        conn_finish(conn, rc);
        return rc;
    }
    conn->raft_req = raft_req;
    conn->peer_req = peer_req;
    uv_timer_start(&conn->deadline, on_deadline, impl->t->handshake_ms, 0);
    return FLO_OK;
}

int transport_connect(struct transport *t, struct transport_connect *req,
                      uint32_t id, const char *address)
{
    req->t = t;
    req->impl = NULL;
    return start_connect(t->impl, KIND_PEER, id, address, NULL, req);
}

/* --- raft's side ------------------------------------------------------------ */

static int raft_side_init(struct raft_uv_transport *raft, raft_id id,
                          const char *address)
{
    struct transport *t = raft->impl;

    if (id != t->id || strcmp(address, t->address) != 0) {
        snprintf(raft->errmsg, sizeof raft->errmsg,
                 "raft and transport disagree about who this node is");
        return RAFT_INVALID;
    }
    return 0;
}

static int raft_side_listen(struct raft_uv_transport *raft,
                            raft_uv_accept_cb cb)
{
    struct transport *t = raft->impl;

    if (t->impl->n_listeners == 0 && transport_bind(t) != FLO_OK) {
        snprintf(raft->errmsg, sizeof raft->errmsg, "%.*s",
                 (int)sizeof raft->errmsg - 1, t->errmsg);
        return RAFT_IOERR;
    }
    t->impl->accept_cb = cb;
    return 0;
}

static int raft_side_connect(struct raft_uv_transport *raft,
                             struct raft_uv_connect *req, raft_id id,
                             const char *address, raft_uv_connect_cb cb)
{
    struct transport *t = raft->impl;

    req->cb = cb;
    switch (start_connect(t->impl, KIND_RAFT, (uint32_t)id, address, req,
                          NULL)) {
        case FLO_OK:
            return 0;
        case FLO_NOMEM:
            return RAFT_NOMEM;
        case FLO_SHUTDOWN:
            return RAFT_CANCELED;
        default:
            return RAFT_NOCONNECTION;
    }
}

static void start_close(struct transport_impl *impl);

static void raft_side_close(struct raft_uv_transport *raft,
                            raft_uv_transport_close_cb cb)
{
    struct transport *t = raft->impl;

    if (t->impl == NULL) {
        cb(raft);
        return;
    }
    t->impl->raft_close_cb = cb;
    start_close(t->impl);
}

/* --- the transport ---------------------------------------------------------- */

int transport_init(struct transport *t, uv_loop_t *loop, uint32_t id,
                   const char *cluster, uint64_t identity, const char *address,
                   const char *listen, const struct transport_hooks *hooks)
{
    struct transport_impl *impl;

    if (strlen(address) >= ADDRESS_BYTES || strlen(listen) > ADDRESS_MAX) {
        return FLO_INVALID;
    }
    impl = calloc(1, sizeof *impl);
    if (impl == NULL) {
        return FLO_NOMEM;
    }
    memset(t, 0, sizeof *t);
    signal(SIGPIPE, SIG_IGN); /* libuv writes with write(2) */
    t->loop = loop;
    t->id = id;
    t->cluster = XXH3_64bits(cluster, strlen(cluster));
    t->identity = identity;
    t->hooks = *hooks;
    t->handshake_ms = HANDSHAKE_MS;
    snprintf(t->address, sizeof t->address, "%s", address);
    snprintf(impl->listen, sizeof impl->listen, "%s", listen);
    impl->t = t;
    impl->refs = 1;
    uv_timer_init(loop, &impl->closing_timer);
    impl->closing_timer.data = impl;
    t->impl = impl;
    t->raft.version = 1;
    t->raft.impl = t;
    t->raft.init = raft_side_init;
    t->raft.listen = raft_side_listen;
    t->raft.connect = raft_side_connect;
    t->raft.close = raft_side_close;
    return FLO_OK;
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct transport_impl *impl = handle->data;

    raft_free(handle);
    impl_unref(impl);
}

/* Listen on one address. Returns libuv's error. */
static int bind_one(struct transport_impl *impl, const struct addrinfo *ai,
                    bool only)
{
    bool v6_only = ai->ai_family == AF_INET6 && !only;
    uv_tcp_t *tcp = raft_malloc(sizeof *tcp);
    int rc;

    if (tcp == NULL) {
        return UV_ENOMEM;
    }
    rc = uv_tcp_init(impl->t->loop, tcp);
    if (rc != 0) {
        raft_free(tcp);
        return rc;
    }
    impl->refs++;
    tcp->data = impl;
    rc = uv_tcp_bind(tcp, ai->ai_addr, v6_only ? UV_TCP_IPV6ONLY : 0);
    if (rc == 0) {
        rc = uv_listen((uv_stream_t *)tcp, BACKLOG, on_connection);
    }
    if (rc != 0) {
        uv_close((uv_handle_t *)tcp, on_listener_closed);
        return rc;
    }
    impl->listeners[impl->n_listeners++] = tcp;
    return 0;
}

static void close_listeners(struct transport_impl *impl)
{
    while (impl->n_listeners > 0) {
        uv_tcp_t *tcp = impl->listeners[--impl->n_listeners];
        uv_close((uv_handle_t *)tcp, on_listener_closed);
    }
}

/* Every address of a name, but a host without IPv6 may still have ::1 in
 * /etc/hosts: an address that does not exist here is not an error as long as
 * another one does. */
static int bind_all(struct transport_impl *impl, const struct addrinfo *list)
{
    const struct addrinfo *ai;
    bool only = list->ai_next == NULL;
    int rc = UV_EADDRNOTAVAIL;
    int last = 0;

    for (ai = list; ai != NULL && impl->n_listeners < LISTENERS_MAX;
         ai = ai->ai_next) {
        rc = bind_one(impl, ai, only);
        if (rc != 0 && rc != UV_EADDRNOTAVAIL && rc != UV_EAFNOSUPPORT) {
            return rc;
        }
        last = rc != 0 ? rc : last;
    }
    return impl->n_listeners > 0 ? 0 : last;
}

static int bind_failed(struct transport *t, const char *why)
{
    snprintf(t->errmsg, sizeof t->errmsg, "%s: %s", t->impl->listen, why);
    return FLO_IO;
}

int transport_bind(struct transport *t)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE};
    char host[ADDRESS_MAX + 1];
    char port[ADDRESS_MAX + 1];
    struct addrinfo *list;
    int rc;

    if (address_split(t->impl->listen, host, port) != FLO_OK) {
        return bind_failed(t, "not of the form host:port");
    }
    rc = getaddrinfo(host, port, &hints, &list);
    if (rc != 0) {
        return bind_failed(t, gai_strerror(rc));
    }
    rc = bind_all(t->impl, list);
    freeaddrinfo(list);
    if (rc != 0) {
        close_listeners(t->impl);
        return bind_failed(t, uv_strerror(rc));
    }
    return FLO_OK;
}

static void on_closing_timer_closed(uv_handle_t *handle)
{
    impl_unref(handle->data);
}

static void start_close(struct transport_impl *impl)
{
    struct conn *conn;

    if (impl->closing) {
        return;
    }
    impl->closing = true;
    impl->accept_cb = NULL;
    close_listeners(impl);
    for (conn = impl->conns; conn != NULL; conn = conn->next) {
        if (!conn->finished) {
            conn_finish(conn, FLO_SHUTDOWN);
        }
    }
    /* Always something to close, so that the callback never comes from within
     * this call. */
    uv_close((uv_handle_t *)&impl->closing_timer, on_closing_timer_closed);
}

void transport_close(struct transport *t, void (*cb)(struct transport *t))
{
    if (t->impl == NULL) {
        if (cb != NULL) {
            cb(t);
        }
        return;
    }
    if (cb != NULL) {
        t->impl->close_cb = cb;
    }
    start_close(t->impl);
}
