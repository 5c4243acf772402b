//! The services without their neighbours: what is refused before anybody is asked, and what is said when nobody answers.

use std::sync::Arc;
use std::time::Duration;

use carillon_core::schedule::{DstGap, DstOverlap};
use carillon_proto::v1;
use carillon_proto::v1::job_service_server::JobService;
use carillon_store::jobs::Definition;
use carillon_store::{Store, StoreOptions};
use carillon_stream::{Redis, RedisOptions};
use prost_types::FieldMask;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::job::{self, Rules};
use super::when::{self, When};
use super::*;
use crate::admission::Admission;
use crate::config::EnumWords;
use crate::json::{KnownMistakes, Mistake};

/// Nobody listens on port 1.
pub(super) fn alone() -> Arc<Backend> {
    let options = StoreOptions {
        acquire_timeout: Duration::from_millis(50),
        ..StoreOptions::new("postgres://nobody@127.0.0.1:1/none", "test")
    };
    let store = Store::connect_lazily(&options).unwrap();
    let redis = Redis::connect_lazily(RedisOptions::new("redis://127.0.0.1:1")).unwrap();
    Arc::new(Backend::new(store, redis, Duration::from_secs(5), 1_024, 1))
}

pub(super) fn wrong(status: &Status) -> Vec<String> {
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

pub(super) fn cron() -> v1::Job {
    v1::Job { name: "n".into(), schedule: "0 2 * * *".into(), handler_name: "a:b".into(), ..v1::Job::default() }
}

/// As `CreateJob` reads it.
pub(super) fn read(job: v1::Job, checks: &mut Checks) -> (Definition, When) {
    let rules = Rules { job_type: None, allow_past: true, payload_bytes_max: 1_024 };
    job::read(job, rules, checks)
}

#[tokio::test]
async fn all_wrong_fields_of_a_job_are_named_at_once() {
    let request = v1::Job {
        schedule: "61 2 * * *".into(),
        timezone: "Mars/Olympus".into(),
        handler_name: "Cleanup".into(),
        handler_type: v1::HandlerType::Http.into(),
        max_executions: Some(0),
        max_retries: Some(101),
        retry_delay_ms: Some(86_400_001),
        retry_backoff: 9,
        retry_delay_cap_ms: Some(604_800_001),
        retry_jitter_percent: Some(101),
        timeout_ms: Some(0),
        priority: 77,
        concurrency: Some(2),
        tags: vec!["ok".into(), String::new()],
        queue: "A queue".into(),
        platform_id: Some(String::new()),
        created_by: "x".repeat(201),
        payload: Some(crate::values::to_struct(serde_json::json!({"text": "x".repeat(1_024)}))),
        ..v1::Job::default()
    };
    let request = v1::CreateJobRequest { request_id: "\0".into(), ..request.into() };
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
            "retry_backoff",
            "retry_delay_cap_ms",
            "retry_delay_ms",
            "retry_jitter_percent",
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
    let request = v1::Job {
        name: "n".into(),
        handler_name: "a:b".into(),
        interval: "50ms".into(),
        start_date: Some(prost_types::Timestamp { seconds: 10, nanos: 0 }),
        end_date: Some(prost_types::Timestamp { seconds: 5, nanos: 0 }),
        ..v1::Job::default()
    };
    let found = wrong(&jobs.create_recurring_job(Request::new(v1::CreateJobRequest::from(request))).await.unwrap_err());
    assert!(found.iter().any(|violation| violation.starts_with("interval: ")), "{found:?}");
    let request = v1::Job { name: "n".into(), ..v1::Job::default() };
    let found = wrong(&jobs.create_one_time_job(Request::new(v1::CreateJobRequest::from(request))).await.unwrap_err());
    assert_eq!(found, ["execute_at: must be given", "handler_name: must be given"]);
}

#[test]
fn a_change_of_overlap_alone_gives_concurrency_its_default() {
    let job = |allow_overlap, concurrency| v1::Job { allow_overlap, concurrency, ..cron() };
    let changed = |current: v1::Job, given: v1::Job, paths: &[&str]| {
        let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
        let mut checks = Checks::default();
        let merged = update::merge(&current, &given, Some(&mask), &mut checks);
        let rules = Rules { job_type: None, allow_past: false, payload_bytes_max: 1_024 };
        let concurrency = job::read(merged, rules, &mut checks).0.concurrency;
        (concurrency, checks.finish().err().map(|status| wrong(&status)))
    };
    let overlap = &["allow_overlap"][..];
    assert_eq!(changed(job(true, Some(0)), job(false, None), overlap), (1, None));
    assert_eq!(changed(job(true, Some(7)), job(false, None), overlap), (1, None));
    assert_eq!(changed(job(false, Some(1)), job(true, None), overlap), (0, None));
    assert_eq!(changed(job(false, Some(1)), job(true, None), &[]), (0, None), "what is given");
    assert_eq!(changed(job(true, Some(7)), job(true, None), overlap), (7, None), "it is no change");
    assert_eq!(changed(job(false, Some(1)), job(true, Some(3)), &["allow_overlap", "concurrency"]), (3, None));
    assert_eq!(changed(job(true, Some(7)), job(false, Some(3)), &["concurrency"]), (3, None));
    let refused = changed(job(false, Some(1)), job(true, Some(3)), &["concurrency"]).1;
    assert_eq!(refused, Some(vec!["concurrency: must be 1 unless allow_overlap is true, is 3".to_owned()]));
    let refused = changed(job(true, Some(7)), job(false, Some(7)), &["allow_overlap", "concurrency"]).1;
    assert_eq!(refused, Some(vec!["concurrency: must be 1 unless allow_overlap is true, is 7".to_owned()]));
}

#[tokio::test]
async fn concurrency_goes_with_overlap() {
    let draft = |request| {
        let mut checks = Checks::default();
        let (definition, _) = read(request, &mut checks);
        (definition.concurrency, checks.is_clean())
    };
    assert_eq!(draft(cron()), (1, true));
    assert_eq!(draft(v1::Job { concurrency: Some(1), ..cron() }), (1, true));
    assert!(!draft(v1::Job { concurrency: Some(0), ..cron() }).1);
    let overlapping = v1::Job { allow_overlap: true, ..cron() };
    assert_eq!(draft(overlapping.clone()), (0, true));
    assert_eq!(draft(v1::Job { concurrency: Some(7), ..overlapping }), (7, true));
}

/// What the JSON side could not read stops every call, whatever else is right about it, before anybody is asked.
#[tokio::test]
async fn no_call_goes_on_with_known_mistakes() {
    let backend = alone();
    let known = KnownMistakes(Arc::new(vec![Mistake::new("nmae", "is not a field")]));
    let transcoder_free_calls = every_call(&backend, &known).await;
    assert_eq!(transcoder_free_calls.len(), 14);
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
    let once = v1::Job {
        name: "n".into(),
        handler_name: "a:b".into(),
        execute_at: Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 }),
        ..v1::Job::default()
    };
    let recurring =
        v1::Job { name: "n".into(), handler_name: "a:b".into(), interval: "1h".into(), ..v1::Job::default() };
    let preview = v1::PreviewScheduleRequest { schedule: "@daily".into(), ..v1::PreviewScheduleRequest::default() };
    let list = v1::ListExecutionsRequest { job_id: id.clone(), ..v1::ListExecutionsRequest::default() };
    let trigger = v1::TriggerJobRequest { id: id.clone(), ..v1::TriggerJobRequest::default() };
    let cancel = v1::CancelExecutionRequest { id: id.clone(), ..v1::CancelExecutionRequest::default() };
    vec![
        jobs.create_job(with(v1::CreateJobRequest::from(cron()), known)).await.unwrap_err(),
        jobs.create_cron_job(with(v1::CreateJobRequest::from(cron()), known)).await.unwrap_err(),
        jobs.create_one_time_job(with(v1::CreateJobRequest::from(once), known)).await.unwrap_err(),
        jobs.create_recurring_job(with(v1::CreateJobRequest::from(recurring), known)).await.unwrap_err(),
        jobs.get_job(with(v1::GetJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.list_jobs(with(v1::ListJobsRequest::default(), known)).await.unwrap_err(),
        jobs.pause_job(with(v1::PauseJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.resume_job(with(v1::ResumeJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.delete_job(with(v1::DeleteJobRequest { id: id.clone() }, known)).await.unwrap_err(),
        jobs.trigger_job(with(trigger, known)).await.unwrap_err(),
        executions.list_executions(with(list, known)).await.unwrap_err(),
        executions.get_execution(with(v1::GetExecutionRequest { id: id.clone() }, known)).await.unwrap_err(),
        executions.cancel_execution(with(cancel, known)).await.unwrap_err(),
        schedules.preview_schedule(with(preview, known)).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn without_postgres_the_answer_says_when_to_try_again() {
    let status = Jobs(alone()).create_cron_job(Request::new(v1::CreateJobRequest::from(cron()))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test]
async fn a_cancel_names_what_is_wrong_with_it() {
    let (status, answer) =
        post(&alone(), "/executions/seven/cancel", serde_json::json!({"reason": "x".repeat(1_001)})).await;
    assert_eq!(status, 400, "{answer}");
    let fields = fields(&answer);
    assert!(
        fields[0].starts_with("id: ") && fields[1] == "reason: must be at most 1000 characters long, is 1001",
        "{fields:?}"
    );
}

#[test]
fn a_key_tells_requests_apart() {
    let of = |request: &[u8], method| key(("s".into(), None), method, "k", request).unwrap().fingerprint;
    assert_eq!(of(b"a", "m"), of(b"a", "m"));
    assert_ne!(of(b"a", "m"), of(b"b", "m"));
    assert_ne!(of(b"a", "m"), of(b"a", "n"));
    assert_eq!(key(("s".into(), None), "m", "", b"a"), None);
}

/// Posts JSON to the services; answers with the HTTP status and the body.
pub(super) async fn post(backend: &Arc<Backend>, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
    let transcoder = crate::json::Transcoder::new(
        services(backend, crate::sizes::MESSAGE_OF_JSON_BYTES_MAX).prepare(),
        640 * 1024,
        EnumWords::Upper,
        Arc::new(Admission::new(1)),
    )
    .unwrap();
    let request = http::Request::post(format!("/api/v1/scheduler{path}"));
    let request = request.body(http_body_util::Full::new(bytes::Bytes::from(body.to_string()))).unwrap();
    let (parts, body) = transcoder.answer(request).await.into_parts();
    let bytes = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    (parts.status.as_u16(), serde_json::from_slice(&bytes).unwrap())
}

/// The wrong fields of an answer, as `field: rule`, in order.
pub(super) fn fields(answer: &serde_json::Value) -> Vec<String> {
    let of_fields = answer["details"].as_array().unwrap_or_else(|| panic!("{answer}")).iter();
    let of_fields = of_fields.filter_map(|detail| detail["field_violations"].as_array()).next();
    let violations = of_fields.unwrap_or_else(|| panic!("{answer}"));
    let text = |json: &serde_json::Value| json.as_str().unwrap().to_owned();
    let mut found: Vec<String> =
        violations.iter().map(|one| format!("{}: {}", text(&one["field"]), text(&one["description"]))).collect();
    found.sort();
    found
}

/// What `docs/schedules.md` says of the API is what the API does.
#[tokio::test]
async fn the_page_about_schedules_is_true() {
    const PAGE: &str = include_str!("../../../../docs/schedules.md");
    let backend = alone();
    let mut examples = 0;
    for block in PAGE.split("```json POST ").skip(1) {
        let (path, rest) = block.split_once('\n').unwrap();
        let (request, rest) = rest.split_once("```\n```json answer\n").unwrap();
        let answer: serde_json::Value = serde_json::from_str(rest.split_once("```").unwrap().0).unwrap();
        let (status, found) = post(&backend, path, serde_json::from_str(request).unwrap()).await;
        if path == "/schedules/preview" {
            assert_eq!((status, &found), (200, &answer));
        } else {
            let rules = answer.as_object().unwrap();
            let mut rules: Vec<String> =
                rules.iter().map(|(field, rule)| format!("{field}: {}", rule.as_str().unwrap())).collect();
            rules.sort();
            assert_eq!((status, fields(&found)), (400, rules));
        }
        examples += 1;
    }
    assert_eq!(examples, 5);
}

#[tokio::test]
async fn a_mistake_is_named_where_the_client_wrote_it() {
    let backend = alone();
    let wrong = async |body: serde_json::Value| {
        let mut whole = serde_json::json!({"name": "n", "handler_name": "a:b"});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let (status, answer) = post(&backend, "/jobs/cron", whole).await;
        assert_eq!(status, 400, "{answer}");
        fields(&answer)
    };
    let json = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(wrong(json("{}")).await, ["schedule: must be given, or else schedules"]);
    assert_eq!(wrong(json(r#"{"schedules":[]}"#)).await, ["schedule: must be given, or else schedules"]);
    let minute = "minute: 61 is outside 0-59 (at 1)";
    // The engine calls a lone line `schedule`, and counts `schedule` as the first of several.
    assert_eq!(wrong(json(r#"{"schedules":["61 * * * *"]}"#)).await, [format!("schedules[0]: {minute}")]);
    assert_eq!(wrong(json(r#"{"schedules":["0 * * * *","61 * * * *"]}"#)).await, [format!("schedules[1]: {minute}")]);
    assert_eq!(
        wrong(json(r#"{"schedule":"@daily","schedules":["61 * * * *",""]}"#)).await,
        [
            format!("schedules[0]: {minute}"),
            "schedules[1]: is empty; five fields are needed, such as 0 2 * * *".to_owned()
        ]
    );
    // What JSON could not read keeps its place and is not reported twice.
    assert_eq!(
        wrong(json(r#"{"schedules":[7,"61 * * * *"],"exclusions":[7,{"cron":"61 * * * *"},{"date":7}]}"#)).await,
        [
            format!("exclusions[1].cron: {minute}"),
            "exclusions[0]: must be an object, is 7".to_owned(),
            "exclusions[2].date: must be a string, is 7".to_owned(),
            "schedules[0]: must be a string, is 7".to_owned(),
            format!("schedules[1]: {minute}"),
        ]
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
    assert_eq!(wrong(json(r#"{"schedules":"@daily"}"#)).await, ["schedules: must be a list, is \"@daily\""]);
    assert_eq!(
        wrong(json(
            r#"{"schedule":"@daily","dst_gap":"often","dst_overlap":9,
            "exclusions":[{},{"date":"2026-12-24","cron":"* * * * *"},{"to":"2026-12-24"},{"date":"2026-12-4 "}]}"#
        ))
        .await,
        [
            "dst_gap: must be one of RUN_AFTER, SKIP, is \"often\"",
            "dst_overlap: must be one of FIRST, LAST, BOTH, is 9",
            "exclusions[0]: must have a date, from and to, or cron",
            "exclusions[1]: must have only one of a date, from with to, and cron",
            "exclusions[2].from: must be given together with to",
            "exclusions[3].date: must be a date such as 2026-12-24, is \"2026-12-4 \"",
        ]
    );
    assert_eq!(
        wrong(json(r#"{"schedule":"@daily","exclusions":[{"cron":"* * * * *"}]}"#)).await,
        ["exclusions: can never fire: the exclusions leave nothing of it"]
    );
}

#[tokio::test]
async fn schedules_and_exclusions_are_bounded() {
    let backend = alone();
    let many = |count: usize, one: serde_json::Value| serde_json::Value::from(vec![one; count]);
    let body = |schedules, exclusions| {
        serde_json::json!({"name": "n", "handler_name": "a:b", "schedule": "@daily", "schedules": schedules,
                           "exclusions": exclusions})
    };
    let day = serde_json::json!({"date": "2026-12-24"});
    // Postgres is away, so what is right is answered with 503.
    let fits = body(many(99, "@hourly".into()), many(1_000, day.clone()));
    assert_eq!(post(&backend, "/jobs/cron", fits).await.0, 503);
    let (_, answer) = post(&backend, "/jobs/cron", body(many(100, "@hourly".into()), many(1_001, day))).await;
    assert_eq!(
        fields(&answer),
        ["exclusions: must be at most 1000, are 1001", "schedules: at most 100 are allowed, 101 were given"]
    );
    let odd = many(1_000, serde_json::json!({"date": "x"}));
    let (_, answer) = post(&backend, "/jobs/cron", body(many(99, "x".into()), odd)).await;
    assert!(fields(&answer).len() <= 40, "{answer}");
}

#[test]
fn only_what_the_clock_tells_is_left_for_the_clock() {
    let now: chrono::DateTime<chrono::Utc> = "2026-11-27T12:00:00Z".parse().unwrap();
    let first = |request: v1::Job| {
        let mut checks = Checks::default();
        let (_, when) = read(request, &mut checks);
        assert!(checks.is_clean(), "{checks:?}");
        let first = when.first_fire(uuid::Uuid::nil(), now);
        first.map(|(spec, at)| (spec, at.unwrap().to_string())).map_err(|wrong| wrong[0].to_string())
    };
    let at = |text: &str| Some(crate::values::to_timestamp(text.parse().unwrap()));
    let past = v1::Job { schedule: "0 0 9 1 1 ? 2020".into(), ..cron() };
    let last = "has no fire after 2026-11-27T12:00:00Z; its last was 2020-01-01T09:00:00Z";
    assert_eq!(first(past.clone()).unwrap_err(), format!("schedule: {last}"));
    let listed = v1::Job { schedule: String::new(), schedules: vec![past.schedule.clone()], ..cron() };
    assert_eq!(first(listed).unwrap_err(), format!("schedules[0]: {last}"));
    let far_end = v1::Job { end_date: at("2090-01-01T00:00:00Z"), ..past };
    assert_eq!(first(far_end).unwrap_err(), format!("schedule: {last}"), "the end is not to blame");
    let ended = v1::Job { end_date: at("2026-11-27T11:00:00Z"), ..cron() };
    assert_eq!(
        first(ended).unwrap_err(),
        "end_date: with it the schedule has no fire after 2026-11-27T12:00:00Z; its last was 2026-11-27T02:00:00Z"
    );
    let out =
        v1::Exclusion { from: Some("2026-11-27".into()), to: Some("9999-12-31".into()), ..v1::Exclusion::default() };
    let excluded = v1::Job { exclusions: vec![out], ..cron() };
    assert!(first(excluded).unwrap_err().starts_with("exclusions: with them the schedule has no fire after"));

    // `@every` counts from the creation, or from the start date.
    let every = v1::Job { schedules: vec!["@every 90m".into()], ..cron() };
    assert_eq!(first(every.clone()).unwrap().1, "2026-11-27 12:00:00 UTC".replace("12:00", "13:30"));
    let start = v1::Job { start_date: at("2026-11-27T11:00:00Z"), ..every };
    let (spec, next) = first(start).unwrap();
    assert_eq!(next, "2026-11-27 12:30:00 UTC");
    assert!(format!("{spec:?}").contains("Every { interval_ms: 5400000, anchor: 2026-11-27T11:00:00Z }"), "{spec:?}");
}

#[test]
fn what_is_not_chosen_stays_unchosen() {
    let chosen_by = |request| {
        let mut checks = Checks::default();
        let (definition, _) = read(request, &mut checks);
        (definition.dst_gap, definition.dst_overlap, checks.is_clean())
    };
    assert_eq!(chosen_by(cron()), (None, None, true));
    assert_eq!(chosen_by(v1::Job { dst_gap: Some(0), dst_overlap: Some(0), ..cron() }), (None, None, true));
    let chosen =
        v1::Job { dst_gap: Some(v1::DstGap::Skip.into()), dst_overlap: Some(v1::DstOverlap::Last.into()), ..cron() };
    assert_eq!(chosen_by(chosen), (Some(DstGap::Skip), Some(DstOverlap::Last), true));
    assert!(!chosen_by(v1::Job { dst_gap: Some(3), ..cron() }).2);
}

#[test]
fn exclusions_read_back_as_they_were_given() {
    let given = [
        r#"{"date":"2026-12-24"}"#,
        r#"{"from":"2026-12-24","to":"2026-12-26","timezone":"Asia/Tokyo"}"#,
        r#"{"cron":"* 0-5 * * *","timezone":"UTC"}"#,
    ];
    let exclusion = |text: &str| {
        let json: std::collections::HashMap<String, String> = serde_json::from_str(text).unwrap();
        let field = |name: &str| json.get(name).cloned();
        v1::Exclusion {
            date: field("date"),
            from: field("from"),
            to: field("to"),
            cron: field("cron"),
            timezone: field("timezone"),
        }
    };
    let given: Vec<v1::Exclusion> = given.into_iter().map(exclusion).collect();
    let mut checks = Checks::default();
    let request = v1::Job { exclusions: given.clone(), ..cron() };
    let (definition, _) = read(request, &mut checks);
    assert!(checks.is_clean(), "{checks:?}");
    assert_eq!(definition.exclusions.into_iter().map(when::exclusion_to_wire).collect::<Vec<_>>(), given);
}

#[tokio::test]
async fn a_preview_needs_postgres_only_for_now() {
    let schedules = Schedules(alone());
    let preview = async |request| {
        use carillon_proto::v1::schedule_service_server::ScheduleService;
        schedules.preview_schedule(Request::new(request)).await.map(tonic::Response::into_inner)
    };
    let from = Some(prost_types::Timestamp { seconds: 1_764_547_200, nanos: 0 });
    let request =
        v1::PreviewScheduleRequest { schedule: "@daily".into(), from, ..v1::PreviewScheduleRequest::default() };
    assert_eq!(preview(request.clone()).await.unwrap().fires.len(), 10);
    let many = preview(v1::PreviewScheduleRequest { count: Some(1_000), ..request.clone() }).await.unwrap();
    assert_eq!((many.fires.len(), many.details.len()), (1_000, 1_000));
    let now = v1::PreviewScheduleRequest { from: None, ..request.clone() };
    assert_eq!(preview(now).await.unwrap_err().code(), Code::Unavailable);

    let of = async |job: u128| {
        let job_id = uuid::Uuid::from_u128(job).to_string();
        let request = v1::PreviewScheduleRequest { schedule: "H H(1-4) * * *".into(), job_id, ..request.clone() };
        preview(request).await.unwrap().description
    };
    assert_eq!(of(1).await, "at 02:04 every day (chosen by H for this job), UTC");
    assert_eq!(of(2).await, "at 02:55 every day (chosen by H for this job), UTC");

    let refused = [
        v1::PreviewScheduleRequest { schedule: String::new(), ..request.clone() },
        v1::PreviewScheduleRequest { interval: "1h".into(), ..request.clone() },
        v1::PreviewScheduleRequest { count: Some(1_001), ..request.clone() },
        v1::PreviewScheduleRequest { count: Some(0), ..request.clone() },
        v1::PreviewScheduleRequest { job_id: "7".into(), ..request.clone() },
        v1::PreviewScheduleRequest { schedules: vec!["@reboot".into()], ..request },
    ];
    let mut found = Vec::new();
    for request in refused {
        found.extend(wrong(&preview(request).await.unwrap_err()));
    }
    assert_eq!(
        found,
        [
            "schedule: must be given, or else schedules, interval or execute_at",
            "interval: must not be given together with schedule",
            "count: must be 1 to 1000, is 1001",
            "count: must be 1 to 1000, is 0",
            "job_id: must be a UUID, is \"7\"",
            "schedules[0]: @reboot has no meaning here: jobs do not belong to a machine (at 1)",
        ]
    );
}

/// A timetable made to cost something: between two of its instants lie 720 hours, each excluded by itself.
#[tokio::test]
async fn a_costly_preview_is_answered() {
    let exclusions: Vec<serde_json::Value> = (0..23)
        .map(|hour| serde_json::json!({"cron": format!("* {hour} * * *")}))
        .chain(["* 23 2-31 * *", "1-59 23 1 * *"].map(|cron| serde_json::json!({"cron": cron})))
        .chain((0..975).map(|_| serde_json::json!({"date": "2026-01-01"})))
        .collect();
    let body = serde_json::json!({"schedule": "* * * * *", "count": 1_000, "from": "2026-02-01T00:00:00Z",
                                  "exclusions": exclusions});
    let (status, answer) = post(&alone(), "/schedules/preview", body).await;
    assert_eq!((status, &answer["fires"][999]), (200, &serde_json::json!("2109-05-01T23:00:00Z")), "{answer}");
}
