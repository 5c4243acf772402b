//! What could not be written for its own sake (somebody else holds a lock on it, Postgres refuses it), kept apart from what
//! can, and tried again by itself: after a pause that grows with each try, a few at a time where even those were too many. Those
//! of a pause are due at the same instants, however they came, so that many cost no more tries than one.
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
    /// From which the instants of the tries are counted.
    origin: Instant,
    /// By the instant of the next try, and in the order of their coming.
    waiting: BTreeMap<(Instant, u64), ToRecord>,
    came: u64,
    /// Of what waits or is being tried.
    tries: HashMap<Key, u32>,
    together: usize,
}

impl Default for Aside {
    fn default() -> Self {
        let (waiting, tries) = (BTreeMap::new(), HashMap::new());
        Self { origin: Instant::now(), waiting, came: 0, tries, together: TOGETHER_MAX }
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
        let due = self.instant_after(now, pause);
        self.waiting.insert((due, self.came), item);
    }

    /// The first of the instants that lie `pause` apart after at least half of it.
    fn instant_after(&self, now: Instant, pause: Duration) -> Instant {
        let passed = (now + pause / 2).saturating_duration_since(self.origin);
        let pauses = passed.as_nanos().div_ceil(pause.as_nanos().max(1));
        self.origin + pause.saturating_mul(u32::try_from(pauses).unwrap_or(u32::MAX))
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
        for (pause, about) in pauses.iter().zip([PAUSE_MIN, 2 * PAUSE_MIN, 4 * PAUSE_MIN]) {
            assert!((about / 2..about * 3 / 2).contains(pause), "{pause:?} for {about:?}");
        }
        assert!(pauses[10..].iter().all(|pause| (PAUSE_MAX / 2..PAUSE_MAX * 3 / 2).contains(pause)));
        let Some(ToRecord::Finished(end)) = Some(ended(Uuid::from_u128(1))) else { unreachable!() };
        aside.done(end.entry.key);
        aside.put(ToRecord::Finished(end), now);
        assert!(aside.next_due() < Some(now + 2 * PAUSE_MIN), "from the beginning");
    }

    #[test]
    fn fewer_are_tried_at_once_until_one_is_written() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        for n in 0..16 {
            aside.put(ended(Uuid::from_u128(n)), now);
        }
        aside.too_many(16);
        let later = now + 2 * PAUSE_MAX;
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

    /// Each try keeps what can be written waiting for a moment.
    #[test]
    fn those_that_came_apart_are_tried_together() {
        let (mut aside, began) = (Aside::default(), Instant::now());
        let in_ms = |ms: u64| began + Duration::from_millis(ms);
        let mut tries = Vec::new();
        let mut retry = |aside: &mut Aside, until: Instant| {
            while let Some(due) = aside.next_due().filter(|due| *due <= until) {
                tries.push(due);
                aside.take_due(due).into_iter().for_each(|item| aside.put(item, due));
            }
        };
        for n in 0..200 {
            retry(&mut aside, in_ms(n * 7));
            aside.put(ended(Uuid::from_u128(n.into())), in_ms(n * 7));
        }
        retry(&mut aside, in_ms(10_000));
        let between = |from, to| tries.iter().filter(|at| (in_ms(from)..in_ms(to)).contains(at)).count();
        assert!(between(0, 1_400) < 40, "{} while they came", between(0, 1_400));
        assert_eq!(between(5_000, 10_000), 5, "all of them once a second");
        assert_eq!(aside.len(), 200);
    }

    #[test]
    fn a_day_is_tried_by_itself() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let other_day = Uuid::from_u128(86_400_000 << 80);
        for id in [Uuid::from_u128(1), Uuid::from_u128(2), other_day] {
            aside.put(ended(id), now);
        }
        assert_eq!(aside.take_due(now + 2 * PAUSE_MAX).len(), 2);
        assert_eq!(aside.take_due(now + 2 * PAUSE_MAX).len(), 1);
    }

    #[test]
    fn a_start_is_forgotten_once_its_end_has_come() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let start = started(Uuid::from_u128(1));
        let key = start.key();
        aside.put(start, now);
        aside.put(ended(Uuid::from_u128(1)), now);
        aside.forget_start(key);
        assert!(matches!(aside.take_due(now + 2 * PAUSE_MAX)[..], [ToRecord::Finished(_)]));
    }
}
