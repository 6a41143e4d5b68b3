//! Which of several things a client's server name (SNI) leads to: sites of a server, pools of a
//! balancer.

use std::collections::HashMap;

/// Things by server name.
#[derive(Clone, Debug)]
pub struct ServerNames<T> {
    by_name: HashMap<String, T>,
    /// By what follows the first label: `example.org` for `*.example.org`.
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
    /// `name` is in lower case, as the configuration has it; `*.example.org` is any one label below.
    pub fn insert(&mut self, name: &str, value: T) {
        let (table, name) = match name.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcards, parent),
            None => (&mut self.by_name, name),
        };
        table.insert(name.to_owned(), value);
    }

    /// What a name leads to as the client sent it, in any case: a whole name before a wildcard.
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
    fn a_wildcard_is_any_one_label_and_a_whole_name_comes_first() {
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
