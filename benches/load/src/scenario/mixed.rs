//! `mixed`: a day of chat, as a scenario file says.
//!
//! Open loop: an action is due every 1 / rate; its kind and its user are drawn. Closed loop: each
//! user takes the next action when one was answered. Every request has an id and must be answered.
//! Every message and publication is accounted for, by pair ([`Stream`]) and by channel
//! ([`Audience`]), while both ends come and go. A message to an absent user is `away`, not `lost`.
//!
//! The server's answers are checked, too: an ack or `presence` must not contradict what the server
//! must know of a user. [`Whereabouts`] decides what it must know, and from when on.
//!
//! The users of a thread know each other and have channels of their own, so one thread sees both
//! ends of everything.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use crate::args::Options;
use crate::audience::{Audience, Heard, Publisher};
use crate::board::{Board, Phase};
use crate::chat::{Action, Chat};
use crate::message::{Numbers, Template, channel_name, channel_number, parse_ack_id, quoted, user_name, user_number};
use crate::net::{End, Net};
use crate::reconnect::{Patience, Returns, Todo};
use crate::scenario::behaviour::{SENDS_PER_TURN_MAX, Scenario};
use crate::scenario::schedule::Schedule;
use crate::sequence::Arrival;
use crate::stream::Stream;
use crate::sys::Clock;
use crate::tally::{Tally, count};
use crate::whereabouts::{Departure, Whereabouts, Word};
use crate::wire;

/// Draws of somebody who is there, before nobody seems to be.
const DRAWS_MAX: usize = 16;
/// A server answers about so many users at most.
const PRESENCE_USERS_MAX: usize = 100;

/// A request without an answer yet.
#[derive(Clone, Copy, Debug)]
struct Request {
    intended_ns: u64,
    sent_ns: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// This number of this stream.
    Message(usize, u32),
    /// This number of this channel.
    Publish(usize, u32),
    Presence,
    Subscribe(usize),
    Unsubscribe(usize),
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Message(..) => "message",
            Self::Publish(..) => "publish",
            Self::Presence => "presence",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe(_) => "unsubscribe",
        }
    }
}

/// How a user stands to a channel that they want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// Asked, not answered; or wanted again after a return.
    Wanted,
    In,
    /// Asked to leave, not answered.
    Migrating,
}

#[derive(Debug, Default)]
struct User {
    whereabouts: Whereabouts,
    /// Which of their connections this is, or was; 0 before they came.
    visit: u32,
    next_id: u32,
    requests: HashMap<u32, Request>,
    channels: BTreeMap<usize, Seat>,
}

/// The keys of a server's frame that matter here.
#[derive(Debug, Default, Deserialize)]
struct Heading<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    channel: Option<Cow<'a, str>>,
    #[serde(default)]
    users: HashMap<String, bool>,
}

/// One thread's users.
#[derive(Debug)]
pub(crate) struct Mixed {
    chat: Chat,
    prefix: String,
    users: Vec<User>,
    away: u64,
    returns: Returns,
    /// Attempts to come back that are not decided.
    attempting: usize,
    /// The run ends: who is away stays away, and who comes asks for nothing more.
    ending: bool,
    /// From each user to each of their contacts.
    streams: Vec<Stream>,
    contacts: usize,
    channels: Vec<Audience>,
    /// The number of the first of them among those of all threads.
    first_channel: usize,
    message: Template,
    publication: Template,
    clock: Clock,
    random: fastrand::Rng,
    /// `None` for closed loop.
    schedule: Option<Schedule>,
    in_flight: u32,
    running: bool,
    measure_ns: u64,
    /// The next user to subscribe before the load.
    next: usize,
    unanswered_max: usize,
    /// Requests before the load that have no answer, and whether one was refused.
    preparing: usize,
    refused: bool,
    /// Closed loop: the next user to set going.
    turn: usize,
}

