//! What executors write about executions: RUNNING (R10) and the end of an attempt (R11), a batch at a time.
//!
//! `finish` is the first of the three functions that write a final state (R17a). Statistics, logs, retries, attempts, failures and
//! the note that a job may be complete hang on what its UPDATE returned and on nothing else, so that running the same batch again
//! adds nothing (H17). An outcome that is not known (connection cut at COMMIT) or a deadlock is therefore answered by running
//! it again.
//!
//! Who finds a row locked waits for it, which in the ordinary case takes as long as another's commit. A lock that stays is a
//! [`crate::Error::Busy`] before long; then [`Store::executions_record_unlocked`] writes all but what is locked, without waiting.

mod unlocked;

use std::collections::HashMap;

use carillon_core::execution::Status;
use carillon_core::fingerprint;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::bounded::Connection;
use crate::columns::sparse;
use crate::{Error, Result, Store, days};

/// An execution that is in hand: what every guard compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// The execution.
    pub execution: Uuid,
    /// R0: as the entry says.
    pub claim: i64,
    /// R0: 0 for an ordinary one, else as it was taken.
    pub take: i32,
}

/// A handler that outlived a flush.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Which.
    pub held: Held,
    /// When its handler started, by the database's clock.
    pub started_at: DateTime<Utc>,
    /// Revision of the definition that it runs.
    pub revision: i64,
}

impl Started {
    /// Of what ended meanwhile, if its handler ever started.
    fn of(finished: &Finished) -> Option<Self> {
        Some(Self { held: finished.held, started_at: finished.started_at?, revision: finished.revision })
    }
}

/// One log line of a handler.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// By the database's clock.
    pub timestamp: DateTime<Utc>,
    /// DEBUG, INFO, WARN or ERROR.
    pub level: &'static str,
    /// What it says.
    pub message: String,
}

/// The end of an attempt.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Which.
    pub held: Held,
    /// Which attempt.
    pub attempt: i16,
    /// What ran, or was to run.
    pub handler: String,
    /// Revision of the definition that ran; of one that never started the row keeps its own.
    pub revision: i64,
    /// What follows, not yet knowing of a requested cancel.
    pub status: Status,
    /// Where the attempt failed: because it took too long.
    pub timed_out: bool,
    /// When its handler started; `None` if it never did.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended, by the database's clock.
    pub ended_at: DateTime<Utc>,
    /// Where the status is RETRYING: when the next attempt is due.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// Queue and priority rank, for the line that a retry waits in.
    pub queue: String,
    /// Rank of the priority.
    pub priority: i16,
    /// JSON text.
    pub result: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Where it failed.
    pub error_stack: Option<String>,
    /// Why it was ended otherwise.
    pub reason: Option<String>,
    /// What the execution has as metadata from now on, as JSON text; `None`: what it had.
    pub metadata: Option<String>,
    /// What the handler said.
    pub logs: Vec<LogLine>,
}

impl Finished {
    /// Whether nothing follows but that it has failed, unless a cancel was requested.
    const fn is_failure(&self) -> bool {
        matches!(self.status, Status::Failed | Status::Timeout)
    }

    fn fingerprint(&self) -> String {
        let [error, stack] = [&self.error, &self.error_stack].map(|text| text.as_deref().unwrap_or_default());
        fingerprint::of(&self.handler, error, stack)
    }

    /// Whether a row is written that is of this very attempt: of one that failed, or of what its handler said.
    fn names_its_attempt(&self) -> bool {
        matches!(self.status, Status::Retrying | Status::Failed | Status::Timeout) || !self.logs.is_empty()
    }
}

/// R10 to R12: what became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Written, and this is what follows. Acknowledge.
    Recorded(Status),
    /// Final, retrying, claimed anew, or unknown to the database. Acknowledge.
    Over {
        /// The database has no such execution.
        unknown: bool,
    },
    /// Somebody else has it. Acknowledge nothing.
    Lost,
    /// Somebody holds a lock on its row, or on the statistics of its job: nothing is written, try again later. Only
    /// [`Store::executions_record_unlocked`] answers this.
    Locked,
    /// R10: RUNNING is written.
    Running {
        /// A cancel was requested meanwhile: stop the handler.
        cancel_requested: bool,
    },
}

