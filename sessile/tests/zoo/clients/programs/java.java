// HttpsURLConnection with a context of the program: JSSE keeps the sessions of a context itself.
// Arguments: mechanism, file of the CA, server name, port, connections.

import java.io.FileInputStream;
import java.net.URL;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

class Client {
    public static void main(String[] arguments) throws Exception {
        String mechanism = arguments[0];
        URL url = new URL("https://" + arguments[2] + ":" + arguments[3] + "/verdict.json");
        System.out.println("version " + System.getProperty("java.version"));
        System.setProperty("http.keepAlive", "false");
        if (mechanism.equals("session-id"))
            System.setProperty("jdk.tls.client.enableSessionTicketExtension", "false");

        KeyStore authorities = KeyStore.getInstance(KeyStore.getDefaultType());
        authorities.load(null, null);
        try (FileInputStream file = new FileInputStream(arguments[1])) {
            CertificateFactory factory = CertificateFactory.getInstance("X.509");
            authorities.setCertificateEntry("authority", factory.generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(authorities);
        SSLContext context = SSLContext.getInstance(mechanism.equals("psk") ? "TLSv1.3" : "TLSv1.2");
        context.init(null, trust.getTrustManagers(), null);

        // JSSE does not say whether it resumed; a session keeps the time of its full handshake.
        long established = 0;
        for (int i = 0; i < Integer.parseInt(arguments[4]); i++) {
            HttpsURLConnection connection = (HttpsURLConnection) url.openConnection();
            connection.setSSLSocketFactory(context.getSocketFactory());
            String body = new String(connection.getInputStream().readAllBytes());
            long creation = connection.getSSLSession().get().getCreationTime();
            System.out.println((creation == established ? "resumed " : "full ") + body);
            established = creation;
        }
    }
}
