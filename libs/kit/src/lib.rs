//! The shell around each Carillon process. It knows no word of the domain: arguments, configuration, logs, metrics, the
//! admin port, signals, shutdown, long-lived loops, waiting for a neighbour.
//!
//! ```no_run
//! use carillon_kit as kit;
//! use kit::config::{Checks, PostgresConfig, Settings};
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     postgres: PostgresConfig,
//!     bell: Bell,
//! }
//!
//! #[derive(serde::Deserialize)]
//! struct Bell {
//!     #[serde(deserialize_with = "kit::config::duration")]
//!     every: std::time::Duration,
//! }
//!
//! impl Settings for Config {
//!     fn check(&self, checks: &mut Checks) {
//!         self.postgres.check(checks);
//!         checks.that(!self.bell.every.is_zero(), "bell.every", "must be longer than 0");
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let service = kit::Service {
//!         name: "carillon-bell",
//!         about: "Rings",
//!         version: env!("CARGO_PKG_VERSION"),
//!         // Later ones override earlier ones. Together they hold *every* setting, with its comment: what is not in them is
//!         // refused as unknown, `--help` is made of them, and the type of a default says how a variable is read.
//!         // A service's own: include_str!("../config/default.toml"), its settings in a section named like the service.
//!         defaults: &[kit::config::SHELL, kit::config::POSTGRES, "[bell]\n# How often it rings.\nevery = \"1s\"\n"],
//!     };
//!     kit::run(service, |config: Config, process: kit::Process| async move {
//!         let ready = process.readiness().flag("bell");           // /readyz is 503 until every flag is up
//!         let mut tasks = process.tasks();
//!         let shutdown = process.shutdown();
//!         tasks.spawn("ring", async move {                        // ends early or panics: the process ends, loudly
//!             let _ = config.bell.every;
//!             ready.up();
//!             shutdown.cancelled().await;
//!             Ok(())
//!         });
//!         tasks.run().await                                       // until SIGTERM, then the drain, bounded by the grace
//!     })
//! }
//! ```
//!
//! # Order of a start
//! Arguments, configuration (all errors at once, exit code 64), logs, panic hook, TLS provider, runtime, metrics, signals,
//! admin port; only then the service, which connects and serves. No socket opens before the configuration is known good.
//!
//! # Order of a stop
//! SIGTERM or SIGINT cancels [`Process::shutdown`]; `/readyz` turns 503 at once; the service drains and returns; whatever
//! still runs `shutdown.grace` later is named in the log and dropped. A second signal exits at once. Exit codes: 0 a clean
//! end (also a stop while still waiting for Postgres), 1 a failure, 64 bad arguments or configuration, 130 a second signal.

#![warn(missing_docs)]

mod admin;
mod args;
pub mod config;
pub mod connect;
pub mod metrics;
mod process;
mod readiness;
mod run;
pub mod shutdown;
mod sleep;
mod tasks;
pub mod telemetry;
mod watch;

pub use connect::{Stopped, wait_for};
pub use process::{Process, bind};
pub use readiness::{Flag, Readiness};
pub use run::{Service, run};
pub use sleep::sleep_until;
pub use tasks::Tasks;

/// What a message or a row is made of is allocated on one thread and freed on another, thousands of times a second.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
