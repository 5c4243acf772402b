//! A term: from the lock to its loss.
//!
//! It begins by announcing itself to Redis (R3, R4) and by sending what earlier leaders had committed and not settled (R7),
//! ascending, under the old numbers. Then it sleeps until the next instant that its agenda knows, a lead before it (R23), or
//! until a wake; claims (R5, R16); publishes (R6); and settles with the next claim (R7). While a batch is on its way to Redis
//! the next one is claimed, but never a second: Redis away means that claiming stops, and due timers wait in Postgres.
//!
//! The session is spoken to at least each second; its loss ends the term, whatever else is under way. A statement that the
//! server refuses ends none: nothing of it was done, and what it was for is tried again (R2). Who has had no answer of Redis
//! for [`REDIS_SILENCE_MAX`](crate::patience) does not lead: it gives the lock back. A stop waits for Redis no longer than [`STOP_PATIENCE`](crate::patience):
//! what was claimed and is not known to be in is left to the next leader (R7). Nothing that a term knows outlives it: the next
//! leader reads everything anew.
//!
//! R19 goes a page at a time between claims ([`crate::reconcile`]), and nothing that a turn of the loop waits for is longer than
//! a page, a batch or a reading of the agenda.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use carillon_core::agenda::{Agenda, Lead, Slot, Source};
use carillon_core::error::with_causes;
use carillon_failpoint as failpoint;
use carillon_store::Store;
use carillon_store::leader_session::LeaderSession;
use carillon_store::upcoming::UpcomingMax;
use carillon_stream::Redis;
use carillon_stream::notices::{Notice, Notices};
use chrono::{DateTime, TimeDelta, Utc};
use metrics::counter;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::claim::{LEARN_AT_ONCE, Refusals};
use crate::definitions::Definitions;
use crate::foresight::Foresight;
use crate::glance::Glance;
use crate::outgoing::Batch;
use crate::rate::Rate;
use crate::read_ahead::ReadAhead;
use crate::reconcile::{LOCKED_PAUSE, Passes};
use crate::streams::Streams;
use crate::{Config, TICK, withdraw};

/// Instants that the agenda reads at once: with 10,000 lines that is some 5 MB.
const UPCOMING_MAX: UpcomingMax = UpcomingMax { of_line: 5_000, of_all: 20_000 };
/// How far a wake makes it read at once, unless the longest lead is longer: what is further off waits for [`REFILL_PAUSE`].
const GLANCE: TimeDelta = TimeDelta::milliseconds(500);
/// Between two such glances,
const GLANCE_PAUSE: Duration = Duration::from_millis(3);
/// and between two whole readings that wakes ask for.
const REFILL_PAUSE: Duration = Duration::from_millis(200);
/// Between two readings lies at least so many times what the last one took.
const READING_PAUSE: u32 = 2;
/// R23: spread fires within this share a batch.
pub(crate) const GATHER: TimeDelta = TimeDelta::milliseconds(50);
/// After a statement that the server refused.
pub(crate) const STUMBLE_PAUSE: Duration = Duration::from_millis(50);

/// Why a term ended.
#[derive(Debug)]
pub enum End {
    /// Another leader announced a later term.
    Stale,
    /// The session that holds the lock is lost.
    SessionLost(carillon_store::Error),
    /// The server refused a statement, and nothing of it was done: ends no term.
    Refused(carillon_store::Error),
    /// Redis did not answer for [`REDIS_SILENCE_MAX`](crate::patience).
    RedisSilent,
    /// The process stops, and Redis did not answer in time.
    Stopped,
}

