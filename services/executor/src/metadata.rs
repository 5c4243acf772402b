//! What a handler notes of its execution: read from Postgres when it is first asked for, changed here, written with the end of
//! the attempt. A handler that does not ask costs nothing.

use std::sync::{Mutex, PoisonError};

use carillon_core::json;
use carillon_core::limits::{EXECUTION_METADATA_BYTES_MAX, VALUE_DEPTH_MAX};
use carillon_store::Store;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::failure::Failure;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// As it stands; `None` before anybody asked.
    known: Option<Map<String, Value>>,
    is_changed: bool,
}

impl Metadata {
    /// As it stands.
    pub(crate) async fn get(&self, store: &Store, execution: Uuid) -> Result<Map<String, Value>, Failure> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let read = match store.execution_metadata(execution).await? {
            Some(Value::Object(read)) => read,
            Some(_) | None => Map::new(),
        };
        // Somebody else may have read it meanwhile, and changed it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(state.known.get_or_insert(read).clone())
    }

    /// Sets one entry, or takes it away; what is refused changes nothing.
    pub(crate) async fn set(&self, store: &Store, execution: Uuid, name: String, value: Value) -> Result<(), Failure> {
        self.get(store, execution).await?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = changed(state.known.clone().unwrap_or_default(), name, value).map_err(Failure::for_good)?;
        *state = State { known: Some(changed), is_changed: true };
        Ok(())
    }

    /// What is to be written, as JSON text; `None` if nothing was changed.
    pub(crate) fn take(&self) -> Option<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { known, is_changed } = std::mem::take(&mut *state);
        known.filter(|_| is_changed).map(|known| json::text(&Value::Object(known)))
    }

    fn known(&self) -> Option<Map<String, Value>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).known.clone()
    }
}

/// The metadata with that entry, or why it can't have it.
fn changed(mut metadata: Map<String, Value>, name: String, value: Value) -> Result<Map<String, Value>, String> {
    // One level is the metadata itself.
    if json::is_deeper_than(&value, VALUE_DEPTH_MAX - 1) {
        json::take_apart(value);
        return Err(format!("metadata: \"{name}\" makes it deeper than {VALUE_DEPTH_MAX} levels"));
    }
    if value.is_null() {
        metadata.remove(&name);
    } else {
        metadata.insert(name, value);
    }
    let whole = Value::Object(metadata);
    let bytes = json::text_bytes(&whole);
    if bytes > EXECUTION_METADATA_BYTES_MAX {
        return Err(format!("metadata: has {bytes} bytes of JSON, {EXECUTION_METADATA_BYTES_MAX} are allowed"));
    }
    match whole {
        Value::Object(metadata) => Ok(metadata),
        _ => Ok(Map::new()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn an_entry_is_set_replaced_and_taken_away() {
        let one = changed(Map::new(), "a".into(), json!(1)).unwrap();
        let two = changed(one, "b".into(), json!([2])).unwrap();
        let three = changed(two, "a".into(), json!("x")).unwrap();
        assert_eq!(three, of(json!({"a": "x", "b": [2]})));
        assert_eq!(changed(three, "a".into(), Value::Null).unwrap(), of(json!({"b": [2]})));
    }

    #[test]
    fn it_is_bounded_as_a_whole_in_bytes_and_levels() {
        let text = |bytes: usize| json!("x".repeat(bytes));
        let most = EXECUTION_METADATA_BYTES_MAX - r#"{"a":""}"#.len();
        let full = changed(Map::new(), "a".into(), text(most)).unwrap();
        let refused = changed(full, "b".into(), json!(1)).unwrap_err();
        assert!(refused.ends_with("16384 are allowed"), "{refused}");
        assert!(changed(Map::new(), "a".into(), text(most + 1)).is_err());
        for (levels, fits) in [(VALUE_DEPTH_MAX - 1, true), (VALUE_DEPTH_MAX, false), (300_000, false)] {
            let nested = (0..levels).fold(json!(1), |inner, _| Value::Array(vec![inner]));
            assert_eq!(changed(Map::new(), "a".into(), nested).is_ok(), fits, "{levels}");
        }
    }
}
