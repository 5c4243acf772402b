//! Puts the layers together and reads them into types.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::catalogue::{PREFIX, variable, variable_nested};
use super::check::{Checks, DEFAULT, Problem, Problems};
use super::{COMMAND_LINE, Settings, ShellConfig, print};
use crate::Service;

/// Variables that other software already sets: used where nothing of ours is said.
const BELOW_FILE: [(&str, &str); 2] = [("DATABASE_URL", "postgres.url"), ("REDIS_URL", "redis.url")];
/// Set by hand for one run, so it counts more than a file.
const ABOVE_FILE: [(&str, &str); 1] = [("RUST_LOG", "log.level")];
/// Sections and variables of the other programs that may share our environment: not ours to refuse.
const OTHERS: [&str; 7] = ["GATEWAY_", "DISPATCHER_", "EXECUTOR_", "PROTOCOL_", "TEST_", "BIN_DIR", "CONFIG"];
/// Larger is no secret but a mistake.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A configuration that was read and checked as a whole.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The service's own.
    pub config: C,
    /// The shell's.
    pub shell: ShellConfig,
    /// Every setting with where it comes from, secrets masked.
    pub effective: String,
}

/// Reads the settings of `service` from its defaults, `file` and `environment`.
///
/// # Errors
/// All that is wrong, at once.
pub fn load<C: Settings>(
    service: &Service,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded<C>, Problems> {
    let environment: BTreeMap<OsString, OsString> =
        environment.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let mut reader = Reader::new(service)?;
    reader.read_well_known(&BELOW_FILE, &environment);
    if let Some(file) = file {
        reader.read_file(file);
    }
    reader.read_well_known(&ABOVE_FILE, &environment);
    reader.read_environment(&environment);
    reader.finish()
}

/// A value that is not the default.
struct Given {
    path: String,
    value: Value,
    source: String,
}

impl Provider for Given {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.path, self.value.clone()).into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(nested))
    }
}

/// The embedded defaults under the name that [`super::check::source_of`] knows them by.
struct Defaults(Dict);

impl Provider for Defaults {
    fn metadata(&self) -> Metadata {
        Metadata::named(DEFAULT)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

struct Reader {
    defaults: Figment,
    /// Each known setting with its default, whose type says how a text is read.
    known: BTreeMap<String, Value>,
    given: Vec<Given>,
    problems: Vec<Problem>,
}

impl Reader {
    fn new(service: &Service) -> Result<Self, Problems> {
        let mut defaults = Figment::new();
        for part in service.defaults {
            let dict = toml_dict(&Toml::string(part)).map_err(|rule| {
                Problems(vec![Problem { setting: service.name.into(), rule, source: "embedded defaults".into() }])
            })?;
            defaults = defaults.merge(Defaults(dict));
        }
        let mut known = BTreeMap::new();
        if let Ok(data) = defaults.data() {
            for dict in data.into_values() {
                collect_leaves("", dict, &mut known);
            }
        }
        Ok(Self { defaults, known, given: Vec::new(), problems: Vec::new() })
    }

    fn refuse(&mut self, setting: &str, rule: impl Into<String>, source: &str) {
        let source = format!("from {source}");
        self.problems.push(Problem { setting: setting.to_owned(), rule: rule.into(), source });
    }

    fn read_file(&mut self, file: &Path) {
        let source = format!("file {}", file.display());
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => return self.refuse("--config", format!("cannot be read: {error}"), &source),
        };
        let dict = match toml_dict(&Toml::string(&text)) {
            Ok(dict) => dict,
            Err(rule) => return self.refuse("--config", format!("is no TOML: {rule}"), &source),
        };
        let mut leaves = BTreeMap::new();
        collect_leaves("", dict, &mut leaves);
        for (path, value) in leaves {
            if self.known.contains_key(&path) {
                self.given.push(Given { path, value, source: source.clone() });
            } else {
                let rule = self.unknown(&path);
                self.refuse(&path, rule, &source);
            }
        }
    }

    fn read_well_known(&mut self, table: &[(&str, &str)], environment: &BTreeMap<OsString, OsString>) {
        for (name, path) in table {
            if let Some(text) = environment.get(OsStr::new(name))
                && self.known.contains_key(*path)
            {
                self.give(path, name, text);
            }
        }
    }

    fn read_environment(&mut self, environment: &BTreeMap<OsString, OsString>) {
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        for path in self.known.keys() {
            variables.insert(variable_nested(path), path.clone());
            variables.insert(variable(path), path.clone());
        }
        for (name, text) in environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            if let Some(path) = variables.get(name) {
                self.give(path, name, text);
            } else if let Some(path) = name.strip_suffix("_FILE").and_then(|setting| variables.get(setting)) {
                self.give_from_file(path, name, text);
            } else if self.is_ours(name, text) {
                let rule = self.unknown(&name[PREFIX.len()..].to_lowercase().replacen('_', ".", 1));
                self.refuse(name, rule, "the environment");
            }
        }
    }

    fn give(&mut self, path: &str, name: &str, text: &OsStr) {
        let source = format!("variable {name}");
        match (text.to_str(), self.known.get(path)) {
            (Some(text), Some(default)) => {
                let value = read_like(default, text);
                self.given.push(Given { path: path.to_owned(), value, source });
            }
            _ => self.refuse(path, "must be UTF-8", &source),
        }
    }

