//! The JSON side of the API: what it accepts, how it answers, and how precisely it refuses.

use anyhow::ensure;
use carillon_testkit::StopMode;
use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Api, id_of, instant};
use crate::api_lists::pages;
use crate::load::rfc3339;
use crate::world::{Plan, SOON, World, soon};

/// A gateway alone: nothing fires.
fn gateway() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

fn cron(name: &str) -> Value {
    json!({"name": name, "schedule": "0 2 * * *", "handler_name": "test:echo"})
}

/// Everything that was ever created, deleted or not.
async fn jobs_in_all(world: &World) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&world.pool).await.expect("postgres answers")
}

#[tokio::test]
async fn requests_of_the_first_system_work_unchanged() {
    let world = World::start("first_system", gateway()).await;
    let api = world.api();
    let text = r#"{"name":"Daily Cleanup","schedule":"0 2 * * *","handler_name":"cleanup:old_traces","payload":{"retention_days":30},"created_by":"admin"}"#;
    let answer = api.post_text("/jobs/cron", text).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let job = answer.body;
    assert_eq!(
        [&job["type"], &job["status"], &job["schedule"], &job["timezone"], &job["created_by"]],
        [&json!("CRON"), &json!("ACTIVE"), &json!("0 2 * * *"), &json!("UTC"), &json!("admin")]
    );
    assert_eq!(job["payload"], json!({"retention_days": 30}));
    let next = instant(&job["next_run"]);
    assert!(next > Utc::now() && next <= Utc::now() + TimeDelta::hours(24), "{job}");
    assert_eq!(next.format("%H:%M:%S%.f").to_string(), "02:00:00");
    for (field, default) in [
        ("max_retries", json!(3)),
        ("retry_delay_ms", json!(60_000)),
        ("timeout_ms", json!(300_000)),
        ("priority", json!("MEDIUM")),
        ("concurrency", json!(1)),
        ("allow_overlap", json!(false)),
        ("queue", json!("default")),
        ("handler_type", json!("FUNCTION")),
        ("executions_count", json!(0)),
    ] {
        assert_eq!(job[field], default, "{field}: {job}");
    }

    let text = r#"{"name":"Generate Report","execute_at":"2099-12-01T10:00:00Z","handler_name":"reports:generate","created_by":"user-123"}"#;
    let answer = api.post_text("/jobs/once", text).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert_eq!([&answer.body["type"], &answer.body["next_run"]], [&json!("ONE_TIME"), &json!("2099-12-01T10:00:00Z")]);
    assert_eq!(api.job(id_of(&answer.body)).await, answer.body, "get answers with what create did");
}

#[tokio::test]
async fn jobs_are_listed_by_type_and_status_in_pages() {
    let world = World::start("listed", gateway()).await;
    let api = world.api();
    let mut newest_first: Vec<Uuid> = Vec::new();
    for index in 0..7 {
        newest_first.insert(0, id_of(&api.create("cron", &cron(&format!("cron {index}"))).await));
    }
    let recurring = json!({"name": "r", "interval": "1h30m", "handler_name": "test:echo"});
    let recurring = id_of(&api.create("recurring", &recurring).await);
    let ids = |answer: &Value| -> Vec<Uuid> { answer["jobs"].as_array().expect("jobs").iter().map(id_of).collect() };

    let mut pages = Vec::new();
    for offset in [0, 3, 6] {
        let page = api.get(&format!("/jobs?type=cron&limit=3&offset={offset}")).await.body;
        assert_eq!(page["has_more"], offset < 6, "{page}");
        pages.extend(ids(&page));
    }
    assert_eq!(pages, newest_first);
    assert_eq!(ids(&api.get("/jobs?type=RECURRING").await.body), [recurring]);
    assert_eq!(ids(&api.get("/jobs").await.body).len(), 8, "all types");

    api.post(&format!("/jobs/{}/pause", newest_first[0]), &json!({})).await;
    assert_eq!(api.ask(Method::DELETE, &format!("/jobs/{}", newest_first[1]), None).await.status, 204);
    assert_eq!(ids(&api.get("/jobs?status=PAUSED").await.body), [newest_first[0]]);
    assert_eq!(ids(&api.get("/jobs?status=cancelled").await.body), [newest_first[1]]);
    assert_eq!(ids(&api.get("/jobs?type=cron&status=active").await.body), newest_first[2..]);
    assert_eq!(ids(&api.get("/jobs").await.body).len(), 7, "deleted ones are left out unless asked for");
}

