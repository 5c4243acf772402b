//! Creating many jobs at once: all or none of them, or each by itself. A few statements in one transaction, however many there are.
//!
//! What one of them is refused for (its key, the name of its queue) stands in nobody else's way: the statement passes over it, and
//! it is named afterwards. Killed before its commit nothing has happened; after it, the idempotency key, which is taken in the same
//! transaction, leads to the answer.

use std::collections::{BTreeSet, HashMap, HashSet};

use carillon_core::shard::shard_of;
use sqlx::AssertSqlSafe;
use sqlx::types::Json;
use uuid::Uuid;

use super::rows::{NewJob, columns_of};
use super::{KEY_TRIES, born_with_jobs};
use crate::bounded::Connection;
use crate::document::ToWrite;
use crate::idempotency::{self, Key};
use crate::{Error, Result, Scope, Store, queues};

/// As for one job ([`super::JOBS_INSERT`]); `$1` are the rows by their columns, the rest stands beside them. In the order of their keys,
/// so that of two that take some of the same keys one waits for the other, and not each for each.
const JOBS_INSERT_MANY: &str = concat!(
    "
    WITH given AS MATERIALIZED (
        SELECT * FROM UNNEST($2::uuid[], $3::jsonb[], $4::jsonb[], $5::timestamptz[], $6::smallint[])
                      AS given (id, payload, metadata, fire_at, shard)
    ), job AS (
        INSERT INTO carillon.jobs ({columns}, payload, metadata)
        SELECT {columns}, given.payload, given.metadata
        FROM jsonb_populate_recordset(NULL::carillon.jobs, $1::jsonb) AS new JOIN given USING (id)
        ORDER BY new.platform_id, new.key, id
        ON CONFLICT (platform_id, key) WHERE key IS NOT NULL AND status <> 'CANCELLED' DO NOTHING
        RETURNING *
    ), ",
    born_with_jobs!(),
    "
    SELECT id FROM job"
);

/// `$1` are keys, `$2` their platforms. In two parts, since an index serves `=` and `IS NULL`, but nothing that is both.
const JOBS_HOLDING_KEYS: &str = "
    WITH given AS (SELECT * FROM UNNEST($1::text[], $2::text[]) AS given (key, platform_id))
    SELECT j.id, j.platform_id, j.key FROM given JOIN carillon.jobs j USING (platform_id, key) WHERE j.status <> 'CANCELLED'
    UNION ALL
    SELECT j.id, j.platform_id, j.key FROM given JOIN carillon.jobs j USING (key)
    WHERE given.platform_id IS NULL AND j.platform_id IS NULL AND j.status <> 'CANCELLED'";

/// What became of many jobs.
#[derive(Debug)]
pub enum Many {
    /// Of each, in their order. If any was refused, and they stood together, none is written.
    Decided(Vec<Result<()>>),
    /// They were asked for before: what was answered then.
    Repeated(Vec<u8>),
}

/// Creates jobs, each with its timer and its statistics; with `each` those that are not refused, otherwise all or none. `answer` makes
/// what a repetition of the request is to be answered with.
///
/// # Errors
/// [`Error::KeyReused`] if the idempotency key was taken by another request; [`Error::NotOwn`] if one of them, or the key, is
/// of a platform that is not the caller's; or if Postgres is unavailable.
pub async fn create_many(
    store: &Store,
    scope: &Scope,
    jobs: &[NewJob],
    each: bool,
    key: Option<&Key>,
    answer: impl FnOnce(&[Result<()>]) -> Vec<u8>,
) -> Result<Many> {
    require_own(scope, jobs, key)?;
    let mut transaction = store.pool.begin().await?;
    if let Some(key) = key {
        let resource = jobs.first().map_or(Uuid::nil(), |job| job.id);
        if !idempotency::take_on_conn(&mut transaction, key, resource).await? {
            drop(transaction);
            let known = idempotency::begin(store, scope, Some(key)).await?;
            return Ok(Many::Repeated(known.answer.unwrap_or_default()));
        }
    }
    let outcomes = write(&mut transaction, jobs).await?;
    if each || outcomes.iter().all(Result::is_ok) {
        if let Some(key) = key {
            idempotency::keep_answer_on_conn(&mut transaction, key, &answer(&outcomes)).await?;
        }
        transaction.commit().await?;
    }
    Ok(Many::Decided(outcomes))
}

/// What [`create_many`] would refuse, as things stand.
///
/// # Errors
/// [`Error::NotOwn`] as there; or if Postgres is unavailable.
pub async fn check_many(store: &Store, scope: &Scope, jobs: &[NewJob]) -> Result<Vec<Result<()>>> {
    require_own(scope, jobs, None)?;
    let mut connection = store.pool.acquire().await?;
    let refused = queues::check_many_on_conn(&mut connection, &queues_of(jobs), queues_max(jobs)).await?;
    let mut outcomes = without_queue(jobs, &refused);
    let all: Vec<usize> = (0..jobs.len()).collect();
    refuse_taken(&mut connection, jobs, &all, &mut outcomes).await?;
    Ok(outcomes.into_iter().map(|refused| refused.map_or(Ok(()), Err)).collect())
}

