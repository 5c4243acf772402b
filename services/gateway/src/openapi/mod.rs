//! The API as an OpenAPI 3.1 document, and as a page to read and try it by: made once, at the start, from the routes and the descriptors,
//! so that a new call or field is in it by being there. Comments of the protos are its descriptions, requests of the README its
//! examples. Nothing in here knows a job.

mod examples;
mod failures;
mod operation;
mod schema;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use carillon_proto::json::EnumWords;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tonic::body::Body;

use crate::json::routes::Routes;
use examples::Examples;
use schema::Schemas;

const PAGE: &str = include_str!("page.html");

/// What is answered beside the calls.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    /// Where all calls are, such as `/api/v1/scheduler`: both documents are there too, for whoever is let through to nothing else.
    base: String,
    document: Bytes,
    etag: HeaderValue,
    page_policy: HeaderValue,
}

impl Documents {
    /// Of these routes, with enums in these words.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn of(routes: &Routes, words: EnumWords) -> Result<Self, String> {
        let base = operation::base(routes);
        let bytes = serde_json::to_vec(&document(routes, &base, words)).map_err(|error| error.to_string())?;
        let header = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
        let etag = header(&format!("\"{}\"", &format!("{:x}", Sha256::digest(&bytes))[..16]))?;
        Ok(Self { base, document: bytes.into(), etag, page_policy: header(&policy(PAGE))? })
    }

    /// Whether one of them is at this path: `/openapi.json` and `/docs`, both below the base too.
    pub(crate) fn is_at(&self, path: &str) -> bool {
        matches!(self.below(path), "/openapi.json" | "/docs")
    }

    /// Who writes `/docs/` means `/docs`.
    fn below<'a>(&self, path: &'a str) -> &'a str {
        match path.strip_prefix(&self.base).unwrap_or(path) {
            "/docs/" => "/docs",
            path => path,
        }
    }

    /// The one that is at this path; `None`: none is.
    pub(crate) fn answer(&self, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
        match self.below(path) {
            "/openapi.json" if headers.get(IF_NONE_MATCH) == Some(&self.etag) => {
                Some(answer(StatusCode::NOT_MODIFIED, Bytes::new(), "application/json", Some(&self.etag)))
            }
            "/openapi.json" => {
                Some(answer(StatusCode::OK, self.document.clone(), "application/json", Some(&self.etag)))
            }
            "/docs" => {
                let mut page =
                    answer(StatusCode::OK, Bytes::from_static(PAGE.as_bytes()), "text/html; charset=utf-8", None);
                page.headers_mut().insert(CONTENT_SECURITY_POLICY, self.page_policy.clone());
                Some(page)
            }
            _ => None,
        }
    }
}

/// The page runs its own script and has its own style, each known by its hash, and asks this host alone.
fn policy(page: &str) -> String {
    let hash = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inside =
            page.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map_or("", |(inside, _)| inside);
        format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(inside)))
    };
    format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("style"),
        hash("script")
    )
}

fn answer(status: StatusCode, bytes: Bytes, kind: &'static str, etag: Option<&HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(bytes)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(etag) = etag {
        headers.insert(ETAG, etag.clone());
    }
    response
}

