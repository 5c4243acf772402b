//! When something is to fire, as a client wrote it: read in one place for creating a job and for a preview, so that both mean
//! the same and refuse in the same words.
//!
//! The engine reports mistakes by its own places (the third spec, the second exclusion that could be read); here they get
//! back the names by which the client knows them: `schedule`, `schedules[1]`, `exclusions[4].timezone`.

use carillon_core::error::{FieldViolation, quoted};
use carillon_core::job::JobType;
use carillon_core::schedule::{
    DstGap, DstOverlap, Exclusion, Next, ScheduleError, Spec, Timetable, TimetableSpec, anchor,
};
use carillon_proto::v1;
use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, Utc};
use prost_types::Timestamp;
use tonic::Status;
use uuid::Uuid;

use super::checks::Checks;
use super::words;
use crate::backend::Backend;

/// Most exclusions whose mistakes are listed in one answer.
const WRONG_EXCLUSIONS_MAX: usize = 16;

/// A source of instants, as far as it is known without a clock.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// Cron expressions and `@every`.
    Lines(Vec<Line>),
    /// Milliseconds between two fires; counted from the start date or the creation.
    Every(u64),
    /// An instant, and whether it may be past.
    Once(DateTime<Utc>, bool),
    /// No instants: it fires by event, dependency or hand.
    None,
    /// It could not be read; the checks know.
    Unreadable,
}

/// One expression, and the field that it was given in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    field: String,
    text: String,
}

/// What stands around a source, as it is on the wire.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    pub(super) timezone: String,
    pub(super) start_date: Option<Timestamp>,
    pub(super) end_date: Option<Timestamp>,
    pub(super) exclusions: Vec<v1::Exclusion>,
    pub(super) dst_gap: Option<i32>,
    pub(super) dst_overlap: Option<i32>,
}

/// A source and its frame, checked as far as that is possible without a clock.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct When {
    source: Source,
    pub(super) timezone: String,
    pub(super) start: Option<DateTime<Utc>>,
    pub(super) end: Option<DateTime<Utc>>,
    pub(super) exclusions: Vec<Exclusion>,
    /// Where in the request each of the exclusions stood.
    places: Vec<usize>,
    pub(super) dst_gap: Option<DstGap>,
    pub(super) dst_overlap: Option<DstOverlap>,
    /// Of a job that is changed: what it meant before.
    before: Option<TimetableSpec>,
}

/// What a job or a preview says about when, one of which is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    pub(super) schedule: &'a str,
    pub(super) schedules: &'a [String],
    pub(super) interval: &'a str,
    pub(super) execute_at: Option<&'a Timestamp>,
}

impl Given<'_> {
    /// The types that its fields speak of, each with the field that is to be blamed for it.
    fn types(&self) -> Vec<(JobType, &'static str)> {
        let line = if self.schedule.is_empty() { "schedules" } else { "schedule" };
        let given = [
            (!self.schedule.is_empty() || !self.schedules.is_empty(), JobType::Cron, line),
            (self.execute_at.is_some(), JobType::OneTime, "execute_at"),
            (!self.interval.is_empty(), JobType::Recurring, "interval"),
        ];
        given.into_iter().filter(|(is_given, ..)| *is_given).map(|(_, of, field)| (of, field)).collect()
    }

    /// What a job of this type is to be read from. `allow_past`: whether its instant may be past.
    fn source(&self, job_type: JobType, allow_past: bool, checks: &mut Checks) -> Source {
        match job_type {
            JobType::Cron => lines(self.schedule, self.schedules),
            JobType::Recurring => interval(self.interval, checks),
            JobType::OneTime => {
                let at = checks.instant("execute_at", self.execute_at.copied());
                at.map_or(Source::Unreadable, |at| Source::Once(at, allow_past))
            }
            JobType::Event => Source::None,
        }
    }

    /// Reads what is given for a job of `wanted` type; of the one that follows from it if that is not said. `choices` is what
    /// to say if nothing is given.
    pub(super) fn read(
        &self,
        wanted: Option<JobType>,
        choices: &str,
        allow_past: bool,
        checks: &mut Checks,
    ) -> (JobType, Source) {
        const FIELDS: [&str; 4] = ["schedule", "schedules", "interval", "execute_at"];
        let given = self.types();
        let job_type = wanted.or(given.first().map(|(of, _)| *of));
        for (of, field) in &given {
            if Some(*of) != job_type {
                let rule = match wanted {
                    Some(wanted) => format!("must not be given for a job of the type {wanted}"),
                    None => format!("must not be given together with {}", given[0].1),
                };
                checks.refuse(field, rule);
            }
        }
        let Some(job_type) = job_type else {
            // One that could not be read is no missing one.
            if !FIELDS.iter().any(|field| checks.is_wrong(field)) {
                checks.refuse("schedule", choices);
            }
            return (JobType::Event, Source::Unreadable);
        };
        if job_type != JobType::Event && !given.iter().any(|(of, _)| *of == job_type) {
            let (field, rule) = match job_type {
                JobType::OneTime => ("execute_at", "must be given"),
                JobType::Recurring => ("interval", "must be given"),
                JobType::Cron | JobType::Event => ("schedule", "must be given, or else schedules"),
            };
            if field != "schedule" || !checks.is_wrong("schedules") {
                checks.refuse(field, rule);
            }
            return (job_type, Source::Unreadable);
        }
        (job_type, self.source(job_type, allow_past, checks))
    }
}

