//! The request of a call from what was given on the command line. Flags win over the file, `--clear` over both. Where a call
//! changes something, its FieldMask is what was given: the flags, the keys of the file and what is cleared.

use std::collections::BTreeSet;
use std::io::Read as _;

use carillon_proto::field_named;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value};
use serde_json::Value as Json;

use super::catalog::kebab;
use super::catalog::{Call, Field};
use super::value::{self, Mistakes};

/// More than any gateway takes; what is longer is a wrong file.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What was given, as text.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Names of fields, with their values in the order given.
    pub(crate) fields: Vec<(String, Vec<String>)>,
    /// Where the body is.
    pub(crate) file: Option<String>,
    /// Fields to be given their defaults.
    pub(crate) clear: Vec<String>,
}

/// Where files are read from: a name, or `-` for standard input.
pub(crate) type Reader<'a> = &'a mut dyn FnMut(&str) -> Result<String, String>;

/// The request.
///
/// # Errors
/// Every mistake, a line each.
pub(crate) fn build(call: &Call, given: &Given, read: Reader<'_>) -> Result<DynamicMessage, Mistakes> {
    let mut mistakes = Mistakes::new();
    let mut request = DynamicMessage::new(call.method.input());
    let mut changed = BTreeSet::new();
    if let Some(body) = &call.body {
        // Set in any case: whoever gives nothing is told by the gateway what is missing.
        let (message, keys) = body_of(call, body, given, read, &mut mistakes);
        request.set_field(body, Value::Message(message));
        changed = keys;
    }
    if let (Some(list), Some(file)) = (&call.list, &given.file)
        && let Some(elements) = list_of(list, file, read, &mut mistakes)
    {
        request.set_field(list, elements);
    }
    for (name, texts) in &given.fields {
        let Some(field) = call.fields.iter().find(|field| field.name == *name) else { continue };
        let place = if field.is_placed { name.to_uppercase() } else { format!("--{name}") };
        if let Some(value) = value_of(field, texts, &place, read, &mut mistakes) {
            set(&mut request, &field.path, value);
        }
        if let Some(last) = field.field().filter(|_| field.is_changed()) {
            changed.insert(last.name().to_owned());
        }
    }
    for name in &given.clear {
        clear(call, name, given, &mut request, &mut changed, &mut mistakes);
    }
    if let Some(mask) = &call.mask {
        if changed.is_empty() && mistakes.is_empty() {
            mistakes.push("what is to change? Give a field by its flag, --clear FIELD or --file FILE".to_owned());
        }
        set_mask(&mut request, mask, changed);
    }
    if mistakes.is_empty() { Ok(request) } else { Err(mistakes) }
}

/// The body as the file has it, and its keys.
fn body_of(
    call: &Call,
    body: &FieldDescriptor,
    given: &Given,
    read: Reader<'_>,
    mistakes: &mut Mistakes,
) -> (DynamicMessage, BTreeSet<String>) {
    let Kind::Message(of) = body.kind() else { return (DynamicMessage::new(call.method.input()), BTreeSet::new()) };
    let nothing = || (DynamicMessage::new(of.clone()), BTreeSet::new());
    let Some(file) = &given.file else { return nothing() };
    let json = match read(file).and_then(|text| value::parse(&text)) {
        Ok(json) => json,
        Err(rule) => {
            mistakes.push(format!("--file {file}: {rule}"));
            return nothing();
        }
    };
    let mut of_file = Mistakes::new();
    let message = value::message(&of, &json, "", &mut of_file);
    mistakes.extend(of_file.into_iter().map(|mistake| format!("--file {file}: {mistake}")));
    let keys = match &json {
        Json::Object(entries) => entries.keys().filter_map(|name| field_named(&of, name)).collect(),
        _ => Vec::new(),
    };
    let is_kept = |name: &str| {
        call.fields.iter().any(|field| !field.is_changed() && field.field().is_some_and(|field| field.name() == name))
    };
    let keys = keys.iter().map(|field| field.name().to_owned()).filter(|name| !is_kept(name)).collect();
    (message.unwrap_or_else(|| DynamicMessage::new(of)), keys)
}

