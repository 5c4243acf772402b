//! Listing by any field, a page at a time, whatever comes, goes, or takes long.

use std::collections::BTreeMap;
use std::slice::from_ref;
use std::time::Duration;

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_core::job::{JobStatus, JobType, Priority};
use carillon_store::scan::{Counted, Direction, Place, Window};
use carillon_store::{Scope, executions, jobs, triggers};
use chrono::TimeDelta;
use sqlx::PgPool;
use uuid::Uuid;

use crate::bench::{Bench, new_job, window};

const BOTH: [Direction; 2] = [Direction::Descending, Direction::Ascending];
const LONG: Duration = Duration::from_secs(60);

/// All pages, of `limit` at most, without time to look any further than one statement does.
async fn pages<T>(limit: u32, mut page: impl AsyncFnMut(Window) -> Result<(Vec<T>, Option<Place>)>) -> Result<Vec<T>> {
    let (mut all, mut from) = (Vec::new(), Some(Place::first(0)));
    while let Some(place) = from {
        let (items, next) = page(Window { limit, from: place, budget: Duration::ZERO }).await?;
        assert!(items.len() <= usize::try_from(limit)?);
        all.extend(items);
        from = next;
    }
    Ok(all)
}

#[tokio::test]
async fn jobs_are_found_by_each_of_their_fields() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut ids = BTreeMap::new();
    for (n, name) in ["plain", "Nightly Report", "nightly cleanup", "odd"].into_iter().enumerate() {
        let mut new = new_job(now + TimeDelta::minutes(i64::try_from(n)?));
        name.clone_into(&mut new.definition.name);
        if name == "odd" {
            new.definition.job_type = JobType::Recurring;
            new.definition.tags = vec!["red".into()];
            new.definition.platform_id = Some("p2".into());
            new.definition.handler_name = "other:one".into();
            new.definition.queue = "fast".into();
            new.definition.priority = Priority::Low;
            new.definition.key = Some("k".into());
        }
        ids.insert(name, jobs::create(&bench.store, &Scope::ALL, new, None).await?.id);
    }
    let found = async |filter: jobs::Filter<'_>| -> Result<Vec<Uuid>> {
        let page = jobs::list(&bench.store, &Scope::ALL, filter, window(9, Place::first(0))).await?;
        Ok(page.items.into_iter().map(|job| job.id).collect())
    };
    let all = jobs::Filter::default();
    for filter in [
        jobs::Filter { job_type: Some(JobType::Recurring), ..all },
        jobs::Filter { tag: Some("red"), ..all },
        jobs::Filter { platform_id: Some("p2"), ..all },
        jobs::Filter { handler_name: Some("other:one"), ..all },
        jobs::Filter { queue: Some("fast"), ..all },
        jobs::Filter { priority: Some(Priority::Low), ..all },
        jobs::Filter { key: Some("k"), ..all },
        jobs::Filter { name: Some("DD"), ..all },
        jobs::Filter { created_from: Some(now + TimeDelta::minutes(3)), ..all },
    ] {
        assert_eq!(found(filter).await?, [ids["odd"]], "{filter:?}");
        assert_eq!(found(jobs::Filter { tag: Some("red"), ..filter }).await?, [ids["odd"]]);
        assert!(found(jobs::Filter { tag: Some("none"), ..filter }).await?.is_empty());
    }
    let nightly = [ids["nightly cleanup"], ids["Nightly Report"]];
    assert_eq!(found(jobs::Filter { name: Some("nightly"), ..all }).await?, nightly);
    assert_eq!(found(jobs::Filter { name_prefix: Some("Nightly"), ..all }).await?, nightly[1..]);
    let before = jobs::Filter { created_before: Some(now + TimeDelta::minutes(1)), ..all };
    assert_eq!(found(before).await?, [ids["plain"]]);
    Ok(())
}

