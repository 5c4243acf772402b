//! The rules of time zones have changed: all jobs are walked, and timers that stand by the old rules move.
//!
//! One row says by which rules the walk goes and how far it has come, so that whoever leads next goes on with it, or begins it
//! again by rules of its own. It waits for nobody's locks, and holds none between two pages.

use std::time::Duration;

use carillon_core::schedule::TimetableSpec;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::types::Json;
use uuid::Uuid;

use crate::{Result, Store};

/// Jobs of a page: with the largest timetables it is some 20 MB.
const PAGE: i64 = 200;

/// A walk that was over for `$2` seconds begins again: a process with other data may have made a job since.
const ZONE_WALK: &str = "
WITH begun AS (
    INSERT INTO carillon.zone_walk AS w (rules, reached) VALUES ($1, $3)
    ON CONFLICT (single) DO UPDATE SET rules = EXCLUDED.rules, reached = EXCLUDED.reached, ended_at = NULL
    WHERE w.rules <> EXCLUDED.rules OR w.ended_at < clock_timestamp() - $2 * interval '1 second'
    RETURNING reached
)
SELECT reached FROM begun
UNION ALL SELECT reached FROM carillon.zone_walk WHERE rules = $1 AND ended_at IS NULL AND NOT EXISTS (SELECT FROM begun)";

/// A bounded number of rows along the primary key, whatever matters of them. UTC has no rules.
const JOBS_ZONED: &str = "
WITH page AS (
    SELECT id, status, revision, timetable, held_at, updated_at FROM carillon.jobs WHERE id > $1 ORDER BY id LIMIT $2
)
SELECT p.id, clock_timestamp() AS now, z.* FROM page p LEFT JOIN LATERAL (
    SELECT CASE p.status WHEN 'PAUSED' THEN p.held_at ELSE t.fire_at END AS stands_at, p.status = 'PAUSED' AS is_paused,
           p.revision, p.updated_at AS since, p.timetable
    FROM carillon.job_timers t
    WHERE t.job_id = p.id
      AND (p.status = 'ACTIVE' AND t.fire_at > clock_timestamp() OR p.status = 'PAUSED' AND p.held_at > clock_timestamp())
      AND (p.timetable ->> 'timezone' <> 'UTC' OR jsonb_path_exists(p.timetable, '$.exclusions[*].*.timezone'))
) z ON true
ORDER BY p.id";

/// Where the instant stands, and by what its job is told: a timer's, or that of a paused job.
macro_rules! reckon {
    ($table:literal, $job:literal, $instant:literal) => {
        concat!(
            "
WITH wanted AS (
    SELECT * FROM UNNEST($1::uuid[], $2::bigint[], $3::timestamptz[], $4::timestamptz[]) AS w(job_id, revision, stands_at, moves_to)
), free AS MATERIALIZED (
    SELECT t.", $job, " AS job_id, w.moves_to FROM ", $table, " t JOIN wanted w ON w.job_id = t.", $job, "
    WHERE t.revision = w.revision AND t.", $instant, " = w.stands_at AND EXISTS (SELECT FROM carillon.zone_walk WHERE rules = $5)
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE ", $table, " t SET ", $instant, " = f.moves_to FROM free f WHERE t.", $job, " = f.job_id
RETURNING f.job_id"
        )
    };
}

const TIMERS_RECKON: &str = reckon!("carillon.job_timers", "job_id", "fire_at");
const JOBS_RECKON: &str = reckon!("carillon.jobs", "id", "held_at");

/// A job that is still to fire at an instant which may depend on the rules of a zone.
#[derive(Clone, Debug)]
pub struct Zoned {
    /// The job.
    pub job: Uuid,
    /// Of this definition.
    pub revision: i64,
    /// Where its timer stands, or stood when it was paused.
    pub stands_at: DateTime<Utc>,
    /// It is paused.
    pub is_paused: bool,
    /// When it was made, changed, paused or resumed last.
    pub since: DateTime<Utc>,
    /// When it fires. `None`: this version cannot read it, and it does not fire.
    pub timetable: Option<TimetableSpec>,
}

/// Some jobs, in the order of their ids.
#[derive(Debug)]
pub struct ZonedPage {
    /// The database's time.
    pub now: DateTime<Utc>,
    /// The last job that was looked at.
    pub reached: Uuid,
    /// Those that matter.
    pub jobs: Vec<Zoned>,
}

/// Where a timer moves.
#[derive(Clone, Copy, Debug)]
pub struct Reckoned {
    /// The job.
    pub job: Uuid,
    /// Of this definition: if it has another by now it is left alone.
    pub revision: i64,
    /// It is paused.
    pub is_paused: bool,
    /// Where its timer stands: if it stands elsewhere by now it is left alone too.
    pub from: DateTime<Utc>,
    /// Where it moves.
    pub to: DateTime<Utc>,
}

/// How far the walk by `rules` has come; it begins if the last one went by others, or ended longer than `every` ago. `None`:
/// there is nothing to do.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn walk(store: &Store, rules: i64, every: Duration) -> Result<Option<Uuid>> {
    let reached = sqlx::query_scalar(ZONE_WALK).bind(rules).bind(every.as_secs_f64()).bind(Uuid::nil());
    Ok(reached.fetch_optional(&store.pool).await?)
}

