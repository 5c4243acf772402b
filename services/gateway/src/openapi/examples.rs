//! Examples of requests: those of the README, so that what people try first is what the document shows. A line there is
//! `curl … $API/path … -d '{…}'`, below a comment that says what it is about; one without is no example, but shown for being refused.

use http::Method;
use serde_json::{Map, Value, json};

use crate::json::routes::{Found, Route, Routes};

const PAGE: &str = include_str!("../../../../README.md");
/// Where the API is, in words of the page.
const API: &str = "$API/";

/// The examples of each call by its name: a body, and what it is about.
#[derive(Debug, Default)]
pub(super) struct Examples(Vec<(String, String, Value)>);

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
            let Some((method, path, body)) = read(line).filter(|_| !about.is_empty()) else { continue };
            if let Found::Route(route, _) = routes.find(&method, &format!("{base}/{path}")) {
                found.push((route.name.clone(), about.clone(), body));
            }
        }
        Self(found)
    }

    /// Those of a call, as OpenAPI has them; `None`: there is none.
    pub(super) fn of_call(&self, route: &Route) -> Option<Value> {
        let mut named = Map::new();
        for (name, about, body) in self.0.iter().filter(|(name, ..)| *name == route.name) {
            named.insert(format!("{name}{}", named.len() + 1), json!({"summary": about, "value": body}));
        }
        (!named.is_empty()).then_some(Value::Object(named))
    }
}

/// The request of a line, if it is one with a body. A variable of the shell is an id.
fn read(line: &str) -> Option<(Method, String, Value)> {
    let rest = line.strip_prefix("curl ")?;
    let (_, body) = rest.split_once(" -d '")?;
    let body = serde_json::from_str(body.rsplit_once('\'')?.0).ok()?;
    let method = match rest.split_once("-X ") {
        Some((_, method)) => method.split(' ').next()?.parse().ok()?,
        None => Method::POST,
    };
    let (_, path) = rest.split_once(API)?;
    let path = path.split([' ', '"', '?']).next()?;
    Some((method, path.replace('$', ""), body))
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
        let (method, path, body) =
            read(r#"curl -s -X PATCH "$API/jobs/$ID?updated_by=u" -H 'a: b' -d '{"tags":["x"]}'    # of a job"#)
                .unwrap();
        assert_eq!((method, path.as_str(), body), (Method::PATCH, "jobs/ID", json!({"tags": ["x"]})));
        assert_eq!(read(r#"curl -s $API/jobs -d '{}'"#).unwrap().0, Method::POST);
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
            assert!(examples.0.iter().any(|(name, about, _)| name == call && about.len() > 5), "{call}");
        }
        for (name, _, body) in &examples.0 {
            let route = routes.all().find(|route| route.name == *name).unwrap();
            let body = document::parse(body.to_string().as_bytes()).unwrap();
            let ids = route.variables().map(|_| "01a3185c-5000-8a28-b6b7-19d8e4ba20a5".to_owned()).collect();
            let (_, mistakes) = route.request(ids, "", Some(&body));
            assert!(mistakes.is_empty(), "{name}: {mistakes:?}");
        }
    }
}
