// An OpenSSL client that makes TLS connections, one request on each, some of them at a time.
//
//   load KIND SLOTS PATH client|server
//
// KIND is full13, psk13, full12, id12 or ticket12. A slot is one client with one session. The last
// argument says which side ends a connection. The program reads commands from its standard input:
//
//   run COUNT PORT    makes COUNT connections to a port of 127.0.0.1, then prints
//                     "full N resumed N failed N" and the reason of the first failure
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_SLOTS = 256, MAX_HEAD = 4096, CONNECT_ATTEMPT_MS = 10000 };

enum state { CONNECTING, HANDSHAKING, REQUESTING, READING, CLOSING };

struct slot {
    int fd;
    SSL *ssl;
    SSL_SESSION *session;
    enum state state;
    char head[MAX_HEAD];
    size_t head_length;
    long body_left;  // bytes of the response's body that are missing, -1 before the head is complete
};

static struct slot slots[MAX_SLOTS];
static SSL_CTX *context;
static char request[1024];
static int resumes, server_closes, epoll, port;
static long to_start, running, full, resumed, failed;
static char failure[256];

static void die(const char *what) {
    perror(what);
    exit(1);
}

// Keeps a session of TLS 1.3. A connection can give several of them.
static int keep_session(SSL *ssl, SSL_SESSION *session) {
    struct slot *slot = SSL_get_app_data(ssl);
    SSL_SESSION_free(slot->session);
    slot->session = session;
    return 1;  // The slot owns the session from now on.
}

static void begin(struct slot *slot) {
    to_start--;
    running++;
    slot->state = CONNECTING;
    slot->head_length = 0;
    slot->body_left = -1;
    slot->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (slot->fd < 0) die("socket");
    int one = 1;
    setsockopt(slot->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(slot->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    slot->ssl = SSL_new(context);
    SSL_set_app_data(slot->ssl, slot);
    SSL_set_fd(slot->ssl, slot->fd);
    SSL_set_tlsext_host_name(slot->ssl, "localhost");
    if (slot->session) SSL_set_session(slot->ssl, slot->session);
    SSL_set_connect_state(slot->ssl);
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = slot};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, slot->fd, &event)) die("epoll_ctl");
}

static void end(struct slot *slot, const char *reason) {
    if (reason) {
        if (!failed++) {
            unsigned long error = ERR_peek_last_error();
            snprintf(failure, sizeof failure, "%s: %s", reason,
                     error ? ERR_reason_error_string(error) : strerror(errno));
        }
        ERR_clear_error();
    } else if (SSL_session_reused(slot->ssl)) {
        resumed++;
    } else {
        full++;
    }
    // OpenSSL announces no session of TLS 1.2 that came with a resumed handshake.
    if (!reason && resumes && SSL_version(slot->ssl) == TLS1_2_VERSION) {
        keep_session(slot->ssl, SSL_get1_session(slot->ssl));
    }
    // OpenSSL ends the session of a connection without close_notify.
    SSL_set_shutdown(slot->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(slot->ssl);
    slot->ssl = NULL;
    close(slot->fd);
    running--;
    if (to_start > 0) begin(slot);
}

static void wait_for(struct slot *slot, int events) {
    struct epoll_event event = {.events = events, .data.ptr = slot};
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, slot->fd, &event)) die("epoll_ctl");
}

// Returns true if the call only waits for the socket. Otherwise the connection is broken.
static int would_block(struct slot *slot, int result) {
    switch (SSL_get_error(slot->ssl, result)) {
    case SSL_ERROR_WANT_READ: wait_for(slot, EPOLLIN); return 1;
    case SSL_ERROR_WANT_WRITE: wait_for(slot, EPOLLOUT); return 1;
    default: return 0;
    }
}

// Counts bytes of the response. Returns false if the response is no HTTP 200 with a Content-Length.
static int take(struct slot *slot, const char *bytes, long length) {
    if (slot->body_left >= 0) {
        slot->body_left -= length;
        return slot->body_left >= 0;
    }
    if (slot->head_length + length >= MAX_HEAD) return 0;
    memcpy(slot->head + slot->head_length, bytes, length);
    slot->head_length += length;
    slot->head[slot->head_length] = 0;
    char *head_end = strstr(slot->head, "\r\n\r\n");
    if (!head_end) return 1;
    char *field = strcasestr(slot->head, "\r\ncontent-length:");
    if (strncmp(slot->head, "HTTP/1.1 200", 12) || !field || field > head_end) return 0;
    slot->body_left = atol(field + 17) - (long)(slot->head + slot->head_length - (head_end + 4));
    return slot->body_left >= 0;
}

