//! How the hot statements find their rows, on tables that are filled but were never analyzed, as a young partition is: by
//! index, in the partition of their ids alone. Postgres counts its scans; the sessions of the statements under test are
//! ended first, which makes each of them report what it has counted.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::claim::Decisions;
use carillon_store::leader_session::LeaderSession;
use carillon_store::recorder::{Held, Verdict};
use carillon_store::takes::Release;
use carillon_store::upcoming::UpcomingMax;
use carillon_store::workers::Locked;
use carillon_store::{cancels, executions, jobs, revisions};
use carillon_testkit::wait_until;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, LEASE, finished, incarnation, medium, retry_at, room, started};

const FILL: i32 = 5_000;
/// What a batch of the statements under test touches.
const BATCH: usize = 20;

/// Scans and rows read, by table.
#[derive(Clone, Copy, Debug, Default, sqlx::FromRow)]
struct Scans {
    seq_scan: i64,
    idx_scan: i64,
    idx_tup_fetch: i64,
}

async fn scans(bench: &Bench) -> Result<BTreeMap<String, Scans>> {
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
async fn fill(bench: &Bench) -> Result<()> {
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
async fn sessions_end(bench: &Bench) -> Result<()> {
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

const HOT: [&str; 7] = [
    "job_executions",
    "job_execution_logs",
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
    leader.upcoming(now + TimeDelta::hours(1), UpcomingMax { of_line: 100, of_all: 20_000 }).await?;
    let rooms = [Source::Timer, Source::Trigger, Source::Retry].map(|source| room(source, &medium(), 1_000));
    let claim = leader.claim(&rooms, now, &[]).await?;
    assert_eq!((claim.timers.len(), claim.triggers.len()), (BATCH, 3));
    let decisions = crate::bench::one_each(&claim.timers);
    let number = claim.number;
    let born = claim.commit(1, &decisions, &[1]).await?.born;
    let held: Vec<_> =
        born.iter().map(|id| carillon_store::recorder::Held { execution: *id, claim: number, take: 0 }).collect();
    leader.settle(&[number]).await?;
    leader.batches_unsettled(0).await?;
    leader.batches_settled(number - 1, i64::MAX).await?;
    leader.batches_settled_down(number + 1).await?;
    leader.batches_by_number(&[number]).await?;
    leader.batch_exists(number).await?;
    let batch = carillon_store::open_entries::Batch { number, ids: born.clone() };
    let open = leader.open_of_batches(&[batch], Some(LEASE)).await?;
    let lost: Vec<_> = open.into_iter().map(|(entry, _)| entry).take(2).collect();
    let again = leader.draw_number().await?;
    leader.republish(again, 1, &lost, LEASE).await?;

    let starts: Vec<_> = held.iter().take(5).map(|held| started(*held)).collect();
    bench.store.record(worker, &starts, &[], &[]).await?;
    bench.store.record_unlocked(worker, &starts, &[finished(held[4], Status::Retrying)], &[]).await?;
    let seen = bench.store.see(&born, LEASE).await?;
    let wanted: Vec<_> = held[5..8].iter().map(|held| (held.execution, seen[&held.execution].clone(), false)).collect();
    bench.store.take(worker, &wanted).await?;
    let mut ends: Vec<_> = held[8..].iter().map(|held| finished(*held, Status::Success)).collect();
    ends.extend(held[..5].iter().map(|held| finished(*held, Status::Retrying)));
    bench.store.record(worker, &[], &ends, &jobs).await?;
    bench.store.record(worker, &[], &ends, &[]).await?;
    bench.store.payloads(&born).await?;
    bench.store.last_success(jobs[9]).await?;
    let succession = [started(carillon_store::recorder::Held { take: 1, ..held[5] })];
    bench.store.worker_succeed(worker, &incarnation("live"), &succession, Locked::LeftOut).await?;
    let claim = leader.claim(&[room(Source::Retry, &medium(), 1_000)], retry_at(), &[]).await?;
    assert_eq!(claim.retries.len(), 5);
    let retries = claim.retries.iter().zip(1..).map(|(retry, seq)| (*retry, seq)).collect();
    claim.commit(1, &Decisions { retries, ..Decisions::default() }, &[]).await?;
    leader.forget_batches(&[1, 2, 3]).await?;
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
    bench.store.record(worker, &starts, &[], &[]).await?;
    let ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    bench.store.record(worker, &[], &ends, &[]).await?;
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
    let upcoming = leader.upcoming(now + TimeDelta::hours(1), UpcomingMax { of_line: 1_000, of_all: 20_000 }).await?;
    assert_eq!(upcoming.instants.len(), 3);
    leader.resign().await;
    sessions_end(&bench).await?;
    let after = scans(&bench).await?;
    for table in ["job_timers", "job_triggers", "execution_retries"] {
        let read = after[table].idx_tup_fetch - before[table].idx_tup_fetch;
        assert!(read <= 20, "{read} rows of {table} were read");
        assert!(after[table].idx_scan > before[table].idx_scan, "{table} was not looked into");
    }
    Ok(())
}

/// Makes partitions until there are those of `back` days.
async fn make_days(bench: &Bench, table: &str, back: impl Iterator<Item = i64>) -> Result<()> {
    for back in back {
        let day = midnight(bench, back).await?;
        let made: String = sqlx::query_scalar("SELECT carillon_make_partition($1, $2, $3, $4)")
            .bind(table)
            .bind(format!("{table}_{}", day.format("%Y_%m_%d")))
            .bind(ids::first_at(day))
            .bind(ids::first_at(day + TimeDelta::days(1)))
            .fetch_one(&bench.pool)
            .await?;
        anyhow::ensure!(made == "made", "{made}");
    }
    Ok(())
}

async fn midnight(bench: &Bench, back: i64) -> Result<DateTime<Utc>> {
    let day = bench.now().await?.date_naive() - TimeDelta::days(back);
    Ok(day.and_time(chrono::NaiveTime::MIN).and_utc())
}

/// What is asked for while somebody has taken every partition of other days, the default ones too, from everybody.
struct Taken<'b> {
    bench: &'b Bench,
    days: Vec<String>,
}

impl Taken<'_> {
    /// Runs `work`; fails as soon as any session waits for the lock of a table.
    async fn but_for_its_days<T, E: Into<anyhow::Error>>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        let pool = &self.bench.pool;
        let others: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind = 'r'",
        )
        .fetch_all(pool)
        .await?;
        let others: Vec<String> =
            others.into_iter().filter(|name| !self.days.iter().any(|day| name.ends_with(day))).collect();
        assert!(others.len() > 400);
        let mut taken = pool.begin().await?;
        let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", others.join(", "));
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut *taken).await?;
        let watching = async {
            loop {
                let waited: Vec<String> = sqlx::query_scalar(
                    "SELECT relation::regclass::text FROM pg_locks JOIN pg_stat_activity USING (pid)
                     WHERE NOT granted AND relation IS NOT NULL AND datname = current_database()",
                )
                .fetch_all(pool)
                .await?;
                anyhow::ensure!(waited.is_empty(), "{what} asks for {waited:?}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let done: Result<T> = tokio::select! {
            done = work => done.map_err(Into::into).with_context(|| what.to_owned()),
            failed = watching => failed,
        };
        taken.rollback().await?;
        done
    }
}

