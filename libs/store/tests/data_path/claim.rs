//! R5 and R16: what is due is taken under locks, written once, and counted exactly.

use anyhow::Result;
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_store::claim::{Decisions, DueTimer, Moved, MovedTimer, NewExecution};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::bench::{Bench, Timer, finished, fire, medium, one_each, parked, retry_at, room};
use crate::partitions::today;

fn seconds(seconds: i64) -> TimeDelta {
    TimeDelta::seconds(seconds)
}

async fn batch(bench: &Bench, number: i64) -> Result<Option<(i64, Vec<Uuid>, Option<DateTime<Utc>>)>> {
    let row = sqlx::query_as("SELECT term, ids, settled_at FROM dispatch_batches WHERE shard = 0 AND number = $1");
    Ok(row.bind(number).fetch_optional(&bench.pool).await?)
}

#[tokio::test]
async fn r5_due_timers_come_line_by_line_oldest_first_within_each_line_s_room() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let high = Line::new("default", Priority::High);
    let other = Line::new("reports", Priority::Medium);
    let mut of_medium = Vec::new();
    for age in [1, 4, 2, 3] {
        of_medium.push((age, bench.job_at(&medium(), Some(now - seconds(age))).await?));
    }
    let of_high = bench.job_at(&high, Some(now - seconds(9))).await?;
    let unserved = bench.job_at(&other, Some(now - seconds(9))).await?;
    let full = bench.job_at(&Line::new("full", Priority::Low), Some(now - seconds(9))).await?;
    bench.job_at(&medium(), Some(now + seconds(5))).await?;
    bench.job().await?;

    let mut leader = bench.leader().await?;
    let rooms = [
        room(Source::Timer, &medium(), 3),
        room(Source::Timer, &high, 3),
        room(Source::Timer, &Line::new("full", Priority::Low), 0),
        room(Source::Trigger, &other, 3),
    ];
    let claim = leader.claim(&rooms, now, &[]).await?;
    assert!(!claim.is_empty());
    let found = |line: &Line| claim.timers.iter().filter(|t| t.line == *line).map(|t| t.job).collect::<Vec<_>>();
    of_medium.sort_unstable_by_key(|(age, _)| -age);
    assert_eq!(found(&medium()), of_medium.iter().take(3).map(|(_, job)| *job).collect::<Vec<_>>());
    assert_eq!(found(&high), [of_high]);
    assert!(!claim.timers.iter().any(|timer| timer.job == unserved || timer.job == full));
    assert_eq!(claim.timers.len(), 4);
    assert!(claim.timers.iter().all(|timer| (timer.revision, timer.claimed_count, timer.open) == (1, 0, 0)));
    Ok(())
}

#[tokio::test]
async fn r5_without_room_nothing_is_due() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let job = bench.job_at(&medium(), Some(now)).await?;
    bench.trigger(job, now).await?;
    let mut leader = bench.leader().await?;
    assert!(leader.claim(&[], now, &[]).await?.is_empty());
    assert!(leader.claim(&[room(Source::Timer, &medium(), 0)], now, &[]).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn r23_what_is_due_within_the_lead_is_claimed_ahead_but_not_what_is_excluded() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let soon = bench.job_at(&medium(), Some(now + TimeDelta::milliseconds(100))).await?;
    let undecidable = bench.job_at(&medium(), Some(now)).await?;
    bench.job_at(&medium(), Some(now + TimeDelta::milliseconds(300))).await?;
    let mut leader = bench.leader().await?;
    let rooms = [room(Source::Timer, &medium(), 10)];
    let claim = leader.claim(&rooms, now + TimeDelta::milliseconds(200), &[undecidable]).await?;
    assert_eq!(claim.timers.iter().map(|timer| timer.job).collect::<Vec<_>>(), [soon]);
    let decisions = one_each(&claim.timers);
    let born = claim.commit(1, &decisions, &[]).await?.born;
    assert_eq!(bench.row(born[0]).await?.status, "QUEUED");
    assert_eq!(bench.timer(undecidable).await?.fire_at, Some(now), "it waits for its instant");
    Ok(())
}

