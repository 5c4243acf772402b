//! Whether the recorder gets on: an executor that has something to record and records nothing can't do its own work, whatever
//! it hears from Postgres elsewhere, and says so at `/readyz`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use carillon_kit::Flag;
use tokio_util::sync::CancellationToken;

/// Recording nothing for so long is no slowness any more.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Since when something waits of which nothing was recorded; shared, cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<Option<Instant>>>);

impl Progress {
    /// From now on, unless it does already.
    pub(crate) fn something_waits(&self) {
        self.lock().get_or_insert_with(Instant::now);
    }

    /// Something was recorded, or need not be. What is locked by somebody else is neither.
    pub(crate) fn recorded(&self) {
        *self.lock() = None;
    }

    fn is_stuck(&self, now: Instant) -> bool {
        self.lock().is_some_and(|since| now.saturating_duration_since(since) >= STUCK_AFTER)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the flag as it says until the stop.
    pub(crate) async fn show(self, flag: Flag, stop: CancellationToken) -> anyhow::Result<()> {
        let why = format!("nothing was recorded for {} s", STUCK_AFTER.as_secs());
        flag.follow(|| !self.is_stuck(Instant::now()), why, stop).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_stuck_only_while_something_waits_and_nothing_is_recorded() {
        let progress = Progress::default();
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert!(!progress.is_stuck(later(100)), "idle");
        progress.something_waits();
        assert!(!progress.is_stuck(later(9)));
        progress.something_waits();
        assert!(progress.is_stuck(later(11)), "what comes meanwhile does not begin the time anew");
        progress.recorded();
        assert!(!progress.is_stuck(later(100)));
    }
}
