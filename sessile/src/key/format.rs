//! The format of a key file: TOML, with the secrets in hex. A server's file holds ticket chains; a
//! balancer's part does not.
//!
//! A comment in the head has a checksum of the contents. A file of an earlier version has none.

use std::fmt::{self, Write as _};
use std::time::Duration;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use sessile_proto::keys::{BadTerms, Chain, FarmKey, Generation, Secret, WeakSecret};
use zeroize::Zeroizing;

/// The first lines of a whole key. An export never overwrites a file that begins like this.
pub(super) const HEAD: &str = "\
# sessile farm key. Whoever has this file can open and forge every ticket of the farm:
# keep it readable by its owner alone, and copy it over encrypted channels only.
";

const ROUTE_HEAD: &str = "\
# sessile route key, for balancers: it reads which server made a ticket, and opens none.
# Keep it readable by its owner alone all the same.
";

/// The beginning of every key file, unless a user removed the comments.
const HEAD_START: &str = "# sessile ";

pub(super) const FORMAT: u32 = 1;

/// The beginning of the line with the checksum. Earlier versions read the line as a comment.
const CHECKSUM: &str = "# checksum: ";

/// An error in the text of a key file. The messages never quote a secret.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("this is not a farm key; check the path")]
    NotAKey,
    #[error("line {line}: {message}")]
    Syntax { line: usize, message: String },
    #[error(
        "format {0} is not known to this version of sessile, which reads format {FORMAT}; \
         update sessile here, or copy the file from a server with this version"
    )]
    Format(u32),
    #[error("{name} = {value:?}: {source}")]
    Duration {
        name: &'static str,
        value: String,
        source: humantime::DurationError,
    },
    #[error("the {chain} secret of generation {generation} is not hex")]
    NotHex { chain: &'static str, generation: u8 },
    #[error("the {chain} secret of generation {generation} is refused: {weak}")]
    Weak {
        chain: &'static str,
        generation: u8,
        weak: WeakSecret,
    },
    #[error(
        "generation {0} has a ticket epoch without a ticket secret, or a secret without an epoch"
    )]
    HalfAChain(u8),
    #[error(
        "the contents do not match the file's checksum, so the file was damaged or edited; restore a backup, or copy \
         the key from a server again (to keep an edit, remove the line that begins with `# checksum:`)"
    )]
    Checksum,
    #[error(transparent)]
    Terms(#[from] BadTerms),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    format: u32,
    scope: String,
    rotate: String,
    max_lifetime: String,
    generation: Vec<WrittenGeneration>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct WrittenGeneration {
    number: u8,
    activates: Option<u64>,
    ends: Option<u64>,
    ticket_epoch: Option<u64>,
    ticket_secret: Option<Zeroizing<String>>,
    route_day: u64,
    route_secret: Zeroizing<String>,
}

/// Reads the text of a key file, whole or the balancer's part.
pub(super) fn parse(text: &str) -> Result<FarmKey, Malformed> {
    let written: Written = toml::from_str(text).map_err(|error| {
        if !text.starts_with(HEAD_START) && !text.contains("secret") {
            return Malformed::NotAKey;
        }
        // The error's own message would quote the line, and a secret with it.
        Malformed::Syntax {
            line: error
                .span()
                .map_or(1, |span| text[..span.start].matches('\n').count() + 1),
            message: without_values(error.message()),
        }
    })?;
    if written.format != FORMAT {
        return Err(Malformed::Format(written.format));
    }
    let key = FarmKey {
        rotate: parse_duration("rotate", written.rotate)?,
        max_lifetime: parse_duration("max-lifetime", written.max_lifetime)?,
        scope: written.scope,
        generations: written
            .generation
            .into_iter()
            .map(read_generation)
            .collect::<Result<_, _>>()?,
    };
    // A value that no key can have has a more helpful error.
    key.check_terms()?;
    if written_checksum(text).is_some_and(|written| written != checksum(&key)) {
        return Err(Malformed::Checksum);
    }
    Ok(key)
}

/// The checksum in the comments before the first entry.
fn written_checksum(text: &str) -> Option<&str> {
    let mut head = text.lines().take_while(|line| line.starts_with('#'));
    let value = head.find_map(|line| line.strip_prefix(CHECKSUM.trim_end()))?;
    Some(value.trim())
}

/// The checksum of everything that a key file says. It does not depend on how the TOML is written.
///
/// A change of this text would make every key file of earlier versions unusable.
fn checksum(key: &FarmKey) -> String {
    // Reserve space, because a buffer that grows leaves copies of secrets behind.
    let mut contents = Zeroizing::new(String::with_capacity(8 * 1024));
    contents.push_str(&key.scope);
    for duration in [key.rotate, key.max_lifetime] {
        add(&mut contents, duration.as_nanos());
    }
    for generation in &key.generations {
        add(&mut contents, generation.number);
        add_option(&mut contents, generation.activates);
        add_option(&mut contents, generation.ends);
        for chain in [generation.ticket.as_ref(), Some(&generation.route)] {
            add_option(&mut contents, chain.map(Chain::epoch));
            add_option(
                &mut contents,
                chain.map(|chain| Hex(chain.secret().expose())),
            );
        }
    }
    let digest = digest::digest(&digest::SHA256, contents.as_bytes());
    format!("sha256:{}", Hex(digest.as_ref()))
}

fn add(text: &mut String, value: impl fmt::Display) {
    write!(text, " {value}").expect("a string takes any text");
}

fn add_option(text: &mut String, value: Option<impl fmt::Display>) {
    match value {
        Some(value) => add(text, value),
        None => add(text, '-'),
    }
}

/// Bytes as lowercase hex digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn parse_duration(name: &'static str, value: String) -> Result<Duration, Malformed> {
    humantime::parse_duration(&value).map_err(|source| Malformed::Duration {
        name,
        value,
        source,
    })
}

