/* Proposals across changes of leader; see proposal.h. */
#include "daemon/proposal.h"

#include <assert.h>
#include <stddef.h>

#include "core/error.h"
#include "daemon/node.h"

static void leave(struct proposal *p)
{
    if (p->prev != NULL) {
        p->prev->next = p->next;
    } else {
        p->node->proposals = p->next;
    }
    if (p->next != NULL) {
        p->next->prev = p->prev;
    }
    p->prev = p->next = NULL;
    p->active = false;
}

static void finish(struct proposal *p, int rc, uint64_t txid)
{
    if (p->sent) {
        peers_forget(&p->node->peers, &p->request);
        p->sent = false;
    }
    leave(p);
    p->done(p, rc, txid);
}

/* The leader's answer, or none. */
static void answered(struct peer_request *r, const struct wire_msg *answer,
                     int rc)
{
    struct proposal *p = r->data;

    p->sent = false;
    if (answer == NULL) {
        p->open = true;
        if (rc == FLO_SHUTDOWN) {
            finish(p, FLO_UNKNOWN, 0);
        }
        return;
    }
    if (answer->type != MSG_RESULT) {
        p->open = true;
        return;
    }
    rc = (int)answer->result.code;
    switch (rc) {
        case FLO_UNKNOWN:
            p->open = true;
            break;
        case FLO_NOTLEADER: /* refused before it reached a log: ask again */
        case FLO_BUSY:
            break;
        default:
            finish(p, rc, answer->result.txid);
    }
}

static void send_all(struct proposal *p)
{
    struct node *n = p->node;
    uint32_t leader = n->view.id;

    p->sent = true;
    p->request.data = p;
    p->request.cb = answered;
    for (size_t i = 0; i < p->n_records; i++) {
        struct wire_msg m = {.type = MSG_PROPOSE};
        m.propose.term = n->view.term;
        m.propose.grant = p->grant;
        m.propose.last = i + 1 == p->n_records;
        m.propose.record = (struct wire_blob){
            .data = p->records[i].data, .len = (uint32_t)p->records[i].len};
        if (m.propose.last) {
            peers_request(&n->peers, &p->request, leader, &m);
        } else {
            peers_send(&n->peers, leader, &m);
        }
    }
}

static void try_send(struct proposal *p)
{
    if (!p->sent && p->node->view.ready) {
        send_all(p);
    }
}

void proposal_start(struct proposal *p, unsigned timeout_ms)
{
    struct node *n = p->node;

    assert(p->n_records > 0 && !p->active);
    p->open = p->sent = false;
    p->active = true;
    p->deadline = uv_now(n->loop) + timeout_ms;
    p->prev = NULL;
    p->next = n->proposals;
    if (p->next != NULL) {
        p->next->prev = p;
    }
    n->proposals = p;
    try_send(p);
}

void proposal_cancel(struct proposal *p)
{
    if (p->active) {
        if (p->sent) {
            peers_forget(&p->node->peers, &p->request);
            p->sent = false;
        }
        leave(p);
    }
}

void proposals_applied(struct node *n, uint64_t txid, uint64_t commit_id)
{
    for (struct proposal *p = n->proposals; p != NULL; p = p->next) {
        if (p->commit_id == commit_id && p->txid == txid && commit_id != 0) {
            finish(p, FLO_OK, txid);
            return;
        }
    }
}

void proposals_kick(struct node *n)
{
    struct proposal *next;

    for (struct proposal *p = n->proposals; p != NULL; p = next) {
        next = p->next; /* an answer may come at once and end p, only p */
        try_send(p);
    }
}

void proposals_tick(struct node *n)
{
    uint64_t now = uv_now(n->loop);
    struct proposal *next;

    for (struct proposal *p = n->proposals; p != NULL; p = next) {
        next = p->next;
        if (now >= p->deadline) {
            finish(p, p->open || p->sent ? FLO_UNKNOWN : FLO_NOLEADER, 0);
        } else {
            try_send(p);
        }
    }
}
