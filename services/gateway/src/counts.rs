//! How much lies in the lists of a gRPC message, looked at before it is decoded: two bytes on the wire are an empty element of a list,
//! which takes hundreds once it is decoded, so that a bound on bytes alone bounds no memory.
//!
//! Only tags and lengths are read, by the decoder's own functions, as deep as the descriptors say that messages lie in each other. What
//! cannot be read is left to the decoder, which refuses it where this stops. JSON has the same bounds: each list in `json::request`, and
//! all that is in a body in `json::document`.

use std::collections::HashMap;

use carillon_core::error::FieldViolation;
use carillon_core::limits::{LIST_MAX, VALUES_MAX};
use prost::bytes::Buf as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};
use tonic::Status;

use crate::error_response::invalid;

/// Messages in messages: as many as the decoder reads.
const LEVELS_MAX: usize = 100;
/// Before a message: whether it is packed, and its length.
const PREFIX_BYTES: usize = 5;
/// The field of a request that stands for the request, as of JSON it is the body.
const BODY: &str = "job";

/// The messages of the API's requests, as far as this has to know them.
#[derive(Debug)]
pub(crate) struct Counts {
    shapes: Vec<Shape>,
    /// The request of each call, by its path.
    calls: HashMap<String, usize>,
}

#[derive(Debug, Default)]
struct Shape {
    parts: HashMap<u32, Part>,
    lists: usize,
}

/// A field that is a list, or has one in it.
#[derive(Debug)]
struct Part {
    name: String,
    list: Option<List>,
    /// Where what it holds is among the shapes, if these are messages.
    inner: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct List {
    /// Which one it is of those of its message.
    at: usize,
    /// No list of a value has a bound of its own: a payload is bounded by its bytes.
    most: usize,
}

/// Where something lies.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    outer: Option<&'a Place<'a>>,
    name: &'a str,
    element: Option<usize>,
    level: usize,
}

