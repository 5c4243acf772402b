//! Pausing and resuming a job.
//!
//! Each is one transaction. Lock order: the `jobs` row, its `job_timers` row (from here on no claim can open an execution of
//! the job), executions, `job_stats`. A claim takes timers before executions too, and waits for nobody who holds one of
//! them, so the leader's session cannot be the victim of a deadlock. The recorder locks executions and then statistics as
//! well, but many at once, in an order of its own: there a deadlock stays possible. Postgres then ends one of the two,
//! nothing was written, and the change is made again, a few times at most. The `jobs` row is locked `FOR NO KEY UPDATE`: who
//! only refers to the job waits for nobody.
//!
//! Which instants "are still to come" is decided by the database's clock, read after the timer is locked: a claim that was
//! in flight has committed by then, and what it claimed ahead is seen and withdrawn (R23).

use std::time::Duration;

use crate::bounded::Connection;
use crate::history::Walk;
use carillon_core::job::JobStatus;
use carillon_core::misfire;
use carillon_core::schedule::{LOOKS_MAX, Timetable, TimetableSpec};
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::types::Json;
use uuid::Uuid;

use super::rows::word;
use super::{Job, get_on};
use crate::scope::{may_change, may_read};
use crate::{Error, Result, Scope, Store, attention, days};

/// Why an execution that was claimed ahead did not start.
pub const REASON_PAUSED: &str = "job paused";

/// How often a change is made again after it lost a deadlock.
const ATTEMPTS_MAX: u32 = 5;

/// A job that is paused.
#[derive(Clone, Debug, PartialEq)]
pub struct Paused {
    /// As it stands now.
    pub job: Job,
    /// R23: executions that were claimed ahead and are asked not to start, now or by an earlier pause: executors shall hear
    /// of each (R8a).
    pub withdrawn: Vec<Uuid>,
}

/// R23.
const EXECUTIONS_WITHDRAW: &str = "
UPDATE carillon.job_executions SET cancel_requested = true, withdrawn = true, reason = $3
WHERE id = ANY ($1) AND {days of id} AND status = 'QUEUED' AND scheduled_at > $2 AND NOT cancel_requested
RETURNING id";

const EXECUTIONS_WITHDRAWN_AHEAD: &str = "
SELECT id FROM carillon.job_executions
WHERE id = ANY ($1) AND {days of id} AND status = 'QUEUED' AND scheduled_at > $2 AND withdrawn";

const EXECUTIONS_RESTORE: &str = "
UPDATE carillon.job_executions SET cancel_requested = false, withdrawn = false, reason = NULL
WHERE id = ANY ($1) AND {days of id} AND status = 'QUEUED' AND scheduled_at > $2 AND cancel_requested AND reason = $3";

/// The job's row, locked.
pub(super) struct Locked {
    pub(super) status: JobStatus,
    pub(super) revision: i64,
    pub(super) timetable: TimetableSpec,
    pub(super) max_executions: Option<i64>,
    pub(super) held_at: Option<DateTime<Utc>>,
}

/// Pauses an ACTIVE job; a PAUSED one stays as it is.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::NotOwn`]; [`Error::FailedPrecondition`] for a COMPLETED or CANCELLED job; or if Postgres is
/// unavailable.
pub async fn pause(store: &Store, scope: &Scope, id: Uuid) -> Result<Paused> {
    repeat(|| Box::pin(pause_once(store, scope, id))).await
}

