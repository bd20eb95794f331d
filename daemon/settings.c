/* Settings: flag > environment > file > default, all from one table.
 *
 * Each line of the table is a setting: its name ("max-transaction"), where it
 * goes in struct settings, its kind, default, limits and help. The flag is
 * --max-transaction, the variable FLOTILLA_MAX_TRANSACTION, the key in the file
 * max_transaction. Every source is checked, also one that another overrides,
 * so that a wrong line in a file is found when it is written.
 *
 * The file is read by libconfig (https://hyperrealm.github.io/libconfig):
 *
 *   id = 1;
 *   dir = "/var/lib/flotilla";
 *   members = "1=10.0.0.1:7001,2=10.0.0.2:7001,3=10.0.0.3:7001";
 *   max_transaction = "64M";     # or 67108864
 *
 * Sizes are bytes or a number with K, M or G (1024, 1024², 1024³); times are
 * milliseconds, or a number with ms or s.
 *
 * The order: defaults, file, environment, flags (each writes over the one
 * before and notes where the value came from), then what follows from other
 * settings (--listen, --http), then the checks across settings. An error is one
 * line on stderr and exit code 2. */
#include "daemon/settings.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <libconfig.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"

#ifndef PACKAGE_VERSION
#define PACKAGE_VERSION "unversioned"
#endif

#define EXIT_USAGE 2
#define GO_ON (-1)
#define PEER_ADDRESS_MAX 95 /* what the handshake carries, daemon/transport.h */
#define KIB ((uint64_t)1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

enum kind { STRING, ADDRESS, U32, MS, SIZE, LEVEL, MEMBERS };

struct setting
{
    const char *name; /* of the flag, without the dashes */
    enum kind kind;
    size_t offset;       /* in struct settings */
    size_t size;         /* STRING, ADDRESS: of the array */
    const char *initial; /* as text; NULL: none, or it follows from others */
    uint64_t min, max;   /* numbers only */
    const char *help;
};

#define AT(field) offsetof(struct settings, field)
#define TEXT(field) offsetof(struct settings, field), \
                    sizeof(((struct settings *)0)->field)

static const struct setting table[] = {
    {"dir", STRING, TEXT(dir), NULL, 0, 0,
     "directory of this node's databases; required"},
    {"id", U32, AT(id), 0, NULL, 1, 65535, "number of this node; required"},
    {"cluster", STRING, TEXT(cluster), "flotilla", 0, 0,
     "name of the cluster; nodes of another one are refused"},
    {"members", MEMBERS, AT(members), 0, NULL, 0, 0,
     "1=host:port,2=host:port,…: all nodes, this one included; the same on "
     "every node; required"},
    {"listen", ADDRESS, TEXT(listen), NULL, 0, 0,
     "host:port to listen on for the other nodes; default: this member's "
     "address"},
    {"http", ADDRESS, TEXT(http), NULL, 0, 0,
     "host:port for HTTP; default: this member's host, one port above"},
    {"heartbeat", MS, AT(heartbeat_ms), 0, "50", 10, 60000,
     "interval of the leader's heartbeats"},
    {"election", MS, AT(election_ms), 0, "500", 40, 600000,
     "silence after which a new leader is elected; at least 4 heartbeats"},
    {"max-transaction", SIZE, AT(max_transaction_bytes), 0, "64M", 64 * KIB,
     GIB, "changed pages that one transaction may have"},
    {"max-transaction-ms", MS, AT(max_transaction_ms), 0, "10000", 100, 3600000,
     "a writer loses the write lock after this, if others wait"},
    {"commit-timeout", MS, AT(commit_timeout_ms), 0, "10000", 100, 3600000,
     "a COMMIT without an answer fails as unknown after this"},
    {"min-free", SIZE, AT(min_free_bytes), 0, "64M", 0, 1024 * GIB,
     "free disk space below which writes are refused"},
    {"replica-queue", SIZE, AT(replica_queue_bytes), 0, "32M", MIB, 4 * GIB,
     "committed transactions that wait to be applied, in memory"},
    {"snapshot-bytes", SIZE, AT(snapshot_bytes), 0, "16M", MIB, 4 * GIB,
     "raft log between two compactions"},
    {"max-databases", U32, AT(max_databases), 0, "64", 1, 256,
     "databases of this node"},
    {"max-clients", U32, AT(max_clients), 0, "512", 1, 65535,
     "connections of applications to this node"},
    {"log-level", LEVEL, AT(log_level), 0, "info", 0, 0,
     "error, warn, info or debug"},
};
#define N_SETTINGS (sizeof table / sizeof table[0])

