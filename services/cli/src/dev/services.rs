//! The three services as child processes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use carillon_kit::Stopped;
use carillon_servers::{Home, Process, free_port};
use carillon_store::Schema;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::backends::{Backends, POSTGRES_URL, REDIS_URL};
use super::screen::{Screen, short};

/// From start to ready on a busy machine.
const READY_MAX: Duration = Duration::from_secs(60);
/// What a service gets to drain, below what it gets to end.
const GRACE: &str = "3s";
/// Then it is killed: Ctrl-C stops all within seconds, also if one part hangs.
const STOP_MAX: Duration = Duration::from_secs(5);

/// All of them.
pub(super) struct Services {
    list: Vec<Service>,
}

/// One process.
pub(super) struct Service {
    process: Process,
    admin: SocketAddr,
    reported: bool,
}

impl Service {
    pub(super) fn name(&self) -> &str {
        self.process.name()
    }

    pub(super) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(super) fn admin_url(&self) -> String {
        format!("http://{}/metrics", self.admin)
    }

    /// `leader`: the name of the dispatcher that leads, if it is known which.
    pub(super) fn role(&self, leader: Option<&str>) -> &'static str {
        match leader.filter(|_| self.is_dispatcher()) {
            Some(leader) if leader == self.name() => "leads, ",
            Some(_) => "stands by, ",
            None => "",
        }
    }

    fn is_dispatcher(&self) -> bool {
        self.name().starts_with("dispatcher")
    }

    pub(super) fn log(&self) -> String {
        short(self.process.log())
    }
}

impl Services {
    pub(super) fn start(
        home: &Home,
        backends: &Backends,
        schema: &Schema,
        listen: SocketAddr,
        counts: (u16, u16),
    ) -> Result<Self> {
        let mut services = Self { list: Vec::new() };
        let logs = home.path().join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let roles = [("dispatcher", counts.0), ("executor", counts.1), ("gateway", 1)];
        for (role, count) in roles {
            for number in 1..=count {
                let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
                let name = format!("{role}-{number}");
                let mut command = Command::new(binary(role)?);
                command
                    .env(POSTGRES_URL, &backends.postgres_url)
                    .env("CARILLON_POSTGRES_SCHEMA", schema.name())
                    .env(REDIS_URL, &backends.redis_url)
                    .env("CARILLON_ADMIN_LISTEN", admin.to_string())
                    .env("CARILLON_GATEWAY_LISTEN", listen.to_string())
                    .env("CARILLON_SHUTDOWN_GRACE", GRACE);
                let log = fresh_log(&logs, &name);
                // No mercy at the end: what they hold is in Postgres and Redis.
                let process = home.spawn(&name, &mut command, &log, Signal::SIGKILL)?;
                services.list.push(Service { process, admin, reported: false });
            }
        }
        Ok(services)
    }

    pub(super) fn list(&self) -> impl Iterator<Item = &Service> {
        // The gateway first: it is what people look for.
        self.list.iter().rev().take(1).chain(self.list.iter().take(self.list.len().saturating_sub(1)))
    }

    /// Names and admin ports of those dispatchers that have not ended.
    pub(super) fn dispatchers(&self) -> impl Iterator<Item = (String, SocketAddr)> {
        let dispatchers = self.list.iter().filter(|service| service.is_dispatcher() && !service.reported);
        dispatchers.map(|service| (service.name().to_owned(), service.admin))
    }

    /// Waits until each says that it is ready.
    pub(super) async fn ready(&mut self, stop: &CancellationToken) -> Result<()> {
        let deadline = Instant::now() + READY_MAX;
        for service in &mut self.list {
            loop {
                if let Some(status) = service.process.ended() {
                    bail!("{} has ended ({status}):\n{}", service.name(), service.process.log_tail());
                }
                let missing = match not_ready(service.admin) {
                    None => break,
                    Some(missing) => missing,
                };
                if Instant::now() >= deadline {
                    let tail = service.process.log_tail();
                    bail!("{} is not ready: {missing}; {}:\n{tail}", service.name(), service.log());
                }
                tokio::select! {
                    () = stop.cancelled() => return Err(Stopped.into()),
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                }
            }
        }
        Ok(())
    }

    /// Says so once if one has ended: killed by a curious person, or by itself. The others go on.
    pub(super) fn report_ended(&mut self, screen: Screen) {
        for service in &mut self.list {
            if !service.reported
                && let Some(status) = service.process.ended()
            {
                service.reported = true;
                screen.step(&format!(
                    "{} has ended ({status}), see {}; the others go on",
                    service.name(),
                    service.log()
                ));
            }
        }
    }

    /// Asks all, then makes sure.
    pub(super) fn stop(&mut self, screen: Screen) {
        for service in &self.list {
            service.process.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + STOP_MAX;
        for service in &mut self.list {
            if service.process.wait(deadline.saturating_duration_since(Instant::now())).is_none() {
                screen.step(&format!("{} does not stop and is killed, see {}", service.name(), service.log()));
                service.process.kill();
            }
        }
    }
}

/// Asks each service whether it can read its settings, before anything is made or migrated.
pub(super) fn check_settings(postgres_url: Option<&str>, redis_url: Option<&str>, listen: SocketAddr) -> Result<()> {
    let private = |scheme: &str| format!("{scheme}://127.0.0.1:1/private");
    for role in ["gateway", "dispatcher", "executor"] {
        let mut command = Command::new(binary(role)?);
        command
            .arg("--check-config")
            .env(POSTGRES_URL, postgres_url.map_or_else(|| private("postgres"), str::to_owned))
            .env(REDIS_URL, redis_url.map_or_else(|| private("redis"), str::to_owned))
            .env("CARILLON_GATEWAY_LISTEN", listen.to_string());
        let output = command.output().with_context(|| format!("cannot start carillon-{role}"))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

fn binary(role: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where am I?")?;
    let path = own.with_file_name(format!("carillon-{role}"));
    if !path.is_file() {
        bail!("{} is missing: `make run` builds it, or `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}

/// The log of the start before is kept beside it.
fn fresh_log(logs: &Path, name: &str) -> PathBuf {
    let log = logs.join(format!("{name}.log"));
    let _ = std::fs::rename(&log, logs.join(format!("{name}.before.log")));
    log
}

/// What `/readyz` misses; none if it is ready.
fn not_ready(admin: SocketAddr) -> Option<String> {
    match get(admin, "/readyz") {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => None,
        Ok(answer) => Some(answer.lines().skip_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")),
        Err(error) => Some(error.to_string()),
    }
}

pub(super) fn get(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