/// The jobs behind `after`. `None`: there are no further ones.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn page(store: &Store, after: Uuid) -> Result<Option<ZonedPage>> {
    let rows = sqlx::query(JOBS_ZONED).bind(after).bind(PAGE).fetch_all(&store.pool).await?;
    let Some(last) = rows.last() else { return Ok(None) };
    let mut page = ZonedPage { now: last.try_get("now")?, reached: last.try_get("id")?, jobs: Vec::new() };
    for row in &rows {
        let Some(stands_at) = row.try_get("stands_at")? else { continue };
        page.jobs.push(Zoned {
            job: row.try_get("id")?,
            revision: row.try_get("revision")?,
            stands_at,
            is_paused: row.try_get("is_paused")?,
            since: row.try_get("since")?,
            timetable: row.try_get::<Json<TimetableSpec>, _>("timetable").ok().map(|Json(timetable)| timetable),
        });
    }
    Ok(Some(page))
}

/// Where the page behind `after` ends, whatever its rows hold.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn page_end(store: &Store, after: Uuid) -> Result<Option<Uuid>> {
    let end = "SELECT id FROM (SELECT id FROM carillon.jobs WHERE id > $1 ORDER BY id LIMIT $2) page ORDER BY id DESC LIMIT 1";
    Ok(sqlx::query_scalar(end).bind(after).bind(PAGE).fetch_optional(&store.pool).await?)
}

/// Moves timers by `rules`. Answers of which jobs; of the others the timer was locked, or had been moved by somebody else, or
/// somebody walks by other rules by now.
///
/// # Errors
/// If Postgres is unavailable; [`crate::Error::Conflict`]: nothing was done, try again.
pub async fn reckon(store: &Store, rules: i64, reckoned: &[Reckoned]) -> Result<Vec<Uuid>> {
    let mut moved = Vec::new();
    for (is_paused, statement) in [(false, TIMERS_RECKON), (true, JOBS_RECKON)] {
        let some: Vec<&Reckoned> = reckoned.iter().filter(|one| one.is_paused == is_paused).collect();
        if some.is_empty() {
            continue;
        }
        let jobs = sqlx::query_scalar::<_, Uuid>(statement)
            .bind(some.iter().map(|one| one.job).collect::<Vec<_>>())
            .bind(some.iter().map(|one| one.revision).collect::<Vec<_>>())
            .bind(some.iter().map(|one| one.from).collect::<Vec<_>>())
            .bind(some.iter().map(|one| one.to).collect::<Vec<_>>())
            .bind(rules);
        moved.extend(jobs.fetch_all(&store.pool).await?);
    }
    Ok(moved)
}

/// Notes how far the walk by `rules` has come. Answers whether it goes on: somebody may walk by others by now.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn reached(store: &Store, rules: i64, reached: Uuid) -> Result<bool> {
    let note = "UPDATE carillon.zone_walk SET reached = $2 WHERE rules = $1 AND ended_at IS NULL";
    Ok(sqlx::query(note).bind(rules).bind(reached).execute(&store.pool).await?.rows_affected() > 0)
}

/// Notes that the walk by `rules` is over, unless somebody walks by others by now.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn ended(store: &Store, rules: i64) -> Result<()> {
    let ended = "UPDATE carillon.zone_walk SET ended_at = clock_timestamp() WHERE rules = $1 AND ended_at IS NULL";
    sqlx::query(ended).bind(rules).execute(&store.pool).await?;
    Ok(())
}
