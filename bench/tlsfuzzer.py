#!/usr/bin/env python3
"""Runs tlsfuzzer's public scripts against `sessile serve`, a server of rustls alone, and nginx.

tlsfuzzer is not part of this project. Give the folder of a checkout, and run this file with a
Python that has tlslite-ng and ecdsa. `docs/conformance.md` explains the results.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

# The scripts that run at once.
JOBS = 2

# Seconds that one script may take.
SCRIPT_DEADLINE = 240

# Seconds that a server may take to listen.
START_DEADLINE = 10

# Most conversations of one script; a script draws them with the fixed seed in RUN.
MOST = 30

# What the servers answer to every request.
ANSWER = "hello\\n"

# The scripts with their arguments. `@ecdsa` and `@client` name the port, else it is the RSA one.
# GCM and GCM-ECDSA stand for a suite, KEY and KEY-ECDSA for the client's key and certificate. A
# script with ALL has no option for the number of conversations.
LIST = """
aes_gcm_nonces -d -C GCM
alpn_negotiation -d
ccs -d -C GCM
client_compatibility -d
client_hello_max_size -d
conversation -d -C GCM
conversation @ecdsa -d -C GCM-ECDSA
cve_2004_0079 -C GCM -g secp256r1
cve_2016_6309 -d -C GCM
downgrade_protection -d --server-max-protocol=TLSv1.3
early_application_data -d -C GCM
ecdhe_rsa_key_exchange_with_bad_messages -C GCM
ecdsa_sig_flexibility @ecdsa -C GCM-ECDSA
export_ciphers_rejected -d --min-ver=TLSv1.2
extended_master_secret_extension -d
fallback_scsv -d --tls-1.3
fuzzed_ciphertext -d -C GCM
hello_request_by_client -d -C GCM
interleaved_CKE_with_CCS -C GCM
invalid_client_hello_w_record_overflow -d -C GCM
invalid_compression_methods -d -C GCM
invalid_content_type -d -C GCM
invalid_server_name_extension -d
invalid_server_name_extension_resumption -d
large_hello -d
large_number_of_extensions -d
legacy_renegotiation -d
message_skipping -d
no_heartbeat -d
no_mlkem_in_old_tls -d -C GCM
ocsp_stapling -d --no-status
record_layer_fragmentation -d -C GCM
renegotiation_disabled -d -C GCM
resumption_with_wrong_ciphers -d
sessionID_resumption -d
session_ticket_resumption -d --no-new-ticket-on-resumption
sig_algs
sig_algs_renegotiation_resumption -d --no-renego
signature_algorithms
signature_algorithms @ecdsa --ecdsa
ssl_death_alert -d
sslv2hello_protocol -d --no-ssl2
truncating_of_client_hello -d -C GCM
version_numbers -d -C GCM
x25519
zero_length_data -d -C GCM
certificate_malformed @client -d -C GCM KEY
certificate_request @client -d -C GCM KEY
certificate_verify @client -d -C GCM KEY
certificate_verify_malformed @client -d -C GCM KEY
certificate_verify_malformed_sig @client -d KEY
ecdsa_in_certificate_verify @client KEY-ECDSA
extended_master_secret_extension_with_client_cert @client ALL -d KEY
renegotiation_disabled_client_cert -d -C GCM KEY
rsa_sigs_on_certificate_verify @client -d KEY
tls13_certificate_request @client ALL KEY
tls13_certificate_verify @client KEY
tls13_ecdsa_in_certificate_verify @client KEY-ECDSA
tls13_0rtt_garbage
tls13_ccs
tls13_certificate_compression
tls13_conversation
tls13_count_tickets
tls13_crfg_curves
tls13_ecdhe_curves
tls13_ecdsa_support @ecdsa
tls13_empty_alert
tls13_ffdhe_groups
tls13_ffdhe_sanity
tls13_finished
tls13_finished_plaintext
tls13_hrr
tls13_invalid_ciphers
tls13_keyshare_omitted
tls13_keyupdate
tls13_large_number_of_extensions --exc 58 --exc 65037
tls13_legacy_version
tls13_mlkem
tls13_multiple_ccs_messages
tls13_no_unknown_groups
tls13_nociphers
tls13_obsolete_curves
tls13_pkcs_signature
tls13_record_layer_limits
tls13_record_padding
tls13_rsa_signatures
tls13_session_resumption
tls13_signature_algorithms
tls13_symetric_ciphers
tls13_unencrypted_alert
tls13_unrecognised_groups
tls13_version_negotiation -d -C GCM
tls13_zero_content_type
tls13_zero_length_data
"""

# What stands for more in LIST.
SHORT = {
    "GCM": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
    "GCM-ECDSA": ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
    "KEY": ["-k", "client.key", "-c", "client.pem"],
    "KEY-ECDSA": ["-k", "client-ecdsa.key", "-c", "client-ecdsa.pem"],
}

# Starts one script. Scripts that are bound to CBC suites get the AES-GCM suites of the same key
# exchange instead. The seed makes each server see the same conversations of a script that draws.
RUN = """
import random, runpy, sys
from tlslite.constants import CipherSuite
for key in ("RSA", "ECDSA"):
    gcm = getattr(CipherSuite, "TLS_ECDHE_%s_WITH_AES_128_GCM_SHA256" % key)
    for cbc in ("AES_128_CBC_SHA", "AES_128_CBC_SHA256"):
        if hasattr(CipherSuite, "TLS_ECDHE_%s_WITH_%s" % (key, cbc)):
            setattr(CipherSuite, "TLS_ECDHE_%s_WITH_%s" % (key, cbc), gcm)