#[tokio::test]
async fn r5_what_another_transaction_holds_is_passed_over_without_waiting() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut leader = bench.leader().await?;
    let retrying = bench.open(&mut leader, &bench.jobs(2).await?).await?;
    let ends: Vec<_> = retrying.iter().map(|held| finished(*held, Status::Retrying)).collect();
    bench.store.executions_record(Uuid::nil(), &[], &ends, &[]).await?;
    let locked = bench.job_at(&medium(), Some(now - seconds(1))).await?;
    let free = bench.job_at(&medium(), Some(now)).await?;
    let locked_trigger = bench.trigger(free, now - seconds(1)).await?;
    let free_trigger = bench.trigger(free, now).await?;

    let mut other = bench.pool.begin().await?;
    sqlx::query("SELECT FROM job_timers WHERE job_id = $1 FOR UPDATE").bind(locked).execute(&mut *other).await?;
    sqlx::query("SELECT FROM job_triggers WHERE execution_id = $1 FOR UPDATE")
        .bind(locked_trigger)
        .execute(&mut *other)
        .await?;
    sqlx::query("SELECT FROM execution_retries WHERE execution_id = $1 FOR UPDATE")
        .bind(retrying[0].execution)
        .execute(&mut *other)
        .await?;
    let rooms = [Source::Timer, Source::Trigger, Source::Retry].map(|source| room(source, &medium(), 10));
    let claim = leader.claim(&rooms, retry_at().max(now), &[]).await?;
    assert_eq!(claim.timers.iter().map(|timer| timer.job).collect::<Vec<_>>(), [free]);
    assert_eq!(claim.triggers.iter().map(|trigger| trigger.execution).collect::<Vec<_>>(), [free_trigger]);
    assert_eq!(claim.retries.iter().map(|retry| retry.execution).collect::<Vec<_>>(), [retrying[1].execution]);
    Ok(())
}

#[tokio::test]
async fn r5_the_batch_names_in_order_all_that_is_published_and_nothing_else() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut leader = bench.leader().await?;
    let retrying = bench.open_one(&mut leader).await?;
    bench.store.executions_record(Uuid::nil(), &[], &[finished(retrying, Status::Retrying)], &[]).await?;
    let job = bench.job_at(&medium(), Some(now)).await?;
    let skipping = bench.job_at(&medium(), Some(now)).await?;
    let triggered = bench.trigger(job, now).await?;

    let rooms = [Source::Timer, Source::Trigger, Source::Retry].map(|source| room(source, &medium(), 10));
    let claim = leader.claim(&rooms, retry_at(), &[]).await?;
    let number = claim.number;
    let by_timer = fire(job, now, 3);
    let by_trigger = NewExecution {
        id: triggered,
        seq: 1,
        own_payload: claim.triggers[0].own_payload,
        payload: claim.triggers[0].payload.clone(),
        trace: claim.triggers[0].trace,
        ..fire(job, claim.triggers[0].fire_at, 1)
    };
    let skipped = NewExecution { seq: 0, skipped: true, reason: Some("overlap".into()), ..fire(skipping, now, 0) };
    let decisions = Decisions {
        executions: vec![by_timer.clone(), skipped.clone(), by_trigger],
        timers: vec![parked(job), parked(skipping)],
        retries: vec![(claim.retries[0], 2)],
    };
    let committed = claim.commit(77, &decisions, &[]).await?;
    let (term, ids, settled_at) = batch(&bench, number).await?.expect("a batch row");
    assert_eq!((term, ids, settled_at), (77, vec![triggered, retrying.execution, by_timer.id], None));
    assert_eq!(committed.born.len(), 3);

    let row = bench.row(by_timer.id).await?;
    assert_eq!((row.status.as_str(), row.claim, row.entry, row.seq), ("QUEUED", Some(number), Some(number), 3));
    assert_eq!((row.attempt, row.take, row.lost, row.worker_id), (1, 0, 0, None));
    let payload = bench.store.executions_payloads(&[triggered, by_timer.id]).await?;
    assert_eq!(payload[&triggered].text.as_deref(), Some("{\"of\": \"trigger\"}"));
    assert_eq!(payload[&by_timer.id].text.as_deref(), Some("{\"of\": \"job\"}"));
    let row = bench.row(skipped.id).await?;
    assert_eq!((row.status.as_str(), row.claim, row.reason.as_deref()), ("SKIPPED", None, Some("overlap")));
    assert!(row.completed_at.is_some());
    // R20: born final, counts nothing; the retry stayed open.
    assert_eq!(bench.timer(skipping).await?.claimed_count, 0);
    assert_eq!(bench.timer(job).await?.claimed_count, 2);
    bench.assert_counters().await
}

