//! The connection pool of one process.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::bounded::{Connection, Pool};
use crate::{Result, Schema};

/// After this long without a byte inside of a transaction the server ends the session, and what it had locked is free: its
/// client is frozen, cut off or gone.
const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(3);
/// The client waits so much longer than the server lets a statement run: the server's answer says more than none.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);
/// How long a connection may take to be made.
const REACH_MAX: Duration = Duration::from_secs(5);

/// How a process connects.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// `postgres://user:password@host:port/database?sslmode=…`
    pub url: String,
    /// Where all that is ours lies in that database.
    pub schema: Schema,
    /// Shown by Postgres in `pg_stat_activity`.
    pub application_name: String,
    /// Connections at most.
    pub connections_max: u32,
    /// How long a caller waits for a connection before it is told that all are in use, or that Postgres is unavailable.
    pub acquire_timeout: Duration,
    /// How long the server lets one statement run.
    pub statement_max: Duration,
    /// How long the server lets one statement wait for a lock: shorter than [`Self::statement_max`], and longer than the
    /// server's `deadlock_timeout` (1 s), so that a deadlock is told from somebody who holds on.
    pub lock_max: Duration,
    /// For connections that only run the hot batch statements: plans are made once and always walk from the batch into the
    /// primary keys. Left to itself the planner, seeing a young and empty partition, caches a sequential scan, and keeps it
    /// while the partition grows.
    pub nested_loops_only: bool,
}

impl StoreOptions {
    /// The defaults for `url`: schema `carillon`; 8 connections, 5 s to wait for one; 4 s for a statement, 1.5 s of them for a
    /// lock.
    pub fn new(url: impl Into<String>, application_name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: Schema::default(),
            application_name: application_name.into(),
            connections_max: 8,
            acquire_timeout: Duration::from_secs(5),
            statement_max: Duration::from_secs(4),
            lock_max: Duration::from_millis(1_500),
            nested_loops_only: false,
        }
    }

    /// How long the client waits for the answer to one statement.
    pub(crate) fn answer_max(&self) -> Duration {
        self.statement_max + ANSWER_MARGIN
    }

    /// What sqlx needs to connect.
    ///
    /// # Errors
    /// If the URL cannot be read.
    pub(crate) fn connect_options(&self) -> Result<PgConnectOptions> {
        let milliseconds = |duration: Duration| duration.as_millis().to_string();
        let mut options = PgConnectOptions::from_str(&self.url)?
            .application_name(&self.application_name)
            .statement_cache_capacity(200)
            .options([
                ("statement_timeout", milliseconds(self.statement_max)),
                ("lock_timeout", milliseconds(self.lock_max)),
                ("idle_in_transaction_session_timeout", milliseconds(IDLE_IN_TRANSACTION_MAX)),
                // A host that is gone without a word, while a statement of its runs or its answer is on the way.
                ("tcp_keepalives_idle", "1".into()),
                ("tcp_keepalives_interval", "1".into()),
                ("tcp_keepalives_count", "2".into()),
                ("tcp_user_timeout", milliseconds(IDLE_IN_TRANSACTION_MAX)),
            ]);
        if self.nested_loops_only {
            options = options.options([
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                ("enable_seqscan", "off"),
                // Reads all that its condition names, and sorts it, where an index gives the first in their order.
                ("enable_bitmapscan", "off"),
                // Their texts name the days of their executions (`days`), so one plan serves a day.
                ("plan_cache_mode", "force_generic_plan"),
                ("jit", "off"),
            ]);
        } else {
            // Planned for the ids at hand: a plan for any id locks all partitions that there are.
            options = options.options([("plan_cache_mode", "force_custom_plan")]);
        }
        Ok(options)
    }
}

/// A handle on Postgres, cheap to clone. Statements are in the modules of this crate.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) pool: Pool,
    pub(crate) connect: Box<PgConnectOptions>,
}

impl Store {
    /// A handle that connects when it is first used: a Postgres that is not there yet is no error here.
    ///
    /// # Errors
    /// If the URL cannot be read.
    pub fn connect_lazily(options: &StoreOptions) -> Result<Self> {
        let connect = options.connect_options()?;
        let pool_options =
            PgPoolOptions::new().max_connections(options.connections_max).acquire_timeout(options.acquire_timeout);
        // A hot flush need not ask first whether the connection lives: if it does not, the flush fails and is run again.
        let (limit, ask_first) = (options.answer_max(), !options.nested_loops_only);
        let pool = Pool::new(pool_options, connect.clone(), options.schema.clone(), limit, ask_first);
        Ok(Self { pool, connect: Box::new(connect) })
    }

    /// Makes one connection of its own, for whoever waits for Postgres: unlike the pool, which only says that it timed out,
    /// this says why there is none.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] with the cause.
    pub async fn reach(&self) -> Result<()> {
        let connection = Connection::connect(&self.connect, self.pool.schema(), REACH_MAX).await?;
        Ok(connection.close().await?)
    }

    /// Whether Postgres answers.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
