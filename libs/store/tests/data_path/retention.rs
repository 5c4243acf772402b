//! What is old leaves, by days, by steps and by jobs; what is open stays, nobody waits, and what was counted stays counted.

use std::time::Duration;

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::claim::Decisions;
use carillon_store::recorder::{Held, Verdict};
use carillon_store::retention::{self, Dropped, Retention, Swept};
use carillon_store::{Error, Store};
use carillon_testkit::wait_until;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use crate::bench::{Bench, finished, fire};
use crate::partitions::{Calendar, a_minute_passes, dump, longest_wait, today};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// In the order in which their days leave.
pub(crate) const TABLES: [&str; 4] =
    ["job_executions", "execution_attempts", "execution_failures", "job_execution_logs"];

pub(crate) fn kept() -> Retention {
    Retention { executions: DAY * 90, logs: DAY * 14, jobs: None }
}

/// The partitions of a day.
pub(crate) async fn make_day(bench: &Bench, days: &Calendar, day: i64) -> Result<()> {
    for table in TABLES {
        let made: String = sqlx::query_scalar("SELECT carillon.make_partition($1, $2, $3, $4)")
            .bind(table)
            .bind(days.partition(table, day))
            .bind(ids::first_at(days.midnight(day)))
            .bind(ids::first_at(days.midnight(day + 1)))
            .fetch_one(&bench.pool)
            .await?;
        assert_eq!(made, "made");
    }
    Ok(())
}

/// An execution of `job` at `at` with a failed attempt and a log line; with a failure too, unless it never completed: then it is
/// open.
pub(crate) async fn history(
    pool: &PgPool,
    job: Uuid,
    at: DateTime<Utc>,
    completed: Option<DateTime<Utc>>,
) -> Result<Uuid> {
    let id = ids::execution_for_trigger(job, &Uuid::new_v4().to_string(), at);
    sqlx::query(
        "WITH execution AS (
             INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at, completed_at, attempt)
             VALUES (0, $1, $2, 1, 1, CASE WHEN $4::timestamptz IS NULL THEN 'QUEUED' ELSE 'SUCCESS' END, $3, $4, 2)
         ), attempt AS (
             INSERT INTO execution_attempts (execution_id, attempt, status, ended_at) VALUES ($1, 1, 'FAILED', $3)
         ), failure AS (
             INSERT INTO execution_failures (execution_id, job_id, status, ended_at, handler_name, fingerprint)
             SELECT $1, $2, 'FAILED', $4, 'echo', '0' WHERE $4 IS NOT NULL
         )
         INSERT INTO job_execution_logs (execution_id, attempt, line, timestamp, level, message)
         VALUES ($1, 1, 1, $3, 'INFO', 'x')",
    )
    .bind(id)
    .bind(job)
    .bind(at)
    .bind(completed)
    .execute(pool)
    .await?;
    Ok(id)
}

/// How many rows there are of an execution: itself, attempts, log lines.
async fn rows(pool: &PgPool, id: Uuid) -> Result<(i64, i64, i64)> {
    Ok(sqlx::query_as(
        "SELECT (SELECT count(*) FROM job_executions WHERE id = $1),
                (SELECT count(*) FROM execution_attempts WHERE execution_id = $1),
                (SELECT count(*) FROM job_execution_logs WHERE execution_id = $1)",
    )
    .bind(id)
    .fetch_one(pool)
    .await?)
}

/// How many failures there are of an execution.
async fn failures(pool: &PgPool, id: Uuid) -> Result<i64> {
    let count = sqlx::query_scalar("SELECT count(*) FROM execution_failures WHERE execution_id = $1");
    Ok(count.bind(id).fetch_one(pool).await?)
}

/// Rounds, each a minute after the other, until one has nothing more to drop; what all of them dropped, and the last one.
async fn rounds(store: &Store, pool: &PgPool, kept: &Retention) -> Result<(Vec<String>, Dropped)> {
    let mut dropped = Vec::new();
    loop {
        let round = retention::drop_days(store, kept).await?;
        a_minute_passes(pool).await?;
        if round.dropped.is_empty() {
            return Ok((dropped, round));
        }
        dropped.extend(round.dropped);
    }
}

