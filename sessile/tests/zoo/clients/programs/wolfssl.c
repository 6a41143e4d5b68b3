/* wolfSSL: the session is taken after the response was read. */

#include "common.h"
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

int main(int argc, char **argv)
{
    arguments(argc, argv);
    printf("version %s\n", wolfSSL_lib_version());

    wolfSSL_Init();
    WOLFSSL_CTX *context =
        wolfSSL_CTX_new(is("psk") ? wolfTLSv1_3_client_method() : wolfTLSv1_2_client_method());
    if (wolfSSL_CTX_load_verify_locations(context, ca, NULL) != WOLFSSL_SUCCESS)
        fail("the CA");
    if (is("ticket"))
        wolfSSL_CTX_UseSessionTicket(context);
    if (is("session-id"))
        wolfSSL_CTX_set_options(context, WOLFSSL_OP_NO_TICKET);
    WOLFSSL_SESSION *session = NULL;

    for (int i = 0; i < connections; i++) {
        WOLFSSL *ssl = wolfSSL_new(context);
        int fd = tcp_connect();
        wolfSSL_set_fd(ssl, fd);
        wolfSSL_UseSNI(ssl, WOLFSSL_SNI_HOST_NAME, name, (unsigned short)strlen(name));
        wolfSSL_check_domain_name(ssl, name);
        if (session != NULL)
            wolfSSL_set_session(ssl, session);
        if (wolfSSL_connect(ssl) != WOLFSSL_SUCCESS)
            fail(wolfSSL_ERR_reason_error_string(wolfSSL_get_error(ssl, 0)));
        wolfSSL_write(ssl, request, (int)strlen(request));
        READ_RESPONSE(length, wolfSSL_read(ssl, buffer, room))
        if (length == 0)
            fail(wolfSSL_ERR_reason_error_string(wolfSSL_get_error(ssl, 0)));
        report(wolfSSL_session_reused(ssl), length);
        wolfSSL_SESSION_free(session);
        session = wolfSSL_get1_session(ssl);
        wolfSSL_shutdown(ssl);
        wolfSSL_free(ssl);
        close(fd);
    }
    return 0;
}
