//! Jobs by the thousand, written straight into the tables: what is measured is their dispatch, not their creation.

use std::borrow::Cow;
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
/// The queue of jobs that name none.
const DEFAULT: Cow<'static, str> = Cow::Borrowed("default");
/// An interval so long that a job of it fires in a run only when its timer is set by hand.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A job to be written.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: Uuid,
    kind: &'static str,
    timetable: TimetableSpec,
    fire_at: Option<DateTime<Utc>>,
    queue: Cow<'static, str>,
    handler: &'static str,
    payload: Cow<'static, str>,
    timeout_ms: i32,
    /// Executions open from the beginning, as far as its timer knows.
    open: i64,
}

impl Job {
    fn new(id: Uuid, kind: &'static str, timetable: TimetableSpec, fire_at: Option<DateTime<Utc>>) -> Self {
        let (queue, handler, payload) = (DEFAULT, HANDLER, Cow::Borrowed(PAYLOAD));
        Self { id, kind, timetable, fire_at, queue, handler, payload, timeout_ms: TIMEOUT_MS, open: 0 }
    }

    /// One that fires when its timer is set by hand.
    pub fn released_by_hand(id: Uuid) -> Self {
        let anchor = DateTime::UNIX_EPOCH + TimeDelta::days(365 * 55);
        Self::new(id, "RECURRING", TimetableSpec::every(TEN_YEARS, anchor), None)
    }

    /// One that fires far from now, to fill the timetable.
    pub fn far_away(id: Uuid, fire_at: DateTime<Utc>) -> Self {
        Self { fire_at: Some(fire_at), ..Self::released_by_hand(id) }
    }

    /// One that fires at `at`.
    pub fn once(id: Uuid, at: DateTime<Utc>) -> Self {
        Self::new(id, "ONE_TIME", TimetableSpec::once(at), Some(at))
    }

    /// One that fires each `interval` from `first` to `last`.
    pub fn every(id: Uuid, interval: Duration, first: DateTime<Utc>, last: DateTime<Utc>) -> Self {
        let timetable = TimetableSpec { end: Some(last), ..TimetableSpec::every(interval, first) };
        Self::new(id, "RECURRING", timetable, Some(first))
    }

    /// One with such a timetable that fires when its timer is set by hand.
    pub fn timetabled(id: Uuid, timetable: TimetableSpec) -> Self {
        Self::new(id, "RECURRING", timetable, None)
    }

    /// The same of another queue.
    pub fn of_queue(self, queue: String) -> Self {
        Self { queue: Cow::Owned(queue), ..self }
    }

    /// The same whose handler sleeps.
    pub fn sleeping(self, time: Duration) -> Self {
        Self { handler: "test:sleep", payload: Cow::Owned(format!("{{\"ms\": {}}}", time.as_millis())), ..self }
    }

    /// The same with such a timeout.
    pub fn timing_out_after(self, timeout: Duration) -> Self {
        Self { timeout_ms: i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX), ..self }
    }

    /// The same whose timer counts an execution as open that never ends.
    pub fn held_back(self) -> Self {
        Self { open: 1, ..self }
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

/// The payload of most jobs here: small, as most are; an entry and a result carry it.
pub const PAYLOAD: &str = r#"{"tenant": "acme", "retention_days": 30}"#;
/// Their handler: it answers its payload.
pub const HANDLER: &str = "test:echo";
/// The timeout that jobs have which name none.
const TIMEOUT_MS: i32 = 300_000;

const INSERT: &str = "
WITH given AS (
    SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::jsonb[], $4::timestamptz[], $8::text[], $6::text[], $7::text[],
                         $9::int[], $10::bigint[])
                      AS g(id, type, timetable, fire_at, queue, handler, payload, timeout_ms, open)
), job AS (
    INSERT INTO jobs (id, name, type, status, timetable, handler_name, payload, created_by, queue, timeout_ms)
    SELECT id, 'bench ' || id, type, 'ACTIVE', timetable, handler, payload::jsonb, 'carillon-bench', queue, timeout_ms FROM given
    RETURNING *
), revision AS (
    INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(job) FROM job
), timer AS (
    INSERT INTO job_timers (job_id, shard, fire_at, queue, priority, claimed_count)
    SELECT id, $5, fire_at, queue, 1, open FROM given
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
            .bind(some.iter().map(|job| job.handler).collect::<Vec<_>>())
            .bind(some.iter().map(|job| job.payload.as_ref()).collect::<Vec<_>>())
            .bind(some.iter().map(|job| job.queue.as_ref()).collect::<Vec<_>>())
            .bind(some.iter().map(|job| job.timeout_ms).collect::<Vec<_>>())
            .bind(some.iter().map(|job| job.open).collect::<Vec<_>>())
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
