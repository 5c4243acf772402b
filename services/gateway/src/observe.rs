//! Counts and times requests: `carillon_gateway_requests_total{method,code}` and
//! `carillon_gateway_request_duration_seconds{method}`. The method is a name from the protos or `none`, never text from
//! outside, so the number of series is bounded. `carillon_gateway_connections_closed_total{why}` counts those that had to go.

use std::future::Future;
use std::time::Instant;

use tonic::{Code, Response, Status};

/// What the metrics mean, as `/metrics` says it. Once, at the start.
pub(crate) fn describe() {
    metrics::describe_counter!(
        "carillon_gateway_requests_total",
        metrics::Unit::Count,
        "Requests answered, by method and gRPC code; JSON requests count as the method that they stand for"
    );
    metrics::describe_histogram!(
        "carillon_gateway_request_duration_seconds",
        metrics::Unit::Seconds,
        "Duration of a request, by method"
    );
    metrics::describe_counter!(
        "carillon_gateway_connections_closed_total",
        metrics::Unit::Count,
        "Connections closed for want of places: made_room (idle while another waited), no_place (too many waited already)"
    );
}

/// Counts a connection that had to go.
pub(crate) fn connection_closed(why: &'static str) {
    metrics::counter!("carillon_gateway_connections_closed_total", "why" => why).increment(1);
}

/// Runs one call of a service and records how it ended.
pub(crate) async fn call<T>(
    method: &'static str,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let began = Instant::now();
    let outcome = work.await;
    record(method, outcome.as_ref().map_or_else(Status::code, |_| Code::Ok), began);
    outcome.map(Response::new)
}

/// Records one request.
pub(crate) fn record(method: &str, code: Code, began: Instant) {
    let method = method.to_owned();
    metrics::counter!("carillon_gateway_requests_total", "method" => method.clone(), "code" => name_of(code))
        .increment(1);
    metrics::histogram!("carillon_gateway_request_duration_seconds", "method" => method)
        .record(began.elapsed().as_secs_f64());
}

const fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
