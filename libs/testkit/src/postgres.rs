//! Postgres for tests: one server per test process, one database per test, copied from a migrated template. A database
//! rather than a schema, since advisory locks are per database: two tests must not share a leader.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use carillon_servers::{Home, Owner, PostgresServer, StopMode, USER, find_postgres, free_port};
use chrono::{Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

use crate::wait_until;
use crate::wall_clock::WallClock;

/// Generous: tests run side by side, each with several pools and whole clusters.
const CONNECTIONS_MAX: &str = "400";
/// How long a test's own statement waits for a server that is not there.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The name of a server's directory in its home.
const NAME: &str = "postgres";
/// How long a standby may take to get what its primary has.
const FOLLOW_MAX: Duration = Duration::from_secs(30);
/// What a database is copied from, and the day around which it has partitions.
const TEMPLATE: &str = "carillon_template";
/// No test is given a database so shortly before midnight, as long as one takes that looks at days: it begins after it.
const BEFORE_MIDNIGHT: TimeDelta = TimeDelta::seconds(90);
/// Nothing here must survive a power cut; the commits still reach the log in order, so a kill -9 loses nothing.
const FAST: [(&str, &str); 8] = [
    ("max_connections", CONNECTIONS_MAX),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "2GB"),
    ("max_locks_per_transaction", "128"),
    // A program that names a table without its schema shall not find it, as it would in that of its user's name.
    ("search_path", "nowhere"),
];

/// Where the programs keep what is theirs, and first of all a test's own statements look.
const SCHEMA: &str = "carillon";

static SHARED: OnceCell<Shared> = OnceCell::const_new();
static NEXT_NAME: AtomicU32 = AtomicU32::new(1);

/// The server of this test process. Never dropped: the watcher of its home ends it with the process.
struct Shared {
    url: String,
    /// The day of the newest template.
    template: tokio::sync::Mutex<Option<NaiveDate>>,
    _server: Mutex<PostgresServer>,
}

/// A database of one test.
#[derive(Clone, Debug)]
pub struct Database {
    url: String,
    admin_url: String,
    name: String,
}

impl Database {
    /// A migrated one on the server that all tests of this process share.
    ///
    /// # Errors
    /// If Postgres is not installed or does not start.
    pub async fn new() -> Result<Self> {
        let shared = shared().await?;
        Self::on(&shared.url, Some(&shared.template_of(a_day().await?).await?)).await
    }

    /// An empty one, without a schema.
    ///
    /// # Errors
    /// If Postgres is not installed or does not start.
    pub async fn empty() -> Result<Self> {
        a_day().await?;
        Self::on(&shared().await?.url, None).await
    }

    async fn on(admin_url: &str, template: Option<&str>) -> Result<Self> {
        let name = format!("test_{}", NEXT_NAME.fetch_add(1, Ordering::Relaxed));
        let mut admin = PgConnection::connect(admin_url).await.context("cannot reach the Postgres of the tests")?;
        let template = template.map(|template| format!(" TEMPLATE {template}")).unwrap_or_default();
        run(&mut admin, format!("CREATE DATABASE {name}{template}")).await?;
        admin.close().await?;
        Ok(Self { url: with_database(admin_url, &name), admin_url: admin_url.to_owned(), name })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL through another port, such as that of a [`crate::Proxy`].
    pub fn url_through(&self, port: u16) -> String {
        with_port(&self.url, port)
    }

    /// The port of its server.
    ///
    /// # Errors
    /// If the URL has none.
    pub fn port(&self) -> Result<u16> {
        let place = self.url.split('@').nth(1).and_then(|rest| rest.split('/').next());
        let port = place.and_then(|place| place.rsplit_once(':')).map(|(_, port)| port);
        port.and_then(|port| port.parse().ok()).with_context(|| format!("{} has no port", self.url))
    }

    /// How a test's own statements get there, which name tables without their schema: only these, for what is tested must not
    /// do so.
    ///
    /// # Errors
    /// If the URL cannot be read.
    pub fn options(&self) -> Result<PgConnectOptions> {
        let options: PgConnectOptions = self.url.parse()?;
        Ok(options.options([("search_path", format!("{SCHEMA},public"))]))
    }

    /// A small pool for a test's own statements. It belongs to the runtime of the test that asks.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn pool(&self) -> Result<PgPool> {
        let pool =
            PgPoolOptions::new().max_connections(4).acquire_timeout(ANSWER_MAX).connect_with(self.options()?).await;
        pool.with_context(|| format!("cannot connect to {}", self.url))
    }

