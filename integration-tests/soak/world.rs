//! The cluster under the soak: its processes with their lines, what was done to them, and a supervisor that starts again what
//! ended by itself, as Kubernetes would.
//!
//! Calls to the cluster block for a moment at most (a signal, a spawn), so a plain mutex holds it; what waits for a server
//! waits on a thread for blocking work.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use carillon_testkit::history::LostWorker;
use carillon_testkit::{Cluster, ClusterOptions, Disk, Home, Postgres, Proxy, Redis, Role, wall_clock};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::faults::{To, Who};
use crate::random::Random;

pub(crate) const NAMESPACE: &str = "soak";
const GATEWAYS: usize = 2;
const DISPATCHERS: usize = 3;
const EXECUTORS: usize = 4;
/// The protocol's defaults: what is judged is what is shipped.
pub(crate) const WINDOW: TimeDelta = TimeDelta::seconds(2);
pub(crate) const LEASE: TimeDelta = TimeDelta::seconds(20);
/// How far a wall clock is off at most.
const CLOCK_OFF_MAX_S: u64 = 24 * 60 * 60;
/// Room for ten minutes of executions and for the log of Postgres, and soon filled.
const DISK_MEGABYTES: u32 = 768;
/// Few enough to be used up in a moment.
const POSTGRES_SETTINGS: [(&str, &str); 4] =
    [("max_connections", "160"), ("max_wal_size", "96MB"), ("min_wal_size", "32MB"), ("shared_buffers", "32MB")];
/// Between two looks of the supervisor.
const LOOK_EACH: Duration = Duration::from_millis(300);
/// Before what ended by itself is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// The lines of one process.
#[derive(Debug)]
pub(crate) struct Lines {
    postgres: Proxy,
    redis: Proxy,
}

impl Lines {
    pub(crate) const fn to(&self, neighbour: To) -> &Proxy {
        match neighbour {
            To::Postgres => &self.postgres,
            To::Redis => &self.redis,
        }
    }
}

/// How a process stands, by what was done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stands {
    /// It should live; started again if it does not.
    Up,
    /// It was killed or told to stop, and is not started yet.
    Down,
    Frozen,
}

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(crate) lost: Vec<LostWorker>,
    pub(crate) redis_losses: Vec<DateTime<Utc>>,
    /// By how much the wall clock of a process is ahead, by process id.
    pub(crate) clocks: HashMap<i32, TimeDelta>,
    /// Faults done, by name.
    pub(crate) faults: BTreeMap<String, usize>,
    pub(crate) passed_over: usize,
    /// Processes that ended by themselves, with how.
    pub(crate) ended: Vec<String>,
    /// Streams and ids of entries that only a newer version understands.
    pub(crate) unknown_entries: Vec<(String, String, DateTime<Utc>)>,
    stands: HashMap<String, Stands>,
    busy: HashSet<String>,
    last_seen: HashMap<i32, DateTime<Utc>>,
}

/// All of it. Fields are dropped in order: processes before servers before the disk.
#[derive(Debug)]
pub(crate) struct World {
    cluster: Mutex<Cluster>,
    lines: HashMap<String, Lines>,
    /// Of the gateways, for the clients.
    pub(crate) doors: Vec<Proxy>,
    pub(crate) redis: Redis,
    pub(crate) postgres: Postgres,
    pub(crate) disk: Disk,
    /// Straight to the server, past every line.
    pub(crate) pool: PgPool,
    pub(crate) http: reqwest::Client,
    pub(crate) directory: PathBuf,
    past: Mutex<Past>,
    log: Mutex<File>,
    began: DateTime<Utc>,
}

