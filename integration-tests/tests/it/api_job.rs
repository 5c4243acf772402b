//! One message for a job: what is answered can be given, in every way to create one.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, id_of, instant};
use crate::load::rfc3339;
use crate::world::{Plan, World};

fn gateway() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

/// What the server alone decides, or what must differ.
const OUTPUT_ONLY: [&str; 14] = [
    "id",
    "status",
    "revision",
    "created_at",
    "updated_at",
    "paused_at",
    "completed_at",
    "cancelled_at",
    "next_run",
    "last_run",
    "executions_count",
    "success_count",
    "failure_count",
    "avg_duration_ms",
];

/// Without what is OUTPUT_ONLY, and which version it is.
fn given(job: &Value) -> Value {
    let mut job = job.clone();
    let fields = job.as_object_mut().expect("a job");
    for field in OUTPUT_ONLY.into_iter().chain(["etag"]) {
        fields.remove(field).unwrap_or_else(|| panic!("no {field}"));
    }
    job
}

async fn created(api: &Api, path: &str, job: &Value) -> Value {
    let answer = api.post(path, job).await;
    assert_eq!(answer.status, 201, "{path}: {}", answer.body);
    answer.body
}

/// All that the first system's job had, each with a value of its own.
fn full() -> Value {
    json!({
        "name": "full", "description": "all of it", "schedule": "0 2 * * *", "timezone": "Europe/Berlin",
        "start_date": "2026-01-01T00:00:00Z", "end_date": "2099-01-01T00:00:00Z", "max_executions": 9,
        "handler_name": "cleanup:old_traces", "handler_type": "function", "payload": {"n": 1.5}, "max_retries": 1,
        "retry_delay_ms": 2, "timeout_ms": 3, "priority": "critical", "concurrency": 4, "allow_overlap": true,
        "tags": ["b", "a", "b"], "metadata": {"owner": "x"}, "platform_id": "platform-123", "created_by": "admin",
        "type": "cron", "status": "active", "next_run": null, "last_run": null, "executions_count": 0, "success_count": 0,
        "failure_count": 0, "avg_duration_ms": 0, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "completed_at": null, "cancelled_at": null, "id": "ignored",
    })
}

#[tokio::test]
async fn a_body_with_all_fields_of_the_first_systems_job_creates_a_job() {
    let world = World::start("job_full", gateway()).await;
    let job = created(&world.api(), "/jobs/cron", &full()).await;
    for (field, value) in full().as_object().expect("a job") {
        let shown = match field.as_str() {
            "tags" => json!(["b", "a"]),
            "priority" | "type" | "status" | "handler_type" => json!(value.as_str().expect("a word").to_uppercase()),
            field if OUTPUT_ONLY.contains(&field) => continue,
            _ => value.clone(),
        };
        assert_eq!(job[field], shown, "{field}");
    }
}

/// Of each type, through each call that makes it: what is answered, given again, makes a job that is equal; of a changed one too, whose
/// `etag` means nothing to what is only being made.
#[tokio::test]
async fn what_is_answered_can_be_given_again() {
    let world = World::start("job_again", gateway()).await;
    let api = world.api();
    let soon = rfc3339(Utc::now() + TimeDelta::hours(1));
    let exclusions = json!([{"date": "2026-12-24"}, {"cron": "* 0-5 * * *", "timezone": "Asia/Tokyo"}]);
    let jobs = [
        ("CRON", "/jobs/cron", json!({"schedule": "0 2 * * *", "timezone": "europe/berlin", "dst_gap": "skip"})),
        ("CRON", "/jobs/cron", json!({"schedules": ["@every 90s", "0 9 * * MON"], "exclusions": exclusions})),
        ("ONE_TIME", "/jobs/once", json!({"execute_at": soon})),
        ("ONE_TIME", "/jobs/once?allow_past=true", json!({"execute_at": "2020-02-03T04:05:06.789Z"})),
        ("RECURRING", "/jobs/recurring", json!({"interval": "1h30m", "exclusions": exclusions})),
        ("EVENT", "/jobs", json!({"type": "event"})),
    ];
    for (job_type, path, when) in jobs {
        let mut body = json!({"name": "n", "handler_name": "a:b", "payload": {"n": [1, null]}, "max_retries": 0});
        for (field, value) in when.as_object().expect("an object") {
            body[field] = value.clone();
        }
        let first = created(&api, path, &body).await;
        assert_eq!(first["type"], json!(job_type));
        let shown = api.job(id_of(&first)).await;
        assert_eq!(shown, first, "get answers with what create did");
        let query = path.split_once('?').map(|(_, query)| format!("?{query}")).unwrap_or_default();
        let changed = api.update(id_of(&first), &json!({"tags": ["changed"], "timeout_ms": 7})).await;
        assert_eq!((&changed["revision"], &changed["etag"]), (&json!(2), &json!("\"2\"")));
        for path in [path, &format!("/jobs{query}")] {
            for shown in [&shown, &changed] {
                let again = created(&api, path, shown).await;
                assert_ne!(again["id"], first["id"]);
                assert_eq!((&again["revision"], &again["etag"]), (&json!(1), &json!("\"1\"")));
                assert_eq!(given(&again), given(shown), "{path}");
            }
        }
        let fields = ["schedule", "schedules", "interval", "execute_at"];
        let is_shown = |field: &&str| ![json!(""), json!([]), Value::Null].contains(&first[*field]);
        let of_when: Vec<&str> = fields.into_iter().filter(is_shown).collect();
        let of_request: Vec<&str> = fields.into_iter().filter(|field| when.get(field).is_some()).collect();
        assert_eq!(of_when, of_request, "only what was given");
    }
}