#[tokio::test]
async fn a_job_is_paused_resumed_and_deleted() {
    let world = World::start("paused", gateway()).await;
    let api = world.api();
    let job = api.create("cron", &cron("life")).await;
    let path = format!("/jobs/{}", id_of(&job));
    for _ in 0..2 {
        let paused = api.post(&format!("{path}/pause"), &json!({})).await;
        assert_eq!((paused.status, &paused.body["status"]), (200, &json!("PAUSED")));
        assert!(paused.body["next_run"].is_null(), "{}", paused.body);
    }
    for _ in 0..2 {
        let resumed = api.ask(Method::POST, &format!("{path}/resume"), None).await;
        assert_eq!((resumed.status, &resumed.body["status"]), (200, &json!("ACTIVE")));
        assert_eq!(resumed.body["next_run"], job["next_run"]);
    }
    for _ in 0..2 {
        let deleted = api.ask(Method::DELETE, &path, None).await;
        assert_eq!((deleted.status, &deleted.body), (204, &Value::Null), "deleting twice changes nothing");
    }
    let job = api.job(id_of(&job)).await;
    assert!(job["status"] == "CANCELLED" && job["cancelled_at"].is_string(), "{job}");
    for verb in ["pause", "resume", "trigger"] {
        let refused = api.post(&format!("{path}/{verb}"), &json!({})).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!(9)), "{verb}: {}", refused.body);
        assert!(refused.body["message"].as_str().is_some_and(|text| text.contains("CANCELLED")), "{}", refused.body);
    }
}

#[tokio::test]
async fn executions_are_listed_newest_first_and_by_status() {
    let mut world = World::start("executions", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let api = world.api();
    let body = json!({
        "name": "e", "schedule": "0 0 1 1 *", "handler_name": "test:fail", "payload": {"message": "no"},
        "max_retries": 0, "allow_overlap": true,
    });
    let job = id_of(&api.create("cron", &body).await);
    let mut newest_first = Vec::new();
    for index in 0..5 {
        let body = if index == 0 { json!({"payload": {"times": 0}}) } else { json!({}) };
        newest_first.insert(0, api.trigger(job, &body).await);
    }
    world.triggered.extend(newest_first.iter().copied());
    world.judge(SOON).await;
    let ids = |rows: &[Value]| -> Vec<Uuid> { rows.iter().map(id_of).collect() };
    let path = format!("/jobs/{job}/executions");
    // On a busy machine a page's time may be over before it knows that nothing follows.
    let all = pages(&api, &path, "executions", 9).await;
    let mut listed = ids(&all);
    let page = api.get(&format!("{path}?limit=2&offset=1")).await.body;
    assert_eq!(ids(page["executions"].as_array().expect("list")), listed[1..3]);
    assert_eq!(page["has_more"], true);
    assert_eq!(ids(&pages(&api, &format!("{path}?status=success"), "executions", 9).await), [newest_first[4]]);
    assert_eq!(pages(&api, &format!("{path}?status=FAILED"), "executions", 9).await.len(), 4);
    assert_eq!(pages(&api, &format!("{path}?status=pending"), "executions", 9).await.len(), 0);
    // Within one millisecond the order of ids is that of a hash.
    let due: Vec<_> = all.iter().map(|row| instant(&row["scheduled_at"])).collect();
    assert!(due.is_sorted_by(|a, b| a >= b), "{due:?}");
    listed.sort();
    newest_first.sort();
    assert_eq!(listed, newest_first);
    let row = api.execution(listed[0]).await;
    assert_eq!(row["job_id"], json!(job));
}

#[tokio::test]
async fn the_same_key_answers_with_the_same_thing() {
    let mut world = World::start("same_key", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let api = world.api();
    let mut body = cron("keyed");
    body["allow_overlap"] = json!(true);
    body["request_id"] = json!("key-1");
    // At once, too.
    let (first, second, third) =
        tokio::join!(api.try_create("cron", &body), api.try_create("cron", &body), api.try_create("cron", &body));
    let job = id_of(&first.body);
    for answer in [&first, &second, &third] {
        assert_eq!((answer.status, id_of(&answer.body)), (201, job));
    }
    assert_eq!(jobs_in_all(&world).await, 1);
    body["name"] = json!("another");
    let refused = api.try_create("cron", &body).await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!(6)), "{}", refused.body);
    assert_eq!(jobs_in_all(&world).await, 1);

    let body = json!({"request_id": "fire-1"});
    let execution = api.trigger(job, &body).await;
    assert_eq!(api.trigger(job, &body).await, execution);
    world.triggered.insert(execution);
    api.execution_in(execution, &["SUCCESS"]).await;
    assert_eq!(api.trigger(job, &body).await, execution, "also when it is over");
    let other = api.trigger(job, &json!({"request_id": "fire-2"})).await;
    assert_ne!(other, execution);
    world.triggered.insert(other);
    world.judge(SOON).await;
}

