//! The long-lived loops of a process. A loop that ends or panics while nobody asked for a stop is a defect that must not
//! go unnoticed (a dispatcher whose chores died looks healthy for hours): the process ends, and says which one it was.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::telemetry::panic_message;

/// The loops of a process; made by [`crate::Process::tasks`].
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
    shutdown: CancellationToken,
    grace: Duration,
}

impl Tasks {
    /// An empty set: its loops live until `shutdown` and have `grace` to end after it.
    pub fn new(shutdown: CancellationToken, grace: Duration) -> Self {
        Self { set: JoinSet::new(), names: HashMap::new(), shutdown, grace }
    }

    /// Starts a loop. It returns `Ok` once `shutdown` was cancelled and it has drained, `Err` when it cannot go on.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Runs until the shutdown and through the drain. The first loop that ends before it stops all others.
    ///
    /// # Errors
    /// The failure of the first loop that failed, with its name; or that the grace period was too short for some.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut failure = None;
        let shutdown = self.shutdown.clone();
        tokio::select! {
            // First, since a loop that heard of the stop sooner than we did has ended in good order.
            biased;
            () = shutdown.cancelled() => {}
            ended = self.set.join_next_with_id() => {
                if let Some(ended) = ended {
                    let name = self.name_of(&ended);
                    let why = failure_of(ended).unwrap_or_else(|| anyhow!("ended although nobody asked it to"));
                    error!(task = name, "a part of this process has ended, stopping the others: {why:#}");
                    failure = Some(why.context(format!("the task {name}")));
                    shutdown.cancel();
                } else {
                    shutdown.cancelled().await;
                }
            }
        }
        let drained = self.drain(&mut failure).await;
        failure.map_or(drained, Err)
    }

    async fn drain(&mut self, failure: &mut Option<anyhow::Error>) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + self.grace;
        loop {
            let Ok(ended) = tokio::time::timeout_at(deadline, self.set.join_next_with_id()).await else {
                let left: Vec<&str> = self.names.values().copied().collect();
                warn!(tasks = left.join(", "), "did not end within {:?} and are dropped", self.grace);
                return Err(anyhow!("{} did not end within {:?}", left.join(", "), self.grace));
            };
            let Some(ended) = ended else { return Ok(()) };
            let name = self.name_of(&ended);
            if let Some(why) = failure_of(ended) {
                error!(task = name, "a part of this process failed while stopping: {why:#}");
                failure.get_or_insert(why.context(format!("the task {name}")));
            }
        }
    }

    fn name_of(&mut self, ended: &Result<(Id, anyhow::Result<()>), JoinError>) -> &'static str {
        let id = match ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        self.names.remove(&id).unwrap_or("unnamed")
    }
}

fn failure_of(ended: Result<(Id, anyhow::Result<()>), JoinError>) -> Option<anyhow::Error> {
    match ended {
        Ok((_, outcome)) => outcome.err(),
        Err(error) => match error.try_into_panic() {
            Ok(payload) => Some(anyhow!("panicked: {}", panic_message(payload.as_ref()))),
            Err(error) => Some(error).context("was cancelled").err(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn all_drain_after_a_shutdown() {
        let shutdown = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone(), GRACE);
        for name in ["a", "b"] {
            let shutdown = shutdown.clone();
            tasks.spawn(name, async move {
                shutdown.cancelled().await;
                Ok(())
            });
        }
        shutdown.cancel();
        tasks.run().await.unwrap();
    }

    #[tokio::test]
    async fn a_loop_that_ends_by_itself_ends_all_with_its_name() {
        let shutdown = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone(), GRACE);
        tasks.spawn("quitter", async { Ok(()) });
        let other = shutdown.clone();
        tasks.spawn("patient", async move {
            other.cancelled().await;
            Ok(())
        });
        let error = tasks.run().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "the task quitter: ended although nobody asked it to");
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn a_panic_ends_all_with_its_message() {
        let mut tasks = Tasks::new(CancellationToken::new(), GRACE);
        tasks.spawn("clumsy", async { panic!("dropped the bell") });
        let error = tasks.run().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "the task clumsy: panicked: dropped the bell");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_named_when_the_grace_is_over() {
        let shutdown = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone(), GRACE);
        tasks.spawn("stuck", std::future::pending());
        shutdown.cancel();
        let error = tasks.run().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "stuck did not end within 5s");
    }
}
