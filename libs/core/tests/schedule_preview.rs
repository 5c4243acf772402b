//! What a preview says beside the instants: notes about changes of the clocks, for a whole timetable, and why there is no more.

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test, at the place where it failed")]

use std::time::Duration;

use carillon_core::schedule::{
    DstGap, DstOverlap, Exclusion, PREVIEW_MAX, Preview, Spec, Timetable, TimetableSpec, preview,
};
use chrono::{DateTime, Utc};
use uuid::Uuid;

const SPRING: &str = "2026-03-29T00:00:00Z";
const AUTUMN: &str = "2026-10-25T00:00:00Z";

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn berlin(lines: &[&str]) -> TimetableSpec {
    let specs = lines.iter().map(|line| Spec::Cron((*line).to_owned())).collect();
    TimetableSpec { specs, timezone: "Europe/Berlin".to_owned(), ..TimetableSpec::never() }
}

fn shown(spec: &TimetableSpec, from: &str, count: usize) -> Preview {
    preview(&Timetable::parse(spec, Uuid::nil()).unwrap(), at(from), count)
}

/// Local time of day and note of each instant.
fn notes(spec: &TimetableSpec, from: &str, count: usize) -> Vec<String> {
    let line = |local: &str, note: Option<String>| format!("{} {}", &local[11..16], note.unwrap_or_default());
    let found = shown(spec, from, count).fires.into_iter();
    found.map(|fire| line(&fire.local, fire.note).trim_end().to_owned()).collect()
}

fn reason(spec: &TimetableSpec, from: &str) -> String {
    let found = shown(spec, from, 3);
    assert!(found.fires.len() < 3, "{found:?}");
    found.reason.unwrap()
}

#[test]
fn only_a_line_that_has_the_instant_notes_it() {
    let turn = "02:30 occurs twice, clocks go from 03:00 to 02:00";
    let union = berlin(&["30 2 * * *", "*/30 2 * * *"]);
    assert_eq!(
        notes(&union, AUTUMN, 4)[1..],
        [
            format!("02:30 {turn}: first pass"),
            "02:00 02:00 occurs twice, clocks go from 03:00 to 02:00: second pass".to_owned(),
            format!("02:30 {turn}: second pass")
        ]
    );
    assert_eq!(
        notes(&berlin(&["30 2 * * *"]), AUTUMN, 1),
        [format!("02:30 {turn}: first pass; the second does not fire")]
    );
    let both = TimetableSpec { dst_overlap: Some(DstOverlap::Both), ..berlin(&["30 2 * * *"]) };
    assert_eq!(notes(&both, AUTUMN, 2)[1], format!("02:30 {turn}: second pass"));
    let cut_short = TimetableSpec { end: Some(at("2026-10-25T01:00:00Z")), ..both };
    assert_eq!(notes(&cut_short, AUTUMN, 1), [format!("02:30 {turn}: first pass; the second does not fire")]);
    // An interval is no local time and says nothing.
    let every = TimetableSpec::every(Duration::from_secs(1_800), at(AUTUMN));
    let every = TimetableSpec { timezone: "Europe/Berlin".to_owned(), ..every };
    assert_eq!(notes(&every, AUTUMN, 2), ["02:00", "02:30"]);
}

#[test]
fn a_swallowed_time_that_meets_another_schedule_is_merged() {
    let turn = "does not exist on 2026-03-29, clocks go from 02:00 to 03:00";
    assert_eq!(notes(&berlin(&["30 2 * * *"]), SPRING, 1), [format!("03:00 moved: 02:30 {turn}")]);
    let union = berlin(&["30 2 * * *", "0 3 * * *"]);
    assert_eq!(notes(&union, SPRING, 1), [format!("03:00 merged with 03:00: 02:30 {turn}")]);
    let mut with_interval = berlin(&["30 2 * * *"]);
    with_interval.specs.push(Spec::Every { interval_ms: 86_400_000, anchor: at("2026-03-29T01:00:00Z") });
    assert_eq!(notes(&with_interval, SPRING, 1), [format!("03:00 merged with 03:00: 02:30 {turn}")]);
    let two = berlin(&["30 2 * * *", "15 2 * * *"]);
    let both = "03:00 moved and merged: 02:15 and 02:30 do not exist on 2026-03-29, clocks go from 02:00 to 03:00";
    assert_eq!(notes(&two, SPRING, 1), [both]);
    // What one line moves is not lost, though another lets it go by.
    let mixed = berlin(&["30 2 * * *", "*/30 2 * * *"]);
    assert_eq!(notes(&mixed, SPRING, 1), [format!("03:00 moved: 02:30 {turn}; skipped before this: 02:00 {turn}")]);
}

