//! One listening socket for everything. A request whose content type begins with `application/grpc` goes to the gRPC
//! services (gRPC-Web included), any other to the JSON side; HTTP/1 and HTTP/2 are told apart by their first bytes.
//!
//! Why a loop of our own around hyper: the ready-made ones set no limits, and this port is open to everybody. Bounded are
//! connections, the time that headers may take, the size of header lists and the streams of a connection, and requests by
//! [`Admission`]; a silent HTTP/2 peer is noticed by its missing pong.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service};
use tracing::{debug, warn};

use crate::admission::{Admission, NoBody, Share};
use crate::error_response::{plain, with_reason};
use crate::json::Transcoder;
use crate::reason::Reason;

/// How long the headers of a request, and the first byte of a connection, may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How often an HTTP/2 peer is asked whether it lives, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 250;
const HEADER_LIST_BYTES_MAX: u32 = 32 * 1024;
/// A gRPC request, gRPC-Web's base64 included: what tonic lets a message have (4 MiB), it refuses by its own words.
const GRPC_BYTES_MAX: usize = 6 * 1024 * 1024;
/// Calls whose client goes on speaking while it is answered.
const CONVERSATION: &str = "/grpc.reflection.";
/// Pause after the system refused a connection (no file descriptor left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What answers requests.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    grpc: GrpcWebService<Routes>,
    json: Transcoder,
    admission: Arc<Admission>,
}

impl Front {
    /// `services` are all gRPC services; `json` answers everything else.
    pub(crate) fn new(services: Routes, json: Transcoder, admission: Arc<Admission>) -> Self {
        Self { grpc: GrpcWebLayer::new().layer(services.prepare()), json, admission }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|value| {
            let prefix = b"application/grpc";
            value.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        });
        if is_grpc { self.call(request).await } else { Ok(self.json.answer(request).await) }
    }

    async fn call(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let share = parts.extensions.get::<Share>().cloned().unwrap_or_default();
        let (body, room) = if parts.uri.path().starts_with(CONVERSATION) {
            (Body::new(body), None)
        } else {
            match self.admission.body(body, GRPC_BYTES_MAX, &share).await {
                Ok(whole) => (Body::new(Full::new(whole.bytes.clone())), Some(whole)),
                Err(why) => return Ok(refused(why).into_http()),
            }
        };
        let _admitted = match self.admission.request() {
            Ok(admitted) => admitted,
            Err(status) => return Ok(status.into_http()),
        };
        let call = parts.uri.path().to_owned();
        let response = self.grpc.clone().call(Request::from_parts(parts, body)).await?;
        // It is answered: its room is free.
        drop(room);
        let refused = Status::from_header_map(response.headers()).and_then(|status| with_reason(&status, &call));
        Ok(refused.map_or(response, Status::into_http))
    }
}

fn refused(why: NoBody) -> Status {
    match why {
        NoBody::TooLarge => {
            plain(Reason::RequestTooLarge, format!("the request is larger than {GRPC_BYTES_MAX} bytes"))
        }
        NoBody::Late(limit) => plain(Reason::RequestLate, format!("the request did not arrive within {limit:?}")),
        NoBody::NoRoom(status) => status,
        NoBody::Broken(why) => plain(Reason::RequestBroken, format!("the request could not be read: {why}")),
    }
}

/// Serves until `shutdown`, then lets requests in flight end.
pub(crate) async fn serve(listener: TcpListener, front: Front, connections_max: usize, shutdown: CancellationToken) {
    let connections = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    let graceful = Arc::new(GracefulShutdown::new());
    let front = Arc::new(front);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = Arc::clone(&connections).acquire_owned() => {
                let Ok(permit) = permit else { break };
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    accepted = listener.accept() => accepted.map(|(stream, _)| (stream, permit)),
                }
            }
        };
        match accepted {
            Ok((stream, permit)) => {
                let serving = connection(stream, Arc::clone(&front), graceful.watcher(), shutdown.clone());
                tokio::spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if let Some(graceful) = Arc::into_inner(graceful) {
        graceful.shutdown().await;
    }
}

async fn connection(
    stream: TcpStream,
    front: Arc<Front>,
    watcher: hyper_util::server::graceful::Watcher,
    shutdown: CancellationToken,
) {
    // A peer that connects and says nothing is not even asked which protocol it speaks.
    let first_byte = tokio::time::timeout(HEADER_TIMEOUT, stream.readable());
    tokio::select! {
        () = shutdown.cancelled() => return,
        readable = first_byte => if !matches!(readable, Ok(Ok(()))) { return },
    }
    if let Err(error) = stream.set_nodelay(true) {
        debug!("cannot turn off Nagle's algorithm: {error}");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .adaptive_window(true);
    let share = Share::default();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(share.clone());
        let front = Arc::clone(&front);
        async move { front.answer(request).await }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(serving).await {
        debug!("a connection ended early: {error}");
    }
}
