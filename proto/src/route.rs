//! Where a connection goes: by what rule, and, for a client that brings nothing to route by, in
//! what order the servers are tried. Nothing here is random or seeded: balancers that see the same
//! servers place a source alike.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::affinity::site;

/// The rule that a connection was routed by, first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoutedBy {
    /// The label inside a sealed ticket or a stored session's identifier.
    Label,
    /// A session ID that was learned.
    SessionId,
    /// A ticket that was learned.
    Ticket,
    /// The proven key name at the start of a ticket.
    KeyName,
    /// Nothing to go by: [`Policy`].
    Policy,
}

impl RoutedBy {
    /// Every rule.
    pub const ALL: [Self; 5] = [
        Self::Label,
        Self::SessionId,
        Self::Ticket,
        Self::KeyName,
        Self::Policy,
    ];

    /// The word used in logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::SessionId => "session-id",
            Self::Ticket => "ticket",
            Self::KeyName => "key-name",
            Self::Policy => "policy",
        }
    }
}

impl fmt::Display for RoutedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a client is placed that brings nothing to route by (`balance.policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Weighted rendezvous hashing of the source address, of which IPv6 has the first 56 bits, with
    /// bounded load.
    #[default]
    Source,
    /// The server with the fewest open connections for its weight.
    LeastConnections,
    /// Each server in turn.
    RoundRobin,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Source, Self::LeastConnections, Self::RoundRobin];

    /// The word used in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::LeastConnections => "least-connections",
            Self::RoundRobin => "round-robin",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPolicy;

impl fmt::Display for NotAPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a policy: expected source, least-connections or round-robin")
    }
}

impl std::error::Error for NotAPolicy {}

impl FromStr for Policy {
    type Err = NotAPolicy;

    fn from_str(text: &str) -> Result<Self, NotAPolicy> {
        let mut all = Self::ALL.into_iter();
        all.find(|policy| policy.as_str() == text).ok_or(NotAPolicy)
    }
}

/// What placing has to know of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// [`server_id`] of its name: the same in every process.
    pub id: u64,
    /// Its share of new clients. Zero counts as one.
    pub weight: u32,
    /// Connections that are open to it.
    pub open: u32,
    /// Whether it is healthy and not draining.
    pub usable: bool,
}

impl Load {
    fn weight(&self) -> u64 {
        u64::from(self.weight.max(1))
    }
}

/// A server always has room for this many connections, however few the others have.
const ROOM_FLOOR: u64 = 64;

/// A hash of a server's name that is the same in every process and release (FNV-1a, mixed).
#[must_use]
pub fn server_id(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash)
}

/// Whether a server is below its bound: the larger of 64 connections and 1.25 times its share, by
/// weight, of all that are open on usable servers, the one to be placed included.
#[must_use]
pub fn has_room(server: &Load, servers: &[Load]) -> bool {
    let usable = servers.iter().filter(|server| server.usable);
    let (open, weight) = usable.fold((1, 0), |(open, weight), server| {
        (open + u64::from(server.open), weight + server.weight())
    });
    below_bound(server, open, weight)
}

fn below_bound(server: &Load, open: u64, weight: u64) -> bool {
    let mine = u64::from(server.open);
    // open[mine] < 1.25 × open × weight[mine] / weight, in whole numbers.
    mine < ROOM_FLOOR
        || u128::from(mine) * 4 * u128::from(weight)
            < u128::from(open) * 5 * u128::from(server.weight())
}

/// The usable servers in order of preference, as positions in `servers`: the first is where the
/// connection goes, the others are where it goes when that cannot be reached.
///
/// `turn` rises by one with each connection; it decides round robin and, for the fewest
/// connections, ties.
#[must_use]
pub fn place(policy: Policy, source: IpAddr, turn: u64, servers: &[Load]) -> Vec<usize> {
    let usable: Vec<usize> = (0..servers.len())
        .filter(|&at| servers[at].usable)
        .collect();
    match policy {
        Policy::Source => by_source(source, servers, usable),
        Policy::LeastConnections => by_connections(turn, servers, usable),
        Policy::RoundRobin => in_turn(turn, servers, usable),
    }
}

/// Weighted rendezvous hashing: each server draws a number from the source and its own id, and the
/// largest wins. A server that leaves moves only its own clients. Full servers go to the end.
fn by_source(source: IpAddr, servers: &[Load], mut usable: Vec<usize>) -> Vec<usize> {
    let source = match source.to_canonical() {
        IpAddr::V4(address) => mix(u64::from(address.to_bits())),
        // The whole address changes with the client's privacy extensions (RFC 8981).
        IpAddr::V6(address) => mix(site(address)),
    };
    let open = 1 + usable
        .iter()
        .map(|&at| u64::from(servers[at].open))
        .sum::<u64>();
    let weight = usable.iter().map(|&at| servers[at].weight()).sum();
    usable.sort_by_cached_key(|&at| {
        let server = &servers[at];
        let full = !below_bound(server, open, weight);
        (full, score(source, server), server.id)
    });
    usable
}

/// An exponentially distributed number whose rate is the weight: the smallest of several is a
/// server's with a probability of its share of the weights. As the bits of a positive double, which
/// are ordered as the numbers are.
fn score(source: u64, server: &Load) -> u64 {
    let draw = mix(source ^ server.id) >> 11;
    // In (0, 1): 53 bits, which is what a double holds.
    let uniform = (draw as f64 + 0.5) / (1_u64 << 53) as f64;
    (-uniform.ln() / server.weight() as f64).to_bits()
}

/// The fewest connections for the weight, the new one counted; ties in turn.
fn by_connections(turn: u64, servers: &[Load], mut usable: Vec<usize>) -> Vec<usize> {
    rotate(&mut usable, turn);
    usable.sort_by(|&a, &b| {
        let (a, b) = (&servers[a], &servers[b]);
        let load = |mine: &Load, other: &Load| (u64::from(mine.open) + 1) * other.weight();
        load(a, b).cmp(&load(b, a))
    });
    usable
}

fn rotate(usable: &mut [usize], turn: u64) {
    if !usable.is_empty() {
        let by = turn % usable.len() as u64;
        usable.rotate_left(by as usize);
    }
}

/// Smooth weighted round robin without a memory. In a cycle of as many turns as there is weight, a
/// server's nth place is due at (n + ½) / weight of the cycle; turns go to places as they fall due.
fn in_turn(turn: u64, servers: &[Load], mut usable: Vec<usize>) -> Vec<usize> {
    let cycle: u64 = usable.iter().map(|&at| servers[at].weight()).sum();
    if cycle == 0 {
        return usable;
    }
    let turn = turn % cycle;
    // Up to half a place for each server may be due early: count what is due somewhat before this
    // turn, then go on place by place.
    let sure = (2 * turn).saturating_sub(usable.len() as u64);
    let mut had = vec![0; servers.len()];
    for &at in usable.iter().filter(|_| sure > 0) {
        had[at] = (sure * servers[at].weight() + cycle) / (2 * cycle);
    }
    let order = |had: &[u64], a: usize, b: usize| {
        let due = |mine: usize, other: usize| (2 * had[mine] + 1) * servers[other].weight();
        due(a, b).cmp(&due(b, a)).then(a.cmp(&b))
    };
    for _ in had.iter().sum::<u64>()..turn {
        if let Some(&next) = usable.iter().min_by(|&&a, &&b| order(&had, a, b)) {
            had[next] += 1;
        }
    }
    usable.sort_by(|&a, &b| order(&had, a, b));
    usable
}

/// The finisher of MurmurHash3: every bit of the input reaches every bit of the result.
const fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    n = (n ^ (n >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ (n >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn server(n: usize, weight: u32, open: u32) -> Load {
        Load {
            id: server_id(&format!("web-{n}")),
            weight,
            open,
            usable: true,
        }
    }

    fn servers(weights: &[u32]) -> Vec<Load> {
        let weights = weights.iter().enumerate();
        weights.map(|(n, &weight)| server(n, weight, 0)).collect()
    }

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(n.wrapping_mul(2_654_435_761).into())
    }

    /// How many of `clients` each server gets by its source address.
    fn shares(servers: &[Load], clients: u32) -> Vec<u32> {
        let mut counts = vec![0; servers.len()];
        for n in 0..clients {
            counts[place(Policy::Source, client(n), 0, servers)[0]] += 1;
        }
        counts
    }

    fn turns(servers: &[Load], policy: Policy, turns: u64) -> Vec<usize> {
        (0..turns)
            .map(|turn| place(policy, A, turn, servers)[0])
            .collect()
    }

    #[test]
    fn policies_read_back_from_their_text() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("Source".parse::<Policy>(), Err(NotAPolicy));
        assert_eq!(
            RoutedBy::ALL.map(|by| by.to_string()),
            ["label", "session-id", "ticket", "key-name", "policy"]
        );
    }

    #[test]
    fn a_source_goes_to_the_same_server_in_every_process() {
        // Written down: another release must not move clients.
        let servers = servers(&[1, 1, 1, 1]);
        let first = |text: &str| place(Policy::Source, text.parse().unwrap(), 0, &servers)[0];
        assert_eq!(server_id("web-0"), 7_267_056_053_284_361_922);
        assert_eq!(
            ["192.0.2.1", "198.51.100.7", "2001:db8::1", "2001:db8:1::1"].map(first),
            [1, 2, 1, 2]
        );
        assert_eq!(first("::ffff:192.0.2.1"), first("192.0.2.1"));
    }

    #[test]
    fn a_client_that_changes_its_address_inside_its_network_goes_to_the_same_server() {
        let servers = servers(&[1; 16]);
        let order = |address: u128| place(Policy::Source, IpAddr::V6(address.into()), 0, &servers);
        let net = |n: u128| (0x2001_0db8 << 96) | (n << 72);
        for n in 0..64 {
            let home = order(net(n));
            for host in [1, 0x5e2f_91ff_fe04_3c1d, 0xff << 64, (1 << 72) - 1] {
                assert_eq!(order(net(n) | host), home);
            }
        }
        let first: std::collections::BTreeSet<_> = (0..64).map(|n| order(net(n))[0]).collect();
        assert!(first.len() > 8, "other networks go elsewhere: {first:?}");
        // IPv4 has no such part.
        let of = |n: u8| place(Policy::Source, IpAddr::from([192, 0, 2, n]), 0, &servers);
        assert!((2..32).any(|n| of(n) != of(1)));
    }

    #[test]
    fn a_server_that_leaves_moves_only_its_own_clients() {
        let mut all = servers(&[1, 2, 1, 3]);
        let before: Vec<_> = (0..2000)
            .map(|n| place(Policy::Source, client(n), 0, &all))
            .collect();
        all[1].usable = false;
        for (n, before) in before.iter().enumerate() {
            let after = place(Policy::Source, client(n as u32), 0, &all);
            let without: Vec<_> = before.iter().copied().filter(|&at| at != 1).collect();
            assert_eq!(after, without);
        }
    }

    #[test]
    fn sources_spread_by_weight() {
        let counts = shares(&servers(&[1, 2, 1, 4]), 8000);
        for (count, wanted) in counts.iter().zip([1000, 2000, 1000, 4000]) {
            assert!(count.abs_diff(wanted) < 200, "{counts:?}");
        }
    }

    #[test]
    fn no_source_fills_a_server_beyond_its_bound() {
        let mut servers = servers(&[1, 1, 2]);
        for _ in 0..4000 {
            let at = place(Policy::Source, A, 0, &servers)[0];
            servers[at].open += 1;
        }
        let open: Vec<_> = servers.iter().map(|server| server.open).collect();
        // 1.25 times its share, and one for rounding.
        for (open, share) in open.iter().zip([1000, 1000, 2000]) {
            assert!(*open <= share * 5 / 4 + 1, "{open} of {share}");
        }
    }

    #[test]
    fn a_token_shown_a_hundred_thousand_times_fills_no_server() {
        const HOME: usize = 1;
        let mut servers = servers(&[1, 1, 2]);
        for shown in 1..=100_000 {
            let spilled = place(Policy::LeastConnections, A, shown, &servers)[0];
            let at = match has_room(&servers[HOME], &servers) {
                true => HOME,
                false => spilled,
            };
            servers[at].open += 1;
            // A quarter more than its share of what is open, rounded up.
            let bound = (shown * 5 / 16 + 1).max(ROOM_FLOOR);
            let open = u64::from(servers[HOME].open);
            assert!(open <= bound, "{open} of {shown}");
        }
        assert!(servers.iter().all(|server| server.open > 20_000));
    }

    #[test]
    fn a_server_with_few_connections_always_has_room() {
        let mut servers = servers(&[1, 1]);
        servers[0].open = 63;
        assert!(has_room(&servers[0], &servers));
        servers[0].open = 64;
        assert!(!has_room(&servers[0], &servers));
        servers[1].open = 64;
        assert!(has_room(&servers[0], &servers));
        servers[1].usable = false;
        servers[0].open = 10_000;
        assert!(has_room(&servers[0], &servers));
    }

    #[test]
    fn full_servers_are_the_last_resort_and_not_left_out() {
        let mut servers = servers(&[1, 1, 1]);
        let first = place(Policy::Source, A, 0, &servers)[0];
        servers[first].open = 1000;
        let order = place(Policy::Source, A, 0, &servers);
        assert_eq!((order.len(), order[2]), (3, first));
    }

    #[test]
    fn the_fewest_connections_for_the_weight_come_first() {
        let servers = [server(0, 1, 2), server(1, 4, 7), server(2, 1, 1)];
        assert_eq!(place(Policy::LeastConnections, A, 0, &servers), [1, 2, 0]);
        let even = [server(0, 1, 0), server(1, 1, 0), server(2, 1, 0)];
        assert_eq!(turns(&even, Policy::LeastConnections, 4), [0, 1, 2, 0]);
    }

    #[test]
    fn servers_of_one_weight_take_turns() {
        let mut servers = servers(&[3, 3, 3]);
        assert_eq!(
            turns(&servers, Policy::RoundRobin, 7),
            [0, 1, 2, 0, 1, 2, 0]
        );
        assert_eq!(place(Policy::RoundRobin, A, 1, &servers), [1, 2, 0]);
        servers[1].usable = false;
        assert_eq!(turns(&servers, Policy::RoundRobin, 4), [0, 2, 0, 2]);
    }

    #[test]
    fn heavier_servers_take_more_turns_evenly_spread() {
        assert_eq!(
            turns(&servers(&[5, 1, 1]), Policy::RoundRobin, 7),
            [0, 0, 0, 1, 2, 0, 0]
        );
        assert_eq!(
            turns(&servers(&[2, 1]), Policy::RoundRobin, 6),
            [0, 1, 0, 0, 1, 0]
        );
    }

    proptest! {
        #[test]
        fn every_policy_orders_every_usable_server_once(
            loads in prop::collection::vec((0..10_000_000_u32, any::<u32>(), any::<bool>()), 0..20),
            source in any::<u128>(),
            turn in any::<u64>(),
        ) {
            let servers: Vec<_> = loads.iter().enumerate().map(|(n, &(weight, open, usable))| {
                Load { usable, ..server(n, weight, open) }
            }).collect();
            let usable: Vec<_> = (0..servers.len()).filter(|&at| servers[at].usable).collect();
            for policy in Policy::ALL {
                let mut order = place(policy, IpAddr::V6(source.into()), turn, &servers);
                order.sort_unstable();
                prop_assert_eq!(&order, &usable);
            }
        }

        /// In a cycle each server has as many turns as its weight, and it never is far from its
        /// share: as many turns as half of the servers, and one.
        #[test]
        fn round_robin_is_fair_at_every_turn(weights in prop::collection::vec(1..30_u32, 1..6)) {
            let servers = servers(&weights);
            let cycle = weights.iter().map(|&weight| u64::from(weight)).sum::<u64>();
            let mut had = vec![0.0; weights.len()];
            for (turn, at) in turns(&servers, Policy::RoundRobin, cycle).into_iter().enumerate() {
                had[at] += 1.0;
                for (had, &weight) in had.iter().zip(&weights) {
                    let share = (turn as f64 + 1.0) * f64::from(weight) / cycle as f64;
                    prop_assert!((*had - share).abs() <= 1.0 + weights.len() as f64 / 2.0);
                }
            }
            prop_assert!(had.iter().zip(&weights).all(|(had, &weight)| *had == f64::from(weight)));
        }
    }
}
