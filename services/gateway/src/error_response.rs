//! The one place where failures become answers: each has a [`Reason`], which says its codes. What is inside (SQL, addresses, causes)
//! goes to the log and never to the client.

use std::collections::HashMap;
use std::time::Duration;

use carillon_core::error::{FieldViolation, excerpt, quoted};
use carillon_core::limits::VALUE_DEPTH_MAX;
use carillon_store::Error;
use http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{error, warn};

use crate::reason::Reason;
use crate::transport::request_id;

/// Whose reasons they are.
const DOMAIN: &str = "carillon";
/// When to try again while Postgres is away: about as long as a failover takes to begin.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Of all that is wrong with a request, in its details: they travel in a header, of which proxies take 8 KiB, base64 included. Further
/// fields are counted.
const VIOLATIONS_BYTES_MAX: usize = 3_000;
const FIELD_CHARS_MAX: usize = 300;
/// Of a message.
const MESSAGE_CHARS_MAX: usize = 500;

/// A failure with its reason.
pub(crate) fn failed(reason: Reason, message: impl AsRef<str>, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason.word(), DOMAIN, HashMap::<String, String>::new());
    Status::with_error_details(reason.code(), excerpt(message.as_ref(), MESSAGE_CHARS_MAX), details)
}

/// One that says nothing beside.
pub(crate) fn plain(reason: Reason, message: impl AsRef<str>) -> Status {
    failed(reason, message, ErrorDetails::new())
}

/// One that tells when to try again.
pub(crate) fn later(reason: Reason, message: impl AsRef<str>) -> Status {
    failed(reason, message, ErrorDetails::with_retry_info(Some(RETRY_DELAY)))
}

/// The same failure with the id of the request at hand, by which whoever is told of it finds it in the gateway's log.
pub(crate) fn identified(status: &Status) -> Status {
    let Some(id) = request_id() else { return status.clone() };
    let mut details = status.get_error_details();
    details.set_request_info(id, "");
    Status::with_error_details_and_metadata(status.code(), status.message(), details, status.metadata().clone())
}

/// HTTP status of a failure: that of its reason; of one from elsewhere what google.rpc.Code documents.
pub(crate) fn http_status(status: &Status) -> StatusCode {
    let reason = status.get_details_error_info().and_then(|info| Reason::of(&info.reason));
    reason.map_or_else(|| http_status_of(status.code()), Reason::http)
}

fn http_status_of(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        // "Client closed request": not registered, but what proxies say.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// Refuses a request for its fields, every one of which is named as far as there is room. `unlisted`: how many more are wrong.
pub(crate) fn invalid(violations: &[FieldViolation], unlisted: usize) -> Status {
    failed(Reason::InvalidFields, message_of(violations, unlisted), named(violations, unlisted))
}

fn message_of(violations: &[FieldViolation], unlisted: usize) -> String {
    match (violations.first(), (violations.len() + unlisted).saturating_sub(1)) {
        (Some(only), 0) => only.to_string(),
        (Some(first), more) => format!("{first} (and {more} more)"),
        (None, _) => "the request is wrong".to_owned(),
    }
}

/// What there is no room for, and what is not listed, is counted by the last one, of no field.
fn named(violations: &[FieldViolation], unlisted: usize) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    let (mut bytes, mut named) = (0, 0);
    for violation in violations {
        let (field, rule) = (excerpt(&violation.field, FIELD_CHARS_MAX), excerpt(&violation.rule, MESSAGE_CHARS_MAX));
        bytes += field.len() + rule.len();
        if bytes > VIOLATIONS_BYTES_MAX && named > 0 {
            break;
        }
        details.add_bad_request_violation(field, rule);
        named += 1;
    }
    match violations.len() - named + unlisted {
        0 => {}
        1 => drop(details.add_bad_request_violation("", "1 more is wrong")),
        more => drop(details.add_bad_request_violation("", format!("{more} more are wrong"))),
    }
    details
}

