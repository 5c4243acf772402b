//! A private Postgres: own data directory, own port on 127.0.0.1, no password (only this machine reaches it).

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::Home;
use crate::owner::Owner;
use crate::process::{Process, command_line_of, end_stranger, until};
use crate::programs::{PostgresPrograms, find_postgres};

/// The only user, with all rights.
pub const USER: &str = "carillon";
/// Recovery after a kill replays the log first.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(20);

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Connections are cut, transactions rolled back, data flushed.
    Fast,
    /// As a crash: the next start recovers.
    Immediate,
}

/// A Postgres of ours.
#[derive(Debug)]
pub struct PostgresServer {
    home: Home,
    programs: PostgresPrograms,
    owner: Owner,
    data: PathBuf,
    log: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl PostgresServer {
    /// One whose data is in `home/name`, made there if it is new, with `settings` over the configuration. Not started.
    ///
    /// # Errors
    /// If there is no Postgres on this machine, or its data directory cannot be made.
    pub fn new(home: &Home, name: &str, port: u16, settings: &[(&str, &str)]) -> Result<Self> {
        let programs = find_postgres()?;
        let owner = Owner::for_servers()?;
        let data = home.path().join(name);
        let log = home.path().join(format!("{name}.log"));
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = Vec::new();
        let server =
            Self { home: home.clone(), programs, owner, data, log, port, settings, environment, process: None };
        server.initialise()?;
        Ok(server)
    }

    /// Variables for its process from the next start on.
    pub fn set_environment(&mut self, variables: Vec<(String, String)>) {
        self.environment = variables;
    }

    /// Starts it, waits until it answers. Nothing happens if it runs.
    ///
    /// # Errors
    /// If it does not come up; the text holds the end of its log.
    pub fn start(&mut self) -> Result<()> {
        if self.process.as_mut().is_some_and(|process| process.ended().is_none()) {
            return Ok(());
        }
        self.end_predecessor();
        let mut command = Command::new(&self.programs.postgres);
        command.arg("-D").arg(&self.data).args(["-p", &self.port.to_string(), "-h", "127.0.0.1"]);
        // TCP only: paths of sockets have a length limit that temporary directories on macOS exceed.
        command.args(["-c", "unix_socket_directories=", "-c", "logging_collector=off"]);
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // Where it may not go back to: the caller's directory may be closed to its user.
        command.current_dir(&self.data);
        command.envs(self.environment.iter().cloned());
        self.owner.apply(&mut command);
        // SIGQUIT rather than SIGKILL at the end: it takes its shared memory with it, of which a system has 4,096 at most.
        let mut process = self.home.spawn("postgres", &mut command, &self.log, Signal::SIGQUIT)?;
        let mut dead = false;
        let up = until(START_MAX, || {
            dead = process.ended().is_some();
            dead || answers(self.port)
        });
        if dead || up.is_err() {
            bail!("PostgreSQL did not start; {}:\n{}", self.log.display(), process.log_tail());
        }
        self.process = Some(process);
        Ok(())
    }

    /// Stops it, waits for its end. Its port stays the same for the next start.
    pub fn stop(&mut self, mode: StopMode) {
        self.stop_within(mode, STOP_MAX);
    }

    /// Stops it; kills it if it has not ended within `limit`. Says whether it had.
    pub fn stop_within(&mut self, mode: StopMode, limit: Duration) -> bool {
        let signal = match mode {
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        };
        self.process.take().is_none_or(|mut process| process.stop(signal, limit))
    }

    /// The running server.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Where it listens.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The URL of one of its databases; `postgres` is always there.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a database if it is not there. Spoken by hand: a client library would be the only dependency of this crate.
    ///
    /// # Errors
    /// If the server does not run or refuses it.
    pub fn create_database(&self, name: &str) -> Result<()> {
        let exists = format!("SELECT 'yes' FROM pg_database WHERE datname = '{name}'");
        if !self.query(&exists)?.contains("yes") {
            self.query(&format!("CREATE DATABASE \"{name}\""))?;
        }
        Ok(())
    }

    /// Runs one simple statement, returns its data rows as they came.
    fn query(&self, statement: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("PostgreSQL does not answer")?;
        stream.set_read_timeout(Some(START_MAX))?;
        stream.write_all(&startup_message())?;
        let mut rows = String::new();
        let mut asked = false;
        loop {
            let mut head = [0; 5];
            stream.read_exact(&mut head)?;
            let [kind, length @ ..] = head;
            let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
            stream.read_exact(&mut body)?;
            match kind {
                b'E' => bail!("{statement}: {}", String::from_utf8_lossy(&body).replace('\0', " ")),
                b'D' => rows.push_str(&String::from_utf8_lossy(&body)),
                // Ready: for the first time to be asked, for the second time the answer is whole.
                b'Z' if asked => break,
                b'Z' => {
                    let length = u32::try_from(statement.len() + 5)?;
                    let message = [b"Q", &length.to_be_bytes()[..], statement.as_bytes(), b"\0"].concat();
                    stream.write_all(&message)?;
                    asked = true;
                }
                _ => {}
            }
        }
        let _ = stream.write_all(&TERMINATE);
        Ok(rows)
    }

    /// In two steps, so that a data directory half made by a killed process is made again.
    fn initialise(&self) -> Result<()> {
        if self.data.join("PG_VERSION").exists() {
            return self.check_version();
        }
        let making = self.data.with_extension("making");
        let _ = fs::remove_dir_all(&making);
        fs::create_dir_all(&making).with_context(|| format!("cannot make {}", making.display()))?;
        fs::set_permissions(&making, Permissions::from_mode(0o700))?;
        self.owner.give(&making)?;
        if !self.owner.can_reach(&making) {
            bail!("the user of PostgreSQL cannot get to {}: a directory above it is closed to it", making.display());
        }
        let mut command = Command::new(&self.programs.initdb);
        command.arg("-D").arg(&making).args(["--username", USER, "--auth", "trust"]);
        command.args(["--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"]);
        command.current_dir(&making).stdin(Stdio::null());
        let output = self.owner.apply(&mut command).output().context("cannot start initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        fs::rename(&making, &self.data).with_context(|| format!("cannot move {}", making.display()))
    }

    fn check_version(&self) -> Result<()> {
        let version = fs::read_to_string(self.data.join("PG_VERSION")).unwrap_or_default();
        let version = version.trim();
        if version != self.programs.major.to_string() {
            bail!(
                "the data in {} is of PostgreSQL {version}, installed is {}: install {version}, or remove the directory",
                self.data.display(),
                self.programs.major
            );
        }
        Ok(())
    }

    /// A server of an owner that was killed may still hold the data, or have left a file that says so.
    fn end_predecessor(&self) {
        let file = self.data.join("postmaster.pid");
        let Ok(text) = fs::read_to_string(&file) else { return };
        let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
        if let Some(pid) = pid
            && command_line_of(pid).is_some_and(|line| line.contains(&*self.data.to_string_lossy()))
        {
            end_stranger(pid, Signal::SIGQUIT);
        }
        // Postgres itself checks whether the number is alive, and refuses to start if anybody has got it since.
        let _ = fs::remove_file(&file);
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop(StopMode::Immediate);
    }
}

const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// Version 3.0, our user, the database that is always there.
fn startup_message() -> Vec<u8> {
    let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
    startup.extend_from_slice(format!("user\0{USER}\0database\0postgres\0\0").as_bytes());
    let length = u32::try_from(startup.len()).unwrap_or_default();
    startup[..4].copy_from_slice(&length.to_be_bytes());
    startup
}

/// Whether a connection would be accepted: what `pg_isready` asks, without needing that program.
fn answers(port: u16) -> bool {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let asked = TcpStream::connect_timeout(&address, TIMEOUT).and_then(|mut stream| {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(&startup_message())?;
        let mut first = [0];
        stream.read_exact(&mut first)?;
        // R: come in. E: an error, such as "is starting up".
        let _ = stream.write_all(&TERMINATE);
        Ok(first[0] == b'R')
    });
    asked.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::free_port;

    #[test]
    fn it_starts_stops_and_starts_again_with_its_data_whatever_happened_to_it() {
        let home = Home::temporary().unwrap();
        let mut server = PostgresServer::new(&home, "postgres", free_port().unwrap(), &[("fsync", "off")]).unwrap();
        server.start().unwrap();
        for mode in [StopMode::Fast, StopMode::Immediate] {
            server.stop(mode);
            assert!(!answers(server.port()));
            server.start().unwrap();
        }
        // As if the owner had been killed together with the watcher: the server is an orphan, its pid file stands.
        let orphan = server.process.take().unwrap().forget();
        server.start().unwrap();
        assert_eq!(command_line_of(orphan).unwrap_or_default(), "");
        let fresh = Home::at(&home.path().join("other")).unwrap();
        let again = PostgresServer::new(&fresh, "postgres", free_port().unwrap(), &[]).unwrap();
        assert!(again.data.join("PG_VERSION").exists());
    }
}
