//! How Postgres finds rows, as it counts its scans itself: on tables that are filled but were never analyzed, as a young
//! partition is. The sessions of the statements under test are ended first, which makes each of them report what it has
//! counted.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use carillon_core::ids;
use carillon_testkit::wait_until;
use chrono::TimeDelta;

use crate::bench::Bench;

pub(crate) const FILL: i32 = 5_000;
/// What a batch of the statements under test touches.
pub(crate) const BATCH: usize = 20;

/// Scans and rows read, by table.
#[derive(Clone, Copy, Debug, Default, sqlx::FromRow)]
pub(crate) struct Scans {
    pub(crate) seq_scan: i64,
    pub(crate) idx_scan: i64,
    pub(crate) idx_tup_fetch: i64,
}

pub(crate) async fn scans(bench: &Bench) -> Result<BTreeMap<String, Scans>> {
    type Counted = (String, i64, i64, i64);
    let rows: Vec<Counted> = sqlx::query_as(
        "SELECT relname::text, seq_scan, coalesce(idx_scan, 0), coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables",
    )
    .fetch_all(&bench.pool)
    .await?;
    let scans = |(name, seq_scan, idx_scan, idx_tup_fetch)| (name, Scans { seq_scan, idx_scan, idx_tup_fetch });
    Ok(rows.into_iter().map(scans).collect())
}

/// Jobs, timers, statistics, executions of yesterday and today, retries, triggers and batches that nobody asks for.
pub(crate) async fn fill(bench: &Bench) -> Result<()> {
    let now = bench.now().await?;
    sqlx::query(
        "WITH job AS (
             INSERT INTO jobs (id, name, type, status, timetable, handler_name)
             SELECT gen_random_uuid(), 'fill', 'CRON', 'ACTIVE', '{}', 'echo' FROM generate_series(1, $1) RETURNING id
         ), timer AS (
             INSERT INTO job_timers (shard, job_id, fire_at, queue, priority, claimed_count)
             SELECT 0, id, $2 + random() * interval '1 hour', 'default', 1, 2 FROM job
         ), stats AS (
             INSERT INTO job_stats (job_id, finished_count) SELECT id, 2 FROM job
         ), triggers AS (
             INSERT INTO job_triggers (shard, execution_id, job_id, fire_at, queue, priority)
             SELECT 0, gen_random_uuid(), id, $2, 'default', 1 FROM job
         )
         INSERT INTO execution_retries (shard, execution_id, job_id, claim, due_at, queue, priority)
         SELECT 0, gen_random_uuid(), id, 1, $2, 'default', 1 FROM job",
    )
    .bind(FILL)
    .bind(now + TimeDelta::days(1_000))
    .execute(&bench.pool)
    .await?;
    for days in [0, 1] {
        let first = ids::first_at(now - TimeDelta::days(days));
        // The tail of the id is random, its head is the day's.
        sqlx::query(
            "INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at, completed_at)
             SELECT 0, (substr($2::text, 1, 14) || substr(gen_random_uuid()::text, 15))::uuid, gen_random_uuid(), 1, 1,
                    'SUCCESS', now(), now() FROM generate_series(1, $1)",
        )
        .bind(FILL)
        .bind(first.to_string())
        .execute(&bench.pool)
        .await?;
    }
    sqlx::query("INSERT INTO dispatch_batches (shard, number, term, ids, settled_at) SELECT 0, n, 1, '{}', now() FROM generate_series(1, $1) n")
        .bind(FILL)
        .execute(&bench.pool)
        .await?;
    Ok(())
}

/// Waits until no session of the statements under test is left: each reports its counts before it is gone.
pub(crate) async fn sessions_end(bench: &Bench) -> Result<()> {
    wait_until("the sessions to end", Duration::from_secs(5), || async {
        let left: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
             AND application_name IN ('leader', 'executor')",
        )
        .fetch_one(&bench.pool)
        .await?;
        anyhow::ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await
}
