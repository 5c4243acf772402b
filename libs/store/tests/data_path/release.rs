//! R18a: what is held and not started is released by its row. R8a, R13a: what rows say of what was named, or of a copy.
//! R17: of what a cancel was requested. Each hole of the weaker versions, at its very step.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::retry::{Growth, Policy};
use carillon_core::take::{Decider, Reread, Then, Verdict, decide, reread};
use carillon_store::recorder::{Held, Verdict as Written};
use carillon_store::takes::Release;
use uuid::Uuid;

use crate::bench::{Bench, LEASE, finished, retry_at, started};

/// An executor that has not waited, and may not judge others.
fn hasty(me: Uuid) -> Decider {
    Decider { me, waited: false, may_judge: false, lost_max: 5 }
}

/// R13, in its three steps: look, decide, take.
async fn take(bench: &Bench, decider: Decider, held: Held, number: i64) -> Result<(Verdict, Option<Held>)> {
    let seen = bench.store.executions_see(&[held.execution], LEASE).await?;
    let verdict = decide(seen.get(&held.execution), held.claim, number, decider);
    let Verdict::Take { count_lost, .. } = verdict else { return Ok((verdict, None)) };
    let wanted = [(held.execution, seen[&held.execution].clone(), count_lost)];
    let taken = bench.store.executions_take(decider.me, &wanted).await?;
    Ok((verdict, taken.first().map(|taken| taken.held)))
}

const START: Verdict = Verdict::Take { count_lost: false, then: Then::Start, lost: 0 };

#[tokio::test]
async fn r18a_what_is_released_is_queued_under_the_next_take_and_taken_without_a_wait() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let (verdict, _) = take(&bench, hasty(me), held, held.claim).await?;
    assert_eq!(verdict, Verdict::Wait, "its holder may have started it");
    assert_eq!(bench.store.executions_release(&[held]).await?, [Release::Done]);
    let row = bench.row(held.execution).await?;
    assert_eq!((row.status.as_str(), row.take, row.lost, row.worker_id), ("QUEUED", 1, 0, None));
    assert_eq!((row.claim, row.entry, row.attempt), (Some(held.claim), Some(held.claim), 1));
    let (verdict, taken) = take(&bench, hasty(me), held, held.claim).await?;
    assert_eq!((verdict, taken), (START, Some(Held { take: 2, ..held })));
    let (_, verdicts) =
        bench.store.executions_record(me, &[], &[finished(Held { take: 2, ..held }, Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Written::Recorded(Status::Success)]);
    bench.assert_counters().await
}

/// H124: a release whose outcome is not known is run again, and releases once.
#[tokio::test]
async fn h124_a_release_that_is_run_again_has_released_once() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    assert_eq!(bench.store.executions_release(&held[..1]).await?, [Release::Done]);
    assert_eq!(bench.store.executions_release(&held).await?, [Release::Done; 2], "one of them again");
    assert_eq!((bench.row(held[0].execution).await?.take, bench.row(held[1].execution).await?.take), (1, 1));
    // Somebody took it between the two sendings: whoever released it has nothing any more.
    let (_, taken) = take(&bench, hasty(me), held[0], held[0].claim).await?;
    assert!(taken.is_some());
    assert_eq!(bench.store.executions_release(&held).await?, [Release::Lost, Release::Done]);
    assert_eq!(bench.row(held[0].execution).await?.status, "RUNNING", "and changes nothing");
    Ok(())
}

/// H121: what started all the same under the take that was released writes neither RUNNING nor an end.
#[tokio::test]
async fn h121_a_start_under_a_released_take_is_refused() -> Result<()> {
    let bench = Bench::new().await?;
    let (holder, taker) = (bench.live_worker().await?, bench.worker("taker", chrono::TimeDelta::zero(), false).await?);
    let held = bench.open_one(&mut bench.leader().await?).await?;
    assert_eq!(bench.store.executions_release(&[held]).await?, [Release::Done]);
    let (starts, ends) =
        bench.store.executions_record(holder, &[started(held)], &[finished(held, Status::Success)], &[]).await?;
    assert_eq!((starts, ends), (vec![Written::Lost], vec![Written::Lost]), "nothing is acknowledged either");
    let (verdict, taken) = take(&bench, hasty(taker), held, held.claim).await?;
    assert_eq!(verdict, START);
    let taken = taken.expect("it is free");
    let (_, ends) = bench.store.executions_record(taker, &[], &[finished(taken, Status::Success)], &[]).await?;
    assert_eq!(ends, [Written::Recorded(Status::Success)]);
    bench.assert_counters().await
}

