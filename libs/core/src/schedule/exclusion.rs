//! What is taken out of a timetable: whole local days, or the minutes that a cron pattern matches.
//!
//! An exclusion answers one question: is this instant out, and if so, when is the first moment at which that may have
//! changed? The second half lets a search leap over a holiday or a closed night instead of trying every instant in it.

use std::sync::Arc;

use super::civil::DAY;
use super::cron::{ALL_60, ALL_HOURS, CronLine};
use super::zone::Zone;

/// A parsed exclusion.
#[derive(Clone, Debug)]
pub(crate) struct Excluded {
    pub(crate) zone: Arc<Zone>,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Days since 1970-01-01, both included.
    Days { from: i64, to: i64 },
    /// A five-field pattern, whole minutes.
    Pattern(CronLine),
}

impl Excluded {
    /// If the UTC second `at` is out: the next second, strictly later, at which it may be in again.
    pub(crate) fn until(&self, at: i64) -> Option<i64> {
        let index = self.zone.index(at);
        let offset = i64::from(self.zone.span(index)?.offset);
        let civil = at + offset;
        let civil_until = match &self.what {
            What::Days { from, to } => {
                let day = civil.div_euclid(DAY);
                if day < *from || day > *to {
                    return None;
                }
                (to + 1) * DAY
            }
            What::Pattern(line) => {
                if !line.matches_minute(civil) {
                    return None;
                }
                leave(line, civil)
            }
        };
        // At a change of the clocks civil time jumps: look again there.
        Some((civil_until - offset).min(self.zone.end(index)))
    }
}

/// The first civil second after `civil`, which matches, at which a pattern may no longer match.
fn leave(line: &CronLine, civil: i64) -> i64 {
    let day = civil.div_euclid(DAY) * DAY;
    let second_of_day = civil.rem_euclid(DAY);
    let (hour, minute) = (second_of_day / 3_600, second_of_day / 60 % 60);
    if line.minutes != ALL_60 {
        // The next minute of the hour that the pattern lacks, or the hour's end.
        let run = (line.minutes >> minute).trailing_ones();
        return day + hour * 3_600 + (minute + i64::from(run)).min(60) * 60;
    }
    if line.hours != ALL_HOURS {
        let run = (line.hours >> hour).trailing_ones();
        return day + (hour + i64::from(run)).min(24) * 3_600;
    }
    day + DAY
}
