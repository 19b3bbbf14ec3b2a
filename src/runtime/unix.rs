//! Listeners on Unix sockets, which leave no file behind.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::claim::{self, Claim, Holder};

/// The file of a Unix socket of ours, and the claim that keeps other gateways from it. Dropping it
/// removes the file, if it is still the one that we made.
#[derive(Debug)]
pub struct SocketFile {
    pub(super) path: PathBuf,
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

/// Binds a socket to a path; it does not listen yet. A file that a killed gateway left there is
/// replaced.
///
/// # Errors
/// The system refuses. The inner error is the process that listens there.
pub(super) fn bind(path: &Path) -> io::Result<Result<(Socket, SocketFile), Holder>> {
    let claim = match claim(path)? {
        Ok(claim) => claim,
        Err(holder) => return Ok(Err(holder)),
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !is_stale(path)? {
                return Ok(Err(Holder::default()));
            }
            fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    let made = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        device_and_inode: (made.dev(), made.ino()),
        _claim: claim,
    };
    Ok(Ok((socket, file)))
}

/// Two gateways that start at the same moment and both find a stale file meet in this claim.
/// Without it the second would take the first one's file away.
fn claim(path: &Path) -> io::Result<Result<Claim, Holder>> {
    let mut hasher = DefaultHasher::new();
    std::path::absolute(path)?.hash(&mut hasher);
    // Hashed, as a name has no more room than a path.
    claim::take(&format!("admin/{:016x}", hasher.finish()))
}

/// True if a socket without a listener lies there: its owner was killed. A file of another kind is
/// not ours to touch.
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
