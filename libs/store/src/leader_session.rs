//! The database session that holds a shard's advisory lock (R2), and the numbers drawn on it (R1).
//!
//! All that only a leader may write is a method of [`LeaderSession`] and exists nowhere else, so a claim outside of the
//! lock's session does not compile. Lose the session and its transaction cannot commit (promise 5): that, not the lock, is
//! the fence.
//!
//! The session is one plain connection that is never reconnected: any error on it means that the lock may be gone, and the
//! caller drops it and stands by; except an error that the server itself reports of a statement ([`Error::is_reported`]):
//! then nothing was done and the session goes on. If this process freezes or its machine is cut off, the server ends the
//! silent session after [`SILENCE_MAX`], by `idle_session_timeout` and TCP's own timers, and a standby gets the lock. A
//! statement has an end at both ends: the server cancels it after [`STATEMENT_SERVER_MAX`], a wait for a lock after
//! [`LOCK_MAX`], so no backend waits on with the shard's lock after its client has given up.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::Row;

use crate::bounded::Connection;
use crate::clock::DbClock;
use crate::{Error, Result, StoreOptions};

/// R2: after this long without a statement the server ends the session. The leader says something each second.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long the server lets one statement run before it cancels it, which loses the statement only.
const STATEMENT_SERVER_MAX: Duration = Duration::from_millis(2_500);

/// How long the server lets a statement wait for a lock. Claims and R19 wait for no row; this is for tables.
const LOCK_MAX: Duration = Duration::from_millis(500);

/// How often the server looks whether the client of a running statement is still there.
const CLIENT_CHECK_EVERY: Duration = Duration::from_secs(1);

/// How long one statement on the session may take before the session counts as lost: longer than the server lets it run, so
/// that this means a server or a line that is silent.
const STATEMENT_MAX: Duration = Duration::from_secs(4);

/// How often two sessions are compared: other clients of a pooler may be in the way of one comparison.
const COMPARISONS: u32 = 3;

/// First half of the advisory lock's key, in the default schema ([`crate::Schema::lock_key`]); the second is the shard.
const LOCK_SPACE: i32 = 0x0CA_2111;

/// A session that may or may not become the leader's.
#[derive(Debug)]
pub struct Candidate {
    connection: Connection,
    lock_space: i32,
    shard: i16,
}

/// The session of the leader.
#[derive(Debug)]
pub struct LeaderSession {
    pub(crate) connection: Connection,
    pub(crate) shard: i16,
    pub(crate) numbers: Numbers,
    since: Instant,
}

/// R1: what numbers are drawn from: the one before, and the database's clock.
#[derive(Debug)]
pub(crate) struct Numbers {
    previous: i64,
    clock: DbClock,
    clock_was_set: bool,
}

impl Numbers {
    pub(crate) fn measured(&mut self, clock: DbClock) {
        self.clock_was_set |= self.clock.contradicts(&clock);
        self.clock = self.clock.or_better(clock);
    }

    pub(crate) fn next_at(&mut self, now: DateTime<Utc>) -> i64 {
        self.previous = (self.previous + 1).max(now.timestamp_millis());
        self.previous
    }
}

