//! The judge: waits until everything has settled, reads what happened, and says which promise was broken.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use carillon_core::execution::Status;
use carillon_testkit::history::{Bounds, Execution, History};
use carillon_testkit::wait_until;
use uuid::Uuid;

use crate::load::Requested;
use crate::world::{LEASE, WINDOW, World};

/// For the rest to be worked off: a lease after the last fault, the leader's walk, and a slow machine.
const SETTLED_MAX: Duration = Duration::from_secs(180);
/// Between two looks that cost something.
const LOOK_EACH: Duration = Duration::from_millis(500);
/// Violations shown.
const SHOWN_MAX: usize = 40;
/// Latest starts shown.
const LATEST_SHOWN: usize = 3;

/// What was found.
#[derive(Debug)]
pub(crate) struct Verdict {
    history: History,
    requested: Requested,
    settled_after: Duration,
    violations: Vec<String>,
}

impl Verdict {
    pub(crate) async fn reach(world: &World, requested: Requested) -> Self {
        let began = std::time::Instant::now();
        let mut violations = Vec::new();
        if let Err(error) = look_at_unknown_entries(world, &mut violations) {
            violations.push(format!("redis cannot be looked into: {error:#}"));
        }
        if let Err(error) = settle(world, &requested).await {
            violations.push(format!("not settled: {error:#}"));
        }
        let settled_after = began.elapsed();
        let mut history = match load(world).await {
            Ok(history) => history,
            Err(error) => {
                violations.push(format!("the history cannot be read: {error:#}"));
                History::default()
            }
        };
        {
            let past = world.past();
            history.expected.clone_from(&requested.expected);
            history.triggered.clone_from(&requested.triggered);
            history.lost_workers.clone_from(&past.lost);
            history.redis_losses.clone_from(&past.redis_losses);
            history.bounds = Bounds { window: WINDOW, lease: LEASE };
            history.correct_clocks(&past.clocks);
            // 101: it panicked.
            let is_wrong =
                |ended: &&String| ["not ready", "signal", "exit status: 101"].iter().any(|how| ended.contains(how));
            violations.extend(past.ended.iter().filter(is_wrong).cloned());
        }
        violations.extend(history.violations().iter().map(ToString::to_string));
        violations.extend(unexpected(&history, &requested));
        violations.extend(requested.complaints.iter().map(|complaint| format!("answer: {complaint}")));
        let leaders = world.leaders().await;
        if leaders.len() != 1 {
            violations.push(format!("not one leader: {leaders:?}"));
        }
        Self { history, requested, settled_after, violations }
    }

    /// Prints the table. Says whether every promise was kept.
    pub(crate) fn print(&self, world: &World, took: Duration) -> bool {
        let past = world.past();
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<28} {value}");
        };
        let faults: usize = past.faults.values().sum();
        row("executions", format!("{}, {}", self.history.executions.len(), by_status(&self.history)));
        row(
            "expected",
            format!("{} fires, {} triggers", self.requested.expected.len(), self.requested.triggered.len()),
        );
        row("journal", format!("{} lines", self.history.journal.len()));
        row("answers", list(&self.requested.answers));
        row("faults", format!("{faults} of {} kinds, {} passed over", past.faults.len(), past.passed_over));
        row("workers lost", past.lost.len().to_string());
        row("ended by themselves", if past.ended.is_empty() { "0".into() } else { past.ended.join("; ") });
        row("lateness", lateness(&self.history));
        for latest in latest(&self.history) {
            row("", latest);
        }
        row("settled after", format!("{:.1?}, all took {took:.1?}", self.settled_after));
        row("violations", self.violations.len().to_string());
        println!("\n{text}");
        for (name, count) in &past.faults {
            println!("  {count:>4} {name}");
        }
        for violation in self.violations.iter().take(SHOWN_MAX) {
            println!("  VIOLATED {violation}");
        }
        let _ = std::fs::write(world.directory.join("violations.txt"), self.violations.join("\n"));
        self.violations.is_empty()
    }
}

/// One line about how it stands.
pub(crate) async fn progress(world: &World) -> String {
    let statement =
        "SELECT count(*) FILTER (WHERE completed_at IS NOT NULL), count(*) FILTER (WHERE completed_at IS NULL)
                     FROM job_executions";
    let counted = sqlx::query_as::<_, (i64, i64)>(statement).fetch_one(&world.pool);
    let counted = tokio::time::timeout(Duration::from_secs(2), counted).await;
    let leader = world.leader().await.unwrap_or_else(|| "nobody".to_owned());
    let faults: usize = world.past().faults.values().sum();
    match counted {
        Ok(Ok((done, open))) => format!("== {done} done, {open} open, {faults} faults, {leader} leads"),
        _ => format!("== postgres does not answer, {faults} faults, {leader} leads"),
    }
}

