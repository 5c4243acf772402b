//! Runs every example of `docs/schedules.md`, so that the page cannot say what the program does not do.

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test, at the place where it failed")]

use carillon_core::schedule::{DstGap, DstOverlap, Spec, Timetable, TimetableSpec, parse_interval, preview};
use chrono::{DateTime, Utc};
use uuid::Uuid;

const PAGE: &str = include_str!("../../../docs/schedules.md");

#[derive(Default)]
struct Example {
    line: usize,
    spec: TimetableSpec,
    job: Uuid,
    created: Option<DateTime<Utc>>,
    from: DateTime<Utc>,
    fires: Vec<String>,
    errors: Vec<String>,
    says: Option<String>,
    /// The reason behind it, which may be left out.
    ends: Option<String>,
}

#[test]
fn every_example_of_the_page_is_true() {
    let examples = examples();
    assert!(examples.len() >= 70, "{} examples", examples.len());
    let wrong: Vec<String> = examples.iter().filter_map(|example| check(example).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn examples() -> Vec<Example> {
    let mut found = Vec::new();
    let mut inside: Option<Example> = None;
    for (number, line) in PAGE.lines().enumerate() {
        match (&mut inside, line) {
            (None, "```schedule") => inside = Some(Example { line: number + 1, ..Example::default() }),
            (Some(_), "```") => found.extend(inside.take()),
            (Some(example), line) => add(example, line),
            (None, _) => {}
        }
    }
    found
}

fn add(example: &mut Example, line: &str) {
    let (key, value) = line.split_once(' ').unwrap_or((line, ""));
    let value = value.trim();
    let spec = &mut example.spec;
    let instant = || value.parse::<DateTime<Utc>>().unwrap();
    match key {
        "schedule" => spec.specs.push(Spec::Cron(value.to_owned())),
        "every" => {
            let (interval, anchor) = value.split_once(" from ").unwrap();
            // Too short an interval is for the timetable to refuse, too.
            let interval_ms = parse_interval(interval).map_or(99, |interval| interval.as_millis() as u64);
            spec.specs.push(Spec::Every { interval_ms, anchor: anchor.parse().unwrap() });
        }
        "once" => spec.specs.push(Spec::Once(instant())),
        "timezone" => spec.timezone = value.to_owned(),
        "start_date" => spec.start = Some(instant()),
        "created" => example.created = Some(instant()),
        "end_date" => spec.end = Some(instant()),
        "dst_gap" => spec.dst_gap = serde_json::from_value::<Option<DstGap>>(value.into()).unwrap(),
        "dst_overlap" => spec.dst_overlap = serde_json::from_value::<Option<DstOverlap>>(value.into()).unwrap(),
        "exclude" => spec.exclusions.push(value.parse().unwrap()),
        "repeat" => {
            let (times, rest) = value.split_once(' ').unwrap();
            (0..times.parse().unwrap()).for_each(|_: usize| add(example, rest));
        }
        "job" => example.job = value.parse().unwrap(),
        "from" => example.from = instant(),
        "fires" => example.fires.push(value.to_owned()),
        "error" => example.errors.push(value.to_owned()),
        "says" => example.says = Some(value.to_owned()),
        "ends" => example.ends = Some(value.to_owned()),
        other => panic!("line {}: what is {other}?", example.line),
    }
}

fn check(example: &Example) -> Result<(), String> {
    let differ = |what: &str, found: &str, expected: &str| {
        if found == expected {
            return Ok(());
        }
        Err(format!("line {}: {what}\n  page    {expected}\n  program {found}", example.line))
    };
    let spec = example.created.map_or(example.spec.clone(), |created| example.spec.clone().anchored(created));
    let timetable = match Timetable::parse(&spec, example.job) {
        Ok(timetable) => timetable,
        Err(errors) => {
            let found: Vec<String> = errors.iter().map(|error| format!("{} | {error}", error.field)).collect();
            return differ("errors", &found.join("\n          "), &example.errors.join("\n          "));
        }
    };
    differ("errors", "", &example.errors.join(" "))?;
    let asked = example.fires.len() + usize::from(example.ends.is_some());
    let shown = preview(&timetable, example.from, asked);
    let found: Vec<String> = shown
        .fires
        .into_iter()
        .map(|fire| fire.note.map_or(fire.local.clone(), |note| format!("{} # {note}", fire.local)))
        .collect();
    differ("fires", &found.join("\n          "), &example.fires.join("\n          "))?;
    if let Some(reason) = example.ends.as_ref().filter(|reason| !reason.is_empty()) {
        differ("ends", &shown.reason.unwrap_or_default(), reason)?;
    }
    match &example.says {
        Some(says) => differ("says", &timetable.describe(), says),
        None => Ok(()),
    }
}
