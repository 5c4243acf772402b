//! How many headers a request may have, and how large they may be together. Up to twice that is read and refused here, in the
//! words of the API; beyond it the connection itself answers 431 (in HTTP/1, and closes) with nothing in it, so that nobody fills
//! the memory.

use http::HeaderMap;
use tonic::Status;

use crate::error_response::plain;
use crate::reason::Reason;

/// Headers of a request.
const COUNT_MAX: usize = 100;
/// Bytes of them together.
const BYTES_MAX: usize = 32 * 1024;
/// What is counted of each besides its name and its value (RFC 9113, 6.5.2).
const BYTES_BESIDE: usize = 32;

/// Headers that a connection reads.
pub(crate) const COUNT_READ: usize = 2 * COUNT_MAX;
/// Bytes of headers that a connection of HTTP/2 reads; of HTTP/1 it is what hyper holds at most, some 400 KiB.
pub(crate) const BYTES_READ: u32 = 64 * 1024;

/// Why a request with these headers is not answered.
pub(crate) fn refuse(headers: &HeaderMap) -> Option<Status> {
    if headers.len() > COUNT_MAX {
        let why = format!("the request has {} headers, more than {COUNT_MAX}", headers.len());
        return Some(plain(Reason::HeadersTooLarge, why));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + BYTES_BESIDE).sum();
    (bytes > BYTES_MAX).then(|| {
        plain(Reason::HeadersTooLarge, format!("the headers of the request have {bytes} bytes, more than {BYTES_MAX}"))
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(count: usize, bytes: usize) -> HeaderMap {
        let value = HeaderValue::from_str(&"x".repeat(bytes)).unwrap();
        let mut headers = HeaderMap::new();
        for _ in 0..count {
            headers.append(HeaderName::from_static("x-many"), value.clone());
        }
        headers
    }

    #[test]
    fn as_many_and_as_large_as_they_may_be_and_no_more() {
        let beside = "x-many".len() + BYTES_BESIDE;
        for (count, bytes, is_refused) in [
            (0, 0, false),
            (COUNT_MAX, 10, false),
            (COUNT_MAX + 1, 10, true),
            (1, BYTES_MAX - beside, false),
            (1, BYTES_MAX - beside + 1, true),
            (50, BYTES_MAX / 50, true),
        ] {
            assert_eq!(refuse(&headers(count, bytes)).is_some(), is_refused, "{count} of {bytes}");
        }
    }
}
