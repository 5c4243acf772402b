//! What happened of late, for a person who watches (`carillon dev`). Not for programs: it looks at a window, by polling.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{Result, Store, days};

/// An execution as one line shows it.
#[derive(Clone, Debug, FromRow)]
pub struct Recent {
    /// Its id.
    pub id: Uuid,
    /// Name of its job.
    pub job_name: String,
    /// What it runs.
    pub handler_name: String,
    /// Where it stands.
    pub status: String,
    /// The latest attempt.
    pub attempt: i16,
    /// The instant it is due at.
    pub scheduled_at: DateTime<Utc>,
    /// Start of the latest attempt.
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached its final state.
    pub completed_at: Option<DateTime<Utc>>,
    /// When the next attempt is due.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// How long the latest attempt ran.
    pub duration_ms: Option<i64>,
    /// Why it was held back, skipped or ended.
    pub reason: Option<String>,
    /// Why the latest attempt failed.
    pub error: Option<String>,
}

/// The newest executions from the id `from` on, those of the newest batches from the number `batch` on (a fire of long ago
/// that was made up for is dated back), `limit` of each at most, and those of `also` whatever their age; ascending.
/// Ids are time-ordered, so `from` is a keyset over the primary key: a range of one partition, however long the history.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn list(store: &Store, from: Uuid, batch: i64, also: &[Uuid], limit: i64) -> Result<Vec<Recent>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "(SELECT id FROM carillon.job_executions WHERE id >= $1 ORDER BY id DESC LIMIT $2)
         UNION
         (SELECT unnest(ids) FROM carillon.dispatch_batches WHERE number >= $3 ORDER BY number DESC LIMIT $2)",
    )
    .bind(from)
    .bind(limit)
    .bind(batch)
    .fetch_all(&store.pool)
    .await?;
    let mut ids: Vec<Uuid> = ids.into_iter().chain(also.iter().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    let statement = "
        SELECT e.id, coalesce(r.definition ->> 'name', '?') AS job_name,
               coalesce(r.definition ->> 'handler_name', '?') AS handler_name, e.status, e.attempt,
               e.scheduled_at, e.started_at, e.completed_at, e.next_retry_at, e.duration_ms, e.reason, e.error
        FROM UNNEST($1::uuid[]) AS i(id) JOIN carillon.job_executions e ON e.id = i.id
        LEFT JOIN carillon.job_revisions r ON r.job_id = e.job_id AND r.revision = e.revision
        WHERE {days of e.id}
        ORDER BY e.id";
    Ok(sqlx::query_as(days::of(statement, ids.iter().copied())).bind(&ids).fetch_all(&store.pool).await?)
}
