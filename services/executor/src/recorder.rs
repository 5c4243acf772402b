//! R10 to R12: writes what became of attempts, a group at a time, and acknowledges.
//!
//! Adaptive by itself: what has ended while one transaction is on its way makes up the next one, and between the beginnings of
//! two lies a moment ([`GATHER`]). Idle, an end is written at once; under load a transaction carries hundreds, and never waits
//! to be filled. It is bounded by items and by bytes, and of one day (`group.rs`).
//!
//! Postgres away: the same group is run again until it is answered, under whatever incarnation this executor is by then
//! (R21); ends queue up meanwhile, up to the bounds at which the reader stops (`Slots`). Redis away: what could not be
//! acknowledged stays pending, and is found over at the next look at one's own pending entries.
//!
//! Nothing that one execution brings keeps the others from being written: a group that Postgres refuses is halved until what
//! it refuses is found, which fails with the reason; what somebody else has locked is left out and tried again by itself
//! (`aside.rs`). Neither is an outage, so neither ends an incarnation.

mod aside;
mod group;
mod refused;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_core::execution::Status;
use carillon_core::line::Line;
use carillon_failpoint as failpoint;
use carillon_kit::sleep_until;
use carillon_store::recorder::Verdict;
use carillon_store::{Error, Store};
use carillon_stream::{EntryId, Redis};
use metrics::{counter, gauge, histogram};
use tokio::sync::mpsc;
use tracing::{debug, warn};
use uuid::Uuid;

use self::aside::Aside;
use self::group::{Group, groups};
use self::refused::{At, Next, Why, after};
use crate::in_hand::Key;
use crate::incarnation::{Incarnation, Left};
use crate::journal;
use crate::message::Message;
use crate::progress::Progress;
use crate::shared::Shared;
use crate::slots::Slots;
use crate::to_record::{Acknowledgement, ToRecord};

/// From the beginning of one flush to that of the next, unless as much waits as one may take. A transaction each millisecond, of
/// three rows each, costs Postgres more than it does for the rows, and its commits stand in the way of the leader's.
const GATHER: Duration = Duration::from_millis(10);
/// After a flush that Postgres did not answer; doubled with each further one.
const AWAY_PAUSE: Duration = Duration::from_millis(50);
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// For so long after the last lock of somebody else's no flush waits for a row.
const UNLOCKED_FOR: Duration = Duration::from_secs(5);

/// The recorder's loop.
#[derive(Debug)]
pub(crate) struct Recorder {
    writer: Writer,
    flush_max: usize,
    incoming: mpsc::UnboundedReceiver<ToRecord>,
}

/// What the recorder works with.
#[derive(Debug)]
pub(crate) struct Writer {
    /// A connection of its own: the statements of handlers and checks can't keep it waiting.
    store: Store,
    redis: Redis,
    lines: Vec<Line>,
    incarnation: Incarnation,
    slots: Slots,
    progress: Progress,
    engine: mpsc::UnboundedSender<Message>,
    aside: Aside,
    /// Until then no flush waits for a row.
    unlocked_until: Option<Instant>,
    away_pause: Duration,
}

/// What the store has answered.
struct Written {
    /// As whom it was asked,
    worker: Uuid,
    /// and what an earlier incarnation had then.
    left: Left,
    /// First of what has started.
    verdicts: Vec<Verdict>,
}

impl Recorder {
    pub(crate) const fn new(writer: Writer, flush_max: usize, incoming: mpsc::UnboundedReceiver<ToRecord>) -> Self {
        Self { writer, flush_max, incoming }
    }

    /// Runs until everybody who could hand something in is gone, and all of it is written.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut incoming = Vec::with_capacity(self.flush_max);
        let mut next_flush = Instant::now();
        loop {
            let due = self.writer.aside.next_due();
            tokio::select! {
                count = self.incoming.recv_many(&mut incoming, self.flush_max) => if count == 0 { break },
                () = sleep_until(due) => {}
            }
            gather(&mut self.incoming, &mut incoming, self.flush_max, next_flush).await;
            next_flush = Instant::now() + GATHER;
            self.writer.flush(std::mem::take(&mut incoming)).await;
            self.writer.try_aside().await;
        }
        // What is locked is waited for, as long as the process may take to stop.
        while let Some(due) = self.writer.aside.next_due() {
            sleep_until(Some(due)).await;
            self.writer.try_aside().await;
        }
        Ok(())
    }
}

