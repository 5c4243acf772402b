//! Changing a job over the API: which fields, by whom, of which version; what is refused.

use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::{id_of, instant};
use crate::load::rfc3339;
use crate::world::{Plan, World};

fn gateway() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

fn cron() -> Value {
    json!({
        "name": "n", "schedule": "0 2 * * *", "handler_name": "a:b", "payload": {"n": [1, null, 0.5]}, "tags": ["a", "b"],
        "priority": "high", "max_retries": 0, "metadata": {"owner": "x"}, "timezone": "Europe/Berlin", "max_executions": 5,
    })
}

/// What a job is, but for its state and version.
fn definition(job: &Value) -> Value {
    let mut job = job.clone();
    let fields = job.as_object_mut().expect("a job");
    for field in ["revision", "etag", "updated_at", "next_run"] {
        fields.remove(field).unwrap_or_else(|| panic!("no {field}"));
    }
    job
}

#[tokio::test]
async fn what_is_answered_given_as_a_change_changes_nothing() {
    let world = World::start("update_same", gateway()).await;
    let api = world.api();
    let soon = rfc3339(Utc::now() + TimeDelta::hours(1));
    let kinds = [
        json!({"schedule": "@every 90s", "schedules": ["0 9 * * MON"], "exclusions": [{"date": "2026-12-24"}]}),
        json!({"execute_at": soon}),
        json!({"execute_at": "2020-02-03T04:05:06.789Z"}),
        json!({"interval": "1h30m", "start_date": "2026-01-01T00:00:00Z"}),
        json!({"type": "event", "key": "k", "platform_id": "p", "created_by": "alice", "payload": {"deep": [{"n": 1e300}]}}),
    ];
    for when in kinds {
        let mut body = json!({"name": "n", "handler_name": "a:b", "payload": {"n": [1, null, 0.5]}, "max_retries": 0});
        for (field, value) in when.as_object().expect("an object") {
            body[field] = value.clone();
        }
        let made = api.post("/jobs?allow_past=true", &body).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let shown = api.job(id_of(&made.body)).await;
        for query in ["", "?update_mask=*"] {
            let path = format!("/jobs/{}{query}", id_of(&shown));
            let answer = api.ask(Method::PATCH, &path, Some(&shown)).await;
            assert_eq!((answer.status, &answer.body), (200, &shown), "{when} {query}");
        }
        assert_eq!(api.job(id_of(&shown)).await, shown);
    }
}

