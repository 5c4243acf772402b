//! Whether this process may be sent work: a list of named flags, all of which must be up.
//!
//! A service makes its flags first thing and puts each up once its part works, down with the reason when it does not.
//! Flags rather than questions to the neighbours: whoever asks `/readyz` must get an answer at once, also when Postgres
//! hangs. A loop of its own asks each neighbour ([`crate::Process::keep_ready`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const FOLLOWED_EVERY: Duration = Duration::from_millis(500);

/// The readiness of a process, cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness {
    flags: Arc<Mutex<Vec<State>>>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct State {
    name: &'static str,
    /// Why it is down.
    down: Option<String>,
}

/// One condition of readiness. It starts down.
#[derive(Clone, Debug)]
pub struct Flag {
    flags: Arc<Mutex<Vec<State>>>,
    index: usize,
}

impl Readiness {
    /// Not ready until a first flag was made and is up; never again after `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Self { flags: Arc::default(), stop }
    }

    /// A new condition, down as "starting" until it is put up.
    pub fn flag(&self, name: &'static str) -> Flag {
        let mut flags = lock(&self.flags);
        flags.push(State { name, down: Some("starting".into()) });
        Flag { flags: Arc::clone(&self.flags), index: flags.len() - 1 }
    }

    /// What is missing, each as `name: reason`. Empty: ready.
    pub fn missing(&self) -> Vec<String> {
        if self.stop.is_cancelled() {
            return vec!["shutdown: draining".into()];
        }
        let flags = lock(&self.flags);
        if flags.is_empty() {
            return vec!["process: starting".into()];
        }
        let down = flags.iter().filter_map(|flag| flag.down.as_ref().map(|why| format!("{}: {why}", flag.name)));
        down.collect()
    }
}

impl Flag {
    /// It works.
    pub fn up(&self) {
        self.set(None);
    }

    /// It does not, and why.
    pub fn down(&self, why: impl Into<String>) {
        self.set(Some(why.into()));
    }

    /// Keeps it up while `works` says so, which is asked twice a second, and down for the reason `why` else; until the stop.
    pub async fn follow(self, mut works: impl FnMut() -> bool + Send, why: String, stop: CancellationToken) {
        let mut worked = true;
        self.up();
        while !stop.is_cancelled() {
            let works = works();
            match (worked, works) {
                (true, false) => {
                    warn!("not ready any more: {why}");
                    self.down(why.clone());
                }
                (false, true) => {
                    info!("ready again: it was that {why}");
                    self.up();
                }
                _ => {}
            }
            worked = works;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(FOLLOWED_EVERY) => {}
            }
        }
    }

    fn set(&self, down: Option<String>) {
        if let Some(flag) = lock(&self.flags).get_mut(self.index) {
            flag.down = down;
        }
    }
}

/// A panic elsewhere leaves nothing half-changed in a list of flags.
fn lock(flags: &Mutex<Vec<State>>) -> MutexGuard<'_, Vec<State>> {
    flags.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flag_follows_what_it_is_to_show_until_the_stop() {
        let (stop, works) = (CancellationToken::new(), Arc::new(Mutex::new(true)));
        let readiness = Readiness::new(stop.clone());
        let seen = Arc::clone(&works);
        let asked = move || *seen.lock().unwrap();
        let following = tokio::spawn(readiness.flag("work").follow(asked, "nothing is done".into(), stop.clone()));
        for (is_well, missing) in [(true, &[][..]), (false, &["work: nothing is done"]), (true, &[])] {
            *works.lock().unwrap() = is_well;
            tokio::time::sleep(2 * FOLLOWED_EVERY).await;
            assert_eq!(readiness.missing(), missing);
        }
        stop.cancel();
        following.await.unwrap();
    }

    #[test]
    fn ready_means_that_all_flags_are_up_and_nobody_stopped() {
        let stop = CancellationToken::new();
        let readiness = Readiness::new(stop.clone());
        assert_eq!(readiness.missing(), ["process: starting"]);
        let (postgres, redis) = (readiness.flag("postgres"), readiness.flag("redis"));
        postgres.up();
        assert_eq!(readiness.missing(), ["redis: starting"]);
        redis.up();
        assert!(readiness.missing().is_empty());
        postgres.down("connection refused");
        assert_eq!(readiness.missing(), ["postgres: connection refused"]);
        postgres.up();
        stop.cancel();
        assert_eq!(readiness.missing(), ["shutdown: draining"]);
    }
}
