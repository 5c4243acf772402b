//! Fires asked for by hand. A trigger only leaves a due fire behind: what is published, the leader alone creates (R5).
//!
//! What comes of it belongs to the job's platform, and of a global job to whoever asked: payload and result are theirs. So does
//! the idempotency key, by which two platforms that fire the same global job do not meet.

use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_core::job::{JobStatus, Priority};
use carillon_core::line::Line;
use carillon_core::trace::TraceContext;
use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::document::ToWrite;
use crate::executions::{self, Execution};
use crate::idempotency::Key;
use crate::jobs::rows::word;
use crate::scope::may_read;
use crate::{Error, Result, Scope, Store};

/// A fire asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTrigger {
    /// The job to fire.
    pub job_id: Uuid,
    /// In place of the job's own payload.
    pub payload: Option<Value>,
    /// What its execution shall have as metadata.
    pub metadata: Option<Value>,
    /// Trace context of the request.
    pub trace: Option<TraceContext>,
    /// Who asks.
    pub created_by: String,
}

/// What asking for a fire came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Triggered {
    /// The execution that it will be, or was already if the same was asked for before.
    pub execution: Execution,
    /// Where it is due now; `None` if it was asked for before.
    pub due: Option<Line>,
}

/// The clock, the job, and what the key led to. What is to come belongs to `$3` if the job belongs to nobody.
const TRIGGERS_BEGIN: &str = concat!(
    "
    SELECT clock_timestamp() AS now, j.platform_id, k.fingerprint, k.resource_id AS known
    FROM (SELECT COALESCE(j.platform_id, $3::text) AS platform_id FROM carillon.jobs j
          WHERE j.id = $1 AND ",
    may_read!("j.platform_id", "$2"),
    ") j
    LEFT JOIN carillon.idempotency_keys k ON k.space = $4::text || '/' || COALESCE(j.platform_id, '') AND k.key = $5"
);

/// What [`TRIGGERS_BEGIN`] answers.
#[derive(sqlx::FromRow)]
struct Begun {
    now: DateTime<Utc>,
    /// Of what is to come.
    platform_id: Option<String>,
    fingerprint: Option<Vec<u8>>,
    known: Option<Uuid>,
}

/// `FOR SHARE` makes a trigger and a deletion of the same job wait for each other: without it a trigger could slip in after
/// the deletion looked for triggers, and would then fire a deleted job.
const TRIGGERS_INSERT: &str = concat!(
    "
    WITH job AS (
        SELECT j.id, j.status, j.queue, j.priority, j.platform_id, j.max_retries, j.revision, t.shard
        FROM carillon.jobs j JOIN carillon.job_timers t ON t.job_id = j.id WHERE j.id = $1 AND ",
    may_read!("j.platform_id", "$13"),
    " FOR SHARE OF j
    ), key AS (
        INSERT INTO carillon.idempotency_keys (space, key, fingerprint, resource_id)
        SELECT $7::text, $8::text, $9::bytea, $2::uuid FROM job WHERE status <> 'CANCELLED' AND $8::text IS NOT NULL
        ON CONFLICT DO NOTHING RETURNING resource_id
    ), trigger AS (
        INSERT INTO carillon.job_triggers (execution_id, job_id, shard, fire_at, queue, priority, platform_id, payload,
            created_by,
                                  trace_id, parent_span_id, trace_flags, metadata)
        SELECT $2::uuid, id, shard, $3, queue, priority, COALESCE(platform_id, $14::text), $4, $6, $5, $10, $11, $12 FROM job
        WHERE status <> 'CANCELLED' AND ($8::text IS NULL OR EXISTS (SELECT FROM key))
        RETURNING queue, priority
    )
    SELECT j.status, j.max_retries, j.revision, t.queue, t.priority FROM job j LEFT JOIN trigger t ON true"
);

/// What [`TRIGGERS_INSERT`] answers.
#[derive(sqlx::FromRow)]
struct InsertedRow {
    status: String,
    max_retries: i32,
    revision: i64,
    /// Only if the trigger was written.
    queue: Option<String>,
    priority: Option<i16>,
}

/// Leaves a due fire of the job.
///
/// # Errors
/// [`Error::NotFound`] for an unknown job; [`Error::FailedPrecondition`] for a deleted one; [`Error::KeyReused`]; or if
/// Postgres is unavailable.
pub async fn create(store: &Store, scope: &Scope, new: &NewTrigger, key: Option<&Key>) -> Result<Triggered> {
    let begun = begin(store, scope, new.job_id, key).await?;
    if let Some(known) = begun.known {
        return Ok(Triggered { execution: executions::get(store, scope, known).await?, due: None });
    }
    // Of the platform that its execution will be of.
    let key = key.map(|key| Key { platform: begun.platform_id.clone(), ..key.clone() });
    let seed = key.as_ref().map_or_else(
        || Uuid::new_v4().to_string(),
        |key| format!("{}/{}", begun.platform_id.as_deref().unwrap_or_default(), key.key),
    );
    let execution = ids::execution_for_trigger(new.job_id, &seed, begun.now);
    let Some(row) = insert(store, scope, new, key.as_ref(), execution, begun.now).await? else {
        return Err(Error::NotFound { what: "job", id: new.job_id });
    };
    if word::<JobStatus>("jobs.status", &row.status)? == JobStatus::Cancelled {
        let why = "a job that is CANCELLED cannot be triggered: it was deleted".to_owned();
        return Err(Error::FailedPrecondition { what: "job", why });
    }
    if let (Some(queue), Some(priority)) = (&row.queue, row.priority) {
        let due = Line::new(queue.as_str(), Priority::from_rank(priority));
        // Not read again: what it waits for is that the leader hears of it.
        return Ok(Triggered { execution: waiting(execution, new, begun, &row, &due), due: Some(due) });
    }
    // Somebody else took the key in between.
    let known = begin(store, scope, new.job_id, key.as_ref()).await?.known;
    Ok(Triggered { execution: executions::get(store, scope, known.unwrap_or(execution)).await?, due: None })
}

/// What is known before the fire is left: one round trip.
async fn begin(store: &Store, scope: &Scope, job: Uuid, key: Option<&Key>) -> Result<Begun> {
    let begun: Option<Begun> = sqlx::query_as(TRIGGERS_BEGIN)
        .bind(job)
        .bind(scope.platforms())
        .bind(scope.home())
        .bind(key.map(|key| &key.space))
        .bind(key.map(|key| &key.key))
        .fetch_optional(&store.pool)
        .await?;
    let begun = begun.ok_or(Error::NotFound { what: "job", id: job })?;
    match (key, &begun.fingerprint) {
        (Some(key), Some(fingerprint)) if *fingerprint != key.fingerprint => {
            Err(Error::KeyReused { key: key.key.clone() })
        }
        _ => Ok(begun),
    }
}

/// As [`executions::get`] reads it until the leader takes it.
fn waiting(id: Uuid, new: &NewTrigger, begun: Begun, job: &InsertedRow, due: &Line) -> Execution {
    Execution {
        id,
        job_id: new.job_id,
        status: Status::Queued,
        scheduled_at: begun.now,
        started_at: None,
        completed_at: None,
        duration_ms: None,
        result: None,
        error: None,
        error_stack: None,
        fingerprint: None,
        attempt: 1,
        max_retries: job.max_retries,
        next_retry_at: None,
        worker_id: None,
        reason: None,
        cancel_requested: false,
        metadata: new.metadata.clone(),
        trace_id: new.trace.map(|trace| trace.trace_id().to_string()),
        span_id: None,
        parent_span_id: new.trace.map(|trace| trace.parent_span_id().to_string()),
        created_by: new.created_by.clone(),
        revision: job.revision,
        queue: due.queue.clone(),
        platform_id: begun.platform_id,
    }
}

async fn insert(
    store: &Store,
    scope: &Scope,
    new: &NewTrigger,
    key: Option<&Key>,
    execution: Uuid,
    now: DateTime<Utc>,
) -> Result<Option<InsertedRow>> {
    let row = sqlx::query_as(TRIGGERS_INSERT)
        .bind(new.job_id)
        .bind(execution)
        .bind(now)
        .bind(new.payload.as_ref().map(ToWrite))
        .bind(new.trace.map(|trace| trace.trace_id()))
        .bind(&new.created_by)
        .bind(key.map(Key::kept_in))
        .bind(key.map(|key| &key.key))
        .bind(key.map(|key| &key.fingerprint))
        .bind(new.trace.map(|trace| trace.parent_span_id()))
        .bind(new.trace.map_or(1, |trace| i16::from(trace.flags)))
        .bind(new.metadata.as_ref().map(ToWrite))
        .bind(scope.platforms())
        .bind(scope.home())
        .fetch_optional(&store.pool)
        .await?;
    Ok(row)
}
