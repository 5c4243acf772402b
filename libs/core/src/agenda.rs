//! What the leader knows of the instants to come, so that it sleeps exactly until the next one instead of polling.
//!
//! It holds instants, not jobs: what is really due is decided by the claim, in Postgres, under the lock. So the agenda may
//! be stale in both directions: an instant that is no longer there costs an empty claim, one that it does not know yet is
//! brought by a wake or by the slow refill. An instant is looked at `lead` before it comes (R23).
//!
//! Fires that are spread over time share a look: each takes what comes until `gather` further than its lead asks for, and the
//! next one waits until `gather` is over, as far as the lead has room for that. So however many instants there are, there are
//! no more looks a second than `gather` goes into one, and none of them is later for it. What is due already is looked at at
//! once, and whatever comes meanwhile goes with it. What is looked at exactly at its instant (a trigger) does not wait for what
//! is spread, nor takes it along: its claim is small. Where both are due a trigger goes before what is spread, which has its lead
//! to spare; but not twice in a row, so that no stream of triggers keeps that waiting.

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
    /// Until when the last look went. No later look goes less far: what a raised lead has taken out of the agenda and a
    /// bounded claim did not bring, an ordinary lead would not reach.
    looked_until: DateTime<Utc>,
    /// When the last look ahead was.
    looked_at: DateTime<Utc>,
    /// A look ahead was due at the last one, and triggers went before it.
    gave_way: bool,
}

impl Agenda {
    /// Replaces what is known by what Postgres holds, except the exact looks, which Postgres does not know of.
    pub fn refill(&mut self, instants: impl IntoIterator<Item = (Slot, DateTime<Utc>)>) {
        self.ahead.clear();
        for (slot, at) in instants {
            self.note(slot, at);
        }
    }

