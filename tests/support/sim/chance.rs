//! Where a simulation's choices come from: a seed, or a fuzzer's bytes.

/// A source of choices that can be had again.
pub struct Chance {
    rng: fastrand::Rng,
    bytes: Option<std::vec::IntoIter<u8>>,
}

impl Chance {
    pub fn seeded(seed: u64) -> Self {
        Chance {
            rng: fastrand::Rng::with_seed(seed),
            bytes: None,
        }
    }

    /// Follows `bytes`, and a fixed seed when they are used up.
    pub fn bytes(bytes: &[u8]) -> Self {
        Chance {
            rng: fastrand::Rng::with_seed(1),
            bytes: Some(Vec::from(bytes).into_iter()),
        }
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound <= 1 {
            return 0;
        }
        if let Some(byte) = self.bytes.as_mut().and_then(Iterator::next) {
            let wide = if bound > 256 {
                usize::from(byte) << 8 | usize::from(self.bytes.as_mut().and_then(Iterator::next).unwrap_or(0))
            } else {
                usize::from(byte)
            };
            return wide % bound;
        }
        self.rng.usize(..bound)
    }

    /// True in `percent` of cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// For what decides nothing: masks, padding.
    pub fn word(&mut self) -> u32 {
        self.rng.u32(..)
    }

    /// True when a fuzzer's bytes are used up.
    pub fn is_spent(&self) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| bytes.len() == 0)
    }
}
