//! The one owner of all that this executor has in hand: what is read comes in here, waits for its instant, starts, is
//! stopped, and leaves for the recorder.
//!
//! A single task without locks; everything that takes time (Postgres, Redis, handlers) happens in others and comes back as a
//! [`Message`]. So every decision of R8, R9, R13 and R23 is made in one place, in one order.
//!
//! Never early (R23): an entry starts once the database's clock has surely shown its instant. Never unseen: whatever makes
//! an unstarted entry doubtful (a certificate that does not fit, a stall of this process, a broken connection) sends it through
//! a check first (`doubt.rs`); what was cancelled, or whose job changed, is read again (`named.rs`). What will not start here
//! leaves for whoever starts it (`leave.rs`).

mod deadlines;
mod doubt;
mod leave;
mod named;
mod payloads;
mod start;
#[cfg(test)]
mod stop_tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_core::execution::AttemptEnd;
use carillon_store::clock::DbClock;
use carillon_store::recorder::{Held, Verdict};
use carillon_stream::Entry;
use carillon_stream::reader::Received;
use metrics::gauge;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use self::deadlines::Deadlines;
use crate::boottime;
use crate::ended::Ended;
use crate::in_hand::{Item, Key, Newer, Origin, State, Stop, weight_of};
use crate::message::{Arrival, Message};
use crate::shared::Shared;
use crate::to_record::ToRecord;

/// A handler that was asked to stop is dropped after this.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// A handler that runs for longer is shown RUNNING: longer than an idle flush takes.
const SHOWN_AFTER: Duration = Duration::from_millis(20);
/// Messages taken at once.
const MESSAGES_MAX: usize = 512;

/// See the module.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    incoming: mpsc::UnboundedReceiver<Message>,
    own: mpsc::UnboundedSender<Message>,
    recorder: mpsc::UnboundedSender<ToRecord>,
    shutdown: CancellationToken,
    items: HashMap<Key, Item>,
    starts: BinaryHeap<Reverse<(Instant, Key)>>,
    /// By which the instants of `starts` were reckoned.
    clock: DbClock,
    /// Of what runs: its timeout, or the end of the grace it has to stop in.
    deadlines: Deadlines,
    to_show: VecDeque<(Instant, Key)>,
    /// Whose payload did not travel in the entry and is not fetched yet.
    lacking: VecDeque<Key>,
    is_fetching: bool,
    names: named::Names,
    /// R8a: the number of the last question after what was named.
    question: u64,
    /// Whose clones the questions under way hold.
    rereading: Arc<()>,
    /// R17: running handlers of which it is to be asked whether their cancel was requested.
    to_ask: HashSet<Key>,
    is_asking: bool,
    next_ask_running: Instant,
    /// Something doubtful has come that a look at its row may settle at once.
    check_soon: bool,
    last_awake: Duration,
    /// R9: the end of the last gap.
    stalled_until: Duration,
    next_check: Instant,
    drain: Option<leave::Drain>,
    reading_ended: bool,
}

impl Engine {
    pub(crate) fn new(
        shared: Arc<Shared>,
        incoming: mpsc::UnboundedReceiver<Message>,
        own: mpsc::UnboundedSender<Message>,
        recorder: mpsc::UnboundedSender<ToRecord>,
        shutdown: CancellationToken,
    ) -> Self {
        let clock = shared.incarnation.clock().get();
        Self {
            shared,
            incoming,
            own,
            recorder,
            shutdown,
            items: HashMap::new(),
            starts: BinaryHeap::new(),
            clock,
            deadlines: Deadlines::default(),
            to_show: VecDeque::new(),
            lacking: VecDeque::new(),
            is_fetching: false,
            names: named::Names::default(),
            question: 0,
            rereading: Arc::new(()),
            to_ask: HashSet::new(),
            is_asking: false,
            next_ask_running: Instant::now(),
            check_soon: false,
            last_awake: boottime::now(),
            stalled_until: Duration::ZERO,
            next_check: Instant::now(),
            drain: None,
            reading_ended: false,
        }
    }

