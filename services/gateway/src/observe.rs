//! Counts and times requests: `carillon_gateway_requests_total{method,code}` and
//! `carillon_gateway_request_duration_seconds{method}`. The method is a name from the protos or `none`, never text from
//! outside, so the number of series is bounded. `carillon_gateway_connections_closed_total{why}` counts those that had to go.

use std::future::Future;
use std::time::Instant;

use tonic::{Code, Response, Status};

use crate::deadline;

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

/// What stands for the method of a request that is none's.
pub(crate) const NO_METHOD: &str = "none";

/// Runs one call of a service and records how it ended, also if nobody waits for that any more.
pub(crate) async fn call<T>(
    method: &'static str,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let mut call = Call { method, began: Instant::now(), has_ended: false };
    let outcome = work.await;
    call.has_ended = true;
    record(method, outcome.as_ref().map_or_else(Status::code, |_| Code::Ok), call.began);
    outcome.map(Response::new)
}

/// A call until its end.
struct Call {
    method: &'static str,
    began: Instant,
    has_ended: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.has_ended {
            let is_late = deadline::left().is_zero();
            record(self.method, if is_late { Code::DeadlineExceeded } else { Code::Cancelled }, self.began);
        }
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::deadline::Deadline;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_has_not_succeeded() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let pending = || call::<()>("GetJob", std::future::pending());
        let is_counted = |code: &str| {
            let text = recorder.handle().render();
            text.contains(&format!("carillon_gateway_requests_total{{method=\"GetJob\",code=\"{code}\"}} 1\n"))
        };
        let given_up = Deadline::of(&HeaderMap::new()).hold(pending());
        assert!(tokio::time::timeout(Duration::from_secs(1), given_up).await.is_err());
        assert!(is_counted("CANCELLED") && !is_counted("OK"), "{}", recorder.handle().render());
        Deadline::of(&HeaderMap::new()).hold(pending()).await.unwrap_err();
        assert!(is_counted("DEADLINE_EXCEEDED") && is_counted("CANCELLED"), "{}", recorder.handle().render());
        call("GetJob", async { Ok(()) }).await.unwrap();
        assert!(is_counted("OK"));
    }
}
