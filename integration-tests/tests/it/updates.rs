//! A change of a job loses no fire and doubles none (R23a): what is claimed ahead goes by the new definition, or is withdrawn.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use carillon_core::execution::Status;
use carillon_store::revisions;
use carillon_testkit::wait_until;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::{Api, id_of, instant};
use crate::load::{fires_until, in_ms, rfc3339};
use crate::world::{LOAD_MAX, Plan, SOON, World, soon};

const QUEUES: &str = "CARILLON_EXECUTOR_QUEUES";

/// With time between a claim and its instant.
fn claimed_long_ahead() -> Plan {
    let plan = Plan { dispatchers: 1, executors: 1, ..Plan::default() }.set(QUEUES, r#"["default", "other"]"#);
    plan.protocol(Duration::from_secs(3), Duration::from_secs(30)).set("CARILLON_DISPATCHER_LEAD", "750ms")
}

/// A job that fires once, claimed ahead of its instant.
async fn claimed(api: &Api, at: DateTime<Utc>) -> (Uuid, Uuid) {
    let body = json!({"name": "held", "execute_at": rfc3339(at), "handler_name": "test:echo", "payload": {"n": 1}});
    let job = id_of(&api.create("once", &body).await);
    let execution = soon("the claim ahead of the instant", || async {
        let executions = api.executions(job).await;
        ensure!(!executions.is_empty(), "no execution");
        anyhow::Ok(id_of(&executions[0]))
    })
    .await;
    (job, execution)
}

/// Tries until the change was answered before the instant: on a slow machine it may come too late, and promises nothing then.
async fn changed_ahead(name: &str, change: impl Fn(DateTime<Utc>) -> Value, check: impl AsyncFn(&Api, Uuid, Uuid)) {
    let mut world = World::start(name, claimed_long_ahead()).await;
    let api = world.api();
    for _ in 0..10 {
        let at = in_ms(1_000);
        let (job, execution) = claimed(&api, at).await;
        world.expected.push((job, at));
        let answer = api.try_update(job, &change(at)).await;
        let is_late = Utc::now() + TimeDelta::milliseconds(50) >= at;
        // An instant that is over by then is refused.
        assert!(answer.status == 200 || is_late && answer.status == 400, "{}", answer.body);
        if answer.status == 200 && instant(&answer.body["execute_at"]) != at {
            world.expected.push((job, instant(&answer.body["execute_at"])));
        }
        if is_late {
            continue;
        }
        check(&api, job, execution).await;
        world.judge(SOON).await;
        return;
    }
    panic!("never before the instant");
}

#[tokio::test]
async fn what_was_claimed_ahead_runs_the_new_definition() {
    let change = |_| json!({"payload": {"n": 2}, "tags": ["new"], "max_retries": 1});
    changed_ahead("update_ahead", change, async |api, job, execution| {
        let ended = api.execution_in(execution, &["SUCCESS", "FAILED", "SKIPPED"]).await;
        assert_eq!((&ended["result"], &ended["revision"]), (&json!({"n": 2}), &json!(2)), "{ended}");
        api.job_in(job, "COMPLETED").await;
    })
    .await;
}

#[tokio::test]
async fn what_is_no_longer_in_the_schedule_is_withdrawn_and_the_new_instant_fires() {
    let change = |at: DateTime<Utc>| json!({"execute_at": rfc3339(at + TimeDelta::milliseconds(700))});
    changed_ahead("update_withdraws", change, async |api, job, execution| {
        let ended = api.execution_in(execution, &["SUCCESS", "FAILED", "SKIPPED"]).await;
        let reason = "job changed: its schedule no longer has this instant";
        assert_eq!((&ended["status"], &ended["reason"]), (&json!("SKIPPED"), &json!(reason)), "{ended}");
        let job = api.job_in(job, "COMPLETED").await;
        assert_eq!(job["success_count"], json!(1), "{job}");
    })
    .await;
}

/// R23a: its holder gives it back, and it starts from its own line, on time.
#[tokio::test]
async fn what_was_claimed_ahead_starts_from_the_line_that_is_its_own_by_then() {
    let change = |_| json!({"queue": "other", "priority": "HIGH", "payload": {"n": 2}});
    changed_ahead("update_moves", change, async |api, _, execution| {
        let ended = api.execution_in(execution, &["SUCCESS", "FAILED", "SKIPPED"]).await;
        assert_eq!((&ended["result"], &ended["revision"]), (&json!({"n": 2}), &json!(2)), "{ended}");
        assert_eq!(ended["queue"], json!("other"), "{ended}");
        let late = instant(&ended["started_at"]) - instant(&ended["scheduled_at"]);
        assert!(late >= TimeDelta::zero() && late < TimeDelta::seconds(2), "without a window's wait: {late}");
    })
    .await;
}

/// Changes a job and what is claimed of it as an update does, but for its notice.
async fn changed_unnoticed(world: &World, job: Uuid, execution: Uuid, set: &'static str) {
    let change = async {
        let mut transaction = world.pool.begin().await?;
        let statement = sqlx::AssertSqlSafe(format!("UPDATE jobs SET {set} WHERE id = $1"));
        sqlx::query(statement).bind(job).execute(&mut *transaction).await?;
        let revision = revisions::add_on(&mut *transaction, job, "").await?;
        let revised = sqlx::query("UPDATE job_executions SET revision = $2 WHERE id = $1 AND status = 'QUEUED'");
        let revised = revised.bind(execution).bind(revision).execute(&mut *transaction).await?;
        ensure!(revised.rows_affected() == 1, "it has started");
        anyhow::Ok(transaction.commit().await?)
    };
    change.await.unwrap_or_else(|error| panic!("{error:#}"));
}

/// A job of `test:fail` whose payload is too large for its entry, claimed ahead, and the file that holds back its payload; the
/// job has a second revision by then, of `test:echo`, and nobody was told.
async fn large_one_changed(name: &str) -> (World, Uuid, Uuid, PathBuf) {
    let shut = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-payloads-held"));
    std::fs::write(&shut, "").expect("a file");
    let order = format!("payloads:read=hold:{}", shut.display());
    let plan = claimed_long_ahead().set(carillon_failpoint::VARIABLE, order);
    let mut world = World::start(name, plan).await;
    let api = world.api();
    let at = in_ms(1_000);
    let payload = json!({"message": "the old one", "pad": "x".repeat(8 * 1024)});
    let body = json!({"name": "l", "execute_at": rfc3339(at), "handler_name": "test:fail", "payload": payload});
    let job = id_of(&api.create("once", &body).await);
    world.expected.push((job, at));
    let execution = soon("the claim ahead of the instant", || async {
        let executions = api.executions(job).await;
        ensure!(!executions.is_empty(), "no execution");
        anyhow::Ok(id_of(&executions[0]))
    })
    .await;
    let set = "handler_name = 'test:echo', payload = jsonb_build_object('n', 2, 'pad', repeat('y', 8192))";
    changed_unnoticed(&world, job, execution, set).await;
    (world, job, execution, shut)
}

/// R23a: of what is too large for its entry the payload is fetched after the change, and the notice comes late, or never. It does
/// not run by the old definition with the payload of the new one.
#[tokio::test]
async fn a_payload_of_a_newer_revision_brings_the_rest_of_it() {
    let (world, _, execution, shut) = large_one_changed("update_large").await;
    std::fs::remove_file(&shut).expect("it is there");
    let ended = world.api().execution_in(execution, &["SUCCESS", "FAILED", "RETRYING", "SKIPPED"]).await;
    assert_eq!((&ended["status"], &ended["revision"]), (&json!("SUCCESS"), &json!(2)), "{ended}");
    assert_eq!(ended["result"]["n"], json!(2));
    world.judge(SOON).await;
}

/// The new definition is one that this version cannot read: the old one does not run in its place. It is given back, and runs by
/// the new one as soon as somebody can read it.
async fn changed_to_what_cannot_be_read(name: &str, is_doubtful: bool) {
    let (world, job, execution, shut) = large_one_changed(name).await;
    let write = "UPDATE job_revisions SET definition = definition || $2::jsonb WHERE job_id = $1 AND revision = 2";
    let broken = sqlx::query(write).bind(job).bind(json!({"timeout_ms": "long"}));
    broken.execute(&world.pool).await.expect("it is there");
    if is_doubtful {
        // The leader certifies anew: what is held is checked before it starts.
        world.redis.command(&["DEL", &format!("{{{name}:0}}:ctl")]).expect("redis answers");
        world.until("status = 'QUEUED' AND take = 1", |given_back| given_back == 1).await;
    }
    std::fs::remove_file(&shut).expect("it is there");
    world.until("status = 'QUEUED' AND take = 1", |given_back| given_back == 1).await;
    let stream = world.stream("default", "medium");
    soon("its entry to be deleted", || async {
        let left = world.redis.command(&["XLEN", &stream])?.number();
        ensure!(left == Some(0), "{left:?} entries");
        anyhow::Ok(())
    })
    .await;
    let mended = sqlx::query(write).bind(job).bind(json!({"timeout_ms": 60_000}));
    mended.execute(&world.pool).await.expect("it is there");
    world.judge(LOAD_MAX).await;
    let ended = world.api().execution(execution).await;
    assert_eq!((&ended["status"], &ended["revision"]), (&json!("SUCCESS"), &json!(2)), "{ended}");
    assert_eq!(ended["attempts"], json!([]), "nothing ran before: {ended}");
}

#[tokio::test]
async fn what_was_changed_to_what_cannot_be_read_does_not_run_as_it_was() {
    changed_to_what_cannot_be_read("update_unreadable", false).await;
}

#[tokio::test]
async fn what_is_doubtful_and_was_changed_to_what_cannot_be_read_is_not_taken() {
    changed_to_what_cannot_be_read("update_unreadable_taken", true).await;
}

/// Edits of one batch's jobs meet each other's locks: each is looked at again as soon as its holder has given it back.
#[tokio::test]
async fn what_many_edits_move_out_of_one_batch_starts_without_a_pause() {
    const JOBS: i64 = 12;
    let mut world = World::start("updates_of_a_batch", Plan { executors: 2, ..claimed_long_ahead() }).await;
    for _ in 0..10 {
        let at = in_ms(3_000);
        let mut edits = JoinSet::new();
        for n in 1..=JOBS {
            let api = world.api();
            let body = json!({"name": "one of many", "execute_at": rfc3339(at), "handler_name": "test:echo"});
            let job = id_of(&api.create("once", &body).await);
            world.expected.push((job, at));
            edits.spawn(async move {
                let moment = at - TimeDelta::milliseconds(150 + 15 * n);
                tokio::time::sleep((moment - Utc::now()).to_std().unwrap_or_default()).await;
                api.update(job, &json!({"priority": "LOW"})).await;
                (job, Utc::now() + TimeDelta::milliseconds(50) < at)
            });
        }
        let edited = edits.join_all().await;
        if edited.iter().any(|(_, is_ahead)| !is_ahead) {
            continue;
        }
        world.judge(SOON).await;
        for (job, _) in edited {
            let execution = &world.api().executions(job).await[0];
            let late = instant(&execution["started_at"]) - at;
            assert!(late >= TimeDelta::zero() && late < TimeDelta::seconds(2), "{late} late: {execution}");
        }
        return;
    }
    panic!("never before the instant");
}

/// A completed job with something to come is active again, and completes again.
#[tokio::test]
async fn a_completed_job_that_is_given_an_instant_to_come_is_active_again() {
    let mut world = World::start("update_revives", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let api = world.api();
    let first = in_ms(200);
    let body = json!({"name": "once", "execute_at": rfc3339(first), "handler_name": "test:echo", "allow_past": true});
    let job = id_of(&api.create("once", &body).await);
    let completed = api.job_in(job, "COMPLETED").await;
    assert_eq!(
        api.update(job, &json!({"tags": ["x"]})).await["status"],
        completed["status"],
        "nothing is to come by it"
    );
    let second = in_ms(600);
    let again = api.update(job, &json!({"execute_at": rfc3339(second)})).await;
    assert_eq!((&again["status"], &again["completed_at"]), (&json!("ACTIVE"), &Value::Null), "{again}");
    let completed = api.job_in(job, "COMPLETED").await;
    assert_eq!(completed["success_count"], json!(2), "{completed}");
    world.expected.extend([(job, first), (job, second)]);
    world.judge(SOON).await;
}

/// A paused job keeps what it is changed to, and resumes with it.
#[tokio::test]
async fn a_paused_job_is_changed_and_goes_on_by_what_it_is_then() {
    let mut world = World::start("update_paused", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let api = world.api();
    let body =
        json!({"name": "n", "execute_at": rfc3339(in_ms(3_600_000)), "handler_name": "test:echo", "payload": {"n": 1}});
    let job = id_of(&api.create("once", &body).await);
    assert_eq!(api.post(&format!("/jobs/{job}/pause"), &json!({})).await.status, 200);
    let at = in_ms(400);
    let changed = api.update(job, &json!({"execute_at": rfc3339(at), "payload": {"n": 2}})).await;
    assert_eq!((&changed["status"], &changed["next_run"]), (&json!("PAUSED"), &Value::Null), "{changed}");
    assert_eq!(api.post(&format!("/jobs/{job}/resume"), &json!({})).await.status, 200);
    api.job_in(job, "COMPLETED").await;
    let executions = api.executions(job).await;
    assert_eq!((executions.len(), &executions[0]["result"]), (1, &json!({"n": 2})), "{executions:?}");
    world.expected.push((job, at));
    world.judge(SOON).await;
}

/// Edits of every kind at any moment around the instants, while one executor freezes for longer than its lease and one dies: each
/// instant that stayed has one execution, and what each ran is what the revision says that it names.
#[tokio::test]
async fn edits_around_every_instant_lose_no_fire_and_double_none() {
    for turn in 0..5 {
        // On a busy machine few come between two instants.
        if edits_around_every_instant(&format!("update_storm_{turn}")).await {
            return;
        }
    }
    panic!("never enough edits");
}

/// The jobs of the storm: one whose instants are reckoned, one whose instants are searched, and one that loses each second of its
/// instants and has them again: whose instants are not known before.
async fn storm_jobs(world: &mut World, end: DateTime<Utc>) -> [Uuid; 3] {
    let api = world.api();
    let mut jobs = [Uuid::nil(); 3];
    let kinds = [
        ("recurring", "interval", "200ms", TimeDelta::milliseconds(200)),
        ("cron", "schedule", "* * * * * *", TimeDelta::seconds(1)),
        ("cron", "schedule", "*/2 * * * * *", TimeDelta::seconds(2)),
    ];
    for (place, (kind, field, when, every)) in jobs.iter_mut().zip(kinds) {
        let mut body = json!({
            "name": kind, "handler_name": "test:echo", "payload": {"metadata": {"edit": 0}}, "start_date": rfc3339(in_ms(500)),
            "end_date": rfc3339(end), "allow_overlap": true, "concurrency": 0, "retry_delay_ms": 100, "max_retries": 5,
        });
        body[field] = json!(when);
        let created = api.create(kind, &body).await;
        *place = id_of(&created);
        world.expected.extend(fires_until(&created, every, end));
    }
    jobs
}

/// The change of that number: one kind after the other, each to one of two values. Of a job that is switched each second one is to its
/// schedule, so that some come between a claim and its instant.
fn storm_change(edits: u32, is_switched: bool) -> Value {
    let of_two = |each: u32| edits as usize / each as usize % 2;
    let mut change = match edits % 5 {
        _ if is_switched && edits.is_multiple_of(2) => {
            json!({"schedule": (["* * * * * *", "*/2 * * * * *"][of_two(2)])})
        }
        0 => json!({"queue": (["other", "default"][of_two(5)])}),
        1 => json!({"priority": (["low", "high"][of_two(5)])}),
        // Reckoned anew, and the same instants.
        2 => json!({"timezone": (["UTC", "Europe/Berlin"][of_two(5)])}),
        3 => json!({"handler_name": (["test:note", "test:echo"][of_two(5)])}),
        _ => json!({"max_retries": 5 + edits % 7, "tags": [format!("t{edits}")]}),
    };
    change["payload"] = json!({"metadata": {"edit": edits}});
    change
}

/// Answers whether the edits were as many as it takes to meet the instants at many moments.
async fn edits_around_every_instant(name: &str) -> bool {
    let plan = Plan { executors: 3, ..Plan::default() }.set(QUEUES, r#"["default", "other"]"#);
    let mut world = World::start(name, plan).await;
    let api = world.api();
    let end = in_ms(10_000);
    let jobs = storm_jobs(&mut world, end).await;
    let switched = jobs[2];
    let mut edits = 0_u32;
    let (mut freeze, mut crash) = (Some(in_ms(1_000)), Some(in_ms(3_000)));
    // As long as each has an instant to come: without one a change of its schedule is refused.
    while Utc::now() < end - TimeDelta::seconds(4) {
        edits += 1;
        for job in jobs {
            let answer = api.try_update(job, &storm_change(edits, job == switched)).await;
            assert!([200, 409].contains(&answer.status), "{}", answer.body);
        }
        if freeze.take_if(|at| Utc::now() >= *at).is_some() {
            world.freeze("executor-2");
        }
        if crash.take_if(|at| Utc::now() >= *at).is_some() {
            world.kill("executor-1");
        }
    }
    // What it held has been taken from it by now: it ends what it began, and that counts no more.
    world.thaw("executor-2");
    let by_revision = judge_storm(&mut world, switched).await;
    edits > 25 && by_revision > 10
}

/// Answers how many revisions of the jobs were run.
async fn judge_storm(world: &mut World, switched: Uuid) -> i64 {
    let ended = wait_until("the last instant to end", LOAD_MAX, || async {
        let status = world.api().job(switched).await["status"].clone();
        ensure!(status == "COMPLETED", "{status}");
        anyhow::Ok(())
    });
    ended.await.unwrap_or_else(|error| panic!("{error:#}"));
    // Those that it had for a while: whether they were to run or fall away its edits decided.
    let extra: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
        "SELECT job_id, scheduled_at FROM job_executions WHERE job_id = $1 AND extract(second FROM scheduled_at)::int % 2 = 1",
    )
    .bind(switched)
    .fetch_all(&world.pool)
    .await
    .expect("postgres answers");
    world.expected.extend(extra.iter().copied());
    let history = world.judge(LOAD_MAX).await;
    let skipped = history.count(Status::Skipped);
    assert_eq!(history.count(Status::Success) + skipped, world.expected.len());
    assert!(skipped <= extra.len(), "{skipped} fell away, of {}", extra.len());
    let (wrong, elsewhere, by_revision, stayed_away): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE CASE r.definition ->> 'handler_name' WHEN 'test:echo'
                                 THEN e.result IS DISTINCT FROM r.definition -> 'payload'
                                 ELSE e.result -> 'edit' IS DISTINCT FROM r.definition #> '{payload,metadata,edit}' END),
                count(*) FILTER (WHERE to_jsonb(e.queue) <> r.definition -> 'queue'
                                 OR to_jsonb(e.priority) <> r.definition -> 'priority'),
                count(DISTINCT (e.job_id, e.revision)),
                (SELECT count(*) FROM job_executions s WHERE s.status = 'SKIPPED'
                 AND (s.job_id <> $1 OR extract(second FROM s.scheduled_at)::int % 2 = 0))
         FROM job_executions e JOIN job_revisions r ON r.job_id = e.job_id AND r.revision = e.revision
         WHERE e.status = 'SUCCESS'",
    )
    .bind(switched)
    .fetch_one(&world.pool)
    .await
    .expect("postgres answers");
    assert_eq!(wrong, 0, "executions ran something else than their revision says");
    assert_eq!(elsewhere, 0, "executions ran in another line than their revision names");
    assert_eq!(stayed_away, 0, "instants that stayed did not run");
    by_revision
}
