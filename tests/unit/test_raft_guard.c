/* The guards around libraft.
 *
 * Two fixtures. The first is a fake: a struct raft that was never initialised
 * but for the fields the guard looks at, over a raft_io whose functions record
 * their calls and complete when the test says so. The second is the real
 * thing: three nodes in one process, raft_uv in temporary directories, our
 * transport on the loopback, one event loop.
 *
 * Fault model of the fake: any call can fail at once or later; callbacks come
 * in any order the test likes; the loop turns only when told to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/raft_guard.h"
#include "daemon/transport.h"

/* ======================= fixture: the fake ======================= */

#define SENT_MAX 128

static struct fake
{
    uv_loop_t loop;
    uv_idle_t alive; /* keeps the loop turning */
    struct raft raft;
    struct raft_io io;
    struct raft_guard guard;
    raft_io_tick_cb tick; /* the guard's, as raft_uv would hold them */
    raft_io_recv_cb recv;
    int fail;           /* what the next inner call returns */
    unsigned n_inner;   /* calls that reached the inner io */
    struct raft_message sent[SENT_MAX];
    struct raft_io_send *send_reqs[SENT_MAX];
    raft_io_send_cb send_cbs[SENT_MAX];
    unsigned n_sent;
    struct raft_io_append *append_req;
    raft_io_append_cb append_cb;
    struct raft_io_snapshot_put *put_req;
    raft_io_snapshot_put_cb put_cb;
    struct raft_io_snapshot_get *get_req;
    raft_io_snapshot_get_cb get_cb;
    bool inner_closed;
    /* what reached raft's side */
    unsigned n_ticks, n_received, n_changed, n_before;
    unsigned heartbeat_in_tick;
    raft_time mark_in_tick;
    enum raft_message_type received;
    char received_address[64];
    unsigned n_done;
    int last_status;
    bool closed_before_done;
    bool go_at_once;
} fake;

static struct raft_tracer *tracer; /* the one the guard gave to raft_uv */

/* Take the place of libraft's, to get hold of the tracer. */
void raft_uv_set_tracer(struct raft_io *io, struct raft_tracer *t)
{
    (void)io;
    tracer = t;
}

static int fake_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick,
                      raft_io_recv_cb recv)
{
    (void)io;
    (void)msecs;
    fake.tick = tick;
    fake.recv = recv;
    return 0;
}

static int fake_set_term(struct raft_io *io, raft_term term)
{
    (void)io;
    (void)term;
    fake.n_inner++;
    return fake.fail;
}

static int fake_set_vote(struct raft_io *io, raft_id id)
{
    (void)io;
    (void)id;
    fake.n_inner++;
    return fake.fail;
}

static int fake_truncate(struct raft_io *io, raft_index index)
{
    (void)io;
    (void)index;
    fake.n_inner++;
    return fake.fail;
}

static int fake_send(struct raft_io *io, struct raft_io_send *req,
                     const struct raft_message *message, raft_io_send_cb cb)
{
    (void)io;
    if (fake.fail != 0) {
        return fake.fail;
    }
    assert_true(fake.n_sent < SENT_MAX);
    fake.sent[fake.n_sent] = *message;
    fake.send_reqs[fake.n_sent] = req;
    fake.send_cbs[fake.n_sent++] = cb;
    return 0;
}

static int fake_append(struct raft_io *io, struct raft_io_append *req,
                       const struct raft_entry entries[], unsigned n,
                       raft_io_append_cb cb)
{
    (void)io;
    (void)entries;
    (void)n;
    fake.n_inner++;
    fake.append_req = req;
    fake.append_cb = cb;
    return fake.fail;
}

static int fake_put(struct raft_io *io, unsigned trailing,
                    struct raft_io_snapshot_put *req,
                    const struct raft_snapshot *snapshot,
                    raft_io_snapshot_put_cb cb)
{
    (void)io;
    (void)trailing;
    (void)snapshot;
    fake.n_inner++;
    fake.put_req = req;
    fake.put_cb = cb;
    return fake.fail;
}

static int fake_get(struct raft_io *io, struct raft_io_snapshot_get *req,
                    raft_io_snapshot_get_cb cb)
{
    (void)io;
    fake.n_inner++;
    fake.get_req = req;
    fake.get_cb = cb;
    return fake.fail;
}

static void fake_close(struct raft_io *io, raft_io_close_cb cb)
{
    (void)io;
    (void)cb;
    fake.inner_closed = true;
}

static raft_time fake_time(struct raft_io *io)
{
    (void)io;
    return 100000;
}

static void raft_tick(struct raft_io *io)
{
    (void)io;
    fake.n_ticks++;
    fake.heartbeat_in_tick = fake.raft.heartbeat_timeout;
    fake.mark_in_tick = fake.raft.election_timer_start;
    if (fake.raft.state == RAFT_LEADER) {
        fake.raft.election_timer_start = 100000; /* as raft does */
    }
}

static void raft_recv(struct raft_io *io, struct raft_message *message)
{
    (void)io;
    fake.n_received++;
    fake.received = message->type;
    snprintf(fake.received_address, sizeof fake.received_address, "%s",
             message->server_address);
    if (message->type == RAFT_INSTALL_SNAPSHOT) {
        raft_configuration_close(&message->install_snapshot.conf);
        raft_free(message->install_snapshot.data.base);
    }
}

static void on_changed(void *data)
{
    (void)data;
    fake.n_changed++;
}

static void on_before_snapshot(void *data)
{
    (void)data;
    fake.n_before++;
    if (fake.go_at_once) {
        raft_guard_snapshot_go(&fake.guard);
    }
}

static void on_idle(uv_idle_t *idle)
{
    (void)idle;
}

