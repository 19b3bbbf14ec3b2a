//! The floor: what one core pays at the least when every publication is one `send` to every
//! subscriber.
//!
//! It is a relay of bytes on a bare epoll loop, written for this comparison: it answers the
//! handshake, says `welcome` and `subscribed`, and for each publication builds one frame and sends
//! it with one call per subscriber, as such relays do; what a socket does not take is kept for it
//! until it does. It is not a gateway. It knows one channel, whatever its name, and tells a
//! subscriber from a publisher by the first bytes of a frame. It parses no JSON and checks no
//! UTF-8, has no users, limits, acks, heartbeats or slow-consumer handling, and trusts its peers: a
//! frame that is not from our generator gets whatever comes of it. A server that does those things
//! and is near it does them for nearly nothing; one that is below it makes fewer system calls.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const EVENTS_MAX: usize = 1024;
const READ_BUFFER_BYTES: usize = 64 * 1024;
const BACKLOG: i32 = 4096;
const LISTENER: u64 = u64::MAX;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;

const SUBSCRIBE: &[u8] = br#"{"type":"subscribe""#;
const PUBLISH: &[u8] = br#"{"type":"publish","#;
const WELCOME: &[u8] =
    br#"{"type":"welcome","connId":"0","userId":"nobody","gatewayId":"epoll_relay","heartbeatMs":25000}"#;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One connection.
struct Conn {
    socket: OwnedFd,
    upgraded: bool,
    /// The beginning of a request or a frame whose rest has not come.
    input: Vec<u8>,
    /// What the socket did not take.
    output: Vec<u8>,
    /// Its place among the subscribers.
    place: Option<usize>,
}

struct Relay {
    epoll: OwnedFd,
    listener: OwnedFd,
    /// By the number of their descriptor.
    conns: Vec<Option<Conn>>,
    /// The same numbers.
    subscribers: Vec<usize>,
    publications: u64,
}

/// Appends a server's frame.
fn write_frame(out: &mut Vec<u8>, opcode: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(0x80 | opcode);
    match length {
        0..126 => out.push(length as u8),
        126..65536 => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// The opcode of the first frame of `input`, where its payload is, unmasked, and where it ends;
/// `None` if it is not there whole.
fn read_frame(input: &mut [u8]) -> Option<(u8, std::ops::Range<usize>)> {
    let (opcode, length) = (input.first()? & 0x0f, input.get(1)? & 0x7f);
    let (start, length) = match length {
        126 => (4, usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(input.get(2..10)?.try_into().ok()?) as usize),
        length => (2, usize::from(length)),
    };
    let payload = start + 4..start + 4 + length;
    let mask: [u8; 4] = input.get(start..start + 4)?.try_into().ok()?;
    let bytes = input.get_mut(payload.clone())?;
    bytes
        .iter_mut()
        .zip(mask.iter().cycle())
        .for_each(|(byte, mask)| *byte ^= mask);
    Some((opcode, payload))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// The answer to an upgrade request, with the `welcome` behind it; `None` if the request is not
/// there whole.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    find(request, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(request);
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    });
    let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
    let mut out = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes();
    write_frame(&mut out, TEXT, &[WELCOME]);
    Some(out)
}

impl Conn {
    /// One call; false if the socket did not take all of it, and the rest waits in `output`.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // The end of the connection is seen when it is read.
            Err(_) => bytes.len(),
        };
        self.output.extend_from_slice(&bytes[sent..]);
        sent == bytes.len()
    }
}

