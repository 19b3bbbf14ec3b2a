//! The sockets of one generator thread.
//!
//! Duty: open, write, close and count; one place decides what the end of a connection means. Owns every socket and
//! the epoll set; the driver reads. Writes are gathered per connection: what a scenario appends while it handles
//! one read leaves in one `send`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::net::{SendFlags, sockopt};
use rustls::ClientConfig;

use crate::args::{Auth, Options};
use crate::conn::State;
use crate::message::{quoted, user_name};
use crate::sys;
use crate::tally::Tally;
use crate::tls::{self, Tls};
use crate::wire;

/// Bytes gathered for one connection before they are sent in any case.
const GATHER_BYTES_MAX: usize = 64 * 1024;

/// One connection and its socket.
#[derive(Debug, Default)]
pub(crate) struct Conn {
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) state: State,
    tls: Option<Box<Tls>>,
    /// The beginning of a frame whose rest has not come.
    pub(crate) partial: Vec<u8>,
    /// What the socket did not take.
    pending: Vec<u8>,
    began_ns: u64,
    /// The gateway that said `welcome`, as numbered by [`Net`].
    gateway: u32,
    /// The server's close frame was seen and counted.
    close_counted: bool,
}

/// The connections of one thread. Owned by it.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) epoll: OwnedFd,
    pub(crate) conns: Vec<Conn>,
    /// The number of the first user of this thread.
    pub(crate) first_user: u32,
    pub(crate) tally: Tally,
    /// Connections that ended after they were ready, not told to the scenario yet.
    pub(crate) gone: Vec<usize>,
    /// Sockets that are open.
    pub(crate) open: usize,
    /// The gateways that said `welcome` to this thread, by id.
    gateways: HashMap<String, u32>,
    options: Arc<Options>,
    tls: Option<Arc<ClientConfig>>,
    out: Vec<u8>,
    out_for: usize,
    /// What `out` is sealed into.
    wire: Vec<u8>,
}

impl Net {
    pub(crate) fn new(options: Arc<Options>, first_user: u32, connections: usize) -> std::io::Result<Self> {
        let tls = options.insecure_tls.then(tls::config);
        Ok(Self {
            tls,
            wire: vec![],
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            conns: (0..connections).map(|_| Conn::default()).collect(),
            first_user,
            tally: Tally::new(),
            gone: vec![],
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

    /// Begins connection `index`.
    pub(crate) fn begin(&mut self, index: usize, now_ns: u64) {
        self.tally.attempted += 1;
        let user = self.user(index) as usize;
        let source = sys::source_address(user, self.options.sources);
        let socket = sys::begin_connect(self.options.targets.of(user).address, source).and_then(|socket| {
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
                *self.tally.failures.entry(error.to_string()).or_default() += 1;
            }
        }
    }

    /// The kernel decided about the connect of `index`: send the upgrade request.
    pub(crate) fn connected(&mut self, index: usize) {
        let Some(socket) = &self.conns[index].socket else {
            return;
        };
        if let Ok(Err(error)) = sockopt::socket_error(socket) {
            self.end(index, &std::io::Error::from(error).to_string());
            return;
        }
        self.conns[index].state = State::Handshaking;
        self.watch(index, false);
        let target = self.options.targets.of(self.user(index) as usize);
        let mut path = target.path.clone();
        if let Some(query) = target.dialect.query(&self.options, self.user(index)) {
            path = format!("{path}?{query}");
        } else if self.options.auth == Auth::Query {
            path.push(if path.contains('?') { '&' } else { '?' });
            match &self.options.tokens {
                Some(tokens) => path.push_str(&format!("token={}", tokens.of(self.user(index)))),
                None => path.push_str(&format!(
                    "user={}",
                    user_name(&self.options.user_prefix, self.user(index))
                )),
            }
        }
        let host = target.host.clone();
        if let Some(config) = &self.tls {
            match Tls::new(config, &host) {
                Ok(tls) => self.conns[index].tls = Some(Box::new(tls)),
                Err(why) => return self.end(index, &why),
            }
        }
        wire::write_request(self.out(index), &host, &path);
    }

    /// The handshake of `index` is done: say who we are, if that was not said.
    pub(crate) fn upgraded(&mut self, index: usize) {
        let name = user_name(&self.options.user_prefix, self.user(index));
        if let Some(greeting) = self.options.targets.dialect().greeting(&name) {
            wire::write_frame(self.out(index), wire::TEXT, greeting.as_bytes());
            return;
        }
        if self.options.auth == Auth::Message {
            let frame = match &self.options.tokens {
                Some(tokens) => format!(r#"{{"type":"auth","token":"{}"}}"#, tokens.of(self.user(index))),
                None => {
                    let user = quoted(&user_name(&self.options.user_prefix, self.user(index)));
                    format!(r#"{{"type":"auth","userId":{user}}}"#)
                }
            };
            wire::write_frame(self.out(index), wire::TEXT, frame.as_bytes());
        }
    }

    /// Connection `index` is authenticated, by the gateway with this id; one that does not say is known by its url.
    pub(crate) fn ready(&mut self, index: usize, gateway: Option<String>, now_ns: u64) {
        self.tally.ready += 1;
        let gateway = gateway.unwrap_or_else(|| self.options.targets.of(self.user(index) as usize).url.clone());
        let number = self.gateways.len() as u32;
        self.conns[index].gateway = *self.gateways.entry(gateway.clone()).or_insert(number);
        *self.tally.gateways.entry(gateway).or_default() += 1;
        self.tally
            .connect
            .saturating_record(now_ns - self.conns[index].began_ns);
    }

    /// Whether two connections, ready at least once, are on different gateways.
    pub(crate) fn are_apart(&self, one: usize, other: usize) -> bool {
        self.conns[one].gateway != self.conns[other].gateway
    }

    /// Where to append bytes for `index`; they leave with the next [`Self::flush`] or when another one's turn comes.
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

    /// Appends to `plain` what received bytes say, and answers what TLS wants answered. False where they are plain.
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
        let state = self.conns[index].state;
        if state == State::Closing {
            return;
        }
        if state == State::Ready {
            *self.tally.closes.entry(code).or_default() += 1;
            self.gone.push(index);
        } else {
            *self.tally.failures.entry(format!("closed {code}")).or_default() += 1;
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

    /// Connection `index` is over: counts it by what that means in its state.
    pub(crate) fn end(&mut self, index: usize, why: &str) {
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
                *self.tally.closes.entry(1006).or_default() += 1;
                *self.tally.breaks.entry(why.to_owned()).or_default() += 1;
                self.gone.push(index);
            }
            State::Connecting | State::Handshaking | State::Authenticating if !counted => {
                *self.tally.failures.entry(why.to_owned()).or_default() += 1;
            }
            _ => {}
        }
    }
}
