//! A job as it is written and as it is read.

use carillon_core::job::{HandlerType, JobStatus, JobType, Priority};
use carillon_core::retry::Backoff;
use carillon_core::schedule::{DstGap, DstOverlap, Exclusion, TimetableSpec};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::types::Json;
use uuid::Uuid;

use crate::document::Document;
use crate::{Error, Result, Scope};

/// What an author decides about a job. Its fields are columns of `jobs`, by name, but for those that are skipped: documents are
/// read and written by themselves, and what is said of when it fires stands in `jobs.timetable`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What makes it fire.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// Its author's own name for it.
    pub key: Option<String>,
    /// The cron expression as written.
    pub schedule: String,
    /// Further schedules, as written.
    #[serde(skip)]
    pub schedules: Vec<String>,
    /// The interval as written.
    pub interval: String,
    /// The one instant.
    pub execute_at: Option<DateTime<Utc>>,
    /// IANA time zone of the schedules.
    pub timezone: String,
    /// When it does not fire after all.
    #[serde(skip)]
    pub exclusions: Vec<Exclusion>,
    /// What becomes of a local time that does not exist, if the author chose.
    #[serde(skip)]
    pub dst_gap: Option<DstGap>,
    /// Which pass of a local time that occurs twice fires, if the author chose.
    #[serde(skip)]
    pub dst_overlap: Option<DstOverlap>,
    /// No fire before.
    pub start_date: Option<DateTime<Utc>>,
    /// No fire after.
    pub end_date: Option<DateTime<Utc>>,
    /// Executions after which it is COMPLETED.
    pub max_executions: Option<i64>,
    /// The code to run.
    pub handler_name: String,
    /// Where it runs.
    pub handler_type: HandlerType,
    /// Its parameters, a JSON object.
    #[serde(skip)]
    pub payload: Value,
    /// The line of work that its executions wait in.
    pub queue: String,
    /// Which of several due fires goes first.
    #[serde(with = "rank")]
    pub priority: Priority,
    /// Attempts after the first one failed.
    pub max_retries: i32,
    /// Delay before the first retry.
    pub retry_delay_ms: i32,
    /// How that grows with each further one,
    pub retry_backoff: Backoff,
    /// how far,
    pub retry_delay_cap_ms: i32,
    /// and by how much chance changes it, in percent.
    pub retry_jitter_percent: i32,
    /// Time for one attempt.
    pub timeout_ms: i32,
    /// Open executions at once; 0 = no bound.
    pub concurrency: i32,
    /// Whether a fire starts although an earlier execution is open.
    pub allow_overlap: bool,
    /// Labels.
    pub tags: Vec<String>,
    /// Anything worth keeping, a JSON object.
    #[serde(skip)]
    pub metadata: Value,
    /// The tenant; none for a global job.
    pub platform_id: Option<String>,
    /// Who created it.
    pub created_by: String,
}

/// A priority as Postgres keeps it.
mod rank {
    use carillon_core::job::Priority;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(priority: &Priority, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i16(priority.rank())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
        i16::deserialize(deserializer).map(Priority::from_rank)
    }
}

/// A job to be created.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    /// Its id (`carillon_core::ids::job_created`).
    pub id: Uuid,
    /// What its author decided.
    pub definition: Definition,
    /// What the schedules and exclusions of `definition` mean.
    pub timetable: TimetableSpec,
    /// The first instant to fire at, if there is one.
    pub fire_at: Option<DateTime<Utc>>,
    /// The database's clock as of which `fire_at` was worked out.
    pub created_at: DateTime<Utc>,
    /// How many names of queues there may be, its own among them ([`crate::queues`]).
    pub queues_max: u32,
}

