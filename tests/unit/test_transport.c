/* The transport: handshakes of both kinds, everything that is refused, limits,
 * and closing at any moment.
 *
 * Fixture: two transports, a (node 1) and b (node 2), on one loop on the
 * loopback, plus a raw client, which is a plain non-blocking socket that sends
 * whatever a test wants and reads what comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/buf.h"
#include "core/error.h"
#include "daemon/log.h"
#include "daemon/transport.h"

/* --- fixture ------------------------------------------------------------------ */

#define LIMIT_MS 10000
#define HELLO 128
#define ANSWER 16

struct side
{
    struct transport t;
    char address[64];
    struct sockaddr_in sockaddr;
    int identity_rc;      /* what check_identity says */
    uint32_t asked_id;    /* what it was asked */
    uint64_t asked_identity;
    unsigned n_accepted;  /* of either kind */
    uint32_t accepted_id;
    char accepted_address[128];
    uv_stream_t *accepted;
    bool closed;
};

static uv_loop_t loop;
static uv_timer_t ticker;
static struct side a, b;

static struct outcome
{
    unsigned n;
    int status;
    uv_stream_t *stream;
} outcome;

static int check_identity(void *data, uint32_t id, uint64_t identity)
{
    struct side *s = data;

    s->asked_id = id;
    s->asked_identity = identity;
    return s->identity_rc;
}

static void accepted(struct side *s, uint32_t id, uv_stream_t *stream)
{
    assert_null(s->accepted);
    s->n_accepted++;
    s->accepted_id = id;
    s->accepted = stream;
}

static void peer_accepted(void *data, uint32_t id, uv_tcp_t *stream)
{
    accepted(data, id, (uv_stream_t *)stream);
}

static void raft_accepted(struct raft_uv_transport *raft, raft_id id,
                          const char *address, uv_stream_t *stream)
{
    struct transport *t = raft->impl;
    struct side *s = t->hooks.data;

    snprintf(s->accepted_address, sizeof s->accepted_address, "%s", address);
    accepted(s, (uint32_t)id, stream);
}

/* A free port that nobody listens on. */
static void pick_address(struct side *s)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t n = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, n), 0);
    getsockname(fd, (struct sockaddr *)&address, &n);
    close(fd);
    s->sockaddr = address;
    snprintf(s->address, sizeof s->address, "127.0.0.1:%u",
             ntohs(address.sin_port));
}

static void side_start(struct side *s, uint32_t id, const char *cluster)
{
    struct transport_hooks hooks = {s, check_identity, peer_accepted};

    memset(s, 0, sizeof *s);
    pick_address(s);
    assert_int_equal(transport_init(&s->t, &loop, id, cluster, id * 1000u,
                                    s->address, s->address, &hooks),
                     FLO_OK);
    assert_int_equal(s->t.raft.init(&s->t.raft, id, s->address), 0);
}

static void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static int setup(void **state)
{
    (void)state;
    memset(&outcome, 0, sizeof outcome);
    uv_loop_init(&loop);
    uv_timer_init(&loop, &ticker);
    uv_timer_start(&ticker, on_tick, 2, 2);
    side_start(&a, 1, "test");
    side_start(&b, 2, "test");
    assert_int_equal(transport_bind(&a.t), FLO_OK);
    return a.t.raft.listen(&a.t.raft, raft_accepted);
}

static void free_stream(uv_handle_t *handle)
{
    raft_free(handle);
}

static void drop(uv_stream_t **stream)
{
    if (*stream != NULL) {
        uv_close((uv_handle_t *)*stream, free_stream);
        *stream = NULL;
    }
}

static void on_side_closed(struct transport *t)
{
    struct side *s = t->hooks.data;

    s->closed = true;
}

