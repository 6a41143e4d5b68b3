//! The routing rules, and the placing policies for clients that match no other rule.
//!
//! Nothing here is random or seeded. So all balancers with the same usable servers prefer the same server for a
//! source, unless it is full.

use std::net::IpAddr;
use std::str::FromStr;

use strum::{Display, IntoStaticStr, VariantArray};

use crate::Word;
use crate::affinity::site;

/// The rule that routed a connection, in the order in which the rules are tried.
///
/// The words are those of logs and metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum RoutedBy {
    /// The label inside a sealed ticket or a stored session's identifier.
    Label,
    /// A learned session ID.
    SessionId,
    /// A learned ticket.
    Ticket,
    /// The proven key name at the start of a ticket.
    KeyName,
    /// The server that last took such a client of the same address, for offers that no rule above knows.
    Address,
    /// The placing [`Policy`], because no rule above applied.
    Policy,
}

/// How a client is placed if no other rule applies (`balance.policy`). The words are those of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Policy {
    /// Weighted rendezvous hashing of the source (an IPv4 address or an IPv6 /56), with bounded load.
    #[default]
    Source,
    /// The server with the fewest open connections for its weight.
    LeastConnections,
    /// Each server in turn.
    RoundRobin,
}

/// The text is not a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a policy: expected source, least-connections or round-robin")]
pub struct NotAPolicy;

impl FromStr for Policy {
    type Err = NotAPolicy;

    fn from_str(text: &str) -> Result<Self, NotAPolicy> {
        let mut all = Self::all();
        all.find(|policy| policy.as_str() == text).ok_or(NotAPolicy)
    }
}

/// A server, as the placing policies see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// [`server_id`] of its name: the same in every process.
    pub id: u64,
    /// The server's share of new clients. Zero counts as one.
    pub weight: u32,
    /// The number of open connections to the server.
    pub open: u32,
    /// True if the server is healthy and not draining.
    pub usable: bool,
}

impl Load {
    fn weight(&self) -> u64 {
        u64::from(self.weight.max(1))
    }
}

/// Every server has room for this many connections, even if all other servers have fewer.
const MIN_ROOM: u64 = 64;

/// A hash of a server's name (FNV-1a, mixed). It is the same in every process and release.
#[must_use]
pub fn server_id(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash)
}

/// True if a server has room for a returning client.
///
/// A server's bound is 64 connections, or 1.25 times its share by weight if that is more. The share is of all
/// connections to usable servers, with the new connection.
#[must_use]
pub fn has_room(server: &Load, servers: &[Load]) -> bool {
    let mut open = 1;
    let mut weight = 0;
    for usable in servers.iter().filter(|server| server.usable) {
        open += u64::from(usable.open);
        weight += usable.weight();
    }
    is_below_bound(server, open, weight)
}

fn is_below_bound(server: &Load, open: u64, weight: u64) -> bool {
    let own = u64::from(server.open);
    // server.open < 1.25 × open × server.weight / weight, in whole numbers.
    own < MIN_ROOM
        || u128::from(own) * 4 * u128::from(weight)
            < u128::from(open) * 5 * u128::from(server.weight())
}

/// The usable servers as positions in `servers`, the preferred server first.
///
/// The other servers are the fallback if the preferred server cannot be reached. `turn` rises by one with each
/// connection. The turn decides round robin, and ties among the servers with the fewest connections.
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

/// Weighted rendezvous hashing: each server gets a score from the source and the server's id. The server with
/// the smallest score comes first.
///
/// A server that leaves moves only its own clients. Full servers come last.
fn by_source(source: IpAddr, servers: &[Load], mut usable: Vec<usize>) -> Vec<usize> {
    let source = match source.to_canonical() {
        IpAddr::V4(address) => mix(u64::from(address.to_bits())),
        // Privacy extensions (RFC 8981) change the rest of the address.
        IpAddr::V6(address) => mix(site(address)),
    };
    let open = 1 + usable
        .iter()
        .map(|&at| u64::from(servers[at].open))
        .sum::<u64>();
    let weight = usable.iter().map(|&at| servers[at].weight()).sum();
    usable.sort_by_cached_key(|&at| {
        let server = &servers[at];
        let is_full = !is_below_bound(server, open, weight);
        (is_full, score(source, server), server.id)
    });
    usable
}

