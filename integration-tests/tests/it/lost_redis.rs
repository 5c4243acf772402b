//! Redis forgets: all of it, by a crash, or by hand. No loss of Redis alone may start anything twice, so no worker is excused
//! here. W is longer than elsewhere: it must hold against two slow cores.

use std::time::Duration;

use carillon_testkit::journal::Event;
use carillon_testkit::{Proxy, Role};
use chrono::TimeDelta;
use serde_json::json;

use crate::load::{Load, Triggering, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// Fires whose handlers outlive the loss.
const LONG: usize = 6;
/// Fires due at once, for which there are not slots enough: most of them wait in the stream.
const BURST: usize = 300;
/// What waits there when the fault comes.
const BACKLOG: i64 = 80;
/// What goes on beside them.
const LOAD: Load = Load { one_time: 400, recurring: 8, triggers: 200, over: Duration::from_secs(5) };

fn plan() -> Plan {
    Plan::default().protocol(Duration::from_millis(600), Duration::from_secs(6)).set("CARILLON_EXECUTOR_SLOTS", "16")
}

/// The load, and handlers that run right through all of it.
async fn begin(world: &mut World) -> Triggering {
    let (first, over, payload) = (in_ms(900), Duration::from_millis(1), json!({"ms": 6_000}));
    let long = one_time_jobs(&world.pool, LONG, first, over, "test:sleep", &payload).await;
    world.expected.extend(long);
    world.load(LOAD).await
}

/// Waits until a burst stands in the stream.
async fn backlog(world: &mut World) {
    let (first, over, payload) = (in_ms(600), Duration::from_millis(1), json!({"ms": 60}));
    let burst = one_time_jobs(&world.pool, BURST, first, over, "test:sleep", &payload).await;
    world.expected.extend(burst);
    world.wake();
    let stream = world.stream("default", "MEDIUM");
    soon("a backlog in the stream", || {
        let length = world.redis.command(&["XLEN", &stream]).map(|reply| reply.number().unwrap_or_default());
        std::future::ready(match length {
            Ok(length) if length >= BACKLOG => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
    })
    .await;
}

/// Waits until what was lost is on its way again.
async fn mended(world: &World) {
    world.until("status = 'QUEUED'", |queued| queued < BACKLOG / 4).await;
}

async fn end(mut world: World, triggering: Triggering) {
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
}

/// Lets `break_it` happen twice, each time while a burst waits.
async fn with_a_backlog(mut world: World, break_it: impl AsyncFn(&World)) {
    let triggering = begin(&mut world).await;
    for _ in 0..2 {
        backlog(&mut world).await;
        break_it(&world).await;
        mended(&world).await;
    }
    end(world, triggering).await;
}

#[tokio::test]
async fn redis_wiped_again_and_again_loses_and_doubles_nothing() {
    let world = World::start("wiped", plan()).await;
    with_a_backlog(world, async |world| {
        world.redis.flush_all().expect("redis answers");
        // Once more while the first loss is being mended.
        world.until("entry > claim", |again| again > 0).await;
        world.redis.flush_all().expect("redis answers");
    })
    .await;
}

/// What is published again comes to the very executor that still holds it: the copy takes over as soon as the entry in hand is
/// found superseded, and does not wait for the next listing of what is pending, here half a minute away.
#[tokio::test]
async fn what_was_held_when_redis_was_wiped_starts_soon_after() {
    const FIRES: usize = 300;
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }
        .protocol(Duration::from_secs(2), Duration::from_secs(120))
        .set("CARILLON_DISPATCHER_LEAD", "500ms");
    let mut world = World::start("wiped_while_held", plan).await;
    let over = Duration::from_secs(6);
    let jobs = one_time_jobs(&world.pool, FIRES, in_ms(900), over, "test:echo", &json!({})).await;
    world.expected.extend(jobs);
    world.wake();
    for fires in [FIRES / 6, FIRES / 3, FIRES / 2] {
        world.until_finished(fires).await;
        world.redis.flush_all().expect("redis answers");
    }
    let history = world.judge(LOAD_MAX).await;
    let starts = history.journal.iter().filter(|line| line.event == Event::Start);
    let late = starts.filter_map(|line| {
        let row = history.executions.iter().find(|row| row.id == line.execution)?;
        Some(line.at - row.scheduled_at)
    });
    let latest = late.max().expect("they started");
    assert!(latest < TimeDelta::seconds(15), "the last one started {latest} late");
}

async fn crash(world: &World) {
    world.redis.kill();
    world.redis.start_again().expect("it starts again");
}

#[tokio::test]
async fn redis_killed_and_back_without_its_data_loses_and_doubles_nothing() {
    with_a_backlog(World::start("crashed_empty", plan()).await, crash).await;
}

#[tokio::test]
async fn redis_killed_and_back_with_its_data_loses_and_doubles_nothing() {
    let world = World::start("crashed_full", Plan { append_only: true, ..plan() }).await;
    with_a_backlog(world, crash).await;
}

#[tokio::test]
async fn groups_destroyed_by_hand_lose_and_double_nothing() {
    let world = World::start("group_destroyed", plan()).await;
    with_a_backlog(world, async |world| {
        let stream = world.stream("default", "MEDIUM");
        let answer = world.redis.command(&["XGROUP", "DESTROY", &stream, "executors"]).expect("redis answers");
        assert_eq!(answer.number(), Some(1), "there was a group");
    })
    .await;
}

#[tokio::test]
async fn streams_deleted_by_hand_lose_and_double_nothing() {
    let world = World::start("stream_deleted", plan()).await;
    with_a_backlog(world, async |world| {
        let stream = world.stream("default", "MEDIUM");
        let answer = world.redis.command(&["DEL", &stream]).expect("redis answers");
        assert_eq!(answer.number(), Some(1), "there was a stream");
    })
    .await;
}

/// Every line to Redis is cut again and again: commands whose answer is lost are sent twice, or never arrive.
#[tokio::test]
async fn connections_cut_at_any_moment_lose_and_double_nothing() {
    const CUTS: usize = 8;
    let plan = Plan { dispatchers: 0, executors: 0, ..plan() };
    let mut world = World::start("redis_cut", plan).await;
    let proxy = Proxy::to(world.redis.port()).expect("a proxy");
    let url = world.redis.url_through(proxy.port());
    for role in [Role::Dispatcher, Role::Dispatcher, Role::Executor, Role::Executor] {
        world.add(role, &[("CARILLON_REDIS_URL", url.as_str())]).await;
    }
    world.leader().await;
    let triggering = begin(&mut world).await;
    for cut in 1..=CUTS {
        world.until_finished(cut * 50).await;
        proxy.reset_connections();
    }
    backlog(&mut world).await;
    proxy.reset_connections();
    end(world, triggering).await;
}

/// Not lost but never forgotten: its executor died between the record and the forgetting.
#[tokio::test]
async fn the_cancel_of_what_is_over_is_forgotten_by_the_house_keeping() {
    let mut world = World::start("cancels", Plan::default()).await;
    let set = format!("{{{}:0}}:cancelled", world.namespace);
    let over = uuid::Uuid::now_v7().to_string();
    world.redis.command(&["SADD", &set, &over]).expect("redis answers");
    // Whoever starts keeps the house first.
    world.add(Role::Dispatcher, &[]).await;
    soon("an empty set", || {
        let left = world.redis.command(&["SCARD", &set]).map(|reply| reply.number().unwrap_or(-1));
        std::future::ready(match left {
            Ok(0) => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
    })
    .await;
    world.judge(LOAD_MAX).await;
}
