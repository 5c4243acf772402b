//! The wire contract of Carillon: types, clients and servers generated from `proto/`, and the descriptor set that routes,
//! JSON, documents and the command line are derived from. What all of these say in the same way, whatever the message, is here
//! too: messages as JSON, words of enums, comments, messages that are known by their descriptors alone.

pub mod codec;
pub mod comments;
pub mod json;
pub mod words;

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, MethodDescriptor};

/// The header, and the metadata of gRPC, by which a caller names the platform that it is of.
pub const PLATFORM_HEADER: &str = "x-platform-id";

/// The package `carillon.v1`.
pub mod v1 {
    #![allow(
        clippy::all,
        clippy::too_many_lines,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        reason = "generated"
    )]
    tonic::include_proto!("carillon.v1");
}

/// With nothing said beside the job.
impl From<v1::Job> for v1::CreateJobRequest {
    fn from(job: v1::Job) -> Self {
        Self { job: Some(job), ..Self::default() }
    }
}

/// The compiled protos with all imports, options (`google.api.http`) and comments, as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carillon_descriptor.bin"));

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("this crate's own build has made it"));

/// The descriptors of the API; a clone is a pointer.
pub fn descriptors() -> DescriptorPool {
    POOL.clone()
}

/// A field by its name in either spelling: `max_retries` and `maxRetries`.
pub fn field_named(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name))
}

/// How a field may be used, by the numbers of `google.api.FieldBehavior`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behavior {
    /// It must be given.
    Required = 2,
    /// The server alone decides it.
    OutputOnly = 3,
    /// It is set once.
    Immutable = 5,
}

/// Whether the protos say so of a field.
pub fn behaves(field: &FieldDescriptor, behavior: Behavior) -> bool {
    let option = field.parent_pool().get_extension_by_name("google.api.field_behavior");
    option.is_some_and(|option| {
        let options = field.options();
        let said = options.get_extension(&option);
        said.as_list().is_some_and(|said| said.iter().any(|value| value.as_enum_number() == Some(behavior as i32)))
    })
}

/// What a caller of that method must be allowed to do, as its `carillon.v1.permission` says.
pub fn permission(method: &MethodDescriptor) -> Option<String> {
    let option = method.parent_pool().get_extension_by_name("carillon.v1.permission")?;
    let options = method.options();
    options.get_extension(&option).as_str().filter(|named| !named.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Which calls each permission is for, by the descriptors.
    fn calls_by_permission() -> BTreeMap<String, Vec<String>> {
        let mut calls = BTreeMap::<String, Vec<String>>::new();
        for service in descriptors().services() {
            for method in service.methods() {
                let named = permission(&method).unwrap_or_else(|| panic!("{} names no permission", method.full_name()));
                let is_word =
                    |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                let parts = named.split_once('.').filter(|(noun, verb)| is_word(noun) && is_word(verb));
                assert!(parts.is_some(), "{} names {named:?}, which is no noun.verb", method.full_name());
                calls.entry(named).or_default().push(method.name().to_owned());
            }
        }
        calls
    }

    /// `| permission | calls | what for |`
    #[test]
    fn every_call_names_a_permission_of_the_page_about_access() {
        const PAGE: &str = include_str!("../../../docs/access.md");
        let names = |cell: &str| -> Vec<String> {
            cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect()
        };
        let mut rows = BTreeMap::new();
        for line in PAGE.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [named, calls, what_for] = cells.as_slice() else { panic!("{line}") };
            assert!(!what_for.is_empty(), "{line}");
            rows.insert(named.trim_matches('`').to_owned(), names(calls));
        }
        assert_eq!(rows, calls_by_permission());
    }
}
