//! Processes of the product one by one, to be killed, frozen, cut off and started again: [`crate::product`] is for parts in
//! which none of that happens.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_servers::{Home, Process, free_port};
use carillon_stream::{Redis, RedisOptions};
use carillon_testkit::{Proxy, wait_until};
use nix::sys::signal::Signal;

use crate::options::Plan;
use crate::product::{Binaries, get, ready};
use crate::servers::{Database, Servers};
use crate::usage;

/// From SIGTERM to the end: more than the grace.
const STOP_MAX: Duration = Duration::from_secs(40);
/// A leader is there within this, whatever was done to the last one.
const LEADER_MAX: Duration = Duration::from_secs(30);

/// What a process of the product is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Dispatcher,
    Executor,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Dispatcher => "dispatcher",
            Self::Executor => "executor",
        }
    }
}

/// One process.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub role: Role,
    admin: u16,
    environment: Vec<(String, String)>,
    process: Process,
    /// Its own lines to the servers, if it has them.
    pub lines: Option<Lines>,
    is_frozen: bool,
}

/// Lines that can be silenced.
#[derive(Debug)]
pub struct Lines {
    pub postgres: Proxy,
    pub redis: Proxy,
}

/// The processes of one part. They end with it.
#[derive(Debug)]
pub struct Fleet {
    home: Home,
    binaries: Binaries,
    database_url: String,
    ports: (u16, u16),
    namespace: String,
    settings: Vec<(String, String)>,
    nodes: Vec<Node>,
    /// Tells the leader that something is due, as the gateway does.
    pub redis: Redis,
}

