//! Farms of Apache and Caddy that share sessions, and servers that do not speak HTTP.

use std::fs;
use std::process::Command;

use super::{Expected, Farm, ONE, Server, Sharing, caddy_codes};
use crate::peers::mail::PYTHON;
use crate::peers::{Certificates, Peer};

const TOGETHER: Sharing = Sharing::Groups(&[&[0, 1]]);
const MODULES: &str = "/usr/lib/apache2/modules";

/// Two Apache servers with one Redis, without tickets.
pub(crate) fn apache_sharing_redis() -> Farm {
    let certificates = Certificates::new();
    let redis = Peer::start("redis-server", |port| {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--port", &port.to_string()]);
        command.current_dir(certificates.folder());
        command
    });
    let start = |_| Server::Peer(apache(&certificates, &redis));
    let servers = (0..2).map(start).collect();
    let expected = Expected {
        session_id: TOGETHER,
        ticket: Sharing::NotOffered,
        psk: TOGETHER,
        // Without tickets, Apache stores TLS 1.3 sessions in the cache too.
        codes: &[],
    };
    let mut farm = Farm::new("Apache with Redis", certificates, servers, expected);
    farm.keep(Server::Peer(redis));
    farm
}

fn apache(certificates: &Certificates, redis: &Peer) -> Peer {
    Peer::start("apache2-bin", |port| {
        let folder = certificates.folder().join(format!("apache-{port}"));
        fs::create_dir_all(&folder).unwrap();
        let config = folder.join("httpd.conf");
        // Apache accepts a session only under the server name and port that it was made for.
        let text = format!(
            "ServerRoot {root}\nPidFile httpd.pid\nMutex file:{root} default\nServerName localhost\n\
             ErrorLog {root}/error.log\n\
             LoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
             LoadModule authz_core_module {MODULES}/mod_authz_core.so\n\
             LoadModule socache_redis_module {MODULES}/mod_socache_redis.so\n\
             LoadModule ssl_module {MODULES}/mod_ssl.so\n\
             Listen 127.0.0.1:{port}\nSSLSessionCache redis:{redis}\n\
             <VirtualHost *:{port}>\n\
             ServerName farm.test:443\nSSLEngine on\nSSLProtocol -all +TLSv1.2 +TLSv1.3\nSSLSessionTickets off\n\
             SSLCertificateFile {chain}\nSSLCertificateKeyFile {key}\nDocumentRoot {root}\n\
             </VirtualHost>\n",
            root = folder.display(),
            redis = redis.address(),
            chain = certificates.chain.display(),
            key = certificates.key.display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/sbin/apache2");
        command.args(["-X", "-f"]).arg(&config);
        command
    })
}

/// Two Caddy servers with one storage, where they share their ticket keys.
pub(crate) fn caddy_sharing_keys() -> Farm {
    let certificates = Certificates::new();
    let folder = certificates.folder();
    let start = |_| {
        Server::Peer(Peer::start("caddy", |port| {
            let config = folder.join(format!("caddy-{port}.json"));
            let text = serde_json::json!({
                "admin": { "disabled": true },
                "storage": { "module": "file_system", "root": folder.join("storage") },
                "apps": {
                    "tls": {
                        "certificates": { "load_files": [
                            { "certificate": certificates.chain, "key": certificates.key }
                        ] },
                        "session_tickets": { "key_source": { "provider": "distributed" } },
                    },
                    "http": { "servers": { "farm": {
                        "listen": [format!("127.0.0.1:{port}")],
                        "automatic_https": { "disable": true },
                        "tls_connection_policies": [{}],
                        "routes": [{ "handle": [
                            { "handler": "static_response", "status_code": 204 }
                        ] }],
                    } } },
                },
            });
            fs::write(&config, text.to_string()).unwrap();
            let mut command = Command::new("caddy");
            command.args(["run", "--config"]).arg(&config);
            command.env("HOME", folder);
            command
        }))
    };
    let servers = (0..2).map(start).collect();
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: TOGETHER,
        psk: TOGETHER,
        // Both servers read the ticket keys in the storage.
        codes: caddy_codes(),
    };
    Farm::new("Caddy with shared keys", certificates, servers, expected)
}

/// A server of gRPC. Its arguments are the port, the certificate chain and the key.
const GRPC: &str = "\
import grpc, sys
from concurrent.futures import ThreadPoolExecutor
[port, chain, key] = sys.argv[1:]
pair = (open(key, 'rb').read(), open(chain, 'rb').read())
server = grpc.server(ThreadPoolExecutor(1))
server.add_secure_port('127.0.0.1:' + port, grpc.ssl_server_credentials([pair]))
server.start()
server.wait_for_termination()
";

/// A server of gRPC.
pub(crate) fn grpc_alone() -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("python3-grpcio", |port| {
        let mut command = Command::new(PYTHON);
        command.args(["-c", GRPC, &port.to_string()]);
        command.args([&certificates.chain, &certificates.key]);
        command
    });
    let expected = Expected {
        session_id: Sharing::Never,
        ticket: ONE,
        psk: ONE,
        // gRPC sends no close_notify, so OpenSSL removes a session from the cache when its connection ends.
        codes: &["unusable-session-ids"],
    };
    let servers = vec![Server::Peer(server)];
    Farm::new("gRPC", certificates, servers, expected).probed_with(&["--request", "h2"])
}

/// A server of gRPC that gets a request of HTTP/1.1.
pub(crate) fn grpc_with_http1() -> Farm {
    let farm = grpc_alone();
    farm.probed_with(&["--request", "http1"])
}

/// A server of gRPC that gets no request.
pub(crate) fn grpc_without_a_request() -> Farm {
    let farm = grpc_alone();
    farm.probed_with(&["--request", "none"])
}

/// A broker for MQTT that gets no request.
pub(crate) fn mosquitto_without_a_request() -> Farm {
    let farm = mosquitto_alone();
    farm.probed_with(&["--request", "none", "--alpn", "mqtt"])
}

/// A broker for MQTT that forgets the session of a connection without close_notify.
pub(crate) fn mosquitto_after_a_gap() -> Farm {
    const ARGUMENTS: &[&str] = &[
        "--request",
        "none",
        "--after",
        "1s",
        "--first-connection",
        "idle,close-notify,fin",
    ];
    let mut farm = mosquitto_alone();
    // Without close_notify of both sides, OpenSSL removes the session when the server frees the connection.
    farm.expected.codes = &["lost-without-close-notify"];
    farm.probed_with(ARGUMENTS)
}

/// A broker for MQTT, which closes the connection after a request of HTTP.
pub(crate) fn mosquitto_alone() -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("mosquitto", |port| {
        let config = certificates.folder().join(format!("mosquitto-{port}.conf"));
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\ncertfile {}\nkeyfile {}\nuser root\n",
            certificates.chain.display(),
            certificates.key.display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(&config);
        command
    });
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        // OpenSSL in mosquitto has its defaults.
        codes: &[],
    };
    let servers = vec![Server::Peer(server)];
    Farm::new("mosquitto", certificates, servers, expected)
}
