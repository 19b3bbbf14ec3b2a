//! How fast a drain tells clients to go, and when it closes those that stay.
//!
//! Pure; made once by the control thread and the same on all shards. A drain takes as long as its
//! connections need, and no longer. Two clients are told at once; a hundred thousand are spread
//! over the time that there is.

/// Connections told per second if none is configured and there is time: as many as another gateway
/// takes without noticing.
const TOLD_PER_SECOND: u64 = 1_000;
/// `reconnectAfterMs` is spread over this time, so that clients that are told together do not come
/// back together.
const SPREAD_MS: u64 = 1_000;
/// A client that was told to go has this time more before it is closed.
const GRACE_MS: u64 = 500;
/// Before the end of the drain, at most: time in which the last close frames leave.
const FAREWELL_MS: u64 = 500;

/// The plan of one drain. Times are milliseconds of the gateway's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPlan {
    /// A client that is still there is closed at this time.
    pub close_ms: u64,
    /// Nanoseconds from one connection that is told to the next, on the whole gateway.
    pub tell_every_ns: u64,
}

impl DrainPlan {
    /// A plan for this many connections, from now on and for `timeout_ms`. `per_second` is the
    /// configured limit, 0 for none.
    pub fn new(connections: u64, now_ms: u64, timeout_ms: u64, per_second: u32) -> DrainPlan {
        let time_ms = timeout_ms - FAREWELL_MS.min(timeout_ms / 6);
        // The client that is told last shall have its grace as well. A drain too short for that
        // tells in its first third.
        let telling_ms = time_ms.saturating_sub(SPREAD_MS + GRACE_MS).max(time_ms / 3);
        let fitting_ns = telling_ms * 1_000_000 / connections.max(1);
        let usual_ns = fitting_ns.min(1_000_000_000 / TOLD_PER_SECOND);
        let least_ns = if per_second == 0 {
            0
        } else {
            1_000_000_000 / u64::from(per_second)
        };
        DrainPlan {
            close_ms: now_ms + time_ms,
            tell_every_ns: usual_ns.max(least_ns),
        }
    }

    /// How many of these connections are told in time, if none of them leaves by itself.
    pub fn told_in_time(&self, connections: u64, now_ms: u64) -> u64 {
        let time_ns = self.close_ms.saturating_sub(now_ms) * 1_000_000;
        match self.tell_every_ns {
            0 => connections,
            every => connections.min(time_ns / every + 1),
        }
    }

    /// When a client that is told now is closed if it stays, by a random number below
    /// [`DrainPlan::SPREAD_MS`].
    pub fn close_at_ms(&self, now_ms: u64, reconnect_after_ms: u64) -> u64 {
        (now_ms + reconnect_after_ms + GRACE_MS).min(self.close_ms)
    }

    /// `reconnectAfterMs` is below this.
    pub const SPREAD_MS: u64 = SPREAD_MS;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lasts_ms(connections: u64, timeout_ms: u64, per_second: u32) -> u64 {
        let plan = DrainPlan::new(connections, 0, timeout_ms, per_second);
        plan.tell_every_ns * connections / 1_000_000
    }

    #[test]
    fn a_drain_lasts_as_long_as_its_connections_need() {
        for few in [0, 1, 2, 5] {
            let plan = DrainPlan::new(few, 0, 30_000, 0);
            let last_told_ms = plan.tell_every_ns * few / 1_000_000;
            let closed_ms = plan.close_at_ms(last_told_ms, SPREAD_MS - 1);
            assert!(closed_ms < 2_000, "{few}: {closed_ms}");
        }
        assert_eq!(lasts_ms(10_000, 30_000, 0), 10_000);
        // All of the time, and not more, where a thousand per second do not suffice.
        assert_eq!(lasts_ms(1_000_000, 30_000, 0), 28_000);
        for timeout_ms in [0, 1, 100, 1_000, 3_000, 30_000, 600_000] {
            for connections in [0, 1, 1_000, 1_000_000] {
                let plan = DrainPlan::new(connections, 7_000, timeout_ms, 0);
                assert!(plan.close_ms <= 7_000 + timeout_ms);
                assert!(lasts_ms(connections, timeout_ms, 0) <= timeout_ms);
                assert_eq!(plan.told_in_time(connections, 7_000), connections);
                assert!(plan.close_at_ms(7_000, SPREAD_MS) <= plan.close_ms);
            }
        }
    }

    #[test]
    fn a_limit_holds_whatever_the_time() {
        assert_eq!(lasts_ms(50, 3_600_000, 10), 5_000);
        assert_eq!(DrainPlan::new(1_000_000, 0, 30_000, 10).tell_every_ns, 100_000_000);
        assert_eq!(DrainPlan::new(1_000, 0, 30_000, 10).told_in_time(1_000, 0), 296);
        // It is a limit and not a wish.
        assert_eq!(lasts_ms(1_000, 30_000, 100_000), 1_000);
    }
}
