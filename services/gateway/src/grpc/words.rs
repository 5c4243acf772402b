//! Between the wire's enums and the words of the core.

use carillon_core::execution::Status;
use carillon_core::job::{HandlerType, JobStatus, JobType, Priority};
use carillon_core::retry::Backoff;
use carillon_core::schedule::{DstGap, DstOverlap};
use carillon_proto::v1;
use carillon_proto::words::allowed;

use super::checks::Checks;

pub(super) const fn job_type(job_type: JobType) -> v1::JobType {
    match job_type {
        JobType::Cron => v1::JobType::Cron,
        JobType::OneTime => v1::JobType::OneTime,
        JobType::Recurring => v1::JobType::Recurring,
        JobType::Event => v1::JobType::Event,
    }
}

pub(super) const fn job_status(status: JobStatus) -> v1::JobStatus {
    match status {
        JobStatus::Active => v1::JobStatus::Active,
        JobStatus::Paused => v1::JobStatus::Paused,
        JobStatus::Completed => v1::JobStatus::Completed,
        JobStatus::Cancelled => v1::JobStatus::Cancelled,
    }
}

pub(super) const fn handler_type(handler_type: HandlerType) -> v1::HandlerType {
    match handler_type {
        HandlerType::Function => v1::HandlerType::Function,
        HandlerType::Agent => v1::HandlerType::Agent,
        HandlerType::Workflow => v1::HandlerType::Workflow,
        HandlerType::Http => v1::HandlerType::Http,
    }
}

pub(super) const fn priority(priority: Priority) -> v1::Priority {
    match priority {
        Priority::Low => v1::Priority::Low,
        Priority::Medium => v1::Priority::Medium,
        Priority::High => v1::Priority::High,
        Priority::Critical => v1::Priority::Critical,
    }
}

pub(super) const fn retry_backoff(backoff: Backoff) -> v1::RetryBackoff {
    match backoff {
        Backoff::Fixed => v1::RetryBackoff::Fixed,
        Backoff::Linear => v1::RetryBackoff::Linear,
        Backoff::Exponential => v1::RetryBackoff::Exponential,
    }
}

pub(super) const fn execution_status(status: Status) -> v1::ExecutionStatus {
    match status {
        Status::Queued => v1::ExecutionStatus::Queued,
        Status::Running => v1::ExecutionStatus::Running,
        Status::Retrying => v1::ExecutionStatus::Retrying,
        Status::Success => v1::ExecutionStatus::Success,
        Status::Failed => v1::ExecutionStatus::Failed,
        Status::Timeout => v1::ExecutionStatus::Timeout,
        Status::Cancelled => v1::ExecutionStatus::Cancelled,
        Status::Skipped => v1::ExecutionStatus::Skipped,
    }
}

pub(super) const fn dst_gap(gap: DstGap) -> v1::DstGap {
    match gap {
        DstGap::RunAfter => v1::DstGap::RunAfter,
        DstGap::Skip => v1::DstGap::Skip,
    }
}

pub(super) const fn dst_overlap(overlap: DstOverlap) -> v1::DstOverlap {
    match overlap {
        DstOverlap::First => v1::DstOverlap::First,
        DstOverlap::Last => v1::DstOverlap::Last,
        DstOverlap::Both => v1::DstOverlap::Both,
    }
}

/// The word that a number of the wire stands for: 0 is "not given", and a number that the protos do not know is refused, in the
/// words that JSON is refused in. `of`: the enum.
fn read<W: Copy, T: Copy>(
    checks: &mut Checks,
    (field, of): (&str, &str),
    number: i32,
    all: &[T],
    wire: impl Fn(T) -> W,
) -> Option<T>
where
    i32: From<W>,
{
    if number == 0 {
        return None;
    }
    let word = all.iter().copied().find(|word| i32::from(wire(*word)) == number);
    if word.is_none() {
        let descriptor = carillon_proto::descriptors().get_enum_by_name(&format!("carillon.v1.{of}"));
        let allowed = descriptor.map(|descriptor| allowed(&descriptor)).unwrap_or_default();
        checks.refuse(field, format!("must be one of {allowed}, is {number}"));
    }
    word
}

pub(super) fn read_job_type(checks: &mut Checks, field: &str, number: i32) -> Option<JobType> {
    read(checks, (field, "JobType"), number, JobType::ALL, job_type)
}

pub(super) fn read_job_status(checks: &mut Checks, field: &str, number: i32) -> Option<JobStatus> {
    read(checks, (field, "JobStatus"), number, JobStatus::ALL, job_status)
}

pub(super) fn read_handler_type(checks: &mut Checks, field: &str, number: i32) -> Option<HandlerType> {
    read(checks, (field, "HandlerType"), number, HandlerType::ALL, handler_type)
}

pub(super) fn read_priority(checks: &mut Checks, field: &str, number: i32) -> Option<Priority> {
    read(checks, (field, "Priority"), number, Priority::ALL, priority)
}

pub(super) fn read_retry_backoff(checks: &mut Checks, field: &str, number: i32) -> Option<Backoff> {
    read(checks, (field, "RetryBackoff"), number, Backoff::ALL, retry_backoff)
}

pub(super) fn read_execution_status(checks: &mut Checks, field: &str, number: i32) -> Option<Status> {
    read(checks, (field, "ExecutionStatus"), number, Status::ALL, execution_status)
}

pub(super) fn read_dst_gap(checks: &mut Checks, field: &str, number: i32) -> Option<DstGap> {
    read(checks, (field, "DstGap"), number, &[DstGap::RunAfter, DstGap::Skip], dst_gap)
}

pub(super) fn read_dst_overlap(checks: &mut Checks, field: &str, number: i32) -> Option<DstOverlap> {
    let all = [DstOverlap::First, DstOverlap::Last, DstOverlap::Both];
    read(checks, (field, "DstOverlap"), number, &all, dst_overlap)
}
