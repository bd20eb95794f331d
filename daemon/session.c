/* Client sessions; see session.h.
 *
 *  - HELLO first; then LOCK, COMMIT, RELEASE drive the session's txn, and the
 *    other requests become its `op`: a condition that is looked at again
 *    whenever something moved, until it holds or its deadline passes
 *  - the end of the connection abandons the txn, which finishes by itself
 *
 * Limits: settings.max_clients sessions; a message per WIRE_BODY_MAX; what
 * does not fit the protocol closes the connection with one line. */
#include "daemon/session.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/link.h"
#include "daemon/log.h"
#include "daemon/node.h"
#include "daemon/session_impl.h"

#define CLIENT_OUT_MAX (8u << 20)
uint64_t session_now(const struct session *s)
{
    return uv_now(s->owner->node->loop);
}

void session_result(struct session *s, uint64_t request, int rc, uint64_t txid,
                    const char *text)
{
    struct wire_msg m = {.type = MSG_RESULT, .request = request};

    m.result.code = (uint32_t)rc;
    m.result.txid = txid;
    snprintf(m.result.text, sizeof m.result.text, "%s",
             text[0] != '\0' || rc == FLO_OK ? text : flo_strerror(rc));
    link_send(&s->link, &m);
}

/* ---- The end --------------------------------------------------------------------- */

void session_maybe_free(struct session *s)
{
    if (s->handles > 0 || s->job_running) {
        return;
    }
    if (s->prev != NULL) {
        s->prev->next = s->next;
    } else {
        s->owner->list = s->next;
    }
    if (s->next != NULL) {
        s->next->prev = s->prev;
    }
    s->owner->count--;
    buf_close(&s->record);
    txn_builder_close(&s->builder);
    free(s);
}

static void timer_closed(uv_handle_t *handle)
{
    struct session *s = handle->data;

    s->handles--;
    session_maybe_free(s);
}

static void on_close(struct link *l, int reason)
{
    struct session *s = l->data;

    if (reason == FLO_PROTOCOL || reason == FLO_VERSION) {
        s->owner->node->counters.protocol_errors++;
        log_warn("client_protocol", "pid=%u reason=%s", s->pid,
                 log_quote(flo_strerror(reason)));
    }
    s->gone = true;
    s->handles--;
    session_op_cancel(s);
    if (s->txn != NULL) {
        txn_abandon(s->txn);
        s->txn = NULL;
    }
    uv_close((uv_handle_t *)&s->timer, timer_closed);
}

/* ---- LOCK, COMMIT, RELEASE ------------------------------------------------------------------------ */

static void on_lock(struct txn *t, int rc, const char *text)
{
    struct session *s = t->data;
    struct wire_msg m = {.type = MSG_GRANT, .request = s->lock_request};

    if (rc != FLO_OK) {
        session_result(s, s->lock_request, rc, 0, text);
        return;
    }
    m.grant.grant = t->grant;
    m.grant.txid = t->base.txid;
    link_send(&s->link, &m);
}

static void on_commit(struct txn *t, int rc, uint64_t txid)
{
    struct session *s = t->data;

    session_result(s, s->commit_request, rc, txid,
                   rc == FLO_TOOBIG ? "the transaction is larger than "
                                      "max-transaction: write less at a time, "
                                      "or raise it"
                                    : "");
}

static int ensure_txn(struct session *s)
{
    int rc;

    if (s->txn != NULL) {
        return FLO_OK;
    }
    s->txn = malloc(sizeof *s->txn);
    rc = s->txn != NULL ? txn_init(s->txn, s->owner->node) : FLO_NOMEM;
    if (rc != FLO_OK) {
        free(s->txn);
        s->txn = NULL;
        return rc;
    }
    s->txn->data = s;
    s->txn->pid = s->pid;
    s->txn->on_lock = on_lock;
    s->txn->on_commit = on_commit;
    return FLO_OK;
}