static int teardown(void **state)
{
    (void)state;
    drop(&a.accepted);
    drop(&b.accepted);
    drop(&outcome.stream);
    transport_close(&a.t, on_side_closed);
    transport_close(&b.t, on_side_closed);
    uv_close((uv_handle_t *)&ticker, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_true(a.closed && b.closed);
    return uv_loop_close(&loop);
}

/* --- helpers ------------------------------------------------------------------ */

/* The loop turns until *n reaches want; fails the test after the limit. */
static void wait_for(const unsigned *n, unsigned want)
{
    uint64_t start = uv_hrtime();

    while (*n < want) {
        uv_run(&loop, UV_RUN_ONCE);
        if (uv_hrtime() - start > LIMIT_MS * 1000000ull) {
            fail_msg("waited longer than %d ms", LIMIT_MS);
        }
    }
}

static void on_peer_connected(struct transport_connect *req, uv_tcp_t *stream,
                              int status)
{
    (void)req;
    outcome.n++;
    outcome.status = status;
    outcome.stream = (uv_stream_t *)stream;
}

static void on_raft_connected(struct raft_uv_connect *req, uv_stream_t *stream,
                              int status)
{
    (void)req;
    outcome.n++;
    outcome.status = status;
    outcome.stream = stream;
}

/* b connects to a peer; the status of the request. */
static int connect_peer(uint32_t id, const char *address)
{
    static struct transport_connect req;

    req.cb = on_peer_connected;
    outcome.n = 0;
    assert_int_equal(transport_connect(&b.t, &req, id, address), FLO_OK);
    assert_int_equal(outcome.n, 0);
    wait_for(&outcome.n, 1);
    assert_true((outcome.status == FLO_OK) == (outcome.stream != NULL));
    return outcome.status;
}

static int connect_raft(raft_id id, const char *address)
{
    static struct raft_uv_connect req;

    outcome.n = 0;
    assert_int_equal(b.t.raft.connect(&b.t.raft, &req, id, address,
                                      on_raft_connected),
                     0);
    assert_int_equal(outcome.n, 0);
    wait_for(&outcome.n, 1);
    return outcome.status;
}

static int raw_connect(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(
        connect(fd, (struct sockaddr *)&a.sockaddr, sizeof a.sockaddr), 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* Read until the other side closes or n bytes are there. Returns how many. */
static size_t raw_read(int fd, uint8_t *bytes, size_t n)
{
    uint64_t start = uv_hrtime();
    size_t got = 0;

    while (got < n) {
        ssize_t rc = recv(fd, bytes + got, n - got, 0);
        if (rc == 0 || (rc < 0 && errno != EAGAIN)) {
            break;
        }
        got += rc > 0 ? (size_t)rc : 0;
        uv_run(&loop, UV_RUN_ONCE);
        if (uv_hrtime() - start > LIMIT_MS * 1000000ull) {
            fail_msg("waited longer than %d ms", LIMIT_MS);
        }
    }
    return got;
}

static void make_hello(uint8_t p[HELLO], uint8_t kind)
{
    memset(p, 0, HELLO);
    memcpy(p, "FLOH", 4);
    store_u16(p + 4, TRANSPORT_VERSION);
    p[6] = kind;
    store_u32(p + 8, 2);
    store_u32(p + 12, 1);
    store_u64(p + 16, XXH3_64bits("test", 4));
    store_u64(p + 24, 2000);
    memcpy(p + 32, "10.0.0.2:7001", 13);
}

/* Send a hello, and more right behind it, and return the answer's code; -1 if
 * there is none. */
static int raw_handshake(const uint8_t *hello, int *keep)
{
    uint8_t answer[ANSWER + 1];
    int fd = raw_connect();
    size_t n;

    assert_int_equal(send(fd, hello, HELLO, MSG_NOSIGNAL), HELLO);
    n = raw_read(fd, answer, keep != NULL ? ANSWER : ANSWER + 1);
    if (keep != NULL) {
        *keep = fd;
    } else {
        close(fd);
    }
    if (n == 0) {
        return -1;
    }
    assert_int_equal(n, ANSWER);
    assert_memory_equal(answer, "FLOA", 4);
    assert_int_equal(load_u16(answer + 4), TRANSPORT_VERSION);
    assert_int_equal(load_u64(answer + 8), 1000);
    return load_u16(answer + 6);
}

static unsigned n_received;
static char received[64];

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)handle;
    (void)suggested;
    *buf = uv_buf_init(received + n_received,
                       (unsigned)(sizeof received - n_received));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    (void)stream;
    (void)buf;
    n_received += n > 0 ? (unsigned)n : 0;
}

static void assert_arrives(uv_stream_t *from, uv_stream_t *to, const char *text)
{
    uv_buf_t buf = uv_buf_init((char *)text, (unsigned)strlen(text));

    n_received = 0;
    uv_read_start(to, on_alloc, on_read);
    assert_int_equal(uv_try_write(from, &buf, 1), (int)buf.len);
    wait_for(&n_received, buf.len);
    assert_memory_equal(received, text, buf.len);
    uv_read_stop(to);
}

static void assert_nodelay(uv_stream_t *stream)
{
    socklen_t n = sizeof(int);
    int on = 0;
    int fd;

    uv_fileno((uv_handle_t *)stream, &fd);
    getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &n);
    assert_int_equal(on, 1);
    getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &n);
    assert_int_equal(on, 1);
    getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &on, &n);
    assert_true(on > 0);
}

