//! What the author of a timetable wrote, as it is stored.
//!
//! These types are kept as JSON in Postgres and read by older and newer programs: a field once written keeps its name and
//! meaning, an unknown field is passed over, a missing one has its default (but for `specs`: a job whose timetable says nothing
//! has not ended). Nothing here is checked; [`Timetable::parse`]
//! does that, and only what it accepts is ever stored.
//!
//! [`Timetable::parse`]: super::Timetable::parse

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::error::{ScheduleError, quoted};

/// A timetable: the union of its specs, minus the exclusions, between start and end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimetableSpec {
    /// When it fires: the union of all. Empty: never by time, and where that is not said nothing is.
    pub specs: Vec<Spec>,
    /// IANA name of the zone in which cron lines and exclusions are read.
    #[serde(default = "utc")]
    pub timezone: String,
    /// When it does not fire after all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclusions: Vec<Exclusion>,
    /// Nothing fires before; this very instant may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<DateTime<Utc>>,
    /// Nothing fires after; this very instant may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<DateTime<Utc>>,
    /// What becomes of a local time that a change of the clocks swallows. `None`: Debian cron's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_gap: Option<DstGap>,
    /// Which pass of a local time that occurs twice fires. `None`: Debian cron's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_overlap: Option<DstOverlap>,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Default for TimetableSpec {
    fn default() -> Self {
        Self::never()
    }
}

/// One source of instants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spec {
    /// A cron expression, or one of the `@` words.
    Cron(String),
    /// The anchor and every whole number of intervals after it, in real elapsed time.
    Every {
        /// Milliseconds between two fires.
        interval_ms: u64,
        /// The first fire. Nothing drifts from it.
        anchor: DateTime<Utc>,
    },
    /// This instant, once.
    Once(DateTime<Utc>),
}

/// Instants that are taken out of the union.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// Whole local days, from the first to the last, both included.
    Dates {
        /// The first day.
        from: NaiveDate,
        /// The last day.
        to: NaiveDate,
        /// The zone whose days they are; the timetable's when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timezone: Option<String>,
    },
    /// Every minute that a five-field cron expression matches, whole minutes long.
    Cron {
        /// The five fields.
        expression: String,
        /// The zone it is read in; the timetable's when left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timezone: Option<String>,
    },
}

impl Exclusion {
    /// One whole local day.
    pub fn date(day: NaiveDate) -> Self {
        Self::dates(day, day)
    }

    /// Whole local days, both included.
    pub fn dates(from: NaiveDate, to: NaiveDate) -> Self {
        Self::Dates { from, to, timezone: None }
    }

    /// Every minute that `expression` matches.
    pub fn cron(expression: impl Into<String>) -> Self {
        Self::Cron { expression: expression.into(), timezone: None }
    }

    /// The same, read in another zone than the timetable's.
    #[must_use]
    pub fn in_timezone(mut self, name: impl Into<String>) -> Self {
        match &mut self {
            Self::Dates { timezone, .. } | Self::Cron { timezone, .. } => *timezone = Some(name.into()),
        }
        self
    }
}

/// As a person writes it in a line: `2026-12-24`, `2026-12-24..2026-12-26` or a cron expression of five fields, each with or
/// without ` in Asia/Tokyo` behind it. Whether the expression and the zone can be read is for the timetable to say.
impl FromStr for Exclusion {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let (what, zone) = match text.split_once(" in ") {
            Some((what, zone)) => (what.trim(), Some(zone.trim())),
            None => (text.trim(), None),
        };
        let (first, last) = what.split_once("..").unwrap_or((what, what));
        let read = match (date(first.trim()), date(last.trim())) {
            (Some(first), Some(last)) => Exclusion::dates(first, last),
            _ if what.contains(char::is_whitespace) && !what.contains("..") => Exclusion::cron(what),
            _ => {
                let rule = "is no date (2026-12-24), no range of dates (2026-12-24..2026-12-26) and no cron expression \
                            of five fields";
                return Err(ScheduleError::new("exclusions", format!("exclusion: \"{}\" {rule}", quoted(text))));
            }
        };
        Ok(match zone {
            Some(zone) => read.in_timezone(zone),
            None => read,
        })
    }
}

