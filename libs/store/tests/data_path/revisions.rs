//! R23a: an execution's row says where it belongs, and keeps through all its attempts the definition that it started with;
//! a revision stays for as long as somebody asks for it.

use std::time::Duration;

use anyhow::Result;
use carillon_core::agenda::Source;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::retry::{Backoff, Growth, Policy};
use carillon_store::claim::{Decisions, NewExecution};
use carillon_store::{Error, revisions};
use chrono::TimeDelta;
use uuid::Uuid;

use crate::bench::{Bench, finished, fire, medium, parked, retry_at, room};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Changes a job's definition, as a transaction of the store will.
async fn revise(bench: &Bench, job: Uuid, set: &str) -> Result<i64> {
    let mut transaction = bench.pool.begin().await?;
    let statement = format!("UPDATE jobs SET {set} WHERE id = $1");
    sqlx::query(sqlx::AssertSqlSafe(statement)).bind(job).execute(&mut *transaction).await?;
    let revision = revisions::add_on(&mut *transaction, job, "bob").await?;
    transaction.commit().await?;
    Ok(revision)
}

/// Makes a revision one that was superseded so long ago.
async fn superseded(bench: &Bench, job: Uuid, revision: i64, ago: TimeDelta) -> Result<()> {
    sqlx::query("UPDATE job_revisions SET superseded_at = now() - $3 WHERE job_id = $1 AND revision = $2")
        .bind(job)
        .bind(revision)
        .bind(ago.to_std()?)
        .execute(&bench.pool)
        .await?;
    Ok(())
}

async fn kept(bench: &Bench, job: Uuid) -> Result<Vec<i64>> {
    let kept = sqlx::query_scalar("SELECT revision FROM job_revisions WHERE job_id = $1 ORDER BY revision").bind(job);
    Ok(kept.fetch_all(&bench.pool).await?)
}

#[tokio::test]
async fn a_row_is_born_with_where_it_belongs() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let (job, skipping) = (bench.job().await?, bench.job().await?);
    let triggered = bench.trigger(job, now).await?;
    let mut leader = bench.leader().await?;
    let claim = leader.claim(&[room(Source::Trigger, &medium(), 10)], now, &[]).await?;
    let trigger = claim.triggers[0].clone();
    assert_eq!((trigger.line.clone(), trigger.platform_id.as_deref()), (medium(), Some("acme")));
    let opened = NewExecution {
        id: triggered,
        line: Line::new("reports", Priority::High),
        revision: 7,
        platform_id: trigger.platform_id.clone(),
        trace: trigger.trace,
        created_by: trigger.created_by.clone(),
        ..fire(job, trigger.fire_at, 1)
    };
    let skipped = NewExecution { skipped: true, revision: 3, ..fire(skipping, now, 0) };
    let executions = vec![opened, skipped.clone()];
    let decisions = Decisions { executions, timers: vec![parked(job), parked(skipping)], retries: Vec::new() };
    claim.commit(1, &decisions, &[]).await?;

    let row = bench.whole_row(triggered).await?.expect("a row");
    let expected = serde_json::json!({
        "shard": 0, "queue": "reports", "priority": 2, "platform_id": "acme", "revision": 7, "created_by": "alice",
        "trace_id": "0af7651916cd43dd8448eb211c80319c", "parent_span_id": "00f067aa0ba902b7", "trace_flags": 0,
    });
    for (column, value) in expected.as_object().expect("an object") {
        assert_eq!(&row[column], value, "{column}");
    }
    let row = bench.whole_row(skipped.id).await?.expect("a row");
    assert_eq!((&row["revision"], &row["queue"], &row["created_by"]), (&3.into(), &"default".into(), &"".into()));
    Ok(())
}

/// Today's defect: the second attempt showed the first one's start, and its error.
#[tokio::test]
async fn r16_the_next_attempt_keeps_the_revision_and_nothing_of_the_failed_one() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let job = bench.job_of(held.execution).await?;
    bench.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Retrying)], &[]).await?;
    assert_eq!(revise(&bench, job, "payload = '{\"of\": \"revision 2\"}', queue = 'elsewhere'").await?, 2);

    let claim = leader.claim(&[room(Source::Retry, &medium(), 10)], retry_at(), &[]).await?;
    let decisions = Decisions { retries: vec![(claim.retries[0], 1)], ..Decisions::default() };
    let retried = claim.commit(1, &decisions, &[]).await?.retried;
    assert_eq!((retried[0].revision, retried[0].line.clone(), retried[0].attempt), (1, medium(), 2));
    let row = bench.row(held.execution).await?;
    assert_eq!((row.status.as_str(), row.attempt, row.started_at, row.duration_ms), ("QUEUED", 2, None, None));
    assert_eq!((row.error, row.worker_id), (None, None));
    // Its payload is that of its revision; one that is born now gets the new one.
    let payload = async || {
        let mut read = bench.store.executions_payloads(&[held.execution]).await?;
        anyhow::Ok(read.remove(&held.execution).map(|payload| (payload.revision, payload.text.unwrap_or_default())))
    };
    assert_eq!(payload().await?, Some((Some(1), "{\"of\": \"job\"}".into())));
    bench.change(held.execution, "revision = 2").await?;
    assert_eq!(payload().await?, Some((Some(2), "{\"of\": \"revision 2\"}".into())));
    bench.change(held.execution, "payload = '{\"own\": 1}', revision = 99").await?;
    assert_eq!(payload().await?, Some((None, "{\"own\": 1}".into())));
    bench.change(held.execution, "payload = NULL").await?;
    assert_eq!(payload().await?, None, "a revision that is gone has none");
    Ok(())
}

