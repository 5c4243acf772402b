//! A lock of somebody else's (an administrator's session, a dump) keeps what it is on from being written, and nothing else.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_store::Error;
use carillon_store::claim::Decisions;
use carillon_store::recorder::{Started, Verdict};
use carillon_store::takes::Release;
use carillon_store::workers::Locked;
use uuid::Uuid;

use crate::bench::{Bench, LEASE, finished, incarnation, started};

const SUCCESS: Verdict = Verdict::Recorded(Status::Success);

#[tokio::test]
async fn a_locked_execution_or_its_job_s_locked_statistics_are_left_out_and_pass_afterwards() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let jobs = bench.jobs(5).await?;
    let held = bench.open(&mut bench.leader().await?, &jobs).await?;
    let mut other = bench.pool.begin().await?;
    for (statement, id) in [
        ("SELECT FROM job_executions WHERE id = $1 FOR UPDATE", held[1].execution),
        ("SELECT FROM job_stats WHERE job_id = $1 FOR NO KEY UPDATE", jobs[2]),
        // Of no concern to what is recorded.
        ("SELECT FROM jobs WHERE id = $1 FOR UPDATE", jobs[0]),
        ("SELECT FROM job_timers WHERE job_id = $1 FOR UPDATE", jobs[3]),
        ("SELECT FROM workers WHERE id = $1 FOR UPDATE", worker),
    ] {
        sqlx::query(statement).bind(id).execute(&mut *other).await?;
    }
    let ends: Vec<_> = held[..4].iter().map(|held| finished(*held, Status::Success)).collect();
    let starts = [started(held[4])];
    let (running, verdicts) = bench.store.executions_record_unlocked(worker, &starts, &ends, &jobs).await?;
    assert_eq!(running, [Verdict::Running { cancel_requested: false }]);
    assert_eq!(verdicts, [SUCCESS, Verdict::Locked, Verdict::Locked, SUCCESS]);
    // R10: whoever meets the entry of the second one again must see that it ran.
    for (left_out, status) in [(1, "QUEUED"), (2, "RUNNING")] {
        assert_eq!(bench.row(held[left_out].execution).await?.status, status);
    }
    assert_eq!(bench.count("job_attention").await?, 2, "as for whatever is recorded");
    other.rollback().await?;

    let (_, verdicts) = bench.store.executions_record_unlocked(worker, &[], &ends[1..3], &jobs).await?;
    assert_eq!(verdicts, [SUCCESS; 2]);
    bench.assert_counters().await
}

/// R10 touches no statistics.
#[tokio::test]
async fn a_start_is_shown_whatever_holds_the_statistics_and_waits_for_its_row_alone() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let jobs = bench.jobs(2).await?;
    let held = bench.open(&mut bench.leader().await?, &jobs).await?;
    let mut other = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_stats FOR UPDATE").execute(&mut *other).await?;
    let lock = sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR SHARE").bind(held[1].execution);
    lock.execute(&mut *other).await?;
    let starts: Vec<Started> = held.iter().map(|held| started(*held)).collect();
    let (verdicts, _) = bench.store.executions_record_unlocked(worker, &starts, &[], &[]).await?;
    assert_eq!(verdicts, [Verdict::Running { cancel_requested: false }, Verdict::Locked]);
    Ok(())
}

/// What is over, or unknown, will never be written, locked or not: it need not be tried again.
#[tokio::test]
async fn what_is_over_is_not_taken_for_locked() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let jobs = bench.jobs(2).await?;
    let mut held = bench.open(&mut bench.leader().await?, &jobs).await?;
    bench.store.executions_record(worker, &[], &[finished(held[0], Status::Success)], &[]).await?;
    held[1].execution = Uuid::now_v7();
    let mut other = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_executions FOR UPDATE").execute(&mut *other).await?;
    sqlx::query("SELECT FROM job_stats FOR UPDATE").execute(&mut *other).await?;
    let ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    let (_, verdicts) = bench.store.executions_record_unlocked(worker, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Over { unknown: false }, Verdict::Over { unknown: true }]);
    Ok(())
}

