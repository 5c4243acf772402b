//! R17b: what was cancelled and nobody reads ends, and nothing else does. A dispatcher in this process; the executors are the
//! test's own commands and rows, so that each hole of the weaker versions is stood on at its very step.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_core::schedule::TimetableSpec;
use carillon_kit::Process;
use carillon_kit::config::ProtocolConfig;
use carillon_testkit::{Database, Redis, wait_until};
use chrono::{SubsecRound as _, Utc};
use metrics_exporter_prometheus::PrometheusBuilder;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);
const STREAM: &str = "{carillon:0}:v1:default:MEDIUM";
const CTL: &str = "{carillon:0}:ctl";
const WINDOW: Duration = Duration::from_millis(800);
const LEASE: Duration = Duration::from_secs(2);

struct Bench {
    pool: PgPool,
    redis: Redis,
    stop: CancellationToken,
    running: JoinHandle<Result<()>>,
    _database: Database,
}

impl Bench {
    async fn start() -> Result<Self> {
        let (database, redis) = (Database::new().await?, Redis::start().await?);
        let protocol = ProtocolConfig { window: WINDOW, lease: LEASE };
        let config = common::config(&database, &redis.url(), protocol);
        let stop = CancellationToken::new();
        let process = Process::detached("carillon-dispatcher", stop.clone());
        let running = tokio::spawn(carillon_dispatcher::run(config, process));
        let bench = Self { pool: database.pool().await?, redis, stop, running, _database: database };
        bench.until_certified("").await?;
        Ok(bench)
    }

    async fn until_certified(&self, before: &str) -> Result<String> {
        wait_until("a certificate", LIMIT, || async {
            let at = self.redis.command(&["HGET", CTL, "certified_at"])?.text().unwrap_or_default().to_owned();
            let server = self.redis.command(&["HGET", CTL, "server"])?;
            ensure!(!at.is_empty() && at != before && server.text().is_some(), "{at}");
            anyhow::Ok(at)
        })
        .await
    }

    /// Executions that are published, in the order of their entries.
    async fn published(&self, count: i64) -> Result<Vec<Uuid>> {
        self.published_in("default", count).await
    }

