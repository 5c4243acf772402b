//! Keeping the house: old incarnations of executors, old idempotency keys, names of queues that nobody uses, cancels of what
//! is over. Each is idempotent and may run in every dispatcher at once, leader or not; one that does not come back is given
//! up and holds up no other. What is old in the history leaves by [`crate::retention`].

use std::future::Future;
use std::time::Duration;

use carillon_core::error::with_causes;
use carillon_store::days::by_days;
use carillon_store::{Store, idempotency, queues};
use carillon_stream::Redis;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

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
/// had recorded the execution before it heard of the cancel. Of a day that tells nothing (somebody has locked it as a whole, say)
/// they stay until it does.
async fn forget_cancels(store: &Store, redis: &Redis) -> anyhow::Result<()> {
    loop {
        let some = redis.some_cancelled(CANCELLED_MAX).await?;
        // Whether its holder lives is not asked for.
        let see = |some: Vec<Uuid>| async move { store.executions_see(&some, Duration::ZERO).await };
        let asked = by_days(some, |execution| *execution, see).await?;
        if let Some(why) = &asked.why {
            warn!("{} cancels stay, as their days tell nothing: {}", asked.refused.len(), with_causes(why));
        }
        let mut over = Vec::new();
        for (some, seen) in asked.answers {
            let is_over = |execution: &Uuid| seen.get(execution).is_none_or(|seen| seen.status.is_final());
            over.extend(some.into_iter().filter(is_over));
        }
        redis.forget_cancelled(&over).await?;
        // As long as most of what it looks at is over there is more of it.
        if over.len() < usize::from(CANCELLED_MAX) / 2 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::ids;
    use carillon_store::StoreOptions;
    use carillon_stream::client::RedisOptions;
    use chrono::{Days, TimeDelta, Utc};

    use super::*;

    /// Somebody packs the executions of yesterday: no cancel was forgotten beside them.
    #[tokio::test]
    async fn a_day_that_tells_nothing_keeps_the_cancels_of_no_other() -> anyhow::Result<()> {
        let (database, server) = (carillon_testkit::Database::new().await?, carillon_testkit::Redis::start().await?);
        let store = Store::connect_lazily(&StoreOptions::new(database.url(), "chores"))?;
        let redis = Redis::connect_lazily(RedisOptions::new(server.url()))?;
        let (pool, today) = (database.pool().await?, Utc::now());
        let mut cancelled = Vec::new();
        for (ago, status) in [(0, "SUCCESS"), (0, "RUNNING"), (1, "SUCCESS"), (2, "SUCCESS"), (3, "SUCCESS")] {
            let (job, at) = (Uuid::now_v7(), today - TimeDelta::days(ago));
            let id = ids::execution_for_fire(job, at);
            sqlx::query(
                "INSERT INTO job_executions (shard, id, job_id, claim, entry, status, scheduled_at, completed_at)
                 VALUES (0, $1, $2, 1, 1, $3, $4, CASE $3 WHEN 'SUCCESS' THEN now() END)",
            )
            .bind(id)
            .bind(job)
            .bind(status)
            .bind(at)
            .execute(&pool)
            .await?;
            cancelled.push(id);
        }
        redis.tell_cancelled(&cancelled).await?;
        let mut foreign = pool.begin().await?;
        let yesterday = today.date_naive() - Days::new(1);
        let lock = format!("LOCK TABLE ONLY job_executions_{} IN ACCESS EXCLUSIVE MODE", yesterday.format("%Y_%m_%d"));
        sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *foreign).await?;
        let left = async || {
            let mut left = redis.some_cancelled(CANCELLED_MAX).await?;
            left.sort_unstable();
            anyhow::Ok(left)
        };
        forget_cancels(&store, &redis).await?;
        assert_eq!(left().await?, [cancelled[2], cancelled[1]], "what is not over, and what is not known");
        foreign.rollback().await?;
        forget_cancels(&store, &redis).await?;
        assert_eq!(left().await?, [cancelled[1]]);
        Ok(())
    }
}
