//! Tests of the deadlines of a handler that is asked to stop, and of an executor that is. Nothing passes here but what the test
//! says has passed.

use std::time::Duration;

use async_trait::async_trait;
use carillon_core::execution::Status;
use carillon_core::line::Line;
use carillon_store::recorder::Finished;
use carillon_store::{Store, StoreOptions};
use carillon_stream::{EntryId, Redis, RedisOptions};
use chrono::DateTime;
use serde_json::Value;
use tokio::sync::Notify;

use super::*;
use crate::handler::{Context, Failure, Handler, Registry};
use crate::incarnation::Incarnation;
use crate::slots::{Bounds, Slots};
use crate::threads::HandlerThreads;
use crate::trial::Trial;

const TIMEOUT: Duration = Duration::from_millis(400);
const GRACE: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(1);

/// Another entry in hand.
const OTHER: Key = Key { execution: Uuid::from_u128(4), claim: 1 };

/// Never hears that it is to stop.
struct Deaf;

#[async_trait]
impl Handler for Deaf {
    async fn run(&self, _: &Context) -> Result<Value, Failure> {
        std::future::pending().await
    }
}

/// An engine that runs one deaf handler, and what it hands to the recorder.
struct Bench {
    engine: Engine,
    key: Key,
    /// When the handler began.
    begun: Instant,
    recorded: mpsc::UnboundedReceiver<ToRecord>,
}

impl Bench {
    async fn start() -> Self {
        let clock = DbClock::from_round_trip(Instant::now(), Instant::now(), DateTime::UNIX_EPOCH);
        let options = StoreOptions::new("postgres://nobody@localhost/none", "test");
        let many = 1 << 20;
        let bounds = Bounds { slots: 8, unrecorded_max: 8, unrecorded_bytes_max: many, in_hand_bytes_max: many };
        let shared = Arc::new(Shared {
            store: Store::connect_lazily(&options).unwrap(),
            redis: Redis::connect_lazily(RedisOptions::new("redis://localhost")).unwrap(),
            registry: Registry::new().with("test:deaf", Deaf),
            lines: Line::all_of(&["default".to_owned()]),
            consumer: "test".into(),
            incarnation: Incarnation::begin(Uuid::from_u128(1), clock),
            slots: Slots::new(bounds),
            threads: HandlerThreads::start(1).unwrap(),
            window: Duration::from_secs(2),
            lease: Duration::from_secs(3_600),
            grace: GRACE,
            lost_max: 5,
            trial: Trial::default(),
            handed_on: Notify::new(),
        });
        let (own, incoming) = mpsc::unbounded_channel();
        let (recorder, recorded) = mpsc::unbounded_channel();
        let engine = Engine::new(Arc::clone(&shared), incoming, own, recorder, CancellationToken::new());
        let key = Key { execution: Uuid::from_u128(2), claim: 1 };
        let mut bench = Self { engine, key, begun: Instant::now(), recorded };
        bench.run_one().await;
        bench
    }

    /// As it comes out of a stream, due long ago.
    fn put(&mut self, key: Key, state: State) {
        let entry = Entry {
            version: carillon_stream::entry::VERSION,
            execution: key.execution,
            claim: key.claim,
            attempt: 1,
            again: false,
            job: Uuid::from_u128(3),
            revision: 1,
            handler: "test:deaf".into(),
            scheduled_at: DateTime::UNIX_EPOCH,
            not_before: DateTime::UNIX_EPOCH,
            timeout_ms: u32::try_from(TIMEOUT.as_millis()).unwrap(),
            max_retries: 3,
            retry_delay_ms: 1,
            retry_growth: carillon_core::retry::Growth::default(),
            last: false,
            payload: None,
            traceparent: None,
        };
        let slots = &self.engine.shared.slots;
        let (id, weight) = (EntryId { number: 1, seq: 1 }, slots.weigh(1));
        let (take, named, waits_for_word) = (0, false, false);
        let item = Item { line: 0, id, entry, take, named, waits_for_word, state, weight, newer: None };
        slots.fill(1);
        self.engine.items.insert(key, item);
    }

    async fn run_one(&mut self) {
        self.put(self.key, State::Held);
        self.engine.start(self.key);
        let beginning = Arc::clone(&self.running().expect("it was spawned").beginning);
        let begun = carillon_testkit::wait_until("the handler to begin", Duration::from_secs(20), || {
            std::future::ready(beginning.begun().ok_or("it has not"))
        });
        self.begun = begun.await.unwrap().instant;
    }

