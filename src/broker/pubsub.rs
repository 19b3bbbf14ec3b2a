//! One server: its connection for subscriptions.
//!
//! One task per server that has a wanted channel; it owns the connection and what is wanted of it. What is heard goes
//! from the connection's own task into the queue of signals at once, so that the socket is always read first: Redis cuts
//! a slow reader (`client-output-buffer-limit pubsub`), we drop and count instead, see [`super::backlog`].
//!
//! A subscription is confirmed by the push that names its channel, not by the reply that the crate hands out: a
//! `sunsubscribe` that a server sends by itself, when a slot moves away, is taken by the crate for the reply to whatever
//! is under way, and from then on replies belong to the command before. The crate never subscribes again by itself
//! here: its way is silent, and in a cluster it fails as soon as the channels of one server lie in two slots.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use log::warn;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisResult, ServerError, Value, cmd};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::Signal;
use super::backlog::Backlog;
use super::backoff::Backoff;
use super::commands;
use super::dial::{ANSWER_MAX, Cause, Line, Place};
use super::driver::{Context, Input};
use super::node::NodeId;
use crate::cluster::store::StoreEvent;
use crate::config::RedisAddress;

/// How often the task looks after silence, confirmations and refusals.
const TICK: Duration = Duration::from_secs(1);
/// A connection on which nothing came for so many ticks is asked PING. A gateway's probe on its own channel comes more
/// often than that.
const SILENT_TICKS: u32 = 3;

/// What the driver wants of a server.
#[derive(Debug)]
pub(super) enum Want {
    /// This channel.
    Channel(String),
    /// No more.
    NotChannel(String),
    /// The server's other connection was lost: is this one good?
    Check,
    /// The master is another one than before, this one: whoever is elsewhere is wrong there.
    Master(RedisAddress),
}

/// How far a subscription is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Not asked for, or refused: at the next tick.
    Idle,
    /// Asked for, at this time.
    Asked(Instant),
    /// Confirmed.
    Heard,
}

/// What the connection's task tells ours.
#[derive(Debug)]
enum Note {
    Heard(String),
    Unheard(String),
    Gone,
}

/// What came of a command: the channel that it was for (none: a PING), and the server's words if it was refused.
type Landed = (Option<String>, Result<RedisResult<Value>, ()>);

/// Runs until the driver lets go of `wants`.
pub(super) async fn run(
    context: Rc<Context>,
    source: NodeId,
    place: Place,
    mut wants: UnboundedReceiver<Want>,
    inputs: UnboundedSender<Input>,
) {
    let mut wanted: BTreeMap<String, Stage> = BTreeMap::new();
    let mut told = BTreeMap::new();
    let mut backoff = Backoff::default();
    loop {
        let (notes, mut heard) = unbounded_channel();
        let pulse = Arc::new(AtomicU64::new(0));
        let push = push_handler(
            source,
            context.signals.clone(),
            context.backlog.clone(),
            notes,
            pulse.clone(),
        );
        let opening = context.dialer.open_master(&place, Line::Subscriptions, push);
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                want = wants.recv() => match want {
                    Some(want) => note_want(&mut wanted, want),
                    None => return,
                },
            }
        };
        // A server that cannot be reached is told of once, by the node of its commands.
        if let Ok((address, connection)) = opened {
            let began = Instant::now();
            let session = Session {
                context: &context,
                source,
                address,
                connection,
                wanted: &mut wanted,
                told: &mut told,
                landings: FuturesUnordered::new(),
                inputs: &inputs,
            };
            let why = session.serve(&mut wants, &mut heard, &pulse).await;
            for (channel, stage) in &mut wanted {
                if *stage == Stage::Heard {
                    let _ = context.signals.send(Signal::Unheard(channel.clone(), source));
                }
                *stage = Stage::Idle;
            }
            match why {
                Some(why) => warn!("the subscriptions' connection to Redis was lost: {why}"),
                None => return,
            }
            backoff.connected_for(began.elapsed());
            context.counters.reconnects.fetch_add(1, Relaxed);
        }
        let until = Instant::now() + backoff.next_delay();
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                want = wants.recv() => match want {
                    Some(want) => note_want(&mut wanted, want),
                    None => return,
                },
            }
        }
    }
}

fn note_want(wanted: &mut BTreeMap<String, Stage>, want: Want) {
    match want {
        Want::Channel(channel) => {
            wanted.entry(channel).or_insert(Stage::Idle);
        }
        Want::NotChannel(channel) => {
            wanted.remove(&channel);
        }
        // Both are about a connection that is not there.
        Want::Check | Want::Master(_) => {}
    }
}

fn push_handler(
    source: NodeId,
    signals: UnboundedSender<Signal>,
    backlog: Arc<Backlog>,
    notes: UnboundedSender<Note>,
    pulse: Arc<AtomicU64>,
) -> impl Fn(PushInfo) + Send + Sync + 'static {
    move |info| {
        pulse.fetch_add(1, Relaxed);
        if info.kind == PushKind::Disconnection {
            let _ = notes.send(Note::Gone);
            return;
        }
        let mut data = info.data.into_iter();
        let Some(Value::BulkString(channel)) = data.next() else {
            return;
        };
        let Ok(channel) = String::from_utf8(channel) else {
            return;
        };
        match (info.kind, data.next()) {
            (PushKind::Message | PushKind::SMessage, Some(Value::BulkString(payload)))
                if backlog.admit(payload.len()) =>
            {
                let payload = Bytes::from(payload);
                let _ = signals.send(Signal::Packet { channel, payload });
            }
            // Signals of both kinds go from here, so that they keep their place between the packets.
            (PushKind::Subscribe | PushKind::SSubscribe, _) => {
                let _ = signals.send(Signal::Heard(channel.clone(), source));
                let _ = notes.send(Note::Heard(channel));
            }
            (PushKind::Unsubscribe | PushKind::SUnsubscribe, _) => {
                let _ = signals.send(Signal::Unheard(channel.clone(), source));
                let _ = notes.send(Note::Unheard(channel));
            }
            _ => {}
        }
    }
}