/// What a request is told whose one field stands against the state that things are in.
pub(crate) fn of_field(reason: Reason, field: &str, why: impl Into<String>) -> Status {
    let violation = FieldViolation::new(field, why);
    failed(reason, &violation.rule, named(std::slice::from_ref(&violation), 0))
}

/// What a request is told that is not JSON, or not read as such.
pub(crate) fn body_refused(reason: Reason, rule: impl Into<String>) -> Status {
    let violation = FieldViolation::new("body", rule);
    failed(reason, violation.to_string(), named(&[violation], 0))
}

/// What tonic refuses by itself, before any service sees it, with a reason: it knows none of ours. `None`: it has one.
pub(crate) fn with_reason(status: &Status, call: &str) -> Option<Status> {
    if !status.details().is_empty() || status.code() == Code::Ok {
        return None;
    }
    Some(match status.code() {
        Code::Unimplemented if status.message().is_empty() => {
            plain(Reason::CallUnknown, format!("there is no call {}", quoted(call)))
        }
        Code::Unimplemented => plain(Reason::CallUnknown, status.message()),
        Code::OutOfRange | Code::ResourceExhausted => plain(Reason::RequestTooLarge, status.message()),
        Code::Internal => of_depth(status).unwrap_or_else(|| plain(Reason::Undecodable, status.message())),
        // Of health and reflection.
        Code::NotFound => plain(Reason::NotFound, status.message()),
        Code::InvalidArgument => plain(Reason::Undecodable, status.message()),
        Code::Cancelled => plain(Reason::RequestBroken, status.message()),
        _ => {
            error!("an answer has no reason: {status}");
            internal()
        }
    })
}

/// A request so deep that protobuf's decoder gave up. The decoder tells what it was reading by its text alone: from the inside out,
/// the field of the request last.
fn of_depth(status: &Status) -> Option<Status> {
    let path = status.message().strip_suffix(": recursion limit reached")?;
    let outermost = path.rsplit(": ").next().unwrap_or_default();
    let (_, field) = outermost.split_once('.')?;
    // Of a message in the request it is the field of that.
    let inner = path.rsplit(": ").nth(1).and_then(|inner| inner.split_once('.')).map(|(_, inner)| inner);
    let field = inner.filter(|_| field == "job").unwrap_or(field);
    Some(invalid(&[FieldViolation::new(field, format!("must not be nested deeper than {VALUE_DEPTH_MAX} levels"))], 0))
}

/// Seconds for a `Retry-After` header, if the status says when to try again.
pub(crate) fn retry_after(status: &Status) -> Option<u64> {
    let delay = status.get_details_retry_info()?.retry_delay?;
    Some(delay.as_secs().max(1))
}

/// A defect of ours, which is in the log.
pub(crate) fn internal() -> Status {
    plain(Reason::Internal, "internal error: see the gateway's log")
}