/// What comes until then, as far as there is room in a flush.
async fn gather(
    incoming: &mut mpsc::UnboundedReceiver<ToRecord>,
    gathered: &mut Vec<ToRecord>,
    max: usize,
    until: Instant,
) {
    while gathered.len() < max && Instant::now() < until {
        let room = max - gathered.len();
        tokio::select! {
            count = incoming.recv_many(gathered, room) => if count == 0 { return },
            () = sleep_until(Some(until)) => {}
        }
    }
}

impl Writer {
    pub(crate) fn new(
        shared: &Shared,
        store: Store,
        progress: Progress,
        engine: mpsc::UnboundedSender<Message>,
    ) -> Self {
        Self {
            store,
            redis: shared.redis.clone(),
            lines: shared.lines.clone(),
            incarnation: shared.incarnation.clone(),
            slots: shared.slots.clone(),
            progress,
            engine,
            aside: Aside::default(),
            unlocked_until: None,
            away_pause: AWAY_PAUSE,
        }
    }

    async fn flush(&mut self, mut incoming: Vec<ToRecord>) {
        // One that has ended meanwhile need not be shown running.
        let ended: HashSet<Key> =
            incoming.iter().filter(|item| matches!(item, ToRecord::Finished(_))).map(ToRecord::key).collect();
        incoming.retain(|item| matches!(item, ToRecord::Finished(_)) || !ended.contains(&item.key()));
        for key in &ended {
            self.aside.forget_start(*key);
        }
        for group in groups(incoming) {
            self.write(group).await;
        }
    }

    /// What was set aside and is due, once.
    async fn try_aside(&mut self) {
        for group in groups(self.aside.take_due(Instant::now())) {
            self.unlocked_until = Some(Instant::now() + UNLOCKED_FOR);
            self.write(group).await;
        }
        gauge!("carillon_executor_records_set_aside").set(u32::try_from(self.aside.len()).unwrap_or(u32::MAX));
    }

    /// Until all of it is written or set aside.
    async fn write(&mut self, group: Group) {
        let mut todo = vec![group];
        while let Some(mut group) = todo.pop() {
            let (mut tries, mut rehearsed) = (0, false);
            // As it was, while it is tried without what Postgres may have refused it for.
            let mut whole: Option<Group> = None;
            loop {
                let unlocked = self.unlocked_until.is_some_and(|until| Instant::now() < until);
                let error = match self.try_to_write(&group, unlocked).await {
                    Ok(written) => {
                        if whole.is_some() {
                            group.tell_given_up();
                        }
                        self.written(group, written);
                        break;
                    }
                    Err(error) => error,
                };
                let at = At { items: group.len(), plain: group.is_plain(), rehearsed, unlocked, tries };
                let (next, pause) = after(Why::from(&error), at);
                let error = with_causes(&error);
                debug!(items = at.items, tries, ?next, "a group is not written: {error}");
                tokio::time::sleep(pause).await;
                tries += 1;
                match next {
                    Next::Again => {}
                    Next::Rehearse => {
                        rehearsed = self.would_be_written_plain(&group, &error).await;
                        if !rehearsed {
                            self.put_aside(group, &error);
                            break;
                        }
                    }
                    Next::Unlocked => self.unlocked_until = Some(Instant::now() + UNLOCKED_FOR),
                    Next::Plain => {
                        whole = Some(group.clone());
                        group.make_plain(&error);
                    }
                    Next::Split => {
                        todo.extend(group.halves());
                        break;
                    }
                    Next::Aside => {
                        // Refused without it too: it was not the cause, and is kept.
                        self.put_aside(whole.unwrap_or(group), &error);
                        break;
                    }
                }
            }
        }
    }

    fn put_aside(&mut self, group: Group, error: &str) {
        warn!(items = group.len(), "tried again later: {error}");
        if group.len() > 1 {
            self.aside.too_many(group.len());
        }
        let now = Instant::now();
        group.into_items().for_each(|item| self.aside.put(item, now));
    }