    /// Runs until the process stops and all that runs has ended, and is recorded, or is handed back.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut messages = Vec::with_capacity(MESSAGES_MAX);
        let mut contact = self.shared.incarnation.changes();
        loop {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                count = self.incoming.recv_many(&mut messages, MESSAGES_MAX) => if count == 0 { return Ok(()) },
                () = self.shutdown.cancelled(), if self.drain.is_none() => self.begin_drain(),
                _ = contact.changed() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            self.guard_against_stalls();
            if !contact.borrow_and_update().unbroken {
                self.doubt_all_unstarted();
            }
            for message in messages.drain(..) {
                self.hear(message);
            }
            self.fetch_payloads();
            let now = Instant::now();
            self.ask_about_named(now);
            self.follow_the_clock();
            self.start_due(now);
            self.stop_overdue(now);
            self.show_running(now);
            if now >= self.next_check {
                self.next_check = now + self.shared.window / 4;
                self.check_soon = true;
                self.look_while_holding();
                self.move_from_blocked_threads(now);
                gauge!("carillon_executor_slots_used").set(u32::try_from(self.shared.slots.used()).unwrap_or(u32::MAX));
                gauge!("carillon_executor_unrecorded")
                    .set(u32::try_from(self.shared.slots.unrecorded()).unwrap_or(u32::MAX));
                gauge!("carillon_executor_in_hand_bytes")
                    .set(u32::try_from(self.shared.slots.in_hand_bytes()).unwrap_or(u32::MAX));
                gauge!("carillon_executor_unrecorded_bytes")
                    .set(u32::try_from(self.shared.slots.unrecorded_bytes()).unwrap_or(u32::MAX));
            }
            if std::mem::take(&mut self.check_soon) {
                self.check_doubtful(now);
            }
            if self.is_drained(now) {
                return Ok(());
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let mut wake = self.next_check.min(Instant::now() + self.shared.window / 8);
        if let Some(Reverse((at, _))) = self.starts.peek()
            && self.shared.incarnation.may_start(self.shared.lease)
        {
            wake = wake.min(*at);
        }
        if let Some(at) = self.deadlines.next() {
            wake = wake.min(at);
        }
        if let Some((at, _)) = self.to_show.front() {
            wake = wake.min(*at);
        }
        if let Some(until) = self.drain.and_then(|drain| drain.next(Instant::now())) {
            wake = wake.min(until);
        }
        wake
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Read(arrival) => self.arrive(arrival),
            Message::NotBegun(key) => self.not_begun(key),
            Message::Ended(key, ended) => self.ended(key, *ended),
            Message::Recorded { started, finished } => self.recorded(&started, &finished),
            Message::Checked(checked) => self.checked(checked),
            Message::Payloads(asked, payloads) => self.payloads(&asked, payloads),
            Message::Lacking(keys) => self.lacking.extend(keys),
            Message::Reread(question, answers) => self.reread(question, answers),
            Message::CancelsRequested(running) => self.cancels_requested(&running),
            Message::NotOffered(key, offer) => self.not_offered(key, offer),
            Message::HandedOver(keys) => keys.into_iter().for_each(|key| self.handed_over(key)),
            Message::ReadingEnded => self.reading_ended = true,
            Message::Looked(look) => self.looked(&look),
            Message::Notice(notice) => self.noticed(&notice),
            Message::WhatIsHeld(answer) => {
                let held = self.items.values().map(|item| (item.line, item.id)).collect();
                // Whoever asked may have given up.
                let _ = answer.send(held);
            }
            Message::WhatHasStarted(answer) => {
                let started = self.items.values().filter_map(|item| match &item.state {
                    State::Running(running) => running.beginning.begun().map(|begun| item.started(begun.at)),
                    State::Ended { started_at } => started_at.map(|at| item.started(at)),
                    State::Doubtful { .. } | State::Named { .. } | State::Held | State::GivenUp => None,
                });
                let _ = answer.send(started.collect());
            }
            Message::Reasserted(kept, asked) => self.reasserted(&kept, &asked),
        }
    }

    /// R8: which of what was read is ordinary.
    fn arrive(&mut self, arrival: Arrival) {
        let now = Instant::now();
        let stale = boottime::now().saturating_sub(arrival.read_at) > self.shared.window / 2;
        // R9: Redis may have answered before the gap's end.
        let through_a_stall = arrival.sent_at < self.stalled_until;
        let mut come = Vec::with_capacity(arrival.entries.len());
        for received in arrival.entries {
            let Received { line, id, entry } = received;
            let key = Key { execution: entry.execution, claim: entry.claim };
            if let Some(item) = self.items.get_mut(&key) {
                item.note_newer(Newer { line, id, came: now });
                self.shared.slots.release(1);
                continue;
            }
            let in_doubt = arrival.look.as_ref().is_none_or(|look| !look.certified || id.number <= look.doubt);
            let doubtful = in_doubt || entry.again || arrival.origin == Origin::Pending || stale || through_a_stall;
            // R13: for one that a read brought and the certificate throws doubt on, the wait counts from the certificate.
            let since = match &arrival.look {
                Some(look) if look.certified && id.number <= look.doubt && arrival.origin == Origin::New => {
                    now.checked_sub(look.certificate_age).unwrap_or(now)
                }
                _ => now,
            };
            let named = arrival.look.as_ref().is_some_and(|look| look.cancelled.contains(&entry.execution));
            let is_offered = self.shared.registry.get(&entry.handler).is_some();
            if entry.payload.is_none() && is_offered {
                self.lacking.push_back(key);
            }
            let weight = self.shared.slots.weigh(weight_of(&entry));
            let waits_for_word = !is_offered;
            let mut item =
                Item { line, id, entry, take: 0, named, waits_for_word, state: State::Held, weight, newer: None };
            if !is_offered {
                self.find_offer(key, &item);
            }
            if doubtful {
                item.doubt(since);
                self.check_soon |= arrival.origin == Origin::Pending || now - since >= self.shared.window;
            }
            self.items.insert(key, item);
            if named {
                self.name(key);
            } else if !doubtful {
                self.hold(key);
            }
            come.push(key);
        }
        if self.drain.is_some() {
            self.hand_over(come);
        }
    }

