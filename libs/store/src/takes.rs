//! R13: check-and-take. One SELECT shows what Postgres knows of a batch of doubtful entries, `carillon_core::take` decides,
//! one UPDATE that compares every value seen takes. R8a: the same SELECT serves ordinary entries that were named. R18a: what
//! is held and not started is released for whoever takes it next.
//!
//! Each may be run again: what a take or a release has won already, its row says.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use carillon_core::execution::Status;
use carillon_core::retry::Policy;
use carillon_core::take::Seen;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::definitions::{field, retry_of};
use crate::document::Document;
use crate::recorder::{Held, read_status};
use crate::{Error, Result, Store, days};

const EXECUTIONS_SEE: &str = "
SELECT e.id, e.status, e.claim, e.entry, e.take, e.revision, e.lost, e.worker_id, e.cancel_requested, e.withdrawn, e.misplaced,
       w.id IS NOT NULL AND NOT w.ended AND w.seen_at > now() - $2::interval AS live,
       COALESCE(w.ended, false) AS ended
FROM UNNEST($1::uuid[]) AS i(id)
JOIN carillon.job_executions e ON e.id = i.id
LEFT JOIN carillon.workers w ON w.id = e.worker_id
WHERE e.claim IS NOT NULL AND {days of e.id}";

/// What somebody else has locked is left as it is, and keeps no other waiting.
const EXECUTIONS_TAKE: &str = "
WITH free AS MATERIALIZED (
    SELECT e.id, t.lost
    FROM UNNEST($2::uuid[], $3::bigint[], $4::int[], $5::text[], $6::uuid[], $7::smallint[]) AS t(id, claim, take, status, worker_id, lost)
    JOIN carillon.job_executions e ON e.id = t.id
    WHERE {days of e.id} AND e.claim = t.claim AND e.take = t.take AND e.status = t.status
      AND e.worker_id IS NOT DISTINCT FROM t.worker_id
      -- R23a: changed since it was seen.
      AND NOT (e.status = 'QUEUED' AND e.misplaced)
    FOR NO KEY UPDATE OF e SKIP LOCKED
)
UPDATE carillon.job_executions e
SET status = 'RUNNING', worker_id = $1, take = e.take + 1, lost = e.lost + free.lost
FROM free
WHERE e.id = free.id AND {days of e.id}
RETURNING e.id, e.claim, e.take, e.revision, e.cancel_requested, e.withdrawn";

/// R13: a take that won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whose it is now.
    pub held: Held,
    /// R23a: the definition that it is to run with.
    pub revision: i64,
    /// A cancel was requested by then.
    pub cancel_requested: bool,
    /// It was withdrawn before its instant (R23).
    pub withdrawn: bool,
}

/// R18a. Of an ordinary entry whose holder has taken it out of what may start: raised once, whoever says it again. What somebody
/// else has locked keeps no other from being released.
const EXECUTIONS_RELEASE: &str = "
WITH free AS MATERIALIZED (
    SELECT e.id
    FROM UNNEST($1::uuid[], $2::bigint[], $3::int[]) AS r(id, claim, take)
    JOIN carillon.job_executions e ON e.id = r.id
    WHERE {days of e.id} AND e.claim = r.claim AND e.take = r.take AND e.status = 'QUEUED'
    FOR NO KEY UPDATE OF e SKIP LOCKED
)
UPDATE carillon.job_executions e SET take = e.take + 1
FROM free
WHERE e.id = free.id AND {days of e.id}
RETURNING e.id";

/// R17.
const EXECUTIONS_CANCELS: &str = "
SELECT e.id FROM UNNEST($1::uuid[], $2::bigint[], $3::int[]) AS h(id, claim, take)
JOIN carillon.job_executions e ON e.id = h.id AND e.claim = h.claim AND e.take = h.take
WHERE {days of e.id} AND e.cancel_requested AND e.status IN ('QUEUED', 'RUNNING')";

/// R23a: what an execution is to run with, by its row's revision. A trigger's payload is its own.
const EXECUTIONS_ADOPT: &str = "
SELECT e.id, e.job_id, e.revision, d.definition->'handler_name' AS handler,
       COALESCE(e.payload, d.definition->'payload')::text AS payload,
       d.definition->'timeout_ms' AS timeout_ms, d.definition->'max_retries' AS max_retries,
       d.definition->'retry_delay_ms' AS retry_delay_ms, d.definition->'retry_backoff' AS retry_backoff,
       d.definition->'retry_delay_cap_ms' AS retry_delay_cap_ms, d.definition->'retry_jitter_percent' AS retry_jitter_percent
FROM UNNEST($1::uuid[]) AS i(id)
JOIN carillon.job_executions e ON e.id = i.id
JOIN carillon.job_revisions d ON d.job_id = e.job_id AND d.revision = e.revision
WHERE {days of e.id}";

/// What became of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The row is QUEUED under the next take: whoever gets the entry may take it without a wait.
    Done,
    /// The attempt is recorded, claimed anew, or unknown: acknowledge (R12).
    Over,
    /// Somebody else has it, or has locked its row: leave it pending, forget it.
    Lost,
}

