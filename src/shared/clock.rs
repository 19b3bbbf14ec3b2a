//! The gateway's clock. Threads own copies of it; what is pure takes [`Now`] as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Now;

/// Monotonic time since the start, and wall time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Clock { origin: Instant::now() }
    }

    /// Nanoseconds since the start.
    pub fn mono_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Both times.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            mono_ns: self.mono_ns(),
            wall_ms: wall.as_millis() as u64,
        }
    }
}
