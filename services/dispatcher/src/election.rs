//! R2: standing by and leading.
//!
//! The authority is the advisory lock of Postgres, and nothing else: whoever holds the session that holds it leads. A standby
//! asks for it ten times a second, so that it leads at once when the leader's session ends; when the leader's machine is cut
//! off or frozen the server ends its silent session after three seconds. Any error of the session ends the term: it is never
//! mended, a new one is made.
//!
//! Who cannot reach Redis does not lead: a standby takes the lock only within [`ANSWER_FRESH`] of an answer of Redis, and a
//! leader without one gives it back ([`crate::leader`]). If nobody reaches Redis nobody leads, and nothing is claimed.

use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_kit::Flag;
use carillon_store::leader_session::{Candidate, LeaderSession};
use carillon_store::{Store, StoreOptions};
use carillon_stream::Redis;
use carillon_stream::notices::Topic;
use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Config;
use crate::leader::{self, Leader};
use crate::withdraw;

/// How often a standby asks for the lock.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// R2: an answer of Redis counts for so long.
const ANSWER_FRESH: Duration = Duration::from_secs(1);
/// How long a standby waits for one: nearly as long as it would count for, so that a slow Redis is led too. It asks again at
/// half that time.
const ANSWER_MAX: Duration = Duration::from_millis(900);
const _: () = assert!(ANSWER_MAX.as_millis() < ANSWER_FRESH.as_millis(), "there is time left to ask for the lock");
/// How long a stop waits for a term to end: after it the session is let go of as if this process had been killed, which the
/// next leader mends all the same.
const STOP_MAX: Duration = Duration::from_millis(1_500);
/// Between connections that failed; doubled with each further one in a row,
const CONNECT_AGAIN: Duration = Duration::from_millis(500);
/// up to this. So are terms that end soon, but for the first of them.
/// Not to stand by for so long is no hiccup any more.
const FAILS_MAX: Duration = Duration::from_secs(10);
const CONNECT_AGAIN_MAX: Duration = Duration::from_secs(2);
/// A term that lasted so long was none that ends at once, again and again.
const LASTING_TERM: Duration = Duration::from_secs(5);

/// The loop that stands by and leads.
#[derive(Debug)]
pub struct Election {
    config: Config,
    options: StoreOptions,
    store: Store,
    redis: Redis,
    unread: withdraw::Handle,
    leads: watch::Sender<bool>,
    /// Up while it leads or stands by.
    stands: Flag,
    shutdown: CancellationToken,
}

impl Election {
    /// One for a process; what its terms meet that is to end unread goes to `unread`, whether it leads is said to `leads`, whether
    /// it could to `stands`.
    #[expect(clippy::too_many_arguments, reason = "each is handed in once, by name")]
    pub const fn new(
        config: Config,
        options: StoreOptions,
        store: Store,
        redis: Redis,
        unread: withdraw::Handle,
        leads: watch::Sender<bool>,
        stands: Flag,
        shutdown: CancellationToken,
    ) -> Self {
        Self { config, options, store, redis, unread, leads, stands, shutdown }
    }

    /// Stands by and leads until the process stops.
    ///
    /// # Errors
    /// If the process can never lead: a transaction pooler stands before Postgres.
    pub async fn run(self) -> anyhow::Result<()> {
        self.say_leads(false);
        if carillon_kit::wait_for("redis", &self.shutdown, || self.redis.reach()).await.is_err() {
            return Ok(());
        }
        let mut failures = 0;
        let mut fails_since: Option<Instant> = None;
        while !self.shutdown.is_cancelled() {
            let asked = Instant::now();
            let outcome = tokio::select! {
                // A Postgres that does not answer must not hold up a stop: a lock that was just given ends with its session.
                () = self.shutdown.cancelled() => return Ok(()),
                outcome = self.stand_by() => outcome,
            };
            match outcome {
                Ok(session) => {
                    fails_since = None;
                    let began = Instant::now();
                    self.lead(session).await?;
                    failures = if began.elapsed() < LASTING_TERM { failures + 1 } else { 0 };
                    if failures > 1 {
                        self.pause(pause_after(failures - 1)).await;
                    }
                }
                Err(error @ carillon_store::Error::FailedPrecondition { .. }) => return Err(error.into()),
                Err(error) => {
                    let error = with_causes(&error);
                    warn!("cannot stand by, trying again: {error}");
                    if asked.elapsed() >= LASTING_TERM {
                        // It did, until now.
                        fails_since = None;
                    }
                    // Postgres may well answer it elsewhere, on connections that it has: whoever can't lead is of no use.
                    if fails_since.get_or_insert_with(Instant::now).elapsed() >= FAILS_MAX {
                        self.stands.down(format!("it cannot stand by: {error}"));
                    }
                    failures += 1;
                    self.pause(pause_after(failures)).await;
                }
            }
        }
        Ok(())
    }