    async fn published_in(&self, queue: &str, count: i64) -> Result<Vec<Uuid>> {
        let at = Utc::now().trunc_subsecs(3);
        let jobs: Vec<Uuid> = (0..count).map(|_| Uuid::now_v7()).collect();
        sqlx::query(
            "WITH new AS (
                 INSERT INTO jobs (id, name, type, status, timetable, handler_name, queue)
                 SELECT id, 'unread', 'ONE_TIME', 'ACTIVE', $2, 'test:echo', $4 FROM UNNEST($1::uuid[]) AS n(id) RETURNING *
             ), revision AS (
                 INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(new) FROM new
             ), stats AS (
                 INSERT INTO job_stats (job_id) SELECT id FROM new
             )
             INSERT INTO job_timers (job_id, shard, fire_at, queue, priority) SELECT id, 0, $3, $4, 1 FROM new",
        )
        .bind(&jobs)
        .bind(serde_json::to_value(TimetableSpec::once(at))?)
        .bind(at)
        .bind(queue)
        .execute(&self.pool)
        .await?;
        wait_until("the executions to be published and their batches settled", LIMIT, || async {
            let ids: Vec<Uuid> = sqlx::query_scalar(
                "SELECT e.id FROM job_executions e JOIN dispatch_batches b ON b.number = e.entry
                 WHERE e.job_id = ANY ($1) AND b.settled_at IS NOT NULL ORDER BY e.entry, e.seq",
            )
            .bind(&jobs)
            .fetch_all(&self.pool)
            .await?;
            ensure!(i64::try_from(ids.len())? == count, "{} are", ids.len());
            anyhow::Ok(ids)
        })
        .await
    }

    /// What is next in the stream is handed to `consumer`, as a read of an executor does.
    fn read(&self, consumer: &str) -> Result<String> {
        let words = ["XREADGROUP", "GROUP", "executors", consumer, "COUNT", "1", "STREAMS", STREAM, ">"];
        let reply = self.redis.command(&words)?;
        let id = reply.list().first().and_then(|stream| stream.list().get(1)?.list().first()?.list().first()?.text());
        Ok(id.context("nothing was there to read")?.to_owned())
    }

    /// A cancel as it is requested, whose notice is heard.
    async fn cancel(&self, executions: &[Uuid]) -> Result<Instant> {
        sqlx::query("UPDATE job_executions SET cancel_requested = true, reason = 'by hand' WHERE id = ANY ($1)")
            .bind(executions)
            .execute(&self.pool)
            .await?;
        let at = Instant::now();
        self.name(executions)?;
        Ok(at)
    }

    fn name(&self, executions: &[Uuid]) -> Result<()> {
        for execution in executions {
            self.redis.command(&["PUBLISH", "{carillon:0}:cancel", &execution.to_string()])?;
            self.redis.command(&["SADD", "{carillon:0}:cancelled", &execution.to_string()])?;
        }
        Ok(())
    }

    async fn status(&self, execution: Uuid) -> Result<String> {
        let status = sqlx::query_scalar("SELECT status FROM job_executions WHERE id = $1").bind(execution);
        Ok(status.fetch_one(&self.pool).await?)
    }

    async fn until_ended(&self, execution: Uuid, as_what: &str) -> Result<Instant> {
        wait_until("the execution to end", LIMIT, || async {
            let status = self.status(execution).await?;
            ensure!(status == as_what, "it is {status}");
            anyhow::Ok(Instant::now())
        })
        .await
    }

    async fn worker(&self, consumer: &str, seen_ago: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO workers (id, consumer, queues, slots, seen_at)
             VALUES (gen_random_uuid(), $1, '{default}', 1, now() - $2::text::interval)",
        )
        .bind(consumer)
        .bind(seen_ago)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Promise 5, and an entry less for each end.
    async fn end(self, entries: i64) -> Result<()> {
        let wrong: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM job_timers t JOIN job_stats s USING (job_id)
             WHERE t.claimed_count - s.finished_count <>
                 (SELECT count(*) FROM job_executions e WHERE e.job_id = t.job_id AND e.completed_at IS NULL)",
        )
        .fetch_one(&self.pool)
        .await?;
        assert_eq!(wrong, 0, "claimed - finished is what is open");
        wait_until("the entries of what has ended to be gone", LIMIT, || async {
            let length = self.redis.command(&["XLEN", STREAM])?.number();
            ensure!(length == Some(entries), "{length:?}");
            anyhow::Ok(())
        })
        .await?;
        self.stop.cancel();
        self.running.await?
    }
}

#[tokio::test]
async fn r17b_what_nobody_has_read_ends_at_once() -> Result<()> {
    let bench = Bench::start().await?;
    let executions = bench.published(3).await?;
    let withdrawn = "UPDATE job_executions SET withdrawn = true WHERE id = $1";
    sqlx::query(withdrawn).bind(executions[1]).execute(&bench.pool).await?;
    let asked = bench.cancel(&executions[..2]).await?;
    bench.until_ended(executions[0], "CANCELLED").await?;
    let ended = bench.until_ended(executions[1], "SKIPPED").await?;
    assert!(ended - asked < Duration::from_secs(10), "{:?}", ended - asked);
    let rows: Vec<(Option<String>, Option<Uuid>)> =
        sqlx::query_as("SELECT reason, worker_id FROM job_executions WHERE id = ANY ($1)")
            .bind(&executions[..2])
            .fetch_all(&bench.pool)
            .await?;
    assert_eq!(rows, vec![(Some("by hand".into()), None); 2], "the reason is kept, and nobody ran it");
    assert_eq!(bench.status(executions[2]).await?, "QUEUED");
    bench.end(1).await
}

/// Whoever requested it went away before it told anybody.
#[tokio::test]
async fn r17b_what_all_hints_have_missed_is_met_by_the_leaders_walk() -> Result<()> {
    let bench = Bench::start().await?;
    let executions = bench.published(2).await?;
    let request = "UPDATE job_executions SET cancel_requested = true, reason = 'by hand' WHERE id = $1";
    sqlx::query(request).bind(executions[1]).execute(&bench.pool).await?;
    bench.until_ended(executions[1], "CANCELLED").await?;
    assert_eq!(bench.status(executions[0]).await?, "QUEUED");
    bench.end(1).await
}

