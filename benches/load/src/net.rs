//! The sockets of one generator thread.
//!
//! Duty: open, write, close and count; one function decides what the end of a connection means.
//! Owns every socket and the epoll set; the driver reads. Writes are gathered per connection: the
//! messages that a scenario appends while it handles one read leave in one `send`.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::net::{SendFlags, sockopt};
use rustls::ClientConfig;

use crate::args::{Auth, Options};
use crate::conn::{Failure, State};
use crate::message::{quoted, user_name};
use crate::sys;
use crate::tally::{Tally, count};
use crate::target::Target;
use crate::tls::{self, Tls};
use crate::wire;

/// Bytes gathered for one connection before they are sent in any case.
const GATHER_BYTES_MAX: usize = 64 * 1024;

/// How a connection, or an attempt at one, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was ready, and the server sent a close frame with this code.
    Closed(u16),
    /// It was ready, and its socket ended without one.
    Broken,
    /// It was ready, and we had sent our close frame first.
    Left,
    /// It never became ready.
    Refused(Failure),
}

/// One connection and its socket.
#[derive(Debug, Default)]
pub(crate) struct Conn {
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) state: State,
    tls: Option<Box<Tls>>,
    /// The beginning of a frame whose rest has not come.
    pub(crate) partial: Vec<u8>,
    /// Bytes that the socket did not take.
    pending: Vec<u8>,
    began_ns: u64,
    /// The gateway that said `welcome`, as numbered by [`Net`].
    gateway: u32,
    /// The server's close frame was seen and counted.
    close_counted: bool,
    /// It is not the first of its user; which of the gateways after the user's own it is at.
    comeback: Option<u32>,
}

/// The connections of one thread. Owned by it.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) epoll: OwnedFd,
    pub(crate) conns: Vec<Conn>,
    /// The number of the first user of this thread.
    pub(crate) first_user: u32,
    pub(crate) tally: Tally,
    /// Connections that ended after they were ready, and comebacks that failed, not told to the
    /// scenario yet.
    pub(crate) gone: Vec<(usize, End)>,
    /// Ends belong to the scenario: they are counted as those of a storm and not as faults.
    pub(crate) storm: bool,
    /// Sockets that are open.
    pub(crate) open: usize,
    /// The gateways that said `welcome` to this thread, by id.
    gateways: HashMap<String, u32>,
    options: Arc<Options>,
    tls: Option<Arc<ClientConfig>>,
    out: Vec<u8>,
    out_for: usize,
    /// The sealed bytes of `out`.
    wire: Vec<u8>,
}

impl Net {
    pub(crate) fn new(options: Arc<Options>, first_user: u32, connections: usize) -> std::io::Result<Self> {
        let tls = options.connect.insecure_tls.then(tls::config);
        Ok(Self {
            tls,
            wire: vec![],
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            conns: (0..connections).map(|_| Conn::default()).collect(),
            first_user,
            tally: Tally::default(),
            gone: vec![],
            storm: false,
            open: 0,
            gateways: HashMap::new(),
            options,
            out: Vec::with_capacity(2 * GATHER_BYTES_MAX),
            out_for: 0,
        })
    }

    /// The number of the user of connection `index`.
    pub(crate) fn user(&self, index: usize) -> u32 {
        self.first_user + index as u32
    }

    pub(crate) fn is_ready(&self, index: usize) -> bool {
        self.conns[index].state == State::Ready
    }

    /// Whether the socket of `index` takes no more for now.
    pub(crate) fn is_blocked(&self, index: usize) -> bool {
        !self.conns[index].pending.is_empty()
    }

    /// Begins the first connection of `index`.
    pub(crate) fn begin(&mut self, index: usize, now_ns: u64) {
        self.tally.attempted += 1;
        self.open_socket(index, now_ns);
    }

    /// Begins another connection of `index`, which ended: at its own gateway, or so many after it.
    pub(crate) fn begin_again(&mut self, index: usize, gateway: u32, now_ns: u64) {
        self.tally.comebacks.attempts += 1;
        self.flush();
        if self.conns[index].socket.is_some() {
            // The server has not answered our close frame yet, and need not any more.
            self.open -= 1;
        }
        self.conns[index] = Conn {
            comeback: Some(gateway),
            ..Conn::default()
        };
        self.open_socket(index, now_ns);
    }

    fn target(&self, index: usize) -> &Target {
        let after = self.conns[index].comeback.unwrap_or(0) as usize;
        self.options.targets.of(self.user(index) as usize + after)
    }

