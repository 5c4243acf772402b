//! Jobs fire on time, once, never early, and what must not start does not.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::Role;
use carillon_testkit::journal::{Event, Line};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::api::{id_of, instant};
use crate::load::{fires_until, in_ms, rfc3339};
use crate::world::{LOAD_MAX, Plan, SOON, World, soon};

/// What a start may be late by on a machine that also builds and runs other tests.
const LATE_MAX: TimeDelta = TimeDelta::milliseconds(1_500);

fn one_of_each() -> Plan {
    Plan { dispatchers: 1, executors: 1, ..Plan::default() }
}

/// Each start in the journal against its instant. Starting early is for the judge.
fn assert_punctual(world: &World, fires: &[(Uuid, DateTime<Utc>)]) {
    for (job, at) in fires {
        let starts: Vec<DateTime<Utc>> = world
            .journal()
            .iter()
            .filter(|line| line.job == *job && line.event == Event::Start && line.attempt == 1)
            .map(|line| line.at)
            .collect();
        let punctual = starts.iter().any(|start| (TimeDelta::zero()..LATE_MAX).contains(&(*start - *at)));
        assert!(punctual, "job {job} was due at {at}, its starts: {starts:?}");
    }
}

#[tokio::test]
async fn all_three_types_fire_once_on_time_and_complete() {
    let mut world = World::start("three_types", one_of_each()).await;
    let api = world.api();
    let end = in_ms(4_500);
    let until = rfc3339(end);
    let mut cron = json!({"name": "cron", "schedule": "* * * * * *", "handler_name": "test:echo", "end_date": until});
    let mut recurring =
        json!({"name": "recurring", "interval": "300ms", "handler_name": "test:echo", "end_date": until});
    for body in [&mut cron, &mut recurring] {
        // A fire that a busy machine starts late keeps none from starting.
        body["allow_overlap"] = json!(true);
    }
    let at = in_ms(1_200);
    let once = json!({"name": "once", "execute_at": rfc3339(at), "handler_name": "test:echo", "payload": {"n": 42}});
    let cron = api.create("cron", &cron).await;
    let recurring = api.create("recurring", &recurring).await;
    let once = api.create("once", &once).await;

    world.expected.extend(fires_until(&cron, TimeDelta::seconds(1), end));
    world.expected.extend(fires_until(&recurring, TimeDelta::milliseconds(300), end));
    world.expected.push((id_of(&once), at));
    assert!(world.expected.len() >= 12, "{:?}", world.expected);
    let history = world.judge(LOAD_MAX).await;

    assert_punctual(&world, &world.expected);
    assert_eq!(history.count(Status::Success), history.executions.len());
    for (job, kind) in [(&cron, "CRON"), (&recurring, "RECURRING"), (&once, "ONE_TIME")] {
        let job = api.job_in(id_of(job), "COMPLETED").await;
        assert_eq!(job["type"], kind);
        assert!(job["next_run"].is_null() && job["completed_at"].is_string(), "{job}");
        let fires = world.expected.iter().filter(|(id, _)| *id == id_of(&job)).count();
        assert_eq!((&job["executions_count"], &job["success_count"]), (&json!(fires), &json!(fires)), "{job}");
    }
    let execution = &api.executions(id_of(&once)).await[0];
    assert_eq!(execution["result"], json!({"n": 42}), "{execution}");
    assert_eq!(instant(&execution["scheduled_at"]), at);
    assert!(execution["worker_id"].is_string() && execution["duration_ms"].is_number(), "{execution}");
}

/// The poll is far away: only the wake-up can find them in time.
#[tokio::test]
async fn what_is_created_a_moment_before_it_is_due_fires_on_time() {
    let plan = one_of_each().set("CARILLON_DISPATCHER_POLL", "60s");
    let mut world = World::start("just_in_time", plan).await;
    let api = world.api();
    for _ in 0..10 {
        let at = in_ms(150);
        let body = json!({"name": "soon", "execute_at": rfc3339(at), "handler_name": "test:echo", "allow_past": true});
        let job = api.create("once", &body).await;
        world.expected.push((id_of(&job), at));
    }
    let job = api.create("cron", &json!({"name": "never", "schedule": "0 0 1 1 *", "handler_name": "test:echo"})).await;
    world.triggered.insert(api.trigger(id_of(&job), &json!({})).await);
    world.judge(SOON).await;
    assert_punctual(&world, &world.expected);
    let triggered: Vec<DateTime<Utc>> = world
        .journal()
        .iter()
        .filter(|line| world.triggered.contains(&line.execution) && line.event == Event::Start)
        .map(|line| line.at)
        .collect();
    assert_eq!(triggered.len(), 1);
}