/// Hides quoted values in a message, such as `invalid type: string "…"`: they can be secrets.
fn without_values(message: &str) -> String {
    let mut is_quoted = false;
    let mut hidden = String::with_capacity(message.len());
    for part in message.split_inclusive('"') {
        if is_quoted {
            hidden.push_str("…\"");
        } else {
            hidden.push_str(part);
        }
        is_quoted = !is_quoted;
    }
    hidden
}

fn read_generation(written: WrittenGeneration) -> Result<Generation, Malformed> {
    let generation = written.number;
    let ticket = match (written.ticket_epoch, written.ticket_secret) {
        (Some(epoch), Some(hex)) => {
            Some(Chain::new(epoch, read_secret("ticket", generation, &hex)?))
        }
        (None, None) => None,
        _ => return Err(Malformed::HalfAChain(generation)),
    };
    Ok(Generation {
        number: generation,
        activates: written.activates,
        ends: written.ends,
        ticket,
        route: Chain::new(
            written.route_day,
            read_secret("route", generation, &written.route_secret)?,
        ),
    })
}

fn read_secret(chain: &'static str, generation: u8, hex: &str) -> Result<Secret, Malformed> {
    let bytes = from_hex(hex).ok_or(Malformed::NotHex { chain, generation })?;
    Secret::new(&bytes).map_err(|weak| Malformed::Weak {
        chain,
        generation,
        weak,
    })
}

/// The text of a key file.
pub(super) fn encode(key: &FarmKey) -> Zeroizing<String> {
    let written = Written {
        format: FORMAT,
        scope: key.scope.clone(),
        rotate: written_duration(key.rotate),
        max_lifetime: written_duration(key.max_lifetime),
        generation: key.generations.iter().map(write_generation).collect(),
    };
    let body = Zeroizing::new(
        toml::to_string(&written).expect("a table of strings and numbers has a TOML form"),
    );
    let head = if key.is_route_part() {
        ROUTE_HEAD
    } else {
        HEAD
    };
    let checksum = checksum(key);
    Zeroizing::new(format!("{head}{CHECKSUM}{checksum}\n{}", *body))
}

