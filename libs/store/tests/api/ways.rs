//! By which way a list of jobs is looked for: whatever it is, it finds the same, and what is narrow is found among any number.

use std::time::Duration;

use anyhow::Result;
use carillon_core::job::JobStatus;
use carillon_store::scan::{Direction, Place, Window};
use carillon_store::{Error, Scope, jobs};
use chrono::{DateTime, TimeDelta};
use sqlx::PgPool;
use uuid::Uuid;

use crate::bench::{Bench, new_job};

/// More than may be looked at for an order without an index.
const MANY: i32 = 20_050;

/// Of 1,000 each, one is of the few.
const COPIES: &str = "
    WITH copy AS (
        INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object(
            'id', overlay(j.id::text PLACING lpad(to_hex(n), 8, '0') FROM 1 FOR 8),
            'tags', CASE n % 1000 WHEN 0 THEN '[\"all\", \"few\"]'::jsonb ELSE '[\"all\"]' END,
            'handler_name', CASE n % 1000 WHEN 0 THEN 'few:one' ELSE 'many:one' END,
            'name', CASE n % 1000 WHEN 0 THEN 'few ' ELSE 'many ' END || n,
            'platform_id', CASE n % 2 WHEN 0 THEN 'even' ELSE 'odd' END))).*
        FROM jobs j, generate_series(1, $2) n WHERE j.id = $1
        RETURNING id, queue, priority
    )
    INSERT INTO job_timers (job_id, shard, fire_at, queue, priority)
    SELECT id, 0, now() + random() * interval '1 day', queue, priority FROM copy";

async fn many(bench: &Bench) -> Result<()> {
    let first = bench.job().await?;
    sqlx::query(COPIES).bind(first.id).bind(MANY).execute(&bench.pool).await?;
    Ok(())
}

