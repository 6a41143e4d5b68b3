//! One connection through the balancer: its hello is read, a server found and connected to, and
//! bytes pass. What the server shows in clear is reported as it passes.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sessile_proto::alert::AlertDescription;
use sessile_proto::proxy_protocol::{self, Addresses, Version};
use sessile_proto::route::RoutedBy;
use sessile_proto::watch::Watch;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Shared;
use super::follow::{Choice, Offered, Request, offers_session};
use super::metrics::TurnedAway;
use super::missed::{Miss, Missed};
use super::own::is_ours;
use super::relay::{self, Patience};
use super::report::Passage;
use super::roster::{Pool, Roster};
use super::server::{Connected, Server};
use crate::clock;
use crate::listener::{Admitted, Client, ClientHandler, ReceivedHello, Rejection};

impl ClientHandler for Arc<Shared> {
    type Connection = Box<Placed>;
    type Cause = TurnedAway;

    async fn accept(
        &self,
        client: Client,
        received: &ReceivedHello<'_>,
    ) -> Result<Box<Placed>, Rejection<TurnedAway>> {
        place(self, client, received).await.map(Box::new)
    }

    async fn serve(&self, placed: Box<Placed>) {
        pass(self, placed).await;
    }

    fn count_rejection(&self, cause: TurnedAway) {
        self.metrics.count_turned_away(cause);
    }
}

/// A client whose server was found.
pub(super) struct Placed {
    client: TcpStream,
    admitted: Admitted,
    passage: Passage,
    server: TcpStream,
    connected: Connected,
    patience: Patience,
    watch: Watch,
}

/// Finds a server that takes the connection, and sends it the hello unchanged.
async fn place(
    shared: &Shared,
    client: Client,
    received: &ReceivedHello<'_>,
) -> Result<Placed, Rejection<TurnedAway>> {
    let hello = &received.hello;
    let roster = shared.roster();
    let Some(pool) = roster.pool(hello.server_name) else {
        let alert = AlertDescription::UnrecognizedName;
        return Err(client.reject(TurnedAway::UnknownName, Some(alert)));
    };
    let opening = Opening {
        client: &client,
        received,
    };
    let offered = Offered::new(hello);
    let request = Request {
        hello,
        offered: &offered,
        source: client.source.ip(),
        now: clock::now(),
        at: Instant::now(),
    };
    let Attempt {
        by,
        server,
        io,
        connected,
    } = match find(shared, &roster, pool, &request, &opening).await {
        Ok(attempt) => attempt,
        Err(cause) => return Err(client.reject(cause, None)),
    };
    Ok(Placed {
        client: client.io,
        admitted: client.admitted,
        server: io,
        connected,
        patience: Patience {
            idle: roster.balance.idle_timeout,
            total: roster.balance.total_timeout,
            ..Patience::default()
        },
        watch: Watch::new(hello),
        passage: Passage {
            server,
            by,
            client: client.source,
            offered,
            sessions: RefCell::default(),
        },
    })
}

/// No further server is tried once the first attempts took so many times `balance.connect-timeout`.
const ALL_ATTEMPTS: u32 = 3;

/// A server that took the connection and was told the hello.
struct Attempt {
    by: RoutedBy,
    server: Arc<Server>,
    io: TcpStream,
    connected: Connected,
}

/// Finds a server that takes the connection, and counts which rule's it is not. The error is the cause
/// that is counted.
async fn find(
    shared: &Shared,
    roster: &Roster,
    pool: &Pool,
    request: &Request<'_>,
    opening: &Opening<'_>,
) -> Result<Attempt, TurnedAway> {
    let mut missed = Missed::default();
    let choices = shared.choices(roster, pool, request);
    let found = first_that_takes(shared, roster, choices, opening, &mut missed).await;
    let by = found.as_ref().ok().map(|attempt| attempt.by);
    if let Some((by, why)) = missed.of_one_that_came(by) {
        shared.metrics.count_missed(by, why);
    }
    found
}

/// Tries the servers in turn. One that took the connection and ends it without a word, as one that is
/// stopped does with what waits for it, is passed over as well, once: as long as nothing was heard
/// from it, its client knows of nothing. Where there is no other, that is how the connection ends.
async fn first_that_takes<'r>(
    shared: &Shared,
    roster: &Roster,
    choices: impl Iterator<Item = Choice<'r>>,
    opening: &Opening<'_>,
    missed: &mut Missed,
) -> Result<Attempt, TurnedAway> {
    let patience = roster.balance.connect_timeout;
    let give_up = Instant::now() + patience * ALL_ATTEMPTS;
    let mut tried: Vec<&'r Arc<Server>> = Vec::new();
    let mut silent: Option<Attempt> = None;
    for (by, choice) in choices {
        let server = match choice {
            Ok(server) => server,
            Err(why) => {
                missed.note(by, why);
                continue;
            }
        };
        if tried.iter().any(|other| Arc::ptr_eq(other, server)) {
            continue;
        }
        if !tried.is_empty() {
            if has_gone(&opening.client.io) {
                return silent.ok_or(TurnedAway::ClientGone);
            }
            if Instant::now() >= give_up {
                break;
            }
        }
        tried.push(server);
        let (io, connected) = match connect(shared, roster, server, opening).await {
            Ok(connected) => connected,
            Err(why) => {
                missed.note(by, why);
                continue;
            }
        };
        let attempt = Attempt {
            by,
            server: Arc::clone(server),
            io,
            connected,
        };
        if let Some(silent) = silent {
            let source = opening.client.source.ip();
            let offered = offers_session(&opening.received.hello);
            silent.server.cut(source, offered, Instant::now());
            return Ok(attempt);
        }
        if !opening.may_be_said_again()
            || !hangs_up(&attempt.io, &opening.client.io, patience).await
        {
            return Ok(attempt);
        }
        missed.note(by, Miss::HungUp);
        silent = Some(attempt);
    }
    silent.ok_or(TurnedAway::NoServer)
}