/// R10.
const EXECUTIONS_MARK_RUNNING: &str = "
UPDATE carillon.job_executions e SET status = 'RUNNING', worker_id = $1, started_at = i.started_at, revision = i.revision
FROM UNNEST($2::uuid[], $3::bigint[], $4::int[], $5::timestamptz[], $6::bigint[]) AS i(id, claim, take, started_at, revision)
WHERE e.id = i.id AND {days of e.id} AND e.claim = i.claim AND e.take = i.take AND e.status = 'QUEUED'
RETURNING e.id, e.claim, e.take, e.cancel_requested";

/// R11, R17a. One statement: the rows and all that follows from them. Expected plan: nested loops from the batch into the
/// primary keys (the pool of these connections allows nothing else); their days prune the partitions. Most ends are successes:
/// what only others have is sent for them alone, and what none has is neither sent nor looked for.
const EXECUTIONS_FINISH: &str = "
WITH input AS (
    SELECT * FROM UNNEST($2::uuid[], $3::bigint[], $4::int[], $5::text[], $6::timestamptz[], $7::timestamptz[],
                         $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::smallint[],
                         $15::smallint[], $16::bigint[], $17::bool[], $25::text[], $26::text[], $27::text[])
      AS i(id, claim, take, status, started_at, ended_at, next_retry_at, result, error, error_stack, reason, queue, priority,
           attempt, revision, timed_out, metadata, handler, fingerprint)
), finished AS (
    UPDATE carillon.job_executions e
    SET status = CASE WHEN e.cancel_requested AND i.status IN ('RETRYING', 'FAILED', 'TIMEOUT') THEN 'CANCELLED' ELSE i.status END,
        started_at = COALESCE(i.started_at, e.started_at),
        revision = CASE WHEN i.started_at IS NULL THEN e.revision ELSE i.revision END,
        completed_at = CASE WHEN i.status <> 'RETRYING' OR e.cancel_requested THEN i.ended_at END,
        next_retry_at = CASE WHEN i.status = 'RETRYING' AND NOT e.cancel_requested THEN i.next_retry_at END,
        duration_ms = CASE WHEN i.started_at IS NOT NULL THEN (EXTRACT(EPOCH FROM i.ended_at - i.started_at) * 1000)::bigint END,
        worker_id = $1,
        result = i.result::jsonb, error = i.error, error_stack = i.error_stack,
        metadata = COALESCE(i.metadata::jsonb, e.metadata),
        -- Whoever asked for a cancel said why; of what succeeded all the same it says nothing.
        reason = CASE WHEN NOT e.cancel_requested THEN COALESCE(i.reason, e.reason)
                      WHEN i.status = 'SUCCESS' THEN i.reason
                      ELSE COALESCE(e.reason, i.reason) END
    FROM input i
    WHERE e.id = i.id AND {days of e.id} AND e.claim = i.claim AND e.take = COALESCE(i.take, 0)
      AND (e.status = 'QUEUED' OR e.status = 'RUNNING' AND e.worker_id = $1)
      -- What a change of the job has brought back meanwhile does not end by having been withdrawn.
      AND (i.status <> 'SKIPPED' OR e.cancel_requested)
    RETURNING e.id, e.job_id, e.shard, e.claim, e.take, e.status, e.completed_at, e.duration_ms, i.next_retry_at, i.queue, i.priority,
              i.attempt, i.status AS ended, i.timed_out, i.started_at, i.ended_at, i.error, i.error_stack,
              e.platform_id, i.handler, i.fingerprint
), stats AS (
    UPDATE carillon.job_stats s
    SET finished_count = s.finished_count + f.finished,
        success_count = s.success_count + f.succeeded,
        failure_count = s.failure_count + f.failed,
        total_duration_ms = s.total_duration_ms + f.duration_ms,
        last_duration_ms = COALESCE(f.last_duration_ms, s.last_duration_ms),
        last_run_at = GREATEST(s.last_run_at, f.last_run_at),
        last_success_id = GREATEST(s.last_success_id, f.last_success_id)
    FROM (
        SELECT job_id, count(*) AS finished,
               count(*) FILTER (WHERE status = 'SUCCESS') AS succeeded,
               count(*) FILTER (WHERE status IN ('FAILED', 'TIMEOUT')) AS failed,
               -- Of what counts as success or failure: what was cancelled says nothing about how long a run takes.
               COALESCE(sum(duration_ms) FILTER (WHERE status IN ('SUCCESS', 'FAILED', 'TIMEOUT')), 0)::bigint AS duration_ms,
               max(duration_ms) AS last_duration_ms,
               max(completed_at) AS last_run_at,
               max(id::text) FILTER (WHERE status = 'SUCCESS')::uuid AS last_success_id
        FROM finished WHERE status <> 'RETRYING' GROUP BY job_id ORDER BY job_id
    ) f
    WHERE s.job_id = f.job_id
), retries AS (
    INSERT INTO carillon.execution_retries (execution_id, job_id, shard, claim, due_at, queue, priority)
    SELECT id, job_id, shard, claim, next_retry_at, queue, priority FROM finished
    WHERE cardinality($8::timestamptz[]) > 0 AND status = 'RETRYING'
    ON CONFLICT (execution_id) DO UPDATE SET claim = EXCLUDED.claim, due_at = EXCLUDED.due_at
), attempts AS (
    INSERT INTO carillon.execution_attempts (execution_id, attempt, status, started_at, ended_at, worker_id, error, error_stack)
    SELECT id, attempt, CASE WHEN timed_out THEN 'TIMEOUT' ELSE 'FAILED' END, started_at, ended_at, $1, error, error_stack
    FROM finished WHERE cardinality($15::smallint[]) > 0 AND ended IN ('RETRYING', 'FAILED', 'TIMEOUT')
    ON CONFLICT DO NOTHING
), failures AS (
    INSERT INTO carillon.execution_failures (execution_id, job_id, status, ended_at, platform_id, handler_name, fingerprint)
    SELECT id, job_id, status, completed_at, platform_id, handler, fingerprint
    FROM finished WHERE cardinality($26::text[]) > 0 AND status IN ('FAILED', 'TIMEOUT')
    ON CONFLICT (execution_id) DO UPDATE
    SET status = EXCLUDED.status, ended_at = EXCLUDED.ended_at, handler_name = EXCLUDED.handler_name,
        fingerprint = EXCLUDED.fingerprint
), logs AS (
    INSERT INTO carillon.job_execution_logs (execution_id, attempt, line, timestamp, level, message)
    SELECT l.id, l.attempt, l.line, l.timestamp, l.level, l.message
    FROM UNNEST($18::uuid[], $19::smallint[], $20::int[], $21::timestamptz[], $22::text[], $23::text[])
         AS l(id, attempt, line, timestamp, level, message)
    -- Not a join: without hash joins that would compare each line with each row. IS TRUE makes it a hashed look-up
    -- (measured with 1,000 ends of two lines each: 320 ms as a join, 65 ms so; 28 November).
    WHERE cardinality($18::uuid[]) > 0 AND ((l.id, l.attempt) IN (SELECT id, attempt FROM finished)) IS TRUE
    ON CONFLICT DO NOTHING
), notes AS (
    INSERT INTO carillon.job_attention (job_id) SELECT DISTINCT job_id FROM finished
    WHERE cardinality($24::uuid[]) > 0 AND status <> 'RETRYING' AND job_id = ANY ($24)
)
SELECT id, claim, take, status FROM finished";

