//! Waiting for an instant that there may not be.

use std::time::Instant;

/// Until then; without one for ever.
pub async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