/// As many as a day is put off for.
async fn hours_pass(bench: &Bench) -> Result<()> {
    let later = sqlx::query("UPDATE partition_tries SET tried_at = tried_at - interval '1 day'");
    later.execute(&bench.pool).await?;
    Ok(())
}

#[tokio::test]
async fn days_leave_by_their_age_and_what_was_counted_stays_counted() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    let job = bench.job().await?;
    let mut ids = Vec::new();
    for day in [-100, -92, -91, -90, -16, -15, -14] {
        make_day(&bench, &days, day).await?;
        let at = days.midnight(day) + TimeDelta::hours(12);
        ids.push((day, history(&bench.pool, job, at, Some(at)).await?));
    }
    sqlx::query("UPDATE job_stats SET finished_count = 7, success_count = 7, last_success_id = $2 WHERE job_id = $1")
        .bind(job)
        .bind(ids[0].1)
        .execute(&bench.pool)
        .await?;
    let before = bench.stats(job).await?;
    let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!((last.waiting, last.overdue), (vec![], 0));
    // Each table's oldest day first.
    let of = |table: &str| dropped.iter().filter(|name| name.starts_with(table)).cloned().collect::<Vec<_>>();
    let expected = |table: &str, due: &[i64]| due.iter().map(|day| days.partition(table, *day)).collect::<Vec<_>>();
    assert_eq!(of("job_executions"), expected("job_executions", &[-100, -92, -91]));
    assert_eq!(of("execution_attempts"), expected("execution_attempts", &[-100, -92, -91]));
    assert_eq!(of("execution_failures"), expected("execution_failures", &[-100, -92, -91]));
    assert_eq!(of("job_execution_logs"), expected("job_execution_logs", &[-100, -92, -91, -90, -16, -15]));
    for (day, id) in ids {
        let executions = i64::from(day >= -90);
        assert_eq!(rows(&bench.pool, id).await?, (executions, executions, i64::from(day >= -14)), "{day}");
        assert_eq!(failures(&bench.pool, id).await?, executions, "{day}");
    }
    assert_eq!(bench.stats(job).await?, before);
    assert!(bench.store.job_last_success(job).await?.is_none(), "its row is gone, its count is not");
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_class WHERE relname LIKE '%\\_gone'")
        .fetch_one(&bench.pool)
        .await?;
    assert_eq!(left, 0);
    Ok(())
}

