//! Hostile clients at a real gateway (row 42): whatever they send, and however slowly, others are served meanwhile, and its memory
//! stays bounded.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::api::{Api, BASE};
use crate::world::{Plan, World};

/// Connections that say nothing.
const IDLE: usize = 2_000;
/// Connections that send a header, letter by letter.
const SLOW: usize = 200;
/// Connections that each send a body of a gigabyte, for as long as they are let.
const HUGE: usize = 20;
/// Connections that begin requests and reset them at once, and how many each.
const RESETTING: usize = 8;
const RESETS: u32 = 10_000;
const ATTACKED_FOR: Duration = Duration::from_secs(5);
/// Others must have been served so often.
const SERVED_MIN: usize = 10;
/// Who is thrown out comes again after this: the machine is theirs too.
const AGAIN: Duration = Duration::from_millis(250);
/// What all of them together may add to the gateway's resident memory.
const MORE_MIB: f64 = 150.0;

#[tokio::test]
async fn hostile_clients_keep_nobody_waiting_and_cost_little_memory() {
    let mut world = World::start("hostile", gateway()).await;
    let node = world.cluster.node("gateway-1");
    let (pid, port) = (node.pid(), node.port);
    let api = world.api();
    api.assert_serves().await;
    let before = resident_mib(pid);

    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(connect(port).await);
    }
    let mut hostile = JoinSet::new();
    (0..SLOW).for_each(|_| drop(hostile.spawn(slow_headers(port))));
    (0..HUGE).for_each(|_| drop(hostile.spawn(huge_body(port))));
    (0..RESETTING).for_each(|_| drop(hostile.spawn(rapid_resets(port))));
    (0..RESETTING).for_each(|_| drop(hostile.spawn(huge_frame(port))));
    let began = Instant::now();
    let mut served = 0;
    while began.elapsed() < ATTACKED_FOR || served < SERVED_MIN {
        api.assert_serves().await;
        served += 1;
    }
    assert_odd_bodies_are_refused(&api).await;
    assert_nothing_is_inflated(port).await;
    let most = resident_mib(pid);
    eprintln!("others were served {served} times; {before} MiB before, at most {most} MiB");
    assert!(most < before + MORE_MIB, "{most} MiB, {before} before");
    while let Some(ended) = hostile.try_join_next() {
        ended.expect("nobody was kept from attacking");
    }
    hostile.shutdown().await;
    drop(idle);
    world.assert_all_live();
}

/// Streams of one connection that the gateway lets stand (`STREAMS_MAX`).
const STREAMS: u32 = 250;
/// So many connections begin more requests than the gateway answers at once (`gateway.requests_max`).
const BEGINNING: usize = 6;

/// Six connections suffice, none of which says anything more.
async fn begun_and_never_ended(name: &str, path: &str, content_type: &str) {
    let mut world = World::start(name, gateway()).await;
    let port = world.cluster.node("gateway-1").port;
    let api = world.api();
    let mut begun = Vec::new();
    for _ in 0..BEGINNING {
        let mut stream = http2(port).await;
        for stream_id in (0..STREAMS).map(|index| 2 * index + 1) {
            stream.write_all(&post(stream_id, path, content_type)).await.expect("it is taken");
        }
        // Its echo says that all of them have been seen.
        stream.write_all(&frame(PING, 0, 0, &[0; 8])).await.expect("it is taken");
        while next_frame(&mut stream).await.expect("it goes on") != PING {}
        begun.push(stream);
    }
    let began = Instant::now();
    while began.elapsed() < ATTACKED_FOR {
        api.assert_serves().await;
    }
    drop(begun);
    world.assert_all_live();
}

#[tokio::test]
async fn grpc_requests_that_are_begun_and_never_ended_keep_nobody_from_being_served() {
    begun_and_never_ended("begun_grpc", "/carillon.v1.JobService/ListJobs", "application/grpc").await;
}

#[tokio::test]
async fn json_requests_that_are_begun_and_never_ended_keep_nobody_from_being_served() {
    begun_and_never_ended("begun_json", &format!("{BASE}/jobs/cron"), "application/json").await;
}

fn gateway() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

/// Deep, without end, with what no text may hold: each is told so.
async fn assert_odd_bodies_are_refused(api: &Api) {
    let named = |name: &str| format!(r#"{{"name":"{name}","schedule":"0 2 * * *","handler_name":"test:echo"}}"#);
    for text in [
        format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000)),
        "{\"a\":".repeat(100_000),
        named(r"nul\u0000"),
        named(r"lone \ud800 surrogate"),
    ] {
        let answer = api.post_text("/jobs/cron", text.as_str()).await;
        assert_eq!(answer.status, 400, "{}: {}", &text[..40], answer.body);
    }
}

