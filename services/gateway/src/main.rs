//! `carillon-gateway`.

use std::process::ExitCode;

use carillon_gateway::{Config, config, run};
use carillon_kit as kit;

fn main() -> ExitCode {
    let service = kit::Service {
        name: "carillon-gateway",
        about: "Serves the API of Carillon over gRPC, gRPC-Web and JSON",
        version: env!("CARGO_PKG_VERSION"),
        defaults: config::DEFAULTS,
    };
    kit::run(service, |config: Config, process: kit::Process| async move {
        let listener = kit::bind("gateway.listen", config.gateway.listen).await?;
        run(config, process, listener).await
    })
}
