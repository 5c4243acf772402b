//! What is taken in, and kept as it was meant.

use anyhow::{Context, Result};
use carillon_testkit::{Database, Redis};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::cleanup;
use crate::gateway::Gateway;
use crate::routes::{self, Refusal};
use crate::transport::packed;

/// Nothing has it.
const NO_ID: &str = "01a3185c-5000-8a28-b6b7-19d8e4ba20a5";

/// Every instant is cut to the millisecond, also where 64 bits of nanoseconds end (1677 and 2262).
#[tokio::test]
async fn instants_of_all_years_are_kept_to_the_millisecond() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let pool = database.pool().await?;
    for (given, shown) in [
        ("1600-02-29T23:59:59.999999999Z", "1600-02-29T23:59:59.999Z"),
        ("2024-01-01T00:00:00.000999Z", "2024-01-01T00:00:00Z"),
    ] {
        let mut job = cleanup();
        job["start_date"] = json!(given);
        let (status, created) = gateway.post("/jobs/cron", &job).await?;
        assert_eq!((status, &created["start_date"]), (StatusCode::CREATED, &json!(shown)), "{created}");
        let (_, read) = gateway.get(&format!("/jobs/{}", created["id"].as_str().context("no id")?)).await?;
        assert_eq!(read["start_date"], shown);
    }
    for (given, shown) in [
        ("2262-04-11T23:47:16.854775807Z", "2262-04-11T23:47:16.854Z"),
        ("2300-01-01T00:00:00.123456789Z", "2300-01-01T00:00:00.123Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999Z"),
    ] {
        let once = json!({"name": "o", "execute_at": given, "handler_name": "a:b"});
        let (status, created) = gateway.post("/jobs/once", &once).await?;
        assert_eq!(
            (status, &created["execute_at"], &created["next_run"]),
            (StatusCode::CREATED, &json!(shown), &json!(shown))
        );
    }
    let finer: i64 =
        sqlx::query_scalar("SELECT count(*) FROM job_timers WHERE extract(microsecond FROM fire_at)::int % 1000 <> 0")
            .fetch_one(&pool)
            .await?;
    assert_eq!(finer, 0);
    gateway.stop().await
}

/// A tag is a label, not a count; whether it is given when a job is made or when it is changed.
#[tokio::test]
async fn a_tag_that_is_given_twice_is_kept_once() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let mut job = cleanup();
    job["tags"] = json!(["b", "a", "b", "B", "a"]);
    let (_, created) = gateway.post("/jobs/cron", &job).await?;
    assert_eq!(created["tags"], json!(["b", "a", "B"]), "in the order that they came in");
    let path = format!("/jobs/{}", created["id"].as_str().context("no id")?);
    let change = gateway.http.patch(gateway.url(&path)).json(&json!({"tags": ["c", "c"]}));
    let changed: Value = change.send().await?.json().await?;
    assert_eq!((&changed["tags"], &changed["revision"]), (&json!(["c"]), &json!(2)));
    let change = gateway.http.patch(gateway.url(&path)).json(&json!({"tags": ["c", "c", "c"]}));
    let same: Value = change.send().await?.json().await?;
    assert_eq!(same["revision"], 2, "nothing was changed");
    gateway.stop().await
}

/// What could not be read is in no message; it was taken for the same request, and answered with the other one's refusals.
#[tokio::test]
async fn an_idempotency_key_tells_apart_what_cannot_be_read() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let many = |odd: Value| json!({"jobs": [cleanup(), odd], "allow_partial_success": true, "request_id": "r"});
    let (first, other) = (json!({"name": 7, "schedule": "@daily", "handler_name": "a:b"}), json!({"schedule": 5}));
    let (status, answer) = gateway.post("/jobs/batch-create", &many(first.clone())).await?;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(gateway.post("/jobs/batch-create", &many(first)).await?, (status, answer));
    for other in [other, json!(7), json!({"name": 8, "schedule": "@daily", "handler_name": "a:b"})] {
        let (status, refused) = gateway.post("/jobs/batch-create", &many(other)).await?;
        let reason = Refusal::of_json(&refused).reason;
        assert_eq!((status, reason.as_str()), (StatusCode::CONFLICT, "REQUEST_ID_REUSED"), "{refused}");
    }
    gateway.stop().await
}

/// However a request fails over JSON, its answer has an id, to be looked for in the log: the client's, or a new one.
#[tokio::test]
async fn every_failure_over_json_has_an_id() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let post = |body: Vec<u8>| {
        gateway.http.post(gateway.url("/jobs/cron")).header("content-type", "application/json").body(body)
    };
    let unknown = &format!("/jobs/{NO_ID}");
    for (request, status, reason) in [
        (post(b"{".to_vec()), 400, "INVALID_FIELDS"),
        (post(b"\xef\xbb\xbf{}".to_vec()), 400, "INVALID_FIELDS"),
        (post(vec![b' '; 700_000]), 413, "REQUEST_TOO_LARGE"),
        (post(b"{}".to_vec()).header("content-encoding", "br"), 415, "MEDIA_TYPE_UNSUPPORTED"),
        (gateway.http.get(gateway.url("/nothing")), 404, "PATH_UNKNOWN"),
        (gateway.http.get(gateway.url(unknown)), 404, "NOT_FOUND"),
        (gateway.http.put(gateway.url(unknown)), 405, "METHOD_NOT_ALLOWED"),
    ] {
        let made = request.try_clone().context("not to be cloned")?.send().await?;
        assert_eq!(made.headers()["x-request-id"].len(), 36, "{reason}");
        let named = request.header("x-request-id", "mine-7").send().await?;
        assert_eq!(
            (named.status().as_u16(), &named.headers()["x-request-id"]),
            (status, &"mine-7".parse()?),
            "{reason}"
        );
        assert_eq!(Refusal::of_json(&named.json().await?).reason, reason);
    }
    let marked: Value = post(b"\xef\xbb\xbf{}".to_vec()).send().await?.json().await?;
    assert!(marked["message"].as_str().is_some_and(|text| text.contains("byte order mark")), "{marked}");
    gateway.stop().await
}

/// A body that a call does not take is refused as any other: the document says so of each.
#[tokio::test]
async fn whatever_may_be_wrong_with_a_body_is_in_the_document_of_every_call() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let document: Value = gateway.http.get(gateway.url("/openapi.json")).send().await?.json().await?;
    // Above the bound of every call, once it is unpacked.
    let bomb = packed(&vec![b' '; 9_000_000])?;
    for route in routes::all()? {
        let path = route.path.replace("job.id", "id");
        let operation = &document["paths"][format!("/api/v1/scheduler{path}")][route.method.as_str().to_lowercase()];
        let url = gateway.url(&path.replace("{id}", NO_ID).replace("{job_id}", NO_ID));
        let send = || gateway.http.request(route.method.clone(), &url);
        for (request, status) in [
            (send().header("content-encoding", "gzip").body(bomb.clone()), 413),
            (send().header("content-encoding", "br"), 415),
            (send().header("content-type", "application/grpc+json"), 415),
        ] {
            assert_eq!(request.send().await?.status(), status, "{} {path}", route.method);
            assert!(operation["responses"][status.to_string()].is_object(), "{} {path} {status}", route.method);
        }
        // Nobody waits half a minute for it here.
        assert!(operation["responses"]["408"].is_object(), "{} {path}", route.method);
    }
    gateway.stop().await
}