/// Two thousand, of which few match: more than one statement looks at.
#[tokio::test]
async fn pages_of_jobs_go_on_where_they_were_cut_whatever_comes_and_goes() -> Result<()> {
    let bench = Bench::new().await?;
    let first = bench.job().await?;
    let copies = "INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id',
                      overlay(j.id::text PLACING lpad(to_hex(n), 8, '0') FROM 1 FOR 8), 'tags',
                      CASE WHEN n % 200 = 0 THEN '[\"rare\"]'::jsonb ELSE '[]' END))).*
                  FROM jobs j, generate_series(1, 2000) n WHERE j.id = $1";
    sqlx::query(copies).bind(first.id).execute(&bench.pool).await?;
    let rare = jobs::Filter { tag: Some("rare"), ..jobs::Filter::default() };
    let list = async |window| {
        let page = jobs::list(&bench.store, &Scope::ALL, rare, window).await?;
        // A page more than was there when it began is never shown, and none twice.
        bench.job().await?;
        Ok((page.items.into_iter().map(|job| job.id).collect(), page.next))
    };
    let found = pages(3, list).await?;
    assert_eq!(found.len(), 10);
    assert!(found.is_sorted_by(|newer, older| newer > older));
    let skipped = jobs::list(&bench.store, &Scope::ALL, rare, window(3, Place::first(8))).await?;
    assert_eq!((skipped.items.iter().map(|job| job.id).collect::<Vec<_>>(), skipped.next), (found[8..].to_vec(), None));
    Ok(())
}

async fn set(pool: &PgPool, execution: Uuid, what: &'static str) -> Result<()> {
    let statement = format!("UPDATE job_executions SET {what} WHERE id = $1");
    sqlx::query(sqlx::AssertSqlSafe(statement)).bind(execution).execute(pool).await?;
    Ok(())
}

/// What an odd execution has.
const ODD: &str =
    "platform_id = 'p2', queue = 'fast', error = 'no such host', worker_id = '00000000-0000-0000-0000-000000000009'";

/// Two jobs, one of another handler with a tag.
async fn plain_and_other(bench: &Bench) -> Result<(jobs::Job, jobs::Job)> {
    let mut other = new_job(bench.now().await?);
    other.definition.handler_name = "other:one".into();
    other.definition.tags = vec!["red".into()];
    Ok((bench.job().await?, jobs::create(&bench.store, &Scope::ALL, other, None).await?))
}

#[tokio::test]
async fn executions_of_all_jobs_are_found_by_each_of_their_fields() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let (job, other) = plain_and_other(&bench).await?;
    let old = bench.execution(job.id, now - TimeDelta::days(200), "FAILED").await?;
    let plain = bench.execution(job.id, now - TimeDelta::days(3), "SUCCESS").await?;
    let odd = bench.execution(other.id, now - TimeDelta::hours(1), "FAILED").await?;
    let worker = Uuid::from_u128(9);
    set(&bench.pool, odd, ODD).await?;
    let trigger = triggers::create(&bench.store, &Scope::ALL, &crate::trigger::new(job.id), None).await?.execution.id;
    let found = async |filter: executions::Filter<'_>| -> Result<Vec<Uuid>> {
        let page = executions::list(&bench.store, &Scope::ALL, filter, window(9, Place::first(0))).await?;
        assert_eq!(page.next, None);
        Ok(page.items.into_iter().map(|execution| execution.id).collect())
    };
    let all = executions::Filter::default();
    assert_eq!(found(all).await?, [trigger, odd, plain, old]);
    for filter in [
        executions::Filter { job: Some(other.id), ..all },
        executions::Filter { platform_id: Some("p2"), ..all },
        executions::Filter { queue: Some("fast"), ..all },
        executions::Filter { handler_name: Some("other:one"), ..all },
        executions::Filter { tag: Some("red"), ..all },
        executions::Filter { worker_id: Some(worker), ..all },
        executions::Filter { error: Some("such"), ..all },
        executions::Filter { completed_from: Some(now - TimeDelta::days(1)), ..all },
        executions::Filter { scheduled_from: Some(now - TimeDelta::days(1)), status: Some(Status::Failed), ..all },
    ] {
        assert_eq!(found(filter).await?, [odd], "{filter:?}");
        assert!(found(executions::Filter { status: Some(Status::Success), ..filter }).await?.is_empty(), "{filter:?}");
    }
    let ended = executions::Filter { completed_before: Some(now - TimeDelta::days(1)), ..all };
    assert_eq!(found(ended).await?, [plain, old]);
    let scheduled = executions::Filter { scheduled_before: Some(now - TimeDelta::days(4)), ..all };
    assert_eq!(found(scheduled).await?, [old]);
    for unclaimed in [
        executions::Filter { status: Some(Status::Queued), ..all },
        executions::Filter { scheduled_from: Some(now - TimeDelta::seconds(5)), ..all },
        executions::Filter {
            job: Some(job.id),
            handler_name: Some("cleanup:old_traces"),
            status: Some(Status::Queued),
            ..all
        },
    ] {
        assert_eq!(found(unclaimed).await?, [trigger]);
    }
    assert!(found(executions::Filter { status: Some(Status::Queued), tag: Some("red"), ..all }).await?.is_empty());
    Ok(())
}