/// Nothing opens meanwhile either: the CHECK that names what is open refuses it, as a conflict.
#[tokio::test]
async fn what_is_open_outlives_its_day_with_its_attempts_and_ends_as_ever() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    make_day(&bench, &days, -100).await?;
    let at = days.midnight(-100) + TimeDelta::hours(1);
    let job = bench.job().await?;
    let (over, open) = (history(&bench.pool, job, at, Some(at)).await?, history(&bench.pool, job, at, None).await?);
    let ended = history(&bench.pool, job, at, None).await?;
    sqlx::query("UPDATE job_timers SET claimed_count = 2 WHERE job_id = $1").bind(job).execute(&bench.pool).await?;
    let partition = days.partition("job_executions", -100);
    let closed: String = sqlx::query_scalar("SELECT carillon.close_partition($1, $2)")
        .bind(&partition)
        .bind([open, ended])
        .fetch_one(&bench.pool)
        .await?;
    assert_eq!(closed, "closed");
    // Closed, not yet proven: it is not detached.
    let (from, to) = (ids::first_at(days.midnight(-100)), ids::first_at(days.midnight(-99)));
    let detach = "SELECT carillon.detach_partition('job_executions', $1, $2, $3)";
    let detached = sqlx::query_scalar(detach).bind(&partition).bind(from).bind(to);
    assert_eq!(detached.fetch_one(&bench.pool).await.map(|word: String| word)?, "open");
    // Nothing is born there, nothing ended is opened again; what is open goes on.
    let mut leader = bench.leader().await?;
    let now = bench.now().await?;
    let fires = Decisions { executions: vec![fire(job, at, 1)], ..Decisions::default() };
    let born = leader.claim(&[], now, &[]).await?.commit(1, &fires, &[]).await;
    assert!(matches!(born, Err(Error::Conflict(_))), "{born:?}");
    let opened = bench.change(over, "status = 'QUEUED', completed_at = NULL").await;
    assert!(format!("{:#}", opened.unwrap_err()).contains("carillon_closed"));
    let worker = bench.live_worker().await?;
    let held = |execution| Held { execution, claim: 1, take: 0 };
    let (_, verdicts) =
        bench.store.executions_record(worker, &[], &[finished(held(ended), Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);

    let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!((dropped.len(), last.waiting.len()), (4, 0), "{dropped:?} {last:?}");
    assert_eq!(rows(&bench.pool, over).await?, (0, 0, 0));
    assert_eq!(rows(&bench.pool, ended).await?.0, 0);
    assert_eq!(rows(&bench.pool, open).await?, (1, 1, 0));
    let place: String = sqlx::query_scalar("SELECT tableoid::regclass::text FROM job_executions WHERE id = $1")
        .bind(open)
        .fetch_one(&bench.pool)
        .await?;
    assert_eq!(place, "job_executions_default");
    bench.run(worker, held(open)).await?;
    let (_, verdicts) =
        bench.store.executions_record(worker, &[], &[finished(held(open), Status::Success)], &[]).await?;
    assert_eq!(verdicts, [Verdict::Recorded(Status::Success)]);
    assert_eq!(bench.stats(job).await?.finished_count, 2);
    bench.assert_counters().await
}

/// Open executions at the begin of a day, each with a payload of so many characters that cannot be compressed.
pub(crate) async fn open_many(pool: &PgPool, days: &Calendar, day: i64, count: i32, characters: i32) -> Result<()> {
    sqlx::query(
        "WITH noise AS MATERIALIZED (
             SELECT to_jsonb(coalesce(string_agg(md5(n::text), ''), '')) AS text FROM generate_series(1, $3 / 32) n
         )
         INSERT INTO job_executions (shard, id, job_id, status, scheduled_at, payload)
         SELECT 0, (substr($1::text, 1, 14) || substr(gen_random_uuid()::text, 15))::uuid, gen_random_uuid(), 'QUEUED', now(),
                noise.text
         FROM noise, generate_series(1, $2)",
    )
    .bind(ids::first_at(days.midnight(day)).to_string())
    .bind(count)
    .bind(characters)
    .execute(pool)
    .await?;
    Ok(())
}

/// A day with too much open, by count or by bytes, waits, is said to, and keeps no other day.
#[tokio::test]
async fn a_day_with_too_much_open_waits_alone() -> Result<()> {
    for (count, characters) in [(1_001, 0), (5, 250_000)] {
        let bench = Bench::new().await?;
        let days = today(&bench.pool).await?;
        for day in [-100, -99] {
            make_day(&bench, &days, day).await?;
        }
        open_many(&bench.pool, &days, -100, count, characters).await?;
        open_many(&bench.pool, &days, -99, 3, 250_000).await?;
        let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
        assert!(dropped.contains(&days.partition("job_executions", -99)), "{dropped:?}");
        let waiting = ["job_executions", "execution_attempts", "execution_failures"];
        assert_eq!(last.waiting, waiting.map(|table| days.partition(table, -100)));
        assert_eq!(last.overdue, 3);
        assert_eq!(bench.count("job_executions_default").await?, 3);
        // Until enough of it has ended; its rows are not looked through each minute.
        sqlx::query("UPDATE job_executions SET status = 'CANCELLED', completed_at = now() WHERE id < $1")
            .bind(ids::first_at(days.midnight(-99)))
            .execute(&bench.pool)
            .await?;
        hours_pass(&bench).await?;
        let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
        assert_eq!((dropped.len(), last.overdue), (3, 0), "{dropped:?}");
    }
    Ok(())
}

