//! A leader in this process, on a Postgres and a Redis of its own and without executors: what it publishes, and when.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_core::ids;
use carillon_core::schedule::{Exclusion, TimetableSpec};
use carillon_dispatcher::config::DispatcherConfig;
use carillon_kit::Process;
use carillon_kit::config::ProtocolConfig;
use carillon_store::triggers::{self, NewTrigger};
use carillon_store::{Store, StoreOptions, revisions};
use carillon_testkit::{Database, Proxy, Redis, wait_until};
use chrono::{DateTime, Datelike as _, SubsecRound as _, TimeDelta, Timelike as _, Utc};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Short, and longer than any test leaves a stream empty that is to stay.
const STREAM_UNUSED: Duration = Duration::from_secs(5);
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
        let redis = Redis::start().await?;
        let url = redis.url();
        Self::start_with(redis, &url, batch_max, stream_entries_max).await
    }

    /// One that reaches its Redis by `redis_url`.
    async fn start_with(redis: Redis, redis_url: &str, batch_max: u32, stream_entries_max: u32) -> Result<Self> {
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

    async fn until_certified(&self) -> Result<Instant> {
        self.until("a certificate", || Ok(self.redis.command(&["HGET", CTL, "server"])?.text().is_some())).await
    }

    /// From the certificate of an emptied Redis until it holds `count` entries again.
    async fn back_after(&self, count: i64) -> Result<Duration> {
        let certified = self.until_certified().await?;
        let back = self.until("the entries again", || Ok(self.length()? == count)).await?;
        Ok(back - certified)
    }

    /// One-time jobs that may overlap themselves; the first one's id.
    async fn jobs(&self, count: usize, at: DateTime<Utc>) -> Result<Uuid> {
        self.spread_jobs(count, at, 0).await
    }

    /// As [`Leader::jobs`], each due `apart_ms` after the one before.
    async fn spread_jobs(&self, count: usize, at: DateTime<Utc>, apart_ms: i64) -> Result<Uuid> {
        self.insert_jobs(count, at, apart_ms, "default", &TimetableSpec::once(at)).await
    }

    /// At once with all that is said of them: what is due is claimed as soon as it is there.
    async fn insert_jobs(
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

    fn wake(&self) -> Result<()> {
        self.redis.command(&["PUBLISH", "{carillon:0}:wake", "look"]).map(|_| ())
    }

    fn length(&self) -> Result<i64> {
        self.redis.command(&["XLEN", STREAM])?.number().context("no number")
    }

    async fn count(&self, what: &'static str) -> Result<i64> {
        let statement = format!("SELECT count(*) FROM {what}");
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.pool).await?)
    }

    /// Waits until a count is as it should be.
    async fn until_count(&self, what: &'static str, is_right: impl Fn(i64) -> bool) -> Result<()> {
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
    async fn old_batches(&self, count: i64) -> Result<()> {
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

    fn term(&self) -> Result<i64> {
        self.redis.command(&["HGET", CTL, "term"])?.text().context("no term")?.parse().context("no number")
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
    let took = leader.back_after(3).await?;
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

/// S1: fires that are spread over time share batches.
#[tokio::test]
async fn spread_fires_are_few_batches() -> Result<()> {
    let leader = Leader::start(1_000, 20_000).await?;
    // 300 a second, for two seconds.
    leader.spread_jobs(600, in_ms(1_500), 3).await?;
    leader.wake()?;
    leader.until_count("job_executions", |count| count == 600).await?;
    let batches = leader.count("dispatch_batches").await?;
    assert!(batches <= 45, "{batches} batches of two seconds");
    let late: i64 = leader
        .count(
            "job_executions e JOIN dispatch_batches b ON b.number = e.claim
                                  WHERE b.claimed_at > e.scheduled_at - interval '50 ms'",
        )
        .await?;
    // A machine that has other things to do may make some late, not most.
    assert!(late < 300, "{late} of 600 were not claimed ahead");
    leader.end().await
}

/// S1: forgetting keeps pace with claiming, and what is left behind is caught up with.
#[tokio::test]
async fn settled_batches_of_which_nothing_is_open_are_forgotten() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.old_batches(20_000).await?;
    // The newest row stays for ever.
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until_count("dispatch_batches", |count| count == 1).await?;
    leader.end().await
}

/// However much there is to look through, fires go on meanwhile, and what was lost last is back first.
#[tokio::test]
async fn r19_claims_go_on_between_the_pages_of_a_pass() -> Result<()> {
    const OLD: i64 = 60_000;
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    // None of them is forgotten before the pass comes to it.
    sqlx::query("CREATE RULE keep AS ON DELETE TO dispatch_batches DO INSTEAD NOTHING").execute(&leader.pool).await?;
    leader.old_batches(OLD).await?;
    let due = in_ms(1_000);
    leader.jobs(1, due).await?;
    leader.wake()?;
    leader.redis.flush_all()?;
    let took = leader.back_after(4).await?;
    assert!(took < Duration::from_secs(2), "{took:?} after the certificate");
    leader.end().await
}

/// S4: the row of an execution is locked by somebody who does not end, and Redis is wiped.
#[tokio::test]
async fn a_foreign_lock_holds_up_its_own_execution_only() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    let term = leader.term()?;
    let mut foreign = leader.pool.begin().await?;
    sqlx::query("SELECT FROM job_executions LIMIT 1 FOR UPDATE").execute(&mut *foreign).await?;
    leader.redis.flush_all()?;
    leader.until("the two others", || Ok(leader.length()? == 2)).await?;
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until("a new one", || Ok(leader.length()? == 3)).await?;
    foreign.rollback().await?;
    leader.until("all of them", || Ok(leader.length()? == 4)).await?;
    assert_eq!(leader.term()?, term, "the term went on");
    leader.end().await
}

/// Whoever pauses or ends a job locks its timer for a moment. A claim passes over it, and looks again; the safety net of this
/// leader is a minute away.
#[tokio::test]
async fn what_was_locked_for_a_moment_is_claimed_a_moment_later() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let job = leader.jobs(2, in_ms(1_000)).await?;
    leader.wake()?;
    let mut foreign = leader.pool.begin().await?;
    sqlx::query("SELECT FROM job_timers WHERE job_id = $1 FOR UPDATE").bind(job).execute(&mut *foreign).await?;
    leader.until("the other one", || Ok(leader.length()? == 1)).await?;
    foreign.rollback().await?;
    let released = Instant::now();
    let there = leader.until("both", || Ok(leader.length()? == 2)).await?;
    let took = there.saturating_duration_since(released);
    assert!(took < Duration::from_secs(2), "{took:?} after it was let go of");
    leader.end().await
}

