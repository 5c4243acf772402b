//! What can go wrong with Redis, sorted by who can do something about it.

use fred::error::ErrorKind;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis cannot be reached, is loading, or did not answer in time: the command may or may not have run.
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

impl Error {
    /// Whether trying again helps only once somebody has changed the login or the server.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

impl From<fred::error::Error> for Error {
    fn from(error: fred::error::Error) -> Self {
        let details = error.details().to_owned();
        // A stream that is deleted under a blocked read ends the read with UNBLOCKED (7.0) or NOGROUP (later).
        if details.starts_with("NOGROUP") || details.starts_with("UNBLOCKED") || details.contains("no longer exists") {
            return Self::NoGroup(error);
        }
        if details.starts_with("NOSCRIPT") {
            return Self::NoScript(error);
        }
        if details.starts_with("OOM") {
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
            | ErrorKind::Cluster => Self::Unavailable(error),
            _ if ["LOADING", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "BUSY "]
                .iter()
                .any(|prefix| details.starts_with(prefix)) =>
            {
                Self::Unavailable(error)
            }
            _ => Self::Unexpected(details),
        }
    }
}
