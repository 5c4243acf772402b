//! R14 and R21: the beat that keeps this executor live, and the next incarnation when its contact with Postgres broke.
//!
//! The beat serves correctness: while it is younger than the lease nobody takes what runs here. So it depends on nothing but
//! Postgres: a loop and connections of its own, which no handler, check or flush can keep it waiting for, and nothing of Redis
//! (`renewal.rs` is another loop).
//!
//! Postgres away: the next incarnation is tried until it is answered, with pauses that grow; one that broke at once counts as
//! such a try, so that a Postgres which answers here and fails elsewhere is not flooded with incarnations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_failpoint as failpoint;
use carillon_store::recorder::Started;
use carillon_store::workers::{Locked, Succession, Worker};
use carillon_store::{Error, Store};
use metrics::{counter, histogram};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::message::Message;
use crate::shared::Shared;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// An incarnation that lasted for so long did not break for the cause of the one before it.
const LASTED: Duration = Duration::from_secs(10);
/// Somebody holds a lock on this incarnation's row: how soon it is beaten again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Between two tries to have what was left with an earlier incarnation.
const ADOPT_PAUSE: Duration = Duration::from_millis(250);
/// A try that takes longer keeps the beat waiting.
const ADOPT_MAX: Duration = Duration::from_secs(1);
/// How long an executor that has nothing in hand any more tries to say so (R18): it only spares the others a wait for the
/// lease, and whoever stops this process waits for it.
const GOODBYE_POSTGRES_MAX: Duration = Duration::from_secs(2);
const GOODBYE_REDIS_MAX: Duration = Duration::from_secs(1);
/// Both.
pub(crate) const GOODBYE_MAX: Duration = GOODBYE_POSTGRES_MAX.saturating_add(GOODBYE_REDIS_MAX);

/// The loop.
pub(crate) struct Lease {
    pub shared: Arc<Shared>,
    /// Connections of its own.
    pub store: Store,
    pub engine: mpsc::UnboundedSender<Message>,
    pub queues: Vec<String>,
    pub slots: i32,
    /// Cancelled when all that was in hand is recorded or handed back.
    pub done: CancellationToken,
}

