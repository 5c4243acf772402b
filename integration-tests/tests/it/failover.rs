//! Leaders and executors that die, freeze and wake, under load. No fault of a leader excuses a second start.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::journal::Event;
use carillon_testkit::{Proxy, Role};
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

use crate::load::{HUNDREDS, Load, THOUSAND, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, SOON, World, soon};

/// A standby asks ten times a second; the rest is the machine.
const LEADS_WITHIN: Duration = Duration::from_secs(3);

/// Twice, the second time just after the first successor began.
#[tokio::test]
async fn a_killed_leader_is_followed_at_once_and_nothing_is_lost_or_doubled() {
    let mut world = World::start("leader_killed", Plan { dispatchers: 3, ..Plan::default() }).await;
    let triggering = world.load(THOUSAND).await;
    for finished in [200, 450] {
        world.until_finished(finished).await;
        let old = world.leader().await;
        let killed = Instant::now();
        world.kill(&old);
        let new = world.new_leader(&old).await;
        assert!(killed.elapsed() < LEADS_WITHIN, "{new} led after {:?}", killed.elapsed());
    }
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
}

#[tokio::test]
async fn a_leader_that_is_told_to_stop_hands_over_at_once() {
    let mut world = World::start("leader_stopped", Plan::default()).await;
    let triggering = world.load(HUNDREDS).await;
    world.until_finished(60).await;
    let old = world.leader().await;
    world.cluster.node(&old).ask_to_stop();
    let asked = Instant::now();
    world.new_leader(&old).await;
    assert!(asked.elapsed() < LEADS_WITHIN, "{:?}", asked.elapsed());
    world.cluster.node(&old).stop().unwrap_or_else(|error| panic!("{error:#}"));
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
}

/// Row 5: all of them find the same fires due, and each is claimed once, whoever is next. The ring alone would meet the leader
/// once or twice, so whoever leads is restarted too.
#[tokio::test]
async fn ten_dispatchers_that_start_at_once_and_restart_in_a_ring_claim_nothing_twice() {
    const TEN: usize = 10;
    let mut world = World::start("ring", Plan { dispatchers: 0, ..Plan::default() }).await;
    // Of the same moment, so that the first claims are large.
    let due = one_time_jobs(&world.pool, 300, in_ms(-1_000), Duration::from_millis(5), "test:echo", &json!({})).await;
    world.expected.extend(due);
    let load = Load { one_time: 700, recurring: 8, triggers: 200, over: Duration::from_secs(9) };
    let triggering = world.load(load).await;
    let ring: Vec<String> = (0..TEN).map(|_| world.cluster.add(Role::Dispatcher, &[]).expect("it starts")).collect();
    let mut leaders = HashSet::new();
    for (turn, next) in ring.iter().enumerate() {
        let leader = world.leader().await;
        // Each turn meets fires of its own, however long the ones before it took.
        let own = one_time_jobs(&world.pool, 40, in_ms(100), Duration::from_secs(1), "test:echo", &json!({})).await;
        world.expected.extend(own);
        world.wake();
        world.until_final(300 + 20 * turn).await;
        leaders.extend([leader.clone()]);
        for name in HashSet::from([next, &leader]) {
            world.until_readyz(name, "", SOON).await;
            if turn.is_multiple_of(2) {
                world.kill(name);
            } else {
                world.cluster.node(name).stop().unwrap_or_else(|error| panic!("{error:#}"));
            }
            world.start_again(name);
        }
    }
    assert!(leaders.len() > 2, "only {leaders:?} have led");
    world.finish(triggering).await;
    let history = world.judge(LOAD_MAX).await;
    let starts = history.journal.iter().filter(|line| line.event == Event::Start).count();
    let skipped = history.count(Status::Skipped);
    assert_eq!(starts, history.executions.len() - skipped, "each started once");
    world.assert_all_live();
}

#[tokio::test]
async fn a_leader_whose_session_is_ended_by_an_administrator_loses_nothing() {
    let mut world = World::start("session_ended", Plan::default()).await;
    let triggering = world.load(HUNDREDS).await;
    for finished in [50, 120] {
        world.until_finished(finished).await;
        world.leader().await;
        world.terminate_leader_session().await;
        // Whoever is next: the old leader may well be the new one.
        world.leader().await;
    }
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
}

/// Frozen wherever it is, three times; each wakes up to find that another leads.
#[tokio::test]
async fn leaders_frozen_at_any_moment_and_woken_do_no_harm() {
    let mut world = World::start("leaders_frozen", Plan::default()).await;
    for _ in 0..3 {
        let triggering = world.load(HUNDREDS).await;
        world.until("status = 'SUCCESS'", |count| count >= 20).await;
        let old = world.leader().await;
        world.freeze(&old);
        let new = world.new_leader(&old).await;
        world.thaw(&old);
        world.finish(triggering).await;
        world.judge(LOAD_MAX).await;
        assert_eq!(world.leader().await, new, "a woken leader stands by");
    }
}

