//! Requests that are large, or become so where they are read.

use anyhow::Result;
use carillon_proto::v1;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_testkit::{Database, Redis};
use reqwest::StatusCode;
use serde_json::Value;
use tonic::codec::CompressionEncoding::Gzip;

use crate::gateway::Gateway;
use crate::routes::Refusal;
use crate::transport::packed;

/// What one request may take, with all else that this process does meanwhile: the decoded lists of one took over 3 GB.
const MEMORY_KIB_MAX: u64 = 2 * 1024 * 1024;

/// The most that this process has had; none where nobody says.
fn memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// A message over gRPC, of bytes that no client would make: how it is refused.
async fn call(gateway: &Gateway, method: &str, message: &[u8], is_packed: bool) -> Result<String> {
    let client = reqwest::Client::builder().http2_prior_knowledge().build()?;
    let message = if is_packed { packed(message)? } else { message.to_vec() };
    let length = u32::try_from(message.len())?.to_be_bytes();
    let request = client.post(format!("http://{}/carillon.v1.JobService/{method}", gateway.address));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let request = if is_packed { request.header("grpc-encoding", "gzip") } else { request };
    let answer = request.body([&[u8::from(is_packed)], &length[..], &message].concat()).send().await?;
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(format!("{} {}", header("grpc-status"), header("grpc-message").replace("%20", " ")))
}

#[tokio::test]
async fn what_lies_in_a_request_is_counted_before_it_is_read() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let (jobs, exclusions) = ([0x0a, 0].repeat(4_194_304), [0x72, 0].repeat(2_000_000));
    let job = [&[0x0a], &prost_length(exclusions.len())[..], &exclusions].concat();
    for is_packed in [true, false] {
        let refused = call(&gateway, "BatchCreateJobs", &jobs, is_packed).await?;
        assert_eq!(refused, "3 jobs: must be at most 1000, are 4194304");
        let refused = call(&gateway, "CreateJob", &job, is_packed).await?;
        assert_eq!(refused, "3 exclusions: must be at most 1000, are 2000000");
    }
    let list = |element: &str, count: usize| format!("[{}{element}]", format!("{element},").repeat(count - 1));
    for (body, rule) in [
        (format!("{{\"jobs\":{}}}", list("{}", 2_000)), "jobs: must be at most 1000, are 2000"),
        (format!("{{\"jobs\":{}}}", list("{}", 2_796_000)), "body: has more than 300000 values: send less at once"),
        (
            format!("{{\"jobs\":[{{\"payload\":{{\"a\":{}}}}}]}}", list("1", 4_000_000)),
            "body: has more than 300000 values: send less at once",
        ),
    ] {
        for is_packed in [true, false] {
            let request =
                gateway.http.post(gateway.url("/jobs/batch-create")).header("content-type", "application/json");
            let request = if is_packed {
                request.header("content-encoding", "gzip").body(packed(body.as_bytes())?)
            } else {
                request.body(body.clone())
            };
            let answer = request.send().await?;
            let (status, refusal) = (answer.status(), Refusal::of_json(&answer.json::<Value>().await?));
            assert_eq!((status, refusal.fields), (StatusCode::BAD_REQUEST, vec![rule.to_owned()]));
        }
    }
    if let Some(most) = memory_kib() {
        assert!(most < MEMORY_KIB_MAX, "{most} KiB");
    }
    gateway.stop().await
}

/// Packed and unpacked together they are more than one connection may have in hand.
#[tokio::test]
async fn what_is_packed_gives_its_room_to_what_it_was_packed_of() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let mut state = 7_u64;
    // As base64 of anything: six bits a letter.
    let mut letter = || {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(LETTERS[usize::try_from(state >> 58).unwrap_or_default()])
    };
    let mut job = || {
        let text: String = (0..190_000).map(|_| letter()).collect();
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text)) };
        v1::Job {
            name: "n".into(),
            schedule: "@daily".into(),
            handler_name: "a:b".into(),
            payload: Some(prost_types::Struct { fields: [("file".to_owned(), value)].into() }),
            ..v1::Job::default()
        }
    };
    let request =
        v1::BatchCreateJobsRequest { jobs: (0..42).map(|_| job()).collect(), ..v1::BatchCreateJobsRequest::default() };
    let mut client = JobServiceClient::new(gateway.channel().await?).send_compressed(Gzip);
    let results = client.batch_create_jobs(request).await?.into_inner().results;
    assert_eq!(results.len(), 42);
    gateway.stop().await
}

/// A length before its bytes.
fn prost_length(length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(length as u64, &mut bytes);
    bytes
}
