/* The floor of busy polling: a client and a server that look at one socket again and again, and do nothing else.
 *
 *     cc -O2 -o poll_raw poll_raw.c
 *     ./poll_raw                                    the server: prints its port, serves until terminated
 *     ./poll_raw --port P --seconds S [--size N]    the client: prints its round trips as JSON
 *
 * The bytes of a round trip are as many as those of WebSocket frames with N bytes of payload, masked on the way there.
 * There is no protocol. The server sleeps while it has no client. Linux, loopback, one thread.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 22, LARGEST = 125, MASKED = 6, PLAIN = 2 };

static char bytes[LARGEST + MASKED];
static int64_t times[MOST];

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Read `n` bytes without sleeping; 0 at the end. */
static int polled(int fd, size_t n) {
    size_t have = 0;
    while (have < n) {
        ssize_t got = recv(fd, bytes + have, n - have, MSG_DONTWAIT);
        if (got == 0) return 0;
        if (got > 0) have += got;
    }
    return 1;
}

static void quick(int fd) {
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static int serve(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, size) || listen(listener, 8)) return 1;
    getsockname(listener, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        unsigned char n;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) return 1;
        quick(fd);
        if (recv(fd, &n, 1, MSG_WAITALL) == 1 && n <= LARGEST)
            while (polled(fd, n + MASKED) && send(fd, bytes, n + PLAIN, MSG_NOSIGNAL) > 0) {}
        close(fd);
    }
}

static int later(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    double seconds = 1, shares[] = {.5, .95, .99, .999};
    const char *names[] = {"p50", "p95", "p99", "p999"};
    unsigned char n = 32;
    int count = 0;
    if (argc < 2) return serve();
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port")) address.sin_port = htons(atoi(argv[i + 1]));
        if (!strcmp(argv[i], "--seconds")) seconds = atof(argv[i + 1]);
        if (!strcmp(argv[i], "--size")) n = atoi(argv[i + 1]) <= LARGEST ? atoi(argv[i + 1]) : LARGEST;
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&address, sizeof address)) return 1;
    quick(fd);
    if (send(fd, &n, 1, 0) != 1) return 1;
    int64_t begun = 0, cpu = 0, end = now() + 100000000; /* first 0.1 s that do not count */
    for (int counts = 0; counts < 2; counts++) {
        begun = now();
        cpu = clock();
        if (counts) end = begun + (int64_t)(seconds * 1e9);
        for (count = 0; count < MOST && now() < end; count++) {
            int64_t start = now();
            if (send(fd, bytes, n + MASKED, 0) < 0 || !polled(fd, n + PLAIN)) return 1;
            times[count] = now() - start;
        }
    }
    double took = (now() - begun) / 1e9;
    cpu = (clock() - cpu) * (1000000000 / CLOCKS_PER_SEC) / count;
    qsort(times, count, sizeof *times, later);
    printf("{\"messages\": %d, \"seconds\": %f, \"per_second\": %f, \"client_cpu_ns\": %ld, \"latency\": {", count, took,
           count / took, (long)cpu);
    for (int i = 0; i < 4; i++) printf("%s\"%s\": %ld", i ? ", " : "", names[i], (long)times[(int)(count * shares[i])]);
    printf("}, \"percentiles\": [");
    double curve[] = {0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99};
    for (int i = 0; i < 11; i++)
        printf("%s[%g, %ld]", i ? ", " : "", curve[i], (long)times[(int)(count * curve[i] / 100)]);
    printf("]}\n");
    return 0;
}
