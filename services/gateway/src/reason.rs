//! Why a call was refused, one word each: what a client's code looks at, since messages are for people and may change. The page about
//! them is `docs/errors.md`, and a test holds both together.

use http::StatusCode;
use tonic::Code;

/// Declares the reasons: the word, the gRPC code, the HTTP status.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $code:ident, $http:literal;)+) => {
        /// A reason, as `google.rpc.ErrorInfo` says it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// Every one, in the order of the page.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its word.
            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            /// Its gRPC code.
            pub(crate) const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),+ }
            }

            const fn http_number(self) -> u16 {
                match self { $(Self::$name => $http),+ }
            }
        }
    };
}

reasons! {
    /// Fields are wrong, whatever the state of the system.
    InvalidFields = "INVALID_FIELDS", InvalidArgument, 400;
    /// More matches than can be sorted as asked.
    OrderTooWide = "ORDER_TOO_WIDE", InvalidArgument, 400;
    /// A gRPC message that is none of its type.
    Undecodable = "UNDECODABLE", InvalidArgument, 400;
    /// More bytes than a request may have.
    RequestTooLarge = "REQUEST_TOO_LARGE", InvalidArgument, 413;
    /// More headers, or larger ones, than a request may have.
    HeadersTooLarge = "HEADERS_TOO_LARGE", InvalidArgument, 431;
    /// A page of another origin sent it as a form, or it is packed otherwise than by gzip.
    MediaTypeUnsupported = "MEDIA_TYPE_UNSUPPORTED", InvalidArgument, 415;
    /// Its body did not arrive in time.
    RequestLate = "REQUEST_LATE", DeadlineExceeded, 408;
    /// The client's deadline passed.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, 504;
    /// Its client went away in the middle.
    RequestBroken = "REQUEST_BROKEN", Cancelled, 499;
    /// Nothing is at this path.
    PathUnknown = "PATH_UNKNOWN", NotFound, 404;
    /// The path takes other methods.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", Unimplemented, 405;
    /// There is no such gRPC method, or it does not do this.
    CallUnknown = "CALL_UNKNOWN", Unimplemented, 501;
    /// No such job or execution.
    NotFound = "NOT_FOUND", NotFound, 404;
    /// It may be seen and not changed: it is not of the caller's platform.
    NotOwn = "NOT_OWN", PermissionDenied, 403;
    /// Another job has the key.
    KeyTaken = "KEY_TAKEN", AlreadyExists, 409;
    /// The idempotency key was used for another request.
    RequestIdReused = "REQUEST_ID_REUSED", AlreadyExists, 409;
    /// Right request, wrong state.
    WrongState = "WRONG_STATE", FailedPrecondition, 400;
    /// Its `etag` is of a definition that is no longer the job's.
    Superseded = "SUPERSEDED", Aborted, 409;
    /// Somebody else changed it at the same time.
    ConcurrentChange = "CONCURRENT_CHANGE", Aborted, 409;
    /// There are as many names of queues as there may be.
    QueuesExhausted = "QUEUES_EXHAUSTED", ResourceExhausted, 429;
    /// The gateway answers as many requests as it can.
    GatewayBusy = "GATEWAY_BUSY", Unavailable, 503;
    /// Postgres is away, or refuses to serve.
    PostgresUnavailable = "POSTGRES_UNAVAILABLE", Unavailable, 503;
    /// Somebody holds a lock for long, it took too long, or no connection came free.
    PostgresBusy = "POSTGRES_BUSY", Unavailable, 503;
    /// Ours to mend.
    Internal = "INTERNAL", Internal, 500;
}

impl Reason {
    /// The one of that word.
    pub(crate) fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.word() == word)
    }

    /// Its HTTP status.
    pub(crate) fn http(self) -> StatusCode {
        StatusCode::from_u16(self.http_number()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `| reason | HTTP | gRPC | when | what to do |`
    #[test]
    fn the_page_about_errors_names_what_there_is() {
        const PAGE: &str = include_str!("../../../docs/errors.md");
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
        };
        let rows: Vec<Vec<String>> = PAGE.lines().filter(|line| line.starts_with("| `")).map(cells).collect();
        let named: Vec<[String; 3]> = rows.iter().map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]).collect();
        let there_are: Vec<[String; 3]> = Reason::ALL
            .iter()
            .map(|reason| {
                let code = format!("{:?}", reason.code());
                let code = code.chars().enumerate().fold(String::new(), |mut words, (at, letter)| {
                    if at > 0 && letter.is_uppercase() {
                        words.push('_');
                    }
                    words.push(letter.to_ascii_uppercase());
                    words
                });
                [reason.word().to_owned(), reason.http_number().to_string(), code]
            })
            .collect();
        assert_eq!(named, there_are);
        assert!(rows.iter().all(|row| row.len() == 5 && row[3..].iter().all(|cell| !cell.is_empty())), "{rows:?}");
    }

    #[test]
    fn a_reason_is_known_by_its_word_and_every_status_is_one() {
        for reason in Reason::ALL {
            assert_eq!(Reason::of(reason.word()), Some(*reason));
            assert_eq!(reason.http().as_u16(), reason.http_number());
        }
        assert_eq!(Reason::of("nonsense"), None);
    }
}
