// Traffic for balancers that do not decrypt: the recorded bytes of a resumed TLS 1.3 handshake, a request,
// a response of any length, and an orderly end. It costs client and server almost nothing.
//
//   replay server HELLO FLIGHT PORT        answers connections until the program is stopped
//   replay idle-server HELLO FLIGHT PORT   sends the first flight and keeps the connections
//   replay client HELLO FLIGHT SLOTS       reads commands from the standard input:
//
//   run COUNT PORT LENGTH     makes COUNT connections with responses of LENGTH bytes, then prints "done"
//   open COUNT PORT           opens COUNT connections up to the server's first flight, then prints "done"
//
// HELLO and FLIGHT are files with the bytes of the ClientHello and of the server's first flight.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FINISHED = 74, REQUEST = 120, CLOSING = 24, CHUNK = 64 * 1024, SERVER_THREADS = 32, MAX_SLOTS = 64 };

static char hello[4096], flight[8192];
static size_t hello_length, flight_length;
static int port;
static long count, length;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static size_t load_file(const char *path, char *bytes, size_t size) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    size_t got = fread(bytes, 1, size, file);
    fclose(file);
    return got;
}

static int send_all(int fd, const char *bytes, size_t left) {
    while (left > 0) {
        ssize_t part = send(fd, bytes, left, MSG_NOSIGNAL);
        if (part <= 0) return 0;
        bytes += part;
        left -= part;
    }
    return 1;
}

// Reads exactly this many bytes. `bytes` has room for CHUNK bytes and gets the last of them.
static int receive(int fd, char *bytes, uint64_t left) {
    while (left > 0) {
        ssize_t part = recv(fd, bytes, left < CHUNK ? left : CHUNK, 0);
        if (part <= 0) return 0;
        left -= part;
    }
    return 1;
}

static void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void answer(int fd, char *bytes) {
    no_delay(fd);
    if (!receive(fd, bytes, hello_length) || !send_all(fd, flight, flight_length)) return;
    // The request begins with the length of the response. A short message arrives in one part.
    if (recv(fd, bytes, FINISHED + REQUEST, MSG_WAITALL) != FINISHED + REQUEST) return;
    uint64_t left;
    memcpy(&left, bytes + FINISHED, sizeof left);
    for (; left > 0; left -= left < CHUNK ? left : CHUNK) {
        if (!send_all(fd, bytes, left < CHUNK ? left : CHUNK)) return;
    }
    if (receive(fd, bytes, CLOSING)) send_all(fd, bytes, CLOSING);
}

static void *serve(void *listener) {
    char *bytes = malloc(CHUNK);
    for (int fd;;) {
        if ((fd = accept(*(int *)listener, NULL, NULL)) < 0) continue;
        answer(fd, bytes);
        close(fd);
    }
    return NULL;
}

static int connect_to_balancer(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    no_delay(fd);
    if (!send_all(fd, hello, hello_length)) die("hello");
    return fd;
}

static void *visit(void *unused) {
    char *bytes = malloc(CHUNK), request[FINISHED + REQUEST] = {0};
    uint64_t wanted = length;
    memcpy(request + FINISHED, &wanted, sizeof wanted);
    for (long left = count; left > 0; left--) {
        int fd = connect_to_balancer();
        if (!receive(fd, bytes, flight_length) || !send_all(fd, request, sizeof request) ||
            !receive(fd, bytes, wanted) || !send_all(fd, request, CLOSING) || shutdown(fd, SHUT_WR) ||
            !receive(fd, bytes, CLOSING) || recv(fd, bytes, 1, 0) != 0) die("a connection broke");
        close(fd);
    }
    free(bytes);
    return unused;
}

static void run(int slots) {
    pthread_t threads[MAX_SLOTS];
    count /= slots;
    for (int at = 0; at < slots; at++) pthread_create(&threads[at], NULL, visit, NULL);
    for (int at = 0; at < slots; at++) pthread_join(threads[at], NULL);
}

static void open_and_keep(void) {
    char bytes[CHUNK];
    for (; count > 0; count--) {
        if (!receive(connect_to_balancer(), bytes, flight_length)) die("a connection broke");
    }
}

static int listen_on_port(void) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("listen");
    return listener;
}

static void serve_with_threads(void) {
    int listener = listen_on_port();
    for (int at = 1; at < SERVER_THREADS; at++) {
        pthread_t thread;
        pthread_create(&thread, NULL, serve, &listener);
    }
    serve(&listener);
}

// Answers the hello of each connection, and keeps the connection open.
static void serve_idle(void) {
    char bytes[CHUNK];
    int listener = listen_on_port();
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0 && receive(fd, bytes, hello_length)) send_all(fd, flight, flight_length);
    }
}

int main(int argument_count, char **arguments) {
    if (argument_count != 5) {
        fprintf(stderr, "usage: replay server|idle-server|client HELLO FLIGHT PORT|SLOTS\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    hello_length = load_file(arguments[2], hello, sizeof hello);
    flight_length = load_file(arguments[3], flight, sizeof flight);
    int number = atoi(arguments[4]);
    if (strcmp(arguments[1], "client")) {
        port = number;
        if (!strcmp(arguments[1], "idle-server")) serve_idle();
        else serve_with_threads();
    }
    char command[8];
    while (scanf("%7s %ld %d", command, &count, &port) == 3) {
        if (!strcmp(command, "open")) open_and_keep();
        else if (scanf("%ld", &length) == 1) run(number);
        puts("done");
        fflush(stdout);
    }
    return 0;
}
