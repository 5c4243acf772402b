//! What is let in: requests whose body is still to come, and requests that are being answered.
//!
//! A request is answered only once it is there: a client that begins many and ends none, which costs it a few connections, takes no
//! place of those that are answered. What has been begun is bounded by itself, in number, in time and in bytes.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;

use crate::error_response::unavailable;

/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that have been begun, for each that may be answered at once.
const BEGUN_FOR_EACH: usize = 10;
/// Bytes of all bodies that are still to come to their end.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The bounds of one gateway.
#[derive(Debug)]
pub(crate) struct Admission {
    begun: Semaphore,
    bytes: Semaphore,
    requests: Semaphore,
}

/// Why there is no body.
#[derive(Debug)]
pub(crate) enum NoBody {
    /// It is larger than it may be.
    TooLarge,
    /// It did not arrive in time.
    Late(Duration),
    /// Others have begun too much.
    NoRoom(Status),
    /// The client went away, or spoke no HTTP.
    Broken(String),
}

impl Admission {
    /// `requests_max` of them are answered at once.
    pub(crate) fn new(requests_max: usize) -> Self {
        let most = |count: usize| Semaphore::new(count.min(Semaphore::MAX_PERMITS));
        let begun = most(requests_max.saturating_mul(BEGUN_FOR_EACH));
        Self { begun, bytes: most(BYTES_MAX), requests: most(requests_max) }
    }

    /// The whole of a body of at most `bytes_max`.
    pub(crate) async fn body<B>(&self, body: B, bytes_max: usize) -> Result<Bytes, NoBody>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let _begun = self.begun.try_acquire().map_err(|_| no_room())?;
        match tokio::time::timeout(BODY_TIMEOUT, self.collect(body, bytes_max)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(NoBody::Late(BODY_TIMEOUT)),
        }
    }

    async fn collect<B>(&self, body: B, bytes_max: usize) -> Result<Bytes, NoBody>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        let mut body = std::pin::pin!(body);
        let (mut whole, mut held) = (BytesMut::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| NoBody::Broken(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.remaining() > bytes_max {
                return Err(NoBody::TooLarge);
            }
            let bytes = u32::try_from(data.remaining()).map_err(|_| NoBody::TooLarge)?;
            held.push(self.bytes.try_acquire_many(bytes).map_err(|_| no_room())?);
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    /// A place among those that are answered, for as long as it is held.
    pub(crate) fn request(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.requests.try_acquire().map_err(|_| full())
    }
}

fn full() -> Status {
    unavailable("the gateway answers as many requests as it can at once: try again")
}

fn no_room() -> NoBody {
    NoBody::NoRoom(full())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use http_body_util::{Full, StreamBody};

    use super::*;

    fn full_of(bytes: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b'x'; bytes]))
    }

    /// Never sends anything.
    fn begun() -> impl Body<Data = Bytes, Error = Infallible> {
        StreamBody::new(tokio_stream::pending())
    }

    #[tokio::test]
    async fn a_body_is_bounded_and_one_that_is_too_large_takes_nobody_s_room() {
        let admission = Admission::new(1);
        assert_eq!(admission.body(full_of(5), 5).await.unwrap().len(), 5);
        assert!(matches!(admission.body(full_of(6), 5).await, Err(NoBody::TooLarge)));
        assert_eq!(admission.bytes.available_permits(), BYTES_MAX);
        assert!(matches!(admission.body(full_of(BYTES_MAX + 1), usize::MAX).await, Err(NoBody::NoRoom(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_begun_is_bounded_in_number_and_time_and_takes_no_place_of_what_is_answered() {
        let admission = Arc::new(Admission::new(1));
        let wait = |admission: Arc<Admission>| async move { admission.body(begun(), 5).await };
        let waiting: Vec<_> = (0..BEGUN_FOR_EACH).map(|_| tokio::spawn(wait(Arc::clone(&admission)))).collect();
        tokio::task::yield_now().await;
        assert_eq!(admission.begun.available_permits(), 0);
        assert!(admission.request().is_ok());
        assert!(matches!(admission.body(full_of(1), 5).await, Err(NoBody::NoRoom(_))));
        assert_eq!(admission.body(full_of(0), 5).await.unwrap().len(), 0, "what has none waits for nobody");
        for waiting in waiting {
            assert!(matches!(waiting.await.unwrap(), Err(NoBody::Late(_))));
        }
        assert_eq!(admission.body(full_of(1), 5).await.unwrap().len(), 1);
        let held = admission.request();
        assert!(admission.request().is_err());
        drop(held);
    }
}
