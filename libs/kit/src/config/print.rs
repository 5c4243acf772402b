//! The settings in force, for `config`: as TOML that could be read back, except that secrets are masked.

use std::fmt::Write as _;

use figment::Figment;
use figment::value::{Num, Value};

use super::check::source_of;
use super::types::masked_url;

/// Ends of names whose values are never shown, whatever they look like.
const SECRET_NAMES: [&str; 4] = ["password", "secret", "token", "key"];

pub(crate) fn effective<'a>(settings: &Figment, paths: impl Iterator<Item = &'a String>) -> String {
    let mut text = String::new();
    let mut current = "";
    for path in paths {
        let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
        if section != current {
            let _ = writeln!(text, "{}[{section}]", if text.is_empty() { "" } else { "\n" });
            current = section;
        }
        let Ok(value) = settings.find_value(path) else { continue };
        let shown = shown(key, &value);
        let source = source_of(settings, path);
        let source = source.split(';').next().unwrap_or_default();
        let _ = writeln!(text, "{key} = {shown}  # {source}");
    }
    text
}

fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::String(_, text) if !text.is_empty() && SECRET_NAMES.iter().any(|name| key.ends_with(name)) => {
            "\"***\"".into()
        }
        Value::String(_, text) => format!("{:?}", masked_url(text)),
        Value::Bool(_, truth) => truth.to_string(),
        Value::Num(_, number) => number_text(number),
        Value::Array(_, elements) => {
            let elements: Vec<String> = elements.iter().map(|element| shown(key, element)).collect();
            format!("[{}]", elements.join(", "))
        }
        other => format!("{other:?}"),
    }
}

fn number_text(number: &Num) -> String {
    if let Some(whole) = number.to_i128() {
        return whole.to_string();
    }
    number
        .to_u128()
        .map_or_else(|| number.to_f64().map_or_else(String::new, |float| float.to_string()), |whole| whole.to_string())
}
