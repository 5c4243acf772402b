//! What can go wrong with Postgres, sorted by who can do something about it.

use std::fmt;

use carillon_core::error::Kind;

/// Why a statement did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres cannot be reached, is starting or stopping, has no connection left, or is read-only: try again later.
    #[error("postgres is unavailable")]
    Unavailable(#[source] Cause),
    /// All connections of the pool are in use, and none came free in time, though Postgres answers: nothing was sent.
    #[error("all connections to postgres are in use")]
    AllInUse(#[source] Cause),
    /// Postgres is there and lets nobody in under this user, password or database name.
    #[error("postgres refuses the login")]
    Refused(#[source] Cause),
    /// Somebody else holds a lock for long, or the statement took too long: the server ended it (55P03, 57014). Nothing was
    /// written and the session goes on; run at once again it would wait again.
    #[error("postgres is busy")]
    Busy(#[source] Cause),
    /// A deadlock or serialization failure: nothing was written, the same may be run again at once.
    #[error("postgres refused a concurrent change")]
    Conflict(#[source] Cause),
    /// A value that Postgres cannot hold (class 22), such as a NUL in a text.
    #[error("postgres cannot hold a value")]
    Data(#[source] Cause),
    /// No such job or execution.
    #[error("no {what} with the id {id}")]
    NotFound {
        /// `job` or `execution`.
        what: &'static str,
        /// The id that was asked for.
        id: uuid::Uuid,
    },
    /// The caller may see it, and it is none of its platform's; or it is to be made for another platform.
    #[error("the {what} {name} is not of the caller's platform: only its own may be changed")]
    NotOwn {
        /// `job`, `execution` or `request_id`.
        what: &'static str,
        /// Its id.
        name: String,
    },
    /// Right request, wrong state; the text is for the client.
    #[error("{why}")]
    FailedPrecondition {
        /// Whose state: `job`, `execution`, or `shard`.
        what: &'static str,
        /// What stands against it.
        why: String,
    },
    /// There is one already, and may be no second one.
    #[error("there is a {what} of that key already, with the id {id}")]
    AlreadyExists {
        /// `job`.
        what: &'static str,
        /// The one that there is.
        id: uuid::Uuid,
    },
    /// The idempotency key was used for another request.
    #[error("the request_id \"{key}\" was used for a different request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// There are as many names of queues as there may be, and this is none of them.
    #[error("there are {queues_max} names of queues already, and \"{queue}\" is none of them")]
    QueuesExhausted {
        /// The name that would have been one more.
        queue: String,
        /// How many there may be.
        queues_max: u32,
    },
    /// More matches, or must be looked through, than can be sorted for a page.
    #[error("more than {most} match, or they lie among too many that do not")]
    TooWide {
        /// What can be sorted.
        most: usize,
    },
    /// A defect of ours, or of the schema.
    #[error("statement failed")]
    Internal(#[source] Cause),
    /// A row that this version cannot read.
    #[error("stored {what} cannot be read: {why}")]
    Unreadable {
        /// Which column or document.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// What Postgres or the connection said, each thing once: the driver's own texts say twice what the server said, with a line
/// number of the server's source.
#[derive(Debug)]
pub struct Cause(sqlx::Error);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_database_error() {
            Some(said) => match said.code() {
                Some(code) => write!(f, "{} (SQLSTATE {code})", said.message()),
                None => f.write_str(said.message()),
            },
            None => match std::error::Error::source(&self.0) {
                // The driver's text ends with that of its source.
                Some(source) => write!(f, "{source}"),
                None => write!(f, "{}", self.0),
            },
        }
    }
}

impl std::error::Error for Cause {}

impl Cause {
    fn is_of(&self, constraint: &str) -> bool {
        self.0.as_database_error().and_then(|said| said.constraint()) == Some(constraint)
    }

    fn is_reported(&self) -> bool {
        is_reported(&self.0)
    }
}

/// Whether the server said it of a statement: FATAL and PANIC end the session.
pub(crate) fn is_reported(error: &sqlx::Error) -> bool {
    let said = error.as_database_error().and_then(|said| said.try_downcast_ref::<sqlx::postgres::PgDatabaseError>());
    said.is_some_and(|said| said.severity() == sqlx::postgres::PgSeverity::Error)
}

impl From<sqlx::Error> for Cause {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Its kind at an edge.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Unavailable(_) | Self::AllInUse(_) | Self::Refused(_) | Self::Busy(_) => Kind::Unavailable,
            Self::Conflict(_) => Kind::Conflict,
            Self::NotFound { .. } => Kind::NotFound,
            Self::NotOwn { .. } => Kind::Forbidden,
            Self::FailedPrecondition { .. } => Kind::FailedPrecondition,
            Self::KeyReused { .. } | Self::AlreadyExists { .. } => Kind::AlreadyExists,
            Self::QueuesExhausted { .. } => Kind::Exhausted,
            Self::TooWide { .. } => Kind::InvalidArgument,
            Self::Data(_) | Self::Internal(_) | Self::Unreadable { .. } => Kind::Internal,
        }
    }

    /// Whether trying again helps only once somebody has changed the login or the server.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// Whether the server reported it of a statement and goes on with the session: nothing of that statement, nor of the
    /// transaction that it stood in, was done, and nothing else has happened to the session (R2).
    pub fn is_reported(&self) -> bool {
        match self {
            Self::Unavailable(cause)
            | Self::AllInUse(cause)
            | Self::Refused(cause)
            | Self::Busy(cause)
            | Self::Conflict(cause)
            | Self::Data(cause)
            | Self::Internal(cause) => cause.is_reported(),
            // A row that was read and not understood.
            Self::Unreadable { .. } => true,
            Self::NotFound { .. }
            | Self::NotOwn { .. }
            | Self::FailedPrecondition { .. }
            | Self::KeyReused { .. }
            | Self::AlreadyExists { .. }
            | Self::QueuesExhausted { .. }
            | Self::TooWide { .. } => false,
        }
    }

    /// Whether the contact with Postgres is broken, or none came about: what was sent may or may not have been done (R21). Of what the
    /// server reports of a statement, though it be that its disk is full, the session knows that it was not. Whoever waits for a
    /// connection that others of this process have was refused nothing.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Refused(_)) && !self.is_reported()
    }

    /// Whether a day is closed to new executions, since it is about to leave ([`crate::retention`]): that lasts for a while.
    pub fn is_of_closed_day(&self) -> bool {
        matches!(self, Self::Conflict(cause) if cause.is_of("carillon_closed"))
    }

    /// Whether Postgres, not the request, is the cause: another time it may be done.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::AllInUse(_) | Self::Refused(_))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_) => Self::Unavailable(error.into()),
                // The pool says it of itself only where others were answered meanwhile (`bounded`).
                sqlx::Error::PoolTimedOut => Self::AllInUse(error.into()),
                _ => Self::Internal(error.into()),
            };
        };
        let code = database.code().unwrap_or_default().into_owned();
        match code.get(..2).unwrap_or_default() {
            _ if matches!(code.as_str(), "55P03" | "57014") => Self::Busy(error.into()),
            // 08 connection, 53 resources (slots, memory, disk), 57 operator intervention, 58 system error.
            "08" | "53" | "57" | "58" => Self::Unavailable(error.into()),
            // 28 user or password, 3D000 no such database.
            "28" | "3D" => Self::Refused(error.into()),
            // 40001 serialization failure, 40P01 deadlock, 55006 object in use.
            "40" | "55" => Self::Conflict(error.into()),
            // 23514 without a name: the row's partition was being made at that moment; with one of ours: it is about to be
            // made, or dropped (`partitions`, `retention`).
            "23" if code == "23514" && database.constraint().is_none_or(|name| name.starts_with("carillon_")) => {
                Self::Conflict(error.into())
            }
            "22" => Self::Data(error.into()),
            // What stood before it in its transaction was refused, and whoever ran it did not look.
            "25" if code == "25P02" => Self::Conflict(error.into()),
            // 25006: a read-only transaction, as on a standby that was not promoted yet; 25P03: idle too long in one.
            "25" => Self::Unavailable(error.into()),
            // Whatever it was, it ended the session, or let none begin: a full disk is told of in many ways.
            _ => {
                let cause = Cause(error);
                if cause.is_reported() { Self::Internal(cause) } else { Self::Unavailable(cause) }
            }
        }
    }
}
