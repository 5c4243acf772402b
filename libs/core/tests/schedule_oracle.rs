//! The engine against a brute-force oracle of our own, over random expressions, zones and starts.
//!
//! The oracle (`schedule_oracle/oracle.rs`) shares nothing with the engine: it looks at every minute (or second) of a
//! span, asks jiff what the wall clock shows, and asks each field in turn whether it fits. It knows neither bits nor
//! leaps, and it reads a field's meaning from the structure that the text was written from, never from the text.

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test, at the place where it failed")]

#[path = "schedule_oracle/fields.rs"]
mod fields;
#[path = "schedule_oracle/oracle.rs"]
mod oracle;
#[path = "schedule_support/mod.rs"]
mod support;

use carillon_core::schedule::{DstGap, DstOverlap, Timetable, TimetableSpec};
use chrono::{DateTime, Utc};
use fields::Expression;
use jiff::tz::TimeZone;
use oracle::Rules;
use proptest::prelude::*;
use proptest::test_runner::Config;
use support::{config, next, parse};
use uuid::Uuid;

/// Zones with every kind of change there is: whole hours, half an hour, at midnight, a whole day, negative winter time,
/// none at all.
const ZONES: &[&str] = &[
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Dublin",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "America/Santiago",
    "America/Havana",
    "Asia/Gaza",
    "Asia/Beirut",
    "Asia/Tehran",
    "Pacific/Apia",
    "Pacific/Kwajalein",
    "Pacific/Chatham",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Asia/Pyongyang",
    "Antarctica/Troll",
    "Antarctica/Casey",
    "America/Caracas",
    "Europe/Volgograd",
];

/// Changes of the clocks from 1973 (earlier ones need not fall on a whole minute) to 2036, every one of a zone.
fn changes(zone: &TimeZone) -> Vec<i64> {
    let from = jiff::Timestamp::from_second(100_000_000).unwrap();
    zone.following(from).map(|change| change.timestamp().as_second()).take_while(|at| *at < 2_085_978_496).collect()
}

#[derive(Clone, Debug)]
struct Case {
    expression: Expression,
    zone: &'static str,
    /// Middle of the span that is looked at.
    around: i64,
    rules: Rules,
}

fn gaps() -> impl Strategy<Value = Option<DstGap>> {
    prop_oneof![3 => Just(None), 1 => Just(Some(DstGap::RunAfter)), 1 => Just(Some(DstGap::Skip))]
}

fn overlaps() -> impl Strategy<Value = Option<DstOverlap>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(DstOverlap::First)),
        1 => Just(Some(DstOverlap::Last)),
        1 => Just(Some(DstOverlap::Both)),
    ]
}

/// A zone and an instant, three times out of four near a change of its clocks.
fn places() -> impl Strategy<Value = (&'static str, i64)> {
    (
        prop::sample::select(ZONES),
        any::<prop::sample::Index>(),
        -80_000..80_000_i64,
        0..4,
        100_000_000..2_085_978_496_i64,
    )
        .prop_map(|(name, pick, shift, near, anywhere)| {
            let changes = changes(&TimeZone::get(name).unwrap());
            let around =
                if near > 0 && !changes.is_empty() { changes[pick.index(changes.len())] + shift } else { anywhere };
            (name, around)
        })
}

fn cases(expressions: impl Strategy<Value = Expression>) -> impl Strategy<Value = Case> {
    (expressions, places(), gaps(), overlaps()).prop_map(|(expression, (zone, around), gap, overlap)| Case {
        expression,
        zone,
        around,
        rules: Rules { gap, overlap },
    })
}

fn instant(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(second, 0).unwrap()
}

/// The engine's instants in the span, by both of its ways, which must agree; `None` if it refuses the expression.
fn engine(case: &Case, from: i64, to: i64) -> Option<Vec<i64>> {
    let mut spec = TimetableSpec::cron(case.expression.text(), case.zone);
    (spec.dst_gap, spec.dst_overlap) = (case.rules.gap, case.rules.overlap);
    let timetable = Timetable::parse(&spec, Uuid::nil()).ok()?;
    let listed: Vec<i64> = timetable.between(instant(from), instant(to)).map(|at| at.timestamp()).collect();
    let mut stepped = Vec::new();
    let mut at = instant(from - 1);
    while let Some(next) = next(&timetable, at).filter(|next| *next <= instant(to)) {
        assert!(next > at, "an instant must be later than the one before");
        stepped.push(next.timestamp());
        at = next;
    }
    assert!(listed == stepped, "stepping and listing are the same");
    let last = timetable.last_at_or_before(instant(to), instant(from)).map(|at| at.timestamp());
    assert_eq!(last, listed.last().copied(), "the last one, found from behind");
    // From the middle of the span the sequence goes on as it was.
    let middle = from + (to - from) / 2;
    let rest: Vec<i64> = timetable.between(instant(middle), instant(to)).map(|at| at.timestamp()).collect();
    assert!(rest == listed.iter().copied().filter(|at| *at >= middle).collect::<Vec<_>>(), "from the middle");
    Some(listed)
}