#[tokio::test]
async fn a_definition_is_read_in_the_revision_that_is_asked_for() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let job = bench.job_at(&medium(), Some(now)).await?;
    let set = "queue = 'reports', priority = 3, handler_name = 'new', timeout_ms = 5, platform_id = 'acme', \
               allow_overlap = true, concurrency = 4, max_executions = 12, \
               retry_delay_ms = 7, retry_backoff = 'LINEAR', retry_delay_cap_ms = 70, retry_jitter_percent = 0";
    assert_eq!(revise(&bench, job, set).await?, 2);
    let mut leader = bench.leader().await?;
    let mut both = leader.definitions(&[(job, 2), (job, 1), (job, 3), (Uuid::nil(), 1)]).await?;
    both.sort_by_key(|definition| definition.revision);
    assert_eq!(both.len(), 2, "what does not exist is left out");
    let (old, new) = (&both[0], &both[1]);
    assert_eq!((old.revision, old.handler.as_str(), old.line.clone()), (1, "echo", medium()));
    assert_eq!((old.gate.open_max, old.gate.max_executions, old.platform_id.as_deref()), (Some(1), None, None));
    assert_eq!(old.payload.as_deref(), Some("{\"of\": \"job\"}"));
    assert_eq!((new.revision, new.handler.as_str(), new.timeout_ms), (2, "new", 5));
    assert_eq!(
        (new.gate.open_max, new.gate.max_executions, new.platform_id.as_deref()),
        (Some(4), Some(12), Some("acme"))
    );
    let linear = Growth { backoff: Backoff::Linear, cap_ms: 70, jitter_percent: 0 };
    assert_eq!(new.retry, Policy { delay_ms: 7, growth: linear });
    assert!(old.retry.growth.is_usual());
    // The claim hears of the new one in the timer's row, which waits in the new line.
    let line = Line::new("reports", Priority::Critical);
    let claim = leader.claim(&[room(Source::Timer, &line, 1)], now, &[]).await?;
    assert_eq!((claim.timers[0].revision, claim.timers[0].job), (2, job));
    Ok(())
}

/// What a definition may look like that a newer version, or a hand, has written: each as JSON that is laid over a good one, or
/// is all there is.
const UNREADABLE: [&str; 8] = [
    r#"{"timetable": {"specs": [{"moon": "full"}]}}"#,
    r#"{"timetable": []}"#,
    r#"{"handler_name": null}"#,
    r#"{"max_retries": "many"}"#,
    r#"{"timeout_ms": 1e30}"#,
    r#"{"queue": {"name": "default"}}"#,
    "[]",
    "null",
];

/// Of eight that cannot be read one by one no other suffers. A cast, or a NULL, of one of them used to fail for all; a NULL
/// passed for the loss of the session.
#[tokio::test]
async fn a_definition_that_cannot_be_read_is_left_out_alone() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let jobs = bench.jobs(UNREADABLE.len() + 1).await?;
    let held = bench.open(&mut leader, &jobs).await?;
    for (job, shape) in jobs.iter().zip(UNREADABLE) {
        sqlx::query(
            "UPDATE job_revisions SET definition = CASE jsonb_typeof($2::jsonb) WHEN 'object' THEN definition || $2::jsonb
             ELSE $2::jsonb END WHERE job_id = $1",
        )
        .bind(job)
        .bind(serde_json::from_str::<serde_json::Value>(shape)?)
        .execute(&bench.pool)
        .await?;
    }
    let wanted: Vec<(Uuid, i64)> = jobs.iter().map(|job| (*job, 1)).collect();
    let read = leader.definitions(&wanted).await?;
    assert_eq!(read.iter().map(|definition| definition.job).collect::<Vec<_>>(), [jobs[UNREADABLE.len()]]);
    let executions: Vec<Uuid> = held.iter().map(|held| held.execution).collect();
    let adopted = bench.store.executions_adopt(&executions).await?;
    // An executor asks for less: timetable and queue are nothing to it.
    assert_eq!(adopted.len(), executions.len(), "unreadable is not gone");
    let unreadable: Vec<usize> = (0..executions.len()).filter(|at| adopted[&executions[*at]].is_none()).collect();
    assert_eq!(unreadable, [2, 3, 4, 6, 7]);
    Ok(())
}

