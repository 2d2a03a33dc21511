/* Load generator for WebSocket servers on loopback. Linux, one thread, one file.
 *
 *     cc -O2 -o load load.c [-DWITH_TLS -lssl -lcrypto] [-DWITH_DEFLATE -lz]
 *     load echo --port 8080 --connections 8 --depth 64 --size 32 --seconds 2 --server-pid 4711
 *
 * What it owns: N connections, a ring of prebuilt masked frames, a histogram of latencies, one JSON object on stdout.
 * What it never does: allocate, mask, or compress per message. Every reply is checked against the frame that asked for
 * it: opcode, length and content, in order. A wrong byte ends the run with exit status 2.
 *
 * Modes
 *   echo       closed loop: each connection keeps DEPTH messages in flight (1 = ping-pong); with --replies N each is
 *              answered N times, and its latency is that of the last answer
 *   open       open loop: RATE messages a second over all connections; latency counts from the moment a message was
 *              *due*, not from when it could be sent, so a stalled server is not flattered (coordinated omission)
 *   broadcast  connection 0 sends, the server forwards to everybody, done when the last of N has it; with --replies M
 *              everybody gets it M times, and what is counted are these M together
 *   connect    DEPTH connections at a time: TCP, [TLS,] upgrade, close handshake, again
 *   idle       opens N connections, says so, and obeys stdin: "touch" (one echo each), "quit"
 *
 * The server's CPU time is read from its process clock (clock_getcpuclockid), in nanoseconds, at both ends of the
 * measured window, so start-up, handshakes and warm-up cost it nothing.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif
#ifdef WITH_DEFLATE
#include <zlib.h>
#endif

/* ---------------------------------------------------------------- options */

enum mode { ECHO, OPEN, BROADCAST, CONNECT, IDLE };

static struct {
    enum mode mode;
    const char *mode_name, *host, *path, *messages;
    const char *hello; /* what a client says first; it is up once the server has said something that begins with it */
    int port, connections, depth, replies;
    size_t size;
    double seconds, warmup, rate;
    uint64_t count; /* instead of seconds: exactly this many messages, in steps obeyed from stdin */
    pid_t server_pid;
    bool tls, deflate, text, poll;
} opt = {.host = "127.0.0.1", .path = "/", .connections = 1, .depth = 1, .replies = 1, .size = 32, .seconds = 1, .warmup = 0.3};

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(2);
}

static void *allocate(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p) fail("out of memory");
    return p;
}

/* ---------------------------------------------------------------- clocks */

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) return 0;
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static int64_t server_cpu_ns(void) {
    clockid_t clock;
    if (!opt.server_pid || clock_getcpuclockid(opt.server_pid, &clock)) return 0;
    return clock_ns(clock);
}

/* ---------------------------------------------------------------- histogram
 * Log-linear as in HDR: 2048 cells for the first 2048 ns, then 1024 for every doubling, so any value is off by less
 * than 0.1 %. */

enum { CELL_BITS = 11, CELLS = 1 << CELL_BITS, HALF = CELLS / 2, DOUBLINGS = 36 };

typedef struct {
    uint64_t cells[CELLS + DOUBLINGS * HALF], count, lost;
    int64_t min, max;
    double sum;
} histogram;

static int cell_of(int64_t value) {
    int shift = 64 - __builtin_clzll((uint64_t)value | (CELLS - 1)) - CELL_BITS;
    return shift * HALF + (int)(value >> shift);
}

static int64_t top_of_cell(int cell) {
    if (cell < CELLS) return cell;
    int shift = cell / HALF - 1;
    return ((int64_t)(cell - shift * HALF + 1) << shift) - 1;
}

static void record(histogram *h, int64_t value) {
    if (value < 0) value = 0;
    int cell = cell_of(value);
    if (cell >= CELLS + DOUBLINGS * HALF) {
        h->lost++;
        return;
    }
    h->cells[cell]++;
    h->sum += (double)value;
    if (!h->count++ || value < h->min) h->min = value;
    if (value > h->max) h->max = value;
}

static int64_t value_at(const histogram *h, double percentile) {
    double exact = percentile / 100 * (double)h->count;
    uint64_t wanted = (uint64_t)exact, seen = 0;
    if ((double)wanted < exact) wanted++;
    if (!wanted) wanted = 1;
    for (int cell = 0; cell < CELLS + DOUBLINGS * HALF; cell++) {
        seen += h->cells[cell];
        if (seen >= wanted) return top_of_cell(cell) < h->max ? top_of_cell(cell) : h->max;
    }
    return h->max;
}

static void print_histogram(const char *name, const histogram *h) {
    static const double shown[] = {0,  10, 20, 30, 40, 50, 60,   70,   75,   80,    85,    90,
                                   92.5, 95, 97, 98, 99, 99.5, 99.9, 99.95, 99.99, 99.999, 100};
    printf(",\n \"%s\": {\"count\": %llu, \"lost\": %llu", name, (unsigned long long)h->count,
           (unsigned long long)h->lost);
    if (h->count) {
        printf(", \"min\": %lld, \"max\": %lld, \"mean\": %.1f, \"p50\": %lld, \"p95\": %lld, \"p99\": %lld, \"p999\": %lld",
               (long long)h->min, (long long)h->max, h->sum / (double)h->count, (long long)value_at(h, 50),
               (long long)value_at(h, 95), (long long)value_at(h, 99), (long long)value_at(h, 99.9));
        printf(", \"percentiles\": [");
        for (size_t i = 0; i < sizeof shown / sizeof *shown; i++)
            printf("%s[%g, %lld]", i ? ", " : "", shown[i], (long long)value_at(h, shown[i]));
        printf("]");
    }
    printf("}");
}

