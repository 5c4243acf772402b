//! R10 to R12: writes what became of attempts, a group at a time, and acknowledges.
//!
//! Adaptive by itself: what has ended while one transaction is on its way makes up the next one. Idle, an end is written at
//! once; under load a transaction carries hundreds, and never waits to be filled.
//!
//! Postgres away: the same group is run again until it is answered, under whatever incarnation this executor is by then
//! (R21); ends queue up meanwhile, up to the bound at which the reader stops (`Slots`). Redis away: what could not be
//! acknowledged stays pending, and is found over at the next look at one's own pending entries.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use carillon_core::execution::Status;
use carillon_core::line::Line;
use carillon_store::recorder::{Finished, Started, Verdict};
use carillon_store::{Error, Store};
use carillon_stream::{EntryId, Redis};
use metrics::{counter, histogram};
use tokio::sync::mpsc;
use tracing::{debug, error, warn};
use uuid::Uuid;

use crate::in_hand::Key;
use crate::incarnation::Incarnation;
use crate::journal;
use crate::message::Message;
use crate::slots::Slots;

/// After a deadlock or serialization failure.
const CONFLICT_PAUSE: Duration = Duration::from_millis(2);
/// After an answer that only a defect explains.
const DEFECT_PAUSE: Duration = Duration::from_secs(1);

/// Something to be written.
#[derive(Debug)]
pub(crate) enum ToRecord {
    /// R10: a handler that outlived a flush.
    Started(Key, Started),
    /// R11.
    Finished(Box<FinishedEntry>),
}

/// The end of an attempt, and the entry that stands for it.
#[derive(Debug)]
pub(crate) struct FinishedEntry {
    pub key: Key,
    pub line: usize,
    pub id: EntryId,
    pub job: Uuid,
    /// The job may be complete now.
    pub last: bool,
    /// A cancel stood in Redis' set for it.
    pub was_cancelled: bool,
    pub finished: Finished,
}

/// The recorder's loop.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub store: Store,
    pub redis: Redis,
    pub lines: Vec<Line>,
    pub incarnation: Incarnation,
    pub slots: Slots,
    pub flush_max: usize,
    pub incoming: mpsc::UnboundedReceiver<ToRecord>,
    pub engine: mpsc::UnboundedSender<Message>,
}

