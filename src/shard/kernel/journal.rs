//! What the log tells of connections at `debug`: who came, who went and why, who was refused.
//!
//! Owned by the shard. Peers cause these lines, so there are only so many per second; how many more
//! there were is said as well. With `debug` off they cost one comparison. No line has anything of a
//! token.

/// Lines per second and shard about connections, and as many about refusals: those come in floods,
/// and must not keep the others out.
const LINES_PER_SECOND: u32 = 100;

/// Lines of one second.
#[derive(Debug, Default)]
pub(super) struct Second {
    began_ms: u64,
    written: u32,
    suppressed: u64,
}

impl Second {
    /// May one more line be written?
    pub(super) fn admits(&mut self) -> bool {
        self.written += 1;
        self.suppressed += u64::from(self.written > LINES_PER_SECOND);
        self.written <= LINES_PER_SECOND
    }

    /// Begins the next second if this one is over. Returns the lines that were not written.
    pub(super) fn next(&mut self, now_ms: u64) -> u64 {
        if now_ms < self.began_ms + 1_000 {
            return 0;
        }
        let ended = std::mem::take(self);
        self.began_ms = now_ms;
        ended.suppressed
    }
}

/// The lines of the current second. Owned by the shard.
#[derive(Debug, Default)]
pub(in crate::shard) struct Journal {
    pub(super) connections: Second,
    pub(super) refusals: Second,
}

pub(super) fn is_on() -> bool {
    log::log_enabled!(log::Level::Debug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_number() {
        let mut second = Second::default();
        assert_eq!(second.next(5_000), 0);
        assert_eq!((0..1_000).filter(|_| second.admits()).count(), 100);
        assert_eq!(second.next(5_999), 0, "the second is not over");
        assert_eq!(second.next(6_000), 900);
        assert!(second.admits());
        assert_eq!(second.next(7_000), 0);
    }
}
