//! The clients: a mixed load through both gateways, each request repeated with the same key until it is answered.
//!
//! What must happen follows from the answers: an instant of a job has exactly one execution, an accepted trigger its own.
//! Jobs that are paused, resumed and deleted meanwhile are judged by what holds for all (counters, doubles, ends), since which
//! of their instants fall away depends on when the call met them.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::random::Random;
use crate::world::{World, rfc3339};

/// Where the calls are.
const BASE: &str = "/api/v1/scheduler";
/// Between two tries of a request.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// One try: longer than the gateway gives Postgres.
const ANSWER_MAX: Duration = Duration::from_secs(13);
/// A client that is not answered for so long after the end gives up, which is a violation.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two one-time jobs, two triggers, two of everything else.
const PACE: [Duration; 3] = [Duration::from_millis(150), Duration::from_millis(130), Duration::from_millis(900)];
/// Requests in flight at most, so that an outage does not become a storm of its own.
const IN_FLIGHT_MAX: usize = 200;

/// What the clients know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requested {
    /// Instants that must have exactly one execution.
    pub(crate) expected: Vec<(Uuid, DateTime<Utc>)>,
    /// Executions that triggers were answered with.
    pub(crate) triggered: HashSet<Uuid>,
    /// Jobs that may have no other executions than those.
    pub(crate) closed: HashSet<Uuid>,
    /// Answers by status; 0 is none.
    pub(crate) answers: BTreeMap<u16, usize>,
    /// Answers that no fault excuses, and requests that were never answered.
    pub(crate) complaints: Vec<String>,
}

/// Clients under way.
#[derive(Debug)]
pub(crate) struct Load {
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Arc<World>,
    known: Mutex<Requested>,
    /// No new request after this.
    until: Instant,
}

impl Load {
    /// Makes the jobs that fire by themselves, then starts the clients.
    pub(crate) async fn start(world: &Arc<World>, lasts: Duration) -> Result<Self> {
        let until = Instant::now() + lasts;
        let shared = Arc::new(Shared { world: Arc::clone(world), known: Mutex::default(), until });
        let end = (Utc::now() + TimeDelta::from_std(lasts)?).trunc_subsecs(0);
        make_timed_jobs(&shared, end).await?;
        let mut targets = Vec::new();
        for (index, (handler, payload)) in trigger_handlers().into_iter().enumerate() {
            let body = json!({
                "name": format!("trigger {index}"), "schedule": "0 0 1 1 *", "handler_name": handler, "payload": payload,
                "allow_overlap": true, "max_retries": 2, "retry_delay_ms": 300, "priority": priority(index), "queue": queue(index),
            });
            let path = format!("/jobs/cron?request_id=target-{index}");
            targets.push(id_of(&shared.ask(Method::POST, &path, Some(&body)).await?)?);
        }
        let mut clients = JoinSet::new();
        clients.spawn(one_time_jobs(Arc::clone(&shared)));
        clients.spawn(triggers(Arc::clone(&shared), targets));
        for index in 0..2 {
            clients.spawn(churn(Arc::clone(&shared), index, end));
        }
        clients.spawn(readers(Arc::clone(&shared)));
        Ok(Self { clients, shared })
    }

    /// Waits until each request is answered.
    pub(crate) async fn finish(mut self, world: &World) -> Requested {
        let waited = tokio::time::timeout(PATIENCE, async { while self.clients.join_next().await.is_some() {} }).await;
        if waited.is_err() {
            world.say("some clients were not answered");
            self.shared.known().complaints.push(format!("clients were not answered within {PATIENCE:?} after the end"));
        }
        self.clients.shutdown().await;
        self.shared.known().clone()
    }
}

