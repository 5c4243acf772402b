//! A parsed timetable: the one pure answer to "when does this job fire?".
//!
//! What it promises: the instants are a fixed set, given by the spec and the job's id alone. [`Timetable::next_after`]
//! and [`Timetable::between`] read that set in order from any point, so stepping from any instant and iterating from the
//! start give the same sequence; an instant that two specs share is in it once; all are exact to the millisecond and
//! strictly later than the one before. Nothing is remembered between calls and nothing is looked up: a search works on
//! the parsed form alone.
//!
//! Bounds: a search ends with the year 2399 (9999 where no calendar is needed), or is cut where exclusions carry it on and on;
//! then it says so and never that nothing is to come (see [`Next`]). A timetable of which it is certain that it has no
//! instant at all is refused when it is parsed; one whose search is cut before the first, when a job is made of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, Datelike, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::civil;
use super::cron_parse::{self, Parsed};
use super::error::{ERRORS_MAX, ScheduleError};
use super::exclusion::{Days, Exclusions, What};
use super::interval;
use super::resolve::{self, DstRule};
use super::search::{Inner, LOOKS_MAX, Source, Step, Walk};
use super::spec::{Exclusion, Spec, TimetableSpec};
use super::zone::Zone;

/// Most specs of one timetable.
pub const SPECS_MAX: usize = 100;
/// Most exclusions of one timetable: some decades of public holidays.
pub const EXCLUSIONS_MAX: usize = 1_000;
/// The last millisecond of the year 9999, with which everything ends: what the API and RFC 3339 can write.
pub(crate) const LAST_MS: i64 = 253_402_300_799_999;

/// Parsed and immutable; a clone is a pointer.
#[derive(Clone, Debug)]
pub struct Timetable(pub(crate) Arc<Inner>);

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next instant.
    Fire(DateTime<Utc>),
    /// Exclusions carried the search on and on, so that it was cut. Nothing fires before this moment, nor at it, since it is
    /// excluded itself ([`Timetable::excludes`]): when it has come, the search goes on from it.
    Cut(DateTime<Utc>),
    /// Nothing is to come, ever.
    End,
}

impl Next {
    /// The next instant, if the search found one.
    pub fn fire(self) -> Option<DateTime<Utc>> {
        match self {
            Next::Fire(at) => Some(at),
            Next::Cut(_) | Next::End => None,
        }
    }

    /// Where a timer must stand: at the next instant, or where the search is to go on; `None` if nothing is to come.
    pub fn timer(self) -> Option<DateTime<Utc>> {
        match self {
            Next::Fire(at) | Next::Cut(at) => Some(at),
            Next::End => None,
        }
    }
}

impl Timetable {
    /// Checks and compiles a spec. `job_id` is what `H` is chosen by; the nil one stands for no particular
    /// job. On failure every mistake is listed, up to a bound.
    ///
    /// A spec without specs is the timetable of a job that never fires by time and is accepted; a spec that has some and
    /// still no instant is refused. Whether its instants are past is not judged here: see [`Timetable::check_fires_after`].
    pub fn parse(spec: &TimetableSpec, job_id: Uuid) -> Result<Timetable, Vec<ScheduleError>> {
        let timetable = Self::parse_accepted(spec, job_id, LOOKS_MAX)?;
        timetable.refuse_if_empty(spec)?;
        Ok(timetable)
    }

    /// Compiles a spec that [`Timetable::parse`] has accepted before: whether it has an instant at all is not searched for
    /// again. A search of the result has `looks` looks at exclusions, [`LOOKS_MAX`] at most: with few of them it ends soon, and
    /// [`Timetable::was_cut`] says whether it ended for want of them.
    ///
    /// # Errors
    /// Every mistake, up to a bound.
    pub fn parse_accepted(spec: &TimetableSpec, job_id: Uuid, looks: usize) -> Result<Timetable, Vec<ScheduleError>> {
        let mut errors = Vec::new();
        let zone = Zone::get(&spec.timezone).map_err(|error| errors.push(error)).ok();
        let sources = parse_specs(spec, job_id, &mut errors);
        let exclusions = parse_exclusions(spec, zone.as_ref(), &mut errors);
        let start = spec.start.map_or(i64::MIN, ceil_ms);
        let end = spec.end.map_or(LAST_MS, |at| at.timestamp_millis().min(LAST_MS));
        if let (Some(from), Some(to)) = (spec.start, spec.end)
            && from > to
        {
            errors.push(ScheduleError::new(
                "end_date",
                format!("end_date: {} is before start_date {}", utc(to), utc(from)),
            ));
        }
        let (true, Some(zone)) = (errors.is_empty(), zone) else {
            errors.truncate(ERRORS_MAX);
            return Err(errors);
        };
        let rule = DstRule { gap: spec.dst_gap, overlap: spec.dst_overlap };
        let (looks, was_cut) = (looks.min(LOOKS_MAX), AtomicBool::new(false));
        let job_is_named = !job_id.is_nil();
        let inner = Inner { sources, zone, start, end, rule, exclusions, job_is_named, looks, was_cut };
        Ok(Timetable(Arc::new(inner)))
    }

