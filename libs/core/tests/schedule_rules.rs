//! Rules of the timetable that are not of one expression: errors, bounds, `H` over many jobs, what is stored, and that
//! no text whatever makes the parser or a search misbehave.

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test, at the place where it failed")]

#[path = "schedule_support/mod.rs"]
mod support;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use carillon_core::schedule::{DstGap, DstOverlap, Exclusion, ScheduleError, Spec, Timetable, TimetableSpec};
use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use support::{config, next, parse};
use uuid::Uuid;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn errors(spec: &TimetableSpec) -> Vec<ScheduleError> {
    Timetable::parse(spec, Uuid::nil()).unwrap_err()
}

/// The messages for one expression, each without the name that all share.
fn messages(expression: &str) -> Vec<String> {
    errors(&TimetableSpec::cron(expression, "UTC")).into_iter().map(|error| error.message).collect()
}

/// Expressions with one mistake, and the words for it.
const MISTAKES: &[(&str, &str)] = &[
    ("60 * * * *", "minute: 60 is outside 0-59 (at 1)"),
    ("* 24 * * *", "hour: 24 is outside 0-23 (at 3)"),
    ("* * 0 * *", "day of month: 0 is outside 1-31 (at 5)"),
    ("* * * 13 *", "month: 13 is outside 1-12 or JAN-DEC (at 7)"),
    ("* * * * 8", "weekday: 8 is outside 0-7 or SUN-SAT (at 9)"),
    ("60 * * * * *", "second: 60 is outside 0-59 (at 1)"),
    ("0 0 0 1 1 * 1969", "year: 1969 is outside 1970-2399 (at 13)"),
    ("0 0 0 1 1 * 2030-2027", "year: 2030-2027 runs backwards (at 13)"),
    ("99999999999999 * * * *", "minute: 99999999999999 is outside 0-59 (at 1)"),
    ("  5,61 * * * *", "minute: 61 is outside 0-59 (at 5)"),
    ("1,,2 * * * *", "minute: a value is missing; allowed are 0-59 (at 3)"),
    ("1- * * * *", "minute: a value is missing; allowed are 0-59 (at 3)"),
    ("*/0 * * * *", "minute: a step of 0 stands still; allowed are 1-60 (at 3)"),
    ("*/ * * * *", "minute: a step is missing behind / (1-60) (at 3)"),
    ("* */25 * * *", "hour: a step of 25 is outside 1-24; write @every 25h (at 5)"),
    ("* * */32 * *", "day of month: a step of 32 is outside 1-31 (at 7)"),
    ("*5 * * * *", "minute: \"5\" cannot follow \"*\" (at 2)"),
    ("5x * * * *", "minute: \"x\" cannot follow \"5\" (at 2)"),
    ("x * * * *", "minute: x is not a value; allowed are 0-59 (at 1)"),
    ("-5 * * * *", "minute: -5 is not a value; allowed are 0-59 (at 1)"),
    ("1-5-9 * * * *", "minute: \"-9\" cannot follow \"1-5\" (at 4)"),
    ("1/2/3 * * * *", "minute: \"/3\" cannot follow \"1/2\" (at 4)"),
    ("ü * * * *", "minute: ü is not a value; allowed are 0-59 (at 1)"),
    ("5 ü * * *", "hour: ü is not a value; allowed are 0-23 (at 3)"),
    ("* * * * MONDAY", "weekday: MONDAY is not a value; names have three letters, as in MON (at 9)"),
    ("* * * January *", "month: January is not a value; names have three letters, as in JAN (at 7)"),
    ("* * * * FOO", "weekday: FOO is not a value; allowed are 0-7 or SUN-SAT (at 9)"),
    ("MON * * * *", "minute: MON is not a value; allowed are 0-59 (at 1)"),
    ("? * * * *", "minute: ? is for day of month and weekday only; write * for every value (at 1)"),
    ("* * ?,5 * *", "day of month: ? stands alone in its field (at 5)"),
    ("* * ?/2 * *", "day of month: \"/2\" cannot follow \"?\" (at 6)"),
    ("L * * * *", "minute: L, the last of the month, is for day of month and weekday only (at 1)"),
    ("* * * * L", "weekday: L needs a weekday before it, such as 5L for the last Friday (at 9)"),
    ("* * 5L * *", "day of month: a value before L, the last of the month, belongs to weekday (at 6)"),
    ("* * L-0 * *", "day of month: 0 is outside 1-30 (days before the last) (at 7)"),
    ("* * L-31 * *", "day of month: 31 is outside 1-30 (days before the last) (at 7)"),
    ("* * L- * *", "day of month: a number is missing (days before the last, 1-30) (at 7)"),
    ("* * * * 15W", "weekday: 15 is outside 0-7 or SUN-SAT (at 9)"),
    ("* 5W * * *", "hour: W, the nearest working day, belongs to day of month (at 4)"),
    ("* * W * *", "day of month: W is not a value; allowed are 1-31 (at 5)"),
    ("* * 1-5W * *", "day of month: \"W\" cannot follow \"1-5\" (at 8)"),
    ("* * * * 5#6", "weekday: 6 is outside 1-5 (# of the month) (at 11)"),
    ("* * * * 5#0", "weekday: 0 is outside 1-5 (# of the month) (at 11)"),
    ("* * * * 5#", "weekday: a number is missing (# of the month, 1-5) (at 11)"),
    ("* * 5#1 * *", "day of month: #, the nth of the month, belongs to weekday (at 6)"),
    ("H(5 * * * *", "minute: - is expected here, as in H(a-b) (at 4)"),
    ("H(5-70) * * * *", "minute: 70 is outside 0-59 (at 5)"),
    ("H(5-7 * * * *", "minute: ) is expected here, as in H(a-b) (at 6)"),
    ("H/99 * * * *", "minute: a step of 99 is outside 1-60; write @every 99m (at 3)"),
    ("0 0 0 1 1 * H", "year: H is not for years: it would leave a single one (at 13)"),
    ("", "schedule: is empty; five fields are needed, such as 0 2 * * *"),
    ("   ", "schedule: is empty; five fields are needed, such as 0 2 * * *"),
    ("*", "schedule: 1 field found, 5 to 7 are allowed: [second] minute hour day-of-month month weekday [year]"),
    (
        "* * * * * * * *",
        "schedule: 8 fields found, 5 to 7 are allowed: [second] minute hour day-of-month month weekday [year]",
    ),
    (
        "@fortnightly",
        "schedule: @fortnightly is not one of @yearly @annually @monthly @weekly @daily @midnight @hourly @every (at 1)",
    ),
    ("TZ=UTC 0 2 * * *", "schedule: TZ= is not read here; put the zone into the field timezone (at 1)"),
    ("@every 5", "@every: \"5\" is not numbers with units such as 250ms, 90s, 1h30m or 2d (at 8)"),
    ("  @every 30m1h", "@every: units go from large to small, each once; \"h\" does not (at 13)"),
    ("@every 1h 30 ", "@every: \"30\" is not numbers with units such as 250ms, 90s, 1h30m or 2d (at 11)"),
    ("@every", "@every: must be numbers with units such as 250ms, 90s, 1h30m or 2d, is \"\""),
    ("*/4294967297 * * * *", "minute: a step of 4294967297 is outside 1-60 (at 3)"),
    ("@every 10ms", "@every: 10ms is shorter than 100ms"),
    (
        "0 0 31 2,4,6,9,11 *",
        "schedule: can never fire: no day of the years 1970-2399 fits its day of month, month, weekday and year",
    ),
];