/// H19: the cancel is committed W ago and told nobody; somebody read the entry just now. It is not ended beside that one.
#[tokio::test]
async fn h19_what_somebody_alive_has_read_is_not_ended() -> Result<()> {
    let bench = Bench::start().await?;
    let executions = bench.published(2).await?;
    bench.worker("one-live", "0").await?;
    bench.read("one-live")?;
    // The second, published before a new certificate, ends W after it is asked about: by then the first would have ended.
    let before = bench.redis.command(&["HGET", CTL, "certified_at"])?.text().unwrap_or_default().to_owned();
    bench.redis.command(&["HDEL", CTL, "server"])?;
    bench.until_certified(&before).await?;
    bench.cancel(&executions).await?;
    bench.until_ended(executions[1], "CANCELLED").await?;
    assert_eq!(bench.status(executions[0]).await?, "QUEUED", "it is its holder's to end");
    bench.end(1).await
}

/// H110: an unread entry in a Redis that has forgotten may have been read before: somebody may have started it just now, and
/// then its RUNNING comes within W.
#[tokio::test]
async fn h110_what_is_unread_and_doubtful_ends_a_window_later_unless_it_runs() -> Result<()> {
    let bench = Bench::start().await?;
    let executions = bench.published(2).await?;
    let before = bench.redis.command(&["HGET", CTL, "certified_at"])?.text().unwrap_or_default().to_owned();
    bench.redis.command(&["HDEL", CTL, "server"])?;
    bench.until_certified(&before).await?;
    let asked = bench.cancel(&executions).await?;
    // The first one's reader of before writes RUNNING meanwhile.
    sqlx::query("UPDATE job_executions SET status = 'RUNNING', worker_id = gen_random_uuid() WHERE id = $1")
        .bind(executions[0])
        .execute(&bench.pool)
        .await?;
    let ended = bench.until_ended(executions[1], "CANCELLED").await?;
    assert!(ended - asked >= WINDOW, "{:?}", ended - asked);
    assert_eq!(bench.status(executions[0]).await?, "RUNNING");
    bench.end(1).await
}

/// H111: Redis' idle clock is stale after a failover; Postgres says that its holder lives. Of one that both have not heard of
/// for a lease it ends, W later.
#[tokio::test]
async fn h111_two_witnesses_must_agree_that_a_holder_is_lost() -> Result<()> {
    let bench = Bench::start().await?;
    let executions = bench.published(2).await?;
    bench.worker("one-live", "0").await?;
    sqlx::query("UPDATE workers SET seen_at = now() + interval '1 hour'").execute(&bench.pool).await?;
    bench.worker("two-dead", "1 hour").await?;
    for consumer in ["one-live", "two-dead"] {
        let id = bench.read(consumer)?;
        bench.redis.command(&["XCLAIM", STREAM, "executors", consumer, "0", &id, "IDLE", "600000", "JUSTID"])?;
    }
    let asked = bench.cancel(&executions).await?;
    let ended = bench.until_ended(executions[1], "CANCELLED").await?;
    assert!(ended - asked >= WINDOW, "{:?}", ended - asked);
    assert_eq!(bench.status(executions[0]).await?, "QUEUED", "idle in Redis, alive in Postgres");
    bench.end(1).await
}

/// R18a: of a released one nobody can start anything but by a take, which the end's guard refuses to overrule.
#[tokio::test]
async fn r17b_what_was_released_ends_whoever_holds_its_entry() -> Result<()> {
    let bench = Bench::start().await?;
    let executions = bench.published(2).await?;
    for _ in 0..2 {
        bench.read("released")?;
    }
    sqlx::query("UPDATE job_executions SET take = 1 WHERE id = $1").bind(executions[0]).execute(&bench.pool).await?;
    bench.cancel(&executions).await?;
    bench.until_ended(executions[0], "CANCELLED").await?;
    assert_eq!(bench.status(executions[1]).await?, "QUEUED", "not released: somebody may be about to check it");
    bench.end(1).await
}