/* Flags that are not settings; their values follow the settings' numbers. */
enum { F_CONFIG = 1000, F_HELP, F_VERSION, F_CHECK, F_PRINT };

struct parse
{
    struct settings *s;
    char source[N_SETTINGS][256]; /* where each value came from */
    bool given[N_SETTINGS];       /* by anything but its default */
    char config[512];             /* path of the file; "": none */
    bool check, print;
};

/* --- errors ------------------------------------------------------------------ */

static int fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int fail(const char *fmt, ...)
{
    va_list args;

    fputs("flotillad: ", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    return EXIT_USAGE;
}

/* --- values ------------------------------------------------------------------ */

/* A decimal number at the start of text; *end is what follows. */
static bool parse_number(const char *text, uint64_t *out, const char **end)
{
    char *stop;

    if (!isdigit((unsigned char)text[0])) {
        return false;
    }
    errno = 0;
    *out = strtoull(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

/* The factor that a suffix stands for, 0 if it is none. */
static uint64_t factor_of(enum kind kind, const char *suffix)
{
    static const struct
    {
        enum kind kind;
        const char *suffix;
        uint64_t factor;
    } factors[] = {{SIZE, "K", KIB},   {SIZE, "KiB", KIB}, {SIZE, "M", MIB},
                   {SIZE, "MiB", MIB}, {SIZE, "G", GIB},   {SIZE, "GiB", GIB},
                   {MS, "ms", 1},      {MS, "s", 1000}};
    size_t i;

    if (suffix[0] == '\0') {
        return 1;
    }
    for (i = 0; i < sizeof factors / sizeof factors[0]; i++) {
        if (factors[i].kind == kind && strcmp(factors[i].suffix, suffix) == 0) {
            return factors[i].factor;
        }
    }
    return 0;
}

static const char *number_hint(enum kind kind)
{
    switch (kind) {
        case SIZE:
            return "a number of bytes, or one with K, M or G";
        case MS:
            return "a number of milliseconds, or one with ms or s";
        default:
            return "a number";
    }
}

static int set_number(const struct setting *def, void *field, const char *text,
                      const char *where)
{
    uint64_t n = 0;
    uint64_t factor = 0;
    const char *suffix;

    if (parse_number(text, &n, &suffix)) {
        factor = factor_of(def->kind, suffix);
    }
    if (factor == 0) {
        return fail("%s: %s must be %s, not \"%s\"", where, def->name,
                    number_hint(def->kind), text);
    }
    if (n > UINT64_MAX / factor || n * factor < def->min ||
        n * factor > def->max) {
        return fail("%s: %s must be between %llu and %llu, not %s", where,
                    def->name, (unsigned long long)def->min,
                    (unsigned long long)def->max, text);
    }
    if (def->kind == SIZE) {
        *(uint64_t *)field = n * factor;
    } else {
        *(uint32_t *)field = (uint32_t)(n * factor);
    }
    return 0;
}

static int set_text(const struct setting *def, void *field, const char *text,
                    const char *where)
{
    char host[ADDRESS_MAX + 1];
    char port[ADDRESS_MAX + 1];

    if (text[0] == '\0') {
        return fail("%s: %s must not be empty", where, def->name);
    }
    if (strlen(text) >= def->size) {
        return fail("%s: %s is longer than %zu bytes", where, def->name,
                    def->size - 1);
    }
    if (def->kind == ADDRESS && address_split(text, host, port) != FLO_OK) {
        return fail("%s: %s must be of the form host:port, not \"%s\"", where,
                    def->name, text);
    }
    snprintf(field, def->size, "%s", text);
    return 0;
}

static const char *const level_names[] = {"error", "warn", "info", "debug"};

static int set_level(const struct setting *def, void *field, const char *text,
                     const char *where)
{
    unsigned i;

    for (i = 0; i < 4; i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *(enum log_level *)field = (enum log_level)i;
            return 0;
        }
    }
    return fail("%s: %s must be %s, not \"%s\"", where, def->name, def->help,
                text);
}

/* Copy a piece of a longer text. False if it does not fit. */
static bool cut(char *out, size_t size, const char *from, size_t n)
{
    if (n >= size) {
        return false;
    }
    memcpy(out, from, n);
    out[n] = '\0';
    return true;
}

int address_split(const char *address, char *host, char *port)
{
    const char *colon = strrchr(address, ':');
    const char *start = address;
    const char *end;
    uint64_t n;

    if (colon == NULL || colon - address > ADDRESS_MAX) {
        return FLO_INVALID;
    }
    if (!parse_number(colon + 1, &n, &end) || *end != '\0' || n == 0 ||
        n > 65535) {
        return FLO_INVALID;
    }
    end = colon;
    if (address[0] == '[') {
        if (colon[-1] != ']') {
            return FLO_INVALID;
        }
        start++;
        end--;
    } else if (strpbrk(start, ":[]") != colon) {
        return FLO_INVALID; /* IPv6 needs its brackets */
    }
    if (end <= start) {
        return FLO_INVALID;
    }
    cut(host, ADDRESS_MAX + 1, start, (size_t)(end - start));
    snprintf(port, ADDRESS_MAX + 1, "%u", (unsigned)n);
    return FLO_OK;
}

/* One "id=host:port". */
static int set_member(struct member *m, const char *text, const char *where)
{
    char host[ADDRESS_MAX + 1];
    char port[ADDRESS_MAX + 1];
    const char *rest;
    uint64_t id;

    if (!parse_number(text, &id, &rest) || *rest != '=' ||
        address_split(rest + 1, host, port) != FLO_OK) {
        return fail("%s: members must be of the form 1=host:port,2=host:port, "
                    "not \"%s\"",
                    where, text);
    }
    if (id < 1 || id > 65535) {
        return fail("%s: member number %llu is not between 1 and 65535", where,
                    (unsigned long long)id);
    }
    if (strlen(rest + 1) > PEER_ADDRESS_MAX) {
        return fail("%s: the address of member %llu is longer than %d bytes",
                    where, (unsigned long long)id, PEER_ADDRESS_MAX);
    }
    m->id = (uint32_t)id;
    snprintf(m->address, sizeof m->address, "%s", rest + 1);
    return 0;
}

static int check_duplicates(const struct member *members, unsigned n,
                            const char *where)
{
    const struct member *last = &members[n - 1];
    unsigned i;

    for (i = 0; i + 1 < n; i++) {
        if (members[i].id == last->id) {
            return fail("%s: member number %u occurs twice", where, last->id);
        }
        if (strcmp(members[i].address, last->address) == 0) {
            return fail("%s: members %u and %u have the same address %s", where,
                        members[i].id, last->id, last->address);
        }
    }
    return 0;
}

static int set_members(struct settings *s, const char *text, const char *where)
{
    struct member members[MEMBERS_MAX];
    char piece[ADDRESS_MAX + 16];
    unsigned n = 0;
    size_t len;
    int rc;

    memset(members, 0, sizeof members);
    for (;; text += len + 1) {
        len = strcspn(text, ",");
        if (len == 0) {
            return fail("%s: members has an empty entry", where);
        }
        if (n == MEMBERS_MAX) {
            return fail("%s: more than %d members", where, MEMBERS_MAX);
        }
        if (!cut(piece, sizeof piece, text, len)) {
            return fail("%s: an entry of members is too long", where);
        }
        rc = set_member(&members[n++], piece, where);
        if (rc == 0) {
            rc = check_duplicates(members, n, where);
        }
        if (rc != 0) {
            return rc;
        }
        if (text[len] == '\0') {
            break;
        }
    }
    memcpy(s->members, members, sizeof members);
    s->n_members = n;
    return 0;
}

/* Set one value from one source. */
static int set(struct parse *p, size_t i, const char *text, const char *where)
{
    const struct setting *def = &table[i];
    void *field = (char *)p->s + def->offset;
    int rc = 0;

    switch (def->kind) {
        case STRING:
        case ADDRESS:
            rc = set_text(def, field, text, where);
            break;
        case U32:
        case MS:
        case SIZE:
            rc = set_number(def, field, text, where);
            break;
        case LEVEL:
            rc = set_level(def, field, text, where);
            break;
        case MEMBERS:
            rc = set_members(p->s, text, where);
            break;
    }
    if (rc == 0) {
        snprintf(p->source[i], sizeof p->source[i], "%s", where);
    }
    return rc;
}

/* --- names ------------------------------------------------------------------- */

/* max-transaction → max_transaction (file) or MAX_TRANSACTION (environment). */
static void spell(const char *name, bool upper, char *out, size_t size)
{
    size_t i;

    for (i = 0; name[i] != '\0' && i + 1 < size; i++) {
        out[i] = name[i] == '-' ? '_' : name[i];
        if (upper) {
            out[i] = (char)toupper((unsigned char)out[i]);
        }
    }
    out[i] = '\0';
}

static size_t find_setting(const char *name)
{
    size_t i;

    for (i = 0; i < N_SETTINGS && strcmp(table[i].name, name) != 0; i++) {
    }
    return i;
}

static size_t find_key(const char *key)
{
    char spelled[64];
    size_t i;

    for (i = 0; i < N_SETTINGS; i++) {
        spell(table[i].name, false, spelled, sizeof spelled);
        if (strcmp(spelled, key) == 0) {
            break;
        }
    }
    return i;
}

/* --- the four sources ---------------------------------------------------------- */

static int read_defaults(struct parse *p)
{
    size_t i;
    int rc;

    for (i = 0; i < N_SETTINGS; i++) {
        if (table[i].initial != NULL) {
            rc = set(p, i, table[i].initial, "default");
            if (rc != 0) {
                return rc;
            }
        }
    }
    return 0;
}

/* A libconfig value as text; false for groups, lists and the like. */
static bool value_text(const config_setting_t *value, char *out, size_t size)
{
    switch (config_setting_type(value)) {
        case CONFIG_TYPE_STRING:
            return cut(out, size, config_setting_get_string(value),
                       strlen(config_setting_get_string(value)));
        case CONFIG_TYPE_INT:
        case CONFIG_TYPE_INT64:
            snprintf(out, size, "%lld", config_setting_get_int64(value));
            return true;
        default:
            return false;
    }
}

static int read_file_setting(struct parse *p, const config_setting_t *value)
{
    const char *key = config_setting_name(value);
    const char *file = config_setting_source_file(value);
    char text[4096];
    char where[sizeof p->source[0]];
    size_t i = find_key(key);

    snprintf(where, sizeof where, "%.200s:%u", file != NULL ? file : p->config,
             config_setting_source_line(value));
    if (i == N_SETTINGS) {
        return fail("%s: unknown setting \"%s\"", where, key);
    }
    if (!value_text(value, text, sizeof text)) {
        return fail("%s: %s must be a number or a \"text\"", where, key);
    }
    p->given[i] = true;
    return set(p, i, text, where);
}

static int report_file(const struct parse *p, const config_t *config)
{
    const char *file = config_error_file(config);

    if (config_error_type(config) == CONFIG_ERR_FILE_IO) {
        return fail("%s: cannot read it: %s", p->config,
                    strerror(errno != 0 ? errno : EIO));
    }
    return fail("%s:%d: %s", file != NULL ? file : p->config,
                config_error_line(config), config_error_text(config));
}

static int read_file(struct parse *p)
{
    config_t config;
    config_setting_t *root;
    int rc = 0;
    int i;

    if (p->config[0] == '\0') {
        return 0;
    }
    config_init(&config);
    errno = 0;
    if (config_read_file(&config, p->config) != CONFIG_TRUE) {
        rc = report_file(p, &config);
        goto out;
    }
    root = config_root_setting(&config);
    for (i = 0; i < config_setting_length(root) && rc == 0; i++) {
        rc = read_file_setting(p, config_setting_get_elem(root, (unsigned)i));
    }
out:
    config_destroy(&config);
    return rc;
}

static int read_environment(struct parse *p)
{
    char where[96];
    char spelled[64];
    const char *text;
    size_t i;
    int rc;

    for (i = 0; i < N_SETTINGS; i++) {
        spell(table[i].name, true, spelled, sizeof spelled);
        snprintf(where, sizeof where, "FLOTILLA_%s", spelled);
        text = getenv(where);
        if (text != NULL) {
            p->given[i] = true;
            rc = set(p, i, text, where);
            if (rc != 0) {
                return rc;
            }
        }
    }
    return 0;
}

/* --- flags --------------------------------------------------------------------- */

static void print_help(void)
{
    char flag[64];
    size_t i;

    puts("usage: flotillad --dir DIR --id N --members 1=host:port,… [flags]\n\n"
         "Runs one node of a replicated SQLite. Each flag can also be set in "
         "the environment\n(FLOTILLA_MAX_TRANSACTION) or in the file "
         "(max_transaction = \"64M\";).\n");
    for (i = 0; i < N_SETTINGS; i++) {
        snprintf(flag, sizeof flag, "--%s", table[i].name);
        printf("  %-22s %s%s%s%s\n", flag, table[i].help,
               table[i].initial != NULL ? " (" : "",
               table[i].initial != NULL ? table[i].initial : "",
               table[i].initial != NULL ? ")" : "");
    }
    printf("  %-22s read settings from this file\n", "--config FILE");
    printf("  %-22s check the settings and exit\n", "--check");
    printf("  %-22s print them, with where each came from, and exit\n",
           "--print-config");
    printf("  %-22s\n  %-22s\n", "--version", "--help");
}

static void make_options(struct option *options)
{
    static const struct option extra[] = {
        {"config", required_argument, NULL, F_CONFIG},
        {"help", no_argument, NULL, F_HELP},
        {"version", no_argument, NULL, F_VERSION},
        {"check", no_argument, NULL, F_CHECK},
        {"print-config", no_argument, NULL, F_PRINT},
        {NULL, 0, NULL, 0}};
    size_t i;

    for (i = 0; i < N_SETTINGS; i++) {
        options[i].name = table[i].name;
        options[i].has_arg = required_argument;
        options[i].flag = NULL;
        options[i].val = (int)i;
    }
    memcpy(options + N_SETTINGS, extra, sizeof extra);
}

static int bad_flag(int c, char **argv)
{
    const char *flag = argv[optind - 1];

    if (c == ':') {
        return fail("%s needs a value", flag);
    }
    if (optopt > 0 && optopt < 128) {
        return fail("unknown flag -%c; see flotillad --help", optopt);
    }
    if (optopt >= F_CONFIG) {
        return fail("%s takes no value", flag);
    }
    return fail("unknown flag %s; see flotillad --help", flag);
}

/* The flags that are not settings. GO_ON, or the exit code. */
static int read_other_flag(struct parse *p, int c)
{
    switch (c) {
        case F_HELP:
            print_help();
            return 0;
        case F_VERSION:
            puts("flotillad " PACKAGE_VERSION);
            return 0;
        case F_CHECK:
            p->check = true;
            return GO_ON;
        case F_PRINT:
            p->print = true;
            return GO_ON;
        default: /* F_CONFIG */
            if (!cut(p->config, sizeof p->config, optarg, strlen(optarg))) {
                return fail("--config: the path is too long");
            }
            return GO_ON;
    }
}

/* values[i] becomes the text of flag i, or stays NULL: the flags are looked at
 * first, for --config, but count last. GO_ON or the exit code. */
static int read_flags(struct parse *p, int argc, char **argv,
                      const char *values[])
{
    struct option options[N_SETTINGS + 6];
    int rc;
    int c;

    make_options(options);
    optind = 0; /* start over, also in tests that parse twice */
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (c == '?' || c == ':') {
            return bad_flag(c, argv);
        }
        if (c < F_CONFIG) {
            values[c] = optarg;
            continue;
        }
        rc = read_other_flag(p, c);
        if (rc != GO_ON) {
            return rc;
        }
    }
    if (optind < argc) {
        return fail("unexpected argument \"%s\"; see flotillad --help",
                    argv[optind]);
    }
    return GO_ON;
}

static int apply_flags(struct parse *p, const char *const values[])
{
    char where[64];
    size_t i;
    int rc;

    for (i = 0; i < N_SETTINGS; i++) {
        if (values[i] != NULL) {
            p->given[i] = true;
            snprintf(where, sizeof where, "--%s", table[i].name);
            rc = set(p, i, values[i], where);
            if (rc != 0) {
                return rc;
            }
        }
    }
    return 0;
}

/* --- what follows from other settings, and the checks across them --------------- */

static const struct member *find_self(const struct settings *s)
{
    unsigned i;

    for (i = 0; i < s->n_members; i++) {
        if (s->members[i].id == s->id) {
            return &s->members[i];
        }
    }
    return NULL;
}

const struct member *settings_self(const struct settings *s)
{
    return find_self(s);
}

static int check_required(const struct settings *s)
{
    if (s->dir[0] == '\0') {
        return fail("--dir is required: the directory of this node's "
                    "databases");
    }
    if (s->id == 0) {
        return fail("--id is required: the number of this node");
    }
    if (s->n_members == 0) {
        return fail("--members is required: 1=host:port,2=host:port,… for all "
                    "nodes");
    }
    if (find_self(s) == NULL) {
        return fail("members does not contain this node, number %u", s->id);
    }
    if (s->election_ms < 4 * s->heartbeat_ms) {
        return fail("election (%u ms) must be at least 4 times heartbeat "
                    "(%u ms)",
                    s->election_ms, s->heartbeat_ms);
    }
    return 0;
}

/* "[v6]:port+1" or "host:port+1". */
static int one_port_above(const char *address, char *out, size_t size)
{
    char host[ADDRESS_MAX + 1];
    char port[ADDRESS_MAX + 1];
    bool v6;
    int n;

    if (address_split(address, host, port) != FLO_OK) {
        return FLO_INVALID;
    }
    n = atoi(port) + 1;
    if (n > 65535) {
        return FLO_INVALID;
    }
    v6 = strchr(host, ':') != NULL;
    n = snprintf(out, size, "%s%s%s:%d", v6 ? "[" : "", host, v6 ? "]" : "", n);
    return n > 0 && (size_t)n < size ? FLO_OK : FLO_INVALID;
}

static int derive(struct parse *p)
{
    struct settings *s = p->s;
    size_t listen = find_setting("listen");
    size_t http = find_setting("http");

    if (!p->given[listen]) {
        snprintf(s->listen, sizeof s->listen, "%s", find_self(s)->address);
        snprintf(p->source[listen], sizeof p->source[listen],
                 "default: this member's address");
    }
    if (!p->given[http]) {
        if (one_port_above(find_self(s)->address, s->http, sizeof s->http) !=
            FLO_OK) {
            return fail("there is no port above %s for HTTP: set --http",
                        find_self(s)->address);
        }
        snprintf(p->source[http], sizeof p->source[http],
                 "default: this member's host, one port above");
    }
    return 0;
}

/* Several nodes on one host with ports side by side is the likely mistake. */
static int check_addresses(const struct settings *s)
{
    unsigned i;

    if (strcmp(s->http, s->listen) == 0) {
        return fail("http and listen are both %s", s->http);
    }
    for (i = 0; i < s->n_members; i++) {
        if (strcmp(s->http, s->members[i].address) == 0) {
            return fail("http (%s) is the address of member %u: leave a port "
                        "free after each member's, or set --http",
                        s->http, s->members[i].id);
        }
    }
    return 0;
}

/* --- --print-config: the file that would give these settings ---------------------- */

static void print_text(const char *text)
{
    putchar('"');
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\') {
            putchar('\\');
        }
        putchar(*text);
    }
    putchar('"');
}

