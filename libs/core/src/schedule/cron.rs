//! One parsed cron line, and the search for its next civil instant: what the wall clock must show, with no zone in it.
//!
//! Each field is a set of bits, so a search is a few shifts per level: within the day by second, minute, hour; over days
//! by making one mask of a month's matching days and taking its lowest bit. The longest search is one pass over the
//! months of [`civil::YEARS`]; nothing loops longer, whatever the line.
//!
//! Why not the `cron` crate's own stepping: see `docs/decisions/0002-cron-crate.md`.

use super::civil::{self, DAY, YEARS};

/// A parsed line. What five-field lines do not have sits behind one pointer, since a leader keeps many of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CronLine {
    pub(crate) seconds: u64,
    pub(crate) minutes: u64,
    pub(crate) hours: u32,
    /// Bit d: day d of the month.
    pub(crate) days: u32,
    /// Bit m: month m.
    pub(crate) months: u16,
    /// Bit 0: Sunday.
    pub(crate) weekdays: u8,
    pub(crate) flags: Flags,
    pub(crate) extra: Option<Box<Extra>>,
}

/// How the fields were written, where that matters beyond the values they allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    /// The minute field begins with `*`.
    pub(crate) const MINUTE_STAR: Flags = Flags(1);
    /// The hour field begins with `*`.
    pub(crate) const HOUR_STAR: Flags = Flags(2);
    /// The day-of-month field begins with `*` or is `?`.
    pub(crate) const DAY_STAR: Flags = Flags(4);
    /// The weekday field begins with `*` or is `?`.
    pub(crate) const WEEKDAY_STAR: Flags = Flags(8);
    /// Some value was chosen by `H`.
    pub(crate) const HASHED: Flags = Flags(16);

    pub(crate) fn has(self, flag: Flags) -> bool {
        self.0 & flag.0 != 0
    }

    pub(crate) fn set(&mut self, flag: Flags) {
        self.0 |= flag.0;
    }
}

/// The rarer forms of the day fields, and the years.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extra {
    /// Bit n: `L-n`, n days before the last of the month; bit 0: `L`.
    pub(crate) from_last: u32,
    /// Bit d: `dW`, the weekday (Monday to Friday) nearest to day d, within the month.
    pub(crate) nearest: u32,
    /// `LW`: the last Monday-to-Friday day of the month.
    pub(crate) last_workday: bool,
    /// Bit w: `wL`, the last such weekday of the month.
    pub(crate) last_weekdays: u8,
    /// `w#n`: bit w of element n-1.
    pub(crate) nth_weekdays: [u8; 5],
    /// `None`: every year.
    pub(crate) years: Option<YearSet>,
}

/// A set of years within [`YEARS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct YearSet([u64; 7]);

impl YearSet {
    pub(crate) fn insert(&mut self, year: i32) {
        let index = (year - YEARS.start()).unsigned_abs() as usize;
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub(crate) fn contains(&self, year: i32) -> bool {
        let index = (year - YEARS.start()).unsigned_abs() as usize;
        YEARS.contains(&year) && self.0[index / 64] & (1 << (index % 64)) != 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        YEARS.filter(|year| self.contains(*year))
    }
}

/// All values of a field.
pub(crate) const ALL_60: u64 = (1 << 60) - 1;
pub(crate) const ALL_HOURS: u32 = (1 << 24) - 1;
pub(crate) const ALL_DAYS: u32 = u32::MAX << 1;
pub(crate) const ALL_MONTHS: u16 = 0b1_1111_1111_1110;
pub(crate) const ALL_WEEKDAYS: u8 = 0b111_1111;

impl CronLine {
    /// Whether it is of fixed times, for which Debian cron makes up what a change of the clocks swallows.
    pub(crate) fn is_fixed_time(&self) -> bool {
        !self.flags.has(Flags::MINUTE_STAR) && !self.flags.has(Flags::HOUR_STAR)
    }