    /// Whether any search since it was compiled had no looks left, so that an answer may be one of a shorter search.
    pub fn was_cut(&self) -> bool {
        self.0.was_cut.load(Ordering::Relaxed)
    }

    /// The first instant strictly later than `after`.
    pub fn next_after(&self, after: DateTime<Utc>) -> Next {
        let step = after.timestamp_millis().checked_add(1).map_or(Step::End, |from| self.0.next_from(from));
        match (step, step.at().and_then(instant)) {
            (Step::Fire(_), Some(at)) => Next::Fire(at),
            (Step::Cut(_), Some(at)) => Next::Cut(at),
            _ => Next::End,
        }
    }

    /// The instants from `from` to `to`, both included, each computed when it is asked for. None is left out, whatever that
    /// costs: with exclusions that leave nothing over many years, one can take long.
    pub fn between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> + '_ {
        let mut walk = Walk::new(&self.0, ceil_ms(from), to.timestamp_millis(), usize::MAX);
        std::iter::from_fn(move || {
            loop {
                match walk.step() {
                    Step::Fire(at) => return instant(at),
                    Step::Cut(_) => {}
                    Step::End => return None,
                }
            }
        })
    }

    /// Whether the exclusions hold an instant.
    pub fn excludes(&self, at: DateTime<Utc>) -> bool {
        self.0.exclusions.hold(at.timestamp())
    }

    /// The latest instant from `not_before` to `at`, both included.
    ///
    /// Costs some ten searches for a dense timetable and some forty for a sparse one, whatever the distance: windows that
    /// double in length go back from `at` until one holds an instant, and that one is halved until the last is found. Where
    /// exclusions cut these searches, the answer can be an earlier instant, or none.
    pub fn last_at_or_before(&self, at: DateTime<Utc>, not_before: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (latest, earliest) = (at.timestamp_millis(), ceil_ms(not_before));
        let from = |ms| self.0.next_from(ms).fire().filter(|at| *at <= latest);
        let mut window: i64 = 1_000;
        // `found` is an instant; nothing lies from `bound` on.
        let (mut found, mut bound) = loop {
            let begin = latest.saturating_sub(window).max(earliest);
            if let Some(at) = from(begin) {
                break (at, latest + 1);
            }
            if begin <= earliest {
                return None;
            }
            window = window.saturating_mul(2);
        };
        while found + 1 < bound {
            let middle = found + (bound - found) / 2;
            match from(middle) {
                Some(at) => found = at,
                None => bound = middle,
            }
        }
        instant(found)
    }

    /// Refuses a timetable all of whose instants are past, or whose next one cannot be found: `now` is the caller's clock.
    /// One without specs passes.
    pub fn check_fires_after(&self, now: DateTime<Utc>) -> Result<(), ScheduleError> {
        if self.0.sources.is_empty() {
            return Ok(());
        }
        match self.next_after(now) {
            Next::Fire(_) => Ok(()),
            Next::Cut(until) => {
                let message = format!(
                    "exclusions: cannot be searched: a search that began at {} found nothing up to {} and was cut there; \
                     make them fewer and coarser: whole dates, ranges of dates, patterns of whole hours, in one time zone",
                    utc(now),
                    utc(until)
                );
                Err(ScheduleError::new("exclusions", message))
            }
            Next::End => {
                let last = self.last_at_or_before(now, DateTime::UNIX_EPOCH);
                let last = last.map(|at| format!("; its last was {}", utc(at))).unwrap_or_default();
                Err(ScheduleError::new("schedule", format!("schedule: has no fire after {}{last}", utc(now))))
            }
        }
    }

    /// The zone's name, as the time zone database spells it.
    pub fn timezone(&self) -> &str {
        self.0.zone.name()
    }

    fn refuse_if_empty(&self, spec: &TimetableSpec) -> Result<(), Vec<ScheduleError>> {
        let inner = &*self.0;
        let mut errors = Vec::new();
        for (index, source) in inner.sources.iter().enumerate() {
            if let Source::Line(line) = source
                && resolve::next_from(line, &inner.zone, inner.rule, i64::MIN).is_none()
            {
                let why = if line.has_a_day() {
                    "all its times fall into hours that changes of the clocks skip".to_owned()
                } else {
                    format!(
                        "no day of the years {}-{} fits its day of month, month, weekday and year",
                        civil::YEARS.start(),
                        civil::YEARS.end()
                    )
                };
                errors.push(mistake_in_spec(spec, index, format!("schedule: can never fire: {why}")));
            }
        }
        if !errors.is_empty() {
            errors.truncate(ERRORS_MAX);
            return Err(errors);
        }
        if inner.sources.is_empty() || inner.next_from(i64::MIN) != Step::End {
            return Ok(());
        }
        Err(vec![self.why_empty(spec)])
    }

    /// Names what must be changed so that something is left between the bounds.
    fn why_empty(&self, spec: &TimetableSpec) -> ScheduleError {
        let Inner { start, end, .. } = *self.0;
        let first_from = |from| self.0.sources.iter().filter_map(|source| self.0.next_of(source, from)).min();
        let never = |field: &str, why: &str| ScheduleError::new(field, format!("schedule: can never fire: {why}"));
        if first_from(start).is_some_and(|at| at <= end) {
            let of_what = match (spec.start, spec.end) {
                (None, None) => "of it",
                (Some(_), None) => "from start_date on",
                (None, Some(_)) => "up to end_date",
                (Some(_), Some(_)) => "between start_date and end_date",
            };
            return never("exclusions", &format!("the exclusions leave nothing {of_what}"));
        }
        if let [Spec::Once(at)] = spec.specs.as_slice() {
            let outside = |how: &str, bound: DateTime<Utc>| {
                ScheduleError::new("schedule", format!("schedule: {} is {how}, {}", utc(*at), utc(bound)))
            };
            match (spec.start, spec.end) {
                (Some(from), _) if at.timestamp_millis() < start => return outside("before start_date", from),
                (_, Some(to)) if at.timestamp_millis() > end => return outside("after end_date", to),
                _ => {}
            }
        }
        match (spec.start, spec.end, first_from(start).is_some_and(|at| at <= LAST_MS)) {
            (Some(_), Some(_), true) => never("end_date", "none of its instants lies between start_date and end_date"),
            (None, Some(_), true) => never("end_date", "its first instant is after end_date"),
            (Some(_), _, _) if first_from(i64::MIN).is_some_and(|at| at < start) => {
                never("start_date", "its last instant is before start_date")
            }
            _ => never("schedule", "everything ends with the year 9999"),
        }
    }
}

