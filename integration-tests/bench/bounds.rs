//! Whether what is bounded stays bounded under load, through the real binaries.
//!
//! `spread`: fires spread evenly over time share batches, so claims a second do not grow with them, settled batches are
//! forgotten as they come, and a trigger beside them starts at once. `recovery`: Redis is emptied while many open executions
//! wait in queues that nobody serves; counted is how fast their entries are back, beside fires that go on.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_store::triggers::{self, NewTrigger};
use carillon_store::{Store, StoreOptions};
use carillon_stream::keys::Keys;
use carillon_testkit::{RespClient, wait_until};
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::jobs::{self, Job};
use crate::options::Plan;
use crate::product::{Binaries, Product};
use crate::report::{Lateness, Report, progress};
use crate::servers::{Database, Servers};

/// Spread fires a second.
const RATES: [u32; 2] = [300, 3_000];
/// Between two triggers beside them.
const TRIGGER_EACH: Duration = Duration::from_millis(100);
/// Fires a second beside a recovery.
const BESIDE_PER_S: u32 = 1_000;
/// How long these go on before Redis is emptied.
const BEFORE: Duration = Duration::from_secs(3);
/// Queues that nobody serves: fewer than a stream may hold in each.
const QUEUES: usize = 10;
/// All must have come to an end within this.
const END_MAX: Duration = Duration::from_secs(120);
/// From writing the jobs to the first instant: so long, and a second for each so many jobs.
const AHEAD: TimeDelta = TimeDelta::seconds(3);
const WRITTEN_PER_S: u32 = 4_000;

/// What spread fires led to.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    per_s: u32,
    seconds: u32,
    /// Claims that no trigger asked for.
    claims_per_s: f64,
    /// Rows in `dispatch_batches` once all had ended.
    rows_left: i64,
    fires: Lateness,
    triggers: Lateness,
}

/// What an emptied Redis led to.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    rows: usize,
    /// From the wipe to the first entry, and to the last.
    first_ms: f64,
    all_ms: f64,
    beside: Lateness,
}

impl Spread {
    /// Starts that were early.
    pub const fn early(&self) -> usize {
        self.fires.early + self.triggers.early
    }

    pub fn json(self) -> Value {
        json!({
            "per_s": self.per_s, "seconds": self.seconds, "claims_per_s": self.claims_per_s, "rows_left": self.rows_left,
            "fires": self.fires.json(), "triggers": self.triggers.json(),
        })
    }
}

impl Recovery {
    /// Starts that were early.
    pub const fn early(&self) -> usize {
        self.beside.early
    }

    /// From the first entry to the last.
    fn per_s(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rows = self.rows as f64;
        rows * 1_000.0 / (self.all_ms - self.first_ms).max(1.0)
    }

    pub fn json(self) -> Value {
        json!({
            "rows": self.rows, "first_ms": self.first_ms, "all_ms": self.all_ms, "per_s": self.per_s().round(),
            "beside_per_s": BESIDE_PER_S, "beside": self.beside.json(),
        })
    }
}

