//! Proxies as clients of the farm. Each request to a proxy makes a new connection to the farm.
//!
//! nginx and HAProxy take their sessions from OpenSSL by callback.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use super::farm::Farm;
use super::others::version;
use super::{Connection, Mechanism, Visit};
use crate::peers::{self, NAME, Peer, Ran, run};

const fn protocol(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::Psk => "TLSv1.3",
        Mechanism::SessionId | Mechanism::Ticket => "TLSv1.2",
    }
}

/// Sends this number of requests to a proxy. The output has the heads and bodies of the responses.
#[track_caller]
fn ask(scheme: &str, proxy: SocketAddr, requests: usize) -> Ran {
    let url = format!("{scheme}://{proxy}/verdict.json");
    let mut command = Command::new("curl");
    command.args(["-sSi", "--insecure", "-H", &format!("host: {NAME}")]);
    command.args(vec![url; requests]);
    let ran = run("curl", &mut command, "").succeeded();
    let beginning: Vec<_> = ran.stdout.lines().take(20).collect();
    let answers = ran.answers().len();
    assert_eq!(answers, requests, "{}", beginning.join("\n"));
    ran
}

fn by_server(ran: &Ran) -> Vec<Connection> {
    let answers = ran.answers().into_iter();
    answers.map(Connection::by_server).collect()
}

/// nginx in one process, without kept connections. nginx does not report whether a session resumed.
pub(super) fn nginx(mechanism: Mechanism, connections: usize) -> Visit {
    let farm = Farm::start("");
    let options = match mechanism {
        Mechanism::SessionId => "proxy_ssl_conf_command Options -SessionTicket;",
        Mechanism::Ticket | Mechanism::Psk => "",
    };
    let directives = format!(
        "location = /verdict.json {{\n\
           proxy_pass https://127.0.0.1:{port};\n\
           proxy_set_header Host $http_host;\n\
           proxy_ssl_server_name on; proxy_ssl_name {NAME};\n\
           proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca};\n\
           proxy_ssl_protocols {protocol};\n\
           {options}\n\
         }}\n",
        port = farm.port(),
        ca = farm.certificates().ca.display(),
        protocol = protocol(mechanism),
    );
    let nginx = peers::nginx(farm.certificates(), &directives);
    Visit {
        version: version("nginx", "nginx", "-v"),
        connections: by_server(&ask("https", nginx.address(), connections)),
    }
}

/// HAProxy in one thread, without kept connections. A response header tells whether the session
/// resumed.
pub(super) fn haproxy(mechanism: Mechanism, connections: usize) -> Visit {
    let farm = Farm::start("");
    let options = match mechanism {
        Mechanism::SessionId => "force-tlsv12 no-tls-tickets",
        Mechanism::Ticket => "force-tlsv12",
        Mechanism::Psk => "force-tlsv13",
    };
    let haproxy = Peer::start("haproxy", |port| {
        let config = farm.folder().join(format!("proxy-{port}.cfg"));
        let text = format!(
            "global\n  nbthread 1\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             listen proxy\n  bind 127.0.0.1:{port}\n  http-reuse never\n  option httpclose\n  \
             http-response set-header x-resumed %[ssl_bc_is_resumed]\n  \
             server farm 127.0.0.1:{farm} ssl verify required ca-file {ca} \
             sni str({NAME}) verifyhost {NAME} {options}\n",
            farm = farm.port(),
            ca = farm.certificates().ca.display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        command
    });
    let ran = ask("http", haproxy.address(), connections);
    let lines = ran.stdout.lines();
    let reported = lines.filter_map(|line| line.strip_prefix("x-resumed: "));
    let pairs = reported.zip(ran.answers());
    Visit {
        version: version("haproxy", "haproxy", "-v"),
        connections: pairs
            .map(|(reported, answer)| Connection {
                resumed: Some(reported == "1"),
                answer,
            })
            .collect(),
    }
}

/// Apache in one process, without kept connections. Apache does not report whether a session
/// resumed.
pub(super) fn apache(mechanism: Mechanism, connections: usize) -> Visit {
    const PROGRAM: &str = "/usr/sbin/apache2";
    const MODULES: &str = "/usr/lib/apache2/modules";
    // mod_proxy has no setting for tickets, so the servers turn tickets off.
    let farm = Farm::start(&format!("tickets = {}", mechanism != Mechanism::SessionId));
    let apache = Peer::start("apache2-bin", |port| {
        let folder = farm.folder();
        let config = folder.join(format!("apache-{port}.conf"));
        let text = format!(
            "ServerRoot {root}\nPidFile httpd.pid\nMutex file:{root} default\nServerName {NAME}\n\
             ErrorLog {root}/error.log\n\
             LoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
             LoadModule authz_core_module {MODULES}/mod_authz_core.so\n\
             LoadModule socache_shmcb_module {MODULES}/mod_socache_shmcb.so\n\
             LoadModule ssl_module {MODULES}/mod_ssl.so\n\
             LoadModule proxy_module {MODULES}/mod_proxy.so\n\
             LoadModule proxy_http_module {MODULES}/mod_proxy_http.so\n\
             Listen 127.0.0.1:{port}\n\
             SSLSessionCache shmcb:{root}/cache(512000)\n\
             ProxyPreserveHost on\nSSLProxyEngine on\nSSLProxyProtocol -all +{protocol}\n\
             SSLProxyVerify require\nSSLProxyCACertificateFile {ca}\n\
             ProxyPass / https://127.0.0.1:{farm}/ disablereuse=on\n",
            root = folder.display(),
            protocol = protocol(mechanism),
            ca = farm.certificates().ca.display(),
            farm = farm.port(),
        );
        fs::write(&config, text).unwrap();
        // Run Apache as one process, so that no other process remains after a kill.
        let mut command = Command::new(PROGRAM);
        command.args(["-X", "-f"]).arg(&config);
        command
    });
    Visit {
        version: version("apache2-bin", PROGRAM, "-v"),
        connections: by_server(&ask("http", apache.address(), connections)),
    }
}
