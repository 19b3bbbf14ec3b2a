//! One server: its command connection, and what is under way on it.
//!
//! One task per node, on the control thread. It owns the connection and the items that were given
//! to it. It gives every item back to the driver, with a reply or with the reason why there is
//! none.
//!
//! **Order.** Orders come through one channel. For each, in turn, the future that sends its
//! pipeline is polled once before the next order is looked at. That first poll packs the commands
//! and puts them into the connection's own channel, or into the first-come-first-served queue for
//! it. The poll runs outside of tokio's budget for cooperation. With the budget spent, a first poll
//! would return without having queued anything, and the next order could overtake. From that
//! channel one task writes to one socket.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, PushInfo, PushKind, RedisResult, Value, cmd};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::backoff::Backoff;
use super::commands;
use super::counters::Count as _;
use super::dial::{self, ANSWER_MAX};
use super::facts::Eviction;
use super::gather::Item;
use super::keys::Names;
use super::server::{Cause, Endpoint, Line, Location};
use super::signal::{NodeId, Signal};
use super::tasks::{Context, Down, Input, News, Order};
use super::topology::ClusterSlots;
use crate::cluster::store::StoreEvent;

/// A connection that was idle for this long gets a PING, so a silently dead one is noticed before
/// it is needed. It costs one command per second and idle server.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// How often a server's eviction policy is read: an operator may change it while it runs.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// One pipeline's end: which, and how it went.
type Landed = (u64, Result<RedisResult<Vec<Value>>, OutOfTime>);

/// The cause of a pipeline that waited too long.
#[derive(Debug)]
enum OutOfTime {
    /// The server: the connection is no good.
    Server,
    /// Earlier waits, before it came to this task.
    Before,
}

/// The purpose of a pipeline.
#[derive(Debug)]
enum Freight {
    Items(Vec<Item>),
    Look,
    Ping,
    /// The eviction policy.
    Memory,
}

/// Why a connection is not used any more.
#[derive(Debug)]
struct End {
    cause: Cause,
    is_demoted: bool,
    /// Asked for by the driver: pause and round.
    redial: Option<(Duration, u64)>,
}

impl From<Cause> for End {
    fn from(cause: Cause) -> End {
        End {
            cause,
            is_demoted: false,
            redial: None,
        }
    }
}

/// Runs until the driver lets go of `orders` and everything under way is done. Items that come
/// before there is a connection fail at once. With `patient` they wait for the end of the first
/// attempt.
pub(super) async fn run(
    context: Rc<Context>,
    id: NodeId,
    location: Location,
    mut orders: UnboundedReceiver<Order>,
    inputs: UnboundedSender<Input>,
    mut patient: bool,
) {
    let tell = |news| {
        // The driver outlives its nodes; if it does not, there is no receiver.
        let _ = inputs.send(Input::Node(id, news));
    };
    let refuse = |order, cause: &Cause| {
        if let Order::Items(items) = order {
            tell(News::Failed(items, cause.clone()));
        }
    };
    let mut backoff = Backoff::default();
    let mut cause: Cause = "not connected to Redis yet".into();
    let mut round = 0;
    loop {
        let gone = Arc::new(Notify::new());
        let push = push_handler(context.names.clone(), context.signals.clone(), gone.clone());
        let opening = context.dialer.open_master(&location, Line::Commands, push);
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                order = orders.recv(), if !patient => match order {
                    Some(Order::Redial(_, of_round, _)) => round = of_round,
                    Some(order) => refuse(order, &cause),
                    None => return,
                },
            }
        };
        patient = false;
        let mut pause = Duration::ZERO;
        let mut is_demoted = false;
        let of_round = round;
        match opened {
            Ok((server, connection)) => {
                let at = server.at.clone();
                tell(News::Up(server, round));
                let began = Instant::now();
                let flight = Flight::new(&context, at, connection);
                let Some(end) = flight.serve(&gone, &mut orders, &tell).await else {
                    return;
                };
                cause = end.cause;
                is_demoted = end.is_demoted;
                match end.redial {
                    Some((asked, of_round)) => (pause, round) = (asked, of_round),
                    None => backoff.connected_for(began.elapsed()),
                }
                context.counters.reconnects.fetch_add(1, Relaxed);
            }
            Err(why) => cause = why,
        }
        tell(News::Down(Down {
            cause: cause.clone(),
            round: of_round,
            is_demoted,
        }));
        if pause.is_zero() {
            pause = backoff.next_delay();
        }
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                order = orders.recv() => match order {
                    Some(Order::Redial(_, of_round, _)) => round = of_round,
                    Some(order) => refuse(order, &cause),
                    None => return,
                },
            }
        }
    }
}