static histogram latency, from_send; /* from_send: open loop only, from the actual send; tells if we were late */

/* ---------------------------------------------------------------- the ring of frames
 * All connections send the same ring over and over; each holds only a position in it. With compression the ring is one
 * deflate stream from its first message on: message 0 refers to nothing, message k only to 0..k-1, so the ring may be
 * replayed without end and is still a valid stream with context takeover. */

static struct {
    int n;               /* messages */
    char *payload;       /* what must come back, end to end */
    size_t *at, *length; /* per message: where it starts in payload, how long it is */
    unsigned char *wire; /* masked frames, end to end */
    size_t *frame;       /* n + 1 offsets into wire */
    int opcode;
} ring;

static uint64_t random_state = 0x9E3779B97F4A7C15u;
static uint64_t random64(void) { /* xorshift64*: masks and payloads need variety here, not secrecy */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Du;
}

static void read_messages(const char *name) {
    FILE *file = fopen(name, "rb");
    if (!file) fail("cannot read %s: %s", name, strerror(errno));
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    ring.payload = allocate(size + 1, 1);
    if (fread(ring.payload, 1, size, file) != size) fail("cannot read %s", name);
    fclose(file);
    if (size && ring.payload[size - 1] != '\n') ring.payload[size++] = '\n';
    for (size_t i = 0; i < size; i++) ring.n += ring.payload[i] == '\n';
    if (!ring.n) fail("%s is empty", name);
    ring.at = allocate((size_t)ring.n, sizeof *ring.at);
    ring.length = allocate((size_t)ring.n, sizeof *ring.length);
    size_t start = 0;
    for (size_t i = 0, line = 0; i < size; i++) {
        if (ring.payload[i] != '\n') continue;
        ring.at[line] = start;
        ring.length[line++] = i - start;
        start = i + 1;
    }
}

static void make_messages(void) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    size_t fit = opt.size ? (4u << 20) / opt.size : 256;
    ring.n = fit > 256 ? 256 : fit < 2 ? 2 : (int)fit;
    ring.payload = allocate((size_t)ring.n, opt.size);
    ring.at = allocate((size_t)ring.n, sizeof *ring.at);
    ring.length = allocate((size_t)ring.n, sizeof *ring.length);
    for (int i = 0; i < ring.n; i++) {
        ring.at[i] = (size_t)i * opt.size;
        ring.length[i] = opt.size;
        for (size_t k = 0; k < opt.size; k++)
            ring.payload[ring.at[i] + k] = opt.text ? alphabet[random64() >> 58] : (char)(random64() >> 56);
        if (opt.size) ring.payload[ring.at[i]] = alphabet[i & 63]; /* neighbours always differ */
    }
}

static size_t put_frame(unsigned char *out, unsigned char first, const unsigned char *payload, size_t n) {
    unsigned char *p = out;
    uint32_t key = (uint32_t)(random64() >> 32);
    *p++ = first;
    if (n < 126) {
        *p++ = (unsigned char)(0x80 | n);
    } else if (n < 65536) {
        *p++ = 0x80 | 126;
        *p++ = (unsigned char)(n >> 8);
        *p++ = (unsigned char)n;
    } else {
        *p++ = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8) *p++ = (unsigned char)((uint64_t)n >> shift);
    }
    memcpy(p, &key, 4);
    for (size_t i = 0; i < n; i++) p[4 + i] = payload[i] ^ p[i & 3];
    return (size_t)(p - out) + 4 + n;
}

struct terms { /* of permessage-deflate, as the server answered */
    bool on, client_forgets, server_forgets;
    int client_bits;
};

static void build_ring(const struct terms *terms) {
    size_t room = 0;
    for (int i = 0; i < ring.n; i++) room += ring.length[i] + ring.length[i] / 8 + 64;
    ring.wire = allocate(room, 1);
    ring.frame = allocate((size_t)ring.n + 1, sizeof *ring.frame);
    ring.opcode = opt.text || opt.messages ? 1 : 2;
    for (int i = 0; i < ring.n; i++) {
        const unsigned char *payload = (unsigned char *)ring.payload + ring.at[i];
        size_t n = ring.length[i];
        unsigned char first = (unsigned char)(0x80 | ring.opcode);
#ifdef WITH_DEFLATE
        static z_stream deflater;
        static unsigned char *packed;
        if (terms->on) {
            if (!i && deflateInit2(&deflater, 6, Z_DEFLATED, -(terms->client_bits < 9 ? 9 : terms->client_bits), 8, 0) != Z_OK)
                fail("deflateInit2");
            packed = realloc(packed, n + n / 8 + 64);
            if (i && terms->client_forgets) deflateReset(&deflater);
            deflater.next_in = (unsigned char *)payload;
            deflater.avail_in = (unsigned)n;
            deflater.next_out = packed;
            deflater.avail_out = (unsigned)(n + n / 8 + 64);
            deflate(&deflater, Z_SYNC_FLUSH);
            payload = packed;
            n = (size_t)(deflater.next_out - packed) - 4; /* RFC 7692 §7.2.1: drop 00 00 ff ff */
            first |= 0x40;
        }
#else
        (void)terms;
#endif
        ring.frame[i + 1] = ring.frame[i] + put_frame(ring.wire + ring.frame[i], first, payload, n);
    }
}

/* ---------------------------------------------------------------- connections */

