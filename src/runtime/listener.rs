//! The public listeners, on an address of their own: one SO_REUSEPORT socket per shard, or one Unix
//! socket for all.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use super::claim::{self, Claim, Holder};
use super::unix::{self, SocketFile};
use crate::config::Listen;

/// The kernel takes the rings of a process down after its end, and with them its listeners. So a
/// gateway that is started again at once finds its own port in use for some milliseconds.
const PREDECESSOR_GOES: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// Bytes of a connection that the kernel takes beyond those that the network takes. More bytes stay
/// in the outbox, where `limits.outbox_bytes` bounds them.
///
/// Without this the kernel takes up to 4 MiB. It reports room only at every third of that, more
/// than an outbox holds. Of two readers who are equally fast one would then be closed as slow.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// The listeners of all shards, and the claim that keeps other gateways off the address while they
/// live.
#[derive(Debug)]
pub struct Listeners {
    sockets: Sockets,
    /// The address, with the port that the kernel chose if none was given.
    pub at: Listen,
    kept: Kept,
}

/// Non-blocking sockets; they listen after [`Listeners::listen`].
#[derive(Debug)]
enum Sockets {
    /// One per shard, between which the kernel divides connections.
    Tcp(Vec<Socket>),
    /// One socket that this many shards accept from: SO_REUSEPORT does not apply to a path.
    Unix(Socket, usize),
}

/// Keeps other gateways away. Held for the life of the gateway.
#[derive(Debug)]
pub enum Kept {
    /// None for a port of the kernel's choice.
    Address(Option<Claim>),
    /// Its file, too.
    File(SocketFile),
}

/// Binds `count` listeners to one address.
///
/// # Errors
/// It is in use, cannot be bound, or is an unknown name.
pub fn bind(listen: &Listen, count: usize) -> Result<Listeners, StartError> {
    let addr = match listen {
        Listen::Tcp(addr) => *addr,
        Listen::Name(name, port) => resolve("listen", name, *port)?,
        Listen::Unix(path) => return bind_unix(path, count),
    };
    when_predecessor_has_gone(|| try_bind(addr, count))
}

/// The address of a name now; the IPv4 one where it has both kinds, as most programs do.
///
/// # Errors
/// It has none, as far as this host knows.
pub(super) fn resolve(key: &'static str, name: &str, port: u16) -> Result<SocketAddr, StartError> {
    let unknown = |cause: io::Error| StartError::Unresolved {
        key,
        name: name.to_owned(),
        cause,
    };
    let found: Vec<SocketAddr> = (name, port).to_socket_addrs().map_err(unknown)?.collect();
    let first = found.iter().find(|addr| addr.is_ipv4()).or(found.first()).copied();
    first.ok_or_else(|| unknown(io::Error::other("it has no address")))
}

fn when_predecessor_has_gone(bind: impl Fn() -> Result<Listeners, StartError>) -> Result<Listeners, StartError> {
    let until = Instant::now() + PREDECESSOR_GOES;
    loop {
        match bind() {
            Err(StartError::AddressInUse { .. }) if Instant::now() < until => thread::sleep(TRY_AGAIN),
            result => return result,
        }
    }
}

fn bind_unix(path: &Path, count: usize) -> Result<Listeners, StartError> {
    let at = Listen::Unix(path.to_owned());
    when_predecessor_has_gone(|| {
        let (socket, file) = unix::bind(path)
            .map_err(|cause| refused(&at, cause))?
            .map_err(|holder| StartError::AddressInUse { at: at.clone(), holder })?;
        Ok(Listeners {
            sockets: Sockets::Unix(socket, count),
            at: at.clone(),
            kept: Kept::File(file),
        })
    })
}

fn try_bind(addr: SocketAddr, count: usize) -> Result<Listeners, StartError> {
    let at = Listen::Tcp(addr);
    let refused = |cause: io::Error| refused(&at, cause);
    let claim = if addr.port() == 0 {
        None
    } else {
        let claim = claim::take(&format!("listen/{addr}"))
            .map_err(refused)?
            .map_err(|holder| StartError::AddressInUse { at: at.clone(), holder })?;
        // A socket without SO_REUSEPORT finds a process that listens already. It has SO_REUSEADDR,
        // for the TIME_WAIT of a predecessor's connections.
        open(addr, false).map(drop).map_err(refused)?;
        Some(claim)
    };
    let first = open(addr, true).map_err(refused)?;
    let local = first.local_addr().map_err(refused)?;
    let addr = local.as_socket().unwrap_or(addr);
    let mut sockets = vec![first];
    while sockets.len() < count {
        sockets.push(open(addr, true).map_err(refused)?);
    }
    Ok(Listeners {
        sockets: Sockets::Tcp(sockets),
        at: Listen::Tcp(addr),
        kept: Kept::Address(claim),
    })
}

