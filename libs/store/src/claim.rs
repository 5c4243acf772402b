//! R5 and R16: the claim. One transaction on the lock's session takes what is due (timers, triggers, retries), inserts the
//! executions, moves the timers, and notes the batch that will be published.
//!
//! Cost of a batch of any size: BEGIN, one SELECT a kind of source, one INSERT, one UPDATE, COMMIT. What a job means is not
//! read here but kept by the caller ([`crate::definitions`]).
//! Dies before COMMIT: nothing happened. Dies after: the next leader finds the batch unsettled and sends it (R7).

mod due;

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use carillon_core::agenda::Source;
use carillon_core::ids;
use carillon_core::line::Line;
use carillon_core::trace::TraceContext;
use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use crate::bounded::Transaction;
use crate::clock::DbClock;
use crate::columns::sparse;
use crate::definitions::{Definition, definitions_by_revision_on_conn};
use crate::ends::{bind_births, births, born_final_on};
use crate::leader_session::LeaderSession;
use crate::open_entries::{OpenEntry, open_entry_columns, read_open_entry};
use crate::{Result, days};

/// How much of one line may be claimed.
#[derive(Clone, Debug)]
pub struct Room {
    /// From where.
    pub source: Source,
    /// Of which line.
    pub line: Line,
    /// At most so many.
    pub room: i64,
}

/// A timer that is due.
#[derive(Clone, Debug)]
pub struct DueTimer {
    /// Its job.
    pub job: Uuid,
    /// Where it stands.
    pub fire_at: DateTime<Utc>,
    /// Queue and priority.
    pub line: Line,
    /// Revision of the job.
    pub revision: i64,
    /// Executions ever opened.
    pub claimed_count: i64,
    /// R20: how many are open (a late view only overestimates).
    pub open: i64,
}

/// A trigger that is due; the timer row of its job is locked too.
#[derive(Clone, Debug)]
pub struct DueTrigger {
    /// The id that was promised to whoever triggered it.
    pub execution: Uuid,
    /// Its job.
    pub job: Uuid,
    /// When it was asked for.
    pub fire_at: DateTime<Utc>,
    /// Queue and priority that it waited in.
    pub line: Line,
    /// Revision of the job.
    pub revision: i64,
    /// R20.
    pub open: i64,
    /// The tenant; none for a global job.
    pub platform_id: Option<String>,
    /// It has a payload of its own, not the job's.
    pub own_payload: bool,
    /// That payload as JSON text, where it is small enough to travel.
    pub payload: Option<String>,
    /// It has metadata, which its execution takes over.
    pub own_metadata: bool,
    /// Bytes that payload and metadata have in the database, which the claim copies from the trigger to its execution.
    pub documents_stored: u64,
    /// Trace of whoever asked for it.
    pub trace: Option<TraceContext>,
    /// Who asked for it.
    pub created_by: String,
}

/// A failed attempt whose next one is due.
#[derive(Clone, Copy, Debug)]
pub struct DueRetry {
    /// The execution.
    pub execution: Uuid,
    /// Its job.
    pub job: Uuid,
    /// The claim of the failed attempt.
    pub claim: i64,
}

/// A claim in progress: locked, undecided. Dropped without [`Claim::commit`], nothing happened.
#[derive(Debug)]
pub struct Claim<'a> {
    transaction: Transaction<'a>,
    shard: i16,
    /// R1: the number of the batch that this becomes.
    pub number: i64,
    /// The database's time.
    pub now: DateTime<Utc>,
    /// Timers due, those of one line in order of their instants.
    pub timers: Vec<DueTimer>,
    /// Triggers due. One that nothing is decided about stays where it is.
    pub triggers: Vec<DueTrigger>,
    /// Retries due.
    pub retries: Vec<DueRetry>,
    /// Jobs of timers, executions of triggers that are due and left where they are, since somebody has locked the day of their
    /// executions as a whole.
    pub set_aside: Vec<(Source, Line, Uuid)>,
    /// Retries of such days were put off: they fall due again some seconds later.
    pub put_off: bool,
    /// Of what was set aside the timers: which day their executions are of is not certain before they are decided about.
    standing_there: Vec<DueTimer>,
    /// A retry was put off, since somebody else has locked its execution: that is to be committed.
    passed_over: bool,
}

