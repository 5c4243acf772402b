//! A job with a long history: whatever asks for the few of its executions that are open looks at a page of it at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_store::scan::{Place, Window};
use carillon_store::{Error, Scope, Store, StoreOptions, executions, jobs, revisions};
use chrono::TimeDelta;
use sqlx::Row;
use uuid::Uuid;

use crate::bench::Bench;
use crate::scans::{scans, sessions_end};

/// Final executions, all newer than what is open.
const FINAL: i64 = 300_000;
/// Of the time that it takes to look at all of it, a statement may take so much: many times what a page takes.
const SHARE: u32 = 4;
/// Other people's load makes a page slow too: then it is asked for again.
const LIMIT: Duration = Duration::from_secs(60);

/// Adds final executions of `job`, from a second after now to an hour after it, as if the clock had been set back.
async fn fill(bench: &Bench, job: Uuid) -> Result<()> {
    sqlx::query(
        "INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at, completed_at)
         SELECT 0, (lpad(to_hex($2 + n * 8), 12, '0') || lpad(to_hex(n), 8, '0') || substr(md5($1::text), 1, 12))::uuid, $1, 1, 1, 'SUCCESS', now(), now()
         FROM generate_series(1, $3) n",
    )
    .bind(job)
    .bind(bench.now().await?.timestamp_millis() + 1_000)
    .bind(FINAL)
    .execute(&bench.pool)
    .await?;
    Ok(())
}

/// A store on which no statement may look at all of it, on this machine, as it is now.
async fn hurried(bench: &Bench, job: Uuid) -> Result<Store> {
    let mut all = LIMIT;
    for _ in 0..3 {
        let began = Instant::now();
        let found: Option<Uuid> =
            sqlx::query_scalar("SELECT id FROM job_executions WHERE job_id = $1 AND status = 'RETRYING'")
                .bind(job)
                .fetch_optional(&bench.pool)
                .await?;
        anyhow::ensure!(found.is_none(), "nothing of it is");
        all = all.min(began.elapsed());
    }
    let options = StoreOptions { statement_max: all / SHARE, ..bench.options("hurried") };
    Ok(Store::connect_lazily(&options)?)
}

/// Asks again until it is not refused.
async fn unhurriedly<T>(what: &str, mut ask: impl AsyncFnMut() -> carillon_store::Result<T>) -> Result<T> {
    let until = Instant::now() + LIMIT;
    loop {
        match ask().await {
            Err(Error::Busy(_)) if Instant::now() < until => {}
            outcome => return outcome.with_context(|| what.to_owned()),
        }
    }
}

/// D6: one statement went through all of the history, and was refused.
#[tokio::test]
async fn what_is_asked_of_a_job_looks_at_a_page_of_its_history_at_a_time() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    let job = bench.job_of(held.execution).await?;
    fill(&bench, job).await?;
    // Claimed ahead: behind all of it, so that whoever looks newest first meets it at once, and goes on.
    let at = bench.now().await? + TimeDelta::hours(2);
    let coming = ids::execution_for_fire(job, at);
    sqlx::query(
        "WITH counted AS (UPDATE job_timers SET claimed_count = claimed_count + 1 WHERE job_id = $2)
         INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at, revision)
         VALUES (0, $1, $2, 1, 1, 'QUEUED', $3, 2)",
    )
    .bind(coming)
    .bind(job)
    .bind(at)
    .execute(&bench.pool)
    .await?;
    let store = hurried(&bench, job).await?;

    let paused = unhurriedly("pause", async || jobs::pause(&store, &Scope::ALL, job).await).await?;
    assert_eq!(paused.withdrawn, [coming]);
    let again = unhurriedly("pause again", async || jobs::pause(&store, &Scope::ALL, job).await).await?;
    assert_eq!(again.withdrawn, [coming]);
    let withdrawn = unhurriedly("withdrawn", async || store.executions_withdrawn_of_job(job).await).await?;
    assert_eq!(withdrawn, [coming]);
    unhurriedly("resume", async || jobs::resume(&store, &Scope::ALL, job).await).await?;
    assert!(unhurriedly("withdrawn", async || store.executions_withdrawn_of_job(job).await).await?.is_empty());

    // The oldest names the first, the one to come the second; nobody names the third.
    sqlx::query(
        "INSERT INTO job_revisions (job_id, revision, definition, superseded_at)
         SELECT job_id, n, definition, CASE WHEN n < 4 THEN now() - interval '9 days' END
         FROM job_revisions, generate_series(2, 4) n WHERE job_id = $1",
    )
    .bind(job)
    .execute(&bench.pool)
    .await?;
    sqlx::query(
        "UPDATE job_revisions SET superseded_at = now() - interval '9 days' WHERE job_id = $1 AND revision = 1",
    )
    .bind(job)
    .execute(&bench.pool)
    .await?;
    let age = Duration::from_secs(24 * 60 * 60);
    let (mut gone, until) = (0, Instant::now() + LIMIT);
    loop {
        let swept = revisions::forget(&store, age).await?;
        gone += swept.gone;
        if swept.refused.is_empty() {
            break;
        }
        // It was busy meanwhile: said, and left to the next time.
        anyhow::ensure!(Instant::now() < until, "{swept:?}");
    }
    assert_eq!(gone, 1);
    let kept: Vec<i64> = sqlx::query_scalar("SELECT revision FROM job_revisions WHERE job_id = $1 ORDER BY revision")
        .bind(job)
        .fetch_all(&bench.pool)
        .await?;
    assert_eq!(kept, [1, 2, 4]);

    assert!(unhurriedly("delete", async || jobs::delete(&store, &Scope::ALL, job).await).await?);
    let mut deleting = jobs::Deleting::of(&store, job);
    let mut asked = Vec::new();
    while let Some(some) = unhurriedly("a step", async || deleting.step().await).await? {
        asked.extend(some);
    }
    asked.sort_unstable();
    assert_eq!(asked, [held.execution, coming]);
    Ok(())
}

