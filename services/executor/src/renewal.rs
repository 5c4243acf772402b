//! R14: renews in Redis the entries that are in hand. It saves work, no more: who looks at an entry that nobody renewed finds in
//! Postgres that its executor lives (R15). So it is a loop of its own, which may wait for a Redis that is away without keeping
//! the beat waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carillon_core::error::with_causes;
use carillon_stream::EntryId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::message::Message;
use crate::shared::Shared;

/// After a round that Redis did not answer.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// The loop.
pub(crate) struct Renewal {
    pub shared: Arc<Shared>,
    pub engine: mpsc::UnboundedSender<Message>,
    /// Cancelled when nothing is in hand any more.
    pub done: CancellationToken,
}

impl Renewal {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        tokio::select! {
            () = self.done.cancelled() => {}
            () = self.renew_on() => {}
        }
        Ok(())
    }

    async fn renew_on(&self) {
        let quarter = self.shared.lease / 4;
        let mut pause = quarter;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.renew().await {
                Ok(()) => quarter,
                Err(error) => {
                    debug!("entries are not renewed: {}", with_causes(&error));
                    AWAY_PAUSE.min(quarter)
                }
            };
        }
    }

    /// One whose beat is too old renews nothing: what it holds is for others to take.
    async fn renew(&self) -> Result<(), carillon_stream::Error> {
        if self.shared.incarnation.contact().last_beat.elapsed() > self.shared.lease {
            return Ok(());
        }
        let (answer, held) = oneshot::channel();
        if self.engine.send(Message::WhatIsHeld(answer)).is_err() {
            return Ok(());
        }
        let Ok(held) = held.await else { return Ok(()) };
        let mut by_line: BTreeMap<usize, Vec<EntryId>> = BTreeMap::new();
        for (line, id) in held {
            by_line.entry(line).or_default().push(id);
        }
        // The first that Redis does not answer ends the round: the others would only be waited for in vain.
        for (line, ids) in by_line {
            self.shared.redis.renew(&self.shared.lines[line], &self.shared.consumer, &ids).await?;
        }
        Ok(())
    }
}
