//! Postgres is there and refuses: to write (row 25, read-only or its disk full), or to let anybody in (row 27). Calls are told so
//! within a bound, fires wait, and when it gives in all goes on by itself.

use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_proto::v1::GetJobRequest;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_testkit::Disk;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tonic::Code;
use uuid::Uuid;

use crate::api::{Api, id_of};
use crate::load::{Load, Triggering, in_ms, longest_wait, one_time_jobs, rfc3339};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// How long it refuses: several flushes, beats and ticks of the leader.
const REFUSES: Duration = Duration::from_secs(3);
/// For an answer: `postgres.acquire_timeout`, and the slowness of a machine that is busy with other tests.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// From the end of the refusal to the first call that is served.
const SERVED_WITHIN: Duration = Duration::from_secs(10);
/// From then on to the start of the last that waited: a wait that takes part of a minute would be one for a whole minute.
const CAUGHT_UP_WITHIN: TimeDelta = TimeDelta::seconds(15);
/// What goes on meanwhile.
const LOAD: Load = Load { one_time: 700, recurring: 8, triggers: 200, over: Duration::from_secs(9) };
/// Handlers that run right through it.
const LONG: usize = 20;
/// Of the server whose slots are used up.
const SLOTS: &[(&str, &str)] = &[("max_connections", "100")];
/// Of a process, at most: a pool of 8, an executor's two of 2, and one that asks whether Postgres is back.
const SESSIONS_MAX: i64 = 13;

fn plan() -> Plan {
    Plan { own_postgres: true, ..Plan::default() }.protocol(Duration::from_secs(1), Duration::from_secs(20))
}

async fn begin(world: &mut World) -> Triggering {
    let (first, over, payload) = (in_ms(900), Duration::from_secs(2), json!({"ms": 3_500}));
    let long = one_time_jobs(&world.pool, LONG, first, over, "test:sleep", &payload).await;
    world.expected.extend(long);
    let triggering = world.load(LOAD).await;
    world.until_finished(150).await;
    triggering
}

/// What waited meanwhile, and what fell due later, starts soon after `given_in`.
async fn end(mut world: World, triggering: Triggering, given_in: DateTime<Utc>) -> World {
    world.finish(triggering).await;
    let history = world.judge(LOAD_MAX).await;
    let waited = longest_wait(&history, given_in);
    eprintln!("the last to start did so {waited} after it could have");
    assert!(waited < CAUGHT_UP_WITHIN, "one started {waited} after it could have");
    world.cluster.ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    world.assert_all_live();
    world
}

/// What stands is ended with it, as in a failover to a standby, or goes on and may not write from one moment to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sessions {
    Ended,
    Stand,
}

async fn read_only(name: &str, plan: Plan, sessions: Sessions, refuses: Duration) {
    let mut world = World::start(name, plan).await;
    let job = far_away(&mut world).await;
    let api = world.api();
    let triggering = begin(&mut world).await;
    set_read_only(&world, true).await;
    if sessions == Sessions::Ended {
        let ended = world.database.terminate_backends("carillon%").await.expect("postgres answers");
        assert!(ended > 0, "nobody was connected");
    }
    let began = Instant::now();
    while began.elapsed() < refuses {
        for (method, path, body) in writes(job) {
            assert_refused(&api, method, &path, body.as_ref()).await;
        }
        // What only reads is served.
        assert_eq!(api.job(job).await["status"], "ACTIVE");
    }
    set_read_only(&world, false).await;
    let given_in = served_again(&api, job, 0).await;
    end(world, triggering, given_in).await;
}

#[tokio::test]
async fn a_read_only_database_refuses_calls_that_write_and_all_goes_on_when_it_is_writable_again() {
    read_only("read_only", plan(), Sessions::Ended, REFUSES).await;
}

#[tokio::test]
async fn a_database_that_turns_read_only_beneath_its_sessions_is_recovered_from_too() {
    read_only("read_only_beneath", plan(), Sessions::Stand, REFUSES).await;
}

/// No beat was taken of anybody for longer than the lease, and nothing was renewed in Redis: whoever is heard first judges nobody by
/// that, and nothing runs twice.
#[tokio::test]
async fn a_database_that_is_read_only_for_longer_than_the_lease_costs_no_executor_its_life() {
    let lease = Duration::from_secs(4);
    let plan = Plan { executors: 4, ..plan() }.protocol(lease / 10, lease);
    read_only("read_only_long", plan, Sessions::Stand, lease * 3).await;
}

