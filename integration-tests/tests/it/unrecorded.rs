//! What has ended and cannot be recorded: it is held, within its bound, and `/readyz` says so for as long as it lasts; afterwards
//! all of it is recorded. Nobody is lost here, so nothing is excused.

use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::journal::Event;
use carillon_testkit::{Node, Proxy, Role, StopMode};
use serde_json::json;

use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, SOON, World, soon};

/// Handlers whose results wait.
const FIRES: usize = 30;
/// Long enough to be RUNNING in Postgres, all of them, before the first has ended.
const RUNS: Duration = Duration::from_millis(3_000);
/// What an executor says that has recorded nothing for ten seconds, although something waited for it.
const STUCK: &str = "recorder: nothing was recorded for 10 s";
/// After so long it says so: its ten seconds, and the slowness of a machine that is busy with other tests.
const SAID_WITHIN: Duration = Duration::from_secs(15);
const READY_WITHIN: Duration = Duration::from_secs(15);

/// The lease outlasts the fault: whoever records is who ran.
fn plan() -> Plan {
    Plan { dispatchers: 1, ..Plan::default() }.protocol(Duration::from_secs(2), Duration::from_secs(60))
}

/// Begins handlers, and waits until each is RUNNING in Postgres.
async fn begin(world: &mut World) {
    let (over, payload) = (Duration::from_millis(1), json!({"ms": RUNS.as_millis()}));
    let jobs = one_time_jobs(&world.pool, FIRES, in_ms(900), over, "test:sleep", &payload).await;
    world.expected.extend(jobs);
    world.wake();
    world.until("status = 'RUNNING'", |running| running == i64::try_from(FIRES).expect("few")).await;
}

/// Waits for the 503 with its reason, which comes neither at once nor late.
async fn until_stuck(world: &mut World, node: &str) {
    let began = Instant::now();
    world.until_readyz(node, STUCK, RUNS + SAID_WITHIN).await;
    let took = began.elapsed();
    eprintln!("{node} said so after {took:?}");
    assert!(took > Duration::from_secs(9), "it said so after {took:?}");
    assert_eq!(world.finished().await.expect("postgres answers"), 0, "nothing was recorded");
}

/// Each ran once, and who ran it recorded it.
async fn assert_recorded(world: &mut World) {
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), FIRES);
    for event in [Event::Start, Event::End, Event::Recorded] {
        assert_eq!(history.journal.iter().filter(|line| line.event == event).count(), FIRES, "{event:?}");
    }
    world.assert_all_live();
}

/// Row 43: its line to Postgres swallows all bytes. Nobody takes anything from it, since its lease is not over.
#[tokio::test]
async fn an_executor_that_records_nothing_says_so_until_its_line_heals() {
    let mut world = World::start("unrecorded_line", Plan { executors: 0, ..plan() }).await;
    let proxy = Proxy::to(world.database.port().expect("a port")).expect("a proxy");
    let url = world.database.url_through(proxy.port());
    let node = world.add(Role::Executor, &[("CARILLON_POSTGRES_URL", url.as_str())]).await;
    begin(&mut world).await;
    proxy.silence();
    until_stuck(&mut world, &node).await;
    proxy.heal();
    world.until_readyz(&node, "", READY_WITHIN).await;
    assert_recorded(&mut world).await;
}

/// Row 43: Postgres answers, and a lock on a whole table (CREATE INDEX takes one) lets nothing pass. It is no outage: nothing else
/// is missing, and the incarnation stays.
#[tokio::test]
async fn an_executor_behind_a_lock_on_a_whole_table_says_so_until_it_is_gone() {
    let mut world = World::start("unrecorded_lock", Plan { executors: 1, ..plan() }).await;
    begin(&mut world).await;
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    sqlx::query("LOCK TABLE job_stats IN SHARE MODE").execute(&mut *foreign).await.expect("it is locked");
    until_stuck(&mut world, "executor-1").await;
    let (_, said) = world.cluster.node("executor-1").get("/readyz").expect("it answers");
    assert_eq!(said, format!("not ready\n{STUCK}\n"), "nothing else is missing");
    foreign.rollback().await.expect("postgres answers");
    world.until_readyz("executor-1", "", READY_WITHIN).await;
    assert_recorded(&mut world).await;
    let incarnations: i64 =
        sqlx::query_scalar("SELECT count(*) FROM workers").fetch_one(&world.pool).await.expect("postgres answers");
    assert_eq!(incarnations, 1, "a lock is no outage");
}

