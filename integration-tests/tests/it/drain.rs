//! An executor that is told to stop hands on what it cannot finish. The lease is a minute here, so that whoever waits for it
//! is found out.

use std::time::{Duration, Instant};

use carillon_core::execution::Status;
use carillon_testkit::Role;
use carillon_testkit::history::LostWorker;
use carillon_testkit::journal::Event;
use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::load::{HUNDREDS, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

const LEASE: Duration = Duration::from_secs(60);

fn plan() -> Plan {
    Plan { dispatchers: 1, executors: 1, ..Plan::default() }.protocol(Duration::from_millis(500), LEASE)
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_is_handed_back_and_taken_at_once() {
    const FIRES: usize = 40;
    let plan = plan().set("CARILLON_SHUTDOWN_GRACE", "500ms").set("CARILLON_EXECUTOR_SLOTS", "30");
    let mut world = World::start("handed_back", plan).await;
    let first = in_ms(800);
    let (over, payload) = (Duration::from_millis(50), json!({"ms": 3_000}));
    let jobs = one_time_jobs(&world.pool, FIRES, first, over, "test:sleep", &payload).await;
    world.expected.extend(jobs);
    world.wake();
    // Some run, more wait in the stream.
    world.until_running_at("executor-1", 20).await;
    world.add(Role::Executor, &[("CARILLON_EXECUTOR_SLOTS", "100")]).await;
    let asked = Utc::now();
    let pid = world.cluster.node("executor-1").pid();
    // What it must abort starts again elsewhere, which a drain excuses.
    world.lost.push(LostWorker { pid, from: asked, until: None });
    let began = Instant::now();
    world.cluster.node("executor-1").stop().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(began.elapsed() < Duration::from_secs(6), "the drain took {:?}", began.elapsed());
    let ended = Utc::now();
    let history = world.judge(LOAD_MAX).await;

    assert_eq!(history.count(Status::Success), FIRES);
    let starts = history.journal.iter().filter(|line| line.event == Event::Start && line.pid != pid);
    let last = starts.map(|line| line.at).max().expect("some were handed on");
    assert!(last - ended < TimeDelta::seconds(3), "the last one waited for {}", last - ended);
    assert_eq!(
        world.executions_where("lost > 0 OR attempt > 1").await.unwrap(),
        0,
        "a drain is no loss and no attempt"
    );
    assert!(world.executions_where("take > 0").await.unwrap() > 0, "some were taken over");
}

#[tokio::test]
async fn what_ends_within_the_grace_ends_where_it_runs() {
    const FIRES: usize = 20;
    let mut world = World::start("graceful", plan().set("CARILLON_SHUTDOWN_GRACE", "20s")).await;
    let first = in_ms(800);
    let (over, payload) = (Duration::from_millis(50), json!({"ms": 2_000}));
    let jobs = one_time_jobs(&world.pool, FIRES, first, over, "test:sleep", &payload).await;
    world.expected.extend(jobs);
    world.wake();
    world.until_running_at("executor-1", FIRES).await;
    world.cluster.node("executor-1").stop().unwrap_or_else(|error| panic!("{error:#}"));
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), FIRES);
    assert_eq!(history.journal.len(), 3 * FIRES, "each started, ended and was recorded once");
}

/// Executors come and go under load; nobody was lost, so nothing is excused, and nothing waits for a lease.
#[tokio::test]
async fn executors_that_come_and_go_delay_nothing() {
    let plan = Plan { executors: 2, ..plan() }.set("CARILLON_SHUTDOWN_GRACE", "20s");
    let mut world = World::start("rolling", plan).await;
    let triggering = world.load(HUNDREDS).await;
    for (finished, leaving) in [(50, "executor-1"), (120, "executor-2")] {
        world.until_finished(finished).await;
        world.add(Role::Executor, &[]).await;
        world.cluster.node(leaving).stop().unwrap_or_else(|error| panic!("{error:#}"));
    }
    world.finish(triggering).await;
    let history = world.judge(LOAD_MAX).await;
    for line in history.journal.iter().filter(|line| line.event == Event::Start) {
        let row = history.executions.iter().find(|row| row.id == line.execution).expect("recorded");
        let late = line.at - row.scheduled_at;
        assert!(late < TimeDelta::seconds(8), "execution {} started {late} late", row.id);
    }
}

