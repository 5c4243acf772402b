//! The services of the API. Each call is: check the request (all wrong fields at once), ask the store, tell the others, answer.
//! A call begins with [`Checks::of`], which also takes over what the JSON side could not read, and with whose request it is
//! ([`caller`]), and goes on only after [`Checks::finish`].

pub(crate) mod caller;
mod checks;
mod executions;
mod job;
mod jobs;
mod many;
#[cfg(test)]
mod many_tests;
mod order;
mod paging;
mod schedules;
#[cfg(test)]
mod tests;
mod update;
mod when;
#[cfg(test)]
mod when_tests;
mod words;

use std::sync::Arc;

use carillon_core::limits;
use carillon_proto::v1::execution_service_server::ExecutionServiceServer;
use carillon_proto::v1::job_service_server::JobServiceServer;
use carillon_proto::v1::schedule_service_server::ScheduleServiceServer;
use carillon_store::idempotency::Key;
use carillon_store::page::Slice;
use sha2::{Digest, Sha256};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;

use crate::backend::Backend;
use checks::Checks;
use executions::Executions;
use jobs::Jobs;
use schedules::Schedules;

/// The services of the API, without health and reflection. `message_bytes_max`: of a request that takes many jobs.
pub(crate) fn services(backend: &Arc<Backend>, message_bytes_max: usize) -> Routes {
    // What tonic unpacks is bounded as what comes unpacked is.
    macro_rules! served {
        ($server:ident, $service:ident) => {
            $server::new($service(Arc::clone(backend))).accept_compressed(Gzip).send_compressed(Gzip)
        };
    }
    Routes::new(served!(JobServiceServer, Jobs).max_decoding_message_size(message_bytes_max))
        .add_service(served!(ExecutionServiceServer, Executions))
        .add_service(served!(ScheduleServiceServer, Schedules))
}

/// Checks `limit` and `offset`.
fn slice(checks: &mut Checks, limit: Option<u32>, offset: u32) -> Slice {
    let limit = limit.unwrap_or(limits::PAGE_SIZE_DEFAULT);
    Slice {
        limit: checks.number("limit", limit, 1, limits::PAGE_SIZE_MAX),
        offset: checks.number("offset", offset, 0, limits::OFFSET_MAX),
    }
}

/// The idempotency key of a request, if it has one. The fingerprint is of the message as it is on the wire, whose maps are
/// ordered, so the same request gives the same bytes, over JSON too.
fn key((space, platform): (String, Option<String>), method: &str, request_id: &str, request: &[u8]) -> Option<Key> {
    if request_id.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    hash.update(method);
    hash.update(request);
    Some(Key { space, platform, key: request_id.to_owned(), fingerprint: hash.finalize().to_vec() })
}