static void print_value(const struct settings *s, const struct setting *def)
{
    const void *field = (const char *)s + def->offset;
    unsigned i;

    switch (def->kind) {
        case STRING:
        case ADDRESS:
            print_text(field);
            break;
        case U32:
        case MS:
            printf("%u", *(const uint32_t *)field);
            break;
        case SIZE:
            /* libconfig wants an L on what does not fit 32 bits. */
            printf("%llu%s", (unsigned long long)*(const uint64_t *)field,
                   *(const uint64_t *)field > INT32_MAX ? "L" : "");
            break;
        case LEVEL:
            printf("\"%s\"", level_names[*(const enum log_level *)field]);
            break;
        case MEMBERS:
            for (i = 0; i < s->n_members; i++) {
                printf("%s%u=%s", i == 0 ? "\"" : ",", s->members[i].id,
                       s->members[i].address);
            }
            putchar('"');
            break;
    }
}

static void print_config(const struct parse *p)
{
    char key[64];
    size_t i;

    for (i = 0; i < N_SETTINGS; i++) {
        spell(table[i].name, false, key, sizeof key);
        printf("%s = ", key);
        print_value(p->s, &table[i]);
        printf("; # %s\n", p->source[i]);
    }
}

/* --- all of it ----------------------------------------------------------------------- */

