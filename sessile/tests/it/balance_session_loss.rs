//! The balancer names a server that refuses its sessions early, with the age limit. It does not name a server
//! that keeps its sessions.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::balance_labels::export_part;
use crate::peers::{Certificates, NAME, NO_FOLDER, Sessile, run};

/// Two kinds of clients run at the same time. The first kind returns several times, always before the idle
/// timeout. Then all clients leave a connection idle until the server ends the connection, and return once
/// more.
const CLIENTS: &str = "
import socket, ssl, sys, threading, time
port, ca, name, idle = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
tickets = sys.argv[5] == 'tickets'
context = ssl.create_default_context(cafile=ca)
context.maximum_version = ssl.TLSVersion.TLSv1_2
if not tickets:
    context.options |= ssl.OP_NO_TICKET

def visit(session, stay=False):
    with socket.create_connection(('127.0.0.1', port), timeout=60) as tcp:
        with context.wrap_socket(tcp, server_hostname=name, session=session) as tls:
            tls.sendall(b'GET / HTTP/1.1\\r\\nhost: ' + name.encode() + b'\\r\\n\\r\\n')
            tls.recv(4096)
            while stay and tls.recv(4096):
                pass
            return tls.session

def client(returns, session):
    for pause in [0.4 * idle] * returns + [0.9 * idle] * (returns > 0):
        time.sleep(pause)
        session = visit(session)
    visit(visit(session, stay=True))

# One at a time, so that each of two servers gets as many clients of both kinds.
clients = [(returns, visit(None)) for returns in [0, 0, 4, 4] * 6]
threads = [threading.Thread(target=client, args=one) for one in clients]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
";

/// The idle timeout of the servers in seconds.
const IDLE: f64 = 2.0;

/// The kind of sessions that a server gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hands {
    /// Only session IDs.
    Ids,
    /// Tickets with labels. The servers share the key in the state folder.
    Tickets,
}

fn server(certificates: &Certificates, name: &str, purges: bool, hands: Hands) -> Sessile {
    let sessions = match hands {
        Hands::Ids => "[key]\nfile = \"none\"\n[session]\ntickets = false\n",
        Hands::Tickets => "",
    };
    let text = format!(
        "{sessions}[server]\nname = \"{name}\"\n\
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

/// Two servers. The first purges idle sessions.
fn servers(certificates: &Certificates, hands: Hands) -> [Sessile; 2] {
    [
        server(certificates, "web1", true, hands),
        server(certificates, "web2", false, hands),
    ]
}

/// Runs all clients to their end.
fn visit(balancer: &Sessile, certificates: &Certificates, hands: Hands) {
    let mut command = Command::new("python3");
    command.args(["-c", CLIENTS, &balancer.address().port().to_string()]);
    command.arg(&certificates.ca);
    command.args([NAME, &IDLE.to_string()]);
    command.arg(match hands {
        Hands::Ids => "ids",
        Hands::Tickets => "tickets",
    });
    run("python3", &mut command, "").succeeded();
}

/// Asserts that the balancer names only the first of these servers, with the age limit.
fn is_told_apart(balancer: &Sessile, [purges, keeps]: [&str; 2]) {
    let found = balancer.await_server(purges, |server| server["forgets"] != Value::Null);
    let forgets = &found["forgets"];
    assert_eq!(forgets["since"], "last-use", "{found:#}");
    let after = forgets["after_seconds"].as_f64().unwrap();
    assert!((0.9 * IDLE..1.25 * IDLE).contains(&after), "{found:#}");
    let diagnosis = forgets["diagnosis"].as_str().unwrap();
    let beginning = format!("{purges} forgets sessions after about ");
    assert!(diagnosis.starts_with(&beginning), "{diagnosis}");
    let ending = "as IIS 6.0 without EnableKernelSSL";
    assert!(diagnosis.ends_with(ending), "{diagnosis}");
    balancer.await_line(ending);
    let refused = [("server", purges), ("outcome", "refused")];
    let idle = "sessile_balance_server_offer_idle_seconds_count";
    assert_eq!(balancer.metrics().sum(idle, &refused), 12);

    // Each refused session was idle for a little longer than the timeout.
    let offers = &found["offers"];
    let idle: Vec<_> = offers["refused"].as_array().unwrap().iter().collect();
    assert_eq!(idle.len(), 1, "{offers:#}");
    assert_eq!(idle[0]["up_to_seconds"], 5.0, "{offers:#}");
    assert_ne!(offers["accepted"], json!([]), "{offers:#}");

    let keeps = balancer.await_server(keeps, |server| server["forgets"] == Value::Null);
    assert_eq!(keeps["resumption_ratio"], 1.0, "{keeps:#}");
    assert_eq!(keeps["offers"]["refused"], json!([]), "{keeps:#}");
}

#[test]
fn only_a_server_that_purges_idle_sessions_is_named_with_its_age_limit() {
    let certificates = Certificates::new();
    let servers = servers(&certificates, Hands::Ids);
    let addresses = servers.each_ref().map(Sessile::address);
    let balancer = Sessile::balance(&addresses, &["--policy", "round-robin"]);
    visit(&balancer, &certificates, Hands::Ids);
    is_told_apart(&balancer, ["a", "b"]);
    let found = balancer.await_server("a", |server| server["forgets"] != Value::Null);
    let diagnosis = found["forgets"]["diagnosis"].as_str().unwrap();
    assert!(diagnosis.contains("36000 s are expected"), "{diagnosis}");
}

#[test]
fn a_balancer_that_reads_labels_names_a_purging_server_too() {
    let certificates = Certificates::new();
    let servers = servers(&certificates, Hands::Tickets);
    let whole = certificates.folder().join("sessile/farm.key");
    export_part(&whole, &certificates.folder().join("route.key"));
    let mut text = "[key]\nfile = \"route.key\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
         [balance]\npolicy = \"round-robin\"\nhealth = \"off\"\n"
        .to_owned();
    for (name, server) in ["web1", "web2"].iter().zip(&servers) {
        let address = server.address();
        text += &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    }
    let config = certificates.folder().join("balance.toml");
    fs::write(&config, text).unwrap();
    let balancer = Sessile::balance_configured(&config, Path::new(NO_FOLDER));
    visit(&balancer, &certificates, Hands::Tickets);
    let metrics = balancer.await_metrics(|metrics| metrics.routed("label", "refused") >= 12);
    assert_eq!(metrics.routed("ticket", "resumed"), 0, "{metrics}");
    is_told_apart(&balancer, ["web1", "web2"]);
}