static int fake_setup(void **state)
{
    struct raft_guard_hooks hooks = {NULL, on_changed, on_before_snapshot};
    struct raft_io *io = &fake.io;

    (void)state;
    memset(&fake, 0, sizeof fake);
    uv_loop_init(&fake.loop);
    uv_idle_init(&fake.loop, &fake.alive);
    uv_idle_start(&fake.alive, on_idle);
    io->version = 1;
    io->start = fake_start;
    io->set_term = fake_set_term;
    io->set_vote = fake_set_vote;
    io->truncate = fake_truncate;
    io->send = fake_send;
    io->append = fake_append;
    io->snapshot_put = fake_put;
    io->snapshot_get = fake_get;
    io->close = fake_close;
    io->time = fake_time;
    fake.raft.state = RAFT_FOLLOWER;
    fake.raft.id = 1;
    fake.raft.heartbeat_timeout = 50;
    fake.raft.election_timeout = 500;
    raft_configuration_init(&fake.raft.configuration);
    raft_configuration_add(&fake.raft.configuration, 1, "a:1", RAFT_VOTER);
    raft_configuration_add(&fake.raft.configuration, 2, "b:1", RAFT_VOTER);
    assert_int_equal(raft_guard_init(&fake.guard, &fake.loop, &fake.raft, io,
                                     50, &hooks),
                     0);
    io->start(io, 50, raft_tick, raft_recv);
    return 0;
}

static int fake_teardown(void **state)
{
    (void)state;
    raft_guard_close(&fake.guard);
    raft_guard_close(&fake.guard); /* idempotent */
    raft_configuration_close(&fake.raft.configuration);
    uv_close((uv_handle_t *)&fake.alive, NULL);
    uv_run(&fake.loop, UV_RUN_DEFAULT);
    return uv_loop_close(&fake.loop);
}

/* ---------------------------- helpers ---------------------------- */

static void turn(void)
{
    uv_run(&fake.loop, UV_RUN_NOWAIT);
}

static void on_done(int status)
{
    fake.n_done++;
    fake.last_status = status;
    fake.closed_before_done = fake.inner_closed;
}

static void send_done(struct raft_io_send *req, int status)
{
    (void)req;
    on_done(status);
}

static void append_done(struct raft_io_append *req, int status)
{
    (void)req;
    on_done(status);
}

static struct raft_io_snapshot_put put_req;
static struct raft_snapshot put_snapshot;

static void put_done(struct raft_io_snapshot_put *req, int status)
{
    (void)req;
    on_done(status);
}

static struct raft_message append_message(raft_index commit, size_t bytes,
                                          struct raft_entry *entry)
{
    struct raft_message m;

    memset(&m, 0, sizeof m);
    memset(entry, 0, sizeof *entry);
    entry->buf.len = bytes;
    m.type = RAFT_APPEND_ENTRIES;
    m.server_id = 2;
    m.server_address = "b:1";
    m.append_entries.entries = entry;
    m.append_entries.n_entries = 1;
    m.append_entries.prev_log_index = commit;
    m.append_entries.leader_commit = commit;
    return m;
}

static struct raft_message install_message(raft_index index, raft_term term)
{
    struct raft_message m;

    memset(&m, 0, sizeof m);
    m.type = RAFT_INSTALL_SNAPSHOT;
    m.server_id = 2;
    m.install_snapshot.last_index = index;
    m.install_snapshot.last_term = term;
    raft_configuration_init(&m.install_snapshot.conf);
    raft_configuration_add(&m.install_snapshot.conf, 1, "a:1", RAFT_VOTER);
    m.install_snapshot.data.base = raft_malloc(8);
    m.install_snapshot.data.len = 8;
    return m;
}

/* Receive one from an address that does not outlive the call. */
static void receive_install(raft_index index)
{
    char address[16];
    struct raft_message m = install_message(index, 1);

    snprintf(address, sizeof address, "b:%llu", index);
    m.server_address = address;
    fake.recv(&fake.io, &m);
    memset(address, 'x', sizeof address - 1);
}

static void contact(raft_id id)
{
    struct raft_message m;

    memset(&m, 0, sizeof m);
    m.type = RAFT_APPEND_ENTRIES_RESULT;
    m.server_id = id;
    m.server_address = "b:1";
    fake.recv(&fake.io, &m);
}

/* In a child: f must abort, after one line that contains what. */
static void assert_fatal(void (*f)(void), const char *what)
{
    char text[2048];
    int fds[2];
    int status;
    ssize_t n;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT, SIG_DFL);
        dup2(fds[1], STDERR_FILENO);
        f();
        _exit(0);
    }
    close(fds[1]);
    n = read(fds[0], text, sizeof text - 1);
    close(fds[0]);
    waitpid(pid, &status, 0);
    text[n < 0 ? 0 : n] = '\0';
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, "event=raft_fatal"));
    assert_non_null(strstr(text, "hint="));
    if (strstr(text, what) == NULL) {
        print_error("wanted %s in %s", what, text);
        fail();
    }
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
}

/* ---------------------------- tests: G1 ---------------------------- */

/* InstallSnapshot waits while a local snapshot is taken; the newest one is
 * delivered when that has ended, with an address that is still good. */
static void install_waits_for_local_snapshot(void **state)
{
    (void)state;
    fake.io.snapshot_put(&fake.io, 10, &put_req, &put_snapshot, put_done);
    assert_true(raft_guard_taking_snapshot(&fake.guard));
    receive_install(100);
    receive_install(200);
    contact(2); /* other messages pass */
    turn();
    assert_int_equal(fake.n_received, 1);
    raft_guard_snapshot_go(&fake.guard);
    turn();
    assert_int_equal(fake.n_received, 1);
    fake.put_cb(fake.put_req, 0);
    assert_int_equal(fake.n_done, 1);
    assert_int_equal(fake.n_received, 1); /* not from within raft's callback */
    turn();
    assert_int_equal(fake.n_received, 2);
    assert_int_equal(fake.received, RAFT_INSTALL_SNAPSHOT);
    assert_string_equal(fake.received_address, "b:200");
}

