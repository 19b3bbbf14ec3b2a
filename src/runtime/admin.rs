//! The listener of `admin.listen`: TCP, or a Unix socket.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use super::claim::Holder;
use super::unix::{self, SocketFile};
use super::{StartError, listener};
use crate::config::Listen;

/// Accept queue of a Unix socket: administrators are few.
const BACKLOG: i32 = 128;

/// A listener that listens. Non-blocking.
#[derive(Debug)]
pub enum AdminSocket {
    /// On an address.
    Tcp(TcpListener),
    /// On a path, whose file goes with the guard.
    Unix(UnixListener, SocketFile),
}

impl AdminSocket {
    /// Where it listens, with the port that the kernel chose if none was given.
    pub fn listen(&self) -> Option<Listen> {
        match self {
            AdminSocket::Tcp(listener) => listener.local_addr().ok().map(Listen::Tcp),
            AdminSocket::Unix(_, file) => Some(Listen::Unix(file.path.clone())),
        }
    }
}

/// Listens.
///
/// # Errors
/// Another process listens there, or the system refuses.
pub fn bind(listen: &Listen) -> Result<AdminSocket, StartError> {
    let in_use = |holder: Holder| StartError::AdminInUse {
        listen: listen.to_string(),
        holder,
    };
    let refused = |cause: io::Error| match cause.kind() {
        io::ErrorKind::AddrInUse => in_use(Holder::default()),
        _ => StartError::AdminListen {
            listen: listen.to_string(),
            cause,
        },
    };
    let addr = match listen {
        Listen::Unix(path) => {
            let (socket, file) = unix::bind(path).map_err(refused)?.map_err(in_use)?;
            socket.listen(BACKLOG).map_err(refused)?;
            return Ok(AdminSocket::Unix(OwnedFd::from(socket).into(), file));
        }
        Listen::Tcp(addr) => *addr,
        Listen::Name(name, port) => listener::resolve("admin.listen", name, *port)?,
    };
    let listener = TcpListener::bind(addr).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(AdminSocket::Tcp(listener))
}
