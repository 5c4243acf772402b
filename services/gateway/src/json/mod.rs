//! JSON over HTTP, derived from the descriptors: nothing in here knows a job.
//!
//! A request becomes a dynamic message and goes through the same in-process gRPC service as every other, so that validation,
//! errors and metrics exist once. What could not be read of it goes along ([`KnownMistakes`]), so that the answer names all
//! wrong fields at once, whichever side finds them.

pub(crate) mod document;
mod number;
#[cfg(test)]
mod oracle;
mod query;
mod request;
pub(crate) mod routes;
mod scalar;
mod template;
#[cfg(test)]
mod tests;
mod text;

use carillon_proto::PLATFORM_HEADER;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use carillon_core::error::quoted;
use carillon_core::limits::WORD_CHARS_MAX;
use carillon_proto::codec::DynamicCodec;
use carillon_proto::json::{EnumWords, Shown};
use http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH, ORIGIN, RETRY_AFTER};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage};
use serde::Serialize;
use serde_json::Value as Json;
use tonic::Status;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::metadata::MetadataMap;
use tonic::service::Routes as GrpcRoutes;

use crate::admission::{Admission, NoBody, Share, Whole};
use crate::error_response::{body_refused, http_status, identified, internal, later, plain, retry_after};
use crate::observe;
use crate::openapi::Documents;
use crate::reason::Reason;
use crate::sizes;
use crate::transport::IsCompressed;
pub(crate) use request::Mistake;
use routes::{Found, Route, Routes};
pub(crate) use scalar::too_many_paths;

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Headers that go along as gRPC metadata, each as often as it was given.
const FORWARDED: [&str; 5] = ["authorization", "traceparent", "tracestate", "x-request-id", PLATFORM_HEADER];

/// What the JSON side found wrong with a request; travels as an extension, which no client can set.
#[derive(Clone, Debug)]
pub(crate) struct KnownMistakes(pub(crate) Arc<Vec<Mistake>>);

/// Answers HTTP requests with JSON.
#[derive(Clone, Debug)]
pub(crate) struct Transcoder {
    routes: Arc<Routes>,
    status: MessageDescriptor,
    service: GrpcRoutes,
    body_bytes_max: usize,
    enum_words: EnumWords,
    admission: Arc<Admission>,
    documents: Documents,
}

/// The body of every failure, in this order.
#[derive(Serialize)]
struct ErrorBody<'a> {
    /// The gRPC code.
    code: i32,
    message: &'a str,
    /// Each with its `@type`.
    details: Vec<Json>,
}

impl Transcoder {
    /// Derives the routes from the descriptors; `service` is what they call.
    pub(crate) fn new(
        service: GrpcRoutes,
        body_bytes_max: usize,
        enum_words: EnumWords,
        admission: Arc<Admission>,
    ) -> Result<Self, String> {
        let pool = carillon_proto::descriptors();
        let status =
            pool.get_message_by_name("google.rpc.Status").ok_or("google.rpc.Status is not in the descriptors")?;
        let routes = Arc::new(Routes::from_descriptors(&pool)?);
        let documents = Documents::of(&routes, enum_words)?;
        Ok(Self { routes, status, service, body_bytes_max, enum_words, admission, documents })
    }

