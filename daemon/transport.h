/* The one TCP port between nodes, and the one place where a connection becomes
 * trusted.
 *
 * Both raft's streams and the peer links come in on the same port; the
 * handshake tells them apart. It is our own raft_uv_transport (guard G7),
 * because libraft's has no TCP_NODELAY, no authentication and IPv4 only.
 *
 * HANDSHAKE, sent by who connects; all numbers little-endian; 128 bytes:
 *
 *   0      4     6    7   8        12      16       24         32 …      128
 *   +------+-----+----+---+--------+-------+--------+----------+---------+
 *   | FLOH | ver |kind| 0 | sender | to id | cluster| identity | address |
 *   +------+-----+----+---+--------+-------+--------+----------+---------+
 *
 * kind: 1 raft stream, 2 peer link. cluster: XXH3-64 of the cluster's name.
 * identity: the sender's directory identity, a random number made once with
 * the directory. address: the sender's, NUL-padded; longer ones are refused by
 * settings. Answer: 16 bytes "FLOA", u16 version, u16 enum flo_error, u64
 * identity of the answering node; on an error the connection is closed after
 * it, and both sides log one line that names the reason.
 *
 * Limits: a handshake must be complete within 5 s; at most 64 connections may
 * be in their handshake at once. TCP_NODELAY, keepalive and TCP_USER_TIMEOUT
 * are set on every connection. */
#ifndef FLOTILLA_TRANSPORT_H
#define FLOTILLA_TRANSPORT_H

#include <raft.h>
#include <raft/uv.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#define TRANSPORT_VERSION 1

struct transport;

struct transport_hooks
{
    void *data;
    /* May this node take part under this number with this directory identity?
     * Called for both directions. FLO_OK or FLO_IDENTITY. */
    int (*check_identity)(void *data, uint32_t id, uint64_t identity);
    /* A peer link came in. The stream is malloc'd and now the callee's. */
    void (*peer_accepted)(void *data, uint32_t id, uv_tcp_t *stream);
};

struct transport
{
    struct raft_uv_transport raft; /* give this to raft_uv_init */
    struct transport_hooks hooks;
    uv_loop_t *loop;
    uint32_t id;
    uint64_t cluster; /* hash of its name */
    uint64_t identity;
    char address[96];  /* what we tell others */
    char errmsg[384];
    unsigned handshake_ms; /* 5000, for either side; tests lower it */
    struct transport_impl *impl;
};

/* cluster, address and listen are copied. Ignores SIGPIPE from then on. address
 * must be the one that the
 * raft configuration has for this node: raft answers to it. FLO_NOMEM,
 * FLO_INVALID (an address that is too long). */
int transport_init(struct transport *t, uv_loop_t *loop, uint32_t id,
                   const char *cluster, uint64_t identity, const char *address,
                   const char *listen, const struct transport_hooks *hooks);

/* Bind and listen at once, so that a port in use is found before anything else
 * is started. FLO_IO with errmsg ("127.0.0.1:7001: address already in use").
 * Raft streams that come before raft listens are refused. */
int transport_bind(struct transport *t);

/* Connect a peer link. cb gets a malloc'd stream (its own from then on) and
 * FLO_OK, or NULL and an error: FLO_NOTFOUND (no such host), FLO_IO (could not
 * connect, or closed), FLO_TIMEOUT, FLO_PROTOCOL, FLO_VERSION, FLO_IDENTITY,
 * FLO_BUSY (not ready yet). The request lives until cb, which is never called
 * from within transport_connect; transport_close cancels it with FLO_SHUTDOWN.
 * Returns FLO_OK, or without cb FLO_INVALID, FLO_IO, FLO_NOMEM or
 * FLO_SHUTDOWN. */
struct transport_connect
{
    void *data;
    void (*cb)(struct transport_connect *req, uv_tcp_t *stream, int status);
    struct transport *t;
    void *impl;
};
int transport_connect(struct transport *t, struct transport_connect *req,
                      uint32_t id, const char *address);

/* For a node that is not using raft's own close (failed start). Otherwise
 * raft_close closes it through raft.close. cb on the loop, later, or at once
 * when it is closed already. Idempotent. */
void transport_close(struct transport *t, void (*cb)(struct transport *t));

#endif
