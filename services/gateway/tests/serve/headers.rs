//! Too many headers, or too large ones: refused, over JSON and gRPC, in the words of the API; and who floods harms nobody else.

use anyhow::{Context, Result, ensure};
use carillon_proto::v1;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_testkit::{Database, Redis, wait_until};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::gateway::{Gateway, LIMIT};
use crate::routes::Refusal;

const TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;

#[tokio::test]
async fn too_many_headers_are_refused_in_the_words_of_the_api() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let (one, two) = (reqwest::Client::builder().http1_only(), reqwest::Client::builder().http2_prior_knowledge());
    for client in [one.build()?, two.build()?] {
        for (count, bytes) in [(110, 10), (1, 33 * 1024), (60, 600)] {
            let mut headers = HeaderMap::new();
            for at in 0..count {
                headers.insert(HeaderName::try_from(format!("x-{at}"))?, HeaderValue::try_from("x".repeat(bytes))?);
            }
            let refused = client.get(gateway.url("/jobs")).headers(headers).send().await?;
            assert_eq!(refused.status(), TOO_LARGE, "{count} of {bytes}");
            assert_eq!(refused.headers()["x-request-id"].len(), 36, "it has an id, as every answer");
            let body: Value = refused.json().await?;
            let refusal = Refusal::of_json(&body);
            assert_eq!((refusal.code, refusal.reason.as_str()), (3, "HEADERS_TOO_LARGE"), "{body}");
        }
        assert_eq!(
            client.get(gateway.url("/jobs")).header("x-long", "x".repeat(30_000)).send().await?.status(),
            StatusCode::OK
        );
    }

    let mut jobs = JobServiceClient::new(gateway.channel().await?);
    let asked = |bytes: usize| -> Result<Request<v1::ListJobsRequest>> {
        let mut request = Request::new(v1::ListJobsRequest::default());
        request.metadata_mut().insert("x-long", MetadataValue::try_from("x".repeat(bytes))?);
        Ok(request)
    };
    let refused: Status = jobs.list_jobs(asked(40 * 1024)?).await.err().context("answered")?;
    let reason = refused.get_details_error_info().map(|info| info.reason);
    assert_eq!((refused.code(), reason.as_deref()), (Code::InvalidArgument, Some("HEADERS_TOO_LARGE")), "{refused}");
    // What the connection itself refuses ends the call, not the connection.
    assert!(jobs.list_jobs(asked(100 * 1024)?).await.is_err());
    jobs.list_jobs(asked(10)?).await?;
    gateway.stop().await
}

/// Headers without an end, on as many connections as there are files for: each is answered 431 and closed, and holds no memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_is_cut_off_and_others_are_answered() -> Result<()> {
    const FLOODS: usize = 50;
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start_with(database.url(), &redis.url(), FLOODS + 1).await?;
    let address = gateway.address;
    let flood = move || async move {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /api/v1/scheduler/jobs HTTP/1.1\r\nhost: x\r\n").await?;
        let line = format!("x-flood: {}\r\n", "x".repeat(1_000));
        // The other side may have gone: that is what it should do.
        for _ in 0..10_000 {
            if stream.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let mut floods: JoinSet<_> = (0..FLOODS).map(|_| tokio::time::timeout(LIMIT, flood())).collect();
    for _ in 0..20 {
        // The floods are written by the machine that answers: a call may have no connection to Postgres in time for once.
        wait_until("an answer beside the floods", LIMIT, || async {
            let (status, body) = gateway.get("/jobs").await?;
            ensure!(status == StatusCode::OK, "{status} {body}");
            Ok(())
        })
        .await?;
    }
    while let Some(answer) = floods.join_next().await {
        let answer = answer?.context("it was not cut off")??;
        // A connection that is reset while it is written to may lose its answer.
        ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    gateway.stop().await
}
