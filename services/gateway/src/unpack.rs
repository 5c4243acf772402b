//! gRPC messages that come packed by gzip, unpacked here: what they are then has room among all bodies in hand, and is bounded by the
//! call. tonic would unpack them too, each up to what the largest call of its service may have, and count none; and it knows one name of
//! gzip, written in one way.

use std::io::Read as _;

use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue};

const ENCODING: &str = "grpc-encoding";
/// Before a message: whether it is packed, and its length.
const PREFIX_BYTES: usize = 5;

/// Why it is not unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is more than it may be.
    TooLarge,
    /// It is no gzip.
    Broken,
}

/// Whether a header names gzip, by either of its names (RFC 9110, 8.4.1.3).
pub(crate) fn is_gzip(encoding: &HeaderValue) -> bool {
    ["gzip", "x-gzip"].iter().any(|name| encoding.as_bytes().eq_ignore_ascii_case(name.as_bytes()))
}

/// The body with its message unpacked, of at most `bytes_max`, and no word any more of how it was packed; `None`: it is not, or not so
/// that this could know.
pub(crate) fn message(headers: &mut HeaderMap, body: &[u8], bytes_max: usize) -> Result<Option<Vec<u8>>, Unreadable> {
    let is_gzip = headers.get(ENCODING).is_some_and(is_gzip);
    if is_gzip {
        headers.remove(ENCODING);
    }
    let Some((prefix, packed)) = body.split_at_checked(PREFIX_BYTES).filter(|(prefix, _)| is_gzip && prefix[0] == 1)
    else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let packed = packed.get(..length).ok_or(Unreadable::Broken)?;
    let mut whole = vec![0; PREFIX_BYTES];
    let most = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    let read = GzDecoder::new(packed).take(most).read_to_end(&mut whole).map_err(|_| Unreadable::Broken)?;
    if read > bytes_max {
        return Err(Unreadable::TooLarge);
    }
    let read = u32::try_from(read).map_err(|_| Unreadable::TooLarge)?;
    whole[1..PREFIX_BYTES].copy_from_slice(&read.to_be_bytes());
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag], &length[..], message].concat()
    }

    fn packed(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(message).unwrap();
        encoder.finish().unwrap()
    }

    fn headers(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(ENCODING), HeaderValue::from_static(encoding))])
    }

    #[test]
    fn what_is_packed_is_unpacked_within_its_bound() {
        let read = |body: &[u8], bytes_max| message(&mut headers("gzip"), body, bytes_max);
        let body = framed(1, &packed(b"message"));
        assert_eq!(read(&body, 7), Ok(Some(framed(0, b"message"))));
        assert_eq!(read(&body, 6), Err(Unreadable::TooLarge));
        let bomb = framed(1, &packed(&vec![0; 1 << 24]));
        assert!(bomb.len() < 1 << 15);
        assert_eq!(read(&bomb, 1 << 20), Err(Unreadable::TooLarge));
        assert_eq!(read(&framed(1, b"no gzip"), 99), Err(Unreadable::Broken));
        assert_eq!(read(&body[..body.len() - 1], 99), Err(Unreadable::Broken), "cut off");
        assert_eq!((read(&framed(0, b"plain"), 1), read(&[1, 0], 1)), (Ok(None), Ok(None)));
        assert_eq!(message(&mut HeaderMap::new(), &body, 1), Ok(None));
    }

    #[test]
    fn gzip_is_known_by_both_its_names_and_no_more_named_once_it_is_unpacked() {
        for (encoding, is_known) in
            [("gzip", true), ("GZIP", true), ("x-gzip", true), ("X-Gzip", true), ("br", false), ("gzip, gzip", false)]
        {
            let mut headers = headers(encoding);
            let read = message(&mut headers, &framed(1, &packed(b"message")), 99);
            assert_eq!(read, Ok(is_known.then(|| framed(0, b"message"))), "{encoding}");
            assert_eq!(headers.contains_key(ENCODING), !is_known, "{encoding}");
        }
    }
}