#[tokio::test]
async fn the_keys_of_the_body_are_replaced_and_null_is_the_default() {
    let world = World::start("update_fields", gateway()).await;
    let api = world.api();
    let first = api.create("cron", &cron()).await;
    let id = id_of(&first);
    let path = format!("/jobs/{id}?updated_by=bob");
    let change = json!({
        "payload": {"other": true}, "tags": null, "maxRetries": null, "priority": null, "timezone": null, "description": "d",
        "queue": "other",
    });
    let answer = api.ask(Method::PATCH, &path, Some(&change)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let mut wanted = definition(&first);
    for (field, value) in [
        ("payload", json!({"other": true})),
        ("tags", json!([])),
        ("max_retries", json!(3)),
        ("priority", json!("MEDIUM")),
        ("timezone", json!("UTC")),
        ("description", json!("d")),
        ("queue", json!("other")),
    ] {
        wanted[field] = value;
    }
    assert_eq!(definition(&answer.body), wanted);
    assert_eq!((&answer.body["revision"], &answer.body["etag"]), (&json!(2), &json!("\"2\"")));
    assert!(instant(&answer.body["updated_at"]) > instant(&first["updated_at"]));
    let hour = |job: &Value| job["next_run"].as_str().expect("an instant")[11..16].to_owned();
    // In summer and in winter.
    assert!(["00:00", "01:00"].contains(&hour(&first).as_str()), "{first}");
    assert_eq!(hour(&answer.body), "02:00", "by the new zone");
    assert_eq!(api.job(id).await, answer.body);
    assert_eq!(api.update(id, &json!({})).await, answer.body, "nothing is named");

    let path = format!("{path}&update_mask=name,metadata");
    let only = api.ask(Method::PATCH, &path, Some(&json!({"name": "m", "tags": ["no"]}))).await.body;
    assert_eq!([&only["name"], &only["metadata"], &only["tags"]], [&json!("m"), &json!({}), &json!([])]);

    let listed = api.get(&format!("/jobs/{id}/revisions")).await.body;
    let told = |n: usize| {
        let revision = &listed["revisions"][n];
        (revision["revision"].clone(), revision["created_by"].clone(), revision["changed"].clone())
    };
    assert_eq!(told(0), (json!(3), json!("bob"), json!(["metadata", "name"])));
    let changed = json!(["description", "max_retries", "payload", "priority", "queue", "tags", "timezone"]);
    assert_eq!(told(1), (json!(2), json!("bob"), changed));
    assert_eq!(told(2), (json!(1), json!(""), json!([])));
    assert_eq!(listed["revisions"][1]["superseded_at"], listed["revisions"][0]["created_at"]);
    let page = api.get(&format!("/jobs/{id}/revisions?limit=1&offset=1")).await.body;
    assert_eq!((&page["revisions"][0]["revision"], &page["has_more"]), (&json!(2), &json!(true)));
    assert_eq!(api.get(&format!("/jobs/{}/revisions", Uuid::nil())).await.status, 404);
}

/// What `timetable` holds beside the columns is told by the API's names, and nothing that follows from them.
#[tokio::test]
async fn a_revision_names_whatever_of_its_timetable_was_changed() {
    let world = World::start("update_timetable", gateway()).await;
    let api = world.api();
    let id = id_of(&api.create("cron", &cron()).await);
    let day = json!([{"date": "2026-12-24"}]);
    let changes = [
        json!({"schedules": ["0 9 * * MON"]}),
        json!({"exclusions": day}),
        json!({"exclusions": [{"date": "2026-12-25"}]}),
        json!({"dst_gap": "skip"}),
        json!({"dst_overlap": "both"}),
        json!({"dst_gap": "run_after", "exclusions": day, "schedules": null}),
        json!({"dst_gap": null}),
        json!({"dst_overlap": null, "exclusions": null}),
        json!({"schedule": "30 2 * * *"}),
        json!({"start_date": "2026-01-01T00:00:00Z"}),
        json!({"end_date": "2199-01-01T00:00:00Z"}),
        json!({"timezone": "Asia/Tokyo"}),
    ];
    for change in &changes {
        api.update(id, change).await;
    }
    let listed = api.get(&format!("/jobs/{id}/revisions")).await.body;
    let listed = listed["revisions"].as_array().expect("a list");
    assert_eq!(listed.len(), changes.len() + 1, "each was one");
    for (change, revision) in changes.iter().zip(listed.iter().rev().skip(1)) {
        let mut fields: Vec<&String> = change.as_object().expect("an object").keys().collect();
        fields.sort();
        assert_eq!(revision["changed"], json!(fields), "{change}");
    }
}

#[tokio::test]
async fn what_cannot_be_changed_so_is_refused_by_name_and_nothing_is_changed() {
    let world = World::start("update_refused", gateway()).await;
    let api = world.api();
    let mut body = cron();
    body["key"] = json!("k");
    let cron = api.create("cron", &body).await;
    let recurring = api.create("recurring", &json!({"name": "n", "handler_name": "a:b", "interval": "1h"})).await;
    let cases = [
        (&cron, "", json!({"type": "recurring"}), "type", "cannot be changed"),
        (&cron, "", json!({"key": "other"}), "key", "cannot be changed"),
        (&cron, "", json!({"key": null}), "key", "cannot be changed"),
        (&cron, "", json!({"platform_id": "p"}), "platform_id", "cannot be changed"),
        (&cron, "", json!({"created_by": "eve"}), "created_by", "cannot be changed"),
        (&cron, "", json!({"schedule": ""}), "schedule", "must be given, or else schedules"),
        (&cron, "", json!({"interval": "1h"}), "interval", "must not be given for a job of the type CRON"),
        (&cron, "", json!({"name": null}), "name", "must be given"),
        (&cron, "", json!({"nonsense": 1}), "nonsense", "is not a field of Job"),
        (&cron, "?nonsense=1", json!({}), "nonsense", "is not a parameter of this call"),
        (&cron, "?update_mask=nonsense", json!({}), "update_mask", "names \"nonsense\", which is no field of a job"),
        (
            &cron,
            "?update_mask=payload.a",
            json!({}),
            "update_mask",
            "names \"payload.a\": a field is replaced whole, name payload",
        ),
        (&cron, "", json!({"concurrency": 3}), "concurrency", "must be 1 unless allow_overlap is true, is 3"),
        (
            &recurring,
            "",
            json!({"schedule": "@daily"}),
            "schedule",
            "must not be given for a job of the type RECURRING",
        ),
        (&recurring, "", json!({"interval": "1 parsec"}), "interval", ""),
        (&recurring, "", json!({"end_date": "2020-01-01T00:00:00Z"}), "end_date", ""),
    ];
    for (job, query, change, field, rule) in cases {
        let path = format!("/jobs/{}{query}", id_of(job));
        let answer = api.ask(Method::PATCH, &path, Some(&change)).await;
        let violations = answer.violations();
        assert_eq!((answer.status, violations.len()), (400, 1), "{change}: {}", answer.body);
        assert_eq!(violations[0].0, field, "{change}: {}", answer.body);
        assert!(rule.is_empty() || violations[0].1 == rule, "{change}: {}", answer.body);
    }
    let all = json!({"name": "", "timeout_ms": 0, "priority": 7, "schedule": "61 * * * *"});
    let wrong = api.try_update(id_of(&cron), &all).await;
    assert_eq!(wrong.wrong_fields(), ["name", "priority", "schedule", "timeout_ms"], "all at once");
    for path in [format!("/jobs/{}", Uuid::nil()), format!("/jobs/{}/schedule", Uuid::nil())] {
        let method = if path.ends_with("schedule") { Method::PUT } else { Method::PATCH };
        assert_eq!(api.ask(method, &path, Some(&json!({"schedule": "@daily"}))).await.status, 404);
    }
    for job in [&cron, &recurring] {
        assert_eq!(&api.job(id_of(job)).await, job);
    }
    assert_eq!(api.ask(Method::DELETE, &format!("/jobs/{}", id_of(&cron)), None).await.status, 204);
    let deleted = api.try_update(id_of(&cron), &json!({"name": "late"})).await;
    assert_eq!((deleted.status, &deleted.body["code"]), (400, &json!(9)), "{}", deleted.body);
    // Nor is it answered as if what it asks for had been done.
    let as_it_was = api.try_update(id_of(&cron), &json!({"name": cron["name"]})).await;
    assert_eq!((as_it_was.status, &as_it_was.body["code"]), (400, &json!(9)), "{}", as_it_was.body);
}

#[tokio::test]
async fn a_lost_update_is_refused_by_its_etag() {
    let world = World::start("update_etag", gateway()).await;
    let api = world.api();
    let job = api.create("cron", &cron()).await;
    let id = id_of(&job);
    let second = api.update(id, &json!({"name": "second", "etag": job["etag"]})).await;
    assert_eq!(second["etag"], json!("\"2\""));
    let path = format!("/jobs/{id}");
    let by_header = |etag: &'static str| {
        let (api, path) = (api.clone(), path.clone());
        async move { api.ask_with("if-match", etag, Method::PATCH, &path, &json!({"name": "third"})).await }
    };
    let lost = [api.try_update(id, &json!({"name": "third", "etag": job["etag"]})).await, by_header("\"1\"").await];
    for lost in lost {
        assert_eq!((lost.status, &lost.body["code"]), (409, &json!(10)), "{}", lost.body);
        assert!(lost.body["details"].to_string().contains("SUPERSEDED"), "{}", lost.body);
    }
    assert_eq!(api.job(id).await, second);
    assert_eq!(by_header("\"2\"").await.body["name"], json!("third"));
    assert_eq!(by_header("*").await.status, 200);
    let schedule = json!({"schedule": "0 3 * * *", "etag": "\"2\""});
    assert_eq!(api.ask(Method::PUT, &format!("{path}/schedule"), Some(&schedule)).await.status, 409);
    // Many at once, none of which names a version: none is lost.
    let many = (0..8).map(|n| {
        let (api, change) = (api.clone(), json!({format!("{}", ["description", "queue"][n % 2]): format!("v{n}")}));
        tokio::spawn(async move { api.try_update(id, &change).await.status })
    });
    let mut statuses = Vec::new();
    for asked in many.collect::<Vec<_>>() {
        statuses.push(asked.await.expect("it is answered"));
    }
    let changed = statuses.iter().filter(|status| **status == 200).count();
    assert!(changed > 0 && statuses.iter().all(|status| [200, 409].contains(status)), "{statuses:?}");
    assert_eq!(api.job(id).await["revision"], json!(3 + changed));
}