#[tokio::test]
async fn r5_a_claim_that_publishes_nothing_leaves_no_batch() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let job = bench.job_at(&medium(), Some(now)).await?;
    let mut leader = bench.leader().await?;
    let claim = leader.claim(&[room(Source::Timer, &medium(), 10)], now, &[]).await?;
    let number = claim.number;
    let skipped = NewExecution { skipped: true, ..fire(job, now, 0) };
    let decisions = Decisions { executions: vec![skipped], timers: vec![parked(job)], retries: Vec::new() };
    claim.commit(1, &decisions, &[]).await?;
    assert_eq!(batch(&bench, number).await?, None);
    Ok(())
}

#[tokio::test]
async fn r5_a_double_is_refused_by_its_id_and_not_counted() -> Result<()> {
    let bench = Bench::new().await?;
    let at = bench.now().await?;
    let (again, fresh) = (bench.job_at(&medium(), Some(at)).await?, bench.job().await?);
    let mut leader = bench.leader().await?;
    let rooms = [room(Source::Timer, &medium(), 10)];
    let claim = leader.claim(&rooms, at, &[]).await?;
    let decisions = one_each(&claim.timers);
    let first = claim.commit(1, &decisions, &[]).await?.born;
    assert_eq!(first.len(), 1);
    let before = bench.whole_row(first[0]).await?;

    // The timer stands where it stood, as after a Postgres that lost the move, or a clock that was set back.
    sqlx::query("UPDATE job_timers SET fire_at = $1 WHERE job_id = ANY ($2)")
        .bind(at)
        .bind([again, fresh])
        .execute(&bench.pool)
        .await?;
    let claim = leader.claim(&rooms, at, &[]).await?;
    assert_eq!(claim.timers.len(), 2);
    let decisions = one_each(&claim.timers);
    let second = claim.commit(1, &decisions, &[]).await?.born;
    assert_eq!(second.len(), 1, "only the fresh one is born");
    assert_eq!(bench.job_of(second[0]).await?, fresh);
    assert_eq!(bench.whole_row(first[0]).await?, before, "the row is as it was");
    let timer = bench.timer(again).await?;
    assert_eq!(timer, Timer { fire_at: None, exhausted: false, claimed_count: 1 }, "moved, but not counted");
    bench.assert_counters().await
}

/// A change of a job may set its timer back on an instant that is claimed already: of `max_executions` that is none.
#[tokio::test]
async fn r5_a_double_is_not_the_last_execution_of_its_job() -> Result<()> {
    let bench = Bench::new().await?;
    let at = bench.now().await?;
    let job = bench.job_at(&medium(), Some(at)).await?;
    let mut leader = bench.leader().await?;
    let rooms = [room(Source::Timer, &medium(), 10)];
    for (unborn, timer) in [
        (at + seconds(9), Timer { fire_at: None, exhausted: true, claimed_count: 1 }),
        (at + seconds(9), Timer { fire_at: Some(at + seconds(9)), exhausted: false, claimed_count: 1 }),
    ] {
        let back = "UPDATE job_timers SET fire_at = $1, exhausted = false WHERE job_id = $2";
        sqlx::query(back).bind(at).bind(job).execute(&bench.pool).await?;
        let claim = leader.claim(&rooms, at, &[]).await?;
        let executions = one_each(&claim.timers).executions;
        let last = Moved { fire_at: None, exhausted: true, unborn: Some(unborn) };
        let timers = vec![MovedTimer { job, to: Some(last) }];
        claim.commit(1, &Decisions { executions, timers, retries: Vec::new() }, &[]).await?;
        assert_eq!(bench.timer(job).await?, timer);
    }
    assert_eq!(bench.count("job_attention").await?, 0, "it has not ended");
    bench.assert_counters().await
}

