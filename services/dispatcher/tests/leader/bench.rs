//! A leader in this process, on a Postgres and a Redis of its own and without executors.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_core::schedule::TimetableSpec;
use carillon_dispatcher::config::DispatcherConfig;
use carillon_kit::Process;
use carillon_kit::config::ProtocolConfig;
use carillon_store::revisions;
use carillon_testkit::{Database, Redis, wait_until};
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde_json::Value;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::common;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Short, and longer than any test leaves a stream empty that is to stay.
pub(crate) const STREAM_UNUSED: Duration = Duration::from_secs(5);

const LOOK_EACH: Duration = Duration::from_millis(10);

pub(crate) const STREAM: &str = "{carillon:0}:v1:default:MEDIUM";

pub(crate) const CTL: &str = "{carillon:0}:ctl";

pub(crate) struct Leader {
    pub(crate) database: Database,
    pub(crate) pool: PgPool,
    pub(crate) redis: Redis,
    stop: CancellationToken,
    running: JoinHandle<Result<()>>,
}

impl Leader {
    pub(crate) async fn start(batch_max: u32, stream_entries_max: u32) -> Result<Self> {
        let redis = Redis::start().await?;
        let url = redis.url();
        Self::start_with(redis, &url, batch_max, stream_entries_max).await
    }

    /// One that reaches its Redis by `redis_url`.
    pub(crate) async fn start_with(
        redis: Redis,
        redis_url: &str,
        batch_max: u32,
        stream_entries_max: u32,
    ) -> Result<Self> {
        let database = Database::new().await?;
        let protocol = ProtocolConfig { window: Duration::from_secs(2), lease: Duration::from_secs(20) };
        let mut config = common::config(&database, redis_url, protocol);
        config.dispatcher = DispatcherConfig {
            batch_max,
            stream_entries_max,
            // What these tests look at must not be done by the safety net.
            poll: Duration::from_secs(60),
            stream_unused: STREAM_UNUSED,
            ..config.dispatcher
        };
        let stop = CancellationToken::new();
        let process = Process::detached("carillon-dispatcher", stop.clone());
        let running = tokio::spawn(carillon_dispatcher::run(config, process));
        let pool = database.pool().await?;
        let leader = Self { database, pool, redis, stop, running };
        leader.until_certified().await?;
        Ok(leader)
    }

    pub(crate) async fn until_certified(&self) -> Result<Instant> {
        self.until("a certificate", || Ok(self.redis.command(&["HGET", CTL, "server"])?.text().is_some())).await
    }

    /// From the certificate of an emptied Redis until it holds `count` entries again.
    pub(crate) async fn back_after(&self, count: i64) -> Result<Duration> {
        let certified = self.until_certified().await?;
        let back = self.until("the entries again", || Ok(self.length()? == count)).await?;
        Ok(back - certified)
    }

    /// One-time jobs that may overlap themselves; the first one's id.
    pub(crate) async fn jobs(&self, count: usize, at: DateTime<Utc>) -> Result<Uuid> {
        self.spread_jobs(count, at, 0).await
    }

    /// As [`Leader::jobs`], each due `apart_ms` after the one before.
    pub(crate) async fn spread_jobs(&self, count: usize, at: DateTime<Utc>, apart_ms: i64) -> Result<Uuid> {
        self.insert_jobs(count, at, apart_ms, "default", &TimetableSpec::once(at)).await
    }

