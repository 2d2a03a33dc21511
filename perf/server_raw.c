/* The floor: a server that costs next to nothing beyond its system calls.
 *
 *     cc -O2 -o server_raw server_raw.c && ./server_raw [--broadcast]      prints its port, serves until terminated
 *
 * As an echo server, for measuring clients, it answers all complete frames of one read with one write, so it is never
 * what a client waits for. With --broadcast it is what any server with one send() per connection can reach at best: it
 * builds the frame once, then walks over an array of descriptors and does nothing else. It speaks just enough of
 * RFC 6455 for that: one upgrade request in one piece, whole frames, pong, close. No extensions, no TLS; who does not
 * take a whole broadcast frame at once is hung up on. Linux, loopback, one thread. Not an example of a server.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct {
    unsigned char *data;
    size_t start, end, room;
} buffer;

typedef struct {
    int fd, place; /* in everybody */
    bool upgraded, closing;
    buffer in, out;
} connection;

enum { MOST = 65536 };

static int poller;
static bool broadcasting;
static connection *everybody[MOST];
static int fds[MOST], crowd; /* the descriptors of everybody, side by side */

static void reserve(buffer *b, size_t n) {
    if (b->start == b->end) b->start = b->end = 0;
    if (b->room - b->end >= n) return;
    memmove(b->data, b->data + b->start, b->end - b->start);
    b->end -= b->start;
    b->start = 0;
    while (b->room - b->end < n) b->room = b->room ? b->room * 2 : 65536;
    b->data = realloc(b->data, b->room);
    if (!b->data) abort();
}

static void append(buffer *b, const void *data, size_t n) {
    reserve(b, n);
    memcpy(b->data + b->end, data, n);
    b->end += n;
}

/* ---------------------------------------------------------------- the upgrade */

static uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

