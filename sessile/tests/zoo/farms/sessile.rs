//! Farms of sessile.

use std::fs;

use super::{Expected, Farm, ONE, Server, Sharing};
use crate::peers::{Certificates, Sessile};

const APART: Sharing = Sharing::Groups(&[&[0], &[1]]);
const TOGETHER: Sharing = Sharing::Groups(&[&[0, 1]]);

/// Servers with settings and settings of their site as TOML. `FOLDER` stands for the folder of the certificates.
fn configured(
    name: &'static str,
    servers: usize,
    [settings, site]: [&str; 2],
    expected: Expected,
) -> Farm {
    let certificates = Certificates::new();
    let folder = certificates.folder();
    let [settings, site] =
        [settings, site].map(|lines| lines.replace("FOLDER", folder.to_str().unwrap()));
    let start = |number| {
        let state = folder.join(format!("sessile-{number}"));
        fs::create_dir_all(&state).unwrap();
        let config = state.join("sessile.toml");
        let text = format!(
            "[server]\nname = \"web{number}\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n{settings}\n\
             [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n{site}\n\
             [[site.route]]\npath = \"/\"\nverdict = true\n",
            certificates.chain, certificates.key,
        );
        fs::write(&config, text).unwrap();
        Server::Sessile(Sessile::serve_configured(&config, &state))
    };
    let servers = (0..servers).map(start).collect();
    Farm::new(name, certificates, servers, expected)
}

/// One server with the default settings.
pub(crate) fn sessile_by_default() -> Farm {
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        // The default settings allow all three mechanisms.
        codes: &[],
    };
    configured("sessile", 1, ["", ""], expected)
}

/// One server without tickets.
pub(crate) fn sessile_without_tickets() -> Farm {
    let expected = Expected {
        session_id: ONE,
        ticket: Sharing::NotOffered,
        psk: Sharing::NotOffered,
        // In TLS 1.3, sessile has tickets only.
        codes: &[],
    };
    let settings = "[session]\ntickets = false";
    configured("sessile without tickets", 1, [settings, ""], expected)
}

/// One server without a session table.
pub(crate) fn sessile_without_entries() -> Farm {
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: ONE,
        psk: ONE,
        // Tickets need no session table.
        codes: &[],
    };
    let settings = "[session]\nmax-entries = 0";
    configured("sessile without entries", 1, [settings, ""], expected)
}

/// Two servers with one farm key.
pub(crate) fn sessile_sharing_a_key() -> Farm {
    let expected = Expected {
        session_id: APART,
        ticket: TOGETHER,
        psk: TOGETHER,
        // Each server has its own session table.
        codes: &["no-shared-cache"],
    };
    let settings = "[key]\nfile = \"FOLDER/farm.key\"";
    configured("sessile with a shared key", 2, [settings, ""], expected)
}

/// Two servers without a common farm key.
pub(crate) fn sessile_sharing_nothing() -> Farm {
    let expected = Expected {
        session_id: APART,
        ticket: APART,
        psk: APART,
        // Each server has a key in memory and its own session table.
        codes: &["no-shared-ticket-keys", "no-shared-cache"],
    };
    let settings = "[key]\nfile = \"none\"";
    configured("sessile that shares nothing", 2, [settings, ""], expected)
}

/// One server that forgets a session if it closes an idle connection of the session.
pub(crate) fn sessile_purging_on_reclaim() -> Farm {
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        // The client must hold a connection for longer than a second to see the loss.
        codes: &["lost-with-idle-connection"],
    };
    let settings = "[connection]\nidle-timeout = \"1s\"\npurge-on-reclaim = true";
    configured("sessile that purges sessions", 1, [settings, ""], expected)
        .probed_with(&["--after", "4s"])
}

/// One server that requires a client certificate.
pub(crate) fn sessile_with_client_certificates() -> Farm {
    let site = "client-auth = { ca = \"FOLDER/ca.pem\" }";
    let name = "sessile with client certificates";
    configured(name, 1, ["", site], super::clients::WITHHELD)
}