async fn pause_once(store: &Store, scope: &Scope, id: Uuid) -> Result<Paused> {
    let mut transaction = store.pool.begin().await?;
    let locked = lock(&mut transaction, scope, id).await?;
    match locked.status {
        JobStatus::Active => {}
        JobStatus::Paused => {
            // Whoever paused it may not have come to tell the executors.
            let withdrawn = withdrawn_on(&mut transaction, id).await?;
            return Ok(Paused { job: get_on(&mut *transaction, scope, id).await?, withdrawn });
        }
        ended => return Err(refused("paused", ended)),
    }
    let held_at = stop_timer(&mut transaction, id).await?;
    let now = clock(&mut transaction).await?;
    sqlx::query(
        "UPDATE carillon.jobs SET status = 'PAUSED', paused_at = $2, held_at = $3, updated_at = $2 WHERE id = $1",
    )
    .bind(id)
    .bind(now)
    .bind(held_at)
    .execute(&mut *transaction)
    .await?;
    let ahead = queued_ahead_on(&mut transaction, id, now).await?;
    let withdrawn = sqlx::query_scalar(days::of(EXECUTIONS_WITHDRAW, ahead.iter().copied()))
        .bind(&ahead)
        .bind(now)
        .bind(REASON_PAUSED)
        .fetch_all(&mut *transaction)
        .await?;
    let job = get_on(&mut *transaction, scope, id).await?;
    carillon_failpoint::reach("pause:commit").await;
    transaction.commit().await?;
    Ok(Paused { job, withdrawn })
}

/// What an earlier pause withdrew and is still to come.
async fn withdrawn_on(connection: &mut Connection, id: Uuid) -> Result<Vec<Uuid>> {
    let now = clock(connection).await?;
    let ahead = queued_ahead_on(connection, id, now).await?;
    let withdrawn = sqlx::query_scalar(days::of(EXECUTIONS_WITHDRAWN_AHEAD, ahead.iter().copied()));
    Ok(withdrawn.bind(&ahead).bind(now).fetch_all(connection).await?)
}

/// What of the job is QUEUED and was claimed ahead, in the order of ids. The caller has locked the job, so that nothing more
/// of it is claimed.
pub(super) async fn queued_ahead_on(connection: &mut Connection, id: Uuid, now: DateTime<Utc>) -> Result<Vec<Uuid>> {
    let mut left = open_count_on(connection, id).await?;
    let mut walk = Walk::ahead(id, now);
    let mut ahead = Vec::new();
    while left > 0
        && let Some(page) = walk.page(connection).await?
    {
        left -= i64::try_from(page.len()).unwrap_or(i64::MAX);
        ahead.extend(page.iter().filter(|seen| seen.is_queued()).map(|seen| seen.id));
    }
    ahead.sort_unstable();
    Ok(ahead)
}

/// R20: exact, since both are read in one snapshot.
const EXECUTIONS_COUNT_OPEN: &str = "
SELECT t.claimed_count - s.finished_count FROM carillon.job_timers t JOIN carillon.job_stats s ON s.job_id = t.job_id
    WHERE t.job_id = $1";

/// How many executions of a job are open.
pub(super) async fn open_count_on(connection: &mut Connection, id: Uuid) -> Result<i64> {
    let open: Option<i64> = sqlx::query_scalar(EXECUTIONS_COUNT_OPEN).bind(id).fetch_optional(connection).await?;
    Ok(open.unwrap_or(0))
}

/// Lets a PAUSED job fire again; an ACTIVE one stays as it is. If instants were missed meanwhile, it is due at the latest of
/// them (misfire rule FIRE_ONCE).
///
/// # Errors
/// [`Error::NotFound`]; [`Error::NotOwn`]; [`Error::FailedPrecondition`] for a COMPLETED or CANCELLED job; or if Postgres is
/// unavailable.
pub async fn resume(store: &Store, scope: &Scope, id: Uuid) -> Result<Job> {
    repeat(|| Box::pin(resume_once(store, scope, id))).await
}

