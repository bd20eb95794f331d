/* The fake daemon; see fake_daemon.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include "tests/unit/fake_daemon.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/error.h"
#include "core/fence.h"
#include "core/wire.h"

#define CONNS 32
#define QUEUE 64

static int control_fd = -1;

/* ---- In the test program -------------------------------------------------------- */

struct fake *fake_new(void)
{
    struct fake *f;

    control_fd = memfd_create("fake", 0);
    assert(control_fd >= 0 && ftruncate(control_fd, sizeof *f) == 0);
    f = mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED, control_fd, 0);
    assert(f != MAP_FAILED);
    return f;
}

void fake_free(struct fake *f)
{
    munmap(f, sizeof *f);
    close(control_fd);
}

pid_t fake_start(struct fake *f, const char *dir)
{
    char fd[16];
    pid_t pid;
    int i;

    f->ready = 0;
    snprintf(fd, sizeof fd, "%d", control_fd);
    pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "fake-daemon", "--fake-daemon", dir, fd,
              (char *)NULL);
        _exit(127);
    }
    for (i = 0; i < 5000 && !f->ready; i++) {
        usleep(1000);
    }
    assert(f->ready);
    return pid;
}

void fake_stop(pid_t pid, int sig)
{
    if (pid > 0) {
        kill(pid, sig);
        waitpid(pid, NULL, 0);
    }
}

/* ---- In the daemon's process ------------------------------------------------------ */

struct conn
{
    int fd;
    struct buf in;
};

struct waiting
{
    struct conn *conn;
    uint64_t request;
    int64_t until;
    char db[64];
};

static struct fake *fake;
static char dir[4096];
static struct conn conns[CONNS];
static struct waiting queue[QUEUE];
static int n_queue;

/* One database at a time is written; enough for these tests. */
static struct fence fence = {-1};
static char fence_db[64];
static struct conn *holder;
static uint64_t grant, txid;
static int64_t linger_until;
static uint64_t committed_id;
static bool returning; /* released: take the fence back */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void path_of(char *out, size_t n, const char *db, const char *end)
{
    snprintf(out, n, "%s/%s.db%s", dir, db, end);
}

