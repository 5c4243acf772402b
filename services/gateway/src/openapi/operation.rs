//! A route as an operation of OpenAPI: its parameters, its body, its answers.

use carillon_core::limits::WORD_CHARS_MAX;
use carillon_proto::PLATFORM_HEADER;
use carillon_proto::comments::{first_clause, first_sentence};
use carillon_proto::json::is_wrapper;
use carillon_proto::{Behavior, behaves};
use http::{Method, StatusCode};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::examples::Examples;
use super::failures;
use super::schema::Schemas;
use crate::json::routes::{Route, Routes};

/// An id in a path. By its letters and not by a format, of which generated clients make a type that the fields' ids do not have.
const UUID: &str = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";

/// The path with each variable by its last part.
pub(super) fn path_of(route: &Route) -> String {
    route
        .path_segments()
        .map(|segment| match segment.strip_prefix('{').and_then(|variable| variable.strip_suffix('}')) {
            Some(variable) => format!("/{{{}}}", last(variable)),
            None => format!("/{segment}"),
        })
        .collect()
}

fn last(variable: &str) -> &str {
    variable.rsplit('.').next().unwrap_or(variable)
}

/// What all paths begin with.
pub(super) fn base(routes: &Routes) -> String {
    let mut paths = routes.all().map(|route| route.path_segments().collect::<Vec<_>>());
    let first = paths.next().unwrap_or_default();
    let shared = paths.fold(first, |shared, path| {
        let same = shared.iter().zip(&path).take_while(|(one, other)| one == other).count();
        shared[..same].to_vec()
    });
    shared.iter().map(|segment| format!("/{segment}")).collect()
}

