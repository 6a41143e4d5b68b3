// An OpenSSL client that opens TLS 1.3 connections and leaves them idle.
//
//   idle COUNT http/1.1|h2 none|PATH PORT
//
// COUNT is a multiple of 20, the number of threads. With a path, each connection makes
// one request and reads the response. The program prints "ready" when
// all connections are idle, and ends when its standard input ends.
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { THREADS = 20, FRAME_HEAD = 9, DATA = 0, HEADERS = 1, SETTINGS = 4, END_STREAM = 1, ACK = 1 };

static void die(const char *what) {
    fprintf(stderr, "idle: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void send_all(SSL *ssl, const void *bytes, int length) {
    if (SSL_write(ssl, bytes, length) != length) die("write");
}

static void receive_all(SSL *ssl, unsigned char *bytes, int length) {
    while (length > 0) {
        int part = SSL_read(ssl, bytes, length);
        if (part <= 0) die("read");
        bytes += part;
        length -= part;
    }
}

// Makes one HTTP/1.1 request and reads a response with Content-Length.
static void get_http1(SSL *ssl, const char *path) {
    char text[8192];
    int length = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
    send_all(ssl, text, length);
    length = 0;
    char *body = NULL;
    while (!body || length - (body + 4 - text) < atol(strcasestr(text, "\r\ncontent-length:") + 17)) {
        int part = SSL_read(ssl, text + length, sizeof text - 1 - length);
        if (part <= 0) die("read");
        length += part;
        text[length] = 0;
        body = strstr(text, "\r\n\r\n");
        if (body && (strncmp(text, "HTTP/1.1 200", 12) || !strcasestr(text, "\r\ncontent-length:"))) die(text);
    }
}

static void send_frame(SSL *ssl, int type, int flags, int stream, const void *payload, int length) {
    unsigned char frame[1024] = {length >> 16, length >> 8, length, type, flags, 0, 0, 0, stream};
    if (length > 0) memcpy(frame + FRAME_HEAD, payload, length);
    send_all(ssl, frame, FRAME_HEAD + length);
}

// Begins an HTTP/2 connection, and makes one request if there is a path.
static void begin_http2(SSL *ssl, const char *path) {
    send_all(ssl, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    send_frame(ssl, SETTINGS, 0, 0, NULL, 0);
    if (path) {
        // :method GET, :scheme https, then :path and :authority as literals.
        char block[512];
        int length = snprintf(block, sizeof block, "\x82\x87\x04%c%s\x01\x09localhost", (int)strlen(path), path);
        send_frame(ssl, HEADERS, END_STREAM | 4, 1, block, length);
    }
    int settled = 0, answered = !path;
    while (!settled || !answered) {
        unsigned char head[FRAME_HEAD], payload[1 << 16];
        receive_all(ssl, head, FRAME_HEAD);
        int length = head[0] << 16 | head[1] << 8 | head[2];
        if (length > (int)sizeof payload) die("a frame is too long");
        receive_all(ssl, payload, length);
        if (head[3] == SETTINGS && !(head[4] & ACK)) {
            send_frame(ssl, SETTINGS, ACK, 0, NULL, 0);
            settled = 1;
        }
        if ((head[3] == HEADERS || head[3] == DATA) && head[4] & END_STREAM) answered = 1;
        // 0x88 is ":status 200" in the static table. An update of the table size may come before it.
        if (head[3] == HEADERS && !memchr(payload, 0x88, length < 8 ? length : 8)) die("the status is not 200");
        if (head[3] == 3 || head[3] == 7) die("the server refused the request");
    }
}

static SSL_CTX *context;
static const char *protocol, *path;
static int port, count_of_thread;

static void *open_connections(void *unused) {
    for (int left = count_of_thread; left > 0; left--) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
        SSL *ssl = SSL_new(context);
        SSL_set_fd(ssl, fd);
        SSL_set_tlsext_host_name(ssl, "localhost");
        if (SSL_connect(ssl) != 1) die("handshake");
        if (!strcmp(protocol, "h2")) begin_http2(ssl, path);
        else if (path) get_http1(ssl, path);
    }
    return unused;
}

int main(int count, char **arguments) {
    if (count != 5) die("usage: idle COUNT http/1.1|h2 none|PATH PORT");
    count_of_thread = atoi(arguments[1]) / THREADS;
    protocol = arguments[2];
    path = strcmp(arguments[3], "none") ? arguments[3] : NULL;
    port = atoi(arguments[4]);
    char alpn[16];
    snprintf(alpn, sizeof alpn, "%c%s", (int)strlen(protocol), protocol);
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set1_groups_list(context, "X25519:P-256");
    SSL_CTX_set_alpn_protos(context, (unsigned char *)alpn, strlen(alpn));
    pthread_t threads[THREADS];
    for (int at = 0; at < THREADS; at++) pthread_create(&threads[at], NULL, open_connections, NULL);
    for (int at = 0; at < THREADS; at++) pthread_join(threads[at], NULL);
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