/// What is open of a closed day may fail once more before the day leaves, and have more to say than when it was weighed.
#[tokio::test]
async fn a_closed_day_is_weighed_again_before_it_leaves() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    make_day(&bench, &days, -100).await?;
    open_many(&bench.pool, &days, -100, 200, 0).await?;
    let partition = days.partition("job_executions", -100);
    let open: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM job_executions").fetch_all(&bench.pool).await?;
    sqlx::query("SELECT carillon.close_partition($1, $2)").bind(&partition).bind(&open).execute(&bench.pool).await?;
    sqlx::query("SELECT carillon.prove($1, 'carillon_closed')").bind(&partition).execute(&bench.pool).await?;
    let failing =
        "UPDATE job_executions SET error_stack = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) n)
                   WHERE completed_at IS NULL";
    sqlx::query(failing).execute(&bench.pool).await?;
    let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!((dropped.len(), last.waiting.len()), (1, 3), "its log lines leave: {dropped:?} {last:?}");
    sqlx::query("UPDATE job_executions SET error_stack = NULL").execute(&bench.pool).await?;
    hours_pass(&bench).await?;
    let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!((dropped.len(), last.waiting.len()), (3, 0), "{dropped:?} {last:?}");
    Ok(())
}

/// Attempts move with what is open of their day: too many bytes of them, and their day stays; the next ones leave.
#[tokio::test]
async fn a_day_whose_attempts_are_too_large_to_move_waits_alone() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    for day in [-100, -99, -98] {
        make_day(&bench, &days, day).await?;
    }
    let open = history(&bench.pool, bench.job().await?, days.midnight(-100), None).await?;
    let attempts = "INSERT INTO execution_attempts (execution_id, attempt, status, ended_at, error_stack)
                    SELECT $1, a, 'FAILED', now(), (SELECT string_agg(md5((a * n)::text), '') FROM generate_series(1, 3000) n)
                    FROM generate_series(2, 30) a";
    sqlx::query(attempts).bind(open).execute(&bench.pool).await?;
    let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!(last.waiting, [days.partition("execution_attempts", -100)]);
    for day in [-99, -98] {
        assert!(dropped.contains(&days.partition("execution_attempts", day)), "{day}: {dropped:?}");
    }
    assert_eq!(rows(&bench.pool, open).await?, (1, 30, 0));
    // Not weighed again each minute.
    sqlx::query("DELETE FROM execution_attempts WHERE attempt > 2").execute(&bench.pool).await?;
    let (_, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!(last.waiting, [days.partition("execution_attempts", -100)]);
    hours_pass(&bench).await?;
    let (_, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!(last.waiting, Vec::<String>::new());
    assert_eq!(rows(&bench.pool, open).await?, (1, 2, 0));
    Ok(())
}

/// Somebody has a view on one day's executions: they can be detached and not dropped. A view has the name that its log lines
/// would get: they cannot be detached. Neither keeps a later day, and both are said.
#[tokio::test]
async fn a_day_that_cannot_leave_is_said_and_keeps_no_other() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    for day in [-100, -99, -98] {
        make_day(&bench, &days, day).await?;
    }
    let viewed = days.partition("job_executions", -100);
    let logs = days.partition("job_execution_logs", -100);
    for view in [
        format!("CREATE VIEW report AS SELECT count(*) FROM carillon.{viewed}"),
        format!("CREATE VIEW carillon.{logs}_gone AS SELECT 1"),
    ] {
        // Names of ours, made from dates.
        sqlx::query(sqlx::AssertSqlSafe(view)).execute(&bench.pool).await?;
    }
    let (dropped, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    for table in TABLES {
        for day in [-99, -98] {
            assert!(dropped.contains(&days.partition(table, day)), "{table} {day}: {dropped:?}");
        }
    }
    assert_eq!((last.waiting, last.overdue), (vec![logs.clone(), format!("{viewed}_gone")], 2));
    let away = sqlx::AssertSqlSafe(format!("DROP VIEW report, carillon.{logs}_gone"));
    sqlx::query(away).execute(&bench.pool).await?;
    hours_pass(&bench).await?;
    let (_, last) = rounds(&bench.store, &bench.pool, &kept()).await?;
    assert_eq!((last.waiting, last.overdue), (vec![], 0));
    Ok(())
}

/// A day that is closed and, since the setting has changed, stays after all.
#[tokio::test]
async fn a_day_that_is_kept_after_all_is_open_again() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    make_day(&bench, &days, -100).await?;
    let at = days.midnight(-100) + TimeDelta::hours(1);
    let over = history(&bench.pool, bench.job().await?, at, Some(at)).await?;
    sqlx::query("SELECT carillon.close_partition($1, '{}')")
        .bind(days.partition("job_executions", -100))
        .execute(&bench.pool)
        .await?;
    assert!(bench.change(over, "status = 'QUEUED', completed_at = NULL").await.is_err());
    let longer = Retention { executions: DAY * 200, ..kept() };
    retention::drop_days(&bench.store, &longer).await?;
    bench.change(over, "status = 'QUEUED', completed_at = NULL").await?;
    assert_eq!(bench.count("partition_closings").await?, 0);
    Ok(())
}

