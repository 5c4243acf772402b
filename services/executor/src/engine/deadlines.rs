//! When what runs is to be stopped: one instant each, kept only while it runs. A timeout may be a week, and thousands start and
//! end within a second: what has ended must leave nothing behind.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::in_hand::Key;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    by_time: BTreeSet<(Instant, Key)>,
    of: HashMap<Key, Instant>,
}

impl Deadlines {
    /// From now on the only one of that key.
    pub(crate) fn set(&mut self, key: Key, at: Instant) {
        if let Some(before) = self.of.insert(key, at) {
            self.by_time.remove(&(before, key));
        }
        self.by_time.insert((at, key));
    }

    pub(crate) fn forget(&mut self, key: Key) {
        if let Some(at) = self.of.remove(&key) {
            self.by_time.remove(&(at, key));
        }
    }

    /// The next one, passed or not.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out one that has passed.
    pub(crate) fn take_passed(&mut self, now: Instant) -> Option<Key> {
        let (at, key) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.forget(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    fn key(n: u128) -> Key {
        Key { execution: Uuid::from_u128(n), claim: 1 }
    }

    #[test]
    fn each_has_one_and_they_pass_in_order() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        let in_s = |seconds| now + Duration::from_secs(seconds);
        deadlines.set(key(1), in_s(5));
        deadlines.set(key(2), in_s(3));
        // As a handler that is asked to stop: its timeout counts no more, sooner or later than its grace.
        deadlines.set(key(1), in_s(1));
        assert_eq!(deadlines.next(), Some(in_s(1)));
        assert_eq!(deadlines.take_passed(now), None);
        assert_eq!(deadlines.take_passed(in_s(4)), Some(key(1)));
        assert_eq!(deadlines.take_passed(in_s(4)), Some(key(2)));
        assert_eq!((deadlines.take_passed(in_s(9)), deadlines.next()), (None, None));
    }

    #[test]
    fn what_has_ended_leaves_nothing_behind() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        for n in 0..10_000 {
            deadlines.set(key(n), now + Duration::from_secs(604_800));
            deadlines.set(key(n), now + Duration::from_secs(604_800));
            deadlines.forget(key(n));
            deadlines.forget(key(n));
        }
        assert!(deadlines.by_time.is_empty() && deadlines.of.is_empty());
    }
}