impl Mixed {
    /// The users of worker number `worker`, the first of whom has number `first_user`.
    pub(crate) fn new(options: &Options, clock: Clock, worker: usize, first_user: usize, connections: usize) -> Self {
        let chat = options.chat.clone();
        let contacts = chat.contacts.min(connections - 1);
        let seed = options.seed() + worker as u64;
        let (prefix, bytes) = (options.connect.user_prefix.clone(), options.load.payload_bytes);
        Self {
            users: (0..connections).map(|_| User::default()).collect(),
            away: 0,
            attempting: 0,
            ending: false,
            returns: Returns::new(Patience::of(options), seed, connections),
            streams: (0..connections * contacts).map(|_| Stream::default()).collect(),
            contacts,
            channels: (0..connections.div_ceil(chat.users_per_channel))
                .map(|_| Audience::default())
                .collect(),
            // As many as there are users before are more than enough to keep threads apart.
            first_channel: first_user,
            message: Template::message(&prefix, bytes, true),
            publication: Template::publish(&prefix, bytes, true),
            prefix,
            chat,
            clock,
            random: fastrand::Rng::with_seed(seed),
            schedule: options.rate.map(|rate| Schedule::new(rate, worker, options.workers())),
            in_flight: options.in_flight(),
            running: false,
            measure_ns: u64::MAX,
            next: connections,
            unanswered_max: options.connect.connecting_max,
            preparing: 0,
            refused: false,
            turn: connections,
        }
    }

    fn contact(&self, user: usize, slot: usize) -> usize {
        (user + 1 + slot) % self.users.len()
    }

    /// The stream from one user to another, if they are contacts.
    fn stream(&self, from: usize, to: usize) -> Option<usize> {
        let count = self.users.len();
        let slot = (to + count).checked_sub(from + 1)? % count;
        (from < count && slot < self.contacts).then_some(from * self.contacts + slot)
    }

    /// The user with this name, if they are of this thread.
    fn user_of(&self, net: &Net, name: &str) -> Option<usize> {
        let number = user_number(&self.prefix, name)? as usize;
        let index = number.checked_sub(net.first_user as usize)?;
        (index < self.users.len()).then_some(index)
    }

    fn is_there(&self, user: usize) -> bool {
        self.users[user].whereabouts.is_there()
    }

