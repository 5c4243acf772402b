//! Log lines. For people by default: time, level, where, message and fields in columns, colour only on a terminal. For a
//! collector with `log.format = "json"`: one object a line, fields at its top level.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::{DefaultFields, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

/// Reads a level or directives.
pub(crate) fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(level)
}

/// Sends the log of this process to standard output. Called once, by [`crate::run`]; command-line programs may call it too.
pub fn install(config: &LogConfig) {
    // Checked when the configuration was read.
    let filter = filter(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stdout);
    let installed = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).finish().try_init(),
        LogFormat::Human => {
            let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).fmt_fields(DefaultFields::new()).event_format(HumanLine).finish().try_init()
        }
    };
    if let Err(error) = installed {
        eprintln!("the log was already set up: {error}");
    }
}

/// A panic becomes a log line with its place, in the format of the log; the thread unwinds as before.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic_message(panic.payload());
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(
            panic.place = place,
            panic.thread = thread.name().unwrap_or("unnamed"),
            panic.backtrace = backtrace(),
            "panicked: {message}"
        );
    }));
}

/// Only with `RUST_BACKTRACE=full`: it is a hundred lines of runtime in one line of the log, and the place says enough.
fn backtrace() -> Option<String> {
    let wanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|how| how == "full");
    wanted.then(|| std::backtrace::Backtrace::force_capture().to_string())
}

/// The text that `panic!` was given.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a value that is no text".into())
}

/// `2026-11-24T16:14:03.123456Z INFO  dispatcher::leader    leads the shard  shard=0 term=12`
struct HumanLine;

/// Wide enough for most targets: what is longer pushes its own line only.
const TARGET_WIDTH: usize = 22;

impl<S, N> FormatEvent<S, N> for HumanLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let colour = out.has_ansi_escapes();
        let metadata = event.metadata();
        SystemTime.format_time(&mut out)?;
        let (on, off) = if colour { (level_colour(*metadata.level()), RESET) } else { ("", "") };
        write!(out, " {on}{:<5}{off} ", metadata.level().as_str())?;
        let target = metadata.target().strip_prefix("carillon_").unwrap_or_else(|| metadata.target());
        let (on, off) = if colour { (DIM, RESET) } else { ("", "") };
        write!(out, "{on}{target:<TARGET_WIDTH$}{off} ")?;
        write_fields(out.by_ref(), event)?;
        for span in ctx.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(out, " {on}{fields}{off}")?;
            }
        }
        writeln!(out)
    }
}

/// The message first, whatever the order in the code; then the fields.
fn write_fields(mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
    struct Split {
        message: String,
        fields: String,
    }
    impl tracing::field::Visit for Split {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
            use std::fmt::Write as _;
            if field.name() == "message" {
                let _ = write!(self.message, "{value:?}");
            } else {
                let _ =
                    write!(self.fields, "{}{}={value:?}", if self.fields.is_empty() { "" } else { " " }, field.name());
            }
        }

        fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
            // Quotes only where a reader would need them.
            if value.contains([' ', '=', '"', '\n']) || value.is_empty() {
                self.record_debug(field, &value);
            } else {
                self.record_debug(field, &format_args!("{value}"));
            }
        }
    }
    let mut split = Split { message: String::new(), fields: String::new() };
    event.record(&mut split);
    out.write_str(&split.message)?;
    if split.fields.is_empty() { Ok(()) } else { write!(out, "  {}", split.fields) }
}

const RESET: &str = "\u{1b}[0m";
const DIM: &str = "\u{1b}[2m";

const fn level_colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        Level::TRACE => "\u{1b}[35m",
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line_of(ansi: bool, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(ansi)
            .event_format(HumanLine)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_has_columns_and_its_fields_behind_the_message() {
        let line = line_of(false, || {
            tracing::info!(target: "carillon_dispatcher::leader", shard = 0, why = "two words", url = "a://b", "leads");
        });
        let (_, line) = line.split_once(' ').unwrap();
        assert_eq!(line, "INFO  dispatcher::leader     leads  shard=0 why=\"two words\" url=a://b\n");
    }

    #[test]
    fn colour_is_asked_for() {
        assert!(!line_of(false, || tracing::warn!("x")).contains('\u{1b}'));
        assert!(line_of(true, || tracing::warn!("x")).contains("\u{1b}[33mWARN "));
    }

    #[test]
    fn a_level_or_directives_are_understood() {
        assert!(filter("info,carillon_dispatcher=debug").is_ok());
        assert!(filter("warn").is_ok());
        assert!(filter("loud=very").is_err());
    }
}
