//! Whatever is sent, what comes back is an answer: no 5xx, no INTERNAL, no UNKNOWN, no panic, and nothing that the descriptors do
//! not know. Requests are made from the descriptors, so that a new field is tried by being there. `CARILLON_FUZZ_CASES` says how
//! many there are of each call, and `CARILLON_FUZZ_SEED` which.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use carillon_proto::json::Shown;
use carillon_testkit::{Database, Redis};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _, Value};
use reqwest::StatusCode;
use serde_json::{Value as Json, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::cleanup;
use crate::gateway::Gateway;
use crate::routes::{self, Refusal, Route};

/// Requests of each call, over gRPC and over JSON each.
const CASES: u32 = 25;
/// Messages in messages, where nothing else ends them.
const LEVELS: u32 = 4;

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Texts that mean something to somebody.
fn text() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "",
        " ",
        "\0",
        "a\0b",
        "\n",
        "\u{feff}",
        "\u{202e}",
        "ä",
        "*",
        "n",
        "a:b",
        "test:echo",
        "default",
        "UTC",
        "Europe/Berlin",
        "90s",
        "1ms",
        "0 2 * * *",
        "* * * * * *",
        "0 0 29 2 *",
        "@hourly",
        "@every 1s",
        "H H * * *",
        "0 0 9 1 1 ? 2099",
        "61 * * * *",
        "\"1\"",
        "true",
        "2026-12-24",
        "9999-12-31",
        "0001-01-01",
        "00000000-0000-0000-0000-000000000000",
        "01a3185c-5000-8a28-b6b7-19d8e4ba20a5",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "' OR 1=1 --",
        "%s%n",
        "{}",
        "$1",
        "name",
        "payload.a",
        "maxRetries",
    ];
    prop_oneof![
        6 => prop::sample::select(KNOWN).prop_map(str::to_owned),
        2 => ".{0,12}",
        1 => "[*0-9,/L#W?H -]{1,20}",
        1 => (0_usize..5_000).prop_map(|length| "x".repeat(length)),
    ]
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop::sample::select(&[0_u32, 1, 2, 3, 50, 100, 101, 1_000, 1_001, 10_000, 10_001, 86_400_000, 604_800_001, 1 << 31, u32::MAX][..]),
        1 => any::<u32>(),
    ]
}

fn seconds() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => prop::sample::select(
            &[0_i64, 1, -1, 1_796_119_200, 4_102_444_800, 7_258_118_400, -62_135_596_800, -62_135_596_801, 253_402_300_799,
              253_402_300_800, -9_223_372_037, 9_223_372_037, i64::MAX, i64::MIN][..]
        ),
        1 => any::<i64>(),
    ]
}

fn nanos() -> impl Strategy<Value = i32> {
    prop_oneof![
        prop::sample::select(&[0, 1, 999_999, 999_999_999, 1_000_000_000, -1, i32::MIN, i32::MAX][..]),
        any::<i32>()
    ]
}

fn single(kind: &Kind, levels: u32, rarity: u32) -> BoxedStrategy<Value> {
    match kind {
        Kind::String => text().prop_map(Value::String).boxed(),
        Kind::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        Kind::Enum(_) => prop_oneof![(-1..8_i32), any::<i32>()].prop_map(Value::EnumNumber).boxed(),
        Kind::Uint32 | Kind::Fixed32 => number().prop_map(Value::U32).boxed(),
        Kind::Uint64 | Kind::Fixed64 => any::<u64>().prop_map(Value::U64).boxed(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => nanos().prop_map(Value::I32).boxed(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => seconds().prop_map(Value::I64).boxed(),
        Kind::Double => prop_oneof![any::<u64>().prop_map(f64::from_bits), Just(-0.0), Just(1e300), Just(30.0)]
            .prop_map(Value::F64)
            .boxed(),
        Kind::Float => any::<f32>().prop_map(Value::F32).boxed(),
        Kind::Bytes => prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Value::Bytes(bytes.into())).boxed(),
        Kind::Message(of) => message(of, levels, if is_own(of) { rarity } else { 2 }).prop_map(Value::Message).boxed(),
    }
}

fn value(field: &FieldDescriptor, levels: u32, rarity: u32) -> BoxedStrategy<Value> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return Just(Value::Map([].into())).boxed() };
        let entries =
            prop::collection::hash_map(text(), single(&entry.map_entry_value_field().kind(), levels, rarity), 0..4);
        return entries
            .prop_map(|entries| {
                Value::Map(entries.into_iter().map(|(key, value)| (MapKey::String(key), value)).collect())
            })
            .boxed();
    }
    if field.is_list() {
        let few = prop::collection::vec(single(&field.kind(), levels, rarity), 0..4);
        let many = (single(&field.kind(), 0, rarity), prop::sample::select(&[50_usize, 51, 300, 1_001][..]));
        return prop_oneof![
            8 => few.prop_map(Value::List),
            1 => many.prop_map(|(value, count)| Value::List(vec![value; count])),
        ]
        .boxed();
    }
    single(&field.kind(), levels, rarity)
}

