//! R7 and R19: what an earlier leader left unsettled is sent again, what Redis has lost is published again, and nothing that
//! has moved on by itself is touched.

use anyhow::Result;
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_store::leader_session::LeaderSession;
use carillon_store::open_entries::{Batch, Missing, OpenEntry};
use carillon_store::recorder::{Held, Verdict};
use chrono::TimeDelta;
use uuid::Uuid;

use crate::bench::{Bench, LEASE, all_lost, finished, medium, one_each, room};
use crate::partitions::today;

async fn batch_of(leader: &mut LeaderSession, number: i64) -> Result<Batch> {
    let all = [leader.batches_unsettled(0).await?, leader.batches_settled(0, i64::MAX).await?].concat();
    all.into_iter().find(|batch| batch.number == number).ok_or_else(|| anyhow::anyhow!("no batch {number}"))
}

async fn open_entries(leader: &mut LeaderSession, number: i64) -> Result<Vec<OpenEntry>> {
    let batch = batch_of(leader, number).await?;
    Ok(leader
        .executions_open_of_batches(std::slice::from_ref(&batch), None)
        .await?
        .into_iter()
        .map(|(entry, _)| entry)
        .collect())
}

#[tokio::test]
async fn r7_a_new_term_finds_every_unsettled_batch_in_order() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let mut numbers = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let held = bench.open_one(&mut leader).await?;
        numbers.push(held.claim);
        ids.push(vec![held.execution]);
    }
    leader.batches_settle(&[numbers[1]]).await?;
    leader.resign().await;
    let mut successor = loop {
        if let Ok(leader) = bench.leader().await {
            break leader;
        }
    };
    let unsettled = successor.batches_unsettled(0).await?;
    let found: Vec<_> = unsettled.into_iter().map(|batch| (batch.number, batch.ids)).collect();
    let expected: Vec<_> = [0, 2, 3].into_iter().map(|at| (numbers[at], ids[at].clone())).collect();
    assert_eq!(found, expected);
    let settled = successor.batches_settled(0, i64::MAX).await?;
    assert_eq!(settled.iter().map(|batch| batch.number).collect::<Vec<_>>(), [numbers[1]]);
    assert!(successor.batches_settled(numbers[1], i64::MAX).await?.is_empty(), "behind it there is none");
    assert!(successor.batch_exists(numbers[3]).await?);
    assert!(!successor.batch_exists(numbers[3] + 1).await?);
    Ok(())
}

#[tokio::test]
async fn r7_an_entry_that_is_sent_again_says_what_it_said_before() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &bench.jobs(3).await?).await?;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00";
    bench
        .change(
            held[1].execution,
            "payload = '{\"own\": true}', trace_id = '0af7651916cd43dd8448eb211c80319c', \
             parent_span_id = '00f067aa0ba902b7', trace_flags = 0, revision = 4, queue = 'other', priority = 3",
        )
        .await?;
    sqlx::query("UPDATE job_executions SET payload = $2 WHERE id = $1")
        .bind(held[2].execution)
        .bind(serde_json::json!({"big": "x".repeat(5_000)}))
        .execute(&bench.pool)
        .await?;
    let entries = open_entries(&mut leader, held[0].claim).await?;
    assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let of = |held: &Held| entries.iter().find(|entry| entry.execution == held.execution).expect("it is open");
    let plain = of(&held[0]);
    assert_eq!((plain.claim, plain.entry, plain.attempt, plain.max_retries), (held[0].claim, held[0].claim, 1, 3));
    assert_eq!((plain.own_payload, plain.payload.as_deref()), (false, None));
    assert_eq!(plain.job, bench.job_of(held[0].execution).await?);
    let own = of(&held[1]);
    assert_eq!((own.own_payload, own.payload.as_deref()), (true, Some("{\"own\": true}")));
    assert_eq!(own.trace.map(|trace| trace.to_string()).as_deref(), Some(trace));
    assert_eq!((own.revision, own.line.to_string()), (4, "other/CRITICAL".into()));
    assert_eq!((plain.revision, plain.line.to_string(), plain.trace), (1, "default/MEDIUM".into(), None));
    let big = of(&held[2]);
    assert_eq!((big.own_payload, big.payload.as_deref()), (true, None), "too large to travel");
    Ok(())
}