/// Refuses a pooler in transaction mode: it hands each transaction to whatever session of the server is free, so a lock would
/// not stay with whoever took it. Found out by two connections at once: what one was just served by serves the other, or is
/// missing to the first while the other is in a transaction. Asked without prepared statements, of which such a pooler makes
/// errors that tell nobody why.
///
/// # Errors
/// [`Error::FailedPrecondition`] if there is one; [`Error::Unavailable`].
pub async fn refuse_pooler(options: &StoreOptions) -> Result<()> {
    let connect_options = options.connect_options()?;
    let mut one = Connection::connect(&connect_options, &options.schema, STATEMENT_MAX).await?;
    let mut other = Connection::connect(&connect_options, &options.schema, STATEMENT_MAX).await?;
    for _ in 0..COMPARISONS {
        let before = backend_of(&mut one).await?;
        sqlx::raw_sql("BEGIN").execute(&mut other).await?;
        // Asked in this order: a pooler with a single session would have none for the first one now.
        if backend_of(&mut other).await? == before || backend_of(&mut one).await? != before {
            return Err(behind_a_pooler());
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    }
    one.close().await?;
    Ok(other.close().await?)
}

async fn backend_of(connection: &mut Connection) -> Result<i32> {
    Ok(sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get(0)?)
}

fn behind_a_pooler() -> Error {
    let why = "the dispatcher must reach postgres directly: a pooler in transaction mode stands in between, on which the \
               leader's lock would not stay with its session";
    Error::FailedPrecondition { what: "shard", why: why.into() }
}

impl Candidate {
    /// Connects and sets the session's timers.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::FailedPrecondition`] when a transaction pooler stands in between, on which neither
    /// the timers nor the lock would stay with this session.
    pub async fn connect(options: &StoreOptions, shard: i16) -> Result<Self> {
        let connect_options = StoreOptions { nested_loops_only: true, ..options.clone() }.connect_options()?;
        let mut connection = Connection::connect(&connect_options, &options.schema, STATEMENT_MAX).await?;
        let ms = |duration: Duration| format!("{}ms", duration.as_millis());
        let silence = ms(SILENCE_MAX);
        for (name, value) in [
            ("idle_session_timeout", silence.as_str()),
            ("idle_in_transaction_session_timeout", silence.as_str()),
            ("statement_timeout", ms(STATEMENT_SERVER_MAX).as_str()),
            ("lock_timeout", ms(LOCK_MAX).as_str()),
            ("client_connection_check_interval", ms(CLIENT_CHECK_EVERY).as_str()),
            ("tcp_keepalives_idle", "1"),
            ("tcp_keepalives_interval", "1"),
            ("tcp_keepalives_count", "2"),
            ("tcp_user_timeout", silence.as_str()),
        ] {
            let set = sqlx::query("SELECT set_config($1, $2, false)").bind(name).bind(value);
            set.execute(&mut connection).await?;
        }
        let mut candidate = Self { connection, lock_space: options.schema.lock_key(LOCK_SPACE), shard };
        candidate.refuse_lost_settings(&silence).await?;
        Ok(candidate)
    }

    /// Tries to get the lock. On any error drop the candidate: a try that failed here may have succeeded on the server.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn try_lead(mut self) -> Result<Result<LeaderSession, Self>> {
        let sent = Instant::now();
        let row = sqlx::query("SELECT pg_try_advisory_lock($1, $2) AS mine, clock_timestamp() AS now")
            .bind(self.lock_space)
            .bind(i32::from(self.shard))
            .fetch_one(&mut self.connection)
            .await?;
        if !row.try_get::<bool, _>("mine")? {
            return Ok(Err(self));
        }
        let clock = DbClock::from_round_trip(sent, Instant::now(), row.try_get("now")?);
        let newest: Option<i64> =
            sqlx::query_scalar("SELECT max(number) FROM carillon.dispatch_batches WHERE shard = $1")
                .bind(self.shard)
                .fetch_one(&mut self.connection)
                .await?;
        Ok(Ok(LeaderSession {
            connection: self.connection,
            shard: self.shard,
            numbers: Numbers { previous: newest.unwrap_or(0), clock, clock_was_set: false },
            since: Instant::now(),
        }))
    }

    /// R2: the server ends a session that is silent, also one that only stands by.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn say_something(&mut self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&mut self.connection).await?;
        Ok(())
    }

    /// A pooler that came in between after [`refuse_pooler`] was asked: settings do not stay.
    async fn refuse_lost_settings(&mut self, silence: &str) -> Result<()> {
        let mut first = None;
        for _ in 0..3 {
            let row = sqlx::query("SELECT pg_backend_pid() AS pid, current_setting('idle_session_timeout')::interval = $1::text::interval AS kept")
                    .bind(silence)
                    .fetch_one(&mut self.connection).await?;
            let pid: i32 = row.try_get("pid")?;
            if !row.try_get::<bool, _>("kept")? || *first.get_or_insert(pid) != pid {
                return Err(behind_a_pooler());
            }
        }
        Ok(())
    }
}

impl LeaderSession {
    /// R1: counts on from `other` too (what Redis remembers), so that no number is used twice even after Postgres lost
    /// commits.
    pub fn count_on_from(&mut self, other: i64) {
        self.numbers.previous = self.numbers.previous.max(other);
    }

    /// R1: draws the next number, `greatest(previous + 1, ms of the database clock)`, on this session: if the lock is lost,
    /// this fails.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the session is lost.
    pub async fn draw_number(&mut self) -> Result<i64> {
        let now = self.say_something().await?;
        Ok(self.numbers.next_at(now))
    }

    /// R2: each second. Also measures the database's clock.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the session is lost.
    pub async fn say_something(&mut self) -> Result<DateTime<Utc>> {
        let sent = Instant::now();
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut self.connection).await?;
        self.numbers.measured(DbClock::from_round_trip(sent, Instant::now(), now));
        Ok(now)
    }

    /// Whether the database's clock was set since this was asked last: what was reckoned by it is to be reckoned anew.
    pub fn clock_was_set(&mut self) -> bool {
        std::mem::take(&mut self.numbers.clock_was_set)
    }

    /// R1: the number that was drawn last.
    pub const fn last_number(&self) -> i64 {
        self.numbers.previous
    }

    /// The database's clock.
    pub const fn clock(&self) -> DbClock {
        self.numbers.clock
    }

    /// The shard that is led.
    pub const fn shard(&self) -> i16 {
        self.shard
    }

    /// For how long this session has led: only after a lease may it judge a worker not live (R15).
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Gives the lock back at once.
    pub async fn resign(self) {
        // If the goodbye fails the server ends the session by itself.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.connection.close()).await;
    }
}
