//! Pausing, resuming and deleting.

use std::time::Duration;

use anyhow::Result;
use carillon_core::ids;
use carillon_core::job::JobStatus;
use carillon_core::schedule::TimetableSpec;
use carillon_store::{Error, Scope, Store, jobs, triggers};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, new_job};

async fn move_timer(bench: &Bench, job: Uuid, to: Option<DateTime<Utc>>) -> Result<()> {
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1").bind(job).bind(to).execute(&bench.pool).await?;
    Ok(())
}

async fn move_held(bench: &Bench, job: Uuid, to: DateTime<Utc>) -> Result<()> {
    sqlx::query("UPDATE jobs SET held_at = $2 WHERE id = $1").bind(job).bind(to).execute(&bench.pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_pause_stops_the_timer_and_withdraws_what_is_still_to_come() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, other, now) = (bench.job().await?, bench.job().await?, bench.now().await?);
    let coming = bench.execution(job.id, now + TimeDelta::seconds(30), "QUEUED").await?;
    let coming_runs = bench.execution(job.id, now + TimeDelta::seconds(31), "RUNNING").await?;
    let past = bench.execution(job.id, now - TimeDelta::seconds(30), "QUEUED").await?;
    let foreign = bench.execution(other.id, now + TimeDelta::seconds(30), "QUEUED").await?;

    let jobs::Paused { job: paused, withdrawn } = jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!(withdrawn, [coming], "H113: executors shall hear of it");
    assert_eq!((paused.status, paused.next_run, paused.revision), (JobStatus::Paused, None, 1));
    assert!(paused.paused_at.is_some());
    assert_eq!(bench.timer(job.id).await?, (None, 1));
    assert_eq!(bench.stands(coming).await?, ("QUEUED".into(), true, Some("job paused".into())));
    for untouched in [coming_runs, past, foreign] {
        assert!(!bench.stands(untouched).await?.1);
    }
    let again = jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!(again.job, paused, "pausing a paused job changes nothing");
    assert_eq!(again.withdrawn, withdrawn, "whoever paused it may not have told them");
    Ok(())
}

#[tokio::test]
async fn a_resumed_job_goes_on_where_it_stood_if_nothing_was_missed() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let withdrawn = bench.execution(job.id, now + TimeDelta::seconds(30), "QUEUED").await?;
    let deleted_otherwise = bench.execution(job.id, now + TimeDelta::seconds(31), "QUEUED").await?;
    sqlx::query("UPDATE job_executions SET cancel_requested = true, reason = 'by hand' WHERE id = $1")
        .bind(deleted_otherwise)
        .execute(&bench.pool)
        .await?;
    jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    let resumed = jobs::resume(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!((resumed.status, resumed.next_run, resumed.paused_at), (JobStatus::Active, job.next_run, None));
    assert_eq!((resumed.revision, bench.timer(job.id).await?.1), (1, 1), "no change of the definition");
    assert_eq!(bench.stands(withdrawn).await?, ("QUEUED".into(), false, None), "it may run after all");
    assert_eq!(bench.stands(deleted_otherwise).await?.2.as_deref(), Some("by hand"));
    assert_eq!(
        jobs::resume(&bench.store, &Scope::ALL, job.id).await?,
        resumed,
        "resuming an active job changes nothing"
    );
    Ok(())
}

#[tokio::test]
async fn a_resumed_job_is_due_at_the_latest_instant_it_missed() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    let before = bench.now().await?;
    move_held(&bench, job.id, before.duration_trunc(TimeDelta::minutes(1))? - TimeDelta::minutes(90)).await?;
    let resumed = jobs::resume(&bench.store, &Scope::ALL, job.id).await?;
    let latest = [before, bench.now().await?].map(|at| at.duration_trunc(TimeDelta::minutes(1)).unwrap());
    assert!(latest.contains(&resumed.next_run.unwrap()), "{:?} of {latest:?}", resumed.next_run);
    Ok(())
}

/// Promise 1: what was due, and not yet claimed, when the job was paused is not forgotten.
#[tokio::test]
async fn what_was_due_before_the_pause_fires_after_it() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut new = new_job(now);
    let due = (now - TimeDelta::minutes(5)).duration_trunc(TimeDelta::milliseconds(1))?;
    new.timetable = TimetableSpec::once(due);
    new.fire_at = Some(due);
    let job = jobs::create(&bench.store, &Scope::ALL, new, None).await?;
    jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!(jobs::resume(&bench.store, &Scope::ALL, job.id).await?.next_run, Some(due));
    Ok(())
}

