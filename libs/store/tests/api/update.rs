//! Changing a job (R23a): what becomes of its timer, its revision, and what is claimed ahead.

use anyhow::Result;
use carillon_core::job::JobStatus;
use carillon_core::schedule::TimetableSpec;
use carillon_store::jobs::{self, Job, REASON_CHANGED, REASON_PAUSED, Update, Updated};
use carillon_store::page::Slice;
use carillon_store::{Error, Scope, revisions};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, new_job};

/// The job as it is, by another schedule.
fn rescheduled(job: &Job, schedule: &str) -> Update {
    let mut update = same(job);
    schedule.clone_into(&mut update.definition.schedule);
    update.timetable = Some((TimetableSpec::cron(schedule, "UTC"), None));
    update
}

fn same(job: &Job) -> Update {
    Update {
        definition: job.definition.clone(),
        revision: job.revision,
        timetable: None,
        updated_by: "bob".into(),
        queues_max: 1_000,
    }
}

async fn change(bench: &Bench, job: &Job, update: &Update) -> Result<Updated> {
    Ok(jobs::update(&bench.store, &Scope::ALL, job.id, update).await?.expect("it is of that revision"))
}

/// A whole minute after the next one: an even one, or the odd one behind it.
async fn minutes_to_come(bench: &Bench) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
    let minute = bench.now().await?.duration_trunc(TimeDelta::minutes(2))? + TimeDelta::minutes(4);
    Ok((minute, minute + TimeDelta::minutes(1)))
}

async fn revision_of(bench: &Bench, execution: Uuid) -> Result<i64> {
    let revision = "SELECT revision FROM job_executions WHERE id = $1";
    Ok(sqlx::query_scalar(revision).bind(execution).fetch_one(&bench.pool).await?)
}

#[tokio::test]
async fn what_stays_in_the_schedule_gets_the_new_revision_and_what_does_not_is_withdrawn() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let (even, odd) = minutes_to_come(&bench).await?;
    let (stays, falls) =
        (bench.execution(job.id, even, "QUEUED").await?, bench.execution(job.id, odd, "QUEUED").await?);
    let runs = bench.execution(job.id, odd + TimeDelta::minutes(2), "RUNNING").await?;
    let retried = bench.execution(job.id, even + TimeDelta::minutes(2), "QUEUED").await?;
    sqlx::query("UPDATE job_executions SET attempt = 2 WHERE id = $1").bind(retried).execute(&bench.pool).await?;
    let past = bench.execution(job.id, odd - TimeDelta::hours(1), "QUEUED").await?;
    let Updated { job: changed, mut ahead, .. } = change(&bench, &job, &rescheduled(&job, "*/2 * * * *")).await?;
    let mut told = [stays, falls];
    ahead.sort_unstable();
    told.sort_unstable();
    assert_eq!(ahead, told, "R8a");
    assert_eq!((changed.revision, changed.definition.schedule.as_str()), (2, "*/2 * * * *"));
    assert_eq!(changed.next_run.map(|at| at.timestamp() % 120), Some(0), "{:?}", changed.next_run);
    assert_eq!(bench.timer(job.id).await?, (changed.next_run, 2));
    assert_eq!(bench.stands(stays).await?, ("QUEUED".into(), false, None));
    assert_eq!(bench.stands(falls).await?, ("QUEUED".into(), true, Some(REASON_CHANGED.into())));
    // H116: all attempts run what the first ran.
    for untouched in [runs, retried, past] {
        assert!(!bench.stands(untouched).await?.1);
        assert_eq!(revision_of(&bench, untouched).await?, 1);
    }
    assert_eq!(revision_of(&bench, stays).await?, 2);

    // And back: what nobody has recorded as SKIPPED yet runs after all.
    let again = change(&bench, &changed, &rescheduled(&changed, "* * * * *")).await?;
    assert_eq!(again.job.revision, 3);
    for execution in [stays, falls] {
        assert_eq!(bench.stands(execution).await?, ("QUEUED".into(), false, None));
        assert_eq!(revision_of(&bench, execution).await?, 3);
    }
    Ok(())
}