#[tokio::test]
async fn all_wrong_fields_are_named_at_once_with_their_rules() {
    let world = World::start("wrong_fields", gateway()).await;
    let api = world.api();
    let body = json!({
        "name": "", "schedule": "61 2 * *", "timezone": "Mars/Olympus", "handler_name": "No Colon",
        "timeout_ms": 0, "max_retries": 1_000, "priority": "URGENT", "payload": [1], "colour": "red",
        "queue": "Reports!", "start_date": "yesterday",
    });
    let answer = api.post("/jobs/cron", &body).await;
    assert_eq!((answer.status, &answer.body["code"]), (400, &json!(3)), "{}", answer.body);
    let expected = [
        "colour",
        "handler_name",
        "max_retries",
        "name",
        "payload",
        "priority",
        "queue",
        "schedule",
        "start_date",
        "timeout_ms",
        "timezone",
    ];
    assert_eq!(answer.wrong_fields(), expected, "{}", answer.body);
    assert!(answer.violations().iter().all(|(_, rule)| !rule.is_empty()));
    let rule = |field: &str| {
        let violations = answer.violations();
        violations.iter().find(|(name, _)| name == field).map(|(_, rule)| rule.clone()).unwrap_or_default()
    };
    assert!(rule("colour").contains("not a field"), "{}", rule("colour"));
    assert!(rule("max_retries").contains("0 to 100"), "{}", rule("max_retries"));
    assert!(rule("priority").contains("CRITICAL"), "{}", rule("priority"));
    assert_eq!(jobs_in_all(&world).await, 0, "nothing half-created remains");
}

/// One wrong thing each, with the field that must be named.
#[tokio::test]
async fn each_rule_is_held() {
    let world = World::start("rules", gateway()).await;
    let api = world.api();
    let past = rfc3339(Utc::now() - TimeDelta::hours(1));
    let cases = [
        ("cron", json!({"schedule": "0 0 31 2 *"}), "schedule"),
        ("cron", json!({"schedule": "@sometimes"}), "schedule"),
        ("cron", json!({"timezone": "CEST"}), "timezone"),
        ("cron", json!({"end_date": past}), "end_date"),
        ("cron", json!({"handler_name": ""}), "handler_name"),
        ("cron", json!({"name": "x".repeat(201)}), "name"),
        ("cron", json!({"name": "nul\u{0}"}), "name"),
        ("cron", json!({"concurrency": 5}), "concurrency"),
        ("cron", json!({"max_executions": 0}), "max_executions"),
        ("cron", json!({"max_retries": -1}), "max_retries"),
        ("cron", json!({"max_retries": "three"}), "max_retries"),
        ("cron", json!({"tags": ["ok", ""]}), "tags[1]"),
        ("cron", json!({"payload": {"deep": 9_007_199_254_740_993_i64}}), "payload.deep"),
        ("cron", json!({"handler_type": "AGENT"}), "handler_type"),
        ("cron", json!({"request_id": "k".repeat(201)}), "request_id"),
        ("once", json!({"execute_at": past}), "execute_at"),
        ("once", json!({"execute_at": "2099-13-01T10:00:00Z"}), "execute_at"),
        ("once", json!({"execute_at": null}), "execute_at"),
        ("recurring", json!({"interval": "5 apples"}), "interval"),
        ("recurring", json!({"interval": "50ms"}), "interval"),
        ("recurring", json!({"interval": ""}), "interval"),
    ];
    for (kind, wrong, field) in cases {
        let mut body = match kind {
            "cron" => cron("right"),
            "once" => json!({"name": "right", "execute_at": "2099-12-01T10:00:00Z", "handler_name": "test:echo"}),
            _ => json!({"name": "right", "interval": "1h", "handler_name": "test:echo"}),
        };
        for (name, value) in wrong.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let answer = api.try_create(kind, &body).await;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.body);
        assert_eq!(answer.wrong_fields(), [field], "{wrong}: {}", answer.body);
    }
    assert_eq!(jobs_in_all(&world).await, 0);
}