/// R23. The window is long, so that there is time between the claim and the instant.
async fn withdrawn(name: &str, withdraw: &str, status: &str, reason: &str) {
    let (window, lease) = (Duration::from_secs(3), Duration::from_secs(30));
    let plan = one_of_each().protocol(window, lease).set("CARILLON_DISPATCHER_LEAD", "750ms");
    let mut world = World::start(name, plan).await;
    let api = world.api();
    // On a slow machine the word may come too late for the instant, and then it promises nothing: another time.
    for _ in 0..10 {
        let at = in_ms(1_000);
        let body = json!({"name": "held", "execute_at": rfc3339(at), "handler_name": "test:echo"});
        let job = id_of(&api.create("once", &body).await);
        world.expected.push((job, at));
        let execution = soon("the claim ahead of the instant", || async {
            let executions = api.executions(job).await;
            ensure!(!executions.is_empty(), "no execution");
            anyhow::Ok(id_of(&executions[0]))
        })
        .await;
        let (method, path) = match withdraw {
            "pause" => (reqwest::Method::POST, format!("/jobs/{job}/pause")),
            _ => (reqwest::Method::DELETE, format!("/jobs/{job}")),
        };
        let answer = api.ask(method, &path, None).await;
        assert!(answer.status == 200 || answer.status == 204, "{}", answer.body);
        if Utc::now() >= at {
            continue;
        }
        let row = api.execution_in(execution, &["SUCCESS", "FAILED", "CANCELLED", "SKIPPED"]).await;
        assert_eq!((row["status"].as_str(), row["reason"].as_str()), (Some(status), Some(reason)), "{row}");
        assert!(row["started_at"].is_null(), "{row}");
        let starts = |line: &Line| line.execution == execution && line.event == Event::Start;
        assert!(!world.journal().iter().any(starts), "its handler started");
        world.judge(SOON).await;
        return;
    }
    panic!("never before the instant");
}

#[tokio::test]
async fn a_pause_before_the_instant_holds_for_what_was_claimed_ahead() {
    withdrawn("paused_ahead", "pause", "SKIPPED", "job paused").await;
}

#[tokio::test]
async fn a_deletion_before_the_instant_holds_for_what_was_claimed_ahead() {
    withdrawn("deleted_ahead", "delete", "CANCELLED", "job deleted").await;
}

#[tokio::test]
async fn a_fire_whose_predecessor_is_open_is_skipped_with_that_reason() {
    let mut world = World::start("no_overlap", one_of_each()).await;
    let api = world.api();
    let end = in_ms(4_000);
    let body = json!({
        "name": "slow", "interval": "400ms", "handler_name": "test:sleep", "payload": {"ms": 1_000},
        "end_date": rfc3339(end),
    });
    let job = api.create("recurring", &body).await;
    let id = id_of(&job);
    world.expected.extend(fires_until(&job, TimeDelta::milliseconds(400), end));
    // A hand does not get past it either.
    world.until("status = 'RUNNING'", |count| count == 1).await;
    let triggered = api.trigger(id, &json!({})).await;
    world.triggered.insert(triggered);
    let history = world.judge(LOAD_MAX).await;

    let (ran, skipped) = (history.count(Status::Success), history.count(Status::Skipped));
    assert_eq!(ran + skipped, history.executions.len(), "{ran} ran, {skipped} were skipped");
    assert!(ran >= 2 && skipped >= 3, "{ran} ran, {skipped} were skipped");
    for execution in api.executions(id).await {
        let reason = execution["reason"].as_str().unwrap_or_default();
        let is_skipped = execution["status"] == "SKIPPED";
        assert_eq!(is_skipped, reason.contains("overlap"), "{execution}");
        assert!(!is_skipped || execution["started_at"].is_null(), "{execution}");
    }
    assert_eq!(api.execution(triggered).await["status"], "SKIPPED");
}

