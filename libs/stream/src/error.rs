//! What can go wrong with Redis, sorted by who can do something about it.

use fred::error::ErrorKind;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis cannot be reached, did not answer in time, or refuses for now (it is loading, say): the command may or may not have
    /// run.
    #[error("redis is unavailable")]
    Unavailable(#[source] fred::error::Error),
    /// Redis is there and lets nobody in with this user and password.
    #[error("redis refuses the login")]
    Refused(#[source] fred::error::Error),
    /// Redis is full (`maxmemory` with `noeviction`): nothing was written.
    #[error("redis is out of memory")]
    OutOfMemory(#[source] fred::error::Error),
    /// A stream or its consumer group does not exist (R22).
    #[error("a stream or its consumer group is missing")]
    NoGroup(#[source] fred::error::Error),
    /// Something of another kind stands at the name of a key of ours, and could not be moved aside ([`crate::displaced`]).
    #[error("a key of another kind stands where one of ours belongs")]
    WrongType(#[source] fred::error::Error),
    /// The script is not in the server's cache; it is loaded and sent again inside this crate.
    #[error("script is not loaded")]
    NoScript(#[source] fred::error::Error),
    /// The address cannot be read.
    #[error("the redis URL cannot be read")]
    Url(#[source] fred::error::Error),
    /// More than one command may carry: a defect of the caller, nothing was sent.
    #[error("too much for one command: {asked} {what}, {max} at most")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much was asked for.
        asked: usize,
        /// How much there may be.
        max: usize,
    },
    /// An answer of another shape than expected, or a refused command: a defect, or not a Redis 7.
    #[error("redis gave an unexpected answer: {0}")]
    Unexpected(String),
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Refusals for now: what was asked was not done, and another time it may be.
const NOT_NOW: [&str; 7] = ["LOADING", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "BUSY"];
/// Those of a server that is not the one to ask, or not yet.
const NO_ANSWER: [&str; 4] = ["LOADING", "MASTERDOWN", "READONLY", "CLUSTERDOWN"];

impl Error {
    /// Whether trying again helps only once somebody has changed the login or the server.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// R2: whether this is an answer of the Redis that was meant, so that whoever got it may lead by it: any reply but that it is
    /// loading, a replica without its master, a replica, or a cluster without all its slots. That it is full is one. No reply is
    /// none, nor is a login that fails: who is not let in cannot do a leader's work.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Unavailable(error) => {
                let word = reply_word(error.details());
                word.is_some_and(|word| NOT_NOW.contains(&word) && !NO_ANSWER.contains(&word))
            }
            Self::OutOfMemory(_) | Self::NoGroup(_) | Self::WrongType(_) | Self::NoScript(_) | Self::Unexpected(_) => {
                true
            }
            Self::Refused(_) | Self::Url(_) | Self::TooMuch { .. } => false,
        }
    }
}

/// The word that each error reply of a server begins with; what the client library says begins with none.
fn reply_word(details: &str) -> Option<&str> {
    let word = details.split(' ').next()?;
    (word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')).then_some(word)
}

impl From<fred::error::Error> for Error {
    fn from(error: fred::error::Error) -> Self {
        let details = error.details();
        let word = reply_word(details);
        // A stream that is deleted under a blocked read ends the read with UNBLOCKED (7.0) or NOGROUP (later); XINFO has its own word.
        let is_gone = details.contains("no longer exists") || details.starts_with("ERR no such key");
        if matches!(word, Some("NOGROUP" | "UNBLOCKED")) || is_gone {
            return Self::NoGroup(error);
        }
        if word == Some("WRONGTYPE") {
            return Self::WrongType(error);
        }
        if word == Some("NOSCRIPT") {
            return Self::NoScript(error);
        }
        if word == Some("OOM") {
            return Self::OutOfMemory(error);
        }
        match error.kind() {
            ErrorKind::Auth => Self::Refused(error),
            ErrorKind::IO
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Backpressure
            | ErrorKind::Routing
            | ErrorKind::Sentinel
            | ErrorKind::Cluster
            | ErrorKind::Tls
            | ErrorKind::Protocol => Self::Unavailable(error),
            _ if word.is_some_and(|word| NOT_NOW.contains(&word)) => Self::Unavailable(error),
            // The library's own, as when its task has ended: nothing was answered.
            ErrorKind::Unknown if word.is_none() => Self::Unavailable(error),
            _ => Self::Unexpected(details.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replied(text: &'static str) -> Error {
        let kind = match text.split(' ').next() {
            Some("NOAUTH" | "WRONGPASS") => ErrorKind::Auth,
            Some("CLUSTERDOWN" | "MOVED") => ErrorKind::Cluster,
            _ => ErrorKind::Unknown,
        };
        fred::error::Error::new(kind, text).into()
    }

    #[test]
    fn r2_a_reply_is_an_answer_unless_it_comes_from_the_wrong_server() {
        for text in [
            "OOM command not allowed when used memory > 'maxmemory'. script: 5ca1ab1e, on @user_script:18.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "NOREPLICAS Not enough good replicas to write.",
            "BUSY Redis is busy running a script.",
            "NOGROUP No such key",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "NOSCRIPT No matching script.",
            "ERR unknown command",
            "NOPERM this user has no permissions",
        ] {
            assert!(replied(text).is_answer(), "{text}");
        }
        for text in [
            "LOADING Redis is loading the dataset in memory",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "READONLY You can't write against a read only replica. script: 5ca1ab1e, on @user_script:18.",
            "CLUSTERDOWN The cluster is down",
            "MOVED 3999 127.0.0.1:6381",
            "WRONGPASS invalid username-password pair",
            "NOAUTH Authentication required.",
        ] {
            assert!(!replied(text).is_answer(), "{text}");
        }
    }

    #[test]
    fn r2_what_the_client_library_says_is_no_answer() {
        use ErrorKind::{Canceled, IO, Timeout, Tls, Unknown};
        let said =
            [(IO, "Unexpected EOF"), (Timeout, "Request timed out."), (Canceled, "Canceled."), (Tls, "bad name")];
        for (kind, text) in said.into_iter().chain([(Unknown, "channel closed"), (Unknown, "Missing response.")]) {
            let error = Error::from(fred::error::Error::new(kind, text));
            assert!(matches!(error, Error::Unavailable(_)) && !error.is_answer(), "{error:?}");
        }
        assert!(!Error::TooMuch { what: "entries", asked: 2, max: 1 }.is_answer());
        assert!(Error::Unexpected("publish answered MAYBE".into()).is_answer());
    }

    #[test]
    fn a_refusal_for_now_is_unavailable() {
        for word in NOT_NOW {
            assert!(matches!(replied(word), Error::Unavailable(_)), "{word}");
        }
    }
}
