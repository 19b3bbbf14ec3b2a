//! Clients, good and bad.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::books::{Books, Message, Query};
use super::chance::Chance;
use super::control::ADMIN_TOKEN;
use super::wire::{Said, Stream, Wire};

const KEY: &str = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn admin_request() -> String {
    format!("GET /admin/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\r\n")
}

/// How a client comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// `?user=`.
    Query(usize),
    /// `auth` once the `101` is there.
    Auth(usize),
    /// `auth` right behind the head.
    HastyAuth(usize),
    /// Never authenticates.
    Nameless,
    Echo,
    Http,
    /// An administrator.
    Admin,
    Garbage,
    /// Half a head.
    Slow,
}

impl Plan {
    pub fn any(chance: &mut Chance, users: usize) -> Plan {
        let user = chance.below(users);
        match chance.below(20) {
            0 => Plan::Nameless,
            1 => Plan::Echo,
            2 => Plan::Http,
            3 => Plan::Garbage,
            4 => Plan::Slow,
            5 => Plan::Admin,
            6..=8 => Plan::Auth(user),
            9..=11 => Plan::HastyAuth(user),
            _ => Plan::Query(user),
        }
    }
}

/// One client.
#[derive(Debug)]
pub struct Client {
    pub wire: usize,
    pub plan: Plan,
    /// Steps since it last moved bytes for certain.
    pub skipped: u32,
    /// Written by the client, not yet taken by its kernel.
    out: VecDeque<u8>,
    fin_wanted: bool,
    stream: Stream,
    reading: bool,
    /// Answers pings.
    answers: bool,
    pub user: Option<usize>,
    auth_sent: bool,
    welcomes_due: usize,
    pub close_sent: bool,
    /// Went by itself.
    gone: bool,
    /// The gateway ended the connection.
    ended: bool,
    pub status: Option<u16>,
    /// Requests of an administrator, and responses.
    requests: usize,
    responses: usize,
    pub close_code: Option<Option<u16>>,
    /// Codes that it has earned.
    earned: BTreeSet<u16>,
    pings: VecDeque<Vec<u8>>,
    echoes: VecDeque<String>,
    bad_frames: u32,
    /// Said anything at all as its last words.
    raw: bool,
    pub shutdowns: usize,
    /// The last message from each sender.
    heard: BTreeMap<usize, usize>,
    last_broadcast: Option<usize>,
    /// The client's end of the token: its end of file tells that the gateway has dropped the other.
    token: UnixStream,
}

impl Client {
    pub fn new(wire: usize, plan: Plan, token: UnixStream, books: &Books, chance: &mut Chance) -> Self {
        let mut client = Client {
            wire,
            plan,
            skipped: 0,
            out: VecDeque::new(),
            fin_wanted: false,
            stream: Stream::default(),
            reading: true,
            answers: chance.percent(85),
            user: None,
            auth_sent: false,
            welcomes_due: 0,
            close_sent: false,
            gone: false,
            ended: false,
            status: None,
            requests: usize::from(plan == Plan::Admin),
            responses: 0,
            close_code: None,
            earned: BTreeSet::new(),
            pings: VecDeque::new(),
            echoes: VecDeque::new(),
            bad_frames: 0,
            raw: false,
            shutdowns: 0,
            heard: BTreeMap::new(),
            last_broadcast: None,
            token,
        };
        if !client.answers {
            client.earned.insert(3012);
        }
        let head = match plan {
            Plan::Query(user) => match &books.issuer {
                None => format!("GET /ws?user={} HTTP/1.1\r\n{KEY}", books.users[user]),
                Some(issuer) => format!("GET /ws?token={} HTTP/1.1\r\n{KEY}", issuer.token(&books.users[user])),
            },
            Plan::Auth(_) | Plan::HastyAuth(_) | Plan::Nameless => format!("GET /ws HTTP/1.1\r\n{KEY}"),
            Plan::Echo => format!("GET /echo HTTP/1.1\r\n{KEY}"),
            Plan::Http => {
                let path = chance.pick(&["nothing", "livez", "readyz", "stats", "metrics"]);
                format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
            }
            Plan::Admin => admin_request(),
            Plan::Garbage => "\u{7}nonsense\r\n\r\n".to_owned(),
            Plan::Slow => "GET /ws HTTP/1.1\r\nHost:".to_owned(),
        };
        client.out.extend(head.as_bytes());
        match plan {
            Plan::Query(_) => client.welcomes_due = 1,
            Plan::HastyAuth(user) => client.auth(user, books, chance),
            Plan::Nameless => {
                client.earned.insert(3502);
            }
            _ => {}
        }
        client
    }