/// R19: a batch that is over stands, locked by somebody, on the page of three that Redis has lost. The page was refused whole.
#[tokio::test]
async fn a_locked_batch_keeps_no_other_of_its_page_from_being_published_again() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.old_batches(1).await?;
    let mut foreign = leader.pool.begin().await?;
    let locked: Vec<i64> =
        sqlx::query_scalar("SELECT number FROM dispatch_batches FOR UPDATE").fetch_all(&mut *foreign).await?;
    ensure!(locked.len() == 1, "it is gone already");
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    leader.redis.flush_all()?;
    let took = leader.back_after(3).await?;
    // The ordinary walk comes to them ten seconds after they were claimed.
    assert!(took < Duration::from_secs(4), "{took:?} after the certificate");
    foreign.rollback().await?;
    leader.until_count("dispatch_batches", |count| count == 1).await?;
    leader.end().await
}

/// R7: a batch that was overtaken is looked up by itself, without a pass over all others.
#[tokio::test]
async fn what_was_passed_over_is_published_again_at_once() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until("an entry", || Ok(leader.length()? == 1)).await?;
    // As if somebody had appended a later batch.
    let ahead = (Utc::now() + TimeDelta::seconds(20)).timestamp_millis();
    sqlx::query("INSERT INTO dispatch_batches (shard, number, term, ids, settled_at) VALUES (0, $1, 1, '{}', now())")
        .bind(ahead)
        .execute(&leader.pool)
        .await?;
    leader.redis.command(&["HSET", CTL, "last", &ahead.to_string(), "doubt", &ahead.to_string()])?;
    leader.jobs(2, in_ms(0)).await?;
    leader.wake()?;
    leader
        .until_count("dispatch_batches WHERE settled_at IS NOT NULL AND cardinality(ids) = 2", |count| count >= 1)
        .await?;
    leader.end().await
}

