//! Maps the names in `session.forget` to the site and server numbers in sessions.

use sessile_proto::ticket::{ForgetRules, ForgetScope};

use crate::config::{Config, Forget, ForgetTarget};
use crate::{key, tls};

/// The rules of `session.forget`.
pub(super) fn rules(config: &Config, scope: &str) -> ForgetRules {
    let mut rules = ForgetRules::default();
    for Forget { target, before } in &config.session.forget {
        rules.add(forget_scope(target, config, scope), *before);
    }
    rules
}

/// The sessions that `target` selects, in the farm `scope`.
///
/// A server without a configured number gets the number that follows from its name. If only the server's
/// own configuration has the number, `target` must be the number instead of the name.
#[must_use]
pub fn forget_scope(target: &ForgetTarget, config: &Config, scope: &str) -> ForgetScope {
    match target {
        ForgetTarget::Everything => ForgetScope::Everything,
        ForgetTarget::Site(first_name) => ForgetScope::Site(tls::site_id(first_name)),
        ForgetTarget::Number(number) => ForgetScope::Server(*number),
        ForgetTarget::Server(name) => {
            let this = (&config.server.name, config.server.number);
            let balanced = config
                .balance
                .servers
                .iter()
                .map(|server| (&server.name, server.number));
            let configured = std::iter::once(this)
                .chain(balanced)
                .find_map(|(known, number)| number.filter(|_| known == name));
            ForgetScope::Server(configured.unwrap_or_else(|| key::server_number(scope, name)))
        }
    }
}