fn is_own(of: &MessageDescriptor) -> bool {
    of.full_name().starts_with("carillon.")
}

/// A message, each of whose fields is given once in `rarity` times; those that are messages of our own half the time, with few
/// fields.
fn message(of: &MessageDescriptor, levels: u32, rarity: u32) -> BoxedStrategy<DynamicMessage> {
    let of = of.clone();
    if levels == 0 {
        return Just(DynamicMessage::new(of)).boxed();
    }
    let fields: Vec<FieldDescriptor> = of.fields().collect();
    let given = |field: &FieldDescriptor| {
        let is_message = !field.is_list() && matches!(field.kind(), Kind::Message(inner) if is_own(&inner));
        let chance = if is_message { 0.5 } else { 1.0 / f64::from(rarity) };
        prop::option::weighted(chance, value(field, levels - 1, rarity)).boxed()
    };
    let values: Vec<BoxedStrategy<Option<Value>>> = fields.iter().map(given).collect();
    values
        .prop_map(move |values| {
            let mut message = DynamicMessage::new(of.clone());
            for (field, value) in fields.iter().zip(values) {
                if let Some(value) = value {
                    message.set_field(field, value);
                }
            }
            message
        })
        .boxed()
}

/// What is right of a request, so that not all is refused at its first field.
fn right(route: &Route, id: &str) -> DynamicMessage {
    let job = json!({"name": "n", "schedule": "0 2 * * *", "handler_name": "a:b"});
    let whole = match route.input.name() {
        "CreateJobRequest" if route.path.ends_with("once") => {
            json!({"job": {"name": "n", "execute_at": "2200-01-01T00:00:00Z", "handler_name": "a:b"}})
        }
        "CreateJobRequest" if route.path.ends_with("recurring") => {
            json!({"job": {"name": "n", "interval": "90s", "handler_name": "a:b"}})
        }
        "CreateJobRequest" => json!({"job": job}),
        "BatchCreateJobsRequest" => json!({"jobs": [job]}),
        "UpdateJobRequest" => json!({"job": {"id": id}}),
        "SetJobScheduleRequest" => json!({"id": id, "schedule": "0 3 * * *"}),
        "PreviewScheduleRequest" => json!({"schedule": "0 2 * * *"}),
        "ListJobsRequest" | "ListExecutionsRequest" => json!({}),
        _ => json!({"id": id}),
    };
    DynamicMessage::deserialize(route.input.clone(), whole).expect("it is right")
}

/// A request of any shape: at random, or one that is right with some fields at random.
fn request(route: &Route, id: &str) -> BoxedStrategy<DynamicMessage> {
    let base = right(route, id);
    let over = |rarity: u32| {
        let base = base.clone();
        message(&route.input, LEVELS, rarity).prop_map(move |over| merged(base.clone(), over))
    };
    prop_oneof![2 => over(60), 2 => over(20), 1 => over(6), 1 => message(&route.input, LEVELS, 2)].boxed()
}

/// Fields of `over` put into `base`, in messages field by field.
fn merged(mut base: DynamicMessage, over: DynamicMessage) -> DynamicMessage {
    for (field, value) in over.fields() {
        let value = match (base.get_field(&field).into_owned(), value.clone()) {
            (Value::Message(base), Value::Message(over)) if is_own(&base.descriptor()) => {
                Value::Message(merged(base, over))
            }
            (_, value) => value,
        };
        base.set_field(&field, value);
    }
    base
}

fn any_json() -> BoxedStrategy<Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        text().prop_map(Json::from),
    ];
    let inner = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map(text(), inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    });
    inner.boxed()
}