#[tokio::test]
async fn wrong_ids_pages_routes_and_methods_are_told_apart() {
    let world = World::start("wrong_routes", gateway()).await;
    let api = world.api();
    let unknown = Uuid::now_v7();
    for path in [format!("/jobs/{unknown}"), format!("/jobs/{unknown}/executions"), format!("/executions/{unknown}")] {
        let answer = api.get(&path).await;
        assert_eq!((answer.status, &answer.body["code"]), (404, &json!(5)), "{path}: {}", answer.body);
        assert!(
            answer.body["message"].as_str().is_some_and(|text| text.contains(&unknown.to_string())),
            "{}",
            answer.body
        );
    }
    for verb in ["pause", "resume", "trigger"] {
        let answer = api.post(&format!("/jobs/{unknown}/{verb}"), &json!({})).await;
        assert_eq!(answer.status, 404, "{verb}: {}", answer.body);
    }
    assert_eq!(api.ask(Method::DELETE, &format!("/jobs/{unknown}"), None).await.status, 404);
    let malformed = api.get("/jobs/42").await;
    assert_eq!((malformed.status, malformed.wrong_fields()), (400, vec!["id".to_owned()]), "{}", malformed.body);

    for (query, fields) in [
        ("limit=0", vec!["limit"]),
        ("limit=1001", vec!["limit"]),
        ("limit=many", vec!["limit"]),
        ("limit=-1", vec!["limit"]),
        ("offset=100001", vec!["offset"]),
        ("limit=0&offset=-1&type=hourly&status=odd&colour=red", vec!["colour", "limit", "offset", "status", "type"]),
    ] {
        let answer = api.get(&format!("/jobs?{query}")).await;
        assert_eq!(
            (answer.status, answer.wrong_fields()),
            (400, fields.iter().map(|f| (*f).to_owned()).collect()),
            "{query}: {}",
            answer.body
        );
    }

    let nowhere = api.get("/jobz").await;
    assert_eq!((nowhere.status, &nowhere.body["code"]), (404, &json!(5)), "{}", nowhere.body);
    let method = api.ask(Method::PUT, "/schedules/preview", Some(&json!({}))).await;
    assert_eq!((method.status, method.allow.as_deref()), (405, Some("POST")), "{}", method.body);
    let method = api.ask(Method::POST, &format!("/jobs/{unknown}"), Some(&json!({}))).await;
    let allow = method.allow.clone().unwrap_or_default();
    assert!(method.status == 405 && allow.contains("GET") && allow.contains("DELETE"), "{allow}: {}", method.body);
}