/// What is packed wrongly is refused, whatever it says of itself (bombs: the gateway's own tests).
async fn assert_nothing_is_inflated(port: u16) {
    let client = reqwest::Client::new();
    let zipped = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3];
    let url = format!("http://127.0.0.1:{port}{BASE}/jobs/cron");
    let sent = client.post(url).header("content-encoding", "gzip").body(zipped.to_vec()).send().await;
    assert_eq!(sent.expect("it answers").status(), 400);
    let url = format!("http://127.0.0.1:{port}/carillon.v1.JobService/ListJobs");
    let message = [[1, 0, 0, 0, 10].as_slice(), &zipped].concat();
    let request = client.post(url).header("content-type", "application/grpc-web+proto").header("grpc-encoding", "gzip");
    let answer = request.body(message).send().await.expect("it answers");
    assert_eq!(answer.headers().get("grpc-status").map(|code| code.as_bytes()), Some(b"3".as_slice()), "{answer:?}");
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.expect("it accepts")
}

/// A header that never ends, a letter at a time, until the gateway has had enough.
async fn slow_headers(port: u16) {
    let mut stream = connect(port).await;
    let begun = format!("GET {BASE}/jobs HTTP/1.1\r\nhost: x\r\nx-slow: ");
    let mut written = stream.write_all(begun.as_bytes()).await;
    while written.is_ok() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        written = stream.write_all(b"a").await;
    }
}

/// As much of a gigabyte as is taken.
async fn huge_body(port: u16) {
    let chunk = vec![b'x'; 1 << 20];
    let mut again = tokio::time::interval(AGAIN);
    loop {
        again.tick().await;
        let mut stream = connect(port).await;
        let head =
            format!("POST {BASE}/jobs/cron HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{{\"name\":\"", 1 << 30);
        let mut written = stream.write_all(head.as_bytes()).await;
        while written.is_ok() {
            written = stream.write_all(&chunk).await;
        }
    }
}

/// Begins requests that ask Postgres, and takes each back at once; on another connection when it is thrown out.
async fn rapid_resets(port: u16) {
    let mut again = tokio::time::interval(AGAIN);
    loop {
        again.tick().await;
        let mut stream = http2(port).await;
        for stream_id in (0..RESETS).map(|index| 2 * index + 1) {
            let mut frames = get(stream_id, &format!("{BASE}/jobs"));
            frames.extend(frame(RST_STREAM, 0, stream_id, &8_u32.to_be_bytes()));
            if stream.write_all(&frames).await.is_err() {
                break;
            }
        }
    }
}

/// A frame that says it is of 16 MB, and as much of it as is taken.
async fn huge_frame(port: u16) {
    let chunk = vec![0; 1 << 20];
    let mut again = tokio::time::interval(AGAIN);
    loop {
        again.tick().await;
        let mut stream = http2(port).await;
        let mut written = stream.write_all(&[0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1]).await;
        while written.is_ok() {
            written = stream.write_all(&chunk).await;
        }
    }
}

/// A connection that speaks HTTP/2, as it begins: the settings of either side are known to the other.
async fn http2(port: u16) -> TcpStream {
    let mut stream = connect(port).await;
    let begun = async {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        let kind = next_frame(&mut stream).await?;
        stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?;
        std::io::Result::Ok(kind)
    };
    assert_eq!(begun.await.expect("it speaks HTTP/2"), SETTINGS);
    stream
}

/// Which kind of frame comes next.
async fn next_frame(stream: &mut TcpStream) -> std::io::Result<u8> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    stream.read_exact(&mut payload).await?;
    Ok(head[3])
}

/// Frames and flags (RFC 9113).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream_id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A GET without a body.
fn get(stream_id: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream_id, &block(0x82, path))
}

/// A POST whose body is still to come.
fn post(stream_id: u32, path: &str, content_type: &str) -> Vec<u8> {
    let mut block = block(0x83, path);
    block.extend([0x0F, 0x10, u8::try_from(content_type.len()).expect("short")]);
    block.extend(content_type.as_bytes());
    frame(HEADERS, END_HEADERS, stream_id, &block)
}

/// The headers of a request (RFC 7541: indexed fields, and literals that are not to be remembered).
fn block(method: u8, path: &str) -> Vec<u8> {
    let mut block = vec![method, 0x86];
    for (name, value) in [(0x04, path), (0x01, "x")] {
        block.extend([name, u8::try_from(value.len()).expect("short")]);
        block.extend(value.as_bytes());
    }
    block
}

/// The most that the resident set of a process ever was.
fn resident_mib(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it has one");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1_024.0
}
