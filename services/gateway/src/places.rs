//! Places of connections that speak: `connections_max` of them, and who makes room where all are taken.
//!
//! Whoever finds no place waits for one, and for each that waits the connection that has been idle longest is told to go: one
//! whose peer has said what it speaks and then no request, or half of one, or is kept alive for a next one, or has not taken its
//! answer. Nothing is idle between the head of a request and its answer, and what is in flight is never cut off. Those that wait
//! are bounded in number and in time; where there are too many the next one is closed at once, so that sockets are bounded
//! whoever comes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::observe;

/// How long a connection waits for a place: as long as a client waits for an answer, not for ever.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// For so many places one connection may wait.
const PLACES_FOR_EACH_THAT_WAITS: usize = 10;

/// All places of a gateway.
#[derive(Debug)]
pub(crate) struct Places {
    hall: Mutex<Hall>,
    waiting_max: usize,
}

#[derive(Debug)]
struct Hall {
    free: usize,
    /// Of whom has come to wait, or become idle, since; so both stand in the order of time.
    next_turn: u64,
    waiting: BTreeMap<u64, CancellationToken>,
    idle: BTreeMap<u64, CancellationToken>,
    /// Told to go and not gone yet: each makes room for one that waits.
    leaving: usize,
}

impl Places {
    pub(crate) fn new(connections_max: usize) -> Self {
        let (waiting, idle) = (BTreeMap::new(), BTreeMap::new());
        let hall = Hall { free: connections_max, next_turn: 0, waiting, idle, leaving: 0 };
        Self { hall: Mutex::new(hall), waiting_max: connections_max.div_ceil(PLACES_FOR_EACH_THAT_WAITS) }
    }

    /// A place, as soon as there is one; `None`: too many wait already, or none came free in time.
    pub(crate) async fn take(self: &Arc<Self>) -> Option<Place> {
        match self.enter() {
            Entered::HasPlace => {}
            Entered::Waits(turn, called) => {
                let mut waiting = Waiting { places: self, turn: Some(turn) };
                tokio::time::timeout(WAIT_MAX, called.cancelled()).await.ok()?;
                waiting.turn = None;
            }
            Entered::FindsNoRoom => {
                observe::connection_closed("no_place");
                return None;
            }
        }
        let place = Place {
            places: Arc::clone(self),
            told: CancellationToken::new(),
            flights: Arc::new(watch::Sender::new(Flights::default())),
        };
        place.flights.send_modify(|flights| flights.idle_since = self.idle(&place.told));
        Some(place)
    }

    fn enter(&self) -> Entered {
        let mut hall = self.hall();
        if hall.free > 0 {
            hall.free -= 1;
            return Entered::HasPlace;
        }
        if hall.waiting.len() >= self.waiting_max {
            return Entered::FindsNoRoom;
        }
        let (turn, called) = (hall.turn(), CancellationToken::new());
        hall.waiting.insert(turn, called.clone());
        hall.make_room();
        Entered::Waits(turn, called)
    }

    /// Nothing of this connection is in flight from now on. Answers its turn, if it is not told to go anyhow.
    fn idle(&self, told: &CancellationToken) -> Option<u64> {
        let mut hall = self.hall();
        if told.is_cancelled() {
            return None;
        }
        let turn = hall.turn();
        hall.idle.insert(turn, told.clone());
        hall.make_room();
        Some(turn)
    }

    fn hall(&self) -> MutexGuard<'_, Hall> {
        self.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hall {
    const fn turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    /// Tells those that have been idle longest to go, as many as wait.
    fn make_room(&mut self) {
        while self.waiting.len() > self.leaving
            && let Some((_, told)) = self.idle.pop_first()
        {
            told.cancel();
            self.leaving += 1;
            observe::connection_closed("made_room");
        }
    }

    /// A place is free: it is that of whoever has waited longest.
    fn release(&mut self) {
        match self.waiting.pop_first() {
            Some((_, called)) => called.cancel(),
            None => self.free += 1,
        }
    }
}

enum Entered {
    HasPlace,
    /// Until it is called.
    Waits(u64, CancellationToken),
    FindsNoRoom,
}

/// One that waits, until it has its place or gives up.
struct Waiting<'a> {
    places: &'a Places,
    turn: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(turn) = self.turn else { return };
        let mut hall = self.places.hall();
        if hall.waiting.remove(&turn).is_none() {
            // It was called as it gave up: the place is the next one's.
            hall.release();
        }
    }
}

