//! The clients' subscriptions and publications, the frames they get, and the required outcome. For
//! both simulations.
//!
//! A client *sits* in a channel from the `subscribed` that it gets until it asks to leave. All
//! publications sent and acked in that time must come. Until it gets `unsubscribed`, they may come.
//! At no other time may any come.
//!
//! A *stay* is the gateway's view of that: from `subscribed` to `unsubscribed`. Most have one
//! sitting. A client that has asked to leave before it gets `subscribed` is owed nothing and does
//! not sit. Yet the publications that it gets belong to that stay and prove nothing about the one
//! before.
//!
//! An ack means that every shard with subscribers was given the publication, not that the shard has
//! looked. So a sitting that another party ends counts only until the client's shard last finished
//! everything it was given. Publications on their way at a leave may be missed, if no later one
//! comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

/// One publication, as its publisher and all who heard it know it.
#[derive(Debug)]
pub struct Publication {
    pub publisher: usize,
    pub channel: usize,
    from: String,
    content: String,
    pub wants_ack: bool,
    pub sent_ns: u64,
    /// The gateway's own name for it.
    id: Option<String>,
    pub ack: Option<(String, u64)>,
    refused: Option<String>,
    received_by: BTreeSet<usize>,
}

/// A `subscribe` or `unsubscribe` without an answer.
#[derive(Debug)]
pub struct Request {
    number: usize,
    subscribes: bool,
    pub sent_ns: u64,
}

/// A client sat in a channel from one time to another.
#[derive(Debug, Clone, Copy)]
pub struct Sitting {
    pub from_ns: u64,
    /// The end of time while it lasts.
    pub until_ns: u64,
    /// In which stay of theirs.
    stay: usize,
}

/// One client in one channel.
#[derive(Debug, Default)]
pub struct Seat {
    asked: VecDeque<Request>,
    /// It has heard `subscribed` and no `unsubscribed` since.
    open: bool,
    /// How often it came.
    stays: usize,
    sittings: Vec<Sitting>,
    /// The last publication from each publisher, and the same by stay.
    heard: BTreeMap<usize, usize>,
    heard_in: BTreeMap<(usize, usize), usize>,
}

impl Seat {
    fn stand_up(&mut self, at_ns: u64) {
        if let Some(last) = self.sittings.last_mut() {
            last.until_ns = last.until_ns.min(at_ns);
        }
    }

    fn sits(&self) -> bool {
        self.sittings.last().is_some_and(|last| last.until_ns == u64::MAX)
    }
}

/// A publication, and a client that it did not reach.
#[derive(Debug)]
pub struct Missed<'a> {
    pub number: usize,
    pub publication: &'a Publication,
    pub client: usize,
    pub sitting: Sitting,
}

#[derive(Debug, Default)]
pub struct ChannelBooks {
    pub names: Vec<String>,
    pub now_ns: u64,
    pub publications: Vec<Publication>,
    /// By client and channel.
    seats: BTreeMap<(usize, usize), Seat>,
    requests: usize,
    /// The channels where a client has just sat down.
    pub opened: Option<usize>,
    /// When requests were made and answered, since the last look.
    pub waits: Vec<(u64, u64)>,
    /// Codes with which requests may be refused.
    pub refusals: BTreeSet<&'static str>,
    checked: usize,
    /// When subscriptions to a channel were last ordered to end. It may end some that begin before
    /// the order arrives.
    ended_ns: BTreeMap<usize, u64>,
    /// Subscriptions that others ended.
    pub ended: u64,
}

impl ChannelBooks {
    pub fn new(channels: usize) -> Self {
        ChannelBooks {
            names: (0..channels).map(|channel| format!("room{channel}")).collect(),
            ..ChannelBooks::default()
        }
    }