static void handle_lock(struct session *s, const struct wire_msg *m)
{
    struct db *db = db_find(s->owner->node, m->lock.db);
    int rc = ensure_txn(s);

    if (rc == FLO_OK && db == NULL) {
        rc = FLO_NOTFOUND;
    }
    if (rc == FLO_OK && s->txn->state != TXN_IDLE &&
        s->txn->state != TXN_LINGER) {
        /* The last one is on its way out: a new one takes its place. */
        txn_abandon(s->txn);
        s->txn = NULL;
        rc = ensure_txn(s);
    }
    if (rc == FLO_OK) {
        s->lock_request = m->request;
        rc = txn_lock(s->txn, db, m->lock.timeout_ms, m->lock.fresh != 0);
    }
    if (rc != FLO_OK) {
        session_result(s, m->request, rc, 0,
               rc == FLO_NOTFOUND ? "the cluster does not know this database"
                                  : "");
    }
}

static void handle_commit(struct session *s, const struct wire_msg *m)
{
    int rc = FLO_LOST;

    s->commit_request = m->request;
    if (s->txn != NULL && m->commit.header.len == 24) {
        rc = txn_commit(s->txn, m->commit.grant, m->commit.commit_id,
                        m->commit.last_frame, m->commit.n_pages,
                        m->commit.header.data);
    }
    if (rc != FLO_OK) {
        session_result(s, m->request, rc, 0, "");
    }
}

/* ---- Messages --------------------------------------------------------------------------------------------- */

static void handle_hello(struct session *s, const struct wire_msg *q)
{
    struct node *n = s->owner->node;
    struct wire_msg m = {.type = MSG_WELCOME, .request = q->request};

    s->hello = true;
    if (s->pid == 0) {
        s->pid = q->hello.pid;
    }
    m.welcome.node_id = n->settings.id;
    m.welcome.max_transaction_bytes = n->settings.max_transaction_bytes;
    snprintf(m.welcome.cluster, sizeof m.welcome.cluster, "%s",
             n->settings.cluster);
    link_send(&s->link, &m);
}

static void on_message(struct link *l, const struct wire_msg *m)
{
    struct session *s = l->data;

    if (s->hello == (m->type == MSG_HELLO)) { /* first, and only once */
        link_close(l, FLO_PROTOCOL);
        return;
    }
    switch (m->type) {
        case MSG_HELLO:
            handle_hello(s, m);
            break;
        case MSG_OPEN:
            session_open(s, m);
            break;
        case MSG_INIT:
            session_init(s, m);
            break;
        case MSG_LOCK:
            handle_lock(s, m);
            break;
        case MSG_CANCEL:
            if (s->txn != NULL && s->lock_request == m->cancel.cancelled) {
                txn_cancel(s->txn);
            }
            break;
        case MSG_COMMIT:
            handle_commit(s, m);
            break;
        case MSG_RELEASE:
            if (s->txn != NULL) {
                txn_release(s->txn, m->release.grant, m->release.linger_ms);
            }
            break;
        case MSG_WAIT:
            session_wait(s, m);
            break;
        case MSG_READ:
            session_read(s, m);
            break;
        case MSG_OUTCOME:
            session_outcome(s, m);
            break;
        case MSG_TABLE:
            session_table(s, m);
            break;
        case MSG_ADMIN:
            session_admin(s, m);
            break;
        default:
            link_close(l, FLO_PROTOCOL);
    }
}

/* ---- Listening ------------------------------------------------------------------------------------------------ */

static uint32_t peer_pid(uv_pipe_t *pipe)
{
    struct ucred cred;
    socklen_t n = sizeof cred;
    uv_os_fd_t fd;

    if (uv_fileno((uv_handle_t *)pipe, &fd) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) != 0) {
        return 0;
    }
    return (uint32_t)cred.pid;
}

