//! A process is lost exactly between two steps: of claim, publish, settle, take, record, acknowledge. Killed there everything
//! still ends right, whoever goes on; frozen between its statements and COMMIT it keeps nobody waiting (row 44).
//!
//! Fail points are in debug builds alone, which `make test` runs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use carillon_testkit::Role;
use carillon_testkit::history::LostWorker;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, id_of};
use crate::load::{HUNDREDS, in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, Plan, World, soon};

/// A session that holds locks and says nothing is ended by then, and others go on.
const OTHERS_GO_ON_WITHIN: Duration = Duration::from_secs(12);

/// A point that is armed once the load is under way, for the first process that gets there.
struct Trap {
    directory: PathBuf,
}

impl Trap {
    fn at(point: &str, action: &str) -> (Self, String) {
        let name = format!("{}-{}", point.replace(':', "_"), action);
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("failpoints").join(name);
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        let trap = Self { directory };
        let order = format!("{point}={action},once:{},when:{}", trap.file("once"), trap.file("armed"));
        (trap, order)
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn arm(&self) {
        std::fs::write(self.file("armed"), "").expect("a file");
    }

    /// Waits until a process was caught; says which, and since when.
    async fn caught(&self, world: &mut World) -> (String, DateTime<Utc>) {
        let file = self.file("once");
        let pid = soon("a process to be caught", || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            std::future::ready(text.parse::<i32>().map_err(|_| "none is"))
        })
        .await;
        let since = std::fs::metadata(&file).and_then(|file| file.modified()).expect("it has a time");
        let node = world.cluster.nodes().iter().find(|node| node.pid() == pid).expect("one of ours");
        (node.name.clone(), DateTime::<Utc>::from(since) - TimeDelta::milliseconds(1))
    }
}

/// Killed at the point, under load; a supervisor starts it again.
async fn killed_at(point: &str) {
    let (trap, order) = Trap::at(point, "kill");
    let plan = Plan { executors: 3, ..Plan::default() }.set(carillon_failpoint::VARIABLE, order);
    let mut world = World::start(&format!("killed_{}", point.replace(':', "_")), plan).await;
    let triggering = world.load(HUNDREDS).await;
    world.until_finished(30).await;
    if point.starts_with("take") {
        // Something must be there to be taken: the load alone may leave it with empty hands at that very moment.
        // Spread, since what is due at one instant is read by one of them.
        let (over, sleep) = (Duration::from_secs(4), json!({"ms": 3_000}));
        let fires = one_time_jobs(&world.pool, 80, in_ms(300), over, "test:sleep", &sleep).await;
        let long = fires.iter().map(|(job, at)| carillon_core::ids::execution_for_fire(*job, *at)).collect();
        world.expected.extend(fires);
        world.wake();
        world.until_one_runs_at("executor-1", &long).await;
        world.kill("executor-1");
    }
    trap.arm();
    let (name, since) = trap.caught(&mut world).await;
    let node = world.cluster.node(&name);
    let (role, pid) = (node.role, node.pid());
    soon(&format!("{name} to be dead"), || {
        let lives = world.cluster.node(&name).lives();
        std::future::ready(if lives { Err("it lives") } else { Ok(()) })
    })
    .await;
    if role == Role::Executor {
        world.lost.push(LostWorker { pid, from: since, until: None });
    }
    world.cluster.start_again(&name).unwrap_or_else(|error| panic!("{error:#}"));
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
    if role == Role::Dispatcher {
        // What the lost term left lying is forgotten by the next one.
        world.until_forgotten().await;
    }
}

#[tokio::test]
async fn killed_before_the_claim() {
    killed_at("claim:begin").await;
}

#[tokio::test]
async fn killed_before_the_commit_of_a_claim() {
    killed_at("claim:commit").await;
}

#[tokio::test]
async fn killed_after_the_commit_of_a_claim() {
    killed_at("claim:committed").await;
}

#[tokio::test]
async fn killed_before_publishing() {
    killed_at("publish:send").await;
}

#[tokio::test]
async fn killed_after_publishing() {
    killed_at("publish:answered").await;
}

#[tokio::test]
async fn killed_before_settling() {
    killed_at("settle:write").await;
}

#[tokio::test]
async fn killed_after_settling() {
    killed_at("settle:written").await;
}

#[tokio::test]
async fn killed_between_seeing_and_taking() {
    killed_at("take:seen").await;
}

#[tokio::test]
async fn killed_after_taking() {
    killed_at("take:taken").await;
}

#[tokio::test]
async fn killed_before_recording() {
    killed_at("record:write").await;
}

#[tokio::test]
async fn killed_before_the_commit_of_a_record() {
    killed_at("record:commit").await;
}

#[tokio::test]
async fn killed_after_the_commit_of_a_record() {
    killed_at("record:committed").await;
}

#[tokio::test]
async fn killed_before_acknowledging() {
    killed_at("acknowledge:send").await;
}

#[tokio::test]
async fn killed_after_acknowledging() {
    killed_at("acknowledge:answered").await;
}

