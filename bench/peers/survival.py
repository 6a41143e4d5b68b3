"""Which clients resume after which event: with the defaults of each server, and with its best configuration."""

import signal
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from process import CLIENT_CPU, Commanded, Program, free_port
from servers import DEFAULT, FARM, FILE

CLIENTS = 20
KINDS = ("psk13", "id12", "ticket12")
EVENTS = ("nothing", "reload", "restart", "kill", "other server", "new ticket key")
# Some servers read their ticket keys after they begin to listen.
START_SECONDS = 0.5
# Enough for the longest reload: old processes end, and new ones accept connections.
RELOAD_SECONDS = 1.5


def measure_survival(bench, servers, results):
    port = free_port()
    folder = bench.folder / "redis"
    folder.mkdir()
    redis = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    with Program("Redis", redis, port, CLIENT_CPU, log=folder / "log"):
        for server in servers:
            for sessions in (DEFAULT, FARM):
                print(f"survival: {server.name}, {sessions}", flush=True)
                for event in EVENTS:
                    if can(server, sessions, event):
                        results.measure("survival", f"{sessions}: {event}", server.name,
                                        partial(survive, bench, server, sessions, event, port))


def can(server, sessions, event):
    """Returns false if a server has no way to do this."""
    if server.family == "hitch" and (sessions == FARM or event == "new ticket key"):
        # hitch has no settings for sessions.
        return False
    if event == "reload":
        return server.family != "h2o"
    if event == "new ticket key" and server.family != "sessile":
        # Caddy changes its keys by itself.
        return sessions == FARM and server.family != "caddy"
    return True


def survive(bench, server, sessions, event, store):
    """Percent of the clients that resume, for each of the kinds."""
    bench.order_ticket_keys((1, 2))
    name = f"{server.name}-{sessions}-{event}".replace(" ", "-")
    with ExitStack() as stack:
        program, place = server.start(bench.place(f"{name}-1", sessions=sessions, store=store))
        stack.callback(lambda: program.stop())
        time.sleep(START_SECONDS)
        loads = [stack.enter_context(Commanded(*bench.load(kind, CLIENTS, server.paths[0]))) for kind in KINDS]
        for load in loads:
            answer = load.ask(f"run {CLIENTS} {program.port}")
            if "failed 0" not in answer:
                raise RuntimeError(f"{server.name}: {answer}")
        if event == "other server":
            other, _ = server.start(bench.place(f"{name}-2", sessions=sessions, store=store))
            stack.callback(other.stop)
            time.sleep(START_SECONDS)
            port = other.port
        else:
            program = happen(bench, server, program, place, event)
            port = program.port
        answers = [load.ask(f"run {CLIENTS} {port}").split() for load in loads]
        return [round(100 * int(answer[3]) / CLIENTS) for answer in answers]


def happen(bench, server, program, place, event):
    """Makes the event happen. Returns the program that now listens."""
    if event == "reload":
        return reload(server, program, place)
    if event == "restart":
        program.stop()
        program.start()
        time.sleep(START_SECONDS)
    elif event == "kill":
        program.kill()
        program.start()
        time.sleep(START_SECONDS)
    elif event == "new ticket key":
        return change_key(bench, server, program, place)
    return program


def reload(server, program, place):
    if server.family in ("haproxy", "envoy"):
        # A new process takes over, and the old one ends.
        successor, _ = server.start(replace(place, pid=program.process.pid))
        time.sleep(RELOAD_SECONDS)
        program.stop()
        return successor
    if server.family == "caddy":
        request = urllib.request.Request(
            f"http://127.0.0.1:{place.admin_port}/load", (place.folder / "config").read_bytes(),
            {"Content-Type": "application/json", "Cache-Control": "must-revalidate"})
        urllib.request.urlopen(request).close()
    else:
        program.signal(signal.SIGHUP)
    time.sleep(RELOAD_SECONDS)
    return program


def change_key(bench, server, program, place):
    """The new key encrypts new tickets, and the old key still opens old tickets."""
    if server.family == "sessile":
        for option in ((), ("--activate",)):
            subprocess.run([*server.binary, "key", "rotate", *option, "--config", place.folder / "config"],
                           check=True, capture_output=True)
            reload(server, program, place)
        return program
    bench.order_ticket_keys((3, 1))
    if server.family == "h2o":
        # h2o reads its file of keys again every ten seconds.
        time.sleep(11)
        return program
    return reload(server, program, place)