fn parse_specs(spec: &TimetableSpec, job_id: Uuid, errors: &mut Vec<ScheduleError>) -> Box<[Source]> {
    if spec.specs.len() > SPECS_MAX {
        let message = format!("schedules: at most {SPECS_MAX} are allowed, {} were given", spec.specs.len());
        errors.push(ScheduleError::new("schedules", message));
        return Box::new([]);
    }
    let mut sources = Vec::with_capacity(spec.specs.len());
    for (index, one) in spec.specs.iter().enumerate() {
        match one {
            Spec::Cron(text) => match cron_parse::parse(text, || hash_of(job_id)) {
                Ok(Parsed::Line(line)) => sources.push(Source::Line(line)),
                Ok(Parsed::Every(ms)) => {
                    let anchor = spec.start.map_or(0, ceil_ms);
                    sources.push(Source::Every { interval: ms.cast_signed(), anchor });
                }
                Err(messages) => {
                    errors.extend(messages.into_iter().map(|message| mistake_in_spec(spec, index, message)));
                }
            },
            Spec::Every { interval_ms, anchor } => match interval::check_interval(*interval_ms) {
                Ok(()) => {
                    let (interval, anchor) = (interval_ms.cast_signed(), anchor.timestamp_millis());
                    sources.push(Source::Every { interval, anchor });
                }
                Err(message) => errors.push(ScheduleError::new("interval", message)),
            },
            Spec::Once(at) => sources.push(Source::Once(at.timestamp_millis())),
        }
    }
    sources.into_boxed_slice()
}

