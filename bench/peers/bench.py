"""Files and programs that all measurements share: certificate, web folder, ticket keys, upstream, clients."""

import os
import secrets
import subprocess
from base64 import b64encode
from pathlib import Path

from process import CLIENT_CPU, Program, free_port
from servers import BIG_BYTES, BODY, Place, upstream_config

SOURCE = Path(__file__).resolve().parent
RECORDED = SOURCE.parents[1] / "proto/src/testdata"


class Bench:
    """A folder for one run, with the plain upstream running. It is a context manager."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.chmod(0o755)
        self.shared = self.folder / "shared"
        (self.shared / "www").mkdir(parents=True)
        (self.shared / "www/small.txt").write_text(BODY)
        (self.shared / "www/big.bin").write_bytes(os.urandom(1 << 20) * (BIG_BYTES >> 20))
        # sessile's cache takes a file that is over two seconds old.
        os.utime(self.shared / "www/small.txt", (1.7e9, 1.7e9))
        self.make_certificate()
        for number in (1, 2, 3):
            self.write_ticket_key(number)
        self.order_ticket_keys((1, 2))
        self.build_clients()

    def make_certificate(self):
        cert, key = self.shared / "cert.pem", self.shared / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", key, "-out", cert], check=True, capture_output=True)
        (self.shared / "both.pem").write_text(cert.read_text() + key.read_text())

    def write_ticket_key(self, number):
        (self.shared / f"key.{number}").write_bytes(secrets.token_bytes(80))

    def order_ticket_keys(self, numbers):
        """Writes the files of ticket keys. The first key encrypts, and the second only decrypts."""
        keys = [(self.shared / f"key.{number}").read_bytes() for number in numbers]
        for position, key in enumerate(keys, 1):
            (self.shared / f"tickets.{position}").write_bytes(key)
        # HAProxy encrypts with the last but one key of its file.
        spare = secrets.token_bytes(80)
        lines = [b64encode(key).decode() for key in (*reversed(keys[1:]), keys[0], spare)]
        (self.shared / "tickets.haproxy").write_text("\n".join(lines) + "\n")
        self.write_h2o_tickets(keys)

    def write_h2o_tickets(self, keys):
        """h2o's format: a list of keys with the times of their use."""
        entries = []
        for age, key in enumerate(keys):
            entries.append(
                f"- name: {key[:16].hex()}\n  cipher: AES-256-CBC\n  hash: SHA256\n"
                f"  key: {(key[16:] + key[:32]).hex()}\n"
                f"  not_before: {1_700_000_000 - age}\n  not_after: 4000000000\n")
        (self.shared / "tickets.h2o").write_text("".join(entries))

    def build_clients(self):
        for name, libraries in (("load", ["-lssl", "-lcrypto"]), ("idle", ["-lssl", "-lcrypto", "-lpthread"]),
                                ("replay", ["-lpthread"])):
            subprocess.run(["cc", "-O2", "-Wall", "-D_GNU_SOURCE", "-o", self.folder / name,
                            SOURCE / f"{name}.c", *libraries], check=True)
        # h2load gets the same suite and group as the other clients.
        (self.folder / "openssl.cnf").write_text(
            "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = defaults\n[defaults]\n"
            "Ciphersuites = TLS_AES_128_GCM_SHA256\nGroups = X25519\nMinProtocol = TLSv1.3\n")

    def place(self, name, **more):
        return Place(self.folder / name, self.shared, self.upstream.port, **more)

    def load(self, kind, slots, path, end="client"):
        return (self.folder / "load", kind, slots, path, end)

    def replay(self, *arguments):
        recorded = [RECORDED / f"{side}-openssl-tls13-resumed.bin" for side in ("client", "server")]
        return (self.folder / "replay", arguments[0], *recorded, *arguments[1:])

    def __enter__(self):
        folder = self.folder / "upstream"
        folder.mkdir()
        place = Place(folder, self.shared, 0, free_port())
        (folder / "config").write_text(upstream_config(place))
        command = ["/usr/sbin/nginx", "-e", "stderr", "-c", folder / "config"]
        self.upstream = Program("the upstream", command, place.port, CLIENT_CPU, log=folder / "log")
        return self

    def __exit__(self, *_):
        self.upstream.stop()
