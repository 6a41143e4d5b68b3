//! The remedies for findings, in the words of each product.

/// What an operator can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    None,
    ShareTicketKeys,
    DistributeNewKey,
    ShareCache,
    EnableCache,
    EnableTickets,
    SameSettings,
    AskEachServer,
    GiveCertificate,
    MendResumption,
    SeparateNames,
    KeepIdleSessions,
    LongerLifetime,
    ShorterLifetime,
    SameContext,
    RandomTicketKey,
    RotateKeys,
}

/// A step for one product. `product` is empty if the step does not depend on the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub product: &'static str,
    pub text: &'static str,
}

const fn step(product: &'static str, text: &'static str) -> Step {
    Step { product, text }
}

const SHARE_TICKET_KEYS: &[Step] = &[
    step(
        "nginx",
        "set ssl_session_ticket_key to the same file on each server",
    ),
    step(
        "HAProxy",
        "bind … tls-ticket-keys with the same file on each server",
    ),
    step(
        "Apache",
        "set SSLSessionTicketKeyFile to the same file on each server",
    ),
    step(
        "Envoy",
        "session_ticket_keys with the same keys on each server",
    ),
    step(
        "Caddy",
        "session_tickets with the key source distributed, and one storage for all servers",
    ),
    step(
        "Traefik",
        "not possible; put a balancer that routes by session in front",
    ),
    step(
        "IIS",
        "New-TlsSessionTicketKey, then Enable-TlsSessionTicketKey with the same key on each server",
    ),
    step("sessile", "copy the key file of one server to each server"),
    step(
        "all",
        "sessile key export writes the ticket keys for nginx, HAProxy, Apache and Envoy",
    ),
];

const SHARE_CACHE: &[Step] = &[
    step(
        "nginx",
        "cannot share a cache between hosts; give tickets (ssl_session_tickets on) with a shared key",
    ),
    step(
        "HAProxy",
        "cannot share a cache between hosts; give tickets with tls-ticket-keys",
    ),
    step(
        "Apache",
        "SSLSessionCache with a provider that all servers reach, such as redis or memcache",
    ),
    step(
        "sessile",
        "session.store with the same Redis or Valkey on each server",
    ),
    step(
        "all",
        "or a balancer that routes by session ID, such as sessile balance",
    ),
];

const ENABLE_CACHE: &[Step] = &[
    step(
        "",
        "if several servers have this address, probe each of them: --address 10.0.0.1,10.0.0.2",
    ),
    step(
        "nginx",
        "ssl_session_cache shared:tls:10m; (the default none gives session IDs and stores nothing)",
    ),
    step(
        "Apache",
        "SSLSessionCache shmcb:/run/apache2/sessions(512000)",
    ),
    step("sessile", "session.max-entries above 0"),
];

const ENABLE_TICKETS: &[Step] = &[
    step(
        "nginx",
        "ssl_session_tickets on; and ssl_session_cache shared:tls:10m;",
    ),
    step(
        "HAProxy",
        "remove no-tls-tickets, or set tune.ssl.cachesize above 0",
    ),
    step("Apache", "SSLSessionTickets on, and SSLSessionCache"),
    step("sessile", "session.tickets = true"),
];

const DISTRIBUTE_NEW_KEY: &[Step] = &[step(
    "",
    "copy the new ticket key to every server first, as a key that only opens tickets; then let the servers seal \
     with it; sessile key export writes such files",
)];

const SAME_SETTINGS: &[Step] = &[step(
    "",
    "give all servers the same settings for sessions and tickets",
)];

const ASK_EACH_SERVER: &[Step] = &[
    step(
        "",
        "probe the servers behind the balancer: --address 10.0.0.1,10.0.0.2; then share their ticket keys, or \
         balance by session",
    ),
    step(
        "Dovecot",
        "service_count = 0 for imap-login and pop3-login (by default, each connection has a process with its own \
         ticket keys)",
    ),
];

const GIVE_CERTIFICATE: &[Step] = &[step(
    "",
    "give the probe a certificate: --cert FILE --key FILE",
)];

const MEND_RESUMPTION: &[Step] = &[step(
    "",
    "until the server's TLS stack is mended, turn off the mechanism that fails; the table shows which one",
)];

