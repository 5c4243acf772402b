//! The program `carillon`: what a person runs, beside the three services.

mod dev;
mod migrate;
mod preview;

use std::fmt;
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
    Preview(preview::Arguments),
}

/// Bad arguments or a bad schedule, as the services say it too.
const EXIT_USAGE: u8 = 64;

/// What is wrong with the arguments, where only the command itself can tell.
#[derive(Debug)]
pub(crate) struct BadArguments(String);

impl fmt::Display for BadArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadArguments {}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => {
            // A closed pipe (`--help | head`) is no failure.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match arguments.command {
        Command::Preview(arguments) => match preview::run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(mistakes) => {
                for mistake in mistakes {
                    anstream::eprintln!("carillon: {mistake}");
                }
                ExitCode::from(EXIT_USAGE)
            }
        },
        Command::Dev(arguments) => ended(dev::run(arguments)),
        Command::Migrate(arguments) => ended(migrate::run(arguments)),
    }
}

/// Runs a command that waits for others, to its exit code.
fn ended(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.context("cannot start the async runtime").and_then(|runtime| {
        // Boxed: the future of a whole command is large, and there is one.
        runtime.block_on(Box::pin(command))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<carillon_kit::Stopped>() => ExitCode::from(130),
        Err(error) if error.is::<BadArguments>() => {
            anstream::eprintln!("carillon: {error:#}");
            ExitCode::from(EXIT_USAGE)
        }
        Err(error) => {
            anstream::eprintln!("carillon: {error:#}");
            ExitCode::FAILURE
        }
    }
}