    /// Replaces what is known until `until`, included, by what Postgres holds until then.
    pub fn refill_until(&mut self, until: DateTime<Utc>, instants: impl IntoIterator<Item = (Slot, DateTime<Utc>)>) {
        self.ahead.retain(|at, _| *at > until);
        for (slot, at) in instants.into_iter().filter(|(_, at)| *at <= until) {
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

    /// Something is to be looked at at `at`, not earlier: what could not be decided ahead, or the rest of what a bounded claim
    /// left, for which that may be now.
    pub fn note_exactly(&mut self, slot: Slot, at: DateTime<Utc>) {
        self.exact.entry(at).or_default().insert(slot);
    }

    /// When to look next.
    pub fn next_look(&self, lead: Lead) -> Option<DateTime<Utc>> {
        let exact = self.exact.keys().next().copied();
        match (self.next_look_ahead(lead), exact) {
            (Some(a), Some(e)) => Some(a.min(e)),
            (a, e) => a.or(e),
        }
    }

    fn next_look_ahead(&self, lead: Lead) -> Option<DateTime<Utc>> {
        let first = self.ahead.keys().next()?;
        // An instant further off than this is looked at after the first one, however many are expected at it.
        let look = self.looks(*first + (lead.max - lead.base), lead).map(|(_, look)| look).min()?;
        Some(look.max((self.looked_at + lead.gather).min(look + lead.slack())))
    }

    /// Takes out what is to be looked at now: nothing, as long as the next look is not due.
    pub fn take_due(&mut self, now: DateTime<Utc>, lead: Lead) -> Due {
        let looks_ahead = self.next_look_ahead(lead).is_some_and(|look| look <= now);
        let gave_way = std::mem::take(&mut self.gave_way);
        if !looks_ahead {
            let slots = self.take_exact(now, |_| true);
            return self.due_exactly(slots, now, lead);
        }
        if !gave_way {
            let triggers = self.take_exact(now, |(source, _)| *source == Source::Trigger);
            if !triggers.is_empty() {
                self.gave_way = true;
                return self.due_exactly(triggers, now, lead);
            }
        }
        self.take_due_ahead(now, lead)
    }

    fn due_exactly(&mut self, slots: BTreeSet<Slot>, now: DateTime<Utc>, lead: Lead) -> Due {
        let expected = slots.len() as u64;
        let mut until = self.looked_until;
        if !slots.is_empty() {
            // As far as an ordinary look: the clock here may be a little behind the one that says what is due.
            until = until.max(now + lead.reach());
            self.looked_until = until.min(now + lead.max);
        }
        Due { slots, until: until.min(now + lead.max), expected }
    }

    fn take_due_ahead(&mut self, now: DateTime<Utc>, lead: Lead) -> Due {
        let overdue_for_a_look =
            self.looks(now + lead.max, lead).filter(|(_, look)| *look <= now).map(|(at, _)| at).max();
        // Never further than the longest lead, whatever was looked at before the clock was set.
        let until =
            overdue_for_a_look.unwrap_or_default().max(now + lead.reach()).max(self.looked_until).min(now + lead.max);
        let mut slots = BTreeSet::new();
        let mut expected = 0;
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() <= until
        {
            for (slot, count) in entry.remove() {
                expected += u64::from(count);
                slots.insert(slot);
            }
        }
        let exact = self.take_exact(now, |_| true);
        expected += exact.len() as u64;
        slots.extend(exact);
        if !slots.is_empty() {
            self.looked_until = until;
            self.looked_at = now;
        }
        Due { slots, until, expected }
    }

    /// Takes out those of the exact looks due at `now` that are `wanted`.
    fn take_exact(&mut self, now: DateTime<Utc>, wanted: impl Fn(&Slot) -> bool) -> BTreeSet<Slot> {
        let (mut taken, mut others) = (BTreeSet::new(), Vec::new());
        while let Some(entry) = self.exact.first_entry()
            && *entry.key() <= now
        {
            let (at, slots) = entry.remove_entry();
            let (some, rest): (_, BTreeSet<Slot>) = slots.into_iter().partition(&wanted);
            taken.extend::<BTreeSet<Slot>>(some);
            others.push((at, rest));
        }
        self.exact.extend(others.into_iter().filter(|(_, rest)| !rest.is_empty()));
        taken
    }

    /// The instants up to `until`, each with when to look at it: early enough for all that is expected by then.
    fn looks(&self, until: DateTime<Utc>, lead: Lead) -> impl Iterator<Item = (DateTime<Utc>, DateTime<Utc>)> {
        let mut expected = 0_u64;
        self.ahead.range(..=until).map(move |(at, slots)| {
            expected += slots.values().map(|count| u64::from(*count)).sum::<u64>();
            (*at, *at - lead.of(expected))
        })
    }
}

/// What is to be claimed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Where something may be due.
    pub slots: BTreeSet<Slot>,
    /// What is due until then is claimed.
    pub until: DateTime<Utc>,
    /// So much should be found. If less is, some of it may be locked by somebody else.
    pub expected: u64,
}

/// R23: how long before its instant a fire is claimed.
#[derive(Clone, Copy, Debug)]
pub struct Lead {
    /// For a single fire.
    pub base: TimeDelta,
    /// At most; at least `base`.
    pub max: TimeDelta,
    /// How much further than its lead a look takes what comes, so that spread fires share it.
    pub gather: TimeDelta,
    /// Fires that the dispatcher handles in a second, as measured.
    pub per_second: f64,
}

impl Lead {
    /// `base`, raised towards `max` by as long as dispatching what is expected will take.
    fn of(self, expected: u64) -> TimeDelta {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a duration of milliseconds")]
        let needed = TimeDelta::milliseconds((expected as f64 / self.per_second.max(1.0) * 1_000.0) as i64);
        (self.base + needed).min(self.max)
    }

    /// How far ahead an ordinary look takes what comes.
    fn reach(self) -> TimeDelta {
        (self.base + self.gather).min(self.max)
    }

    /// How much of the lead a look may give away in order to share it: what remains is enough to dispatch.
    fn slack(self) -> TimeDelta {
        self.gather.min(self.base / 2)
    }
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

