//! What a request's idempotency key led to. The key is written by the very statement that makes the thing it names, so
//! that a thing without its key, or a key without its thing, cannot exist; whoever loses the race for a key finds the
//! winner's thing here.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::bounded::Connection;
use crate::{Error, Result, Scope, Store};

/// The key of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What it makes: `job`, `jobs`, or `trigger` and the job's id.
    pub space: String,
    /// For whom: two platforms may use the same key, and neither hears of the other's.
    pub platform: Option<String>,
    /// As the client chose it.
    pub key: String,
    /// SHA-256 of the request: one key with two different requests is refused, not answered wrongly.
    pub fingerprint: Vec<u8>,
}

impl Key {
    /// Within which it is unique, as that is kept.
    pub(crate) fn kept_in(&self) -> String {
        format!("{}/{}", self.space, self.platform.as_deref().unwrap_or_default())
    }
}

/// What is known before something is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// What the key led to before.
    pub known: Option<Uuid>,
    /// What was answered then, where that was kept.
    pub answer: Option<Vec<u8>>,
}

/// Reads the database's clock and what `key` led to, in one round trip.
///
/// # Errors
/// [`Error::KeyReused`] if the key was used for another request; [`Error::NotOwn`] if it is for a platform that is not the
/// caller's; or if Postgres is unavailable.
pub async fn begin(store: &Store, scope: &Scope, key: Option<&Key>) -> Result<Beginning> {
    type Row = (DateTime<Utc>, Option<Vec<u8>>, Option<Uuid>, Option<Vec<u8>>);
    let Some(key) = key else {
        let now = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&store.pool).await?;
        return Ok(Beginning { now, known: None, answer: None });
    };
    scope.require_own(key.platform.as_deref(), "request_id", &key.key)?;
    let (now, fingerprint, known, answer): Row = sqlx::query_as(
        "SELECT clock_timestamp(), k.fingerprint, k.resource_id, k.answer
         FROM (VALUES (1)) AS one LEFT JOIN carillon.idempotency_keys k ON k.space = $1 AND k.key = $2",
    )
    .bind(key.kept_in())
    .bind(&key.key)
    .fetch_one(&store.pool)
    .await?;
    if fingerprint.is_some_and(|fingerprint| fingerprint != key.fingerprint) {
        return Err(Error::KeyReused { key: key.key.clone() });
    }
    Ok(Beginning { now, known, answer })
}

/// Takes a key for what is made in the same transaction; waits for whoever else is about to. Answers whether it was free.
///
/// # Errors
/// If Postgres is unavailable.
pub(crate) async fn take_on_conn(connection: &mut Connection, key: &Key, resource: Uuid) -> Result<bool> {
    let statement =
        "INSERT INTO carillon.idempotency_keys (space, key, fingerprint, resource_id) VALUES ($1, $2, $3, $4)
                     ON CONFLICT DO NOTHING";
    let query = sqlx::query(statement).bind(key.kept_in()).bind(&key.key).bind(&key.fingerprint).bind(resource);
    Ok(query.execute(connection).await?.rows_affected() > 0)
}

/// Keeps the answer with a key that was taken.
///
/// # Errors
/// If Postgres is unavailable.
pub(crate) async fn keep_answer_on_conn(connection: &mut Connection, key: &Key, answer: &[u8]) -> Result<()> {
    let statement = "UPDATE carillon.idempotency_keys SET answer = $3 WHERE space = $1 AND key = $2";
    sqlx::query(statement).bind(key.kept_in()).bind(&key.key).bind(answer).execute(connection).await?;
    Ok(())
}

/// Forgets keys that were used `older_than` ago: their requests are no repetitions any more. Answers how many.
///
/// # Errors
/// If Postgres is unavailable.
pub async fn forget(store: &Store, older_than: Duration) -> Result<u64> {
    /// In one statement, so that none holds locks or a snapshot for long.
    const AT_ONCE: i64 = 10_000;
    let statement = "DELETE FROM carillon.idempotency_keys k USING (
             SELECT space, key FROM carillon.idempotency_keys WHERE created_at < now() - $1::interval
             ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
         ) old WHERE k.space = old.space AND k.key = old.key";
    let mut forgotten = 0;
    loop {
        let some = sqlx::query(statement).bind(older_than).bind(AT_ONCE).execute(&store.pool).await?.rows_affected();
        forgotten += some;
        if some < AT_ONCE.unsigned_abs() {
            return Ok(forgotten);
        }
    }
}
