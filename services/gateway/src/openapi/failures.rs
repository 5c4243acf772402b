//! Why a call can be refused, by what it takes: the failures of an operation are these and no other. `make contract` asks with what
//! keeps to the document and with what does not, and accepts no answer that is not in it.
//!
//! Left out is REQUEST_BROKEN: its client has gone and hears nothing.

use std::collections::BTreeMap;

use http::Method;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::json::routes::{ETAG, Route};
use crate::reason::Reason;

/// The words of its reasons by their HTTP status.
pub(super) fn of(route: &Route) -> BTreeMap<u16, Vec<&'static str>> {
    let mut by_status: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for reason in Reason::ALL.iter().filter(|reason| can_be(**reason, route)) {
        by_status.entry(reason.http().as_u16()).or_default().push(reason.word());
    }
    by_status
}

/// Exhaustive: a new reason says here whose it is.
fn can_be(reason: Reason, route: &Route) -> bool {
    let is_of_one = route.variables().next().is_some();
    let is_remembered = has(&route.input, "request_id");
    // What is asked for with a body and belongs to nothing is only looked at.
    let writes = route.http_method != Method::GET && (is_of_one || is_remembered);
    match reason {
        Reason::InvalidFields
        | Reason::DeadlineExceeded
        | Reason::GatewayBusy
        | Reason::PostgresUnavailable
        | Reason::PostgresBusy
        | Reason::HeadersTooLarge
        // A body that a call does not take is read as any other before it is refused.
        | Reason::RequestTooLarge
        | Reason::MediaTypeUnsupported
        | Reason::RequestLate
        | Reason::Internal => true,
        Reason::OrderTooWide => has(&route.input, "order_by"),
        // A job whose executions are listed is looked for; one that a schedule is only previewed for is not.
        Reason::NotFound => is_of_one || (has(&route.input, "job_id") && route.takes_from_query("job_id")),
        // What is triggered is not changed by it, and what is made is its maker's.
        Reason::NotOwn => writes && is_of_one && !is_remembered,
        Reason::KeyTaken => is_remembered && makes(route, "key"),
        Reason::RequestIdReused => is_remembered,
        Reason::WrongState => writes && is_of_one,
        Reason::Superseded => writes && is_of_one && makes(route, ETAG),
        Reason::ConcurrentChange => writes,
        Reason::QueuesExhausted => writes && makes(route, "queue"),
        // Of paths and methods that are no call, of gRPC, of nobody.
        Reason::PathUnknown
        | Reason::MethodNotAllowed
        | Reason::CallUnknown
        | Reason::Undecodable
        | Reason::RequestBroken => false,
    }
}

fn has(message: &MessageDescriptor, field: &str) -> bool {
    message.get_field_by_name(field).is_some()
}

/// Whether the request, or a message of ours in it, has such a field.
fn makes(route: &Route, field: &str) -> bool {
    let is_within = |inner: FieldDescriptor| {
        !inner.is_map() && matches!(inner.kind(), Kind::Message(message) if has(&message, field))
    };
    has(&route.input, field) || route.input.fields().any(is_within)
}

#[cfg(test)]
mod tests {
    use crate::json::routes::Routes;

    #[test]
    fn a_call_has_the_failures_of_what_it_takes() {
        let routes = Routes::from_descriptors(&carillon_proto::descriptors()).unwrap();
        let of = |name: &str| -> Vec<u16> {
            let route = routes.all().find(|route| route.name == name).unwrap();
            super::of(route).into_keys().collect()
        };
        assert_eq!(of("GetJob"), [400, 404, 408, 413, 415, 431, 500, 503, 504]);
        assert_eq!(of("ListJobs"), [400, 408, 413, 415, 431, 500, 503, 504]);
        for route in routes.all().filter(|route| route.name == "ListExecutions") {
            assert!(super::of(route).contains_key(&404), "of an unknown job, whether path or query names it");
        }
        assert_eq!(of("PreviewSchedule"), of("ListJobs"));
        assert_eq!(of("DeleteJob"), [400, 403, 404, 408, 409, 413, 415, 431, 500, 503, 504]);
        assert_eq!(of("TriggerJob"), [400, 404, 408, 409, 413, 415, 431, 500, 503, 504]);
        for made in ["CreateJob", "BatchCreateJobs"] {
            assert_eq!(of(made), [400, 408, 409, 413, 415, 429, 431, 500, 503, 504], "{made}");
        }
        assert_eq!(of("UpdateJob"), [400, 403, 404, 408, 409, 413, 415, 429, 431, 500, 503, 504]);
        let words = |name: &str| super::of(routes.all().find(|route| route.name == name).unwrap())[&409].clone();
        assert_eq!(words("CreateJob"), ["KEY_TAKEN", "REQUEST_ID_REUSED", "CONCURRENT_CHANGE"]);
        assert_eq!(words("UpdateJob"), ["SUPERSEDED", "CONCURRENT_CHANGE"]);
        assert_eq!(words("TriggerJob"), ["REQUEST_ID_REUSED", "CONCURRENT_CHANGE"]);
        assert_eq!(words("PauseJob"), ["CONCURRENT_CHANGE"]);
    }
}
