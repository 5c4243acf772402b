//! What seeds of the soak found, each at the very step.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use carillon_testkit::journal::Event;
use carillon_testkit::wait_until;
use serde_json::json;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use crate::api::id_of;
use crate::world::{LOAD_MAX, Plan, World, soon};

/// Longer than Postgres lets a statement wait for a lock.
const WINDOW: Duration = Duration::from_secs(3);

/// Seed 7, faults 198 and 199. A stranger holds the statistics of a job, so its ends cannot be recorded; Redis loses the entries
/// meanwhile. The rows must say RUNNING before W is over (R10), or whoever reads the copies takes what has run (R13).
#[tokio::test]
async fn what_cannot_be_recorded_for_a_foreign_lock_is_not_run_again_when_redis_forgets() {
    const FIRES: usize = 12;
    let plan = Plan { dispatchers: 1, executors: 3, ..Plan::default() }.protocol(WINDOW, WINDOW * 10);
    let mut world = World::start("locked_statistics", plan).await;
    let api = world.api();
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);
    let mut stranger = world.pool.begin().await.expect("postgres answers");
    let lock = sqlx::query("SELECT 1 FROM job_stats WHERE job_id = $1 FOR UPDATE").bind(job);
    lock.execute(&mut *stranger).await.expect("nobody else has it");
    for _ in 0..FIRES {
        let execution: Uuid = api.trigger(job, &json!({})).await;
        world.triggered.insert(execution);
    }
    let ended = |world: &World| world.journal().iter().filter(|line| line.event == Event::End).count();
    soon("all to have run", || {
        let ended = ended(&world);
        std::future::ready(if ended >= FIRES { Ok(()) } else { Err(format!("{ended} have")) })
    })
    .await;
    world.redis.flush_all().expect("redis answers");
    soon("what is not shown RUNNING to be published again", || async {
        let seen = world.executions_where("entry > claim OR status = 'RUNNING'").await?;
        ensure!(seen >= FIRES as i64, "{seen} are either");
        anyhow::Ok(())
    })
    .await;
    // Once the rows say so nobody takes them; without the rule they run again.
    let seen = wait_until("the rows to say RUNNING, or the handlers to run again", WINDOW * 8, || async {
        let running = world.executions_where("status = 'RUNNING' AND take = 0").await?;
        ensure!(running >= FIRES as i64 || ended(&world) > FIRES, "{running} are");
        anyhow::Ok(())
    });
    seen.await.unwrap_or_else(|error| panic!("{error:#}"));
    stranger.rollback().await.expect("postgres answers");
    world.judge(LOAD_MAX).await;
}

/// A beat whose outcome is not known makes the next incarnation.
pub(crate) async fn cut_off_a_beat(world: &World) {
    let mut stranger = world.pool.begin().await.expect("postgres answers");
    sqlx::query("LOCK TABLE workers").execute(&mut *stranger).await.expect("nobody has it for long");
    soon("a beat to be cut off", || async {
        let ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE carillon.workers%'";
        let ended = sqlx::query(ending).fetch_all(&world.pool).await?;
        ensure!(!ended.is_empty(), "none waits");
        anyhow::Ok(())
    })
    .await;
    stranger.rollback().await.expect("postgres answers");
}

/// Starts what runs for six seconds, and locks its row; until that is let go of.
pub(crate) async fn run_one_and_lock_it(world: &mut World) -> Transaction<'static, Postgres> {
    let api = world.api();
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:sleep", "payload": {"ms": 6_000}});
    let job = id_of(&api.create("cron", &body).await);
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    world.until("status = 'RUNNING'", |running| running == 1).await;
    let mut stranger = world.pool.begin().await.expect("postgres answers");
    let lock = sqlx::query("SELECT FROM job_executions WHERE id = $1 FOR UPDATE").bind(execution);
    lock.execute(&mut *stranger).await.expect("nobody has it for long");
    stranger
}

/// Whatever became of what it returned.
pub(crate) async fn until_it_has_run(world: &World) {
    soon("it to have run to its end", || {
        let ended = world.journal().iter().any(|line| line.event == Event::End);
        std::future::ready(if ended { Ok(()) } else { Err("it has not") })
    })
    .await;
}

/// The one execution, which the incarnation `first` had started.
pub(crate) async fn assert_recorded_by_the_next(world: &World, first: Uuid) {
    let adopted: bool = sqlx::query_scalar("SELECT worker_id <> $1 AND take = 0 FROM job_executions")
        .bind(first)
        .fetch_one(&world.pool)
        .await
        .expect("it is over");
    assert!(adopted, "the next incarnation has recorded it, and nobody took it");
}

/// Seed 21, fault 181. Postgres ends all sessions while a flush is about to be written; by the time it is, this executor is
/// another incarnation (R21), to which its rows belong. What the old name is refused is its own: it is written by the new one,
/// and not let go of as somebody else's.
#[tokio::test]
async fn a_flush_that_was_begun_by_the_last_incarnation_is_written_by_the_next() {
    let held = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("seeds-flush-held");
    std::fs::write(&held, "").expect("a file");
    let order = format!("record:write=hold:{}", held.display());
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }
        .protocol(WINDOW, WINDOW * 10)
        .set(carillon_failpoint::VARIABLE, order);
    let mut world = World::start("flush_of_the_last", plan).await;
    let api = world.api();
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&api.create("cron", &body).await);
    let execution = api.trigger(job, &json!({})).await;
    world.triggered.insert(execution);
    until_it_has_run(&world).await;
    cut_off_a_beat(&world).await;
    soon("it to belong to the next incarnation", || async {
        let statement = "SELECT status, (SELECT count(*) FROM workers),
                                (SELECT count(*) FROM workers w WHERE w.id = worker_id AND NOT w.ended) FROM job_executions";
        let (status, workers, holders): (String, i64, i64) = sqlx::query_as(statement).fetch_one(&world.pool).await?;
        ensure!(status == "RUNNING" && workers > 1 && holders == 1, "{status}, {holders} of {workers} hold it");
        anyhow::Ok(())
    })
    .await;
    std::fs::remove_file(&held).expect("it is there");
    world.judge(LOAD_MAX).await;
}

/// Seed 304, faults 186 and 189. A stranger has locked the row of what runs while its executor becomes another incarnation (R21).
/// It cannot be handed to the new one; its result is kept until it can, and it is not run again.
#[tokio::test]
async fn what_is_locked_while_a_new_incarnation_begins_is_not_run_again() {
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }.protocol(WINDOW, WINDOW * 10);
    let mut world = World::start("locked_succession", plan).await;
    let stranger = run_one_and_lock_it(&mut world).await;
    let holder = "SELECT worker_id FROM job_executions";
    let first: Uuid = sqlx::query_scalar(holder).fetch_one(&world.pool).await.expect("it runs");
    cut_off_a_beat(&world).await;
    soon("it to be another incarnation", || async {
        let begun: i64 = sqlx::query_scalar("SELECT count(*) FROM workers").fetch_one(&world.pool).await?;
        ensure!(begun > 1, "{begun} has begun");
        anyhow::Ok(())
    })
    .await;
    until_it_has_run(&world).await;
    stranger.rollback().await.expect("postgres answers");
    world.judge(LOAD_MAX).await;
    assert_recorded_by_the_next(&world, first).await;
}
