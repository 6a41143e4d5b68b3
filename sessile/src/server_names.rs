//! A map from server names (SNI), with wildcards, to sites of a server or pools of a balancer.

use std::collections::HashMap;

/// A map from server names and wildcard names to values.
#[derive(Clone, Debug)]
pub struct ServerNames<T> {
    by_name: HashMap<String, T>,
    /// Keys without the first label: `example.org` for `*.example.org`.
    wildcards: HashMap<String, T>,
}

impl<T> Default for ServerNames<T> {
    fn default() -> Self {
        Self {
            by_name: HashMap::new(),
            wildcards: HashMap::new(),
        }
    }
}

impl<T> ServerNames<T> {
    /// Adds a name in lower case. `*.example.org` matches exactly one label before `example.org`.
    pub fn insert(&mut self, name: &str, value: T) {
        let (table, name) = match name.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcards, parent),
            None => (&mut self.by_name, name),
        };
        table.insert(name.to_owned(), value);
    }

    /// Looks up a client's name, in any case. An exact name takes precedence over a wildcard.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&T> {
        let name = name.to_ascii_lowercase();
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.by_name
            .get(&name)
            .or_else(|| self.wildcards.get(parent?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_matches_one_label_and_an_exact_name_takes_precedence() {
        let mut names = ServerNames::default();
        for name in ["example.org", "*.example.org", "www.example.org"] {
            names.insert(name, name);
        }
        let found = |name| names.find(name).copied();
        assert_eq!(found("Example.ORG"), Some("example.org"));
        assert_eq!(found("www.example.org"), Some("www.example.org"));
        assert_eq!(found("shop.EXAMPLE.org"), Some("*.example.org"));
        assert_eq!(found("a.b.example.org"), None);
        assert_eq!(found("org"), None);
        assert_eq!(found(""), None);
    }
}