impl Shared {
    fn known(&self) -> std::sync::MutexGuard<'_, Requested> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Asks until there is an answer that counts: by one gateway, then by the other.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let first = body.map_or(0, |body| body.to_string().len());
        let give_up = self.until + PATIENCE;
        for attempt in first.. {
            let door = &self.world.doors[attempt % self.world.doors.len()];
            let url = format!("http://127.0.0.1:{}{BASE}{path}", door.port());
            let mut request = self.world.http.request(method.clone(), url).timeout(ANSWER_MAX);
            if let Some(body) = body {
                request = request.json(body);
            }
            let answer = match request.send().await {
                Ok(response) => Some((response.status().as_u16(), response.text().await)),
                Err(_) => None,
            };
            let status = answer.as_ref().map_or(0, |(status, _)| *status);
            *self.known().answers.entry(status).or_default() += 1;
            match answer {
                Some((200..300, Ok(text))) => return Ok(serde_json::from_str(&text).unwrap_or(Value::Null)),
                // Cut off in its middle, or asked to come again.
                Some((200..300, Err(_)) | (429 | 503 | 504, _)) | None => {}
                Some((status @ 400..500, text)) => bail!("{status} {}", text.unwrap_or_default()),
                Some((status, text)) => {
                    let complaint = format!("{method} {path}: {status} {}", text.unwrap_or_default());
                    self.known().complaints.push(complaint);
                }
            }
            ensure!(Instant::now() < give_up, "{method} {path} was never answered");
            tokio::time::sleep(TRY_AGAIN).await;
        }
        bail!("unreachable: the loop ends by its bound")
    }

    /// What no 4xx can excuse.
    fn complain(&self, what: &str, error: &anyhow::Error) {
        self.known().complaints.push(format!("{what}: {error:#}"));
    }
}

/// Cron jobs of each second and recurring ones, with and without overlap, in several queues and priorities.
async fn make_timed_jobs(shared: &Arc<Shared>, end: DateTime<Utc>) -> Result<()> {
    for index in 0..6 {
        let (handler, payload) = match index % 3 {
            0 => ("test:echo", json!({"n": index})),
            1 => ("test:sleep", json!({"ms": 40})),
            _ => ("test:fail", json!({"times": 1})),
        };
        let is_cron = index < 4;
        let every = TimeDelta::milliseconds(if is_cron { 1_000 } else { 700 });
        let mut body = json!({
            "name": format!("cron {index}"), "handler_name": handler, "payload": payload, "end_date": rfc3339(end),
            "allow_overlap": index % 2 == 0, "max_retries": 3, "retry_delay_ms": 200,
            "priority": priority(index), "queue": queue(index),
        });
        let kind = if is_cron { "cron" } else { "recurring" };
        let (field, value) =
            if is_cron { ("schedule", "* * * * * *".to_owned()) } else { ("interval", "700ms".to_owned()) };
        body[field] = json!(value);
        let job = shared.ask(Method::POST, &format!("/jobs/{kind}"), Some(&body)).await?;
        let id = id_of(&job)?;
        let mut at: DateTime<Utc> = job["next_run"].as_str().and_then(|at| at.parse().ok()).context("a first fire")?;
        let mut known = shared.known();
        known.closed.insert(id);
        while at <= end {
            known.expected.push((id, at));
            at += every;
        }
    }
    Ok(())
}

/// Spread over the seconds to come; a few are asked for when they are past.
async fn one_time_jobs(shared: Arc<Shared>) {
    let mut random = Random::new(1);
    let mut requests = JoinSet::new();
    for number in 0_usize.. {
        tokio::time::sleep(PACE[0]).await;
        if shared.is_over() {
            break;
        }
        make_room(&mut requests).await;
        let ms = i64::try_from(random.between(0, 5_000)).unwrap_or_default() - 300;
        let at = (Utc::now() + TimeDelta::milliseconds(ms)).trunc_subsecs(3);
        let (handler, payload) = match number % 12 {
            0 => ("test:sleep", json!({"ms": random.between(3_000, 15_000)})),
            1 => ("test:fail", json!({"times": 2})),
            2 => ("test:fail", json!({"message": "as often as it is tried"})),
            3..6 => ("test:sleep", json!({"ms": random.between(5, 400)})),
            _ => ("test:echo", json!({"n": number})),
        };
        let body = json!({
            "name": format!("once {number}"), "execute_at": rfc3339(at), "handler_name": handler,
            "payload": payload, "max_retries": 2, "retry_delay_ms": 300,
            "priority": priority(number), "queue": queue(number),
        });
        let shared = Arc::clone(&shared);
        requests.spawn(async move {
            let path = format!("/jobs/once?allow_past=true&request_id=once-{number}");
            match shared.ask(Method::POST, &path, Some(&body)).await.and_then(|job| id_of(&job)) {
                Ok(id) => {
                    let mut known = shared.known();
                    known.closed.insert(id);
                    known.expected.push((id, at));
                }
                Err(error) => shared.complain("one-time job", &error),
            }
        });
    }
    while requests.join_next().await.is_some() {}
}