/* Otherwise it passes; but raft, busy installing one, would ignore and leak
 * another: ASAN sees it. */
static void install_passes_otherwise(void **state)
{
    (void)state;
    receive_install(100);
    assert_int_equal(fake.n_received, 1);
    fake.raft.snapshot.installing = true;
    receive_install(200);
    turn();
    assert_int_equal(fake.n_received, 1);
}

/* A follower that is given a snapshot gets no announcements until it accepts
 * something: raft would answer each rejection with another snapshot. */
static void installing_peer_is_spared_announcements(void **state)
{
    struct raft_message m = install_message(9, 1);
    static struct raft_io_send req;

    (void)state;
    fake.raft.state = RAFT_LEADER;
    contact(2);
    m.server_address = "b:1";
    fake.io.send(&fake.io, &req, &m, send_done);
    fake.raft.commit_index = 5;
    turn();
    assert_int_equal(fake.n_ticks, 0);
    contact(2); /* accepted */
    fake.raft.commit_index = 6;
    turn();
    assert_int_equal(fake.n_ticks, 1);
    fake.send_cbs[0](fake.send_reqs[0], 0);
    raft_configuration_close(&m.install_snapshot.conf);
    raft_free(m.install_snapshot.data.base);
}

/* A held message dies with the guard; ASAN sees a leak. */
static void install_held_at_close(void **state)
{
    (void)state;
    fake.io.snapshot_put(&fake.io, 10, &put_req, &put_snapshot, put_done);
    receive_install(100);
    fake.raft.legacy.closing = true;
    fake.io.close(&fake.io, NULL);
    turn();
    assert_int_equal(fake.n_received, 0);
}

/* ---------------------------- tests: G2 ---------------------------- */

static struct raft_message get_message; /* raft's, sent from the get's cb */

static void get_then_send(struct raft_io_snapshot_get *req,
                          struct raft_snapshot *snapshot, int status)
{
    static struct raft_io_send send;

    (void)req;
    assert_int_equal(status, 0);
    assert_int_equal(snapshot->n_bufs, 1);
    if (snapshot->index != 0) {
        get_message.install_snapshot.last_index = snapshot->index;
    }
    raft_free(snapshot->bufs);
    raft_free(snapshot);
    assert_int_equal(
        fake.io.send(&fake.io, &send, &get_message, send_done), 0);
}

static void complete_get(raft_index index, raft_term term, int status)
{
    struct raft_snapshot *snapshot = raft_malloc(sizeof *snapshot);

    memset(snapshot, 0xa5, sizeof *snapshot); /* raft_uv leaves it like this */
    if (status == 0) {
        snapshot->index = index;
        snapshot->term = term;
        snapshot->bufs = raft_malloc(sizeof *snapshot->bufs);
        snapshot->n_bufs = 1;
    }
    fake.get_cb(fake.get_req, snapshot, status);
}

static void start_get(void)
{
    static struct raft_io_snapshot_get get;

    memset(&get_message, 0, sizeof get_message);
    get_message.type = RAFT_INSTALL_SNAPSHOT;
    get_message.server_id = 2;
    get_message.server_address = "stale";
    get_message.install_snapshot.last_index = 50;
    get_message.install_snapshot.last_term = 3;
    assert_int_equal(
        fake.io.snapshot_get(&fake.io, &get, get_then_send), 0);
}

/* The message names the term of the snapshot that was read, and goes to the
 * address that its receiver has in the current configuration. */
static void install_is_sent_with_its_own_term(void **state)
{
    (void)state;
    start_get();
    complete_get(70, 5, 0);
    assert_int_equal(fake.n_sent, 1);
    assert_int_equal(fake.sent[0].install_snapshot.last_index, 70);
    assert_int_equal(fake.sent[0].install_snapshot.last_term, 5);
    assert_string_equal(fake.sent[0].server_address, "b:1");
    fake.send_cbs[0](fake.send_reqs[0], 0);
}

/* A snapshot that cannot be read is not sent, and raft gets something that it
 * can clean up. */
static void install_unreadable_is_dropped(void **state)
{
    (void)state;
    start_get();
    complete_get(0, 0, RAFT_IOERR);
    assert_int_equal(fake.n_sent, 0);
    assert_int_equal(fake.n_done, 1);
    assert_int_equal(fake.last_status, RAFT_NOCONNECTION);
}

/* One that is read while closing is not sent: raft_uv would connect. */
static void install_read_while_closing_is_dropped(void **state)
{
    (void)state;
    start_get();
    fake.raft.legacy.closing = true;
    fake.io.close(&fake.io, NULL);
    complete_get(70, 5, 0);
    assert_int_equal(fake.n_sent, 0);
    assert_int_equal(fake.last_status, RAFT_CANCELED);
}

/* A server that has left the configuration meanwhile gets nothing. */
static void install_to_removed_server_is_dropped(void **state)
{
    (void)state;
    start_get();
    get_message.server_id = 9;
    complete_get(70, 5, 0);
    assert_int_equal(fake.n_sent, 0);
    assert_int_equal(fake.n_done, 1);
}

/* ---------------------------- tests: G4 ---------------------------- */

static void fail_set_term(void)
{
    fake.fail = RAFT_IOERR;
    fake.io.set_term(&fake.io, 2);
}

static void fail_set_vote(void)
{
    fake.fail = RAFT_IOERR;
    fake.io.set_vote(&fake.io, 2);
}

static void fail_truncate(void)
{
    fake.fail = RAFT_IOERR;
    fake.io.truncate(&fake.io, 2);
}

static struct raft_io_append append_req;

static void fail_append_at_once(void)
{
    fake.fail = RAFT_NOSPACE;
    fake.io.append(&fake.io, &append_req, NULL, 0, append_done);
}

static void fail_append_later(void)
{
    fake.io.append(&fake.io, &append_req, NULL, 0, append_done);
    fake.append_cb(fake.append_req, RAFT_IOERR);
}

