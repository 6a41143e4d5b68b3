//! Farms of servers that start TLS on request.

use std::env;
use std::fs;
use std::process::Command;

use super::{Expected, Farm, ONE, Server, Sharing};
use crate::peers::{Certificates, Peer, run, smtp_server, ticket_key};
use crate::postgres::Database;

const APART: Sharing = Sharing::Groups(&[&[0], &[1]]);
const TOGETHER: Sharing = Sharing::Groups(&[&[0, 1]]);

const NOTHING: Expected = Expected {
    session_id: Sharing::NotOffered,
    ticket: Sharing::NotOffered,
    psk: Sharing::NotOffered,
    codes: &["no-mechanism"],
};

/// A mail server in Python.
pub(crate) fn smtp_alone() -> Farm {
    let certificates = Certificates::new();
    let servers = vec![Server::Peer(smtp_server(Some(&certificates)))];
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        // A context of Python has the defaults of OpenSSL.
        codes: &[],
    };
    Farm::new("aiosmtpd", certificates, servers, expected).probed_with(&["--starttls", "smtp"])
}

/// nginx as a proxy of a mail protocol, with these words after its address and these directives of TLS.
///
/// `NGINX_MODULES` is the folder of the modules, if nginx is not Debian stable's.
fn nginx_mail(certificates: &Certificates, listen: &str, directives: &str) -> Server {
    let modules = env::var("NGINX_MODULES").unwrap_or_else(|_| "/usr/lib/nginx/modules".to_owned());
    Server::Peer(Peer::start("libnginx-mod-mail", |port| {
        let folder = certificates.folder().join(format!("nginx-{port}"));
        fs::create_dir_all(&folder).unwrap();
        let config = folder.join("nginx.conf");
        let text = format!(
            "load_module {modules}/ngx_mail_module.so;\n\
             daemon off; master_process off; pid nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 256; }}\n\
             mail {{ auth_http 127.0.0.1:1; server {{\n\
             listen 127.0.0.1:{port} {listen};\n\
             {} ssl_protocols TLSv1.2 TLSv1.3; {directives}\n\
             }} }}\n",
            certificates.nginx_directives(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&folder).arg("-c").arg(&config);
        command.args(["-e", "stderr"]);
        command
    }))
}

/// Two proxies for mailboxes with one file of ticket keys, without a cache.
pub(crate) fn imap_sharing_keys() -> Farm {
    let certificates = Certificates::new();
    let key = certificates.folder().join("ticket.key");
    fs::write(&key, ticket_key(1)).unwrap();
    let directives = format!(
        "ssl_session_ticket_key {}; ssl_session_cache off;",
        key.display()
    );
    let servers = (0..2)
        .map(|_| nginx_mail(&certificates, "; protocol imap; starttls on", &directives))
        .collect();
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: TOGETHER,
        psk: TOGETHER,
        // The mail module has the directives of the HTTP module.
        codes: &[],
    };
    Farm::new("IMAP with shared keys", certificates, servers, expected)
        .probed_with(&["--starttls", "imap"])
}

/// Two proxies for mailboxes that share neither a cache nor ticket keys.
pub(crate) fn pop3_sharing_nothing() -> Farm {
    let certificates = Certificates::new();
    let servers = (0..2)
        .map(|_| {
            nginx_mail(
                &certificates,
                "; protocol pop3; starttls on",
                "ssl_session_cache shared:s:1m;",
            )
        })
        .collect();
    let expected = Expected {
        session_id: APART,
        ticket: APART,
        psk: APART,
        // Each proxy makes its own random ticket keys at its start.
        codes: &["no-shared-ticket-keys", "no-shared-cache"],
    };
    Farm::new("POP3 that shares nothing", certificates, servers, expected)
        .probed_with(&["--starttls", "pop3"])
}

/// Dovecot with the default settings.
pub(crate) fn dovecot_by_default() -> Farm {
    let expected = Expected {
        session_id: Sharing::Never,
        ticket: Sharing::Never,
        psk: Sharing::Never,
        // Each connection has a process with a cache and ticket keys of its own.
        codes: &["forgets-own-sessions", "several-servers-at-address"],
    };
    dovecot("Dovecot", "", expected)
}

/// Dovecot with one process for all connections before the login.
pub(crate) fn dovecot_with_one_process() -> Farm {
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        codes: &[],
    };
    dovecot("Dovecot with one process", "service_count = 0", expected)
}

