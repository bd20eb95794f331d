/* What the parts of the session module share: session.c (connections and write
 * transactions), session_ops.c (requests that wait), session_tables.c (rows for
 * the virtual tables, admin verbs). */
#ifndef FLOTILLA_SESSION_IMPL_H
#define FLOTILLA_SESSION_IMPL_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/link.h"
#include "daemon/node.h"

enum op_state {
    OP_NONE,
    OP_CREATE,   /* CREATE proposed */
    OP_OPEN,     /* waiting for the local files */
    OP_MAKE,     /* INIT: page 1 is being made */
    OP_INIT,     /* INIT: proposed */
    OP_WAIT,     /* waiting for the replica to reach op_txid */
    OP_ASK,      /* READ: no leader yet */
    OP_INDEX,    /* READ: the leader was asked */
    OP_APPLY     /* READ: waiting for raft to apply op_index */
};

struct session
{
    struct sessions *owner;
    struct session *prev, *next;
    struct link link;
    bool hello;
    uint32_t pid;
    struct txn *txn; /* on its own once abandoned */
    uint64_t lock_request, commit_request;

    enum op_state op;
    uint64_t op_request, op_deadline, op_txid, op_index;
    char op_db[DB_NAME_MAX + 1];
    uv_timer_t timer; /* while an op waits */
    struct buf record;
    struct proposal proposal;
    struct peer_request ask;
    struct txn_builder builder;
    bool job_running; /* OP_MAKE: the session must live */
    bool gone;
    unsigned handles; /* link, timer: not closed yet */
};

struct sessions
{
    struct node *node;
    uv_pipe_t listener;
    bool listening;
    struct session *list;
    uint32_t count;
};

uint64_t session_now(const struct session *s);

/* Answer RESULT; an empty text is filled with the error's phrase. */
void session_result(struct session *s, uint64_t request, int rc, uint64_t txid,
                    const char *text);

/* Free it once its handles are closed and no job uses it. */
void session_maybe_free(struct session *s);

/* session_ops.c: one request each, answered when its condition holds. */
void session_open(struct session *s, const struct wire_msg *m);
void session_init(struct session *s, const struct wire_msg *m);
void session_wait(struct session *s, const struct wire_msg *m);
void session_read(struct session *s, const struct wire_msg *m);
void session_outcome(struct session *s, const struct wire_msg *m);

/* Look at the condition again; give up on it. */
void session_op_check(struct session *s);
void session_op_cancel(struct session *s);

/* session_tables.c */
void session_table(struct session *s, const struct wire_msg *m);
void session_admin(struct session *s, const struct wire_msg *m);

#endif