/// For what a guarded UPDATE did not return.
const EXECUTIONS_LOOK: &str = "
SELECT e.id, e.claim, e.take, e.status, e.worker_id, e.cancel_requested FROM UNNEST($1::uuid[]) AS i(id)
JOIN carillon.job_executions e ON e.id = i.id AND {days of e.id}";

impl Store {
    /// R10 and R11: one flush of `worker`, one transaction. `ended_jobs` are those whose last fire is among the finished: a
    /// note is left that they may be complete ([`crate::attention`]). Answers a verdict for each, first of `started`, then of
    /// `finished`. It touches the fewest partitions, and deadlocks with the fewest others, if all are of one day and in the
    /// order of their ids.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Conflict`]: run the same again. [`Error::Busy`]: something is locked for long, see
    /// [`Store::executions_record_unlocked`]. [`Error::Data`]: one of them holds something that Postgres cannot hold.
    pub async fn executions_record(
        &self,
        worker: Uuid,
        started: &[Started],
        finished: &[Finished],
        ended_jobs: &[Uuid],
    ) -> Result<(Vec<Verdict>, Vec<Verdict>)> {
        let mut connection = self.pool.acquire().await?;
        if started.is_empty() {
            // A single statement is a transaction of its own: one round trip.
            let finished = finish_on_conn(&mut connection, Some(worker), &refs(finished), ended_jobs).await?;
            carillon_failpoint::reach("record:committed").await;
            return Ok((Vec::new(), finished));
        }
        let mut transaction = connection.begin().await?;
        let started = mark_running_on_conn(&mut transaction, worker, &refs(started)).await?;
        let finished = finish_on_conn(&mut transaction, Some(worker), &refs(finished), ended_jobs).await?;
        carillon_failpoint::reach("record:commit").await;
        transaction.commit().await?;
        carillon_failpoint::reach("record:committed").await;
        Ok((started, finished))
    }

