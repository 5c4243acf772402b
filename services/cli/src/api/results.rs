//! Answers that say of each thing that was given what became of it: done, by its id, or why not. A table with a row for each, by its
//! place in what was given, and how many were refused.

use carillon_proto::words::camel;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::cell::{DIM, GAP, RESET, text_of};
use super::text::{cut, padded, visible, width};

const STATUS: &str = "google.rpc.Status";
const HEADINGS: [&str; 4] = ["INDEX", "ID", "REASON", "MESSAGE"];
/// What is left of a message at least, however narrow the terminal is.
const MESSAGE_MIN: usize = 20;

/// The list of such an answer, whose elements have a status among what they may be.
fn list_of(of: &MessageDescriptor) -> Option<(FieldDescriptor, FieldDescriptor)> {
    let list = of.fields().find(FieldDescriptor::is_list)?;
    let Kind::Message(element) = list.kind() else { return None };
    let is_status = |field: &FieldDescriptor| {
        field.containing_oneof().is_some() && matches!(field.kind(), Kind::Message(of) if of.full_name() == STATUS)
    };
    element.fields().find(is_status).map(|status| (list, status))
}

/// What became of each; `None`: it is no such answer.
fn each(answer: &DynamicMessage) -> Option<Vec<Result<String, Status>>> {
    let (list, status) = list_of(&answer.descriptor())?;
    let answer = answer.get_field(&list);
    let elements = answer.as_list()?.iter().filter_map(|element| element.as_message());
    Some(elements.map(|element| outcome(element, &status)).collect())
}

fn outcome(element: &DynamicMessage, status: &FieldDescriptor) -> Result<String, Status> {
    if element.has_field(status) {
        let bytes = element.get_field(status).as_message().map(DynamicMessage::encode_to_vec).unwrap_or_default();
        let read = tonic_types::Status::decode(bytes.as_slice()).unwrap_or_default();
        return Err(Status::with_details(Code::from_i32(read.code), read.message, bytes.into()));
    }
    let id = element.descriptor().get_field_by_name("id");
    Ok(id.map(|id| text_of(element, &id)).unwrap_or_default())
}

/// How many were refused, and of how many.
pub(crate) fn refused(answer: &DynamicMessage) -> Option<(usize, usize)> {
    let each = each(answer)?;
    let refused = each.iter().filter(|outcome| outcome.is_err()).count();
    (refused > 0).then_some((refused, each.len()))
}

/// The answer as a table; `None`: it is none of these. `terminal` is its width, if there is one: messages are cut.
pub(crate) fn table(answer: &DynamicMessage, terminal: Option<usize>) -> Option<String> {
    let each = each(answer)?;
    let row = |(index, outcome): (usize, Result<String, Status>)| match outcome {
        Ok(id) => [index.to_string(), id, String::new(), String::new()],
        Err(status) => [index.to_string(), String::new(), reason(&status), status.message().to_owned()],
    };
    let rows: Vec<[String; 4]> =
        each.into_iter().enumerate().map(row).map(|row| row.map(|cell| visible(&cell))).collect();
    // A column in which nothing stands is left out.
    let shown: Vec<(usize, usize)> = (0..HEADINGS.len())
        .filter(|column| *column == 0 || rows.iter().any(|row| !row[*column].is_empty()))
        .map(|column| {
            (column, rows.iter().map(|row| width(&row[column])).chain([width(HEADINGS[column])]).max().unwrap_or(0))
        })
        .collect();
    let before: usize = shown.iter().filter(|(column, _)| *column < 3).map(|(_, width)| width + GAP.len()).sum();
    let message_max = terminal.map_or(usize::MAX, |terminal| terminal.saturating_sub(before).max(MESSAGE_MIN));
    let line = |cells: [&str; 4]| {
        let cells = shown.iter().map(|(column, width)| match column {
            3 => cut(cells[*column], message_max),
            _ => padded(cells[*column], *width),
        });
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    let mut text = format!("{DIM}{}{RESET}\n", line(HEADINGS));
    for row in &rows {
        text.push_str(&line(row.each_ref().map(String::as_str)));
        text.push('\n');
    }
    Some(text)
}

/// The word for it (docs/errors.md), or else its code.
fn reason(status: &Status) -> String {
    let code = || camel(&format!("{:?}", status.code())).join("_").to_uppercase();
    status.get_details_error_info().map_or_else(code, |info| info.reason)
}

#[cfg(test)]
mod tests {
    use carillon_proto::{descriptors, v1};
    use tonic_types::ErrorDetails;
    use v1::batch_create_jobs_result::Result as Outcome;

    use super::*;

    fn answer(results: Vec<Outcome>) -> DynamicMessage {
        let results = results.into_iter().map(|result| v1::BatchCreateJobsResult { result: Some(result) }).collect();
        let of = descriptors().get_message_by_name("carillon.v1.BatchCreateJobsResponse").unwrap();
        let response = v1::BatchCreateJobsResponse { results };
        DynamicMessage::decode(of, response.encode_to_vec().as_slice()).unwrap()
    }

    fn status(reason: Option<&str>, message: &str) -> Outcome {
        let mut details = ErrorDetails::new();
        if let Some(reason) = reason {
            details.set_error_info(reason, "carillon", std::collections::HashMap::<String, String>::new());
        }
        let status = Status::with_error_details(Code::AlreadyExists, message, details);
        Outcome::Status(tonic_types::Status::decode(status.details()).unwrap())
    }

    #[test]
    fn each_has_a_row_by_its_place() {
        let answer = answer(vec![
            Outcome::Id("01a3185c".into()),
            status(Some("KEY_TAKEN"), "jobs[1].key: is \u{1b}taken"),
            status(None, "why not"),
        ]);
        let text = anstream::adapter::strip_str(&table(&answer, None).unwrap()).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "INDEX  ID        REASON          MESSAGE",
                "0      01a3185c",
                "1                KEY_TAKEN       jobs[1].key: is \\u{1b}taken",
                "2                ALREADY_EXISTS  why not",
            ]
        );
        assert_eq!(refused(&answer), Some((2, 3)));
        let narrow = table(&answer, Some(55)).unwrap();
        assert!(anstream::adapter::strip_str(&narrow).to_string().lines().all(|line| width(line) <= 55), "{narrow}");
    }

    #[test]
    fn what_is_right_is_not_refused_and_what_is_no_such_answer_has_no_results() {
        let right = answer(vec![Outcome::Id(String::new()), Outcome::Id(String::new())]);
        assert_eq!(refused(&right), None);
        assert_eq!(anstream::adapter::strip_str(&table(&right, None).unwrap()).to_string(), "INDEX\n0\n1\n");
        for other in ["carillon.v1.Job", "carillon.v1.ListJobsResponse"] {
            let other = DynamicMessage::new(descriptors().get_message_by_name(other).unwrap());
            assert!(table(&other, None).is_none() && refused(&other).is_none());
        }
    }
}
