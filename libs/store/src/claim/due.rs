//! R5, R16: what a claim takes, from each of its sources, line by line. Whoever has locked some of it keeps that, and nobody waits.

use carillon_core::agenda::Source;
use carillon_core::ids;
use carillon_core::job::Priority;
use carillon_core::line::Line;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Claim, DueRetry, DueTimer, DueTrigger, Room};
use crate::open_entries::read_trace;
use crate::{Result, days};

const TIMERS_CLAIM_DUE: &str = "
SELECT t.job_id, t.fire_at, t.queue, t.priority, t.revision, t.claimed_count, t.claimed_count - s.finished_count AS open
FROM UNNEST($2::text[], $3::smallint[], $4::bigint[]) AS l(queue, priority, room)
CROSS JOIN LATERAL (
    SELECT * FROM carillon.job_timers t
    WHERE t.shard = $1 AND t.queue = l.queue AND t.priority = l.priority AND t.fire_at <= $5
      AND t.job_id NOT IN (SELECT id FROM UNNEST($6::uuid[]) AS excluded(id))
    ORDER BY t.fire_at LIMIT l.room FOR UPDATE SKIP LOCKED
) t
JOIN carillon.job_stats s ON s.job_id = t.job_id";

/// The timer of a trigger's job is locked with it; what is locked by somebody else is passed over, and does not count. Only a
/// payload that travels in an entry is read: the others never leave the database ([`super`]'s `EXECUTIONS_INSERT_BATCH`).
const TRIGGERS_CLAIM_DUE: &str = "
SELECT d.execution_id, d.job_id, d.fire_at, d.queue, d.priority, d.platform_id, d.trace_id, d.parent_span_id, d.trace_flags,
       d.created_by, d.revision, d.claimed_count - s.finished_count AS open, d.payload IS NOT NULL AS own_payload,
       CASE WHEN pg_column_size(d.payload) <= 4096 AND octet_length(d.payload::text) <= 4096 THEN d.payload::text END AS payload,
       d.metadata IS NOT NULL AS own_metadata,
       COALESCE(pg_column_size(d.payload), 0) + COALESCE(pg_column_size(d.metadata), 0) AS documents_stored
FROM UNNEST($2::text[], $3::smallint[], $4::bigint[]) AS l(queue, priority, room)
CROSS JOIN LATERAL (
    SELECT t.*, m.revision, m.claimed_count
    FROM carillon.job_triggers t JOIN carillon.job_timers m ON m.job_id = t.job_id
    WHERE t.shard = $1 AND t.queue = l.queue AND t.priority = l.priority AND t.fire_at <= $5
      AND t.execution_id NOT IN (SELECT id FROM UNNEST($6::uuid[]) AS excluded(id))
    ORDER BY t.fire_at LIMIT l.room FOR UPDATE SKIP LOCKED
) d
JOIN carillon.job_stats s ON s.job_id = d.job_id
ORDER BY d.fire_at, d.execution_id";

const RETRIES_CLAIM_DUE: &str = "
SELECT d.execution_id, d.job_id, d.claim
FROM UNNEST($2::text[], $3::smallint[], $4::bigint[]) AS l(queue, priority, room)
CROSS JOIN LATERAL (
    SELECT r.* FROM carillon.execution_retries r
    WHERE r.shard = $1 AND r.queue = l.queue AND r.priority = l.priority AND r.due_at <= $5
      AND r.execution_id NOT IN (SELECT id FROM UNNEST($6::uuid[]) AS excluded(id))
    ORDER BY r.due_at LIMIT l.room FOR UPDATE SKIP LOCKED
) d";

/// Locks the executions too. One that somebody else has locked is tried again soon, alone; the notes of the others are taken
/// out. Answers the locked ones.
const RETRIES_TAKE: &str = "
WITH free AS MATERIALIZED (
    SELECT e.id FROM carillon.job_executions e WHERE e.id = ANY ($1) AND {days of e.id} FOR NO KEY UPDATE SKIP LOCKED
), locked AS MATERIALIZED (
    SELECT e.id FROM carillon.job_executions e
    WHERE e.id = ANY ($1) AND {days of e.id} AND e.status = 'RETRYING' AND e.id NOT IN (SELECT id FROM free)
), later AS (
    UPDATE carillon.execution_retries SET due_at = clock_timestamp() + interval '400 milliseconds'
    WHERE execution_id IN (SELECT id FROM locked)
), taken AS (
    DELETE FROM carillon.execution_retries WHERE execution_id = ANY ($1) AND execution_id NOT IN (SELECT id FROM locked)
)
SELECT id FROM locked";

const RETRIES_LATER: &str = "
UPDATE carillon.execution_retries SET due_at = clock_timestamp() + interval '5 seconds' WHERE execution_id = ANY ($1)";

