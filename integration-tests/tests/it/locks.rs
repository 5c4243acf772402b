//! A lock that somebody else holds for long (an administrator's session), and what Postgres refuses for its own sake: either
//! keeps from being recorded what it is about, and nothing else.

use std::time::{Duration, Instant};

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_testkit::journal::Event;
use carillon_testkit::wait_until;
use serde_json::json;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use crate::load::{HUNDREDS, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World, soon};

/// Longer than any statement may run, and than nothing may be recorded before an executor is not ready any more.
const LOCKED_FOR: Duration = Duration::from_secs(11);
/// Two seconds, and the slowness of a machine that is busy with other tests.
const GAP_MAX: Duration = Duration::from_secs(4);

/// How soon `/readyz` follows.
const SAID_WITHIN: Duration = Duration::from_secs(10);
const EXECUTORS: [&str; 2] = ["executor-1", "executor-2"];

fn plan() -> Plan {
    Plan { dispatchers: 1, ..Plan::default() }.protocol(Duration::from_secs(1), Duration::from_secs(20))
}

/// A job that runs for a moment at `ms` from now, and its execution.
async fn one_that_runs(world: &mut World, ms: u64) -> (Uuid, Uuid) {
    let jobs =
        one_time_jobs(&world.pool, 1, in_ms(600), Duration::from_millis(1), "test:sleep", &json!({"ms": ms})).await;
    let job = jobs[0].0;
    world.expected.extend(jobs);
    world.wake();
    let execution = soon("it to be claimed", || async {
        let id = sqlx::query_scalar("SELECT id FROM job_executions WHERE job_id = $1").bind(job);
        id.fetch_optional(&world.pool).await.map_err(anyhow::Error::from)?.ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .await;
    (job, execution)
}

async fn lock(world: &World, statement: &'static str, id: Uuid) -> Transaction<'static, Postgres> {
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    sqlx::query(statement).bind(id).execute(&mut *foreign).await.expect("it is locked");
    foreign
}

/// Something is recorded again and again for as long as the lock is held, and at the end all that is not locked.
async fn assert_the_others_go_on(world: &World, locked: i64) {
    let others = i64::try_from(world.expected.len() + world.triggered.len()).expect("few") - locked;
    let began = Instant::now();
    let (mut seen, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
    while began.elapsed() < LOCKED_FOR {
        let finished = world.finished().await.expect("postgres answers");
        if finished > seen {
            (seen, since) = (finished, Instant::now());
        } else if finished < others {
            longest = longest.max(since.elapsed());
        }
        tokio::time::sleep(LOOK_EACH).await;
    }
    assert!(longest < GAP_MAX, "nothing was recorded for {longest:?}");
    let waited = wait_until("all that is not locked to be recorded", LOAD_MAX, || async {
        let finished = world.finished().await?;
        ensure!(finished == others, "{finished} of {others}");
        anyhow::Ok(())
    });
    waited.await.unwrap_or_else(|error| panic!("{error:#}"));
}

async fn others_go_on_beside(name: &str, statement: &'static str, of_job: bool) {
    let mut world = World::start(name, plan()).await;
    let (job, execution) = one_that_runs(&mut world, 1_500).await;
    world.until("status = 'RUNNING'", |running| running == 1).await;
    let foreign = lock(&world, statement, if of_job { job } else { execution }).await;
    let triggering = world.load(HUNDREDS).await;
    world.finish(triggering).await;
    assert_the_others_go_on(&world, 1).await;
    // Whoever has nothing else left to record than what is locked records nothing, and says so; the other waits for nobody.
    let mut said = Vec::new();
    soon("the one that waits for the lock to say so", || {
        said = EXECUTORS.map(|name| world.cluster.node(name).get("/readyz").expect("it answers")).to_vec();
        said.sort();
        std::future::ready(if said[1].0 == 503 { Ok(()) } else { Err(format!("{said:?}")) })
    })
    .await;
    assert_eq!(
        (said[0].0, said[1].1.as_str()),
        (200, "not ready\nrecorder: nothing was recorded for 10 s\n"),
        "{said:?}"
    );
    foreign.rollback().await.expect("postgres answers");
    world.judge(LOAD_MAX).await;
    for name in EXECUTORS {
        world.until_readyz(name, "", SAID_WITHIN).await;
    }
    let incarnations: i64 =
        sqlx::query_scalar("SELECT count(*) FROM workers").fetch_one(&world.pool).await.expect("postgres answers");
    assert_eq!(incarnations, 2, "a lock is no outage");
}

#[tokio::test]
async fn a_locked_execution_keeps_no_other_from_being_recorded() {
    others_go_on_beside("locked_execution", "SELECT FROM job_executions WHERE id = $1 FOR UPDATE", false).await;
}

#[tokio::test]
async fn locked_statistics_keep_no_other_job_from_being_recorded() {
    others_go_on_beside("locked_stats", "SELECT FROM job_stats WHERE job_id = $1 FOR UPDATE", true).await;
}

/// Whether a job is complete is looked at by somebody else (H62): its own end does not wait for its row.
#[tokio::test]
async fn a_locked_job_keeps_nothing_from_being_recorded() {
    let mut world = World::start("locked_job", plan()).await;
    let (job, _) = one_that_runs(&mut world, 1_500).await;
    let foreign = lock(&world, "SELECT FROM jobs WHERE id = $1 FOR UPDATE", job).await;
    let triggering = world.load(HUNDREDS).await;
    world.finish(triggering).await;
    assert_the_others_go_on(&world, 0).await;
    foreign.rollback().await.expect("postgres answers");
    world.judge(LOAD_MAX).await;
}

/// R7: the next claim would mark it settled. It goes on, and marks the others.
#[tokio::test]
async fn a_locked_batch_keeps_nothing_from_being_claimed() {
    let mut world = World::start("locked_batch", plan()).await;
    let triggering = world.load(HUNDREDS).await;
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    let since = Instant::now();
    loop {
        let unsettled = "SELECT FROM dispatch_batches WHERE settled_at IS NULL LIMIT 1 FOR UPDATE SKIP LOCKED";
        let locked = sqlx::query(unsettled).fetch_all(&mut *foreign).await.expect("postgres answers").len();
        if locked > 0 {
            break;
        }
        assert!(since.elapsed() < LOAD_MAX, "no batch was seen that is not settled yet");
    }
    world.finish(triggering).await;
    assert_the_others_go_on(&world, 0).await;
    foreign.rollback().await.expect("postgres answers");
    world.judge(LOAD_MAX).await;
    soon("it to be settled too", || async {
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM dispatch_batches WHERE settled_at IS NULL")
            .fetch_one(&world.pool)
            .await?;
        ensure!(open == 0, "{open} are not");
        anyhow::Ok(())
    })
    .await;
}

/// Whatever Postgres refuses about one result: it is found, fails with the reason, and its neighbours keep theirs.
#[tokio::test]
async fn a_result_that_postgres_refuses_fails_alone_with_the_reason() {
    const GOOD: usize = 60;
    const BAD: usize = 3;
    let mut world = World::start("refused_result", Plan { executors: 1, ..plan() }).await;
    for statement in [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.result ? 'poison' THEN RAISE EXCEPTION 'no poison here' USING ERRCODE = '22P05'; END IF;
             RETURN NEW;
         END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON job_executions FOR EACH ROW EXECUTE FUNCTION refuse()",
    ] {
        sqlx::query(statement).execute(&world.pool).await.expect("it is made");
    }
    let (first, over) = (in_ms(900), Duration::from_millis(1));
    for (count, payload) in [(GOOD, json!({"n": 1})), (BAD, json!({"poison": true}))] {
        let jobs = one_time_jobs(&world.pool, count, first, over, "test:echo", &payload).await;
        world.expected.extend(jobs);
    }
    world.wake();
    let history = world.judge(LOAD_MAX).await;
    assert_eq!((history.count(Status::Success), history.count(Status::Failed)), (GOOD, BAD));
    let told = world.executions_where("status = 'FAILED' AND error LIKE '%no poison here%' AND result IS NULL").await;
    assert_eq!(told.expect("postgres answers"), i64::try_from(BAD).expect("few"));
    let kept = world.executions_where("status = 'SUCCESS' AND result = '{\"n\": 1}'").await;
    assert_eq!(kept.expect("postgres answers"), i64::try_from(GOOD).expect("few"));
}

/// What is refused for a reason of the database's own (a right that is missing for a while) is no fault of any result: all of
/// it is kept, and recorded once the reason is gone.
#[tokio::test]
async fn what_postgres_refuses_for_its_own_sake_costs_no_result() {
    const COUNT: usize = 20;
    let mut world = World::start("refused_for_its_own_sake", Plan { executors: 1, ..plan() }).await;
    for statement in [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'no right to do this' USING ERRCODE = '42501';
         END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON job_stats FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
    ] {
        sqlx::query(statement).execute(&world.pool).await.expect("it is made");
    }
    let jobs =
        one_time_jobs(&world.pool, COUNT, in_ms(600), Duration::from_millis(1), "test:echo", &json!({"n": 1})).await;
    world.expected.extend(jobs);
    world.wake();
    // What is being tried again does not count as set aside, so all of it is seldom.
    soon("all of them to have run, and some to be set aside", || {
        let ended = world.journal().iter().filter(|line| line.event == Event::End).count();
        let aside = world.cluster.node("executor-1").metric("carillon_executor_records_set_aside", &[]);
        std::future::ready(aside.and_then(|aside| {
            ensure!(ended == COUNT && aside >= 1.0, "{ended} have, {aside} are");
            Ok(())
        }))
    })
    .await;
    sqlx::query("DROP TRIGGER refuse ON job_stats").execute(&world.pool).await.expect("it is dropped");
    let history = world.judge(LOAD_MAX).await;
    assert_eq!(history.count(Status::Success), COUNT);
}

/// A lock on a whole table (CREATE INDEX takes one) is the fault of nothing that was to be claimed: once it is gone all of it
/// is, and not a minute later.
#[tokio::test]
async fn a_lock_on_the_whole_table_sets_no_job_aside_for_longer_than_it_lasts() {
    let mut world = World::start("locked_table", plan()).await;
    let leader = world.leader().await;
    let mut foreign = world.pool.begin().await.expect("postgres answers");
    sqlx::query("LOCK TABLE job_executions IN SHARE MODE").execute(&mut *foreign).await.expect("it is locked");
    let jobs = one_time_jobs(&world.pool, 8, in_ms(300), Duration::from_millis(200), "test:echo", &json!({})).await;
    world.expected.extend(jobs);
    world.wake();
    soon("claims of one alone to be refused", || {
        let aside = world.cluster.node(&leader).metric("carillon_dispatcher_set_aside_total", &[]);
        std::future::ready(aside.and_then(|aside| {
            ensure!(aside >= 1.0, "{aside} are");
            Ok(())
        }))
    })
    .await;
    foreign.rollback().await.expect("postgres answers");
    soon("all of it to be done", || async {
        let finished = world.finished().await?;
        ensure!(finished == 8, "{finished} of 8");
        anyhow::Ok(())
    })
    .await;
    world.judge(LOAD_MAX).await;
}