/// A place where only today and the days named beside it may be touched.
async fn beside<'b>(bench: &'b Bench, back: &[i64]) -> Result<Taken<'b>> {
    let mut days = Vec::new();
    for back in back {
        days.push(midnight(bench, *back).await?.format("%Y_%m_%d").to_string());
    }
    Ok(Taken { bench, days })
}

/// Opens one execution of each job at `at`.
async fn born_at(place: &Taken<'_>, leader: &mut LeaderSession, jobs: &[Uuid], at: DateTime<Utc>) -> Result<Vec<Held>> {
    let now = place.bench.now().await?;
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = ANY ($1)")
        .bind(jobs)
        .bind(at)
        .execute(&place.bench.pool)
        .await?;
    let rooms = [room(Source::Timer, &medium(), 100)];
    let claim = place.but_for_its_days("claim", leader.claim(&rooms, now, &[])).await?;
    let (number, decisions) = (claim.number, crate::bench::one_each(&claim.timers));
    let born = place.but_for_its_days("commit", claim.commit(1, &decisions, &[])).await?.born;
    assert_eq!(born.len(), jobs.len());
    Ok(born.into_iter().map(|execution| Held { execution, claim: number, take: 0 }).collect())
}

/// Retention keeps 90 days and more: whatever names executions locks the partitions of these alone, with 400 of them.
#[tokio::test]
async fn what_names_executions_locks_the_partitions_of_their_days_alone() -> Result<()> {
    let bench = Bench::new().await?;
    // The template has yesterday and today.
    make_days(&bench, "job_executions", 2..400).await?;
    for table in ["job_execution_logs", "execution_attempts"] {
        make_days(&bench, table, 200..201).await?;
    }
    let (now, then) = (bench.now().await?, midnight(&bench, 200).await?);
    let suffix = |at: DateTime<Utc>| at.format("%Y_%m_%d").to_string();
    let today = Taken { bench: &bench, days: vec![suffix(now)] };
    let both = Taken { bench: &bench, days: vec![suffix(now), suffix(then)] };
    let (worker, successor) = (bench.live_worker().await?, incarnation("live"));
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(6).await?;
    let mut held = born_at(&today, &mut leader, &jobs[..3], now).await?;
    // Dated back: these fires lie 200 days ago.
    held.extend(born_at(&both, &mut leader, &jobs[3..], then).await?);
    let born: Vec<_> = held.iter().map(|held| held.execution).collect();
    let numbers = [held[0].claim, held[3].claim];
    both.but_for_its_days("settle", leader.settle(&numbers)).await?;
    let mut lost = Vec::new();
    for batch in both.but_for_its_days("batches", leader.batches_settled(0, i64::MAX)).await? {
        lost.extend(both.but_for_its_days("open", leader.open_of_batches(std::slice::from_ref(&batch), None)).await?);
    }
    let lost: Vec<_> = lost.into_iter().map(|(entry, _)| entry).collect();
    let again = leader.draw_number().await?;
    let republished = both.but_for_its_days("republish", leader.republish(again, 1, &lost, LEASE)).await?;
    assert_eq!(republished.len(), 6);

    let store = &bench.store;
    let seen = both.but_for_its_days("see", store.see(&born, LEASE)).await?;
    assert_eq!(seen.len(), 6);
    assert_eq!(both.but_for_its_days("payloads", store.payloads(&born)).await?.len(), 6);
    let (new, old) = (held[0], held[3]);
    let starts = [started(new), started(old)];
    let (running, _) = both.but_for_its_days("running", store.record(worker, &starts, &[], &[])).await?;
    assert_eq!(running, [Verdict::Running { cancel_requested: false }; 2]);
    let ends = [finished(new, Status::Retrying), finished(old, Status::Retrying)];
    let (_, recorded) = both.but_for_its_days("finish", store.record(worker, &[], &ends, &[])).await?;
    assert_eq!(recorded, [Verdict::Recorded(Status::Retrying); 2]);
    let (_, over) = both.but_for_its_days("finish again", store.record(worker, &[], &ends, &[])).await?;
    assert_eq!(over, [Verdict::Over { unknown: false }; 2]);
    let unlocked = store.record_unlocked(worker, &starts, &ends, &[]);
    let over = both.but_for_its_days("finish what is not locked", unlocked).await?;
    assert_eq!(over, (vec![Verdict::Over { unknown: false }; 2], vec![Verdict::Over { unknown: false }; 2]));
    let wanted: Vec<_> = [1, 4].map(|at| (born[at], seen[&born[at]].clone(), false)).to_vec();
    assert_eq!(both.but_for_its_days("take", store.take(worker, &wanted)).await?.len(), 2);
    let taken = [1, 4].map(|at| started(Held { take: 1, ..held[at] }));
    let succeeded =
        both.but_for_its_days("succeed", store.worker_succeed(worker, &successor, &taken, Locked::WaitedFor)).await?;
    assert_eq!(succeeded.len(), 2);
    let end = [finished(held[5], Status::Success)];
    both.but_for_its_days("success", store.record(successor.id, &[], &end, &[])).await?;
    let last = both.but_for_its_days("last success", store.last_success(bench.job_of(born[5]).await?)).await?;
    assert_eq!(last.map(|last| last.execution), Some(born[5]));
    let gateway = carillon_store::Store::connect_lazily(&bench.options("gateway"))?;
    for id in [born[0], born[3]] {
        both.but_for_its_days("get", carillon_store::executions::get(&gateway, id)).await?;
    }
    let retry = [room(Source::Retry, &medium(), 100)];
    let claim = both.but_for_its_days("retries", leader.claim(&retry, retry_at(), &[])).await?;
    let retries: Vec<_> = claim.retries.iter().zip(1..).map(|(retry, seq)| (*retry, seq)).collect();
    assert_eq!(retries.len(), 2);
    let decisions = Decisions { retries, ..Decisions::default() };
    let committed = both.but_for_its_days("retry", claim.commit(1, &decisions, &[])).await?;
    assert_eq!(committed.retried.len(), 2);
    Ok(())
}