    /// Whether these ends would be written: [`Store::executions_record`], and none of it is done.
    ///
    /// # Errors
    /// As that one.
    pub async fn executions_rehearse_record(
        &self,
        worker: Uuid,
        finished: &[Finished],
        ended_jobs: &[Uuid],
    ) -> Result<()> {
        let mut transaction = self.pool.begin().await?;
        finish_on_conn(&mut transaction, Some(worker), &refs(finished), ended_jobs).await?;
        // Rolled back where it is dropped.
        Ok(())
    }
}

async fn mark_running_on_conn(connection: &mut Connection, worker: Uuid, started: &[&Started]) -> Result<Vec<Verdict>> {
    if started.is_empty() {
        return Ok(Vec::new());
    }
    let held: Vec<Held> = started.iter().map(|started| started.held).collect();
    let rows = sqlx::query(days::of(EXECUTIONS_MARK_RUNNING, ids_of(&held)))
        .bind(worker)
        .bind(held.iter().map(|held| held.execution).collect::<Vec<_>>())
        .bind(held.iter().map(|held| held.claim).collect::<Vec<_>>())
        .bind(held.iter().map(|held| held.take).collect::<Vec<_>>())
        .bind(started.iter().map(|started| started.started_at).collect::<Vec<_>>())
        .bind(started.iter().map(|started| started.revision).collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
    let mut written = HashMap::new();
    for row in rows {
        let cancel_requested = row.try_get("cancel_requested")?;
        written.insert(held_of(&row)?, Verdict::Running { cancel_requested });
    }
    judge_on_conn(connection, Some(worker), &held, written).await
}

/// Without a worker (R17b) only what is QUEUED is finished.
async fn finish_on_conn(
    connection: &mut Connection,
    worker: Option<Uuid>,
    finished: &[&Finished],
    ended_jobs: &[Uuid],
) -> Result<Vec<Verdict>> {
    if finished.is_empty() {
        return Ok(Vec::new());
    }
    let held: Vec<Held> = finished.iter().map(|finished| finished.held).collect();
    let logs = LogColumns::of(finished);
    let rows = sqlx::query(days::of(EXECUTIONS_FINISH, ids_of(&held)))
        .bind(worker)
        .bind(held.iter().map(|held| held.execution).collect::<Vec<_>>())
        .bind(held.iter().map(|held| held.claim).collect::<Vec<_>>())
        .bind(sparse(finished, |end| Some(end.held.take).filter(|take| *take != 0)))
        .bind(finished.iter().map(|finished| finished.status.as_str()).collect::<Vec<_>>())
        .bind(finished.iter().map(|finished| finished.started_at).collect::<Vec<_>>())
        .bind(finished.iter().map(|finished| finished.ended_at).collect::<Vec<_>>())
        .bind(sparse(finished, |end| end.next_retry_at))
        .bind(sparse(finished, |end| end.result.as_deref()))
        .bind(sparse(finished, |end| end.error.as_deref()))
        .bind(sparse(finished, |end| end.error_stack.as_deref()))
        .bind(sparse(finished, |end| end.reason.as_deref()))
        .bind(sparse(finished, |end| end.next_retry_at.is_some().then_some(end.queue.as_str())))
        .bind(sparse(finished, |end| end.next_retry_at.is_some().then_some(end.priority)))
        .bind(sparse(finished, |end| end.names_its_attempt().then_some(end.attempt)))
        .bind(finished.iter().map(|finished| finished.revision).collect::<Vec<_>>())
        .bind(sparse(finished, |end| end.timed_out.then_some(true)))
        .bind(logs.ids)
        .bind(logs.attempts)
        .bind(logs.lines)
        .bind(logs.timestamps)
        .bind(logs.levels)
        .bind(logs.messages)
        .bind(ended_jobs)
        .bind(sparse(finished, |end| end.metadata.as_deref()))
        .bind(sparse(finished, |end| end.is_failure().then_some(end.handler.as_str())))
        .bind(sparse(finished, |end| end.is_failure().then(|| end.fingerprint())))
        .fetch_all(&mut *connection)
        .await?;
    let mut written = HashMap::with_capacity(rows.len());
    for row in rows {
        let status = read_status(row.try_get("status")?)?;
        written.insert(held_of(&row)?, Verdict::Recorded(status));
    }
    judge_on_conn(connection, worker, &held, written).await
}

/// Which of those in hand a row was written for: of two attempts of one execution in a flush only one can be it.
fn held_of(row: &PgRow) -> Result<Held> {
    Ok(Held { execution: row.try_get("id")?, claim: row.try_get("claim")?, take: row.try_get("take")? })
}

/// R11: for the rows that a guarded UPDATE did not return, one SELECT says why.
async fn judge_on_conn(
    connection: &mut Connection,
    worker: Option<Uuid>,
    held: &[Held],
    written: HashMap<Held, Verdict>,
) -> Result<Vec<Verdict>> {
    let refused: Vec<Uuid> =
        held.iter().filter(|held| !written.contains_key(*held)).map(|held| held.execution).collect();
    let mut seen = HashMap::new();
    if !refused.is_empty() {
        for row in
            sqlx::query(days::of(EXECUTIONS_LOOK, refused.iter().copied())).bind(&refused).fetch_all(connection).await?
        {
            let status = read_status(row.try_get("status")?)?;
            let claim: Option<i64> = row.try_get("claim")?;
            let take: i32 = row.try_get("take")?;
            let worker_id: Option<Uuid> = row.try_get("worker_id")?;
            let cancel_requested: bool = row.try_get("cancel_requested")?;
            seen.insert(row.try_get::<Uuid, _>("id")?, (claim, take, status, worker_id, cancel_requested));
        }
    }
    let verdicts = held.iter().map(|held| match (written.get(held), seen.get(&held.execution)) {
        (Some(verdict), _) => *verdict,
        (None, None) => Verdict::Over { unknown: true },
        (None, Some((claim, take, status, worker_id, cancel_requested))) => {
            if *claim != Some(held.claim) || status.is_final() || *status == Status::Retrying {
                Verdict::Over { unknown: false }
            } else if *status == Status::Running && worker.is_some() && *worker_id == worker && *take == held.take {
                // Already marked by a flush whose outcome was not known.
                Verdict::Running { cancel_requested: *cancel_requested }
            } else {
                Verdict::Lost
            }
        }
    });
    Ok(verdicts.collect())
}

pub(crate) fn read_status(text: &str) -> Result<Status> {
    text.parse().map_err(|error: carillon_core::job::UnknownWord| Error::Unreadable {
        what: "status of an execution",
        why: error.to_string(),
    })
}

fn ids_of(held: &[Held]) -> impl Iterator<Item = Uuid> {
    held.iter().map(|held| held.execution)
}

fn refs<T>(items: &[T]) -> Vec<&T> {
    items.iter().collect()
}

#[derive(Default)]
struct LogColumns<'a> {
    ids: Vec<Uuid>,
    attempts: Vec<i16>,
    lines: Vec<i32>,
    timestamps: Vec<DateTime<Utc>>,
    levels: Vec<&'a str>,
    messages: Vec<&'a str>,
}

impl<'a> LogColumns<'a> {
    fn of(finished: &[&'a Finished]) -> Self {
        let mut columns = Self::default();
        for finished in finished {
            for (line, log) in (1..).zip(&finished.logs) {
                columns.ids.push(finished.held.execution);
                columns.attempts.push(finished.attempt);
                columns.lines.push(line);
                columns.timestamps.push(log.timestamp);
                columns.levels.push(log.level);
                columns.messages.push(&log.message);
            }
        }
        columns
    }
}