/// What a client is told of a failure of the store. Logged here, once.
pub(crate) fn of_store(failure: &Error) -> Status {
    match failure {
        Error::Unavailable(cause) | Error::Refused(cause) => {
            // The health loop logs the outage itself; this one is for a single odd failure.
            tracing::debug!("a request found Postgres unavailable: {cause}");
            later(Reason::PostgresUnavailable, "Postgres is away, or refuses to serve at the moment: try again")
        }
        Error::AllInUse(_) => {
            warn!("a request found all connections to Postgres in use, and none came free in time");
            later(Reason::PostgresBusy, "all connections to Postgres are in use: try again")
        }
        Error::Busy(cause) => {
            warn!("a request waited for somebody else's lock, or its statement took too long: {cause}");
            later(Reason::PostgresBusy, "somebody else holds what this needs, or it took too long: try again")
        }
        Error::Conflict(cause) => {
            warn!("a request lost against concurrent changes each time it was tried: {cause}");
            later(Reason::ConcurrentChange, "somebody else changed it at the same time: try again")
        }
        Error::NotFound { what, id } => {
            let details = ErrorDetails::with_resource_info(*what, id.to_string(), "", "");
            failed(Reason::NotFound, failure.to_string(), details)
        }
        Error::NotOwn { what, name } => {
            let details = ErrorDetails::with_resource_info(*what, name.as_str(), "", "");
            failed(Reason::NotOwn, failure.to_string(), details)
        }
        Error::FailedPrecondition { what, why } => {
            let mut details = ErrorDetails::new();
            details.add_precondition_failure_violation("STATE", *what, why.as_str());
            failed(Reason::WrongState, why, details)
        }
        Error::TooWide { .. } => {
            let rule = format!(
                "cannot be sorted by this: {failure}; narrow the filter (executions by scheduled_from and scheduled_before), or choose the order of created_at or scheduled_at"
            );
            let violation = FieldViolation::new("order_by", rule);
            failed(Reason::OrderTooWide, violation.to_string(), named(&[violation], 0))
        }
        Error::QueuesExhausted { .. } => of_elements(&[(String::new(), failure)]),
        Error::AlreadyExists { .. } => {
            let details = named(violation("", failure).as_slice(), 0);
            failed(Reason::KeyTaken, failure.to_string(), of_taken(failure, details))
        }
        Error::KeyReused { .. } => of_field(Reason::RequestIdReused, "request_id", failure.to_string()),
        Error::Data(cause) | Error::Internal(cause) => {
            error!("a statement failed: {cause}");
            internal()
        }
        Error::Unreadable { .. } => {
            error!("{failure}");
            internal()
        }
    }
}

/// What elements of a list are refused for by the store, each with its path; the first one says the reason. An empty path: the
/// request itself.
pub(crate) fn of_elements(refused: &[(String, &Error)]) -> Status {
    let violations: Vec<FieldViolation> =
        refused.iter().filter_map(|(path, failure)| violation(path, failure)).collect();
    match refused {
        [(_, first), ..] if violations.len() == refused.len() => {
            let reason = match first {
                Error::QueuesExhausted { .. } => Reason::QueuesExhausted,
                _ => Reason::KeyTaken,
            };
            failed(reason, message_of(&violations, 0), of_taken(first, named(&violations, 0)))
        }
        // Nothing that one of them is to blame for.
        [(_, first), ..] => of_store(first),
        [] => internal(),
    }
}

/// The field that is to blame for what the store refuses.
fn violation(path: &str, failure: &Error) -> Option<FieldViolation> {
    let (field, rule) = match failure {
        Error::AlreadyExists { .. } => ("key", failure.to_string()),
        Error::QueuesExhausted { queue, queues_max } => {
            let most = format!("the {queues_max} names of queues that gateway.queues_max allows");
            ("queue", format!("{} would be one more than {most}", quoted(queue)))
        }
        _ => return None,
    };
    Some(FieldViolation::new(if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }, rule))
}

