//! A database for one test, with jobs and executions in it.

use std::time::Duration;

use anyhow::Result;
use carillon_core::ids;
use carillon_core::job::{HandlerType, JobType, Priority};
use carillon_core::retry::Backoff;
use carillon_core::schedule::TimetableSpec;
use carillon_store::idempotency::{self, Key};
use carillon_store::jobs::{self, Definition, Job, NewJob};
use carillon_store::scan::{Place, Window};
use carillon_store::{Scope, Store, StoreOptions};
use carillon_testkit::Database;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

/// One test's database.
pub(crate) struct Bench {
    pub(crate) store: Store,
    /// For statements of the test's own.
    pub(crate) pool: PgPool,
    /// Keeps it.
    _database: Database,
}

impl Bench {
    pub(crate) async fn new() -> Result<Self> {
        let database = Database::new().await?;
        let store = Store::connect_lazily(&StoreOptions::new(database.url(), "test"))?;
        Ok(Self { store, pool: database.pool().await?, _database: database })
    }

    /// The database's clock.
    pub(crate) async fn now(&self) -> Result<DateTime<Utc>> {
        Ok(idempotency::begin(&self.store, &Scope::ALL, None).await?.now)
    }

    /// A job that fires each minute.
    pub(crate) async fn job(&self) -> Result<Job> {
        let new = new_job(self.now().await?);
        Ok(jobs::create(&self.store, &Scope::ALL, new, None).await?)
    }

    /// An execution of `job` in some state, counted as the claim and the recorder would count it.
    pub(crate) async fn execution(&self, job: Uuid, at: DateTime<Utc>, status: &str) -> Result<Uuid> {
        let id = ids::execution_for_fire(job, at);
        sqlx::query(
            "INSERT INTO job_executions (shard, id, job_id, platform_id, claim, entry, seq, status, scheduled_at, completed_at,
                                         max_retries, result)
             VALUES (0, $1, $2, (SELECT platform_id FROM jobs WHERE id = $2), 1, 1, 1, $3, $4,
                     CASE WHEN $3 IN ('SUCCESS', 'FAILED', 'TIMEOUT', 'CANCELLED', 'SKIPPED') THEN $4 END, 3, '{\"n\": 1}')",
        )
        .bind(id)
        .bind(job)
        .bind(status)
        .bind(at)
        .execute(&self.pool)
        .await?;
        let is_final = !["QUEUED", "RUNNING", "RETRYING"].contains(&status);
        if status != "SKIPPED" {
            sqlx::query("UPDATE job_timers SET claimed_count = claimed_count + 1 WHERE job_id = $1")
                .bind(job)
                .execute(&self.pool)
                .await?;
            sqlx::query("UPDATE job_stats SET finished_count = finished_count + $2 WHERE job_id = $1")
                .bind(job)
                .bind(i64::from(is_final))
                .execute(&self.pool)
                .await?;
        }
        if ["FAILED", "TIMEOUT"].contains(&status) {
            sqlx::query(
                "INSERT INTO execution_failures (execution_id, job_id, status, ended_at, handler_name, fingerprint)
                 SELECT $1, id, $3, $4, handler_name, '0123456789abcdef' FROM jobs WHERE id = $2",
            )
            .bind(id)
            .bind(job)
            .bind(status)
            .bind(at)
            .execute(&self.pool)
            .await?;
        }
        if status == "RETRYING" {
            sqlx::query(
                "INSERT INTO execution_retries (shard, execution_id, job_id, claim, due_at, queue, priority)
                 VALUES (0, $1, $2, 1, now(), 'default', 1)",
            )
            .bind(id)
            .bind(job)
            .execute(&self.pool)
            .await?;
        }
        Ok(id)
    }

    /// Status, whether a cancel is requested, and the reason of an execution.
    pub(crate) async fn stands(&self, execution: Uuid) -> Result<(String, bool, Option<String>)> {
        Ok(sqlx::query_as("SELECT status, cancel_requested, reason FROM job_executions WHERE id = $1")
            .bind(execution)
            .fetch_one(&self.pool)
            .await?)
    }

    /// `fire_at` and `revision` of a job's timer.
    pub(crate) async fn timer(&self, job: Uuid) -> Result<(Option<DateTime<Utc>>, i64)> {
        Ok(sqlx::query_as("SELECT fire_at, revision FROM job_timers WHERE job_id = $1")
            .bind(job)
            .fetch_one(&self.pool)
            .await?)
    }

    /// How many rows a table has.
    pub(crate) async fn count(&self, table: &str) -> Result<i64> {
        let statement = format!("SELECT count(*) FROM {table}");
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.pool).await?)
    }
}

/// A job created at `now` that fires each minute.
pub(crate) fn new_job(now: DateTime<Utc>) -> NewJob {
    let mut random = [0; 10];
    random.copy_from_slice(&Uuid::new_v4().as_bytes()[6..]);
    NewJob {
        id: ids::job_created(now, random),
        definition: definition(),
        timetable: TimetableSpec::cron("* * * * *", "UTC"),
        fire_at: Some(now + TimeDelta::minutes(1)),
        created_at: now,
        queues_max: 1_000,
    }
}

fn definition() -> Definition {
    Definition {
        name: "Daily Cleanup".to_owned(),
        description: "Removes what is old".to_owned(),
        job_type: JobType::Cron,
        key: None,
        schedule: "* * * * *".to_owned(),
        interval: String::new(),
        execute_at: None,
        schedules: Vec::new(),
        timezone: "UTC".to_owned(),
        exclusions: Vec::new(),
        dst_gap: None,
        dst_overlap: None,
        start_date: None,
        end_date: None,
        max_executions: Some(9),
        handler_name: "cleanup:old_traces".to_owned(),
        handler_type: HandlerType::Function,
        payload: json!({"retention_days": 30, "nested": {"list": [1, null, "ä"]}}),
        queue: "slow".to_owned(),
        priority: Priority::High,
        max_retries: 2,
        retry_delay_ms: 1_000,
        retry_backoff: Backoff::Exponential,
        retry_delay_cap_ms: 3_600_000,
        retry_jitter_percent: 10,
        timeout_ms: 5_000,
        concurrency: 1,
        allow_overlap: false,
        tags: vec!["a".to_owned(), "b".to_owned()],
        metadata: json!({"owner": "x"}),
        platform_id: Some("p1".to_owned()),
        created_by: "admin".to_owned(),
    }
}

/// A page with all the time that it needs.
pub(crate) const fn window(limit: u32, from: Place) -> Window {
    Window { limit, from, budget: Duration::from_secs(60) }
}

/// A key of a request whose content is `content`.
pub(crate) fn key(key: &str, content: &str) -> Key {
    Key {
        space: "job".to_owned(),
        platform: Some("p1".to_owned()),
        key: key.to_owned(),
        fingerprint: content.as_bytes().to_vec(),
    }
}