enum state { DOWN, DIALLING, SECURING, UPGRADING, UP, CLOSING };

typedef struct {
    int fd, index;
    enum state state;
    bool watching_out, fragmented, compressed, close_seen, greeting;
    int64_t started;
    /* sending: a position in the ring, and how many frames may still go */
    int slot;
    size_t slot_done;
    uint64_t released, sent, received;
    int replies; /* to the message that is expected next, so far */
    unsigned char extra[160]; /* a control frame that waits for the end of the current frame */
    int extra_n;
    /* receiving: a parser that may stop at any byte */
    unsigned char head[10];
    int head_n, head_need, opcode, expected;
    uint64_t left, done;
    unsigned char control[125];
    char *http;
    int http_n;
    struct terms terms;
    int64_t *due, *actual; /* rings of `window` entries, by message number */
#ifdef WITH_TLS
    SSL *ssl;
#endif
#ifdef WITH_DEFLATE
    z_stream *inflater;
#endif
} connection;

static connection *all;
static uint64_t window; /* a power of two: the most messages in flight on one connection */
static int poller = -1, opened, refused, up;
static bool alone; /* one blocking connection: no epoll between its system calls */
static struct sockaddr_in server;
static uint64_t wire_in, wire_out, payload_in, raw_in; /* bytes: of TCP, of frame payloads, of whole messages */

static void on_up(connection *c);
static void on_down(connection *c);
static void on_message(connection *c, int64_t now);

static void watch(connection *c, bool out) {
    if (alone || c->watching_out == out) return;
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
    c->watching_out = out;
}

static ssize_t put(connection *c, const void *data, size_t n) {
#ifdef WITH_TLS
    if (c->ssl) {
        int k = SSL_write(c->ssl, data, n > INT32_MAX ? INT32_MAX : (int)n);
        if (k > 0) return k;
        int why = SSL_get_error(c->ssl, k);
        errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE;
        return -1;
    }
#endif
    return send(c->fd, data, n, MSG_NOSIGNAL);
}

static ssize_t get(connection *c, void *data, size_t n) {
#ifdef WITH_TLS
    if (c->ssl) {
        int k = SSL_read(c->ssl, data, (int)n);
        if (k > 0) return k;
        int why = SSL_get_error(c->ssl, k);
        if (why == SSL_ERROR_ZERO_RETURN) return 0;
        errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : ECONNRESET;
        return -1;
    }
#endif
    return recv(c->fd, data, n, 0);
}

static void drop(connection *c) {
    if (c->state == DOWN) return;
    if (c->state >= UP) up--;
#ifdef WITH_TLS
    if (c->ssl) SSL_free(c->ssl);
    c->ssl = NULL;
#endif
#ifdef WITH_DEFLATE
    if (c->inflater) {
        inflateEnd(c->inflater);
        free(c->inflater);
        c->inflater = NULL;
    }
#endif
    close(c->fd);
    free(c->http);
    c->http = NULL;
    c->state = DOWN;
    on_down(c);
}

/* Writes what may be written now: first a waiting control frame (between frames only), then the ring. */
static void flush(connection *c) {
    while (c->released || c->extra_n) {
        ssize_t n;
        if (c->extra_n && !c->slot_done) {
            n = put(c, c->extra, (size_t)c->extra_n);
            if (n > 0) {
                memmove(c->extra, c->extra + n, (size_t)(c->extra_n - n));
                c->extra_n -= (int)n;
                continue;
            }
        } else {
            uint64_t run = c->extra_n ? 1 : c->released;
            if (run > (uint64_t)(ring.n - c->slot)) run = (uint64_t)(ring.n - c->slot);
            size_t from = ring.frame[c->slot] + c->slot_done;
            n = put(c, ring.wire + from, ring.frame[c->slot + (int)run] - from);
            if (n > 0) {
                wire_out += (uint64_t)n;
                size_t at = from + (size_t)n;
                while (c->released && at >= ring.frame[c->slot + 1]) {
                    c->released--;
                    if (++c->slot == ring.n) {
                        c->slot = 0;
                        at -= ring.frame[ring.n];
                        break; /* a run ends with the ring */
                    }
                }
                c->slot_done = at - ring.frame[c->slot];
                continue;
            }
        }
        if (errno != EAGAIN && errno != EINTR) {
            drop(c);
            return;
        }
        watch(c, true);
        return;
    }
    watch(c, false);
}

static void send_control(connection *c, int opcode, const unsigned char *data, size_t n) {
    if (c->extra_n) return; /* one waits already */
    c->extra_n = (int)put_frame(c->extra, (unsigned char)(0x80 | opcode), data, n);
    flush(c);
}

static void send_close(connection *c) {
    static const unsigned char normal[2] = {1000 >> 8, 1000 & 255};
    c->state = CLOSING;
    send_control(c, 8, normal, 2);
}

static void release(connection *c, int64_t due, int64_t now) {
    uint64_t i = c->sent++ & (window - 1);
    c->actual[i] = now;
    if (c->due) c->due[i] = due;
    c->released++;
}

/* ---------------------------------------------------------------- receiving */

static void wrong(connection *c, const char *what) {
    fail("connection %d, message %llu: %s", c->index, (unsigned long long)c->received, what);
}

static void check(connection *c, const void *data, size_t n) {
    if (n > ring.length[c->expected] - c->done) wrong(c, "the reply is too long");
    if (memcmp(ring.payload + ring.at[c->expected] + c->done, data, n)) wrong(c, "the reply differs from what was sent");
    c->done += n;
}