/* "cancelled" is an excuse only while closing */
static void fail_append_canceled(void)
{
    fake.io.append(&fake.io, &append_req, NULL, 0, append_done);
    fake.append_cb(fake.append_req, RAFT_CANCELED);
}

static void fail_put_at_once(void)
{
    fake.fail = RAFT_NOMEM;
    fake.io.snapshot_put(&fake.io, 0, &put_req, &put_snapshot, put_done);
}

static void fail_put_later(void)
{
    fake.io.snapshot_put(&fake.io, 0, &put_req, &put_snapshot, put_done);
    fake.put_cb(fake.put_req, RAFT_IOERR);
}

static void trace(const char *message)
{
    struct raft_tracer_info info;

    memset(&info, 0, sizeof info);
    info.version = 1;
    info.diagnostic.message = message;
    tracer->emit(tracer, RAFT_TRACER_DIAGNOSTIC, &info);
}

static void trace_failed_write(void)
{
    trace("retry failed write (write failed: -5)");
}

static void trace_failed_truncate(void)
{
    trace("uv truncate work cb");
    trace("uv truncate after work cb status:0");
}

static void trace_failed_finalize(void)
{
    trace("truncate segment open-3: rename failed");
}

/* Each failing write says so and aborts. */
static void failed_writes_are_fatal(void **state)
{
    (void)state;
    assert_fatal(fail_set_term, "op=set_term");
    assert_fatal(fail_set_vote, "op=set_vote");
    assert_fatal(fail_truncate, "op=truncate");
    assert_fatal(fail_append_at_once, "op=append");
    assert_fatal(fail_append_later, "op=append");
    assert_fatal(fail_append_canceled, "op=append");
    assert_fatal(fail_put_at_once, "op=snapshot_put");
    assert_fatal(fail_put_later, "op=snapshot_put");
}

static void *fake_uv(void)
{
    static char uv[1 << 16]; /* raft_uv's setters write into it */

    return uv;
}

/* What raft_uv only traces is fatal too; a truncation that works is not. */
static void traced_failures_are_fatal(void **state)
{
    (void)state;
    fake.io.impl = fake_uv();
    raft_guard_configure_uv(&fake.guard);
    assert_non_null(tracer);
    trace("uv truncate work cb");
    trace("uv truncate work cb ok");
    trace("uv truncate after work cb status:0");
    trace("anything else");
    assert_fatal(trace_failed_write, "op=append");
    assert_fatal(trace_failed_truncate, "op=truncate");
    assert_fatal(trace_failed_finalize, "op=finalize");
}

static void cancelled_append_at_close(void **state)
{
    (void)state;
    assert_int_equal(raft_guard_oldest_append(&fake.guard), 0);
    fake.io.append(&fake.io, &append_req, NULL, 0, append_done);
    assert_int_not_equal(raft_guard_oldest_append(&fake.guard), 0);
    fake.raft.legacy.closing = true;
    fake.io.close(&fake.io, NULL);
    fake.append_cb(fake.append_req, RAFT_CANCELED);
    assert_int_equal(fake.last_status, RAFT_CANCELED);
    assert_int_equal(raft_guard_oldest_append(&fake.guard), 0);
}

/* ---------------------- tests: the snapshot gate ---------------------- */

static void local_snapshot_waits_for_go(void **state)
{
    (void)state;
    fake.io.snapshot_put(&fake.io, 10, &put_req, &put_snapshot, put_done);
    assert_int_equal(fake.n_before, 1);
    assert_int_equal(fake.n_inner, 0);
    raft_guard_snapshot_go(&fake.guard);
    raft_guard_snapshot_go(&fake.guard); /* no-op */
    assert_int_equal(fake.n_inner, 1);
    fake.put_cb(fake.put_req, 0);
    assert_int_equal(fake.last_status, 0);
    assert_false(raft_guard_taking_snapshot(&fake.guard));
}

static void go_from_within_the_hook(void **state)
{
    (void)state;
    fake.go_at_once = true;
    fake.io.snapshot_put(&fake.io, 10, &put_req, &put_snapshot, put_done);
    assert_int_equal(fake.n_inner, 1);
    fake.put_cb(fake.put_req, 0);
}

static void installed_snapshot_does_not_wait(void **state)
{
    (void)state;
    fake.io.snapshot_put(&fake.io, 0, &put_req, &put_snapshot, put_done);
    assert_int_equal(fake.n_before, 0);
    assert_int_equal(fake.n_inner, 1);
    assert_false(raft_guard_taking_snapshot(&fake.guard));
    fake.put_cb(fake.put_req, 0);
}

/* A waiting put is cancelled before the inner io closes; a late go is a no-op. */
static void close_cancels_waiting_snapshot(void **state)
{
    (void)state;
    fake.io.snapshot_put(&fake.io, 10, &put_req, &put_snapshot, put_done);
    fake.raft.legacy.closing = true;
    fake.io.close(&fake.io, NULL);
    assert_int_equal(fake.n_done, 1);
    assert_int_equal(fake.last_status, RAFT_CANCELED);
    assert_false(fake.closed_before_done);
    assert_true(fake.inner_closed);
    raft_guard_snapshot_go(&fake.guard);
    assert_int_equal(fake.n_inner, 0);
}

/* One that finishes while closing is reported as cancelled: raft would leak an
 * installed one. */
static void snapshot_finished_while_closing(void **state)
{
    (void)state;
    fake.io.snapshot_put(&fake.io, 0, &put_req, &put_snapshot, put_done);
    fake.raft.legacy.closing = true;
    fake.io.close(&fake.io, NULL);
    fake.put_cb(fake.put_req, 0);
    assert_int_equal(fake.last_status, RAFT_CANCELED);
}

/* ---------------------------- tests: G5 ---------------------------- */

/* A peer that does not read costs at most the bound plus one message; what is
 * dropped is released exactly once, and it goes on when there is room. */
