//! `sessile key export`: writes a balancer's route chains, or the present ticket keys for other TLS servers.
//! Files have mode 0600 and are replaced as a whole. The export also moves the key file forward.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, ValueEnum};
use sessile_proto::Time;
use sessile_proto::keys::{ExportedKey, ExportedKeys, FarmKey};
use zeroize::Zeroizing;

use super::print;
use crate::cli::in_one_line;
use crate::key::{self, CatchUp};
use crate::state_file;

const EXAMPLES: &str = r"Examples:
  sessile key export --route --output route.key
  sessile key export --format nginx --output /etc/nginx/tickets
  sessile key export --format haproxy --output /etc/haproxy/tickets
  sessile key export --format envoy --output /etc/envoy/tickets.yaml
  sessile key export --format apache --output /etc/apache2/ticket.key

A server that is not sessile gets the keys of the current epoch. Export them
again in every epoch (`rotate`, 1h by default), and reload that server. Envoy
notices a new file by itself. All exports of an epoch are equal.

Each export also removes expired keys from the farm key file.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("what").required(true).args(["route", "format"]))]
pub(super) struct Args {
    /// The balancer's part: names the server that made a ticket, but cannot open tickets
    #[arg(long)]
    route: bool,
    /// Ticket keys for a server that is not sessile
    #[arg(long)]
    format: Option<Format>,
    /// The file to write; for nginx a folder, with a tickets.conf to include
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A folder of key files, and a tickets.conf with one `ssl_session_ticket_key` for each
    Nginx,
    /// A file for `tls-ticket-keys`
    Haproxy,
    /// A file for `SSLSessionTicketKeyFile`: one key, so tickets end with their epoch
    Apache,
    /// A secret for `session_ticket_keys_sds_secret_config`, in a file that Envoy watches
    Envoy,
}

/// The name of the secret with the ticket keys in Envoy's configuration.
const ENVOY_SECRET: &str = "sessile-ticket-keys";

pub(super) fn run(path: &Path, args: &Args, now: Time) -> anyhow::Result<ExitCode> {
    let output = &args.output;
    let key = if args.route {
        key::load_any(path)?
    } else {
        key::load(path)?
    };
    if !key.is_route_part() {
        catch_up(path, now);
    }
    let Some(format) = args.format else {
        key::write_route_part(output, &key, now)?;
        return print(&format!(
            "{} is for balancers: it names the server that made a ticket, but cannot open tickets.\n",
            output.display()
        ));
    };
    let keys = ExportedKeys::derive(&key, now).with_context(|| {
        format!(
            "{}: this machine's clock does not fit the key; run `sessile key check`",
            path.display()
        )
    })?;
    let until = Time::from_unix_millis((keys.current.epoch + 1) * key.rotate.as_secs() * 1000);
    let said = match format {
        Format::Nginx => {
            let folder = nginx(output, &keys, &key)?;
            format!("in a server or http block:  include {folder}/tickets.conf;\n")
        }
        Format::Haproxy => {
            key::write_secret(output, haproxy(&keys).as_bytes())?;
            format!("on a bind line:  tls-ticket-keys {}\n", output.display())
        }
        Format::Apache => {
            key::write_secret(output, keys.current.aes128())?;
            format!(
                "for a host:  SSLSessionTicketKeyFile {}\n",
                output.display()
            )
        }
        Format::Envoy => {
            key::write_secret(output, envoy(&keys).as_bytes())?;
            format!(
                "in a DownstreamTlsContext:\n  session_ticket_keys_sds_secret_config:\n    name: {ENVOY_SECRET}\n    \
                 sds_config: {{ path_config_source: {{ path: {} }} }}\n",
                output.display()
            )
        }
    };
    let reload = match format {
        Format::Envoy => "",
        _ => ", and reload the server,",
    };
    print(&format!(
        "{said}Export again{reload} after {}.\n",
        super::rfc3339(until)
    ))
}

