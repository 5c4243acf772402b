//! The names of queues: bounded in number, since each may have a stream in Redis for every priority, and each claim looks at
//! all that are due.
//!
//! A job's creation asks whether the name of its queue is known and holds it meanwhile (`FOR KEY SHARE`, in the statement that
//! writes the job), so a known name costs neither a round trip nor a lock that others wait for. Only who names a new one
//! comes here: one at a time, across all gateways, so that two cannot take the last place.
//!
//! A name leaves once no job has used it for a day, as long as its streams may stand. Whoever creates a job and whoever
//! forgets its queue's name hold the same row: either the name is held and stays, or it is gone and the job names it anew.

use std::collections::BTreeSet;

use crate::bounded::Connection;
use crate::{Error, Result, Store};

/// Names looked at together, so that none holds locks for long.
const AT_ONCE: i64 = 1_000;

/// What became of names that a transaction needs.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Those that would be too many.
    pub(crate) refused: BTreeSet<String>,
    /// Those that were not known before.
    pub(crate) added: Vec<String>,
}

/// Holds names until the end of the transaction that needs them; adds those that are not known, as far as there is room, the first
/// ones first.
///
/// # Errors
/// If Postgres is unavailable.
pub(crate) async fn hold_many_on_conn(connection: &mut Connection, names: &[&str], queues_max: u32) -> Result<Held> {
    let held = "SELECT name FROM carillon.queues WHERE name = ANY ($1) FOR KEY SHARE";
    let held: BTreeSet<String> =
        sqlx::query_scalar(held).bind(names).fetch_all(&mut *connection).await?.into_iter().collect();
    let missing: Vec<&str> = names.iter().copied().filter(|name| !held.contains(*name)).collect();
    if missing.is_empty() { Ok(Held::default()) } else { add_many_on_conn(connection, &missing, queues_max).await }
}

/// As [`hold_many_on_conn`], of one.
///
/// # Errors
/// [`Error::QueuesExhausted`] if it would be one too many; or if Postgres is unavailable.
pub(crate) async fn hold_on_conn(connection: &mut Connection, name: &str, queues_max: u32) -> Result<()> {
    let held = hold_many_on_conn(connection, &[name], queues_max).await?;
    refuse(&held.refused, queues_max)
}

/// Adds a name, in the transaction that needs it; waits for everybody else who is adding one.
///
/// # Errors
/// [`Error::QueuesExhausted`] if there are `queues_max` others; or if Postgres is unavailable.
pub(crate) async fn add_on_conn(connection: &mut Connection, name: &str, queues_max: u32) -> Result<()> {
    let held = add_many_on_conn(connection, &[name], queues_max).await?;
    refuse(&held.refused, queues_max)
}

async fn add_many_on_conn(connection: &mut Connection, names: &[&str], queues_max: u32) -> Result<Held> {
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('carillon.queues', 0))";
    sqlx::query(lock).execute(&mut *connection).await?;
    // A statement of its own: it sees what others added before they let go of the lock.
    let refused = check_many_on_conn(connection, names, queues_max).await?;
    let new: Vec<&str> = names.iter().copied().filter(|name| !refused.contains(*name)).collect();
    let add = "INSERT INTO carillon.queues (name) SELECT DISTINCT * FROM UNNEST($1::text[]) ON CONFLICT DO NOTHING RETURNING name";
    let added = sqlx::query_scalar(add).bind(new).fetch_all(connection).await?;
    Ok(Held { refused, added })
}

fn refuse(refused: &BTreeSet<String>, queues_max: u32) -> Result<()> {
    match refused.first() {
        Some(queue) => Err(Error::QueuesExhausted { queue: queue.clone(), queues_max }),
        None => Ok(()),
    }
}

/// Takes back names that the same transaction has added.
///
/// # Errors
/// If Postgres is unavailable.
pub(crate) async fn take_back_on_conn(connection: &mut Connection, names: &[String]) -> Result<()> {
    if !names.is_empty() {
        sqlx::query("DELETE FROM carillon.queues WHERE name = ANY ($1)").bind(names).execute(connection).await?;
    }
    Ok(())
}

/// Those of the names that would be too many, as things stand, the first ones first.
///
/// # Errors
/// If Postgres is unavailable.
pub(crate) async fn check_many_on_conn(
    connection: &mut Connection,
    names: &[&str],
    queues_max: u32,
) -> Result<BTreeSet<String>> {
    let (known, count): (Vec<String>, i64) = sqlx::query_as(
        "SELECT coalesce(array_agg(name) FILTER (WHERE name = ANY ($1)), '{}'), count(*) FROM carillon.queues",
    )
    .bind(names)
    .fetch_one(connection)
    .await?;
    let mut known: BTreeSet<String> = known.into_iter().collect();
    let mut room = i64::from(queues_max) - count;
    let mut refused = BTreeSet::new();
    for name in names {
        if known.contains(*name) {
            continue;
        }
        if room > 0 {
            room -= 1;
            known.insert((*name).to_owned());
        } else {
            refused.insert((*name).to_owned());
        }
    }
    Ok(refused)
}

/// Refuses a name that would be one too many, as things stand.
///
/// # Errors
/// [`Error::QueuesExhausted`] if there are `queues_max` others; or if Postgres is unavailable.
pub(crate) async fn check_on_conn(connection: &mut Connection, name: &str, queues_max: u32) -> Result<()> {
    refuse(&check_many_on_conn(connection, &[name], queues_max).await?, queues_max)
}

/// Forgets the names that no job has used for a day: none has them that is not deleted, or was not until a day ago. Answers
/// how many. What is in use at that moment, or looked at by another dispatcher, waits for the next time.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn forget_unused(store: &Store) -> Result<u64> {
    // `OFFSET 0`: two probes of jobs_by_queue a name, whatever the planner thinks of joins.
    const UNUSED: &str = "
        NOT EXISTS (SELECT FROM carillon.jobs j WHERE j.queue = q.name AND j.cancelled_at IS NULL OFFSET 0)
        AND NOT EXISTS (SELECT FROM carillon.jobs j WHERE j.queue = q.name
            AND j.cancelled_at > now() - interval '1 day' OFFSET 0)";
    let mut forgotten = 0;
    loop {
        let mut transaction = store.pool.begin().await?;
        let mut query = sqlx::QueryBuilder::new(
            "SELECT name FROM carillon.queues q WHERE created_at < now() - interval '1 day' AND",
        );
        query.push(UNUSED).push(" LIMIT ").push_bind(AT_ONCE).push(" FOR UPDATE OF q SKIP LOCKED");
        let held: Vec<String> = query.build_query_scalar().fetch_all(&mut *transaction).await?;
        if held.is_empty() {
            return Ok(forgotten);
        }
        // Asked again, now that no job can name them unseen: one may have come between the first look and its lock.
        let mut query = sqlx::QueryBuilder::new("DELETE FROM carillon.queues q WHERE name = ANY(");
        query.push_bind(&held).push(") AND").push(UNUSED);
        let gone = query.build().execute(&mut *transaction).await?.rows_affected();
        transaction.commit().await?;
        forgotten += gone;
        if held.len() < usize::try_from(AT_ONCE).unwrap_or(usize::MAX) || gone == 0 {
            return Ok(forgotten);
        }
    }
}