/// Frozen at the point with its locks; while it stands still new work must go on, and once it wakes it does no harm.
async fn frozen_at(point: &str) {
    let (trap, order) = Trap::at(point, "freeze");
    let plan = Plan { executors: 3, ..Plan::default() }.set(carillon_failpoint::VARIABLE, order);
    let mut world = World::start(&format!("frozen_{}", point.replace(':', "_")), plan).await;
    let triggering = world.load(HUNDREDS).await;
    world.until_finished(30).await;
    trap.arm();
    let (name, since) = trap.caught(&mut world).await;
    let frozen = Instant::now();
    let node = world.cluster.node(&name);
    let (role, pid) = (node.role, node.pid());
    if role == Role::Executor {
        world.lost.push(LostWorker { pid, from: since, until: None });
    }
    let fires = one_time_jobs(&world.pool, 20, in_ms(100), Duration::ZERO, "test:echo", &json!({})).await;
    world.wake();
    let wanted: Vec<_> = fires.iter().map(|(job, at)| carillon_core::ids::execution_for_fire(*job, *at)).collect();
    world.expected.extend(fires);
    soon("new work to be done meanwhile", || async {
        let statement = "SELECT count(*) FROM job_executions WHERE id = ANY($1) AND completed_at IS NOT NULL";
        let done: i64 = sqlx::query_scalar(statement).bind(&wanted).fetch_one(&world.pool).await?;
        // What the frozen one had read itself waits for its lease.
        anyhow::ensure!(done >= 10, "{done} of {}", wanted.len());
        anyhow::Ok(())
    })
    .await;
    assert!(frozen.elapsed() < OTHERS_GO_ON_WITHIN, "others went on after {:?}", frozen.elapsed());
    world.cluster.node(&name).thaw();
    for lost in world.lost.iter_mut().filter(|lost| lost.pid == pid) {
        *lost = lost.back();
    }
    world.finish(triggering).await;
    world.judge(LOAD_MAX).await;
}

#[tokio::test]
async fn a_leader_frozen_before_the_commit_of_a_claim_keeps_nobody_waiting() {
    frozen_at("claim:commit").await;
}

#[tokio::test]
async fn an_executor_frozen_before_the_commit_of_a_record_keeps_nobody_waiting() {
    frozen_at("record:commit").await;
}

#[tokio::test]
async fn a_leader_frozen_before_publishing_does_no_harm_when_it_wakes() {
    frozen_at("publish:send").await;
}

/// Row 44: what it has locked is free within five seconds, and what touches none of it does not wait for that. `path` is of the
/// job; the last answer is shown.
async fn gateway_frozen_at(point: &str, name: &str, method: Method, path: &str, change: Value) -> Value {
    let (trap, order) = Trap::at(point, "freeze");
    let plan = Plan { gateways: 2, dispatchers: 1, executors: 1, ..Plan::default() };
    let plan = plan.protocol(Duration::from_secs(2), Duration::from_secs(20)).set(carillon_failpoint::VARIABLE, order);
    let mut world = World::start(name, plan).await;
    let gateways: Vec<(String, Api)> = world
        .cluster
        .nodes()
        .iter()
        .filter(|node| node.role == Role::Gateway)
        .map(|node| (node.name.clone(), Api::new(format!("http://127.0.0.1:{}", node.port))))
        .collect();
    let body = json!({"name": "t", "schedule": "0 0 1 1 *", "handler_name": "test:echo", "allow_overlap": true});
    let job = id_of(&gateways[0].1.create("cron", &body).await);
    let other = id_of(&gateways[0].1.create("cron", &body).await);
    let path = format!("/jobs/{job}{path}");
    trap.arm();
    // The first one's caller gets no answer while it is frozen.
    let first = (gateways[0].1.clone(), method.clone(), path.clone(), change.clone());
    let asked = tokio::spawn(async move { first.0.try_ask(first.1, &first.2, Some(&first.3)).await });
    let (name, _) = trap.caught(&mut world).await;
    assert_eq!(name, gateways[0].0);
    let frozen = Instant::now();
    let second = &gateways[1].1;
    let execution = second.trigger(other, &json!({})).await;
    world.triggered.insert(execution);
    second.execution_in(execution, &["SUCCESS"]).await;
    assert!(frozen.elapsed() < OTHERS_GO_ON_WITHIN, "what touches none of it waited {:?}", frozen.elapsed());
    soon("the job to be free", || async {
        let answer = second.try_ask(method.clone(), &path, Some(&change)).await?;
        anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        anyhow::Ok(())
    })
    .await;
    assert!(frozen.elapsed() < OTHERS_GO_ON_WITHIN, "the job was free after {:?}", frozen.elapsed());
    world.cluster.node(&name).thaw();
    // Whatever it answers, it answers: its session is gone, and the job is changed already.
    let _ = asked.await.expect("it ends");
    let row = second.job(job).await;
    world.judge(LOAD_MAX).await;
    row
}

#[tokio::test]
async fn a_gateway_frozen_in_the_middle_of_a_pause_holds_the_job_for_seconds_and_nothing_else() {
    let job = gateway_frozen_at("pause:commit", "frozen_pause", Method::POST, "/pause", json!({})).await;
    assert_eq!(job["status"], "PAUSED", "{job}");
}

#[tokio::test]
async fn a_gateway_frozen_in_the_middle_of_an_update_holds_the_job_for_seconds_and_nothing_else() {
    let change = json!({"tags": ["new"]});
    let job = gateway_frozen_at("update:commit", "frozen_update", Method::PATCH, "", change).await;
    assert_eq!((&job["tags"], &job["revision"]), (&json!(["new"]), &json!(2)), "{job}");
}