#[test]
fn each_mistake_names_field_position_and_what_is_allowed() {
    for (expression, message) in MISTAKES {
        assert_eq!(messages(expression), [*message], "{expression:?}");
    }
}

#[test]
fn several_mistakes_come_together_and_are_bounded() {
    let mut spec = TimetableSpec::cron("61,62 * * * *", "Europe/Berlim");
    spec.specs.push(Spec::Cron("* 25 * * *".to_owned()));
    spec.specs.push(Spec::Every { interval_ms: 5, anchor: at("2026-01-01T00:00:00Z") });
    spec.exclusions = vec![
        Exclusion::dates("2026-12-26".parse().unwrap(), "2026-12-24".parse().unwrap()),
        Exclusion::cron("* * * * * *"),
        Exclusion::cron("H * * * *"),
        Exclusion::date("2026-12-31".parse().unwrap()).in_timezone("Nowhere"),
        Exclusion::cron("* 77 * * *"),
    ];
    (spec.start, spec.end) = (Some(at("2026-02-01T00:00:00Z")), Some(at("2026-01-01T00:00:00Z")));
    let found: Vec<(String, String)> = errors(&spec).into_iter().map(|error| (error.field, error.message)).collect();
    let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "timezone",
            "schedules[0]",
            "schedules[0]",
            "schedules[1]",
            "interval",
            "exclusions[0]",
            "exclusions[1]",
            "exclusions[2]",
            "exclusions[3]",
            "exclusions[4]",
            "end_date",
        ]
    );
    assert_eq!(found[5].1, "exclusion: 2026-12-24 is before 2026-12-26");
    assert_eq!(found[10].1, "end_date: 2026-01-01T00:00:00Z is before start_date 2026-02-01T00:00:00Z");
    // Positions count characters, not bytes.
    assert_eq!(messages("5 ü 99 * *")[1], "day of month: 99 is outside 1-31 (at 5)");
    let many = format!("{} * * * *", vec!["99"; 300].join(","));
    assert_eq!(messages(&many).len(), 16);
    let long = "1,".repeat(600);
    assert_eq!(messages(&long), ["schedule: is 1200 bytes long, at most 1024 are allowed"]);
}

