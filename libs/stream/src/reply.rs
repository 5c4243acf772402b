//! Taking apart what Redis answers.

use bytes::Bytes;
use fred::prelude::Value;

use crate::{Error, Result};

pub(crate) fn array(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Null => Ok(Vec::new()),
        other => Err(unexpected("an array", &other)),
    }
}

pub(crate) fn bytes(value: Value) -> Result<Bytes> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::String(text) => Ok(text.into_inner()),
        other => Err(unexpected("a text", &other)),
    }
}

pub(crate) fn text(value: &Value) -> Result<String> {
    match value {
        Value::Bytes(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        Value::String(text) => Ok(text.to_string()),
        other => Err(unexpected("a text", other)),
    }
}

pub(crate) fn integer(value: &Value) -> Result<i64> {
    match value {
        Value::Integer(number) => Ok(*number),
        other => text(other)?.parse().map_err(|_| unexpected("a number", other)),
    }
}

/// Takes the next item of an answer.
pub(crate) fn next(items: &mut impl Iterator<Item = Value>) -> Result<Value> {
    items.next().ok_or_else(|| Error::Unexpected("an answer is shorter than expected".into()))
}

fn unexpected(wanted: &str, found: &Value) -> Error {
    Error::Unexpected(format!("expected {wanted}, found {:?}", found.kind()))
}
