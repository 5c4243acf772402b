//! The commands as clap has them: their flags, their help, and what was given of them. All of it follows from the catalog and the
//! comments of the protos.

use std::time::Duration;

use carillon_core::schedule::parse_interval;
use carillon_kit::config;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueEnum, ValueHint};
use prost_reflect::Kind;

use super::catalog::kebab;
use super::catalog::{Call, Field, Noun};
use super::request::{Given, is_json};
use super::wait::can_wait;
use crate::exit;
use carillon_proto::comments::{Comments, first_clause, first_sentence};
use carillon_proto::words::words;

pub(crate) const ADDRESS: &str = "http://127.0.0.1:3051";
const TIMEOUT: &str = "10s";
/// What `--wait` alone stands for.
const WITHOUT_END: &str = "";
const OF_ALL: &str = "Options of all commands that ask a gateway";

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns, or a line for each field.
    Table,
    /// The answer as the JSON API has it; on one line where the output is no terminal.
    Json,
}

/// How a call is to be made, and its answer to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) address: String,
    /// A file with the certificates that are trusted instead of the system's.
    pub(crate) ca: Option<String>,
    pub(crate) timeout: Duration,
    /// The platform for which it is asked; none for all.
    pub(crate) platform: Option<String>,
    pub(crate) output: Output,
    /// Whether to wait until the execution is final, and how long.
    pub(crate) wait: Option<Option<Duration>>,
}

/// `carillon job` and all below it.
pub(crate) fn of_noun(noun: &Noun, comments: &Comments) -> Command {
    let about = comments.service(&noun.service);
    let mut command = Command::new(noun.name.clone())
        .about(first_clause(about))
        .long_about(about.to_owned())
        .subcommand_required(true)
        .arg_required_else_help(true);
    for call in &noun.calls {
        command = command.subcommand(of_call(call, comments));
    }
    command
}

fn of_call(call: &Call, comments: &Comments) -> Command {
    let about = comments.method(&call.method);
    let mut command = Command::new(call.verb.clone())
        .about(first_clause(about))
        .long_about(about.to_owned())
        .after_long_help(exit::help());
    for field in &call.fields {
        if let Some(arg) = of_field(field, comments) {
            command = command.arg(arg);
        }
    }
    if let Some((help, long)) = held_by_file(call) {
        command = command.arg(
            Arg::new("file")
                .short('f')
                .long("file")
                .value_name("FILE")
                .value_hint(ValueHint::FilePath)
                .help(help)
                .long_help(long),
        );
    }
    if call.mask.is_some() {
        let fields = call.fields.iter().filter(|field| field.is_changed());
        // In both spellings: as a flag has it and as the field is called.
        let names = fields.map(|field| PossibleValue::new(field.name.clone()).alias(field.name.replace('-', "_")));
        command = command.arg(
            Arg::new("clear")
                .long("clear")
                .value_name("FIELD")
                .action(ArgAction::Append)
                .value_parser(PossibleValuesParser::new(names))
                .hide_possible_values(true)
                .help("Give a field its default; may be given several times"),
        );
    }
    common(command, can_wait(&call.method))
}

/// What a file may hold, in short and in full.
fn held_by_file(call: &Call) -> Option<(String, String)> {
    if let Some(body) = &call.body {
        let help = format!("A file with the {} as JSON, - for standard input", body.name());
        let long = format!("{help}: an object of its fields, as -o json prints it. Flags win over it.");
        return Some((help, long));
    }
    let list = call.list.as_ref()?.name();
    let help = format!("A file with the {list} as JSON, - for standard input");
    let long = format!(
        "{help}: a list of objects, one object after another (a line each, or not), or an object with the list as `{list}`, as -o json \
         prints it."
    );
    Some((help, long))
}

fn common(command: Command, can_wait: bool) -> Command {
    let mut command = command
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_name("FORM")
                .value_parser(clap::value_parser!(Output))
                .ignore_case(true)
                .default_value("table")
                .help_heading(OF_ALL)
                .help("How the answer is printed"),
        )
        .arg(
            Arg::new("address")
                .long("address")
                .value_name("URL")
                .env(config::ADDRESS_VARIABLE)
                .default_value(ADDRESS)
                .help_heading(OF_ALL)
                .help("Where the gateway is: http://host:port, or https://host:port"),
        )
        .arg(
            Arg::new("ca")
                .long("ca")
                .value_name("FILE")
                .env(config::CA_VARIABLE)
                .value_hint(ValueHint::FilePath)
                .help_heading(OF_ALL)
                .help("Certificates (PEM) to trust over https instead of the system's"),
        )
        .arg(
            Arg::new("platform")
                .long("platform")
                .value_name("ID")
                .env(config::PLATFORM_VARIABLE)
                .help_heading(OF_ALL)
                .help("The platform to ask for: only what is of it, or global, is there then"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .default_value(TIMEOUT)
                .value_parser(duration)
                .help_heading(OF_ALL)
                .help("How long a call may take, such as 500ms or 1m30s"),
        );
    if can_wait {
        command = command.arg(
            Arg::new("wait")
                .long("wait")
                .value_name("TIME")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value(WITHOUT_END)
                .value_parser(wait)
                .help("Wait until the execution is final, --wait=30s no longer than that; its end gives the exit code"),
        );
    }
    command
}