#[test]
fn what_an_exclusion_removed_was_not_skipped() {
    let skipping = TimetableSpec { dst_gap: Some(DstGap::Skip), ..berlin(&["30 2 * * *"]) };
    assert!(notes(&skipping, SPRING, 1)[0].contains("skipped before this: 02:30"));
    for exclusion in [
        Exclusion::date("2026-03-29".parse().unwrap()),
        Exclusion::cron("* 2 * * SUN"),
        Exclusion::cron("* 1 29 3 *").in_timezone("UTC"),
    ] {
        let excluded = TimetableSpec { exclusions: vec![exclusion.clone()], ..skipping.clone() };
        assert_eq!(notes(&excluded, SPRING, 1), ["02:30"], "{exclusion:?}");
    }
    let other = TimetableSpec { exclusions: vec![Exclusion::cron("* 3 * * *")], ..skipping };
    assert!(notes(&other, SPRING, 1)[0].contains("skipped"));
    // A time that would have been moved into an excluded one is gone with it.
    let moved = TimetableSpec { exclusions: vec![Exclusion::cron("0 3 * * *")], ..berlin(&["30 2 * * *"]) };
    assert_eq!(notes(&moved, SPRING, 1), ["02:30"]);
}

#[test]
fn a_change_is_told_of_once() {
    let dense = berlin(&["0,30 * * * *", "*/20 * * * * *"]);
    let told = notes(&dense, SPRING, 400).iter().filter(|line| line.contains("skipped before this")).count();
    assert_eq!(told, 1);
}

#[test]
fn fewer_instants_than_asked_for_have_a_reason() {
    let from = "2026-01-01T00:00:00Z";
    assert_eq!(
        reason(&TimetableSpec::cron("0 0 0 1 1 ? 2020", "UTC"), from),
        "no fire from 2026-01-01T00:00:00Z on: its last instant was 2020-01-01T00:00:00Z"
    );
    assert_eq!(
        reason(&TimetableSpec::once(at("2026-02-01T00:00:00Z")), from),
        "no further fire: its last instant is 2026-02-01T00:00:00Z"
    );
    let daily = TimetableSpec::cron("@daily", "UTC");
    let ended = TimetableSpec { end: Some(at("2026-01-02T12:00:00Z")), ..daily.clone() };
    assert_eq!(reason(&ended, from), "no further fire: end_date is 2026-01-02T12:00:00Z");
    let out = Exclusion::dates("2026-01-02".parse().unwrap(), "9999-12-31".parse().unwrap());
    let excluded = TimetableSpec { exclusions: vec![out], ..daily };
    assert_eq!(reason(&excluded, from), "no further fire: all that would come is excluded");
    assert_eq!(
        reason(&excluded, "2026-06-01T00:00:00.500Z"),
        "no fire from 2026-06-01T00:00:00.500Z on: its last instant was 2026-01-01T00:00:00Z; \
         all that would come is excluded"
    );
    assert_eq!(reason(&TimetableSpec::never(), from), format!("no fire from {from} on: it never fires by time"));
    assert_eq!(shown(&TimetableSpec::cron("@daily", "UTC"), from, 3).reason, None);
}

#[test]
fn a_swallowed_time_behind_which_nothing_comes_is_told_of() {
    let spec = TimetableSpec { end: Some(at("2026-12-31T00:00:00Z")), ..berlin(&["*/30 2 29 3 *"]) };
    assert_eq!(
        reason(&spec, "2026-01-01T00:00:00Z"),
        "no fire from 2026-01-01T00:00:00Z on: its last instant was 2025-03-29T01:30:00Z; end_date is 2026-12-31T00:00:00Z; \
         skipped: 02:00 and 02:30 do not exist on 2026-03-29, clocks go from 02:00 to 03:00"
    );
    let spec = TimetableSpec { end: Some(at("2026-03-29T12:00:00Z")), ..berlin(&["*/30 2 * * *"]) };
    let told = reason(&spec, "2026-03-28T01:10:00Z");
    assert!(told.starts_with("no further fire: end_date") && told.contains("skipped: 02:00 and 02:30"), "{told}");
}

#[test]
fn a_preview_is_bounded() {
    let every_second = TimetableSpec::cron("* * * * * *", "UTC");
    let most = shown(&every_second, SPRING, usize::MAX);
    assert_eq!((most.fires.len(), most.reason), (PREVIEW_MAX, None));
    assert!(shown(&every_second, SPRING, 0).fires.is_empty());
    // The last millisecond that can be written.
    let yearly = TimetableSpec::every(Duration::from_secs(86_400), at("9999-12-30T12:00:00Z"));
    let found = shown(&yearly, "9999-12-31T00:00:00Z", 3);
    assert_eq!(found.fires.iter().map(|fire| fire.at).collect::<Vec<_>>(), [at("9999-12-31T12:00:00Z")]);
    assert_eq!(found.reason.unwrap(), "no further fire: everything ends with the year 9999");
}

#[test]
fn a_preview_that_cannot_be_searched_says_so() {
    let mut spec = TimetableSpec::cron("* * * * *", "UTC");
    spec.specs.push(Spec::Once(at("2026-01-01T00:00:30Z")));
    let tokyo = Exclusion::cron("1-59/2 * 2-31 * *").in_timezone("Asia/Tokyo");
    spec.exclusions =
        vec![Exclusion::cron("*/2 * 2-31 * *"), tokyo, Exclusion::cron("* * 1 * *"), Exclusion::cron("* 15-23 * * *")];
    let found = reason(&spec, "2026-02-01T00:00:00Z");
    assert!(found.starts_with("no fire from 2026-02-01T00:00:00Z on: the exclusions leave so little"), "{found}");
    assert!(found.ends_with("look again from there"), "{found}");
}
