//! Jobs that some dispatcher must look at: deleted ones whose executions somebody must end, each by itself (whoever deleted them
//! has gone behind its first step), and those that end by a skip. A dispatcher in this process, on a Postgres and a Redis of its
//! own.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_core::schedule::TimetableSpec;
use carillon_kit::Process;
use carillon_kit::config::ProtocolConfig;
use carillon_store::{Scope, Store, StoreOptions, jobs};
use carillon_testkit::{Database, Redis, wait_until};
use chrono::{DateTime, TimeDelta, Utc};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Nothing takes a tenth of it on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(180);
/// Jobs that cannot be ended, twice.
const LOCKED: usize = 8;

/// Jobs with one execution each, that runs, and its id. `due`: when their last fire is, if they have one to come.
async fn running(pool: &PgPool, count: usize, due: Option<DateTime<Utc>>) -> Result<Vec<(Uuid, Uuid)>> {
    let ids: Vec<_> = (0..count).map(|_| (Uuid::now_v7(), Uuid::now_v7())).collect();
    let (jobs, executions): (Vec<_>, Vec<_>) = ids.iter().copied().unzip();
    sqlx::query(
        "WITH new AS (
             INSERT INTO jobs (id, name, type, status, timetable, handler_name)
             SELECT id, 'ends', 'ONE_TIME', 'ACTIVE', $3, 'test:echo' FROM UNNEST($1::uuid[]) AS n(id) RETURNING *
         ), revision AS (
             INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(new) FROM new
         ), stats AS (
             INSERT INTO job_stats (job_id) SELECT id FROM new
         ), timer AS (
             INSERT INTO job_timers (job_id, shard, fire_at, queue, priority, claimed_count)
             SELECT id, 0, $4, 'default', 1, 1 FROM new
         )
         INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at)
         SELECT 0, id, job, 1, 1, 'RUNNING', now() FROM UNNEST($1::uuid[], $2::uuid[]) AS e(job, id)",
    )
    .bind(jobs)
    .bind(executions)
    .bind(serde_json::to_value(TimetableSpec::once(due.unwrap_or_else(|| Utc::now() - TimeDelta::hours(1))))?)
    .bind(due)
    .execute(pool)
    .await?;
    Ok(ids)
}

struct Dispatcher {
    stop: CancellationToken,
    running: JoinHandle<Result<()>>,
}

impl Dispatcher {
    fn start(database: &Database, redis: &Redis) -> Self {
        let stop = CancellationToken::new();
        let process = Process::detached("carillon-dispatcher", stop.clone());
        let protocol = ProtocolConfig { window: Duration::from_millis(800), lease: Duration::from_secs(2) };
        let config = common::config(database, &redis.url(), protocol);
        Self { stop, running: tokio::spawn(carillon_dispatcher::run(config, process)) }
    }

    async fn end(self) -> Result<()> {
        self.stop.cancel();
        self.running.await?
    }
}

/// One that failed, by somebody's lock, ended the round for whatever stood behind it on the page; the next went the same way.
#[tokio::test]
async fn a_deleted_job_that_cannot_be_ended_keeps_no_other_from_it() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let pool = database.pool().await?;
    let store = Store::connect_lazily(&StoreOptions::new(database.url(), "test"))?;
    let (mut all, mut others) = (Vec::new(), Vec::new());
    for (at, (job, execution)) in running(&pool, 2 * LOCKED + 3, None).await?.into_iter().enumerate() {
        jobs::delete(&store, &Scope::ALL, job).await?;
        // Between the locked ones: a round begins now with the oldest notes, now with the newest.
        if (LOCKED..LOCKED + 3).contains(&at) { &mut others } else { &mut all }.push((job, execution));
    }
    let mut somebody = pool.begin().await?;
    for (_, locked) in &all {
        sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE").bind(locked).execute(&mut *somebody).await?;
    }
    sqlx::query("UPDATE job_attention SET look_at = noted_at").execute(&pool).await?;
    let dispatcher = Dispatcher::start(&database, &redis);
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
    dispatcher.end().await
}

async fn count(pool: &PgPool, what: &'static str) -> Result<i64> {
    let statement = format!("SELECT count(*) FROM {what}");
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(pool).await?)
}

async fn until_count(pool: &PgPool, what: &'static str, wanted: usize) -> Result<()> {
    wait_until(what, LIMIT, || async {
        let count = count(pool, what).await?;
        ensure!(usize::try_from(count)? == wanted, "{count}, not {wanted}");
        anyhow::Ok(())
    })
    .await
}