/// One for each service that has a route.
pub(super) fn tags(routes: &Routes, schemas: &Schemas) -> Vec<Value> {
    let mut tags: Vec<Value> = Vec::new();
    for route in routes.all() {
        let Some(service) = schemas.service(route.service_name()) else { continue };
        let tag = json!({"name": tag_of(route), "description": schemas.comments().service(&service)});
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags.sort_by_key(|tag| tag["name"].as_str().unwrap_or_default().to_owned());
    tags
}

/// `Job` of `carillon.v1.JobService`.
fn tag_of(route: &Route) -> String {
    let service = route.service_name().rsplit('.').next().unwrap_or_default();
    service.strip_suffix("Service").unwrap_or(service).to_owned()
}

/// The operation.
pub(super) fn of(route: &Route, schemas: &mut Schemas, examples: &Examples) -> Value {
    let service = schemas.service(route.service_name());
    let method = service.and_then(|service| service.methods().find(|method| method.name() == route.name));
    let comment = method.as_ref().map(|method| schemas.comments().method(method).to_owned()).unwrap_or_default();
    let mut operation = json!({
        "operationId": operation_id(route),
        "tags": [tag_of(route)],
        "summary": first_clause(&comment),
        "description": comment,
        "parameters": parameters(route, schemas, examples),
        "responses": responses(route, schemas),
    });
    if let Some(permission) = method.as_ref().and_then(carillon_proto::permission) {
        operation["x-permission"] = json!(permission);
    }
    if let Some(mut body) = body(route, schemas) {
        if let Some(examples) = examples.bodies(route) {
            body["content"]["application/json"]["examples"] = examples;
        }
        operation["requestBody"] = body;
    }
    operation
}

/// A call that has several paths is named by what else its path binds.
fn operation_id(route: &Route) -> String {
    let variables: Vec<&str> = route.variables().map(last).filter(|variable| *variable != "id").collect();
    match variables.first() {
        Some(variable) => format!("{}By{}", route.name, capital(variable)),
        None => route.name.clone(),
    }
}

/// `job_id` as `JobId`.
fn capital(name: &str) -> String {
    let words = name.split('_').filter_map(|word| Some((word.get(..1)?, word.get(1..)?)));
    words.map(|(first, rest)| first.to_ascii_uppercase() + rest).collect()
}

fn parameters(route: &Route, schemas: &mut Schemas, examples: &Examples) -> Vec<Value> {
    let mut parameters = Vec::new();
    for variable in route.variables() {
        let field = field_at(&route.input, variable);
        let described = field.as_ref().map_or("", |field| schemas.comments().field(field)).to_owned();
        parameters.push(json!({
            "name": last(variable), "in": "path", "required": true, "description": described,
            "schema": {"type": "string", "pattern": UUID},
        }));
    }
    for field in route.input.fields().filter(|field| route.takes_from_query(field.name())) {
        query(&field, "", schemas, &mut parameters);
    }
    let header = |name: &str, description: &str| {
        let text = json!({"type": "string", "minLength": 1, "maxLength": WORD_CHARS_MAX});
        json!({"name": name, "in": "header", "required": false, "description": description, "schema": text})
    };
    parameters.push(header(PLATFORM_HEADER, "The platform that the caller is of. Default: all."));
    if let Some(field) = route.input.get_field_by_name("request_id") {
        let says = format!("Says what `request_id` says: {}", first_sentence(schemas.comments().field(&field)));
        parameters.push(header("Idempotency-Key", &says));
    }
    if route.takes_if_match() {
        let mut etag = header("If-Match", "Says what `etag` says; `*` is any.");
        etag["schema"]["pattern"] = json!("^[^,]+$");
        parameters.push(etag);
    }
    for parameter in &mut parameters {
        if let Some(values) = examples.values(route, parameter) {
            parameter["examples"] = values;
        }
    }
    parameters
}

/// One for each field that text can say; those of a message by their path.
fn query(field: &FieldDescriptor, prefix: &str, schemas: &mut Schemas, parameters: &mut Vec<Value>) {
    let name = format!("{prefix}{}", field.name());
    if let Kind::Message(inner) = field.kind() {
        let is_text = is_wrapper(inner.full_name()) || inner.full_name().starts_with("google.protobuf.");
        if field.is_map() || (!is_text && field.is_list()) || inner.full_name() == "google.protobuf.Struct" {
            return;
        }
        if !is_text {
            for field in inner.fields() {
                query(&field, &format!("{name}."), schemas, parameters);
            }
            return;
        }
    }
    let mut parameter = json!({
        "name": name, "in": "query", "required": false, "description": schemas.comments().field(field),
        "schema": schemas.parameter(field),
    });
    if field.is_list() {
        parameter["explode"] = json!(true);
    }
    parameters.push(parameter);
}

fn field_at(message: &MessageDescriptor, path: &str) -> Option<FieldDescriptor> {
    let (top, rest) = path.split_once('.').map_or((path, None), |(top, rest)| (top, Some(rest)));
    let field = message.get_field_by_name(top)?;
    match (rest, field.kind()) {
        (Some(rest), Kind::Message(inner)) => field_at(&inner, rest),
        (Some(_), _) => None,
        (None, _) => Some(field),
    }
}

/// A body must be there where something of it must. What is changed is what is given, so nothing has to be.
fn body(route: &Route, schemas: &mut Schemas) -> Option<Value> {
    let (schema, required) = match route.body_field() {
        Some(field) => match route.input.get_field_by_name(field)?.kind() {
            Kind::Message(message) if route.http_method == Method::PATCH => (schemas.change(&message), false),
            Kind::Message(message) => (schemas.input(&message), requires(&message)),
            _ => return None,
        },
        None if route.has_body() => {
            let bound: Vec<&str> = route.variables().collect();
            (schemas.body(&route.input, &bound), requires(&route.input))
        }
        None => return None,
    };
    Some(json!({"required": required, "content": {"application/json": {"schema": schema}}}))
}

fn requires(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| behaves(&field, Behavior::Required))
}

fn responses(route: &Route, schemas: &mut Schemas) -> Value {
    let status = route.success();
    let mut responses = Map::new();
    let mut success = json!({"description": status.canonical_reason().unwrap_or("success")});
    if status != StatusCode::NO_CONTENT {
        success["content"] = json!({"application/json": {"schema": schemas.output(&route.output)}});
    }
    responses.insert(status.as_str().to_owned(), success);
    for (status, words) in failures::of(route) {
        let failure = json!({
            "description": words.join(", "),
            "content": {"application/json": {"schema": schemas.failure()}},
        });
        responses.insert(status.to_string(), failure);
    }
    Value::Object(responses)
}
