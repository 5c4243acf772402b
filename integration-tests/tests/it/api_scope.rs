//! Who may see and change what, over the API: every route, asked by callers of other platforms.

use std::collections::HashSet;

use carillon_proto::v1::execution_service_client::ExecutionServiceClient;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_proto::v1::{CancelExecutionRequest, GetJobRequest, ListJobsRequest};
use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::api::{Answer, Api, id_of};
use crate::api_lists::pages;
use crate::load::rfc3339;
use crate::world::{Plan, World};

const HEADER: &str = "x-platform-id";
/// `METHOD /api/v1/scheduler/path  service/Call  body …`
const ROUTES: &str = include_str!("../../../services/gateway/tests/routes.txt");
/// Calls that name a job or an execution and only read it, or fire it; all others change it.
const READING: [&str; 5] = ["GetExecution", "GetJob", "ListExecutions", "ListJobRevisions", "TriggerJob"];

/// One line of [`ROUTES`].
struct Route {
    method: Method,
    path: &'static str,
    call: &'static str,
}

fn routes() -> impl Iterator<Item = Route> {
    ROUTES.lines().map(|line| {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("{line}"));
        let method = word().parse().unwrap_or_else(|error| panic!("{line}: {error}"));
        let path = word().strip_prefix("/api/v1/scheduler").unwrap_or_else(|| panic!("{line}"));
        let call = word().rsplit('/').next().unwrap_or_default();
        Route { method, path, call }
    })
}

impl Route {
    fn names_one(&self) -> bool {
        self.path.contains('{')
    }

    /// With the ids of a job, or of an execution, in its path.
    fn path(&self, job: Uuid, execution: Uuid) -> String {
        let Some((before, rest)) = self.path.split_once('{') else { return self.path.to_owned() };
        let (_, after) = rest.split_once('}').unwrap_or_else(|| panic!("{}", self.path));
        let id = if before.ends_with("/executions/") { execution } else { job };
        format!("{before}{id}{after}")
    }

    async fn ask(&self, api: &Api, job: Uuid, execution: Uuid) -> Answer {
        let body = match self.call {
            "SetJobSchedule" => Some(json!({"schedule": "@hourly"})),
            "UpdateJob" => Some(json!({"description": "another one"})),
            _ => (self.method == Method::POST).then(|| json!({})),
        };
        api.ask(self.method.clone(), &self.path(job, execution), body.as_ref()).await
    }
}

fn plan() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

fn cron() -> Value {
    json!({"name": "n", "schedule": "0 0 1 1 *", "handler_name": "a:b"})
}

/// A job as that caller makes it, and an execution of it that waits for its claim.
async fn target(api: &Api) -> (Uuid, Uuid) {
    let job = id_of(&api.create("cron", &cron()).await);
    (job, api.trigger(job, &json!({})).await)
}

/// What there is, for a caller who sees all.
async fn everything(api: &Api) -> [Vec<Value>; 2] {
    [pages(api, "/jobs", "jobs", 100).await, pages(api, "/executions", "executions", 100).await]
}

#[tokio::test]
async fn every_route_that_names_what_is_of_another_platform_answers_as_if_it_were_not_there() {
    let world = World::start("scope_routes", plan()).await;
    let all = world.api();
    let (p, q) = (all.of_platform("p"), all.of_platform("q"));
    let (job, execution) = target(&p).await;
    let (unknown_job, unknown_execution) = (Uuid::from_u128(7), Uuid::from_u128(8));
    let before = everything(&all).await;
    let mut asked = HashSet::new();
    for route in routes().filter(Route::names_one) {
        let (hidden, absent) =
            (route.ask(&q, job, execution).await, route.ask(&q, unknown_job, unknown_execution).await);
        assert_eq!((hidden.status, hidden.reason().as_str()), (404, "NOT_FOUND"), "{}: {}", route.call, hidden.body);
        let as_absent = absent.without_request().to_string().replace(&unknown_job.to_string(), &job.to_string());
        let as_absent = as_absent.replace(&unknown_execution.to_string(), &execution.to_string());
        assert_eq!((absent.status, as_absent), (404, hidden.without_request().to_string()), "{}", route.call);
        asked.insert(route.call);
    }
    assert_eq!(q.get(&format!("/executions?job_id={job}")).await.status, 404);
    // A change that names what it was made for, and one that would only be looked at, say no more.
    let etag = json!({"etag": "\"9\"", "description": "another one"});
    for path in [format!("/jobs/{job}"), format!("/jobs/{job}?validate_only=true")] {
        let answer = q.ask(Method::PATCH, &path, Some(&etag)).await;
        assert_eq!((answer.status, answer.reason().as_str()), (404, "NOT_FOUND"), "{path}: {}", answer.body);
    }
    let again = json!({"request_id": "r"});
    p.trigger(job, &again).await;
    let answer = q.post(&format!("/jobs/{job}/trigger"), &json!({"request_id": "r", "created_by": "other"})).await;
    assert_eq!((answer.status, answer.reason().as_str()), (404, "NOT_FOUND"), "{}", answer.body);
    assert!(asked.len() >= 11, "{asked:?}");
    let after = everything(&all).await;
    assert_eq!(after[0], before[0], "nothing was changed");
    assert_eq!(after[1].len(), 2, "what its own platform fired");
}

