//! Why a command did not do what it was asked, as lines for people and as an exit code for scripts. What a gateway says is shown
//! whole: its message, every wrong field, its word for the reason (docs/errors.md) and when to try again.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use carillon_kit::config::ADDRESS_VARIABLE;
use carillon_proto::words::camel;
use tonic::{Code, Status};
use tonic_types::{FieldViolation, StatusExt as _};

use super::text::visible;
use crate::exit::Exit;

#[derive(Debug)]
pub(crate) enum Failure {
    /// What is wrong with the arguments, a line each.
    Usage(Vec<String>),
    /// The gateway, or what is between it and here, refused.
    Refused { address: String, status: Box<Status> },
    /// No answer came in time.
    Late { address: String, timeout: Duration },
    /// The execution that was waited for ended otherwise than hoped.
    NotSuccess { id: String, status: String },
    /// It has not ended yet.
    NotFinal { id: String, status: String, waited: Duration },
    /// Not all that was given was done; the answer says which.
    Partly { refused: usize, of: usize },
    /// Of this machine.
    Local(String),
}

impl Failure {
    pub(crate) fn usage(rule: impl Into<String>) -> Self {
        Self::Usage(vec![rule.into()])
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Refused { status, .. } => exit_of(status),
            Self::Late { .. } => Exit::Unavailable,
            Self::NotSuccess { .. } => Exit::NotSuccess,
            Self::NotFinal { .. } => Exit::NotFinal,
            Self::Partly { .. } => Exit::Partly,
            Self::Local(_) => Exit::Failed,
        }
    }

    /// The first line is the message, what follows belongs to it; of wrong arguments each stands alone.
    pub(crate) fn lines(&self) -> Vec<String> {
        let named = |line: &dyn Display| format!("carillon: {}", visible(&line.to_string()));
        match self {
            Self::Usage(mistakes) => mistakes.iter().map(|mistake| named(mistake)).collect(),
            Self::Refused { address, status } => refused(address, status),
            Self::Late { address, timeout } => vec![
                named(&format!("{address} did not answer within {timeout:?}")),
                "  what was asked for may have been done; --timeout gives it longer".to_owned(),
            ],
            Self::NotSuccess { id, status } => vec![named(&format!("execution {id} ended in {status}"))],
            Self::NotFinal { id, status, waited } => {
                vec![named(&format!("execution {id} is {status} after {waited:?}; it goes on"))]
            }
            Self::Partly { refused, of } => vec![named(&format!("{refused} of {of} were refused"))],
            Self::Local(message) => vec![named(message)],
        }
    }
}

/// A line that breaks while a call is on its way, or on which no HTTP/2 is spoken, is to the client of whatever code its library makes of
/// the moment (UNKNOWN, INTERNAL, and CANCELLED where the call had not left), with what broke it behind: nobody has answered. What a
/// gateway says has nothing behind it.
fn exit_of(status: &Status) -> Exit {
    match status.source() {
        Some(_) => Exit::Unavailable,
        None => Exit::of(status.code()),
    }
}

fn refused(address: &str, status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let Some(info) = details.error_info() else { return foreign(address, status) };
    let violations = details.bad_request().map(|request| request.field_violations.as_slice()).unwrap_or_default();
    let told = |violation: &FieldViolation| match violation.field.as_str() {
        "" => violation.description.clone(),
        field => format!("{field}: {}", violation.description),
    };
    let lines_of_all = || violations.iter().map(|violation| format!("  {}", visible(&told(violation))));
    let mut lines = match violations {
        // The message says the same, or all but the field.
        [only] if told(only).ends_with(status.message()) => vec![format!("carillon: {}", visible(&told(only)))],
        _ => std::iter::once(format!("carillon: {}", visible(status.message()))).chain(lines_of_all()).collect(),
    };
    lines.push(format!("  reason {}", visible(&info.reason)));
    if status.code() == Code::Internal
        && let Some(request) = details.request_info()
    {
        lines.push(format!("  request.id {}", visible(&request.request_id)));
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        lines.push(format!("  try again in {delay:?}"));
    }
    lines
}

