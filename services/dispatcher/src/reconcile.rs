//! R19: what Postgres calls open and Redis does not hold is published again.
//!
//! Walks the settled batches, oldest first, and asks Redis for each very entry. A batch of which nothing is open any more is
//! forgotten on the way. Ordinarily a few batches a tick, only such as have had time to finish; at once and whole after a
//! certificate or a batch that was passed over.

use std::time::{Duration, Instant};

use carillon_store::open_entries::{Batch, OpenEntry};
use carillon_stream::entry::EntryId;
use metrics::counter;
use tracing::warn;

use crate::leader::{End, Leader};

/// Batches read at once.
const PAGE: i64 = 16;
/// What one ordinary tick may take.
const TICK_MAX: Duration = Duration::from_millis(25);
/// A batch younger than this is left alone by the ordinary tick: what it published is most likely still on its way.
const SETTLING_MS: i64 = 10_000;

impl Leader {
    /// The ordinary tick.
    ///
    /// # Errors
    /// The session is lost, or another leader leads.
    pub(crate) async fn reconcile_some(&mut self) -> Result<(), End> {
        let began = Instant::now();
        let newest = self.session.clock().now().timestamp_millis() - SETTLING_MS;
        while began.elapsed() < TICK_MAX {
            let page = self.session.batches_settled(self.reconciled_until, PAGE).await?;
            let due: Vec<Batch> = page.into_iter().filter(|batch| batch.number <= newest).collect();
            let Some(last) = due.last() else {
                self.reconciled_until = 0;
                return Ok(());
            };
            self.reconciled_until = last.number;
            self.reconcile(&due).await?;
        }
        Ok(())
    }

    /// The whole pass.
    ///
    /// # Errors
    /// The session is lost, or another leader leads.
    pub(crate) async fn reconcile_all(&mut self) -> Result<(), End> {
        let newest = self.session.draw_number().await?;
        let mut after = 0;
        loop {
            let page = self.session.batches_settled(after, PAGE).await?;
            let due: Vec<Batch> = page.into_iter().filter(|batch| batch.number < newest).collect();
            let Some(last) = due.last() else { return Ok(()) };
            after = last.number;
            self.reconcile(&due).await?;
        }
    }

    async fn reconcile(&mut self, batches: &[Batch]) -> Result<(), End> {
        let lease = self.config.protocol.lease;
        // R15: nobody judges another not live before its own contact with Postgres was unbroken for a lease.
        let may_judge = (self.session.age() >= lease).then_some(lease);
        let mut over = Vec::new();
        let mut candidates = Vec::new();
        for batch in batches {
            let open = self.session.open_of_batch(batch, may_judge).await?;
            if open.is_empty() {
                over.push(batch.number);
            }
            candidates.extend(open.into_iter().filter(|(_, runs)| !runs).map(|(entry, _)| entry));
        }
        if !over.is_empty() {
            self.session.forget_batches(&over).await?;
        }
        let lost = self.missing(candidates).await?;
        let batch_max = usize::try_from(self.config.dispatcher.batch_max).unwrap_or(usize::MAX);
        for some in lost.chunks(batch_max.max(1)) {
            self.publish_again(some).await?;
        }
        Ok(())
    }

    /// Those of `candidates` whose very entry the streams do not hold.
    async fn missing(&mut self, candidates: Vec<OpenEntry>) -> Result<Vec<OpenEntry>, End> {
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        self.learn_jobs(candidates.iter().map(|entry| (entry.job, entry.revision))).await?;
        let mut lines = Vec::new();
        let mut asked = Vec::new();
        let mut known = Vec::new();
        for entry in candidates {
            if self.definitions.get(entry.job, entry.revision).is_none() {
                continue;
            }
            let line = &entry.line;
            let index = lines.iter().position(|known| known == line).unwrap_or_else(|| {
                lines.push(line.clone());
                lines.len() - 1
            });
            asked.push((index, EntryId { number: entry.entry, seq: entry.seq }));
            known.push(entry);
        }
        if known.is_empty() {
            return Ok(Vec::new());
        }
        let redis = self.redis.clone();
        let missing = self.patiently(|| redis.missing(&lines, &asked)).await?;
        Ok(missing.into_iter().filter_map(|position| known.get(position).cloned()).collect())
    }

    async fn publish_again(&mut self, lost: &[OpenEntry]) -> Result<(), End> {
        let number = self.session.draw_number().await?;
        let lease = self.config.protocol.lease;
        let again = self.session.republish(number, self.term, lost, lease).await?;
        warn!(executions = again.len(), "redis has lost entries of open executions: publishing them again");
        counter!("carillon_dispatcher_republished_total").increment(again.len() as u64);
        let mut batch = crate::outgoing::Batch::new(number);
        for entry in &again {
            if let Some(job) = self.definitions.get(entry.job, entry.revision) {
                batch.add_open(entry, &job);
            }
        }
        self.publish_surely(batch).await
    }
}