/// Retention may have taken the job with its statistics.
#[tokio::test]
async fn an_execution_of_a_job_that_is_gone_is_recorded() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let job = bench.job().await?;
    let held = bench.open(&mut bench.leader().await?, &[job]).await?;
    sqlx::query("DELETE FROM jobs WHERE id = $1").bind(job).execute(&bench.pool).await?;
    let (_, verdicts) =
        bench.store.executions_record_unlocked(worker, &[], &[finished(held[0], Status::Success)], &[job]).await?;
    assert_eq!(verdicts, [SUCCESS]);
    Ok(())
}

/// R7: a claim waits for no batch's row, nor does the tick; what could not be marked is told.
#[tokio::test]
async fn a_locked_batch_keeps_no_claim_and_no_other_batch_from_being_settled() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(2).await?;
    let [locked, free] =
        [bench.open(&mut leader, &jobs[..1]).await?[0].claim, bench.open(&mut leader, &jobs[1..]).await?[0].claim];
    let mut other = bench.pool.begin().await?;
    let lock = sqlx::query("SELECT FROM dispatch_batches WHERE number = $1 FOR UPDATE").bind(locked);
    lock.execute(&mut *other).await?;
    let claim = leader.claim(&[], bench.now().await?, &[]).await?;
    claim.commit(1, &Decisions::default(), &[locked, free]).await?;
    assert_eq!(leader.batches_settle(&[locked, free]).await?, [locked]);
    other.rollback().await?;
    assert!(leader.batches_settle(&[locked]).await?.is_empty());
    assert!(leader.batches_unsettled(0).await?.iter().all(|batch| batch.number > free));
    Ok(())
}

/// Takes a lock on one execution's row.
async fn lock(bench: &Bench, execution: Uuid) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut other = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE").bind(execution).execute(&mut *other).await?;
    Ok(other)
}

/// R13, R18a: after a wipe, a take-over or a stop they stand together in one statement.
#[tokio::test]
async fn a_locked_execution_keeps_no_other_from_being_taken_or_released() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(3).await?).await?;
    let other = lock(&bench, held[1].execution).await?;
    assert_eq!(bench.store.executions_release(&held).await?, [Release::Done, Release::Lost, Release::Done]);
    let ids: Vec<Uuid> = held.iter().map(|held| held.execution).collect();
    let seen = bench.store.executions_see(&ids, LEASE).await?;
    let wanted: Vec<_> = ids.iter().map(|id| (*id, seen[id].clone(), false)).collect();
    let mut taken: Vec<Uuid> =
        bench.store.executions_take(me, &wanted).await?.iter().map(|taken| taken.held.execution).collect();
    taken.sort_unstable();
    let mut free = vec![ids[0], ids[2]];
    free.sort_unstable();
    assert_eq!(taken, free);
    assert_eq!(bench.row(ids[1]).await?.take, 0, "it stays as it was");
    other.rollback().await?;
    assert_eq!(bench.store.executions_take(me, &wanted).await?.len(), 1, "and is taken afterwards");
    Ok(())
}

/// R21: for one row's sake an executor would lose all that it runs.
#[tokio::test]
async fn a_locked_execution_keeps_no_incarnation_from_being_succeeded() -> Result<()> {
    let bench = Bench::new().await?;
    let old = bench.dead_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(3).await?).await?;
    for held in &held {
        bench.run(old, *held).await?;
    }
    let starts: Vec<Started> = held.iter().map(|held| started(*held)).collect();
    let other = lock(&bench, held[1].execution).await?;
    let error = bench.store.worker_succeed(old, &incarnation("dead"), &starts, Locked::WaitedFor).await.unwrap_err();
    assert!(matches!(error, Error::Busy(_)), "{error:?}");
    let mut succession = bench.store.worker_succeed(old, &incarnation("dead"), &starts, Locked::Left).await?;
    succession.kept.sort_unstable();
    let mut free = vec![held[0].execution, held[2].execution];
    free.sort_unstable();
    assert_eq!((succession.kept, succession.left), (free, vec![held[1].execution]));
    other.rollback().await?;
    assert_eq!(bench.row(held[1].execution).await?.worker_id, Some(old), "which lives on");
    Ok(())
}