/// 400 days; the template has yesterday, today and two days to come of them.
async fn with_days() -> Result<Bench> {
    let bench = Bench::new().await?;
    make_days(&bench, "job_executions", 2..400).await?;
    for table in ["job_execution_logs", "execution_attempts"] {
        make_days(&bench, table, 200..201).await?;
    }
    Ok(bench)
}

/// What the gateway and the dispatchers ask by ids, likewise.
#[tokio::test]
async fn what_cancels_releases_and_withdraws_locks_the_partitions_of_their_days_alone() -> Result<()> {
    let bench = with_days().await?;
    let (now, then) = (bench.now().await?, midnight(&bench, 200).await?);
    let (today, both) = (beside(&bench, &[0]).await?, beside(&bench, &[0, 200]).await?);
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(8).await?;
    let mut held = born_at(&today, &mut leader, &jobs[..4], now).await?;
    held.extend(born_at(&both, &mut leader, &jobs[4..], then).await?);
    both.but_for_its_days("settle", leader.settle(&[held[0].claim, held[4].claim])).await?;
    let born: Vec<_> = held.iter().map(|held| held.execution).collect();
    let store = &bench.store;
    let gateway = carillon_store::Store::connect_lazily(&bench.options("gateway"))?;

    // One of each day is RETRYING, one released, one merely QUEUED.
    let ends = [finished(held[0], Status::Retrying), finished(held[4], Status::Retrying)];
    both.but_for_its_days("retrying", store.record(Uuid::nil(), &[], &ends, &[])).await?;
    let released = both.but_for_its_days("release", store.release(&[held[1], held[5]])).await?;
    assert_eq!(released, [Release::Done; 2]);
    assert_eq!(both.but_for_its_days("release again", store.release(&[held[1], held[5]])).await?, [Release::Done; 2]);
    assert_eq!(both.but_for_its_days("adopt", store.adopt(&born)).await?.len(), 8);
    for id in [born[0], born[4]] {
        let attempts = both.but_for_its_days("attempts", executions::attempts(&gateway, id)).await?;
        assert_eq!(attempts.len(), 1);
    }
    let trigger = bench.trigger(jobs[0], then).await?;
    for (id, asked) in [(born[0], false), (born[4], false), (born[1], true), (born[5], true), (trigger, false)] {
        let cancelled = both.but_for_its_days("cancel", cancels::cancel(&gateway, id, "")).await?;
        assert_eq!(cancelled.asked, asked);
    }
    let taken = [1, 5].map(|at| Held { take: 1, ..held[at] });
    assert_eq!(both.but_for_its_days("cancels requested", store.cancels_requested(&taken)).await?, taken);
    let withdrawn = both.but_for_its_days("withdrawn", gateway.executions_withdrawn(0, &born)).await?;
    assert_eq!(withdrawn.len(), 2);
    assert_eq!(both.but_for_its_days("end unread", gateway.executions_end_unread(&withdrawn)).await?.len(), 2);

    // Born final: a fire that is skipped.
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1")
        .bind(jobs[7])
        .bind(then)
        .execute(&bench.pool)
        .await?;
    let rooms = [room(Source::Timer, &medium(), 100)];
    let claim = both.but_for_its_days("claim", leader.claim(&rooms, now, &[])).await?;
    let mut decisions = crate::bench::one_each(&claim.timers);
    for new in &mut decisions.executions {
        (new.skipped, new.seq, new.id) = (true, 0, ids::execution_for_trigger(new.job, "skipped", then));
    }
    both.but_for_its_days("born final", claim.commit(1, &decisions, &[])).await?;
    assert_eq!(bench.count("job_executions WHERE status = 'SKIPPED'").await?, 1);
    Ok(())
}

