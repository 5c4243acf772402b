//! Handlers that run for many leases (row 11): the lease is kept up for as long as they run, and nobody takes what they hold.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use carillon_core::execution::Status;
use carillon_testkit::Role;
use carillon_testkit::journal::Event;
use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::load::{Load, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World, soon};

const LEASE: Duration = Duration::from_secs(4);
/// Ten leases, and what the machine may be slow by: what is looked at while they run comes after some ten seconds.
const RUNS_FOR: Duration = Duration::from_secs(50);
const OTHERS: Load = Load { one_time: 60, recurring: 2, triggers: 30, over: Duration::from_secs(2) };
const LONG: usize = 6;

/// R14: its incarnation is beaten and its entry renewed until it ends.
#[tokio::test]
async fn r14_a_handler_that_runs_for_ten_leases_is_renewed_and_runs_once() {
    let mut world = World::start("long_handler", Plan::default().protocol(LEASE / 10, LEASE)).await;
    let payload = json!({"ms": u64::try_from(RUNS_FOR.as_millis()).expect("small")});
    // Spread, since what is due at one instant is read by one of them.
    let jobs = one_time_jobs(&world.pool, LONG, in_ms(600), Duration::from_secs(1), "test:sleep", &payload).await;
    world.expected.extend(jobs);
    world.wake();
    let long = i64::try_from(LONG).expect("few");
    world.until("status = 'RUNNING'", |running| running == long).await;
    // Others look at what is pending meanwhile, and have slots for it.
    let triggering = world.load(OTHERS).await;
    world.finish(triggering).await;
    let all = i64::try_from(world.expected.len() + world.triggered.len()).expect("few");
    world.until("completed_at IS NOT NULL", |finished| finished == all - long).await;

    let stream = world.stream("default", "MEDIUM");
    soon("each entry to be renewed though its handler has run for two leases", || async {
        tokio::time::sleep(LOOK_EACH).await;
        let since = Utc::now() - TimeDelta::from_std(LEASE * 2).expect("short");
        let starts = world.journal().into_iter().filter(|line| line.event == Event::Start && line.at < since);
        ensure!(starts.count() >= LONG, "they have run for less");
        let pending = world.redis.command(&["XPENDING", &stream, "executors", "-", "+", "100"])?;
        let idle: Option<Vec<i64>> = pending.list().iter().map(|entry| entry.list().get(2)?.number()).collect();
        let idle = idle.context("each says for how long it is idle")?;
        let renewed = idle.iter().filter(|idle| u128::try_from(**idle).is_ok_and(|idle| idle < LEASE.as_millis()));
        ensure!(renewed.count() == LONG && idle.len() == LONG, "idle for {idle:?} ms");
        anyhow::Ok(())
    })
    .await;
    let running = world.executions_where("status = 'RUNNING'").await.expect("postgres answers");
    assert_eq!(running, long, "seen while they ran");

    let history = world.judge(LOAD_MAX + RUNS_FOR).await;
    assert_eq!(history.count(Status::Success), usize::try_from(all).expect("few"));
    let ran = world.executions_where("duration_ms >= 50000").await.expect("postgres answers");
    assert_eq!(ran, long, "each to its end");
    let taken = world.executions_where("take > 0 OR lost > 0").await.expect("postgres answers");
    assert_eq!(taken, 0, "nobody took any");
    for node in world.cluster.nodes_of(Role::Executor) {
        let taken_over = node.metric("carillon_executor_taken_over_total", &[]).expect("it answers");
        assert!(taken_over < 0.5, "{} took over {taken_over}", node.name);
    }
}