/// When a job fires; what stands around its source is taken out of it. `wanted` is the type that its call wants.
pub(super) fn of_job(
    job: &mut v1::Job,
    given_type: Option<JobType>,
    wanted: Option<JobType>,
    allow_past: bool,
    checks: &mut Checks,
) -> (JobType, When) {
    const CHOICES: &str =
        "must be given, or else schedules, interval or execute_at; a job without any must be of the type EVENT";
    if let (Some(given), Some(wanted)) = (given_type, wanted)
        && given != wanted
    {
        checks.refuse("type", format!("must be {wanted} here, is {given}: POST /jobs takes any type"));
    }
    let given = Given {
        schedule: &job.schedule,
        schedules: &job.schedules,
        interval: &job.interval,
        execute_at: job.execute_at.as_ref(),
    };
    let (job_type, source) = given.read(wanted.or(given_type), CHOICES, allow_past, checks);
    let frame = Frame {
        timezone: std::mem::take(&mut job.timezone),
        start_date: job.start_date,
        end_date: job.end_date,
        exclusions: std::mem::take(&mut job.exclusions),
        dst_gap: job.dst_gap,
        dst_overlap: job.dst_overlap,
    };
    (job_type, frame.around(source, checks))
}

/// The expressions of `schedule` and `schedules`.
fn lines(schedule: &str, schedules: &[String]) -> Source {
    let one = (!schedule.is_empty()).then(|| Line { field: "schedule".to_owned(), text: schedule.to_owned() });
    let further = schedules.iter().enumerate();
    let further = further.map(|(index, text)| Line { field: format!("schedules[{index}]"), text: text.clone() });
    Source::Lines(one.into_iter().chain(further).collect())
}

/// Reads an interval such as `1h30m`.
fn interval(text: &str, checks: &mut Checks) -> Source {
    let text = checks.text("interval", text, 1, 100);
    match carillon_core::schedule::parse_interval(text.trim()) {
        Ok(interval) => Source::Every(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)),
        Err(error) => {
            checks.refuse("interval", rule_of(&error.message));
            Source::Unreadable
        }
    }
}

impl Frame {
    /// Checks the frame and puts the source into it.
    pub(super) fn around(self, source: Source, checks: &mut Checks) -> When {
        let (mut exclusions, mut places) = (Vec::with_capacity(self.exclusions.len()), Vec::new());
        let mut wrong = 0;
        for (index, written) in self.exclusions.iter().enumerate() {
            match exclusion(&format!("exclusions[{index}]"), written, checks) {
                Some(exclusion) => {
                    exclusions.push(exclusion);
                    places.push(index);
                }
                None => wrong += 1,
            }
            if wrong == WRONG_EXCLUSIONS_MAX {
                break;
            }
        }
        When {
            source,
            timezone: if self.timezone.is_empty() { "UTC".to_owned() } else { spelled(self.timezone) },
            start: checks.instant("start_date", self.start_date),
            end: checks.instant("end_date", self.end_date),
            exclusions,
            places,
            dst_gap: words::read_dst_gap(checks, "dst_gap", self.dst_gap.unwrap_or_default()),
            dst_overlap: words::read_dst_overlap(checks, "dst_overlap", self.dst_overlap.unwrap_or_default()),
            before: None,
        }
    }
}

