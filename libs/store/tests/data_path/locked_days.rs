//! Somebody has locked a day that is over as a whole (to pack it, or to make an index): what belongs there waits, nothing else does.

use anyhow::Result;
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_store::days::by_days;
use carillon_store::jobs::{self, Deleting};
use carillon_store::recorder::{Held, Started, Verdict as Written};
use carillon_store::retention::drop_days;
use carillon_store::workers::{Locked, Succession};
use carillon_store::{Error, Scope};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, finished, incarnation, medium, one_each, retry_at, room, started};
use crate::partitions::{Calendar, today};
use crate::retention::{TABLES, kept, make_day};

/// One execution of each instant, each of a job of its own.
async fn open_at(bench: &Bench, instants: &[DateTime<Utc>]) -> Result<Vec<Held>> {
    let mut leader = bench.leader().await?;
    let mut held = Vec::new();
    for at in instants {
        let job = bench.job_at(&medium(), Some(*at)).await?;
        let claim = leader.claim(&[room(Source::Timer, &medium(), 10)], bench.now().await?, &[]).await?;
        let (decisions, number) = (one_each(&claim.timers), claim.number);
        anyhow::ensure!(decisions.executions.len() == 1 && decisions.executions[0].job == job, "{decisions:?}");
        held.push(Held { execution: decisions.executions[0].id, claim: number, take: 0 });
        claim.commit(1, &decisions, &[]).await?;
    }
    Ok(held)
}

/// Yesterday, with a partition, and a bit of today.
async fn two_days(bench: &Bench) -> Result<(Calendar, DateTime<Utc>, DateTime<Utc>)> {
    let days = today(&bench.pool).await?;
    let (yesterday, now) = (days.midnight(-1) + TimeDelta::hours(12), bench.now().await?);
    Ok((days, yesterday, now))
}

async fn lock(bench: &Bench, days: &Calendar, mode: &str) -> Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut foreign = bench.pool.begin().await?;
    let table = days.partition("job_executions", -1);
    let lock = format!("LOCK TABLE ONLY carillon.{table} IN {mode} MODE");
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await?;
    Ok(foreign)
}