/// A `pg_dump`, and then writers without a pause: nobody waits for 100 ms, and the days leave.
#[tokio::test]
async fn days_leave_beside_a_dump_and_beside_writers_and_nobody_waits() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    make_day(&bench, &days, -100).await?;
    let job = bench.job().await?;
    let at = days.midnight(-100) + TimeDelta::hours(1);
    for _ in 0..500 {
        history(&bench.pool, job, at, None).await?;
    }
    let options = bench.database.options()?.application_name("beside");
    let beside = PgPoolOptions::new().connect_with(options).await?;
    let write = async || history(&beside, job, days.midnight(0), Some(at)).await.map(drop);
    let mut dump = Some(dump(&bench.pool).await?);
    let (mut longest, mut undisturbed) = ([Duration::MAX; 2], 0);
    for round in 0.. {
        let dropping = async { Ok(retention::drop_days(&bench.store, &kept()).await?) };
        let (dropped, waited) = longest_wait(&bench.pool, dropping, write).await?;
        a_minute_passes(&bench.pool).await?;
        let phase = usize::from(dump.is_none());
        longest[phase] = longest[phase].min(waited);
        if dump.is_some() {
            assert_eq!(dropped.dropped, Vec::<String>::new());
            if round == 4 {
                dump.take();
            }
        } else if dropped.waiting.is_empty() {
            break;
        } else {
            undisturbed += 1;
            assert!(undisturbed < 60, "{dropped:?}");
        }
    }
    assert!(longest.iter().all(|waited| *waited < Duration::from_millis(100)), "{longest:?}");
    assert_eq!(bench.count("job_executions_default").await?, 500);
    Ok(())
}

#[tokio::test]
async fn rows_of_the_default_partition_leave_by_their_end_in_steps() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    let job = bench.job().await?;
    let long_ago = days.midnight(-400);
    let stays = history(&bench.pool, job, long_ago, Some(days.midnight(-1))).await?;
    let open = history(&bench.pool, job, long_ago, None).await?;
    // Its lines and its attempt are old, it is not: scheduled long ago, ended yesterday.
    let leaves = history(&bench.pool, job, long_ago, Some(days.midnight(-91))).await?;
    let future = history(&bench.pool, job, days.midnight(900), Some(days.midnight(-91))).await?;
    // More than two steps.
    sqlx::query(
        "WITH e AS (
             INSERT INTO job_executions (shard, id, job_id, status, scheduled_at, completed_at)
             SELECT 0, (substr($1::text, 1, 14) || substr(gen_random_uuid()::text, 15))::uuid, $2, 'SUCCESS', $3, $3
             FROM generate_series(1, 2500) RETURNING id
         )
         INSERT INTO job_execution_logs (execution_id, attempt, line, timestamp, level, message)
         SELECT id, 1, 1, $3, 'INFO', 'x' FROM e",
    )
    .bind(ids::first_at(long_ago).to_string())
    .bind(job)
    .bind(long_ago)
    .execute(&bench.pool)
    .await?;
    let gone = retention::sweep_default(&bench.store, &kept()).await?.gone;
    // Executions, lines, the attempt of the one whose attempt is old, and the failures of those that left.
    assert_eq!(gone, (2_500 + 2) + (2_500 + 3) + 1 + 2);
    assert_eq!(failures(&bench.pool, stays).await?, 1);
    assert_eq!(rows(&bench.pool, stays).await?, (1, 1, 0));
    assert_eq!(rows(&bench.pool, open).await?, (1, 1, 0));
    for id in [leaves, future] {
        assert_eq!((rows(&bench.pool, id).await?.0, failures(&bench.pool, id).await?), (0, 0));
    }
    assert_eq!(retention::sweep_default(&bench.store, &kept()).await?, Swept::default());
    Ok(())
}

