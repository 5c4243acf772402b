//! Jobs that some dispatcher shall look at (H62): whether one whose timetable has ended is complete, and whether one that was
//! deleted still has something open.
//!
//! A note stands in `job_attention` from the transaction that gives reason for it, until the question is decided: a job whose
//! timetable has ended and of which something is still open keeps its note and is looked at again, at most
//! [`AGAIN_MAX_SECONDS`] later. So it does not matter which of several that end at once sees the others; a note of their
//! own only makes it sooner. Whoever dies while it looks leaves all as it was.

use sqlx::Row;
use uuid::Uuid;

use crate::bounded::Connection;
use crate::{Result, Store};

/// A note that could not be decided waits for as long as it is old, from one second to this.
pub const AGAIN_MAX_SECONDS: i32 = 10;

/// R25, H62: jobs, timers, statistics, in that order, each only if nobody else holds it: who looks waits for nobody, and what
/// it reads of a row it has locked is the row's newest state, so claimed and finished are compared exactly (R20).
const ATTENTION_LOOK: &str = "
WITH noted AS MATERIALIZED (
    SELECT id, job_id, noted_at FROM carillon.job_attention WHERE look_at <= clock_timestamp()
    ORDER BY look_at LIMIT $1 FOR UPDATE SKIP LOCKED
), job AS MATERIALIZED (
    SELECT j.id, j.status FROM carillon.jobs j WHERE j.id IN (SELECT job_id FROM noted)
    ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED
), timer AS MATERIALIZED (
    SELECT t.job_id, t.claimed_count, t.exhausted AND t.fire_at IS NULL AS has_ended FROM carillon.job_timers t
    WHERE t.job_id IN (SELECT id FROM job WHERE status = 'ACTIVE')
    ORDER BY t.job_id FOR NO KEY UPDATE SKIP LOCKED
), stats AS MATERIALIZED (
    SELECT s.job_id, t.claimed_count = s.finished_count AS is_over FROM timer t JOIN carillon.job_stats s ON s.job_id = t.job_id
    WHERE t.has_ended
    ORDER BY s.job_id FOR NO KEY UPDATE OF s SKIP LOCKED
), completed AS (
    UPDATE carillon.jobs j SET status = 'COMPLETED', completed_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM stats s
    WHERE j.id = s.job_id AND s.is_over
    RETURNING j.id
), decided AS MATERIALIZED (
    SELECT n.id FROM noted n
    WHERE n.job_id IN (SELECT id FROM completed)
       OR n.job_id IN (SELECT job_id FROM timer WHERE NOT has_ended)
       -- Resuming a job asks by itself, and leaves a note.
       OR n.job_id IN (SELECT id FROM job WHERE status IN ('PAUSED', 'COMPLETED'))
       -- Not as a NOT EXISTS: that may become a reading of all jobs.
       OR n.job_id NOT IN (SELECT j.id FROM carillon.jobs j WHERE j.id IN (SELECT job_id FROM noted))
), gone AS (
    DELETE FROM carillon.job_attention WHERE id IN (SELECT id FROM decided)
), later AS (
    UPDATE carillon.job_attention a
    SET look_at = clock_timestamp()
        + least(greatest(clock_timestamp() - a.noted_at, interval '1 second'), $2 * interval '1 second')
    WHERE a.id IN (SELECT id FROM noted) AND a.id NOT IN (SELECT id FROM decided)
)
SELECT n.id, n.job_id, n.job_id IN (SELECT id FROM completed) AS completed,
       n.job_id IN (SELECT id FROM job WHERE status = 'CANCELLED') AS deleted
FROM noted n";

/// What a look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Notes looked at.
    pub notes: usize,
    /// Jobs that are COMPLETED now.
    pub completed: Vec<Uuid>,
    /// Jobs that were deleted, each with its note: see that nothing of them stays open
    /// ([`crate::jobs::Deleting`]), then forget the note.
    pub deleted: Vec<(i64, Uuid)>,
}

/// Looks at `limit` of the notes at most.
///
/// # Errors
/// If Postgres is unavailable; [`crate::Error::Conflict`]: nothing was done, look again.
pub async fn look(store: &Store, limit: i64) -> Result<Looked> {
    let rows = sqlx::query(ATTENTION_LOOK).bind(limit).bind(AGAIN_MAX_SECONDS).fetch_all(&store.pool).await?;
    let mut looked = Looked { notes: rows.len(), ..Looked::default() };
    for row in rows {
        let job: Uuid = row.try_get("job_id")?;
        if row.try_get("completed")? && !looked.completed.contains(&job) {
            looked.completed.push(job);
        }
        if row.try_get("deleted")? {
            looked.deleted.push((row.try_get("id")?, job));
        }
    }
    Ok(looked)
}

/// Forgets a note that is decided.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn forget(store: &Store, note: i64) -> Result<()> {
    sqlx::query("DELETE FROM carillon.job_attention WHERE id = $1").bind(note).execute(&store.pool).await?;
    Ok(())
}

/// Leaves a note for a job, if its timetable has ended: what of it is open now is, maybe, the last of it.
pub(crate) async fn note_ended_on(connection: &mut Connection, job: Uuid) -> Result<()> {
    sqlx::query(
        "INSERT INTO carillon.job_attention (job_id) SELECT job_id FROM carillon.job_timers WHERE job_id = $1
        AND exhausted",
    )
    .bind(job)
    .execute(connection)
    .await?;
    Ok(())
}

/// Leaves a note for a job that was deleted: if whoever deletes it goes away, a dispatcher ends what is open.
pub(crate) async fn note_deleted_on(connection: &mut Connection, job: Uuid) -> Result<()> {
    sqlx::query(
        "INSERT INTO carillon.job_attention (job_id, look_at) VALUES ($1, clock_timestamp() + interval '5 seconds')",
    )
    .bind(job)
    .execute(connection)
    .await?;
    Ok(())
}
