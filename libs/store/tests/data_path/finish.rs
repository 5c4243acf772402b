//! R11: the end of an attempt is written once, by whoever holds it, with all that hangs on it.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::fingerprint;
use carillon_store::recorder::{Finished, Held, LogLine, Verdict};
use carillon_store::{Error, Store};
use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::bench::{Bench, DURATION_MS, Stats, end, finished, retry_at, start, started};

const OVER: Verdict = Verdict::Over { unknown: false };

/// As an executor: a deadlock is answered by running the same again.
pub(crate) async fn record_surely(
    store: &Store,
    worker: Uuid,
    ends: &[Finished],
    ended_jobs: &[Uuid],
) -> Result<Vec<Verdict>> {
    for _ in 0..20 {
        match store.executions_record(worker, &[], ends, ended_jobs).await {
            Ok((_, verdicts)) => return Ok(verdicts),
            Err(Error::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("deadlocks without end")
}

async fn logs(bench: &Bench, execution: Uuid) -> Result<Vec<(i16, i32, String, String)>> {
    let rows = sqlx::query_as(
        "SELECT attempt, line, level, message FROM job_execution_logs WHERE execution_id = $1 ORDER BY attempt, line",
    );
    Ok(rows.bind(execution).fetch_all(&bench.pool).await?)
}

#[tokio::test]
async fn r11_a_success_is_recorded_with_result_statistics_and_log_lines() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let (_, verdicts) = bench.store.executions_record(worker, &[], &[finished(held, Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    let row = bench.row(held.execution).await?;
    assert_eq!((row.status.as_str(), row.worker_id), ("SUCCESS", Some(worker)));
    assert_eq!((row.started_at, row.completed_at), (Some(start()), Some(end())));
    assert_eq!((row.duration_ms, row.result), (Some(DURATION_MS), Some(json!({"answer": 42}))));
    let expected = Stats {
        finished_count: 1,
        success_count: 1,
        failure_count: 0,
        total_duration_ms: DURATION_MS,
        last_duration_ms: Some(DURATION_MS),
        last_run_at: Some(end()),
        last_success_id: Some(held.execution),
    };
    let job = bench.job_of(held.execution).await?;
    assert_eq!(bench.stats(job).await?, expected);
    let lines = logs(&bench, held.execution).await?;
    assert_eq!(lines, [(1, 1, "INFO".into(), "begun".into()), (1, 2, "WARN".into(), "ended".into())]);
    let last = bench.store.job_last_success(job).await?.expect("a success");
    assert_eq!((last.execution, last.result.as_deref()), (held.execution, Some("{\"answer\": 42}")));
    bench.assert_counters().await
}

#[tokio::test]
async fn r11_what_runs_at_oneself_is_recorded_too() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.run(worker, held).await?;
    let (_, verdicts) = bench.store.executions_record(worker, &[], &[finished(held, Status::Timeout)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Timeout)]);
    let row = bench.row(held.execution).await?;
    assert_eq!((row.status.as_str(), row.error.as_deref()), ("TIMEOUT", Some("it broke")));
    Ok(())
}

/// One batch holds a case of each guard and one that passes, so that the verdicts are seen to stay in order.
#[tokio::test]
async fn r11_every_guard_refuses_writes_nothing_and_says_why() -> Result<()> {
    let bench = Bench::new().await?;
    let (me, other) = (bench.live_worker().await?, bench.worker("other", chrono::TimeDelta::zero(), false).await?);
    let mut leader = bench.leader().await?;
    let mut held = bench.open(&mut leader, &bench.jobs(7).await?).await?;
    held[0].claim -= 1;
    held[1].take += 1;
    bench.run(other, held[2]).await?;
    bench.store.executions_record(other, &[], &[finished(held[3], Status::Success)], &[]).await?;
    bench.store.executions_record(other, &[], &[finished(held[4], Status::Retrying)], &[]).await?;
    held[5].execution = Uuid::now_v7();
    let mut before = Vec::new();
    for held in &held[..6] {
        before.push(bench.whole_row(held.execution).await?);
    }
    let rest = (bench.count("job_execution_logs").await?, bench.count("execution_retries").await?);
    for status in [Status::Failed, Status::Retrying, Status::Success, Status::Cancelled, Status::Skipped] {
        let ends: Vec<_> = held.iter().map(|held| finished(*held, status)).collect();
        let (_, verdicts) = bench.store.executions_record(me, &[], &ends[..6], &[]).await?;
        let unknown = Verdict::Over { unknown: true };
        assert_eq!(verdicts, [OVER, Verdict::Lost, Verdict::Lost, OVER, OVER, unknown], "{status}");
    }
    for (held, before) in held.iter().zip(before) {
        assert_eq!(bench.whole_row(held.execution).await?, before);
    }
    let after = (bench.count("job_execution_logs").await?, bench.count("execution_retries").await?);
    assert_eq!(after, rest, "neither log lines nor retries of what was refused");
    bench.assert_counters().await?;
    let finished_counts: i64 =
        sqlx::query_scalar("SELECT sum(finished_count)::bigint FROM job_stats").fetch_one(&bench.pool).await?;
    assert_eq!(finished_counts, 1, "the one that was recorded");

    let ends: Vec<_> = held.iter().rev().map(|held| finished(*held, Status::Failed)).collect();
    let (_, verdicts) = bench.store.executions_record(me, &[], &ends, &[]).await?;
    assert_eq!(verdicts[0], Verdict::Recorded(Status::Failed), "the one that may pass does, among the refused");
    assert!(!verdicts[1..].iter().any(|verdict| matches!(verdict, Verdict::Recorded(_))));
    Ok(())
}

/// RUNNING at oneself, but by a later take: R11 calls that LOST, and acknowledges nothing.
/// Seed 307: an executor that was cut off for long had an end of the last attempt to write when it ended the next one. Which of the
/// two a row was written for is told by its claim.
#[tokio::test]
async fn r11_of_two_attempts_of_one_execution_in_a_flush_the_one_that_is_over_is_told_so() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let last = Held { claim: held.claim - 1, ..held };
    let line = |attempt, message: &str| Finished {
        attempt,
        logs: vec![LogLine { timestamp: end(), level: "INFO", message: message.to_owned() }],
        ..finished(held, Status::Success)
    };
    let ends = [Finished { held: last, ..line(1, "late") }, line(2, "in time")];
    let (_, verdicts) = bench.store.executions_record(worker, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [OVER, Verdict::Recorded(Status::Success)]);
    assert_eq!(logs(&bench, held.execution).await?, [(2, 1, "INFO".to_owned(), "in time".to_owned())]);
    bench.assert_counters().await
}

#[tokio::test]
async fn r11_an_earlier_take_of_the_same_worker_is_lost() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let seen = bench.store.executions_see(&[held.execution], crate::bench::LEASE).await?;
    bench.store.executions_take(worker, &[(held.execution, seen[&held.execution].clone(), false)]).await?;
    let (_, verdicts) = bench.store.executions_record(worker, &[], &[finished(held, Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Lost]);
    Ok(())
}

#[tokio::test]
async fn h17_a_repeated_commit_adds_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(4).await?).await?;
    let statuses = [Status::Success, Status::Failed, Status::Retrying, Status::Cancelled];
    let ends: Vec<_> = held.iter().zip(statuses).map(|(held, status)| finished(*held, status)).collect();
    let (_, verdicts) = bench.store.executions_record(worker, &[], &ends, &[]).await?;
    assert_eq!(verdicts, statuses.map(Verdict::Recorded));
    let mut before = Vec::new();
    for held in &held {
        before.push((bench.whole_row(held.execution).await?, bench.stats(bench.job_of(held.execution).await?).await?));
    }
    for _ in 0..3 {
        let (_, verdicts) = bench.store.executions_record(worker, &[], &ends, &[]).await?;
        assert_eq!(verdicts, [OVER; 4]);
    }
    for (held, before) in held.iter().zip(before) {
        let job = bench.job_of(held.execution).await?;
        assert_eq!((bench.whole_row(held.execution).await?, bench.stats(job).await?), before);
    }
    assert_eq!((bench.count("job_execution_logs").await?, bench.count("execution_retries").await?), (8, 1));
    bench.assert_counters().await
}

