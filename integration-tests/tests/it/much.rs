//! Much at once: a backlog that nobody works off for a while (row 31), and thousands that are due at one instant (row 29).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::Role;
use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World, soon};

/// For what is due at one instant.
const AT_ONCE: Duration = Duration::from_millis(1);

/// Entries that one stream may hold.
const ENTRIES_MAX: i64 = 500;
/// Several times W: what only waits is not taken for lost.
const WAITS: Duration = Duration::from_secs(5);
/// Bytes that an entry takes in Redis, at most, with all that belongs to it.
const ENTRY_BYTES_MAX: i64 = 2_048;

#[tokio::test]
async fn a_backlog_waits_in_postgres_beyond_the_bound_of_its_stream_and_is_worked_off() {
    const FIRES: usize = 6_000;
    let plan = Plan { dispatchers: 1, executors: 0, ..Plan::default() }
        .protocol(Duration::from_secs(1), Duration::from_secs(10))
        .set("CARILLON_DISPATCHER_BATCH_MAX", (ENTRIES_MAX / 2).to_string())
        .set("CARILLON_DISPATCHER_STREAM_ENTRIES_MAX", ENTRIES_MAX.to_string());
    let mut world = World::start("backlog", plan).await;
    let empty = used_memory(&world);
    let jobs = one_time_jobs(&world.pool, FIRES, in_ms(0), AT_ONCE, "test:echo", &json!({"n": 1})).await;
    world.expected.extend(jobs);
    world.wake();
    soon("the stream to be full", || {
        let entries = entries(&world);
        std::future::ready(if entries == ENTRIES_MAX { Ok(()) } else { Err(entries) })
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < WAITS {
        assert_eq!(entries(&world), ENTRIES_MAX, "the bound");
        tokio::time::sleep(LOOK_EACH).await;
    }
    let full = used_memory(&world);
    eprintln!("{} bytes for {ENTRIES_MAX} entries", full - empty);
    assert!(full - empty < ENTRIES_MAX * ENTRY_BYTES_MAX, "{empty} bytes at first, {full} with a full stream");
    let claimed = world.executions_where("claim IS NOT NULL").await.expect("postgres answers");
    assert_eq!(claimed, ENTRIES_MAX, "the others wait as timers");
    assert_none_republished(&mut world).await;

    for _ in 0..2 {
        world.add(Role::Executor, &[]).await;
    }
    let wanted = i64::try_from(FIRES).expect("few");
    let began = Instant::now();
    while world.finished().await.expect("postgres answers") < wanted {
        assert!(entries(&world) <= ENTRIES_MAX, "{} entries", entries(&world));
        assert!(began.elapsed() < LOAD_MAX, "{:?} are final", world.finished().await);
    }
    eprintln!("worked off after {:?}", began.elapsed());
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), FIRES);
    assert_none_republished(&mut world).await;
}

fn entries(world: &World) -> i64 {
    let length = world.redis.command(&["XLEN", &world.stream("default", "MEDIUM")]).expect("redis answers");
    length.number().expect("a number")
}

fn used_memory(world: &World) -> i64 {
    let info = world.redis.command(&["INFO", "memory"]).expect("redis answers");
    let line = info.text().and_then(|text| text.lines().find_map(|line| line.strip_prefix("used_memory:")));
    line.and_then(|bytes| bytes.trim().parse().ok()).expect("it says so")
}

async fn assert_none_republished(world: &mut World) {
    let again = world.executions_where("entry > claim").await.expect("postgres answers");
    assert_eq!(again, 0, "what only waits is not published again");
    let leader = world.leader().await;
    let republished = world.cluster.node(&leader).metric("carillon_dispatcher_republished_total", &[]);
    assert!(republished.is_ok_and(|count| count < 0.5), "nor taken for lost");
}

/// Of `LOW` priority at one instant, and of `CRITICAL` priority at the same.
const LOW: usize = 2_300;
const CRITICAL: usize = 200;
/// Of each of the two executors: fewer than what is critical.
const SLOTS: usize = 64;

#[tokio::test]
async fn of_a_herd_at_one_instant_what_is_critical_starts_first_and_the_api_answers() {
    let plan = Plan { dispatchers: 1, ..Plan::default() }.set("CARILLON_EXECUTOR_SLOTS", SLOTS.to_string());
    let mut world = World::start("herd", plan).await;
    let api = world.api();
    // Far enough for all of it to be made before.
    let at = in_ms(6_000);
    let critical = due_at(&mut world, CRITICAL, at, 3).await;
    let low = due_at(&mut world, LOW, at, 0).await;
    world.wake();
    let wanted = i64::try_from(LOW + CRITICAL).expect("few");
    soon("the herd to start", || async {
        let finished = world.finished().await?;
        ensure!(finished > 0, "none is final");
        anyhow::Ok(())
    })
    .await;
    let (began, mut answered) = (Instant::now(), 0);
    while world.finished().await.expect("postgres answers") < wanted {
        api.assert_serves().await;
        answered += 1;
        assert!(began.elapsed() < LOAD_MAX, "{:?} of {wanted} are final", world.finished().await);
    }
    assert!(answered > 0, "it was over before anybody asked");
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), LOW + CRITICAL);
    let started = |jobs: &HashSet<Uuid>| {
        let rows = history.executions.iter().filter(|row| jobs.contains(&row.job));
        let mut starts: Vec<DateTime<Utc>> = rows.filter_map(|row| row.started_at).collect();
        starts.sort_unstable();
        starts
    };
    let (low, critical) = (started(&low), started(&critical));
    let before = low.iter().filter(|start| **start < critical[CRITICAL - 1]).count();
    eprintln!(
        "{answered} answers meanwhile; {before} of {LOW} started before the last critical one, of {:?}",
        began.elapsed()
    );
    assert!(
        before < 2 * SLOTS,
        "{before} started before the last critical one, more than there were slots for at the instant"
    );
}

/// Jobs of a priority, due at one instant.
async fn due_at(world: &mut World, count: usize, at: DateTime<Utc>, priority: i16) -> HashSet<Uuid> {
    let jobs = one_time_jobs(&world.pool, count, at, Duration::ZERO, "test:sleep", &json!({"ms": 20})).await;
    let ids: HashSet<Uuid> = jobs.iter().map(|(job, _)| *job).collect();
    let changed = "WITH changed AS (UPDATE jobs SET priority = $2 WHERE id = ANY ($1) RETURNING id)
                   UPDATE job_timers SET priority = $2 FROM changed WHERE job_id = changed.id";
    let changed = sqlx::query(changed).bind(ids.iter().copied().collect::<Vec<_>>()).bind(priority);
    assert_eq!(changed.execute(&world.pool).await.expect("postgres answers").rows_affected(), count as u64);
    world.expected.extend(jobs);
    ids
}
