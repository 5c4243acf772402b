//! A job between the wire and the store: read with its checks, and shown. One field more is a line in each of the two.

use carillon_core::job::{HandlerType, JobType, Priority};
use carillon_core::limits;
use carillon_core::retry::Backoff;
use carillon_proto::v1;
use carillon_store::jobs::{Definition, Job};

use super::checks::Checks;
use super::when::{self, When};
use super::words;
use crate::values;

/// Characters of a queue's name: it becomes part of Redis keys and of metric labels.
const QUEUE_CHARS_MAX: usize = 63;
const QUEUE_DEFAULT: &str = "default";

/// How a job may be given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Its type, where the call says it.
    pub(super) job_type: Option<JobType>,
    /// Whether its instant may be past.
    pub(super) allow_past: bool,
    /// Bytes of its documents.
    pub(super) payload_bytes_max: usize,
}

/// Reads a job, as far as that is possible without a clock. What is OUTPUT_ONLY is passed over.
pub(super) fn read(mut job: v1::Job, rules: Rules, checks: &mut Checks) -> (Definition, When) {
    let word_max = limits::WORD_CHARS_MAX;
    let given_type = words::read_job_type(checks, "type", job.r#type);
    let (job_type, when) = when::of_job(&mut job, given_type, rules.job_type, rules.allow_past, checks);
    let definition = Definition {
        name: checks.text("name", &job.name, 1, limits::NAME_CHARS_MAX),
        description: checks.text("description", &job.description, 0, limits::DESCRIPTION_CHARS_MAX),
        job_type,
        key: job.key.map(|key| checks.given_text("key", &key, word_max)),
        schedule: job.schedule,
        schedules: job.schedules,
        interval: job.interval.trim().to_owned(),
        execute_at: when.instant(),
        timezone: when.timezone.clone(),
        exclusions: when.exclusions.clone(),
        dst_gap: when.dst_gap,
        dst_overlap: when.dst_overlap,
        start_date: when.start,
        end_date: when.end,
        max_executions: job.max_executions.map(|count| checks.number("max_executions", count, 1, u32::MAX).into()),
        handler_name: checks.handler_name("handler_name", &job.handler_name, word_max),
        handler_type: handler_type(job.handler_type, checks),
        payload: checks.document("payload", job.payload, rules.payload_bytes_max),
        queue: queue(&job.queue, checks),
        priority: words::read_priority(checks, "priority", job.priority).unwrap_or(Priority::Medium),
        max_retries: checks.count_or(
            "max_retries",
            job.max_retries,
            limits::MAX_RETRIES_DEFAULT,
            0,
            limits::MAX_RETRIES_MAX,
        ),
        retry_delay_ms: checks.count_or(
            "retry_delay_ms",
            job.retry_delay_ms,
            limits::RETRY_DELAY_MS_DEFAULT,
            0,
            limits::RETRY_DELAY_MS_MAX,
        ),
        retry_backoff: words::read_retry_backoff(checks, "retry_backoff", job.retry_backoff)
            .unwrap_or(Backoff::Exponential),
        retry_delay_cap_ms: checks.count_or(
            "retry_delay_cap_ms",
            job.retry_delay_cap_ms,
            limits::RETRY_DELAY_CAP_MS_DEFAULT,
            0,
            limits::RETRY_DELAY_CAP_MS_MAX,
        ),
        retry_jitter_percent: checks.count_or(
            "retry_jitter_percent",
            job.retry_jitter_percent,
            limits::RETRY_JITTER_PERCENT_DEFAULT,
            0,
            100,
        ),
        timeout_ms: checks.count_or(
            "timeout_ms",
            job.timeout_ms,
            limits::TIMEOUT_MS_DEFAULT,
            1,
            limits::TIMEOUT_MS_MAX,
        ),
        concurrency: concurrency(job.concurrency, job.allow_overlap, checks),
        allow_overlap: job.allow_overlap,
        tags: tags(job.tags, checks),
        metadata: checks.document("metadata", job.metadata, rules.payload_bytes_max),
        platform_id: job.platform_id.map(|platform| checks.given_text("platform_id", &platform, word_max)),
        created_by: checks.text("created_by", &job.created_by, 0, word_max),
    };
    (definition, when)
}

/// Shows a job; one that is not written has no id.
pub(super) fn show(job: Job) -> v1::Job {
    let avg_duration_ms = values::to_count(job.avg_duration_ms());
    let definition = job.definition;
    v1::Job {
        id: Some(job.id).filter(|id| !id.is_nil()).map(|id| id.to_string()).unwrap_or_default(),
        name: definition.name,
        description: definition.description,
        r#type: words::job_type(definition.job_type).into(),
        status: words::job_status(job.status).into(),
        key: definition.key,
        schedule: definition.schedule,
        schedules: definition.schedules,
        interval: definition.interval,
        execute_at: definition.execute_at.map(values::to_timestamp),
        timezone: definition.timezone,
        start_date: definition.start_date.map(values::to_timestamp),
        end_date: definition.end_date.map(values::to_timestamp),
        exclusions: definition.exclusions.into_iter().map(when::exclusion_to_wire).collect(),
        dst_gap: definition.dst_gap.map(|gap| words::dst_gap(gap).into()),
        dst_overlap: definition.dst_overlap.map(|overlap| words::dst_overlap(overlap).into()),
        max_executions: definition.max_executions.map(values::to_count),
        handler_name: definition.handler_name,
        handler_type: words::handler_type(definition.handler_type).into(),
        payload: Some(values::to_struct(definition.payload)),
        queue: definition.queue,
        priority: words::priority(definition.priority).into(),
        max_retries: Some(values::to_count(definition.max_retries.into())),
        retry_delay_ms: Some(values::to_count(definition.retry_delay_ms.into())),
        retry_backoff: words::retry_backoff(definition.retry_backoff).into(),
        retry_delay_cap_ms: Some(values::to_count(definition.retry_delay_cap_ms.into())),
        retry_jitter_percent: Some(values::to_count(definition.retry_jitter_percent.into())),
        timeout_ms: Some(values::to_count(definition.timeout_ms.into())),
        concurrency: Some(values::to_count(definition.concurrency.into())),
        allow_overlap: definition.allow_overlap,
        tags: definition.tags,
        metadata: Some(values::to_struct(definition.metadata)),
        platform_id: definition.platform_id,
        created_by: definition.created_by,
        revision: values::to_count(job.revision),
        created_at: Some(values::to_timestamp(job.created_at)),
        updated_at: Some(values::to_timestamp(job.updated_at)),
        paused_at: job.paused_at.map(values::to_timestamp),
        completed_at: job.completed_at.map(values::to_timestamp),
        cancelled_at: job.cancelled_at.map(values::to_timestamp),
        next_run: job.next_run.map(values::to_timestamp),
        last_run: job.last_run.map(values::to_timestamp),
        executions_count: values::to_count(job.executions_count),
        success_count: values::to_count(job.success_count),
        failure_count: values::to_count(job.failure_count),
        avg_duration_ms,
        etag: etag(job.revision),
    }
}

/// What a definition is known by. Quoted, as HTTP has it.
pub(super) fn etag(revision: i64) -> String {
    format!("\"{revision}\"")
}

fn handler_type(given: i32, checks: &mut Checks) -> HandlerType {
    let read = words::read_handler_type(checks, "handler_type", given);
    let handler_type = read.unwrap_or(HandlerType::Function);
    checks.that(
        handler_type == HandlerType::Function,
        "handler_type",
        format!("must be FUNCTION, the only one that is available yet, is {handler_type}"),
    );
    handler_type
}

fn queue(given: &str, checks: &mut Checks) -> String {
    match given {
        "" => QUEUE_DEFAULT.to_owned(),
        queue => checks.plain_word("queue", queue, QUEUE_CHARS_MAX),
    }
}

/// Without overlap one execution at a time, which is what overlap means; with it no bound unless one is given.
fn concurrency(given: Option<u32>, allow_overlap: bool, checks: &mut Checks) -> i32 {
    let concurrency = match (given, allow_overlap) {
        (None, false) => 1,
        (None, true) => 0,
        (Some(given), true) => checks.number("concurrency", given, 0, limits::CONCURRENCY_MAX),
        (Some(given), false) => {
            checks.that(given == 1, "concurrency", format!("must be 1 unless allow_overlap is true, is {given}"));
            1
        }
    };
    i32::try_from(concurrency).unwrap_or(i32::MAX)
}

/// One that is given twice is kept once, where it came first.
fn tags(given: Vec<String>, checks: &mut Checks) -> Vec<String> {
    let most = limits::TAGS_MAX;
    checks.that(given.len() <= most, "tags", format!("must be at most {most}, are {}", given.len()));
    let mut tags = Vec::new();
    for (index, tag) in given.into_iter().enumerate().take(most) {
        checks.text(&format!("tags[{index}]"), &tag, 1, limits::WORD_CHARS_MAX);
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}