#[tokio::test]
async fn r5_timers_move_or_are_parked_and_a_trigger_moves_none() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let next = now + seconds(60);
    let (moving, ending, left) =
        (bench.job_at(&medium(), Some(now)).await?, bench.job_at(&medium(), Some(now)).await?, bench.job().await?);
    sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1")
        .bind(left)
        .bind(next)
        .execute(&bench.pool)
        .await?;
    let triggered = bench.trigger(left, now).await?;
    let mut leader = bench.leader().await?;
    let rooms = [room(Source::Timer, &medium(), 10), room(Source::Trigger, &medium(), 10)];
    let claim = leader.claim(&rooms, now, &[]).await?;
    let decisions = Decisions {
        executions: vec![
            fire(moving, now, 1),
            fire(ending, now, 2),
            NewExecution { id: triggered, ..fire(left, now, 3) },
        ],
        timers: vec![
            MovedTimer { job: moving, to: Some(Moved { fire_at: Some(next), exhausted: false, unborn: None }) },
            MovedTimer { job: ending, to: Some(Moved { fire_at: None, exhausted: true, unborn: None }) },
            MovedTimer { job: left, to: None },
        ],
        retries: Vec::new(),
    };
    claim.commit(1, &decisions, &[]).await?;
    assert_eq!(bench.timer(moving).await?, Timer { fire_at: Some(next), exhausted: false, claimed_count: 1 });
    assert_eq!(bench.timer(ending).await?, Timer { fire_at: None, exhausted: true, claimed_count: 1 });
    assert_eq!(bench.timer(left).await?, Timer { fire_at: Some(next), exhausted: false, claimed_count: 1 });
    bench.assert_counters().await
}

#[tokio::test]
async fn r5_a_claim_that_is_dropped_leaves_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut leader = bench.leader().await?;
    let retrying = bench.open_one(&mut leader).await?;
    bench.store.executions_record(Uuid::nil(), &[], &[finished(retrying, Status::Retrying)], &[]).await?;
    let job = bench.job_at(&medium(), Some(now)).await?;
    bench.trigger(job, now).await?;
    let before = bench.timer(job).await?;
    let batches = bench.count("dispatch_batches").await?;

    let rooms = [Source::Timer, Source::Trigger, Source::Retry].map(|source| room(source, &medium(), 10));
    for _ in 0..2 {
        let claim = leader.claim(&rooms, retry_at(), &[]).await?;
        assert_eq!((claim.timers.len(), claim.triggers.len(), claim.retries.len()), (1, 1, 1), "all is due still");
        drop(claim);
    }
    leader.say_something().await?;
    assert_eq!(bench.timer(job).await?, before);
    let left = (bench.count("job_triggers").await?, bench.count("execution_retries").await?);
    assert_eq!((left, bench.count("dispatch_batches").await?), ((1, 1), batches));
    assert_eq!(bench.row(retrying.execution).await?.status, "RETRYING");
    Ok(())
}

#[tokio::test]
async fn r5_a_claim_sees_how_many_executions_of_a_job_are_open() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open(&mut leader, &[job]).await?[0];
    let rooms = [room(Source::Timer, &medium(), 10), room(Source::Trigger, &medium(), 10)];
    for (status, open) in [(None, 1), (Some(Status::Retrying), 1), (Some(Status::Failed), 0)] {
        if let Some(status) = status {
            // Without a claim of the retry: the same attempt ends otherwise.
            bench.change(held.execution, "status = 'QUEUED'").await?;
            bench.store.executions_record(Uuid::nil(), &[], &[finished(held, status)], &[]).await?;
        }
        let now = bench.now().await?;
        sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1")
            .bind(job)
            .bind(now)
            .execute(&bench.pool)
            .await?;
        bench.trigger(job, now).await?;
        let claim = leader.claim(&rooms, now, &[]).await?;
        assert_eq!((claim.timers[0].open, claim.timers[0].claimed_count), (open, 1), "{status:?}");
        assert!(claim.triggers.iter().all(|trigger| trigger.open == open), "{status:?}");
        drop(claim);
        // A dropped claim lets go of its locks with the session's next word.
        leader.say_something().await?;
    }
    Ok(())
}

