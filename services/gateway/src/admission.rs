//! What is let in: requests whose body is still to come, and requests that are being answered.
//!
//! A request is answered only once it is there: a client that begins many and ends none, which costs it a few connections, takes no
//! place of those that are answered. What has been begun is bounded by itself, in number and in time, and all bodies in hand, begun
//! or answered, in bytes; of these no connection has more than a share.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tonic::Status;

use crate::error_response::later;
use crate::reason::Reason;

/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that have been begun, for each that may be answered at once.
const BEGUN_FOR_EACH: usize = 10;
/// Bytes of all bodies in hand,
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// and of those of one connection: the largest request, and some beside it.
const SHARE_BYTES: usize = 12 * 1024 * 1024;

/// The bounds of one gateway.
#[derive(Debug)]
pub(crate) struct Admission {
    begun: Semaphore,
    bytes: Arc<Semaphore>,
    requests: Semaphore,
}

/// What the bodies of one connection may have. Travels with its requests, as an extension, which no client can set.
#[derive(Clone, Debug)]
pub(crate) struct Share(Arc<Semaphore>);

impl Default for Share {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SHARE_BYTES)))
    }
}

/// A body that is there, and its room until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    _room: Option<[OwnedSemaphorePermit; 2]>,
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
        Self { begun, bytes: Arc::new(most(BYTES_MAX)), requests: most(requests_max) }
    }

    /// The whole of a body of at most `bytes_max`, of a connection with this share.
    pub(crate) async fn body<B>(&self, body: B, bytes_max: usize, share: &Share) -> Result<Whole, NoBody>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        if body.is_end_stream() {
            return Ok(Whole::default());
        }
        let _begun = self.begun.try_acquire().map_err(|_| no_room())?;
        match tokio::time::timeout(BODY_TIMEOUT, self.collect(body, bytes_max, share)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(NoBody::Late(BODY_TIMEOUT)),
        }
    }

    /// What a body of this connection was unpacked to. Its own room is given back first: both together may be more than any share, of
    /// what hardly packs, and then it would be refused however often it came.
    pub(crate) fn unpacked(&self, packed: Whole, bytes: Vec<u8>, share: &Share) -> Result<Whole, NoBody> {
        drop(packed);
        let room = self.room(bytes.len(), share)?;
        Ok(Whole { bytes: bytes.into(), _room: Some(room) })
    }

    fn room(&self, bytes: usize, share: &Share) -> Result<[OwnedSemaphorePermit; 2], NoBody> {
        let bytes = u32::try_from(bytes).map_err(|_| NoBody::TooLarge)?;
        let take = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_many_owned(bytes).map_err(|_| no_room());
        Ok([take(&self.bytes)?, take(&share.0)?])
    }

    async fn collect<B>(&self, body: B, bytes_max: usize, share: &Share) -> Result<Whole, NoBody>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        let mut body = std::pin::pin!(body);
        let mut whole = BytesMut::new();
        let mut room: Option<[OwnedSemaphorePermit; 2]> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| NoBody::Broken(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.remaining() > bytes_max {
                return Err(NoBody::TooLarge);
            }
            let [of_all, of_share] = self.room(data.remaining(), share)?;
            match &mut room {
                // One permit, however many pieces it comes in.
                Some([all, shared]) => {
                    all.merge(of_all);
                    shared.merge(of_share);
                }
                None => room = Some([of_all, of_share]),
            }
            whole.extend_from_slice(&data);
        }
        Ok(Whole { bytes: whole.freeze(), _room: room })
    }

    /// A place among those that are answered, for as long as it is held.
    pub(crate) fn request(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.requests.try_acquire().map_err(|_| full())
    }
}

fn full() -> Status {
    later(Reason::GatewayBusy, "the gateway answers as many requests as it can at once: try again")
}

fn no_room() -> NoBody {
    NoBody::NoRoom(full())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

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
    async fn a_body_is_bounded_and_has_its_room_for_as_long_as_it_is_in_hand() {
        let (admission, share) = (Admission::new(1), Share::default());
        let whole = admission.body(full_of(5), 5, &share).await.unwrap();
        assert_eq!((whole.bytes.len(), share.0.available_permits()), (5, SHARE_BYTES - 5));
        drop(whole);
        assert!(matches!(admission.body(full_of(6), 5, &share).await, Err(NoBody::TooLarge)));
        assert_eq!((admission.bytes.available_permits(), share.0.available_permits()), (BYTES_MAX, SHARE_BYTES));
    }

    #[tokio::test]
    async fn no_connection_has_more_than_its_share() {
        let (admission, greedy, other) = (Admission::new(1), Share::default(), Share::default());
        let held = admission.body(full_of(SHARE_BYTES), usize::MAX, &greedy).await.unwrap();
        assert!(matches!(admission.body(full_of(1), 5, &greedy).await, Err(NoBody::NoRoom(_))));
        assert_eq!(admission.body(full_of(1), 5, &other).await.unwrap().bytes.len(), 1);
        drop(held);
        assert_eq!(admission.body(full_of(1), 5, &greedy).await.unwrap().bytes.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_begun_is_bounded_in_number_and_time_and_takes_no_place_of_what_is_answered() {
        let admission = Arc::new(Admission::new(1));
        let wait = |admission: Arc<Admission>| async move { admission.body(begun(), 5, &Share::default()).await };
        let waiting: Vec<_> = (0..BEGUN_FOR_EACH).map(|_| tokio::spawn(wait(Arc::clone(&admission)))).collect();
        tokio::task::yield_now().await;
        assert_eq!(admission.begun.available_permits(), 0);
        assert!(admission.request().is_ok());
        assert!(matches!(admission.body(full_of(1), 5, &Share::default()).await, Err(NoBody::NoRoom(_))));
        assert_eq!(
            admission.body(full_of(0), 5, &Share::default()).await.unwrap().bytes.len(),
            0,
            "what has none waits for nobody"
        );
        for waiting in waiting {
            assert!(matches!(waiting.await.unwrap(), Err(NoBody::Late(_))));
        }
        assert_eq!(admission.body(full_of(1), 5, &Share::default()).await.unwrap().bytes.len(), 1);
        let held = admission.request();
        assert!(admission.request().is_err());
        drop(held);
    }
}
