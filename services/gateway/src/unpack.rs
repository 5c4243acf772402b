//! gRPC messages that come packed by gzip, unpacked here: what they are then has room among all bodies in hand, and is bounded by the
//! call. tonic would unpack them too, each up to what the largest call of its service may have, and count none.

use std::io::Read as _;

use flate2::read::GzDecoder;
use http::HeaderMap;

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

/// The body with its message unpacked, of at most `bytes_max`; `None`: it is not packed, or not so that this could know.
pub(crate) fn message(headers: &HeaderMap, body: &[u8], bytes_max: usize) -> Result<Option<Vec<u8>>, Unreadable> {
    let is_gzip = headers.get(ENCODING).is_some_and(|encoding| encoding == "gzip");
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
    use http::HeaderValue;

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

    #[test]
    fn what_is_packed_is_unpacked_within_its_bound() {
        let gzip = HeaderMap::from_iter([(http::HeaderName::from_static(ENCODING), HeaderValue::from_static("gzip"))]);
        let body = framed(1, &packed(b"message"));
        assert_eq!(message(&gzip, &body, 7), Ok(Some(framed(0, b"message"))));
        assert_eq!(message(&gzip, &body, 6), Err(Unreadable::TooLarge));
        let bomb = framed(1, &packed(&vec![0; 1 << 24]));
        assert!(bomb.len() < 1 << 15);
        assert_eq!(message(&gzip, &bomb, 1 << 20), Err(Unreadable::TooLarge));
        assert_eq!(message(&gzip, &framed(1, b"no gzip"), 99), Err(Unreadable::Broken));
        assert_eq!(message(&gzip, &body[..body.len() - 1], 99), Err(Unreadable::Broken), "cut off");
        for (headers, body) in [(&gzip, framed(0, b"plain")), (&HeaderMap::new(), body), (&gzip, vec![1, 0])] {
            assert_eq!(message(headers, &body, 1), Ok(None));
        }
    }
}
