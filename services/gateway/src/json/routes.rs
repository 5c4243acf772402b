//! The table of routes, made at start from the descriptors and their `google.api.http` options. A template that cannot be
//! bound, two routes that could both be meant, or a message that JSON cannot hold stop the start, not a request.

use std::collections::{BTreeMap, HashSet};

use carillon_core::error::quoted;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ReflectMessage, Value,
};

use super::document::Json;
use super::request::{self, Mistake, Mistakes};
use super::template::Template;
use super::{query, scalar};

/// The field that says which version something is.
pub(crate) const ETAG: &str = "etag";

/// One way to make one call over HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) http_method: Method,
    template: Template,
    /// The template as written.
    path: String,
    body: Body,
    /// `CreateCronJob`.
    pub(crate) name: String,
    /// `/carillon.v1.JobService/CreateCronJob`.
    pub(crate) grpc_path: PathAndQuery,
    pub(crate) input: MessageDescriptor,
    pub(crate) output: MessageDescriptor,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    /// None is read.
    None,
    /// Every field that the path does not bind.
    Whole,
    /// One field.
    Field(String),
}

/// What a path leads to.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// A route, with the values of its variables.
    Route(&'a Route, Vec<String>),
    /// The path exists, for these methods.
    OtherMethods(Vec<Method>),
    Nothing,
}

/// Every route.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    routes: Vec<Route>,
}

impl Routes {
    /// Derives the routes of every annotated method.
    pub(crate) fn from_descriptors(pool: &DescriptorPool) -> Result<Self, String> {
        let option =
            pool.get_extension_by_name("google.api.http").ok_or("google.api.http is not in the descriptors")?;
        let mut routes = Vec::new();
        for service in pool.services() {
            for method in service.methods() {
                for rule in rules_of(&method, &option) {
                    routes.push(Route::new(&method, &rule).map_err(|why| format!("{}: {why}", method.full_name()))?);
                }
            }
        }
        routes.sort_by(|a: &Route, b| a.template.precedence(&b.template));
        for (index, route) in routes.iter().enumerate() {
            let twin = routes.iter().skip(index + 1).find(|other| {
                other.http_method == route.http_method && other.template.is_ambiguous_with(&route.template)
            });
            if let Some(twin) = twin {
                return Err(format!("{} and {} answer the same paths", route.describe(), twin.describe()));
            }
        }
        Ok(Self { routes })
    }

    /// Each of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    /// Looks a path up, as it came (percent-encoded, without the query). HEAD is GET whose body the server leaves out.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let mut others = Vec::new();
        for route in &self.routes {
            let Some(values) = route.template.matches(path) else { continue };
            if route.http_method == *wanted {
                return Found::Route(route, values);
            }
            if !others.contains(&route.http_method) {
                others.push(route.http_method.clone());
            }
        }
        if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
    }

    /// The table as text, one route a line, sorted: compared with a committed copy.
    pub(crate) fn describe(&self) -> String {
        let mut lines: Vec<String> = self.routes.iter().map(Route::describe).collect();
        lines.sort();
        lines.join("\n") + "\n"
    }
}

impl Route {
    fn new(method: &MethodDescriptor, rule: &DynamicMessage) -> Result<Self, String> {
        if method.is_client_streaming() || method.is_server_streaming() {
            return Err("streams have no JSON form yet".to_owned());
        }
        if !text_of(rule, "response_body").is_empty() {
            return Err("response_body is not supported".to_owned());
        }
        let (http_method, path) = verb_and_path(rule)?;
        let template = Template::parse(&path)?;
        let input = method.input();
        for variable in template.variables() {
            path_field(&input, variable)?;
        }
        let body = match text_of(rule, "body").as_str() {
            "" => Body::None,
            "*" => Body::Whole,
            field => match input.get_field_by_name(field) {
                Some(field) if !field.is_list() && !field.is_map() => Body::Field(field.name().to_owned()),
                _ => return Err(format!("the body {field} is not a single field of {}", input.name())),
            },
        };
        require_json_form(&input, false, &mut HashSet::new())?;
        require_json_form(&method.output(), true, &mut HashSet::new())?;
        let grpc_path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        Ok(Self {
            http_method,
            template,
            path,
            body,
            name: method.name().to_owned(),
            grpc_path: grpc_path.parse().map_err(|error| format!("{grpc_path}: {error}"))?,
            input,
            output: method.output(),
        })
    }

    fn describe(&self) -> String {
        let body = match &self.body {
            Body::None => String::new(),
            Body::Whole => "  body *".to_owned(),
            Body::Field(field) => format!("  body {field}"),
        };
        let call = self.grpc_path.path().trim_start_matches('/');
        format!("{} {}  {call}{body}", self.http_method, self.path)
    }

