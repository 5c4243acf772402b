//! Lists over the API: by any field, page by page, and what is refused of that.

use serde_json::{Value, json};

use crate::api::{Api, id_of};
use crate::world::{Plan, World};

/// All pages behind a path, of `limit` each.
pub(crate) async fn pages(api: &Api, path: &str, field: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let sign = if path.contains('?') { '&' } else { '?' };
        let page = api.get(&format!("{path}{sign}limit={limit}&page_token={token}")).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let items = page.body[field].as_array().cloned().expect("a list");
        assert!(items.len() <= limit);
        all.extend(items);
        token = page.body["next_page_token"].as_str().expect("a text").to_owned();
        assert_eq!(page.body["has_more"], json!(!token.is_empty()));
        if token.is_empty() {
            return all;
        }
    }
}

fn names(jobs: &[Value]) -> Vec<&str> {
    jobs.iter().map(|job| job["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn jobs_are_listed_by_any_field_page_by_page() {
    let world = World::start("lists_jobs", Plan { dispatchers: 0, executors: 0, ..Plan::default() }).await;
    let api = world.api();
    let mut wanted = Vec::new();
    for n in 0..7 {
        let tags = if n % 2 == 0 { json!(["even"]) } else { json!([]) };
        let body = json!({
            "name": format!("job {n}"), "schedule": "@daily", "handler_name": "a:b", "tags": tags, "queue": format!("q{n}"),
            "priority": "high", "platform_id": "p",
        });
        wanted.insert(0, api.create("cron", &body).await);
    }
    for limit in [1, 2, 3, 7, 50] {
        let listed = pages(&api, "/jobs", "jobs", limit).await;
        assert_eq!(listed, wanted, "{limit}");
    }
    let even = pages(&api, "/jobs?tag=even&priority=high&platform_id=p&name=JOB&handler_name=a:b", "jobs", 2).await;
    assert_eq!(names(&even), ["job 6", "job 4", "job 2", "job 0"]);
    assert_eq!(names(&pages(&api, "/jobs?queue=q3", "jobs", 2).await), ["job 3"]);
    let from = wanted[2]["created_at"].as_str().expect("an instant");
    assert_eq!(
        names(&pages(&api, &format!("/jobs?created_from={from}"), "jobs", 9).await),
        ["job 6", "job 5", "job 4"]
    );
    let mut oldest = wanted.clone();
    oldest.reverse();
    assert_eq!(pages(&api, "/jobs?order_by=created_at&show_total_size=true", "jobs", 3).await, oldest);
    let next = pages(&api, "/jobs?order_by=next_run%20desc&tag=even", "jobs", 1).await;
    assert_eq!(names(&next), ["job 6", "job 4", "job 2", "job 0"], "of one instant by their ids");
    let total = api.get("/jobs?limit=2&show_total_size=true").await.body;
    assert_eq!((&total["total_size"], &total["total_size_is_lower_bound"]), (&json!(7), &json!(false)));
    assert_eq!(api.get("/jobs?limit=2").await.body["total_size"], Value::Null);

    // A page that is not the first is what it was, whatever was created or deleted since.
    let first = api.get("/jobs?limit=3").await.body;
    api.create("cron", &json!({"name": "late", "schedule": "@daily", "handler_name": "a:b"})).await;
    let token = first["next_page_token"].as_str().expect("a token").to_owned();
    let second = api.get(&format!("/jobs?limit=3&page_token={token}")).await.body;
    assert_eq!(second["jobs"], json!(wanted[3..6]));

    for (path, field) in [
        (format!("/jobs?tag=even&page_token={token}"), "page_token"),
        (format!("/jobs?order_by=created_at&page_token={token}"), "page_token"),
        ("/jobs?order_by=name".to_owned(), "order_by"),
        ("/executions?order_by=duration_ms".to_owned(), "order_by"),
        ("/executions?order_by=completed_at&scheduled_from=2026-01-01T00:00:00Z&scheduled_before=2026-01-02T00:00:01Z".to_owned(), "order_by"),
        (format!("/jobs?offset=1&page_token={token}"), "offset"),
        ("/jobs?page_token=nonsense".to_owned(), "page_token"),
        ("/jobs?offset=10001".to_owned(), "offset"),
        ("/jobs?limit=0".to_owned(), "limit"),
        ("/jobs?created_from=yesterday".to_owned(), "created_from"),
        ("/jobs?priority=urgent".to_owned(), "priority"),
        ("/jobs?colour=red".to_owned(), "colour"),
        (format!("/jobs?tag={}", "x".repeat(201)), "tag"),
        ("/executions?job_id=7".to_owned(), "job_id"),
        ("/executions?worker_id=7".to_owned(), "worker_id"),
        (format!("/executions?page_token={token}"), "page_token"),
        ("/executions?fingerprint=0123456789ABCDEF".to_owned(), "fingerprint"),
    ] {
        let refused = api.get(&path).await;
        assert_eq!((refused.status, refused.wrong_fields()), (400, vec![field.to_owned()]), "{path}: {}", refused.body);
    }
}

#[tokio::test]
async fn executions_of_all_jobs_are_listed_by_any_field() {
    let mut world = World::start("lists_executions", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let api = world.api();
    let mut ids = Vec::new();
    for (name, handler, settings) in [
        ("good", "test:echo", json!({"tags": ["calm"]})),
        ("bad", "test:fail", json!({"max_retries": 0, "platform_id": "p", "payload": {"message": "no such host"}})),
    ] {
        let mut body = json!({"name": name, "schedule": "0 0 1 1 *", "handler_name": handler, "allow_overlap": true});
        for (field, value) in settings.as_object().expect("an object") {
            body[field] = value.clone();
        }
        let job = id_of(&api.create("cron", &body).await);
        for _ in 0..3 {
            let execution = api.trigger(job, &json!({})).await;
            world.triggered.insert(execution);
            api.execution_in(execution, &["SUCCESS", "FAILED"]).await;
            ids.insert(0, json!(execution));
        }
    }
    let listed = async |query: &str| -> Vec<Value> {
        let listed = pages(&api, &format!("/executions{query}"), "executions", 2).await;
        listed.into_iter().map(|execution| execution["id"].clone()).collect()
    };
    assert_eq!(listed("").await, ids);
    for bad in ["?status=failed", "?handler_name=test:fail", "?platform_id=p", "?error=such%20host&status=FAILED"] {
        assert_eq!(listed(bad).await, ids[..3], "{bad}");
    }
    let fault =
        api.execution(ids[0].as_str().and_then(|id| id.parse().ok()).expect("an id")).await["fingerprint"].clone();
    let fault = fault.as_str().expect("what it has in common with the others").to_owned();
    assert_eq!(listed(&format!("?fingerprint={fault}&handler_name=test:fail")).await, ids[..3]);
    assert!(listed(&format!("?fingerprint={fault}&status=timeout")).await.is_empty());
    for good in ["?status=success", "?tag=calm", "?handler_name=test:echo&queue=default"] {
        assert_eq!(listed(good).await, ids[3..], "{good}");
    }
    let one = api.execution(ids[5].as_str().and_then(|id| id.parse().ok()).expect("an id")).await;
    let (job, worker) = (one["job_id"].as_str().expect("an id"), one["worker_id"].as_str().expect("an id"));
    assert_eq!(listed(&format!("?job_id={job}")).await, ids[3..]);
    assert_eq!(listed(&format!("?worker_id={worker}")).await, ids);
    let ended = one["completed_at"].as_str().expect("an instant");
    assert_eq!(listed(&format!("?completed_from={ended}")).await, ids);
    assert_eq!(listed(&format!("?completed_before={ended}")).await, ids[6..]);
    let of_job = pages(&api, &format!("/jobs/{job}/executions?status=success"), "executions", 2).await;
    assert_eq!(of_job.len(), 3);
    let mut by_end = listed(&format!("?job_id={job}&order_by=completed_at")).await;
    by_end.reverse();
    assert_eq!(by_end, ids[3..]);
    assert_eq!(api.get("/executions?job_id=00000000-0000-0000-0000-000000000000").await.status, 404);
}
