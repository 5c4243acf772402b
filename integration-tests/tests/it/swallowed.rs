//! Lines that swallow all bytes without a word, at an executor with running and unrecorded work: it gets over it by itself, or
//! is replaced, and `/readyz` tells the truth meanwhile.

use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::history::LostWorker;
use carillon_testkit::journal::Event;
use carillon_testkit::{Proxy, Role};
use chrono::Utc;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use crate::api::{Api, id_of};
use crate::load::{HUNDREDS, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World, soon};

/// Ten seconds, and the slowness of a machine that is busy with other tests.
const RECOVERED_WITHIN: Duration = Duration::from_secs(15);

/// A world with one executor on a line to Postgres of its own, and one without.
async fn with_a_line(name: &str, plan: Plan) -> (World, Proxy, String) {
    let plan = Plan { executors: 1, dispatchers: 1, ..plan };
    let mut world = World::start(name, plan).await;
    let proxy = Proxy::to(world.database.port().expect("a port")).expect("a proxy");
    let url = world.database.url_through(proxy.port());
    let node = world.add(Role::Executor, &[("CARILLON_POSTGRES_URL", url.as_str())]).await;
    (world, proxy, node)
}

/// Row 43: the standing connections are forgotten by a firewall, new ones work. It comes back as a new incarnation and must
/// then do its work: nobody takes over from it, since it beats.
#[tokio::test]
async fn an_executor_whose_connections_fall_silent_records_again_by_itself() {
    let plan = Plan::default().protocol(Duration::from_secs(1), Duration::from_secs(20));
    let (mut world, proxy, node) = with_a_line("silent_connections", plan).await;
    let (first, over) = (in_ms(900), Duration::from_millis(500));
    let long = one_time_jobs(&world.pool, 20, first, over, "test:sleep", &json!({"ms": 3_000})).await;
    world.expected.extend(long);
    let triggering = world.load(HUNDREDS).await;
    world.until_running_at(&node, 3).await;
    proxy.silence_connections();
    let began = Instant::now();
    world.finish(triggering).await;
    // None of its handlers is excused for running twice.
    world.judge(LOAD_MAX).await;
    assert!(began.elapsed() < RECOVERED_WITHIN, "it took {:?}", began.elapsed());
    assert!(world.cluster.node(&node).lives());
}

/// Row 43: nothing gets through at all. Others take over after the lease; it says that it is not ready, and once the line
/// heals it works again.
#[tokio::test]
async fn an_executor_whose_line_swallows_all_is_replaced_and_comes_back() {
    let plan = Plan::default().protocol(Duration::from_millis(400), Duration::from_secs(4));
    let (mut world, proxy, node) = with_a_line("silent_line", plan).await;
    let (first, over) = (in_ms(900), Duration::from_millis(500));
    let long = one_time_jobs(&world.pool, 20, first, over, "test:sleep", &json!({"ms": 1_500})).await;
    world.expected.extend(long);
    let triggering = world.load(HUNDREDS).await;
    world.until_running_at(&node, 3).await;
    proxy.silence();
    let pid = world.cluster.node(&node).pid();
    // What it runs meanwhile may run elsewhere too.
    world.lost.push(LostWorker { pid, from: Utc::now(), until: None });
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
    world.until_readyz(&node, "postgres: ", LOAD_MAX).await;
    proxy.heal();
    world.until_readyz(&node, "", RECOVERED_WITHIN).await;

    // The other one goes, so whatever comes next is its.
    world.cluster.node("executor-1").stop().unwrap_or_else(|error| panic!("{error:#}"));
    let healed = Utc::now();
    let jobs = one_time_jobs(&world.pool, 10, in_ms(600), over, "test:sleep", &json!({"ms": 10})).await;
    world.expected.extend(jobs);
    world.wake();
    let history = world.judge(LOAD_MAX).await;
    let here = history.journal.iter().filter(|line| line.pid == pid && line.event == Event::End && line.at > healed);
    assert!(here.count() >= 10, "it works again");
}

