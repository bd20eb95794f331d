/* A byte buffer with a limit, and a cursor that reads one safely.
 *
 * Everything that comes from outside passes through these two: the buffer
 * refuses to grow beyond its limit, and the cursor never reads past its end.
 * Numbers are little-endian, whatever the machine. Not thread-safe. */
#ifndef FLOTILLA_BUF_H
#define FLOTILLA_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf
{
    uint8_t *data; /* owned by the buffer; NULL while empty */
    size_t len;    /* bytes in use */
    size_t cap;    /* bytes allocated */
    size_t max;    /* len never exceeds this */
};

/* An empty buffer that may grow to max bytes; allocates nothing. */
void buf_init(struct buf *b, size_t max);

/* Free the memory. The buffer is empty and usable again afterwards. */
void buf_close(struct buf *b);

/* Make room for n more bytes. FLO_TOOBIG over the limit, FLO_NOMEM. */
int buf_reserve(struct buf *b, size_t n);

/* Append. The same errors as buf_reserve; on error nothing was appended. */
int buf_append(struct buf *b, const void *data, size_t n);
int buf_put_u8(struct buf *b, uint8_t v);
int buf_put_u16(struct buf *b, uint16_t v);
int buf_put_u32(struct buf *b, uint32_t v);
int buf_put_u64(struct buf *b, uint64_t v);

/* Append zero bytes until len is a multiple of align (a power of two). */
int buf_pad(struct buf *b, size_t align);

/* Drop the first n bytes (n <= len), moving the rest to the front. */
void buf_consume(struct buf *b, size_t n);

/* Give the memory away: the caller frees it with free(). */
uint8_t *buf_detach(struct buf *b);

/* Reads from borrowed memory. After a read past the end, bad is set, that read
 * and all later ones yield zero, and the caller checks once, at the end. */
struct cursor
{
    const uint8_t *p;
    size_t n;
    bool bad;
};

struct cursor cursor_of(const void *data, size_t n);
uint8_t cursor_u8(struct cursor *c);
uint16_t cursor_u16(struct cursor *c);
uint32_t cursor_u32(struct cursor *c);
uint64_t cursor_u64(struct cursor *c);

/* Skip n bytes and return where they start, or NULL (and bad) past the end. */
const uint8_t *cursor_bytes(struct cursor *c, size_t n);

/* Plain loads and stores at any alignment; _be for SQLite's file formats. */
uint16_t load_u16(const void *p);
uint32_t load_u32(const void *p);
uint64_t load_u64(const void *p);
void store_u16(void *p, uint16_t v);
void store_u32(void *p, uint32_t v);
void store_u64(void *p, uint64_t v);
uint16_t load_u16_be(const void *p);
uint32_t load_u32_be(const void *p);
void store_u32_be(void *p, uint32_t v);

#endif
