//! Notifications to systemd. The crate `sd-notify` has the words. Its own send would block while
//! the receiver does not read.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Time between two attempts to send while systemd's queue is full.
const AGAIN: Duration = Duration::from_millis(10);

/// Notifies systemd, if `NOTIFY_SOCKET` is set. While systemd's queue is full, it retries for as
/// long as `within`. A failure is logged.
pub(crate) fn tell(state: &NotifyState<'_>, within: Duration) {
    let until = Instant::now() + within;
    loop {
        match try_tell(state) {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => std::thread::sleep(AGAIN),
            Err(error) => return log::warn!("cannot tell systemd {state}: {error}"),
        }
    }
}

fn try_tell(state: &NotifyState<'_>) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let to = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(format!("{state}\n").as_bytes(), &to)?;
    Ok(())
}
