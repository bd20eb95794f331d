/* Wire messages over a libuv stream; see link.h.
 *
 *  - read: libuv fills our buffer, whole messages are decoded in place and
 *    handed out one by one; what is left over stays for the next read
 *  - write: tried at once without queueing; what the socket does not take is
 *    copied into a write request
 *
 * Ends: end of file, a read or write error, garbage, too much output waiting,
 * or link_close(). All lead to uv_close and from there to on_close. */
#include "daemon/link.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/log.h"

#define READ_CHUNK (64u << 10)

struct pending_write
{
    uv_write_t req;
    struct link *link;
    size_t n;
    uint8_t bytes[];
};

static void closed(uv_handle_t *handle)
{
    struct link *l = handle->data;

    free(handle);
    l->stream = NULL;
    buf_close(&l->in);
    l->on_close(l, l->reason);
}

void link_close(struct link *l, int reason)
{
    if (l->closing) {
        return;
    }
    l->closing = true;
    l->reason = reason;
    uv_close((uv_handle_t *)l->stream, closed);
}

static void alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    struct link *l = handle->data;

    (void)suggested;
    if (buf_reserve(&l->in, READ_CHUNK) != FLO_OK) {
        *out = uv_buf_init(NULL, 0); /* libuv reports UV_ENOBUFS */
        return;
    }
    *out = uv_buf_init((char *)l->in.data + l->in.len,
                       (unsigned)(l->in.cap - l->in.len));
}

/* Hand out the complete messages; returns the first error. */
static int deliver(struct link *l)
{
    size_t at = 0;
    int rc = FLO_OK;

    while (!l->closing) {
        struct wire_msg m;
        size_t used;
        rc = wire_decode(l->in.data + at, l->in.len - at, &m, &used);
        if (rc != FLO_OK || used == 0) {
            break;
        }
        at += used;
        l->last_in = uv_now(l->stream->loop);
        l->on_message(l, &m);
    }
    buf_consume(&l->in, at);
    return rc;
}

static void received(uv_stream_t *stream, ssize_t n, const uv_buf_t *b)
{
    struct link *l = stream->data;
    int rc;

    (void)b;
    if (l->closing || n == 0) {
        return;
    }
    if (n < 0) {
        link_close(l, n == UV_EOF ? FLO_OK : FLO_IO);
        return;
    }
    l->in.len += (size_t)n;
    rc = deliver(l);
    if (rc != FLO_OK) {
        link_close(l, rc);
    }
}

void link_start(struct link *l, uv_stream_t *stream)
{
    l->stream = stream;
    stream->data = l;
    /* one message, and room to read on behind it */
    buf_init(&l->in, WIRE_HEADER + WIRE_BODY_MAX + 2 * READ_CHUNK);
    l->out_bytes = 0;
    l->closing = false;
    l->last_in = uv_now(stream->loop);
    if (uv_read_start(stream, alloc, received) != 0) {
        link_close(l, FLO_IO);
    }
}

static void written(uv_write_t *req, int status)
{
    struct pending_write *w = req->data;
    struct link *l = w->link;

    l->out_bytes -= w->n;
    free(w);
    if (status != 0) {
        link_close(l, FLO_IO);
    }
}

static int queue(struct link *l, const uint8_t *data, size_t n)
{
    struct pending_write *w;
    uv_buf_t b;

    if (l->out_bytes + n > l->out_max) {
        link_close(l, FLO_TOOBIG);
        return FLO_TOOBIG;
    }
    w = malloc(sizeof *w + n);
    if (w == NULL) {
        return FLO_NOMEM;
    }
    memcpy(w->bytes, data, n);
    w->n = n;
    w->link = l;
    w->req.data = w;
    b = uv_buf_init((char *)w->bytes, (unsigned)n);
    if (uv_write(&w->req, l->stream, &b, 1, written) != 0) {
        free(w);
        link_close(l, FLO_IO);
        return FLO_IO;
    }
    l->out_bytes += n;
    return FLO_OK;
}

static int send_bytes(struct link *l, const uint8_t *data, size_t n)
{
    if (l->out_bytes == 0) {
        uv_buf_t b = uv_buf_init((char *)data, (unsigned)n);
        int sent = uv_try_write(l->stream, &b, 1);
        if (sent < 0 && sent != UV_EAGAIN) {
            link_close(l, FLO_IO);
            return FLO_IO;
        }
        if (sent > 0) {
            data += sent;
            n -= (size_t)sent;
        }
    }
    return n > 0 ? queue(l, data, n) : FLO_OK;
}

int link_send(struct link *l, const struct wire_msg *m)
{
    struct buf b;
    int rc;

    if (l->closing) {
        return FLO_SHUTDOWN;
    }
    buf_init(&b, WIRE_HEADER + WIRE_BODY_MAX);
    rc = wire_encode(&b, m);
    if (rc == FLO_OK) {
        rc = send_bytes(l, b.data, b.len);
    }
    buf_close(&b);
    return rc;
}