/// A JSON body: what the message is, perhaps with one of its values exchanged for another of any shape; or text that is no JSON.
fn body(route: &Route, id: &str) -> BoxedStrategy<String> {
    let field = route.body.clone();
    let shown = request(route, id).prop_map(move |message| {
        let whole = serde_json::to_value(Shown::set_only(&message)).unwrap_or(Json::Null);
        if field == "*" || field.is_empty() { whole } else { whole[&field].clone() }
    });
    let exchanged = (shown.clone(), any::<prop::sample::Index>(), any_json()).prop_map(|(mut json, at, other)| {
        if let Some(object) = json.as_object_mut().filter(|object| !object.is_empty()) {
            let key = object.keys().nth(at.index(object.len())).cloned().unwrap_or_default();
            object.insert(key, other);
        }
        json
    });
    prop_oneof![
        3 => shown.prop_map(|json| json.to_string()),
        3 => exchanged.prop_map(|json| json.to_string()),
        1 => any_json().prop_map(|json| json.to_string()),
        1 => "[\\[\\]{}:,\"a0-9.eE+\\\\u-]{0,64}",
    ]
    .boxed()
}

/// Path and query.
fn target(route: &Route, id: &str) -> BoxedStrategy<String> {
    let path = route.path.clone();
    let ids = prop_oneof![3 => Just(id.to_owned()), 1 => "[0-9a-f%{}:.-]{1,40}"];
    let names: Vec<String> = route.input.fields().map(|field| field.name().to_owned()).collect();
    let values = prop_oneof![text(), number().prop_map(|number| number.to_string())];
    let parameter = (prop_oneof![prop::sample::select(names), text()], values);
    let query = prop::collection::vec(parameter, 0..4);
    (ids, query)
        .prop_map(move |(id, query)| {
            let path: Vec<&str> =
                path.split('/').map(|part| if part.starts_with('{') { id.as_str() } else { part }).collect();
            let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let query: Vec<String> =
                query.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
            format!("{}?{}", path.join("/"), query.join("&"))
        })
        .boxed()
}

/// What is wrong with a refusal as such.
fn unfit(refusal: &Refusal) -> Option<String> {
    let code = Code::from(refusal.code);
    let ordinary = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::ResourceExhausted,
        Code::Unimplemented,
    ];
    (!ordinary.contains(&code) || refusal.reason.is_empty()).then(|| format!("{refusal:?}"))
}

/// Whether JSON is of the shape that the descriptors say: the first place where it is not.
fn misfit(of: &MessageDescriptor, json: &Json) -> Option<String> {
    let Some(object) = json.as_object() else { return Some(format!("{} is {json}", of.name())) };
    object.iter().find_map(|(key, value)| {
        let Some(field) = of.get_field_by_name(key) else { return Some(format!("{}.{key}", of.name())) };
        let each: Vec<&Json> = match value {
            Json::Array(list) if field.is_list() => list.iter().collect(),
            Json::Null => Vec::new(),
            value => vec![value],
        };
        each.into_iter().find_map(|value| match field.kind() {
            Kind::Message(inner) if inner.full_name().starts_with("carillon.") => misfit(&inner, value),
            Kind::Message(inner) if inner.name() == "Timestamp" && !value.is_string() => {
                Some(format!("{key}: {value}"))
            }
            Kind::String if !value.is_string() => Some(format!("{key}: {value}")),
            Kind::Enum(_) if !value.is_string() => Some(format!("{key}: {value}")),
            Kind::Uint32 if !value.is_u64() => Some(format!("{key}: {value}")),
            Kind::Bool if !value.is_boolean() => Some(format!("{key}: {value}")),
            _ => None,
        })
    })
}

struct Bench {
    gateway: Gateway,
    channel: Channel,
    /// Calls that did what they were asked.
    done: AtomicUsize,
}

impl Bench {
    /// Something for the calls of a path: a new job, or an execution of it.
    async fn something(&self, path: &str) -> Result<String> {
        let id = |answer: Json| answer["id"].as_str().map(str::to_owned).context("no id");
        let job = id(self.gateway.post("/jobs/cron", &cleanup()).await?.1)?;
        if !path.starts_with("/executions/") {
            return Ok(job);
        }
        id(self.gateway.post(&format!("/jobs/{job}/trigger"), &json!({})).await?.1)
    }

    async fn over_grpc(&self, route: &Route, message: DynamicMessage) -> Result<(), String> {
        match routes::call(&self.channel, route, message).await {
            Ok(_) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(status) => unfit(&Refusal::of_status(&status)).map_or(Ok(()), |why| Err(format!("{why} {status:?}"))),
        }
    }

