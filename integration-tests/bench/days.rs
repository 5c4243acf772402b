//! Whether what names executions by id grows with the days that are kept: one store on a database with eight days, one on one with
//! 400, takes a batch and flushes its ends, in turns.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::recorder::{Finished, Verdict};
use carillon_store::{Store, StoreOptions};
use chrono::TimeDelta;
use uuid::Uuid;

use crate::asked::{Asked, Figures};
use crate::jobs::{self, Job};
use crate::quantiles::quantile;
use crate::report::progress;
use crate::scale::finished;
use crate::servers::{Database, Servers};

/// Its row, a part of `age`.
pub const ROW: &str = "days kept";
/// Days that are kept: few, and more than a year's.
const DAYS: [i64; 2] = [8, 400];
/// Executions taken together, and ended together.
const FLUSH: usize = 200;
/// Batches measured of each, after [`WARM_UP`] that are not.
const SAMPLES: usize = 60;
const WARM_UP: usize = 10;
/// How much longer it may take with the most days than with the fewest.
const BY_DAYS: Asked = Asked::AtMost(1.25);
const LEASE: Duration = Duration::from_secs(300);

/// Days of `$1` that are a day behind the one before, as many as there are names.
const MAKE_DAYS: &str = "
SELECT count(*) FROM UNNEST($2::text[], $3::uuid[], $4::uuid[]) AS d(name, from_id, below_id)
WHERE carillon.make_partition($1, d.name, d.from_id, d.below_id) = 'made'";

/// QUEUED, of one job each.
const OPEN: &str = "
INSERT INTO job_executions (shard, id, job_id, claim, entry, seq, status, scheduled_at)
SELECT 0, i.id, i.job, 1, 1, 1, 'QUEUED', $3 FROM UNNEST($1::uuid[], $2::uuid[]) AS i(id, job)";

/// A store as an executor has it, on a database with so many days.
struct Kept {
    days: i64,
    database: Database,
    store: Store,
    worker: Uuid,
    jobs: Vec<Uuid>,
    /// In milliseconds: of a take (it sees what it takes), of a flush.
    took: [Vec<f64>; 2],
}

impl Kept {
    async fn new(servers: &Servers, days: i64) -> Result<Self> {
        progress(&format!("age: making {days} days"));
        let database = servers.database(&format!("kept_{days}")).await?;
        let now = jobs::now(&database.pool).await?;
        for table in ["job_executions", "execution_attempts", "execution_failures", "job_execution_logs"] {
            // There are those of yesterday, today and a week to come; none else is asked for.
            let midnight =
                |back: i64| (now.date_naive() - TimeDelta::days(back)).and_time(chrono::NaiveTime::MIN).and_utc();
            let name = |back: i64| format!("{table}_{}", midnight(back).format("%Y_%m_%d"));
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP TABLE {}", name(1)))).execute(&database.pool).await?;
            let back = || 2..days - 6;
            let make = sqlx::query_scalar(MAKE_DAYS).bind(table).bind(back().map(name).collect::<Vec<_>>());
            let make = make.bind(back().map(|back| ids::first_at(midnight(back))).collect::<Vec<_>>());
            let make = make.bind(back().map(|back| ids::first_at(midnight(back - 1))).collect::<Vec<_>>());
            let made: i64 = make.fetch_one(&database.pool).await?;
            ensure!(made + 8 == days, "{made} more than eight days of {table}");
        }
        let options = StoreOptions::new(database.url.as_str(), "carillon-bench");
        let store = Store::connect_lazily(&StoreOptions { nested_loops_only: true, ..options })?;
        let jobs = jobs::new_ids(FLUSH, now);
        let written: Vec<Job> = jobs.iter().map(|id| Job::released_by_hand(*id)).collect();
        jobs::insert(&database.pool, 0, &written, |_| {}).await?;
        Ok(Self { days, database, store, worker: Uuid::from_u128(8), jobs, took: Default::default() })
    }

    async fn sample(&mut self) -> Result<()> {
        let now = jobs::now(&self.database.pool).await?;
        let ids: Vec<Uuid> = self.jobs.iter().map(|job| ids::execution_for_fire(*job, now)).collect();
        sqlx::query(OPEN).bind(&ids).bind(&self.jobs).bind(now).execute(&self.database.pool).await?;
        let began = Instant::now();
        let seen = self.store.executions_see(&ids, LEASE).await?;
        let wanted: Vec<_> = seen.into_iter().map(|(id, seen)| (id, seen, false)).collect();
        let taken = self.store.executions_take(self.worker, &wanted).await?;
        self.took[0].push(began.elapsed().as_secs_f64() * 1_000.0);
        ensure!(taken.len() == FLUSH, "{} of {FLUSH} were taken", taken.len());
        let end = |held| Finished { held, ..finished(Uuid::nil(), 1, now) };
        let ends: Vec<_> = taken.iter().map(|taken| end(taken.held)).collect();
        let began = Instant::now();
        let (_, verdicts) = self.store.executions_record(self.worker, &[], &ends, &[]).await?;
        self.took[1].push(began.elapsed().as_secs_f64() * 1_000.0);
        let recorded = |verdict: &Verdict| *verdict == Verdict::Recorded(Status::Success);
        ensure!(verdicts.iter().all(recorded), "not every end was recorded");
        Ok(())
    }
}

/// Measures, and adds to `figures`.
///
/// # Errors
/// If something of it fails.
pub async fn measure(servers: &Servers, figures: &mut Figures) -> Result<()> {
    let mut all = Vec::new();
    for days in DAYS {
        all.push(Kept::new(servers, days).await?);
    }
    progress("age: taking and flushing");
    for number in 0..WARM_UP + SAMPLES {
        for kept in &mut all {
            if number == WARM_UP {
                kept.took = Default::default();
            }
            kept.sample().await?;
        }
    }
    for (at, (what, ratio)) in
        [("take", "take, most by fewest"), ("flush", "flush, most by fewest")].into_iter().enumerate()
    {
        let medians: Vec<f64> = all.iter().map(|kept| quantile(&kept.took[at], 0.5)).collect();
        for (kept, median) in all.iter().zip(&medians) {
            figures.add("age", &format!("{} {ROW}", kept.days), what, (*median, "ms"), Asked::Nothing);
        }
        figures.add("age", ROW, ratio, (medians[1] / medians[0], ""), BY_DAYS);
    }
    for kept in all {
        kept.store.close().await;
        kept.database.pool.close().await;
    }
    Ok(())
}
