//! Listing jobs, newest first (ids are ordered by creation), by any of their fields: see [`crate::scan`].
//!
//! Key, status and type have an index that is in the order of the list; whatever else is asked for is looked for among the rows.

use carillon_core::ids;
use carillon_core::job::{JobStatus, JobType, Priority};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::Job;
use super::rows::{JobRow, SELECT_JOB};
use crate::scan::{LOOKED_AT_MAX, Looked, Scan, Scanned, Window};
use crate::{Result, Store};

/// Which jobs to list: those that match all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Of this type.
    pub job_type: Option<JobType>,
    /// Of this status; without it all but deleted ones.
    pub status: Option<JobStatus>,
    /// Of this key.
    pub key: Option<&'a str>,
    /// With this tag.
    pub tag: Option<&'a str>,
    /// Of this platform.
    pub platform_id: Option<&'a str>,
    /// Whose name contains this, in upper or lower case.
    pub name: Option<&'a str>,
    /// Whose name begins with this.
    pub name_prefix: Option<&'a str>,
    /// That run this.
    pub handler_name: Option<&'a str>,
    /// In this queue.
    pub queue: Option<&'a str>,
    /// Of this priority.
    pub priority: Option<Priority>,
    /// Created at this instant or later.
    pub created_from: Option<DateTime<Utc>>,
    /// Created before this instant.
    pub created_before: Option<DateTime<Utc>>,
}

/// Lists jobs. What is looked at is `jobs` alone; the page that was found is read with the rest.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn list(store: &Store, filter: Filter<'_>, window: Window) -> Result<Scanned<Job>> {
    let mut scan = Scan::new(window, LOOKED_AT_MAX);
    let found = loop {
        let (below, rows) = scan.next();
        if let Some(found) = scan.seen(look(store, filter, below, rows).await?) {
            break found;
        }
    };
    if found.items.is_empty() {
        return Ok(Scanned { items: Vec::new(), next: found.next });
    }
    let mut query = QueryBuilder::new(SELECT_JOB);
    query.push(" WHERE j.id = ANY (").push_bind(found.items.clone()).push(") ORDER BY j.id DESC");
    let read = |row: &PgRow| {
        let row: JobRow = sqlx::FromRow::from_row(row)?;
        Ok((row.growth(), Job::try_from(row)?))
    };
    found.read(&store.pool, query.build(), read, |job| job.id).await
}

async fn look(store: &Store, filter: Filter<'_>, below: Uuid, rows: i32) -> Result<Looked> {
    let from = filter.created_from.map_or(Uuid::nil(), ids::first_at);
    let below = filter.created_before.map_or(below, |at| ids::first_at(at).min(below));
    let mut query = QueryBuilder::new("SELECT COALESCE(array_agg(id ORDER BY id DESC) FILTER (WHERE true");
    push_matching(&mut query, filter);
    query.push("), '{}'::uuid[]), count(*), (array_agg(id ORDER BY id))[1] FROM (SELECT * FROM jobs WHERE id >= ");
    query.push_bind(from).push(" AND id < ").push_bind(below);
    push_indexed(&mut query, filter);
    query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(rows)).push(") j");
    let (matching, looked_at, last): (Vec<Uuid>, i64, Option<Uuid>) =
        query.build_query_as().fetch_one(&store.pool).await?;
    Ok(Looked { matching, below: last.filter(|_| looked_at >= i64::from(rows)), was_empty: looked_at == 0 })
}

/// What an index serves in the order of the list: the most selective of it.
fn push_indexed(query: &mut QueryBuilder<Postgres>, filter: Filter<'_>) {
    if let Some(key) = filter.key {
        query.push(" AND key = ").push_bind(key);
    } else if let Some(status) = filter.status {
        query.push(" AND status = ").push_bind(status.as_str());
    } else if let Some(job_type) = filter.job_type {
        query.push(" AND type = ").push_bind(job_type.as_str());
    }
}

fn push_matching(query: &mut QueryBuilder<Postgres>, filter: Filter<'_>) {
    match filter.status {
        Some(status) => query.push(" AND status = ").push_bind(status.as_str()),
        None => query.push(" AND status <> 'CANCELLED'"),
    };
    if let Some(job_type) = filter.job_type {
        query.push(" AND type = ").push_bind(job_type.as_str());
    }
    if let Some(tag) = filter.tag {
        query.push(" AND tags @> ARRAY[").push_bind(tag).push("]::text[]");
    }
    if let Some(platform) = filter.platform_id {
        query.push(" AND platform_id = ").push_bind(platform);
    }
    if let Some(name) = filter.name {
        query.push(" AND position(lower(").push_bind(name).push(") IN lower(name)) > 0");
    }
    if let Some(prefix) = filter.name_prefix {
        query.push(" AND starts_with(name, ").push_bind(prefix).push(")");
    }
    if let Some(handler) = filter.handler_name {
        query.push(" AND handler_name = ").push_bind(handler);
    }
    if let Some(queue) = filter.queue {
        query.push(" AND queue = ").push_bind(queue);
    }
    if let Some(priority) = filter.priority {
        query.push(" AND priority = ").push_bind(priority.rank());
    }
}