/// H122: what another took is not released by the former holder; what runs is not released by anybody.
#[tokio::test]
async fn h122_what_was_started_or_taken_is_not_released() -> Result<()> {
    let bench = Bench::new().await?;
    let (me, dead) = (bench.live_worker().await?, bench.dead_worker().await?);
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(3).await?).await?;
    bench.run(me, held[0]).await?;
    let (_, taken) = take(&bench, Decider { waited: true, ..hasty(me) }, held[1], held[1].claim).await?;
    let taken = taken.expect("W is over");
    bench.run(dead, held[2]).await?;
    let before = [
        bench.whole_row(held[0].execution).await?,
        bench.whole_row(held[1].execution).await?,
        bench.whole_row(held[2].execution).await?,
    ];
    assert_eq!(bench.store.executions_release(&held).await?, [Release::Lost; 3]);
    assert_eq!(bench.store.executions_release(&[taken]).await?, [Release::Lost], "RUNNING under its own take");
    for (held, before) in held.iter().zip(before) {
        assert_eq!(bench.whole_row(held.execution).await?, before);
    }
    Ok(())
}

/// H123: of a hand-on that is sent twice, back and forth, only one start comes out, since each goes through the row.
#[tokio::test]
async fn h123_a_hand_on_that_comes_twice_leads_to_one_start() -> Result<()> {
    let bench = Bench::new().await?;
    let (one, two) = (bench.live_worker().await?, bench.worker("two", chrono::TimeDelta::zero(), false).await?);
    let held = bench.open_one(&mut bench.leader().await?).await?;
    bench.store.executions_release(&[held]).await?;
    let (_, first) = take(&bench, hasty(one), held, held.claim).await?;
    assert_eq!(first, Some(Held { take: 2, ..held }));
    let (verdict, second) = take(&bench, hasty(two), held, held.claim).await?;
    assert_eq!((verdict, second), (Verdict::Leave, None), "the second sending finds it taken");
    let (_, verdicts) =
        bench.store.executions_record(one, &[], &[finished(Held { take: 2, ..held }, Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Written::Recorded(Status::Success)]);
    let (verdict, _) = take(&bench, hasty(two), held, held.claim).await?;
    assert_eq!(verdict, Verdict::Over, "and then over");
    Ok(())
}

#[tokio::test]
async fn r18a_what_is_over_or_claimed_anew_or_unknown_is_acknowledged_instead() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(3).await?).await?;
    let retrying =
        carillon_store::recorder::Finished { next_retry_at: Some(retry_at()), ..finished(held[1], Status::Retrying) };
    bench.store.executions_record(me, &[], &[finished(held[0], Status::Success), retrying], &[]).await?;
    bench.change(held[2].execution, "claim = claim + 1").await?;
    let unknown = Held { execution: Uuid::now_v7(), claim: 7, take: 0 };
    let all = [held[0], held[1], held[2], unknown];
    assert_eq!(bench.store.executions_release(&all).await?, [Release::Over; 4]);
    Ok(())
}

/// Of a released execution a cancel ends it at whoever takes it, without a wait.
#[tokio::test]
async fn r13a_a_released_one_that_was_cancelled_or_withdrawn_is_ended_by_its_taker() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    bench.store.executions_release(&held).await?;
    bench.change(held[0].execution, "cancel_requested = true").await?;
    bench.change(held[1].execution, "cancel_requested = true, withdrawn = true").await?;
    for (held, then) in held.iter().zip([Then::Cancel, Then::Skip]) {
        let (verdict, taken) = take(&bench, hasty(me), *held, held.claim).await?;
        assert_eq!(verdict, Verdict::Take { count_lost: false, then, lost: 0 });
        assert!(taken.is_some());
    }
    Ok(())
}

/// H119, H120: R19 has published it again. A copy that a stale replica brings back starts nothing; the copy under which the
/// row names its holder stays with that one.
#[tokio::test]
async fn h119_h120_a_superseded_copy_is_dropped_by_all_but_whom_the_row_names() -> Result<()> {
    let bench = Bench::new().await?;
    let (holder, other) = (bench.live_worker().await?, bench.worker("other", chrono::TimeDelta::zero(), false).await?);
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let waited = |me| Decider { waited: true, ..hasty(me) };
    // H120: taken from the first copy, then published again.
    let (_, taken) = take(&bench, waited(holder), held, held.claim).await?;
    assert!(taken.is_some());
    bench.change(held.execution, "entry = entry + 5").await?;
    let (verdict, _) = take(&bench, waited(other), held, held.claim).await?;
    assert_eq!(verdict, Verdict::Over, "the first copy at another");
    let (verdict, taken) = take(&bench, waited(holder), held, held.claim).await?;
    assert_eq!((verdict, taken), (START, Some(Held { take: 2, ..held })), "the first copy at whom the row names");
    // H119: that one is lost, and the first copy comes back.
    bench.change(held.execution, "status = 'QUEUED', worker_id = NULL").await?;
    let (verdict, _) = take(&bench, waited(other), held, held.claim).await?;
    assert_eq!(verdict, Verdict::Over);
    let (verdict, _) = take(&bench, waited(other), held, held.claim + 5).await?;
    assert_eq!(verdict, START, "the very entry");
    Ok(())
}

