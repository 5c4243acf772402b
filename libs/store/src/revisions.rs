//! The revisions of a job's definition, each whole, with who made it and when (R23a). An execution names the one that it
//! runs with; whatever is read of a definition for its sake is read here, never from `jobs`, which has the newest.
//!
//! A revision is written by the very statement that changes `jobs`, so that neither exists without the other; the timer's
//! row, which tells a claim the current one, moves in it too. Superseded ones leave by [`forget`], a chore: it may die at
//! any point and any number of it may run at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use carillon_core::schedule::TimetableSpec;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::history::Walk;
use crate::page::{self, Page, Slice};
use crate::retention::Swept;
use crate::scope::may_read;
use crate::{Error, Result, Scope, Store, definitions, jobs, partitions};

/// Superseded revisions of one job that are kept for as long as executions are; of more the oldest leave before, except
/// what an open execution names. An index of the schema knows this number.
pub const KEPT_MAX: i64 = 1_000;

/// Revisions, or jobs, looked at together.
const AT_ONCE: i64 = 1_000;

/// The definition of a row of `jobs`: its columns, by name, but for those that say how the job stands.
macro_rules! definition_of {
    ($row:literal) => {
        concat!(
            "to_jsonb(",
            $row,
            ") - '{id,status,revision,created_at,updated_at,paused_at,held_at,completed_at,cancelled_at}'::text[]"
        )
    };
}
pub(crate) use definition_of;

/// What a definition says, by name; of the timetable its members, but for what follows from `schedule` and the like. Nothing of it
/// is taken apart further: a payload may have 250,000 elements.
macro_rules! members_of {
    ($definition:literal) => {
        concat!(
            "(SELECT key, value FROM jsonb_each(CASE jsonb_typeof(",
            $definition,
            ") WHEN 'object' THEN ",
            $definition,
            " ELSE '{}' END) WHERE key <> 'timetable' UNION ALL SELECT key, value FROM jsonb_each(CASE jsonb_typeof(",
            $definition,
            " -> 'timetable') WHEN 'object' THEN ",
            $definition,
            " -> 'timetable' ELSE '{}' END) WHERE key NOT IN ('specs', 'timezone', 'start', 'end'))"
        )
    };
}

const REVISIONS_ADD: &str = concat!(
    "
WITH job AS (
    UPDATE carillon.jobs SET revision = revision + 1, updated_at = clock_timestamp() WHERE id = $1 RETURNING *
), timer AS (
    UPDATE carillon.job_timers t SET revision = job.revision, queue = job.queue, priority = job.priority
    FROM job WHERE t.job_id = job.id
), superseded AS (
    UPDATE carillon.job_revisions r SET superseded_at = job.updated_at FROM job WHERE r.job_id = job.id
        AND r.superseded_at IS NULL
    RETURNING r.definition
), defined AS MATERIALIZED (
    SELECT id, revision, updated_at, ",
    definition_of!("job"),
    " AS definition FROM job
)
INSERT INTO carillon.job_revisions (job_id, revision, definition, created_by, created_at, changed)
SELECT id, revision, definition, $2, updated_at, ARRAY (
    SELECT COALESCE(n.key, p.key) FROM ",
    members_of!("d.definition"),
    " n FULL JOIN ",
    members_of!("(SELECT s.definition FROM superseded s)"),
    " p ON n.key = p.key
    WHERE n.value IS DISTINCT FROM p.value AND EXISTS (SELECT FROM superseded)
    ORDER BY 1)
FROM defined d
RETURNING revision"
);

/// Makes the definition that `jobs` has now its job's next revision, by `created_by`; answers its number. The caller's
/// transaction has locked the job, then its timer, and changed the definition.
///
/// # Errors
/// [`Error::NotFound`] for an unknown job; or if Postgres is unavailable.
pub async fn add_on(executor: impl sqlx::PgExecutor<'_>, job: Uuid, created_by: &str) -> Result<i64> {
    let revision = sqlx::query_scalar(REVISIONS_ADD).bind(job).bind(created_by).fetch_optional(executor).await?;
    revision.ok_or(Error::NotFound { what: "job", id: job })
}