    /// Answers one request.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let began = Instant::now();
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if matches!(parts.method, Method::GET | Method::HEAD)
            && let Some(document) = self.documents.answer(path, &parts.headers)
        {
            return document;
        }
        let found = match self.routes.find(&parts.method, path) {
            Found::Nothing if self.documents.is_at(path) => Found::OtherMethods(vec![Method::GET]),
            found => found,
        };
        let (route, values) = match found {
            Found::Route(route, values) => (route, values),
            Found::OtherMethods(allow) => {
                let why = format!("{} is not a method of {path}", parts.method);
                let status = plain(Reason::MethodNotAllowed, why);
                observe::record("none", status.code(), began);
                let mut response = self.failed(&status);
                let methods: Vec<&str> = allow.iter().map(Method::as_str).collect();
                if let Ok(value) = HeaderValue::from_str(&methods.join(", ")) {
                    response.headers_mut().insert(ALLOW, value);
                }
                return response;
            }
            Found::Nothing => {
                let status = plain(Reason::PathUnknown, format!("there is nothing at {path}"));
                observe::record("none", status.code(), began);
                return self.failed(&status);
            }
        };
        let (read, _room) = match self.read_body(route, &parts, body).await {
            Ok(read) => read,
            Err(status) => {
                observe::record(&route.name, status.code(), began);
                return self.failed(&status);
            }
        };
        let _admitted = match self.admission.request() {
            Ok(admitted) => admitted,
            Err(status) => {
                observe::record(&route.name, status.code(), began);
                return self.failed(&status);
            }
        };
        let query = parts.uri.query().unwrap_or_default();
        let (mut message, mut mistakes) = route.request(values, query, read.as_ref());
        mistakes.extend(take_idempotency_key(&mut message, &parts.headers).err());
        mistakes.extend(take_if_match(route, &mut message, &parts.headers).err());
        match self.call(route, message, mistakes, &parts.headers).await {
            Ok(message) => self.succeeded(route, &message),
            Err(status) => self.failed(&status),
        }
    }

    /// The body as JSON, and the room that it takes.
    async fn read_body<B>(
        &self,
        route: &Route,
        parts: &Parts,
        body: B,
    ) -> Result<(Option<document::Json>, Whole), Status>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        if let Some(encoding) = parts.headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            let encoding = quoted(&String::from_utf8_lossy(encoding.as_bytes()));
            let rule = format!("must be packed by gzip or not at all, is by {encoding}");
            return Err(body_refused(Reason::MediaTypeUnsupported, rule));
        }
        let bytes_max = sizes::json_body(route.grpc_path.path(), self.body_bytes_max);
        let share = parts.extensions.get::<Share>().cloned().unwrap_or_default();
        let whole = match self.admission.body(body, bytes_max, &share).await {
            Ok(whole) => whole,
            Err(NoBody::TooLarge) => {
                let rule = format!("is larger than {bytes_max} bytes");
                return Err(body_refused(Reason::RequestTooLarge, rule));
            }
            Err(NoBody::Broken(_)) if parts.extensions.get::<IsCompressed>().is_some() => {
                return Err(body_refused(Reason::InvalidFields, "cannot be unpacked by gzip"));
            }
            Err(NoBody::Broken(why)) => {
                return Err(body_refused(Reason::RequestBroken, format!("could not be read: {why}")));
            }
            Err(NoBody::Late(limit)) => {
                return Err(plain(Reason::RequestLate, format!("the body did not arrive within {limit:?}")));
            }
            Err(NoBody::NoRoom(status)) => return Err(status),
        };
        if whole.bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok((None, whole));
        }
        if route.has_body() && comes_from_a_foreign_form(&parts.headers) {
            let rule = "must be sent with the content type application/json";
            return Err(body_refused(Reason::MediaTypeUnsupported, rule));
        }
        match document::parse(&whole.bytes) {
            Ok(read) => Ok((Some(read), whole)),
            Err(why) => Err(body_refused(Reason::InvalidFields, why.rule())),
        }
    }

    async fn call(
        &self,
        route: &Route,
        message: DynamicMessage,
        mistakes: Vec<Mistake>,
        headers: &HeaderMap,
    ) -> Result<DynamicMessage, Status> {
        let mut request = tonic::Request::new(message);
        if !mistakes.is_empty() {
            request.extensions_mut().insert(KnownMistakes(Arc::new(mistakes)));
        }
        let mut forwarded = HeaderMap::new();
        for name in FORWARDED {
            for value in headers.get_all(name) {
                forwarded.append(name, value.clone());
            }
        }
        *request.metadata_mut() = MetadataMap::from_headers(forwarded);
        let mut service = self.service.clone();
        std::future::poll_fn(|context| GrpcService::<Body>::poll_ready(&mut service, context))
            .await
            .map_err(|error| later(Reason::GatewayBusy, format!("not ready: {error}")))?;
        let codec = DynamicCodec(route.output.clone());
        Ok(Grpc::new(service).unary(request, route.grpc_path.clone(), codec).await?.into_inner())
    }

    fn succeeded(&self, route: &Route, message: &DynamicMessage) -> Response<Body> {
        let status = route.success();
        if status == StatusCode::NO_CONTENT {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            return response;
        }
        match serde_json::to_vec(&Shown::whole(message, self.enum_words)) {
            Ok(bytes) => {
                let mut response = json(status, bytes);
                if let Some(etag) = etag_of(message) {
                    response.headers_mut().insert(http::header::ETAG, etag);
                }
                response
            }
            Err(error) => {
                tracing::error!(method = route.name, "an answer has no JSON form: {error}");
                self.failed(&internal())
            }
        }
    }

    /// What a client is told that is refused.
    pub(crate) fn failed(&self, status: &Status) -> Response<Body> {
        let mut response = json(http_status(status), self.error_body(&identified(status)));
        if let Some(seconds) = retry_after(status) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// `{code, message, details[]}`, the details with their types.
    fn error_body(&self, status: &Status) -> Vec<u8> {
        let details = DynamicMessage::decode(self.status.clone(), status.details()).ok();
        let details =
            details.and_then(|message| message.get_field_by_name("details").map(std::borrow::Cow::into_owned));
        let details: Vec<Json> = match details {
            Some(prost_reflect::Value::List(list)) => list
                .iter()
                .filter_map(|value| value.as_message())
                .filter_map(|message| serde_json::to_value(Shown::set_only(message)).ok())
                .collect(),
            _ => Vec::new(),
        };
        let body = ErrorBody { code: status.code().into(), message: status.message(), details };
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

fn json(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(Bytes::from(bytes))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// The header that says what `request_id` says, of calls that have one. Of all others it may be made again anyhow, and clients give it
/// to every POST.
fn take_idempotency_key(message: &mut DynamicMessage, headers: &HeaderMap) -> Result<(), Mistake> {
    let Some(field) = message.descriptor().get_field_by_name("request_id") else { return Ok(()) };
    let Some(key) = only_text(headers, IDEMPOTENCY_KEY)? else { return Ok(()) };
    if key.is_empty() {
        let rule = format!("is empty: leave it out, or give 1 to {WORD_CHARS_MAX} characters");
        return Err(Mistake::new(IDEMPOTENCY_KEY, rule));
    }
    say(message, &field, key.to_owned(), IDEMPOTENCY_KEY)
}

/// The header that says what `etag` says. `*` is any that there is. A call that has none refuses it: what it would do is not what whoever
/// gives it relies on.
fn take_if_match(route: &Route, message: &mut DynamicMessage, headers: &HeaderMap) -> Result<(), Mistake> {
    let name = IF_MATCH.as_str();
    let Some(etag) = only_text(headers, name)? else { return Ok(()) };
    if !route.takes_if_match() {
        return Err(Mistake::new(name, "must be left out: this call takes none"));
    }
    match etag {
        "" => Err(Mistake::new(name, "is empty: leave it out, or give the etag of an answer, or *")),
        "*" => Ok(()),
        // None of ours has a comma.
        list if list.contains(',') => Err(Mistake::new(name, "must be one etag, is a list")),
        etag => match route.etag_field(message) {
            Some((at, field)) => say(at, &field, etag.trim_start_matches("W/").to_owned(), name),
            None => Ok(()),
        },
    }
}

/// What a header says that may be given once.
fn only_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Mistake> {
    let mut given = headers.get_all(name).iter();
    let Some(first) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(Mistake::new(name, "must be given once"));
    }
    let text = first.to_str().map_err(|_| Mistake::new(name, "must be of visible ASCII characters"))?;
    Ok(Some(text.trim()))
}

/// Takes what a header says into the field that says the same, unless that says something else.
fn say(message: &mut DynamicMessage, field: &FieldDescriptor, text: String, header: &str) -> Result<(), Mistake> {
    let text = prost_reflect::Value::String(text);
    if message.has_field(field) && *message.get_field(field) != text {
        return Err(Mistake::new(field.name(), format!("is another one than the header {header} says")));
    }
    message.set_field(field, text);
    Ok(())
}

/// The version of what is answered, if it has one.
fn etag_of(message: &DynamicMessage) -> Option<HeaderValue> {
    let field = message.descriptor().get_field_by_name(routes::ETAG)?;
    HeaderValue::from_str(message.get_field(&field).as_str()?).ok()
}

/// A web page of another origin can make a browser send these content types without asking first; nothing else that is not
/// called JSON is refused, since `curl -d` says form too.
fn comes_from_a_foreign_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let simple = ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];
    headers.contains_key(ORIGIN) && simple.contains(&essence.as_str())
}

/// The table of routes as text, for the committed copy and for documents.
///
/// # Errors
/// If the descriptors cannot be turned into routes.
pub fn describe_routes() -> Result<String, String> {
    Ok(Routes::from_descriptors(&carillon_proto::descriptors())?.describe())
}
