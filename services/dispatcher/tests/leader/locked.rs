//! Somebody's lock keeps what it is on from the leader, and nothing else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use carillon_core::ids;
use carillon_core::schedule::TimetableSpec;
use chrono::{DateTime, Days, NaiveDate, Utc};
use metrics_exporter_prometheus::PrometheusBuilder;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use uuid::Uuid;

use crate::bench::{DAY, Leader, in_ms};

fn yesterday() -> NaiveDate {
    Utc::now().date_naive() - Days::new(1)
}

fn noon(day: NaiveDate) -> Result<DateTime<Utc>> {
    Ok(day.and_hms_opt(12, 0, 0).context("noon")?.and_utc())
}

/// Somebody packs the table of a day's executions, until that ends.
async fn pack(leader: &Leader, day: NaiveDate) -> Result<Transaction<'static, Postgres>> {
    let mut foreign = leader.pool.begin().await?;
    let lock = format!("LOCK TABLE ONLY job_executions_{} IN ACCESS EXCLUSIVE MODE", day.format("%Y_%m_%d"));
    sqlx::query(AssertSqlSafe(lock)).execute(&mut *foreign).await?;
    Ok(foreign)
}

/// Queued by the batch `number`, at that place. The batch itself is not there yet.
async fn queued(leader: &Leader, number: i64, seq: i32, at: DateTime<Utc>) -> Result<Uuid> {
    let job = leader.jobs(1, in_ms(86_400_000)).await?;
    let execution = ids::execution_for_fire(job, at);
    sqlx::query(
        "INSERT INTO job_executions (shard, id, job_id, queue, priority, claim, entry, seq, status, scheduled_at)
         VALUES (0, $1, $2, 'default', 1, $3, $3, $4, 'QUEUED', $5)",
    )
    .bind(execution)
    .bind(job)
    .bind(number)
    .bind(seq)
    .bind(at)
    .execute(&leader.pool)
    .await?;
    Ok(execution)
}

async fn batch(leader: &Leader, number: i64, executions: &[Uuid], is_settled: bool) -> Result<()> {
    sqlx::query(
        "INSERT INTO dispatch_batches (shard, number, term, ids, settled_at)
         VALUES (0, $1, 1, $2, CASE WHEN $3 THEN now() END)",
    )
    .bind(number)
    .bind(executions)
    .bind(is_settled)
    .execute(&leader.pool)
    .await?;
    Ok(())
}

/// S4: the row of an execution is locked by somebody who does not end, and Redis is wiped.
#[tokio::test]
async fn a_foreign_lock_holds_up_its_own_execution_only() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    let term = leader.term()?;
    let mut foreign = leader.pool.begin().await?;
    sqlx::query("SELECT FROM job_executions LIMIT 1 FOR UPDATE").execute(&mut *foreign).await?;
    leader.redis.flush_all()?;
    leader.until("the two others", || Ok(leader.length()? == 2)).await?;
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until("a new one", || Ok(leader.length()? == 3)).await?;
    foreign.rollback().await?;
    leader.until("all of them", || Ok(leader.length()? == 4)).await?;
    assert_eq!(leader.term()?, term, "the term went on");
    leader.end().await
}

/// Whoever pauses or ends a job locks its timer for a moment. A claim passes over it, and looks again; the safety net of this
/// leader is a minute away.
#[tokio::test]
async fn what_was_locked_for_a_moment_is_claimed_a_moment_later() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let job = leader.jobs(2, in_ms(1_000)).await?;
    leader.wake()?;
    let mut foreign = leader.pool.begin().await?;
    sqlx::query("SELECT FROM job_timers WHERE job_id = $1 FOR UPDATE").bind(job).execute(&mut *foreign).await?;
    leader.until("the other one", || Ok(leader.length()? == 1)).await?;
    foreign.rollback().await?;
    let released = Instant::now();
    let there = leader.until("both", || Ok(leader.length()? == 2)).await?;
    let took = there.saturating_duration_since(released);
    assert!(took < Duration::from_secs(2), "{took:?} after it was let go of");
    leader.end().await
}