/// One revision of a job.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Revision {
    /// Its number.
    pub revision: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Who made it, if that was said.
    pub created_by: String,
    /// When the next one took its place.
    pub superseded_at: Option<DateTime<Utc>>,
    /// The columns of `jobs`, and members of `timetable`, that it changed; none of the first one.
    pub changed: Vec<String>,
}

const REVISIONS_LIST: &str = concat!(
    "
SELECT r.revision, r.created_at, r.created_by, r.superseded_at, r.changed
FROM carillon.jobs j JOIN carillon.job_revisions r ON r.job_id = j.id
WHERE j.id = $1 AND ",
    may_read!("j.platform_id", "$4"),
    " ORDER BY r.revision DESC LIMIT $2 OFFSET $3"
);

/// Lists the revisions of a job, newest first.
///
/// # Errors
/// [`Error::NotFound`] for an unknown job; or if Postgres is unavailable.
pub async fn list(store: &Store, scope: &Scope, job: Uuid, slice: Slice) -> Result<Page<Revision>> {
    let query = sqlx::query(REVISIONS_LIST).bind(job).bind(slice.limit_and_one()).bind(i64::from(slice.offset));
    let query = query.bind(scope.platforms());
    let page = page::collect(&store.pool, query, slice, |row| Ok((0, sqlx::FromRow::from_row(row)?))).await?;
    if page.items.is_empty() {
        jobs::require(store, scope, job).await?;
    }
    Ok(page)
}

const REVISIONS_TIMETABLE: &str = concat!(
    "SELECT r.definition -> 'timetable' AS timetable FROM carillon.jobs j JOIN carillon.job_revisions r ON r.job_id = j.id
     WHERE j.id = $1 AND r.revision = $2 AND ",
    may_read!("j.platform_id", "$3")
);

/// Reads when a job fires by a revision of it, however long that is. `None`: there is no such revision any more, or no such job.
///
/// # Errors
/// [`Error::Unreadable`] for one that this version cannot read; or if Postgres is unavailable.
pub async fn timetable(store: &Store, scope: &Scope, job: Uuid, revision: i64) -> Result<Option<TimetableSpec>> {
    let query = sqlx::query(REVISIONS_TIMETABLE).bind(job).bind(revision).bind(scope.platforms());
    let row = query.fetch_optional(&store.pool).await?;
    row.as_ref().map(definitions::timetable_of).transpose()
}

/// Those that were superseded long ago, in order, from behind the last one of the page before.
const REVISIONS_OLD: &str = "
SELECT superseded_at, job_id, revision FROM carillon.job_revisions
WHERE superseded_at < now() - $1::interval AND (superseded_at, job_id, revision) > ($2, $3, $4)
ORDER BY superseded_at, job_id, revision LIMIT $5";

const JOBS_OF_MANY_REVISIONS: &str =
    "SELECT DISTINCT job_id FROM carillon.job_revisions WHERE revision > 1001 AND job_id > $1 ORDER BY job_id LIMIT $2";

/// Those beyond the newest `$2` superseded ones of a job.
const REVISIONS_BEYOND: &str = "
SELECT revision FROM carillon.job_revisions WHERE job_id = $1 AND superseded_at IS NOT NULL
  AND revision < (SELECT revision FROM carillon.job_revisions WHERE job_id = $1 AND superseded_at IS NOT NULL
                  ORDER BY revision DESC OFFSET $2 - 1 LIMIT 1)
  AND revision > $4
ORDER BY revision LIMIT $3";

const REVISIONS_FORGET: &str =
    "DELETE FROM carillon.job_revisions WHERE job_id = $1 AND revision = ANY ($2) AND superseded_at IS NOT NULL";

/// How many are open, and the newest batch: what was claimed by it or before is seen by whoever sees this, since one leader
/// claims after the other, by ever greater numbers.
const EXECUTIONS_COUNT_OPEN: &str = "
SELECT t.claimed_count - s.finished_count,
       coalesce((SELECT max(b.number) FROM carillon.dispatch_batches b WHERE b.shard = t.shard), 0)
FROM carillon.job_timers t JOIN carillon.job_stats s ON s.job_id = t.job_id WHERE t.job_id = $1";

/// Forgets the revisions that were superseded `older_than` ago, and of each job those beyond [`KEPT_MAX`], but for what an
/// open execution names.
///
/// # Errors
/// If Postgres is unavailable. What it has against those of one job is none: see [`Swept::refused`].
pub async fn forget(store: &Store, older_than: Duration) -> Result<Swept> {
    let mut swept = Swept::default();
    forget_old(store, older_than, &mut swept).await?;
    forget_beyond(store, KEPT_MAX, &mut swept).await?;
    Ok(swept)
}

