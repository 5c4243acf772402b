//! The clock of Postgres' host jumps beyond the lease, forward and back (row 52), by Debian's faketime.

use std::time::Duration;

use carillon_testkit::wall_clock;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use crate::api::{Api, id_of};
use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// Far beyond the lease of the plan.
const JUMP: TimeDelta = TimeDelta::seconds(60);
/// Handlers that run all the while.
const LONG: usize = 12;
/// Fires that the first jump brings about.
const AHEAD: usize = 20;

/// Nobody is judged dead, nothing runs twice, numbers of batches go on, fires follow the new time.
#[tokio::test]
async fn no_jump_of_the_databases_clock_loses_or_doubles_anything() {
    if !wall_clock::is_available() {
        eprintln!("libfaketime is not here: nothing is looked at");
        return;
    }
    let mut world = World::start("clock_jumps", Plan { own_clock: true, executors: 3, ..Plan::default() }).await;
    let api = world.api();
    let job = |name: &str, handler: &str, payload| {
        json!({
            "name": name, "schedule": "0 0 1 1 *", "handler_name": handler, "payload": payload, "allow_overlap": true,
        })
    };
    let long = id_of(&api.create("cron", &job("long", "test:sleep", json!({"ms": 12_000}))).await);
    let short = id_of(&api.create("cron", &job("short", "test:echo", json!({}))).await);
    trigger(&mut world, &api, long, LONG).await;
    let running = || world.executions_where("status = 'RUNNING'");
    soon("the long ones to run", || async {
        let count = running().await.map_err(|error| error.to_string())?;
        if count >= 1 { Ok(()) } else { Err(format!("{count} do")) }
    })
    .await;
    let ahead_of_the_jump =
        one_time_jobs(&world.pool, AHEAD, in_ms(40_000), Duration::ZERO, "test:echo", &json!({})).await;
    world.expected.extend(ahead_of_the_jump);
    world.wake();

    let mut jumps: Vec<(DateTime<Utc>, TimeDelta)> = Vec::new();
    for ahead in [JUMP, TimeDelta::zero(), -JUMP, TimeDelta::zero()] {
        let (clock, _) = world.clock.as_ref().expect("the plan has one");
        clock.set(ahead).expect("it can be set");
        jumps.push((Utc::now(), ahead));
        // What is asked for now runs now, whatever the clock says; and what falls due by the first jump runs before the next, by
        // a clock that nobody has set back meanwhile.
        trigger(&mut world, &api, short, 20).await;
        let wanted = world.triggered.len() - LONG + AHEAD;
        soon("what was asked for to be done", || async {
            let statement = "SELECT count(*) FROM job_executions WHERE job_id <> $1 AND completed_at IS NOT NULL";
            let done: i64 = sqlx::query_scalar(statement).bind(long).fetch_one(&world.pool).await?;
            let unclaimed: i64 = sqlx::query_scalar("SELECT count(*) FROM job_triggers").fetch_one(&world.pool).await?;
            let queued = world.executions_where("status = 'QUEUED'").await?;
            anyhow::ensure!(
                done >= i64::try_from(wanted)?,
                "{done} of {wanted}, {unclaimed} are not claimed, {queued} QUEUED, {ahead} ahead"
            );
            anyhow::Ok(())
        })
        .await;
    }
    let history = world.judge_after(LOAD_MAX, |history| by_the_databases_clock(history, &jumps)).await;
    assert_eq!(history.executions.len(), LONG + 80 + AHEAD);
    assert_eq!(
        world.executions_where("take > 0 OR lost > 0").await.expect("postgres answers"),
        0,
        "nobody was judged dead"
    );
}

async fn trigger(world: &mut World, api: &Api, job: uuid::Uuid, count: usize) {
    for _ in 0..count {
        let execution = api.trigger(job, &json!({})).await;
        world.triggered.insert(execution);
    }
}

/// The journal is written by the true clock.
fn by_the_databases_clock(history: &mut carillon_testkit::history::History, jumps: &[(DateTime<Utc>, TimeDelta)]) {
    for line in &mut history.journal {
        let jumped = jumps.iter().rev().find(|(at, _)| *at <= line.at);
        line.at += jumped.map_or(TimeDelta::zero(), |(_, ahead)| *ahead);
    }
}