/// Invalidations become events at once: on the connection's task, in the order in which the server
/// sent them. An earlier reply may become an event later, as it passes through two more tasks. An
/// invalidation that was sent after a read must never get lost.
fn push_handler(
    names: Names,
    signals: UnboundedSender<Signal>,
    gone: Arc<Notify>,
) -> impl Fn(PushInfo) + Send + Sync + 'static {
    move |info| match info.kind {
        PushKind::Invalidate => {
            let event = match info.data.into_iter().next() {
                Some(Value::Array(keys)) => {
                    let users = keys.iter().filter_map(|key| match key {
                        Value::BulkString(key) => names.user_of(key),
                        _ => None,
                    });
                    let users: Vec<_> = users.collect();
                    if users.is_empty() {
                        // The directory and indices are read on this connection too, and so are
                        // tracked.
                        return;
                    }
                    StoreEvent::Forget(users)
                }
                // A flush of everything, or an overflow of the server's tracking table.
                _ => StoreEvent::ForgetAll,
            };
            let _ = signals.send(Signal::Event(event));
        }
        PushKind::Disconnection => gone.notify_one(),
        _ => {}
    }
}

/// The pipelines under way on one connection.
struct Flight<'a> {
    context: &'a Context,
    at: Endpoint,
    connection: MultiplexedConnection,
    /// Pipelines under way; the items stay here, so that they come back even when their future does
    /// not.
    freight: BTreeMap<u64, Freight>,
    landings: FuturesUnordered<LocalBoxFuture<'static, Landed>>,
    next: u64,
}

