//! What the leader needs to know of a job in order to dispatch it. Read once and cached by (job, revision): a fire of a
//! known job reads its narrow timer row only.

use carillon_core::job::Priority;
use carillon_core::limits::PAYLOAD_BYTES_IN_ENTRY;
use carillon_core::line::Line;
use carillon_core::schedule::TimetableSpec;
use sqlx::Row;
use sqlx::types::Json;
use uuid::Uuid;

use crate::bounded::Connection;
use crate::{Error, Result};

/// A job's definition, as far as dispatching it goes.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The job.
    pub job: Uuid,
    /// Raised by every change.
    pub revision: i64,
    /// Queue and priority.
    pub line: Line,
    /// Name of the handler.
    pub handler: String,
    /// JSON text of the payload, where it is small enough to travel in a stream entry.
    pub payload: Option<String>,
    /// When it fires.
    pub timetable: TimetableSpec,
    /// Retries after the first attempt.
    pub max_retries: i32,
    /// Milliseconds before the first retry.
    pub retry_delay_ms: i32,
    /// Milliseconds that an attempt may take.
    pub timeout_ms: i32,
    /// R20: executions that may be open at once; `None` = no bound.
    pub open_max: Option<i64>,
    /// Executions after which the job is complete.
    pub max_executions: Option<i64>,
}

/// Reads the definitions of `jobs`. A job that does not exist, or that this version cannot read, is left out.
pub(crate) async fn definitions_by_id_on_conn(connection: &mut Connection, jobs: &[Uuid]) -> Result<Vec<Definition>> {
    let rows = sqlx::query(
        "SELECT id, revision, queue, priority, handler_name, timetable, max_retries, retry_delay_ms, timeout_ms, \
                concurrency, allow_overlap, max_executions, \
                CASE WHEN octet_length(payload::text) <= $2 THEN payload::text END AS payload \
         FROM jobs WHERE id = ANY($1)",
    )
    .bind(jobs)
    .bind(i32::try_from(PAYLOAD_BYTES_IN_ENTRY).unwrap_or(i32::MAX))
    .fetch_all(connection)
    .await?;
    let mut definitions = Vec::with_capacity(rows.len());
    for row in &rows {
        match read(row) {
            Ok(definition) => definitions.push(definition),
            // One job that this version cannot read must not keep all others from firing.
            Err(Error::Unreadable { what, why }) => {
                let job: Uuid = row.try_get("id")?;
                tracing::error!(job.id = %job, "{what} cannot be read: {why}");
            }
            Err(other) => return Err(other),
        }
    }
    Ok(definitions)
}

fn read(row: &sqlx::postgres::PgRow) -> Result<Definition> {
    let concurrency: i32 = row.try_get("concurrency")?;
    let allow_overlap: bool = row.try_get("allow_overlap")?;
    let Json(timetable): Json<TimetableSpec> = row
        .try_get("timetable")
        .map_err(|error| Error::Unreadable { what: "timetable of a job", why: error.to_string() })?;
    Ok(Definition {
        job: row.try_get("id")?,
        revision: row.try_get("revision")?,
        line: Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?)),
        handler: row.try_get("handler_name")?,
        payload: row.try_get("payload")?,
        timetable,
        max_retries: row.try_get("max_retries")?,
        retry_delay_ms: row.try_get("retry_delay_ms")?,
        timeout_ms: row.try_get("timeout_ms")?,
        open_max: match (allow_overlap, concurrency) {
            (false, _) => Some(1),
            (true, 0) => None,
            (true, bound) => Some(i64::from(bound)),
        },
        max_executions: row.try_get("max_executions")?,
    })
}
