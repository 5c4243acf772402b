//! Redis answers, only later (row 17): fires come late by about that, and nothing else comes of it.

use std::time::{Duration, Instant};

use carillon_testkit::{Proxy, Role};
use chrono::TimeDelta;
use serde_json::json;

use crate::load::{HUNDREDS, in_ms, lateness, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World};

/// Each way.
const DELAY: Duration = Duration::from_millis(300);
/// What a fire costs more, in round trips: publish and read, up to one read that is on its way without it, and the listing of
/// what is pending each quarter of the lease, which asks for one line after the other while nothing is read; less the lead.
const MORE_MAX: TimeDelta = TimeDelta::milliseconds(6 * 2 * 300);
/// Fires whose lateness is compared.
const FIRES: usize = 100;
const EXECUTORS: usize = 2;
/// After a leader that is killed meanwhile: a few round trips, and the slowness of a machine that is busy with other tests.
const LEADS_WITHIN: Duration = Duration::from_secs(10);

/// With the window and the lease that are shipped: they are to be wide enough.
#[tokio::test]
async fn a_slow_redis_makes_fires_late_and_does_nothing_else() {
    let plan = Plan { gateways: 0, dispatchers: 0, executors: 0, ..Plan::default() };
    let plan = plan.protocol(Duration::from_secs(2), Duration::from_secs(20));
    let mut world = World::start("slow_redis", plan).await;
    let line = Proxy::to(world.redis.port()).expect("a proxy");
    let url = world.redis.url_through(line.port());
    let roles = [Role::Dispatcher, Role::Dispatcher, Role::Executor, Role::Executor, Role::Gateway];
    world.add_each(&roles, &[("CARILLON_REDIS_URL", url.as_str())]).await;
    let leader = world.leader().await;
    let prompt = median_lateness(&mut world).await;
    line.delay(DELAY);
    let slow = median_lateness(&mut world).await;
    let triggering = world.load(HUNDREDS).await;
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;

    let more = slow - prompt;
    eprintln!("fires came {slow} late instead of {prompt}");
    let delay = TimeDelta::from_std(DELAY).expect("short");
    assert!(delay < more && more < MORE_MAX, "{more} more, {slow} instead of {prompt}");
    assert_eq!(world.leader().await, leader, "the leader stays in office");
    let node = world.cluster.node(&leader);
    let metric = |name| node.metric(name, &[]).expect("it answers");
    assert!((0.5..1.5).contains(&metric("carillon_dispatcher_terms_total")), "in one term");
    assert!(metric("carillon_dispatcher_republished_total") < 0.5, "nothing is taken for lost");
    let taken = world.executions_where("take > 0 OR lost > 0").await.expect("postgres answers");
    assert_eq!(taken, 0, "nobody's work is taken");
    let incarnations: i64 =
        sqlx::query_scalar("SELECT count(*) FROM workers").fetch_one(&world.pool).await.expect("postgres answers");
    assert_eq!(usize::try_from(incarnations).expect("few"), EXECUTORS, "no executor was judged dead");

    world.kill(&leader);
    let killed = Instant::now();
    world.new_leader(&leader).await;
    let took = killed.elapsed();
    eprintln!("another led after {took:?}");
    assert!(took < LEADS_WITHIN, "another led after {took:?}");
    median_lateness(&mut world).await;
}

/// Of fires of their own.
async fn median_lateness(world: &mut World) -> TimeDelta {
    let (first, over) = (in_ms(1_500), Duration::from_secs(4));
    let jobs = one_time_jobs(&world.pool, FIRES, first, over, "test:echo", &json!({})).await;
    world.expected.extend(jobs);
    world.wake();
    let history = world.judge(LOAD_MAX).await;
    let just_before = first - TimeDelta::milliseconds(1);
    let mut late: Vec<TimeDelta> = lateness(&history, just_before).into_iter().map(|(_, late)| late).collect();
    assert_eq!(late.len(), FIRES);
    late.sort_unstable();
    eprintln!("the latest was {} late", late[FIRES - 1]);
    late[FIRES / 2]
}
