//! Unions and exclusions: that a timetable is exactly what its parts say, however many they are, and that a search through
//! exclusions is short, or else says that it was cut and can be gone on with.

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test, at the place where it failed")]

#[path = "schedule_support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use carillon_core::schedule::{Exclusion, Next, ScheduleError, Spec, Timetable, TimetableSpec};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use proptest::prelude::*;
use support::{config, next, parse};
use uuid::Uuid;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn errors(spec: &TimetableSpec) -> Vec<ScheduleError> {
    Timetable::parse(spec, Uuid::nil()).unwrap_err()
}

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn minus(mut spec: TimetableSpec, exclusions: &[Exclusion]) -> TimetableSpec {
    spec.exclusions.extend_from_slice(exclusions);
    spec
}

fn single_days(first: &str, count: u64) -> Vec<Exclusion> {
    (0..count).map(|n| Exclusion::date(day(first) + Days::new(n))).collect()
}

#[test]
fn a_closed_stretch_is_leapt_over() {
    // Seventy years of every second, of which one day is left: found by leaps, not by looking at two billion seconds.
    let spec = TimetableSpec::cron("* * * * * *", "Europe/Berlin");
    let closed = [
        Exclusion::dates(day("2027-01-01"), day("2096-12-31")),
        Exclusion::cron("* 1-23 * * *"),
        Exclusion::cron("5-59 * * * *"),
    ];
    let timetable = parse(&minus(spec, &closed));
    assert_eq!(next(&timetable, at("2026-12-31T12:00:00Z")), Some(at("2096-12-31T23:00:00Z")));
    assert_eq!(next(&timetable, at("2096-12-31T23:04:59Z")), Some(at("2097-01-01T23:00:00Z")));
}

#[test]
fn a_wholly_excluded_schedule_does_not_stop_another() {
    let mut spec = TimetableSpec::cron("0 * * * *", "UTC");
    spec.specs.push(Spec::Once(at("2026-11-27T00:30:00Z")));
    spec.exclusions = vec![Exclusion::cron("*/2 * * * *").in_timezone("Asia/Kolkata")];
    assert_eq!(errors(&spec)[0].field, "exclusions", "half past is an even minute, too");
    spec.specs[1] = Spec::Once(at("2026-11-27T00:31:00Z"));
    assert_eq!(next(&parse(&spec), at("2026-11-01T00:00:00Z")), Some(at("2026-11-27T00:31:00Z")));
}

/// As many as a job may have, each as small as can be.
#[test]
fn a_thousand_single_dates_end_no_job() {
    let spec = minus(TimetableSpec::cron("0 9 * * *", "UTC"), &single_days("2027-01-01", 1_000));
    assert_eq!(next(&parse(&spec), at("2026-12-31T09:00:00Z")), Some(at("2029-09-27T09:00:00Z")));
    // In a hundred schedules, in a zone of its own, and backwards.
    let mut spec = spec;
    spec.specs = (0..100).map(|n| Spec::Cron(format!("{} 9 * * *", n % 60))).collect();
    spec.exclusions.reverse();
    for exclusion in &mut spec.exclusions {
        *exclusion = exclusion.clone().in_timezone("America/New_York");
    }
    assert_eq!(next(&parse(&spec), at("2027-01-02T00:00:00Z")), Some(at("2029-09-27T09:00:00Z")));
}

