//! Many jobs at once: all or none, each by itself, asked for again, and how large the request may be.

use carillon_proto::v1::batch_create_jobs_result::Result as Outcome;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_proto::v1::{BatchCreateJobsRequest, BatchCreateJobsResponse, CreateJobRequest, Job};
use chrono::{SecondsFormat, TimeDelta};
use prost::Message as _;
use prost_types::value::Kind;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::api::{Answer, Api};
use crate::load::in_ms;
use crate::world::{LOAD_MAX, Plan, World};

const PATH: &str = "/jobs/batch-create";
const MIB: usize = 1024 * 1024;

fn gateway() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

async fn client(world: &World) -> JobServiceClient<Channel> {
    let channel = Channel::from_shared(world.cluster.gateway_url()).expect("a URL");
    JobServiceClient::new(channel.connect().await.expect("the gateway listens"))
}

fn cron(name: &str) -> Value {
    json!({"name": name, "schedule": "0 2 * * *", "handler_name": "test:echo"})
}

/// The same over gRPC.
fn job(name: &str) -> Job {
    Job { name: name.into(), schedule: "0 2 * * *".into(), handler_name: "test:echo".into(), ..Job::default() }
}

fn request(jobs: Vec<Job>) -> BatchCreateJobsRequest {
    BatchCreateJobsRequest { jobs, ..BatchCreateJobsRequest::default() }
}

/// The ids of an answer whose jobs were all created.
fn ids(answer: &Value) -> Vec<Uuid> {
    let results = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let id = |result: &Value| result["id"].as_str().and_then(|id| id.parse().ok());
    results.iter().map(|result| id(result).unwrap_or_else(|| panic!("{result}"))).collect()
}

fn outcomes(answer: BatchCreateJobsResponse) -> Vec<Outcome> {
    answer.results.into_iter().map(|result| result.result.expect("one of both")).collect()
}

