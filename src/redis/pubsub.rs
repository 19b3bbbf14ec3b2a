//! One server: its connection for subscriptions.
//!
//! One task per server that has a wanted channel; it owns the connection and its subscriptions. The
//! connection's own task puts received packets into the queue of signals at once, so the socket is
//! always read first. Redis cuts a slow reader (`client-output-buffer-limit pubsub`); we drop and
//! count instead, see [`super::backlog`].
//!
//! The push that names a channel confirms its subscription, not the reply that the crate hands out.
//! When a slot moves away, a server sends `sunsubscribe` by itself. The crate takes that for the
//! reply to the command under way, and from then on replies belong to the command before. The crate
//! never subscribes again by itself here. It would do so silently, and in a cluster it fails as
//! soon as the channels of one server lie in two slots.
//!
//! There may be thousands of channels. They are subscribed in pipelines of one command each: in a
//! cluster one command must not name channels of two slots, and each refusal has a channel. One
//! command for many would not be faster (16,384 on one server: 32 ms either way). Few pipelines are
//! under way at a time. The time to confirm thus starts with a channel's own command, and not with
//! thousands before it.
//!
//! A server that answers may still not deliver. A silent connection therefore publishes a probe to
//! one of its own channels, and is given up if the probe does not come back.

use std::collections::{BTreeMap, VecDeque};
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
use redis::{Pipeline, PushInfo, PushKind, RedisResult, ServerError, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::unconstrained;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::backlog::Backlog;
use super::backoff::Backoff;
use super::commands;
use super::dial::ANSWER_MAX;
use super::server::{Cause, Line, Location};
use super::signal::{NodeId, Signal};
use super::tasks::{Context, Input, QUIET_MAX, Want};
use crate::cluster::store::{PROBE, StoreEvent};

/// How often the task looks after silence, confirmations and refusals.
const TICK: Duration = Duration::from_secs(1);
/// A connection that was silent for so many ticks is probed. A gateway's own probe, on its own
/// channel, comes more often than that, but in a cluster only over one of the connections.
const SILENT_TICKS: u32 = 3;
/// Channels of one pipeline. With the crate's work for each, few enough for the other tasks that
/// wait meanwhile.
const CHANNELS_TOGETHER: usize = 256;
/// Pipelines of subscriptions under way at a time: one is written while replies to others arrive.
const ASKING_MAX: usize = 4;
/// After this time without a connection the cause is logged.
const FAILING_MAX: Duration = Duration::from_secs(3);
/// Wants that are taken together, so that their channels share pipelines.
const WANTS_TOGETHER: usize = 1024;

/// How far a subscription is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Not sent, or refused: sent at the next tick.
    Idle,
    /// Asked for, at this time.
    Asked(Instant),
    /// Confirmed.
    Subscribed,
}

/// A message of the connection's task to this task.
#[derive(Debug)]
enum Note {
    Subscribed(String),
    Unsubscribed(String),
    Gone,
}

/// Why a connection is not used any more.
#[derive(Debug)]
struct End {
    cause: Cause,
    /// Asked for by the driver: pause and round.
    redial: Option<(Duration, u64)>,
}

impl From<String> for End {
    fn from(cause: String) -> End {
        End {
            cause: cause.into(),
            redial: None,
        }
    }
}

/// The command that was sent.
#[derive(Debug)]
enum Sent {
    /// Subscriptions to these channels, a command for each.
    Subscriptions(Vec<String>),
    /// A probe.
    Probe,
    /// A command that needs nothing but a reply.
    Other,
}

/// The result: a reply to each command, or nothing in time.
type Landed = (Sent, Result<RedisResult<Vec<Value>>, ()>);

