//! The commands, derived from the descriptors: `carillon <noun> <verb>` for each call of each service. A call that is added to
//! the protos is a command with all its flags once they are compiled; nothing here knows one by name.
//!
//! - The noun is the service's name: `JobService` is `job`. The verb is what the call's name says beside it: `PauseJob` is
//!   `pause`, `ListJobRevisions` is `revisions`, `ListJobExecutions` of the `ExecutionService` is `list`.
//! - A call that another one of its service does as well is no command: same request, same answer, the same name with further words
//!   within. So `CreateCronJob` is left to `CreateJob`. Streams are none either.
//! - Arguments by place are what the call's HTTP path binds, such as `{job.id}`. Every other field of the request is a flag.
//! - If one field of the request is a message of ours (`job`), its fields are flags as well and a file can hold the whole of it.
//!   Then a FieldMask beside it is no flag: it says which fields were given.
//! - If what a request must have is one list of such messages (`jobs`), a file can hold that.

use std::cmp::Reverse;

use carillon_proto::words::camel;
use carillon_proto::{Behavior, behaves};
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor, Value,
};

/// The flags that every command has; a field of such a name gets another one.
pub(crate) const RESERVED: [&str; 10] =
    ["address", "ca", "clear", "file", "help", "output", "platform", "timeout", "version", "wait"];
/// The field by which a change says of which definition it was made, as everybody calls it (AIP-154).
const ETAG: &str = "etag";
/// Calls that only read: of what they name beside the noun one asks by its name alone.
const READING: [&str; 3] = ["get", "list", "set"];

/// `max_retries` as `max-retries`.
pub(crate) fn kebab(name: &str) -> String {
    name.replace('_', "-")
}

/// One command.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// `pause`.
    pub(crate) verb: String,
    pub(crate) method: MethodDescriptor,
    /// Arguments by place first.
    pub(crate) fields: Vec<Field>,
    /// The field that a file may hold.
    pub(crate) body: Option<FieldDescriptor>,
    /// The list that a file may hold, of a call without a body.
    pub(crate) list: Option<FieldDescriptor>,
    /// Names those fields of the body that are to be changed.
    pub(crate) mask: Option<FieldDescriptor>,
}

/// What a command takes for one field of its request.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// `max-retries`.
    pub(crate) name: String,
    /// From the request to the field itself, which is the last one.
    pub(crate) path: Vec<FieldDescriptor>,
    /// Given by its place, without a flag.
    pub(crate) is_placed: bool,
    /// The request is nothing without it.
    pub(crate) is_required: bool,
}

impl Field {
    /// `None` never occurs: a path has a field.
    pub(crate) fn field(&self) -> Option<&FieldDescriptor> {
        self.path.last()
    }

    /// Whether it is a field of the body.
    pub(crate) fn is_of_body(&self) -> bool {
        self.path.len() > 1
    }

    /// Whether a change can be one of it: neither what says which one is meant, nor of which definition the change was made.
    pub(crate) fn is_changed(&self) -> bool {
        self.is_of_body() && !self.is_placed && self.field().is_some_and(|field| field.name() != ETAG)
    }
}

/// The commands of one service.
#[derive(Clone, Debug)]
pub(crate) struct Noun {
    /// `job`.
    pub(crate) name: String,
    pub(crate) service: ServiceDescriptor,
    pub(crate) calls: Vec<Call>,
}

/// All of them, those with the most calls first.
pub(crate) fn nouns(pool: &DescriptorPool) -> Vec<Noun> {
    let mut nouns: Vec<Noun> = pool.services().map(|service| noun(pool, service)).collect();
    nouns.retain(|noun| !noun.calls.is_empty());
    nouns.sort_by_key(|noun| Reverse(noun.calls.len()));
    nouns
}

fn noun(pool: &DescriptorPool, service: ServiceDescriptor) -> Noun {
    let name = camel(service.name().strip_suffix("Service").unwrap_or(service.name()));
    let mut calls: Vec<Call> = Vec::new();
    for method in service.methods().filter(is_command) {
        // The shorter of two names has the verb to itself.
        let verb = verb(&name, method.name());
        let is_taken = |other: &MethodDescriptor| {
            other.name().len() < method.name().len() && self::verb(&name, other.name()) == verb
        };
        let verb = if service.methods().filter(is_command).any(|other| is_taken(&other)) {
            camel(method.name()).join("-")
        } else {
            verb
        };
        calls.push(call(pool, verb, method));
    }
    Noun { name: name.join("-"), service, calls }
}

/// Neither a stream nor another way to say what a shorter name says.
fn is_command(method: &MethodDescriptor) -> bool {
    !is_stream(method) && !method.parent_service().methods().any(|other| says_as_much(&other, method))
}

fn is_stream(method: &MethodDescriptor) -> bool {
    method.is_client_streaming() || method.is_server_streaming()
}

