//! The one place where failures become codes: kind to gRPC in one exhaustive table, gRPC to HTTP in another. What is inside
//! (SQL, addresses, causes) goes to the log and never to the client.

use std::collections::HashMap;
use std::time::Duration;

use carillon_core::error::{FieldViolation, Kind, quoted};
use carillon_core::limits::VALUE_DEPTH_MAX;
use carillon_store::Error;
use http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{error, warn};

/// When to try again while Postgres is away: about as long as a failover takes to begin.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// gRPC code of a kind of failure.
const fn code_of(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Conflict => Code::Aborted,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::Unavailable => Code::Unavailable,
        Kind::Internal => Code::Internal,
    }
}

/// HTTP status of a gRPC code, as google.rpc.Code documents it.
pub(crate) fn http_status(code: Code) -> StatusCode {
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

/// INVALID_ARGUMENT with every wrong field.
pub(crate) fn invalid(violations: &[FieldViolation]) -> Status {
    let mut details = ErrorDetails::new();
    for violation in violations {
        details.add_bad_request_violation(violation.field.as_str(), violation.rule.as_str());
    }
    let message = match violations {
        [only] => only.to_string(),
        [first, ..] => format!("{first} (and {} more)", violations.len() - 1),
        [] => "the request is wrong".to_owned(),
    };
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// INVALID_ARGUMENT, where a request was so deep that protobuf's decoder gave up, which tonic calls an internal error. The
/// decoder tells what it was reading by its text alone: from the inside out, the field of the request last.
pub(crate) fn of_depth(status: &Status) -> Option<Status> {
    let path = status.message().strip_suffix(": recursion limit reached")?;
    let outermost = path.rsplit(": ").next().unwrap_or_default();
    let (_, field) = outermost.split_once('.')?;
    Some(invalid(&[FieldViolation::new(field, format!("must not be nested deeper than {VALUE_DEPTH_MAX} levels"))]))
}

/// UNAVAILABLE with a hint when to try again.
pub(crate) fn unavailable(message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// Seconds for a `Retry-After` header, if the status says when to try again.
pub(crate) fn retry_after(status: &Status) -> Option<u64> {
    let delay = status.get_details_retry_info()?.retry_delay?;
    Some(delay.as_secs().max(1))
}

/// What a client is told of a failure of the store. Logged here, once.
pub(crate) fn of_store(failure: &Error) -> Status {
    let code = code_of(failure.kind());
    match failure {
        Error::Unavailable(cause) | Error::Refused(cause) => {
            // The health loop logs the outage itself; this one is for a single odd failure.
            tracing::debug!("a request found Postgres unavailable: {cause}");
            unavailable("Postgres is away, or refuses to serve at the moment: try again")
        }
        Error::Busy(cause) => {
            warn!("a request waited for somebody else's lock, or its statement took too long: {cause}");
            unavailable("somebody else holds what this needs, or it took too long: try again")
        }
        Error::Conflict(cause) => {
            warn!("a request lost against concurrent changes each time it was tried: {cause}");
            let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
            Status::with_error_details(code, "somebody else changed it at the same time: try again", details)
        }
        Error::NotFound { what, id } => {
            let details = ErrorDetails::with_resource_info(*what, id.to_string(), "", "");
            Status::with_error_details(code, failure.to_string(), details)
        }
        Error::FailedPrecondition { what, why } => {
            let mut details = ErrorDetails::new();
            details.add_precondition_failure_violation("STATE", *what, why.as_str());
            Status::with_error_details(code, why.as_str(), details)
        }
        Error::QueuesExhausted { queue, queues_max } => {
            let rule = format!(
                "{} would be one more than the {queues_max} names of queues that gateway.queues_max allows",
                quoted(queue)
            );
            let mut details = ErrorDetails::with_quota_failure_violation("gateway.queues_max", rule.as_str());
            details.add_bad_request_violation("queue", rule.as_str());
            Status::with_error_details(code, format!("queue: {rule}"), details)
        }
        Error::AlreadyExists { what, id } => {
            let details = ErrorDetails::with_resource_info(*what, id.to_string(), "", "");
            Status::with_error_details(code, failure.to_string(), details)
        }
        Error::KeyReused { .. } => {
            let details = ErrorDetails::with_error_info("REQUEST_ID_REUSED", "carillon", HashMap::new());
            Status::with_error_details(code, failure.to_string(), details)
        }
        Error::Data(cause) | Error::Internal(cause) => {
            error!("a statement failed: {cause}");
            Status::new(code, "internal error: see the gateway's log")
        }
        Error::Unreadable { .. } => {
            error!("{failure}");
            Status::new(code, "internal error: see the gateway's log")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_wrong_fields_are_named() {
        let status =
            invalid(&[FieldViolation::new("name", "must be given"), FieldViolation::new("schedule", "is odd")]);
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
    fn nothing_of_the_inside_gets_out() {
        let status = of_store(&Error::Unreadable { what: "jobs.type", why: "host=10.0.0.7".to_owned() });
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("10.0.0.7") && status.details().is_empty());
        let status = of_store(&Error::NotFound { what: "job", id: uuid::Uuid::nil() });
        assert_eq!(http_status(status.code()), StatusCode::NOT_FOUND);
        assert_eq!(retry_after(&unavailable("x")), Some(1));
    }
}