/// Long closed times in pieces of minutes are passed, whatever else is excluded.
#[test]
fn patterns_that_close_a_time_together_are_passed_together() {
    let every_other = TimetableSpec::cron("*/2 * * * *", "UTC");
    let pieces = |months: &str, minutes: [&str; 2], zone: &str| {
        minutes.map(|minutes| Exclusion::cron(format!("{minutes} * * {months} *")).in_timezone(zone))
    };
    let begin = at("2027-01-01T00:00:00Z");
    let closed = minus(every_other.clone(), &pieces("1-11", ["*/4", "2-59/4"], "UTC"));
    assert_eq!(next(&parse(&closed), begin), Some(at("2027-12-01T00:00:00Z")));
    let closed = minus(every_other, &pieces("1-11", ["*/4", "2-59/4"], "Europe/Berlin"));
    let closed = minus(closed, &single_days("2027-11-30", 10));
    assert_eq!(next(&parse(&closed), begin), Some(at("2027-12-10T00:00:00Z")));
    let every_five = TimetableSpec::every(Duration::from_secs(300), at("2026-01-01T00:00:00Z"));
    let closed = minus(every_five, &pieces("1-6", ["*/10", "5-59/10"], "UTC"));
    let closed = minus(closed, &single_days("2027-07-01", 20));
    assert_eq!(next(&parse(&closed), begin), Some(at("2027-07-21T00:00:00Z")));
    // A leap of what the asker can have: the quarter hours, in a zone that is 45 minutes off.
    let quarters = TimetableSpec::every(Duration::from_secs(900), at("2026-01-01T00:05:00Z"));
    let closed = minus(quarters, &pieces("1-11", ["5-20/15", "35,50"], "Asia/Kathmandu"));
    assert_eq!(next(&parse(&closed), begin), Some(at("2027-11-30T18:20:00Z")));
}

/// An exclusion is of all years, also where its zone is in another one than the schedule.
#[test]
fn exclusions_hold_at_both_ends_of_the_years() {
    for zone in ["Pacific/Kiritimati", "Pacific/Niue"] {
        let spec = minus(TimetableSpec::cron("0 * * * *", "UTC"), &[Exclusion::cron("* * * * *").in_timezone(zone)]);
        assert_eq!(errors(&spec)[0].message, "schedule: can never fire: the exclusions leave nothing of it");
    }
    let daily = TimetableSpec::every(Duration::from_secs(86_400), at("2399-12-30T12:00:00Z"));
    let timetable = parse(&minus(daily, &[Exclusion::cron("* * * 1-11 *")]));
    assert_eq!(next(&timetable, at("2399-12-31T12:00:00Z")), Some(at("2400-12-01T12:00:00Z")));
}

/// Every minute, of which two zones leave none from January to November, each only every other.
fn comb() -> TimetableSpec {
    let closed = [Exclusion::cron("*/2 * * 1-11 *"), Exclusion::cron("1-59/2 * * 1-11 *").in_timezone("Asia/Tokyo")];
    minus(TimetableSpec::cron("* * * * *", "UTC"), &closed)
}

#[test]
fn a_cut_search_is_no_end_and_can_be_gone_on_with() {
    let timetable = parse(&comb());
    let mut after = at("2027-01-01T00:00:00Z");
    let mut cuts = 0;
    let found = loop {
        match timetable.next_after(after) {
            Next::Fire(at) => break at,
            Next::Cut(at) => {
                assert!(at > after && timetable.excludes(at), "a timer that stands there fires nothing");
                (after, cuts) = (at, cuts + 1);
            }
            Next::End => panic!("a cut search must not say that nothing is to come"),
        }
    };
    assert_eq!((found, cuts > 0), (at("2027-11-30T15:01:00Z"), true));
    // Listing goes on by itself.
    let mut listed = timetable.between(at("2027-01-01T00:00:00Z"), at("2028-01-01T00:00:00Z"));
    assert_eq!(listed.next(), Some(found));
    // Another schedule of the same job is found where the first is cut.
    let mut spec = comb();
    spec.specs.push(Spec::Once(at("2027-02-01T00:00:30Z")));
    spec.exclusions.remove(1);
    spec.exclusions.push(Exclusion::cron("1-59/2 * * 1-11 *").in_timezone("Asia/Seoul"));
    let cut = parse(&spec).next_after(at("2027-01-01T00:00:00Z"));
    assert!(matches!(cut, Next::Cut(_)), "excluded as well: {cut:?}");
}

