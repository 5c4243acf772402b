//! One test's database, with jobs in it whose executions are claimed and recorded by the statements under test. What is
//! expected is looked up by statements of the tests' own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::schedule::TimetableSpec;
use carillon_store::claim::{Decisions, DueTimer, Moved, MovedTimer, NewExecution, Room};
use carillon_store::leader_session::{Candidate, LeaderSession};
use carillon_store::open_entries::{Missing, OpenEntry};
use carillon_store::recorder::{Finished, Held, LogLine, Started};
use carillon_store::workers::Worker;
use carillon_store::{Store, StoreOptions};
use carillon_testkit::Database;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

/// Longer than any test takes: whoever was seen during the test is live.
pub(crate) const LEASE: Duration = Duration::from_secs(300);

/// What the tests' handlers take.
pub(crate) const DURATION_MS: i64 = 250;

/// One test's database.
pub(crate) struct Bench {
    /// As an executor connects.
    pub(crate) store: Store,
    /// For statements of the test's own.
    pub(crate) pool: PgPool,
    pub(crate) database: Database,
}

/// What a test looks at in an execution's row.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub(crate) struct Row {
    pub(crate) status: String,
    pub(crate) claim: Option<i64>,
    pub(crate) entry: Option<i64>,
    pub(crate) seq: i32,
    pub(crate) take: i32,
    pub(crate) lost: i16,
    pub(crate) attempt: i16,
    pub(crate) revision: i64,
    pub(crate) worker_id: Option<Uuid>,
    pub(crate) started_at: Option<DateTime<Utc>>,
    pub(crate) completed_at: Option<DateTime<Utc>>,
    pub(crate) next_retry_at: Option<DateTime<Utc>>,
    pub(crate) duration_ms: Option<i64>,
    pub(crate) reason: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) result: Option<Value>,
}

/// What a test looks at in a job's statistics.
#[derive(Clone, Debug, Default, PartialEq, sqlx::FromRow)]
pub(crate) struct Stats {
    pub(crate) finished_count: i64,
    pub(crate) success_count: i64,
    pub(crate) failure_count: i64,
    pub(crate) total_duration_ms: i64,
    pub(crate) last_duration_ms: Option<i64>,
    pub(crate) last_run_at: Option<DateTime<Utc>>,
    pub(crate) last_success_id: Option<Uuid>,
}

/// What a test looks at in a job's timer.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub(crate) struct Timer {
    pub(crate) fire_at: Option<DateTime<Utc>>,
    pub(crate) exhausted: bool,
    pub(crate) claimed_count: i64,
}

impl Bench {
    pub(crate) async fn new() -> Result<Self> {
        let database = Database::new().await?;
        let options = StoreOptions { nested_loops_only: true, ..StoreOptions::new(database.url(), "executor") };
        Ok(Self { store: Store::connect_lazily(&options)?, pool: database.pool().await?, database })
    }

    /// How a dispatcher connects.
    pub(crate) fn options(&self, application_name: &str) -> StoreOptions {
        StoreOptions::new(self.database.url(), application_name)
    }

    pub(crate) async fn candidate(&self, application_name: &str) -> Result<Candidate> {
        Ok(Candidate::connect(&self.options(application_name), 0).await?)
    }

    /// The leader.
    pub(crate) async fn leader(&self) -> Result<LeaderSession> {
        match self.candidate("leader").await?.try_lead().await? {
            Ok(session) => Ok(session),
            Err(_) => bail!("somebody else leads"),
        }
    }

