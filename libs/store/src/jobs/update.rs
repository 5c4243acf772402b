//! R23a: changing a job's definition, while executions of it may be claimed ahead.
//!
//! One transaction, in the lock order of [`super::changes`]: the name of the queue, the job, its timer, executions. What is
//! claimed ahead and still to come is given the new revision, unless its instant is no longer one of the timetable's: then it is
//! withdrawn, as a pause does it. The caller tells executors of each (R8a). What was withdrawn so and has not been recorded
//! yet may come back with a later change.

use carillon_core::ids;
use carillon_core::job::JobStatus;
use carillon_core::misfire;
use carillon_core::schedule::{LOOKS_MAX, TimetableSpec};
use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use sqlx::types::Json;
use uuid::Uuid;

use super::changes::{self, REASON_PAUSED, clock, parsed, queued_ahead_on, refused, repeat, search};
use super::rows;
use super::{Definition, Job, get_on};
use crate::bounded::Connection;
use crate::document::ToWrite;
use crate::{Error, Result, Scope, Store, attention, days, queues, revisions};

/// Why an execution that was claimed ahead did not start.
pub const REASON_CHANGED: &str = "job changed: its schedule no longer has this instant";

/// A change of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// What it is to be: its type, key, platform and maker are those it has.
    pub definition: Definition,
    /// The revision that it was made of.
    pub revision: i64,
    /// What the schedules and exclusions of `definition` mean, and the first instant to fire at, if they say something else than
    /// they did.
    pub timetable: Option<(TimetableSpec, Option<DateTime<Utc>>)>,
    /// Who changes it.
    pub updated_by: String,
    /// How many names of queues there may be, its own among them ([`crate::queues`]).
    pub queues_max: u32,
}

/// A job that was changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    /// As it stands now.
    pub job: Job,
    /// R8a: executions that were claimed ahead and are now withdrawn, or to run with another definition: executors shall
    /// hear of each.
    pub ahead: Vec<Uuid>,
    /// Batches with entries of those that stand in another line than theirs by now: the leader shall look at them.
    pub misplaced: Vec<i64>,
}

/// R23a: a retry keeps what its first attempt ran with. `$5`: the timetable was looked at, and has it. What was withdrawn is so no
/// more then, unless the job is paused, which is the reason `$4`.
const EXECUTIONS_REVISE: &str = "
UPDATE carillon.job_executions
SET revision = $3,
    cancel_requested = CASE WHEN $5 AND withdrawn THEN $4::text IS NOT NULL ELSE cancel_requested END,
    withdrawn = withdrawn AND (NOT $5 OR $4::text IS NOT NULL),
    reason = CASE WHEN $5 AND withdrawn THEN $4 ELSE reason END,
    misplaced = (queue, priority) <> ($6, $7)
WHERE id = ANY ($1) AND {days of id} AND status = 'QUEUED' AND attempt = 1 AND scheduled_at > $2
  AND (NOT cancel_requested OR withdrawn)
RETURNING id, CASE WHEN misplaced THEN entry END AS misplaced";

/// What a pause withdrew too: a resume shall not bring it back.
const EXECUTIONS_FALL_AWAY: &str = "
UPDATE carillon.job_executions SET cancel_requested = true, withdrawn = true, reason = $3
WHERE id = ANY ($1) AND {days of id} AND status = 'QUEUED' AND attempt = 1 AND scheduled_at > $2
  AND (NOT cancel_requested OR withdrawn)
RETURNING id";

/// Looks at exclusions of each of the many searches of a change: some 0.1 ms.
const LOOKS_BRIEF: usize = 4_000;

const EXECUTIONS_SCHEDULED: &str =
    "SELECT id, scheduled_at FROM carillon.job_executions WHERE id = ANY ($1) AND {days of id}";

const TIMERS_LOCK: &str = "SELECT fire_at, claimed_count FROM carillon.job_timers WHERE job_id = $1 FOR UPDATE";

/// `{columns}` are those that the row `$2` names: what an older program does not know stays.
const JOBS_WRITE: &str = "
UPDATE carillon.jobs SET ({columns}, payload, metadata) =
    (SELECT {columns}, $3::jsonb, $4::jsonb FROM jsonb_populate_record(NULL::carillon.jobs, $2::jsonb))
WHERE id = $1";

/// Changes a job. `None`: it is not of that revision any more, and nothing was done.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::NotOwn`]; [`Error::FailedPrecondition`] for a CANCELLED job; [`Error::QueuesExhausted`] if its
/// queue would be one too many; or if Postgres is unavailable.
pub async fn update(store: &Store, scope: &Scope, id: Uuid, update: &Update) -> Result<Option<Updated>> {
    scope.require_own(update.definition.platform_id.as_deref(), "job", id)?;
    repeat(|| Box::pin(update_once(store, scope, id, update, Ending::Commit))).await
}

