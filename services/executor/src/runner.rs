//! Runs one handler on the handler threads, whatever it does: returns, fails, panics, returns too much or too deep. What leaves
//! here is bounded, so that Postgres takes it and every page of a listing can hold it.

use std::any::Any;
use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use carillon_core::execution::AttemptEnd;
use carillon_core::json;
use carillon_core::limits::{ERROR_BYTES_MAX, ERROR_CHARS_MAX, RESULT_BYTES_MAX, VALUE_DEPTH_MAX};
use carillon_core::retry::Again;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use serde_json::Value;

use crate::ended::Ended;
use crate::handler::{Context, Failure, Handler, clean};
use crate::journal;

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
        Ok(Ok(value)) => succeeded(value, context.clock.now()),
        Ok(Err(failure)) => failed(failure, context.clock.now()),
        Err(panic) => failed(panicked(panic.as_ref()), context.clock.now()),
    };
    journal::end(&context, &ended);
    ended.started_at = Some(started_at);
    ended.logs = context.logs.take(ended.ended_at);
    ended.metadata = context.metadata.take();
    ended
}

/// What cannot be kept, or could never be read again, fails the attempt, for good: the same would come again.
fn succeeded(value: Value, now: DateTime<Utc>) -> Ended {
    if json::is_deeper_than(&value, VALUE_DEPTH_MAX) {
        json::take_apart(value);
        return failed(Failure::for_good(format!("the result is nested deeper than {VALUE_DEPTH_MAX} levels")), now);
    }
    let bytes = json::text_bytes(&value);
    if bytes > RESULT_BYTES_MAX {
        let why = format!("the result has {bytes} bytes of JSON, {RESULT_BYTES_MAX} are allowed");
        return failed(Failure::for_good(why), now);
    }
    Ended { result: Some(json::text(&value)), ..Ended::without_run(AttemptEnd::Succeeded, now) }
}

fn failed(failure: Failure, now: DateTime<Utc>) -> Ended {
    Ended {
        error: Some(clean(failure.message, ERROR_CHARS_MAX, ERROR_BYTES_MAX)),
        error_stack: failure.stack.map(|stack| clean(stack, ERROR_CHARS_MAX, ERROR_BYTES_MAX)),
        again: failure.again,
        ..Ended::without_run(AttemptEnd::Failed { retry: failure.again != Again::Never }, now)
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
    Failure { message: format!("the handler panicked: {message}{at}"), stack: place, again: Again::ByPolicy }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ended(value: Value) -> Ended {
        succeeded(value, DateTime::UNIX_EPOCH)
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| Value::Array(vec![inner]))
    }

    #[test]
    fn a_result_is_bounded_in_depth_and_bytes() {
        assert_eq!(ended(nested(VALUE_DEPTH_MAX)).end, AttemptEnd::Succeeded);
        for levels in [VALUE_DEPTH_MAX + 1, 300_000] {
            let ended = ended(nested(levels));
            assert_eq!(ended.end, AttemptEnd::Failed { retry: false });
            assert_eq!(ended.error.as_deref(), Some("the result is nested deeper than 30 levels"));
        }
        let text = |bytes: usize| json!("x".repeat(bytes - 2));
        assert_eq!(ended(text(RESULT_BYTES_MAX)).end, AttemptEnd::Succeeded);
        for value in [text(RESULT_BYTES_MAX + 1), json!(vec![1e300; 1_000])] {
            let ended = ended(value);
            assert_eq!(ended.end, AttemptEnd::Failed { retry: false });
            assert!(ended.error.as_deref().is_some_and(|error| error.ends_with("262144 are allowed")), "{ended:?}");
        }
    }

    #[test]
    fn errors_are_bounded_in_characters_and_bytes() {
        for text in ["x", "ä", "\u{1f514}"] {
            let long = text.repeat(100_000);
            let ended = failed(
                Failure { message: long.clone(), stack: Some(long), again: Again::ByPolicy },
                DateTime::UNIX_EPOCH,
            );
            for kept in [ended.error.unwrap(), ended.error_stack.unwrap()] {
                assert!(kept.len() <= ERROR_BYTES_MAX + '…'.len_utf8(), "{}", kept.len());
                assert!(kept.chars().count() <= ERROR_CHARS_MAX + 1 && kept.ends_with('…'));
            }
        }
    }
}
