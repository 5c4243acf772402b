//! What the services work on: Postgres for the truth, Redis for word of it.
//!
//! Every question to Postgres has a time limit: a server that hangs, or a network that swallows packets, is answered with
//! UNAVAILABLE like one that is away, instead of holding requests until all are held. Word to Redis is best effort: it goes
//! out after the commit and before the answer (a pause that was answered should have reached the executors), but a Redis
//! that is away never fails a request, delays the first answers by at most [`WORD_TIMEOUT`] and, once that is known, later
//! ones by [`WORD_TIMEOUT_AWAY`]: dispatcher and executors look at Postgres by themselves.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carillon_core::line::Line;
use carillon_store::Store;
use carillon_stream::Redis;
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::deadline;
use crate::error_response::{internal, later, of_store};
use crate::reason::Reason;

const WORD_TIMEOUT: Duration = Duration::from_secs(1);
const WORD_TIMEOUT_AWAY: Duration = Duration::from_millis(50);

/// The neighbours of the gateway, and what it may ask of them.
#[derive(Debug)]
pub(crate) struct Backend {
    store: Store,
    redis: Redis,
    statement_timeout: Duration,
    pub(crate) payload_bytes_max: usize,
    pub(crate) queues_max: u32,
    /// One at a time: see [`Backend::aside`].
    aside: Arc<Semaphore>,
    /// Whether the last word to Redis failed: an outage is logged once, and waited for no longer than it must.
    redis_is_away: AtomicBool,
}

impl Backend {
    pub(crate) fn new(
        store: Store,
        redis: Redis,
        statement_timeout: Duration,
        payload_bytes_max: usize,
        queues_max: u32,
    ) -> Self {
        Self {
            store,
            redis,
            statement_timeout,
            payload_bytes_max,
            queues_max,
            aside: Arc::new(Semaphore::new(1)),
            redis_is_away: AtomicBool::new(false),
        }
    }

    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    /// How long a request may wait for Postgres.
    pub(crate) const fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// Waits for Postgres within the limit, and no longer than the client waits. What was cut off may or may not have been done, as with
    /// any lost answer.
    pub(crate) async fn ask<T>(&self, work: impl Future<Output = carillon_store::Result<T>>) -> Result<T, Status> {
        match tokio::time::timeout(self.statement_timeout.min(deadline::left()), work).await {
            Ok(outcome) => outcome.map_err(|error| of_store(&error)),
            Err(_) if deadline::left().is_zero() => Err(deadline::passed()),
            Err(_) => Err(later(Reason::PostgresBusy, "Postgres did not answer in time: try again")),
        }
    }

    /// Does work that may take some tenths of a second aside, one piece at a time: not on a thread that serves others, and
    /// never on so many cores that these starve. Whoever waits is counted by the bound on requests.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let broken = |what: &str| {
            error!("work aside did not end: {what}");
            internal()
        };
        let turn = Arc::clone(&self.aside).acquire_owned();
        let turn = tokio::time::timeout(self.statement_timeout, turn).await;
        let turn = turn.map_err(|_| later(Reason::GatewayBusy, "others with large schedules are before: try again"))?;
        let turn = turn.map_err(|error| broken(&error.to_string()))?;
        let work = move || {
            // Held by the work itself, which goes on even if the caller has gone.
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| broken(&error.to_string()))
    }

    /// Something may be due earlier than the leader knows.
    pub(crate) async fn wake(&self) {
        self.tell("wake", Box::pin(self.redis.wake())).await;
    }

    /// Something is due in this line now.
    pub(crate) async fn wake_for(&self, line: &Line) {
        self.tell("wake", Box::pin(self.redis.wake_for(line))).await;
    }

    /// R23: a job was paused, changed or deleted.
    pub(crate) async fn tell_job_changed(&self, job: Uuid) {
        self.tell("job changed", Box::pin(self.redis.tell_job_changed(job))).await;
    }

    /// R8a, R17: these executions were cancelled or withdrawn.
    pub(crate) async fn tell_cancelled(&self, executions: &[Uuid]) {
        if !executions.is_empty() {
            self.tell("cancelled", Box::pin(self.redis.tell_cancelled(executions))).await;
        }
    }

    /// R23a: entries of these batches stand in a line that is not theirs any more.
    pub(crate) async fn tell_misplaced(&self, batches: &[i64]) {
        if !batches.is_empty() {
            self.tell("misplaced", Box::pin(self.redis.tell_misplaced(batches))).await;
        }
    }

    /// Boxed words, since those of the Redis client are tens of kilobytes and would stand in every call's future.
    async fn tell(&self, what: &str, word: impl Future<Output = carillon_stream::Result<()>>) {
        let is_away = self.redis_is_away.load(Ordering::Relaxed);
        let limit = if is_away { WORD_TIMEOUT_AWAY } else { WORD_TIMEOUT };
        let failure = match tokio::time::timeout(limit, word).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {limit:?}")),
        };
        let was_away = self.redis_is_away.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(why) if !was_away => warn!("could not tell the others ({what}), they will find out by polling: {why}"),
            None if was_away => info!("the others hear from this gateway again"),
            Some(_) | None => {}
        }
    }
}