    /// As gRPC-Web, which takes any bytes for a message.
    async fn over_wire(&self, route: &Route, message: &[u8]) -> Result<(), String> {
        let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
        let request = self.gateway.http.post(format!("http://{}/{}", self.gateway.address, route.call));
        let request = request.header("content-type", "application/grpc-web+proto");
        let response =
            request.body([&[0], &length[..], message].concat()).send().await.map_err(|error| error.to_string())?;
        let in_header =
            response.headers().get("grpc-status").and_then(|status| status.to_str().ok()).map(str::to_owned);
        let bytes = response.bytes().await.map_err(|error| error.to_string())?;
        let trailer =
            String::from_utf8_lossy(&bytes).rsplit_once("grpc-status:").map(|(_, rest)| rest.trim().to_owned());
        let status = in_header.or(trailer).unwrap_or_default();
        let number: String = status.chars().take_while(char::is_ascii_digit).collect();
        if ["0", "3", "5", "6", "8", "9", "10"].contains(&number.as_str()) {
            Ok(())
        } else {
            Err(format!("grpc-status {status}"))
        }
    }

    async fn over_json(&self, route: &Route, target: &str, body: String) -> Result<(), String> {
        let request = self.gateway.http.request(route.method.clone(), self.gateway.url(target)).body(body);
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| error.to_string())?;
        if status == StatusCode::NO_CONTENT {
            return Ok(());
        }
        let json: Json = serde_json::from_slice(&bytes).map_err(|error| format!("{status}: {error}"))?;
        let wrong = if status.is_success() { misfit(&route.output, &json) } else { unfit(&Refusal::of_json(&json)) };
        match wrong {
            None if status.as_u16() < 500 || status == StatusCode::NOT_IMPLEMENTED => Ok(()),
            wrong => Err(format!("{status} {json} {wrong:?}")),
        }
    }
}

fn told(outcome: Result<(), String>) -> Result<(), TestCaseError> {
    let panics = PANICS.load(Ordering::Relaxed);
    match outcome {
        _ if panics > 0 => Err(TestCaseError::fail(format!("{panics} panics"))),
        Ok(()) => Ok(()),
        Err(why) => Err(TestCaseError::fail(why)),
    }
}

/// Only what panics in the gateway counts, not a test beside this one.
fn count_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let is_of_a_test = info.location().is_some_and(|location| location.file().contains("/tests/"));
        if !is_of_a_test {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        before(info);
    }));
}

#[test]
fn whatever_is_asked_is_answered_and_no_answer_is_a_defect() -> Result<()> {
    count_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (_database, _redis, bench) = runtime.block_on(async {
        let (database, redis) = (Database::new().await?, Redis::start().await?);
        let gateway = Gateway::start(database.url(), &redis.url()).await?;
        let channel = gateway.channel().await?;
        anyhow::Ok((database, redis, Bench { gateway, channel, done: AtomicUsize::new(0) }))
    })?;
    let cases = setting("CARILLON_FUZZ_CASES", CASES);
    let seed = u64::from(setting("CARILLON_FUZZ_SEED", 1));
    let runner = || {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let config = Config { cases, max_shrink_iters: 300, failure_persistence: None, ..Config::default() };
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    };
    for route in routes::all()? {
        let what = format!("{} {}", route.method, route.path);
        let id = runtime.block_on(bench.something(&route.path))?;
        runner()
            .run(&request(&route, &id), |message| told(runtime.block_on(bench.over_grpc(&route, message))))
            .map_err(|error| anyhow::anyhow!("{what} over gRPC: {error}"))?;
        let done = bench.done.swap(0, Ordering::Relaxed);
        ensure!(done > 0, "of {what} none was right: too little is tried");
        println!("{what}: {done} of {cases} were right");
        let wire = (request(&route, &id), any::<prop::sample::Index>(), any::<u8>());
        runner()
            .run(&wire, |(message, at, byte)| {
                let mut bytes = message.encode_to_vec();
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                told(runtime.block_on(bench.over_wire(&route, &bytes)))
            })
            .map_err(|error| anyhow::anyhow!("{what} by bytes: {error}"))?;
        runner()
            .run(&(target(&route, &id), body(&route, &id)), |(target, body)| {
                told(runtime.block_on(bench.over_json(&route, &target, body)))
            })
            .map_err(|error| anyhow::anyhow!("{what} over JSON: {error}"))?;
    }
    runtime.block_on(async {
        // Whatever was kept of it can be shown.
        let lists = routes::all()?.into_iter().filter(|route| route.output.name().starts_with("List"));
        for route in lists.filter(|route| !route.path.contains('{')) {
            bench
                .over_json(&route, &format!("{}?limit=1000", route.path), String::new())
                .await
                .map_err(anyhow::Error::msg)?;
            bench.over_grpc(&route, DynamicMessage::new(route.input.clone())).await.map_err(anyhow::Error::msg)?;
        }
        ensure!(PANICS.load(Ordering::Relaxed) == 0);
        bench.gateway.stop().await
    })
}
