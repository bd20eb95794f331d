/* HTTP requests to nodes through libcurl's multi interface; see fetch.h. */
#include "cli/fetch.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

void fetch_init(struct fetch *f, const char *base, const char *path)
{
    size_t n = strlen(base);

    while (n > 0 && base[n - 1] == '/') {
        n--;
    }
    *f = (struct fetch){0};
    f->url = format("%s%.*s%s", strstr(base, "://") != NULL ? "" : "http://",
                    (int)n, base, path);
    f->body = must(strdup(""));
}

void fetch_close(struct fetch *f)
{
    free(f->url);
    free(f->body);
    json_decref(f->json);
    *f = (struct fetch){0};
}

static size_t on_data(char *data, size_t size, size_t n, void *arg)
{
    struct fetch *f = arg;

    n *= size;
    if (n > FETCH_BYTES_MAX - f->n) {
        return 0; /* curl ends the transfer with an error */
    }
    f->body = must(realloc(f->body, f->n + n + 1));
    memcpy(f->body + f->n, data, n);
    f->n += n;
    f->body[f->n] = '\0';
    return n;
}

static CURL *prepare(struct fetch *f)
{
    CURL *c = must(curl_easy_init());

    curl_easy_setopt(c, CURLOPT_URL, f->url);
    curl_easy_setopt(c, CURLOPT_PRIVATE, f);
    curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, FETCH_CONNECT_MS);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, FETCH_TOTAL_MS);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, f->error);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, f);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "flotilla");
    if (f->post) {
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, "");
    }
    return c;
}

/* "Connection refused" says more than curl's "Couldn't connect to server". */
static void explain(CURL *c, CURLcode rc, struct fetch *f)
{
    long error = 0;

    curl_easy_getinfo(c, CURLINFO_OS_ERRNO, &error);
    if (rc == CURLE_COULDNT_CONNECT && error != 0) {
        snprintf(f->error, sizeof f->error, "%s", strerror((int)error));
    } else if (f->error[0] == '\0') {
        snprintf(f->error, sizeof f->error, "%s", curl_easy_strerror(rc));
    }
}

static void finish(CURL *c, CURLcode rc)
{
    struct fetch *f = NULL;

    curl_easy_getinfo(c, CURLINFO_PRIVATE, &f);
    f->timed_out = rc == CURLE_OPERATION_TIMEDOUT;
    if (rc != CURLE_OK) {
        explain(c, rc, f);
        return;
    }
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &f->code);
    f->json = json_loadb(f->body, f->n, JSON_REJECT_DUPLICATES, NULL);
}

/* How long one wait may last; the requests' own limits end them. */
#define WAIT_MS 1000

void fetch_all(struct fetch *f, unsigned n)
{
    CURLM *multi = must(curl_multi_init());
    CURL **easy = must(calloc(n > 0 ? n : 1, sizeof *easy));
    CURLMsg *msg;
    int running = 1, left;

    for (unsigned i = 0; i < n; i++) {
        easy[i] = prepare(&f[i]);
        curl_multi_add_handle(multi, easy[i]);
    }
    while (curl_multi_perform(multi, &running) == CURLM_OK && running > 0) {
        curl_multi_poll(multi, NULL, 0, WAIT_MS, NULL);
    }
    while ((msg = curl_multi_info_read(multi, &left)) != NULL) {
        if (msg->msg == CURLMSG_DONE) {
            finish(msg->easy_handle, msg->data.result);
        }
    }
    for (unsigned i = 0; i < n; i++) {
        curl_multi_remove_handle(multi, easy[i]);
        curl_easy_cleanup(easy[i]);
    }
    curl_multi_cleanup(multi);
    free(easy);
}

json_t *json_at(json_t *v, const char *path)
{
    while (v != NULL && path[0] != '\0') {
        size_t n = strcspn(path, ".");
        char key[64];

        snprintf(key, sizeof key, "%.*s", (int)n, path);
        v = json_object_get(v, key);
        path += n + (path[n] == '.');
    }
    return v;
}

const char *json_text(json_t *v, const char *path, const char *otherwise)
{
    const char *s = json_string_value(json_at(v, path));

    return s != NULL ? s : otherwise;
}

long long json_number(json_t *v, const char *path, long long otherwise)
{
    json_t *x = json_at(v, path);

    return json_is_integer(x) ? json_integer_value(x) : otherwise;
}

bool json_flag(json_t *v, const char *path)
{
    return json_is_true(json_at(v, path));
}
