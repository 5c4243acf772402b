//! What is old leaves: days of the history as a whole, what lies in the default partition and whole jobs in steps.
//!
//! What is open never leaves. A day of executions is closed by a CHECK that names the few that are still open in it; once the
//! CHECK is proven nothing else in it can be opened, and the day is detached, its open ones moving to the default partition
//! in the same transaction. Statistics are counters of their own and do not look back at rows.
//!
//! Each step is complete in itself and found again by whoever comes next, in whatever state a lost process left it.

mod jobs;

use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use crate::partitions::{self, Step, Table};
use crate::{Error, Result, Store, days};

/// How many executions of one day may be open when it is dropped, and how many bytes their documents and texts may have in
/// Postgres: they move under a lock that others wait for, 40 MB a second (measured, 28 November).
const OPEN_MAX: usize = 1_000;
const OPEN_BYTES_MAX: i64 = 1024 * 1024;
/// A day that has more, or that Postgres refuses to let go, is looked at again after this time only: each look reads all of it.
const CROWDED_EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// Rows in one step.
const STEP: i64 = 1_000;
/// Jobs looked at together.
const JOBS: i64 = 100;

/// How long what is over is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Executions, their attempts and failures: days behind the day of their instant.
    pub executions: Duration,
    /// Log lines, likewise.
    pub logs: Duration,
    /// Jobs, since they were completed or deleted; `None`: for ever.
    pub jobs: Option<Duration>,
}

impl Retention {
    const fn of(&self, table: Table) -> Duration {
        match table {
            Table::Executions | Table::Attempts | Table::Failures => self.executions,
            Table::Logs => self.logs,
        }
    }
}

/// What a round of dropping came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Partitions that left, by name.
    pub dropped: Vec<String>,
    /// Those that are due and still there.
    pub waiting: Vec<String>,
    /// Of these, how many have been due for a day or longer: time to alert.
    pub overdue: u32,
    /// Why some of them cannot leave, each with its name: Postgres refused it.
    pub refused: Vec<String>,
}

/// Drops what is due, one day of each table at most: each takes a lock that others wait for, if only for a moment.
///
/// # Errors
/// If Postgres is unavailable. That somebody holds a table, or has made it one that cannot leave, is none: it is said, and the
/// others go on (see [`Dropped::waiting`]).
pub async fn drop_days(store: &Store, retention: &Retention) -> Result<Dropped> {
    let now = crate::clock::now(store).await?;
    let mut dropped = Dropped::default();
    // First of all: what comes below may take so long that the round is given up.
    let stuck = drop_gone(store, &[], &mut dropped.refused).await?;
    // The attempts of a day go after its executions: those of the ones that are still open move along. Its failures too: as long
    // as an execution is there, it is found by them.
    for table in [Table::Executions, Table::Attempts, Table::Failures, Table::Logs] {
        let (due, kept): (Vec<_>, Vec<_>) = partitions::days(store, table)
            .await?
            .into_iter()
            .partition(|day| leaves_at(*day, retention.of(table)) <= now);
        if table == Table::Executions {
            reopen(store, &kept).await?;
        }
        let is_of_executions = matches!(table, Table::Attempts | Table::Failures);
        let executions = if is_of_executions { partitions::days(store, Table::Executions).await? } else { vec![] };
        let mut may_try = true;
        for day in due {
            if may_try && !executions.contains(&day) {
                match drop_day(store, table, day, &mut dropped.refused).await? {
                    Step::Done | Step::Before => {
                        dropped.dropped.push(table.partition(day));
                        // One a round.
                        may_try = false;
                        continue;
                    }
                    Step::Busy => may_try = false,
                    // What holds back one day is no reason to keep the next.
                    Step::InUse | Step::Refused | Step::Large => {}
                }
            }
            dropped.wait(table.partition(day), day, retention.of(table), now);
        }
    }
    let mut stuck = drop_gone(store, &stuck, &mut dropped.refused).await?;
    stuck.sort_unstable();
    for name in stuck {
        // None of ours by its name, and found by it all the same: no day to be late by.
        let Some((table, day)) = partitions::read_gone(&name) else { continue };
        dropped.wait(name, day, retention.of(table), now);
    }
    Ok(dropped)
}

impl Dropped {
    fn wait(&mut self, name: String, day: NaiveDate, kept: Duration, now: DateTime<Utc>) {
        self.waiting.push(name);
        self.overdue += u32::from(leaves_at(day, kept) + Days::new(1) <= now);
    }
}

