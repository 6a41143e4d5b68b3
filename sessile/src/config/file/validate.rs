//! From the file's shape to a [`Config`]: defaults, bounds and what has to fit together. A value that
//! does not pass leaves its default behind and a [`Problem`], so that one run finds them all.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use sessile_proto::hello::MAX_LIMIT;
use toml::Spanned;
use tracing::level_filters::LevelFilter;

use super::problem::{Problem, What};
use super::raw::{self, Text};
use super::reader::{Reader, Unique};
use super::{balance, forget, sites, upstreams};
use crate::config::{
    AccessLog, Config, Connection, KernelTls, Key, Listener, MAX_EARLY_DATA, MAX_NUMBER,
    MAX_STORE_TIMEOUT, MAX_TICKET_LIFETIME, Network, NotANetwork, Role, Server, Session, StoreUrl,
};

const MAX_WORKERS: i64 = 1024;
/// Most bytes of a server's name.
const MAX_NAME_LEN: usize = 255;

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];
const ROLES: [(&str, Role); 2] = [("serve", Role::Serve), ("balance", Role::Balance)];
const KERNEL: [(&str, KernelTls); 2] = [("auto", KernelTls::Auto), ("off", KernelTls::Off)];

/// Least `connection.max-hello-bytes`: some hellos of the greatest length.
const LEAST_HELLO_BYTES: i64 = 1 << 20;

/// `connection.max-hello-size`: no less than what clients of today send.
const HELLO_SIZES: RangeInclusive<u32> = 4096..=MAX_LIMIT as u32;

/// Validates what is written. Relative paths are relative to `folder`.
pub(super) fn validate(
    written: raw::File,
    text: &str,
    folder: &Path,
) -> Result<Config, Vec<Problem>> {
    let mut reader = Reader::new(text, folder);
    let config = reader.file(written);
    reader.finish(config)
}

