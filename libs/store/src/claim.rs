//! R5 and R16: the claim. One transaction on the lock's session takes what is due (timers, triggers, retries), inserts the
//! executions, moves the timers, and notes the batch that will be published.
//!
//! Cost of a batch of any size: BEGIN, one SELECT a kind of source, one INSERT, one UPDATE, COMMIT. What a job means is not
//! read here but kept by the caller ([`crate::definitions`]).
//! Dies before COMMIT: nothing happened. Dies after: the next leader finds the batch unsettled and sends it (R7).

use std::time::Instant;

use carillon_core::agenda::Source;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_core::trace::TraceContext;
use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use crate::Result;
use crate::bounded::Transaction;
use crate::clock::DbClock;
use crate::definitions::{Definition, definitions_by_revision_on_conn};
use crate::leader_session::{LeaderSession, bounded};
use crate::open_entries::{OpenEntry, open_entry_columns, read_open_entry, read_trace};
use crate::recorder::bounds;

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
    /// JSON text, where it differs from the job's.
    pub payload: Option<String>,
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
    /// Triggers due.
    pub triggers: Vec<DueTrigger>,
    /// Retries due.
    pub retries: Vec<DueRetry>,
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
    /// JSON text, where it differs from the job's.
    pub payload: Option<String>,
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

/// What was committed.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// Ids of the executions that were born by this claim (a double is refused by the primary key).
    pub born: Vec<Uuid>,
    /// The next attempts of retried executions.
    pub retried: Vec<OpenEntry>,
}

const TIMERS_CLAIM_DUE: &str = "
SELECT t.job_id, t.fire_at, t.queue, t.priority, t.revision, t.claimed_count, t.claimed_count - s.finished_count AS open
FROM UNNEST($2::text[], $3::smallint[], $4::bigint[]) AS l(queue, priority, room)
CROSS JOIN LATERAL (
    SELECT * FROM job_timers t
    WHERE t.shard = $1 AND t.queue = l.queue AND t.priority = l.priority AND t.fire_at <= $5 AND t.job_id <> ALL ($6)
    ORDER BY t.fire_at LIMIT l.room FOR UPDATE SKIP LOCKED
) t
JOIN job_stats s ON s.job_id = t.job_id";

const TRIGGERS_CLAIM_DUE: &str = "
WITH due AS (
    SELECT d.execution_id
    FROM UNNEST($2::text[], $3::smallint[], $4::bigint[]) AS l(queue, priority, room)
    CROSS JOIN LATERAL (
        SELECT t.execution_id FROM job_triggers t
        WHERE t.shard = $1 AND t.queue = l.queue AND t.priority = l.priority AND t.fire_at <= $5
        ORDER BY t.fire_at LIMIT l.room FOR UPDATE SKIP LOCKED
    ) d
), taken AS (
    DELETE FROM job_triggers t USING due WHERE t.execution_id = due.execution_id
    RETURNING t.*
)
SELECT taken.execution_id, taken.job_id, taken.fire_at, taken.queue, taken.priority, taken.platform_id,
       taken.payload::text AS payload, taken.trace_id, taken.parent_span_id, taken.trace_flags, taken.created_by, t.revision, t.claimed_count - s.finished_count AS open
FROM taken
CROSS JOIN LATERAL (SELECT * FROM job_timers t WHERE t.job_id = taken.job_id FOR UPDATE) t
JOIN job_stats s ON s.job_id = taken.job_id
ORDER BY taken.fire_at, taken.execution_id";

const RETRIES_CLAIM_DUE: &str = "
WITH due AS (
    SELECT d.execution_id
    FROM UNNEST($2::text[], $3::smallint[], $4::bigint[]) AS l(queue, priority, room)
    CROSS JOIN LATERAL (
        SELECT r.execution_id FROM execution_retries r
        WHERE r.shard = $1 AND r.queue = l.queue AND r.priority = l.priority AND r.due_at <= $5
        ORDER BY r.due_at LIMIT l.room FOR UPDATE SKIP LOCKED
    ) d
)
DELETE FROM execution_retries r USING due WHERE r.execution_id = due.execution_id
RETURNING r.execution_id, r.job_id, r.claim";