/* --- tests: what works --------------------------------------------------------- */

static void peer_link(void **state)
{
    (void)state;
    assert_int_equal(connect_peer(1, a.address), FLO_OK);
    wait_for(&a.n_accepted, 1);
    assert_int_equal(a.accepted_id, 2);
    assert_int_equal(a.asked_id, 2);
    assert_int_equal(a.asked_identity, 2000);
    assert_int_equal(b.asked_id, 1);
    assert_int_equal(b.asked_identity, 1000);
    assert_arrives(outcome.stream, a.accepted, "to a");
    assert_arrives(a.accepted, outcome.stream, "to b");
    assert_nodelay(a.accepted);
    assert_nodelay(outcome.stream);
}

static void raft_stream(void **state)
{
    (void)state;
    assert_int_equal(connect_raft(1, a.address), 0);
    wait_for(&a.n_accepted, 1);
    assert_int_equal(a.accepted_id, 2);
    assert_string_equal(a.accepted_address, b.address);
    assert_arrives(outcome.stream, a.accepted, "raft");
}

/* Bytes right behind the handshake belong to whoever gets the stream. */
static void nothing_is_read_beyond_the_handshake(void **state)
{
    uint8_t bytes[HELLO + 5];
    int fd = raw_connect();

    (void)state;
    make_hello(bytes, 1);
    memcpy(bytes + HELLO, "extra", 5);
    assert_int_equal(send(fd, bytes, sizeof bytes, MSG_NOSIGNAL), HELLO + 5);
    wait_for(&a.n_accepted, 1);
    n_received = 0;
    uv_read_start(a.accepted, on_alloc, on_read);
    wait_for(&n_received, 5);
    assert_memory_equal(received, "extra", 5);
    close(fd);
}

