//! A cluster with what it runs on, what the test did to it, and the verdict.
//!
//! Each world has a database, a Redis, a namespace and a journal of its own; a Postgres of its own only where the test stops
//! it. At most [`WORLDS_MAX`] stand at once, however many threads the test runner has: beyond that the machine is too slow
//! for the short windows that let a take-over be seen in seconds.

use std::collections::HashSet;
use std::fmt::Display;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carillon_testkit::history::{History, LostWorker};
use carillon_testkit::journal::{self, Event, Line};
use carillon_testkit::wall_clock::WallClock;
use carillon_testkit::{Cluster, ClusterOptions, Database, Disk, Home, Postgres, Redis, Role, wait_until};
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use crate::api::Api;

/// Worlds at once.
const WORLDS_MAX: usize = 2;
/// For what takes a moment at most.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For a load to be worked off, with takeovers.
pub(crate) const LOAD_MAX: Duration = Duration::from_secs(60);
/// Between two looks that cost something.
pub(crate) const LOOK_EACH: Duration = Duration::from_millis(50);
/// First half of the key of the leader's advisory lock (R2).
const LOCK_SPACE: i64 = 0x0CA_2111;

static TURNS: Semaphore = Semaphore::const_new(WORLDS_MAX);

/// What a test wants to stand.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) gateways: usize,
    pub(crate) dispatchers: usize,
    pub(crate) executors: usize,
    /// W.
    pub(crate) window: Duration,
    /// The lease of an executor.
    pub(crate) lease: Duration,
    /// A Postgres of its own, to be stopped.
    pub(crate) own_postgres: bool,
    /// The settings of that Postgres.
    pub(crate) postgres_settings: &'static [(&'static str, &'static str)],
    /// That Postgres on a disk of its own, of so many megabytes.
    pub(crate) disk_megabytes: Option<u32>,
    /// That Postgres on a host whose clock the test sets.
    pub(crate) own_clock: bool,
    /// A Redis that keeps its data over a restart.
    pub(crate) append_only: bool,
    /// Further settings.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            gateways: 1,
            dispatchers: 2,
            executors: 2,
            window: Duration::from_millis(400),
            lease: Duration::from_secs(4),
            own_postgres: false,
            postgres_settings: &[],
            disk_megabytes: None,
            own_clock: false,
            append_only: false,
            settings: Vec::new(),
        }
    }
}

impl Plan {
    /// With a setting of a service.
    pub(crate) fn set(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((variable, value.into()));
        self
    }

    /// With another window and lease.
    pub(crate) const fn protocol(mut self, window: Duration, lease: Duration) -> Self {
        self.window = window;
        self.lease = lease;
        self
    }

    fn options(&self, namespace: &str, postgres_url: &str, redis_url: String) -> ClusterOptions {
        let mut options = ClusterOptions {
            gateways: self.gateways,
            dispatchers: self.dispatchers,
            executors: self.executors,
            postgres_url: postgres_url.to_owned(),
            redis_url,
            environment: Vec::new(),
        };
        let ms = |duration: Duration| format!("{}ms", duration.as_millis());
        options = options
            .set("CARILLON_REDIS_NAMESPACE", namespace)
            .set("CARILLON_PROTOCOL_WINDOW", ms(self.window))
            .set("CARILLON_PROTOCOL_LEASE", ms(self.lease))
            .set("CARILLON_DISPATCHER_LEAD", ms((self.window / 4).min(Duration::from_millis(200))))
            // Faults make fires late; each is still to be its own execution.
            .set("CARILLON_DISPATCHER_MISFIRE_THRESHOLD", "10m")
            .set("CARILLON_SHUTDOWN_GRACE", "5s");
        for (variable, value) in &self.settings {
            options = options.set(variable, value);
        }
        options
    }
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) redis: Redis,
    pub(crate) postgres: Option<Postgres>,
    /// Of its own Postgres.
    pub(crate) disk: Option<Disk>,
    /// Of the host of Postgres, with the directory that it is kept in.
    pub(crate) clock: Option<(WallClock, Home)>,
    pub(crate) database: Database,
    pub(crate) pool: PgPool,
    /// Workers that this test killed or froze: what may have been started twice.
    pub(crate) lost: Vec<LostWorker>,
    /// Instants that must have exactly one execution.
    pub(crate) expected: Vec<(Uuid, DateTime<Utc>)>,
    /// Executions that triggers were answered with.
    pub(crate) triggered: HashSet<Uuid>,
    /// Nodes that do not answer.
    silent: HashSet<String>,
    pub(crate) namespace: String,
    _turn: SemaphorePermit<'static>,
}

