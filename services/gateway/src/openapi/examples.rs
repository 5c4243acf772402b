//! Examples of requests: those of the README, so that what people try first is what the document shows. A line there is
//! `curl … $API/path … -d '{…}'`, below a comment that says what it is about; one without is no example, but shown for being refused.

use http::Method;
use serde_json::{Map, Value, json};

use crate::json::routes::{Found, Route, Routes};

const PAGE: &str = include_str!("../../../../README.md");
/// Where the API is, in words of the page.
const API: &str = "$API/";

/// The examples of the README.
#[derive(Debug, Default)]
pub(super) struct Examples(Vec<Example>);

#[derive(Debug)]
struct Example {
    /// The call that it is of.
    call: String,
    /// What it is about.
    about: String,
    request: Request,
}

/// A request of the page.
#[derive(Debug, PartialEq)]
struct Request {
    method: Method,
    path: String,
    query: String,
    /// By their names in lower case.
    headers: Vec<(String, String)>,
    body: Value,
}

impl Examples {
    /// All that the README has.
    pub(super) fn of(routes: &Routes, base: &str) -> Self {
        let mut found = Vec::new();
        let mut about = String::new();
        let mut was_comment = false;
        for line in PAGE.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                about = if was_comment { format!("{about} {comment}") } else { comment.to_owned() };
                was_comment = true;
                continue;
            }
            was_comment = false;
            if line.starts_with("```") {
                about.clear();
            }
            let Some(request) = read(line).filter(|_| !about.is_empty()) else { continue };
            if let Found::Route(route, _) = routes.find(&request.method, &format!("{base}/{}", request.path)) {
                found.push(Example { call: route.name.clone(), about: about.clone(), request });
            }
        }
        Self(found)
    }

    /// Those of a call, each by a name.
    fn of_call<'a>(&'a self, route: &'a Route) -> impl Iterator<Item = (String, &'a Example)> {
        let own = self.0.iter().filter(|example| example.call == route.name);
        own.enumerate().map(|(at, example)| (format!("{}{}", example.call, at + 1), example))
    }

    /// The bodies of a call's, as OpenAPI has them; `None`: there is none. OpenAPI cannot say which parameters go with a body, without which
    /// some do another thing: the page reads them in `x-parameters`.
    pub(super) fn bodies(&self, route: &Route) -> Option<Value> {
        let mut named = Map::new();
        for (name, example) in self.of_call(route) {
            let mut shown = json!({"summary": example.about, "value": example.request.body});
            let parameters: Map<String, Value> =
                example.request.parameters().map(|(name, text)| (name.to_owned(), text.into())).collect();
            if !parameters.is_empty() {
                shown["x-parameters"] = Value::Object(parameters);
            }
            named.insert(name, shown);
        }
        (!named.is_empty()).then_some(Value::Object(named))
    }

    /// What those of a call say by one of its parameters, under the same names; `None`: nothing.
    pub(super) fn values(&self, route: &Route, parameter: &Value) -> Option<Value> {
        let wanted = parameter["name"].as_str()?;
        let is_text = parameter["schema"]["type"] == "string";
        let mut named = Map::new();
        for (name, example) in self.of_call(route) {
            let Some((_, text)) = example.request.parameters().find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            else {
                continue;
            };
            let value = serde_json::from_str(text).ok().filter(|_| !is_text).unwrap_or_else(|| json!(text));
            named.insert(name, json!({"summary": example.about, "value": value}));
        }
        (!named.is_empty()).then_some(Value::Object(named))
    }
}

