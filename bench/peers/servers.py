"""The TLS servers that are compared: configurations, commands and versions.

Each server answers /small.txt from a file, /text from memory, /proxy through the plain upstream, and
/big.bin from a file, if it can. All use the same P-256 certificate, one worker, and no access log."""

import json
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from process import Program, free_port

FILE, TEXT, PROXY, BIG = "/small.txt", "/text", "/proxy", "/big.bin"
BODY = ("sessile keeps TLS sessions attached to a web farm. " * 21)[:1023] + "\n"
BIG_BYTES = 64 << 20


# The server's own defaults; every way to resume at one server; every way to resume at a farm of servers.
DEFAULT, ALONE, FARM = "default", "alone", "farm"


@dataclass(frozen=True)
class Place:
    """Files and addresses that the configurations of one server need."""
    folder: Path            # of this server: configuration, state, log
    shared: Path            # of all servers: cert.pem, key.pem, both.pem, www, ticket keys
    upstream: int           # the port of the plain upstream
    port: int = 0
    admin_port: int = 0
    sessions: str = ALONE   # how the server is configured for resumption
    store: int = 0          # the port of the shared store, for sessile in a farm
    pid: int = 0            # of the process that a new process replaces


def sid(root, program):
    """The command for a program of Debian sid: with sid's libraries, but without a chroot."""
    tree = root / "sid"
    return [tree / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", tree / "usr/lib/x86_64-linux-gnu",
            tree / "usr/sbin" / program]


def nginx_config(place, new):
    listen_h2 = "" if new else " http2"
    http2 = "http2 on;" if new else ""
    cache = "ssl_session_cache shared:sessions:10m; ssl_session_timeout 10h;"
    tickets = f"ssl_session_ticket_key {place.shared}/tickets.1; ssl_session_ticket_key {place.shared}/tickets.2;"
    return f"""daemon off; user root;
worker_processes 1; worker_rlimit_nofile 20000;
error_log stderr crit; pid {place.folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; server_tokens off; default_type text/plain;
  client_body_temp_path {place.folder}; proxy_temp_path {place.folder}; fastcgi_temp_path {place.folder};
  uwsgi_temp_path {place.folder}; scgi_temp_path {place.folder};
  keepalive_timeout 300s; keepalive_requests 100000000;
  sendfile on; tcp_nopush on; open_file_cache max=1000 inactive=60s; open_file_cache_valid 30s;
  upstream plain {{ server 127.0.0.1:{place.upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{place.port} ssl{listen_h2}; {http2}
    ssl_certificate {place.shared}/cert.pem; ssl_certificate_key {place.shared}/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_ecdh_curve X25519:prime256v1;
    {cache if place.sessions != DEFAULT else ""} {tickets if place.sessions == FARM else ""}
    root {place.shared}/www;
    location = /text {{ return 200 "{BODY.strip()}\\n"; }}
    location = /proxy {{ proxy_pass http://plain; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def upstream_config(place):
    """nginx without TLS: the upstream of all proxies."""
    return f"""daemon off; user root; worker_processes 1; worker_rlimit_nofile 20000;
error_log stderr crit; pid {place.folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; default_type text/plain; keepalive_timeout 300s; keepalive_requests 100000000;
  client_body_temp_path {place.folder}; proxy_temp_path {place.folder}; fastcgi_temp_path {place.folder};
  uwsgi_temp_path {place.folder}; scgi_temp_path {place.folder};
  sendfile on; tcp_nopush on;
  server {{
    listen 127.0.0.1:{place.port}; root {place.shared}/www;
    location = /text {{ return 200 "{BODY.strip()}\\n"; }}
    location = /proxy {{ return 200 "{BODY.strip()}\\n"; }}
  }}
}}
"""


def haproxy_config(place):
    # With a key file, HAProxy sends no new TLS 1.3 tickets to clients that resume. So only farms have one.
    tickets = f" tls-ticket-keys {place.shared}/tickets.haproxy" if place.sessions == FARM else ""
    return f"""global
  nbthread 1
  maxconn 8192
  ssl-default-bind-options ssl-min-ver TLSv1.2
  ssl-default-bind-curves X25519:P-256
defaults
  mode http
  timeout client 300s
  timeout http-keep-alive 300s
  timeout http-request 300s
  timeout server 300s
  timeout connect 5s
frontend bench
  bind 127.0.0.1:{place.port} ssl crt {place.shared}/both.pem alpn h2,http/1.1{tickets}
  http-request return status 200 content-type text/plain file {place.shared}/www/small.txt if {{ path /text }}
  default_backend plain
