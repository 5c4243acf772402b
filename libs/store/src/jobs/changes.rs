//! Pausing, resuming and deleting a job.
//!
//! Each is one transaction. Lock order: the `jobs` row, its triggers, its `job_timers` row (from here on no claim can open
//! an execution of the job), executions, `job_stats`. A claim takes triggers before timers too, timers before executions,
//! and waits for no trigger, so the leader's session cannot be the victim of a deadlock. The recorder locks executions and
//! then statistics as well, but many at once, in an order of its own, and `jobs` last when a job completes: there a deadlock
//! stays possible. Postgres then ends one of the two, nothing was written, and the change is made again, a few times at
//! most.
//!
//! Which instants "are still to come" is decided by the database's clock, read after the timer is locked: a claim that was
//! in flight has committed by then, and what it claimed ahead is seen and withdrawn (R23).

use std::time::Duration;

use crate::bounded::{Connection, Transaction};
use carillon_core::ids;
use carillon_core::job::JobStatus;
use carillon_core::misfire;
use carillon_core::schedule::{Timetable, TimetableSpec};
use chrono::{DateTime, Utc};
use sqlx::types::Json;
use uuid::Uuid;

use super::rows::word;
use super::{Job, get_on};
use crate::{Error, Result, Store};

/// Why an execution that was claimed ahead did not start.
pub const REASON_PAUSED: &str = "job paused";
/// Why an execution was cancelled with its job.
pub const REASON_DELETED: &str = "job deleted";

/// How often a change is made again after it lost a deadlock.
const ATTEMPTS_MAX: u32 = 5;

/// What deleting a job left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Whether this call deleted it; false if it was deleted before.
    pub changed: bool,
    /// Executions that were asked to stop: executors learn of it through Redis.
    pub cancel_requested: Vec<Uuid>,
}

/// The job's row, locked.
struct Locked {
    status: JobStatus,
    timetable: TimetableSpec,
    held_at: Option<DateTime<Utc>>,
}

/// Pauses an ACTIVE job; a PAUSED one stays as it is.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::FailedPrecondition`] for a COMPLETED or CANCELLED job; or if Postgres is unavailable.
pub async fn pause(store: &Store, id: Uuid) -> Result<Job> {
    let mut attempt = 1;
    loop {
        match Box::pin(pause_once(store, id)).await {
            Err(error) if may_repeat(&error, attempt).await => attempt += 1,
            outcome => return outcome,
        }
    }
}

async fn pause_once(store: &Store, id: Uuid) -> Result<Job> {
    let mut transaction = store.pool.begin().await?;
    let locked = lock(&mut transaction, id).await?;
    match locked.status {
        JobStatus::Active => {}
        JobStatus::Paused => return get_on(&mut *transaction, id).await,
        ended => return Err(refused("paused", ended)),
    }
    let held_at = stop_timer(&mut transaction, id).await?;
    let now = clock(&mut transaction).await?;
    sqlx::query(
        "UPDATE jobs SET status = 'PAUSED', paused_at = $2, held_at = $3, updated_at = $2
         WHERE id = $1",
    )
    .bind(id)
    .bind(now)
    .bind(held_at)
    .execute(&mut *transaction)
    .await?;
    // R23. The ids of what is to come are the greatest, so this reads the end of the index only.
    sqlx::query(
        "UPDATE job_executions SET cancel_requested = true, withdrawn = true, reason = $4
         WHERE job_id = $1 AND id >= $2 AND status = 'QUEUED' AND scheduled_at > $3 AND NOT cancel_requested",
    )
    .bind(id)
    .bind(ids::first_at(now))
    .bind(now)
    .bind(REASON_PAUSED)
    .execute(&mut *transaction)
    .await?;
    let job = get_on(&mut *transaction, id).await?;
    transaction.commit().await?;
    Ok(job)
}

/// Lets a PAUSED job fire again; an ACTIVE one stays as it is. If instants were missed meanwhile, it is due at the latest of
/// them (misfire rule FIRE_ONCE).
///
/// # Errors
/// [`Error::NotFound`]; [`Error::FailedPrecondition`] for a COMPLETED or CANCELLED job; or if Postgres is unavailable.
pub async fn resume(store: &Store, id: Uuid) -> Result<Job> {
    let mut attempt = 1;
    loop {
        match Box::pin(resume_once(store, id)).await {
            Err(error) if may_repeat(&error, attempt).await => attempt += 1,
            outcome => return outcome,
        }
    }
}

