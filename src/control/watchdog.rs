//! What systemd hears while the gateway lives (`WatchdogSec=`): as long as `/livez` would say so,
//! and no longer.
//!
//! Owned by the control thread, so that a control thread that stands still says nothing either.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::shared::{Now, Shared};

/// The means to say that the gateway lives.
pub(super) struct Watchdog {
    socket: UnixDatagram,
    every_ms: u64,
    due_ms: u64,
}

impl Watchdog {
    /// `None` where nobody wants to hear it.
    pub(super) fn of_environment() -> Option<Watchdog> {
        let patience = sd_notify::watchdog_enabled()?;
        let name = env::var_os("NOTIFY_SOCKET")?.into_string().ok()?;
        Watchdog::new(&name, patience.as_millis() as u64)
            .inspect_err(|error| log::warn!("cannot tell systemd that the gateway lives: {error}"))
            .ok()
    }

    fn new(name: &str, patience_ms: u64) -> std::io::Result<Watchdog> {
        let to = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&to)?;
        // The control thread waits for nobody, systemd included.
        socket.set_nonblocking(true)?;
        Ok(Watchdog {
            socket,
            // Twice as often as it must be, as sd_watchdog_enabled(3) asks.
            every_ms: (patience_ms / 2).max(1),
            due_ms: 0,
        })
    }

    /// Says it if it is time to, and the gateway lives; when it will be time again.
    pub(super) fn feed(&mut self, shared: &Shared, now: Now) -> u64 {
        let now_ms = now.mono_ms();
        if now_ms >= self.due_ms {
            self.due_ms = now_ms + self.every_ms;
            if shared.liveness(now).is_ok() {
                // Where systemd does not keep up it hears the next one.
                let _ = self.socket.send(b"WATCHDOG=1");
            }
        }
        self.due_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes;

    #[test]
    fn it_is_fed_as_long_as_the_gateway_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let hears = || {
            let mut word = [0; 32];
            systemd.recv(&mut word).ok().map(|len| word[..len].to_vec())
        };
        let depths = lanes::inboxes(1).depths;
        let shared = Shared::new("gw".into(), true, "model", vec![None], depths);
        let mut watchdog = Watchdog::new(path.to_str().unwrap(), 3_000).unwrap();
        // At this time, at which every thread has its turn.
        let mut feed = |ms: u64| {
            shared.shards[0].last_turn_ms.set(ms);
            shared.control_turn_ms.set(ms);
            let now = Now {
                mono_ns: ms * 1_000_000,
                wall_ms: ms,
            };
            watchdog.feed(&shared, now)
        };
        assert_eq!(feed(0), 1_500);
        assert_eq!(hears().as_deref(), Some(&b"WATCHDOG=1"[..]));
        assert_eq!(feed(1_499), 1_500);
        assert_eq!(hears(), None);
        assert_eq!(feed(1_600), 3_100);
        assert!(hears().is_some());
        // A systemd that does not read holds nobody up.
        for at in 2..2_000 {
            feed(at * 1_500 + 1_600);
        }
        assert!(hears().is_some());
    }
}