impl World {
    /// Builds what the plan says and waits until it is ready. `name` is the test's.
    pub(crate) async fn start(name: &str, plan: Plan) -> Self {
        let turn = TURNS.acquire().await.expect("never closed");
        Self::build(name, &plan, turn).await.unwrap_or_else(|error| panic!("{name} cannot start: {error:#}"))
    }

    async fn build(name: &str, plan: &Plan, turn: SemaphorePermit<'static>) -> Result<Self> {
        let clock = if plan.own_clock {
            let home = Home::temporary()?;
            Some((WallClock::in_directory(home.path())?, home))
        } else {
            None
        };
        let disk = plan.disk_megabytes.map(Disk::of_megabytes).transpose()?;
        let postgres = match (&clock, &disk) {
            (Some((clock, _)), _) => Some(Postgres::start_by(clock).await?),
            (None, Some(disk)) => Some(Postgres::start_in(Home::at(disk.path())?, plan.postgres_settings).await?),
            (None, None) if plan.own_postgres => Some(Postgres::start(plan.postgres_settings).await?),
            (None, None) => None,
        };
        let database = match &postgres {
            Some(postgres) => postgres.database().clone(),
            None => Database::new().await?,
        };
        let redis = if plan.append_only { Redis::start_append_only().await? } else { Redis::start().await? };
        let cluster = Cluster::start(plan.options(name, database.url(), redis.url())).await?;
        let mut world = Self {
            cluster,
            redis,
            postgres,
            disk,
            clock,
            pool: database.pool().await?,
            database,
            lost: Vec::new(),
            expected: Vec::new(),
            triggered: HashSet::new(),
            silent: HashSet::new(),
            namespace: name.to_owned(),
            _turn: turn,
        };
        if plan.dispatchers > 0 {
            world.leader().await;
        }
        Ok(world)
    }

