/* What every client in C needs. Arguments: mechanism, file of the CA, server name, port, connections. */

#ifndef COMMON_H
#define COMMON_H

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *mechanism, *ca, *name;
static int port, connections;
static char request[256], response[16384];

static void fail(const char *what)
{
    fprintf(stderr, "failed: %s\n", what);
    exit(1);
}

static int is(const char *other)
{
    return strcmp(mechanism, other) == 0;
}

static void arguments(int argc, char **argv)
{
    if (argc < 6)
        fail("arguments");
    mechanism = argv[1];
    ca = argv[2];
    name = argv[3];
    port = atoi(argv[4]);
    connections = atoi(argv[5]);
    snprintf(request, sizeof request,
             "GET /verdict.json HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n", name);
    signal(SIGPIPE, SIG_IGN);
}

static int tcp_connect(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    return fd;
}

/* Prints whether the library resumed, and the server's answer. `length` is that of the response. */
static void report(int resumed, size_t length)
{
    response[length] = '\0';
    char *body = strstr(response, "\r\n\r\n");
    if (body == NULL)
        fail("no answer");
    printf("%s %s\n", resumed ? "resumed" : "full", body + 4);
}

/* Reads the response to its end with the library's function, whose result is that of read(2). */
#define READ_RESPONSE(length, call)                                                                \
    size_t length = 0;                                                                             \
    for (;;) {                                                                                     \
        char *buffer = response + length;                                                          \
        int room = (int)(sizeof response - 1 - length);                                            \
        int got = (int)(call);                                                                     \
        if (got <= 0)                                                                              \
            break;                                                                                 \
        length += (size_t)got;                                                                     \
    }

#endif
