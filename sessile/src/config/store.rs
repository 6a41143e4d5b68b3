//! `session.store`: the URL of a session store. No password is ever shown: `Display` and `Debug` write
//! `***`, and errors do not quote the URL.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where sessions live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreUrl {
    /// Only the session table of this process.
    #[default]
    Memory,
    /// The session table of this process, and a Redis or Valkey that servers share.
    Redis(Box<Redis>),
}

/// A shared store: `redis://[user:password@]host[:port][,host…][/database][?option=value&…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    pub topology: Topology,
    /// At least one node.
    pub nodes: Vec<Node>,
    /// The files of `rediss://`. `None`: the connections have no TLS.
    pub tls: Option<RedisTls>,
    pub login: Login,
    pub database: u16,
}

/// How the nodes work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single,
    /// `redis+cluster://`, or several nodes: some nodes of a Redis Cluster.
    Cluster,
    /// `redis+sentinel://`: the nodes are sentinels, which know the master.
    Sentinel {
        /// The name of the master.
        service: String,
        /// The login for the sentinels.
        login: Login,
    },
}

/// A node's host name or address, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub host: String,
    pub port: u16,
}

/// PEM files for TLS connections to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// `ca=`: certificate authorities. `None`: the authorities of the system.
    pub ca: Option<PathBuf>,
    /// `cert=` and `key=`: the client certificate.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// User and password. Either may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    pub user: Option<String>,
    pub password: Option<Password>,
}

/// A password. `Debug` shows `***`, and dropping wipes the memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

/// The text that stands for a password.
const LEFT_OUT: &str = "***";

impl Password {
    /// The password itself, for logging in.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LEFT_OUT)
    }
}

/// Why a text is not a valid `session.store`. No message repeats the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStore {
    #[error(
        "is neither \"memory\" nor a URL that begins with redis://, rediss://, redis+cluster://, rediss+cluster://, \
         redis+sentinel:// or rediss+sentinel://"
    )]
    Scheme,
    #[error(
        "has a node that is not host or host:port; write for example \"redis://10.0.0.1:6379\""
    )]
    Node,
    #[error("has the password ***, which stands for a hidden password; write the password itself")]
    LeftOut,
    #[error(
        "has a % that is not followed by two hexadecimal digits; write %25 for a % in a password"
    )]
    Percent,
    #[error("has a database that is not a number from 0 to 65535")]
    Database,
    #[error("names a database of a cluster, which has only one; remove the database")]
    ClusterDatabase,
    #[error(
        "names sentinels but no master; write for example \"redis+sentinel://host:26379/mymaster\""
    )]
    NoService,
    #[error(
        "has an unknown option; known are ca, cert and key with rediss, and sentinel-user and sentinel-password with \
         sentinels"
    )]
    Option,
    #[error("has only one of cert and key; give both or neither")]
    HalfClient,
}

impl FromStr for StoreUrl {
    type Err = BadStore;

    fn from_str(text: &str) -> Result<Self, BadStore> {
        if text == "memory" {
            return Ok(Self::Memory);
        }
        text.parse().map(Box::new).map(Self::Redis)
    }
}

impl FromStr for Redis {
    type Err = BadStore;