const KEEP_IDLE_SESSIONS: &[Step] = &[
    step(
        "IIS 6.0",
        "EnableKernelSSL=1 in HTTP\\\\Parameters (article KB937687)",
    ),
    step("sessile", "connection.purge-on-reclaim = false"),
];

const LONGER_LIFETIME: &[Step] = &[
    step("nginx", "ssl_session_timeout (5 minutes by default)"),
    step(
        "HAProxy",
        "tune.ssl.lifetime, and a larger tune.ssl.cachesize",
    ),
    step("Apache", "SSLSessionCacheTimeout"),
    step("IIS", "ServerCacheTime and MaximumCacheSize of SCHANNEL"),
    step("sessile", "session.lifetime and session.max-entries"),
];

const SHORTER_LIFETIME: &[Step] = &[
    step("nginx", "ssl_session_timeout of at most 7d"),
    step("HAProxy", "tune.ssl.lifetime of at most 7d"),
    step("Apache", "SSLSessionCacheTimeout of at most 604800"),
];

const SAME_CONTEXT: &[Step] = &[
    step(
        "nginx",
        "the same ssl_certificate files and ssl_client_certificate on each server",
    ),
    step("Apache", "the same ServerName and port on each server"),
    step(
        "",
        "the same certificate and settings for client certificates on each server",
    ),
];

const RANDOM_TICKET_KEY: &[Step] = &[
    step(
        "nginx",
        "openssl rand 80 >ticket.key, with ssl_session_ticket_key",
    ),
    step(
        "HAProxy",
        "openssl rand -base64 80 | tr -d '\\n', three lines, with tls-ticket-keys",
    ),
    step(
        "Apache",
        "openssl rand 48 >ticket.key, with SSLSessionTicketKeyFile",
    ),
    step("GnuTLS", "update to 3.6.14 or later (CVE-2020-13777)"),
    step(
        "all",
        "sessile key new and sessile key export write random keys for nginx, HAProxy, Apache and Envoy",
    ),
];

const ROTATE_KEYS: &[Step] = &[
    step(
        "nginx",
        "ssl_session_ticket_key files that outlive a restart: a new one first, those before it below it; replace \
         them once a day",
    ),
    step(
        "HAProxy",
        "tls-ticket-keys with a file of at least three keys; move the keys up once a day",
    ),
    step(
        "Apache",
        "SSLSessionTicketKeyFile outlives a restart, but has one key: each new key loses the sessions",
    ),
    step("Envoy", "session_ticket_keys, the new key first"),
    step(
        "sessile",
        "key.file; the key moves by itself every hour, and old tickets stay valid",
    ),
    step(
        "all",
        "sessile key export --format nginx or haproxy writes such files at each rotation",
    ),
];

const SEPARATE_NAMES: &[Step] = &[
    step(
        "nginx",
        "update to 1.26.3, 1.27.4 or later; give the names different ssl_session_ticket_key and ssl_session_cache",
    ),
    step(
        "all",
        "serve names with client certificates at an address of their own, with ticket keys of their own",
    ),
];

impl Remedy {
    /// The steps, in the order of the report.
    #[must_use]
    pub const fn steps(self) -> &'static [Step] {
        match self {
            Self::None => &[],
            Self::ShareTicketKeys => SHARE_TICKET_KEYS,
            Self::DistributeNewKey => DISTRIBUTE_NEW_KEY,
            Self::ShareCache => SHARE_CACHE,
            Self::EnableCache => ENABLE_CACHE,
            Self::EnableTickets => ENABLE_TICKETS,
            Self::SameSettings => SAME_SETTINGS,
            Self::AskEachServer => ASK_EACH_SERVER,
            Self::GiveCertificate => GIVE_CERTIFICATE,
            Self::MendResumption => MEND_RESUMPTION,
            Self::SeparateNames => SEPARATE_NAMES,
            Self::KeepIdleSessions => KEEP_IDLE_SESSIONS,
            Self::LongerLifetime => LONGER_LIFETIME,
            Self::ShorterLifetime => SHORTER_LIFETIME,
            Self::SameContext => SAME_CONTEXT,
            Self::RandomTicketKey => RANDOM_TICKET_KEY,
            Self::RotateKeys => ROTATE_KEYS,
        }
    }
}
