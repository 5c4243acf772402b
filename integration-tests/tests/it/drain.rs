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
use crate::world::{LOAD_MAX, Plan, World};

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
