//! R8: the reading loop. Reads what slots are free for, by priority, and hands it to the engine with what Redis says of
//! itself. A read is never cancelled in mid-flight; a stop takes effect between two, or where Redis does not answer: what such
//! a read brings after all is pending under a consumer that has ended, which the others take at once (R15, R18).
//!
//! At start, after each reconnect, each lease/4 and when something was handed on to it, it lists its own pending entries: a
//! reply that was lost on the way, an acknowledgement that did not arrive, an entry that was let go. Listing needs no slot:
//! what is not in hand, and finds none for long, goes to whoever has room (R18a).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_core::execution::Status;
use carillon_core::read_plan::{Plan, ReadPlan};
use carillon_stream::claims::{Claimed, Pending, RELEASED};
use carillon_stream::reader::{Read, Reader};
use carillon_stream::{EntryId, Error};
use metrics::counter;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::boottime;
use crate::in_hand::Origin;
use crate::message::{Arrival, Message};
use crate::shared::Shared;

/// How long a read waits for something to come: no longer, since a stop waits for it.
pub(crate) const BLOCK: Duration = Duration::from_millis(500);
/// How long a stop waits for the read that is on its way.
pub(crate) const STOP_PATIENCE: Duration = BLOCK.saturating_add(Duration::from_millis(500));
/// Entries of one read, at most.
const READ_MAX: usize = 1_000;
/// After a read that failed.
const FAILED_PAUSE: Duration = Duration::from_millis(100);
/// Of one's own pending entries, listed at once.
const LISTED_MAX: usize = 200;
/// Reads that wait in vain leave no trace at a stream, and neither does XPENDING: by a listing of nothing it sees that it is served
/// ([`carillon_stream::streams::UNSERVED_AFTER`]).
const SHOWN_EVERY: Duration = Duration::from_secs(10 * 60);
/// No entry is behind it.
const LAST: EntryId = EntryId { number: i64::MAX, seq: i32::MAX };
/// Unreadable entries remembered, so that each is reported once.
const ASIDE_MAX: usize = 10_000;

/// The loop.
pub(crate) struct ReadingLoop {
    shared: Arc<Shared>,
    reader: Reader,
    plan: ReadPlan,
    engine: mpsc::UnboundedSender<Message>,
    shutdown: CancellationToken,
    aside: HashSet<String>,
    failing: bool,
    /// A stream is missing and cannot be made.
    is_one_missing: bool,
    turn: usize,
    /// When each stream was last shown that somebody serves it.
    shown: Option<Instant>,
}

