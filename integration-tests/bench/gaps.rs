//! How long no fire starts when something is lost: one fault after another under a steady load, through three dispatchers and
//! three executors at the default settings, each with lines of its own to the servers.
//!
//! Each row is of one fault: 3 s of load before it, 8 s with it, 3 s after it is healed. All is read from the executions
//! afterwards: when each started, and the number of its claim, which is the millisecond of it. What the fault itself is about
//! (what was locked, what a lost executor held) comes late and is not counted; all else must go on.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use carillon_core::ids;
use carillon_testkit::RespClient;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use crate::asked::{Asked, Figures};
use crate::fleet::{Fleet, Role};
use crate::load::{self, Start, longest_gap};
use crate::options::Plan;
use crate::product::{Binaries, Watch};
use crate::report::{Report, progress};
use crate::servers::{Database, SEARCH_PATH, Servers};

const DISPATCHERS: usize = 3;
const EXECUTORS: usize = 3;
/// Fires a second.
const PER_S: u32 = 150;
/// Seconds of load before a fault, with it, after it.
const BEFORE: u32 = 3;
const WITH: u32 = 8;
const AFTER: u32 = 3;
/// What a lost executor held starts after its lease.
const END_MAX: Duration = Duration::from_secs(90);
/// Rows that a foreign session locks.
const LOCKED: usize = 20;
/// How often it is looked whether anything was recorded.
const LOOK_EACH: Duration = Duration::from_millis(50);
/// How long Redis is away.
const REDIS_AWAY: Duration = Duration::from_secs(1);
/// After it is back something must be published within this, else the row says so.
const PUBLISH_MAX: Duration = Duration::from_secs(15);

/// What was asked for, in seconds.
const KILLED: f64 = 1.0;
const CUT_OR_FROZEN: f64 = 5.0;
const OTHERS: f64 = 2.0;
/// In milliseconds.
const REDIS_BACK: f64 = 500.0;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    LeaderKilled,
    LeaderFrozen,
    LeaderWithoutPostgres,
    LeaderWithoutRedis,
    LeaderWithoutBoth,
    RedisRestarted,
    ExecutorFrozen,
    ExecutorWithoutPostgres,
    ExecutorWithoutRedis,
    Locked(&'static str),
}

impl Fault {
    const ALL: [Self; 13] = [
        Self::LeaderKilled,
        Self::LeaderFrozen,
        Self::LeaderWithoutPostgres,
        Self::LeaderWithoutRedis,
        Self::LeaderWithoutBoth,
        Self::RedisRestarted,
        Self::ExecutorFrozen,
        Self::ExecutorWithoutPostgres,
        Self::ExecutorWithoutRedis,
        Self::Locked("job_stats"),
        Self::Locked("jobs"),
        Self::Locked("job_timers"),
        Self::Locked("job_executions"),
    ];

    fn name(self) -> String {
        match self {
            Self::LeaderKilled => "leader killed".into(),
            Self::LeaderFrozen => "leader frozen".into(),
            Self::LeaderWithoutPostgres => "leader cut from Postgres".into(),
            Self::LeaderWithoutRedis => "leader cut from Redis".into(),
            Self::LeaderWithoutBoth => "leader cut from both".into(),
            Self::RedisRestarted => "Redis restarted".into(),
            Self::ExecutorFrozen => "executor frozen".into(),
            Self::ExecutorWithoutPostgres => "executor cut from Postgres".into(),
            Self::ExecutorWithoutRedis => "executor cut from Redis".into(),
            Self::Locked(table) => format!("{LOCKED} rows of {table} locked"),
        }
    }