    /// The frame of a client that asks to be in a channel, or not any more. Its shard had finished
    /// everything at `done_ns`.
    pub fn ask(&mut self, client: usize, channel: usize, subscribes: bool, done_ns: u64) -> String {
        let number = self.requests;
        self.requests += 1;
        let seat = self.seats.entry((client, channel)).or_default();
        seat.asked.push_back(Request {
            number,
            subscribes,
            sent_ns: self.now_ns,
        });
        if !subscribes {
            seat.stand_up(done_ns);
        }
        let kind = if subscribes { "subscribe" } else { "unsubscribe" };
        let name = &self.names[channel];
        format!(r#"{{"type":"{kind}","channel":"{name}","id":"s{number}"}}"#)
    }

    /// An administrator, or new settings, end subscriptions to a channel: all those that exist when
    /// the command arrives.
    pub fn order_end(&mut self, channel: usize) {
        self.ended_ns.insert(channel, self.now_ns);
    }

    /// An order of [`ChannelBooks::order_end`] may end this one. The client's shard was done with
    /// all it was given at `done_ns`.
    pub fn end(&mut self, client: usize, channel: usize, done_ns: u64) {
        if let Some(seat) = self.seats.get_mut(&(client, channel)) {
            seat.stand_up(done_ns);
        }
    }

    /// A subscription ended without its client's wish.
    fn hear_end(&mut self, client: usize, said: &Value) {
        let channel = self.channel(said);
        let seat = self.seats.get_mut(&(client, channel)).expect("it asked once");
        let ended_ns = self.ended_ns.get(&channel);
        assert!(seat.open && ended_ns.is_some(), "ended for no reason: {seat:?}");
        seat.open = false;
        seat.stand_up(ended_ns.copied().unwrap_or_default());
        self.ended += 1;
    }

    /// The frame of a publication by `from`.
    pub fn publish(&mut self, client: usize, from: &str, channel: usize, size: usize, wants_ack: bool) -> String {
        let number = self.publications.len();
        let name = &self.names[channel];
        let padding = "x".repeat(size);
        // Odd on purpose: it must come out as it went in.
        let content = format!(r#"{{"n": {number} ,"p":"\u00e9{padding}"}}"#);
        let id = if wants_ack {
            format!(r#","id":"c{number}""#)
        } else {
            String::new()
        };
        let text = format!(r#"{{"type":"publish","channel":"{name}","content":{content}{id}}}"#);
        self.publications.push(Publication {
            publisher: client,
            channel,
            from: from.into(),
            content,
            wants_ack,
            sent_ns: self.now_ns,
            id: None,
            ack: None,
            refused: None,
            received_by: BTreeSet::new(),
        });
        text
    }

    /// Gives a frame to the client. Returns false if it is not about channels.
    pub fn hear(&mut self, client: usize, said: &Value, text: &str) -> bool {
        match said["type"].as_str() {
            Some("subscribed") => self.hear_answer(client, said, true),
            Some("unsubscribed") if said["reason"].is_string() => self.hear_end(client, said),
            Some("unsubscribed") => self.hear_answer(client, said, false),
            Some("publication") => self.hear_publication(client, said, text),
            Some("ack") => match number(&said["id"], "c") {
                Some(number) => self.hear_ack(client, number, said),
                None => return false,
            },
            Some("error") => {
                let code = said["code"].as_str().expect("a code");
                match (number(&said["id"], "c"), number(&said["id"], "s")) {
                    (Some(number), _) => {
                        assert!(code == "rateLimited" && self.refusals.contains(code), "{text}");
                        self.publications[number].refused = Some(code.into());
                    }
                    (_, Some(number)) => {
                        assert!(self.refusals.contains(code), "{text}");
                        self.withdraw(client, number);
                    }
                    _ => return false,
                }
            }
            _ => return false,
        }
        true
    }

    fn channel(&self, said: &Value) -> usize {
        let name = said["channel"].as_str().expect("a channel");
        self.names.iter().position(|known| known == name).expect("a known one")
    }

    fn hear_answer(&mut self, client: usize, said: &Value, subscribed: bool) {
        let now_ns = self.now_ns;
        let channel = self.channel(said);
        let seat = self.seats.get_mut(&(client, channel)).expect("it asked");
        let asked = seat.asked.pop_front().expect("an answer too many");
        assert_eq!(
            (Some(asked.number), asked.subscribes),
            (number(&said["id"], "s"), subscribed),
            "answers in another order than questions"
        );
        seat.stays += usize::from(subscribed && !seat.open);
        seat.open = subscribed;
        self.waits.push((asked.sent_ns, now_ns));
        // A client that has already asked to leave is owed nothing.
        let leaves = seat.asked.iter().any(|asked| !asked.subscribes);
        if subscribed && !leaves && !seat.sits() {
            self.opened = Some(channel);
            seat.sittings.push(Sitting {
                from_ns: now_ns,
                until_ns: u64::MAX,
                stay: seat.stays,
            });
        }
    }

    /// A request was refused. That may come before the answers of earlier ones.
    fn withdraw(&mut self, client: usize, number: usize) {
        for (_, seat) in self.seats.range_mut((client, 0)..=(client, usize::MAX)) {
            if let Some(place) = seat.asked.iter().position(|asked| asked.number == number) {
                seat.asked.remove(place);
                return;
            }
        }
        panic!("request {number} was answered before it was refused");
    }

    fn hear_publication(&mut self, client: usize, said: &Value, text: &str) {
        let number = said["content"]["n"].as_u64().expect("a number") as usize;
        let channel = self.channel(said);
        let publication = &mut self.publications[number];
        assert_eq!(
            (channel, said["from"].as_str()),
            (publication.channel, Some(&*publication.from))
        );
        let content = format!(r#""content":{},"ts""#, publication.content);
        assert!(text.contains(&content), "{text}");
        publication.note_id(&said["id"]);
        let publisher = publication.publisher;
        let is_new = publication.received_by.insert(client);
        assert!(is_new, "publication {number} came to {client} twice");
        let seat = self.seats.get_mut(&(client, channel));
        let seat = seat.unwrap_or_else(|| panic!("{client} never asked for {text}"));
        assert!(
            seat.open,
            "publication {number} came to {client}, who is not in the channel: {seat:?}"
        );
        seat.heard_in.insert((seat.stays, publisher), number);
        let before = seat.heard.insert(publisher, number);
        assert!(
            before < Some(number),
            "publication {number} came to {client} behind {before:?}"
        );
    }

    fn hear_ack(&mut self, client: usize, number: usize, said: &Value) {
        let publication = &mut self.publications[number];
        assert!(
            publication.publisher == client && publication.wants_ack,
            "an ack for nothing"
        );
        publication.note_id(&said["messageId"]);
        let status = said["status"].as_str().expect("a status").to_owned();
        let before = publication.ack.replace((status, self.now_ns));
        assert_eq!(before, None, "a second ack for publication {number}");
    }

    /// How many publications have this ack.
    pub fn acks(&self, status: &str) -> usize {
        let acks = self.publications.iter().filter_map(|p| p.ack.as_ref());
        acks.filter(|(ack, _)| ack == status).count()
    }

    /// The members of channels, by the frames they got: client and channel.
    pub fn seated(&self) -> impl Iterator<Item = (usize, usize)> {
        let seats = self.seats.iter();
        seats.filter(|(_, seat)| seat.open).map(|(key, _)| *key)
    }

    /// Requests without an answer: the client, and when.
    pub fn unanswered(&self) -> impl Iterator<Item = (usize, &Request)> {
        let seats = self.seats.iter();
        seats.flat_map(|((client, _), seat)| seat.asked.iter().map(|asked| (*client, asked)))
    }

    /// Publications since the last check that must have one fate or another by now.
    pub fn unchecked(&self) -> impl Iterator<Item = (usize, &Publication)> {
        self.publications.iter().enumerate().skip(self.checked)
    }

    pub fn checked(&mut self) {
        self.checked = self.publications.len();
    }

    /// The clients that sat from before a publication was sent until after it was acked, or until
    /// now.
    pub fn sitters<'a>(
        &'a self,
        publication: &'a Publication,
        live: &'a BTreeSet<usize>,
    ) -> impl Iterator<Item = (usize, Sitting)> {
        let over_ns = publication.ack.as_ref().map_or(u64::MAX - 1, |(_, at_ns)| *at_ns);
        live.iter().filter_map(move |client| {
            let seat = self.seats.get(&(*client, publication.channel))?;
            let sitting = seat
                .sittings
                .iter()
                .find(|sitting| sitting.from_ns < publication.sent_ns && over_ns < sitting.until_ns)?;
            Some((*client, *sitting))
        })
    }

    /// The clients of these that it did not reach. It must have, had nothing happened to it.
    pub fn missed<'a>(&'a self, number: usize, live: &'a BTreeSet<usize>) -> impl Iterator<Item = Missed<'a>> {
        let publication = &self.publications[number];
        let sitters = self.sitters(publication, live);
        let missed = sitters.filter(|(client, _)| !publication.received_by.contains(client));
        // A publication on its way at a leave may be missed, but then so are all later ones.
        let missed = missed.filter(move |(client, sitting)| {
            let seat = &self.seats[&(*client, publication.channel)];
            let last = seat.heard_in.get(&(sitting.stay, publication.publisher));
            sitting.until_ns == u64::MAX || last > Some(&number)
        });
        missed.map(move |(client, sitting)| Missed {
            number,
            publication,
            client,
            sitting,
        })
    }

    /// One gateway, and all is quiet: all promises must be kept. Returns how many publications did
    /// not reach every member, which must have been counted.
    pub fn check(&mut self, live: &BTreeSet<usize>, lanes_full: bool) -> usize {
        for (client, request) in self.unanswered() {
            assert!(!live.contains(&client), "{client} has no answer to {request:?}");
        }
        let rate_limited = self.refusals.contains("rateLimited");
        let mut lost = 0;
        for (number, publication) in self.unchecked() {
            let publisher_lives = live.contains(&publication.publisher);
            let missed = self.missed(number, live).next();
            let say = |what: &str| format!("publication {number} {what}: {publication:?}");
            match (
                publication.ack.as_ref().map(|(status, _)| &**status),
                &publication.refused,
            ) {
                (Some("published"), None) => assert!(missed.is_none(), "published, yet {missed:?}"),
                (Some("failed"), None) => {
                    assert!(lanes_full, "{}", say("failed without a full lane"));
                    lost += 1;
                }
                (None, Some(_)) => assert!(publication.received_by.is_empty(), "{}", say("was refused and came")),
                (None, None) if publisher_lives && publication.wants_ack => panic!("{}", say("has no ack")),
                (None, None) if publisher_lives && !rate_limited && missed.is_some() => {
                    assert!(lanes_full, "lost: {missed:?}");
                    lost += 1;
                }
                (None, None) => {}
                _ => panic!("{}", say("has a strange fate")),
            }
        }
        self.checked();
        lost
    }
}

impl Publication {
    /// All must get the same id.
    fn note_id(&mut self, id: &Value) {
        let id = id.as_str().expect("an id");
        let known = self.id.get_or_insert_with(|| id.to_owned());
        assert_eq!(known, id, "two ids of one publication");
    }
}

fn number(id: &Value, prefix: &str) -> Option<usize> {
    id.as_str()?.strip_prefix(prefix)?.parse().ok()
}
