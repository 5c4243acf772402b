//! The servers that floor and product share: one PostgreSQL, one Redis, both private, both durable.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carillon_servers::{Home, PostgresServer, RedisServer, free_port};
use carillon_store::{Store, StoreOptions};
use carillon_testkit::RespClient;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Row};

/// What differs from PostgreSQL's own defaults; durability is spelled out, although it is the default. The sizes keep the
/// default 128 MB of buffers, and a checkpoint each gigabyte, from being what is measured.
pub const POSTGRES_SETTINGS: [(&str, &str); 7] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "512MB"),
    ("max_wal_size", "4GB"),
    ("min_wal_size", "1GB"),
    ("max_connections", "120"),
];

/// Files of the log that are made before anything is measured: `min_wal_size` of them.
const WAL_FILES: u32 = 64;

/// How long a replica takes for all that there is.
const FOLLOW_MAX: Duration = Duration::from_secs(60);

/// Both servers.
#[derive(Debug)]
pub struct Servers {
    pub home: Home,
    postgres: PostgresServer,
    redis: RedisServer,
    /// Follows it.
    replica: Option<RedisServer>,
    postgres_pid: i32,
    redis_pid: i32,
    statements: bool,
}

impl Servers {
    /// Starts both; with `statements` PostgreSQL notes what each statement costs.
    ///
    /// # Errors
    /// If one is not installed or does not start, or their data would lie in memory.
    pub async fn start(statements: bool) -> Result<Self> {
        tokio::task::spawn_blocking(move || Self::start_here(statements)).await?
    }

    fn start_here(statements: bool) -> Result<Self> {
        let home = Home::temporary()?;
        let kind = file_system_of(home.path());
        ensure!(
            kind != "tmpfs" && kind != "ramfs",
            "{} lies in memory, where a sync costs nothing: set TMPDIR to a directory on a disk",
            home.path().display()
        );
        let mut settings = POSTGRES_SETTINGS.to_vec();
        if statements {
            settings.push(("shared_preload_libraries", "pg_stat_statements"));
            settings.push(("track_io_timing", "on"));
        }
        let mut postgres = PostgresServer::new(&home, "postgres", free_port()?, &settings)?;
        postgres.start()?;
        let mut redis = RedisServer::new(&home, "redis", free_port()?, true)?;
        redis.start()?;
        let postgres_pid = postgres.process().context("PostgreSQL has ended")?.pid();
        let redis_pid = redis.process().context("Redis has ended")?.pid();
        Ok(Self { home, postgres, redis, replica: None, postgres_pid, redis_pid, statements })
    }

    /// A new, migrated database, and a pool on it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn database(&self, name: &str) -> Result<Database> {
        let admin = pool(&self.postgres.url("postgres"), 1).await?;
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&admin).await.with_context(|| format!("cannot make the database {name}"))?;
        use_log_files(&admin).await?;
        admin.close().await;
        let url = self.postgres.url(name);
        let store = Store::connect_lazily(&StoreOptions::new(url.as_str(), "carillon-bench"))?;
        store.migrate().await?;
        store.close().await;
        let pool = pool(&url, 4).await?;
        if self.statements {
            sqlx::raw_sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").execute(&pool).await?;
        }
        Ok(Database { url, pool })
    }

    /// Where PostgreSQL listens.
    pub const fn postgres_port(&self) -> u16 {
        self.postgres.port()
    }

    /// Where Redis listens.
    pub const fn redis_port(&self) -> u16 {
        self.redis.port()
    }

    /// Ends Redis as a crash does.
    pub fn kill_redis(&mut self) {
        self.redis.kill();
    }

    /// Starts it again, waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_redis(&mut self) -> Result<()> {
        self.redis.start()?;
        self.redis_pid = self.redis.process().context("Redis has ended")?.pid();
        Ok(())
    }

    /// Starts a second Redis, waits until it has what the first one holds.
    ///
    /// # Errors
    /// If it does not come up, or gets nothing.
    pub fn follow_redis(&mut self) -> Result<()> {
        let mut replica = RedisServer::new(&self.home, "replica", free_port()?, true)?;
        replica.start()?;
        let mut client = RespClient::connect(replica.port())?;
        client.command(&["REPLICAOF", "127.0.0.1", &self.redis.port().to_string()])?;
        let deadline = Instant::now() + FOLLOW_MAX;
        while !client.command(&["INFO", "replication"])?.text().unwrap_or_default().contains("master_link_status:up") {
            ensure!(Instant::now() < deadline, "the replica follows nobody");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.replica = Some(replica);
        Ok(())
    }

    /// Kills Redis, and makes a master of the replica: [`Servers::redis_port`] is another one now.
    ///
    /// # Errors
    /// If there is none, or it does not answer.
    pub fn fail_over(&mut self) -> Result<()> {
        let replica = self.replica.take().context("nobody follows")?;
        self.redis.kill();
        self.redis = replica;
        self.redis_pid = self.redis.process().context("the replica has ended")?.pid();
        self.redis_client()?.command(&["REPLICAOF", "NO", "ONE"])?;
        Ok(())
    }

    /// Where Redis is.
    pub fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// A connection to Redis that belongs to no client library.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub fn redis_client(&self) -> Result<RespClient> {
        RespClient::connect(self.redis.port())
    }

    /// The first process of PostgreSQL; the others are its children.
    pub const fn postgres_pid(&self) -> i32 {
        self.postgres_pid
    }

    /// The process of Redis.
    pub const fn redis_pid(&self) -> i32 {
        self.redis_pid
    }
}

