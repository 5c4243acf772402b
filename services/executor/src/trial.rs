//! What several executors in a row have died with is started one at a time here: one of it may be what they died of, and the
//! others, taken over together and started together, would be lost together with it until all of them are given up.
//!
//! It saves innocents, nothing more: a trial has an end, so that one which runs for days does not keep the others waiting.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::in_hand::Key;

/// Which one is tried, and since when.
#[derive(Debug, Default)]
pub(crate) struct Trial(Mutex<Option<(Key, Instant)>>);

impl Trial {
    /// Whether this one may be taken: no other is on trial, or that has lived for `longest`. One that is asked about again, since it
    /// could not be taken, is on trial since it was asked about first.
    pub(crate) fn begin(&self, key: Key, longest: Duration) -> bool {
        let mut tried = self.lock();
        match *tried {
            Some((other, _)) if other == key => true,
            Some((_, since)) if since.elapsed() < longest => false,
            _ => {
                *tried = Some((key, Instant::now()));
                true
            }
        }
    }

    /// Whether one is on trial: then what was lost at all does not start beside it.
    pub(crate) fn is_on(&self, longest: Duration) -> bool {
        self.lock().is_some_and(|(_, since)| since.elapsed() < longest)
    }

    /// It has ended, or was let go of.
    pub(crate) fn end(&self, key: Key) {
        let mut tried = self.lock();
        if tried.is_some_and(|(tried, _)| tried == key) {
            *tried = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Key, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn one_is_tried_at_a_time_until_it_ends_or_has_lived_long_enough() {
        let key = |n| Key { execution: Uuid::from_u128(n), claim: 1 };
        let (trial, long) = (Trial::default(), Duration::from_secs(3_600));
        assert!(!trial.is_on(long));
        assert!(trial.begin(key(1), long) && !trial.begin(key(2), long));
        assert!(trial.is_on(long) && !trial.is_on(Duration::ZERO));
        assert!(trial.begin(key(1), long), "asked again, as after a check that failed");
        trial.end(key(2));
        assert!(!trial.begin(key(2), long), "the end of another is none of its");
        trial.end(key(1));
        assert!(trial.begin(key(2), long));
        assert!(trial.begin(key(3), Duration::ZERO) && !trial.begin(key(2), long));
    }
}