/// A job and its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: Uuid,
    /// What its author decided.
    pub definition: Definition,
    /// Whether it fires.
    pub status: JobStatus,
    /// Raised by every change of the definition.
    pub revision: i64,
    /// The next instant it fires at.
    pub next_run: Option<DateTime<Utc>>,
    /// When its latest execution ended.
    pub last_run: Option<DateTime<Utc>>,
    /// Executions opened so far.
    pub executions_count: i64,
    /// Those that succeeded.
    pub success_count: i64,
    /// Those that ended FAILED or TIMEOUT.
    pub failure_count: i64,
    /// Sum of the durations of both.
    pub total_duration_ms: i64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When definition or status last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was paused.
    pub paused_at: Option<DateTime<Utc>>,
    /// When it became COMPLETED.
    pub completed_at: Option<DateTime<Utc>>,
    /// When it was deleted.
    pub cancelled_at: Option<DateTime<Utc>>,
}

impl Job {
    /// Mean duration of the executions that succeeded or failed; 0 if there are none.
    pub fn avg_duration_ms(&self) -> i64 {
        let ended = self.success_count.saturating_add(self.failure_count);
        if ended > 0 { self.total_duration_ms / ended } else { 0 }
    }
}

/// What is written to `jobs.timetable`: the meaning, and beside it the further schedules as written, since an `@every` line
/// is kept anchored and no longer tells its text. Who wants the meaning reads a [`TimetableSpec`], which passes over the rest.
#[derive(Serialize)]
struct TimetableWritten<'a> {
    #[serde(flatten)]
    timetable: &'a TimetableSpec,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    schedules: &'a [String],
}

/// What is shown of `jobs.timetable`. Its specs are passed over: a kind of spec that a newer program writes hinders nobody
/// from reading and listing.
#[derive(Deserialize)]
struct TimetableShown {
    #[serde(default)]
    schedules: Vec<String>,
    #[serde(default)]
    exclusions: Vec<Exclusion>,
    #[serde(default)]
    dst_gap: Option<DstGap>,
    #[serde(default)]
    dst_overlap: Option<DstOverlap>,
}

/// The row of a new job, but for its documents: as `jsonb_populate_record` takes it.
#[derive(Serialize)]
pub(super) struct RowWritten<'a> {
    id: Uuid,
    status: JobStatus,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    #[serde(flatten)]
    definition: DefinitionWritten<'a>,
}

/// So the columns of a definition.
#[derive(Serialize)]
struct DefinitionWritten<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    timetable: Option<TimetableWritten<'a>>,
    #[serde(flatten)]
    definition: &'a Definition,
}

impl<'a> DefinitionWritten<'a> {
    fn new(definition: &'a Definition, timetable: Option<&'a TimetableSpec>) -> Self {
        let written = |timetable| TimetableWritten { timetable, schedules: &definition.schedules };
        Self { timetable: timetable.map(written), definition }
    }
}

/// The columns of a definition, but for the documents, and for what says when it fires if that is not given.
///
/// # Errors
/// If it has no JSON form.
pub(super) fn definition_row(definition: &Definition, timetable: Option<&TimetableSpec>) -> serde_json::Result<Value> {
    serde_json::to_value(DefinitionWritten::new(definition, timetable))
}

/// The columns that a row names, for a statement.
pub(super) fn columns_of(row: &Value) -> String {
    let columns: Vec<String> =
        row.as_object().into_iter().flatten().map(|(column, _)| format!("\"{column}\"")).collect();
    columns.join(", ")
}

impl NewJob {
    /// Refuses one of a platform that is not its maker's.
    pub(super) fn require_own(&self, scope: &Scope) -> Result<()> {
        scope.require_own(self.definition.platform_id.as_deref(), "job", self.id)
    }

    /// Its row in `jobs`, but for the documents.
    ///
    /// # Errors
    /// If it has no JSON form.
    pub(super) fn row(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self.written())
    }

    /// The same, to be written as JSON. Every one has the same columns.
    pub(super) fn written(&self) -> RowWritten<'_> {
        RowWritten {
            id: self.id,
            status: JobStatus::Active,
            created_at: self.created_at,
            updated_at: self.created_at,
            definition: DefinitionWritten::new(&self.definition, Some(&self.timetable)),
        }
    }
}