backend plain
  http-reuse always
  server plain 127.0.0.1:{place.upstream}
"""


def envoy_config(place):
    def route(path, action):
        return {"match": {"path": path}, **action}

    body = {"status": 200, "body": {"filename": f"{place.shared}/www/small.txt"}}
    routes = [route(TEXT, {"direct_response": body}), route(PROXY, {"route": {"cluster": "plain"}})]
    api = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{api}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench", "codec_type": "AUTO", "delayed_close_timeout": "0s", "stream_idle_timeout": "0s",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": f"{api}.filters.http.router.v3.Router", "dynamic_stats": False,
            "suppress_envoy_headers": True}}],
    }
    tls = {
        "@type": f"{api}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3",
                           "ecdh_curves": ["X25519", "P-256"]},
            "tls_certificates": [{"certificate_chain": {"filename": f"{place.shared}/cert.pem"},
                                  "private_key": {"filename": f"{place.shared}/key.pem"}}],
        },
    }
    if place.sessions == FARM:
        keys = [{"filename": f"{place.shared}/tickets.{key}"} for key in (1, 2)]
        tls["session_ticket_keys"] = {"keys": keys}

    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    listener = {"name": "tls", "address": address(place.port), "filter_chains": [{
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "filters": [{"name": "http", "typed_config": manager}]}]}
    cluster = {"name": "plain", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
        "cluster_name": "plain", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": address(place.upstream)}}]}]}}
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)


def caddy_config(place):
    def route(path, handler):
        return {"match": [{"path": [path]}], "handle": [handler], "terminal": True}

    text = {"handler": "static_response", "status_code": 200, "body": BODY,
            "headers": {"Content-Type": ["text/plain"]}}
    proxy = {"handler": "reverse_proxy", "upstreams": [{"dial": f"127.0.0.1:{place.upstream}"}],
             "transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": 128}}}
    files = {"handler": "file_server", "root": f"{place.shared}/www"}
    server = {"listen": [f"127.0.0.1:{place.port}"], "protocols": ["h1", "h2"], "automatic_https": {"disable": True},
              "tls_connection_policies": [{"curves": ["x25519", "secp256r1"]}],
              "routes": [route(TEXT, text), route(PROXY, proxy), {"handle": [files]}]}
    tls = {"certificates": {"load_files": [{"certificate": f"{place.shared}/cert.pem",
                                            "key": f"{place.shared}/key.pem"}]}}
    storage = place.shared if place.sessions == FARM else place.folder
    if place.sessions == FARM:
        tls["session_tickets"] = {"key_source": {"provider": "distributed"}}
    return json.dumps({
        "admin": {"listen": f"127.0.0.1:{place.admin_port}"},
        "storage": {"module": "file_system", "root": str(storage / "caddy")},
        "logging": {"logs": {"default": {"level": "ERROR"}}},
        "apps": {"tls": tls, "http": {"servers": {"bench": server}}}}, indent=1)


def h2o_config(place):
    tickets = "ticket-store: internal"
    if place.sessions == FARM:
        tickets = f"ticket-store: file, ticket-file: {place.shared}/tickets.h2o"
    sessions = f"ssl-session-resumption: {{ mode: all, cache-store: internal, {tickets} }}\n"
    return f"""user: root
num-threads: 1
max-connections: 10000
http1-request-timeout: 300
http2-idle-timeout: 300
error-log: {place.folder}/error.log
pid-file: {place.folder}/h2o.pid
{sessions if place.sessions != DEFAULT else ""}hosts:
  default:
    listen:
      host: 127.0.0.1
      port: {place.port}
      ssl: {{ certificate-file: {place.shared}/cert.pem, key-file: {place.shared}/key.pem, neverbleed: OFF }}
    paths:
      /proxy: {{ proxy.reverse.url: "http://127.0.0.1:{place.upstream}/proxy", proxy.timeout.keepalive: 60000 }}
      /: {{ file.dir: {place.shared}/www }}
"""


def hitch_config(place):
    return f"""frontend = "[127.0.0.1]:{place.port}"
backend = "[127.0.0.1]:{place.upstream}"
pem-file = "{place.shared}/both.pem"
workers = 1
backlog = 1024
daemon = off
quiet = on
user = "root"
tls-protos = TLSv1.2 TLSv1.3
alpn-protos = "http/1.1"
"""


def sessile_config(place):
    key = f"{place.shared if place.sessions == FARM else place.folder}/farm.key"
    store = f'store = "redis://127.0.0.1:{place.store}"\nstore-timeout = "1s"' if place.sessions == FARM else ""
    return f"""[server]