impl Relay {
    fn listen(address: SocketAddr) -> Result<Self> {
        let listener = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.set_nonblocking(true)?;
        listener.bind(&address.into())?;
        listener.listen(BACKLOG)?;
        let relay = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            listener: listener.into(),
            conns: vec![],
            subscribers: vec![],
            publications: 0,
        };
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&relay.epoll, &relay.listener, data, epoll::EventFlags::IN)?;
        Ok(relay)
    }

    fn run(mut self) -> Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    id => self.handle(id as usize, event.flags, &mut buffer),
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match rustix::net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    sockopt::set_tcp_nodelay(&socket, true)?;
                    let id = socket.as_raw_fd() as usize;
                    let data = epoll::EventData::new_u64(id as u64);
                    epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
                    if self.conns.len() <= id {
                        self.conns.resize_with(id + 1, || None);
                    }
                    self.conns[id] = Some(Conn {
                        socket,
                        upgraded: false,
                        input: vec![],
                        output: vec![],
                        place: None,
                    });
                }
                Err(Errno::AGAIN) => return Ok(()),
                // Gone again before we came to it.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn handle(&mut self, id: usize, flags: epoll::EventFlags, buffer: &mut [u8]) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.write_rest(id);
        }
        if !flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            return;
        }
        let Some(conn) = &mut self.conns[id] else {
            return;
        };
        let bytes = match rustix::net::recv(&conn.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((bytes, _)) if bytes > 0 => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return,
            _ => return self.end(id),
        };
        let mut joined = std::mem::take(&mut conn.input);
        if joined.is_empty() {
            self.handle_input(id, &mut buffer[..bytes]);
        } else {
            joined.extend_from_slice(&buffer[..bytes]);
            self.handle_input(id, &mut joined);
        }
    }

    fn handle_input(&mut self, id: usize, mut input: &mut [u8]) {
        while let Some(conn) = &mut self.conns[id]
            && !input.is_empty()
        {
            if !conn.upgraded {
                // Its client waits for the answer, so nothing comes behind the request.
                match answer(input) {
                    Some(answer) => {
                        conn.upgraded = true;
                        self.send(id, &answer);
                    }
                    None => conn.input = input.to_vec(),
                }
                return;
            }
            let Some((opcode, payload)) = read_frame(input) else {
                conn.input = input.to_vec();
                return;
            };
            let (frame, rest) = input.split_at_mut(payload.end);
            input = rest;
            let text = &frame[payload];
            if opcode == CLOSE {
                let mut goodbye = vec![];
                write_frame(&mut goodbye, CLOSE, &[text]);
                self.send(id, &goodbye);
                self.end(id);
            } else if let Some(rest) = text.strip_prefix(SUBSCRIBE) {
                self.subscribe(id, rest);
            } else if let Some(rest) = text.strip_prefix(PUBLISH) {
                self.publish(rest);
            }
        }
    }

    /// `rest` has channel and id, as the answer has.
    fn subscribe(&mut self, id: usize, rest: &[u8]) {
        if let Some(conn) = &mut self.conns[id]
            && conn.place.is_none()
        {
            conn.place = Some(self.subscribers.len());
            self.subscribers.push(id);
        }
        let mut answer = vec![];
        write_frame(&mut answer, TEXT, &[br#"{"type":"subscribed""#, rest]);
        self.send(id, &answer);
    }

    /// `rest` is `"channel":"…","content":…}`.
    fn publish(&mut self, rest: &[u8]) {
        let channel = &rest[..find(rest, b",").unwrap_or(0)];
        let content = find(rest, br#""content":"#).map_or(&b"null}"[..], |at| &rest[at..]);
        let ts = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis());
        let head = format!(
            r#","id":"00000000-0000-7000-8000-{:012x}","from":"publisher00000","#,
            self.publications
        );
        self.publications += 1;
        let content = content.strip_suffix(b"}").unwrap_or(content);
        let tail = format!(r#","ts":{ts}}}"#);
        let start = br#"{"type":"publication","#;
        let mut frame = vec![];
        let parts = [start, channel, head.as_bytes(), content, tail.as_bytes()];
        write_frame(&mut frame, TEXT, &parts);
        for at in 0..self.subscribers.len() {
            self.send(self.subscribers[at], &frame);
        }
    }

    fn send(&mut self, id: usize, bytes: &[u8]) {
        let Some(conn) = &mut self.conns[id] else {
            return;
        };
        if !conn.output.is_empty() {
            // Behind what waits already.
            conn.output.extend_from_slice(bytes);
        } else if !conn.send(bytes) {
            self.watch(id, epoll::EventFlags::IN | epoll::EventFlags::OUT);
        }
    }

    fn write_rest(&mut self, id: usize) {
        let Some(conn) = &mut self.conns[id] else {
            return;
        };
        let waiting = std::mem::take(&mut conn.output);
        if conn.send(&waiting) {
            self.watch(id, epoll::EventFlags::IN);
        }
    }

    fn watch(&self, id: usize, flags: epoll::EventFlags) {
        if let Some(conn) = &self.conns[id] {
            // Cannot fail: the socket is open and in the set.
            let _ = epoll::modify(&self.epoll, &conn.socket, epoll::EventData::new_u64(id as u64), flags);
        }
    }

    fn end(&mut self, id: usize) {
        // Closing the descriptor takes it out of the epoll set.
        let Some(place) = self.conns[id].take().and_then(|conn| conn.place) else {
            return;
        };
        self.subscribers.swap_remove(place);
        if let Some(moved) = self.subscribers.get(place)
            && let Some(conn) = &mut self.conns[*moved]
        {
            conn.place = Some(place);
        }
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [flag, address] = &words[..] else {
        // `cargo bench` and `cargo test --all-targets` start every bench: a server would never end.
        println!("epoll_relay --listen ADDR: nothing to do without an address");
        return Ok(());
    };
    if flag != "--listen" {
        return Err(format!("unknown argument {flag}; there is --listen").into());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    let relay = Relay::listen(address.parse()?)?;
    println!("listening on {address}");
    relay.run()
}
