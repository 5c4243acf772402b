//! What several parts do with jobs: spread them over time, wait for their ends, read how they started.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_stream::Redis;
use carillon_testkit::wait_until;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use crate::jobs::{self, Job};

/// From writing the jobs to the first instant: so long, and a second for each so many jobs.
const AHEAD: TimeDelta = TimeDelta::seconds(3);
const WRITTEN_PER_S: usize = 4_000;

/// What brings about spread fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Schedules that fire each second.
    Schedules,
    /// Jobs that fire once, each of which is completed then.
    Jobs,
}

/// Fires at even distances.
#[derive(Clone, Copy, Debug)]
pub struct Fires {
    pub of: By,
    pub per_s: u32,
    pub seconds: u32,
}

impl fmt::Display for Fires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.of {
            By::Schedules => "schedules",
            By::Jobs => "one-time jobs",
        };
        write!(f, "{} a second by {of}, {} s", self.per_s, self.seconds)
    }
}

/// One execution: its instant, its claim (whose number is the millisecond of it), its start.
#[derive(Clone, Debug, FromRow)]
pub struct Start {
    pub job_id: Uuid,
    pub scheduled_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub claim: Option<i64>,
    pub take: i32,
    pub status: String,
}

impl Start {
    /// How late it started, in milliseconds; below zero is early. None that never did.
    pub fn late_ms(&self) -> Option<f64> {
        Some((self.started_at? - self.scheduled_at).as_seconds_f64() * 1_000.0)
    }
}

/// The first instant of `count` jobs that are written now.
///
/// # Errors
/// If PostgreSQL does not answer.
pub async fn first_instant(pool: &PgPool, count: usize) -> Result<DateTime<Utc>> {
    let ahead = AHEAD + TimeDelta::seconds(i64::try_from(count / WRITTEN_PER_S)?);
    Ok((jobs::now(pool).await? + ahead).trunc_subsecs(3))
}

/// Writes what brings about `fires`; answers the jobs, and the first instant.
///
/// # Errors
/// As [`spread`].
pub async fn fires(pool: &PgPool, redis: &Redis, fires: Fires) -> Result<(Vec<Uuid>, DateTime<Utc>)> {
    match fires.of {
        By::Schedules => schedules(pool, redis, fires.per_s, fires.seconds).await,
        By::Jobs => spread(pool, redis, fires.per_s, fires.seconds).await,
    }
}

/// Writes one-time jobs, `per_s` of them a second for `seconds`, at even distances; answers them in order, and the first
/// instant.
///
/// # Errors
/// If PostgreSQL or Redis refuses, or writing takes so long that the first is due before the last is written.
pub async fn spread(pool: &PgPool, redis: &Redis, per_s: u32, seconds: u32) -> Result<(Vec<Uuid>, DateTime<Utc>)> {
    let count = usize::try_from(per_s * seconds)?;
    let first = first_instant(pool, count).await?;
    let ids = jobs::new_ids(count, first);
    let at = |index: usize| {
        let ms = i64::try_from(index).unwrap_or_default() * 1_000 / i64::from(per_s);
        first + TimeDelta::milliseconds(ms)
    };
    let jobs: Vec<Job> = ids.iter().enumerate().map(|(index, id)| Job::once(*id, at(index))).collect();
    write(pool, redis, &jobs, first).await?;
    Ok((ids, first))
}

async fn schedules(pool: &PgPool, redis: &Redis, per_s: u32, seconds: u32) -> Result<(Vec<Uuid>, DateTime<Utc>)> {
    let count = usize::try_from(per_s)?;
    let first = first_instant(pool, count).await?;
    let ids = jobs::new_ids(count, first);
    let schedule = |(index, id): (usize, &Uuid)| {
        let ms = i64::try_from(index).unwrap_or_default() * 1_000 / i64::from(per_s);
        let from = first + TimeDelta::milliseconds(ms);
        Job::every(*id, Duration::from_secs(1), from, from + TimeDelta::seconds(i64::from(seconds) - 1))
    };
    let jobs: Vec<Job> = ids.iter().enumerate().map(schedule).collect();
    write(pool, redis, &jobs, first).await?;
    Ok((ids, first))
}

