//! A change of a job, between the wire and the store: which fields it names, what the job is to be by it, and whether that is
//! another job at all. What may be changed stands in the proto (`google.api.field_behavior`) and nowhere else.

use std::sync::LazyLock;

use carillon_proto::v1;
use carillon_store::jobs::{Definition, Job};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor};
use prost_types::FieldMask;

use super::checks::Checks;
use super::job;

/// Values of `google.api.FieldBehavior`.
const OUTPUT_ONLY: i32 = 3;
const IMMUTABLE: i32 = 5;

/// What may be done to a field of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behavior {
    /// It is replaced.
    Free,
    /// It stays as it was made.
    Immutable,
    /// It is not the client's to give.
    OutputOnly,
}

struct Fields {
    job: MessageDescriptor,
    behaviors: Vec<(FieldDescriptor, Behavior)>,
}

static FIELDS: LazyLock<Option<Fields>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(carillon_proto::FILE_DESCRIPTOR_SET).ok()?;
    let option = pool.get_extension_by_name("google.api.field_behavior")?;
    let job = pool.get_message_by_name("carillon.v1.Job")?;
    let behavior = |field: &FieldDescriptor| {
        let options = field.options();
        let said = options.get_extension(&option);
        let says =
            |what| said.as_list().is_some_and(|list| list.iter().any(|value| value.as_enum_number() == Some(what)));
        match () {
            // It says which job is meant, or which version of it.
            () if says(OUTPUT_ONLY) || field.name() == "etag" => Behavior::OutputOnly,
            () if says(IMMUTABLE) => Behavior::Immutable,
            () => Behavior::Free,
        }
    };
    let behaviors = job.fields().map(|field| (field.clone(), behavior(&field))).collect();
    Some(Fields { job, behaviors })
});

/// `current` with the fields of `given` that `mask` names; without a mask, those that are given.
pub(super) fn merge(current: &v1::Job, given: &v1::Job, mask: Option<&FieldMask>, checks: &mut Checks) -> v1::Job {
    let unchanged = || current.clone();
    let Some(fields) = FIELDS.as_ref() else { return unchanged() };
    let read = |job: &v1::Job| DynamicMessage::decode(fields.job.clone(), job.encode_to_vec().as_slice());
    let (Ok(mut merged), Ok(given)) = (read(current), read(given)) else { return unchanged() };
    let paths = mask.map(|mask| mask.paths.as_slice()).filter(|paths| !paths.is_empty());
    let whole = paths.is_some_and(|paths| paths.iter().any(|path| path == "*"));
    check_paths(fields, paths.unwrap_or_default(), checks);
    for (field, behavior) in &fields.behaviors {
        let is_given = given.has_field(field);
        let is_named = whole || paths.map_or(is_given, |paths| paths.iter().any(|path| path == field.name()));
        if !is_named || *behavior == Behavior::OutputOnly {
            continue;
        }
        let value = given.get_field(field);
        if *behavior == Behavior::Immutable {
            // Whoever replaces all that can be changed needs not repeat what cannot.
            if (is_given || !whole) && value != merged.get_field(field) {
                checks.refuse(field.name(), "cannot be changed");
            }
        } else if is_given {
            merged.set_field(field, value.into_owned());
        } else {
            merged.clear_field(field);
        }
    }
    v1::Job::decode(merged.encode_to_vec().as_slice()).unwrap_or_else(|_| unchanged())
}

fn check_paths(fields: &Fields, paths: &[String], checks: &mut Checks) {
    for path in paths.iter().filter(|path| *path != "*") {
        let top = path.split('.').next().unwrap_or_default();
        let quoted = carillon_core::error::quoted(path);
        if fields.job.get_field_by_name(top).is_none() {
            checks.refuse("update_mask", format!("names {quoted}, which is no field of a job"));
        } else if top != path {
            checks.refuse("update_mask", format!("names {quoted}: a field is replaced whole, name {top}"));
        }
    }
}

/// Whether both fire at the same instants.
pub(super) fn fires_alike(one: &Definition, other: &Definition) -> bool {
    one.schedule == other.schedule
        && one.schedules == other.schedules
        && one.interval == other.interval
        && one.execute_at == other.execute_at
        && one.timezone == other.timezone
        && one.exclusions == other.exclusions
        && one.dst_gap == other.dst_gap
        && one.dst_overlap == other.dst_overlap
        && one.start_date == other.start_date
        && one.end_date == other.end_date
}

/// Whether a job of that definition is shown as `current` is.
pub(super) fn is_unchanged(current: &Job, definition: &Definition) -> bool {
    job::show(Job { definition: definition.clone(), ..current.clone() }) == job::show(current.clone())
}