#[tokio::test]
async fn what_is_global_is_read_and_triggered_by_all_and_changed_by_no_platform() {
    let world = World::start("scope_global", plan()).await;
    let (all, p) = (world.api(), world.api().of_platform("p"));
    let (job, execution) = target(&all).await;
    let before = everything(&all).await;
    for route in routes().filter(|route| route.names_one() && !READING.contains(&route.call)) {
        let answer = route.ask(&p, job, execution).await;
        let refused = (answer.status, answer.body["code"].clone(), answer.reason());
        assert_eq!(refused, (403, json!(7), "NOT_OWN".to_owned()), "{}: {}", route.call, answer.body);
    }
    let unchanged = p.ask(Method::PATCH, &format!("/jobs/{job}?validate_only=true"), Some(&json!({}))).await;
    assert_eq!(unchanged.status, 403, "not even a change of nothing: {}", unchanged.body);
    assert_eq!(everything(&all).await, before);
    for route in routes().filter(|route| READING.contains(&route.call) && route.names_one()) {
        let answer = route.ask(&p, job, execution).await;
        assert_eq!(answer.status, 200, "{}: {}", route.call, answer.body);
    }
    // What a platform fires of it is that platform's.
    let fired = p.post(&format!("/jobs/{job}/trigger"), &json!({"request_id": "r"})).await.body;
    assert_eq!(fired["platform_id"], "p");
    let path = format!("/executions/{}", fired["id"].as_str().expect("an id"));
    assert_eq!(all.of_platform("q").get(&path).await.status, 404);
    let other = all.of_platform("q").post(&format!("/jobs/{job}/trigger"), &json!({"request_id": "r"})).await.body;
    assert!(other["platform_id"] == "q" && other["id"] != fired["id"], "{other}");
    let stopped = p.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!((stopped.status, &stopped.body["status"]), (200, &json!("CANCELLED")));
}

/// Claimed, skipped, run or failed: it stays whoever's triggered it.
#[tokio::test]
async fn what_a_platform_fires_of_a_global_job_stays_its_own() {
    let world = World::start("scope_fired", Plan::default()).await;
    let (all, p, q) = (world.api(), world.api().of_platform("p"), world.api().of_platform("q"));
    for (handler, ended) in [("test:echo", "SUCCESS"), ("test:panic", "FAILED"), ("test:sleep", "SKIPPED")] {
        let job = json!({
            "name": "global", "execute_at": rfc3339(Utc::now() + TimeDelta::days(300)), "handler_name": handler, "max_retries": 0,
        });
        let job = id_of(&all.create("once", &job).await);
        if ended == "SKIPPED" {
            // Open for long, so that no other of its job runs.
            all.trigger(job, &json!({"payload": {"ms": 60_000}})).await;
        }
        let fired = p.trigger(job, &json!({"payload": {"secret": "of p"}})).await;
        let execution = p.execution_in(fired, &[ended]).await;
        assert_eq!(execution["platform_id"], "p", "{execution}");
        assert_eq!(q.get(&format!("/executions/{fired}")).await.status, 404, "{ended}");
        let listed = async |api: &Api, query: &str| {
            let path = format!("/jobs/{job}/executions?status={ended}{query}");
            api.get(&path).await.body["executions"].as_array().map_or(0, Vec::len)
        };
        assert_eq!(
            (listed(&p, "").await, listed(&p, "&platform_id=p").await, listed(&q, "").await),
            (1, 1, 0),
            "{ended}"
        );
    }
}

#[tokio::test]
async fn what_is_made_is_of_the_callers_platform_and_keys_of_platforms_do_not_meet() {
    let world = World::start("scope_made", plan()).await;
    let all = world.api();
    let (p, q) = (all.of_platform("p"), all.of_platform("q"));
    let keyed = |platform: Value| {
        let mut job = cron();
        (job["key"], job["platform_id"]) = (json!("nightly"), platform);
        job
    };
    let asked = |platform: Value| {
        let mut job = keyed(platform);
        job["request_id"] = json!("r");
        job
    };
    let first = p.create("cron", &asked(Value::Null)).await;
    assert_eq!(first["platform_id"], "p");
    // Said by the field it is the same request, whoever may make it.
    for api in [&p, &all] {
        assert_eq!(api.create("cron", &asked(json!("p"))).await["id"], first["id"]);
    }
    let other = q.create("cron", &asked(Value::Null)).await;
    assert!(other["platform_id"] == "q" && other["id"] != first["id"], "{other}");
    assert_eq!(p.try_create("cron", &keyed(Value::Null)).await.reason(), "KEY_TAKEN");

    let differs = q.try_create("cron", &keyed(json!("p"))).await;
    let rule = "is \"p\", but the header x-platform-id says \"q\"".to_owned();
    assert_eq!((differs.status, differs.violations()), (400, vec![("platform_id".to_owned(), rule.clone())]));
    for (path, field) in [("/jobs?platform_id=p", "platform_id"), ("/executions?platform_id=p", "platform_id")] {
        let answer = q.get(path).await;
        assert_eq!((answer.status, answer.violations()), (400, vec![(field.to_owned(), rule.clone())]), "{path}");
    }
    let many = json!({"jobs": [cron(), keyed(json!("p"))], "request_id": "r"});
    let answer = q.post("/jobs/batch-create", &many).await;
    assert_eq!((answer.status, answer.wrong_fields()), (400, vec!["jobs[1].platform_id".to_owned()]));
    let each = json!({"jobs": [cron(), keyed(json!("p"))], "request_id": "r", "allow_partial_success": true});
    let answer = q.post("/jobs/batch-create", &each).await;
    let made = answer.body["results"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer.body["results"][1]["status"]["code"], 3, "{}", answer.body);
    assert_eq!(q.get(&format!("/jobs/{made}")).await.body["platform_id"], "q");
    assert_eq!(q.post("/jobs/batch-create", &each).await.body, answer.body, "asked for again");
    let others = p.post("/jobs/batch-create", &json!({"jobs": [cron()], "request_id": "r"})).await;
    assert_eq!(others.status, 200, "another platform's request_id is none of its business: {}", others.body);
}