#[tokio::test]
async fn r19_open_of_a_batch_is_what_it_still_stands_for() -> Result<()> {
    let bench = Bench::new().await?;
    let (live, dead) = (bench.live_worker().await?, bench.dead_worker().await?);
    let ended = bench.worker("ended", chrono::TimeDelta::zero(), true).await?;
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &bench.jobs(7).await?).await?;
    bench.run(live, held[1]).await?;
    bench.run(dead, held[2]).await?;
    bench.run(ended, held[3]).await?;
    bench.store.executions_record(live, &[], &[finished(held[4], Status::Success)], &[]).await?;
    bench.store.executions_record(live, &[], &[finished(held[5], Status::Retrying)], &[]).await?;
    bench.change(held[6].execution, "entry = entry + 1").await?;
    let batch = batch_of(&mut leader, held[0].claim).await?;
    assert_eq!(batch.ids.len(), 7);
    let in_order = |open: Vec<(OpenEntry, bool)>| {
        held.iter()
            .filter_map(|held| open.iter().find(|(entry, _)| entry.execution == held.execution))
            .map(|(_, runs)| *runs)
            .collect::<Vec<_>>()
    };
    // QUEUED, at a live worker, at a dead one, at one that ended.
    let judged = leader.executions_open_of_batches(std::slice::from_ref(&batch), Some(LEASE)).await?;
    assert_eq!((judged.len(), in_order(judged)), (4, vec![false, true, false, false]));
    let unjudged = leader.executions_open_of_batches(std::slice::from_ref(&batch), None).await?;
    assert_eq!(
        in_order(unjudged),
        [false, true, true, true],
        "R15: before a lease has passed nobody is called not live"
    );
    Ok(())
}

#[tokio::test]
async fn r19_lost_entries_stand_in_a_new_batch_and_keep_claim_and_take() -> Result<()> {
    let bench = Bench::new().await?;
    let (me, dead) = (bench.live_worker().await?, bench.dead_worker().await?);
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &bench.jobs(3).await?).await?;
    bench.run(dead, held[1]).await?;
    bench.change(held[2].execution, "take = 4, lost = 2").await?;
    let lost = open_entries(&mut leader, held[0].claim).await?;
    let number = leader.draw_number().await?;
    let republished = leader.executions_republish(number, 9, &all_lost(&lost), LEASE).await?;
    assert_eq!(republished.len(), 3);
    for (lost, seq) in lost.iter().zip(1..) {
        let entry = republished.iter().find(|entry| entry.execution == lost.execution).expect("it is published again");
        assert_eq!((entry.entry, entry.seq, entry.claim), (number, seq, lost.claim));
        let row = bench.row(lost.execution).await?;
        assert_eq!((row.entry, row.seq, row.claim), (Some(number), seq, Some(lost.claim)));
    }
    assert_eq!(bench.row(held[1].execution).await?.worker_id, Some(dead));
    let row = bench.row(held[2].execution).await?;
    assert_eq!((row.take, row.lost), (4, 2));
    let batch = batch_of(&mut leader, number).await?;
    assert_eq!(batch.ids, lost.iter().map(|entry| entry.execution).collect::<Vec<_>>());
    assert!(open_entries(&mut leader, held[0].claim).await?.is_empty(), "the old batch stands for nothing any more");

    // H6: whoever runs it already still finishes it.
    let ends = [finished(held[0], Status::Success), finished(Held { take: 4, ..held[2] }, Status::Success)];
    let (_, verdicts) = bench.store.executions_record(me, &[], &ends, &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success); 2]);
    let (_, verdicts) = bench.store.executions_record(dead, &[], &[finished(held[1], Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    bench.assert_counters().await
}

#[tokio::test]
async fn r19_what_has_moved_on_by_itself_is_not_published_again() -> Result<()> {
    let bench = Bench::new().await?;
    let live = bench.live_worker().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &bench.jobs(6).await?).await?;
    let lost = open_entries(&mut leader, held[0].claim).await?;
    bench.run(live, held[0]).await?;
    bench.store.executions_record(live, &[], &[finished(held[1], Status::Success)], &[]).await?;
    bench.store.executions_record(live, &[], &[finished(held[2], Status::Retrying)], &[]).await?;
    bench.change(held[3].execution, "claim = claim + 1").await?;
    bench.change(held[4].execution, "entry = entry + 1").await?;
    let mut before = Vec::new();
    for held in &held[..5] {
        before.push(bench.whole_row(held.execution).await?);
    }
    let number = leader.draw_number().await?;
    let republished = leader.executions_republish(number, 9, &all_lost(&lost), LEASE).await?;
    assert_eq!(republished.iter().map(|entry| entry.execution).collect::<Vec<_>>(), [held[5].execution]);
    for (held, before) in held.iter().zip(before) {
        assert_eq!(bench.whole_row(held.execution).await?, before);
    }
    let again = leader.draw_number().await?;
    assert!(
        leader.executions_republish(again, 9, &all_lost(&lost), LEASE).await?.is_empty(),
        "nor once more by the same look"
    );
    Ok(())
}

#[tokio::test]
async fn r19_batches_of_which_nothing_is_open_are_forgotten_but_never_the_newest() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let mut numbers = Vec::new();
    for _ in 0..4 {
        numbers.push(bench.open_one(&mut leader).await?.claim);
    }
    sqlx::query("INSERT INTO dispatch_batches (shard, number, term, ids, settled_at) VALUES (1, $1, 1, '{}', now())")
        .bind(numbers[0])
        .execute(&bench.pool)
        .await?;
    leader.batches_settle(&[numbers[0], numbers[1], numbers[3]]).await?;
    leader.batches_forget(&[numbers[0], numbers[2], numbers[3]]).await?;
    let left: Vec<(i16, i64)> = sqlx::query_as("SELECT shard, number FROM dispatch_batches ORDER BY shard, number")
        .fetch_all(&bench.pool)
        .await?;
    // Not asked for; not settled; the newest; another shard's.
    assert_eq!(left, [(0, numbers[1]), (0, numbers[2]), (0, numbers[3]), (1, numbers[0])]);
    leader.batches_settle(&numbers).await?;
    leader.batches_forget(&numbers).await?;
    assert!(leader.batch_exists(numbers[3]).await?, "R3: the newest is compared with what Redis remembers");
    assert_eq!(bench.count("dispatch_batches").await?, 2);
    Ok(())
}

