//! R9: an executor that stands still for a while, shorter than its lease, and meanwhile Redis forgets, so that others do what it
//! had read. Nobody is lost here, and nothing is excused.

use std::time::Duration;

use carillon_testkit::Role;
use serde_json::json;
use uuid::Uuid;

use crate::api::{Api, id_of};
use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// Name of the one that stands still, in the consumer groups.
const SLEEPY: &str = "sleepy";
/// Rounds until the entry was where the test needs it.
const ROUNDS_MAX: usize = 60;

async fn start(name: &str, window: Duration, executors: usize) -> (World, String) {
    let plan = Plan { executors, dispatchers: 1, ..Plan::default() };
    let plan =
        plan.protocol(window, window * 10).set("CARILLON_DISPATCHER_LEAD", format!("{}ms", (window / 4).as_millis()));
    let mut world = World::start(name, plan).await;
    let sleepy = world.add(Role::Executor, &[("CARILLON_EXECUTOR_NAME", SLEEPY)]).await;
    (world, sleepy)
}

/// Whether an entry is pending under the one that stands still.
fn is_pending(world: &World) -> bool {
    let pending = world.redis.command(&["XPENDING", &world.stream("default", "MEDIUM"), "executors", "-", "+", "10"]);
    // Before the first entry there is no stream, which Redis says as an error.
    pending.is_ok_and(|pending| {
        let mut consumers = pending.list().iter().map(|entry| entry.list()[1].text().unwrap_or_default());
        consumers.any(|consumer| consumer.starts_with(SLEEPY))
    })
}

async fn is_final(world: &World, execution: Uuid) -> bool {
    let done = sqlx::query_scalar("SELECT completed_at IS NOT NULL FROM job_executions WHERE id = $1").bind(execution);
    done.fetch_optional(&world.pool).await.expect("postgres answers").unwrap_or(false)
}

fn doubted(world: &mut World, name: &str) -> f64 {
    world.cluster.node(name).metric("carillon_executor_doubtful_total", &[]).expect("it answers")
}

/// Wakes it and waits until it has looked at what it read before. `false`: its read has failed instead, since it stood still
/// for too long on a slow machine.
async fn wakes_and_doubts(world: &mut World, name: &str, before: f64) -> bool {
    let node = world.cluster.node(name);
    let failed_before = node.log().matches("cannot read").count();
    node.thaw();
    soon("the woken executor to doubt what it had read", || {
        let failed = node.log().matches("cannot read").count() > failed_before;
        let doubted = node.metric("carillon_executor_doubtful_total", &[]).is_ok_and(|count| count > before);
        std::future::ready(if doubted || failed { Ok(doubted) } else { Err("it does not") })
    })
    .await
}

/// The answer lies in its socket all the while: to the process it looks as if it came after it woke.
#[tokio::test]
async fn what_redis_answered_before_a_stall_ended_is_checked_before_it_starts() {
    let (mut world, sleepy) = start("stall_read", Duration::from_millis(600), 1).await;
    let api = world.api();
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);
    for round in 0.. {
        assert!(round < ROUNDS_MAX, "its blocked read never got an entry");
        let before = doubted(&mut world, &sleepy);
        world.cluster.node(&sleepy).freeze();
        let execution = trigger(&mut world, &api, job).await;
        let read = soon("the entry to be read", || async {
            if is_pending(&world) {
                return Ok(true);
            }
            if is_final(&world, execution).await { Ok(false) } else { Err("it is not") }
        });
        if !read.await {
            // The other was quicker.
            world.cluster.node(&sleepy).thaw();
            continue;
        }
        world.redis.flush_all().expect("redis answers");
        soon("the other to do it", || async { is_final(&world, execution).await.then_some(()).ok_or("it has not") })
            .await;
        if wakes_and_doubts(&mut world, &sleepy, before).await {
            break;
        }
    }
    world.judge(LOAD_MAX).await;
}

async fn trigger(world: &mut World, api: &Api, job: Uuid) -> Uuid {
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    execution
}

/// In hand, and waiting for its instant.
#[tokio::test]
async fn what_is_held_through_a_stall_is_checked_before_it_starts() {
    let (mut world, sleepy) = start("stall_held", Duration::from_secs(2), 0).await;
    for round in 0.. {
        assert!(round < ROUNDS_MAX, "it never held an entry");
        let fire = one_time_jobs(&world.pool, 1, in_ms(900), Duration::ZERO, "test:echo", &json!({})).await;
        let execution = carillon_core::ids::execution_for_fire(fire[0].0, fire[0].1);
        world.expected.extend(fire);
        world.wake();
        soon("the entry to be read", || std::future::ready(if is_pending(&world) { Ok(()) } else { Err("it is not") }))
            .await;
        let before = doubted(&mut world, &sleepy);
        world.cluster.node(&sleepy).freeze();
        if is_final(&world, execution).await || !is_pending(&world) {
            // Its instant was quicker.
            world.cluster.node(&sleepy).thaw();
            continue;
        }
        world.redis.flush_all().expect("redis answers");
        world.add(Role::Executor, &[]).await;
        soon("the other to do it", || async { is_final(&world, execution).await.then_some(()).ok_or("it has not") })
            .await;
        assert!(wakes_and_doubts(&mut world, &sleepy, before).await, "it had read it");
        break;
    }
    world.judge(LOAD_MAX).await;
}