/// The batch row, what is settled (R7), and the new rows, in one statement.
const EXECUTIONS_INSERT_BATCH: &str = "
WITH batch AS (
    INSERT INTO dispatch_batches (shard, number, term, ids) SELECT $1, $2, $3, $4::uuid[] WHERE cardinality($4::uuid[]) > 0
), settled AS (
    UPDATE dispatch_batches SET settled_at = now() WHERE shard = $1 AND number = ANY ($5::bigint[]) AND settled_at IS NULL
)
INSERT INTO job_executions
    (id, job_id, shard, queue, priority, platform_id, revision, created_by, claim, entry, seq, status, scheduled_at, completed_at,
     max_retries, reason, payload, trace_id, parent_span_id, trace_flags)
SELECT f.id, f.job_id, $1, f.queue, f.priority, f.platform_id, f.revision, f.created_by,
       CASE WHEN f.skipped THEN NULL ELSE $2 END, CASE WHEN f.skipped THEN NULL ELSE $2 END, f.seq,
       CASE WHEN f.skipped THEN 'SKIPPED' ELSE 'QUEUED' END, f.scheduled_at, CASE WHEN f.skipped THEN now() END,
       f.max_retries, f.reason, f.payload::jsonb, f.trace_id, f.parent_span_id, f.trace_flags
FROM UNNEST($6::uuid[], $7::uuid[], $8::int[], $9::timestamptz[], $10::int[], $11::text[], $12::text[], $13::bool[],
            $14::text[], $15::smallint[], $16::text[], $17::bigint[], $18::text[], $19::text[], $20::text[], $21::smallint[])
     AS f(id, job_id, seq, scheduled_at, max_retries, reason, payload, skipped,
          queue, priority, platform_id, revision, created_by, trace_id, parent_span_id, trace_flags)
ON CONFLICT (id) DO NOTHING
RETURNING id, job_id, status = 'QUEUED' AS opened";

const TIMERS_MOVE: &str = "
UPDATE job_timers t
SET fire_at = CASE WHEN m.moved THEN m.fire_at ELSE t.fire_at END,
    exhausted = CASE WHEN m.moved THEN m.exhausted ELSE t.exhausted END,
    claimed_count = t.claimed_count + m.opened
FROM UNNEST($1::uuid[], $2::bool[], $3::timestamptz[], $4::bool[], $5::bigint[]) AS m(job_id, moved, fire_at, exhausted, opened)
WHERE t.job_id = m.job_id";

/// R16. The revision stays: an execution keeps, through all its attempts, the definition that it started with. What the
/// failed attempt left (`execution_attempts` keeps it) is not the next one's.
const EXECUTIONS_RETRY: &str = concat!(
    "
UPDATE job_executions e
SET status = 'QUEUED', attempt = e.attempt + 1, claim = $1, entry = $1, seq = r.seq, take = 0, lost = 0, worker_id = NULL,
    started_at = NULL, duration_ms = NULL, error = NULL, error_stack = NULL
FROM UNNEST($2::uuid[], $3::bigint[], $4::int[]) AS r(id, claim, seq)
WHERE e.id = r.id AND e.id BETWEEN $5 AND $6 AND e.status = 'RETRYING' AND e.claim = r.claim
RETURNING ",
    open_entry_columns!()
);