#[tokio::test]
async fn r7_a_claim_settles_earlier_batches_and_only_those_named() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let first = bench.open_one(&mut leader).await?.claim;
    let second = bench.open_one(&mut leader).await?.claim;
    let third = leader.claim(&[], bench.now().await?, &[]).await?;
    third.commit(1, &Decisions::default(), &[first]).await?;
    let settled_at = |batch: Option<(i64, Vec<Uuid>, Option<DateTime<Utc>>)>| batch.and_then(|(_, _, at)| at);
    let when = settled_at(batch(&bench, first).await?);
    assert!(when.is_some());
    assert_eq!(settled_at(batch(&bench, second).await?), None);
    leader.batches_settle(&[first, second]).await?;
    assert!(settled_at(batch(&bench, second).await?).is_some());
    assert_eq!(settled_at(batch(&bench, first).await?), when, "it was settled when it was settled");
    Ok(())
}

#[tokio::test]
async fn r16_a_retry_is_the_same_execution_under_a_new_claim_and_counts_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let worker = bench.dead_worker().await?;
    bench.run(worker, held).await?;
    bench.change(held.execution, "lost = 2, take = 5").await?;
    let taken = carillon_store::recorder::Held { take: 5, ..held };
    bench.store.executions_record(worker, &[], &[finished(taken, Status::Retrying)], &[]).await?;

    let rooms = [room(Source::Retry, &medium(), 10)];
    let early = leader.claim(&rooms, retry_at() - seconds(1), &[]).await?;
    assert!(early.is_empty(), "not before it is due");
    drop(early);
    let claim = leader.claim(&rooms, retry_at(), &[]).await?;
    let number = claim.number;
    assert_eq!((claim.retries[0].execution, claim.retries[0].claim), (held.execution, held.claim));
    let decisions = Decisions { retries: vec![(claim.retries[0], 1)], ..Decisions::default() };
    let committed = claim.commit(1, &decisions, &[]).await?;
    let retried = &committed.retried[0];
    assert_eq!((retried.claim, retried.entry, retried.seq, retried.attempt), (number, number, 1, 2));
    assert_eq!(retried.next_retry_at, Some(retry_at()));
    assert!(committed.born.is_empty());
    let row = bench.row(held.execution).await?;
    assert_eq!((row.status.as_str(), row.claim, row.attempt), ("QUEUED", Some(number), 2));
    assert_eq!((row.take, row.lost, row.worker_id), (0, 0, None));
    assert_eq!(bench.timer(bench.job_of(held.execution).await?).await?.claimed_count, 1);
    assert_eq!(bench.count("execution_retries").await?, 0);
    bench.assert_counters().await
}

#[tokio::test]
async fn r16_a_retry_that_was_cancelled_meanwhile_starts_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_retrying(&mut leader).await?;
    bench.change(held.execution, "status = 'CANCELLED', completed_at = now()").await?;
    let claim = leader.claim(&[room(Source::Retry, &medium(), 10)], retry_at(), &[]).await?;
    let decisions = Decisions { retries: vec![(claim.retries[0], 1)], ..Decisions::default() };
    let committed = claim.commit(1, &decisions, &[]).await?;
    assert!(committed.retried.is_empty());
    assert_eq!(bench.row(held.execution).await?.status, "CANCELLED");
    Ok(())
}

/// Somebody has locked one of two executions (a cancel that does not end): the claim waits for nobody, takes the other, and this
/// one a moment after it is let go of.
#[tokio::test]
async fn r16_a_locked_execution_keeps_no_other_from_being_retried() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let [locked, free] = [bench.open_retrying(&mut leader).await?, bench.open_retrying(&mut leader).await?];
    let mut other = bench.pool.begin().await?;
    let lock = sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE").bind(locked.execution);
    lock.execute(&mut *other).await?;
    let rooms = [room(Source::Retry, &medium(), 10)];
    let claim = leader.claim(&rooms, retry_at(), &[]).await?;
    assert_eq!(claim.retries.iter().map(|retry| retry.execution).collect::<Vec<_>>(), [free.execution]);
    let decisions = Decisions { retries: vec![(claim.retries[0], 1)], ..Decisions::default() };
    assert_eq!(claim.commit(1, &decisions, &[]).await?.retried.len(), 1);
    // Alone it is put off too, which must be committed.
    let soon = bench.now().await? + seconds(1);
    let claim = leader.claim(&rooms, soon, &[]).await?;
    assert!(claim.retries.is_empty() && !claim.is_empty());
    claim.commit(1, &Decisions::default(), &[]).await?;
    other.rollback().await?;
    let claim = leader.claim(&rooms, soon, &[]).await?;
    assert_eq!(claim.retries.iter().map(|retry| retry.execution).collect::<Vec<_>>(), [locked.execution]);
    Ok(())
}