async fn load(world: &World) -> Result<History> {
    let journal = world.cluster().journal().to_owned();
    History::load(&world.pool, &journal, world.redis.port()).await
}

/// Until what was expected is final and nothing is left behind.
async fn settle(world: &World, requested: &Requested) -> Result<()> {
    let wanted = i64::try_from(requested.expected.len() + requested.triggered.len())?;
    wait_until("all to be final", SETTLED_MAX, || async {
        tokio::time::sleep(LOOK_EACH).await;
        let statement = "SELECT count(*) FILTER (WHERE completed_at IS NOT NULL),
                         count(*) FILTER (WHERE completed_at IS NULL) FROM job_executions";
        let (done, open): (i64, i64) = sqlx::query_as(statement).fetch_one(&world.pool).await?;
        ensure!(open == 0 && done >= wanted, "{done} of {wanted} are, {open} open");
        anyhow::Ok(())
    })
    .await?;
    wait_until("nothing to be left behind", SETTLED_MAX, || async {
        tokio::time::sleep(LOOK_EACH).await;
        let history = load(world).await?;
        let mut open = history.still_open();
        open.extend(history.not_forgotten());
        ensure!(open.is_empty(), "{}", open.join("; "));
        anyhow::Ok(())
    })
    .await
}

/// Set aside, not lost: still in its stream, unless Redis lost it. Taken away then, so that nothing is left.
fn look_at_unknown_entries(world: &World, violations: &mut Vec<String>) -> Result<()> {
    let past = world.past();
    for (stream, id, at) in &past.unknown_entries {
        let held = world.redis.command(&["XRANGE", stream, id, id])?;
        let lost_since = past.redis_losses.iter().any(|loss| loss >= at);
        if held.list().is_empty() && !lost_since {
            violations.push(format!("the entry {id} of a newer form is gone from {stream}"));
        }
        let _ = world.redis.command(&["XACK", stream, "executors", id]);
        world.redis.command(&["XDEL", stream, id])?;
    }
    Ok(())
}

/// Executions of jobs that nobody asked for.
fn unexpected(history: &History, requested: &Requested) -> Vec<String> {
    let expected: HashSet<(Uuid, i64)> =
        requested.expected.iter().map(|(job, at)| (*job, at.timestamp_millis())).collect();
    let mut found = Vec::new();
    for execution in history.executions.iter().filter(|execution| requested.closed.contains(&execution.job)) {
        if !expected.contains(&(execution.job, execution.scheduled_at.timestamp_millis())) {
            found.push(format!("unexpected: execution {} of {}", execution.id, execution.scheduled_at));
        }
    }
    found
}

fn by_status(history: &History) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for execution in &history.executions {
        *counts.entry(execution.status.to_string()).or_default() += 1;
    }
    list(&counts)
}

fn list<K: std::fmt::Display>(counts: &BTreeMap<K, usize>) -> String {
    counts.iter().map(|(key, count)| format!("{count} {key}")).collect::<Vec<_>>().join(", ")
}

/// Milliseconds from its instant to its start, if what started is its first attempt and came to a good end: its latest start.
fn late(execution: &Execution) -> Option<i64> {
    let counts = execution.status == Status::Success && execution.attempt == 1;
    let started = execution.started_at.filter(|_| counts)?;
    Some((started - execution.scheduled_at).num_milliseconds())
}

/// Of what started: how long after its instant, faults and all.
fn lateness(history: &History) -> String {
    let mut late: Vec<i64> = history.executions.iter().filter_map(late).collect();
    late.sort_unstable();
    let at = |part: usize| late.get(late.len() * part / 1000).or(late.last()).copied().unwrap_or_default();
    format!("p50 {} ms, p99 {} ms, max {} ms", at(500), at(990), at(1000))
}

/// Which were the latest, so that one can look up why.
fn latest(history: &History) -> Vec<String> {
    let mut latest: Vec<(i64, &Execution)> =
        history.executions.iter().filter_map(|execution| Some((late(execution)?, execution))).collect();
    latest.sort_unstable_by_key(|(late, _)| std::cmp::Reverse(*late));
    let line = |(late, execution): &(i64, &Execution)| {
        format!("{late} ms: {} of {}, take {}", execution.id, execution.scheduled_at.format("%T%.3f"), execution.take)
    };
    latest.iter().take(LATEST_SHOWN).map(line).collect()
}