    /// The first matching civil second of [`YEARS`] at or after `from`.
    pub(crate) fn next_civil(&self, from: i64) -> Option<i64> {
        if from > civil::LAST {
            return None;
        }
        let from = from.max(civil::FIRST);
        let (day, second_of_day) = (from.div_euclid(DAY), from.rem_euclid(DAY));
        let (year, month, day_of_month) = civil::civil_from_days(day);
        if self.matches_month(year, month)
            && self.month_mask(year, month, day - i64::from(day_of_month) + 1) & (1 << day_of_month) != 0
            && let Some(second) = self.next_in_day(second_of_day)
        {
            return Some(day * DAY + second);
        }
        Some(self.next_day(year, month, day_of_month + 1)? * DAY + self.next_in_day(0)?)
    }

    /// Whether a civil second matches, seconds left aside. A line without years matches in any year: what is excluded need not
    /// lie in those of schedules.
    pub(crate) fn matches_minute(&self, civil: i64) -> bool {
        let second_of_day = civil.rem_euclid(DAY);
        self.hours & (1 << (second_of_day / 3_600)) != 0
            && self.minutes & (1 << (second_of_day / 60 % 60)) != 0
            && self.matches_day(civil.div_euclid(DAY))
    }

    /// Whether a civil second matches.
    pub(crate) fn matches(&self, civil: i64) -> bool {
        self.seconds & (1 << civil.rem_euclid(60)) != 0 && self.matches_minute(civil)
    }

    pub(crate) fn matches_day(&self, day: i64) -> bool {
        let (year, month, day_of_month) = civil::civil_from_days(day);
        self.matches_month(year, month)
            && self.month_mask(year, month, day - i64::from(day_of_month) + 1) & (1 << day_of_month) != 0
    }

    /// Whether its two day fields let every day through.
    pub(crate) fn is_of_every_day(&self) -> bool {
        let (by_day, by_weekday) = (self.days == ALL_DAYS, self.weekdays == ALL_WEEKDAYS);
        let both_must = self.flags.has(Flags::DAY_STAR) || self.flags.has(Flags::WEEKDAY_STAR);
        if both_must { by_day && by_weekday } else { by_day || by_weekday }
    }

    /// Whether any day of [`YEARS`] matches.
    pub(crate) fn has_a_day(&self) -> bool {
        self.next_day(*YEARS.start(), 1, 1).is_some()
    }

    /// The first matching day on or after a day of a month; `day_of_month` may be one past the month's end.
    fn next_day(&self, mut year: i32, mut month: u32, day_of_month: u32) -> Option<i64> {
        let mut not_before: u32 = u32::MAX.checked_shl(day_of_month).unwrap_or(0);
        while year <= *YEARS.end() {
            if !self.matches_year(year) {
                (year, month, not_before) = (year + 1, 1, u32::MAX);
                continue;
            }
            if self.months & (1 << month) != 0 {
                let first = civil::days_from_civil(year, month, 1);
                let days = self.month_mask(year, month, first) & not_before;
                if days != 0 {
                    return Some(first + i64::from(days.trailing_zeros()) - 1);
                }
            }
            not_before = u32::MAX;
            let later = u32::from(self.months) & (u32::MAX << (month + 1));
            (year, month) = if later == 0 { (year + 1, 1) } else { (year, later.trailing_zeros()) };
        }
        None
    }

    fn matches_year(&self, year: i32) -> bool {
        match self.extra.as_deref() {
            Some(Extra { years: Some(years), .. }) => years.contains(year),
            _ => true,
        }
    }

    fn matches_month(&self, year: i32, month: u32) -> bool {
        self.months & (1 << month) != 0 && self.matches_year(year)
    }

    /// The matching days of a month that begins on day `first`: bit d for day d.
    fn month_mask(&self, year: i32, month: u32, first: i64) -> u32 {
        let length = civil::month_length(year, month);
        let exists = !(u32::MAX.checked_shl(length + 1).unwrap_or(0)) & ALL_DAYS;
        let first_weekday = civil::weekday(first);
        let mut by_day = self.days;
        let mut by_weekday = week_mask(self.weekdays, first_weekday);
        if let Some(extra) = self.extra.as_deref() {
            by_day |= extra.days(length, first_weekday);
            by_weekday |= extra.weekdays(length, first_weekday);
        }
        let both_must = self.flags.has(Flags::DAY_STAR) || self.flags.has(Flags::WEEKDAY_STAR);
        exists & if both_must { by_day & by_weekday } else { by_day | by_weekday }
    }

