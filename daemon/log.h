/* Logs: logfmt on stderr, one line per event.
 *
 *   ts=2026-01-31T12:00:00.123Z level=info node=1 event=leader_elected term=7
 *
 * Each state change is logged once, and each error says what to do next in
 * hint="…". Thread-safe: one line is one write(2). */
#ifndef FLOTILLA_LOG_H
#define FLOTILLA_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Called once, before other threads exist. */
void log_init(unsigned node_id, enum log_level level);

/* event: snake_case. fmt: logfmt pairs, "peer=%u addr=%s". Values that may hold
 * spaces are passed through log_quote. Lines over 1 KiB are cut. */
void log_event(enum log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(event, ...) log_event(LOG_ERROR, event, __VA_ARGS__)
#define log_warn(event, ...) log_event(LOG_WARN, event, __VA_ARGS__)
#define log_info(event, ...) log_event(LOG_INFO, event, __VA_ARGS__)
#define log_debug(event, ...) log_event(LOG_DEBUG, event, __VA_ARGS__)

/* Quote s for logfmt into a static per-thread buffer (4 of them in turn). */
const char *log_quote(const char *s);

#endif
