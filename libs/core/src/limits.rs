//! The bounds on what a client controls, and the defaults of what it leaves open.

/// Bytes of JSON text in one payload (a setting of the gateway; this is its default).
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a payload that travel inside a stream entry; a larger one is fetched by the executor, once a read batch.
pub const PAYLOAD_BYTES_IN_ENTRY: usize = 4 * 1024;
/// Bytes of JSON text of an execution's metadata: what its trigger gave and what its handler added, together.
pub const EXECUTION_METADATA_BYTES_MAX: usize = 16 * 1024;
/// Bytes of JSON text that a handler may return; more fails the attempt with that reason.
pub const RESULT_BYTES_MAX: usize = 256 * 1024;
/// Jobs of one request that creates many.
pub const JOBS_AT_ONCE_MAX: usize = 1_000;
/// Bytes of such a request.
pub const JOBS_AT_ONCE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Elements of any list of a request, but for those inside of a value: as many as the longest may have.
pub const LIST_MAX: usize = 1_000;
/// Values of one request, elements of its lists and what is in its documents: each may take two bytes where it comes in, and near to a
/// thousand once it is read. A payload and metadata of digits alone, both as large as they may be by default, have 262,144.
pub const VALUES_MAX: usize = 300_000;
/// Fields that a mask may name.
pub const MASK_PATHS_MAX: usize = 200;
/// Levels of objects and lists in a payload, in metadata, in a result. Decoders of protobuf allow 100 levels of messages
/// and spend three on each level of a `google.protobuf.Struct`; a page of a listing needs a few for itself.
pub const VALUE_DEPTH_MAX: usize = 30;
/// Bytes that one value may have as `google.protobuf.Value`: two of them and the rest of a row stay below the 4 MiB that
/// gRPC clients accept. A list of small numbers has up to six times the bytes of its text.
pub const VALUE_WIRE_BYTES_MAX: usize = 1024 * 1024 + 512 * 1024;
/// Characters of an error text, or of its stack, that are kept.
pub const ERROR_CHARS_MAX: usize = 8 * 1024;
/// Bytes of an error text, or of its stack, that are kept.
pub const ERROR_BYTES_MAX: usize = 16 * 1024;
/// Log lines kept of one attempt; the last one says how many were dropped.
pub const LOG_LINES_MAX: usize = 1_000;
/// Characters of one log line that are kept.
pub const LOG_LINE_CHARS_MAX: usize = 4 * 1024;
/// Bytes of one log line that are kept.
pub const LOG_LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of all log lines of one attempt; lines beyond it are dropped like those beyond their number.
pub const LOG_BYTES_MAX: usize = 256 * 1024;

/// Characters of a job's name.
pub const NAME_CHARS_MAX: usize = 200;
/// Characters of a job's description.
pub const DESCRIPTION_CHARS_MAX: usize = 4_000;
/// Characters of a handler name, a queue name, a tag, an idempotency key, `created_by`, `platform_id`.
pub const WORD_CHARS_MAX: usize = 200;
/// Characters of the reason that is given for a cancel.
pub const REASON_CHARS_MAX: usize = 1_000;
/// Tags of one job.
pub const TAGS_MAX: usize = 50;
/// Names of queues, where the gateway's settings do not say: each may have four streams.
pub const QUEUES_MAX: u32 = 1_000;
/// The most that the gateway's settings may say.
pub const QUEUES_MAX_MAX: u32 = 20_000;
/// Rows of one page of a listing.
pub const PAGE_SIZE_MAX: u32 = 1_000;
/// Rows of a page when the client does not say.
pub const PAGE_SIZE_DEFAULT: u32 = 50;
/// How far `offset` may skip: beyond it a listing costs more than it is worth.
pub const OFFSET_MAX: u32 = 10_000;

/// Retries after the first attempt, when the client does not say.
pub const MAX_RETRIES_DEFAULT: u32 = 3;
/// Retries after the first attempt, at most.
pub const MAX_RETRIES_MAX: u32 = 100;
/// Delay before the first retry, when the client does not say.
pub const RETRY_DELAY_MS_DEFAULT: u32 = 60_000;
/// Delay before the first retry, at most (a day).
pub const RETRY_DELAY_MS_MAX: u32 = 24 * 60 * 60 * 1_000;
/// What no delay of a retry grows beyond, when the client does not say (an hour).
pub const RETRY_DELAY_CAP_MS_DEFAULT: u32 = 60 * 60 * 1_000;
/// What may be said of that, at most (a week).
pub const RETRY_DELAY_CAP_MS_MAX: u32 = 7 * 24 * 60 * 60 * 1_000;
/// By how much of it chance changes such a delay, when the client does not say.
pub const RETRY_JITTER_PERCENT_DEFAULT: u32 = 10;
/// Time an attempt may take, when the client does not say.
pub const TIMEOUT_MS_DEFAULT: u32 = 300_000;
/// Time an attempt may take, at most (a week).
pub const TIMEOUT_MS_MAX: u32 = 7 * 24 * 60 * 60 * 1_000;
/// Executions of one job open at once, at most.
pub const CONCURRENCY_MAX: u32 = 10_000;