    /// Writes a request, and remembers it under its id.
    fn ask(&mut self, net: &mut Net, user: usize, what: What, (intended_ns, sent_ns): (u64, u64)) {
        let id = self.users[user].next_id;
        self.users[user].next_id += 1;
        let request = Request {
            intended_ns,
            sent_ns,
            what,
        };
        self.users[user].requests.insert(id, request);
        let numbers = |sequence| Numbers {
            sequence,
            sender: net.first_user + user as u32,
            intended_ns,
        };
        let frame = match what {
            What::Message(stream, number) => {
                let numbers = numbers(number);
                let to = net.user(self.contact(user, stream % self.contacts));
                return self.message.write(net.out(user), to, id, numbers);
            }
            What::Publish(channel, number) => {
                let numbers = numbers(number);
                let channel = (self.first_channel + channel) as u32;
                return self.publication.write(net.out(user), channel, id, numbers);
            }
            What::Presence => {
                let contacts =
                    (0..self.contacts.min(PRESENCE_USERS_MAX)).map(|slot| net.user(self.contact(user, slot)));
                let names: Vec<String> = contacts
                    .map(|number| quoted(&user_name(&self.prefix, number)))
                    .collect();
                format!(r#"{{"type":"presence","users":[{}],"id":"{id:08x}"}}"#, names.join(","))
            }
            What::Subscribe(channel) | What::Unsubscribe(channel) => {
                let (kind, channel) = (
                    what.name(),
                    channel_name(&self.prefix, (self.first_channel + channel) as u32),
                );
                format!(r#"{{"type":"{kind}","channel":{},"id":"{id:08x}"}}"#, quoted(&channel))
            }
        };
        wire::write_frame(net.out(user), wire::TEXT, frame.as_bytes());
    }

    /// Does what was drawn, or writes a message where that cannot be done.
    fn act(&mut self, net: &mut Net, user: usize, action: Action, times: (u64, u64)) {
        let channel = match action {
            Action::Subscribe => self.draw_channel(user, None),
            Action::Publish | Action::Unsubscribe => self.draw_channel(user, Some(Seat::In)),
            _ => None,
        };
        let action = match (action, channel) {
            (Action::Subscribe | Action::Publish | Action::Unsubscribe, None) => Action::Message,
            (action, _) => action,
        };
        count(&mut net.tally.mixed.actions, action.name());
        let what = match (action, channel) {
            (Action::Publish, Some(channel)) => {
                let publisher = Publisher {
                    user: net.user(user),
                    visit: self.users[user].visit,
                };
                let (number, audience) = self.channels[channel].publish(publisher);
                net.tally.publications += 1;
                net.tally.sent += audience;
                What::Publish(channel, number)
            }
            (Action::Subscribe, Some(channel)) => {
                self.users[user].channels.insert(channel, Seat::Wanted);
                What::Subscribe(channel)
            }
            (Action::Unsubscribe, Some(channel)) => {
                self.users[user].channels.insert(channel, Seat::Migrating);
                self.channels[channel].begin_leaving(user);
                What::Unsubscribe(channel)
            }
            (Action::Presence, _) => What::Presence,
            (Action::Leave | Action::Vanish, _) => return self.leave(net, user, action, times.1),
            _ => {
                let slot = self.random.usize(0..self.contacts);
                let (stream, to) = (user * self.contacts + slot, self.contact(user, slot));
                net.tally.sent += 1;
                let is_there = self.is_there(to);
                What::Message(stream, self.streams[stream].send(is_there))
            }
        };
        self.ask(net, user, what, times);
    }

    /// One of the channels to which the user stands so.
    fn draw_channel(&mut self, user: usize, seat: Option<Seat>) -> Option<usize> {
        let channels = &self.users[user].channels;
        let start = self.random.usize(0..self.channels.len());
        let mut all = (start..self.channels.len()).chain(0..start);
        match seat {
            None => all.find(|channel| !channels.contains_key(channel)),
            Some(_) => {
                let fitting: Vec<usize> = channels
                    .iter()
                    .filter(|(_, s)| Some(**s) == seat)
                    .map(|(c, _)| *c)
                    .collect();
                self.random.choice(fitting)
            }
        }
    }

    fn leave(&mut self, net: &mut Net, user: usize, action: Action, now_ns: u64) {
        let how = if action == Action::Leave {
            net.say_close(user);
            Departure::Left
        } else {
            net.cut(user);
            Departure::Vanished
        };
        self.depart(net, user, how, now_ns);
        let away = self.chat.away_least.as_nanos() as u64..=self.chat.away_most.as_nanos() as u64;
        let away_ns = self.random.u64(away);
        self.returns.come_at(user, now_ns + away_ns);
    }

    /// The user is connected no more.
    fn depart(&mut self, net: &mut Net, index: usize, how: Departure, now_ns: u64) {
        let user = &mut self.users[index];
        if !user.whereabouts.is_there() {
            return;
        }
        user.whereabouts.handle_departure(&mut net.tally.mixed, how, now_ns);
        for request in std::mem::take(&mut user.requests).into_values() {
            if let What::Publish(channel, number) = request.what {
                self.channels[channel].doubt(number);
            }
        }
        self.away += 1;
        for channel in user.channels.keys() {
            self.channels[*channel].end(index);
        }
        user.channels.retain(|_, seat| *seat != Seat::Migrating);
        user.channels.values_mut().for_each(|seat| *seat = Seat::Wanted);
        for slot in 0..self.contacts {
            self.streams[index * self.contacts + slot].interrupt_sender();
            let from = (index + self.users.len() - 1 - slot) % self.users.len();
            self.streams[from * self.contacts + slot].interrupt_receiver();
        }
    }

    /// Asks for all channels that the user wants.
    fn subscribe(&mut self, net: &mut Net, user: usize, now_ns: u64) -> usize {
        let channels: Vec<usize> = self.users[user].channels.keys().copied().collect();
        for channel in &channels {
            self.ask(net, user, What::Subscribe(*channel), (now_ns, now_ns));
        }
        channels.len()
    }

    /// Before the load: everyone into their first channels, so many at a time.
    fn prepare(&mut self, net: &mut Net, now_ns: u64) {
        while self.next < self.users.len() && self.preparing < self.unanswered_max {
            let user = self.next;
            self.next += 1;
            let count = self.chat.channels_per_user.min(self.channels.len());
            for k in 0..count {
                let channel = (user * self.chat.channels_per_user + k) % self.channels.len();
                self.users[user].channels.insert(channel, Seat::Wanted);
            }
            if self.is_there(user) {
                self.preparing += self.subscribe(net, user, now_ns);
            }
        }
    }

    /// A request was answered, with what belongs to its kind, or refused (`None`).
    fn answered(&mut self, net: &mut Net, user: usize, request: Request, answer: Option<&Heading<'_>>, now_ns: u64) {
        match request.what {
            What::Message(stream, number) => {
                let status = answer.and_then(|a| a.status.as_deref()).unwrap_or_default();
                let taken = matches!(status, "delivered" | "routed");
                let to = self.contact(user, stream % self.contacts);
                if taken || status == "offline" {
                    let to = &mut self.users[to].whereabouts;
                    to.handle_word(&mut net.tally.mixed, Word::Status, taken, request.sent_ns);
                }
                self.streams[stream].answer(number, taken);
                count(&mut net.tally.acks, status);
            }
            What::Publish(channel, number) => {
                let status = answer.and_then(|a| a.status.as_deref()).unwrap_or_default();
                self.channels[channel].answer(number, status == "published");
                count(&mut net.tally.acks, status);
            }
            What::Presence => {
                for (name, there) in answer.map(|a| &a.users).into_iter().flatten() {
                    let Some(about) = self.user_of(net, name) else {
                        net.tally.mixed.presence_wrong += 1;
                        continue;
                    };
                    let about = &mut self.users[about].whereabouts;
                    about.handle_word(&mut net.tally.mixed, Word::Presence, *there, request.sent_ns);
                }
            }
            What::Subscribe(channel) => {
                if answer.is_some() {
                    self.users[user].channels.insert(channel, Seat::In);
                    self.channels[channel].join(user);
                    net.tally.subscriptions += 1;
                } else {
                    self.users[user].channels.remove(&channel);
                    self.refused = true;
                    count(&mut net.tally.subscription_failures, "refused");
                }
                self.preparing = self.preparing.saturating_sub(1);
            }
            What::Unsubscribe(channel) => {
                self.users[user].channels.remove(&channel);
                self.channels[channel].end(user);
            }
        }
        if request.intended_ns >= self.measure_ns {
            let kind = request.what.name();
            let answers = &mut net.tally.mixed.answers;
            let latency_ns = now_ns.saturating_sub(request.intended_ns);
            answers.entry(kind.to_owned()).or_default().record(latency_ns);
        }
        if self.running && self.schedule.is_none() {
            let action = self.chat.draw(&mut self.random);
            self.act(net, user, action, (now_ns, now_ns));
        }
    }

    fn handle_message(&mut self, net: &mut Net, user: usize, text: &[u8], now_ns: u64) {
        let Ok(numbers) = self.message.read(text) else {
            net.tally.corrupted += 1;
            return;
        };
        let from = (numbers.sender as usize).checked_sub(net.first_user as usize);
        let stream = from.and_then(|from| Some((from, self.stream(from, user)?)));
        let arrival = stream.and_then(|(from, stream)| Some((from, self.streams[stream].arrive(numbers.sequence)?)));
        match arrival {
            None => net.tally.misrouted += 1,
            Some((_, Arrival::Duplicate)) => net.tally.duplicates += 1,
            Some((from, arrival)) => {
                net.tally.reordered += u64::from(arrival == Arrival::Reordered);
                self.count_arrival(net, from, user, numbers, now_ns);
            }
        }
    }

    fn handle_publication(&mut self, net: &mut Net, user: usize, text: &[u8], channel: Option<&str>, now_ns: u64) {
        let Ok(numbers) = self.publication.read(text) else {
            net.tally.corrupted += 1;
            return;
        };
        let number = channel.and_then(|name| channel_number(&self.prefix, name));
        let channel = number
            .and_then(|number| (number as usize).checked_sub(self.first_channel))
            .and_then(|channel| self.channels.get_mut(channel));
        match channel.map_or(Heard::Stray, |c| c.arrive(user, numbers.sequence, numbers.sender)) {
            Heard::Stray => net.tally.misrouted += 1,
            Heard::Duplicate => net.tally.duplicates += 1,
            Heard::Extra => net.tally.mixed.extra += 1,
            heard => {
                net.tally.reordered += u64::from(heard == Heard::Reordered);
                let from = (numbers.sender - net.first_user) as usize;
                self.count_arrival(net, from, user, numbers, now_ns);
            }
        }
    }

    fn count_arrival(&self, net: &mut Net, from: usize, to: usize, numbers: Numbers, now_ns: u64) {
        net.tally.received += 1;
        let latency_ns = now_ns.saturating_sub(numbers.intended_ns);
        net.record_latency(from, to, latency_ns, numbers.intended_ns >= self.measure_ns);
    }

    fn next_due_ns(&self) -> Option<u64> {
        self.schedule.as_ref().filter(|_| self.running)?.next_ns()
    }

    fn begin_turns(&mut self, net: &mut Net, user: usize, now_ns: u64) {
        for _ in 0..self.in_flight {
            // One of them may have been to leave.
            if self.is_there(user) {
                let action = self.chat.draw(&mut self.random);
                self.act(net, user, action, (now_ns, now_ns));
            }
        }
    }

    fn do_what_is_due(&mut self, net: &mut Net, now_ns: u64) {
        let mut now_ns = now_ns;
        for _ in 0..SENDS_PER_TURN_MAX {
            if self.next_due_ns().is_none_or(|due_ns| due_ns > now_ns) {
                break;
            }
            let Some(due_ns) = self.schedule.as_mut().and_then(Schedule::take) else {
                break;
            };
            if due_ns >= self.measure_ns {
                net.tally.lag.record(now_ns.saturating_sub(due_ns));
            }
            let mut draws = std::iter::repeat_with(|| self.random.usize(0..self.users.len())).take(DRAWS_MAX);
            match draws.find(|user| self.users[*user].whereabouts.is_there()) {
                None => net.tally.mixed.skipped += 1,
                Some(user) => {
                    let action = self.chat.draw(&mut self.random);
                    self.act(net, user, action, (due_ns, now_ns));
                }
            }
            net.flush();
            now_ns = self.clock.now_ns();
        }
    }
}

impl Scenario for Mixed {
    fn handle_text(&mut self, net: &mut Net, index: usize, text: &[u8], now_ns: u64) {
        if !self.is_there(index) {
            // It said goodbye, and what was under way to it is away.
            return;
        }
        let heading: Heading<'_> = serde_json::from_slice(text).unwrap_or_default();
        match &*heading.kind {
            "message" => return self.handle_message(net, index, text, now_ns),
            "publication" => return self.handle_publication(net, index, text, heading.channel.as_deref(), now_ns),
            _ => {}
        }
        let id = heading.id.as_deref().and_then(|id| parse_ack_id(id.as_bytes()));
        let request = id.and_then(|id| self.users[index].requests.remove(&id));
        let fits = |what: What| match what {
            What::Message(..) | What::Publish(..) => heading.kind == "ack",
            What::Presence => heading.kind == "presence",
            What::Subscribe(_) => heading.kind == "subscribed",
            What::Unsubscribe(_) => heading.kind == "unsubscribed",
        };
        match request {
            Some(request) if fits(request.what) => self.answered(net, index, request, Some(&heading), now_ns),
            Some(request) => {
                net.tally.note_other(text);
                self.answered(net, index, request, None, now_ns);
            }
            None if matches!(&*heading.kind, "ack" | "presence" | "subscribed" | "unsubscribed") => {
                net.tally.acks_unexpected += 1;
            }
            None => net.tally.note_other(text),
        }
    }

    fn handle_phase(&mut self, _net: &mut Net, phase: Phase, board: &Board) {
        match phase {
            Phase::Prepare => self.next = 0,
            Phase::Warmup => {
                if let Some(schedule) = &mut self.schedule {
                    schedule.begin(board.load_ns());
                }
                self.running = true;
                self.turn = 0;
            }
            Phase::Measure => self.measure_ns = board.measure_ns(),
            Phase::Drain => {
                if let Some(schedule) = &mut self.schedule {
                    schedule.end(board.drain_ns());
                }
                self.running = self.schedule.is_some();
                self.ending = true;
            }
            Phase::Close => self.running = false,
            Phase::Connect | Phase::Hold | Phase::Storm => {}
        }
    }

    fn handle_timeout(&mut self, net: &mut Net, now_ns: u64) {
        self.prepare(net, now_ns);
        while let Some((user, todo)) = self.returns.poll(now_ns) {
            match todo {
                Todo::Leave => net.say_close(user),
                Todo::Begin if self.ending => {}
                Todo::Begin => {
                    self.attempting += 1;
                    self.users[user].whereabouts.handle_attempt();
                    let attempt = self.returns.attempt(user, now_ns);
                    net.begin_again(user, attempt - 1, now_ns);
                }
                Todo::GiveUp => net.end(user, "timed out".into()),
            }
        }
        if self.schedule.is_some() {
            return self.do_what_is_due(net, now_ns);
        }
        let mut begun = 0;
        while self.running && self.turn < self.users.len() && begun < SENDS_PER_TURN_MAX {
            self.begin_turns(net, self.turn, self.clock.now_ns());
            self.turn += 1;
            begun += self.in_flight;
        }
    }

    fn poll_timeout(&self, _net: &Net) -> Option<u64> {
        let begin = (self.running && self.turn < self.users.len() && self.schedule.is_none()).then_some(0);
        self.next_due_ns()
            .into_iter()
            .chain(self.returns.next_ns())
            .chain(begin)
            .min()
    }

    fn handle_ready(&mut self, net: &mut Net, index: usize, now_ns: u64) {
        self.returns.ready(index);
        let user = &mut self.users[index];
        // Users that come for the first time were not away.
        let comes_back = user.visit > 0;
        self.away -= u64::from(comes_back);
        self.attempting -= usize::from(comes_back);
        user.visit += 1;
        user.whereabouts.handle_welcome(now_ns);
        if !self.ending {
            self.subscribe(net, index, now_ns);
        }
        if self.running && self.schedule.is_none() {
            self.begin_turns(net, index, now_ns);
        }
    }

    fn handle_gone(&mut self, net: &mut Net, index: usize, end: &End, now_ns: u64) {
        match end {
            End::Left => self.users[index].whereabouts.handle_farewell(now_ns),
            End::Closed(_) | End::Broken => {
                let how = match end {
                    End::Broken => Departure::Broken,
                    _ => Departure::Closed,
                };
                self.depart(net, index, how, now_ns);
                self.returns.lost(index, now_ns);
            }
            End::Refused(failure) => {
                self.attempting -= 1;
                let by_word = failure.retry_after.is_some() || failure.close_code.is_some();
                self.users[index].whereabouts.handle_refusal(by_word, now_ns);
                net.tally.mixed.refused += 1;
                self.returns.refused(index, failure.retry_after, now_ns);
            }
        }
    }

    fn away(&self) -> u64 {
        self.away
    }

    fn prepared(&self) -> Option<bool> {
        (self.next == self.users.len() && self.preparing == 0).then_some(!self.refused)
    }

    fn is_drained(&self) -> bool {
        self.next_due_ns().is_none()
            && self.attempting == 0
            && self.users.iter().all(|user| user.requests.is_empty())
            && self.streams.iter().all(|stream| stream.waiting() == 0)
            && self.channels.iter().all(Audience::is_complete)
    }

    fn finish(&mut self, tally: &mut Tally, _now_ns: u64) {
        for user in &self.users {
            tally.acks_missing += user.requests.len() as u64;
            user.whereabouts.finish(&mut tally.mixed);
        }
        let streams = self.streams.iter().map(Stream::finish);
        for missing in streams.chain(self.channels.iter().map(Audience::finish)) {
            tally.lost += missing.lost;
            tally.away += missing.away;
        }
    }
}
