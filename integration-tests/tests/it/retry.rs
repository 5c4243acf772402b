//! Failures: tried again, given up, timed out, panicked, blocked; each the trouble of its own execution only.

use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_core::ids::execution_for_fire;
use carillon_testkit::journal::{Event, Line};
use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, FINAL, id_of, instant};
use crate::load::{in_ms, lateness, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, SOON, World, soon};

fn one_of_each() -> Plan {
    Plan { dispatchers: 1, executors: 1, ..Plan::default() }
}

/// Creates a job with these settings and fires it.
async fn fire(world: &mut World, api: &Api, handler: &str, payload: Value, settings: Value) -> Uuid {
    let mut body = json!({
        "name": handler, "schedule": "0 0 1 1 *", "handler_name": handler, "payload": payload, "allow_overlap": true,
    });
    for (name, value) in settings.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let job = id_of(&api.create("cron", &body).await);
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    execution
}

fn lines(world: &World, execution: Uuid, event: Event) -> Vec<Line> {
    world.journal().into_iter().filter(|line| line.execution == execution && line.event == event).collect()
}

#[tokio::test]
async fn a_failed_attempt_is_tried_again_with_growing_delays_until_it_succeeds() {
    let mut world = World::start("retried", one_of_each()).await;
    let api = world.api();
    let settings = json!({"max_retries": 3, "retry_delay_ms": 500});
    let payload = json!({"times": 2, "message": "not yet"});
    let execution = fire(&mut world, &api, "test:fail", payload, settings).await;

    let waiting = api.execution_in(execution, &["RETRYING"]).await;
    assert_eq!(waiting["error"].as_str().map(|error| error.contains("not yet")), Some(true), "{waiting}");
    let next = instant(&waiting["next_retry_at"]);
    assert!(next > instant(&waiting["started_at"]) && waiting["completed_at"].is_null(), "{waiting}");
    let row = api.execution_in(execution, &FINAL).await;
    assert_eq!(
        (&row["status"], &row["attempt"], &row["retry_count"]),
        (&json!("SUCCESS"), &json!(3), &json!(2)),
        "{row}"
    );
    let history = world.judge(SOON).await;
    assert_eq!(history.count(Status::Success), 1);

    let (starts, ends) = (lines(&world, execution, Event::Start), lines(&world, execution, Event::End));
    assert_eq!(starts.iter().map(|line| line.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    // Jitter takes a tenth at most.
    let [first, second] = [0, 1].map(|index: usize| starts[index + 1].at - ends[index].at);
    assert!(first >= TimeDelta::milliseconds(450) && second >= TimeDelta::milliseconds(900), "{first} {second}");
    let job = api.job(row["job_id"].as_str().and_then(|id| id.parse().ok()).unwrap()).await;
    let counts = [&job["executions_count"], &job["success_count"], &job["failure_count"]];
    assert_eq!(counts, [&json!(1), &json!(1), &json!(0)], "one execution, through all its attempts");
}

/// An execution that waits for the attempt that follows at least `attempts` failed ones: how many have failed, and how long the last
/// of them is followed by nothing, in milliseconds.
async fn waits_after(api: &Api, execution: Uuid, attempts: usize) -> (i64, i64) {
    let row = soon("it to wait", || async {
        let row = api.execution(execution).await;
        let failed = row["attempts"].as_array().map_or(0, Vec::len);
        ensure!(row["status"] == "RETRYING" && failed >= attempts, "{row}");
        anyhow::Ok(row)
    });
    let row = row.await;
    let failed = row["attempts"].as_array().expect("a list");
    let ended = instant(&failed.last().expect("it has failed")["ended_at"]);
    (i64::try_from(failed.len()).expect("few"), (instant(&row["next_retry_at"]) - ended).num_milliseconds())
}

/// Without jitter a delay is what it says, to the millisecond.
#[tokio::test]
async fn a_job_says_how_its_delays_grow_and_a_handler_may_say_when_or_never() {
    let mut world = World::start("backoff", one_of_each()).await;
    let api = world.api();
    let linear = json!({
        "max_retries": 100, "retry_delay_ms": 300, "retry_backoff": "LINEAR", "retry_delay_cap_ms": 700, "retry_jitter_percent": 0,
    });
    let linear = fire(&mut world, &api, "test:fail", json!({}), linear).await;
    let fixed = json!({"max_retries": 100, "retry_delay_ms": 500, "retry_backoff": "fixed", "retry_jitter_percent": 0});
    let fixed = fire(&mut world, &api, "test:fail", json!({}), fixed).await;
    let asked = fire(&mut world, &api, "test:fail", json!({"retry_after_ms": 7_200_000}), json!({})).await;
    let never = fire(&mut world, &api, "test:fail", json!({"for_good": true}), json!({})).await;

    let (failed, delay) = waits_after(&api, linear, 2).await;
    assert_eq!(delay, (300 * failed).min(700), "after {failed}");
    assert_eq!(waits_after(&api, fixed, 2).await.1, 500);
    assert_eq!(waits_after(&api, asked, 1).await, (1, 7_200_000));
    let row = api.execution_in(never, &FINAL).await;
    assert_eq!((&row["status"], &row["attempt"]), (&json!("FAILED"), &json!(1)), "{row}");
}

#[tokio::test]
async fn out_of_attempts_is_failed_with_the_last_error() {
    let mut world = World::start("given_up", one_of_each()).await;
    let api = world.api();
    let settings = json!({"max_retries": 1, "retry_delay_ms": 50});
    let execution = fire(&mut world, &api, "test:fail", json!({"message": "it is broken"}), settings).await;
    let never = json!({"max_retries": 0});
    let at_once = fire(&mut world, &api, "test:fail", json!({"message": "broken too"}), never).await;
    for (execution, attempts, message) in [(execution, 2, "it is broken"), (at_once, 1, "broken too")] {
        let row = api.execution_in(execution, &FINAL).await;
        assert_eq!((&row["status"], &row["attempt"]), (&json!("FAILED"), &json!(attempts)), "{row}");
        assert!(row["error"].as_str().is_some_and(|error| error.contains(message)), "{row}");
        assert!(row["completed_at"].is_string() && row["next_retry_at"].is_null(), "{row}");
        let job = api.job(row["job_id"].as_str().and_then(|id| id.parse().ok()).unwrap()).await;
        assert_eq!((&job["success_count"], &job["failure_count"]), (&json!(0), &json!(1)), "{job}");
    }
    world.judge(SOON).await;
}

/// Also one that ignores that it is to stop: it is cut off.
#[tokio::test]
async fn an_attempt_that_takes_too_long_is_timed_out() {
    let mut world = World::start("timed_out", one_of_each()).await;
    let api = world.api();
    let settings = json!({"max_retries": 1, "retry_delay_ms": 50, "timeout_ms": 300});
    let mut executions = Vec::new();
    for handler in ["test:sleep", "test:stubborn"] {
        executions.push(fire(&mut world, &api, handler, json!({"ms": 20_000}), settings.clone()).await);
    }
    let began = Instant::now();
    for execution in executions {
        let row = api.execution_in(execution, &FINAL).await;
        assert_eq!((&row["status"], &row["attempt"]), (&json!("TIMEOUT"), &json!(2)), "{row}");
        let told = format!("{} {}", row["reason"], row["error"]);
        assert!(told.contains("300"), "it says what the limit is: {row}");
        assert!(row["duration_ms"].as_u64().is_some_and(|ms| (250..5_000).contains(&ms)), "{row}");
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    world.judge(SOON).await;
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt_with_its_message_and_place_and_the_executor_lives_on() {
    let mut world = World::start("panicked", one_of_each()).await;
    let api = world.api();
    let settings = json!({"max_retries": 1, "retry_delay_ms": 50});
    let execution = fire(&mut world, &api, "test:panic", json!({"message": "out of cheese"}), settings).await;
    let row = api.execution_in(execution, &FINAL).await;
    assert_eq!((&row["status"], &row["attempt"]), (&json!("FAILED"), &json!(2)), "{row}");
    let told = format!("{} {}", row["error"], row["error_stack"]);
    assert!(told.contains("out of cheese"), "{row}");
    assert!(told.contains(".rs:"), "it says where: {row}");

    let echo = fire(&mut world, &api, "test:echo", json!({"still": "here"}), json!({})).await;
    assert_eq!(api.execution_in(echo, &FINAL).await["result"], json!({"still": "here"}));
    let executor = world.cluster.node("executor-1");
    assert!(executor.lives() && executor.is_ready().is_ok());
    world.judge(SOON).await;
}

#[tokio::test]
async fn a_handler_that_blocks_its_thread_stalls_nobody_else() {
    const OTHERS: usize = 50;
    let mut world = World::start("blocked", one_of_each().set("CARILLON_EXECUTOR_HANDLER_THREADS", "4")).await;
    let api = world.api();
    let blocking = fire(&mut world, &api, "test:block", json!({"ms": 4_000}), json!({})).await;
    soon("the blocking handler to start", || async {
        ensure!(!lines(&world, blocking, Event::Start).is_empty(), "not yet");
        anyhow::Ok(())
    })
    .await;
    let body = json!({"name": "o", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);
    for _ in 0..OTHERS {
        world.triggered.insert(api.trigger(job, &json!({})).await);
    }
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), OTHERS + 1);
    let unblocked = lines(&world, blocking, Event::End)[0].at;
    // On a busy machine some may be triggered when it is over.
    let beside = |execution: Uuid| {
        let row = history.executions.iter().find(|row| row.id == execution);
        row.is_some_and(|row| execution != blocking && row.scheduled_at + TimeDelta::seconds(2) < unblocked)
    };
    assert!(history.executions.iter().any(|row| beside(row.id)), "none was triggered while it blocked");
    let late = history.journal.iter().filter(|line| beside(line.execution) && line.at > unblocked).count();
    assert_eq!(late, 0, "others waited for the one that blocked");
    let row = api.execution(blocking).await;
    assert!(row["duration_ms"].as_u64().is_some_and(|ms| ms >= 4_000), "{row}");
}

/// A timeout counts from the handler's first instruction: what waited behind a blocked thread was not run meanwhile.
#[tokio::test]
async fn what_waits_behind_a_blocked_thread_is_moved_and_not_timed_out() {
    const OTHERS: usize = 5;
    let mut world = World::start("behind_blocked", one_of_each().set("CARILLON_EXECUTOR_HANDLER_THREADS", "1")).await;
    let api = world.api();
    let blocking = fire(&mut world, &api, "test:block", json!({"ms": 6_000}), json!({})).await;
    soon("the blocking handler to start", || async {
        ensure!(!lines(&world, blocking, Event::Start).is_empty(), "not yet");
        anyhow::Ok(())
    })
    .await;
    let settings = json!({"timeout_ms": 100, "max_retries": 0});
    for _ in 0..OTHERS {
        fire(&mut world, &api, "test:sleep", json!({"ms": 1}), settings.clone()).await;
    }
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), OTHERS + 1);
    let unblocked = lines(&world, blocking, Event::End)[0].at;
    let late = history.journal.iter().filter(|line| line.execution != blocking && line.at > unblocked).count();
    assert_eq!(late, 0, "they waited until the thread was free");
}

/// Ordinary fires beside handlers that do what they should not.
const ORDINARY: usize = 200;
/// How late most may start beside them: of a payload of 50 MB alone a debug build has work for seconds on two cores.
const LATE_MAX: TimeDelta = TimeDelta::seconds(2);

/// Row 10: all at once, beside ordinary jobs. The API takes no payload as large as what the first one returns; a million lists
/// are as much in memory; the last one hears nothing of its cancel.
#[tokio::test]
async fn whatever_handlers_do_only_their_own_executions_suffer_and_their_errors_say_why() {
    let mut world = World::start("unruly", one_of_each()).await;
    let (api, begin) = (world.api(), in_ms(1_000));
    let ordinary = one_time_jobs(&world.pool, ORDINARY, begin, SOON / 4, "test:echo", &json!({"n": 1})).await;
    world.expected.extend(ordinary);
    let large = json!({"text": "x".repeat(50_000_000)});
    let large = one_time_jobs(&world.pool, 1, begin, Duration::ZERO, "test:echo", &large).await;
    let mut unruly = vec![(execution_for_fire(large[0].0, large[0].1), "FAILED", "bytes of JSON, 262144 are allowed")];
    world.expected.extend(large);
    world.wake();
    for (handler, payload, status, says) in [
        ("test:nest", json!({"levels": 1_000_000}), "FAILED", "nested deeper than 30 levels"),
        ("test:panic", json!({"message": "out of cheese"}), "FAILED", "the handler panicked: out of cheese at "),
        ("test:block", json!({"ms": 2_000}), "TIMEOUT", "timed out after 500 ms"),
    ] {
        let settings = json!({"max_retries": 0, "timeout_ms": if handler == "test:block" { 500 } else { 60_000 }});
        unruly.push((fire(&mut world, &api, handler, payload, settings).await, status, says));
    }
    let stubborn = fire(&mut world, &api, "test:stubborn", json!({"ms": 60_000}), json!({})).await;
    api.execution_in(stubborn, &["RUNNING"]).await;
    let asked = api.post(&format!("/executions/{stubborn}/cancel"), &json!({"reason": "that is enough"})).await;
    assert_eq!(asked.status, 200, "{}", asked.body);
    unruly.push((stubborn, "CANCELLED", "that is enough"));

    let history = world.judge(LOAD_MAX).await;
    for (execution, status, says) in unruly {
        let row = api.execution(execution).await;
        assert_eq!((&row["status"], &row["attempt"]), (&json!(status), &json!(1)), "{row}");
        assert!(format!("{} {}", row["error"], row["reason"]).contains(says), "{row}");
    }
    assert_eq!(history.count(Status::Success), ORDINARY);
    let mut late: Vec<TimeDelta> = lateness(&history, begin).into_iter().map(|(_, late)| late).collect();
    late.sort_unstable();
    let (median, most) = (late[late.len() / 2], late[late.len() - 1]);
    eprintln!("beside them fires started {median} late (median), {most} at most");
    assert!(median < LATE_MAX, "beside them fires started {median} late");
    let incarnations = world.count("SELECT count(*) FROM workers").await.expect("postgres answers");
    let executor = world.cluster.node("executor-1");
    assert!(executor.is_ready().is_ok() && incarnations == 1, "it did not even lose its contact");
}
