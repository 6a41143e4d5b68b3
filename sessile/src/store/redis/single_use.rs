//! Sessions for single use. The store decides who gets one, and says in the same breath which node it
//! is: what was stored by another one, or by this one before it restarted or was a replica, is no
//! longer sure to be unspent.
//!
//! Scripts, and not MULTI: a script runs where its key is, in a cluster and behind a proxy too, so what
//! it reports of its node is true of the node that answered.

use redis::{Cmd, Value};
use sessile_proto::keys::Schedule;
use sessile_proto::session::Gone;

use super::metrics::Operation;
use super::{Answer, Link};
use crate::store::entry::{self, Name};
use crate::store::{Key, Patience};

/// The node's life (`run_id`) and its dataset's (`master_replid`); nothing where a store does not tell.
macro_rules! with_node {
    ($script:literal) => {
        concat!(
            "local said = redis.call('INFO', 'server') .. redis.call('INFO', 'replication') ",
            "local run, data = said:match('run_id:(%x+)'), said:match('master_replid:(%x+)') ",
            "local node = run and data and run .. data or '' ",
            $script
        )
    };
}

/// Stores an entry behind the node's name. Not where there is something: a request that is sent again
/// must not bring back what was spent in between.
const PUT: &str = with_node!(
    "return redis.call('SET', KEYS[1], string.char(#node) .. node .. ARGV[1], 'NX', 'PX', ARGV[2])"
);

/// Gives an entry out and leaves a tombstone in its place for as long as it would have lived. Where there is
/// none, a tombstone keeps one out that is late.
const SPEND: &str = with_node!(
    "local held = redis.call('GET', KEYS[1]) \
     if not held then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) \
     elseif #held > #ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL') end \
     return {held, node}"
);

/// How long an entry that was asked for before it came is kept out, in milliseconds: until the hello that
/// asked for it is stale at every server, ten seconds off either way.
const KEPT_OUT: u64 = 20_000;

/// The command that stores an entry for `life` milliseconds.
pub(super) fn put(name: &Name, entry: &[u8], life: u64) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(PUT).arg(1).arg(name.as_str());
    command.arg(entry).arg(life);
    command
}

impl Link {
    /// Takes a session out of the store, and says whether it is sure that nobody else got it.
    pub(in crate::store) async fn spend(
        &self,
        key: &Key,
        schedule: &Schedule,
        patience: &mut Patience,
    ) -> (Answer, bool) {
        let name = Name::new(&self.remote.scope, key);
        let tombstone = entry::tombstone(Gone::Spent).expect("what is spent leaves a tombstone");
        let mut command = redis::cmd("EVAL");
        command.arg(SPEND).arg(1).arg(name.as_str());
        command.arg(&tombstone[..]).arg(KEPT_OUT);
        let left = patience.left();
        let asked = self.ask(Operation::Spend, &command, 1, left);
        let said = match patience.spend(asked).await {
            Ok(Value::Array(said)) => said,
            Ok(_) => return (self.judged_as(Operation::Spend, None), false),
            Err(failure) => {
                self.note_single_use(failure);
                return (Answer::None(failure.reason()), false);
            }
        };
        let (answer, same_node) = match said.as_slice() {
            [Value::Nil, _] => (Some(Answer::Missing), false),
            [Value::BulkString(held), Value::BulkString(node)] => {
                let opened = Answer::of(entry::open(schedule, &name, held));
                (Some(opened), entry::was_stored_by(held, node))
            }
            _ => (None, false),
        };
        (self.judged_as(Operation::Spend, answer), same_node)
    }
}
