//! Which sessions a request to forget means: the names that people write, and the numbers that
//! sessions carry.

use sessile_proto::ticket::{Extent, Forgotten};

use crate::config::{Config, Forget, Whose};
use crate::{key, tls};

/// What `session.forget` says.
pub(super) fn marks(config: &Config, scope: &str) -> Forgotten {
    let mut marks = Forgotten::default();
    for Forget { whose, before } in &config.session.forget {
        marks.mark(extent(whose, config, scope), *before);
    }
    marks
}

/// The sessions of a site or a server in the farm of that scope. A server whose number is set, and
/// not here, has to be given by its number.
#[must_use]
pub fn extent(whose: &Whose, config: &Config, scope: &str) -> Extent {
    match whose {
        Whose::Everyones => Extent::Everything,
        Whose::Site(first_name) => Extent::Site(tls::site_id(first_name)),
        Whose::Number(number) => Extent::Server(*number),
        Whose::Server(name) => {
            let this = (&config.server.name, config.server.number);
            let balanced = config.balance.servers.iter().map(|s| (&s.name, s.number));
            let set = std::iter::once(this)
                .chain(balanced)
                .find_map(|(known, number)| number.filter(|_| known == name));
            Extent::Server(set.unwrap_or_else(|| key::server_number(scope, name)))
        }
    }
}