/// What [`update`] would answer: the same statements, undone. Whatever decides in there decides here too.
///
/// # Errors
/// Those of [`update`].
pub async fn check_update(store: &Store, scope: &Scope, id: Uuid, update: &Update) -> Result<Option<Updated>> {
    scope.require_own(update.definition.platform_id.as_deref(), "job", id)?;
    repeat(|| Box::pin(update_once(store, scope, id, update, Ending::Rollback))).await
}

/// What becomes of a change that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
}

/// How the job stood, locked.
struct Stood {
    status: JobStatus,
    timetable: TimetableSpec,
    max_executions: Option<i64>,
    /// Where its timer is, or was when the job was paused.
    timer: Option<DateTime<Utc>>,
    claimed_count: i64,
    now: DateTime<Utc>,
}

/// Where a change leaves timer and executions.
struct Placed {
    fire_at: Option<DateTime<Utc>>,
    stays: Vec<Uuid>,
    falls_away: Vec<Uuid>,
}

async fn update_once(
    store: &Store,
    scope: &Scope,
    id: Uuid,
    update: &Update,
    ending: Ending,
) -> Result<Option<Updated>> {
    let mut transaction = store.pool.begin().await?;
    let Some(updated) = update_in(&mut transaction, scope, id, update).await? else { return Ok(None) };
    if ending == Ending::Rollback {
        // By being dropped.
        return Ok(Some(updated));
    }
    carillon_failpoint::reach("update:commit").await;
    transaction.commit().await?;
    Ok(Some(updated))
}

async fn update_in(transaction: &mut Connection, scope: &Scope, id: Uuid, update: &Update) -> Result<Option<Updated>> {
    queues::hold_on_conn(transaction, &update.definition.queue, update.queues_max).await?;
    let Some(stood) = lock(transaction, scope, id, update.revision).await? else { return Ok(None) };
    if stood.status == JobStatus::Cancelled {
        return Err(refused("changed", stood.status));
    }
    let is_paused = stood.status == JobStatus::Paused;
    let moves = update.timetable.is_some() || stood.max_executions != update.definition.max_executions;
    let ahead = ahead_on(transaction, id, stood.now).await?;
    let Placed { fire_at, stays, falls_away } = place(&stood, id, update, moves, ahead).await?;
    write_definition(transaction, id, update).await?;
    if moves {
        move_timer(transaction, id, stood.status, fire_at).await?;
    }
    let revision = revisions::add_on(&mut *transaction, id, &update.updated_by).await?;
    let revised: Vec<(Uuid, Option<i64>)> = sqlx::query_as(days::of(EXECUTIONS_REVISE, stays.iter().copied()))
        .bind(&stays)
        .bind(stood.now)
        .bind(revision)
        .bind(is_paused.then_some(REASON_PAUSED))
        .bind(moves)
        .bind(&update.definition.queue)
        .bind(update.definition.priority.rank())
        .fetch_all(&mut *transaction)
        .await?;
    let fallen: Vec<Uuid> = sqlx::query_scalar(days::of(EXECUTIONS_FALL_AWAY, falls_away.iter().copied()))
        .bind(&falls_away)
        .bind(stood.now)
        .bind(REASON_CHANGED)
        .fetch_all(&mut *transaction)
        .await?;
    let mut misplaced: Vec<i64> = revised.iter().filter_map(|(_, batch)| *batch).collect();
    misplaced.sort_unstable();
    misplaced.dedup();
    let ahead = revised.into_iter().map(|(execution, _)| execution).chain(fallen).collect();
    if moves {
        // Its timetable may end by this, and its last execution may have ended before.
        attention::note_ended_on(transaction, id).await?;
    }
    let job = get_on(&mut *transaction, scope, id).await?;
    Ok(Some(Updated { job, ahead, misplaced }))
}

/// Locks job and timer. `None`: it has another revision.
async fn lock(connection: &mut Connection, scope: &Scope, id: Uuid, revision: i64) -> Result<Option<Stood>> {
    let job = changes::lock(connection, scope, id).await?;
    if job.revision != revision {
        return Ok(None);
    }
    let timer = sqlx::query_as(TIMERS_LOCK).bind(id).fetch_one(&mut *connection).await?;
    let (fire_at, claimed_count): (Option<DateTime<Utc>>, i64) = timer;
    Ok(Some(Stood {
        status: job.status,
        timetable: job.timetable,
        max_executions: job.max_executions,
        timer: if job.status == JobStatus::Paused { job.held_at } else { fire_at },
        claimed_count,
        now: clock(connection).await?,
    }))
}

