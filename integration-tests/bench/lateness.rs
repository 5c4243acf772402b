//! Start of the handler minus the scheduled instant, both by the database's clock, as the product records them. Three
//! scenarios: `steady`, 100 jobs a second, each at a millisecond of its own; `instant`, 2,000 jobs at one instant; `every`,
//! 200 schedules that fire each second, all at the same instant of it.
//!
//! The product says itself when a handler started, by its estimate of the database's clock. So a second, shorter run asks
//! another witness: the journal that handlers write, by the clock of the machine, which here is the database's too.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_testkit::journal::{self, Event};
use carillon_testkit::wait_until;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row;
use uuid::Uuid;

use crate::jobs::{self, Job};
use crate::options::Plan;
use crate::product::{Binaries, Product};
use crate::quantiles::Lateness;
use crate::report::{Report, progress};
use crate::servers::{Database, Servers};

/// From writing the jobs to the first instant.
const AHEAD: TimeDelta = TimeDelta::seconds(3);
/// Jobs at one instant.
const HERD: usize = 2_000;
/// Schedules that fire each second.
const SCHEDULES: usize = 200;
/// After the last instant all must have ended within this.
const END_MAX: Duration = Duration::from_secs(60);

/// Starts later than this are explained.
const VERY_LATE: TimeDelta = TimeDelta::milliseconds(100);

/// What of the run is at hand.
struct Bench<'a> {
    database: &'a Database,
    product: &'a Product,
}

/// One scenario: its jobs, how many executions they lead to, and the last instant.
struct Scenario {
    jobs: Vec<Job>,
    executions: usize,
    last: DateTime<Utc>,
}

/// One execution: its id, its instant, its claim (whose number is the millisecond of it), its start, its executor.
struct Started {
    execution: Uuid,
    scheduled_at: DateTime<Utc>,
    claimed_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    worker: Option<Uuid>,
}

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails, or an execution did not succeed.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let database = servers.database("lateness").await?;
    let product = Product::start(servers, binaries, &database, "lateness", plan, None).await?;
    let bench = Bench { database: &database, product: &product };
    progress("lateness: warm-up");
    bench.measure(herd(&database, HERD / 10).await?).await?;
    progress(&format!("lateness: 100 jobs a second for {} s", plan.steady_s));
    let steady = bench.measure(steady(&database, plan.steady_s).await?).await?;
    report.add_lateness("steady", Lateness::of(&millis(&steady)));
    let mut together = Vec::new();
    for round in 1..=plan.instant_rounds {
        progress(&format!("lateness: {HERD} jobs at one instant, {round} of {}", plan.instant_rounds));
        together.extend(millis(&bench.measure(herd(&database, HERD).await?).await?));
    }
    report.add_lateness("instant", Lateness::of(&together));
    progress(&format!("lateness: {SCHEDULES} schedules each second for {} s", plan.every_s));
    let every = bench.measure(every(&database, plan.every_s).await?).await?;
    report.add_lateness("every", Lateness::of(&millis(&every)));
    product.stop().await?;
    if plan.statements {
        report.note_statements("lateness", database.costliest().await?);
    }
    witness(servers, binaries, &database, plan, report).await?;
    database.pool.close().await;
    Ok(())
}

/// The same by the journal, which costs the handlers two writes each and is therefore kept out of the figures.
async fn witness(
    servers: &Servers,
    binaries: &Binaries,
    database: &Database,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    progress("lateness: once more, briefly, witnessed by the handlers' journal");
    let journal = servers.home.path().join("journal.jsonl");
    let product = Product::start(servers, binaries, database, "witness", plan, Some(&journal)).await?;
    let bench = Bench { database, product: &product };
    let mut started = bench.measure(herd(database, HERD / 10).await?).await?;
    started.extend(bench.measure(steady(database, 5).await?).await?);
    started.extend(bench.measure(herd(database, HERD).await?).await?);
    started.extend(bench.measure(every(database, 5).await?).await?);
    product.stop().await?;
    let witnessed = witnessed(&journal, &started)?;
    report.witness = Some(Lateness::of(&witnessed));
    Ok(())
}

async fn steady(database: &Database, seconds: u32) -> Result<Scenario> {
    let first = first_instant(database).await?;
    let count = usize::try_from(seconds)? * 100;
    let instants: Vec<DateTime<Utc>> =
        (0..i64::try_from(count)?).map(|index| first + TimeDelta::milliseconds(index * 10 + index * 7 % 10)).collect();
    let ids = jobs::new_ids(count, first);
    let jobs = ids.into_iter().zip(&instants).map(|(id, at)| Job::once(id, *at)).collect();
    Ok(Scenario { jobs, executions: count, last: instants.last().copied().unwrap_or(first) })
}

async fn herd(database: &Database, count: usize) -> Result<Scenario> {
    let at = first_instant(database).await?;
    let jobs = jobs::new_ids(count, at).into_iter().map(|id| Job::once(id, at)).collect();
    Ok(Scenario { jobs, executions: count, last: at })
}