    fn running(&self) -> Option<&crate::in_hand::Running> {
        match &self.engine.items[&self.key].state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Asks the handler to stop; says when, at the earliest and at the latest.
    fn ask_to_stop(&mut self, why: Stop) -> (Instant, Instant) {
        let earliest = Instant::now();
        self.engine.ask_to_stop(self.key, why);
        assert!(self.running().expect("it runs").cancelled.is_cancelled(), "it was told");
        (earliest, Instant::now())
    }

    /// It is as late as `now`: what is recorded by then?
    fn at(&mut self, now: Instant) -> Option<Finished> {
        self.engine.stop_overdue(now);
        match self.recorded.try_recv() {
            Ok(ToRecord::Finished(end)) => Some(end.finished),
            Ok(ToRecord::Started(..)) | Err(_) => None,
        }
    }

    fn end(self) {
        self.engine.shared.threads.stop();
    }
}

/// Its timeout passes while it has time to stop in: that is neither cut short nor does it become a time-out.
#[tokio::test]
async fn a_timeout_that_passes_after_a_cancel_leaves_the_handler_all_of_its_grace() {
    let mut bench = Bench::start().await;
    let (earliest, latest) = bench.ask_to_stop(Stop::Cancelled);
    for now in [bench.begun + TIMEOUT, bench.begun + TIMEOUT + MOMENT, earliest + STOP_GRACE - MOMENT] {
        assert!(bench.at(now).is_none() && bench.running().is_some(), "it was dropped at {:?}", now - bench.begun);
    }
    let ended = bench.at(latest + STOP_GRACE).expect("it is dropped after the grace");
    assert_eq!((ended.status, ended.timed_out), (Status::Cancelled, false));
    assert_eq!((ended.reason.as_deref(), ended.error), (Some("cancelled while it ran"), None));
    assert!(ended.started_at.is_some());
    bench.end();
}

/// The other way round: it is a time-out already, and a cancel gives it no more time than that did.
#[tokio::test]
async fn a_cancel_after_the_timeout_gives_no_further_grace() {
    let mut bench = Bench::start().await;
    // The engine looks when it would be over counted from the spawn, which may be noted a little after the handler began.
    let looked_at = bench.engine.deadlines.next().expect("it has a deadline");
    let timed_out = looked_at.max(bench.begun + TIMEOUT);
    assert!(bench.at(timed_out - MOMENT).is_none() && bench.running().is_some_and(|run| run.stopping.is_none()));
    assert!(bench.at(timed_out).is_none());
    assert_eq!(bench.running().and_then(|run| run.stopping), Some(Stop::TimedOut));
    let latest = Instant::now();
    bench.ask_to_stop(Stop::Cancelled);
    let ended = bench.at(latest + STOP_GRACE).expect("its grace began with the timeout");
    // Whether a cancel was requested its row says (R11).
    assert_eq!((ended.status, ended.timed_out), (Status::Retrying, true));
    assert_eq!(ended.error.as_deref(), Some("timed out after 400 ms"));
    bench.end();
}

/// Its release is refused over and over, since somebody has locked its day: a stop waits a moment for it, and what runs is stopped
/// in time all the same.
#[tokio::test]
async fn what_cannot_leave_keeps_no_stop_beyond_the_grace() {
    let mut bench = Bench::start().await;
    bench.put(OTHER, State::GivenUp);
    bench.engine.reading_ended = true;
    bench.engine.begin_drain();
    let began = Instant::now();
    assert!(!bench.engine.is_drained(began), "a handler runs");
    let cancelled = bench.running().expect("it runs").cancelled.clone();
    assert!(bench.engine.is_drained(began + GRACE) && cancelled.is_cancelled());
    assert!(!bench.engine.items.contains_key(&bench.key), "it is handed back");
    bench.end();
}

#[tokio::test]
async fn what_cannot_leave_keeps_a_stop_for_a_moment_only_where_nothing_runs() {
    let mut bench = Bench::start().await;
    bench.engine.let_go(bench.key);
    bench.put(OTHER, State::GivenUp);
    bench.engine.reading_ended = true;
    bench.engine.begin_drain();
    let began = Instant::now();
    assert!(!bench.engine.is_drained(began), "it may be on its way");
    assert!(bench.engine.is_drained(began + GRACE / 4));
    bench.end();
}

/// R18: the engine stays until its ends are written, since the next incarnation asks it for them (R21).
#[tokio::test]
async fn a_stop_waits_for_what_is_not_recorded_as_long_as_the_grace_lets_it() {
    let mut bench = Bench::start().await;
    bench.engine.let_go(bench.key);
    bench.put(OTHER, State::Ended { started_at: None });
    bench.engine.reading_ended = true;
    bench.engine.begin_drain();
    let began = Instant::now();
    assert!(!bench.engine.is_drained(began + GRACE * 3 / 4), "Postgres may be back by then");
    assert!(bench.engine.is_drained(began + GRACE), "it runs again elsewhere");
    bench.engine.recorded(&[], &[(OTHER, Verdict::Recorded(Status::Success))]);
    assert!(bench.engine.is_drained(began), "it is recorded");
    bench.end();
}