fn require_own(scope: &Scope, jobs: &[NewJob], key: Option<&Key>) -> Result<()> {
    if let Some(key) = key {
        scope.require_own(key.platform.as_deref(), "request_id", &key.key)?;
    }
    jobs.iter().try_for_each(|job| job.require_own(scope))
}

/// Writes those that are not refused.
async fn write(connection: &mut Connection, jobs: &[NewJob]) -> Result<Vec<Result<()>>> {
    let held = queues::hold_many_on_conn(connection, &queues_of(jobs), queues_max(jobs)).await?;
    let mut outcomes = without_queue(jobs, &held.refused);
    let mut left: Vec<usize> = (0..jobs.len()).filter(|index| outcomes[*index].is_none()).collect();
    // A key whose holder is deleted just now is free the next time.
    for _ in 0..KEY_TRIES {
        if left.is_empty() {
            break;
        }
        let written = insert(connection, jobs, &left).await?;
        left.retain(|index| !written.contains(&jobs[*index].id));
        refuse_taken(connection, jobs, &left, &mut outcomes).await?;
        left.retain(|index| outcomes[*index].is_none());
    }
    if !left.is_empty() {
        let why = "keys of jobs were taken and given up again, each time that they were tried";
        return Err(Error::Conflict(sqlx::Error::Protocol(why.to_owned()).into()));
    }
    let used: HashSet<&str> = jobs
        .iter()
        .zip(&outcomes)
        .filter(|(_, refused)| refused.is_none())
        .map(|(job, _)| job.definition.queue.as_str())
        .collect();
    // A job that was not written leaves no name behind either.
    let unused: Vec<String> = held.added.into_iter().filter(|name| !used.contains(name.as_str())).collect();
    queues::take_back_on_conn(connection, &unused).await?;
    Ok(outcomes.into_iter().map(|refused| refused.map_or(Ok(()), Err)).collect())
}

/// The ids of those that were written: of the others somebody has the key.
async fn insert(connection: &mut Connection, jobs: &[NewJob], which: &[usize]) -> Result<HashSet<Uuid>> {
    let unwritable = |error: serde_json::Error| Error::Unreadable { what: "new job", why: error.to_string() };
    let jobs: Vec<&NewJob> = which.iter().map(|index| &jobs[*index]).collect();
    let Some(first) = jobs.first() else { return Ok(HashSet::new()) };
    let statement = JOBS_INSERT_MANY.replace("{columns}", &columns_of(&first.row().map_err(unwritable)?));
    let written: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(Json(jobs.iter().map(|job| job.written()).collect::<Vec<_>>()))
        .bind(jobs.iter().map(|job| job.id).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| ToWrite(&job.definition.payload)).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| ToWrite(&job.definition.metadata)).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.fire_at).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| shard_of(job.id)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    Ok(written.into_iter().collect())
}

/// Refuses those whose key another job has.
async fn refuse_taken(
    connection: &mut Connection,
    jobs: &[NewJob],
    which: &[usize],
    outcomes: &mut [Option<Error>],
) -> Result<()> {
    let keyed = |index: &usize| jobs[*index].definition.key.as_deref().map(|key| (*index, key));
    let keyed: Vec<(usize, &str)> = which.iter().filter_map(keyed).collect();
    if keyed.is_empty() {
        return Ok(());
    }
    let platform = |index: usize| jobs[index].definition.platform_id.as_deref();
    let holders: Vec<(Uuid, Option<String>, String)> = sqlx::query_as(JOBS_HOLDING_KEYS)
        .bind(keyed.iter().map(|(_, key)| *key).collect::<Vec<_>>())
        .bind(keyed.iter().map(|(index, _)| platform(*index)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    let holders: HashMap<(Option<&str>, &str), Uuid> =
        holders.iter().map(|(id, platform, key)| ((platform.as_deref(), key.as_str()), *id)).collect();
    for (index, key) in keyed {
        if let Some(id) = holders.get(&(platform(index), key)) {
            outcomes[index].get_or_insert(Error::AlreadyExists { what: "job", id: *id });
        }
    }
    Ok(())
}

/// Refuses those whose queue would be one too many.
fn without_queue(jobs: &[NewJob], refused: &BTreeSet<String>) -> Vec<Option<Error>> {
    let refusal = |job: &NewJob| {
        let NewJob { definition, queues_max, .. } = job;
        let queue = refused.get(&definition.queue)?.clone();
        Some(Error::QueuesExhausted { queue, queues_max: *queues_max })
    };
    jobs.iter().map(refusal).collect()
}

/// The names of their queues, each once, in their order.
fn queues_of(jobs: &[NewJob]) -> Vec<&str> {
    let mut seen = HashSet::new();
    jobs.iter().map(|job| job.definition.queue.as_str()).filter(|name| seen.insert(*name)).collect()
}

fn queues_max(jobs: &[NewJob]) -> u32 {
    jobs.first().map_or(0, |job| job.queues_max)
}
