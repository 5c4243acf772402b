//! What every answer goes through, whatever it answers: an id for each request, who may ask from a web page of another origin,
//! headers that no log shows; and for JSON gzip, both ways. tower-http does it; here stands with what bounds.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, COOKIE, ETAG, PROXY_AUTHORIZATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt as _, service_fn};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};
use tower_http::decompression::RequestDecompressionLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tracing::{Instrument as _, Span, error_span};

use crate::json::Transcoder;
use crate::unpack;

/// Names a request, for whoever looks for it in logs.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer one is not kept.
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Answers of less are not worth it.
const GZIP_BYTES_MIN: u64 = 1024;
/// How long a browser may remember what it may ask.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// Answers requests, whatever they are.
pub(crate) type Answering = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// The body of this request comes compressed: what cannot be read of it is the client's fault, not its line's. An extension,
/// which no client can set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IsCompressed;

tokio::task_local! {
    /// The id of the request at hand.
    static ASKED: HeaderValue;
}

/// The id of the request at hand, as its answer says it.
pub(crate) fn request_id() -> Option<String> {
    ASKED.try_with(|id| id.to_str().unwrap_or_default().to_owned()).ok().filter(|id| !id.is_empty())
}

/// Puts it around `answer`. `origins` are those whose pages may ask; `*` is any.
pub(crate) fn around<F, Fut>(origins: &[String], answer: F) -> Answering
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let id = request.headers().get(&REQUEST_ID).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        let span = span_of(request.headers());
        let is_head = request.method() == Method::HEAD;
        let answering = ASKED.scope(id, answer(request)).instrument(span);
        async move {
            let response = answering.await;
            Ok::<_, Infallible>(if is_head { without_body(response) } else { response })
        }
    });
    let layered = ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE]))
        .map_request(|mut request: Request<Incoming>| {
            drop_insane_id(request.headers_mut());
            request
        })
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .option_layer(cors(origins))
        .service(service);
    BoxCloneSyncService::new(layered.map_response(|response: Response<_>| response.map(Body::new)))
}

/// What a request is known by in the log: whatever level is logged, what went wrong is logged with it.
fn span_of(headers: &HeaderMap) -> Span {
    let id = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    error_span!("request", request.id = id)
}

/// Answers a JSON request: unpacks what it says, and packs what it is told.
pub(crate) async fn json(json: Transcoder, mut request: Request<Incoming>) -> Response<Body> {
    if let Some(encoding) = request.headers_mut().get_mut(CONTENT_ENCODING) {
        if unpack::is_gzip(encoding) {
            // The one way that is known of writing it.
            *encoding = HeaderValue::from_static("gzip");
        }
        request.extensions_mut().insert(IsCompressed);
    }
    let answering = service_fn(move |request| {
        let json = json.clone();
        async move { Ok::<_, Infallible>(json.answer(request).await) }
    });
    let packed = CompressionLayer::new()
        .gzip(true)
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(GZIP_BYTES_MIN));
    // What it does not unpack keeps its header, and is refused in our own words.
    let unpacked = RequestDecompressionLayer::new().gzip(true).pass_through_unaccepted(true);
    let service = ServiceBuilder::new().layer(packed).layer(unpacked).service(answering);
    match service.oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let shown = ["grpc-status", "grpc-message", "grpc-status-details-bin"].map(HeaderName::from_static);
    Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(shown.into_iter().chain([REQUEST_ID, ETAG, RETRY_AFTER]).collect::<Vec<_>>())
            .max_age(PREFLIGHT_AGE),
    )
}

fn drop_insane_id(headers: &mut HeaderMap) {
    let is_sane = |id: &HeaderValue| {
        let id = id.as_bytes();
        !id.is_empty() && id.len() <= REQUEST_ID_CHARS_MAX && id.iter().all(u8::is_ascii_graphic)
    };
    let ids = headers.get_all(&REQUEST_ID);
    if ids.iter().count() > 1 || !ids.iter().all(is_sane) {
        headers.remove(&REQUEST_ID);
    }
}

/// Over HTTP/2 nobody else leaves it out.
fn without_body(response: Response<Body>) -> Response<Body> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| Body::empty());
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A span of a lower level is not there where only worse is logged, and its id with it.
    #[test]
    fn what_goes_wrong_is_logged_with_the_id_of_its_request() {
        let metadata = span_of(&HeaderMap::new()).metadata().unwrap();
        assert_eq!((*metadata.level(), metadata.fields().field("request.id").is_some()), (tracing::Level::ERROR, true));
    }

    #[test]
    fn an_id_is_kept_if_it_is_one_and_short_and_visible() {
        let kept = |ids: &[&str]| {
            let mut headers = HeaderMap::new();
            for id in ids {
                headers.append(REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            }
            drop_insane_id(&mut headers);
            headers.contains_key(REQUEST_ID)
        };
        let longest = "x".repeat(REQUEST_ID_CHARS_MAX);
        assert!(kept(&["a-1"]) && kept(&[&longest]));
        for ids in [&[""][..], &["a b"], &["\u{e9}"], &["a", "b"], &[&format!("{longest}x")]] {
            assert!(!kept(ids), "{ids:?}");
        }
    }
}
