//! Whether recovery grows with the age of an installation: with many settled batches, ended and open executions, how long until
//! the next claim is published after Redis was emptied, restarted or failed over, after the leader was killed, and after Redis has
//! passed a batch by (PASSED).
//!
//! The age is written: rows of history as the product leaves them, batches of ten of them each, which the leader forgets as it
//! goes, so that they are written anew before each fault; and open executions that were claimed and published in earnest, in
//! queues that nobody serves. Beside them some fires a second go on. When the leader's connection has its first answer cannot
//! be seen from outside; taken for it is, of a wipe the answer to FLUSHALL, of a restart the first answer of Redis to anybody,
//! of a failover the moment at which the lines lead to the new master, of a killed leader the one at which another session holds
//! the lock. The next claim is published when the stream of the fires that go on has an entry that is newer. A batch is passed by
//! because the certificate is told of one that was published later than any that the leader draws for a while.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_stream::keys::Keys;
use carillon_testkit::RespClient;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::asked::{Asked, Figures};
use crate::days;
use crate::fleet::{Fleet, Role};
use crate::jobs::{self, Job, PAYLOAD};
use crate::load;
use crate::options::{Age, Plan};
use crate::product::{Binaries, Watch};
use crate::report::{Report, progress};
use crate::servers::{Database, Servers};

const NAMESPACE: &str = "age";
/// Fires that go on.
const PER_S: u32 = 200;
/// Seconds of them before a fault, and after.
const BEFORE: u32 = 2;
const AFTER: u32 = 12;
/// Queues of the open executions: fewer than a stream may hold in each.
const QUEUES: usize = 10;
/// Rows of one INSERT.
const AT_ONCE: u32 = 200_000;
const PUBLISHED_MAX: Duration = Duration::from_secs(10);
const THERE_MAX: Duration = Duration::from_secs(180);
const END_MAX: Duration = Duration::from_secs(60);
/// First half of the key of the leader's advisory lock (R2).
const LOCK_SPACE: i64 = 0x0CA_2111;
const LOOK_EACH: Duration = Duration::from_millis(1);

/// So much later than now is the batch that the certificate is told of: the next claim or two are passed by.
const PASSED_MS: i64 = 100;

/// Starts later than this are explained.
const VERY_LATE_S: f64 = 3.0;

/// What was asked for, in milliseconds.
const PUBLISHED: Asked = Asked::AtMost(500.0);
/// Entries a second that are back after Redis was emptied.
const BACK_PER_S: f64 = 10_000.0;

/// The id of the `n`th ended execution, of `$1` + `$2` milliseconds each. One function for the rows and for the batches that
/// name them.
const ID: &str = "
CREATE FUNCTION bench_id(began timestamptz, step_us bigint, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(((extract(epoch FROM began) * 1000)::bigint + n * step_us / 1000)), 12, '0') || '8'
            || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid
$$";

/// `$3` rows from number `$4` on, ten to a batch.
const HISTORY: &str = "
INSERT INTO job_executions (shard, id, job_id, claim, entry, seq, attempt, max_retries, status, scheduled_at, started_at,
                            completed_at, duration_ms, worker_id, result)
SELECT 0, bench_id($1, $2, n), ($5::uuid[])[1 + n % cardinality($5::uuid[])], $6 + n / 10, $6 + n / 10, 1 + n % 10, 1, 3,
       'SUCCESS', at, at, at, 0, $7, $8::jsonb
FROM (SELECT n, $1::timestamptz + n * $2 * interval '1 microsecond' AS at
      FROM generate_series($4::bigint, $4::bigint + $3::bigint - 1) AS n) h
ON CONFLICT DO NOTHING";

/// Batch `n / 10` of these, as long as there are rows for it; the rest name the same rows once more.
const BATCHES: &str = "
INSERT INTO dispatch_batches (shard, number, term, ids, claimed_at, settled_at)
SELECT 0, $4 + b, 1, (SELECT array_agg(bench_id($1, $2, (b * 10 + n) % $3)) FROM generate_series(0, 9) AS n), $1, $1
FROM generate_series(0, $5::bigint - 1) AS b
ON CONFLICT DO NOTHING";