impl From<carillon_store::Error> for End {
    fn from(error: carillon_store::Error) -> Self {
        if error.is_reported() { Self::Refused(error) } else { Self::SessionLost(error) }
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
    pub(crate) passes: Passes,
    notices: Notices,
    pub(crate) unread: withdraw::Handle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) agenda: Agenda,
    /// Jobs whose fire cannot be decided before that instant.
    pub(crate) left: HashMap<Uuid, DateTime<Utc>>,
    pub(crate) refusals: Refusals,
    pub(crate) streams: Streams,
    pub(crate) foresight: Foresight,
    pub(crate) read_ahead: ReadAhead,
    /// In Redis, not yet marked so,
    pub(crate) unsettled: Vec<i64>,
    /// and marked by a claim, unless somebody had locked them: the next tick tells.
    pub(crate) marked: Vec<i64>,
    pub(crate) next_tick: Instant,
    next_refill: Instant,
    /// What is near is read then.
    pub(crate) glance: Glance,
    /// When the agenda was read last, and when it may be read again.
    last_refill: Instant,
    readable: Instant,
    /// When Redis answered last,
    pub(crate) answered: Instant,
    /// and since when something that it was asked is unanswered.
    pub(crate) unanswered: Option<Instant>,
    /// When the session was spoken to last for its own sake.
    pub(crate) spoken: Instant,
    /// There was more to claim than a batch holds.
    pub(crate) is_busy: bool,
    /// Rows that the next claim takes at most: fewer after one that was refused.
    pub(crate) claim_max: u32,
    /// Where the last claim stopped in more lines than it could take.
    pub(crate) last_slot: Option<Slot>,
    /// What the claim under way has taken: jobs of timers, executions of triggers and retries.
    pub(crate) taking: Vec<Uuid>,
    /// and from where.
    pub(crate) taking_of: Vec<Slot>,
    /// Until when the agenda is complete.
    pub(crate) horizon: DateTime<Utc>,
    /// How fast herds are claimed.
    pub(crate) rate: Rate,
}

impl Leader {
    /// One that holds the lock and has not begun its term.
    pub fn new(
        config: Config,
        session: LeaderSession,
        store: Store,
        redis: Redis,
        notices: Notices,
        unread: withdraw::Handle,
        shutdown: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        let read_ahead = ReadAhead::new(store.clone(), session.shard());
        Self {
            horizon: session.clock().now(),
            claim_max: config.dispatcher.batch_max,
            streams: Streams::new(config.dispatcher.stream_unused),
            config,
            session,
            redis,
            term: 0,
            definitions: Definitions::default(),
            passes: Passes::default(),
            foresight: Foresight::new(store),
            read_ahead,
            notices,
            unread,
            shutdown,
            agenda: Agenda::default(),
            left: HashMap::new(),
            refusals: Refusals::default(),
            unsettled: Vec::new(),
            marked: Vec::new(),
            next_tick: now,
            next_refill: now,
            glance: Glance::default(),
            last_refill: now,
            readable: now,
            answered: now,
            unanswered: None,
            spoken: now,
            is_busy: false,
            last_slot: None,
            taking: Vec::new(),
            taking_of: Vec::new(),
            rate: Rate::default(),
        }
    }

    /// Leads until the process stops (then `Ok`), or the term ends.
    ///
    /// # Errors
    /// Why the term ended. Where the session still stands the lock is given back first.
    pub async fn run_term(mut self) -> Result<(), End> {
        let end = match self.lead_until_stopped().await {
            Ok(()) => None,
            Err(End::Stopped) => {
                info!("redis does not answer: what is on its way to it is left to the next leader");
                None
            }
            Err(end @ End::RedisSilent) => Some(end),
            Err(end) => return Err(end),
        };
        self.settle_if_allowed().await?;
        self.session.resign().await;
        end.map_or(Ok(()), Err)
    }

    async fn lead_until_stopped(&mut self) -> Result<(), End> {
        self.begin().await?;
        while !self.shutdown.is_cancelled() {
            match self.turn().await {
                Err(End::Refused(error)) => self.stumble(&error),
                other => other?,
            }
        }
        Ok(())
    }

    /// One turn of the loop: whatever is due, a piece of each.
    async fn turn(&mut self) -> Result<(), End> {
        if Instant::now() >= self.next_tick {
            self.tick().await?;
        }
        self.read_agenda().await?;
        while let Some(searched) = self.foresight.try_next() {
            self.look_again(searched);
        }
        let claimed = self.claim_due().await?;
        let idle = claimed.is_none();
        if let Some(batch) = claimed {
            self.publish_and_claim_on(batch).await?;
        }
        if Instant::now() >= self.passes.next_page() {
            self.reconcile_page().await
        } else {
            if idle {
                self.wait().await;
            }
            Ok(())
        }
    }