/// One fire to be written.
#[derive(Clone, Debug)]
pub struct NewExecution {
    /// Its id.
    pub id: Uuid,
    /// Its job.
    pub job: Uuid,
    /// Place in the batch, from 1; 0 for one that is SKIPPED and never published.
    pub seq: i32,
    /// Queue and priority that it is published to.
    pub line: Line,
    /// The definition that it runs with, through all its attempts.
    pub revision: i64,
    /// The tenant; none for a global job.
    pub platform_id: Option<String>,
    /// The instant.
    pub scheduled_at: DateTime<Utc>,
    /// Retries after the first attempt.
    pub max_retries: i32,
    /// Why it is skipped, or what it makes up for.
    pub reason: Option<String>,
    /// It has a payload of its own, its trigger's.
    pub own_payload: bool,
    /// That payload as JSON text, where it is small enough to travel.
    pub payload: Option<String>,
    /// Its trigger has metadata for it.
    pub own_metadata: bool,
    /// Trace of whoever asked for it.
    pub trace: Option<TraceContext>,
    /// Who asked for it, where it was triggered.
    pub created_by: String,
    /// Born SKIPPED.
    pub skipped: bool,
}

/// Where a timer moves.
#[derive(Clone, Copy, Debug)]
pub struct MovedTimer {
    /// Its job.
    pub job: Uuid,
    /// `None`: leave it where it stands (only triggers were claimed).
    pub to: Option<Moved>,
}

/// Where a timer moves.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// `None`: nothing is to come.
    pub fire_at: Option<DateTime<Utc>>,
    /// The timetable has ended.
    pub exhausted: bool,
    /// Where it moves instead if nothing was born (R5: its fire was claimed before, and counted then), though that was to be the
    /// job's last execution.
    pub unborn: Option<DateTime<Utc>>,
}

/// What the caller decided about a claim.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// Executions to insert.
    pub executions: Vec<NewExecution>,
    /// Timers to move: every timer read, except those left for their instant.
    pub timers: Vec<MovedTimer>,
    /// Retries, each with its place in the batch.
    pub retries: Vec<(DueRetry, i32)>,
}

impl Decisions {
    /// Whether a batch is written for them.
    pub fn opens_any(&self) -> bool {
        !self.retries.is_empty() || self.executions.iter().any(|new| !new.skipped)
    }
}

/// What was committed.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// Ids of the executions that were born by this claim (a double is refused by the primary key).
    pub born: Vec<Uuid>,
    /// The next attempts of retried executions.
    pub retried: Vec<OpenEntry>,
}