async fn forget_old(store: &Store, older_than: Duration, swept: &mut Swept) -> Result<()> {
    let mut behind = (DateTime::<Utc>::UNIX_EPOCH, Uuid::nil(), 0_i64);
    loop {
        let page: Vec<(DateTime<Utc>, Uuid, i64)> = sqlx::query_as(REVISIONS_OLD)
            .bind(older_than)
            .bind(behind.0)
            .bind(behind.1)
            .bind(behind.2)
            .bind(AT_ONCE)
            .fetch_all(&store.pool)
            .await?;
        let Some(last) = page.last() else { return Ok(()) };
        behind = *last;
        let mut by_job = BTreeMap::<Uuid, Vec<i64>>::new();
        for (_, job, revision) in page {
            by_job.entry(job).or_default().push(revision);
        }
        for (job, revisions) in by_job {
            forget_of_job(store, job, &revisions, swept).await?;
        }
    }
}

async fn forget_beyond(store: &Store, kept_max: i64, swept: &mut Swept) -> Result<()> {
    let mut behind = Uuid::nil();
    loop {
        let jobs: Vec<Uuid> =
            sqlx::query_scalar(JOBS_OF_MANY_REVISIONS).bind(behind).bind(AT_ONCE).fetch_all(&store.pool).await?;
        let Some(last) = jobs.last() else { return Ok(()) };
        behind = *last;
        for job in jobs {
            let mut after = 0;
            loop {
                let beyond: Vec<i64> = sqlx::query_scalar(REVISIONS_BEYOND)
                    .bind(job)
                    .bind(kept_max)
                    .bind(AT_ONCE)
                    .bind(after)
                    .fetch_all(&store.pool)
                    .await?;
                let Some(last) = beyond.last().copied() else { break };
                // Those that open executions name stay, however many: what is behind them has its turn.
                forget_of_job(store, job, &beyond, swept).await?;
                after = last;
            }
        }
    }
}

/// What an open execution names stays. Whatever names a superseded revision was born before that was superseded, so none that
/// this does not see can come.
async fn forget_of_job(store: &Store, job: Uuid, revisions: &[i64], swept: &mut Swept) -> Result<()> {
    let forgotten = forget_unnamed(store, job, revisions).await;
    let name = format!("revisions of the job {job}");
    swept.gone += partitions::unless_refused(forgotten, &name, &mut swept.refused)?.unwrap_or(0);
    Ok(())
}

async fn forget_unnamed(store: &Store, job: Uuid, revisions: &[i64]) -> Result<u64> {
    if revisions.is_empty() {
        return Ok(0);
    }
    let named = named_by_open(store, job).await?;
    let unnamed: Vec<i64> = revisions.iter().copied().filter(|revision| !named.contains(revision)).collect();
    if unnamed.is_empty() {
        return Ok(0);
    }
    Ok(sqlx::query(REVISIONS_FORGET).bind(job).bind(&unnamed).execute(&store.pool).await?.rows_affected())
}

/// The revisions that open executions of a job name. It looks no further than there are any that were open when it began:
/// what was claimed since does not count, a retry neither, so that at worst it looks further than it must.
async fn named_by_open(store: &Store, job: Uuid) -> Result<BTreeSet<i64>> {
    let mut named = BTreeSet::new();
    let mut connection = store.pool.acquire().await?;
    let begun: Option<(i64, i64)> =
        sqlx::query_as(EXECUTIONS_COUNT_OPEN).bind(job).fetch_optional(&mut connection).await?;
    let Some((mut left, newest)) = begun else { return Ok(named) };
    if left <= 0 {
        return Ok(named);
    }
    let mut walk = Walk::over_open(&mut connection, job).await?;
    while left > 0
        && let Some(page) = walk.page(&mut connection).await?
    {
        let counted = page.iter().filter(|seen| seen.claim.is_some_and(|claim| claim <= newest)).count();
        left -= i64::try_from(counted).unwrap_or(i64::MAX);
        named.extend(page.iter().map(|seen| seen.revision));
    }
    Ok(named)
}
