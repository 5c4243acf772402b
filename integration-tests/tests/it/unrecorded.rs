//! What has ended and cannot be recorded: it is held, within its bound, and `/readyz` says so for as long as it lasts; afterwards
//! all of it is recorded. Nobody is lost here, so nothing is excused.

use std::time::{Duration, Instant};

use carillon_core::execution::Status;
use carillon_testkit::journal::Event;
use carillon_testkit::{Proxy, Role};
use serde_json::json;

use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World};

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
