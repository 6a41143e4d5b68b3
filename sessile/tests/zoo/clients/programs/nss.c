/* NSS: it keeps sessions itself. The working folder becomes its certificate database. */

#include "common.h"
#include <cert.h>
#include <nspr.h>
#include <nss.h>
#include <pk11pub.h>
#include <ssl.h>
#include <sslproto.h>

static void trust_authority(void)
{
    static char pem[16384];
    FILE *file = fopen(ca, "r");
    if (file == NULL)
        fail("the CA");
    int length = (int)fread(pem, 1, sizeof pem - 1, file);
    fclose(file);
    CERTCertificate *certificate = CERT_DecodeCertFromPackage(pem, length);
    PK11SlotInfo *slot = PK11_GetInternalKeySlot();
    if (PK11_NeedUserInit(slot))
        PK11_InitPin(slot, NULL, "");
    if (certificate == NULL ||
        PK11_ImportCert(slot, certificate, CK_INVALID_HANDLE, "authority", PR_FALSE) != SECSuccess)
        fail("the CA");
    CERTCertTrust trust;
    CERT_DecodeTrustString(&trust, "C,,");
    if (CERT_ChangeCertTrust(CERT_GetDefaultCertDB(), certificate, &trust) != SECSuccess)
        fail("to trust the CA");
    CERT_DestroyCertificate(certificate);
    PK11_FreeSlot(slot);
}

int main(int argc, char **argv)
{
    arguments(argc, argv);
    printf("version %s\n", NSS_GetVersion());

    if (NSS_InitReadWrite("sql:.") != SECSuccess)
        fail("the certificate database");
    NSS_SetDomesticPolicy();
    trust_authority();
    PRUint16 version =
        is("psk") ? SSL_LIBRARY_VERSION_TLS_1_3 : SSL_LIBRARY_VERSION_TLS_1_2;
    SSLVersionRange range = {version, version};
    SSL_VersionRangeSetDefault(ssl_variant_stream, &range);
    SSL_OptionSetDefault(SSL_ENABLE_SESSION_TICKETS, !is("session-id"));

    for (int i = 0; i < connections; i++) {
        PRNetAddr address;
        PR_InitializeNetAddr(PR_IpAddrLoopback, (PRUint16)port, &address);
        PRFileDesc *fd = SSL_ImportFD(NULL, PR_NewTCPSocket());
        SSL_SetURL(fd, name);
        if (PR_Connect(fd, &address, PR_INTERVAL_NO_TIMEOUT) != PR_SUCCESS ||
            SSL_ForceHandshake(fd) != SECSuccess)
            fail(PR_ErrorToName(PR_GetError()));
        PR_Write(fd, request, (PRInt32)strlen(request));
        READ_RESPONSE(length, PR_Read(fd, buffer, room))
        SSLChannelInfo info;
        if (SSL_GetChannelInfo(fd, &info, sizeof info) != SECSuccess)
            fail("no information on the connection");
        report(info.resumed, length);
        PR_Close(fd);
    }
    return 0;
}