/// S6, R2: who cannot reach Redis gives the lock back, and leads again once it answers.
#[tokio::test]
async fn r2_without_redis_nobody_leads() -> Result<()> {
    const LOCKS: &str = "pg_locks WHERE locktype = 'advisory' AND granted
                         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let redis = Redis::start().await?;
    let proxy = Proxy::to(redis.port())?;
    let url = redis.url_through(proxy.port());
    let leader = Leader::start_with(redis, &url, 100, 1_000).await?;
    leader.until_count(LOCKS, |locks| locks == 1).await?;
    let silent = Instant::now();
    proxy.silence();
    leader.until_count(LOCKS, |locks| locks == 0).await?;
    let took = silent.elapsed();
    assert!(took > Duration::from_secs(2), "after {took:?}: a moment without an answer is no reason");
    leader.jobs(1, in_ms(0)).await?;
    proxy.heal();
    leader.until_count(LOCKS, |locks| locks == 1).await?;
    leader.until("its entry", || Ok(leader.length()? == 1)).await?;
    leader.end().await
}

impl Leader {
    /// Changes the timers that have something to come by hand: `set` is what stands after SET.
    async fn change_timers(&self, set: &'static str) -> Result<()> {
        let statement = format!("UPDATE job_timers SET {set} WHERE fire_at IS NOT NULL");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&self.pool).await?;
        Ok(())
    }

    /// Jobs that are due at `at` by a timetable of their own.
    async fn timetabled_jobs(&self, count: usize, at: DateTime<Utc>, timetable: &TimetableSpec) -> Result<()> {
        self.insert_jobs(count, at, 0, "default", timetable).await.map(|_| ())
    }

    /// How long it takes until the fire of a job that is created now, and due now, is in the stream of a queue of its own.
    async fn beside(&self, queue: &str) -> Result<Duration> {
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
}

/// What an ordinary job may have to wait for beside poison; the machine may be slow.
const BESIDE_MAX: Duration = Duration::from_secs(3);

/// Item 5: timetables made to cost something, after an outage of an hour.
#[tokio::test]
async fn dear_timetables_hold_up_no_other_job() -> Result<()> {
    const DEAR: usize = 20;
    let leader = Leader::start(100, 20_000).await?;
    // Ten a second, of which two zones leave none but in the month that is furthest off, the last one.
    let due = in_ms(-3_600_000);
    let last = (Utc::now().month() + 10) % 12 + 1;
    let closed: Vec<String> = (1..=12).filter(|month| *month != last).map(|month| month.to_string()).collect();
    let closed = closed.join(",");
    let mut dear = TimetableSpec::every(Duration::from_millis(100), due);
    dear.exclusions = vec![
        Exclusion::cron(format!("*/2 * * {closed} *")),
        Exclusion::cron(format!("1-59/2 * * {closed} *")).in_timezone("Asia/Tokyo"),
    ];
    leader.timetabled_jobs(DEAR, due, &dear).await?;
    leader.wake()?;
    let term = leader.term()?;
    for queue in ["first", "second", "third"] {
        let took = leader.beside(queue).await?;
        assert!(took < BESIDE_MAX, "{took:?} beside {DEAR} dear timetables");
    }
    // A calendar of the ordinary kind is searched beside the claims too, and fires.
    let soon = in_ms(300);
    let mut calendar = TimetableSpec::every(Duration::from_secs(3_600), soon);
    calendar.exclusions = vec![Exclusion::date("2020-12-25".parse()?)];
    let before = leader.count("job_executions").await?;
    leader.timetabled_jobs(5, soon, &calendar).await?;
    leader.wake()?;
    leader
        .until_count(
            "job_executions e JOIN job_timers t USING (job_id) WHERE t.fire_at > now() + interval '50 minutes'",
            |fired| fired == 5,
        )
        .await?;
    assert!(leader.count("job_executions").await? >= before + 5);
    assert_eq!(leader.term()?, term, "it stayed in office");
    leader.end().await
}