    /// The API of its first gateway.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.cluster.gateway_url())
    }

    /// A stream's key (`carillon_stream::keys`).
    pub(crate) fn stream(&self, queue: &str, priority: &str) -> String {
        format!("{{{}:0}}:v1:{queue}:{priority}", self.namespace)
    }

    /// Tells the leader to look at what is due, as the gateway does.
    pub(crate) fn wake(&self) {
        let channel = format!("{{{}:0}}:wake", self.namespace);
        self.redis.command(&["PUBLISH", &channel, "look"]).expect("redis answers");
    }

    /// Starts one more process and waits until it is ready.
    pub(crate) async fn add(&mut self, role: Role, environment: &[(&str, &str)]) -> String {
        let name = self.cluster.add(role, environment).expect("it starts");
        let node = self.cluster.node(&name);
        soon(&format!("{name} to be ready"), || std::future::ready(node.is_ready())).await;
        name
    }

    /// Starts one more process of each of `roles`; waits until they are ready and one leads.
    pub(crate) async fn add_each(&mut self, roles: &[Role], environment: &[(&str, &str)]) {
        for role in roles {
            self.add(*role, environment).await;
        }
        self.leader().await;
    }

    /// Nothing of ours has ended, so nothing had to be started again.
    pub(crate) fn assert_all_live(&mut self) {
        for node in self.cluster.nodes() {
            assert!(node.lives(), "{} has ended", node.name);
        }
    }

    /// Waits until a node's `/readyz` says `wanted`; an empty text is "ready".
    pub(crate) async fn until_readyz(&mut self, name: &str, wanted: &str, limit: Duration) {
        let node = self.cluster.node(name);
        let what = format!("{name} to say {wanted:?}");
        let waited = wait_until(&what, limit, || {
            let said = node.get("/readyz").and_then(|(code, body)| {
                ensure!((code == 200) == wanted.is_empty() && body.contains(wanted), "{code} {body}");
                anyhow::Ok(())
            });
            std::future::ready(said)
        });
        waited.await.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// The dispatcher that leads, of those that answer.
    pub(crate) async fn leader(&mut self) -> String {
        self.new_leader("").await
    }

    /// The dispatcher that leads and is not `old`.
    pub(crate) async fn new_leader(&mut self, old: &str) -> String {
        let silent = self.silent.clone();
        let cluster = &mut self.cluster;
        let what = if old.is_empty() { "a leader".to_owned() } else { format!("a leader after {old}") };
        soon(&what, || {
            let mut leading = Vec::new();
            for node in cluster.nodes_of(Role::Dispatcher) {
                let answers = !silent.contains(&node.name) && node.name != old && node.lives();
                if answers && node.metric("carillon_dispatcher_leader", &[]).is_ok_and(|value| value == 1.0) {
                    leading.push(node.name.clone());
                }
            }
            std::future::ready(if leading.len() == 1 { Ok(leading.remove(0)) } else { Err(format!("{leading:?}")) })
        })
        .await
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, name: &str) {
        let node = self.cluster.node(name);
        let (lost, role) = (node.kill(), node.role);
        self.silent.insert(name.to_owned());
        if role == Role::Executor {
            self.lost.push(lost);
        }
    }

    /// Starts one again that has ended. It may not be ready yet.
    pub(crate) fn start_again(&mut self, name: &str) {
        self.cluster.start_again(name).unwrap_or_else(|error| panic!("{error:#}"));
        self.silent.remove(name);
    }

    /// SIGSTOP.
    pub(crate) fn freeze(&mut self, name: &str) {
        let node = self.cluster.node(name);
        let (lost, role) = (node.freeze(), node.role);
        self.silent.insert(name.to_owned());
        if role == Role::Executor {
            self.lost.push(lost);
        }
    }

    /// SIGCONT.
    pub(crate) fn thaw(&mut self, name: &str) {
        let node = self.cluster.node(name);
        node.thaw();
        let pid = node.pid();
        self.silent.remove(name);
        for lost in self.lost.iter_mut().filter(|lost| lost.pid == pid) {
            *lost = lost.back();
        }
    }

    /// Ends the session that holds the leader's lock, as an administrator would.
    pub(crate) async fn terminate_leader_session(&self) {
        let ended: i64 = sqlx::query_scalar(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(l.pid)) FROM pg_locks l
             WHERE l.locktype = 'advisory' AND l.classid::bigint = $1 AND l.granted
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .bind(LOCK_SPACE)
        .fetch_one(&self.pool)
        .await
        .expect("postgres answers");
        assert_eq!(ended, 1, "one session holds the lock");
    }

    /// What a statement counts.
    pub(crate) async fn count(&self, statement: &'static str) -> Result<i64> {
        sqlx::query_scalar(statement).fetch_one(&self.pool).await.context("cannot count")
    }

    /// How many executions are final.
    pub(crate) async fn finished(&self) -> Result<i64> {
        self.count("SELECT count(*) FROM job_executions WHERE completed_at IS NOT NULL").await
    }

    /// Waits until at least `count` executions are final, and says so if the load was over before the fault could meet it.
    pub(crate) async fn until_finished(&self, count: usize) {
        let finished = self.until_final(count).await;
        let total = self.expected.len() + self.triggered.len();
        let total = i64::try_from(total).expect("small");
        assert!(total == 0 || finished < total, "all {total} were over before the fault could meet them");
    }

    /// Waits until at least `count` executions are final, all of them perhaps, and answers how many are.
    pub(crate) async fn until_final(&self, count: usize) -> i64 {
        let wanted = i64::try_from(count).expect("small");
        let what = format!("{count} executions to be final");
        let waited = wait_until(&what, LOAD_MAX, || async {
            let finished = self.finished().await?;
            ensure!(finished >= wanted, "{finished} are");
            anyhow::Ok(finished)
        });
        waited.await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Whether a row exists for which `condition` holds.
    pub(crate) async fn executions_where(&self, condition: &'static str) -> Result<i64> {
        let mut query = sqlx::QueryBuilder::new("SELECT count(*) FROM job_executions WHERE ");
        query.push(condition);
        query.build_query_scalar().fetch_one(&self.pool).await.context("cannot count")
    }

    /// Waits until the number of executions for which `condition` holds satisfies `enough`.
    pub(crate) async fn until(&self, condition: &'static str, enough: impl Fn(i64) -> bool) {
        let waited = wait_until(condition, LOAD_MAX, || async {
            let count = self.executions_where(condition).await?;
            ensure!(enough(count), "{count} executions");
            anyhow::Ok(())
        });
        waited.await.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// The journal so far.
    pub(crate) fn journal(&self) -> Vec<Line> {
        journal::read(self.cluster.journal()).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Handlers that run at a process, by the journal.
    pub(crate) fn running_at(&self, pid: i32) -> usize {
        let lines = self.journal();
        let count = |event| lines.iter().filter(|line| line.pid == pid && line.event == event).count();
        count(Event::Start).saturating_sub(count(Event::End))
    }

    /// Waits until at least `count` handlers run at a node.
    pub(crate) async fn until_running_at(&mut self, name: &str, count: usize) {
        let pid = self.cluster.node(name).pid();
        soon(&format!("{count} handlers to run at {name}"), || async {
            tokio::time::sleep(LOOK_EACH).await;
            let running = self.running_at(pid);
            ensure!(running >= count, "{running} run");
            anyhow::Ok(())
        })
        .await;
    }

    /// Waits until a node runs one of `executions`.
    pub(crate) async fn until_one_runs_at(&mut self, name: &str, executions: &HashSet<Uuid>) {
        let pid = self.cluster.node(name).pid();
        soon(&format!("{name} to run one of {}", executions.len()), || async {
            tokio::time::sleep(LOOK_EACH).await;
            let mut running = HashSet::new();
            for line in self.journal().iter().filter(|line| line.pid == pid && executions.contains(&line.execution)) {
                match line.event {
                    Event::Start => running.insert(line.execution),
                    _ => running.remove(&line.execution),
                };
            }
            ensure!(!running.is_empty(), "none runs");
            anyhow::Ok(())
        })
        .await;
    }

    /// Waits until all that was expected is recorded and nothing is left behind, and judges what happened.
    pub(crate) async fn judge(&self, limit: Duration) -> History {
        self.judge_after(limit, |_| {}).await
    }

    /// The same, after what the test alone knows is told.
    pub(crate) async fn judge_after(&self, limit: Duration, tell: impl FnOnce(&mut History)) -> History {
        let mut history = self.settled(limit).await.unwrap_or_else(|error| panic!("{error:#}"));
        tell(&mut history);
        history.assert_kept();
        let fires = self.expected.len() + self.triggered.len();
        if fires > 0 {
            assert_eq!(history.executions.len(), fires, "an execution that nobody expected");
        }
        history
    }

    async fn settled(&self, limit: Duration) -> Result<History> {
        let wanted = i64::try_from(self.expected.len() + self.triggered.len())?;
        wait_until("all expected executions to be final", limit, || async {
            let finished = self.finished().await?;
            ensure!(finished >= wanted, "{finished} of {wanted}: {}", self.open().await);
            tokio::time::sleep(LOOK_EACH).await;
            anyhow::Ok(())
        })
        .await?;
        let mut history = wait_until("nothing to be left behind", limit, || async {
            let history = History::load(&self.pool, self.cluster.journal(), self.redis.port()).await?;
            let open = history.still_open();
            ensure!(open.is_empty(), "{}", open.join("; "));
            anyhow::Ok(history)
        })
        .await?;
        history.expected.clone_from(&self.expected);
        history.triggered.clone_from(&self.triggered);
        history.lost_workers.clone_from(&self.lost);
        Ok(history)
    }

    /// Waits until the leader has forgotten all batches of which nothing is open; it does so after ten seconds at the earliest.
    pub(crate) async fn until_forgotten(&self) {
        let waited = wait_until("all batches to be forgotten", LOAD_MAX, || async {
            let history = History::load(&self.pool, self.cluster.journal(), self.redis.port()).await?;
            let kept = history.not_forgotten();
            ensure!(kept.is_none(), "{}", kept.unwrap_or_default());
            anyhow::Ok(())
        });
        waited.await.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// What is open, for a message.
    async fn open(&self) -> String {
        let statement = "SELECT string_agg(n || ' ' || status, ', ') FROM
                         (SELECT status, count(*) AS n FROM job_executions GROUP BY status ORDER BY status) counts";
        let counts: Result<Option<String>, _> = sqlx::query_scalar(statement).fetch_one(&self.pool).await;
        counts.map_or_else(|error| error.to_string(), |counts| counts.unwrap_or_else(|| "no execution".to_owned()))
    }

    fn keep_evidence(&self) {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("it").join(&self.namespace);
        let _ = std::fs::remove_dir_all(&directory);
        let Some(home) = self.cluster.journal().parent() else { return };
        let (Ok(()), Ok(files)) = (std::fs::create_dir_all(&directory), std::fs::read_dir(home)) else { return };
        for file in files.flatten().filter(|file| file.path().is_file()) {
            let _ = std::fs::copy(file.path(), directory.join(file.file_name()));
        }
        eprintln!("the logs and the journal are in {}", directory.display());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_evidence();
        }
    }
}

/// Waits until `condition` holds, which takes a moment at most; see [`wait_until`].
///
/// # Panics
/// If it does not hold within [`SOON`].
pub(crate) async fn soon<T, E, F, Fut>(what: &str, condition: F) -> T
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    wait_until(what, SOON, condition).await.unwrap_or_else(|error| panic!("{error:#}"))
}
