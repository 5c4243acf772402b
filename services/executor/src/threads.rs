//! The threads that run handlers, apart from those that read, record and keep the lease: a handler that blocks its thread
//! holds up nothing else.
//!
//! Handlers are asynchronous and share a few threads. Should all of them be blocked at once (they run code that does not
//! yield), a watch notices within half a second and lets what comes next start elsewhere: on an older set of threads that has
//! come free, or on new ones; the engine moves there what had not begun. Blocked threads end their handlers when they can, and
//! are let go once nothing is left on them. So even a job whose every handler blocks cannot stop the others, only cost threads,
//! bounded, for as long as it blocks them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics::{counter, gauge};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How often the watch asks the threads for a sign of life, and how long it waits for one.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Signs that may stay away before the threads count as blocked: a busy machine is late with one.
const MISSED_MAX: u32 = 2;
/// Sets of threads at most.
const SETS_MAX: usize = 32;
/// A set on which nothing new starts is kept for so long at least: whoever was told of it just before may be about to start
/// something there.
const KEPT_FOR: Duration = Duration::from_secs(2);

/// The sets of threads.
#[derive(Debug)]
pub(crate) struct HandlerThreads {
    sets: Mutex<Sets>,
    threads: usize,
}

/// A runtime that is merely dropped waits for its threads, and panics where nobody may wait: an executor that is told to stop before
/// it serves ended so.
impl Drop for HandlerThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug)]
struct Sets {
    /// What starts now starts on the last one.
    sets: Vec<Set>,
    /// Numbers given so far.
    numbers: usize,
}

#[derive(Debug)]
struct Set {
    runtime: Runtime,
    /// A greater one for each that is put in the place of a blocked one.
    number: usize,
    /// Signs of life that stayed away, one after the other.
    missed: u32,
    /// Put up by the threads themselves.
    sign: Arc<AtomicBool>,
    /// Since when nothing new starts on it.
    replaced: Option<Instant>,
}

impl HandlerThreads {
    /// One set of `threads`.
    pub(crate) fn start(threads: usize) -> anyhow::Result<Arc<Self>> {
        let first = Set::new(threads, 1)?;
        let threads = Self { sets: Mutex::new(Sets { sets: vec![first], numbers: 1 }), threads };
        threads.tell(&threads.lock());
        Ok(Arc::new(threads))
    }

    /// Where to start a handler, and the number of that set.
    pub(crate) fn newest(&self) -> Option<(Handle, usize)> {
        self.lock().sets.last().map(|set| (set.runtime.handle().clone(), set.number))
    }

    /// Watches over the sets until the process stops.
    pub(crate) async fn watch(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        while !shutdown.is_cancelled() {
            self.lock().sets.iter().for_each(Set::ask);
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            self.look(Instant::now())?;
        }
        Ok(())
    }

    /// Lets go of the threads without waiting for blocked ones.
    pub(crate) fn stop(&self) {
        for set in self.lock().sets.drain(..) {
            set.runtime.shutdown_background();
        }
    }

    /// What the signs of life lead to.
    fn look(&self, now: Instant) -> anyhow::Result<()> {
        let mut sets = self.lock();
        sets.sets.iter_mut().for_each(Set::hear);
        self.let_go(&mut sets, now);
        if sets.sets.last().is_some_and(Set::is_blocked) {
            self.replace_newest(&mut sets, now)?;
        }
        self.tell(&sets);
        Ok(())
    }

    fn replace_newest(&self, sets: &mut Sets, now: Instant) -> anyhow::Result<()> {
        counter!("carillon_executor_blocked_threads_total").increment(self.threads as u64);
        sets.numbers += 1;
        let number = sets.numbers;
        let set = if let Some(free) = sets.sets.iter().position(|set| set.missed == 0) {
            info!(
                "all handler threads are blocked by handlers that do not yield: going on with some that have come free"
            );
            Set { number, replaced: None, ..sets.sets.remove(free) }
        } else if sets.sets.len() >= SETS_MAX {
            error!(
                threads = sets.sets.len() * self.threads,
                "all handler threads are blocked, and no more are started"
            );
            return Ok(());
        } else {
            error!(
                threads = self.threads,
                "all handler threads are blocked by handlers that do not yield: starting more"
            );
            Set::new(self.threads, number)?
        };
        if let Some(blocked) = sets.sets.last_mut() {
            blocked.replaced = Some(now);
        }
        sets.sets.push(set);
        Ok(())
    }

