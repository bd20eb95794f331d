/* The client side of a node's unix socket: one request, one answer.
 *
 * A client belongs to one open database file. It connects when it is first
 * needed, says HELLO, and stays connected. Every wait has a deadline; no
 * thread and no signal handler is involved. Whoever uses it holds its owner's
 * mutex.
 *
 * After fork() the child must not speak on the socket it inherited: each use
 * compares the process id, and a child drops its copy and connects anew. */
#ifndef FLOTILLA_EXT_CLIENT_H
#define FLOTILLA_EXT_CLIENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/buf.h"
#include "core/wire.h"

/* A healthy daemon answers what needs no waiting within this time. */
#define CLIENT_GRACE_MS 250

struct client
{
    const char *dir; /* the node's directory; borrowed from the owner */
    int fd;          /* -1 while not connected; owned */
    pid_t pid;       /* the process that connected */
    struct buf in;   /* received, not yet decoded */
    struct buf out;  /* scratch for encoding */
    size_t decoded;  /* bytes at the front of in that the last answer uses */
    uint64_t last_request;
    uint32_t node_id;
    uint64_t max_transaction_bytes; /* 0: no limit known */
    char error[256];                /* why the last call failed, or "" */
};

/* Milliseconds of the monotonic clock; deadlines are points on it. */
int64_t client_now(void);
void client_sleep(int ms);

void client_init(struct client *c, const char *dir);

/* Drop the connection; the daemon then forgets the session. Safe in a forked
 * child: the parent's connection stays. */
void client_disconnect(struct client *c);
void client_close(struct client *c);

/* Be connected, trying again with growing pauses until the deadline; at least
 * one attempt is made. FLO_IO: nobody listens. FLO_PROTOCOL, FLO_VERSION. */
int client_connect(struct client *c, int64_t deadline);

/* Number the message and send it on the open connection. FLO_IO: lost, and the
 * message was not sent completely (so it was not understood either). */
int client_send(struct client *c, struct wire_msg *m);

/* Wait for the answer to a request. Answers to others are dropped; a GRANT
 * among them is given back. Blobs in the answer are valid until the next call.
 * FLO_TIMEOUT: not yet; may be called again. FLO_IO: the connection is lost. */
int client_receive(struct client *c, uint64_t request, struct wire_msg *answer,
                   int64_t deadline);

/* Connect, send, receive. The answer waits for until at least deadline. A
 * request without an answer in time loses its connection. */
int client_call(struct client *c, struct wire_msg *m, struct wire_msg *answer,
                int64_t deadline);

#endif