/// Item 5: whoever exceeds the time that a claim has is set aside where it is seen, and fires all the same.
#[tokio::test]
async fn what_is_set_aside_for_its_timetable_is_seen_and_fires() -> Result<()> {
    const DEAR: i64 = 5;
    // All tasks of this test are on this thread.
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let leader = Leader::start(100, 20_000).await?;
    // Daily, but for all days except today's, behind 998 exclusions of other hours: a thousand looks for each day of a month.
    let due = in_ms(0);
    let mut dear = TimetableSpec::every(DAY + Duration::from_secs(1), due);
    let other = |n: u32| format!("{} {} * * *", n % 60, (due.hour() + 2 + n / 60) % 24);
    let days: Vec<String> = (1..=31).filter(|day| *day != due.day()).map(|day| day.to_string()).collect();
    dear.exclusions = (0..998).map(|n| Exclusion::cron(other(n))).collect();
    dear.exclusions.push(Exclusion::cron(format!("* * {} * *", days.join(","))));
    leader.timetabled_jobs(usize::try_from(DEAR)?, due, &dear).await?;
    leader.wake()?;
    leader.until_count("job_executions", |fired| fired == DEAR).await?;
    leader.until_count("job_timers WHERE fire_at > now() + interval '27 days'", |moved| moved == DEAR).await?;
    let text = recorder.handle().render();
    assert!(text.contains("carillon_dispatcher_set_aside_total 5"), "{text}");
    leader
        .until("nothing to wait any more", || {
            Ok(recorder.handle().render().contains("carillon_dispatcher_searches_waiting 0"))
        })
        .await?;
    leader.end().await
}

