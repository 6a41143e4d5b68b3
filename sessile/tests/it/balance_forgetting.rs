//! A server that forgets its sessions before their time is found out by what it accepts and refuses,
//! and one that does not is not.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::peers::{Certificates, NAME, Sessile, run};

/// Clients of two kinds, at once. Some use their session again and again and always come back in time;
/// then, and the others right away, they leave a connection idle until the server ends it, and come
/// back.
const CLIENTS: &str = "
import socket, ssl, sys, threading, time
port, ca, name, idle = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
context = ssl.create_default_context(cafile=ca)
context.maximum_version = ssl.TLSVersion.TLSv1_2
context.options |= ssl.OP_NO_TICKET

def visit(session, stay=False):
    with socket.create_connection(('127.0.0.1', port), timeout=60) as tcp:
        with context.wrap_socket(tcp, server_hostname=name, session=session) as tls:
            tls.sendall(b'GET / HTTP/1.1\\r\\nhost: ' + name.encode() + b'\\r\\n\\r\\n')
            tls.recv(4096)
            while stay and tls.recv(4096):
                pass
            return tls.session

def client(returns):
    session = visit(None)
    for pause in [0.4 * idle] * returns + [0.9 * idle] * (returns > 0):
        time.sleep(pause)
        session = visit(session)
    visit(visit(session, stay=True))

threads = [threading.Thread(target=client, args=[returns]) for returns in [0, 4] * 12]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
";

/// Seconds after which servers clear idle connections away.
const IDLE: f64 = 2.0;

fn server(certificates: &Certificates, name: &str, purges: bool) -> Sessile {
    let text = format!(
        "[server]\nname = \"{name}\"\n[key]\nfile = \"none\"\n[session]\ntickets = false\n\
         [connection]\nidle-timeout = \"{IDLE}s\"\npurge-on-reclaim = {purges}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
         [[site.route]]\npath = \"/\"\nverdict = true\n",
        certificates.chain, certificates.key,
    );
    let text = text.replace(&format!("\"{IDLE}s\""), "\"2s\"");
    let config = certificates.folder().join(format!("{name}.toml"));
    fs::write(&config, text).unwrap();
    Sessile::serve_configured(&config, certificates.folder())
}

#[test]
fn a_server_that_purges_what_is_idle_is_named_with_its_figure_and_one_that_does_not_is_not() {
    let certificates = Certificates::new();
    let servers = [
        server(&certificates, "web1", true),
        server(&certificates, "web2", false),
    ];
    let addresses = servers.each_ref().map(Sessile::address);
    let balancer = Sessile::balance(&addresses, &["--policy", "round-robin"]);
    let mut command = Command::new("python3");
    command.args(["-c", CLIENTS, &balancer.address().port().to_string()]);
    command.arg(&certificates.ca);
    command.args([NAME, &IDLE.to_string()]);
    run("python3", &mut command, "").succeeded();

    let purges = balancer.await_server("a", |server| server["forgets"] != Value::Null);
    let forgets = &purges["forgets"];
    assert_eq!(forgets["since"], "last-use", "{purges:#}");
    let after = forgets["after_seconds"].as_f64().unwrap();
    assert!((0.9 * IDLE..1.25 * IDLE).contains(&after), "{purges:#}");
    let diagnosis = forgets["diagnosis"].as_str().unwrap();
    assert!(
        diagnosis.starts_with("a forgets sessions after about "),
        "{diagnosis}"
    );
    let ending = "s of idle time though 36000 s are expected: as IIS 6.0 without EnableKernelSSL";
    assert!(diagnosis.ends_with(ending), "{diagnosis}");
    balancer.await_line("as IIS 6.0 without EnableKernelSSL");
    let refused = [("server", "a"), ("outcome", "refused")];
    let idle = "sessile_balance_server_offer_idle_seconds_count";
    assert_eq!(balancer.metrics().sum(idle, &refused), 12);

    let keeps = balancer.await_server("b", |server| server["forgets"] == Value::Null);
    assert_eq!(keeps["resumption_ratio"], 1.0, "{keeps:#}");
}