/// One connection's life.
struct Session<'a> {
    context: &'a Context,
    source: NodeId,
    address: RedisAddress,
    connection: MultiplexedConnection,
    wanted: &'a mut BTreeMap<String, Stage>,
    /// Refused channels with what was told of them, until they are heard.
    told: &'a mut BTreeMap<String, Arc<str>>,
    landings: FuturesUnordered<LocalBoxFuture<'static, Landed>>,
    inputs: &'a UnboundedSender<Input>,
}

impl Session<'_> {
    /// Until the connection is lost (the reason) or the driver lets go (`None`).
    async fn serve(
        mut self,
        wants: &mut UnboundedReceiver<Want>,
        heard: &mut UnboundedReceiver<Note>,
        pulse: &AtomicU64,
    ) -> Option<Cause> {
        self.subscribe_idle();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut beats, mut silent) = (0, 0);
        loop {
            tokio::select! {
                biased;
                note = heard.recv() => match note {
                    Some(Note::Gone) | None => return Some("Redis closed it".into()),
                    Some(Note::Heard(channel)) => {
                        self.told.remove(&channel);
                        if let Some(stage) = self.wanted.get_mut(&channel) {
                            *stage = Stage::Heard;
                        }
                    }
                    Some(Note::Unheard(channel)) => {
                        // Not by our wish, as then it is not wanted any more: its slot has moved.
                        // Asked again, the server tells where it went.
                        if let Some(stage) = self.wanted.get_mut(&channel) {
                            *stage = Stage::Idle;
                            self.subscribe_idle();
                        }
                    }
                },
                Some((channel, landed)) = self.landings.next() => match landed {
                    Err(()) => return Some(format!("Redis did not answer within {} s", ANSWER_MAX.as_secs()).into()),
                    Ok(Err(error)) => return Some(error.to_string().into()),
                    Ok(Ok(Value::ServerError(error))) => self.refused(channel, &error),
                    Ok(Ok(_)) => {}
                },
                want = wants.recv() => match want {
                    None => return None,
                    Some(Want::Master(address)) => if address != self.address {
                        return Some("the master is another server now".into());
                    },
                    Some(Want::Check) => self.send(None, "PING", None),
                    Some(want) => self.want(want),
                },
                _ = ticks.tick() => {
                    let now = pulse.load(Relaxed);
                    silent = if now == beats { silent + 1 } else { 0 };
                    beats = now;
                    if silent >= SILENT_TICKS {
                        silent = 0;
                        self.send(None, "PING", None);
                    }
                    let late = |stage: &Stage| matches!(stage, Stage::Asked(at) if at.elapsed() > ANSWER_MAX);
                    if self.wanted.values().any(late) {
                        return Some("a subscription was not confirmed in time".into());
                    }
                    self.subscribe_idle();
                }
            }
        }
    }

    fn want(&mut self, want: Want) {
        if let Want::NotChannel(channel) = &want
            && self.wanted.get(channel).is_some_and(|stage| *stage != Stage::Idle)
        {
            let name = if self.context.sharded {
                "SUNSUBSCRIBE"
            } else {
                "UNSUBSCRIBE"
            };
            self.send(None, name, Some(channel));
        }
        note_want(self.wanted, want);
        self.subscribe_idle();
    }

    /// One command per channel: in a cluster several in one command must share a slot.
    fn subscribe_idle(&mut self) {
        let name = if self.context.sharded {
            "SSUBSCRIBE"
        } else {
            "SUBSCRIBE"
        };
        let idle = self.wanted.iter_mut().filter(|(_, stage)| **stage == Stage::Idle);
        let idle: Vec<String> = idle
            .map(|(channel, stage)| {
                *stage = Stage::Asked(Instant::now());
                channel.clone()
            })
            .collect();
        for channel in idle {
            self.send(Some(channel.clone()), name, Some(&channel));
        }
    }

    fn send(&self, subscribing: Option<String>, name: &str, channel: Option<&str>) {
        let mut command = cmd(name);
        if let Some(channel) = channel {
            command.arg(channel);
        }
        self.context.counters.commands_total.fetch_add(1, Relaxed);
        let mut connection = self.connection.clone();
        self.landings.push(Box::pin(async move {
            let sent = timeout(ANSWER_MAX, connection.send_packed_command(&command)).await;
            (subscribing, sent.map_err(|_| ()))
        }));
    }

    fn refused(&mut self, channel: Option<String>, error: &ServerError) {
        let Some(channel) = channel else { return };
        if let Some(stage) = self.wanted.get_mut(&channel) {
            *stage = Stage::Idle;
        }
        if error.code() == "MOVED" {
            let named = error.details().and_then(|details| details.split(' ').nth(1));
            let named = named.unwrap_or_default().to_owned();
            let _ = self.inputs.send(Input::Misplaced(self.source, channel, named));
        } else {
            // It is asked for again at each tick, but told of once.
            let why = commands::words(error);
            let words: Arc<str> = format!("Redis refused the subscription to {channel}: {why}").into();
            if self.wanted.contains_key(&channel) && self.told.get(&channel) != Some(&words) {
                warn!("{words}");
                self.told.insert(channel, words.clone());
                let _ = self.context.signals.send(Signal::Event(StoreEvent::Refused(words)));
            }
        }
    }
}