#[tokio::test]
async fn h17_two_commits_of_the_same_end_at_once_count_once() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(20).await?).await?;
    let ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    let (one, two) =
        tokio::join!(record_surely(&bench.store, worker, &ends, &[]), record_surely(&bench.store, worker, &ends, &[]));
    for (one, two) in one?.into_iter().zip(two?) {
        let recorded = [one, two].iter().filter(|verdict| matches!(verdict, Verdict::Recorded(_))).count();
        assert_eq!(recorded, 1, "{one:?}, {two:?}");
    }
    bench.assert_counters().await
}

/// Of each that is FAILED or TIMEOUT one, with the newest end; of what ended otherwise, or goes on, none.
#[tokio::test]
async fn r17a_what_has_failed_is_kept_among_the_failures_and_nothing_else_is() -> Result<()> {
    type Failure = (Uuid, Uuid, String, DateTime<Utc>, Option<String>, String, String);
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(6).await?).await?;
    bench.change(held[0].execution, "platform_id = 'acme'").await?;
    bench.change(held[2].execution, "cancel_requested = true").await?;
    let ends = vec![
        Finished { error_stack: Some("src/a.rs:1:1".into()), ..finished(held[0], Status::Failed) },
        Finished { error: None, handler: "slow:one".into(), ..finished(held[1], Status::Timeout) },
        finished(held[2], Status::Failed),
        finished(held[3], Status::Success),
        finished(held[4], Status::Retrying),
        finished(held[5], Status::Cancelled),
    ];
    for _ in 0..2 {
        bench.store.executions_record(worker, &[], &ends, &[]).await?;
    }
    let kept = async || -> Result<Vec<Failure>> {
        let kept = "SELECT execution_id, job_id, status, ended_at, platform_id, handler_name, fingerprint FROM execution_failures
                    ORDER BY execution_id = $1 DESC";
        Ok(sqlx::query_as(kept).bind(held[0].execution).fetch_all(&bench.pool).await?)
    };
    let jobs = [bench.job_of(held[0].execution).await?, bench.job_of(held[1].execution).await?];
    let fault = fingerprint::of("echo", "it broke", "src/a.rs:1:1");
    let first = (held[0].execution, jobs[0], "FAILED".into(), end(), Some("acme".into()), "echo".into(), fault);
    let fault = fingerprint::of("slow:one", "", "");
    let second = (held[1].execution, jobs[1], "TIMEOUT".into(), end(), None, "slow:one".into(), fault);
    assert_eq!(kept().await?, [first, second.clone()]);

    // Opened again and failed again, by whatever way: the newest end counts.
    bench.change(held[0].execution, "status = 'QUEUED', completed_at = NULL, attempt = 2").await?;
    bench.store.executions_record(worker, &[], &[finished(held[0], Status::Timeout)], &[]).await?;
    let fault = fingerprint::of("echo", "it broke", "");
    let again = (held[0].execution, jobs[0], "TIMEOUT".into(), end(), Some("acme".into()), "echo".into(), fault);
    assert_eq!(kept().await?, [again, second]);
    Ok(())
}