    /// At once with all that is said of them: what is due is claimed as soon as it is there.
    pub(crate) async fn insert_jobs(
        &self,
        count: usize,
        at: DateTime<Utc>,
        apart_ms: i64,
        queue: &str,
        timetable: &TimetableSpec,
    ) -> Result<Uuid> {
        let jobs: Vec<Uuid> = (0..count).map(|_| Uuid::now_v7()).collect();
        sqlx::query(
            "WITH new AS (
                 INSERT INTO jobs (id, name, type, status, schedule, timetable, handler_name, payload, retry_delay_ms,
                                   allow_overlap, concurrency, queue)
                 SELECT id, 'bound', 'ONE_TIME', 'ACTIVE', '', $2, 'test:echo', '{}', 200, true, 0, $5
                 FROM UNNEST($1::uuid[]) AS n(id)
                 RETURNING *
             ), revision AS (
                 INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(new) FROM new
             ), stats AS (
                 INSERT INTO job_stats (job_id) SELECT id FROM new
             )
             INSERT INTO job_timers (job_id, shard, fire_at, queue, priority)
             SELECT id, 0, $3 + (row_number() OVER () - 1) * $4 * interval '1 ms', queue, 1 FROM new",
        )
        .bind(&jobs)
        .bind(serde_json::to_value(timetable)?)
        .bind(at)
        .bind(apart_ms)
        .bind(queue)
        .execute(&self.pool)
        .await?;
        jobs.first().copied().context("none")
    }

    pub(crate) fn wake(&self) -> Result<()> {
        self.redis.command(&["PUBLISH", "{carillon:0}:wake", "look"]).map(|_| ())
    }

    pub(crate) fn length(&self) -> Result<i64> {
        self.redis.command(&["XLEN", STREAM])?.number().context("no number")
    }

    pub(crate) async fn count(&self, what: &'static str) -> Result<i64> {
        let statement = format!("SELECT count(*) FROM {what}");
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.pool).await?)
    }

    /// Waits until a count is as it should be.
    pub(crate) async fn until_count(&self, what: &'static str, is_right: impl Fn(i64) -> bool) -> Result<()> {
        wait_until(what, LIMIT, || async {
            ensure!(!self.running.is_finished(), "the dispatcher has ended");
            let count = self.count(what).await?;
            if !is_right(count) {
                tokio::time::sleep(LOOK_EACH).await;
            }
            ensure!(is_right(count), "{count}");
            anyhow::Ok(())
        })
        .await
    }

    /// Settled batches of long ago, of which nothing is left; the newest of them is a minute old.
    pub(crate) async fn old_batches(&self, count: i64) -> Result<()> {
        sqlx::query(
            "INSERT INTO dispatch_batches (shard, number, term, ids, settled_at)
             SELECT 0, (extract(epoch FROM now()) * 1000)::bigint - 60000 - n, 1,
                    ARRAY[gen_random_uuid(), gen_random_uuid(), gen_random_uuid()], now()
             FROM generate_series(1, $1) n",
        )
        .bind(count)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) fn term(&self) -> Result<i64> {
        self.redis.command(&["HGET", CTL, "term"])?.text().context("no term")?.parse().context("no number")
    }

    /// Waits for a condition, and answers when it held.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> Result<bool>) -> Result<Instant> {
        wait_until(what, LIMIT, || async {
            ensure!(!self.running.is_finished(), "the dispatcher has ended");
            let holds = condition();
            if !matches!(holds, Ok(true)) {
                tokio::time::sleep(LOOK_EACH).await;
            }
            ensure!(holds?, "not yet");
            anyhow::Ok(Instant::now())
        })
        .await
    }

    pub(crate) async fn end(self) -> Result<()> {
        self.stop.cancel();
        self.running.await?
    }

    /// Changes the timers that have something to come by hand: `set` is what stands after SET.
    pub(crate) async fn change_timers(&self, set: &'static str) -> Result<()> {
        let statement = format!("UPDATE job_timers SET {set} WHERE fire_at IS NOT NULL");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&self.pool).await?;
        Ok(())
    }

    /// Jobs that are due at `at` by a timetable of their own.
    pub(crate) async fn timetabled_jobs(
        &self,
        count: usize,
        at: DateTime<Utc>,
        timetable: &TimetableSpec,
    ) -> Result<()> {
        self.insert_jobs(count, at, 0, "default", timetable).await.map(|_| ())
    }

    /// How long it takes until the fire of a job that is created now, and due now, is in the stream of a queue of its own.
    pub(crate) async fn beside(&self, queue: &str) -> Result<Duration> {
        let at = in_ms(0);
        self.insert_jobs(1, at, 0, queue, &TimetableSpec::once(at)).await?;
        let created = Instant::now();
        self.wake()?;
        let stream = stream_of(queue);
        let there = self
            .until("the one beside them", || Ok(self.redis.command(&["XLEN", &stream])?.number() == Some(1)))
            .await?;
        Ok(there - created)
    }

    /// Writes a definition as a newer version might: `shape` is laid over what the job has, or is all there is. Tells of it.
    pub(crate) async fn revise(&self, job: Uuid, shape: &str) -> Result<i64> {
        let mut transaction = self.pool.begin().await?;
        let revision = revisions::add_on(&mut *transaction, job, "").await?;
        sqlx::query(
            "UPDATE job_revisions SET definition = CASE jsonb_typeof($3::jsonb) WHEN 'object' THEN definition || $3::jsonb
             ELSE $3::jsonb END WHERE job_id = $1 AND revision = $2",
        )
        .bind(job)
        .bind(revision)
        .bind(serde_json::from_str::<Value>(shape)?)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.redis.command(&["PUBLISH", "{carillon:0}:jobs", &job.to_string()])?;
        Ok(revision)
    }

    pub(crate) fn exists(&self, queue: &str) -> Result<bool> {
        Ok(self.redis.command(&["EXISTS", &stream_of(queue)])?.number() == Some(1))
    }

    /// As an executor: reads all that is in the stream of `queue`, and acknowledges it.
    pub(crate) async fn work_off(&self, queue: &str) -> Result<()> {
        const ACKNOWLEDGE: &str = "for _, e in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
                                       redis.call('XACK', KEYS[1], 'executors', e[1])
                                       redis.call('XDEL', KEYS[1], e[1])
                                   end";
        let stream = stream_of(queue);
        self.redis.command(&["XREADGROUP", "GROUP", "executors", "one", "COUNT", "100", "STREAMS", &stream, ">"])?;
        sqlx::query(
            "UPDATE job_executions SET status = 'SUCCESS', started_at = now(), completed_at = now() WHERE queue = $1",
        )
        .bind(queue)
        .execute(&self.pool)
        .await?;
        self.redis.command(&["EVAL", ACKNOWLEDGE, "1", &stream]).map(|_| ())
    }
}

pub(crate) fn in_ms(ms: i64) -> DateTime<Utc> {
    (Utc::now() + TimeDelta::milliseconds(ms)).trunc_subsecs(3)
}

pub(crate) fn stream_of(queue: &str) -> String {
    format!("{{carillon:0}}:v1:{queue}:MEDIUM")
}