/// Who names no version does not mean one: of many at once each gets through, and each is a revision.
#[tokio::test]
async fn many_changes_at_once_without_an_etag_are_all_made() {
    const MANY: i64 = 24;
    let world = World::start("update_many", gateway()).await;
    let job = id_of(&world.api().create("cron", &cron()).await);
    let mut changes = JoinSet::new();
    for n in 0..MANY {
        let api = world.api();
        changes.spawn(async move { api.try_update(job, &json!({"name": format!("name {n}")})).await.status });
    }
    let answers = changes.join_all().await;
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    assert_eq!(world.api().job(job).await["revision"], 1 + MANY);
}

#[tokio::test]
async fn a_schedule_of_its_own_call_and_what_only_validates() {
    let world = World::start("update_schedule", gateway()).await;
    let api = world.api();
    let job = api.create("cron", &cron()).await;
    let id = id_of(&job);
    let path = format!("/jobs/{id}?validate_only=true");
    let shown = api.ask(Method::PATCH, &path, Some(&json!({"schedule": "30 4 * * *"}))).await.body;
    assert_eq!((&shown["schedule"], &shown["revision"]), (&json!("30 4 * * *"), &json!(2)), "{shown}");
    assert_ne!(shown["next_run"], job["next_run"]);
    assert_eq!(api.job(id).await, job, "nothing is written");
    let path = format!("/jobs/{id}/schedule");
    let answer = api.ask(Method::PUT, &path, Some(&json!({"schedule": "30 4 * * *", "updated_by": "bob"}))).await;
    assert_eq!((answer.status, &answer.body["next_run"]), (200, &shown["next_run"]), "{}", answer.body);
    for (schedule, status) in [("nonsense", 400), ("", 400), ("0 0 30 2 *", 400), ("@daily", 200)] {
        let answer = api.ask(Method::PUT, &path, Some(&json!({"schedule": schedule}))).await;
        assert_eq!(answer.status, status, "{schedule}: {}", answer.body);
        assert!(status == 200 || answer.wrong_fields() == ["schedule"], "{}", answer.body);
    }
    let interval = api.create("recurring", &json!({"name": "n", "handler_name": "a:b", "interval": "1h"})).await;
    let path = format!("/jobs/{}/schedule", id_of(&interval));
    let refused = api.ask(Method::PUT, &path, Some(&json!({"schedule": "@daily"}))).await;
    assert_eq!(refused.wrong_fields(), ["schedule"]);
}

