//! The command line, the same for every service: `--config`, `--check-config`, `config`, `--version`, `--help`.
//! The help lists each setting with its variable, default and comment, read from the very text that sets the defaults,
//! so that it cannot be out of date.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, value_parser};

use crate::Service;
use crate::config::catalogue;

/// What was asked for, with the configuration file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Serve.
    Run(Option<PathBuf>),
    /// Only say whether the configuration is right.
    Check(Option<PathBuf>),
    /// Print the settings in force.
    Print(Option<PathBuf>),
}

impl Request {
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::Run(file) | Self::Check(file) | Self::Print(file) => file.as_deref(),
        }
    }
}

/// Help, version or a usage error: printed, then the process ends.
#[derive(Debug)]
pub(crate) struct Answer(clap::Error);

impl Answer {
    pub(crate) fn print(self) -> ExitCode {
        // A closed pipe (`--help | head`) is no failure of ours.
        let _ = self.0.print();
        if self.0.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
    }
}

pub(crate) fn parse(service: &Service, args: impl IntoIterator<Item = OsString>) -> Result<Request, Answer> {
    let matches = command(service).try_get_matches_from(args).map_err(Answer)?;
    let file = matches.get_one::<PathBuf>("config").cloned();
    if matches.subcommand_matches("config").is_some() {
        return Ok(Request::Print(file));
    }
    Ok(if matches.get_flag("check-config") { Request::Check(file) } else { Request::Run(file) })
}

fn command(service: &Service) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .env("CARILLON_CONFIG")
        .hide_env_values(true)
        .global(true)
        .value_parser(value_parser!(PathBuf))
        .help("TOML file with settings; it overrides the defaults and is overridden by the environment");
    let check = Arg::new("check-config")
        .long("check-config")
        .action(ArgAction::SetTrue)
        .help("Check the whole configuration, open nothing, and end: 0 if it is right, 64 if not");
    Command::new(service.name)
        .bin_name(service.name)
        .about(service.about)
        .version(service.version)
        .arg(file)
        .arg(check)
        .subcommand(
            Command::new("config").about("Print the settings in force, each with where it comes from, secrets masked"),
        )
        .after_help(settings_help(service))
}

fn settings_help(service: &Service) -> String {
    let mut help = String::from(
        "Settings, as in the TOML file. Each can be set by the variable beside it, or be read from the file that the variable \
         with _FILE behind it names. Later wins: default, DATABASE_URL and REDIS_URL, FILE, RUST_LOG, CARILLON_*.\n",
    );
    let settings = catalogue(service.defaults);
    let width = settings.iter().map(|setting| setting.path.len()).max().unwrap_or(0);
    for setting in &settings {
        let _ = write!(help, "\n  {:width$}  {}  [default: {}]\n", setting.path, setting.variable(), setting.default);
        for line in &setting.doc {
            let _ = writeln!(help, "      {line}");
        }
    }
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service {
        name: "carillon-probe",
        about: "For tests",
        version: "1.2.3",
        defaults: &[crate::config::SHELL, crate::config::POSTGRES],
    };

    fn parsed(args: &[&str]) -> Result<Request, Answer> {
        parse(&SERVICE, ["carillon-probe"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn the_file_may_stand_before_and_behind_the_subcommand() {
        let file = Some(PathBuf::from("a.toml"));
        assert_eq!(parsed(&["--config", "a.toml", "config"]).unwrap(), Request::Print(file.clone()));
        assert_eq!(parsed(&["config", "--config", "a.toml"]).unwrap(), Request::Print(file.clone()));
        assert_eq!(parsed(&["--config", "a.toml", "--check-config"]).unwrap(), Request::Check(file.clone()));
        assert_eq!(parsed(&["--config=a.toml"]).unwrap(), Request::Run(file));
    }

    #[test]
    fn help_lists_each_setting_with_its_variable_default_and_comment() {
        let help = parsed(&["--help"]).unwrap_err().0.to_string();
        for setting in catalogue(SERVICE.defaults) {
            assert!(help.contains(&setting.path) && help.contains(&setting.variable()), "{help}");
            assert!(!setting.doc.is_empty(), "{} has no comment", setting.path);
        }
        assert!(help.contains("CARILLON_POSTGRES_URL") && help.contains("--check-config"), "{help}");
    }

    #[test]
    fn an_unknown_argument_is_an_error_of_use() {
        assert!(parsed(&["--colour"]).unwrap_err().0.use_stderr());
        assert!(!parsed(&["--version"]).unwrap_err().0.use_stderr());
    }
}