static void slow_peer_is_bounded(void **state)
{
    static struct raft_io_send reqs[64];
    struct raft_entry entry;
    struct raft_message m = append_message(1, 1 << 20, &entry);
    unsigned i;

    (void)state;
    for (i = 0; i < 64; i++) {
        assert_int_equal(fake.io.send(&fake.io, &reqs[i], &m, send_done), 0);
    }
    assert_int_equal(fake.n_sent, 16);
    assert_int_equal(fake.n_done, 48);
    assert_int_equal(fake.last_status, RAFT_NOCONNECTION);
    m.server_id = 3; /* others are not concerned */
    fake.io.send(&fake.io, &reqs[0], &m, send_done);
    assert_int_equal(fake.n_sent, 17);
    for (i = 0; i < 17; i++) {
        fake.send_cbs[i](fake.send_reqs[i], 0);
    }
    assert_int_equal(fake.n_done, 65);
    m.server_id = 2;
    fake.io.send(&fake.io, &reqs[0], &m, send_done);
    assert_int_equal(fake.n_sent, 18);
    fake.send_cbs[17](fake.send_reqs[17], RAFT_NOCONNECTION);
}

static void failing_send_returns_success(void **state)
{
    static struct raft_io_send req;
    struct raft_entry entry;
    struct raft_message m = append_message(1, 8, &entry);

    (void)state;
    fake.fail = RAFT_NOMEM;
    assert_int_equal(fake.io.send(&fake.io, &req, &m, send_done), 0);
    assert_int_equal(fake.n_done, 1);
    assert_int_equal(fake.last_status, RAFT_NOCONNECTION);
}

/* ---------------------------- tests: G8 ---------------------------- */

/* Every tick of a leader is a heartbeat; a follower's is left alone. */
static void leader_tick_is_a_heartbeat(void **state)
{
    (void)state;
    fake.tick(&fake.io);
    assert_int_equal(fake.heartbeat_in_tick, 50);
    fake.raft.state = RAFT_LEADER;
    fake.tick(&fake.io);
    assert_int_equal(fake.heartbeat_in_tick, 0);
    assert_int_equal(fake.raft.heartbeat_timeout, 50);
    assert_int_equal(fake.n_changed, 2);
}

/* A commit is announced before the loop sleeps, once, and only to leaders'
 * followers that are there and were not told by an entry. The announcement
 * leaves the mark since when followers must have answered. */
static void commit_is_announced_once(void **state)
{
    static struct raft_io_send req;
    struct raft_entry entry;
    struct raft_message m = append_message(5, 8, &entry);

    (void)state;
    fake.raft.state = RAFT_LEADER;
    fake.raft.election_timer_start = 99990;
    fake.raft.commit_index = 4;
    turn();
    assert_int_equal(fake.n_ticks, 0); /* nobody is there */
    contact(2);
    fake.raft.commit_index = 5;
    turn();
    turn();
    assert_int_equal(fake.n_ticks, 1);
    assert_int_equal(fake.heartbeat_in_tick, 0);
    assert_int_equal(fake.mark_in_tick, 100000 - 375);
    assert_int_equal(fake.raft.election_timer_start, 99990);

    fake.io.send(&fake.io, &req, &m, send_done); /* tells it 5 */
    raft_guard_announce(&fake.guard);
    turn();
    assert_int_equal(fake.n_ticks, 1);
    fake.raft.commit_index = 6;
    turn();
    assert_int_equal(fake.n_ticks, 2);
    raft_guard_announce(&fake.guard); /* it was not told by our fake */
    assert_int_equal(fake.n_ticks, 2);
    turn();
    assert_int_equal(fake.n_ticks, 3);
    fake.send_cbs[0](fake.send_reqs[0], 0);
}

static void last_contact(void **state)
{
    uint64_t before = uv_hrtime();

    (void)state;
    assert_int_equal(raft_guard_last_contact(&fake.guard, 2), 0);
    contact(2);
    assert_true(raft_guard_last_contact(&fake.guard, 2) >= before);
    assert_int_equal(raft_guard_last_contact(&fake.guard, 3), 0);
    assert_int_equal(raft_guard_last_contact(&fake.guard, 0), 0);
}

/* ======================= fixture: three nodes ======================= */

#define NODES 3
#define LIMIT_MS 30000
#define APPLIED_MAX 4096

struct node
{
    uint32_t id;
    char dir[64];
    char address[32];
    struct transport transport;
    struct raft_io io;
    struct raft_fsm fsm;
    struct raft raft;
    struct raft_guard guard;
    bool up;
    /* The state machine: a sum that depends on the order of the entries. */
    uint64_t applied, sum;
    uint64_t applied_ns[APPLIED_MAX]; /* when entry n was applied */
    unsigned n_restored, n_snapshots;
    bool hold_snapshots, snapshot_waits;
};

static uv_loop_t loop;
static uv_timer_t ticker; /* the loop turns at least this often */
static struct node nodes[NODES];
static char base[] = "/tmp/test_raft_guard.XXXXXX";
static unsigned heartbeat_ms, election_ms, threshold, trailing;
static uint64_t n_proposed;

static unsigned free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t n = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    getsockname(fd, (struct sockaddr *)&address, &n);
    close(fd);
    return ntohs(address.sin_port);
}

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf,
                     void **result)
{
    struct node *n = fsm->data;
    uint64_t value;

    memcpy(&value, buf->base, sizeof value);
    n->sum = n->sum * 31 + value;
    n->applied++;
    if (value < APPLIED_MAX) {
        n->applied_ns[value] = uv_hrtime();
    }
    *result = NULL;
    return 0;
}

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[],
                        unsigned *n_bufs)
{
    struct node *n = fsm->data;
    uint64_t *content;

    if (raft_last_applied(&n->raft) != raft_commit_index(&n->raft)) {
        return RAFT_BUSY;
    }
    *bufs = raft_malloc(sizeof **bufs);
    content = raft_malloc(16);
    content[0] = n->applied;
    content[1] = n->sum;
    (*bufs)[0].base = content;
    (*bufs)[0].len = 16;
    *n_bufs = 1;
    n->n_snapshots++;
    return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct node *n = fsm->data;
    const uint64_t *content = buf->base;

    assert_int_equal(buf->len, 16);
    n->applied = content[0];
    n->sum = content[1];
    n->n_restored++;
    raft_free(buf->base);
    return 0;
}