async fn resume_once(store: &Store, id: Uuid) -> Result<Job> {
    let mut transaction = store.pool.begin().await?;
    let locked = lock(&mut transaction, id).await?;
    match locked.status {
        JobStatus::Paused => {}
        JobStatus::Active => return get_on(&mut *transaction, id).await,
        ended => return Err(refused("resumed", ended)),
    }
    stop_timer(&mut transaction, id).await?;
    let now = clock(&mut transaction).await?;
    let fire_at = due_after_pause(&locked, id, now)?;
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1")
        .bind(id)
        .bind(fire_at)
        .execute(&mut *transaction)
        .await?;
    // What the pause withdrew, nobody has recorded as SKIPPED yet and is still to come, may run after all.
    sqlx::query(
        "UPDATE job_executions SET cancel_requested = false, withdrawn = false, reason = NULL
         WHERE job_id = $1 AND id >= $2 AND status = 'QUEUED' AND scheduled_at > $3 AND cancel_requested AND reason = $4",
    )
    .bind(id)
    .bind(ids::first_at(now))
    .bind(now)
    .bind(REASON_PAUSED)
    .execute(&mut *transaction)
    .await?;
    let status = if has_ended(&mut transaction, id).await? { JobStatus::Completed } else { JobStatus::Active };
    sqlx::query(
        "UPDATE jobs SET status = $3, completed_at = CASE $3 WHEN 'COMPLETED' THEN $2 END, paused_at = NULL,
                         held_at = NULL, updated_at = $2
         WHERE id = $1",
    )
    .bind(id)
    .bind(now)
    .bind(status.as_str())
    .execute(&mut *transaction)
    .await?;
    let job = get_on(&mut *transaction, id).await?;
    transaction.commit().await?;
    Ok(job)
}

