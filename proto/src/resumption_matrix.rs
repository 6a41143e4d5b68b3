//! Who resumes whose sessions: the answers of each server to the sessions of each server, and the groups of
//! servers that follow from these answers.
//!
//! Servers are numbered from 0. The groups do not depend on this order.

use strum::{IntoStaticStr, VariantArray};

/// A server's answer to a session that a client offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Answer {
    /// The server resumed the session.
    Resumed,
    /// The server made a full handshake instead.
    Refused,
    /// The server ended the connection during the handshake.
    Ended,
}

/// The answers of one server to the sessions of one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Sessions that resumed.
    pub resumed: u32,
    /// Sessions for which the server made a full handshake.
    pub refused: u32,
    /// Sessions for which the server ended the connection.
    pub ended: u32,
}

/// What all answers of a pair of servers have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Consistency {
    /// No session was offered, or the server ended all connections.
    Unknown,
    /// Every session resumed.
    Always,
    /// Some sessions resumed. Several servers may share one of the addresses.
    Sometimes,
    /// No session resumed.
    Never,
}

impl Answers {
    /// The number of sessions that were offered.
    #[must_use]
    pub const fn offered(&self) -> u32 {
        self.resumed + self.refused + self.ended
    }

    /// What the answers have in common. Connections that the server ended say nothing about keys.
    #[must_use]
    pub const fn consistency(&self) -> Consistency {
        if self.resumed + self.refused == 0 {
            Consistency::Unknown
        } else if self.refused == 0 {
            Consistency::Always
        } else if self.resumed > 0 {
            Consistency::Sometimes
        } else {
            Consistency::Never
        }
    }

    const fn count(&mut self, answer: Answer) {
        match answer {
            Answer::Resumed => self.resumed += 1,
            Answer::Refused => self.refused += 1,
            Answer::Ended => self.ended += 1,
        }
    }
}

/// The answers of each server to the sessions of each server, for one way to resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumptionMatrix {
    servers: usize,
    /// The answers of server `to` to sessions of server `from` are at `from * servers + to`.
    cells: Vec<Answers>,
}

impl ResumptionMatrix {
    /// A matrix without answers.
    #[must_use]
    pub fn new(servers: usize) -> Self {
        Self {
            servers,
            cells: vec![Answers::default(); servers * servers],
        }
    }

    /// The number of servers.
    #[must_use]
    pub const fn servers(&self) -> usize {
        self.servers
    }

    /// Counts the answer of server `to` to a session that server `from` gave.
    pub fn record(&mut self, from: usize, to: usize, answer: Answer) {
        self.cells[from * self.servers + to].count(answer);
    }

    /// The answers of server `to` to sessions that server `from` gave.
    #[must_use]
    pub fn answers(&self, from: usize, to: usize) -> Answers {
        self.cells[from * self.servers + to]
    }

    /// The sum of all answers.
    #[must_use]
    pub fn total(&self) -> Answers {
        let mut total = Answers::default();
        for cell in &self.cells {
            total.resumed += cell.resumed;
            total.refused += cell.refused;
            total.ended += cell.ended;
        }
        total
    }

    fn is(&self, from: usize, to: usize, consistency: Consistency) -> bool {
        self.answers(from, to).consistency() == consistency
    }

    /// True if both servers always resume the sessions of the other.
    fn share(&self, one: usize, other: usize) -> bool {
        self.is(one, other, Consistency::Always) && self.is(other, one, Consistency::Always)
    }

