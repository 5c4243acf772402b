//! Cancels (R17): one execution over JSON and gRPC, a job with much open; and what an execution keeps of its job through all
//! its attempts.

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_proto::v1::execution_service_client::ExecutionServiceClient;
use carillon_proto::v1::{CancelExecutionRequest, ExecutionStatus, GetExecutionRequest};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::api::{Api, id_of};
use crate::world::{Plan, SOON, World, soon};

fn one_of_each() -> Plan {
    Plan { dispatchers: 1, executors: 1, ..Plan::default() }
}

/// Creates a job that fires by hand only.
async fn job(api: &Api, handler: &str, payload: Value, settings: Value) -> Uuid {
    let mut body = json!({
        "name": handler, "schedule": "0 0 1 1 *", "handler_name": handler, "payload": payload, "allow_overlap": true,
        "concurrency": 0,
    });
    for (name, value) in settings.as_object().expect("an object") {
        body[name] = value.clone();
    }
    id_of(&api.create("cron", &body).await)
}

async fn fire(world: &mut World, api: &Api, job: Uuid) -> Uuid {
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    execution
}

#[tokio::test]
async fn what_runs_waits_or_has_ended_is_cancelled_over_json() {
    let mut world = World::start("cancel_json", one_of_each()).await;
    let api = world.api();
    let sleeper = job(&api, "test:sleep", json!({"ms": 600_000}), json!({})).await;
    let failing = job(&api, "test:fail", json!({}), json!({"retry_delay_ms": 600_000})).await;
    let echo = job(&api, "test:echo", json!({}), json!({})).await;
    let running = fire(&mut world, &api, sleeper).await;
    let waiting = fire(&mut world, &api, failing).await;
    let done = fire(&mut world, &api, echo).await;
    api.execution_in(running, &["RUNNING"]).await;
    api.execution_in(waiting, &["RETRYING"]).await;
    api.execution_in(done, &["SUCCESS"]).await;

    let asked = api.post(&format!("/executions/{running}/cancel"), &json!({"reason": "no longer needed"})).await;
    assert_eq!(asked.status, 200, "{}", asked.body);
    assert_eq!((&asked.body["cancel_requested"], &asked.body["id"]), (&json!(true), &json!(running)));
    let ended = api.execution_in(running, &["CANCELLED"]).await;
    assert_eq!(ended["reason"], "no longer needed", "{ended}");

    let ended = api.post(&format!("/executions/{waiting}/cancel"), &json!({})).await.body;
    assert_eq!((&ended["status"], ended["completed_at"].is_string()), (&json!("CANCELLED"), true), "{ended}");
    assert!(ended["reason"].is_string(), "somebody says why");
    for again in [running, waiting] {
        let before = api.execution(again).await;
        let answer = api.ask(Method::POST, &format!("/executions/{again}/cancel"), None).await;
        assert_eq!((answer.status, answer.body), (200, before), "once is enough");
    }
    let refused = api.post(&format!("/executions/{done}/cancel"), &json!({})).await;
    assert_eq!((refused.status, &refused.body["code"]), (400, &json!(9)), "{}", refused.body);
    assert!(refused.body["message"].as_str().is_some_and(|text| text.contains("SUCCESS")), "{}", refused.body);
    assert_eq!(api.post(&format!("/executions/{}/cancel", Uuid::nil()), &json!({})).await.status, 404);

    let history = world.judge(SOON).await;
    assert_eq!((history.count(Status::Cancelled), history.count(Status::Success)), (2, 1));
}

