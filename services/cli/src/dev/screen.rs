//! What a person sees: steps with the time since the start, places, and a line per execution. Colour only on a terminal
//! (`anstream` strips it elsewhere, and heeds NO_COLOR). A closed pipe is no failure: the jobs go on.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use carillon_store::recent::Recent;
use chrono::{DateTime, Local, Utc};

const RESET: &str = "\u{1b}[0m";
const DIM: &str = "\u{1b}[2m";
const BOLD: &str = "\u{1b}[1m";
/// Names are cut to this, so that columns hold.
const JOB_WIDTH: usize = 28;
const HANDLER_WIDTH: usize = 14;
const NOTE_WIDTH: usize = 70;

/// The terminal.
#[derive(Clone, Copy)]
pub(super) struct Screen {
    started: Instant,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// Something was done, or begins.
    pub(super) fn step(self, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.line(&format!("{DIM}[{seconds:6.1} s]{RESET} {text}"));
    }

    /// Where something is.
    pub(super) fn place(self, name: &str, place: &str, note: &str) {
        self.line(&format!("  {BOLD}{name:<13}{RESET} {place:<44} {DIM}{note}{RESET}"));
    }

    /// Tries until it works, or is refused for good. Says what it waits for, and why as often as that changes.
    pub(super) async fn wait_for<E, F>(
        self,
        what: &str,
        mut attempt: impl FnMut() -> F,
        refused: fn(&E) -> bool,
    ) -> Result<()>
    where
        E: std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<(), E>>,
    {
        const PAUSE: Duration = Duration::from_millis(500);
        const ATTEMPT_MAX: Duration = Duration::from_secs(10);
        let mut said = String::new();
        loop {
            let why = match tokio::time::timeout(ATTEMPT_MAX, attempt()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if refused(&error) => return Err(anyhow::Error::new(error).context(what.to_owned())),
                Ok(Err(error)) => format!("{:#}", anyhow::Error::new(error)),
                Err(_) => format!("no answer within {ATTEMPT_MAX:?}"),
            };
            if why != said {
                self.step(&format!("waiting for {what} (Ctrl-C gives up): {why}"));
                said = why;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) fn line(self, text: &str) {
        let _ = writeln!(anstream::stdout(), "{text}");
    }

    pub(super) fn headings(self) {
        self.line(&format!(
            "{DIM}{:<12}  {:<9}  {:<JOB_WIDTH$}  {:<HANDLER_WIDTH$}  {:>7}  {:>10}  {:>10}  note{RESET}",
            "ended at", "status", "job", "handler", "attempt", "took", "late"
        ));
    }

    /// An execution that ended, or an attempt that failed.
    pub(super) fn execution(self, row: &Recent) {
        self.line(&execution_line(row));
    }
}

fn execution_line(row: &Recent) -> String {
    let ended = row.completed_at.or_else(|| ended_by_duration(row)).unwrap_or(row.scheduled_at);
    let time = ended.with_timezone(&Local).format("%H:%M:%S%.3f");
    let took = row.duration_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
    // Of a later attempt it would show the backoff, not how late the scheduler was.
    let late = row.started_at.filter(|_| row.attempt == 1).map(|started| late(row.scheduled_at, started));
    let colour = match row.status.as_str() {
        "SUCCESS" => "\u{1b}[32m",
        "RETRYING" | "SKIPPED" => "\u{1b}[33m",
        "FAILED" | "TIMEOUT" => "\u{1b}[31m",
        _ => "\u{1b}[36m",
    };
    let note = cut(&note(row), NOTE_WIDTH);
    format!(
        "{time}  {colour}{:<9}{RESET}  {:<JOB_WIDTH$}  {:<HANDLER_WIDTH$}  {:>7}  {took:>10}  {:>10}{}",
        row.status,
        cut(&row.job_name, JOB_WIDTH),
        cut(&row.handler_name, HANDLER_WIDTH),
        row.attempt,
        late.unwrap_or_default(),
        if note.is_empty() { String::new() } else { format!("  {DIM}{note}{RESET}") },
    )
}

fn ended_by_duration(row: &Recent) -> Option<DateTime<Utc>> {
    row.started_at.zip(row.duration_ms).map(|(started, ms)| started + chrono::TimeDelta::milliseconds(ms))
}

fn late(due: DateTime<Utc>, started: DateTime<Utc>) -> String {
    let micros = (started - due).num_microseconds().unwrap_or(i64::MAX);
    let (ms, seconds) = (micros / 1_000, micros / 1_000_000);
    match seconds.abs() {
        0..10 => format!("{ms}.{} ms", (micros % 1_000).abs() / 100),
        10..1_000 => format!("{seconds}.{} s", (ms % 1_000).abs() / 100),
        1_000..100_000 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

/// Why it is as it is, and what comes next. Of a failure its error: why it was late or early stands in the record.
fn note(row: &Recent) -> String {
    let failed = matches!(row.status.as_str(), "RETRYING" | "FAILED" | "TIMEOUT");
    let (first, second) = if failed { (&row.error, &row.reason) } else { (&row.reason, &row.error) };
    let why = first.as_deref().or(second.as_deref()).unwrap_or_default().replace(['\n', '\r'], " ");
    match row.next_retry_at.filter(|_| row.status == "RETRYING") {
        Some(next) => format!("next attempt at {}; {why}", next.with_timezone(&Local).format("%H:%M:%S%.3f")),
        None => why,
    }
}

/// A path as short as it can be said from here.
pub(super) fn short(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let short = here.as_deref().and_then(|here| path.strip_prefix(here).ok());
    short.unwrap_or(path).display().to_string()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: &str, attempt: i16) -> Recent {
        let due = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
        Recent {
            id: uuid::Uuid::nil(),
            job_name: "a name that is far too long for its column".into(),
            handler_name: "test:echo".into(),
            status: status.into(),
            attempt,
            scheduled_at: due,
            started_at: Some(due + chrono::TimeDelta::microseconds(1_340)),
            completed_at: Some(due + chrono::TimeDelta::milliseconds(12)),
            next_retry_at: Some(due),
            duration_ms: Some(10),
            reason: None,
            error: Some("two\nlines".into()),
        }
    }

    #[test]
    fn a_line_has_its_columns_and_lateness_only_of_a_first_attempt() {
        let line = anstream::adapter::strip_str(&execution_line(&row("FAILED", 1))).to_string();
        let (_, line) = line.split_once("  ").unwrap();
        let wanted =
            "FAILED     a name that is far too long…  test:echo             1       10 ms      1.3 ms  two lines";
        assert_eq!(line, wanted);
        assert!(!execution_line(&row("SUCCESS", 2)).contains("1.3 ms"));
        assert!(execution_line(&row("RETRYING", 1)).contains("next attempt at"));
    }
}
