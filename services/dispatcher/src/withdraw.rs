//! R17b: what was cancelled or withdrawn, is QUEUED, and is read by nobody, ends here: of a queue that no executor serves, or
//! whose executors are lost. Every dispatcher does it, leading or not, on ordinary connections; two that do it at once, and
//! one that dies in the middle, do no harm, since each end is guarded by all that was seen of its row.
//!
//! Candidates are what notices name, at once; what the cancelled set names, a page every two seconds; and whatever is offered
//! through a [`Handle`] (the leader's walk meets what all hints have missed). Of each, Redis is asked for its entry (R6a):
//! - unread, and nothing in doubt: Redis has deleted it in the same step, so nobody will start it: it ends at once;
//! - unread but doubtful, or held by an executor of which neither Redis nor Postgres has heard for a lease: somebody may have
//!   started it just now, so it ends W later, by which time every healthy executor has written RUNNING;
//! - held by one that lives: that one hears of it (R8a); gone: R19 publishes it again, and it is met again.
//!
//! A released one (R18a) needs no answer of Redis: nobody starts it but by a take, which its end's guard refuses to overrule.
//!
//! Postgres or Redis away: what was named is kept, up to a bound, and tried again. One stream that Redis does not work on (its
//! key holds something else, say) is let be for a while: what was named of it is let go of, and met again by the set or the
//! walk, so that it keeps no other from its look.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use carillon_core::error::with_causes;
use carillon_core::ids;
use carillon_core::line::Line;
use carillon_store::Store;
use carillon_store::recorder::Held;
use carillon_store::withdrawals::{WITHDRAWN_MAX, Withdrawn};
use carillon_stream::notices::{Notice, Notices, Topic};
use carillon_stream::withdraw::Withdrawn as Answer;
use carillon_stream::{EntryId, Error, Redis};
use metrics::counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::config::Config;

/// Between two pages of the cancelled set.
const SET_EVERY: Duration = Duration::from_secs(2);
/// Members of the set looked at together.
const SET_PAGE: u16 = 1_000;
/// What is named within this is looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// Executions that wait for a look, or for W, at most; whatever is beyond it is met again by the set or the walk.
const KEPT_MAX: usize = 20_000;
/// Offers on their way.
const OFFERED_MAX: usize = 10_000;
/// Until an end is tried again that somebody's lock kept from being written.
const LOCKED_PAUSE: Duration = Duration::from_millis(100);
/// Until a stream is asked again that Redis does not work on.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// After a look that Postgres or Redis did not answer.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// Offers candidates from elsewhere.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Uuid>);

impl Handle {
    /// Offers executions that are QUEUED though their cancel was requested. Never waits: what finds no room is met again.
    pub fn offer(&self, executions: impl IntoIterator<Item = Uuid>) {
        for execution in executions {
            if self.0.try_send(execution).is_err() {
                return;
            }
        }
    }
}

/// What was seen of an execution when its W began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    held: Held,
    entry: i64,
}

impl Seen {
    const fn of(candidate: &Withdrawn) -> Self {
        Self { held: candidate.held, entry: candidate.place.entry }
    }
}

/// The loop.
#[derive(Debug)]
pub struct Withdrawal {
    store: Store,
    redis: Redis,
    shard: i16,
    window: Duration,
    lease: Duration,
    notices: Notices,
    offered: mpsc::Receiver<Uuid>,
    handle: Handle,
    shutdown: CancellationToken,
    /// To be looked at.
    named: HashSet<Uuid>,
    /// Jobs of which something may have been withdrawn.
    jobs: BTreeSet<Uuid>,
    /// Redis has deleted their entries for this process, so nobody starts them, but their end is not written yet: somebody has
    /// locked what it touches. Whoever else asks hears that they are gone.
    unread: HashMap<Uuid, Seen>,
    /// Nobody may hold them; since when that is known.
    waiting: HashMap<Uuid, (Instant, Seen)>,
    /// Streams that Redis does not work on, until they are asked again.
    refused: HashMap<Line, Instant>,
    /// R15: since when Postgres has answered without a break.
    contact_since: Instant,
}

