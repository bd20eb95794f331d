/* HTTP requests to nodes, all of a list at once.
 *
 * Every request has a limit: 2 s to connect, 5 s in all, 16 MiB of answer.
 * Proxies from the environment are not used, and redirects not followed. */
#ifndef FLOTILLA_CLI_FETCH_H
#define FLOTILLA_CLI_FETCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define FETCH_CONNECT_MS 2000L
#define FETCH_TOTAL_MS 5000L
#define FETCH_BYTES_MAX (16u << 20)

/* How -o json prints. */
#define JSON_DUMP_FLAGS (JSON_INDENT(2) | JSON_REAL_PRECISION(9))

struct fetch
{
    char *url; /* owned */
    bool post;
    long code;       /* HTTP status; 0: no answer, see error */
    bool timed_out;
    char error[256]; /* why there was no answer */
    char *body;      /* owned, NUL-terminated; "" when there was none */
    size_t n;
    json_t *json; /* owned; NULL when the body is not JSON */
};

/* base: "host:port" or a URL; path starts with '/'. */
void fetch_init(struct fetch *f, const char *base, const char *path);

/* Run them at the same time; returns when the last one is done. */
void fetch_all(struct fetch *f, unsigned n);
void fetch_close(struct fetch *f);

/* The value at "a.b" in v; NULL when absent. v may be NULL. */
json_t *json_at(json_t *v, const char *path);

/* The same with a default for what is absent, null or of another type. */
const char *json_text(json_t *v, const char *path, const char *otherwise);
long long json_number(json_t *v, const char *path, long long otherwise);
bool json_flag(json_t *v, const char *path);

#endif