    const LEAD: Lead = Lead {
        base: TimeDelta::milliseconds(200),
        max: TimeDelta::milliseconds(500),
        gather: TimeDelta::milliseconds(50),
        per_second: 10_000.0,
    };

    #[test]
    fn it_looks_a_lead_before_the_next_instant() {
        let mut agenda = Agenda::default();
        assert_eq!(agenda.next_look(LEAD), None);
        agenda.note(slot("a"), at(5_000));
        agenda.note(slot("b"), at(3_000));
        assert_eq!(agenda.next_look(LEAD), Some(at(2_800)));
        assert_eq!(agenda.take_due(at(2_799), LEAD).slots, BTreeSet::new());
        let due = agenda.take_due(at(2_800), LEAD);
        assert_eq!(due, Due { slots: BTreeSet::from([slot("b")]), until: at(3_050), expected: 1 });
        assert_eq!(agenda.next_look(LEAD), Some(at(4_800)));
    }

    #[test]
    fn what_could_not_be_decided_is_looked_at_at_its_instant_and_survives_a_refill() {
        let mut agenda = Agenda::default();
        agenda.note_exactly(slot("a"), at(1_000));
        agenda.refill([(slot("b"), at(9_000))]);
        assert_eq!(agenda.next_look(LEAD), Some(at(1_000)));
        assert!(agenda.take_due(at(999), LEAD).slots.is_empty());
        assert_eq!(agenda.take_due(at(1_000), LEAD).slots, BTreeSet::from([slot("a")]));
    }

    /// The clock was an hour ahead, and was set back.
    #[test]
    fn no_look_goes_further_than_the_longest_lead_whatever_the_clock_showed_before() {
        let hour = 3_600_000;
        let mut agenda = Agenda::default();
        agenda.note(slot("a"), at(hour));
        assert_eq!(agenda.take_due(at(hour), LEAD).until, at(hour + 250));
        agenda.note(slot("a"), at(5_000));
        agenda.note(slot("a"), at(60_000));
        assert_eq!(agenda.take_due(at(1_000), LEAD).until, at(1_500), "nor is it said where nothing is due");
        let look = agenda.next_look(LEAD).unwrap();
        assert!(look >= at(4_800) && look <= at(4_900), "{look}");
        assert_eq!(agenda.take_due(look, LEAD).until, look + LEAD.max);
        assert_eq!(agenda.take_due(at(30_000), LEAD).slots, BTreeSet::new(), "what is far stays");
    }

    #[test]
    fn a_herd_raises_the_lead_up_to_its_bound() {
        for (expected, lead) in [(0, 200), (1, 200), (2_000, 400), (50_000, 500)] {
            assert_eq!(LEAD.of(expected), TimeDelta::milliseconds(lead), "{expected} fires");
        }
        assert_eq!(Lead { per_second: 0.0, ..LEAD }.of(1), LEAD.max, "no rate is no division by zero");
    }

    #[test]
    fn a_herd_behind_a_single_fire_is_looked_at_before_it() {
        let mut agenda = Agenda::default();
        agenda.note(slot("a"), at(10_000));
        agenda.note_many(slot("b"), at(10_100), 2_999);
        assert_eq!(agenda.next_look(LEAD), Some(at(9_600)));
        let due = agenda.take_due(at(9_600), LEAD);
        assert_eq!(due, Due { slots: BTreeSet::from([slot("a"), slot("b")]), until: at(10_100), expected: 3_000 });
    }

    /// A herd of which one claim took only a part, with a lead that only the whole herd justified.
    #[test]
    fn the_rest_of_a_herd_is_not_forgotten_when_the_lead_shrinks() {
        let mut agenda = Agenda::default();
        agenda.note_many(slot("a"), at(10_000), 2_000);
        agenda.note(slot("a"), at(10_090));
        let due = agenda.take_due(at(9_700), LEAD);
        assert_eq!(due, Due { slots: BTreeSet::from([slot("a")]), until: at(10_090), expected: 2_001 });
        agenda.note_exactly(slot("a"), at(9_700));
        assert_eq!(agenda.next_look(LEAD), Some(at(9_700)), "at once");
        assert_eq!(agenda.take_due(at(9_710), LEAD), Due { expected: 1, ..due }, "and as far ahead as before");
        assert_eq!(agenda.next_look(LEAD), None);
    }