/// S5, at the default window and lease: one handler runs on for long, and what was held beside it does not wait for it.
#[tokio::test]
async fn what_is_held_is_released_and_starts_elsewhere_while_a_handler_runs_on() {
    const FIRES: usize = 60;
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }
        .protocol(Duration::from_secs(2), Duration::from_secs(20))
        .set("CARILLON_DISPATCHER_LEAD", "500ms")
        .set("CARILLON_SHUTDOWN_GRACE", "60s");
    let mut world = World::start("released", plan).await;
    let long = one_time_jobs(&world.pool, 1, in_ms(300), Duration::ZERO, "test:sleep", &json!({"ms": 25_000})).await;
    world.expected.extend(long);
    world.wake();
    world.until_running_at("executor-1", 1).await;
    let pid = world.cluster.node("executor-1").pid();
    let (first, over) = (in_ms(6_000), Duration::from_secs(6));
    let jobs = one_time_jobs(&world.pool, FIRES, first, over, "test:echo", &json!({})).await;
    world.expected.extend(jobs);
    world.add(Role::Executor, &[]).await;
    // Some have run at each, so more is held by the first.
    let started = |world: &World| world.journal().iter().filter(|line| line.event == Event::Start).count();
    soon("the fires to be under way", || {
        let count = started(&world);
        std::future::ready(if count > FIRES / 4 { Ok(()) } else { Err(format!("{count} have started")) })
    })
    .await;
    let asked = Utc::now();
    world.cluster.node("executor-1").ask_to_stop();
    let history = world.judge(LOAD_MAX).await;

    assert_eq!(history.count(Status::Success), FIRES + 1);
    // Nobody took anything but what was released: nobody was lost, and W does not pass before anything here.
    let released = history.executions.iter().filter(|row| row.take > 0);
    let mut delays: Vec<TimeDelta> = released
        .map(|row| {
            let start = history.journal.iter().find(|line| line.execution == row.id && line.event == Event::Start);
            let start = start.expect("it started");
            assert!(start.pid != pid, "what was released started elsewhere");
            start.at - row.scheduled_at.max(asked)
        })
        .collect();
    delays.sort_unstable();
    assert!(!delays.is_empty(), "something was held");
    let (p50, p99) = (delays[delays.len() / 2], delays[(delays.len() * 99).div_ceil(100) - 1]);
    println!(
        "released by a drain: {} executions, start after p50 {} ms, p99 {} ms",
        delays.len(),
        p50.num_milliseconds(),
        p99.num_milliseconds()
    );
    assert!(p50 < TimeDelta::seconds(1), "{p50}, as without a release");
    assert!(p99 < TimeDelta::seconds(5), "{p99}, and the handler runs for 25 s");
}

/// Item 9: an entry whose reply was lost, at an executor whose slots are all taken for long, starts at another.
#[tokio::test]
async fn an_entry_whose_reply_was_lost_at_a_full_executor_starts_at_another() {
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }
        .set("CARILLON_EXECUTOR_SLOTS", "1")
        .set("CARILLON_SHUTDOWN_GRACE", "1s");
    let mut world = World::start("lost_reply_full", plan).await;
    let long = one_time_jobs(&world.pool, 1, in_ms(300), Duration::ZERO, "test:sleep", &json!({"ms": 30_000})).await;
    world.expected.extend(long);
    world.wake();
    world.until_running_at("executor-1", 1).await;
    let fire = one_time_jobs(&world.pool, 1, in_ms(300), Duration::ZERO, "test:echo", &json!({})).await;
    world.expected.extend(fire);
    world.wake();
    let consumer: String =
        sqlx::query_scalar("SELECT consumer FROM workers").fetch_one(&world.pool).await.expect("one executor");
    let stream = world.stream("default", "MEDIUM");
    // Redis hands it out in the executor's name, and the answer never reaches it.
    soon("the entry to be read", || {
        let words = ["XREADGROUP", "GROUP", "executors", &consumer, "COUNT", "1", "STREAMS", &stream, ">"];
        let reply = world.redis.command(&words);
        std::future::ready(match reply {
            Ok(reply) if !reply.list().is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .await;
    world.add(Role::Executor, &[("CARILLON_EXECUTOR_SLOTS", "8")]).await;
    let other = world.cluster.node("executor-2").pid();
    let began = Instant::now();
    soon("the entry to start at the other executor", || {
        let started = world.journal().iter().any(|line| line.pid == other && line.event == Event::Start);
        std::future::ready(if started { Ok(()) } else { Err("it has not") })
    })
    .await;
    println!("a lost reply at a full executor: started elsewhere after {:?}", began.elapsed());
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), 2);
}