#[tokio::test]
async fn r11_a_retry_waits_in_its_line_until_its_instant_and_counts_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let (_, verdicts) =
        bench.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Retrying)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Retrying)]);
    let row = bench.row(held.execution).await?;
    assert_eq!((row.status.as_str(), row.completed_at, row.next_retry_at), ("RETRYING", None, Some(retry_at())));
    type Waiting = (Uuid, i64, chrono::DateTime<chrono::Utc>, String, i16);
    let waiting: Vec<Waiting> =
        sqlx::query_as("SELECT execution_id, claim, due_at, queue, priority FROM execution_retries")
            .fetch_all(&bench.pool)
            .await?;
    assert_eq!(waiting, [(held.execution, held.claim, retry_at(), "default".into(), 1)]);
    let job = bench.job_of(held.execution).await?;
    assert_eq!(bench.stats(job).await?, Stats::default());
    assert_eq!(logs(&bench, held.execution).await?.len(), 2, "its lines are kept");
    bench.assert_counters().await
}

#[tokio::test]
async fn h14_a_requested_cancel_beats_a_retry_and_a_failure_but_not_a_success() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(4).await?).await?;
    for held in &held {
        bench.change(held.execution, "cancel_requested = true, reason = 'by hand'").await?;
    }
    let statuses = [Status::Retrying, Status::Failed, Status::Timeout, Status::Success];
    let ends: Vec<_> = held.iter().zip(statuses).map(|(held, status)| finished(*held, status)).collect();
    let (_, verdicts) = bench.store.executions_record(worker, &[], &ends, &[]).await?;
    let expected = [Status::Cancelled, Status::Cancelled, Status::Cancelled, Status::Success];
    assert_eq!(verdicts, expected.map(Verdict::Recorded));
    for (held, status) in held.iter().zip(expected) {
        let row = bench.row(held.execution).await?;
        assert_eq!((row.status.as_str(), row.completed_at), (status.as_str(), Some(end())));
        let why = (status == Status::Cancelled).then_some("by hand");
        assert_eq!(row.reason.as_deref(), why, "a success was not cancelled");
        assert_eq!(bench.stats(bench.job_of(held.execution).await?).await?.failure_count, 0);
    }
    assert_eq!(bench.count("execution_retries").await?, 0);
    bench.assert_counters().await
}

