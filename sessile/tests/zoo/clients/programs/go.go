// net/http with a session cache, which it does not have unless it is given one.
// Arguments: mechanism, file of the CA, server name, port, connections.

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
)

func main() {
	mechanism, ca, name, port := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	connections, _ := strconv.Atoi(os.Args[5])
	fmt.Println("version", runtime.Version()[len("go"):])

	pem, err := os.ReadFile(ca)
	if err != nil {
		log.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	version := uint16(tls.VersionTLS12)
	if mechanism == "psk" {
		version = tls.VersionTLS13
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
		},
		TLSClientConfig: &tls.Config{
			RootCAs:                authorities,
			MinVersion:             version,
			MaxVersion:             version,
			SessionTicketsDisabled: mechanism == "session-id",
			ClientSessionCache:     tls.NewLRUClientSessionCache(0),
		},
	}}
	for i := 0; i < connections; i++ {
		response, err := client.Get("https://" + name + ":" + port + "/verdict.json")
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			log.Fatal(err)
		}
		response.Body.Close()
		outcome := "full"
		if response.TLS.DidResume {
			outcome = "resumed"
		}
		fmt.Println(outcome, string(body))
	}
}
