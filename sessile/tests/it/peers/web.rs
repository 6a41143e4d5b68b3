//! Common web servers. Each server has its own sessions, which no other server knows.

use std::fs;
use std::process::Command;

use super::{Certificates, Peer, nginx};

/// The page at `/page`. The icon is inline, so the browser does not request an icon.
const PAGE: &str = "<link rel=icon href=data:,>";

/// The mechanism by which clients of a farm resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumption {
    /// TLS 1.2 session IDs, without tickets.
    SessionId,
    /// TLS 1.2 tickets.
    Ticket,
    /// TLS 1.3.
    Psk,
}

/// A web server with a page at `/page`. All other paths give 204.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Web {
    Nginx,
    Haproxy,
    Apache,
    /// Caddy, which has no session IDs.
    Caddy,
}

impl Web {
    /// Starts a server that supports this mechanism.
    pub(crate) fn start(self, certificates: &Certificates, resumption: Resumption) -> Peer {
        match self {
            Self::Nginx => {
                let (protocols, tickets) = match resumption {
                    Resumption::SessionId => ("TLSv1.2", "off"),
                    Resumption::Ticket => ("TLSv1.2", "on"),
                    Resumption::Psk => ("TLSv1.2 TLSv1.3", "on"),
                };
                let directives = format!(
                    "ssl_protocols {protocols}; ssl_session_cache shared:s:1m; \
                     ssl_session_tickets {tickets}; \
                     location = /page {{ default_type text/html; return 200 '{PAGE}'; }}"
                );
                nginx(certificates, &directives)
            }
            Self::Haproxy => haproxy(certificates, resumption),
            Self::Apache => apache(certificates, resumption),
            Self::Caddy => caddy(certificates, resumption),
        }
    }
}

fn haproxy(certificates: &Certificates, resumption: Resumption) -> Peer {
    let bind = match resumption {
        Resumption::SessionId => "ssl-max-ver TLSv1.2 no-tls-tickets",
        Resumption::Ticket => "ssl-max-ver TLSv1.2",
        Resumption::Psk => "ssl-max-ver TLSv1.3",
    };
    Peer::start("haproxy", |port| {
        let folder = folder(certificates, "haproxy", port);
        let pem = folder.join("chain-and-key.pem");
        let parts = [&certificates.chain, &certificates.key]
            .map(|path| fs::read_to_string(path).expect("the certificate and its key"));
        fs::write(&pem, parts.concat()).expect("a file");
        let config = folder.join("haproxy.cfg");
        let text = format!(
            "global\n  tune.ssl.cachesize 1000\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
             frontend tls\n  bind 127.0.0.1:{port} ssl crt {pem} {bind}\n  \
             http-request return status 200 content-type text/html string '{PAGE}' if {{ path /page }}\n  \
             http-request return status 204\n",
            pem = pem.display(),
        );
        fs::write(&config, text).expect("the configuration");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        command
    })
}

fn apache(certificates: &Certificates, resumption: Resumption) -> Peer {
    const MODULES: &str = "/usr/lib/apache2/modules";
    let (protocols, tickets) = match resumption {
        Resumption::SessionId => ("TLSv1.2", "off"),
        Resumption::Ticket => ("TLSv1.2", "on"),
        Resumption::Psk => ("TLSv1.2 +TLSv1.3", "on"),
    };
    Peer::start("apache2-bin", |port| {
        let folder = folder(certificates, "apache", port);
        fs::write(folder.join("page"), PAGE).expect("a file");
        let config = folder.join("httpd.conf");
        let text = format!(
            "ServerRoot {root}\nPidFile httpd.pid\nMutex file:{root} default\nServerName localhost\n\
             ErrorLog {root}/error.log\n\
             LoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
             LoadModule authz_core_module {MODULES}/mod_authz_core.so\n\
             LoadModule alias_module {MODULES}/mod_alias.so\n\
             LoadModule socache_shmcb_module {MODULES}/mod_socache_shmcb.so\n\
             LoadModule ssl_module {MODULES}/mod_ssl.so\n\
             Listen 127.0.0.1:{port}\n\
             SSLSessionCache shmcb:{root}/cache(512000)\n\
             <VirtualHost *:{port}>\n\
             SSLEngine on\nSSLProtocol -all +{protocols}\nSSLSessionTickets {tickets}\n\
             SSLCertificateFile {chain}\nSSLCertificateKeyFile {key}\n\
             DocumentRoot {root}\n\
             <Location /page>\nForceType text/html\n</Location>\n\
             RedirectMatch 204 ^/(?!page$)\n\
             </VirtualHost>\n",
            root = folder.display(),
            chain = certificates.chain.display(),
            key = certificates.key.display(),
        );
        fs::write(&config, text).expect("the configuration");
        // Run Apache as one process, so that no other process remains after a kill.
        let mut command = Command::new("/usr/sbin/apache2");
        command.args(["-X", "-f"]).arg(&config);
        command
    })
}

fn caddy(certificates: &Certificates, resumption: Resumption) -> Peer {
    let protocols = match resumption {
        Resumption::SessionId => panic!("Caddy keeps no session IDs"),
        Resumption::Ticket => "tls1.2 tls1.2",
        Resumption::Psk => "tls1.2 tls1.3",
    };
    Peer::start("caddy", |port| {
        let folder = folder(certificates, "caddy", port);
        let config = folder.join("Caddyfile");
        // Each server has its own folder, where Caddy makes its own ticket keys.
        let text = format!(
            "{{\n admin off\n auto_https off\n storage file_system {root}\n}}\n\
             https://:{port} {{\n bind 127.0.0.1\n tls {chain} {key} {{\n  protocols {protocols}\n }}\n\
             header /page Content-Type text/html\n respond /page `{PAGE}` 200\n respond 204\n}}\n",
            root = folder.display(),
            chain = certificates.chain.display(),
            key = certificates.key.display(),
        );
        fs::write(&config, text).expect("the configuration");
        let mut command = Command::new("caddy");
        command.args(["run", "--adapter", "caddyfile", "--config"]);
        command.arg(&config).env("HOME", &folder);
        command
    })
}

fn folder(certificates: &Certificates, name: &str, port: u16) -> std::path::PathBuf {
    let folder = certificates.folder().join(format!("{name}-{port}"));
    fs::create_dir_all(&folder).expect("a folder");
    folder
}