    /// The bound of the longest time without a start, and that of the time to the next claim, in seconds.
    const fn asked(self) -> (Asked, Option<Asked>) {
        match self {
            Self::LeaderKilled => (Asked::AtMost(KILLED), Some(Asked::AtMost(KILLED))),
            // Its claims go on, and nobody hears of them.
            Self::LeaderWithoutRedis => (Asked::AtMost(CUT_OR_FROZEN), None),
            Self::LeaderFrozen | Self::LeaderWithoutPostgres | Self::LeaderWithoutBoth => {
                (Asked::AtMost(CUT_OR_FROZEN), Some(Asked::AtMost(CUT_OR_FROZEN)))
            }
            Self::RedisRestarted => (Asked::Nothing, None),
            Self::ExecutorFrozen | Self::ExecutorWithoutPostgres | Self::ExecutorWithoutRedis | Self::Locked(_) => {
                (Asked::AtMost(OTHERS), None)
            }
        }
    }

    /// Whether what is not touched must be recorded meanwhile.
    const fn is_of_some(self) -> bool {
        matches!(
            self,
            Self::ExecutorFrozen | Self::ExecutorWithoutPostgres | Self::ExecutorWithoutRedis | Self::Locked(_)
        )
    }
}

/// What must be undone, and what is known only while it lasts.
#[derive(Debug, Default)]
struct Done {
    /// A process that is to be healed, or started again.
    node: Option<(String, bool)>,
    /// Somebody's session, silent within its transaction.
    foreign: Option<PgConnection>,
    /// Jobs whose rows are locked.
    locked: HashSet<Uuid>,
    /// From Redis' first answer to the first entry, in milliseconds.
    published_ms: Option<f64>,
}

/// Measures, and adds to `report`. Servers of its own: one of them is killed.
///
/// # Errors
/// If something of it fails, or an execution did not succeed.
pub async fn run(binaries: &Binaries, plan: &Plan, report: &mut Report) -> Result<()> {
    let servers = Servers::start(false).await?;
    let database = servers.database("gaps").await?;
    let mut fleet = Fleet::new(&servers, binaries, &database, "gaps", plan).await?;
    for _ in 0..DISPATCHERS {
        fleet.add_with_lines(Role::Dispatcher)?;
    }
    for _ in 0..EXECUTORS {
        fleet.add_with_lines(Role::Executor)?;
    }
    let mut gaps = Gaps { servers, database, fleet };
    for fault in Fault::ALL.into_iter().filter(|fault| plan.wants_row(&fault.name())) {
        progress(&format!("gaps: {}", fault.name()));
        gaps.measure(fault, &mut report.figures).await?;
    }
    gaps.fleet.end().await;
    gaps.database.pool.close().await;
    Ok(())
}

struct Gaps {
    servers: Servers,
    database: Database,
    fleet: Fleet,
}

impl Gaps {
    async fn measure(&mut self, fault: Fault, figures: &mut Figures) -> Result<()> {
        self.fleet.ready().await?;
        let leader = self.fleet.leader().await?;
        let pool = self.database.pool.clone();
        let (jobs, first) = load::spread(&pool, &self.fleet.redis, PER_S, BEFORE + WITH + AFTER).await?;
        let from = first + TimeDelta::seconds(i64::from(BEFORE));
        let last = first + TimeDelta::seconds(i64::from(BEFORE + WITH + AFTER));
        load::until(&pool, from).await?;
        let recording = tokio::spawn(longest_without_a_record(pool.clone(), first, last));
        let at = Utc::now();
        let healed = tokio::time::Instant::now() + Duration::from_secs(u64::from(WITH));
        let mut done = self.inject(fault, &leader, &jobs, first).await?;
        tokio::time::sleep_until(healed).await;
        self.heal(&mut done).await?;
        let unrecorded = recording.await??;
        load::ended(&pool, &jobs, jobs.len(), END_MAX, || self.fleet.logs()).await?;
        let starts = load::starts(&pool, &jobs).await?;
        let bad = starts.iter().find(|start| start.status != "SUCCESS");
        anyhow::ensure!(bad.is_none(), "an execution did not succeed: {bad:?}\n{}", self.fleet.logs());
        judge(fault, &done, &starts, (at, last), unrecorded, figures);
        Ok(())
    }

