//! How fast a leader claims: what a herd's lead is reckoned from (R23).

use std::time::Duration;

/// Until it has seen: few, so that a leader's first herd gets a long lead.
const ASSUMED: f64 = 5_000.0;
/// A claim of fewer says nothing about a herd: what it costs is the way to Postgres and back, and the commit. A leader that
/// learned from those of single triggers took itself for slow, claimed everything at the longest lead, and the executors' slots
/// were full of what was not due yet, behind which the triggers waited.
const CLAIMED_MIN: usize = 100;
/// How much a claim counts.
const WEIGHT: f64 = 0.2;

/// Fires claimed in a second, averaged over the last claims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate(f64);

impl Default for Rate {
    fn default() -> Self {
        Self(ASSUMED)
    }
}

impl Rate {
    pub(crate) const fn per_second(self) -> f64 {
        self.0
    }

    /// A claim of so many, of `batch_max` at most, took so long.
    pub(crate) fn learn(&mut self, claimed: usize, batch_max: u32, took: Duration) {
        if claimed < CLAIMED_MIN.min(usize::try_from(batch_max).unwrap_or(usize::MAX)) {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = claimed as f64 / took.as_secs_f64().max(1e-6);
        self.0 = (1.0 - WEIGHT) * self.0 + WEIGHT * rate;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_beside_fires_make_no_leader_slow() {
        let mut rate = Rate::default();
        for _ in 0..1_000 {
            rate.learn(180, 1_000, Duration::from_millis(20));
            rate.learn(1, 1_000, Duration::from_millis(4));
            rate.learn(17, 1_000, Duration::from_millis(12));
        }
        assert!((8_900.0..=9_000.0).contains(&rate.per_second()), "{rate:?}");
    }

    #[test]
    fn full_claims_count_however_small_they_must_be() {
        let mut rate = Rate::default();
        for _ in 0..100 {
            rate.learn(20, 20, Duration::from_millis(20));
            rate.learn(0, 20, Duration::ZERO);
        }
        assert!((1_000.0..=1_001.0).contains(&rate.per_second()), "{rate:?}");
    }
}