/// The document. Its paths name a variable by its last part, so that `/jobs/{job.id}` and `/jobs/{id}` are one.
fn document(routes: &Routes, base: &str, words: EnumWords) -> Value {
    let mut schemas = Schemas::new(words);
    let examples = Examples::of(routes, base);
    let mut paths = Map::new();
    for route in routes.all() {
        let path = paths.entry(operation::path_of(route)).or_insert_with(|| json!({}));
        path[route.http_method.as_str().to_ascii_lowercase()] = operation::of(route, &mut schemas, &examples);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Carillon",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A horizontally scaled job scheduler",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": operation::tags(routes, &schemas),
        "paths": paths,
        "components": {"schemas": schemas.into_components()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(words: EnumWords) -> Value {
        let routes = Routes::from_descriptors(&carillon_proto::descriptors()).unwrap();
        document(&routes, &operation::base(&routes), words)
    }

    /// Every reference in `value`, wherever it stands.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(elements) => elements.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_an_operation_whose_references_lead_somewhere() {
        let routes = Routes::from_descriptors(&carillon_proto::descriptors()).unwrap();
        let document = made(EnumWords::Upper);
        for route in routes.all() {
            let operation =
                &document["paths"][operation::path_of(route)][route.http_method.as_str().to_ascii_lowercase()];
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{} {operation}", route.name);
            assert!(operation["x-permission"].as_str().is_some_and(|text| text.contains('.')), "{operation}");
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    #[test]
    fn each_field_is_described_and_operations_have_names_of_their_own() {
        let document = made(EnumWords::Upper);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for (name, schema) in schemas {
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{name}.{field}");
            }
        }
        let mut ids: Vec<&str> = Vec::new();
        for path in document["paths"].as_object().unwrap().values() {
            ids.extend(path.as_object().unwrap().values().filter_map(|operation| operation["operationId"].as_str()));
        }
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn a_job_is_asked_for_and_answered_as_it_is() {
        let document = made(EnumWords::Lower);
        let create = &document["paths"]["/api/v1/scheduler/jobs/cron"]["post"];
        let body = create["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str();
        assert_eq!(body, Some("#/components/schemas/JobInput"));
        assert!(create["responses"]["201"].is_object() && create["responses"]["default"].is_null());
        assert_eq!(create["responses"]["409"]["description"], "KEY_TAKEN, REQUEST_ID_REUSED, CONCURRENT_CHANGE");
        assert_eq!(create["requestBody"]["required"], true);
        let example = &create["requestBody"]["content"]["application/json"]["examples"]["CreateCronJob1"];
        assert_eq!(example["value"]["name"], "Tick", "{example}");
        let parameters: Vec<(&str, &str)> = create["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|parameter| (parameter["name"].as_str().unwrap(), parameter["in"].as_str().unwrap()))
            .collect();
        assert!(parameters.contains(&("allow_past", "query")) && parameters.contains(&("Idempotency-Key", "header")));
        assert!(parameters.contains(&("x-platform-id", "header")));
        let job = &document["components"]["schemas"]["Job"];
        assert!(job["required"].as_array().unwrap().iter().any(|name| name == "success_count"), "each key is there");
        assert_eq!(job["properties"]["type"]["enum"][1], "cron");
        let input = &document["components"]["schemas"]["JobInput"];
        assert_eq!(input["additionalProperties"], false);
        assert_eq!(input["required"], json!(["name", "handler_name"]));
        assert_eq!(input["properties"]["name"]["type"], "string", "null is none");
        assert!(input["properties"]["status"].is_null() && input["properties"]["id"].is_null(), "OUTPUT_ONLY");
        let patch = &document["paths"]["/api/v1/scheduler/jobs/{id}"]["patch"]["requestBody"];
        assert_eq!(patch["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/JobChange");
        let change = &document["components"]["schemas"]["JobChange"];
        assert!(change["required"].is_null() && change["properties"]["tags"].is_object() && patch["required"] == false);
        let delete = &document["paths"]["/api/v1/scheduler/jobs/{id}"]["delete"];
        assert!(delete["responses"]["204"]["content"].is_null());
        assert!(document["paths"]["/api/v1/scheduler/jobs/{id}"]["patch"].is_object(), "one path of one form");
    }
    #[test]
    fn the_page_runs_what_it_holds_and_nothing_else() {
        let policy = policy(PAGE);
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(!policy.contains("unsafe") && policy.starts_with("default-src 'none'"), "{policy}");
        // By the letter; and whatever would need more than these two is not in it.
        assert_eq!((PAGE.matches("<script").count(), PAGE.matches("<style").count()), (1, 1));
        for other in [" style=", " onclick=", " src=", "http", "innerHTML", "eval("] {
            assert!(!PAGE.contains(other), "{other}");
        }
        assert_ne!(super::policy(&PAGE.replace("'use strict'", "'use sloppy'")), policy);
    }

    #[test]
    fn both_documents_are_below_the_base_too() {
        let routes = Routes::from_descriptors(&carillon_proto::descriptors()).unwrap();
        let documents = Documents::of(&routes, EnumWords::Upper).unwrap();
        assert_eq!(documents.base, "/api/v1/scheduler");
        for path in ["/docs", "/docs/", "/openapi.json"] {
            for path in [path.to_owned(), format!("/api/v1/scheduler{path}")] {
                assert!(documents.is_at(&path) && documents.answer(&path, &HeaderMap::new()).is_some(), "{path}");
            }
        }
        for path in ["/", "/api/v1/scheduler/jobs", "/api/v1/docs", "/docs//", "/openapi.json/"] {
            assert!(!documents.is_at(path) && documents.answer(path, &HeaderMap::new()).is_none(), "{path}");
        }
    }
}
