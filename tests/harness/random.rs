//! A seeded generator (splitmix64). The seed comes from `ZHUQUE_SEED` or from the clock, and is printed on failure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A generator that remembers the seed it started from.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// Starts from `ZHUQUE_SEED`, else from the clock.
    pub fn new() -> Random {
        let given = std::env::var("ZHUQUE_SEED").ok().and_then(|text| text.parse().ok());
        Random::from_seed(given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            now.as_nanos() as u64 & 0xffff_ffff
        }))
    }

    /// Starts from `seed`.
    pub fn from_seed(seed: u64) -> Random {
        Random { seed, state: seed }
    }

    /// What to put into `ZHUQUE_SEED` to see the same choices again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    /// A time below `limit`.
    pub fn time_below(&mut self, limit: Duration) -> Duration {
        Duration::from_nanos(self.below(limit.as_nanos() as u64))
    }
}

impl Default for Random {
    fn default() -> Random {
        Random::new()
    }
}