/// However many successes lie before them: by the table of failures, whatever else is asked for.
#[tokio::test]
async fn failures_are_found_by_a_table_of_their_own() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let (job, other) = plain_and_other(&bench).await?;
    let old = bench.execution(job.id, now - TimeDelta::days(200), "FAILED").await?;
    let late = bench.execution(job.id, now - TimeDelta::hours(50), "TIMEOUT").await?;
    let odd = bench.execution(other.id, now - TimeDelta::hours(29), "FAILED").await?;
    set(&bench.pool, odd, ODD).await?;
    sqlx::query(
        "UPDATE execution_failures SET platform_id = 'p2', fingerprint = 'fedcba9876543210' WHERE execution_id = $1",
    )
    .bind(odd)
    .execute(&bench.pool)
    .await?;
    let successes = "INSERT INTO job_executions (shard, id, job_id, status, scheduled_at, completed_at)
                     SELECT 0, overlay(gen_random_uuid()::text PLACING left($1::text, 14) FROM 1 FOR 14)::uuid, job, 'SUCCESS', now(), now()
                     FROM generate_series(1, 1500), UNNEST($2::uuid[]) AS job";
    let newest = ids::first_at(now - TimeDelta::minutes(1));
    sqlx::query(successes).bind(newest.to_string()).bind([job.id, other.id]).execute(&bench.pool).await?;

    let all = executions::Filter::default();
    let failed = executions::Filter { status: Some(Status::Failed), ..all };
    let found = async |filter: executions::Filter<'_>| -> Result<Vec<(Uuid, Option<String>)>> {
        let page = executions::list(&bench.store, &Scope::ALL, filter, window(9, Place::first(0))).await?;
        assert_eq!(page.next, None);
        Ok(page.items.into_iter().map(|execution| (execution.id, execution.fingerprint)).collect())
    };
    let fault = Some("0123456789abcdef".to_owned());
    let [old, late] = [old, late].map(|id| (id, fault.clone()));
    let odd = (odd, Some("fedcba9876543210".to_owned()));
    assert_eq!(found(failed).await?, [odd.clone(), old.clone()]);
    assert_eq!(found(executions::Filter { status: Some(Status::Timeout), ..all }).await?, from_ref(&late));
    assert_eq!(found(executions::Filter { fingerprint: fault.as_deref(), ..all }).await?, [late.clone(), old.clone()]);
    let of_job = executions::Filter { job: Some(job.id), fingerprint: fault.as_deref(), ..all };
    assert_eq!(found(of_job).await?, [late, old.clone()]);
    assert_eq!(found(executions::Filter { status: Some(Status::Failed), ..of_job }).await?, from_ref(&old));
    for filter in [
        executions::Filter { job: Some(other.id), ..failed },
        executions::Filter { platform_id: Some("p2"), ..failed },
        executions::Filter { queue: Some("fast"), ..failed },
        executions::Filter { handler_name: Some("other:one"), ..failed },
        executions::Filter { tag: Some("red"), ..failed },
        executions::Filter { worker_id: Some(Uuid::from_u128(9)), ..failed },
        executions::Filter { error: Some("such"), ..failed },
        executions::Filter { completed_from: Some(now - TimeDelta::days(2)), ..failed },
        executions::Filter { scheduled_from: Some(now - TimeDelta::days(2)), ..failed },
        executions::Filter { fingerprint: Some("fedcba9876543210"), ..all },
    ] {
        assert_eq!(found(filter).await?, from_ref(&odd), "{filter:?}");
        assert!(found(executions::Filter { status: Some(Status::Timeout), ..filter }).await?.is_empty(), "{filter:?}");
    }
    let ended = executions::Filter { completed_before: Some(now - TimeDelta::days(1)), job: Some(job.id), ..failed };
    assert_eq!(found(ended).await?, from_ref(&old));

    // One look is enough, where the rows of the executions would have taken seven.
    let hasty = Window { limit: 9, from: Place::first(0), budget: Duration::ZERO };
    for filter in [failed, executions::Filter { job: Some(other.id), ..failed }] {
        let page = executions::list(&bench.store, &Scope::ALL, filter, hasty).await?;
        assert_eq!(page.items.into_iter().map(|execution| execution.id).collect::<Vec<_>>(), [odd.0]);
    }
    let paged = pages(1, async |window| {
        let page = executions::list(&bench.store, &Scope::ALL, failed, window).await?;
        Ok((page.items.into_iter().map(|execution| execution.id).collect(), page.next))
    });
    assert_eq!(paged.await?, [odd.0, old.0]);
    Ok(())
}

