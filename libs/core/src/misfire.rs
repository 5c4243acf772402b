//! Which instant a due timer fires, and where the timer moves.
//!
//! Ordinarily: the instant it stands at, and the timer moves to the next one, even if that is due too (a slow part makes
//! fires late, never missing). Only where the scheduler was down, or the job paused, for so long that the instant is older
//! than the misfire threshold, the rule FIRE_ONCE holds: everything missed is made up for by one fire, of the latest
//! instant.

use chrono::{DateTime, TimeDelta, Utc};

use crate::schedule::{Next, Timetable};

/// What a due timer leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The instant that fires. `None`: the timer stood where a search had been cut, and nothing fires there.
    pub fire: Option<DateTime<Utc>>,
    /// Where the timer stands afterwards; `None` = nothing is to come.
    pub next: Option<DateTime<Utc>>,
    /// Set where instants were missed: from the first of them. `fire` stands for all until itself.
    pub missed_from: Option<DateTime<Utc>>,
}

/// Decides it for a timer that stands at `fire_at`.
pub fn resolve(timetable: &Timetable, fire_at: DateTime<Utc>, now: DateTime<Utc>, threshold: TimeDelta) -> Due {
    // Only a cut search leaves a timer at an excluded instant. It goes on from there; what it finds may be due too, and then
    // it is treated as what it is when the timer comes up again.
    if timetable.excludes(fire_at) {
        return Due { fire: None, next: timetable.next_after(fire_at).timer(), missed_from: None };
    }
    if now - fire_at > threshold
        && let Some(latest) = timetable.last_at_or_before(now, fire_at)
        && latest > fire_at
    {
        return Due { fire: Some(latest), next: timetable.next_after(latest).timer(), missed_from: Some(fire_at) };
    }
    Due { fire: Some(fire_at), next: timetable.next_after(fire_at).timer(), missed_from: None }
}

/// Where the timer of a job stands that is resumed at `now`; at its pause it stood at `held_at`. If that is past, the latest
/// instant that was missed is made up for.
pub fn resume(timetable: &Timetable, held_at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    if held_at > now {
        return held_at;
    }
    timetable.last_at_or_before(now, held_at).unwrap_or(held_at)
}

/// What is still due of a job whose timetable is changed at `now` from `old` to `new`; its timer stood at `stood_at`.
///
/// What was due before and had not fired yet is still due where `new` has it too. An instant of the past that only `new` has is
/// none that was missed, so where there is one, what is before it is let go. `None`: the timer goes on with what is to come.
pub fn still_due(
    old: &Timetable,
    new: &Timetable,
    stood_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let mut from = None;
    let mut at = stood_at;
    let mut is_in_new = fires_at(new, at);
    for _ in 0..MISSED_MAX {
        if at > now {
            return from;
        }
        if is_in_new {
            from = if fires_at(old, at) { from.or(Some(at)) } else { None };
        }
        let Next::Fire(next) = new.next_after(at) else { return from };
        (at, is_in_new) = (next, true);
    }
    // So many that one fire will stand for all.
    new.last_at_or_before(now, stood_at).filter(|at| fires_at(old, *at))
}

/// Instants that a change looks at: of the thirty seconds after which one fire stands for all, by the shortest interval, there are
/// 300.
const MISSED_MAX: usize = 500;

/// Whether `at` is one of a timetable's instants.
pub fn fires_at(timetable: &Timetable, at: DateTime<Utc>) -> bool {
    timetable.last_at_or_before(at, at) == Some(at)
}

/// By how much a change of a zone's rules moves an instant, at most: a zone may change sides of the date line.
const MOVED_MAX: TimeDelta = TimeDelta::hours(26);

