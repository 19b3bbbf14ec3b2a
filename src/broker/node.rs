//! One server: its command connection, and what is under way on it.
//!
//! One task per node, on the control thread. It owns the connection and the items that were given to it, and gives every
//! one of them back to the driver, with a reply or with the reason why there is none.
//!
//! **Order.** Orders come through one channel; for each, in turn, the future that sends its pipeline is polled once
//! before the next order is looked at. That first poll packs the commands and puts them into the connection's own
//! channel, or into the first-come-first-served queue of those who wait for a place in it. It runs outside of tokio's
//! budget for cooperation: with the budget spent, a first poll would come back without having queued anything, and
//! the next order could overtake. From that channel one task writes to one socket.

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

use super::Signal;
use super::backoff::Backoff;
use super::commands;
use super::counters::Count as _;
use super::dial::{ANSWER_MAX, Cause, Place};
use super::driver::{Context, Input};
use super::gather::Item;
use super::keys::Names;
use crate::cluster::store::StoreEvent;

/// A connection on which nothing was asked for this long is asked PING: one that died in silence is to be noticed before
/// somebody needs it. At the cost of one command per second and idle server.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// Which node; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u64);

/// What a node tells the driver.
#[derive(Debug)]
pub(super) enum News {
    /// It can be asked.
    Up,
    /// It cannot be asked (any more).
    Down(Cause),
    /// Items with their replies.
    Replies(Vec<(Item, Value)>),
    /// Items without reply: nobody knows whether they were carried out.
    Failed(Vec<Item>, Cause),
    /// Items that were never sent.
    Refused(Vec<Item>, Cause),
}

/// One pipeline's end: which, and how it went; `Err(None)`: out of time.
type Landed = (u64, Result<RedisResult<Vec<Value>>, ()>);

/// Runs until the driver lets go of `orders`.
pub(super) async fn run(
    context: Rc<Context>,
    id: NodeId,
    place: Place,
    mut orders: UnboundedReceiver<Vec<Item>>,
    inputs: UnboundedSender<Input>,
) {
    let tell = |news| {
        // The driver outlives its nodes; if it does not, nobody is left to tell.
        let _ = inputs.send(Input::Node(id, news));
    };
    let mut backoff = Backoff::default();
    let mut cause: Cause = "not connected to Redis yet".into();
    loop {
        let gone = Arc::new(Notify::new());
        let push = push_handler(context.names.clone(), context.signals.clone(), gone.clone());
        let opening = context.dialer.open_commands(&place, push);
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                order = orders.recv() => match order {
                    Some(items) => tell(News::Refused(items, cause.clone())),
                    None => return,
                },
            }
        };
        match opened {
            Ok(connection) => {
                tell(News::Up);
                let began = Instant::now();
                let flight = Flight::new(&context, connection);
                match flight.serve(&gone, &mut orders, &tell).await {
                    Some(why) => cause = why,
                    None => return,
                }
                backoff.connected_for(began.elapsed());
                context.counters.reconnects.fetch_add(1, Relaxed);
            }
            Err(why) => cause = why,
        }
        tell(News::Down(cause.clone()));
        let until = Instant::now() + backoff.next_delay();
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                order = orders.recv() => match order {
                    Some(items) => tell(News::Refused(items, cause.clone())),
                    None => return,
                },
            }
        }
    }
}

/// Invalidations become events at once: on the connection's task, in the order in which the server sent them. A reply
/// that was sent before may become an event after, as it takes the way over two tasks more; never may an invalidation
/// that was sent after a read get lost.
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
                        // The directory and indices are read on this connection too, and so are tracked.
                        return;
                    }
                    StoreEvent::Forget(users)
                }
                // Everything was flushed, or the server's table of who reads what overflowed.
                _ => StoreEvent::ForgetAll,
            };
            let _ = signals.send(Signal::Event(event));
        }
        PushKind::Disconnection => gone.notify_one(),
        _ => {}
    }
}

