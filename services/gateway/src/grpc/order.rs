//! `order_by` of a list, as AIP-132 writes it: a field, and `desc` behind it for the greatest first.

use carillon_core::error::quoted;
use carillon_store::scan::Direction;

use super::checks::Checks;

const FIELD: &str = "order_by";

/// What a list is to be ordered by, one of `fields`, and which way; `None` if it is not said.
pub(super) fn read<B: Copy>(checks: &mut Checks, text: &str, fields: &[(&str, B)]) -> Option<(B, Direction)> {
    if text.is_empty() {
        return None;
    }
    let mut words = text.split_whitespace();
    let name = words.next().unwrap_or_default();
    let by = fields.iter().find(|(field, _)| *field == name).map(|(_, by)| *by);
    let direction = match words.next() {
        None | Some("asc") => Some(Direction::Ascending),
        Some("desc") => Some(Direction::Descending),
        Some(_) => None,
    };
    if let (Some(by), Some(direction), None) = (by, direction, words.next()) {
        return Some((by, direction));
    }
    let names = fields.iter().map(|(field, _)| *field).collect::<Vec<_>>().join(", ");
    checks.refuse(
        FIELD,
        format!("must be one of {names}, with desc behind it for the greatest first, is {}", quoted(text)),
    );
    None
}

/// Refuses the order unless `holds`.
pub(super) fn that(checks: &mut Checks, holds: bool, rule: &str) {
    checks.that(holds, FIELD, rule);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [(&str, u8); 2] = [("created_at", 1), ("next_run", 2)];

    #[test]
    fn an_order_is_a_field_and_a_way() {
        for (text, order) in [
            ("", None),
            ("created_at", Some((1, Direction::Ascending))),
            (" next_run  asc ", Some((2, Direction::Ascending))),
            ("next_run desc", Some((2, Direction::Descending))),
        ] {
            let mut checks = Checks::default();
            assert_eq!((read(&mut checks, text, &FIELDS), checks.is_clean()), (order, true), "{text}");
        }
        for wrong in [
            " ",
            "name",
            "created_at down",
            "created_at desc desc",
            "created_at, next_run",
            "created_at,next_run desc",
            "desc",
            "CREATED_AT",
        ] {
            let mut checks = Checks::default();
            assert_eq!((read(&mut checks, wrong, &FIELDS), checks.is_clean()), (None, false), "{wrong}");
        }
    }
}
