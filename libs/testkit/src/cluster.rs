//! Carillon as it really runs: the three binaries as processes, on a database, a Redis and a namespace of their own.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use carillon_servers::{Home, Process, free_port};
use nix::sys::signal::Signal;

use crate::history::{self, History};
use crate::{Database, Redis, journal, wait_until};

/// From start to ready; generous, since CI builds and tests share two cores.
const READY_MAX: Duration = Duration::from_secs(30);
/// What an admin port may take to answer: a frozen process never does.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// What a stop may take beyond the grace period that a test sets.
const STOP_MAX: Duration = Duration::from_secs(30);

/// One of the three services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The API.
    Gateway,
    /// Leads or stands by.
    Dispatcher,
    /// Runs handlers.
    Executor,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Dispatcher => "dispatcher",
            Self::Executor => "executor",
        }
    }
}

/// How many of each, and on what.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Gateways.
    pub gateways: usize,
    /// Dispatchers.
    pub dispatchers: usize,
    /// Executors.
    pub executors: usize,
    /// The URL of Postgres for the processes. Empty: a new database on the shared server.
    pub postgres_url: String,
    /// The URL of Redis for the processes. Empty: the cluster's own.
    pub redis_url: String,
    /// Settings for all of them, by variable (`CARILLON_EXECUTOR_LEASE`).
    pub environment: Vec<(String, String)>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            gateways: 1,
            dispatchers: 2,
            executors: 2,
            postgres_url: String::new(),
            redis_url: String::new(),
            environment: Vec::new(),
        }
    }
}

impl ClusterOptions {
    /// With one more setting.
    #[must_use]
    pub fn set(mut self, variable: &str, value: impl Into<String>) -> Self {
        self.environment.push((variable.to_owned(), value.into()));
        self
    }
}

/// Running processes with what they run on.
#[derive(Debug)]
pub struct Cluster {
    home: Home,
    database: Option<Database>,
    redis: Option<Redis>,
    options: ClusterOptions,
    nodes: Vec<Node>,
    journal: PathBuf,
}

/// One process.
#[derive(Debug)]
pub struct Node {
    /// `executor-2`.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its admin port.
    pub admin_port: u16,
    /// Its API port, of a gateway.
    pub port: u16,
    /// Its own settings: a restart has them too.
    environment: Vec<(String, String)>,
    process: Process,
}