#[tokio::test]
async fn h14_a_cancelled_execution_promises_no_next_attempt() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.change(held.execution, "cancel_requested = true").await?;
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Retrying)], &[]).await?;
    assert_eq!(bench.row(held.execution).await?.next_retry_at, None);
    Ok(())
}

#[tokio::test]
async fn r11_statistics_add_up_over_a_batch_of_one_job() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let mut leader = bench.leader().await?;
    let job = bench.job().await?;
    let mut held = Vec::new();
    while held.len() < 4 {
        // Another millisecond is another fire.
        if let Ok(opened) = bench.open(&mut leader, &[job]).await {
            held.extend(opened);
        }
    }
    let statuses = [Status::Success, Status::Success, Status::Failed, Status::Timeout];
    let ends: Vec<_> = held.iter().zip(statuses).map(|(held, status)| finished(*held, status)).collect();
    bench.store.executions_record(worker, &[], &ends, &[]).await?;
    let stats = bench.stats(job).await?;
    assert_eq!((stats.finished_count, stats.success_count, stats.failure_count), (4, 2, 2));
    assert_eq!(stats.total_duration_ms, 4 * DURATION_MS);
    assert_eq!(stats.last_success_id, Some(held[1].execution), "the later of the two");
    bench.assert_counters().await
}

/// The mean is `total_duration_ms / (success_count + failure_count)`: what is in neither must not be in the sum.
#[tokio::test]
async fn r11_a_cancelled_run_is_finished_but_spoils_no_mean() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Cancelled)], &[]).await?;
    let stats = bench.stats(bench.job_of(held.execution).await?).await?;
    assert_eq!((stats.finished_count, stats.success_count, stats.failure_count), (1, 0, 0));
    assert_eq!(stats.total_duration_ms, 0);
    Ok(())
}

/// Whoever was about to record it as withdrawn has read the row before a resume, or a change, brought it back.
#[tokio::test]
async fn r23_what_was_brought_back_meanwhile_does_not_end_skipped() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let end = Finished { started_at: None, ..finished(held, Status::Skipped) };
    let verdicts = bench.store.executions_record(Uuid::nil(), &[], std::slice::from_ref(&end), &[]).await?.1;
    assert_eq!(verdicts, [Verdict::Lost], "it stays pending, to be looked at again");
    assert_eq!(bench.count("job_executions WHERE status = 'QUEUED'").await?, 1);
    bench.change(held.execution, "cancel_requested = true, withdrawn = true").await?;
    assert_eq!(
        bench.store.executions_record(Uuid::nil(), &[], &[end], &[]).await?.1,
        [Verdict::Recorded(Status::Skipped)]
    );
    bench.assert_counters().await
}

