//! `carillon preview`: when would a schedule fire? Worked out here, by the very code that the services use: no server, no
//! database, nothing written.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::SystemTime;

use carillon_core::error::quoted;
use carillon_core::schedule::{
    DstGap, DstOverlap, Exclusion, PREVIEW_MAX, PreviewFire, ScheduleError, Spec, Timetable, TimetableSpec, anchor,
    parse_interval, preview,
};
use chrono::{DateTime, FixedOffset, SecondsFormat, Utc};
use clap::ValueEnum;
use uuid::Uuid;

/// Show when a schedule would fire, in UTC and on the wall, with what changes of the clocks do to it.
///
/// Works on this machine alone: it asks no server and writes nothing. What a schedule may say is on one page:
/// docs/schedules.md. Exit codes: 0 shown (also if nothing is to come), 64 the schedule or an argument is wrong.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Cron expressions: five fields, optionally seconds before and a year behind, or a word such as @daily, "@every 90s".
    /// Several are united.
    #[arg(value_name = "SCHEDULE", required_unless_present = "interval")]
    schedules: Vec<String>,
    /// A fixed interval in place of an expression: 250ms, 90s, 1h30m. Fires first at --start, or else one interval after
    /// --from.
    #[arg(long, value_name = "TIME", conflicts_with = "schedules")]
    interval: Option<String>,
    /// The IANA time zone that expressions and exclusions are read in.
    #[arg(long = "tz", alias = "timezone", value_name = "ZONE", default_value = "UTC")]
    timezone: String,
    /// Show fires from this instant on, RFC 3339. Without it: now, by this machine's clock.
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    from: Option<DateTime<Utc>>,
    /// How many fires to show, 1 to 1000.
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 10,
          value_parser = clap::value_parser!(u16).range(1..=PREVIEW_MAX as i64))]
    count: u16,
    /// What to leave out: a date, a range of dates (2026-12-24..2026-12-26) or a cron expression of five fields; with
    /// " in ZONE" behind it in another time zone. May be given several times.
    #[arg(long, value_name = "WHAT")]
    exclude: Vec<String>,
    /// No fire before this instant, RFC 3339.
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    start: Option<DateTime<Utc>>,
    /// No fire after this instant, RFC 3339.
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    end: Option<DateTime<Utc>>,
    /// What becomes of a local time that does not exist. Without it: fixed times run after the gap, others follow real time.
    #[arg(long, value_name = "RULE", ignore_case = true)]
    dst_gap: Option<Gap>,
    /// Which pass of a local time that occurs twice fires. Without it: of fixed times the first, of others both.
    #[arg(long, value_name = "RULE", ignore_case = true)]
    dst_overlap: Option<Overlap>,
    /// The job whose schedule it is, a UUID: H is picked by it.
    #[arg(long, value_name = "ID", value_parser = job_id)]
    job_id: Option<Uuid>,
}

const EXAMPLES: &str = "\
Examples:
  carillon preview \"0 2 * * *\" --tz Europe/Berlin
  carillon preview \"30 2 * * *\" --tz Europe/Berlin --from 2027-03-27T00:00:00Z --count 3
  carillon preview \"0 9 * * MON-FRI\" \"0 12 * * SAT\" --exclude 2026-12-24..2026-12-26
  carillon preview @hourly --exclude \"* 0-5 * * * in Asia/Tokyo\" --exclude 2027-01-01
  carillon preview --interval 1h30m --start 2026-12-01T00:00:00Z
  carillon preview \"H H(1-4) * * *\" --job-id 01a3185c-5000-8a28-b6b7-19d8e4ba20a5";

/// `dst_gap`, in the words of the API; RUN_AFTER is understood too.
#[derive(Clone, Copy, ValueEnum)]
enum Gap {
    #[value(alias = "run_after")]
    RunAfter,
    Skip,
}

/// `dst_overlap`, in the words of the API.
#[derive(Clone, Copy, ValueEnum)]
enum Overlap {
    First,
    Last,
    Both,
}

/// Shows it.
///
/// # Errors
/// Every mistake in the arguments, a line each.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Vec<String>> {
    let from = arguments.from.unwrap_or_else(|| SystemTime::now().into());
    let spec = spec(arguments, from)?;
    let timetable = Timetable::parse(&spec, arguments.job_id.unwrap_or_default())
        .map_err(|errors| errors.iter().map(|error| told(arguments, error)).collect::<Vec<_>>())?;
    let fires = preview(&timetable, from, arguments.count.into());
    let text = page(arguments, &timetable, from, &fires);
    // A closed pipe (`| head`) is no failure.
    let _ = anstream::stdout().lock().write_all(text.as_bytes());
    Ok(())
}