/// H19, H112, H113: whatever the set and the notices say, and whoever has wiped them, the row says it.
#[tokio::test]
async fn h113_what_was_named_is_what_its_row_says() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(5).await?).await?;
    bench.change(held[1].execution, "cancel_requested = true").await?;
    bench.change(held[2].execution, "cancel_requested = true, withdrawn = true, reason = 'job paused'").await?;
    bench.store.executions_release(&held[3..4]).await?;
    bench.store.executions_record(me, &[], &[finished(held[4], Status::Success)], &[]).await?;
    let ids: Vec<Uuid> = held.iter().map(|held| held.execution).collect();
    let seen = bench.store.executions_see(&ids, LEASE).await?;
    let expected = [Reread::Stay, Reread::Cancel, Reread::Skip, Reread::LetGo, Reread::Over];
    for (held, expected) in held.iter().zip(expected) {
        assert_eq!(reread(seen.get(&held.execution), held.claim, held.take, me), expected);
    }
    // What the ordinary holder then writes needs no take, and what was withdrawn keeps its reason.
    let end = |held, status| carillon_store::recorder::Finished { started_at: None, ..finished(held, status) };
    let ends = [end(held[1], Status::Cancelled), end(held[2], Status::Skipped)];
    let (_, verdicts) = bench.store.executions_record(me, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Written::Recorded(Status::Cancelled), Written::Recorded(Status::Skipped)]);
    assert_eq!(bench.row(held[2].execution).await?.reason.as_deref(), Some("job paused"));
    bench.assert_counters().await
}

/// R13: what is requested between its look and its take is not lost.
#[tokio::test]
async fn r13_a_cancel_between_the_look_and_the_take_is_answered_by_the_take() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open_one(&mut bench.leader().await?).await?;
    let seen = bench.store.executions_see(&[held.execution], LEASE).await?;
    bench.change(held.execution, "cancel_requested = true, withdrawn = true, revision = 4").await?;
    let taken = bench.store.executions_take(me, &[(held.execution, seen[&held.execution].clone(), false)]).await?;
    let seen: Vec<_> = taken.iter().map(|taken| (taken.cancel_requested, taken.withdrawn, taken.revision)).collect();
    assert_eq!(seen, [(true, true, 4)]);
    Ok(())
}

#[tokio::test]
async fn r23a_what_is_adopted_is_the_definition_of_the_rows_revision() -> Result<()> {
    let bench = Bench::new().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(3).await?).await?;
    for held in &held[..2] {
        sqlx::query(
            "INSERT INTO job_revisions (job_id, revision, definition)
             SELECT job_id, 2, jsonb_build_object('handler_name', 'test:other', 'payload', '{\"n\": 2}'::jsonb,
                 'timeout_ms', 1500, 'max_retries', 7, 'retry_delay_ms', 250)
             FROM job_executions WHERE id = $1",
        )
        .bind(held.execution)
        .execute(&bench.pool)
        .await?;
        bench.change(held.execution, "revision = 2").await?;
    }
    bench.change(held[2].execution, "revision = 9").await?;
    bench.change(held[1].execution, "payload = '{\"of\": \"trigger\"}'").await?;
    let ids: Vec<Uuid> = held.iter().map(|held| held.execution).collect();
    let adopted = bench.store.executions_adopt(&ids).await?;
    assert_eq!(adopted.len(), 2, "the definition of the third is gone");
    let readable = |id| adopted[&id].as_ref().expect("it can be read");
    let first = readable(ids[0]);
    assert_eq!((first.revision, first.handler.as_str(), first.payload.as_str()), (2, "test:other", "{\"n\": 2}"));
    let usual = Policy { delay_ms: 250, growth: Growth::default() };
    assert_eq!((first.timeout_ms, first.max_retries, first.retry), (1_500, 7, usual), "as an older version wrote it");
    assert_eq!(readable(ids[1]).payload, "{\"of\": \"trigger\"}", "a trigger's own");
    Ok(())
}

#[tokio::test]
async fn r17_of_what_runs_it_is_told_whose_cancel_was_requested() -> Result<()> {
    let bench = Bench::new().await?;
    let me = bench.live_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(4).await?).await?;
    for held in &held[..3] {
        bench.run(me, *held).await?;
    }
    for held in &held[1..] {
        bench.change(held.execution, "cancel_requested = true").await?;
    }
    bench.change(held[2].execution, "take = 1").await?;
    assert_eq!(bench.store.executions_cancels(&held).await?, [held[1], held[3]], "not one that was taken");
    bench.store.executions_record(me, &[], &[finished(held[1], Status::Failed)], &[]).await?;
    assert_eq!(bench.store.executions_cancels(&held).await?, [held[3]], "not one that is over");
    Ok(())
}

#[tokio::test]
async fn r18a_an_executor_that_drains_offers_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let (one, two) = (bench.live_worker().await?, bench.worker("two", chrono::TimeDelta::zero(), false).await?);
    bench.store.worker_offers_nothing(one).await?;
    for _ in 0..20 {
        let other = bench.store.consumer_offering("test:echo", "default", LEASE).await?;
        assert_eq!(other.as_deref(), Some("two"));
    }
    bench.store.worker_offers_nothing(two).await?;
    assert_eq!(bench.store.consumer_offering("test:echo", "default", LEASE).await?, None);
    Ok(())
}