/// Writes `jobs`, of which the first is due at `first`, and tells the leader. What that left for the kernel to write is written
/// here: else it comes half a minute later, in the middle of what is measured, and holds up every COMMIT for some 50 ms.
///
/// # Errors
/// If PostgreSQL or Redis refuses, or `first` is over by then.
pub async fn write(pool: &PgPool, redis: &Redis, jobs: &[Job], first: DateTime<Utc>) -> Result<()> {
    jobs::insert(pool, 0, jobs, |_| {}).await?;
    tokio::task::spawn_blocking(nix::unistd::sync).await?;
    redis.wake().await?;
    ensure!(jobs::now(pool).await? < first, "writing the jobs took too long");
    Ok(())
}

/// Sleeps until `at` by the database's clock.
///
/// # Errors
/// If PostgreSQL does not answer.
pub async fn until(pool: &PgPool, at: DateTime<Utc>) -> Result<()> {
    tokio::time::sleep((at - jobs::now(pool).await?).to_std().unwrap_or_default()).await;
    Ok(())
}

/// Waits until `jobs` have had `count` executions together that have ended.
///
/// # Errors
/// If they have not within `limit`; `logs` are in the text then.
pub async fn ended(
    pool: &PgPool,
    jobs: &[Uuid],
    count: usize,
    limit: Duration,
    logs: impl Fn() -> String,
) -> Result<()> {
    let waited = wait_until("all executions to end", limit, || async {
        let statement = "SELECT count(*) FROM job_executions WHERE job_id = ANY ($1) AND completed_at IS NOT NULL";
        let ended: i64 = sqlx::query_scalar(statement).bind(jobs).fetch_one(pool).await?;
        if usize::try_from(ended)? < count {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        ensure!(usize::try_from(ended)? >= count, "{ended} of {count}");
        anyhow::Ok(())
    });
    waited.await.map_err(|error| error.context(logs()))
}

/// All executions of `jobs`, by their instants.
///
/// # Errors
/// If PostgreSQL does not answer.
pub async fn starts(pool: &PgPool, jobs: &[Uuid]) -> Result<Vec<Start>> {
    let statement = "SELECT job_id, scheduled_at, started_at, claim, take, status FROM job_executions \
                     WHERE job_id = ANY ($1) ORDER BY scheduled_at, id";
    Ok(sqlx::query_as(statement).bind(jobs).fetch_all(pool).await?)
}

/// The longest time from one of `instants` to the next, as far as it lies between `from` and `to`: its length, and where it
/// ends. That nothing comes after the last is a gap that ends with `to`.
pub fn longest_gap(
    instants: impl Iterator<Item = DateTime<Utc>>,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> (TimeDelta, DateTime<Utc>) {
    let mut sorted: Vec<DateTime<Utc>> = instants.filter(|at| *at <= to).collect();
    sorted.sort_unstable();
    sorted.push(to);
    let gaps = sorted.windows(2).filter(|pair| pair[1] > from).map(|pair| (pair[1] - pair[0], pair[1]));
    gaps.max_by_key(|(length, _)| *length).unwrap_or((to - from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    #[test]
    fn a_gap_counts_whole_if_it_reaches_into_the_time_looked_at() {
        let gap = |instants: &[i64], from, to| {
            let (length, end) = longest_gap(instants.iter().map(|ms| at(*ms)), at(from), at(to));
            (length.num_milliseconds(), end.timestamp_millis())
        };
        assert_eq!(gap(&[0, 500, 600, 900, 950], 550, 1_000), (300, 900));
        // It began before the fault: the last start was then.
        assert_eq!(gap(&[0, 100, 800, 900], 400, 1_000), (700, 800));
        // What comes later than looked at is no start any more.
        assert_eq!(gap(&[0, 100, 5_000], 50, 1_000), (900, 1_000));
        assert_eq!(gap(&[], 50, 1_000), (950, 1_000));
    }
}
