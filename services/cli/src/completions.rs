//! `carillon completions`: what a shell needs to complete commands and flags. Made of the commands themselves, so that it has them
//! all.

use std::io::Write as _;

use clap::{Command, ValueEnum};
use clap_complete::Shell;

/// Print what a shell needs to complete the commands and flags of this program.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Known,
}

const EXAMPLES: &str = "\
Examples:
  bash:  source <(carillon completions bash)                # in ~/.bashrc
  zsh:   carillon completions zsh > \"${fpath[1]}/_carillon\"
  fish:  carillon completions fish > ~/.config/fish/completions/carillon.fish";

#[derive(Clone, Copy, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

/// Prints it.
pub(crate) fn run(arguments: &Arguments, mut command: Command) {
    let shell = match arguments.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "carillon", &mut script);
    // A closed pipe (`| head`) is no failure.
    let _ = std::io::stdout().lock().write_all(&script);
}