/// `CreateJob` as much as `CreateCronJob`, which only has a word more between its own.
fn says_as_much(shorter: &MethodDescriptor, longer: &MethodDescriptor) -> bool {
    let (few, many) = (camel(shorter.name()), camel(longer.name()));
    let mut left = many.iter();
    few.len() < many.len()
        && few.first() == many.first()
        && few.iter().all(|word| left.any(|other| other == word))
        && shorter.input() == longer.input()
        && shorter.output() == longer.output()
        && !is_stream(shorter)
}

fn verb(noun: &[String], call: &str) -> String {
    let words = camel(call);
    let is_noun = |window: &[String]| {
        let (text, noun) = (window.join("-"), noun.join("-"));
        text == noun || text == noun + "s"
    };
    let Some(place) = words.windows(noun.len().max(1)).position(is_noun) else { return words.join("-") };
    let (before, after) = (&words[..place], &words[place + noun.len()..]);
    match (before, after) {
        // ListJobRevisions, SetJobSchedule.
        ([reading], [_, ..]) if READING.contains(&reading.as_str()) => after.join("-"),
        // ListJobThings: whose, its argument tells.
        ([list, _, ..], []) if list == "list" => list.clone(),
        _ => [before, after].concat().join("-"),
    }
}

fn call(pool: &DescriptorPool, verb: String, method: MethodDescriptor) -> Call {
    let input = method.input();
    let body = body(&input);
    let list = if body.is_none() { list(&input) } else { None };
    let mask = body.as_ref().and_then(|_| input.fields().find(is_mask));
    let placed = placed(pool, &method);
    let mut fields: Vec<Field> = Vec::new();
    for field in input.fields().filter(|field| mask.as_ref() != Some(field)) {
        if body.as_ref() == Some(&field) {
            if let Kind::Message(inner) = field.kind() {
                fields.extend(fields_of_body(&field, &inner, &placed, mask.is_some()));
            }
            continue;
        }
        let (is_placed, must_be) = placed.holds(field.name());
        // What a file may hold, the gateway misses where it is not given.
        let is_required = must_be || (behaves(&field, Behavior::Required) && list.as_ref() != Some(&field));
        fields.push(Field { name: kebab(field.name()), path: vec![field], is_placed, is_required });
    }
    for index in 0..fields.len() {
        let is_taken = RESERVED.contains(&fields[index].name.as_str())
            || fields
                .iter()
                .enumerate()
                .any(|(other, field)| other != index && field.name == fields[index].name && !field.is_of_body());
        if is_taken && !fields[index].is_placed {
            fields[index].name = match fields[index].path.as_slice() {
                [outer, _] => format!("{}-{}", kebab(outer.name()), fields[index].name),
                _ => format!("{}-field", fields[index].name),
            };
        }
    }
    fields.sort_by_key(|field| !field.is_placed);
    Call { verb, method, fields, body, list, mask }
}

/// What the server alone decides cannot be given, and what cannot be changed is no flag where things are changed.
fn fields_of_body(body: &FieldDescriptor, message: &MessageDescriptor, placed: &Placed, changes: bool) -> Vec<Field> {
    let mut fields = Vec::new();
    for field in message.fields() {
        let (is_placed, is_required) = placed.holds(&format!("{}.{}", body.name(), field.name()));
        if is_placed || !(behaves(&field, Behavior::OutputOnly) || changes && behaves(&field, Behavior::Immutable)) {
            let name = kebab(field.name());
            // What a body must hold, a file may say: the gateway names what is missing.
            fields.push(Field { name, path: vec![body.clone(), field], is_placed, is_required });
        }
    }
    fields
}

/// The one field of a request that is a message of ours.
fn body(input: &MessageDescriptor) -> Option<FieldDescriptor> {
    let is_ours = |field: &FieldDescriptor| {
        field.cardinality() != Cardinality::Repeated
            && matches!(field.kind(), Kind::Message(message) if is_ordinary(&message))
    };
    let mut ours = input.fields().filter(is_ours);
    let first = ours.next()?;
    ours.next().is_none().then_some(first)
}

/// The one list that a request must have, if it is of messages of ours.
fn list(input: &MessageDescriptor) -> Option<FieldDescriptor> {
    let mut required = input.fields().filter(|field| behaves(field, Behavior::Required));
    let first = required.next().filter(|_| required.next().is_none())?;
    (first.is_list() && matches!(first.kind(), Kind::Message(message) if is_ordinary(&message))).then_some(first)
}

/// A message that is its fields: those of google.protobuf have a JSON form of their own.
pub(crate) fn is_ordinary(message: &MessageDescriptor) -> bool {
    message.package_name() != "google.protobuf"
}

fn is_mask(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Message(message) if message.full_name() == "google.protobuf.FieldMask")
}