static int allow_all(void *data, uint32_t id, uint64_t identity)
{
    (void)data;
    return identity == id * 1000u ? FLO_OK : FLO_IDENTITY;
}

static void no_peers(void *data, uint32_t id, uv_tcp_t *stream)
{
    (void)data;
    (void)id;
    uv_close((uv_handle_t *)stream, (uv_close_cb)raft_free);
}

static void node_before_snapshot(void *data)
{
    struct node *n = data;

    n->snapshot_waits = n->hold_snapshots;
    if (!n->hold_snapshots) {
        raft_guard_snapshot_go(&n->guard);
    }
}

static void node_bootstrap(struct node *n)
{
    struct raft_configuration conf;
    int i, rv;

    raft_configuration_init(&conf);
    for (i = 0; i < NODES; i++) {
        raft_configuration_add(&conf, nodes[i].id, nodes[i].address,
                               RAFT_VOTER);
    }
    rv = raft_bootstrap(&n->raft, &conf);
    assert_true(rv == 0 || rv == RAFT_CANTBOOTSTRAP);
    raft_configuration_close(&conf);
}

static void node_start(struct node *n)
{
    struct transport_hooks th = {n, allow_all, no_peers};
    struct raft_guard_hooks gh = {n, NULL, node_before_snapshot};

    n->applied = n->sum = 0;
    n->n_restored = n->n_snapshots = 0;
    n->fsm.version = 1;
    n->fsm.data = n;
    n->fsm.apply = fsm_apply;
    n->fsm.snapshot = fsm_snapshot;
    n->fsm.restore = fsm_restore;
    assert_int_equal(transport_init(&n->transport, &loop, n->id, "test",
                                    n->id * 1000u, n->address, n->address,
                                    &th),
                     FLO_OK);
    assert_int_equal(transport_bind(&n->transport), FLO_OK);
    memset(&n->io, 0, sizeof n->io);
    n->io.version = 1;
    assert_int_equal(
        raft_uv_init(&n->io, &loop, n->dir, &n->transport.raft), 0);
    assert_int_equal(raft_guard_init(&n->guard, &loop, &n->raft, &n->io,
                                     heartbeat_ms, &gh),
                     FLO_OK);
    raft_guard_configure_uv(&n->guard);
    assert_int_equal(
        raft_init(&n->raft, &n->io, &n->fsm, n->id, n->address), 0);
    raft_guard_configure(&n->guard, election_ms);
    raft_set_snapshot_threshold(&n->raft, threshold);
    raft_set_snapshot_trailing(&n->raft, trailing);
    node_bootstrap(n);
    assert_int_equal(raft_start(&n->raft), 0);
    n->up = true;
}

static void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static void on_node_closed(struct raft *raft)
{
    struct node *n = (struct node *)((char *)raft - offsetof(struct node, raft));

    raft_guard_close(&n->guard);
    raft_uv_close(&n->io);
    n->up = false;
}

/* ---------------------------- helpers ---------------------------- */

/* Turn the loop until the condition holds; a wait that takes longer than the
 * limit fails the test. */
static void wait_until(bool (*holds)(void *), void *arg)
{
    uint64_t start = uv_hrtime();

    while (!holds(arg)) {
        uv_run(&loop, UV_RUN_ONCE);
        if (uv_hrtime() - start > LIMIT_MS * 1000000ull) {
            fail_msg("waited longer than %d ms", LIMIT_MS);
        }
    }
}

static bool node_is_down(void *arg)
{
    return !((struct node *)arg)->up;
}

static void node_stop(struct node *n)
{
    raft_close(&n->raft, on_node_closed);
    wait_until(node_is_down, n);
}

static struct node *leader(void)
{
    struct node *best = NULL;
    int i;

    for (i = 0; i < NODES; i++) {
        struct node *n = &nodes[i];
        if (n->up && raft_state(&n->raft) == RAFT_LEADER &&
            (best == NULL || raft_current_term(&n->raft) >
                                 raft_current_term(&best->raft))) {
            best = n;
        }
    }
    return best;
}

static bool has_leader(void *arg)
{
    (void)arg;
    return leader() != NULL;
}

static struct node *wait_for_leader(void)
{
    wait_until(has_leader, NULL);
    return leader();
}

/* All nodes that are up have applied everything that was proposed. */
static bool all_applied(void *arg)
{
    int i;

    (void)arg;
    for (i = 0; i < NODES; i++) {
        if (nodes[i].up && nodes[i].applied < n_proposed) {
            return false;
        }
    }
    return true;
}

static void assert_same_state(void)
{
    int i;

    for (i = 1; i < NODES; i++) {
        assert_int_equal(nodes[i].applied, nodes[0].applied);
        assert_int_equal(nodes[i].sum, nodes[0].sum);
    }
}

struct proposal
{
    struct raft_guard_apply req;
    int rc; /* -1: no callback yet */
    unsigned n_cb;
    uint64_t at_ns, done_ns;
};

static void on_applied(struct raft_guard_apply *req, int rc)
{
    struct proposal *p = req->data;

    p->rc = rc;
    p->n_cb++;
    p->done_ns = uv_hrtime();
}

static void *make_entry(size_t n, uint64_t value)
{
    char *entry = calloc(1, n);

    memcpy(entry, &value, sizeof value);
    return entry;
}