#[tokio::test]
async fn a_revision_says_who_made_it_and_when_the_next_one_took_its_place() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    revise(&bench, job, "name = 'second'").await?;
    revise(&bench, job, "name = 'third'").await?;
    let rows: Vec<(i64, String, String, bool, bool)> = sqlx::query_as(
        "SELECT revision, definition ->> 'name', created_by, superseded_at IS NULL, definition ? 'status'
         FROM job_revisions WHERE job_id = $1 ORDER BY revision",
    )
    .bind(job)
    .fetch_all(&bench.pool)
    .await?;
    let of = |n: usize| (rows[n].0, rows[n].1.as_str(), rows[n].2.as_str(), rows[n].3);
    assert_eq!((of(0), of(1)), ((1, "job", "", false), (2, "second", "bob", false)));
    assert_eq!(of(2), (3, "third", "bob", true));
    assert!(!rows[2].4, "how a job stands is no part of its definition");
    let mut connection = bench.pool.acquire().await?;
    let unknown = revisions::add_on(&mut *connection, Uuid::nil(), "").await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })));
    Ok(())
}

#[tokio::test]
async fn a_superseded_revision_leaves_after_its_time_unless_an_open_execution_names_it() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let (job, idle) = (bench.job_of(held.execution).await?, bench.job().await?);
    for job in [job, idle] {
        for _ in 0..3 {
            revise(&bench, job, "name = name || '+'").await?;
        }
        superseded(&bench, job, 1, TimeDelta::days(9)).await?;
        superseded(&bench, job, 2, TimeDelta::days(9)).await?;
        superseded(&bench, job, 3, TimeDelta::hours(1)).await?;
    }
    assert_eq!(revisions::forget(&bench.store, 2 * DAY).await?.gone, 3);
    assert_eq!(kept(&bench, idle).await?, [3, 4]);
    assert_eq!(kept(&bench, job).await?, [1, 3, 4], "an open execution names the first");

    bench.store.executions_record(Uuid::nil(), &[], &[finished(held, Status::Success)], &[]).await?;
    assert_eq!(revisions::forget(&bench.store, 2 * DAY).await?.gone, 1);
    assert_eq!(kept(&bench, job).await?, [3, 4]);
    assert_eq!(revisions::forget(&bench.store, 2 * DAY).await?.gone, 0);
    Ok(())
}

#[tokio::test]
async fn beyond_a_thousand_the_oldest_leave_before_their_time() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let job = bench.job_of(held.execution).await?;
    sqlx::query(
        "WITH last AS (UPDATE jobs SET revision = 1010 WHERE id = $1), old AS (
             UPDATE job_revisions SET superseded_at = now() WHERE job_id = $1 RETURNING definition)
         INSERT INTO job_revisions (job_id, revision, definition, superseded_at)
         SELECT $1, n, definition, CASE WHEN n < 1010 THEN now() END FROM old, generate_series(2, 1010) n",
    )
    .bind(job)
    .execute(&bench.pool)
    .await?;
    bench.change(held.execution, "revision = 5").await?;
    assert_eq!(revisions::forget(&bench.store, 365 * DAY).await?.gone, 8, "1 to 9, but for 5");
    let kept = kept(&bench, job).await?;
    assert_eq!((kept.len(), &kept[..3]), (1_002, &[5, 10, 11][..]), "1,000, the one named, and the current one");
    assert_eq!(revisions::forget(&bench.store, 365 * DAY).await?.gone, 0);
    Ok(())
}

/// However many of the oldest are named: what is behind them leaves.
#[tokio::test]
async fn beyond_a_thousand_those_leave_too_that_lie_behind_a_thousand_which_are_named() -> Result<()> {
    let bench = Bench::new().await?;
    let job = bench.job().await?;
    for statement in [
        "WITH last AS (UPDATE jobs SET revision = 2010 WHERE id = $1), old AS (
             UPDATE job_revisions SET superseded_at = now() WHERE job_id = $1 RETURNING definition)
         INSERT INTO job_revisions (job_id, revision, definition, superseded_at)
         SELECT $1, n, definition, CASE WHEN n < 2010 THEN now() END FROM old, generate_series(2, 2010) n",
        "UPDATE job_timers SET claimed_count = 1000 WHERE job_id = $1",
    ] {
        sqlx::query(statement).bind(job).execute(&bench.pool).await?;
    }
    let open = "INSERT INTO job_executions (shard, id, job_id, claim, entry, seq, status, scheduled_at, revision)
                SELECT 0, (substr($2::text, 1, 14) || substr(gen_random_uuid()::text, 15))::uuid, $1, 1, 1, 1, 'QUEUED', $3, n
                FROM generate_series(1, 1000) n";
    let now = bench.now().await?;
    let first = ids::first_at(now).to_string();
    sqlx::query(open).bind(job).bind(first).bind(now).execute(&bench.pool).await?;
    let batch = "INSERT INTO dispatch_batches (shard, number, term, ids, claimed_at) VALUES (0, 1, 1, '{}', now())";
    sqlx::query(batch).execute(&bench.pool).await?;
    assert_eq!(revisions::forget(&bench.store, 365 * DAY).await?.gone, 9, "1,001 to 1,009");
    Ok(())
}
