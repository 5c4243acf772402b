//! What a mistake in a timetable looks like.

/// One mistake in what the author wrote. Its text is readable alone and says what was found and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleError {
    /// The field of the request: `schedule`, `schedules[2]`, `timezone`, `start_date`, `end_date`, `interval`,
    /// `exclusions[1]`.
    pub field: String,
    /// The rule and how it is broken, such as `minute: 61 is outside 0-59 (at 1)`.
    pub message: String,
}

impl ScheduleError {
    /// A mistake in `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// Most mistakes that one answer lists: enough to mend a text in one go, bounded whatever the text.
pub(crate) const ERRORS_MAX: usize = 16;

/// The part of a text that an error is about, which stands at a position named beside it.
pub(crate) fn quoted(text: &str) -> String {
    crate::error::excerpt(text, 24)
}