#[tokio::test]
async fn a_job_that_ended_while_it_was_paused_is_completed_when_resumed() -> Result<()> {
    let bench = Bench::new().await?;
    for (status, expected) in [("SUCCESS", JobStatus::Completed), ("RUNNING", JobStatus::Active)] {
        let job = bench.job().await?;
        bench.execution(job.id, bench.now().await?, status).await?;
        move_timer(&bench, job.id, None).await?;
        sqlx::query("UPDATE job_timers SET exhausted = true WHERE job_id = $1")
            .bind(job.id)
            .execute(&bench.pool)
            .await?;
        jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
        let resumed = jobs::resume(&bench.store, &Scope::ALL, job.id).await?;
        assert_eq!((resumed.status, resumed.next_run), (expected, None), "last execution {status}");
        assert_eq!(resumed.completed_at.is_some(), expected == JobStatus::Completed);
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_job_cancels_what_waits_and_asks_what_runs_to_stop() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let at = |seconds| now - TimeDelta::seconds(seconds);
    let queued = bench.execution(job.id, at(1), "QUEUED").await?;
    let done = bench.execution(job.id, at(2), "SUCCESS").await?;
    let running = bench.execution(job.id, at(3), "RUNNING").await?;
    let skipped = bench.execution(job.id, at(4), "SKIPPED").await?;
    let retrying = bench.execution(job.id, at(5), "RETRYING").await?;
    let trigger = triggers::create(&bench.store, &Scope::ALL, &crate::trigger::new(job.id), None).await?.execution;

    let (changed, mut asked) = delete(&bench, job.id).await?;
    assert!(changed);
    asked.sort();
    let mut expected = vec![queued, running];
    expected.sort();
    assert_eq!(asked, expected);
    let reason = Some("job deleted".to_owned());
    assert_eq!(bench.stands(queued).await?, ("QUEUED".into(), true, reason.clone()));
    assert_eq!(bench.stands(running).await?, ("RUNNING".into(), true, reason.clone()));
    assert_eq!(bench.stands(retrying).await?, ("CANCELLED".into(), true, reason.clone()));
    assert_eq!(bench.stands(trigger.id).await?, ("CANCELLED".into(), true, reason));
    assert_eq!(bench.stands(done).await?.0, "SUCCESS");
    assert_eq!(bench.stands(skipped).await?.2, None);
    assert_eq!(bench.count("execution_retries").await? + bench.count("job_triggers").await?, 0);
    let (open, finished): (i64, i64) = sqlx::query_as(
        "SELECT claimed_count - finished_count, finished_count FROM job_timers JOIN job_stats USING (job_id)",
    )
    .fetch_one(&bench.pool)
    .await?;
    assert_eq!((open, finished), (2, 2), "the counters stay exact");
    let job = jobs::get(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!((job.status, job.next_run, job.revision), (JobStatus::Cancelled, None, 1));
    assert!(job.cancelled_at.is_some());

    // Whoever deleted it may not have come to tell the executors.
    let (changed, mut again) = delete(&bench, job.id).await?;
    again.sort();
    assert_eq!((changed, again), (false, asked));
    Ok(())
}

#[tokio::test]
async fn a_paused_job_can_be_deleted() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    jobs::pause(&bench.store, &Scope::ALL, job.id).await?;
    assert!(jobs::delete(&bench.store, &Scope::ALL, job.id).await?);
    assert_eq!(jobs::get(&bench.store, &Scope::ALL, job.id).await?.paused_at, None);
    Ok(())
}

#[tokio::test]
async fn what_has_ended_is_neither_paused_nor_resumed() -> Result<()> {
    let bench = Bench::new().await?;
    let (deleted, completed) = (bench.job().await?, bench.job().await?);
    jobs::delete(&bench.store, &Scope::ALL, deleted.id).await?;
    sqlx::query("UPDATE jobs SET status = 'COMPLETED', completed_at = now() WHERE id = $1")
        .bind(completed.id)
        .execute(&bench.pool)
        .await?;
    for id in [deleted.id, completed.id] {
        assert!(matches!(
            jobs::pause(&bench.store, &Scope::ALL, id).await,
            Err(Error::FailedPrecondition { what: "job", .. })
        ));
        assert!(matches!(
            jobs::resume(&bench.store, &Scope::ALL, id).await,
            Err(Error::FailedPrecondition { what: "job", .. })
        ));
    }
    assert!(jobs::delete(&bench.store, &Scope::ALL, completed.id).await?);
    let unknown = Uuid::from_u128(7);
    assert!(matches!(jobs::pause(&bench.store, &Scope::ALL, unknown).await, Err(Error::NotFound { .. })));
    assert!(matches!(jobs::resume(&bench.store, &Scope::ALL, unknown).await, Err(Error::NotFound { .. })));
    assert!(matches!(jobs::delete(&bench.store, &Scope::ALL, unknown).await, Err(Error::NotFound { .. })));
    Ok(())
}

/// The recorder makes an execution RETRYING in the very moment of the deletion: it must end CANCELLED, not be retried.
#[tokio::test]
async fn a_deletion_waits_for_the_recorder_and_judges_what_it_left() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let execution = bench.execution(job.id, now, "RUNNING").await?;
    let mut recorder = bench.pool.begin().await?;
    sqlx::query("UPDATE job_executions SET status = 'RETRYING' WHERE id = $1")
        .bind(execution)
        .execute(&mut *recorder)
        .await?;
    let deleting = spawn_delete(&bench, job.id);
    somebody_waits(&bench).await?;
    recorder.commit().await?;
    assert_eq!(deleting.await??, (true, Vec::new()));
    assert_eq!(bench.stands(execution).await?.0, "CANCELLED");
    Ok(())
}