async fn every(database: &Database, seconds: u32) -> Result<Scenario> {
    let first = first_instant(database).await?;
    let last = first + TimeDelta::seconds(i64::from(seconds) - 1);
    let ids = jobs::new_ids(SCHEDULES, first);
    let jobs = ids.into_iter().map(|id| Job::every(id, Duration::from_secs(1), first, last)).collect();
    Ok(Scenario { jobs, executions: SCHEDULES * usize::try_from(seconds)?, last })
}

/// The next whole second that is [`AHEAD`] or a little more away.
async fn first_instant(database: &Database) -> Result<DateTime<Utc>> {
    let earliest = jobs::now(&database.pool).await? + AHEAD;
    Ok(DateTime::from_timestamp(earliest.timestamp() + 1, 0).unwrap_or(earliest))
}

impl Bench<'_> {
    async fn measure(&self, scenario: Scenario) -> Result<Vec<Started>> {
        let pool = &self.database.pool;
        jobs::insert(pool, 0, &scenario.jobs, |_| {}).await?;
        self.product.redis.wake().await?;
        // Nobody looks while it happens.
        let rest = scenario.last - jobs::now(pool).await?;
        ensure!(rest > TimeDelta::zero(), "writing the jobs took longer than {AHEAD}");
        tokio::time::sleep(rest.to_std()? + Duration::from_millis(300)).await;
        let jobs: Vec<Uuid> = scenario.jobs.iter().map(|job| job.id).collect();
        let ended = wait_until("all executions to end", END_MAX, || async {
            let statement = "SELECT count(*) FROM job_executions WHERE job_id = ANY ($1) AND completed_at IS NOT NULL";
            let ended: i64 = sqlx::query_scalar(statement).bind(&jobs).fetch_one(pool).await?;
            ensure!(usize::try_from(ended)? == scenario.executions, "{ended} of {}", scenario.executions);
            anyhow::Ok(())
        });
        ended.await.map_err(|error| error.context(self.product.logs()))?;
        let statement = "SELECT id, status, reason, error, scheduled_at, started_at, worker_id, \
                                to_timestamp(claim / 1000.0) AS claimed_at \
                         FROM job_executions WHERE job_id = ANY ($1)";
        let mut started = Vec::with_capacity(scenario.executions);
        for row in sqlx::query(statement).bind(&jobs).fetch_all(pool).await? {
            let (status, why): (String, [Option<String>; 2]) =
                (row.try_get("status")?, [row.try_get("reason")?, row.try_get("error")?]);
            ensure!(status == "SUCCESS", "an execution ended {status}: {:?}\n{}", why, self.product.logs());
            started.push(Started {
                execution: row.try_get("id")?,
                scheduled_at: row.try_get("scheduled_at")?,
                claimed_at: row.try_get("claimed_at")?,
                started_at: row.try_get("started_at")?,
                worker: row.try_get("worker_id")?,
            });
        }
        explain(&started);
        Ok(started)
    }
}

/// Says of starts that are very late where the time went: before the claim, or behind it.
fn explain(started: &[Started]) {
    let late: Vec<&Started> =
        started.iter().filter(|started| started.started_at - started.scheduled_at > VERY_LATE).collect();
    if late.is_empty() {
        return;
    }
    let claims = || late.iter().map(|late| (late.claimed_at - late.scheduled_at).num_milliseconds());
    let starts = || late.iter().map(|late| (late.started_at - late.scheduled_at).num_milliseconds());
    let executors: HashSet<Option<Uuid>> = late.iter().map(|late| late.worker).collect();
    progress(&format!(
        "lateness: {} of {} starts were {} to {} ms late, at {} executors; they were claimed {:+} to {:+} ms from their instants",
        late.len(),
        started.len(),
        starts().min().unwrap_or_default(),
        starts().max().unwrap_or_default(),
        executors.len(),
        claims().min().unwrap_or_default(),
        claims().max().unwrap_or_default(),
    ));
}

fn millis(started: &[Started]) -> Vec<f64> {
    started.iter().map(|started| in_ms(started.started_at - started.scheduled_at)).collect()
}

fn witnessed(journal: &Path, started: &[Started]) -> Result<Vec<f64>> {
    let scheduled: HashMap<Uuid, DateTime<Utc>> =
        started.iter().map(|started| (started.execution, started.scheduled_at)).collect();
    let lines = journal::read(journal)?;
    let starts = lines.iter().filter(|line| line.event == Event::Start);
    let late: Vec<f64> =
        starts.filter_map(|line| scheduled.get(&line.execution).map(|instant| in_ms(line.at - *instant))).collect();
    ensure!(late.len() == started.len(), "the journal knows {} of {} starts", late.len(), started.len());
    Ok(late)
}

fn in_ms(delta: TimeDelta) -> f64 {
    delta.as_seconds_f64() * 1_000.0
}
