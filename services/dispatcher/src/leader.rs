//! A term: from the lock to its loss.
//!
//! It begins by announcing itself to Redis (R3, R4) and by sending what earlier leaders had committed and not settled (R7),
//! ascending, under the old numbers. Then it sleeps until the next instant that its agenda knows, a lead before it (R23), or
//! until a wake; claims (R5, R16); publishes (R6); and settles with the next claim (R7). While a batch is on its way to Redis
//! the next one is claimed, but never a second: Redis away means that claiming stops, and due timers wait in Postgres.
//!
//! The session is spoken to at least each second; its loss ends the term, whatever else is under way. A stop waits for Redis
//! no longer than [`STOP_PATIENCE`]: what was claimed and is not known to be in is left to the next leader (R7). Nothing that
//! a term knows outlives it: the next leader reads everything anew.

use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};

use carillon_core::agenda::{Agenda, Lead};
use carillon_failpoint as failpoint;
use carillon_store::Store;
use carillon_store::leader_session::LeaderSession;
use carillon_stream::Redis;
use carillon_stream::leader::Published;
use carillon_stream::notices::{Notice, Notices};
use chrono::{DateTime, TimeDelta, Utc};
use metrics::counter;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::definitions::Definitions;
use crate::outgoing::Batch;
use crate::streams::Streams;
use crate::{Config, TICK};

/// Instants of one line that the agenda reads at once.
const UPCOMING_MAX: i64 = 5_000;
/// Between two readings that wakes ask for.
const REFILL_PAUSE: Duration = Duration::from_millis(3);
/// Between two tries to reach Redis.
const REDIS_PAUSE: Duration = Duration::from_millis(100);
/// How long a stop waits for Redis. A publish that is on its way in good order is through long before.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
/// Jobs remembered that ended by a skipped fire.
pub(crate) const ENDED_MAX: usize = 1_000;
/// Fires that a leader is thought to handle in a second, until it has seen: few, so that its first herd gets a long lead.
const RATE_ASSUMED: f64 = 5_000.0;

/// Why a term ended.
#[derive(Debug)]
pub enum End {
    /// Another leader announced a later term.
    Stale,
    /// The session that holds the lock is lost.
    SessionLost(carillon_store::Error),
    /// The process stops, and Redis did not answer in time.
    Stopped,
}

impl From<carillon_store::Error> for End {
    fn from(error: carillon_store::Error) -> Self {
        Self::SessionLost(error)
    }
}

/// The leader of a shard, for one term.
#[derive(Debug)]
pub struct Leader {
    pub(crate) config: Config,
    pub(crate) session: LeaderSession,
    pub(crate) redis: Redis,
    pub(crate) term: i64,
    pub(crate) definitions: Definitions,
    pub(crate) reconciled_until: i64,
    store: Store,
    notices: Notices,
    shutdown: CancellationToken,
    pub(crate) agenda: Agenda,
    /// Jobs whose fire cannot be decided before that instant.
    pub(crate) left: HashMap<Uuid, DateTime<Utc>>,
    pub(crate) streams: Streams,
    /// In Redis, not yet marked so.
    pub(crate) unsettled: Vec<i64>,
    /// Completed by nobody else, since their last fire was skipped.
    pub(crate) ended_by_skip: Vec<Uuid>,
    /// What earlier leaders left of them.
    ending: Option<JoinHandle<Vec<Uuid>>>,
    pub(crate) whole_pass_due: bool,
    next_tick: Instant,
    next_refill: Instant,
    last_refill: Instant,
    /// Until when the agenda is complete.
    pub(crate) horizon: DateTime<Utc>,
    /// Fires a second, while busy.
    pub(crate) rate: f64,
}

impl Leader {
    /// One that holds the lock and has not begun its term.
    pub fn new(
        config: Config,
        session: LeaderSession,
        store: Store,
        redis: Redis,
        notices: Notices,
        shutdown: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        Self {
            horizon: session.clock().now(),
            config,
            session,
            redis,
            term: 0,
            definitions: Definitions::default(),
            reconciled_until: 0,
            store,
            notices,
            shutdown,
            agenda: Agenda::default(),
            left: HashMap::new(),
            streams: Streams::default(),
            unsettled: Vec::new(),
            ended_by_skip: Vec::new(),
            ending: None,
            whole_pass_due: false,
            next_tick: now,
            next_refill: now,
            last_refill: now,
            rate: RATE_ASSUMED,
        }
    }

    /// Leads until the process stops (then `Ok`), or the term ends.
    ///
    /// # Errors
    /// Why the term ended.
    pub async fn run_term(mut self) -> Result<(), End> {
        match self.lead_until_stopped().await {
            Ok(()) => {}
            Err(End::Stopped) => info!("redis does not answer: what is on its way to it is left to the next leader"),
            Err(end) => return Err(end),
        }
        self.settle().await?;
        self.session.resign().await;
        Ok(())
    }

