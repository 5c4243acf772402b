//! The dispatcher's process.

use std::process::ExitCode;

use carillon_dispatcher::Config;
use carillon_kit::{self as kit, config};

fn main() -> ExitCode {
    let service = kit::Service {
        name: "carillon-dispatcher",
        about: "Claims due jobs and publishes them to the streams; one replica leads, the others stand by",
        version: env!("CARGO_PKG_VERSION"),
        defaults: &[config::SHELL, config::POSTGRES, config::REDIS, include_str!("../config/default.toml")],
    };
    kit::run(service, |config: Config, process| carillon_dispatcher::run(config, process))
}