static int propose(struct node *n, struct proposal *p)
{
    int rc;

    memset(p, 0, sizeof *p);
    p->req.data = p;
    p->rc = -1;
    p->at_ns = uv_hrtime();
    rc = raft_guard_apply(&n->guard, &p->req, make_entry(64, n_proposed), 64,
                          on_applied);
    if (rc == FLO_OK) {
        n_proposed++;
    }
    return rc;
}

static bool is_answered(void *arg)
{
    return ((struct proposal *)arg)->rc != -1;
}

/* One after the other, each waiting for its commit. */
static void propose_many(struct node *n, unsigned count)
{
    struct proposal p;

    while (count-- > 0) {
        assert_int_equal(propose(n, &p), FLO_OK);
        wait_until(is_answered, &p);
        assert_int_equal(p.rc, FLO_OK);
    }
}

static void start_cluster(unsigned heartbeat, unsigned election)
{
    int i;

    heartbeat_ms = heartbeat;
    election_ms = election;
    for (i = 0; i < NODES; i++) {
        node_start(&nodes[i]);
    }
}

static int cluster_setup(void **state)
{
    static unsigned round;
    int i;

    (void)state;
    if (round++ == 0 && mkdtemp(base) == NULL) {
        return 1;
    }
    memset(nodes, 0, sizeof nodes);
    n_proposed = 0;
    threshold = 1024;
    trailing = 1024;
    uv_loop_init(&loop);
    uv_timer_init(&loop, &ticker);
    uv_timer_start(&ticker, on_tick, 5, 5);
    for (i = 0; i < NODES; i++) {
        struct node *n = &nodes[i];
        n->id = (uint32_t)i + 1;
        snprintf(n->dir, sizeof n->dir, "%s/%u-%u", base, round, n->id);
        snprintf(n->address, sizeof n->address, "127.0.0.1:%u", free_port());
        if (mkdir(n->dir, 0700) != 0) {
            return 1;
        }
    }
    return 0;
}

static int cluster_teardown(void **state)
{
    int i;

    (void)state;
    for (i = 0; i < NODES; i++) {
        if (nodes[i].up) {
            node_stop(&nodes[i]);
        }
    }
    uv_close((uv_handle_t *)&ticker, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop);
}

/* ---------------------------- tests ---------------------------- */

static void elect_and_apply(void **state)
{
    static struct proposal many[200];
    struct node *l;
    int i;

    (void)state;
    start_cluster(50, 300);
    l = wait_for_leader();
    propose_many(l, 100);
    for (i = 0; i < 200; i++) {
        assert_int_equal(propose(l, &many[i]), FLO_OK);
    }
    for (i = 0; i < 200; i++) {
        wait_until(is_answered, &many[i]);
        assert_int_equal(many[i].rc, FLO_OK);
    }
    wait_until(all_applied, NULL);
    assert_int_equal(nodes[0].applied, 300);
    assert_same_state();
    for (i = 0; i < NODES; i++) {
        if (&nodes[i] != l) {
            assert_int_not_equal(
                raft_guard_last_contact(&l->guard, nodes[i].id), 0);
        }
    }
}

/* The window is bounded, and refused entries are freed in every case. */
static void window_and_refusals(void **state)
{
    static struct proposal many[GUARD_WINDOW_COUNT + 1];
    struct node *l;
    struct proposal p;
    int i;

    (void)state;
    start_cluster(50, 300);
    assert_int_equal(propose(&nodes[0], &p), FLO_NOTLEADER);
    l = wait_for_leader();
    for (i = 0; i < NODES; i++) {
        if (&nodes[i] != l) {
            assert_int_equal(propose(&nodes[i], &p), FLO_NOTLEADER);
        }
    }
    for (i = 0; i < GUARD_WINDOW_COUNT; i++) {
        assert_int_equal(propose(l, &many[i]), FLO_OK);
    }
    assert_int_equal(propose(l, &many[i]), FLO_BUSY);
    for (i = 0; i < GUARD_WINDOW_COUNT; i++) {
        wait_until(is_answered, &many[i]);
        assert_int_equal(many[i].rc, FLO_OK);
    }
    assert_int_equal(l->guard.apply_count, 0);
    assert_int_equal(l->guard.apply_bytes, 0);
    assert_int_equal(propose(l, &p), FLO_OK);
    wait_until(is_answered, &p);
    assert_int_equal(raft_guard_apply(&l->guard, &p.req,
                                      malloc(GUARD_WINDOW_BYTES + 8),
                                      GUARD_WINDOW_BYTES + 8, on_applied),
                     FLO_BUSY);
}

static bool ms_passed(void *arg)
{
    return uv_hrtime() >= *(uint64_t *)arg;
}

static uint64_t slowest_apply(uint64_t n)
{
    uint64_t slowest = 0;
    int i;

    for (i = 0; i < NODES; i++) {
        if (nodes[i].applied_ns[n] > slowest) {
            slowest = nodes[i].applied_ns[n];
        }
    }
    return slowest;
}

/* With a heartbeat of 500 ms, isolated entries commit and are applied on every
 * node long before the next heartbeat: followers are told at once, and none of
 * them falls back to probing. Two at a time, so that the second announcement
 * comes before the first is answered. */
static void announce_beats_the_heartbeat(void **state)
{
    struct node *l;
    struct proposal a, b;
    uint64_t until, worst_commit = 0, worst_apply = 0, took;
    unsigned i;

    (void)state;
    start_cluster(500, 3000);
    l = wait_for_leader();
    propose_many(l, 1);
    for (i = 0; i < 40; i++) {
        until = uv_hrtime() + (1 + i * 7 % 130) * 1000000ull;
        wait_until(ms_passed, &until);
        assert_int_equal(propose(l, &a), FLO_OK);
        wait_until(is_answered, &a);
        assert_int_equal(propose(l, &b), FLO_OK);
        wait_until(is_answered, &b);
        wait_until(all_applied, NULL);
        took = b.done_ns - a.at_ns;
        worst_commit = took > worst_commit ? took : worst_commit;
        took = slowest_apply(n_proposed - 1) - b.at_ns;
        worst_apply = took > worst_apply ? took : worst_apply;
    }
    print_message("worst commit %.1f ms, worst apply %.1f ms\n",
                  (double)worst_commit / 1e6, (double)worst_apply / 1e6);
    assert_true(worst_commit < 200 * 1000000ull);
    assert_true(worst_apply < 200 * 1000000ull);
    assert_true(leader() == l);
}

