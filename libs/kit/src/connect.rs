//! Waiting for a neighbour that is not there yet: with patience, and with few, clear lines in the log. In a cluster all
//! parts start at once; a crash loop until Postgres is up would only delay the start and fill the log.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The process was told to stop while it waited. [`crate::run`] takes it for a clean end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped while waiting")]
pub struct Stopped;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// One attempt may not hang: a peer that swallows packets would hold up both the wait and the shutdown.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);

/// Calls `attempt` until it succeeds, without end, with pauses of 100 ms growing to 2 s. `what` reads as in "waiting for
/// {what}". The log says when waiting begins, why, again each 10 s, and when it is over.
///
/// # Errors
/// [`Stopped`] once `shutdown` is cancelled.
pub async fn wait_for<T, E, F, Fut>(what: &str, shutdown: &CancellationToken, mut attempt: F) -> Result<T, Stopped>
where
    E: Into<anyhow::Error>,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut last_line = None;
    loop {
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return Err(Stopped),
            outcome = tokio::time::timeout(ATTEMPT_MAX, attempt()) => outcome,
        };
        let why = match outcome {
            Ok(Ok(value)) => {
                if last_line.is_some() {
                    info!(waited_ms = whole_ms(began.elapsed()), "{what} is there");
                }
                return Ok(value);
            }
            Ok(Err(error)) => format!("{:#}", error.into()),
            Err(_) => format!("no answer within {ATTEMPT_MAX:?}"),
        };
        if last_line.is_none_or(|at: Instant| at.elapsed() >= BETWEEN_LINES) {
            warn!(waited_ms = whole_ms(began.elapsed()), "waiting for {what}: {why}");
            last_line = Some(Instant::now());
        }
        tokio::select! {
            () = shutdown.cancelled() => return Err(Stopped),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_tries_until_it_succeeds() {
        let mut tries = 0;
        let shutdown = CancellationToken::new();
        let outcome = wait_for("the bell", &shutdown, || {
            tries += 1;
            std::future::ready(if tries < 5 { Err(anyhow::anyhow!("not cast yet")) } else { Ok(tries) })
        });
        assert_eq!(outcome.await, Ok::<_, Stopped>(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait_also_while_an_attempt_hangs() {
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let (outcome, ()) =
            tokio::join!(wait_for("the bell", &shutdown, std::future::pending::<anyhow::Result<()>>), async move {
                stop.cancel()
            });
        assert_eq!(outcome, Err(Stopped));
    }
}