#[tokio::test]
async fn malformed_and_oversized_bodies_are_refused() {
    let world = World::start("bodies", gateway()).await;
    let api = world.api();
    for text in ["{", "nonsense", r#"{"name":"a","name":"b"}"#, "[]", "\"text\"", &"[".repeat(200)] {
        let answer = api.post_text("/jobs/cron", text).await;
        assert_eq!((answer.status, answer.wrong_fields()), (400, vec!["body".to_owned()]), "{text}: {}", answer.body);
    }
    let empty = api.post_text("/jobs/cron", "").await;
    assert_eq!(
        (empty.status, empty.wrong_fields()),
        (400, ["handler_name", "name", "schedule"].map(str::to_owned).to_vec())
    );

    // The bound is on the JSON text of the payload.
    let mut body = cron("full");
    let text_max = 262_144 - r#"{"text":""}"#.len();
    body["payload"] = json!({"text": "x".repeat(text_max)});
    let job = api.create("cron", &body).await;
    assert_eq!(job["payload"], body["payload"]);
    body["payload"] = json!({"text": "x".repeat(text_max + 1)});
    let answer = api.post("/jobs/cron", &body).await;
    assert_eq!((answer.status, answer.wrong_fields()), (400, vec!["payload".to_owned()]), "{}", answer.body);
    body["payload"] = json!({"text": "x".repeat(1_000_000)});
    let answer = api.post("/jobs/cron", &body).await;
    assert_eq!((answer.status, answer.wrong_fields()), (413, vec!["body".to_owned()]), "{}", answer.body);
    let trigger = format!("/jobs/{}/trigger", id_of(&job));
    let answer = api.post(&trigger, &json!({"payload": {"text": "x".repeat(text_max + 1)}})).await;
    assert_eq!((answer.status, answer.wrong_fields()), (400, vec!["payload".to_owned()]), "{}", answer.body);
    assert_eq!(jobs_in_all(&world).await, 1);
}

#[tokio::test]
async fn without_postgres_the_answer_is_503_with_a_hint_and_it_recovers_by_itself() {
    let mut world = World::start("unavailable", Plan { own_postgres: true, ..gateway() }).await;
    let api = world.api();
    let before = id_of(&api.create("cron", &cron("before")).await);
    world.postgres.as_ref().expect("its own").stop(StopMode::Fast);
    for (method, path, body) in [
        (Method::POST, "/jobs/cron".to_owned(), Some(cron("during"))),
        (Method::GET, format!("/jobs/{before}"), None),
        (Method::POST, format!("/jobs/{before}/trigger"), Some(json!({}))),
        (Method::DELETE, format!("/jobs/{before}"), None),
    ] {
        let answer = api.ask(method, &path, body.as_ref()).await;
        assert_eq!((answer.status, &answer.body["code"]), (503, &json!(14)), "{path}: {}", answer.body);
        let seconds: u64 = answer.retry_after.as_deref().and_then(|text| text.parse().ok()).expect("Retry-After");
        assert!((1..60).contains(&seconds));
        let hint = answer.body["details"].as_array().expect("details").iter();
        let hint = hint.filter(|detail| detail["@type"] == "type.googleapis.com/google.rpc.RetryInfo").count();
        assert_eq!(hint, 1, "{}", answer.body);
    }
    // What is wrong with a request is told all the same.
    let wrong = api.post("/jobs/cron", &json!({"name": ""})).await;
    assert_eq!(wrong.status, 400, "{}", wrong.body);
    let node = world.cluster.node("gateway-1");
    soon("the gateway to say that it is not ready", || {
        std::future::ready(if node.is_ready().is_err() { Ok(()) } else { Err("it is ready") })
    })
    .await;

    world.postgres.as_ref().expect("its own").start_again().expect("it starts");
    soon("the gateway to serve again", || async {
        let answer = api.post("/jobs/cron", &cron("after")).await;
        ensure!(answer.status == 201, "{}: {}", answer.status, answer.body);
        anyhow::Ok(())
    })
    .await;
    world.cluster.ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    let names = names(&api).await;
    assert_eq!(names, ["after", "before"], "nothing of what was refused");
}

async fn names(api: &Api) -> Vec<String> {
    let jobs = api.get("/jobs").await.body;
    let name = |job: &Value| job["name"].as_str().unwrap_or_default().to_owned();
    jobs["jobs"].as_array().expect("jobs").iter().map(name).collect()
}
