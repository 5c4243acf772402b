//! How the hot statements find their rows, on tables that are filled but were never analyzed, as a young partition is: by
//! index, in the partition of their ids alone.

use anyhow::{Context, Result};
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_store::claim::Decisions;
use carillon_store::definitions;
use carillon_store::upcoming::UpcomingMax;
use carillon_store::workers::Locked;
use chrono::TimeDelta;

use crate::bench::{Bench, LEASE, all_lost, finished, incarnation, medium, retry_at, room, started};
use crate::scans::{BATCH, FILL, fill, scans, sessions_end};

const HOT: [&str; 8] = [
    "job_executions",
    "job_execution_logs",
    "execution_failures",
    "job_timers",
    "job_stats",
    "job_triggers",
    "execution_retries",
    "dispatch_batches",
];

#[tokio::test]
async fn hot_statements_never_scan_a_table() -> Result<()> {
    let bench = Bench::new().await?;
    fill(&bench).await?;
    let worker = bench.live_worker().await?;
    let jobs = bench.jobs(BATCH).await?;
    for job in &jobs[..3] {
        bench.trigger(*job, bench.now().await?).await?;
    }
    // The tests' own statements end before the counting begins.
    let now = bench.now().await?;
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = ANY ($1)")
        .bind(&jobs)
        .bind(now)
        .execute(&bench.pool)
        .await?;
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&bench.pool).await?;
    let before = scans(&bench).await?;

    let mut leader = bench.leader().await?;
    leader.timers_upcoming(now + TimeDelta::hours(1), UpcomingMax { of_line: 100, of_all: 20_000 }).await?;
    let rooms = [Source::Timer, Source::Trigger, Source::Retry].map(|source| room(source, &medium(), 1_000));
    let claim = leader.claim(&rooms, now, &[]).await?;
    assert_eq!((claim.timers.len(), claim.triggers.len()), (BATCH, 3));
    let decisions = crate::bench::one_each(&claim.timers);
    let number = claim.number;
    let born = claim.commit(1, &decisions, &[1]).await?.born;
    let held: Vec<_> =
        born.iter().map(|id| carillon_store::recorder::Held { execution: *id, claim: number, take: 0 }).collect();
    leader.batches_settle(&[number]).await?;
    leader.batches_unsettled(0).await?;
    leader.batches_settled(number - 1, i64::MAX).await?;
    leader.batches_settled_down(number + 1).await?;
    leader.batches_by_number(&[number]).await?;
    leader.batch_exists(number).await?;
    let batch = carillon_store::open_entries::Batch { number, ids: born.clone() };
    let open = leader.executions_open_of_batches(&[batch], Some(LEASE)).await?;
    let lost: Vec<_> = open.into_iter().map(|(entry, _)| entry).take(2).collect();
    let again = leader.draw_number().await?;
    leader.executions_republish(again, 1, &all_lost(&lost), LEASE).await?;

    let starts: Vec<_> = held.iter().take(5).map(|held| started(*held)).collect();
    bench.store.executions_record(worker, &starts, &[], &[]).await?;
    bench.store.executions_record_unlocked(worker, &starts, &[finished(held[4], Status::Retrying)], &[]).await?;
    let seen = bench.store.executions_see(&born, LEASE).await?;
    let wanted: Vec<_> = held[5..8].iter().map(|held| (held.execution, seen[&held.execution].clone(), false)).collect();
    bench.store.executions_take(worker, &wanted).await?;
    let mut ends: Vec<_> = held[9..].iter().map(|held| finished(*held, Status::Success)).collect();
    ends.extend(held[..5].iter().map(|held| finished(*held, Status::Retrying)));
    bench.store.executions_record(worker, &[], &ends, &jobs).await?;
    bench.store.executions_record(worker, &[], &[ends, vec![finished(held[8], Status::Failed)]].concat(), &[]).await?;
    bench.store.executions_payloads(&born).await?;
    bench.store.job_last_success(jobs[9]).await?;
    let succession = [started(carillon_store::recorder::Held { take: 1, ..held[5] })];
    bench.store.worker_succeed(worker, &incarnation("live"), &succession, Locked::Left).await?;
    let claim = leader.claim(&[room(Source::Retry, &medium(), 1_000)], retry_at(), &[]).await?;
    assert_eq!(claim.retries.len(), 5);
    let retries = claim.retries.iter().zip(1..).map(|(retry, seq)| (*retry, seq)).collect();
    claim.commit(1, &Decisions { retries, ..Decisions::default() }, &[]).await?;
    leader.batches_forget(&[1, 2, 3]).await?;
    leader.resign().await;
    bench.store.close().await;
    sessions_end(&bench).await?;

    let after = scans(&bench).await?;
    let mut found_by_index = 0;
    for (table, after) in &after {
        if !HOT.iter().any(|hot| table.starts_with(hot)) {
            continue;
        }
        let before = before.get(table).context("a table appeared")?;
        assert_eq!(after.seq_scan, before.seq_scan, "{table} was scanned");
        found_by_index += after.idx_scan - before.idx_scan;
    }
    assert!(found_by_index > 100, "nothing was counted: {found_by_index}");
    Ok(())
}

