//! A change of a job, between the wire and the store: which fields it names, what the job is to be by it, and whether that is
//! another job at all. What may be changed stands in the proto (`google.api.field_behavior`) and nowhere else.

use carillon_core::limits::MASK_PATHS_MAX;
use carillon_proto::{Behavior, behaves, v1};
use carillon_store::jobs::{Definition, Job};
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use prost_types::FieldMask;

use super::checks::Checks;
use super::job;
use crate::json::too_many_paths;

/// `current` with the fields of `given` that `mask` names; without a mask, those that are given.
pub(super) fn merge(current: &v1::Job, given: &v1::Job, mask: Option<&FieldMask>, checks: &mut Checks) -> v1::Job {
    let unchanged = || current.clone();
    let Some(of_job) = carillon_proto::descriptors().get_message_by_name("carillon.v1.Job") else { return unchanged() };
    let read = |job: &v1::Job| DynamicMessage::decode(of_job.clone(), job.encode_to_vec().as_slice());
    let (Ok(mut merged), Ok(given)) = (read(current), read(given)) else { return unchanged() };
    let paths = mask.map(|mask| mask.paths.as_slice()).filter(|paths| !paths.is_empty());
    let whole = paths.is_some_and(|paths| paths.iter().any(|path| path == "*"));
    check_paths(&of_job, paths.unwrap_or_default(), checks);
    let is_named = |name: &str| {
        whole || paths.map_or_else(|| given.has_field_by_name(name), |paths| paths.iter().any(|path| path == name))
    };
    for field in of_job.fields() {
        let is_given = given.has_field(&field);
        // The etag says which version of the job is meant.
        if !is_named(field.name()) || behaves(&field, Behavior::OutputOnly) || field.name() == "etag" {
            continue;
        }
        let value = given.get_field(&field);
        if behaves(&field, Behavior::Immutable) {
            // Whoever replaces all that can be changed needs not repeat what cannot.
            if (is_given || !whole) && value != merged.get_field(&field) {
                checks.refuse(field.name(), "cannot be changed");
            }
        } else if is_given {
            merged.set_field(&field, value.into_owned());
        } else {
            merged.clear_field(&field);
        }
    }
    let mut merged = v1::Job::decode(merged.encode_to_vec().as_slice()).unwrap_or_else(|_| unchanged());
    if merged.allow_overlap != current.allow_overlap && !is_named("concurrency") {
        // How many is a part of whether at all: what was right before would be refused, or forbid what is allowed now.
        merged.concurrency = None;
    }
    merged
}

fn check_paths(of_job: &MessageDescriptor, paths: &[String], checks: &mut Checks) {
    if paths.len() > MASK_PATHS_MAX {
        return checks.refuse("update_mask", too_many_paths(paths.len()));
    }
    for path in paths.iter().filter(|path| *path != "*") {
        let top = path.split('.').next().unwrap_or_default();
        let quoted = carillon_core::error::quoted(path);
        if of_job.get_field_by_name(top).is_none() {
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