    /// Neither side will send more.
    pub fn is_over(&self) -> bool {
        self.ended || (self.gone && !self.reading)
    }

    /// Connected as a user, as far as it can tell.
    pub fn is_live(&self) -> bool {
        self.user.is_some() && self.stream.is_websocket() && !self.gone && !self.ended && !self.close_sent
    }

    pub fn wanted_user(&self) -> Option<usize> {
        match self.plan {
            Plan::Query(user) | Plan::Auth(user) | Plan::HastyAuth(user) => Some(user),
            _ => None,
        }
    }

    /// True unless it waits for the gateway, or the gateway for it, while both do what they should.
    pub fn owes_nothing(&self, wire: &Wire) -> bool {
        let idle = self.out.is_empty() && wire.to_gateway.is_empty() && wire.to_client.is_empty();
        idle || self.is_over() || !self.is_prompt()
    }

    /// Reads, and answers pings.
    pub fn is_prompt(&self) -> bool {
        self.reading && self.answers
    }

    /// From now on it does not read.
    pub fn stall(&mut self) {
        self.reading = false;
        self.earned.extend([3008, 3012]);
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// From now on it reads, and answers pings.
    pub fn behave(&mut self) {
        self.reading = !self.is_over();
        self.answers = true;
    }

    fn auth(&mut self, user: usize, books: &Books, chance: &mut Chance) {
        self.auth_sent = true;
        self.welcomes_due += 1;
        let text = match &books.issuer {
            None => format!(r#"{{"type":"auth","userId":"{}"}}"#, books.users[user]),
            Some(issuer) => format!(r#"{{"type":"auth","token":"{}"}}"#, issuer.token(&books.users[user])),
        };
        self.frame(0x81, text, chance);
    }

    fn frame(&mut self, first: u8, payload: impl AsRef<[u8]>, chance: &mut Chance) {
        let payload = payload.as_ref();
        let mask = chance.word().to_le_bytes();
        self.out.push_back(first);
        match payload.len() {
            len @ 0..=125 => self.out.push_back(0x80 | len as u8),
            len => {
                self.out.push_back(0x80 | 126);
                self.out.extend((len as u16).to_be_bytes());
            }
        }
        self.out.extend(mask);
        self.out
            .extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    }

    /// A text message, sometimes in fragments.
    fn text(&mut self, text: &str, chance: &mut Chance) {
        if chance.percent(90) {
            return self.frame(0x81, text, chance);
        }
        let bytes = text.as_bytes();
        let cut = chance.below(bytes.len());
        self.frame(0x01, &bytes[..cut], chance);
        if chance.percent(30) {
            self.frame(0x8a, b"", chance);
        }
        self.frame(0x80, &bytes[cut..], chance);
    }

    /// Sends a message and books it.
    pub fn message(
        &mut self,
        me: usize,
        to: usize,
        size: usize,
        ack: bool,
        books: &mut Books,
        chance: &mut Chance,
    ) -> usize {
        let number = books.messages.len();
        let padding = "x".repeat(size);
        // Odd on purpose: it must come out as it went in.
        let content = format!(r#"{{"n": {number} ,"p":"\u00e9{padding}"}}"#);
        let id = if ack {
            format!(r#","id":"m{number}""#)
        } else {
            String::new()
        };
        let text = format!(
            r#"{{"type":"message","to":"{}","content":{content}{id}}}"#,
            books.users[to]
        );
        let witnesses = books.open.get(&to).into_iter().flatten().copied().collect();
        books.messages.push(Message {
            sender: me,
            from: self.user.or(self.wanted_user()).expect("only users send"),
            to,
            content,
            wants_ack: ack,
            witnesses,
            received_by: Vec::new(),
            ack: None,
            refused: None,
        });
        self.text(&text, chance);
        number
    }

    /// Asks for some users and books it.
    pub fn ask(&mut self, me: usize, asked: BTreeSet<usize>, books: &mut Books, chance: &mut Chance) -> usize {
        let number = books.queries.len();
        let names: Vec<String> = asked.iter().map(|user| format!("\"{}\"", books.users[*user])).collect();
        let names = names.join(",");
        books.queries.push(Query {
            asker: me,
            asked,
            answer: None,
            refused: None,
        });
        let text = format!(r#"{{"type":"presence","users":[{names}],"id":"p{number}"}}"#);
        self.text(&text, chance);
        number
    }

    pub fn ask_all(&mut self, books: &mut Books, chance: &mut Chance) -> usize {
        let all = (0..books.users.len()).collect();
        self.ask(usize::MAX, all, books, chance)
    }

    /// Asks to be in a channel, or not any more, and books it.
    pub fn ask_channel(&mut self, me: usize, channel: usize, subscribes: bool, books: &mut Books, chance: &mut Chance) {
        let user = self.user.or(self.wanted_user()).expect("only users ask");
        let done_ns = books.done_ns[books.homes[user]];
        let text = books.channels.ask(me, channel, subscribes, done_ns);
        self.text(&text, chance);
    }

    /// Publishes and books it.
    pub fn publish(
        &mut self,
        me: usize,
        channel: usize,
        size: usize,
        ack: bool,
        books: &mut Books,
        chance: &mut Chance,
    ) {
        let user = self.user.or(self.wanted_user()).expect("only users publish");
        let text = books.channels.publish(me, &books.users[user], channel, size, ack);
        self.text(&text, chance);
    }

    /// Comes, goes, publishes; several things at once, too.
    pub fn act_on_channel(&mut self, me: usize, books: &mut Books, chance: &mut Chance) {
        let channel = chance.below(books.channels.names.len());
        match chance.below(20) {
            0..=6 => self.ask_channel(me, channel, true, books, chance),
            7..=8 => self.ask_channel(me, channel, false, books, chance),
            9 => {
                for _ in 0..2 + chance.below(4) {
                    let subscribes = chance.percent(60);
                    self.ask_channel(me, channel, subscribes, books, chance);
                }
            }
            _ => {
                let size = chance.pick(&[0, 10, 80, 900]);
                for _ in 0..1 + chance.below(4) {
                    let ack = chance.percent(80);
                    self.publish(me, channel, size, ack, books, chance);
                }
            }
        }
    }

    /// Does one thing that a client might do.
    pub fn act(&mut self, me: usize, wire: &mut Wire, books: &mut Books, chance: &mut Chance) {
        if self.gone || self.close_sent || self.stream.closed.is_some() {
            return;
        }
        match chance.below(300) {
            0..=2 => return self.leave_abruptly(wire),
            3..=4 => self.fin_wanted = true,
            5..=9 => self.stall(),
            10..=30 => self.reading = true,
            _ => {}
        }
        if self.plan == Plan::Admin && !self.fin_wanted && chance.percent(30) {
            self.requests += 1;
            self.out.extend(admin_request().bytes());
        }
        if self.fin_wanted || !self.stream.is_websocket() {
            return;
        }
        if self.plan == Plan::Echo {
            let text = format!("echo {}", chance.word());
            self.text(&text, chance);
            self.echoes.push_back(text);
            return;
        }
        if !self.is_live() {
            if chance.percent(1) && self.plan == Plan::Nameless {
                self.text(r#"{"type":"message","to":"user0","content":1}"#, chance);
            }
            return;
        }
        if !books.channels.names.is_empty() && chance.percent(40) {
            return self.act_on_channel(me, books, chance);
        }
        match chance.below(100) {
            0..=54 => {
                let to = chance.below(books.users.len());
                let size = chance.pick(&[0, 10, 80, 900, 1500]);
                let ack = chance.percent(70);
                for _ in 0..1 + chance.below(4) {
                    self.message(me, to, size, ack, books, chance);
                }
            }
            55..=66 => {
                let asked = (0..1 + chance.below(6))
                    .map(|_| chance.below(books.users.len()))
                    .collect();
                self.ask(me, asked, books, chance);
            }
            67..=70 => self.text(r#"{"type":"heartbeat"}"#, chance),
            71..=76 => {
                let payload = chance.word().to_le_bytes().to_vec();
                self.frame(0x89, &payload, chance);
                self.pings.push_back(payload);
            }
            77..=79 => {
                self.bad_frames += 1;
                if self.bad_frames >= 10 {
                    self.earned.insert(3501);
                }
                let nonsense = chance.pick(&["nonsense", "{}", r#"{"type":"what"}"#]);
                self.text(nonsense, chance);
            }
            80 => {
                self.earned.insert(1003);
                self.frame(0x82, b"binary", chance);
            }
            81 => {
                self.earned.insert(1007);
                self.frame(0x81, b"\xff", chance);
            }
            82 => {
                self.earned.insert(1002);
                let first = chance.pick(&[0x80, 0xc1, 0x83, 0x09]);
                self.frame(first, b"x", chance);
            }
            83..=84 => {
                if let Some(user) = self.user {
                    self.auth(user, books, chance);
                }
            }
            85 => {
                self.earned.insert(3507);
                let other = (self.user.unwrap_or(0) + 1) % books.users.len();
                self.auth(other, books, chance);
                self.welcomes_due -= 1;
            }
            86..=87 => {
                if chance.percent(30) {
                    // Its socket stays for as long as we let it.
                    self.stall();
                }
                self.say_goodbye(chance);
            }
            88 => {
                self.raw = true;
                self.fin_wanted = true;
                for _ in 0..1 + chance.below(40) {
                    self.out.push_back(chance.below(256) as u8);
                }
            }
            _ => {}
        }
    }

    pub fn say_goodbye(&mut self, chance: &mut Chance) {
        self.close_sent = true;
        let payload: &[u8] = chance.pick(&[&b""[..], b"\x03\xe8", b"\x0f\xa0bye"]);
        self.frame(0x88, payload, chance);
    }

    fn leave_abruptly(&mut self, wire: &mut Wire) {
        self.gone = true;
        self.reading = false;
        self.out.clear();
        wire.reset = true;
        wire.to_client.clear();
    }

    pub fn leave(&mut self, wire: &mut Wire, chance: &mut Chance) {
        match chance.below(3) {
            0 => self.leave_abruptly(wire),
            1 if self.is_live() => self.say_goodbye(chance),
            _ => self.fin_wanted = true,
        }
    }

    /// Its kernel takes some of what it wrote.
    pub fn write(&mut self, wire: &mut Wire, chance: &mut Chance, eager: bool) -> bool {
        if wire.reset {
            self.out.clear();
            return false;
        }
        let whole = eager || chance.percent(50);
        let len = if whole {
            self.out.len()
        } else {
            chance.below(self.out.len() + 1)
        };
        wire.to_gateway.extend(self.out.drain(..len));
        if self.fin_wanted && self.out.is_empty() && !wire.client_fin {
            wire.client_fin = true;
            self.gone = true;
            return true;
        }
        len > 0
    }

    /// Reads some of what the gateway sent.
    pub fn read(&mut self, me: usize, wire: &mut Wire, books: &mut Books, chance: &mut Chance, eager: bool) -> bool {
        if !self.reading {
            return false;
        }
        let whole = eager || chance.percent(50);
        let len = wire.to_client.len();
        let len = if whole { len } else { chance.below(len + 1) };
        let bytes: Vec<u8> = wire.to_client.drain(..len).collect();
        for said in self.stream.push(&bytes) {
            self.hear(me, &said, books, chance);
        }
        let mut moved = len > 0;
        if wire.to_client.is_empty() && (wire.gateway_fin || wire.reset) && !self.ended {
            self.ended = true;
            moved = true;
            // It answers the end with its own.
            wire.client_fin = true;
        }
        if let Some(user) = self.user {
            let open = books.open.entry(user).or_default();
            if self.is_live() {
                open.insert(me);
            } else {
                open.remove(&me);
            }
        }
        moved
    }

    fn hear(&mut self, me: usize, said: &Said, books: &mut Books, chance: &mut Chance) {
        match said {
            Said::Head(status) => self.hear_status(*status, books, chance),
            Said::Text(text) if self.plan == Plan::Echo => {
                assert_eq!(self.echoes.pop_front().as_ref(), Some(text), "an echo");
            }
            Said::Text(text) => self.hear_text(me, text, books),
            Said::Binary(_) => panic!("nobody sent binary to an echo"),
            Said::Ping if self.answers && !self.close_sent => self.frame(0x8a, b"", chance),
            Said::Ping => {}
            Said::Pong(_) if self.raw && self.pings.is_empty() => {}
            Said::Pong(payload) if books.rate_limited => {
                // The ones before it were refused.
                let place = self.pings.iter().position(|ping| ping == payload);
                self.pings.drain(..=place.expect("a pong"));
            }
            Said::Pong(payload) => assert_eq!(self.pings.pop_front().as_ref(), Some(payload), "a pong"),
            Said::Close(code) => {
                self.close_code = Some(*code);
                let known = match code {
                    Some(3001) => books.draining,
                    Some(3008) => books.small_outboxes || self.earned.contains(&3008),
                    Some(3504) => books.connections_limited,
                    Some(3503) => self.user.is_some_and(|user| books.closed_users.contains(&user)),
                    Some(3500) => self.may_be_refused(books),
                    Some(3013) if books.issuer.is_some() => true,
                    Some(3013) => books.rate_limited || books.lanes_full || books.places_limited,
                    Some(code) => self.earned.contains(code) || self.close_sent || self.raw,
                    None => self.close_sent || self.raw,
                };
                assert!(known, "closed with {code:?} for no reason: {self:?}");
                if !self.close_sent && chance.percent(70) {
                    self.frame(0x88, b"", chance);
                }
                self.close_sent = true;
            }
        }
    }

    fn hear_status(&mut self, status: u16, books: &mut Books, chance: &mut Chance) {
        let is_first = self.status.is_none();
        self.status = Some(status);
        if !is_first && !matches!(self.plan, Plan::Http | Plan::Admin) {
            // Its frames pass for requests where its handshake was refused.
            return;
        }
        let expected = match self.plan {
            // The slow clients.
            _ if status == 408 => true,
            Plan::Http => {
                books.http += 1;
                matches!(status, 200 | 404 | 503)
            }
            Plan::Admin => {
                self.responses += 1;
                assert!(self.responses <= self.requests, "a response too many");
                matches!(status, 200 | 503 | 504)
            }
            _ if status == 401 => self.may_be_refused(books),
            // Tokens that were not looked at in time.
            _ if status == 503 && books.issuer.is_some() => true,
            Plan::Garbage => status == 400,
            Plan::Slow => false,
            _ => status == 101 || (status == 503 && (books.draining || books.lanes_full || books.places_limited)),
        };
        assert!(expected, "status {status} for {:?}", self.plan);
        if let Plan::Auth(user) = self.plan
            && status == 101
            && !self.fin_wanted
            && !self.gone
        {
            self.auth(user, books, chance);
        }
        // Slow clients may come too late.
        if matches!(self.plan, Plan::Auth(_) | Plan::HastyAuth(_)) {
            self.earned.insert(3502);
        }
    }

    fn hear_text(&mut self, me: usize, text: &str, books: &mut Books) {
        let json: Value = serde_json::from_str(text).expect("JSON");
        if books.channels.hear(me, &json, text) {
            return;
        }
        let number = |key: &Value, prefix: &str| -> Option<usize> { key.as_str()?.strip_prefix(prefix)?.parse().ok() };
        match json["type"].as_str().expect("a type") {
            "welcome" => {
                assert!(self.welcomes_due > 0, "a welcome too many");
                self.welcomes_due -= 1;
                let user = books.user(&json["userId"]);
                assert_eq!(Some(user), self.wanted_user(), "welcomed as somebody else");
                if self.user.is_none() {
                    self.user = Some(user);
                    books.tokens += u64::from(books.issuer.is_some());
                    let id = json["connId"].as_str().unwrap().to_owned();
                    assert!(books.ids.insert(id), "a connId that was there before");
                }
            }
            "message" => {
                let number = json["content"]["n"].as_u64().expect("a number") as usize;
                let from = books.user(&json["from"]);
                let to = books.user(&json["to"]);
                let id = json["id"].as_str().unwrap().to_owned();
                let message = &mut books.messages[number];
                assert_eq!((from, to), (message.from, message.to));
                assert_eq!(Some(to), self.user, "somebody else's message");
                assert!(
                    text.contains(&format!(r#""content":{},"ts""#, message.content)),
                    "{text}"
                );
                assert!(!message.received_by.contains(&me), "message {number} came twice");
                if message.received_by.is_empty() {
                    assert!(books.ids.insert(id), "a message id that was there before");
                }
                message.received_by.push(me);
                let before = self.heard.insert(message.sender, number);
                assert!(before < Some(number), "message {number} behind {before:?}");
            }
            "ack" => {
                let number = number(&json["id"], "m").expect("an id of ours");
                let message = &mut books.messages[number];
                assert!(message.sender == me && message.wants_ack, "an ack for nothing");
                let before = message.ack.replace(json["status"].as_str().unwrap().to_owned());
                assert_eq!(before, None, "a second ack");
            }
            "presence" => {
                let number = number(&json["id"], "p").expect("an id of ours");
                let users = json["users"].as_object().expect("an object");
                let answer: BTreeMap<usize, bool> = users
                    .iter()
                    .map(|(user, online)| {
                        let user = books.users.iter().position(|known| known == user).unwrap();
                        (user, online.as_bool().unwrap())
                    })
                    .collect();
                let query = &mut books.queries[number];
                assert!(
                    answer.keys().eq(&query.asked),
                    "asked for {query:?}, answered {answer:?}"
                );
                assert!(query.answer.replace(answer).is_none(), "a second answer");
            }
            "error" => {
                let code = json["code"].as_str().expect("a code").to_owned();
                if let Some(number) = number(&json["id"], "m") {
                    books.messages[number].refused = Some(code);
                } else if let Some(number) = number(&json["id"], "p") {
                    assert!(books.lanes_full || books.rate_limited, "{text}");
                    books.queries[number].refused = Some(code);
                } else if code == "rateLimited" {
                    // Or a token was shown while another one was looked at.
                    assert!(books.rate_limited || books.issuer.is_some(), "{text}");
                } else {
                    let known = self.bad_frames > 0 || self.plan == Plan::Nameless || self.raw;
                    assert!(known, "{text}");
                }
            }
            "heartbeat" => {}
            "broadcast" => {
                let number = json["content"].as_u64().expect("a number") as usize;
                assert!(
                    self.last_broadcast < Some(number),
                    "broadcast {number} behind {:?}",
                    self.last_broadcast
                );
                self.last_broadcast = Some(number);
                books.broadcasts[number].received_by.push(me);
            }
            "shutdown" => {
                assert!(books.draining);
                self.shutdowns += 1;
                assert_eq!(self.shutdowns, 1, "told twice");
            }
            other => panic!("an unknown frame: {other}"),
        }
    }

    /// A token may be of a key that is not known.
    fn may_be_refused(&self, books: &Books) -> bool {
        let rotated = books.issuer.as_ref().is_some_and(|issuer| issuer.has_rotated());
        rotated || books.keys_failed
    }

    /// An administrator who has stayed has all responses.
    pub fn check_responses(&self) {
        if self.plan == Plan::Admin && !self.ended && !self.gone && self.reading {
            assert_eq!(self.responses, self.requests, "{self:?}");
        }
    }

    /// A connection that is over for the gateway is over for its descriptor, and the other way
    /// round.
    pub fn check_token(&self, wire: &Wire) {
        let mut byte = [0];
        let dropped = matches!((&self.token).read(&mut byte), Ok(0));
        assert_eq!(
            dropped,
            wire.gateway_fin && wire.reset,
            "the descriptor of {:?} was lost or leaked",
            self.plan
        );
    }
}
