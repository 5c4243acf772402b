//! Fires to work on while something breaks: one-time jobs, recurring ones and triggers, about a thousand within seconds.

use std::collections::HashMap;
use std::time::Duration;

use carillon_core::schedule::TimetableSpec;
use carillon_testkit::history::History;
use carillon_testkit::journal::Event;
use carillon_testkit::wait_until;
use chrono::{DateTime, SecondsFormat, SubsecRound as _, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::{Api, id_of, instant};
use crate::world::{LOAD_MAX, World};

/// Between two recurring fires of a job.
const EVERY: TimeDelta = TimeDelta::milliseconds(400);
/// Clients that trigger side by side.
const CLIENTS: usize = 4;

/// How much, over how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// One-time jobs, made in Postgres at once.
    pub(crate) one_time: usize,
    /// Recurring jobs, made through the API; each fires about `over / 400 ms` times.
    pub(crate) recurring: usize,
    /// Calls that trigger a job, spread over the time.
    pub(crate) triggers: usize,
    /// The time in which they are due.
    pub(crate) over: Duration,
}

/// About 1,000 fires in five seconds.
pub(crate) const THOUSAND: Load = Load { one_time: 700, recurring: 8, triggers: 200, over: Duration::from_secs(5) };
/// About 300 fires in three seconds.
pub(crate) const HUNDREDS: Load = Load { one_time: 200, recurring: 4, triggers: 70, over: Duration::from_secs(3) };

/// Triggers that are under way.
#[derive(Debug)]
pub(crate) struct Triggering {
    clients: JoinSet<Vec<Uuid>>,
}

impl World {
    /// Begins a load: what it leads to is expected by the verdict. The triggers go on meanwhile: `finish` waits for them.
    pub(crate) async fn load(&mut self, load: Load) -> Triggering {
        let first = in_ms(700);
        let handlers = [("test:echo", json!({"n": 1})), ("test:sleep", json!({"ms": 30}))];
        for (index, (handler, payload)) in handlers.iter().enumerate() {
            let share = load.one_time / 2 + (load.one_time % 2) * usize::from(index == 0);
            let jobs = one_time_jobs(&self.pool, share, first, load.over, handler, payload).await;
            self.expected.extend(jobs);
        }
        self.wake();
        let api = self.api();
        let end = first + TimeDelta::from_std(load.over).expect("short");
        for index in 0..load.recurring {
            let fires = recurring_job(&api, index, end).await;
            self.expected.extend(fires);
        }
        let body = json!({
            "name": "triggered", "execute_at": rfc3339(Utc::now() + TimeDelta::days(300)), "handler_name": "test:echo",
            "allow_overlap": true,
        });
        let job = id_of(&api.create("once", &body).await);
        // This one instant is far away: it is expected by nobody.
        Triggering { clients: trigger(&api, job, load.triggers, load.over) }
    }

    /// Waits until every trigger was answered, each by a client that asks again with the same key until it is.
    pub(crate) async fn finish(&mut self, mut triggering: Triggering) {
        while let Some(executions) = triggering.clients.join_next().await {
            self.triggered.extend(executions.expect("the client lives"));
        }
    }
}

/// One-time jobs, evenly due from `first` on.
pub(crate) async fn one_time_jobs(
    pool: &PgPool,
    count: usize,
    first: DateTime<Utc>,
    over: Duration,
    handler: &str,
    payload: &Value,
) -> Vec<(Uuid, DateTime<Utc>)> {
    let over = TimeDelta::from_std(over).expect("short");
    let total = i32::try_from(count.max(1)).expect("small");
    let fires: Vec<(Uuid, DateTime<Utc>)> =
        (0..total).take(count).map(|index| (Uuid::now_v7(), (first + over * index / total).trunc_subsecs(3))).collect();
    let timetables: Vec<Value> = fires
        .iter()
        .map(|(_, at)| serde_json::to_value(TimetableSpec::once(*at)).expect("it has a JSON form"))
        .collect();
    let made = sqlx::query(
        "WITH new AS (
             SELECT * FROM UNNEST($1::uuid[], $2::timestamptz[], $3::jsonb[]) AS n(id, at, timetable)
         ), job AS (
             INSERT INTO jobs (id, name, type, status, schedule, timetable, handler_name, payload, retry_delay_ms)
             SELECT id, 'load', 'ONE_TIME', 'ACTIVE', '', timetable, $4, $5, 200 FROM new RETURNING *
         ), revision AS (
             INSERT INTO job_revisions (job_id, revision, definition) SELECT id, revision, to_jsonb(job) FROM job
         ), stats AS (
             INSERT INTO job_stats (job_id) SELECT id FROM job
         )
         INSERT INTO job_timers (job_id, shard, fire_at, queue, priority)
         SELECT new.id, 0, new.at, 'default', 1 FROM new JOIN job USING (id)",
    )
    .bind(fires.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, at)| *at).collect::<Vec<_>>())
    .bind(timetables)
    .bind(handler)
    .bind(payload)
    .execute(pool)
    .await;
    let made = made.expect("the jobs are made").rows_affected();
    assert_eq!(made, count as u64);
    fires
}

