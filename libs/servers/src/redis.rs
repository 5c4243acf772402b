//! A private Redis: own directory, own port on 127.0.0.1.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::process::{Process, until};
use crate::programs::find_redis;
use crate::{Home, Owner};

/// Loading its log takes time when there is much of it.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(10);

/// A Redis of ours.
#[derive(Debug)]
pub struct RedisServer {
    home: Home,
    program: PathBuf,
    name: String,
    directory: PathBuf,
    log: PathBuf,
    port: u16,
    append_only: bool,
    process: Option<Process>,
}

impl RedisServer {
    /// One whose directory is `home/name`. With `append_only` it keeps its data over a restart. Not started.
    ///
    /// # Errors
    /// If there is no Redis on this machine, or its directory cannot be made.
    pub fn new(home: &Home, name: &str, port: u16, append_only: bool) -> Result<Self> {
        let directory = home.path().join(name);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let log = home.path().join(format!("{name}.log"));
        let name = name.to_owned();
        Ok(Self { home: home.clone(), program: find_redis()?, name, directory, log, port, append_only, process: None })
    }

    /// Starts it, waits until it answers. Nothing happens if it runs.
    ///
    /// # Errors
    /// If it does not come up; the text holds the end of its log.
    pub fn start(&mut self) -> Result<()> {
        if self.process.as_mut().is_some_and(|process| process.ended().is_none()) {
            return Ok(());
        }
        let append_only = if self.append_only { "yes" } else { "no" };
        let mut command = Command::new(&self.program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", append_only, "--appendfsync", "everysec", "--daemonize", "no"]);
        command.arg("--dir").arg(&self.directory);
        // It keeps the command line that it was started by: an orphan is known by the directory in it.
        command.args(["--set-proc-title", "no"]);
        command.current_dir(&self.directory);
        Owner::me().apply(&mut command);
        let mut process = self.home.spawn(&self.name, &mut command, &self.log, Signal::SIGTERM)?;
        let mut dead = false;
        let up = until(START_MAX, || {
            dead = process.ended().is_some();
            dead || answers(self.port)
        });
        if dead || up.is_err() {
            bail!("Redis did not start; {}:\n{}", self.log.display(), process.log_tail());
        }
        self.process = Some(process);
        Ok(())
    }

    /// Stops it in good order, waits for its end. Its port stays the same for the next start.
    pub fn stop(&mut self) {
        self.stop_within(STOP_MAX);
    }

    /// Stops it; kills it if it has not ended within `limit`. Says whether it had.
    pub fn stop_within(&mut self, limit: Duration) -> bool {
        self.process.take().is_none_or(|mut process| process.stop(Signal::SIGTERM, limit))
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
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

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn answers(port: u16) -> bool {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let asked = TcpStream::connect_timeout(&address, TIMEOUT).and_then(|mut stream| {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG")
    });
    asked.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::free_port;

    #[test]
    fn it_comes_back_on_its_port() {
        let home = Home::temporary().unwrap();
        let mut server = RedisServer::new(&home, "redis", free_port().unwrap(), true).unwrap();
        for _ in 0..2 {
            server.start().unwrap();
            assert!(answers(server.port()));
            server.kill();
            assert!(!answers(server.port()));
        }
        server.start().unwrap();
        server.stop();
        assert!(!answers(server.port()));
    }
}
