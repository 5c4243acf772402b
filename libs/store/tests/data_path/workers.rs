//! R14, R18, R21: incarnations of executors live by their beat, succeed each other, and end.

use std::time::Duration;

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_store::recorder::{Held, Started, Verdict};
use carillon_store::workers::{Locked, Succession};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, LEASE, finished, incarnation, start, started};

async fn worker_row(bench: &Bench, worker: Uuid) -> Result<(DateTime<Utc>, bool)> {
    let row = sqlx::query_as("SELECT seen_at, ended FROM workers WHERE id = $1").bind(worker);
    Ok(row.fetch_one(&bench.pool).await?)
}

fn in_hand(held: &[Held]) -> Vec<Started> {
    held.iter().map(|held| started(*held)).collect()
}

#[tokio::test]
async fn r14_a_beat_is_seen_and_brings_the_database_s_clock() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.dead_worker().await?;
    let before = bench.now().await?;
    let clock = bench.store.worker_beat(worker).await?.expect("it is known");
    let after = bench.now().await?;
    assert!(worker_row(&bench, worker).await?.0 >= before);
    // The clock is measured within the beat; give or take its error it lies between.
    let error = TimeDelta::from_std(clock.error())?;
    assert!(clock.now() + error >= before && clock.now() - error <= after + TimeDelta::seconds(1));
    Ok(())
}

#[tokio::test]
async fn r14_an_incarnation_that_is_unknown_or_ended_is_told_so() -> Result<()> {
    let bench = Bench::new().await?;
    assert!(bench.store.worker_beat(Uuid::now_v7()).await?.is_none());
    let worker = bench.live_worker().await?;
    bench.store.worker_end(worker).await?;
    assert!(bench.store.worker_beat(worker).await?.is_none());
    assert!(worker_row(&bench, worker).await?.1, "a beat does not bring it back");
    Ok(())
}