/// A database of ours.
#[derive(Clone, Debug)]
pub struct Database {
    pub url: String,
    pub pool: PgPool,
}

impl Database {
    /// Takes out the dead rows that a round has left, so that each begins alike. (Autovacuum runs besides, as it likes.)
    ///
    /// # Errors
    /// If PostgreSQL refuses.
    pub async fn tidy(&self) -> Result<()> {
        let statement = "VACUUM (ANALYZE) jobs, job_timers, job_stats, dispatch_batches, job_executions";
        sqlx::raw_sql(statement).execute(&self.pool).await?;
        Ok(())
    }

    /// The costliest statements since the last call, as lines to print; none unless PostgreSQL notes them.
    ///
    /// # Errors
    /// If PostgreSQL refuses.
    pub async fn costliest(&self) -> Result<Vec<String>> {
        let statement = "SELECT calls, total_exec_time AS total, mean_exec_time AS mean, rows, wal_bytes::bigint AS wal, \
                                left(regexp_replace(query, '\\s+', ' ', 'g'), 100) AS query \
                         FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                         ORDER BY total_exec_time DESC LIMIT 14";
        let mut lines = vec![format!(
            "{:>8} {:>10} {:>9} {:>9} {:>9}  statement",
            "calls", "total ms", "mean ms", "rows", "WAL KB"
        )];
        for row in sqlx::query(statement).fetch_all(&self.pool).await? {
            lines.push(format!(
                "{:>8} {:>10.1} {:>9.3} {:>9} {:>9}  {}",
                row.try_get::<i64, _>("calls")?,
                row.try_get::<f64, _>("total")?,
                row.try_get::<f64, _>("mean")?,
                row.try_get::<i64, _>("rows")?,
                row.try_get::<i64, _>("wal")? / 1024,
                row.try_get::<String, _>("query")?,
            ));
        }
        self.forget_statements().await?;
        Ok(lines)
    }

    /// Begins to count anew.
    ///
    /// # Errors
    /// If PostgreSQL refuses.
    pub async fn forget_statements(&self) -> Result<()> {
        sqlx::raw_sql("SELECT pg_stat_statements_reset()").execute(&self.pool).await?;
        Ok(())
    }
}

/// A server that has run for a while writes its log into files that it has used before. A new one makes each, 16 MB of zeros,
/// while somebody's COMMIT waits for it: 17 ms of lateness each few seconds that no old server has.
async fn use_log_files(admin: &PgPool) -> Result<()> {
    for _ in 0..WAL_FILES {
        sqlx::raw_sql("SELECT pg_logical_emit_message(false, 'carillon-bench', ''), pg_switch_wal()")
            .execute(admin)
            .await?;
    }
    sqlx::raw_sql("CHECKPOINT").execute(admin).await?;
    Ok(())
}

/// Of the benchmark's own sessions, which name tables without their schema; a program does not.
pub const SEARCH_PATH: [(&str, &str); 1] = [("search_path", "carillon,public")];

async fn pool(url: &str, connections: u32) -> Result<PgPool> {
    let options: PgConnectOptions = url.parse()?;
    let options = options.application_name("carillon-bench").options(SEARCH_PATH);
    PgPoolOptions::new()
        .max_connections(connections)
        .connect_with(options)
        .await
        .with_context(|| format!("no answer from {url}"))
}

/// `ext4`, `tmpfs`, …; empty where the machine does not say.
pub fn file_system_of(path: &Path) -> String {
    let Ok(mounts) = std::fs::read_to_string("/proc/mounts") else { return String::new() };
    let mut best = (0, String::new());
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(_), Some(place), Some(kind)) = (words.next(), words.next(), words.next()) else { continue };
        if path.starts_with(place) && place.len() >= best.0 {
            best = (place.len(), kind.to_owned());
        }
    }
    best.1
}