    /// The groups of servers, and the servers and pairs that do not fit into groups.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        let mut sharing = Sharing {
            groups: self.groups(),
            ..Sharing::default()
        };
        for from in 0..self.servers {
            match self.answers(from, from).consistency() {
                Consistency::Never => sharing.forgetful.push(from),
                Consistency::Sometimes => sharing.divided.push(from),
                Consistency::Always | Consistency::Unknown => {}
            }
            for to in (0..self.servers).filter(|&to| to != from) {
                let back = self.answers(to, from).consistency();
                match self.answers(from, to).consistency() {
                    Consistency::Always
                        if back == Consistency::Never && self.is(to, to, Consistency::Always) =>
                    {
                        sharing.one_way.push((from, to));
                    }
                    Consistency::Sometimes => sharing.uneven.push((from, to)),
                    _ => {}
                }
            }
        }
        sharing.apart = self.apart(&sharing.groups);
        sharing
    }

    /// Pairs of one group that never resume each other's sessions.
    fn apart(&self, groups: &[Vec<usize>]) -> Vec<(usize, usize)> {
        let mut apart = Vec::new();
        for group in groups {
            for (index, &one) in group.iter().enumerate() {
                let others = group[index + 1..].iter().copied();
                apart.extend(
                    others
                        .filter(|&other| self.never_share(one, other))
                        .map(|other| (one, other)),
                );
            }
        }
        apart
    }

    /// True if both servers never resume the sessions of the other.
    fn never_share(&self, one: usize, other: usize) -> bool {
        self.is(one, other, Consistency::Never) && self.is(other, one, Consistency::Never)
    }

    /// True if there are two groups of which no server resumes sessions of the other.
    #[must_use]
    pub fn has_separate_groups(&self, groups: &[Vec<usize>]) -> bool {
        groups.iter().enumerate().any(|(index, group)| {
            groups[index + 1..].iter().any(|other_group| {
                group.iter().all(|&one| {
                    other_group
                        .iter()
                        .all(|&other| self.never_share(one, other))
                })
            })
        })
    }

    /// Servers that share, directly or through other servers, in ascending order. A server that resumes only its
    /// own sessions is a group of one. A server that resumes not even these is in no group.
    fn groups(&self) -> Vec<Vec<usize>> {
        let mut is_placed = vec![false; self.servers];
        let mut groups = Vec::new();
        for first in 0..self.servers {
            let mut group = Vec::new();
            let mut waiting = vec![first];
            while let Some(server) = waiting.pop() {
                if is_placed[server] {
                    continue;
                }
                let siblings =
                    (0..self.servers).filter(|&other| other != server && self.share(server, other));
                let before = waiting.len();
                waiting.extend(siblings);
                if waiting.len() > before
                    || !group.is_empty()
                    || self.is(server, server, Consistency::Always)
                {
                    is_placed[server] = true;
                    group.push(server);
                }
            }
            if !group.is_empty() {
                group.sort_unstable();
                groups.push(group);
            }
        }
        groups
    }
}

/// The servers that resume each other's sessions, and the exceptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Each group shares a ticket key or a session cache.
    pub groups: Vec<Vec<usize>>,
    /// Servers that never resume their own sessions.
    pub forgetful: Vec<usize>,
    /// Servers that only sometimes resume their own sessions: several servers that share nothing have this address.
    pub divided: Vec<usize>,
    /// Pairs of one group that never resume each other's sessions. Other servers connect them.
    pub apart: Vec<(usize, usize)>,
    /// Pairs of which only the second server resumes the sessions of the first. The second has an old key of the
    /// first, or the first lacks a new key of the second.
    pub one_way: Vec<(usize, usize)>,
    /// Pairs of which the second server sometimes resumes the sessions of the first.
    pub uneven: Vec<(usize, usize)>,
}

