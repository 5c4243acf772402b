//! Redis forgets: all of it, by a crash, by a failover, or by hand. No loss of Redis alone may start anything twice, so no worker is excused
//! here. W is longer than elsewhere: it must hold against two slow cores.

use std::time::Duration;

use carillon_testkit::journal::Event;
use carillon_testkit::{Proxy, Redis, Role};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use crate::load::{Load, Triggering, in_ms, longest_wait, next_fire, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// Fires whose handlers outlive the loss.
const LONG: usize = 6;
/// Fires due at once, for which there are not slots enough: most of them wait in the stream.
const BURST: usize = 300;
/// What waits there when the fault comes.
const BACKLOG: i64 = 80;
/// From a failover to the last start of what it delayed. What is published again waits for W in the slot that it is read into, so
/// a burst of ten times the slots waits ten times; the rest is the slowness of a machine that is busy with other tests.
const CAUGHT_UP_WITHIN: TimeDelta = TimeDelta::seconds(15);
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

/// A person or a program takes the name of a key of ours: no leader and no executor stops at it.
#[tokio::test]
async fn keys_that_something_else_replaces_lose_and_double_nothing() {
    let world = World::start("key_replaced", plan()).await;
    with_a_backlog(world, async |world| {
        let stream = world.stream("default", "MEDIUM");
        let shard = stream.strip_suffix(":v1:default:MEDIUM").expect("a stream's key begins with its shard's");
        for key in [&stream, &format!("{shard}:ctl"), &format!("{shard}:cancelled"), &format!("{shard}:streams")] {
            world.redis.command(&["SET", key, "something else"]).expect("redis answers");
        }
    })
    .await;
}

/// Row 15, H4, H5: the replica had stopped following. It brings back what is long over, and has never heard of what waits; so
/// does the old master when it takes over again, with what it held as it died. Seen from the services an address moves.
#[tokio::test]
async fn a_stale_replica_that_takes_over_and_the_old_master_after_it_lose_and_double_nothing() {
    let plan = Plan { append_only: true, gateways: 0, dispatchers: 0, executors: 0, ..plan() };
    let mut world = World::start("redis_failover", plan).await;
    let other = Redis::start_append_only().await.expect("it starts");
    let (line, replication) = (Proxy::to(world.redis.port()), Proxy::to(world.redis.port()));
    let (line, replication) = (line.expect("a proxy"), replication.expect("a proxy"));
    other.follow(replication.port()).await.expect("it follows");
    let url = world.redis.url_through(line.port());
    let roles = [Role::Dispatcher, Role::Dispatcher, Role::Executor, Role::Executor, Role::Gateway];
    world.add_each(&roles, &[("CARILLON_REDIS_URL", url.as_str())]).await;
    let triggering = begin(&mut world).await;

    backlog(&mut world).await;
    let stream = world.stream("default", "MEDIUM");
    soon("the backlog to stand in the replica too", || {
        let length = other.command(&["XLEN", &stream]).map(|reply| reply.number().unwrap_or_default());
        std::future::ready(match length {
            Ok(length) if length >= BACKLOG / 2 => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
    })
    .await;
    replication.silence();
    mended(&world).await;
    let mut moments = vec![fail_over(&mut world, &line, &other).await];
    mended(&world).await;

    let old = std::mem::replace(&mut world.redis, other);
    old.start_again().expect("it starts again");
    moments.push(fail_over(&mut world, &line, &old).await);
    world.redis = old;
    mended(&world).await;
    world.finish(triggering).await;
    let history = world.judge(LOAD_MAX).await;
    for moment in &moments {
        let next = next_fire(&history, *moment);
        eprintln!("the next fire came {next} after a failover of Redis");
        assert!(next < CAUGHT_UP_WITHIN, "the next fire came {next} after a failover of Redis");
    }
    let waited = longest_wait(&history, moments[1]);
    eprintln!("the last of what was lost or revived started {waited} after it");
    assert!(waited < CAUGHT_UP_WITHIN, "the last of what was lost or revived started {waited} after it");
}

/// Kills the master while a burst waits in it, and lets `heir` take over, which knows nothing of that burst and holds entries
/// that are over. Answers when the line stood again.
async fn fail_over(world: &mut World, line: &Proxy, heir: &Redis) -> DateTime<Utc> {
    let (first, over) = (in_ms(600), Duration::from_secs(6));
    let across = one_time_jobs(&world.pool, 60, first, over, "test:echo", &json!({})).await;
    world.expected.extend(across);
    backlog(world).await;
    world.redis.kill();
    let stream = world.stream("default", "MEDIUM");
    let entries = heir.command(&["XRANGE", &stream, "-", "+"]).expect("it answers");
    let ids = entries.list().iter().filter_map(|entry| entry.list().first()?.text()?.split_once('-'));
    let (numbers, seqs): (Vec<i64>, Vec<i32>) =
        ids.filter_map(|(number, seq)| Some((number.parse::<i64>().ok()?, seq.parse::<i32>().ok()?))).unzip();
    let over: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM job_executions e JOIN UNNEST($1::bigint[], $2::int[]) AS held(number, seq)
             ON (e.entry, e.seq) = (held.number, held.seq)
         WHERE completed_at IS NOT NULL",
    )
    .bind(numbers)
    .bind(seqs)
    .fetch_one(&world.pool)
    .await
    .expect("postgres answers");
    assert!(over > 0, "nothing that it brings back is over");
    heir.promote().expect("it is promoted");
    line.lay_to(heir.port());
    Utc::now()
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
