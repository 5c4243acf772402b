//! Keeping the house: partitions ahead, old incarnations of executors, old idempotency keys. Each is idempotent, takes no
//! input and may run in every dispatcher at once, leader or not.

use std::time::Duration;

use carillon_store::{Store, partitions};
use tokio_util::sync::CancellationToken;
use tracing::warn;

const EVERY: Duration = Duration::from_secs(15 * 60);
/// Longer than any lease: by then nobody asks after an incarnation any more.
const WORKERS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs the chores now and then until the process stops.
pub(crate) async fn run(store: Store, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if let Err(error) = partitions::make_ahead(&store).await {
            warn!(
                "cannot make the partitions of the days to come, trying again later: {:#}",
                anyhow::Error::from(error)
            );
        }
        if let Err(error) = store.workers_forget(WORKERS_KEPT).await {
            warn!("cannot forget old executors, trying again later: {:#}", anyhow::Error::from(error));
        }
    }
}