static void unpack(connection *c, const unsigned char *data, size_t n) {
#ifdef WITH_DEFLATE
    static unsigned char out[1 << 18];
    if (!c->inflater) {
        c->inflater = allocate(1, sizeof *c->inflater);
        if (inflateInit2(c->inflater, -15) != Z_OK) fail("inflateInit2");
    }
    c->inflater->next_in = (unsigned char *)data;
    c->inflater->avail_in = (unsigned)n;
    do {
        c->inflater->next_out = out;
        c->inflater->avail_out = sizeof out;
        int status = inflate(c->inflater, Z_SYNC_FLUSH);
        if (status != Z_OK && status != Z_BUF_ERROR && status != Z_STREAM_END) wrong(c, "the reply does not inflate");
        check(c, out, sizeof out - c->inflater->avail_out);
        if (status == Z_STREAM_END) { /* a final block ends the stream, not the message: RFC 7692 §7.2.3.5 */
            inflateReset(c->inflater);
            if (!c->inflater->avail_in) break;
        }
    } while (!c->inflater->avail_out || c->inflater->avail_in);
#else
    (void)data, (void)n;
    wrong(c, "compressed reply, but built without zlib");
#endif
}

static void end_frame(connection *c, int64_t now) {
    bool fin = c->head[0] & 0x80;
    c->head_n = 0;
    c->head_need = 2;
    if (c->opcode >= 8) {
        if (c->opcode == 9 && c->state == UP) send_control(c, 10, c->control, (size_t)c->done);
        if (c->opcode == 8 && c->state == UP) wrong(c, "closed by the server");
        if (c->opcode == 8) c->close_seen = true;
        return;
    }
    if (c->greeting) {
        size_t n = strlen(opt.hello);
        if (c->done >= n && !memcmp(c->control, opt.hello, n)) {
            c->greeting = false;
            opened++;
        }
        c->done = 0;
        return;
    }
    if (!(c->fragmented = !fin)) {
        if (c->compressed) {
            static const unsigned char tail[4] = {0, 0, 0xff, 0xff};
            unpack(c, tail, 4);
#ifdef WITH_DEFLATE
            if (c->terms.server_forgets) inflateReset(c->inflater);
#endif
        }
        if (c->done != ring.length[c->expected]) wrong(c, "the reply is too short");
        c->done = 0;
        raw_in += ring.length[c->expected];
        if (++c->replies < opt.replies) return;
        c->replies = 0;
        if (++c->expected == ring.n) c->expected = 0;
        on_message(c, now);
        c->received++;
    }
}

static void begin_frame(connection *c) {
    unsigned length = c->head[1] & 127;
    c->left = length;
    if (length == 126) c->left = (uint64_t)c->head[2] << 8 | c->head[3];
    if (length == 127) {
        c->left = 0;
        for (int i = 2; i < 10; i++) c->left = c->left << 8 | c->head[i];
    }
    if (c->head[1] & 0x80) wrong(c, "a server must not mask");
    c->opcode = c->head[0] & 15;
    payload_in += c->left;
    if (c->opcode >= 8) {
        if (c->left > 125 || !(c->head[0] & 0x80)) wrong(c, "bad control frame");
        if (c->done) wrong(c, "control frame inside a message: not expected here");
        return;
    }
    if (c->greeting) return;
    if (c->fragmented ? c->opcode : c->opcode != ring.opcode) wrong(c, "the reply has another opcode");
    if (!c->fragmented) c->compressed = c->head[0] & 0x40;
    if (c->compressed && !c->terms.on) wrong(c, "RSV1 was not negotiated");
    if (!c->compressed && (c->head[0] & 0x80) && c->done + c->left != ring.length[c->expected])
        wrong(c, "the reply has another length");
}

static void feed(connection *c, const unsigned char *p, size_t n, int64_t now) {
    while (n && c->state >= UP) {
        if (c->head_n < c->head_need) {
            c->head[c->head_n++] = *p++;
            n--;
            if (c->head_n == 2) c->head_need = (c->head[1] & 127) == 126 ? 4 : (c->head[1] & 127) == 127 ? 10 : 2;
            if (c->head_n < c->head_need) continue;
            begin_frame(c);
        }
        size_t part = c->left < n ? (size_t)c->left : n;
        if (c->opcode >= 8) {
            memcpy(c->control + c->done, p, part);
            c->done += part;
        } else if (c->greeting) {
            size_t room = sizeof c->control - (size_t)c->done; /* what is longer says nothing to us */
            memcpy(c->control + c->done, p, part < room ? part : room);
            c->done += part < room ? part : room;
        } else if (c->compressed) {
            if (part) unpack(c, p, part);
        } else {
            check(c, p, part);
        }
        c->left -= part;
        p += part;
        n -= part;
        if (!c->left) {
            end_frame(c, now);
            if (c->opcode >= 8) c->done = 0;
        }
    }
}

/* ---------------------------------------------------------------- opening */

static void send_request(connection *c) {
    char request[1024];
    int n = snprintf(request, sizeof request,
                     "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                     opt.path, opt.host, opt.port,
                     opt.deflate ? "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" : "");
    if (put(c, request, (size_t)n) != n) fail("cannot send the upgrade request: %s", strerror(errno));
    c->state = UPGRADING;
}

