//! Sessions for single use. The store decides who gets one, and says in the same breath which node it
//! is: what was stored by another one, or by this one before it restarted or was a replica, is no
//! longer sure to be unspent.
//!
//! Scripts, and not MULTI: a script runs where its key is, in a cluster and behind a proxy too, so what
//! it reports of its node is true of the node that answered.

use redis::{Cmd, Value};
use sessile_proto::keys::Schedule;
use sessile_proto::resumption::StoreKey;
use sessile_proto::session::Gone;

use super::metrics::Operation;
use super::{Answer, Link};
use crate::store::WaitBudget;
use crate::store::entry::{self, Name};

/// Finds out the node's life (`run_id`), its dataset's (`master_replid`) and its clock; nothing where a store
/// does not tell.
macro_rules! node {
    () => {
        "local said = redis.call('INFO', 'server') .. redis.call('INFO', 'replication') \
         local run, data = said:match('run_id:(%x+)'), said:match('master_replid:(%x+)') \
         local seconds = said:match('uptime_in_seconds:(%d+)') \
         local node = run and data and seconds and run .. data .. ' ' .. seconds or '' "
    };
}

/// Stores an entry behind what its node says of itself. Not where there is something: a request that is
/// sent again must not bring back what was spent in between.
const PUT: &str = concat!(
    node!(),
    "return redis.call('SET', KEYS[1], string.char(#node) .. node .. ARGV[1], 'NX', 'PX', ARGV[2])"
);

/// Gives an entry out and leaves a tombstone in its place for as long as it would have lived.
///
/// Where there is none it may be on its way, and whoever has recorded the hello that asks for it could ask
/// again when it has come. Nothing tells it from what a stranger made up, though, so that nothing is kept
/// for each: its part of the store is marked for a while, in which early data goes with nothing that came
/// to that part as lately (`entry::was_kept`). However many strangers ask, there are no more marks than parts.
const CONSUME: &str = concat!(
    "local held = redis.call('GET', KEYS[1]) \
     if not held then redis.call('SET', KEYS[2], '', 'EX', ARGV[2]) return {held, '', 0} end \
     local missed = redis.call('GET', KEYS[2]) and 1 or 0 \
     if #held > #ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL') end ",
    node!(),
    "return {held, node, missed}"
);

/// The command that stores an entry for `life` milliseconds.
pub(super) fn put(name: &Name, entry: &[u8], life: u64) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(PUT).arg(1).arg(name.as_str());
    command.arg(entry).arg(life);
    command
}

impl Link {
    /// Takes a session out of the store, and says whether early data may go with it: whether it is sure that
    /// nobody else got it, and that it did not come after a hello that asked for it.
    pub(in crate::store) async fn consume(
        &self,
        key: &StoreKey,
        schedule: &Schedule,
        budget: &mut WaitBudget,
    ) -> (Answer, bool) {
        let name = Name::new(&self.remote.scope, key);
        let tombstone = entry::tombstone(Gone::Spent).expect("what is spent leaves a tombstone");
        let mut command = redis::cmd("EVAL");
        command.arg(CONSUME).arg(2).arg(name.as_str());
        command.arg(name.part());
        command.arg(&tombstone[..]).arg(entry::KEPT_OUT);
        let left = budget.left();
        let asked = self.ask(Operation::Consume, &command, 1, left);
        let said = match budget.spend(asked).await {
            Ok(Value::Array(said)) => said,
            Ok(_) => return (self.judged_as(Operation::Consume, None), false),
            Err(failure) => {
                self.note_single_use(failure);
                return (Answer::None(failure.reason()), false);
            }
        };
        let (answer, is_certain) = match said.as_slice() {
            [Value::Nil, ..] => (Some(Answer::Missing), false),
            [
                Value::BulkString(held),
                Value::BulkString(node),
                Value::Int(missed),
            ] => {
                let opened = Answer::of(entry::open(schedule, &name, held));
                (Some(opened), entry::was_kept(held, node, *missed != 0))
            }
            _ => (None, false),
        };
        (self.judged_as(Operation::Consume, answer), is_certain)
    }
}
