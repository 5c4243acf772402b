//! A client of the JSON API, as a user would write one.

use std::time::{Duration, Instant};

use anyhow::ensure;
use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::soon;

/// The states in which an execution has ended.
pub(crate) const FINAL: [&str; 5] = ["SUCCESS", "FAILED", "TIMEOUT", "CANCELLED", "SKIPPED"];

/// Where the calls are.
pub(crate) const BASE: &str = "/api/v1/scheduler";

/// What an answer may take while others ask for much: `postgres.acquire_timeout`, and the slowness of a machine that is busy with
/// other tests.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// A gateway.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    client: Client,
    url: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<String>,
    pub(crate) allow: Option<String>,
    pub(crate) body: Value,
}

impl Api {
    pub(crate) fn new(url: String) -> Self {
        let client = Client::builder().timeout(Duration::from_secs(15)).build().expect("a client");
        Self { client, url }
    }

    /// The same gateway, for a caller of that platform.
    pub(crate) fn of_platform(&self, platform: &str) -> Self {
        let value = HeaderValue::from_bytes(platform.as_bytes()).expect("a header's value");
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-platform-id"), value)]);
        let client = Client::builder().timeout(Duration::from_secs(15)).default_headers(headers).build();
        Self { client: client.expect("a client"), url: self.url.clone() }
    }

    /// One request; `path` begins after [`BASE`].
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.try_ask(method, path, body).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// The same; an error if the gateway cannot be reached.
    pub(crate) async fn try_ask(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{BASE}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        Answer::read(request.send().await?).await
    }

    /// A body as it is written, and its content type.
    pub(crate) async fn post_text(&self, path: &str, text: impl Into<String>) -> Answer {
        let request = self.client.post(format!("{}{BASE}{path}", self.url));
        let request = request.header("content-type", "application/json").body(text.into());
        let response = request.send().await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        Answer::read(response).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// With a header.
    pub(crate) async fn post_with(&self, header: &str, value: &str, path: &str, body: &Value) -> Answer {
        self.ask_with(header, value, Method::POST, path, body).await
    }

    /// The same, by any method.
    pub(crate) async fn ask_with(&self, header: &str, value: &str, method: Method, path: &str, body: &Value) -> Answer {
        let request = self.client.request(method, format!("{}{BASE}{path}", self.url)).header(header, value).json(body);
        let response = request.send().await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        Answer::read(response).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// Changes a job, which must be accepted; answers with it.
    pub(crate) async fn update(&self, job: Uuid, change: &Value) -> Value {
        let answer = self.try_update(job, change).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// The same, whatever comes of it.
    pub(crate) async fn try_update(&self, job: Uuid, change: &Value) -> Answer {
        self.ask(Method::PATCH, &format!("/jobs/{job}"), Some(change)).await
    }

    /// Creates a job (`cron`, `once`, `recurring`) that must be accepted.
    pub(crate) async fn create(&self, kind: &str, body: &Value) -> Value {
        let answer = self.try_create(kind, body).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    }

    /// The same, whatever comes of it. What is said beside the job goes into the query.
    pub(crate) async fn try_create(&self, kind: &str, body: &Value) -> Answer {
        let mut job = body.clone();
        let mut take = |name: &str| job.as_object_mut().and_then(|job| job.remove(name));
        let beside = ["request_id", "allow_past"].map(|name| take(name).map(|value| (name, value)));
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let query: Vec<String> = beside
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{name}={}", text(value).replace(' ', "%20")))
            .collect();
        self.post(&format!("/jobs/{kind}?{}", query.join("&")), &job).await
    }

    /// Fires a job now; answers with the execution's id.
    pub(crate) async fn trigger(&self, job: Uuid, body: &Value) -> Uuid {
        let answer = self.post(&format!("/jobs/{job}/trigger"), body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        id_of(&answer.body)
    }

    /// A job.
    pub(crate) async fn job(&self, id: Uuid) -> Value {
        let answer = self.get(&format!("/jobs/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// An execution.
    pub(crate) async fn execution(&self, id: Uuid) -> Value {
        let answer = self.get(&format!("/executions/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// The executions of a job, newest first.
    pub(crate) async fn executions(&self, job: Uuid) -> Vec<Value> {
        let answer = self.get(&format!("/jobs/{job}/executions?limit=1000")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["executions"].as_array().cloned().expect("a list")
    }

    /// A call that writes and one that reads are served in time, whatever else goes on. The job that is made does not fire.
    pub(crate) async fn assert_serves(&self) {
        let body = json!({"name": "ordinary", "schedule": "0 0 1 1 *", "handler_name": "test:echo"});
        for (method, path, body, status) in
            [(Method::POST, "/jobs/cron", Some(&body), 201), (Method::GET, "/jobs?limit=5", None, 200)]
        {
            let asked = Instant::now();
            let answer = self.ask(method, path, body).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.body);
            assert!(asked.elapsed() < ANSWER_MAX, "{path} took {:?}", asked.elapsed());
        }
    }

    /// Waits until an execution stands in one of `statuses`.
    pub(crate) async fn execution_in(&self, id: Uuid, statuses: &[&str]) -> Value {
        soon(&format!("execution {id} to be {statuses:?}"), || async {
            let execution = self.execution(id).await;
            let stands = execution["status"].as_str().is_some_and(|status| statuses.contains(&status));
            ensure!(stands, "{execution}");
            anyhow::Ok(execution)
        })
        .await
    }

    /// Waits until a job stands in `status`.
    pub(crate) async fn job_in(&self, id: Uuid, status: &str) -> Value {
        soon(&format!("job {id} to be {status}"), || async {
            let job = self.job(id).await;
            ensure!(job["status"] == status, "{job}");
            anyhow::Ok(job)
        })
        .await
    }
}

impl Answer {
    async fn read(response: Response) -> reqwest::Result<Self> {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, retry_after, allow) = (response.status().as_u16(), header("retry-after"), header("allow"));
        let bytes = response.bytes().await?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)))
        };
        Ok(Self { status, retry_after, allow, body })
    }

    /// The fields that the answer names as wrong, with their rules.
    pub(crate) fn violations(&self) -> Vec<(String, String)> {
        let details = self.body["details"].as_array().cloned().unwrap_or_default();
        let requests = details.iter().filter(|detail| detail["@type"] == "type.googleapis.com/google.rpc.BadRequest");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        requests
            .flat_map(|detail| detail["field_violations"].as_array().cloned().unwrap_or_default())
            .map(|violation| (text(&violation["field"]), text(&violation["description"])))
            .collect()
    }

    /// The body without what is another one with each request: the request's id.
    pub(crate) fn without_request(&self) -> Value {
        let mut body = self.body.clone();
        if let Some(details) = body["details"].as_array_mut() {
            details.retain(|detail| detail["@type"] != "type.googleapis.com/google.rpc.RequestInfo");
        }
        body
    }

    /// The word for why it was refused.
    pub(crate) fn reason(&self) -> String {
        self.body["details"][0]["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// The names of the wrong fields alone, sorted.
    pub(crate) fn wrong_fields(&self) -> Vec<String> {
        let mut fields: Vec<String> = self.violations().into_iter().map(|(field, _)| field).collect();
        fields.sort();
        fields.dedup();
        fields
    }
}

/// The id of a job or an execution.
pub(crate) fn id_of(body: &Value) -> Uuid {
    body["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id: {body}"))
}

/// An instant in an answer.
pub(crate) fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no instant: {value}"))
}