/// The list as the file has it: in brackets, as one value after another, or as the field of an object, which is how it is printed.
fn list_of(list: &FieldDescriptor, file: &str, read: Reader<'_>, mistakes: &mut Mistakes) -> Option<Value> {
    let values = match read(file).and_then(|text| value::parse_all(&text)) {
        Ok(values) => values,
        Err(rule) => {
            mistakes.push(format!("--file {file}: {rule}"));
            return None;
        }
    };
    let elements = match values.as_slice() {
        [Json::Array(elements)] => elements.clone(),
        [Json::Object(fields)] => match fields.get(list.name()) {
            Some(Json::Array(elements)) => elements.clone(),
            _ => values,
        },
        _ => values,
    };
    let mut of_file = Mistakes::new();
    let read = value::of_field(list, &Json::Array(elements), list.name(), &mut of_file);
    mistakes.extend(of_file.into_iter().map(|mistake| format!("--file {file}: {mistake}")));
    read
}

fn value_of(field: &Field, texts: &[String], place: &str, read: Reader<'_>, mistakes: &mut Mistakes) -> Option<Value> {
    let of = field.field()?;
    if of.is_map() {
        let json = texts.last().map(|text| contents(text, read).and_then(|text| value::parse(&text)))?;
        return match json {
            Ok(json) => value::of_field(of, &json, place, mistakes),
            Err(rule) => {
                mistakes.push(format!("{place}: {rule}"));
                None
            }
        };
    }
    let mut values = Vec::with_capacity(texts.len());
    for text in texts {
        let text = if is_json(&of.kind()) { contents(text, read) } else { Ok(text.clone()) };
        match text.and_then(|text| value::from_text(&of.kind(), &text)) {
            Ok(value) => values.push(value),
            Err(rule) => mistakes.push(format!("{place}: {rule}")),
        }
    }
    if of.is_list() { Some(Value::List(values)) } else { values.pop() }
}

/// Whether a flag takes JSON, and so a file that holds it.
pub(crate) fn is_json(kind: &Kind) -> bool {
    let times = ["google.protobuf.Timestamp", "google.protobuf.Duration"];
    matches!(kind, Kind::Message(of) if !times.contains(&of.full_name()))
}

/// `@FILE` stands for what is in the file.
fn contents(text: &str, read: Reader<'_>) -> Result<String, String> {
    match text.strip_prefix('@') {
        Some(file) => read(file),
        None => Ok(text.to_owned()),
    }
}

fn set(request: &mut DynamicMessage, path: &[FieldDescriptor], value: Value) {
    match path {
        [field] => request.set_field(field, value),
        [outer, rest @ ..] => {
            if let Some(inner) = request.get_field_mut(outer).as_message_mut() {
                set(inner, rest, value);
            }
        }
        [] => {}
    }
}

fn clear(
    call: &Call,
    name: &str,
    given: &Given,
    request: &mut DynamicMessage,
    changed: &mut BTreeSet<String>,
    mistakes: &mut Mistakes,
) {
    let wanted = kebab(name);
    let field = call.fields.iter().find(|field| field.name == wanted && field.is_changed());
    let Some((outer, inner)) = field.and_then(|field| field.path.first().zip(field.field())) else {
        mistakes.push(format!("--clear {name}: there is no such field"));
        return;
    };
    if given.fields.iter().any(|(given, _)| *given == wanted) {
        mistakes.push(format!("--clear {name}: is given a value as well, by --{wanted}"));
        return;
    }
    if let Some(message) = request.get_field_mut(outer).as_message_mut() {
        message.clear_field(inner);
    }
    changed.insert(inner.name().to_owned());
}