impl Lease {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let quarter = self.shared.lease / 4;
        tokio::select! {
            // Also in the middle of a beat: of an executor that has ended nobody asks whether it lives.
            () = self.done.cancelled() => {}
            () = self.keep(quarter) => {}
        }
        self.end().await;
        Ok(())
    }

    async fn keep(&self, quarter: Duration) {
        let mut next_beat = Instant::now() + quarter;
        let mut pause = PAUSE_MIN;
        let mut left = Vec::new();
        loop {
            tokio::select! {
                () = self.shared.incarnation.broken() => {
                    let lasted = self.shared.incarnation.contact().since.elapsed();
                    pause = if lasted < LASTED { (pause * 2).min(PAUSE_MAX) } else { PAUSE_MIN };
                    tokio::time::sleep(pause).await;
                    left = self.succeed(pause).await;
                    next_beat = Instant::now() + quarter;
                }
                () = tokio::time::sleep(ADOPT_PAUSE), if !left.is_empty() => self.adopt(&mut left).await,
                () = tokio::time::sleep_until(next_beat.into()) => {
                    next_beat = Instant::now() + self.beat(quarter).await;
                }
            }
        }
    }

    /// Answers when the next one is due.
    async fn beat(&self, quarter: Duration) -> Duration {
        let worker = self.shared.incarnation.contact().worker;
        let sent = Instant::now();
        match tokio::time::timeout(quarter, self.store.worker_beat(worker)).await {
            Ok(Ok(Some(clock))) => {
                self.shared.incarnation.beat(sent, clock, self.shared.lease);
                histogram!("carillon_executor_beat_seconds").record(sent.elapsed().as_secs_f64());
            }
            Ok(Ok(None)) => {
                warn!("postgres does not know this incarnation any more");
                self.shared.incarnation.broke(worker);
            }
            // Nobody was away. Should it stay so, nothing is started any more (R9), and others take over after the lease.
            Ok(Err(error)) if !error.is_away() => {
                warn!("a beat was refused, trying again: {}", with_causes(&error));
                return BUSY_PAUSE.min(quarter);
            }
            Ok(Err(error)) => {
                warn!("a beat failed: {}", with_causes(&error));
                self.shared.incarnation.broke(worker);
            }
            Err(_) => {
                warn!(limit_ms = u64::try_from(quarter.as_millis()).unwrap_or(u64::MAX), "a beat got no answer");
                self.shared.incarnation.broke(worker);
            }
        }
        quarter
    }

    /// R21, until Postgres has answered. Answers what was left with the incarnation before it.
    async fn succeed(&self, mut pause: Duration) -> Vec<Started> {
        let old = self.shared.incarnation.contact().worker;
        counter!("carillon_executor_incarnations_total").increment(1);
        let mut locked = Locked::WaitedFor;
        loop {
            let (answer, started) = oneshot::channel();
            // Without the engine the process ends, and there is nothing to keep.
            let _ = self.engine.send(Message::WhatHasStarted(answer));
            let Ok(started) = started.await else {
                self.done.cancelled().await;
                return Vec::new();
            };
            let new = self.worker(Uuid::now_v7());
            let trying = self.store.worker_succeed(old, &new, &started, locked);
            match tokio::time::timeout(self.shared.lease / 4, trying).await {
                Ok(Ok(succession)) => {
                    info!(
                        kept = succession.kept.len(),
                        left = succession.left.len(),
                        started = started.len(),
                        "contact with postgres is back, as a new incarnation"
                    );
                    let left = self.reassert(started, succession);
                    self.shared.incarnation.succeed(new.id);
                    return left;
                }
                Ok(Err(error @ Error::Busy(_))) => {
                    // For one row's sake all the others would be lost too.
                    locked = Locked::Left;
                    warn!("what somebody has locked stays with the last incarnation: {}", with_causes(&error));
                }
                Ok(Err(error)) => debug!("no new incarnation yet: {}", with_causes(&error)),
                Err(_) => debug!("no new incarnation yet: no answer"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Lets everybody know what of `started` is still this process'; answers what of it is left with an earlier incarnation.
    fn reassert(&self, mut started: Vec<Started>, succession: Succession) -> Vec<Started> {
        let Succession { kept, left } = succession;
        self.shared.incarnation.leave(left.iter().copied());
        let held = started.iter().map(|started| started.held).collect();
        let _ = self.engine.send(Message::Reasserted(kept.iter().chain(&left).copied().collect(), held));
        started.retain(|started| left.contains(&started.held.execution));
        started
    }

    /// R21: what was left, as far as it is free by now. Nobody else takes it meanwhile: the incarnation that has it lives.
    async fn adopt(&self, left: &mut Vec<Started>) {
        failpoint::reach("adopt:begin").await;
        let worker = self.worker(self.shared.incarnation.contact().worker);
        match tokio::time::timeout(ADOPT_MAX, self.store.worker_adopt(&worker, left)).await {
            Ok(Ok(succession)) => *left = self.reassert(std::mem::take(left), succession),
            // Tried again; whether the contact broke, the beat tells.
            Ok(Err(error)) => debug!("what was left is not adopted yet: {}", with_causes(&error)),
            Err(_) => debug!("what was left is not adopted yet: no answer"),
        }
    }

    /// R18.
    async fn end(&self) {
        let worker = self.shared.incarnation.contact().worker;
        match tokio::time::timeout(GOODBYE_POSTGRES_MAX, self.store.worker_end(worker)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!("what is handed back is free after the lease only: {}", with_causes(&error));
                return;
            }
            Err(_) => {
                warn!("what is handed back is free after the lease only: postgres does not answer");
                return;
            }
        }
        match tokio::time::timeout(GOODBYE_REDIS_MAX, self.shared.redis.tell_ended()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!("the others find what is handed back by themselves: {}", with_causes(&error));
            }
            Err(_) => debug!("the others find what is handed back by themselves: redis does not answer"),
        }
    }

    pub(crate) fn worker(&self, id: Uuid) -> Worker {
        Worker {
            id,
            consumer: self.shared.consumer.clone(),
            queues: self.queues.clone(),
            handlers: self.shared.registry.names().into_iter().map(Into::into).collect(),
            slots: self.slots,
        }
    }
}