/// A recurring job until `end`; its instants. Every second one may overlap itself.
async fn recurring_job(api: &Api, index: usize, end: DateTime<Utc>) -> Vec<(Uuid, DateTime<Utc>)> {
    let body = json!({
        "name": format!("recurring {index}"), "interval": format!("{}ms", EVERY.num_milliseconds()),
        "handler_name": "test:sleep", "payload": {"ms": 20}, "end_date": rfc3339(end),
        "allow_overlap": index.is_multiple_of(2), "retry_delay_ms": 200,
    });
    let job = api.create("recurring", &body).await;
    fires_until(&job, EVERY, end)
}

/// The instants of a job that was just created and fires each `every` until `end`.
pub(crate) fn fires_until(job: &Value, every: TimeDelta, end: DateTime<Utc>) -> Vec<(Uuid, DateTime<Utc>)> {
    let id = id_of(job);
    let mut fires = Vec::new();
    let mut at = instant(&job["next_run"]);
    while at <= end {
        fires.push((id, at));
        at += every;
    }
    fires
}

fn trigger(api: &Api, job: Uuid, count: usize, over: Duration) -> JoinSet<Vec<Uuid>> {
    let mut clients = JoinSet::new();
    let pause = over * u32::try_from(CLIENTS).expect("few") / u32::try_from(count.max(1)).expect("few");
    for client in 0..CLIENTS {
        let (api, share) = (api.clone(), count / CLIENTS);
        clients.spawn(async move {
            let mut executions = Vec::new();
            let mut pace = tokio::time::interval(pause.max(Duration::from_millis(1)));
            for index in 0..share {
                pace.tick().await;
                executions.push(trigger_surely(&api, job, &format!("{client}/{index}")).await);
            }
            executions
        });
    }
    clients
}

/// Asks with the same key until there is an answer.
async fn trigger_surely(api: &Api, job: Uuid, key: &str) -> Uuid {
    let (path, body) = (format!("/jobs/{job}/trigger"), json!({"request_id": key}));
    let what = format!("trigger {key} to be answered");
    let answered = wait_until(&what, LOAD_MAX, || async {
        match api.try_ask(Method::POST, &path, Some(&body)).await {
            Ok(answer) if answer.status == 200 => Ok(id_of(&answer.body)),
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{}", answer.body);
                Err(answer.body.to_string())
            }
            Err(error) => Err(error.to_string()),
        }
    });
    answered.await.unwrap_or_else(|error| panic!("{error:#}"))
}

/// How late each handler started that was due after `from`, in order of the instants: an instant, and by how much.
pub(crate) fn lateness(history: &History, from: DateTime<Utc>) -> Vec<(DateTime<Utc>, TimeDelta)> {
    let due: HashMap<Uuid, DateTime<Utc>> = history.executions.iter().map(|row| (row.id, row.scheduled_at)).collect();
    let starts = history.journal.iter().filter(|line| line.event == Event::Start);
    let started = starts.filter_map(|line| due.get(&line.execution).map(|due| (*due, line.at - *due)));
    let mut late: Vec<(DateTime<Utc>, TimeDelta)> = started.filter(|(due, _)| *due > from).collect();
    late.sort_unstable();
    late
}

/// How long after `from` the first handler started of those that fell due after it.
pub(crate) fn next_fire(history: &History, from: DateTime<Utc>) -> TimeDelta {
    let starts = lateness(history, from).into_iter().map(|(due, late)| due + late - from);
    starts.min().expect("something fell due")
}

/// How long the last handler to start did so after it could have: after its instant, or after `from` where that is later.
pub(crate) fn longest_wait(history: &History, from: DateTime<Utc>) -> TimeDelta {
    let starts = lateness(history, DateTime::UNIX_EPOCH).into_iter();
    starts.map(|(due, late)| due + late - due.max(from)).max().expect("something started")
}

/// So long from now, to the millisecond, as instants of jobs are.
pub(crate) fn in_ms(ms: i64) -> DateTime<Utc> {
    (Utc::now() + TimeDelta::milliseconds(ms)).trunc_subsecs(3)
}

/// As the API writes it.
pub(crate) fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