    /// R2: the server refused a statement, so nothing of it was done, and the session goes on. What was taken out of the
    /// agenda for it is read again.
    pub(crate) fn stumble(&mut self, error: &carillon_store::Error) {
        warn!("postgres has refused a statement, trying again: {}", with_causes(error));
        counter!("carillon_dispatcher_refused_total").increment(1);
        let again = Instant::now() + STUMBLE_PAUSE;
        self.next_refill = again;
        self.readable = again;
        self.passes.pause_until(again);
    }

    async fn begin(&mut self) -> Result<(), End> {
        self.draw_term().await?;
        self.announce(&[], false).await?;
        info!(term = self.term, "leading");
        let mut after = 0;
        loop {
            let page = self.insist(|session| Box::pin(session.batches_unsettled(after))).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            info!(batches = page.len(), "sending what an earlier leader had claimed");
            for batch in page {
                self.send_unsettled(batch).await?;
            }
        }
        self.settle_if_allowed().await
    }

    /// R7: under its old number. What is of a day that somebody has locked, or what the server refuses to tell however often it is
    /// asked, is left out of it, and to R19: no leader would get beyond it as long as that lasts.
    async fn send_unsettled(&mut self, batch: carillon_store::open_entries::Batch) -> Result<(), End> {
        let asked = self.insist(|session| {
            let mut batch = batch.clone();
            Box::pin(async move {
                let left = session.leave_locked_days(std::slice::from_mut(&mut batch)).await?;
                Ok((session.executions_open_of_batches(&[batch], None).await?, left.is_empty()))
            })
        });
        let (open, is_whole) = match asked.await {
            Err(End::SessionLost(error)) if error.is_reported() => {
                warn!(batch = batch.number, "left to the walk, as postgres does not tell: {}", with_causes(&error));
                (Vec::new(), false)
            }
            outcome => outcome?,
        };
        if !is_whole {
            self.passes.ask_later(batch.number, Instant::now() + LOCKED_PAUSE);
        }
        self.learn_jobs_of(batch.number, open.iter().map(|(entry, _)| (entry.job, entry.revision))).await?;
        let mut outgoing = Batch::new(batch.number);
        for (entry, _) in &open {
            if let Some(job) = self.definitions.get(entry.job, entry.revision) {
                outgoing.add_open(entry, &job);
            }
        }
        self.publish_surely(outgoing).await
    }

    /// Each second: the session is spoken to, Redis is looked at (R3).
    async fn tick(&mut self) -> Result<(), End> {
        self.next_tick = Instant::now() + TICK;
        self.speak().await?;
        if self.session.clock_was_set() {
            warn!("the database's clock was set: what is due is reckoned anew");
            self.agenda = Agenda::default();
            self.left.clear();
            self.next_refill = Instant::now();
        }
        let lines = self.streams.some_lines();
        let redis = self.redis.clone();
        let state = self.alive(redis.state(&lines)).await?;
        self.note_answer(&state);
        match state {
            Ok(state) => {
                self.streams.hear(&lines, &state.lengths);
                if !state.certified || state.term != self.term {
                    self.announce(&lines, false).await?;
                }
            }
            Err(error) => {
                warn!("redis does not answer: {}", with_causes(&error));
                self.refuse_silence()?;
            }
        }
        self.let_streams_leave().await?;
        self.settle().await
    }

    /// Reads the agenda anew where that is due: what is near after a wake, all of it now and then.
    async fn read_agenda(&mut self) -> Result<(), End> {
        let began = Instant::now();
        if began < self.readable {
            return Ok(());
        }
        if began >= self.next_refill {
            self.refill().await?;
        } else if self.glance.at().is_some_and(|at| began >= at) {
            let until = self.session.clock().now() + self.lead_max().max(GLANCE);
            let upcoming = self.session.timers_upcoming(until, UPCOMING_MAX).await?;
            self.agenda.refill_until(upcoming.complete_until.unwrap_or(until), upcoming.instants);
        } else {
            return Ok(());
        }
        self.glance.is_done();
        self.readable = Instant::now() + (began.elapsed() * READING_PAUSE).max(GLANCE_PAUSE);
        Ok(())
    }

