//! Postgres fails over to a standby that never got the last commits (row 23). What those commits are, the old primary says: it is
//! started once more, apart, when all is over. For them alone something is excused: what they made may be gone, and what they
//! recorded may run again. The rest is judged as always.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::history::{Execution, History};
use carillon_testkit::journal::{Event, Line};
use carillon_testkit::{Proxy, Role, StopMode};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::api::id_of;
use crate::load::{Load, in_ms, next_fire, one_time_jobs, rfc3339};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// What the standby knows the jobs of.
const LOAD: Load = Load { one_time: 600, recurring: 8, triggers: 0, over: Duration::from_secs(12) };
/// Jobs that are lost, each with an execution: more than there are slots, so some run and the others wait in the stream.
const UNKNOWN: usize = 120;
/// So long do their handlers run: some end while there is no Postgres, some are stopped when it is back.
const SHORT_AND_LONG_MS: [u64; 2] = [250, 1_500];
/// Triggers that are answered, and lost.
const TRIGGERS: usize = 10;
/// W, and the slowness of a machine that is busy with other tests.
const NEXT_FIRE_MAX: TimeDelta = TimeDelta::seconds(8);

#[tokio::test]
async fn a_standby_without_the_last_commits_costs_those_commits_and_nothing_else() {
    let plan = Plan { own_postgres: true, gateways: 0, dispatchers: 0, executors: 0, ..Plan::default() };
    // The lease outlasts the failover: nobody is to be taken for lost.
    let plan = plan.protocol(Duration::from_secs(1), Duration::from_secs(20)).set("CARILLON_EXECUTOR_SLOTS", "24");
    let mut world = World::start("postgres_failover", plan).await;
    let port = world.database.port().expect("a port");
    let (line, replication) = (Proxy::to(port).expect("a proxy"), Proxy::to(port).expect("a proxy"));
    let primary = world.postgres.take().expect("its own");
    let standby = primary.standby(replication.port()).await.unwrap_or_else(|error| panic!("{error:#}"));
    let url = world.database.url_through(line.port());
    let roles = [Role::Dispatcher, Role::Dispatcher, Role::Executor, Role::Executor, Role::Gateway];
    world.add_each(&roles, &[("CARILLON_POSTGRES_URL", url.as_str())]).await;

    let triggering = world.load(LOAD).await;
    world.finish(triggering).await;
    world.until_finished(100).await;
    primary.await_standby(&standby).await.unwrap_or_else(|error| panic!("{error:#}"));
    replication.silence();
    let silenced = Utc::now();
    let finished = usize::try_from(world.finished().await.expect("postgres answers")).expect("few");
    let lost_triggers = trigger_in_vain(&world).await;
    world.until_finished(finished + 100).await;
    let first = in_ms(900);
    for ms in SHORT_AND_LONG_MS {
        let (over, payload) = (Duration::from_millis(1), json!({ "ms": ms }));
        one_time_jobs(&world.pool, UNKNOWN / 2, first, over, "test:sleep", &payload).await;
    }
    world.wake();
    until_they_run(&world, first).await;

    primary.stop(StopMode::Immediate);
    standby.promote().await.unwrap_or_else(|error| panic!("{error:#}"));
    let port = standby.database().port().expect("a port");
    world.database = standby.database().clone();
    world.pool = world.database.pool().await.expect("it answers");
    let journal = world.cluster.journal().to_owned();
    let kept = History::load(&world.pool, &journal, world.redis.port()).await.expect("it can be read");
    line.lay_to(port);
    let moment = Utc::now();
    world.leader().await;

    primary.start_again().expect("it starts again");
    let pool = primary.database().pool().await.expect("it answers");
    let had = History::load(&pool, &journal, world.redis.port()).await.expect("it can be read");
    pool.close().await;
    let lost = Lost::between(&had, &kept);
    assert!(lost.unknown.len() >= UNKNOWN / 2, "{} executions of lost jobs", lost.unknown.len());
    assert!(lost.records.len() >= 50, "{} lost records", lost.records.len());
    assert!(lost_triggers.iter().all(|execution| lost.unknown.contains(execution)), "what was triggered in vain");

    let history = world.judge_after(LOAD_MAX, |history| lost.excuse(history, silenced, moment)).await;
    assert_eq!(history.count(Status::Failed), 0, "none failed of it");
    let next = next_fire(&history, moment);
    eprintln!("the next fire came {next} after the failover; lost: {lost}");
    assert!(next < NEXT_FIRE_MAX, "the next fire came {next} after the failover");
    let (mut results, mut entries) = (0.0, 0.0);
    for node in world.cluster.nodes_of(Role::Executor) {
        results += node.metric("carillon_executor_refused_total", &[r#"why="unknown""#]).expect("it answers");
        entries += node.metric("carillon_executor_unknown_total", &[]).expect("it answers");
    }
    eprintln!("{results} results and {entries} entries of unknown executions were dropped");
    assert!(results > 0.5 && entries > 0.5, "what ran unknown is counted, and what waited");
    world.assert_all_live();
}

/// Answered, and then gone.
async fn trigger_in_vain(world: &World) -> Vec<Uuid> {
    let api = world.api();
    let body = json!({
        "name": "in vain", "execute_at": rfc3339(Utc::now() + TimeDelta::days(300)), "handler_name": "test:echo",
        "allow_overlap": true,
    });
    let job = id_of(&api.create("once", &body).await);
    let mut executions = Vec::new();
    for _ in 0..TRIGGERS {
        executions.push(api.trigger(job, &json!({})).await);
    }
    executions
}

/// Waits until some of what is due at `first` runs, and some of it waits.
async fn until_they_run(world: &World, first: DateTime<Utc>) {
    soon("some to run and some to wait", || async {
        let (running, queued): (i64, i64) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE status = 'RUNNING'), count(*) FILTER (WHERE status = 'QUEUED')
             FROM job_executions WHERE scheduled_at BETWEEN $1 AND $1 + interval '1 ms'",
        )
        .bind(first)
        .fetch_one(&world.pool)
        .await?;
        ensure!(running >= 10 && queued >= 10, "{running} run, {queued} wait");
        Ok(())
    })
    .await;
}

