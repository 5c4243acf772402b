//! Values that come in, go through Postgres and come out again: the same 64 bits of every double, by JSON and by gRPC; what
//! no page can hold fails alone; names of queues come to an end.

use carillon_proto::v1::execution_service_client::ExecutionServiceClient;
use carillon_proto::v1::job_service_client::JobServiceClient;
use carillon_proto::v1::{
    CreateJobRequest, GetExecutionRequest, GetJobRequest, Job, ListExecutionsRequest, TriggerJobRequest,
};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as WireValue};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::api::id_of;
use crate::world::{Plan, World};

fn gateway() -> Plan {
    Plan { dispatchers: 0, executors: 0, ..Plan::default() }
}

fn with_executor() -> Plan {
    Plan { dispatchers: 1, executors: 1, ..Plan::default() }
}

async fn channel(world: &World) -> Channel {
    let url = world.cluster.gateway_url();
    Channel::from_shared(url).expect("a URL").connect().await.expect("the gateway listens")
}

/// A job that fires only when it is triggered.
fn job(handler: &str, payload: &Value) -> Value {
    json!({"name": "values", "schedule": "0 0 1 1 *", "handler_name": handler, "payload": payload,
           "allow_overlap": true, "max_retries": 3, "retry_delay_ms": 100})
}

fn number(value: f64) -> WireValue {
    WireValue { kind: Some(Kind::NumberValue(value)) }
}

fn list(values: Vec<WireValue>) -> WireValue {
    WireValue { kind: Some(Kind::ListValue(ListValue { values })) }
}

fn object(name: &str, value: WireValue) -> Struct {
    Struct { fields: [(name.to_owned(), value)].into() }
}

/// The numbers of a list on the wire.
fn wire_numbers(value: Option<&WireValue>) -> Vec<u64> {
    let Some(WireValue { kind: Some(Kind::ListValue(list)) }) = value else { panic!("{value:?}") };
    let bits = |value: &WireValue| match value.kind {
        Some(Kind::NumberValue(number)) => number.to_bits(),
        ref other => panic!("{other:?}"),
    };
    list.values.iter().map(bits).collect()
}

/// The numbers of a list in JSON, as a client reads them.
fn json_numbers(value: &Value) -> Vec<u64> {
    let list = value.as_array().unwrap_or_else(|| panic!("{value}"));
    list.iter().map(|number| number.as_f64().unwrap_or_else(|| panic!("{number}")).to_bits()).collect()
}

/// The corners, and bit patterns from everywhere.
fn doubles() -> Vec<f64> {
    let mut doubles = vec![
        1.797_693_134_862_315_7e308,
        0.424_519_189_142_513_96,
        0.0,
        -0.0,
        0.1,
        -1.5,
        5e-324,
        -5e-324,
        f64::MIN_POSITIVE,
        f64::MIN,
        9_007_199_254_740_991.0,
        9_007_199_254_740_992.0,
        9_007_199_254_740_994.0,
        -9_007_199_254_740_994.0,
        18_446_744_073_709_551_616.0,
        9_223_372_036_854_775_808.0,
        1e22,
        1e23,
        1e300,
    ];
    // A generator of its own (splitmix64), so that a failure can be seen again.
    let mut state = 14_u64;
    while doubles.len() < 400 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let double = f64::from_bits(bits ^ (bits >> 31));
        if double.is_finite() {
            doubles.push(double);
        }
    }
    doubles
}

