//! How long a request may take: what its client says by the header `grpc-timeout`, of gRPC and, as with the grpc-gateway, of JSON, up to
//! a bound. What it leaves is known to all that is done for the request: nothing is waited for that nobody waits for.

use std::future::Future;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

use crate::error_response::plain;
use crate::reason::Reason;

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Nobody waits longer, whatever is said or if nothing is. A request has its place among `gateway.requests_max` for all that time, while
/// its body arrives within 30 s and each of its questions to Postgres ends within `gateway.statement_timeout`.
const TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);

tokio::task_local! {
    static DEADLINE: Deadline;
}

/// When a request is not waited for any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// What the headers say, from now on; what cannot be read says nothing.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self(Instant::now() + said(headers).unwrap_or(TIMEOUT_MAX).min(TIMEOUT_MAX))
    }

    /// What comes of `work`, or that it was late.
    pub(crate) async fn hold<T>(self, work: impl Future<Output = T>) -> Result<T, Status> {
        tokio::time::timeout_at(self.0, DEADLINE.scope(self, work)).await.map_err(|_| passed())
    }
}

/// What the request at hand leaves for whatever is done for it; zero: its client waits no more.
pub(crate) fn left() -> Duration {
    DEADLINE.try_with(|Deadline(at)| at.saturating_duration_since(Instant::now())).unwrap_or(TIMEOUT_MAX)
}

/// What the client is told, if it hears it.
pub(crate) fn passed() -> Status {
    plain(Reason::DeadlineExceeded, "the deadline of the request has passed: it may or may not have been done")
}

fn said(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (unit, digits) = text.char_indices().next_back().map(|(at, unit)| (unit, &text[..at]))?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 60 * 60),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn saying(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(GRPC_TIMEOUT), HeaderValue::from_static(text))])
    }

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        let read = |text| said(&saying(text));
        for (text, millis) in
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("4m", 4), ("5000u", 5), ("6000000n", 6)]
        {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for text in ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", " 1S"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(said(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_said_holds_up_to_a_bound_and_what_it_leaves_is_known() {
        let none = HeaderMap::new();
        for (headers, waits) in [(saying("3S"), 3), (saying("99999999H"), 300), (saying("1s"), 300), (none, 300)] {
            let (began, deadline) = (Instant::now(), Deadline::of(&headers));
            let seen = deadline.hold(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                left()
            });
            assert_eq!(seen.await.unwrap(), Duration::from_secs(waits - 1), "{headers:?}");
            let late = deadline.hold(std::future::pending::<()>()).await.unwrap_err();
            assert_eq!((late.code(), began.elapsed()), (tonic::Code::DeadlineExceeded, Duration::from_secs(waits)));
        }
        assert_eq!(left(), TIMEOUT_MAX, "of no request");
    }
}