    fn from_str(text: &str) -> Result<Self, BadStore> {
        let (scheme, rest) = text.split_once("://").ok_or(BadStore::Scheme)?;
        let (protocol, kind) = match scheme.split_once('+') {
            Some((protocol, kind)) => (protocol, Some(kind)),
            None => (scheme, None),
        };
        let tls = match protocol {
            "redis" => None,
            "rediss" => Some(RedisTls::default()),
            _ => return Err(BadStore::Scheme),
        };
        let (address, options) = rest.split_once('?').unwrap_or((rest, ""));
        // The last @ ends the login, because a password may contain slashes, but hosts and paths
        // contain no @.
        let (login, address) = address.rsplit_once('@').unwrap_or(("", address));
        let (hosts, path) = address.split_once('/').unwrap_or((address, ""));
        let (service, database, default_port) = match kind {
            Some("sentinel") => {
                let (service, database) = path.split_once('/').unwrap_or((path, ""));
                (service, database, SENTINEL_PORT)
            }
            _ => ("", path, REDIS_PORT),
        };
        let nodes: Option<Vec<Node>> = hosts
            .split(',')
            .map(|host| Node::parse(host, default_port))
            .collect();
        let nodes = nodes.ok_or(BadStore::Node)?;
        let topology = match kind {
            None if nodes.len() == 1 => Topology::Single,
            None | Some("cluster") if database.is_empty() => Topology::Cluster,
            None | Some("cluster") => return Err(BadStore::ClusterDatabase),
            Some("sentinel") if service.is_empty() => return Err(BadStore::NoService),
            Some("sentinel") => Topology::Sentinel {
                service: percent_decoded(service)?,
                login: Login::default(),
            },
            Some(_) => return Err(BadStore::Scheme),
        };
        let mut redis = Self {
            topology,
            nodes,
            tls,
            login: self::login(login)?,
            database: match database {
                "" => 0,
                number => number.parse().map_err(|_| BadStore::Database)?,
            },
        };
        redis.read_options(options)?;
        Ok(redis)
    }
}

impl Redis {
    fn read_options(&mut self, options: &str) -> Result<(), BadStore> {
        let (mut certificate, mut key) = (None, None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or(BadStore::Option)?;
            let value = percent_decoded(value)?;
            match (name, &mut self.tls, &mut self.topology) {
                ("ca", Some(tls), _) => tls.ca = Some(value.into()),
                ("cert", Some(_), _) => certificate = Some(value.into()),
                ("key", Some(_), _) => key = Some(value.into()),
                ("sentinel-user", _, Topology::Sentinel { login, .. }) => login.user = Some(value),
                ("sentinel-password", _, Topology::Sentinel { login, .. }) => {
                    login.password = Some(password(value)?);
                }
                _ => return Err(BadStore::Option),
            }
        }
        match (certificate, key, &mut self.tls) {
            (Some(certificate), Some(key), Some(tls)) => tls.client = Some((certificate, key)),
            (None, None, _) => {}
            _ => return Err(BadStore::HalfClient),
        }
        Ok(())
    }

    /// The PEM files in the URL.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.tls.iter_mut().flat_map(|RedisTls { ca, client }| {
            let client = client
                .iter_mut()
                .flat_map(|(certificate, key)| [certificate, key]);
            ca.iter_mut().chain(client)
        })
    }

    /// True if the URL contains a password. Readers of the configuration file can then log in to the
    /// store.
    #[must_use]
    pub fn has_password(&self) -> bool {
        let sentinel = match &self.topology {
            Topology::Sentinel { login, .. } => login.password.is_some(),
            Topology::Single | Topology::Cluster => false,
        };
        self.login.password.is_some() || sentinel
    }
}

impl Node {
    fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (
                    host,
                    rest.strip_prefix(':').or(rest.is_empty().then_some(""))?,
                )
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let port = match port {
            "" => default_port,
            port => port.parse().ok().filter(|&port| port != 0)?,
        };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        (!host.is_empty() && host.chars().all(is_allowed)).then(|| Self {
            host: host.to_owned(),
            port,
        })
    }
}

fn login(text: &str) -> Result<Login, BadStore> {
    let (user, secret) = text.split_once(':').unwrap_or((text, ""));
    Ok(Login {
        user: Some(percent_decoded(user)?).filter(|user| !user.is_empty()),
        password: match secret {
            "" => None,
            secret => Some(password(percent_decoded(secret)?)?),
        },
    })
}

fn password(value: String) -> Result<Password, BadStore> {
    if value == LEFT_OUT {
        return Err(BadStore::LeftOut);
    }
    Ok(Password(Zeroizing::new(value)))
}

