//! The gateway as a whole, in this process, on a port of its own: what only shows with a real listener and real
//! neighbours. The API's behaviour is tested where it lives, and end to end through the binaries in `integration-tests`.

mod bad_input;
mod failing;
mod fuzz;
mod gateway;
mod headers;
mod input;
mod large;
mod places;
mod routes;
mod transport;
mod web;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_proto::v1;
use carillon_proto::v1::execution_service_client::ExecutionServiceClient;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_proto::v1::schedule_service_client::ScheduleServiceClient;
use carillon_testkit::{Database, Postgres, Redis, StopMode, wait_until};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt as _;

use crate::gateway::{Gateway, LIMIT};

fn cleanup() -> Value {
    json!({"name": "Daily Cleanup", "schedule": "0 2 * * *", "handler_name": "cleanup:old_traces",
           "payload": {"retention_days": 30}, "created_by": "admin"})
}

/// It was refused as another request: whether it is done or only looked at is no part of what it asks for.
#[tokio::test]
async fn a_request_that_was_done_answers_as_it_did_where_it_is_only_validated() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let (_, created) = gateway.post("/jobs?request_id=r", &cleanup()).await?;
    let (status, validated) = gateway.post("/jobs?request_id=r&validate_only=true", &cleanup()).await?;
    assert_eq!((status, &validated["id"]), (StatusCode::CREATED, &created["id"]), "{validated}");
    let many = |validate_only: bool| json!({"request_id": "m", "jobs": [cleanup()], "validate_only": validate_only});
    let (_, validated) = gateway.post("/jobs/batch-create", &many(true)).await?;
    assert_eq!(validated["results"][0]["id"], "", "{validated}");
    let (_, created) = gateway.post("/jobs/batch-create", &many(false)).await?;
    assert_ne!(created["results"][0]["id"], "", "what only validates leaves no key: {created}");
    assert_eq!(gateway.post("/jobs/batch-create", &many(true)).await?.1, created);
    let mut other = cleanup();
    other["name"] = json!("other");
    let (status, refused) = gateway.post("/jobs?request_id=r&validate_only=true", &other).await?;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    gateway.stop().await
}

/// What is created over JSON reads back over gRPC, and the other way round; both refuse in the same words.
#[tokio::test]
async fn grpc_and_json_are_one_api_on_one_port() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let mut jobs = JobServiceClient::new(gateway.channel().await?);

    let (status, created) = gateway.post("/jobs/cron", &cleanup()).await?;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let id = created["id"].as_str().context("no id")?.to_owned();
    let job = jobs.get_job(v1::GetJobRequest { id: id.clone() }).await?.into_inner();
    assert_eq!((job.name.as_str(), job.priority()), ("Daily Cleanup", v1::Priority::Medium));

    let job = v1::Job {
        name: "Beat".into(),
        interval: "90s".into(),
        handler_name: "health:check".into(),
        ..v1::Job::default()
    };
    let request = v1::CreateJobRequest { request_id: "r1".into(), ..job.into() };
    let beat = jobs.create_recurring_job(request).await?.into_inner();
    let body = json!({"name": "Beat", "interval": "90s", "handlerName": "health:check"});
    let (_, again) = gateway.post("/jobs/recurring?requestId=r1", &body).await?;
    assert_eq!(again["id"], beat.id, "the same request over JSON has the same fingerprint");
    let (status, read) = gateway.get(&format!("/jobs/{}", beat.id)).await?;
    assert_eq!((status, &read["interval"], &read["type"]), (StatusCode::OK, &json!("90s"), &json!("RECURRING")));

    let execution =
        jobs.trigger_job(v1::TriggerJobRequest { id: id.clone(), ..v1::TriggerJobRequest::default() }).await?;
    let execution = execution.into_inner();
    let (_, list) = gateway.get(&format!("/jobs/{id}/executions?status=pending")).await?;
    assert_eq!(list["executions"][0]["id"], execution.id);
    let mut executions = ExecutionServiceClient::new(gateway.channel().await?);
    let unknown = executions.get_execution(v1::GetExecutionRequest { id: id.clone() }).await;
    assert_eq!(unknown.map_err(|status| status.code()).err(), Some(Code::NotFound));

    let refused = jobs.create_cron_job(v1::CreateJobRequest::default()).await.err().context("accepted")?;
    let (status, body) = gateway.post("/jobs/cron", &json!({})).await?;
    assert_eq!((status, &body["message"]), (StatusCode::BAD_REQUEST, &json!(refused.message())));
    gateway.stop().await
}

