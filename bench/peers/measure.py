"""Measurements of servers: new connections, kept connections, a proxy, long files, idle connections."""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from process import CLIENT_CPU, Commanded
from servers import BIG, BIG_BYTES, FILE, PROXY, TEXT

SLOTS = 8               # connections at a time
REQUESTS = 10           # requests on kept connections, for each new connection of a measurement
WARM_UP = 200           # connections or requests before each measurement
IDLE_SETTLE_SECONDS = 2

# The kind of `load`, the side that ends the connection, and the label.
KINDS = (
    ("full13", "client", "TLS 1.3, full"), ("psk13", "client", "TLS 1.3, resumed"),
    ("full12", "client", "TLS 1.2, full"), ("id12", "client", "TLS 1.2, session ID"),
    ("ticket12", "client", "TLS 1.2, ticket"), ("psk13", "server", "TLS 1.3, resumed, `Connection: close`"),
)
# The protocol, the streams of each connection, and the label.
PROTOCOLS = (("http/1.1", 1, "HTTP/1.1"), ("h2", 1, "HTTP/2"), ("h2", 10, "HTTP/2, 10 streams"))


def new_connections(bench, program, kind, path, end, count):
    """µs of processor time a connection, or None if the server does not resume in this way."""
    with Commanded(*bench.load(kind, SLOTS, path, end)) as load:
        expected = "full" if kind.startswith("full") else "resumed"
        load.ask(f"run {SLOTS} {program.port}")
        if f"{expected} {WARM_UP} " not in load.ask(f"run {WARM_UP} {program.port}"):
            return None
        before = program.cpu_seconds()
        answer = load.ask(f"run {count} {program.port}")
        spent = program.cpu_seconds() - before
        if f"{expected} {count} " not in answer:
            raise RuntimeError(f"{program.name}, {kind}, {path}: {answer}")
        return spent / count * 1e6


def h2load(bench, program, path, protocol, count, clients, streams):
    command = ["taskset", "-c", CLIENT_CPU, "h2load", "-n", count, "-c", clients, "-m", streams,
               f"--npn-list={protocol}", f"--connect-to=127.0.0.1:{program.port}",
               f"https://localhost:{program.port}{path}"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "OPENSSL_CONF": str(bench.folder / "openssl.cnf")})
    used = re.search(r"Application protocol: (\S+)", done.stdout)
    succeeded = re.search(r"(\d+) succeeded", done.stdout)
    answered = re.search(r"status codes: (\d+) 2xx", done.stdout)
    if not used or used.group(1) != protocol or {int(succeeded.group(1)), int(answered.group(1))} != {count}:
        raise RuntimeError(f"{program.name}, {path}: {done.stdout}{done.stderr}")


def kept_requests(bench, program, path, protocol, streams, count):
    """µs of processor time a request on open connections."""
    h2load(bench, program, path, protocol, WARM_UP, SLOTS, streams)
    before = program.cpu_seconds()
    h2load(bench, program, path, protocol, count, SLOTS, streams)
    return (program.cpu_seconds() - before) / count * 1e6


def bulk(bench, program, count):
    """Milliseconds of processor time a GiB."""
    h2load(bench, program, BIG, "http/1.1", 1, 1, 1)
    before = program.cpu_seconds()
    h2load(bench, program, BIG, "http/1.1", count, 1, 1)
    return (program.cpu_seconds() - before) / (count * BIG_BYTES / (1 << 30)) * 1e3


def idle(bench, server, protocol, path, count):
    """KiB of memory (PSS) that each idle connection adds to a new process."""
    program, _ = server.start(bench.place("idle-" + server.name.replace(" ", "-")))
    with program:
        with Commanded(*bench.load("full13", SLOTS, server.paths[0])) as load:
            load.ask(f"run {WARM_UP} {program.port}")
        time.sleep(IDLE_SETTLE_SECONDS / 2)
        before = program.memory_bytes()
        with Commanded(bench.folder / "idle", count, protocol, path or "none", program.port) as client:
            if client.line() != "ready":
                raise RuntimeError(f"{server.name}: no idle connections")
            time.sleep(IDLE_SETTLE_SECONDS)
            return (program.memory_bytes() - before) / count / 1024


@dataclass(frozen=True)
class Row:
    group: str
    label: str
    path: str
    measure: Callable       # of a bench and a running program
    http2: bool = False

    def has(self, server):
        return self.path in server.paths and (server.http2 or not self.http2)


def server_rows(count):
    rows = []
    for path, content in ((FILE, "file"), (TEXT, "text")):
        for kind, end, label in KINDS:
            rows.append(Row(f"new-{content}", label, path, partial(
                new_connections, kind=kind, path=path, end=end, count=count)))
    for path, content in ((FILE, "file"), (TEXT, "text"), (PROXY, "proxied text")):
        for protocol, streams, label in PROTOCOLS:
            rows.append(Row("proxy" if path == PROXY else "kept", f"{label}, {content}", path, partial(
                kept_requests, path=path, protocol=protocol, streams=streams, count=REQUESTS * count),
                protocol == "h2"))
    rows.append(Row("bulk", "64 MiB files", BIG, partial(bulk, count=8)))
    return rows


def measure_servers(bench, programs, options, results):
    """Measures the rows in interleaved rounds. `programs` are pairs of a server and its running program."""
    rows = [row for row in server_rows(options.connections) if options.wants(row.group)]
    for turn in range(options.rounds):
        print(f"servers, round {turn + 1} of {options.rounds}", flush=True)
        for row in rows:
            for server, program in programs:
                if row.has(server):
                    results.measure(row.group, row.label, server.name, partial(row.measure, bench, program))


def measure_idle(bench, servers, options, results):
    for protocol, name in (("http/1.1", "HTTP/1.1"), ("h2", "HTTP/2")):
        for asks, label in ((False, "before a request"), (True, "after a request on each")):
            print(f"idle connections, {name}, {label}", flush=True)
            for server in servers:
                if protocol == "http/1.1" or server.http2:
                    path = server.paths[0] if asks else None
                    results.measure("idle", f"{name}, {label}", server.name,
                                    partial(idle, bench, server, protocol, path, options.idle))
