//! Waiting for a condition instead of for a time.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Short against what is waited for, long against the cost of looking.
const LOOK_EACH: Duration = Duration::from_millis(15);

/// Looks until `condition` holds, and returns what it found. An `Err` of it means "not yet" and describes what was seen
/// (`anyhow::ensure!(count == 5, "{count} of 5")`): the last one is in the error when `limit` is over.
///
/// # Errors
/// If it did not hold within `limit`.
pub async fn wait_until<T, E, F, Fut>(what: &str, limit: Duration, mut condition: F) -> Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + limit;
    let mut last_seen = "nothing yet".to_owned();
    loop {
        // A look that hangs, as at a server that is frozen, must not outlast the limit.
        match tokio::time::timeout_at(deadline, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last_seen = format!("{seen:#}"),
            Err(_) => bail!("waited {limit:?} for {what}; the last look did not end, before: {last_seen}"),
        }
        if Instant::now() + LOOK_EACH >= deadline {
            bail!("waited {limit:?} for {what}; last seen: {last_seen}");
        }
        tokio::time::sleep(LOOK_EACH).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_returns_what_was_found_and_reports_what_was_seen() {
        let mut looks = 0;
        let found = wait_until("three looks", Duration::from_secs(1), || {
            looks += 1;
            std::future::ready(if looks < 3 { Err(looks) } else { Ok(looks) })
        });
        assert_eq!(found.await.unwrap(), 3);
        let never = wait_until("pigs to fly", Duration::from_secs(1), || std::future::ready(Err::<(), _>("they walk")));
        let error = never.await.unwrap_err().to_string();
        assert_eq!(error, "waited 1s for pigs to fly; last seen: they walk");
    }
}
