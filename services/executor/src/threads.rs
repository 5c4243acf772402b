//! The threads that run handlers, apart from those that read, record and keep the lease: a handler that blocks its thread
//! holds up nothing else.
//!
//! Handlers are asynchronous and share a few threads. Should all of them be blocked at once (they run code that does not
//! yield), a watch notices within half a second and starts another set of threads for what comes next, and the engine moves
//! there what had not begun; the blocked ones are left to end when they can. So even a job whose every handler blocks cannot stop the others, only cost threads, bounded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use metrics::{counter, gauge};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tracing::error;

/// How often the watch asks the threads for a sign of life, and how long it waits for one.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Signs that may stay away before the threads count as blocked: a busy machine is late with one.
const MISSED_MAX: u32 = 2;
/// Sets of threads at most.
const SETS_MAX: usize = 32;

/// The sets of threads.
#[derive(Debug)]
pub(crate) struct HandlerThreads {
    sets: Mutex<Vec<Runtime>>,
    threads: usize,
}

impl HandlerThreads {
    /// One set of `threads`.
    pub(crate) fn start(threads: usize) -> anyhow::Result<Arc<Self>> {
        let first = new_set(threads)?;
        Ok(Arc::new(Self { sets: Mutex::new(vec![first]), threads }))
    }

    /// Where to start a handler, and the number of that set.
    pub(crate) fn newest(&self) -> Option<(Handle, usize)> {
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.last().map(|set| (set.handle().clone(), sets.len()))
    }

    /// Watches over the newest set until the process stops.
    pub(crate) async fn watch(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut missed = 0;
        while !shutdown.is_cancelled() {
            let alive = Arc::new(AtomicBool::new(false));
            if let Some((handle, _)) = self.newest() {
                let sign = Arc::clone(&alive);
                handle.spawn(async move { sign.store(true, Ordering::Release) });
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            missed = if alive.load(Ordering::Acquire) { 0 } else { missed + 1 };
            if missed >= MISSED_MAX {
                missed = 0;
                self.add_set()?;
            }
        }
        Ok(())
    }

    /// Lets go of the threads without waiting for blocked ones.
    pub(crate) fn stop(&self) {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        for set in sets.drain(..) {
            set.shutdown_background();
        }
    }

    fn add_set(&self) -> anyhow::Result<()> {
        counter!("carillon_executor_blocked_threads_total").increment(self.threads as u64);
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if sets.len() >= SETS_MAX {
            error!(threads = sets.len() * self.threads, "all handler threads are blocked, and no more are started");
            return Ok(());
        }
        error!(threads = self.threads, "all handler threads are blocked by handlers that do not yield: starting more");
        sets.push(new_set(self.threads)?);
        gauge!("carillon_executor_handler_threads").set(u32::try_from(sets.len() * self.threads).unwrap_or(u32::MAX));
        Ok(())
    }
}

fn new_set(threads: usize) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("handler")
        .enable_all()
        .build()
        .context("cannot start the handler threads")
}
