//! Handlers for samples and tests: one that echoes, some that sleep, fail, panic and block, and in debug
//! builds one that is the death of its executor.

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::handler::{Context, Failure, Handler};

/// `test:echo` returns its payload.
pub(super) struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        context.payload()
    }
}

#[derive(Deserialize)]
struct For {
    #[serde(default)]
    ms: u64,
}

/// `test:sleep {"ms"}` sleeps; `test:stubborn` does not hear of a cancel.
pub(super) struct Sleep {
    pub(super) cancellable: bool,
}

#[async_trait]
impl Handler for Sleep {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let For { ms } = context.payload()?;
        let sleep = tokio::time::sleep(Duration::from_millis(ms));
        if !self.cancellable {
            sleep.await;
            return Ok(json!({ "slept_ms": ms }));
        }
        tokio::select! {
            () = sleep => Ok(json!({ "slept_ms": ms })),
            () = context.cancelled.cancelled() => Err(Failure::new("asked to stop")),
        }
    }
}

#[derive(Deserialize)]
struct FailHow {
    times: Option<u32>,
    #[serde(default = "some_message")]
    message: String,
    retry_after_ms: Option<u64>,
    #[serde(default)]
    for_good: bool,
}

fn some_message() -> String {
    "asked to fail".into()
}

/// `test:fail {"times", "message", "retry_after_ms", "for_good"}` fails the first `times` attempts, or all, and says when to try
/// again, or that nothing will help.
pub(super) struct Fail;

#[async_trait]
impl Handler for Fail {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let how: FailHow = context.payload()?;
        if how.times.is_none_or(|times| context.attempt <= times) {
            context.warn(format!("attempt {} fails as asked", context.attempt));
            return Err(match how {
                FailHow { for_good: true, message, .. } => Failure::for_good(message),
                FailHow { retry_after_ms: Some(ms), message, .. } => {
                    Failure::retry_after(message, Duration::from_millis(ms))
                }
                FailHow { message, .. } => Failure::new(message),
            });
        }
        Ok(json!({ "attempt": context.attempt }))
    }
}

#[derive(Deserialize)]
struct PanicHow {
    #[serde(default = "some_message")]
    message: String,
}

/// `test:panic {"message"}` panics.
pub(super) struct Panic;

#[async_trait]
impl Handler for Panic {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let PanicHow { message } = context.payload()?;
        panic!("{message}");
    }
}

#[derive(Deserialize)]
struct HowDeep {
    levels: usize,
}

/// `test:nest {"levels"}` returns a number within so many lists.
pub(super) struct Nest;

#[async_trait]
impl Handler for Nest {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let HowDeep { levels } = context.payload()?;
        Ok((0..levels).fold(json!(1), |inner, _| Value::Array(vec![inner])))
    }
}

#[derive(Deserialize)]
struct NoteHow {
    metadata: Map<String, Value>,
    #[serde(default)]
    times: u32,
}

/// `test:note {"metadata", "times"}` sets each entry as metadata, then fails the first `times` attempts; returns all metadata.
pub(super) struct Note;

#[async_trait]
impl Handler for Note {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let how: NoteHow = context.payload()?;
        for (name, value) in how.metadata {
            context.set_metadata(name, value).await?;
        }
        context.set_metadata(format!("attempt {}", context.attempt), "was here").await?;
        if context.attempt <= how.times {
            return Err(Failure::new(some_message()));
        }
        Ok(Value::Object(context.metadata().await?))
    }
}

/// `test:block {"ms"}` blocks its thread.
pub(super) struct Block;

#[async_trait]
impl Handler for Block {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let For { ms } = context.payload()?;
        std::thread::sleep(Duration::from_millis(ms));
        Ok(json!({ "blocked_ms": ms }))
    }
}

/// `test:kill {"ms"}` kills its process after so long, as one does that takes all the memory.
#[cfg(debug_assertions)]
pub(super) struct Kill;

#[cfg(debug_assertions)]
#[async_trait]
impl Handler for Kill {
    async fn run(&self, context: &Context) -> Result<Value, Failure> {
        let For { ms } = context.payload()?;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).map_err(|error| Failure::new(error.to_string()))?;
        std::future::pending().await
    }
}
