//! Requests that are large, or become so where they are read.

use anyhow::Result;
use carillon_testkit::{Database, Redis};
use reqwest::StatusCode;
use serde_json::Value;

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
        (format!("{{\"jobs\":{}}}", list("{}", 2_796_000)), "body: has more than 250000 values: send less at once"),
        (
            format!("{{\"jobs\":[{{\"payload\":{{\"a\":{}}}}}]}}", list("1", 4_000_000)),
            "body: has more than 250000 values: send less at once",
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

/// A length before its bytes.
fn prost_length(length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(length as u64, &mut bytes);
    bytes
}