/// Lists of schedules and exclusions, over JSON and gRPC, written to Postgres and shown again; and what only the database's
/// clock can tell.
#[tokio::test]
async fn a_timetable_is_kept_as_it_was_written() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let body = json!({"name": "Report", "handler_name": "reports:generate", "timezone": "Europe/Berlin",
        "schedules": ["@every 90000ms", "0 9 * * MON"], "dst_gap": "skip", "dst_overlap": "BOTH",
        "exclusions": [{"date": "2026-12-24"}, {"from": "2026-12-30", "to": "2027-01-02", "timezone": "Asia/Tokyo"},
                       {"cron": "* 0-5 1 1 *"}]});
    let (status, created) = gateway.post("/jobs/cron", &body).await?;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let exclusion = |date: Value, from: Value, to: Value, cron: Value, timezone: Value| {
        json!({"date": date, "from": from,
        "to": to, "cron": cron, "timezone": timezone})
    };
    let none = || Value::Null;
    let exclusions = json!([
        exclusion("2026-12-24".into(), none(), none(), none(), none()),
        exclusion(none(), "2026-12-30".into(), "2027-01-02".into(), none(), "Asia/Tokyo".into()),
        exclusion(none(), none(), none(), "* 0-5 1 1 *".into(), none()),
    ]);
    let id = created["id"].as_str().context("no id")?;
    for job in [&created, &gateway.get(&format!("/jobs/{id}")).await?.1, &gateway.get("/jobs").await?.1["jobs"][0]] {
        assert_eq!(
            (&job["schedule"], &job["schedules"], &job["exclusions"]),
            (&json!(""), &body["schedules"], &exclusions)
        );
        assert_eq!((&job["dst_gap"], &job["dst_overlap"]), (&json!("SKIP"), &json!("BOTH")));
    }
    // What a job shows, a job can be made of.
    assert_eq!(gateway.post("/jobs/cron", &created).await?.0, StatusCode::CREATED);

    let mut jobs = JobServiceClient::new(gateway.channel().await?);
    let nights = v1::Exclusion { cron: Some("* 0-5 * * *".into()), ..v1::Exclusion::default() };
    let recurring = v1::Job {
        name: "Beat".into(),
        interval: "90s".into(),
        handler_name: "health:check".into(),
        exclusions: vec![nights.clone()],
        ..v1::Job::default()
    };
    let beat = jobs.create_recurring_job(v1::CreateJobRequest::from(recurring)).await?.into_inner();
    assert_eq!((beat.exclusions, beat.schedules, beat.dst_gap), (vec![nights], vec![], None));

    let past = json!({"name": "n", "handler_name": "a:b", "schedules": ["0 0 9 1 1 ? 2020"]});
    let (status, refused) = gateway.post("/jobs/cron", &past).await?;
    let message = refused["message"].as_str().unwrap_or_default();
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
    assert!(message.starts_with("schedules[0]: has no fire after 2"), "{refused}");
    assert!(message.ends_with("its last was 2020-01-01T09:00:00Z"), "{refused}");

    let preview = json!({"schedule": "* * * * *", "count": 2});
    let (status, shown) = gateway.post("/schedules/preview", &preview).await?;
    assert_eq!((status, shown["fires"].as_array().map(Vec::len)), (StatusCode::OK, Some(2)), "by the database's clock");
    let mut schedules = ScheduleServiceClient::new(gateway.channel().await?);
    let request = v1::PreviewScheduleRequest {
        schedules: vec!["@hourly".into()],
        exclusions: vec![v1::Exclusion { date: Some("2026-12-01".into()), ..v1::Exclusion::default() }],
        from: Some("2026-12-01T00:00:00Z".parse()?),
        count: Some(1),
        ..v1::PreviewScheduleRequest::default()
    };
    let shown = schedules.preview_schedule(request).await?.into_inner();
    assert_eq!(shown.details[0].local_time, "2026-12-02T00:00:00+00:00");
    gateway.stop().await
}

#[tokio::test]
async fn health_reflection_and_grpc_web_are_on() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let channel = gateway.channel().await?;
    wait_until("the health service says SERVING", LIMIT, async || -> Result<()> {
        let request = HealthCheckRequest { service: "carillon.v1.JobService".into() };
        let answer = HealthClient::new(channel.clone()).check(request).await?.into_inner();
        ensure!(answer.status == 1, "{answer:?}");
        Ok(())
    })
    .await?;

    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(question))
        .await?
        .into_inner();
    let answer = answers.message().await?.and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { anyhow::bail!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in [
        "carillon.v1.JobService",
        "carillon.v1.ExecutionService",
        "carillon.v1.ScheduleService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name.to_owned()), "{name} of {names:?}");
    }

    let request = HealthCheckRequest { service: "carillon.v1.NoService".into() };
    let refused = HealthClient::new(channel.clone()).check(request).await.err().context("known")?;
    let reason = refused.get_details_error_info().map(|info| info.reason);
    assert_eq!((refused.code(), reason.as_deref()), (Code::NotFound, Some("NOT_FOUND")), "{refused}");
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol("carillon.v1.NoService".into())),
    };
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(question)).await?.into_inner();
    let refused = answers.message().await.err().context("known")?;
    let reason = refused.get_details_error_info().map(|info| info.reason);
    assert_eq!((refused.code(), reason.as_deref()), (Code::NotFound, Some("NOT_FOUND")), "{refused}");

    let response = gateway
        .http
        .post(format!("http://{}/carillon.v1.JobService/ListJobs", gateway.address))
        .header("content-type", "application/grpc-web+proto")
        .body(vec![0_u8; 5])
        .send()
        .await?;
    assert_eq!((response.status(), response.version()), (StatusCode::OK, reqwest::Version::HTTP_11));
    let bytes = response.bytes().await?;
    assert!(String::from_utf8_lossy(&bytes).contains("grpc-status:0"), "{bytes:?}");
    gateway.stop().await
}