static void secure(connection *c) {
#ifdef WITH_TLS
    static SSL_CTX *context;
    if (!context) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_read_ahead(context, 1); /* one system call for many small records */
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                      SSL_MODE_RELEASE_BUFFERS);
    }
    if (!c->ssl) {
        c->ssl = SSL_new(context);
        SSL_set_fd(c->ssl, c->fd);
        SSL_set_connect_state(c->ssl);
    }
    int k = SSL_do_handshake(c->ssl);
    if (k == 1) {
        send_request(c);
        return;
    }
    int why = SSL_get_error(c->ssl, k);
    if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
        fail("TLS handshake: %s", ERR_reason_error_string(ERR_get_error()));
    c->state = SECURING;
    watch(c, why == SSL_ERROR_WANT_WRITE);
#else
    (void)c;
    fail("built without TLS");
#endif
}

static void dial(connection *c) {
    int one = 1;
    int64_t *due = c->due, *actual = c->actual;
    int index = c->index;
    memset(c, 0, sizeof *c);
    c->due = due, c->actual = actual, c->index = index, c->head_need = 2, c->started = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (opt.mode == CONNECT) { /* many source addresses, so that TIME_WAIT does not use up the ports */
        static unsigned turn;
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(0x7f000002u + turn++ % 200);
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        bind(c->fd, (struct sockaddr *)&from, sizeof from);
    }
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
    c->watching_out = true;
    c->state = DIALLING;
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) drop(c);
}

static bool header_has(const char *response, const char *name, const char *token) {
    for (const char *line = strstr(response, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, strlen(name)) || line[2 + strlen(name)] != ':') continue;
        char value[512];
        snprintf(value, sizeof value, "%.*s", (int)strcspn(line + 3 + strlen(name), "\r"), line + 3 + strlen(name));
        if (strcasestr(value, token)) return true;
    }
    return false;
}

static void upgraded(connection *c, const char *response) {
    if (strncmp(response, "HTTP/1.1 101", 12)) {
        refused++;
        if (refused == 1) fprintf(stderr, "load: refused: %.*s\n", (int)strcspn(response, "\r"), response);
        drop(c);
        return;
    }
    if (!header_has(response, "Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")) fail("wrong Sec-WebSocket-Accept");
    c->terms.on = header_has(response, "Sec-WebSocket-Extensions", "permessage-deflate");
    c->terms.client_forgets = header_has(response, "Sec-WebSocket-Extensions", "client_no_context_takeover");
    c->terms.server_forgets = header_has(response, "Sec-WebSocket-Extensions", "server_no_context_takeover");
    c->terms.client_bits = 15;
    for (int bits = 8; bits < 15; bits++) {
        char token[40];
        snprintf(token, sizeof token, "client_max_window_bits=%d", bits);
        if (header_has(response, "Sec-WebSocket-Extensions", token)) c->terms.client_bits = bits;
        snprintf(token, sizeof token, "client_max_window_bits=\"%d\"", bits);
        if (header_has(response, "Sec-WebSocket-Extensions", token)) c->terms.client_bits = bits;
    }
    if (c->terms.on && !opt.deflate) fail("the server compresses without being asked");
    if (opt.deflate && !c->terms.on) fail("the server declined permessage-deflate");
    if (!ring.wire) build_ring(&c->terms);
    c->state = UP;
    up++;
    c->greeting = opt.hello != NULL;
    if (c->greeting) send_control(c, 1, (const unsigned char *)opt.hello, strlen(opt.hello));
    else opened++;
    on_up(c);
}

static void receive(connection *c) {
    static unsigned char buffer[1 << 18];
    do {
        ssize_t n = get(c, buffer, sizeof buffer);
        if (n <= 0) {
            if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
            drop(c);
            return;
        }
        wire_in += (uint64_t)n;
        int64_t now = now_ns();
        unsigned char *p = buffer;
        if (c->state == UPGRADING) {
            c->http = realloc(c->http, (size_t)(c->http_n + n + 1));
            memcpy(c->http + c->http_n, p, (size_t)n);
            c->http[c->http_n += (int)n] = 0;
            char *end = strstr(c->http, "\r\n\r\n");
            if (!end) {
                if (c->http_n > 65536) fail("endless response");
                continue;
            }
            size_t rest = (size_t)(c->http + c->http_n - (end + 4));
            end[2] = 0;
            upgraded(c, c->http);
            if (c->state == DOWN) return;
            free(c->http);
            c->http = NULL;
            p += n - (ssize_t)rest;
            n = (ssize_t)rest;
        }
        feed(c, p, (size_t)n, now);
        if (c->state == DOWN) return;
        if (c->released && !c->watching_out) flush(c);
#ifdef WITH_TLS
        if (c->ssl && c->state != DOWN && SSL_has_pending(c->ssl)) continue;
#endif
        return;
    } while (true);
}

static void handle(connection *c, uint32_t events) {
    if (c->state == DIALLING) {
        int error = 0;
        socklen_t n = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error) {
            drop(c);
            return;
        }
        watch(c, false);
        if (opt.tls) secure(c);
        else send_request(c);
        return;
    }
    if (c->state == SECURING) {
        secure(c);
        return;
    }
    if (events & EPOLLOUT) flush(c);
    if (c->state != DOWN && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
}

/* One turn of the loop: waits at most `timeout` ms. Returns whether anything was there. */
static bool turn(int timeout) {
    struct epoll_event ready[256];
    if (alone) {
        uint64_t before = wire_in;
        if (all[0].state != DOWN) receive(&all[0]);
        return wire_in != before;
    }
    int n = epoll_wait(poller, ready, 256, timeout);
    for (int i = 0; i < n; i++) {
        connection *c = ready[i].data.ptr;
        if (c->state != DOWN) handle(c, ready[i].events);
    }
    return n > 0;
}

/* ---------------------------------------------------------------- the run */

