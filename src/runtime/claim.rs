//! Keeps two gateways off one address.
//!
//! SO_REUSEPORT lets all sockets of one user share an address. So it would hide a second gateway of
//! the same user and split the clients between the two. Two gateways that start at the same instant
//! meet in a name of the abstract socket namespace. Like a port, such a name belongs to the network
//! namespace and ends with the process.
//!
//! Any process on the host may hold such a name. A holder of another user cannot share the address
//! with us, and there is no gateway to keep out. So the name counts only where a process of our own
//! user holds it. Where another user's process holds it, two gateways meet in the lock of a file.
//! Its folder is one that only our user may write to.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::{env, fmt};

use rustix::fs::FlockOperation;
use socket2::{Domain, SockAddr, Socket, Type};

/// Ours as long as it lives.
#[derive(Debug)]
pub struct Claim {
    _name: Option<UnixListener>,
    _lock: Option<Lock>,
}

/// A locked file. Dropping it removes the file and then lets go of it.
#[derive(Debug)]
struct Lock {
    _file: File,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The process that has the address, as far as it can be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    pid: Option<u32>,
    user: Option<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else {
            return f.write_str("another program or another shardgate");
        };
        write!(f, "process {pid}")?;
        if let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) {
            write!(f, " ({})", name.trim().escape_debug())?;
        }
        match self.user {
            Some(user) => write!(f, " of user {user}"),
            None => Ok(()),
        }
    }
}

/// Claims `what` for this process, such as `listen/127.0.0.1:8080`.
///
/// # Errors
/// The system refuses. The inner error is the process that holds it.
pub fn take(what: &str) -> io::Result<Result<Claim, Holder>> {
    take_in(what, lock_folder().as_deref())
}

fn take_in(what: &str, folder: Option<&Path>) -> io::Result<Result<Claim, Holder>> {
    let name = format!("shardgate/{what}");
    let (held, stranger) = match UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?) {
        Ok(held) => (Some(held), Holder::default()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = holder_of(&name);
            if holder.user == Some(rustix::process::geteuid().as_raw()) {
                return Ok(Err(holder));
            }
            (None, holder)
        }
        Err(error) => return Err(error),
    };
    let lock = match folder.map(|folder| lock(folder, what)) {
        Some(Ok(Err(holder))) => return Ok(Err(holder)),
        Some(Ok(Ok(lock))) => Some(lock),
        // A full disk keeps no process from starting that has the name.
        Some(Err(_)) | None => None,
    };
    if held.is_none() {
        if lock.is_none() {
            return Ok(Err(stranger));
        }
        log::warn!("{stranger} holds the socket name @{name}, which is a gateway's: going on without it");
    }
    Ok(Ok(Claim {
        _name: held,
        _lock: lock,
    }))
}

/// The process that listens at a name: the kernel keeps its credentials from when it began to.
fn holder_of(name: &str) -> Holder {
    let ask = || -> io::Result<Holder> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        Ok(Holder {
            pid: u32::try_from(peer.pid.as_raw_nonzero().get()).ok(),
            user: Some(peer.uid.as_raw()),
        })
    };
    // No process listens there, or its queue is full: a gateway of ours would answer.
    ask().unwrap_or_default()
}

/// A folder that only our user may write to; its files are gone when the host starts again.
fn lock_folder() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let named = |name: &str| {
        let value = env::var_os(name)?.into_string().ok()?;
        Some(PathBuf::from(value.split(':').next()?))
    };
    let candidates = [
        named("RUNTIME_DIRECTORY"),
        Some(PathBuf::from("/run/shardgate")),
        named("XDG_RUNTIME_DIR"),
        Some(PathBuf::from(format!("/run/user/{user}"))),
        Some(PathBuf::from("/run")),
    ];
    let is_ours = |folder: &PathBuf| {
        fs::metadata(folder).is_ok_and(|meta| meta.is_dir() && meta.uid() == user && meta.mode() & 0o022 == 0)
    };
    candidates.into_iter().flatten().find(is_ours)
}

fn lock(folder: &Path, what: &str) -> io::Result<Result<Lock, Holder>> {
    // A port belongs to a network namespace, a folder does not.
    let network = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let network: String = network.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    let path = folder.join(format!("shardgate-{}-{network}.lock", what.replace('/', "-")));
    loop {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Ok(Err(Holder {
                    pid: fs::read_to_string(&path).ok().and_then(|pid| pid.trim().parse().ok()),
                    user: Some(rustix::process::geteuid().as_raw()),
                }));
            }
            Err(error) => return Err(error.into()),
        }
        // Between the two calls its owner may have removed it: a lock that others cannot find is
        // none.
        let is_there =
            fs::metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
        if is_there {
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            return Ok(Ok(Lock { _file: file, path }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_name() -> String {
        format!("listen/test-{}-{:x}", std::process::id(), getrandom::u64().unwrap())
    }

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let what = a_name();
        let first = take(&what).unwrap().unwrap();
        let holder = take(&what).unwrap().unwrap_err();
        assert_eq!(holder.pid, Some(std::process::id()));
        let words = holder.to_string();
        assert!(words.contains(&format!("process {} (", std::process::id())), "{words}");
        assert!(words.contains(" of user "), "{words}");
        drop(first);
        take(&what).unwrap().unwrap();
    }

    /// A name without a listener is no gateway's, as one of another user would not be.
    #[test]
    fn a_stranger_with_the_name_stops_nobody_and_two_meet_in_the_lock() {
        let what = a_name();
        let squatter = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        squatter
            .bind(&SockAddr::unix(format!("\0shardgate/{what}")).unwrap())
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let first = take_in(&what, Some(folder.path())).unwrap().unwrap();
        let holder = take_in(&what, Some(folder.path())).unwrap().unwrap_err();
        assert_eq!(holder.pid, Some(std::process::id()));
        drop(first);
        drop(take_in(&what, Some(folder.path())).unwrap().unwrap());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "nothing is left behind"
        );
        // Without a folder of our own, two gateways could not be told apart.
        let holder = take_in(&what, None).unwrap().unwrap_err();
        assert_eq!(holder.to_string(), "another program or another shardgate");
    }
}