/// What was committed and is not there any more.
struct Lost {
    /// Executions whose very job is lost.
    unknown: HashSet<Uuid>,
    /// Executions that stood further than the standby knew, or that it did not know.
    records: HashSet<Uuid>,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} executions of lost jobs, {} other records", self.unknown.len(), self.records.len())
    }
}

impl Lost {
    fn between(had: &History, kept: &History) -> Self {
        let jobs: HashSet<Uuid> = kept.jobs.iter().map(|job| job.id).collect();
        let rows: HashMap<Uuid, &Execution> = kept.executions.iter().map(|row| (row.id, row)).collect();
        let mut lost = Self { unknown: HashSet::new(), records: HashSet::new() };
        for row in &had.executions {
            let standing = |row: &Execution| (row.status, row.attempt, row.take);
            if !jobs.contains(&row.job) {
                lost.unknown.insert(row.id);
            } else if rows.get(&row.id).is_none_or(|kept| standing(kept) != standing(row)) {
                lost.records.insert(row.id);
            }
        }
        // Asked for and not claimed yet.
        lost.unknown.extend(had.triggers_waiting.iter().filter(|id| !kept.triggers_waiting.contains(id)));
        lost
    }

    /// Takes out of the journal the runs whose commits are lost: all of unknown executions; of the others those that began
    /// before the failover, if another followed.
    fn excuse(&self, history: &mut History, silenced: DateTime<Utc>, moment: DateTime<Utc>) {
        history.journal.retain(|line| !self.unknown.contains(&line.execution));
        let mut last_starts: HashMap<Uuid, DateTime<Utc>> = HashMap::new();
        for line in history.journal.iter().filter(|line| line.event == Event::Start) {
            let last = last_starts.entry(line.execution).or_insert(line.at);
            *last = line.at.max(*last);
        }
        let is_of_a_lost_run = |line: &Line| {
            let again = last_starts.get(&line.execution).is_some_and(|last| line.at < *last && *last > moment);
            again && self.records.contains(&line.execution)
        };
        let (lost, judged): (Vec<Line>, Vec<Line>) =
            std::mem::take(&mut history.journal).into_iter().partition(is_of_a_lost_run);
        let lead = TimeDelta::seconds(1);
        let early = lost.iter().find(|line| line.event == Event::Start && line.at < silenced - lead);
        assert!(early.is_none(), "it began long before anything was lost: {early:?}");
        history.journal = judged;
    }
}
