/* A client by wolfSSL that returns with the session of its last connection. */

#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

#include "device.h"

static WOLFSSL_SESSION *visit(WOLFSSL_CTX *context, const struct arguments *arguments,
                              WOLFSSL_SESSION *session)
{
    static char answer[MAX_ANSWER + 1];
    char text[512];
    int asked = request(arguments->path, text, sizeof text);
    int length = 0, read, tcp = connect_to(arguments->port);
    WOLFSSL *tls = wolfSSL_new(context);
    WOLFSSL_SESSION *next;

    if (!tls || wolfSSL_set_fd(tls, tcp) != WOLFSSL_SUCCESS)
        fail("wolfSSL_new", tcp);
    if (wolfSSL_UseSNI(tls, WOLFSSL_SNI_HOST_NAME, SERVER_NAME, strlen(SERVER_NAME)) !=
            WOLFSSL_SUCCESS ||
        wolfSSL_check_domain_name(tls, SERVER_NAME) != WOLFSSL_SUCCESS)
        fail("server name", 0);
    if (arguments->version == 12 && arguments->tickets)
        wolfSSL_UseSessionTicket(tls);
    if (arguments->max_fragment_length &&
        wolfSSL_UseMaxFragment(tls, arguments->max_fragment_length) != WOLFSSL_SUCCESS)
        fail("wolfSSL_UseMaxFragment", arguments->max_fragment_length);
    if (session && wolfSSL_set_session(tls, session) != WOLFSSL_SUCCESS)
        fail("wolfSSL_set_session", 0);
    if (wolfSSL_connect(tls) != WOLFSSL_SUCCESS)
        fail("wolfSSL_connect", wolfSSL_get_error(tls, 0));
    if (wolfSSL_write(tls, text, asked) != asked)
        fail("wolfSSL_write", wolfSSL_get_error(tls, 0));
    while ((read = wolfSSL_read(tls, answer + length, MAX_ANSWER - length)) > 0)
        length += read;
    if (wolfSSL_get_error(tls, read) != WOLFSSL_ERROR_ZERO_RETURN)
        fail("wolfSSL_read", wolfSSL_get_error(tls, read));
    answer[length] = 0;
    print_answer(answer, length);
    /* Behind the answer: a TLS 1.3 ticket comes after the handshake. */
    next = wolfSSL_get1_session(tls);
    wolfSSL_shutdown(tls);
    wolfSSL_free(tls);
    close(tcp);
    if (session)
        wolfSSL_SESSION_free(session);
    return next;
}

int main(int argc, char **argv)
{
    struct arguments given = arguments(argc, argv);
    WOLFSSL_SESSION *session = NULL;
    WOLFSSL_CTX *context;

    wolfSSL_Init();
    context = wolfSSL_CTX_new(given.version == 13 ? wolfTLSv1_3_client_method()
                                                  : wolfTLSv1_2_client_method());
    if (!context || wolfSSL_CTX_load_verify_locations(context, given.ca, NULL) != WOLFSSL_SUCCESS)
        fail("authority", 0);
    for (int at = 0; at < given.visits; at++)
        session = visit(context, &given, session);
    return 0;
}