    fn open_socket(&mut self, index: usize, now_ns: u64) {
        let user = self.user(index) as usize;
        let source = sys::source_address(user, self.options.connect.sources);
        let socket = sys::begin_connect(self.target(index).address, source).and_then(|socket| {
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&self.epoll, &socket, data, epoll::EventFlags::OUT)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                self.open += 1;
                let conn = &mut self.conns[index];
                conn.socket = Some(socket);
                conn.began_ns = now_ns;
            }
            Err(error) => {
                self.conns[index].state = State::Closed;
                self.count_failure(index, error.to_string().into());
            }
        }
    }

    /// A connection did not become ready.
    fn count_failure(&mut self, index: usize, failure: Failure) {
        if self.conns[index].comeback.is_some() {
            count(&mut self.tally.comebacks.refused, &failure.why);
            self.gone.push((index, End::Refused(failure)));
        } else {
            count(&mut self.tally.failures, &failure.why);
        }
    }

    /// A connection that was ready ended, and we had not asked for it.
    fn count_end(&mut self, index: usize, code: u16, end: End) {
        let closes = if self.storm {
            &mut self.tally.storm.cuts
        } else {
            &mut self.tally.closes
        };
        *closes.entry(code).or_default() += 1;
        self.gone.push((index, end));
    }

    /// The kernel decided about the connect of `index`: send the upgrade request.
    pub(crate) fn connected(&mut self, index: usize) {
        let Some(socket) = &self.conns[index].socket else {
            return;
        };
        if let Ok(Err(error)) = sockopt::socket_error(socket) {
            self.end(index, std::io::Error::from(error).to_string().into());
            return;
        }
        self.conns[index].state = State::Handshaking;
        self.watch(index, false);
        let target = self.target(index);
        let (mut path, host) = (target.path.clone(), target.host.clone());
        let (prefix, users) = (&self.options.connect.user_prefix, self.options.load.users);
        let own_query = target.dialect.query(self.options.kind, prefix, users, self.user(index));
        if let Some(query) = own_query {
            path = format!("{path}?{query}");
        } else if self.options.connect.auth == Auth::Query {
            path.push(if path.contains('?') { '&' } else { '?' });
            match &self.options.tokens {
                Some(tokens) => path.push_str(&format!("token={}", tokens.of(self.user(index)))),
                None => path.push_str(&format!(
                    "user={}",
                    user_name(&self.options.connect.user_prefix, self.user(index))
                )),
            }
        }
        if let Some(config) = &self.tls {
            match Tls::new(config, &host) {
                Ok(tls) => self.conns[index].tls = Some(Box::new(tls)),
                Err(why) => return self.end(index, why.into()),
            }
        }
        wire::write_request(self.out(index), &host, &path);
    }

    /// The handshake of `index` is done: say who we are, if that was not said.
    pub(crate) fn upgraded(&mut self, index: usize) {
        let name = user_name(&self.options.connect.user_prefix, self.user(index));
        if let Some(greeting) = self.options.targets.dialect().greeting(&name) {
            wire::write_frame(self.out(index), wire::TEXT, greeting.as_bytes());
            return;
        }
        if self.options.connect.auth == Auth::Message {
            let frame = match &self.options.tokens {
                Some(tokens) => format!(r#"{{"type":"auth","token":"{}"}}"#, tokens.of(self.user(index))),
                None => {
                    let user = quoted(&user_name(&self.options.connect.user_prefix, self.user(index)));
                    format!(r#"{{"type":"auth","userId":{user}}}"#)
                }
            };
            wire::write_frame(self.out(index), wire::TEXT, frame.as_bytes());
        }
    }

    /// Connection `index` is authenticated, by the gateway with this id. A server without an id is
    /// known by its url.
    pub(crate) fn ready(&mut self, index: usize, gateway: Option<String>, now_ns: u64) {
        let gateway = gateway.unwrap_or_else(|| self.target(index).url.clone());
        let number = self.gateways.len() as u32;
        self.conns[index].gateway = *self.gateways.entry(gateway.clone()).or_insert(number);
        if self.conns[index].comeback.is_some() {
            self.tally.comebacks.ready += 1;
        } else {
            self.tally.ready += 1;
            *self.tally.gateways.entry(gateway).or_default() += 1;
        }
        self.tally.connect.record(now_ns - self.conns[index].began_ns);
    }

    /// Whether two connections, ready at least once, are on different gateways.
    pub(crate) fn are_apart(&self, one: usize, other: usize) -> bool {
        self.conns[one].gateway != self.conns[other].gateway
    }

    /// A number for the gateway of `index`, which was ready once; the same in every thread and
    /// process of a run.
    pub(crate) fn gateway_mark(&self, index: usize) -> u64 {
        let number = self.conns[index].gateway;
        let gateway = self.gateways.iter().find(|(_, n)| **n == number);
        let mut hasher = DefaultHasher::new();
        gateway.map(|(id, _)| id).hash(&mut hasher);
        hasher.finish()
    }

    /// A message of `from` reached `to` so long after it was due.
    pub(crate) fn record_latency(&mut self, from: usize, to: usize, latency_ns: u64, measured: bool) {
        self.record_latency_between(self.are_apart(from, to), latency_ns, measured);
    }

    /// A message reached somebody, on another gateway than its sender's if it crossed.
    pub(crate) fn record_latency_between(&mut self, crossed: bool, latency_ns: u64, measured: bool) {
        let tally = &mut self.tally;
        tally.crossed += u64::from(crossed);
        tally.fresh.record(latency_ns);
        if measured {
            let latency = if crossed {
                &mut tally.crossed_latency
            } else {
                &mut tally.local_latency
            };
            latency.record(latency_ns);
        }
    }

    /// Where to append bytes for `index`; they leave with the next [`Self::flush`] or when another
    /// one's turn comes.
    pub(crate) fn out(&mut self, index: usize) -> &mut Vec<u8> {
        if self.out_for != index || self.out.len() >= GATHER_BYTES_MAX {
            self.flush();
            self.out_for = index;
        }
        &mut self.out
    }

    /// Sends what was gathered.
    pub(crate) fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let index = self.out_for;
        let mut out = std::mem::take(&mut self.out);
        if self.conns[index].tls.is_some() {
            self.seal(index, &out);
        } else {
            self.send(index, &out);
        }
        out.clear();
        self.out = out;
    }

    /// Seals `plain` and sends it, with whatever else TLS has to say.
    fn seal(&mut self, index: usize, plain: &[u8]) {
        let mut wire = std::mem::take(&mut self.wire);
        if let Some(tls) = &mut self.conns[index].tls {
            tls.seal(plain, &mut wire);
        }
        if !wire.is_empty() {
            self.send(index, &wire);
        }
        wire.clear();
        self.wire = wire;
    }

    /// Appends the plain text of received bytes to `plain`, and sends the replies that TLS needs.
    /// False for a plain connection.
    ///
    /// # Errors
    /// The server's TLS is no good.
    pub(crate) fn open(&mut self, index: usize, bytes: &[u8], plain: &mut Vec<u8>) -> Result<bool, String> {
        let Some(tls) = &mut self.conns[index].tls else {
            return Ok(false);
        };
        let opened = tls.open(bytes, plain);
        self.seal(index, b"");
        opened.map(|()| true)
    }

    fn send(&mut self, index: usize, bytes: &[u8]) {
        let conn = &mut self.conns[index];
        let Some(socket) = &conn.socket else {
            return;
        };
        if !conn.pending.is_empty() {
            conn.pending.extend_from_slice(bytes);
            return;
        }
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => conn.pending.extend_from_slice(&bytes[sent..]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => conn.pending.extend_from_slice(bytes),
            // The end of the stream, or its error, comes with the next read.
            Err(_) => {}
        }
        if !conn.pending.is_empty() {
            self.watch(index, true);
        }
    }

    /// The socket of `index` takes bytes again; true if nothing is pending any more.
    pub(crate) fn writable(&mut self, index: usize) -> bool {
        let conn = &mut self.conns[index];
        let Some(socket) = &conn.socket else {
            return false;
        };
        match rustix::net::send(socket, &conn.pending, SendFlags::NOSIGNAL) {
            Ok(bytes) => drop(conn.pending.drain(..bytes)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
            Err(_) => conn.pending.clear(),
        }
        let done = conn.pending.is_empty();
        if done {
            conn.pending = Vec::new();
            self.watch(index, false);
        }
        done
    }

    fn watch(&self, index: usize, out: bool) {
        let Some(socket) = &self.conns[index].socket else {
            return;
        };
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, out);
        // Cannot fail: the socket is open and in the set.
        let _ = epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(index as u64), flags);
    }

    /// The server sent a close frame.
    pub(crate) fn close_received(&mut self, index: usize, code: u16) {
        match self.conns[index].state {
            State::Closing => return,
            State::Ready => self.count_end(index, code, End::Closed(code)),
            _ => {
                let failure = Failure {
                    close_code: Some(code),
                    ..format!("closed {code}").into()
                };
                self.count_failure(index, failure);
            }
        }
        self.conns[index].close_counted = true;
        self.say_close(index);
    }

    /// Sends our close frame; the server ends the connection.
    pub(crate) fn say_close(&mut self, index: usize) {
        wire::write_frame(self.out(index), wire::CLOSE, &1000u16.to_be_bytes());
        self.flush();
        self.conns[index].state = State::Closing;
    }

    /// Resets the socket of `index`, as when the network in between goes: the server gets no other
    /// notice.
    pub(crate) fn cut(&mut self, index: usize) {
        self.flush();
        if let Some(socket) = &self.conns[index].socket {
            // If the kernel refuses, the connection is closed the gentle way.
            let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
        if !self.storm {
            self.conns[index].state = State::Closing;
        }
        self.end(index, "cut by ourselves".into());
    }

    /// Connection `index` is over: counts it by what that means in its state.
    pub(crate) fn end(&mut self, index: usize, failure: Failure) {
        self.flush();
        let conn = &mut self.conns[index];
        let Some(socket) = conn.socket.take() else {
            return;
        };
        // Closing the descriptor takes it out of the epoll set.
        drop(socket);
        self.open -= 1;
        conn.partial = Vec::new();
        conn.pending = Vec::new();
        conn.tls = None;
        let counted = conn.close_counted;
        match std::mem::replace(&mut conn.state, State::Closed) {
            State::Ready => {
                count(&mut self.tally.breaks, &failure.why);
                self.count_end(index, 1006, End::Broken);
            }
            State::Closing if !counted => self.gone.push((index, End::Left)),
            State::Connecting | State::Handshaking | State::Authenticating => self.count_failure(index, failure),
            _ => {}
        }
    }
}
