//! Executions as the API reads them. A trigger that is not claimed yet is one too, QUEUED: it leaves `job_triggers` and
//! enters `job_executions` in one transaction, so a single statement over both sees it exactly once. Listing them is in
//! [`list`](mod@list), cancelling one in [`crate::cancels`].

/// SQL condition: the trigger `t` of the job `j` matches the filter `w.wanted`, a [`Filter`] as JSON.
macro_rules! trigger_matches {
    () => {
        "(w.wanted ->> 'platform_id' IS NULL OR t.platform_id = w.wanted ->> 'platform_id')
         AND (w.wanted ->> 'queue' IS NULL OR t.queue = w.wanted ->> 'queue')
         AND (w.wanted ->> 'handler_name' IS NULL OR j.handler_name = w.wanted ->> 'handler_name')
         AND (w.wanted ->> 'tag' IS NULL OR j.tags @> ARRAY[w.wanted ->> 'tag'])
         AND (w.wanted -> 'scope' IS NULL OR t.platform_id IS NULL OR (w.wanted -> 'scope') ? t.platform_id)"
    };
}

mod list;
mod maybe_open;
mod open;
mod ranges;

use carillon_core::execution::Status;
use carillon_core::limits::MAX_RETRIES_MAX;
use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::bounded::Connection;
use crate::document::Document;
use crate::jobs::rows::word;
use crate::scope::{may_change, may_read};
use crate::{Error, Result, Scope, Store, days};

pub use list::{By, Filter, Order, count, list};

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
    /// Of one that is FAILED or TIMEOUT: what the same fault has in common ([`carillon_core::fingerprint`]).
    pub fingerprint: Option<String>,
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
    /// The tenant: its job's, or of a global job whoever's triggered it; none for a global one.
    pub platform_id: Option<String>,
}

const EXECUTIONS_SELECT: &str = "
    SELECT e.id, e.job_id, e.status, e.scheduled_at, e.started_at, e.completed_at, e.duration_ms, e.result, e.error,
           e.error_stack, e.attempt, e.max_retries, e.next_retry_at, e.worker_id, e.reason, e.cancel_requested,
           e.metadata, e.trace_id, e.span_id, e.parent_span_id, e.created_by, e.revision, e.queue,
           CASE WHEN e.status IN ('FAILED', 'TIMEOUT') THEN (
               SELECT f.fingerprint FROM carillon.execution_failures f WHERE f.execution_id = e.id AND {days of f.execution_id}
           ) END AS fingerprint, e.platform_id
    FROM carillon.job_executions e";

/// Columns and types as [`EXECUTIONS_SELECT`].
const TRIGGERS_SELECT: &str = "
    SELECT t.execution_id AS id, t.job_id, 'QUEUED', t.fire_at, NULL::timestamptz, NULL::timestamptz, NULL::bigint,
           NULL::jsonb, NULL::text, NULL::text, 1::smallint, j.max_retries, NULL::timestamptz, NULL::uuid, NULL::text,
           false, t.metadata, t.trace_id, NULL::text, t.parent_span_id,
           t.created_by, j.revision, t.queue, NULL::text, t.platform_id
    FROM carillon.job_triggers t JOIN carillon.jobs j ON j.id = t.job_id";

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
    fingerprint: Option<String>,
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
    platform_id: Option<String>,
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
            fingerprint: row.fingerprint,
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
            platform_id: row.platform_id,
        })
    }
}

/// Reads one execution: two primary keys, one partition.
///
/// # Errors
/// [`Error::NotFound`]; or if Postgres is unavailable.
pub async fn get(store: &Store, scope: &Scope, id: Uuid) -> Result<Execution> {
    get_on(&store.pool, scope, id).await
}