static int read_sources(struct parse *p, const char *const values[])
{
    const char *file = getenv("FLOTILLA_CONFIG");
    int rc;

    if (p->config[0] == '\0' && file != NULL &&
        !cut(p->config, sizeof p->config, file, strlen(file))) {
        return fail("FLOTILLA_CONFIG: the path is too long");
    }
    rc = read_defaults(p);
    if (rc == 0) {
        rc = read_file(p);
    }
    if (rc == 0) {
        rc = read_environment(p);
    }
    if (rc == 0) {
        rc = apply_flags(p, values);
    }
    return rc;
}

static int check_all(struct parse *p)
{
    int rc = check_required(p->s);

    if (rc == 0) {
        rc = derive(p);
    }
    if (rc == 0) {
        rc = check_addresses(p->s);
    }
    return rc;
}

int settings_parse(struct settings *s, int argc, char **argv)
{
    const char *values[N_SETTINGS] = {NULL};
    struct parse p;
    int rc;

    memset(s, 0, sizeof *s);
    memset(&p, 0, sizeof p);
    p.s = s;
    rc = read_flags(&p, argc, argv, values);
    if (rc != GO_ON) {
        return rc;
    }
    rc = read_sources(&p, values);
    if (rc == 0) {
        rc = check_all(&p);
    }
    if (rc != 0) {
        return rc;
    }
    if (p.print) {
        print_config(&p);
        return 0;
    }
    if (p.check) {
        puts("the settings are valid");
        return 0;
    }
    return GO_ON;
}
