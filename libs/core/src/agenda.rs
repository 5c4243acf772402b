//! What the leader knows of the instants to come, so that it sleeps exactly until the next one instead of polling.
//!
//! It holds instants, not jobs: what is really due is decided by the claim, in Postgres, under the lock. So the agenda may
//! be stale in both directions: an instant that is no longer there costs an empty claim, one that it does not know yet is
//! brought by a wake or by the slow refill. An instant is looked at `lead` before it comes (R23).

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::line::Line;

/// Where due things come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A job's timer.
    Timer,
    /// A trigger by hand.
    Trigger,
    /// A failed attempt that is to be tried again.
    Retry,
}

/// Which claim would find it.
pub type Slot = (Source, Line);

/// The instants to come.
#[derive(Clone, Debug, Default)]
pub struct Agenda {
    /// Instants that are looked at ahead of time, with how many fires are expected at each.
    ahead: BTreeMap<DateTime<Utc>, BTreeMap<Slot, u32>>,
    /// Instants at which something is decided that could not be decided ahead, or is to be tried again.
    exact: BTreeMap<DateTime<Utc>, BTreeSet<Slot>>,
}

impl Agenda {
    /// Replaces what is known by what Postgres holds, except the exact looks, which Postgres does not know of.
    pub fn refill(&mut self, instants: impl IntoIterator<Item = (Slot, DateTime<Utc>)>) {
        self.ahead.clear();
        for (slot, at) in instants {
            self.note(slot, at);
        }
    }

    /// Something is due at `at`.
    pub fn note(&mut self, slot: Slot, at: DateTime<Utc>) {
        self.note_many(slot, at, 1);
    }

    /// Several are due at `at`.
    pub fn note_many(&mut self, slot: Slot, at: DateTime<Utc>, count: u32) {
        *self.ahead.entry(at).or_default().entry(slot).or_default() += count;
    }

    /// A look that was taken out, until `due`, has not brought all that it may: look again at once for what is due by now, and
    /// ahead for what is due between `from` (where it stopped) and `due`. Without that, what a raised lead had taken out of
    /// the agenda and the ordinary lead does not reach would be forgotten until the next refill.
    pub fn look_again(&mut self, slot: &Slot, now: DateTime<Utc>, from: DateTime<Utc>, due: DateTime<Utc>, count: u32) {
        self.note_exactly(slot.clone(), now);
        if from > now {
            self.note_many(slot.clone(), from, count);
        }
        self.note(slot.clone(), due);
    }

    /// Something is to be looked at at `at`, not earlier.
    pub fn note_exactly(&mut self, slot: Slot, at: DateTime<Utc>) {
        self.exact.entry(at).or_default().insert(slot);
    }

    /// When to look next.
    pub fn next_look(&self, lead: TimeDelta) -> Option<DateTime<Utc>> {
        let ahead = self.ahead.keys().next().map(|at| *at - lead);
        let exact = self.exact.keys().next().copied();
        match (ahead, exact) {
            (Some(a), Some(e)) => Some(a.min(e)),
            (a, e) => a.or(e),
        }
    }

    /// Takes out what is to be looked at now: the slots in which something may be due until `now + lead`.
    pub fn take_due(&mut self, now: DateTime<Utc>, lead: TimeDelta) -> BTreeSet<Slot> {
        let mut slots = BTreeSet::new();
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() <= now + lead
        {
            slots.extend(entry.remove().into_keys());
        }
        while let Some(entry) = self.exact.first_entry()
            && *entry.key() <= now
        {
            slots.extend(entry.remove());
        }
        slots
    }

    /// How many fires are expected until `until`: a herd is claimed with a longer lead.
    pub fn expected_until(&self, until: DateTime<Utc>) -> u64 {
        self.ahead.range(..=until).flat_map(|(_, slots)| slots.values()).map(|count| u64::from(*count)).sum()
    }
}

