//! What changes of the clocks did to the instants of a preview, in words.
//!
//! A note speaks for the whole timetable, not for one line: an hour that one schedule lets go by and another fires in was
//! not lost, and only a line that has an instant may say something of it.

use std::collections::BTreeSet;

use super::civil::{self, DAY};
use super::cron::CronLine;
use super::describe::date;
use super::search::{Inner, Source};
use super::spec::DstGap;

/// Most swallowed times of a line that are looked at: enough to name a few.
const SWALLOWED_MAX: usize = 100;

/// A change of the clocks at the UTC second `at`: local time went from `before` to `after` (civil seconds).
struct Change {
    at: i64,
    before: i64,
    after: i64,
}

/// What they did to the instant `at_ms`, or skipped since the second `since`.
pub(super) fn note(inner: &Inner, since: i64, at_ms: i64) -> Option<String> {
    let at = at_ms.div_euclid(1_000);
    let mut notes: Vec<String> = Vec::new();
    // A repeated hour lies on both sides of its change, so the change after the instant counts too.
    for change in changes(inner, since.saturating_sub(DAY), at.saturating_add(DAY)) {
        if change.after < change.before {
            notes.extend(repeated(inner, &change, at_ms));
        } else if (since..=at).contains(&change.at) {
            let moved = moved(inner, &change);
            if change.at * 1_000 == at_ms {
                notes.extend(words_for_moved(inner, &change, &moved));
            }
            notes.extend(skipped(inner, &change, &moved).map(|times| format!("skipped before this: {times}")));
        }
    }
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// The first times that they skipped from the second `since` to `until`, where no instant follows that could tell of it.
pub(super) fn first_skipped(inner: &Inner, since: i64, until: i64) -> Option<String> {
    let gaps = changes(inner, since, until).filter(|change| change.after > change.before);
    gaps.filter_map(|change| skipped(inner, &change, &moved(inner, &change))).next()
}

/// The changes from one second to another, both included.
fn changes(inner: &Inner, from: i64, to: i64) -> impl Iterator<Item = Change> {
    let mut index = inner.zone.index(from.max(civil::FIRST - DAY).saturating_sub(1));
    std::iter::from_fn(move || {
        let (span, next) = (inner.zone.span(index)?, inner.zone.span(index + 1)?);
        index += 1;
        let (before, after) = (next.at + i64::from(span.offset), next.at + i64::from(next.offset));
        (next.at <= to).then_some(Change { at: next.at, before, after })
    })
}

fn lines(inner: &Inner) -> impl Iterator<Item = &CronLine> {
    inner.sources.iter().filter_map(|source| match source {
        Source::Line(line) => Some(line),
        Source::Every { .. } | Source::Once(_) => None,
    })
}

fn repeated(inner: &Inner, change: &Change, at_ms: i64) -> Option<String> {
    let at = at_ms.div_euclid(1_000);
    let length = change.before - change.after;
    let (pass, other, other_at) = if (change.at - length..change.at).contains(&at) {
        ("first", "second", at_ms + length * 1_000)
    } else if (change.at..change.at + length).contains(&at) {
        ("second", "first", at_ms - length * 1_000)
    } else {
        return None;
    };
    let of_a_line = |source: &&Source| matches!(source, Source::Line(_)) && inner.next_of(source, at_ms) == Some(at_ms);
    inner.sources.iter().find(of_a_line)?;
    let alone = if fires(inner, other_at) { String::new() } else { format!("; the {other} does not fire") };
    let shown = clock(at + i64::from(inner.zone.offset(at)));
    Some(format!("{shown} occurs twice, clocks go {}: {pass} pass{alone}", turn(change)))
}

fn fires(inner: &Inner, at_ms: i64) -> bool {
    (inner.start..=inner.end).contains(&at_ms)
        && !inner.exclusions.hold(at_ms.div_euclid(1_000))
        && inner.sources.iter().any(|source| inner.next_of(source, at_ms) == Some(at_ms))
}

/// The swallowed times that fire at the change itself.
fn moved(inner: &Inner, change: &Change) -> BTreeSet<i64> {
    let moving = lines(inner).filter(|line| inner.rule.gap_of(line) == DstGap::RunAfter);
    moving.flat_map(|line| swallowed(line, change)).collect()
}

fn words_for_moved(inner: &Inner, change: &Change, moved: &BTreeSet<i64>) -> Option<String> {
    let times = do_not_exist(moved, change)?;
    let has_it_anyway = |source: &Source| match source {
        Source::Line(line) => line.matches(change.after),
        Source::Every { .. } | Source::Once(_) => inner.next_of(source, change.at * 1_000) == Some(change.at * 1_000),
    };
    if inner.sources.iter().any(has_it_anyway) {
        return Some(format!("merged with {}: {times}", clock(change.after)));
    }
    Some(format!("{}: {times}", if moved.len() > 1 { "moved and merged" } else { "moved" }))
}

/// The swallowed times that are lost: no other line moves them, and no exclusion would have removed them.
fn skipped(inner: &Inner, change: &Change, moved: &BTreeSet<i64>) -> Option<String> {
    let skipping = lines(inner).filter(|line| inner.rule.gap_of(line) == DstGap::Skip);
    let lost = skipping.flat_map(|line| swallowed(line, change)).filter(|time| {
        let moment = change.at + time - change.before;
        !moved.contains(time) && !inner.exclusions.hold_skipped(&inner.zone, *time, moment)
    });
    do_not_exist(&lost.collect(), change)
}

/// The first times that the line asks for and no clock shows.
fn swallowed(line: &CronLine, change: &Change) -> impl Iterator<Item = i64> {
    let mut from = change.before;
    let next = move || {
        let next = line.next_civil(from).filter(|next| *next < change.after)?;
        from = next + 1;
        Some(next)
    };
    std::iter::from_fn(next).take(SWALLOWED_MAX)
}

/// `02:00 and 02:30 do not exist on 2026-03-29, clocks go from 02:00 to 03:00`.
fn do_not_exist(times: &BTreeSet<i64>, change: &Change) -> Option<String> {
    let texts: Vec<String> = times.iter().take(3).map(|time| clock(*time)).collect();
    let (names, verb) = match texts.as_slice() {
        [] => return None,
        [one] => (one.clone(), "does"),
        [a, b] => (format!("{a} and {b}"), "do"),
        [a, b, ..] => (format!("{a}, {b} and so on"), "do"),
    };
    Some(format!("{names} {verb} not exist on {}, clocks go {}", day(change.before), turn(change)))
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
