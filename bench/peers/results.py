"""The results of a run, kept in a JSON file: docs/benchmarks.json."""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

OURS = "sessile"
# hitch only ends TLS. The cost of the HTTP server behind it is not measured, so it is not compared.
NOT_COMPARED = (OURS, "hitch")


class Results:
    """Values by group, row and server. A group that is measured again replaces its old values."""

    def __init__(self, file, conditions):
        """`conditions` are the numbers of rounds and connections of this run."""
        self.file, self.conditions, self.failures = Path(file), conditions, []
        self.data = json.loads(self.file.read_text()) if self.file.exists() else {"groups": {}, "versions": {}}
        self.new = set()

    def add(self, group, row, server, value):
        if group not in self.new:
            self.new.add(group)
            self.data["groups"][group] = {"measured": measured() | self.conditions, "rows": {}}
        values = self.data["groups"][group]["rows"].setdefault(row, {}).setdefault(server, [])
        values.append(round(value, 3) if isinstance(value, float) else value)

    def measure(self, group, row, server, measurement):
        """Adds the result of a measurement. A failure is reported at the end of the run."""
        try:
            self.add(group, row, server, measurement())
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            self.failures.append(f"{server}, {row}: {error}")
            print(f"FAILED: {self.failures[-1]}", file=sys.stderr, flush=True)

    def add_version(self, server, version):
        self.data["versions"][server] = version

    def save(self):
        text = json.dumps(self.data, indent=1, ensure_ascii=False)
        self.file.write_text(compact_lists(text) + "\n")

    def group(self, name):
        return self.data["groups"].get(name)

    def rows(self, group):
        return (self.group(group) or {"rows": {}})["rows"]

    def median(self, group, row, server):
        """The median of all rounds, or None if the server cannot do this."""
        values = self.rows(group).get(row, {}).get(server, [])
        numbers = [value for value in values if value is not None]
        return statistics.median(numbers) if numbers else None

    def best_other(self, group, row, more_groups=()):
        """The lowest median of another server, in this group or in the same row of other groups."""
        found = []
        for name in (group, *more_groups):
            for server in self.rows(name).get(row, {}):
                value = self.median(name, row, server)
                if server not in NOT_COMPARED and value is not None:
                    found.append((value, server))
        return min(found, default=(None, None))

    def ratio_to(self, group, row, server):
        ours, other = self.median(group, row, OURS), self.median(group, row, server)
        return ours / other if ours is not None and other else None

    def ratio(self, group, row, more_groups=()):
        """sessile's median divided by the best median of another server, and the name of that server."""
        ours = self.median(group, row, OURS)
        best, name = self.best_other(group, row, more_groups)
        return (ours / best if ours is not None and best else None), name


def measured():
    cpus = [line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), "processor": cpus[0] if cpus else platform.machine(),
            "system": f"Linux {platform.release().split('-')[0]}"}


def compact_lists(text):
    """Puts each list of numbers on one line."""
    out, depth = [], 0
    for line in text.split("\n"):
        if depth:
            out[-1] += line.strip() + (" " if line.endswith(",") else "")
        else:
            out.append(line)
        depth += line.count("[") - line.count("]")
    return "\n".join(out)