struct Old {
    servers: Servers,
    database: Database,
    fleet: Fleet,
    age: Age,
    began: DateTime<Utc>,
    step_us: i64,
    streams: Vec<String>,
}

/// Measures, and adds to `report`. Servers of its own: one of them is killed.
///
/// # Errors
/// If something of it fails.
pub async fn run(binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let servers = Servers::start(false).await?;
    if plan.wants_row(days::ROW) {
        days::measure(&servers, &mut report.figures).await?;
    }
    let faults: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| plan.wants_row(fault.row())).collect();
    if faults.is_empty() {
        return Ok(());
    }
    let database = servers.database("age").await?;
    let fleet = Fleet::new(&servers, binaries, &database, NAMESPACE, plan).await?;
    // Of today's hours, so that they lie where today's rows are.
    let now = jobs::now(&database.pool).await?;
    let until = now - TimeDelta::minutes(1);
    let midnight = now.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    let began = midnight.min(until - TimeDelta::minutes(10));
    let step_us = (until - began).num_microseconds().context("a day")? / i64::from(plan.age.executions);
    let mut old = Old { servers, database, fleet, age: plan.age, began, step_us, streams: Vec::new() };
    old.history().await?;
    for role in [Role::Dispatcher, Role::Dispatcher, Role::Executor] {
        old.fleet.add_with_lines(role)?;
    }
    old.fleet.ready().await?;
    old.open().await?;
    for fault in faults {
        old.measure(fault, &mut report.figures).await?;
    }
    old.fleet.end().await;
    old.database.pool.close().await;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Wipe,
    Restart,
    Killed,
    Passed,
    Failover,
}

impl Fault {
    /// The last one leaves a Redis elsewhere.
    const ALL: [Self; 5] = [Self::Wipe, Self::Restart, Self::Killed, Self::Passed, Self::Failover];

    const fn row(self) -> &'static str {
        match self {
            Self::Wipe => "Redis emptied",
            Self::Restart => "Redis restarted",
            Self::Killed => "leader killed",
            Self::Passed => "a batch passed by",
            Self::Failover => "Redis failed over",
        }
    }
}