/// Somebody packs the table of yesterday's executions, and a retry of yesterday is due. The claim waited for that table and was refused
/// as a whole: a row each half a second was all that was claimed.
#[tokio::test]
async fn a_locked_day_that_is_over_holds_up_no_claim_of_today() -> Result<()> {
    const JOBS: usize = 20;
    let leader = Leader::start(100, 1_000).await?;
    let noon = noon(yesterday())?;
    let job = leader.jobs(1, in_ms(86_400_000)).await?;
    let retrying = ids::execution_for_fire(job, noon);
    sqlx::query(
        "WITH execution AS (
             INSERT INTO job_executions (shard, id, job_id, queue, priority, claim, entry, status, scheduled_at, next_retry_at)
             VALUES (0, $1, $2, 'default', 1, 1, 1, 'RETRYING', $3, now())
         )
         INSERT INTO execution_retries (execution_id, job_id, shard, queue, priority, claim, due_at)
         VALUES ($1, $2, 0, 'default', 1, 1, now())",
    )
    .bind(retrying)
    .bind(job)
    .bind(noon)
    .execute(&leader.pool)
    .await?;
    let foreign = pack(&leader, yesterday()).await?;
    let created = Instant::now();
    leader.jobs(JOBS, in_ms(0)).await?;
    leader.wake()?;
    let there = leader.until("all of today", || Ok(usize::try_from(leader.length()?)? == JOBS)).await?;
    let took = there.saturating_duration_since(created);
    assert!(took < Duration::from_secs(2), "{took:?} beside a lock on yesterday");
    foreign.rollback().await?;
    leader.until("that of yesterday", || Ok(usize::try_from(leader.length()?)? == JOBS + 1)).await?;
    leader.end().await
}

/// R7: what a leader had claimed and not settled holds something of yesterday, which somebody packs. Each new leader waited for it, in
/// vain, and ended its term; nothing was claimed meanwhile.
#[tokio::test]
async fn a_new_leader_leads_beside_a_locked_day_of_an_unsettled_batch() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    let before = leader.term()?;
    let number = Utc::now().timestamp_millis();
    let of_both = [queued(&leader, number, 1, noon(yesterday())?).await?, queued(&leader, number, 2, in_ms(0)).await?];
    let foreign = pack(&leader, yesterday()).await?;
    batch(&leader, number, &of_both, false).await?;
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .execute(&leader.pool)
    .await?;
    leader.until("that of today", || Ok(leader.length()? == 1)).await?;
    let term = leader.term()?;
    assert!(term > before, "another term");
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until("a new one", || Ok(leader.length()? == 2)).await?;
    leader.until_count("dispatch_batches WHERE settled_at IS NULL", |open| open == 0).await?;
    foreign.rollback().await?;
    leader.until("that of yesterday", || Ok(leader.length()? == 3)).await?;
    assert_eq!(leader.term()?, term, "the term went on");
    leader.end().await
}

/// R5, FIRE_ONCE: the dispatchers were down for days, and what was missed is made up for by an execution of yesterday, which somebody
/// packs. Which day it is of, the timer does not tell: it stands at the first that was missed.
#[tokio::test]
async fn a_missed_fire_is_left_by_the_day_that_it_is_made_up_for_on() -> Result<()> {
    const LATE: usize = 5;
    const JOBS: usize = 20;
    let leader = Leader::start(100, 1_000).await?;
    let foreign = pack(&leader, yesterday()).await?;
    let first = noon(yesterday() - Days::new(2))?;
    leader.timetabled_jobs(LATE, first, &TimetableSpec::every(DAY * 2, first)).await?;
    // The other way about: it stands at the packed day, and fires for an instant of today.
    let first = noon(yesterday())?;
    leader.timetabled_jobs(1, first, &TimetableSpec::every(DAY / 2, first)).await?;
    leader.jobs(JOBS, in_ms(0)).await?;
    let created = Instant::now();
    leader.wake()?;
    let there = leader.until("all of today", || Ok(usize::try_from(leader.length()?)? == JOBS + 1)).await?;
    let took = there.saturating_duration_since(created);
    assert!(took < Duration::from_secs(2), "{took:?} beside a lock on yesterday");
    foreign.rollback().await?;
    leader.until("those of yesterday", || Ok(usize::try_from(leader.length()?)? == JOBS + 1 + LATE)).await?;
    leader.end().await
}

