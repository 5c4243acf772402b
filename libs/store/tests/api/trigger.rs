//! Firing by hand.

use std::time::Duration;

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_store::idempotency::{self, Key};
use carillon_store::triggers::{self, NewTrigger, Triggered};
use carillon_store::{Error, Scope, executions, jobs};
use serde_json::json;
use uuid::Uuid;

use crate::bench::Bench;

pub(crate) fn new(job_id: Uuid) -> NewTrigger {
    NewTrigger { job_id, payload: None, metadata: None, trace: None, created_by: String::new() }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn a_trigger_is_a_queued_execution_until_the_leader_takes_it() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let trigger = NewTrigger {
        payload: Some(json!({"x": 1})),
        trace: format!("00-{TRACE}-{SPAN}-00").parse().ok(),
        created_by: "me".into(),
        metadata: Some(json!({"ticket": 7})),
        ..new(job.id)
    };
    let Triggered { execution, due } = triggers::create(&bench.store, &Scope::ALL, &trigger, None).await?;
    assert_eq!(due, Some(Line::new("slow", Priority::from_rank(2))), "where the leader is to look");
    assert_eq!((execution.status, execution.attempt, execution.job_id), (Status::Queued, 1, job.id));
    assert_eq!((execution.queue.as_str(), execution.max_retries), ("slow", 2));
    assert_eq!(execution.id.get_version_num(), 8);
    assert_eq!((execution.created_by.as_str(), execution.revision), ("me", 1));
    assert_eq!((execution.trace_id.as_deref(), execution.parent_span_id.as_deref()), (Some(TRACE), Some(SPAN)));
    let row: (String, i16, serde_json::Value, String, String) = sqlx::query_as(
        "SELECT queue, priority, payload, platform_id || '/' || trace_flags, created_by FROM job_triggers WHERE execution_id = $1",
    )
    .bind(execution.id)
    .fetch_one(&bench.pool)
    .await?;
    assert_eq!(row, ("slow".into(), 2, json!({"x": 1}), "p1/0".into(), "me".into()));
    assert_eq!(
        executions::get(&bench.store, &Scope::ALL, execution.id).await?,
        execution,
        "answered as it would be read"
    );
    assert_eq!(execution.metadata, Some(json!({"ticket": 7})));

    // As the claim does it.
    sqlx::query(
        "WITH t AS (DELETE FROM job_triggers RETURNING *)
         INSERT INTO job_executions (shard, id, job_id, status, scheduled_at) SELECT 0, execution_id, job_id, 'QUEUED', fire_at FROM t",
    )
    .execute(&bench.pool)
    .await?;
    let claimed = executions::get(&bench.store, &Scope::ALL, execution.id).await?;
    assert_eq!(
        (claimed.id, claimed.status, claimed.scheduled_at),
        (execution.id, Status::Queued, execution.scheduled_at)
    );
    Ok(())
}

#[tokio::test]
async fn without_a_key_every_request_fires() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let first = triggers::create(&bench.store, &Scope::ALL, &new(job.id), None).await?.execution;
    let second = triggers::create(&bench.store, &Scope::ALL, &new(job.id), None).await?.execution;
    assert_ne!(first.id, second.id);
    Ok(())
}

#[tokio::test]
async fn a_key_leads_to_one_execution() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let key = |content: &str| Key {
        space: format!("trigger/{}", job.id),
        platform: None,
        key: "k".into(),
        fingerprint: content.as_bytes().to_vec(),
    };
    let trigger = new(job.id);
    let (first, second) = (key("a"), key("a"));
    let (one, other) = tokio::try_join!(
        triggers::create(&bench.store, &Scope::ALL, &trigger, Some(&first)),
        triggers::create(&bench.store, &Scope::ALL, &trigger, Some(&second)),
    )?;
    assert_eq!(one.execution.id, other.execution.id);
    assert_eq!([&one.due, &other.due].into_iter().flatten().count(), 1, "it is due once");
    assert_eq!(bench.count("job_triggers").await?, 1);
    let reused = triggers::create(&bench.store, &Scope::ALL, &trigger, Some(&key("b"))).await;
    assert!(matches!(reused, Err(Error::KeyReused { .. })));
    Ok(())
}

#[tokio::test]
async fn old_keys_are_forgotten_and_young_ones_kept() -> Result<()> {
    let bench = Bench::new().await?;
    let trigger = new(bench.job().await?.id);
    let mut first = Vec::new();
    for name in ["old", "young"] {
        let key = Key { space: "s".into(), platform: None, key: name.into(), fingerprint: vec![1] };
        first.push((triggers::create(&bench.store, &Scope::ALL, &trigger, Some(&key)).await?.execution.id, key));
    }
    sqlx::query("UPDATE idempotency_keys SET created_at = now() - interval '8 days' WHERE key = 'old'")
        .execute(&bench.pool)
        .await?;
    assert_eq!(idempotency::forget(&bench.store, Duration::from_secs(7 * 24 * 60 * 60)).await?, 1);
    for ((id, key), same) in first.into_iter().zip([false, true]) {
        assert_eq!(
            triggers::create(&bench.store, &Scope::ALL, &trigger, Some(&key)).await?.execution.id == id,
            same,
            "{}",
            key.key
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_or_unknown_job_is_not_fired_and_a_paused_or_completed_one_is() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    triggers::create(&bench.store, &Scope::ALL, &new(job.id), None).await?;
    let completed = bench.job().await?;
    sqlx::query("UPDATE jobs SET status = 'COMPLETED', completed_at = now() WHERE id = $1")
        .bind(completed.id)
        .execute(&bench.pool)
        .await?;
    triggers::create(&bench.store, &Scope::ALL, &new(completed.id), None).await?;
    crate::changes::delete(&bench, job.id).await?;
    let key = Key { space: "s".into(), platform: None, key: "k".into(), fingerprint: vec![1] };
    let deleted = triggers::create(&bench.store, &Scope::ALL, &new(job.id), Some(&key)).await;
    assert!(matches!(deleted, Err(Error::FailedPrecondition { what: "job", .. })));
    let unknown = triggers::create(&bench.store, &Scope::ALL, &new(Uuid::from_u128(7)), Some(&key)).await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "job", .. })));
    assert_eq!(bench.count("idempotency_keys").await?, 0, "a refused request does not use its key up");
    assert_eq!(bench.count("job_triggers").await?, 1);
    Ok(())
}