#[test]
fn a_time_that_is_always_swallowed_never_fires_if_gaps_are_skipped() {
    let mut spec = TimetableSpec::cron("0 30 2 ? 3 0L 1990-2399", "Europe/Berlin");
    spec.dst_gap = Some(DstGap::Skip);
    assert!(errors(&spec)[0].message.contains("hours that changes of the clocks skip"));
    spec.dst_gap = None;
    assert_eq!(next(&parse(&spec), at("2026-01-01T00:00:00Z")), Some(at("2026-03-29T01:00:00Z")));
}

/// What is refused as empty names the field that makes it so.
#[test]
fn the_field_that_leaves_nothing_is_named() {
    let bounded = |spec: TimetableSpec, start: &str, end: &str| {
        let bound = |text: &str| (!text.is_empty()).then(|| at(text));
        let error = errors(&TimetableSpec { start: bound(start), end: bound(end), ..spec }).remove(0);
        format!("{} | {}", error.field, error.message.trim_start_matches("schedule: "))
    };
    let cron = |text: &str| TimetableSpec::cron(text, "UTC");
    let once = || TimetableSpec::once(at("2020-01-01T00:00:00Z"));
    assert_eq!(
        bounded(once(), "2021-01-01T00:00:00Z", ""),
        "schedule | 2020-01-01T00:00:00Z is before start_date, 2021-01-01T00:00:00Z"
    );
    assert_eq!(
        bounded(once(), "", "2019-01-01T00:00:00Z"),
        "schedule | 2020-01-01T00:00:00Z is after end_date, 2019-01-01T00:00:00Z"
    );
    let in_2027 = || cron("0 0 0 1 1 ? 2027");
    let late = "start_date | can never fire: its last instant is before start_date";
    assert_eq!(bounded(in_2027(), "2028-01-01T00:00:00Z", ""), late);
    assert_eq!(bounded(in_2027(), "2028-01-01T00:00:00Z", "2029-01-01T00:00:00Z"), late);
    let early = "end_date | can never fire: its first instant is after end_date";
    assert_eq!(bounded(in_2027(), "", "2026-01-01T00:00:00Z"), early);
    let mut yearly = cron("0 0 1 1 *");
    yearly.exclusions = vec![Exclusion::date("2026-12-25".parse().unwrap())];
    let between = "end_date | can never fire: none of its instants lies between start_date and end_date";
    assert_eq!(bounded(yearly.clone(), "2026-12-01T00:00:00Z", "2026-12-30T00:00:00Z"), between);
    yearly.exclusions = vec![Exclusion::date("2027-01-01".parse().unwrap())];
    let excluded = "exclusions | can never fire: the exclusions leave nothing between start_date and end_date";
    assert_eq!(bounded(yearly.clone(), "2026-12-01T00:00:00Z", "2027-12-30T00:00:00Z"), excluded);
    let never_again = Exclusion::dates("2027-01-01".parse().unwrap(), "9999-12-31".parse().unwrap());
    yearly.exclusions = vec![never_again];
    let excluded = "exclusions | can never fire: the exclusions leave nothing from start_date on";
    assert_eq!(bounded(yearly, "2026-12-01T00:00:00Z", ""), excluded);
    let beyond = TimetableSpec::once(DateTime::<Utc>::MAX_UTC);
    assert_eq!(bounded(beyond, "", ""), "schedule | can never fire: everything ends with the year 9999");
}

