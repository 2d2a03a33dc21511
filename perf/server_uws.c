/* Peer: uWebSockets, without Python.
 *
 *     cc -O2 -o server_uws server_uws.c && ./server_uws LIBRARY      prints its port, echoes until terminated
 *
 * LIBRARY is the shared library in the wheel of socketify: uWebSockets on libuv, with a C interface. So both peers are
 * the same C++, and what lies between them is Python. The declarations below are the part of that interface in use.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PLAIN = 0, EXCLUSIVE_PORT = 1, NO_COMPRESSION = 0 };

typedef struct app app;
typedef struct websocket websocket;
typedef struct { const char *paths[6]; int prefer_low_memory; } tls_options;
typedef struct { int port; const char *host; int options; } listen_config;
typedef void on_socket(websocket *, void *);
typedef void on_message(websocket *, const char *, size_t, int opcode, void *);

typedef struct {
    int compression;
    unsigned max_payload;
    unsigned short idle_timeout;
    unsigned max_backpressure;
    bool close_on_backpressure, reset_idle_timeout_on_send, send_pings;
    unsigned short max_lifetime;
    void *upgrade;
    on_socket *open;
    on_message *message;
    void *drain, *ping, *pong, *close, *subscription;
} behaviour;

static int (*send_message)(int, websocket *, const char *, size_t, int);

static void echo(websocket *socket, const char *data, size_t size, int opcode, void *nothing) {
    (void)nothing;
    send_message(PLAIN, socket, data, size, opcode);
}

static int free_port(void) { /* the interface does not tell which port port 0 became */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int probe = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(probe, (struct sockaddr *)&address, size) || getsockname(probe, (struct sockaddr *)&address, &size)) abort();
    close(probe);
    return ntohs(address.sin_port);
}

static void listening(void *socket, listen_config config, void *nothing) {
    (void)nothing;
    if (!socket) exit(1);
    printf("%d\n", config.port);
    fflush(stdout);
}

static void *library;

static void *function(const char *name) {
    void *found = dlsym(library, name);
    if (!found) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return found;
}

int main(int count, char **arguments) {
    if (count != 2 || !(library = dlopen(arguments[1], RTLD_NOW))) {
        fprintf(stderr, "server_uws LIBRARY: %s\n", count == 2 ? dlerror() : "one argument");
        return 1;
    }
    app *(*create)(int, tls_options) = function("uws_create_app");
    void (*route)(int, app *, const char *, behaviour, void *) = function("uws_ws");
    void (*listen_at)(int, app *, listen_config, void (*)(void *, listen_config, void *), void *) =
        function("uws_app_listen_with_config");
    void (*run)(int, app *) = function("uws_app_run");
    send_message = function("uws_ws_send");

    app *server = create(PLAIN, (tls_options){0});
    route(PLAIN, server, "/*",
          (behaviour){.compression = NO_COMPRESSION, .max_payload = 10 << 20, .idle_timeout = 120,
                      .max_backpressure = 64 << 20, .send_pings = true, .message = echo}, NULL);
    listen_at(PLAIN, server, (listen_config){free_port(), "127.0.0.1", EXCLUSIVE_PORT}, listening, NULL);
    run(PLAIN, server);
    return 0;
}