/* Closing the leader ends what it has under way as unknown, refuses more, and
 * another node takes over with everything that was committed. */
static void leader_closes(void **state)
{
    struct proposal pending, late;
    struct node *l;
    struct node *next;
    uint64_t committed;

    (void)state;
    start_cluster(50, 300);
    l = wait_for_leader();
    propose_many(l, 20);
    committed = n_proposed;
    assert_int_equal(propose(l, &pending), FLO_OK);
    raft_close(&l->raft, on_node_closed);
    assert_int_equal(pending.rc, FLO_UNKNOWN);
    assert_int_equal(propose(l, &late), FLO_SHUTDOWN);
    wait_until(node_is_down, l);
    n_proposed = committed;
    next = wait_for_leader();
    assert_ptr_not_equal(next, l);
    propose_many(next, 20);
    wait_until(all_applied, NULL);
    assert_true(next->applied >= 40);
}

/* A follower that was away for longer than the log is kept gets a snapshot and
 * ends up with the same state; so does everybody after a restart of all. */
static void lagging_follower_gets_a_snapshot(void **state)
{
    struct node *l;
    struct node *away;
    int i;

    (void)state;
    threshold = 20;
    trailing = 5;
    start_cluster(50, 300);
    l = wait_for_leader();
    away = &nodes[l->id % NODES];
    propose_many(l, 10);
    node_stop(away);
    propose_many(l, 200);
    assert_true(l->n_snapshots > 3);
    node_start(away);
    wait_until(all_applied, NULL);
    assert_true(away->n_restored > 0);
    assert_same_state();
    propose_many(leader(), 50);
    wait_until(all_applied, NULL);
    for (i = 0; i < NODES; i++) {
        if (&nodes[i] != away) {
            node_stop(&nodes[i]);
        }
    }
    node_stop(away);
    for (i = 0; i < NODES; i++) {
        node_start(&nodes[i]);
    }
    propose_many(wait_for_leader(), 5);
    wait_until(all_applied, NULL);
    assert_int_equal(nodes[0].applied, n_proposed);
    assert_same_state();
}

static bool snapshot_waits(void *arg)
{
    return ((struct node *)arg)->snapshot_waits;
}

/* Commits go on while a snapshot waits for the replica, and a node that is
 * closed then closes cleanly. */
static void close_while_snapshot_waits(void **state)
{
    struct node *l;

    (void)state;
    threshold = 20;
    trailing = 5;
    start_cluster(50, 300);
    l = wait_for_leader();
    l->hold_snapshots = true;
    propose_many(l, 60);
    wait_until(snapshot_waits, l);
    assert_true(raft_guard_taking_snapshot(&l->guard));
    raft_guard_snapshot_go(&l->guard);
    l->snapshot_waits = false;
    propose_many(l, 60);
    wait_until(snapshot_waits, l);
    node_stop(l);
}

/* The rest of the process: transports may close with streams open on both
 * sides, in any order. */
static void restart_all(void **state)
{
    int round, i;

    (void)state;
    start_cluster(50, 300);
    for (round = 0; round < 3; round++) {
        propose_many(wait_for_leader(), 10);
        for (i = 0; i < NODES; i++) {
            raft_close(&nodes[(i + round) % NODES].raft, on_node_closed);
        }
        for (i = 0; i < NODES; i++) {
            wait_until(node_is_down, &nodes[i]);
        }
        for (i = 0; i < NODES; i++) {
            node_start(&nodes[i]);
        }
    }
    n_proposed = 30;
    propose_many(wait_for_leader(), 1);
    wait_until(all_applied, NULL);
    assert_int_equal(nodes[0].applied, 31);
    assert_same_state();
}

static int remove_base(void **state)
{
    char command[64];

    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

int main(void)
{
#define FAKE(f) cmocka_unit_test_setup_teardown(f, fake_setup, fake_teardown)
#define REAL(f) \
    cmocka_unit_test_setup_teardown(f, cluster_setup, cluster_teardown)
    const struct CMUnitTest tests[] = {
        FAKE(install_waits_for_local_snapshot),
        FAKE(install_passes_otherwise),
        FAKE(install_held_at_close),
        FAKE(installing_peer_is_spared_announcements),
        FAKE(install_is_sent_with_its_own_term),
        FAKE(install_unreadable_is_dropped),
        FAKE(install_read_while_closing_is_dropped),
        FAKE(install_to_removed_server_is_dropped),
        FAKE(failed_writes_are_fatal),
        FAKE(traced_failures_are_fatal),
        FAKE(cancelled_append_at_close),
        FAKE(local_snapshot_waits_for_go),
        FAKE(go_from_within_the_hook),
        FAKE(installed_snapshot_does_not_wait),
        FAKE(close_cancels_waiting_snapshot),
        FAKE(snapshot_finished_while_closing),
        FAKE(slow_peer_is_bounded),
        FAKE(failing_send_returns_success),
        FAKE(leader_tick_is_a_heartbeat),
        FAKE(commit_is_announced_once),
        FAKE(last_contact),
        REAL(elect_and_apply),
        REAL(window_and_refusals),
        REAL(announce_beats_the_heartbeat),
        REAL(leader_closes),
        REAL(lagging_follower_gets_a_snapshot),
        REAL(close_while_snapshot_waits),
        REAL(restart_all),
    };
    return cmocka_run_group_tests(tests, NULL, remove_base);
}