/// Ended attempts that may wait, and executions at once, of the executors below.
const BOUND: usize = 20;
const SLOTS: usize = 16;
/// What is looked at while nothing may change.
const LOOKED_AT: Duration = Duration::from_secs(2);

fn bounded(plan: Plan) -> Plan {
    plan.set("CARILLON_EXECUTOR_FLUSH_MAX", BOUND.to_string())
        .set("CARILLON_EXECUTOR_UNRECORDED_MAX", BOUND.to_string())
        .set("CARILLON_EXECUTOR_SLOTS", SLOTS.to_string())
}

fn starts(world: &World) -> usize {
    world.journal().iter().filter(|line| line.event == Event::Start).count()
}

/// Row 22: what keeps results from being written and is no outage lets it read on, up to its bound; the rest waits in the stream.
#[tokio::test]
async fn an_executor_reads_no_further_than_its_bound_of_unrecorded_results() {
    const FIRES: usize = 300;
    let mut world = World::start("unrecorded_bound", bounded(Plan { executors: 1, ..plan() })).await;
    let jobs = one_time_jobs(&world.pool, FIRES, in_ms(1_500), Duration::from_millis(1), "test:echo", &json!({})).await;
    world.expected.extend(jobs);
    world.wake();
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    sqlx::query("LOCK TABLE job_stats IN SHARE MODE").execute(&mut *foreign).await.expect("it is locked");
    soon("it to reach its bound", || {
        let unrecorded = world.cluster.node("executor-1").metric("carillon_executor_unrecorded", &[]);
        std::future::ready(unrecorded.and_then(|unrecorded| {
            ensure!(unrecorded >= BOUND as f64, "{unrecorded} are unrecorded");
            Ok(())
        }))
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < LOOKED_AT {
        let count = starts(&world);
        assert!(count < BOUND + SLOTS, "{count} have started");
        tokio::time::sleep(LOOK_EACH).await;
    }
    assert_eq!(world.finished().await.expect("postgres answers"), 0, "nothing was recorded");
    foreign.rollback().await.expect("postgres answers");
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), FIRES);
}

/// Row 22: Postgres is away, for less than the lease. What runs ends and its results are held, nothing more is read or started,
/// every call is told to come again; afterwards all is recorded, by those who ran it.
#[tokio::test]
async fn while_postgres_is_away_results_are_held_and_nothing_more_is_started() {
    const AWAY: Duration = Duration::from_secs(8);
    let plan = bounded(Plan { executors: 2, own_postgres: true, ..plan() });
    let mut world = World::start("unrecorded_away", plan).await;
    // Longer than a stop takes, and than it takes them to hear of it.
    let (over, payload) = (Duration::from_millis(1), json!({"ms": 5_000}));
    let jobs = one_time_jobs(&world.pool, 120, in_ms(900), over, "test:sleep", &payload).await;
    world.expected.extend(jobs);
    world.wake();
    let slots = i64::try_from(2 * SLOTS).expect("few");
    world.until("status = 'RUNNING'", |running| running == slots).await;
    let postgres = world.postgres.as_ref().expect("its own");
    postgres.stop(StopMode::Immediate);
    let began = Instant::now();
    // Both hear of it within a beat, or by the first result at the latest.
    for name in ["executor-1", "executor-2"] {
        world.until_readyz(name, "postgres: ", SOON).await;
    }
    let (started, api) = (starts(&world), world.api());
    let mut held: f64 = 0.0;
    while began.elapsed() < AWAY {
        assert_eq!(starts(&world), started, "one was started that nobody could show");
        let answer = api.get("/jobs?limit=1").await;
        assert!(answer.status == 503 && answer.retry_after.is_some(), "{}: {}", answer.status, answer.body);
        let unrecorded = |node: &mut Node| node.metric("carillon_executor_unrecorded", &[]).expect("it answers");
        held = held.max(world.cluster.nodes_of(Role::Executor).map(unrecorded).sum());
    }
    assert_eq!(held, slots as f64, "all that ran is held");
    world.postgres.as_ref().expect("its own").start_again().expect("it starts again");
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), 120);
    world.cluster.ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    world.assert_all_live();
}
