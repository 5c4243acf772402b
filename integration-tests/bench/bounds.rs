//! Whether what is bounded stays bounded under load, through the real binaries.
//!
//! `spread`: fires spread evenly over time, of schedules or of one-time jobs, share batches, so claims a second do not grow
//! with them, settled batches are forgotten as they come, and a trigger beside them starts at once. `recovery`: Redis is
//! emptied while many open executions wait in queues that nobody serves; counted is how fast their entries are back, beside
//! fires that go on.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_store::triggers::{self, NewTrigger};
use carillon_store::{Scope, Store, StoreOptions};
use carillon_stream::keys::Keys;
use carillon_testkit::RespClient;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::asked::{Asked, Figures};
use crate::jobs::{self, Job};
use crate::load::{self, By, Fires, Start};
use crate::options::Plan;
use crate::product::{Binaries, Product};
use crate::quantiles::Lateness;
use crate::report::{Report, progress};
use crate::servers::{Database, Servers};

/// Between two triggers beside them.
const TRIGGER_EACH: Duration = Duration::from_millis(100);
/// Before anything is measured.
const WARM_UP: Fires = Fires { of: By::Jobs, per_s: 1_000, seconds: 3 };
/// Fires a second beside a recovery.
const BESIDE_PER_S: u32 = 1_000;
/// How long these go on before Redis is emptied.
const BEFORE: Duration = Duration::from_secs(3);
/// Queues that nobody serves: fewer than a stream may hold in each.
const QUEUES: usize = 10;
/// All must have come to an end within this.
const END_MAX: Duration = Duration::from_secs(120);
/// Settled batches of which nothing is open may be there for so long, in milliseconds.
const FORGOTTEN_WITHIN_MS: i64 = 30_000;

/// What was asked for.
const CLAIMS_PER_S: Asked = Asked::AtMost(20.0);
const TRIGGER_P99_MS: Asked = Asked::AtMost(20.0);
const BACK_PER_S: Asked = Asked::AtLeast(10_000.0);

