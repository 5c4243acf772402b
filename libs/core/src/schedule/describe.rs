//! A timetable in plain English, for people who check before they create: `at 02:00 every day, Europe/Berlin`.
//!
//! The words are made from the parsed form and never from the text, so they say what will happen, not what was meant:
//! whoever wrote `0 0 1 * MON` reads "on day 1 of the month or on Monday". For the same reason an `H` shows the value it
//! chose. Long lists are cut: the preview's instants are the exact answer.

use super::civil;
use super::cron::{ALL_60, ALL_DAYS, ALL_HOURS, ALL_MONTHS, ALL_WEEKDAYS, CronLine, Extra, Flags, bits};
use super::exclusion::Days;
use super::interval::interval_text;
use super::search::{Inner, Source};
use super::spec::{DstGap, DstOverlap};
use super::timetable::{LAST_MS, Timetable, instant, utc};

/// Most values of a list that are written out.
const SHOWN_MAX: usize = 8;
/// Most times of day that are written out before minutes and hours are told apart.
const TIMES_MAX: u32 = 6;

const MONTHS: [&str; 13] = [
    "",
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Timetable {
    /// The timetable in plain English: `at 02:00 every day, Europe/Berlin`.
    pub fn describe(&self) -> String {
        let inner = &*self.0;
        if inner.sources.is_empty() {
            return "never by time".to_owned();
        }
        let mut text =
            inner.sources.iter().map(|one| source(one, inner.job_is_named)).collect::<Vec<_>>().join("; and ");
        if inner.sources.iter().any(|source| matches!(source, Source::Line(_))) {
            text.push_str(", ");
            text.push_str(inner.zone.name());
        }
        bounds(inner, &mut text);
        exclusions(inner, &mut text);
        changes_of_clocks(inner, &mut text);
        text
    }
}

fn source(source: &Source, job_is_named: bool) -> String {
    match source {
        Source::Line(one) if !one.flags.has(Flags::HASHED) => line(one),
        Source::Line(one) if job_is_named => format!("{} (chosen by H for this job)", line(one)),
        Source::Line(one) => format!("{} (no job was named, so these values of H are only an example)", line(one)),
        Source::Every { interval, anchor } => {
            let from = instant(*anchor).map(utc).unwrap_or_default();
            format!("every {} from {from}", interval_text(interval.unsigned_abs()))
        }
        Source::Once(at) => format!("once at {}", instant(*at).map(utc).unwrap_or_default()),
    }
}

fn bounds(inner: &Inner, text: &mut String) {
    if let Some(start) = (inner.start != i64::MIN).then(|| instant(inner.start)).flatten() {
        text.push_str(&format!(", not before {}", utc(start)));
    }
    if let Some(end) = (inner.end != LAST_MS).then(|| instant(inner.end)).flatten() {
        text.push_str(&format!(", not after {}", utc(end)));
    }
}

fn exclusions(inner: &Inner, text: &mut String) {
    let mut words = Vec::new();
    for closed in inner.exclusions.zones() {
        let zone = closed.zone.name();
        let zone = if zone == inner.zone.name() { String::new() } else { format!(" ({zone})") };
        words.extend(closed.days.iter().map(|days| format!("{}{zone}", excluded_days(*days))));
        words.extend(closed.patterns.iter().map(|pattern| format!("{}{zone}", excluded_minutes(pattern))));
    }
    for (index, words) in words.iter().take(SHOWN_MAX).enumerate() {
        text.push_str(if index == 0 { ", except " } else { " and " });
        text.push_str(words);
    }
    if let Some(more) = words.len().checked_sub(SHOWN_MAX + 1) {
        text.push_str(&format!(" and {} more exclusions", more + 1));
    }
}

fn excluded_days(days: Days) -> String {
    if days.from == days.to {
        return format!("on {}", date(days.from));
    }
    format!("from {} to {}", date(days.from), date(days.to))
}

fn excluded_minutes(pattern: &CronLine) -> String {
    if pattern.minutes == ALL_60 && pattern.hours == ALL_HOURS {
        return dates(pattern).unwrap_or_else(|| "always".to_owned());
    }
    line(pattern)
}

/// `2026-03-29`, of a number of days since 1970-01-01.
pub(crate) fn date(days: i64) -> String {
    let (year, month, day) = civil::civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

fn changes_of_clocks(inner: &Inner, text: &mut String) {
    match inner.rule.gap {
        None => {}
        Some(DstGap::RunAfter) => text.push_str(", times that clocks skip fire after the gap"),
        Some(DstGap::Skip) => text.push_str(", times that clocks skip do not fire"),
    }
    match inner.rule.overlap {
        None => {}
        Some(DstOverlap::First) => text.push_str(", times that occur twice fire at the first pass"),
        Some(DstOverlap::Last) => text.push_str(", times that occur twice fire at the last pass"),
        Some(DstOverlap::Both) => text.push_str(", times that occur twice fire at both passes"),
    }
}

fn line(line: &CronLine) -> String {
    let (mut text, at_times) = times(line);
    match dates(line) {
        Some(dates) => {
            text.push(' ');
            text.push_str(&dates);
        }
        None if at_times => text.push_str(" every day"),
        None => {}
    }
    text
}

/// The time of day, and whether it is one that wants "every day" behind it.
fn times(line: &CronLine) -> (String, bool) {
    let (seconds, minutes, hours) = (line.seconds, line.minutes, u64::from(line.hours));
    let count = seconds.count_ones() * minutes.count_ones() * hours.count_ones();
    if count <= TIMES_MAX {
        return (format!("at {}", times_of_day(line)), true);
    }
    let all_hours = line.hours == ALL_HOURS;
    let second = seconds_words(seconds);
    let minute = match (minutes_words(minutes, second.is_some()), second.is_some()) {
        (None, true) if !second.as_ref().is_some_and(|text| text.starts_with("every")) => {
            Some("of every minute".to_owned())
        }
        (None, true) => None,
        (None, false) => Some("every minute".to_owned()),
        (Some(_), false) if all_hours && minutes == 1 => return ("every hour, on the hour".to_owned(), false),
        (words, _) => words,
    };
    let hour = if all_hours {
        minute
            .as_ref()
            .is_some_and(|text| text.starts_with("at ") || text.starts_with("in "))
            .then(|| "of every hour".to_owned())
    } else if let Some(step) = every(hours, 24) {
        Some(format!("of every {} hour from midnight", ordinal(step)))
    } else if let Some((from, to)) = run(hours) {
        let last = 63 - minutes.leading_zeros();
        Some(format!("from {from:02}:{:02} to {to:02}:{last:02}", minutes.trailing_zeros()))
    } else {
        Some(format!("of the hour{} {}", plural(hours), numbers(hours)))
    };
    let parts: Vec<String> = [second, minute, hour].into_iter().flatten().collect();
    (parts.join(" "), false)
}

/// `None`: at the full minute.
fn seconds_words(seconds: u64) -> Option<String> {
    match (seconds, every(seconds, 60)) {
        (1, _) => None,
        (ALL_60, _) => Some("every second".to_owned()),
        (_, Some(step)) => Some(format!("every {step} seconds")),
        (_, None) => Some(format!("at second{} {}", plural(seconds), numbers(seconds))),
    }
}

/// `None`: every minute. Behind words for the seconds they say in which minutes, otherwise at which.
fn minutes_words(minutes: u64, behind_seconds: bool) -> Option<String> {
    match (minutes, every(minutes, 60)) {
        (ALL_60, _) => None,
        (_, Some(step)) if behind_seconds => Some(format!("of every {} minute", ordinal(step))),
        (_, Some(step)) => Some(format!("every {step} minutes")),
        (_, None) => {
            let preposition = if behind_seconds { "in" } else { "at" };
            Some(format!("{preposition} minute{} {}", plural(minutes), numbers(minutes)))
        }
    }
}

fn times_of_day(line: &CronLine) -> String {
    let mut times = Vec::new();
    for hour in bits(line.hours) {
        for minute in bits(line.minutes) {
            for second in bits(line.seconds) {
                times.push(if line.seconds == 1 {
                    format!("{hour:02}:{minute:02}")
                } else {
                    format!("{hour:02}:{minute:02}:{second:02}")
                });
            }
        }
    }
    list(&times)
}

/// Which days; `None` for every day.
fn dates(line: &CronLine) -> Option<String> {
    let extra = line.extra.as_deref();
    let day = days_of_month(line, extra);
    let weekday = weekdays(line, extra);
    let mut parts = Vec::new();
    let both_must = line.flags.has(Flags::DAY_STAR) || line.flags.has(Flags::WEEKDAY_STAR);
    match (day, weekday) {
        (None, None) => {}
        // Either of two suffices and one always holds.
        (None, Some(_)) | (Some(_), None) if !both_must => {}
        (Some(one), None) | (None, Some(one)) => parts.push(one),
        (Some(day), Some(weekday)) if both_must => {
            parts.push(format!("{day} where that falls {weekday}"));
        }
        (Some(day), Some(weekday)) => parts.push(format!("{day} or {weekday}")),
    }
    if line.months != ALL_MONTHS {
        let names: Vec<String> = bits(line.months).map(|month| MONTHS[month as usize].to_owned()).collect();
        let words = match run(u64::from(line.months)) {
            Some((from, to)) if to - from > 1 => format!("from {} to {}", MONTHS[from], MONTHS[to]),
            _ => format!("in {}", list(&names)),
        };
        if parts.is_empty() {
            parts.push("every day".to_owned());
        }
        parts.push(words);
    }
    if let Some(years) = extra.and_then(|extra| extra.years.as_ref()) {
        let years: Vec<i32> = years.iter().collect();
        if parts.is_empty() {
            parts.push("every day".to_owned());
        }
        parts.push(match (years.first(), years.last()) {
            (Some(first), Some(last)) if years.len() > 2 && last.abs_diff(*first) as usize == years.len() - 1 => {
                format!("from {first} to {last}")
            }
            _ => format!("in {}", list(&years.iter().map(i32::to_string).collect::<Vec<_>>())),
        });
    }
    (!parts.is_empty()).then(|| parts.join(" "))
}

/// `None`: the field allows every day.
fn days_of_month(line: &CronLine, extra: Option<&Extra>) -> Option<String> {
    if line.days == ALL_DAYS {
        return None;
    }
    let mut parts = Vec::new();
    if line.days != 0 {
        parts.push(format!("on day{} {} of the month", plural(line.days), numbers(u64::from(line.days))));
    }
    if let Some(extra) = extra {
        for before in bits(extra.from_last) {
            parts.push(match before {
                0 => "on the last day of the month".to_owned(),
                1 => "on the day before the last of the month".to_owned(),
                _ => format!("on the {} day before the last of the month", ordinal(before)),
            });
        }
        for day in bits(extra.nearest) {
            parts.push(format!("on the working day nearest to day {day}"));
        }
        if extra.last_workday {
            parts.push("on the last working day of the month".to_owned());
        }
    }
    Some(list(&parts))
}

/// `None`: the field allows every weekday.
fn weekdays(line: &CronLine, extra: Option<&Extra>) -> Option<String> {
    if line.weekdays == ALL_WEEKDAYS {
        return None;
    }
    let mut parts = Vec::new();
    if line.weekdays != 0 {
        parts.push(format!("on {}", weekday_names(line.weekdays)));
    }
    if let Some(extra) = extra {
        for (nth, days) in (1..).zip(extra.nth_weekdays) {
            for day in bits(days) {
                parts.push(format!("on the {} {} of the month", ordinal(nth), WEEKDAYS[day as usize]));
            }
        }
        for day in bits(extra.last_weekdays) {
            parts.push(format!("on the last {} of the month", WEEKDAYS[day as usize]));
        }
    }
    Some(list(&parts))
}

/// The week is a circle: an unbroken stretch of it is named by its ends, or in its own order. Others begin with Monday.
fn weekday_names(weekdays: u8) -> String {
    let has = |day: usize| weekdays & (1 << (day % 7)) != 0;
    let mut begins = (1..=7).filter(|day| has(*day) && !has(day + 6));
    let first = begins.next().unwrap_or(1);
    let unbroken = begins.next().is_none();
    let names: Vec<String> = if unbroken { first..first + 7 } else { 1..8 }
        .filter(|day| has(*day))
        .map(|day| WEEKDAYS[day % 7].to_owned())
        .collect();
    match names.as_slice() {
        [first, _, .., last] if unbroken => format!("{first} to {last}"),
        _ => list(&names),
    }
}

/// `n` if the set is 0, n, 2n, … and evenly fills the field, with n more than one.
fn every(set: u64, size: u32) -> Option<u32> {
    let step = (set & !1).trailing_zeros();
    (2..size).contains(&step).then_some(())?;
    let filled = (0..size).step_by(step as usize).fold(0_u64, |set, value| set | 1 << value);
    (size.is_multiple_of(step) && set == filled).then_some(step)
}

/// First and last value if the set is one unbroken run of at least two.
fn run(set: u64) -> Option<(usize, usize)> {
    let from = set.trailing_zeros();
    let length = (set.checked_shr(from)?).trailing_ones();
    (length > 1 && length == set.count_ones()).then_some((from as usize, (from + length - 1) as usize))
}

fn plural(set: impl Into<u64>) -> &'static str {
    if set.into().count_ones() == 1 { "" } else { "s" }
}

fn ordinal(number: u32) -> String {
    match (number % 10, number / 10 % 10 == 1) {
        (1, false) => format!("{number}st"),
        (2, false) => format!("{number}nd"),
        (3, false) => format!("{number}rd"),
        _ => format!("{number}th"),
    }
}

fn numbers(set: u64) -> String {
    match run(set) {
        Some((from, to)) if to - from > 1 => format!("{from} to {to}"),
        _ => list(&bits(set).map(|value| value.to_string()).collect::<Vec<_>>()),
    }
}

/// `a, b and c`; a long list is cut.
fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] if items.len() <= SHOWN_MAX => format!("{} and {last}", head.join(", ")),
        _ => format!("{} and {} more", items[..SHOWN_MAX - 1].join(", "), items.len() - SHOWN_MAX + 1),
    }
}
