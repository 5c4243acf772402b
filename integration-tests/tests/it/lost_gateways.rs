//! Gateways killed between a request and its answer, wherever they are (row 34): the client repeats it, with its key, at another
//! one. Each has one effect, whether the first was done by then, is still on its way to Postgres, or never got there.

use std::collections::HashSet;
use std::time::Duration;

use carillon_testkit::{Proxy, Role};
use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::{Api, id_of, instant};
use crate::load::rfc3339;
use crate::world::{LOAD_MAX, Plan, SOON, World};

/// Gateways killed, each with requests of every client under way.
const ROUNDS: usize = 10;
/// Every second one creates a job, the others trigger one.
const CLIENTS: usize = 16;
/// To Postgres, and back: a request takes several times that, so that a kill meets it between any two of its statements.
const DELAY: Duration = Duration::from_millis(12);
/// Between the beginnings of two clients.
const STAGGER: Duration = Duration::from_millis(12);

/// What a client has heard, in the end.
#[derive(Debug)]
struct Heard {
    id: Uuid,
    created: bool,
    /// It was sent, and not answered.
    interrupted: bool,
    /// It was done all the same.
    was_done: bool,
}

#[tokio::test]
async fn what_a_killed_gateway_left_unanswered_has_one_effect_when_it_is_asked_again() {
    let plan = Plan { gateways: 0, dispatchers: 1, executors: 1, ..Plan::default() };
    let mut world = World::start("gateways_killed", plan).await;
    let line = Proxy::to(world.database.port().expect("a port")).expect("a proxy");
    let url = world.database.url_through(line.port());
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let name = world.add(Role::Gateway, &[("CARILLON_POSTGRES_URL", url.as_str())]).await;
        let api = Api::new(format!("http://127.0.0.1:{}", world.cluster.node(&name).port));
        gateways.push((name, api));
    }
    let job = id_of(&gateways[0].1.create("once", &far_away("triggered")).await);
    line.delay(DELAY);
    let mut heard = Vec::new();
    for round in 0..ROUNDS {
        let ((victim, first), (_, second)) = (&gateways[round % 2], &gateways[(round + 1) % 2]);
        let (mut clients, mut answers) = ask_all([first, second], job, round);
        // By then the others stand at every step.
        for _ in 0..=round / 2 {
            answers.recv().await.expect("some are answered");
        }
        world.kill(victim);
        while let Some(client) = clients.join_next().await {
            heard.push(client.expect("the client lives"));
        }
        world.start_again(victim);
        world.until_readyz(victim, "", SOON).await;
    }
    let count = |which: fn(&Heard) -> bool| heard.iter().filter(|heard| which(heard)).count();
    let (interrupted, done) = (count(|heard| heard.interrupted), count(|heard| heard.was_done));
    eprintln!("{interrupted} of {} were not answered, {done} of them were done", heard.len());
    assert!(done > ROUNDS / 2 && interrupted - done > ROUNDS / 2, "no kill met one before, or after, its effect");

    let (created, triggered): (Vec<_>, Vec<_>) = heard.iter().partition(|heard| heard.created);
    let ids: HashSet<Uuid> = created.iter().map(|heard| heard.id).collect();
    assert_eq!(ids.len(), created.len(), "two keys led to one job");
    let jobs = world.count("SELECT count(*) FROM jobs").await.expect("postgres answers");
    assert_eq!(usize::try_from(jobs).expect("few"), created.len() + 1, "one key led to two jobs");
    world.triggered.extend(triggered.iter().map(|heard| heard.id));
    assert_eq!(world.triggered.len(), triggered.len(), "two keys led to one execution");
    // Nor did one key lead to two executions.
    world.judge(LOAD_MAX).await;
}

fn far_away(name: &str) -> Value {
    json!({
        "name": name, "execute_at": rfc3339(Utc::now() + TimeDelta::days(300)), "handler_name": "test:echo",
        "allow_overlap": true,
    })
}

/// Each client asks the first gateway, and the second one as soon as it gets no answer. Says when one has got an answer.
fn ask_all(apis: [&Api; 2], job: Uuid, round: usize) -> (JoinSet<Heard>, mpsc::Receiver<()>) {
    let (answered, answers) = mpsc::channel(CLIENTS);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let ([first, second], answered) = (apis.map(Api::clone), answered.clone());
        let key = format!("{round}/{client}");
        let created = client % 2 == 0;
        let (path, body) = if created {
            (format!("/jobs/once?request_id={key}"), far_away(&key))
        } else {
            (format!("/jobs/{job}/trigger"), json!({"request_id": key}))
        };
        clients.spawn(async move {
            tokio::time::sleep(STAGGER * u32::try_from(client).expect("few")).await;
            let asked = first.try_ask(Method::POST, &path, Some(&body)).await;
            let interrupted = asked.as_ref().is_err_and(|error| !error.is_connect());
            let again = Utc::now();
            let answer = match asked {
                Ok(answer) => answer,
                Err(_) => second.post(&path, &body).await,
            };
            let _ = answered.send(()).await;
            assert_eq!(answer.status, if created { 201 } else { 200 }, "{key}: {}", answer.body);
            let done_at = instant(&answer.body[if created { "created_at" } else { "scheduled_at" }]);
            Heard { id: id_of(&answer.body), created, interrupted, was_done: interrupted && done_at < again }
        });
    }
    (clients, answers)
}
