/* The message codec and the buffer under it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/buf.h"
#include "core/error.h"
#include "core/wire.h"

/* ---- Fixture: a message of each type, all fields filled ----------------------------- */

static uint32_t counter;

static uint64_t next_value(void)
{
    return ++counter * 0x0102030405060708u;
}

static const char blob_bytes[] = "some\0bytes";

#define FILL_u8(v) v = (uint8_t)next_value()
#define FILL_u32(v) v = (uint32_t)next_value()
#define FILL_u64(v) v = next_value()
#define FILL_str(v) snprintf(v, sizeof v, "string %u", ++counter)
#define FILL_blob(v) v = (struct wire_blob){(const uint8_t *)blob_bytes, 11}
#define F(type, name) FILL_##type(body->name);
#define M(NAME, member, number)                   \
    {                                             \
        __typeof__(&all[0].member) body = &m->member; \
        m->type = MSG_##NAME;                     \
        m->request = next_value();                \
        (void)body;                               \
        WIRE_##NAME(F) m++;                       \
    }

static struct wire_msg all[64];
static size_t n_all;

static int fill_all(void **state)
{
    struct wire_msg *m = all;

    (void)state;
    WIRE_MESSAGES(M)
    n_all = (size_t)(m - all);
    return 0;
}
#undef M
#undef F

/* ---- Helpers ------------------------------------------------------------------------ */

#define EQUAL_u8(a, b) assert_int_equal(a, b)
#define EQUAL_u32(a, b) assert_int_equal(a, b)
#define EQUAL_u64(a, b) assert_true((a) == (b))
#define EQUAL_str(a, b) assert_string_equal(a, b)
#define EQUAL_blob(a, b)               \
    assert_int_equal((a).len, (b).len); \
    assert_memory_equal((a).data, (b).data, (a).len)
#define F(type, name) EQUAL_##type(x->name, y->name);
#define M(NAME, member, number)                \
    case MSG_##NAME: {                         \
        __typeof__(&a->member) x = &a->member; \
        __typeof__(&b->member) y = &b->member; \
        (void)x;                               \
        (void)y;                               \
        WIRE_##NAME(F) break;                  \
    }

static void assert_same(const struct wire_msg *a, const struct wire_msg *b)
{
    assert_int_equal(a->type, b->type);
    assert_true(a->request == b->request);
    switch (a->type) {
        WIRE_MESSAGES(M)
    }
}
#undef M
#undef F

/* ---- Tests -------------------------------------------------------------------------- */

/* Every message is decoded to what was encoded, and uses up its bytes. */
static void test_roundtrip(void **state)
{
    struct buf out;
    size_t at = 0;
    size_t i;

    (void)state;
    buf_init(&out, 1 << 20);
    for (i = 0; i < n_all; i++) {
        assert_int_equal(wire_encode(&out, &all[i]), FLO_OK);
    }
    for (i = 0; i < n_all; i++) {
        struct wire_msg m;
        size_t used;
        assert_int_equal(wire_decode(out.data + at, out.len - at, &m, &used),
                         FLO_OK);
        assert_true(used > 0);
        assert_same(&all[i], &m);
        assert_string_not_equal(wire_name(m.type), "?");
        at += used;
    }
    assert_int_equal(at, out.len);
    buf_close(&out);
}

/* A message that has not all arrived asks for more and yields nothing. */
static void test_partial(void **state)
{
    struct buf out;
    size_t i;
    size_t n;

    (void)state;
    for (i = 0; i < n_all; i++) {
        buf_init(&out, 1 << 20);
        assert_int_equal(wire_encode(&out, &all[i]), FLO_OK);
        for (n = 0; n < out.len; n++) {
            uint8_t *copy = malloc(n + 1);
            struct wire_msg m;
            size_t used = 1;
            memcpy(copy, out.data, n);
            assert_int_equal(wire_decode(copy, n, &m, &used), FLO_OK);
            assert_int_equal(used, 0);
            free(copy);
        }
        buf_close(&out);
    }
}

/* A body one byte longer or shorter than its fields is refused. */
static void test_wrong_length(void **state)
{
    struct buf out;
    size_t i;

    (void)state;
    for (i = 0; i < n_all; i++) {
        struct wire_msg m;
        size_t used;
        buf_init(&out, 1 << 20);
        assert_int_equal(wire_encode(&out, &all[i]), FLO_OK);
        assert_int_equal(buf_put_u8(&out, 0), FLO_OK);
        store_u32(out.data, (uint32_t)(out.len - WIRE_HEADER));
        assert_int_equal(wire_decode(out.data, out.len, &m, &used),
                         FLO_PROTOCOL);
        if (out.len > WIRE_HEADER + 1) {
            store_u32(out.data, (uint32_t)(out.len - WIRE_HEADER - 2));
            assert_int_equal(wire_decode(out.data, out.len, &m, &used),
                             FLO_PROTOCOL);
        }
        buf_close(&out);
    }
}

/* Any flipped byte is decoded within bounds, or refused. */
static void test_flipped(void **state)
{
    struct buf out;
    size_t i;
    size_t k;

    (void)state;
    for (i = 0; i < n_all; i++) {
        buf_init(&out, 1 << 20);
        assert_int_equal(wire_encode(&out, &all[i]), FLO_OK);
        for (k = 0; k < out.len * 8; k++) {
            uint8_t *copy = malloc(out.len);
            struct wire_msg m;
            size_t used = 0;
            memcpy(copy, out.data, out.len);
            copy[k / 8] ^= (uint8_t)(1 << k % 8);
            if (wire_decode(copy, out.len, &m, &used) == FLO_OK) {
                assert_true(used <= out.len);
            }
            free(copy);
        }
        buf_close(&out);
    }
}