    /// Ends the sessions of this database whose `application_name` matches a LIKE pattern, as an administrator would.
    /// Returns how many.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn terminate_backends(&self, application_name_like: &str) -> Result<i64> {
        let mut admin = PgConnection::connect(&self.admin_url).await?;
        let ended: i64 = sqlx::query_scalar(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = $1 AND application_name LIKE $2 AND pid <> pg_backend_pid()",
        )
        .bind(&self.name)
        .bind(application_name_like)
        .fetch_one(&mut admin)
        .await?;
        admin.close().await?;
        Ok(ended)
    }

    /// Cancels for `lasts` what those sessions do at that moment, if anything; at random, up to `apart` from each other.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn cancel_statements(&self, application_name_like: &str, lasts: Duration, apart: Duration) -> Result<()> {
        let mut admin = PgConnection::connect(&self.admin_url).await?;
        let (seconds, apart) = (lasts.as_secs_f64(), apart.as_secs_f64());
        let cancelling = format!(
            "DO $$ BEGIN
               WHILE clock_timestamp() < statement_timestamp() + {seconds} * interval '1 second' LOOP
                 PERFORM pg_stat_clear_snapshot();
                 PERFORM pg_cancel_backend(pid) FROM pg_stat_activity
                   WHERE datname = '{}' AND application_name LIKE '{application_name_like}' AND pid <> pg_backend_pid();
                 PERFORM pg_sleep(random() * {apart});
               END LOOP;
             END $$",
            self.name
        );
        sqlx::raw_sql(AssertSqlSafe(cancelling)).execute(&mut admin).await?;
        admin.close().await?;
        Ok(())
    }
}

/// A server of one's own with one migrated database.
#[derive(Debug)]
pub struct Postgres {
    server: Mutex<PostgresServer>,
    database: Database,
}

impl Postgres {
    /// Starts one; `settings` override the configuration (`("fsync", "on")`).
    ///
    /// # Errors
    /// If Postgres is not installed or does not start.
    pub async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_in(Home::temporary()?, settings).await
    }

    /// Starts one on a host whose wall clock can be set ([`WallClock`]).
    ///
    /// # Errors
    /// If Postgres is not installed or does not start.
    pub async fn start_by(clock: &WallClock) -> Result<Self> {
        let variables = clock.environment();
        let started = Self::start(&[]).await?;
        started.stop(StopMode::Fast);
        started.server().set_environment(variables);
        started.start_again()?;
        Ok(started)
    }

    /// The same, whose data is in a directory of the caller's choice: a small disk, say.
    ///
    /// # Errors
    /// If Postgres is not installed or does not start.
    pub async fn start_in(home: Home, settings: &[(&str, &str)]) -> Result<Self> {
        let server = start_server(home, settings.to_vec()).await?;
        let admin_url = server.url("postgres");
        let database = Database::on(&admin_url, None).await?;
        migrate(database.url(), a_day().await?).await?;
        Ok(Self { server: Mutex::new(server), database })
    }

    /// Starts an asynchronous standby of this one, which it follows through `port`, such as that of a [`crate::Proxy`].
    ///
    /// # Errors
    /// If the base backup cannot be taken, or the standby does not start.
    pub async fn standby(&self, port: u16) -> Result<Self> {
        let home = Home::temporary()?;
        let started = tokio::task::spawn_blocking(move || {
            take_base_backup(port, &home.path().join(NAME))?;
            let mut server = PostgresServer::new(&home, NAME, free_port()?, &FAST)?;
            server.start()?;
            anyhow::Ok(server)
        });
        let server = started.await??;
        let Database { url, admin_url, name } = &self.database;
        let [url, admin_url] = [url, admin_url].map(|url| with_port(url, server.port()));
        Ok(Self { server: Mutex::new(server), database: Database { url, admin_url, name: name.clone() } })
    }

    /// Waits until `standby` has all that is committed here now.
    ///
    /// # Errors
    /// If it does not get there, or one of them does not answer.
    pub async fn await_standby(&self, standby: &Self) -> Result<()> {
        let mut primary = PgConnection::connect(&self.database.admin_url).await?;
        let written: String = sqlx::query_scalar("SELECT pg_current_wal_lsn()::text").fetch_one(&mut primary).await?;
        let pool = standby.database.pool().await?;
        let arrived = wait_until("the standby to follow", FOLLOW_MAX, || async {
            let statement = "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)";
            let has_it: bool = sqlx::query_scalar(statement).bind(&written).fetch_one(&pool).await?;
            ensure!(has_it, "it has not got to {written}");
            Ok(())
        });
        arrived.await?;
        pool.close().await;
        Ok(primary.close().await?)
    }

    /// Makes a primary of a standby, with what it has; waits until it may be written to.
    ///
    /// # Errors
    /// If it is none, or does not become one.
    pub async fn promote(&self) -> Result<()> {
        let mut admin = PgConnection::connect(&self.database.admin_url).await?;
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote()").fetch_one(&mut admin).await?;
        ensure!(promoted, "it was not promoted");
        Ok(admin.close().await?)
    }

    /// Its database.
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// Stops it and waits for its end.
    pub fn stop(&self, mode: StopMode) {
        self.server().stop(mode);
    }

    /// Starts it again, on the same port, with its data.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_again(&self) -> Result<()> {
        self.server().start()
    }

    /// Whether its process lives: a full disk ends it.
    pub fn lives(&self) -> bool {
        self.server().process().is_some_and(|process| process.ended().is_none())
    }

    /// Its process id while it runs: to freeze it, or to read what it has used.
    pub fn pid(&self) -> Option<i32> {
        self.server().process().map(|process| process.pid())
    }

    fn server(&self) -> MutexGuard<'_, PostgresServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn shared() -> Result<&'static Shared> {
    SHARED
        .get_or_try_init(|| async {
            let server = start_server(Home::temporary()?, Vec::new()).await?;
            let url = server.url("postgres");
            Ok(Shared { url, template: tokio::sync::Mutex::default(), _server: Mutex::new(server) })
        })
        .await
}