impl Leader {
    /// Writes a definition as a newer version might: `shape` is laid over what the job has, or is all there is. Tells of it.
    async fn revise(&self, job: Uuid, shape: &str) -> Result<i64> {
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
}

/// Item 12: nothing fires by a definition that was superseded, though the leader knows it well and cannot read the new one.
#[tokio::test]
async fn an_unreadable_new_revision_stops_the_old_one() -> Result<()> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let leader = Leader::start(100, 20_000).await?;
    let due = in_ms(300);
    let often = TimetableSpec::every(Duration::from_millis(200), due);
    let job = leader.insert_jobs(1, due, 0, "default", &often).await?;
    leader.wake()?;
    leader.until_count("job_executions WHERE revision = 1", |fired| fired >= 3).await?;
    let term = leader.term()?;
    let set_aside = || {
        let text = recorder.handle().render();
        let count = text.lines().find_map(|line| line.strip_prefix("carillon_dispatcher_set_aside_total "));
        count.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    for broken in [r#"{"timetable": {"specs": [{"moon": "full"}]}}"#, r#"{"handler_name": null}"#, "[]"] {
        let before = set_aside();
        leader.revise(job, broken).await?;
        leader.until("it to be set aside", || Ok(set_aside() > before)).await?;
        let fired = leader.count("job_executions WHERE queue = 'default'").await?;
        let took = leader.beside("beside").await?;
        assert!(took < BESIDE_MAX, "{took:?} beside a job that cannot be read");
        leader.work_off("beside").await?;
        // Five instants pass.
        leader.until_count("job_timers WHERE fire_at < now() - interval '1 s'", |stands| stands == 1).await?;
        assert_eq!(leader.count("job_executions WHERE queue = 'default'").await?, fired, "by {broken}");
        // `jobs` has the good one still.
        let revision = leader.revise(job, "{}").await?;
        wait_until("it to fire again", LIMIT, || async {
            let by = "SELECT count(*) FROM job_executions WHERE job_id = $1 AND revision = $2";
            let by: i64 = sqlx::query_scalar(by).bind(job).bind(revision).fetch_one(&leader.pool).await?;
            ensure!(by > 0, "it does not");
            anyhow::Ok(())
        })
        .await?;
    }
    assert_eq!(leader.term()?, term, "it stayed in office");
    leader.end().await
}

/// Item 5: more due lines than a batch has rows.
#[tokio::test]
async fn many_due_queues_share_the_batches() -> Result<()> {
    const QUEUES: i64 = 2_000;
    let leader = Leader::start(100, 20_000).await?;
    leader.jobs(usize::try_from(2 * QUEUES)?, in_ms(1_000)).await?;
    leader.change_timers("queue = 'q' || abs(hashtext(job_id::text)) % 2000").await?;
    leader.wake()?;
    leader.until_count("job_executions", |claimed| claimed > 300).await?;
    let took = leader.beside("beside").await?;
    assert!(took < BESIDE_MAX, "{took:?} beside {QUEUES} due queues");
    leader.until_count("job_executions", |claimed| claimed == 2 * QUEUES + 1).await?;
    let largest: i32 =
        sqlx::query_scalar("SELECT max(cardinality(ids)) FROM dispatch_batches").fetch_one(&leader.pool).await?;
    assert!(largest <= 100, "{largest} in one batch");
    leader.end().await
}

/// Item 5: fires that their predecessors hold back until their instant, and are skipped then.
#[tokio::test]
async fn executions_held_back_by_overlap_hold_up_no_other_job() -> Result<()> {
    const HELD: usize = 5_000;
    let leader = Leader::start(1_000, 20_000).await?;
    let due = in_ms(2_500);
    leader.jobs(HELD, due).await?;
    sqlx::query("UPDATE job_revisions SET definition = definition || '{\"allow_overlap\": false, \"concurrency\": 1}'")
        .execute(&leader.pool)
        .await?;
    leader.change_timers("claimed_count = 1").await?;
    leader.wake()?;
    // They are looked at from 500 ms before their instant on.
    for queue in ["first", "second", "third"] {
        let took = leader.beside(queue).await?;
        assert!(took < BESIDE_MAX, "{took:?} beside {HELD} that are held back");
    }
    leader.until_count("job_executions WHERE status = 'SKIPPED'", |skipped| skipped == 5_000).await?;
    let took = leader.beside("after").await?;
    assert!(took < BESIDE_MAX, "{took:?}");
    leader.end().await
}

fn stream_of(queue: &str) -> String {
    format!("{{carillon:0}}:v1:{queue}:MEDIUM")
}

impl Leader {
    fn exists(&self, queue: &str) -> Result<bool> {
        Ok(self.redis.command(&["EXISTS", &stream_of(queue)])?.number() == Some(1))
    }