/// A list of what is open: by the count of how many there are, and by the batch of the one that all has overtaken.
#[tokio::test]
async fn what_is_open_is_listed_however_much_has_ended_since() -> Result<()> {
    let bench = Bench::new().await?;
    let mut leader = bench.leader().await?;
    let held = bench.open_one(&mut leader).await?;
    leader.batches_settle(&[held.claim]).await?;
    leader.resign().await;
    let (job, idle) = (bench.job_of(held.execution).await?, bench.job().await?);
    for job in [job, idle] {
        fill(&bench, job).await?;
    }
    let before = scans(&bench).await?;
    let listed = async |job: Uuid, status: Status| -> Result<Vec<Uuid>> {
        let filter = executions::Filter { job: Some(job), status: Some(status), ..executions::Filter::default() };
        let window = Window { limit: 10, from: Place::first(0), budget: LIMIT };
        let page = executions::list(&bench.store, &Scope::ALL, filter, window).await?;
        assert_eq!(page.next, None, "all is known");
        Ok(page.items.into_iter().map(|execution| execution.id).collect())
    };
    assert_eq!(listed(job, Status::Queued).await?, [held.execution]);
    assert!(listed(job, Status::Running).await?.is_empty());
    assert!(listed(idle, Status::Running).await?.is_empty());
    let trigger = bench.trigger(idle, bench.now().await? - TimeDelta::days(300)).await?;
    assert_eq!(listed(idle, Status::Queued).await?, [trigger]);
    bench.store.close().await;
    sessions_end(&bench).await?;
    let after = scans(&bench).await?;
    let of_executions = after.iter().filter(|(table, _)| table.starts_with("job_executions"));
    let read: i64 = of_executions.map(|(table, after)| after.idx_tup_fetch - before[table].idx_tup_fetch).sum();
    assert!(read < 5_000, "{read} rows were looked at");
    Ok(())
}

/// How many rows of executions this session has looked at and not reported yet: it reports between transactions only.
async fn fetched(connection: &mut sqlx::PgConnection) -> Result<i64> {
    let fetched = sqlx::query_scalar(
        "SELECT coalesce(sum(coalesce(idx_tup_fetch, 0) + seq_tup_read), 0)::bigint FROM pg_stat_xact_user_tables
         WHERE relname LIKE 'job\\_executions%'",
    );
    Ok(fetched.fetch_one(connection).await?)
}

/// The rows of a page of ten, and how many it has looked at.
async fn looked_at(bench: &Bench, job: Uuid, from: Uuid, below: Uuid) -> Result<(usize, i64)> {
    let mut transaction = bench.pool.begin().await?;
    let before = fetched(&mut transaction).await?;
    let page = sqlx::query("SELECT id FROM carillon.page_of_job($1, $2, $3, 10)").bind(job).bind(from).bind(below);
    let page = page.fetch_all(&mut *transaction).await?;
    let ids: Vec<Uuid> = page.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
    assert!(ids.is_sorted_by(|newer, older| newer > older));
    assert!(ids.iter().all(|id| (from..below).contains(id)));
    Ok((ids.len(), fetched(&mut transaction).await? - before))
}

/// Whatever the planner believes of a partition, a page is a walk down the index of jobs.
#[tokio::test]
async fn a_page_looks_at_no_more_rows_than_it_may() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, other) = (bench.job().await?, Uuid::now_v7());
    let day = ids::first_at(bench.now().await?);
    let fill = "INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at, completed_at)
                SELECT 0, (substr($2::text, 1, 14) || substr(gen_random_uuid()::text, 15))::uuid, $1, 1, 1, 'SUCCESS', now(),
                       now() FROM generate_series(1, 5000)";
    let bounds = (Uuid::from_u128(day.as_u128() >> 80 << 80), Uuid::max());
    let check = async |what: &str| -> Result<()> {
        for (job, from, below) in [(job, bounds.0, bounds.1), (job, Uuid::nil(), bounds.1), (other, bounds.0, bounds.1)]
        {
            let (rows, fetched) = looked_at(&bench, job, from, below).await?;
            anyhow::ensure!(rows <= 10 && fetched <= 20, "{what}: {rows} rows, {fetched} looked at");
        }
        Ok(())
    };
    check("empty").await?;
    sqlx::query(fill).bind(job).bind(day.to_string()).execute(&bench.pool).await?;
    check("never analyzed").await?;
    let (rows, fetched) = looked_at(&bench, job, bounds.0, bounds.1).await?;
    assert!(rows == 10 && fetched >= 10, "what was looked at is counted: {fetched}");
    sqlx::query("ANALYZE job_executions").execute(&bench.pool).await?;
    check("all of one job").await?;
    sqlx::query(fill).bind(other).bind(day.to_string()).execute(&bench.pool).await?;
    check("of another, unknown to the statistics").await?;
    sqlx::query("ANALYZE job_executions").execute(&bench.pool).await?;
    check("of two").await
}
