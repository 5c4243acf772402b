//! What jobs mean that are about to fire for the first time, read beside the claims, on a connection of the pool: the claim that
//! takes them has nothing to read then, and whoever waits for it (a trigger) waits that much less. What is not there in time the
//! claim reads itself.
//!
//! It goes on while claims meet such jobs, one reading at a time, each of what falls due next behind the last claim.

use std::time::Duration;

use carillon_core::error::with_causes;
use carillon_core::line::Line;
use carillon_store::Store;
use carillon_store::claim::DueTimer;
use carillon_store::definitions::{self, Definition};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::task::JoinHandle;
use tracing::debug;

use crate::definitions::Definitions;

/// Definitions read at once, over all lines: some megabytes, if each has a payload.
const AT_ONCE: u16 = 1_000;
/// Lines that are read ahead of: beyond that a claim takes little of each.
const LINES_MAX: usize = 100;

/// Between a claim and what is read behind it.
const PAUSE: Duration = Duration::from_millis(25);

/// The reading under way.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    store: Store,
    shard: i16,
    reading: Option<JoinHandle<carillon_store::Result<Vec<Definition>>>>,
}

impl ReadAhead {
    pub(crate) const fn new(store: Store, shard: i16) -> Self {
        Self { store, shard, reading: None }
    }

    /// A claim has taken what is due until `due`, these timers among it: what falls due within `span` behind it is read, where some of
    /// them have never fired before.
    pub(crate) fn begin(&mut self, taken: &[DueTimer], due: DateTime<Utc>, span: TimeDelta) {
        if self.reading.is_some() {
            return;
        }
        let mut lines: Vec<Line> =
            taken.iter().filter(|timer| timer.claimed_count == 0).map(|timer| timer.line.clone()).collect();
        lines.sort_unstable();
        lines.dedup();
        lines.truncate(LINES_MAX);
        if lines.is_empty() {
            return;
        }
        let (store, shard) = (self.store.clone(), self.shard);
        self.reading = Some(tokio::spawn(async move {
            // The claim, and the start of what it takes, come first.
            tokio::time::sleep(PAUSE).await;
            definitions::of_first_fires(&store, shard, &lines, due, due + span, AT_ONCE).await
        }));
    }

    /// Keeps what has been read. Nobody waits for it.
    pub(crate) async fn keep(&mut self, definitions: &mut Definitions) {
        let Some(reading) = self.reading.take_if(|reading| reading.is_finished()) else { return };
        match reading.await {
            Ok(Ok(read)) => definitions.learn_new(read),
            Ok(Err(error)) => debug!("definitions were not read ahead: {}", with_causes(&error)),
            Err(panic) => debug!("definitions were not read ahead: {panic}"),
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}