#[test]
fn an_exclusion_that_never_matches_is_refused() {
    let message = |exclusion: Exclusion| {
        let mut spec = TimetableSpec::cron("@daily", "UTC");
        spec.exclusions = vec![exclusion];
        errors(&spec).remove(0).message
    };
    let day = |year: i32| chrono::NaiveDate::from_ymd_opt(year, 1, 1).unwrap();
    assert_eq!(
        message(Exclusion::cron("* * 30 2 *")),
        "exclusion: can never match: no day of any year fits its day of month, month and weekday"
    );
    assert_eq!(message(Exclusion::date(day(10_000))), "exclusion: +10000-01-01 is outside the years 1 to 9999");
    assert_eq!(message(Exclusion::dates(day(0), day(3_000))), "exclusion: 0000-01-01 is outside the years 1 to 9999");
    assert_eq!(message(Exclusion::cron("61")), "exclusion: 1 field found; a pattern of minutes has five");
}

#[test]
fn an_exclusion_is_read_from_a_line() {
    let read = |text: &str| text.parse::<Exclusion>().unwrap();
    assert_eq!(read("2026-12-24"), Exclusion::date("2026-12-24".parse().unwrap()));
    let range = Exclusion::dates("2026-12-24".parse().unwrap(), "2026-12-26".parse().unwrap());
    assert_eq!(read(" 2026-12-24 .. 2026-12-26 in Asia/Tokyo"), range.in_timezone("Asia/Tokyo"));
    assert_eq!(read("* 0-5 * * * in UTC"), Exclusion::cron("* 0-5 * * *").in_timezone("UTC"));
    for wrong in ["", "foo", "2026-1-2", "2026-12-24..", "24.12.2026", "2026-12-24 .. tomorrow"] {
        assert!(wrong.parse::<Exclusion>().unwrap_err().message.contains("is no date (2026-12-24)"), "{wrong}");
    }
}

#[test]
fn descriptions_are_english() {
    let says = |text: &str| parse(&TimetableSpec::cron(text, "UTC")).describe();
    for (text, words) in [
        ("0,30 */5 * * * *", "every 30 seconds of every 5th minute, UTC"),
        ("0,30 * * * * *", "every 30 seconds, UTC"),
        ("5,10 * * * * *", "at seconds 5 and 10 of every minute, UTC"),
        ("*/20 3-13/5 * * * *", "every 20 seconds in minutes 3, 8 and 13 of every hour, UTC"),
        ("* */2 9-17 * * *", "every second of every 2nd minute from 09:00 to 17:58, UTC"),
        ("0 0 L-30 * *", "at 00:00 on the 30th day before the last of the month, UTC"),
        ("0 0 L-22 * *", "at 00:00 on the 22nd day before the last of the month, UTC"),
        ("0 0 L-1 * *", "at 00:00 on the day before the last of the month, UTC"),
        ("0 0 * * 5-7", "at 00:00 on Friday to Sunday, UTC"),
        ("0 0 * * 6,0", "at 00:00 on Saturday and Sunday, UTC"),
        ("0 0 * * FRI-MON", "at 00:00 on Friday to Monday, UTC"),
        ("0 0 * * MON,WED,SUN", "at 00:00 on Monday, Wednesday and Sunday, UTC"),
        ("0 0 * * 0-5", "at 00:00 on Sunday to Friday, UTC"),
        ("*/10 * * * *", "every 10 minutes, UTC"),
        ("17 * * * *", "at minute 17 of every hour, UTC"),
    ] {
        assert_eq!(says(text), words, "{text}");
    }
    let example = "at 21:04 every day (no job was named, so these values of H are only an example), UTC";
    assert!(says("H H * * *").ends_with(&example[8..]), "{}", says("H H * * *"));
}