static struct {
    bool opening, sending, measuring;
    uint64_t messages, wire_in, wire_out, payload_in, raw_in, budget;
    int64_t from, to, cpu_from, cpu_to, own_from, own_to;
    uint64_t failures, outstanding;
    double interval; /* open loop: ns between messages */
    uint64_t due;
    uint32_t *missing;              /* broadcast: receivers that still lack message i */
    int64_t spun, spun_from, spun_to; /* ns in polls that found nothing */
} run;

static int64_t own_cpu_ns(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }

static void start_window(void) {
    memset(&latency, 0, sizeof latency);
    memset(&from_send, 0, sizeof from_send);
    run.messages = run.failures = 0;
    run.wire_in = wire_in, run.wire_out = wire_out, run.payload_in = payload_in, run.raw_in = raw_in;
    run.measuring = true;
    run.from = now_ns();
    run.cpu_from = server_cpu_ns();
    run.own_from = own_cpu_ns();
    run.spun_from = run.spun;
}

static void stop_window(void) {
    run.spun_to = run.spun;
    run.own_to = own_cpu_ns();
    run.cpu_to = server_cpu_ns();
    run.to = now_ns();
    run.measuring = false;
    run.wire_in = wire_in - run.wire_in, run.wire_out = wire_out - run.wire_out;
    run.payload_in = payload_in - run.payload_in, run.raw_in = raw_in - run.raw_in;
}

static void on_up(connection *c) {
    if (opt.mode != CONNECT) return;
    if (run.measuring) record(&latency, now_ns() - c->started);
    send_close(c);
}

static void on_down(connection *c) {
    static int in_a_row;
    if (opt.mode != CONNECT) {
        if (run.opening && !refused) fail("connection %d was lost before it was open", c->index);
        if (run.sending) fail("connection %d was lost", c->index);
        return;
    }
    if (c->close_seen) in_a_row = 0;
    else if (++in_a_row > 100) fail("100 connections in a row failed: %s", strerror(errno));
    if (run.measuring) {
        if (c->close_seen) run.messages++;
        else run.failures++;
    }
    if (run.sending && (!opt.count || run.budget)) {
        if (opt.count) run.budget--;
        dial(c);
    }
}

static void on_message(connection *c, int64_t now) {
    uint64_t i = c->received & (window - 1);
    switch (opt.mode) {
    case ECHO:
        run.outstanding--;
        if (run.measuring) {
            record(&latency, now - c->actual[i]);
            run.messages++;
        }
        if (run.sending && (!opt.count || run.budget)) {
            if (opt.count) run.budget--;
            run.outstanding++;
            release(c, 0, now);
        }
        break;
    case OPEN:
        run.outstanding--;
        /* By due time: every message that was due in the window counts, whenever it came back. */
        if (run.from && c->due[i] >= run.from && (run.measuring || c->due[i] < run.to)) {
            record(&latency, now - c->due[i]);
            record(&from_send, now - c->actual[i]);
            run.messages++;
        }
        break;
    case BROADCAST:
        if (run.measuring) run.messages++;
        if (--run.missing[i] == 0) {
            if (run.measuring) record(&latency, now - all[0].actual[i]);
            run.outstanding--;
            if (run.sending) {
                run.outstanding++;
                run.missing[all[0].sent & (window - 1)] = (uint32_t)opt.connections;
                release(&all[0], 0, now);
                if (!all[0].watching_out && c != &all[0]) flush(&all[0]);
            }
        }
        break;
    case IDLE:
        run.outstanding--;
        break;
    case CONNECT:
        wrong(c, "data was not asked for");
    }
}

static void open_all(void) {
    int dialled = 0, most = 64;
    int64_t deadline = now_ns() + 30000000000LL + opt.connections * 10000000LL;
    run.opening = true;
    while (opened < opt.connections) {
        while (dialled < opt.connections && dialled - opened < most) dial(&all[dialled++]);
        turn(1000);
        if (refused) fail("%d connections refused after %d", refused, opened);
        if (now_ns() > deadline) fail("only %d of %d connections opened in time", opened, opt.connections);
    }
    run.opening = false;
}

static void drain(double seconds) {
    int64_t deadline = now_ns() + (int64_t)(seconds * 1e9);
    run.sending = false;
    while (run.outstanding && now_ns() < deadline) turn(20);
}

static void close_all(void) {
    run.sending = false;
    for (int i = 0; i < opt.connections; i++)
        if (all[i].state == UP) send_close(&all[i]);
    int64_t deadline = now_ns() + 2000000000LL;
    while (up && now_ns() < deadline) turn(20);
}

static void wait_for_word(const char *said) {
    char line[64];
    printf("{\"phase\": \"%s\"}\n", said);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(0);
}

static void start_closed_loop(void) {
    int64_t now = now_ns();
    run.sending = true;
    for (int i = 0; i < opt.connections; i++) {
        for (int k = 0; k < opt.depth; k++) {
            if (opt.count) {
                if (!run.budget) break;
                run.budget--;
            }
            run.outstanding++;
            release(&all[i], 0, now);
        }
        flush(&all[i]);
    }
}