/// Where a timer moves that stands at `stood_at`, still to come at `now`, if the rules of its time zone are others than those by
/// which it was reckoned; `None`: it stays.
///
/// To the first instant to come. But where the instant that it stood at has become one that is past by now (the nearest says
/// so), that one is due at once, or it would never fire; unless it lies before `since`, when the job was made, changed or
/// resumed. A search that is cut says nothing, and neither does one that finds nothing to come: the timer fires where it stands.
pub fn reckon_anew(
    timetable: &Timetable,
    stood_at: DateTime<Utc>,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let next = timetable.next_after(now).fire().filter(|next| *next != stood_at)?;
    let earlier = timetable.last_at_or_before(now, (stood_at - MOVED_MAX).max(since + TimeDelta::milliseconds(1)));
    let to = earlier.filter(|at| stood_at - *at <= (next - stood_at).abs()).unwrap_or(next);
    (!timetable.was_cut()).then_some(to)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::schedule::{Exclusion, TimetableSpec};
    use uuid::Uuid;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    fn every_second() -> Timetable {
        Timetable::parse(&TimetableSpec::every(Duration::from_secs(1), at(0)), Uuid::nil()).unwrap()
    }

    const THRESHOLD: TimeDelta = TimeDelta::seconds(30);

    #[test]
    fn what_was_due_is_due_by_a_changed_timetable_where_that_has_it_too() {
        let every = |seconds| {
            Timetable::parse(&TimetableSpec::every(Duration::from_secs(seconds), at(0)), Uuid::nil()).unwrap()
        };
        let due = |new: &Timetable, stood_at, now| still_due(&every(10), new, at(stood_at), at(now));
        assert_eq!(due(&every(3), 20_000, 11_000), None, "nothing was due");
        assert_eq!(due(&every(5), 10_000, 11_000), Some(at(10_000)));
        assert_eq!(due(&every(10), 10_000, 39_000), Some(at(10_000)), "all of them");
        assert_eq!(due(&every(15), 10_000, 39_000), Some(at(30_000)), "15 000 was not missed");
        assert_eq!(due(&every(10), 10_000, 900_000_000), Some(at(900_000_000)), "too many to look at");
        // What only one of both has was not missed.
        assert_eq!(due(&every(7), 10_000, 20_500), None);
        let once = |ms| Timetable::parse(&TimetableSpec::once(at(ms)), Uuid::nil()).unwrap();
        assert_eq!((due(&once(5_000), 10_000, 11_000), due(&once(10_000), 10_000, 11_000)), (None, Some(at(10_000))));
    }

    #[test]
    fn what_is_a_little_late_fires_every_instant() {
        let due = resolve(&every_second(), at(5_000), at(9_500), THRESHOLD);
        assert_eq!(due, Due { fire: Some(at(5_000)), next: Some(at(6_000)), missed_from: None });
    }

    #[test]
    fn a_long_outage_leads_to_one_fire_of_the_latest_instant() {
        let due = resolve(&every_second(), at(5_000), at(100_400), THRESHOLD);
        assert_eq!(due, Due { fire: Some(at(100_000)), next: Some(at(101_000)), missed_from: Some(at(5_000)) });
    }

    #[test]
    fn a_single_missed_instant_fires_as_itself() {
        let once = Timetable::parse(&TimetableSpec::once(at(5_000)), Uuid::nil()).unwrap();
        let due = resolve(&once, at(5_000), at(900_000), THRESHOLD);
        assert_eq!(due, Due { fire: Some(at(5_000)), next: None, missed_from: None });
    }

    /// A cut search's timer stands at an excluded instant: nothing fires there, however late it is, and the search goes on.
    #[test]
    fn an_excluded_instant_only_moves_the_timer() {
        let mut spec = TimetableSpec::every(Duration::from_secs(1), at(0));
        spec.exclusions = vec![Exclusion::cron("0-4 0 1 1 *")];
        let timetable = Timetable::parse(&spec, Uuid::nil()).unwrap();
        for now in [at(5_000), at(900_000)] {
            let due = resolve(&timetable, at(5_000), now, THRESHOLD);
            assert_eq!(due, Due { fire: None, next: Some(at(300_000)), missed_from: None });
        }
        // What it found is due by now, too, and is treated as anything late.
        let due = resolve(&timetable, at(300_000), at(900_000), THRESHOLD);
        assert_eq!(due, Due { fire: Some(at(900_000)), next: Some(at(901_000)), missed_from: Some(at(300_000)) });
        // A job that was paused there: its timer stays, and the claim moves it.
        assert_eq!(resume(&timetable, at(5_000), at(6_000)), at(5_000));
    }

    /// Daily at nine, of a zone that is so many minutes ahead of UTC by now; day 0 is 1 January 1970.
    fn daily(ahead: i64) -> (Timetable, impl Fn(i64, i64) -> DateTime<Utc>) {
        let anchor = at((9 * 60 - ahead) * 60_000);
        let spec = TimetableSpec::every(Duration::from_secs(24 * 60 * 60), anchor);
        let utc = |day: i64, minutes: i64| at((day * 24 * 60 + minutes) * 60_000);
        (Timetable::parse(&spec, Uuid::nil()).unwrap(), utc)
    }

    #[test]
    fn what_is_to_come_is_reckoned_by_the_new_rules() {
        // It was an hour ahead: nine o'clock was eight.
        for (ahead, expected) in [(60, None), (0, Some(540)), (30, Some(510)), (90, Some(450)), (-120, Some(660))] {
            let (timetable, utc) = daily(ahead);
            let anew = reckon_anew(&timetable, utc(5, 480), utc(0, 0), utc(5, 400));
            assert_eq!(anew, expected.map(|minutes| utc(5, minutes)), "{ahead} ahead");
        }
        // Fired today already, and the next is not today's again but for who is later now.
        let (timetable, utc) = daily(120);
        assert_eq!(reckon_anew(&timetable, utc(6, 480), utc(0, 0), utc(5, 500)), Some(utc(6, 420)));
    }

    #[test]
    fn an_instant_that_has_become_a_past_one_is_due_at_once_unless_it_is_older_than_the_job() {
        let (timetable, utc) = daily(120);
        assert_eq!(reckon_anew(&timetable, utc(5, 480), utc(0, 0), utc(5, 450)), Some(utc(5, 420)));
        assert_eq!(reckon_anew(&timetable, utc(5, 480), utc(5, 420), utc(5, 450)), Some(utc(6, 420)));
        let (timetable, utc) = daily(60);
        assert_eq!(reckon_anew(&timetable, utc(5, 480), utc(0, 0), utc(5, 479)), None, "not changed");
    }

    #[test]
    fn a_timer_stays_where_nothing_is_to_come_or_the_search_for_it_is_cut() {
        let mut spec = TimetableSpec::every(Duration::from_secs(1), at(0));
        spec.end = Some(at(10_000));
        let ended = Timetable::parse(&spec, Uuid::nil()).unwrap();
        assert_eq!(reckon_anew(&ended, at(90_000_000), at(0), at(80_000_000)), None);
        spec.end = None;
        spec.exclusions = vec![Exclusion::cron("* * * * 1-6"), Exclusion::cron("* * * * 0")];
        let dear = Timetable::parse_accepted(&spec, Uuid::nil(), 10).unwrap();
        assert_eq!(reckon_anew(&dear, at(90_000_000), at(0), at(5_000)), None);
        assert!(dear.was_cut());
    }

    #[test]
    fn a_resumed_job_makes_up_for_the_latest_missed_instant() {
        assert_eq!(resume(&every_second(), at(5_000), at(9_500)), at(9_000));
        assert_eq!(resume(&every_second(), at(6_000), at(5_500)), at(6_000), "nothing was missed");
        assert_eq!(resume(&every_second(), at(5_000), at(5_000)), at(5_000));
    }
}