fn trigger_handlers() -> Vec<(&'static str, Value)> {
    vec![
        ("test:echo", json!({"n": 1})),
        ("test:sleep", json!({"ms": 120})),
        ("test:fail", json!({"times": 1})),
        ("test:sleep", json!({"ms": 6_000})),
        ("test:panic", json!({"message": "as asked"})),
    ]
}

/// Triggers, and now and then a cancel of one.
async fn triggers(shared: Arc<Shared>, targets: Vec<Uuid>) {
    let mut requests = JoinSet::new();
    for number in 0_usize.. {
        tokio::time::sleep(PACE[1]).await;
        if shared.is_over() {
            break;
        }
        make_room(&mut requests).await;
        // The long ones seldom, so that they do not take all slots in an outage.
        let target = targets[[0, 1, 0, 2, 1, 0, 3, 0, 1, 4][number % 10]];
        let body = json!({"request_id": format!("trigger {number}")});
        let shared = Arc::clone(&shared);
        requests.spawn(async move {
            let path = format!("/jobs/{target}/trigger");
            let execution = shared.ask(Method::POST, &path, Some(&body)).await.and_then(|execution| id_of(&execution));
            let execution = match execution {
                Ok(execution) => execution,
                Err(error) => return shared.complain("trigger", &error),
            };
            shared.known().triggered.insert(execution);
            if number % 9 == 6 {
                // Refused where it has ended by then.
                let body = json!({"reason": "the soak"});
                let _ = shared.ask(Method::POST, &format!("/executions/{execution}/cancel"), Some(&body)).await;
            }
        });
    }
    while requests.join_next().await.is_some() {}
}

/// A job that is paused, resumed, and now and then deleted and made anew.
async fn churn(shared: Arc<Shared>, index: usize, end: DateTime<Utc>) {
    let mut random = Random::new(100 + index as u64);
    for number in 0_usize.. {
        if shared.is_over() {
            return;
        }
        let body = json!({
            "name": format!("churn {index}.{number}"), "schedule": "* * * * * *", "handler_name": "test:sleep",
            "payload": {"ms": 300}, "allow_overlap": index == 0, "end_date": rfc3339(end), "retry_delay_ms": 200,
        });
        let path = format!("/jobs/cron?request_id=churn-{index}.{number}");
        // Past its end once the soak is nearly over, which is refused.
        let Ok(job) = shared.ask(Method::POST, &path, Some(&body)).await else { return };
        let Ok(id) = id_of(&job) else { return };
        for _ in 0..4 {
            for verb in ["pause", "resume"] {
                tokio::time::sleep(Duration::from_millis(random.between(500, 3_000))).await;
                // Refused where its last fire was, or where the try before this one was heard.
                let _ = shared.ask(Method::POST, &format!("/jobs/{id}/{verb}"), Some(&json!({}))).await;
            }
        }
        tokio::time::sleep(PACE[2]).await;
        if number % 2 == 0 {
            let _ = shared.ask(Method::DELETE, &format!("/jobs/{id}"), None).await;
        }
    }
}

/// Lists what there is: each listing must be readable at any time.
async fn readers(shared: Arc<Shared>) {
    for number in 0_usize.. {
        if shared.is_over() {
            return;
        }
        tokio::time::sleep(PACE[2]).await;
        let some = shared.known().closed.iter().nth(number % 20).copied();
        let path = match (number % 2, some) {
            (0, Some(job)) => format!("/jobs/{job}/executions?limit=50"),
            _ => "/jobs?limit=50".to_owned(),
        };
        if let Err(error) = shared.ask(Method::GET, &path, None).await {
            shared.complain("listing", &error);
        }
    }
}

async fn make_room(requests: &mut JoinSet<()>) {
    while requests.try_join_next().is_some() {}
    while requests.len() >= IN_FLIGHT_MAX {
        requests.join_next().await;
    }
}

fn id_of(body: &Value) -> Result<Uuid> {
    body["id"].as_str().and_then(|id| id.parse().ok()).with_context(|| format!("no id: {body}"))
}

const fn priority(index: usize) -> &'static str {
    ["MEDIUM", "HIGH", "LOW", "CRITICAL"][index % 4]
}

const fn queue(index: usize) -> &'static str {
    ["default", "default", "mail", "default", "reports"][index % 5]
}