#[tokio::test]
async fn what_runs_or_was_not_claimed_is_cancelled_over_grpc() {
    let mut world = World::start("cancel_grpc", one_of_each()).await;
    let api = world.api();
    let url = world.cluster.gateway_url();
    let channel = Channel::from_shared(url).expect("a URL").connect().await.expect("the gateway listens");
    let mut executions = ExecutionServiceClient::new(channel);
    let sleeper = job(&api, "test:sleep", json!({"ms": 600_000}), json!({})).await;
    let running = fire(&mut world, &api, sleeper).await;
    api.execution_in(running, &["RUNNING"]).await;
    let cancel = |id: Uuid| CancelExecutionRequest { id: id.to_string(), reason: "enough".into() };
    let asked = executions.cancel_execution(cancel(running)).await.expect("it is asked").into_inner();
    assert!(asked.cancel_requested);
    api.execution_in(running, &["CANCELLED"]).await;
    world.judge(SOON).await;

    // Without a dispatcher nobody claims it.
    let leader = world.leader().await;
    world.kill(&leader);
    let unclaimed = fire(&mut world, &api, sleeper).await;
    let ended = executions.cancel_execution(cancel(unclaimed)).await.expect("it ends").into_inner();
    assert_eq!((ended.status(), ended.reason.as_deref()), (ExecutionStatus::Cancelled, Some("enough")));
    let read = executions.get_execution(GetExecutionRequest { id: unclaimed.to_string() }).await;
    assert_eq!(read.expect("it is read").into_inner(), ended);
    let wrong = executions.cancel_execution(CancelExecutionRequest { id: "seven".into(), ..cancel(running) }).await;
    assert_eq!(wrong.expect_err("it is refused").code(), Code::InvalidArgument);
}

/// Whose executions somebody has locked: it is deleted all the same, at once, and a dispatcher ends what is open.
#[tokio::test]
async fn a_job_whose_execution_is_locked_is_deleted_at_once() {
    let mut world = World::start("delete_locked", one_of_each()).await;
    let api = world.api();
    let sleeper = job(&api, "test:sleep", json!({"ms": 600_000}), json!({})).await;
    let running = fire(&mut world, &api, sleeper).await;
    api.execution_in(running, &["RUNNING"]).await;
    let mut somebody = world.pool.begin().await.expect("postgres answers");
    sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE")
        .bind(running)
        .execute(&mut *somebody)
        .await
        .expect("it is locked");
    assert_eq!(api.ask(Method::DELETE, &format!("/jobs/{sleeper}"), None).await.status, 204);
    somebody.rollback().await.expect("postgres answers");
    let history = world.judge(SOON).await;
    assert_eq!(history.count(Status::Cancelled), 1);
}

/// However much a job has open: it is deleted, nothing of it goes on, and its record is whole.
#[tokio::test]
async fn a_job_with_much_open_is_deleted_and_all_of_it_ends() {
    let mut world = World::start("delete_open", one_of_each()).await;
    let api = world.api();
    let sleeper = job(&api, "test:sleep", json!({"ms": 600_000}), json!({})).await;
    for _ in 0..150 {
        fire(&mut world, &api, sleeper).await;
    }
    world.until("status = 'RUNNING'", |running| running > 0).await;
    assert_eq!(api.ask(Method::DELETE, &format!("/jobs/{sleeper}"), None).await.status, 204);
    let history = world.judge(SOON).await;
    assert_eq!(history.count(Status::Cancelled), 150);
    soon("the deletion's note to be gone", || async {
        let notes: i64 = sqlx::query_scalar("SELECT count(*) FROM job_attention").fetch_one(&world.pool).await?;
        ensure!(notes == 0, "{notes} are left");
        anyhow::Ok(())
    })
    .await;
}

