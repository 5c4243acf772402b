//! The ranges of days that a list of executions goes through: each statement touches the partitions of one range alone. One day
//! at first, then ever more; what lies far away, in the future or long ago, is one range, since little lies there.

use carillon_core::ids;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::scan::Direction;

/// What is scheduled later than this is one range. A day more than what is claimed ahead needs, for clocks that differ.
const AHEAD_MAX: TimeDelta = TimeDelta::days(2);
/// Days in one range, at most; what is older is one range.
const DAYS_MAX: u64 = 64;

/// What is to be gone through, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    direction: Direction,
    least: Uuid,
    /// The end, exclusive.
    most: Uuid,
    future: Uuid,
    now: Uuid,
    days: u64,
}

/// Ids from `from` to before `below`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from: Uuid,
    pub(super) below: Uuid,
    /// It is none of those that lie far away.
    pub(super) is_of_days: bool,
}

impl Ranges {
    /// From `least` to before `most`.
    pub(super) fn new(direction: Direction, least: Uuid, most: Uuid, now: DateTime<Utc>) -> Self {
        Self { direction, least, most, future: ids::first_at(now + AHEAD_MAX), now: ids::first_at(now), days: 1 }
    }

    /// The same, without what is to come.
    pub(super) fn until_now(self) -> Self {
        Self { most: self.most.min(self.future), ..self }
    }

    /// The next range, behind an id.
    pub(super) fn next(&self, behind: Option<Uuid>) -> Range {
        let (from, below) = self.direction.rest(self.least, self.most, behind);
        match self.direction {
            Direction::Descending if below > self.future => {
                Range { from: from.max(self.future), below, is_of_days: false }
            }
            Direction::Descending => Range { from: from.max(days_before(below, self.days)), below, is_of_days: true },
            Direction::Ascending if from >= self.future => Range { from, below, is_of_days: false },
            Direction::Ascending => {
                let recent = days_before(self.now, DAYS_MAX);
                let is_of_days = from >= recent;
                let end = if is_of_days { days_after(from, self.days).min(self.future) } else { recent };
                Range { from, below: below.min(end), is_of_days }
            }
        }
    }

    /// All of a range was looked at: behind which id there may be more.
    pub(super) fn done(&mut self, range: Range) -> Option<Uuid> {
        if range.is_of_days {
            self.days = self.days.saturating_mul(2).min(DAYS_MAX + 1);
        }
        match self.direction {
            Direction::Descending => (range.from > self.least).then_some(range.from),
            Direction::Ascending => (range.below < self.most).then(|| Uuid::from_u128(range.below.as_u128() - 1)),
        }
    }
}

/// The first id of the day that lies `days` before the one of the last id below `below`.
fn days_before(below: Uuid, days: u64) -> Uuid {
    if days > DAYS_MAX {
        return Uuid::nil();
    }
    let day = ids::day(Uuid::from_u128(below.as_u128().saturating_sub(1)));
    ids::first_of_day(day.saturating_sub(days - 1))
}

/// The first id of the day that lies `days` after the one of `from`.
fn days_after(from: Uuid, days: u64) -> Uuid {
    ids::first_of_day(ids::day(from).saturating_add(days))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64, ms: i64) -> DateTime<Utc> {
        DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(days) + TimeDelta::milliseconds(ms)
    }

    fn first(days: i64) -> Uuid {
        ids::first_at(at(days, 0))
    }

    #[test]
    fn ranges_of_days_grow_and_the_last_one_is_all_that_is_older() {
        let noon = ids::execution_for_fire(Uuid::nil(), at(100, 43_200_000));
        assert_eq!(days_before(noon, 1), first(100));
        assert_eq!(days_before(noon, 4), first(97));
        assert_eq!(days_before(first(100), 1), first(99), "a whole day lies below its first id");
        assert_eq!(days_before(noon, 128), Uuid::nil());
        assert_eq!(days_before(ids::execution_for_fire(Uuid::nil(), at(0, 5)), 1), Uuid::nil());
        assert_eq!((days_after(noon, 1), days_after(first(100), 2)), (first(101), first(102)));
    }

    /// All ranges, gone through whole.
    fn all(direction: Direction, least: Uuid, most: Uuid) -> Vec<Range> {
        let mut ranges = Ranges::new(direction, least, most, at(1_000, 7));
        let (mut found, mut behind) = (Vec::new(), None);
        loop {
            let range = ranges.next(behind);
            assert!(range.from <= range.below, "{range:?}");
            found.push(range);
            match ranges.done(range) {
                Some(id) => behind = Some(id),
                None => return found,
            }
            assert!(found.len() < 40, "{found:?}");
        }
    }

    #[test]
    fn ranges_leave_out_nothing_and_overlap_nowhere_either_way() {
        for (least, most) in [
            (Uuid::nil(), Uuid::max()),
            (first(900), first(1_001)),
            (first(100), first(200)),
            (first(2_000), Uuid::max()),
        ] {
            let down = all(Direction::Descending, least, most);
            assert_eq!((down[0].below, down[down.len() - 1].from), (most, least));
            assert!(down.windows(2).all(|pair| pair[0].from == pair[1].below), "{down:?}");
            let up = all(Direction::Ascending, least, most);
            assert_eq!((up[0].from, up[up.len() - 1].below), (least, most));
            assert!(up.windows(2).all(|pair| pair[0].below == pair[1].from), "{up:?}");
        }
        let up = all(Direction::Ascending, Uuid::nil(), Uuid::max());
        let day_ends: Vec<Uuid> = [937, 938, 940, 944, 952, 968, 1_000].map(first).to_vec();
        assert_eq!(up.iter().take(7).map(|range| range.below).collect::<Vec<_>>(), day_ends);
    }
}