/// `details`, and what was taken already.
fn of_taken(failure: &Error, mut details: ErrorDetails) -> ErrorDetails {
    if let Error::AlreadyExists { what, id } = failure {
        details.set_resource_info(*what, id.to_string(), "", "");
    } else if let Some(violation) = violation("", failure) {
        details.add_quota_failure_violation("gateway.queues_max", violation.rule);
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_wrong_fields_are_named() {
        let status =
            invalid(&[FieldViolation::new("name", "must be given"), FieldViolation::new("schedule", "is odd")], 0);
        assert_eq!(status.message(), "name: must be given (and 1 more)");
        let fields: Vec<String> =
            status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["name", "schedule"]);
    }

    /// A refused cancel of an execution named a job.
    #[test]
    fn whose_state_stands_against_it_is_named() {
        for what in ["job", "execution"] {
            let status = of_store(&Error::FailedPrecondition { what, why: "it has ended".to_owned() });
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "it has ended"));
            let violations = status.get_details_precondition_failure().unwrap().violations;
            assert_eq!(violations.len(), 1);
            assert_eq!((violations[0].subject.as_str(), violations[0].r#type.as_str()), (what, "STATE"));
            let missing = of_store(&Error::NotFound { what, id: uuid::Uuid::nil() });
            assert_eq!(missing.get_details_resource_info().unwrap().resource_type, what);
        }
    }

    #[test]
    fn a_full_pool_is_told_from_a_postgres_that_is_away() {
        let reason = |failure: sqlx::Error| {
            let told = of_store(&failure.into());
            (told.code(), retry_after(&told), told.get_details_error_info().unwrap().reason)
        };
        let busy = "POSTGRES_BUSY".to_owned();
        assert_eq!(reason(sqlx::Error::PoolTimedOut), (Code::Unavailable, Some(1), busy));
        let away = "POSTGRES_UNAVAILABLE".to_owned();
        let reset = sqlx::Error::Io(std::io::Error::other("reset"));
        assert_eq!(reason(reset), (Code::Unavailable, Some(1), away));
    }

    #[test]
    fn nothing_of_the_inside_gets_out() {
        let status = of_store(&Error::Unreadable { what: "jobs.type", why: "host=10.0.0.7".to_owned() });
        assert_eq!(status.code(), Code::Internal);
        assert!(
            !status.message().contains("10.0.0.7") && !String::from_utf8_lossy(status.details()).contains("10.0.0.7")
        );
        assert_eq!(status.get_details_error_info().unwrap().reason, "INTERNAL");
        let status = of_store(&Error::NotFound { what: "job", id: uuid::Uuid::nil() });
        assert_eq!(http_status(&status), StatusCode::NOT_FOUND);
        assert_eq!(http_status(&Status::not_found("x")), StatusCode::NOT_FOUND);
        assert_eq!(retry_after(&later(Reason::GatewayBusy, "x")), Some(1));
    }

    #[test]
    fn details_are_bounded_and_what_is_left_out_is_counted() {
        let long = |at: usize| FieldViolation::new(format!("f{at}.{}", "x".repeat(900)), "y".repeat(900));
        let status = invalid(&(0..50).map(long).collect::<Vec<_>>(), 0);
        assert!(status.details().len() < 4_096, "{}", status.details().len());
        let violations = status.get_details_bad_request().unwrap().field_violations;
        let last = violations.last().unwrap();
        assert_eq!((last.field.as_str(), last.description.as_str()), ("", "47 more are wrong"));
        assert_eq!(violations.len(), 4);
        let last = |unlisted| {
            let status = invalid(&[FieldViolation::new("name", "must be given")], unlisted);
            let violations = status.get_details_bad_request().unwrap().field_violations;
            (status.message().to_owned(), violations.len(), violations.last().unwrap().description.clone())
        };
        assert_eq!(last(0), ("name: must be given".to_owned(), 1, "must be given".to_owned()));
        assert_eq!(last(1), ("name: must be given (and 1 more)".to_owned(), 2, "1 more is wrong".to_owned()));
        assert_eq!(last(9), ("name: must be given (and 9 more)".to_owned(), 2, "9 more are wrong".to_owned()));
        assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_FIELDS");
    }

    #[test]
    fn what_tonic_refuses_by_itself_has_a_reason_too() {
        let of = |status: Status| with_reason(&status, "/carillon.v1.JobService/Nonsense");
        let unknown = of(Status::unimplemented("")).unwrap();
        assert_eq!(unknown.message(), "there is no call \"/carillon.v1.JobService/Nonsense\"");
        for (status, reason) in [
            (Status::unimplemented(""), "CALL_UNKNOWN"),
            (Status::out_of_range("too large"), "REQUEST_TOO_LARGE"),
            (Status::internal("failed to decode Protobuf message"), "UNDECODABLE"),
            (Status::internal("failed: CreateJobRequest.job: recursion limit reached"), "INVALID_FIELDS"),
            (Status::not_found("service not registered"), "NOT_FOUND"),
            (Status::invalid_argument("invalid MessageRequest"), "UNDECODABLE"),
            (Status::cancelled("stream was closed"), "REQUEST_BROKEN"),
            (Status::unknown("no one knows"), "INTERNAL"),
        ] {
            assert_eq!(of(status).unwrap().get_details_error_info().unwrap().reason, reason);
        }
        assert!(of(internal()).is_none() && of(Status::ok("")).is_none());
    }
}