    /// The database's clock, to the microsecond that it keeps.
    pub(crate) async fn now(&self) -> Result<DateTime<Utc>> {
        Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.pool).await?)
    }

    /// A job of the line default/MEDIUM with nothing to come.
    pub(crate) async fn job(&self) -> Result<Uuid> {
        self.job_at(&medium(), None).await
    }

    pub(crate) async fn jobs(&self, count: usize) -> Result<Vec<Uuid>> {
        let mut jobs = Vec::with_capacity(count);
        for _ in 0..count {
            jobs.push(self.job().await?);
        }
        Ok(jobs)
    }

    /// A job of `line` that is due at `fire_at`.
    pub(crate) async fn job_at(&self, line: &Line, fire_at: Option<DateTime<Utc>>) -> Result<Uuid> {
        let id = Uuid::now_v7();
        sqlx::query(
            "WITH job AS (
                 INSERT INTO jobs (id, name, type, status, timetable, handler_name, payload, queue, priority)
                 VALUES ($1, 'job', 'RECURRING', 'ACTIVE', $2, 'echo', '{\"of\": \"job\"}', $3, $4)
                 RETURNING *
             ), revision AS (
                 INSERT INTO job_revisions (job_id, revision, definition) SELECT id, 1, to_jsonb(job) FROM job
             ), timer AS (
                 INSERT INTO job_timers (job_id, shard, fire_at, queue, priority) VALUES ($1, 0, $5, $3, $4)
             )
             INSERT INTO job_stats (job_id) VALUES ($1)",
        )
        .bind(id)
        .bind(sqlx::types::Json(TimetableSpec::never()))
        .bind(&line.queue)
        .bind(line.priority.rank())
        .bind(fire_at)
        .execute(&self.pool)
        .await?;
        Ok(id)
    }

    /// Asks for a fire by hand, as the gateway does. Answers the execution's id.
    pub(crate) async fn trigger(&self, job: Uuid, at: DateTime<Utc>) -> Result<Uuid> {
        let execution = ids::execution_for_trigger(job, &Uuid::new_v4().to_string(), at);
        sqlx::query(
            "INSERT INTO job_triggers (execution_id, job_id, shard, fire_at, queue, priority, payload, platform_id, created_by,
                                       trace_id, parent_span_id, trace_flags)
             SELECT $1, job_id, shard, $3, queue, priority, '{\"of\": \"trigger\"}', 'acme', 'alice',
                    '0af7651916cd43dd8448eb211c80319c', '00f067aa0ba902b7', 0 FROM job_timers WHERE job_id = $2",
        )
        .bind(execution)
        .bind(job)
        .bind(at)
        .execute(&self.pool)
        .await?;
        Ok(execution)
    }

    /// Opens one execution of each job, by a claim of `leader`.
    pub(crate) async fn open(&self, leader: &mut LeaderSession, jobs: &[Uuid]) -> Result<Vec<Held>> {
        let due = self.now().await?;
        sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = ANY ($1)")
            .bind(jobs)
            .bind(due)
            .execute(&self.pool)
            .await?;
        let claim = leader.claim(&[room(Source::Timer, &medium(), 100_000)], due, &[]).await?;
        let decisions = one_each(&claim.timers);
        let number = claim.number;
        let committed = claim.commit(1, &decisions, &[]).await?;
        let by_job = |job: &Uuid| {
            let new = decisions.executions.iter().find(|new| new.job == *job && committed.born.contains(&new.id));
            new.map(|new| Held { execution: new.id, claim: number, take: 0 })
        };
        jobs.iter().map(|job| by_job(job).context("an execution was not born")).collect()
    }

    /// Opens one execution of a new job.
    pub(crate) async fn open_one(&self, leader: &mut LeaderSession) -> Result<Held> {
        let job = self.job().await?;
        Ok(self.open(leader, &[job]).await?[0])
    }

    /// One whose first attempt has failed, and whose next one waits.
    pub(crate) async fn open_retrying(&self, leader: &mut LeaderSession) -> Result<Held> {
        let held = self.open_one(leader).await?;
        self.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Retrying)], &[]).await?;
        Ok(held)
    }

    /// A row of the table `workers`. `seen_ago` beyond [`LEASE`] is one that is not live.
    pub(crate) async fn worker(&self, consumer: &str, seen_ago: TimeDelta, ended: bool) -> Result<Uuid> {
        let worker = incarnation(consumer);
        self.store.worker_begin(&worker).await?;
        sqlx::query("UPDATE workers SET seen_at = now() - $2, ended = $3 WHERE id = $1")
            .bind(worker.id)
            .bind(seen_ago.to_std()?)
            .bind(ended)
            .execute(&self.pool)
            .await?;
        Ok(worker.id)
    }

    pub(crate) async fn live_worker(&self) -> Result<Uuid> {
        self.worker("live", TimeDelta::zero(), false).await
    }

    pub(crate) async fn dead_worker(&self) -> Result<Uuid> {
        self.worker("dead", TimeDelta::hours(1), false).await
    }

    pub(crate) async fn run(&self, worker: Uuid, held: Held) -> Result<()> {
        let (verdicts, _) = self.store.executions_record(worker, &[started(held)], &[], &[]).await?;
        anyhow::ensure!(
            verdicts == [carillon_store::recorder::Verdict::Running { cancel_requested: false }],
            "{verdicts:?}"
        );
        Ok(())
    }

    pub(crate) async fn row(&self, execution: Uuid) -> Result<Row> {
        let row = sqlx::query_as("SELECT * FROM job_executions WHERE id = $1").bind(execution);
        Ok(row.fetch_one(&self.pool).await?)
    }

    /// Every column, to see that nothing has changed.
    pub(crate) async fn whole_row(&self, execution: Uuid) -> Result<Option<Value>> {
        let row = sqlx::query_scalar("SELECT to_jsonb(e) FROM job_executions e WHERE id = $1").bind(execution);
        Ok(row.fetch_optional(&self.pool).await?)
    }

    pub(crate) async fn stats(&self, job: Uuid) -> Result<Stats> {
        Ok(sqlx::query_as("SELECT * FROM job_stats WHERE job_id = $1").bind(job).fetch_one(&self.pool).await?)
    }

    pub(crate) async fn timer(&self, job: Uuid) -> Result<Timer> {
        Ok(sqlx::query_as("SELECT * FROM job_timers WHERE job_id = $1").bind(job).fetch_one(&self.pool).await?)
    }

    pub(crate) async fn job_of(&self, execution: Uuid) -> Result<Uuid> {
        let job = sqlx::query_scalar("SELECT job_id FROM job_executions WHERE id = $1").bind(execution);
        Ok(job.fetch_one(&self.pool).await?)
    }

    /// Changes one execution's row by hand: `set` is what stands after SET, `$1` is the id.
    pub(crate) async fn change(&self, execution: Uuid, set: &'static str) -> Result<()> {
        let statement = format!("UPDATE job_executions SET {set} WHERE id = $1");
        let done = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(execution).execute(&self.pool).await?;
        anyhow::ensure!(done.rows_affected() == 1, "no such execution");
        Ok(())
    }

    pub(crate) async fn count(&self, table: &'static str) -> Result<i64> {
        let statement = format!("SELECT count(*) FROM {table}");
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.pool).await?)
    }

    /// Waits until a statement of [`Bench::store`] stands before a lock.
    pub(crate) async fn executor_waits_for_a_lock(&self) -> Result<()> {
        carillon_testkit::wait_until("an executor's statement to wait", Duration::from_secs(5), || async {
            let waits: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'executor'
                 AND datname = current_database() AND wait_event_type = 'Lock')",
            )
            .fetch_one(&self.pool)
            .await?;
            anyhow::ensure!(waits, "it does not wait");
            Ok(())
        })
        .await
    }

    /// Promise 5, for every job: claimed − finished = open rows.
    pub(crate) async fn assert_counters(&self) -> Result<()> {
        let wrong: Vec<(Uuid, i64, i64, i64)> = sqlx::query_as(
            "SELECT t.job_id, t.claimed_count, s.finished_count, o.open
             FROM job_timers t JOIN job_stats s USING (job_id) CROSS JOIN LATERAL (
                 SELECT count(*) AS open FROM job_executions e
                 WHERE e.job_id = t.job_id AND e.status IN ('QUEUED', 'RUNNING', 'RETRYING')) o
             WHERE t.claimed_count - s.finished_count <> o.open",
        )
        .fetch_all(&self.pool)
        .await?;
        anyhow::ensure!(wrong.is_empty(), "job, claimed, finished, open: {wrong:?}");
        Ok(())
    }
}

