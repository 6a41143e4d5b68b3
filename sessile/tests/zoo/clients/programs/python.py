"""Python's ssl module. Arguments: mechanism, file of the CA, server name, port, connections."""

import socket
import ssl
import sys

mechanism, ca, name, port, connections = sys.argv[1:]
print("version", sys.version.split()[0])

context = ssl.create_default_context(cafile=ca)
version = ssl.TLSVersion.TLSv1_3 if mechanism == "psk" else ssl.TLSVersion.TLSv1_2
context.minimum_version = context.maximum_version = version
if mechanism == "session-id":
    context.options |= ssl.OP_NO_TICKET
request = f"GET /verdict.json HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n".encode()

session = None
for _ in range(int(connections)):
    with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as tcp:
        with context.wrap_socket(tcp, server_hostname=name, session=session) as tls:
            tls.sendall(request)
            response = b"".join(iter(lambda: tls.recv(4096), b""))
            outcome = "resumed" if tls.session_reused else "full"
            print(outcome, response.decode().partition("\r\n\r\n")[2].strip())
            # After the response: TLS 1.3 tickets come behind the handshake.
            session = tls.session