    /// The safety net, and what a wake asks for beyond a glance.
    async fn refill(&mut self) -> Result<(), End> {
        let now = self.session.clock().now();
        let poll = self.config.dispatcher.poll;
        let until = now + delta(poll) * 2;
        let upcoming = self.session.timers_upcoming(until, UPCOMING_MAX).await?;
        self.horizon = upcoming.complete_until.unwrap_or(until);
        self.agenda.refill(upcoming.instants);
        self.last_refill = Instant::now();
        // A line with more instants than were read is read again before those run out.
        let until_incomplete = (self.horizon - now - self.lead_max()).to_std().unwrap_or_default();
        self.next_refill = self.last_refill + until_incomplete.max(Duration::from_millis(100)).min(poll);
        Ok(())
    }

    /// Sleeps until there is something to do.
    async fn wait(&mut self) {
        let reading = self.glance.at().map_or(self.next_refill, |glance| glance.min(self.next_refill));
        let mut until = self.next_tick.min(reading.max(self.readable)).min(self.passes.next_page());
        if let Some(look) = self.agenda.next_look(self.lead()) {
            until = until.min(self.session.clock().surely_reached(look));
        }
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep_until(until.into()) => {}
            searched = self.foresight.next() => self.look_again(searched),
            notice = self.notices.next() => {
                self.hear(&notice);
                self.hear_all().await;
            }
        }
    }

    /// What was said meanwhile. Many wakes are one: what is due is read from Postgres anyway.
    pub(crate) async fn hear_all(&mut self) {
        while let Ok(notice) = tokio::time::timeout(Duration::ZERO, self.notices.next()).await {
            self.hear(&notice);
        }
    }

    fn hear(&mut self, notice: &Notice) {
        match notice {
            // The claim finds it, so nothing is read for it (it would wait for that).
            Notice::Due(line) => {
                return self.agenda.note_exactly((Source::Trigger, line.clone()), self.session.clock().now());
            }
            Notice::Lost => self.passes.reported(),
            // Nothing is due by it.
            Notice::Misplaced(batches) => return batches.iter().for_each(|number| self.passes.ask_for(*number)),
            // What kept it from being decided may be so no more: a definition that could not be read, say.
            Notice::JobChanged(job) => drop(self.left.remove(job)),
            _ => {}
        }
        self.glance.by(Instant::now());
        self.next_refill = self.next_refill.min(self.last_refill + REFILL_PAUSE);
    }

    /// Makes sure that these jobs are known in these revisions, as far as this version can read them.
    pub(crate) async fn learn_jobs(&mut self, jobs: impl Iterator<Item = (Uuid, i64)>) -> Result<(), End> {
        let unknown = self.definitions.unknown(jobs);
        for some in unknown.chunks(LEARN_AT_ONCE) {
            let learned = self.session.definitions(some).await?;
            self.definitions.learn(learned);
        }
        Ok(())
    }

    /// [`Leader::learn_jobs`] for `batch`, which is committed. What the server refuses to say now is left out of it, and to R19.
    pub(crate) async fn learn_jobs_of(
        &mut self,
        batch: i64,
        jobs: impl Iterator<Item = (Uuid, i64)>,
    ) -> Result<(), End> {
        match self.learn_jobs(jobs).await {
            Err(End::Refused(error)) => {
                self.stumble(&error);
                self.passes.ask_later(batch, Instant::now() + LOCKED_PAUSE);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// R7: marks what is in Redis, where no claim did it on its way. What somebody has locked is tried again.
    pub(crate) async fn settle(&mut self) -> Result<(), End> {
        self.unsettled.append(&mut self.marked);
        if !self.unsettled.is_empty() {
            failpoint::reach("settle:write").await;
            self.unsettled = self.session.batches_settle(&self.unsettled).await?;
            failpoint::reach("settle:written").await;
        }
        Ok(())
    }

    /// Where nothing depends on it: what is not marked is sent once more, and appended once (R6).
    async fn settle_if_allowed(&mut self) -> Result<(), End> {
        match self.settle().await {
            Err(End::Refused(error)) => {
                self.stumble(&error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    pub(crate) fn lead(&self) -> Lead {
        let base = delta(self.config.dispatcher.lead);
        Lead { base, max: self.lead_max(), gather: GATHER, per_second: self.rate.per_second() }
    }

    pub(crate) fn lead_max(&self) -> TimeDelta {
        delta(self.config.protocol.window / 4)
    }
}

pub(crate) fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