#[tokio::test]
async fn r23_a_withdrawn_fire_ends_skipped_with_the_reason_of_whoever_withdrew_it() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.change(held.execution, "cancel_requested = true, withdrawn = true, reason = 'job paused'").await?;
    let end = Finished { started_at: None, reason: Some("withdrawn".into()), ..finished(held, Status::Skipped) };
    let (_, verdicts) = bench.store.executions_record(Uuid::nil(), &[], &[end], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Skipped)]);
    let row = bench.row(held.execution).await?;
    assert_eq!((row.reason.as_deref(), row.started_at, row.duration_ms), (Some("job paused"), None, None));
    bench.assert_counters().await
}

#[tokio::test]
async fn r11_what_postgres_cannot_hold_is_told_apart_and_leaves_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    let good = finished(held[0], Status::Success);
    let bad = finished(held[1], Status::Success);
    let mut log = bad.clone();
    log.logs[0].message = "a\0b".into();
    let bads = [
        Finished { error: Some("a\0b".into()), ..bad.clone() },
        Finished { result: Some("\"a\\u0000b\"".into()), ..bad.clone() },
        Finished { result: Some("{".into()), ..bad.clone() },
        Finished { reason: Some("\0".into()), ..bad },
        log,
    ];
    for bad in bads {
        let refused = bench.store.executions_record(worker, &[], &[good.clone(), bad], &[]).await;
        assert!(matches!(refused, Err(Error::Data(_))), "{refused:?}");
        assert_eq!(bench.row(held[0].execution).await?.status, "QUEUED", "nothing of the batch is written");
    }
    let (_, verdicts) = bench.store.executions_record(worker, &[], &[good], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)], "without it the batch passes, on the same connections");
    Ok(())
}

#[tokio::test]
async fn r11_a_postgres_that_is_gone_is_unavailable_and_the_same_batch_passes_when_it_is_back() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let ends = [finished(held, Status::Success)];
    assert!(bench.database.terminate_backends("executor").await? >= 1);
    let cut = bench.store.executions_record(worker, &[], &ends, &[]).await;
    assert!(matches!(&cut, Err(error) if error.is_unavailable()), "{cut:?}");
    let (_, verdicts) = bench.store.executions_record(worker, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    bench.assert_counters().await
}

/// A deadlock with somebody who locks the same rows the other way round ends in Conflict, and nothing was written.
#[tokio::test]
async fn r11_a_deadlock_is_a_conflict_and_the_same_batch_passes_again() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let job = bench.job_of(held.execution).await?;
    let ends = [finished(held, Status::Success)];
    let mut other = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_stats WHERE job_id = $1 FOR UPDATE").bind(job).execute(&mut *other).await?;
    let (recorded, locked) = tokio::join!(bench.store.executions_record(worker, &[], &ends, &[]), async {
        // The record has the execution's row and waits for the statistics.
        bench.executor_waits_for_a_lock().await?;
        let lock = sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE").bind(held.execution);
        let locked = lock.execute(&mut *other).await;
        other.rollback().await?;
        Ok::<_, anyhow::Error>(locked)
    });
    match (recorded, locked?) {
        (Err(Error::Conflict(_)), Ok(_)) => {
            let (_, verdicts) = bench.store.executions_record(worker, &[], &ends, &[]).await?;
            assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
        }
        // Postgres chose the other one.
        (Ok((_, verdicts)), Err(_)) => assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]),
        other => panic!("no deadlock: {other:?}"),
    }
    bench.assert_counters().await
}

