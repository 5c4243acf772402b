//! Jobs by the thousand, written straight into the tables: what is measured is their dispatch, not their creation.

use std::time::Duration;

use anyhow::Result;
use carillon_core::ids;
use carillon_core::schedule::TimetableSpec;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

/// Jobs in one INSERT.
const AT_ONCE: usize = 20_000;
/// An interval so long that a job of it fires in a run only when its timer is set by hand.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A job to be written.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: Uuid,
    kind: &'static str,
    timetable: TimetableSpec,
    fire_at: Option<DateTime<Utc>>,
}

impl Job {
    /// One that fires when [`release`] says so.
    pub fn released_by_hand(id: Uuid) -> Self {
        let anchor = DateTime::UNIX_EPOCH + TimeDelta::days(365 * 55);
        Self { id, kind: "RECURRING", timetable: TimetableSpec::every(TEN_YEARS, anchor), fire_at: None }
    }

    /// One that fires far from now, to fill the timetable.
    pub fn far_away(id: Uuid, fire_at: DateTime<Utc>) -> Self {
        Self { fire_at: Some(fire_at), ..Self::released_by_hand(id) }
    }

    /// One that fires at `at`.
    pub fn once(id: Uuid, at: DateTime<Utc>) -> Self {
        Self { id, kind: "ONE_TIME", timetable: TimetableSpec::once(at), fire_at: Some(at) }
    }

    /// One that fires each `interval` from `first` to `last`.
    pub fn every(id: Uuid, interval: Duration, first: DateTime<Utc>, last: DateTime<Utc>) -> Self {
        let timetable = TimetableSpec { end: Some(last), ..TimetableSpec::every(interval, first) };
        Self { id, kind: "RECURRING", timetable, fire_at: Some(first) }
    }
}

/// `count` new ids, such as the gateway gives.
pub fn new_ids(count: usize, now: DateTime<Utc>) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = (0..count)
        .map(|index| {
            let created = now - TimeDelta::milliseconds(i64::try_from(count - index).unwrap_or_default());
            let random: [u8; 16] = *Uuid::new_v4().as_bytes();
            let mut tail = [0; 10];
            tail.copy_from_slice(&random[6..]);
            ids::job_created(created, tail)
        })
        .collect();
    ids.sort_unstable();
    ids
}

/// The payload of every job here: small, as most are; an entry and a result carry it.
pub const PAYLOAD: &str = r#"{"tenant": "acme", "retention_days": 30}"#;
/// The handler of every job here: it answers its payload.
pub const HANDLER: &str = "test:echo";

const INSERT: &str = "
WITH given AS (
    SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::jsonb[], $4::timestamptz[]) AS g(id, type, timetable, fire_at)
), job AS (
    INSERT INTO jobs (id, name, type, status, timetable, handler_name, payload, created_by)
    SELECT id, 'bench ' || id, type, 'ACTIVE', timetable, $6, $7::jsonb, 'carillon-bench' FROM given
    RETURNING *
), revision AS (
    INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(job) FROM job
), timer AS (
    INSERT INTO job_timers (job_id, shard, fire_at, queue, priority) SELECT id, $5, fire_at, 'default', 1 FROM given
)
INSERT INTO job_stats (job_id) SELECT id FROM given";

/// Writes `jobs` into `shard`. `written` hears after each part how many there are.
///
/// # Errors
/// If PostgreSQL refuses.
pub async fn insert(pool: &PgPool, shard: i16, jobs: &[Job], mut written: impl FnMut(usize)) -> Result<()> {
    let mut done = 0;
    for some in jobs.chunks(AT_ONCE) {
        let mut transaction = pool.begin().await?;
        // Each row refers to one of the same statement: nothing to check.
        sqlx::raw_sql("SET LOCAL session_replication_role = replica").execute(&mut *transaction).await?;
        sqlx::query(INSERT)
            .bind(some.iter().map(|job| job.id).collect::<Vec<_>>())
            .bind(some.iter().map(|job| job.kind).collect::<Vec<_>>())
            .bind(some.iter().map(|job| Json(&job.timetable)).collect::<Vec<_>>())
            .bind(some.iter().map(|job| job.fire_at).collect::<Vec<_>>())
            .bind(shard)
            .bind(HANDLER)
            .bind(PAYLOAD)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        done += some.len();
        written(done);
    }
    Ok(())
}

/// The database's clock.
///
/// # Errors
/// If PostgreSQL does not answer.
pub async fn now(pool: &PgPool) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(pool).await?)
}
