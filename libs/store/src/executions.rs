//! Executions as the API reads them. A trigger that is not claimed yet is one too, QUEUED: it leaves `job_triggers` and
//! enters `job_executions` in one transaction, so a single statement over both sees it exactly once.

use carillon_core::execution::Status;
use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::QueryBuilder;
use uuid::Uuid;

use crate::document::Document;
use crate::jobs::rows::word;
use crate::page::{self, Page, Slice};
use crate::{Error, Result, Store};

/// The record of one fire.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// Its id.
    pub id: Uuid,
    /// The job that fired.
    pub job_id: Uuid,
    /// Where it stands.
    pub status: Status,
    /// The instant it is or was due at.
    pub scheduled_at: DateTime<Utc>,
    /// Start of the latest attempt.
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached its final state.
    pub completed_at: Option<DateTime<Utc>>,
    /// How long the latest attempt ran.
    pub duration_ms: Option<i64>,
    /// What the handler returned.
    pub result: Option<Value>,
    /// Why the latest attempt failed.
    pub error: Option<String>,
    /// Where it failed.
    pub error_stack: Option<String>,
    /// The latest attempt, counted from 1.
    pub attempt: i16,
    /// Attempts after the first one, at most.
    pub max_retries: i32,
    /// When the next attempt is due.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// The executor that runs it or ran it last.
    pub worker_id: Option<Uuid>,
    /// Why it was held back, skipped, cancelled or ended.
    pub reason: Option<String>,
    /// Whether it was asked to stop.
    pub cancel_requested: bool,
    /// What else is known of it.
    pub metadata: Option<Value>,
    /// W3C trace id.
    pub trace_id: Option<String>,
    /// Span of the execution.
    pub span_id: Option<String>,
    /// Span of what asked for it.
    pub parent_span_id: Option<String>,
    /// Who asked for it, where it was triggered.
    pub created_by: String,
    /// The definition that it runs, or ran, with.
    pub revision: i64,
    /// The line of work it waits in.
    pub queue: String,
}

const SELECT_CLAIMED: &str = "
    SELECT e.id, e.job_id, e.status, e.scheduled_at, e.started_at, e.completed_at, e.duration_ms, e.result, e.error,
           e.error_stack, e.attempt, e.max_retries, e.next_retry_at, e.worker_id, e.reason, e.cancel_requested,
           e.metadata, e.trace_id, e.span_id, e.parent_span_id, e.created_by, e.revision, e.queue
    FROM job_executions e";

/// Columns and types as [`SELECT_CLAIMED`].
const SELECT_TRIGGERED: &str = "
    SELECT t.execution_id AS id, t.job_id, 'QUEUED', t.fire_at, NULL::timestamptz, NULL::timestamptz, NULL::bigint,
           NULL::jsonb, NULL::text, NULL::text, 1::smallint, j.max_retries, NULL::timestamptz, NULL::uuid, NULL::text,
           false, NULL::jsonb, t.trace_id, NULL::text, t.parent_span_id,
           t.created_by, j.revision, t.queue
    FROM job_triggers t JOIN jobs j ON j.id = t.job_id";

#[derive(sqlx::FromRow)]
struct ExecutionRow {
    id: Uuid,
    job_id: Uuid,
    status: String,
    scheduled_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    duration_ms: Option<i64>,
    result: Option<Document>,
    error: Option<String>,
    error_stack: Option<String>,
    attempt: i16,
    max_retries: i32,
    next_retry_at: Option<DateTime<Utc>>,
    worker_id: Option<Uuid>,
    reason: Option<String>,
    cancel_requested: bool,
    metadata: Option<Document>,
    trace_id: Option<String>,
    span_id: Option<String>,
    parent_span_id: Option<String>,
    created_by: String,
    revision: i64,
    queue: String,
}

impl ExecutionRow {
    /// By how many bytes it is larger on the wire than in Postgres.
    fn growth(&self) -> usize {
        [&self.result, &self.metadata].into_iter().flatten().map(|document| document.growth).sum()
    }
}

impl TryFrom<ExecutionRow> for Execution {
    type Error = Error;

    fn try_from(row: ExecutionRow) -> Result<Self> {
        Ok(Self {
            id: row.id,
            job_id: row.job_id,
            status: word("job_executions.status", &row.status)?,
            scheduled_at: row.scheduled_at,
            started_at: row.started_at,
            completed_at: row.completed_at,
            duration_ms: row.duration_ms,
            result: row.result.map(|result| result.value),
            error: row.error,
            error_stack: row.error_stack,
            attempt: row.attempt,
            max_retries: row.max_retries,
            next_retry_at: row.next_retry_at,
            worker_id: row.worker_id,
            reason: row.reason,
            cancel_requested: row.cancel_requested,
            metadata: row.metadata.map(|metadata| metadata.value),
            trace_id: row.trace_id,
            span_id: row.span_id,
            parent_span_id: row.parent_span_id,
            created_by: row.created_by,
            revision: row.revision,
            queue: row.queue,
        })
    }
}

/// Reads one execution: two primary keys, one partition.
///
/// # Errors
/// [`Error::NotFound`]; or if Postgres is unavailable.
pub async fn get(store: &Store, id: Uuid) -> Result<Execution> {
    let mut query = QueryBuilder::new(SELECT_CLAIMED);
    query.push(" WHERE e.id = ").push_bind(id).push(" UNION ALL ");
    query.push(SELECT_TRIGGERED).push(" WHERE t.execution_id = ").push_bind(id).push(" LIMIT 1");
    let row: Option<ExecutionRow> = query.build_query_as().fetch_optional(&store.pool).await?;
    row.ok_or(Error::NotFound { what: "execution", id })?.try_into()
}

/// Lists the executions of a job, newest first. Without a status it walks the index `(job_id, id)` from its end; with one it
/// walks further, past those that stand otherwise (an index on status would make every finish dearer).
///
/// # Errors
/// [`Error::NotFound`] for an unknown job; or if Postgres is unavailable.
pub async fn list(store: &Store, job: Uuid, status: Option<Status>, slice: Slice) -> Result<Page<Execution>> {
    let reach = i64::from(slice.offset) + slice.limit_and_one();
    let mut query = QueryBuilder::new("SELECT * FROM ((");
    query.push(SELECT_CLAIMED).push(" WHERE e.job_id = ").push_bind(job);
    if let Some(status) = status {
        query.push(" AND e.status = ").push_bind(status.as_str());
    }
    query.push(" ORDER BY e.id DESC LIMIT ").push_bind(reach).push(")");
    if matches!(status, None | Some(Status::Queued)) {
        query.push(" UNION ALL (").push(SELECT_TRIGGERED).push(" WHERE t.job_id = ").push_bind(job);
        query.push(" ORDER BY t.execution_id DESC LIMIT ").push_bind(reach).push(")");
    }
    query.push(") AS both_kinds ORDER BY id DESC LIMIT ").push_bind(slice.limit_and_one());
    query.push(" OFFSET ").push_bind(i64::from(slice.offset));
    // Boxed: a wide row would make every caller's future large.
    let page = Box::pin(page::collect(&store.pool, query.build(), slice, |row| {
        let row: ExecutionRow = sqlx::FromRow::from_row(row)?;
        Ok((row.growth(), row.try_into()?))
    }))
    .await?;
    if page.items.is_empty() {
        require_job(store, job).await?;
    }
    Ok(page)
}

async fn require_job(store: &Store, id: Uuid) -> Result<()> {
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM jobs WHERE id = $1)").bind(id).fetch_one(&store.pool).await?;
    if exists { Ok(()) } else { Err(Error::NotFound { what: "job", id }) }
}
