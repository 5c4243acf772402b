//! Postgres goes away under load and comes back: results are held and written after, clients that ask again get their answer,
//! nothing runs twice, nothing has to be restarted.

use std::time::Duration;

use carillon_testkit::{Proxy, Role, StopMode};
use serde_json::json;

use crate::load::{THOUSAND, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// A restart takes some seconds here; the lease must outlast it, or the executors would rightly be taken for lost.
fn plan() -> Plan {
    Plan { own_postgres: true, ..Plan::default() }.protocol(Duration::from_secs(1), Duration::from_secs(20))
}

async fn restarted(name: &str, mode: StopMode) {
    let mut world = World::start(name, plan()).await;
    let first = in_ms(900);
    let (over, payload) = (Duration::from_millis(500), json!({"ms": 2_500}));
    let long = one_time_jobs(&world.pool, 30, first, over, "test:sleep", &payload).await;
    world.expected.extend(long);
    let triggering = world.load(THOUSAND).await;
    for finished in [200, 450] {
        world.until_finished(finished).await;
        let postgres = world.postgres.as_ref().expect("its own");
        postgres.stop(mode);
        // It is away for as long as it takes a client to notice.
        let api = world.api();
        soon("a client to be refused", || async {
            let answer = api.get("/jobs?limit=1").await;
            anyhow::ensure!(answer.status == 503 && answer.retry_after.is_some(), "{}: {}", answer.status, answer.body);
            anyhow::Ok(())
        })
        .await;
        postgres.start_again().expect("it starts again");
    }
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
    world.assert_all_live();
}

#[tokio::test]
async fn a_fast_stop_of_postgres_loses_and_doubles_nothing() {
    restarted("postgres_fast", StopMode::Fast).await;
}

#[tokio::test]
async fn an_immediate_stop_of_postgres_loses_and_doubles_nothing() {
    restarted("postgres_immediate", StopMode::Immediate).await;
}

/// R11, R21: wherever a transaction stands when its line is cut, in the middle of its COMMIT too. Only the executors go
/// through the proxy: each cut costs them their incarnation.
#[tokio::test]
async fn connections_cut_at_any_moment_lose_and_double_nothing() {
    const CUTS: usize = 8;
    let plan = Plan { executors: 0, ..Plan::default() }.protocol(Duration::from_secs(1), Duration::from_secs(20));
    let mut world = World::start("postgres_cut", plan).await;
    let proxy = Proxy::to(world.database.port().expect("a port")).expect("a proxy");
    let url = world.database.url_through(proxy.port());
    for _ in 0..2 {
        world.add(Role::Executor, &[("CARILLON_POSTGRES_URL", url.as_str())]).await;
    }
    let first = in_ms(900);
    let (over, payload) = (Duration::from_millis(500), json!({"ms": 3_500}));
    let long = one_time_jobs(&world.pool, 30, first, over, "test:sleep", &payload).await;
    world.expected.extend(long);
    let triggering = world.load(THOUSAND).await;
    for cut in 1..=CUTS {
        world.until_finished(cut * 70).await;
        proxy.reset_connections();
    }
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
    let incarnations: i64 =
        sqlx::query_scalar("SELECT count(*) FROM workers").fetch_one(&world.pool).await.expect("postgres answers");
    assert!(incarnations > 4, "{incarnations} incarnations: the cuts were not even noticed");
}
