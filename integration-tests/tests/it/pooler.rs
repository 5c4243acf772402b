//! A pooler before Postgres (row 6): the leader's lock belongs to a session of the server, and one that hands sessions on with
//! each transaction would give it away unnoticed. So a dispatcher says so and ends; one that keeps sessions apart is as good as
//! none.

use carillon_testkit::{PoolMode, Pooler, Role};
use serde_json::json;

use crate::api::id_of;
use crate::world::{Plan, SOON, World, soon};

const REASON: &str = "the dispatcher must reach postgres directly: a pooler in transaction mode stands in between";
/// What an operator sees of a process that has ended.
const LAST_LINES: usize = 3;

fn no_dispatcher() -> Plan {
    Plan { dispatchers: 0, executors: 1, ..Plan::default() }
}

async fn pooler_before(world: &World, mode: PoolMode) -> Pooler {
    Pooler::start(&world.database, mode).await.unwrap_or_else(|error| panic!("{error:#}"))
}

#[tokio::test]
async fn a_dispatcher_behind_a_transaction_pooler_ends_at_the_start_and_says_why() {
    let mut world = World::start("pooler_transaction", no_dispatcher()).await;
    let pooler = pooler_before(&world, PoolMode::Transaction).await;
    // A second one meets sessions that the first has used.
    for _ in 0..2 {
        let name = world.cluster.add(Role::Dispatcher, &[("CARILLON_POSTGRES_URL", pooler.url())]).expect("it starts");
        let node = world.cluster.node(&name);
        let ended = soon(&format!("{name} to end"), || {
            let ended = node.ended();
            std::future::ready(ended.ok_or_else(|| node.log()))
        })
        .await;
        let log = node.log();
        assert_eq!(ended, "exit status: 1", "{log}");
        let last: Vec<&str> = log.lines().rev().take(LAST_LINES).collect();
        assert!(last.iter().any(|line| line.contains(REASON)), "{log}");
        assert!(!log.contains("standing by"), "it never asked for the lock:\n{log}");
    }
}

#[tokio::test]
async fn dispatchers_behind_a_session_pooler_lead_as_directly() {
    let mut world = World::start("pooler_session", no_dispatcher()).await;
    let pooler = pooler_before(&world, PoolMode::Session).await;
    for _ in 0..2 {
        world.add(Role::Dispatcher, &[("CARILLON_POSTGRES_URL", pooler.url())]).await;
    }
    let leader = world.leader().await;
    let api = world.api();
    let body = json!({"name": "p", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);
    world.triggered.insert(api.trigger(job, &json!({})).await);
    world.until("status = 'SUCCESS'", |count| count == 1).await;
    // The lock goes with its session through the pooler too.
    world.kill(&leader);
    world.new_leader(&leader).await;
    world.triggered.insert(api.trigger(job, &json!({})).await);
    world.judge(SOON).await;
    for node in world.cluster.nodes_of(Role::Dispatcher).filter(|node| node.name != leader) {
        assert!(node.lives(), "{}", node.log());
    }
}
