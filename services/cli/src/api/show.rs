//! What a call answered, for people: a list as a table of aligned columns, one message as a line for each field that says
//! something. A value can neither break a line nor move the cursor; on a terminal a table is as wide as that at most.

use std::fmt::Write as _;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _};

use super::catalog::is_ordinary;
use super::cell::{DIM, GAP, RESET, colour, text_of};
use super::table::table;
use super::text::{padded, visible, width};

/// An answer as text. `terminal` is its width, if there is one; `offset` is where in the list this page began.
pub(crate) fn answer(message: &DynamicMessage, terminal: Option<usize>, offset: u64) -> String {
    let descriptor = message.descriptor();
    if let Some(list) = list_of(&descriptor) {
        return page(message, &list, terminal, offset);
    }
    let text = record(message, terminal);
    if text.is_empty() { "done\n".to_owned() } else { text }
}

/// The list of an answer that is one: `ListJobsResponse.jobs`.
fn list_of(of: &MessageDescriptor) -> Option<FieldDescriptor> {
    of.fields().find(is_list_of_ours).filter(|_| of.name().ends_with("Response"))
}

fn is_list_of_ours(field: &FieldDescriptor) -> bool {
    field.is_list() && matches!(field.kind(), Kind::Message(of) if is_ordinary(&of))
}

fn rows_of(message: &DynamicMessage, list: &FieldDescriptor) -> Vec<DynamicMessage> {
    let value = message.get_field(list);
    value.as_list().unwrap_or_default().iter().filter_map(|row| row.as_message().cloned()).collect()
}

/// Fields that say how a list goes on.
const NEXT: [&str; 2] = ["has_more", "next_page_token"];

/// What is said beside the list, the list, and where it goes on.
fn page(message: &DynamicMessage, list: &FieldDescriptor, terminal: Option<usize>, offset: u64) -> String {
    let beside: Vec<FieldDescriptor> =
        message.descriptor().fields().filter(|field| !field.is_list() && !NEXT.contains(&field.name())).collect();
    let mut text = lines(message, &beside);
    if !text.is_empty() {
        text.push('\n');
    }
    let rows = rows_of(message, list);
    if let Kind::Message(of) = list.kind() {
        text.push_str(&table(&of, &rows, terminal));
    }
    let has_more = message.get_field_by_name("has_more").and_then(|value| value.as_bool()).unwrap_or(false);
    let token = message.get_field_by_name("next_page_token").and_then(|value| value.as_str().map(str::to_owned));
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        let _ = writeln!(text, "{DIM}more: --page-token {token}{RESET}");
    } else if has_more {
        let next = offset.saturating_add(rows.len() as u64);
        let _ = writeln!(text, "{DIM}more: --offset {next}{RESET}");
    }
    text
}

/// One message: its fields, and what lists it has of others.
fn record(message: &DynamicMessage, terminal: Option<usize>) -> String {
    let (lists, fields): (Vec<_>, Vec<_>) = message.descriptor().fields().partition(is_list_of_ours);
    let mut text = lines(message, &fields);
    for list in lists {
        let rows = rows_of(message, &list);
        if let (Kind::Message(of), false) = (list.kind(), rows.is_empty()) {
            let _ = write!(text, "\n{DIM}{}:{RESET}\n{}", list.name(), table(&of, &rows, terminal));
        }
    }
    text
}