/// Over days, in more rows than one statement looks at, of one job and of all.
#[tokio::test]
async fn pages_of_executions_go_on_where_they_were_cut() -> Result<()> {
    const EACH: i64 = 700;
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let jobs = [bench.job().await?.id, bench.job().await?.id];
    let mut ids = Vec::new();
    for (job, shift) in jobs.into_iter().zip([0, 1]) {
        for n in 0..EACH {
            ids.push((ids::execution_for_fire(job, now - TimeDelta::minutes(7 * n + shift)), job, n));
        }
    }
    let rows = "INSERT INTO job_executions (shard, id, job_id, status, scheduled_at, completed_at, error)
                SELECT 0, id, job, 'FAILED', now(), now(), CASE WHEN n % 100 = 0 THEN 'rare' END
                FROM UNNEST($1::uuid[], $2::uuid[], $3::bigint[]) AS r(id, job, n)";
    sqlx::query(rows)
        .bind(ids.iter().map(|(id, ..)| *id).collect::<Vec<_>>())
        .bind(ids.iter().map(|(_, job, _)| *job).collect::<Vec<_>>())
        .bind(ids.iter().map(|(.., n)| *n).collect::<Vec<_>>())
        .execute(&bench.pool)
        .await?;
    ids.sort_unstable_by(|one, other| other.cmp(one));
    let filters = [(None, None), (None, Some("rare")), (Some(jobs[0]), None), (Some(jobs[1]), Some("rare"))];
    for ((job, error), direction) in filters.into_iter().flat_map(|filter| BOTH.map(|way| (filter, way))) {
        let order = executions::Order { by: executions::By::Scheduled, direction };
        let filter = executions::Filter { job, error, order, ..executions::Filter::default() };
        let mut wanted: Vec<Uuid> = ids
            .iter()
            .filter(|(_, of, n)| job.is_none_or(|job| job == *of) && (error.is_none() || n % 100 == 0))
            .map(|(id, ..)| *id)
            .collect();
        if direction == Direction::Ascending {
            wanted.reverse();
        }
        let list = async |window| {
            let page = executions::list(&bench.store, &Scope::ALL, filter, window).await?;
            Ok((page.items.into_iter().map(|execution| execution.id).collect(), page.next))
        };
        assert_eq!(pages(90, list).await?, wanted, "{filter:?}");
        let counted = executions::count(&bench.store, &Scope::ALL, filter, LONG).await?;
        assert_eq!(counted, Counted { least: u32::try_from(wanted.len())?, is_all: true }, "{filter:?}");
        if job.is_none() {
            // Its time is up before all was looked at.
            assert!(!executions::count(&bench.store, &Scope::ALL, filter, Duration::ZERO).await?.is_all);
        }
    }
    Ok(())
}

