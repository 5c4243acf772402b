//! The JSON side against the real descriptors, with services that only echo what they got.

mod echo;

use carillon_core::error::FieldViolation;
use carillon_core::limits::VALUE_DEPTH_MAX;
use carillon_proto::v1::execution_service_server::ExecutionServiceServer;
use carillon_proto::v1::job_service_server::JobServiceServer;
use http_body_util::{BodyExt as _, Full};

use super::*;
use crate::error_response::invalid;
use echo::Echo;

struct Bench {
    echo: Arc<Echo>,
    transcoder: Transcoder,
}

impl Bench {
    fn new() -> Self {
        Self::with(EnumWords::Upper)
    }

    fn with(words: EnumWords) -> Self {
        let echo = Arc::new(Echo::default());
        let services = GrpcRoutes::new(JobServiceServer::from_arc(Arc::clone(&echo)))
            .add_service(ExecutionServiceServer::from_arc(Arc::clone(&echo)));
        Self {
            echo,
            transcoder: Transcoder::new(services.prepare(), 4_096, words, Arc::new(Admission::new(1))).unwrap(),
        }
    }

    async fn send(&self, request: http::request::Builder, body: &str) -> (http::response::Parts, Json) {
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let (parts, body) = self.transcoder.answer(request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let json = if bytes.is_empty() { Json::Null } else { serde_json::from_slice(&bytes).unwrap() };
        (parts, json)
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, Json) {
        let uri = format!("/api/v1/scheduler{path}");
        let (parts, json) = self.send(Request::builder().method(method).uri(uri), body).await;
        (parts.status.as_u16(), json)
    }

    /// The wrong fields of a request to create a cron job.
    async fn mistakes(&self, body: &str) -> Vec<String> {
        let (status, json) = self.call("POST", "/jobs/cron", body).await;
        assert_eq!(status, 400, "{json}");
        std::mem::take(&mut *self.echo.mistakes.lock().unwrap())
    }
}

#[tokio::test]
async fn a_patch_changes_the_keys_of_its_body_unless_it_names_others() {
    let bench = Bench::new();
    let changed = async |query: &str, body: &str| {
        let (status, job) = bench.call("PATCH", &format!("/jobs/7{query}"), body).await;
        assert_eq!((status, &job["id"]), (200, &Json::from("7")), "{job}");
        serde_json::from_value::<Vec<String>>(job["tags"].clone()).unwrap()
    };
    assert_eq!(changed("", r#"{"id": "7", "maxRetries": null, "name": "n"}"#).await, ["id", "max_retries", "name"]);
    assert_eq!(
        changed("?update_mask=timeoutMs,tags,%20name", r#"{"name": "n"}"#).await,
        ["timeout_ms", "tags", "name"]
    );
    assert!(changed("", "").await.is_empty());
    for none in ["?update_mask=", "?updateMask=,"] {
        let named = changed(none, r#"{"maxRetries": 0, "payload": null, "name": ""}"#).await;
        assert_eq!(named, ["max_retries", "name", "payload"], "a mask that names nothing is none");
    }
    let (status, refused) = bench.call("PATCH", "/jobs/7", r#"{"id": "8"}"#).await;
    assert_eq!(
        (status, &refused["message"]),
        (400, &Json::from("id: is \"8\" in the body, and \"7\" in the path: leave it out of the body"))
    );
}

#[tokio::test]
async fn what_it_was_made_of_is_said_by_a_header_too() {
    let bench = Bench::new();
    let send = async |method: &str, path: &str, etag: &str, body: &str| {
        let uri = format!("/api/v1/scheduler{path}");
        bench.send(Request::builder().method(method).uri(uri).header("if-match", etag), body).await
    };
    for (method, path) in [("PATCH", "/jobs/7"), ("PUT", "/jobs/7/schedule")] {
        for etag in ["\"3\"", "W/\"3\""] {
            let (parts, job) = send(method, path, etag, "{}").await;
            assert_eq!((parts.status.as_u16(), &job["etag"]), (200, &Json::from("\"3\"")), "{job}");
            assert_eq!(parts.headers["etag"], "\"3\"");
        }
        assert_eq!(send(method, path, "*", "{}").await.1["etag"], Json::from(""));
        let (parts, refused) = send(method, path, "\"3\"", r#"{"etag": "\"4\""}"#).await;
        assert_eq!(parts.status.as_u16(), 400, "{refused}");
    }
}

/// Passed over it would delete what somebody else has changed meanwhile.
#[tokio::test]
async fn a_header_that_a_call_does_not_take_or_that_says_nothing_is_refused() {
    let bench = Bench::new();
    let send = async |line: &str, headers: &[(&str, &str)]| {
        let (method, path) = line.split_once(' ').unwrap();
        let request = Request::builder().method(method).uri(format!("/api/v1/scheduler{path}"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let (parts, answer) = bench.send(request, "").await;
        let wrong = &answer["details"][1]["field_violations"][0];
        (parts.status.as_u16(), wrong["field"].to_string() + ": " + &wrong["description"].to_string())
    };
    let none = "must be left out: this call takes none";
    let (key, etag) = ("idempotency-key", "if-match");
    for (line, name, value, rule) in [
        ("DELETE /jobs/7", etag, "\"99\"", none),
        ("DELETE /jobs/7", etag, "", none),
        ("POST /jobs/7/pause", etag, "\"3\"", none),
        ("POST /jobs/7/pause", etag, "*", none),
        ("POST /executions/7/cancel", etag, "\"3\"", none),
        ("POST /jobs", etag, "\"3\"", none),
        ("PATCH /jobs/7", etag, "", "is empty: leave it out, or give the etag of an answer, or *"),
        ("PATCH /jobs/7", etag, "\"1\", \"2\"", "must be one etag, is a list"),
        ("PUT /jobs/7/schedule", etag, "\"\u{e4}\"", "must be of visible ASCII characters"),
        ("POST /jobs", key, "", "is empty: leave it out, or give 1 to 200 characters"),
        ("POST /jobs", key, "\u{e4}", "must be of visible ASCII characters"),
    ] {
        let refused = send(line, &[(name, value)]).await;
        assert_eq!(refused, (400, format!("\"{name}\": \"{rule}\"")), "{line} {value}");
    }
    for (line, name) in [("PATCH /jobs/7", etag), ("POST /jobs", key)] {
        let refused = send(line, &[(name, "\"1\""), (name, "\"1\"")]).await;
        assert_eq!(refused, (400, format!("\"{name}\": \"must be given once\"")));
    }
    for line in ["DELETE /jobs/7", "PATCH /jobs/7", "POST /jobs/7/pause", "GET /jobs"] {
        assert!(send(line, &[(key, "k")]).await.0 < 300, "{line} may be made again anyhow");
    }
}

#[tokio::test]
async fn enums_are_answered_in_lower_case_where_that_is_set() {
    for (words, status) in [(EnumWords::Upper, "QUEUED"), (EnumWords::Lower, "queued")] {
        let (_, execution) = Bench::with(words).call("POST", "/jobs/7/trigger", "").await;
        assert_eq!(execution["status"], Json::from(status));
    }
}

#[tokio::test]
async fn numbers_in_a_query_are_those_of_json_and_enums_may_be_given_by_theirs() {
    let bench = Bench::new();
    for query in ["limit=10&status=2", "limit=1e1&status=PAUSED", "limit=10.0&status=paused"] {
        assert_eq!(bench.call("GET", &format!("/jobs?{query}"), "").await.0, 200, "{query}");
        let list = bench.echo.list.lock().unwrap().take().unwrap();
        assert_eq!((list.limit, list.status), (Some(10), 2), "{query}");
    }
    for query in [
        "limit=%2B1",
        "limit=01",
        "limit=1.5",
        "limit=%201",
        "limit=0x1",
        "limit=",
        "status=9",
        "status=-1",
        "status=+2",
    ] {
        assert_eq!(bench.call("GET", &format!("/jobs?{query}"), "").await.0, 400, "{query}");
    }
}

/// An answer may hold failures: each as it would be answered alone.
#[tokio::test]
async fn a_failure_within_an_answer_is_written_as_a_failure() {
    let bench = Bench::new();
    let (status, answer) = bench.call("POST", "/jobs/batch-create", r#"{"request_id": "r"}"#).await;
    let of_failure = bench.transcoder.error_body(&invalid(&[FieldViolation::new("jobs[1]", "is odd")], 0));
    let of_failure: Json = serde_json::from_slice(&of_failure).unwrap();
    assert_eq!(of_failure["details"].as_array().map(Vec::len), Some(2), "{of_failure}");
    assert_eq!((status, answer), (200, serde_json::json!({"results": [{"id": "r"}, {"status": of_failure}]})));
}

/// Of more mistakes than are listed each element's first one is known: none is taken for right.
#[tokio::test]
async fn no_element_that_could_not_be_read_goes_unnoticed() {
    let bench = Bench::new();
    let job = serde_json::json!({"name": 1, "max_retries": "x", "timeout_ms": "y"});
    let body = serde_json::json!({"jobs": vec![job; 1_000], "request_id": 5, "validate_only": 1});
    assert_eq!(bench.call("POST", "/jobs/batch-create", &body.to_string()).await.0, 400);
    let mistakes = std::mem::take(&mut *bench.echo.mistakes.lock().unwrap());
    for place in 0..1_000 {
        assert!(mistakes.iter().any(|mistake| mistake.starts_with(&format!("jobs[{place}]."))), "{place}");
    }
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("request_id: ")));
    assert!(mistakes.len() <= 1_050, "{}", mistakes.len());
}

/// Only 50 are listed; who mends these should know how far he is.
#[tokio::test]
async fn all_that_is_wrong_is_counted_however_much_it_is() {
    let bench = Bench::new();
    let counted = async |method: &str, path: &str, body: &str| {
        let (status, json) = bench.call(method, path, body).await;
        assert_eq!(status, 400, "{json}");
        let violations = json["details"][1]["field_violations"].as_array().unwrap();
        let last = violations.last().unwrap();
        assert!(last["field"].is_null(), "{last}");
        let more: usize = last["description"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap();
        let said = format!("(and {} more)", violations.len() + more - 2);
        assert!(json["message"].as_str().unwrap().ends_with(&said), "{json}");
        violations.len() - 1 + more
    };
    let fields = |count: usize| (0..count).map(|at| format!("\"f{at}\":1")).collect::<Vec<_>>().join(",");
    assert_eq!(counted("POST", "/jobs", &format!("{{{}}}", fields(300))).await, 300);
    let jobs = vec![format!("{{{}}}", fields(60)); 3].join(",");
    assert_eq!(counted("POST", "/jobs/batch-create", &format!("{{\"jobs\":[{jobs}]}}")).await, 180);
    let query: Vec<String> = (0..=100).map(|at| format!("a{at}=1")).collect();
    assert_eq!(counted("GET", &format!("/jobs?{}", query.join("&")), "").await, 101);
}

/// The route table is part of the contract: a change of it must be seen in review.
#[test]
fn the_routes_are_those_of_the_committed_table() {
    let committed = include_str!("../../tests/routes.txt");
    assert_eq!(describe_routes().unwrap(), committed, "if this change is meant, change tests/routes.txt");
}

#[tokio::test]
async fn a_create_is_201_and_every_field_is_there() {
    let bench = Bench::new();
    let (status, json) = bench
        .call(
            "POST",
            "/jobs/cron",
            r#"{"name":"n","maxRetries":"0","priority":"high","payload":{"days":30,"x":0.5,"l":[null,true]},
            "tags":["a"],"start_date":"2027-01-01T01:00:00+01:00","timezone":null}"#,
        )
        .await;
    assert_eq!(status, 201, "{json}");
    assert_eq!(json["name"], "n");
    assert_eq!(json["payload"].to_string(), r#"{"days":30,"l":[null,true],"x":0.5}"#);
    for (field, value) in [
        ("description", "\"\""),
        ("next_run", "null"),
        ("max_retries", "null"),
        ("executions_count", "0"),
        ("tags", "[]"),
        ("max_executions", "null"),
        ("allow_overlap", "false"),
        ("metadata", "null"),
        ("platform_id", "null"),
    ] {
        assert_eq!(json[field].to_string(), value, "{field}");
    }
    let seen = bench.echo.created.lock().unwrap().take().unwrap().job.unwrap();
    assert_eq!((seen.max_retries, seen.priority, seen.retry_delay_ms), (Some(0), 3, None));
    assert_eq!(seen.start_date.unwrap().seconds, 1_798_761_600);
    assert_eq!(seen.tags, ["a"]);
}

#[tokio::test]
async fn all_mistakes_are_named_at_once_by_path_and_rule() {
    let bench = Bench::new();
    let body = r#"{"name":7,"nmae":"x","priority":"urgent","max_retries":-1,"timeout_ms":1.5,"tags":["a",null,3],"payload":[],
        "allow_overlap":"yes","start_date":"tomorrow","retryDelayMs":1,"retry_delay_ms":2,"handler_type":9,
        "metadata":{"id":9007199254740993,"in":{"n":-9007199254740993}}}"#;
    let mut found = bench.mistakes(body).await;
    found.sort();
    assert_eq!(
        found,
        [
            "allow_overlap: must be true or false, is \"yes\"",
            "handler_type: must be one of FUNCTION, AGENT, WORKFLOW, HTTP, is 9",
            "max_retries: must be a whole number from 0 to 4294967295, is -1",
            "metadata.id: the integer 9007199254740993 is beyond ±2^53 and would lose digits: send it as a string",
            "metadata.in.n: the integer -9007199254740993 is beyond ±2^53 and would lose digits: send it as a string",
            "name: must be a string, is 7",
            "nmae: is not a field of Job",
            "payload: must be an object, is a list",
            "priority: must be one of LOW, MEDIUM, HIGH, CRITICAL, is \"urgent\"",
            "retry_delay_ms: is given twice, in both spellings",
            "start_date: must be an instant as RFC 3339 has it, such as \"2027-12-01T10:00:00Z\", is \"tomorrow\"",
            "tags[1]: must be a string, is null",
            "tags[2]: must be a string, is 3",
            "timeout_ms: must be a whole number from 0 to 4294967295, is 1.5",
        ]
    );
    let many: Vec<String> = (0..1_000).map(|i| format!("\"f{i}\":1")).collect();
    let many = format!("{{{}}}", many[..300].join(","));
    assert_eq!(bench.mistakes(&many).await.len(), 50, "the list is bounded");
    assert_eq!(bench.mistakes("[]").await, ["body: must be an object, is a list"]);
}

#[tokio::test]
async fn an_error_has_code_message_and_typed_details() {
    let bench = Bench::new();
    let (status, json) = bench.call("POST", "/jobs/cron", r#"{"nmae":"x"}"#).await;
    assert_eq!((status, &json["code"]), (400, &Json::from(3)));
    assert_eq!(
        json["details"].to_string(),
        r#"[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","domain":"carillon","reason":"INVALID_FIELDS"},{"@type":"type.googleapis.com/google.rpc.BadRequest","field_violations":[{"description":"is not a field of Job","field":"nmae"}]}]"#
    );
    let (status, json) = bench.call("GET", "/executions/7", "").await;
    assert_eq!(
        (status, json.to_string()),
        (404, r#"{"code":5,"details":[],"message":"no such execution"}"#.to_owned())
    );
    assert_eq!(bench.call("POST", "/jobs/7/resume", "").await.0, 400);
    assert_eq!(bench.call("POST", "/jobs/recurring", "{}").await.0, 409);

    let request = Request::builder().method("POST").uri("/api/v1/scheduler/jobs/once");
    let (parts, json) = bench.send(request, "{}").await;
    assert_eq!((parts.status.as_u16(), parts.headers["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(json["details"][0]["retry_delay"], "1s");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_json() {
    let bench = Bench::new();
    for path in ["/nothing", "/jobs/7/", "/jobs//pause", "/jobs/%ff", ""] {
        let (status, json) = bench.call("GET", path, "").await;
        assert_eq!((status, &json["code"]), (404, &Json::from(5)), "{path}");
    }
    let request = Request::builder().method("PUT").uri("/api/v1/scheduler/jobs/7");
    let (parts, json) = bench.send(request, "").await;
    assert_eq!((parts.status.as_u16(), &json["code"]), (405, &Json::from(12)));
    assert_eq!(parts.headers["allow"], "GET, PATCH, DELETE");
    let (status, json) = bench.call("GET", "/jobs/a%2Fb%20c", "").await;
    assert_eq!((status, &json["id"]), (200, &Json::from("a/b c")));
    assert_eq!(bench.call("HEAD", "/jobs/7", "").await.0, 200);
}

#[tokio::test]
async fn bodies_are_bounded_and_must_be_json() {
    let bench = Bench::new();
    let (status, json) = bench.call("POST", "/jobs/cron", &format!("{{\"name\":\"{}\"}}", "x".repeat(5_000))).await;
    assert_eq!((status, json["message"].as_str()), (413, Some("body: is larger than 4096 bytes")));
    let (status, json) = bench.call("POST", "/jobs/cron", "{\"name\":}").await;
    assert_eq!(status, 400);
    assert_eq!(json["message"], "body: is not JSON: expected value at line 1 column 9");
    assert_eq!(bench.call("POST", "/jobs/7/pause", "").await.0, 200, "no body is an empty object");
    assert_eq!(bench.call("POST", "/jobs/7/pause", " {} ").await.0, 200);
    assert_eq!(bench.call("POST", "/jobs/7/pause", r#"{"id":"7"}"#).await.0, 200);
    assert_eq!(bench.call("POST", "/jobs/7/pause", r#"{"id":"8"}"#).await.0, 400, "not the id of the path");
    assert_eq!(bench.call("DELETE", "/jobs/7", "").await, (204, Json::Null));
    assert_eq!(bench.call("DELETE", "/jobs/7", "{}").await.0, 204);
    assert_eq!(bench.call("DELETE", "/jobs/7", r#"{"force":true}"#).await.0, 400);
}

#[tokio::test]
async fn queries_are_read_in_both_spellings_and_refused_by_name() {
    let bench = Bench::new();
    assert_eq!(bench.call("GET", "/jobs?type=cron&status=ACTIVE&limit=5&offset=10&&", "").await.0, 200);
    let seen = bench.echo.list.lock().unwrap().take().unwrap();
    assert_eq!((seen.r#type, seen.status, seen.limit, seen.offset), (1, 1, Some(5), 10));
    let (_, json) = bench.call("GET", "/jobs?limit=5&limit=6&page=2&status=odd&offset=-1&type=%zz&limit.x=1", "").await;
    let mut found = bench.echo.mistakes.lock().unwrap().clone();
    found.sort();
    assert_eq!(
        found,
        [
            "limit.x: is not a parameter of this call",
            "limit: is given twice, the second time as \"6\"",
            "offset: must be a whole number from 0 to 4294967295, is \"-1\"",
            "page: is not a parameter of this call",
            "query: \"type=%zz\" is not percent-encoded UTF-8",
            "status: must be one of ACTIVE, PAUSED, COMPLETED, CANCELLED, is \"odd\"",
        ],
        "{json}"
    );
    // A zero, too, is given once.
    for twice in ["offset=0&offset=0", "name=&name=", "status=0&status=1", "namePrefix=&name_prefix=a"] {
        assert_eq!(bench.call("GET", &format!("/jobs?{twice}"), "").await.0, 400, "{twice}");
    }
    assert_eq!(bench.call("GET", "/jobs/7/executions?job_id=8", "").await.0, 400, "the path binds it");
    assert_eq!(bench.call("POST", "/jobs/cron?name=x", "{}").await.0, 400, "the body has all fields");
}

#[tokio::test]
async fn the_trace_context_goes_along() {
    let bench = Bench::new();
    let request = Request::builder().uri("/api/v1/scheduler/jobs").header("traceparent", "00-a-b-01");
    bench.send(request, "").await;
    assert_eq!(bench.echo.traceparent.lock().unwrap().as_deref(), Some("00-a-b-01"));
}

#[tokio::test]
async fn a_page_of_another_origin_cannot_post_by_a_form() {
    let bench = Bench::new();
    let post = || Request::builder().method("POST").uri("/api/v1/scheduler/jobs/cron");
    let form = "application/x-www-form-urlencoded";
    assert_eq!(bench.send(post().header("content-type", form), "{}").await.0.status, 201, "curl -d");
    let foreign = post().header("content-type", form).header("origin", "https://evil.example");
    assert_eq!(bench.send(foreign, "{}").await.0.status, 415);
    let own = post().header("content-type", "application/json; charset=utf-8").header("origin", "https://own.example");
    assert_eq!(bench.send(own, "{}").await.0.status, 201);
}

/// The deepest accepted document must also be accepted by protobuf's decoder; a deeper one is refused by its field's name.
#[tokio::test]
async fn the_deepest_document_passes_through() {
    let bench = Bench::new();
    // The payload itself is one level.
    let levels = VALUE_DEPTH_MAX - 1;
    for (open, close) in [("{\"a\":", "}"), ("[", "]")] {
        let body = |levels: usize| {
            format!("{{\"payload\":{{\"p\":{}1{}}},\"nmae\":1}}", open.repeat(levels), close.repeat(levels))
        };
        let (status, json) = bench.call("POST", "/jobs/cron", &body(levels).replace(",\"nmae\":1", "")).await;
        assert_eq!(status, 201, "{json}");
        for deeper in [levels + 1, 50, 150, 400] {
            let found = bench.mistakes(&body(deeper)).await;
            assert_eq!(found, ["nmae: is not a field of Job", "payload: must not be nested deeper than 30 levels"]);
        }
    }
}

/// As a client wrote it, before a double was made of it.
#[tokio::test]
async fn numbers_that_would_change_are_named_by_path() {
    let bench = Bench::new();
    let body = r#"{"payload":{"a":{"b":[1,2,3,1e400]},"c":18446744073709551617,"d":1e-400,"ok":[1e300,-0.0,9007199254740992]},
        "metadata":{"id":9007199254740993},"max_retries":1e400}"#;
    let mut found = bench.mistakes(body).await;
    found.sort();
    assert_eq!(
        found,
        [
            "max_retries: must be a whole number from 0 to 4294967295, is 1e400",
            "metadata.id: the integer 9007199254740993 is beyond ±2^53 and would lose digits: send it as a string",
            "payload.a.b[3]: the number 1e400 is beyond ±1.8e308, more than a double holds: send it as a string",
            "payload.c: the integer 18446744073709551617 is beyond ±2^53 and would lose digits: send it as a string",
            "payload.d: the number 1e-400 is nearer to 0 than any double: send it as a string",
        ]
    );
}

mod no_input_panics {
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = Json> {
        let names = "(name|payload|tags|priority|max_retries|maxRetries|start_date|metadata|[a-z\\x00.]{0,3})";
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            ".{0,8}".prop_map(Json::from),
            "[0-9T:Z+.-]{0,24}".prop_map(Json::from),
        ];
        leaf.prop_recursive(6, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
                prop::collection::btree_map(names, inner, 0..6).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    fn routes() -> Routes {
        Routes::from_descriptors(&carillon_proto::descriptors()).unwrap()
    }

    proptest! {
        #[test]
        fn of_a_body(json in json()) {
            let routes = routes();
            for path in ["/jobs/cron", "/jobs/once", "/jobs/recurring", "/jobs/7/trigger", "/schedules/preview"] {
                let path = format!("/api/v1/scheduler{path}");
                let Found::Route(route, values) = routes.find(&Method::POST, &path) else { panic!("{path}") };
                let json = document::parse(json.to_string().as_bytes()).unwrap();
                let (message, _) = route.request(values, "", Some(&json));
                // What was read can also be shown.
                serde_json::to_vec(&Shown::whole(&message, EnumWords::Upper)).unwrap();
            }
        }

        #[test]
        fn of_text(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}:,\"a0-9.eE+-]{0,64}") {
            let _ = document::parse(&bytes);
            let _ = document::parse(text.as_bytes());
        }

        #[test]
        fn of_a_query(query in "[a-z_.=&%0-9A-F+]{0,80}", path in "[a-z/%0-9:{}.]{0,40}") {
            let routes = routes();
            let Found::Route(route, values) = routes.find(&Method::GET, "/api/v1/scheduler/jobs") else { panic!() };
            route.request(values, &query, None);
            routes.find(&Method::GET, &path);
            routes.find(&Method::GET, &format!("/api/v1/scheduler/jobs/{path}"));
        }
    }
}