#[tokio::test]
async fn r19_republishing_nothing_known_leaves_every_row_alone() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let lost = open_entries(&mut leader, held.claim).await?;
    let unknown = OpenEntry { execution: Uuid::now_v7(), ..lost[0].clone() };
    let number = leader.draw_number().await?;
    assert!(leader.executions_republish(number, 9, &all_lost(&[unknown]), LEASE).await?.is_empty());
    assert_eq!(bench.row(held.execution).await?.entry, Some(held.claim));
    Ok(())
}

/// S4: whoever holds the lock, dead or alive, the leader does not wait for it.
#[tokio::test]
async fn r19_what_somebody_else_has_locked_is_left_for_later_without_waiting() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &bench.jobs(3).await?).await?;
    let lost = open_entries(&mut leader, held[0].claim).await?;
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE")
        .bind(held[1].execution)
        .execute(&mut *foreign)
        .await?;
    let number = leader.draw_number().await?;
    let again = leader.executions_republish(number, 9, &all_lost(&lost), LEASE).await?;
    let mut free: Vec<Uuid> = again.iter().map(|entry| entry.execution).collect();
    free.sort_unstable();
    let mut expected = vec![held[0].execution, held[2].execution];
    expected.sort_unstable();
    assert_eq!(free, expected);
    assert!(again.iter().all(|entry| entry.entry == number));
    foreign.rollback().await?;

    let left = open_entries(&mut leader, held[0].claim).await?;
    assert_eq!(
        left.iter().map(|entry| entry.execution).collect::<Vec<_>>(),
        [held[1].execution],
        "it stands as it was"
    );
    let number = leader.draw_number().await?;
    assert_eq!(leader.executions_republish(number, 9, &all_lost(&left), LEASE).await?.len(), 1);
    bench.assert_counters().await
}

/// A page is bounded by its bytes, and never empty; both directions see every settled batch once.
#[tokio::test]
async fn r19_pages_of_batches_are_bounded_and_complete() -> Result<()> {
    let bench = Bench::new().await?;
    sqlx::query(
        "INSERT INTO dispatch_batches (shard, number, term, ids, settled_at)
         SELECT 0, n, 1, (SELECT array_agg(gen_random_uuid()) FROM generate_series(1, 1 + n % 900)),
                CASE WHEN n % 10 > 0 THEN now() END
         FROM generate_series(1, 200) n",
    )
    .execute(&bench.pool)
    .await?;
    let mut leader = bench.leader().await?;
    let (mut up, mut after) = (Vec::new(), 0);
    loop {
        let page = leader.batches_settled(after, 190).await?;
        let Some(last) = page.last() else { break };
        let bytes: usize = page.iter().rev().skip(1).map(|batch| batch.ids.len() * 16).sum();
        assert!(bytes <= 33_000, "{bytes}");
        after = last.number;
        up.extend(page.into_iter().map(|batch| batch.number));
    }
    let expected: Vec<i64> = (1..190).filter(|number| number % 10 > 0).collect();
    assert_eq!(up, expected);
    let (mut down, mut below) = (Vec::new(), 190);
    loop {
        let page = leader.batches_settled_down(below).await?;
        let Some(last) = page.last() else { break };
        below = last.number;
        down.extend(page.into_iter().map(|batch| batch.number));
    }
    down.reverse();
    assert_eq!(down, expected);
    let by_number = leader.batches_by_number(&[7, 10, 11, 4_000]).await?;
    assert_eq!(by_number.iter().map(|batch| batch.number).collect::<Vec<_>>(), [7, 11]);
    Ok(())
}

