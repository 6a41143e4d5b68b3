/* mbedTLS: it does not say whether it resumed; it verifies a certificate in full handshakes only. */

#include "common.h"
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <mbedtls/version.h>

static int certificates;

static int count(void *none, mbedtls_x509_crt *certificate, int depth, uint32_t *flags)
{
    (void)none, (void)certificate, (void)depth, (void)flags;
    certificates++;
    return 0;
}

int main(int argc, char **argv)
{
    arguments(argc, argv);
    printf("version %s\n", MBEDTLS_VERSION_STRING);

    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_x509_crt authority;
    mbedtls_ssl_config config;
    mbedtls_ssl_session session;
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random);
    mbedtls_x509_crt_init(&authority);
    mbedtls_ssl_config_init(&config);
    mbedtls_ssl_session_init(&session);
    mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0);
    if (mbedtls_x509_crt_parse_file(&authority, ca) != 0)
        fail("the CA");
    mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                MBEDTLS_SSL_PRESET_DEFAULT);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
    mbedtls_ssl_conf_ca_chain(&config, &authority, NULL);
    mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_REQUIRED);
    mbedtls_ssl_conf_verify(&config, count, NULL);
    mbedtls_ssl_conf_session_tickets(&config, is("session-id") ? MBEDTLS_SSL_SESSION_TICKETS_DISABLED
                                                               : MBEDTLS_SSL_SESSION_TICKETS_ENABLED);

    for (int i = 0; i < connections; i++) {
        mbedtls_ssl_context ssl;
        mbedtls_net_context net = {.fd = tcp_connect()};
        mbedtls_ssl_init(&ssl);
        if (mbedtls_ssl_setup(&ssl, &config) != 0)
            fail("setup");
        mbedtls_ssl_set_hostname(&ssl, name);
        mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
        if (i > 0 && mbedtls_ssl_set_session(&ssl, &session) != 0)
            fail("the session");
        certificates = 0;
        if (mbedtls_ssl_handshake(&ssl) != 0)
            fail("handshake");
        mbedtls_ssl_write(&ssl, (const unsigned char *)request, strlen(request));
        READ_RESPONSE(length, mbedtls_ssl_read(&ssl, (unsigned char *)buffer, (size_t)room))
        report(certificates == 0, length);
        mbedtls_ssl_session_free(&session);
        if (mbedtls_ssl_get_session(&ssl, &session) != 0)
            fail("no session");
        mbedtls_ssl_close_notify(&ssl);
        mbedtls_ssl_free(&ssl);
        close(net.fd);
    }
    return 0;
}