    /// The first matching second of a day at or after `from`, both counted from midnight.
    pub(crate) fn next_in_day(&self, from: i64) -> Option<i64> {
        let (hour, minute, second) = (from / 3_600, from / 60 % 60, from % 60);
        if self.hours & (1 << hour) != 0 {
            if self.minutes & (1 << minute) != 0
                && let Some(second) = lowest_from(self.seconds, second)
            {
                return Some(hour * 3_600 + minute * 60 + second);
            }
            if let Some(minute) = lowest_from(self.minutes, minute + 1) {
                return Some(hour * 3_600 + minute * 60 + lowest_from(self.seconds, 0)?);
            }
        }
        let hour = lowest_from(u64::from(self.hours), hour + 1)?;
        Some(hour * 3_600 + lowest_from(self.minutes, 0)? * 60 + lowest_from(self.seconds, 0)?)
    }
}

impl Extra {
    /// The days of month that `L`, `L-n`, `W` and `LW` mean in a month of this length and first weekday.
    fn days(&self, length: u32, first_weekday: u32) -> u32 {
        let mut mask = 0;
        for n in bits(self.from_last) {
            if n < length {
                mask |= 1 << (length - n);
            }
        }
        for day in bits(self.nearest) {
            if day <= length {
                mask |= 1 << nearest_workday(day, length, first_weekday);
            }
        }
        if self.last_workday {
            mask |= 1 << nearest_workday(length, length, first_weekday);
        }
        mask
    }

    /// The days that `wL` and `w#n` mean.
    fn weekdays(&self, length: u32, first_weekday: u32) -> u32 {
        // Days of the last week: exactly one of each weekday.
        let last_week = u32::MAX << (length - 6);
        let mut mask = week_mask(self.last_weekdays, first_weekday) & last_week;
        for (week, weekdays) in (0..).zip(self.nth_weekdays) {
            let nth_week = 0b1111_1110_u64 << (7 * week);
            // Day 35 and its like do not exist; the caller cuts them off.
            mask |= week_mask(weekdays, first_weekday) & (nth_week & u64::from(u32::MAX)) as u32;
        }
        mask
    }
}

/// Every day of a month that falls on one of these weekdays.
fn week_mask(weekdays: u8, first_weekday: u32) -> u32 {
    if weekdays == ALL_WEEKDAYS {
        return ALL_DAYS;
    }
    // The week turned so that bit 0 is the weekday of day 1, then laid out five times from bit 1.
    let turned = (u64::from(weekdays) >> first_weekday | u64::from(weekdays) << (7 - first_weekday)) & 0b111_1111;
    const FIVE_WEEKS: u64 = 1 | 1 << 7 | 1 << 14 | 1 << 21 | 1 << 28;
    ((turned * FIVE_WEEKS) << 1 & u64::from(u32::MAX)) as u32
}

/// The Monday-to-Friday day nearest to `day` without leaving the month.
fn nearest_workday(day: u32, length: u32, first_weekday: u32) -> u32 {
    match (first_weekday + day - 1) % 7 {
        6 if day == 1 => 3,
        6 => day - 1,
        0 if day == length => day - 2,
        0 => day + 1,
        _ => day,
    }
}

fn lowest_from(set: u64, from: i64) -> Option<i64> {
    let rest = if from >= 64 { 0 } else { set & (u64::MAX << from) };
    (rest != 0).then(|| i64::from(rest.trailing_zeros()))
}

/// The positions of the set bits, lowest first.
pub(crate) fn bits(set: impl Into<u64>) -> impl Iterator<Item = u32> {
    let mut rest = set.into();
    std::iter::from_fn(move || {
        let lowest = rest.trailing_zeros();
        let found = rest != 0;
        rest &= rest.wrapping_sub(1);
        found.then_some(lowest)
    })
}
