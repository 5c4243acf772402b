//! How long a client waits for its answer: the header `grpc-timeout`, of gRPC and, as with the grpc-gateway, of JSON.

use std::time::Duration;

use http::HeaderMap;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What the headers say; what cannot be read says nothing.
pub(crate) fn of(headers: &HeaderMap) -> Option<Duration> {
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

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        let read = |text: &'static str| {
            of(&HeaderMap::from_iter([(http::HeaderName::from_static(GRPC_TIMEOUT), HeaderValue::from_static(text))]))
        };
        for (text, millis) in
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("4m", 4), ("5000u", 5), ("6000000n", 6)]
        {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for text in ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", " 1S"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(of(&HeaderMap::new()), None);
    }
}
