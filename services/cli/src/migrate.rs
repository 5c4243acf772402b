//! `carillon migrate`: brings the schema of a database to this version. One job of a deployment runs it, not each process.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use carillon_kit::config::{LogConfig, LogFormat, SecretUrl};
use carillon_store::{Schema, Store, StoreOptions, schema};
use tokio_util::sync::CancellationToken;

use crate::BadArguments;

/// Bring the schema of a Postgres database to the version of this program.
///
/// Waits for a Postgres that is not there yet. Applies what is missing, each migration in a transaction, and says which;
/// several at once wait for each other. Exit codes: 0 done (also if there was nothing to do), 1 failed, 64 bad arguments,
/// 130 interrupted.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the database is: postgres://user:password@host:port/database. DATABASE_URL is used if this is not given.
    #[arg(long, value_name = "URL", env = "CARILLON_POSTGRES_URL", hide_env_values = true)]
    postgres_url: Option<String>,
    /// The schema of that database in which all of it lies; made if it is missing.
    #[arg(long, value_name = "NAME", env = "CARILLON_POSTGRES_SCHEMA", default_value = schema::DEFAULT, value_parser = parse_schema)]
    postgres_schema: Schema,
    /// How long to wait for Postgres, in seconds. Without it: until it is there.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let given = arguments.postgres_url.filter(|url| !url.is_empty());
    let url = given.or_else(|| std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()));
    let Some(url) = url else {
        bail!(BadArguments("which database? Set CARILLON_POSTGRES_URL, or give --postgres-url".into()))
    };
    log_to_stdout();
    let shutdown = CancellationToken::new();
    carillon_kit::shutdown::listen(shutdown.clone())?;
    let store = connect(&url, &arguments.postgres_schema, &shutdown, arguments.wait.map(Duration::from_secs)).await?;
    anstream::println!("migrating {}, schema {}", SecretUrl::new(&url), arguments.postgres_schema.name());
    let migrated = store.migrate().await.context("cannot migrate")?;
    for (version, name) in &migrated.applied {
        anstream::println!("applied  {version:04} {name}");
    }
    if migrated.applied.is_empty() {
        anstream::println!("nothing to do, the schema is at version {:04}", migrated.newest);
    } else {
        anstream::println!("the schema is at version {:04}", migrated.newest);
    }
    store.close().await;
    Ok(())
}

/// An empty variable is one that is not set, as for the services.
pub(crate) fn parse_schema(name: &str) -> Result<Schema, String> {
    if name.is_empty() { Ok(Schema::default()) } else { Schema::new(name) }
}

/// A store that is not connected yet.
pub(crate) fn store(url: &str, schema: &Schema) -> Result<Store> {
    let shown = SecretUrl::new(url);
    shown.check_postgres().map_err(|rule| BadArguments(format!("CARILLON_POSTGRES_URL (or --postgres-url) {rule}")))?;
    let options = StoreOptions { connections_max: 2, schema: schema.clone(), ..StoreOptions::new(url, "carillon") };
    Store::connect_lazily(&options).with_context(|| format!("cannot read the URL {shown}"))
}

/// A store that answers. Waits for it, saying so.
async fn connect(url: &str, schema: &Schema, shutdown: &CancellationToken, limit: Option<Duration>) -> Result<Store> {
    let store = store(url, schema)?;
    let what = format!("Postgres at {}", SecretUrl::new(url));
    let there = carillon_kit::wait_for(&what, shutdown, || async { store.reach().await.map_err(anyhow::Error::new) });
    match limit {
        Some(limit) => match tokio::time::timeout(limit, there).await {
            Ok(outcome) => outcome?,
            Err(_) => bail!("{what} did not answer within {limit:?}"),
        },
        None => there.await?,
    }
    Ok(store)
}

/// Lines of the waiting helper reach the terminal.
pub(crate) fn log_to_stdout() {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn,carillon_kit=info".into());
    carillon_kit::telemetry::install(&LogConfig { level, format: LogFormat::Human });
}
