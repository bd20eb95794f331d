/* One logfmt line per event on stderr.
 *
 * A line is built in a buffer on the stack and leaves in one write(2), so that
 * lines of several threads and processes never mix, and nothing is buffered
 * when the process dies. Values are the caller's business (log_quote), but a
 * control character never splits a line: it is printed as a space.
 *
 * Limits: a line is at most 1 KiB; a longer one is cut and ends in "...". What
 * cannot be written (a full pipe, a closed stderr) is lost: logging never
 * blocks or fails the daemon. */
#include "daemon/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024
#define QUOTE_MAX_BYTES 512
#define QUOTE_BUFFERS 4

static atomic_int threshold = LOG_INFO;
static atomic_uint node;

static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_init(unsigned node_id, enum log_level level)
{
    node = node_id;
    threshold = (int)level;
}

/* "2026-01-31T12:00:00.123Z"; out holds 32 bytes. */
static void format_time(char *out, size_t n)
{
    struct timespec now;
    struct tm tm;
    size_t used;

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    used = strftime(out, n, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + used, n - used, ".%03dZ", (int)(now.tv_nsec / 1000000));
}

static size_t format_head(char *line, size_t n, enum log_level level,
                          const char *event)
{
    char ts[48];
    char who[24] = "";
    int used;

    format_time(ts, sizeof ts);
    if (node != 0) {
        snprintf(who, sizeof who, " node=%u", (unsigned)node);
    }
    used = snprintf(line, n, "ts=%s level=%s%s event=%s", ts,
                    level_names[level], who, event);
    return used < 0 ? 0 : (size_t)used;
}

/* Cut an overlong line visibly and end it; returns what to write. */
static size_t finish_line(char *line, size_t used)
{
    size_t i;

    if (used >= LINE_MAX_BYTES) {
        memcpy(line + LINE_MAX_BYTES - 4, "...", 3);
        used = LINE_MAX_BYTES - 1;
    }
    for (i = 0; i < used; i++) {
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) {
            line[i] = ' ';
        }
    }
    line[used] = '\n';
    return used + 1;
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    size_t used;
    va_list args;
    int saved = errno;
    int n;

    if ((int)level > threshold) {
        return;
    }
    used = format_head(line, sizeof line, level, event);
    if (fmt[0] != '\0' && used < sizeof line - 1) {
        line[used++] = ' ';
        va_start(args, fmt);
        n = vsnprintf(line + used, sizeof line - used, fmt, args);
        va_end(args);
        used += n < 0 ? 0 : (size_t)n;
    }
    used = finish_line(line, used);
    while (write(STDERR_FILENO, line, used) < 0 && errno == EINTR) {
    }
    errno = saved;
}

static int needs_quotes(const char *s)
{
    if (*s == '\0') {
        return 1;
    }
    for (; *s != '\0'; s++) {
        if ((unsigned char)*s <= 0x20 || *s == '"' || *s == '=' || *s == '\\' ||
            *s == 0x7f) {
            return 1;
        }
    }
    return 0;
}

/* A letter for \n, \t …, or 0. */
static char escape_of(char c)
{
    switch (c) {
        case '"':
        case '\\':
            return c;
        case '\n':
            return 'n';
        case '\r':
            return 'r';
        case '\t':
            return 't';
        default:
            return 0;
    }
}

const char *log_quote(const char *s)
{
    static _Thread_local char buffers[QUOTE_BUFFERS][QUOTE_MAX_BYTES];
    static _Thread_local unsigned turn;
    char *out = buffers[turn++ % QUOTE_BUFFERS];
    size_t n = 0;

    if (s == NULL) {
        s = "";
    }
    if (!needs_quotes(s)) {
        snprintf(out, QUOTE_MAX_BYTES, "%s", s);
        return out;
    }
    out[n++] = '"';
    /* The longest character is two bytes, and quote and NUL follow. */
    for (; *s != '\0' && n < QUOTE_MAX_BYTES - 4; s++) {
        char e = escape_of(*s);
        if (e != 0) {
            out[n++] = '\\';
            out[n++] = e;
        } else {
            out[n++] = *s;
        }
    }
    out[n++] = '"';
    out[n] = '\0';
    return out;
}