/// The batch row, what is settled (R7), and what is opened, in one statement. A trigger that is claimed leaves its table here
/// (what stood in it is still seen by this statement), and takes its documents along.
const EXECUTIONS_INSERT_BATCH: &str = concat!(
    "
WITH batch AS (
    INSERT INTO carillon.dispatch_batches (shard, number, term, ids)
    SELECT $16, $17, $18, $19::uuid[] WHERE cardinality($19::uuid[]) > 0
), settled AS (
    UPDATE carillon.dispatch_batches SET settled_at = now() WHERE shard = $16 AND number IN (
        SELECT number FROM carillon.dispatch_batches WHERE shard = $16 AND number = ANY ($20::bigint[]) AND settled_at IS NULL
        FOR NO KEY UPDATE SKIP LOCKED)
), triggered AS (
    DELETE FROM carillon.job_triggers WHERE execution_id = ANY ($21::uuid[])
)
INSERT INTO carillon.job_executions
    (id, job_id, shard, queue, priority, platform_id, revision, created_by, claim, entry, seq, status, scheduled_at, max_retries,
     reason, payload, metadata, trace_id, parent_span_id, trace_flags)
SELECT f.id, f.job_id, $16, f.queue, f.priority, f.platform_id, f.revision, COALESCE(f.created_by, ''), $17, $17, f.seq, 'QUEUED',
       f.scheduled_at, f.max_retries, f.reason,
       CASE WHEN f.own_documents THEN (SELECT t.payload FROM carillon.job_triggers t WHERE t.execution_id = f.id) END,
       CASE WHEN f.own_documents THEN (SELECT t.metadata FROM carillon.job_triggers t WHERE t.execution_id = f.id) END,
       f.trace_id, f.parent_span_id, COALESCE(f.trace_flags, 1)
FROM ",
    births!(),
    "
ON CONFLICT (id) DO NOTHING
RETURNING id, job_id"
);

/// What few have (a timer that stays, one that has ended) is sent if one has it.
macro_rules! timers_move {
    () => {
        "UPDATE carillon.job_timers t
    SET fire_at = CASE WHEN m.stays THEN t.fire_at WHEN m.opened = 0 THEN COALESCE(m.unborn, m.fire_at) ELSE m.fire_at END,
        exhausted = CASE WHEN m.stays THEN t.exhausted
                         ELSE COALESCE(m.exhausted, false) AND (m.opened > 0 OR m.unborn IS NULL) END,
        claimed_count = t.claimed_count + m.opened
    FROM UNNEST($1::uuid[], $2::bool[], $3::timestamptz[], $4::bool[], $5::bigint[], $6::timestamptz[])
      AS m(job_id, stays, fire_at, exhausted, opened, unborn)
    WHERE t.job_id = m.job_id"
    };
}

const TIMERS_MOVE: &str = timers_move!();

/// A job whose timetable has ended without an execution of this claim leaves a note: nobody who finishes one will.
const TIMERS_MOVE_AND_NOTE: &str = concat!(
    "
WITH moved AS (
    ",
    timers_move!(),
    "
    RETURNING t.job_id, m.exhausted AND m.opened = 0 AND m.unborn IS NULL AS has_ended
)
INSERT INTO carillon.job_attention (job_id) SELECT job_id FROM moved WHERE has_ended"
);

/// R16. The revision stays: an execution keeps, through all its attempts, the definition that it started with. What the
/// failed attempt left (`execution_attempts` keeps it) is not the next one's.
const EXECUTIONS_RETRY: &str = concat!(
    "
UPDATE carillon.job_executions e
SET status = 'QUEUED', attempt = e.attempt + 1, claim = $1, entry = $1, seq = r.seq, take = 0, lost = 0, worker_id = NULL,
    misplaced = false, started_at = NULL, duration_ms = NULL, error = NULL, error_stack = NULL
FROM UNNEST($2::uuid[], $3::bigint[], $4::int[]) AS r(id, claim, seq)
WHERE e.id = r.id AND {days of e.id} AND e.status = 'RETRYING' AND e.claim = r.claim
RETURNING ",
    open_entry_columns!()
);

impl LeaderSession {
    /// Begins a claim: takes what is due until `due` within the given rooms, except what `excluded` names: jobs, of
    /// timers that are known to be undecidable before their instant, and jobs and executions that were set aside.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost, stand by.
    pub async fn claim(&mut self, rooms: &[Room], due: DateTime<Utc>, excluded: &[Uuid]) -> Result<Claim<'_>> {
        let shard = self.shard;
        let sent = Instant::now();
        let (transaction, now) = self.connection.begin_by_the_clock().await?;
        let clock = DbClock::from_round_trip(sent, Instant::now(), now);
        self.numbers.measured(clock);
        let number = self.numbers.next_at(clock.now());
        let mut claim = Claim {
            transaction,
            shard,
            number,
            now,
            timers: Vec::new(),
            triggers: Vec::new(),
            retries: Vec::new(),
            set_aside: Vec::new(),
            put_off: false,
            standing_there: Vec::new(),
            passed_over: false,
        };
        claim.take_timers(rooms, due, excluded).await?;
        claim.take_triggers(rooms, due, excluded).await?;
        claim.find_retries(rooms, due, excluded).await?;
        claim.leave_locked_days().await?;
        claim.take_retries().await?;
        Ok(claim)
    }
}