async fn resume_once(store: &Store, scope: &Scope, id: Uuid) -> Result<Job> {
    let mut transaction = store.pool.begin().await?;
    let locked = lock(&mut transaction, scope, id).await?;
    match locked.status {
        JobStatus::Paused => {}
        JobStatus::Active => return get_on(&mut *transaction, scope, id).await,
        ended => return Err(refused("resumed", ended)),
    }
    stop_timer(&mut transaction, id).await?;
    let now = clock(&mut transaction).await?;
    let fire_at = due_after_pause(locked, id, now).await?;
    sqlx::query("UPDATE carillon.job_timers SET fire_at = $2 WHERE job_id = $1")
        .bind(id)
        .bind(fire_at)
        .execute(&mut *transaction)
        .await?;
    // What the pause withdrew, nobody has recorded as SKIPPED yet and is still to come, may run after all.
    let ahead = queued_ahead_on(&mut transaction, id, now).await?;
    sqlx::query(days::of(EXECUTIONS_RESTORE, ahead.iter().copied()))
        .bind(&ahead)
        .bind(now)
        .bind(REASON_PAUSED)
        .execute(&mut *transaction)
        .await?;
    let status = if has_ended(&mut transaction, id).await? { JobStatus::Completed } else { JobStatus::Active };
    sqlx::query(
        "UPDATE carillon.jobs SET status = $3, completed_at = CASE $3 WHEN 'COMPLETED' THEN $2 END, paused_at = NULL,
                         held_at = NULL, updated_at = $2
         WHERE id = $1",
    )
    .bind(id)
    .bind(now)
    .bind(status.as_str())
    .execute(&mut *transaction)
    .await?;
    // Whoever ended something of it meanwhile was told nothing, since the job was PAUSED.
    attention::note_ended_on(&mut transaction, id).await?;
    let job = get_on(&mut *transaction, scope, id).await?;
    transaction.commit().await?;
    Ok(job)
}

/// Whether the job's timetable ended, and its last execution too, while it was paused: the recorder completes only ACTIVE
/// jobs. The lock on the statistics makes a recorder that is just finishing the last execution either count before, or look
/// at the job after, this transaction.
async fn has_ended(connection: &mut Connection, id: Uuid) -> Result<bool> {
    sqlx::query("SELECT FROM carillon.job_stats WHERE job_id = $1 FOR UPDATE")
        .bind(id)
        .execute(&mut *connection)
        .await?;
    let ended: Option<bool> = sqlx::query_scalar(
        "SELECT t.exhausted AND t.fire_at IS NULL AND t.claimed_count = s.finished_count
         FROM carillon.job_timers t JOIN carillon.job_stats s ON s.job_id = t.job_id WHERE t.job_id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    Ok(ended.unwrap_or(false))
}

/// The instant that a resumed job is due at. `held_at` is where its timer stood, so everything from it to now was missed,
/// what was due and not yet claimed when it was paused too.
async fn due_after_pause(locked: Locked, id: Uuid, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
    let Some(held_at) = locked.held_at else { return Ok(None) };
    search(move || Ok(Some(misfire::resume(&parsed(&locked.timetable, id, LOOKS_MAX)?, held_at, now)))).await
}

/// Searches timetables: a dear one takes up to a second, so not on a thread that serves others.
pub(super) async fn search<T: Send + 'static>(
    search: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T> {
    let found = tokio::task::spawn_blocking(search).await.unwrap_or_else(|error| Err(error.to_string()));
    found.map_err(|why| Error::Unreadable { what: "jobs.timetable", why })
}

/// A stored timetable, or the first thing that is wrong with it.
pub(super) fn parsed(spec: &TimetableSpec, job: Uuid, looks: usize) -> Result<Timetable, String> {
    Timetable::parse_accepted(spec, job, looks)
        .map_err(|errors| errors.first().map_or_else(String::new, |error| error.message.clone()))
}

/// What the caller may not see is not there, and nobody waits for its lock.
const JOBS_LOCK: &str = concat!(
    "SELECT status, revision, timetable, max_executions, held_at, ",
    may_change!("platform_id", "$2"),
    " AS may_change FROM carillon.jobs WHERE id = $1 AND ",
    may_read!("platform_id", "$2"),
    " FOR NO KEY UPDATE"
);

/// Locks a job that is to be changed.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::NotOwn`] if the caller may see it and not change it; or if Postgres is unavailable.
pub(super) async fn lock(connection: &mut Connection, scope: &Scope, id: Uuid) -> Result<Locked> {
    let row = sqlx::query(JOBS_LOCK).bind(id).bind(scope.platforms()).fetch_optional(connection).await?;
    let row = row.ok_or(Error::NotFound { what: "job", id })?;
    if !row.try_get::<bool, _>("may_change")? {
        return Err(Error::NotOwn { what: "job", name: id.to_string() });
    }
    let Json(timetable) = row.try_get("timetable")?;
    Ok(Locked {
        status: word("jobs.status", row.try_get("status")?)?,
        revision: row.try_get("revision")?,
        timetable,
        max_executions: row.try_get("max_executions")?,
        held_at: row.try_get("held_at")?,
    })
}

/// Takes the timer's row out of every claim's reach and answers with where it stood.
pub(super) async fn stop_timer(connection: &mut Connection, id: Uuid) -> Result<Option<DateTime<Utc>>> {
    let stood: Option<Option<DateTime<Utc>>> =
        sqlx::query_scalar("SELECT fire_at FROM carillon.job_timers WHERE job_id = $1 FOR UPDATE")
            .bind(id)
            .fetch_optional(&mut *connection)
            .await?;
    sqlx::query("UPDATE carillon.job_timers SET fire_at = NULL WHERE job_id = $1").bind(id).execute(connection).await?;
    Ok(stood.flatten())
}

pub(super) async fn clock(connection: &mut Connection) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(connection).await?)
}

