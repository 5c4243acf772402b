//! Rows on their way into a statement: one array a column, which UNNEST makes rows of again.

/// A column that few of `items` have: nothing at all is sent if none has it, and UNNEST makes NULL of what is missing. Each column
/// that is sent costs Postgres a table of its own.
pub(crate) fn sparse<'a, I, T>(items: &[&'a I], of: impl Fn(&'a I) -> Option<T>) -> Vec<Option<T>> {
    let column: Vec<Option<T>> = items.iter().map(|item| of(item)).collect();
    if column.iter().all(Option::is_none) { Vec::new() } else { column }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_has_all_places_or_none() {
        let of =
            |numbers: &[u8]| sparse(&numbers.iter().collect::<Vec<_>>(), |number| (*number > 1).then_some(*number));
        assert_eq!(of(&[0, 2, 1]), [None, Some(2), None]);
        assert_eq!(of(&[0, 1]), []);
        assert_eq!(of(&[]), []);
    }
}