/// A Dovecot server for mailboxes, with these settings of its login processes.
fn dovecot(name: &'static str, settings: &str, expected: Expected) -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("dovecot-imapd", |port| {
        let folder = certificates.folder().join(format!("dovecot-{port}"));
        let config = certificates.folder().join(format!("dovecot-{port}.conf"));
        let text = format!(
            "base_dir = {folder}\nstate_dir = {folder}\nlog_path = /dev/stderr\n{users}\
             protocols = imap\nlisten = 127.0.0.1\nssl = yes\nssl_cert = <{chain}\nssl_key = <{key}\n\
             passdb {{\n driver = static\n args = nopassword=y\n}}\n\
             service anvil {{\n chroot =\n}}\n\
             service imap-login {{\n chroot =\n {settings}\n\
             inet_listener imap {{\n port = {port}\n}}\ninet_listener imaps {{\n port = 0\n}}\n}}\n",
            folder = folder.display(),
            users = dovecot_users(),
            chain = certificates.chain.display(),
            key = certificates.key.display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/sbin/dovecot");
        command.arg("-F").arg("-c").arg(&config);
        command
    });
    Farm::new(name, certificates, vec![Server::Peer(server)], expected)
        .probed_with(&["--starttls", "imap"])
}

/// Without root, all processes of Dovecot run as the present user.
fn dovecot_users() -> String {
    let name = |flag: &str| run("coreutils", Command::new("id").arg(flag), "").stdout;
    let [user, group] = ["-un", "-gn"].map(name);
    if user.trim() == "root" {
        return String::new();
    }
    format!(
        "default_login_user = {user}default_internal_user = {user}default_internal_group = {group}"
    )
}

/// A proxy for mail with TLS from the first byte, which greets the client before a request.
pub(crate) fn smtps_alone() -> Farm {
    let certificates = Certificates::new();
    let directives = "ssl_session_cache shared:s:1m;";
    let server = nginx_mail(&certificates, "ssl; protocol smtp", directives);
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        // The greeting and the answer to `HEAD /` are no HTTP.
        codes: &[],
    };
    Farm::new("SMTP with TLS", certificates, vec![server], expected)
}

/// A server for files.
pub(crate) fn ftp_alone() -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("vsftpd", |port| {
        let config = certificates.folder().join(format!("vsftpd-{port}.conf"));
        // A user other than root cannot change the user.
        let text = format!(
            "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\n\
             run_as_launching_user=YES\nanonymous_enable=YES\nseccomp_sandbox=NO\n\
             ssl_enable=YES\nallow_anon_ssl=YES\nssl_ciphers=HIGH\nrsa_cert_file={}\nrsa_private_key_file={}\n",
            certificates.chain.display(),
            certificates.key.display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/sbin/vsftpd");
        command.arg(&config);
        command
    });
    let expected = Expected {
        session_id: Sharing::Never,
        ticket: ONE,
        psk: ONE,
        // Each connection has a process with a cache of its own. The processes inherit one ticket key.
        // The lifetime of tickets is 2^31 - 1 seconds.
        codes: &["client-certificate-requested", "lifetime-over-seven-days"],
    };
    Farm::new("vsftpd", certificates, vec![Server::Peer(server)], expected)
        .probed_with(&["--starttls", "ftp"])
}

/// A server for files that gets a client certificate.
pub(crate) fn ftp_with_a_certificate() -> Farm {
    let mut farm = ftp_alone();
    farm.expected.codes = &["lifetime-over-seven-days", "unusable-session-ids"];
    farm.with_client_certificate("vsftpd with a client certificate")
}

/// A directory.
pub(crate) fn ldap_alone() -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("slapd", |port| {
        let config = certificates.folder().join(format!("slapd-{port}.conf"));
        let text = format!(
            "TLSCertificateFile {}\nTLSCertificateKeyFile {}\n",
            certificates.chain.display(),
            certificates.key.display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/sbin/slapd");
        command.args(["-d", "0", "-h", &format!("ldap://127.0.0.1:{port}"), "-f"]);
        command.arg(&config);
        command
    });
    let expected = Expected {
        session_id: Sharing::Never,
        // Debian's OpenLDAP uses GnuTLS, which gives session IDs even without a cache.
        codes: &["forgets-own-sessions"],
        ..NOTHING
    };
    Farm::new("slapd", certificates, vec![Server::Peer(server)], expected)
        .probed_with(&["--starttls", "ldap"])
}

/// A database.
pub(crate) fn postgres_alone() -> Farm {
    let certificates = Certificates::new();
    let server = Server::Database(Database::start(&certificates, "alone"));
    // PostgreSQL turns off the cache and the tickets of OpenSSL.
    Farm::new("PostgreSQL", certificates, vec![server], NOTHING)
        .probed_with(&["--starttls", "postgres"])
}