fn set_mask(request: &mut DynamicMessage, field: &FieldDescriptor, changed: BTreeSet<String>) {
    let Kind::Message(of) = field.kind() else { return };
    let mut mask = DynamicMessage::new(of);
    if let Some(paths) = mask.descriptor().get_field_by_name("paths") {
        mask.set_field(&paths, Value::List(changed.into_iter().map(Value::String).collect()));
    }
    request.set_field(field, Value::Message(mask));
}

/// A request of one text field, such as the id of what is asked for again.
pub(crate) fn of_text(of: &MessageDescriptor, field: &str, text: String) -> Option<DynamicMessage> {
    let field = of.get_field_by_name(field).filter(|field| field.kind() == Kind::String && !field.is_list())?;
    let mut request = DynamicMessage::new(of.clone());
    request.set_field(&field, Value::String(text));
    Some(request)
}

/// Reads a file, or standard input, which only one argument can have.
pub(crate) fn reader() -> impl FnMut(&str) -> Result<String, String> {
    let mut stdin_is_read = false;
    move |name| {
        let mut text = String::new();
        let read = if name == "-" {
            if std::mem::replace(&mut stdin_is_read, true) {
                return Err("standard input was read already, by another argument".to_owned());
            }
            std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
        } else {
            std::fs::File::open(name).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        };
        let name = if name == "-" { "standard input" } else { name };
        match read {
            Ok(bytes) if bytes as u64 > FILE_BYTES_MAX => Err(format!("{name} has more than {FILE_BYTES_MAX} bytes")),
            Ok(_) => Ok(text),
            Err(error) => Err(format!("cannot read {name}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_proto::v1;

    use super::super::catalog::nouns;
    use super::*;
    use carillon_proto::descriptors;

    fn call(noun: &str, verb: &str) -> Call {
        let noun = nouns(&descriptors()).into_iter().find(|found| found.name == noun).unwrap();
        noun.calls.into_iter().find(|call| call.verb == verb).unwrap()
    }

    fn given(fields: &[(&str, &[&str])], file: Option<&str>, clear: &[&str]) -> Given {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>();
        Given {
            fields: fields.iter().map(|(name, texts)| ((*name).to_owned(), owned(texts))).collect(),
            file: file.map(str::to_owned),
            clear: owned(clear),
        }
    }

    /// Files are their own contents.
    fn built(call: &Call, given: &Given) -> Result<DynamicMessage, Mistakes> {
        build(call, given, &mut |name| Ok(name.to_owned()))
    }

    #[test]
    fn flags_fill_the_body_and_the_request() {
        let fields: &[(&str, &[&str])] = &[
            ("name", &["n"]),
            ("max-retries", &["0"]),
            ("priority", &["critical"]),
            ("tags", &["a", "b"]),
            ("payload", &["@{\"a\": 1}"]),
            ("exclusions", &["{\"date\": \"2026-12-24\"}", "{\"cron\": \"* 0 * * *\"}"]),
            ("execute-at", &["2027-12-01T10:00:00Z"]),
            ("allow-overlap", &["true"]),
            ("request-id", &["r"]),
        ];
        let request = built(&call("job", "create"), &given(fields, None, &[])).unwrap();
        let request: v1::CreateJobRequest = request.transcode_to().unwrap();
        assert_eq!(request.request_id, "r");
        let job = request.job.unwrap();
        assert_eq!((job.name.as_str(), job.max_retries, job.priority()), ("n", Some(0), v1::Priority::Critical));
        assert_eq!((job.tags.len(), job.exclusions.len(), job.allow_overlap), (2, 2, true));
        assert!(job.payload.unwrap().fields.contains_key("a") && job.execute_at.is_some());
    }

    #[test]
    fn a_change_names_what_was_given_and_flags_win() {
        let update = call("job", "update");
        let file = r#"{"id": "other", "name": "of the file", "description": "d", "endDate": null, "tags": ["x"]}"#;
        let fields: &[(&str, &[&str])] = &[("id", &["i"]), ("name", &["of the flag"]), ("updated-by", &["me"])];
        let request = built(&update, &given(fields, Some(file), &["timeout_ms", "tags"])).unwrap();
        let request: v1::UpdateJobRequest = request.transcode_to().unwrap();
        let mask = request.update_mask.unwrap().paths;
        assert_eq!(mask, ["description", "end_date", "name", "tags", "timeout_ms"]);
        let job = request.job.unwrap();
        assert_eq!((job.id.as_str(), job.name.as_str(), job.description.as_str()), ("i", "of the flag", "d"));
        assert!(job.tags.is_empty() && request.updated_by == "me");
    }

    #[test]
    fn a_file_holds_a_list_in_any_form_that_lists_have() {
        let batch = call("job", "batch-create");
        let names = |file: &str| -> Result<Vec<String>, Mistakes> {
            let request = built(&batch, &given(&[("request-id", &["r"])], Some(file), &[]))?;
            let request: v1::BatchCreateJobsRequest = request.transcode_to().unwrap();
            assert_eq!(request.request_id, "r");
            Ok(request.jobs.into_iter().map(|job| job.name).collect())
        };
        for file in [
            r#"[{"name": "a"}, {"name": "b"}]"#,
            "{\"name\": \"a\"}\n\n{\"name\": \"b\"}\n",
            r#"{"jobs": [{"name": "a"}, {"name": "b"}], "next_page_token": ""}"#,
        ] {
            assert_eq!(names(file).unwrap(), ["a", "b"], "{file}");
        }
        assert_eq!(names(r#"{"name": "alone"}"#).unwrap(), ["alone"]);
        assert!(names("").unwrap().is_empty(), "the gateway says how many it wants");
        let mistakes = names("{\"name\": \"a\"} {\"name\": 7}").unwrap_err();
        assert!(mistakes[0].ends_with(": jobs[1].name: must be a string"), "{mistakes:?}");
        assert!(names("{\"name\": \"a\"} {").unwrap_err()[0].contains("is no JSON"));
        let flags = given(&[("jobs", &["{\"name\": \"c\"}"])], Some("[{}]"), &[]);
        let request: v1::BatchCreateJobsRequest = built(&batch, &flags).unwrap().transcode_to().unwrap();
        assert_eq!(request.jobs.len(), 1, "flags win");
    }

    #[test]
    fn mistakes_come_together_and_name_the_arguments() {
        let fields: &[(&str, &[&str])] = &[("id", &["i"]), ("max-retries", &["many"]), ("payload", &["{"])];
        let mistakes = built(&call("job", "update"), &given(fields, Some("{\"x\": 1}"), &["nonsense"])).unwrap_err();
        let places: Vec<&str> = mistakes.iter().filter_map(|mistake| mistake.split(": ").next()).collect();
        assert_eq!(places, ["--file {\"x\"", "--max-retries", "--payload", "--clear nonsense"], "{mistakes:?}");

        let nothing = built(&call("job", "update"), &given(&[("id", &["i"])], None, &[])).unwrap_err();
        assert!(nothing[0].starts_with("what is to change?"), "{nothing:?}");
        let etag: &[(&str, &[&str])] = &[("id", &["i"]), ("etag", &["\"3\""])];
        for of_nothing in [given(etag, None, &[]), given(&etag[..1], Some("{\"etag\": \"3\", \"id\": \"i\"}"), &[])] {
            let nothing = built(&call("job", "update"), &of_nothing).unwrap_err();
            assert!(nothing[0].starts_with("what is to change?"), "an etag is no change: {nothing:?}");
        }
        let cleared = built(&call("job", "update"), &given(&etag[..1], None, &["etag"])).unwrap_err();
        assert_eq!(cleared, ["--clear etag: there is no such field"]);
        let both = built(&call("job", "update"), &given(&[("id", &["i"]), ("name", &["n"])], None, &["name"]));
        assert!(both.unwrap_err()[0].contains("--name"));
    }
}