/// What an execution is to run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The row's revision.
    pub revision: i64,
    /// Name of the handler.
    pub handler: String,
    /// JSON text.
    pub payload: String,
    /// Milliseconds that the attempt may take.
    pub timeout_ms: i64,
    /// Retries after the first attempt.
    pub max_retries: i64,
    /// When they follow.
    pub retry: Policy,
}

/// A payload that did not travel in its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The row's revision, by which all else of what is to run goes (R23a). `None`: its definition is gone.
    pub revision: Option<i64>,
    /// JSON text. `None`: the definition has none that can be read.
    pub text: Option<String>,
}

impl Store {
    /// What Postgres shows of `executions`; one that it does not know is left out. A worker is live if seen within `lease`.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn executions_see(&self, executions: &[Uuid], lease: Duration) -> Result<HashMap<Uuid, Seen>> {
        let rows = sqlx::query(days::of(EXECUTIONS_SEE, executions.iter().copied()))
            .bind(executions)
            .bind(lease)
            .fetch_all(&self.pool)
            .await?;
        let mut seen = HashMap::with_capacity(rows.len());
        for row in rows {
            let what = Seen {
                status: read_status(row.try_get("status")?)?,
                claim: row.try_get("claim")?,
                entry: row.try_get("entry")?,
                take: row.try_get("take")?,
                revision: row.try_get("revision")?,
                lost: row.try_get("lost")?,
                worker: row.try_get("worker_id")?,
                worker_live: row.try_get("live")?,
                worker_ended: row.try_get("ended")?,
                cancel_requested: row.try_get("cancel_requested")?,
                withdrawn: row.try_get("withdrawn")?,
                misplaced: row.try_get("misplaced")?,
            };
            seen.insert(row.try_get("id")?, what);
        }
        Ok(seen)
    }

    /// Takes each execution as it was seen, with 1 where the loss of its holder counts. Answers the takes that won; the others have
    /// moved on, or somebody has locked them.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: a take may have won; the row then says RUNNING at oneself, not in hand, and is taken
    /// again.
    pub async fn executions_take(&self, worker: Uuid, wanted: &[(Uuid, Seen, bool)]) -> Result<Vec<Taken>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(days::of(EXECUTIONS_TAKE, wanted.iter().map(|(id, _, _)| *id)))
            .bind(worker)
            .bind(wanted.iter().map(|(id, _, _)| *id).collect::<Vec<_>>())
            .bind(wanted.iter().map(|(_, seen, _)| seen.claim).collect::<Vec<_>>())
            .bind(wanted.iter().map(|(_, seen, _)| seen.take).collect::<Vec<_>>())
            .bind(wanted.iter().map(|(_, seen, _)| seen.status.as_str()).collect::<Vec<_>>())
            .bind(wanted.iter().map(|(_, seen, _)| seen.worker).collect::<Vec<_>>())
            .bind(wanted.iter().map(|(_, _, lost)| i16::from(*lost)).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await?;
        let taken = |row: &PgRow| {
            let (execution, claim) = (row.try_get("id")?, row.try_get("claim")?);
            Ok(Taken {
                held: Held { execution, claim, take: row.try_get("take")? },
                revision: row.try_get("revision")?,
                cancel_requested: row.try_get("cancel_requested")?,
                withdrawn: row.try_get("withdrawn")?,
            })
        };
        rows.iter().map(taken).collect()
    }

    /// R18a: releases what its caller holds as ordinary and has taken out of what it may start, for good: each is QUEUED under
    /// the next take, so that whoever gets the entry need not wait for anybody's RUNNING. Answers what became of each, in
    /// order.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the outcome is not known; run the same again.
    pub async fn executions_release(&self, held: &[Held]) -> Result<Vec<Release>> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let ids = || held.iter().map(|held| held.execution);
        let released: Vec<Uuid> = sqlx::query_scalar(days::of(EXECUTIONS_RELEASE, ids()))
            .bind(ids().collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.claim).collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.take).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await?;
        let released: HashSet<Uuid> = released.into_iter().collect();
        let refused: Vec<Uuid> = ids().filter(|id| !released.contains(id)).collect();
        // Whether a worker lives is not asked for.
        let seen =
            if refused.is_empty() { HashMap::new() } else { self.executions_see(&refused, Duration::ZERO).await? };
        let outcome = |held: &Held| {
            if released.contains(&held.execution) {
                return Release::Done;
            }
            match seen.get(&held.execution) {
                None => Release::Over,
                Some(row) if row.claim != held.claim || row.status.is_final() || row.status == Status::Retrying => {
                    Release::Over
                }
                // Done by a run whose outcome was not known: only the holder of an ordinary entry raises it so.
                Some(row) if row.status == Status::Queued && row.take == held.take + 1 => Release::Done,
                Some(_) => Release::Lost,
            }
        };
        Ok(held.iter().map(outcome).collect())
    }

    /// R17: those of `held` that are open under their takes and whose cancel was requested.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn executions_cancels(&self, held: &[Held]) -> Result<Vec<Held>> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let ids = || held.iter().map(|held| held.execution);
        let requested: Vec<Uuid> = sqlx::query_scalar(days::of(EXECUTIONS_CANCELS, ids()))
            .bind(ids().collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.claim).collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.take).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await?;
        let requested: HashSet<Uuid> = requested.into_iter().collect();
        Ok(held.iter().filter(|held| requested.contains(&held.execution)).copied().collect())
    }

    /// R8a, R23a: what `executions` are to run with by their rows' revisions; `None` for a definition that this version cannot
    /// read, which is logged. One whose definition is gone is left out.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn executions_adopt(&self, executions: &[Uuid]) -> Result<HashMap<Uuid, Option<Adopted>>> {
        if executions.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query(days::of(EXECUTIONS_ADOPT, executions.iter().copied()))
            .bind(executions)
            .fetch_all(&self.pool)
            .await?;
        let mut adopted = HashMap::with_capacity(rows.len());
        for row in &rows {
            let what = match read_adopted(row) {
                Ok(what) => Some(what),
                Err(Error::Unreadable { what, why }) => {
                    let (job, revision): (Uuid, i64) = (row.try_get("job_id")?, row.try_get("revision")?);
                    tracing::error!(job.id = %job, revision, "{what} cannot be read, it does not start here: {why}");
                    None
                }
                Err(other) => return Err(other),
            };
            adopted.insert(row.try_get("id")?, what);
        }
        Ok(adopted)
    }

    /// Reads the payloads of executions whose entries do not carry them: their own, or that of the revision which they name
    /// (R23a). One whose payload is nowhere is left out.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn executions_payloads(&self, executions: &[Uuid]) -> Result<HashMap<Uuid, Payload>> {
        carillon_failpoint::reach("payloads:read").await;
        let statement = "SELECT e.id, r.revision, COALESCE(e.payload, r.definition -> 'payload')::text AS payload \
             FROM UNNEST($1::uuid[]) AS i(id) JOIN carillon.job_executions e ON e.id = i.id AND {days of e.id} \
             LEFT JOIN carillon.job_revisions r ON r.job_id = e.job_id AND r.revision = e.revision \
             WHERE e.payload IS NOT NULL OR r.job_id IS NOT NULL";
        let rows =
            sqlx::query(days::of(statement, executions.iter().copied())).bind(executions).fetch_all(&self.pool).await?;
        let read = |row: &PgRow| {
            Ok((row.try_get("id")?, Payload { revision: row.try_get("revision")?, text: row.try_get("payload")? }))
        };
        rows.iter().map(read).collect()
    }

    /// What an execution has as metadata so far.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn execution_metadata(&self, execution: Uuid) -> Result<Option<Value>> {
        let statement = "SELECT e.metadata FROM carillon.job_executions e WHERE e.id = $1 AND {days of e.id}";
        let row = sqlx::query_scalar::<_, Option<Document>>(days::of(statement, [execution]));
        let read = row.bind(execution).fetch_optional(&self.pool).await?;
        Ok(read.flatten().map(|metadata| metadata.value))
    }

    /// The last success of a job: its execution, its instant, and its result as JSON text.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn job_last_success(&self, job: Uuid) -> Result<Option<LastSuccess>> {
        let last = "SELECT last_success_id FROM carillon.job_stats WHERE job_id = $1";
        let last: Option<Option<Uuid>> = sqlx::query_scalar(last).bind(job).fetch_optional(&self.pool).await?;
        let Some(last) = last.flatten() else { return Ok(None) };
        let statement = "SELECT e.id, e.scheduled_at, e.completed_at, e.result::text AS result \
                         FROM carillon.job_executions e WHERE e.id = $1 AND {days of e.id}";
        let row = sqlx::query(days::of(statement, [last])).bind(last).fetch_optional(&self.pool).await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(LastSuccess {
            execution: row.try_get("id")?,
            scheduled_at: row.try_get("scheduled_at")?,
            completed_at: row.try_get("completed_at")?,
            result: row.try_get("result")?,
        }))
    }
}

fn read_adopted(row: &PgRow) -> Result<Adopted> {
    let payload: Option<String> = row.try_get("payload")?;
    let missing = || Error::Unreadable { what: "definition of a job", why: "payload is missing".into() };
    Ok(Adopted {
        revision: row.try_get("revision")?,
        handler: field(row, "handler")?,
        payload: payload.ok_or_else(missing)?,
        timeout_ms: field(row, "timeout_ms")?,
        max_retries: field(row, "max_retries")?,
        retry: retry_of(row)?,
    })
}

/// The last success of a job.
#[derive(Clone, Debug)]
pub struct LastSuccess {
    /// Which execution.
    pub execution: Uuid,
    /// Its instant.
    pub scheduled_at: chrono::DateTime<chrono::Utc>,
    /// When it ended.
    pub completed_at: Option<chrono::DateTime<chrono::Utc>>,
    /// JSON text of its result.
    pub result: Option<String>,
}