/// Its entry is deleted, and somebody holds what its end would touch: the end is written as soon as that one is gone, not once
/// the leader has published it again.
#[tokio::test]
async fn r17b_an_end_that_a_lock_keeps_from_being_written_is_written_once_the_lock_is_gone() -> Result<()> {
    let bench = Bench::start().await?;
    let executions = bench.published(1).await?;
    let mut stranger = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_stats FOR UPDATE").execute(&mut *stranger).await?;
    bench.cancel(&executions).await?;
    wait_until("its entry to be deleted", LIMIT, || async {
        let length = bench.redis.command(&["XLEN", STREAM])?.number();
        ensure!(length == Some(0), "{length:?}");
        anyhow::Ok(())
    })
    .await?;
    let gone = Instant::now();
    stranger.rollback().await?;
    let ended = bench.until_ended(executions[0], "CANCELLED").await?;
    // The leader's walk comes after ten seconds, and then a window is to be waited for.
    assert!(ended - gone < Duration::from_secs(5), "{:?}", ended - gone);
    bench.end(0).await
}

/// A page of names of one stream that Redis refuses was asked about again and again, and nothing behind it was.
#[tokio::test]
async fn r17b_a_stream_that_cannot_be_asked_keeps_no_other_from_its_end() -> Result<()> {
    const STUCK_EACH: i32 = 1_000;
    // All but that of the queue `stuck`.
    const ALLOWED: [&str; 4] = ["~*:v1:default:*", "~*:ctl", "~*:streams", "~*:cancelled"];
    // All tasks of this test are on this thread.
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let bench = Bench::start().await?;
    let executions = bench.published(6).await?;
    bench.redis.command(&[["ACL", "SETUSER", "default", "resetkeys"].as_slice(), &ALLOWED].concat())?;
    let jobs: Vec<Uuid> = sqlx::query_scalar(
        "WITH opened AS (
             INSERT INTO job_executions (shard, id, job_id, claim, entry, seq, queue, status, scheduled_at, cancel_requested)
             SELECT 0, gen_random_uuid(), job_id, entry, entry, 1000 + n, 'stuck', 'QUEUED', now(), true
             FROM job_executions, generate_series(1, $1) n RETURNING job_id
         )
         UPDATE job_timers SET claimed_count = claimed_count + $1 WHERE job_id IN (SELECT job_id FROM opened) RETURNING job_id",
    )
    .bind(STUCK_EACH)
    .fetch_all(&bench.pool)
    .await?;
    // Ids of now, as those of fires are.
    sqlx::query(
        "UPDATE job_executions SET id = (lpad(to_hex($1), 12, '0') || substr(replace(id::text, '-', ''), 13))::uuid
         WHERE queue = 'stuck'",
    )
    .bind(Utc::now().timestamp_millis())
    .execute(&bench.pool)
    .await?;
    for job in &jobs {
        bench.redis.command(&["PUBLISH", "{carillon:0}:jobs", &job.to_string()])?;
    }
    wait_until("all of it to be named, or the stream to be let be", LIMIT, || async {
        let refused = recorder.handle().render().contains("carillon_dispatcher_streams_refused_total 1");
        let errors = bench.redis.command(&["INFO", "errorstats"])?.text().unwrap_or_default().to_owned();
        let errors = errors.split("errorstat_NOPERM:count=").nth(1).and_then(|rest| rest.lines().next());
        let errors: usize = errors.unwrap_or("0").trim().parse()?;
        ensure!(refused || errors > jobs.len(), "{errors}");
        anyhow::Ok(())
    })
    .await?;
    bench.cancel(&executions).await?;
    for execution in &executions {
        bench.until_ended(*execution, "CANCELLED").await?;
    }
    let open: i64 =
        sqlx::query_scalar("SELECT count(*) FROM job_executions WHERE queue = 'stuck' AND status = 'QUEUED'")
            .fetch_one(&bench.pool)
            .await?;
    assert_eq!(open, 6 * i64::from(STUCK_EACH));
    bench.end(0).await
}