/// R23a: what waits in another line than its revision names goes to its own, released if nobody has read it, as long as all is as it
/// was seen.
#[tokio::test]
async fn r23a_what_is_misplaced_moves_to_the_line_of_the_revision_that_was_seen() -> Result<()> {
    let bench = Bench::new().await?;
    let live = bench.live_worker().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &bench.jobs(5).await?).await?;
    for held in &held {
        bench.change(held.execution, "misplaced = true").await?;
    }
    let to = Line::new("other", Priority::High);
    let seen = open_entries(&mut leader, held[0].claim).await?;
    assert!(seen.iter().all(|entry| entry.is_misplaced && entry.take == 0));
    let missing: Vec<Missing> = seen
        .iter()
        .map(|entry| Missing { entry: entry.clone(), to: to.clone(), unread: entry.execution != held[1].execution })
        .collect();
    bench.run(live, held[2]).await?;
    bench.change(held[3].execution, "revision = 2").await?;
    bench.change(held[4].execution, "take = 1").await?;
    let number = leader.draw_number().await?;
    let moved = leader.executions_republish(number, 9, &missing, LEASE).await?;
    let mut ids: Vec<Uuid> = moved.iter().map(|entry| entry.execution).collect();
    ids.sort_unstable();
    let mut expected = vec![held[0].execution, held[1].execution];
    expected.sort_unstable();
    assert_eq!(ids, expected, "it runs; changed once more; released meanwhile");
    for entry in &moved {
        // H118: nobody is said to have read nothing of what is doubtful.
        let unread = entry.execution == held[0].execution;
        assert_eq!((&entry.line, entry.is_misplaced, entry.take), (&to, false, i32::from(unread)));
    }
    bench.assert_counters().await
}

/// Somebody has locked yesterday as a whole: what belongs there is not asked about and not written, all else is.
#[tokio::test]
async fn r19_passes_over_what_is_of_a_locked_day() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    let mut leader = bench.leader().await?;
    for at in [days.midnight(-1) + TimeDelta::hours(12), bench.now().await?] {
        bench.job_at(&medium(), Some(at)).await?;
    }
    let claim = leader.claim(&[room(Source::Timer, &medium(), 10)], bench.now().await?, &[]).await?;
    let (decisions, number) = (one_each(&claim.timers), claim.number);
    let late = decisions.executions[0].id;
    claim.commit(1, &decisions, &[]).await?;
    let lost = open_entries(&mut leader, number).await?;
    assert_eq!(lost.len(), 2);
    let of = |batch: &Batch| [batch.clone(), Batch { number: number + 1, ids: vec![late] }];
    for mode in ["SHARE", "ACCESS EXCLUSIVE"] {
        let mut foreign = bench.pool.begin().await?;
        let lock = format!("LOCK TABLE ONLY carillon.{} IN {mode} MODE", days.partition("job_executions", -1));
        sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await?;
        let mut batches = of(&batch_of(&mut leader, number).await?);
        let left: Vec<i64> = leader.leave_locked_days(&mut batches).await?.into_iter().collect();
        assert_eq!(left, [number, number + 1], "{mode}");
        assert_eq!((batches[0].ids.len(), batches[1].ids.len()), (1, 0));
        let open = leader.executions_open_of_batches(&batches, None).await?;
        // Once: then it stands in another batch.
        assert_eq!(open.len(), usize::from(mode == "SHARE"), "{open:?}");
        assert!(open.iter().all(|(entry, _)| entry.execution != late));
        let again = leader.draw_number().await?;
        let republished = leader.executions_republish(again, 1, &all_lost(&lost), LEASE).await?;
        assert_eq!(republished.len(), usize::from(mode == "SHARE"), "{republished:?}");
        assert!(republished.iter().all(|entry| entry.execution != late));
        foreign.rollback().await?;
    }
    let mut batches = of(&batch_of(&mut leader, number).await?);
    assert!(leader.leave_locked_days(&mut batches).await?.is_empty(), "nobody has locked anything");
    let again = leader.draw_number().await?;
    assert_eq!(leader.executions_republish(again, 1, &all_lost(&lost), LEASE).await?.len(), 1);
    Ok(())
}
