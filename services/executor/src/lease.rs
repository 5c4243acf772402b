//! R14 and R21: the beat that keeps this executor live, and the next incarnation when its contact with Postgres broke.
//!
//! The beat serves correctness: while it is younger than the lease nobody takes what runs here. Renewing the entries in Redis
//! only saves the others from looking at them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_store::workers::Worker;
use metrics::{counter, histogram};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::message::Message;
use crate::shared::Shared;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long an executor that has nothing in hand any more tries to say so (R18): it only spares the others a wait for the
/// lease, and whoever stops this process waits for it.
const GOODBYE_POSTGRES_MAX: Duration = Duration::from_secs(2);
const GOODBYE_REDIS_MAX: Duration = Duration::from_secs(1);

/// The loop.
pub(crate) struct Lease {
    pub shared: Arc<Shared>,
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
        loop {
            tokio::select! {
                () = self.shared.incarnation.broken() => {
                    self.succeed().await;
                    next_beat = Instant::now() + quarter;
                }
                () = tokio::time::sleep_until(next_beat.into()) => {
                    next_beat = Instant::now() + quarter;
                    self.beat(quarter).await;
                    self.renew().await;
                }
            }
        }
    }

    async fn beat(&self, limit: Duration) {
        let worker = self.shared.incarnation.contact().worker;
        let sent = Instant::now();
        match tokio::time::timeout(limit, self.shared.store.worker_beat(worker)).await {
            Ok(Ok(Some(clock))) => {
                self.shared.incarnation.beat(sent, clock);
                histogram!("carillon_executor_beat_seconds").record(sent.elapsed().as_secs_f64());
            }
            Ok(Ok(None)) => {
                warn!("postgres does not know this incarnation any more");
                self.shared.incarnation.broke(worker);
            }
            Ok(Err(error)) => {
                warn!("a beat failed: {:#}", anyhow::Error::from(error));
                self.shared.incarnation.broke(worker);
            }
            Err(_) => {
                warn!(limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), "a beat got no answer");
                self.shared.incarnation.broke(worker);
            }
        }
    }

    /// R14: saves work. One whose beat is too old renews nothing.
    async fn renew(&self) {
        if self.shared.incarnation.contact().last_beat.elapsed() > self.shared.lease {
            return;
        }
        let (answer, held) = oneshot::channel();
        if self.engine.send(Message::WhatIsHeld(answer)).is_err() {
            return;
        }
        let Ok(held) = held.await else { return };
        let mut by_line: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for (line, id) in held {
            by_line.entry(line).or_default().push(id);
        }
        for (line, ids) in by_line {
            if let Err(error) = self.shared.redis.renew(&self.shared.lines[line], &self.shared.consumer, &ids).await {
                debug!("entries are not renewed: {:#}", anyhow::Error::from(error));
            }
        }
    }

    /// R21, until Postgres has answered.
    async fn succeed(&self) {
        let old = self.shared.incarnation.contact().worker;
        let mut pause = PAUSE_MIN;
        counter!("carillon_executor_incarnations_total").increment(1);
        loop {
            let (answer, started) = oneshot::channel();
            // Without the engine the process ends, and there is nothing to keep.
            if self.engine.send(Message::WhatHasStarted(answer)).is_err() {
                return self.done.cancelled().await;
            }
            let Ok(started) = started.await else { return self.done.cancelled().await };
            let new = self.worker(Uuid::now_v7());
            let trying = self.shared.store.worker_succeed(old, &new, &started);
            match tokio::time::timeout(self.shared.lease / 4, trying).await {
                Ok(Ok(kept)) => {
                    info!(
                        kept = kept.len(),
                        started = started.len(),
                        "contact with postgres is back, as a new incarnation"
                    );
                    let held = started.into_iter().map(|(held, _)| held).collect();
                    let _ = self.engine.send(Message::Reasserted(kept.into_iter().collect(), held));
                    self.shared.incarnation.succeed(new.id);
                    return;
                }
                Ok(Err(error)) => debug!("no new incarnation yet: {:#}", anyhow::Error::from(error)),
                Err(_) => debug!("no new incarnation yet: no answer"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// R18.
    async fn end(&self) {
        let worker = self.shared.incarnation.contact().worker;
        match tokio::time::timeout(GOODBYE_POSTGRES_MAX, self.shared.store.worker_end(worker)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!("what is handed back is free after the lease only: {:#}", anyhow::Error::from(error));
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
                debug!("the others find what is handed back by themselves: {:#}", anyhow::Error::from(error));
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
