//! Reads a history from where it was written.

use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row as _};

use super::{Execution, History, Job, Stream};
use crate::journal;
use crate::resp::RespClient;

/// The consumer group of every stream.
const GROUP: &str = "executors";

impl History {
    /// Reads the whole of a database, a journal and a Redis (all namespaces in it). Statements see one snapshot, so that
    /// counters and rows belong together also while work goes on.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub async fn load(pool: &PgPool, journal: &Path, redis_port: u16) -> Result<Self> {
        let mut history = Self { streams: streams(redis_port)?, ..Self::default() };
        history.read_postgres(pool).await?;
        // Last: a record whose run is not in the journal is a violation, so the journal must not be older.
        history.journal = journal::read(journal)?;
        Ok(history)
    }

    async fn read_postgres(&mut self, pool: &PgPool) -> Result<()> {
        let mut snapshot = pool.begin().await?;
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *snapshot).await?;
        let jobs = sqlx::query(
            "SELECT j.id, j.name, j.allow_overlap, coalesce(t.claimed_count, 0) AS claimed,
                    coalesce(s.finished_count, 0) AS finished, coalesce(s.success_count, 0) AS succeeded,
                    coalesce(s.failure_count, 0) AS failed,
                    coalesce(t.fire_at <= now(), false) AS overdue
             FROM jobs j LEFT JOIN job_timers t ON t.job_id = j.id LEFT JOIN job_stats s ON s.job_id = j.id
             ORDER BY j.id",
        );
        for row in jobs.fetch_all(&mut *snapshot).await? {
            if row.try_get("overdue")? {
                self.overdue.push(row.try_get("id")?);
            }
            self.jobs.push(Job {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                allow_overlap: row.try_get("allow_overlap")?,
                claimed_count: row.try_get("claimed")?,
                finished_count: row.try_get("finished")?,
                success_count: row.try_get("succeeded")?,
                failure_count: row.try_get("failed")?,
            });
        }
        let executions = sqlx::query(
            "SELECT id, job_id, scheduled_at, status, attempt, take, claim IS NOT NULL AS claimed, started_at, completed_at
             FROM job_executions ORDER BY id",
        );
        for row in executions.fetch_all(&mut *snapshot).await? {
            let status: String = row.try_get("status")?;
            self.executions.push(Execution {
                id: row.try_get("id")?,
                job: row.try_get("job_id")?,
                scheduled_at: row.try_get::<DateTime<Utc>, _>("scheduled_at")?,
                status: status.parse().with_context(|| format!("status {status}"))?,
                attempt: u32::try_from(row.try_get::<i16, _>("attempt")?)?,
                take: u32::try_from(row.try_get::<i32, _>("take")?)?,
                claimed: row.try_get("claimed")?,
                started_at: row.try_get("started_at")?,
                completed_at: row.try_get("completed_at")?,
            });
        }
        self.unsettled = sqlx::query_scalar("SELECT number FROM dispatch_batches WHERE settled_at IS NULL")
            .fetch_all(&mut *snapshot)
            .await?;
        let kept = "SELECT number FROM dispatch_batches b WHERE settled_at IS NOT NULL
                    AND number < (SELECT max(number) FROM dispatch_batches WHERE shard = b.shard) ORDER BY number";
        self.kept = sqlx::query_scalar(kept).fetch_all(&mut *snapshot).await?;
        self.retries_waiting =
            sqlx::query_scalar("SELECT execution_id FROM execution_retries").fetch_all(&mut *snapshot).await?;
        self.attention_waiting =
            sqlx::query_scalar("SELECT job_id FROM job_attention").fetch_all(&mut *snapshot).await?;
        self.triggers_waiting =
            sqlx::query_scalar("SELECT execution_id FROM job_triggers").fetch_all(&mut *snapshot).await?;
        Ok(())
    }
}

/// Every stream in this Redis, whoever made it.
fn streams(redis_port: u16) -> Result<Vec<Stream>> {
    let mut client = RespClient::connect(redis_port)?;
    let mut streams = Vec::new();
    let keys = client.command(&["KEYS", "*"])?;
    for key in keys.list().iter().filter_map(|key| key.text()) {
        if client.command(&["TYPE", key])?.text() != Some("stream") {
            continue;
        }
        let length = client.command(&["XLEN", key])?.number().unwrap_or_default();
        // A stream without its group has nothing pending.
        let pending = client.command(&["XPENDING", key, GROUP]).ok();
        let pending = pending.and_then(|reply| reply.list().first().and_then(|count| count.number()));
        streams.push(Stream { key: key.to_owned(), length, pending: pending.unwrap_or_default() });
    }
    Ok(streams)
}
