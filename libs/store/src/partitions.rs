//! Partitions of the execution history: one a day, made ahead, so that retention is a DROP. What lies outside of them
//! (a one-time job of last year, one dated 2040) falls into the default partition and is none the worse for it.

use carillon_core::ids;
use chrono::{DateTime, Days, NaiveTime, Utc};

use crate::{Result, Store};

/// Days made ahead of today.
const DAYS_AHEAD: u64 = 7;
const TABLES: [&str; 3] = ["job_executions", "job_execution_logs", "execution_attempts"];

/// Makes the missing partitions from yesterday to a week ahead. Any number of processes may do this at once.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn make_ahead(store: &Store) -> Result<()> {
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT now()").fetch_one(&store.pool).await?;
    let first = now.date_naive().checked_sub_days(Days::new(1)).unwrap_or_else(|| now.date_naive());
    for ahead in 0..=DAYS_AHEAD + 1 {
        let Some(day) = first.checked_add_days(Days::new(ahead)) else { continue };
        let Some(next) = day.checked_add_days(Days::new(1)) else { continue };
        let from = ids::first_at(day.and_time(NaiveTime::MIN).and_utc());
        let to = ids::first_at(next.and_time(NaiveTime::MIN).and_utc());
        for table in TABLES {
            sqlx::query("SELECT carillon_make_partition($1, $2, $3, $4)")
                .bind(table)
                .bind(format!("{table}_{}", day.format("%Y_%m_%d")))
                .bind(from)
                .bind(to)
                .execute(&store.pool)
                .await?;
        }
    }
    Ok(())
}
