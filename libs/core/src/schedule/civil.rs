//! The proleptic Gregorian calendar in plain integers, and nothing else: a day is a number of days since 1970-01-01, a
//! civil instant is a number of seconds since 1970-01-01T00:00:00 on some wall clock.
//!
//! Why not jiff's or chrono's date types: the search of the cron engine steps through months by the hundred in a
//! microsecond; it needs the weekday and the length of a month, not a checked date with a range to uphold. Every function
//! here is total over the years that schedules know (see [`YEARS`]), and the tests compare each with chrono.

use std::ops::RangeInclusive;

/// The years in which a schedule can fire. From 1970, because a cron field of years has to begin somewhere; to 2399,
/// because 400 years are one full cycle of the calendar: a date that does not occur in one never occurs.
pub(crate) const YEARS: RangeInclusive<i32> = 1970..=2399;

pub(crate) const DAY: i64 = 86_400;

/// Seconds of the first civil second of [`YEARS`].
pub(crate) const FIRST: i64 = 0;
/// Seconds of the last civil second of [`YEARS`].
pub(crate) const LAST: i64 = days_from_civil(2400, 1, 1) * DAY - 1;

/// Days from 1970-01-01 to the given date. (Counts 400-year eras from 1 March of year 0, so that the leap day is the last
/// of its year.)
pub(crate) const fn days_from_civil(year: i32, month: u32, day: u32) -> i64 {
    let y = if month <= 2 { year as i64 - 1 } else { year as i64 };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let month_from_march = (month as i64 + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day as i64 - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse: year, month, day of the month.
pub(crate) const fn civil_from_days(days: i64) -> (i32, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year as i32, month as u32, day as u32)
}

/// 0 = Sunday to 6 = Saturday.
pub(crate) const fn weekday(days: i64) -> u32 {
    (days + 4).rem_euclid(7) as u32
}

pub(crate) const fn is_leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// How many days a month has.
pub(crate) const fn month_length(year: i32, month: u32) -> u32 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{Datelike, NaiveDate};

    #[test]
    fn every_day_of_the_range_agrees_with_chrono() {
        let mut date = NaiveDate::from_ymd_opt(1969, 12, 1).unwrap();
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        while date.year() < 2401 {
            let days = (date - epoch).num_days();
            assert_eq!(days_from_civil(date.year(), date.month(), date.day()), days);
            assert_eq!(civil_from_days(days), (date.year(), date.month(), date.day()));
            assert_eq!(weekday(days), date.weekday().num_days_from_sunday());
            date = date.succ_opt().unwrap();
            if date.day() == 1 {
                let last = date.pred_opt().unwrap();
                assert_eq!(month_length(last.year(), last.month()), last.day());
            }
        }
        assert_eq!(LAST, 13_569_465_599);
    }
}