    #[test]
    fn spread_fires_share_a_look_and_what_is_due_waits_for_none() {
        let mut agenda = Agenda::default();
        for ms in 0..100 {
            agenda.note(slot("a"), at(10_000 + ms));
        }
        assert_eq!(agenda.next_look(LEAD), Some(at(9_800)));
        let due = agenda.take_due(at(9_800), LEAD);
        assert_eq!(due.until, at(10_050), "50 ms together");
        assert_eq!(agenda.next_look(LEAD), Some(at(9_851)));
        // A timer that the look moved to an instant within it waits for the next one.
        agenda.note(slot("b"), at(10_010));
        assert_eq!(agenda.next_look(LEAD), Some(at(9_850)));
        assert!(agenda.take_due(at(9_849), LEAD).slots.is_empty());
        // What is due now does not.
        agenda.note(slot("c"), at(9_840));
        assert_eq!(agenda.next_look(LEAD), Some(at(9_690)));
        let due = agenda.take_due(at(9_840), LEAD);
        assert_eq!(due.slots, BTreeSet::from([slot("a"), slot("b"), slot("c")]), "and takes along what came meanwhile");
        agenda.note_exactly(slot("d"), at(9_841));
        assert_eq!(agenda.next_look(LEAD), Some(at(9_841)), "nor does what is decided at its instant");
    }

    /// Its claim is small, however much is spread around it.
    #[test]
    fn what_is_due_exactly_takes_nothing_along_that_can_wait() {
        let trigger = (Source::Trigger, Line::new("a", Priority::Medium));
        let mut agenda = Agenda::default();
        for ms in 0..200 {
            agenda.note(slot("a"), at(10_000 + ms));
        }
        agenda.take_due(at(9_800), LEAD);
        let look = agenda.next_look(LEAD).unwrap();
        agenda.note_exactly(trigger.clone(), at(9_820));
        assert_eq!(
            agenda.take_due(at(9_821), LEAD),
            Due { slots: BTreeSet::from([trigger.clone()]), until: at(10_071), expected: 1 }
        );
        assert_eq!(agenda.next_look(LEAD), Some(look), "nor does it put off the others");
        // Both are due: it goes first, but only once.
        agenda.note_exactly(trigger.clone(), look);
        assert_eq!(agenda.take_due(look, LEAD).slots, BTreeSet::from([trigger.clone()]));
        agenda.note_exactly(trigger.clone(), look);
        agenda.note_exactly(slot("b"), look);
        assert_eq!(
            agenda.take_due(look, LEAD).slots,
            BTreeSet::from([trigger, slot("a"), slot("b")]),
            "what is due together goes together"
        );
    }

    #[test]
    fn no_look_reaches_beyond_the_longest_lead() {
        let lead = Lead { base: TimeDelta::milliseconds(480), ..LEAD };
        let mut agenda = Agenda::default();
        agenda.note(slot("a"), at(10_000));
        assert_eq!(agenda.take_due(at(9_520), lead).until, at(10_020));
        let without = Lead { base: TimeDelta::zero(), ..LEAD };
        let mut agenda = Agenda::default();
        agenda.note(slot("a"), at(10_000));
        agenda.take_due(at(10_000), without);
        agenda.note(slot("a"), at(10_001));
        assert_eq!(agenda.next_look(without), Some(at(10_001)), "without a lead there is nothing to give away");
    }