/// Whether the client has ended its side: without a handshake it cannot be waiting for more.
fn has_gone(client: &TcpStream) -> bool {
    let state = relay::known_state(client);
    state.is_read_closed() || state.is_error()
}

/// Whether the server ends the connection before it says anything. Nothing is read: what it says, and
/// how it ends, is there for who relays it.
async fn hangs_up(server: &TcpStream, client: &TcpStream, patience: Duration) -> bool {
    let mut byte = [0];
    let first = async {
        tokio::select! {
            biased;
            ready = server.ready(Interest::READABLE | Interest::ERROR) => ready.ok(),
            // It has more to say, or is gone. Asked of the system: where its hello filled all the room
            // that there was for it, the runtime takes the socket for readable whether it is or not.
            _ = client.peek(&mut byte) => None,
        }
    };
    let Ok(Some(ready)) = timeout(patience, first).await else {
        return false;
    };
    let ended = ready.is_read_closed() || ready.is_error();
    ended && matches!(rustix::io::ioctl_fionread(server), Ok(0))
}

/// What a server hears first.
struct Opening<'a> {
    client: &'a Client,
    received: &'a ReceivedHello<'a>,
}

impl Opening<'_> {
    /// The hello, verbatim, with a PROXY header before it where the server wants one: in one write.
    fn bytes(&self, proxy: Option<Version>) -> io::Result<Cow<'_, [u8]>> {
        let ReceivedHello { bytes, hello } = self.received;
        let Some(version) = proxy else {
            return Ok((*bytes).into());
        };
        let destination = match self.client.destination {
            Some(destination) => destination,
            None => self.client.io.local_addr()?,
        };
        let addresses = Addresses {
            source: self.client.source,
            destination,
        };
        let alpn = hello.alpn.iter().next();
        let header = proxy_protocol::encode(version, addresses, hello.server_name, alpn);
        Ok([&header, *bytes].concat().into())
    }

    /// Whether another server may hear it too. Early data is to be heard once.
    const fn may_be_said_again(&self) -> bool {
        !self.received.hello.early_data
    }
}

async fn connect(
    shared: &Shared,
    roster: &Roster,
    server: &Server,
    opening: &Opening<'_>,
) -> Result<(TcpStream, Connected), Miss> {
    let connected = server.reserve().ok_or(Miss::Full)?;
    let attempt = async {
        let mut io = TcpStream::connect(server.address()).await?;
        io.set_nodelay(true)?;
        let bytes = opening.bytes(server.settings.proxy_protocol)?;
        io.write_all(&bytes).await?;
        Ok::<_, io::Error>(io)
    };
    match timeout(roster.balance.connect_timeout, attempt).await {
        Ok(Ok(io)) => {
            server.live.metrics.connections.inc();
            Ok((io, connected))
        }
        Ok(Err(error)) if is_ours(&error) => {
            shared.metrics.count_own_failure(server.name(), &error);
            Err(Miss::OwnFailure)
        }
        failed => {
            // `None`: not in time.
            let error = failed.ok().and_then(Result::err);
            tracing::debug!(
                server = server.name(),
                ?error,
                "server does not take connections"
            );
            // Counted from now: the attempt may have taken its whole time.
            server.failed(error.as_ref(), Instant::now());
            Err(Miss::Unreachable)
        }
    }
}

/// Moves bytes to the end.
async fn pass(shared: &Shared, placed: Box<Placed>) {
    let Placed {
        mut client,
        admitted,
        passage,
        mut server,
        connected,
        patience,
        mut watch,
    } = *placed;
    let (mut answered, mut told) = (false, false);
    let moved = |moved| {
        shared.metrics.moved(moved);
        passage.server.live.metrics.moved(moved);
    };
    let relayed = relay::run(
        &mut client,
        &mut server,
        &admitted,
        patience,
        &moved,
        |bytes| {
            if !answered {
                answered = true;
                passage.server.answered(Instant::now());
            }
            match watch.push(bytes) {
                Some(outcome) => {
                    shared.report_handshake(&passage, &outcome, watch.selected_identity());
                    told = true;
                    ControlFlow::Break(())
                }
                None => ControlFlow::Continue(()),
            }
        },
    );
    let ended = relayed.await;
    shared.report_end(&passage, &ended, told);
    drop(connected);
}