impl World {
    pub(crate) async fn start(seed: u64) -> Result<Self> {
        let directory = directory(seed)?;
        let disk = Disk::of_megabytes(DISK_MEGABYTES)?;
        if !disk.can_be_filled() {
            println!("soak: mounting is not permitted here: \"disk full\" is passed over");
        }
        if !wall_clock::is_available() {
            println!("soak: libfaketime is not here (Debian: faketime): wall clocks are the machine's");
        }
        let postgres = Postgres::start_in(Home::at(disk.path())?, &POSTGRES_SETTINGS).await?;
        let redis = Redis::start_append_only().await?;
        let pool = postgres.database().pool().await?;
        let options = ClusterOptions {
            gateways: 0,
            dispatchers: 0,
            executors: 0,
            postgres_url: postgres.database().url().to_owned(),
            redis_url: redis.url(),
            environment: Vec::new(),
        };
        let options = options
            .set("CARILLON_REDIS_NAMESPACE", NAMESPACE)
            // Faults make fires late; each is still to be its own execution.
            .set("CARILLON_DISPATCHER_MISFIRE_THRESHOLD", "1h")
            .set("CARILLON_SHUTDOWN_GRACE", "5s");
        let cluster = Mutex::new(Cluster::start(options).await?);
        let log = Mutex::new(File::create(directory.join("faults.jsonl"))?);
        let http = reqwest::Client::builder().timeout(Duration::from_secs(15)).build()?;
        let mut world = Self {
            cluster,
            lines: HashMap::new(),
            doors: Vec::new(),
            redis,
            postgres,
            disk,
            pool,
            http,
            directory,
            past: Mutex::default(),
            log,
            began: Utc::now(),
        };
        world.start_nodes(&mut Random::new(seed))?;
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(world.cluster().ready()))?;
        world.began = Utc::now();
        Ok(world)
    }

    fn start_nodes(&mut self, random: &mut Random) -> Result<()> {
        let roles = [(Role::Dispatcher, DISPATCHERS), (Role::Executor, EXECUTORS), (Role::Gateway, GATEWAYS)];
        for (role, count) in roles {
            for index in 0..count {
                let postgres = Proxy::to(self.postgres.database().port()?)?;
                let redis = Proxy::to(self.redis.port())?;
                let ahead = i64::try_from(random.between(0, 2 * CLOCK_OFF_MAX_S))?;
                let ahead = TimeDelta::seconds(ahead - i64::try_from(CLOCK_OFF_MAX_S)?);
                let mut environment = wall_clock::environment(ahead);
                let ahead = if environment.is_empty() { TimeDelta::zero() } else { ahead };
                environment.extend([
                    ("CARILLON_POSTGRES_URL".into(), self.postgres.database().url_through(postgres.port())),
                    ("CARILLON_REDIS_URL".into(), self.redis.url_through(redis.port())),
                    ("CARILLON_EXECUTOR_NAME".into(), format!("soak-{index}")),
                    ("CARILLON_EXECUTOR_QUEUES".into(), queues_of(index).into()),
                ]);
                let environment: Vec<(&str, &str)> =
                    environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                let (name, pid, port) = {
                    let mut cluster = self.cluster();
                    let name = cluster.add(role, &environment)?;
                    let node = cluster.node(&name);
                    (name, node.pid(), node.port)
                };
                if role == Role::Gateway {
                    self.doors.push(Proxy::to(port)?);
                }
                let mut past = self.past();
                past.clocks.insert(pid, ahead);
                past.stands.insert(name.clone(), Stands::Up);
                drop(past);
                self.lines.insert(name, Lines { postgres, redis });
            }
        }
        Ok(())
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lines(&self, name: &str) -> Option<&Lines> {
        self.lines.get(name)
    }

    pub(crate) fn all_lines(&self) -> impl Iterator<Item = (&String, &Lines)> {
        self.lines.iter()
    }

    /// A line of output, with the time since the start.
    pub(crate) fn say(&self, text: &str) {
        let since = (Utc::now() - self.began).as_seconds_f64();
        println!("{since:7.1} {text}");
    }

    /// A fault, or a step of one, for the eyes and for `faults.jsonl`.
    pub(crate) fn record(&self, number: usize, fault: &str, what: &str) {
        self.say(&format!("#{number} {fault}: {what}"));
        let line = json!({ "at": rfc3339(Utc::now()), "number": number, "fault": fault, "what": what });
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // Evidence only: the verdict does not read it.
        let _ = writeln!(log, "{line}");
    }

    /// Takes something for one fault alone; `false` if another has it.
    pub(crate) fn take(&self, what: &str) -> bool {
        self.past().busy.insert(what.to_owned())
    }

    pub(crate) fn give_back(&self, what: &str) {
        self.past().busy.remove(what);
    }

    /// A process of that kind which no other fault has, taken for this one.
    pub(crate) async fn take_node(&self, who: Who, pick: usize) -> Option<String> {
        let leader = if who.role() == Role::Dispatcher { self.leader().await } else { None };
        let mut names: Vec<String> = self.cluster().nodes_of(who.role()).map(|node| node.name.clone()).collect();
        match who {
            Who::Leader => names.retain(|name| leader.as_ref() == Some(name)),
            Who::Standby => names.retain(|name| leader.as_ref() != Some(name)),
            Who::Executor | Who::Gateway => {}
        }
        let mut past = self.past();
        names.retain(|name| !past.busy.contains(name) && past.stands.get(name) == Some(&Stands::Up));
        let name = names.get(pick.checked_rem(names.len())?)?.clone();
        past.busy.insert(name.clone());
        Some(name)
    }

    /// Who leads, by its own word.
    pub(crate) async fn leader(&self) -> Option<String> {
        let leaders = self.leaders().await;
        leaders.into_iter().next()
    }

    pub(crate) async fn leaders(&self) -> Vec<String> {
        let dispatchers: Vec<(String, u16)> =
            self.cluster().nodes_of(Role::Dispatcher).map(|node| (node.name.clone(), node.admin_port)).collect();
        let mut leaders = Vec::new();
        for (name, port) in dispatchers {
            let answer = self.admin(port, "/metrics").await;
            if answer.is_some_and(|(_, text)| text.lines().any(|line| line == "carillon_dispatcher_leader 1")) {
                leaders.push(name);
            }
        }
        leaders
    }

    /// What an admin port says, if it does at once.
    pub(crate) async fn admin(&self, port: u16, path: &str) -> Option<(u16, String)> {
        let request = self.http.get(format!("http://127.0.0.1:{port}{path}")).timeout(Duration::from_millis(800));
        let response = request.send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    /// Marks an executor as lost as of now.
    pub(crate) fn is_lost(&self, name: &str) {
        let (role, pid) = {
            let mut cluster = self.cluster();
            let node = cluster.node(name);
            (node.role, node.pid())
        };
        if role == Role::Executor {
            self.past().lost.push(LostWorker::from_now(pid));
        }
    }

    /// The losses of a process that are not over are, as of now.
    pub(crate) fn is_back(&self, name: &str) {
        let pid = self.cluster().node(name).pid();
        let mut past = self.past();
        for lost in past.lost.iter_mut().filter(|lost| lost.pid == pid && lost.until.is_none()) {
            *lost = lost.back();
        }
    }

    pub(crate) fn stands(&self, name: &str, stands: Stands) {
        self.past().stands.insert(name.to_owned(), stands);
    }

    /// Redis lost something as of now.
    pub(crate) fn redis_lost(&self) {
        self.past().redis_losses.push(Utc::now());
    }

    pub(crate) fn start_again(&self, name: &str) -> Result<()> {
        let (before, now) = {
            let mut cluster = self.cluster();
            let before = cluster.node(name).pid();
            cluster.start_again(name)?;
            (before, cluster.node(name).pid())
        };
        let mut past = self.past();
        let ahead = past.clocks.get(&before).copied().unwrap_or_default();
        past.clocks.insert(now, ahead);
        past.stands.insert(name.to_owned(), Stands::Up);
        Ok(())
    }

    /// Starts again what ended by itself. Never returns.
    pub(crate) async fn supervise(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EACH).await;
            let mut ended = Vec::new();
            {
                let mut cluster = self.cluster();
                let mut past = self.past();
                for node in cluster.nodes() {
                    if past.stands.get(&node.name) != Some(&Stands::Up) {
                        continue;
                    }
                    let pid = node.pid();
                    let Some(how) = node.ended() else {
                        past.last_seen.insert(pid, Utc::now());
                        continue;
                    };
                    past.ended.push(format!("{} {how}", node.name));
                    past.stands.insert(node.name.clone(), Stands::Down);
                    if node.role == Role::Executor {
                        let from = past.last_seen.get(&pid).copied().unwrap_or_else(Utc::now);
                        past.lost.push(LostWorker { pid, from, until: None });
                    }
                    ended.push((node.name.clone(), how));
                }
            }
            for (name, how) in ended {
                self.say(&format!("{name} ended by itself: {how}"));
                let world = Arc::clone(&self);
                tokio::spawn(async move {
                    tokio::time::sleep(RESTART_AFTER).await;
                    if let Err(error) = world.start_again(&name) {
                        world.say(&format!("{name} cannot be started again: {error:#}"));
                    }
                });
            }
        }
    }

    /// Copies what tells what happened: logs, journal, rows.
    pub(crate) async fn keep_evidence(&self) {
        let home = self.cluster().directory().to_owned();
        let files = std::fs::read_dir(&home).into_iter().flatten().flatten();
        let logs = std::fs::read_dir(self.disk.path()).into_iter().flatten().flatten();
        for file in files.chain(logs) {
            let name = file.file_name();
            let kept = ["log", "jsonl"].iter().any(|kind| name.to_string_lossy().ends_with(&format!(".{kind}")));
            if kept && file.path().is_file() {
                let _ = std::fs::copy(file.path(), self.directory.join(name));
            }
        }
        for table in ["job_executions", "jobs", "job_timers", "job_stats", "dispatch_batches", "workers"] {
            if let Err(error) = self.keep_table(table).await {
                println!("soak: {table} cannot be kept: {error:#}");
            }
        }
        println!("soak: logs, journal and rows are in {}", self.directory.display());
    }

    async fn keep_table(&self, table: &str) -> Result<()> {
        let mut query = sqlx::QueryBuilder::new("SELECT to_jsonb(t) FROM ");
        query.push(table).push(" t");
        let rows: Vec<Value> = query.build_query_scalar().fetch_all(&self.pool).await?;
        let mut file = File::create(self.directory.join(format!("{table}.rows.jsonl")))?;
        for row in rows {
            writeln!(file, "{row}")?;
        }
        Ok(())
    }
}

/// `default` everywhere, the others at half of the executors each.
const fn queues_of(index: usize) -> &'static str {
    if index.is_multiple_of(2) { r#"["default","mail"]"# } else { r#"["default","reports"]"# }
}

/// `target/soak/<seed>`, emptied.
fn directory(seed: u64) -> Result<PathBuf> {
    let program = std::env::current_exe().context("where am I?")?;
    let target = program.ancestors().find(|path| path.ends_with("target")).context("not in a target directory")?;
    let directory = target.join("soak").join(seed.to_string());
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

pub(crate) fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
