//! Redis takes nothing more (row 18): it answers that it is full, and goes on handing out what it holds. What is due waits, and
//! goes out when there is room.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_core::ids;
use carillon_testkit::history::Execution;
use carillon_testkit::journal::Event;
use carillon_testkit::wait_until;
use serde_json::json;
use uuid::Uuid;

use crate::api::id_of;
use crate::load::{HUNDREDS, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, SOON, World};

/// Less than Redis needs for itself: whatever would grow is refused.
const TOO_LITTLE: &str = "100kb";
/// A tenth of a second lies between two: more than the three seconds after which a leader gives up a silent Redis.
const REFUSALS: f64 = 35.0;
/// Due while it is full.
const WAITING: usize = 40;

fn set_room(world: &World, memory: &str) {
    let said = world.redis.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", memory]);
    assert_eq!(said.expect("redis answers").text(), Some("OK"));
}

#[tokio::test]
async fn what_is_due_while_redis_is_full_waits_and_goes_out_when_there_is_room() {
    let mut world = World::start("redis_full", Plan::default()).await;
    let (api, leader) = (world.api(), world.leader().await);
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);
    let triggering = world.load(HUNDREDS).await;
    world.until_finished(30).await;

    set_room(&world, TOO_LITTLE);
    // From here on nothing is appended.
    let fires = one_time_jobs(&world.pool, WAITING, in_ms(300), Duration::from_secs(1), "test:echo", &json!({})).await;
    let mut waiting: HashSet<Uuid> = fires.iter().map(|(job, at)| ids::execution_for_fire(*job, *at)).collect();
    let triggered = api.trigger(job, &json!({})).await;
    waiting.insert(triggered);

    let refused = wait_until("the leader to say how often it was refused", LOAD_MAX, || {
        let refusals = world.cluster.node(&leader).metric("carillon_dispatcher_publish_failures_total", &[]);
        std::future::ready(refusals.and_then(|refusals| {
            ensure!(refusals >= REFUSALS, "{refusals} times");
            Ok(())
        }))
    });
    refused.await.unwrap_or_else(|error| panic!("{error:#}"));
    let log = world.cluster.node(&leader).log();
    assert!(log.contains("cannot publish, trying until redis takes it"), "{log}");
    // That it is full is an answer: nobody else would get more out of it, and each new leader has to look all of it up.
    assert_eq!(world.leader().await, leader, "the leader stays in office");
    let terms = world.cluster.node(&leader).metric("carillon_dispatcher_terms_total", &[]).expect("it answers");
    assert!((0.5..1.5).contains(&terms), "in one term: {terms}");
    let started: Vec<Uuid> =
        world.journal().iter().filter(|line| line.event == Event::Start).map(|line| line.execution).collect();
    assert!(started.iter().all(|execution| !waiting.contains(execution)), "nothing of it can have gone out");
    // Nothing of ours is broken, and a start again would mend nothing: all of it is still to be sent work.
    let names: Vec<String> = world.cluster.nodes().iter().map(|node| node.name.clone()).collect();
    for name in &names {
        world.until_readyz(name, "", SOON).await;
    }
    let settled = wait_until("what Redis held to be worked off", LOAD_MAX, || async {
        tokio::time::sleep(LOOK_EACH).await;
        let stream = world.stream("default", "MEDIUM");
        let length = world.redis.command(&["XLEN", &stream])?.number();
        ensure!(length == Some(0), "{length:?} entries are left");
        anyhow::Ok(())
    });
    settled.await.unwrap_or_else(|error| panic!("{error:#}"));

    set_room(&world, "0");
    world.expected.extend(fires);
    world.triggered.insert(triggered);
    world.finish(triggering).await;
    let history = world.judge(LOAD_MAX).await;
    // A recurring job that may not overlap itself has skipped the fires behind the one that waited.
    let went_out = |row: &&Execution| waiting.contains(&row.id) && row.status == Status::Success;
    assert_eq!(history.executions.iter().filter(went_out).count(), waiting.len());
    world.assert_all_live();
}

/// A stream is missing (it was idle for long, and left) while Redis is full, so that nobody can make it: what stands in the others
/// is worked off all the same, which is what makes room.
#[tokio::test]
async fn a_stream_that_cannot_be_made_keeps_no_other_from_being_read() {
    let plan = Plan { executors: 1, ..Plan::default() }
        .set("CARILLON_EXECUTOR_QUEUES", r#"["default", "idle"]"#)
        .set("CARILLON_EXECUTOR_SLOTS", "16");
    let mut world = World::start("redis_full_missing", plan).await;
    let payload = json!({"ms": 300});
    let burst = one_time_jobs(&world.pool, 200, in_ms(600), Duration::from_millis(1), "test:sleep", &payload).await;
    world.expected.extend(burst);
    world.wake();
    let stream = world.stream("default", "MEDIUM");
    let length = || Ok::<_, anyhow::Error>(world.redis.command(&["XLEN", &stream])?.number().unwrap_or_default());
    let filled = wait_until("a backlog", SOON, || {
        std::future::ready(length().and_then(|length| {
            ensure!(length > 150, "{length} entries");
            Ok(())
        }))
    });
    filled.await.unwrap_or_else(|error| panic!("{error:#}"));
    set_room(&world, TOO_LITTLE);
    for priority in ["LOW", "MEDIUM", "HIGH", "CRITICAL"] {
        world.redis.command(&["DEL", &world.stream("idle", priority)]).expect("redis answers");
    }
    let worked_off = wait_until("the backlog to be worked off", LOAD_MAX, || {
        std::future::ready(length().and_then(|length| {
            ensure!(length == 0, "{length} entries are left");
            Ok(())
        }))
    });
    worked_off.await.unwrap_or_else(|error| panic!("{error:#}"));
    set_room(&world, "0");
    let idle = world.stream("idle", "LOW");
    let made = wait_until("the missing streams to be made", SOON, || {
        std::future::ready(world.redis.command(&["EXISTS", &idle]).and_then(|exists| {
            ensure!(exists.number() == Some(1), "not yet");
            Ok(())
        }))
    });
    made.await.unwrap_or_else(|error| panic!("{error:#}"));
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), 200);
}
