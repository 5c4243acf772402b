//! gRPC-Web, as a browser's client speaks it: in bytes and as text, over HTTP/1.1, packed and not.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use carillon_proto::v1;
use carillon_testkit::{Database, Redis};
use prost::Message;
use reqwest::StatusCode;
use serde_json::Value;

use crate::cleanup;
use crate::gateway::Gateway;
use crate::transport::{packed, reason};

const IS_PACKED: u8 = 1;
const IS_TRAILER: u8 = 0x80;

fn framed(flag: u8, message: &[u8]) -> Result<Vec<u8>> {
    Ok([&[flag], &u32::try_from(message.len())?.to_be_bytes()[..], message].concat())
}

/// The messages, and the trailers in one text.
fn unframed(mut bytes: &[u8]) -> Result<(Vec<Vec<u8>>, String)> {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while let [flag, a, b, c, d, rest @ ..] = bytes {
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d]))?;
        let (message, rest) = rest.split_at_checked(length).context("cut off")?;
        match *flag {
            0 => messages.push(message.to_vec()),
            IS_TRAILER => trailers.push_str(&String::from_utf8_lossy(message)),
            flag => anyhow::bail!("flag {flag}"),
        }
        bytes = rest;
    }
    ensure!(bytes.is_empty(), "{bytes:?}");
    Ok((messages, trailers))
}

/// Each frame is padded by itself.
fn from_base64(text: &[u8]) -> Result<Vec<u8>> {
    let pieces: Result<Vec<_>, _> = text.chunks(4).map(|four| BASE64_STANDARD.decode(four)).collect();
    Ok(pieces?.concat())
}

async fn ask(gateway: &Gateway, call: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<reqwest::Response> {
    let request = gateway.http.post(format!("http://{}/carillon.v1.JobService/{call}", gateway.address));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    Ok(request.body(body).send().await?)
}

fn status(response: &reqwest::Response) -> &str {
    response.headers().get("grpc-status").and_then(|status| status.to_str().ok()).unwrap_or_default()
}

#[tokio::test]
async fn every_form_of_it_is_answered_in_kind() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let (_, created) = gateway.post("/jobs/cron", &cleanup()).await?;
    let id = created["id"].as_str().context("no id")?.to_owned();
    let message = v1::GetJobRequest { id: id.clone() }.encode_to_vec();
    let (bytes, text) = ("application/grpc-web", "application/grpc-web-text");
    for (kind, accept, answered) in [
        (bytes, None, bytes),
        ("application/grpc-web+proto", Some("*/*"), bytes),
        ("Application/gRPC-Web; charset=utf-8", None, bytes),
        (text, Some(text), text),
        ("application/grpc-web-text+proto", None, text),
        (text, Some("application/grpc-web+proto"), bytes),
    ] {
        for encoding in [None, Some("gzip"), Some("GZIP"), Some("x-gzip")] {
            let body = match encoding {
                Some(_) => framed(IS_PACKED, &packed(&message)?)?,
                None => framed(0, &message)?,
            };
            let body = if kind.contains("text") { BASE64_STANDARD.encode(body).into_bytes() } else { body };
            let mut headers = vec![("content-type", kind)];
            headers.extend(accept.map(|accept| ("accept", accept)));
            headers.extend(encoding.map(|encoding| ("grpc-encoding", encoding)));
            let response = ask(&gateway, "GetJob", &headers, body).await?;
            assert_eq!(response.status(), StatusCode::OK, "{headers:?}");
            assert_eq!(response.headers()["content-type"], format!("{answered}+proto").as_str(), "{headers:?}");
            let answer = response.bytes().await?;
            let answer = if answered == text { from_base64(&answer)? } else { answer.to_vec() };
            let (messages, trailers) = unframed(&answer)?;
            let job = v1::Job::decode(messages.first().with_context(|| format!("{headers:?} {trailers}"))?.as_slice())?;
            assert_eq!((job.id.as_str(), messages.len()), (id.as_str(), 1));
            assert!(trailers.contains("grpc-status:0"), "{trailers}");
        }
    }
    gateway.stop().await
}

/// What is counted is what the text says, and what that is unpacked to.
#[tokio::test]
async fn its_text_is_bounded_by_what_it_says() -> Result<()> {
    const MIB: usize = 1024 * 1024;
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    let text = ("content-type", "application/grpc-web-text+proto");
    let named = |bytes: usize| v1::GetJobRequest { id: "x".repeat(bytes) }.encode_to_vec();
    let refused = async |headers: &[(&str, &str)], body: Vec<u8>| -> Result<(String, String)> {
        let response = ask(&gateway, "GetJob", headers, BASE64_STANDARD.encode(body).into_bytes()).await?;
        assert_eq!(response.headers()["content-type"], "application/grpc-web-text+proto");
        let details = response.headers().get("grpc-status-details-bin").context("no details")?;
        let details = base64::prelude::BASE64_STANDARD_NO_PAD.decode(details)?;
        let details = tonic_types::Status::decode(details.as_slice())?;
        let info = details.details.first().context("no detail")?.value.as_slice();
        Ok((status(&response).to_owned(), tonic_types::pb::ErrorInfo::decode(info)?.reason))
    };
    let told = |code: &str, reason: &str| (code.to_owned(), reason.to_owned());
    // As text it is more than 4 MiB, and only its id is wrong.
    let below = framed(0, &named(4 * MIB - 100))?;
    assert_eq!(refused(&[text], below).await?, told("3", "INVALID_FIELDS"));
    let above = framed(0, &named(4 * MIB))?;
    assert_eq!(refused(&[text], above).await?, told("3", "REQUEST_TOO_LARGE"));
    // Of what the largest call may have, and more than this one: a few KiB.
    let bomb = framed(IS_PACKED, &packed(&named(6 * MIB))?)?;
    assert_eq!(refused(&[text, ("grpc-encoding", "gzip")], bomb).await?, told("3", "REQUEST_TOO_LARGE"));
    let response = ask(&gateway, "GetJob", &[text], b"no base64 at all".to_vec()).await?;
    assert_eq!(status(&response), "3", "{:?}", response.headers());
    gateway.stop().await
}

#[tokio::test]
async fn what_nobody_speaks_is_refused_in_words() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start(database.url(), &redis.url()).await?;
    // The last one is gRPC, which HTTP/1.1 cannot carry.
    for kind in ["application/grpc-web+json", "application/grpc-web+thrift", "application/grpc"] {
        let response = ask(&gateway, "GetJob", &[("content-type", kind)], framed(0, b"")?).await?;
        let (status, body): (_, Value) = (response.status(), response.json().await?);
        let told = (status, reason(&body));
        assert_eq!(told, (StatusCode::UNSUPPORTED_MEDIA_TYPE, "MEDIA_TYPE_UNSUPPORTED"), "{kind}: {body}");
    }
    let call = format!("http://{}/carillon.v1.JobService/GetJob", gateway.address);
    let put = gateway.http.put(call).header("content-type", "application/grpc-web").send().await?;
    assert_eq!((put.status(), &put.headers()["allow"]), (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse()?));
    gateway.stop().await
}
