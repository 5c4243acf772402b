//! Which settings there are, read from the text of the defaults: path, default, comment.
//!
//! Read line by line rather than by a TOML parser, since parsers drop comments. That asks for a plain form of our own
//! files: `[section]`, comment lines, `key = value` on one line. A test holds every defaults file to it.

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// `postgres.connections_max`.
    pub(crate) path: String,
    /// As written in the defaults.
    pub(crate) default: String,
    /// The comment above it, a line each.
    pub(crate) doc: Vec<String>,
}

/// In front of each of our variables.
pub(crate) const PREFIX: &str = "CARILLON_";

impl Setting {
    /// The variable that sets it.
    pub(crate) fn variable(&self) -> String {
        variable(&self.path)
    }
}

/// The variable of a setting: `CARILLON_POSTGRES_CONNECTIONS_MAX` for `postgres.connections_max`.
pub(crate) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_uppercase())
}

/// The same with `__` for the dot, as figment users know it.
pub(crate) fn variable_nested(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_uppercase())
}

/// All settings of the given parts in order. A later part may give a setting another default, and another comment.
pub(crate) fn catalogue(defaults: &[&str]) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for part in defaults {
        for setting in settings_in(part) {
            let Some(known) = settings.iter_mut().find(|known| known.path == setting.path) else {
                settings.push(setting);
                continue;
            };
            known.default = setting.default;
            if !setting.doc.is_empty() {
                known.doc = setting.doc;
            }
        }
    }
    settings
}

fn settings_in(text: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut section = String::new();
    let mut doc: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix('#') {
            doc.push(comment.trim().to_owned());
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
            doc.clear();
        } else if let Some((key, default)) = line.split_once('=') {
            let path = format!("{section}{}", key.trim());
            settings.push(Setting { path, default: default.trim().to_owned(), doc: std::mem::take(&mut doc) });
        } else {
            doc.clear();
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_its_path_default_and_comment() {
        let text = "# About the file.\n\n[bell]\n# How loud.\n# In decibel.\nloud = 3\nname = \"a = b\"\n";
        let settings = catalogue(&[text]);
        assert_eq!(settings[0].path, "bell.loud");
        assert_eq!(settings[0].doc, ["How loud.", "In decibel."]);
        assert_eq!(settings[0].variable(), "CARILLON_BELL_LOUD");
        assert_eq!((settings[1].default.as_str(), settings[1].doc.len()), ("\"a = b\"", 0));
    }

    #[test]
    fn a_later_part_changes_the_default_and_keeps_the_comment() {
        let settings = catalogue(&["[a]\n# Doc.\nb = 1\n", "[a]\nb = 2\n"]);
        assert_eq!(settings.len(), 1);
        assert_eq!((settings[0].default.as_str(), settings[0].doc[0].as_str()), ("2", "Doc."));
    }
}
