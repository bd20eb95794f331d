/* Words on the terminal: complaints, sizes, tables. */
#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

void *must(void *p)
{
    if (p == NULL) {
        fputs("flotilla: out of memory\n", stderr);
        exit(CLI_REFUSED);
    }
    return p;
}

void complain(const char *fmt, ...)
{
    va_list ap;

    fputs("flotilla: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

char *format(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return must(n < 0 ? NULL : s);
}

char *format_bytes(uint64_t n)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB",
                                        "EiB"};
    double v = (double)n / 1024;
    unsigned i = 0;

    if (n < 1024) {
        return format("%u bytes", (unsigned)n);
    }
    while (v >= 1024 && i < 5) {
        v /= 1024;
        i++;
    }
    return format(v < 10 ? "%.1f %s" : "%.0f %s", v, units[i]);
}

uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void sleep_ms(unsigned ms)
{
    struct timespec t = {.tv_sec = ms / 1000,
                         .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&t, NULL);
}

/* ---- Tables -------------------------------------------------------------- */

static struct table_cell *new_cell(struct table *t)
{
    if (t->n_cells == t->cap) {
        t->cap = t->cap > 0 ? 2 * t->cap : 64;
        t->cells = must(realloc(t->cells, t->cap * sizeof *t->cells));
    }
    return &t->cells[t->n_cells++];
}

/* What a remote node says is shown, but does not move the cursor. */
static void make_printable(char *s)
{
    for (; *s != '\0'; s++) {
        if ((unsigned char)*s < ' ' || *s == 0x7f) {
            *s = '?';
        }
    }
}

void table_init(struct table *t, unsigned n_columns,
                const char *const *headers)
{
    *t = (struct table){.n_columns = n_columns};
    for (unsigned i = 0; i < n_columns; i++) {
        table_cell(t, COLOUR_NONE, "%s", headers[i]);
    }
}

void table_cell(struct table *t, enum colour colour, const char *fmt, ...)
{
    struct table_cell *cell = new_cell(t);
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vasprintf(&cell->text, fmt, ap);
    va_end(ap);
    must(n < 0 ? NULL : cell->text);
    if (n == 0) {
        free(cell->text);
        cell->text = must(strdup("-"));
    }
    make_printable(cell->text);
    cell->colour = colour;
}

/* Columns on the screen: bytes that do not continue a UTF-8 character. */
static unsigned width_of(const char *s)
{
    unsigned n = 0;

    for (; *s != '\0'; s++) {
        n += ((unsigned char)*s & 0xc0) != 0x80;
    }
    return n;
}

static unsigned column_width(const struct table *t, unsigned column)
{
    unsigned width = 0;

    for (unsigned i = column; i < t->n_cells; i += t->n_columns) {
        unsigned w = width_of(t->cells[i].text);

        width = w > width ? w : width;
    }
    return width;
}

static bool use_colour(FILE *f)
{
    const char *no = getenv("NO_COLOR");
    const char *term = getenv("TERM");

    return isatty(fileno(f)) && (no == NULL || no[0] == '\0') &&
           term != NULL && strcmp(term, "dumb") != 0;
}

void table_print(const struct table *t, FILE *f)
{
    static const char *const codes[] = {"", "\033[32m", "\033[33m",
                                        "\033[31m"};
    bool coloured = use_colour(f);

    assert(t->n_cells % t->n_columns == 0);
    for (unsigned i = 0; i < t->n_cells; i++) {
        const struct table_cell *cell = &t->cells[i];
        unsigned column = i % t->n_columns;
        bool paint = coloured && cell->colour != COLOUR_NONE;
        unsigned pad = column_width(t, column) - width_of(cell->text) + 2;

        fprintf(f, "%s%s%s", paint ? codes[cell->colour] : "", cell->text,
                paint ? "\033[0m" : "");
        if (column == t->n_columns - 1) {
            fputc('\n', f);
        } else {
            fprintf(f, "%*s", (int)pad, "");
        }
    }
}

void table_close(struct table *t)
{
    for (unsigned i = 0; i < t->n_cells; i++) {
        free(t->cells[i].text);
    }
    free(t->cells);
    *t = (struct table){.n_columns = t->n_columns};
}