fn agree(case: &Case, half_span: i64, step: i64) -> Result<(), TestCaseError> {
    let around = case.around - case.around.rem_euclid(60);
    let (from, to) = (around - half_span, around + half_span);
    let zone = TimeZone::get(case.zone).unwrap();
    let expected = oracle::fires(&case.expression, &zone, case.rules, from, to, step);
    match engine(case, from, to) {
        None => prop_assert!(expected.is_empty(), "refused, but it fires: {:?}", expected.first()),
        Some(found) => same(case, &found, &expected)?,
    }
    Ok(())
}

/// Shows the first difference only: the lists can be long.
fn same(case: &Case, found: &[i64], expected: &[i64]) -> Result<(), TestCaseError> {
    let count = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let (found, expected) = (found.get(count), expected.get(count));
    let show = |at: Option<&i64>| at.map_or("nothing".to_owned(), |at| instant(*at).to_rfc3339());
    let (text, zone) = (case.expression.text(), case.zone);
    let message = format!("{text} in {zone}: found {}, expected {}", show(found), show(expected));
    prop_assert!(found == expected, "{message}");
    Ok(())
}

/// Every change of every zone, from just before it, at it and just after it.
#[test]
fn each_change_is_passed_from_close_by() {
    const QUARTER: i64 = 900;
    let every_rule = [
        (None, None),
        (Some(DstGap::RunAfter), Some(DstOverlap::First)),
        (Some(DstGap::Skip), Some(DstOverlap::Last)),
        (Some(DstGap::RunAfter), Some(DstOverlap::Both)),
    ];
    let mut edges = 0;
    for name in ZONES {
        let zone = TimeZone::get(name).unwrap();
        let offset = |at: i64| i64::from(zone.to_offset(jiff::Timestamp::from_second(at).unwrap()).seconds());
        for edge in changes(&zone) {
            // Quarters of an hour from the edge show every time of the day that is asked for below.
            if (offset(edge) - offset(edge - 1)) % QUARTER != 0 {
                continue;
            }
            edges += 1;
            let clock = oracle::clock(&zone, edge - 26 * 3_600, edge + 50 * 3_600, QUARTER);
            // The first local time that the change swallows, or shows again.
            let time = (edge + offset(edge - 1).min(offset(edge))).rem_euclid(86_400);
            for expression in [Expression::at(time / 3_600, time / 60 % 60), Expression::hourly(time / 60 % 60)] {
                for (gap, overlap) in every_rule {
                    let rules = Rules { gap, overlap };
                    let expected = oracle::fires_on(&clock, &expression, rules, QUARTER);
                    let mut spec = TimetableSpec::cron(expression.text(), *name);
                    (spec.dst_gap, spec.dst_overlap) = (gap, overlap);
                    let timetable = parse(&spec);
                    for from_ms in [-1_000, -1, 0, 1_000].map(|shift| edge * 1_000 + shift) {
                        let found = next(&timetable, DateTime::from_timestamp_millis(from_ms).unwrap()).unwrap();
                        let wanted = expected.iter().find(|at| **at * 1_000 > from_ms);
                        assert_eq!(Some(&found.timestamp()), wanted, "{spec:?} after {from_ms}");
                    }
                }
            }
        }
    }
    assert!(edges > 1_500, "{edges}");
}

proptest! {
    #![proptest_config(Config { max_shrink_iters: 500, ..config(200) })]

    /// Five fields, minute by minute, over a day and a half.
    #[test]
    fn five_fields_agree_minute_by_minute(case in cases(fields::five(true))) {
        agree(&case, 64_800, 60)?;
    }

    /// Six fields, second by second, over an hour and a half.
    #[test]
    fn six_fields_agree_second_by_second(case in cases(fields::six())) {
        agree(&case, 2_700, 1)?;
    }

    /// Fields whose dates are rare: day by day over many years, in UTC at one time of the day.
    #[test]
    fn dates_agree_day_by_day(expression in fields::dates(), first_day in 0..145_000_i64) {
        let case = Case { expression, zone: "UTC", around: 0, rules: Rules::default() };
        let (from, to) = (first_day * 86_400, (first_day + 4_000) * 86_400 - 1);
        let expected = oracle::days_at_midnight(&case.expression, first_day, first_day + 4_000);
        match engine(&case, from, to) {
            None => prop_assert!(expected.is_empty()),
            Some(found) => same(&case, &found, &expected)?,
        }
    }
}
