//! R6: batches on their way to Redis, one at a time, the next being claimed meanwhile.

use std::time::Instant;

use carillon_core::error::with_causes;
use carillon_failpoint as failpoint;
use carillon_stream::leader::Published;
use metrics::counter;
use tracing::warn;

use crate::leader::{End, Leader};
use crate::outgoing::Batch;

impl Leader {
    /// Sends a batch, and claims the next while it is on its way, until nothing is due.
    pub(crate) async fn publish_and_claim_on(&mut self, first: Batch) -> Result<(), End> {
        let mut on_its_way = Some(first);
        while let Some(batch) = on_its_way.take() {
            let (redis, term, sent) = (self.redis.clone(), self.term, batch.clone());
            // A task of its own: if the term ends meanwhile it may as well arrive, R6 lets it.
            let sending = tokio::spawn(async move {
                failpoint::reach("publish:send").await;
                redis.publish(sent.number, term, &sent.lines, &sent.entries).await
            });
            let overdue = Instant::now() >= self.next_tick || self.passes.is_urgent() || self.shutdown.is_cancelled();
            let next = if overdue { None } else { self.claim_due().await? };
            let outcome = self.alive_while_sending(sending).await?;
            failpoint::reach("publish:answered").await;
            if let Ok(outcome) = &outcome {
                self.note_answer(outcome);
            }
            let done = matches!(&outcome, Ok(Ok(Published::Done(_))));
            if let Ok(Ok(Published::Done(lengths))) = outcome {
                self.streams.hear(&batch.lines, &lengths);
                self.unsettled.push(batch.number);
            }
            if !done {
                self.publish_surely(batch.clone()).await?;
            }
            self.streams.arrived(&batch);
            on_its_way = next;
        }
        Ok(())
    }

    /// R6: sends a batch until Redis has said that it is in, or never will be.
    pub(crate) async fn publish_surely(&mut self, batch: Batch) -> Result<(), End> {
        let mut complained = false;
        loop {
            let redis = self.redis.clone();
            let sending = redis.publish(batch.number, self.term, &batch.lines, &batch.entries);
            let outcome = self.alive_while_sending(sending).await?;
            self.note_answer(&outcome);
            match outcome {
                Ok(Published::Done(lengths)) => {
                    self.streams.hear(&batch.lines, &lengths);
                    break;
                }
                // In, or lost and never to be appended again: R19 looks it up at once.
                Ok(Published::Passed) => {
                    self.passes.ask_for(batch.number);
                    break;
                }
                // Made by one that bounded its batches otherwise: R19 publishes it again in parts.
                Err(error @ carillon_stream::Error::TooMuch { .. }) => {
                    warn!(batch = batch.number, "too large to be sent whole: {error}");
                    self.passes.ask_for(batch.number);
                    break;
                }
                Ok(Published::Stale) => return Err(End::Stale),
                Ok(outcome @ (Published::Uncertified | Published::Unannounced | Published::Behind)) => {
                    let force = outcome == Published::Behind;
                    self.announce(&batch.lines, force).await?;
                }
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!("cannot publish, trying until redis takes it: {}", with_causes(&error));
                    }
                    counter!("carillon_dispatcher_publish_failures_total").increment(1);
                    self.pause_for_redis().await?;
                }
            }
        }
        self.unsettled.push(batch.number);
        Ok(())
    }
}
