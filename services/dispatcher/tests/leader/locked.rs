//! Somebody's lock keeps what it is on from the leader, and nothing else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use carillon_core::ids;
use chrono::{Days, Utc};

use crate::bench::{Leader, in_ms};

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
    let yesterday = Utc::now().date_naive() - Days::new(1);
    let noon = yesterday.and_hms_opt(12, 0, 0).context("noon")?.and_utc();
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
    let mut foreign = leader.pool.begin().await?;
    let lock = format!("LOCK TABLE ONLY job_executions_{} IN ACCESS EXCLUSIVE MODE", yesterday.format("%Y_%m_%d"));
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await?;
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