impl Cluster {
    /// Starts a cluster and waits until all of it is ready.
    ///
    /// # Errors
    /// If a binary is missing or a part does not become ready; the text holds the end of its log.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let mut options = options;
        let (mut database, mut redis) = (None, None);
        if options.postgres_url.is_empty() {
            let new = Database::new().await?;
            options.postgres_url = new.url().to_owned();
            database = Some(new);
        }
        if options.redis_url.is_empty() {
            let new = Redis::start().await?;
            options.redis_url = new.url();
            redis = Some(new);
        }
        let home = Home::temporary()?;
        let journal = home.path().join("journal.jsonl");
        let mut cluster = Self { home, database, redis, options, nodes: Vec::new(), journal };
        let counts = [
            (Role::Dispatcher, cluster.options.dispatchers),
            (Role::Executor, cluster.options.executors),
            (Role::Gateway, cluster.options.gateways),
        ];
        for (role, count) in counts {
            for _ in 0..count {
                cluster.add(role, &[])?;
            }
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Starts one more process, with settings of its own. Returns its name; it may not be ready yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add(&mut self, role: Role, environment: &[(&str, &str)]) -> Result<String> {
        let number = self.nodes.iter().filter(|node| node.role == role).count() + 1;
        let name = format!("{}-{number}", role.name());
        let (admin_port, port) = (free_port()?, if role == Role::Gateway { free_port()? } else { 0 });
        let own = |(variable, value): &(&str, &str)| ((*variable).to_owned(), (*value).to_owned());
        let environment: Vec<(String, String)> = environment.iter().map(own).collect();
        let process = self.spawn(&name, role, (admin_port, port), &environment)?;
        self.nodes.push(Node { name: name.clone(), role, admin_port, port, environment, process });
        Ok(name)
    }

    /// Starts a process that has ended again, with the same ports and settings. It may not be ready yet.
    ///
    /// # Errors
    /// If it still lives, or cannot be started.
    pub fn start_again(&mut self, name: &str) -> Result<()> {
        let node = self.node(name);
        ensure!(!node.lives(), "{name} lives");
        let (role, ports, environment) = (node.role, (node.admin_port, node.port), node.environment.clone());
        let process = self.spawn(name, role, ports, &environment)?;
        self.node(name).process = process;
        Ok(())
    }

    fn spawn(
        &self,
        name: &str,
        role: Role,
        (admin_port, port): (u16, u16),
        environment: &[(String, String)],
    ) -> Result<Process> {
        let mut command = Command::new(binary(role)?);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("RUST_BACKTRACE", "1").env("CARILLON_LOG_LEVEL", "info");
        command.env("CARILLON_POSTGRES_URL", &self.options.postgres_url);
        command.env("CARILLON_REDIS_URL", &self.options.redis_url);
        command.env("CARILLON_ADMIN_LISTEN", format!("127.0.0.1:{admin_port}"));
        if role == Role::Gateway {
            command.env("CARILLON_GATEWAY_LISTEN", format!("127.0.0.1:{port}"));
        }
        command.env(journal::VARIABLE, &self.journal);
        // One list for all: a setting of another service is passed by.
        command.envs(self.options.environment.iter().cloned()).envs(environment.iter().cloned());
        let log = self.home.path().join(format!("{name}.log"));
        self.home.spawn(name, &mut command, &log, Signal::SIGKILL)
    }

    /// Waits until each process is ready.
    ///
    /// # Errors
    /// If one ends or is not ready in time.
    pub async fn ready(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            let name = self.nodes[index].name.clone();
            let node = &mut self.nodes[index];
            let what = format!("{name} to be ready");
            let waited = wait_until(&what, READY_MAX, || std::future::ready(node.is_ready()));
            if let Err(error) = waited.await {
                bail!("{error:#}\n{}", self.logs());
            }
        }
        Ok(())
    }

    /// A process by its name.
    ///
    /// # Panics
    /// If there is none: a mistake in the test.
    pub fn node(&mut self, name: &str) -> &mut Node {
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// All processes that were started.
    pub fn nodes(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The processes of one kind.
    pub fn nodes_of(&mut self, role: Role) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut().filter(move |node| node.role == role)
    }

    /// The name of the dispatcher that leads, by its own word.
    ///
    /// # Errors
    /// If none leads, or more than one says so.
    pub fn leader(&mut self) -> Result<String> {
        let mut leaders = Vec::new();
        for node in self.nodes_of(Role::Dispatcher) {
            // One that is dead or frozen does not answer, and is not asked for.
            if node.lives() && node.metric("carillon_dispatcher_leader", &[]).is_ok_and(|leads| leads > 0.0) {
                leaders.push(node.name.clone());
            }
        }
        ensure!(leaders.len() == 1, "leaders: {leaders:?}");
        Ok(leaders.remove(0))
    }

    /// `http://127.0.0.1:…` of the first gateway.
    ///
    /// # Panics
    /// If the cluster has none: a mistake in the test.
    pub fn gateway_url(&self) -> String {
        let gateway = self.nodes.iter().find(|node| node.role == Role::Gateway);
        gateway.map(|node| format!("http://127.0.0.1:{}", node.port)).unwrap_or_else(|| panic!("no gateway"))
    }

    /// Its database, unless the test brought its own.
    pub const fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }

    /// Its Redis, unless the test brought its own.
    pub const fn redis(&self) -> Option<&Redis> {
        self.redis.as_ref()
    }

    /// The file that the handlers write.
    pub fn journal(&self) -> &Path {
        &self.journal
    }

