"""Compares sessile with other TLS servers and balancers. docs/benchmarks.md says how to run it."""

import argparse
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import report
from balancers import measure_balancers
from bench import SOURCE, Bench
from measure import measure_idle, measure_servers
from process import raise_file_limit
from results import Results
from servers import all_servers
from survival import measure_survival

DOCS = SOURCE.parents[1] / "docs"
GROUPS = ("new-file", "new-text", "kept", "proxy", "bulk", "idle", "balancers", "survival")


@dataclass(frozen=True)
class Options:
    sessile: Path
    root: Path
    rounds: int
    connections: int
    idle: int
    only: tuple
    docs: Path

    def wants(self, group):
        return group in self.only


def read_options():
    parser = argparse.ArgumentParser(prog="bench/peers", description=__doc__)
    parser.add_argument("--sessile", type=Path, required=True, help="the program to measure")
    parser.add_argument("--root", type=Path, default=SOURCE.parents[1] / "target/peers",
                        help="the folder with the newest peers; it is prepared if it is missing (needs root)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=1000, help="connections of a measurement")
    parser.add_argument("--idle", type=int, default=2000, help="idle connections")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure only this group; may be repeated")
    parser.add_argument("--docs", type=Path, default=DOCS,
                        help="the folder of benchmarks.json, benchmarks.md and the charts")
    parser.add_argument("--report-only", action="store_true", help="measure nothing; write the documents again")
    given = parser.parse_args()
    only = () if given.report_only else tuple(given.only or GROUPS)
    return Options(given.sessile.resolve(), given.root.resolve(), given.rounds, given.connections, given.idle, only,
                   given.docs)


def measure(options, results):
    servers = all_servers(options.root, options.sessile)
    for server in servers:
        results.add_version(server.name, server.version())
    with tempfile.TemporaryDirectory() as folder, Bench(folder) as bench:
        if {"new-file", "new-text", "kept", "proxy", "bulk"} & set(options.only):
            with ExitStack() as stack:
                programs = [(server, stack.enter_context(server.start(bench.place(server.name.replace(" ", "-")))[0]))
                            for server in servers]
                measure_servers(bench, programs, options, results)
                results.save()
        if options.wants("idle"):
            measure_idle(bench, servers, options, results)
            results.save()
        if options.wants("balancers"):
            measure_balancers(bench, options.root, options, results)
            results.save()
        if options.wants("survival"):
            measure_survival(bench, servers, results)
            results.save()


def main():
    options = read_options()
    raise_file_limit()
    # End with an exception, so that all programs are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench/peers: stopped"))
    results = Results(options.docs / "benchmarks.json", {
        "rounds": options.rounds, "connections": options.connections, "idle": options.idle})
    if options.only:
        if not (options.root / "ready").exists():
            subprocess.run([SOURCE / "prepare.sh", options.root], check=True)
        measure(options, results)
    report.write(results, options.docs)
    for failure in results.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
