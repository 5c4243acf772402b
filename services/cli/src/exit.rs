//! What the exit codes mean: one table, which `--help` shows and `docs/cli.md` repeats (a test compares them). The numbers are
//! those of sysexits.h where one of its words fits, so that 1 and what a shell makes up (126 and above) stay apart from them.

use std::fmt::Write as _;
use std::process::ExitCode;

use tonic::Code;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 64,
    Partly = 65,
    NotFound = 66,
    Unavailable = 69,
    NotSuccess = 70,
    Refused = 73,
    NotFinal = 75,
    Denied = 77,
}

/// Every code, with what it says to a script.
pub(crate) const TABLE: [(Exit, &str); 10] = [
    (Exit::Done, "done"),
    (Exit::Failed, "any other failure"),
    (Exit::Usage, "wrong usage, or a field that is refused: INVALID_ARGUMENT"),
    (Exit::Partly, "some of many were refused, and each of the others done: the answer says which"),
    (Exit::NotFound, "no such job or execution: NOT_FOUND"),
    (Exit::Unavailable, "no answer in time, or none for now: UNAVAILABLE, DEADLINE_EXCEEDED"),
    (Exit::NotSuccess, "the execution that was waited for did not end in SUCCESS"),
    (Exit::Refused, "refused for what is there by now: FAILED_PRECONDITION, ALREADY_EXISTS, ABORTED"),
    (Exit::NotFinal, "the execution was not final when --wait ended; it goes on"),
    (Exit::Denied, "not allowed: PERMISSION_DENIED, UNAUTHENTICATED"),
];

impl Exit {
    /// What a gRPC code comes to.
    pub(crate) const fn of(code: Code) -> Self {
        match code {
            Code::Ok => Self::Done,
            Code::InvalidArgument => Self::Usage,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Self::Refused,
            Code::Unavailable | Code::DeadlineExceeded => Self::Unavailable,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            Code::Cancelled
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => Self::Failed,
        }
    }

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table, as help shows it.
pub(crate) fn help() -> String {
    let mut text = "Exit codes:".to_owned();
    for (exit, meaning) in TABLE {
        let _ = write!(text, "\n  {:>3}  {meaning}", exit.code());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_the_table_are_equal() {
        let page = include_str!("../../../docs/cli.md");
        let rows: Vec<&str> = page.lines().filter(|line| is_row(line)).collect();
        let wanted: Vec<String> =
            TABLE.iter().map(|(exit, meaning)| format!("| {} | {meaning} |", exit.code())).collect();
        assert_eq!(rows, wanted);
    }

    fn is_row(line: &str) -> bool {
        line.strip_prefix("| ").and_then(|rest| rest.chars().next()).is_some_and(|first| first.is_ascii_digit())
    }

    #[test]
    fn no_two_codes_are_the_same() {
        let mut codes: Vec<u8> = TABLE.iter().map(|(exit, _)| exit.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
        assert_eq!(Exit::of(Code::Aborted), Exit::Refused);
        assert_eq!(Exit::of(Code::ResourceExhausted), Exit::Failed);
    }
}