impl Withdrawal {
    /// # Errors
    /// If the subscription cannot be set up.
    pub fn new(config: &Config, store: Store, redis: Redis, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let (handle, offered) = mpsc::channel(OFFERED_MAX);
        Ok(Self {
            notices: redis.subscribe(&[Topic::Cancel, Topic::JobChanged])?,
            store,
            redis,
            shard: config.dispatcher.shard,
            window: config.protocol.window,
            lease: config.protocol.lease,
            offered,
            handle: Handle(handle),
            shutdown,
            named: HashSet::new(),
            jobs: BTreeSet::new(),
            unread: HashMap::new(),
            waiting: HashMap::new(),
            refused: HashMap::new(),
            contact_since: Instant::now(),
        })
    }

    /// For whoever meets candidates elsewhere.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Until the process stops; whatever is under way then is met again by another dispatcher.
    ///
    /// # Errors
    /// Never: what fails is tried again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.end_on() => {}
        }
        Ok(())
    }

    async fn end_on(&mut self) {
        let mut set_due = Instant::now();
        let mut look_due: Option<Instant> = None;
        loop {
            let wait_due = self.waiting.values().map(|(since, _)| *since + self.window).min();
            let due = [look_due, wait_due].into_iter().flatten().fold(set_due, Instant::min);
            tokio::select! {
                notice = self.notices.next() => self.hear(&notice, &mut set_due),
                Some(execution) = self.offered.recv() => self.name(execution),
                () = tokio::time::sleep_until(due.into()) => {
                    look_due = None;
                    if let Err(error) = self.look(&mut set_due).await {
                        if error.downcast_ref::<carillon_store::Error>().is_some_and(|error| error.is_unavailable()) {
                            self.contact_since = Instant::now();
                        }
                        warn!("cannot end what was cancelled and nobody reads, trying again: {error:#}");
                        tokio::time::sleep(FAILED_PAUSE).await;
                    }
                }
            }
            if !self.named.is_empty() || !self.jobs.is_empty() {
                look_due = look_due.or_else(|| Some(Instant::now() + GATHER));
            } else if !self.unread.is_empty() {
                look_due = look_due.or_else(|| Some(Instant::now() + LOCKED_PAUSE));
            }
        }
    }

    fn hear(&mut self, notice: &Notice, set_due: &mut Instant) {
        match notice {
            Notice::Cancel(execution) => self.name(*execution),
            Notice::JobChanged(job) if self.jobs.len() < KEPT_MAX => drop(self.jobs.insert(*job)),
            Notice::Missed => *set_due = Instant::now(),
            _ => {}
        }
    }

    fn name(&mut self, execution: Uuid) {
        if self.named.len() < KEPT_MAX {
            self.named.insert(execution);
        }
    }

    /// One look at what is due: a page of what was named, of the set, and of what has waited for W.
    async fn look(&mut self, set_due: &mut Instant) -> anyhow::Result<()> {
        if let Some(job) = self.jobs.pop_first() {
            match self.store.executions_withdrawn_of_job(job).await {
                Ok(withdrawn) => withdrawn.into_iter().for_each(|execution| self.name(execution)),
                Err(error) if error.is_unavailable() => {
                    self.jobs.insert(job);
                    return Err(error.into());
                }
                // One job's trouble keeps no other from its end: the leader's walk meets what is left of it (R17b).
                Err(error) => {
                    warn!(job.id = %job, "cannot look for what was withdrawn: {}", with_causes(&error))
                }
            }
        }
        if Instant::now() >= *set_due {
            *set_due = Instant::now() + SET_EVERY;
            let page = self.redis.some_cancelled(SET_PAGE).await?;
            page.into_iter().for_each(|execution| self.name(execution));
        }
        let mut asked: Vec<Uuid> = self.named.iter().copied().take(WITHDRAWN_MAX).collect();
        let over_w = self.waiting.iter().filter(|(_, (since, _))| since.elapsed() >= self.window);
        asked.extend(over_w.map(|(execution, _)| *execution).take(WITHDRAWN_MAX - asked.len()));
        asked.extend(self.unread.keys().copied().take(WITHDRAWN_MAX - asked.len()));
        asked.sort_unstable();
        asked.dedup();
        if asked.is_empty() {
            return Ok(());
        }
        let mut ended = false;
        for day in asked.chunk_by(|one, other| ids::day(*one) == ids::day(*other)) {
            match self.end(day).await {
                Ok(any) => ended |= any,
                // Somebody has locked that day as a whole, say: no other waits for it. The set, or the leader's walk, names them anew.
                Err(error) if is_refused(&error) => warn!("what was cancelled of a day waits: {error:#}"),
                Err(error) => return Err(error),
            }
            for execution in day {
                self.named.remove(execution);
            }
        }
        // As long as there is something to end, there may be more of it in the set.
        if ended {
            *set_due = Instant::now();
        }
        Ok(())
    }

    /// Answers whether it has ended any.
    async fn end(&mut self, asked: &[Uuid]) -> anyhow::Result<bool> {
        let candidates = self.store.executions_withdrawn(self.shard, asked).await?;
        let still: HashSet<Uuid> = candidates.iter().map(|candidate| candidate.held.execution).collect();
        for execution in asked.iter().filter(|execution| !still.contains(*execution)) {
            self.waiting.remove(execution);
            self.unread.remove(execution);
        }
        let (mut free, mut by_line) = (Vec::new(), BTreeMap::<Line, Vec<Withdrawn>>::new());
        for candidate in candidates {
            if candidate.is_released() {
                free.push(candidate);
            } else {
                by_line.entry(candidate.place.line.clone()).or_default().push(candidate);
            }
        }
        let mut failure = None;
        let now = Instant::now();
        self.refused.retain(|_, until| *until > now);
        for (line, candidates) in by_line {
            if self.refused.contains_key(&line) {
                self.let_go(&candidates);
                continue;
            }
            match self.free_of(&line, candidates).await {
                Ok(unread) => free.extend(unread),
                // One stream that cannot be asked keeps nothing of the others from its end.
                Err(error) => failure = Some(error),
            }
        }
        let any = self.write(&free).await?;
        failure.map_or(Ok(any), Err)
    }

    /// R6a: those of `candidates` that nobody can start any more.
    async fn free_of(&mut self, line: &Line, candidates: Vec<Withdrawn>) -> anyhow::Result<Vec<Withdrawn>> {
        let ids: Vec<EntryId> = candidates.iter().map(entry_id).collect();
        let answers = match self.redis.withdraw_all(line, &ids).await {
            Ok(answers) => answers,
            Err(Error::NoGroup(_)) => {
                // R22 was done; R19 publishes what was lost with the stream.
                for candidate in &candidates {
                    self.waiting.remove(&candidate.held.execution);
                }
                self.redis.tell_lost().await?;
                return Ok(Vec::new());
            }
            Err(error) if is_of_one_stream(&error) => {
                self.let_be(line, &error);
                self.let_go(&candidates);
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.into()),
        };
        let lost = self.lost_holders(&answers).await?;
        let mut free = Vec::new();
        for (candidate, answer) in candidates.into_iter().zip(answers) {
            let seen = Seen::of(&candidate);
            let is_free = match answer {
                Answer::Unread => {
                    if self.unread.len() < KEPT_MAX {
                        self.unread.insert(seen.held.execution, seen);
                    }
                    true
                }
                // By this process, of this very entry: what R19 publishes in its place is doubtful to whoever reads it.
                Answer::Gone if self.unread.get(&seen.held.execution) == Some(&seen) => true,
                Answer::Doubtful => self.has_waited(seen),
                Answer::Pending { consumer, idle } if idle >= self.lease && lost.contains(&consumer) => {
                    self.has_waited(seen)
                }
                Answer::Pending { .. } | Answer::Gone | Answer::Uncertified => {
                    self.waiting.remove(&candidate.held.execution);
                    self.unread.remove(&candidate.held.execution);
                    false
                }
            };
            if is_free {
                free.push(candidate);
            }
        }
        Ok(free)
    }

    fn let_be(&mut self, line: &Line, error: &Error) {
        warn!(%line, "redis does not work on this stream, what was cancelled of it waits: {}", with_causes(error));
        counter!("carillon_dispatcher_streams_refused_total").increment(1);
        self.refused.insert(line.clone(), Instant::now() + REFUSED_PAUSE);
    }

    /// Of these nothing is known any more.
    fn let_go(&mut self, candidates: &[Withdrawn]) {
        for candidate in candidates {
            self.waiting.remove(&candidate.held.execution);
            self.unread.remove(&candidate.held.execution);
        }
    }

    /// R15: who neither Redis nor Postgres has heard of for a lease. Nobody is judged before this process's own contact was
    /// unbroken for as long.
    async fn lost_holders(&self, answers: &[Answer]) -> anyhow::Result<HashSet<String>> {
        let idle = answers.iter().filter_map(|answer| match answer {
            Answer::Pending { consumer, idle } if *idle >= self.lease => Some(consumer.clone()),
            _ => None,
        });
        let mut holders: HashSet<String> = idle.collect();
        if holders.is_empty() || self.contact_since.elapsed() < self.lease {
            return Ok(HashSet::new());
        }
        let asked: Vec<String> = holders.iter().cloned().collect();
        for live in self.store.consumers_live(&asked, self.lease).await? {
            holders.remove(&live);
        }
        Ok(holders)
    }

    /// Whether W has passed since Redis first said so of this very entry, and Postgres was in reach all the while.
    fn has_waited(&mut self, seen: Seen) -> bool {
        let now = Instant::now();
        match self.waiting.get(&seen.held.execution) {
            Some((since, known)) if *known == seen && *since >= self.contact_since => *since + self.window <= now,
            _ => {
                if self.waiting.len() < KEPT_MAX {
                    self.waiting.insert(seen.held.execution, (now, seen));
                }
                false
            }
        }
    }

    /// R11, R12.
    async fn write(&mut self, free: &[Withdrawn]) -> anyhow::Result<bool> {
        if free.is_empty() {
            return Ok(false);
        }
        let ended = self.store.executions_end_unread(free).await?;
        for what in free {
            self.waiting.remove(&what.held.execution);
        }
        for (execution, _) in &ended {
            self.unread.remove(execution);
        }
        if ended.is_empty() {
            return Ok(false);
        }
        counter!("carillon_dispatcher_ended_unread_total").increment(ended.len() as u64);
        info!(executions = ended.len(), "ended what was cancelled and nobody reads");
        let ids: Vec<Uuid> = ended.iter().map(|(execution, _)| *execution).collect();
        let mut by_line: BTreeMap<Line, Vec<EntryId>> = BTreeMap::new();
        for place in ended.into_iter().filter_map(|(_, place)| place) {
            by_line.entry(place.line).or_default().push(EntryId { number: place.entry, seq: place.seq });
        }
        // Redis away: whoever reads them finds them over, and the chores forget their cancels.
        for (line, entries) in by_line {
            match self.redis.acknowledge(&line, &entries).await {
                Err(error) if is_of_one_stream(&error) => self.let_be(&line, &error),
                acknowledged => acknowledged?,
            }
        }
        self.redis.forget_cancelled(&ids).await?;
        Ok(true)
    }
}

/// Postgres answers, and has refused what was asked of it.
fn is_refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<carillon_store::Error>().is_some_and(|error| !error.is_unavailable())
}

/// Redis answers, and has refused what was asked of this one stream.
const fn is_of_one_stream(error: &Error) -> bool {
    matches!(error, Error::Unexpected(_) | Error::WrongType(_))
}

fn entry_id(candidate: &Withdrawn) -> EntryId {
    EntryId { number: candidate.place.entry, seq: candidate.place.seq }
}
