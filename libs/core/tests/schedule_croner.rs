use std::collections::BTreeMap;

#[path = "schedule_oracle/fields.rs"]
mod fields;

use carillon_core::schedule::{Timetable, TimetableSpec};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::parser::CronParser;
use fields::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use uuid::Uuid;

#[test]
fn explore() {
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(3), ..Config::default() });
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let strategy = prop_oneof![fields::five(true), fields::six(), fields::dates()];
    for i in 0..4000 {
        let e = strategy.new_tree(&mut runner).unwrap().current();
        let text = e.text();
        let parser = CronParser::builder().sloppy_ranges(true).build();
        let ours = Timetable::parse(&TimetableSpec::cron(&text, "UTC"), Uuid::nil());
        let theirs = parser.parse(&text);
        let from: DateTime<Utc> = "2024-01-31T00:00:00Z".parse().unwrap();
        let (a, b) = match (ours, theirs) {
            (Ok(a), Ok(b)) => (a, b),
            (Ok(_), Err(b)) => { *seen.entry(format!("refused by croner: {b}")).or_default() += 1; if seen.len() < 12 { println!("{text}: {b}"); } continue }
            (Err(a), Ok(_)) => { println!("REFUSED {text} {:?}", a[0].message); continue }
            _ => continue,
        };
        let tz: Tz = "UTC".parse().unwrap();
        let ours: Vec<_> = a.between(from, DateTime::<Utc>::MAX_UTC).take(5).collect();
        let theirs: Vec<_> = b.iter_from(from.with_timezone(&tz)).take(5).map(|t| t.with_timezone(&Utc)).collect();
        if ours != theirs { println!("DIFF {i} {text}\n  {ours:?}\n  {theirs:?}"); }
    }
    println!("{seen:?}");
}