/* A handshake that comes byte by byte. */
static void handshake_in_pieces(void **state)
{
    uint8_t hello[HELLO];
    int fd = raw_connect();
    int i;

    (void)state;
    make_hello(hello, 2);
    for (i = 0; i < HELLO; i++) {
        assert_int_equal(a.n_accepted, 0);
        assert_int_equal(send(fd, hello + i, 1, MSG_NOSIGNAL), 1);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    wait_for(&a.n_accepted, 1);
    close(fd);
}

static void by_name(void **state)
{
    char address[64];

    (void)state;
    snprintf(address, sizeof address, "localhost%s", strchr(a.address, ':'));
    assert_int_equal(connect_peer(1, address), FLO_OK);
    wait_for(&a.n_accepted, 1);
}

static void over_ipv6(void **state)
{
    struct transport_hooks hooks = {&a, check_identity, peer_accepted};
    struct transport six;
    char address[64];
    int rc;

    (void)state;
    snprintf(address, sizeof address, "[::1]%s", strchr(b.address, ':'));
    transport_init(&six, &loop, 1, "test", 1000, address, address, &hooks);
    rc = transport_bind(&six);
    if (rc == FLO_OK) {
        assert_int_equal(connect_peer(1, address), FLO_OK);
        wait_for(&a.n_accepted, 1);
    } else {
        print_message("no IPv6 here: %s\n", six.errmsg);
    }
    transport_close(&six, NULL);
}

/* --- tests: what is refused ------------------------------------------------------ */

static void wrong_node_number(void **state)
{
    (void)state;
    assert_int_equal(connect_peer(3, a.address), FLO_IDENTITY);
    assert_int_equal(connect_raft(3, a.address), RAFT_NOCONNECTION);
    assert_int_equal(a.n_accepted, 0);
}

static void wrong_cluster(void **state)
{
    (void)state;
    b.t.cluster++;
    assert_int_equal(connect_peer(1, a.address), FLO_IDENTITY);
    assert_int_equal(a.asked_id, 0); /* not even asked */
}

static void acceptor_refuses_identity(void **state)
{
    (void)state;
    a.identity_rc = FLO_IDENTITY;
    assert_int_equal(connect_peer(1, a.address), FLO_IDENTITY);
    assert_int_equal(connect_raft(1, a.address), RAFT_NOCONNECTION);
    assert_int_equal(a.n_accepted, 0);
    a.identity_rc = FLO_OK;
    assert_int_equal(connect_peer(1, a.address), FLO_OK);
}

/* The connector checks who answers, too; the acceptor sees it go away. */
static void connector_refuses_identity(void **state)
{
    (void)state;
    b.identity_rc = FLO_IDENTITY;
    assert_int_equal(connect_peer(1, a.address), FLO_IDENTITY);
    assert_null(outcome.stream);
}

static void wrong_versions(void **state)
{
    uint8_t hello[HELLO];

    (void)state;
    make_hello(hello, 2);
    store_u16(hello + 4, TRANSPORT_VERSION + 1);
    assert_int_equal(raw_handshake(hello, NULL), FLO_VERSION);
    make_hello(hello, 3);
    assert_int_equal(raw_handshake(hello, NULL), FLO_PROTOCOL);
    make_hello(hello, 2);
    hello[HELLO - 1] = 'x';
    assert_int_equal(raw_handshake(hello, NULL), FLO_PROTOCOL);
    make_hello(hello, 2);
    store_u32(hello + 8, 1);
    assert_int_equal(raw_handshake(hello, NULL), FLO_IDENTITY);
    store_u32(hello + 8, 0);
    assert_int_equal(raw_handshake(hello, NULL), FLO_IDENTITY);
    assert_int_equal(a.n_accepted, 0);
}

static void garbage(void **state)
{
    uint8_t bytes[HELLO];

    (void)state;
    memset(bytes, 'G', sizeof bytes);
    assert_int_equal(raw_handshake(bytes, NULL), -1);
    assert_int_equal(a.n_accepted, 0);
}

/* Every truncation ends in nothing but a closed connection. */
static void truncated(void **state)
{
    uint8_t hello[HELLO];
    uint8_t byte;
    int i;

    (void)state;
    make_hello(hello, 2);
    for (i = 0; i < HELLO; i++) {
        int fd = raw_connect();
        if (i > 0) {
            assert_int_equal(send(fd, hello, (size_t)i, MSG_NOSIGNAL), i);
        }
        shutdown(fd, SHUT_WR);
        assert_int_equal(raw_read(fd, &byte, 1), 0);
        close(fd);
    }
    assert_int_equal(a.n_accepted, 0);
}

/* A raft stream that comes before raft listens is told to come again. */
static void raft_stream_before_raft_listens(void **state)
{
    uint8_t hello[HELLO];

    (void)state;
    assert_int_equal(transport_bind(&b.t), FLO_OK);
    make_hello(hello, 1);
    store_u32(hello + 8, 1);
    store_u32(hello + 12, 2);
    a.sockaddr = b.sockaddr; /* raw_connect goes to b */
    {
        uint8_t answer[ANSWER];
        int fd = raw_connect();
        assert_int_equal(send(fd, hello, HELLO, MSG_NOSIGNAL), HELLO);
        assert_int_equal(raw_read(fd, answer, ANSWER), ANSWER);
        assert_int_equal(load_u16(answer + 6), FLO_BUSY);
        close(fd);
    }
    assert_int_equal(b.n_accepted, 0);
}

/* --- tests: time and numbers ------------------------------------------------------ */

static void slow_handshake(void **state)
{
    uint64_t start = uv_hrtime();
    uint8_t hello[HELLO];
    uint8_t byte;
    int fd;

    (void)state;
    a.t.handshake_ms = 50;
    make_hello(hello, 2);
    fd = raw_connect();
    assert_int_equal(send(fd, hello, 100, MSG_NOSIGNAL), 100);
    assert_int_equal(raw_read(fd, &byte, 1), 0);
    assert_true(uv_hrtime() - start >= 45 * 1000000ull);
    close(fd);
}

/* Somebody listens but never answers. */
static void silent_acceptor(void **state)
{
    struct side mute;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    (void)state;
    pick_address(&mute);
    bind(fd, (struct sockaddr *)&mute.sockaddr, sizeof mute.sockaddr);
    listen(fd, 1);
    b.t.handshake_ms = 50;
    assert_int_equal(connect_peer(1, mute.address), FLO_TIMEOUT);
    assert_int_equal(connect_raft(1, mute.address), RAFT_NOCONNECTION);
    close(fd);
}

/* Somebody accepts and answers with something else, or closes half way. */
static void answer_with(const void *bytes, size_t n, int want)
{
    static struct transport_connect req;
    struct side other;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int conn;

    pick_address(&other);
    bind(fd, (struct sockaddr *)&other.sockaddr, sizeof other.sockaddr);
    listen(fd, 1);
    req.cb = on_peer_connected;
    outcome.n = 0;
    assert_int_equal(transport_connect(&b.t, &req, 1, other.address), FLO_OK);
    conn = accept(fd, NULL, NULL);
    assert_true(conn >= 0);
    assert_int_equal(send(conn, bytes, n, MSG_NOSIGNAL), (int)n);
    shutdown(conn, SHUT_WR);
    wait_for(&outcome.n, 1);
    assert_int_equal(outcome.status, want);
    close(conn);
    close(fd);
}

static void strange_answers(void **state)
{
    uint8_t answer[ANSWER] = "FLOA\1\0\0\0";
    size_t i;

    (void)state;
    for (i = 1; i < ANSWER; i++) {
        answer_with(answer, i, FLO_IO);
    }
    answer_with("HTTP/1.1 400 Bad", 16, FLO_PROTOCOL);
    answer[4] = 2;
    answer_with(answer, ANSWER, FLO_VERSION);
    answer[4] = 1;
    answer[6] = 99;
    answer_with(answer, ANSWER, FLO_PROTOCOL);
    answer[6] = FLO_VERSION;
    answer_with(answer, ANSWER, FLO_VERSION);
}

static void nobody_there(void **state)
{
    (void)state;
    assert_int_equal(connect_peer(1, b.address), FLO_IO); /* not bound */
    assert_int_equal(connect_raft(1, b.address), RAFT_NOCONNECTION);
    /* a label over 63 bytes is no name, and no server needs to be asked */
    assert_int_equal(
        connect_peer(1, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                        "aaaaaaaaaaaaaaaaaaaa.invalid:1"),
        FLO_NOTFOUND);
}

static void bad_address(void **state)
{
    struct transport_connect req = {.cb = on_peer_connected};

    (void)state;
    assert_int_equal(transport_connect(&b.t, &req, 1, "nonsense"), FLO_INVALID);
    assert_int_equal(outcome.n, 0);
}

/* At most 64 handshakes at a time; the 65th is closed at once, and there is
 * room again when one ends. */
static void handshake_limit(void **state)
{
    uint8_t hello[HELLO];
    uint8_t byte;
    int fds[64];
    int i, fd;

    (void)state;
    for (i = 0; i < 64; i++) {
        fds[i] = raw_connect();
        uv_run(&loop, UV_RUN_ONCE);
    }
    for (i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    fd = raw_connect();
    assert_int_equal(raw_read(fd, &byte, 1), 0);
    close(fd);
    close(fds[0]);
    for (i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    make_hello(hello, 2);
    assert_int_equal(raw_handshake(hello, &fd), FLO_OK);
    close(fd);
    for (i = 1; i < 64; i++) {
        close(fds[i]);
    }
}

static void port_in_use(void **state)
{
    struct transport_hooks hooks = {&a, check_identity, peer_accepted};
    struct transport second;

    (void)state;
    transport_init(&second, &loop, 3, "test", 3000, a.address, a.address,
                   &hooks);
    assert_int_equal(transport_bind(&second), FLO_IO);
    assert_non_null(strstr(second.errmsg, a.address));
    assert_non_null(strstr(second.errmsg, "address already in use"));
    transport_close(&second, NULL);
}

static void unbindable(void **state)
{
    struct transport_hooks hooks = {&a, check_identity, peer_accepted};
    struct transport t;

    (void)state;
    transport_init(&t, &loop, 3, "test", 3000, "x:1", "192.0.2.1:7001", &hooks);
    assert_int_equal(transport_bind(&t), FLO_IO);
    assert_non_null(strstr(t.errmsg, "192.0.2.1:7001: "));
    transport_close(&t, NULL);
}

static void raft_must_agree_who_we_are(void **state)
{
    (void)state;
    assert_int_equal(a.t.raft.init(&a.t.raft, 9, a.address), RAFT_INVALID);
    assert_int_equal(a.t.raft.init(&a.t.raft, 1, "b:1"), RAFT_INVALID);
}

/* --- tests: closing ---------------------------------------------------------------- */

/* Requests under way end with FLO_SHUTDOWN, whatever they are doing. */
static void close_while_connecting(void **state)
{
    static struct transport_connect reqs[3];
    static struct raft_uv_connect raft_req;
    struct transport_connect late = {.cb = on_peer_connected};

    (void)state;
    reqs[0].cb = reqs[1].cb = reqs[2].cb = on_peer_connected;
    transport_connect(&b.t, &reqs[0], 1, a.address);
    transport_connect(&b.t, &reqs[1], 1, "localhost:1");
    transport_connect(&b.t, &reqs[2], 1, b.address); /* nobody there */
    transport_close(&b.t, on_side_closed);
    transport_close(&b.t, on_side_closed); /* idempotent */
    assert_int_equal(outcome.n, 0);
    wait_for(&outcome.n, 3);
    assert_int_equal(outcome.status, FLO_SHUTDOWN);
    assert_int_equal(transport_connect(&b.t, &late, 1, a.address),
                     FLO_SHUTDOWN);
    assert_int_equal(b.t.raft.connect(&b.t.raft, &raft_req, 1, a.address,
                                      on_raft_connected),
                     RAFT_CANCELED);
}

static unsigned n_raft_closed;

static void on_raft_closed(struct raft_uv_transport *raft)
{
    (void)raft;
    n_raft_closed++;
}

static void raft_closes(void **state)
{
    static struct raft_uv_connect req;

    (void)state;
    n_raft_closed = 0;
    b.t.raft.connect(&b.t.raft, &req, 1, a.address, on_raft_connected);
    b.t.raft.close(&b.t.raft, on_raft_closed);
    assert_int_equal(n_raft_closed, 0);
    wait_for(&n_raft_closed, 1);
    assert_int_equal(outcome.n, 1);
    assert_int_equal(outcome.status, RAFT_CANCELED);
    assert_null(outcome.stream);
}

/* Half-open: the acceptor closes while handshakes are in all their stages. */
static void close_while_accepting(void **state)
{
    uint8_t hello[HELLO];
    uint8_t byte;
    int fds[3];
    int i;

    (void)state;
    make_hello(hello, 2);
    for (i = 0; i < 3; i++) {
        fds[i] = raw_connect();
        if (i > 0) {
            send(fds[i], hello, (size_t)(i * 60), MSG_NOSIGNAL);
        }
    }
    for (i = 0; i < 10; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    transport_close(&a.t, on_side_closed);
    for (i = 0; i < 3; i++) {
        assert_int_equal(raw_read(fds[i], &byte, 1), 0);
        close(fds[i]);
    }
    assert_int_equal(a.n_accepted, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(peer_link),
        TEST(raft_stream),
        TEST(nothing_is_read_beyond_the_handshake),
        TEST(handshake_in_pieces),
        TEST(by_name),
        TEST(over_ipv6),
        TEST(wrong_node_number),
        TEST(wrong_cluster),
        TEST(acceptor_refuses_identity),
        TEST(connector_refuses_identity),
        TEST(wrong_versions),
        TEST(garbage),
        TEST(truncated),
        TEST(raft_stream_before_raft_listens),
        TEST(slow_handshake),
        TEST(silent_acceptor),
        TEST(strange_answers),
        TEST(nobody_there),
        TEST(bad_address),
        TEST(handshake_limit),
        TEST(port_in_use),
        TEST(unbindable),
        TEST(raft_must_agree_who_we_are),
        TEST(close_while_connecting),
        TEST(raft_closes),
        TEST(close_while_accepting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