    fn give_from_file(&mut self, path: &str, name: &str, file: &OsStr) {
        let source = format!("variable {name}");
        let size = std::fs::metadata(file).map(|metadata| metadata.len());
        if size.is_ok_and(|bytes| bytes > SECRET_FILE_BYTES_MAX) {
            return self.refuse(path, "names a file larger than 64 KiB", &source);
        }
        match std::fs::read_to_string(file) {
            // Editors and `echo` leave a line end that is no part of a secret.
            Ok(text) => self.give(path, name, OsStr::new(text.trim_end_matches(['\r', '\n']))),
            Err(error) => self.refuse(path, format!("names a file that cannot be read: {error}"), &source),
        }
    }

    /// What to say about a setting that there is not: those that there are in its section.
    fn unknown(&self, path: &str) -> String {
        let section = path.rsplit_once('.').map_or("", |(section, _)| section);
        let known: Vec<&str> = self
            .known
            .keys()
            .filter_map(|known| known.rsplit_once('.'))
            .filter(|(in_section, _)| *in_section == section)
            .map(|(_, key)| key)
            .collect();
        if !known.is_empty() {
            return format!("unknown setting; [{section}] has {}", known.join(", "));
        }
        let mut sections: Vec<&str> =
            self.known.keys().filter_map(|known| known.rsplit_once('.')).map(|(section, _)| section).collect();
        sections.dedup();
        format!("unknown setting; the sections are {}", sections.join(", "))
    }

    /// Whether a variable with our prefix that sets nothing here is a mistake. It is if it names a section that this
    /// process has. It is not if it belongs to another of our programs, the command line among them, or is one that Kubernetes
    /// sets for every service in the namespace (`CARILLON_GATEWAY_SERVICE_HOST`, `…_PORT_3051_TCP`; `CARILLON_PORT` for one that
    /// is called carillon).
    fn is_ours(&self, name: &str, text: &OsStr) -> bool {
        let rest = &name[PREFIX.len()..];
        // With its `_`, since the name of the Kubernetes service may end there.
        let link = &name[PREFIX.len() - 1..];
        let service_link = link.contains("_SERVICE_HOST")
            || link.contains("_SERVICE_PORT")
            || link.split_once("_PORT_").is_some_and(|(_, port)| port.starts_with(|c: char| c.is_ascii_digit()))
            || (link.ends_with("_PORT") && text.to_str().is_some_and(|text| text.contains("://")));
        if service_link || COMMAND_LINE.contains(&name) {
            return false;
        }
        let section = rest.split('_').next().unwrap_or_default().to_lowercase() + ".";
        let has_section = self.known.keys().any(|path| path.starts_with(&section));
        has_section || !OTHERS.iter().any(|other| rest.starts_with(other))
    }

    fn finish<C: Settings>(mut self) -> Result<Loaded<C>, Problems> {
        let mut settings = self.defaults.clone();
        for given in std::mem::take(&mut self.given) {
            // Each by itself on the defaults: serde stops at the first error, people want all of them.
            let alone = self.defaults.clone().merge(&given);
            let error = alone.extract::<C>().err().or_else(|| alone.extract::<ShellConfig>().err());
            match error {
                Some(error) => self.refuse(&given.path, kind_for_people(&error), &given.source),
                None => settings = settings.merge(given),
            }
        }
        let config = settings.extract::<C>();
        let shell = settings.extract::<ShellConfig>();
        let (config, shell) = match (config, shell) {
            (Ok(config), Ok(shell)) => (config, shell),
            (Err(error), _) | (_, Err(error)) => {
                self.refuse(&error.path.join("."), kind_for_people(&error), "the embedded defaults: a defect");
                return Err(Problems(self.problems));
            }
        };
        let mut checks = Checks::new(settings.clone());
        shell.check(&mut checks);
        config.check(&mut checks);
        for problem in checks.into_problems() {
            // A value that could not even be read was left out above; that its default is wrong is then no news.
            if !self.problems.iter().any(|known| known.setting == problem.setting) {
                self.problems.push(problem);
            }
        }
        if !self.problems.is_empty() {
            return Err(Problems(self.problems));
        }
        let effective = print::effective(&settings, self.known.keys());
        Ok(Loaded { config, shell, effective })
    }
}

fn toml_dict(toml: &figment::providers::Data<Toml>) -> Result<Dict, String> {
    let data = toml.data().map_err(|error| kind_for_people(&error))?;
    Ok(data.into_values().next().unwrap_or_default())
}

fn kind_for_people(error: &figment::Error) -> String {
    let text = error.kind.to_string().replace("invalid type: found", "has the wrong type: is");
    // Alternatives come quoted one by one, and once more as a whole.
    text.replace("``", "`").trim_end().to_owned()
}

fn collect_leaves(prefix: &str, dict: Dict, leaves: &mut BTreeMap<String, Value>) {
    for (key, value) in dict {
        let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Dict(_, inner) => collect_leaves(&path, inner, leaves),
            leaf => {
                leaves.insert(path, leaf);
            }
        }
    }
}

/// Reads a text as the type that the default has. What does not fit stays a text and is refused with its type later.
fn read_like(default: &Value, text: &str) -> Value {
    match default {
        Value::String(..) | Value::Char(..) => Value::from(text),
        Value::Array(_, elements) => {
            let like = elements.first().cloned().unwrap_or_else(|| Value::from(""));
            let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
            let parts = inner.split(',').map(|part| part.trim().trim_matches('"')).filter(|part| !part.is_empty());
            Value::from(parts.map(|part| read_like(&like, part)).collect::<Vec<Value>>())
        }
        _ => text.trim().parse().unwrap_or_else(|never| match never {}),
    }
}
