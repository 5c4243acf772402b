//! `carillon preview`: when would a schedule fire? Worked out here, by the very code that the services use: no server, no
//! database, nothing written.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::SystemTime;

use carillon_core::error::quoted;
use carillon_core::schedule::{
    DstGap, DstOverlap, Exclusion, PREVIEW_MAX, Preview, PreviewFire, ScheduleError, Spec, Timetable, TimetableSpec,
    anchor, parse_interval, preview, utc,
};
use chrono::{DateTime, DurationRound, FixedOffset, TimeDelta, Utc};
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
    if is_unquoted(&arguments.schedules) {
        let rule = "an expression is one argument: put it in quotes, as in carillon preview \"0 2 * * *\"";
        return Err(vec![rule.to_owned()]);
    }
    // A preview of instants to the millisecond does not begin between two of them.
    let from = arguments.from.unwrap_or_else(|| SystemTime::now().into());
    let from = from.duration_trunc(TimeDelta::milliseconds(1)).unwrap_or(from);
    let timetable = timetable(arguments, from)?;
    let text = page(arguments, &timetable, &preview(&timetable, from, arguments.count.into()));
    // A closed pipe (`| head`) is no failure.
    let _ = anstream::stdout().lock().write_all(text.as_bytes());
    Ok(())
}

/// Whether the shell has taken an expression apart, and put the names of files in place of its stars.
fn is_unquoted(schedules: &[String]) -> bool {
    let is_a_field = |text: &String| !text.contains(char::is_whitespace) && !text.starts_with('@');
    schedules.len() >= 5 && schedules.iter().all(is_a_field)
}

/// What could be read is checked even if something could not, so that all mistakes come together.
fn timetable(arguments: &Arguments, from: DateTime<Utc>) -> Result<Timetable, Vec<String>> {
    let mut mistakes = Vec::new();
    let specs = match arguments.interval.as_ref().map(|text| parse_interval(text)) {
        None => arguments.schedules.iter().cloned().map(Spec::Cron).collect(),
        Some(Ok(interval)) => {
            let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
            vec![Spec::Every { interval_ms, anchor: anchor(interval_ms, arguments.start, from) }]
        }
        Some(Err(error)) => {
            mistakes.push(told(arguments, &[], &error));
            Vec::new()
        }
    };
    let (mut exclusions, mut places) = (Vec::new(), Vec::new());
    for (place, text) in arguments.exclude.iter().enumerate() {
        match text.parse::<Exclusion>() {
            Ok(exclusion) => {
                exclusions.push(exclusion);
                places.push(place);
            }
            Err(error) => {
                let rule = error.message.trim_start_matches("exclusion: ");
                mistakes.push(format!("--exclude {rule}"));
            }
        }
    }
    let spec = TimetableSpec {
        specs,
        timezone: arguments.timezone.clone(),
        exclusions,
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
    match Timetable::parse(&spec.anchored(from), arguments.job_id.unwrap_or_default()) {
        Ok(timetable) if mistakes.is_empty() => Ok(timetable),
        Ok(_) => Err(mistakes),
        Err(errors) => {
            let of_engine = errors.iter().map(|error| told(arguments, &places, error));
            Err(of_engine.chain(mistakes).collect())
        }
    }
}

/// A mistake in a line, under the words that the arguments have for it. `places`: which arguments the exclusions stood in.
fn told(arguments: &Arguments, places: &[usize], error: &ScheduleError) -> String {
    let ScheduleError { field, message } = error;
    let index =
        |list: &str| -> Option<usize> { field.strip_prefix(list)?.strip_prefix('[')?.strip_suffix(']')?.parse().ok() };
    let nth = |list: &[String], index: Option<usize>| index.and_then(|index| list.get(index)).cloned();
    let place = if field == "interval" {
        format!("--interval {}", quoted(arguments.interval.as_deref().unwrap_or_default()))
    } else if let Some(text) = nth(&arguments.exclude, index("exclusions").and_then(|index| places.get(index).copied()))
    {
        format!("--exclude {}", quoted(&text))
    } else if let Some(text) = nth(&arguments.schedules, index("schedules")) {
        quoted(&text)
    } else {
        match (field.as_str(), arguments.schedules.as_slice()) {
            ("timezone", _) => "--tz".to_owned(),
            ("start_date", _) => "--start".to_owned(),
            ("end_date", _) => "--end".to_owned(),
            ("exclusions", _) => "--exclude".to_owned(),
            (_, [only]) => quoted(only),
            _ => "the schedules".to_owned(),
        }
    };
    // The core's text is readable alone and so begins with what it is about, which here stands before it.
    let names = ["schedule: ", "schedules: ", "exclusion: ", "exclusions: ", "interval: ", "timezone: ", "end_date: "];
    let rule = names.iter().find_map(|name| message.strip_prefix(name)).unwrap_or(message);
    format!("{place}: {}", in_arguments(rule))
}

/// The core's names for two of the arguments.
fn in_arguments(text: &str) -> String {
    text.replace("start_date", "--start").replace("end_date", "--end")
}

/// The description, the table, and what is worth knowing besides.
fn page(arguments: &Arguments, timetable: &Timetable, shown: &Preview) -> String {
    let description = timetable.describe();
    let mut text = format!("{description}\n");
    if arguments.job_id.is_none() && description.contains("values of H") {
        text.push_str("(--job-id shows those of a job)\n");
    }
    text.push('\n');
    let Preview { fires, reason } = shown;
    let reason = reason.as_ref().map(|reason| in_arguments(reason) + "\n").unwrap_or_default();
    if fires.is_empty() {
        return text + &reason;
    }
    // On the wall of UTC there is nothing new but the weekday.
    let is_utc = timetable.timezone() == "UTC";
    let heading = if is_utc { String::new() } else { timetable.timezone().to_owned() };
    let local = |fire: &PreviewFire| if is_utc { fire.at.format("%a").to_string() } else { on_the_wall(fire) };
    let rows: Vec<[String; 3]> = std::iter::once(["UTC".into(), heading, String::new()])
        .chain(fires.iter().map(|fire| [utc(fire.at), local(fire), fire.note.clone().unwrap_or_default()]))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    for [at, local, note] in &rows {
        let line = format!("{at:first$}  {local:second$}  {note}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text + &reason
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
