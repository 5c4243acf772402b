//! Messages of one type as a table of aligned columns. On a terminal it is as wide as that at most: long texts are cut, then columns
//! left out and named below it; ids, times and words are never cut, which would make them useless. In a pipe all is whole.

use std::fmt::Write as _;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};

use super::cell::{DIM, GAP, RESET, colour, text_of};
use super::text::{cut, visible, width};

/// A column that was chosen for a message: its heading, the fields that it shows, of which most rows have one, and how long it stays
/// when the terminal is narrow: the lowest leaves first.
type Chosen = (&'static str, &'static [&'static str], usize);

/// What is shown of a message; of one that is not named here its first fields.
const CHOSEN: [(&str, &[Chosen]); 3] = [
    (
        "carillon.v1.Job",
        &[
            ("ID", &["id"], 9),
            ("NAME", &["name"], 8),
            ("STATUS", &["status"], 7),
            ("TYPE", &["type"], 3),
            ("WHEN", &["schedule", "schedules", "interval", "execute_at"], 5),
            ("HANDLER", &["handler_name"], 4),
            ("NEXT RUN", &["next_run"], 6),
        ],
    ),
    (
        "carillon.v1.Execution",
        &[
            ("ID", &["id"], 9),
            ("STATUS", &["status"], 8),
            ("SCHEDULED", &["scheduled_at"], 6),
            ("ATTEMPT", &["attempt"], 5),
            ("STARTED", &["started_at"], 3),
            ("TOOK MS", &["duration_ms"], 4),
            ("JOB", &["job_id"], 2),
            ("WHY", &["error", "reason"], 7),
        ],
    ),
    (
        "carillon.v1.JobRevision",
        &[
            ("REVISION", &["revision"], 9),
            ("MADE", &["created_at"], 7),
            ("BY", &["created_by"], 6),
            ("SUPERSEDED", &["superseded_at"], 5),
            ("CHANGED", &["changed"], 8),
        ],
    ),
];
/// Columns of a message that none were chosen for.
const COLUMNS_MAX: usize = 8;
/// What is left of a long text at least.
const TEXT_MIN: usize = 8;

struct Column {
    heading: String,
    fields: Vec<FieldDescriptor>,
    keep: usize,
    width: usize,
    /// Of its widest cell that is not cut.
    whole: usize,
}

impl Column {
    /// Only texts are cut.
    fn narrowest(&self) -> usize {
        self.width.min(TEXT_MIN.max(width(&self.heading)).max(self.whole))
    }
}

/// Ids, instants, numbers and words say nothing, or something else, when they are cut.
fn is_whole(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::String => field.name() == "id" || field.name().ends_with("_id"),
        Kind::Message(of) => of.full_name() == "google.protobuf.Timestamp",
        _ => true,
    }
}

/// A cell with the field that it is of.
type Cell = (Option<FieldDescriptor>, String);

/// The rows below their headings. `terminal` is its width, if there is one.
pub(crate) fn table(of: &MessageDescriptor, rows: &[DynamicMessage], terminal: Option<usize>) -> String {
    let mut columns = columns(of, rows);
    for column in &mut columns {
        column.width = width(&column.heading);
        for (field, text) in rows.iter().map(|row| cell(row, &column.fields)) {
            column.width = column.width.max(width(&text));
            if field.is_some_and(|field| is_whole(&field)) {
                column.whole = column.whole.max(width(&text));
            }
        }
    }
    let left_out = terminal.map(|terminal| fit(&mut columns, terminal)).unwrap_or_default();
    let headings: Vec<Cell> = columns.iter().map(|column| (None, column.heading.clone())).collect();
    let mut text = format!("{DIM}{}{RESET}\n", line(&headings, &columns));
    for row in rows {
        let cells: Vec<Cell> = columns.iter().map(|column| cell(row, &column.fields)).collect();
        text.push_str(&line(&cells, &columns));
        text.push('\n');
    }
    if !left_out.is_empty() {
        let _ = writeln!(text, "{DIM}no room for {}{RESET}", left_out.join(", "));
    }
    text
}

fn line(cells: &[Cell], columns: &[Column]) -> String {
    let mut line = String::new();
    for (index, ((field, text), column)) in cells.iter().zip(columns).enumerate() {
        let shown = cut(text, column.width);
        let blanks = column.width.saturating_sub(width(&shown));
        let colour = field.as_ref().map_or("", |field| colour(field, text));
        let end = if colour.is_empty() { "" } else { RESET };
        let _ = write!(line, "{colour}{shown}{end}");
        // Nothing but blanks may follow the last one that says something.
        if cells.iter().skip(index + 1).any(|(_, text)| !text.is_empty()) {
            let _ = write!(line, "{:blanks$}{GAP}", "");
        }
    }
    line
}

fn cell(row: &DynamicMessage, fields: &[FieldDescriptor]) -> Cell {
    let mut cell: Cell = (None, String::new());
    for field in fields {
        let text = visible(&text_of(row, field));
        if !text.is_empty() {
            let before = if cell.1.is_empty() { String::new() } else { format!("{}; ", cell.1) };
            cell = (Some(field.clone()), before + &text);
        }
    }
    cell
}

fn columns(of: &MessageDescriptor, rows: &[DynamicMessage]) -> Vec<Column> {
    if let Some((_, chosen)) = CHOSEN.iter().find(|(name, _)| *name == of.full_name()) {
        let column = |(heading, fields, keep): &Chosen| Column {
            heading: (*heading).to_owned(),
            fields: fields.iter().filter_map(|name| of.get_field_by_name(name)).collect(),
            keep: *keep,
            width: 0,
            whole: 0,
        };
        return chosen.iter().map(column).collect();
    }
    let says = |field: &FieldDescriptor| rows.iter().any(|row| !text_of(row, field).is_empty());
    let fields = of.fields().filter(says).take(COLUMNS_MAX).enumerate();
    let column = |(index, field): (usize, FieldDescriptor)| Column {
        heading: field.name().replace('_', " ").to_uppercase(),
        fields: vec![field],
        keep: COLUMNS_MAX - index,
        width: 0,
        whole: 0,
    };
    fields.map(column).collect()
}

/// Leaves out what there is no room for, which is returned, and cuts the widest texts until the rest fits.
fn fit(columns: &mut Vec<Column>, terminal: usize) -> Vec<String> {
    let room = |columns: &[Column]| terminal.saturating_sub(GAP.len() * columns.len().saturating_sub(1));
    let mut left_out = Vec::new();
    while columns.len() > 1 && columns.iter().map(Column::narrowest).sum::<usize>() > room(columns) {
        let least = (0..columns.len()).min_by_key(|index| columns[*index].keep).unwrap_or(0);
        left_out.push(columns.remove(least).heading);
    }
    left_out.reverse();
    while columns.iter().map(|column| column.width).sum::<usize>() > room(columns) {
        let can_give = |column: &&mut Column| column.width > column.narrowest();
        match columns.iter_mut().filter(can_give).max_by_key(|column| column.width) {
            Some(widest) => widest.width -= 1,
            None => break,
        }
    }
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::descriptors;

    #[test]
    fn chosen_columns_are_fields() {
        let pool = descriptors();
        for (name, columns) in CHOSEN {
            let of = pool.get_message_by_name(name).unwrap();
            for field in columns.iter().flat_map(|(_, fields, _)| *fields) {
                assert!(of.get_field_by_name(field).is_some(), "{name}.{field}");
            }
        }
    }
}