impl Request {
    /// What it says by its query and its headers.
    fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        let query = self.query.split('&').filter_map(|parameter| parameter.split_once('='));
        query.chain(self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

/// The request of a line, if it is one with a body. A variable of the shell is an id.
fn read(line: &str) -> Option<Request> {
    let rest = line.strip_prefix("curl ")?;
    let (before, body) = rest.split_once(" -d '")?;
    let body = serde_json::from_str(body.rsplit_once('\'')?.0).ok()?;
    let method = match before.split_once("-X ") {
        Some((_, method)) => method.split(' ').next()?.parse().ok()?,
        None => Method::POST,
    };
    let headers = before.split(" -H '").skip(1).filter_map(|header| header.split('\'').next()?.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let (_, target) = before.split_once(API)?;
    let target = target.split([' ', '"']).next()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some(Request { method, path: path.replace('$', ""), query: query.to_owned(), headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::document;

    fn made() -> (Routes, Examples) {
        let routes = Routes::from_descriptors(&carillon_proto::descriptors()).unwrap();
        let examples = Examples::of(&routes, "/api/v1/scheduler");
        (routes, examples)
    }

    #[test]
    fn a_line_of_the_page_is_read() {
        let line = r#"curl -s -X PATCH "$API/jobs/$ID?updated_by=u" -H 'A: b' -d '{"tags":["x"]}'    # of a job"#;
        let read_as = Request {
            method: Method::PATCH,
            path: "jobs/ID".to_owned(),
            query: "updated_by=u".to_owned(),
            headers: vec![("a".to_owned(), "b".to_owned())],
            body: json!({"tags": ["x"]}),
        };
        assert_eq!(read(line), Some(read_as));
        assert_eq!(read(r#"curl -s $API/jobs -d '{}'"#).unwrap().method, Method::POST);
        for other in ["curl -s \"$API/jobs?limit=1\"", "curl -s $API/jobs -d 'no'", "make run"] {
            assert!(read(other).is_none(), "{other}");
        }
    }

    /// What nobody could send would mislead.
    #[test]
    fn every_line_with_a_body_is_an_example_that_its_call_reads() {
        let (routes, examples) = made();
        let lines = PAGE.lines().filter(|line| line.starts_with("curl ") && line.contains(" -d '")).count();
        assert_eq!(examples.0.len(), lines - 1, "one is wrong on purpose");
        let calls =
            ["CreateCronJob", "CreateOneTimeJob", "CreateRecurringJob", "CreateJob", "BatchCreateJobs", "UpdateJob"];
        for call in calls.iter().chain(&["SetJobSchedule", "TriggerJob", "CancelExecution", "PreviewSchedule"]) {
            assert!(examples.0.iter().any(|one| one.call == *call && one.about.len() > 5), "{call}");
        }
        for Example { call: name, request, .. } in &examples.0 {
            let route = routes.all().find(|route| route.name == *name).unwrap();
            let body = document::parse(request.body.to_string().as_bytes()).unwrap();
            let ids = route.variables().map(|_| "01a3185c-5000-8a28-b6b7-19d8e4ba20a5".to_owned()).collect();
            let (_, mistakes) = route.request(ids, &request.query, Some(&body));
            assert!(mistakes.is_empty(), "{name}: {mistakes:?}");
        }
    }

    /// Without its query it would do what its caption denies.
    #[test]
    fn an_example_says_what_its_line_says_by_query_and_headers() {
        let (routes, examples) = made();
        let told = |call: &str, about: &str| {
            let route = routes.all().find(|route| route.name == call).unwrap();
            let bodies = examples.bodies(route).unwrap();
            let (name, example) = bodies
                .as_object()
                .unwrap()
                .iter()
                .find(|(_, one)| one["summary"].as_str().unwrap().contains(about))
                .unwrap();
            (name.clone(), example["x-parameters"].clone(), route)
        };
        let (name, parameters, route) = told("CreateJob", "nothing is written yet");
        assert_eq!(parameters, json!({"validate_only": "true"}));
        let parameter = json!({"name": "validate_only", "schema": {"type": "boolean"}});
        assert_eq!(examples.values(route, &parameter).unwrap()[name]["value"], true);
        assert_eq!(examples.values(route, &json!({"name": "allow_past", "schema": {"type": "boolean"}})), None);
        assert_eq!(told("CreateJob", "For one platform").1, json!({"x-platform-id": "acme"}));
        let (name, parameters, route) = told("CreateOneTimeJob", "second request");
        assert_eq!(parameters, json!({"idempotency-key": "report-4711"}));
        let parameter = json!({"name": "Idempotency-Key", "schema": {"type": "string"}});
        assert_eq!(examples.values(route, &parameter).unwrap()[name]["value"], "report-4711");
        assert_eq!(told("UpdateJob", "Change it").1, json!({"updated_by": "user-123"}));
        assert_eq!(told("SetJobSchedule", "schedule alone").1, Value::Null);
    }
}