    async fn would_be_written_plain(&self, group: &Group, error: &str) -> bool {
        let mut plain = group.clone();
        plain.make_plain(error);
        let worker = self.incarnation.unbroken().await.worker;
        self.store.executions_rehearse_record(worker, &plain.finished, &plain.ended_jobs()).await.is_ok()
    }

    /// Once, as whoever this executor is now.
    async fn try_to_write(&mut self, group: &Group, unlocked: bool) -> Result<Written, Error> {
        self.progress.something_waits();
        let contact = self.incarnation.unbroken().await;
        // What it was left with is known before it is, and only by then.
        let left = self.incarnation.left();
        let (jobs, began) = (group.ended_jobs(), Instant::now());
        failpoint::reach("record:write").await;
        let outcome = if unlocked {
            self.store.executions_record_unlocked(contact.worker, &group.started, &group.finished, &jobs).await
        } else {
            self.store.executions_record(contact.worker, &group.started, &group.finished, &jobs).await
        };
        match &outcome {
            Ok((_, finished)) => {
                self.away_pause = AWAY_PAUSE;
                histogram!("carillon_executor_flush_seconds").record(began.elapsed().as_secs_f64());
                histogram!("carillon_executor_flush_items").record(u32::try_from(finished.len()).unwrap_or(u32::MAX));
            }
            Err(error) if error.is_unavailable() => {
                warn!(ended = group.finished.len(), "postgres is away, results are held: {}", with_causes(error));
                // A refusal (no room on its disk) is an answer: R21 is for what may have been done.
                if error.is_away() {
                    self.incarnation.broke(contact.worker);
                }
                // Whatever makes it fail: this neither asks again nor makes a new incarnation each time at once.
                tokio::time::sleep(self.away_pause).await;
                self.away_pause = (self.away_pause * 2).min(AWAY_PAUSE_MAX);
            }
            Err(_) => {}
        }
        outcome.map(|(mut verdicts, finished)| {
            verdicts.extend(finished);
            Written { worker: contact.worker, left, verdicts }
        })
    }

    fn written(&mut self, group: Group, written: Written) {
        let Written { worker, left, verdicts } = written;
        let now = Instant::now();
        let (mut shown, mut ends) = (Vec::with_capacity(group.started.len()), Vec::with_capacity(group.finished.len()));
        let mut locked = 0;
        // R21: what the last incarnation was refused may be the next one's, which has it already or is about to. So may what this one
        // is refused, of what the last one was left with.
        let contact = self.incarnation.contact();
        let is_the_last = !contact.unbroken || contact.worker != worker;
        for (item, verdict) in group.into_items().zip(verdicts) {
            match item {
                item if verdict == Verdict::Locked => {
                    locked += 1;
                    self.aside.put(item, now);
                    continue;
                }
                item if verdict == Verdict::Lost && (is_the_last || left.contains(&item.execution())) => {
                    self.aside.put(item, now);
                    continue;
                }
                ToRecord::Started(key, _) => shown.push((key, verdict)),
                ToRecord::Finished(end) => ends.push((end.entry, verdict)),
            }
        }
        for key in shown.iter().map(|(key, _)| *key).chain(ends.iter().map(|(entry, _)| entry.key)) {
            self.aside.done(key);
        }
        if locked > 0 {
            self.unlocked_until = Some(now + UNLOCKED_FOR);
            debug!(locked, "somebody else has locked what is to be written: it is tried again by itself");
        }
        if !(shown.is_empty() && ends.is_empty()) || self.aside.len() == 0 {
            self.progress.recorded();
        }
        self.slots.recorded(ends.len(), ends.iter().map(|(entry, _)| entry.bytes).sum());
        self.acknowledge(&ends);
        let finished = ends.iter().map(|(entry, verdict)| (entry.key, *verdict)).collect();
        // The engine outlives this loop's work; if it is gone the process ends.
        let _ = self.engine.send(Message::Recorded { started: shown, finished });
    }

