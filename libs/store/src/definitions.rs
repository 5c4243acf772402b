//! What the leader needs to know of a job in order to dispatch it, in the revision that an execution names (R23a): never a
//! newer one. Read once and cached by (job, revision): a fire of a known job reads its narrow timer row only.

use carillon_core::gate::Gate;
use carillon_core::job::Priority;
use carillon_core::limits::PAYLOAD_BYTES_IN_ENTRY;
use carillon_core::line::Line;
use carillon_core::retry::{Growth, Policy};
use carillon_core::schedule::TimetableSpec;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{Postgres, Row};
use uuid::Uuid;

use crate::bounded::Connection;
use crate::{Error, Result, Store};

/// A job's definition, as far as dispatching it goes.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The job.
    pub job: Uuid,
    /// Which of its definitions this is.
    pub revision: i64,
    /// Queue and priority.
    pub line: Line,
    /// The tenant; none for a global job.
    pub platform_id: Option<String>,
    /// Name of the handler.
    pub handler: String,
    /// JSON text of the payload, where it is small enough to travel in a stream entry.
    pub payload: Option<String>,
    /// When it fires, where that is said in few words; [`Store::revision_timetable`] reads a longer one.
    pub timetable: Option<TimetableSpec>,
    /// Retries after the first attempt.
    pub max_retries: i32,
    /// When they follow.
    pub retry: Policy,
    /// Milliseconds that an attempt may take.
    pub timeout_ms: i32,
    /// R20: what it lets through.
    pub gate: Gate,
}

/// Bytes of a timetable that is read with the rest of a definition. A thousand of the longest are 100 MB.
const TIMETABLE_BYTES_KEPT: i32 = 4 * 1024;

/// Each revision is unpacked once, whatever is read of it. All as it stands there: a cast that one of them does not bear would
/// fail for all.
macro_rules! definitions_of {
    ($wanted:literal) => {
        concat!(
            "
SELECT r.job_id, r.revision, d.queue, d.priority, d.platform_id, d.handler_name, d.max_retries, d.timeout_ms,
       d.retry_delay_ms, d.retry_backoff, d.retry_delay_cap_ms, d.retry_jitter_percent,
       CASE WHEN pg_column_size(d.timetable) <= $2 THEN d.timetable END AS timetable,
       d.concurrency, d.allow_overlap, d.max_executions,
       CASE WHEN octet_length(d.payload::text) <= $1 THEN d.payload::text END AS payload
FROM ",
            $wanted,
            " AS w(job_id, revision)
JOIN carillon.job_revisions r ON r.job_id = w.job_id AND r.revision = w.revision
CROSS JOIN LATERAL jsonb_to_record(CASE jsonb_typeof(r.definition) WHEN 'object' THEN r.definition ELSE '{}' END) AS d(
    queue jsonb, priority jsonb, platform_id jsonb, handler_name jsonb, timetable jsonb, max_retries jsonb,
    retry_delay_ms jsonb, retry_backoff jsonb, retry_delay_cap_ms jsonb, retry_jitter_percent jsonb, timeout_ms jsonb, concurrency jsonb, allow_overlap jsonb, max_executions jsonb, payload jsonb)"
        )
    };
}

const DEFINITIONS_BY_REVISION: &str = definitions_of!("UNNEST($3::uuid[], $4::bigint[])");

/// Of the jobs that fire for the first time behind `$6`, until `$7`, in some lines. `$8` timers of each line are looked at, and
/// definitions of as many are read, at most: however many others fire at the same time.
const DEFINITIONS_OF_FIRST_FIRES: &str = definitions_of!(
    "(SELECT t.job_id, t.revision
      FROM UNNEST($4::text[], $5::smallint[]) AS l(queue, priority)
      CROSS JOIN LATERAL (
          SELECT t.job_id, t.revision, t.claimed_count FROM carillon.job_timers t
          WHERE t.shard = $3 AND t.queue = l.queue AND t.priority = l.priority AND t.fire_at > $6 AND t.fire_at <= $7
          ORDER BY t.fire_at LIMIT $8) t
      WHERE t.claimed_count = 0 LIMIT $8)"
);

/// Reads the definitions that `wanted` names by job and revision. One that does not exist, or that this version cannot read,
/// is left out.
pub(crate) async fn definitions_by_revision_on_conn(
    connection: &mut Connection,
    wanted: &[(Uuid, i64)],
) -> Result<Vec<Definition>> {
    let rows = bounded_query(DEFINITIONS_BY_REVISION)
        .bind(wanted.iter().map(|(job, _)| *job).collect::<Vec<_>>())
        .bind(wanted.iter().map(|(_, revision)| *revision).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    read_all(&rows)
}

/// Reads the definitions of jobs that have never fired and whose timers stand behind one instant, until another, in these lines: at
/// most so many. One that this version cannot read is left out.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn of_first_fires(
    store: &Store,
    shard: i16,
    lines: &[Line],
    behind: DateTime<Utc>,
    until: DateTime<Utc>,
    most: u16,
) -> Result<Vec<Definition>> {
    let rows = bounded_query(DEFINITIONS_OF_FIRST_FIRES)
        .bind(shard)
        .bind(lines.iter().map(|line| line.queue.clone()).collect::<Vec<_>>())
        .bind(lines.iter().map(|line| line.priority.rank()).collect::<Vec<_>>())
        .bind(behind)
        .bind(until)
        .bind(i64::from(most))
        .fetch_all(&store.pool)
        .await?;
    read_all(&rows)
}