/* Unknown types, versions and lengths close the connection; they are not
 * waited for. */
static void test_refused(void **state)
{
    uint8_t raw[WIRE_HEADER] = {0};
    struct wire_msg m;
    size_t used;

    (void)state;
    store_u16(raw + 4, MSG_RESULT);
    store_u16(raw + 6, WIRE_VERSION + 1);
    assert_int_equal(wire_decode(raw, sizeof raw, &m, &used), FLO_VERSION);
    store_u16(raw + 6, WIRE_VERSION);
    store_u32(raw, WIRE_BODY_MAX + 1);
    assert_int_equal(wire_decode(raw, sizeof raw, &m, &used), FLO_PROTOCOL);
    store_u32(raw, 0);
    store_u16(raw + 4, 999);
    assert_int_equal(wire_decode(raw, sizeof raw, &m, &used), FLO_PROTOCOL);
    assert_string_equal(wire_name(999), "?");
}

/* What cannot be decoded is not encoded, and leaves the buffer as it was. */
static void test_encode_limits(void **state)
{
    static uint8_t big[WIRE_BODY_MAX];
    struct wire_msg m = {.type = MSG_ROWS};
    struct buf out;

    (void)state;
    buf_init(&out, 16 << 20);
    assert_int_equal(buf_put_u8(&out, 7), FLO_OK);
    m.rows.cells = (struct wire_blob){big, sizeof big};
    assert_int_equal(wire_encode(&out, &m), FLO_TOOBIG);
    assert_int_equal(out.len, 1);
    m.type = 999;
    assert_int_equal(wire_encode(&out, &m), FLO_INVALID);
    m = (struct wire_msg){.type = MSG_HELLO};
    memset(m.hello.program, 'x', sizeof m.hello.program);
    assert_int_equal(wire_encode(&out, &m), FLO_INVALID);
    assert_int_equal(out.len, 1);
    buf_close(&out);
    buf_init(&out, 20);
    m.hello.program[5] = '\0';
    assert_int_equal(wire_encode(&out, &m), FLO_TOOBIG);
    assert_int_equal(out.len, 0);
    buf_close(&out);
}

/* Only these characters make a name; a path never does. */
static void test_names(void **state)
{
    char name[DB_NAME_MAX + 2];

    (void)state;
    assert_true(db_name_valid("app"));
    assert_true(db_name_valid("A_1.x-y"));
    assert_false(db_name_valid(""));
    assert_false(db_name_valid("."));
    assert_false(db_name_valid(".hidden"));
    assert_false(db_name_valid("-x"));
    assert_false(db_name_valid("a/b"));
    assert_false(db_name_valid("a b"));
    assert_false(db_name_valid("\xc3\xa4"));
    memset(name, 'a', sizeof name);
    name[DB_NAME_MAX + 1] = '\0';
    assert_false(db_name_valid(name));
    name[DB_NAME_MAX] = '\0';
    assert_true(db_name_valid(name));
}

/* A buffer never exceeds its limit, and fails without having changed. */
static void test_buf(void **state)
{
    struct buf b;
    uint8_t *p;
    int i;

    (void)state;
    buf_init(&b, 1000);
    for (i = 0; i < 250; i++) {
        assert_int_equal(buf_put_u32(&b, (uint32_t)i), FLO_OK);
    }
    assert_int_equal(buf_put_u8(&b, 1), FLO_TOOBIG);
    assert_int_equal(b.len, 1000);
    assert_int_equal(buf_reserve(&b, SIZE_MAX), FLO_TOOBIG);
    buf_consume(&b, 4);
    assert_int_equal(load_u32(b.data), 1);
    buf_consume(&b, b.len);
    assert_int_equal(b.len, 0);
    assert_int_equal(buf_put_u8(&b, 1), FLO_OK);
    assert_int_equal(buf_pad(&b, 8), FLO_OK);
    assert_int_equal(b.len, 8);
    p = buf_detach(&b);
    assert_int_equal(p[0], 1);
    free(p);
    assert_null(b.data);
    buf_close(&b);
}

/* A cursor yields zeros past the end, from then on, and says so. */
static void test_cursor(void **state)
{
    uint8_t raw[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    struct cursor c = cursor_of(raw, sizeof raw);

    (void)state;
    assert_true(cursor_u64(&c) == 0x0807060504030201u);
    assert_int_equal(cursor_u16(&c), 0);
    assert_true(c.bad);
    assert_int_equal(cursor_u8(&c), 0);
    assert_null(cursor_bytes(&c, 0));
    assert_int_equal(load_u32_be(raw), 0x01020304);
    store_u32_be(raw, 0x0a0b0c0d);
    assert_int_equal(raw[0], 0x0a);
    assert_int_equal(load_u16_be(raw), 0x0a0b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roundtrip),     cmocka_unit_test(test_partial),
        cmocka_unit_test(test_wrong_length),  cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_refused),       cmocka_unit_test(test_encode_limits),
        cmocka_unit_test(test_names),         cmocka_unit_test(test_buf),
        cmocka_unit_test(test_cursor),
    };

    return cmocka_run_group_tests(tests, fill_all, NULL);
}
