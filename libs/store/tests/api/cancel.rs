//! R17: cancelling one execution, and reading its attempts.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_store::cancels::{self, cancel};
use carillon_store::{Error, Scope, executions, jobs, triggers};
use chrono::TimeDelta;
use uuid::Uuid;

use crate::bench::Bench;

async fn counters(bench: &Bench, job: Uuid) -> Result<(i64, i64)> {
    Ok(sqlx::query_as(
        "SELECT claimed_count, finished_count FROM job_timers JOIN job_stats USING (job_id) WHERE job_id = $1",
    )
    .bind(job)
    .fetch_one(&bench.pool)
    .await?)
}

#[tokio::test]
async fn what_is_queued_or_runs_is_asked_to_stop_and_what_waits_ends_at_once() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let at = |seconds| now - TimeDelta::seconds(seconds);
    for (execution, state) in [
        (bench.execution(job.id, at(1), "QUEUED").await?, Status::Queued),
        (bench.execution(job.id, at(2), "RUNNING").await?, Status::Running),
    ] {
        let cancelled = cancel(&bench.store, &Scope::ALL, execution, "no longer needed").await?;
        assert!(cancelled.asked);
        assert_eq!((cancelled.execution.status, cancelled.execution.cancel_requested), (state, true));
        assert_eq!(cancelled.execution.reason.as_deref(), Some("no longer needed"));
        // Told again, it says the same; the first reason stands.
        let again = cancel(&bench.store, &Scope::ALL, execution, "another").await?;
        assert_eq!(again, cancelled);
    }
    assert_eq!(counters(&bench, job.id).await?, (2, 0), "they are open until somebody records their end");

    let retrying = bench.execution(job.id, at(3), "RETRYING").await?;
    let cancelled = cancel(&bench.store, &Scope::ALL, retrying, "").await?;
    assert!(!cancelled.asked);
    assert_eq!(cancelled.execution.status, Status::Cancelled);
    assert_eq!(cancelled.execution.reason.as_deref(), Some(cancels::REASON_CANCELLED));
    assert!(cancelled.execution.completed_at.is_some() && cancelled.execution.next_retry_at.is_none());
    assert_eq!(
        cancel(&bench.store, &Scope::ALL, retrying, "again").await?,
        cancelled,
        "what is CANCELLED stays as it is"
    );
    assert_eq!(counters(&bench, job.id).await?, (3, 1), "counted once");
    assert_eq!(bench.count("execution_retries").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_trigger_that_nobody_claimed_ends_with_all_that_it_said() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let trigger = triggers::NewTrigger {
        payload: Some(serde_json::json!({"x": 1})),
        trace: "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01".parse().ok(),
        created_by: "alice".into(),
        metadata: Some(serde_json::json!({"ticket": 7})),
        ..crate::trigger::new(job.id)
    };
    let trigger = triggers::create(&bench.store, &Scope::ALL, &trigger, None).await?.execution;
    let cancelled = cancel(&bench.store, &Scope::ALL, trigger.id, "typo").await?;
    assert!(!cancelled.asked, "nobody has heard of it");
    let execution = cancelled.execution;
    assert_eq!((execution.status, execution.reason.as_deref()), (Status::Cancelled, Some("typo")));
    assert_eq!((execution.created_by.as_str(), execution.revision), ("alice", 1));
    assert_eq!((execution.trace_id, execution.parent_span_id), (trigger.trace_id, trigger.parent_span_id));
    assert_eq!((execution.scheduled_at, execution.queue), (trigger.scheduled_at, trigger.queue));
    assert_eq!((&execution.metadata, execution.metadata.is_some()), (&trigger.metadata, true));
    assert_eq!(counters(&bench, job.id).await?, (0, 0), "it was never opened");
    let row: (i16, Option<String>, serde_json::Value) =
        sqlx::query_as("SELECT priority, platform_id, payload FROM job_executions WHERE id = $1")
            .bind(trigger.id)
            .fetch_one(&bench.pool)
            .await?;
    assert_eq!(row, (2, Some("p1".into()), serde_json::json!({"x": 1})));
    Ok(())
}

#[tokio::test]
async fn what_has_ended_otherwise_is_not_cancelled() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    for (index, status) in (0..).zip(["SUCCESS", "FAILED", "TIMEOUT", "SKIPPED"]) {
        let execution = bench.execution(job.id, now - TimeDelta::seconds(index), status).await?;
        let before = executions::get(&bench.store, &Scope::ALL, execution).await?;
        match cancel(&bench.store, &Scope::ALL, execution, "").await {
            Err(Error::FailedPrecondition { what: "execution", why }) => assert!(why.contains(status), "{why}"),
            other => panic!("{status}: {other:?}"),
        }
        assert_eq!(executions::get(&bench.store, &Scope::ALL, execution).await?, before);
    }
    let unknown = cancel(&bench.store, &Scope::ALL, Uuid::nil(), "").await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "execution", .. })));
    Ok(())
}

/// A pause withdraws, by which it would end SKIPPED, and a resume takes that back; a cancel is for good.
#[tokio::test]
async fn a_cancel_of_what_a_pause_withdrew_outlives_the_resume() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let coming = bench.execution(job.id, now + TimeDelta::seconds(60), "QUEUED").await?;
    jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    assert!(cancel(&bench.store, &Scope::ALL, coming, "for good").await?.asked);
    jobs::resume(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!(bench.stands(coming).await?, ("QUEUED".into(), true, Some("for good".into())));
    let withdrawn: bool = sqlx::query_scalar("SELECT withdrawn FROM job_executions WHERE id = $1")
        .bind(coming)
        .fetch_one(&bench.pool)
        .await?;
    assert!(!withdrawn);
    Ok(())
}

#[tokio::test]
async fn attempts_are_read_oldest_first_and_bounded_in_bytes() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let execution = bench.execution(job.id, now, "FAILED").await?;
    assert!(executions::attempts(&bench.store, &Scope::ALL, execution).await?.is_empty());
    sqlx::query(
        "INSERT INTO execution_attempts (execution_id, attempt, status, started_at, ended_at, worker_id, error, error_stack)
         SELECT $1, n, CASE n WHEN 2 THEN 'TIMEOUT' ELSE 'FAILED' END, now(), now(), $1, repeat('e', 200000),
                CASE n WHEN 7 THEN 'stack' END
         FROM generate_series(1, 7) n",
    )
    .bind(execution)
    .execute(&bench.pool)
    .await?;
    let attempts = executions::attempts(&bench.store, &Scope::ALL, execution).await?;
    assert_eq!(attempts.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(attempts[1].status.0, Status::Timeout);
    assert_eq!((attempts[6].status.0, attempts[6].error_stack.as_deref()), (Status::Failed, Some("stack")));
    assert_eq!((attempts[6].worker_id, attempts[6].started_at.is_some()), (Some(execution), true));
    let with_error: Vec<bool> = attempts.iter().map(|attempt| attempt.error.is_some()).collect();
    assert_eq!(with_error, [false, false, true, true, true, true, true], "of a megabyte the newest");
    Ok(())
}
