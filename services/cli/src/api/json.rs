//! A message as JSON, by the very code that the gateway answers with, so that what `-o json` prints can be given again by `--file`.

use carillon_proto::json::{EnumWords, Shown};
use prost_reflect::DynamicMessage;

use super::text::is_hidden;

/// The text of a message.
pub(crate) fn text(message: &DynamicMessage, pretty: bool) -> String {
    let shown = Shown::whole(message, EnumWords::Upper);
    let text = if pretty { serde_json::to_string_pretty(&shown) } else { serde_json::to_string(&shown) };
    // Writing to memory fails for nothing but a key that is no string, which there is none of.
    escaped(&text.unwrap_or_else(|error| format!("{{\"unshowable\": \"{error}\"}}")))
}

/// What would change the look of a terminal, escaped: such letters can only be within strings, where JSON has a form for them.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_hidden(letter) && letter != '\n' {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::value;
    use super::*;
    use carillon_proto::descriptors;

    #[test]
    fn what_is_shown_can_be_given_again() {
        let job = descriptors().get_message_by_name("carillon.v1.Job").unwrap();
        let given = r#"{"name":"n\u001b\u009b","type":"CRON","max_retries":0,"payload":{"a":[1,null,1e300,-0.5],"b":"\u202e"},
            "execute_at":"2027-12-01T10:00:00.500Z","exclusions":[{"date":"2026-12-24"}]}"#;
        let mut mistakes = Vec::new();
        let message = value::message(&job, &value::parse(given).unwrap(), "", &mut mistakes).unwrap();
        let shown = text(&message, false);
        assert!(
            shown.starts_with(
                r#"{"id":"","name":"n\u001b\u009b","description":"","type":"CRON","status":"UNSPECIFIED","#
            ),
            "{shown}"
        );
        assert!(shown.contains(r#""key":null"#) && shown.contains(r#""max_retries":0"#), "{shown}");
        assert!(shown.contains(r#""payload":{"a":[1,null,1e+300,-0.5],"b":"\u202e"}"#), "{shown}");
        assert!(shown.contains(r#""execute_at":"2027-12-01T10:00:00.500Z""#) && shown.is_ascii(), "{shown}");
        let again = value::message(&job, &value::parse(&shown).unwrap(), "", &mut mistakes).unwrap();
        assert_eq!((text(&again, false), mistakes), (shown, Vec::new()));
        assert_eq!(text(&message, true).lines().nth(1), Some("  \"id\": \"\","));
    }
}