/// Percent-decoding (RFC 3986, 2.1). Unlike the crate `percent_encoding`, this function refuses a %
/// without two hexadecimal digits.
pub(crate) fn percent_decoded(text: &str) -> Result<String, BadStore> {
    let has_digits = |part: &str| {
        let digits = part.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(has_digits) {
        return Err(BadStore::Percent);
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| BadStore::Percent)
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redis(redis) => redis.fmt(f),
        }
    }
}

/// Writes the URL without passwords.
impl fmt::Display for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls.is_some() { "s" } else { "" };
        let kind = match self.topology {
            Topology::Cluster if self.nodes.len() == 1 => "+cluster",
            Topology::Single | Topology::Cluster => "",
            Topology::Sentinel { .. } => "+sentinel",
        };
        write!(f, "redis{tls}{kind}://")?;
        let Login { user, password } = &self.login;
        if user.is_some() || password.is_some() {
            f.write_str(user.as_deref().unwrap_or_default())?;
            f.write_str(if password.is_some() { ":***@" } else { "@" })?;
        }
        let nodes: Vec<String> = self.nodes.iter().map(ToString::to_string).collect();
        f.write_str(&nodes.join(","))?;
        let mut options = Vec::new();
        if let Topology::Sentinel { service, login } = &self.topology {
            write!(f, "/{service}")?;
            options.extend(
                login
                    .user
                    .iter()
                    .map(|user| format!("sentinel-user={user}")),
            );
            if login.password.is_some() {
                options.push(format!("sentinel-password={LEFT_OUT}"));
            }
        }
        if self.database != 0 {
            write!(f, "/{}", self.database)?;
        }
        if let Some(RedisTls { ca, client }) = &self.tls {
            options.extend(ca.iter().map(|ca| format!("ca={}", ca.display())));
            options.extend(client.iter().map(|(certificate, key)| {
                format!("cert={}&key={}", certificate.display(), key.display())
            }));
        }
        if !options.is_empty() {
            write!(f, "?{}", options.join("&"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(text: &str) -> Redis {
        text.parse().unwrap()
    }

    #[test]
    fn nodes_and_scheme_decide_the_deployment() {
        let one = redis("redis://cache");
        assert_eq!(one.topology, Topology::Single);
        assert_eq!(one.nodes[0].port, 6379);
        assert_eq!(redis("redis+cluster://cache").topology, Topology::Cluster);
        let three = redis("rediss://a:1,[::1]:2,10.0.0.3");
        assert_eq!(three.topology, Topology::Cluster);
        assert_eq!(three.tls, Some(RedisTls::default()));
        let nodes: Vec<_> = three
            .nodes
            .iter()
            .map(|n| (n.host.as_str(), n.port))
            .collect();
        assert_eq!(nodes, [("a", 1), ("::1", 2), ("10.0.0.3", 6379)]);
        let sentinels = redis("redis+sentinel://u:p@a,b/main/3?sentinel-password=s");
        assert_eq!((sentinels.nodes[1].port, sentinels.database), (26379, 3));
        let Topology::Sentinel { service, login } = &sentinels.topology else {
            panic!("{sentinels:?}");
        };
        assert_eq!(service, "main");
        assert_eq!(login.password.as_ref().unwrap().expose(), "s");
    }

    #[test]
    fn a_login_can_contain_any_character() {
        let login = redis("redis://us%40er:p%3a/%25@h").login;
        assert_eq!(login.user.as_deref(), Some("us@er"));
        assert_eq!(login.password.unwrap().expose(), "p:/%");
        assert_eq!(redis("redis://:p@h").login.user, None);
        for (written, password) in [
            ("p", "p"),
            ("a@b/c:d", "a@b/c:d"),
            ("%C3%a9", "é"),
            ("é", "é"),
            ("%00%7f", "\0\u{7f}"),
            ("%2541", "%41"),
            ("+ ", "+ "),
        ] {
            let login = redis(&format!("redis://:{written}@h")).login;
            assert_eq!(login.password.unwrap().expose(), password);
        }
    }

    #[test]
    fn omitted_parts_have_defaults() {
        for (text, shown) in [
            ("redis://h/", "redis://h:6379"),
            ("redis://h?", "redis://h:6379"),
            ("redis://h/0", "redis://h:6379"),
            ("redis://h:/7", "redis://h:6379/7"),
            ("redis://@h", "redis://h:6379"),
            ("redis://u:@h", "redis://u@h:6379"),
            ("redis://H-1._x", "redis://H-1._x:6379"),
            ("redis://[::1]:", "redis://[::1]:6379"),
            ("rediss://h?&ca=%2fa%20b&", "rediss://h:6379?ca=/a b"),
            ("redis+cluster://a,b/", "redis://a:6379,b:6379"),
            ("redis+sentinel://a/m%2fx/", "redis+sentinel://a:26379/m/x"),
        ] {
            assert_eq!(redis(text).to_string(), shown, "{text}");
        }
    }

    #[test]
    fn the_displayed_form_reads_back_and_hides_passwords() {
        for text in [
            "memory",
            "redis://h:6379",
            "redis+cluster://h:6379",
            "rediss://u@a:1,[::1]:2?ca=/ca.pem&cert=/c.pem&key=/k.pem",
            "redis+sentinel://a:26379/main/3?sentinel-user=s",
        ] {
            assert_eq!(text.parse::<StoreUrl>().unwrap().to_string(), text);
        }
        let secret: StoreUrl = "redis+sentinel://u:hunter2@h/m?sentinel-password=hunter2"
            .parse()
            .unwrap();
        let shown = secret.to_string();
        assert!(
            !format!("{shown} {secret:?}").contains("hunter2"),
            "{shown}"
        );
        assert_eq!(shown.parse::<StoreUrl>(), Err(BadStore::LeftOut));
    }

    #[test]
    fn errors_for_invalid_stores_name_the_problem() {
        for (text, wrong) in [
            ("localhost:6379", BadStore::Scheme),
            ("http://h", BadStore::Scheme),
            ("redis+rings://h", BadStore::Scheme),
            ("redis+://h", BadStore::Scheme),
            ("redis://", BadStore::Node),
            ("redis://a,,b", BadStore::Node),
            ("redis://h:0", BadStore::Node),
            ("redis://[h]", BadStore::Node),
            ("redis://a b", BadStore::Node),
            ("redis://:%4@h", BadStore::Percent),
            ("redis://:%+4@h", BadStore::Percent),
            ("redis://:%@h", BadStore::Percent),
            ("redis://:%%41@h", BadStore::Percent),
            ("redis://:%é@h", BadStore::Percent),
            ("redis://:%ff@h", BadStore::Percent),
            ("redis://:%zz@h", BadStore::Percent),
            ("redis://:***@h", BadStore::LeftOut),
            ("redis://:%2a**@h", BadStore::LeftOut),
            ("redis://[::1", BadStore::Node),
            ("redis://[::1]6379", BadStore::Node),
            ("redis://%41", BadStore::Node),
            ("redis://h:65536", BadStore::Node),
            ("redis://h/65536", BadStore::Database),
            ("redis://h/1/2", BadStore::Database),
            ("redis+cluster://h/1", BadStore::ClusterDatabase),
            ("redis+sentinel://a/", BadStore::NoService),
            ("redis+sentinel://a/m/x", BadStore::Database),
            ("redis://h?db=1", BadStore::Option),
            ("rediss://h?ca", BadStore::Option),
            ("rediss://h?ca=%4", BadStore::Percent),
            ("REDIS://h", BadStore::Scheme),
            ("Memory", BadStore::Scheme),
            ("", BadStore::Scheme),
            ("redis://h/x", BadStore::Database),
            ("redis://a,b/1", BadStore::ClusterDatabase),
            ("redis+sentinel://a", BadStore::NoService),
            ("redis://h?ca=x", BadStore::Option),
            ("rediss://h?sentinel-user=x", BadStore::Option),
            ("rediss://h?cert=x", BadStore::HalfClient),
        ] {
            assert_eq!(text.parse::<Redis>(), Err(wrong), "{text}");
        }
    }
}
