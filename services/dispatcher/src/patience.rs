//! How a leader waits for Redis, and for a statement that Postgres has refused where something committed is in hand.
//!
//! While it waits, its session is spoken to each second (R2). It waits for no answer longer than [`REDIS_SILENCE_MAX`]: who
//! cannot reach Redis does not lead. And once the process is to stop, no longer than [`STOP_PATIENCE`].

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_store::leader_session::LeaderSession;
use metrics::counter;
use tracing::warn;

use crate::TICK;
use crate::leader::{End, Leader, STUMBLE_PAUSE};

/// R2: without an answer of Redis for so long, it does not lead.
const REDIS_SILENCE_MAX: Duration = Duration::from_secs(3);
/// But from the first question that is unanswered so long is waited in any case: a Redis that nobody asks, since a claim or this
/// very process takes long, is not silent;
const ANSWER_MIN: Duration = Duration::from_secs(1);
/// and so long for a batch, which may be 7 MB.
const PUBLISH_MIN: Duration = REDIS_SILENCE_MAX;
/// Between two tries to reach Redis.
const REDIS_PAUSE: Duration = Duration::from_millis(100);
/// A statement that the server refuses is asked again for so long where it cannot be done without. Who then has no answer that it
/// could go on with leaves it to the next leader, who may be better placed.
const INSIST_MAX: Duration = Duration::from_secs(10);
/// How long a stop waits for Redis. A publish that is on its way in good order is through long before.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// A statement on the leader's session.
type Asked<'a, T> = Pin<Box<dyn Future<Output = carillon_store::Result<T>> + Send + 'a>>;

impl Leader {
    /// R2: asks again what the server has refused, so that one cancelled statement ends no term, and loses sight of no batch that is
    /// committed.
    ///
    /// # Errors
    /// The session is lost, or was of no use for [`INSIST_MAX`]; or the process stops.
    pub(crate) async fn insist<T>(
        &mut self,
        mut ask: impl for<'a> FnMut(&'a mut LeaderSession) -> Asked<'a, T> + Send,
    ) -> Result<T, End> {
        let until = Instant::now() + INSIST_MAX;
        loop {
            match ask(&mut self.session).await {
                Err(error) if error.is_reported() && Instant::now() < until => {
                    if self.shutdown.is_cancelled() {
                        return Err(End::Stopped);
                    }
                    self.stumble(&error);
                    tokio::time::sleep(STUMBLE_PAUSE).await;
                }
                outcome => return outcome.map_err(End::SessionLost),
            }
        }
    }

    /// R2: takes note of whether Redis answered. That it is full is an answer too.
    pub(crate) fn note_answer<T>(&mut self, outcome: &carillon_stream::Result<T>) {
        if outcome.as_ref().err().is_none_or(carillon_stream::Error::is_answer) {
            self.answered = Instant::now();
            self.unanswered = None;
        }
    }

    /// R2: speaks to the session, which the server ends once it has been silent for too long. That it refuses to answer is an
    /// answer.
    ///
    /// # Errors
    /// The session is lost.
    pub(crate) async fn speak(&mut self) -> Result<(), End> {
        match self.session.say_something().await {
            Err(error) if error.is_reported() => {
                warn!("postgres has refused to tell its time: {}", with_causes(&error));
                counter!("carillon_dispatcher_refused_total").increment(1);
            }
            outcome => drop(outcome?),
        }
        self.spoken = Instant::now();
        Ok(())
    }

    /// Waits for Redis, or between two tries to reach it, while the session is spoken to each second (R2).
    ///
    /// # Errors
    /// The session is lost; Redis is silent; or the process stops, and [`STOP_PATIENCE`] later there is still no outcome.
    pub(crate) async fn alive<T>(&mut self, what: impl Future<Output = T>) -> Result<T, End> {
        self.alive_for(ANSWER_MIN, what).await
    }

    /// The same, for a batch on its way.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn alive_while_sending<T>(&mut self, what: impl Future<Output = T>) -> Result<T, End> {
        self.alive_for(PUBLISH_MIN, what).await
    }

    async fn alive_for<T>(&mut self, least: Duration, what: impl Future<Output = T>) -> Result<T, End> {
        let shutdown = self.shutdown.clone();
        // One for the whole wait: made anew at each turn of the loop it would never come.
        let given_up = async move {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_PATIENCE).await;
        };
        let since = *self.unanswered.get_or_insert_with(Instant::now);
        let silent = tokio::time::sleep_until((since + least).max(self.answered + REDIS_SILENCE_MAX).into());
        tokio::pin!(what, given_up, silent);
        loop {
            tokio::select! {
                biased;
                outcome = &mut what => return Ok(outcome),
                () = &mut given_up => return Err(End::Stopped),
                () = &mut silent => return Err(End::RedisSilent),
                // Since it was last spoken to, and not since this wait began: many short ones in a row are a long one.
                () = tokio::time::sleep_until((self.spoken + TICK).into()) => self.speak().await?,
            }
        }
    }

    /// Asks Redis until it answers.
    ///
    /// # Errors
    /// As of [`Leader::alive`].
    pub(crate) async fn patiently<T, F, Fut>(&mut self, mut ask: F) -> Result<T, End>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = carillon_stream::Result<T>>,
    {
        let mut complained = false;
        loop {
            let outcome = self.alive(ask()).await?;
            self.note_answer(&outcome);
            match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!("waiting for redis: {}", with_causes(&error));
                    }
                    self.pause_for_redis().await?;
                }
            }
        }
    }

    /// Between two tries. There is no next one once the process stops.
    pub(crate) async fn pause_for_redis(&mut self) -> Result<(), End> {
        if self.shutdown.is_cancelled() {
            return Err(End::Stopped);
        }
        self.refuse_silence()?;
        self.alive(tokio::time::sleep(REDIS_PAUSE)).await
    }

    /// R2: for one whom Redis answers nothing but that it answers nothing (LOADING, say), each time at once.
    ///
    /// # Errors
    /// [`End::RedisSilent`].
    pub(crate) fn refuse_silence(&self) -> Result<(), End> {
        let is_asked = self.unanswered.is_some_and(|since| since.elapsed() >= ANSWER_MIN);
        if is_asked && self.answered.elapsed() >= REDIS_SILENCE_MAX { Err(End::RedisSilent) } else { Ok(()) }
    }
}
