//! What kind of failure something is, for whoever must answer for it at an edge.

use std::fmt;

/// The closed list of failures that a client can be told of. One table in the gateway maps it to gRPC codes, and from
/// there to HTTP; nothing else decides on codes. New kinds are a change of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is wrong, whatever the state of the system.
    InvalidArgument,
    /// No such job or execution.
    NotFound,
    /// The same idempotency key was used for another request.
    AlreadyExists,
    /// The request is right, but not in the state the thing is in.
    FailedPrecondition,
    /// Somebody else changed it meanwhile; try again.
    Conflict,
    /// A limit is reached.
    Exhausted,
    /// Who are you?
    Unauthenticated,
    /// You may not.
    Forbidden,
    /// Postgres or Redis cannot be reached; try again later.
    Unavailable,
    /// Ours to mend.
    Internal,
}

/// One wrong field of a request: which, and the rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field in the request, such as `schedule` or `exclusions[1].from`.
    pub field: String,
    /// The rule, readable alone: `must be 1 to 200 characters long, is 0`.
    pub rule: String,
}

impl FieldViolation {
    /// A violation of `rule` by `field`.
    pub fn new(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { field: field.into(), rule: rule.into() }
    }
}

impl fmt::Display for FieldViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.rule)
    }
}

/// An error with all that caused it, on one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(because) = cause {
        text.push_str(": ");
        text.push_str(&because.to_string());
        cause = because.source();
    }
    text
}

/// The first `max` characters of someone else's text, safe to print: without control characters, and with a sign that
/// something was left out.
pub fn excerpt(text: &str, max: usize) -> String {
    let mut shown: String =
        text.chars().take(max).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(max).is_some() {
        shown.push('…');
    }
    shown
}

/// Someone else's text in quotation marks, as an error shows it.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", excerpt(text, 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes() {
        #[derive(Debug)]
        struct Because(&'static str, Option<Box<Because>>);
        impl fmt::Display for Because {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0)
            }
        }
        impl std::error::Error for Because {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                self.1.as_deref().map(|because| because as _)
            }
        }
        let late = Because("late", Some(Box::new(Because("no bus", Some(Box::new(Because("snow", None)))))));
        assert_eq!(with_causes(&late), "late: no bus: snow");
        assert_eq!(with_causes(&Because("late", None)), "late");
    }

    #[test]
    fn what_is_quoted_is_short_and_steers_no_terminal() {
        assert_eq!(quoted("a\u{1b}[31mb\n"), "\"a\u{fffd}[31mb\u{fffd}\"");
        assert_eq!(excerpt("Ährenfeld", 4), "Ähre…");
        assert_eq!(excerpt("Ähre", 4), "Ähre");
    }
}