fn spec(arguments: &Arguments, from: DateTime<Utc>) -> Result<TimetableSpec, Vec<String>> {
    let specs = match &arguments.interval {
        None => arguments.schedules.iter().cloned().map(Spec::Cron).collect(),
        Some(text) => {
            let interval = parse_interval(text).map_err(|error| vec![told(arguments, &error)])?;
            let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
            vec![Spec::Every { interval_ms, anchor: anchor(interval_ms, arguments.start, from) }]
        }
    };
    let (exclusions, mistakes): (Vec<_>, Vec<_>) =
        arguments.exclude.iter().map(|text| exclusion(text)).partition(Result::is_ok);
    if !mistakes.is_empty() {
        return Err(mistakes.into_iter().filter_map(Result::err).collect());
    }
    let spec = TimetableSpec {
        specs,
        timezone: arguments.timezone.clone(),
        exclusions: exclusions.into_iter().flatten().collect(),
        start: arguments.start,
        end: arguments.end,
        dst_gap: arguments.dst_gap.map(|gap| match gap {
            Gap::RunAfter => DstGap::RunAfter,
            Gap::Skip => DstGap::Skip,
        }),
        dst_overlap: arguments.dst_overlap.map(|overlap| match overlap {
            Overlap::First => DstOverlap::First,
            Overlap::Last => DstOverlap::Last,
            Overlap::Both => DstOverlap::Both,
        }),
    };
    Ok(spec.anchored(from))
}

/// Reads `2026-12-24`, `2026-12-24..2026-12-26` or a cron expression, each with or without ` in Asia/Tokyo`.
fn exclusion(text: &str) -> Result<Exclusion, String> {
    let (what, zone) = match text.split_once(" in ") {
        Some((what, zone)) => (what.trim(), Some(zone.trim())),
        None => (text.trim(), None),
    };
    let (first, last) = what.split_once("..").unwrap_or((what, what));
    let read = match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) => Exclusion::dates(first, last),
        _ if what.contains(char::is_whitespace) => Exclusion::cron(what),
        _ => {
            let rule = "is no date (2026-12-24), no range of dates (2026-12-24..2026-12-26) and no cron expression of \
                        five fields";
            return Err(format!("--exclude {}: {rule}", quoted(text)));
        }
    };
    Ok(match zone {
        Some(zone) => read.in_timezone(zone),
        None => read,
    })
}

/// A mistake in a line, under the words that the arguments have for it.
fn told(arguments: &Arguments, error: &ScheduleError) -> String {
    let ScheduleError { field, message } = error;
    let index =
        |list: &str| -> Option<usize> { field.strip_prefix(list)?.strip_prefix('[')?.strip_suffix(']')?.parse().ok() };
    let nth = |list: &[String], index: Option<usize>| index.and_then(|index| list.get(index)).cloned();
    let place = if field == "interval" {
        format!("--interval {}", quoted(arguments.interval.as_deref().unwrap_or_default()))
    } else if let Some(text) = nth(&arguments.exclude, index("exclusions")) {
        format!("--exclude {}", quoted(&text))
    } else if let Some(text) = nth(&arguments.schedules, index("schedules")) {
        quoted(&text)
    } else {
        match (field.as_str(), arguments.schedules.as_slice()) {
            ("timezone", _) => "--tz".to_owned(),
            ("end_date", _) => "--end".to_owned(),
            ("exclusions", _) => "--exclude".to_owned(),
            (_, [only]) => quoted(only),
            _ => "the schedules".to_owned(),
        }
    };
    // The core's text is readable alone and so begins with what it is about, which here stands before it.
    let names = ["schedule: ", "schedules: ", "exclusion: ", "exclusions: ", "interval: ", "timezone: ", "end_date: "];
    let rule = names.iter().find_map(|name| message.strip_prefix(name)).unwrap_or(message);
    // Its names for two of the arguments.
    format!("{place}: {}", rule.replace("start_date", "--start").replace("end_date", "--end"))
}

/// The description, the table, and what is worth knowing besides.
fn page(arguments: &Arguments, timetable: &Timetable, from: DateTime<Utc>, fires: &[PreviewFire]) -> String {
    let description = timetable.describe();
    let mut text = format!("{description}\n");
    if arguments.job_id.is_none() && description.contains("chosen by H") {
        text.push_str(
            "(no job was named, so these values of H are only an example: give --job-id to see a job's own)\n",
        );
    }
    text.push('\n');
    if fires.is_empty() {
        let _ = writeln!(text, "no fire from {} on", utc(from));
        return text;
    }
    let rows: Vec<[String; 3]> = std::iter::once(["UTC".into(), timetable.timezone().into(), String::new()])
        .chain(fires.iter().map(|fire| [utc(fire.at), on_the_wall(fire), fire.note.clone().unwrap_or_default()]))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    for [at, local, note] in &rows {
        let line = format!("{at:first$}  {local:second$}  {note}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if fires.len() < usize::from(arguments.count) {
        text.push_str("no further fire\n");
    }
    text
}

fn utc(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// `Sun 2026-03-29 03:00:00 +02:00`: the weekday is what most schedules are about.
fn on_the_wall(fire: &PreviewFire) -> String {
    match fire.local.parse::<DateTime<FixedOffset>>() {
        Ok(local) => local.format("%a %Y-%m-%d %H:%M:%S%.f %:z").to_string(),
        Err(_) => fire.local.clone(),
    }
}

fn instant(text: &str) -> Result<DateTime<Utc>, String> {
    let read =
        DateTime::parse_from_rfc3339(text).map_err(|_| "is no instant such as 2026-12-01T00:00:00Z".to_owned())?;
    Ok(read.with_timezone(&Utc))
}

fn job_id(text: &str) -> Result<Uuid, String> {
    Some(text)
        .filter(|text| text.len() == 36)
        .and_then(|text| Uuid::try_parse(text).ok())
        .ok_or_else(|| "is no UUID such as 01a3185c-5000-8a28-b6b7-19d8e4ba20a5".to_owned())
}