/* SHA-1 (RFC 3174) of a text shorter than 119 bytes: two blocks are enough for a key and its GUID. */
static void sha1(const char *text, unsigned char digest[20]) {
    unsigned char block[128] = {0};
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    size_t n = strlen(text), blocks = n < 56 ? 1 : 2;
    memcpy(block, text, n);
    block[n] = 0x80;
    block[blocks * 64 - 2] = (unsigned char)(n * 8 >> 8);
    block[blocks * 64 - 1] = (unsigned char)(n * 8);
    for (size_t k = 0; k < blocks; k++) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            const unsigned char *p = block + k * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
            static const uint32_t constant[4] = {0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6};
            uint32_t next = rotate(a, 5) + f + e + constant[i / 20] + w[i];
            e = d, d = c, c = rotate(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void accept_value(const char *key, char out[29]) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char text[128];
    unsigned char digest[21] = {0};
    snprintf(text, sizeof text, "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(text, digest);
    for (int i = 0; i < 7; i++) {
        uint32_t three = (uint32_t)digest[i * 3] << 16 | (uint32_t)digest[i * 3 + 1] << 8 | digest[i * 3 + 2];
        for (int k = 0; k < 4; k++) out[i * 4 + k] = letters[three >> (18 - 6 * k) & 63];
    }
    out[27] = '=';
    out[28] = 0;
}

static bool upgrade(connection *c) {
    char response[256], accept[29], key[64];
    append(&c->in, "", 1); /* for strstr */
    c->in.end--;
    char *request = (char *)c->in.data + c->in.start, *end = strstr(request, "\r\n\r\n");
    if (!end) return c->in.end - c->in.start < 16384;
    *end = 0;
    const char *line = strcasestr(request, "\r\nSec-WebSocket-Key:");
    if (!line || sscanf(line + 20, " %63s", key) != 1) return false;
    accept_value(key, accept);
    int n = snprintf(response, sizeof response,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    append(&c->out, response, (size_t)n);
    c->in.start += (size_t)(end + 4 - request);
    if (crowd == MOST) return false;
    c->upgraded = true;
    c->place = crowd;
    fds[crowd] = c->fd;
    everybody[crowd++] = c;
    return true;
}

static void leave(connection *c) {
    if (c->upgraded) {
        everybody[c->place] = everybody[--crowd];
        everybody[c->place]->place = c->place;
        fds[c->place] = fds[crowd];
    }
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

/* Sends to everybody the frames that wait to be echoed to one. */
static void forward(buffer *frames) {
    size_t n = frames->end - frames->start;
    for (int i = 0; i < crowd; i++)
        if (send(fds[i], frames->data + frames->start, n, MSG_NOSIGNAL) != (ssize_t)n) shutdown(fds[i], SHUT_RDWR);
    frames->start = frames->end = 0;
}

/* ---------------------------------------------------------------- frames */

/* Answers one frame; returns its size, 0 if it is not whole yet, -1 if it is wrong. */
static int64_t answer(connection *c, const unsigned char *p, size_t have) {
    if (have < 6) return 0;
    size_t head = 6, n = p[1] & 127;
    if (!(p[1] & 0x80)) return -1;
    if (n == 126) {
        if (have < 8) return 0;
        head = 8;
        n = (size_t)p[2] << 8 | p[3];
    } else if (n == 127) {
        if (have < 14) return 0;
        head = 14;
        n = 0;
        for (int i = 2; i < 10; i++) n = n << 8 | p[i];
        if (n > 1u << 28) return -1;
    }
    if (have - head < n) return 0;
    int opcode = p[0] & 15;
    if (opcode != 10) {
        reserve(&c->out, n + 10);
        unsigned char *o = c->out.data + c->out.end;
        *o++ = opcode == 9 ? 0x8A : p[0];
        *o++ = p[1] & 127;
        for (size_t i = 2; i < head - 4; i++) *o++ = p[i];
        const unsigned char *key = p + head - 4, *payload = p + head;
        uint64_t wide;
        uint32_t narrow;
        memcpy(&narrow, key, 4);
        wide = (uint64_t)narrow << 32 | narrow;
        size_t i = 0;
        for (; i + 8 <= n; i += 8) {
            uint64_t word;
            memcpy(&word, payload + i, 8);
            word ^= wide;
            memcpy(o + i, &word, 8);
        }
        for (; i < n; i++) o[i] = payload[i] ^ key[i & 3];
        c->out.end = (size_t)(o - c->out.data) + n;
    }
    if (opcode == 8) c->closing = true;
    return (int64_t)(head + n);
}

static bool flush(connection *c) {
    while (c->out.start < c->out.end) {
        ssize_t n = send(c->fd, c->out.data + c->out.start, c->out.end - c->out.start, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) return false;
            struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c}; /* reads no more until this is gone */
            epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
            return true;
        }
        c->out.start += (size_t)n;
    }
    return !c->closing;
}

static bool serve(connection *c, uint32_t events) {
    if (events & EPOLLOUT) {
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
        return flush(c);
    }
    reserve(&c->in, 131072);
    ssize_t n = recv(c->fd, c->in.data + c->in.end, c->in.room - c->in.end, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    c->in.end += (size_t)n;
    if (!c->upgraded) return upgrade(c) && flush(c); /* the generator says nothing before it has the answer */
    while (c->upgraded && !c->closing) {
        int64_t size = answer(c, c->in.data + c->in.start, c->in.end - c->in.start);
        if (size < 0) return false;
        if (!size) break;
        c->in.start += (size_t)size;
    }
    if (broadcasting && !c->closing && c->out.end > c->out.start) forward(&c->out);
    return flush(c);
}

int main(int argc, char **argv) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct epoll_event e = {.events = EPOLLIN}, ready[64];
    broadcasting = argc > 1 && !strcmp(argv[1], "--broadcast");
    signal(SIGPIPE, SIG_IGN);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    poller = epoll_create1(0);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poller, ready, 64, -1);
        for (int i = 0; i < n; i++) {
            connection *c = ready[i].data.ptr;
            if (!c) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                c = calloc(1, sizeof *c);
                if (!c) abort();
                c->fd = fd;
                e.data.ptr = c;
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
            } else if (!serve(c, ready[i].events)) {
                leave(c);
            }
        }
    }
}
