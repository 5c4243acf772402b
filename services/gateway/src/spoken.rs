//! What a request speaks, by its content type: gRPC, gRPC-Web in its two forms, and JSON, which is everything else.
//!
//! tonic-web knows four content types, letter by letter, and takes all others for gRPC, or refuses them without a word. So what it is
//! given is written as it knows it, and what nobody here speaks is refused before.

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};

const GRPC: &str = "application/grpc";
const WEB: &str = "application/grpc-web";
const WEB_TEXT: &str = "application/grpc-web-text";
/// What messages are written in, where it is said.
const PROTO: &str = "+proto";

/// What a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Grpc,
    Web(Form),
    Json,
    /// gRPC with messages that are no protobuf.
    Unknown,
}

/// How gRPC-Web writes its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Bytes,
    /// As base64.
    Text,
}

/// The request came as text: what cannot be read of it is its text, not its line. An extension, which no client can set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CameAsText;

/// What the headers say.
pub(crate) fn of(headers: &HeaderMap) -> Spoken {
    let kind = essence(headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default());
    match kind.strip_suffix(PROTO).unwrap_or(&kind) {
        GRPC => Spoken::Grpc,
        WEB => Spoken::Web(Form::Bytes),
        WEB_TEXT => Spoken::Web(Form::Text),
        other if other.starts_with(GRPC) => Spoken::Unknown,
        _ => Spoken::Json,
    }
}

/// Writes the headers of gRPC-Web as tonic-web knows them. Who does not say what it accepts is answered as it asked.
pub(crate) fn write_plainly(headers: &mut HeaderMap, form: Form) {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let named = accepted.split(',').find_map(|one| {
        let kind = essence(one);
        match kind.strip_suffix(PROTO).unwrap_or(&kind) {
            WEB => Some(Form::Bytes),
            WEB_TEXT => Some(Form::Text),
            _ => None,
        }
    });
    let mut write = |name: HeaderName, form| {
        let kind = if form == Form::Text { WEB_TEXT } else { WEB };
        headers.insert(name, HeaderValue::from_static(kind));
    };
    write(CONTENT_TYPE, form);
    write(ACCEPT, named.unwrap_or(form));
}

/// Without parameters, in small letters.
fn essence(kind: &str) -> String {
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saying(content_type: &str, accept: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        if let Some(accept) = accept {
            headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        }
        headers
    }

    #[test]
    fn a_request_speaks_what_its_content_type_says_however_it_is_written() {
        let (bytes, text) = (Spoken::Web(Form::Bytes), Spoken::Web(Form::Text));
        for (kind, spoken) in [
            ("application/grpc", Spoken::Grpc),
            ("Application/GRPC+proto", Spoken::Grpc),
            ("application/grpc-web", bytes),
            ("application/grpc-web+proto; charset=utf-8", bytes),
            ("application/grpc-web-text", text),
            ("APPLICATION/grpc-web-text+PROTO", text),
            ("application/grpc+json", Spoken::Unknown),
            ("application/grpc-web+thrift", Spoken::Unknown),
            ("application/grpcweb", Spoken::Unknown),
            ("application/json", Spoken::Json),
            ("", Spoken::Json),
        ] {
            assert_eq!(of(&saying(kind, None)), spoken, "{kind}");
        }
        assert_eq!(of(&HeaderMap::new()), Spoken::Json);
    }

    #[test]
    fn it_is_answered_in_the_form_that_it_accepts_or_else_as_it_asked() {
        for (form, accept, answered) in [
            (Form::Text, None, WEB_TEXT),
            (Form::Bytes, None, WEB),
            (Form::Text, Some("*/*"), WEB_TEXT),
            (Form::Text, Some("application/grpc-web"), WEB),
            (Form::Bytes, Some("text/html, Application/grpc-web-text+proto;q=1"), WEB_TEXT),
        ] {
            let mut headers = saying("anything", accept);
            write_plainly(&mut headers, form);
            assert_eq!(headers[ACCEPT], answered, "{form:?} {accept:?}");
            assert_eq!(headers[CONTENT_TYPE], if form == Form::Text { WEB_TEXT } else { WEB });
        }
    }
}
