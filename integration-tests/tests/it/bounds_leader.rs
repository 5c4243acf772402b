//! The leader's bounds: it does not wait for anybody's lock, and who cannot reach Redis does not lead.

use std::time::{Duration, Instant};

use carillon_testkit::{Proxy, Role};
use serde_json::json;

use crate::api::{id_of, instant};
use crate::load::{Load, in_ms, one_time_jobs, rfc3339};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// W is long, since nobody is excused here and the machine may be slow.
fn plan() -> Plan {
    Plan::default().protocol(Duration::from_millis(800), Duration::from_secs(8))
}

/// S4: somebody holds locks on open executions and does not end; Redis is wiped. All else is published again and goes on, under
/// the same leader, and so is what was locked, once it is free.
#[tokio::test]
async fn s4_a_lock_on_executions_holds_up_neither_the_leader_nor_others() {
    const LOCKED: usize = 10;
    let mut world = World::start("s4_foreign_lock", plan()).await;
    let api = world.api();
    for _ in 0..LOCKED {
        // Of a queue that nobody serves yet: no executor has to do with these rows.
        let body = json!({
            "name": "reports", "execute_at": rfc3339(in_ms(50)), "handler_name": "test:echo", "queue": "reports",
            "allow_past": true,
        });
        let job = api.create("once", &body).await;
        world.expected.push((id_of(&job), instant(&job["next_run"])));
    }
    let (over, payload) = (Duration::from_millis(1), json!({"ms": 300}));
    let waiting = one_time_jobs(&world.pool, 200, in_ms(900), over, "test:sleep", &payload).await;
    world.expected.extend(waiting);
    world.wake();
    world.until("status IN ('QUEUED', 'RUNNING')", |open| open > 150).await;
    let leader = world.leader().await;
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    let locked = sqlx::query(
        "SELECT FROM job_executions WHERE job_id IN (SELECT id FROM jobs WHERE queue = 'reports') FOR UPDATE",
    );
    let locked = locked.execute(&mut *foreign).await.expect("they wait").rows_affected();
    assert_eq!(usize::try_from(locked).expect("few"), LOCKED);
    world.redis.flush_all().expect("redis answers");
    let beside = one_time_jobs(&world.pool, 50, in_ms(300), over, "test:echo", &payload).await;
    world.expected.extend(beside);
    world.wake();
    // Everything but what is locked comes to its end while the lock is held.
    let free = i64::try_from(world.expected.len() - LOCKED).expect("few");
    world.until("completed_at IS NOT NULL", |finished| finished >= free).await;
    assert_eq!(world.leader().await, leader, "it led all the time");
    foreign.rollback().await.expect("postgres answers");
    world.add(Role::Executor, &[("CARILLON_EXECUTOR_QUEUES", r#"["reports"]"#)]).await;
    world.judge(LOAD_MAX).await;
    let terms = world.cluster.node(&leader).metric("carillon_dispatcher_terms_total", &[]).expect("it answers");
    assert!(terms < 1.5, "{terms} terms");
}

/// S6: the leader alone loses Redis. It gives the lock back, and another leads that reaches Redis.
#[tokio::test]
async fn s6_a_leader_that_loses_redis_gives_the_lock_to_one_that_reaches_it() {
    let mut world = World::start("s6_leader_without_redis", Plan { dispatchers: 0, ..plan() }).await;
    let mut proxies = Vec::new();
    for _ in 0..2 {
        let proxy = Proxy::to(world.redis.port()).expect("a proxy");
        let url = world.redis.url_through(proxy.port());
        let name = world.add(Role::Dispatcher, &[("CARILLON_REDIS_URL", url.as_str())]).await;
        proxies.push((name, proxy));
    }
    let triggering =
        world.load(Load { one_time: 400, recurring: 4, triggers: 100, over: Duration::from_secs(12) }).await;
    world.until_finished(50).await;
    let first = world.leader().await;
    let proxy = |name: &str| &proxies.iter().find(|(of, _)| of == name).expect("it is one of them").1;
    proxy(&first).silence();
    let silent = Instant::now();
    let second = world.new_leader(&first).await;
    let took = silent.elapsed();
    // Three seconds without an answer, and what a slow machine takes for the rest.
    assert!(took < Duration::from_secs(8), "{took:?} until another led");
    soon("the old one to know it", || {
        let leads = world.cluster.node(&first).metric("carillon_dispatcher_leader", &[]);
        std::future::ready(match leads {
            Ok(0.0) => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
    })
    .await;
    // And the other way round, once the first reaches Redis again.
    proxy(&first).heal();
    proxy(&second).silence();
    world.new_leader(&second).await;
    proxy(&second).heal();
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
}

/// R2: a replica whose master is gone answers each command at once, and nothing but that. Whoever led by it does not lead any more,
/// and nothing is claimed, until it is a master.
#[tokio::test]
async fn a_redis_that_answers_only_that_it_cannot_is_as_good_as_none() {
    let mut world = World::start("masterdown", plan()).await;
    let leader = world.leader().await;
    for words in [&["CONFIG", "SET", "replica-serve-stale-data", "no"][..], &["REPLICAOF", "127.0.0.1", "1"]] {
        world.redis.command(words).expect("redis takes it");
    }
    let leaders = |world: &mut World| -> anyhow::Result<f64> {
        world.cluster.nodes_of(Role::Dispatcher).map(|node| node.metric("carillon_dispatcher_leader", &[])).sum()
    };
    soon("nobody to lead", || {
        std::future::ready(match leaders(&mut world) {
            Ok(0.0) => Ok(()),
            seen => Err(format!("{seen:?} do")),
        })
    })
    .await;
    let api = world.api();
    let due = in_ms(500);
    let job = api.create("once", &json!({"name": "n", "execute_at": rfc3339(due), "handler_name": "test:echo"})).await;
    world.expected.push((id_of(&job), due));
    // Long enough for a leader to have claimed it, and for it to have given the lock back again.
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    while tokio::time::Instant::now() < until {
        assert_eq!(leaders(&mut world).expect("they answer"), 0.0, "{leader} led");
        assert_eq!(
            world.count("SELECT count(*) FROM dispatch_batches").await.expect("postgres answers"),
            0,
            "nothing is claimed"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.redis.promote().expect("redis answers");
    world.judge(LOAD_MAX).await;
}