/// Ends what runs, as a recorder that does not know that it was the last of its job.
async fn end_all_but(executions: &[Uuid], pool: &PgPool) -> Result<()> {
    sqlx::query(
        "WITH ended AS (
             UPDATE job_executions SET status = 'SUCCESS', completed_at = now() WHERE status = 'RUNNING' AND id <> ALL ($1)
             RETURNING job_id
         )
         UPDATE job_stats SET finished_count = 1 WHERE job_id IN (SELECT job_id FROM ended)",
    )
    .bind(executions)
    .execute(pool)
    .await?;
    Ok(())
}

/// Deleted jobs that the dispatcher is busy with, by its own account.
fn in_hand(metrics: &PrometheusHandle) -> Option<u64> {
    let text = metrics.render();
    let line = text.lines().find_map(|line| line.strip_prefix("carillon_dispatcher_deletions "));
    line.and_then(|count| count.parse().ok())
}

/// H62: the last fire of each is skipped, since the one before still runs. No end of an execution tells of them then, and of
/// those that are deleted there are more than a dispatcher has in hand.
#[tokio::test]
async fn of_thousands_of_jobs_that_end_by_a_skip_none_is_forgotten_though_some_are_paused_and_some_deleted()
-> Result<()> {
    const JOBS: usize = 2_500;
    const DELETED: usize = 1_050;
    const PAUSED: usize = 40;
    /// `DELETED_MAX` of a dispatcher.
    const IN_HAND_MAX: u64 = 1_000;
    // All tasks of this test are on this thread.
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let in_hand = || in_hand(&recorder.handle());
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let pool = database.pool().await?;
    let store = Store::connect_lazily(&StoreOptions::new(database.url(), "test"))?;
    let dispatcher = Dispatcher::start(&database, &redis);
    let all = running(&pool, JOBS, Some(Utc::now() + TimeDelta::seconds(2))).await?;
    until_count(&pool, "job_executions WHERE status = 'SKIPPED'", JOBS).await?;
    assert_eq!(count(&pool, "jobs WHERE status <> 'ACTIVE'").await?, 0, "something of each runs");
    assert_eq!(count(&pool, "job_attention").await?, i64::try_from(JOBS)?, "a note of each skip");

    let (deleted, others) = all.split_at(DELETED);
    let (paused, _) = others.split_at(PAUSED);
    for (job, _) in paused {
        jobs::pause(&store, &Scope::ALL, *job).await?;
    }
    until_count(&pool, "job_attention a JOIN jobs j ON j.id = a.job_id WHERE j.status = 'PAUSED'", 0).await?;
    let (early, late) = paused.split_at(PAUSED / 2);
    for (job, _) in early {
        jobs::resume(&store, &Scope::ALL, *job).await?;
    }
    // None of the deleted ones can be ended: their executions are locked.
    let mut somebody = pool.begin().await?;
    let executions: Vec<Uuid> = deleted.iter().map(|(_, execution)| *execution).collect();
    sqlx::query("SELECT FROM job_executions WHERE id = ANY ($1) FOR UPDATE")
        .bind(&executions)
        .execute(&mut *somebody)
        .await?;
    for (job, _) in deleted {
        jobs::delete(&store, &Scope::ALL, *job).await?;
        assert!(in_hand() <= Some(IN_HAND_MAX));
    }
    wait_until("the dispatcher to have its hands full", LIMIT, || async {
        let in_hand = in_hand();
        assert!(in_hand <= Some(IN_HAND_MAX), "{in_hand:?} in hand");
        ensure!(in_hand == Some(IN_HAND_MAX), "{in_hand:?}");
        anyhow::Ok(())
    })
    .await?;

    // What runs of the others ends, without a word of its own.
    end_all_but(&executions, &pool).await?;
    until_count(&pool, "jobs WHERE status = 'COMPLETED'", JOBS - DELETED - PAUSED + early.len()).await?;
    for (job, _) in late {
        jobs::resume(&store, &Scope::ALL, *job).await?;
    }
    until_count(&pool, "jobs WHERE status = 'COMPLETED'", JOBS - DELETED).await?;
    assert!(in_hand() <= Some(IN_HAND_MAX));
    assert_eq!(count(&pool, "job_executions WHERE cancel_requested").await?, 0, "they are locked");

    somebody.rollback().await?;
    until_count(&pool, "job_executions WHERE cancel_requested", DELETED).await?;
    until_count(&pool, "job_attention", 0).await?;
    assert_eq!(count(&pool, "jobs WHERE status = 'CANCELLED'").await?, i64::try_from(DELETED)?);
    wait_until("nothing to be in hand", LIMIT, || async {
        ensure!(in_hand() == Some(0), "{:?}", in_hand());
        anyhow::Ok(())
    })
    .await?;
    dispatcher.end().await
}
