//! What handlers did, as a witness that does not go through Postgres: when `CARILLON_TEST_JOURNAL` names a file, each start
//! and end of a handler, and each end that is recorded, is appended to it as one JSON line by one write. For tests; without
//! the variable it costs one look at a static.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

use chrono::{SecondsFormat, Utc};
use serde_json::json;
use tracing::warn;
use uuid::Uuid;

use crate::ended::Ended;
use crate::handler::Context;

static FILE: OnceLock<Option<File>> = OnceLock::new();
static WORKER: OnceLock<String> = OnceLock::new();

/// Opens the journal if the environment names one. `worker` is this executor's name in it.
pub(crate) fn open(worker: &str) {
    WORKER.get_or_init(|| worker.to_owned());
    FILE.get_or_init(|| {
        let path = std::env::var_os("CARILLON_TEST_JOURNAL")?;
        match OpenOptions::new().create(true).append(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) => {
                warn!(path = %path.display(), "cannot open the test journal: {error}");
                None
            }
        }
    });
}

pub(crate) fn start(context: &Context) {
    write((context.execution, context.attempt, context.job), "start", None);
}

pub(crate) fn end(context: &Context, ended: &Ended) {
    let outcome = ended.error.as_deref().unwrap_or("success");
    write((context.execution, context.attempt, context.job), "end", Some(outcome));
}

/// Postgres has answered that the end of this attempt is recorded and counts.
pub(crate) fn recorded(execution: Uuid, attempt: u32, job: Uuid) {
    write((execution, attempt, job), "recorded", None);
}

fn write((execution, attempt, job): (Uuid, u32, Uuid), event: &str, outcome: Option<&str>) {
    let Some(Some(mut file)) = FILE.get().map(Option::as_ref) else { return };
    let mut line = json!({
        "execution": execution,
        "attempt": attempt,
        "job": job,
        "event": event,
        "at": Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
        "worker": WORKER.get(),
        "pid": std::process::id(),
    });
    if let (Some(object), Some(outcome)) = (line.as_object_mut(), outcome) {
        object.insert("outcome".into(), outcome.into());
    }
    if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
        warn!("cannot write the test journal: {error}");
    }
}
