//! A few jobs for an empty database, made through the API as any client would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_proto::v1::{CreateJobRequest, Job, JobStatus, ListJobsRequest};
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp, Value};
use tonic::transport::{Channel, Endpoint};

use super::screen::Screen;

type Client = JobServiceClient<Channel>;

/// Adds the samples if there are no jobs, and never were: whoever deleted them does not want them back.
pub(super) async fn create_if_empty(listen: SocketAddr, screen: Screen) -> Result<()> {
    // 0.0.0.0 is where one listens, not where one connects.
    let host = if listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { listen.ip().to_string() };
    let host = if listen.is_ipv6() && host.contains(':') { format!("[{host}]") } else { host };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{}", listen.port()))?.timeout(Duration::from_secs(10));
    let channel = endpoint.connect().await.context("the gateway does not answer")?;
    let mut client = JobServiceClient::new(channel);
    if has_jobs(&mut client).await.context("cannot list the jobs")? {
        return Ok(());
    }
    create(&mut client).await.context("cannot create the sample jobs")?;
    screen.step("added five sample jobs to the empty database");
    Ok(())
}

async fn has_jobs(client: &mut Client) -> Result<bool> {
    for status in [JobStatus::Unspecified, JobStatus::Cancelled] {
        let request = ListJobsRequest { limit: Some(1), status: status.into(), ..ListJobsRequest::default() };
        if !client.list_jobs(request).await?.into_inner().jobs.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn create(client: &mut Client) -> Result<()> {
    let created_by = "carillon dev";
    let cron = Job {
        name: "every 5 seconds".into(),
        description: "A cron expression with a seconds field".into(),
        schedule: "*/5 * * * * *".into(),
        handler_name: "test:echo".into(),
        payload: Some(object([("greeting", Kind::StringValue("hello".into()))])),
        created_by: created_by.into(),
        ..Job::default()
    };
    client.create_job(CreateJobRequest::from(cron)).await?;
    let recurring = Job {
        name: "each 3 seconds, for 250 ms".into(),
        description: "A fixed interval in real elapsed time".into(),
        interval: "3s".into(),
        handler_name: "test:sleep".into(),
        payload: Some(object([("ms", Kind::NumberValue(250.0))])),
        created_by: created_by.into(),
        ..Job::default()
    };
    client.create_job(CreateJobRequest::from(recurring)).await?;
    let once = Job {
        name: "once, 8 seconds on".into(),
        description: "One instant; the job is COMPLETED afterwards".into(),
        execute_at: Some(Timestamp::from(SystemTime::now() + Duration::from_secs(8))),
        handler_name: "health:check".into(),
        created_by: created_by.into(),
        ..Job::default()
    };
    client.create_job(CreateJobRequest::from(once)).await?;
    let flaky = Job {
        name: "fails twice, then works".into(),
        description: "Retries with exponential backoff".into(),
        schedule: "10/20 * * * * *".into(),
        payload: Some(object([("times", Kind::NumberValue(2.0)), ("message", Kind::StringValue("not yet".into()))])),
        ..failing(created_by)
    };
    client.create_job(CreateJobRequest::from(flaky)).await?;
    let hopeless = Job {
        name: "fails for good".into(),
        description: "Out of attempts: FAILED".into(),
        schedule: "0 * * * * *".into(),
        payload: Some(object([("message", Kind::StringValue("it never works".into()))])),
        ..failing(created_by)
    };
    client.create_job(CreateJobRequest::from(hopeless)).await?;
    Ok(())
}

fn failing(created_by: &str) -> Job {
    Job {
        handler_name: "test:fail".into(),
        max_retries: Some(2),
        retry_delay_ms: Some(1_000),
        created_by: created_by.into(),
        ..Job::default()
    }
}

fn object<const N: usize>(fields: [(&str, Kind); N]) -> Struct {
    let fields = fields.map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
    Struct { fields: BTreeMap::from(fields) }
}
