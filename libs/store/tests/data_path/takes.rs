//! R13: a doubtful execution is taken exactly as it was seen, or not at all.

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::take::Seen;
use carillon_store::claim::NewExecution;
use carillon_store::recorder::{Held, Verdict};
use chrono::TimeDelta;
use uuid::Uuid;

use crate::bench::{Bench, LEASE, finished, fire, medium, parked, room, started};

async fn see(bench: &Bench, execution: Uuid) -> Result<Seen> {
    let mut seen = bench.store.executions_see(&[execution], LEASE).await?;
    seen.remove(&execution).ok_or_else(|| anyhow::anyhow!("it is not seen"))
}

#[tokio::test]
async fn r13_what_is_seen_is_the_row_and_whether_its_worker_lives() -> Result<()> {
    let bench = Bench::new().await?;
    let live = bench.live_worker().await?;
    let dead = bench.dead_worker().await?;
    let ended = bench.worker("ended", TimeDelta::zero(), true).await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(6).await?).await?;
    bench.run(live, held[1]).await?;
    bench.run(dead, held[2]).await?;
    bench.run(ended, held[3]).await?;
    bench.run(Uuid::from_u128(7), held[4]).await?;
    bench
        .change(held[0].execution, "lost = 3, take = 2, cancel_requested = true, withdrawn = true, misplaced = true")
        .await?;
    bench.store.executions_record(live, &[], &[finished(held[5], Status::Failed)], &[]).await?;

    let queued = Seen {
        status: Status::Queued,
        claim: held[0].claim,
        entry: held[0].claim,
        take: 2,
        revision: 1,
        lost: 3,
        worker: None,
        worker_live: false,
        worker_ended: false,
        cancel_requested: true,
        withdrawn: true,
        misplaced: true,
    };
    assert_eq!(see(&bench, held[0].execution).await?, queued);
    let fresh = Seen { take: 0, lost: 0, cancel_requested: false, withdrawn: false, misplaced: false, ..queued };
    let running = |worker, worker_live, worker_ended| Seen {
        status: Status::Running,
        worker: Some(worker),
        worker_live,
        worker_ended,
        ..fresh.clone()
    };
    assert_eq!(see(&bench, held[1].execution).await?, running(live, true, false));
    assert_eq!(see(&bench, held[2].execution).await?, running(dead, false, false));
    assert_eq!(see(&bench, held[3].execution).await?, running(ended, false, true));
    assert_eq!(see(&bench, held[4].execution).await?, running(Uuid::from_u128(7), false, false), "it has no row");
    assert_eq!(see(&bench, held[5].execution).await?.status, Status::Failed);
    Ok(())
}

#[tokio::test]
async fn r13_what_postgres_does_not_know_or_never_published_is_not_seen() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let job = bench.job_at(&medium(), Some(now)).await?;
    let mut leader = bench.leader().await?;
    let claim = leader.claim(&[room(carillon_core::agenda::Source::Timer, &medium(), 1)], now, &[]).await?;
    let skipped = NewExecution { skipped: true, ..fire(job, now, 0) };
    let decisions = carillon_store::claim::Decisions {
        executions: vec![skipped.clone()],
        timers: vec![parked(job)],
        retries: Vec::new(),
    };
    claim.commit(1, &decisions, &[]).await?;
    assert!(bench.store.executions_see(&[skipped.id, Uuid::now_v7()], LEASE).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn r13_a_take_makes_it_running_at_the_taker_and_raises_the_take() -> Result<()> {
    let bench = Bench::new().await?;
    let (dead, me) = (bench.dead_worker().await?, bench.live_worker().await?);
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    bench.run(dead, held[1]).await?;
    let wanted = [
        (held[0].execution, see(&bench, held[0].execution).await?, false),
        (held[1].execution, see(&bench, held[1].execution).await?, true),
    ];
    let won = bench.store.executions_take(me, &wanted).await?;
    assert!(won.iter().all(|won| (won.revision, won.cancel_requested, won.withdrawn) == (1, false, false)), "{won:?}");
    let mut won: Vec<Held> = won.iter().map(|won| won.held).collect();
    won.sort_unstable_by_key(|won| won.execution != held[0].execution);
    assert_eq!(won, [Held { take: 1, ..held[0] }, Held { take: 1, ..held[1] }]);
    for (held, lost) in held.iter().zip([0, 1]) {
        let row = bench.row(held.execution).await?;
        assert_eq!((row.status.as_str(), row.worker_id, row.take, row.lost), ("RUNNING", Some(me), 1, lost));
        assert_eq!((row.claim, row.entry, row.attempt), (Some(held.claim), Some(held.claim), 1));
    }
    bench.assert_counters().await
}

/// H8, H9: whoever was taken from finds out, acknowledges nothing and writes nothing.
#[tokio::test]
async fn h9_after_a_take_the_former_holder_is_lost_and_the_taker_is_recorded() -> Result<()> {
    let bench = Bench::new().await?;
    let (former, me) = (bench.dead_worker().await?, bench.live_worker().await?);
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(2).await?).await?;
    bench.run(former, held[0]).await?;
    let mut wanted = Vec::new();
    for held in &held {
        wanted.push((held.execution, see(&bench, held.execution).await?, false));
    }
    assert_eq!(bench.store.executions_take(me, &wanted).await?.len(), 2);
    let ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    let (starts, _) = bench.store.executions_record(former, &[started(held[1])], &[], &[]).await?;
    assert_eq!(starts, [Verdict::Lost], "H8: it was not written RUNNING before it was taken");
    let (_, verdicts) = bench.store.executions_record(former, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Lost; 2]);
    bench.assert_counters().await?;

    let ends: Vec<_> = held.iter().map(|held| finished(Held { take: 1, ..*held }, Status::Failed)).collect();
    let (_, verdicts) = bench.store.executions_record(me, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Failed); 2]);
    let ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    let (_, verdicts) = bench.store.executions_record(former, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Over { unknown: false }; 2], "now it may acknowledge");
    bench.assert_counters().await
}

