/* GnuTLS: the session's data is asked for after the response was read. */

#include "common.h"
#include <gnutls/gnutls.h>

/* A TLS 1.3 ticket ends a call without data; the next call goes on. */
static ssize_t receive(gnutls_session_t session, void *buffer, size_t room)
{
    ssize_t got;
    do
        got = gnutls_record_recv(session, buffer, room);
    while (got == GNUTLS_E_AGAIN || got == GNUTLS_E_INTERRUPTED);
    return got;
}

int main(int argc, char **argv)
{
    arguments(argc, argv);
    printf("version %s\n", gnutls_check_version(NULL));

    gnutls_certificate_credentials_t credentials;
    gnutls_certificate_allocate_credentials(&credentials);
    if (gnutls_certificate_set_x509_trust_file(credentials, ca, GNUTLS_X509_FMT_PEM) < 1)
        fail("the CA");
    const char *priority = is("psk")      ? "NORMAL:-VERS-ALL:+VERS-TLS1.3"
                           : is("ticket") ? "NORMAL:-VERS-ALL:+VERS-TLS1.2"
                                          : "NORMAL:-VERS-ALL:+VERS-TLS1.2:%NO_TICKETS";
    gnutls_datum_t data = {NULL, 0};

    for (int i = 0; i < connections; i++) {
        gnutls_session_t session;
        gnutls_init(&session, GNUTLS_CLIENT);
        if (gnutls_priority_set_direct(session, priority, NULL) != 0)
            fail("priority");
        gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
        gnutls_server_name_set(session, GNUTLS_NAME_DNS, name, strlen(name));
        gnutls_session_set_verify_cert(session, name, 0);
        if (data.data != NULL) {
            gnutls_session_set_data(session, data.data, data.size);
            gnutls_free(data.data);
            data.data = NULL;
        }
        int fd = tcp_connect();
        gnutls_transport_set_int(session, fd);
        int result;
        do
            result = gnutls_handshake(session);
        while (result < 0 && !gnutls_error_is_fatal(result));
        if (result < 0)
            fail(gnutls_strerror(result));
        gnutls_record_send(session, request, strlen(request));
        READ_RESPONSE(length, receive(session, buffer, (size_t)room))
        report(gnutls_session_is_resumed(session), length);
        if (gnutls_session_get_data2(session, &data) != 0)
            fail("no session");
        gnutls_bye(session, GNUTLS_SHUT_WR);
        gnutls_deinit(session);
        close(fd);
    }
    return 0;
}