impl ReadingLoop {
    pub(crate) fn new(
        shared: Arc<Shared>,
        engine: mpsc::UnboundedSender<Message>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let reader = Reader::new(&shared.redis, shared.consumer.clone(), &shared.lines, BLOCK)?;
        let priorities: Vec<_> = shared.lines.iter().map(|line| line.priority).collect();
        let plan = ReadPlan::new(&priorities);
        Ok(Self {
            shared,
            reader,
            plan,
            engine,
            shutdown,
            aside: HashSet::new(),
            failing: false,
            is_one_missing: false,
            turn: 0,
            shown: None,
        })
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let shutdown = self.shutdown.clone();
        let out_of_time = async {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_PATIENCE).await;
        };
        tokio::select! {
            () = self.read_on() => {}
            () = out_of_time => warn!("redis does not answer: not waiting for the read that is on its way"),
        }
        let _ = self.engine.send(Message::ReadingEnded);
        Ok(())
    }

    async fn read_on(&mut self) {
        let mut reconnects = self.reader.reconnects();
        let mut own_due = Instant::now();
        while !self.shutdown.is_cancelled() {
            if !self.shared.incarnation.may_start(self.shared.lease) {
                // R9: read nothing.
                self.pause(self.shared.window / 8).await;
                continue;
            }
            if has_reconnected(&mut reconnects) {
                own_due = Instant::now();
            }
            let free = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                () = self.shared.handed_on.notified() => {
                    own_due = Instant::now();
                    0
                }
                () = tokio::time::sleep_until(own_due.into()) => 0,
                free = self.shared.slots.wait_free() => free,
            };
            let outcome = if Instant::now() >= own_due {
                own_due = Instant::now() + self.shared.lease / 4;
                self.list_own().await
            } else {
                self.read(free.min(READ_MAX)).await
            };
            match outcome {
                Ok(()) => self.failing = false,
                Err(Error::NoGroup(_)) => {
                    self.make_missing().await;
                    self.pause(FAILED_PAUSE).await;
                }
                Err(error) => {
                    own_due = Instant::now();
                    self.failed(error).await;
                }
            }
        }
    }

    async fn read(&mut self, free: usize) -> Result<(), Error> {
        // A read that waits, or watches, is one of all lines: where one is missing it is refused.
        let plan = if self.is_one_missing { Plan::Drain(self.shared_out(free)) } else { self.plan.next(free) };
        let sent_at = boottime::now();
        let read = self.reader.read(&plan).await?;
        for (line, got) in read.counts.iter().enumerate() {
            let asked = match &plan {
                Plan::Drain(shares) => shares[line],
                Plan::Wait(each) => *each,
                Plan::Watch => 1,
            };
            self.plan.learn(line, asked, *got);
        }
        let waits = self.is_one_missing && read.entries.is_empty();
        self.hand_in(read, Origin::New, sent_at);
        if waits {
            self.pause(FAILED_PAUSE).await;
        }
        Ok(())
    }

    /// A line whose stream is missing keeps no other from being listed.
    async fn list_own(&mut self) -> Result<(), Error> {
        let mut missing = false;
        let shows = self.shown.is_none_or(|at| at.elapsed() >= SHOWN_EVERY);
        for index in 0..self.shared.lines.len() {
            let listed = async {
                if shows {
                    self.reader.own_pending(index, Some(LAST), 1).await?;
                }
                self.list_own_of(index).await
            };
            match listed.await {
                Err(Error::NoGroup(_)) => missing = true,
                listed => listed?,
            }
        }
        if shows {
            self.shown = Some(Instant::now());
        }
        if missing {
            self.make_missing().await;
        } else {
            self.is_one_missing = false;
        }
        Ok(())
    }

    async fn list_own_of(&mut self, index: usize) -> Result<(), Error> {
        let mut after: Option<EntryId> = None;
        while !self.shutdown.is_cancelled() {
            let shared = Arc::clone(&self.shared);
            let (line, me) = (&shared.lines[index], shared.consumer.as_str());
            let page = shared.redis.pending_of(line, me, after, LISTED_MAX).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            // Asked behind all that was read before: the engine has taken that in by then.
            let Some(held) = self.held().await else { return Ok(()) };
            let missing: Vec<&Pending> = page.iter().filter(|pending| !held.contains(&(index, pending.id))).collect();
            let room = self.shared.slots.free().min(missing.len());
            let (fitting, others) = missing.split_at(room);
            let ids: Vec<EntryId> = fitting.iter().map(|pending| pending.id).collect();
            let sent_at = boottime::now();
            let Claimed { entries, set_aside } = shared.redis.claim(line, index, me, Duration::ZERO, &ids).await?;
            self.hand_in(Read { entries, set_aside, ..Read::default() }, Origin::Pending, sent_at);
            let patience = self.shared.lease / 8;
            let waiting = others.iter().filter(|pending| pending.idle >= patience).map(|pending| pending.id);
            self.find_room_elsewhere(index, &waiting.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// What the engine has in hand, and where that stands; `None` if the process ends.
    async fn held(&self) -> Option<HashSet<(usize, EntryId)>> {
        let (answer, held) = oneshot::channel();
        self.engine.send(Message::WhatIsHeld(answer)).ok()?;
        Some(held.await.ok()?.into_iter().collect())
    }

    /// R18a: an entry that only this executor could start, and that finds no slot here, would wait for as long as what runs.
    /// Nothing is known of it here: whoever takes it looks at its row. What its row calls RUNNING here stays, since nobody
    /// else may take that.
    async fn find_room_elsewhere(&self, index: usize, ids: &[EntryId]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let (redis, line) = (&self.shared.redis, &self.shared.lines[index]);
        let Claimed { entries, .. } = redis.claim(line, index, &self.shared.consumer, Duration::ZERO, ids).await?;
        let executions: Vec<Uuid> = entries.iter().map(|received| received.entry.execution).collect();
        // Postgres away: it stays, and is listed again.
        let Ok(seen) = self.shared.store.executions_see(&executions, self.shared.lease).await else { return Ok(()) };
        let moves = entries
            .iter()
            .filter(|received| seen.get(&received.entry.execution).is_none_or(|row| row.status != Status::Running));
        let ids: Vec<EntryId> = moves.map(|received| received.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        info!(stream = %line, entries = ids.len(), "what finds no slot here is left to others");
        redis.hand_on(line, RELEASED, &ids).await?;
        redis.tell_handed_on(RELEASED).await
    }

    fn hand_in(&mut self, read: Read, origin: Origin, sent_at: Duration) {
        for aside in &read.set_aside {
            if self.aside.len() < ASIDE_MAX && self.aside.insert(aside.id.clone()) {
                counter!("carillon_executor_set_aside_total").increment(1);
                let line = &self.shared.lines[aside.line];
                error!(stream = %line, entry = aside.id, "an entry cannot be read and is set aside: {}", aside.why);
            }
        }
        if read.entries.is_empty() {
            return;
        }
        self.shared.slots.fill(read.entries.len());
        let look = (origin == Origin::New).then_some(read.look);
        let arrival = Arrival { entries: read.entries, look, origin, sent_at, read_at: boottime::now() };
        // If the engine is gone the process ends, and the entries are found pending.
        let _ = self.engine.send(Message::Read(arrival));
    }

    /// The same of each line; of what is left over one each, the next ones next time.
    fn shared_out(&mut self, free: usize) -> Vec<usize> {
        let lines = self.shared.lines.len();
        self.turn = (self.turn + free) % lines;
        (0..lines).map(|line| free / lines + usize::from((line + self.turn) % lines < free % lines)).collect()
    }

    /// R22. What cannot be made (Redis is full, say) is done without: the others are read, and what they give back makes room.
    async fn make_missing(&mut self) {
        match self.reader.create_missing().await {
            Ok(groups) => {
                self.is_one_missing = false;
                if groups > 0 {
                    warn!(groups, "consumer groups are missing: the leader is asked to certify redis anew");
                }
                // R19: at once, not at the pace of the leader's rounds.
                let _ = self.shared.redis.tell_lost().await;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_one_missing, true) {
                    warn!("streams are missing and cannot be created, the others are read: {}", with_causes(&error));
                }
            }
        }
    }

    async fn failed(&mut self, error: Error) {
        if !std::mem::replace(&mut self.failing, true) {
            warn!("cannot read, trying again: {}", with_causes(&error));
        }
        self.pause(FAILED_PAUSE).await;
    }

    async fn pause(&self, duration: Duration) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(duration) => {}
        }
    }
}

fn has_reconnected<T: Clone>(reconnects: &mut broadcast::Receiver<T>) -> bool {
    let mut any = false;
    loop {
        match reconnects.try_recv() {
            Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_)) => any = true,
            Err(_) => return any,
        }
    }
}