/// `name:  value`, where there is one; further lines of a value stand below its first.
fn lines(message: &DynamicMessage, fields: &[FieldDescriptor]) -> String {
    let texts: Vec<(&FieldDescriptor, String)> =
        fields.iter().map(|field| (field, text_of(message, field))).filter(|(_, text)| !text.is_empty()).collect();
    let names = texts.iter().map(|(field, _)| width(field.name()) + 1).max().unwrap_or(0);
    let mut lines = String::new();
    for (field, text) in &texts {
        let (begin, end) = match colour(field, text) {
            "" => ("", ""),
            colour => (colour, RESET),
        };
        let name = padded(&format!("{}:", field.name()), names);
        for (index, line) in text.split('\n').enumerate() {
            let name = if index == 0 { format!("{DIM}{name}{RESET}") } else { padded("", names) };
            let line = visible(line.trim_end_matches('\r'));
            let _ = writeln!(lines, "{name}{GAP}{begin}{line}{end}");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use carillon_proto::v1;

    use super::*;
    use carillon_proto::descriptors;

    fn dynamic(name: &str, message: &impl prost::Message) -> DynamicMessage {
        let of = descriptors().get_message_by_name(name).unwrap();
        DynamicMessage::decode(of, message.encode_to_vec().as_slice()).unwrap()
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn execution(id: &str, status: v1::ExecutionStatus, error: &str) -> v1::Execution {
        v1::Execution {
            id: id.into(),
            status: status.into(),
            attempt: 1,
            error: Some(error.into()),
            ..v1::Execution::default()
        }
    }

    #[test]
    fn a_list_is_a_table_that_no_value_breaks() {
        let executions = vec![
            execution("1", v1::ExecutionStatus::Failed, "two\nlines \u{1b}[2J"),
            execution("22", v1::ExecutionStatus::Success, ""),
        ];
        let response =
            v1::ListExecutionsResponse { executions, has_more: true, ..v1::ListExecutionsResponse::default() };
        let text = answer(&dynamic("carillon.v1.ListExecutionsResponse", &response), None, 10);
        assert!(text.contains("\u{1b}[31mFAILED"), "{text:?}");
        assert_eq!(
            plain(&text),
            "\
ID  STATUS   SCHEDULED  ATTEMPT  STARTED  TOOK MS  JOB  WHY
1   FAILED              1                               two\\nlines \\u{1b}[2J
22  SUCCESS             1
more: --offset 12
"
        );
    }

    #[test]
    fn a_terminal_cuts_what_is_wide_and_never_an_id() {
        let id = "01a3185c-5000-8a28-b6b7-19d8e4ba20a5";
        let response = v1::ListExecutionsResponse {
            executions: vec![execution(id, v1::ExecutionStatus::Failed, &"long ".repeat(100))],
            ..v1::ListExecutionsResponse::default()
        };
        let text = plain(&answer(&dynamic("carillon.v1.ListExecutionsResponse", &response), Some(100), 0));
        for line in text.lines() {
            assert!(width(line) <= 100, "{line}");
        }
        assert!(text.contains(id) && text.contains('…') && !text.contains("left out"), "{text}");
        let narrow = plain(&answer(&dynamic("carillon.v1.ListExecutionsResponse", &response), Some(60), 0));
        let lines: Vec<&str> = narrow.lines().collect();
        let headings = "ID                                    STATUS  WHY";
        assert_eq!((lines[0], lines[1].starts_with(id)), (headings, true), "{narrow}");
        assert!(lines[2].starts_with("no room for SCHEDULED, ATTEMPT"), "{narrow}");
        let whole = plain(&answer(&dynamic("carillon.v1.ListExecutionsResponse", &response), None, 0));
        assert!(!whole.contains('…'), "{whole}");
    }

    #[test]
    fn no_terminal_is_too_narrow_for_whose_work_it_was_or_for_when_it_is() {
        let worker = "carillon-executor-7f9c5d-0-01a3185c-5000-8a28-b6b7";
        let attempt = v1::Attempt {
            attempt: 1,
            worker_id: Some(worker.into()),
            error: Some("long ".repeat(100)),
            ..v1::Attempt::default()
        };
        let shown = v1::Execution { attempts: vec![attempt], ..execution("i", v1::ExecutionStatus::Failed, "no") };
        let text = plain(&answer(&dynamic("carillon.v1.Execution", &shown), Some(100), 0));
        assert!(text.contains(worker) && text.contains('…'), "{text}");
        let instant = prost_types::Timestamp { seconds: 1_830_000_000, nanos: 0 };
        let job = v1::Job {
            id: "01a3185c-5000-8a28-b6b7-19d8e4ba20a5".into(),
            name: "n".into(),
            execute_at: Some(instant),
            handler_name: "a:b".into(),
            ..v1::Job::default()
        };
        let other = v1::Job { schedule: "0 2 * * *".repeat(9), execute_at: None, ..job.clone() };
        let response = v1::ListJobsResponse { jobs: vec![job, other], ..v1::ListJobsResponse::default() };
        let list = dynamic("carillon.v1.ListJobsResponse", &response);
        for terminal in 60..100 {
            let text = plain(&answer(&list, Some(terminal), 0));
            assert!(text.contains("2027-12-28T13:20:00Z") || text.contains("no room for"), "{terminal}: {text}");
            assert!(!text.contains("2027-12…") && text.lines().all(|line| width(line) <= terminal), "{text}");
        }
    }

    #[test]
    fn one_message_is_a_line_for_each_field_that_says_something() {
        let mut shown = execution("i", v1::ExecutionStatus::Retrying, "first\nsecond");
        let attempt = v1::Attempt { attempt: 1, error: Some("no".into()), ..v1::Attempt::default() };
        shown.attempts = vec![attempt];
        let text = plain(&answer(&dynamic("carillon.v1.Execution", &shown), None, 0));
        assert_eq!(
            text,
            "\
id:       i
status:   RETRYING
error:    first
          second
attempt:  1

attempts:
ATTEMPT  ERROR
1        no
"
        );
        let deleted = descriptors().get_message_by_name("google.protobuf.Empty").unwrap();
        assert_eq!(answer(&DynamicMessage::new(deleted), None, 0), "done\n");
    }

    #[test]
    fn what_stands_beside_a_list_stands_above_it() {
        let response = v1::PreviewScheduleResponse {
            details: vec![v1::preview_schedule_response::Fire {
                local_time: "2026-12-01T02:00:00+01:00".into(),
                ..v1::preview_schedule_response::Fire::default()
            }],
            description: "at 02:00 every day".into(),
            ..v1::PreviewScheduleResponse::default()
        };
        let text = plain(&answer(&dynamic("carillon.v1.PreviewScheduleResponse", &response), None, 0));
        assert_eq!(text, "description:  at 02:00 every day\n\nLOCAL TIME\n2026-12-01T02:00:00+01:00\n");
    }
}