#[tokio::test]
async fn every_double_reads_back_with_the_same_bits_by_json_and_grpc() {
    let world = World::start("values_doubles", with_executor()).await;
    let (api, channel) = (world.api(), channel(&world).await);
    let mut jobs = JobServiceClient::new(channel.clone());
    let mut executions = ExecutionServiceClient::new(channel);
    let doubles = doubles();
    let bits: Vec<u64> = doubles.iter().map(|double| double.to_bits()).collect();

    // As a client writes them: the shortest digits that read as the same double.
    let texts: Vec<String> = doubles.iter().map(|double| format!("{double:e}")).collect();
    let body = format!(
        r#"{{"name":"values","schedule":"0 0 1 1 *","handler_name":"test:echo","payload":{{"n":[{0}]}},"metadata":{{"n":[{0}]}}}}"#,
        texts.join(",")
    );
    let created = api.post_text("/jobs/cron", body).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let over_json = id_of(&created.body);
    let request = Job {
        name: "values".into(),
        schedule: "0 0 1 1 *".into(),
        handler_name: "test:echo".into(),
        payload: Some(object("n", list(doubles.iter().copied().map(number).collect()))),
        metadata: Some(object("n", list(doubles.iter().copied().map(number).collect()))),
        ..Job::default()
    };
    let created = jobs.create_cron_job(CreateJobRequest::from(request)).await.expect("it is created").into_inner();
    let over_grpc: Uuid = created.id.parse().expect("an id");

    for id in [over_json, over_grpc] {
        let job = jobs.get_job(GetJobRequest { id: id.to_string() }).await.expect("it is read").into_inner();
        let shown = api.job(id).await;
        for (name, document) in [("payload", &job.payload), ("metadata", &job.metadata)] {
            let on_the_wire = document.as_ref().and_then(|document| document.fields.get("n"));
            assert_eq!(wire_numbers(on_the_wire), bits, "{name} by gRPC");
            assert_eq!(json_numbers(&shown[name]["n"]), bits, "{name} by JSON");
        }
        let listed = api.get("/jobs").await;
        assert_eq!(listed.status, 200, "{}", listed.body);

        // Through a stream or a fetch into a handler, and as a result back into Postgres.
        let execution = api.trigger(id, &json!({})).await;
        let ended = api.execution_in(execution, &["SUCCESS", "FAILED"]).await;
        assert_eq!(json_numbers(&ended["result"]["n"]), bits, "the result by JSON");
        let request = GetExecutionRequest { id: execution.to_string() };
        let ended = executions.get_execution(request).await.expect("it is read").into_inner();
        let Some(WireValue { kind: Some(Kind::StructValue(result)) }) = ended.result else { panic!("{ended:?}") };
        assert_eq!(wire_numbers(result.fields.get("n")), bits, "the result by gRPC");
    }
    for id in [over_json, over_grpc] {
        assert_eq!(api.executions(id).await.len(), 1);
    }
}

#[tokio::test]
async fn a_result_too_deep_fails_alone_and_its_page_stays_readable() {
    let world = World::start("values_deep", with_executor()).await;
    let api = world.api();
    let mut executions = ExecutionServiceClient::new(channel(&world).await);
    let id = id_of(&api.create("cron", &job("test:nest", &json!({"levels": 30}))).await);
    let mut ended = Vec::new();
    // 100,000 levels: more than a stack holds, for whoever writes it, or lets go of it, level by level.
    for (levels, expected) in [(30, "SUCCESS"), (31, "FAILED"), (50, "FAILED"), (200, "FAILED"), (100_000, "FAILED")] {
        let execution = api.trigger(id, &json!({"payload": {"levels": levels}})).await;
        let shown = api.execution_in(execution, &["SUCCESS", "FAILED"]).await;
        assert_eq!(shown["status"], expected, "{levels}: {shown}");
        if expected == "FAILED" {
            let error = shown["error"].as_str().unwrap_or_default();
            assert!(error.contains("nested deeper than 30 levels"), "{shown}");
            assert_eq!(shown["attempt"], 1, "trying again would not mend it: {shown}");
        }
        ended.push(execution);
    }
    let shown = api.executions(id).await;
    assert_eq!(shown.len(), ended.len());
    let request = ListExecutionsRequest { job_id: id.to_string(), ..ListExecutionsRequest::default() };
    let listed = executions.list_executions(request).await.expect("the page is read").into_inner();
    assert_eq!(listed.executions.len(), ended.len());
}

/// Rows from before there were bounds.
#[tokio::test]
async fn what_is_stored_too_deep_already_is_shown_with_the_reason() {
    let world = World::start("values_old_rows", gateway()).await;
    let api = world.api();
    let mut executions = ExecutionServiceClient::new(channel(&world).await);
    let mut jobs = JobServiceClient::new(channel(&world).await);
    let id = id_of(&api.create("cron", &job("test:echo", &json!({"a": 1}))).await);
    for (levels, at) in [(50, 1), (1_000, 2)] {
        let made = sqlx::query(
            "INSERT INTO job_executions (shard, id, job_id, status, scheduled_at, completed_at, result, metadata)
             VALUES (0, $1, $2, 'SUCCESS', now(), now(), (repeat('[', $3) || repeat(']', $3))::jsonb, '{\"n\": 1e400}')",
        )
        .bind(Uuid::from_u128(at))
        .bind(id)
        .bind(levels)
        .execute(&world.pool)
        .await;
        made.expect("it is made");
    }
    let shown = api.executions(id).await;
    let reasons: Vec<&Value> = shown.iter().map(|execution| &execution["result"]["@unreadable"]).collect();
    assert_eq!(reasons, ["nested 1000 levels deep: 30 can be shown", "nested 50 levels deep: 30 can be shown"]);
    assert!(shown[0]["metadata"]["@unreadable"].as_str().is_some_and(|why| why.contains("out of range")), "{shown:?}");
    let request = ListExecutionsRequest { job_id: id.to_string(), ..ListExecutionsRequest::default() };
    let listed = executions.list_executions(request).await.expect("the page is read").into_inner();
    assert_eq!(listed.executions.len(), 2);

    let changed = sqlx::query("UPDATE jobs SET payload = (repeat('{\"a\":', 50) || '1' || repeat('}', 50))::jsonb");
    changed.execute(&world.pool).await.expect("it is changed");
    let listed = api.get("/jobs").await;
    assert_eq!(listed.status, 200, "{}", listed.body);
    let payload = &listed.body["jobs"][0]["payload"];
    assert_eq!(*payload, json!({"@unreadable": "nested 50 levels deep: 30 can be shown"}));
    jobs.get_job(GetJobRequest { id: id.to_string() }).await.expect("it is read");
}

