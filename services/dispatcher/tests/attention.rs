//! Deleted jobs whose executions somebody must end: each by itself. A dispatcher in this process, on a Postgres and a Redis of
//! its own; whoever deleted the jobs has gone behind its first step.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_core::schedule::TimetableSpec;
use carillon_kit::Process;
use carillon_kit::config::ProtocolConfig;
use carillon_store::{Store, StoreOptions, jobs};
use carillon_testkit::{Database, Redis, wait_until};
use chrono::{TimeDelta, Utc};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(60);
/// Jobs that cannot be ended, twice.
const LOCKED: usize = 8;

/// A job with one execution that runs, and its id.
async fn running(pool: &PgPool) -> Result<(Uuid, Uuid)> {
    let (job, execution) = (Uuid::now_v7(), Uuid::now_v7());
    sqlx::query(
        "WITH new AS (
             INSERT INTO jobs (id, name, type, status, timetable, handler_name)
             VALUES ($1, 'deleted', 'ONE_TIME', 'ACTIVE', $3, 'test:echo') RETURNING *
         ), revision AS (
             INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(new) FROM new
         ), stats AS (
             INSERT INTO job_stats (job_id) SELECT id FROM new
         ), timer AS (
             INSERT INTO job_timers (job_id, shard, queue, priority, claimed_count) SELECT id, 0, 'default', 1, 1 FROM new
         )
         INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at)
         VALUES (0, $2, $1, 1, 1, 'RUNNING', now())",
    )
    .bind(job)
    .bind(execution)
    .bind(serde_json::to_value(TimetableSpec::once(Utc::now() - TimeDelta::hours(1)))?)
    .execute(pool)
    .await?;
    Ok((job, execution))
}

/// One that failed, by somebody's lock, ended the round for whatever stood behind it on the page; the next went the same way.
#[tokio::test]
async fn a_deleted_job_that_cannot_be_ended_keeps_no_other_from_it() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let pool = database.pool().await?;
    let store = Store::connect_lazily(&StoreOptions::new(database.url(), "test"))?;
    let (mut all, mut others) = (Vec::new(), Vec::new());
    for at in 0..2 * LOCKED + 3 {
        let (job, execution) = running(&pool).await?;
        jobs::delete(&store, job).await?;
        // Between the locked ones: a round begins now with the oldest notes, now with the newest.
        if (LOCKED..LOCKED + 3).contains(&at) { &mut others } else { &mut all }.push((job, execution));
    }
    let mut somebody = pool.begin().await?;
    for (_, locked) in &all {
        sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE").bind(locked).execute(&mut *somebody).await?;
    }
    sqlx::query("UPDATE job_attention SET look_at = noted_at").execute(&pool).await?;
    let stop = CancellationToken::new();
    let process = Process::detached("carillon-dispatcher", stop.clone());
    let protocol = ProtocolConfig { window: Duration::from_millis(800), lease: Duration::from_secs(2) };
    let config = common::config(&database, &redis.url(), protocol);
    let dispatcher = tokio::spawn(carillon_dispatcher::run(config, process));
    let asked = async |some: &[(Uuid, Uuid)]| {
        let executions: Vec<Uuid> = some.iter().map(|(_, execution)| *execution).collect();
        wait_until("they are asked to stop, and their notes gone", LIMIT, || async {
            let asked: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM job_executions e WHERE id = ANY ($1) AND cancel_requested
                 AND NOT EXISTS (SELECT FROM job_attention a WHERE a.job_id = e.job_id)",
            )
            .bind(&executions)
            .fetch_one(&pool)
            .await?;
            ensure!(usize::try_from(asked)? == executions.len(), "{asked} are");
            anyhow::Ok(())
        })
        .await
    };
    asked(&others).await?;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM job_attention").fetch_one(&pool).await?;
    assert_eq!(usize::try_from(left)?, 2 * LOCKED, "what could not be ended is not forgotten");
    somebody.rollback().await?;
    asked(&all).await?;
    stop.cancel();
    dispatcher.await?
}
