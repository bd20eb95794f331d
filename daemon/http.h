/* HTTP for people, monitoring and the flotilla command: GNU libmicrohttpd on
 * the daemon's own loop, without a thread.
 *
 *   GET  /_raft/health         200; 503 while no leader is known
 *   GET  /_raft/sync-status    200; 503 likewise; followers on the leader only
 *   GET  /_raft/resync_stats   200
 *   POST /_raft/force-resync?target=ADDRESS-OR-NUMBER
 *                              202; 400, 404, 409, 503 with the reason
 *   GET  /status               the whole node as one document
 *   GET  /livez  /readyz       200 or 503; lines of text; ?verbose
 *   GET  /metrics              Prometheus text
 *
 * HEAD is answered where GET is. Anything else is 404, or 405 with Allow. An
 * error is {"error": {"code", "message", "leader"}}; leader is null or
 * {"id", "address", "http"}. A POST that a browser sends on behalf of another
 * site (its Origin is not this Host) is refused with 403.
 *
 * Limits: see HTTP_*. There is no authentication and no TLS: bind it to
 * loopback or to a network that is trusted. */
#ifndef FLOTILLA_HTTP_H
#define FLOTILLA_HTTP_H

#include <stddef.h>
#include <uv.h>

#include "daemon/status.h"

#define HTTP_CONNECTIONS_MAX 64 /* further ones wait to be accepted */
#define HTTP_BODY_MAX (64u << 10) /* of a request; 413 over it */
#define HTTP_CONNECTION_MEMORY (32u << 10) /* headers, buffers; 431 over it */
#define HTTP_TARGET_MAX ADDRESS_MAX

/* A connection is closed when so much time has passed since it was opened, or
 * since its last request was answered, and it has not finished another one:
 * one byte at a time does not keep it. Tests make it shorter. */
extern unsigned http_deadline_ms;

struct http;

/* Bind address (host:port) and serve. The loop and n must live
 * until http_stop's callback. FLO_INVALID: not an address; FLO_IO: could not
 * bind, errmsg names address and reason; FLO_NOMEM. On an error nothing is
 * left behind and *h is untouched. */
int http_start(struct http **h, uv_loop_t *loop, struct node *n,
               const char *address, char *errmsg, size_t errmsg_n);

/* Close all connections at once; cb (may be NULL) on the loop, when h is gone.
 * Not from inside node_status_get or node_force_resync. */
void http_stop(struct http *h, void (*cb)(void *data), void *data);

#endif
