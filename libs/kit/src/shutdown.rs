//! Signals: the first SIGTERM or SIGINT asks for a drain, the second ends the process on the spot.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// As a shell reports a process that was interrupted.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// Cancels `stop` at the first signal; exits at the second.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn listen(stop: CancellationToken) -> anyhow::Result<()> {
    let terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    tokio::spawn(watch(terminate, interrupt, stop));
    Ok(())
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
    let name = next(&mut terminate, &mut interrupt).await;
    info!("{name} received, stopping; once more to exit at once");
    stop.cancel();
    let name = next(&mut terminate, &mut interrupt).await;
    warn!("{name} received again, exiting at once");
    std::process::exit(EXIT_SECOND_SIGNAL);
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