/// A place, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    told: CancellationToken,
    flights: Arc<watch::Sender<Flights>>,
}

/// Requests of one connection.
#[derive(Debug, Default)]
struct Flights {
    /// That are not answered yet.
    count: usize,
    /// Whose answers are there and not taken.
    untaken: usize,
    /// Its turn among those that are idle.
    idle_since: Option<u64>,
}

impl Place {
    /// What counts the requests of this connection.
    pub(crate) fn counter(&self) -> Counter {
        let Self { places, told, flights } = self;
        Counter { places: Arc::clone(places), told: told.clone(), flights: Arc::clone(flights) }
    }

    /// Returns when this connection has to make room.
    pub(crate) async fn must_go(&self) {
        self.told.cancelled().await;
    }

    /// Returns when nothing has been in flight for `silence_max`, or, while an answer is not taken, for `taking_max`.
    pub(crate) async fn quiet(&self, silence_max: Duration, taking_max: Duration) {
        let mut flights = self.flights.subscribe();
        loop {
            let untaken = flights.wait_for(|flights| flights.count == 0).await.map(|flights| flights.untaken);
            let Ok(untaken) = untaken else { return };
            let span = if untaken > 0 { taking_max } else { silence_max };
            if tokio::time::timeout(span, flights.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.flights.send_modify(|flights| {
            let mut hall = self.places.hall();
            if let Some(turn) = flights.idle_since.take() {
                hall.idle.remove(&turn);
            }
            if self.told.is_cancelled() {
                hall.leaving -= 1;
            } else {
                // What ends of a request after its connection must not stand among those that are idle.
                self.told.cancel();
            }
            hall.release();
        });
    }
}

/// Counts the requests of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    places: Arc<Places>,
    told: CancellationToken,
    flights: Arc<watch::Sender<Flights>>,
}

impl Counter {
    /// A request has begun; it is in flight until what this answers is dropped.
    pub(crate) fn begin(&self) -> Flight {
        self.flights.send_modify(|flights| {
            flights.count += 1;
            if let Some(turn) = flights.idle_since.take() {
                self.places.hall().idle.remove(&turn);
            }
        });
        Flight(self.clone())
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Flight(Counter);

impl Flight {
    /// The answer. It is in flight where there is nothing of it yet: whatever is there is the peer's to take.
    pub(crate) fn answered<B>(self, response: Response<B>) -> Response<Answered<B>> {
        let counter = self.0.clone();
        counter.flights.send_modify(|flights| flights.untaken += 1);
        response.map(|body| Answered { body, counter, flight: None })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let Counter { places, told, flights } = &self.0;
        flights.send_modify(|flights| {
            flights.count -= 1;
            if flights.count == 0 {
                flights.idle_since = places.idle(told);
            }
        });
    }
}

/// An answer until it has been taken.
#[derive(Debug)]
pub(crate) struct Answered<B> {
    body: B,
    counter: Counter,
    flight: Option<Flight>,
}

impl<B> Drop for Answered<B> {
    fn drop(&mut self) {
        self.counter.flights.send_modify(|flights| flights.untaken -= 1);
    }
}

impl<B: Body + Unpin> Body for Answered<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.flight = None;
        } else if self.flight.is_none() {
            self.flight = Some(self.counter.begin());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Full, StreamBody};
    use tokio::time::Instant;

    use super::*;

    async fn taken(places: &Arc<Places>) -> Place {
        places.take().await.unwrap()
    }

    /// One more comes, and is polled once.
    async fn comes(places: &Arc<Places>) -> tokio::task::JoinHandle<Option<Place>> {
        let places = Arc::clone(places);
        let waiting = tokio::spawn(async move { places.take().await });
        tokio::task::yield_now().await;
        waiting
    }

