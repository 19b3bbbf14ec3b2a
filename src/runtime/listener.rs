//! The public listeners: one SO_REUSEPORT socket per shard, on an address that nobody else has.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use super::claim::{self, Claim, Holder};

/// The kernel takes the rings of a process down after its end, and with them its listeners: a gateway that is started
/// again at once finds its own port in use for some milliseconds.
const PREDECESSOR_GOES: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// Bytes of a connection that the kernel takes beyond what the network does: what more there is stays in the outbox, where
/// `limits.outbox_bytes` bounds it. Without this the kernel takes up to 4 MiB and says only at every third of it that there is
/// room again, more than an outbox holds: of two readers who are equally fast one would be closed as slow.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// The listeners of all shards, and what keeps other gateways off the address while they live.
#[derive(Debug)]
pub struct Listeners {
    /// One per shard, non-blocking; they listen after [`Listeners::listen`].
    sockets: Vec<Socket>,
    /// The address, with the port that the kernel chose if none was given.
    pub addr: SocketAddr,
    /// Held for the life of the gateway.
    claim: Option<Claim>,
}

/// Binds `count` listeners to `addr`.
///
/// # Errors
/// The address is in use or cannot be bound.
pub fn bind(addr: SocketAddr, count: usize) -> Result<Listeners, StartError> {
    let until = Instant::now() + PREDECESSOR_GOES;
    loop {
        match try_bind(addr, count) {
            Err(StartError::AddressInUse { .. }) if Instant::now() < until => thread::sleep(TRY_AGAIN),
            result => return result,
        }
    }
}

fn try_bind(addr: SocketAddr, count: usize) -> Result<Listeners, StartError> {
    let refused = |cause: io::Error| refused(addr, cause);
    let claim = if addr.port() == 0 {
        None
    } else {
        let claim = claim::take(&format!("listen/{addr}"))
            .map_err(refused)?
            .map_err(|holder| StartError::AddressInUse { addr, holder })?;
        // Whoever listens already is seen by a socket without SO_REUSEPORT; with SO_REUSEADDR, for the TIME_WAIT of a
        // predecessor's connections.
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
    Ok(Listeners { sockets, addr, claim })
}

impl Listeners {
    /// Listens: from here on clients can connect. All were bound before the first one listens, as the kernel spreads
    /// connections over those that listen.
    ///
    /// # Errors
    /// Somebody else listens on the address meanwhile.
    pub fn listen(self, backlog: u32) -> Result<(Vec<OwnedFd>, Option<Claim>), StartError> {
        for socket in &self.sockets {
            socket
                .listen(i32::try_from(backlog).unwrap_or(i32::MAX))
                .map_err(|cause| refused(self.addr, cause))?;
        }
        Ok((self.sockets.into_iter().map(Into::into).collect(), self.claim))
    }
}

fn refused(addr: SocketAddr, cause: io::Error) -> StartError {
    match cause.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse {
            addr,
            holder: Holder::default(),
        },
        _ => StartError::Listen { addr, cause },
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
    // Accepted sockets inherit it: answers are small and wait for nothing.
    socket.set_tcp_nodelay(true)?;
    // What accepted sockets inherit, too.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gateway_is_told() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let addr = first.addr;
        let (sockets, claim) = first.listen(16).unwrap();
        assert_eq!(sockets.len(), 2);
        let error = bind(addr, 1).unwrap_err();
        assert!(
            matches!(error, StartError::AddressInUse { addr: named, .. } if named == addr),
            "{error}"
        );
        drop((sockets, claim));
        let second = bind(addr, 1).unwrap();
        assert!(matches!(bind(addr, 1), Err(StartError::AddressInUse { .. })));
        drop(second);
    }

    #[test]
    fn two_that_start_at_once_meet_in_the_name() {
        let addr = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().addr;
        let held = claim::take(&format!("listen/{addr}")).unwrap().unwrap();
        assert!(matches!(bind(addr, 1), Err(StartError::AddressInUse { .. })));
        drop(held);
        bind(addr, 1).unwrap();
    }

    #[test]
    fn another_program_is_seen_too() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = other.local_addr().unwrap();
        assert!(matches!(bind(addr, 1), Err(StartError::AddressInUse { .. })));
    }

    #[test]
    fn an_address_of_another_host() {
        let error = bind("203.0.113.1:9".parse().unwrap(), 1).unwrap_err().to_string();
        assert!(error.starts_with("cannot listen on 203.0.113.1:9"), "{error}");
        assert!(error.contains("no interface of this host"), "{error}");
    }
}
