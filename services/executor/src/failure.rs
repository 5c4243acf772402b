//! Why a handler has failed.

use std::time::Duration;

use carillon_core::retry::Again;

/// Why an attempt failed.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong, with its causes.
    pub message: String,
    /// Where, as far as that is known.
    pub stack: Option<String>,
    /// Whether, and when, it is tried again.
    pub again: Again,
}

impl Failure {
    /// A failure that is tried again while attempts are left, when the job says.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), stack: None, again: Again::ByPolicy }
    }

    /// A failure that no further attempt will mend.
    pub fn for_good(message: impl Into<String>) -> Self {
        Self { again: Again::Never, ..Self::new(message) }
    }

    /// A failure that is tried again after `delay` while attempts are left, whatever the job says: the handler knows when it is worth
    /// it (another service has said so). Not later than a week.
    pub fn retry_after(message: impl Into<String>, delay: Duration) -> Self {
        Self { again: Again::After(delay), ..Self::new(message) }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let backtrace = error.backtrace().to_string();
        let stack = (error.backtrace().status() == std::backtrace::BacktraceStatus::Captured).then_some(backtrace);
        Self { message: format!("{error:#}"), stack, again: Again::ByPolicy }
    }
}
