//! The engine against two other people's: croner, an independent reading of nearly the same dialect with the same rule
//! for changes of the clocks, and the `cron` crate, for plain fields in UTC.
//!
//! Each place where one of them reads a text otherwise is listed at the end of this file with the reason for ours, and
//! proven there; the random comparisons leave out exactly those forms (`shared_with_croner`, `shared_with_cron`).

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test, at the place where it failed")]

#[expect(dead_code, reason = "the oracle's questions are asked in another test; here only the texts are used")]
#[path = "schedule_oracle/fields.rs"]
mod fields;

use std::str::FromStr;

use carillon_core::schedule::{Timetable, TimetableSpec};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::CronParser;
use fields::{Expression, Field, Item};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use uuid::Uuid;

/// Zones whose changes up to 2024 are the same in every time zone database of the last years.
const ZONES: &[&str] = &[
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "America/Santiago",
    "Asia/Gaza",
    "Africa/Casablanca",
    "Asia/Kolkata",
];

fn config() -> ProptestConfig {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    ProptestConfig {
        cases: u32::try_from(number("SCHEDULE_CASES").unwrap_or(400)).unwrap(),
        rng_seed: RngSeed::Fixed(number("SCHEDULE_SEED").unwrap_or(1)),
        failure_persistence: None,
        max_global_rejects: 1_000_000,
        ..ProptestConfig::default()
    }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn ours(text: &str, zone: &str, from: DateTime<Utc>, count: usize) -> Option<Vec<DateTime<Utc>>> {
    let timetable = Timetable::parse(&TimetableSpec::cron(text, zone), Uuid::nil()).ok()?;
    Some(timetable.between(from, DateTime::<Utc>::MAX_UTC).take(count).collect())
}

fn croners(text: &str) -> Cron {
    CronParser::builder().sloppy_ranges(true).build().parse(text).unwrap()
}

fn croner_from(text: &str, zone: &str, from: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
    let zone: Tz = zone.parse().unwrap();
    let fires = croners(text).iter_from(from.with_timezone(&zone), croner::Direction::Forward);
    fires.take(count).map(|at| at.with_timezone(&Utc)).collect()
}

fn all_fields(expression: &Expression) -> impl Iterator<Item = &Field> {
    let Expression { second, minute, hour, day, month, weekday, year, .. } = expression;
    [minute, hour, day, month, weekday].into_iter().chain(second).chain(year)
}

fn is_star(field: &Field) -> bool {
    matches!(field.0[..], [Item::Star(None)])
}

fn shared_with_croner(expression: &Expression) -> bool {
    let items_shared = all_fields(expression).all(|field| {
        field.0.iter().all(|item| match item {
            Item::Range(a, b, _) => a <= b,
            Item::Star(None) => field.0.len() == 1,
            Item::LastMinus(n) => *n == 0 && !field.0.iter().any(|item| matches!(item, Item::LastWorkday)),
            _ => true,
        })
    });
    let Expression { second, minute, hour, day, weekday, names, .. } = expression;
    let sunday_to_sunday = *names && weekday.0.iter().any(|item| matches!(item, Item::Range(0, 0, _)));
    let stepped_star = !is_star(day) && !is_star(weekday) && (day.begins_with_star() || weekday.begins_with_star());
    let weekday_from = weekday.0.iter().any(|item| matches!(item, Item::From(..)));
    // Of fixed times: to us, every list and range that does not begin with a star; to croner, a single time of day.
    let single = |field: &Field| matches!(field.0[..], [Item::One(_)]);
    let same_kind = !expression.fixed_time() || (single(minute) && single(hour) && second.as_ref().is_none_or(single));
    items_shared && !stepped_star && !weekday_from && !sunday_to_sunday && same_kind
}

/// The expression as the `cron` crate reads it: seconds first, weekdays by name.
fn for_cron(expression: &Expression) -> String {
    let named = Expression { names: true, ..expression.clone() };
    let text = named.text();
    if expression.second.is_some() { text } else { format!("0 {text}") }
}

fn shared_with_cron(expression: &Expression) -> bool {
    let plain = all_fields(expression).all(|field| {
        field.0.iter().all(|item| match item {
            Item::One(_) => true,
            Item::Range(a, b, n) => a < b && n.is_none_or(|n| n < 24),
            // It takes no step as long as the whole field.
            Item::From(_, n) => (2..24).contains(n),
            Item::Star(n) => field.0.len() == 1 && n.is_none_or(|n| n < 24),
            _ => false,
        })
    });
    let sunday_is_seven = expression.weekday.0.iter().any(|item| match item {
        Item::One(7) | Item::From(7, _) => true,
        Item::Range(a, b, _) => *a == 7 || *b == 7,
        _ => false,
    });
    // Its names take no step, and its steps over weekdays count from Sunday = 1.
    let weekday_step = expression
        .weekday
        .0
        .iter()
        .any(|item| matches!(item, Item::From(..) | Item::Range(_, _, Some(_)) | Item::Star(Some(_))));
    // Nor a step over named months, nor one of a year of months.
    let month_step = expression
        .month
        .0
        .iter()
        .any(|item| matches!(item, Item::From(..) | Item::Range(_, _, Some(_)) | Item::Star(Some(12))));
    let either_day_free = is_star(&expression.day) || is_star(&expression.weekday);
    let years_known = expression.year.iter().flat_map(|field| &field.0).all(|item| match item {
        Item::One(a) | Item::Range(_, a, _) => *a <= 2100,
        Item::From(..) => false,
        _ => true,
    });
    plain && years_known && !sunday_is_seven && !weekday_step && !month_step && either_day_free
}

fn any_expression() -> impl Strategy<Value = Expression> {
    prop_oneof![3 => fields::five(true), 1 => fields::five(false), 1 => fields::six(), 1 => fields::dates()]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn croner_agrees_where_the_dialects_are_the_same(
        expression in any_expression().prop_filter("not shared", shared_with_croner),
        zone in prop::sample::select(ZONES),
        from in 631_152_000..1_700_000_000_i64,
        near_change in any::<prop::sample::Index>(),
        near in any::<bool>(),
    ) {
        let tz = jiff::tz::TimeZone::get(zone).unwrap();
        let begin = jiff::Timestamp::from_second(from).unwrap();
        let changes: Vec<i64> = tz.following(begin).take(8).map(|change| change.timestamp().as_second()).collect();
        let from = if near && !changes.is_empty() { changes[near_change.index(changes.len())] - 7_000 } else { from };
        let from = DateTime::from_timestamp(from, 0).unwrap();
        let text = expression.text();
        // Changes after 2024 are no longer the same in all databases: what lies there is not compared.
        let known = |fires: Vec<DateTime<Utc>>| -> Vec<_> {
            fires.into_iter().take_while(|fire| zone == "UTC" || *fire < at("2024-11-01T00:00:00Z")).collect()
        };
        match ours(&text, zone, from, 6) {
            // The years end at 2399 here and at 5000 there.
            Some(found) if found.len() == 6 => {
                prop_assert_eq!(known(found), known(croner_from(&text, zone, from, 6)), "{} in {}", text, zone);
            }
            Some(_) => {}
            None => {
                let theirs = croner_from(&text, zone, at("1970-01-02T00:00:00Z"), 1);
                prop_assert!(theirs.is_empty() || theirs[0] > at("2399-12-31T00:00:00Z"), "we refuse {}", text);
            }
        }
    }

    #[test]
    fn the_cron_crate_agrees_on_plain_fields_in_utc(
        expression in any_expression().prop_filter("not shared", shared_with_cron),
        from in 631_152_000..3_000_000_000_i64,
    ) {
        let from = DateTime::from_timestamp(from, 0).unwrap();
        let theirs = cron::Schedule::from_str(&for_cron(&expression)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        // Strictly later than the start, up to the end of its years.
        let theirs: Vec<_> = theirs.after(&from).take(6).collect();
        let text = expression.text();
        let found = ours(&text, "UTC", from + chrono::TimeDelta::seconds(1), 6).unwrap_or_default();
        let until_2100 = |fires: Vec<DateTime<Utc>>| -> Vec<_> {
            fires.into_iter().take_while(|fire| *fire < at("2101-01-01T00:00:00Z")).collect()
        };
        prop_assert_eq!(until_2100(found), until_2100(theirs), "{}", text);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Disagreements with croner 4.0.3
// ---------------------------------------------------------------------------------------------------------------------

fn days(fires: &[DateTime<Utc>]) -> Vec<String> {
    fires.iter().map(|at| at.format("%m-%d").to_string()).collect()
}

/// A day field such as `*/2` begins with `*`: to Vixie cron and to us it is unrestricted, and both fields must match. To
/// croner only a bare `*` is, and either may.
#[test]
fn a_stepped_star_makes_both_day_fields_necessary() {
    let from = at("2026-02-01T00:00:00Z");
    let text = "0 0 */10 * MON";
    assert_eq!(days(&ours(text, "UTC", from, 3).unwrap()), ["05-11", "06-01", "08-31"]);
    assert_eq!(days(&croner_from(text, "UTC", from, 3)), ["02-01", "02-02", "02-09"]);
}

/// `a/n` goes to the end of the field. The week ends on Saturday (6) to us, so `4/1` is Thursday to Saturday and 7 is just
/// another way to write Sunday; to croner the field ends at 7 and `4/1` has Sunday in it.
#[test]
fn a_weekday_with_a_step_goes_to_saturday() {
    let from = at("2026-02-01T00:00:00Z");
    assert_eq!(days(&ours("0 0 * * 4/1", "UTC", from, 4).unwrap()), ["02-05", "02-06", "02-07", "02-12"]);
    assert_eq!(days(&croner_from("0 0 * * 4/1", "UTC", from, 4)), ["02-01", "02-05", "02-06", "02-07"]);
    assert_eq!(days(&ours("0 0 * * 7/3", "UTC", from, 4).unwrap()), ["02-01", "02-04", "02-07", "02-08"]);
    assert_eq!(days(&croner_from("0 0 * * 7/3", "UTC", from, 2)), ["02-01", "02-08"]);
}

/// `SUN-SUN` is Sunday to us, as `MON-MON` is Monday to both; croner reads the second SUN as 7 and takes the whole week.
#[test]
fn from_sunday_to_sunday_is_one_day() {
    let from = at("2026-02-01T00:00:00Z");
    assert_eq!(days(&ours("0 0 * * SUN-SUN", "UTC", from, 2).unwrap()), ["02-01", "02-08"]);
    assert_eq!(days(&croner_from("0 0 * * SUN-SUN", "UTC", from, 2)), ["02-01", "02-02"]);
    assert_eq!(days(&croner_from("0 0 * * MON-MON", "UTC", from, 2)), ["02-02", "02-09"]);
}

/// Two times of a fixed list fall into one gap: Debian cron makes both up, at the first instant after it, and so do we,
/// once; croner takes every list for an interval and skips it. The same at the overlap: a list is fixed times, which fire
/// at the first pass only.
#[test]
fn a_list_of_times_is_of_fixed_times() {
    let spring = at("2026-03-29T00:30:00Z");
    let first = |fires: Vec<DateTime<Utc>>| fires[0].to_rfc3339();
    assert_eq!(first(ours("15,45 2 * * *", "Europe/Berlin", spring, 1).unwrap()), "2026-03-29T01:00:00+00:00");
    assert_eq!(first(croner_from("15,45 2 * * *", "Europe/Berlin", spring, 1)), "2026-03-30T00:15:00+00:00");
    let autumn = at("2026-10-25T00:45:00Z");
    assert_eq!(
        first(ours("15,45 2 * * *", "Europe/Berlin", autumn, 2).unwrap()[1..].to_vec()),
        "2026-10-26T01:15:00+00:00"
    );
    assert_eq!(
        first(croner_from("15,45 2 * * *", "Europe/Berlin", autumn, 2)[1..].to_vec()),
        "2026-10-25T01:15:00+00:00"
    );
}

/// The day that Samoa skipped: the rule holds for a gap of any length. croner looks two hours far and gives up.
#[test]
fn a_gap_of_a_day_is_a_gap() {
    let from = at("2011-12-30T00:00:00Z");
    let found = ours("0 12 30 12 *", "Pacific/Apia", from, 1).unwrap();
    assert_eq!(found, [at("2011-12-30T10:00:00Z")]);
    let theirs = croners("0 12 30 12 *");
    let zone: Tz = "Pacific/Apia".parse().unwrap();
    assert!(theirs.find_next_occurrence(&from.with_timezone(&zone), false).is_err());
}

/// What croner refuses and we read: ranges over the end of a field, `L-n`, a `*` in a list, `@midnight`, `@every`.
#[test]
fn what_croner_does_not_read() {
    for text in ["0 0 * * FRI-MON", "0 22-2 * * *", "0 0 L-3 * *", "0 0 1 * *,MON", "@midnight", "@every 90s"] {
        assert!(CronParser::new().parse(text).is_err(), "croner reads {text}");
        assert!(ours(text, "UTC", at("2026-02-01T00:00:00Z"), 1).is_some(), "{text}");
    }
}

/// What croner reads and we refuse, each because two readers would take it for two things: `L` alone as a weekday, a
/// weekday range with `#`, `+` for "both must match", empty items of a list, steps beyond the field.
#[test]
fn what_we_do_not_read() {
    for text in ["0 0 * * L", "0 0 * * MON-FRI#2", "0 0 1 * +MON", "0,,30 * * * *", "0 0 1 * 5#L"] {
        assert!(ours(text, "UTC", at("2026-02-01T00:00:00Z"), 1).is_none(), "{text}");
    }
    assert!(CronParser::new().parse("0 0 * * MON-FRI#2").is_ok());
    assert!(CronParser::new().parse("0 0 1 * +MON").is_ok());
    assert!(CronParser::new().parse("0,,30 * * * *").is_ok());
    assert!(CronParser::new().parse("0 0 1 * 5#L").is_ok());
}

// ---------------------------------------------------------------------------------------------------------------------
// Disagreements with cron 0.17: the reasons why it is not the engine (docs/decisions/0002-cron-crate.md)
// ---------------------------------------------------------------------------------------------------------------------

fn cron_from(text: &str, from: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
    cron::Schedule::from_str(text).unwrap().after(&from).take(count).collect()
}

#[test]
fn the_cron_crate_counts_weekdays_from_one_and_joins_days_with_and() {
    let from = at("2026-02-01T00:00:00Z");
    // 1 is Sunday there.
    assert_eq!(days(&cron_from("0 0 0 * * 1", from, 1)), ["02-08"]);
    assert_eq!(days(&ours("0 0 0 * * 1", "UTC", from, 1).unwrap()), ["02-02"]);
    // Friday the 13th there; the 13th or any Friday here, as in every crontab.
    assert_eq!(days(&cron_from("0 0 0 13 * Fri", from, 2)), ["02-13", "03-13"]);
    assert_eq!(days(&ours("0 0 0 13 * FRI", "UTC", from, 2).unwrap()), ["02-06", "02-13"]);
    // Five fields are no expression to it, nor are L, W, # or ranges over the end of a field.
    for text in ["0 2 * * *", "0 0 0 L * *", "0 0 0 15W * *", "0 0 0 * * 5#2", "0 0 22-2 * * *"] {
        assert!(cron::Schedule::from_str(text).is_err(), "{text}");
        assert!(ours(text, "UTC", from, 1).is_some(), "{text}");
    }
}

#[test]
fn the_cron_crate_loses_instants_at_changes_of_the_clocks() {
    let zone: Tz = "Europe/Berlin".parse().unwrap();
    // The night of the gap: its day is lost.
    let spring = at("2026-03-28T12:00:00Z");
    let theirs = cron::Schedule::from_str("0 30 2 * * *").unwrap().after(&spring.with_timezone(&zone)).next().unwrap();
    assert_eq!(theirs.with_timezone(&Utc), at("2026-03-30T00:30:00Z"));
    assert_eq!(ours("0 30 2 * * *", "Europe/Berlin", spring, 1).unwrap(), [at("2026-03-29T01:00:00Z")]);
    // Within the repeated hour, asked one by one as a scheduler does: the second pass is lost.
    let autumn = at("2026-10-25T00:45:00Z");
    let theirs =
        cron::Schedule::from_str("0 */15 * * * *").unwrap().after(&autumn.with_timezone(&zone)).next().unwrap();
    assert_ne!(theirs.with_timezone(&Utc), at("2026-10-25T01:00:00Z"));
    let found = ours("0 */15 * * * *", "Europe/Berlin", autumn + chrono::TimeDelta::seconds(1), 1).unwrap();
    assert_eq!(found, [at("2026-10-25T01:00:00Z")]);
}
