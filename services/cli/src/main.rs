//! The program `carillon`: what a person runs, beside the three services.

mod api;
mod completions;
mod dev;
mod exit;
mod migrate;
mod preview;

use std::fmt;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use exit::Exit;

/// Carillon, a horizontally scaled job scheduler.
#[derive(Parser)]
#[command(name = "carillon", version, about, max_term_width = 120, after_long_help = exit::help())]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Those beside the commands that ask a gateway, which are in [`api`].
#[derive(Subcommand)]
enum Command {
    Dev(dev::Arguments),
    Migrate(migrate::Arguments),
    Preview(preview::Arguments),
    Completions(completions::Arguments),
}

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
    let commands = api::Commands::new();
    let root = commands.added_to(Arguments::command());
    let read = root.clone().try_get_matches();
    let read = read.and_then(|matches| match commands.given(&matches) {
        Some((call, given)) => Ok(Asked::Api(call, given.clone())),
        None => Arguments::from_arg_matches(&matches).map(|arguments| Asked::Other(arguments.command)),
    });
    match read {
        Ok(Asked::Api(call, given)) => of_api(api::run(call, &given)),
        Ok(Asked::Other(command)) => other(command, root),
        Err(answer) => {
            // A closed pipe (`--help | head`) is no failure.
            let _ = answer.print();
            if answer.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
        }
    }
}

/// What was asked for on the command line.
enum Asked<'a> {
    Api(&'a api::Call, clap::ArgMatches),
    Other(Command),
}

fn other(command: Command, root: clap::Command) -> ExitCode {
    match command {
        Command::Preview(arguments) => match preview::run(&arguments) {
            Ok(()) => Exit::Done.into(),
            Err(mistakes) => {
                for mistake in mistakes {
                    anstream::eprintln!("carillon: {mistake}");
                }
                Exit::Usage.into()
            }
        },
        Command::Completions(arguments) => {
            completions::run(&arguments, root);
            Exit::Done.into()
        }
        Command::Dev(arguments) => ended(dev::run(arguments)),
        Command::Migrate(arguments) => ended(migrate::run(arguments)),
    }
}

/// One call needs no more than this thread.
fn of_api(command: impl Future<Output = Exit>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command).into(),
        Err(error) => {
            anstream::eprintln!("carillon: cannot start the async runtime: {error}");
            Exit::Failed.into()
        }
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
        Ok(()) => Exit::Done.into(),
        Err(error) if error.is::<carillon_kit::Stopped>() => ExitCode::from(130),
        Err(error) if error.is::<BadArguments>() => {
            anstream::eprintln!("carillon: {error:#}");
            Exit::Usage.into()
        }
        Err(error) => {
            anstream::eprintln!("carillon: {error:#}");
            Exit::Failed.into()
        }
    }
}