/// A change that says nothing of the schedule brings nothing back that an earlier one took away.
#[tokio::test]
async fn what_fell_away_stays_away_until_the_schedule_has_it_again() -> Result<()> {
    let bench = Bench::new().await?;
    let mut job = bench.job().await?;
    let (_, odd) = minutes_to_come(&bench).await?;
    let falls = bench.execution(job.id, odd, "QUEUED").await?;
    job = change(&bench, &job, &rescheduled(&job, "*/2 * * * *")).await?.job;
    let fallen = ("QUEUED".to_owned(), true, Some(REASON_CHANGED.to_owned()));
    assert_eq!(bench.stands(falls).await?, fallen);
    for _ in 0..2 {
        let mut tags = same(&job);
        tags.definition.tags.push("more".into());
        job = change(&bench, &job, &tags).await?.job;
        assert_eq!(bench.stands(falls).await?, fallen);
        job = jobs::pause(&bench.store, &Scope::ALL, job.id).await?.job;
        assert_eq!(bench.stands(falls).await?, fallen);
    }
    jobs::resume(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!(bench.stands(falls).await?, fallen);
    Ok(())
}

#[tokio::test]
async fn what_a_pause_withdrew_comes_back_only_if_the_schedule_still_has_it() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let (even, odd) = minutes_to_come(&bench).await?;
    let (stays, falls) =
        (bench.execution(job.id, even, "QUEUED").await?, bench.execution(job.id, odd, "QUEUED").await?);
    let paused = jobs::pause(&bench.store, &Scope::ALL, job.id).await?.job;
    let changed = change(&bench, &paused, &rescheduled(&paused, "*/2 * * * *")).await?.job;
    assert_eq!((changed.status, changed.next_run, changed.revision), (JobStatus::Paused, None, 2));
    assert_eq!(bench.stands(stays).await?, ("QUEUED".into(), true, Some(REASON_PAUSED.into())));
    assert_eq!(bench.stands(falls).await?, ("QUEUED".into(), true, Some(REASON_CHANGED.into())));
    let resumed = jobs::resume(&bench.store, &Scope::ALL, job.id).await?;
    assert_eq!(resumed.next_run.map(|at| at.timestamp() % 120), Some(0), "{:?}", resumed.next_run);
    assert_eq!(bench.stands(stays).await?, ("QUEUED".into(), false, None));
    assert_eq!(bench.stands(falls).await?, ("QUEUED".into(), true, Some(REASON_CHANGED.into())));
    Ok(())
}

#[tokio::test]
async fn without_another_schedule_the_timer_stays_where_it_is() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let mut update = same(&job);
    update.definition.tags = vec!["new".into()];
    update.definition.queue = "never-named".into();
    let changed = change(&bench, &job, &update).await?.job;
    assert_eq!((changed.next_run, &changed.definition), (job.next_run, &update.definition));
    assert_eq!(bench.count("queues WHERE name = 'never-named'").await?, 1);
    assert_eq!(bench.count("job_timers WHERE queue = 'never-named' AND revision = 2").await?, 1, "where it is claimed");
    assert_eq!(jobs::get(&bench.store, &Scope::ALL, job.id).await?, changed);
    // One that is read too early is not overwritten.
    assert_eq!(jobs::update(&bench.store, &Scope::ALL, job.id, &update).await?, None);
    let listed = revisions::list(&bench.store, &Scope::ALL, job.id, Slice { limit: 10, offset: 0 }).await?.items;
    let told: Vec<_> =
        listed.iter().map(|one| (one.revision, one.created_by.as_str(), one.changed.join(" "))).collect();
    assert_eq!(told, [(2, "bob", "queue tags".into()), (1, "admin", String::new())]);
    Ok(())
}