pub(super) fn refused(what: &str, status: JobStatus) -> Error {
    let why = match status {
        JobStatus::Completed => "its schedule has ended",
        JobStatus::Cancelled => "it was deleted",
        JobStatus::Active | JobStatus::Paused => "of its state",
    };
    Error::FailedPrecondition { what: "job", why: format!("a job that is {status} cannot be {what}: {why}") }
}

/// Makes a change, and again if it lost a deadlock: nothing of it was written then.
pub(crate) async fn repeat<T, F: Future<Output = Result<T>>>(mut change: impl FnMut() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        match change().await {
            Err(error) if may_repeat(&error, attempt).await => attempt += 1,
            outcome => return outcome,
        }
    }
}

/// Whether to make the change again: it lost a deadlock, and not too often yet. Waits a little first, unevenly, so that the
/// same two do not meet again.
pub(super) async fn may_repeat(error: &Error, attempt: u32) -> bool {
    if !matches!(error, Error::Conflict(_)) || attempt >= ATTEMPTS_MAX {
        return false;
    }
    let uneven = u64::from(Uuid::new_v4().as_bytes()[0] % 16);
    tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 10 + uneven)).await;
    true
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    /// The one thread for what blocks is taken: a search that is done there waits for it, and one that is done on the thread of
    /// the runtime is over by the first look at it, before anything else had a turn.
    #[test]
    fn a_resume_searches_on_no_thread_that_serves_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let held_at = DateTime::from_timestamp_millis(1_795_800_000_000).unwrap();
        let locked = Locked {
            revision: 1,
            max_executions: None,
            status: JobStatus::Paused,
            timetable: TimetableSpec::every(Duration::from_secs(1), held_at),
            held_at: Some(held_at),
        };
        let found = runtime.block_on(async {
            let (free, taken) = std::sync::mpsc::channel::<()>();
            let thread = tokio::task::spawn_blocking(move || taken.recv().is_err());
            let search = due_after_pause(locked, Uuid::from_u128(1), held_at + TimeDelta::milliseconds(5_500));
            tokio::pin!(search);
            tokio::select! {
                biased;
                found = &mut search => panic!("{found:?} was searched for on the runtime's own thread"),
                () = tokio::task::yield_now() => {}
            }
            drop(free);
            assert!(thread.await.unwrap(), "it was taken until now");
            search.await
        });
        assert_eq!(found.unwrap(), Some(held_at + TimeDelta::seconds(5)));
    }
}
