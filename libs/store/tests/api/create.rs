//! Creating a job.

use anyhow::Result;
use carillon_core::job::{JobStatus, JobType};
use carillon_store::{Error, idempotency, jobs};
use uuid::Uuid;

use crate::bench::{Bench, key, new_job};

#[tokio::test]
async fn what_is_created_reads_back_as_it_was_answered() -> Result<()> {
    let bench = Bench::new().await?;
    let new = new_job(bench.now().await?);
    let created = jobs::create(&bench.store, new.clone(), None).await?;
    assert_eq!(created, jobs::get(&bench.store, new.id).await?);
    assert_eq!((created.status, created.revision, created.next_run), (JobStatus::Active, 1, new.fire_at));
    assert_eq!(created.definition, new.definition);
    let (queue, priority, exhausted): (String, i16, bool) =
        sqlx::query_as("SELECT queue, priority, exhausted FROM job_timers WHERE job_id = $1")
            .bind(new.id)
            .fetch_one(&bench.pool)
            .await?;
    assert_eq!((queue.as_str(), priority, exhausted), ("slow", 2, false));
    assert_eq!(bench.count("job_stats").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_job_without_instants_is_exhausted_unless_it_waits_for_events() -> Result<()> {
    let bench = Bench::new().await?;
    for (job_type, expected) in [(JobType::Cron, true), (JobType::Event, false)] {
        let mut new = new_job(bench.now().await?);
        new.definition.job_type = job_type;
        new.fire_at = None;
        let job = jobs::create(&bench.store, new, None).await?;
        let exhausted: bool = sqlx::query_scalar("SELECT exhausted FROM job_timers WHERE job_id = $1")
            .bind(job.id)
            .fetch_one(&bench.pool)
            .await?;
        assert_eq!(exhausted, expected, "{job_type}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_job_is_not_found() -> Result<()> {
    let bench = Bench::new().await?;
    let id = Uuid::from_u128(7);
    let error = jobs::get(&bench.store, id).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "job", id: found } if found == id), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_key_leads_to_one_job_and_to_one_request() -> Result<()> {
    let bench = Bench::new().await?;
    let key_a = key("k", "a");
    assert_eq!(idempotency::begin(&bench.store, Some(&key_a)).await?.known, None);
    let first = jobs::create(&bench.store, new_job(bench.now().await?), Some(&key_a)).await?;
    assert_eq!(idempotency::begin(&bench.store, Some(&key_a)).await?.known, Some(first.id));
    let again = jobs::create(&bench.store, new_job(bench.now().await?), Some(&key_a)).await?;
    assert_eq!(again.id, first.id);
    let other = jobs::create(&bench.store, new_job(bench.now().await?), Some(&key("k", "b"))).await;
    assert!(matches!(other, Err(Error::KeyReused { .. })), "{other:?}");
    assert!(matches!(idempotency::begin(&bench.store, Some(&key("k", "b"))).await, Err(Error::KeyReused { .. })));
    for table in ["jobs", "job_timers", "job_stats", "idempotency_keys"] {
        assert_eq!(bench.count(table).await?, 1, "{table}");
    }
    Ok(())
}

#[tokio::test]
async fn of_many_requests_with_one_key_at_once_one_creates() -> Result<()> {
    let bench = Bench::new().await?;
    let key = key("k", "a");
    let now = bench.now().await?;
    let creating = (0..6).map(|_| jobs::create(&bench.store, new_job(now), Some(&key)));
    let created = futures_util::future::try_join_all(creating).await?;
    assert!(created.iter().all(|job| job.id == created[0].id));
    assert_eq!(bench.count("jobs").await?, 1);
    Ok(())
}

/// A failure leaves nothing half-created.
#[tokio::test]
async fn a_refused_row_leaves_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let mut new = new_job(bench.now().await?);
    new.definition.timeout_ms = 0;
    assert!(jobs::create(&bench.store, new, Some(&key("k", "a"))).await.is_err());
    for table in ["jobs", "job_timers", "job_stats", "idempotency_keys"] {
        assert_eq!(bench.count(table).await?, 0, "{table}");
    }
    Ok(())
}