#[test]
fn a_timetable_that_cannot_be_searched_is_refused_as_such() {
    let begin = at("2027-01-01T00:00:00Z");
    let error = parse(&comb()).check_fires_after(begin).unwrap_err();
    assert_eq!(error.field, "exclusions");
    let (rule, remedy) = error.message.split_once("; ").unwrap();
    assert!(
        rule.starts_with(
            "exclusions: cannot be searched: a search that began at 2027-01-01T00:00:00Z found nothing up to 2027-"
        ),
        "{rule}"
    );
    assert!(remedy.starts_with("make them fewer and coarser"), "{remedy}");
    assert!(parse(&comb()).check_fires_after(at("2027-11-30T00:00:00Z")).is_ok());
    // What leaves nothing in truth but is not seen to do so is not called empty either.
    let closed = [Exclusion::cron("*/2 * * * *"), Exclusion::cron("1-59/2 * * * *").in_timezone("Asia/Tokyo")];
    let empty = parse(&minus(TimetableSpec::cron("* * * * *", "UTC"), &closed));
    assert!(matches!(empty.next_after(begin), Next::Cut(_)));
    assert!(empty.check_fires_after(begin).unwrap_err().message.contains("cannot be searched"));
}

/// The clocks of Havana go back from 01:00 to 00:00 and those of Santiago from 24:00 to 23:00: a day is shown twice in part.
#[test]
fn a_day_is_out_at_both_passes_of_its_hours() {
    for (zone, date) in [("America/Havana", "2026-11-01"), ("America/Santiago", "2026-04-04")] {
        let spec = minus(TimetableSpec::cron("*/30 * * * *", zone), &[Exclusion::date(day(date))]);
        let timetable = parse(&spec);
        let (from, to) = (day(date) - Days::new(1), day(date) + Days::new(2));
        let instant = |day: NaiveDate| day.and_hms_opt(12, 0, 0).unwrap().and_utc();
        for fire in timetable.between(instant(from), instant(to)) {
            let local = fire.with_timezone(&zone.parse::<chrono_tz::Tz>().unwrap()).date_naive();
            assert_ne!(local, day(date), "{zone}");
        }
        assert_eq!(timetable.between(instant(from), instant(to)).count(), 145 - 50, "25 hours are out");
    }
}

/// What a leap must not pass over.
#[test]
fn leaps_end_where_clocks_change() {
    let check = |spec: TimetableSpec, zone: &str, closed: Exclusion, after: &str, expected: &str| {
        let timetable =
            parse(&TimetableSpec { timezone: zone.to_owned(), ..minus(spec, std::slice::from_ref(&closed)) });
        assert_eq!(next(&timetable, at(after)), Some(at(expected)), "{closed:?}");
    };
    let line = |text: &str| TimetableSpec::cron(text, "UTC");
    let every = |minutes: u64, anchor: &str| TimetableSpec::every(Duration::from_secs(60 * minutes), at(anchor));
    // The night of the exclusion's zone is an hour shorter.
    let night = Exclusion::cron("* 0-5 * * *").in_timezone("Europe/Berlin");
    let anchor = "2026-01-01T00:00:00Z";
    check(every(5, anchor), "UTC", night, "2026-03-29T00:30:00Z", "2026-03-29T04:00:00Z");
    // The hours of the schedule's zone move by half an hour against those of the exclusion's.
    let half = Exclusion::cron("30 * * * *").in_timezone("UTC");
    check(line("0 * * * *"), "Australia/Lord_Howe", half, "2026-10-03T00:00:00Z", "2026-10-03T16:00:00Z");
    // Minutes of a zone that is no whole hours away, and of an interval.
    let quarter_past = Exclusion::cron("15 * * * *").in_timezone("UTC");
    check(line("0,20 * * * *"), "Asia/Kathmandu", quarter_past, "2026-10-03T00:00:00Z", "2026-10-03T00:35:00Z");
    let two = Exclusion::cron("5,35 * * * *");
    check(every(15, "2026-01-01T00:05:00Z"), "UTC", two, "2026-10-03T00:00:00Z", "2026-10-03T00:20:00Z");
    // At 00:01 these clocks went back into the day before, of which nothing is out.
    let sunday = Exclusion::date(day("2010-11-07"));
    check(line("*/30 * * * *"), "America/St_Johns", sunday, "2010-11-07T02:20:00Z", "2010-11-07T03:00:00Z");
    // The midnight at which a day would end is skipped.
    let saturday = Exclusion::date(day("2018-11-03"));
    check(line("*/30 * * * *"), "America/Sao_Paulo", saturday, "2018-11-04T02:10:00Z", "2018-11-04T03:00:00Z");
}