#[tokio::test]
async fn r11_the_start_of_a_later_attempt_is_kept_apart_from_its_end() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.store.executions_record(worker, &[started(held)], &[], &[]).await?;
    // A handler that never began (nobody offers it) has no duration, and takes no start away.
    let end = Finished { started_at: None, ..finished(held, Status::Failed) };
    bench.store.executions_record(worker, &[], &[end], &[]).await?;
    let row = bench.row(held.execution).await?;
    assert_eq!((row.started_at, row.duration_ms), (Some(start()), None));
    assert_eq!(bench.stats(bench.job_of(held.execution).await?).await?.last_duration_ms, None);
    Ok(())
}

#[tokio::test]
async fn r11_the_revision_that_ran_is_written_and_of_what_never_ran_the_row_s_stays() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    for held in &held {
        bench.change(held.execution, "revision = 9").await?;
    }
    let ran = Finished { revision: 2, ..finished(held[0], Status::Success) };
    let unstarted = Finished { revision: 2, started_at: None, ..finished(held[1], Status::Cancelled) };
    bench.store.executions_record(worker, &[], &[ran, unstarted], &[]).await?;
    assert_eq!(bench.row(held[0].execution).await?.revision, 2);
    assert_eq!(bench.row(held[1].execution).await?.revision, 9);
    Ok(())
}

#[tokio::test]
async fn r17a_each_failed_attempt_is_kept_once_and_nothing_else_is() -> Result<()> {
    type Attempt = (Uuid, i16, String, Option<String>, Option<Uuid>);
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(5).await?).await?;
    bench.change(held[2].execution, "cancel_requested = true").await?;
    let mut ends = vec![
        Finished { timed_out: true, ..finished(held[0], Status::Retrying) },
        finished(held[1], Status::Failed),
        // It failed all the same; that nothing follows was asked for.
        finished(held[2], Status::Retrying),
        finished(held[3], Status::Success),
        finished(held[4], Status::Cancelled),
    ];
    for _ in 0..2 {
        bench.store.executions_record(worker, &[], &ends, &[]).await?;
    }
    bench.change(held[0].execution, "status = 'QUEUED', attempt = 2").await?;
    ends[0] = Finished { attempt: 2, started_at: None, ..finished(held[0], Status::Failed) };
    bench.store.executions_record(worker, &[], &ends[..1], &[]).await?;
    let mut kept: Vec<Attempt> =
        sqlx::query_as("SELECT execution_id, attempt, status, error, worker_id FROM execution_attempts")
            .fetch_all(&bench.pool)
            .await?;
    let attempt = |held: usize, attempt: i16, status: &str| -> Attempt {
        (ends[held].held.execution, attempt, status.into(), Some("it broke".into()), Some(worker))
    };
    let mut expected =
        vec![attempt(0, 1, "TIMEOUT"), attempt(0, 2, "FAILED"), attempt(1, 1, "FAILED"), attempt(2, 1, "FAILED")];
    kept.sort();
    expected.sort();
    assert_eq!(kept, expected);
    Ok(())
}

#[tokio::test]
async fn r11_a_retry_waits_in_its_execution_s_shard() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.change(held.execution, "shard = 3").await?;
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Retrying)], &[]).await?;
    let shard: i16 = sqlx::query_scalar("SELECT shard FROM execution_retries").fetch_one(&bench.pool).await?;
    assert_eq!(shard, 3);
    Ok(())
}

#[tokio::test]
async fn r11_metadata_is_what_the_handler_left_or_stays_as_it_was() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(3).await?).await?;
    for held in &held {
        bench.change(held.execution, "metadata = '{\"from\": \"trigger\"}'").await?;
    }
    let noted = |held, status| Finished { metadata: Some("{\"n\": 1}".into()), ..finished(held, status) };
    let ends = [noted(held[0], Status::Success), noted(held[1], Status::Retrying), finished(held[2], Status::Success)];
    bench.store.executions_record(Uuid::nil(), &[], &ends, &[]).await?;
    let mut kept = Vec::new();
    for held in held {
        kept.extend(bench.store.execution_metadata(held.execution).await?);
    }
    assert_eq!(kept, [json!({"n": 1}), json!({"n": 1}), json!({"from": "trigger"})]);
    assert_eq!(bench.store.execution_metadata(Uuid::nil()).await?, None);
    Ok(())
}
