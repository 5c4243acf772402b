//! How large a request may be: one bound for nearly every call, a greater one for those that take many things at once.

use carillon_core::limits::JOBS_AT_ONCE_BYTES_MAX;

/// Calls that take many things at once.
const LARGE: [&str; 1] = ["/carillon.v1.JobService/BatchCreateJobs"];
/// The message of any other call.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The message that becomes of a JSON body: a list of digits has up to six times the bytes.
pub(crate) const MESSAGE_OF_JSON_BYTES_MAX: usize = 6 * JOBS_AT_ONCE_BYTES_MAX;
/// What stands before a gRPC message.
const PREFIX_BYTES: usize = 5;

/// Bytes of a JSON body for the call of this path, whose bound is `ordinary` if it is none of [`LARGE`].
pub(crate) fn json_body(call: &str, ordinary: usize) -> usize {
    if LARGE.contains(&call) { JOBS_AT_ONCE_BYTES_MAX } else { ordinary }
}

/// Bytes of a gRPC body for the call of this path: its message, and what stands before it. Of gRPC-Web's text, what it is the text of.
pub(crate) fn grpc_body(call: &str) -> usize {
    let message = if LARGE.contains(&call) { JOBS_AT_ONCE_BYTES_MAX } else { MESSAGE_BYTES_MAX };
    message + PREFIX_BYTES
}

/// Bytes of the message of a gRPC body: what whoever sends it counts.
pub(crate) const fn message_of(grpc_body: usize) -> usize {
    grpc_body.saturating_sub(PREFIX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_takes_many_takes_more() {
        let mib = 1024 * 1024;
        let (create, batch) = ("/carillon.v1.JobService/CreateJob", LARGE[0]);
        assert_eq!((json_body(create, 7), json_body(batch, 7)), (7, 8 * mib));
        assert_eq!((grpc_body(create), grpc_body(batch)), (4 * mib + 5, 8 * mib + 5));
        assert_eq!(message_of(grpc_body(create)), 4 * mib);
    }

    /// A call that is renamed would lose its bound.
    #[test]
    fn there_are_such_calls() {
        let pool = carillon_proto::descriptors();
        for call in LARGE {
            let (service, method) = call.trim_start_matches('/').split_once('/').unwrap();
            let service = pool.get_service_by_name(service).unwrap();
            assert!(service.methods().any(|known| known.name() == method), "{call}");
        }
    }
}