fn write_generation(generation: &Generation) -> WrittenGeneration {
    let ticket = generation.ticket.as_ref();
    WrittenGeneration {
        number: generation.number,
        activates: generation.activates,
        ends: generation.ends,
        ticket_epoch: ticket.map(Chain::epoch),
        ticket_secret: ticket.map(|chain| to_hex(chain.secret())),
        route_day: generation.route.epoch(),
        route_secret: to_hex(generation.route.secret()),
    }
}

fn written_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn to_hex(secret: &Secret) -> Zeroizing<String> {
    let mut hex = Zeroizing::new(String::with_capacity(64));
    write!(hex, "{}", Hex(secret.expose())).expect("a string takes any text");
    hex
}

fn from_hex(hex: &str) -> Option<Zeroizing<Vec<u8>>> {
    if !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) || !hex.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(hex.len() / 2));
    for at in (0..hex.len()).step_by(2) {
        bytes.push(u8::from_str_radix(&hex[at..at + 2], 16).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> FarmKey {
        super::super::edit::fresh(super::super::DEFAULT_MAX_LIFETIME).unwrap()
    }

    /// Reads a key file with one line changed.
    fn with_line(name: &str, value: &str) -> Result<FarmKey, Malformed> {
        let text = encode(&key());
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        parse(&text.replace(line, &format!("{name} = {value}")))
    }

    #[test]
    fn whole_keys_and_route_parts_read_back_as_they_were_written() {
        let mut key = key();
        let now = crate::clock::now();
        key.add_generation(super::super::edit::random_secrets().unwrap(), None, now)
            .unwrap();
        for key in [key.route_part(now), key] {
            let text = encode(&key);
            assert_eq!(*encode(&parse(&text).unwrap()), *text);
            assert_eq!(text.contains("ticket-secret"), !key.is_route_part());
        }
    }

    /// Where a line's value stands in a key file.
    fn values<'a>(
        text: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = std::ops::Range<usize>> + 'a {
        let lines = text.match_indices(name).map(|(at, name)| at + name.len());
        lines.map(|start| start..start + text[start..].find('\n').unwrap())
    }

    #[test]
    fn a_changed_digit_of_a_secret_or_of_the_checksum_is_refused() {
        let text = encode(&key());
        let parts = [("-secret = \"", 64), ("# checksum: sha256:", 64)];
        let mut positions = 0;
        for (name, digits) in parts {
            for value in values(&text, name) {
                for at in value.start..value.start + digits {
                    let mut changed = text.as_bytes().to_vec();
                    changed[at] = if changed[at] == b'7' { b'8' } else { b'7' };
                    let error = parse(str::from_utf8(&changed).unwrap()).err().unwrap();
                    assert!(matches!(error, Malformed::Checksum), "{at}: {error}");
                    positions += 1;
                }
            }
        }
        assert_eq!(positions, 3 * 64);
    }

    #[test]
    fn each_value_counts_for_the_checksum() {
        let mut key = key();
        key.scope = "farm-1".to_owned();
        let now = crate::clock::now();
        let at = now.plus(Duration::from_secs(24 * 60 * 60));
        key.add_generation(super::super::edit::random_secrets().unwrap(), Some(at), now)
            .unwrap();
        let text = encode(&key);
        for name in [
            "scope = ",
            "rotate = ",
            "max-lifetime = ",
            "number = ",
            "activates = ",
            "ends = ",
            "ticket-epoch = ",
            "route-day = ",
        ] {
            let value = values(&text, name).last().expect(name);
            let last = text[value].rfind(|c: char| c.is_ascii_digit()).unwrap();
            let at = values(&text, name).last().unwrap().start + last;
            let digit = if text.as_bytes()[at] == b'7' {
                "8"
            } else {
                "7"
            };
            let mut changed = text.to_string();
            changed.replace_range(at..=at, digit);
            let error = parse(&changed).err().expect(name);
            assert!(matches!(error, Malformed::Checksum), "{name}: {error}");
        }
        let cut = text.rfind("[[generation]]").unwrap();
        assert!(matches!(parse(&text[..cut]), Err(Malformed::Checksum)));
    }

    #[test]
    fn the_checksum_of_a_file_never_changes() {
        let text = "\
# checksum: sha256:a5f161dd6fd1b9370e3f90cc2c9fb9c20be885628052e47a9b0922e006e7bd83
format = 1
scope = \"shop\"
rotate = \"1h\"
max-lifetime = \"10h\"

[[generation]]
number = 0
ends = 1795800000
ticket-epoch = 498800
ticket-secret = \"5d677fa5d91b6bc935af37cd7123e3b18d776f7589abdb1965bf279d21b35301\"
route-day = 20780
route-secret = \"9ba7c1e91f63b51583ff8921c77b3d0debd7d1d9ef134585d32f9911972bcd7d\"

[[generation]]
number = 1
activates = 1795700000
ticket-epoch = 498801
ticket-secret = \"556787b5f13b93f96def7f1dc9834b2105f7f705214b83c91d7fef6df9933bf1\"
route-day = 20781
route-secret = \"17274571abf349ad1f9f2dc9732bf1c5a79795a1bbe3195daf0f7df9831bc175\"
";
        let key = parse(text).unwrap();
        assert!(encode(&key).contains(text.lines().next().unwrap()));
    }

    #[test]
    fn a_file_of_an_earlier_version_or_written_in_another_way_is_read() {
        let text = encode(&key());
        let line = text
            .lines()
            .find(|line| line.starts_with(CHECKSUM))
            .unwrap();
        let earlier = text.replace(&format!("{line}\n"), "");
        for other in [
            &earlier,
            &text.replace('\n', "\r\n"),
            &text.replace(" = ", "="),
        ] {
            assert_eq!(*encode(&parse(other).unwrap()), *text);
        }
    }

    proptest! {
        /// A changed bit leads to an error, or it changes nothing that the key is made of.
        #[test]
        fn a_changed_bit_never_makes_another_key(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let text = encode(&key());
            let mut changed = text.as_bytes().to_vec();
            changed[at.index(text.len())] ^= 1 << bit;
            if let Ok(Ok(key)) = str::from_utf8(&changed).map(parse) {
                prop_assert_eq!(&*encode(&key), &*text);
            }
        }
    }

    #[test]
    fn an_error_names_the_line_and_never_the_secret() {
        let text = encode(&key());
        let line = text.lines().find(|l| l.starts_with("ticket-secret"));
        let secret = line.unwrap().rsplit(' ').next().unwrap().trim_matches('"');
        for broken in [
            text.replace("ticket-secret = ", "ticket-secret "),
            text.replace(
                "ticket-epoch = ",
                &format!("ticket-epoch = \"{secret}\" # "),
            ),
            text.replace("ticket-secret = ", "ticket-secrets = "),
        ] {
            let error = parse(&broken).err().unwrap();
            let said = format!("{error} {error:?}");
            assert!(said.contains("line ") && !said.contains(secret), "{said}");
        }
    }

    #[test]
    fn weak_secrets_and_unknown_formats_are_refused_by_name() {
        let sequence: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
        for (hex, weak) in [
            ("0".repeat(64), "it is all zero"),
            ("ab".repeat(32), "it is one byte, repeated"),
            ("0badcafe".repeat(8), "it is 4 bytes, repeated"),
            ("4d".repeat(16), "it has 16 bytes where 32 are needed"),
            (sequence, "it is a sequence"),
        ] {
            let error = with_line("route-secret", &format!("\"{hex}\"")).err();
            let said = error.unwrap().to_string();
            let expected = format!("the route secret of generation 0 is refused: {weak}");
            assert!(said.starts_with(&expected), "{said}");
        }
        let error = with_line("format", "9").err().unwrap();
        assert!(matches!(error, Malformed::Format(9)), "{error}");
        let error = with_line("rotate", "\"soon\"").err().unwrap();
        assert!(
            error.to_string().starts_with("rotate = \"soon\""),
            "{error}"
        );
        let error = with_line("ticket-secret", "\"+1\"").err().unwrap();
        assert!(matches!(error, Malformed::NotHex { .. }), "{error}");
    }
}
