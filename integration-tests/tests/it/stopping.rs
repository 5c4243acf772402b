//! What an executor has in hand that is told to stop, beside what is away or locked. What has ended and is not recorded yet: the
//! grace is for that too (R18). What is held: it starts elsewhere, but for what somebody has locked. Nobody is lost here, so nothing
//! is excused: each handler runs once.

use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::journal::Event;
use carillon_testkit::{Home, Role, StopMode};
use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World, soon};

const FIRES: usize = 8;
/// Longer than another executor takes to start, and Postgres to stop.
const RUNS_MS: u64 = 4_000;
/// So long after the last handler has ended nothing can be recorded: less than what is left of the grace.
const KEPT_FOR: Duration = Duration::from_secs(4);
const STOPPING: &str = "executor-1";

/// Handlers run at an executor, beside which stands another.
async fn begin(name: &str, own_postgres: bool) -> World {
    let plan = Plan { gateways: 0, dispatchers: 1, executors: 1, own_postgres, ..Plan::default() };
    let mut world = World::start(name, plan.set("CARILLON_SHUTDOWN_GRACE", "20s")).await;
    let (over, payload) = (Duration::from_millis(1), json!({ "ms": RUNS_MS }));
    let jobs = one_time_jobs(&world.pool, FIRES, in_ms(600), over, "test:sleep", &payload).await;
    world.expected.extend(jobs);
    world.wake();
    world.until_running_at(STOPPING, FIRES).await;
    world.until("status = 'RUNNING'", |running| running == i64::try_from(FIRES).expect("few")).await;
    world.add(Role::Executor, &[]).await;
    world
}

/// Until the handlers have ended, and for a while longer.
async fn keep_it_so(world: &World) {
    soon("the handlers to end", || async {
        tokio::time::sleep(LOOK_EACH).await;
        let ended = world.journal().iter().filter(|line| line.event == Event::End).count();
        ensure!(ended == FIRES, "{ended} have ended");
        anyhow::Ok(())
    })
    .await;
    let since = Instant::now();
    while since.elapsed() < KEPT_FOR {
        tokio::time::sleep(LOOK_EACH).await;
        let recorded = world.journal().iter().filter(|line| line.event == Event::Recorded).count();
        assert_eq!(recorded, 0, "what cannot be recorded was");
    }
}

/// Each ran once, and who ran it recorded it, then ended in good order.
async fn assert_each_ran_once(world: &mut World) {
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), FIRES);
    let pid = world.cluster.node(STOPPING).pid();
    for event in [Event::Start, Event::End, Event::Recorded] {
        let lines = history.journal.iter().filter(|line| line.event == event && line.pid == pid).count();
        assert_eq!(lines, FIRES, "{event:?}");
    }
    let node = world.cluster.node(STOPPING);
    let how = soon("it to end", || std::future::ready(node.ended().ok_or("it has not"))).await;
    assert_eq!(how, "exit status: 0", "{}", node.log());
}

/// Row 9 beside row 22: Postgres fails over while an executor stops.
#[tokio::test]
async fn results_that_wait_for_postgres_are_recorded_within_the_grace() {
    let mut world = begin("last_flush_away", true).await;
    world.cluster.node(STOPPING).ask_to_stop();
    world.postgres.as_ref().expect("its own").stop(StopMode::Immediate);
    keep_it_so(&world).await;
    world.postgres.as_ref().expect("its own").start_again().expect("it starts again");
    assert_each_ran_once(&mut world).await;
}

/// Row 9 beside row 45: somebody has locked their rows. The one that stops says no good-bye meanwhile, upon which all would run again
/// as soon as the lock is gone.
#[tokio::test]
async fn results_behind_a_lock_are_recorded_within_the_grace() {
    let mut world = begin("last_flush_locked", false).await;
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    sqlx::query("SELECT FROM job_executions FOR UPDATE").execute(&mut *foreign).await.expect("they are locked");
    world.cluster.node(STOPPING).ask_to_stop();
    keep_it_so(&world).await;
    foreign.rollback().await.expect("postgres answers");
    assert_each_ran_once(&mut world).await;
}

/// S5, and what is held is of two days, of which somebody has locked one as a whole: the other's starts elsewhere at once, while a
/// handler runs on here.
#[tokio::test]
async fn what_is_held_of_a_day_starts_elsewhere_whoever_has_locked_another() {
    const TODAY: usize = 5;
    let home = Home::temporary().expect("a directory");
    let shut = home.path().join("shut");
    std::fs::write(&shut, "").expect("it is made");
    let plan = Plan { gateways: 0, dispatchers: 1, executors: 0, ..Plan::default() };
    let plan = plan.protocol(Duration::from_secs(1), Duration::from_secs(20)).set("CARILLON_SHUTDOWN_GRACE", "60s");
    let mut world = World::start("held_days", plan).await;
    let held_before_its_payload = format!("payloads:read=hold:{}", shut.display());
    world.add(Role::Executor, &[(carillon_failpoint::VARIABLE, held_before_its_payload.as_str())]).await;
    let long = one_time_jobs(&world.pool, 1, in_ms(300), Duration::ZERO, "test:sleep", &json!({ "ms": 20_000 })).await;
    world.expected.extend(long);
    world.wake();
    world.until_running_at(STOPPING, 1).await;
    // It does not travel in the entry.
    let payload = json!({ "text": "x".repeat(10_000) });
    for (count, first) in [(1, Utc::now() - TimeDelta::days(1)), (TODAY, in_ms(300))] {
        let jobs = one_time_jobs(&world.pool, count, first, Duration::ZERO, "test:echo", &payload).await;
        world.expected.extend(jobs);
    }
    world.wake();
    let stream = world.stream("default", "MEDIUM");
    soon("all of it to be in hand", || {
        let pending = world.redis.command(&["XPENDING", &stream, "executors"]).expect("redis answers");
        let count = pending.list().first().and_then(|count| count.number());
        std::future::ready(if count == Some(TODAY as i64 + 2) { Ok(()) } else { Err(format!("{pending:?}")) })
    })
    .await;
    let yesterdays = "SELECT tableoid::regclass::text FROM job_executions ORDER BY scheduled_at LIMIT 1";
    let day: String = sqlx::query_scalar(yesterdays).fetch_one(&world.pool).await.expect("postgres answers");
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    let lock = format!("LOCK TABLE ONLY {day} IN ACCESS EXCLUSIVE MODE");
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await.expect("it is locked");
    let other = world.add(Role::Executor, &[]).await;
    let (stopping, other) = (world.cluster.node(STOPPING).pid(), world.cluster.node(&other).pid());
    world.cluster.node(STOPPING).ask_to_stop();
    soon("what is held of today to start elsewhere", || async {
        tokio::time::sleep(LOOK_EACH).await;
        let journal = world.journal();
        let started = journal.iter().filter(|line| line.event == Event::Start && line.pid == other).count();
        ensure!(started == TODAY, "{started} of {TODAY} have");
        anyhow::Ok(())
    })
    .await;
    assert_eq!(world.running_at(stopping), 1, "and it did not wait for what runs");
    foreign.rollback().await.expect("postgres answers");
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), TODAY + 2);
}