/// By what the recorder writes: none is lost at the seam of two pages though many have the same, and what has not ended is last.
#[tokio::test]
async fn executions_of_a_job_are_listed_by_their_end_and_by_how_long_they_took() -> Result<()> {
    let bench = Bench::new().await?;
    let (job, now) = (bench.job().await?.id, bench.now().await?);
    let mut ids = Vec::new();
    for (n, status) in ["SUCCESS", "FAILED", "RUNNING", "SUCCESS", "FAILED", "SUCCESS"].into_iter().enumerate() {
        ids.push(bench.execution(job, now - TimeDelta::hours(9 * i64::try_from(n)?), status).await?);
    }
    bench.execution(bench.job().await?.id, now, "SUCCESS").await?;
    for (n, took) in [(0, "70"), (1, "5"), (3, "70"), (4, "300"), (5, "NULL")] {
        let set = format!(
            "UPDATE job_executions SET duration_ms = {took}, completed_at = scheduled_at + interval '1 day' * {n} WHERE id = $1"
        );
        sqlx::query(sqlx::AssertSqlSafe(set)).bind(ids[n]).execute(&bench.pool).await?;
    }
    sqlx::query(
        "UPDATE execution_failures f SET ended_at = e.completed_at FROM job_executions e WHERE e.id = f.execution_id",
    )
    .execute(&bench.pool)
    .await?;
    let of_job = executions::Filter { job: Some(job), ..executions::Filter::default() };
    let failed = executions::Filter { status: Some(Status::Failed), ..of_job };
    let fault = executions::Filter { fingerprint: Some("0123456789abcdef"), ..executions::Filter::default() };
    let listed = async |filter: executions::Filter<'_>, by, direction, limit| -> Result<Vec<usize>> {
        let filter = executions::Filter { order: executions::Order { by, direction }, ..filter };
        let listed = pages(limit, async |window| {
            let page = executions::list(&bench.store, &Scope::ALL, filter, window).await?;
            Ok((page.items.into_iter().map(|execution| execution.id).collect(), page.next))
        });
        let listed: Vec<Uuid> = listed.await?;
        Ok(listed.into_iter().map(|id| ids.iter().position(|one| *one == id).expect("one of them")).collect())
    };
    let (completed, duration) = (executions::By::Completed, executions::By::Duration);
    let (up, down) = (Direction::Ascending, Direction::Descending);
    for limit in [1, 2, 9] {
        assert_eq!(listed(of_job, completed, down, limit).await?, [5, 4, 3, 1, 0, 2]);
        assert_eq!(listed(of_job, completed, up, limit).await?, [0, 1, 3, 4, 5, 2]);
        assert_eq!(listed(of_job, duration, down, limit).await?, [4, 0, 3, 1, 2, 5]);
        assert_eq!(listed(of_job, duration, up, limit).await?, [1, 3, 0, 4, 5, 2]);
        for filter in [failed, fault] {
            assert_eq!(listed(filter, completed, down, limit).await?, [4, 1]);
            assert_eq!(listed(filter, duration, up, limit).await?, [1, 4]);
        }
    }
    let within = executions::Filter { scheduled_from: Some(now - TimeDelta::hours(10)), ..of_job };
    assert_eq!(listed(within, duration, up, 9).await?, [1, 0]);
    Ok(())
}

