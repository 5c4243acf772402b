//! Why a handler has failed.

/// Why an attempt failed.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong, with its causes.
    pub message: String,
    /// Where, as far as that is known.
    pub stack: Option<String>,
    /// Whether trying again may help.
    pub retry: bool,
}

impl Failure {
    /// A failure that is tried again while attempts are left.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), stack: None, retry: true }
    }

    /// A failure that no further attempt will mend.
    pub fn for_good(message: impl Into<String>) -> Self {
        Self { retry: false, ..Self::new(message) }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let backtrace = error.backtrace().to_string();
        let stack = (error.backtrace().status() == std::backtrace::BacktraceStatus::Captured).then_some(backtrace);
        Self { message: format!("{error:#}"), stack, retry: true }
    }
}