/// What the properties look at: two days and a half around one of these, where clocks of some of the zones change.
const MIDDLES: [&str; 6] = [
    "2026-03-28T12:00:00Z",
    "2026-04-04T15:00:00Z",
    "2026-10-03T15:00:00Z",
    "2026-10-25T00:00:00Z",
    "2026-11-01T06:00:00Z",
    "2010-11-07T02:00:00Z",
];
const ZONES: [&str; 7] = [
    "UTC",
    "Europe/Berlin",
    "Asia/Kathmandu",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "America/St_Johns",
];

/// A spec whose instants are told from the middle on.
#[derive(Clone, Debug)]
enum Part {
    Line(String),
    Every(u64, i64),
    Once(i64),
}

impl Part {
    fn spec(&self, middle: DateTime<Utc>) -> Spec {
        let shifted = |ms: i64| middle + TimeDelta::milliseconds(ms);
        match self {
            Part::Line(text) => Spec::Cron(text.clone()),
            Part::Every(interval_ms, shift) => Spec::Every { interval_ms: *interval_ms, anchor: shifted(*shift) },
            Part::Once(shift) => Spec::Once(shifted(*shift)),
        }
    }
}

/// One spec of a union.
fn part() -> impl Strategy<Value = Part> {
    let minutes = prop::sample::select(vec!["*/7", "0", "15,45", "*", "3-50/9", "*/5"]);
    let hours = prop_oneof![3 => Just("*"), 1 => Just("*/3"), 1 => Just("1-4"), 1 => Just("2")];
    let weekdays = prop_oneof![3 => Just("*"), 1 => Just("MON-FRI"), 1 => Just("SUN")];
    let whole_minutes = (3..90_u64).prop_map(|minutes| minutes * 60_000);
    let interval = prop_oneof![1 => 200_000..10_000_000_u64, 2 => whole_minutes];
    prop_oneof![
        4 => (minutes, hours, weekdays).prop_map(|(m, h, w)| Part::Line(format!("{m} {h} * * {w}"))),
        3 => (interval, -50_000_000..50_000_000_i64).prop_map(|(ms, shift)| Part::Every(ms, shift)),
        1 => (-100_000_000..100_000_000_i64).prop_map(Part::Once),
    ]
}

/// An exclusion, with what is asked whether it holds an instant.
#[derive(Clone, Debug)]
struct Closed {
    exclusion: Exclusion,
    zone: chrono_tz::Tz,
    /// A pattern's own timetable of whole minutes, in UTC.
    minutes: Option<Timetable>,
}

impl Closed {
    fn new(exclusion: &Exclusion, zone: &str) -> Self {
        let minutes = match exclusion {
            Exclusion::Dates { .. } => None,
            Exclusion::Cron { expression, .. } => Some(parse(&TimetableSpec::cron(expression, "UTC"))),
        };
        Self { exclusion: exclusion.clone().in_timezone(zone), zone: zone.parse().unwrap(), minutes }
    }

    /// Asked through local time, one by one.
    fn holds(&self, instant: DateTime<Utc>) -> bool {
        let local = instant.with_timezone(&self.zone);
        match (&self.exclusion, &self.minutes) {
            (Exclusion::Dates { from, to, .. }, _) => (*from..=*to).contains(&local.date_naive()),
            (_, Some(minutes)) => {
                // The wall clock, dressed as UTC, where no clock ever changes.
                let minute = at(&local.format("%FT%H:%M:00Z").to_string());
                next(minutes, minute - TimeDelta::seconds(1)) == Some(minute)
            }
            (_, None) => false,
        }
    }
}