    /// Where the logs of the processes are, and the journal.
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// The end of each process' log: what a failing test should show.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            text.push_str(&format!(
                "---- {} ({})\n{}\n",
                node.name,
                node.process.log().display(),
                node.process.log_tail()
            ));
        }
        text
    }

    /// Waits until nothing is open any more and Redis holds nothing, then reads what happened.
    ///
    /// # Errors
    /// If something stays open for longer than `limit`; the text says what, with the logs.
    pub async fn quiesce(&self, limit: Duration) -> Result<History> {
        let pool = self.own_database()?.pool().await?;
        let redis_port = self.redis.as_ref().context("the test brought its own Redis")?.port();
        let quiet = wait_until("all to be recorded and Redis to be empty", limit, || async {
            let history = History::load(&pool, &self.journal, redis_port).await?;
            let open = history.still_open();
            ensure!(open.is_empty(), "{}", open.join("; "));
            anyhow::Ok(history)
        });
        let outcome = quiet.await.map_err(|error| error.context(self.logs()));
        pool.close().await;
        outcome
    }

    /// Reads what has happened so far.
    ///
    /// # Errors
    /// If Postgres, Redis or the journal cannot be read.
    pub async fn history(&self) -> Result<History> {
        let pool = self.own_database()?.pool().await?;
        let redis_port = self.redis.as_ref().context("the test brought its own Redis")?.port();
        let history = History::load(&pool, &self.journal, redis_port).await;
        pool.close().await;
        history
    }

    fn own_database(&self) -> Result<&Database> {
        self.database.as_ref().context("the test brought its own database: use History::load")
    }
}

impl Drop for Cluster {
    /// A test that failed shows what its processes said: their logs go with the temporary directory.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

impl Node {
    /// Its process id: what [`history::LostWorker`] knows it by.
    pub const fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Whether its `/readyz` says so; what is missing otherwise.
    ///
    /// # Errors
    /// What is missing, or that it has ended.
    pub fn is_ready(&mut self) -> Result<()> {
        if let Some(status) = self.process.ended() {
            bail!("{} has ended: {status}", self.name);
        }
        let (code, body) = self.get("/readyz")?;
        ensure!(code == 200, "{}", body.trim().replace('\n', ", "));
        Ok(())
    }

    /// Status and body of a GET on the admin port.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port))?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.name)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
        Ok((code, body.to_owned()))
    }

    /// The sum of a metric over its labels, those lines that contain each of `labels` (`queue="default"`).
    ///
    /// # Errors
    /// If it does not answer. A metric that was never recorded is 0.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let (_, text) = self.get("/metrics")?;
        let mut sum = 0.0;
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let is_it = series == name || series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
            if is_it && labels.iter().all(|label| series.contains(label)) {
                sum += value.parse::<f64>().unwrap_or_default();
            }
        }
        Ok(sum)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        self.process.ended().map(|status| status.to_string())
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.log()).unwrap_or_default()
    }

    /// Whether its process lives.
    pub fn lives(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// kill -9.
    pub fn kill(&mut self) -> history::LostWorker {
        let lost = history::LostWorker::from_now(self.pid());
        self.process.kill();
        lost
    }

    /// SIGSTOP: it stands still wherever it is.
    pub fn freeze(&self) -> history::LostWorker {
        let lost = history::LostWorker::from_now(self.pid());
        self.process.signal(Signal::SIGSTOP);
        lost
    }

    /// SIGCONT: it goes on, none the wiser.
    pub fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_stop(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// SIGTERM, then waits for its end.
    ///
    /// # Errors
    /// If it does not end, or not with exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        self.ask_to_stop();
        let status = self.process.wait(STOP_MAX);
        let Some(status) = status else { bail!("{} did not end:\n{}", self.name, self.process.log_tail()) };
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.process.log_tail());
        Ok(())
    }
}

/// The binary of a role: from `CARILLON_BIN_DIR`, or beside the test (`target/debug`, the test is in `target/debug/deps`).
fn binary(role: Role) -> Result<PathBuf> {
    let directory = match std::env::var_os("CARILLON_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let test = std::env::current_exe().context("where am I?")?;
            let deps = test.parent().unwrap_or(&test);
            if deps.ends_with("deps") { deps.parent().unwrap_or(deps).to_owned() } else { deps.to_owned() }
        }
    };
    let path = directory.join(format!("carillon-{}", role.name()));
    ensure!(
        path.is_file(),
        "{} is missing: `make test` builds it, or `cargo build --workspace --bins`",
        path.display()
    );
    Ok(path)
}