/// R2: the server ends a session that has been silent for three seconds, and nobody has to tell it.
#[tokio::test]
async fn a_leader_that_is_cut_off_without_a_word_is_followed_within_five_seconds() {
    let mut world = World::start("leader_cut_off", Plan { dispatchers: 0, ..Plan::default() }).await;
    let to_postgres = Proxy::to(world.database.port().expect("a port")).expect("a proxy");
    let to_redis = Proxy::to(world.redis.port()).expect("a proxy");
    let postgres_url = world.database.url_through(to_postgres.port());
    let redis_url = world.redis.url_through(to_redis.port());
    let urls = [("CARILLON_POSTGRES_URL", postgres_url.as_str()), ("CARILLON_REDIS_URL", redis_url.as_str())];
    let old = world.add(Role::Dispatcher, &urls).await;
    assert_eq!(world.leader().await, old);
    world.add(Role::Dispatcher, &[]).await;
    let triggering = world.load(HUNDREDS).await;
    world.until_finished(60).await;
    let silenced = Instant::now();
    to_postgres.silence();
    to_redis.silence();
    let new = world.new_leader(&old).await;
    assert!(silenced.elapsed() < Duration::from_secs(5), "{new} led after {:?}", silenced.elapsed());
    // What it had sent arrives after all; both think that they lead, until the old one hears that it does not.
    to_redis.heal();
    to_postgres.heal();
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
    assert_eq!(world.leader().await, new);
}

/// Fires of the batch whose publish comes late.
const FIRES: usize = 60;

/// When the zombie's publish arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    /// The successor has published the batch; handlers run.
    WhileItRuns,
    /// All of the batch is finished, and nothing of it is left in Redis.
    AfterItIsOver,
}

/// H2, at its very step: the line to Redis is silenced, so the leader commits and its publish goes nowhere; it is frozen;
/// its successor publishes the batch; then the line carries the old publish after all, and the old leader wakes.
async fn frozen_between_commit_and_publish(name: &str, late: Late) {
    let mut world = World::start(name, Plan { dispatchers: 0, ..Plan::default() }).await;
    let proxy = Proxy::to(world.redis.port()).expect("a proxy");
    let old = world.add(Role::Dispatcher, &[("CARILLON_REDIS_URL", &world.redis.url_through(proxy.port()))]).await;
    assert_eq!(world.leader().await, old);
    world.add(Role::Dispatcher, &[]).await;

    let ms = if late == Late::WhileItRuns { 2_500 } else { 10 };
    // A leader that looks whether Redis is there just then claims nothing: another time.
    let mut tries = 1;
    while !committed_in_silence(&mut world, &proxy, &json!({"ms": ms})).await {
        assert!(tries < 20, "it never claims in that moment");
        proxy.heal();
        world.judge(LOAD_MAX).await;
        tries += 1;
    }
    world.freeze(&old);
    let stream = world.stream("default", "MEDIUM");
    let published = world.redis.command(&["XLEN", &stream]).expect("redis answers").number().unwrap_or_default();
    assert_eq!(published, 0, "committed and not published");

    world.new_leader(&old).await;
    match late {
        Late::WhileItRuns => world.until("status = 'RUNNING'", |running| running > 0).await,
        Late::AfterItIsOver => drop(world.judge(LOAD_MAX).await),
    }
    proxy.heal();
    world.thaw(&old);
    let node = world.cluster.node(&old);
    soon("the old leader to stand by", || {
        let leads = node.metric("carillon_dispatcher_leader", &[]);
        std::future::ready(match leads {
            Ok(0.0) if node.log().matches("standing by").count() >= 2 => Ok(()),
            seen => Err(format!("leads: {seen:?}")),
        })
    })
    .await;
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), tries * FIRES);
}

/// Silences the line just before some fires are claimed. Whether the leader has committed them then, and can publish nothing.
async fn committed_in_silence(world: &mut World, proxy: &Proxy, payload: &Value) -> bool {
    let before = world.count("SELECT count(*) FROM job_executions").await.expect("postgres answers");
    let first = in_ms(1_500);
    let jobs = one_time_jobs(&world.pool, FIRES, first, Duration::from_millis(20), "test:sleep", payload).await;
    world.expected.extend(jobs);
    world.wake();
    // Not before the leader has heard of them, and settled what it had.
    soon("the leader to be idle", || async {
        let unsettled = world.count("SELECT count(*) FROM dispatch_batches WHERE settled_at IS NULL").await?;
        ensure!(unsettled == 0 && Utc::now() > first - TimeDelta::milliseconds(250), "{unsettled} unsettled");
        anyhow::Ok(())
    })
    .await;
    proxy.silence();
    let due = first + TimeDelta::milliseconds(300);
    let committed = soon("the fires to be claimed, or their instants to pass", || async {
        let claimed = world.count("SELECT count(*) FROM job_executions").await? - before;
        let over = Utc::now() > due;
        ensure!(over || claimed > 0, "none is claimed");
        anyhow::Ok(claimed > 0)
    })
    .await;
    let unsettled = world.count("SELECT count(*) FROM dispatch_batches WHERE settled_at IS NULL").await;
    let stream = world.stream("default", "MEDIUM");
    let published = world.redis.command(&["XLEN", &stream]).expect("redis answers").number().unwrap_or_default();
    committed && unsettled.expect("postgres answers") == 1 && published == 0
}

