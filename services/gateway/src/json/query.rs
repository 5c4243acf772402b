//! Query parameters into the fields of a request that neither path nor body binds: `limit=10`, `jobType=cron`, `a.b=c`,
//! `tags=x&tags=y`.

use std::collections::HashSet;

use carillon_core::error::quoted;
use carillon_proto::field_named;
use carillon_proto::json::is_wrapper;
use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use super::request::{self, Mistakes};
use super::scalar;
use super::text::percent_decoded;

/// Parameters of one query.
const PARAMETERS_MAX: usize = 100;
/// Levels of `a.b.c`.
const LEVELS_MAX: usize = 4;

/// Sets the fields that `query` names. `takes` says whether a field of the request may come from the query.
pub(crate) fn read(message: &mut DynamicMessage, query: &str, takes: impl Fn(&str) -> bool, mistakes: &mut Mistakes) {
    let mut given = HashSet::new();
    for (index, parameter) in query.split('&').filter(|parameter| !parameter.is_empty()).enumerate() {
        if index == PARAMETERS_MAX {
            mistakes.add("query", format!("has more than {PARAMETERS_MAX} parameters"));
            return;
        }
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match (percent_decoded(key, true), percent_decoded(value, true)) {
            (Some(key), Some(value)) => {
                if let Err(rule) = set(message, &key, &value, &takes, &mut given) {
                    mistakes.add(&key, rule);
                }
            }
            _ => mistakes.add("query", format!("{} is not percent-encoded UTF-8", quoted(parameter))),
        }
    }
}

/// `given` are the fields that were named before, each by the numbers on the way to it: a zero may look like nothing given.
fn set(
    message: &mut DynamicMessage,
    key: &str,
    value: &str,
    takes: &impl Fn(&str) -> bool,
    given: &mut HashSet<Vec<u32>>,
) -> Result<(), String> {
    let names: Vec<&str> = key.split('.').collect();
    let Some((last, outer)) = names.split_last().filter(|(_, outer)| outer.len() < LEVELS_MAX) else {
        return Err(format!("is nested deeper than {LEVELS_MAX} levels"));
    };
    let unknown = || "is not a parameter of this call".to_owned();
    let top = field_named(&message.descriptor(), names.first().copied().unwrap_or_default()).ok_or_else(unknown)?;
    if !takes(top.name()) {
        return Err(unknown());
    }
    let mut at = message;
    let mut way = Vec::with_capacity(names.len());
    for name in outer {
        let field = field_named(&at.descriptor(), name).filter(|field| !field.is_list() && !field.is_map());
        let field = field.ok_or_else(unknown)?;
        way.push(field.number());
        at = at.get_field_mut(&field).as_message_mut().ok_or_else(unknown)?;
    }
    let field = field_named(&at.descriptor(), last).filter(|field| !field.is_map()).ok_or_else(unknown)?;
    way.push(field.number());
    if !given.insert(way) && !field.is_list() {
        return Err(format!("is given twice, the second time as {}", quoted(value)));
    }
    if let Some(other) = request::rival(&field, at) {
        return Err(format!("must not be given together with {}", other.name()));
    }
    let read = match field.kind() {
        Kind::Message(inner) if is_wrapper(inner.full_name()) => {
            let mut wrapper = DynamicMessage::new(inner.clone());
            if let Some(inner) = inner.get_field_by_name("value") {
                wrapper.set_field(&inner, scalar::from_text(&inner.kind(), value)?);
            }
            Value::Message(wrapper)
        }
        kind => scalar::from_text(&kind, value)?,
    };
    if !field.is_list() {
        at.set_field(&field, read);
    } else if let Some(list) = at.get_field_mut(&field).as_list_mut() {
        list.push(read);
    }
    Ok(())
}