pub(crate) async fn get_on(executor: impl sqlx::PgExecutor<'_>, scope: &Scope, id: Uuid) -> Result<Execution> {
    const CLAIMED: &str = concat!("e.id = $1 AND {days of e.id} AND ", may_read!("e.platform_id", "$2"));
    const TRIGGERED: &str = concat!("t.execution_id = $1 AND ", may_read!("t.platform_id", "$2"));
    let statement =
        format!("{EXECUTIONS_SELECT} WHERE {CLAIMED} UNION ALL {TRIGGERS_SELECT} WHERE {TRIGGERED} LIMIT 1");
    let row: Option<ExecutionRow> =
        sqlx::query_as(days::of(&statement, [id])).bind(id).bind(scope.platforms()).fetch_optional(executor).await?;
    row.ok_or(Error::NotFound { what: "execution", id })?.try_into()
}

const EXECUTIONS_MAY_CHANGE: &str = concat!(
    "SELECT ",
    may_change!("platform_id", "$2"),
    " FROM carillon.job_executions WHERE id = $1 AND {days of id} AND ",
    may_read!("platform_id", "$2"),
    " UNION ALL SELECT ",
    may_change!("platform_id", "$2"),
    " FROM carillon.job_triggers WHERE execution_id = $1 AND ",
    may_read!("platform_id", "$2"),
    " LIMIT 1"
);

/// Refuses what the caller may not change. What an execution belongs to, it does for ever, so it may be asked before it is
/// locked.
pub(crate) async fn require_own_on(connection: &mut Connection, scope: &Scope, id: Uuid) -> Result<()> {
    if scope.is_all() {
        return Ok(());
    }
    let may_change: Option<bool> = sqlx::query_scalar(days::of(EXECUTIONS_MAY_CHANGE, [id]))
        .bind(id)
        .bind(scope.platforms())
        .fetch_optional(connection)
        .await?;
    match may_change {
        Some(true) => Ok(()),
        Some(false) => Err(Error::NotOwn { what: "execution", name: id.to_string() }),
        None => Err(Error::NotFound { what: "execution", id }),
    }
}

/// One attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Attempt {
    /// Counted from 1.
    pub attempt: i16,
    /// FAILED or TIMEOUT.
    #[sqlx(try_from = "String")]
    pub status: AttemptStatus,
    /// When its handler started; none if it never did.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// The executor that ran it.
    pub worker_id: Option<Uuid>,
    /// Why it failed.
    pub error: Option<String>,
    /// Where it failed.
    pub error_stack: Option<String>,
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptStatus(pub Status);

impl TryFrom<String> for AttemptStatus {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        word("execution_attempts.status", &text).map(Self)
    }
}

/// Bytes of the texts of one execution's attempts that are read: beside them stand a result and its own error.
const ATTEMPTS_BYTES_MAX: usize = 1024 * 1024;

/// Of all that may be read, or of one whose execution may.
const ATTEMPTS_LIST: &str = concat!(
    "SELECT attempt, status, started_at, ended_at, worker_id, error, error_stack FROM carillon.execution_attempts
     WHERE execution_id = $1 AND {days of execution_id} AND ($3::text[] IS NULL OR EXISTS (
         SELECT FROM carillon.job_executions e WHERE e.id = $1 AND {days of e.id} AND ",
    may_read!("e.platform_id", "$3"),
    "))
     ORDER BY attempt DESC LIMIT $2"
);

/// Reads the attempts of an execution that failed, oldest first: at most one more than it has retries. Of so many large
/// texts that they exceed a megabyte the newest are kept. Of one that may not be read there are none.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn attempts(store: &Store, scope: &Scope, id: Uuid) -> Result<Vec<Attempt>> {
    let rows = sqlx::query_as(days::of(ATTEMPTS_LIST, [id])).bind(id).bind(i64::from(MAX_RETRIES_MAX) + 1);
    let mut attempts: Vec<Attempt> = rows.bind(scope.platforms()).fetch_all(&store.pool).await?;
    let mut left = ATTEMPTS_BYTES_MAX;
    for attempt in &mut attempts {
        for text in [&mut attempt.error, &mut attempt.error_stack] {
            let bytes = text.as_ref().map_or(0, String::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => *text = None,
            }
        }
    }
    attempts.reverse();
    Ok(attempts)
}