static void go_alone(void) {
    /* A ping-pong on one connection needs no epoll: a blocking read is the shortest wait there is. With --poll it is read
     * again and again, as long as what is sent fits into the kernel at once. */
    if (opt.connections != 1 || opt.depth != 1 || opt.tls || (opt.poll && (opt.size > 4096 || opt.messages))) return;
    alone = true;
    if (opt.poll) return;
    struct timeval limit = {.tv_usec = 50000};
    fcntl(all[0].fd, F_SETFL, 0);
    setsockopt(all[0].fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

/* With --poll it never sleeps: a server that has to wake us for its next answer pays for that with its own CPU time, the
 * faster one the more often, and peers on other machines cost it nothing of the kind. */
static void run_for(double seconds) {
    int64_t now = now_ns(), end = now + (int64_t)(seconds * 1e9);
    while (now < end) {
        int64_t before = now;
        bool found = turn(opt.poll ? 0 : 20);
        now = now_ns();
        if (opt.poll && !found) run.spun += now - before;
    }
}

static void echo(void) {
    open_all();
    go_alone();
    if (opt.count) { /* exact counts, in steps, for tools that count instructions */
        for (int warm = 1; warm >= 0; warm--) {
            run.budget = warm ? opt.count / 10 + 1 : opt.count;
            if (!warm) start_window();
            start_closed_loop();
            while (run.outstanding) turn(20);
            if (!warm) stop_window();
            run.sending = false;
            wait_for_word(warm ? "warm" : "counted");
        }
    } else {
        start_closed_loop();
        run_for(opt.warmup);
        start_window();
        run_for(opt.seconds);
        stop_window();
        drain(2);
    }
}

static void open_loop(void) {
    open_all();
    run.interval = 1e9 / opt.rate;
    run.sending = true;
    int64_t start = now_ns(), measure = start + (int64_t)(opt.warmup * 1e9),
            end = measure + (int64_t)(opt.seconds * 1e9);
    uint64_t next = 0;
    for (int64_t now = start; now < end; now = now_ns()) {
        if (!run.from && now >= measure) start_window();
        for (;;) {
            int64_t due = start + (int64_t)((double)next * run.interval);
            connection *c = &all[next % (uint64_t)opt.connections];
            if (due > now || c->sent - c->received >= window) break;
            release(c, due, now);
            run.outstanding++;
            next++;
        }
        for (int i = 0; i < opt.connections; i++)
            if (all[i].released && !all[i].watching_out) flush(&all[i]);
        turn(0);
    }
    stop_window();
    drain(5);
    run.failures = run.outstanding;
}

static void broadcast(void) {
    open_all();
    run.missing = allocate(window, sizeof *run.missing);
    run_for(0.1); /* a handler that notes its connection may start only after the upgrade was answered */
    run.sending = true;
    for (int k = 0; k < opt.depth; k++) {
        run.missing[all[0].sent & (window - 1)] = (uint32_t)opt.connections;
        run.outstanding++;
        release(&all[0], 0, now_ns());
    }
    flush(&all[0]);
    run_for(opt.warmup);
    start_window();
    run_for(opt.seconds);
    stop_window();
    drain(5);
}

static bool any_left(void) {
    for (int i = 0; i < opt.depth; i++)
        if (all[i].state != DOWN) return true;
    return false;
}

static void connect_rate(void) {
    if (opt.count) { /* as in echo() */
        for (int warm = 1; warm >= 0; warm--) {
            run.budget = warm ? opt.count / 10 + 1 : opt.count;
            run.sending = true;
            if (!warm) start_window();
            for (int i = 0; i < opt.depth && run.budget; i++, run.budget--) dial(&all[i]);
            while (any_left()) turn(20);
            if (!warm) stop_window();
            run.sending = false;
            wait_for_word(warm ? "warm" : "counted");
        }
        return;
    }
    run.sending = true;
    for (int i = 0; i < opt.depth; i++) dial(&all[i]);
    run_for(opt.warmup);
    start_window();
    run_for(opt.seconds);
    stop_window();
    run.sending = false;
    int64_t deadline = now_ns() + 1000000000LL;
    while (now_ns() < deadline && any_left()) turn(20);
}

static void idle(void) {
    struct pollfd ends[2] = {{.fd = 0, .events = POLLIN}, {.fd = poller, .events = POLLIN}};
    char word[64];
    open_all();
    printf("{\"phase\": \"ready\", \"connections\": %d}\n", opened);
    fflush(stdout);
    for (;;) {
        poll(ends, 2, 1000);
        if (ends[1].revents) turn(0);
        if (up < opt.connections) fail("%d idle connections were lost", opt.connections - up);
        if (!ends[0].revents) continue;
        if (!fgets(word, sizeof word, stdin) || !strncmp(word, "quit", 4)) return;
        for (int i = 0; i < opt.connections; i++) {
            run.outstanding++;
            release(&all[i], 0, now_ns());
            flush(&all[i]);
            while (run.outstanding > 64) turn(1000);
        }
        int64_t deadline = now_ns() + 30000000000LL;
        while (run.outstanding) {
            turn(1000);
            if (now_ns() > deadline) fail("%llu echoes are missing", (unsigned long long)run.outstanding);
        }
        printf("{\"phase\": \"touched\"}\n");
        fflush(stdout);
    }
}

static void report(void) {
    double wall = (double)(run.to - run.from) / 1e9, cpu = (double)(run.cpu_to - run.cpu_from);
    printf("{\"mode\": \"%s\", \"connections\": %d, \"depth\": %d, \"size\": %zu, \"rate_wanted\": %.0f, \"deflate\": %s,\n",
           opt.mode_name, opt.connections, opt.depth, opt.size, opt.rate, opt.deflate ? "true" : "false");
    printf(" \"seconds\": %.6f, \"messages\": %llu, \"per_second\": %.1f, \"failures\": %llu,\n", wall,
           (unsigned long long)run.messages, (double)run.messages / wall, (unsigned long long)run.failures);
    printf(" \"unanswered\": %llu,\n", (unsigned long long)run.outstanding);
    printf(" \"wire_in\": %llu, \"wire_out\": %llu, \"payload_in\": %llu, \"raw_in\": %llu,\n",
           (unsigned long long)run.wire_in,
           (unsigned long long)run.wire_out, (unsigned long long)run.payload_in, (unsigned long long)run.raw_in);
    if (opt.server_pid && run.messages)
        printf(" \"server_cpu_seconds\": %.6f, \"server_cpu_ns\": %.2f,\n", cpu / 1e9, cpu / (double)run.messages);
    double share = (double)(run.own_to - run.own_from) / 1e9 / wall;
    if (opt.poll) share = 1 - (double)(run.spun_to - run.spun_from) / 1e9 / wall; /* polling in vain is idle */
    printf(" \"load_cpu_share\": %.3f", share);
    print_histogram("latency", &latency);
    if (opt.mode == OPEN) print_histogram("from_send", &from_send);
    printf("}\n");
}

/* ---------------------------------------------------------------- command line */

static const struct option long_options[] = {
    {"host", 1, 0, 'h'},     {"port", 1, 0, 'p'},     {"path", 1, 0, 'P'},    {"connections", 1, 0, 'c'},
    {"depth", 1, 0, 'd'},    {"size", 1, 0, 's'},     {"seconds", 1, 0, 't'}, {"warmup", 1, 0, 'w'},
    {"rate", 1, 0, 'r'},     {"count", 1, 0, 'n'},    {"tls", 0, 0, 'S'},     {"deflate", 0, 0, 'z'},
    {"messages", 1, 0, 'm'}, {"server-pid", 1, 0, 'i'}, {"text", 0, 0, 'T'},  {"poll", 0, 0, 'o'},
    {"replies", 1, 0, 'R'},  {"hello", 1, 0, 'H'},
    {0, 0, 0, 0}};

static void parse(int argc, char **argv) {
    static const char *const modes[] = {"echo", "open", "broadcast", "connect", "idle"};
    int known = -1, option;
    for (int i = 0; argc > 1 && i < 5; i++)
        if (!strcmp(argv[1], modes[i])) known = i;
    if (known < 0)
        fail("usage: load echo|open|broadcast|connect|idle --port N [--host A] [--path P] [--connections N] [--depth N] "
             "[--size BYTES | --messages FILE] [--text] [--seconds S] [--warmup S] [--rate PER_SECOND] [--count N] "
             "[--replies N] [--hello TEXT] [--tls] [--deflate] [--poll] [--server-pid PID]");
    opt.mode = (enum mode)known;
    opt.mode_name = modes[known];
    optind = 2;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (option) {
        case 'h': opt.host = optarg; break;
        case 'p': opt.port = atoi(optarg); break;
        case 'P': opt.path = optarg; break;
        case 'c': opt.connections = atoi(optarg); break;
        case 'd': opt.depth = atoi(optarg); break;
        case 's': opt.size = strtoull(optarg, NULL, 10); break;
        case 't': opt.seconds = atof(optarg); break;
        case 'w': opt.warmup = atof(optarg); break;
        case 'r': opt.rate = atof(optarg); break;
        case 'n': opt.count = strtoull(optarg, NULL, 10); break;
        case 'm': opt.messages = optarg; break;
        case 'i': opt.server_pid = atoi(optarg); break;
        case 'S': opt.tls = true; break;
        case 'z': opt.deflate = true; break;
        case 'T': opt.text = true; break;
        case 'o': opt.poll = true; break;
        case 'R': opt.replies = atoi(optarg); break;
        case 'H': opt.hello = optarg; break;
        default: exit(2);
        }
    }
    if (opt.port <= 0 || opt.connections < 1 || opt.depth < 1) fail("port, connections and depth must be positive");
    if (opt.replies < 1 || (opt.replies > 1 && opt.mode != ECHO && opt.mode != BROADCAST)) fail("several replies are for echo and broadcast");
    if (opt.mode == OPEN && opt.rate <= 0) fail("the open loop needs --rate");
}

int main(int argc, char **argv) {
    parse(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)opt.port);
    if (inet_pton(AF_INET, opt.host, &server.sin_addr) != 1 || (ntohl(server.sin_addr.s_addr) >> 24) != 127)
        fail("%s is not a loopback address", opt.host);
    poller = epoll_create1(EPOLL_CLOEXEC);

    if (opt.messages) read_messages(opt.messages);
    else make_messages();
    size_t slots = opt.mode == CONNECT && opt.depth > opt.connections ? (size_t)opt.depth : (size_t)opt.connections;
    uint64_t in_flight = opt.mode == OPEN ? (opt.connections <= 64 ? 1 << 15 : 1 << 10) : (uint64_t)opt.depth;
    for (window = 2; window < in_flight; window *= 2) continue;
    all = allocate(slots, sizeof *all);
    for (size_t i = 0; i < slots; i++) {
        all[i].index = (int)i;
        all[i].actual = allocate(window, sizeof(int64_t));
        if (opt.mode == OPEN) all[i].due = allocate(window, sizeof(int64_t));
    }

    switch (opt.mode) {
    case ECHO: echo(); break;
    case OPEN: open_loop(); break;
    case BROADCAST: broadcast(); break;
    case CONNECT: connect_rate(); break;
    case IDLE: idle(); break;
    }
    if (opt.mode != CONNECT) close_all();
    if (opt.mode != IDLE) report();
    return 0;
}
