//! One hostile connection, and where floods of them go.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};

use crate::common::DEADLINE;
use crate::common::client::{Client, upgrade_head};

/// Where, how, and whether it is over before its loops are.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) over: Arc<AtomicBool>,
    /// How much of each flood; 1 for a test.
    pub(crate) rounds: usize,
}

impl Target {
    pub(crate) fn goes_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// Does it so many times, unless it is over before.
    pub(crate) fn repeat(&self, times: usize, mut once: impl FnMut(usize)) {
        for n in 0..times * self.rounds {
            if !self.goes_on() {
                return;
            }
            once(n);
        }
    }

    /// Opens so many sockets that all stay, and in the place of the oldest further ones. All of
    /// them stay until the gateway has closed the one with the number `early`.
    pub(crate) fn crowd(&self, size: usize, early: usize, mut open: impl FnMut(usize) -> Option<TcpStream>) {
        let mut staying = VecDeque::new();
        self.repeat(size, |n| {
            if staying.len() == size {
                staying.pop_front();
            }
            staying.extend(open(n));
        });
        if self.goes_on()
            && let Some(early) = staying.get_mut(early)
        {
            early.set_read_timeout(Some(DEADLINE)).unwrap();
            while matches!(early.read(&mut [0; 4096]), Ok(1..)) {}
        }
    }

    /// Connections of this user, one after another, that send this again and again.
    pub(crate) fn pour(&self, user: &str, connections: usize, bytes: &[u8], times: usize) {
        self.repeat(connections, |_| {
            if let Some(mut client) = Hostile::upgraded(self, user) {
                let _ = (0..times).all(|_| self.goes_on() && client.send(bytes));
            }
        });
    }

    /// The first bytes of a TLS handshake.
    pub(crate) fn hello(&self) -> Vec<u8> {
        let hello = self.tls.as_ref().map(|config| {
            let mut tls = ClientConnection::new(Arc::clone(config), self.addr.ip().into()).unwrap();
            let mut flight = Vec::new();
            tls.write_tls(&mut flight).unwrap();
            flight
        });
        hello.unwrap_or_else(|| b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec())
    }
}

/// One hostile connection. Nothing that happens to it is an error.
pub(crate) struct Hostile {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Hostile {
    /// The bare socket.
    pub(crate) fn connect(target: &Target) -> Option<Hostile> {
        Hostile::new(TcpStream::connect(target.addr).ok()?)
    }

    fn new(stream: TcpStream) -> Option<Hostile> {
        // What the gateway does not read or answer is not waited for.
        stream.set_write_timeout(Some(Duration::from_millis(50))).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        Some(Hostile { stream, tls: None })
    }

    /// With TLS if the gateway speaks it.
    pub(crate) fn secure(target: &Target) -> Option<Hostile> {
        Hostile::connect(target)?.over_tls(target)
    }

    /// The same with room for this many bytes that were not read.
    pub(crate) fn secure_with_receive_buffer(target: &Target, bytes: usize) -> Option<Hostile> {
        let client = Client::connect_with_receive_buffer(target.addr, bytes);
        Hostile::new(client.stream)?.over_tls(target)
    }

    fn over_tls(mut self, target: &Target) -> Option<Hostile> {
        if let Some(config) = &target.tls {
            let mut tls = ClientConnection::new(Arc::clone(config), target.addr.ip().into()).ok()?;
            while tls.is_handshaking() {
                tls.complete_io(&mut self.stream).ok()?;
            }
            self.tls = Some(Box::new(tls));
        }
        Some(self)
    }

    /// A WebSocket of this user, after some answer to its handshake.
    pub(crate) fn upgraded(target: &Target, user: &str) -> Option<Hostile> {
        let mut it = Hostile::secure(target)?;
        let head = upgrade_head(&format!("/ws?user={user}"), "");
        (it.send(head.as_bytes()) && it.read()).then_some(it)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        match &mut self.tls {
            None => self.stream.write_all(bytes).is_ok(),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream)
                .write_all(bytes)
                .is_ok(),
        }
    }

    /// False at the end.
    pub(crate) fn read(&mut self) -> bool {
        self.read_into(&mut [0; 4096]) > 0
    }

    /// Reads until this text came so many times; false at the end.
    pub(crate) fn read_until(&mut self, text: &[u8], times: usize) -> bool {
        let (mut bytes, mut found) = (Vec::new(), 0);
        let mut chunk = [0; 16 * 1024];
        while found < times {
            let len = self.read_into(&mut chunk);
            if len == 0 {
                return false;
            }
            bytes.extend_from_slice(&chunk[..len]);
            found += bytes.windows(text.len()).filter(|window| *window == text).count();
            // The text may go on in the next chunk.
            bytes.drain(..bytes.len().saturating_sub(text.len() - 1));
        }
        true
    }

    fn read_into(&mut self, bytes: &mut [u8]) -> usize {
        let read = match &mut self.tls {
            None => self.stream.read(bytes),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(bytes),
        };
        read.unwrap_or(0)
    }

    /// What remains of it is the socket: nobody speaks TLS there any more, and the gateway is not
    /// told so.
    pub(crate) fn into_socket(self) -> TcpStream {
        self.stream
    }

    pub(crate) fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}
