//! Fires a second, from the moment that all are due until the last is recorded and acknowledged: the floor and the product
//! in turns, so that what else the machine does hits both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_core::ids;
use chrono::{DateTime, Utc};

use crate::floor::{self, Floor, Pace};
use crate::jobs::{self, Job};
use crate::options::Plan;
use crate::product::{Binaries, Product, who_serves};
use crate::report::{Report, Round, Throughput, progress};
use crate::servers::{Database, Servers};
use crate::usage::{Cpu, Memory};

/// A round that takes longer is stuck.
const ROUND_MAX: Duration = Duration::from_secs(180);

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails, or an outcome is missing.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let database = servers.database("throughput").await?;
    let count = usize::try_from(plan.fires)?;
    progress(&format!("throughput: writing {count} jobs for the floor and {count} for the product"));
    for shard in [floor::SHARD, 0] {
        let ids = jobs::new_ids(count, jobs::now(&database.pool).await?);
        let jobs: Vec<Job> = ids.into_iter().map(Job::released_by_hand).collect();
        jobs::insert(&database.pool, shard, &jobs, |_| {}).await?;
    }
    let mut floor = Floor::connect(servers, &database, plan).await?;
    let mut product = Product::start(servers, binaries, &database, "throughput", plan, None).await?;
    let mut throughput = Throughput::default();
    for number in 0..=plan.rounds {
        let simple = floor_round(servers, &database, &mut floor, count, Pace::Simple).await?;
        if number > 0 && plan.statements {
            report.note_statements("floor, one round", database.costliest().await?);
        }
        let product_round = product_round(servers, &database, &mut product, count).await;
        let (product_round, memory) = product_round.map_err(|error| error.context(product.logs()))?;
        if number > 0 && plan.statements {
            report.note_statements("product, one round", database.costliest().await?);
        }
        let overlapped = floor_round(servers, &database, &mut floor, count, Pace::Overlapped).await?;
        let what = if number == 0 { "warm-up".to_owned() } else { format!("round {number} of {}", plan.rounds) };
        progress(&format!(
            "throughput: {what}: floor {:.0}/s, product {:.0}/s, {:.2}; overlapped floor {:.0}/s",
            simple.per_s,
            product_round.per_s,
            product_round.per_s / simple.per_s,
            overlapped.per_s
        ));
        if number > 0 {
            throughput.add(simple, product_round, overlapped, memory);
        }
    }
    throughput.mean_flush = product.mean_of("carillon_executor_flush_items");
    product.stop().await?;
    throughput.row_bytes = row_bytes(&database).await?;
    report.throughput = Some(throughput);
    database.pool.close().await;
    Ok(())
}

async fn floor_round(
    servers: &Servers,
    database: &Database,
    floor: &mut Floor,
    count: usize,
    pace: Pace,
) -> Result<Round> {
    database.tidy().await?;
    let who = who_serves(servers);
    let at = release(database, floor::SHARD, count).await?;
    let before = Cpu::now(&who);
    let took = floor.round(at, count, pace).await?;
    let cpu = Cpu::now(&who).since(before);
    check(database, at, count).await.context("the floor")?;
    Ok(Round::of(count, took, cpu))
}

async fn product_round(
    servers: &Servers,
    database: &Database,
    product: &mut Product,
    count: usize,
) -> Result<(Round, Memory)> {
    database.tidy().await?;
    let who = product.who(servers);
    let (added, _) = product.stream.look();
    let at = release(database, 0, count).await?;
    let before = Cpu::now(&who);
    let began = Instant::now();
    product.redis.wake().await?;
    product.stream.drained(added, i64::try_from(count)?, ROUND_MAX).await?;
    let took = began.elapsed();
    let cpu = Cpu::now(&who).since(before);
    let memory = Memory::now(&who);
    check(database, at, count).await.context("the product")?;
    Ok((Round::of(count, took, cpu), memory))
}

/// Makes every job of a shard due, at the instant that is answered.
async fn release(database: &Database, shard: i16, count: usize) -> Result<DateTime<Utc>> {
    let now = jobs::now(&database.pool).await?;
    let at = DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now);
    let released = sqlx::query("UPDATE job_timers SET fire_at = $1 WHERE shard = $2").bind(at).bind(shard);
    let released = released.execute(&database.pool).await?.rows_affected();
    ensure!(usize::try_from(released)? == count, "{released} of {count} jobs were released");
    Ok(at)
}

/// Whether each fire of `at` has become one execution with one success in the statistics.
async fn check(database: &Database, at: DateTime<Utc>, count: usize) -> Result<()> {
    let statement = "SELECT count(*), count(*) FILTER (WHERE status = 'SUCCESS'), count(DISTINCT job_id) \
                     FROM job_executions WHERE id >= $1 AND scheduled_at = $2";
    let (all, succeeded, jobs): (i64, i64, i64) =
        sqlx::query_as(statement).bind(ids::first_at(at)).bind(at).fetch_one(&database.pool).await?;
    let wanted = i64::try_from(count)?;
    ensure!(
        (all, succeeded, jobs) == (wanted, wanted, wanted),
        "of {wanted} fires {all} were recorded, of {jobs} jobs, {succeeded} as a success"
    );
    let open: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM job_timers t JOIN job_stats s USING (job_id) \
         WHERE t.claimed_count <> s.finished_count OR s.success_count <> s.finished_count",
    )
    .fetch_one(&database.pool)
    .await?;
    ensure!(open == 0, "the statistics of {open} jobs are wrong");
    Ok(())
}

/// Mean size of a row of the floor and of the product: whether they write the same.
async fn row_bytes(database: &Database) -> Result<(f64, f64)> {
    let statement = "SELECT avg(pg_column_size(e.*))::float8 FROM job_executions e JOIN job_timers t USING (job_id) WHERE t.shard = $1";
    let mut sizes = [0.0; 2];
    for (size, shard) in sizes.iter_mut().zip([floor::SHARD, 0]) {
        *size = sqlx::query_scalar::<_, Option<f64>>(statement)
            .bind(shard)
            .fetch_one(&database.pool)
            .await?
            .unwrap_or_default();
    }
    Ok((sizes[0], sizes[1]))
}
