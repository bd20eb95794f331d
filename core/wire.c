/* The message codec, made from the table in wire.h. */
#include "core/wire.h"

#include <string.h>

#include "core/error.h"

/* ---- Fields --------------------------------------------------------------- */

static int put_blob(struct buf *out, struct wire_blob v)
{
    int rc = buf_put_u32(out, v.len);
    return rc != FLO_OK ? rc : buf_append(out, v.data, v.len);
}

int wire_put_str(struct buf *out, const char *s)
{
    size_t n = strnlen(s, WIRE_STR_MAX + 1);
    int rc;

    if (n > WIRE_STR_MAX) {
        return FLO_INVALID;
    }
    rc = buf_put_u16(out, (uint16_t)n);
    return rc != FLO_OK ? rc : buf_append(out, s, n);
}

static struct wire_blob get_blob(struct cursor *c)
{
    uint32_t n = cursor_u32(c);
    const uint8_t *p = cursor_bytes(c, n);
    return (struct wire_blob){.data = p, .len = p != NULL ? n : 0};
}

void wire_get_str(struct cursor *c, wire_str out)
{
    uint16_t n = cursor_u16(c);
    const uint8_t *p = cursor_bytes(c, n);

    out[0] = '\0';
    if (p == NULL) {
        return;
    }
    if (n > WIRE_STR_MAX || memchr(p, 0, n) != NULL) {
        c->bad = true;
        return;
    }
    memcpy(out, p, n);
    out[n] = '\0';
}

/* ---- Messages -------------------------------------------------------------- */

#define PUT_u8(b, v) buf_put_u8(b, v)
#define PUT_u32(b, v) buf_put_u32(b, v)
#define PUT_u64(b, v) buf_put_u64(b, v)
#define PUT_str(b, v) wire_put_str(b, v)
#define PUT_blob(b, v) put_blob(b, v)
#define F(type, name)                                      \
    if (rc == FLO_OK) {                                    \
        rc = PUT_##type(out, body->name);                  \
    }
#define M(NAME, member, number)                            \
    case MSG_##NAME: {                                     \
        __typeof__(&m->member) body = &m->member;          \
        WIRE_##NAME(F)                                     \
        break;                                             \
    }

static int encode_body(struct buf *out, const struct wire_msg *m)
{
    int rc = FLO_OK;

    switch (m->type) {
        WIRE_MESSAGES(M)
        default:
            rc = FLO_INVALID;
    }
    return rc;
}
#undef M
#undef F

int wire_encode(struct buf *out, const struct wire_msg *m)
{
    static const uint8_t blank[WIRE_HEADER];
    size_t start = out->len;
    size_t body;
    int rc;

    rc = buf_append(out, blank, sizeof blank);
    if (rc == FLO_OK) {
        rc = encode_body(out, m);
    }
    body = out->len - start - WIRE_HEADER;
    if (rc == FLO_OK && body > WIRE_BODY_MAX) {
        rc = FLO_TOOBIG;
    }
    if (rc != FLO_OK) {
        out->len = start;
        return rc;
    }
    store_u32(out->data + start, (uint32_t)body);
    store_u16(out->data + start + 4, (uint16_t)m->type);
    store_u16(out->data + start + 6, WIRE_VERSION);
    store_u64(out->data + start + 8, m->request);
    return FLO_OK;
}

#define GET_u8(c, v) v = cursor_u8(c)
#define GET_u32(c, v) v = cursor_u32(c)
#define GET_u64(c, v) v = cursor_u64(c)
#define GET_str(c, v) wire_get_str(c, v)
#define GET_blob(c, v) v = get_blob(c)
#define F(type, name) GET_##type(&c, body->name);
#define M(NAME, member, number)                            \
    case MSG_##NAME: {                                     \
        __typeof__(&m->member) body = &m->member;          \
        WIRE_##NAME(F)                                     \
        break;                                             \
    }

static int decode_body(struct cursor c, struct wire_msg *m)
{
    switch (m->type) {
        WIRE_MESSAGES(M)
        default:
            return FLO_PROTOCOL;
    }
    return c.bad || c.n != 0 ? FLO_PROTOCOL : FLO_OK;
}
#undef M
#undef F

int wire_decode(const uint8_t *data, size_t n, struct wire_msg *m,
                size_t *consumed)
{
    uint32_t body;
    int rc;

    if (n < WIRE_HEADER) {
        *consumed = 0;
        return FLO_OK;
    }
    if (load_u16(data + 6) != WIRE_VERSION) {
        return FLO_VERSION;
    }
    body = load_u32(data);
    if (body > WIRE_BODY_MAX) {
        return FLO_PROTOCOL;
    }
    if (n - WIRE_HEADER < body) {
        *consumed = 0;
        return FLO_OK;
    }
    m->type = load_u16(data + 4);
    m->request = load_u64(data + 8);
    rc = decode_body(cursor_of(data + WIRE_HEADER, body), m);
    if (rc == FLO_OK) {
        *consumed = WIRE_HEADER + body;
    }
    return rc;
}

const char *wire_name(enum wire_type type)
{
    switch (type) {
#define M(NAME, member, number) \
    case MSG_##NAME:            \
        return #NAME;
        WIRE_MESSAGES(M)
#undef M
    }
    return "?";
}

int db_name_valid(const char *name)
{
    static const char first[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
    size_t n = strlen(name);

    return n >= 1 && n <= DB_NAME_MAX && strchr(first, name[0]) != NULL &&
           name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                             "abcdefghijklmnopqrstuvwxyz0123456789_.-")] == 0;
}
