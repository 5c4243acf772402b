//! How many jobs a second one gateway creates: 1,000 at once, and one by one, over gRPC and over JSON. Clients, gateway and
//! PostgreSQL share the machine.
//!
//! Each client has a connection of its own and asks again as soon as it has its answer. A JSON body is written once; what the
//! client spends on a request would be measured with it otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use carillon_proto::v1::batch_create_jobs_result::Result as Outcome;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_proto::v1::{BatchCreateJobsRequest, CreateJobRequest, Job};
use carillon_servers::{Process, free_port};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::asked::Asked;
use crate::jobs::HANDLER;
use crate::options::Plan;
use crate::product::{Binaries, ready};
use crate::report::{Report, progress};
use crate::servers::{Database, Servers};

/// Jobs in one request.
const AT_ONCE: usize = 1_000;
/// Connections that ask for so many at once,
const CLIENTS_OF_MANY: usize = 4;
/// and for one.
const CLIENTS_OF_ONE: usize = 16;
/// Before anything is counted: connections are made, plans are kept.
const BEFORE: Duration = Duration::from_secs(1);

/// What is asked of rows that have 1,000 jobs in a request.
const ASKED_OF_GRPC: Asked = Asked::AtLeast(5_000.0);
const ASKED_OF_JSON: Asked = Asked::AtLeast(2_000.0);

/// How a row asks.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    is_grpc: bool,
    /// Jobs in a request.
    jobs: usize,
    asked: Asked,
}

const ROWS: [Row; 4] = [
    Row { name: "gRPC, 1,000 at once", is_grpc: true, jobs: AT_ONCE, asked: ASKED_OF_GRPC },
    Row { name: "JSON, 1,000 at once", is_grpc: false, jobs: AT_ONCE, asked: ASKED_OF_JSON },
    Row { name: "gRPC, one by one", is_grpc: true, jobs: 1, asked: Asked::Nothing },
    Row { name: "JSON, one by one", is_grpc: false, jobs: 1, asked: Asked::Nothing },
];

/// Measures, and adds to `report`.
///
/// # Errors
/// If something of it fails, or the gateway refuses a job.
pub async fn run(servers: &Servers, binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    for row in ROWS.into_iter().filter(|row| plan.wants_row(row.name)) {
        progress(&format!("create: {}", row.name));
        let name = format!("create_{}_{}", if row.is_grpc { "grpc" } else { "json" }, row.jobs);
        let database = servers.database(&name).await?;
        let (mut gateway, url) = gateway(servers, binaries, &database, &name, plan).await?;
        let per_s = rate(row, &url, plan.create_s).await.map_err(|error| error.context(gateway.log_tail()))?;
        gateway.signal(Signal::SIGTERM);
        report.figures.add("create", row.name, "jobs created a second", (per_s, "/s"), row.asked);
        if plan.statements {
            report.note_statements(row.name, database.costliest().await?);
        }
        database.pool.close().await;
        let ended = tokio::task::spawn_blocking(move || gateway.wait(Duration::from_secs(10)).is_some()).await?;
        ensure!(ended, "the gateway does not stop");
    }
    Ok(())
}

/// A gateway that is ready, and where it is.
///
/// # Errors
/// If it does not come up.
pub async fn gateway(
    servers: &Servers,
    binaries: &Binaries,
    database: &Database,
    name: &str,
    plan: &Plan,
) -> Result<(Process, String)> {
    let (admin, port) = (free_port()?, free_port()?);
    let mut command = binaries.command("gateway", admin);
    command.env("CARILLON_POSTGRES_URL", &database.url).env("CARILLON_REDIS_URL", servers.redis_url());
    command.env("CARILLON_REDIS_NAMESPACE", name).env("CARILLON_GATEWAY_LISTEN", format!("127.0.0.1:{port}"));
    command.envs(plan.settings.iter().map(|(name, value)| (name, value)));
    let log = servers.home.path().join(format!("gateway-{name}.log"));
    let mut gateway = servers.home.spawn(&format!("gateway-{name}"), &mut command, &log, Signal::SIGKILL)?;
    ready(&mut gateway, admin).await?;
    Ok((gateway, format!("http://127.0.0.1:{port}")))
}