#[tokio::test]
async fn a_queue_that_is_one_too_many_is_refused_and_nothing_is_changed() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let mut update = Update { queues_max: 1, ..same(&job) };
    update.definition.queue = "one-more".into();
    let refused = jobs::update(&bench.store, &Scope::ALL, job.id, &update).await;
    assert!(matches!(refused, Err(Error::QueuesExhausted { .. })), "{refused:?}");
    assert_eq!(jobs::get(&bench.store, &Scope::ALL, job.id).await?, job);
    jobs::delete(&bench.store, &Scope::ALL, job.id).await?;
    let refused = jobs::update(&bench.store, &Scope::ALL, job.id, &same(&job)).await;
    assert!(matches!(refused, Err(Error::FailedPrecondition { .. })), "{refused:?}");
    let unknown = jobs::update(&bench.store, &Scope::ALL, Uuid::nil(), &same(&job)).await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
    Ok(())
}

#[tokio::test]
async fn the_number_of_executions_ends_a_job_and_revives_it() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    for minutes in 1..=3 {
        bench.execution(job.id, job.created_at - TimeDelta::minutes(minutes), "SUCCESS").await?;
    }
    let bounded = |job: &Job, max| {
        let mut update = same(job);
        update.definition.max_executions = max;
        update
    };
    let ended = change(&bench, &job, &bounded(&job, Some(3))).await?.job;
    assert_eq!(ended.next_run, None);
    assert_eq!(bench.count("job_timers WHERE exhausted").await?, 1);
    assert_eq!(bench.count("job_attention").await?, 1, "somebody completes it");
    sqlx::query("UPDATE jobs SET status = 'COMPLETED', completed_at = now()").execute(&bench.pool).await?;
    let still = change(&bench, &ended, &bounded(&ended, Some(2))).await?.job;
    assert_eq!((still.status, still.next_run), (JobStatus::Completed, None));
    let revived = change(&bench, &still, &bounded(&still, None)).await?.job;
    assert_eq!((revived.status, revived.completed_at), (JobStatus::Active, None));
    assert!(revived.next_run > Some(bench.now().await? - TimeDelta::minutes(1)), "{:?}", revived.next_run);
    assert_eq!(bench.count("job_timers WHERE NOT exhausted").await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_was_due_and_is_not_claimed_yet_fires_by_the_new_schedule_too() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let due = now.duration_trunc(TimeDelta::minutes(2))? - TimeDelta::minutes(2);
    for (schedule, still_due) in [("*/2 * * * *", true), ("1-59/2 * * * *", false)] {
        let new = jobs::NewJob { fire_at: Some(due), ..new_job(now) };
        let job = jobs::create(&bench.store, &Scope::ALL, new, None).await?;
        let changed = change(&bench, &job, &rescheduled(&job, schedule)).await?.job;
        assert_eq!(changed.next_run == Some(due), still_due, "{schedule}: {:?} of {due}", changed.next_run);
    }
    Ok(())
}

/// R23a: the line stays where the entry stands; that it is another's by now is noted, for whoever holds it and for the leader.
#[tokio::test]
async fn what_is_claimed_ahead_is_misplaced_while_its_revision_names_another_line() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let (even, _) = minutes_to_come(&bench).await?;
    let execution = bench.execution(job.id, even, "QUEUED").await?;
    sqlx::query("UPDATE job_executions SET entry = 77, queue = $2, priority = $3 WHERE id = $1")
        .bind(execution)
        .bind(&job.definition.queue)
        .bind(job.definition.priority.rank())
        .execute(&bench.pool)
        .await?;
    let stands = async || -> Result<(String, bool)> {
        let line = sqlx::query_as("SELECT queue, misplaced FROM job_executions WHERE id = $1").bind(execution);
        Ok(line.fetch_one(&bench.pool).await?)
    };
    let old = job.definition.queue.clone();
    let mut update = same(&job);
    update.definition.tags.push("new".into());
    let changed = change(&bench, &job, &update).await?;
    assert_eq!((changed.misplaced, stands().await?), (vec![], (old.clone(), false)));
    let mut update = same(&changed.job);
    update.definition.queue = "other".into();
    let changed = change(&bench, &changed.job, &update).await?;
    assert_eq!((changed.misplaced, stands().await?), (vec![77], (old.clone(), true)));
    let mut update = same(&changed.job);
    update.definition.queue.clone_from(&old);
    let changed = change(&bench, &changed.job, &update).await?;
    assert_eq!((changed.misplaced, stands().await?), (vec![], (old, false)), "it is where it belongs again");
    Ok(())
}
