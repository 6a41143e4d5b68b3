/* What the clients of small devices have in common: arguments, sockets, and one request. */

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* The name that the server's certificate is for. */
#define SERVER_NAME "farm.test"

enum {
    /* Seconds that a peer may be silent. */
    PATIENCE = 30,
    MAX_ANSWER = 1 << 20,
};

struct arguments {
    int port;
    const char *ca;
    /* 12 or 13. */
    int version;
    /* TLS 1.2 tickets; otherwise session IDs. */
    int tickets;
    /* The code of max_fragment_length; 0 for none. */
    int max_fragment_length;
    int visits;
    const char *path;
};

static void fail(const char *what, int code)
{
    fprintf(stderr, "%s: %d\n", what, code);
    exit(1);
}

static struct arguments arguments(int argc, char **argv)
{
    if (argc != 8)
        fail("arguments", argc);
    return (struct arguments){
        .port = atoi(argv[1]),
        .ca = argv[2],
        .version = atoi(argv[3]),
        .tickets = atoi(argv[4]),
        .max_fragment_length = atoi(argv[5]),
        .visits = atoi(argv[6]),
        .path = argv[7],
    };
}

static int connect_to(int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    struct timeval patience = {.tv_sec = PATIENCE};
    int tcp = socket(AF_INET, SOCK_STREAM, 0);

    if (tcp < 0 || connect(tcp, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect", tcp);
    setsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return tcp;
}

static int request(const char *path, char *to, size_t room)
{
    return snprintf(to, room,
                    "GET %s HTTP/1.1\r\nhost: " SERVER_NAME "\r\n"
                    "sessile-probe: 1\r\nconnection: close\r\n\r\n",
                    path);
}

/* Prints the verdict in an answer and how many bytes its body has. */
static void print_answer(const char *answer, size_t length)
{
    static const char name[] = "sessile-verdict: ";
    const char *verdict = strstr(answer, name);
    const char *body = strstr(answer, "\r\n\r\n");

    if (!verdict || !body)
        fail("no verdict in an answer of this length", (int)length);
    verdict += strlen(name);
    printf("%.*s %zu\n", (int)strcspn(verdict, "\r"), verdict,
           length - (size_t)(body + 4 - answer));
    fflush(stdout);
}
