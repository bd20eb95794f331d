/* The peer links: one framed connection to each other member, requests with
 * answers over it, and what each member last reported about itself.
 *
 * The member with the smaller number connects, the other accepts, so there is
 * one link per pair. A link over which nothing came for PEER_SILENCE_MS is
 * closed (half-open connections end that way) and made anew.
 *
 * A request to this very node is delivered without a socket, so callers need
 * not know whether they are the leader. Loop thread only. */
#ifndef FLOTILLA_PEERS_H
#define FLOTILLA_PEERS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/position.h"
#include "daemon/link.h"
#include "daemon/settings.h"
#include "daemon/transport.h"

#define PEER_TICK_MS 100
#define PEER_SILENCE_MS 3000
#define PEER_RETRY_MS 100
#define PEER_REFUSED_MS 5000 /* refused for what it is: ask less often */
#define PEER_OUT_MAX (96u << 20)

struct node;

struct peer_db
{
    char name[DB_NAME_MAX + 1];
    struct position position;
    enum db_health health;
};

/* One other member. Everything below progress is as it last reported. */
struct peer
{
    struct node *node;
    uint32_t id;
    const char *address;
    struct link *link; /* NULL while not connected */
    bool connecting;
    bool was_up; /* logged as connected */
    struct transport_connect connect;
    uint64_t retry_at; /* uv_now() */
    unsigned failures; /* since the last success */
    double latency_ms; /* < 0: not measured yet */
    uint64_t echo_us;  /* the peer's sent_us, to be echoed */
    uint64_t echo_at;  /* when it came, µs */
    uint64_t term, index, ready_term, ready_index, free_bytes;
    struct peer_db *dbs; /* owned */
    unsigned n_dbs;
};

/* A request under way. Embed it; it lives until cb was called. cb is called
 * exactly once: with the answer, or with NULL and FLO_NOLEADER (link lost or
 * never there) or FLO_SHUTDOWN. */
struct peer_request
{
    uint64_t number;
    uint32_t to;
    void *data;
    void (*cb)(struct peer_request *r, const struct wire_msg *answer, int rc);
    struct peer_request *prev, *next;
};

struct peers
{
    struct node *node;
    struct peer *list; /* owned */
    unsigned n;
    struct peer_request *requests;
    unsigned n_requests;
    uint64_t next_number;
    uv_timer_t timer;
    bool closing;
};

int peers_start(struct peers *p, struct node *n);
void peers_close(struct peers *p);
struct peer *peers_find(struct peers *p, uint32_t id);

/* A stream from transport_hooks.peer_accepted. */
void peers_accept(struct peers *p, uint32_t id, uv_tcp_t *stream);

/* Send m (its request number is set here) and wait for the answer. cb may be
 * called before this returns only when `to` is this node. */
void peers_request(struct peers *p, struct peer_request *r, uint32_t to,
                   struct wire_msg *m);

/* Forget a request: its cb is not called. Idempotent. */
void peers_forget(struct peers *p, struct peer_request *r);

/* Send without waiting; the answer to a request has its number in m->request.
 * FLO_NOLEADER when not connected. */
int peers_send(struct peers *p, uint32_t to, const struct wire_msg *m);

/* Report to all members, now. */
void peers_announce(struct peers *p);

#endif
