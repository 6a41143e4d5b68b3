//! Counts how many returning clients resume at three servers that share nothing: nginx, or the Caddy
//! of the second argument. The balancer is `sessile balance`, HAProxy with the usual recipe, or
//! HAProxy without affinity. The benchmark starts all programs itself on loopback, connects with
//! `openssl s_client`, and prints Markdown.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use sessile_bench::{Program, Result, free_address};

/// New clients of each kind. The number is not a multiple of the number of servers.
const CLIENTS: usize = 20;

/// Returns of each client.
const RETURNS: usize = 5;

/// A row of the table.
struct Kind {
    title: &'static str,
    /// Arguments of `openssl s_client`.
    arguments: &'static [&'static str],
    server: Server,
}

/// The three servers of a row.
enum Server {
    /// nginx with this value of `ssl_session_tickets`.
    Nginx(&'static str),
    Caddy,
}

const KINDS: [Kind; 5] = [
    Kind {
        title: "nginx, TLS 1.2, session ID",
        arguments: &["-tls1_2", "-no_ticket"],
        server: Server::Nginx("off"),
    },
    Kind {
        title: "nginx, TLS 1.2, ticket",
        arguments: &["-tls1_2"],
        server: Server::Nginx("on"),
    },
    Kind {
        title: "nginx, TLS 1.3, ticket",
        arguments: &["-tls1_3"],
        server: Server::Nginx("on"),
    },
    Kind {
        title: "nginx, TLS 1.3, session cache",
        arguments: &["-tls1_3"],
        server: Server::Nginx("off"),
    },
    Kind {
        title: "Caddy, TLS 1.3, ticket",
        arguments: &["-tls1_3"],
        server: Server::Caddy,
    },
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let sessile = arguments
        .next()
        .unwrap_or_else(|| "target/release/sessile".into());
    let caddy = arguments.next();
    match run(Path::new(&sessile), caddy.as_deref().map(Path::new)) {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("returns: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(sessile: &Path, caddy: Option<&Path>) -> Result<String> {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    fs::write(folder.join("cert.pem"), made.cert.pem())?;
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?;
    let mut table = String::from(
        "| | sessile balance | HAProxy, `payload_lv(43,1)` | HAProxy, round robin |\n|---|--:|--:|--:|\n",
    );
    for Kind {
        title,
        arguments,
        server,
    } in KINDS
    {
        let start = |n| match (&server, caddy) {
            (Server::Nginx(tickets), _) => nginx(folder, n, tickets).map(Some),
            (Server::Caddy, Some(program)) => start_caddy(program, folder, n).map(Some),
            (Server::Caddy, None) => Ok(None),
        };
        let servers = (0..3).map(start).collect::<Result<Option<Vec<_>>>>()?;
        let Some(servers) = servers else {
            eprintln!("{title}: left out, because no Caddy was named");
            continue;
        };
        eprintln!("{title}");
        let balancers = [
            balance(sessile, &servers)?,
            haproxy(folder, "recipe", RECIPE, &servers)?,
            haproxy(folder, "plain", "", &servers)?,
        ];
        write!(table, "| {title} |")?;
        for balancer in &balancers {
            let resumed = resumed_percent(balancer.address, folder, arguments)?;
            write!(table, " {resumed:.0} % |")?;
        }
        table.push('\n');
    }
    let returns = CLIENTS * RETURNS;
    writeln!(
        table,
        "\nOf {returns} returns of {CLIENTS} clients in each field."
    )?;
    Ok(table)
}

/// The percentage of returns that resumed. Clients return in a shuffled order.
fn resumed_percent(address: SocketAddr, folder: &Path, arguments: &[&str]) -> Result<f64> {
    let session = |client| folder.join(format!("session-{client}.pem"));
    let visit = |client: usize, again: bool| -> Result<String> {
        let mut request = tempfile::tempfile()?;
        std::io::Write::write_all(&mut request, b"HEAD / HTTP/1.0\r\n\r\n")?;
        std::io::Seek::rewind(&mut request)?;
        let mut command = Command::new("openssl");
        command.args(["s_client", "-ign_eof", "-servername", "localhost"]);
        command.arg("-connect").arg(address.to_string());
        command.args(arguments);
        // Each client has its own address.
        command
            .arg("-bind")
            .arg(format!("127.0.1.{}:0", client + 1));
        command.arg("-sess_out").arg(session(client));
        if again {
            command.arg("-sess_in").arg(session(client));
        }
        let output = command.stdin(request).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for client in 0..CLIENTS {
        let first = visit(client, false)?;
        if !first.contains("\nNew, ") {
            return Err(format!("no handshake with {address}: {first}").into());
        }
    }
    let mut clients: Vec<usize> = (0..CLIENTS * RETURNS).map(|n| n % CLIENTS).collect();
    // All balancers get the same order, from Knuth's generator and the shuffle of Fisher and Yates.
    let mut state = 1_u64;
    for at in (1..clients.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        clients.swap(at, (state >> 33) as usize % (at + 1));
    }
    let mut resumed = 0;
    for client in clients {
        resumed += usize::from(visit(client, true)?.contains("\nReused, "));
    }
    Ok(resumed as f64 * 100.0 / (CLIENTS * RETURNS) as f64)
}

/// A running program and its address.
struct Running {
    _program: Program,
    address: SocketAddr,
}

impl Running {
    fn start(mut command: Command, address: SocketAddr) -> Result<Self> {
        let name = command.get_program().display().to_string();
        Ok(Self {
            _program: Program::start(&name, command.stderr(Stdio::null()), address)?,
            address,
        })
    }
}

fn nginx(folder: &Path, n: usize, tickets: &str) -> Result<Running> {
    let address = free_address()?;
    let file = folder.join(format!("nginx-{n}.conf"));
    let text = format!(
        "daemon off; master_process off; pid {folder}/nginx-{n}.pid; error_log stderr crit;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};\n\
         fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};\n\
         server {{ listen {address} ssl; ssl_certificate {folder}/cert.pem;\n\
         ssl_certificate_key {folder}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;\n\
         ssl_session_cache shared:s{n}:1m; ssl_session_tickets {tickets};\n\
         location / {{ return 204; }} }} }}\n",
        folder = folder.display(),
    );
    fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(file);
    Running::start(command, address)
}

fn start_caddy(program: &Path, folder: &Path, n: usize) -> Result<Running> {
    let address = free_address()?;
    let file = folder.join(format!("caddy-{n}.caddyfile"));
    let folder = folder.display();
    let text = format!(
        "{{\n admin off\n auto_https disable_redirects\n skip_install_trust\n storage file_system {folder}/caddy-{n}\n}}\n\
         https://localhost:{port} {{\n bind 127.0.0.1\n tls {folder}/cert.pem {folder}/key.pem\n respond 204\n}}\n",
        port = address.port(),
    );
    fs::write(&file, text)?;
    let mut command = Command::new(program);
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(file);
    Running::start(command, address)
}

fn balance(sessile: &Path, servers: &[Running]) -> Result<Running> {
    let address = free_address()?;
    let mut command = Command::new(sessile);
    command.args(["balance", "--policy", "round-robin"]);
    command.arg("--listen").arg(address.to_string());
    for (n, server) in servers.iter().enumerate() {
        command
            .arg("--server")
            .arg(format!("web{n}={}", server.address));
    }
    let running = Running::start(command, address)?;
    // Wait until the balancer has learned the key names of its servers.
    std::thread::sleep(SETTLE);
    Ok(running)
}

/// Time for a starting balancer to check its servers.
const SETTLE: Duration = Duration::from_secs(2);

/// The usual HAProxy recipe: affinity by the session ID in ClientHello and ServerHello. HAProxy's
/// manual omits the second delay, but without this delay, version 2.6 never sees a ServerHello.
const RECIPE: &str = "  stick-table type binary len 32 size 30k expire 30m
  acl clienthello req_ssl_hello_type 1
  acl serverhello rep_ssl_hello_type 2
  tcp-request inspect-delay 5s
  tcp-request content accept if clienthello
  tcp-response inspect-delay 5s
  tcp-response content accept if serverhello
  stick on payload_lv(43,1) if clienthello
  stick store-response payload_lv(43,1) if serverhello
";

fn haproxy(folder: &Path, name: &str, recipe: &str, servers: &[Running]) -> Result<Running> {
    let address = free_address()?;
    let mut text = format!(
        "global\n  maxconn 256\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  \
         timeout server 30s\nfrontend tls\n  bind {address}\n  default_backend farm\n\
         backend farm\n  balance roundrobin\n{recipe}"
    );
    for (n, server) in servers.iter().enumerate() {
        writeln!(text, "  server web{n} {}", server.address)?;
    }
    let file = folder.join(format!("haproxy-{name}.cfg"));
    fs::write(&file, text)?;
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(file);
    Running::start(command, address)
}
