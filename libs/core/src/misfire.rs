//! Which instant a due timer fires, and where the timer moves.
//!
//! Ordinarily: the instant it stands at, and the timer moves to the next one, even if that is due too (a slow part makes
//! fires late, never missing). Only where the scheduler was down, or the job paused, for so long that the instant is older
//! than the misfire threshold, the rule FIRE_ONCE holds: everything missed is made up for by one fire, of the latest
//! instant.

use chrono::{DateTime, TimeDelta, Utc};

use crate::schedule::Timetable;

/// What a due timer leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The instant that fires.
    pub fire: DateTime<Utc>,
    /// Where the timer stands afterwards; `None` = nothing is to come.
    pub next: Option<DateTime<Utc>>,
    /// Set where instants were missed: from the first of them. `fire` stands for all until itself.
    pub missed_from: Option<DateTime<Utc>>,
}

/// Decides it for a timer that stands at `fire_at`.
pub fn resolve(timetable: &Timetable, fire_at: DateTime<Utc>, now: DateTime<Utc>, threshold: TimeDelta) -> Due {
    if now - fire_at > threshold
        && let Some(latest) = timetable.last_at_or_before(now, fire_at)
        && latest > fire_at
    {
        return Due { fire: latest, next: timetable.next_after(latest), missed_from: Some(fire_at) };
    }
    Due { fire: fire_at, next: timetable.next_after(fire_at), missed_from: None }
}

/// Where the timer of a job stands that is resumed at `now`; at its pause it stood at `held_at`. If that is past, the latest
/// instant that was missed is made up for.
pub fn resume(timetable: &Timetable, held_at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    if held_at > now {
        return held_at;
    }
    timetable.last_at_or_before(now, held_at).unwrap_or(held_at)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::schedule::TimetableSpec;
    use uuid::Uuid;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    fn every_second() -> Timetable {
        Timetable::parse(&TimetableSpec::every(Duration::from_secs(1), at(0)), Uuid::nil()).unwrap()
    }

    const THRESHOLD: TimeDelta = TimeDelta::seconds(30);

    #[test]
    fn what_is_a_little_late_fires_every_instant() {
        let due = resolve(&every_second(), at(5_000), at(9_500), THRESHOLD);
        assert_eq!(due, Due { fire: at(5_000), next: Some(at(6_000)), missed_from: None });
    }

    #[test]
    fn a_long_outage_leads_to_one_fire_of_the_latest_instant() {
        let due = resolve(&every_second(), at(5_000), at(100_400), THRESHOLD);
        assert_eq!(due, Due { fire: at(100_000), next: Some(at(101_000)), missed_from: Some(at(5_000)) });
    }

    #[test]
    fn a_single_missed_instant_fires_as_itself() {
        let once = Timetable::parse(&TimetableSpec::once(at(5_000)), Uuid::nil()).unwrap();
        let due = resolve(&once, at(5_000), at(900_000), THRESHOLD);
        assert_eq!(due, Due { fire: at(5_000), next: None, missed_from: None });
    }

    #[test]
    fn a_resumed_job_makes_up_for_the_latest_missed_instant() {
        assert_eq!(resume(&every_second(), at(5_000), at(9_500)), at(9_000));
        assert_eq!(resume(&every_second(), at(6_000), at(5_500)), at(6_000), "nothing was missed");
        assert_eq!(resume(&every_second(), at(5_000), at(5_000)), at(5_000));
    }
}