    /// As an executor: reads all that is in the stream of `queue`, and acknowledges it.
    async fn work_off(&self, queue: &str) -> Result<()> {
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

/// Item 5: a queue's name that was used once does not keep a stream for ever.
#[tokio::test]
async fn a_stream_that_is_empty_for_long_and_served_by_nobody_leaves_and_comes_again() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    for queue in ["brief", "served", "waiting"] {
        leader.beside(queue).await?;
    }
    leader.work_off("brief").await?;
    leader.work_off("served").await?;
    // As if its executor had spoken to nobody for an hour.
    leader.redis.command(&["XGROUP", "DELCONSUMER", &stream_of("brief"), "executors", "one"])?;
    leader.until("its leaving", || Ok(!leader.exists("brief")?)).await?;
    // Those that are kept are asked after as often.
    let seen = Instant::now();
    let kept = || {
        ensure!(leader.exists("served")?, "one that is served has left");
        ensure!(leader.exists("waiting")?, "one that holds something has left");
        Ok(seen.elapsed() > STREAM_UNUSED / 2)
    };
    leader.until("nothing else to leave", kept).await?;
    leader.beside("brief").await?;
    leader.end().await
}

/// Item 5: by construction within what one publish takes, however large the payloads that travel.
#[tokio::test]
async fn batches_fit_into_a_publish_by_their_bytes() -> Result<()> {
    const JOBS: usize = 4_000;
    let leader = Leader::start(5_000, 20_000).await?;
    let term = leader.term()?;
    // Far enough off that all of it is there, and large, by then; 16 MB together, of which a publish takes 8.
    let due = in_ms(12_000);
    leader.jobs(JOBS, due).await?;
    sqlx::query(
        "UPDATE job_revisions SET definition = jsonb_set(definition, '{payload}', jsonb_build_object('of', repeat('x', 4000)))",
    )
    .execute(&leader.pool)
    .await?;
    leader.wake()?;
    leader.until("all entries", || Ok(leader.length()? == i64::try_from(JOBS)?)).await?;
    // Once more, since then it knows them all: what it had to read for a claim bounded the claims before by its time.
    let again = in_ms(3_000);
    sqlx::query("UPDATE job_timers SET fire_at = $1, exhausted = false").bind(again).execute(&leader.pool).await?;
    leader.wake()?;
    leader.until("all entries of both", || Ok(leader.length()? == i64::try_from(2 * JOBS)?)).await?;
    assert_eq!(leader.count("job_executions WHERE entry <> claim").await?, 0, "each was sent with its batch");
    let sizes: Vec<i64> =
        sqlx::query_scalar("SELECT count(*) FROM job_executions WHERE scheduled_at = $1 GROUP BY claim ORDER BY claim")
            .bind(again)
            .fetch_all(&leader.pool)
            .await?;
    let fits = sizes.first().copied().context("none")?;
    assert!((1_000..2_000).contains(&fits), "as many as fit: {sizes:?}");
    assert!(sizes.iter().all(|size| *size <= fits), "{sizes:?}");
    // What is published again fits too.
    leader.redis.flush_all()?;
    leader.until("all entries again", || Ok(leader.length()? == i64::try_from(2 * JOBS)?)).await?;
    assert_eq!(leader.term()?, term, "it stayed in office");
    leader.end().await
}

/// Item 5: payloads of triggers are copied by the claim; one claim copies so many bytes, whatever falls due at once.
#[tokio::test]
async fn large_triggers_are_claimed_a_few_megabytes_at_a_time() -> Result<()> {
    const TRIGGERS: i64 = 60;
    let leader = Leader::start(1_000, 20_000).await?;
    let later = leader.jobs(1, in_ms(1_000_000)).await?;
    // At once, as none may be claimed before all are there; no compression makes it much smaller.
    let now = Utc::now();
    let triggers = (0..TRIGGERS).map(|n| ids::execution_for_trigger(later, &n.to_string(), now));
    sqlx::query(
        "WITH noise AS MATERIALIZED (SELECT string_agg(md5(n::text), '') AS text FROM generate_series(1, 8000) n)
         INSERT INTO job_triggers (execution_id, job_id, shard, fire_at, queue, priority, payload)
         SELECT e.id, t.job_id, t.shard, now(), t.queue, t.priority, to_jsonb(noise.text)
         FROM noise, job_timers t, UNNEST($2::uuid[]) AS e(id) WHERE t.job_id = $1",
    )
    .bind(later)
    .bind(triggers.collect::<Vec<_>>())
    .execute(&leader.pool)
    .await?;
    leader.wake()?;
    leader.until_count("job_executions", |claimed| claimed == TRIGGERS).await?;
    let (most, together): (i64, i64) = sqlx::query_as(
        "SELECT max(bytes)::bigint, sum(bytes)::bigint
         FROM (SELECT sum(pg_column_size(payload)) AS bytes FROM job_executions GROUP BY claim) claims",
    )
    .fetch_one(&leader.pool)
    .await?;
    assert!(together > 8 << 20, "{together} bytes together");
    assert!(most <= 2 << 20, "{most} bytes by one claim");
    leader.end().await
}
