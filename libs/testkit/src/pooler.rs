//! A PgBouncer before Postgres, as operators put one there.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use carillon_servers::{Home, Owner, Process, USER, find_pgbouncer, free_port};
use nix::sys::signal::Signal;
use sqlx::{Connection as _, PgConnection};

use crate::{Database, wait_until};

/// It starts in milliseconds.
const START_MAX: Duration = Duration::from_secs(20);

/// For how long a client has a session of the server to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// Until it disconnects.
    Session,
    /// Until its transaction ends.
    Transaction,
}

/// A pooler that passes on what comes for one database.
#[derive(Debug)]
pub struct Pooler {
    url: String,
    _process: Process,
    _home: Home,
}

impl Pooler {
    /// Starts one before `database` and waits until it lets somebody through.
    ///
    /// # Errors
    /// If PgBouncer is not installed (the text says what to install), or does not start.
    pub async fn start(database: &Database, mode: PoolMode) -> Result<Self> {
        let program = find_pgbouncer()?;
        let home = Home::temporary()?;
        let port = free_port()?;
        let users = home.path().join("users.txt");
        std::fs::write(&users, format!("\"{USER}\" \"\"\n"))?;
        let settings = home.path().join("pgbouncer.ini");
        std::fs::write(&settings, configuration(database.port()?, port, mode, &users))?;
        let mut command = Command::new(program);
        command.arg(&settings).current_dir(home.path());
        // It refuses to run as root.
        Owner::for_servers()?.apply(&mut command);
        let mut process = home.spawn("pgbouncer", &mut command, &home.path().join("pgbouncer.log"), Signal::SIGTERM)?;
        let url = database.url_through(port);
        wait_until("the pooler to let somebody through", START_MAX, || {
            let ended = process.ended().map(|status| format!("it has ended, {status}: {}", process.log_tail()));
            let connecting = PgConnection::connect(&url);
            async move {
                ended.map_or(Ok(()), |why| Err(anyhow::anyhow!(why)))?;
                anyhow::Ok(connecting.await?.close().await?)
            }
        })
        .await?;
        Ok(Self { url, _process: process, _home: home })
    }

    /// The URL of the database through it.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// The parameters that it is told to pass over are sent by every client of ours: without that it lets none of them in.
fn configuration(postgres_port: u16, port: u16, mode: PoolMode, users: &Path) -> String {
    let mode = match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
    };
    format!(
        "[databases]
* = host=127.0.0.1 port={postgres_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {}
pool_mode = {mode}
ignore_startup_parameters = options, extra_float_digits
",
        users.display()
    )
}
