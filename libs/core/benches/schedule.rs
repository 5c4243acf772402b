//! What a schedule costs: `cargo bench -p carillon-core --bench schedule`. The numbers and the bounds they must keep are
//! in `docs/schedules.md`; the comparison with the `cron` crate is the ground of `docs/decisions/0002-cron-crate.md`.
//!
//! Memory is measured as the growth of the process while it parses two hundred thousand schedules and keeps them, so the
//! allocator's own overhead is in the figure.

#![expect(clippy::unwrap_used, reason = "a failed helper fails the test, at the place where it failed")]

use std::hint::black_box;
use std::str::FromStr;
use std::time::{Duration, Instant};

use carillon_core::schedule::{DstGap, DstOverlap, Exclusion, Spec, Timetable, TimetableSpec};
use chrono::{DateTime, TimeZone, Utc};
use criterion::{Criterion, criterion_group, criterion_main};
use uuid::Uuid;

/// What most jobs have.
const ORDINARY: &[(&str, &str)] = &[
    ("* * * * *", "UTC"),
    ("*/15 * * * *", "America/New_York"),
    ("0 2 * * *", "Europe/Berlin"),
    ("30 9 * * MON-FRI", "Asia/Kolkata"),
    ("0 0 1 * *", "Australia/Lord_Howe"),
    ("*/10 * * * * *", "UTC"),
];

/// What searches longest: few days, far apart, or far from where the search begins.
const WORST: &[(&str, &str)] = &[
    ("0 0 */28 2 1#5", "UTC"),
    ("0 0 29 2 *", "America/New_York"),
    ("0 0 12 29 2 ? 2396", "Europe/Berlin"),
    ("0 30 2 ? 3 0L 1970,2399", "Europe/Berlin"),
    ("30 2 * 3 0L", "Europe/Berlin"),
    ("59 59 23 L-30 * 6#5 2399", "Africa/Casablanca"),
];

fn start() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, 15, 0, 1).unwrap()
}

fn parse(expression: &str, zone: &str) -> Timetable {
    Timetable::parse(&TimetableSpec::cron(expression, zone), Uuid::nil()).unwrap()
}

fn next(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("next, ordinary");
    for (expression, zone) in ORDINARY {
        let timetable = parse(expression, zone);
        group.bench_function(format!("{expression} {zone}"), |b| b.iter(|| timetable.next_after(black_box(start()))));
    }
    group.finish();
    let mut group = criterion.benchmark_group("next, worst");
    for (expression, zone) in WORST {
        let mut spec = TimetableSpec::cron(*expression, *zone);
        spec.dst_gap = Some(DstGap::Skip);
        // The last of these never fires again once Berlin has summer time, and is found not to.
        let timetable = Timetable::parse(&spec, Uuid::nil()).unwrap();
        for from in [start(), Utc.with_ymd_and_hms(1980, 6, 1, 0, 0, 0).unwrap()] {
            let name = format!("{expression} {zone} from {}", from.format("%Y"));
            group.bench_function(name, |b| b.iter(|| timetable.next_after(black_box(from))));
        }
    }
    group.finish();
    let every_second = parse("* * * * * *", "Europe/Berlin");
    let yearly = parse("@yearly", "Europe/Berlin");
    let mut group = criterion.benchmark_group("last of a year");
    for (name, timetable) in [("every second", every_second), ("yearly", yearly)] {
        let from = start() - chrono::TimeDelta::days(365);
        group.bench_function(name, |b| b.iter(|| timetable.last_at_or_before(black_box(start()), from)));
    }
    group.finish();
}