random.sample = random.Random(9846).sample
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def scripts():
    """The lines of LIST: what a table calls it, module, port, arguments."""
    for line in LIST.strip().splitlines():
        name, *rest = line.split()
        kind = "rsa"
        if rest and rest[0].startswith("@"):
            kind = rest.pop(0)[1:]
        arguments = [part for word in rest for part in SHORT.get(word, [word])]
        yield line, f"test_{name}", kind, arguments


class Servers:
    """One server program on three ports: RSA, ECDSA, and client certificates on RSA."""

    KINDS = ("rsa", "ecdsa", "client")

    def __init__(self, name, state):
        self.name = name
        self.folder = state / name
        self.folder.mkdir()
        self.state = state
        self.ports = dict(zip(self.KINDS, free_ports(3)))
        self.processes = []

    def start(self, program):
        getattr(self, "start_" + self.name)(program)
        for port in self.ports.values():
            wait_for(port)

    def spawn(self, *command):
        log = open(self.folder / "log", "ab")
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(process)

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(10)

    def certificate(self, kind):
        key = "ecdsa" if kind == "ecdsa" else "rsa"
        return str(self.state / f"{key}.pem"), str(self.state / f"{key}.key")

    def start_rustls(self, program):
        for kind, port in self.ports.items():
            command = [program, f"127.0.0.1:{port}", *self.certificate(kind)]
            if kind == "client":
                command.append(str(self.state / "authority.pem"))
            self.spawn(*command)

    def start_sessile(self, program):
        for kind, port in self.ports.items():
            chain, key = self.certificate(kind)
            clients = ""
            if kind == "client":
                authority = self.state / "authority.pem"
                clients = f'client-auth = {{ mode = "optional", ca = "{authority}" }}\n'
            config = self.folder / f"{kind}.toml"
            config.write_text(
                f'[server]\nstate-dir = "{self.folder / kind}"\n\n'
                f'[connection]\nmax-hello-size = "64KiB"\n\n'
                f'[[listener]]\naddress = "127.0.0.1:{port}"\nrole = "serve"\n\n'
                f'[[site]]\ncertificates = [{{ chain = "{chain}", key = "{key}" }}]\n{clients}\n'
                f'[[site.route]]\npath = "/"\nrespond = "{ANSWER}"\n'
            )
            (self.folder / kind).mkdir()
            self.spawn(program, "serve", "--config", str(config))

    def start_nginx(self, program):
        sites = ""
        for kind, port in self.ports.items():
            chain, key = self.certificate(kind)
            clients = ""
            if kind == "client":
                clients = (
                    f"ssl_verify_client optional; "
                    f"ssl_client_certificate {self.state / 'authority.pem'};"
                )
            sites += (
                f"server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {chain}; "
                f"ssl_certificate_key {key}; {clients} "
                f'location / {{ return 200 "{ANSWER}"; }} }}\n'
            )
        config = self.folder / "nginx.conf"
        config.write_text(
            f"daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off; default_type text/plain;\n"
            f"ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:all:1m;\n{sites}}}\n"
        )
        self.spawn(program, "-p", str(self.folder), "-c", str(config))


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(port):
    end = time.monotonic() + START_DEADLINE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def make_certificates(state):
    """Keys and certificates: one server for each key type, and a client of one authority."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=state, check=True, capture_output=True)

    (state / "client.ext").write_text("basicConstraints = CA:FALSE\n")
    rsa, ecdsa = ["rsa:2048"], ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    for name, kind in ("rsa", rsa), ("ecdsa", ecdsa), ("authority", rsa):
        openssl(
            "req", "-x509", "-newkey", *kind, "-nodes", "-days", "30", "-subj", f"/CN={name}",
            "-addext", "subjectAltName = DNS:localhost", "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )
    for name, kind in ("client", rsa), ("client-ecdsa", ecdsa):
        openssl(
            "req", "-newkey", *kind, "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
            "-out", f"{name}.csr",
        )
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey", "authority.key",
            "-CAcreateserial", "-days", "30", "-extfile", "client.ext", "-out", f"{name}.pem",
        )


def run_script(folder, name, arguments, port, most, state):
    """Conversations in order: (name, True if it passed, the last line of its error)."""
    environment = dict(os.environ, PYTHONPATH=str(folder), PYTHONHASHSEED="0")
    command = [sys.executable, "-c", RUN, f"tlsfuzzer._apps.{name}", "-h", "127.0.0.1"]
    command += ["-p", str(port)]
    if "ALL" not in arguments:
        command += ["-n", str(most)]
    command += [each for each in arguments if each != "ALL"]
    try:
        done = subprocess.run(
            command, cwd=state, env=environment, timeout=SCRIPT_DEADLINE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        output = expired.output or b""
    return conversations(output.decode(errors="replace"))


def conversations(output):
    found, name, passed, error = [], None, False, ""
    for line in output.splitlines():
        if line.endswith(" ...") or line == "Test end":
            if name is not None:
                found.append((name, passed, "" if passed else error))
            name, passed, error = line.removesuffix(" ..."), False, ""
        elif line in ("OK", "OK-expected failure"):
            passed = True
        elif line.startswith(("AssertionError", "ConnectionError", "TypeError", "ValueError")):
            error = line
        elif re.match(r"\w+(\.\w+)*(Error|Alert|Exception|timeout)\b", line):
            error = line
    if name not in (None, "Test end"):
        found.append((name, passed, error or "the script did not end"))
    if name is None:
        found.append(("(start)", False, output.strip().splitlines()[-1] if output.strip() else ""))
    return found


def run_all(folder, servers, only, most):
    """Runs each script against each server; returns {script: {server: conversations}}."""
    results = {}
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        futures = {}
        for line, name, kind, arguments in scripts():
            if only and not any(part in line for part in only):
                continue
            for server in servers:
                future = pool.submit(
                    run_script, folder, name, arguments, server.ports[kind], most, server.state
                )
                futures[future] = (line, server.name)
        for future in concurrent.futures.as_completed(futures):
            label, server = futures[future]
            results.setdefault(label, {})[server] = future.result()
            passed = sum(each[1] for each in future.result())
            print(f"{server:8} {passed:4}/{len(future.result()):4} {label}", file=sys.stderr)
    return results


def print_table(results, servers):
    names = [server.name for server in servers]
    print("| script | conversations | " + " | ".join(names) + " |")
    print("|---|--:|" + "--:|" * len(names))
    sums = dict.fromkeys(names, 0)
    total = 0
    for label in sorted(results):
        by_server = results[label]
        count = max(len(each) for each in by_server.values())
        total += count
        cells = []
        for name in names:
            passed = sum(each[1] for each in by_server[name])
            sums[name] += passed
            cells.append(str(passed))
        print(f"| {label} | {count} | " + " | ".join(cells) + " |")
    print(f"| all | {total} | " + " | ".join(str(sums[name]) for name in names) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="a checkout of tlsfuzzer")
    parser.add_argument("--sessile", help="the program sessile")
    parser.add_argument("--rustls", help="the program bare_rustls of this folder")
    parser.add_argument("--nginx", help="the program nginx")
    parser.add_argument("--only", action="append", help="a part of a script's name")
    parser.add_argument("--most", type=int, default=MOST, help="conversations of one script")
    parser.add_argument("--json", type=pathlib.Path, help="a file for each conversation's result")
    options = parser.parse_args()
    state = pathlib.Path(tempfile.mkdtemp(prefix="tlsfuzzer-"))
    servers = []
    try:
        make_certificates(state)
        for name in "sessile", "rustls", "nginx":
            if program := getattr(options, name):
                servers.append(Servers(name, state))
                servers[-1].start(program)
        results = run_all(options.folder.resolve(), servers, options.only, options.most)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(state)
    print_table(results, servers)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
