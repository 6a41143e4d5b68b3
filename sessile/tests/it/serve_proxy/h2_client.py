"""An HTTP/2 client that does what no library does. `h2_client.py PORT CA SOURCE ACTION [ARGUMENT]`

Each action is a function at the end of this file. SOURCE is the address of the client. With `proxy:`
in front, only a PROXY header has this address."""

import json
import resource
import socket
import ssl
import struct
import sys
import time

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 2, 3, 4, 6, 7, 8
CONTINUATION, UNKNOWN = 9, 0xFA
END_STREAM, END_HEADERS = 1, 4
STREAMS = 32
PORT, CA, SOURCE = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(headers):
    """Header fields as HPACK literals without indexing."""
    fields = b""
    for name, value in headers:
        name, value = name.encode(), value.encode()
        assert max(len(name), len(value)) < 127
        fields += b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
    return fields


def headers(stream, method, path, *more, flags=END_HEADERS):
    target = [(":method", method), (":scheme", "https"), (":authority", "farm.test"), (":path", path)]
    return frame(HEADERS, flags, stream, block([*target, *more]))


def get(stream, path):
    return headers(stream, "GET", path, flags=END_HEADERS | END_STREAM)


def window_update(stream, increment):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


class Connection:
    def __init__(self, window=65535):
        context = ssl.create_default_context(cafile=CA)
        context.set_alpn_protocols(["h2"])
        is_proxied = SOURCE.startswith("proxy:")
        bound = None if is_proxied else (SOURCE, 0)
        tcp = socket.create_connection(("127.0.0.1", PORT), 30, bound)
        if is_proxied:
            source = SOURCE.removeprefix("proxy:")
            tcp.sendall(f"PROXY TCP4 {source} 127.0.0.1 1 {PORT}\r\n".encode())
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = context.wrap_socket(tcp, server_hostname="farm.test")
        self.buffer = b""
        settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window))
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)

    def send(self, data):
        self.tls.sendall(data)

    def read(self, size):
        while len(self.buffer) < size:
            data = self.tls.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def next(self):
        """The next frame: type, flags, stream and payload."""
        head = self.read(9)
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        return kind, flags, stream, self.read(int.from_bytes(head[:3], "big"))

    def answer(self, stream):
        """What becomes of a request: the body of its response, or how it was reset."""
        body = b""
        while True:
            kind, flags, its, payload = self.next()
            if kind == GOAWAY:
                return f"goaway {payload[7]}"
            if its != stream:
                continue
            if kind == RST_STREAM:
                return f"reset {payload[3]} after {len(body)}"
            if kind == DATA:
                body += payload
            if flags & END_STREAM:
                return body.decode().strip()


def wait():
    print("ready", flush=True)
    sys.stdin.read()


def uploads(count):
    """Connections that begin bodies and do not go on."""
    held = [Connection() for _ in range(int(count))]
    for connection in held:
        for stream in range(1, 2 * STREAMS, 2):
            begun = headers(stream, "POST", "/count", ("content-length", "1000"))
            connection.send(begun + frame(DATA, 0, stream, b"x"))
    wait()


def downloads(count):
    """Connections that read no response."""
    held = [Connection(window=0) for _ in range(int(count))]
    for connection in held:
        for stream in range(1, 2 * STREAMS, 2):
            connection.send(get(stream, "/sized?65536"))
    wait()


def ask(fields):
    """One request with these header fields."""
    connection = Connection()
    fields = block(json.loads(fields))
    connection.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, fields))
    print(connection.answer(1))


def end_content_early(path):
    """A request with less content than its head says. The server has the head before the content."""
    connection = Connection()
    begun = headers(1, "POST", path, ("content-length", "10"))
    connection.send(begun + frame(PING, 0, 0, bytes(8)))
    kind = None
    while kind != PING:
        kind, _, stream, _ = connection.next()
        if stream == 1:
            print("answered early")
            return
    connection.send(frame(DATA, END_STREAM, 1, b"short"))
    print(connection.answer(1))