/// R23: how long before its instant a fire is claimed: `base`, raised towards `max` as far as dispatching what is expected
/// will take at the measured rate.
pub fn lead_for(expected: u64, per_second: f64, base: TimeDelta, max: TimeDelta) -> TimeDelta {
    if per_second <= 0.0 {
        return base;
    }
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a duration of milliseconds")]
    let needed = TimeDelta::milliseconds((expected as f64 / per_second * 1_000.0) as i64);
    (base + needed).clamp(base, max.max(base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Priority;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    fn slot(queue: &str) -> Slot {
        (Source::Timer, Line::new(queue, Priority::Medium))
    }

    const LEAD: TimeDelta = TimeDelta::milliseconds(200);

    #[test]
    fn it_looks_a_lead_before_the_next_instant() {
        let mut agenda = Agenda::default();
        assert_eq!(agenda.next_look(LEAD), None);
        agenda.note(slot("a"), at(5_000));
        agenda.note(slot("b"), at(3_000));
        assert_eq!(agenda.next_look(LEAD), Some(at(2_800)));
        assert_eq!(agenda.take_due(at(2_799), LEAD), BTreeSet::new());
        assert_eq!(agenda.take_due(at(2_800), LEAD), BTreeSet::from([slot("b")]));
        assert_eq!(agenda.next_look(LEAD), Some(at(4_800)));
    }

    #[test]
    fn what_could_not_be_decided_is_looked_at_at_its_instant_and_survives_a_refill() {
        let mut agenda = Agenda::default();
        agenda.note_exactly(slot("a"), at(1_000));
        agenda.refill([(slot("b"), at(9_000))]);
        assert_eq!(agenda.next_look(LEAD), Some(at(1_000)));
        assert!(agenda.take_due(at(999), LEAD).is_empty());
        assert_eq!(agenda.take_due(at(1_000), LEAD), BTreeSet::from([slot("a")]));
    }

    #[test]
    fn a_herd_raises_the_lead_up_to_its_bound() {
        let max = TimeDelta::milliseconds(500);
        assert_eq!(lead_for(0, 10_000.0, LEAD, max), LEAD);
        assert_eq!(lead_for(2_000, 10_000.0, LEAD, max), TimeDelta::milliseconds(400));
        assert_eq!(lead_for(50_000, 10_000.0, LEAD, max), max);
        assert_eq!(lead_for(50_000, 0.0, LEAD, max), LEAD, "no rate known yet");
    }

    /// A herd of which one claim took only a part, with a lead that only the whole herd justified.
    #[test]
    fn the_rest_of_a_herd_is_not_forgotten_when_the_lead_shrinks() {
        let mut agenda = Agenda::default();
        let (herd, raised) = (at(10_000), TimeDelta::milliseconds(500));
        agenda.note_many(slot("a"), herd, 2_000);
        agenda.note(slot("a"), at(10_090));
        assert_eq!(agenda.take_due(at(9_600), raised), BTreeSet::from([slot("a")]));
        agenda.look_again(&slot("a"), at(9_600), herd, at(10_100), 1_000);
        assert_eq!(agenda.expected_until(herd), 1_000, "the rest still asks for a longer lead");
        assert_eq!(agenda.take_due(at(9_610), LEAD), BTreeSet::from([slot("a")]), "at once, for what is due");
        assert_eq!(agenda.next_look(LEAD), Some(at(9_800)), "and before the instant of the rest");
        assert_eq!(agenda.take_due(at(9_800), LEAD), BTreeSet::from([slot("a")]));
        assert_eq!(agenda.next_look(LEAD), Some(at(9_900)), "and for what else the first look had taken out");
    }

    #[test]
    fn expected_fires_are_counted() {
        let mut agenda = Agenda::default();
        for _ in 0..3 {
            agenda.note(slot("a"), at(1_000));
        }
        agenda.note(slot("a"), at(2_000));
        assert_eq!(agenda.expected_until(at(1_999)), 3);
    }
}