fn wrong_fields(status: &Status) -> Vec<(String, String)> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| (violation.field, violation.description)).collect()
}

#[tokio::test]
async fn what_could_not_be_read_again_is_refused_by_name_over_both() {
    let world = World::start("values_refused", gateway()).await;
    let api = world.api();
    let mut jobs = JobServiceClient::new(channel(&world).await);
    let id = id_of(&api.create("cron", &job("test:echo", &json!({}))).await);
    let too_deep = "must not be nested deeper than 30 levels";

    let text = r#"{"name":"n","schedule":"0 0 1 1 *","handler_name":"test:echo","payload":{"a":{"b":[0,1,2,9007199254740993]}},
        "metadata":{"x":1e400}}"#;
    let refused = api.post_text("/jobs/cron", text).await;
    let found = refused.violations();
    assert_eq!((refused.status, found.len()), (400, 2), "{}", refused.body);
    assert!(found[0].0 == "metadata.x" && found[0].1.contains("1e400"), "{found:?}");
    assert!(found[1].0 == "payload.a.b[3]" && found[1].1.contains("9007199254740993"), "{found:?}");
    for levels in [30, 50, 100_000] {
        let text = format!("{{\"payload\":{{\"a\":{}{}}}}}", "[".repeat(levels), "]".repeat(levels));
        let refused = api.post_text(&format!("/jobs/{id}/trigger"), text).await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert_eq!(refused.violations(), [("payload".to_owned(), too_deep.to_owned())], "{levels}");
    }

    // Beyond what the decoder of protobuf takes too.
    for levels in [30, 40, 100, 500] {
        let value = (0..levels).fold(number(1.0), |inner, _| list(vec![inner]));
        let request =
            TriggerJobRequest { id: id.to_string(), payload: Some(object("a", value)), ..TriggerJobRequest::default() };
        let status = jobs.trigger_job(request).await.expect_err("it is refused");
        assert_eq!(wrong_fields(&status), [("payload".to_owned(), too_deep.to_owned())], "{levels}");
    }
    let payload = object("a", list(vec![number(1.0), number(f64::INFINITY)]));
    let request = TriggerJobRequest { id: id.to_string(), payload: Some(payload), ..TriggerJobRequest::default() };
    let status = jobs.trigger_job(request).await.expect_err("it is refused");
    assert_eq!(wrong_fields(&status), [("payload.a[1]".to_owned(), "must be a finite number, is inf".to_owned())]);
    assert!(api.executions(id).await.is_empty(), "nothing was written");
}

#[tokio::test]
async fn one_name_of_a_queue_too_many_is_refused_by_name() {
    let world = World::start("values_queues", gateway().set("CARILLON_GATEWAY_QUEUES_MAX", "2")).await;
    let api = world.api();
    let mut jobs = JobServiceClient::new(channel(&world).await);
    let in_queue = |queue: &str| {
        let mut body = job("test:echo", &json!({}));
        body["queue"] = json!(queue);
        body
    };
    for queue in ["default", "mail", "mail", "default"] {
        api.create("cron", &in_queue(queue)).await;
    }
    let refused = api.post("/jobs/cron", &in_queue("reports")).await;
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!(8)), "{}", refused.body);
    let rule = "\"reports\" would be one more than the 2 names of queues that gateway.queues_max allows";
    assert_eq!(refused.violations(), [("queue".to_owned(), rule.to_owned())]);
    let request = Job {
        name: "n".into(),
        schedule: "0 0 1 1 *".into(),
        handler_name: "test:echo".into(),
        queue: "reports".into(),
        ..Job::default()
    };
    let status = jobs.create_cron_job(CreateJobRequest::from(request)).await.expect_err("it is refused");
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, format!("queue: {rule}").as_str()));
    let quota = status.get_details_quota_failure().map(|details| details.violations).unwrap_or_default();
    assert_eq!(quota.first().map(|violation| violation.subject.as_str()), Some("gateway.queues_max"));
    api.create("cron", &in_queue("mail")).await;
}