/// For people.
pub fn table(text: &mut String, spread: &[Spread], recovery: Option<Recovery>) {
    if spread.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "\n{:<28} {:>9} {:>10} {:>9} {:>9} {:>12} {:>12}",
        "Spread fires a second", "claims/s", "rows left", "p50 ms", "p99 ms", "trigger p50", "trigger p99"
    );
    for point in spread {
        let (fires, triggers) = (point.fires, point.triggers);
        let _ = writeln!(
            text,
            "{:<28} {:>9.1} {:>10} {:>9.2} {:>9.2} {:>12.2} {:>12.2}",
            format!("{} for {} s", point.per_s, point.seconds),
            point.claims_per_s,
            point.rows_left,
            fires.p50_ms,
            fires.p99_ms,
            triggers.p50_ms,
            triggers.p99_ms
        );
    }
    if let Some(recovery) = recovery {
        let _ = writeln!(
            text,
            "\nRedis emptied: {} open executions back at {:.0} a second, the first {:.0} ms after, all {:.0} ms after; beside \
             them {BESIDE_PER_S} fires a second, p50 {:.1} ms, p99 {:.0} ms late",
            recovery.rows,
            recovery.per_s(),
            recovery.first_ms,
            recovery.all_ms,
            recovery.beside.p50_ms,
            recovery.beside.p99_ms
        );
    }
}

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails, or an execution did not succeed.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let database = servers.database("bounds").await?;
    let product = Product::start(servers, binaries, &database, "bounds", plan, None).await?;
    let store = Store::connect_lazily(&StoreOptions::new(database.url.as_str(), "carillon-bench"))?;
    let bench = Bench { database: &database, product: &product, store: &store };
    for per_s in RATES {
        progress(&format!("bounds: {per_s} spread fires a second for {} s", plan.spread_s));
        report.spread.push(bench.spread(per_s, plan.spread_s).await?);
    }
    progress(&format!("bounds: {} open executions, and Redis is emptied", plan.lost));
    let mut redis = servers.redis_client()?;
    report.recovery = Some(bench.recovery(&mut redis, plan.lost).await?);
    product.stop().await?;
    if plan.statements {
        report.note_statements("bounds", database.costliest().await?);
    }
    store.close().await;
    database.pool.close().await;
    Ok(())
}

struct Bench<'a> {
    database: &'a Database,
    product: &'a Product,
    store: &'a Store,
}