/// The fields that the HTTP path binds, such as `job.id`; of a call without one a field `id`. What only a further path binds, as the
/// job of a list of executions, may be left out.
fn placed(pool: &DescriptorPool, method: &MethodDescriptor) -> Placed {
    let options = method.options();
    let rule = pool.get_extension_by_name("google.api.http").filter(|option| options.has_extension(option));
    let rule = rule.and_then(|option| options.get_extension(&option).as_message().cloned());
    let Some(rule) = rule else { return Placed { always: vec!["id".to_owned()], sometimes: Vec::new() } };
    let further = rule.get_field_by_name("additional_bindings").map(std::borrow::Cow::into_owned);
    let further = further.as_ref().and_then(Value::as_list).unwrap_or_default();
    let sometimes = further.iter().filter_map(Value::as_message).flat_map(variables).collect();
    Placed { always: variables(&rule), sometimes }
}

/// What stands alone on the command line.
struct Placed {
    always: Vec<String>,
    sometimes: Vec<String>,
}

impl Placed {
    /// Whether a field does, and whether it must be given.
    fn holds(&self, path: &str) -> (bool, bool) {
        let is_required = self.always.iter().any(|placed| placed == path);
        (is_required || self.sometimes.iter().any(|placed| placed == path), is_required)
    }
}

fn variables(rule: &DynamicMessage) -> Vec<String> {
    let path = ["get", "put", "post", "delete", "patch"].iter().find_map(|verb| text_of(rule, verb));
    let path = path.unwrap_or_default();
    path.split('{').skip(1).filter_map(|rest| rest.split(['}', '=']).next()).map(str::to_owned).collect()
}

