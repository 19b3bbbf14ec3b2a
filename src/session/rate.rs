//! How fast one connection may send frames.
//!
//! Pure: the generic cell rate algorithm, which is a token bucket in one number.

/// The treatment of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateVerdict {
    /// Carry it out.
    Pass,
    /// Refuse it with `rateLimited`.
    Refuse,
    /// Close the connection with 3013: a whole burst was refused, and the bucket was never full in
    /// between.
    Close,
}

/// The state of one connection's limit. All zero at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateLimiter {
    /// When the bucket will be full again, microseconds of the gateway's clock.
    full_at_us: u64,
    refused: u32,
}

impl RateLimiter {
    /// One more frame, at `now_us` of the gateway's clock.
    ///
    /// `rate` is in frames per second, 0 for no limit; `burst` frames (at least 1) may come at
    /// once.
    pub fn check(&mut self, now_us: u64, rate: u32, burst: u32) -> RateVerdict {
        self.take(now_us, (rate, burst), 1, 1)
    }

    /// Charges a frame that has just passed with `extra` frames more. A frame that costs more than
    /// the burst passes when the bucket was full before it. It is paid off before anything else
    /// passes.
    pub fn charge(&mut self, now_us: u64, rate: u32, burst: u32, extra: u32) -> RateVerdict {
        let needed = extra.min(burst.saturating_sub(1));
        self.take(now_us, (rate, burst), needed, extra)
    }

    /// Takes `frames` out of the bucket, if at least `needed` are in it.
    fn take(&mut self, now_us: u64, (rate, burst): (u32, u32), needed: u32, frames: u32) -> RateVerdict {
        if rate == 0 {
            return RateVerdict::Pass;
        }
        if self.full_at_us <= now_us {
            self.full_at_us = now_us;
            self.refused = 0;
        }
        let interval_us = 1_000_000 / u64::from(rate);
        let room_us = interval_us * u64::from(burst.max(1));
        if self.full_at_us + interval_us * u64::from(needed) <= now_us + room_us {
            self.full_at_us += interval_us * u64::from(frames);
            return RateVerdict::Pass;
        }
        self.refused += 1;
        if self.refused > burst {
            RateVerdict::Close
        } else {
            RateVerdict::Refuse
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(limiter: &mut RateLimiter, times_us: impl Iterator<Item = u64>) -> (u32, u32, u32) {
        let (mut passed, mut refused, mut closed) = (0, 0, 0);
        for now in times_us {
            match limiter.check(now, 100, 200) {
                RateVerdict::Pass => passed += 1,
                RateVerdict::Refuse => refused += 1,
                RateVerdict::Close => closed += 1,
            }
        }
        (passed, refused, closed)
    }

    #[test]
    fn a_burst_passes_then_the_rate() {
        let mut limiter = RateLimiter::default();
        assert_eq!(run(&mut limiter, std::iter::repeat_n(5, 300)), (200, 100, 0));
        // After a second, a hundred more.
        assert_eq!(run(&mut limiter, std::iter::repeat_n(1_000_005, 150)), (100, 50, 0));
    }

    #[test]
    fn a_steady_sender_at_the_rate_is_never_refused() {
        let mut limiter = RateLimiter::default();
        assert_eq!(run(&mut limiter, (0..10_000).map(|n| n * 10_000)), (10_000, 0, 0));
    }

    #[test]
    fn persistence_closes_and_a_pause_forgives() {
        let mut limiter = RateLimiter::default();
        assert_eq!(run(&mut limiter, std::iter::repeat_n(0, 401)), (200, 200, 1));
        assert_eq!(run(&mut limiter, std::iter::repeat_n(10_000_000, 400)), (200, 200, 0));
    }

    /// A frame that costs `extra` besides.
    fn costly(limiter: &mut RateLimiter, now_us: u64, limits: (u32, u32), extra: u32) -> RateVerdict {
        match limiter.check(now_us, limits.0, limits.1) {
            RateVerdict::Pass => limiter.charge(now_us, limits.0, limits.1, extra),
            refused => refused,
        }
    }

    #[test]
    fn what_asks_for_more_costs_more() {
        let mut limiter = RateLimiter::default();
        let passed = (0..18).filter(|_| costly(&mut limiter, 0, (100, 200), 10) == RateVerdict::Pass);
        assert_eq!(passed.count(), 18, "198 of 200");
        assert_eq!(costly(&mut limiter, 0, (100, 200), 10), RateVerdict::Refuse);
        // The refused one took one.
        assert_eq!(costly(&mut limiter, 100_000, (100, 200), 10), RateVerdict::Pass);
        assert_eq!(costly(&mut limiter, 100_000, (100, 200), 10), RateVerdict::Refuse);
    }

    #[test]
    fn a_cost_above_the_burst_passes_once_and_is_paid_off() {
        for burst in [1, 5] {
            let mut limiter = RateLimiter::default();
            assert_eq!(costly(&mut limiter, 0, (10, burst), 10), RateVerdict::Pass);
            let early_us = 1_100_000 - 100_000 * u64::from(burst);
            assert_eq!(limiter.check(early_us, 10, burst), RateVerdict::Refuse);
            assert_eq!(limiter.check(early_us + 100_000, 10, burst), RateVerdict::Pass);
            assert_eq!(costly(&mut limiter, 5_000_000, (10, burst), 10), RateVerdict::Pass);
        }
    }

    #[test]
    fn no_limit_and_the_smallest_limit() {
        let mut limiter = RateLimiter::default();
        assert!((0..1000).all(|_| limiter.check(0, 0, 0) == RateVerdict::Pass));
        assert_eq!(limiter.check(0, 1, 1), RateVerdict::Pass);
        assert_eq!(limiter.check(0, 1, 1), RateVerdict::Refuse);
        assert_eq!(limiter.check(0, 1, 1), RateVerdict::Close);
    }
}
