//! What several tests of schedules need.

use carillon_core::schedule::{Next, Timetable, TimetableSpec};
use chrono::{DateTime, Utc};
use proptest::test_runner::{Config, RngSeed};
use uuid::Uuid;

/// The same cases each time, so that the suite costs the same and never fails by chance; `SCHEDULE_CASES=50000
/// SCHEDULE_SEED=7 cargo test --release` looks further.
pub(crate) fn config(cases: u32) -> Config {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    Config {
        cases: number("SCHEDULE_CASES").map_or(cases, |cases| u32::try_from(cases).unwrap()),
        rng_seed: RngSeed::Fixed(number("SCHEDULE_SEED").unwrap_or(1)),
        failure_persistence: None,
        ..Config::default()
    }
}

pub(crate) fn parse(spec: &TimetableSpec) -> Timetable {
    Timetable::parse(spec, Uuid::nil()).unwrap()
}

/// The next instant, of a timetable whose searches are never cut.
pub(crate) fn next(timetable: &Timetable, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    match timetable.next_after(after) {
        Next::Fire(at) => Some(at),
        Next::Cut(at) => panic!("cut at {at}"),
        Next::End => None,
    }
}