#[tokio::test]
async fn a_claim_leaves_what_belongs_there_and_takes_all_else() -> Result<()> {
    let bench = Bench::new().await?;
    let (days, yesterday, now) = two_days(&bench).await?;
    let retrying = open_at(&bench, &[yesterday, now]).await?;
    let ends: Vec<_> = retrying.iter().map(|held| finished(*held, Status::Retrying)).collect();
    bench.store.executions_record(Uuid::nil(), &[], &ends, &[]).await?;
    let (late, due) = (bench.job_at(&medium(), Some(yesterday)).await?, bench.job_at(&medium(), Some(now)).await?);
    let (late_trigger, trigger) = (bench.trigger(due, yesterday).await?, bench.trigger(due, now).await?);
    let mut leader = bench.leader().await?;
    let rooms = [Source::Timer, Source::Trigger, Source::Retry].map(|source| room(source, &medium(), 10));
    for mode in ["SHARE", "ACCESS EXCLUSIVE"] {
        let foreign = lock(&bench, &days, mode).await?;
        let claim = leader.claim(&rooms, retry_at().max(now), &[]).await?;
        assert_eq!(claim.timers.iter().map(|timer| timer.job).collect::<Vec<_>>(), [due], "{mode}");
        assert_eq!(claim.triggers.iter().map(|trigger| trigger.execution).collect::<Vec<_>>(), [trigger]);
        assert_eq!(claim.retries.iter().map(|retry| retry.execution).collect::<Vec<_>>(), [retrying[1].execution]);
        let left = [(Source::Timer, medium(), late), (Source::Trigger, medium(), late_trigger)];
        assert_eq!(claim.set_aside, left);
        drop(claim);
        foreign.rollback().await?;
    }
    let claim = leader.claim(&rooms, retry_at().max(now), &[]).await?;
    assert_eq!((claim.timers.len(), claim.triggers.len(), claim.retries.len()), (2, 2, 2), "nothing is lost");
    assert!(claim.set_aside.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_was_started_there_stays_with_the_earlier_incarnation() -> Result<()> {
    let bench = Bench::new().await?;
    let (days, yesterday, now) = two_days(&bench).await?;
    let old = bench.worker("one", TimeDelta::zero(), false).await?;
    let held = open_at(&bench, &[yesterday, now]).await?;
    for held in &held {
        bench.run(old, *held).await?;
    }
    let started: Vec<Started> = held.iter().map(|held| started(*held)).collect();
    for mode in ["SHARE", "ACCESS EXCLUSIVE"] {
        let foreign = lock(&bench, &days, mode).await?;
        let new = incarnation("one");
        let succession = bench.store.worker_succeed(old, &new, &started, Locked::Left).await?;
        assert_eq!(succession, Succession { kept: vec![held[1].execution], left: vec![held[0].execution] }, "{mode}");
        let none = Succession { kept: vec![], left: vec![held[0].execution] };
        assert_eq!(bench.store.worker_adopt(&new, &started[..1]).await?, none);
        foreign.rollback().await?;
        let all = Succession { kept: vec![held[0].execution], left: vec![] };
        assert_eq!(bench.store.worker_adopt(&new, &started[..1]).await?, all);
    }
    Ok(())
}

/// It is waited for neither row by row nor as a whole; what ended on another day is recorded beside it.
#[tokio::test]
async fn what_ended_there_keeps_nothing_waiting_for_a_lock() -> Result<()> {
    let bench = Bench::new().await?;
    let (days, yesterday, now) = two_days(&bench).await?;
    let me = bench.live_worker().await?;
    let held = open_at(&bench, &[yesterday, now, yesterday + TimeDelta::seconds(1)]).await?;
    for held in &held[..2] {
        bench.run(me, *held).await?;
    }
    let (start, ends) = ([started(held[2])], [finished(held[0], Status::Success), finished(held[1], Status::Success)]);
    for (mode, today) in
        [("SHARE", Written::Recorded(Status::Success)), ("ACCESS EXCLUSIVE", Written::Over { unknown: false })]
    {
        let foreign = lock(&bench, &days, mode).await?;
        let (starts, verdicts) = bench.store.executions_record_unlocked(me, &start, &ends, &[]).await?;
        assert_eq!((starts, verdicts), (vec![Written::Locked], vec![Written::Locked, today]), "{mode}");
        foreign.rollback().await?;
    }
    let (starts, verdicts) = bench.store.executions_record_unlocked(me, &start, &ends[..1], &[]).await?;
    let running = Written::Running { cancel_requested: false };
    assert_eq!((starts, verdicts), (vec![running], vec![Written::Recorded(Status::Success)]), "nothing is lost");
    bench.assert_counters().await
}

#[tokio::test]
async fn what_is_asked_of_several_days_is_answered_for_the_others() -> Result<()> {
    let bench = Bench::new().await?;
    let (days, yesterday, now) = two_days(&bench).await?;
    let held = open_at(&bench, &[yesterday, now]).await?;
    for held in &held {
        bench.run(Uuid::nil(), *held).await?;
        bench.change(held.execution, "cancel_requested = true").await?;
    }
    let foreign = lock(&bench, &days, "ACCESS EXCLUSIVE").await?;
    let ask = |some: Vec<Held>| {
        let store = bench.store.clone();
        async move { store.executions_cancels(&some).await }
    };
    let asked = by_days(held.clone(), |held| held.execution, ask).await?;
    assert_eq!(asked.answers, [(vec![held[1]], vec![held[1]])]);
    assert_eq!(asked.refused, [held[0]]);
    assert!(matches!(asked.why, Some(Error::Busy(_))), "{asked:?}");
    drop(foreign);
    Ok(())
}

/// One has an execution locked, then somebody the whole day: all else of the job is asked to stop, and that one at last.
#[tokio::test]
async fn a_deletion_ends_with_what_is_locked() -> Result<()> {
    let bench = Bench::new().await?;
    let (days, yesterday, now) = two_days(&bench).await?;
    let held = open_at(&bench, &[yesterday, now - TimeDelta::milliseconds(2), now]).await?;
    let job = bench.job_of(held[0].execution).await?;
    for other in &held[1..] {
        let statement = "UPDATE job_executions SET job_id = $2 WHERE id = $1";
        sqlx::query(statement).bind(other.execution).bind(job).execute(&bench.pool).await?;
    }
    sqlx::query("UPDATE job_timers SET claimed_count = 3 WHERE job_id = $1").bind(job).execute(&bench.pool).await?;
    let foreign_day = lock(&bench, &days, "SHARE").await?;
    let mut foreign_row = bench.pool.begin().await?;
    let row = sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE").bind(held[1].execution);
    row.execute(&mut *foreign_row).await?;
    jobs::delete(&bench.store, &Scope::ALL, job).await?;
    let mut deleting = Deleting::of(&bench.store, job);
    let mut asked = Vec::new();
    let refused = loop {
        match deleting.step().await {
            Ok(some) => asked.extend(some.expect("there is what is locked")),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Busy(_)), "{refused:?}");
    assert_eq!(asked, [held[2].execution]);
    foreign_day.rollback().await?;
    foreign_row.rollback().await?;
    while let Some(some) = deleting.step().await? {
        asked.extend(some);
    }
    asked.sort_unstable();
    let mut all: Vec<Uuid> = held.iter().map(|held| held.execution).collect();
    all.sort_unstable();
    assert_eq!(asked, all);
    Ok(())
}

/// Somebody reads the oldest day in a transaction that is left open.
#[tokio::test]
async fn a_day_that_is_read_keeps_no_later_one_from_leaving() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    for day in [-100, -99] {
        make_day(&bench, &days, day).await?;
    }
    let mut reading = bench.pool.begin().await?;
    let read = format!("SELECT FROM carillon.{}", days.partition(TABLES[0], -100));
    sqlx::query(sqlx::AssertSqlSafe(read)).execute(&mut *reading).await?;
    let round = drop_days(&bench.store, &kept()).await?;
    assert!(round.dropped.contains(&days.partition(TABLES[0], -99)), "{round:?}");
    assert!(round.waiting.contains(&days.partition(TABLES[0], -100)), "{round:?}");
    Ok(())
}
