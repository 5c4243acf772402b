//! Runs one handler on the handler threads, whatever it does: returns, fails, panics, returns too much.

use std::any::Any;
use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use carillon_core::execution::AttemptEnd;
use carillon_core::limits::{ERROR_CHARS_MAX, RESULT_BYTES_MAX};
use carillon_store::recorder::LogLine;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use serde_json::Value;

use crate::handler::{Context, Failure, Handler, clean};
use crate::journal;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub end: AttemptEnd,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: DateTime<Utc>,
    /// JSON text.
    pub result: Option<String>,
    pub error: Option<String>,
    pub error_stack: Option<String>,
    pub reason: Option<String>,
    pub logs: Vec<LogLine>,
}

impl Ended {
    /// One whose handler never started, or is not waited for.
    pub(crate) fn without_run(end: AttemptEnd, ended_at: DateTime<Utc>) -> Self {
        Self {
            end,
            started_at: None,
            ended_at,
            result: None,
            error: None,
            error_stack: None,
            reason: None,
            logs: Vec::new(),
        }
    }
}

thread_local! {
    /// Where the last panic of this thread happened: the hook knows the place, the one who catches it does not.
    static PANIC_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes panics remember their place. Once a process.
pub(crate) fn remember_panic_places() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(|location| format!("{}:{}", location.file(), location.line()));
        PANIC_PLACE.with(|kept| *kept.borrow_mut() = place);
        hook(info);
    }));
}

/// Runs a handler, which began at `started_at`, to its end.
pub(crate) async fn run(handler: Arc<dyn Handler>, context: Context, started_at: DateTime<Utc>) -> Ended {
    journal::start(&context);
    let outcome = AssertUnwindSafe(handler.run(&context)).catch_unwind().await;
    let mut ended = match outcome {
        Ok(Ok(value)) => succeeded(&value, context.clock.now()),
        Ok(Err(failure)) => failed(failure, context.clock.now()),
        Err(panic) => failed(panicked(panic.as_ref()), context.clock.now()),
    };
    journal::end(&context, &ended);
    ended.started_at = Some(started_at);
    ended.logs = context.logs.take(ended.ended_at);
    ended
}

fn succeeded(value: &Value, now: DateTime<Utc>) -> Ended {
    let text = value.to_string();
    if text.len() > RESULT_BYTES_MAX {
        let why = format!("the result has {} bytes of JSON, {RESULT_BYTES_MAX} are allowed", text.len());
        return failed(Failure::for_good(why), now);
    }
    // Postgres cannot hold U+0000 in JSON; JSON text holds it only as this escape.
    let text = if text.contains("\\u0000") { text.replace("\\u0000", "\\ufffd") } else { text };
    Ended { result: Some(text), ..Ended::without_run(AttemptEnd::Succeeded, now) }
}

fn failed(failure: Failure, now: DateTime<Utc>) -> Ended {
    Ended {
        error: Some(clean(failure.message, ERROR_CHARS_MAX)),
        error_stack: failure.stack.map(|stack| clean(stack, ERROR_CHARS_MAX)),
        ..Ended::without_run(AttemptEnd::Failed { retry: failure.retry }, now)
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let message = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is no text".into());
    let place = PANIC_PLACE.with(|kept| kept.borrow_mut().take());
    let at = place.as_deref().map(|place| format!(" at {place}")).unwrap_or_default();
    Failure { message: format!("the handler panicked: {message}{at}"), stack: place, retry: true }
}