/// When a day's rows have all been kept for long enough.
fn leaves_at(day: NaiveDate, kept: Duration) -> DateTime<Utc> {
    let end = day.checked_add_days(Days::new(1)).unwrap_or(day).and_time(NaiveTime::MIN).and_utc();
    chrono::TimeDelta::from_std(kept)
        .ok()
        .and_then(|kept| end.checked_add_signed(kept))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// What holds back one day holds back no other: whatever Postgres has against it is added to `refused`, and the day put off.
async fn drop_day(store: &Store, table: Table, day: NaiveDate, refused: &mut Vec<String>) -> Result<Step> {
    let partition = table.partition(day);
    let crowded = crowded(&partition);
    let put_off =
        "SELECT EXISTS (SELECT FROM carillon.partition_tries WHERE what = $1 AND tried_at > now() - $2::interval)";
    if sqlx::query_scalar(put_off).bind(&crowded).bind(CROWDED_EVERY).fetch_one(&store.pool).await? {
        return Ok(Step::Refused);
    }
    let tried = try_drop_day(store, table, day, &partition).await;
    let step = match partitions::unless_refused(tried, &partition, refused)? {
        None => Step::Refused,
        Some(Step::Large) => {
            // It was weighed before any lock was asked for: the next day need not wait.
            partitions::give_back(store, table.name()).await?;
            Step::Large
        }
        Some(other) => return Ok(other),
    };
    partitions::may_try_every(store, &crowded, CROWDED_EVERY).await?;
    Ok(step)
}

/// What a try for a day is noted under that is not to be made again soon.
fn crowded(partition: &str) -> String {
    format!("{partition} crowded")
}

async fn try_drop_day(store: &Store, table: Table, day: NaiveDate, partition: &str) -> Result<Step> {
    if table == Table::Executions {
        let closed = close(store, partition).await?;
        if !matches!(closed, Step::Done | Step::Before) {
            return Ok(closed);
        }
    }
    if !partitions::may_try(store, table.name()).await? {
        return Ok(Step::Busy);
    }
    partitions::step(store, "SELECT carillon.detach_partition($1, $2, $3, $4)", table, day).await
}

/// Makes sure that nothing is open in a day of executions but what its CHECK names.
async fn close(store: &Store, partition: &str) -> Result<Step> {
    let proven: Option<bool> = sqlx::query_scalar(
        "SELECT convalidated FROM pg_catalog.pg_constraint
         WHERE conrelid = ('carillon.' || $1::text)::regclass AND conname = 'carillon_closed'",
    )
    .bind(partition)
    .fetch_optional(&store.pool)
    .await?;
    if proven == Some(true) {
        return Ok(Step::Before);
    }
    if proven.is_none() {
        if is_held(store, partition).await? {
            return Ok(Step::InUse);
        }
        let crowded = crowded(partition);
        if !partitions::may_try_every(store, &crowded, CROWDED_EVERY).await? {
            return Ok(Step::Refused);
        }
        let Some(open) = open_ids(store, partition).await? else { return Ok(Step::Refused) };
        partitions::give_back(store, &crowded).await?;
        if !partitions::may_try(store, partition).await? {
            return Ok(Step::Busy);
        }
        let word: String = sqlx::query_scalar("SELECT carillon.close_partition($1, $2)")
            .bind(partition)
            .bind(&open)
            .fetch_one(&store.pool)
            .await?;
        let closed = Step::read(&word)?;
        if closed == Step::Busy {
            return Ok(closed);
        }
    }
    let proven = partitions::prove(store, partition, "carillon_closed").await?;
    if proven == Step::Refused {
        // Something was opened between the look and the CHECK.
        partitions::lift(store, partition, "carillon_closed").await?;
        return Ok(Step::Busy);
    }
    Ok(proven)
}

/// What is open in a partition, found by reading it through; `None` if it is too much to move.
async fn open_ids(store: &Store, partition: &str) -> Result<Option<Vec<Uuid>>> {
    let condition = "completed_at IS NULL";
    let (many, bytes): (i64, i64) = sqlx::query_as("SELECT many, bytes FROM carillon.weigh('job_executions', $1, $2)")
        .bind(partition)
        .bind(condition)
        .fetch_one(&store.pool)
        .await?;
    if usize::try_from(many).is_ok_and(|many| many > OPEN_MAX) || bytes > OPEN_BYTES_MAX {
        return Ok(None);
    }
    let mut query = sqlx::QueryBuilder::new("SELECT id FROM carillon.");
    // A name of ours, made from a date.
    query.push(partition).push(" WHERE ").push(condition).push(" LIMIT ").push_bind(STEP + 1);
    let open: Vec<Uuid> = query.build_query_scalar().fetch_all(&store.pool).await?;
    Ok((open.len() <= OPEN_MAX).then_some(open))
}

/// Whether anybody uses a table right now: then it is not even asked for.
async fn is_held(store: &Store, table: &str) -> Result<bool> {
    let held = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE granted AND pid <> pg_backend_pid()
                AND relation = to_regclass('carillon.' || $1::text)
                AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))";
    Ok(sqlx::query_scalar(held).bind(table).fetch_one(&store.pool).await?)
}

