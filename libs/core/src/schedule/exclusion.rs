//! What is taken out of a timetable: whole local days, or the minutes that a cron pattern matches.
//!
//! An exclusion answers one question: is this instant out, and if so, when is the first moment at which that may have
//! changed? The second half lets a search leap over a holiday or a closed night instead of trying every instant in it.
//! Where the asker is a cron line of the same zone, the leap is longer still: a pattern that holds all of the line's
//! minutes (or hours) holds whole hours (or days) as far as that line can tell.

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
    /// If the UTC second `at` is out: the next second, strictly later, at which an instant may be in again. `asker` is the
    /// cron line that has an instant at `at`, if it is one, with its zone.
    pub(crate) fn until(&self, at: i64, asker: Option<(&CronLine, &Zone)>) -> Option<i64> {
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
                let asker = asker.filter(|(_, zone)| std::ptr::eq(*zone, &*self.zone)).map(|(asker, _)| asker);
                leave(line, civil, asker)
            }
        };
        // At a change of the clocks civil time jumps, and a time that the jump swallowed may fire: look again there.
        Some((civil_until - offset).min(self.zone.end(index)))
    }
}

/// The first civil second after `civil`, which matches, at which a pattern may no longer hold what the asker has.
fn leave(pattern: &CronLine, civil: i64, asker: Option<&CronLine>) -> i64 {
    let day = civil.div_euclid(DAY) * DAY;
    let second_of_day = civil.rem_euclid(DAY);
    let (hour, minute) = (second_of_day / 3_600, second_of_day / 60 % 60);
    let (minutes, hours) = asker.map_or((ALL_60, ALL_HOURS), |asker| (asker.minutes, asker.hours));
    if minutes & !pattern.minutes != 0 {
        // The next minute of the hour that the pattern lacks, or the hour's end.
        let run = (pattern.minutes >> minute).trailing_ones();
        return day + hour * 3_600 + (minute + i64::from(run)).min(60) * 60;
    }
    if hours & !pattern.hours != 0 {
        let run = (pattern.hours >> hour).trailing_ones();
        return day + (hour + i64::from(run)).min(24) * 3_600;
    }
    day + DAY
}
