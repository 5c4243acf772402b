//! The calls of the API by the committed table of routes, each made over JSON and over gRPC: what is sent is known by its
//! descriptor alone.

use anyhow::{Context, Result, bail};
use carillon_proto::codec::DynamicCodec;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const TABLE: &str = include_str!("../routes.txt");
const BASE: &str = "/api/v1/scheduler";

/// One way to make one call.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// `/jobs/{id}`.
    pub(crate) path: String,
    /// `carillon.v1.JobService/GetJob`.
    pub(crate) call: String,
    /// `*`, the name of a field, or nothing.
    pub(crate) body: String,
    pub(crate) input: MessageDescriptor,
    pub(crate) output: MessageDescriptor,
}

/// Every route of the table.
pub(crate) fn all() -> Result<Vec<Route>> {
    TABLE.lines().map(read).collect()
}

fn read(line: &str) -> Result<Route> {
    let mut words = line.split_whitespace();
    let mut word = || words.next().context("a word is missing").map(str::to_owned);
    let (method, path, call) = (word()?, word()?, word()?);
    let body = word().and_then(|_| word()).unwrap_or_default();
    let (service, name) = call.split_once('/').context("no method")?;
    let service = carillon_proto::descriptors().get_service_by_name(service).context("no such service")?;
    let found = service.methods().find(|method| method.name() == name).context("no such method")?;
    let path = path.strip_prefix(BASE).context("another base")?.to_owned();
    Ok(Route { method: method.parse()?, path, call, body, input: found.input(), output: found.output() })
}

impl Route {
    /// The values of the variables of its path, by their fields, if `path` is of its form.
    pub(crate) fn bind(&self, path: &str) -> Option<Vec<(String, String)>> {
        let (own, given): (Vec<&str>, Vec<&str>) = (self.path.split('/').collect(), path.split('/').collect());
        let mut bound = Vec::new();
        for (own, given) in own.iter().zip(&given) {
            match own.strip_prefix('{').and_then(|own| own.strip_suffix('}')) {
                Some(field) => bound.push((field.to_owned(), (*given).to_owned())),
                None if own == given => {}
                None => return None,
            }
        }
        (own.len() == given.len()).then_some(bound)
    }

    /// The request that a JSON request stands for, if protobuf can say it.
    pub(crate) fn message(&self, target: &str, body: Option<&Value>) -> Result<DynamicMessage> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut whole = match (self.body.as_str(), body) {
            ("", _) | (_, None) => Map::new(),
            ("*", Some(Value::Object(body))) => body.clone(),
            (field, Some(Value::Object(body))) => Map::from_iter([(field.to_owned(), Value::Object(body.clone()))]),
            (_, Some(_)) => bail!("no object"),
        };
        let query = query.split('&').filter_map(|parameter| parameter.split_once('='));
        let query = query.map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (field, value) in self.bind(path).context("another path")?.into_iter().chain(query) {
            let value = decoded(&value)?;
            let value = match value.as_str() {
                "true" => json!(true),
                "false" => json!(false),
                _ => json!(value),
            };
            match field.split_once('.') {
                Some((outer, inner)) => whole.entry(outer).or_insert_with(|| json!({}))[inner] = value,
                None => drop(whole.insert(field, value)),
            }
        }
        if self.method == Method::PATCH
            && !whole.contains_key("update_mask")
            && let Some(Value::Object(body)) = body
        {
            let paths: Vec<String> = body.keys().map(|key| capitalised(key)).collect();
            whole.insert("update_mask".to_owned(), json!(paths.join(",")));
        }
        Ok(DynamicMessage::deserialize(self.input.clone(), Value::Object(whole))?)
    }
}

/// Without its percent-encoding.
fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).context("half an escape")?;
        bytes.push(u8::from_str_radix(digits, 16)?);
        bytes.extend(rest.bytes());
    }
    Ok(String::from_utf8(bytes)?)
}

/// `maxRetries` of `max_retries`.
fn capitalised(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        format!("{name}{}{tail}", head.to_ascii_uppercase())
    })
}

/// Makes a call of any type over gRPC.
pub(crate) async fn call(channel: &Channel, route: &Route, message: DynamicMessage) -> Result<DynamicMessage, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = format!("/{}", route.call).parse().expect("a path");
    let codec = DynamicCodec(route.output.clone());
    Ok(client.unary(tonic::Request::new(message), path, codec).await?.into_inner())
}

/// How a request was refused, over either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) reason: String,
    /// The fields that are wrong, each with its rule, in order of their names.
    pub(crate) fields: Vec<String>,
}

impl Refusal {
    fn of(code: i32, reason: String, fields: impl Iterator<Item = (String, String)>) -> Self {
        let mut fields: Vec<String> = fields.map(|(field, rule)| format!("{field}: {rule}")).collect();
        fields.sort();
        Self { code, reason, fields }
    }

    pub(crate) fn of_status(status: &Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        let wrong = status.get_details_bad_request().map(|wrong| wrong.field_violations).unwrap_or_default();
        Self::of(status.code().into(), reason, wrong.into_iter().map(|wrong| (wrong.field, wrong.description)))
    }

    pub(crate) fn of_json(body: &Value) -> Self {
        let empty = Vec::new();
        let details = body["details"].as_array().unwrap_or(&empty);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reason = details.iter().map(|detail| text(&detail["reason"])).find(|reason| !reason.is_empty());
        let wrong = details.iter().filter_map(|detail| detail["field_violations"].as_array()).flatten();
        let wrong = wrong.map(|wrong| (text(&wrong["field"]), text(&wrong["description"])));
        let code = body["code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
        Self::of(code, reason.unwrap_or_default(), wrong)
    }

    /// `INVALID_ARGUMENT`.
    pub(crate) fn code_name(&self) -> String {
        let name = format!("{:?}", Code::from(self.code));
        let mut words = String::new();
        for (at, letter) in name.chars().enumerate() {
            if at > 0 && letter.is_uppercase() {
                words.push('_');
            }
            words.push(letter.to_ascii_uppercase());
        }
        words
    }

    /// As the table of bad input has it.
    pub(crate) fn shown(&self, status: StatusCode) -> Vec<String> {
        let first = format!("    {} {} {}", status.as_u16(), self.code_name(), self.reason);
        [first].into_iter().chain(self.fields.iter().map(|field| format!("        {field}"))).collect()
    }
}
