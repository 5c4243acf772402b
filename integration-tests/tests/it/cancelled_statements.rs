//! An administrator, or a tool of one, cancels statements at any moment. Each is an error that the server reports of a transaction
//! which it rolls back: it ends no term and no incarnation (R2), and what it was for is asked again.

use std::time::Duration;

use serde_json::json;

use crate::load::{Load, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World};

const LOAD: Load = Load { one_time: 700, recurring: 8, triggers: 200, over: Duration::from_secs(9) };
/// Fail once, so that retries are claimed too.
const RETRIED: usize = 150;
const ROUND: Duration = Duration::from_secs(2);
/// One hundred times a second and more.
const APART: Duration = Duration::from_millis(10);
const ROUNDS_MAX: usize = 30;
/// Of the leader's statements. What a claim met is one of a few; most meet it idle.
const REFUSED: f64 = 12.0;
const EXECUTORS: usize = 2;

#[tokio::test]
async fn statements_that_are_cancelled_at_any_moment_end_no_term_and_no_incarnation() {
    let plan = Plan { dispatchers: 2, executors: EXECUTORS, ..Plan::default() }
        .protocol(Duration::from_secs(1), Duration::from_secs(20));
    let mut world = World::start("cancelled_statements", plan).await;
    let leader = world.leader().await;
    let payload = json!({"times": 1});
    let retried = one_time_jobs(&world.pool, RETRIED, in_ms(600), Duration::from_secs(8), "test:fail", &payload).await;
    world.expected.extend(retried);
    let triggering = world.load(LOAD).await;
    let mut refused = 0.0;
    for _ in 0..ROUNDS_MAX {
        let fires = one_time_jobs(&world.pool, 150, in_ms(300), ROUND, "test:echo", &json!({})).await;
        world.expected.extend(fires);
        world.wake();
        let cancelling = |who| world.database.cancel_statements(who, ROUND, APART);
        tokio::try_join!(cancelling("carillon-dispatcher"), cancelling("carillon-executor")).expect("postgres answers");
        refused = metric(&mut world, &leader, "carillon_dispatcher_refused_total");
        if refused >= REFUSED {
            break;
        }
    }
    assert!(refused >= REFUSED, "{refused} of the leader's statements were cancelled");
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;

    assert_eq!(world.leader().await, leader, "the leader stays in office");
    let terms = metric(&mut world, &leader, "carillon_dispatcher_terms_total");
    assert!((0.5..1.5).contains(&terms), "in one term, not {terms}, beside {refused} that were refused");
    let incarnations: i64 =
        sqlx::query_scalar("SELECT count(*) FROM workers").fetch_one(&world.pool).await.expect("postgres answers");
    assert_eq!(usize::try_from(incarnations).expect("few"), EXECUTORS, "no executor was taken for dead");
}

fn metric(world: &mut World, node: &str, name: &str) -> f64 {
    world.cluster.node(node).metric(name, &[]).expect("it answers")
}
