//! JSON documents in Postgres: payloads, metadata, results. Written so that every double reads back with the same bits, read
//! whatever is there: see `carillon_core::json`.

use carillon_core::json;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::types::Json;
use sqlx::{Decode, Encode, Postgres, Type};

/// A document that was read.
#[derive(Debug)]
pub(crate) struct Document {
    /// What is shown of it.
    pub(crate) value: Value,
    /// By how many bytes it is larger on the wire than as text.
    pub(crate) growth: usize,
}

impl Type<Postgres> for Document {
    fn type_info() -> PgTypeInfo {
        <Json<Value> as Type<Postgres>>::type_info()
    }

    fn compatible(info: &PgTypeInfo) -> bool {
        <Json<Value> as Type<Postgres>>::compatible(info)
    }
}

impl<'r> Decode<'r, Postgres> for Document {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        // Neither depth nor size nor digits of a number stand in the way of taking the text as it is.
        let Json(raw) = <Json<&'r RawValue> as Decode<'r, Postgres>>::decode(value)?;
        let shown = json::shown(raw.get());
        Ok(Self { value: shown.value, growth: shown.wire_bytes.saturating_sub(raw.get().len()) })
    }
}

/// A document to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToWrite<'a>(pub(crate) &'a Value);

impl Type<Postgres> for ToWrite<'_> {
    fn type_info() -> PgTypeInfo {
        Document::type_info()
    }
}

impl PgHasArrayType for ToWrite<'_> {
    fn array_type_info() -> PgTypeInfo {
        <Json<Value> as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for ToWrite<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let raw = RawValue::from_string(json::text(self.0))?;
        <Json<&RawValue> as Encode<Postgres>>::encode_by_ref(&Json(&*raw), buffer)
    }
}
