/* Inside of the HTTP server: from a complete request to its reply. */
#ifndef FLOTILLA_HTTP_ROUTES_H
#define FLOTILLA_HTTP_ROUTES_H

#include <microhttpd.h>

#include "daemon/status.h"

/* Answer a request whose body has been read and thrown away. */
enum MHD_Result http_route(struct node *n, struct MHD_Connection *c,
                           const char *path, const char *method);

/* {"error": …} with the HTTP status http; s names the leader, or is NULL. */
enum MHD_Result http_reply_error(struct MHD_Connection *c, unsigned http,
                                 const char *code, const char *message,
                                 const struct node_status *s);

#endif
