//! R13: check-and-take. One SELECT shows what Postgres knows of a batch of doubtful entries, `carillon_core::take` decides,
//! one UPDATE that compares every value seen takes.

use std::collections::HashMap;
use std::time::Duration;

use carillon_core::take::Seen;
use sqlx::Row;
use uuid::Uuid;

use crate::recorder::{Held, read_status};
use crate::{Result, Store, days};

const EXECUTIONS_SEE: &str = "
SELECT e.id, e.status, e.claim, e.take, e.lost, e.worker_id, e.cancel_requested, e.withdrawn, e.reason,
       w.id IS NOT NULL AND NOT w.ended AND w.seen_at > now() - $2::interval AS live,
       COALESCE(w.ended, false) AS ended
FROM UNNEST($1::uuid[]) AS i(id)
JOIN job_executions e ON e.id = i.id
LEFT JOIN workers w ON w.id = e.worker_id
WHERE e.claim IS NOT NULL AND {days of e.id}";

const EXECUTIONS_TAKE: &str = "
UPDATE job_executions e
SET status = 'RUNNING', worker_id = $1, take = e.take + 1, lost = e.lost + t.lost
FROM UNNEST($2::uuid[], $3::bigint[], $4::int[], $5::text[], $6::uuid[], $7::smallint[]) AS t(id, claim, take, status, worker_id, lost)
WHERE e.id = t.id AND {days of e.id} AND e.claim = t.claim AND e.take = t.take AND e.status = t.status
  AND e.worker_id IS NOT DISTINCT FROM t.worker_id
RETURNING e.id, e.take";

impl Store {
    /// What Postgres shows of `executions`; one that it does not know is left out. A worker is live if seen within `lease`.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn see(&self, executions: &[Uuid], lease: Duration) -> Result<HashMap<Uuid, Seen>> {
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
                take: row.try_get("take")?,
                lost: row.try_get("lost")?,
                worker: row.try_get("worker_id")?,
                worker_live: row.try_get("live")?,
                worker_ended: row.try_get("ended")?,
                cancel_requested: row.try_get("cancel_requested")?,
                withdrawn: row.try_get("withdrawn")?,
            };
            seen.insert(row.try_get("id")?, what);
        }
        Ok(seen)
    }

    /// Takes each execution as it was seen, with 1 where the loss of its holder counts. Answers the takes that won.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: a take may have won; the row then says RUNNING at oneself, not in hand, and is taken
    /// again.
    pub async fn take(&self, worker: Uuid, wanted: &[(Uuid, Seen, bool)]) -> Result<Vec<Held>> {
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
        let claims: HashMap<Uuid, i64> = wanted.iter().map(|(id, seen, _)| (*id, seen.claim)).collect();
        let mut won = Vec::with_capacity(rows.len());
        for row in rows {
            let execution: Uuid = row.try_get("id")?;
            if let Some(claim) = claims.get(&execution) {
                won.push(Held { execution, claim: *claim, take: row.try_get("take")? });
            }
        }
        Ok(won)
    }

    /// Reads the payloads of executions whose entries do not carry them: their own, or that of the revision which they name
    /// (R23a). JSON text. One whose payload is nowhere is left out.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn payloads(&self, executions: &[Uuid]) -> Result<HashMap<Uuid, String>> {
        let statement = "SELECT e.id, COALESCE(e.payload, r.definition -> 'payload')::text AS payload \
             FROM UNNEST($1::uuid[]) AS i(id) JOIN job_executions e ON e.id = i.id AND {days of e.id} \
             LEFT JOIN job_revisions r ON e.payload IS NULL AND r.job_id = e.job_id AND r.revision = e.revision \
             WHERE e.payload IS NOT NULL OR r.job_id IS NOT NULL";
        let rows =
            sqlx::query(days::of(statement, executions.iter().copied())).bind(executions).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("payload")?))).collect()
    }

    /// The last success of a job: its execution, its instant, and its result as JSON text.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn last_success(&self, job: Uuid) -> Result<Option<LastSuccess>> {
        let last = "SELECT last_success_id FROM job_stats WHERE job_id = $1";
        let last: Option<Option<Uuid>> = sqlx::query_scalar(last).bind(job).fetch_optional(&self.pool).await?;
        let Some(last) = last.flatten() else { return Ok(None) };
        let statement = "SELECT e.id, e.scheduled_at, e.completed_at, e.result::text AS result \
                         FROM job_executions e WHERE e.id = $1 AND {days of e.id}";
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