impl Claim<'_> {
    /// What is due in the rooms of one source, by the statement that takes it; no room, no statement.
    async fn due_rows(
        &mut self,
        statement: &'static str,
        source: Source,
        rooms: &[Room],
        due: DateTime<Utc>,
        excluded: &[Uuid],
    ) -> Result<Vec<PgRow>> {
        let rooms: Vec<&Room> = rooms.iter().filter(|room| room.source == source && room.room > 0).collect();
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        Ok(sqlx::query(statement)
            .bind(self.shard)
            .bind(rooms.iter().map(|room| room.line.queue.clone()).collect::<Vec<_>>())
            .bind(rooms.iter().map(|room| room.line.priority.rank()).collect::<Vec<_>>())
            .bind(rooms.iter().map(|room| room.room).collect::<Vec<_>>())
            .bind(due)
            .bind(excluded)
            .fetch_all(&mut *self.transaction)
            .await?)
    }

    pub(super) async fn take_timers(&mut self, rooms: &[Room], due: DateTime<Utc>, excluded: &[Uuid]) -> Result<()> {
        for row in self.due_rows(TIMERS_CLAIM_DUE, Source::Timer, rooms, due, excluded).await? {
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

    pub(super) async fn take_triggers(&mut self, rooms: &[Room], due: DateTime<Utc>, excluded: &[Uuid]) -> Result<()> {
        for row in self.due_rows(TRIGGERS_CLAIM_DUE, Source::Trigger, rooms, due, excluded).await? {
            self.triggers.push(DueTrigger {
                execution: row.try_get("execution_id")?,
                job: row.try_get("job_id")?,
                fire_at: row.try_get("fire_at")?,
                line: Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?)),
                revision: row.try_get("revision")?,
                open: row.try_get("open")?,
                platform_id: row.try_get("platform_id")?,
                own_payload: row.try_get("own_payload")?,
                payload: row.try_get("payload")?,
                own_metadata: row.try_get("own_metadata")?,
                documents_stored: row.try_get::<i32, _>("documents_stored")?.unsigned_abs().into(),
                trace: read_trace(&row)?,
                created_by: row.try_get("created_by")?,
            });
        }
        Ok(())
    }

    pub(super) async fn find_retries(&mut self, rooms: &[Room], due: DateTime<Utc>, excluded: &[Uuid]) -> Result<()> {
        for row in self.due_rows(RETRIES_CLAIM_DUE, Source::Retry, rooms, due, excluded).await? {
            self.retries.push(DueRetry {
                execution: row.try_get("execution_id")?,
                job: row.try_get("job_id")?,
                claim: row.try_get("claim")?,
            });
        }
        Ok(())
    }

    /// Somebody may have locked a day that is over (who makes an index, or packs it) for as long as that takes. What belongs there is
    /// left: a statement that waits for that table would be refused in the end, and all of the claim with it. The days of now are
    /// not asked about: whoever locks those keeps everybody waiting.
    pub(super) async fn leave_locked_days(&mut self) -> Result<()> {
        let day_of = |at: DateTime<Utc>| ids::day(ids::first_at(at));
        let of_timers = self.timers.iter().map(|timer| day_of(timer.fire_at));
        let of_triggers = self.triggers.iter().map(|trigger| ids::day(trigger.execution));
        let of_retries = self.retries.iter().map(|retry| ids::day(retry.execution));
        let over = days::over(self.now, of_timers.chain(of_triggers).chain(of_retries));
        let locked = days::locked_on(&mut self.transaction, &over).await?;
        if locked.is_empty() {
            return Ok(());
        }
        self.standing_there.extend(self.timers.extract_if(.., |timer| locked.contains(&day_of(timer.fire_at))));
        let left = self.standing_there.iter().map(|timer| (Source::Timer, timer.line.clone(), timer.job));
        self.set_aside.extend(left);
        for trigger in self.triggers.extract_if(.., |trigger| locked.contains(&ids::day(trigger.execution))) {
            self.set_aside.push((Source::Trigger, trigger.line, trigger.execution));
        }
        let retries = self.retries.extract_if(.., |retry| locked.contains(&ids::day(retry.execution)));
        let later: Vec<Uuid> = retries.map(|retry| retry.execution).collect();
        self.put_off = !later.is_empty();
        self.passed_over |= self.put_off;
        sqlx::query(RETRIES_LATER).bind(later).execute(&mut *self.transaction).await?;
        Ok(())
    }

    pub(super) async fn take_retries(&mut self) -> Result<()> {
        if self.retries.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = self.retries.iter().map(|retry| retry.execution).collect();
        let locked: Vec<Uuid> = sqlx::query_scalar(days::of(RETRIES_TAKE, ids.iter().copied()))
            .bind(ids)
            .fetch_all(&mut *self.transaction)
            .await?;
        self.retries.retain(|retry| !locked.contains(&retry.execution));
        self.passed_over |= !locked.is_empty();
        Ok(())
    }
}
