//! One listening socket for everything. A request whose content type begins with `application/grpc` goes to the gRPC
//! services (gRPC-Web included), any other to the JSON side; HTTP/1 and HTTP/2 are told apart by their first bytes.
//!
//! Why a loop of our own around hyper: the ready-made ones set no limits, and this port is open to everybody. Bounded are
//! connections by [`Openings`] and [`Places`], the time that headers may take, the size of header lists and the streams of a
//! connection, and requests by [`Admission`]; a silent HTTP/2 peer is noticed by its missing pong.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service, ServiceExt as _};
use tracing::{debug, warn};

use crate::admission::{Admission, NoBody, Share, Whole};
use crate::deadline;
use crate::error_response::{plain, with_reason};
use crate::headers;
use crate::json::Transcoder;
use crate::observe;
use crate::opening::Openings;
use crate::places::Places;
use crate::reason::Reason;
use crate::sizes;
use crate::transport::{self, Answering};
use crate::unpack::{self, Unreadable};

/// How long the headers of a request, and the first words of a connection, may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection that makes room may be silent before it is closed: what its peer has sent meanwhile arrives in it.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long its answer may lie there before it is closed.
const TAKING_MAX: Duration = Duration::from_secs(10);
/// How often an HTTP/2 peer is asked whether it lives, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 250;
/// What a connection of HTTP/1 holds of what was not read yet: all headers of a request.
const HTTP1_BUFFER_BYTES: usize = headers::BYTES_READ as usize;
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

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|value| {
            let prefix = b"application/grpc";
            value.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        });
        if let Some(refused) = headers::refuse(request.headers()) {
            observe::record("none", refused.code(), Instant::now());
            return if is_grpc { refused.into_http() } else { self.json.failed(&refused) };
        }
        let limit = deadline::of(request.headers()).unwrap_or(Duration::MAX);
        // Boxed: it is large, and a connection has many.
        let answering = Box::pin(async {
            if is_grpc {
                self.call(request).await.unwrap_or_else(|never| match never {})
            } else {
                transport::json(self.json.clone(), request).await
            }
        });
        tokio::time::timeout(limit, answering).await.unwrap_or_else(|_| {
            let why = "the deadline of the request has passed: it may or may not have been done";
            let late = plain(Reason::DeadlineExceeded, why);
            if is_grpc { late.into_http() } else { self.json.failed(&late) }
        })
    }

    async fn call(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let share = parts.extensions.get::<Share>().cloned().unwrap_or_default();
        let (body, room) = if parts.uri.path().starts_with(CONVERSATION) {
            (Body::new(body), None)
        } else {
            let content_type =
                parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let bytes_max = sizes::grpc_body(parts.uri.path(), content_type);
            match self.admission.body(body, bytes_max, &share).await {
                Ok(whole) => match self.unpacked(&parts.headers, whole, bytes_max, &share) {
                    Ok(whole) => (Body::new(Full::new(whole.bytes.clone())), Some(whole)),
                    Err(why) => return Ok(why.into_http()),
                },
                Err(why) => return Ok(refused(why, bytes_max).into_http()),
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

    /// The body with its message unpacked, and room for what it is then.
    fn unpacked(&self, headers: &HeaderMap, whole: Whole, bytes_max: usize, share: &Share) -> Result<Whole, Status> {
        match unpack::message(headers, &whole.bytes, bytes_max) {
            Ok(None) => Ok(whole),
            Ok(Some(bytes)) => self.admission.unpacked(bytes, share).map_err(|why| refused(why, bytes_max)),
            Err(Unreadable::TooLarge) => Err(refused(NoBody::TooLarge, bytes_max)),
            Err(Unreadable::Broken) => Err(plain(Reason::Undecodable, "the message cannot be unpacked by gzip")),
        }
    }
}

fn refused(why: NoBody, bytes_max: usize) -> Status {
    match why {
        NoBody::TooLarge => plain(Reason::RequestTooLarge, format!("the request is larger than {bytes_max} bytes")),
        NoBody::Late(limit) => plain(Reason::RequestLate, format!("the request did not arrive within {limit:?}")),
        NoBody::NoRoom(status) => status,
        NoBody::Broken(why) => plain(Reason::RequestBroken, format!("the request could not be read: {why}")),
    }
}

/// What all connections share.
struct Serving {
    openings: Openings,
    places: Arc<Places>,
    answering: Answering,
}

/// Serves until `shutdown`, then lets requests in flight end. `connections_max` speak at once, and as many have not said yet what;
/// pages of `origins` may ask.
pub(crate) async fn serve(
    listener: TcpListener,
    front: Front,
    connections_max: usize,
    origins: &[String],
    shutdown: CancellationToken,
) {
    let front = Arc::new(front);
    let answering = transport::around(origins, move |request| {
        let front = Arc::clone(&front);
        async move { front.answer(request).await }
    });
    let serving = Arc::new(Serving {
        openings: Openings::new(connections_max, HEADER_TIMEOUT),
        places: Arc::new(Places::new(connections_max)),
        answering,
    });
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(&serving), shutdown.clone()));
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, shared: Arc<Serving>, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!("cannot turn off Nagle's algorithm: {error}");
    }
    // A peer that connects and says nothing takes no place of those that speak.
    let admitted = async {
        let opened = shared.openings.open(stream).await?;
        Some((opened, shared.places.take().await?))
    };
    let admitted = tokio::select! {
        () = shutdown.cancelled() => return,
        admitted = admitted => admitted,
    };
    let Some((stream, place)) = admitted else { return };
    let (share, counter) = (Share::default(), place.counter());
    let service = service_fn(|mut request: Request<Incoming>| {
        let flight = counter.begin();
        request.extensions_mut().insert(share.clone());
        let answering = shared.answering.clone();
        async move { answering.oneshot(request).await.map(|response| flight.answered(response)) }
    });
    let builder = bounded();
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let silence_max = tokio::select! {
        // First: what has arrived is read before the connection is told to go.
        biased;
        ended = serving.as_mut() => return closed(ended),
        () = place.must_go() => GOODBYE,
        () = shutdown.cancelled() => HEADER_TIMEOUT,
    };
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        ended = serving.as_mut() => closed(ended),
        () = place.quiet(silence_max, silence_max.max(TAKING_MAX)) => {}
    }
}

/// HTTP as this port speaks it.
fn bounded() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(headers::COUNT_READ)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(headers::BYTES_READ)
        .adaptive_window(true);
    builder
}

fn closed(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        debug!("a connection ended early: {error}");
    }
}