#[tokio::test]
async fn r16_a_retry_of_an_older_claim_starts_nothing() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_retrying(&mut leader).await?;
    bench.change(held.execution, "claim = claim + 1").await?;
    let claim = leader.claim(&[room(Source::Retry, &medium(), 10)], retry_at(), &[]).await?;
    let decisions = Decisions { retries: vec![(claim.retries[0], 1)], ..Decisions::default() };
    assert!(claim.commit(1, &decisions, &[]).await?.retried.is_empty());
    assert_eq!(bench.row(held.execution).await?.attempt, 1);
    Ok(())
}

#[tokio::test]
async fn r5_a_job_that_cannot_be_read_is_left_out_and_holds_up_no_other() -> Result<()> {
    let bench = Bench::new().await?;
    let jobs = bench.jobs(2).await?;
    let change = "UPDATE job_revisions SET definition = definition || $2 WHERE job_id = $1";
    for (job, to) in [
        (jobs[0], serde_json::json!({"timetable": {"specs": 7}})),
        (jobs[1], serde_json::json!({"allow_overlap": true, "concurrency": 0, "payload": {"big": "x".repeat(5_000)}})),
    ] {
        sqlx::query(change).bind(job).bind(to).execute(&bench.pool).await?;
    }
    let mut leader = bench.leader().await?;
    let mut claim = leader.claim(&[], bench.now().await?, &[]).await?;
    let definitions = claim.definitions(&[(jobs[0], 1), (jobs[1], 1), (Uuid::nil(), 1)]).await?;
    assert_eq!(definitions.iter().map(|definition| definition.job).collect::<Vec<_>>(), [jobs[1]]);
    assert_eq!(definitions[0].gate.open_max, None);
    assert_eq!(definitions[0].payload, None, "it is fetched by whoever runs it");
    assert_eq!(definitions[0].line, medium());
    Ok(())
}

/// Item 5: a large payload goes from table to table within the database; a small one travels.
#[tokio::test]
async fn r5_a_large_payload_of_a_trigger_never_reaches_the_leader() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let job = bench.job().await?;
    let (large, small, none) =
        (bench.trigger(job, now).await?, bench.trigger(job, now).await?, bench.trigger(job, now).await?);
    let document = serde_json::json!({"large": "x".repeat(200_000), "n": 7});
    sqlx::query(
        "UPDATE job_triggers SET payload = CASE execution_id WHEN $1 THEN $2::jsonb END WHERE execution_id IN ($1, $3)",
    )
    .bind(large)
    .bind(&document)
    .bind(none)
    .execute(&bench.pool)
    .await?;
    let mut leader = bench.leader().await?;
    let claim = leader.claim(&[room(Source::Trigger, &medium(), 10)], now, &[]).await?;
    let of = |id: Uuid| claim.triggers.iter().find(|trigger| trigger.execution == id).expect("it is due");
    assert_eq!((of(large).own_payload, of(large).payload.as_deref()), (true, None));
    assert_eq!((of(small).own_payload, of(small).payload.as_deref()), (true, Some("{\"of\": \"trigger\"}")));
    assert_eq!((of(none).own_payload, of(none).payload.as_deref()), (false, None));
    // One of them is left undecided.
    let executions: Vec<NewExecution> = (1..)
        .zip([large, none])
        .map(|(seq, id)| NewExecution { id, own_payload: of(id).own_payload, ..fire(job, now, seq) })
        .collect();
    let decisions = Decisions { executions, timers: vec![MovedTimer { job, to: None }], retries: Vec::new() };
    let born = claim.commit(1, &decisions, &[]).await?.born;
    assert_eq!(born.len(), 2);
    let kept: Vec<(Uuid, Option<serde_json::Value>)> =
        sqlx::query_as("SELECT id, payload FROM job_executions").fetch_all(&bench.pool).await?;
    for (id, payload) in kept {
        assert_eq!(payload, (id == large).then(|| document.clone()));
    }
    let left: Vec<Uuid> = sqlx::query_scalar("SELECT execution_id FROM job_triggers").fetch_all(&bench.pool).await?;
    assert_eq!(left, [small], "what nothing was decided about stays");
    bench.assert_counters().await
}