#[tokio::test]
async fn r21_a_new_incarnation_keeps_what_is_its_own_and_nothing_else() -> Result<()> {
    let bench = Bench::new().await?;
    let (old, other) = (bench.dead_worker().await?, bench.live_worker().await?);
    let mut leader = bench.leader().await?;
    let mut held = bench.open(&mut leader, &bench.jobs(7).await?).await?;
    // Its own: not yet written RUNNING, and written.
    bench.run(old, held[1]).await?;
    // Not its own: at another worker, finished, retrying, an older claim, an older take.
    bench.run(other, held[2]).await?;
    bench.store.executions_record(old, &[], &[finished(held[3], Status::Success)], &[]).await?;
    bench.store.executions_record(old, &[], &[finished(held[4], Status::Retrying)], &[]).await?;
    held[5].claim -= 1;
    bench.change(held[6].execution, "take = 1").await?;
    let mut before = Vec::new();
    for held in &held[2..] {
        before.push(bench.whole_row(held.execution).await?);
    }

    let new = incarnation("dead");
    let mut started = in_hand(&held);
    for started in &mut started {
        started.revision = 7;
    }
    let mut kept = bench.store.worker_succeed(old, &new, &started, Locked::WaitedFor).await?.kept;
    kept.sort_unstable();
    let mut own = vec![held[0].execution, held[1].execution];
    own.sort_unstable();
    assert_eq!(kept, own);
    for execution in own {
        let row = bench.row(execution).await?;
        assert_eq!((row.status.as_str(), row.worker_id, row.started_at), ("RUNNING", Some(new.id), Some(start())));
        assert_eq!((row.take, row.lost), (0, 0), "nobody took it, nobody was lost");
        assert_eq!(row.revision, 7, "the revision that runs");
    }
    for (held, before) in held[2..].iter().zip(before) {
        assert_eq!(bench.whole_row(held.execution).await?, before);
    }
    assert!(worker_row(&bench, old).await?.1);
    assert!(bench.store.worker_beat(old).await?.is_none());
    assert!(bench.store.worker_beat(new.id).await?.is_some());
    let (_, verdicts) = bench.store.executions_record(new.id, &[], &[finished(held[1], Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    let (_, verdicts) = bench.store.executions_record(old, &[], &[finished(held[0], Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Lost], "the old incarnation is somebody else now");
    bench.assert_counters().await
}

#[tokio::test]
async fn r21_with_nothing_in_hand_a_new_incarnation_begins_all_the_same() -> Result<()> {
    let bench = Bench::new().await?;
    let old = bench.dead_worker().await?;
    let new = incarnation("dead");
    assert!(bench.store.worker_succeed(old, &new, &[], Locked::WaitedFor).await?.kept.is_empty());
    assert!(worker_row(&bench, old).await?.1);
    assert!(bench.store.worker_beat(new.id).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn r21_an_execution_taken_meanwhile_is_not_kept() -> Result<()> {
    let bench = Bench::new().await?;
    let (old, taker) = (bench.dead_worker().await?, bench.live_worker().await?);
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.run(old, held).await?;
    let seen = bench.store.executions_see(&[held.execution], LEASE).await?;
    bench.store.executions_take(taker, &[(held.execution, seen[&held.execution].clone(), true)]).await?;
    let kept = bench.store.worker_succeed(old, &incarnation("dead"), &in_hand(&[held]), Locked::WaitedFor).await?;
    assert_eq!(kept, Succession::default());
    assert_eq!(bench.row(held.execution).await?.worker_id, Some(taker));
    Ok(())
}

/// Seeds 303 and 304: what somebody has locked is nobody's to take while the earlier incarnation lives beside the new one.
#[tokio::test]
async fn r21_what_is_locked_stays_with_the_earlier_incarnation_until_it_is_adopted() -> Result<()> {
    let bench = Bench::new().await?;
    let old = bench.worker("one", TimeDelta::minutes(1), false).await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(3).await?).await?;
    for held in &held {
        bench.run(old, *held).await?;
    }
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE")
        .bind(held[0].execution)
        .execute(&mut *foreign)
        .await?;
    let (new, started) = (incarnation("one"), in_hand(&held));
    let waiting = bench.store.worker_succeed(old, &incarnation("one"), &started, Locked::WaitedFor).await;
    assert!(matches!(waiting, Err(carillon_store::Error::Busy(_))), "{waiting:?}");
    let succession = bench.store.worker_succeed(old, &new, &started, Locked::Left).await?;
    assert_eq!((succession.kept.len(), succession.left.as_slice()), (2, [held[0].execution].as_slice()));
    assert!(!worker_row(&bench, old).await?.1, "it lives on");
    sqlx::query("UPDATE workers SET seen_at = now() - interval '1 hour'").execute(&bench.pool).await?;
    assert!(bench.store.worker_beat(new.id).await?.is_some());
    assert!(
        bench.store.executions_see(&[held[0].execution], LEASE).await?[&held[0].execution].worker_live,
        "one beat is both's"
    );

    let left = in_hand(&held[..1]);
    let none = Succession { kept: vec![], left: vec![held[0].execution] };
    assert_eq!(bench.store.worker_adopt(&new, &left).await?, none);
    foreign.rollback().await?;
    let all = Succession { kept: vec![held[0].execution], left: vec![] };
    assert_eq!(bench.store.worker_adopt(&new, &left).await?, all);
    assert!(worker_row(&bench, old).await?.1);
    assert!(!worker_row(&bench, new.id).await?.1);
    assert_eq!(bench.row(held[0].execution).await?.worker_id, Some(new.id));
    let (_, verdicts) = bench.store.executions_record(new.id, &[], &[finished(held[0], Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    assert_eq!(bench.store.worker_adopt(&new, &left).await?, Succession::default(), "what has ended is not left");
    Ok(())
}

/// H17 for R21: the commit was done but its answer was lost, so the executor tries again with another new incarnation, as
/// the documentation tells it to. Its handlers run on; nobody else has them.
#[tokio::test]
async fn h17_a_succession_repeated_after_a_lost_answer_keeps_the_same_handlers() -> Result<()> {
    let bench = Bench::new().await?;
    let old = bench.worker("one", TimeDelta::hours(1), false).await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    bench.run(old, held[0]).await?;
    let (unanswered, again) = (incarnation("one"), incarnation("one"));
    assert_eq!(bench.store.worker_succeed(old, &unanswered, &in_hand(&held), Locked::WaitedFor).await?.kept.len(), 2);
    let kept = bench.store.worker_succeed(old, &again, &in_hand(&held), Locked::WaitedFor).await?.kept;
    assert_eq!(kept.len(), 2, "handlers that nobody else has are stopped");
    assert_eq!(bench.row(held[0].execution).await?.worker_id, Some(again.id));
    Ok(())
}

/// The incarnation whose beginning was never answered is nobody's: it must not look live, or what it holds waits for a lease,
/// and its consumer never counts as ended.
#[tokio::test]
async fn h17_a_succession_repeated_after_a_lost_answer_leaves_one_live_incarnation() -> Result<()> {
    let bench = Bench::new().await?;
    let old = bench.worker("one", TimeDelta::hours(1), false).await?;
    let (unanswered, again) = (incarnation("one"), incarnation("one"));
    bench.store.worker_succeed(old, &unanswered, &[], Locked::WaitedFor).await?;
    bench.store.worker_succeed(old, &again, &[], Locked::WaitedFor).await?;
    bench.store.worker_end(again.id).await?;
    assert_eq!(
        bench.store.consumers_ended(&["one".into()]).await?,
        ["one"],
        "R18: what it handed back is free at once"
    );
    Ok(())
}

#[tokio::test]
async fn r15_a_consumer_lives_by_any_incarnation_and_has_ended_by_all() -> Result<()> {
    let bench = Bench::new().await?;
    let (zero, hour) = (TimeDelta::zero(), TimeDelta::hours(1));
    bench.worker("live", hour, true).await?;
    bench.worker("live", zero, false).await?;
    bench.worker("late", hour, false).await?;
    bench.worker("ended", zero, true).await?;
    bench.worker("ended", hour, true).await?;
    bench.worker("half", zero, true).await?;
    bench.worker("half", hour, false).await?;
    bench.worker("not asked for", zero, false).await?;
    let asked = ["live", "late", "ended", "half", "unknown"].map(String::from);
    assert_eq!(bench.store.consumers_live(&asked, LEASE).await?, ["live"]);
    assert_eq!(bench.store.consumers_ended(&asked).await?, ["ended"]);
    // Of a killed one there is no end: it is gone once it was not heard of for long, and when its row has left.
    assert_eq!(bench.store.consumers_gone(&asked, Duration::from_secs(7_200)).await?, ["ended", "unknown"]);
    assert_eq!(
        bench.store.consumers_gone(&asked, Duration::from_secs(1_800)).await?,
        ["late", "ended", "half", "unknown"]
    );
    Ok(())
}

#[tokio::test]
async fn r18_ending_frees_at_once_what_was_held() -> Result<()> {
    let bench = Bench::new().await?;
    let worker = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.run(worker, held).await?;
    assert!(bench.store.executions_see(&[held.execution], LEASE).await?[&held.execution].worker_live);
    bench.store.worker_end(worker).await?;
    let seen =
        bench.store.executions_see(&[held.execution], LEASE).await?.remove(&held.execution).expect("it is known");
    assert!(!seen.worker_live && seen.worker_ended);
    assert_eq!(bench.row(held.execution).await?.status, "RUNNING", "no row is touched one by one");
    Ok(())
}

#[tokio::test]
async fn old_incarnations_are_forgotten() -> Result<()> {
    let bench = Bench::new().await?;
    let live = bench.live_worker().await?;
    bench.dead_worker().await?;
    bench.worker("ended", TimeDelta::hours(1), true).await?;
    assert_eq!(bench.store.workers_forget(LEASE).await?, 2);
    assert_eq!(bench.count("workers").await?, 1);
    assert!(bench.store.worker_beat(live).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn of_the_live_executors_of_a_queue_one_that_offers_the_handler_is_named() -> Result<()> {
    let bench = Bench::new().await?;
    let offering = async |handler: &str, queue: &str| bench.store.consumer_offering(handler, queue, LEASE).await;
    assert_eq!(offering("test:echo", "default").await?, None);
    let begun = incarnation("one");
    bench.store.worker_begin(&begun).await?;
    assert_eq!(offering("test:echo", "default").await?.as_deref(), Some("one"));
    assert_eq!(offering("test:echo", "reports").await?, None);
    assert_eq!(offering("reports:weekly", "default").await?, None);
    // A new incarnation offers it, too; its predecessor has ended.
    let next = incarnation("one");
    bench.store.worker_succeed(begun.id, &next, &[], Locked::WaitedFor).await?;
    assert_eq!(offering("test:echo", "default").await?.as_deref(), Some("one"));
    sqlx::query("UPDATE workers SET seen_at = now() - interval '1 hour'").execute(&bench.pool).await?;
    assert_eq!(offering("test:echo", "default").await?, None, "it is not heard of any more");
    Ok(())
}
