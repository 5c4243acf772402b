//! Whether what a process holds grows with time: the resident sets of an executor that starts 15,000 handlers a second, each
//! with a timeout of a week, and of the leader of the 100,000 schedules that these are of.

use std::time::Duration;

use anyhow::Result;
use carillon_core::limits::TIMEOUT_MS_MAX;
use chrono::TimeDelta;

use crate::asked::Asked;
use crate::fleet::{Fleet, Role};
use crate::jobs::{self, Job};
use crate::load;
use crate::options::Plan;
use crate::product::Binaries;
use crate::quantiles::quantile;
use crate::report::{Report, progress};
use crate::servers::Servers;

/// Schedules, and how often each fires: 15,385 fires a second, or what the machine gives. What is missed is made up for by one.
const SCHEDULES: usize = 100_000;
const EACH: Duration = Duration::from_millis(6_500);
const EACH_MS: i64 = 6_500;
/// A resident set is looked at so often within as many seconds: the median counts.
const LOOKS: u32 = 9;
/// Until all is written, beside other work.
const WRITE: TimeDelta = TimeDelta::seconds(60);

/// What was asked for.
const GROWTH_MIB: Asked = Asked::AtMost(32.0);

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let database = servers.database("memory").await?;
    let pool = &database.pool;
    let mut fleet = Fleet::new(servers, binaries, &database, "memory", plan).await?;
    let names = [fleet.add(Role::Dispatcher, &[])?, fleet.add(Role::Executor, &[])?];
    fleet.ready().await?;
    progress(&format!("memory: writing {SCHEDULES} schedules"));
    let first = jobs::now(pool).await? + WRITE;
    let last = first + TimeDelta::days(1);
    let timeout = Duration::from_millis(u64::from(TIMEOUT_MS_MAX));
    let schedule = |(index, id)| {
        let ms = i64::try_from(index).unwrap_or_default() * EACH_MS / i64::try_from(SCHEDULES).unwrap_or(1);
        Job::every(id, EACH, first + TimeDelta::milliseconds(ms), last).timing_out_after(timeout)
    };
    let ids = jobs::new_ids(SCHEDULES, first);
    let written: Vec<Job> = ids.into_iter().enumerate().map(schedule).collect();
    load::write(pool, &fleet.redis, &written, first).await?;
    drop(written);
    load::until(pool, first).await?;
    let began = tokio::time::Instant::now();
    let mut looks = Vec::new();
    for second in [plan.memory_s.0, plan.memory_s.1] {
        progress(&format!("memory: load until second {second}"));
        tokio::time::sleep_until(began + Duration::from_secs(u64::from(second - LOOKS / 2))).await;
        looks.push(look(&fleet, &names).await?);
    }
    let row = format!("second {} to {}", plan.memory_s.0, plan.memory_s.1);
    let (before, after) = (looks[0], looks[1]);
    let seconds = f64::from(plan.memory_s.1 - plan.memory_s.0);
    let mut add = |what, value, asked| report.figures.add("memory", &row, what, value, asked);
    add("starts recorded a second", ((after.recorded - before.recorded) / seconds, "/s"), Asked::Nothing);
    add("the executor's resident set then", (after.executor, "MiB"), Asked::Nothing);
    add("the executor's growth", (after.executor - before.executor, "MiB"), GROWTH_MIB);
    add("the leader's resident set then", (after.leader, "MiB"), Asked::Nothing);
    add("the leader's growth", (after.leader - before.leader, "MiB"), GROWTH_MIB);
    fleet.end().await;
    if plan.statements {
        report.note_statements("memory", database.costliest().await?);
    }
    database.pool.close().await;
    Ok(())
}

/// Resident sets in MiB, and attempts recorded so far.
#[derive(Clone, Copy, Debug)]
struct Look {
    leader: f64,
    executor: f64,
    recorded: f64,
}

async fn look(fleet: &Fleet, names: &[String; 2]) -> Result<Look> {
    let (mut leader, mut executor, mut recorded) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..LOOKS {
        leader.push(fleet.node(&names[0])?.resident_mib().1);
        executor.push(fleet.node(&names[1])?.resident_mib().1);
        recorded.push(fleet.sum(Role::Executor, "carillon_executor_attempts_total"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let median = |values: &[f64]| quantile(values, 0.5);
    Ok(Look { leader: median(&leader), executor: median(&executor), recorded: median(&recorded) })
}