/// Today, by the clock that the servers of the tests have too, once it is sure to last for a test.
async fn a_day() -> Result<NaiveDate> {
    let limit = BEFORE_MIDNIGHT.to_std()? + Duration::from_secs(10);
    wait_until("midnight to be over", limit, || {
        let now = Utc::now();
        let (day, later) = (now.date_naive(), (now + BEFORE_MIDNIGHT).date_naive());
        std::future::ready(if later == day { Ok(day) } else { Err(now) })
    })
    .await
}

impl Shared {
    /// The template of a day, made by the first who asks.
    async fn template_of(&self, day: NaiveDate) -> Result<String> {
        let mut newest = self.template.lock().await;
        let name = format!("{TEMPLATE}_{}", day.format("%Y_%m_%d"));
        if newest.is_none_or(|newest| newest < day) {
            let mut admin = PgConnection::connect(&self.url).await?;
            run(&mut admin, format!("CREATE DATABASE {name}")).await?;
            migrate(&with_database(&self.url, &name), day).await?;
            // Nobody may be connected to what is copied, not even a curious test.
            run(&mut admin, format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false IS_TEMPLATE true")).await?;
            admin.close().await?;
            *newest = Some(day);
        }
        Ok(name)
    }
}

/// On a thread for blocking work: making a data directory takes a second.
async fn start_server(home: Home, settings: Vec<(&str, &str)>) -> Result<PostgresServer> {
    let own: Vec<(String, String)> = settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let started = tokio::task::spawn_blocking(move || {
        let mut settings = FAST.to_vec();
        settings.extend(own.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut server = PostgresServer::new(&home, NAME, free_port()?, &settings)?;
        server.start()?;
        Ok(server)
    });
    started.await?
}

/// Copies the server at `port` to `data`, ready to follow it.
fn take_base_backup(port: u16, data: &Path) -> Result<()> {
    let owner = Owner::for_servers()?;
    std::fs::create_dir(data).with_context(|| format!("cannot make {}", data.display()))?;
    std::fs::set_permissions(data, Permissions::from_mode(0o700))?;
    owner.give(data)?;
    let mut command = Command::new(find_postgres()?.initdb.with_file_name("pg_basebackup"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--username", USER]);
    command.args(["--write-recovery-conf", "--checkpoint", "fast", "--no-sync", "--pgdata"]).arg(data);
    let output = owner.apply(command.current_dir(data)).output().context("cannot start pg_basebackup")?;
    ensure!(output.status.success(), "pg_basebackup failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// As `carillon migrate` does it, from the same files: schema, then the partitions of the days around today.
async fn migrate(url: &str, today: NaiveDate) -> Result<()> {
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
    let mut migrator = sqlx::migrate!("../../migrations");
    migrator.create_schema(SCHEMA);
    migrator.dangerous_set_table_name(format!("{SCHEMA}._sqlx_migrations"));
    migrator.run(&pool).await.context("cannot migrate")?;
    for (back, ahead) in [(1, 0), (0, 0), (0, 1), (0, 2)] {
        let day = today - Days::new(back) + Days::new(ahead);
        let bounds = [day, day + Days::new(1)];
        let [from, to] = bounds.map(|day| carillon_core::ids::first_at(day.and_time(NaiveTime::MIN).and_utc()));
        for table in ["job_executions", "job_execution_logs", "execution_attempts", "execution_failures"] {
            sqlx::query("SELECT carillon.make_partition($1, $2, $3, $4)")
                .bind(table)
                .bind(format!("{table}_{}", day.format("%Y_%m_%d")))
                .bind(from)
                .bind(to)
                .execute(&pool)
                .await?;
        }
    }
    pool.close().await;
    Ok(())
}

async fn run(connection: &mut PgConnection, statement: String) -> Result<()> {
    let context = format!("cannot run {statement}");
    // Made of our own names only: statements about databases take no parameters.
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.context(context)?;
    Ok(())
}

fn with_database(url: &str, name: &str) -> String {
    url.rsplit_once('/').map_or_else(|| url.to_owned(), |(server, _)| format!("{server}/{name}"))
}

fn with_port(url: &str, port: u16) -> String {
    let Some((server, database)) = url.rsplit_once('/') else { return url.to_owned() };
    let Some((host, _)) = server.rsplit_once(':') else { return url.to_owned() };
    format!("{host}:{port}/{database}")
}