fn by_next_run(filter: jobs::Filter<'_>) -> jobs::Filter<'_> {
    jobs::Filter { order: jobs::Order { by: jobs::By::NextRun, direction: Direction::Ascending }, ..filter }
}

async fn listed(bench: &Bench, filter: jobs::Filter<'_>) -> Result<Vec<jobs::Job>, Error> {
    page(bench, filter, 50).await
}

async fn page(bench: &Bench, filter: jobs::Filter<'_>, limit: u32) -> Result<Vec<jobs::Job>, Error> {
    let window = Window { limit, from: Place::first(0), budget: Duration::from_secs(60) };
    Ok(jobs::list(&bench.store, &Scope::ALL, filter, window).await?.items)
}

#[tokio::test]
async fn jobs_are_ordered_by_their_next_run_where_a_narrow_filter_leaves_few_of_many() -> Result<()> {
    let bench = Bench::new().await?;
    many(&bench).await?;
    let all = jobs::Filter::default();
    for filter in [
        jobs::Filter { tag: Some("few"), ..all },
        jobs::Filter { handler_name: Some("few:one"), ..all },
        jobs::Filter { name_prefix: Some("few "), ..all },
        jobs::Filter { tag: Some("all"), handler_name: Some("few:one"), ..all },
        jobs::Filter { tag: Some("few"), platform_id: Some("even"), status: Some(JobStatus::Active), ..all },
    ] {
        let ordered = listed(&bench, by_next_run(filter)).await?;
        assert_eq!(ordered.len(), 20, "{filter:?}");
        assert!(ordered.is_sorted_by_key(|job| job.next_run), "{filter:?}");
        let created = listed(&bench, filter).await?;
        assert!(created.len() == 20 && created.is_sorted_by(|newer, older| newer.id > older.id), "{filter:?}");
        let up = jobs::Filter { order: jobs::Order { direction: Direction::Ascending, ..all.order }, ..filter };
        assert!(listed(&bench, up).await?.iter().rev().eq(&created), "{filter:?}");
        assert!(
            listed(&bench, by_next_run(jobs::Filter { status: Some(JobStatus::Paused), ..filter })).await?.is_empty()
        );
    }
    for filter in [
        jobs::Filter { tag: Some("all"), ..all },
        jobs::Filter { handler_name: Some("many:one"), ..all },
        jobs::Filter { platform_id: Some("odd"), ..all },
        jobs::Filter { name: Some("few"), ..all },
    ] {
        let refused = listed(&bench, by_next_run(filter)).await;
        assert!(matches!(refused, Err(Error::TooWide { most: 10_000 })), "{filter:?}");
        assert!(!listed(&bench, filter).await?.is_empty(), "{filter:?}");
    }
    Ok(())
}

/// Two halves are looked for at once: along an index in the order of ids, and along one that is not.
#[tokio::test]
async fn an_order_of_some_thousand_jobs_has_each_once() -> Result<()> {
    let bench = Bench::new().await?;
    many(&bench).await?;
    // The first half of an id is its number, in units of 65.536 s.
    let before = DateTime::UNIX_EPOCH + TimeDelta::milliseconds(1_500 * 65_536);
    for (filter, count) in [
        (jobs::Filter { name_prefix: Some("many 19"), ..jobs::Filter::default() }, 1_110),
        (
            jobs::Filter { handler_name: Some("many:one"), created_before: Some(before), ..jobs::Filter::default() },
            1_498,
        ),
    ] {
        let mut ordered = page(&bench, by_next_run(filter), 5_000).await?;
        assert!(ordered.is_sorted_by_key(|job| job.next_run), "{filter:?}");
        ordered.sort_by_key(|job| std::cmp::Reverse(job.id));
        assert_eq!(ordered.len(), count, "{filter:?}");
        assert!(ordered == page(&bench, filter, 5_000).await?, "{filter:?}");
    }
    Ok(())
}

/// Whoever sees few of many jobs has lists as if there were no others, and sees the global ones too.
#[tokio::test]
async fn a_scoped_callers_few_jobs_are_found_and_ordered_among_any_number() -> Result<()> {
    let bench = Bench::new().await?;
    many(&bench).await?;
    let rename = "UPDATE jobs SET platform_id = 'acme' WHERE id IN (SELECT id FROM jobs WHERE platform_id = 'odd' ORDER BY id LIMIT 30)";
    sqlx::query(rename).execute(&bench.pool).await?;
    let global = "UPDATE jobs SET platform_id = NULL WHERE id = (SELECT id FROM jobs WHERE NOT tags @> '{all}')";
    sqlx::query(global).execute(&bench.pool).await?;
    let acme = Scope::of(["acme"]);
    let window = Window { limit: 50, from: Place::first(0), budget: Duration::ZERO };
    let all = jobs::Filter::default();
    for filter in
        [all, jobs::Filter { status: Some(JobStatus::Active), ..all }, jobs::Filter { tag: Some("all"), ..all }]
    {
        let ordered = jobs::list(&bench.store, &acme, by_next_run(filter), window).await?;
        assert!(ordered.items.is_sorted_by_key(|job| job.next_run) && ordered.next.is_none(), "{filter:?}");
        let own = ordered.items.iter().filter(|job| job.definition.platform_id.as_deref() == Some("acme")).count();
        let global = ordered.items.iter().filter(|job| job.definition.platform_id.is_none()).count();
        assert_eq!((own, global), (30, usize::from(filter.tag.is_none())), "{filter:?}");
        // One look, as there is no time for another.
        let created = jobs::list(&bench.store, &acme, filter, window).await?;
        assert_eq!(created.items.len(), own + global, "{filter:?}");
        assert!(created.items.is_sorted_by(|newer, older| newer.id > older.id), "{filter:?}");
    }
    Ok(())
}

/// Each tag of each job once, and nothing else.
async fn tags_are_true(pool: &PgPool) -> Result<i64> {
    let (tags, wrong): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM job_tags), count(*)
         FROM (SELECT DISTINCT id AS job_id, unnest(tags) AS tag FROM jobs) j FULL JOIN job_tags t USING (job_id, tag)
         WHERE j.tag IS NULL OR t.tag IS NULL",
    )
    .fetch_one(pool)
    .await?;
    assert_eq!(wrong, 0);
    Ok(tags)
}

#[tokio::test]
async fn a_job_is_found_by_the_tags_that_it_has_by_now() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let tagged = |tags: &[&str]| {
        let mut job = new_job(now);
        job.definition.tags = tags.iter().map(ToString::to_string).collect();
        job
    };
    let job = jobs::create(&bench.store, &Scope::ALL, tagged(&["a", "b"]), None).await?;
    let two = [tagged(&["a"]), tagged(&[])];
    jobs::create_many(&bench.store, &Scope::ALL, &two, false, None, |_| Vec::new()).await?;
    assert_eq!(tags_are_true(&bench.pool).await?, 3);
    let by = async |tag| -> Result<Vec<Uuid>> {
        let found = listed(&bench, jobs::Filter { tag: Some(tag), ..jobs::Filter::default() }).await?;
        Ok(found.into_iter().map(|job| job.id).collect())
    };
    assert_eq!((by("a").await?.len(), by("b").await?), (2, vec![job.id]));
    for tags in ["'{a,c,a}'", "'{}'", "'{d}'"] {
        let update = format!("UPDATE jobs SET tags = {tags} WHERE id = $1");
        sqlx::query(sqlx::AssertSqlSafe(update)).bind(job.id).execute(&bench.pool).await?;
        tags_are_true(&bench.pool).await?;
    }
    assert_eq!((by("d").await?, by("b").await?), (vec![job.id], vec![]));
    sqlx::query("DELETE FROM jobs WHERE id = $1").bind(job.id).execute(&bench.pool).await?;
    assert_eq!(tags_are_true(&bench.pool).await?, 1);
    Ok(())
}
