//! The executor's process, with the built-in handlers.

use std::process::ExitCode;

use carillon_executor::Config;
use carillon_kit::{self as kit, config};

fn main() -> ExitCode {
    let service = kit::Service {
        name: "carillon-executor",
        about: "Runs handlers: reads the streams of its queues, executes at the instant, records",
        version: env!("CARGO_PKG_VERSION"),
        defaults: &[config::SHELL, config::POSTGRES, config::REDIS, include_str!("../config/default.toml")],
    };
    kit::run(service, |config: Config, process| carillon_executor::run(config, process, |built_in| built_in))
}
