"""Programs under measurement: start, stop, signals, processor time and memory."""

import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

SERVER_CPU, CLIENT_CPU = 0, 1
START_SECONDS = 10
STOP_SECONDS = 5
# The kernel updates the processor time of a thread when the thread sleeps.
SETTLE_SECONDS = 0.05
OPEN_FILES = 20000


def raise_file_limit():
    """Lets this process and all programs that it starts open many files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
        return True
    except OSError:
        return False


class Program:
    """A running program on one processor that listens on a port of 127.0.0.1."""

    def __init__(self, name, command, port, cpu=SERVER_CPU, environment=None, log=None):
        self.name, self.command, self.port, self.cpu = name, [str(part) for part in command], port, cpu
        self.environment, self.log = environment, log
        self.start()

    def start(self):
        output = open(self.log, "ab") if self.log else subprocess.DEVNULL
        self.process = subprocess.Popen(
            ["taskset", "-c", str(self.cpu), *self.command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, **(self.environment or {})}, start_new_session=True)
        self.wait_until_listening()

    def wait_until_listening(self):
        deadline = time.monotonic() + START_SECONDS
        while not listens(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                log = Path(self.log).read_text(errors="replace")[-2000:] if self.log else ""
                raise RuntimeError(f"{self.name} does not start: {' '.join(self.command)}\n{log}")
            time.sleep(0.02)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def stop(self):
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self.kill()

    def kill(self):
        """Kills all processes of the program, such as nginx's workers."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def move(self, cpu):
        """Moves all processes of the program to another processor."""
        for process in self.processes():
            os.sched_setaffinity(process, {cpu})

    def processes(self):
        found, waiting = [], [self.process.pid]
        while waiting:
            parent = waiting.pop()
            found.append(parent)
            for task in Path(f"/proc/{parent}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        return found

    def cpu_seconds(self):
        """Processor time of all threads so far, kernel included."""
        time.sleep(SETTLE_SECONDS)
        nanoseconds = 0
        for process in self.processes():
            for task in Path(f"/proc/{process}/task").iterdir():
                nanoseconds += int((task / "schedstat").read_text().split()[0])
        return nanoseconds / 1e9

    def memory_bytes(self):
        """Memory of all processes. A page that processes share counts once (PSS)."""
        kilobytes = 0
        for process in self.processes():
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
        return kilobytes * 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Commanded:
    """A client program that reads commands from its standard input and answers each with one line."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            ["taskset", "-c", str(CLIENT_CPU), *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)

    def line(self):
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"{self.process.args[3]} ended without an answer")
        return answer

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.line()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