    async fn inject(&mut self, fault: Fault, leader: &str, jobs: &[Uuid], first: DateTime<Utc>) -> Result<Done> {
        let mut done = Done::default();
        let victim = match fault {
            Fault::RedisRestarted => {
                done.published_ms = Some(self.restart_redis().await?);
                return Ok(done);
            }
            Fault::Locked(table) => {
                let (foreign, locked) = lock(&self.database.url, table, jobs, first).await?;
                (done.foreign, done.locked) = (Some(foreign), locked);
                return Ok(done);
            }
            Fault::ExecutorFrozen | Fault::ExecutorWithoutPostgres | Fault::ExecutorWithoutRedis => "executor-1",
            _ => leader,
        };
        let node = self.fleet.node_mut(victim)?;
        let lines = node.lines.as_ref().context("it has lines of its own")?;
        match fault {
            Fault::LeaderWithoutPostgres | Fault::ExecutorWithoutPostgres => lines.postgres.silence(),
            Fault::LeaderWithoutRedis | Fault::ExecutorWithoutRedis => lines.redis.silence(),
            Fault::LeaderWithoutBoth => {
                lines.postgres.silence();
                lines.redis.silence();
            }
            Fault::LeaderKilled => node.kill(),
            _ => node.freeze(),
        }
        done.node = Some((victim.to_owned(), fault == Fault::LeaderKilled));
        Ok(done)
    }

    async fn heal(&mut self, done: &mut Done) -> Result<()> {
        if let Some(foreign) = done.foreign.take() {
            // Its transaction goes with it.
            foreign.close().await?;
        }
        match &done.node {
            Some((name, true)) => self.fleet.start_again(name)?,
            Some((name, false)) => self.fleet.node_mut(name)?.heal(),
            None => {}
        }
        Ok(())
    }

    /// Kills Redis, starts it again after a second; from its first answer to the first entry that is added, in milliseconds.
    async fn restart_redis(&mut self) -> Result<f64> {
        let port = self.servers.redis_port();
        let watch = tokio::task::block_in_place(|| {
            self.servers.kill_redis();
            std::thread::sleep(REDIS_AWAY);
            let watch = std::thread::spawn(move || first_published(port));
            self.servers.start_redis().map(|()| watch)
        })?;
        let watched = tokio::task::spawn_blocking(move || watch.join());
        watched.await?.map_err(|_| anyhow::anyhow!("the watch over Redis panicked"))?
    }
}

/// Waits for Redis to answer, then for the first new entry of the jobs' stream; how long that took, in milliseconds.
fn first_published(port: u16) -> Result<f64> {
    const LOOK_EACH: Duration = Duration::from_millis(1);
    let began = Instant::now();
    let (answered, client) = loop {
        // While it loads its data it answers nothing but errors.
        let client = RespClient::connect(port).and_then(|mut client| client.command(&["PING"]).map(|_| client));
        match client {
            Ok(client) => break (Instant::now(), client),
            Err(error) if began.elapsed() > PUBLISH_MAX => return Err(error),
            Err(_) => std::thread::sleep(LOOK_EACH),
        }
    };
    let mut watch = Watch::through(client, "gaps");
    let (before, _) = watch.look();
    while watch.look().0 <= before {
        if answered.elapsed() > PUBLISH_MAX {
            return Ok(f64::NAN);
        }
        std::thread::sleep(LOOK_EACH);
    }
    Ok(answered.elapsed().as_secs_f64() * 1_000.0)
}

