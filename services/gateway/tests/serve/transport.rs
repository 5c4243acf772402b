//! What every answer goes through: gzip, request ids, CORS, HEAD, deadlines.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_proto::v1;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_testkit::{Database, Redis, wait_until};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tonic::Code;
use tonic::codec::CompressionEncoding::Gzip;
use tonic_types::StatusExt as _;

use crate::cleanup;
use crate::gateway::{Gateway, LIMIT};

pub(crate) fn packed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

async fn post_encoded(gateway: &Gateway, encoding: &str, body: Vec<u8>) -> Result<(StatusCode, Value)> {
    let request = gateway.http.post(gateway.url("/jobs/cron")).header("content-encoding", encoding);
    let response = request.header("content-type", "application/json").body(body).send().await?;
    Ok((response.status(), response.json().await?))
}

pub(crate) fn reason(body: &Value) -> &str {
    let details = body["details"].as_array().map(Vec::as_slice).unwrap_or_default();
    details.iter().find_map(|detail| detail["reason"].as_str()).unwrap_or_default()
}

#[tokio::test]
async fn json_is_packed_by_gzip_both_ways_and_bounded_as_it_is_unpacked() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let body = cleanup().to_string();
    for gzip in ["gzip", "GZIP", "x-gzip"] {
        assert_eq!(post_encoded(&gateway, gzip, packed(body.as_bytes())?).await?.0, StatusCode::CREATED, "{gzip}");
    }
    assert_eq!(post_encoded(&gateway, "identity", body.clone().into_bytes()).await?.0, StatusCode::CREATED);

    // 64 MiB that come as 64 KiB.
    let (status, refused) = post_encoded(&gateway, "gzip", packed(&vec![b' '; 64 * 1024 * 1024])?).await?;
    assert_eq!((status, reason(&refused)), (StatusCode::PAYLOAD_TOO_LARGE, "REQUEST_TOO_LARGE"), "{refused}");
    for encoding in ["br", "gzip, gzip", "gzap"] {
        let (status, refused) = post_encoded(&gateway, encoding, packed(body.as_bytes())?).await?;
        let told = (status, reason(&refused));
        assert_eq!(told, (StatusCode::UNSUPPORTED_MEDIA_TYPE, "MEDIA_TYPE_UNSUPPORTED"), "{encoding}: {refused}");
    }
    let mut half = packed(body.as_bytes())?;
    half.truncate(half.len() / 2);
    for broken in [half, body.clone().into_bytes()] {
        let (status, refused) = post_encoded(&gateway, "gzip", broken).await?;
        assert_eq!((status, reason(&refused)), (StatusCode::BAD_REQUEST, "INVALID_FIELDS"), "{refused}");
    }

    let asking = |path: &str| gateway.http.get(gateway.url(path)).header("accept-encoding", "gzip");
    let long = asking("/jobs").send().await?;
    assert_eq!(long.headers()["content-encoding"], "gzip");
    let bytes = long.bytes().await?;
    let mut text = String::new();
    GzDecoder::new(bytes.as_ref()).read_to_string(&mut text)?;
    let list: Value = serde_json::from_str(&text)?;
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(4));
    let short = asking("/jobs?name=none").send().await?;
    assert!(!short.headers().contains_key("content-encoding"), "not worth it");
    gateway.stop().await
}

#[tokio::test]
async fn grpc_is_packed_by_gzip_both_ways_and_bounded_as_it_is_unpacked() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let client = JobServiceClient::new(gateway.channel().await?);
    let mut client = client.send_compressed(Gzip).accept_compressed(Gzip);
    let named = |name: String| v1::Job {
        name,
        interval: "90s".into(),
        handler_name: "health:check".into(),
        ..v1::Job::default()
    };
    let created = client.create_recurring_job(v1::CreateJobRequest::from(named("Beat".into()))).await?;
    assert_eq!(created.metadata().get("grpc-encoding").map(|encoding| encoding.as_bytes()), Some(b"gzip".as_slice()));
    let bomb = v1::CreateJobRequest::from(named("x".repeat(64 * 1024 * 1024)));
    let refused = client.create_recurring_job(bomb).await.err().context("accepted")?;
    let reason = refused.get_details_error_info().map(|info| info.reason);
    assert_eq!((refused.code(), reason.as_deref()), (Code::InvalidArgument, Some("REQUEST_TOO_LARGE")), "{refused}");
    gateway.stop().await
}