#[tokio::test]
async fn the_type_follows_from_what_is_given_and_must_agree_with_it() {
    let world = World::start("job_type", gateway()).await;
    let api = world.api();
    let choices =
        "must be given, or else schedules, interval or execute_at; a job without any must be of the type EVENT";
    let cases = [
        ("/jobs", json!({}), "schedule", choices),
        (
            "/jobs",
            json!({"schedule": "@daily", "interval": "1h"}),
            "interval",
            "must not be given together with schedule",
        ),
        (
            "/jobs",
            json!({"type": "event", "interval": "1h"}),
            "interval",
            "must not be given for a job of the type EVENT",
        ),
        ("/jobs", json!({"type": "cron"}), "schedule", "must be given, or else schedules"),
        ("/jobs", json!({"type": "one_time"}), "execute_at", "must be given"),
        ("/jobs/recurring", json!({}), "interval", "must be given"),
        (
            "/jobs/cron",
            json!({"schedule": "@daily", "type": "recurring"}),
            "type",
            "must be CRON here, is RECURRING: POST /jobs takes any type",
        ),
        (
            "/jobs/cron",
            json!({"schedule": "@daily", "execute_at": "2099-12-01T10:00:00Z"}),
            "execute_at",
            "must not be given for a job of the type CRON",
        ),
        (
            "/jobs/cron",
            json!({"schedule": "@daily", "request_id": "k"}),
            "request_id",
            "is no part of the body here: give it as a parameter of the query",
        ),
    ];
    for (path, when, field, rule) in cases {
        let mut body = json!({"name": "n", "handler_name": "a:b"});
        for (field, value) in when.as_object().expect("an object") {
            body[field] = value.clone();
        }
        let answer = api.post(path, &body).await;
        assert_eq!(
            (answer.status, answer.violations()),
            (400, vec![(field.to_owned(), rule.to_owned())]),
            "{path} {when}"
        );
    }
}

#[tokio::test]
async fn a_key_is_of_one_job_of_its_platform_until_that_is_deleted() {
    let world = World::start("job_key", gateway()).await;
    let api = world.api();
    let keyed = |platform: Value| {
        json!({
            "name": "n", "schedule": "@daily", "handler_name": "a:b", "key": "nightly", "platform_id": platform,
        })
    };
    let global = created(&api, "/jobs", &keyed(Value::Null)).await;
    assert_eq!(global["key"], json!("nightly"));
    let of_platform = created(&api, "/jobs", &keyed(json!("p1"))).await;
    for (platform, holder) in [(Value::Null, &global), (json!("p1"), &of_platform)] {
        for path in ["/jobs/cron", "/jobs?validate_only=true", "/jobs?request_id=again"] {
            let refused = api.post(path, &keyed(platform.clone())).await;
            assert_eq!((refused.status, &refused.body["code"]), (409, &json!(6)), "{}", refused.body);
            let details = refused.body["details"].as_array().expect("details");
            assert!(details.iter().any(|detail| detail["resource_name"] == holder["id"]), "{}", refused.body);
        }
    }
    let listed = api.get("/jobs?key=nightly").await.body;
    let ids: Vec<&Value> = listed["jobs"].as_array().expect("a list").iter().map(|job| &job["id"]).collect();
    assert_eq!(ids, [&of_platform["id"], &global["id"]]);
    assert_eq!(api.ask(Method::DELETE, &format!("/jobs/{}", id_of(&global)), None).await.status, 204);
    let next = created(&api, "/jobs?request_id=again", &keyed(Value::Null)).await;
    assert_ne!(next["id"], global["id"]);
}

#[tokio::test]
async fn a_request_that_only_validates_answers_as_if_and_writes_nothing() {
    let world = World::start("job_validate", gateway()).await;
    let api = world.api();
    let body = json!({"name": "n", "schedule": "0 2 * * *", "handler_name": "a:b", "queue": "new-one"});
    let shown = created(&api, "/jobs?validate_only=true", &body).await;
    assert_eq!([&shown["id"], &shown["type"], &shown["queue"]], [&json!(""), &json!("CRON"), &json!("new-one")]);
    let next: DateTime<Utc> = instant(&shown["next_run"]);
    assert!(next > Utc::now(), "{shown}");
    let wrong = api.post("/jobs?validate_only=true", &json!({"name": ""})).await;
    assert_eq!((wrong.status, wrong.wrong_fields().len()), (400, 3), "{}", wrong.body);
    let written = "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM queues WHERE name = 'new-one')";
    let written: i64 = sqlx::query_scalar(written).fetch_one(&world.pool).await.expect("postgres answers");
    assert_eq!(written, 0);
}

#[tokio::test]
async fn the_header_idempotency_key_says_what_request_id_says() {
    let world = World::start("job_header", gateway()).await;
    let api = world.api();
    let body = json!({"name": "n", "schedule": "0 2 * * *", "handler_name": "a:b"});
    let first = created(&api, "/jobs?request_id=k1", &body).await;
    let post = async |path: &str, key: &str| api.post_with("idempotency-key", key, path, &body).await;
    for path in ["/jobs", "/jobs?request_id=k1"] {
        assert_eq!(post(path, "k1").await.body["id"], first["id"]);
    }
    let refused = post("/jobs?request_id=k1", "k2").await;
    assert_eq!((refused.status, refused.wrong_fields()), (400, vec!["request_id".to_owned()]), "{}", refused.body);
    let trigger = format!("/jobs/{}/trigger", id_of(&first));
    let fired = api.post_with("idempotency-key", "k3", &trigger, &json!({})).await;
    assert_eq!(api.post(&trigger, &json!({"request_id": "k3"})).await.body["id"], fired.body["id"]);
}
