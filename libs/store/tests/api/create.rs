//! Creating a job.

use anyhow::Result;
use carillon_core::job::{JobStatus, JobType};
use carillon_core::schedule::{DstGap, DstOverlap, Exclusion, Spec, TimetableSpec};
use carillon_store::{Error, Scope, idempotency, jobs};
use sqlx::types::Json;
use uuid::Uuid;

use crate::bench::{Bench, key, new_job};

#[tokio::test]
async fn what_is_created_reads_back_as_it_was_answered() -> Result<()> {
    let bench = Bench::new().await?;
    let new = new_job(bench.now().await?);
    let created = jobs::create(&bench.store, &Scope::ALL, new.clone(), None).await?;
    assert_eq!(created, jobs::get(&bench.store, &Scope::ALL, new.id).await?);
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

/// Lists are kept as written beside what they mean, and whoever reads the meaning alone is not disturbed.
#[tokio::test]
async fn schedules_and_exclusions_read_back_as_written() -> Result<()> {
    let bench = Bench::new().await?;
    let mut new = new_job(bench.now().await?);
    let definition = &mut new.definition;
    definition.schedule = String::new();
    definition.schedules = vec!["@every 90000ms".to_owned(), "0 9 * * MON".to_owned()];
    definition.exclusions = vec![
        Exclusion::dates("2026-12-24".parse()?, "2026-12-26".parse()?).in_timezone("Asia/Tokyo"),
        Exclusion::cron("* 0-5 * * *"),
    ];
    definition.dst_gap = Some(DstGap::Skip);
    definition.dst_overlap = Some(DstOverlap::Both);
    new.timetable = TimetableSpec {
        specs: definition.schedules.iter().cloned().map(Spec::Cron).collect(),
        exclusions: definition.exclusions.clone(),
        dst_gap: definition.dst_gap,
        dst_overlap: definition.dst_overlap,
        ..TimetableSpec::never()
    }
    .anchored(new.created_at);
    let created = jobs::create(&bench.store, &Scope::ALL, new.clone(), None).await?;
    assert_eq!(created.definition, new.definition);
    assert_eq!(created, jobs::get(&bench.store, &Scope::ALL, new.id).await?);
    let kept: Json<TimetableSpec> =
        sqlx::query_scalar("SELECT timetable FROM jobs WHERE id = $1").bind(new.id).fetch_one(&bench.pool).await?;
    assert_eq!(kept.0, new.timetable);
    jobs::pause(&bench.store, &Scope::ALL, new.id).await?;
    assert_eq!(jobs::resume(&bench.store, &Scope::ALL, new.id).await?.definition, new.definition);
    Ok(())
}

/// A newer program may know more kinds of specs: this one still lists the job.
#[tokio::test]
async fn a_timetable_of_a_newer_program_can_be_shown() -> Result<()> {
    let bench = Bench::new().await?;
    let new = new_job(bench.now().await?);
    jobs::create(&bench.store, &Scope::ALL, new.clone(), None).await?;
    sqlx::query(r#"UPDATE jobs SET timetable = '{"specs": [{"tide": "high"}], "moon": "full"}' WHERE id = $1"#)
        .bind(new.id)
        .execute(&bench.pool)
        .await?;
    assert_eq!(jobs::get(&bench.store, &Scope::ALL, new.id).await?.definition, new.definition);
    Ok(())
}

#[tokio::test]
async fn a_job_without_instants_is_exhausted_unless_it_waits_for_events() -> Result<()> {
    let bench = Bench::new().await?;
    for (job_type, expected) in [(JobType::Cron, true), (JobType::Event, false)] {
        let mut new = new_job(bench.now().await?);
        new.definition.job_type = job_type;
        new.fire_at = None;
        let job = jobs::create(&bench.store, &Scope::ALL, new, None).await?;
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
    let error = jobs::get(&bench.store, &Scope::ALL, id).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { what: "job", id: found } if found == id), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_key_leads_to_one_job_and_to_one_request() -> Result<()> {
    let bench = Bench::new().await?;
    let key_a = key("k", "a");
    assert_eq!(idempotency::begin(&bench.store, &Scope::ALL, Some(&key_a)).await?.known, None);
    let first = jobs::create(&bench.store, &Scope::ALL, new_job(bench.now().await?), Some(&key_a)).await?;
    assert_eq!(idempotency::begin(&bench.store, &Scope::ALL, Some(&key_a)).await?.known, Some(first.id));
    let again = jobs::create(&bench.store, &Scope::ALL, new_job(bench.now().await?), Some(&key_a)).await?;
    assert_eq!(again.id, first.id);
    let other = jobs::create(&bench.store, &Scope::ALL, new_job(bench.now().await?), Some(&key("k", "b"))).await;
    assert!(matches!(other, Err(Error::KeyReused { .. })), "{other:?}");
    assert!(matches!(
        idempotency::begin(&bench.store, &Scope::ALL, Some(&key("k", "b"))).await,
        Err(Error::KeyReused { .. })
    ));
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
    let creating = (0..6).map(|_| jobs::create(&bench.store, &Scope::ALL, new_job(now), Some(&key)));
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
    assert!(jobs::create(&bench.store, &Scope::ALL, new, Some(&key("k", "a"))).await.is_err());
    for table in ["jobs", "job_timers", "job_stats", "idempotency_keys"] {
        assert_eq!(bench.count(table).await?, 0, "{table}");
    }
    Ok(())
}
