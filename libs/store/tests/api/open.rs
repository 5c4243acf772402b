//! What is open of all jobs is found at once, however much has ended since.

use std::time::Duration;

use anyhow::Result;
use carillon_core::execution::Status;
use carillon_store::scan::{Direction, Place, Window};
use carillon_store::{Scope, executions, jobs, triggers};
use chrono::TimeDelta;
use uuid::Uuid;

use crate::bench::{Bench, new_job};
use crate::trigger;

const ASCENDING: executions::Order =
    executions::Order { by: executions::By::Scheduled, direction: Direction::Ascending };

/// The first page, with time for one look.
async fn found(bench: &Bench, scope: &Scope, filter: executions::Filter<'_>) -> Result<Vec<Uuid>> {
    let hasty = Window { limit: 9, from: Place::first(0), budget: Duration::ZERO };
    let page = executions::list(&bench.store, scope, filter, hasty).await?;
    assert_eq!(page.next, None, "{filter:?}");
    Ok(page.items.into_iter().map(|execution| execution.id).collect())
}

#[tokio::test]
async fn what_is_open_of_all_jobs_is_found_behind_any_history() -> Result<()> {
    let bench = Bench::new().await?;
    let now = bench.now().await?;
    let plain = bench.job().await?.id;
    let mut other = new_job(now);
    other.definition.handler_name = "other:one".into();
    other.definition.tags = vec!["red".into()];
    other.definition.platform_id = Some("p2".into());
    let other = jobs::create(&bench.store, &Scope::ALL, other, None).await?.id;

    let old = bench.execution(plain, now - TimeDelta::days(100), "RUNNING").await?;
    let young = bench.execution(other, now - TimeDelta::hours(3), "RUNNING").await?;
    let queued = bench.execution(plain, now - TimeDelta::hours(2), "QUEUED").await?;
    let ended = bench.execution(plain, now - TimeDelta::hours(1), "SUCCESS").await?;
    let retrying = bench.execution(plain, now - TimeDelta::days(2), "RETRYING").await?;
    for (number, ids) in [(7_i64, vec![old]), (8, vec![young, queued, ended])] {
        sqlx::query("INSERT INTO dispatch_batches (shard, number, term, ids, settled_at) VALUES (0, $1, 1, $2, now())")
            .bind(number)
            .bind(ids)
            .execute(&bench.pool)
            .await?;
    }
    let triggered = triggers::create(&bench.store, &Scope::ALL, &trigger::new(other), None).await?.execution.id;
    // More than one look would pass.
    let successes = "INSERT INTO job_executions (shard, id, job_id, status, scheduled_at, completed_at)
                     SELECT 0, gen_random_uuid(), $1, 'SUCCESS', now(), now() FROM generate_series(1, 3000)";
    sqlx::query(successes).bind(plain).execute(&bench.pool).await?;

    let all = executions::Filter::default();
    let running = executions::Filter { status: Some(Status::Running), ..all };
    let waiting = executions::Filter { status: Some(Status::Queued), ..all };
    for (filter, expected) in [
        (running, vec![young, old]),
        (executions::Filter { order: ASCENDING, ..running }, vec![old, young]),
        (waiting, vec![triggered, queued]),
        (executions::Filter { status: Some(Status::Retrying), ..all }, vec![retrying]),
        (executions::Filter { handler_name: Some("other:one"), ..running }, vec![young]),
        (executions::Filter { tag: Some("red"), ..running }, vec![young]),
        (executions::Filter { tag: Some("red"), ..waiting }, vec![triggered]),
        (executions::Filter { platform_id: Some("p2"), ..waiting }, vec![triggered]),
        (executions::Filter { platform_id: Some("p2"), ..running }, vec![young]),
        (executions::Filter { queue: Some("fast"), ..running }, vec![]),
        (executions::Filter { worker_id: Some(Uuid::from_u128(9)), ..running }, vec![]),
        (executions::Filter { error: Some("such"), ..running }, vec![]),
        (executions::Filter { scheduled_before: Some(now - TimeDelta::days(1)), ..running }, vec![old]),
        (executions::Filter { scheduled_from: Some(now - TimeDelta::days(1)), ..running }, vec![young]),
    ] {
        assert_eq!(found(&bench, &Scope::ALL, filter).await?, expected, "{filter:?}");
    }
    let plain_one = Scope::of(["p1"]);
    assert_eq!(found(&bench, &plain_one, running).await?, [old]);
    assert_eq!(found(&bench, &plain_one, waiting).await?, [queued]);

    let counted = executions::count(&bench.store, &Scope::ALL, running, Duration::ZERO).await?;
    assert_eq!((counted.least, counted.is_all), (2, true));
    // A page at a time, the second from where the first ended.
    let one = |from| Window { limit: 1, from, budget: Duration::ZERO };
    let first = executions::list(&bench.store, &Scope::ALL, running, one(Place::first(0))).await?;
    assert_eq!((first.items[0].id, first.next), (young, Some(Place::behind(young))));
    let second = executions::list(&bench.store, &Scope::ALL, running, one(Place::behind(young))).await?;
    assert_eq!((second.items[0].id, second.next), (old, None));
    Ok(())
}
