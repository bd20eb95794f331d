/* The bounded buffer and the cursor; see buf.h. */
#include "core/buf.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"

void buf_init(struct buf *b, size_t max)
{
    *b = (struct buf){.max = max};
}

void buf_close(struct buf *b)
{
    free(b->data);
    buf_init(b, b->max);
}

int buf_reserve(struct buf *b, size_t n)
{
    size_t cap = b->cap > 0 ? b->cap : 64;
    uint8_t *data;

    if (n > b->max - b->len) {
        return FLO_TOOBIG;
    }
    if (b->len + n <= b->cap) {
        return FLO_OK;
    }
    while (cap < b->len + n) {
        cap = cap > b->max / 2 ? b->max : cap * 2;
    }
    data = realloc(b->data, cap);
    if (data == NULL) {
        return FLO_NOMEM;
    }
    b->data = data;
    b->cap = cap;
    return FLO_OK;
}

int buf_append(struct buf *b, const void *data, size_t n)
{
    int rc = buf_reserve(b, n);
    if (rc != FLO_OK) {
        return rc;
    }
    if (n > 0) {
        memcpy(b->data + b->len, data, n);
    }
    b->len += n;
    return FLO_OK;
}

int buf_put_u8(struct buf *b, uint8_t v)
{
    return buf_append(b, &v, 1);
}

int buf_put_u16(struct buf *b, uint16_t v)
{
    uint8_t raw[2];
    store_u16(raw, v);
    return buf_append(b, raw, sizeof raw);
}

int buf_put_u32(struct buf *b, uint32_t v)
{
    uint8_t raw[4];
    store_u32(raw, v);
    return buf_append(b, raw, sizeof raw);
}

int buf_put_u64(struct buf *b, uint64_t v)
{
    uint8_t raw[8];
    store_u64(raw, v);
    return buf_append(b, raw, sizeof raw);
}

int buf_pad(struct buf *b, size_t align)
{
    static const uint8_t zeros[64];
    size_t n = (align - (b->len & (align - 1))) & (align - 1);

    assert((align & (align - 1)) == 0 && align <= sizeof zeros);
    return buf_append(b, zeros, n);
}

void buf_consume(struct buf *b, size_t n)
{
    assert(n <= b->len);
    if (n > 0 && n < b->len) {
        memmove(b->data, b->data + n, b->len - n);
    }
    b->len -= n;
}

uint8_t *buf_detach(struct buf *b)
{
    uint8_t *data = b->data;
    buf_init(b, b->max);
    return data;
}

struct cursor cursor_of(const void *data, size_t n)
{
    return (struct cursor){.p = data, .n = n};
}

const uint8_t *cursor_bytes(struct cursor *c, size_t n)
{
    const uint8_t *p = c->p;

    if (c->bad || n > c->n) {
        c->bad = true;
        return NULL;
    }
    c->p += n;
    c->n -= n;
    return p;
}

uint8_t cursor_u8(struct cursor *c)
{
    const uint8_t *p = cursor_bytes(c, 1);
    return p != NULL ? *p : 0;
}

uint16_t cursor_u16(struct cursor *c)
{
    const uint8_t *p = cursor_bytes(c, 2);
    return p != NULL ? load_u16(p) : 0;
}

uint32_t cursor_u32(struct cursor *c)
{
    const uint8_t *p = cursor_bytes(c, 4);
    return p != NULL ? load_u32(p) : 0;
}

uint64_t cursor_u64(struct cursor *c)
{
    const uint8_t *p = cursor_bytes(c, 8);
    return p != NULL ? load_u64(p) : 0;
}

uint16_t load_u16(const void *p)
{
    const uint8_t *b = p;
    return (uint16_t)(b[0] | b[1] << 8);
}

uint32_t load_u32(const void *p)
{
    const uint8_t *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
           (uint32_t)b[3] << 24;
}

uint64_t load_u64(const void *p)
{
    const uint8_t *b = p;
    return (uint64_t)load_u32(b) | (uint64_t)load_u32(b + 4) << 32;
}

void store_u16(void *p, uint16_t v)
{
    uint8_t *b = p;
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
}

void store_u32(void *p, uint32_t v)
{
    uint8_t *b = p;
    store_u16(b, (uint16_t)v);
    store_u16(b + 2, (uint16_t)(v >> 16));
}

void store_u64(void *p, uint64_t v)
{
    uint8_t *b = p;
    store_u32(b, (uint32_t)v);
    store_u32(b + 4, (uint32_t)(v >> 32));
}

uint16_t load_u16_be(const void *p)
{
    const uint8_t *b = p;
    return (uint16_t)(b[0] << 8 | b[1]);
}

uint32_t load_u32_be(const void *p)
{
    const uint8_t *b = p;
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 |
           (uint32_t)b[3];
}

void store_u32_be(void *p, uint32_t v)
{
    uint8_t *b = p;
    b[0] = (uint8_t)(v >> 24);
    b[1] = (uint8_t)(v >> 16);
    b[2] = (uint8_t)(v >> 8);
    b[3] = (uint8_t)v;
}