#[tokio::test]
async fn jobs_that_are_over_for_long_leave_with_all_that_is_theirs() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    make_day(&bench, &days, -32).await?;
    let jobs = bench.jobs(5).await?;
    let [deleted, completed, recent, running, active] = jobs[..] else { anyhow::bail!("five") };
    sqlx::query("UPDATE jobs SET created_at = $1").bind(days.midnight(-401)).execute(&bench.pool).await?;
    let mut ids = Vec::new();
    for job in &jobs {
        for day in [-400, -33, -32] {
            let at = days.midnight(day) + TimeDelta::hours(1);
            ids.push((*job, history(&bench.pool, *job, at, Some(at)).await?));
        }
        sqlx::query("UPDATE job_timers SET claimed_count = 3 WHERE job_id = $1").bind(job).execute(&bench.pool).await?;
        sqlx::query("UPDATE job_stats SET finished_count = 3 WHERE job_id = $1").bind(job).execute(&bench.pool).await?;
    }
    sqlx::query("UPDATE job_timers SET claimed_count = 4 WHERE job_id = $1").bind(running).execute(&bench.pool).await?;
    let open = history(&bench.pool, running, days.midnight(0), None).await?;
    let over = |job: Uuid, set: &'static str, ago: i64| {
        let statement = format!("UPDATE jobs SET {set} = now() - $2::interval WHERE id = $1");
        let pool = bench.pool.clone();
        async move {
            let ago = TimeDelta::days(ago).to_std()?;
            sqlx::query(sqlx::AssertSqlSafe(statement)).bind(job).bind(ago).execute(&pool).await?;
            anyhow::Ok(())
        }
    };
    over(deleted, "status = 'CANCELLED', cancelled_at", 31).await?;
    over(completed, "status = 'COMPLETED', completed_at", 31).await?;
    over(recent, "status = 'COMPLETED', completed_at", 29).await?;
    over(running, "status = 'CANCELLED', cancelled_at", 31).await?;

    // Somebody else's table names one that would leave: it stays, is said, and keeps no other.
    sqlx::raw_sql("CREATE TABLE favourites (job uuid REFERENCES jobs)").execute(&bench.pool).await?;
    sqlx::query("INSERT INTO favourites SELECT id FROM jobs WHERE id = $1").bind(deleted).execute(&bench.pool).await?;
    let swept = retention::forget_jobs(&bench.store, DAY * 30).await?;
    assert_eq!(swept.gone, 1);
    assert!(
        matches!(&swept.refused[..], [why] if why.contains(&deleted.to_string()) && why.contains("favourites")),
        "{swept:?}"
    );
    sqlx::raw_sql("DROP TABLE favourites").execute(&bench.pool).await?;
    assert_eq!(retention::forget_jobs(&bench.store, DAY * 30).await?, Swept { gone: 1, refused: vec![] });
    for (job, id) in ids {
        let stays = i64::from(job != deleted && job != completed);
        assert_eq!(rows(&bench.pool, id).await?, (stays, stays, stays));
        assert_eq!(failures(&bench.pool, id).await?, stays);
    }
    assert_eq!(rows(&bench.pool, open).await?.0, 1);
    for table in ["jobs", "job_timers", "job_stats", "job_revisions"] {
        assert_eq!(bench.count(table).await?, 3, "{table}");
    }
    assert_eq!(bench.stats(active).await?.finished_count, 3);
    assert_eq!(retention::forget_jobs(&bench.store, DAY * 30).await?.gone, 0);
    Ok(())
}

/// A one-time job that ended thirty days ago, with its one execution at `at`.
async fn one_time_job_that_is_over(bench: &Bench, made: DateTime<Utc>, at: DateTime<Utc>) -> Result<(Uuid, Uuid)> {
    let job = bench.job().await?;
    let execution = history(&bench.pool, job, at, Some(made)).await?;
    sqlx::query(
        "WITH timer AS (UPDATE job_timers SET claimed_count = 1 WHERE job_id = $1),
              stats AS (UPDATE job_stats SET finished_count = 1, last_run_at = $2 WHERE job_id = $1)
         UPDATE jobs SET status = 'COMPLETED', created_at = $2, completed_at = $2 WHERE id = $1",
    )
    .bind(job)
    .bind(made)
    .execute(&bench.pool)
    .await?;
    Ok((job, execution))
}