/// Timetables made to cost something: each of these searches is cut, or just not. What they have in common is that no leap is
/// long: the closed minutes are dealt out over zones, so that no zone closes a day alone.
fn exclusions(criterion: &mut Criterion) {
    let many_zones = ["UTC", "Asia/Tokyo", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Cairo"];
    let comb = |zones: &[&str], patterns: usize| -> Vec<Exclusion> {
        let minutes = |n: usize| if n.is_multiple_of(2) { "*/2" } else { "1-59/2" };
        let all = (0..patterns).map(|n| {
            let weekday = if n < zones.len() { "*".to_owned() } else { format!("{}#{}", n % 7, n % 5 + 1) };
            let pattern =
                format!("{} * {} 1-11 {weekday}", minutes(n % zones.len()), if n < zones.len() { "*" } else { "*/2" });
            Exclusion::cron(pattern).in_timezone(zones[n % zones.len()])
        });
        all.collect()
    };
    // Each of these is asked for its day in vain before the comb is.
    let dear = |zones: usize| -> Vec<Exclusion> {
        let rare = (0..998_usize).map(|n| {
            let (minute, hour) = (n % 57, n / 57);
            let pattern = format!("0-{minute},{}-59 0-{hour},{}-23 28W,L-1 * *", minute + 2, hour + 2);
            Exclusion::cron(pattern).in_timezone(many_zones[n % zones])
        });
        rare.chain(comb(&["UTC", "Asia/Tokyo"], 2)).collect()
    };
    let days: Vec<Exclusion> = (0..1_000_u64)
        .map(|n| Exclusion::date("2027-01-01".parse::<chrono::NaiveDate>().unwrap() + chrono::Days::new(n)))
        .collect();
    let mut group = criterion.benchmark_group("next, exclusions");
    let one = vec![Spec::Cron("* * * * * *".to_owned())];
    let hundred: Vec<Spec> = (0..100).map(|n| Spec::Cron(format!("{} * * * * *", n % 60))).collect();
    for (name, specs, exclusions) in [
        ("1,000 dates", &one, days),
        ("a comb of two", &one, comb(&["UTC", "Asia/Tokyo"], 2)),
        ("a comb of 1,000", &one, comb(&["UTC", "Asia/Tokyo"], 1_000)),
        ("a comb of 1,000 in six zones", &one, comb(&many_zones, 1_000)),
        ("a comb and dear patterns in one zone", &one, dear(1)),
        ("a comb and dear patterns in six zones", &one, dear(6)),
        ("a comb of 1,000 for 100 schedules", &hundred, comb(&many_zones, 1_000)),
        ("a comb of two for 100 schedules", &hundred, comb(&["UTC", "Asia/Tokyo"], 2)),
    ] {
        let timetable = Timetable::parse(
            &TimetableSpec { specs: specs.clone(), exclusions, ..TimetableSpec::never() },
            Uuid::nil(),
        );
        let timetable = timetable.unwrap();
        let from = Utc.with_ymd_and_hms(2027, 1, 1, 0, 0, 0).unwrap();
        group.bench_function(name, |b| b.iter(|| timetable.next_after(black_box(from))));
    }
    group.finish();
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let long = format!("{} * * * *", ["0-59/7"; 140].join(","));
    let texts = ["0 2 * * *", "*/15 9-17 * * MON-FRI", "H H * * *", "0 0 12 L-3,15W,LW * 5L,1#3 2026-2030", &long];
    for text in texts {
        let spec = TimetableSpec::cron(text, "Europe/Berlin");
        let name = if text.len() < 50 { text.to_owned() } else { format!("{} bytes", text.len()) };
        group.bench_function(name, |b| b.iter(|| Timetable::parse(black_box(&spec), Uuid::nil())));
    }
    // What the mending of a bad text may cost: a full answer of mistakes, and a search that ends nowhere.
    let bad = format!("{} * * * *", ["99"; 335].join(","));
    for (name, text) in [("1 KiB of mistakes", bad.as_str()), ("never fires", "0 0 30 2 *")] {
        let spec = TimetableSpec::cron(text, "Europe/Berlin");
        group.bench_function(name, |b| b.iter(|| Timetable::parse(black_box(&spec), Uuid::nil()).unwrap_err()));
    }
    let mut always_in_the_gap = TimetableSpec::cron("0 30 2 ? 3 0L 1990-2399", "Europe/Berlin");
    always_in_the_gap.dst_gap = Some(DstGap::Skip);
    group.bench_function("only in gaps", |b| b.iter(|| Timetable::parse(black_box(&always_in_the_gap), Uuid::nil())));
    group.finish();
}

/// The `cron` crate on the same texts, as far as it reads them.
fn cron_crate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cron crate");
    for text in ["0 * * * * *", "0 0 2 * * *", "0 */15 9-17 * * Mon-Fri", "0 0 0 29 2 *"] {
        group.bench_function(format!("parse {text}"), |b| b.iter(|| cron::Schedule::from_str(black_box(text))));
        let schedule = cron::Schedule::from_str(text).unwrap();
        group.bench_function(format!("next {text}"), |b| b.iter(|| schedule.after(black_box(&start())).next()));
    }
    group.finish();
}

fn memory(_: &mut Criterion) {
    const COUNT: usize = 200_000;
    let expressions = ["0 2 * * *", "*/15 * * * *", "30 9 * * MON-FRI", "5,35 8-18 1-7 * *", "H H * * *"];
    let spec = |i: usize| TimetableSpec::cron(expressions[i % expressions.len()], "Europe/Berlin");
    let ours = grown_by(COUNT, |i| Timetable::parse(&spec(i), Uuid::from_u128(i as u128)).unwrap());
    println!("memory: {ours} bytes a parsed five-field schedule");
    let theirs = grown_by(COUNT / 10, |i| {
        let text = expressions[i % 4];
        cron::Schedule::from_str(&format!("0 {}", text.replace("MON", "Mon"))).unwrap()
    });
    println!("memory: {theirs} bytes the same in the cron crate");
}