    /// What was blocked once, is idle now and not needed any more.
    fn let_go(&self, sets: &mut Sets, now: Instant) {
        let (idle, kept): (Vec<Set>, Vec<Set>) = sets.sets.drain(..).partition(|set| set.is_idle(now));
        sets.sets = kept;
        for set in idle {
            info!(threads = self.threads, "handler threads that were blocked have come free: they are let go");
            set.runtime.shutdown_background();
        }
    }

    fn tell(&self, sets: &Sets) {
        let threads = u32::try_from(sets.sets.len() * self.threads).unwrap_or(u32::MAX);
        gauge!("carillon_executor_handler_threads").set(threads);
    }

    /// A panic elsewhere leaves nothing half-changed in a list of sets.
    fn lock(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    fn new(threads: usize, number: usize) -> anyhow::Result<Self> {
        Ok(Self { runtime: new_runtime(threads)?, number, missed: 0, sign: Arc::default(), replaced: None })
    }

    /// Asks for a sign of life, unless one is still waited for: blocked threads do not collect questions.
    fn ask(&self) {
        if self.missed == 0 {
            let sign = Arc::clone(&self.sign);
            self.runtime.spawn(async move { sign.store(true, Ordering::Release) });
        }
    }

    fn hear(&mut self) {
        self.missed = if self.sign.swap(false, Ordering::AcqRel) { 0 } else { self.missed.saturating_add(1) };
    }

    fn is_blocked(&self) -> bool {
        self.missed >= MISSED_MAX
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.replaced.is_some_and(|since| now.saturating_duration_since(since) >= KEPT_FOR)
            && self.missed == 0
            && self.runtime.metrics().num_alive_tasks() == 0
    }
}

fn new_runtime(threads: usize) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("handler")
        .enable_all()
        .build()
        .context("cannot start the handler threads")
}

#[cfg(test)]
mod tests {
    use carillon_testkit::wait_until;

    use super::*;

    async fn until(threads: &HandlerThreads, what: &str, holds: impl Fn(&Sets) -> bool) {
        wait_until(what, Duration::from_secs(20), || {
            let sets = threads.lock();
            let seen: Vec<_> = sets.sets.iter().map(|set| (set.number, set.missed)).collect();
            std::future::ready(if holds(&sets) { Ok(()) } else { Err(format!("{seen:?}")) })
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn threads_that_were_never_used_may_be_dropped_anywhere() {
        drop(HandlerThreads::start(2).unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn blocked_threads_are_replaced_and_let_go_once_they_are_idle() {
        let threads = HandlerThreads::start(2).unwrap();
        let shutdown = CancellationToken::new();
        let watch = tokio::spawn(Arc::clone(&threads).watch(shutdown.clone()));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let (first, number) = threads.newest().unwrap();
        for _ in 0..2 {
            let blocked = Arc::clone(&blocked);
            first.spawn(async move {
                let _ = blocked.lock().unwrap().recv();
            });
        }
        until(&threads, "more threads", |sets| sets.sets.len() == 2).await;
        let (second, newer) = threads.newest().unwrap();
        assert!(newer > number);
        second.spawn(async {}).await.unwrap();
        drop(release);
        until(&threads, "the first to be let go", |sets| sets.sets.len() == 1).await;
        assert_eq!(threads.newest().unwrap().1, newer, "the newest stays");
        shutdown.cancel();
        watch.await.unwrap().unwrap();
        threads.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn threads_that_have_come_free_are_used_again_before_more_are_started() {
        let threads = HandlerThreads::start(1).unwrap();
        let block = |(handle, _): (Handle, usize)| {
            let (release, blocked) = std::sync::mpsc::channel::<()>();
            // It has something to do as well, so it is not idle, only free.
            handle.spawn(std::future::pending::<()>());
            handle.spawn(async move {
                let _ = blocked.recv();
            });
            release
        };
        let shutdown = CancellationToken::new();
        let watch = tokio::spawn(Arc::clone(&threads).watch(shutdown.clone()));
        let first = block(threads.newest().unwrap());
        until(&threads, "more threads", |sets| sets.sets.len() == 2).await;
        drop(first);
        until(&threads, "the first to live", |sets| sets.sets[0].missed == 0).await;
        let second = block(threads.newest().unwrap());
        until(&threads, "the first to be the newest", |sets| sets.sets[1].number == 3).await;
        assert_eq!(threads.lock().sets.len(), 2);
        drop(second);
        shutdown.cancel();
        watch.await.unwrap().unwrap();
        threads.stop();
    }
}