/// What spread fires led to.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    of: Fires,
    /// Claims that no trigger asked for.
    claims_per_s: f64,
    /// Rows in `dispatch_batches` once all had ended.
    rows_left: i64,
    /// Batches claimed in the last 30 seconds of it, and those of which something is open.
    rows_allowed: i64,
    /// Fires that were skipped, since their predecessor still ran.
    skipped: usize,
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

    fn judge(&self, figures: &mut Figures) {
        let row = self.of.to_string();
        #[expect(clippy::cast_precision_loss, reason = "counts")]
        let (left, allowed, skipped) = (self.rows_left as f64, self.rows_allowed as f64, self.skipped as f64);
        figures.add("bounds", &row, "claims a second", (self.claims_per_s, "/s"), CLAIMS_PER_S);
        figures.add("bounds", &row, "batches left", (left, ""), Asked::AtMost(allowed));
        figures.add("bounds", &row, "a trigger's start, p99", (self.triggers.p99_ms, "ms"), TRIGGER_P99_MS);
        figures.add("bounds", &row, "a fire's start, p99", (self.fires.p99_ms, "ms"), Asked::Nothing);
        figures.add("bounds", &row, "fires skipped", (skipped, ""), Asked::Nothing);
    }

    pub fn json(self) -> Value {
        json!({
            "fires_of": self.of.to_string(), "claims_per_s": self.claims_per_s, "rows_left": self.rows_left,
            "rows_allowed": self.rows_allowed, "skipped": self.skipped,
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
    // Writing to a String cannot fail.
    if !spread.is_empty() {
        let _ = writeln!(
            text,
            "\n{:<40} {:>9} {:>10} {:>9} {:>9} {:>12} {:>12}",
            "Spread fires", "claims/s", "rows left", "p50 ms", "p99 ms", "trigger p50", "trigger p99"
        );
        for point in spread {
            let (fires, triggers) = (point.fires, point.triggers);
            let _ = writeln!(
                text,
                "{:<40} {:>9.1} {:>10} {:>9.2} {:>9.2} {:>12.2} {:>12.2}",
                point.of,
                point.claims_per_s,
                point.rows_left,
                fires.p50_ms,
                fires.p99_ms,
                triggers.p50_ms,
                triggers.p99_ms
            );
        }
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
    // What is planned and connected once, on first use, is no part of it.
    bench.spread(WARM_UP).await?;
    for fires in plan.spread.iter().filter(|fires| plan.wants_row(&fires.to_string())) {
        progress(&format!("bounds: {fires}"));
        let spread = bench.spread(*fires).await?;
        spread.judge(&mut report.figures);
        report.spread.push(spread);
    }
    let row = format!("{} entries lost", plan.lost);
    if plan.wants_row(&row) {
        progress(&format!("bounds: {} open executions, and Redis is emptied", plan.lost));
        let mut redis = servers.redis_client()?;
        let recovery = bench.recovery(&mut redis, plan.lost).await?;
        report.figures.add("bounds", &row, "back a second", (recovery.per_s(), "/s"), BACK_PER_S);
        report.recovery = Some(recovery);
    }
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
    async fn spread(&self, of: Fires) -> Result<Spread> {
        let pool = &self.database.pool;
        let Fires { per_s, seconds, .. } = of;
        let triggers = seconds * 1_000 / u32::try_from(TRIGGER_EACH.as_millis())?;
        let now = jobs::now(pool).await?;
        // Each triggered once, so that none overlaps.
        let triggered = jobs::new_ids(usize::try_from(triggers)?, now);
        let by_hand: Vec<Job> = triggered.iter().map(|id| Job::released_by_hand(*id)).collect();
        jobs::insert(pool, 0, &by_hand, |_| {}).await?;
        let redis = &self.product.redis;
        let (ids, first) = load::fires(pool, redis, of).await?;
        load::until(pool, first).await?;
        let mut each = tokio::time::interval(TRIGGER_EACH);
        for job in &triggered {
            each.tick().await;
            let trigger = NewTrigger {
                job_id: *job,
                payload: None,
                metadata: None,
                trace: None,
                created_by: "carillon-bench".into(),
            };
            let due = triggers::create(self.store, &Scope::ALL, &trigger, None).await?.due.context("it is due")?;
            self.product.redis.wake_for(&due).await?;
        }
        let count = usize::try_from(per_s * seconds)?;
        let (fires, skipped) = self.late(&ids, count).await?;
        let (by_trigger, _) = self.late(&triggered, triggered.len()).await?;
        let (rows_left, rows_allowed) = self.batches().await?;
        let claims: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT claim FROM job_executions WHERE job_id = ANY ($1) OR job_id = ANY ($2) \
             GROUP BY claim HAVING NOT bool_or(job_id = ANY ($2))) c",
        )
        .bind(&ids)
        .bind(&triggered)
        .fetch_one(pool)
        .await?;
        let claims_per_s = f64::from(u32::try_from(claims)?) / f64::from(seconds);
        let (fires, triggers) = (Lateness::of(&fires), Lateness::of(&by_trigger));
        Ok(Spread { of, claims_per_s, rows_left, rows_allowed, skipped, fires, triggers })
    }

    /// How many batches there are, and how many there may be: those of the last 30 seconds, those of which something is open,
    /// and the newest, which is kept for ever.
    async fn batches(&self) -> Result<(i64, i64)> {
        let statement = "SELECT (SELECT count(*) FROM dispatch_batches),
                                1 + (SELECT count(DISTINCT claim) FROM job_executions
                                     WHERE claim > extract(epoch FROM clock_timestamp()) * 1000 - $1
                                        OR completed_at IS NULL AND entry IS NOT NULL)";
        Ok(sqlx::query_as(statement).bind(FORGOTTEN_WITHIN_MS).fetch_one(&self.database.pool).await?)
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
        let (beside, first) = load::spread(pool, &self.product.redis, BESIDE_PER_S, seconds).await?;
        load::until(pool, first + BEFORE).await?;
        let wiped = Instant::now();
        redis.command(&["FLUSHALL"])?;
        until_there(redis, &streams, 1).await?;
        let first_ms = wiped.elapsed().as_secs_f64() * 1_000.0;
        until_there(redis, &streams, rows).await?;
        let all_ms = wiped.elapsed().as_secs_f64() * 1_000.0;
        let (beside, _) = self.late(&beside, beside.len()).await?;
        let beside = Lateness::of(&beside);
        Ok(Recovery { rows, first_ms, all_ms, beside })
    }

    /// Waits until `jobs` have had `count` executions; how late each started, in milliseconds, and how many were skipped.
    async fn late(&self, jobs: &[Uuid], count: usize) -> Result<(Vec<f64>, usize)> {
        let pool = &self.database.pool;
        load::ended(pool, jobs, count, END_MAX, || self.product.logs()).await?;
        let starts = load::starts(pool, jobs).await?;
        let skipped = starts.iter().filter(|start| start.status == "SKIPPED").count();
        let succeeded = starts.iter().filter(|start| start.status == "SUCCESS").count();
        ensure!(succeeded + skipped == starts.len(), "an execution did not succeed\n{}", self.product.logs());
        Ok((starts.iter().filter_map(Start::late_ms).collect(), skipped))
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
