/* The options of all commands, in one table: an option means the same thing
 * wherever it is taken. */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const struct option all_options[] = {
    {"dir", required_argument, NULL, ARG_DIR},
    {"nodes", required_argument, NULL, ARG_NODES},
    {"output", required_argument, NULL, ARG_OUTPUT},
    {"target", required_argument, NULL, ARG_TARGET},
    {"leader", required_argument, NULL, ARG_LEADER},
    {"base-port", required_argument, NULL, ARG_BASE_PORT},
    {"force", no_argument, NULL, ARG_FORCE},
    {"timeout", required_argument, NULL, ARG_TIMEOUT},
    {"help", no_argument, NULL, 'h'},
};
#define N_OPTIONS (sizeof all_options / sizeof all_options[0])

bool parse_number(const char *s, unsigned min, unsigned max, unsigned *v)
{
    char *end;
    unsigned long n;

    if (!isdigit((unsigned char)s[0])) {
        return false;
    }
    errno = 0;
    n = strtoul(s, &end, 10);
    if (errno != 0 || *end != '\0' || n < min || n > max) {
        return false;
    }
    *v = (unsigned)n;
    return true;
}

/* Only what the command takes is known to getopt, abbreviations included. */
static void select_options(struct option *out, unsigned allowed)
{
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (all_options[i].val == 'h' ||
            ((unsigned)all_options[i].val & allowed) != 0) {
            *out++ = all_options[i];
        }
    }
    *out = (struct option){NULL, 0, NULL, 0};
}

static bool set_value(struct args *a, int option, const char *value)
{
    switch (option) {
    case ARG_DIR:
        a->dir = value;
        return value[0] != '\0';
    case ARG_NODES:
        a->nodes = value;
        return value[0] != '\0';
    case ARG_TARGET:
        a->target = value;
        return value[0] != '\0';
    case ARG_LEADER:
        a->leader = value;
        return value[0] != '\0';
    case ARG_BASE_PORT:
        a->base_port = value;
        return true;
    case ARG_TIMEOUT:
        a->timeout = value;
        return true;
    case ARG_FORCE:
        a->force = true;
        return true;
    case ARG_OUTPUT:
        a->json = strcmp(value, "json") == 0;
        return a->json || strcmp(value, "table") == 0;
    }
    assert(!"an option that is not in the table");
    return false;
}

/* What getopt has just stumbled over; a letter may be one of several. */
static const char *culprit(char **argv)
{
    static char letter[3] = "-?";
    const char *given = argv[optind - 1];

    if (optopt != 0 && strncmp(given, "--", 2) != 0) {
        letter[1] = (char)optopt;
        return letter;
    }
    return given;
}

static int wrong(const char *command, const char *what, const char *which)
{
    complain("%s: %s%s; see '%s %s --help'", command, what, which, cli_program,
             command);
    return CLI_USAGE;
}

int args_parse(struct args *a, int argc, char **argv, unsigned allowed,
               const char *command, const char *usage)
{
    struct option options[N_OPTIONS + 1];
    const char *shorts = (allowed & ARG_OUTPUT) != 0 ? ":ho:" : ":h";
    int c;

    *a = (struct args){0};
    select_options(options, allowed);
    opterr = 0;
    optind = 0;
    while ((c = getopt_long(argc, argv, shorts, options, NULL)) != -1) {
        if (c == 'h') {
            fputs(usage, stdout);
            return CLI_OK;
        }
        if (c == '?') {
            return wrong(command, "unknown option ", culprit(argv));
        }
        if (c == ':') {
            return wrong(command, "a value is missing after ", culprit(argv));
        }
        if (!set_value(a, c == 'o' ? ARG_OUTPUT : c, optarg)) {
            return wrong(command, "bad value in ", argv[optind - 1]);
        }
    }
    if (optind < argc) {
        return wrong(command, "unexpected argument ", argv[optind]);
    }
    return -1;
}

int args_timeout(const struct args *a, const char *command, unsigned *s)
{
    if (a->timeout != NULL && !parse_number(a->timeout, 1, 86400, s)) {
        complain("%s: --timeout takes seconds, from 1 to 86400", command);
        return CLI_USAGE;
    }
    return CLI_OK;
}