    /// The segments of its path, as written: `{id}` is a variable.
    pub(crate) fn path_segments(&self) -> impl Iterator<Item = &str> {
        self.path.trim_start_matches('/').split('/')
    }

    /// The fields that its path binds.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.template.variables()
    }

    /// `carillon.v1.JobService`.
    pub(crate) fn service_name(&self) -> &str {
        self.grpc_path.path().trim_start_matches('/').split('/').next().unwrap_or_default()
    }

    /// The one field that is the body, if it is one.
    pub(crate) fn body_field(&self) -> Option<&str> {
        match &self.body {
            Body::Field(field) => Some(field),
            Body::None | Body::Whole => None,
        }
    }

    /// The status of a success.
    pub(crate) fn success(&self) -> StatusCode {
        if self.output.full_name() == "google.protobuf.Empty" {
            StatusCode::NO_CONTENT
        } else if self.name.starts_with("Create") {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        }
    }

    /// Whether a top field of the request is read from the query.
    pub(crate) fn takes_from_query(&self, name: &str) -> bool {
        let bound = || self.template.variables().any(|field| field.split('.').next() == Some(name));
        match &self.body {
            Body::Whole => false,
            Body::Field(field) => field != name && !bound(),
            Body::None => !bound(),
        }
    }

    /// Whether the header `If-Match` means anything to this call: what is only being made has no version yet.
    pub(crate) fn takes_if_match(&self) -> bool {
        let changes = self.mask().is_some() || self.body_field().is_none();
        changes && self.etag_field(&mut DynamicMessage::new(self.input.clone())).is_some()
    }

    /// Whether a request's body means anything to this call.
    pub(crate) fn has_body(&self) -> bool {
        self.body != Body::None
    }

    /// The request message, as far as it could be read, and what could not. `body` is `None` if none was sent.
    pub(crate) fn request(
        &self,
        path_values: Vec<String>,
        query: &str,
        body: Option<&Json>,
    ) -> (DynamicMessage, Vec<Mistake>) {
        let mut mistakes = Mistakes::default();
        let read = body.and_then(|json| self.read_body(json, &mut mistakes));
        let mut message = read.unwrap_or_else(|| DynamicMessage::new(self.input.clone()));
        let from_path: Vec<&str> = self.template.variables().collect();
        for (field, value) in from_path.iter().zip(path_values) {
            self.bind(&mut message, field, &value, &mut mistakes);
        }
        query::read(&mut message, query, |name| self.takes_from_query(name), &mut mistakes);
        if let (Some((mask, named)), Some(json)) = (self.mask(), body)
            && names_nothing(&message, &mask)
            && let Kind::Message(of) = mask.kind()
        {
            message.set_field(&mask, Value::Message(scalar::mask(&of, request::fields_given(&named, json))));
        }
        (message, mistakes.into_list())
    }

    /// The field of a PATCH that says which fields it changes, as the keys of its body do if it does not (so the grpc-gateway has
    /// it), and whose fields they are.
    fn mask(&self) -> Option<(FieldDescriptor, MessageDescriptor)> {
        let Body::Field(body) = &self.body else { return None };
        let is_mask =
            |field: &FieldDescriptor| matches!(field.kind(), Kind::Message(of) if of.full_name() == scalar::MASK);
        let mask = self.input.fields().find(is_mask).filter(|_| self.http_method == Method::PATCH)?;
        match self.input.get_field_by_name(body)?.kind() {
            Kind::Message(named) => Some((mask, named)),
            _ => None,
        }
    }

    /// Where a request of this call says which version it was made for: a field of its own, or of its body.
    pub(crate) fn etag_field<'a>(
        &self,
        message: &'a mut DynamicMessage,
    ) -> Option<(&'a mut DynamicMessage, FieldDescriptor)> {
        if let Some(field) = self.input.get_field_by_name(ETAG) {
            return Some((message, field));
        }
        let Body::Field(body) = &self.body else { return None };
        let inner = message.get_field_mut(&self.input.get_field_by_name(body)?).as_message_mut()?;
        let field = inner.descriptor().get_field_by_name(ETAG)?;
        Some((inner, field))
    }

    fn read_body(&self, json: &Json, mistakes: &mut Mistakes) -> Option<DynamicMessage> {
        match &self.body {
            Body::None => {
                if !matches!(json, Json::Null) && !matches!(json, Json::Object(object) if object.is_empty()) {
                    mistakes.add("body", "must be empty: this call takes none");
                }
                None
            }
            Body::Whole => request::message(&self.input, json, "", mistakes),
            Body::Field(name) => {
                let field = self.input.get_field_by_name(name)?;
                let mut message = DynamicMessage::new(self.input.clone());
                if let Kind::Message(inner) = field.kind() {
                    // Whoever writes the body names its fields as they stand in it.
                    let read = request::body_message(&inner, json, &self.input, mistakes)?;
                    message.set_field(&field, Value::Message(read));
                    return Some(message);
                }
                let wrapped = BTreeMap::from([(name.clone(), json.clone())]);
                request::message(&self.input, &Json::Object(wrapped), "", mistakes)
            }
        }
    }

    fn bind(&self, message: &mut DynamicMessage, path: &str, value: &str, mistakes: &mut Mistakes) {
        let Ok(fields) = path_field(&self.input, path) else { return };
        let Some((last, outer)) = fields.split_last() else { return };
        let read = match scalar::from_text(&last.kind(), value) {
            Ok(read) => read,
            Err(rule) => return mistakes.add(self.as_in_body(path), rule),
        };
        let mut at = message;
        for field in outer {
            match at.get_field_mut(field).as_message_mut() {
                Some(inner) => at = inner,
                None => return,
            }
        }
        if at.has_field(last) && *at.get_field(last) != read {
            let others = match (at.get_field(last).as_str(), read.as_str()) {
                (Some(body), Some(path)) => {
                    format!("is {} in the body, and {} in the path", quoted(body), quoted(path))
                }
                _ => "is another one in the body than in the path".to_owned(),
            };
            mistakes.add(self.as_in_body(path), format!("{others}: leave it out of the body"));
        }
        at.set_field(last, read);
    }

    /// A field of the request as whoever writes its body names it: `id`, not `job.id`, where the body is the job.
    fn as_in_body<'a>(&self, path: &'a str) -> &'a str {
        let inner = self.body_field().and_then(|body| path.strip_prefix(body)?.strip_prefix('.'));
        inner.unwrap_or(path)
    }
}

