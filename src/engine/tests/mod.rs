//! Tests of the engines. Everything in `contract` and `limits` runs for both. Tests of one engine's
//! inside stand beside it.

mod contract;
mod executor;
mod limits;
mod model;
mod quirks;
mod wakes;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::{Engine, Event, Payload, RingEngine, SendStatus, SocketKey, SystemEngine};

/// No test waits longer than this for anything. Generous, as the machine may be busy with other
/// things.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs each generic test for both engines.
macro_rules! for_both_engines {
    ($($name:ident),* $(,)?) => {
        mod ring {
            $(#[test]
            fn $name() {
                if $crate::engine::tests::ring_usable() {
                    super::$name::<$crate::engine::RingEngine>();
                }
            })*
        }
        mod epoll {
            $(#[test]
            fn $name() {
                super::$name::<$crate::engine::EpollEngine>();
            })*
        }
    };
}
pub(super) use for_both_engines;

/// False, with a message, on a host whose kernel refuses io_uring: there only epoll can be tested.
pub(super) fn ring_usable() -> bool {
    match RingEngine::new(listener().0) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            eprintln!("skipped: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn listener() -> (OwnedFd, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket.into(), addr)
}

/// An event that outlives the engine's buffer.
#[derive(Debug)]
pub(super) enum Seen {
    Accepted(SocketKey),
    Paused(io::Error),
    Received(SocketKey, Vec<u8>),
    Sent(SocketKey, Payload),
    Ended(SocketKey, Option<io::Error>),
    Closed(SocketKey),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Accepted { key } => Seen::Accepted(key),
            Event::AcceptPaused { error } => Seen::Paused(error),
            Event::Received { key, bytes } => {
                assert!(!bytes.is_empty());
                Seen::Received(key, bytes.to_vec())
            }
            Event::Sent { key, payload } => Seen::Sent(key, payload),
            Event::Ended { key, error } => Seen::Ended(key, error),
            Event::Closed { key } => Seen::Closed(key),
        }
    }
}

/// One engine and its listener's address.
pub(super) struct Bed<E: SystemEngine> {
    pub(super) engine: E,
    addr: SocketAddr,
}

impl<E: SystemEngine> Bed<E> {
    pub(super) fn new() -> Self {
        let (listener, addr) = listener();
        let engine = E::new(listener).unwrap();
        Bed { engine, addr }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.addr).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A client and the socket that it became, with `receive_once` armed.
    pub(super) fn pair(&mut self) -> (TcpStream, SocketKey) {
        let client = self.connect();
        match self.next() {
            Seen::Accepted(key) => (client, key),
            other => panic!("{other:?} instead of Accepted"),
        }
    }

    /// As `pair`, with nothing armed any more.
    fn quiet_pair(&mut self) -> (TcpStream, SocketKey) {
        let (mut client, key) = self.pair();
        client.write_all(b"first").unwrap();
        self.expect_bytes(key, b"first");
        (client, key)
    }

    /// The next event, however many turns that takes.
    pub(super) fn next(&mut self) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.engine.next_event() {
                return event.into();
            }
            if let Some(event) = self.engine.next_bulk() {
                return event.into();
            }
            assert!(Instant::now() < deadline, "no event");
            self.engine.turn(Some(Duration::from_millis(50))).unwrap();
        }
    }

    /// Several turns in which nothing happens, and which do not spin.
    pub(super) fn nothing(&mut self) {
        self.engine.turn(None).unwrap();
        if let Some(event) = self.engine.next_event() {
            panic!("{event:?} instead of nothing");
        }
        let before = self.engine.stats().syscalls;
        let wait = Duration::from_millis(30);
        let start = Instant::now();
        self.engine.turn(Some(wait)).unwrap();
        if let Some(event) = self.engine.next_event() {
            panic!("{event:?} instead of nothing");
        }
        assert!(start.elapsed() >= wait * 9 / 10, "the wait was cut short");
        assert!(self.engine.stats().syscalls - before <= 2);
    }

    fn expect_bytes(&mut self, key: SocketKey, bytes: &[u8]) {
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            match self.next() {
                Seen::Received(from, part) if from == key => got.extend(part),
                other => panic!("{other:?} instead of bytes of {key:?}"),
            }
        }
        assert!(got == bytes, "other bytes than those sent");
    }

    fn expect_ended(&mut self, key: SocketKey) -> Option<io::Error> {
        match self.next() {
            Seen::Ended(from, error) if from == key => error,
            other => panic!("{other:?} instead of Ended of {key:?}"),
        }
    }

    fn close(&mut self, key: SocketKey) {
        self.engine.close(key);
        self.expect_closed(key);
    }

    fn expect_closed(&mut self, key: SocketKey) {
        match self.next() {
            Seen::Closed(from) if from == key => {}
            other => panic!("{other:?} instead of Closed of {key:?}"),
        }
    }

    /// Sends, and waits until it is out.
    fn send(&mut self, key: SocketKey, payload: Payload) -> Payload {
        match self.engine.send(key, payload) {
            SendStatus::Done(payload) => payload,
            SendStatus::InFlight => match self.next() {
                Seen::Sent(from, payload) if from == key => payload,
                other => panic!("{other:?} instead of Sent of {key:?}"),
            },
        }
    }
}

/// Bytes that differ at every offset where buffers might be mixed up.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed as u64);
    (0..len).map(|_| rng.u8(..)).collect()
}

/// Reads to the end; a reset counts as the end too.
fn read_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    bytes
}

/// Closes with a reset instead of a FIN.
fn reset(client: TcpStream) {
    let socket = Socket::from(client);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Runs `body` in a process of its own: for tests that count descriptors, need many of them, or may
/// hang. `name` is the test's full path.
fn alone(name: &str, body: impl FnOnce()) {
    const INSIDE: &str = "SHARDGATE_TEST_ALONE";
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .spawn()
        .unwrap();
    let deadline = Instant::now() + 4 * PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} hangs");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    assert!(status.success(), "{name} failed: {status}");
}