#[test]
fn a_past_schedule_is_told_by_whoever_has_the_clock() {
    let now = at("2026-11-27T00:00:00Z");
    let error = parse(&TimetableSpec::cron("0 0 0 1 1 * 2020", "UTC")).check_fires_after(now).unwrap_err();
    assert_eq!(error.message, "schedule: has no fire after 2026-11-27T00:00:00Z; its last was 2020-01-01T00:00:00Z");
    assert!(parse(&TimetableSpec::cron("0 0 1 1 *", "UTC")).check_fires_after(now).is_ok());
    assert!(parse(&TimetableSpec::never()).check_fires_after(now).is_ok());
}

#[test]
fn the_timetable_of_an_event_job_has_no_instants() {
    let never = parse(&TimetableSpec::never());
    assert_eq!(next(&never, DateTime::<Utc>::MIN_UTC), None);
    assert_eq!(never.last_at_or_before(at("2026-01-01T00:00:00Z"), DateTime::<Utc>::MIN_UTC), None);
    assert_eq!(never.describe(), "never by time");
}

#[test]
fn the_ends_of_time_are_no_trouble() {
    for spec in [
        TimetableSpec::cron("* * * * * *", "Pacific/Kiritimati"),
        TimetableSpec::cron("0 0 1 1 *", "America/Los_Angeles"),
        TimetableSpec::every(Duration::from_millis(100), DateTime::<Utc>::MIN_UTC),
        TimetableSpec::every(Duration::from_secs(86_400), at("9999-12-31T23:59:59.999Z")),
        TimetableSpec::once(at("9999-12-31T23:59:59.999Z")),
        TimetableSpec::once(DateTime::<Utc>::MIN_UTC),
    ] {
        let timetable = parse(&spec);
        for instant in
            [DateTime::<Utc>::MIN_UTC, DateTime::UNIX_EPOCH, at("2400-01-01T00:00:00Z"), DateTime::<Utc>::MAX_UTC]
        {
            if let Some(next) = next(&timetable, instant) {
                assert!(next > instant);
            }
            let _ = timetable.last_at_or_before(instant, DateTime::<Utc>::MIN_UTC);
            let _ = timetable.between(instant, DateTime::<Utc>::MAX_UTC).take(3).count();
        }
    }
    let last = parse(&TimetableSpec::cron("0 0 31 12 *", "UTC"));
    assert_eq!(next(&last, at("2399-12-30T00:00:00Z")), Some(at("2399-12-31T00:00:00Z")));
    assert_eq!(next(&last, at("2399-12-31T00:00:00Z")), None, "schedules end with the year 2399");
}

#[test]
fn instants_between_milliseconds_are_rounded_the_safe_way() {
    let every = parse(&TimetableSpec::every(Duration::from_millis(100), at("2026-01-01T00:00:00Z")));
    // A hair after an instant: that instant is past. A hair before: it is to come.
    assert_eq!(next(&every, at("2026-01-01T00:00:00.100000001Z")), Some(at("2026-01-01T00:00:00.200Z")));
    assert_eq!(next(&every, at("2026-01-01T00:00:00.099999999Z")), Some(at("2026-01-01T00:00:00.100Z")));
    let between = every.between(at("2026-01-01T00:00:00.100000001Z"), at("2026-01-01T00:00:00.300999999Z"));
    assert_eq!(between.count(), 2);
}