/// Whether the job's timetable ended, and its last execution too, while it was paused: the recorder completes only ACTIVE
/// jobs. The lock on the statistics makes a recorder that is just finishing the last execution either count before, or look
/// at the job after, this transaction.
async fn has_ended(connection: &mut Connection, id: Uuid) -> Result<bool> {
    sqlx::query("SELECT FROM job_stats WHERE job_id = $1 FOR UPDATE").bind(id).execute(&mut *connection).await?;
    let ended: Option<bool> = sqlx::query_scalar(
        "SELECT t.exhausted AND t.fire_at IS NULL AND t.claimed_count = s.finished_count
         FROM job_timers t JOIN job_stats s ON s.job_id = t.job_id WHERE t.job_id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(ended.unwrap_or(false))
}

/// The instant that a resumed job is due at. `held_at` is where its timer stood, so everything from it to now was missed,
/// what was due and not yet claimed when it was paused too.
fn due_after_pause(locked: &Locked, id: Uuid, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
    let Some(held_at) = locked.held_at else { return Ok(None) };
    let timetable = Timetable::parse(&locked.timetable, id).map_err(|errors| Error::Unreadable {
        what: "jobs.timetable",
        why: errors.first().map_or_else(String::new, |error| error.message.clone()),
    })?;
    Ok(Some(misfire::resume(&timetable, held_at, now)))
}

/// Deletes a job: it never fires again, what waits is CANCELLED, what is queued or runs is asked to stop (R17).
///
/// # Errors
/// [`Error::NotFound`]; or if Postgres is unavailable.
pub async fn delete(store: &Store, id: Uuid) -> Result<Deleted> {
    let mut attempt = 1;
    loop {
        match Box::pin(delete_once(store, id)).await {
            Err(error) if may_repeat(&error, attempt).await => attempt += 1,
            outcome => return outcome,
        }
    }
}

async fn delete_once(store: &Store, id: Uuid) -> Result<Deleted> {
    let mut transaction = store.pool.begin().await?;
    let locked = lock(&mut transaction, id).await?;
    if locked.status == JobStatus::Cancelled {
        return Ok(Deleted { changed: false, cancel_requested: Vec::new() });
    }
    cancel_triggers(&mut transaction, id).await?;
    stop_timer(&mut transaction, id).await?;
    sqlx::query(
        "UPDATE jobs SET status = 'CANCELLED', cancelled_at = clock_timestamp(), updated_at = clock_timestamp(),
                         paused_at = NULL, held_at = NULL
         WHERE id = $1",
    )
    .bind(id)
    .execute(&mut *transaction)
    .await?;
    let cancel_requested = cancel_open(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(Deleted { changed: true, cancel_requested })
}

/// Triggers that were answered with OK but not yet claimed end in the record too (promise 1): born CANCELLED, so they were
/// never opened and count nothing.
async fn cancel_triggers(transaction: &mut Transaction<'_>, id: Uuid) -> Result<()> {
    sqlx::query(
        "WITH gone AS (DELETE FROM job_triggers WHERE job_id = $1 RETURNING *)
         INSERT INTO job_executions (id, job_id, shard, queue, priority, platform_id, revision, created_by, status, scheduled_at,
                                     completed_at, reason, payload, max_retries, trace_id, parent_span_id, trace_flags)
         SELECT g.execution_id, g.job_id, g.shard, g.queue, g.priority, g.platform_id, j.revision, g.created_by, 'CANCELLED',
                g.fire_at, clock_timestamp(), $2, g.payload, j.max_retries, g.trace_id, g.parent_span_id, g.trace_flags
         FROM gone g JOIN jobs j ON j.id = g.job_id
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(id)
    .bind(REASON_DELETED)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// R17 on every open execution of the job; answers with those that were asked to stop.
///
/// No index names the status, so the open ones are looked for newest first and only as far as there are any: how many is
/// exactly `claimed_count - finished_count` in one snapshot. What to do with each is decided once it is locked: one that the
/// recorder made RETRYING meanwhile is cancelled, not merely asked to stop.
async fn cancel_open(transaction: &mut Transaction<'_>, id: Uuid) -> Result<Vec<Uuid>> {
    let open: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM job_executions WHERE job_id = $1 AND status IN ('QUEUED', 'RUNNING', 'RETRYING')
         ORDER BY id DESC
         LIMIT (SELECT greatest(t.claimed_count - s.finished_count, 0)
                FROM job_timers t JOIN job_stats s ON s.job_id = t.job_id WHERE t.job_id = $1)",
    )
    .bind(id)
    .fetch_all(&mut **transaction)
    .await?;
    if open.is_empty() {
        return Ok(open);
    }
    // In the order of ids, so that two who do this at once cannot deadlock.
    sqlx::query("SELECT FROM job_executions WHERE id = ANY($1) ORDER BY id FOR UPDATE")
        .bind(&open)
        .execute(&mut **transaction)
        .await?;
    let touched: Vec<(Uuid, String)> = sqlx::query_as(
        "UPDATE job_executions SET
             cancel_requested = true,
             reason = $2,
             status = CASE status WHEN 'RETRYING' THEN 'CANCELLED' ELSE status END,
             completed_at = CASE status WHEN 'RETRYING' THEN clock_timestamp() END,
             next_retry_at = NULL
         WHERE id = ANY($1) AND status IN ('QUEUED', 'RUNNING', 'RETRYING')
         RETURNING id, status",
    )
    .bind(&open)
    .bind(REASON_DELETED)
    .fetch_all(&mut **transaction)
    .await?;
    let (ended, asked): (Vec<_>, Vec<_>) = touched.into_iter().partition(|(_, status)| status == "CANCELLED");
    let ended: Vec<Uuid> = ended.into_iter().map(|(execution, _)| execution).collect();
    if !ended.is_empty() {
        // A claim that holds one of them would wait for the execution while we wait for it. It deletes the row itself, and
        // starts nothing, since the execution is RETRYING no more.
        sqlx::query(
            "DELETE FROM execution_retries WHERE execution_id IN
                 (SELECT execution_id FROM execution_retries WHERE execution_id = ANY($1) FOR UPDATE SKIP LOCKED)",
        )
        .bind(&ended)
        .execute(&mut **transaction)
        .await?;
        sqlx::query("UPDATE job_stats SET finished_count = finished_count + $2 WHERE job_id = $1")
            .bind(id)
            .bind(i64::try_from(ended.len()).unwrap_or(i64::MAX))
            .execute(&mut **transaction)
            .await?;
    }
    Ok(asked.into_iter().map(|(execution, _)| execution).collect())
}

async fn lock(connection: &mut Connection, id: Uuid) -> Result<Locked> {
    let row: Option<(String, Json<TimetableSpec>, Option<DateTime<Utc>>)> =
        sqlx::query_as("SELECT status, timetable, held_at FROM jobs WHERE id = $1 FOR UPDATE")
            .bind(id)
            .fetch_optional(connection)
            .await?;
    let (status, timetable, held_at) = row.ok_or(Error::NotFound { what: "job", id })?;
    Ok(Locked { status: word("jobs.status", &status)?, timetable: timetable.0, held_at })
}

/// Takes the timer's row out of every claim's reach and answers with where it stood.
async fn stop_timer(connection: &mut Connection, id: Uuid) -> Result<Option<DateTime<Utc>>> {
    let stood: Option<Option<DateTime<Utc>>> =
        sqlx::query_scalar("SELECT fire_at FROM job_timers WHERE job_id = $1 FOR UPDATE")
            .bind(id)
            .fetch_optional(&mut *connection)
            .await?;
    sqlx::query("UPDATE job_timers SET fire_at = NULL WHERE job_id = $1").bind(id).execute(connection).await?;
    Ok(stood.flatten())
}

async fn clock(connection: &mut Connection) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(connection).await?)
}

fn refused(what: &str, status: JobStatus) -> Error {
    let why = match status {
        JobStatus::Completed => "its schedule has ended",
        JobStatus::Cancelled => "it was deleted",
        JobStatus::Active | JobStatus::Paused => "of its state",
    };
    Error::FailedPrecondition(format!("a job that is {status} cannot be {what}: {why}"))
}

/// Whether to make the change again: it lost a deadlock, and not too often yet. Waits a little first, unevenly, so that the
/// same two do not meet again.
async fn may_repeat(error: &Error, attempt: u32) -> bool {
    if !matches!(error, Error::Conflict(_)) || attempt >= ATTEMPTS_MAX {
        return false;
    }
    let uneven = u64::from(Uuid::new_v4().as_bytes()[0] % 16);
    tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 10 + uneven)).await;
    true
}
