//! What could not be written for its own sake (somebody else holds a lock on it, Postgres refuses it), kept apart from what
//! can, and tried again by itself: after a pause that grows with each try, a few at a time where even those were too many.
//!
//! Bounded with all that is unrecorded (`Slots`).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use carillon_core::ids;

use crate::in_hand::Key;
use crate::to_record::ToRecord;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Tried at once, at most.
const TOGETHER_MAX: usize = 1_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Aside {
    /// By the instant of the next try, and in the order of their coming.
    waiting: BTreeMap<(Instant, u64), ToRecord>,
    came: u64,
    /// Of what waits or is being tried.
    tries: HashMap<Key, u32>,
    together: usize,
}

impl Default for Aside {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), came: 0, tries: HashMap::new(), together: TOGETHER_MAX }
    }
}

impl Aside {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Sets one aside, for the first time or again.
    pub(super) fn put(&mut self, item: ToRecord, now: Instant) {
        let tries = self.tries.entry(item.key()).or_insert(0);
        let pause = PAUSE_MIN.saturating_mul(1 << (*tries).min(16)).min(PAUSE_MAX);
        *tries += 1;
        self.came += 1;
        self.waiting.insert((now + pause, self.came), item);
    }

    /// They could not be written together, for whatever reason: fewer at once from now on.
    pub(super) fn too_many(&mut self, count: usize) {
        self.together = (count / 2).max(1);
    }

    /// It is written, or need not be.
    pub(super) fn done(&mut self, key: Key) {
        if self.tries.remove(&key).is_some() {
            self.together = (self.together * 2).min(TOGETHER_MAX);
        }
    }

    /// One whose end has come need not be shown running.
    pub(super) fn forget_start(&mut self, key: Key) {
        if self.tries.contains_key(&key) {
            self.waiting.retain(|_, item| !matches!(item, ToRecord::Started(its, _) if *its == key));
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// What is to be tried now, of one day.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<ToRecord> {
        let mut due = Vec::new();
        let mut day = None;
        while due.len() < self.together
            && let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
            && *day.get_or_insert_with(|| ids::day(first.get().execution())) == ids::day(first.get().execution())
        {
            due.push(first.remove());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::tests::{ended, started};
    use super::*;

    #[test]
    fn the_pause_grows_and_has_an_end() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..40 {
            aside.put(ended(Uuid::from_u128(1)), now);
            let due = aside.next_due().unwrap();
            pauses.push(due - now);
            assert_eq!(aside.take_due(due).len(), 1);
        }
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[1], pauses[39]), (PAUSE_MIN, 2 * PAUSE_MIN, PAUSE_MAX));
        let Some(ToRecord::Finished(end)) = Some(ended(Uuid::from_u128(1))) else { unreachable!() };
        aside.done(end.entry.key);
        aside.put(ToRecord::Finished(end), now);
        assert_eq!(aside.next_due(), Some(now + PAUSE_MIN), "from the beginning");
    }

    #[test]
    fn fewer_are_tried_at_once_until_one_is_written() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        for n in 0..16 {
            aside.put(ended(Uuid::from_u128(n)), now);
        }
        aside.too_many(16);
        let later = now + PAUSE_MAX;
        assert_eq!(aside.take_due(now).len(), 0);
        let some = aside.take_due(later);
        assert_eq!(some.len(), 8);
        aside.too_many(1);
        let one = aside.take_due(later).pop().unwrap();
        assert_eq!(aside.take_due(later).len(), 1);
        aside.done(one.key());
        assert_eq!(aside.take_due(later).len(), 2);
        assert_eq!(aside.len(), 4);
    }

    #[test]
    fn a_day_is_tried_by_itself() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let other_day = Uuid::from_u128(86_400_000 << 80);
        for id in [Uuid::from_u128(1), Uuid::from_u128(2), other_day] {
            aside.put(ended(id), now);
        }
        assert_eq!(aside.take_due(now + PAUSE_MAX).len(), 2);
        assert_eq!(aside.take_due(now + PAUSE_MAX).len(), 1);
    }

    #[test]
    fn a_start_is_forgotten_once_its_end_has_come() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let start = started(Uuid::from_u128(1));
        let key = start.key();
        aside.put(start, now);
        aside.put(ended(Uuid::from_u128(1)), now);
        aside.forget_start(key);
        assert!(matches!(aside.take_due(now + PAUSE_MAX)[..], [ToRecord::Finished(_)]));
    }
}