/// What is under way on one connection.
struct Flight<'a> {
    context: &'a Context,
    connection: MultiplexedConnection,
    /// Pipelines under way; the items stay here, so that they come back even when their future does not.
    items: BTreeMap<u64, Vec<Item>>,
    landings: FuturesUnordered<LocalBoxFuture<'static, Landed>>,
    next: u64,
}

impl<'a> Flight<'a> {
    fn new(context: &'a Context, connection: MultiplexedConnection) -> Flight<'a> {
        Flight {
            context,
            connection,
            items: BTreeMap::new(),
            landings: FuturesUnordered::new(),
            next: 0,
        }
    }

    /// Until the connection is lost (the reason) or the driver lets go (`None`). All items went back by then.
    async fn serve(
        mut self,
        gone: &Notify,
        orders: &mut UnboundedReceiver<Vec<Item>>,
        tell: &impl Fn(News),
    ) -> Option<Cause> {
        let mut asked = Instant::now();
        let lost: Option<Cause> = loop {
            tokio::select! {
                biased;
                Some((which, landed)) = self.landings.next() => {
                    if let Err(why) = self.land(which, landed, tell) {
                        break Some(why);
                    }
                }
                () = gone.notified() => break Some("Redis closed the connection".into()),
                order = orders.recv() => {
                    let Some(items) = order else { break None };
                    asked = Instant::now();
                    self.send(items).await;
                }
                () = sleep_until(asked + IDLE_MAX), if self.landings.is_empty() => {
                    asked = Instant::now();
                    self.send(Vec::new()).await;
                }
            }
        };
        let why = lost.clone().unwrap_or_else(|| "the server left the cluster".into());
        for (_, items) in std::mem::take(&mut self.items) {
            tell(News::Failed(items, why.clone()));
        }
        lost
    }

    /// Sends one pipeline; without items a PING. Does not wait for anything.
    async fn send(&mut self, items: Vec<Item>) {
        let counters = &self.context.counters;
        let mut pipeline = Pipeline::with_capacity(items.len() + 1);
        let mut deadline = Instant::now() + ANSWER_MAX;
        for item in &items {
            if item.asking {
                pipeline.add_command(cmd("ASKING"));
            }
            pipeline.add_command(commands::command(&self.context.names, &item.step, self.context.sharded));
            counters.count(&item.step);
            deadline = deadline.min(item.deadline);
        }
        if items.is_empty() {
            pipeline.add_command(cmd("PING"));
        }
        counters.commands_total.fetch_add(pipeline.len() as u64, Relaxed);
        let which = self.next;
        self.next += 1;
        self.items.insert(which, items);
        let mut connection = self.connection.clone();
        let mut landing: LocalBoxFuture<'static, Landed> = Box::pin(async move {
            let count = pipeline.len();
            // A pipeline that grew old elsewhere is out of time early; that says nothing about this server.
            let sending = tokio::task::unconstrained(connection.send_packed_commands(&pipeline, 0, count));
            (which, timeout_at(deadline, sending).await.map_err(|_| ()))
        });
        // The first poll puts it in its place, see above.
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
        landed: Result<RedisResult<Vec<Value>>, ()>,
        tell: &impl Fn(News),
    ) -> Result<(), Cause> {
        let items = self.items.remove(&which).unwrap_or_default();
        let fail = |items, why: Cause| {
            tell(News::Failed(items, why.clone()));
            Err(why)
        };
        let replies = match landed {
            Ok(Ok(replies)) => replies,
            Ok(Err(error)) => return fail(items, format!("the connection to Redis broke: {error}").into()),
            Err(()) => {
                return fail(
                    items,
                    format!("Redis did not answer within {} s", ANSWER_MAX.as_secs()).into(),
                );
            }
        };
        let mut lost = Ok(());
        for reply in &replies {
            if let Value::ServerError(error) = reply
                && commands::verdict(error).connection_is_lost
            {
                lost = Err(format!("Redis refused: {}", commands::words(error)).into());
            }
        }
        let mut replies = replies.into_iter();
        let mut answered = Vec::with_capacity(items.len());
        for item in items {
            if item.asking {
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