/// Postgres is not there yet, comes, hangs, goes and comes back: the gateway stays, and says what it can.
#[tokio::test]
async fn without_postgres_the_answer_is_503_and_later_all_is_well() -> Result<()> {
    let (postgres, redis) = (Postgres::start(&[]).await?, Redis::start().await?);
    postgres.stop(StopMode::Fast);
    let gateway = Gateway::start_waiting(postgres.database().url(), &redis.url(), Duration::from_millis(500)).await?;
    for path in ["/jobs", "/jobs/01a3185c-5000-8a28-b6b7-19d8e4ba20a5"] {
        let response = gateway.http.get(gateway.url(path)).send().await?;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        let body: Value = response.json().await?;
        assert_eq!((&body["code"], &body["details"][0]["retry_delay"]), (&json!(14), &json!("1s")), "{body}");
    }
    let (status, _) = gateway.post("/jobs/cron", &json!({"nmae": 1})).await?;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a wrong request is wrong without Postgres too");

    postgres.start_again()?;
    works(&gateway).await?;
    postgres.stop(StopMode::Immediate);
    assert_eq!(gateway.post("/jobs/cron", &cleanup()).await?.0, StatusCode::SERVICE_UNAVAILABLE);
    postgres.start_again()?;
    works(&gateway).await?;
    gateway.stop().await
}

async fn works(gateway: &Gateway) -> Result<()> {
    wait_until("a job can be created", LIMIT, async || -> Result<()> {
        let (status, body) = gateway.post("/jobs/cron", &cleanup()).await?;
        ensure!(status == StatusCode::CREATED, "{status} {body}");
        Ok(())
    })
    .await
}

/// Redis only carries word: without it every call works, at most a little later.
#[tokio::test]
async fn without_redis_everything_works() -> Result<()> {
    let database = Database::new().await?;
    let gateway = Gateway::start(database.url(), "redis://127.0.0.1:1").await?;
    let began = Instant::now();
    let (status, created) = gateway.post("/jobs/cron", &cleanup()).await?;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let id = created["id"].as_str().context("no id")?;
    for call in ["trigger", "pause", "resume"] {
        assert_eq!(gateway.post(&format!("/jobs/{id}/{call}"), &json!({})).await?.0, StatusCode::OK, "{call}");
    }
    let deleted = gateway.http.delete(gateway.url(&format!("/jobs/{id}"))).send().await?;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    gateway.stop().await
}

/// A stop lets a request in flight end, closes idle connections and takes no new ones.
#[tokio::test]
async fn a_stop_is_graceful() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let _idle_http2 = gateway.channel().await?;
    let _idle_http1 = tokio::net::TcpStream::connect(gateway.address).await?;
    assert_eq!(gateway.get("/jobs").await?.0, StatusCode::OK);

    // Half a request: "100 Continue" says that the gateway is waiting for the rest.
    let body = cleanup().to_string();
    let mut in_flight = tokio::net::TcpStream::connect(gateway.address).await?;
    let head = format!(
        "POST /api/v1/scheduler/jobs/cron HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    in_flight.write_all(head.as_bytes()).await?;
    let mut buffer = [0; 512];
    let read = tokio::time::timeout(LIMIT, in_flight.read(&mut buffer)).await??;
    assert!(buffer[..read].starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&buffer[..read]));

    let address = gateway.address;
    let stopping = tokio::spawn(gateway.stop());
    wait_until("the port is closed", LIMIT, async || -> Result<()> {
        ensure!(tokio::net::TcpStream::connect(address).await.is_err(), "still open");
        Ok(())
    })
    .await?;
    in_flight.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, in_flight.read_to_end(&mut answer)).await??;
    assert!(answer.starts_with(b"HTTP/1.1 201"), "{}", String::from_utf8_lossy(&answer));
    stopping.await?
}