    fn has_to_go(places: &[&Place]) -> Vec<bool> {
        places.iter().map(|place| place.told.is_cancelled()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_been_idle_longest_makes_room_and_no_other() {
        let places = Arc::new(Places::new(3));
        let (first, second, third) = (taken(&places).await, taken(&places).await, taken(&places).await);
        // The first one has spoken last, the second one is being answered.
        let answering = second.counter().begin();
        drop(first.counter().begin());
        assert_eq!(has_to_go(&[&first, &second, &third]), [false; 3]);
        let fourth = comes(&places).await;
        assert_eq!(has_to_go(&[&first, &second, &third]), [false, false, true]);
        drop(third);
        let fourth = fourth.await.unwrap().unwrap();
        assert_eq!(has_to_go(&[&first, &second, &fourth]), [false; 3], "one for one");
        drop(answering);
        drop((first, second, fourth));
        let hall = places.hall();
        assert_eq!((hall.free, hall.leaving, hall.idle.len(), hall.waiting.len()), (3, 0, 0, 0));
    }

    fn answer(bytes: &'static [u8]) -> Response<Full<Bytes>> {
        Response::new(Full::new(Bytes::from_static(bytes)))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_makes_room_once_it_is_answered() {
        const SILENCE_MAX: Duration = Duration::from_secs(1);
        const TAKING_MAX: Duration = Duration::from_secs(10);
        let places = Arc::new(Places::new(1));
        let only = taken(&places).await;
        let two = [only.counter().begin(), only.counter().begin()];
        let waiting = comes(&places).await;
        let [one, other] = two;
        drop(one);
        assert!(!only.told.is_cancelled(), "another one is in flight");
        let answer = other.answered(answer(b"x"));
        assert_eq!(answer.body().size_hint().exact(), Some(1));
        assert!(only.told.is_cancelled());
        // Told to go, it speaks once more, and nobody else has to go for it: it is answered first, and its answer taken.
        let last = only.counter().begin();
        let begun = Instant::now();
        let going = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(last);
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(answer);
        };
        tokio::join!(only.quiet(SILENCE_MAX, TAKING_MAX), going);
        assert_eq!(begun.elapsed(), Duration::from_secs(11));
        drop(only);
        assert!(waiting.await.unwrap().is_some());
    }

    /// Who takes no answer would have its place for ever.
    #[tokio::test(start_paused = true)]
    async fn an_answer_is_in_flight_where_there_is_nothing_of_it_yet() {
        let places = Arc::new(Places::new(1));
        let only = taken(&places).await;
        let (give, pieces) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(pieces));
        let mut answer = only.counter().begin().answered(Response::new(body));
        let poll = |answer: &mut Response<_>| {
            let body: &mut Answered<_> = answer.body_mut();
            Pin::new(body).poll_frame(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
        };
        let is_idle = || places.hall().idle.len() == 1;
        assert!(is_idle(), "nobody has asked for it");
        assert!(!poll(&mut answer) && !is_idle(), "there is none");
        give.send(Ok(Frame::data(Bytes::from_static(b"x")))).await.unwrap();
        assert!(poll(&mut answer) && is_idle(), "it is the peer's to ask for more");
        assert!(!poll(&mut answer) && !is_idle());
        drop(answer);
        assert!(is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_bounded_in_number_and_time() {
        let places = Arc::new(Places::new(11));
        let mut speaking = Vec::new();
        for _ in 0..11 {
            let place = taken(&places).await;
            speaking.push((place.counter().begin(), place));
        }
        let (first, second) = (comes(&places).await, comes(&places).await);
        assert!(places.take().await.is_none(), "two may wait");
        speaking.pop();
        let first = first.await.unwrap();
        assert!(first.is_some(), "who has waited longest");
        let _busy = first.as_ref().unwrap().counter().begin();
        let third = comes(&places).await;
        assert!(second.await.unwrap().is_none() && third.await.unwrap().is_none(), "a minute is enough");
        assert_eq!(places.hall().waiting.len(), 0);
    }

    /// Called and gone in the same moment: the place would be nobody's.
    #[tokio::test(start_paused = true)]
    async fn a_place_that_its_waiter_does_not_take_is_the_next_ones() {
        let places = Arc::new(Places::new(1));
        let only = taken(&places).await;
        let waiting = comes(&places).await;
        drop(only);
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        let hall = places.hall();
        assert_eq!((hall.free, hall.waiting.len()), (1, 0));
    }
}