#[tokio::test]
async fn r5_metadata_of_a_trigger_stays_with_its_execution_whether_it_opens_or_is_skipped() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let job = bench.job().await?;
    let (opened, skipped) = (bench.trigger(job, now).await?, bench.trigger(job, now).await?);
    sqlx::query("UPDATE job_triggers SET payload = NULL, metadata = '{\"ticket\": 7}'").execute(&bench.pool).await?;
    let mut leader = bench.leader().await?;
    let claim = leader.claim(&[room(Source::Trigger, &medium(), 10)], now, &[]).await?;
    assert!(claim.triggers.iter().all(|trigger| trigger.own_metadata && !trigger.own_payload));
    assert!(claim.triggers.iter().all(|trigger| trigger.documents_stored > 0));
    let new = |id: Uuid, seq| NewExecution { id, own_metadata: true, skipped: seq == 0, ..fire(job, now, seq) };
    let timers = vec![MovedTimer { job, to: None }];
    let decisions = Decisions { executions: vec![new(opened, 1), new(skipped, 0)], timers, retries: Vec::new() };
    assert_eq!(claim.commit(1, &decisions, &[]).await?.born.len(), 2);
    for id in [opened, skipped] {
        assert_eq!(bench.store.execution_metadata(id).await?, Some(serde_json::json!({"ticket": 7})));
    }
    bench.assert_counters().await
}

/// What was missed is made up for on another day than that on which the timer stands: the day of the execution is what counts.
#[tokio::test]
async fn what_was_missed_is_left_by_the_day_of_its_execution() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    let (before, yesterday, now) = (days.midnight(-3), days.midnight(-1) + TimeDelta::hours(12), bench.now().await?);
    let to_yesterday = bench.job_at(&medium(), Some(before)).await?;
    let to_today = bench.job_at(&medium(), Some(yesterday)).await?;
    let stays = bench.job_at(&medium(), Some(yesterday)).await?;
    let decide = |timers: &[DueTimer]| {
        let at = |job| if job == to_today { now } else { yesterday };
        let executions = (1..).zip(timers).map(|(seq, timer)| fire(timer.job, at(timer.job), seq)).collect();
        let timers = timers.iter().map(|timer| parked(timer.job)).collect();
        Decisions { executions, timers, retries: vec![] }
    };
    let mut foreign = bench.pool.begin().await?;
    let lock = format!("LOCK TABLE ONLY carillon.{} IN SHARE MODE", days.partition("job_executions", -1));
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await?;
    let mut leader = bench.leader().await?;
    let rooms = [room(Source::Timer, &medium(), 10)];
    let mut claim = leader.claim(&rooms, now, &[]).await?;
    assert_eq!(claim.timers.iter().map(|timer| timer.job).collect::<Vec<_>>(), [to_yesterday]);
    claim.take_missed(before);
    assert_eq!((claim.timers.len(), claim.set_aside.len()), (1, 2), "none of them was missed by then");
    claim.take_missed(now);
    assert_eq!((claim.timers.len(), claim.set_aside.len()), (3, 0));
    let decisions = decide(&claim.timers);
    assert!(claim.leave_locked(&decisions).await?);
    assert_eq!(claim.timers.iter().map(|timer| timer.job).collect::<Vec<_>>(), [to_today]);
    let left: Vec<Uuid> = claim.set_aside.iter().map(|(_, _, job)| *job).collect();
    assert_eq!(left, [to_yesterday, stays]);
    let decisions = decide(&claim.timers);
    assert!(!claim.leave_locked(&decisions).await?, "all of them may be written");
    assert_eq!(claim.commit(1, &decisions, &[]).await?.born.len(), 1);
    foreign.rollback().await?;
    let claim = leader.claim(&rooms, now, &[]).await?;
    assert_eq!(claim.timers.len(), 2, "nothing is lost");
    Ok(())
}