impl Old {
    async fn history(&self) -> Result<()> {
        let pool = &self.database.pool;
        sqlx::raw_sql(ID).execute(pool).await?;
        let jobs = jobs::new_ids(1_000, self.began);
        let written: Vec<Job> = jobs.iter().map(|id| Job::released_by_hand(*id)).collect();
        jobs::insert(pool, 0, &written, |_| {}).await?;
        let mut done = 0;
        let mut told = Instant::now();
        progress(&format!("age: writing {} ended executions", self.age.executions));
        while done < self.age.executions {
            let rows = AT_ONCE.min(self.age.executions - done);
            let insert = sqlx::query(HISTORY).bind(self.began).bind(self.step_us).bind(i64::from(rows));
            let insert = insert.bind(i64::from(done)).bind(&jobs).bind(self.first_batch()).bind(Uuid::from_u128(8));
            insert.bind(PAYLOAD).execute(pool).await?;
            done += rows;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                progress(&format!("age: {done} of {} are written", self.age.executions));
            }
        }
        sqlx::raw_sql("VACUUM (ANALYZE) job_executions").execute(pool).await?;
        Ok(())
    }

    /// Older than any number that the leader draws.
    fn first_batch(&self) -> i64 {
        self.began.timestamp_millis() - i64::from(self.age.batches)
    }

    /// Claimed and published, and read by nobody.
    async fn open(&mut self) -> Result<()> {
        let pool = &self.database.pool;
        progress(&format!("age: {} open executions", self.age.open));
        let lines: Vec<Line> = (0..QUEUES).map(|n| Line::new(format!("unserved-{n}"), Priority::Medium)).collect();
        self.streams = lines.iter().map(|line| Keys::new(NAMESPACE, 0).stream(line)).collect();
        let now = jobs::now(pool).await?;
        let count = usize::try_from(self.age.open)?;
        let ids = jobs::new_ids(count, now).into_iter().zip(lines.iter().cycle());
        let waiting: Vec<Job> = ids.map(|(id, line)| Job::once(id, now).of_queue(line.queue.clone())).collect();
        jobs::insert(pool, 0, &waiting, |_| {}).await?;
        self.fleet.redis.wake().await?;
        self.all_there().await
    }

    /// Waits until Redis holds all that is open.
    async fn all_there(&self) -> Result<()> {
        let mut redis = self.servers.redis_client()?;
        let deadline = Instant::now() + THERE_MAX;
        loop {
            let mut there = 0;
            for stream in &self.streams {
                there += redis.command(&["XLEN", stream])?.number().unwrap_or_default();
            }
            if there >= i64::from(self.age.open) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{there} of {} entries\n{}", self.age.open, self.fleet.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn measure(&mut self, fault: Fault, figures: &mut Figures) -> Result<()> {
        let pool = self.database.pool.clone();
        self.fleet.ready().await?;
        self.all_there().await?;
        progress(&format!("age: {fault:?}: writing {} settled batches", self.age.batches));
        let insert = sqlx::query(BATCHES).bind(self.began).bind(self.step_us).bind(i64::from(self.age.executions));
        insert.bind(self.first_batch()).bind(i64::from(self.age.batches)).execute(&pool).await?;
        let (jobs, first) = load::spread(&pool, &self.fleet.redis, PER_S, BEFORE + AFTER).await?;
        let leader = self.fleet.leader().await?;
        load::until(&pool, first + TimeDelta::seconds(i64::from(BEFORE))).await?;
        let batches: i64 = sqlx::query_scalar("SELECT count(*) FROM dispatch_batches").fetch_one(&pool).await?;
        progress(&format!("age: {fault:?}"));
        let began = Instant::now();
        let published = match fault {
            Fault::Wipe => self.wipe()?,
            Fault::Restart => self.restart().await?,
            Fault::Killed => self.kill(&leader).await?,
            Fault::Passed => self.pass_by().await?,
            Fault::Failover => self.fail_over().await?,
        };
        let back = tokio::spawn(back(self.servers.redis_port(), self.streams.clone(), self.age.open));
        load::ended(&pool, &jobs, jobs.len(), END_MAX, || self.fleet.logs()).await?;
        let starts = load::starts(&pool, &jobs).await?;
        let late = starts.iter().filter_map(load::Start::late_ms).fold(f64::NAN, f64::max);
        explain(&pool, &jobs).await?;
        if fault == Fault::Killed {
            self.fleet.start_again(&leader)?;
        }
        let back = back.await??.map_or(f64::NAN, |at| (at - began).as_secs_f64());
        let row = fault.row();
        figures.add("age", row, "next claim published", (published, "ms"), PUBLISHED);
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        figures.add("age", row, "batches then", (batches as f64, ""), Asked::Nothing);
        figures.add("age", row, "latest start beside", (late / 1_000.0, "s"), Asked::Nothing);
        // In the other faults Redis has lost nothing.
        let back_max =
            if fault == Fault::Wipe { Asked::AtMost(f64::from(self.age.open) / BACK_PER_S) } else { Asked::Nothing };
        figures.add("age", row, "all open ones are there after", (back, "s"), back_max);
        Ok(())
    }

    fn wipe(&self) -> Result<f64> {
        let mut redis = self.servers.redis_client()?;
        redis.command(&["FLUSHALL"])?;
        Ok(next_published(redis, 0))
    }

    async fn restart(&mut self) -> Result<f64> {
        let port = self.servers.redis_port();
        let servers = &mut self.servers;
        let watch = tokio::task::block_in_place(|| {
            servers.kill_redis();
            let watch = std::thread::spawn(move || {
                let client = until_answered(port)?;
                anyhow::Ok(next_published(client, -1))
            });
            servers.start_redis().map(|()| watch)
        })?;
        tokio::task::spawn_blocking(move || watch.join()).await?.map_err(|_| anyhow::anyhow!("the watch panicked"))?
    }

    async fn pass_by(&self) -> Result<f64> {
        let mut redis = self.servers.redis_client()?;
        let now = jobs::now(&self.database.pool).await?;
        let last = (now.timestamp_millis() + PASSED_MS).to_string();
        redis.command(&["HSET", &Keys::new(NAMESPACE, 0).ctl(), "last", &last])?;
        Ok(tokio::task::block_in_place(|| next_published(redis, -1)))
    }

    async fn fail_over(&mut self) -> Result<f64> {
        tokio::task::block_in_place(|| {
            self.servers.follow_redis()?;
            self.servers.fail_over()?;
            let client = self.servers.redis_client()?;
            self.fleet.lay_redis_to(self.servers.redis_port());
            Ok(next_published(client, -1))
        })
    }

    async fn kill(&mut self, leader: &str) -> Result<f64> {
        let pool = self.database.pool.clone();
        let old = holder(&pool).await?;
        let client = self.servers.redis_client()?;
        self.fleet.node_mut(leader)?.kill();
        let deadline = Instant::now() + PUBLISHED_MAX;
        loop {
            let now = holder(&pool).await?;
            if now.is_some() && now != old {
                break;
            }
            ensure!(Instant::now() < deadline, "nobody leads\n{}", self.fleet.logs());
            tokio::time::sleep(LOOK_EACH).await;
        }
        Ok(tokio::task::block_in_place(|| next_published(client, -1)))
    }
}

