//! Listing jobs, reading and listing executions.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::job::{JobStatus, JobType};
use carillon_store::jobs::{self, Filter};
use carillon_store::page::PAGE_BYTES_MAX;
use carillon_store::scan::Place;
use carillon_store::{Error, Scope, executions, triggers};
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use crate::bench::{Bench, new_job, window};

#[tokio::test]
async fn jobs_are_listed_newest_first_by_type_and_status() -> Result<()> {
    let bench = Bench::new().await?;
    let start = bench.now().await?;
    let mut ids = Vec::new();
    for minutes in 0..5 {
        let mut new = new_job(start + TimeDelta::minutes(minutes));
        if minutes == 1 {
            new.definition.job_type = JobType::Recurring;
        }
        ids.push(jobs::create(&bench.store, &Scope::ALL, new, None).await?.id);
    }
    ids.reverse();
    jobs::pause(&bench.store, &Scope::ALL, ids[0]).await?;
    jobs::delete(&bench.store, &Scope::ALL, ids[2]).await?;
    let list = async |job_type, status, limit, offset| -> Result<(Vec<Uuid>, bool)> {
        let filter = Filter { job_type, status, ..Filter::default() };
        let page = jobs::list(&bench.store, &Scope::ALL, filter, window(limit, Place::first(offset))).await?;
        Ok((page.items.into_iter().map(|job| job.id).collect(), page.next.is_some()))
    };
    assert_eq!(list(None, None, 9, 0).await?, (vec![ids[0], ids[1], ids[3], ids[4]], false), "deleted ones left out");
    assert_eq!(list(None, None, 2, 1).await?, (vec![ids[1], ids[3]], true));
    assert_eq!(list(None, None, 2, 2).await?, (vec![ids[3], ids[4]], false));
    assert_eq!(list(None, None, 2, 9).await?, (vec![], false));
    assert_eq!(list(Some(JobType::Recurring), None, 9, 0).await?.0, [ids[3]]);
    assert_eq!(list(None, Some(JobStatus::Cancelled), 9, 0).await?.0, [ids[2]]);
    assert_eq!(list(Some(JobType::Cron), Some(JobStatus::Active), 1, 0).await?, (vec![ids[1]], true));
    Ok(())
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    for minutes in 0..5 {
        let mut new = new_job(now + TimeDelta::minutes(minutes));
        new.definition.payload = json!({"text": "x".repeat(PAGE_BYTES_MAX * 2 / 5)});
        jobs::create(&bench.store, &Scope::ALL, new, None).await?;
    }
    let mut page = jobs::list(&bench.store, &Scope::ALL, Filter::default(), window(100, Place::first(0))).await?;
    let mut sizes = vec![page.items.len()];
    while let Some(next) = page.next {
        page = jobs::list(&bench.store, &Scope::ALL, Filter::default(), window(100, next)).await?;
        sizes.push(page.items.len());
    }
    assert_eq!(sizes, [2, 2, 1]);
    Ok(())
}

/// Rows are read a few at a time, by what those before them weighed.
#[tokio::test]
async fn pages_of_light_and_heavy_rows_have_each_once() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut ids = Vec::new();
    for minutes in 0..40 {
        let mut new = new_job(now + TimeDelta::minutes(minutes));
        let bytes = if minutes < 15 || minutes % 5 == 0 { PAGE_BYTES_MAX / 7 } else { 1 };
        new.definition.payload = json!({"text": "x".repeat(bytes)});
        ids.push(jobs::create(&bench.store, &Scope::ALL, new, None).await?.id);
    }
    ids.reverse();
    let (mut found, mut at) = (Vec::new(), Some(Place::first(0)));
    while let Some(place) = at {
        let page = jobs::list(&bench.store, &Scope::ALL, Filter::default(), window(100, place)).await?;
        let heavy = page.items.iter().filter(|job| job.definition.payload.to_string().len() > 1_000).count();
        assert!(!page.items.is_empty() && heavy <= 6, "{heavy}");
        found.extend(page.items.iter().map(|job| job.id));
        at = page.next;
    }
    assert_eq!(found, ids);
    Ok(())
}

#[tokio::test]
async fn an_execution_reads_back_with_everything_the_recorder_wrote() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let id = bench.execution(job.id, now, "FAILED").await?;
    sqlx::query(
        "UPDATE job_executions SET started_at = $2, duration_ms = 7, error = 'e', error_stack = 's', attempt = 3,
            worker_id = $1, reason = 'r', metadata = '{\"m\": [1]}', trace_id = $3, span_id = $4,
            created_by = 'alice', revision = 7, queue = 'slow'
         WHERE id = $1",
    )
    .bind(id)
    .bind(now)
    .bind("a".repeat(32))
    .bind("b".repeat(16))
    .execute(&bench.pool)
    .await?;
    let read = executions::get(&bench.store, &Scope::ALL, id).await?;
    assert_eq!((read.status, read.attempt, read.duration_ms, read.max_retries), (Status::Failed, 3, Some(7), 3));
    assert_eq!((read.result, read.metadata), (Some(json!({"n": 1})), Some(json!({"m": [1]}))));
    assert_eq!(
        (read.error.as_deref(), read.error_stack.as_deref(), read.reason.as_deref()),
        (Some("e"), Some("s"), Some("r"))
    );
    assert_eq!((read.trace_id, read.span_id), (Some("a".repeat(32)), Some("b".repeat(16))));
    assert_eq!((read.created_by.as_str(), read.revision), ("alice", 7));
    assert_eq!((read.worker_id, read.queue.as_str(), read.started_at), (Some(id), "slow", Some(now)));
    let unknown = executions::get(&bench.store, &Scope::ALL, job.id).await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "execution", .. })));
    Ok(())
}

#[tokio::test]
async fn executions_are_listed_newest_first_with_unclaimed_triggers() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let old = bench.execution(job.id, now - TimeDelta::seconds(60), "SUCCESS").await?;
    let newer = bench.execution(job.id, now - TimeDelta::seconds(30), "QUEUED").await?;
    let to_come = bench.execution(job.id, now + TimeDelta::seconds(30), "QUEUED").await?;
    let trigger = triggers::create(&bench.store, &Scope::ALL, &crate::trigger::new(job.id), None).await?.execution.id;
    let list = async |status, limit, offset| -> Result<(Vec<Uuid>, bool)> {
        let filter = executions::Filter { job: Some(job.id), status, ..executions::Filter::default() };
        let page = executions::list(&bench.store, &Scope::ALL, filter, window(limit, Place::first(offset))).await?;
        Ok((page.items.into_iter().map(|execution| execution.id).collect(), page.next.is_some()))
    };
    assert_eq!(list(None, 9, 0).await?, (vec![to_come, trigger, newer, old], false));
    assert_eq!(list(None, 2, 1).await?, (vec![trigger, newer], true));
    assert_eq!(list(Some(Status::Queued), 9, 0).await?.0, [to_come, trigger, newer]);
    assert_eq!(list(Some(Status::Success), 9, 0).await?.0, [old]);
    assert_eq!(list(Some(Status::Failed), 9, 0).await?, (vec![], false));
    let of = |job| executions::Filter { job: Some(job), ..executions::Filter::default() };
    let unknown = executions::list(&bench.store, &Scope::ALL, of(Uuid::from_u128(7)), window(9, Place::first(0))).await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "job", .. })));
    let silent = bench.job().await?;
    assert!(
        executions::list(&bench.store, &Scope::ALL, of(silent.id), window(9, Place::first(0))).await?.items.is_empty()
    );
    Ok(())
}