    /// R12, off the path: the next group does not wait for Redis.
    fn acknowledge(&self, ends: &[(Acknowledgement, Verdict)]) {
        let mut by_line: BTreeMap<usize, Vec<EntryId>> = BTreeMap::new();
        let mut cancelled = Vec::new();
        let mut retries = false;
        for (entry, verdict) in ends {
            count(*verdict);
            match verdict {
                Verdict::Recorded(status) => {
                    retries |= *status == Status::Retrying;
                    journal::recorded(entry.key.execution, entry.attempt, entry.job);
                }
                Verdict::Over { .. } => {}
                Verdict::Lost | Verdict::Running { .. } | Verdict::Locked => {
                    warn!(execution.id = %entry.key.execution, "a result came too late: somebody else has this execution");
                    continue;
                }
            }
            by_line.entry(entry.line).or_default().push(entry.id);
            if entry.was_cancelled {
                cancelled.push(entry.key.execution);
            }
        }
        if by_line.is_empty() {
            return;
        }
        let (redis, lines) = (self.redis.clone(), self.lines.clone());
        tokio::spawn(async move {
            failpoint::reach("acknowledge:send").await;
            for (line, ids) in by_line {
                if let Err(error) = redis.acknowledge(&lines[line], &ids).await {
                    debug!("not acknowledged, found over later: {}", with_causes(&error));
                }
            }
            failpoint::reach("acknowledge:answered").await;
            if retries {
                // The leader's poll finds them too.
                let _ = redis.wake().await;
            }
            let _ = redis.forget_cancelled(&cancelled).await;
        });
    }
}

fn count(verdict: Verdict) {
    match verdict {
        Verdict::Recorded(status) => {
            counter!("carillon_executor_attempts_total", "status" => status.as_str()).increment(1);
        }
        Verdict::Over { unknown } => {
            let why = if unknown { "unknown" } else { "over" };
            counter!("carillon_executor_refused_total", "why" => why).increment(1);
        }
        Verdict::Lost | Verdict::Running { .. } | Verdict::Locked => {
            counter!("carillon_executor_refused_total", "why" => "late").increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_store::recorder::{Finished, Held, Started};
    use chrono::DateTime;

    use super::*;
    use crate::to_record::FinishedEntry;

    pub(super) fn started(execution: Uuid) -> ToRecord {
        let held = Held { execution, claim: 1, take: 0 };
        let started = Started { held, started_at: DateTime::UNIX_EPOCH, revision: 1 };
        ToRecord::Started(Key { execution, claim: 1 }, started)
    }

    pub(super) fn ended(execution: Uuid) -> ToRecord {
        let entry = Acknowledgement {
            key: Key { execution, claim: 1 },
            line: 0,
            id: EntryId { number: 1, seq: 1 },
            job: Uuid::nil(),
            attempt: 1,
            last: false,
            was_cancelled: false,
            bytes: 100,
            plain: false,
        };
        let finished = Finished {
            held: Held { execution, claim: 1, take: 0 },
            attempt: 1,
            handler: "a:b".into(),
            revision: 1,
            status: Status::Success,
            timed_out: false,
            started_at: None,
            ended_at: DateTime::UNIX_EPOCH,
            next_retry_at: None,
            queue: "default".into(),
            priority: 1,
            result: None,
            error: None,
            error_stack: None,
            reason: None,
            metadata: None,
            logs: Vec::new(),
        };
        ToRecord::Finished(Box::new(FinishedEntry { entry, finished }))
    }

    #[tokio::test]
    async fn a_flush_waits_for_more_only_until_its_time_and_never_when_it_is_full_or_nothing_can_come() {
        let (send, mut incoming) = mpsc::unbounded_channel();
        let hand_in = |count: u128| {
            for n in 0..count {
                send.send(ended(Uuid::from_u128(n))).expect("it is read");
            }
        };
        let long = Duration::from_secs(3_600);
        hand_in(7);
        let mut gathered = vec![ended(Uuid::nil())];
        gather(&mut incoming, &mut gathered, 5, Instant::now() + long).await;
        assert_eq!((gathered.len(), incoming.len()), (5, 3), "full");
        gathered.clear();
        gather(&mut incoming, &mut gathered, 5, Instant::now()).await;
        assert_eq!((gathered.len(), incoming.len()), (0, 3), "its time has come");
        let until = Instant::now() + Duration::from_millis(20);
        gather(&mut incoming, &mut gathered, 5, until).await;
        assert!(Instant::now() >= until && gathered.len() == 3, "more could have come");
        hand_in(1);
        drop(send);
        gathered.clear();
        gather(&mut incoming, &mut gathered, 5, Instant::now() + long).await;
        assert_eq!(gathered.len(), 1, "the process stops");
    }
}