impl Bench<'_> {
    /// One-time jobs, `per_s` of them a second for `seconds`; the first instant.
    async fn steady(&self, per_s: u32, seconds: u32) -> Result<(Vec<Uuid>, DateTime<Utc>)> {
        let pool = &self.database.pool;
        let count = per_s * seconds;
        let first = jobs::now(pool).await? + AHEAD + TimeDelta::seconds(i64::from(count / WRITTEN_PER_S));
        let first = first.trunc_subsecs(3);
        let ids = jobs::new_ids(usize::try_from(count)?, first);
        let at = |index: usize| {
            let ms = i64::try_from(index).unwrap_or_default() * 1_000 / i64::from(per_s);
            first + TimeDelta::milliseconds(ms)
        };
        let jobs: Vec<Job> = ids.iter().enumerate().map(|(index, id)| Job::once(*id, at(index))).collect();
        jobs::insert(pool, 0, &jobs, |_| {}).await?;
        self.product.redis.wake().await?;
        ensure!(jobs::now(pool).await? < first, "writing the jobs took too long");
        Ok((ids, first))
    }

    async fn spread(&self, per_s: u32, seconds: u32) -> Result<Spread> {
        let pool = &self.database.pool;
        let triggers = seconds * 1_000 / u32::try_from(TRIGGER_EACH.as_millis())?;
        let now = jobs::now(pool).await?;
        // Each triggered once, so that none overlaps.
        let triggered = jobs::new_ids(usize::try_from(triggers)?, now);
        let by_hand: Vec<Job> = triggered.iter().map(|id| Job::released_by_hand(*id)).collect();
        jobs::insert(pool, 0, &by_hand, |_| {}).await?;
        let (ids, first) = self.steady(per_s, seconds).await?;
        tokio::time::sleep((first - jobs::now(pool).await?).to_std().unwrap_or_default()).await;
        let mut each = tokio::time::interval(TRIGGER_EACH);
        for job in &triggered {
            each.tick().await;
            let trigger = NewTrigger { job_id: *job, payload: None, trace: None, created_by: "carillon-bench".into() };
            let due = triggers::create(self.store, &trigger, None).await?.due.context("it is due")?;
            self.product.redis.wake_for(&due).await?;
        }
        let fires = Lateness::of(&self.ended(&ids).await?);
        let by_trigger = Lateness::of(&self.ended(&triggered).await?);
        let claims: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT claim FROM job_executions WHERE job_id = ANY ($1) OR job_id = ANY ($2) \
             GROUP BY claim HAVING NOT bool_or(job_id = ANY ($2))) c",
        )
        .bind(&ids)
        .bind(&triggered)
        .fetch_one(pool)
        .await?;
        let rows_left = sqlx::query_scalar("SELECT count(*) FROM dispatch_batches").fetch_one(pool).await?;
        let claims_per_s = f64::from(u32::try_from(claims)?) / f64::from(seconds);
        Ok(Spread { per_s, seconds, claims_per_s, rows_left, fires, triggers: by_trigger })
    }

    async fn recovery(&self, redis: &mut RespClient, rows: usize) -> Result<Recovery> {
        let pool = &self.database.pool;
        let lines: Vec<Line> = (0..QUEUES).map(|n| Line::new(format!("unserved-{n}"), Priority::Medium)).collect();
        let now = jobs::now(pool).await?;
        let waiting: Vec<Job> = jobs::new_ids(rows, now)
            .into_iter()
            .zip(lines.iter().cycle())
            .map(|(id, line)| Job::once(id, now).of_queue(line.queue.clone()))
            .collect();
        jobs::insert(pool, 0, &waiting, |_| {}).await?;
        self.product.redis.wake().await?;
        let streams: Vec<String> = lines.iter().map(|line| Keys::new("bounds", 0).stream(line)).collect();
        until_there(redis, &streams, rows).await?;
        // Long enough that fires go on until all are back.
        let seconds = 10 + u32::try_from(rows / 10_000)?;
        let (beside, first) = self.steady(BESIDE_PER_S, seconds).await?;
        let until = (first - jobs::now(pool).await?).to_std().unwrap_or_default() + BEFORE;
        tokio::time::sleep(until).await;
        let wiped = Instant::now();
        redis.command(&["FLUSHALL"])?;
        until_there(redis, &streams, 1).await?;
        let first_ms = wiped.elapsed().as_secs_f64() * 1_000.0;
        until_there(redis, &streams, rows).await?;
        let all_ms = wiped.elapsed().as_secs_f64() * 1_000.0;
        let beside = Lateness::of(&self.ended(&beside).await?);
        Ok(Recovery { rows, first_ms, all_ms, beside })
    }

    /// Waits until each of `jobs` has had its execution; how late each started, in milliseconds.
    async fn ended(&self, jobs: &[Uuid]) -> Result<Vec<f64>> {
        let pool = &self.database.pool;
        let waited = wait_until("all executions to end", END_MAX, || async {
            let statement = "SELECT count(*) FROM job_executions WHERE job_id = ANY ($1) AND completed_at IS NOT NULL";
            let ended: i64 = sqlx::query_scalar(statement).bind(jobs).fetch_one(pool).await?;
            if usize::try_from(ended)? != jobs.len() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            ensure!(usize::try_from(ended)? == jobs.len(), "{ended} of {}", jobs.len());
            anyhow::Ok(())
        });
        waited.await.map_err(|error| error.context(self.product.logs()))?;
        let late: Vec<Option<f64>> = sqlx::query_scalar(
            "SELECT CASE WHEN status = 'SUCCESS' THEN extract(epoch FROM started_at - scheduled_at)::float8 * 1000 END \
             FROM job_executions WHERE job_id = ANY ($1)",
        )
        .bind(jobs)
        .fetch_all(pool)
        .await?;
        ensure!(late.iter().all(Option::is_some), "an execution did not succeed\n{}", self.product.logs());
        Ok(late.into_iter().flatten().collect())
    }
}

/// Waits until `streams` hold `count` entries together.
async fn until_there(redis: &mut RespClient, streams: &[String], count: usize) -> Result<()> {
    let deadline = Instant::now() + END_MAX;
    loop {
        let mut there = 0;
        for stream in streams {
            there += redis.command(&["XLEN", stream])?.number().unwrap_or_default();
        }
        if usize::try_from(there)? >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{there} of {count} entries after {END_MAX:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