/// Whether a mask is not given, or says no more than if it were not: `?update_mask=` would change what is not empty, and pass over the
/// rest in silence.
fn names_nothing(message: &DynamicMessage, mask: &FieldDescriptor) -> bool {
    let mask = message.get_field(mask);
    let paths = mask.as_message().and_then(|mask| mask.get_field_by_name("paths"));
    paths.is_none_or(|paths| paths.as_list().is_none_or(<[Value]>::is_empty))
}

/// The annotation of a method and its additional bindings.
fn rules_of(method: &MethodDescriptor, option: &ExtensionDescriptor) -> Vec<DynamicMessage> {
    let options = method.options();
    if !options.has_extension(option) {
        return Vec::new();
    }
    let Some(rule) = options.get_extension(option).as_message().cloned() else { return Vec::new() };
    let additional = match rule.get_field_by_name("additional_bindings").as_deref() {
        Some(Value::List(rules)) => rules.iter().filter_map(|rule| rule.as_message().cloned()).collect(),
        _ => Vec::new(),
    };
    [vec![rule], additional].concat()
}

fn verb_and_path(rule: &DynamicMessage) -> Result<(Method, String), String> {
    let verbs = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ];
    for (name, method) in verbs {
        let path = text_of(rule, name);
        if !path.is_empty() {
            return Ok((method, path));
        }
    }
    Err("the HTTP rule has none of get, put, post, delete, patch".to_owned())
}

fn text_of(rule: &DynamicMessage, field: &str) -> String {
    match rule.get_field_by_name(field).as_deref() {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}

/// The fields that a dotted path names; the last one must be a single scalar.
fn path_field(input: &MessageDescriptor, path: &str) -> Result<Vec<FieldDescriptor>, String> {
    let unbound = || format!("{path} is not a scalar field of {}", input.name());
    let mut fields: Vec<FieldDescriptor> = Vec::new();
    let mut at = Some(input.clone());
    for name in path.split('.') {
        let field = at.and_then(|message| message.get_field_by_name(name)).ok_or_else(unbound)?;
        if field.is_list() || field.is_map() {
            return Err(unbound());
        }
        at = match field.kind() {
            Kind::Message(inner) => Some(inner),
            _ => None,
        };
        fields.push(field);
    }
    if at.is_some() { Err(unbound()) } else { Ok(fields) }
}

/// `google.protobuf.Any` has no JSON form that could be read, since nothing needs it: better to know at start.
fn require_json_form(message: &MessageDescriptor, is_written: bool, seen: &mut HashSet<String>) -> Result<(), String> {
    if !seen.insert(message.full_name().to_owned()) {
        return Ok(());
    }
    match message.full_name() {
        "google.protobuf.Any" if is_written => return Ok(()),
        "google.protobuf.Any" => return Err(format!("{} has no JSON form yet", message.full_name())),
        _ => {}
    }
    for field in message.fields() {
        if let Kind::Message(inner) = field.kind() {
            require_json_form(&inner, is_written, seen)?;
        }
    }
    Ok(())
}
