//! Rules of time zones that have changed: how far the walk over all jobs has come, and which timers move.

use std::time::Duration;

use anyhow::{Context as _, Result};
use carillon_core::schedule::TimetableSpec;
use carillon_store::zones::{self, Reckoned, Zoned, ZonedPage};
use carillon_store::{Scope, Store, jobs};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::types::Json;
use uuid::Uuid;

use crate::bench::{Bench, medium};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn page(store: &Store, after: Uuid) -> Result<ZonedPage> {
    zones::page(store, after).await?.context("there are jobs")
}

/// A job with this timetable, due at `fire_at`.
async fn job(bench: &Bench, timetable: &TimetableSpec, fire_at: DateTime<Utc>) -> Result<Uuid> {
    let job = bench.job_at(&medium(), Some(fire_at)).await?;
    let write = sqlx::query("UPDATE jobs SET timetable = $2 WHERE id = $1").bind(job).bind(Json(timetable));
    write.execute(&bench.pool).await?;
    Ok(job)
}

fn berlin() -> TimetableSpec {
    TimetableSpec::cron("0 9 * * *", "Europe/Berlin")
}

async fn stands_at(bench: &Bench, job: Uuid) -> Result<Option<DateTime<Utc>>> {
    let at = "SELECT COALESCE(t.fire_at, j.held_at) FROM jobs j JOIN job_timers t ON t.job_id = j.id WHERE j.id = $1";
    Ok(sqlx::query_scalar(at).bind(job).fetch_one(&bench.pool).await?)
}

fn moved(zoned: &Zoned, to: DateTime<Utc>) -> Reckoned {
    Reckoned { job: zoned.job, revision: zoned.revision, is_paused: zoned.is_paused, from: zoned.stands_at, to }
}

#[tokio::test]
async fn a_walk_is_gone_on_with_by_the_same_rules_and_begun_again_by_others_or_after_a_day() -> Result<()> {
    let bench = Bench::new().await?;
    let (store, job) = (&bench.store, Uuid::from_u128(7));
    assert_eq!(zones::walk(store, 1, DAY).await?, Some(Uuid::nil()), "the first one");
    zones::reached(store, 1, job).await?;
    assert_eq!(zones::walk(store, 1, DAY).await?, Some(job));
    zones::ended(store, 1).await?;
    assert_eq!(zones::walk(store, 1, DAY).await?, None);
    assert_eq!(zones::walk(store, 2, DAY).await?, Some(Uuid::nil()));
    zones::reached(store, 1, job).await?;
    zones::ended(store, 1).await?;
    assert_eq!(zones::walk(store, 2, DAY).await?, Some(Uuid::nil()), "whoever walked by other rules says nothing now");
    zones::ended(store, 2).await?;
    let yesterday = "UPDATE zone_walk SET ended_at = ended_at - interval '25 hours'";
    sqlx::query(yesterday).execute(&bench.pool).await?;
    assert_eq!(zones::walk(store, 2, DAY).await?, Some(Uuid::nil()));
    Ok(())
}

#[tokio::test]
async fn what_is_still_to_come_by_a_zone_is_met_and_nothing_else() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let soon = now + TimeDelta::hours(1);
    let mut excluded = TimetableSpec::cron("0 9 * * *", "UTC");
    excluded.exclusions = vec!["2026-12-24 in Asia/Tokyo".parse().map_err(|error| anyhow::anyhow!("{error:?}"))?];
    let zoned = job(&bench, &berlin(), soon).await?;
    let by_exclusion = job(&bench, &excluded, soon).await?;
    let paused = job(&bench, &berlin(), soon).await?;
    jobs::pause(&bench.store, &Scope::ALL, paused).await?;
    job(&bench, &TimetableSpec::cron("0 9 * * *", "UTC"), soon).await?;
    job(&bench, &berlin(), now - TimeDelta::hours(1)).await?;
    let deleted = job(&bench, &berlin(), soon).await?;
    jobs::delete(&bench.store, &Scope::ALL, deleted).await?;
    let page = page(&bench.store, Uuid::nil()).await?;
    let mut met: Vec<(Uuid, bool)> = page.jobs.iter().map(|zoned| (zoned.job, zoned.is_paused)).collect();
    met.sort_unstable();
    let mut expected = vec![(zoned, false), (by_exclusion, false), (paused, true)];
    expected.sort_unstable();
    assert_eq!(met, expected);
    assert!(page.jobs.iter().all(|zoned| zoned.timetable.is_some()));
    assert_eq!(zones::page_end(&bench.store, Uuid::nil()).await?, Some(page.reached));
    assert!(zones::page(&bench.store, page.reached).await?.is_none());
    assert_eq!(zones::page_end(&bench.store, page.reached).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_timer_moves_unless_somebody_holds_it_or_has_moved_it_or_changed_its_job() -> Result<()> {
    let bench = Bench::new().await?;
    let soon = bench.now().await? + TimeDelta::hours(1);
    let (to, elsewhere) = (soon + TimeDelta::hours(1), soon + TimeDelta::minutes(1));
    let mut jobs_of = Vec::new();
    for _ in 0..5 {
        jobs_of.push(job(&bench, &berlin(), soon).await?);
    }
    let [free, paused, held, gone_on, changed] = jobs_of[..] else { unreachable!() };
    jobs::pause(&bench.store, &Scope::ALL, paused).await?;
    let page = page(&bench.store, Uuid::nil()).await?;
    let reckoned: Vec<Reckoned> = page.jobs.iter().map(|zoned| moved(zoned, to)).collect();
    assert_eq!(reckoned.len(), 5);
    zones::walk(&bench.store, 2, DAY).await?;
    assert!(zones::reckon(&bench.store, 1, &reckoned).await?.is_empty(), "somebody walks by other rules by now");
    assert!(!zones::reached(&bench.store, 1, page.reached).await?);
    zones::walk(&bench.store, 1, DAY).await?;
    assert!(zones::reached(&bench.store, 1, page.reached).await?);
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1")
        .bind(gone_on)
        .bind(elsewhere)
        .execute(&bench.pool)
        .await?;
    sqlx::query("UPDATE job_timers SET revision = revision + 1 WHERE job_id = $1")
        .bind(changed)
        .execute(&bench.pool)
        .await?;
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_timers WHERE job_id = $1 FOR UPDATE").bind(held).execute(&mut *foreign).await?;
    let mut done = zones::reckon(&bench.store, 1, &reckoned).await?;
    done.sort_unstable();
    let mut expected = vec![free, paused];
    expected.sort_unstable();
    assert_eq!(done, expected);
    for (job, at) in [(free, to), (paused, to), (held, soon), (gone_on, elsewhere), (changed, soon)] {
        assert_eq!(stands_at(&bench, job).await?, Some(at));
    }
    foreign.rollback().await?;
    let again: Vec<Reckoned> = reckoned.into_iter().filter(|one| one.job == held).collect();
    assert_eq!(zones::reckon(&bench.store, 1, &again).await?, [held], "once it is free");
    Ok(())
}