impl Fleet {
    /// None yet, on `database`; `namespace` keeps runs apart in Redis. All settings are the defaults but those that `plan`
    /// names.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn new(
        servers: &Servers,
        binaries: &Binaries,
        database: &Database,
        namespace: &str,
        plan: &Plan,
    ) -> Result<Self> {
        let options = RedisOptions { namespace: namespace.to_owned(), ..RedisOptions::new(servers.redis_url()) };
        let redis = Redis::connect_lazily(options)?;
        redis.ping().await?;
        Ok(Self {
            home: servers.home.clone(),
            binaries: binaries.clone(),
            database_url: database.url.clone(),
            ports: (servers.postgres_port(), servers.redis_port()),
            namespace: namespace.to_owned(),
            settings: plan.settings.clone(),
            nodes: Vec::new(),
            redis,
        })
    }

    /// Starts one more, on the servers themselves; its name. It may not be ready yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add(&mut self, role: Role, environment: &[(&str, &str)]) -> Result<String> {
        self.add_with(role, environment, None)
    }

    /// Starts one more with lines of its own; its name. It may not be ready yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add_with_lines(&mut self, role: Role) -> Result<String> {
        let lines = Lines { postgres: Proxy::to(self.ports.0)?, redis: Proxy::to(self.ports.1)? };
        self.add_with(role, &[], Some(lines))
    }

    fn add_with(&mut self, role: Role, environment: &[(&str, &str)], lines: Option<Lines>) -> Result<String> {
        let number = self.nodes.iter().filter(|node| node.role == role).count() + 1;
        let name = format!("{}-{number}", role.name());
        let admin = free_port()?;
        let environment: Vec<(String, String)> =
            environment.iter().map(|(variable, value)| ((*variable).to_owned(), (*value).to_owned())).collect();
        let process = self.spawn(&name, role, admin, &environment, lines.as_ref())?;
        self.nodes.push(Node { name: name.clone(), role, admin, environment, process, lines, is_frozen: false });
        Ok(name)
    }

    fn spawn(
        &self,
        name: &str,
        role: Role,
        admin: u16,
        environment: &[(String, String)],
        lines: Option<&Lines>,
    ) -> Result<Process> {
        let (postgres, redis) = lines.map_or(self.ports, |lines| (lines.postgres.port(), lines.redis.port()));
        let mut command = self.binaries.command(role.name(), admin);
        let database = self.database_url.replace(&format!(":{}/", self.ports.0), &format!(":{postgres}/"));
        command.env("CARILLON_POSTGRES_URL", database);
        command.env("CARILLON_REDIS_URL", format!("redis://127.0.0.1:{redis}"));
        command.env("CARILLON_REDIS_NAMESPACE", &self.namespace);
        command.envs(self.settings.iter().cloned()).envs(environment.iter().cloned());
        let log = self.home.path().join(format!("{}-{name}.log", self.namespace));
        self.home.spawn(name, &mut command, &log, Signal::SIGKILL)
    }

    /// Starts one again that has ended, on the same ports with the same settings.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot be started.
    pub fn start_again(&mut self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        let process = self.spawn(name, node.role, node.admin, &node.environment, node.lines.as_ref())?;
        self.node_mut(name)?.process = process;
        Ok(())
    }

    /// Leads all lines to a Redis that listens elsewhere.
    pub fn lay_redis_to(&self, port: u16) {
        for lines in self.nodes.iter().filter_map(|node| node.lines.as_ref()) {
            lines.redis.lay_to(port);
        }
    }

    /// Forgets one that has ended.
    pub fn remove(&mut self, name: &str) {
        self.nodes.retain(|node| node.name != name);
    }

    /// Waits until each is ready.
    ///
    /// # Errors
    /// If one ends or is not ready in time.
    pub async fn ready(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            ready(&mut node.process, node.admin).await?;
        }
        Ok(())
    }

    /// The name of the dispatcher that leads, by its own word.
    ///
    /// # Errors
    /// If none does for long, or several.
    pub async fn leader(&self) -> Result<String> {
        let waited = wait_until("one leader", LEADER_MAX, || async {
            let leaders: Vec<&Node> = self
                .nodes
                .iter()
                .filter(|node| node.role == Role::Dispatcher && !node.is_frozen)
                .filter(|node| node.metric("carillon_dispatcher_leader").is_ok_and(|leads| leads > 0.0))
                .collect();
            ensure!(leaders.len() == 1, "{} lead", leaders.len());
            Ok(leaders.first().map(|leader| leader.name.clone()).unwrap_or_default())
        });
        waited.await.map_err(|error| error.context(self.logs()))
    }

    /// Terms that its dispatchers have begun.
    pub fn terms(&self) -> f64 {
        self.sum(Role::Dispatcher, "carillon_dispatcher_terms_total")
    }

    /// A metric over all processes of a kind.
    pub fn sum(&self, role: Role, metric: &str) -> f64 {
        let nodes = self.nodes.iter().filter(|node| node.role == role);
        nodes.map(|node| node.metric(metric).unwrap_or_default()).sum()
    }

    /// One by its name.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no {name}"))
    }

    /// One by its name.
    ///
    /// # Errors
    /// If there is none.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name).with_context(|| format!("no {name}"))
    }

    /// The end of each log.
    pub fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("---- {}\n{}\n", node.name, node.process.log_tail())).collect()
    }

    /// Ends all of them, at once.
    pub async fn end(mut self) {
        self.redis.close().await;
        for node in &mut self.nodes {
            node.process.kill();
        }
    }
}

impl Node {
    /// The sum of a metric over its labels.
    ///
    /// # Errors
    /// If the process does not answer.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = get(self.admin, "/metrics")?;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let is_it = series == name || series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
            value.parse::<f64>().ok().filter(|_| is_it)
        });
        Ok(values.sum())
    }

    /// The most that its resident set ever was, and what it is, in MiB.
    pub fn resident_mib(&self) -> (f64, f64) {
        usage::resident_mib(self.process.pid())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGSTOP.
    pub fn freeze(&mut self) {
        self.process.signal(Signal::SIGSTOP);
        self.is_frozen = true;
    }

    /// SIGCONT, lines healed, whatever was done to it.
    pub fn heal(&mut self) {
        self.process.signal(Signal::SIGCONT);
        self.is_frozen = false;
        if let Some(lines) = &self.lines {
            lines.postgres.heal();
            lines.redis.heal();
        }
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_stop(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Waits for its end after [`Node::ask_to_stop`].
    ///
    /// # Errors
    /// If it does not come.
    pub async fn stopped(&mut self) -> Result<()> {
        let (name, process) = (&self.name, &mut self.process);
        let what = format!("{name} to end");
        wait_until(&what, STOP_MAX, || {
            std::future::ready(process.ended().map(drop).ok_or_else(|| anyhow::anyhow!("it runs")))
        })
        .await
    }
}