/// Days that are closed and, since the settings have changed, not due any more may hold open executions again.
async fn reopen(store: &Store, kept: &[NaiveDate]) -> Result<()> {
    let closed: Vec<String> =
        sqlx::query_scalar("SELECT partition FROM carillon.partition_closings").fetch_all(&store.pool).await?;
    for partition in kept.iter().map(|day| Table::Executions.partition(*day)).filter(|name| closed.contains(name)) {
        if partitions::may_try(store, &partition).await? {
            partitions::lift(store, &partition, "carillon_closed").await?;
        }
    }
    Ok(())
}

/// Drops what has been detached, but for `stuck`: now, or by a process that was lost in between, or while somebody was reading
/// it. Answers what is still there, `stuck` with it: somebody holds it, or something of theirs depends on it.
async fn drop_gone(store: &Store, stuck: &[String], refused: &mut Vec<String>) -> Result<Vec<String>> {
    let gone: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_catalog.pg_class
         WHERE relkind = 'r' AND NOT relispartition
           AND relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'carillon.jobs'::regclass)
           AND relname ~ '^(job_executions|job_execution_logs|execution_attempts|execution_failures)_\\d{4}_\\d\\d_\\d\\d_gone$'",
    )
    .fetch_all(&store.pool)
    .await?;
    let mut left = Vec::new();
    for name in gone {
        if stuck.contains(&name) || !drop_one_gone(store, &name, refused).await? {
            left.push(name);
        }
    }
    Ok(left)
}

/// Whether it is gone.
async fn drop_one_gone(store: &Store, name: &str, refused: &mut Vec<String>) -> Result<bool> {
    if is_held(store, name).await? {
        return Ok(false);
    }
    let dropping = sqlx::query_scalar("SELECT carillon.drop_gone($1)").bind(name);
    let word: Result<String> = dropping.fetch_one(&store.pool).await.map_err(Error::from);
    let step = partitions::unless_refused(word, name, refused)?.map(|word| Step::read(&word)).transpose()?;
    Ok(step == Some(Step::Done))
}

