/* A client by mbedTLS that returns with the session of its last connection. */

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>

#include "device.h"

static void visit(mbedtls_ssl_config *config, const struct arguments *arguments,
                  mbedtls_ssl_session *session, int returns)
{
    static char answer[MAX_ANSWER + 1];
    char text[512];
    int asked = request(arguments->path, text, sizeof text);
    int length = 0, result;
    mbedtls_net_context tcp = {.fd = connect_to(arguments->port)};
    mbedtls_ssl_context tls;

    mbedtls_ssl_init(&tls);
    if ((result = mbedtls_ssl_setup(&tls, config)) != 0 ||
        (result = mbedtls_ssl_set_hostname(&tls, SERVER_NAME)) != 0)
        fail("setup", result);
    if (returns && (result = mbedtls_ssl_set_session(&tls, session)) != 0)
        fail("mbedtls_ssl_set_session", result);
    mbedtls_ssl_set_bio(&tls, &tcp, mbedtls_net_send, mbedtls_net_recv, NULL);
    if ((result = mbedtls_ssl_handshake(&tls)) != 0)
        fail("mbedtls_ssl_handshake", result);
    if ((result = mbedtls_ssl_write(&tls, (unsigned char *)text, asked)) != asked)
        fail("mbedtls_ssl_write", result);
    while ((result = mbedtls_ssl_read(&tls, (unsigned char *)answer + length,
                                      MAX_ANSWER - length)) > 0)
        length += result;
    if (result != MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY)
        fail("mbedtls_ssl_read", result);
    answer[length] = 0;
    print_answer(answer, length);
    mbedtls_ssl_session_free(session);
    mbedtls_ssl_session_init(session);
    if ((result = mbedtls_ssl_get_session(&tls, session)) != 0)
        fail("mbedtls_ssl_get_session", result);
    mbedtls_ssl_close_notify(&tls);
    mbedtls_ssl_free(&tls);
    mbedtls_net_free(&tcp);
}

int main(int argc, char **argv)
{
    struct arguments given = arguments(argc, argv);
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
    if (mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0) != 0 ||
        mbedtls_x509_crt_parse_file(&authority, given.ca) != 0 ||
        mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                    MBEDTLS_SSL_PRESET_DEFAULT) != 0)
        fail("configuration", 0);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
    mbedtls_ssl_conf_ca_chain(&config, &authority, NULL);
    mbedtls_ssl_conf_session_tickets(&config, given.tickets ? MBEDTLS_SSL_SESSION_TICKETS_ENABLED
                                                            : MBEDTLS_SSL_SESSION_TICKETS_DISABLED);
    if (mbedtls_ssl_conf_max_frag_len(&config, given.max_fragment_length) != 0)
        fail("mbedtls_ssl_conf_max_frag_len", given.max_fragment_length);
    for (int at = 0; at < given.visits; at++)
        visit(&config, &given, &session, at > 0);
    return 0;
}
