//! R10: RUNNING is written for what outlives a flush, by whoever may still run it.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_store::recorder::{Held, Started, Verdict};
use uuid::Uuid;

use crate::bench::{Bench, finished, start, started};

const RUNNING: Verdict = Verdict::Running { cancel_requested: false };
const OVER: Verdict = Verdict::Over { unknown: false };

#[tokio::test]
async fn r10_running_is_written_with_worker_and_start() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let (verdicts, none) = bench.store.executions_record(worker, &[started(held)], &[], &[]).await?;
    assert_eq!((verdicts, none), (vec![RUNNING], Vec::new()));
    let row = bench.row(held.execution).await?;
    assert_eq!((row.status.as_str(), row.worker_id, row.started_at), ("RUNNING", Some(worker), Some(start())));
    bench.assert_counters().await
}

/// H114: what is recorded is what runs, whatever the row says meanwhile.
#[tokio::test]
async fn h114_running_says_the_revision_that_runs() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.change(held.execution, "revision = 9").await?;
    let what = Started { revision: 2, ..started(held) };
    let (verdicts, _) = bench.store.executions_record(worker, &[what], &[], &[]).await?;
    assert_eq!(verdicts, [RUNNING], "it is never compared (H115)");
    assert_eq!(bench.row(held.execution).await?.revision, 2);
    Ok(())
}

#[tokio::test]
async fn r10_every_guard_refuses_and_writes_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let (me, other) = (bench.live_worker().await?, bench.worker("other", chrono::TimeDelta::zero(), false).await?);
    let mut leader = bench.leader().await?;
    let mut held = bench.open(&mut leader, &bench.jobs(6).await?).await?;
    held[0].claim -= 1;
    held[1].take += 1;
    bench.run(other, held[2]).await?;
    bench.store.executions_record(other, &[], &[finished(held[3], Status::Failed)], &[]).await?;
    bench.store.executions_record(other, &[], &[finished(held[4], Status::Retrying)], &[]).await?;
    held[5].execution = Uuid::now_v7();
    let mut before = Vec::new();
    for held in &held {
        before.push(bench.whole_row(held.execution).await?);
    }
    let starts: Vec<_> = held.iter().map(|held| started(*held)).collect();
    let (verdicts, _) = bench.store.executions_record(me, &starts, &[], &[]).await?;
    let unknown = Verdict::Over { unknown: true };
    assert_eq!(verdicts, [OVER, Verdict::Lost, Verdict::Lost, OVER, OVER, unknown]);
    for (held, before) in held.iter().zip(before) {
        assert_eq!(bench.whole_row(held.execution).await?, before);
    }
    Ok(())
}

#[tokio::test]
async fn r10_a_requested_cancel_is_told_to_whoever_starts() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.change(held.execution, "cancel_requested = true").await?;
    let (verdicts, _) = bench.store.executions_record(worker, &[started(held)], &[], &[]).await?;
    assert_eq!(verdicts, [Verdict::Running { cancel_requested: true }]);
    Ok(())
}

#[tokio::test]
async fn h17_a_repeated_flush_finds_its_own_running() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    for _ in 0..2 {
        let (verdicts, _) = bench.store.executions_record(worker, &[started(held)], &[], &[]).await?;
        assert_eq!(verdicts, [RUNNING]);
    }
    Ok(())
}

/// The commit was done but its answer was lost: the repetition has to say all that the first answer said.
#[tokio::test]
async fn h17_a_repeated_flush_still_tells_of_a_requested_cancel() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.change(held.execution, "cancel_requested = true").await?;
    for time in ["first", "second"] {
        let (verdicts, _) = bench.store.executions_record(worker, &[started(held)], &[], &[]).await?;
        assert_eq!(verdicts, [Verdict::Running { cancel_requested: true }], "{time}");
    }
    Ok(())
}

/// RUNNING at oneself, but by a later take: the handler of the earlier one is somebody else's.
#[tokio::test]
async fn r10_an_earlier_take_of_the_same_worker_is_lost() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let seen = bench.store.executions_see(&[held.execution], crate::bench::LEASE).await?;
    let taken = bench.store.executions_take(worker, &[(held.execution, seen[&held.execution].clone(), false)]).await?;
    let taken: Vec<Held> = taken.iter().map(|taken| taken.held).collect();
    assert_eq!(taken, [Held { take: 1, ..held }]);
    let (verdicts, _) = bench.store.executions_record(worker, &[started(held)], &[], &[]).await?;
    assert_eq!(verdicts, [Verdict::Lost]);
    let (verdicts, _) = bench.store.executions_record(worker, &[started(taken[0])], &[], &[]).await?;
    assert_eq!(verdicts, [RUNNING], "the later take is its own");
    Ok(())
}

#[tokio::test]
async fn r10_starts_and_ends_of_one_flush_are_one_transaction() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    let mut broken = finished(held[1], Status::Failed);
    broken.error = Some("a\0b".into());
    assert!(bench.store.executions_record(worker, &[started(held[0])], &[broken], &[]).await.is_err());
    assert_eq!(bench.row(held[0].execution).await?.status, "QUEUED");
    let ends = [finished(held[1], Status::Success)];
    let (starts, ends) = bench.store.executions_record(worker, &[started(held[0])], &ends, &[]).await?;
    assert_eq!((starts, ends), (vec![RUNNING], vec![Verdict::Recorded(Status::Success)]));
    Ok(())
}
