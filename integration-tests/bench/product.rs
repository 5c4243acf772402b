//! The product as it is shipped: its real binaries as processes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use carillon_core::job::Priority;
use carillon_core::line::Line;
use carillon_servers::{Process, free_port};
use carillon_stream::keys::Keys;
use carillon_stream::{Redis, RedisOptions};
use carillon_testkit::{RespClient, journal, wait_until};
use nix::sys::signal::Signal;

use crate::options::Plan;
use crate::servers::{Database, Servers};
use crate::usage::Who;

/// From start to ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// From SIGTERM to the end.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// In `directory`, or else beside this program.
    ///
    /// # Errors
    /// If one of the `needed` is missing.
    pub fn find(directory: Option<&Path>, needed: &[&str]) -> Result<Self> {
        let own = std::env::current_exe().context("where am I?")?;
        let directory = directory.or_else(|| own.parent()).unwrap_or_else(|| Path::new("."));
        for name in needed {
            let program = directory.join(name);
            ensure!(
                program.is_file(),
                "{} is missing: `make bench` builds it, or `cargo build --release -p {name}`",
                program.display()
            );
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Starts `dispatcher`, `executor` or `gateway`, with its admin port; what it runs on is for the caller to say.
    pub fn command(&self, program: &str, admin: u16) -> Command {
        let mut command = Command::new(self.directory.join(format!("carillon-{program}")));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("CARILLON_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        command
    }
}

/// Running processes of the product. They end with it.
#[derive(Debug)]
pub struct Product {
    dispatcher: Process,
    executors: Vec<(Process, u16)>,
    /// Tells the leader that something is due, as the gateway does.
    pub redis: Redis,
    /// The stream of the jobs.
    pub stream: Watch,
}

impl Product {
    /// Starts one dispatcher and the executors of `plan` on `database`, and waits until all are ready. `namespace` keeps
    /// runs apart in Redis; with `journal` the handlers write down when they start.
    ///
    /// # Errors
    /// If one does not become ready; the text holds the end of its log.
    pub async fn start(
        servers: &Servers,
        binaries: &Binaries,
        database: &Database,
        namespace: &str,
        plan: &Plan,
        journal: Option<&Path>,
    ) -> Result<Self> {
        let start = |program: &str, number: u32| {
            let admin = free_port()?;
            let name = format!("{program}-{namespace}-{number}");
            let mut command = binaries.command(program, admin);
            command.env("CARILLON_POSTGRES_URL", &database.url).env("CARILLON_REDIS_URL", servers.redis_url());
            command.env("CARILLON_REDIS_NAMESPACE", namespace);
            match program {
                "dispatcher" => command.env("CARILLON_DISPATCHER_BATCH_MAX", plan.batch.to_string()),
                _ => command.env("CARILLON_EXECUTOR_FLUSH_MAX", plan.batch.to_string()),
            };
            command.envs(plan.settings.iter().map(|(name, value)| (name, value)));
            if let Some(journal) = journal {
                command.env(journal::VARIABLE, journal);
            }
            let log = servers.home.path().join(format!("{name}.log"));
            anyhow::Ok((servers.home.spawn(&name, &mut command, &log, Signal::SIGKILL)?, admin))
        };
        let (mut dispatcher, admin) = start("dispatcher", 1)?;
        let mut executors = (1..=plan.executors).map(|number| start("executor", number)).collect::<Result<Vec<_>>>()?;
        ready(&mut dispatcher, admin).await?;
        for (executor, admin) in &mut executors {
            ready(executor, *admin).await?;
        }
        let options = RedisOptions { namespace: namespace.to_owned(), ..RedisOptions::new(servers.redis_url()) };
        let redis = Redis::connect_lazily(options)?;
        redis.ping().await?;
        Ok(Self { dispatcher, executors, redis, stream: Watch::of(servers, namespace)? })
    }

    /// Its processes, and those of the servers.
    pub fn who(&self, servers: &Servers) -> Who {
        Who {
            dispatchers: vec![self.dispatcher.pid()],
            executors: self.executors.iter().map(|(executor, _)| executor.pid()).collect(),
            ..who_serves(servers)
        }
    }

    /// Sum and count of a histogram over the executors, and over the dispatcher.
    pub fn mean_of(&self, histogram: &str) -> Option<f64> {
        let (mut sum, mut count) = (0.0, 0.0);
        for (_, admin) in &self.executors {
            let text = get(*admin, "/metrics").map(|(_, text)| text).unwrap_or_default();
            for line in text.lines() {
                let Some((series, value)) = line.rsplit_once(' ') else { continue };
                let value: f64 = value.parse().unwrap_or_default();
                let name = series.split('{').next().unwrap_or(series);
                if name.strip_suffix("_sum") == Some(histogram) {
                    sum += value;
                } else if name.strip_suffix("_count") == Some(histogram) {
                    count += value;
                }
            }
        }
        (count > 0.0).then(|| sum / count)
    }

    /// The end of each log: what a run that got stuck should show.
    pub fn logs(&self) -> String {
        let processes = std::iter::once(&self.dispatcher).chain(self.executors.iter().map(|(executor, _)| executor));
        processes.map(|process| format!("---- {}\n{}\n", process.name(), process.log_tail())).collect()
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// If a process does not end by itself.
    pub async fn stop(self) -> Result<()> {
        self.redis.close().await;
        let mut processes: Vec<Process> = self.executors.into_iter().map(|(executor, _)| executor).collect();
        processes.push(self.dispatcher);
        let stopped = tokio::task::spawn_blocking(move || {
            for process in &processes {
                process.signal(Signal::SIGTERM);
            }
            for process in &mut processes {
                let heard = process.wait(STOP_MAX).is_some();
                ensure!(heard, "{} did not end:\n{}", process.name(), process.log_tail());
            }
            Ok(())
        });
        stopped.await?
    }
}

/// The processes of the servers alone.
pub fn who_serves(servers: &Servers) -> Who {
    Who { postgres: servers.postgres_pid(), redis: servers.redis_pid(), ..Who::default() }
}

/// The line that all jobs here are of.
pub fn line() -> Line {
    Line::new("default", Priority::Medium)
}

/// A look at one stream that costs Redis a few microseconds, whatever it holds.
#[derive(Debug)]
pub struct Watch {
    client: RespClient,
    key: String,
}

impl Watch {
    /// The stream of [`line`].
    ///
    /// # Errors
    /// If Redis does not answer.
    pub fn of(servers: &Servers, namespace: &str) -> Result<Self> {
        Ok(Self::through(servers.redis_client()?, namespace))
    }

    /// The same through a connection that is there.
    pub fn through(client: RespClient, namespace: &str) -> Self {
        Self { client, key: Keys::new(namespace, 0).stream(&line()) }
    }

    /// How many entries were ever added, and how many are there.
    pub fn look(&mut self) -> (i64, i64) {
        // No stream yet: none were.
        let Ok(answer) = self.client.command(&["XINFO", "STREAM", &self.key]) else { return (0, 0) };
        let fields = answer.list();
        let number = |name: &str| {
            let position = fields.iter().position(|field| field.text() == Some(name));
            position.and_then(|position| fields.get(position + 1)?.number()).unwrap_or_default()
        };
        (number("entries-added"), number("length"))
    }

    /// Waits until `count` entries more than `before` were added, and all are acknowledged: each is recorded by then.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub async fn drained(&mut self, before: i64, count: i64, limit: Duration) -> Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let (added, length) = self.look();
            if added - before >= count && length == 0 {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("after {limit:?} {} of {count} entries were published, {length} are open", added - before);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Waits until a process says that it is ready.
///
/// # Errors
/// If it ends, or is not ready in time; the text holds the end of its log.
pub async fn ready(process: &mut Process, admin: u16) -> Result<()> {
    let what = format!("{} to be ready", process.name());
    let waited = wait_until(&what, READY_MAX, || {
        let ended = process.ended();
        std::future::ready(match (ended, get(admin, "/readyz")) {
            (Some(status), _) => Err(anyhow::anyhow!("it has ended: {status}")),
            (None, Ok((200, _))) => Ok(()),
            (None, Ok((_, body))) => Err(anyhow::anyhow!("{}", body.trim().replace('\n', ", "))),
            (None, Err(error)) => Err(error),
        })
    });
    waited.await.map_err(|error| anyhow::anyhow!("{error:#}\n{}", process.log_tail()))
}

/// Status and body of a GET on an admin port.
///
/// # Errors
/// If it does not answer.
pub fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok((code, body.to_owned()))
}
