//! What is taken out of a timetable: whole local days, or the minutes that cron patterns match.
//!
//! The exclusions of one time zone are kept together, since they share a wall clock. They answer one question: is this
//! instant out, and if so, when is the first moment at which the asker may have one that is in again? The second half is
//! what keeps a search short:
//!
//! - **Days** are sorted and merged into ranges that do not touch, so a thousand holidays cost one binary search, and what
//!   falls into one is carried to its end at once.
//! - **Patterns** of a zone are laid over each other for the day in question, so what several of them close together is
//!   left in one leap, too: to the next minute of the day that all of them leave open *and* that the asker can have, or to
//!   midnight, or to the next month.
//!
//! No leap goes over a change of the clocks unless whole days are out on both sides of it: at a change civil time jumps,
//! and a time that the jump swallowed may fire.

use std::sync::Arc;

use super::civil::{self, DAY};
use super::cron::{ALL_60, CronLine, bits};
use super::zone::Zone;

/// A parsed exclusion.
#[derive(Debug)]
pub(crate) enum What {
    /// Days since 1970-01-01, both included.
    Days(Days),
    /// A five-field pattern, whole minutes.
    Pattern(CronLine),
}

/// Days since 1970-01-01, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Days {
    pub(crate) from: i64,
    pub(crate) to: i64,
}

/// All exclusions of a timetable.
#[derive(Debug, Default)]
pub(crate) struct Exclusions(Box<[Closed]>);

/// Those that are read in one time zone.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) zone: Arc<Zone>,
    /// In order; between two of them lies at least one day.
    pub(crate) days: Box<[Days]>,
    pub(crate) patterns: Box<[CronLine]>,
}

/// What is known of the instants of whoever asks: they lie in these minutes of the hour, as UTC counts them, until some
/// second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) minutes: u64,
    pub(crate) until: i64,
}

impl Asker {
    /// Nothing is known.
    pub(crate) const ANY: Asker = Asker { minutes: ALL_60, until: i64::MAX };
}