fn of_field(field: &Field, comments: &Comments) -> Option<Arg> {
    let of = field.field()?;
    let kind = of.kind();
    let comment = comments.field(of);
    let note = note(field, &kind);
    let (short, long) = (first_sentence(comment), format!("{comment}{note}"));
    let mut arg = Arg::new(field.name.clone()).required(field.is_required).help(short).long_help(long);
    if field.is_placed {
        return Some(arg.value_name(field.name.to_uppercase().replace('-', "_")));
    }
    arg = arg.long(field.name.clone());
    if of.is_list() {
        arg = arg.action(ArgAction::Append);
    }
    Some(match &kind {
        Kind::Bool => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
            .hide_possible_values(true)
            .value_parser(PossibleValuesParser::new(["true", "false"])),
        Kind::Enum(of) => {
            let known = words(of).into_iter().filter(|word| word.number != 0);
            let values = known.map(|word| {
                let help = first_sentence(comments.value(of, word.place));
                PossibleValue::new(word.word).aliases(word.others).help(help)
            });
            arg.value_name("WORD").ignore_case(true).value_parser(PossibleValuesParser::new(values))
        }
        Kind::String => arg.value_name("TEXT"),
        Kind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => arg.value_name("INSTANT"),
        Kind::Message(of) if of.full_name() == "google.protobuf.Duration" => arg.value_name("SECONDS"),
        Kind::Message(_) => arg.value_name("JSON").value_hint(ValueHint::Other),
        _ => arg.value_name("NUMBER").allow_negative_numbers(true),
    })
}

/// How a value is written, where the comment cannot know it.
fn note(field: &Field, kind: &Kind) -> String {
    let mut note = String::new();
    if field.field().is_some_and(|of| of.is_list()) {
        note.push_str(" May be given several times.");
    }
    match kind {
        Kind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => {
            note.push_str(" As RFC 3339 has it, such as 2027-12-01T10:00:00Z.");
        }
        _ if is_json(kind) => note.push_str(" As JSON, or @FILE that holds it, @- for standard input."),
        _ => {}
    }
    note
}

/// What was given for the fields of a call.
pub(crate) fn given(call: &Call, matches: &ArgMatches) -> Given {
    let is_given = |name: &str| matches.value_source(name).is_some_and(|source| source != ValueSource::DefaultValue);
    let texts = |name: &str| -> Vec<String> {
        matches.get_many::<String>(name).map(|texts| texts.cloned().collect()).unwrap_or_default()
    };
    let fields = call.fields.iter().filter(|field| is_given(&field.name));
    Given {
        fields: fields.map(|field| (field.name.clone(), texts(&field.name))).collect(),
        file: call.body.as_ref().or(call.list.as_ref()).and_then(|_| matches.get_one::<String>("file").cloned()),
        clear: if call.mask.is_some() { texts("clear").iter().map(|name| kebab(name)).collect() } else { Vec::new() },
    }
}

/// How it is to be made. An empty variable is one that is not set, as for the services.
pub(crate) fn manner(call: &Call, matches: &ArgMatches) -> Manner {
    let address = matches.get_one::<String>("address").map(|address| address.trim()).unwrap_or_default();
    let is_set = matches.value_source("platform") == Some(ValueSource::CommandLine);
    // An empty flag is no platform, which the gateway says; it never asks for all.
    let platform = matches.get_one::<String>("platform").filter(|platform| is_set || !platform.is_empty());
    let wait = can_wait(&call.method).then(|| matches.get_one::<Option<Duration>>("wait").copied()).flatten();
    Manner {
        address: if address.is_empty() { ADDRESS.to_owned() } else { address.to_owned() },
        ca: matches.get_one::<String>("ca").filter(|file| !file.is_empty()).cloned(),
        timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(10)),
        platform: platform.cloned(),
        output: matches.get_one::<Output>("output").copied().unwrap_or(Output::Table),
        wait,
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_interval(text).map_err(|error| error.message.trim_start_matches("interval: ").to_owned())
}