    async fn lead_until_stopped(&mut self) -> Result<(), End> {
        self.begin().await?;
        while !self.shutdown.is_cancelled() {
            if Instant::now() >= self.next_tick {
                self.tick().await?;
            }
            // R19: at once, so it stands behind all that may ask for it.
            if std::mem::take(&mut self.whole_pass_due) {
                self.settle().await?;
                self.reconcile_all().await?;
            }
            if Instant::now() >= self.next_refill {
                self.refill().await?;
            }
            match self.claim_due().await? {
                Some(batch) => self.publish_and_claim_on(batch).await?,
                None if self.whole_pass_due => {}
                None => self.wait().await,
            }
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<(), End> {
        self.draw_term().await?;
        self.announce(&[], false).await?;
        let unsettled = self.session.batches_unsettled().await?;
        info!(term = self.term, unsettled = unsettled.len(), "leading");
        for batch in unsettled {
            let open = self.session.open_of_batch(&batch, None).await?;
            self.learn_jobs(open.iter().map(|(entry, _)| (entry.job, entry.revision))).await?;
            let mut outgoing = Batch::new(batch.number);
            for (entry, _) in &open {
                if let Some(job) = self.definitions.get(entry.job, entry.revision) {
                    outgoing.add_open(entry, &job);
                }
            }
            self.publish_surely(outgoing).await?;
        }
        self.settle().await?;
        // It reads every timer, so the take-over does not wait for it.
        let store = self.store.clone();
        self.ending = Some(tokio::spawn(async move { store.jobs_ending().await.unwrap_or_default() }));
        Ok(())
    }

    /// Each second: the session is spoken to, Redis is looked at (R3), something is reconciled.
    async fn tick(&mut self) -> Result<(), End> {
        self.next_tick = Instant::now() + TICK;
        self.session.say_something().await?;
        let lines = self.streams.lines();
        let redis = self.redis.clone();
        match self.alive(redis.state(&lines)).await? {
            Ok(state) => {
                self.streams.hear(&lines, &state.lengths);
                if !state.certified || state.term != self.term {
                    self.announce(&lines, false).await?;
                }
            }
            Err(error) => {
                warn!("redis does not answer, nothing is claimed until it does: {:#}", anyhow::Error::from(error))
            }
        }
        self.settle().await?;
        self.reconcile_some().await?;
        if let Some(ending) = self.ending.take_if(|ending| ending.is_finished()) {
            self.ended_by_skip.extend(ending.await.unwrap_or_default().into_iter().take(ENDED_MAX));
        }
        if !self.ended_by_skip.is_empty()
            && let Ok(completed) = self.store.jobs_complete(&self.ended_by_skip).await
        {
            self.ended_by_skip.retain(|job| !completed.contains(job));
        }
        Ok(())
    }

    /// Reads the agenda anew: the safety net, and the answer to a wake.
    async fn refill(&mut self) -> Result<(), End> {
        let now = self.session.clock().now();
        let poll = self.config.dispatcher.poll;
        let until = now + delta(poll) * 2;
        let upcoming = self.session.upcoming(until, UPCOMING_MAX).await?;
        self.horizon = upcoming.complete_until.unwrap_or(until);
        self.agenda.refill(upcoming.instants);
        self.last_refill = Instant::now();
        // A line with more instants than were read is read again before those run out.
        let until_incomplete = (self.horizon - now - self.lead_max()).to_std().unwrap_or_default();
        self.next_refill = self.last_refill + until_incomplete.max(Duration::from_millis(100)).min(poll);
        Ok(())
    }

    /// Sends a batch, and claims the next while it is on its way, until nothing is due.
    async fn publish_and_claim_on(&mut self, first: Batch) -> Result<(), End> {
        let mut on_its_way = Some(first);
        while let Some(batch) = on_its_way.take() {
            let (redis, term, sent) = (self.redis.clone(), self.term, batch.clone());
            // A task of its own: if the term ends meanwhile it may as well arrive, R6 lets it.
            let sending = tokio::spawn(async move {
                failpoint::reach("publish:send").await;
                redis.publish(sent.number, term, &sent.lines, &sent.entries).await
            });
            let overdue = Instant::now() >= self.next_tick || self.whole_pass_due || self.shutdown.is_cancelled();
            let next = if overdue { None } else { self.claim_due().await? };
            let outcome = self.alive(sending).await?;
            failpoint::reach("publish:answered").await;
            let done = matches!(&outcome, Ok(Ok(Published::Done(_))));
            if let Ok(Ok(Published::Done(lengths))) = outcome {
                self.streams.hear(&batch.lines, &lengths);
                self.unsettled.push(batch.number);
            }
            if !done {
                self.publish_surely(batch.clone()).await?;
            }
            self.streams.arrived(&batch);
            on_its_way = next;
        }
        Ok(())
    }

    /// R6: sends a batch until Redis has said that it is in, or never will be.
    pub(crate) async fn publish_surely(&mut self, batch: Batch) -> Result<(), End> {
        let mut complained = false;
        loop {
            let redis = self.redis.clone();
            let sending = redis.publish(batch.number, self.term, &batch.lines, &batch.entries);
            match self.alive(sending).await? {
                Ok(Published::Done(lengths)) => {
                    self.streams.hear(&batch.lines, &lengths);
                    break;
                }
                // In, or lost and never to be appended again: R19 looks it up at once.
                Ok(Published::Passed) => {
                    self.whole_pass_due = true;
                    break;
                }
                Ok(Published::Stale) => return Err(End::Stale),
                Ok(outcome @ (Published::Uncertified | Published::Unannounced | Published::Behind)) => {
                    let force = outcome == Published::Behind;
                    self.announce(&batch.lines, force).await?;
                }
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!("cannot publish, trying until redis takes it: {:#}", anyhow::Error::from(error));
                    }
                    counter!("carillon_dispatcher_publish_failures_total").increment(1);
                    self.pause_for_redis().await?;
                }
            }
        }
        self.unsettled.push(batch.number);
        Ok(())
    }

