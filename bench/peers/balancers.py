"""Balancers that pass TLS connections on without decrypting them: configurations and measurements."""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from process import CLIENT_CPU, Commanded, Program, free_port
from servers import FARM, FILE, all_servers

AT_ONCE = (1, 4, 16)
SHORT, LONG = 600, 256 << 20    # bytes of a response
WARM_UP = 200
IDLE_SETTLE_SECONDS = 1


@dataclass(frozen=True)
class Balancer:
    name: str
    family: str
    server: object          # the server of the same program, for its command
    splice: bool = False

    def config(self, folder, port, servers):
        if self.family == "sessile":
            head = (f'key.file = "none"\n[server]\nworkers = 1\nstate-dir = "{folder}"\n[log]\nlevel = "error"\n'
                    f'access = "off"\n[[listener]]\naddress = "127.0.0.1:{port}"\nrole = "balance"\n'
                    f'[balance]\npolicy = "round-robin"\n')
            return head + "".join(f'[[balance.server]]\nname = "s{at}"\naddress = "127.0.0.1:{server}"\n'
                                  for at, server in enumerate(servers))
        if self.family == "haproxy":
            splice = "  option splice-auto\n" if self.splice else ""
            return (f"global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n"
                    f"  timeout client 1h\n  timeout server 1h\nfrontend in\n  bind 127.0.0.1:{port}\n"
                    f"  default_backend farm\nbackend farm\n  balance roundrobin\n{splice}"
                    + "".join(f"  server s{at} 127.0.0.1:{server}\n" for at, server in enumerate(servers)))
        module = self.server.binary[-1]
        modules = os.path.normpath(os.path.join(os.path.dirname(module), "../lib/nginx/modules"))
        return f"""load_module {modules}/ngx_stream_module.so;
daemon off; user root; worker_processes 1; worker_rlimit_nofile 20000; error_log stderr crit; pid {folder}/nginx.pid;
events {{ worker_connections 16384; }}
stream {{
  upstream farm {{ {" ".join(f"server 127.0.0.1:{server};" for server in servers)} }}
  server {{
    listen 127.0.0.1:{port}; ssl_preread on; proxy_pass farm; proxy_timeout 1h; proxy_half_close on;
  }}
}}
"""

    def start(self, bench, servers):
        port = free_port()
        folder = bench.folder / f"balancer-{port}"
        folder.mkdir()
        file = folder / "config"
        file.write_text(self.config(folder, port, servers))
        command = self.server.command(replace(bench.place("unused"), port=port), file)
        if self.family == "sessile":
            command = [*self.server.binary, "balance", "--config", file]
        return Program(self.name, command, port, log=folder / "log")


def all_balancers(root, sessile):
    servers = {server.name: server for server in all_servers(root, sessile)}
    return [
        Balancer("sessile", "sessile", servers["sessile"]),
        Balancer("nginx", "nginx", servers["nginx"]),
        Balancer("HAProxy", "haproxy", servers["HAProxy"]),
        Balancer("HAProxy, splice-auto", "haproxy", servers["HAProxy"], splice=True),
        Balancer("nginx stable", "nginx", servers["nginx stable"]),
        Balancer("HAProxy stable", "haproxy", servers["HAProxy stable"]),
    ]


def openssl(bench, program, at_once, count):
    """µs of processor time a connection with a client that uses OpenSSL, and nginx behind the balancer."""
    with Commanded(*bench.load("psk13", at_once, FILE)) as load:
        load.ask(f"run {at_once} {program.port}")
        load.ask(f"run {WARM_UP} {program.port}")
        before = program.cpu_seconds()
        answer = load.ask(f"run {count} {program.port}")
        spent = program.cpu_seconds() - before
        if f"resumed {count} failed 0" not in answer:
            raise RuntimeError(f"{program.name}: {answer}")
        return spent / count * 1e6


def replayed(bench, program, at_once, count, length):
    """µs of processor time a connection with recorded bytes."""
    with Commanded(*bench.replay("client", at_once)) as client:
        client.ask(f"run {WARM_UP} {program.port} {SHORT}")
        before = program.cpu_seconds()
        client.ask(f"run {count} {program.port} {length}")
        return (program.cpu_seconds() - before) / (count // at_once * at_once) * 1e6


def gibibyte(bench, program):
    """Milliseconds of processor time a GiB."""
    return replayed(bench, program, 1, (1 << 30) // LONG, LONG) * ((1 << 30) // LONG) / 1e3


def idle(bench, balancer, server, count):
    """KiB of memory (PSS) that each idle connection adds to a new process."""
    with balancer.start(bench, [server]) as program, Commanded(*bench.replay("client", 1)) as client:
        client.ask(f"open {WARM_UP} {program.port}")
        time.sleep(IDLE_SETTLE_SECONDS)
        before = program.memory_bytes()
        client.ask(f"open {count} {program.port}")
        time.sleep(IDLE_SETTLE_SECONDS)
        return (program.memory_bytes() - before) / count / 1024


def replay_server(bench, mode):
    port = free_port()
    return Program(f"replay {mode}", bench.replay(mode, port), port, CLIENT_CPU)


def measure_balancers(bench, root, options, results):
    balancers = all_balancers(root, options.sessile)
    nginx = all_servers(root, options.sessile)[1]
    with ExitStack() as stack:
        servers = [stack.enter_context(nginx.start(bench.place(f"behind-{at}", sessions=FARM))[0]) for at in range(2)]
        for program in servers:
            program.move(CLIENT_CPU)
        recorded = [stack.enter_context(replay_server(bench, "server")) for _ in range(2)]
        idle_server = stack.enter_context(replay_server(bench, "idle-server"))

        def start_all(behind):
            ports = [program.port for program in behind]
            return [(balancer, stack.enter_context(balancer.start(bench, ports))) for balancer in balancers]

        real, bare = start_all(servers), start_all(recorded)
        for turn in range(options.rounds):
            print(f"balancers, round {turn + 1} of {options.rounds}", flush=True)
            measure_round(bench, real, bare, options.connections, results)
        for balancer in balancers:
            results.measure("balancers", "idle connection, KiB", balancer.name,
                            partial(idle, bench, balancer, idle_server.port, options.idle))


def measure_round(bench, real, bare, count, results):
    for at_once in AT_ONCE:
        for balancer, program in real:
            results.measure("balancers", f"OpenSSL client, {at_once} at a time, µs", balancer.name,
                            partial(openssl, bench, program, at_once, count))
    for at_once in AT_ONCE:
        for balancer, program in bare:
            results.measure("balancers", f"recorded bytes, {at_once} at a time, µs", balancer.name,
                            partial(replayed, bench, program, at_once, count, SHORT))
    for balancer, program in bare:
        results.measure("balancers", "1 GiB in four responses, ms", balancer.name, partial(gibibyte, bench, program))