fn grown_by<T>(count: usize, make: impl Fn(usize) -> T) -> usize {
    let mut kept = Vec::with_capacity(count);
    kept.extend((0..100).map(&make));
    let before = resident_bytes();
    // The vector's own pages are first touched as it fills, so what holds a schedule is counted with it.
    kept.extend((100..count).map(&make));
    let after = resident_bytes();
    drop(black_box(kept));
    (after - before) / (count - 100)
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

/// What a text of up to 1 KiB may cost at most, whatever is in it: reading it, its next instant, its description.
const TEXT_MAX: Duration = Duration::from_millis(1);
const TEXTS: usize = 30_000;

/// Fails if any of many texts is too dear. In the test suite this would hang on the machine's mood.
fn no_text_is_dear(_: &mut Criterion) {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mut dearest = (Duration::ZERO, String::new());
    for zone in ["UTC", "Europe/Berlin", "Pacific/Apia", "Africa/Casablanca"] {
        parse("@daily", zone);
        for _ in 0..TEXTS / 4 {
            let mut spec = TimetableSpec::cron(dice.text(), zone);
            spec.dst_gap = dice.one_of(&[None, Some(DstGap::RunAfter), Some(DstGap::Skip)]);
            let overlaps = [None, Some(DstOverlap::First), Some(DstOverlap::Last), Some(DstOverlap::Both)];
            spec.dst_overlap = dice.one_of(&overlaps);
            let from = DateTime::from_timestamp(i64::try_from(dice.below(13_569_465_600)).unwrap(), 0).unwrap();
            let ask = || {
                let begun = Instant::now();
                if let Ok(timetable) = Timetable::parse(&spec, Uuid::nil()) {
                    black_box((timetable.next_after(from), timetable.describe()));
                }
                begun.elapsed()
            };
            let mut spent = ask();
            // The machine may have been busy: what counts is whether it can be done.
            for _ in 0..20 {
                if spent > TEXT_MAX / 10 {
                    spent = spent.min(ask());
                }
            }
            if spent > dearest.0 {
                dearest = (spent, format!("{:?} in {zone} from {from}", spec.specs));
            }
        }
    }
    println!("dearest of {TEXTS} texts: {:?} for {}", dearest.0, dearest.1);
    assert!(dearest.0 <= TEXT_MAX, "a text costs more than {TEXT_MAX:?}");
}

/// Numbers without rhyme, the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    /// Rubble of what expressions are made of, or fields that can be read, each a list; up to 1 KiB.
    fn text(&mut self) -> String {
        const RUBBLE: [&str; 24] = [
            "*", "/", "-", ",", "L", "W", "#", "?", "H", "(", ")", " ", " ", "0", "7", "59", "99999", "MON", "JAN",
            "@every ", "TZ=", "5L", "ü", "L-3",
        ];
        let bytes_max = self.below(1_024) as usize;
        let mut text = String::new();
        if self.below(3) == 0 {
            while text.len() < bytes_max {
                text.push_str(self.one_of(&RUBBLE));
            }
        } else {
            let fields = 5 + self.below(3);
            let names = ["second", "minute", "hour", "day", "month", "weekday", "year"];
            let names = if fields == 5 { &names[1..6] } else { &names[..fields as usize] };
            for (index, name) in names.iter().enumerate() {
                let until = bytes_max * (index + 1) / names.len();
                text.push_str(&self.item(name));
                while text.len() + 12 < until {
                    text.push(',');
                    text.push_str(&self.item(name));
                }
                text.push(' ');
            }
        }
        while text.len() > 1_024 {
            text.pop();
        }
        text
    }

    fn item(&mut self, field: &str) -> String {
        let (min, max) = match field {
            "hour" => (0, 23),
            "day" => (1, 31),
            "month" => (1, 12),
            "weekday" => (0, 7),
            "year" => (1970, 2399),
            _ => (0, 59),
        };
        let mut value = || min + self.below(max - min + 1);
        let (a, b, n) = (value(), value(), value() % 7 + 1);
        match (self.below(6), field) {
            (0, "day") => format!("L-{}", a % 30 + 1),
            (1, "day") => format!("{a}W"),
            (0, "weekday") => format!("{a}#{}", a % 5 + 1),
            (1, "weekday") => format!("{a}L"),
            (2, _) => format!("{}-{}/{n}", a.min(b), a.max(b)),
            (3, _) if field != "year" => format!("H({}-{})", a.min(b), a.max(b)),
            _ => a.to_string(),
        }
    }
}

/// The first use of a zone in a process makes its table; not in any figure above.
fn first_use_of_a_zone(_: &mut Criterion) {
    let begun = Instant::now();
    let zones = ["Africa/Tunis", "America/Chicago", "Asia/Tokyo", "Europe/Lisbon", "Pacific/Auckland"];
    for zone in zones {
        parse("0 2 * * *", zone);
    }
    println!("first use of a zone: {:?}", begun.elapsed() / 5);
    for round in ["first", "second"] {
        let begun = Instant::now();
        let wrong = TimetableSpec::cron("@daily", "Europe/Berlim");
        black_box(Timetable::parse(&wrong, Uuid::nil()).unwrap_err());
        println!("{round} wrong name of a zone: {:?}", begun.elapsed());
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    targets = first_use_of_a_zone, no_text_is_dear, memory, next, exclusions, parsing, cron_crate
}
criterion_main!(benches);
