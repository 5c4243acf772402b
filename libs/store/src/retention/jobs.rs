//! A job that is over leaves: first its executions, looked for on the days between its making and its end, each day of which is a
//! statement; then the job itself. Dies in between: what is left is found again, the job last of all.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use uuid::Uuid;

use super::delete;
use crate::bounded::Connection;
use crate::history::Walk;
use crate::{Result, Store, days};

/// Executions of a job that leave together, with all that is theirs.
const STEP_OF_JOB: usize = 1_000;
/// Whose clock was set, or who claimed ahead, dates an execution a little before or behind that.
const DATED_ASIDE_MAX: TimeDelta = TimeDelta::days(1);

const EXECUTIONS_DELETE: &str =
    "DELETE FROM carillon.job_executions WHERE id = ANY ($1) AND {days of id} AND completed_at IS NOT NULL";
const ATTEMPTS_DELETE: &str =
    "DELETE FROM carillon.execution_attempts WHERE execution_id = ANY ($1) AND {days of execution_id}";
const FAILURES_DELETE: &str =
    "DELETE FROM carillon.execution_failures WHERE execution_id = ANY ($1) AND {days of execution_id}";
const LOGS_DELETE: &str =
    "DELETE FROM carillon.job_execution_logs WHERE execution_id = ANY ($1) AND {days of execution_id}";

/// Jobs that are over for long, with nothing open or to come; and between when and when they had executions, of which so many were
/// counted.
pub(super) const JOBS_OVER: &str = "
SELECT j.id, LEAST(j.created_at, j.completed_at, j.cancelled_at) AS first,
       GREATEST(j.completed_at, j.cancelled_at, s.last_run_at) AS last, s.finished_count
FROM carillon.jobs j JOIN carillon.job_timers t ON t.job_id = j.id JOIN carillon.job_stats s ON s.job_id = j.id
WHERE j.status = ANY ($1) AND j.id > $2
  AND CASE j.status WHEN 'CANCELLED' THEN j.cancelled_at ELSE j.completed_at END < now() - $3::interval
  AND t.claimed_count = s.finished_count AND t.fire_at IS NULL
  AND NOT EXISTS (SELECT FROM carillon.job_triggers g WHERE g.job_id = j.id)
ORDER BY j.id LIMIT $4";

/// The job, and by its foreign keys timer, statistics and revisions; if all that [`JOBS_OVER`] saw is still so. Its executions
/// have gone before, and of a job that is over none is born.
const JOBS_DELETE: &str = "
DELETE FROM carillon.jobs j USING carillon.job_timers t, carillon.job_stats s
WHERE j.id = $1 AND t.job_id = j.id AND s.job_id = j.id AND j.status IN ('COMPLETED', 'CANCELLED')
  AND CASE j.status WHEN 'CANCELLED' THEN j.cancelled_at ELSE j.completed_at END < now() - $2::interval
  AND t.claimed_count = s.finished_count AND t.fire_at IS NULL
  AND NOT EXISTS (SELECT FROM carillon.job_triggers g WHERE g.job_id = j.id)";

/// A job that is over.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Over {
    pub(super) id: Uuid,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
    finished_count: i64,
}

/// Answers how many have left.
pub(super) async fn forget(store: &Store, job: &Over, existing: &[NaiveDate], kept: Duration) -> Result<u64> {
    // What is left, because somebody else does the same or it is open, is for the next call.
    if !forget_executions(store, job, existing).await? {
        return Ok(0);
    }
    let gone = sqlx::query(JOBS_DELETE).bind(job.id).bind(kept).execute(&store.pool).await?;
    Ok(gone.rows_affected())
}

/// Answers whether none is left. Of most jobs all lie within a few days, and there are hundreds: the others are looked through only
/// where fewer were found than were counted, and none of the days that they had can have left yet. (That is one that was made with an
/// instant of the past.)
async fn forget_executions(store: &Store, job: &Over, existing: &[NaiveDate]) -> Result<bool> {
    let mut connection = store.pool.acquire().await?;
    let first = job.first.checked_sub_signed(DATED_ASIDE_MAX).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let end = job.last.checked_add_signed(DATED_ASIDE_MAX).unwrap_or(DateTime::<Utc>::MAX_UTC);
    let [mut own, mut others] = Walk::over_all(job.id, existing, first..end);
    let (met, gone) = forget_walked(&mut connection, &mut own).await?;
    let has_all_days = existing.first().is_none_or(|oldest| *oldest <= job.first.date_naive());
    if met >= job.finished_count.unsigned_abs() || !has_all_days {
        return Ok(met == gone);
    }
    let (met_elsewhere, gone_elsewhere) = forget_walked(&mut connection, &mut others).await?;
    Ok(met == gone && met_elsewhere == gone_elsewhere)
}

/// Answers how many were met, and how many of them have left.
async fn forget_walked(connection: &mut Connection, walk: &mut Walk) -> Result<(u64, u64)> {
    let (mut met, mut gone) = (0, 0);
    while let Some(page) = walk.page(connection).await? {
        met += page.len() as u64;
        for day in days::by_day(page.iter().map(|seen| seen.id).collect()) {
            for some in day.chunks(STEP_OF_JOB) {
                // The execution last: by it the others are found again if this ends in between.
                for statement in [LOGS_DELETE, ATTEMPTS_DELETE, FAILURES_DELETE] {
                    delete(&mut *connection, statement, some).await?;
                }
                gone += delete(&mut *connection, EXECUTIONS_DELETE, some).await?;
            }
        }
    }
    Ok((met, gone))
}