#[tokio::test]
async fn a_request_has_an_id_and_pages_ask_from_where_they_may() -> Result<()> {
    const OURS: &str = "https://console.example";
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let ask = |headers: Vec<(&'static str, &'static str)>| {
        let request = gateway.http.get(gateway.url("/jobs"));
        headers.into_iter().fold(request, |request, (name, value)| request.header(name, value)).send()
    };
    assert_eq!(ask(vec![("x-request-id", "abc-1")]).await?.headers()["x-request-id"], "abc-1");
    for headers in [vec![], vec![("x-request-id", "a b")], vec![("x-request-id", "a"), ("x-request-id", "b")]] {
        let made = ask(headers).await?;
        assert_eq!(made.headers()["x-request-id"].len(), 36, "{:?}", made.headers());
    }
    let refused = gateway.http.get(gateway.url("/nothing")).header("x-request-id", "abc-2").send().await?;
    assert_eq!(refused.headers()["x-request-id"], "abc-2", "an error too");
    let call = format!("http://{}/carillon.v1.JobService/ListJobs", gateway.address);
    let grpc =
        gateway.http.post(call).header("content-type", "application/grpc-web+proto").header("x-request-id", "abc-3");
    assert_eq!(grpc.body(vec![0_u8; 5]).send().await?.headers()["x-request-id"], "abc-3");

    let allowed = ask(vec![("origin", OURS)]).await?;
    assert_eq!(allowed.headers()["access-control-allow-origin"], OURS);
    let shown = allowed.headers()["access-control-expose-headers"].to_str()?;
    assert!(shown.contains("x-request-id") && shown.contains("grpc-status"), "{shown}");
    assert!(
        !ask(vec![("origin", "https://other.example")]).await?.headers().contains_key("access-control-allow-origin")
    );
    let preflight = gateway.http.request(Method::OPTIONS, gateway.url("/jobs/cron"));
    let preflight = preflight.header("origin", OURS).header("access-control-request-method", "POST");
    let preflight = preflight.header("access-control-request-headers", "content-type,idempotency-key").send().await?;
    assert_eq!(preflight.status(), StatusCode::OK);
    assert_eq!(preflight.headers()["access-control-allow-methods"], "POST");
    assert_eq!(preflight.headers()["access-control-allow-headers"], "content-type,idempotency-key");
    gateway.stop().await
}

/// What stands in it is tested where it is made.
#[tokio::test]
async fn the_api_describes_itself_to_programs_and_people() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let at = |path: &str| format!("http://{}{path}", gateway.address);
    let response = gateway.http.get(at("/openapi.json")).send().await?;
    let etag = response.headers()["etag"].clone();
    let document: Value = response.json().await?;
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/api/v1/scheduler/jobs"]["get"].is_object());
    let again = gateway.http.get(at("/openapi.json")).header("if-none-match", &etag).send().await?;
    assert_eq!((again.status(), again.bytes().await?.len()), (StatusCode::NOT_MODIFIED, 0));
    // Also where a proxy lets through what is below the base alone.
    let below = gateway.http.get(gateway.url("/openapi.json")).send().await?;
    assert_eq!(below.json::<Value>().await?, document);
    assert_eq!(gateway.http.get(gateway.url("/docs")).send().await?.status(), StatusCode::OK);
    let page = gateway.http.get(at("/docs")).send().await?;
    let policy = page.headers()["content-security-policy"].to_str()?.to_owned();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("script-src 'sha256-"), "{policy}");
    let page = page.text().await?;
    assert!(page.contains("openapi.json") && !page.contains("http"), "it asks no other host");
    let posted = gateway.http.post(at("/docs")).send().await?;
    assert_eq!((posted.status(), &posted.headers()["allow"]), (StatusCode::METHOD_NOT_ALLOWED, &"GET".parse()?));
    assert_eq!(gateway.http.get(at("/docs/")).send().await?.text().await?, page);
    gateway.stop().await
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build()?;
    for client in [&gateway.http, &http2] {
        let get = client.get(gateway.url("/jobs")).send().await?;
        let head = client.head(gateway.url("/jobs")).send().await?;
        assert_eq!((head.status(), head.version()), (StatusCode::OK, get.version()));
        assert_eq!(head.headers()["content-type"], get.headers()["content-type"]);
        assert_eq!(head.headers()["content-length"], get.headers()["content-length"]);
        assert!(head.bytes().await?.is_empty());
        assert!(!get.bytes().await?.is_empty());
    }
    gateway.stop().await
}

/// Postgres lets nobody read for now: the client is answered when it has said, and the gateway works on.
#[tokio::test]
async fn the_deadline_of_a_request_holds_over_grpc_and_json() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let (_, created) = gateway.post("/jobs/cron", &cleanup()).await?;
    let id = created["id"].as_str().context("no id")?.to_owned();
    let pool = database.pool().await?;
    let mut stranger = pool.begin().await?;
    sqlx::query("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *stranger).await?;
    let began = Instant::now();
    let late = gateway.http.get(gateway.url(&format!("/jobs/{id}"))).header("grpc-timeout", "150m").send().await?;
    let (status, body): (_, Value) = (late.status(), late.json().await?);
    assert_eq!((status, reason(&body)), (StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"), "{body}");
    // By hand, since a client has a clock of its own for it. The message is one text of field 1.
    let length = u8::try_from(id.len())?;
    let message = [&[0, 0, 0, 0, length + 2, 0x0a, length], id.as_bytes()].concat();
    let call = gateway.http.post(format!("http://{}/carillon.v1.JobService/GetJob", gateway.address));
    let call = call.header("content-type", "application/grpc-web+proto").header("grpc-timeout", "150m");
    let late = call.body(message).send().await?;
    assert_eq!(late.headers()["grpc-status"], "4", "{:?}", late.headers());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    stranger.rollback().await?;
    wait_until("it is answered again", LIMIT, async || -> Result<()> {
        let (status, body) = gateway.get(&format!("/jobs/{id}")).await?;
        ensure!(status == StatusCode::OK, "{body}");
        Ok(())
    })
    .await?;
    gateway.stop().await
}