/* Kept open, as the daemon does: so the wal-index stays valid. */
static sqlite3 *open_db(const char *db)
{
    static sqlite3 *open;
    static char open_name[64];
    char path[5000];

    if (open == NULL || strcmp(open_name, db) != 0) {
        sqlite3_close(open);
        path_of(path, sizeof path, db, "");
        assert(sqlite3_open(path, &open) == SQLITE_OK);
        snprintf(open_name, sizeof open_name, "%.63s", db);
        sqlite3_busy_timeout(open, 5000);
        sqlite3_exec(open, "PRAGMA wal_autocheckpoint=0", NULL, NULL, NULL);
        sqlite3_db_config(open, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    }
    return open;
}

static void sql(const char *db, const char *text)
{
    char *error = NULL;

    if (sqlite3_exec(open_db(db), text, NULL, NULL, &error) != SQLITE_OK) {
        fprintf(stderr, "fake daemon: %s: %s\n", text, error);
        abort();
    }
}

static void use_fence(const char *db)
{
    char path[5000];

    if (strcmp(fence_db, db) == 0) {
        return;
    }
    fence_close(&fence);
    path_of(path, sizeof path, db, "-fence");
    assert(fence_open(&fence, path, 1) == FLO_OK);
    snprintf(fence_db, sizeof fence_db, "%s", db);
    while (fence_try_lock(&fence) == FLO_BUSY) {
        usleep(1000);
    }
    sql(db, "SELECT count(*) FROM sqlite_schema");
}

static void send_msg(struct conn *c, const struct wire_msg *m)
{
    struct buf out;

    buf_init(&out, WIRE_BODY_MAX + WIRE_HEADER);
    assert(wire_encode(&out, m) == FLO_OK);
    if (c->fd >= 0) {
        (void)!send(c->fd, out.data, out.len, MSG_NOSIGNAL);
    }
    buf_close(&out);
}

static void result(struct conn *c, uint64_t request, int code, uint64_t id)
{
    struct wire_msg m = {.type = MSG_RESULT, .request = request};

    m.result.code = (uint32_t)code;
    m.result.txid = id;
    snprintf(m.result.text, sizeof m.result.text, "scripted");
    send_msg(c, &m);
}

static void close_conn(struct conn *c)
{
    int i, j = 0;

    close(c->fd);
    c->fd = -1;
    buf_close(&c->in);
    for (i = 0; i < n_queue; i++) {
        if (queue[i].conn != c) {
            queue[j++] = queue[i];
        }
    }
    n_queue = j;
    if (holder == c) {
        holder = NULL;
        returning = true;
    }
}

static void give(struct waiting *w)
{
    struct wire_msg m = {.type = MSG_GRANT, .request = w->request};

    use_fence(w->db);
    if (fake->move_on_grant > 0) {
        fake->move_on_grant--;
        sql(w->db, "CREATE TABLE IF NOT EXISTS foreign_writes(x); "
                   "INSERT INTO foreign_writes VALUES(1)");
        txid++;
    }
    grant++;
    assert(fence_set(&fence, grant) == FLO_OK);
    fence_unlock(&fence);
    holder = w->conn;
    m.grant.grant = grant + (fake->wrong_fence ? 1000 : 0);
    m.grant.txid = txid;
    fake->grants++;
    send_msg(w->conn, &m);
}

static void serve_queue(void)
{
    int64_t now = now_ms();
    int i;

    if (returning && fence_try_lock(&fence) == FLO_OK) {
        returning = false;
    }
    for (i = 0; i < n_queue;) {
        struct waiting w = queue[i];
        bool lent = holder != NULL || returning || fake->hold_lock ||
                    (linger_until > now);
        if (!lent || w.until <= now) {
            memmove(queue + i, queue + i + 1,
                    (size_t)(n_queue - i - 1) * sizeof *queue);
            n_queue--;
            if (!lent) {
                give(&w);
            } else {
                result(w.conn, w.request, FLO_BUSY, 0);
            }
        } else {
            i++;
        }
    }
}

static struct conn *lingering;

static void on_lock(struct conn *c, const struct wire_msg *m)
{
    struct waiting w = {.conn = c, .request = m->request,
                        .until = now_ms() + m->lock.timeout_ms};

    fake->lock_timeout_ms = (int)m->lock.timeout_ms;
    snprintf(w.db, sizeof w.db, "%.63s", m->lock.db);
    if (linger_until > now_ms() && lingering == c) {
        struct wire_msg g = {.type = MSG_GRANT, .request = m->request};
        while (returning && fence_try_lock(&fence) != FLO_OK) {
            usleep(100);
        }
        returning = false;
        linger_until = 0;
        fence_unlock(&fence);
        holder = c;
        g.grant.grant = grant;
        g.grant.txid = txid;
        fake->grants++;
        send_msg(c, &g);
        return;
    }
    assert(n_queue < QUEUE);
    queue[n_queue++] = w;
}

static void on_cancel(struct conn *c, const struct wire_msg *m)
{
    int i;

    for (i = 0; i < n_queue; i++) {
        if (queue[i].conn == c && queue[i].request == m->cancel.cancelled) {
            struct waiting w = queue[i];
            memmove(queue + i, queue + i + 1,
                    (size_t)(n_queue - i - 1) * sizeof *queue);
            n_queue--;
            if (fake->grant_on_cancel) {
                give(&w);
            } else {
                result(c, w.request, FLO_BUSY, 0);
            }
            return;
        }
    }
}

static void on_release(struct conn *c, const struct wire_msg *m)
{
    fake->last_linger_ms = (int)m->release.linger_ms;
    if (holder != c || m->release.grant != grant) {
        return;
    }
    holder = NULL;
    returning = true;
    if (m->release.linger_ms > 0 && !fake->always_stale) {
        lingering = c;
        linger_until = now_ms() + m->release.linger_ms;
    }
}

/* The frame headers as they are in the file now. */
static void check_wal(const struct wire_msg *m)
{
    char path[5000];
    uint8_t raw[32];
    uint32_t page_size;
    off_t at;
    int fd;

    path_of(path, sizeof path, fence_db, "-wal");
    fd = open(path, O_RDONLY);
    assert(fd >= 0 && pread(fd, raw, 32, 0) == 32);
    page_size = load_u32_be(raw + 8);
    at = 32 + (off_t)(m->commit.last_frame - 1) * (24 + page_size);
    if (pread(fd, raw, 24, at) == 24 &&
        memcmp(raw, m->commit.header.data, 24) == 0) {
        fake->header_too_early++;
    }
    if (lseek(fd, 0, SEEK_END) < at + 24 + (off_t)page_size) {
        fake->frames_missing++;
    }
    close(fd);
}

static void on_commit(struct conn *c, const struct wire_msg *m)
{
    int code = fake->code[MSG_COMMIT];

    check_wal(m);
    if (holder != c || m->commit.grant != grant) {
        code = FLO_LOST;
    }
    if (code == FLO_OK) {
        txid++;
        committed_id = m->commit.commit_id;
    }
    result(c, m->request, code, txid);
}

static void on_init(struct conn *c, const struct wire_msg *m)
{
    static const char *const encodings[] = {"", "UTF-8", "UTF-16le", "UTF-16be"};
    char text[256];
    int code = fake->code[MSG_INIT];

    fake->init_page_size = (int)m->init.page_size;
    fake->init_auto_vacuum = m->init.auto_vacuum;
    fake->init_encoding = m->init.encoding;
    if (code == FLO_OK) {
        snprintf(text, sizeof text,
                 "PRAGMA page_size=%u; PRAGMA auto_vacuum=%d; "
                 "PRAGMA encoding='%s'; PRAGMA journal_mode=WAL; "
                 "PRAGMA user_version=0;", m->init.page_size,
                 m->init.auto_vacuum, encodings[m->init.encoding]);
        sql(m->init.db, text);
        use_fence(m->init.db);
        txid = 1;
    }
    result(c, m->request, code, txid);
}

static void on_open(struct conn *c, const struct wire_msg *m)
{
    char path[5000];

    if (fake->code[MSG_OPEN] == FLO_OK && m->open.create) {
        path_of(path, sizeof path, m->open.db, "");
        close(open(path, O_RDWR | O_CREAT, 0644));
        use_fence(m->open.db);
    }
    result(c, m->request, fake->code[MSG_OPEN], 0);
}

static void on_table(struct conn *c, const struct wire_msg *m)
{
    static const char *const status[] = {"1", "test", "leader", "1",
        "127.0.0.1:9001", "7", "9007199254740993", "41", "1", "", "0.1"};
    static const char *const nodes[] = {"1", "127.0.0.1:9001", "voter", "1",
        "1", "1", "healthy", "41", "0", ""};
    static const char *const databases[] = {"app", "5", "00ff", "4096", "2",
        "3", "good", "healthy"};
    const char *const *row = m->table.table == TABLE_STATUS ? status
                             : m->table.table == TABLE_NODES ? nodes : databases;
    struct wire_msg a = {.type = MSG_ROWS, .request = m->request};
    struct buf cells;
    uint32_t i, n = m->table.table == TABLE_STATUS ? 11
                    : m->table.table == TABLE_NODES ? 10 : 8;

    buf_init(&cells, 4096);
    for (i = 0; i < n; i++) {
        assert(wire_put_str(&cells, row[i]) == FLO_OK);
    }
    a.rows.n_rows = 1;
    a.rows.n_columns = n;
    a.rows.cells = (struct wire_blob){cells.data, (uint32_t)cells.len};
    send_msg(c, &a);
    buf_close(&cells);
}

static void on_outcome(struct conn *c, const struct wire_msg *m)
{
    int code = fake->code[MSG_OUTCOME];

    if (code == FLO_OK) {
        code = m->outcome.commit_id == committed_id ? FLO_OK : FLO_NOTFOUND;
    }
    result(c, m->request, code, m->outcome.txid);
}

static void answer(struct conn *c, const struct wire_msg *m)
{
    struct wire_msg a = {.type = MSG_WELCOME, .request = m->request};

    switch (m->type) {
    case MSG_HELLO:
        a.welcome.node_id = 1;
        a.welcome.max_transaction_bytes = fake->max_transaction_bytes;
        snprintf(a.welcome.cluster, sizeof a.welcome.cluster, "test");
        send_msg(c, &a);
        break;
    case MSG_OPEN:
        on_open(c, m);
        break;
    case MSG_INIT:
        on_init(c, m);
        break;
    case MSG_LOCK:
        if (fake->code[MSG_LOCK] != FLO_OK) {
            result(c, m->request, fake->code[MSG_LOCK], 0);
        } else {
            on_lock(c, m);
        }
        break;
    case MSG_CANCEL:
        on_cancel(c, m);
        break;
    case MSG_RELEASE:
        on_release(c, m);
        break;
    case MSG_COMMIT:
        on_commit(c, m);
        break;
    case MSG_OUTCOME:
        on_outcome(c, m);
        break;
    case MSG_TABLE:
        on_table(c, m);
        break;
    default:
        result(c, m->request, fake->code[m->type], 0);
    }
}

static void message(struct conn *c, const struct wire_msg *m)
{
    assert(m->type < FAKE_TYPES);
    fake->count[m->type]++;
    if (fake->delay_ms[m->type] > 0) {
        usleep((unsigned)fake->delay_ms[m->type] * 1000);
    }
    switch ((int)fake->action[m->type]) { /* clang takes no atomic here */
    case FAKE_ANSWER:
        answer(c, m);
        break;
    case FAKE_SILENT:
        break;
    case FAKE_DIE:
        kill(getpid(), SIGKILL);
        break;
    case FAKE_COMMIT_AND_CLOSE:
        check_wal(m);
        txid++;
        committed_id = m->commit.commit_id;
        fake->action[m->type] = FAKE_ANSWER;
        holder = NULL; /* and the fence stays away until it is free */
        close_conn(c);
        returning = true;
        break;
    default:
        close_conn(c);
    }
}

static void readable(struct conn *c)
{
    ssize_t n;
    size_t used = 1;

    assert(buf_reserve(&c->in, 65536) == FLO_OK);
    n = recv(c->fd, c->in.data + c->in.len, 65536, 0);
    if (n <= 0) {
        close_conn(c);
        return;
    }
    c->in.len += (size_t)n;
    while (c->fd >= 0 && used > 0) {
        struct wire_msg m;
        assert(wire_decode(c->in.data, c->in.len, &m, &used) == FLO_OK);
        if (used > 0) {
            message(c, &m);
            if (c->fd >= 0) {
                buf_consume(&c->in, used);
            }
        }
    }
}

static int listen_on(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert(chdir(path) == 0); /* so the name is always short enough */
    snprintf(a.sun_path, sizeof a.sun_path, "flotilla.sock");
    unlink(a.sun_path);
    assert(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 &&
           listen(fd, 64) == 0);
    close(open("flotilla.id", O_RDWR | O_CREAT, 0644));
    return fd;
}

static void accept_one(int listener)
{
    int i, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    for (i = 0; i < CONNS && fd >= 0; i++) {
        if (conns[i].fd < 0) {
            conns[i].fd = fd;
            buf_init(&conns[i].in, 4u << 20);
            fake->connections++;
            return;
        }
    }
    close(fd);
}

static void turn(int listener)
{
    struct pollfd p[CONNS + 1];
    int i;

    for (i = 0; i < CONNS; i++) {
        p[i] = (struct pollfd){.fd = conns[i].fd, .events = POLLIN};
    }
    p[CONNS] = (struct pollfd){.fd = listener, .events = POLLIN};
    if (poll(p, CONNS + 1, n_queue > 0 || returning ? 1 : 20) > 0) {
        for (i = 0; i < CONNS; i++) {
            if (p[i].revents != 0 && conns[i].fd >= 0) {
                readable(&conns[i]);
            }
        }
        if (p[CONNS].revents != 0) {
            accept_one(listener);
        }
    }
    serve_queue();
}

void fake_main(int argc, char **argv)
{
    int listener, i;

    if (argc != 4 || strcmp(argv[1], "--fake-daemon") != 0) {
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(dir, sizeof dir, "%s", argv[2]);
    fake = mmap(NULL, sizeof *fake, PROT_READ | PROT_WRITE, MAP_SHARED,
                atoi(argv[3]), 0);
    assert(fake != MAP_FAILED);
    for (i = 0; i < CONNS; i++) {
        conns[i].fd = -1;
    }
    grant = (uint64_t)getpid() << 20; /* never the same after a restart */
    listener = listen_on(dir);
    fake->ready = 1;
    for (;;) {
        turn(listener);
    }
}