/// No gateway of ours has said this: it cannot be reached, or something else is there.
fn foreign(address: &str, status: &Status) -> Vec<String> {
    let causes: Vec<&(dyn Error + 'static)> =
        std::iter::successors(status.source(), |cause| (*cause).source()).collect();
    let why = causes.last().map_or_else(|| status.message().to_owned(), ToString::to_string);
    if causes.iter().any(|cause| speaks_no_tls(*cause)) {
        let plain = address.get("https://".len()..).unwrap_or_default();
        return vec![
            format!("carillon: cannot reach {address}: what is there does not speak TLS: {}", visible(&why)),
            format!("  a gateway itself speaks none: ask http://{plain}, or what ends TLS before it"),
        ];
    }
    let begin = if exit_of(status) == Exit::Unavailable { "cannot reach" } else { "no answer of Carillon from" };
    // `DeadlineExceeded` as DEADLINE_EXCEEDED, which is how everybody writes it.
    let code = camel(&format!("{:?}", status.code())).join("_").to_uppercase();
    vec![
        format!("carillon: {begin} {address}: {}", visible(&why)),
        format!("  code {code}; --address or {ADDRESS_VARIABLE} says where the gateway is"),
    ]
}

/// Whether it is the handshake that failed, by an answer that is none of TLS. The connection's errors hold it within one of I/O.
fn speaks_no_tls(cause: &(dyn Error + 'static)) -> bool {
    let within = cause.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    let tls = within.and_then(|inner| inner.downcast_ref()).or_else(|| cause.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidMessage(_)))
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn of(code: Code, message: &str, details: Option<ErrorDetails>) -> Failure {
        let status = match details {
            Some(details) => Status::with_error_details(code, message, details),
            None => Status::new(code, message),
        };
        Failure::Refused { address: "http://h:1".into(), status: Box::new(status) }
    }

    #[test]
    fn all_that_a_gateway_says_is_shown() {
        let mut details = ErrorDetails::new();
        details.set_error_info("INVALID_FIELDS", "carillon", std::collections::HashMap::<String, String>::new());
        details.add_bad_request_violation("name", "must be given");
        details.add_bad_request_violation("schedule", "is \u{1b}odd");
        details.set_retry_info(Some(Duration::from_secs(1)));
        let failure = of(Code::InvalidArgument, "name: must be given (and 1 more)", Some(details));
        assert_eq!(failure.exit(), Exit::Usage);
        assert_eq!(
            failure.lines(),
            [
                "carillon: name: must be given (and 1 more)",
                "  name: must be given",
                "  schedule: is \\u{1b}odd",
                "  reason INVALID_FIELDS",
                "  try again in 1s",
            ]
        );
    }

    #[test]
    fn what_is_wrong_alone_is_said_once() {
        let lines = |message: &str| {
            let mut details = ErrorDetails::new();
            details.set_error_info("INVALID_FIELDS", "carillon", std::collections::HashMap::<String, String>::new());
            details.add_bad_request_violation("name", "must be given");
            of(Code::InvalidArgument, message, Some(details)).lines()
        };
        for message in ["name: must be given", "must be given"] {
            assert_eq!(lines(message), ["carillon: name: must be given", "  reason INVALID_FIELDS"]);
        }
        assert_eq!(lines("no").len(), 3, "it says something else");
    }

    #[test]
    fn a_defect_is_shown_with_what_finds_it_in_the_log() {
        let mut details = ErrorDetails::new();
        details.set_error_info("INTERNAL", "carillon", std::collections::HashMap::<String, String>::new());
        details.set_request_info("abc-1", "");
        let lines = |code| of(code, "internal error: see the gateway's log", Some(details.clone())).lines();
        assert_eq!(lines(Code::Internal).last().map(String::as_str), Some("  request.id abc-1"));
        assert!(!lines(Code::NotFound).iter().any(|line| line.contains("abc-1")), "whose fault is the caller's own");
    }

    #[test]
    fn who_else_answers_is_named_by_its_address() {
        let lines = of(Code::Unimplemented, "", None).lines();
        assert!(lines[0].starts_with("carillon: no answer of Carillon from http://h:1"), "{lines:?}");
        let away = of(Code::Unavailable, "tcp connect error", None);
        assert!(away.lines()[0].contains("cannot reach http://h:1: tcp connect error"), "{:?}", away.lines());
        assert!(away.lines()[1].contains("code UNAVAILABLE"), "{:?}", away.lines());
        assert_eq!(away.exit(), Exit::Unavailable);
        let broken = Status::from_error(Box::new(std::io::Error::other("stream closed")));
        let broken = Failure::Refused { address: "http://h:1".into(), status: Box::new(broken) };
        assert_eq!(broken.exit(), Exit::Unavailable);
        assert!(broken.lines()[0].contains("cannot reach http://h:1: stream closed"), "{:?}", broken.lines());
    }

    /// As hyper says that a line was gone before the call was on it: CANCELLED, which a gateway could say too, but with a cause.
    #[tokio::test]
    async fn a_line_that_was_gone_before_the_call_has_answered_nothing() {
        let (near, far) = tokio::io::duplex(64);
        let near = hyper_util::rt::TokioIo::new(near);
        let (mut sender, line) = hyper::client::conn::http1::handshake::<_, String>(near).await.unwrap();
        drop((line, far));
        let error = sender.send_request(http::Request::new(String::new())).await.unwrap_err();
        let status = Status::from_error(Box::new(error));
        assert_eq!(status.code(), Code::Cancelled);
        let gone = Failure::Refused { address: "http://h:1".into(), status: Box::new(status) };
        assert_eq!(gone.exit(), Exit::Unavailable);
        assert!(gone.lines()[0].contains("cannot reach http://h:1: "), "{:?}", gone.lines());
        assert_eq!(of(Code::Cancelled, "the client left", None).exit(), Exit::Failed);
    }
}
