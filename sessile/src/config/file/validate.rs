//! Turns a file's tables into a [`Config`], and checks bounds and the conditions between settings and
//! tables. A wrong value becomes a [`Problem`], and the default stays, so that one run finds all
//! problems.

use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;

use super::problem::Problem;
use super::raw;
use super::reader::{Reader, Table};
use super::shape::Shape;
use super::{balance, forget, sites, upstreams};
use crate::config::network::overlap;
use crate::config::settings::types::{KERNEL_WORDS, LISTEN_ADDRESS, OneOf};
use crate::config::{
    Config, Key, Listener, MAX_TICKET_LIFETIME, Network, NotANetwork, Role, Session, StoreUrl,
};

const ROLES: [(&str, Role); 2] = [("serve", Role::Serve), ("balance", Role::Balance)];

/// An address to listen on, and its place in the text.
struct ListenAddress {
    address: SocketAddr,
    offset: usize,
}

/// Validates the values of a text.
pub(super) fn validate(shape: Shape<'_>) -> Result<Config, Vec<Problem>> {
    let Shape {
        mut reader,
        mut config,
        places,
        tables,
    } = shape;
    if !places.contains_key("key.file") {
        // The file may set the state folder, which has the default key file.
        config.key = Key::File(config.default_key_file());
    }
    let mut addresses = Vec::new();
    let (has_site, has_server) = (!tables.site.is_empty(), !tables.balance.server.is_empty());
    for listener in tables.listener {
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
    let balance = &mut config.balance;
    balance::read(&mut reader, tables.balance, unknown_name, balance);
    reader.finish(config)
}

impl Reader<'_> {
    fn lifetime_fits_tickets(&mut self, place: &Range<usize>, session: &Session) {
        if session.tickets && session.lifetime > MAX_TICKET_LIFETIME {
            let lifetime = humantime::format_duration(session.lifetime);
            let what = format!(
                "`lifetime` is {lifetime}, but TLS 1.3 allows tickets at most 7 days; write \"7d\" or less, or set \
                 tickets = false"
            );
            self.note(place.clone(), what);
        }
    }

    /// Early data needs a shared store, so that all servers together accept each session only once.
    fn early_data_fits(&mut self, place: &Range<usize>, session: &Session) {
        if session.early_data == 0 {
            return;
        }
        let what = if session.store == StoreUrl::Memory {
            "`early-data` is on and session.store is \"memory\": a replay would be accepted once by each server; set \
             store = \"redis://HOST\", the same on every server, or remove `early-data`"
        } else if !session.tickets {
            "`early-data` is on and session.tickets is false: without tickets no client can send early data; set \
             tickets = true, or remove `early-data`"
        } else if session.max_entries == 0 || session.lifetime.is_zero() {
            "`early-data` is on and session.max-entries or session.lifetime is 0, so no session is kept; raise it, or \
             remove `early-data`"
        } else {
            return;
        };
        self.note(place.clone(), what);
    }

    fn listener(
        &mut self,
        written: Spanned<raw::Listener>,
        has_site: bool,
        has_server: bool,
        addresses: &mut Vec<ListenAddress>,
    ) -> Option<Listener> {
        let table = Table::new("[[listener]]", &written);
        let listener = written.into_inner();
        let role = match listener.role {
            None => Some(Role::Serve),
            role => self.value(&OneOf(&ROLES), "role", role),
        };
        match role {
            Some(Role::Serve) if !has_site => self.note_reference(
                "site",
                table.span.clone(),
                "the listener has role \"serve\", but there is no site; add a [[site]], or set role = \"balance\"",
            ),
            Some(Role::Balance) if !has_server => self.note_reference(
                "balance.server",
                table.span.clone(),
                "the listener has role \"balance\", but there is no server; add a [[balance.server]] with name and \
                 address",
            ),
            _ => {}
        }
        let expects_header = listener.proxy_protocol.unwrap_or(false);
        let proxies = self.proxies(listener.proxy_trusted, expects_header, &table);
        if role == Some(Role::Balance)
            && let Some(kernel) = &listener.kernel
        {
            let what = "`kernel` has no effect on a listener with role \"balance\", which decrypts nothing; remove it";
            self.note(kernel.span(), what);
        }
        let kernel = self.value(&OneOf(&KERNEL_WORDS), "kernel", listener.kernel);
        let address = self.required(listener.address, &table, "address", "\"0.0.0.0:443\"")?;
        let span = address.span();
        let address = self.value(&LISTEN_ADDRESS, "address", Some(address))?;
        self.claim(address, &span, addresses);
        Some(Listener {
            address,
            role: role?,
            proxies,
            kernel,
        })
    }

    /// The networks that may send PROXY headers. The list is required if the listener expects PROXY
    /// headers.
    fn proxies(
        &mut self,
        trusted: Vec<Spanned<String>>,
        expects_header: bool,
        listener: &Table,
    ) -> Vec<Network> {
        let first = trusted.first().map(Spanned::span);
        let networks = trusted.into_iter();
        let proxies = networks
            .filter_map(|network| self.parse(network, trusted_network))
            .collect();
        match first {
            None if expects_header => self.note(
                listener.span.clone(),
                "`proxy-protocol` is true, but no address is trusted to send the header; add \
                 proxy-trusted = [\"10.0.0.0/8\"], with the addresses of the proxies",
            ),
            Some(first) if !expects_header => self.note(
                first,
                "`proxy-trusted` has no effect without proxy-protocol = true; add that, or remove `proxy-trusted`",
            ),
            _ => {}
        }
        proxies
    }

    /// Notes a problem if another listener has the same address, or has clients in common.
    fn claim(
        &mut self,
        address: SocketAddr,
        place: &Range<usize>,
        addresses: &mut Vec<ListenAddress>,
    ) {
        // With port 0, the system gives each listener a different free port.
        if address.port() == 0 {
            return;
        }
        let mut others = addresses.iter();
        if let Some(other) = others.find(|other| overlap(other.address, address)) {
            let line = self.line_of(other.offset);
            let what = if other.address == address {
                format!(
                    "a second listener address {address}; the first is in line {line}; remove one"
                )
            } else {
                format!(
                    "the listener address {address} has clients in common with {} in line {line}; remove one",
                    other.address
                )
            };
            self.note(place.clone(), what);
        } else {
            let offset = place.start;
            addresses.push(ListenAddress { address, offset });
        }
    }
}

fn trusted_network(value: String) -> Result<Network, String> {
    value.parse().map_err(|NotANetwork| {
        format!(
            "{value:?} in `proxy-trusted` is not a network; write an address, or a prefix with its length, such as \
             \"10.0.0.0/8\" (the bits after the prefix must be zero)"
        )
    })
}