static void session_new(struct sessions *o, uv_pipe_t *pipe)
{
    struct session *s = calloc(1, sizeof *s);

    if (s == NULL || o->count >= o->node->settings.max_clients) {
        if (s != NULL) {
            log_warn("too_many_clients", "limit=%u hint=%s",
                     o->node->settings.max_clients,
                     log_quote("raise max-clients"));
        }
        free(s);
        uv_close((uv_handle_t *)pipe, (uv_close_cb)free);
        return;
    }
    s->owner = o;
    s->pid = peer_pid(pipe);
    buf_init(&s->record, 4096);
    uv_timer_init(o->node->loop, &s->timer);
    s->timer.data = s;
    s->handles = 2;
    s->next = o->list;
    if (s->next != NULL) {
        s->next->prev = s;
    }
    o->list = s;
    o->count++;
    o->node->counters.clients_accepted++;
    s->link.data = s;
    s->link.out_max = CLIENT_OUT_MAX;
    s->link.on_message = on_message;
    s->link.on_close = on_close;
    link_start(&s->link, (uv_stream_t *)pipe);
}

static void connection(uv_stream_t *listener, int status)
{
    struct sessions *o = listener->data;
    uv_pipe_t *pipe;

    if (status != 0) {
        return;
    }
    pipe = malloc(sizeof *pipe);
    if (pipe == NULL) {
        return;
    }
    uv_pipe_init(o->node->loop, pipe, 0);
    if (uv_accept(listener, (uv_stream_t *)pipe) != 0) {
        uv_close((uv_handle_t *)pipe, (uv_close_cb)free);
        return;
    }
    session_new(o, pipe);
}

/* The path may be longer than a socket address allows; the directory's
 * descriptor gives it a short name. */
static int bind_short(struct sessions *o, const char *dir)
{
    char path[64];
    int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int rv;

    if (fd < 0) {
        return UV_ENOENT;
    }
    unlinkat(fd, "flotilla.sock", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d/flotilla.sock", fd);
    rv = uv_pipe_bind(&o->listener, path);
    if (rv == 0) {
        fchmodat(fd, "flotilla.sock", 0660, 0);
    }
    close(fd);
    return rv;
}

int sessions_start(struct node *n)
{
    struct sessions *o = calloc(1, sizeof *o);
    int rv;

    if (o == NULL) {
        return FLO_NOMEM;
    }
    o->node = n;
    n->sessions = o;
    uv_pipe_init(n->loop, &o->listener, 0);
    o->listener.data = o;
    o->listening = true;
    rv = bind_short(o, n->settings.dir);
    if (rv == 0) {
        rv = uv_listen((uv_stream_t *)&o->listener, 128, connection);
    }
    if (rv != 0) {
        snprintf(n->errmsg, sizeof n->errmsg, "%.400s/flotilla.sock: %s",
                 n->settings.dir, uv_strerror(rv));
        return FLO_IO;
    }
    return FLO_OK;
}

void sessions_kick(struct node *n)
{
    struct session *next;

    if (n->sessions == NULL) {
        return;
    }
    for (struct session *s = n->sessions->list; s != NULL; s = next) {
        next = s->next;
        if (!s->gone && s->op != OP_NONE) {
            session_op_check(s);
        }
    }
}

void sessions_stop_listening(struct node *n)
{
    struct sessions *o = n->sessions;

    if (o != NULL && o->listening) {
        char path[600];
        o->listening = false;
        snprintf(path, sizeof path, "%s/flotilla.sock", n->settings.dir);
        unlink(path);
        uv_close((uv_handle_t *)&o->listener, NULL);
    }
}

void sessions_close(struct node *n)
{
    sessions_stop_listening(n);
    if (n->sessions == NULL) {
        return;
    }
    for (struct session *s = n->sessions->list; s != NULL; s = s->next) {
        link_close(&s->link, FLO_SHUTDOWN);
    }
}

uint32_t sessions_count(const struct node *n)
{
    return n->sessions != NULL ? n->sessions->count : 0;
}
