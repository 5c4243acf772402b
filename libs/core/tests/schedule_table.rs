//! Several hundred expressions with the instants at which they fire, made by a second implementation in another language
//! (`schedule_table/make_table.py`, which says how) and committed: what any change of the engine is held against.

use carillon_core::schedule::{DstGap, DstOverlap, Timetable, TimetableSpec};
use chrono::{DateTime, Utc};
use uuid::Uuid;

const TABLE: &str = include_str!("schedule_table/table.tsv");

#[test]
fn every_expression_of_the_table_fires_when_it_should() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [expression, zone, from, gap, overlap, instants] = columns[..] else { panic!("six columns: {line}") };
        count += 1;
        let mut spec = TimetableSpec::cron(expression, zone);
        spec.dst_gap = match gap {
            "RUN_AFTER" => Some(DstGap::RunAfter),
            "SKIP" => Some(DstGap::Skip),
            _ => None,
        };
        spec.dst_overlap = match overlap {
            "FIRST" => Some(DstOverlap::First),
            "LAST" => Some(DstOverlap::Last),
            "BOTH" => Some(DstOverlap::Both),
            _ => None,
        };
        let from: DateTime<Utc> = from.parse().unwrap();
        let found = match Timetable::parse(&spec, Uuid::nil()) {
            Ok(timetable) => {
                let fires = timetable.between(from, DateTime::<Utc>::MAX_UTC).take(4);
                fires.map(|at| at.format("%FT%TZ").to_string()).collect::<Vec<_>>().join(" ")
            }
            // What never fires has no instants in the table.
            Err(_) => String::new(),
        };
        if found != instants {
            wrong.push(format!("{line}\n  found {found}"));
        }
    }
    assert!(count >= 300, "the table has {count} lines");
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}