impl Reader<'_> {
    fn file(&mut self, mut written: raw::File) -> Config {
        let defaults = Config::default();
        let server = self.server(written.server, defaults.server);
        let key = self.key(written.key, &server.state_dir);
        let connection = self.connection(written.connection, defaults.connection);
        let tls = crate::config::Tls {
            kernel: self.kernel(written.tls.kernel),
        };
        let log = crate::config::Log {
            level: self
                .one_of("level", written.log.level, &LEVELS)
                .unwrap_or(defaults.log.level),
            access: self.access(written.log.access),
        };
        let mut addresses = Unique::new("listener address");
        let mut listeners = Vec::new();
        for listener in &written.listener {
            let (has_site, has_server) =
                (!written.site.is_empty(), !written.balance.server.is_empty());
            listeners.extend(self.listener(listener, has_site, has_server, &mut addresses));
        }
        let admin = crate::config::Admin {
            listen: self.admin(written.admin.listen, &mut addresses),
            token_file: self.path("token-file", written.admin.token_file),
        };
        let upstreams = upstreams::read(self, written.upstream);
        let forget = std::mem::take(&mut written.session.forget);
        let mut session = self.session(written.session, defaults.session);
        let sites = sites::read(self, written.site, &upstreams, session.early_data);
        session.forget = forget::read(self, forget, &sites);
        Config {
            server,
            session,
            key,
            connection,
            tls,
            admin,
            log,
            listeners,
            sites,
            upstreams,
            balance: balance::read(self, written.balance, defaults.balance),
        }
    }

    fn server(&mut self, written: raw::Server, default: Server) -> Server {
        Server {
            name: self.server_name(written.name).unwrap_or(default.name),
            number: self.number("number", written.number, 0, i64::from(MAX_NUMBER)),
            state_dir: self
                .path("state-dir", written.state_dir)
                .unwrap_or(default.state_dir),
            workers: self
                .number("workers", written.workers, 0, MAX_WORKERS)
                .unwrap_or(default.workers),
        }
    }

    /// All but what is forgotten, which names sites.
    fn session(&mut self, written: raw::Session, default: Session) -> Session {
        let tickets = written.tickets.unwrap_or(default.tickets);
        let span = written.lifetime.as_ref().map(Spanned::span);
        let lifetime = self.duration("lifetime", written.lifetime);
        if let (Some(span), Some(value)) = (span, lifetime)
            && tickets
            && value > MAX_TICKET_LIFETIME
        {
            self.note(span, What::TooLongForTickets { value });
        }
        let early_data = written.early_data.as_ref().map(Spanned::span);
        let session = Session {
            max_entries: self
                .number("max-entries", written.max_entries, 0, i64::from(u32::MAX))
                .unwrap_or(default.max_entries),
            lifetime: lifetime.unwrap_or(default.lifetime),
            tickets,
            store: self.store(written.store).unwrap_or(default.store),
            store_timeout: self
                .store_timeout(written.store_timeout)
                .unwrap_or(default.store_timeout),
            snapshot: written.snapshot.unwrap_or(default.snapshot),
            early_data: self
                .size("early-data", written.early_data, 0..=MAX_EARLY_DATA)
                .unwrap_or(default.early_data),
            client_lifetime: self
                .duration("client-lifetime", written.client_lifetime)
                .unwrap_or(default.client_lifetime),
            require_close_notify: written
                .require_close_notify
                .unwrap_or(default.require_close_notify),
            forget: Vec::new(),
        };
        if let Some(span) = early_data.filter(|_| session.early_data > 0) {
            self.early_data_fits(span, &session);
        }
        session
    }

    /// Early data needs sessions that can be spent once on all servers, so kept in one place.
    fn early_data_fits(&mut self, span: Range<usize>, session: &Session) {
        let (lacks, remedy) = if session.store == StoreUrl::Memory {
            (
                "session.store is \"memory\", where each server would take it once",
                "set store = \"redis://HOST\", the same on every server",
            )
        } else if !session.tickets {
            (
                "session.tickets is false: without tickets no client can send any",
                "set tickets = true",
            )
        } else if session.max_entries == 0 || session.lifetime.is_zero() {
            (
                "session.max-entries or session.lifetime is 0, so no session is kept",
                "give it another value",
            )
        } else {
            return;
        };
        self.note(span, What::EarlyDataLacks { lacks, remedy });
    }

    /// The value may hold a password, so that no problem with it repeats it.
    fn store(&mut self, written: Text) -> Option<StoreUrl> {
        let written = self.text("store", written)?;
        let mut store = written.get_ref().parse();
        match &mut store {
            Ok(StoreUrl::Redis(redis)) => {
                for file in redis.files_mut() {
                    *file = self.resolve(&file.to_string_lossy());
                }
            }
            Ok(StoreUrl::Memory) => {}
            Err(bad) => self.note(written.span(), What::Store(*bad)),
        }
        store.ok()
    }

    fn store_timeout(&mut self, written: raw::Span) -> Option<Duration> {
        const KEY: &str = "store-timeout";
        let span = written.as_ref().map(Spanned::span)?;
        let value = self.positive(KEY, written)?;
        let most = MAX_STORE_TIMEOUT;
        if value > most {
            let key = KEY;
            self.note(span, What::TooLong { key, value, most });
            return None;
        }
        Some(value)
    }

    fn key(&mut self, written: raw::Key, state_dir: &Path) -> Key {
        match self.text("file", written.file) {
            None => Key::File(state_dir.join("farm.key")),
            Some(file) if file.get_ref() == "none" => Key::Ephemeral,
            Some(file) => Key::File(self.resolve(file.get_ref())),
        }
    }

    fn connection(&mut self, written: raw::Connection, default: Connection) -> Connection {
        Connection {
            idle_timeout: self
                .positive("idle-timeout", written.idle_timeout)
                .unwrap_or(default.idle_timeout),
            purge_on_reclaim: written.purge_on_reclaim.unwrap_or(default.purge_on_reclaim),
            max: self
                .number("max", written.max, 0, i64::from(u32::MAX))
                .unwrap_or(default.max),
            max_hellos: self
                .number("max-hellos", written.max_hellos, 0, i64::from(u32::MAX))
                .unwrap_or(default.max_hellos),
            max_hello_bytes: self
                .number(
                    "max-hello-bytes",
                    written.max_hello_bytes,
                    LEAST_HELLO_BYTES,
                    i64::from(u32::MAX),
                )
                .unwrap_or(default.max_hello_bytes),
            max_hello_size: self
                .size("max-hello-size", written.max_hello_size, HELLO_SIZES)
                .map_or(default.max_hello_size, |size| size as usize),
            max_per_source: self
                .number(
                    "max-per-source",
                    written.max_per_source,
                    0,
                    i64::from(u32::MAX),
                )
                .unwrap_or(default.max_per_source),
            rate_per_source: self
                .number(
                    "rate-per-source",
                    written.rate_per_source,
                    0,
                    i64::from(u32::MAX),
                )
                .unwrap_or(default.rate_per_source),
            drain_timeout: self
                .duration("drain-timeout", written.drain_timeout)
                .unwrap_or(default.drain_timeout),
        }
    }

    fn kernel(&mut self, written: Text) -> KernelTls {
        if let Some(value) = &written
            && value.get_ref() == "on"
        {
            self.note(value.span(), What::KernelIsOn);
            return KernelTls::default();
        }
        self.one_of("kernel", written, &KERNEL).unwrap_or_default()
    }

    fn access(&mut self, written: Text) -> AccessLog {
        let Some(value) = self.text("access", written) else {
            return AccessLog::default();
        };
        match value.get_ref().as_str() {
            "-" => AccessLog::Stdout,
            "off" => AccessLog::Off,
            path => AccessLog::File(self.resolve(path)),
        }
    }

    fn admin(&mut self, written: Text, addresses: &mut Unique<SocketAddr>) -> Option<SocketAddr> {
        let span = written.as_ref().map(Spanned::span)?;
        let address = self.address("listen", written)?;
        self.claim(address, &span, addresses);
        Some(address)
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
        let missing = What::Missing {
            table: "[[listener]]",
            key: "address",
            example: "\"0.0.0.0:443\"",
        };
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

    /// Who may send PROXY headers to a listener; who may is asked for wherever they are awaited.
    fn proxies(&mut self, written: &Spanned<raw::Listener>) -> Vec<Network> {
        let listener = written.get_ref();
        let awaited = listener.proxy_protocol.unwrap_or(false);
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
            None if awaited => self.note(written.span(), What::NobodyTrusted),
            Some(first) if !awaited => self.note(first.span(), What::TrustedForNothing),
            _ => {}
        }
        proxies
    }

    fn claim(
        &mut self,
        address: SocketAddr,
        span: &Range<usize>,
        addresses: &mut Unique<SocketAddr>,
    ) {
        // Port 0 is another free port each time.
        if address.port() != 0 {
            self.unique(addresses, address, span);
        }
    }

    /// `server.name`, and what stands for it elsewhere.
    pub(super) fn server_name(&mut self, written: Text) -> Option<String> {
        let name = written?;
        let value = name.get_ref();
        if value.is_empty() || value.len() > MAX_NAME_LEN || value.chars().any(char::is_control) {
            let value = value.clone();
            self.note(name.span(), What::NotAName { value });
            return None;
        }
        Some(name.into_inner())
    }
}