/// Moves the key file forward. Prints a warning if old keys stay in the file.
fn catch_up(path: &Path, now: Time) {
    let reason = match key::catch_up(path, now) {
        Ok(CatchUp::Moved | CatchUp::UpToDate) => return,
        Ok(CatchUp::Unconfirmed(lag)) => format!(
            "the oldest key expired {} ago, and neither NTP nor the time since an earlier export confirms this machine's \
             clock; later exports of the timer remove them",
            humantime::format_duration(Duration::from_secs(lag.as_secs()))
        ),
        Err(error) => format!(
            "{}; let this command write the file",
            in_one_line(&error.into())
        ),
    };
    eprintln!(
        "warning: {}: expired ticket keys stay in the file: {reason}.",
        path.display()
    );
}

/// Writes one file for each key and a list of the files. Returns the folder as nginx must name it.
fn nginx(folder: &Path, keys: &ExportedKeys, key: &FarmKey) -> anyhow::Result<String> {
    let folder_name = || format!("{}", folder.display());
    state_file::make_folder(folder).with_context(folder_name)?;
    let folder = fs::canonicalize(folder).with_context(folder_name)?;
    let mut list = format!(
        "# Written by `sessile key export` for farm {:?}: the first key seals, all of them open.\n",
        key.scope
    );
    let mut names = Vec::new();
    // nginx seals with the first key. The next key is second, because another server may already seal with
    // it.
    for ticket_key in [&keys.current, &keys.next]
        .into_iter()
        .chain(&keys.previous)
    {
        let name = file_name(ticket_key);
        let file = folder.join(&name);
        key::write_secret(&file, ticket_key.aes256())?;
        writeln!(list, "ssl_session_ticket_key \"{}\";", file.display())?;
        names.push(name);
    }
    // The list is replaced last, so that the list names only files that exist.
    key::write_secret(&folder.join("tickets.conf"), list.as_bytes())?;
    remove_old_keys(&folder, &names)?;
    Ok(folder.display().to_string())
}

/// Removes the key files of earlier exports. Otherwise, a thief of these files could open old tickets.
fn remove_old_keys(folder: &Path, current: &[String]) -> anyhow::Result<()> {
    let folder_name = || format!("{}", folder.display());
    for entry in fs::read_dir(folder).with_context(folder_name)? {
        let file_name = entry.with_context(folder_name)?.file_name();
        let name = file_name.to_string_lossy();
        let is_ticket_key = name.starts_with("ticket-") && name.ends_with(".key");
        if is_ticket_key && !current.iter().any(|kept| *kept == name) {
            fs::remove_file(folder.join(&*name)).with_context(|| name.into_owned())?;
        }
    }
    Ok(())
}

fn file_name(key: &ExportedKey) -> String {
    format!("ticket-{}-{}.key", key.generation, key.epoch)
}

/// One line for each key. HAProxy seals with the key in the last line but one, and opens with all keys.
fn haproxy(keys: &ExportedKeys) -> Zeroizing<String> {
    let mut lines = Zeroizing::new(String::new());
    let oldest_first = keys.previous.iter().rev();
    for key in oldest_first.chain([&keys.current, &keys.next]) {
        lines.push_str(&base64(key.aes256()));
        lines.push('\n');
    }
    lines
}

/// A secret of Envoy. Envoy encrypts with the first key, and decrypts with all keys.
fn envoy(keys: &ExportedKeys) -> Zeroizing<String> {
    let mut text = Zeroizing::new(format!(
        "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  \
         name: {ENVOY_SECRET}\n  session_ticket_keys:\n    keys:\n"
    ));
    for key in [&keys.current, &keys.next]
        .into_iter()
        .chain(&keys.previous)
    {
        text.push_str("    - inline_bytes: ");
        text.push_str(&base64(key.aes256()));
        text.push('\n');
    }
    text
}

/// Encodes bytes in base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> Zeroizing<String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 0x3f) as usize];
            let padding = place > chunk.len();
            text.push(if padding { '=' } else { char::from(digit) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length() {
        // The test vectors of RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(*base64(bytes.as_bytes()), text);
        }
        assert_eq!(*base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