async fn count(api: &Api) -> usize {
    api.get("/jobs?limit=1000").await.body["jobs"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn many_jobs_are_created_at_once_and_fire() {
    let mut world = World::start("many_fire", Plan { dispatchers: 1, executors: 1, ..Plan::default() }).await;
    let first = in_ms(2_000);
    let instants: Vec<_> = (0..1_000).map(|n| first + TimeDelta::milliseconds(n)).collect();
    let jobs: Vec<Value> = instants
        .iter()
        .map(|at| {
            let at = at.to_rfc3339_opts(SecondsFormat::Millis, true);
            json!({"name": at, "execute_at": at, "handler_name": "test:echo", "payload": {"at": at}})
        })
        .collect();
    let answer = world.api().post(PATH, &json!({"jobs": jobs, "allow_past": true})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let ids = ids(&answer.body);
    assert!(ids.is_sorted(), "in the order that they were given in");
    let one = world.api().job(ids[7]).await;
    assert_eq!((&one["name"], &one["type"], &one["revision"]), (&jobs[7]["name"], &json!("ONE_TIME"), &json!(1)));
    world.expected.extend(ids.into_iter().zip(instants));
    world.judge(LOAD_MAX).await;
}

#[tokio::test]
async fn all_are_created_or_none() {
    let world = World::start("many_atomic", gateway().set("CARILLON_GATEWAY_QUEUES_MAX", "2")).await;
    let api = world.api();
    let holder =
        api.create("cron", &json!({"name": "n", "schedule": "@daily", "handler_name": "a:b", "key": "k"})).await;
    let wrong = |answer: &Answer, status: u16, fields: &[&str], reason: &str| {
        assert_eq!((answer.status, answer.wrong_fields()), (status, fields.iter().map(ToString::to_string).collect()));
        assert_eq!(answer.body["details"][0]["reason"], json!(reason), "{}", answer.body);
    };
    let with = |field: &str, value: Value| {
        let mut job = cron("other");
        job[field] = value;
        job
    };

    let jobs = json!([cron("a"), with("schedule", json!("61 * * * *")), with("max_retries", json!("many")), cron("d")]);
    let answer = api.post(PATH, &json!({"jobs": jobs})).await;
    wrong(&answer, 400, &["jobs[1].schedule", "jobs[2].max_retries"], "INVALID_FIELDS");
    let jobs = json!([
        cron("a"),
        with("key", json!("k")),
        with("key", json!("l")),
        with("queue", json!("second")),
        with("queue", json!("third"))
    ]);
    for validate_only in [true, false] {
        let answer = api.post(PATH, &json!({"jobs": jobs, "validate_only": validate_only})).await;
        wrong(&answer, 409, &["jobs[1].key", "jobs[4].queue"], "KEY_TAKEN");
        let named = answer.body["details"].as_array().and_then(|details| {
            details.iter().find(|detail| detail["@type"] == "type.googleapis.com/google.rpc.ResourceInfo")
        });
        assert_eq!(named.map(|named| &named["resource_name"]), Some(&holder["id"]), "{}", answer.body);
    }
    let late = json!({"name": "late", "execute_at": "2020-01-01T00:00:00Z", "handler_name": "a:b"});
    let answer = api.post(PATH, &json!({"jobs": [cron("a"), late]})).await;
    wrong(&answer, 400, &["jobs[1].execute_at"], "INVALID_FIELDS");
    assert_eq!(count(&api).await, 1, "nothing was created");

    let answer = api.post(PATH, &json!({"jobs": [cron("a")], "validate_only": true})).await;
    assert_eq!((answer.status, &answer.body), (200, &json!({"results": [{"id": ""}]})));
    assert_eq!(count(&api).await, 1);
    let many = vec![with("schedule", json!("61 * * * *")); 1_000];
    let answer = api.post(PATH, &json!({"jobs": many})).await;
    assert!(answer.body.to_string().len() < 8_192, "what is wrong is bounded");
}

#[tokio::test]
async fn each_stands_by_itself_if_that_is_asked_for() {
    let world = World::start("many_each", gateway().set("CARILLON_GATEWAY_QUEUES_MAX", "2")).await;
    let api = world.api();
    let mut jobs = client(&world).await;
    let keyed = |key: &str| Job { key: Some(key.into()), ..job(key) };
    let made = jobs.batch_create_jobs(request(vec![keyed("k")])).await.unwrap().into_inner();
    let Outcome::Id(holder) = outcomes(made).remove(0) else { panic!("refused") };

    let given = vec![
        job("a"),
        Job { schedule: "61 * * * *".into(), ..job("b") },
        keyed("k"),
        keyed("l"),
        Job { queue: "second".into(), ..job("e") },
        Job { queue: "third".into(), ..keyed("m") },
        keyed("l"),
    ];
    let request = BatchCreateJobsRequest { allow_partial_success: true, ..request(given) };
    let answer = jobs.batch_create_jobs(request).await.unwrap().into_inner();
    let mut created = Vec::new();
    let mut refused = Vec::new();
    for (place, outcome) in outcomes(answer).into_iter().enumerate() {
        match outcome {
            Outcome::Id(id) => created.push((place, id)),
            Outcome::Status(status) => {
                let details = status.encode_to_vec().into();
                let status = tonic::Status::with_details(Code::from(status.code), status.message, details);
                let violations =
                    status.get_details_bad_request().map(|wrong| wrong.field_violations).unwrap_or_default();
                let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
                let resource = status.get_details_resource_info().map(|info| info.resource_name).unwrap_or_default();
                refused.push((status.code(), reason, violations.into_iter().next().map(|wrong| wrong.field), resource));
            }
        }
    }
    assert_eq!(created.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0, 3, 4]);
    let expected = [
        (Code::InvalidArgument, "INVALID_FIELDS", "jobs[1].schedule", ""),
        (Code::AlreadyExists, "KEY_TAKEN", "jobs[2].key", holder.as_str()),
        (Code::ResourceExhausted, "QUEUES_EXHAUSTED", "jobs[5].queue", ""),
        (Code::InvalidArgument, "INVALID_FIELDS", "jobs[6].key", ""),
    ];
    let expected =
        expected.map(|(code, reason, field, id)| (code, reason.to_owned(), Some(field.to_owned()), id.to_owned()));
    assert_eq!(refused, expected);
    for (place, name) in [(0, "a"), (1, "l"), (2, "e")] {
        assert_eq!(api.job(created[place].1.parse().unwrap()).await["name"], json!(name));
    }
    assert_eq!(count(&api).await, 4);

    // Over JSON too, what could not be read of one of them included; the failure is written as one that is answered alone.
    let answer = api.post(PATH, &json!({"jobs": [cron("f"), {"name": 7}, 9], "allow_partial_success": true})).await;
    let statuses = &answer.body["results"];
    assert_eq!((answer.status, statuses[0]["id"].is_string()), (200, true), "{}", answer.body);
    let alone = api.post("/jobs", &json!({"name": 7})).await.without_request().to_string();
    let of_answer = statuses[1]["status"].to_string();
    assert_eq!(of_answer.replace("jobs[1].", ""), alone);
    assert_eq!(statuses[2]["status"]["message"], json!("jobs[2]: must be an object, is 9"));
    assert_eq!(count(&api).await, 5);
}

#[tokio::test]
async fn asked_for_again_it_has_the_same_answer() {
    let world = World::start("many_again", gateway()).await;
    let api = world.api();
    let mut jobs = client(&world).await;
    let both = json!({"jobs": [cron("a"), cron("b")], "request_id": "r"});
    let first = api.post(PATH, &both).await;
    let mut bare = both.clone();
    bare.as_object_mut().expect("an object").remove("request_id");
    let by_header = api.post_with("idempotency-key", "r", PATH, &bare).await;
    assert_eq!((by_header.status, &by_header.body), (200, &first.body));
    let mut over_grpc = request(vec![job("a"), job("b")]);
    over_grpc.request_id = "r".into();
    let again = outcomes(jobs.batch_create_jobs(over_grpc.clone()).await.unwrap().into_inner());
    let created = ids(&first.body);
    assert_eq!(again, created.iter().map(|id| Outcome::Id(id.to_string())).collect::<Vec<_>>());
    over_grpc.jobs.pop();
    let refused = jobs.batch_create_jobs(over_grpc).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    assert_eq!(refused.get_details_error_info().map(|info| info.reason), Some("REQUEST_ID_REUSED".to_owned()));
    assert_eq!(count(&api).await, 2);

    // What was refused stays refused, whatever has changed since.
    let keyed = json!({"name": "c", "schedule": "@daily", "handler_name": "a:b", "key": "k"});
    let holder = api.create("cron", &keyed).await;
    let some = json!({"jobs": [keyed, cron("d")], "allow_partial_success": true, "request_id": "s"});
    let first = api.post(PATH, &some).await;
    assert_eq!(first.body["results"][0]["status"]["code"], json!(6), "{}", first.body);
    let gone =
        api.ask(reqwest::Method::DELETE, &format!("/jobs/{}", holder["id"].as_str().expect("an id")), None).await;
    assert_eq!(gone.status, 204);
    assert_eq!(api.post(PATH, &some).await.body, first.body);
    assert_eq!(count(&api).await, 3);

    // None of those that were refused together is remembered.
    let wrong = json!({"jobs": [cron("e"), {}], "request_id": "t"});
    assert_eq!(api.post(PATH, &wrong).await.status, 400);
    assert_eq!(api.post(PATH, &json!({"jobs": [cron("e")], "request_id": "t"})).await.status, 200);
    let body = json!({"jobs": [cron("f"), cron("g")], "request_id": "u"});
    let ask = || api.post(PATH, &body);
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    assert!(one.status == 200 && one.body == two.body && two.body == three.body, "{one:?} {two:?} {three:?}");
    assert_eq!(count(&api).await, 6);
}

/// JSON of so many bytes, of jobs whose payloads are `text`, as often as they fit.
fn json_of(bytes: usize, text: &str) -> String {
    let mut body = "{\"jobs\":[".to_owned();
    let job = format!("{{\"name\":\"n\",\"schedule\":\"@daily\",\"handler_name\":\"a:b\",\"payload\":{text}}}");
    while body.len() + job.len() + 3 <= bytes {
        body.push_str(&job);
        body.push(',');
    }
    body.pop();
    body.push_str("]}");
    body.push_str(&" ".repeat(bytes - body.len()));
    body
}

#[tokio::test]
async fn the_request_may_have_eight_mebibytes_and_others_no_more_than_before() {
    let world = World::start("many_large", gateway()).await;
    let api = world.api();
    let mut jobs = client(&world).await.max_encoding_message_size(16 * MIB);
    // A list would be cut into pages.
    let count = async || world.count("SELECT count(*) FROM jobs").await.expect("postgres answers");
    let text = format!("{{\"a\":\"{}\"}}", "x".repeat(200_000));
    // Digits have six times their bytes on the way through protobuf.
    let digits = format!("{{\"a\":[0{}]}}", ",0".repeat(20_000));
    for (bytes, text) in [(8 * MIB, &text), (MIB / 2, &digits)] {
        let before = count().await;
        let answer = api.post_text(PATH, json_of(bytes, text)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let created = ids(&answer.body).len();
        assert!(created > 9, "{created}");
        assert_eq!(count().await, before + i64::try_from(created).expect("few"));
    }
    let answer = api.post_text(PATH, json_of(8 * MIB + 1, &text)).await;
    assert_eq!((answer.status, &answer.body["details"][0]["reason"]), (413, &json!("REQUEST_TOO_LARGE")));
    let answer = api.post_text("/jobs", format!("{{\"name\":\"{}\"}}", "x".repeat(655_360))).await;
    assert_eq!(answer.status, 413, "{}", answer.body);

    let text = |bytes: usize| {
        let text = prost_types::Value { kind: Some(Kind::StringValue("x".repeat(bytes))) };
        Some(prost_types::Struct { fields: [("a".to_owned(), text)].into() })
    };
    let large = |left: usize| Job { payload: text(left), ..job("n") };
    let mut given = request(vec![large(200_000); 42]);
    let mut left = 200_000;
    // Lengths of lengths stay what they are: it comes out to the byte.
    while given.encoded_len() != 8 * MIB {
        left = left + 8 * MIB - given.encoded_len();
        given.jobs[41] = large(left);
    }
    let made = outcomes(jobs.batch_create_jobs(given.clone()).await.unwrap().into_inner());
    assert!(made.len() == 42 && made.iter().all(|outcome| matches!(outcome, Outcome::Id(_))), "{made:?}");
    given.jobs[41] = large(left + 1);
    let refused = jobs.batch_create_jobs(given).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let reason = refused.get_details_error_info().map(|info| info.reason);
    assert_eq!(reason.as_deref(), Some("REQUEST_TOO_LARGE"));
    let refused = jobs.create_job(CreateJobRequest::from(large(4 * MIB))).await.unwrap_err();
    let reason = refused.get_details_error_info().map(|info| info.reason);
    assert_eq!(reason.as_deref(), Some("REQUEST_TOO_LARGE"), "{refused}");
    let refused = jobs.create_job(CreateJobRequest::from(large(3 * MIB))).await.unwrap_err();
    let reason = refused.get_details_error_info().map(|info| info.reason);
    assert_eq!(reason.as_deref(), Some("INVALID_FIELDS"), "{refused}");
}