impl Listeners {
    /// Listens on all of them. No client can connect before.
    ///
    /// # Errors
    /// The address was taken meanwhile.
    pub fn listen(self, backlog: u32) -> Result<(Vec<OwnedFd>, Kept), StartError> {
        let at = self.at;
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        let listening = match self.sockets {
            Sockets::Tcp(sockets) => {
                let listen = |socket: Socket| socket.listen(backlog).map(|()| socket);
                sockets.into_iter().map(listen).collect::<io::Result<Vec<_>>>()
            }
            Sockets::Unix(socket, count) => socket
                .listen(backlog)
                .and_then(|()| (0..count).map(|_| socket.try_clone()).collect()),
        };
        let sockets = listening.map_err(|cause| refused(&at, cause))?;
        Ok((sockets.into_iter().map(Into::into).collect(), self.kept))
    }
}

fn refused(at: &Listen, cause: io::Error) -> StartError {
    let at = at.clone();
    match cause.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse {
            at,
            holder: Holder::default(),
        },
        _ => StartError::Listen { at, cause },
    }
}

fn open(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Accepted sockets inherit it: replies are small and wait for nothing.
    socket.set_tcp_nodelay(true)?;
    // Accepted sockets inherit it, too.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Listen {
        Listen::Tcp(text.parse().unwrap())
    }

    #[test]
    fn a_second_gateway_is_told() {
        let first = bind(&at("127.0.0.1:0"), 2).unwrap();
        let addr = first.at.clone();
        let (sockets, claim) = first.listen(16).unwrap();
        assert_eq!(sockets.len(), 2);
        let error = bind(&addr, 1).unwrap_err();
        assert!(
            matches!(error, StartError::AddressInUse { at: ref named, .. } if *named == addr),
            "{error}"
        );
        drop((sockets, claim));
        let second = bind(&addr, 1).unwrap();
        assert!(matches!(bind(&addr, 1), Err(StartError::AddressInUse { .. })));
        drop(second);
    }

    #[test]
    fn two_that_start_at_once_meet_in_the_name() {
        let addr = bind(&at("127.0.0.1:0"), 1).unwrap().at;
        let held = claim::take(&format!("listen/{addr}")).unwrap().unwrap();
        assert!(matches!(bind(&addr, 1), Err(StartError::AddressInUse { .. })));
        drop(held);
        bind(&addr, 1).unwrap();
    }

    #[test]
    fn another_program_is_seen_too() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = Listen::Tcp(other.local_addr().unwrap());
        assert!(matches!(bind(&addr, 1), Err(StartError::AddressInUse { .. })));
    }

    #[test]
    fn an_address_of_another_host() {
        let error = bind(&at("203.0.113.1:9"), 1).unwrap_err().to_string();
        assert!(error.starts_with("cannot listen on 203.0.113.1:9"), "{error}");
        assert!(error.contains("no interface of this host"), "{error}");
    }

    #[test]
    fn a_path_is_shared_by_shards_and_not_by_gateways() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.sock");
        let there = Listen::Unix(path.clone());
        let first = bind(&there, 3).unwrap();
        assert_eq!(first.at, there);
        assert!(
            std::os::unix::net::UnixStream::connect(&path).is_err(),
            "nobody is let in before it listens"
        );
        assert!(matches!(bind(&there, 1), Err(StartError::AddressInUse { .. })));
        let (sockets, kept) = first.listen(16).unwrap();
        assert_eq!(sockets.len(), 3);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop((sockets, kept));
        assert!(!path.exists(), "the file goes with the gateway");
        // The file of a killed gateway is replaced, and a file that is no socket is left alone.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind(&there, 1).unwrap());
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&there, 1).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = bind(&Listen::Unix("/nowhere/a.sock".into()), 1)
            .unwrap_err()
            .to_string();
        assert!(nowhere.contains("its folder does not exist"), "{nowhere}");
    }

    #[test]
    fn a_name_is_looked_up() {
        let listeners = bind(&Listen::Name("localhost".into(), 0), 1).unwrap();
        assert!(matches!(listeners.at, Listen::Tcp(addr) if addr.ip().is_loopback() && addr.port() != 0));
        let error = bind(&Listen::Name("no-such-host.invalid".into(), 80), 1)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("listen names no-such-host.invalid"), "{error}");
    }
}
