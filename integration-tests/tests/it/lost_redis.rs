//! Redis forgets: all of it, by a crash, or by hand. No loss of Redis alone may start anything twice, so no worker is excused
//! here. W is longer than elsewhere: it must hold against two slow cores.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::load::{THOUSAND, Triggering, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World};

/// Fires whose handlers outlive the loss.
const LONG: usize = 30;

fn plan() -> Plan {
    Plan::default().protocol(Duration::from_secs(1), Duration::from_secs(10))
}

/// The usual load, and handlers that run right through it.
async fn begin(world: &mut World) -> Triggering {
    let first = Utc::now() + TimeDelta::milliseconds(900);
    let (over, payload) = (Duration::from_millis(500), json!({"ms": 3_000}));
    let long = one_time_jobs(&world.pool, LONG, first, over, "test:sleep", &payload).await;
    world.expected.extend(long);
    world.load(THOUSAND).await
}

async fn end(mut world: World, triggering: Triggering) {
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
}

#[tokio::test]
async fn redis_wiped_again_and_again_loses_and_doubles_nothing() {
    let mut world = World::start("wiped", plan()).await;
    let triggering = begin(&mut world).await;
    for finished in [150, 350, 550] {
        world.until_finished(finished).await;
        world.redis.flush_all().expect("redis answers");
    }
    end(world, triggering).await;
}

async fn crash(name: &str, append_only: bool) {
    let mut world = World::start(name, Plan { append_only, ..plan() }).await;
    let triggering = begin(&mut world).await;
    for finished in [200, 450] {
        world.until_finished(finished).await;
        world.redis.kill();
        world.redis.start_again().expect("it starts again");
    }
    end(world, triggering).await;
}

#[tokio::test]
async fn redis_killed_and_back_without_its_data_loses_and_doubles_nothing() {
    crash("crashed_empty", false).await;
}

#[tokio::test]
async fn redis_killed_and_back_with_its_data_loses_and_doubles_nothing() {
    crash("crashed_full", true).await;
}

#[tokio::test]
async fn groups_destroyed_by_hand_lose_and_double_nothing() {
    let mut world = World::start("group_destroyed", plan()).await;
    let stream = world.stream("default", "MEDIUM");
    let triggering = begin(&mut world).await;
    for finished in [150, 400] {
        world.until_finished(finished).await;
        let answer = world.redis.command(&["XGROUP", "DESTROY", &stream, "executors"]).expect("redis answers");
        assert_eq!(answer.number(), Some(1), "there was a group");
    }
    end(world, triggering).await;
}

#[tokio::test]
async fn streams_deleted_by_hand_lose_and_double_nothing() {
    let mut world = World::start("stream_deleted", plan()).await;
    let stream = world.stream("default", "MEDIUM");
    let triggering = begin(&mut world).await;
    for finished in [150, 400] {
        world.until_finished(finished).await;
        let answer = world.redis.command(&["DEL", &stream]).expect("redis answers");
        assert_eq!(answer.number(), Some(1), "there was a stream");
    }
    end(world, triggering).await;
}