name = "{place.folder.name}"
state-dir = "{place.folder}"
workers = 1
[key]
file = "{key}"
[session]
{store}
[log]
level = "error"
access = "off"
[[listener]]
address = "127.0.0.1:{place.port}"
[[upstream]]
name = "plain"
servers = ["http://127.0.0.1:{place.upstream}"]
[[site]]
certificates = [{{ chain = "{place.shared}/cert.pem", key = "{place.shared}/key.pem" }}]
[[site.route]]
path = "/"
files = "{place.shared}/www"
[[site.route]]
path = "/text"
respond = {json.dumps(BODY)}
[[site.route]]
path = "/proxy"
proxy = "plain"
"""


@dataclass(frozen=True)
class Server:
    """A kind of server: what it can do, and how it starts."""
    name: str
    family: str             # sessile, nginx, haproxy, envoy, caddy, h2o or hitch
    binary: tuple           # the program, with the arguments that come before all others
    stable: bool = False    # from Debian stable
    # Paths that the server answers itself. The cost of hitch's upstream is not measured.
    paths: tuple = (FILE, TEXT, PROXY, BIG)
    http2: bool = True

    def version(self):
        """The version of the program, and of its OpenSSL."""
        flag = {"nginx": "-V", "haproxy": "-vv", "caddy": "version"}.get(self.family, "--version")
        done = subprocess.run([*map(str, self.binary), flag], capture_output=True, text=True)
        text = done.stdout + done.stderr
        number = re.search(r"\d+\.\d+\.\d+", text.replace("version: ", ""))
        libraries = re.findall(r"OpenSSL:? (\d\S+)", text)
        return number.group() + (f" (OpenSSL {libraries[-1]})" if libraries else "")

    def config(self, place):
        if self.family == "nginx":
            return nginx_config(place, not self.stable)
        return {"sessile": sessile_config, "haproxy": haproxy_config, "envoy": envoy_config, "caddy": caddy_config,
                "h2o": h2o_config, "hitch": hitch_config}[self.family](place)

    def command(self, place, file):
        return [*self.binary, *{
            "sessile": ("serve", "--config", file),
            "nginx": ("-e", "stderr", "-c", file),
            "haproxy": ("-db", "-f", file, *(("-sf", place.pid) if place.pid else ())),
            # A process with the next epoch takes over from the process with the same base ID.
            "envoy": ("-c", file, "--concurrency", "1", "-l", "off", "--base-id", place.port, "--restart-epoch",
                      1 if place.pid else 0, "--drain-time-s", "1", "--parent-shutdown-time-s", "1"),
            "caddy": ("run", "--config", file),
            "h2o": ("-m", "worker", "-c", file),
            "hitch": ("--config", file),
        }[self.family]]

    def start(self, place):
        """Starts the server. Without a port in `place`, it gets a free one."""
        place = replace(place, port=place.port or free_port(), admin_port=place.admin_port or free_port())
        place.folder.mkdir(parents=True, exist_ok=True)
        file = place.folder / "config"
        file.write_text(self.config(place))
        environment = {"GOMAXPROCS": "1", "HOME": str(place.folder)} if self.family == "caddy" else None
        return Program(self.name, self.command(place, file), place.port, environment=environment,
                       log=place.folder / "log"), place


def all_servers(root, sessile):
    plain = (TEXT, PROXY)
    return [
        Server("sessile", "sessile", (sessile,)),
        Server("nginx", "nginx", tuple(sid(root, "nginx"))),
        Server("HAProxy", "haproxy", tuple(sid(root, "haproxy")), paths=plain),
        Server("Envoy", "envoy", (root / "wheels/envoy/_bin/envoy",), paths=plain),
        Server("Caddy", "caddy", (root / "wheels/bin/caddy",)),
        Server("hitch", "hitch", tuple(sid(root, "hitch")), http2=False),
        Server("nginx stable", "nginx", ("/usr/sbin/nginx",), stable=True),
        Server("HAProxy stable", "haproxy", ("/usr/sbin/haproxy",), stable=True, paths=plain),
        Server("h2o", "h2o", ("/usr/bin/h2o",), stable=True, paths=(FILE, PROXY, BIG)),
    ]
