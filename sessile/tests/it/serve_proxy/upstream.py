"""An HTTP/1.1 upstream: each path is one thing that an upstream can do. Says on its standard error
stream what it sees of its clients. `upstream.py PORT`"""

import http.server
import json
import socket
import struct
import sys
import threading
import urllib.parse

BLOCK = bytes(range(256)) * 64


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def log_message(self, *_):
        pass

    def head(self, status, *headers):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def respond(self, body, status=200, *headers):
        self.head(status, ("Content-Length", str(len(body))), *headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        """The request's body, piece by piece."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        elif length := int(self.headers.get("Content-Length", 0)):
            while length:
                try:
                    piece = self.rfile.read(min(length, len(BLOCK)))
                except OSError:
                    piece = b""
                if not piece:
                    self.say("body cut")
                    self.close_connection = True
                    return
                yield piece
                length -= len(piece)

    def handle_any(self):
        self.say("asked")
        path, _, argument = self.path.partition("?")
        name = path.rsplit("/", 1)[-1].replace("-", "_")
        getattr(self, name, self.echo)(argument)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_BREW = handle_any

    def echo(self, _):
        """What it was asked."""
        body = b"".join(self.body())
        asked = {
            "method": self.command,
            "path": self.path,
            "version": self.request_version,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body": body.decode("latin-1"),
        }
        hop = [("Connection", "x-hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=9")]
        self.respond(json.dumps(asked).encode(), 200, ("X-Kept", "1"), *hop)

    def mirror(self, _):
        """The body, back as it comes, in chunks."""
        self.head(200, ("Transfer-Encoding", "chunked"))
        for piece in self.body():
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def count(self, _):
        self.respond(str(sum(map(len, self.body()))).encode())

    def sized(self, length):
        self.head(200, ("Content-Length", length))
        for _ in range(int(length) // len(BLOCK)):
            self.wfile.write(BLOCK)

    def status(self, code):
        etag = ("ETag", '"x"')
        if code in ("204", "304"):
            self.head(int(code), etag)
        else:
            self.respond(b"as asked", int(code), etag)

    def until_close(self, _):
        """A body that ends with its connection, as HTTP/1.0 has it."""
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nto the end")
        self.close_connection = True

    def answer_first(self, _):
        """An answer before the end of the request's body."""
        self.respond(b"answered")
        for _ in self.body():
            pass

    def both_ways(self, length):
        """An answer that goes on while the request's body is read."""
        sending = threading.Thread(target=self.sized, args=[length])
        sending.start()
        for _ in self.body():
            pass
        self.say("body complete")
        sending.join()

    def stall(self, _):
        """No answer, until the client is gone."""
        self.wait()

    def stall_in_body(self, _):
        self.head(200, ("Content-Length", "100"))
        self.wfile.write(b"a part")
        self.wait()

    def stall_at_body(self, _):
        """Takes nothing of the request's body."""
        self.wait(look=False)

    def endless(self, _):
        self.head(200, ("Transfer-Encoding", "chunked"))
        try:
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(BLOCK), BLOCK))
        except OSError:
            self.say("client gone")
        self.close_connection = True

    def cut_sized(self, _):
        self.head(200, ("Content-Length", "100"))
        self.wfile.write(b"a part")
        self.close_connection = True

    def cut_chunked(self, _):
        self.head(200, ("Transfer-Encoding", "chunked"))
        self.wfile.write(b"6\r\na part\r\n")
        self.close_connection = True

    def reset(self, _):
        """A body without a length, and a reset in the middle of it."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na part")
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.connection.close()
        self.close_connection = True

    def hang_up(self, _):
        """No answer at all."""
        self.say("hung up")
        self.close_connection = True

    def hang_up_once(self, _):
        """Hangs up on the second request of each connection."""
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked == 1:
            self.respond(b"answered")
        else:
            self.close_connection = True

    def garbage(self, _):
        self.wfile.write(b"220 mail.example ESMTP\r\n")
        self.close_connection = True

    def raw(self, answer):
        """These bytes, and nothing more."""
        self.wfile.write(urllib.parse.unquote_to_bytes(answer))

    def in_bytes(self, answer):
        """These bytes, one after the other."""
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in urllib.parse.unquote_to_bytes(answer):
            self.wfile.write(bytes([byte]))

    def refuse_body(self, _):
        """An answer, and an end of the connection that loses the request's body."""
        self.respond(b"refused", 413)
        self.close_connection = True

    def trailers(self, _):
        """The trailers of the request's body."""
        while size := int(self.rfile.readline(), 16):
            self.rfile.read(size + 2)
        self.respond(b"".join(iter(self.rfile.readline, b"\r\n")))

    def websocket(self, _):
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        self.close_connection = True

    def early(self, _):
        """Too early where it may be a replay."""
        self.respond(b"too early", 425 if self.headers.get("Early-Data") == "1" else 200)

    def wait(self, look=True):
        self.close_connection = True
        if look:
            try:
                while self.rfile.read1(1024):
                    pass
            except OSError:
                pass
            self.say("client gone")
        else:
            threading.Event().wait()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 2048

    def handle_error(self, *_):
        pass


Server(("127.0.0.1", int(sys.argv[1])), Upstream).serve_forever()
