//! Whoever is told to stop while a neighbour is away ends at once, in good order: a rolling update must not wait for what is
//! broken. And `/readyz` says which neighbour is away, for as long as it is.

use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_testkit::{Proxy, Role, StopMode};
use serde_json::json;

use crate::load::{in_ms, one_time_jobs};
use crate::world::{Plan, SOON, World, soon};

/// What a stop may take: two seconds, and the slowness of a machine that is busy with other tests.
const STOP_MAX: Duration = Duration::from_millis(3_500);
/// Long, so that whoever ends only by it is found out.
const GRACE: &str = "20s";

fn plan() -> Plan {
    Plan { dispatchers: 0, executors: 0, gateways: 0, ..Plan::default() }.set("CARILLON_SHUTDOWN_GRACE", GRACE)
}

/// One of each kind, and a standby.
const ALL: [Role; 4] = [Role::Dispatcher, Role::Dispatcher, Role::Executor, Role::Gateway];

/// Stops every process, one after the other.
fn assert_all_stop_at_once(world: &mut World) {
    for node in world.cluster.nodes() {
        let began = Instant::now();
        node.stop().unwrap_or_else(|error| panic!("{error:#}"));
        let took = began.elapsed();
        assert!(took < STOP_MAX, "{} took {took:?} to stop:\n{}", node.name, node.log());
    }
}

#[tokio::test]
async fn without_redis_all_stop_at_once() {
    let mut world = World::start("stop_redis_gone", plan()).await;
    world.add_each(&ALL, &[]).await;
    world.redis.kill();
    for name in ["dispatcher-1", "dispatcher-2", "executor-1"] {
        world.until_readyz(name, "redis: ", SOON).await;
    }
    assert_all_stop_at_once(&mut world);
}

#[tokio::test]
async fn with_a_silent_redis_all_stop_at_once() {
    let mut world = World::start("stop_redis_silent", plan()).await;
    let proxy = Proxy::to(world.redis.port()).expect("a proxy");
    let url = world.redis.url_through(proxy.port());
    world.add_each(&ALL, &[("CARILLON_REDIS_URL", url.as_str())]).await;
    proxy.silence();
    assert_all_stop_at_once(&mut world);
}

#[tokio::test]
async fn without_postgres_all_stop_at_once() {
    let mut world = World::start("stop_postgres_gone", Plan { own_postgres: true, ..plan() }).await;
    world.add_each(&ALL, &[]).await;
    world.postgres.as_ref().expect("its own").stop(StopMode::Immediate);
    for name in ["dispatcher-1", "dispatcher-2", "executor-1", "gateway-1"] {
        world.until_readyz(name, "postgres: ", SOON).await;
    }
    assert_all_stop_at_once(&mut world);
}

#[tokio::test]
async fn with_a_silent_postgres_all_stop_at_once() {
    let mut world = World::start("stop_postgres_silent", plan()).await;
    let proxy = Proxy::to(world.database.port().expect("a port")).expect("a proxy");
    let url = world.database.url_through(proxy.port());
    world.add_each(&ALL, &[("CARILLON_POSTGRES_URL", url.as_str())]).await;
    proxy.silence();
    assert_all_stop_at_once(&mut world);
}

#[tokio::test]
async fn those_that_never_saw_their_neighbours_say_so_and_stop_at_once() {
    let mut world = World::start("stop_never_there", plan()).await;
    let nobody = carillon_testkit::free_port().expect("a port");
    let redis = world.redis.url_through(nobody);
    let postgres = world.database.url_through(nobody);
    for (role, variable, url, missing) in [
        (Role::Dispatcher, "CARILLON_REDIS_URL", &redis, "redis"),
        (Role::Dispatcher, "CARILLON_POSTGRES_URL", &postgres, "postgres"),
        (Role::Executor, "CARILLON_REDIS_URL", &redis, "redis"),
        (Role::Executor, "CARILLON_POSTGRES_URL", &postgres, "postgres"),
        (Role::Gateway, "CARILLON_POSTGRES_URL", &postgres, "postgres"),
    ] {
        let name = world.cluster.add(role, &[(variable, url)]).expect("it starts");
        world.until_readyz(&name, &format!("{missing}: "), SOON).await;
        let node = world.cluster.node(&name);
        soon(&format!("{name} to say what it waits for"), || {
            let (log, line) = (node.log(), format!("waiting for {missing}"));
            let said = log.lines().any(|said| said.contains(&line) && said.contains("refused"));
            std::future::ready(if said { Ok(()) } else { Err(log) })
        })
        .await;
    }
    assert_all_stop_at_once(&mut world);
}

/// R7 mends what a stop leaves behind; a stop in good order leaves nothing.
#[tokio::test]
async fn a_batch_on_its_way_when_its_leader_stops_arrives_and_is_settled() {
    const FIRES: usize = 40;
    let mut world = World::start("stop_on_the_way", plan()).await;
    let proxy = Proxy::to(world.redis.port()).expect("a proxy");
    let url = world.redis.url_through(proxy.port());
    let leader = world.add(Role::Dispatcher, &[("CARILLON_REDIS_URL", url.as_str())]).await;
    world.leader().await;
    proxy.delay(Duration::from_millis(60));
    let payload = json!({"ms": 1});
    one_time_jobs(&world.pool, FIRES, in_ms(1_000), Duration::from_millis(1), "test:sleep", &payload).await;
    world.wake();
    let unsettled = || async {
        let count = sqlx::query_scalar("SELECT count(*) FROM dispatch_batches WHERE settled_at IS NULL");
        let count: i64 = count.fetch_one(&world.pool).await?;
        anyhow::Ok(count)
    };
    soon("a batch on its way", || async {
        ensure!(unsettled().await? > 0, "none");
        anyhow::Ok(())
    })
    .await;
    world.cluster.node(&leader).stop().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(unsettled().await.expect("postgres answers"), 0, "{}", world.cluster.logs());
    let stream = world.stream("default", "MEDIUM");
    let length = world.redis.command(&["XLEN", &stream]).expect("redis answers").number();
    let claimed = world.executions_where("status = 'QUEUED'").await.expect("postgres answers");
    assert!(claimed > 0);
    assert_eq!(length, Some(claimed));
}

#[tokio::test]
async fn readiness_follows_redis_and_postgres_both_ways() {
    let plan = Plan { own_postgres: true, dispatchers: 2, executors: 1, gateways: 1, ..Plan::default() };
    let mut world = World::start("readiness", plan).await;
    let users_of_redis = ["dispatcher-1", "dispatcher-2", "executor-1"];
    world.redis.stop();
    for name in users_of_redis {
        world.until_readyz(name, "redis: ", SOON).await;
    }
    world.until_readyz("gateway-1", "", SOON).await;
    world.redis.start_again().expect("it starts again");
    for name in users_of_redis {
        world.until_readyz(name, "", SOON).await;
    }

    let users_of_postgres = ["dispatcher-1", "dispatcher-2", "executor-1", "gateway-1"];
    world.postgres.as_ref().expect("its own").stop(StopMode::Fast);
    for name in users_of_postgres {
        world.until_readyz(name, "postgres: ", SOON).await;
    }
    world.postgres.as_ref().expect("its own").start_again().expect("it starts again");
    for name in users_of_postgres {
        world.until_readyz(name, "", SOON).await;
        let log = world.cluster.node(name).log();
        let said = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        let counts = (said("postgres does not answer, not ready"), said("postgres answers again"));
        assert_eq!(counts, (1, 1), "a line each:\n{log}");
    }
}