fn parse_exclusions(
    spec: &TimetableSpec,
    default_zone: Option<&Arc<Zone>>,
    errors: &mut Vec<ScheduleError>,
) -> Exclusions {
    if spec.exclusions.len() > EXCLUSIONS_MAX {
        let message = format!("exclusions: at most {EXCLUSIONS_MAX} are allowed, {} were given", spec.exclusions.len());
        errors.push(ScheduleError::new("exclusions", message));
        return Exclusions::default();
    }
    let mut parsed = Vec::with_capacity(spec.exclusions.len());
    for (index, exclusion) in spec.exclusions.iter().enumerate() {
        let field = format!("exclusions[{index}]");
        let (Exclusion::Dates { timezone, .. } | Exclusion::Cron { timezone, .. }) = exclusion;
        let zone = match timezone {
            None => default_zone.cloned(),
            Some(name) => Zone::get(name).map_err(|error| errors.push(ScheduleError::new(&field, error.message))).ok(),
        };
        match parse_exclusion(exclusion) {
            Ok(what) => parsed.extend(zone.map(|zone| (zone, what))),
            Err(messages) => errors.extend(messages.into_iter().map(|message| ScheduleError::new(&field, message))),
        }
    }
    Exclusions::new(parsed)
}

fn parse_exclusion(exclusion: &Exclusion) -> Result<What, Vec<String>> {
    match exclusion {
        Exclusion::Dates { from, to, .. } if from > to => Err(vec![format!("exclusion: {to} is before {from}")]),
        Exclusion::Dates { from, to, .. } if from.year() < 1 || to.year() > 9_999 => {
            Err(vec![format!("exclusion: {} is outside the years 1 to 9999", if from.year() < 1 { from } else { to })])
        }
        Exclusion::Dates { from, to, .. } => {
            let day = |date: &chrono::NaiveDate| date.signed_duration_since(chrono::NaiveDate::default()).num_days();
            Ok(What::Days(Days { from: day(from), to: day(to) }))
        }
        Exclusion::Cron { expression, .. } => {
            // Seconds and years are left to the schedule: an exclusion is a pattern of whole minutes.
            let fields = expression.split_whitespace().count();
            if fields != 5 {
                let found = if fields == 1 { "1 field".to_owned() } else { format!("{fields} fields") };
                return Err(vec![format!("exclusion: {found} found; a pattern of minutes has five")]);
            }
            match cron_parse::parse(expression, || [0; 32])? {
                Parsed::Line(line) if line.flags.has(super::cron::Flags::HASHED) => {
                    Err(vec!["exclusion: H is for schedules only".to_owned()])
                }
                Parsed::Line(line) if !line.has_a_day() => Err(vec![
                    "exclusion: can never match: no day of any year fits its day of month, month and weekday"
                        .to_owned(),
                ]),
                Parsed::Line(line) => Ok(What::Pattern(line)),
                Parsed::Every(_) => Err(vec!["exclusion: an interval cannot be excluded".to_owned()]),
            }
        }
    }
}

/// A mistake in one spec, under the name its author knows it by: the lone one is `schedule`.
fn mistake_in_spec(spec: &TimetableSpec, index: usize, message: String) -> ScheduleError {
    let field = if spec.specs.len() == 1 { "schedule".to_owned() } else { format!("schedules[{index}]") };
    ScheduleError::new(field, message)
}

/// Where `H` takes its values from. Fixed for ever: another hash would move every job that uses `H`.
fn hash_of(job_id: Uuid) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"cron H");
    hash.update(job_id.as_bytes());
    hash.finalize().into()
}

/// The first whole millisecond at or after `at`.
pub(crate) fn ceil_ms(at: DateTime<Utc>) -> i64 {
    let ms = at.timestamp_millis();
    if at.timestamp_subsec_nanos().is_multiple_of(1_000_000) { ms } else { ms.saturating_add(1) }
}

pub(crate) fn instant(ms: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(ms)
}

/// As errors and previews write an instant: no more digits than it has.
pub fn utc(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}