impl Sharing {
    /// True if each server resumes the sessions of each server.
    #[must_use]
    pub fn is_whole(&self, servers: usize) -> bool {
        self.groups.len() == 1
            && self.groups[0].len() == servers
            && self.forgetful.is_empty()
            && self.divided.is_empty()
            && self.apart.is_empty()
            && self.one_way.is_empty()
            && self.uneven.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chain_of_keys_has_pairs_that_are_apart() {
        let sharing = matrix(&["++-", "+++", "-++"]).sharing();
        assert_eq!(sharing.groups, [[0, 1, 2]]);
        assert_eq!(sharing.apart, [(0, 2)]);
        assert!(!sharing.is_whole(3));
        assert!(matrix(&["+++", "+++", "+++"]).sharing().apart.is_empty());
    }

    /// A matrix from rows of `+` (resumed), `-` (refused), `~` (each once) and space (nothing offered).
    fn matrix(rows: &[&str]) -> ResumptionMatrix {
        let mut matrix = ResumptionMatrix::new(rows.len());
        for (from, row) in rows.iter().enumerate() {
            for (to, mark) in row.chars().enumerate() {
                let answers: &[Answer] = match mark {
                    '+' => &[Answer::Resumed],
                    '-' => &[Answer::Refused],
                    '~' => &[Answer::Resumed, Answer::Refused],
                    _ => &[],
                };
                for answer in answers {
                    matrix.record(from, to, *answer);
                }
            }
        }
        matrix
    }

    #[test]
    fn servers_with_one_key_are_one_group() {
        let matrix = matrix(&["+++", "+++", "+++"]);
        assert_eq!(matrix.sharing().groups, [[0, 1, 2]]);
        assert!(matrix.sharing().is_whole(3));
        assert_eq!(matrix.total().resumed, 9);
    }

    #[test]
    fn servers_that_share_nothing_are_groups_of_one() {
        let sharing = matrix(&["+--", "-+-", "--+"]).sharing();
        assert_eq!(sharing.groups, [[0], [1], [2]]);
        assert!(!sharing.is_whole(3));
        assert!(sharing.one_way.is_empty() && sharing.forgetful.is_empty());
    }

    #[test]
    fn two_keys_of_two_servers_are_two_groups_in_every_order() {
        assert_eq!(
            matrix(&["++--", "++--", "--++", "--++"]).sharing().groups,
            [[0, 1], [2, 3]]
        );
        assert_eq!(
            matrix(&["+-+-", "-+-+", "+-+-", "-+-+"]).sharing().groups,
            [[0, 2], [1, 3]]
        );
    }

    #[test]
    fn a_key_that_was_rotated_on_one_server_shows_one_way() {
        // The last server has the old key too, and seals with a new one.
        let sharing = matrix(&["+++", "+++", "--+"]).sharing();
        assert_eq!(sharing.groups, vec![vec![0, 1], vec![2]]);
        assert_eq!(sharing.one_way, [(0, 2), (1, 2)]);
    }

    #[test]
    fn a_server_that_resumes_no_session_of_its_own_is_in_no_group() {
        let sharing = matrix(&["--", "-+"]).sharing();
        assert_eq!(sharing.groups, [[1]]);
        assert_eq!(sharing.forgetful, [0]);
    }

    #[test]
    fn an_address_of_several_servers_resumes_sometimes() {
        let sharing = matrix(&["~"]).sharing();
        assert_eq!(sharing.divided, [0]);
        assert!(sharing.groups.is_empty());
        assert_eq!(matrix(&["+~", "-+"]).sharing().uneven, [(0, 1)]);
    }

    #[test]
    fn nothing_is_concluded_from_sessions_that_were_not_offered() {
        let sharing = matrix(&["  ", "  "]).sharing();
        assert_eq!(sharing, Sharing::default());
        assert!(!sharing.is_whole(2));
    }

    proptest! {
        #[test]
        fn groups_do_not_depend_on_the_order_of_the_servers(
            keys in prop::collection::vec(0_u8..3, 1..8),
            offset in 0_usize..8,
        ) {
            let servers = keys.len();
            let mut ordered = ResumptionMatrix::new(servers);
            let mut rotated = ResumptionMatrix::new(servers);
            let place = |server: usize| (server + offset) % servers;
            for from in 0..servers {
                for to in 0..servers {
                    let answer = if keys[from] == keys[to] { Answer::Resumed } else { Answer::Refused };
                    ordered.record(from, to, answer);
                    rotated.record(place(from), place(to), answer);
                }
            }
            let mut expected: Vec<Vec<usize>> = ordered.sharing().groups.into_iter().map(|group| {
                let mut group: Vec<usize> = group.into_iter().map(place).collect();
                group.sort_unstable();
                group
            }).collect();
            expected.sort_unstable();
            let mut found = rotated.sharing().groups;
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
