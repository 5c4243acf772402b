//! What is known of a request that failed: its id, to whoever asked and in the log; and how it is counted.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use carillon_proto::v1;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_testkit::{Database, Redis, wait_until};
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tonic::Request;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::gateway::{Gateway, LIMIT};
use crate::transport::reason;

const ID: &str = "ticket-4711";

/// The id that an error says over JSON.
fn id_of(error: &Value) -> &str {
    let details = error["details"].as_array().map(Vec::as_slice).unwrap_or_default();
    let info = details.iter().find(|detail| detail["@type"] == "type.googleapis.com/google.rpc.RequestInfo");
    info.and_then(|info| info["request_id"].as_str()).unwrap_or_default()
}

#[tokio::test]
async fn an_error_says_the_id_of_its_request() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let missing = format!("/jobs/{}", Uuid::nil());
    for path in [missing.as_str(), "/nothing", "/jobs?limit=none"] {
        let refused = gateway.http.get(gateway.url(path)).header("x-request-id", ID).send().await?;
        let error: Value = refused.json().await?;
        assert_eq!(id_of(&error), ID, "{error}");
        assert!(!reason(&error).is_empty(), "nothing else is lost: {error}");
        let refused = gateway.http.get(gateway.url(path)).send().await?;
        let made = refused.headers()["x-request-id"].to_str()?.to_owned();
        assert_eq!(id_of(&refused.json().await?), made, "one that was made");
    }
    let mut jobs = JobServiceClient::new(gateway.channel().await?);
    let mut request = Request::new(v1::GetJobRequest { id: Uuid::nil().to_string() });
    request.metadata_mut().insert("x-request-id", ID.parse()?);
    let refused = jobs.get_job(request).await.err().context("found")?;
    let details = refused.get_error_details();
    assert_eq!(details.request_info().map(|info| info.request_id.as_str()), Some(ID));
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("NOT_FOUND"), "nothing else is lost");
    assert!(details.resource_info().is_some());
    // Each by itself, in one answer: their request has one id, and is in the answer's head.
    let each = json!({"jobs": [{}], "allow_partial_success": true});
    let (status, answer) = gateway.post("/jobs/batch-create", &each).await?;
    assert_eq!((status, id_of(&answer["results"][0]["status"])), (StatusCode::OK, ""), "{answer}");
    gateway.stop().await
}

/// All that is logged, by whatever test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_is_logged_of_a_request_says_its_id() -> Result<()> {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::WARN);
    let subscriber = subscriber.with_writer(move || writer.clone()).finish();
    // For all threads: what a span is worth is decided once for all of them.
    tracing::subscriber::set_global_default(subscriber)?;
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let pool = database.pool().await?;
    let mut stranger = pool.begin().await?;
    sqlx::query("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *stranger).await?;
    let job = gateway.url(&format!("/jobs/{}", Uuid::nil()));
    let refused = gateway.http.get(job).header("x-request-id", ID).send().await?;
    let error: Value = refused.json().await?;
    assert_eq!(reason(&error), "POSTGRES_BUSY", "{error}");
    stranger.rollback().await?;
    let text = log.text();
    let says_both =
        |line: &str| line.contains("somebody else's lock") && line.contains(&format!("request.id=\"{ID}\""));
    assert!(text.lines().any(says_both), "{text}");
    gateway.stop().await
}

/// Postgres lets nobody read for now, and the client gives up first.
#[tokio::test]
async fn a_call_that_its_client_gives_up_is_counted_as_such() -> Result<()> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let jobs = JobServiceClient::new(gateway.channel().await?);
    let pool = database.pool().await?;
    let mut stranger = pool.begin().await?;
    sqlx::query("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *stranger).await?;
    let count = |method: &str, code: &str| {
        let series = format!("carillon_gateway_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        recorder.handle().render().contains(&series)
    };
    let patience = Duration::from_millis(200);
    wait_until("it is counted over gRPC and JSON", LIMIT, async || -> Result<()> {
        let mut jobs = jobs.clone();
        let get = jobs.get_job(v1::GetJobRequest { id: Uuid::nil().to_string() });
        ensure!(tokio::time::timeout(patience, get).await.is_err(), "answered");
        let list = gateway.http.get(gateway.url("/jobs")).send();
        ensure!(tokio::time::timeout(patience, list).await.is_err(), "answered");
        ensure!(count("GetJob", "CANCELLED") && count("ListJobs", "CANCELLED"), "{}", recorder.handle().render());
        Ok(())
    })
    .await?;
    assert!(!count("GetJob", "OK") && !count("ListJobs", "OK"));
    stranger.rollback().await?;
    // What no service has seen is counted too; what nobody knows has no name of its own.
    let call = |name: &str| format!("http://{}/carillon.v1.JobService/{name}", gateway.address);
    for name in ["GetJob", "Nonsense"] {
        let request = gateway.http.post(call(name)).header("content-type", "application/grpc-web");
        request.body(b"\0\0\0\0\x01\x07".to_vec()).send().await?;
    }
    let text = recorder.handle().render();
    assert!(count("GetJob", "INVALID_ARGUMENT") && count("none", "UNIMPLEMENTED"), "{text}");
    gateway.stop().await
}