/// And by a job.
#[tokio::test]
async fn what_is_asked_of_a_job_locks_the_partitions_of_its_days_alone() -> Result<()> {
    let bench = with_days().await?;
    let now = bench.now().await?;
    let mut leader = bench.leader().await?;
    let job = bench.job().await?;
    let held = born_at(&beside(&bench, &[0]).await?, &mut leader, &[job], now).await?;
    let gateway = carillon_store::Store::connect_lazily(&bench.options("gateway"))?;
    // What was claimed ahead lies today or tomorrow, and a notice of it may be a minute late.
    let ahead = beside(&bench, &[0, -1]).await?;
    let late = beside(&bench, &[1, 0, -1]).await?;
    ahead.but_for_its_days("pause", jobs::pause(&gateway, job)).await?;
    ahead.but_for_its_days("pause again", jobs::pause(&gateway, job)).await?;
    late.but_for_its_days("withdrawn of job", gateway.executions_withdrawn_of_job(job)).await?;
    ahead.but_for_its_days("resume", jobs::resume(&gateway, job)).await?;
    // Of days to come it must look whether something is there.
    let coming = beside(&bench, &[0, -1, -2]).await?;
    sqlx::query(
        "INSERT INTO job_revisions (job_id, revision, definition, superseded_at)
         SELECT job_id, 0, definition, now() - interval '9 days' FROM job_revisions WHERE job_id = $1",
    )
    .bind(job)
    .execute(&bench.pool)
    .await?;
    let age = Duration::from_secs(24 * 60 * 60);
    let forgotten = coming.but_for_its_days("forget revisions", revisions::forget(&gateway, age)).await?;
    assert_eq!(forgotten, 1);
    assert!(coming.but_for_its_days("delete", jobs::delete(&gateway, job)).await?);
    let mut deleting = jobs::Deleting::of(&gateway, job);
    let mut asked = Vec::new();
    while let Some(some) = coming.but_for_its_days("a step of a deletion", deleting.step()).await? {
        asked.extend(some);
    }
    assert_eq!(asked, [held[0].execution]);
    Ok(())
}
