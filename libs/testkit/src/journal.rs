//! What handlers did, written by themselves: one JSON object a line, appended by a single write to a file opened with
//! `O_APPEND`, so that lines of many processes never mix. The executor's handlers for samples and tests write it when
//! `CARILLON_TEST_JOURNAL` names a file; it is the one witness that does not go through Postgres.
//!
//! ```json
//! {"execution":"01a3185c-…","attempt":1,"job":"01a3…","event":"start","at":"2026-11-24T16:14:03.123456Z","worker":"…","pid":4711}
//! {"execution":"01a3185c-…","attempt":1,"job":"01a3…","event":"end","at":"2026-11-24T16:14:03.200001Z","worker":"…","pid":4711,"outcome":"success"}
//! {"execution":"01a3185c-…","attempt":1,"job":"01a3…","event":"recorded","at":"2026-11-24T16:14:03.203111Z","worker":"…","pid":4711}
//! ```
//! `start` is the handler's first act and `end` its last. A handler that was stopped or killed has no `end`. `recorded` is
//! written when Postgres has answered that what became of the attempt is recorded, and that it counts: from then on nothing
//! excuses another start of it.

use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The variable that names the file.
pub const VARIABLE: &str = "CARILLON_TEST_JOURNAL";

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Which execution.
    pub execution: Uuid,
    /// Which attempt of it.
    pub attempt: u32,
    /// Of which job.
    pub job: Uuid,
    /// What happened.
    pub event: Event,
    /// When, by the clock of its process: a test that gives processes clocks of their own corrects it
    /// ([`crate::history::History::correct_clocks`]).
    pub at: DateTime<Utc>,
    /// The executor's own name for itself.
    pub worker: String,
    /// Its process: what a test that kills or freezes it knows it by.
    #[serde(default)]
    pub pid: i32,
    /// With `end`: `success`, or the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// What a line reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// The handler's first act.
    Start,
    /// Its last.
    End,
    /// Postgres has it, and it counts.
    Recorded,
}

/// Reads a journal. A file that does not exist is empty; a last line without its end (a process died while it wrote) is
/// left out.
///
/// # Errors
/// If it cannot be read, or a whole line is no line of a journal.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut lines = Vec::new();
    for (number, line) in whole.lines().enumerate() {
        let line =
            serde_json::from_str(line).with_context(|| format!("{} line {}: {line}", path.display(), number + 1))?;
        lines.push(line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_a_broken_last_one_is_left_out() {
        let text = r#"{"execution":"01a3185c-5000-8a28-b6b7-19d8e4ba20a5","attempt":1,"job":"00000000-0000-0000-0000-000000000007","event":"start","at":"2026-11-24T16:14:03.123456Z","worker":"w"}
{"execution":"01a3185c-5000-8a28-b6b7-19d8e4ba20a5","attempt":1,"job":"00000000-0000-0000-0000-000000000007","event":"end","at":"2026-11-24T16:14:03.2Z","worker":"w","pid":5,"outcome":"success"}
{"execution":"01a3"#;
        let directory = std::env::temp_dir().join(format!("carillon-journal-{}", std::process::id()));
        std::fs::write(&directory, text).unwrap();
        let lines = read(&directory).unwrap();
        std::fs::remove_file(&directory).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].event, Event::Start);
        assert_eq!((lines[1].pid, lines[1].outcome.as_deref()), (5, Some("success")));
        assert_eq!(serde_json::from_str::<Line>(&serde_json::to_string(&lines[1]).unwrap()).unwrap(), lines[1]);
    }
}
