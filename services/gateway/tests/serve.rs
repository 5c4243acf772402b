//! The gateway as a whole, in this process, on a port of its own: what only shows with a real listener and real
//! neighbours. The API's behaviour is tested where it lives, and end to end through the binaries in `integration-tests`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_gateway::Config;
use carillon_gateway::config::GatewayConfig;
use carillon_kit::Process;
use carillon_kit::config::{PostgresConfig, RedisConfig, SecretUrl};
use carillon_proto::v1;
use carillon_proto::v1::execution_service_client::ExecutionServiceClient;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_testkit::{Database, Postgres, Redis, StopMode, wait_until};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const LIMIT: Duration = Duration::from_secs(30);

struct Gateway {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<Result<()>>,
    http: reqwest::Client,
}

impl Gateway {
    async fn start(postgres: &str, redis: &str) -> Result<Self> {
        // As every binary does first thing: reqwest and sqlx find one TLS provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let config = Config {
            gateway: GatewayConfig {
                listen: address,
                payload_bytes_max: 256 * 1024,
                body_bytes_max: 640 * 1024,
                connections_max: 100,
                requests_max: 100,
                statement_timeout: Duration::from_secs(5),
            },
            postgres: PostgresConfig {
                url: SecretUrl::new(postgres),
                connections_max: 4,
                acquire_timeout: Duration::from_millis(500),
            },
            redis: RedisConfig { url: SecretUrl::new(redis), namespace: "test".to_owned() },
        };
        let stop = CancellationToken::new();
        let process = Process::detached("carillon-gateway", stop.clone());
        let serving = tokio::spawn(carillon_gateway::run(config, process, listener));
        Ok(Self { address, stop, serving, http: reqwest::Client::new() })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1/scheduler{path}", self.address)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
        let response = self.http.post(self.url(path)).json(body).send().await?;
        Ok((response.status(), response.json().await?))
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Value)> {
        let response = self.http.get(self.url(path)).send().await?;
        Ok((response.status(), response.json().await?))
    }

    async fn channel(&self) -> Result<Channel> {
        Ok(Channel::from_shared(format!("http://{}", self.address))?.connect().await?)
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.serving).await.context("the gateway does not stop")??
    }
}

fn cleanup() -> Value {
    json!({"name": "Daily Cleanup", "schedule": "0 2 * * *", "handler_name": "cleanup:old_traces",
           "payload": {"retention_days": 30}, "created_by": "admin"})
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

    let request = v1::CreateRecurringJobRequest {
        name: "Beat".into(),
        interval: "90s".into(),
        handler_name: "health:check".into(),
        request_id: "r1".into(),
        ..v1::CreateRecurringJobRequest::default()
    };
    let beat = jobs.create_recurring_job(request).await?.into_inner();
    let body = json!({"name": "Beat", "interval": "90s", "handlerName": "health:check", "requestId": "r1"});
    let (_, again) = gateway.post("/jobs/recurring", &body).await?;
    assert_eq!(again["id"], beat.id, "the same request over JSON has the same fingerprint");
    let (status, read) = gateway.get(&format!("/jobs/{}", beat.id)).await?;
    assert_eq!((status, &read["schedule"], &read["type"]), (StatusCode::OK, &json!("@every 90s"), &json!("RECURRING")));

    let execution =
        jobs.trigger_job(v1::TriggerJobRequest { id: id.clone(), ..v1::TriggerJobRequest::default() }).await?;
    let execution = execution.into_inner();
    let (_, list) = gateway.get(&format!("/jobs/{id}/executions?status=pending")).await?;
    assert_eq!(list["executions"][0]["id"], execution.id);
    let mut executions = ExecutionServiceClient::new(gateway.channel().await?);
    let unknown = executions.get_execution(v1::GetExecutionRequest { id: id.clone() }).await;
    assert_eq!(unknown.map_err(|status| status.code()).err(), Some(Code::NotFound));

    let refused = jobs.create_cron_job(v1::CreateCronJobRequest::default()).await.err().context("accepted")?;
    let (status, body) = gateway.post("/jobs/cron", &json!({})).await?;
    assert_eq!((status, &body["message"]), (StatusCode::BAD_REQUEST, &json!(refused.message())));
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
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(question)).await?.into_inner();
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
    let gateway = Gateway::start(postgres.database().url(), &redis.url()).await?;
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
