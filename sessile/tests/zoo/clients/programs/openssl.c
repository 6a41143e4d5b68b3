/* libssl. A sixth argument says how the program gets its sessions: "callback" or "get1". */

#include "common.h"
#include <openssl/ssl.h>

static SSL_SESSION *session;

static int new_session(SSL *ssl, SSL_SESSION *given)
{
    (void)ssl;
    SSL_SESSION_free(session);
    session = given;
    return 1;
}

int main(int argc, char **argv)
{
    arguments(argc, argv);
    int by_callback = argc > 6 && strcmp(argv[6], "callback") == 0;
    printf("version %s\n", OpenSSL_version(OPENSSL_VERSION_STRING));

    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    int version = is("psk") ? TLS1_3_VERSION : TLS1_2_VERSION;
    SSL_CTX_set_min_proto_version(context, version);
    SSL_CTX_set_max_proto_version(context, version);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_load_verify_file(context, ca) != 1)
        fail("the CA");
    if (is("session-id"))
        SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
    if (by_callback) {
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT |
                                                    SSL_SESS_CACHE_NO_INTERNAL_STORE);
        SSL_CTX_sess_set_new_cb(context, new_session);
    }

    for (int i = 0; i < connections; i++) {
        SSL *ssl = SSL_new(context);
        int fd = tcp_connect();
        SSL_set_fd(ssl, fd);
        SSL_set_tlsext_host_name(ssl, name);
        SSL_set1_host(ssl, name);
        if (session != NULL)
            SSL_set_session(ssl, session);
        if (SSL_connect(ssl) != 1)
            fail("handshake");
        SSL_write(ssl, request, (int)strlen(request));
        READ_RESPONSE(length, SSL_read(ssl, buffer, room))
        report(SSL_session_reused(ssl), length);
        if (!by_callback) {
            SSL_SESSION_free(session);
            session = SSL_get1_session(ssl);
        }
        SSL_shutdown(ssl);
        SSL_free(ssl);
        close(fd);
    }
    return 0;
}