static void close_connection(struct slot *slot) {
    slot->state = CLOSING;
    SSL_shutdown(slot->ssl);
    shutdown(slot->fd, SHUT_WR);
    wait_for(slot, EPOLLIN);
}

static void read_response(struct slot *slot) {
    char bytes[16384];
    for (;;) {
        int length = SSL_read(slot->ssl, bytes, sizeof bytes);
        if (length > 0) {
            if (!take(slot, bytes, length)) return end(slot, "unexpected response");
            if (slot->body_left == 0 && !server_closes) return close_connection(slot);
        } else if (slot->body_left == 0) {
            // The response is complete, and the server ends the connection, or is about to do so.
            if (would_block(slot, length)) return;
            ERR_clear_error();
            return close_connection(slot);
        } else if (would_block(slot, length)) {
            return;
        } else {
            return end(slot, "read");
        }
    }
}

static void advance(struct slot *slot) {
    int result;
    switch (slot->state) {
    case CONNECTING: {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(slot->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            errno = error;
            return end(slot, "connect");
        }
        slot->state = HANDSHAKING;
    }  // fall through
    case HANDSHAKING:
        if ((result = SSL_do_handshake(slot->ssl)) <= 0) {
            if (!would_block(slot, result)) end(slot, "handshake");
            return;
        }
        slot->state = REQUESTING;  // fall through
    case REQUESTING:
        if ((result = SSL_write(slot->ssl, request, strlen(request))) <= 0) {
            if (!would_block(slot, result)) end(slot, "write");
            return;
        }
        slot->state = READING;
        wait_for(slot, EPOLLIN);
        return;
    case READING:
        return read_response(slot);
    case CLOSING: {
        char bytes[4096];
        ssize_t length;
        while ((length = recv(slot->fd, bytes, sizeof bytes, 0)) > 0) {}
        if (length == 0 || (errno != EAGAIN && errno != EINTR)) end(slot, NULL);
    }
    }
}

static void run(long count, int slot_count) {
    full = resumed = failed = 0;
    failure[0] = 0;
    to_start = count;
    for (int at = 0; at < slot_count && to_start > 0; at++) begin(&slots[at]);
    struct epoll_event events[MAX_SLOTS];
    while (running > 0) {
        int ready = epoll_wait(epoll, events, MAX_SLOTS, CONNECT_ATTEMPT_MS);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        if (ready == 0) {
            for (int at = 0; at < slot_count; at++) {
                to_start = 0;
                if (slots[at].ssl) end(&slots[at], "no progress for ten seconds");
            }
        }
        for (int at = 0; at < ready; at++) advance(events[at].data.ptr);
    }
    printf("full %ld resumed %ld failed %ld %s\n", full, resumed, failed, failure);
    fflush(stdout);
}

static void configure(const char *kind) {
    context = SSL_CTX_new(TLS_client_method());
    int version = strstr(kind, "13") ? TLS1_3_VERSION : TLS1_2_VERSION;
    SSL_CTX_set_min_proto_version(context, version);
    SSL_CTX_set_max_proto_version(context, version);
    if (SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES128-GCM-SHA256") != 1 ||
        SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 ||
        SSL_CTX_set1_groups_list(context, "X25519:P-256") != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    if (!strcmp(kind, "id12")) SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
    // A server that closes the connection without close_notify is not an error here.
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    resumes = strncmp(kind, "full", 4) != 0;
    int cache = resumes && version == TLS1_3_VERSION;
    int mode = SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL;
    SSL_CTX_set_session_cache_mode(context, cache ? mode : SSL_SESS_CACHE_OFF);
    if (cache) SSL_CTX_sess_set_new_cb(context, keep_session);
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: load KIND SLOTS PATH client|server\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int slot_count = atoi(arguments[2]);
    if (slot_count < 1 || slot_count > MAX_SLOTS) return 2;
    server_closes = !strcmp(arguments[4], "server");
    const char *close_field = server_closes ? "Connection: close\r\n" : "";
    snprintf(request, sizeof request,
             "GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n%s\r\n", arguments[3], close_field);
    configure(arguments[1]);
    if ((epoll = epoll_create1(0)) < 0) die("epoll_create1");
    long connections;
    while (scanf(" run %ld %d", &connections, &port) == 2) run(connections, slot_count);
    return 0;
}