    #[test]
    fn a_short_refill_replaces_the_near_and_keeps_the_far() {
        let mut agenda = Agenda::default();
        agenda.refill([(slot("gone"), at(1_000)), (slot("far"), at(9_000))]);
        agenda.refill_until(at(2_000), [(slot("new"), at(1_500)), (slot("beyond"), at(2_001))]);
        assert_eq!(agenda.next_look(LEAD), Some(at(1_300)));
        assert_eq!(agenda.take_due(at(1_300), LEAD).slots, BTreeSet::from([slot("new")]));
        assert_eq!(agenda.next_look(LEAD), Some(at(8_800)));
    }

    use proptest::prelude::*;

    proptest! {
        /// Jobs that fire again and again, each at moments of its own, none twice within `gather`: claimed in time, by no more looks than `gather` allows.
        #[test]
        fn spread_fires_are_claimed_in_time_by_few_looks(
            jobs in prop::collection::vec((1_000_i64..2_000, 60_i64..1_500), 1..60),
        ) {
            let mut pending: Vec<(i64, i64)> = jobs;
            let mut agenda = Agenda::default();
            for (fire, _) in &pending {
                agenda.note(slot("a"), at(*fire));
            }
            let (mut looks, mut now) = (0, 0);
            while let Some(look) = agenda.next_look(LEAD).map(|look| look.timestamp_millis()) && look < 4_000 {
                now = now.max(look);
                let due = agenda.take_due(at(now), LEAD);
                prop_assert!(!due.slots.is_empty(), "a look at {now} for nothing");
                looks += 1;
                for (fire, interval) in &mut pending {
                    if at(*fire) > due.until {
                        continue;
                    }
                    prop_assert!(now + 100 <= *fire, "claimed at {now}, due at {fire}");
                    *fire += *interval;
                    agenda.note(slot("a"), at(*fire));
                }
            }
            prop_assert!(pending.iter().all(|(fire, _)| *fire >= 4_000), "forgotten: {pending:?}");
            prop_assert!(looks <= (now - 800) / 50 + 2, "{looks} looks until {now}");
        }

        /// The leader in miniature: it looks when the agenda says so and at arbitrary other moments (ticks, wakes), its claims
        /// are bounded and take time. Whatever can be dispatched within the longest lead is claimed before its instant.
        #[test]
        fn a_herd_is_claimed_before_its_instant(
            herds in prop::collection::btree_map(10_000_i64..20_000, 1_u32..2_500, 1..4),
            disturbances in prop::collection::vec(0_i64..20_000, 0..40),
            batch_max in prop::sample::select(vec![100_u32, 500, 1_000]),
        ) {
            let mut last = 0;
            // Far enough apart that one does not take the other's time.
            let mut pending: BTreeMap<i64, u32> = herds.into_iter().filter(|(herd, _)| {
                let apart = herd - last > 600;
                if apart { last = *herd; }
                apart
            }).collect();
            let mut agenda = Agenda::default();
            for (herd, count) in &pending {
                agenda.note_many(slot("a"), at(*herd), *count);
            }
            let mut disturbances: BTreeSet<i64> = disturbances.into_iter().collect();
            let mut now = 0;
            while !pending.is_empty() {
                let look = agenda.next_look(LEAD).map(|look| look.timestamp_millis());
                let next = look.into_iter().chain(disturbances.first().copied()).min();
                prop_assert!(next.is_some(), "forgotten: {pending:?}");
                now = now.max(next.unwrap_or_default());
                disturbances.retain(|disturbance| *disturbance > now);
                let due = agenda.take_due(at(now), LEAD);
                if due.slots.is_empty() {
                    continue;
                }
                let mut claimed = 0;
                while claimed < batch_max
                    && let Some(mut herd) = pending.first_entry()
                    && at(*herd.key()) <= due.until
                {
                    prop_assert!(now <= *herd.key(), "claimed at {now}, due at {}", herd.key());
                    let taken = (*herd.get()).min(batch_max - claimed);
                    claimed += taken;
                    *herd.get_mut() -= taken;
                    if *herd.get() == 0 {
                        herd.remove();
                    }
                }
                if claimed == batch_max {
                    agenda.note_exactly(slot("a"), at(now));
                }
                now += i64::from(claimed) / 10;
            }
        }
    }
}
