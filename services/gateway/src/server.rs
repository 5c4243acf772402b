//! One listening socket for everything. A request goes to the gRPC services (gRPC-Web included) or to the JSON side by its content
//! type; HTTP/1 and HTTP/2 are told apart by their first bytes.
//!
//! Why a loop of our own around hyper: the ready-made ones set no limits, and this port is open to everybody. Bounded are
//! connections by [`Openings`] and [`Places`], the time that headers may take, the size of header lists and the streams of a
//! connection, and requests by [`Admission`]; a silent HTTP/2 peer is noticed by its missing pong.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::ALLOW;
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service, ServiceExt as _};
use tracing::{debug, warn};

use crate::admission::{Admission, Share};
use crate::calls::Calls;
use crate::deadline::Deadline;
use crate::error_response::{identified, plain};
use crate::headers;
use crate::json::Transcoder;
use crate::observe;
use crate::opening::Openings;
use crate::places::Places;
use crate::reason::Reason;
use crate::spoken::{self, CameAsText, Form, Spoken};
use crate::transport::{self, Answering};

/// How long the headers of a request, and the first words of a connection, may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection that makes room may be silent before it is closed: what its peer has sent meanwhile arrives in it.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long its answer may lie there before it is closed.
const TAKING_MAX: Duration = Duration::from_secs(10);
/// How often an HTTP/2 peer is asked whether it lives, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 250;
/// Pause after the system refused a connection (no file descriptor left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What answers requests.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    grpc: GrpcWebService<Calls>,
    json: Transcoder,
}

impl Front {
    /// `services` are all gRPC services; `json` answers everything else.
    pub(crate) fn new(services: Routes, json: Transcoder, admission: Arc<Admission>) -> Self {
        Self { grpc: GrpcWebLayer::new().layer(Calls::new(services, admission)), json }
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let spoken = spoken::of(request.headers());
        if let Some(refused) = headers::refuse(request.headers()) {
            observe::record(observe::NO_METHOD, refused.code(), Instant::now());
            let is_grpc = matches!(spoken, Spoken::Grpc | Spoken::Web(_));
            return if is_grpc { identified(&refused).into_http() } else { self.json.failed(&refused) };
        }
        let refused = match spoken {
            Spoken::Json => None,
            Spoken::Grpc => (request.version() != Version::HTTP_2).then(|| {
                let why = "gRPC is spoken over HTTP/2; over HTTP/1.1 gRPC-Web is, and JSON";
                self.json.failed(&plain(Reason::MediaTypeUnsupported, why))
            }),
            Spoken::Web(form) if request.method() == Method::POST => {
                spoken::write_plainly(request.headers_mut(), form);
                if form == Form::Text {
                    request.extensions_mut().insert(CameAsText);
                }
                None
            }
            Spoken::Web(_) => {
                let why = format!("{} is not a method of gRPC-Web", request.method());
                let mut refused = self.json.failed(&plain(Reason::MethodNotAllowed, why));
                refused.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                Some(refused)
            }
            Spoken::Unknown => {
                let why = "messages of gRPC and gRPC-Web must be protobuf (+proto)";
                Some(self.json.failed(&plain(Reason::MediaTypeUnsupported, why)))
            }
        };
        if let Some(refused) = refused {
            return refused;
        }
        // Boxed: it is large, and a connection has many.
        if spoken != Spoken::Json {
            let Ok(answer) = Box::pin(self.grpc.clone().call(request)).await;
            return answer;
        }
        let deadline = Deadline::of(request.headers());
        let answering = deadline.hold(transport::json(self.json.clone(), request));
        Box::pin(answering).await.unwrap_or_else(|late| self.json.failed(&late))
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
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_headers(headers::COUNT_READ);
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
