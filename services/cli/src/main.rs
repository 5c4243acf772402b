//! The program `carillon`: what a person runs, beside the three services.

mod dev;
mod migrate;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Carillon, a horizontally scaled job scheduler.
#[derive(Parser)]
#[command(name = "carillon", version, about, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(dev::Arguments),
    Migrate(migrate::Arguments),
}

/// Bad arguments, as the services say it too.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => {
            // A closed pipe (`--help | head`) is no failure.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.context("cannot start the async runtime").and_then(|runtime| {
        runtime.block_on(async {
            match arguments.command {
                Command::Dev(arguments) => Box::pin(dev::run(arguments)).await,
                Command::Migrate(arguments) => migrate::run(arguments).await,
            }
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<carillon_kit::Stopped>() => ExitCode::from(130),
        Err(error) => {
            anstream::eprintln!("carillon: {error:#}");
            ExitCode::FAILURE
        }
    }
}