/// How a job stands, beside its definition.
#[derive(Deserialize)]
struct State {
    id: Uuid,
    status: JobStatus,
    revision: i64,
    timetable: TimetableShown,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    paused_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    cancelled_at: Option<DateTime<Utc>>,
}

/// What [`JobRow`] is read from; a `WHERE` follows. Three primary keys, no aggregate. The documents are nulled before the row is made
/// JSON: they are not taken apart for nothing.
pub(super) const JOBS_SELECT: &str = "
    SELECT to_jsonb(jsonb_populate_record(j, '{\"payload\": null, \"metadata\": null}')) AS job, j.payload, j.metadata,
           t.fire_at AS next_run, COALESCE(t.claimed_count, 0) AS executions_count, s.last_run_at AS last_run,
           COALESCE(s.success_count, 0) AS success_count, COALESCE(s.failure_count, 0) AS failure_count,
           COALESCE(s.total_duration_ms, 0) AS total_duration_ms
    FROM carillon.jobs j LEFT JOIN carillon.job_timers t ON t.job_id = j.id LEFT JOIN carillon.job_stats s ON s.job_id = j.id";

#[derive(sqlx::FromRow)]
pub(super) struct JobRow {
    job: Json<Box<RawValue>>,
    payload: Document,
    metadata: Document,
    next_run: Option<DateTime<Utc>>,
    executions_count: i64,
    last_run: Option<DateTime<Utc>>,
    success_count: i64,
    failure_count: i64,
    total_duration_ms: i64,
}

impl JobRow {
    /// By how many bytes it is larger on the wire than in Postgres.
    pub(super) const fn growth(&self) -> usize {
        self.payload.growth.saturating_add(self.metadata.growth)
    }
}

impl TryFrom<JobRow> for Job {
    type Error = Error;

    fn try_from(row: JobRow) -> Result<Self> {
        let unreadable = |error: serde_json::Error| Error::Unreadable { what: "row of a job", why: error.to_string() };
        let state: State = serde_json::from_str(row.job.get()).map_err(unreadable)?;
        let definition: Definition = serde_json::from_str(row.job.get()).map_err(unreadable)?;
        let TimetableShown { schedules, exclusions, dst_gap, dst_overlap } = state.timetable;
        let (payload, metadata) = (row.payload.value, row.metadata.value);
        Ok(Self {
            id: state.id,
            definition: Definition { schedules, exclusions, dst_gap, dst_overlap, payload, metadata, ..definition },
            status: state.status,
            revision: state.revision,
            next_run: row.next_run,
            last_run: row.last_run,
            executions_count: row.executions_count,
            success_count: row.success_count,
            failure_count: row.failure_count,
            total_duration_ms: row.total_duration_ms,
            created_at: state.created_at,
            updated_at: state.updated_at,
            paused_at: state.paused_at,
            completed_at: state.completed_at,
            cancelled_at: state.cancelled_at,
        })
    }
}

impl NewJob {
    /// What it is once it is written, so that creating needs no reading.
    pub fn into_job(self) -> Job {
        Job {
            id: self.id,
            definition: self.definition,
            status: JobStatus::Active,
            revision: 1,
            next_run: self.fire_at,
            last_run: None,
            executions_count: 0,
            success_count: 0,
            failure_count: 0,
            total_duration_ms: 0,
            created_at: self.created_at,
            updated_at: self.created_at,
            paused_at: None,
            completed_at: None,
            cancelled_at: None,
        }
    }
}

/// Reads a word that only this program writes.
pub(crate) fn word<T: std::str::FromStr<Err = carillon_core::job::UnknownWord>>(
    what: &'static str,
    text: &str,
) -> Result<T> {
    text.parse().map_err(|error: carillon_core::job::UnknownWord| Error::Unreadable { what, why: error.to_string() })
}