#[tokio::test]
async fn a_publish_that_arrives_after_the_successors_is_passed_over() {
    frozen_between_commit_and_publish("zombie_publish", Late::WhileItRuns).await;
}

#[tokio::test]
async fn a_publish_that_arrives_after_all_is_over_starts_nothing() {
    frozen_between_commit_and_publish("zombie_publish_over", Late::AfterItIsOver).await;
}

/// Some that ran, some that waited; the rest of the load goes on at the other one.
#[tokio::test]
async fn what_an_executor_ran_when_it_was_killed_finishes_elsewhere() {
    const FIRES: usize = 60;
    let mut world = World::start("executor_killed", Plan::default()).await;
    let first = in_ms(800);
    let payload = json!({"ms": 1_500});
    let over = Duration::from_millis(100);
    let jobs = one_time_jobs(&world.pool, FIRES, first, over, "test:sleep", &payload).await;
    world.expected.extend(jobs);
    let triggering = world.load(HUNDREDS).await;
    let victim = busier(&mut world).await;
    world.until("status = 'RUNNING'", |count| count >= FIRES as i64).await;
    world.kill(&victim);
    world.finish(triggering).await;
    let history = world.judge(LOAD_MAX).await;
    let taken = history.executions.iter().filter(|row| row.take > 0).count();
    assert!(taken > 0, "a takeover is visible");
    assert!(world.executions_where("take > 0 AND lost = 1").await.unwrap() > 0, "so is the loss of what was RUNNING");
    assert_eq!(world.executions_where("take > 0 AND attempt > 1").await.unwrap(), 0, "which is no attempt");
}

/// Waits until one of the executors runs at least ten handlers.
async fn busier(world: &mut World) -> String {
    let executors: Vec<(String, i32)> =
        world.cluster.nodes_of(Role::Executor).map(|node| (node.name.clone(), node.pid())).collect();
    soon("an executor to run ten handlers", || async {
        for (name, pid) in &executors {
            if world.running_at(*pid) >= 10 {
                return Ok(name.clone());
            }
        }
        tokio::time::sleep(LOOK_EACH).await;
        Err("none yet")
    })
    .await
}

/// R11, R13, R15: the take-over's result stands; what the woken one has to say is refused, both of what is finished by then
/// and of what the other still runs.
#[tokio::test]
async fn an_executor_frozen_past_its_lease_has_its_late_completions_refused() {
    const EACH: usize = 20;
    let mut world = World::start("executor_frozen", Plan { executors: 1, ..Plan::default() }).await;
    let victim = "executor-1";
    let first = in_ms(800);
    for ms in [1_500, 7_000] {
        let (over, payload) = (Duration::from_millis(20), json!({"ms": ms}));
        let jobs = one_time_jobs(&world.pool, EACH, first, over, "test:sleep", &payload).await;
        world.expected.extend(jobs);
    }
    world.wake();
    world.until("status = 'RUNNING'", |count| count == 2 * EACH as i64).await;
    world.freeze(victim);
    world.add(Role::Executor, &[]).await;
    world.until("status = 'SUCCESS' AND take = 1", |count| count == EACH as i64).await;
    let workers: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM workers ORDER BY started_at")
        .fetch_all(&world.pool)
        .await
        .expect("postgres answers");
    let still_run = world.executions_where("status = 'RUNNING' AND take = 1").await.unwrap();
    assert_eq!(still_run, EACH as i64);
    // It must find out that time has passed, drop what it ran, and be of use again.
    world.thaw(victim);
    let node = world.cluster.node(victim);
    let pid = node.pid();
    let refused = soon("late results to be refused", || {
        let refused = node.metric("carillon_executor_refused_total", &[]);
        std::future::ready(match refused {
            Ok(count) if count > 0.0 && node.is_ready().is_ok() => Ok(count),
            seen => Err(format!("{seen:?}")),
        })
    });
    refused.await;
    let (first, over) = (in_ms(500), Duration::from_secs(2));
    let others = one_time_jobs(&world.pool, 40, first, over, "test:sleep", &json!({"ms": 50})).await;
    world.expected.extend(others.iter().copied());
    world.wake();
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), 2 * EACH + 40);
    let lost = world.executions_where("take = 1 AND lost = 1").await.unwrap();
    assert_eq!(lost, 2 * EACH as i64, "each was taken once");
    let late: i64 = sqlx::query_scalar("SELECT count(*) FROM job_executions WHERE take = 1 AND worker_id = $1")
        .bind(workers[0])
        .fetch_one(&world.pool)
        .await
        .expect("postgres answers");
    assert_eq!(late, 0, "a late result counted");
    let served = history.journal.iter().any(|line| line.pid == pid && others.iter().any(|(job, _)| *job == line.job));
    assert!(served, "the woken executor works again");
}