async fn somebody_waits(bench: &Bench) -> Result<()> {
    carillon_testkit::wait_until("somebody waits for a lock", Duration::from_secs(10), async || -> Result<()> {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&bench.pool)
        .await?;
        anyhow::ensure!(waiting > 0, "nobody waits");
        Ok(())
    })
    .await
}

/// The recorder goes through executions in an order of its own: Postgres ends the deletion's step, which begins anew.
#[tokio::test]
async fn a_deletion_that_loses_a_deadlock_is_made_again() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?, bench.now().await?);
    let first = bench.execution(job.id, now, "RETRYING").await?;
    let second = bench.execution(job.id, now + TimeDelta::seconds(1), "RETRYING").await?;
    let mut recorder = bench.pool.begin().await?;
    // So that the deletion is the one to notice, and the one to be ended.
    sqlx::query("SET LOCAL deadlock_timeout = '60s'").execute(&mut *recorder).await?;
    let lock = "SELECT FROM job_executions WHERE id = $1 FOR UPDATE";
    sqlx::query(lock).bind(second).execute(&mut *recorder).await?;
    let deleting = spawn_delete(&bench, job.id);
    somebody_waits(&bench).await?;
    sqlx::query(lock).bind(first).execute(&mut *recorder).await?;
    recorder.commit().await?;
    assert!(deleting.await??.0);
    for execution in [first, second] {
        assert_eq!(bench.stands(execution).await?.0, "CANCELLED");
    }
    Ok(())
}

/// Whatever a job has open, a step of its deletion locks few rows; and who triggers it meanwhile is refused.
#[tokio::test]
async fn a_job_with_much_open_is_deleted_in_steps() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, other) = (bench.job().await?, bench.job().await?);
    let now = bench.now().await?;
    let first = ids::first_at(now).as_u128();
    let open: Vec<Uuid> = (0..1_234).map(|n| Uuid::from_u128(first + n)).collect();
    sqlx::query(
        "WITH opened AS (
             INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at)
             SELECT 0, id, $2, 1, 1, 'RUNNING', now() FROM UNNEST($1::uuid[]) AS o(id) RETURNING id
         ), counted AS (
             UPDATE job_timers SET claimed_count = claimed_count + cardinality($1::uuid[]) WHERE job_id = $2
         )
         INSERT INTO job_triggers (execution_id, job_id, shard, fire_at, queue, priority, payload)
         SELECT gen_random_uuid(), $2, 0, now(), 'default', 1, '{}' FROM generate_series(1, 234)",
    )
    .bind(&open)
    .bind(job.id)
    .execute(&bench.pool)
    .await?;
    let foreign = bench.execution(other.id, now, "RUNNING").await?;
    assert!(jobs::delete(&bench.store, &Scope::ALL, job.id).await?);
    let refused = triggers::create(&bench.store, &Scope::ALL, &crate::trigger::new(job.id), None).await;
    assert!(matches!(refused, Err(Error::FailedPrecondition { what: "job", .. })));
    let mut deleting = jobs::Deleting::of(&bench.store, job.id);
    let mut asked = Vec::new();
    while let Some(some) = deleting.step().await? {
        assert!(some.len() <= 500);
        asked.extend(some);
    }
    asked.sort_unstable();
    assert_eq!(asked, open);
    assert_eq!(bench.count("job_executions WHERE cancel_requested AND reason = 'job deleted'").await?, 1_234 + 234);
    assert_eq!(bench.count("job_executions WHERE status = 'CANCELLED'").await?, 234);
    assert_eq!(bench.count("job_triggers").await?, 0);
    assert!(!bench.stands(foreign).await?.1);
    Ok(())
}

/// All of a deletion: whether it changed something, and whom it asked to stop.
pub(crate) async fn delete(bench: &Bench, job: Uuid) -> Result<(bool, Vec<Uuid>)> {
    delete_by(&bench.store, job).await
}

async fn delete_by(store: &Store, job: Uuid) -> Result<(bool, Vec<Uuid>)> {
    let changed = jobs::delete(store, &Scope::ALL, job).await?;
    let mut deleting = jobs::Deleting::of(store, job);
    let mut asked = Vec::new();
    while let Some(some) = deleting.step().await? {
        asked.extend(some);
    }
    Ok((changed, asked))
}

fn spawn_delete(bench: &Bench, job: Uuid) -> tokio::task::JoinHandle<Result<(bool, Vec<Uuid>)>> {
    let store = bench.store.clone();
    tokio::spawn(async move { delete_by(&store, job).await })
}

/// Many changes of one job at once: each is whole, none fails.
#[tokio::test]
async fn changes_of_one_job_wait_for_each_other() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let changing = (0..8).map(|i| {
        let store = bench.store.clone();
        async move {
            if i % 2 == 0 {
                jobs::pause(&store, &Scope::ALL, job.id).await.map(|paused| paused.job)
            } else {
                jobs::resume(&store, &Scope::ALL, job.id).await
            }
        }
    });
    futures_util::future::try_join_all(changing).await?;
    let after = jobs::get(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!(after.revision, bench.timer(job.id).await?.1);
    Ok(())
}
