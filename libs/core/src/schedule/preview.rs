//! The next instants of a timetable, as a person wants to see them before anything is created: each with the time on the
//! wall, and with a note where a change of the clocks moved, merged, doubled or skipped something.
//!
//! A note is about the stretch from the instant before (or the preview's start) to this one, so that a skipped time is
//! told of at the next instant that is shown.

use std::ops::Range;

use chrono::{DateTime, FixedOffset, Utc};

use super::civil::{self, DAY};
use super::cron::CronLine;
use super::describe::date;
use super::search::{Inner, Source};
use super::spec::{DstGap, DstOverlap};
use super::timetable::{Timetable, ceil_ms, utc};

/// Most instants that one preview shows.
pub const PREVIEW_MAX: usize = 1_000;

/// One instant of a preview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewFire {
    /// When.
    pub at: DateTime<Utc>,
    /// The same in the timetable's zone, RFC 3339 with the offset.
    pub local: String,
    /// What a change of the clocks did to this instant or since the one before, if anything.
    pub note: Option<String>,
}

/// The first `count` instants at or after `from`, at most [`PREVIEW_MAX`].
pub fn preview(timetable: &Timetable, from: DateTime<Utc>, count: usize) -> Vec<PreviewFire> {
    let inner = &*timetable.0;
    let mut since = ceil_ms(from).max(inner.start).div_euclid(1_000);
    let mut fires = Vec::new();
    for at in timetable.between(from, DateTime::<Utc>::MAX_UTC).take(count.min(PREVIEW_MAX)) {
        let second = at.timestamp();
        fires.push(PreviewFire { at, local: local(inner, at), note: note(inner, since, second) });
        since = second + 1;
    }
    fires
}

fn local(inner: &Inner, at: DateTime<Utc>) -> String {
    match FixedOffset::east_opt(inner.zone.offset(at.timestamp())) {
        Some(offset) => at.with_timezone(&offset).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, false),
        None => utc(at),
    }
}

/// A change of the clocks at the UTC second `at`: local time went from `before` to `after` (civil seconds).
struct Change {
    at: i64,
    before: i64,
    after: i64,
}

fn note(inner: &Inner, since: i64, at: i64) -> Option<String> {
    // A repeated hour lies on both sides of its change, so the change after the instant counts too.
    let mut index = inner.zone.index(since.saturating_sub(DAY).max(civil::FIRST - DAY));
    let mut notes: Vec<String> = Vec::new();
    while let (Some(span), Some(next)) = (inner.zone.span(index), inner.zone.span(index + 1)) {
        if next.at > at + DAY {
            break;
        }
        let change =
            Change { at: next.at, before: next.at + i64::from(span.offset), after: next.at + i64::from(next.offset) };
        for source in &inner.sources {
            if let Source::Line(line) = source
                && let Some(words) = note_of_change(inner, line, &change, since, at)
                && !notes.contains(&words)
            {
                notes.push(words);
            }
        }
        index += 1;
    }
    (!notes.is_empty()).then(|| notes.join("; "))
}

fn note_of_change(inner: &Inner, line: &CronLine, change: &Change, since: i64, at: i64) -> Option<String> {
    if change.after > change.before {
        let in_stretch = (since..=at).contains(&change.at);
        return in_stretch.then(|| note_of_gap(inner, line, change, at)).flatten();
    }
    let length = change.before - change.after;
    let pass = if (change.at - length..change.at).contains(&at) {
        "first"
    } else if (change.at..change.at + length).contains(&at) {
        "second"
    } else {
        return None;
    };
    let shown = at + i64::from(inner.zone.offset(at));
    if !line.matches(shown) {
        return None;
    }
    let other = match inner.rule.overlap_of(line) {
        DstOverlap::First => "; the second does not fire",
        DstOverlap::Last => "; the first does not fire",
        DstOverlap::Both => "",
    };
    Some(format!("{} occurs twice, clocks go {}: {pass} pass{other}", clock(shown), turn(change)))
}

fn note_of_gap(inner: &Inner, line: &CronLine, change: &Change, at: i64) -> Option<String> {
    let swallowed = swallowed(line, change.before..change.after);
    if swallowed.is_empty() {
        return None;
    }
    let do_not_exist = format!("{} not exist on {}, clocks go {}", names(&swallowed), day(change.before), turn(change));
    if inner.rule.gap_of(line) == DstGap::Skip {
        return Some(format!("skipped before this: {do_not_exist}"));
    }
    if at != change.at {
        return None;
    }
    if line.matches(change.after) {
        return Some(format!("merged with {}: {do_not_exist}", clock(change.after)));
    }
    Some(format!("{}: {do_not_exist}", if swallowed.len() > 1 { "moved and merged" } else { "moved" }))
}

/// The first few times that the line asks for and no clock shows.
fn swallowed(line: &CronLine, gap: Range<i64>) -> Vec<i64> {
    const FEW: usize = 4;
    let mut found = Vec::new();
    let mut from = gap.start;
    while found.len() < FEW
        && let Some(next) = line.next_civil(from).filter(|next| *next < gap.end)
    {
        found.push(next);
        from = next + 1;
    }
    found
}

fn names(times: &[i64]) -> String {
    let texts: Vec<String> = times.iter().map(|time| clock(*time)).collect();
    match texts.as_slice() {
        [one] => format!("{one} does"),
        [a, b] => format!("{a} and {b} do"),
        [a, b, ..] => format!("{a}, {b} and so on do"),
        [] => String::new(),
    }
}

/// `from 02:00 to 03:00`, with dates where the day changes.
fn turn(change: &Change) -> String {
    if change.before.div_euclid(DAY) == change.after.div_euclid(DAY) {
        return format!("from {} to {}", clock(change.before), clock(change.after));
    }
    format!("from {} {} to {} {}", day(change.before), clock(change.before), day(change.after), clock(change.after))
}

fn day(civil: i64) -> String {
    date(civil.div_euclid(DAY))
}

fn clock(civil: i64) -> String {
    let second = civil.rem_euclid(DAY);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    if second == 0 { format!("{hour:02}:{minute:02}") } else { format!("{hour:02}:{minute:02}:{second:02}") }
}