#[tokio::test]
async fn r13_nothing_is_taken_that_is_not_as_it_was_seen() -> Result<()> {
    let bench = Bench::new().await?;
    let (me, other) = (bench.live_worker().await?, bench.dead_worker().await?);
    let mut leader = bench.leader().await?;
    let changes = [
        "claim = claim + 1",
        "take = take + 1",
        "status = 'RUNNING', worker_id = gen_random_uuid()",
        "worker_id = gen_random_uuid()",
        "status = 'RETRYING'",
        "status = 'SUCCESS', completed_at = now()",
    ];
    for change in changes {
        let held = bench.open_one(&mut leader).await?;
        let seen = see(&bench, held.execution).await?;
        bench.change(held.execution, change).await?;
        let before = bench.whole_row(held.execution).await?;
        assert_eq!(bench.store.executions_take(me, &[(held.execution, seen, false)]).await?, [], "{change}");
        assert_eq!(bench.whole_row(held.execution).await?, before, "{change}");
    }
    for change in ["worker_id = gen_random_uuid()", "worker_id = NULL", "status = 'QUEUED'", "take = take + 1"] {
        let held = bench.open_one(&mut leader).await?;
        bench.run(other, held).await?;
        let seen = see(&bench, held.execution).await?;
        bench.change(held.execution, change).await?;
        assert_eq!(bench.store.executions_take(me, &[(held.execution, seen, true)]).await?, [], "RUNNING, {change}");
    }
    Ok(())
}

#[tokio::test]
async fn r13_of_two_takers_at_once_one_wins() -> Result<()> {
    let bench = Bench::new().await?;
    let (one, two) = (bench.live_worker().await?, bench.worker("two", TimeDelta::zero(), false).await?);
    let dead = bench.dead_worker().await?;
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(10).await?).await?;
    let mut wanted = Vec::new();
    for (at, held) in held.iter().enumerate() {
        if at % 2 == 0 {
            bench.run(dead, *held).await?;
        }
        wanted.push((held.execution, see(&bench, held.execution).await?, true));
    }
    let (first, second) =
        tokio::join!(bench.store.executions_take(one, &wanted), bench.store.executions_take(two, &wanted));
    let (first, second) = (first?, second?);
    assert_eq!(first.len() + second.len(), held.len(), "{first:?} {second:?}");
    for held in &held {
        let winner = if first.iter().any(|won| won.held.execution == held.execution) { one } else { two };
        let row = bench.row(held.execution).await?;
        assert_eq!((row.worker_id, row.take, row.lost), (Some(winner), 1, 1));
    }
    Ok(())
}

#[tokio::test]
async fn r13_a_take_and_the_record_of_the_holder_at_once_leave_one_outcome() -> Result<()> {
    let bench = Bench::new().await?;
    let (holder, taker) = (bench.dead_worker().await?, bench.live_worker().await?);
    let held = bench.open(&mut bench.leader().await?, &bench.jobs(10).await?).await?;
    let mut wanted = Vec::new();
    for held in &held {
        bench.run(holder, *held).await?;
        wanted.push((held.execution, see(&bench, held.execution).await?, true));
    }
    let ends: Vec<_> = held.iter().map(|held| finished(*held, Status::Success)).collect();
    // One by one, so that neither side can have all of them by being first.
    let taking = async {
        let mut won = Vec::new();
        for wanted in &wanted {
            won.extend(bench.store.executions_take(taker, std::slice::from_ref(wanted)).await?);
        }
        anyhow::Ok(won)
    };
    let recording = async {
        let mut verdicts = Vec::new();
        for end in ends.iter().rev() {
            verdicts.extend(bench.store.executions_record(holder, &[], std::slice::from_ref(end), &[]).await?.1);
        }
        verdicts.reverse();
        anyhow::Ok(verdicts)
    };
    let (won, verdicts) = tokio::join!(taking, recording);
    let (won, verdicts) = (won?, verdicts?);
    for (held, verdict) in held.iter().zip(verdicts) {
        let taken = won.iter().any(|won| won.held.execution == held.execution);
        let expected = if taken { Verdict::Lost } else { Verdict::Recorded(Status::Success) };
        assert_eq!(verdict, expected);
    }
    bench.assert_counters().await
}