#[test]
fn h_spreads_jobs_and_stays() {
    let spec = TimetableSpec::cron("H H * * *", "UTC");
    let first = |job: u128| {
        let timetable = Timetable::parse(&spec, Uuid::from_u128(job)).unwrap();
        next(&timetable, at("2026-11-27T00:00:00Z")).unwrap()
    };
    let mut starts: HashMap<DateTime<Utc>, u32> = HashMap::new();
    for job in 0..1_000 {
        *starts.entry(first(job)).or_default() += 1;
        assert_eq!(first(job), first(job));
    }
    assert!(starts.values().all(|count| *count <= 6), "a thousand jobs over 1,440 minutes: at most a few in each");
    let hours: BTreeSet<String> = starts.keys().map(|at| at.format("%H").to_string()).collect();
    assert_eq!(hours.len(), 24, "every hour has some");
    // Golden: another hash would move every job that uses H.
    assert_eq!(first(1), at("2026-11-27T21:04:00Z"));
}

#[test]
fn h_stays_in_its_bounds() {
    for job in 0..200_u128 {
        let month = |expression: &str| {
            let timetable = Timetable::parse(&TimetableSpec::cron(expression, "UTC"), Uuid::from_u128(job)).unwrap();
            let from = at("2026-02-01T00:00:00Z");
            timetable.between(from, from + TimeDelta::days(28) - TimeDelta::seconds(1)).collect::<Vec<_>>()
        };
        let minute = |at: &DateTime<Utc>| at.format("%M").to_string().parse::<u32>().unwrap();
        let hour = |at: &DateTime<Utc>| at.format("%H").to_string().parse::<u32>().unwrap();
        assert!(month("0 H(0-7) * * *").iter().all(|at| hour(at) <= 7));
        assert!(month("0 H(22-3) * * *").iter().all(|at| hour(at) >= 22 || hour(at) <= 3));
        assert_eq!(month("H/15 * * * *")[..4].len(), 4);
        assert_eq!(month("H/15 0 1 * *").len(), 4);
        assert!(month("H(10-29)/5 0 1 * *").iter().all(|at| (10..=29).contains(&minute(at))));
        assert_eq!(month("H(10-29)/5 0 1 * *").len(), 4);
        assert_eq!(month("0 0 H * *").len(), 1, "every month has the day that H picks");
        assert_eq!(month("0 0 * * H").len(), 4);
    }
}

#[test]
fn an_unanchored_every_counts_from_the_start_and_can_be_anchored() {
    let mut spec = TimetableSpec::cron("@every 90s", "UTC");
    let created = at("2026-11-27T12:00:07Z");
    let anchored = spec.clone().anchored(created);
    let first = at("2026-11-27T12:01:37Z");
    assert_eq!(anchored.specs, [Spec::Every { interval_ms: 90_000, anchor: first }]);
    assert_eq!(next(&parse(&anchored), created), Some(first), "one interval after the creation");
    spec.start = Some(at("2026-11-27T13:00:01Z"));
    assert_eq!(
        spec.clone().anchored(created).specs,
        [Spec::Every { interval_ms: 90_000, anchor: spec.start.unwrap() }]
    );
    assert_eq!(next(&parse(&spec), created), spec.start);
}

#[test]
fn the_last_instant_is_found_at_once_in_a_dense_year() {
    let every_second = parse(&TimetableSpec::cron("* * * * * *", "Europe/Berlin"));
    let now = at("2026-11-27T12:00:00.700Z");
    let begun = Instant::now();
    for _ in 0..100 {
        let last = every_second.last_at_or_before(now, now - TimeDelta::days(365));
        assert_eq!(last, Some(at("2026-11-27T12:00:00Z")));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "not by walking through thirty million instants");
}