#[tokio::test]
async fn a_full_disk_refuses_calls_and_all_goes_on_when_there_is_room_again() {
    let settings = &[("max_wal_size", "96MB"), ("min_wal_size", "32MB"), ("shared_buffers", "32MB")];
    let plan = Plan { disk_megabytes: Some(256), postgres_settings: settings, ..plan() };
    let mut world = World::start("disk_full", plan).await;
    let can_be_filled = world.disk.as_ref().is_some_and(Disk::can_be_filled);
    if !can_be_filled {
        eprintln!("mounting is not permitted here: no disk is filled");
        return;
    }
    let job = far_away(&mut world).await;
    let api = world.api();
    let triggering = begin(&mut world).await;
    world.disk.as_ref().expect("the plan has one").fill().expect("it is filled");
    let (began, mut refused) = (Instant::now(), 0);
    while refused == 0 || began.elapsed() < REFUSES {
        // What is allocated already has room for some more.
        refused += usize::from(is_refused(&api, Method::POST, "/jobs/cron", Some(&cron())).await);
        assert!(began.elapsed() < LOAD_MAX, "nothing is refused");
    }
    eprintln!("{refused} calls were refused");
    world.disk.as_ref().expect("the plan has one").empty();
    // It may have ended of it: who runs it starts it again, as often as it takes.
    let postgres = world.postgres.as_ref().expect("its own");
    eprintln!("postgres lives: {}", postgres.lives());
    soon("postgres to come up", || std::future::ready(postgres.start_again())).await;
    let given_in = served_again(&api, job, 0).await;
    end(world, triggering, given_in).await;
}

/// Foreign sessions take every slot, those of the gateway too. It answers within its bound; the others, which keep what they have,
/// go on firing.
#[tokio::test]
async fn used_up_slots_refuse_calls_and_cost_nothing_that_is_connected() {
    let plan = Plan { postgres_settings: SLOTS, ..plan() }.set("CARILLON_POSTGRES_CONNECTIONS_MAX", "8");
    let mut world = World::start("slots_used_up", plan).await;
    let job = far_away(&mut world).await;
    let api = world.api();
    let leader = world.leader().await;
    let triggering = begin(&mut world).await;
    let mut foreign = Vec::new();
    take_every_slot(&world, &mut foreign).await;
    let finished = usize::try_from(world.finished().await.expect("postgres answers")).expect("few");
    let (began, mut refused, mut triggered) = (Instant::now(), 0, 0);
    while refused == 0 || began.elapsed() < REFUSES {
        // Whoever else ends a session leaves a slot, and a call that finds it is rightly served.
        take_every_slot(&world, &mut foreign).await;
        let read = is_refused(&api, Method::GET, &format!("/jobs/{job}"), None).await;
        let written = is_refused(&api, Method::POST, &format!("/jobs/{job}/trigger"), Some(&json!({}))).await;
        triggered += usize::from(!written);
        refused += usize::from(read && written && is_refused_over_grpc(&world, job).await);
        assert!(began.elapsed() < LOAD_MAX, "nothing is refused");
    }
    eprintln!("{refused} rounds of calls were refused, {triggered} triggers served");
    // They may all be over by now: these are of the time when there was no slot.
    world.until_final(finished + 100).await;
    assert_eq!(world.leader().await, leader, "its session stood all the time");

    let held = foreign.len();
    for session in foreign {
        session.close().await.expect("it stood");
    }
    let given_in = served_again(&api, job, triggered).await;
    let world = end(world, triggering, given_in).await;
    let lost = world.executions_where("lost > 0").await.expect("postgres answers");
    assert_eq!(lost, 0, "nobody was judged dead");
    let sessions: Vec<(String, i64)> = sqlx::query_as(
        "SELECT application_name, count(*) FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1",
    )
    .fetch_all(&world.pool)
    .await
    .expect("postgres answers");
    eprintln!("{held} foreign sessions; then {sessions:?}");
    for (of, count) in &sessions {
        let processes = if of == "carillon-gateway" { 1 } else { 2 };
        assert!(*count <= processes * SESSIONS_MAX, "{count} sessions of {of}");
    }
}