    /// Asks for the lock until it is ours.
    async fn stand_by(&self) -> carillon_store::Result<LeaderSession> {
        let mut candidate = Candidate::connect(&self.options, self.config.dispatcher.shard).await?;
        self.stands.up();
        info!(shard = self.config.dispatcher.shard, "standing by");
        let mut answered: Option<Instant> = None;
        let mut is_silent = false;
        loop {
            if answered.is_none_or(|at| at.elapsed() >= ANSWER_FRESH / 2) {
                let asked = Instant::now();
                match self.ask_redis().await {
                    Ok(()) => {
                        answered = Some(asked);
                        if std::mem::take(&mut is_silent) {
                            info!("redis answers again");
                        }
                    }
                    Err(why) => {
                        if !std::mem::replace(&mut is_silent, true) {
                            warn!("redis does not answer, so this process does not ask to lead: {why}");
                        }
                    }
                }
            }
            if answered.is_some_and(|at| at.elapsed() < ANSWER_FRESH) {
                match candidate.try_lead().await? {
                    Ok(session) => return Ok(session),
                    Err(still_candidate) => candidate = still_candidate,
                }
            } else {
                candidate.say_something().await?;
            }
            self.pause(ASK_EVERY).await;
        }
    }

    /// R2: whether Redis answers the STATE script.
    async fn ask_redis(&self) -> Result<(), String> {
        match tokio::time::timeout(ANSWER_MAX, self.redis.state(&[])).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(with_causes(&error)),
            Err(_) => Err(format!("nothing was heard for {} ms", ANSWER_MAX.as_millis())),
        }
    }

    async fn lead(&self, session: LeaderSession) -> anyhow::Result<()> {
        let notices = self.redis.subscribe(&[Topic::Wake, Topic::Ended, Topic::JobChanged])?;
        self.say_leads(true);
        counter!("carillon_dispatcher_terms_total").increment(1);
        let leader = Leader::new(
            self.config.clone(),
            session,
            self.store.clone(),
            self.redis.clone(),
            notices,
            self.unread.clone(),
            self.shutdown.clone(),
        );
        let shutdown = self.shutdown.clone();
        let out_of_time = async move {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_MAX).await;
        };
        let end = tokio::select! {
            end = Box::pin(leader.run_term()) => Some(end),
            () = out_of_time => None,
        };
        self.say_leads(false);
        let Some(end) = end else {
            warn!("postgres does not answer: the leader's session is let go of without a word");
            return Ok(());
        };
        match end {
            Ok(()) | Err(leader::End::Stopped) => info!("resigned"),
            Err(leader::End::Stale) => {
                warn!("another leader has announced a later term, standing by");
                self.pause(CONNECT_AGAIN).await;
            }
            Err(leader::End::RedisSilent) => {
                warn!("redis does not answer: the lock was given back, standing by until it does");
            }
            Err(leader::End::SessionLost(error) | leader::End::Refused(error)) => {
                warn!("the leader's session is lost, standing by: {}", with_causes(&error));
            }
        }
        Ok(())
    }

    fn say_leads(&self, leads: bool) {
        gauge!("carillon_dispatcher_leader").set(f64::from(u8::from(leads)));
        self.leads.send_replace(leads);
    }

    async fn pause(&self, duration: Duration) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(duration) => {}
        }
    }
}

/// After so many failures in a row.
fn pause_after(failures: u32) -> Duration {
    (CONNECT_AGAIN * (1 << failures.saturating_sub(1).min(8))).min(CONNECT_AGAIN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_bound() {
        let pauses: Vec<u128> = (1..=5).map(|failures| pause_after(failures).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 2_000, 2_000]);
        assert_eq!(pause_after(u32::MAX), CONNECT_AGAIN_MAX);
    }
}
