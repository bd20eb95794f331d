/* A link: wire messages over one stream, for clients and peers alike.
 *
 * Bounds: what is received is at most one message; what waits to be sent is at
 * most out_max bytes. A peer that sends garbage is cut off with one log line.
 * Loop thread only. */
#ifndef FLOTILLA_LINK_H
#define FLOTILLA_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "core/wire.h"

struct link
{
    uv_stream_t *stream; /* malloc'd; owned; freed after its close callback */
    struct buf in;
    size_t out_bytes; /* queued, not yet written */
    size_t out_max;
    uint64_t last_in; /* uv_now() of the last message */
    bool closing;
    void *data; /* the user's */
    void (*on_message)(struct link *l, const struct wire_msg *m);
    /* The stream is gone, whoever ended it; called exactly once, from the
     * loop, never from within link_send. reason: enum flo_error. */
    void (*on_close)(struct link *l, int reason);
    int reason;
};

/* Take over a connected stream and start reading. on_message, on_close, data
 * and out_max must be set. Never fails: problems arrive through on_close. */
void link_start(struct link *l, uv_stream_t *stream);

/* Queue a message. FLO_TOOBIG over out_max (the link is then closed),
 * FLO_SHUTDOWN when closing, FLO_NOMEM. */
int link_send(struct link *l, const struct wire_msg *m);

/* Close; on_close follows. Idempotent. */
void link_close(struct link *l, int reason);

#endif
