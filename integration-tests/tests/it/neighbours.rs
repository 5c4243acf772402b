//! Two installations in one database, each in a schema of its own: whose names are all the same, so that each is the other's
//! foreign tables.

use anyhow::ensure;
use carillon_store::{Schema, Store, StoreOptions};
use carillon_testkit::{Cluster, ClusterOptions};
use serde_json::json;

use crate::api::{Api, id_of};
use crate::world::{Plan, World, soon};

/// A word of SQL, so that it must be quoted.
const OTHER: &str = "order";

/// Creates a job, fires it, waits for its success.
async fn run_one(api: &Api, name: &str) {
    let job = json!({"name": name, "execute_at": "2999-01-01T00:00:00Z", "handler_name": "test:echo"});
    let job = id_of(&api.create("once", &job).await);
    let execution = api.trigger(job, &json!({})).await;
    soon(&format!("the execution of {name} to succeed"), || async {
        let execution = api.execution(execution).await;
        ensure!(execution["status"] == "SUCCESS", "{execution}");
        Ok(())
    })
    .await;
    let names: Vec<String> = api.get("/jobs").await.body["jobs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|job| job["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(names, [name], "it has its own jobs, and no other");
}

#[tokio::test]
async fn two_schemas_of_a_database_are_two_installations_whatever_the_search_path() {
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() };
    let mut world = World::start("neighbours", plan).await;
    // What the connections bring along names the neighbour's schema first.
    let url = format!("{}?options[search_path]=carillon,public", world.database.url());
    let schema = Schema::new(OTHER).expect("a name");
    let store = Store::connect_lazily(&StoreOptions { schema, ..StoreOptions::new(url.as_str(), "neighbour") });
    let store = store.expect("a URL");
    assert!(!store.is_migrated().await.expect("postgres answers"), "the neighbour's migrations are not its own");
    let migrated = store.migrate().await.expect("it can be migrated");
    assert_eq!(migrated.applied.len(), 2);
    assert!(store.is_migrated().await.expect("postgres answers"));

    let options = ClusterOptions {
        gateways: 1,
        dispatchers: 1,
        executors: 1,
        postgres_url: url,
        redis_url: world.redis.url(),
        environment: Vec::new(),
    };
    let options = options.set("CARILLON_POSTGRES_SCHEMA", OTHER).set("CARILLON_REDIS_NAMESPACE", "neighbour");
    let mut other = Cluster::start(options).await.expect("it starts");
    soon("a leader of each", || std::future::ready(other.leader())).await;
    world.leader().await;

    let (mine, theirs) = (world.api(), Api::new(other.gateway_url()));
    tokio::join!(run_one(&mine, "mine"), run_one(&theirs, "theirs"));
    let counts: (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM carillon.job_executions), (SELECT count(*) FROM \"order\".job_executions)",
    )
    .fetch_one(&world.pool)
    .await
    .expect("postgres answers");
    assert_eq!(counts, (1, 1));
    let elsewhere: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace",
    )
    .fetch_one(&world.pool)
    .await
    .expect("postgres answers");
    assert_eq!(elsewhere, 0, "nothing was made outside of the two");
}