/// Runs until the driver lets go of `wants`.
pub(super) async fn run(
    context: Rc<Context>,
    source: NodeId,
    location: Location,
    mut wants: UnboundedReceiver<Want>,
    inputs: UnboundedSender<Input>,
) {
    let mut wanted: BTreeMap<String, Stage> = BTreeMap::new();
    let mut told = BTreeMap::new();
    let mut backoff = Backoff::default();
    let mut round = 0;
    // Since when there is no connection, and whether that was logged.
    let (mut failing, mut said) = (None, false);
    // The cause and time of the last logged loss of a connection.
    let mut lost = None;
    loop {
        let (notes, mut noted) = unbounded_channel();
        let pulse = Arc::new(AtomicU64::new(0));
        let push = push_handler(
            source,
            context.signals.clone(),
            context.backlog.clone(),
            notes,
            pulse.clone(),
        );
        let opening = context.dialer.open_master(&location, Line::Subscriptions, push);
        tokio::pin!(opening);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                want = wants.recv() => match want {
                    Some(want) => note_want(&mut wanted, want, &mut round),
                    None => return,
                },
            }
        };
        let mut pause = Duration::ZERO;
        let of_round = round;
        match opened {
            Ok((server, connection)) => {
                let began = Instant::now();
                // The driver outlives its nodes; if it does not, there is no receiver.
                let _ = inputs.send(Input::Listening(source, server, round));
                let session = Session {
                    context: &context,
                    source,
                    connection,
                    wanted: &mut wanted,
                    told: &mut told,
                    waiting: VecDeque::new(),
                    asking: 0,
                    probe: None,
                    landings: FuturesUnordered::new(),
                    inputs: &inputs,
                };
                let end = session.serve(&mut wants, &mut noted, &pulse).await;
                for (channel, stage) in &mut wanted {
                    if *stage == Stage::Subscribed {
                        let _ = context.signals.send(Signal::Unsubscribed(channel.clone(), source));
                    }
                    *stage = Stage::Idle;
                }
                let Some(end) = end else { return };
                match end.redial {
                    Some((asked, of_round)) => (pause, round) = (asked, of_round),
                    None => {
                        let is_new = lost.as_ref().is_none_or(|(cause, at): &(Cause, Instant)| {
                            *cause != end.cause || at.elapsed() > QUIET_MAX
                        });
                        if is_new {
                            warn!("the subscriptions' connection to Redis was lost: {}", end.cause);
                            lost = Some((end.cause, Instant::now()));
                        }
                        backoff.connected_for(began.elapsed());
                    }
                }
                context.counters.reconnects.fetch_add(1, Relaxed);
                (failing, said) = (None, false);
            }
            Err(cause) => {
                // The node of the commands reports an unreachable server at once. But this
                // connection may be the only one that fails.
                let since = *failing.get_or_insert_with(Instant::now);
                if since.elapsed() > FAILING_MAX && !said {
                    said = true;
                    warn!("still no connection to Redis for subscriptions: {cause}");
                }
            }
        }
        let _ = inputs.send(Input::Deaf(source, of_round));
        if pause.is_zero() {
            pause = backoff.next_delay();
        }
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                want = wants.recv() => match want {
                    Some(want) => note_want(&mut wanted, want, &mut round),
                    None => return,
                },
            }
        }
    }
}

fn note_want(wanted: &mut BTreeMap<String, Stage>, want: Want, round: &mut u64) {
    match want {
        Want::Channel(channel) => {
            wanted.entry(channel).or_insert(Stage::Idle);
        }
        Want::NotChannel(channel) => {
            wanted.remove(&channel);
        }
        // A connection that is being opened is new anyway.
        Want::Redial(_, of_round, _) => *round = of_round,
        // It is about a connection that is not there.
        Want::Check => {}
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
            (PushKind::Message | PushKind::SMessage, Some(Value::BulkString(payload))) => {
                pulse.fetch_add(1, Relaxed);
                // Ours or another gateway's.
                let is_probe = payload.first() == Some(&PROBE);
                if !is_probe && backlog.admit(payload.len()) {
                    let payload = Bytes::from(payload);
                    let _ = signals.send(Signal::Packet { channel, payload });
                }
            }
            // Signals of both kinds go from here, so that they keep their position between the
            // packets.
            (PushKind::Subscribe | PushKind::SSubscribe, _) => {
                let _ = signals.send(Signal::Subscribed(channel.clone(), source));
                let _ = notes.send(Note::Subscribed(channel));
            }
            (PushKind::Unsubscribe | PushKind::SUnsubscribe, _) => {
                let _ = signals.send(Signal::Unsubscribed(channel.clone(), source));
                let _ = notes.send(Note::Unsubscribed(channel));
            }
            _ => {}
        }
    }
}