def stop_sending(path):
    """A request whose body stands still, on a connection that does not."""
    connection = Connection()
    begun = headers(1, "POST", path, ("content-length", "10"))
    connection.send(begun + frame(DATA, 0, 1, b"half."))
    print(connection.answer(1))
    connection.send(get(3, "/here"))
    print(connection.answer(3))


def stop_reading(path):
    """A response that is not read, on a connection that does other requests."""
    connection = Connection(window=0)
    connection.send(get(1, path))
    print(connection.answer(1))
    connection.send(get(3, "/here") + window_update(3, 1000))
    print(connection.answer(3))


def read_slowly(size):
    """A response that is read in steps of a second."""
    connection, left = Connection(window=0), int(size)
    connection.send(get(1, f"/sized?{size}"))
    while left:
        step = min(left, 16384)
        connection.send(window_update(0, step) + window_update(1, step))
        while step:
            kind, _, stream, payload = connection.next()
            assert kind != RST_STREAM and kind != GOAWAY, payload
            if (kind, stream) == (DATA, 1):
                step -= len(payload)
                left -= len(payload)
        time.sleep(1)
    print("complete")


def leave_while_reading(size):
    """A response that is not read until another request has made the server end the connection."""
    connection, left = Connection(window=0), int(size)
    connection.send(get(1, f"/sized?{size}"))
    connection.send(get(3, "/verdict/new-connection") + window_update(3, 1000))
    has_goaway = is_led_back = False
    while left:
        kind, flags, stream, payload = connection.next()
        assert kind != RST_STREAM, payload
        if kind == PING and not flags:
            connection.send(frame(PING, 1, 0, payload))
        if (kind, stream) == (DATA, 1):
            assert has_goaway and is_led_back
            left -= len(payload)
        has_goaway |= kind == GOAWAY
        if stream == 3 and flags & END_STREAM:
            is_led_back = True
            connection.send(window_update(1, int(size)))
    try:
        while True:
            connection.next()
    except EOFError:
        print("complete and closed")


def read_eagerly(size):
    """A response of which each frame is acknowledged twice."""
    connection, read = Connection(), 0
    connection.send(get(1, f"/sized?{size}"))
    while read < int(size):
        kind, _, stream, payload = connection.next()
        assert kind != RST_STREAM and kind != GOAWAY, payload
        if (kind, stream) == (DATA, 1):
            read += len(payload)
            updates = window_update(0, len(payload)) + window_update(1, len(payload))
            connection.send(updates + frame(PING, 0, 0, bytes(8)))
    print("complete")


def ping_on():
    """An idle connection with a PING each 50 ms, for at most five seconds."""
    connection = Connection()
    connection.tls.settimeout(0.05)
    for _ in range(100):
        connection.send(frame(PING, 0, 0, bytes(8)))
        try:
            print(connection.answer(1))
            return
        except TimeoutError:
            pass
    print("open")


FLOODS = {
    "window-update": lambda _: window_update(0, 1),
    "priority": lambda _: frame(PRIORITY, 0, 1, bytes(4) + b"\x10"),
    "settings": lambda _: frame(SETTINGS, 0, 0),
    "ping": lambda _: frame(PING, 0, 0, bytes(8)),
    "unknown": lambda _: frame(UNKNOWN, 0, 0, bytes(20)),
    "reset": lambda n: get(2 * n + 3, "/stall") + frame(RST_STREAM, 0, 2 * n + 3, bytes(4)),
    "continuation": lambda n: frame(CONTINUATION if n else HEADERS, 0, 3, b"\0\1a\1b" * 10),
}


def flood(kind):
    """So many frames of a kind after an answered request."""
    connection = Connection()
    connection.send(get(1, "/here"))
    assert connection.answer(1) == "here"
    frames = [FLOODS[kind](n) for n in range(3000)]
    try:
        for part in range(0, len(frames), 100):
            connection.send(b"".join(frames[part : part + 100]))
    except OSError:
        pass
    try:
        print(connection.answer(1))
    except (OSError, EOFError) as error:
        print(repr(error))


resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
globals()[sys.argv[4]](*sys.argv[5:])