#[tokio::test]
async fn executors_run_only_the_queues_they_serve() {
    let plan = Plan { dispatchers: 1, executors: 0, ..Plan::default() };
    let mut world = World::start("queues", plan).await;
    let api = world.api();
    let mut jobs = Vec::new();
    for queue in ["default", "reports"] {
        for _ in 0..5 {
            let at = in_ms(50);
            let body = json!({
                "name": queue, "execute_at": rfc3339(at), "handler_name": "test:echo", "queue": queue,
                "allow_past": true,
            });
            let job = api.create("once", &body).await;
            world.expected.push((id_of(&job), instant(&job["next_run"])));
            jobs.push((id_of(&job), queue));
        }
    }
    let reports = world.add(Role::Executor, &[("CARILLON_EXECUTOR_QUEUES", r#"["reports"]"#)]).await;
    world.until("status = 'SUCCESS'", |count| count == 5).await;
    let others = world.executions_where("status = 'QUEUED' AND started_at IS NULL").await.unwrap();
    assert_eq!(others, 5, "what nobody serves waits");
    let default = world.add(Role::Executor, &[]).await;
    world.judge(SOON).await;

    let (reports, default) = (world.cluster.node(&reports).pid(), world.cluster.node(&default).pid());
    for line in world.journal() {
        let queue = jobs.iter().find(|(job, _)| *job == line.job).expect("known").1;
        assert_eq!(line.pid, if queue == "reports" { reports } else { default }, "{line:?}");
    }
}

/// One slot, so that the order of starts is the order of reads. The lowest has its share, so only the means are compared.
#[tokio::test]
async fn higher_priorities_start_first_and_the_lowest_is_not_starved() {
    const EACH: usize = 20;
    let plan = Plan { dispatchers: 1, executors: 0, ..Plan::default() };
    let mut world = World::start("priorities", plan).await;
    let api = world.api();
    let mut jobs = Vec::new();
    for priority in ["LOW", "MEDIUM", "HIGH", "CRITICAL"] {
        let body = json!({
            "name": priority, "schedule": "0 0 1 1 *", "handler_name": "test:echo", "priority": priority,
            "allow_overlap": true,
        });
        let job = id_of(&api.create("cron", &body).await);
        for _ in 0..EACH {
            world.triggered.insert(api.trigger(job, &json!({})).await);
        }
        jobs.push(job);
    }
    world.until("status = 'QUEUED'", |count| count == 4 * EACH as i64).await;
    world.add(Role::Executor, &[("CARILLON_EXECUTOR_SLOTS", "1")]).await;
    world.judge(LOAD_MAX).await;

    let mut starts: Vec<_> = world.journal().into_iter().filter(|line| line.event == Event::Start).collect();
    starts.sort_by_key(|line| line.at);
    let places = |job: &Uuid| -> Vec<usize> {
        starts.iter().enumerate().filter(|(_, line)| line.job == *job).map(|(place, _)| place).collect()
    };
    let means: Vec<usize> = jobs.iter().map(|job| places(job).iter().sum::<usize>() / EACH).collect();
    assert!(means.windows(2).all(|pair| pair[0] > pair[1]), "mean places from LOW to CRITICAL: {means:?}");
    let first_low = places(&jobs[0])[0];
    assert!(first_low < 3 * EACH, "LOW began only after all others: {first_low}");
}

#[tokio::test]
async fn a_handler_that_nobody_offers_fails_with_that_reason() {
    let mut world = World::start("no_handler", one_of_each()).await;
    let api = world.api();
    let body = json!({"name": "odd", "schedule": "0 0 1 1 *", "handler_name": "cleanup:old_traces"});
    let job = id_of(&api.create("cron", &body).await);
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    let row = api.execution_in(execution, &["FAILED", "RETRYING", "SUCCESS"]).await;
    assert_eq!(row["status"], "FAILED", "trying again would not help: {row}");
    let told = format!("{} {}", row["reason"], row["error"]);
    assert!(told.contains("cleanup:old_traces") && told.contains("handler"), "{row}");
    world.judge(SOON).await;
}

/// As while new executors are rolled out: the old ones do not fail what only the new ones offer.
#[tokio::test]
async fn what_another_executor_offers_is_handed_on_to_it() {
    let mut world = World::start("handed_on", one_of_each()).await;
    let api = world.api();
    let consumer = "newer-executor";
    sqlx::query(
        "INSERT INTO workers (id, consumer, queues, handlers, slots, seen_at)
         VALUES (gen_random_uuid(), $1, '{default}', '{reports:weekly}', 1, now() + interval '1 hour')",
    )
    .bind(consumer)
    .execute(&world.pool)
    .await
    .expect("postgres answers");
    let body = json!({"name": "weekly", "schedule": "0 0 1 1 *", "handler_name": "reports:weekly"});
    let job = id_of(&api.create("cron", &body).await);
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    let stream = world.stream("default", "MEDIUM");
    soon("the entry to be the other's", || {
        let pending = world.redis.command(&["XPENDING", &stream, "executors", "-", "+", "10", consumer]);
        std::future::ready(match pending {
            Ok(pending) if pending.list().len() == 1 => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
    })
    .await;
    assert_eq!(api.execution(execution).await["status"], "QUEUED");
    // It stops without having run it: the entry comes back, and now nobody offers it.
    sqlx::query("UPDATE workers SET ended = true WHERE consumer = $1")
        .bind(consumer)
        .execute(&world.pool)
        .await
        .expect("postgres answers");
    let row = api.execution_in(execution, &["FAILED", "RETRYING", "SUCCESS"]).await;
    assert_eq!(row["status"], "FAILED", "{row}");
    world.judge(SOON).await;
}

#[tokio::test]
async fn max_executions_completes_a_job() {
    let mut world = World::start("max_executions", one_of_each()).await;
    let api = world.api();
    let body = json!({
        "name": "thrice", "interval": "200ms", "handler_name": "test:echo", "max_executions": 3, "allow_overlap": true,
    });
    let job = api.create("recurring", &body).await;
    let first = instant(&job["next_run"]);
    for index in 0..3 {
        world.expected.push((id_of(&job), first + TimeDelta::milliseconds(200) * index));
    }
    let history = world.judge(SOON).await;
    assert_eq!(history.count(Status::Success), 3);
    let job = api.job_in(id_of(&job), "COMPLETED").await;
    assert_eq!(job["executions_count"], 3, "{job}");
}

/// Pause, trigger, resume, delete: what fires, and what does not.
#[tokio::test]
async fn a_paused_job_fires_by_hand_only_and_a_deleted_one_never() {
    let world = World::start("life", one_of_each()).await;
    let api = world.api();
    let body = json!({
        "name": "life", "interval": "300ms", "handler_name": "test:echo", "payload": {"by": "time"},
        "allow_overlap": true,
    });
    let job = id_of(&api.create("recurring", &body).await);
    world.until("status = 'SUCCESS'", |count| count >= 2).await;
    let paused = api.post(&format!("/jobs/{job}/pause"), &json!({})).await;
    assert_eq!((paused.status, &paused.body["status"]), (200, &json!("PAUSED")));
    assert!(paused.body["next_run"].is_null() && paused.body["paused_at"].is_string(), "{}", paused.body);
    world.until("completed_at IS NULL", |open| open == 0).await;
    let before: HashSet<Uuid> = api.executions(job).await.iter().map(id_of).collect();

    let by_hand = api.trigger(job, &json!({"payload": {"by": "hand"}, "created_by": "tester"})).await;
    let row = api.execution_in(by_hand, &["SUCCESS"]).await;
    assert_eq!(row["result"], json!({"by": "hand"}));
    let after: HashSet<Uuid> = api.executions(job).await.iter().map(id_of).collect();
    let new: Vec<&Uuid> = after.difference(&before).collect();
    assert_eq!(new, [&by_hand], "a paused job fired by time");

    let resumed = api.post(&format!("/jobs/{job}/resume"), &json!({})).await;
    assert_eq!((resumed.status, &resumed.body["status"]), (200, &json!("ACTIVE")));
    let known = after.len() as i64;
    world.until("status = 'SUCCESS'", |count| count >= known + 2).await;
    let deleted = api.ask(reqwest::Method::DELETE, &format!("/jobs/{job}"), None).await;
    assert_eq!((deleted.status, &deleted.body), (204, &serde_json::Value::Null));
    world.until("completed_at IS NULL", |open| open == 0).await;
    let job = api.job(job).await;
    assert!(job["status"] == "CANCELLED" && job["next_run"].is_null(), "{job}");
    world.judge(SOON).await;
}