/// One page of the default partition of executions, by id: each page costs the same, however much of it stays.
const EXECUTIONS_SWEEP_DEFAULT: &str = "
WITH page AS (
    SELECT id, completed_at FROM carillon.job_executions_default WHERE id > $1 ORDER BY id LIMIT $3
), gone AS (
    DELETE FROM carillon.job_executions_default e USING page p
    WHERE e.id = p.id AND p.completed_at < now() - $2::interval AND e.completed_at < now() - $2::interval
    RETURNING e.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS gone";

/// Log lines, likewise: a page of executions, each with all its lines.
const LOGS_SWEEP_DEFAULT: &str = "
WITH page AS (
    SELECT DISTINCT execution_id AS id FROM (
        SELECT execution_id FROM carillon.job_execution_logs_default WHERE execution_id > $1 ORDER BY execution_id LIMIT $3) l
), gone AS (
    DELETE FROM carillon.job_execution_logs_default l USING page p
    WHERE l.execution_id = p.id AND l.timestamp < now() - $2::interval
    RETURNING l.execution_id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS gone";

/// The executions of a page of old attempts.
const ATTEMPTS_OLD_DEFAULT: &str = "
SELECT DISTINCT execution_id FROM (
    SELECT execution_id FROM carillon.execution_attempts_default WHERE execution_id > $1 AND ended_at < now() - $2::interval
    ORDER BY execution_id LIMIT $3) a
ORDER BY execution_id";

/// Attempts leave with their execution.
const ATTEMPTS_SWEEP_DEFAULT: &str = "
DELETE FROM carillon.execution_attempts_default a
WHERE a.execution_id = ANY ($1)
  AND NOT EXISTS (SELECT FROM carillon.job_executions e WHERE e.id = a.execution_id AND {days of e.id})";

/// Failures likewise.
const FAILURES_OLD_DEFAULT: &str = "
SELECT execution_id FROM carillon.execution_failures_default WHERE execution_id > $1 AND ended_at < now() - $2::interval
ORDER BY execution_id LIMIT $3";
const FAILURES_SWEEP_DEFAULT: &str = "
DELETE FROM carillon.execution_failures_default f
WHERE f.execution_id = ANY ($1)
  AND NOT EXISTS (SELECT FROM carillon.job_executions e WHERE e.id = f.execution_id AND {days of e.id})";

/// What a round of deleting came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Rows, or jobs, that left.
    pub gone: u64,
    /// Why some cannot leave, each with its name: Postgres refused it.
    pub refused: Vec<String>,
}

/// Deletes what is old from the default partitions, a thousand rows a step.
///
/// # Errors
/// If Postgres is unavailable; what has been deleted stays so. What it has against one of them is none: see [`Swept::refused`].
pub async fn sweep_default(store: &Store, retention: &Retention) -> Result<Swept> {
    let mut swept = Swept::default();
    // The attempts and failures of an execution find it gone.
    for table in [Table::Executions, Table::Logs, Table::Attempts, Table::Failures] {
        let outcome = sweep_default_of(store, table, retention.of(table), &mut swept.gone).await;
        partitions::unless_refused(outcome, &format!("{}_default", table.name()), &mut swept.refused)?;
    }
    Ok(swept)
}

async fn sweep_default_of(store: &Store, table: Table, kept: Duration, gone: &mut u64) -> Result<()> {
    match table {
        Table::Executions => sweep_pages(store, EXECUTIONS_SWEEP_DEFAULT, kept, gone).await,
        Table::Logs => sweep_pages(store, LOGS_SWEEP_DEFAULT, kept, gone).await,
        Table::Attempts => sweep_behind(store, ATTEMPTS_OLD_DEFAULT, ATTEMPTS_SWEEP_DEFAULT, kept, gone).await,
        Table::Failures => sweep_behind(store, FAILURES_OLD_DEFAULT, FAILURES_SWEEP_DEFAULT, kept, gone).await,
    }
}

async fn sweep_pages(store: &Store, statement: &'static str, kept: Duration, gone: &mut u64) -> Result<()> {
    let mut after = Some(Uuid::nil());
    while let Some(from) = after {
        let row = sqlx::query(statement).bind(from).bind(kept).bind(STEP).fetch_one(&store.pool).await?;
        after = row.try_get("last")?;
        *gone += u64::try_from(row.try_get::<i64, _>("gone")?).unwrap_or(0);
    }
    Ok(())
}

/// What leaves with its execution, and not before.
async fn sweep_behind(
    store: &Store,
    pages: &'static str,
    statement: &'static str,
    kept: Duration,
    gone: &mut u64,
) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let page: Vec<Uuid> =
            sqlx::query_scalar(pages).bind(after).bind(kept).bind(STEP).fetch_all(&store.pool).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = *last;
        for day in days::by_day(page) {
            *gone += delete(&store.pool, statement, &day).await?;
        }
    }
}

/// Deletes jobs that were completed or deleted `kept` ago, first their executions with logs, attempts and failures, a thousand
/// a step, then the job with all else that is its own.
///
/// # Errors
/// As of [`forget_jobs_on`].
pub async fn forget_jobs(store: &Store, kept: Duration) -> Result<Swept> {
    let mut swept = Swept::default();
    forget_jobs_on(store, kept, &mut Uuid::nil(), &mut swept).await?;
    Ok(swept)
}

/// The same, of the jobs behind `after`: who gives it up in between goes on with the one that it had come to then. Once it has come
/// to the last one it begins anew.
///
/// # Errors
/// If Postgres is unavailable; a job that has begun to leave goes on with the next call. What it has against one of them (a foreign
/// key of somebody else's, say) is none: see [`Swept::refused`].
pub async fn forget_jobs_on(store: &Store, kept: Duration, after: &mut Uuid, swept: &mut Swept) -> Result<()> {
    loop {
        let over: Vec<jobs::Over> = sqlx::query_as(jobs::JOBS_OVER)
            .bind(["COMPLETED", "CANCELLED"])
            .bind(*after)
            .bind(kept)
            .bind(JOBS)
            .fetch_all(&store.pool)
            .await?;
        if over.is_empty() {
            *after = Uuid::nil();
            return Ok(());
        }
        let days = partitions::days(store, Table::Executions).await?;
        for job in over {
            let forgotten = jobs::forget(store, &job, &days, kept).await;
            let name = format!("job {}", job.id);
            swept.gone += partitions::unless_refused(forgotten, &name, &mut swept.refused)?.unwrap_or(0);
            *after = job.id;
        }
    }
}

async fn delete(executor: impl sqlx::PgExecutor<'_>, statement: &'static str, ids: &[Uuid]) -> Result<u64> {
    let deleted = sqlx::query(days::of(statement, ids.iter().copied())).bind(ids).execute(executor).await?;
    Ok(deleted.rows_affected())
}