fn text_of(rule: &DynamicMessage, field: &str) -> Option<String> {
    match rule.get_field_by_name(field)?.as_ref() {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::field_descriptor_proto::{Label, Type};
    use prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
        ServiceDescriptorProto,
    };

    use carillon_proto::descriptors;

    use super::*;

    fn found(noun: &str, verb: &str) -> Call {
        let noun = nouns(&descriptors()).into_iter().find(|found| found.name == noun).unwrap();
        noun.calls.into_iter().find(|call| call.verb == verb).unwrap()
    }

    /// Said by a shorter name.
    const LEFT_OUT: [&str; 3] = ["CreateCronJob", "CreateOneTimeJob", "CreateRecurringJob"];

    #[test]
    fn flags_have_hyphens() {
        assert_eq!(kebab("retry_delay_ms"), "retry-delay-ms");
    }

    #[test]
    fn every_call_is_a_command_or_said_by_a_shorter_one() {
        for service in descriptors().services() {
            let noun = nouns(&descriptors()).into_iter().find(|noun| noun.service.full_name() == service.full_name());
            let calls = noun.map(|noun| noun.calls).unwrap_or_default();
            for method in service.methods() {
                let has_command = calls.iter().any(|call| call.method.name() == method.name());
                let left_out = LEFT_OUT.contains(&method.name()) || is_stream(&method);
                assert_ne!(has_command, left_out, "{}", method.full_name());
            }
            let mut verbs: Vec<&str> = calls.iter().map(|call| call.verb.as_str()).collect();
            verbs.sort_unstable();
            verbs.dedup();
            assert_eq!(verbs.len(), calls.len(), "{verbs:?}");
        }
    }

    /// They are a promise to scripts: no new call may take one of them.
    #[test]
    fn names_of_commands_stay() {
        for (command, call) in [
            ("execution cancel", "CancelExecution"),
            ("execution get", "GetExecution"),
            ("execution list", "ListExecutions"),
            ("job batch-create", "BatchCreateJobs"),
            ("job create", "CreateJob"),
            ("job delete", "DeleteJob"),
            ("job get", "GetJob"),
            ("job list", "ListJobs"),
            ("job pause", "PauseJob"),
            ("job resume", "ResumeJob"),
            ("job revisions", "ListJobRevisions"),
            ("job schedule", "SetJobSchedule"),
            ("job trigger", "TriggerJob"),
            ("job update", "UpdateJob"),
            ("schedule preview", "PreviewSchedule"),
        ] {
            let (noun, verb) = command.split_once(' ').unwrap();
            assert_eq!(found(noun, verb).method.name(), call, "{command}");
        }
    }

    /// A service that nobody here has heard of.
    #[test]
    fn what_is_added_to_the_protos_is_a_command() {
        let field = |name: &str, number: i32, kind: Type| FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            r#type: Some(kind.into()),
            label: Some(Label::Optional.into()),
            ..FieldDescriptorProto::default()
        };
        let message = |name: &str, field: Vec<FieldDescriptorProto>| DescriptorProto {
            name: Some(name.into()),
            field,
            ..DescriptorProto::default()
        };
        let call = |name: &str, input: &str| MethodDescriptorProto {
            name: Some(name.into()),
            input_type: Some(format!(".x.{input}")),
            output_type: Some(".x.Answer".into()),
            ..MethodDescriptorProto::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("ApiKeyService".into()),
            method: vec![
                call("ListApiKeys", "Empty"),
                call("ListUserApiKeys", "Request"),
                call("RevokeApiKey", "Request"),
                MethodDescriptorProto { server_streaming: Some(true), ..call("WatchApiKey", "Request") },
            ],
            ..ServiceDescriptorProto::default()
        };
        let file = FileDescriptorProto {
            name: Some("x.proto".into()),
            package: Some("x".into()),
            message_type: vec![
                message("Empty", Vec::new()),
                message("Answer", Vec::new()),
                message("Request", vec![field("id", 1, Type::String), field("timeout", 2, Type::Uint32)]),
            ],
            service: vec![service],
            syntax: Some("proto3".into()),
            ..FileDescriptorProto::default()
        };
        let pool = DescriptorPool::from_file_descriptor_set(FileDescriptorSet { file: vec![file] }).unwrap();
        let noun = nouns(&pool).pop().unwrap();
        let verbs: Vec<&str> = noun.calls.iter().map(|call| call.verb.as_str()).collect();
        assert_eq!((noun.name.as_str(), verbs), ("api-key", vec!["list", "list-user-api-keys", "revoke"]));
        let names: Vec<(&str, bool)> =
            noun.calls[2].fields.iter().map(|field| (field.name.as_str(), field.is_placed)).collect();
        // Every command has a --timeout of its own.
        assert_eq!(names, [("id", true), ("timeout-field", false)]);
    }

    #[test]
    fn verbs_follow_from_the_names() {
        let job = ["job".to_owned()];
        for (call, wanted) in [
            ("RetryJob", "retry"),
            ("ListJobs", "list"),
            ("GetJobStatistics", "statistics"),
            ("BulkDeleteJobs", "bulk-delete"),
            ("CancelJobExecutions", "cancel-executions"),
            ("Ping", "ping"),
        ] {
            assert_eq!(verb(&job, call), wanted, "{call}");
        }
        let key = ["api".to_owned(), "key".to_owned()];
        assert_eq!(verb(&key, "RevokeApiKey"), "revoke");
    }

    #[test]
    fn ids_are_given_by_their_place_and_all_else_by_flags() {
        let placed = |noun: &str, verb: &str| -> Vec<String> {
            let fields = found(noun, verb).fields.into_iter();
            fields.filter(|field| field.is_placed).map(|field| field.name).collect()
        };
        assert_eq!(placed("job", "update"), ["id"]);
        assert_eq!(placed("execution", "list"), ["job-id"]);
        assert_eq!(placed("job", "pause"), ["id"]);
        assert!(placed("job", "create").is_empty() && placed("schedule", "preview").is_empty());

        let flags = |verb: &str| -> Vec<String> {
            let fields = found("job", verb).fields.into_iter();
            fields.filter(|field| !field.is_placed).map(|field| field.name).collect()
        };
        let (create, update) = (flags("create"), flags("update"));
        let has = |flags: &[String], name: &str| flags.iter().any(|flag| flag == name);
        for name in ["name", "max-retries", "payload", "tags", "exclusions", "request-id", "validate-only"] {
            assert!(has(&create, name), "{name}");
        }
        // OUTPUT_ONLY; the mask follows from the others; what cannot change is no flag of a change.
        for name in ["id", "status", "next-run", "executions-count", "job", "update-mask"] {
            assert!(!has(&create, name) && !has(&update, name), "{name}");
        }
        assert!(has(&create, "platform-id") && !has(&update, "platform-id"));
        assert!(has(&update, "updated-by") && has(&update, "etag"));
    }

    #[test]
    fn a_file_holds_what_a_request_is_about() {
        let held = |noun: &str, verb: &str| {
            let call = found(noun, verb);
            let name = |field: Option<FieldDescriptor>| field.map(|field| field.name().to_owned()).unwrap_or_default();
            (name(call.body), name(call.list))
        };
        let (job, jobs, nothing) = ("job".to_owned(), "jobs".to_owned(), String::new);
        assert_eq!(held("job", "create"), (job, nothing()));
        assert_eq!(held("job", "batch-create"), (nothing(), jobs));
        assert_eq!(held("schedule", "preview"), (nothing(), nothing()));
    }

    #[test]
    fn no_command_has_a_name_twice() {
        for noun in nouns(&descriptors()) {
            for call in noun.calls {
                let mut names: Vec<&str> =
                    call.fields.iter().map(|field| field.name.as_str()).chain(RESERVED).collect();
                names.sort_unstable();
                let all = names.len();
                names.dedup();
                assert_eq!(all, names.len(), "{} {}", noun.name, call.verb);
            }
        }
    }
}