/// A date as it is written back: the library would also take fewer digits, and blanks between them.
fn date(text: &str) -> Option<NaiveDate> {
    text.parse::<NaiveDate>().ok().filter(|day| day.to_string() == text)
}

/// What becomes of a local time that does not exist on the day the clocks go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DstGap {
    /// It fires at the first instant after the gap.
    RunAfter,
    /// It does not fire that day.
    Skip,
}

/// Which pass of a local time that occurs twice, on the day the clocks go back, fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DstOverlap {
    /// The first only.
    First,
    /// The last only.
    Last,
    /// Both.
    Both,
}

impl TimetableSpec {
    /// No instants at all: the job fires by event, dependency or hand.
    pub fn never() -> Self {
        Self {
            specs: Vec::new(),
            timezone: utc(),
            exclusions: Vec::new(),
            start: None,
            end: None,
            dst_gap: None,
            dst_overlap: None,
        }
    }

    /// One cron expression in a zone.
    pub fn cron(expression: impl Into<String>, timezone: impl Into<String>) -> Self {
        Self { specs: vec![Spec::Cron(expression.into())], timezone: timezone.into(), ..Self::never() }
    }

    /// Every `interval` from `anchor` on.
    pub fn every(interval: Duration, anchor: DateTime<Utc>) -> Self {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Self { specs: vec![Spec::Every { interval_ms, anchor }], ..Self::never() }
    }

    /// One instant.
    pub fn once(at: DateTime<Utc>) -> Self {
        Self { specs: vec![Spec::Once(at)], ..Self::never() }
    }

    /// Whether its instants depend on the rules of time zones: on those of any but UTC, which has none.
    pub fn follows_zones(&self) -> bool {
        let own = self.timezone.as_str();
        let is_ruled = |zone: &str| zone != "UTC";
        let has_lines = self.specs.iter().any(|spec| matches!(spec, Spec::Cron(_)));
        let of_exclusion = |exclusion: &Exclusion| match exclusion {
            Exclusion::Dates { timezone, .. } | Exclusion::Cron { timezone, .. } => {
                is_ruled(timezone.as_deref().unwrap_or(own))
            }
        };
        has_lines && is_ruled(own) || self.exclusions.iter().any(of_exclusion)
    }

    /// Gives each `@every` line the anchor it lacks, by the rule of [`anchor`]. To be called once, when a job is created, so
    /// that what is stored does not drift when the start is changed later. (Unanchored, a `@every` counts from the start, or
    /// from 1970-01-01T00:00:00Z.)
    #[must_use]
    pub fn anchored(mut self, created: DateTime<Utc>) -> Self {
        for spec in &mut self.specs {
            if let Spec::Cron(text) = spec
                && let Some(Ok(interval)) = super::interval::every_word(text)
            {
                let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
                *spec = Spec::Every { interval_ms, anchor: anchor(interval_ms, self.start, created) };
            }
        }
        self
    }

    /// The same, where it was changed from `old`: an interval that is as it was goes on from the anchor that it has, unless it is to
    /// begin at another start date.
    #[must_use]
    pub fn anchored_as(mut self, old: &Self) -> Self {
        if self.start != old.start {
            return self;
        }
        let anchor_of = |spec: &Spec| match spec {
            Spec::Every { interval_ms, anchor } => Some((*interval_ms, *anchor)),
            Spec::Cron(_) | Spec::Once(_) => None,
        };
        let mut anchors: Vec<(u64, DateTime<Utc>)> = old.specs.iter().filter_map(anchor_of).collect();
        for spec in &mut self.specs {
            if let Spec::Every { interval_ms, anchor } = spec
                && let Some(at) = anchors.iter().position(|(known, _)| known == interval_ms)
            {
                *anchor = anchors.remove(at).1;
            }
        }
        self
    }
}

/// The first fire of an interval: the start date if there is one, otherwise one interval after `created` (in a preview:
/// after the moment it begins at). Whoever asks for "every hour" has just done it, or says when to begin.
pub fn anchor(interval_ms: u64, start: Option<DateTime<Utc>>, created: DateTime<Utc>) -> DateTime<Utc> {
    let interval = i64::try_from(interval_ms).ok().and_then(TimeDelta::try_milliseconds);
    start.or_else(|| created.checked_add_signed(interval?)).unwrap_or(created)
}
