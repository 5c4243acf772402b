//! Jobs that want looking at (`carillon_store::attention`): one whose timetable has ended becomes COMPLETED once nothing of
//! it is open; of one that was deleted whatever is still open is ended, if whoever deleted it went away in the middle.
//!
//! Any dispatcher does this, leading or not, a page at a time and outside of any claim; several at once pass over what another
//! looks at. What it leaves undone when it dies is found by the next round.

use std::time::Duration;

use carillon_store::jobs::Deleting;
use carillon_store::{Store, attention};
use carillon_stream::Redis;
use metrics::counter;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

/// Between two looks: how late a job is shown COMPLETED.
const EVERY: Duration = Duration::from_millis(500);
/// Between two looks while Postgres does not answer.
const PAUSE: Duration = Duration::from_secs(5);
/// Notes looked at together: so many jobs are locked at once, for one statement.
const PAGE: i64 = 200;
/// Longer than any of it takes in good order: a look that does not come back holds up nobody.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Looks until the process stops.
pub(crate) async fn run(store: Store, redis: Redis, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut complained = false;
    loop {
        let pause = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            outcome = tokio::time::timeout(LOOK_MAX, look_at_all(&store, &redis)) => {
                match outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not come back"))) {
                    Ok(()) => {
                        complained = false;
                        EVERY
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut complained, true) {
                            warn!("cannot look at jobs that have ended, trying again: {error:#}");
                        }
                        PAUSE
                    }
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn look_at_all(store: &Store, redis: &Redis) -> anyhow::Result<()> {
    loop {
        let looked = match attention::look(store, PAGE).await {
            // Nothing was done; the notes are there for the next round.
            Err(carillon_store::Error::Conflict(_) | carillon_store::Error::Busy(_)) => return Ok(()),
            looked => looked?,
        };
        counter!("carillon_dispatcher_completed_total").increment(looked.completed.len() as u64);
        for (note, job) in looked.deleted {
            end_deleted(store, redis, job).await?;
            attention::forget(store, note).await?;
        }
        if looked.notes < usize::try_from(PAGE).unwrap_or(usize::MAX) {
            return Ok(());
        }
    }
}

/// R17. Word to executors is best effort: what they do not hear now, they find by their own rounds.
async fn end_deleted(store: &Store, redis: &Redis, job: Uuid) -> anyhow::Result<()> {
    let mut deleting = Deleting::of(store, job);
    while let Some(asked) = deleting.step().await? {
        if !asked.is_empty()
            && let Err(error) = redis.tell_cancelled(&asked).await
        {
            warn!(job.id = %job, "cannot tell executors what was cancelled: {:#}", anyhow::Error::from(error));
        }
    }
    Ok(())
}