/// R19: what the walk meets of yesterday, which somebody packs, was refused page by page, and then each batch by itself, half a second
/// each; so was, after a wipe, all that stood on a page with it.
#[tokio::test]
async fn the_walk_passes_over_a_locked_day_and_comes_back_to_it() -> Result<()> {
    const LATE: i64 = 40;
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let leader = Leader::start(100, 1_000).await?;
    let old = Utc::now().timestamp_millis() - 120_000;
    let mut late = Vec::new();
    for number in old..old + LATE {
        late.push((number, queued(&leader, number, 1, noon(yesterday())?).await?));
    }
    let foreign = pack(&leader, yesterday()).await?;
    for (number, execution) in late {
        batch(&leader, number, &[execution], true).await?;
    }
    leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until("that of today", || Ok(leader.length()? == 1)).await?;
    leader.old_batches(1).await?;
    // It has met them all when that one is forgotten.
    leader.until_count("dispatch_batches", |count| count == LATE + 1).await?;
    leader.redis.flush_all()?;
    let took = leader.back_after(1).await?;
    assert!(took < Duration::from_secs(2), "{took:?} after the certificate");
    let told = recorder.handle().render();
    let refused = told.lines().find_map(|line| line.strip_prefix("carillon_dispatcher_refused_total "));
    assert!(refused.is_none_or(|count| count == "0"), "{refused:?} statements were refused");
    foreign.rollback().await?;
    leader.until("those of yesterday", || Ok(leader.length()? == LATE + 1)).await?;
    leader.end().await
}

/// R19: a batch that is over stands, locked by somebody, on the page of three that Redis has lost. The page was refused whole.
#[tokio::test]
async fn a_locked_batch_keeps_no_other_of_its_page_from_being_published_again() -> Result<()> {
    let leader = Leader::start(100, 1_000).await?;
    leader.old_batches(1).await?;
    let mut foreign = leader.pool.begin().await?;
    let locked: Vec<i64> =
        sqlx::query_scalar("SELECT number FROM dispatch_batches FOR UPDATE").fetch_all(&mut *foreign).await?;
    ensure!(locked.len() == 1, "it is gone already");
    leader.jobs(3, in_ms(0)).await?;
    leader.wake()?;
    leader.until("three entries", || Ok(leader.length()? == 3)).await?;
    leader.redis.flush_all()?;
    let took = leader.back_after(3).await?;
    // The ordinary walk comes to them ten seconds after they were claimed.
    assert!(took < Duration::from_secs(4), "{took:?} after the certificate");
    foreign.rollback().await?;
    leader.until_count("dispatch_batches", |count| count == 1).await?;
    leader.end().await
}

/// R16, R2: which revision a retried execution names is read once its claim is committed. A lock on the revisions lets that statement
/// be refused; nothing ends by it, and the batch goes out when the lock is gone.
#[tokio::test]
async fn a_statement_that_is_refused_after_a_claims_commit_ends_no_term() -> Result<()> {
    const WAITS: &str = "pg_locks WHERE NOT granted AND relation = 'job_revisions'::regclass";
    let leader = Leader::start(100, 1_000).await?;
    let job = leader.jobs(1, in_ms(0)).await?;
    leader.wake()?;
    leader.until("an entry", || Ok(leader.length()? == 1)).await?;
    let term = leader.term()?;
    // One that no claim has met.
    let revision = leader.revise(job, "{}").await?;
    let mut foreign = leader.pool.begin().await?;
    sqlx::query("LOCK TABLE job_revisions IN ACCESS EXCLUSIVE MODE").execute(&mut *foreign).await?;
    sqlx::query(
        "WITH retried AS (UPDATE job_executions SET status = 'RETRYING', revision = $1 RETURNING id, job_id, claim)
         INSERT INTO execution_retries (execution_id, job_id, shard, claim, due_at, queue, priority)
         SELECT id, job_id, 0, claim, now(), 'default', 1 FROM retried",
    )
    .bind(revision)
    .execute(&leader.pool)
    .await?;
    leader.wake()?;
    leader.until_count("job_executions WHERE attempt = 2 AND status = 'QUEUED'", |committed| committed == 1).await?;
    leader.until_count(WAITS, |waiting| waiting == 1).await?;
    // It waits for as long as a lock may be waited for.
    leader.until_count(WAITS, |waiting| waiting == 0).await?;
    foreign.rollback().await?;
    leader.until("the second attempt", || Ok(leader.length()? == 2)).await?;
    assert_eq!(leader.term()?, term, "the term went on");
    leader.end().await
}