/// It looked at the fields alone: what only the job's state decides was told otherwise than it came.
#[tokio::test]
async fn what_only_validates_answers_as_the_change_does() {
    let world = World::start("update_validated", gateway().set("CARILLON_GATEWAY_QUEUES_MAX", "1")).await;
    let api = world.api();
    let spent =
        "WITH timer AS (UPDATE job_timers SET claimed_count = 5, fire_at = NULL, exhausted = true WHERE job_id = $1)
                 UPDATE jobs SET status = 'COMPLETED', completed_at = now() WHERE id = $1";
    let once = json!({"name": "n", "execute_at": rfc3339(Utc::now() + TimeDelta::days(1)), "handler_name": "a:b"});
    let later = rfc3339(Utc::now() + TimeDelta::days(2));
    let over = "UPDATE job_timers SET claimed_count = 5, fire_at = NULL, exhausted = true WHERE job_id = $1";
    for (kind, body, state, change, status) in [
        ("cron", cron(), "", json!({"schedule": "30 4 * * *"}), 200),
        ("cron", cron(), "pause", json!({"schedule": "30 4 * * *", "name": "m"}), 200),
        ("cron", cron(), over, json!({"max_executions": 9}), 200),
        ("once", once.clone(), spent, json!({"execute_at": later}), 200),
        ("cron", cron(), "delete", json!({"name": "m"}), 400),
        ("cron", cron(), "", json!({"queue": "one-too-many"}), 429),
        ("cron", cron(), "", json!({"etag": "\"7\"", "name": "m"}), 409),
    ] {
        let id = id_of(&api.create(kind, &body).await);
        let path = format!("/jobs/{id}");
        match state {
            "" => {}
            "pause" => assert_eq!(api.post(&format!("{path}/pause"), &json!({})).await.status, 200),
            "delete" => assert_eq!(api.ask(Method::DELETE, &path, None).await.status, 204),
            sql => drop(sqlx::query(sql).bind(id).execute(&world.pool).await.expect("it is so")),
        }
        let before = api.job(id).await;
        let mut validated = api.ask(Method::PATCH, &format!("{path}?validate_only=true"), Some(&change)).await;
        assert_eq!(api.job(id).await, before, "{change}: nothing is written");
        let mut changed = api.ask(Method::PATCH, &path, Some(&change)).await;
        assert_eq!(changed.status, status, "{change}: {}", changed.body);
        for answer in [&mut validated.body, &mut changed.body] {
            answer["updated_at"] = Value::Null;
            // Of a refusal, the id of its request.
            if let Some(details) = answer["details"].as_array_mut() {
                details.retain(|detail| detail["request_id"].is_null());
            }
        }
        assert_eq!((validated.status, validated.body), (changed.status, changed.body), "{change} {state}");
    }
}