/// What is claimed ahead, by its instant.
async fn ahead_on(connection: &mut Connection, id: Uuid, now: DateTime<Utc>) -> Result<Vec<(Uuid, DateTime<Utc>)>> {
    let ahead = queued_ahead_on(connection, id, now).await?;
    Ok(sqlx::query_as(days::of(EXECUTIONS_SCHEDULED, ahead.iter().copied())).bind(&ahead).fetch_all(connection).await?)
}

async fn place(
    stood: &Stood,
    id: Uuid,
    update: &Update,
    moves: bool,
    ahead: Vec<(Uuid, DateTime<Utc>)>,
) -> Result<Placed> {
    if !moves {
        let stays = ahead.into_iter().map(|(execution, _)| execution).collect();
        return Ok(Placed { fire_at: None, stays, falls_away: Vec::new() });
    }
    let old = stood.timetable.clone();
    let (new, first) = update.timetable.clone().unwrap_or_else(|| (old.clone(), None));
    let (timer, now) = (stood.timer, stood.now);
    let (fire_at, stays, falls_away) = search(move || {
        // Many short searches, and a long one.
        let (old, brief) = (parsed(&old, id, LOOKS_BRIEF)?, parsed(&new, id, LOOKS_BRIEF)?);
        let new = parsed(&new, id, LOOKS_MAX)?;
        let still_due = timer.and_then(|timer| misfire::still_due(&old, &brief, timer, now));
        // One that is past, and accepted as such, fires at once.
        let fire_at = still_due.or_else(|| new.next_after(now).timer()).or(first);
        let is_timed = |execution, at| execution == ids::execution_for_fire(id, at);
        let stays =
            |(execution, at): &(Uuid, DateTime<Utc>)| !is_timed(*execution, *at) || misfire::fires_at(&brief, *at);
        let (stays, falls_away): (Vec<_>, Vec<_>) = ahead.into_iter().partition(stays);
        Ok((fire_at, stays, falls_away))
    })
    .await?;
    let is_spent = update.definition.max_executions.is_some_and(|max| stood.claimed_count >= max);
    let ids = |executions: Vec<(Uuid, _)>| executions.into_iter().map(|(execution, _)| execution).collect();
    Ok(Placed { fire_at: fire_at.filter(|_| !is_spent), stays: ids(stays), falls_away: ids(falls_away) })
}

async fn write_definition(connection: &mut Connection, id: Uuid, update: &Update) -> Result<()> {
    let Update { definition, timetable, .. } = update;
    let unwritable = |error: serde_json::Error| Error::Unreadable { what: "changed job", why: error.to_string() };
    let row = rows::definition_row(definition, timetable.as_ref().map(|(spec, _)| spec)).map_err(unwritable)?;
    sqlx::query(AssertSqlSafe(JOBS_WRITE.replace("{columns}", &rows::columns_of(&row))))
        .bind(id)
        .bind(Json(&row))
        .bind(ToWrite(&definition.payload))
        .bind(ToWrite(&definition.metadata))
        .execute(connection)
        .await?;
    Ok(())
}

/// A paused job's timer stands still; a completed job with something to come is active again.
async fn move_timer(
    connection: &mut Connection,
    id: Uuid,
    status: JobStatus,
    fire_at: Option<DateTime<Utc>>,
) -> Result<()> {
    match (status, fire_at) {
        (JobStatus::Completed, None) => return Ok(()),
        (JobStatus::Completed, Some(_)) => {
            let revive = "UPDATE carillon.jobs SET status = 'ACTIVE', completed_at = NULL WHERE id = $1";
            sqlx::query(revive).bind(id).execute(&mut *connection).await?;
        }
        (JobStatus::Paused, _) => {
            let hold = "UPDATE carillon.jobs SET held_at = $2 WHERE id = $1";
            sqlx::query(hold).bind(id).bind(fire_at).execute(&mut *connection).await?;
        }
        _ => {}
    }
    let stands_at = fire_at.filter(|_| status != JobStatus::Paused);
    sqlx::query(
        "UPDATE carillon.job_timers SET fire_at = $2, exhausted = $3::timestamptz IS NULL AND j.type <> 'EVENT'
         FROM carillon.jobs j WHERE j.id = job_id AND job_id = $1",
    )
    .bind(id)
    .bind(stands_at)
    .bind(fire_at)
    .execute(connection)
    .await?;
    Ok(())
}