/// A number from an exponential distribution whose rate is the server's weight.
///
/// The probability that a server has the smallest number is the server's share of all weights.
fn score(source: u64, server: &Load) -> u64 {
    // A double holds 53 bits. `uniform` is greater than 0 and at most 1.
    let draw = mix(source ^ server.id) >> 11;
    let uniform = (draw as f64 + 0.5) / (1_u64 << 53) as f64;
    // Positive doubles have the same order as their bits.
    (-uniform.ln() / server.weight() as f64).to_bits()
}

/// The server with the fewest connections for its weight comes first. The new connection counts too. Ties are
/// broken in turn.
fn by_connections(turn: u64, servers: &[Load], mut usable: Vec<usize>) -> Vec<usize> {
    rotate(&mut usable, turn);
    usable.sort_by(|&a, &b| {
        let (a, b) = (&servers[a], &servers[b]);
        // (a.open + 1) / a.weight against (b.open + 1) / b.weight, in whole numbers.
        let a_load = (u64::from(a.open) + 1) * b.weight();
        let b_load = (u64::from(b.open) + 1) * a.weight();
        a_load.cmp(&b_load)
    });
    usable
}

fn rotate(usable: &mut [usize], turn: u64) {
    if !usable.is_empty() {
        let by = turn % usable.len() as u64;
        usable.rotate_left(by as usize);
    }
}

/// Smooth weighted round robin, computed from the turn alone.
///
/// A cycle has as many turns as the sum of the weights. A server's nth turn is due at (n + ½) / weight of the
/// cycle. The turns are given in the order in which they are due.
fn in_turn(turn: u64, servers: &[Load], mut usable: Vec<usize>) -> Vec<usize> {
    let cycle: u64 = usable.iter().map(|&at| servers[at].weight()).sum();
    if cycle == 0 {
        return usable;
    }
    let turn = turn % cycle;
    // Compute, rounded, how many turns each server has had at an earlier turn. Rounding adds at most half a
    // turn for each server, and the earlier turn leaves room for this sum. The loop gives the remaining turns
    // one by one.
    let earlier = (2 * turn).saturating_sub(usable.len() as u64);
    let mut given = vec![0; servers.len()];
    if earlier > 0 {
        for &at in &usable {
            given[at] = (earlier * servers[at].weight() + cycle) / (2 * cycle);
        }
    }
    // Compares (given + ½) / weight of two servers, in whole numbers.
    let by_due_time = |given: &[u64], a: usize, b: usize| {
        let a_due = (2 * given[a] + 1) * servers[b].weight();
        let b_due = (2 * given[b] + 1) * servers[a].weight();
        a_due.cmp(&b_due).then(a.cmp(&b))
    };
    for _ in given.iter().sum::<u64>()..turn {
        if let Some(&next) = usable.iter().min_by(|&&a, &&b| by_due_time(&given, a, b)) {
            given[next] += 1;
        }
    }
    usable.sort_by(|&a, &b| by_due_time(&given, a, b));
    usable
}

/// The finisher of MurmurHash3: every input bit affects every output bit.
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

    /// The number of clients that each server gets by source address.
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
    fn the_words_of_policies_and_rules_stay() {
        for policy in Policy::all() {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("Source".parse::<Policy>(), Err(NotAPolicy));
        let policies: Vec<_> = Policy::all().map(Word::as_str).collect();
        assert_eq!(policies, ["source", "least-connections", "round-robin"]);
        let rules: Vec<_> = RoutedBy::all().map(Word::as_str).collect();
        assert_eq!(
            rules,
            [
                "label",
                "session-id",
                "ticket",
                "key-name",
                "address",
                "policy"
            ]
        );
    }

    #[test]
    fn a_source_goes_to_the_same_server_in_every_process() {
        // The numbers are fixed here because another release must not move clients.
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
        // The whole IPv4 address counts.
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
        // 1.25 times the server's share, and one for rounding.
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
            let at = if has_room(&servers[HOME], &servers) {
                HOME
            } else {
                spilled
            };
            servers[at].open += 1;
            // A quarter more than the server's share of the open connections, rounded up.
            let bound = (shown * 5 / 16 + 1).max(MIN_ROOM);
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
            for policy in Policy::all() {
                let mut order = place(policy, IpAddr::V6(source.into()), turn, &servers);
                order.sort_unstable();
                prop_assert_eq!(&order, &usable);
            }
        }

        /// In a cycle each server has as many turns as its weight. At each turn, a server's count differs from
        /// its share by at most one plus half the number of servers.
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
