#!/usr/bin/env python3
"""Runs h2spec, a public test suite for HTTP/2 servers, against `sessile serve`.

h2spec is not part of this project. Give the folder of a checkout. It is built with Debian's packages
golang-go, golang-github-spf13-cobra-dev, golang-github-fatih-color-dev and golang-golang-x-net-dev.
`docs/conformance.md` explains the results.
"""

import argparse
import http.server
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

# Seconds that sessile may take to listen.
START_DEADLINE = 20

# Where Debian's packages put the source of Go libraries.
GO_LIBRARIES = "/usr/share/gocode"

BODY = b"h2spec needs a body of some length.\n" * 100


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.headers.get("Transfer-Encoding"):
            size = int(self.rfile.readline() or b"0", 16)
            self.rfile.read(size + 2)
            if size == 0:
                break
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(BODY)

    do_GET = do_HEAD = do_POST = answer


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Nothing: h2spec ends many requests early."""


def built(checkout, folder):
    """The program, built from a checkout without a download."""
    package = folder / "go/src/github.com/summerwind/h2spec"
    package.parent.mkdir(parents=True)
    package.symlink_to(checkout.resolve())
    program = folder / "h2spec"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": f"{folder}/go:{GO_LIBRARIES}"}
    subprocess.run(
        ["go", "build", "-o", program, "github.com/summerwind/h2spec/cmd/h2spec"],
        cwd=package, env=environment, check=True,
    )
    return program


def start(sessile, folder):
    """A server with a route of files and a route of an upstream, and its port."""
    (folder / "files").mkdir()
    (folder / "files/page.txt").write_bytes(BODY)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-keyout", folder / "key.pem", "-out", folder / "chain.pem"],
        check=True, capture_output=True,
    )
    upstream = Server(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    (folder / "sessile.toml").write_text(f"""
        key.file = "none"
        log.access = "off"
        [[listener]]
        address = "127.0.0.1:0"
        [[upstream]]
        name = "app"
        servers = ["http://127.0.0.1:{upstream.server_port}"]
        [[site]]
        certificates = [{{ chain = "{folder}/chain.pem", key = "{folder}/key.pem" }}]
        [[site.route]]
        path = "/files"
        files = "{folder}/files"
        [[site.route]]
        path = "/proxy"
        proxy = "app"
    """)
    log = open(folder / "sessile.log", "wb")
    server = subprocess.Popen(
        [sessile, "serve", "--config", folder / "sessile.toml"],
        stdout=log, stderr=log, env={**os.environ, "STATE_DIRECTORY": str(folder)},
    )
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline:
        said = (folder / "sessile.log").read_text()
        if found := re.search(r"serving address=\S*?:(\d+)", said):
            return server, found[1]
        time.sleep(0.05)
    server.kill()
    sys.exit(f"sessile does not start:\n{said}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("--sessile", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        h2spec = built(arguments.checkout, folder)
        server, port = start(arguments.sessile, folder)
        complete = True
        try:
            for path in ["/files/page.txt", "/proxy/page.txt"]:
                command = [h2spec, "-h", "127.0.0.1", "-p", port, "-t", "-k", "-P", path, "-o", "5"]
                ran = subprocess.run(command, capture_output=True, text=True)
                result = re.search(r"\d+ tests, (\d+) passed.*", ran.stdout)
                print(f"{path}: {result[0] if result else ran.stderr}")
                if ran.returncode:
                    complete = False
                    print(ran.stdout[ran.stdout.find("Failures:"):])
        finally:
            server.kill()
            server.wait()
    sys.exit(0 if complete else 1)


main()