/// Where the time went of what started very late.
async fn explain(pool: &PgPool, jobs: &[Uuid]) -> Result<()> {
    let statement = "SELECT scheduled_at, (extract(epoch FROM started_at - scheduled_at) * 1000)::bigint,
                            claim - (extract(epoch FROM scheduled_at) * 1000)::bigint,
                            entry - (extract(epoch FROM scheduled_at) * 1000)::bigint, take
                     FROM job_executions WHERE job_id = ANY ($1) AND started_at - scheduled_at > $2 * interval '1 second'
                     ORDER BY started_at - scheduled_at DESC";
    let late: Vec<(DateTime<Utc>, i64, i64, i64, i32)> =
        sqlx::query_as(statement).bind(jobs).bind(VERY_LATE_S).fetch_all(pool).await?;
    for (scheduled_at, started, claim, entry, take) in late.iter().take(3) {
        progress(&format!(
            "age: one of {} that were very late: due {scheduled_at}, started {started} ms after that, claimed {claim} ms, \
             entry of {entry} ms, take {take}",
            late.len()
        ));
    }
    Ok(())
}

/// The session that holds the leader's lock.
async fn holder(pool: &PgPool) -> Result<Option<i32>> {
    let statement = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = $1 AND granted \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    Ok(sqlx::query_scalar(statement).bind(LOCK_SPACE).fetch_optional(pool).await?)
}

/// A connection to Redis as soon as it answers: while it loads its data it answers nothing but errors.
fn until_answered(port: u16) -> Result<RespClient> {
    let deadline = Instant::now() + END_MAX;
    loop {
        match RespClient::connect(port).and_then(|mut client| client.command(&["PING"]).map(|_| client)) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(LOOK_EACH),
        }
    }
}

/// Waits for the next entry of the stream of the fires that go on, which had `before` so far (-1: as many as it has now); how
/// long that took, in milliseconds.
fn next_published(client: RespClient, before: i64) -> f64 {
    let began = Instant::now();
    let mut watch = Watch::through(client, NAMESPACE);
    let before = if before < 0 { watch.look().0 } else { before };
    while watch.look().0 <= before {
        if began.elapsed() > PUBLISHED_MAX {
            return f64::NAN;
        }
        std::thread::sleep(LOOK_EACH);
    }
    began.elapsed().as_secs_f64() * 1_000.0
}

/// When all that is open is there again; none if that takes too long.
async fn back(port: u16, streams: Vec<String>, open: u32) -> Result<Option<Instant>> {
    tokio::task::spawn_blocking(move || {
        let mut redis = RespClient::connect(port)?;
        let deadline = Instant::now() + THERE_MAX;
        while Instant::now() < deadline {
            let mut there = 0;
            for stream in &streams {
                there += redis.command(&["XLEN", stream])?.number().unwrap_or_default();
            }
            if there >= i64::from(open) {
                return Ok(Some(Instant::now()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    })
    .await?
}