/// However many there are, and though few were counted last: a leader reads hundreds of pages after Redis has lost its data.
#[tokio::test]
async fn a_page_of_batches_reads_no_other_batches() -> Result<()> {
    const BATCHES: i64 = 100_000;
    const PAGES: i64 = 10;
    /// Batches of one page.
    const PAGE: i64 = 512;
    const WRITE: &str = "
        INSERT INTO dispatch_batches (shard, number, term, ids, settled_at)
        SELECT 0, n, 1, array_fill(gen_random_uuid(), ARRAY[10]), CASE WHEN n % 2 = 0 THEN now() END
        FROM generate_series($1::bigint, $2) n";
    let bench = Bench::new().await?;
    sqlx::query(WRITE).bind(1_i64).bind(100_i64).execute(&bench.pool).await?;
    let mut writing = bench.pool.begin().await?;
    sqlx::query(WRITE).bind(101_i64).bind(BATCHES).execute(&mut *writing).await?;
    // In its eyes there are a hundred.
    sqlx::query("ANALYZE dispatch_batches").execute(&bench.pool).await?;
    writing.commit().await?;
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&bench.pool).await?;
    let before = scans(&bench).await?["dispatch_batches"];
    let mut leader = bench.leader().await?;
    let (mut up, mut down, mut unsettled) = (0, i64::MAX, 0);
    for _ in 0..PAGES {
        up = leader.batches_settled(up, i64::MAX).await?.last().context("a page")?.number;
        down = leader.batches_settled_down(down).await?.last().context("a page")?.number;
        unsettled = leader.batches_unsettled(unsettled).await?.last().context("a page")?.number;
    }
    leader.resign().await;
    sessions_end(&bench).await?;
    let after = scans(&bench).await?["dispatch_batches"];
    // Every second one is passed over; two more statements look for the newest.
    let read = after.idx_tup_fetch - before.idx_tup_fetch;
    assert!((PAGES..=PAGES * 5 * PAGE + 10).contains(&read), "{read} rows were read");
    Ok(())
}

#[tokio::test]
async fn what_is_recorded_is_looked_for_in_the_partition_of_its_day_alone() -> Result<()> {
    let bench = Bench::new().await?;
    fill(&bench).await?;
    let worker = bench.live_worker().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &bench.jobs(BATCH).await?).await?;
    leader.resign().await;
    // Others of the same instant, among theirs.
    sqlx::query(
        "INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at)
         SELECT 0, (substr($2::text, 1, 14) || substr(gen_random_uuid()::text, 15))::uuid, gen_random_uuid(), 1, 1, 'QUEUED',
                now() FROM generate_series(1, $1)",
    )
    .bind(FILL)
    .bind(held[0].execution.to_string())
    .execute(&bench.pool)
    .await?;
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&bench.pool).await?;
    let before = scans(&bench).await?;
    let starts: Vec<_> = held.iter().map(|held| started(*held)).collect();
    bench.store.executions_record(worker, &starts, &[], &[]).await?;
    let ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    bench.store.executions_record(worker, &[], &ends, &[]).await?;
    bench.store.close().await;
    sessions_end(&bench).await?;
    let after = scans(&bench).await?;
    let probed: Vec<&String> = after
        .iter()
        .filter(|(table, _)| table.starts_with("job_executions"))
        .filter(|(table, after)| after.idx_scan > before.get(*table).map_or(0, |before| before.idx_scan))
        .map(|(table, _)| table)
        .collect();
    assert_eq!(probed.len(), 1, "{probed:?}");
    // By each id: once for RUNNING and once for the end, each with a look for the row's newest version. Never all ids between
    // the least and the greatest of the batch, which Postgres takes for few while it knows nothing of the partition.
    let read = after[probed[0]].idx_tup_fetch - before[probed[0]].idx_tup_fetch;
    assert!(read <= 4 * i64::try_from(BATCH)?, "{read} rows were read");
    Ok(())
}

/// The lines are found by skipping through the index: many jobs far away cost nothing.
#[tokio::test]
async fn upcoming_reads_as_many_timers_as_it_has_lines_and_answers() -> Result<()> {
    let bench = Bench::new().await?;
    fill(&bench).await?;
    let now = bench.now().await?;
    for at in 0..3 {
        bench.job_at(&medium(), Some(now + TimeDelta::seconds(at))).await?;
    }
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&bench.pool).await?;
    let before = scans(&bench).await?;
    let mut leader = bench.leader().await?;
    let until = now + TimeDelta::hours(1);
    let upcoming = leader.timers_upcoming(until, UpcomingMax { of_line: 1_000, of_all: 20_000 }).await?;
    assert_eq!(upcoming.instants.len(), 3);
    assert_eq!(definitions::of_first_fires(&bench.store, 0, &[medium()], now, until, 1_000).await?.len(), 2);
    leader.resign().await;
    bench.store.close().await;
    sessions_end(&bench).await?;
    let after = scans(&bench).await?;
    assert_eq!(after["job_revisions"].seq_scan, before["job_revisions"].seq_scan);
    for table in ["job_timers", "job_triggers", "execution_retries"] {
        let read = after[table].idx_tup_fetch - before[table].idx_tup_fetch;
        assert!(read <= 20, "{read} rows of {table} were read");
        assert!(after[table].idx_scan > before[table].idx_scan, "{table} was not looked into");
    }
    Ok(())
}