/// What is excluded: a pattern, or days from the one of the middle on.
#[derive(Clone, Debug)]
enum What {
    Pattern(&'static str),
    Days(i64, u64),
}

fn closing() -> impl Strategy<Value = (What, &'static str)> {
    let pattern = prop::sample::select(vec![
        "* 0-5 * * *",
        "*/2 * * * *",
        "* * * * SUN",
        "0-29 2,3 * * *",
        "* * 29 3 *",
        "10-20 */2 * * 1-5",
        "1-59/4 * 28-30 * *",
        "7 * * * *",
        "0,15,30 * * * *",
        "59 23 * * *",
        "0-44 4-20 * 3,10 *",
    ]);
    let what = prop_oneof![
        3 => pattern.prop_map(What::Pattern),
        2 => (-4..4_i64, 0..2_u64).prop_map(|(first, more)| What::Days(first, more)),
    ];
    (what, prop::sample::select(ZONES.to_vec()))
}

/// Few exclusions, or many, or hundreds of which most lie elsewhere.
fn closings() -> impl Strategy<Value = Vec<(What, &'static str)>> {
    let far = (10..10_000_i64).prop_map(|first| (What::Days(first, 0), "Europe/Berlin"));
    prop_oneof![
        3 => prop::collection::vec(closing(), 0..3),
        2 => prop::collection::vec(closing(), 3..12),
        1 => (prop::collection::vec(closing(), 1..4), prop::collection::vec(far, 100..300))
            .prop_map(|(near, far)| near.into_iter().chain(far).collect()),
    ]
}

proptest! {
    #![proptest_config(config(100))]

    /// A timetable is the union of its specs, minus the exclusions, within the bounds; nothing more and nothing less; and
    /// stepping from instant to instant, over whatever cuts, gives the same as listing.
    #[test]
    fn a_timetable_is_what_its_parts_say(
        parts in prop::collection::vec(part(), 1..4),
        closings in closings(),
        middle in prop::sample::select(MIDDLES.to_vec()),
        zone in prop::sample::select(ZONES.to_vec()),
        start in prop::option::of(-50_000_000..50_000_000_i64),
        end in prop::option::of(60_000_000..200_000_000_i64),
    ) {
        let middle = at(middle);
        let shifted = |ms: i64| middle + TimeDelta::milliseconds(ms);
        let (from, to) = (shifted(-80_000_000), shifted(130_000_000));
        let closings: Vec<Closed> = closings
            .into_iter()
            .map(|(what, zone)| match what {
                What::Pattern(text) => Closed::new(&Exclusion::cron(text), zone),
                What::Days(first, more) => {
                    let first = (middle + TimeDelta::days(first)).date_naive();
                    Closed::new(&Exclusion::dates(first, first + Days::new(more)), zone)
                }
            })
            .collect();
        let specs: Vec<Spec> = parts.iter().map(|part| part.spec(middle)).collect();
        let plain = || TimetableSpec { timezone: zone.to_owned(), ..TimetableSpec::never() };
        let mut whole = TimetableSpec { specs: specs.clone(), ..plain() };
        whole.exclusions = closings.iter().map(|closed| closed.exclusion.clone()).collect();
        (whole.start, whole.end) = (start.map(shifted), end.map(shifted));
        let mut expected = BTreeSet::new();
        for spec in specs {
            expected.extend(parse(&TimetableSpec { specs: vec![spec], ..plain() }).between(from, to));
        }
        expected.retain(|at| whole.start.is_none_or(|start| *at >= start) && whole.end.is_none_or(|end| *at <= end));
        expected.retain(|at| !closings.iter().any(|closed| closed.holds(*at)));
        let Ok(timetable) = Timetable::parse(&whole, Uuid::nil()) else {
            prop_assert!(expected.is_empty());
            return Ok(());
        };
        let found: Vec<_> = timetable.between(from, to).collect();
        prop_assert!(found.iter().eq(expected.iter()), "{:?}", whole);
        let mut stepped = Vec::new();
        let mut after = from - TimeDelta::milliseconds(1);
        while let Some(at) = timetable.next_after(after).timer().filter(|at| *at <= to) {
            if !timetable.excludes(at) {
                stepped.push(at);
            }
            after = at;
        }
        prop_assert!(stepped == found, "stepping, {:?}", whole);
        prop_assert_eq!(timetable.last_at_or_before(to, from), expected.last().copied());
        prop_assert!(!timetable.describe().is_empty());
    }
}
