//! A leader in this process, on a Postgres and a Redis of its own and without executors: what it publishes, and when.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_core::schedule::TimetableSpec;
use carillon_dispatcher::Config;
use carillon_dispatcher::config::{DispatcherConfig, RetentionConfig};
use carillon_kit::Process;
use carillon_kit::config::{PostgresConfig, ProtocolConfig, RedisConfig, SecretUrl};
use carillon_store::triggers::{self, NewTrigger};
use carillon_store::{Store, StoreOptions};
use carillon_testkit::{Database, Redis, wait_until};
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde_json::Value;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LOOK_EACH: Duration = Duration::from_millis(10);
const STREAM: &str = "{carillon:0}:v1:default:MEDIUM";
const CTL: &str = "{carillon:0}:ctl";

struct Leader {
    database: Database,
    pool: PgPool,
    redis: Redis,
    stop: CancellationToken,
    running: JoinHandle<Result<()>>,
}

impl Leader {
    async fn start(batch_max: u32, stream_entries_max: u32) -> Result<Self> {
        let (database, redis) = (Database::new().await?, Redis::start().await?);
        let config = Config {
            postgres: PostgresConfig {
                url: SecretUrl::new(database.url()),
                connections_max: 4,
                acquire_timeout: Duration::from_secs(5),
            },
            redis: RedisConfig { url: SecretUrl::new(redis.url()), namespace: "carillon".into() },
            dispatcher: DispatcherConfig {
                shard: 0,
                lead: Duration::from_millis(200),
                batch_max,
                stream_entries_max,
                // What these tests look at must not be done by the safety net.
                poll: Duration::from_secs(60),
                misfire_threshold: Duration::from_secs(600),
            },
            protocol: ProtocolConfig { window: Duration::from_secs(2), lease: Duration::from_secs(20) },
            retention: RetentionConfig { executions: DAY * 90, logs: DAY * 14, jobs: None },
        };
        let stop = CancellationToken::new();
        let process = Process::detached("carillon-dispatcher", stop.clone());
        let running = tokio::spawn(carillon_dispatcher::run(config, process));
        let pool = database.pool().await?;
        let leader = Self { database, pool, redis, stop, running };
        leader.until("a certificate", || Ok(leader.redis.command(&["HGET", CTL, "server"])?.text().is_some())).await?;
        Ok(leader)
    }

    /// One-time jobs that may overlap themselves; the first one's id.
    async fn jobs(&self, count: usize, at: DateTime<Utc>) -> Result<Uuid> {
        let jobs: Vec<Uuid> = (0..count).map(|_| Uuid::now_v7()).collect();
        sqlx::query(
            "WITH new AS (
                 INSERT INTO jobs (id, name, type, status, schedule, timetable, handler_name, payload, retry_delay_ms,
                                   allow_overlap, concurrency)
                 SELECT id, 'bound', 'ONE_TIME', 'ACTIVE', '', $2, 'test:echo', '{}', 200, true, 0 FROM UNNEST($1::uuid[]) AS n(id)
                 RETURNING *
             ), revision AS (
                 INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(new) FROM new
             ), stats AS (
                 INSERT INTO job_stats (job_id) SELECT id FROM new
             )
             INSERT INTO job_timers (job_id, shard, fire_at, queue, priority) SELECT id, 0, $3, 'default', 1 FROM new",
        )
        .bind(&jobs)
        .bind(serde_json::to_value(TimetableSpec::once(at))?)
        .bind(at)
        .execute(&self.pool)
        .await?;
        jobs.first().copied().context("none")
    }

    fn wake(&self) -> Result<()> {
        self.redis.command(&["PUBLISH", "{carillon:0}:wake", "look"]).map(|_| ())
    }

    fn length(&self) -> Result<i64> {
        self.redis.command(&["XLEN", STREAM])?.number().context("no number")
    }

    /// Waits for a condition, and answers when it held.
    async fn until(&self, what: &str, condition: impl Fn() -> Result<bool>) -> Result<Instant> {
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

    async fn end(self) -> Result<()> {
        self.stop.cancel();
        self.running.await?
    }
}

fn in_ms(ms: i64) -> DateTime<Utc> {
    (Utc::now() + TimeDelta::milliseconds(ms)).trunc_subsecs(3)
}

/// R19: at once after a certificate, also when there is nothing else to do.
#[tokio::test]
async fn what_an_emptied_redis_has_lost_is_published_again_at_once() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    leader.redis.flush_all()?;
    let server = || Ok(leader.redis.command(&["HGET", CTL, "server"])?.text().is_some());
    let certified = leader.until("a certificate", server).await?;
    let back = leader.until("the entries again", || Ok(leader.length()? == 3)).await?;
    let took = back - certified;
    assert!(took < Duration::from_millis(500), "{took:?} after the certificate");
    leader.end().await
}

/// Timers and triggers of one line, more of each than fit.
#[tokio::test]
async fn a_stream_never_holds_more_than_its_bound() -> Result<()> {
    const BOUND: i64 = 50;
    let leader = Leader::start(50, 50).await?;
    let later = leader.jobs(1, in_ms(1_000_000)).await?;
    let store = Store::connect_lazily(&StoreOptions::new(leader.database.url(), "test"))?;
    // Far enough off that all of it is there by then: what comes due at once is claimed together.
    let due = in_ms(2_000);
    leader.jobs(120, due).await?;
    for _ in 0..80 {
        let trigger = NewTrigger { job_id: later, payload: Some(Value::Null), trace: None, created_by: String::new() };
        triggers::create(&store, &trigger, None).await?;
    }
    sqlx::query("UPDATE job_triggers SET fire_at = $1").bind(due).execute(&leader.pool).await?;
    leader.wake()?;
    for freed in [0, 7, 30] {
        let trimmed = leader.redis.command(&["XTRIM", STREAM, "MAXLEN", &(BOUND - freed).to_string()])?.number();
        assert!(freed == 0 || trimmed == Some(freed));
        let full = || {
            let length = leader.length()?;
            assert!(length <= BOUND, "{length} entries");
            Ok(length == BOUND)
        };
        leader.until("a full stream", full).await?;
        // What is on its way by now shows itself within a tick.
        let seen = Instant::now();
        leader.until("nothing more", || full().map(|full| full && seen.elapsed() > Duration::from_millis(300))).await?;
    }
    let kinds: i64 =
        sqlx::query_scalar("SELECT count(DISTINCT job_id = $1) FROM job_executions WHERE status = 'QUEUED'")
            .bind(later)
            .fetch_one(&leader.pool)
            .await?;
    assert_eq!(kinds, 2, "timers and triggers");
    leader.end().await
}