    /// Time-outs, and handlers that were asked to stop and did not.
    fn stop_overdue(&mut self, now: Instant) {
        while let Some(key) = self.deadlines.take_passed(now) {
            let Some(item) = self.items.get(&key) else { continue };
            let State::Running(running) = &item.state else { continue };
            if running.stopping.is_none() {
                let timeout = timeout_of(&item.entry);
                match running.beginning.begun() {
                    Some(begun) if begun.instant + timeout <= now => self.ask_to_stop(key, Stop::TimedOut),
                    Some(begun) => self.deadlines.set(key, begun.instant + timeout),
                    None => self.deadlines.set(key, now + timeout),
                }
            } else {
                running.abort.abort();
                self.ended_by_force(key);
            }
        }
    }

    /// Asks a handler to stop; it is dropped a little later if it does not.
    fn ask_to_stop(&mut self, key: Key, why: Stop) {
        let Some(Item { state: State::Running(running), .. }) = self.items.get_mut(&key) else { return };
        if running.stopping.is_some() {
            return;
        }
        if running.beginning.take_back() {
            running.abort.abort();
            match why {
                Stop::Lost => self.let_go(key),
                _ => self.finish_unstarted(key, AttemptEnd::Cancelled, "cancelled before it started"),
            }
            return;
        }
        running.stopping = Some(why);
        running.cancelled.cancel();
        // In place of its timeout: whoever is asked to stop has all of the grace.
        self.deadlines.set(key, Instant::now() + STOP_GRACE);
    }

    fn ended_by_force(&mut self, key: Key) {
        let Some(item) = self.items.get(&key) else { return };
        let State::Running(running) = &item.state else { return };
        let mut ended = Ended::without_run(AttemptEnd::Cancelled, self.shared.incarnation.clock().now());
        ended.started_at = running.beginning.begun().map(|begun| begun.at);
        warn!(execution.id = %key.execution, "the handler did not stop when it was asked to: it is dropped");
        self.ended(key, ended);
    }

    fn ended(&mut self, key: Key, mut ended: Ended) {
        let Some(item) = self.items.get(&key) else { return };
        // A handler that was dropped by force has ended already.
        let State::Running(running) = &item.state else { return };
        match running.stopping {
            Some(Stop::Lost) => {
                self.let_go(key);
                return;
            }
            Some(Stop::TimedOut) => {
                ended.end = AttemptEnd::TimedOut;
                ended.result = None;
                ended.error = Some(format!("timed out after {} ms", item.entry.timeout_ms));
            }
            Some(Stop::Cancelled) => {
                ended.end = AttemptEnd::Cancelled;
                ended.result = None;
                ended.error = None;
                ended.reason = Some("cancelled while it ran".into());
            }
            None => {}
        }
        self.shared.slots.release(1);
        self.hand_to_recorder(key, ended);
    }

    fn finish_unstarted(&mut self, key: Key, end: AttemptEnd, why: &str) {
        let mut ended = Ended::without_run(end, self.shared.incarnation.clock().now());
        if matches!(end, AttemptEnd::Failed { .. }) {
            ended.error = Some(why.to_owned());
        } else {
            ended.reason = Some(why.to_owned());
        }
        self.shared.slots.release(1);
        self.hand_to_recorder(key, ended);
    }

    fn hand_to_recorder(&mut self, key: Key, ended: Ended) {
        self.deadlines.forget(key);
        self.shared.trial.end(key);
        let Some(item) = self.items.get_mut(&key) else { return };
        item.state = State::Ended { started_at: ended.started_at };
        item.set_payload(None);
        let was_cancelled = item.named;
        let entry = self.shared.finished(item, ended, was_cancelled);
        self.shared.slots.to_record(entry.entry.bytes);
        let _ = self.recorder.send(ToRecord::Finished(Box::new(entry)));
    }

    fn recorded(&mut self, started: &[(Key, Verdict)], finished: &[(Key, Verdict)]) {
        for (key, verdict) in started {
            match verdict {
                Verdict::Running { cancel_requested: false } | Verdict::Recorded(_) | Verdict::Locked => {}
                Verdict::Running { cancel_requested: true } => self.ask_to_stop(*key, Stop::Cancelled),
                Verdict::Over { .. } | Verdict::Lost => {
                    warn!(execution.id = %key.execution, "somebody else has this execution: its handler is stopped");
                    self.ask_to_stop(*key, Stop::Lost);
                }
            }
        }
        for (key, _) in finished {
            self.items.remove(key);
        }
    }

    fn reasserted(&mut self, kept: &HashSet<Uuid>, asked: &[Held]) {
        for held in asked.iter().filter(|held| !kept.contains(&held.execution)) {
            self.ask_to_stop(Key { execution: held.execution, claim: held.claim }, Stop::Lost);
        }
    }
}

fn timeout_of(entry: &Entry) -> Duration {
    Duration::from_millis(u64::from(entry.timeout_ms))
}