/// Jobs a second over `seconds`.
async fn rate(row: Row, url: &str, seconds: u32) -> Result<f64> {
    let created = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + BEFORE + Duration::from_secs(seconds.into());
    let mut clients = JoinSet::new();
    for _ in 0..if row.jobs == 1 { CLIENTS_OF_ONE } else { CLIENTS_OF_MANY } {
        let (url, created) = (url.to_owned(), Arc::clone(&created));
        if row.is_grpc {
            clients.spawn(ask_by_grpc(row, url, end, created));
        } else {
            clients.spawn(ask_by_json(row, url, end, created));
        }
    }
    tokio::time::sleep(BEFORE).await;
    let (before, began) = (created.load(Ordering::Relaxed), Instant::now());
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    // Requests that are on their way at the end are waited for: what they took is counted with them.
    let count = created.load(Ordering::Relaxed) - before;
    Ok(f64::from(u32::try_from(count)?) / began.elapsed().as_secs_f64())
}

async fn ask_by_grpc(row: Row, url: String, end: Instant, created: Arc<AtomicU64>) -> Result<()> {
    let mut client = JobServiceClient::new(Channel::from_shared(url)?.connect().await?);
    let payload = [("tenant", prost_types::value::Kind::StringValue("acme".into()))];
    let fields = payload.map(|(key, kind)| (key.to_owned(), prost_types::Value { kind: Some(kind) })).into();
    let job = Job {
        name: "bench".into(),
        schedule: "0 2 * * *".into(),
        handler_name: HANDLER.into(),
        payload: Some(prost_types::Struct { fields }),
        tags: vec!["nightly".into()],
        ..Job::default()
    };
    while Instant::now() < end {
        if row.jobs == 1 {
            client.create_job(CreateJobRequest::from(job.clone())).await?;
        } else {
            let request = BatchCreateJobsRequest { jobs: vec![job.clone(); row.jobs], ..Default::default() };
            let results = client.batch_create_jobs(request).await?.into_inner().results;
            let made = results.iter().filter(|result| matches!(result.result, Some(Outcome::Id(_)))).count();
            ensure!(made == row.jobs, "{made} of {} were created", row.jobs);
        }
        created.fetch_add(row.jobs as u64, Ordering::Relaxed);
    }
    Ok(())
}

async fn ask_by_json(row: Row, url: String, end: Instant, created: Arc<AtomicU64>) -> Result<()> {
    let job = json!({
        "name": "bench", "schedule": "0 2 * * *", "handler_name": HANDLER, "payload": {"tenant": "acme"}, "tags": ["nightly"],
    });
    let (path, body, status) = if row.jobs == 1 {
        ("jobs", job.to_string(), 201)
    } else {
        ("jobs/batch-create", json!({"jobs": vec![job; row.jobs]}).to_string(), 200)
    };
    let (url, body) = (format!("{url}/api/v1/scheduler/{path}"), Bytes::from(body));
    let client = reqwest::Client::new();
    while Instant::now() < end {
        let request = client.post(&url).header("content-type", "application/json").body(body.clone());
        let response = request.send().await?;
        let (found, answer) = (response.status(), response.bytes().await?);
        ensure!(found == status, "{found}: {}", String::from_utf8_lossy(&answer));
        if row.jobs > 1 {
            let answer: Value = serde_json::from_slice(&answer)?;
            let results = answer["results"].as_array().context("no results")?;
            ensure!(results.len() == row.jobs && results.iter().all(|result| result["id"].is_string()), "{answer}");
        }
        created.fetch_add(row.jobs as u64, Ordering::Relaxed);
    }
    Ok(())
}