#[tokio::test]
async fn jobs_are_listed_by_last_and_next_run_where_they_are_not_too_many() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let mut ids = Vec::new();
    for (last, next) in [(Some(3), Some(2)), (None, Some(1)), (Some(1), None), (Some(3), Some(2)), (Some(2), Some(9))] {
        let at_ms = now + TimeDelta::milliseconds(i64::try_from(ids.len())?);
        let job = jobs::create(&bench.store, &Scope::ALL, new_job(at_ms), None).await?.id;
        let at = |minutes: Option<i64>| minutes.map(|minutes| now + TimeDelta::minutes(minutes));
        sqlx::query("UPDATE job_stats SET last_run_at = $2 WHERE job_id = $1")
            .bind(job)
            .bind(at(last))
            .execute(&bench.pool)
            .await?;
        sqlx::query("UPDATE job_timers SET fire_at = $2 WHERE job_id = $1")
            .bind(job)
            .bind(at(next))
            .execute(&bench.pool)
            .await?;
        ids.push(job);
    }
    let (up, down) = (Direction::Ascending, Direction::Descending);
    let listed = async |filter: jobs::Filter<'_>, by, direction, limit| -> Result<Vec<usize>> {
        let filter = jobs::Filter { order: jobs::Order { by, direction }, ..filter };
        let listed = pages(limit, async |window| {
            let page = jobs::list(&bench.store, &Scope::ALL, filter, window).await?;
            Ok((page.items.into_iter().map(|job| job.id).collect(), page.next))
        });
        let listed: Vec<Uuid> = listed.await?;
        Ok(listed.into_iter().map(|id| ids.iter().position(|one| *one == id).expect("one of them")).collect())
    };
    let all = jobs::Filter::default();
    for limit in [1, 2, 9] {
        assert_eq!(listed(all, jobs::By::Created, up, limit).await?, [0, 1, 2, 3, 4]);
        assert_eq!(listed(all, jobs::By::Created, down, limit).await?, [4, 3, 2, 1, 0]);
        assert_eq!(listed(all, jobs::By::LastRun, up, limit).await?, [2, 4, 0, 3, 1]);
        assert_eq!(listed(all, jobs::By::LastRun, down, limit).await?, [3, 0, 4, 2, 1]);
        assert_eq!(listed(all, jobs::By::NextRun, up, limit).await?, [1, 0, 3, 4, 2]);
        assert_eq!(listed(all, jobs::By::NextRun, down, limit).await?, [4, 3, 0, 1, 2]);
    }
    let counted = async |filter| anyhow::Ok(jobs::count(&bench.store, &Scope::ALL, filter, LONG).await?);
    assert_eq!(counted(all).await?, Counted { least: 5, is_all: true });

    // Of another status, so that the few are no longer all.
    let copies = "INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('status', 'COMPLETED', 'completed_at', now(), 'id',
                      overlay(j.id::text PLACING lpad(to_hex(n), 8, '0') FROM 1 FOR 8)))).*
                  FROM jobs j, generate_series(1, 10001) n WHERE j.id = $1";
    sqlx::query(copies).bind(ids[0]).execute(&bench.pool).await?;
    let filter = jobs::Filter { order: jobs::Order { by: jobs::By::NextRun, direction: up }, ..all };
    let refused = jobs::list(&bench.store, &Scope::ALL, filter, window(9, Place::first(0))).await;
    assert!(matches!(refused, Err(carillon_store::Error::TooWide { most: 10_000 })), "{refused:?}");
    let active = jobs::Filter { status: Some(JobStatus::Active), ..all };
    assert_eq!(listed(active, jobs::By::NextRun, up, 2).await?, [1, 0, 3, 4, 2]);
    assert_eq!(counted(all).await?, Counted { least: 10_000, is_all: false });
    assert_eq!(counted(active).await?, Counted { least: 5, is_all: true });
    Ok(())
}
