//! Servers that are found by DNS names. Each name of the configuration has one task, which looks the name up
//! again and again.

mod resolver;
pub(super) mod table;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use sessile_proto::name_resolution::{FoundServer, MIN_WAIT};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::resolver::{LookedUp, LookupError, look_up};
use self::table::Names;
use super::server_list;
use super::state::{BalancerState, Changes};
use crate::config::{Balance, ServerAddress};

/// How long the start of a balancer waits for the first answers.
const FIRST_ANSWERS: Duration = Duration::from_secs(5);

/// Looks up all names of a configuration once. A name that has no answer in time gets one later.
///
/// # Errors
/// The thread for the lookups cannot be started.
pub(super) fn look_up_first(
    names: &Names,
    balance: &Balance,
) -> io::Result<BTreeMap<ServerAddress, Vec<FoundServer>>> {
    let wanted = server_list::names(balance);
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    tracing::info!(
        names = wanted.len(),
        "looking up the DNS names of servers; the start waits up to {} s for the answers",
        FIRST_ANSWERS.as_secs()
    );
    // The thread of the caller may have a runtime. No runtime may wait inside another one.
    let answers = thread::scope(|scope| {
        let thread = thread::Builder::new().name("balance-names".to_owned());
        let lookups = thread.spawn_scoped(scope, || first_answers(names, balance, wanted))?;
        lookups.join().expect("lookups do not panic")
    })?;
    let mut found = BTreeMap::new();
    for (name, answer) in answers {
        let servers = names.record(&name, answer, balance.lookup_interval);
        found.extend(servers.map(|servers| (name, servers)));
    }
    Ok(found)
}

/// The first answers for all names of a configuration.
fn first_answers(
    names: &Names,
    balance: &Balance,
    wanted: BTreeSet<&ServerAddress>,
) -> io::Result<Vec<(ServerAddress, Result<LookedUp, LookupError>)>> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, async {
        let mut lookups = JoinSet::new();
        for name in wanted.into_iter().cloned() {
            let inputs = names.inputs(&name, balance);
            lookups.spawn_local(async move {
                let answer = timeout(FIRST_ANSWERS, look_up(&inputs, &name)).await;
                let answer = answer.unwrap_or(Err(LookupError::TimedOut(FIRST_ANSWERS)));
                (name, answer)
            });
        }
        lookups.join_all().await
    }))
}

/// Looks up every name of the current configuration until the balancer stops.
pub(super) async fn supervise(state: Arc<BalancerState>) {
    let mut sets = state.servers.subscribe();
    let running = Rc::new(RefCell::new(HashSet::new()));
    loop {
        let set = Arc::clone(&sets.borrow_and_update());
        for name in set.inputs.names() {
            if running.borrow_mut().insert(name.clone()) {
                let (state, running, name) =
                    (Arc::clone(&state), Rc::clone(&running), name.clone());
                tokio::task::spawn_local(async move {
                    look_up_while_configured(&state, &name).await;
                    state.names.forget(&name);
                    running.borrow_mut().remove(&name);
                });
            }
        }
        tokio::select! {
            changed = sets.changed() => if changed.is_err() { return },
            () = state.stop.cancelled() => return,
        }
    }
}

/// Looks up one name until the configuration does not have it any more.
async fn look_up_while_configured(state: &BalancerState, name: &ServerAddress) {
    let mut sets = state.servers.subscribe();
    let mut repeat = state.names.repeat_requests();
    let is_gone = async {
        // The sender lives as long as `state`.
        let _ = sets.wait_for(|set| !set.inputs.has_name(name)).await;
    };
    let lookups = async {
        let mut last: Option<Instant> = None;
        loop {
            tokio::select! {
                () = sleep(state.names.wait(name)) => {}
                // Servers that go up and down must not cause a flood of lookups.
                _ = repeat.changed() => if let Some(last) = last {
                    sleep_until(last + MIN_WAIT).await;
                }
            }
            last = Some(Instant::now());
            let set = state.server_set();
            let balance = &set.inputs.balance;
            let inputs = state.names.inputs(name, balance);
            let mut new_sets = state.servers.subscribe();
            let result = tokio::select! {
                result = look_up(&inputs, name) => result,
                // The old DNS server may not answer. The reload also asks for another lookup.
                _ = new_sets.wait_for(|set| set.inputs.balance.resolver != inputs.resolver) => continue,
            };
            if let Some(servers) = state.names.record(name, result, balance.lookup_interval) {
                log_changes(name, &state.set_found(name, servers));
            }
        }
    };
    tokio::select! {
        () = is_gone => {}
        () = lookups => {}
    }
}

fn log_changes(name: &ServerAddress, changes: &Changes) {
    let Changes {
        added,
        changed,
        removed,
    } = changes;
    if *changes != Changes::default() {
        tracing::info!(%name, ?added, ?changed, ?removed, "the servers of a name have changed");
    }
}
