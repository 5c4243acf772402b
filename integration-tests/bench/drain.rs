//! How soon others start what an executor held, and had not started, when it was told to stop. At the default settings, while
//! long handlers of its own run on.
//!
//! What was released is known by its take (R18a). Its delay counts from SIGTERM, or from its own instant where that came later.

use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_testkit::wait_until;
use chrono::{TimeDelta, Utc};
use uuid::Uuid;

use crate::asked::Asked;
use crate::fleet::{Fleet, Role};
use crate::jobs::{self, Job};
use crate::load;
use crate::options::Plan;
use crate::product::Binaries;
use crate::quantiles::quantile;
use crate::report::{Report, progress};
use crate::servers::{Database, Servers};

/// The queue that only the one serves which is told to stop.
const LONG: &str = "long";
/// Handlers that run on there: of the default 512 slots these are taken. They end within the default grace.
const LONG_HANDLERS: usize = 400;
const LONG_TIME: Duration = Duration::from_secs(15);
/// Fires a second meanwhile, over all executors.
const PER_S: u32 = 600;
/// Seconds of these before SIGTERM, and together.
const BEFORE: u32 = 3;
const SECONDS: u32 = 7;
const RUNNING_MAX: Duration = Duration::from_secs(20);
const END_MAX: Duration = Duration::from_secs(90);

/// What was asked for, in milliseconds.
const ASKED: Asked = Asked::AtMost(1_000.0);

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails, or nothing was released.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let database = servers.database("drain").await?;
    let mut fleet = Fleet::new(servers, binaries, &database, "drain", plan).await?;
    for role in [Role::Dispatcher, Role::Executor, Role::Executor] {
        fleet.add(role, &[])?;
    }
    let mut delays = Vec::new();
    let mut ended_badly = 0;
    for round in 1..=plan.drains {
        progress(&format!("drain: {round} of {}", plan.drains));
        let (released, bad) = one(&mut fleet, &database).await?;
        delays.extend(released);
        ended_badly += bad;
    }
    ensure!(!delays.is_empty(), "nothing was held when executors were told to stop");
    let row = format!("{} executors told to stop", plan.drains);
    let count = f64::from(u32::try_from(delays.len())?);
    let figures = &mut report.figures;
    figures.add("drain", &row, "released executions", (count, ""), Asked::Nothing);
    figures.add("drain", &row, "their delay, p50", (quantile(&delays, 0.5), "ms"), Asked::Nothing);
    figures.add("drain", &row, "their delay, p99", (quantile(&delays, 0.99), "ms"), ASKED);
    figures.add("drain", &row, "their delay, max", (quantile(&delays, 1.0), "ms"), Asked::Nothing);
    let bad = f64::from(u32::try_from(ended_badly)?);
    figures.add("drain", &row, "executions without success", (bad, ""), Asked::AtMost(0.0));
    fleet.end().await;
    database.pool.close().await;
    Ok(())
}

/// One executor comes, is filled, and told to stop: the delays of what it released, in milliseconds, and how many executions
/// did not succeed.
async fn one(fleet: &mut Fleet, database: &Database) -> Result<(Vec<f64>, usize)> {
    let pool = &database.pool;
    let name = fleet.add(Role::Executor, &[("CARILLON_EXECUTOR_QUEUES", r#"["default", "long"]"#)])?;
    fleet.ready().await?;
    let at = load::first_instant(pool, LONG_HANDLERS).await?;
    let long = jobs::new_ids(LONG_HANDLERS, at);
    let sleepers: Vec<Job> =
        long.iter().map(|id| Job::once(*id, at).of_queue(LONG.into()).sleeping(LONG_TIME)).collect();
    load::write(pool, &fleet.redis, &sleepers, at).await?;
    let (ids, first) = load::spread(pool, &fleet.redis, PER_S, SECONDS).await?;
    running(database, &long).await?;
    load::until(pool, first + TimeDelta::seconds(i64::from(BEFORE))).await?;
    let asked = Utc::now();
    let node = fleet.node_mut(&name)?;
    node.ask_to_stop();
    let stopped = node.stopped().await;
    stopped.map_err(|error| error.context(fleet.logs()))?;
    fleet.remove(&name);
    for jobs in [&ids, &long] {
        load::ended(pool, jobs, jobs.len(), END_MAX, || fleet.logs()).await?;
    }
    let starts = load::starts(pool, &ids).await?;
    let released = starts.iter().filter(|start| start.take > 0).filter_map(|start| {
        let late = start.started_at? - start.scheduled_at.max(asked);
        Some(late.as_seconds_f64() * 1_000.0)
    });
    let bad = starts.iter().filter(|start| start.status != "SUCCESS").count();
    Ok((released.collect(), bad))
}

/// Waits until the long handlers run.
async fn running(database: &Database, jobs: &[Uuid]) -> Result<()> {
    wait_until("the long handlers to run", RUNNING_MAX, || async {
        let statement = "SELECT count(*) FROM job_executions WHERE job_id = ANY ($1) AND status = 'RUNNING'";
        let running: i64 = sqlx::query_scalar(statement).bind(jobs).fetch_one(&database.pool).await?;
        ensure!(usize::try_from(running)? == jobs.len(), "{running} of {}", jobs.len());
        anyhow::Ok(())
    })
    .await
}