impl Exclusions {
    pub(crate) fn new(parsed: Vec<(Arc<Zone>, What)>) -> Self {
        let mut zones: Vec<(Arc<Zone>, Vec<Days>, Vec<CronLine>)> = Vec::new();
        for (zone, what) in parsed {
            let index = zones.iter().position(|(known, ..)| Arc::ptr_eq(known, &zone)).unwrap_or_else(|| {
                zones.push((zone, Vec::new(), Vec::new()));
                zones.len() - 1
            });
            match what {
                What::Days(days) => zones[index].1.push(days),
                What::Pattern(pattern) if !zones[index].2.contains(&pattern) => zones[index].2.push(pattern),
                What::Pattern(_) => {}
            }
        }
        let closed = |(zone, days, patterns): (_, Vec<Days>, Vec<_>)| Closed {
            zone,
            days: merged(days).into_boxed_slice(),
            patterns: patterns.into_boxed_slice(),
        };
        Self(zones.into_iter().map(closed).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn zones(&self) -> &[Closed] {
        &self.0
    }

    /// Whether the UTC second `at` is out.
    pub(crate) fn hold(&self, at: i64) -> bool {
        self.0.iter().any(|closed| closed.holds(at + i64::from(closed.zone.offset(at))))
    }

    /// Whether a local time that `zone` skipped at the UTC second `at` would have been out: by the exclusions of that
    /// zone if they hold the time itself, by those of others if they hold the moment.
    pub(crate) fn hold_skipped(&self, zone: &Zone, civil: i64, at: i64) -> bool {
        let shown = |closed: &Closed| {
            if std::ptr::eq(&*closed.zone, zone) { civil } else { at + i64::from(closed.zone.offset(at)) }
        };
        self.0.iter().any(|closed| closed.holds(shown(closed)))
    }

    /// If the UTC second `at` is out: the next second, strictly later, at which the asker may have an instant that is in.
    /// `looks` is counted up by what the answer cost.
    pub(crate) fn until(&self, at: i64, asker: impl FnOnce() -> Asker, looks: &mut usize) -> Option<i64> {
        let mut asker = Some(asker);
        let mut known = None;
        let mut until = None;
        for closed in &self.0 {
            let index = closed.zone.index(at);
            let offset = i64::from(closed.zone.span(index)?.offset);
            let civil = at + offset;
            *looks += 1;
            let days = closed.days_at(civil).map(|days| closed.end_of_days(days, index));
            *looks += closed.patterns.len();
            let minutes = closed.patterns.iter().any(|pattern| pattern.matches_minute(civil)).then(|| {
                *looks += 2 * closed.patterns.len();
                let asker = *known.get_or_insert_with(|| asker.take().map_or(Asker::ANY, |asker| asker()));
                let next = closed.next_open(civil, turned(asker.minutes, offset)) - offset;
                next.min(closed.zone.end(index)).min(asker.until)
            });
            until = until.max(days).max(minutes);
        }
        until
    }
}

impl Closed {
    fn holds(&self, civil: i64) -> bool {
        self.days_at(civil).is_some() || self.patterns.iter().any(|pattern| pattern.matches_minute(civil))
    }

    fn days_at(&self, civil: i64) -> Option<Days> {
        let day = civil.div_euclid(DAY);
        let index = self.days.partition_point(|days| days.to < day);
        self.days.get(index).filter(|days| days.from <= day).copied()
    }

    /// The wall shows one of `days` at some second of span `index`: the first later one at which it shows none of them.
    fn end_of_days(&self, days: Days, mut index: usize) -> i64 {
        let end = (days.to + 1) * DAY;
        loop {
            let Some(span) = self.zone.span(index) else { return i64::MAX };
            let border = self.zone.end(index);
            let midnight = end - i64::from(span.offset);
            if midnight < border {
                return midnight;
            }
            index += 1;
            // Clocks that go back may show a day before the first; ones that go forward, one after the last.
            let shown = self.zone.span(index).map(|next| (border + i64::from(next.offset)).div_euclid(DAY));
            if shown.is_none_or(|day| day < days.from || day > days.to) {
                return border;
            }
        }
    }

    /// The first civil minute of the day after `civil` that no pattern holds and that is one of `minutes`; if there is none,
    /// the next midnight, or the first of the next month if the whole month is so.
    fn next_open(&self, civil: i64, minutes: u64) -> i64 {
        let day = civil.div_euclid(DAY);
        let closed = self.closed_hours(|pattern| pattern.matches_day(day));
        let second = civil.rem_euclid(DAY);
        let mut later = ALL_60 << (second / 60 % 60) << 1;
        for (hour, closed) in (0_i64..).zip(closed).skip((second / 3_600) as usize) {
            let open = minutes & !closed & later;
            if open != 0 {
                return day * DAY + hour * 3_600 + i64::from(open.trailing_zeros()) * 60;
            }
            later = ALL_60;
        }
        let all_month = self.closed_hours(|pattern| pattern.is_of_every_day() && pattern.matches_day(day));
        if all_month.iter().any(|closed| minutes & !closed != 0) {
            return (day + 1) * DAY;
        }
        let (year, month, day_of_month) = civil::civil_from_days(day);
        (day + i64::from(civil::month_length(year, month) - day_of_month) + 1) * DAY
    }

    /// The minutes that those of the patterns hold, hour by hour.
    fn closed_hours(&self, counts: impl Fn(&CronLine) -> bool) -> [u64; 24] {
        let mut closed = [0; 24];
        for pattern in self.patterns.iter().filter(|pattern| counts(pattern)) {
            for hour in bits(pattern.hours) {
                closed[hour as usize] |= pattern.minutes;
            }
        }
        closed
    }
}

/// Minutes of the hour, as UTC counts them, as a clock with this offset counts them.
pub(crate) fn turned(minutes: u64, offset: i64) -> u64 {
    if offset % 60 != 0 {
        return ALL_60;
    }
    let by = (offset / 60).rem_euclid(60);
    (minutes << by | minutes >> (60 - by)) & ALL_60
}

fn merged(mut days: Vec<Days>) -> Vec<Days> {
    days.sort_unstable_by_key(|days| days.from);
    let mut merged: Vec<Days> = Vec::with_capacity(days.len());
    for next in days {
        match merged.last_mut() {
            Some(last) if next.from <= last.to + 1 => last.to = last.to.max(next.to),
            _ => merged.push(next),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_that_touch_are_one_range() {
        let days = |from, to| Days { from, to };
        let found = merged(vec![days(5, 5), days(1, 2), days(3, 3), days(9, 9), days(8, 20), days(10, 11)]);
        assert_eq!(found, [days(1, 3), days(5, 5), days(8, 20)]);
    }

    #[test]
    fn minutes_turn_with_the_offset() {
        assert_eq!(turned(1 << 5, 3_600), 1 << 5);
        assert_eq!(turned(1 << 5, 5 * 3_600 + 1_800), 1 << 35);
        assert_eq!(turned(1 << 5, -900), 1 << 50);
        assert_eq!(turned(ALL_60, -2_700), ALL_60);
        assert_eq!(turned(1, -44 * 60 - 30), ALL_60, "an offset of half minutes says nothing");
    }
}