/// Reads one exclusion. Whether an expression and a zone can be read is for the engine to say.
fn exclusion(field: &str, written: &v1::Exclusion, checks: &mut Checks) -> Option<Exclusion> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (date, from, to, cron) = (given(&written.date), given(&written.from), given(&written.to), given(&written.cron));
    let read = match (date, from, to, cron) {
        (Some(date), None, None, None) => Exclusion::date(day(&format!("{field}.date"), &date, checks)?),
        (None, Some(from), Some(to), None) => {
            let from = day(&format!("{field}.from"), &from, checks);
            let to = day(&format!("{field}.to"), &to, checks);
            Exclusion::dates(from?, to?)
        }
        (None, None, None, Some(cron)) => Exclusion::cron(cron),
        (None, Some(_), None, None) => {
            checks.refuse(&format!("{field}.to"), "must be given together with from");
            return None;
        }
        (None, None, Some(_), None) => {
            checks.refuse(&format!("{field}.from"), "must be given together with to");
            return None;
        }
        (None, None, None, None) => {
            checks.refuse(field, "must have a date, from and to, or cron");
            return None;
        }
        _ => {
            checks.refuse(field, "must have only one of a date, from with to, and cron");
            return None;
        }
    };
    Some(match given(&written.timezone) {
        Some(timezone) => read.in_timezone(spelled(timezone)),
        None => read,
    })
}

/// A time zone as the database spells it, so that a job and its description name it alike. What is no time zone is left for
/// the engine to refuse.
fn spelled(timezone: String) -> String {
    carillon_core::schedule::timezone_name(&timezone).unwrap_or(timezone)
}

fn day(field: &str, text: &str, checks: &mut Checks) -> Option<NaiveDate> {
    // As it is written back: the library would also take fewer digits, and blanks between them.
    let day = text.parse::<NaiveDate>().ok().filter(|day| day.to_string() == text);
    match day {
        None => checks.refuse(field, format!("must be a date such as 2026-12-24, is {}", quoted(text))),
        Some(day) if !(1..=9_999).contains(&day.year()) => {
            checks.refuse(field, format!("must be a date of the years 1 to 9999, is {}", quoted(text)));
        }
        Some(_) => return day,
    }
    None
}

/// An exclusion for the wire.
pub(super) fn exclusion_to_wire(exclusion: Exclusion) -> v1::Exclusion {
    match exclusion {
        Exclusion::Dates { from, to, timezone } if from == to => {
            v1::Exclusion { date: Some(from.to_string()), timezone, ..v1::Exclusion::default() }
        }
        Exclusion::Dates { from, to, timezone } => v1::Exclusion {
            from: Some(from.to_string()),
            to: Some(to.to_string()),
            timezone,
            ..v1::Exclusion::default()
        },
        Exclusion::Cron { expression, timezone } => {
            v1::Exclusion { cron: Some(expression), timezone, ..v1::Exclusion::default() }
        }
    }
}

impl When {
    /// Whether the source could be read.
    pub(super) fn is_readable(&self) -> bool {
        self.source != Source::Unreadable
    }

    /// The one instant, if it is one.
    pub(super) fn instant(&self) -> Option<DateTime<Utc>> {
        match self.source {
            Source::Once(at, _) => Some(at),
            _ => None,
        }
    }

    /// What it means at `now`: what has no anchor of its own counts from the start date, or else from `now`.
    pub(super) fn timetable(&self, now: DateTime<Utc>) -> TimetableSpec {
        let specs = match &self.source {
            Source::Lines(lines) => lines.iter().map(|line| Spec::Cron(line.text.clone())).collect(),
            Source::Every(interval_ms) => {
                vec![Spec::Every { interval_ms: *interval_ms, anchor: anchor(*interval_ms, self.start, now) }]
            }
            Source::Once(at, _) => vec![Spec::Once(*at)],
            Source::None | Source::Unreadable => Vec::new(),
        };
        let spec = TimetableSpec {
            specs,
            timezone: self.timezone.clone(),
            exclusions: self.exclusions.clone(),
            start: self.start,
            end: self.end,
            dst_gap: self.dst_gap,
            dst_overlap: self.dst_overlap,
        };
        let spec = spec.anchored(now);
        match &self.before {
            Some(before) => spec.anchored_as(before),
            None => spec,
        }
    }

    /// The same, as a change of what meant `before`: intervals that stay go on from where they are.
    pub(super) fn instead_of(self, before: TimetableSpec) -> Self {
        Self { before: Some(before), ..self }
    }

    /// The timetable at `now` for a job, or all that is wrong with it.
    pub(super) fn parse(&self, id: Uuid, now: DateTime<Utc>) -> Result<Timetable, Vec<FieldViolation>> {
        Timetable::parse(&self.timetable(now), id)
            .map_err(|errors| errors.into_iter().map(|error| self.violation_of(error)).collect())
    }

