//! When the leader reads again what is near: a wake was heard, or a claim found less than was expected, since somebody else has
//! locked the rest for a moment (a pause, an end), or it is gone.

use std::time::{Duration, Instant};

/// After a claim that found less than was expected. Twice as long with each further one in a row,
const SHORT_PAUSE: Duration = Duration::from_millis(50);
/// up to this.
const SHORT_PAUSE_MAX: Duration = Duration::from_millis(800);

/// The next one, if any is due.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Glance {
    at: Option<Instant>,
    /// Claims in a row that found less than was expected.
    short: u32,
}

impl Glance {
    pub(crate) const fn at(self) -> Option<Instant> {
        self.at
    }

    /// At `at`, or sooner.
    pub(crate) fn by(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |known| known.min(at)));
    }

    /// What is near was read.
    pub(crate) const fn is_done(&mut self) {
        self.at = None;
    }

    /// A claim that began at `began` has found all that was expected, or not.
    pub(crate) fn claimed(&mut self, began: Instant, is_short: bool) {
        if !is_short {
            self.short = 0;
            return;
        }
        let doubled = SHORT_PAUSE * (1 << self.short.min(8));
        self.short = self.short.saturating_add(1);
        self.by(began + doubled.min(SHORT_PAUSE_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_short_claims_doubles_up_to_its_bound_and_begins_anew_after_a_full_one() {
        let (mut glance, began) = (Glance::default(), Instant::now());
        let mut pause = |is_short| {
            glance.claimed(began, is_short);
            let pause = glance.at().map(|at| (at - began).as_millis());
            glance.is_done();
            pause
        };
        let pauses: Vec<_> = (0..40).map(|_| pause(true)).collect();
        assert_eq!(pauses[..5], [Some(50), Some(100), Some(200), Some(400), Some(800)]);
        assert!(pauses[5..].iter().all(|pause| *pause == Some(800)));
        assert_eq!(pause(false), None);
        assert_eq!(pause(true), Some(50));
    }

    #[test]
    fn the_sooner_one_counts() {
        let (mut glance, now) = (Glance::default(), Instant::now());
        glance.claimed(now, true);
        glance.by(now);
        assert_eq!(glance.at(), Some(now));
        glance.claimed(now, true);
        assert_eq!(glance.at(), Some(now));
    }
}