/// What is not changed of when it fires goes on from where it is.
#[tokio::test]
async fn an_interval_that_stays_goes_on_from_its_anchor() {
    let world = World::start("update_anchor", gateway()).await;
    let api = world.api();
    for body in [json!({"interval": "1h"}), json!({"schedules": ["@every 1h", "0 0 1 1 *"]})] {
        let mut body = body;
        body["name"] = json!("n");
        body["handler_name"] = json!("a:b");
        let made = api.post("/jobs", &body).await.body;
        let id = id_of(&made);
        let mut next = made["next_run"].clone();
        for change in [
            json!({"end_date": "2099-01-01T00:00:00Z"}),
            json!({"timezone": "Asia/Tokyo"}),
            json!({"exclusions": [{"cron": "* * 29 2 *"}]}),
        ] {
            assert_eq!(api.update(id, &change).await["next_run"], next, "{change}");
        }
        if body["interval"].is_string() {
            next = api.update(id, &json!({"interval": "30m"})).await["next_run"].clone();
            let until = instant(&next) - Utc::now();
            assert!((TimeDelta::minutes(29)..=TimeDelta::minutes(30)).contains(&until), "half an hour from the change");
            assert_eq!(api.update(id, &json!({"end_date": null})).await["next_run"], next);
        }
        let start = rfc3339(Utc::now() + TimeDelta::minutes(7));
        let started = api.update(id, &json!({"start_date": start})).await;
        assert_eq!(started["next_run"], started["start_date"]);
    }
}
