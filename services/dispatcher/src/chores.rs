//! Keeping the house: old incarnations of executors, old idempotency keys, names of queues that nobody uses, cancels of what
//! is over. Each is idempotent and may run in every dispatcher at once, leader or not; one that does not come back is given
//! up and holds up no other. What is old in the history leaves by [`crate::retention`].

use std::future::Future;
use std::time::Duration;

use carillon_store::{Store, idempotency, queues};
use carillon_stream::Redis;
use tokio_util::sync::CancellationToken;
use tracing::warn;

const EVERY: Duration = Duration::from_secs(15 * 60);
/// More often, since each read of an executor looks at them.
const CANCELS_EVERY: Duration = Duration::from_secs(60);
/// Longer than any lease: by then nobody asks after an incarnation any more.
const WORKERS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Promised to clients by the comments of `request_id` in the proto.
const KEYS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Beyond this a chore is given up until its next turn.
const CHORE_MAX: Duration = Duration::from_secs(30);
/// Cancels looked at together.
const CANCELLED_MAX: u16 = 1_000;

/// Runs the chores now and then until the process stops.
pub(crate) async fn run(store: Store, redis: Redis, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (mut tick, mut cancels) = (tokio::time::interval(EVERY), tokio::time::interval(CANCELS_EVERY));
    loop {
        let round = async {
            tokio::select! {
                _ = cancels.tick() => {
                    chore("forget the cancels of what is over", forget_cancels(&store, &redis)).await;
                }
                _ = tick.tick() => keep_house(&store).await,
            }
        };
        tokio::select! {
            // Whatever is left undone is found by the next round, wherever it runs.
            () = shutdown.cancelled() => return Ok(()),
            () = round => {}
        }
    }
}

async fn keep_house(store: &Store) {
    chore("forget old executors", async { Ok(store.workers_forget(WORKERS_KEPT).await.map(drop)?) }).await;
    chore("forget old idempotency keys", async { Ok(idempotency::forget(store, KEYS_KEPT).await.map(drop)?) }).await;
    chore("forget unused names of queues", async { Ok(queues::forget_unused(store).await.map(drop)?) }).await;
}

async fn chore(what: &str, work: impl Future<Output = anyhow::Result<()>>) {
    match tokio::time::timeout(CHORE_MAX, work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("cannot {what}, trying again later: {error:#}"),
        Err(_) => warn!("cannot {what} within {} s, trying again later", CHORE_MAX.as_secs()),
    }
}

/// Whoever records a cancelled execution forgets its cancel. One that dies in between leaves it behind, and so does one that
/// had recorded the execution before it heard of the cancel.
async fn forget_cancels(store: &Store, redis: &Redis) -> anyhow::Result<()> {
    loop {
        let mut over = redis.some_cancelled(CANCELLED_MAX).await?;
        // Whether its holder lives is not asked for.
        let seen = store.executions_see(&over, Duration::ZERO).await?;
        over.retain(|execution| seen.get(execution).is_none_or(|seen| seen.status.is_final()));
        redis.forget_cancelled(&over).await?;
        // As long as most of what it looks at is over there is more of it.
        if over.len() < usize::from(CANCELLED_MAX) / 2 {
            return Ok(());
        }
    }
}