#[tokio::test]
async fn lists_hold_what_is_own_and_global_and_their_tokens_lead_nobody_else() {
    let world = World::start("scope_lists", plan()).await;
    let all = world.api();
    let (p, q) = (all.of_platform("p"), all.of_platform("q"));
    let mut made = Vec::new();
    for api in [&p, &all, &q, &p] {
        made.push(target(api).await);
    }
    let ids = async |api: &Api, path: &str, field: &str| -> Vec<Uuid> {
        pages(api, path, field, 2).await.iter().map(id_of).collect()
    };
    let own_and_global = [made[3], made[1], made[0]];
    assert_eq!(ids(&p, "/jobs", "jobs").await, own_and_global.map(|made| made.0));
    assert_eq!(ids(&p, "/executions", "executions").await, own_and_global.map(|made| made.1));
    assert_eq!(ids(&p, "/jobs?platform_id=p", "jobs").await, [made[3].0, made[0].0]);
    assert_eq!(ids(&all, "/jobs", "jobs").await.len(), 4);
    for (path, field) in [("/jobs?limit=1", "jobs"), ("/executions?limit=1", "executions")] {
        let first = p.get(path).await;
        let next = format!("{path}&page_token={}", first.body["next_page_token"].as_str().expect("a token"));
        assert_eq!(p.get(&next).await.status, 200, "{next}");
        for other in [&q, &all] {
            let answer = other.get(&next).await;
            assert_eq!((answer.status, answer.wrong_fields()), (400, vec!["page_token".to_owned()]), "{field}");
        }
    }
}

#[tokio::test]
async fn a_header_that_names_no_platform_is_refused_by_every_route_and_grpc_has_it_too() {
    let world = World::start("scope_header", plan()).await;
    let api = world.api();
    let (job, execution) = target(&api).await;
    for route in routes() {
        for wrong in ["", "\u{e9}".repeat(201).as_str()] {
            let answer = route.ask(&api.of_platform(wrong), job, execution).await;
            let fields = answer.wrong_fields();
            assert!(answer.status == 400 && fields.contains(&HEADER.to_owned()), "{}: {}", route.call, answer.body);
        }
    }
    let channel = tonic::transport::Channel::from_shared(world.cluster.gateway_url()).expect("a URL");
    let channel = channel.connect().await.expect("the gateway listens");
    let (mut jobs, mut executions) = (JobServiceClient::new(channel.clone()), ExecutionServiceClient::new(channel));
    fn of<T>(message: T, platforms: &[&str]) -> Request<T> {
        let mut request = Request::new(message);
        for platform in platforms {
            request.metadata_mut().append(HEADER, platform.parse().expect("a header's value"));
        }
        request
    }
    let own = id_of(&api.of_platform("p").create("cron", &cron()).await);
    let get = || GetJobRequest { id: own.to_string() };
    let hidden = jobs.get_job(of(get(), &["q"])).await.unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);
    assert_eq!(jobs.get_job(of(get(), &["p"])).await.unwrap().into_inner().platform_id.as_deref(), Some("p"));
    let twice = jobs.get_job(of(get(), &["p", "q"])).await.unwrap_err();
    assert_eq!((twice.code(), twice.message()), (Code::InvalidArgument, "x-platform-id: must be given once"));
    let listed = jobs.list_jobs(of(ListJobsRequest::default(), &["q"])).await.unwrap().into_inner().jobs;
    assert_eq!(listed.into_iter().map(|job| job.id).collect::<Vec<_>>(), [job.to_string()], "the global one");
    let cancel = CancelExecutionRequest { id: execution.to_string(), ..CancelExecutionRequest::default() };
    let refused = executions.cancel_execution(of(cancel, &["q"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.get_details_error_info().expect("a reason").reason, "NOT_OWN");
    let named = refused.get_details_resource_info().expect("which");
    assert_eq!((named.resource_type.as_str(), named.resource_name), ("execution", execution.to_string()));
}
