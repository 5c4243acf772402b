//! What is wrong with a configuration, collected.

use std::fmt;

use figment::Figment;

use super::catalogue::variable;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, `postgres.url`, or the name of what is not one.
    pub setting: String,
    /// The rule it breaks.
    pub rule: String,
    /// Where its value comes from: a variable, a file, the default.
    pub source: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.setting, self.rule, self.source)
    }
}

/// All that is wrong, one a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "  {problem}")?;
        }
        Ok(())
    }
}

/// Collects what [`super::Settings::check`] finds, and adds where each value came from.
#[derive(Debug)]
pub struct Checks {
    settings: Figment,
    problems: Vec<Problem>,
}

impl Checks {
    pub(crate) const fn new(settings: Figment) -> Self {
        Self { settings, problems: Vec::new() }
    }

    /// Reports `rule` against `setting` unless `holds`.
    pub fn that(&mut self, holds: bool, setting: &str, rule: impl Into<String>) {
        if !holds {
            self.refuse(setting, rule);
        }
    }

    /// Reports `rule` against `setting`.
    pub fn refuse(&mut self, setting: &str, rule: impl Into<String>) {
        let source = source_of(&self.settings, setting);
        self.problems.push(Problem { setting: setting.to_owned(), rule: rule.into(), source });
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

/// Name of the layer for a value that nobody set.
pub(crate) const DEFAULT: &str = "default";

/// Where the value of a setting comes from, for people.
pub(crate) fn source_of(settings: &Figment, setting: &str) -> String {
    let name = settings.find_metadata(setting).map_or(DEFAULT, |metadata| metadata.name.as_ref());
    if name == DEFAULT { format!("the default; set {}", variable(setting)) } else { format!("from {name}") }
}
