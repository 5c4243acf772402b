//! Connections: those that say nothing, those that say something and then no request, and those that are answered.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_testkit::{Database, Redis};
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cleanup;
use crate::gateway::{Gateway, LIMIT};

const PLACES: usize = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// The type of a frame that says goodbye, of which a head of nine bytes tells the length first.
const GOAWAY: u8 = 7;
const HEAD_BYTES: usize = 9;

async fn saying(gateway: &Gateway, said: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(gateway.address).await?;
    stream.write_all(said).await?;
    Ok(stream)
}

/// All that is still said to it, until it is closed.
async fn closed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut said = Vec::new();
    let reading = async {
        let mut piece = [0; 1024];
        // A reset is an end too.
        while let Ok(length @ 1..) = stream.read(&mut piece).await {
            said.extend_from_slice(&piece[..length]);
        }
    };
    tokio::time::timeout(LIMIT, reading).await.context("it is still there")?;
    Ok(said)
}

async fn answer(stream: &mut TcpStream) -> Result<String> {
    let mut start = [0; 12];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut start)).await.context("not answered")??;
    Ok(String::from_utf8_lossy(&start).into_owned())
}

/// One whose request is in flight: it is told to go on with its body.
async fn in_flight(gateway: &Gateway, body: &str) -> Result<TcpStream> {
    let head = "POST /api/v1/scheduler/jobs/cron HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close";
    let mut stream = saying(gateway, format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes()).await?;
    ensure!(answer(&mut stream).await? == "HTTP/1.1 100");
    let mut rest = [0; 13];
    stream.read_exact(&mut rest).await?;
    ensure!(rest.ends_with(b"\r\n\r\n"), "{:?}", String::from_utf8_lossy(&rest));
    Ok(stream)
}

/// Peers that say nothing, a byte, or half of HTTP/2's preface take no place of those that speak; the oldest make room.
#[tokio::test]
async fn those_that_say_nothing_block_nobody() -> Result<()> {
    const PLACES: usize = 4;
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start_with(database.url(), &redis.url(), PLACES).await?;
    let mut silent = Vec::new();
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM", b""].into_iter().cycle().take(3 * PLACES) {
        let mut stream = TcpStream::connect(gateway.address).await?;
        stream.write_all(said).await?;
        silent.push(stream);
    }
    let began = Instant::now();
    assert_eq!(gateway.get("/jobs").await?.0, StatusCode::OK);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let mut byte = [0; 1];
    let gone = tokio::time::timeout(LIMIT, silent[0].read(&mut byte)).await.context("the oldest is still there")?;
    assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
    // Whoever speaks at last is answered.
    let last = silent.last_mut().context("none")?;
    last.write_all(b"GET /api/v1/scheduler/jobs HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let mut answer = [0; 12];
    tokio::time::timeout(LIMIT, last.read_exact(&mut answer)).await.context("not answered")??;
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(json!(gateway.get("/jobs").await?.1["jobs"]), json!([]));
    gateway.stop().await
}

/// They hold every place, and speak no more: whoever comes is answered at once, and the one that has been silent longest goes.
#[tokio::test]
async fn those_that_speak_and_ask_nothing_make_room() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start_with(database.url(), &redis.url(), PLACES).await?;
    let ask = b"GET /api/v1/scheduler/jobs HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut kept = saying(&gateway, ask).await?;
    assert_eq!(answer(&mut kept).await?, "HTTP/1.1 200");
    let mut preface = saying(&gateway, &[PREFACE, SETTINGS].concat()).await?;
    // It has a place: it is told what this side speaks.
    let mut head = [0; HEAD_BYTES];
    tokio::time::timeout(LIMIT, preface.read_exact(&mut head)).await??;
    let mut letter = saying(&gateway, b"G").await?;
    let mut half = saying(&gateway, b"GET / HTTP/1.1\r\nhost: x").await?;
    // Before half a head runs out of its time.
    let began = Instant::now();
    let mut asking = Vec::new();
    for _ in 0..2 * PLACES {
        let mut stream = saying(&gateway, ask).await?;
        assert_eq!(answer(&mut stream).await?, "HTTP/1.1 200");
        asking.push(stream);
    }
    for silent in [&mut kept, &mut letter, &mut half] {
        closed(silent).await?;
    }
    assert!(said_goodbye(&head, &closed(&mut preface).await?), "HTTP/2 is told so");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    gateway.stop().await
}

/// Whether one of these frames is a GOAWAY; the first one's head was read already.
fn said_goodbye(head: &[u8], rest: &[u8]) -> bool {
    let frames = [head, rest].concat();
    let mut at = &frames[..];
    while let [high, middle, low, kind, ..] = at {
        if *kind == GOAWAY {
            return true;
        }
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        at = at.get(HEAD_BYTES + length..).unwrap_or_default();
    }
    false
}

/// What is in flight is never cut off. Of those for whom there is no place one may wait, and has it when there is one.
#[tokio::test]
async fn what_is_in_flight_keeps_its_place_and_few_wait_for_one() -> Result<()> {
    let (database, redis) = (Database::new().await?, Redis::start().await?);
    let gateway = Gateway::start_with(database.url(), &redis.url(), PLACES).await?;
    let body = cleanup().to_string();
    let mut flying = Vec::new();
    for _ in 0..PLACES {
        flying.push(in_flight(&gateway, &body).await?);
    }
    let ask = b"GET /api/v1/scheduler/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut two = [saying(&gateway, ask).await?, saying(&gateway, ask).await?];
    let [one, other] = &mut two;
    let waiting = tokio::select! {
        refused = closed(one) => { assert!(refused?.is_empty()); other }
        refused = closed(other) => { assert!(refused?.is_empty()); one }
    };
    for stream in &mut flying {
        stream.write_all(body.as_bytes()).await?;
        let answer = String::from_utf8_lossy(&closed(stream).await?).into_owned();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
    let answer = String::from_utf8_lossy(&closed(waiting).await?).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    gateway.stop().await
}