/// One connection's life.
struct Session<'a> {
    context: &'a Context,
    source: NodeId,
    connection: MultiplexedConnection,
    wanted: &'a mut BTreeMap<String, Stage>,
    /// Refused channels with the logged reason, until they are confirmed.
    told: &'a mut BTreeMap<String, Arc<str>>,
    /// Channels to subscribe to next; channels that are not idle (any more) are skipped.
    waiting: VecDeque<String>,
    /// Pipelines of subscriptions under way, at most [`ASKING_MAX`].
    asking: usize,
    /// The channel of the probe under way, and when it was sent.
    probe: Option<(String, Instant)>,
    landings: FuturesUnordered<LocalBoxFuture<'static, Landed>>,
    inputs: &'a UnboundedSender<Input>,
}

impl Session<'_> {
    /// Runs until the connection is lost (the reason) or the driver lets go (`None`). `pulse`
    /// counts received packets.
    async fn serve(
        mut self,
        wants: &mut UnboundedReceiver<Want>,
        noted: &mut UnboundedReceiver<Note>,
        pulse: &AtomicU64,
    ) -> Option<End> {
        self.subscribe_idle();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut beats, mut silent) = (0, 0);
        let mut together = Vec::new();
        loop {
            tokio::select! {
                biased;
                note = noted.recv() => match note {
                    Some(Note::Gone) | None => return Some("Redis closed it".to_owned().into()),
                    Some(Note::Subscribed(channel)) => {
                        self.told.remove(&channel);
                        if let Some(stage) = self.wanted.get_mut(&channel) {
                            *stage = Stage::Subscribed;
                        }
                    }
                    Some(Note::Unsubscribed(channel)) => {
                        self.forget_probe_on(&channel);
                        // An unsubscription that we did not send: the slot has moved. The next
                        // subscription attempt gets the new server from this one.
                        if let Some(stage) = self.wanted.get_mut(&channel) {
                            *stage = Stage::Idle;
                            self.waiting.push_back(channel);
                            self.subscribe_waiting();
                        }
                    }
                },
                Some((sent, landed)) = self.landings.next() => match landed {
                    Err(()) => return Some(format!("Redis did not answer within {} s", ANSWER_MAX.as_secs()).into()),
                    Ok(Err(error)) => return Some(error.to_string().into()),
                    Ok(Ok(replies)) => self.land(sent, replies),
                },
                count = wants.recv_many(&mut together, WANTS_TOGETHER) => {
                    if count == 0 {
                        return None;
                    }
                    let mut redial = None;
                    for want in together.drain(..) {
                        match want {
                            Want::Channel(channel) => self.want(channel),
                            Want::NotChannel(channel) => self.want_no_more(&channel),
                            Want::Redial(pause, round, cause) => {
                                redial = Some(End {
                                    cause,
                                    redial: Some((pause, round)),
                                });
                            }
                            Want::Check => self.ping(),
                        }
                    }
                    if redial.is_some() {
                        return redial;
                    }
                    self.subscribe_waiting();
                }
                _ = ticks.tick() => {
                    let now = pulse.load(Relaxed);
                    if now == beats {
                        silent += 1;
                    } else {
                        // Any packet on any channel proves delivery.
                        (beats, silent, self.probe) = (now, 0, None);
                    }
                    if self.probe.as_ref().is_some_and(|(_, at)| at.elapsed() > ANSWER_MAX) {
                        return Some("what is said on channels does not come".to_owned().into());
                    }
                    if silent >= SILENT_TICKS && self.probe.is_none() {
                        silent = 0;
                        self.prove();
                    }
                    let late = |stage: &Stage| matches!(stage, Stage::Asked(at) if at.elapsed() > ANSWER_MAX);
                    if self.wanted.values().any(late) {
                        return Some("a subscription was not confirmed in time".to_owned().into());
                    }
                    self.subscribe_idle();
                }
            }
        }
    }

    fn want(&mut self, channel: String) {
        if !self.wanted.contains_key(&channel) {
            self.wanted.insert(channel.clone(), Stage::Idle);
            self.waiting.push_back(channel);
        }
    }

    fn want_no_more(&mut self, channel: &str) {
        self.forget_probe_on(channel);
        if self.wanted.remove(channel).is_some_and(|stage| stage != Stage::Idle) {
            let name = self.command("UNSUBSCRIBE", "SUNSUBSCRIBE");
            let mut commands = Pipeline::new();
            commands.cmd(name).arg(channel);
            self.send(Sent::Other, commands);
        }
    }

    /// Subscribes to all channels that are idle, refused ones too.
    fn subscribe_idle(&mut self) {
        let idle = self.wanted.iter().filter(|(_, stage)| **stage == Stage::Idle);
        self.waiting = idle.map(|(channel, _)| channel.clone()).collect();
        self.subscribe_waiting();
    }

    /// Sends as many waiting subscriptions as may be under way now; the rest follow when replies
    /// come.
    fn subscribe_waiting(&mut self) {
        let name = self.command("SUBSCRIBE", "SSUBSCRIBE");
        while self.asking < ASKING_MAX {
            let (mut channels, mut commands) = (Vec::new(), Pipeline::new());
            while channels.len() < CHANNELS_TOGETHER
                && let Some(channel) = self.waiting.pop_front()
            {
                if let Some(stage @ Stage::Idle) = self.wanted.get_mut(&channel) {
                    *stage = Stage::Asked(Instant::now());
                    commands.cmd(name).arg(&channel);
                    channels.push(channel);
                }
            }
            if channels.is_empty() {
                return;
            }
            self.asking += 1;
            self.send(Sent::Subscriptions(channels), commands);
        }
    }

    /// Probes the connection: publishes to a channel that is subscribed over it or, if there is
    /// none, sends PING. The first channel by name is one that many gateways subscribe to: one
    /// gateway's probe is proof for all.
    fn prove(&mut self) {
        let heard = self.wanted.iter().find(|(_, stage)| **stage == Stage::Subscribed);
        let Some((channel, _)) = heard else { return self.ping() };
        let mut commands = Pipeline::new();
        let name = self.command("PUBLISH", "SPUBLISH");
        commands.cmd(name).arg(channel).arg(&[PROBE]);
        self.probe = Some((channel.clone(), Instant::now()));
        self.send(Sent::Probe, commands);
    }

    /// It will not come, and need not.
    fn forget_probe_on(&mut self, channel: &str) {
        self.probe.take_if(|(probed, _)| probed == channel);
    }

    fn ping(&self) {
        let mut commands = Pipeline::new();
        commands.cmd("PING");
        self.send(Sent::Other, commands);
    }

    fn command(&self, alone: &'static str, sharded: &'static str) -> &'static str {
        if self.context.sharded { sharded } else { alone }
    }

    fn send(&self, sent: Sent, commands: Pipeline) {
        let count = commands.len();
        self.context.counters.commands_total.fetch_add(count as u64, Relaxed);
        let mut connection = self.connection.clone();
        let landing = async move {
            let replies = timeout(ANSWER_MAX, connection.send_packed_commands(&commands, 0, count)).await;
            (sent, replies.map_err(|_| ()))
        };
        // Out of tokio's budget for cooperation, as in `node`: with it spent, an end could overtake
        // its beginning.
        self.landings.push(Box::pin(unconstrained(landing)));
    }

    fn land(&mut self, sent: Sent, replies: Vec<Value>) {
        match sent {
            Sent::Subscriptions(channels) => {
                self.asking -= 1;
                for (channel, reply) in channels.into_iter().zip(replies) {
                    if let Value::ServerError(error) = reply {
                        self.refused(channel, &error);
                    }
                }
                self.subscribe_waiting();
            }
            // No permission, or its slot has just moved. A server that refuses answers: as good as
            // PING.
            Sent::Probe if matches!(replies[..], [Value::ServerError(_)]) => self.probe = None,
            Sent::Probe | Sent::Other => {}
        }
    }

    fn refused(&mut self, channel: String, error: &ServerError) {
        if let Some(stage) = self.wanted.get_mut(&channel) {
            *stage = Stage::Idle;
        }
        if error.code() == "MOVED" {
            let named = error.details().and_then(|details| details.split(' ').nth(1));
            let named = named.unwrap_or_default().to_owned();
            let _ = self.inputs.send(Input::SlotMoved(self.source, channel, named));
        } else {
            // It is retried at each tick, but logged once.
            let why = commands::explained(error);
            let words: Arc<str> = format!("Redis refused the subscription to {channel}: {why}").into();
            if self.wanted.contains_key(&channel) && self.told.get(&channel) != Some(&words) {
                warn!("{words}");
                self.told.insert(channel, words.clone());
                let _ = self.context.signals.send(Signal::Event(StoreEvent::Refused(words)));
            }
        }
    }
}
