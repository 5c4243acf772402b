//! R17b: what was cancelled or withdrawn and is read by nobody. A dispatcher looks here which executions may be such, asks
//! Redis whether somebody holds their entries, and ends those that nobody does.
//!
//! An end is R11's statement without a worker: only what is still QUEUED under the claim and the take that were seen. So
//! whoever was quicker, an executor's RUNNING, a take or another dispatcher, leaves nothing to end, and running it again
//! after an unknown outcome adds nothing.

use carillon_core::execution::Status;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::history::Walk;
use crate::recorder::{Finished, Held, Verdict};
use crate::{Result, Store, clock, days};

/// Executions looked at or ended in one call, at most.
pub const WITHDRAWN_MAX: usize = 1_000;

/// A notice may be this late: what was still to come when its job changed may be past.
const NOTICE_LATE_MAX: chrono::TimeDelta = chrono::TimeDelta::minutes(1);

/// Claimed, in a batch that is settled (what is not may still be published), QUEUED, and to be ended.
const EXECUTIONS_WITHDRAWN: &str = "
SELECT e.id, e.job_id, e.claim, e.take, e.entry, e.seq, e.queue, e.priority, e.attempt, e.revision, e.withdrawn
FROM UNNEST($1::uuid[]) AS i(id)
JOIN carillon.job_executions e ON e.id = i.id
WHERE {days of e.id} AND e.shard = $2 AND e.status = 'QUEUED' AND e.cancel_requested AND e.claim IS NOT NULL
  AND NOT EXISTS (SELECT FROM carillon.dispatch_batches b WHERE b.shard = e.shard AND b.number = e.entry AND b.settled_at IS NULL)
ORDER BY e.id";

const EXECUTIONS_ENTRIES: &str = "
SELECT e.id, e.entry, e.seq, e.queue, e.priority FROM UNNEST($1::uuid[]) AS i(id) JOIN carillon.job_executions e ON e.id = i.id
WHERE {days of e.id} AND e.entry IS NOT NULL";

/// An execution that is to end without a start, unless somebody holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// What its end is guarded by.
    pub held: Held,
    /// Its job.
    pub job: Uuid,
    /// Where its entry stands.
    pub place: Place,
    /// Which attempt.
    pub attempt: i16,
    /// The definition that it was to run with.
    pub revision: i64,
    /// Withdrawn before its instant (R23), so SKIPPED; else CANCELLED.
    pub withdrawn: bool,
}

/// Where an entry stands: R12 acknowledges it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The stream.
    pub line: Line,
    /// R0: number of the batch.
    pub entry: i64,
    /// R0: place in that batch.
    pub seq: i32,
}

impl Withdrawn {
    /// R18a: nobody may start it without a take, which its end is guarded by.
    pub const fn is_released(&self) -> bool {
        self.held.take > 0
    }
}

impl Store {
    /// Those of `executions` ([`WITHDRAWN_MAX`] at most) that are to end and that somebody may hold, or nobody.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn executions_withdrawn(&self, shard: i16, executions: &[Uuid]) -> Result<Vec<Withdrawn>> {
        if executions.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(days::of(EXECUTIONS_WITHDRAWN, executions.iter().copied()))
            .bind(executions)
            .bind(shard)
            .fetch_all(&self.pool)
            .await?;
        let read = |row: &PgRow| {
            let (execution, claim) = (row.try_get("id")?, row.try_get("claim")?);
            Ok(Withdrawn {
                held: Held { execution, claim, take: row.try_get("take")? },
                job: row.try_get("job_id")?,
                place: read_place(row)?,
                attempt: row.try_get("attempt")?,
                revision: row.try_get("revision")?,
                withdrawn: row.try_get("withdrawn")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// What a change of `job`, heard of now, has withdrawn: executions whose instants are to come, or have just passed.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn executions_withdrawn_of_job(&self, job: Uuid) -> Result<Vec<Uuid>> {
        let mut walk = Walk::ahead(job, clock::now(self).await? - NOTICE_LATE_MAX);
        let mut connection = self.pool.acquire().await?;
        // A page is enough: whatever else is to come of the job is met by the set, and by the walk over the batches.
        let page = walk.page(&mut connection).await?.unwrap_or_default();
        let withdrawn = page.iter().filter(|seen| seen.is_queued() && seen.cancel_requested && seen.claim.is_some());
        Ok(withdrawn.map(|seen| seen.id).take(WITHDRAWN_MAX).collect())
    }

    /// R17b: ends what is still as it was seen, CANCELLED or SKIPPED. Answers what it
    /// ended and where the entries of that stand now, to be acknowledged (R12). What somebody has locked stays for the next
    /// pass.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`], [`crate::Error::Conflict`], [`crate::Error::Busy`]: run the same again.
    pub async fn executions_end_unread(&self, withdrawn: &[Withdrawn]) -> Result<Vec<(Uuid, Option<Place>)>> {
        if withdrawn.is_empty() {
            return Ok(Vec::new());
        }
        let ended_at = clock::now(self).await?;
        let ends: Vec<Finished> = withdrawn.iter().map(|what| what.end(ended_at)).collect();
        let mut jobs: Vec<Uuid> = withdrawn.iter().map(|what| what.job).collect();
        jobs.sort_unstable();
        jobs.dedup();
        let (_, verdicts) = self.record_unlocked_by(None, &[], &ends, &jobs).await?;
        let ended = ends.iter().zip(verdicts).filter(|(_, verdict)| matches!(verdict, Verdict::Recorded(_)));
        let ended: Vec<Uuid> = ended.map(|(end, _)| end.held.execution).collect();
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        let rows =
            sqlx::query(days::of(EXECUTIONS_ENTRIES, ended.iter().copied())).bind(&ended).fetch_all(&self.pool).await?;
        let mut places = std::collections::HashMap::with_capacity(rows.len());
        for row in &rows {
            places.insert(row.try_get::<Uuid, _>("id")?, read_place(row)?);
        }
        Ok(ended.into_iter().map(|execution| (execution, places.remove(&execution))).collect())
    }
}

impl Withdrawn {
    /// Its reason was written by whoever asked for it.
    fn end(&self, ended_at: DateTime<Utc>) -> Finished {
        Finished {
            held: self.held,
            attempt: self.attempt,
            // Named where it fails, and this one does not.
            handler: String::new(),
            revision: self.revision,
            status: if self.withdrawn { Status::Skipped } else { Status::Cancelled },
            timed_out: false,
            started_at: None,
            ended_at,
            next_retry_at: None,
            queue: self.place.line.queue.clone(),
            priority: self.place.line.priority.rank(),
            result: None,
            error: None,
            error_stack: None,
            reason: None,
            metadata: None,
            logs: Vec::new(),
        }
    }
}

fn read_place(row: &PgRow) -> Result<Place> {
    Ok(Place {
        line: Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?)),
        entry: row.try_get("entry")?,
        seq: row.try_get("seq")?,
    })
}
