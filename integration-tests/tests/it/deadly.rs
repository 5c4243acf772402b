//! An execution that kills whoever runs it (row 12): it is given up after `executor.lost_max` losses, the fleet lives, and what
//! else its executors ran, ends.

use std::time::{Duration, Instant};

use carillon_core::execution::Status;
use carillon_testkit::Role;
use carillon_testkit::history::LostWorker;
use carillon_testkit::journal::{Event, Line};
use serde_json::json;
use uuid::Uuid;

use crate::api::id_of;
use crate::load::{in_ms, one_time_jobs};
use crate::world::{LOAD_MAX, LOOK_EACH, Plan, World};

const LOST_MAX: usize = 3;
const LEASE: Duration = Duration::from_secs(4);

impl World {
    /// Starts executors again that have ended, as a supervisor does, until an execution is final.
    async fn supervise_until_final(&mut self, execution: Uuid) {
        let api = self.api();
        let began = Instant::now();
        while api.execution(execution).await["completed_at"].is_null() {
            assert!(began.elapsed() < LOAD_MAX, "it is not final: {}", self.cluster.logs());
            let dead =
                self.cluster.nodes_of(Role::Executor).filter_map(|node| (!node.lives()).then(|| node.name.clone()));
            for name in dead.collect::<Vec<_>>() {
                let pid = self.cluster.node(&name).pid();
                let start = self.starts_of(execution).into_iter().find(|start| start.pid == pid);
                let start = start.unwrap_or_else(|| panic!("{name} died of something else:\n{}", self.cluster.logs()));
                self.lost.push(LostWorker { pid, from: start.at, until: None });
                self.start_again(&name);
            }
            tokio::time::sleep(LOOK_EACH).await;
        }
    }

    fn starts_of(&self, execution: Uuid) -> Vec<Line> {
        let lines = self.journal().into_iter();
        lines.filter(|line| line.execution == execution && line.event == Event::Start).collect()
    }
}

/// The neighbours are taken over together with it. Started together again, they would be given up together.
#[tokio::test]
async fn an_execution_that_kills_its_executor_each_time_is_given_up_and_its_neighbours_end_well() {
    const NEIGHBOURS: usize = 18;
    let plan = Plan { dispatchers: 1, executors: 3, ..Plan::default() };
    let plan = plan.protocol(LEASE / 10, LEASE).set("CARILLON_EXECUTOR_LOST_MAX", LOST_MAX.to_string());
    let mut world = World::start("deadly", plan).await;
    let api = world.api();
    let body = json!({
        "name": "deadly", "schedule": "0 0 1 1 *", "handler_name": "test:kill", "max_retries": 3, "retry_delay_ms": 50,
    });
    let deadly = id_of(&api.create("cron", &body).await);
    let (over, sleep) = (Duration::from_secs(1), json!({"ms": 2_000}));
    let neighbours = one_time_jobs(&world.pool, NEIGHBOURS, in_ms(300), over, "test:sleep", &sleep).await;
    world.expected.extend(neighbours);
    world.wake();
    for executor in ["executor-1", "executor-2", "executor-3"] {
        world.until_running_at(executor, 1).await;
    }
    let execution = api.trigger(deadly, &json!({})).await;
    world.triggered.insert(execution);
    let began = Instant::now();
    world.supervise_until_final(execution).await;
    eprintln!("given up after {:?}", began.elapsed());

    let row = api.execution(execution).await;
    assert_eq!((&row["status"], &row["attempt"]), (&json!("FAILED"), &json!(1)), "it is not tried again: {row}");
    assert!(row["error"].as_str().is_some_and(|error| error.contains("every executor that ran it died")), "{row}");
    let starts = world.starts_of(execution);
    // The first death may come before Postgres hears that it runs, and is not counted then.
    assert!((LOST_MAX..=LOST_MAX + 1).contains(&starts.len()), "it was started once for each loss: {starts:?}");
    world.cluster.ready().await.unwrap_or_else(|error| panic!("{error:#}"));
    let history = world.judge(LOAD_MAX).await;
    assert_eq!((history.count(Status::Failed), history.count(Status::Success)), (1, NEIGHBOURS));
}