impl<'a> Flight<'a> {
    fn new(context: &'a Context, at: Endpoint, connection: MultiplexedConnection) -> Flight<'a> {
        Flight {
            context,
            at,
            connection,
            freight: BTreeMap::new(),
            landings: FuturesUnordered::new(),
            next: 0,
        }
    }

    /// Until the connection is lost (the reason) or the driver lets go (`None`). All items went
    /// back by then.
    async fn serve(
        mut self,
        gone: &Notify,
        orders: &mut UnboundedReceiver<Order>,
        tell: &impl Fn(News),
    ) -> Option<End> {
        let mut asked = Instant::now();
        let mut leaving = false;
        let mut memory_due = asked;
        let lost: Option<End> = loop {
            tokio::select! {
                biased;
                Some((which, landed)) = self.landings.next() => {
                    if let Err(why) = self.land(which, landed, tell) {
                        break Some(why);
                    }
                }
                () = gone.notified(), if !(leaving && self.landings.is_empty()) => {
                    break Some(Cause::from("Redis closed the connection").into());
                }
                order = orders.recv(), if !leaving => match order {
                    Some(Order::Redial(pause, round, cause)) => {
                        break Some(End {
                            redial: Some((pause, round)),
                            ..cause.into()
                        });
                    }
                    Some(Order::Items(items)) => {
                        asked = Instant::now();
                        self.send(Freight::Items(items)).await;
                    }
                    Some(Order::Look) => {
                        asked = Instant::now();
                        self.send(Freight::Look).await;
                    }
                    None => leaving = true,
                },
                () = sleep_until(memory_due), if self.context.watches_memory && !leaving => {
                    memory_due = Instant::now() + MEMORY_INTERVAL;
                    self.send(Freight::Memory).await;
                }
                () = sleep_until(asked + IDLE_MAX), if self.landings.is_empty() && !leaving => {
                    asked = Instant::now();
                    self.send(Freight::Ping).await;
                }
                else => break None,
            }
        };
        let left = || "the server left the cluster".into();
        let why = lost.as_ref().map_or_else(left, |end| end.cause.clone());
        for (_, freight) in std::mem::take(&mut self.freight) {
            if let Freight::Items(items) = freight {
                tell(News::Failed(items, why.clone()));
            }
        }
        lost
    }

    /// Sends one pipeline. Does not wait for anything.
    async fn send(&mut self, freight: Freight) {
        let counters = &self.context.counters;
        let mut pipeline = Pipeline::new();
        let patience = Instant::now() + ANSWER_MAX;
        let mut deadline = patience;
        match &freight {
            Freight::Items(items) => {
                for item in items {
                    if item.asking.is_some() {
                        pipeline.add_command(cmd("ASKING"));
                    }
                    pipeline.add_command(commands::command(&self.context.names, &item.step, self.context.sharded));
                    counters.count(&item.step);
                    deadline = deadline.min(item.deadline);
                }
            }
            Freight::Look => {
                for command in dial::view_commands() {
                    pipeline.add_command(command);
                }
            }
            Freight::Ping => {
                pipeline.add_command(cmd("PING"));
            }
            Freight::Memory => {
                pipeline.add_command(cmd("INFO").arg("memory").clone());
            }
        }
        counters.commands_total.fetch_add(pipeline.len() as u64, Relaxed);
        let which = self.next;
        self.next += 1;
        self.freight.insert(which, freight);
        let mut connection = self.connection.clone();
        let mut landing: LocalBoxFuture<'static, Landed> = Box::pin(async move {
            let count = pipeline.len();
            let sending = tokio::task::unconstrained(connection.send_packed_commands(&pipeline, 0, count));
            let landed = timeout_at(deadline, sending).await;
            let who = || {
                if deadline < patience {
                    OutOfTime::Before
                } else {
                    OutOfTime::Server
                }
            };
            (which, landed.map_err(|_| who()))
        });
        // The first poll puts it in the queue, see above.
        std::future::poll_fn(|cx| {
            if let Poll::Ready(landed) = landing.as_mut().poll(cx) {
                landing = Box::pin(std::future::ready(landed));
            }
            Poll::Ready(())
        })
        .await;
        self.landings.push(landing);
    }

    /// Takes a pipeline's replies apart; an error means that the connection is no good any more.
    fn land(
        &mut self,
        which: u64,
        landed: Result<RedisResult<Vec<Value>>, OutOfTime>,
        tell: &impl Fn(News),
    ) -> Result<(), End> {
        let freight = self.freight.remove(&which).unwrap_or(Freight::Ping);
        let at = &self.at;
        let (why, good) = match landed {
            Ok(Ok(replies)) => return self.unload(freight, replies, tell),
            Ok(Err(error)) => (format!("the connection to Redis at {at} broke: {error}"), false),
            Err(OutOfTime::Server) => (
                format!("Redis at {at} did not answer within {} s", ANSWER_MAX.as_secs()),
                false,
            ),
            Err(OutOfTime::Before) => ("out of time while the slot changed its server".to_owned(), true),
        };
        let why: Cause = why.into();
        if let Freight::Items(items) = freight {
            tell(News::Failed(items, why.clone()));
        }
        if good { Ok(()) } else { Err(why.into()) }
    }

    fn unload(&self, freight: Freight, replies: Vec<Value>, tell: &impl Fn(News)) -> Result<(), End> {
        let mut lost = Ok(());
        for reply in &replies {
            if let Value::ServerError(error) = reply
                && let verdict = commands::verdict(error)
                && verdict.connection_is_lost
            {
                let words = format!("Redis at {} refused: {}", self.at, commands::explained(error));
                lost = Err(End {
                    is_demoted: verdict.is_demoted,
                    ..Cause::from(words).into()
                });
            }
        }
        let items = match freight {
            Freight::Items(items) => items,
            Freight::Look => {
                if let [info, slots] = &replies[..]
                    && let Endpoint::Tcp(address) = &self.at
                    && let Some(shared) = ClusterSlots::read(info, slots, address)
                {
                    tell(News::ClusterSlots(shared));
                }
                return lost;
            }
            Freight::Memory => {
                if let Some(eviction) = replies.first().and_then(Eviction::read) {
                    tell(News::Eviction(eviction));
                }
                return lost;
            }
            Freight::Ping => return lost,
        };
        let mut replies = replies.into_iter();
        let mut answered = Vec::with_capacity(items.len());
        for item in items {
            if item.asking.is_some() {
                // ASKING's own OK.
                let _ = replies.next();
            }
            // The crate waits for exactly as many replies as there are commands.
            answered.push((item, replies.next().unwrap_or_default()));
        }
        tell(News::Replies(answered));
        lost
    }
}