fn wait(text: &str) -> Result<Option<Duration>, String> {
    if text == WITHOUT_END { Ok(None) } else { duration(text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::super::catalog::nouns;
    use super::*;
    use carillon_proto::descriptors;

    fn root() -> Command {
        let pool = descriptors();
        let comments = Comments::of(&pool);
        let root = Command::new("carillon");
        nouns(&pool).iter().fold(root, |root, noun| root.subcommand(of_noun(noun, &comments)))
    }

    fn parsed(arguments: &[&str]) -> Result<(Given, Manner), clap::Error> {
        let matches = root().try_get_matches_from([&["carillon"], arguments].concat())?;
        let (noun, matches) = matches.subcommand().unwrap();
        let (verb, matches) = matches.subcommand().unwrap();
        let noun = nouns(&descriptors()).into_iter().find(|found| found.name == noun).unwrap();
        let call = noun.calls.into_iter().find(|call| call.verb == verb).unwrap();
        Ok((given(&call, matches), manner(&call, matches)))
    }

    /// Also checks, as clap has it, that no command has two flags of one name.
    #[test]
    fn every_flag_has_a_help() {
        let mut root = root();
        root.build();
        for noun in root.get_subcommands().filter(|noun| noun.get_name() != "help") {
            assert!(noun.get_about().is_some_and(|about| !about.to_string().is_empty()));
            for call in noun.get_subcommands().filter(|call| call.get_name() != "help") {
                assert!(call.get_about().is_some_and(|about| !about.to_string().is_empty()));
                for arg in call.get_arguments() {
                    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                    assert!(!help.is_empty(), "{} {} {}", noun.get_name(), call.get_name(), arg.get_id());
                }
            }
        }
    }

    #[test]
    fn what_is_given_is_found_again() {
        let line = "job update i --tags a --tags b --allow-overlap=false --clear end_date --priority high -f -";
        let (given, manner) = parsed(&line.split(' ').collect::<Vec<_>>()).unwrap();
        let mut fields = given.fields;
        fields.sort();
        let wanted =
            [("allow-overlap", vec!["false"]), ("id", vec!["i"]), ("priority", vec!["high"]), ("tags", vec!["a", "b"])];
        let wanted = wanted.map(|(name, texts)| (name.to_owned(), texts.into_iter().map(str::to_owned).collect()));
        assert_eq!(fields, wanted);
        assert_eq!((given.file.as_deref(), given.clear), (Some("-"), vec!["end-date".to_owned()]));
        assert_eq!((manner.output, manner.timeout, manner.wait), (Output::Table, Duration::from_secs(10), None));
    }

    #[test]
    fn a_platform_is_named_or_all_are_meant() {
        let platform = |line: &str| parsed(&line.split(' ').collect::<Vec<_>>()).map(|(_, manner)| manner.platform);
        assert_eq!(platform("job list").unwrap(), None);
        assert_eq!(platform("job list --platform acme").unwrap().as_deref(), Some("acme"));
        assert_eq!(platform("job list --platform=").unwrap().as_deref(), Some(""), "left to the gateway to refuse");
        let filtered = parsed(&["job", "list", "--platform-id", "acme"]).unwrap();
        assert_eq!((filtered.0.fields[0].0.as_str(), filtered.1.platform), ("platform-id", None));
    }

    #[test]
    fn waiting_has_an_end_or_none() {
        let wait = |arguments: &[&str]| parsed(arguments).map(|(_, manner)| manner.wait).unwrap();
        assert_eq!(wait(&["job", "trigger", "i"]), None);
        assert_eq!(wait(&["job", "trigger", "--wait", "i"]), Some(None));
        assert_eq!(wait(&["execution", "get", "i", "--wait=30s"]), Some(Some(Duration::from_secs(30))));
        assert!(parsed(&["job", "get", "i", "--wait"]).is_err());
        assert!(parsed(&["job", "trigger", "i", "--wait=soon"]).is_err());
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in ["job", "job nonsense", "job get", "job list --status asleep", "job list -o xml", "job schedule i"]
        {
            assert!(parsed(&line.split(' ').collect::<Vec<_>>()).is_err(), "{line}");
        }
        let help = parsed(&["job", "create", "--help"]).unwrap_err().to_string();
        assert!(help.contains("Exit codes:") && help.contains("--max-retries <NUMBER>"), "{help}");
    }
}