    /// The timetable and the first instant of a job that is created at `now`, or why it has none.
    pub(super) fn first_fire(
        &self,
        id: Uuid,
        now: DateTime<Utc>,
    ) -> Result<(TimetableSpec, Option<DateTime<Utc>>), Vec<FieldViolation>> {
        let timetable = self.parse(id, now)?;
        let spec = self.timetable(now);
        if let Source::Once(at, allow_past) = self.source
            && at <= now
        {
            return if allow_past { Ok((spec, Some(at))) } else { Err(vec![past(at, now)]) };
        }
        match timetable.check_fires_after(now) {
            Ok(()) => Ok((spec, timetable.next_after(now).fire())),
            // Not known to have none: its exclusions are too many to see past them.
            Err(error) if error.field == "exclusions" => Err(vec![self.violation_of(error)]),
            Err(error) => Err(vec![self.no_fire(&spec, id, now, &error)]),
        }
    }

    /// Nothing is to come: names what must be changed so that something is.
    fn no_fire(&self, spec: &TimetableSpec, id: Uuid, now: DateTime<Utc>, error: &ScheduleError) -> FieldViolation {
        let fires = |spec| Timetable::parse(&spec, id).is_ok_and(|timetable| timetable.next_after(now) != Next::End);
        let rule = rule_of(&error.message);
        if self.end.is_some() && fires(TimetableSpec { end: None, ..spec.clone() }) {
            return FieldViolation::new("end_date", format!("with it the schedule {rule}"));
        }
        if !self.exclusions.is_empty() && fires(TimetableSpec { exclusions: Vec::new(), ..spec.clone() }) {
            return FieldViolation::new("exclusions", format!("with them the schedule {rule}"));
        }
        FieldViolation::new(self.schedule_field(), rule)
    }

    /// The field that the schedule as a whole was given in.
    pub(super) fn schedule_field(&self) -> &str {
        match &self.source {
            Source::Lines(lines) => match lines.as_slice() {
                [only] => &only.field,
                _ => "schedules",
            },
            Source::Every(_) => "interval",
            Source::Once(..) => "execute_at",
            Source::None | Source::Unreadable => "schedule",
        }
    }

    /// A mistake that the engine found, at the place where the client wrote it.
    fn violation_of(&self, error: ScheduleError) -> FieldViolation {
        let ScheduleError { field, message } = error;
        let index = |list: &str| -> Option<usize> {
            field.strip_prefix(list)?.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
        };
        let place = if field == "schedule" {
            self.schedule_field().to_owned()
        } else if let (Some(index), Source::Lines(lines)) = (index("schedules"), &self.source) {
            lines.get(index).map_or(field, |line| line.field.clone())
        } else if let Some(index) = index("exclusions") {
            let part = match self.exclusions.get(index) {
                _ if message.starts_with("timezone: ") => "timezone",
                Some(Exclusion::Dates { .. }) => "to",
                Some(Exclusion::Cron { .. }) | None => "cron",
            };
            self.places.get(index).map_or(field, |index| format!("exclusions[{index}].{part}"))
        } else {
            field
        };
        FieldViolation::new(place, rule_of(&message))
    }

    /// Whether looking at it takes microseconds: one source, nothing excluded.
    pub(super) fn is_light(&self) -> bool {
        let lines = if let Source::Lines(lines) = &self.source { lines.len() } else { 1 };
        lines <= 1 && self.exclusions.is_empty()
    }

    /// Looks at it. Many schedules with many exclusions take some tenths of a second, so these are looked at one by one and
    /// not on a thread that serves others.
    pub(super) async fn look<T: Send + 'static>(
        self,
        backend: &Backend,
        look: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<(Self, T), Status> {
        if self.is_light() {
            let found = look(&self);
            return Ok((self, found));
        }
        backend
            .aside(move || {
                let found = look(&self);
                (self, found)
            })
            .await
    }
}

/// The engine's text is readable alone and so begins with the name of what it is about, which here stands beside it.
fn rule_of(message: &str) -> String {
    const NAMES: [&str; 8] = [
        "schedule: ",
        "exclusion: ",
        "interval: ",
        "timezone: ",
        "end_date: ",
        "start_date: ",
        "schedules: ",
        "exclusions: ",
    ];
    NAMES.iter().find_map(|name| message.strip_prefix(name)).unwrap_or(message).to_owned()
}

fn past(at: DateTime<Utc>, now: DateTime<Utc>) -> FieldViolation {
    let rule = format!("must be later than now, {}, unless allow_past is true, is {}", shown(now), shown(at));
    FieldViolation::new("execute_at", rule)
}

fn shown(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