impl Recorder {
    /// Runs until everybody who could hand something in is gone, and all of it is written.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut incoming = Vec::with_capacity(self.flush_max);
        while self.incoming.recv_many(&mut incoming, self.flush_max).await > 0 {
            self.flush(std::mem::take(&mut incoming)).await;
        }
        Ok(())
    }

    async fn flush(&self, incoming: Vec<ToRecord>) {
        let mut started = Vec::new();
        let mut finished = Vec::new();
        let mut entries = Vec::new();
        for item in incoming {
            match item {
                ToRecord::Started(key, what) => started.push((key, what)),
                ToRecord::Finished(entry) => {
                    let FinishedEntry { key, line, id, job, last, was_cancelled, finished: what } = *entry;
                    entries.push(Acknowledgement { key, line, id, job, attempt: what.attempt, last, was_cancelled });
                    finished.push(what);
                }
            }
        }
        // One that has ended meanwhile need not be shown running.
        let ended: HashSet<Key> = entries.iter().map(|entry| entry.key).collect();
        started.retain(|(key, _)| !ended.contains(key));
        let (keys, starts): (Vec<Key>, Vec<Started>) = started.into_iter().unzip();
        let ended_jobs: Vec<Uuid> = entries.iter().filter(|entry| entry.last).map(|entry| entry.job).collect();
        let began = Instant::now();
        let (started, verdicts) = self.write(&starts, &mut finished, &ended_jobs).await;
        histogram!("carillon_executor_flush_seconds").record(began.elapsed().as_secs_f64());
        histogram!("carillon_executor_flush_items").record(u32::try_from(verdicts.len()).unwrap_or(u32::MAX));
        self.slots.recorded(entries.len());
        self.acknowledge(&entries, &verdicts);
        let started: Vec<(Key, Verdict)> = keys.into_iter().zip(started).collect();
        let finished: Vec<(Key, Verdict)> = entries.iter().map(|entry| entry.key).zip(verdicts).collect();
        // The engine outlives this loop's work; if it is gone the process ends.
        let _ = self.engine.send(Message::Recorded { started, finished });
    }

    /// Runs the same group until its outcome is known.
    async fn write(
        &self,
        started: &[Started],
        finished: &mut [Finished],
        ended_jobs: &[Uuid],
    ) -> (Vec<Verdict>, Vec<Verdict>) {
        loop {
            let contact = self.incarnation.unbroken().await;
            match self.store.record(contact.worker, started, finished, ended_jobs).await {
                Ok(verdicts) => return verdicts,
                Err(error) if error.is_unavailable() => {
                    warn!(
                        ended = finished.len(),
                        "postgres is away, results are held: {:#}",
                        anyhow::Error::from(error)
                    );
                    self.incarnation.broke(contact.worker);
                }
                Err(Error::Conflict(why)) => {
                    debug!("running a group again: {why}");
                    tokio::time::sleep(CONFLICT_PAUSE).await;
                }
                Err(error @ Error::Data(_)) => {
                    error!("a group holds something that postgres refuses: {:#}", anyhow::Error::from(error));
                    strip_unwritable(finished);
                }
                Err(error) => {
                    error!("a group cannot be written, trying again: {:#}", anyhow::Error::from(error));
                    tokio::time::sleep(DEFECT_PAUSE).await;
                }
            }
        }
    }

    /// R12, off the path: the next group does not wait for Redis.
    fn acknowledge(&self, entries: &[Acknowledgement], verdicts: &[Verdict]) {
        let mut by_line: BTreeMap<usize, Vec<EntryId>> = BTreeMap::new();
        let mut cancelled = Vec::new();
        let mut retries = false;
        for (entry, verdict) in entries.iter().zip(verdicts) {
            count(*verdict);
            match verdict {
                Verdict::Recorded(status) => {
                    retries |= *status == Status::Retrying;
                    journal::recorded(entry.key.execution, entry.attempt.unsigned_abs().into(), entry.job);
                }
                Verdict::Over { .. } => {}
                Verdict::Lost | Verdict::Running { .. } => {
                    warn!(execution.id = %entry.key.execution, "a result came too late: somebody else has this execution");
                    continue;
                }
            }
            by_line.entry(entry.line).or_default().push(entry.id);
            if entry.was_cancelled {
                cancelled.push(entry.key.execution);
            }
        }
        let (redis, lines) = (self.redis.clone(), self.lines.clone());
        tokio::spawn(async move {
            for (line, ids) in by_line {
                if let Err(error) = redis.acknowledge(&lines[line], &ids).await {
                    debug!("not acknowledged, found over later: {:#}", anyhow::Error::from(error));
                }
            }
            if retries {
                // The leader's poll finds them too.
                let _ = redis.wake().await;
            }
            let _ = redis.forget_cancelled(&cancelled).await;
        });
    }
}

struct Acknowledgement {
    key: Key,
    line: usize,
    id: EntryId,
    job: Uuid,
    attempt: i16,
    last: bool,
    was_cancelled: bool,
}

/// Whatever Postgres refuses to hold must not keep its neighbours from being recorded: texts give way to a plain one.
fn strip_unwritable(finished: &mut [Finished]) {
    counter!("carillon_executor_unwritable_groups_total").increment(1);
    for what in finished {
        if what.result.take().is_some() || what.error.is_some() {
            what.error = Some("what the handler returned could not be written to postgres".into());
        }
        what.error_stack = None;
        what.logs.clear();
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
        Verdict::Lost | Verdict::Running { .. } => {
            counter!("carillon_executor_refused_total", "why" => "late").increment(1);
        }
    }
}