/// Row 47. The beat depends on nothing but Postgres, however many lines there are to renew in a Redis that is silent.
#[tokio::test]
async fn a_redis_that_is_silent_for_longer_than_the_lease_costs_no_executor_its_life() {
    const LEASE: Duration = Duration::from_secs(4);
    let plan = Plan { executors: 0, dispatchers: 1, ..Plan::default() }.protocol(Duration::from_millis(400), LEASE);
    let mut world = World::start("silent_redis", plan).await;
    let proxy = Proxy::to(world.redis.port()).expect("a proxy");
    let url = world.redis.url_through(proxy.port());
    for _ in 0..2 {
        let environment = [("CARILLON_REDIS_URL", url.as_str()), ("CARILLON_EXECUTOR_QUEUES", "default,other")];
        world.add(Role::Executor, &environment).await;
    }
    let jobs = in_eight_lines(&mut world, 12_000).await;
    let started = |world: &World| world.journal().iter().filter(|line| line.event == Event::Start).count();
    soon("all of them to run", || {
        let count = started(&world);
        std::future::ready(if count == jobs { Ok(()) } else { Err(count) })
    })
    .await;
    world.until("status = 'RUNNING'", |running| running == i64::try_from(jobs).expect("few")).await;

    proxy.silence();
    let began = Instant::now();
    while began.elapsed() < LEASE * 2 {
        let dead: Vec<(Uuid, String)> = sqlx::query_as(
            "SELECT id, (now() - seen_at)::text FROM workers WHERE NOT ended AND seen_at <= now() - $1::interval",
        )
        .bind(LEASE)
        .fetch_all(&world.pool)
        .await
        .expect("postgres answers");
        assert!(dead.is_empty(), "not heard of: {dead:?}");
        tokio::time::sleep(LOOK_EACH).await;
    }
    proxy.heal();
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), jobs);
    assert_eq!(started(&world), jobs, "each started once");
}

/// A gateway: each call ends, with 503, while nothing gets through to Postgres; Redis alone holds up none; afterwards it works
/// again by itself.
#[tokio::test]
async fn a_gateway_whose_lines_swallow_all_answers_every_call_and_comes_back() {
    let mut world = World::start("silent_gateway", Plan { executors: 1, dispatchers: 1, ..Plan::default() }).await;
    let postgres = Proxy::to(world.database.port().expect("a port")).expect("a proxy");
    let redis = Proxy::to(world.redis.port()).expect("a proxy");
    let urls = [world.database.url_through(postgres.port()), world.redis.url_through(redis.port())];
    let environment = [("CARILLON_POSTGRES_URL", urls[0].as_str()), ("CARILLON_REDIS_URL", urls[1].as_str())];
    let node = world.add(Role::Gateway, &environment).await;
    let api = Api::new(format!("http://127.0.0.1:{}", world.cluster.node(&node).port));
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);

    redis.silence();
    for _ in 0..3 {
        let execution = api.trigger(job, &json!({})).await;
        world.triggered.insert(execution);
    }
    postgres.silence();
    // The client waits 15 s.
    for _ in 0..3 {
        let answer = api.ask(Method::GET, &format!("/jobs/{job}"), None).await;
        assert_eq!(answer.status, 503, "{}", answer.body);
    }
    world.until_readyz(&node, "postgres: ", LOAD_MAX).await;
    postgres.heal();
    redis.heal();
    let began = Instant::now();
    soon("it to work again", || async {
        let answer = api.try_ask(Method::GET, &format!("/jobs/{job}"), None).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        anyhow::Ok(())
    })
    .await;
    world.until_readyz(&node, "", RECOVERED_WITHIN).await;
    assert!(began.elapsed() < RECOVERED_WITHIN, "it took {:?}", began.elapsed());
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    world.judge(LOAD_MAX).await;
}

/// Three jobs in each of eight lines; answers how many.
async fn in_eight_lines(world: &mut World, ms: u64) -> usize {
    const LINES: usize = 8;
    let payload = json!({ "ms": ms });
    let jobs =
        one_time_jobs(&world.pool, 3 * LINES, in_ms(1_500), Duration::from_millis(1), "test:sleep", &payload).await;
    for (index, (job, _)) in jobs.iter().enumerate() {
        let (queue, priority) = (["default", "other"][index % 2], i16::try_from(index / 2 % 4).expect("few"));
        let moved = "WITH moved AS (UPDATE jobs SET queue = $2, priority = $3 WHERE id = $1 RETURNING id)
                     UPDATE job_timers SET queue = $2, priority = $3 FROM moved WHERE job_id = moved.id";
        let moved = sqlx::query(moved).bind(job).bind(queue).bind(priority).execute(&world.pool).await;
        assert_eq!(moved.expect("postgres answers").rows_affected(), 1);
    }
    let count = jobs.len();
    world.expected.extend(jobs);
    world.wake();
    count
}