/// Golden: what is in the database must be readable for ever.
#[test]
fn what_is_stored_keeps_its_form() {
    let spec = TimetableSpec {
        specs: vec![
            Spec::Cron("0 2 * * *".to_owned()),
            Spec::Every { interval_ms: 250, anchor: at("2026-01-01T00:00:00Z") },
            Spec::Once(at("2026-01-01T00:00:00.500Z")),
        ],
        timezone: "Europe/Berlin".to_owned(),
        exclusions: vec![
            Exclusion::dates("2026-12-24".parse().unwrap(), "2026-12-26".parse().unwrap()),
            Exclusion::cron("* 0-5 * * *").in_timezone("UTC"),
        ],
        start: Some(at("2026-01-01T00:00:00Z")),
        end: None,
        dst_gap: Some(DstGap::RunAfter),
        dst_overlap: Some(DstOverlap::Both),
    };
    let stored = serde_json::json!({
        "specs": [
            {"cron": "0 2 * * *"},
            {"every": {"interval_ms": 250, "anchor": "2026-01-01T00:00:00Z"}},
            {"once": "2026-01-01T00:00:00.500Z"},
        ],
        "timezone": "Europe/Berlin",
        "exclusions": [
            {"dates": {"from": "2026-12-24", "to": "2026-12-26"}},
            {"cron": {"expression": "* 0-5 * * *", "timezone": "UTC"}},
        ],
        "start": "2026-01-01T00:00:00Z",
        "dst_gap": "RUN_AFTER",
        "dst_overlap": "BOTH",
    });
    assert_eq!(serde_json::to_value(&spec).unwrap(), stored);
    assert_eq!(serde_json::from_value::<TimetableSpec>(stored).unwrap(), spec);
    let sparse = serde_json::json!({"specs": [{"cron": "0 2 * * *"}], "of_the_future": 1});
    assert_eq!(serde_json::from_value::<TimetableSpec>(sparse).unwrap(), TimetableSpec::cron("0 2 * * *", "UTC"));
    assert!(serde_json::from_str::<TimetableSpec>("{}").is_err(), "which says nothing is not a job that has ended");
}

#[test]
fn a_timetable_is_cheap_to_hand_around() {
    fn check<T: Send + Sync + Clone + 'static>() {}
    check::<Timetable>();
    assert_eq!(size_of::<Timetable>(), size_of::<usize>());
}

/// Pieces that cron texts are made of, and some that they are not.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => (0..70_u32).prop_map(|n| n.to_string()),
        4 => prop::sample::select(vec!["*", "/", "-", ",", "L", "W", "#", "?", "H", "(", ")", "LW", "L-", "*/", "@every ", "TZ=", "@"]).prop_map(str::to_owned),
        2 => prop::sample::select(vec!["MON", "sun", "JAN", "dec", "FRIL", "1970", "2399", "99999999999", "0", "29 2", "30 2"]).prop_map(str::to_owned),
        6 => Just(" ".to_owned()),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(config(3_000))]

    /// Whatever the text: no panic, and what is accepted can be asked anything. (In a release build: in a millisecond.)
    #[test]
    fn no_text_misbehaves(
        text in prop_oneof![4 => pieces(), 1 => any::<String>(), 1 => "[0-9*/,LWH#?() -]{0,80}", 2 => "([0-9*]{1,2}([/,-][0-9]{1,2}){0,3} ){4,6}[0-7*]"],
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "Pacific/Apia"]),
        from in -100_000_000_000..20_000_000_000_i64,
    ) {
        let from = DateTime::from_timestamp(from, 0).unwrap();
        let spec = TimetableSpec::cron(text, zone);
        let _ = Timetable::parse(&TimetableSpec::cron("* * * * *", zone), Uuid::nil()); // The zone's table is made once.
        let ask = || {
            let begun = Instant::now();
            match Timetable::parse(&spec, Uuid::nil()) {
                Err(errors) => assert!(!errors.is_empty() && errors.len() <= 16 && errors.iter().all(|e| e.message.len() < 300)),
                Ok(timetable) => {
                    if let Some(next) = next(&timetable, from) {
                        assert!(next > from);
                    }
                    assert!(timetable.describe().len() < 2_000);
                }
            }
            begun.elapsed()
        };
        let mut spent = ask();
        if !cfg!(debug_assertions) {
            // The machine may have been busy: what is asked is whether it can be done in a millisecond.
            for _ in 0..20 {
                spent = spent.min(ask());
            }
            prop_assert!(spent < Duration::from_millis(1), "{:?} took {spent:?}", spec.specs);
        }
    }
}
