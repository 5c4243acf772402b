//! Messages as schemas of OpenAPI 3.1. A message has several: as it is answered, where every key is there; as it is given (`…Input`),
//! where those that are REQUIRED are, null is the default of the others, and what is not known is refused; and as it is changed
//! (`…Change`), where none has to be. What the server alone decides (OUTPUT_ONLY) is answered and not asked for.

use carillon_proto::comments::Comments;
use carillon_proto::json::{EXACT_MAX, EnumWords, is_wrapper};
use carillon_proto::words::{self, Word};
use carillon_proto::{Behavior, behaves};
use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ServiceDescriptor};
use serde_json::{Map, Value, json};

/// In which direction a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Answered.
    Out,
    /// Given.
    In,
    /// Given in part.
    Change,
}

/// The schemas that operations refer to, each made when it is first asked for.
#[derive(Debug)]
pub(super) struct Schemas {
    pool: DescriptorPool,
    comments: Comments,
    words: EnumWords,
    made: Map<String, Value>,
}

impl Schemas {
    /// None yet.
    pub(super) fn new(words: EnumWords) -> Self {
        let pool = carillon_proto::descriptors();
        Self { comments: Comments::of(&pool), pool, words, made: Map::new() }
    }

    pub(super) const fn comments(&self) -> &Comments {
        &self.comments
    }

    /// A service by its full name.
    pub(super) fn service(&self, name: &str) -> Option<ServiceDescriptor> {
        self.pool.get_service_by_name(name)
    }

    /// All that were asked for.
    pub(super) fn into_components(self) -> Map<String, Value> {
        self.made
    }

    /// A message as it is answered.
    pub(super) fn output(&mut self, message: &MessageDescriptor) -> Value {
        self.message(message, Way::Out)
    }

    /// A message as it is given.
    pub(super) fn input(&mut self, message: &MessageDescriptor) -> Value {
        self.message(message, Way::In)
    }

    /// A message whose fields are changed as far as they are given.
    pub(super) fn change(&mut self, message: &MessageDescriptor) -> Value {
        self.message(message, Way::Change)
    }

    /// A message as it is given, without what a path binds.
    pub(super) fn body(&mut self, message: &MessageDescriptor, bound: &[&str]) -> Value {
        let mut schema = self.object(message, Way::In);
        if let Some(properties) = schema["properties"].as_object_mut() {
            properties.retain(|name, _| !bound.contains(&name.as_str()));
        }
        schema
    }

    /// A field as text of a query gives it.
    pub(super) fn parameter(&mut self, field: &FieldDescriptor) -> Value {
        let one = self.single(&field.kind(), Way::In);
        if field.is_list() { json!({"type": "array", "items": one}) } else { one }
    }

    /// The body of every failure.
    pub(super) fn failure(&mut self) -> Value {
        let schema = || {
            json!({
                "type": "object",
                "description": "What went wrong.",
                "required": ["code", "message", "details"],
                "properties": {
                    "code": {"type": "integer", "description": "The code of gRPC."},
                    "message": {"type": "string", "description": "For people; it may change."},
                    "details": {
                        "type": "array",
                        "description": "Each with its `@type`: google.rpc.ErrorInfo says the reason by a word, \
                            google.rpc.BadRequest names fields.",
                        "items": {"type": "object", "required": ["@type"], "properties": {
                            "@type": {"type": "string", "description": "What the other fields are of."}}},
                    },
                },
            })
        };
        self.made.entry("Error").or_insert_with(schema);
        reference("Error")
    }

    fn message(&mut self, message: &MessageDescriptor, way: Way) -> Value {
        if let Some(known) = self.well_known(message, way) {
            return known;
        }
        let name = match way {
            Way::Out => message.name().to_owned(),
            Way::In => format!("{}Input", message.name()),
            Way::Change => format!("{}Change", message.name()),
        };
        if !self.made.contains_key(&name) {
            // Before its fields, which may be of it.
            self.made.insert(name.clone(), Value::Null);
            let schema = self.object(message, way);
            self.made.insert(name.clone(), schema);
        }
        reference(&name)
    }

