//! Keeping the house: partitions ahead, old incarnations of executors, old idempotency keys, cancels of what is
//! over. Each is idempotent and may run in every dispatcher at once, leader or not.

use std::time::Duration;

use carillon_store::{Store, idempotency, partitions};
use carillon_stream::Redis;
use tokio_util::sync::CancellationToken;
use tracing::warn;

const EVERY: Duration = Duration::from_secs(15 * 60);
/// Longer than any lease: by then nobody asks after an incarnation any more.
const WORKERS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Promised to clients by the comments of `request_id` in the proto.
const KEYS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Cancels looked at in one round: a set larger than `look` likes to see is rare, and the next round looks at others.
const CANCELLED_MAX: u16 = 1_000;

/// Runs the chores now and then until the process stops.
pub(crate) async fn run(store: Store, redis: Redis, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        let round = async {
            tick.tick().await;
            keep_house(&store, &redis).await;
        };
        tokio::select! {
            // Whatever is left undone is found by the next round, wherever it runs.
            () = shutdown.cancelled() => return Ok(()),
            () = round => {}
        }
    }
}

async fn keep_house(store: &Store, redis: &Redis) {
    if let Err(error) = partitions::make_ahead(store).await {
        warn!("cannot make the partitions of the days to come, trying again later: {:#}", anyhow::Error::from(error));
    }
    if let Err(error) = store.workers_forget(WORKERS_KEPT).await {
        warn!("cannot forget old executors, trying again later: {:#}", anyhow::Error::from(error));
    }
    if let Err(error) = idempotency::forget(store, KEYS_KEPT).await {
        warn!("cannot forget old idempotency keys, trying again later: {:#}", anyhow::Error::from(error));
    }
    if let Err(error) = forget_cancels(store, redis).await {
        warn!("cannot forget the cancels of what is over, trying again later: {error:#}");
    }
}

/// Whoever records a cancelled execution forgets its cancel; an executor that dies in between leaves it behind.
async fn forget_cancels(store: &Store, redis: &Redis) -> anyhow::Result<()> {
    let mut over = redis.some_cancelled(CANCELLED_MAX).await?;
    // Whether its holder lives is not asked for.
    let seen = store.see(&over, Duration::ZERO).await?;
    over.retain(|execution| seen.get(execution).is_none_or(|seen| seen.status.is_final()));
    redis.forget_cancelled(&over).await?;
    Ok(())
}
