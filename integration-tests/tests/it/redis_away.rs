//! Redis is away for longer than a leader waits for it (row 16): nobody leads and nothing is claimed meanwhile, what runs is
//! recorded, and what fell due is made up for by the misfire rule when it is back.

use std::time::{Duration, Instant};

use carillon_testkit::Role;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::api::{Api, id_of};
use crate::load::{Load, in_ms, longest_wait, one_time_jobs, rfc3339};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World, soon};

/// Longer than the three seconds after which the lock is given back, and than the lease.
const AWAY: Duration = Duration::from_secs(7);
/// Three seconds without an answer, and what a slow machine takes for the rest.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(6);
/// Handlers that run when it goes, and end meanwhile.
const LONG: usize = 12;
const EVERY: TimeDelta = TimeDelta::seconds(1);
/// An instant later than this was missed.
const MISFIRE: TimeDelta = TimeDelta::milliseconds(2_500);
/// Each due on its own: none of them is made up for by another.
const LOAD: Load = Load { one_time: 300, recurring: 0, triggers: 100, over: Duration::from_secs(10) };
/// From its return to the start of the last that waited.
const CAUGHT_UP_WITHIN: TimeDelta = TimeDelta::seconds(15);

#[tokio::test]
async fn while_redis_is_away_nothing_is_claimed_and_what_runs_is_recorded() {
    let plan = Plan { append_only: true, ..Plan::default() };
    let plan = plan.set("CARILLON_DISPATCHER_MISFIRE_THRESHOLD", format!("{}ms", MISFIRE.num_milliseconds()));
    let mut world = World::start("redis_away", plan).await;
    let (first, payload) = (in_ms(900), json!({"ms": 3_000}));
    let long = one_time_jobs(&world.pool, LONG, first, Duration::from_millis(1), "test:sleep", &payload).await;
    world.expected.extend(long);
    let recurring = each_second(&world.api(), first + TimeDelta::seconds(13)).await;
    let triggering = world.load(LOAD).await;
    let long = i64::try_from(LONG).expect("few");
    world.until("status = 'RUNNING' AND started_at < now() - interval '300 ms'", |running| running >= long).await;

    let gone = Utc::now();
    world.redis.stop();
    let began = Instant::now();
    until_nobody_leads(&mut world).await;
    assert!(began.elapsed() < GIVEN_BACK_WITHIN, "one led for {:?} more", began.elapsed());
    let before = claimed(&world).await;
    while began.elapsed() < AWAY {
        assert!(leading(&mut world).is_empty(), "{:?} lead", leading(&mut world));
        assert_eq!(claimed(&world).await, before, "something was claimed that nobody could publish");
        tokio::time::sleep(LOOK_EACH).await;
    }
    assert_eq!(world.executions_where("duration_ms >= 2500").await.expect("postgres answers"), long, "all recorded");
    world.redis.start_again().expect("it starts again");
    let back = Utc::now();

    world.finish(triggering).await;
    world.api().job_in(recurring, "COMPLETED").await;
    let fires = fires_of(&world, recurring).await;
    assert_made_up_for(&fires, gone, back);
    world.expected.extend(fires.into_iter().map(|at| (recurring, at)));
    let history = world.judge(LOAD_MAX).await;
    let waited = longest_wait(&history, back);
    eprintln!("the last to start did so {waited} after it could have");
    assert!(waited < CAUGHT_UP_WITHIN, "one started {waited} after it could have");
    world.cluster.ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    world.assert_all_live();
    let incarnations = world.count("SELECT count(*) FROM workers").await.expect("postgres answers");
    assert_eq!(incarnations, 2, "no executor was judged dead");
}

/// A job that fires each second until `end`.
async fn each_second(api: &Api, end: DateTime<Utc>) -> Uuid {
    let body = json!({
        "name": "each second", "interval": "1s", "handler_name": "test:echo", "end_date": rfc3339(end),
        "allow_overlap": true,
    });
    id_of(&api.create("recurring", &body).await)
}

async fn until_nobody_leads(world: &mut World) {
    soon("nobody to lead", || {
        let leading = leading(world);
        std::future::ready(if leading.is_empty() { Ok(()) } else { Err(format!("{leading:?}")) })
    })
    .await;
}

fn leading(world: &mut World) -> Vec<String> {
    let dispatchers = world.cluster.nodes_of(Role::Dispatcher);
    let leads =
        |node: &carillon_testkit::Node| node.metric("carillon_dispatcher_leader", &[]).expect("it answers") > 0.5;
    dispatchers.filter(|node| leads(node)).map(|node| node.name.clone()).collect()
}

/// Batches, and executions with a claim: those of triggers have none yet.
async fn claimed(world: &World) -> (i64, i64) {
    let batches = world.count("SELECT count(*) FROM dispatch_batches").await;
    let executions = world.executions_where("claim IS NOT NULL").await;
    (batches.expect("postgres answers"), executions.expect("postgres answers"))
}

/// The instants for which a job has an execution.
async fn fires_of(world: &World, job: Uuid) -> Vec<DateTime<Utc>> {
    let fires = sqlx::query_scalar("SELECT scheduled_at FROM job_executions WHERE job_id = $1 ORDER BY scheduled_at");
    fires.bind(job).fetch_all(&world.pool).await.expect("postgres answers")
}

/// One gap, in which all was missed; the fire behind it, of the latest that was, makes up for it.
fn assert_made_up_for(fires: &[DateTime<Utc>], gone: DateTime<Utc>, back: DateTime<Utc>) {
    let gaps: Vec<_> = fires.windows(2).filter(|pair| pair[1] - pair[0] != EVERY).collect();
    assert_eq!(gaps.len(), 1, "{fires:?}");
    let (last, next) = (gaps[0][0], gaps[0][1]);
    assert!(last <= gone + TimeDelta::seconds(5), "{last} was claimed in office, {gone}");
    assert!(next > back - MISFIRE - EVERY, "{next} was not the latest that was missed, {back}: {fires:?}");
    assert!(fires.iter().any(|at| *at > back), "it goes on: {fires:?}");
}
