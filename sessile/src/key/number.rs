//! Server numbers, which name the issuing server in tickets. A number is configured, or derived from
//! the server's name.
//!
//! Two servers with the same number mislead balancers and verdicts. No connection fails.

use std::collections::HashMap;

use crate::config;

/// The default number of a server: 24 bits of SHA-256 of the farm's name and the server's name.
#[must_use]
pub fn server_number(scope: &str, name: &str) -> u32 {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    hash.update(scope.as_bytes());
    hash.update(&[0]);
    hash.update(name.as_bytes());
    let digest = hash.finish();
    let mut word = [0; 4];
    word[1..].copy_from_slice(&digest.as_ref()[..3]);
    u32::from_be_bytes(word)
}

/// The number of this server in the farm `scope`.
#[must_use]
pub fn number(server: &config::Server, scope: &str) -> u32 {
    server
        .number
        .unwrap_or_else(|| server_number(scope, &server.name))
}

/// Two servers with the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash<'a> {
    pub number: u32,
    pub names: [&'a str; 2],
}

/// The clashes among the servers of a farm. Each server is given by its name and its configured
/// number.
///
/// A clash pairs a server with the first server of the same number.
#[must_use]
pub fn clashes<'a>(
    scope: &str,
    servers: impl IntoIterator<Item = (&'a str, Option<u32>)>,
) -> Vec<Clash<'a>> {
    let mut first = HashMap::new();
    let mut clashes = Vec::new();
    for (name, set) in servers {
        let number = set.unwrap_or_else(|| server_number(scope, name));
        let holder = *first.entry(number).or_insert(name);
        if holder != name {
            let names = [holder, name];
            clashes.push(Clash { number, names });
        }
    }
    clashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_numbers_are_stable_and_24_bits() {
        let number = server_number("farm", "web1");
        assert_eq!(number, server_number("farm", "web1"));
        assert_ne!(number, server_number("farm", "web2"));
        assert!(number < 1 << 24);
    }

    #[test]
    fn set_and_derived_numbers_clash_among_each_other() {
        let derived = server_number("farm", "web1");
        let servers = [("web1", None), ("web2", None), ("web3", Some(derived))];
        let clash = Clash {
            number: derived,
            names: ["web1", "web3"],
        };
        assert_eq!(clashes("farm", servers), [clash]);
        assert_eq!(clashes("another farm", servers), []);
    }

    #[test]
    fn names_alone_can_clash() {
        let name = |n: u32| format!("web{n}");
        let mut seen = HashMap::new();
        let pair = (0..).find_map(|n| {
            let other = seen.insert(server_number("farm", &name(n)), n)?;
            Some([name(other), name(n)])
        });
        let [one, other] = pair.unwrap();
        let found = clashes("farm", [(one.as_str(), None), (other.as_str(), None)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].names, [one.as_str(), other.as_str()]);
    }
}
