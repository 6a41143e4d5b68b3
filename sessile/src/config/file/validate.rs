//! From a file's tables to a [`Config`]: bounds, and the conditions between settings and tables. A value
//! that is wrong leaves its default and a [`Problem`], so that one run finds all of them.

use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;

use super::problem::{Problem, What};
use super::raw;
use super::reader::{Reader, Unique};
use super::shape::Shape;
use super::{balance, forget, sites, upstreams};
use crate::config::{
    Config, Key, Listener, MAX_TICKET_LIFETIME, Network, NotANetwork, Role, Session, StoreUrl,
};

const ROLES: [(&str, Role); 2] = [("serve", Role::Serve), ("balance", Role::Balance)];

/// Validates the values of a text.
pub(super) fn validate(shape: Shape<'_>) -> Result<Config, Vec<Problem>> {
    let Shape {
        mut reader,
        mut config,
        places,
        tables,
    } = shape;
    if !places.contains_key("key.file") {
        // The state folder of the file decides where the key is.
        config.key = Key::File(config.default_key_file());
    }
    let mut addresses = Unique::new("listener address");
    let (has_site, has_server) = (!tables.site.is_empty(), !tables.balance.server.is_empty());
    for listener in &tables.listener {
        let listener = reader.listener(listener, has_site, has_server, &mut addresses);
        config.listeners.extend(listener);
    }
    if let (Some(address), Some(place)) = (config.admin.listen, places.get("admin.listen")) {
        reader.claim(address, place, &mut addresses);
    }
    if let Some(place) = places.get("session.lifetime") {
        reader.lifetime_fits_tickets(place, &config.session);
    }
    if let Some(place) = places.get("session.early-data") {
        reader.early_data_fits(place, &config.session);
    }
    config.upstreams = upstreams::read(&mut reader, tables.upstream);
    let early_data = config.session.early_data;
    config.sites = sites::read(&mut reader, tables.site, &config.upstreams, early_data);
    config.session.forget = forget::read(&mut reader, tables.session.forget, &config.sites);
    let unknown_name = places.get("balance.unknown-name");
    balance::read(
        &mut reader,
        tables.balance,
        unknown_name,
        &mut config.balance,
    );
    reader.finish(config)
}

impl Reader<'_> {
    fn lifetime_fits_tickets(&mut self, place: &Range<usize>, session: &Session) {
        let value = session.lifetime;
        if session.tickets && value > MAX_TICKET_LIFETIME {
            self.note(place.clone(), What::TooLongForTickets { value });
        }
    }

    /// Early data needs sessions that all servers together can take only once: in a shared store.
    fn early_data_fits(&mut self, place: &Range<usize>, session: &Session) {
        if session.early_data == 0 {
            return;
        }
        let what = if session.store == StoreUrl::Memory {
            What::EarlyDataInMemory
        } else if !session.tickets {
            What::EarlyDataWithoutTickets
        } else if session.max_entries == 0 || session.lifetime.is_zero() {
            What::EarlyDataWithoutSessions
        } else {
            return;
        };
        self.note(place.clone(), what);
    }

    fn listener(
        &mut self,
        written: &Spanned<raw::Listener>,
        has_site: bool,
        has_server: bool,
        addresses: &mut Unique<SocketAddr>,
    ) -> Option<Listener> {
        let listener = written.get_ref();
        let role = match &listener.role {
            None => Some(Role::Serve),
            some => self.one_of("role", some.clone(), &ROLES),
        };
        match role {
            Some(Role::Serve) if !has_site => self.note(written.span(), What::NothingToServe),
            Some(Role::Balance) if !has_server => {
                self.note(written.span(), What::NothingToBalance);
            }
            _ => {}
        }
        let proxies = self.proxies(written);
        let missing = What::missing("[[listener]]", "address", "\"0.0.0.0:443\"");
        let address = self.required(listener.address.clone(), written.span(), missing)?;
        let span = address.span();
        let address = self.address("address", Some(address))?;
        self.claim(address, &span, addresses);
        Some(Listener {
            address,
            role: role?,
            proxies,
        })
    }

    /// The networks that may send PROXY headers. They are needed if the listener expects the headers.
    fn proxies(&mut self, written: &Spanned<raw::Listener>) -> Vec<Network> {
        let listener = written.get_ref();
        let expects_header = listener.proxy_protocol.unwrap_or(false);
        let mut proxies = Vec::new();
        for network in &listener.proxy_trusted {
            match network.get_ref().parse() {
                Ok(network) => proxies.push(network),
                Err(NotANetwork) => {
                    let value = network.get_ref().clone();
                    self.note(network.span(), What::NotANetwork { value });
                }
            }
        }
        match listener.proxy_trusted.first() {
            None if expects_header => self.note(written.span(), What::NobodyTrusted),
            Some(first) if !expects_header => self.note(first.span(), What::TrustedForNothing),
            _ => {}
        }
        proxies
    }

    /// Notes a second listener on the same address.
    fn claim(
        &mut self,
        address: SocketAddr,
        place: &Range<usize>,
        addresses: &mut Unique<SocketAddr>,
    ) {
        // With port 0, the system gives each listener a different free port.
        if address.port() != 0 {
            self.unique(addresses, address, place);
        }
    }
}
