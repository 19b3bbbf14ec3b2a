//! The listener of `admin.listen`: TCP, or a Unix socket that leaves no file behind.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::StartError;
use super::claim::{self, Claim, Holder};
use crate::config::AdminListen;

/// A listener that listens. Non-blocking.
#[derive(Debug)]
pub enum AdminSocket {
    /// On an address.
    Tcp(TcpListener),
    /// On a path, whose file goes with the guard.
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket of ours, and what keeps other gateways from it. Dropping it removes the file, if it is still
/// the one that we made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
    _claim: Claim,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.device_and_inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AdminSocket {
    /// Where it listens, with the port that the kernel chose if none was given.
    pub fn listen(&self) -> Option<AdminListen> {
        match self {
            AdminSocket::Tcp(listener) => listener.local_addr().ok().map(AdminListen::Tcp),
            AdminSocket::Unix(_, file) => Some(AdminListen::Unix(file.path.clone())),
        }
    }
}

/// Listens.
///
/// # Errors
/// Somebody else does, or the system refuses.
pub fn bind(listen: &AdminListen) -> Result<AdminSocket, StartError> {
    let refused = |cause: io::Error| {
        let listen = listen.to_string();
        match cause.kind() {
            io::ErrorKind::AddrInUse => StartError::AdminInUse {
                listen,
                holder: Holder::default(),
            },
            _ => StartError::AdminListen { listen, cause },
        }
    };
    match listen {
        AdminListen::Tcp(addr) => {
            let listener = TcpListener::bind(addr).map_err(refused)?;
            listener.set_nonblocking(true).map_err(refused)?;
            Ok(AdminSocket::Tcp(listener))
        }
        AdminListen::Unix(path) => {
            let claim = claim(path).map_err(refused)?.map_err(|holder| StartError::AdminInUse {
                listen: listen.to_string(),
                holder,
            })?;
            bind_unix(path, claim).map_err(refused)
        }
    }
}

fn bind_unix(path: &Path, claim: Claim) -> io::Result<AdminSocket> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path)? => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }?;
    listener.set_nonblocking(true)?;
    let made = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        device_and_inode: (made.dev(), made.ino()),
        _claim: claim,
    };
    Ok(AdminSocket::Unix(listener, file))
}

/// Two gateways that start at the same moment and both find a stale file meet in this claim: else the second would take the
/// first one's file away.
fn claim(path: &Path) -> io::Result<Result<Claim, Holder>> {
    let mut hasher = DefaultHasher::new();
    std::path::absolute(path)?.hash(&mut hasher);
    // Hashed, as a name has no more room than a path.
    claim::take(&format!("admin/{:016x}", hasher.finish()))
}

/// True if a socket lies there that nobody listens on: its owner was killed. A file of another kind is not ours to touch.
fn is_stale(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let words = "there is a file that is not a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, words));
    }
    // Not to be waited for: a listener with a full queue lives, too.
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    let refused = socket.connect(&SockAddr::unix(path)?);
    Ok(refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}
