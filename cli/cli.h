/* What the commands of `flotilla` share: exit codes, options, words on the
 * terminal. One process runs one command and ends, so memory that lives as
 * long as the command is not freed piece by piece, and running out of memory
 * ends the program with one line. */
#ifndef FLOTILLA_CLI_H
#define FLOTILLA_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Documented in flotilla(1). */
enum cli_exit {
    CLI_OK = 0,
    CLI_REFUSED = 1,     /* refused, or not healthy */
    CLI_USAGE = 2,       /* wrong usage or configuration */
    CLI_UNREACHABLE = 3, /* cannot reach what was asked */
    CLI_TIMEOUT = 4      /* timed out; the outcome is not known */
};

struct cli_command
{
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name */
};

/* How the user called this program, for hints. Set by main. */
extern const char *cli_program;

int cmd_cluster_start(int argc, char **argv);
int cmd_cluster_stop(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_sync_status(int argc, char **argv);
int cmd_resync(int argc, char **argv);

/* ---- Options (args.c) ---------------------------------------------------- */

/* Which options a command takes. */
enum {
    ARG_DIR = 1 << 0,
    ARG_NODES = 1 << 1,
    ARG_OUTPUT = 1 << 2,
    ARG_TARGET = 1 << 3,
    ARG_LEADER = 1 << 4,
    ARG_BASE_PORT = 1 << 5,
    ARG_FORCE = 1 << 6,
    ARG_TIMEOUT = 1 << 7
};

struct args
{
    const char *dir, *nodes, *target, *leader, *base_port, *timeout;
    bool json;
    bool force;
};

/* Returns -1 to go on, else the exit code: 0 after --help, CLI_USAGE after one
 * line that says what is wrong. command: "cluster start", for that line. */
int args_parse(struct args *a, int argc, char **argv, unsigned allowed,
               const char *command, const char *usage);

/* --timeout, in seconds, if it was given: *s stays as it is if not. CLI_OK, or
 * CLI_USAGE after a complaint. */
int args_timeout(const struct args *a, const char *command, unsigned *s);

/* A decimal number from min to max; false otherwise. */
bool parse_number(const char *s, unsigned min, unsigned max, unsigned *v);

/* ---- Words (text.c) ------------------------------------------------------ */

/* One line on stderr: "flotilla: …". */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A malloc'd string. */
char *format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

void *must(void *p); /* ends the program when p is NULL */

/* "4.2 MiB"; a malloc'd string. */
char *format_bytes(uint64_t n);

uint64_t now_ms(void); /* monotonic */
void sleep_ms(unsigned ms);

/* ---- Tables (text.c) ----------------------------------------------------- */

enum colour { COLOUR_NONE, COLOUR_GOOD, COLOUR_WARN, COLOUR_BAD };

struct table
{
    unsigned n_columns;
    unsigned n_cells, cap;
    struct table_cell
    {
        char *text;
        enum colour colour;
    } *cells;
};

/* headers: n_columns strings. Cells are then added row by row; their text is
 * copied, control characters become '?', and an empty one is shown as "-". */
void table_init(struct table *t, unsigned n_columns,
                const char *const *headers);
void table_cell(struct table *t, enum colour colour, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Colours only if f is a terminal and NO_COLOR is not set. */
void table_print(const struct table *t, FILE *f);
void table_close(struct table *t);

#endif
