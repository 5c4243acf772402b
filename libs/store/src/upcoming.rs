//! What is to come, for the leader's agenda: the next instants of every line.

use carillon_core::agenda::{Slot, Source};
use carillon_core::job::Priority;
use carillon_core::line::Line;
use chrono::{DateTime, Utc};
use sqlx::Row;

use crate::Result;
use crate::leader_session::{LeaderSession, bounded};

/// Each line's first instants until `$2`, `$3` of them at most. The lines are found by skipping through the index
/// (one descent a line), so the cost grows with the lines and the instants returned, not with the jobs.
const UPCOMING: &str = "
WITH RECURSIVE timer_lines AS (
    (SELECT queue, priority FROM job_timers WHERE shard = $1 AND fire_at IS NOT NULL ORDER BY queue, priority LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority FROM timer_lines l CROSS JOIN LATERAL (
        SELECT queue, priority FROM job_timers
        WHERE shard = $1 AND fire_at IS NOT NULL AND (queue, priority) > (l.queue, l.priority)
        ORDER BY queue, priority LIMIT 1) n
), trigger_lines AS (
    (SELECT queue, priority FROM job_triggers WHERE shard = $1 ORDER BY queue, priority LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority FROM trigger_lines l CROSS JOIN LATERAL (
        SELECT queue, priority FROM job_triggers WHERE shard = $1 AND (queue, priority) > (l.queue, l.priority)
        ORDER BY queue, priority LIMIT 1) n
), retry_lines AS (
    (SELECT queue, priority FROM execution_retries WHERE shard = $1 ORDER BY queue, priority LIMIT 1)
    UNION ALL
    SELECT n.queue, n.priority FROM retry_lines l CROSS JOIN LATERAL (
        SELECT queue, priority FROM execution_retries WHERE shard = $1 AND (queue, priority) > (l.queue, l.priority)
        ORDER BY queue, priority LIMIT 1) n
)
SELECT 0 AS source, l.queue, l.priority, t.at FROM timer_lines l CROSS JOIN LATERAL (
    SELECT fire_at AS at FROM job_timers
    WHERE shard = $1 AND queue = l.queue AND priority = l.priority AND fire_at <= $2 ORDER BY fire_at LIMIT $3) t
UNION ALL
SELECT 1, l.queue, l.priority, t.at FROM trigger_lines l CROSS JOIN LATERAL (
    SELECT fire_at AS at FROM job_triggers
    WHERE shard = $1 AND queue = l.queue AND priority = l.priority AND fire_at <= $2 ORDER BY fire_at LIMIT $3) t
UNION ALL
SELECT 2, l.queue, l.priority, t.at FROM retry_lines l CROSS JOIN LATERAL (
    SELECT due_at AS at FROM execution_retries
    WHERE shard = $1 AND queue = l.queue AND priority = l.priority AND due_at <= $2 ORDER BY due_at LIMIT $3) t";

/// The next instants.
#[derive(Clone, Debug, Default)]
pub struct Upcoming {
    /// Each with where it would be found.
    pub instants: Vec<(Slot, DateTime<Utc>)>,
    /// Until when this is complete.
    pub complete_until: Option<DateTime<Utc>>,
}

impl LeaderSession {
    /// The instants until `until`, at most `limit` of each line.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: the session is lost.
    pub async fn upcoming(&mut self, until: DateTime<Utc>, limit: i64) -> Result<Upcoming> {
        let rows =
            bounded(sqlx::query(UPCOMING).bind(self.shard).bind(until).bind(limit).fetch_all(&mut self.connection))
                .await?;
        let mut upcoming = Upcoming { instants: Vec::with_capacity(rows.len()), complete_until: Some(until) };
        let mut counts = std::collections::HashMap::<Slot, i64>::new();
        for row in rows {
            let source = match row.try_get::<i32, _>("source")? {
                0 => Source::Timer,
                1 => Source::Trigger,
                _ => Source::Retry,
            };
            let line = Line::new(row.try_get::<String, _>("queue")?, Priority::from_rank(row.try_get("priority")?));
            let at: DateTime<Utc> = row.try_get("at")?;
            let count = counts.entry((source, line.clone())).or_default();
            *count += 1;
            if *count >= limit {
                upcoming.complete_until = upcoming.complete_until.map(|known| known.min(at));
            }
            upcoming.instants.push(((source, line), at));
        }
        Ok(upcoming)
    }
}