/// Each day is a statement, and there may be hundreds. Somebody has locked one of which the job can have nothing.
#[tokio::test]
async fn what_a_job_had_is_looked_for_on_its_own_days() -> Result<()> {
    let bench = Bench::new().await?;
    let days = today(&bench.pool).await?;
    make_day(&bench, &days, -40).await?;
    make_day(&bench, &days, -30).await?;
    let made = days.midnight(-30) + TimeDelta::hours(1);
    let (_, execution) = one_time_job_that_is_over(&bench, made, made).await?;
    // By the client's wish, of a day long past, that has no partition.
    let (_, of_the_past) = one_time_job_that_is_over(&bench, made, days.midnight(-400)).await?;
    let mut foreign = bench.pool.begin().await?;
    let lock = format!("LOCK TABLE ONLY carillon.{} IN ACCESS EXCLUSIVE MODE", days.partition(TABLES[0], -1));
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await?;
    let swept = retention::forget_jobs(&bench.store, DAY * 20).await?;
    assert_eq!((swept.gone, swept.refused.len()), (1, 1), "{swept:?}");
    foreign.rollback().await?;
    assert_eq!(rows(&bench.pool, of_the_past).await?, (1, 1, 1), "of that one all days are looked through");
    assert_eq!(rows(&bench.pool, execution).await?, (0, 0, 0));
    assert_eq!(retention::forget_jobs(&bench.store, DAY * 20).await?, Swept { gone: 1, refused: vec![] });
    assert_eq!(rows(&bench.pool, of_the_past).await?, (0, 0, 0));
    // The days that it had are gone: nothing is looked for elsewhere.
    one_time_job_that_is_over(&bench, days.midnight(-60), days.midnight(-400)).await?;
    let mut foreign = bench.pool.begin().await?;
    let lock = format!("LOCK TABLE ONLY carillon.{} IN ACCESS EXCLUSIVE MODE", days.partition(TABLES[0], -1));
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await?;
    assert_eq!(retention::forget_jobs(&bench.store, DAY * 20).await?, Swept { gone: 1, refused: vec![] });
    foreign.rollback().await?;
    Ok(())
}

/// A round is given up after a while. The next one began anew, and what stood behind was never come to.
#[tokio::test]
async fn what_is_given_up_goes_on_where_it_had_come_to() -> Result<()> {
    let bench = Bench::new().await?;
    let made = today(&bench.pool).await?.midnight(-1);
    let (first, _) = one_time_job_that_is_over(&bench, made, made).await?;
    let (last, _) = one_time_job_that_is_over(&bench, made, made).await?;
    let mut foreign = bench.pool.begin().await?;
    sqlx::query("SELECT FROM jobs WHERE id = $1 FOR UPDATE").bind(last).execute(&mut *foreign).await?;
    let (mut after, mut swept) = (Uuid::nil(), Swept::default());
    tokio::select! {
        done = retention::forget_jobs_on(&bench.store, Duration::ZERO, &mut after, &mut swept) => {
            anyhow::bail!("it waits for the last one: {done:?}")
        }
        gone = wait_until("the first to leave", Duration::from_secs(30), || async {
            anyhow::ensure!(bench.count("jobs").await? == 1, "not yet");
            // All that comes behind it is to wait for the lock.
            anyhow::Ok(bench.executor_waits_for_a_lock().await?)
        }) => gone?,
    }
    assert_eq!((after, swept.gone), (first, 1));
    foreign.rollback().await?;
    retention::forget_jobs_on(&bench.store, Duration::ZERO, &mut after, &mut swept).await?;
    assert_eq!((after, swept.refused.len()), (Uuid::nil(), 0), "and the next begins anew");
    // Who gave up may have deleted it in the end: its statement went on.
    assert_eq!(bench.count("jobs").await?, 0);
    Ok(())
}