impl Counts {
    pub(crate) fn of(pool: &DescriptorPool) -> Self {
        let mut counts = Self { shapes: Vec::new(), calls: HashMap::new() };
        let mut known = HashMap::new();
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let shape = counts.shape(&method.input(), &mut known);
            counts.calls.insert(format!("/{}/{}", method.parent_service().full_name(), method.name()), shape);
        }
        counts
    }

    fn shape(&mut self, message: &MessageDescriptor, known: &mut HashMap<String, usize>) -> usize {
        if let Some(shape) = known.get(message.full_name()) {
            return *shape;
        }
        let own = self.shapes.len();
        known.insert(message.full_name().to_owned(), own);
        self.shapes.push(Shape::default());
        let mut shape = Shape::default();
        let is_value = ["google.protobuf.Struct", "google.protobuf.ListValue"].contains(&message.full_name());
        for field in message.fields() {
            let is_list = field.is_list() || field.is_map();
            let inner = match field.kind() {
                Kind::Message(inner) => Some(self.shape(&inner, known)),
                _ => None,
            };
            if is_list || inner.is_some() {
                let list = List { at: shape.lists, most: if is_value { usize::MAX } else { LIST_MAX } };
                shape.lists += usize::from(is_list);
                // Whoever writes JSON writes no `paths`.
                let name = if message.full_name() == "google.protobuf.FieldMask" { "" } else { field.name() };
                let part = Part { name: name.to_owned(), list: Some(list).filter(|_| is_list), inner };
                shape.parts.insert(field.number(), part);
            }
        }
        if let Some(place) = self.shapes.get_mut(own) {
            *place = shape;
        }
        own
    }

    /// Refuses the body of a call if a list in it has more than it may, or all of them together.
    pub(crate) fn check(&self, call: &str, mut body: &[u8]) -> Result<(), Status> {
        let Some(shape) = self.calls.get(call) else { return Ok(()) };
        let mut left = VALUES_MAX;
        // Of a call that takes one message the decoder reads any others too, before it refuses them.
        while let Some((prefix, rest)) = body.split_at_checked(PREFIX_BYTES) {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
            let (message, rest) = rest.split_at(rest.len().min(usize::try_from(length).unwrap_or(usize::MAX)));
            let root = Place { outer: None, name: "", element: None, level: 0 };
            self.look(*shape, message, &root, &mut left).map_err(|wrong| invalid(&[wrong], 0))?;
            body = rest;
        }
        Ok(())
    }

    /// Looks through one message. `left`: how many elements there may be yet.
    fn look(&self, shape: usize, mut bytes: &[u8], place: &Place<'_>, left: &mut usize) -> Result<(), FieldViolation> {
        let Some(shape) = self.shapes.get(shape).filter(|_| place.level <= LEVELS_MAX) else { return Ok(()) };
        let mut counts = vec![0_usize; shape.lists];
        while bytes.has_remaining() {
            let Ok((number, wire_type)) = decode_key(&mut bytes) else { break };
            let part = shape.parts.get(&number).filter(|_| wire_type == WireType::LengthDelimited);
            let Some(part) = part else {
                if skip_field(wire_type, number, &mut bytes, DecodeContext::default()).is_err() {
                    break;
                }
                continue;
            };
            let length = decode_varint(&mut bytes).ok().and_then(|length| usize::try_from(length).ok());
            let Some((content, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else { break };
            bytes = rest;
            let mut element = None;
            if let Some((list, count)) = part.list.and_then(|list| Some((list, counts.get_mut(list.at)?))) {
                element = Some(*count);
                *count += 1;
                if *count > list.most {
                    // Only counted on: the rule says how many there are.
                    continue;
                }
                *left = left.checked_sub(1).ok_or_else(|| FieldViolation::new("body", too_many()))?;
            }
            if let Some(inner) = part.inner {
                let within = Place { outer: Some(place), name: &part.name, element, level: place.level + 1 };
                self.look(inner, content, &within, left)?;
            }
        }
        for part in shape.parts.values() {
            let Some(list) = part.list else { continue };
            match counts.get(list.at) {
                Some(count) if *count > list.most => {
                    let field = Place { outer: Some(place), name: &part.name, element: None, level: place.level };
                    return Err(FieldViolation::new(field.path(), too_long(*count)));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What is said of a list with more elements than any may have.
pub(crate) fn too_long(elements: usize) -> String {
    format!("must be at most {LIST_MAX}, are {elements}")
}

/// What is said of a request that has more in it than any may have.
pub(crate) fn too_many() -> String {
    format!("has more than {VALUES_MAX} values: send less at once")
}

impl Place<'_> {
    /// `jobs[3].tags`, as whoever writes the body names it.
    fn path(&self) -> String {
        let outer = self.outer.map(Place::path).unwrap_or_default();
        let is_body = self.name == BODY && outer.is_empty() && self.element.is_none();
        let name = if is_body { "" } else { self.name };
        let dot = if outer.is_empty() || name.is_empty() { "" } else { "." };
        let element = self.element.map(|element| format!("[{element}]")).unwrap_or_default();
        format!("{outer}{dot}{name}{element}")
    }
}

#[cfg(test)]
mod tests {
    use carillon_proto::v1;
    use prost::Message as _;
    use prost_types::value::Kind as Is;
    use prost_types::{FieldMask, ListValue, Struct, Value};
    use tonic_types::StatusExt as _;

    use super::*;

    fn told(call: &str, messages: &[&[u8]]) -> Option<String> {
        let counts = Counts::of(&carillon_proto::descriptors());
        let framed =
            |message: &&[u8]| [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
        let body: Vec<u8> = messages.iter().flat_map(framed).collect();
        let refused = counts.check(&format!("/carillon.v1.JobService/{call}"), &body).err()?;
        let violation = refused.get_details_bad_request().unwrap().field_violations.remove(0);
        Some(format!("{}: {}", violation.field, violation.description))
    }

    fn create(job: v1::Job) -> Option<String> {
        told("CreateJob", &[&v1::CreateJobRequest::from(job).encode_to_vec()])
    }

    fn payload(value: Value) -> v1::Job {
        let payload = Struct { fields: [("a".to_owned(), value)].into() };
        v1::Job { payload: Some(payload), ..v1::Job::default() }
    }

    #[test]
    fn a_list_is_bounded_wherever_it_lies_and_named() {
        let tagged = |count| v1::Job { tags: vec![String::new(); count], ..v1::Job::default() };
        assert_eq!(create(tagged(1_000)), None);
        assert_eq!(create(tagged(1_001)), Some("tags: must be at most 1000, are 1001".to_owned()));
        let jobs = vec![v1::Job::default(), tagged(1_001)];
        let many = v1::BatchCreateJobsRequest { jobs, ..v1::BatchCreateJobsRequest::default() };
        let of_one = "jobs[1].tags: must be at most 1000, are 1001".to_owned();
        assert_eq!(told("BatchCreateJobs", &[&many.encode_to_vec()]), Some(of_one));
        let empty: Vec<u8> = [0x0a, 0].repeat(4_194_304);
        let all = "jobs: must be at most 1000, are 4194304".to_owned();
        assert_eq!(told("BatchCreateJobs", &[&empty]), Some(all.clone()));
        assert_eq!(told("BatchCreateJobs", &[&[], &empty]), Some(all), "behind another message");
        let mask = FieldMask { paths: vec![String::new(); 1_001] };
        let masked = v1::UpdateJobRequest { update_mask: Some(mask), ..v1::UpdateJobRequest::default() };
        let masked = told("UpdateJob", &[&masked.encode_to_vec()]);
        assert_eq!(masked, Some("update_mask: must be at most 1000, are 1001".to_owned()));
    }

    #[test]
    fn all_elements_together_are_bounded_those_of_values_too() {
        let all = Some("body: has more than 300000 values: send less at once".to_owned());
        let list = |values| payload(Value { kind: Some(Is::ListValue(ListValue { values })) });
        assert_eq!(create(list(vec![Value::default(); 299_000])), None);
        assert_eq!(create(list(vec![Value::default(); 300_000])), all);
        let object =
            Value { kind: Some(Is::StructValue(Struct { fields: [(String::new(), Value::default())].into() })) };
        assert_eq!(create(list(vec![object; 160_000])), all, "an object and what it holds");
        // The same field again and again is one message to the decoder.
        let job = v1::CreateJobRequest::from(v1::Job { tags: vec![String::new(); 1_000], ..v1::Job::default() });
        assert_eq!(told("CreateJob", &[&job.encode_to_vec().repeat(301)]), all);
    }

    /// The decoder refuses them.
    #[test]
    fn what_cannot_be_read_is_passed_over() {
        for broken in [&[0xff_u8; 20][..], &[0x0a, 0x7f, 0], &[0x0b, 0x0a, 0], &[0x08, 0xff]] {
            assert_eq!(told("BatchCreateJobs", &[broken]), None);
        }
        let mut deep = Value::default();
        for _ in 0..200 {
            deep = Value { kind: Some(Is::ListValue(ListValue { values: vec![deep] })) };
        }
        assert_eq!(create(payload(deep)), None);
        let counts = Counts::of(&carillon_proto::descriptors());
        assert!(counts.check("/grpc.health.v1.Health/Check", &[0; 9]).is_ok());
        assert!(counts.check("/carillon.v1.JobService/CreateJob", &[0, 0, 0, 0, 9, 0x0a]).is_ok(), "cut off");
    }
}