/// As an administrator's session that goes silent within its transaction: locks some rows of `table`; the jobs they are of.
async fn lock(url: &str, table: &str, jobs: &[Uuid], first: DateTime<Utc>) -> Result<(PgConnection, HashSet<Uuid>)> {
    let options: PgConnectOptions = url.parse()?;
    let mut session = PgConnection::connect_with(&options.options(SEARCH_PATH)).await?;
    sqlx::raw_sql("BEGIN").execute(&mut session).await?;
    // Those that come from now on, some each second.
    let coming = jobs.iter().skip(usize::try_from(BEFORE * PER_S)?).step_by(usize::try_from(WITH * PER_S)? / LOCKED);
    let coming: Vec<Uuid> = coming.take(LOCKED).copied().collect();
    let locked: Vec<Uuid> = match table {
        // Those that are held, or run.
        "job_executions" => {
            let statement = "SELECT job_id FROM job_executions WHERE id >= $1 AND completed_at IS NULL \
                             ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED";
            let limit = i64::try_from(LOCKED)?;
            sqlx::query_scalar(statement).bind(ids::first_at(first)).bind(limit).fetch_all(&mut session).await?
        }
        "jobs" => {
            let statement = "SELECT id FROM jobs WHERE id = ANY ($1) ORDER BY id FOR UPDATE";
            sqlx::query_scalar(statement).bind(&coming).fetch_all(&mut session).await?
        }
        other => {
            let statement = format!("SELECT job_id FROM {other} WHERE job_id = ANY ($1) ORDER BY job_id FOR UPDATE");
            sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).bind(&coming).fetch_all(&mut session).await?
        }
    };
    anyhow::ensure!(!locked.is_empty(), "no row of {table} could be locked");
    Ok((session, locked.into_iter().collect()))
}

/// Looks until `last` how many of the executions from `first` on are final; the longest time in which none became so.
async fn longest_without_a_record(pool: PgPool, first: DateTime<Utc>, last: DateTime<Utc>) -> Result<Duration> {
    let statement = "SELECT count(*) FROM job_executions WHERE id >= $1 AND completed_at IS NOT NULL";
    let (mut seen, mut since, mut longest) = (-1, Instant::now(), Duration::ZERO);
    while Utc::now() < last {
        let final_ones: i64 = sqlx::query_scalar(statement).bind(ids::first_at(first)).fetch_one(&pool).await?;
        longest = longest.max(since.elapsed());
        if final_ones > seen {
            (seen, since) = (final_ones, Instant::now());
        }
        tokio::time::sleep(LOOK_EACH).await;
    }
    Ok(longest)
}

fn judge(
    fault: Fault,
    done: &Done,
    starts: &[Start],
    (at, last): (DateTime<Utc>, DateTime<Utc>),
    unrecorded: Duration,
    figures: &mut Figures,
) {
    let name = fault.name();
    let mut add = |what, value, asked| figures.add("gaps", &name, what, value, asked);
    let (without_start, next_claim) = fault.asked();
    let others = || starts.iter().filter(|start| !done.locked.contains(&start.job_id));
    let (gap, _) = longest_gap(others().filter_map(|start| start.started_at), at, last);
    add("longest without a start", (gap.as_seconds_f64(), "s"), without_start);
    if let Some(asked) = next_claim {
        let claims = others().filter_map(|start| DateTime::from_timestamp_millis(start.claim?));
        // The last claim is some hundred milliseconds before the last instant.
        let (length, end) = longest_gap(claims, at, last - TimeDelta::seconds(1));
        let next = (end - at.max(end - length)).as_seconds_f64();
        add("until the next claim", (next, "s"), asked);
    }
    if let Some(published) = done.published_ms {
        add("first entry after Redis answers", (published, "ms"), Asked::AtMost(REDIS_BACK));
    }
    if fault.is_of_some() {
        add("longest without a record", (unrecorded.as_secs_f64(), "s"), Asked::AtMost(OTHERS));
    }
    let late = others().filter_map(Start::late_ms).fold(f64::NAN, f64::max);
    add("latest start", (late / 1_000.0, "s"), Asked::Nothing);
    let early = starts.iter().filter_map(Start::late_ms).filter(|late| *late < 0.0).count();
    add("early starts", (f64::from(u32::try_from(early).unwrap_or(u32::MAX)), ""), Asked::AtMost(0.0));
}