impl LeaderSession {
    /// Begins a claim: takes what is due until `due` within the given rooms, except the timers of `excluded` jobs (known to
    /// be undecidable before their instant).
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost, stand by.
    pub async fn claim(&mut self, rooms: &[Room], due: DateTime<Utc>, excluded: &[Uuid]) -> Result<Claim<'_>> {
        let shard = self.shard;
        let sent = Instant::now();
        let now = self.say_something().await?;
        let number = self.number_at(DbClock::from_round_trip(sent, Instant::now(), now).now());
        let transaction = bounded(self.connection.begin()).await?;
        let mut claim =
            Claim { transaction, shard, number, now, timers: Vec::new(), triggers: Vec::new(), retries: Vec::new() };
        if let Some(rooms) = Rooms::of(rooms, Source::Timer) {
            claim.take_timers(&rooms, due, excluded).await?;
        }
        if let Some(rooms) = Rooms::of(rooms, Source::Trigger) {
            claim.take_triggers(&rooms, due).await?;
        }
        if let Some(rooms) = Rooms::of(rooms, Source::Retry) {
            claim.take_retries(&rooms, due).await?;
        }
        Ok(claim)
    }
}

impl Claim<'_> {
    /// Whether nothing was due.
    pub const fn is_empty(&self) -> bool {
        self.timers.is_empty() && self.triggers.is_empty() && self.retries.is_empty()
    }

    /// Reads what jobs mean, each in a revision.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]; [`crate::Error::Unreadable`] for a job that this version cannot read.
    pub async fn definitions(&mut self, wanted: &[(Uuid, i64)]) -> Result<Vec<Definition>> {
        definitions_by_revision_on_conn(&mut self.transaction, wanted).await
    }

    /// Writes what was decided, notes the batch under `term`, and marks the batches `settled` (R7).
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
        let born = self.insert(term, &ids, decisions, settled).await?;
        self.move_timers(decisions, &born).await?;
        let retried = self.retry(decisions).await?;
        carillon_failpoint::reach("claim:commit").await;
        bounded(self.transaction.commit()).await?;
        Ok(Committed { born: born.into_iter().map(|(id, _, _)| id).collect(), retried })
    }

    async fn insert(
        &mut self,
        term: i64,
        ids: &[Uuid],
        decisions: &Decisions,
        settled: &[i64],
    ) -> Result<Vec<(Uuid, Uuid, bool)>> {
        let new = &decisions.executions;
        let rows = bounded(
            sqlx::query(EXECUTIONS_INSERT_BATCH)
                .bind(self.shard)
                .bind(self.number)
                .bind(term)
                .bind(ids)
                .bind(settled)
                .bind(new.iter().map(|new| new.id).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.job).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.seq).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.scheduled_at).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.max_retries).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.reason.as_deref()).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.payload.as_deref()).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.skipped).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.line.queue.as_str()).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.line.priority.rank()).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.platform_id.as_deref()).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.revision).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.created_by.as_str()).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.trace.map(|trace| trace.trace_id())).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.trace.map(|trace| trace.parent_span_id())).collect::<Vec<_>>())
                .bind(new.iter().map(|new| new.trace.map_or(1, |trace| i16::from(trace.flags))).collect::<Vec<_>>())
                .fetch_all(&mut *self.transaction),
        )
        .await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("job_id")?, row.try_get("opened")?))).collect()
    }

    /// R20: `claimed_count` grows only by what was really born.
    async fn move_timers(&mut self, decisions: &Decisions, born: &[(Uuid, Uuid, bool)]) -> Result<()> {
        let mut opened = std::collections::HashMap::<Uuid, i64>::new();
        for (_, job, _) in born.iter().filter(|(_, _, opened)| *opened) {
            *opened.entry(*job).or_default() += 1;
        }
        // One order for all who lock timers, so that no two wait for each other.
        let mut timers = decisions.timers.clone();
        timers.sort_unstable_by_key(|timer| timer.job);
        if timers.is_empty() {
            return Ok(());
        }
        bounded(
            sqlx::query(TIMERS_MOVE)
                .bind(timers.iter().map(|timer| timer.job).collect::<Vec<_>>())
                .bind(timers.iter().map(|timer| timer.to.is_some()).collect::<Vec<_>>())
                .bind(timers.iter().map(|timer| timer.to.and_then(|to| to.fire_at)).collect::<Vec<_>>())
                .bind(timers.iter().map(|timer| timer.to.is_some_and(|to| to.exhausted)).collect::<Vec<_>>())
                .bind(timers.iter().map(|timer| opened.get(&timer.job).copied().unwrap_or(0)).collect::<Vec<_>>())
                .execute(&mut *self.transaction),
        )
        .await?;
        Ok(())
    }

    async fn retry(&mut self, decisions: &Decisions) -> Result<Vec<OpenEntry>> {
        if decisions.retries.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = decisions.retries.iter().map(|(retry, _)| retry.execution).collect();
        let (first, last) = bounds(ids.iter().copied());
        let rows = bounded(
            sqlx::query(EXECUTIONS_RETRY)
                .bind(self.number)
                .bind(ids)
                .bind(decisions.retries.iter().map(|(retry, _)| retry.claim).collect::<Vec<_>>())
                .bind(decisions.retries.iter().map(|(_, seq)| *seq).collect::<Vec<_>>())
                .bind(first)
                .bind(last)
                .fetch_all(&mut *self.transaction),
        )
        .await?;
        rows.iter().map(read_open_entry).collect()
    }

    async fn take_timers(&mut self, rooms: &Rooms, due: DateTime<Utc>, excluded: &[Uuid]) -> Result<()> {
        let rows = bounded(
            sqlx::query(TIMERS_CLAIM_DUE)
                .bind(self.shard)
                .bind(&rooms.queues)
                .bind(&rooms.priorities)
                .bind(&rooms.rooms)
                .bind(due)
                .bind(excluded)
                .fetch_all(&mut *self.transaction),
        )
        .await?;
        for row in rows {
            self.timers.push(DueTimer {
                job: row.try_get("job_id")?,
                fire_at: row.try_get("fire_at")?,
                line: Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?)),
                revision: row.try_get("revision")?,
                claimed_count: row.try_get("claimed_count")?,
                open: row.try_get("open")?,
            });
        }
        Ok(())
    }

    async fn take_triggers(&mut self, rooms: &Rooms, due: DateTime<Utc>) -> Result<()> {
        let rows = bounded(
            sqlx::query(TRIGGERS_CLAIM_DUE)
                .bind(self.shard)
                .bind(&rooms.queues)
                .bind(&rooms.priorities)
                .bind(&rooms.rooms)
                .bind(due)
                .fetch_all(&mut *self.transaction),
        )
        .await?;
        for row in rows {
            self.triggers.push(DueTrigger {
                execution: row.try_get("execution_id")?,
                job: row.try_get("job_id")?,
                fire_at: row.try_get("fire_at")?,
                line: Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?)),
                revision: row.try_get("revision")?,
                open: row.try_get("open")?,
                platform_id: row.try_get("platform_id")?,
                payload: row.try_get("payload")?,
                trace: read_trace(&row)?,
                created_by: row.try_get("created_by")?,
            });
        }
        Ok(())
    }

    async fn take_retries(&mut self, rooms: &Rooms, due: DateTime<Utc>) -> Result<()> {
        let rows = bounded(
            sqlx::query(RETRIES_CLAIM_DUE)
                .bind(self.shard)
                .bind(&rooms.queues)
                .bind(&rooms.priorities)
                .bind(&rooms.rooms)
                .bind(due)
                .fetch_all(&mut *self.transaction),
        )
        .await?;
        for row in rows {
            self.retries.push(DueRetry {
                execution: row.try_get("execution_id")?,
                job: row.try_get("job_id")?,
                claim: row.try_get("claim")?,
            });
        }
        Ok(())
    }
}

/// The rooms of one source, column by column.
struct Rooms {
    queues: Vec<String>,
    priorities: Vec<i16>,
    rooms: Vec<i64>,
}

impl Rooms {
    fn of(rooms: &[Room], source: Source) -> Option<Self> {
        let chosen: Vec<&Room> = rooms.iter().filter(|room| room.source == source && room.room > 0).collect();
        if chosen.is_empty() {
            return None;
        }
        Some(Self {
            queues: chosen.iter().map(|room| room.line.queue.clone()).collect(),
            priorities: chosen.iter().map(|room| room.line.priority.rank()).collect(),
            rooms: chosen.iter().map(|room| room.room).collect(),
        })
    }
}
