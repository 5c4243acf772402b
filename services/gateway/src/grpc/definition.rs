//! What the three requests that create a job have in common, checked once.

use carillon_core::job::{HandlerType, JobType, Priority};
use carillon_core::limits;
use carillon_proto::v1;
use carillon_store::jobs::Definition;
use chrono::SecondsFormat;
use prost_types::Struct;

use super::checks::Checks;
use super::when::{self, Frame, Source, When};
use super::words;

/// Characters of a queue's name: it becomes part of Redis keys and of metric labels.
const QUEUE_CHARS_MAX: usize = 63;
const QUEUE_DEFAULT: &str = "default";

/// A request to create a job, checked as far as that is possible without a clock.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Draft {
    pub(super) definition: Definition,
    pub(super) when: When,
    pub(super) request_id: String,
}

/// The fields that all three requests have.
pub(super) struct Common {
    pub(super) name: String,
    /// Further schedules, as written.
    pub(super) schedules: Vec<String>,
    pub(super) frame: Frame,
    pub(super) handler_name: String,
    pub(super) payload: Option<Struct>,
    pub(super) created_by: String,
    pub(super) description: String,
    pub(super) max_executions: Option<u32>,
    pub(super) handler_type: Option<i32>,
    pub(super) max_retries: Option<u32>,
    pub(super) retry_delay_ms: Option<u32>,
    pub(super) timeout_ms: Option<u32>,
    pub(super) priority: Option<i32>,
    pub(super) concurrency: Option<u32>,
    pub(super) allow_overlap: bool,
    pub(super) tags: Vec<String>,
    pub(super) metadata: Option<Struct>,
    pub(super) platform_id: Option<String>,
    pub(super) queue: String,
    pub(super) request_id: String,
}

pub(super) fn cron(request: v1::CreateCronJobRequest, payload_bytes_max: usize, checks: &mut Checks) -> Draft {
    let source = when::lines(&request.schedule, &request.schedules, checks);
    let common = Common {
        name: request.name,
        schedules: request.schedules,
        frame: Frame {
            timezone: request.timezone,
            start_date: request.start_date,
            end_date: request.end_date,
            exclusions: request.exclusions,
            dst_gap: request.dst_gap,
            dst_overlap: request.dst_overlap,
        },
        handler_name: request.handler_name,
        payload: request.payload,
        created_by: request.created_by,
        description: request.description,
        max_executions: request.max_executions,
        handler_type: request.handler_type,
        max_retries: request.max_retries,
        retry_delay_ms: request.retry_delay_ms,
        timeout_ms: request.timeout_ms,
        priority: request.priority,
        concurrency: request.concurrency,
        allow_overlap: request.allow_overlap,
        tags: request.tags,
        metadata: request.metadata,
        platform_id: request.platform_id,
        queue: request.queue,
        request_id: request.request_id,
    };
    common.draft(JobType::Cron, request.schedule, source, payload_bytes_max, checks)
}

pub(super) fn one_time(request: v1::CreateOneTimeJobRequest, payload_bytes_max: usize, checks: &mut Checks) -> Draft {
    checks.that(request.execute_at.is_some(), "execute_at", "must be given");
    let at = checks.instant("execute_at", request.execute_at);
    let source = at.map_or(Source::Unreadable, |at| Source::Once(at, request.allow_past));
    let schedule = at.map(|at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true)).unwrap_or_default();
    let common = Common {
        name: request.name,
        schedules: Vec::new(),
        frame: Frame {
            timezone: request.timezone,
            start_date: request.start_date,
            end_date: request.end_date,
            ..Frame::default()
        },
        handler_name: request.handler_name,
        payload: request.payload,
        created_by: request.created_by,
        description: request.description,
        max_executions: request.max_executions,
        handler_type: request.handler_type,
        max_retries: request.max_retries,
        retry_delay_ms: request.retry_delay_ms,
        timeout_ms: request.timeout_ms,
        priority: request.priority,
        concurrency: request.concurrency,
        allow_overlap: request.allow_overlap,
        tags: request.tags,
        metadata: request.metadata,
        platform_id: request.platform_id,
        queue: request.queue,
        request_id: request.request_id,
    };
    common.draft(JobType::OneTime, schedule, source, payload_bytes_max, checks)
}