    fn object(&mut self, message: &MessageDescriptor, way: Way) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in message.fields().filter(|field| way == Way::Out || !behaves(field, Behavior::OutputOnly)) {
            if is_always_there(&field, way) {
                required.push(field.name().to_owned());
            }
            properties.insert(field.name().to_owned(), self.field(&field, way));
        }
        let mut schema = json!({"type": "object", "properties": properties});
        let described = self.comments.message(message);
        if !described.is_empty() {
            schema["description"] = json!(described);
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if way != Way::Out {
            schema["additionalProperties"] = json!(false);
        }
        schema
    }

    fn field(&mut self, field: &FieldDescriptor, way: Way) -> Value {
        // What is in a field is given as a whole.
        let inner = if way == Way::Change { Way::In } else { way };
        let value = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return json!({}) };
            json!({"type": "object", "additionalProperties": self.single(&entry.map_entry_value_field().kind(), inner)})
        } else if field.is_list() {
            json!({"type": "array", "items": self.single(&field.kind(), inner)})
        } else {
            self.single(&field.kind(), inner)
        };
        let may_be_null = match way {
            Way::Out => field.supports_presence() && !field.is_list() && !field.is_map(),
            Way::In => !is_always_there(field, way),
            Way::Change => !behaves(field, Behavior::Required),
        };
        let mut schema = if may_be_null { nullable(value) } else { value };
        if schema.as_object().is_some_and(|fields| fields.contains_key("$ref")) {
            schema = json!({"allOf": [schema]});
        }
        schema["description"] = json!(self.comments.field(field));
        schema
    }

    fn single(&mut self, kind: &Kind, way: Way) -> Value {
        let whole = |minimum: i64, maximum: i64| json!({"type": "integer", "minimum": minimum, "maximum": maximum});
        match kind {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Double | Kind::Float => json!({"type": "number"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => whole(i32::MIN.into(), i32::MAX.into()),
            Kind::Uint32 | Kind::Fixed32 => whole(0, u32::MAX.into()),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({"anyOf": [{"type": "integer", "minimum": -exact(), "maximum": exact()},
                                 {"type": "string", "pattern": "^-?[0-9]+$"}]})
            }
            Kind::Uint64 | Kind::Fixed64 => {
                json!({"anyOf": [{"type": "integer", "minimum": 0, "maximum": exact()},
                                 {"type": "string", "pattern": "^[0-9]+$"}]})
            }
            Kind::Enum(of) => self.words_of(of, way),
            Kind::Message(message) => self.message(message, way),
        }
    }

    /// Any case is understood; here stands the one that is answered.
    fn words_of(&self, of: &EnumDescriptor, way: Way) -> Value {
        let said = words::words(of).into_iter().filter(|word| way == Way::Out || word.number != 0);
        let shown = |Word { word, .. }| if self.words == EnumWords::Lower { word.to_ascii_lowercase() } else { word };
        json!({"type": "string", "enum": said.map(shown).collect::<Vec<_>>()})
    }

    fn well_known(&mut self, message: &MessageDescriptor, way: Way) -> Option<Value> {
        Some(match message.full_name() {
            "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
            "google.protobuf.Duration" => json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"}),
            "google.protobuf.FieldMask" => json!({"type": "string"}),
            "google.protobuf.Struct" => json!({"type": "object"}),
            "google.protobuf.ListValue" => json!({"type": "array"}),
            "google.protobuf.Value" => json!({}),
            "google.protobuf.Empty" => json!({"type": "object"}),
            "google.protobuf.Any" => json!({"type": "object", "required": ["@type"]}),
            name if is_wrapper(name) => nullable(self.single(&message.get_field_by_name("value")?.kind(), way)),
            _ => return None,
        })
    }
}

fn is_always_there(field: &FieldDescriptor, way: Way) -> bool {
    match way {
        Way::Out => field.containing_oneof().is_none_or(|oneof| oneof.is_synthetic()),
        Way::In => behaves(field, Behavior::Required),
        Way::Change => false,
    }
}

fn exact() -> i64 {
    i64::try_from(EXACT_MAX).unwrap_or(i64::MAX)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn nullable(schema: Value) -> Value {
    match schema["type"].as_str() {
        Some(kind) => {
            let mut nullable = schema.clone();
            nullable["type"] = json!([kind, "null"]);
            if let Some(words) = nullable.get_mut("enum").and_then(Value::as_array_mut) {
                words.push(Value::Null);
            }
            nullable
        }
        // Anything, null too.
        None if schema.as_object().is_some_and(Map::is_empty) => schema,
        None if schema["type"].is_array() => schema,
        None => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}