    /// Sleeps until there is something to do.
    async fn wait(&mut self) {
        let mut until = self.next_tick.min(self.next_refill);
        if let Some(look) = self.agenda.next_look(self.lead()) {
            until = until.min(self.session.clock().surely_reached(look));
        }
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep_until(until.into()) => {}
            notice = self.notices.next() => {
                self.whole_pass_due |= notice == Notice::Lost;
                // Many wakes are one: what is due is read from Postgres anyway.
                while let Ok(notice) = tokio::time::timeout(Duration::ZERO, self.notices.next()).await {
                    self.whole_pass_due |= notice == Notice::Lost;
                }
                self.next_refill = self.next_refill.min(self.last_refill + REFILL_PAUSE);
            }
        }
    }

    /// Makes sure that these jobs are known in these revisions, as far as this version can read them.
    pub(crate) async fn learn_jobs(&mut self, jobs: impl Iterator<Item = (Uuid, i64)>) -> Result<(), End> {
        let unknown = self.definitions.unknown(jobs);
        if !unknown.is_empty() {
            let learned = self.session.definitions(&unknown).await?;
            self.definitions.learn(learned);
        }
        Ok(())
    }

    /// R7: marks what is in Redis, where no claim did it on its way.
    async fn settle(&mut self) -> Result<(), End> {
        if !self.unsettled.is_empty() {
            failpoint::reach("settle:write").await;
            self.session.settle(&self.unsettled).await?;
            failpoint::reach("settle:written").await;
            self.unsettled.clear();
        }
        Ok(())
    }

    pub(crate) fn lead(&self) -> Lead {
        Lead { base: delta(self.config.dispatcher.lead), max: self.lead_max(), per_second: self.rate }
    }

    pub(crate) fn lead_max(&self) -> TimeDelta {
        delta(self.config.protocol.window / 4)
    }

    /// Waits for something while the session is spoken to each second (R2).
    ///
    /// # Errors
    /// The session is lost; or the process stops, and [`STOP_PATIENCE`] later there is still no outcome.
    pub(crate) async fn alive<T>(&mut self, what: impl Future<Output = T>) -> Result<T, End> {
        let shutdown = self.shutdown.clone();
        // One for the whole wait: made anew at each turn of the loop it would never come.
        let given_up = async move {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_PATIENCE).await;
        };
        tokio::pin!(what, given_up);
        loop {
            tokio::select! {
                biased;
                outcome = &mut what => return Ok(outcome),
                () = &mut given_up => return Err(End::Stopped),
                () = tokio::time::sleep(TICK) => { self.session.say_something().await?; }
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
            match self.alive(ask()).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!("waiting for redis: {:#}", anyhow::Error::from(error));
                    }
                    self.pause_for_redis().await?;
                }
            }
        }
    }

    /// Between two tries. There is no next one once the process stops.
    async fn pause_for_redis(&mut self) -> Result<(), End> {
        if self.shutdown.is_cancelled() {
            return Err(End::Stopped);
        }
        self.alive(tokio::time::sleep(REDIS_PAUSE)).await
    }
}

pub(crate) fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