pub(crate) fn medium() -> Line {
    Line::new("default", Priority::Medium)
}

pub(crate) fn room(source: Source, line: &Line, room: i64) -> Room {
    Room { source, line: line.clone(), room }
}

pub(crate) fn incarnation(consumer: &str) -> Worker {
    Worker {
        id: Uuid::now_v7(),
        consumer: consumer.into(),
        queues: vec!["default".into()],
        handlers: vec!["test:echo".into()],
        slots: 4,
    }
}

/// Opens one execution for each timer and parks it.
pub(crate) fn one_each(timers: &[DueTimer]) -> Decisions {
    Decisions {
        executions: (1..).zip(timers).map(|(seq, timer)| fire(timer.job, timer.fire_at, seq)).collect(),
        timers: timers.iter().map(|timer| parked(timer.job)).collect(),
        retries: Vec::new(),
    }
}

pub(crate) fn parked(job: Uuid) -> MovedTimer {
    MovedTimer { job, to: Some(Moved { fire_at: None, exhausted: false, unborn: None }) }
}

pub(crate) fn fire(job: Uuid, at: DateTime<Utc>, seq: i32) -> NewExecution {
    // Two fires within a millisecond are one: the tests that claim often tell them apart by hand.
    NewExecution {
        id: ids::execution_for_fire(job, at),
        job,
        seq,
        line: medium(),
        revision: 1,
        platform_id: None,
        scheduled_at: at,
        max_retries: 3,
        reason: None,
        own_payload: false,
        payload: None,
        own_metadata: false,
        trace: None,
        created_by: String::new(),
        skipped: false,
    }
}

/// When the tests' handlers start.
pub(crate) fn start() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_800_000_000_000).unwrap_or_default()
}

pub(crate) fn end() -> DateTime<Utc> {
    start() + TimeDelta::milliseconds(DURATION_MS)
}

pub(crate) fn retry_at() -> DateTime<Utc> {
    start() + TimeDelta::seconds(60)
}

pub(crate) fn started(held: Held) -> Started {
    Started { held, started_at: start(), revision: 1 }
}

/// The end of a first attempt.
pub(crate) fn finished(held: Held, status: Status) -> Finished {
    Finished {
        held,
        attempt: 1,
        handler: "echo".into(),
        revision: 1,
        status,
        timed_out: status == Status::Timeout,
        started_at: Some(start()),
        ended_at: end(),
        next_retry_at: (status == Status::Retrying).then(retry_at),
        queue: "default".into(),
        priority: Priority::Medium.rank(),
        result: (status == Status::Success).then(|| json!({"answer": 42}).to_string()),
        error: matches!(status, Status::Failed | Status::Timeout | Status::Retrying).then(|| "it broke".into()),
        error_stack: None,
        reason: None,
        metadata: None,
        logs: vec![
            LogLine { timestamp: start(), level: "INFO", message: "begun".into() },
            LogLine { timestamp: end(), level: "WARN", message: "ended".into() },
        ],
    }
}

/// R19: all of them, each in its line.
pub(crate) fn all_lost(entries: &[OpenEntry]) -> Vec<Missing> {
    entries.iter().cloned().map(Missing::lost).collect()
}