/// A query of definitions, with the bounds of what of each is read.
fn bounded_query(statement: &'static str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(statement).bind(i32::try_from(PAYLOAD_BYTES_IN_ENTRY).unwrap_or(i32::MAX)).bind(TIMETABLE_BYTES_KEPT)
}

fn read_all(rows: &[PgRow]) -> Result<Vec<Definition>> {
    let mut definitions = Vec::with_capacity(rows.len());
    for row in rows {
        match read(row) {
            Ok(definition) => definitions.push(definition),
            // One job that this version cannot read must not keep all others from firing.
            Err(Error::Unreadable { what, why }) => {
                let (job, revision): (Uuid, i64) = (row.try_get("job_id")?, row.try_get("revision")?);
                tracing::error!(job.id = %job, revision, "{what} cannot be read: {why}");
            }
            Err(other) => return Err(other),
        }
    }
    Ok(definitions)
}

/// The column `timetable` of a row, which is one.
pub(crate) fn timetable_of(row: &PgRow) -> Result<TimetableSpec> {
    let Json(timetable) = row.try_get("timetable").map_err(unreadable_timetable)?;
    Ok(timetable)
}

fn unreadable_timetable(error: sqlx::Error) -> Error {
    Error::Unreadable { what: "timetable of a job", why: error.to_string() }
}

impl Store {
    /// Reads when a job fires by that revision, however long that is. `None`: there is no such revision any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Unreadable`] for one that this version cannot read.
    pub async fn revision_timetable(&self, job: Uuid, revision: i64) -> Result<Option<TimetableSpec>> {
        let row = sqlx::query(
            "SELECT definition -> 'timetable' AS timetable FROM carillon.job_revisions WHERE job_id = $1 AND revision = $2",
        )
        .bind(job)
        .bind(revision)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(timetable_of).transpose()
    }
}

/// What a definition says in a column of jsonb. Whatever stands there, the session is none the worse for it.
///
/// # Errors
/// [`Error::Unreadable`] if it is not there, or something else.
pub(crate) fn field<T: DeserializeOwned + 'static>(row: &PgRow, column: &'static str) -> Result<T> {
    match optional(row, column)? {
        Some(value) => Ok(value),
        None => Err(Error::Unreadable { what: "definition of a job", why: format!("{column} is missing") }),
    }
}

fn optional<T: DeserializeOwned + 'static>(row: &PgRow, column: &'static str) -> Result<Option<T>> {
    let unreadable = |error: sqlx::Error| Error::Unreadable { what: "definition of a job", why: error.to_string() };
    let value: Option<Json<Option<T>>> = row.try_get(column).map_err(unreadable)?;
    Ok(value.and_then(|Json(value)| value))
}

/// When retries follow, by the columns of a definition that say it. What an older version did not write is as it was then.
pub(crate) fn retry_of(row: &PgRow) -> Result<Policy> {
    let usual = Growth::default();
    let growth = Growth {
        backoff: optional(row, "retry_backoff")?.unwrap_or(usual.backoff),
        cap_ms: optional(row, "retry_delay_cap_ms")?.unwrap_or(usual.cap_ms),
        jitter_percent: optional(row, "retry_jitter_percent")?.unwrap_or(usual.jitter_percent),
    };
    Ok(Policy { delay_ms: field(row, "retry_delay_ms")?, growth })
}

fn read(row: &PgRow) -> Result<Definition> {
    let concurrency: i32 = field(row, "concurrency")?;
    let allow_overlap: bool = field(row, "allow_overlap")?;
    let timetable: Option<Json<TimetableSpec>> = row.try_get("timetable").map_err(unreadable_timetable)?;
    Ok(Definition {
        job: row.try_get("job_id")?,
        revision: row.try_get("revision")?,
        line: Line::new(field::<String>(row, "queue")?, Priority::from_rank(field(row, "priority")?)),
        platform_id: optional(row, "platform_id")?,
        handler: field(row, "handler_name")?,
        payload: row.try_get("payload")?,
        timetable: timetable.map(|Json(timetable)| timetable),
        max_retries: field(row, "max_retries")?,
        retry: retry_of(row)?,
        timeout_ms: field(row, "timeout_ms")?,
        gate: Gate::new(allow_overlap, concurrency, optional(row, "max_executions")?),
    })
}