pub(super) fn recurring(
    request: v1::CreateRecurringJobRequest,
    payload_bytes_max: usize,
    checks: &mut Checks,
) -> Draft {
    let (interval, source) = when::interval("interval", &request.interval, checks);
    let common = Common {
        name: request.name,
        schedules: Vec::new(),
        frame: Frame {
            timezone: request.timezone,
            start_date: request.start_date,
            end_date: request.end_date,
            exclusions: request.exclusions,
            ..Frame::default()
        },
        handler_name: request.handler_name,
        payload: request.payload,
        created_by: request.created_by,
        description: request.description,
        max_executions: request.max_executions,
        handler_type: request.handler_type,
        max_retries: request.max_retries,
        retry_delay_ms: request.retry_delay_ms,
        timeout_ms: request.timeout_ms,
        priority: request.priority,
        concurrency: request.concurrency,
        allow_overlap: request.allow_overlap,
        tags: request.tags,
        metadata: request.metadata,
        platform_id: request.platform_id,
        queue: request.queue,
        request_id: request.request_id,
    };
    common.draft(JobType::Recurring, format!("@every {interval}"), source, payload_bytes_max, checks)
}

impl Common {
    fn draft(
        self,
        job_type: JobType,
        schedule: String,
        source: Source,
        payload_bytes_max: usize,
        checks: &mut Checks,
    ) -> Draft {
        let word_max = limits::WORD_CHARS_MAX;
        let when = self.frame.around(source, checks);
        let handler_type = checked_handler_type(self.handler_type, checks);
        let concurrency = checked_concurrency(self.concurrency, self.allow_overlap, checks);
        let max_executions = self.max_executions.map(|count| checks.number("max_executions", count, 1, u32::MAX));
        let priority = words::read_priority(checks, "priority", self.priority.unwrap_or_default());
        let number = |checks: &mut Checks, field, given: Option<u32>, default, least, most| {
            let number = given.map_or(default, |given| checks.number(field, given, least, most));
            // Within the limits; beyond them the request is refused.
            i32::try_from(number).unwrap_or(i32::MAX)
        };
        let definition = Definition {
            name: checks.text("name", &self.name, 1, limits::NAME_CHARS_MAX),
            description: checks.text("description", &self.description, 0, limits::DESCRIPTION_CHARS_MAX),
            job_type,
            schedule,
            schedules: self.schedules,
            timezone: when.timezone.clone(),
            exclusions: when.exclusions.clone(),
            dst_gap: when.dst_gap,
            dst_overlap: when.dst_overlap,
            start_date: when.start,
            end_date: when.end,
            max_executions: max_executions.map(i64::from),
            handler_name: checks.handler_name("handler_name", &self.handler_name, word_max),
            handler_type,
            payload: checks.document("payload", self.payload, payload_bytes_max),
            queue: match self.queue.as_str() {
                "" => QUEUE_DEFAULT.to_owned(),
                queue => checks.plain_word("queue", queue, QUEUE_CHARS_MAX),
            },
            priority: priority.unwrap_or(Priority::Medium),
            max_retries: number(
                checks,
                "max_retries",
                self.max_retries,
                limits::MAX_RETRIES_DEFAULT,
                0,
                limits::MAX_RETRIES_MAX,
            ),
            retry_delay_ms: number(
                checks,
                "retry_delay_ms",
                self.retry_delay_ms,
                limits::RETRY_DELAY_MS_DEFAULT,
                0,
                limits::RETRY_DELAY_MS_MAX,
            ),
            timeout_ms: number(
                checks,
                "timeout_ms",
                self.timeout_ms,
                limits::TIMEOUT_MS_DEFAULT,
                1,
                limits::TIMEOUT_MS_MAX,
            ),
            concurrency,
            allow_overlap: self.allow_overlap,
            tags: checked_tags(self.tags, checks),
            metadata: checks.document("metadata", self.metadata, payload_bytes_max),
            platform_id: self.platform_id.map(|platform| checks.text("platform_id", &platform, 1, word_max)),
            created_by: checks.text("created_by", &self.created_by, 0, word_max),
        };
        let request_id = checks.text("request_id", &self.request_id, 0, word_max);
        Draft { definition, when, request_id }
    }
}

fn checked_handler_type(given: Option<i32>, checks: &mut Checks) -> HandlerType {
    let read = words::read_handler_type(checks, "handler_type", given.unwrap_or_default());
    let handler_type = read.unwrap_or(HandlerType::Function);
    checks.that(
        handler_type == HandlerType::Function,
        "handler_type",
        format!("must be FUNCTION, the only one that is available yet, is {handler_type}"),
    );
    handler_type
}

/// Without overlap one execution at a time, which is what overlap means; with it no bound unless one is given.
fn checked_concurrency(given: Option<u32>, allow_overlap: bool, checks: &mut Checks) -> i32 {
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

fn checked_tags(tags: Vec<String>, checks: &mut Checks) -> Vec<String> {
    let most = limits::TAGS_MAX;
    checks.that(tags.len() <= most, "tags", format!("must be at most {most}, are {}", tags.len()));
    for (index, tag) in tags.iter().enumerate().take(most) {
        checks.text(&format!("tags[{index}]"), tag, 1, limits::WORD_CHARS_MAX);
    }
    tags
}