/// Adds sessions of somebody else until there is no room for one more and none is left to the gateway.
async fn take_every_slot(world: &World, foreign: &mut Vec<PgConnection>) {
    let began = Instant::now();
    loop {
        while let Ok(session) = PgConnection::connect(world.database.url()).await {
            foreign.push(session);
        }
        let left: i64 = sqlx::query_scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'carillon-gateway'",
        )
        .fetch_one(&world.pool)
        .await
        .expect("this session stands");
        if left == 0 {
            return;
        }
        assert!(began.elapsed() < LOAD_MAX, "{left} sessions of the gateway stand");
    }
}

/// For sessions to come, and from their next transaction on for those that stand.
async fn set_read_only(world: &World, on: bool) {
    let mut admin = PgConnection::connect(world.database.url()).await.expect("postgres answers");
    let value = if on { "on" } else { "off" };
    let mut set = sqlx::QueryBuilder::new("ALTER SYSTEM SET default_transaction_read_only = ");
    set.push(value);
    let run = async {
        sqlx::query("SET default_transaction_read_only = off").execute(&mut admin).await?;
        set.build().execute(&mut admin).await?;
        sqlx::query("SELECT pg_reload_conf()").execute(&mut admin).await
    };
    run.await.expect("an administrator may");
}

/// A job whose instant is far away: for calls.
async fn far_away(world: &mut World) -> Uuid {
    let body = json!({
        "name": "far away", "execute_at": rfc3339(Utc::now() + TimeDelta::days(300)), "handler_name": "test:echo",
        "allow_overlap": true,
    });
    id_of(&world.api().create("once", &body).await)
}

fn cron() -> Value {
    json!({"name": "refused", "schedule": "0 0 1 1 *", "handler_name": "test:echo"})
}

fn writes(job: Uuid) -> [(Method, String, Option<Value>); 4] {
    [
        (Method::POST, "/jobs/cron".to_owned(), Some(cron())),
        (Method::POST, format!("/jobs/{job}/trigger"), Some(json!({}))),
        (Method::POST, format!("/jobs/{job}/pause"), Some(json!({}))),
        (Method::DELETE, format!("/jobs/{job}"), None),
    ]
}

async fn assert_refused(api: &Api, method: Method, path: &str, body: Option<&Value>) {
    assert!(is_refused(api, method.clone(), path, body).await, "{method} {path} was served");
}

/// Either it is served, or it is told of a passing trouble of the server with a hint when to ask again; and in time.
async fn is_refused(api: &Api, method: Method, path: &str, body: Option<&Value>) -> bool {
    let asked = Instant::now();
    let answer = api.ask(method, path, body).await;
    assert!(asked.elapsed() < ANSWER_MAX, "{path} took {:?}", asked.elapsed());
    if answer.status < 300 {
        return false;
    }
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!(14)), "{path}: {}", answer.body);
    assert!(answer.retry_after.is_some(), "{path}: no hint when to try again");
    true
}

/// As [`is_refused`], of a read by gRPC.
async fn is_refused_over_grpc(world: &World, job: Uuid) -> bool {
    let asked = Instant::now();
    let client = JobServiceClient::connect(world.cluster.gateway_url()).await;
    let answer = client.expect("it listens").get_job(GetJobRequest { id: job.to_string() }).await;
    assert!(asked.elapsed() < ANSWER_MAX, "the answer took {:?}", asked.elapsed());
    answer.map_err(|status| assert_eq!(status.code(), Code::Unavailable, "{status}")).is_err()
}

/// What was refused was not done, and what is asked now is; `triggered` calls found a slot. Answers when Postgres began to give in.
async fn served_again(api: &Api, job: Uuid, triggered: usize) -> DateTime<Utc> {
    let given_in = Utc::now();
    let began = Instant::now();
    let created = soon("a call to be served", || async {
        let answer = api.try_ask(Method::POST, "/jobs/cron", Some(&cron())).await?;
        ensure!(answer.status == 201, "{}: {}", answer.status, answer.body);
        anyhow::Ok(id_of(&answer.body))
    })
    .await;
    let took = began.elapsed();
    eprintln!("served again after {took:?}");
    assert!(took < SERVED_WITHIN, "served again after {took:?}");
    assert_eq!(api.job(job).await["status"], "ACTIVE", "neither paused nor deleted");
    assert_eq!(api.executions(job).await.len(), triggered, "nor triggered");
    assert_eq!(api.job(created).await["name"], cron()["name"]);
    given_in
}
