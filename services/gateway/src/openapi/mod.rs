//! The API as an OpenAPI 3.1 document, and as a page to read: made once, at the start, from the routes and the descriptors, so that a
//! new call or field is in it by being there. Comments of the protos are its descriptions. Nothing in here knows a job.

mod operation;
mod schema;

use bytes::Bytes;
use carillon_proto::json::EnumWords;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tonic::body::Body;

use crate::json::routes::Routes;
use schema::Schemas;

const PAGE: &str = include_str!("page.html");
/// The page asks this host alone, and holds its own style and script.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What is answered beside the calls.
#[derive(Clone, Debug)]
pub(crate) struct Documents {
    document: Bytes,
    etag: HeaderValue,
}

impl Documents {
    /// Of these routes, with enums in these words.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn of(routes: &Routes, words: EnumWords) -> Result<Self, String> {
        let bytes = serde_json::to_vec(&document(routes, words)).map_err(|error| error.to_string())?;
        let etag = format!("\"{}\"", &format!("{:x}", Sha256::digest(&bytes))[..16]);
        let etag = HeaderValue::from_str(&etag).map_err(|error| error.to_string())?;
        Ok(Self { document: bytes.into(), etag })
    }

    /// `/openapi.json` and `/docs`; `None`: another path.
    pub(crate) fn answer(&self, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
        match path {
            "/openapi.json" if headers.get(IF_NONE_MATCH) == Some(&self.etag) => {
                Some(answer(StatusCode::NOT_MODIFIED, Bytes::new(), "application/json", Some(&self.etag)))
            }
            "/openapi.json" => {
                Some(answer(StatusCode::OK, self.document.clone(), "application/json", Some(&self.etag)))
            }
            "/docs" => {
                let mut page =
                    answer(StatusCode::OK, Bytes::from_static(PAGE.as_bytes()), "text/html; charset=utf-8", None);
                page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
                Some(page)
            }
            _ => None,
        }
    }
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
fn document(routes: &Routes, words: EnumWords) -> Value {
    let mut schemas = Schemas::new(words);
    let mut paths = Map::new();
    for route in routes.all() {
        let path = paths.entry(operation::path_of(route)).or_insert_with(|| json!({}));
        path[route.http_method.as_str().to_ascii_lowercase()] = operation::of(route, &mut schemas);
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
        document(&Routes::from_descriptors(&carillon_proto::descriptors()).unwrap(), words)
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
        assert!(create["responses"]["201"].is_object() && create["responses"]["default"].is_object());
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
        let delete = &document["paths"]["/api/v1/scheduler/jobs/{id}"]["delete"];
        assert!(delete["responses"]["204"]["content"].is_null());
        assert!(document["paths"]["/api/v1/scheduler/jobs/{id}"]["patch"].is_object(), "one path of one form");
    }
}
