//! The services without their neighbours: what is refused before anybody is asked, and what is said when nobody answers.

use std::sync::Arc;
use std::time::Duration;

use carillon_proto::v1;
use carillon_proto::v1::job_service_server::JobService;
use carillon_store::{Store, StoreOptions};
use carillon_stream::{Redis, RedisOptions};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::*;
use crate::json::KnownMistakes;

/// Nobody listens on port 1.
fn alone() -> Arc<Backend> {
    let options = StoreOptions {
        acquire_timeout: Duration::from_millis(50),
        ..StoreOptions::new("postgres://nobody@127.0.0.1:1/none", "test")
    };
    let store = Store::connect_lazily(&options).unwrap();
    let redis = Redis::connect_lazily(RedisOptions::new("redis://127.0.0.1:1")).unwrap();
    Arc::new(Backend::new(store, redis, Duration::from_secs(5), 1_024))
}

fn wrong(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let mut found: Vec<String> = status
        .get_details_bad_request()
        .unwrap()
        .field_violations
        .into_iter()
        .map(|violation| format!("{}: {}", violation.field, violation.description))
        .collect();
    found.sort();
    found
}

fn cron() -> v1::CreateCronJobRequest {
    v1::CreateCronJobRequest {
        name: "n".into(),
        schedule: "0 2 * * *".into(),
        handler_name: "a:b".into(),
        ..v1::CreateCronJobRequest::default()
    }
}

#[tokio::test]
async fn all_wrong_fields_of_a_job_are_named_at_once() {
    let request = v1::CreateCronJobRequest {
        schedule: "61 2 * * *".into(),
        timezone: "Mars/Olympus".into(),
        handler_name: "Cleanup".into(),
        handler_type: Some(v1::HandlerType::Http.into()),
        max_executions: Some(0),
        max_retries: Some(101),
        retry_delay_ms: Some(86_400_001),
        timeout_ms: Some(0),
        priority: Some(77),
        concurrency: Some(2),
        tags: vec!["ok".into(), String::new()],
        queue: "A queue".into(),
        platform_id: Some(String::new()),
        created_by: "x".repeat(201),
        request_id: "\0".into(),
        payload: Some(crate::values::to_struct(serde_json::json!({"text": "x".repeat(1_024)}))),
        ..v1::CreateCronJobRequest::default()
    };
    let status = Jobs(alone()).create_cron_job(Request::new(request)).await.unwrap_err();
    let found = wrong(&status);
    let fields: Vec<&str> = found.iter().map(|violation| violation.split(':').next().unwrap()).collect();
    assert_eq!(
        fields,
        [
            "concurrency",
            "created_by",
            "handler_name",
            "handler_type",
            "max_executions",
            "max_retries",
            "name",
            "payload",
            "platform_id",
            "priority",
            "queue",
            "request_id",
            "retry_delay_ms",
            "schedule",
            "tags[1]",
            "timeout_ms",
            "timezone",
        ],
        "{found:#?}"
    );
    assert!(found.contains(&"max_retries: must be 0 to 100, is 101".to_owned()), "{found:#?}");
    assert!(found.contains(&"payload: must be at most 1024 bytes of JSON, is 1035".to_owned()), "{found:#?}");
}

#[tokio::test]
async fn intervals_and_instants_are_checked() {
    let jobs = Jobs(alone());
    let request = v1::CreateRecurringJobRequest {
        name: "n".into(),
        handler_name: "a:b".into(),
        interval: "50ms".into(),
        start_date: Some(prost_types::Timestamp { seconds: 10, nanos: 0 }),
        end_date: Some(prost_types::Timestamp { seconds: 5, nanos: 0 }),
        ..v1::CreateRecurringJobRequest::default()
    };
    let found = wrong(&jobs.create_recurring_job(Request::new(request)).await.unwrap_err());
    assert!(found.iter().any(|violation| violation.starts_with("interval: ")), "{found:?}");
    let request = v1::CreateOneTimeJobRequest { name: "n".into(), ..v1::CreateOneTimeJobRequest::default() };
    let found = wrong(&jobs.create_one_time_job(Request::new(request)).await.unwrap_err());
    assert_eq!(found, ["execute_at: must be given", "handler_name: must be given"]);
}