impl Claim<'_> {
    /// Whether nothing was due.
    pub const fn is_empty(&self) -> bool {
        self.timers.is_empty() && self.triggers.is_empty() && self.retries.is_empty() && !self.passed_over
    }

    /// What was taken: the jobs of timers, the executions of triggers and retries.
    pub fn taken(&self) -> impl Iterator<Item = Uuid> {
        let timers = self.timers.iter().map(|timer| timer.job);
        let triggers = self.triggers.iter().map(|trigger| trigger.execution);
        timers.chain(triggers).chain(self.retries.iter().map(|retry| retry.execution))
    }

    /// Reads what jobs mean, each in a revision.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]; [`crate::Error::Unreadable`] for a job that this version cannot read.
    pub async fn definitions(&mut self, wanted: &[(Uuid, i64)]) -> Result<Vec<Definition>> {
        definitions_by_revision_on_conn(&mut self.transaction, wanted).await
    }

    /// Takes back what was set aside of timers that stood before `missed`: what is made up for by one execution is made up for on the
    /// day of the latest instant. Such a claim asks [`Claim::leave_locked`] once it is decided.
    pub fn take_missed(&mut self, missed: DateTime<Utc>) {
        let taken: Vec<DueTimer> = self.standing_there.extract_if(.., |timer| timer.fire_at < missed).collect();
        self.set_aside.retain(|(source, _, id)| *source != Source::Timer || taken.iter().all(|timer| timer.job != *id));
        self.timers.extend(taken);
    }

    /// Leaves the timers that lead to executions of days that somebody has locked as a whole, wherever they stand. Answers whether
    /// there are any: then all is to be decided anew.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn leave_locked(&mut self, decisions: &Decisions) -> Result<bool> {
        let triggered: HashSet<Uuid> = self.triggers.iter().map(|trigger| trigger.execution).collect();
        let of_timers = decisions.executions.iter().filter(|new| !triggered.contains(&new.id));
        let of_job: HashMap<Uuid, u64> = of_timers.map(|new| (new.job, ids::day(new.id))).collect();
        let over = days::over(self.now, of_job.values().copied());
        let locked = days::locked_on(&mut self.transaction, &over).await?;
        let is_locked = |timer: &mut DueTimer| of_job.get(&timer.job).is_some_and(|day| locked.contains(day));
        let left = self.timers.extract_if(.., is_locked);
        let before = self.set_aside.len();
        self.set_aside.extend(left.map(|timer| (Source::Timer, timer.line, timer.job)));
        Ok(self.set_aside.len() > before)
    }

    /// Writes what was decided, notes the batch under `term`, and marks the batches `settled` (R7), except those that somebody
    /// has locked: [`LeaderSession::batches_settle`] tells which.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: it may or may not have been committed; the session is lost, stand by, and the next
    /// leader finds the batch or the timers still due.
    pub async fn commit(mut self, term: i64, decisions: &Decisions, settled: &[i64]) -> Result<Committed> {
        let mut ids: Vec<(i32, Uuid)> =
            decisions.executions.iter().filter(|new| !new.skipped).map(|new| (new.seq, new.id)).collect();
        ids.extend(decisions.retries.iter().map(|(retry, seq)| (*seq, retry.execution)));
        ids.sort_unstable();
        let ids: Vec<Uuid> = ids.into_iter().map(|(_, id)| id).collect();
        let (skipped, opened): (Vec<_>, Vec<_>) = decisions.executions.iter().partition(|new| new.skipped);
        let opened = self.insert(term, &ids, &opened, settled).await?;
        let triggered = self.triggered(&skipped);
        let mut born = born_final_on(&mut self.transaction, self.shard, &skipped, triggered).await?;
        self.move_timers(decisions, &opened).await?;
        born.extend(opened.into_iter().map(|(id, _)| id));
        let retried = self.retry(decisions).await?;
        carillon_failpoint::reach("claim:commit").await;
        self.transaction.commit().await?;
        Ok(Committed { born, retried })
    }

    /// Those of `new` that are triggers of this claim.
    fn triggered(&self, new: &[&NewExecution]) -> Vec<Uuid> {
        let taken: HashSet<Uuid> = self.triggers.iter().map(|trigger| trigger.execution).collect();
        new.iter().map(|new| new.id).filter(|id| taken.contains(id)).collect()
    }

    async fn insert(
        &mut self,
        term: i64,
        ids: &[Uuid],
        opened: &[&NewExecution],
        settled: &[i64],
    ) -> Result<Vec<(Uuid, Uuid)>> {
        let triggered = self.triggered(opened);
        let rows = bind_births(sqlx::query(EXECUTIONS_INSERT_BATCH), opened)
            .bind(self.shard)
            .bind(self.number)
            .bind(term)
            .bind(ids)
            .bind(settled)
            .bind(triggered)
            .fetch_all(&mut *self.transaction)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("job_id")?))).collect()
    }

    /// R20: `claimed_count` grows only by what was really born, and open.
    async fn move_timers(&mut self, decisions: &Decisions, born: &[(Uuid, Uuid)]) -> Result<()> {
        let mut opened = HashMap::<Uuid, i64>::new();
        for (_, job) in born {
            *opened.entry(*job).or_default() += 1;
        }
        // One order for all who lock timers, so that no two wait for each other.
        let mut timers: Vec<&MovedTimer> = decisions.timers.iter().collect();
        timers.sort_unstable_by_key(|timer| timer.job);
        if timers.is_empty() {
            return Ok(());
        }
        let opened = |timer: &MovedTimer| opened.get(&timer.job).copied().unwrap_or(0);
        let ends = |to: Moved| to.exhausted && to.unborn.is_none();
        let any_ended = timers.iter().any(|timer| timer.to.is_some_and(ends) && opened(timer) == 0);
        sqlx::query(if any_ended { TIMERS_MOVE_AND_NOTE } else { TIMERS_MOVE })
            .bind(timers.iter().map(|timer| timer.job).collect::<Vec<_>>())
            .bind(sparse(&timers, |timer| timer.to.is_none().then_some(true)))
            .bind(sparse(&timers, |timer| timer.to.and_then(|to| to.fire_at)))
            .bind(sparse(&timers, |timer| timer.to.filter(|to| to.exhausted).map(|_| true)))
            .bind(timers.iter().map(|timer| opened(timer)).collect::<Vec<_>>())
            .bind(sparse(&timers, |timer| timer.to.and_then(|to| to.unborn)))
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    async fn retry(&mut self, decisions: &Decisions) -> Result<Vec<OpenEntry>> {
        if decisions.retries.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = decisions.retries.iter().map(|(retry, _)| retry.execution).collect();
        let rows = sqlx::query(days::of(EXECUTIONS_RETRY, ids.iter().copied()))
            .bind(self.number)
            .bind(ids)
            .bind(decisions.retries.iter().map(|(retry, _)| retry.claim).collect::<Vec<_>>())
            .bind(decisions.retries.iter().map(|(_, seq)| *seq).collect::<Vec<_>>())
            .fetch_all(&mut *self.transaction)
            .await?;
        rows.iter().map(read_open_entry).collect()
    }
}