/// R23a: the second attempt runs what the first one ran, though the job was changed in between; what fires afterwards runs the
/// new definition.
#[tokio::test]
async fn an_execution_keeps_its_definition_through_all_its_attempts() {
    let mut world = World::start("keeps_definition", one_of_each()).await;
    let api = world.api();
    let payload = json!({"times": 1, "message": "first"});
    let settings = json!({"retry_delay_ms": 3_000, "max_retries": 3});
    let changing = job(&api, "test:fail", payload, settings).await;
    let old = fire(&mut world, &api, changing).await;
    api.execution_in(old, &["RETRYING"]).await;
    // As an update will do it.
    let mut transaction = world.pool.begin().await.expect("postgres answers");
    sqlx::query("UPDATE jobs SET handler_name = 'test:echo', payload = '{\"new\": true}' WHERE id = $1")
        .bind(changing)
        .execute(&mut *transaction)
        .await
        .expect("it is changed");
    let revision = carillon_store::revisions::add_on(&mut *transaction, changing, "bob").await.expect("it is kept");
    transaction.commit().await.expect("postgres answers");
    assert_eq!(revision, 2);

    let new = fire(&mut world, &api, changing).await;
    let ended = api.execution_in(new, &["SUCCESS", "FAILED"]).await;
    assert_eq!((&ended["result"], &ended["revision"]), (&json!({"new": true}), &json!(2)), "{ended}");
    let ended = api.execution_in(old, &["SUCCESS", "FAILED"]).await;
    assert_eq!((&ended["result"], &ended["revision"]), (&json!({"attempt": 2}), &json!(1)), "{ended}");
    world.judge(SOON).await;
}

/// An execution of a job that was claimed ahead of its instant by a leader that is not there.
async fn claimed_ahead(world: &World, job: Uuid) -> Uuid {
    let at = chrono::Utc::now() + chrono::TimeDelta::minutes(10);
    let coming = carillon_core::ids::execution_for_fire(job, at);
    let row = "WITH counted AS (UPDATE job_timers SET claimed_count = claimed_count + 1 WHERE job_id = $2)
               INSERT INTO job_executions (id, job_id, shard, claim, entry, status, scheduled_at)
               VALUES ($1, $2, 0, 1, 1, 'QUEUED', $3)";
    sqlx::query(row).bind(coming).bind(job).bind(at).execute(&world.pool).await.expect("it is there");
    coming
}

/// H113: a notice may be missed, the set is asked with every read.
#[tokio::test]
async fn h113_what_a_pause_withdrew_stands_in_the_set_before_the_answer() {
    let world = World::start("h113", Plan { dispatchers: 0, executors: 0, ..Plan::default() }).await;
    let api = world.api();
    let paused = job(&api, "test:echo", json!({}), json!({})).await;
    let coming = claimed_ahead(&world, paused).await;
    let set = format!("{{{}:0}}:cancelled", world.namespace);
    // Pausing it again tells it again.
    for _ in 0..2 {
        assert_eq!(api.post(&format!("/jobs/{paused}/pause"), &json!({})).await.status, 200);
        let asked = world.redis.command(&["SISMEMBER", &set, &coming.to_string()]).expect("redis answers");
        assert_eq!(asked.number(), Some(1));
        world.redis.command(&["DEL", &set]).expect("redis answers");
    }
    assert_eq!(api.execution(coming).await["cancel_requested"], true);
}

/// Of a change too: what it leaves to run with another definition, and what it takes away. What is only validated is told nobody.
#[tokio::test]
async fn h113_what_an_update_revised_or_withdrew_stands_in_the_set_before_the_answer() {
    let world = World::start("h113_update", Plan { dispatchers: 0, executors: 0, ..Plan::default() }).await;
    let api = world.api();
    let changed = job(&api, "test:echo", json!({}), json!({})).await;
    let coming = claimed_ahead(&world, changed).await;
    let set = format!("{{{}:0}}:cancelled", world.namespace);
    for (change, query, is_told, is_withdrawn) in [
        (json!({"tags": ["new"]}), "", 1, false),
        (json!({"schedule": "0 0 2 1 *"}), "?validate_only=true", 0, false),
        (json!({"schedule": "0 0 2 1 *"}), "", 1, true),
        (json!({"payload": {"n": 2}}), "", 1, true),
    ] {
        let answer = api.ask(Method::PATCH, &format!("/jobs/{changed}{query}"), Some(&change)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let asked = world.redis.command(&["SISMEMBER", &set, &coming.to_string()]).expect("redis answers");
        assert_eq!(asked.number(), Some(is_told), "{change}{query}");
        assert_eq!(api.execution(coming).await["cancel_requested"], is_withdrawn, "{change}{query}");
        world.redis.command(&["DEL", &set]).expect("redis answers");
    }
}