#[tokio::test]
async fn concurrency_goes_with_overlap() {
    let draft = |request| {
        let mut checks = Checks::default();
        let draft = definition::cron(request, 1_024, &mut checks);
        (draft.definition.concurrency, checks.is_clean())
    };
    assert_eq!(draft(cron()), (1, true));
    assert_eq!(draft(v1::CreateCronJobRequest { concurrency: Some(1), ..cron() }), (1, true));
    assert!(!draft(v1::CreateCronJobRequest { concurrency: Some(0), ..cron() }).1);
    let overlapping = v1::CreateCronJobRequest { allow_overlap: true, ..cron() };
    assert_eq!(draft(overlapping.clone()), (0, true));
    assert_eq!(draft(v1::CreateCronJobRequest { concurrency: Some(7), ..overlapping }), (7, true));
}

/// What the JSON side could not read stops every call, whatever else is right about it, before anybody is asked.
#[tokio::test]
async fn no_call_goes_on_with_known_mistakes() {
    let backend = alone();
    let known = KnownMistakes(Arc::new(vec![carillon_core::error::FieldViolation::new("nmae", "is not a field")]));
    let transcoder_free_calls = every_call(&backend, &known).await;
    assert_eq!(transcoder_free_calls.len(), 12);
    for status in transcoder_free_calls {
        assert_eq!(wrong(&status), ["nmae: is not a field"]);
    }
}

async fn every_call(backend: &Arc<Backend>, known: &KnownMistakes) -> Vec<Status> {
    use carillon_proto::v1::execution_service_server::ExecutionService;
    use carillon_proto::v1::schedule_service_server::ScheduleService;
    fn with<T>(message: T, known: &KnownMistakes) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(known.clone());
        request
    }
    let id = "01a3185c-5000-8a28-b6b7-19d8e4ba20a5".to_owned();
    let jobs = Jobs(Arc::clone(backend));
    let executions = Executions(Arc::clone(backend));
    let schedules = Schedules(Arc::clone(backend));
    let once = v1::CreateOneTimeJobRequest {
        name: "n".into(),
        handler_name: "a:b".into(),
        execute_at: Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 }),
        ..v1::CreateOneTimeJobRequest::default()
    };
    let recurring = v1::CreateRecurringJobRequest {
        name: "n".into(),
        handler_name: "a:b".into(),
        interval: "1h".into(),
        ..v1::CreateRecurringJobRequest::default()
    };
    let preview = v1::PreviewScheduleRequest { schedule: "@daily".into(), ..v1::PreviewScheduleRequest::default() };
    let list = v1::ListJobExecutionsRequest { job_id: id.clone(), ..v1::ListJobExecutionsRequest::default() };
    let trigger = v1::TriggerJobRequest { id: id.clone(), ..v1::TriggerJobRequest::default() };
    vec![
        jobs.create_cron_job(with(cron(), known)).await.unwrap_err(),
        jobs.create_one_time_job(with(once, known)).await.unwrap_err(),
        jobs.create_recurring_job(with(recurring, known)).await.unwrap_err(),
        jobs.get_job(with(v1::GetJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.list_jobs(with(v1::ListJobsRequest::default(), known)).await.unwrap_err(),
        jobs.pause_job(with(v1::PauseJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.resume_job(with(v1::ResumeJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.delete_job(with(v1::DeleteJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.trigger_job(with(trigger, known)).await.unwrap_err(),
        executions.list_job_executions(with(list, known)).await.unwrap_err(),
        executions.get_execution(with(v1::GetExecutionRequest { id }, known)).await.unwrap_err(),
        schedules.preview_schedule(with(preview, known)).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn without_postgres_the_answer_says_when_to_try_again() {
    let status = Jobs(alone()).create_cron_job(Request::new(cron())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
}

#[test]
fn a_key_tells_requests_apart() {
    let of = |request: &[u8], method| key("s".into(), method, "k", request).unwrap().fingerprint;
    assert_eq!(of(b"a", "m"), of(b"a", "m"));
    assert_ne!(of(b"a", "m"), of(b"b", "m"));
    assert_ne!(of(b"a", "m"), of(b"a", "n"));
    assert_eq!(key("s".into(), "m", "", b"a"), None);
}
