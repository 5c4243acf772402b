//! gRPC calls, and those of gRPC-Web once tonic-web has made plain ones of them: each is there as a whole before it is answered,
//! unpacked and within its bounds, and whatever is refused before a service sees it has a reason too, and is counted.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;

use crate::admission::{Admission, NoBody, Share, Whole};
use crate::counts::Counts;
use crate::deadline::Deadline;
use crate::error_response::{identified, plain, with_reason};
use crate::observe;
use crate::reason::Reason;
use crate::sizes;
use crate::spoken::CameAsText;
use crate::unpack::{self, Unreadable};

/// Calls whose client goes on speaking while it is answered.
const CONVERSATION: &str = "/grpc.reflection.";
/// Services that know none of our reasons: health and reflection.
const TONICS_OWN: &str = "/grpc.";

/// All gRPC services.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    services: Routes,
    admission: Arc<Admission>,
    /// The paths of the API's own: only these are counted by name.
    known: Arc<HashSet<String>>,
    counts: Arc<Counts>,
}

impl Calls {
    pub(crate) fn new(services: Routes, admission: Arc<Admission>) -> Self {
        let api = carillon_proto::descriptors();
        let known = api.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        let known = known.map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()));
        let counts = Arc::new(Counts::of(&api));
        Self { services: services.prepare(), admission, known: Arc::new(known.collect()), counts }
    }

    async fn answer(&mut self, request: Request<Body>) -> Response<Body> {
        let (began, deadline) = (Instant::now(), Deadline::of(request.headers()));
        let path = request.uri().path().to_owned();
        let whole = deadline.hold(self.whole(request)).await.flatten();
        let admitted = whole.and_then(|whole| Ok((whole, self.admission.request()?)));
        let ((request, room), _admitted) = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => return self.refuse(&path, refused, began),
        };
        let response = match deadline.hold(self.services.call(request)).await {
            Ok(Ok(response)) => response,
            // Counted where it was being answered.
            Err(late) => return identified(&late).into_http(),
        };
        // It is answered: its room is free.
        drop(room);
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != Code::Ok => match with_reason(&status, &path) {
                Some(refused) => self.refuse(&path, refused, began),
                None => identified(&status).into_http(),
            },
            _ if path.starts_with(TONICS_OWN) => response.map(|body| with_reasons(body, path)),
            _ => response,
        }
    }

    /// What no service has seen.
    fn refuse(&self, path: &str, refused: Status, began: Instant) -> Response<Body> {
        let method = path.rsplit('/').next().filter(|_| self.known.contains(path));
        observe::record(method.unwrap_or(observe::NO_METHOD), refused.code(), began);
        identified(&refused).into_http()
    }

    /// The request with the whole of its message, and the room that this takes.
    async fn whole(&self, request: Request<Body>) -> Result<(Request<Body>, Option<Whole>), Status> {
        let (mut parts, body) = request.into_parts();
        if parts.uri.path().starts_with(CONVERSATION) {
            return Ok((Request::from_parts(parts, body), None));
        }
        let share = parts.extensions.get::<Share>().cloned().unwrap_or_default();
        let bytes_max = sizes::grpc_body(parts.uri.path());
        let whole = self.admission.body(body, bytes_max, &share).await;
        let came_as_text = parts.extensions.get::<CameAsText>().is_some();
        let whole = whole.map_err(|why| refused(why, bytes_max, came_as_text))?;
        let whole = self.unpacked(&mut parts.headers, whole, bytes_max, &share)?;
        self.counts.check(parts.uri.path(), &whole.bytes)?;
        let body = Body::new(Full::new(whole.bytes.clone()));
        Ok((Request::from_parts(parts, body), Some(whole)))
    }

    /// The body with its message unpacked, and room for what it is then.
    fn unpacked(
        &self,
        headers: &mut HeaderMap,
        whole: Whole,
        bytes_max: usize,
        share: &Share,
    ) -> Result<Whole, Status> {
        match unpack::message(headers, &whole.bytes, bytes_max) {
            Ok(None) => Ok(whole),
            Ok(Some(bytes)) => {
                self.admission.unpacked(whole, bytes, share).map_err(|why| refused(why, bytes_max, false))
            }
            Err(Unreadable::TooLarge) => Err(refused(NoBody::TooLarge, bytes_max, false)),
            Err(Unreadable::Broken) => Err(plain(Reason::Undecodable, "the message cannot be unpacked by gzip")),
        }
    }
}

impl Service<Request<Body>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut calls = self.clone();
        Box::pin(async move { Ok(calls.answer(request).await) })
    }
}

/// The answer of a conversation, which may end with a failure after all that was said before.
fn with_reasons(body: Body, path: String) -> Body {
    let trailers = move |mut trailers: HeaderMap| {
        let failed = Status::from_header_map(&trailers).filter(|status| status.code() != Code::Ok);
        if let Some(refused) = failed.and_then(|status| with_reason(&status, &path)) {
            // Every value of it is a header's: what it was made of came by headers, or is ours.
            let _ = refused.add_header(&mut trailers);
        }
        trailers
    };
    Body::new(body.map_frame(move |frame| match frame.into_trailers() {
        Ok(last) => Frame::trailers(trailers(last)),
        Err(frame) => frame,
    }))
}

fn refused(why: NoBody, bytes_max: usize, came_as_text: bool) -> Status {
    match why {
        NoBody::TooLarge => {
            let message = sizes::message_of(bytes_max);
            plain(Reason::RequestTooLarge, format!("the message is larger than {message} bytes"))
        }
        NoBody::Late(limit) => plain(Reason::RequestLate, format!("the request did not arrive within {limit:?}")),
        NoBody::NoRoom(status) => status,
        NoBody::Broken(_) if came_as_text => plain(Reason::Undecodable, "the request is no base64, or not all of it"),
        NoBody::Broken(why) => plain(Reason::RequestBroken, format!("the request could not be read: {why}")),
    }
}
