//! Text of others on a terminal: nothing of it may move the cursor, break a table or turn the reading direction.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Columns that a text takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// On one line, with what is hidden written out.
pub(crate) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_hidden(letter) { visible.extend(letter.escape_default()) } else { visible.push(letter) }
    }
    visible
}

/// Controls of the terminal, marks of direction, spaces without a width, ends of lines; not the joiners that some scripts and emoji
/// are written with.
pub(crate) fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// At most `columns` wide; what is cut off is an ellipsis.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let (mut short, mut used) = (String::new(), 1);
    for letter in text.chars() {
        used += letter.width().unwrap_or(0);
        if used > columns {
            break;
        }
        short.push(letter);
    }
    short.push('…');
    short
}

/// With blanks behind it, `columns` wide.
pub(crate) fn padded(text: &str, columns: usize) -> String {
    let blanks = columns.saturating_sub(width(text));
    format!("{text}{:blanks$}", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hidden_is_left() {
        let text = "a\u{1b}[31mb\nc\t\u{202e}d\u{9b}e é 鐘";
        assert_eq!(visible(text), "a\\u{1b}[31mb\\nc\\t\\u{202e}d\\u{9b}e é 鐘");
    }

    #[test]
    fn widths_are_columns_of_the_terminal() {
        assert_eq!(width("鐘鐘"), 4);
        assert_eq!(cut("鐘鐘鐘", 5), "鐘鐘…");
        assert_eq!(cut("鐘鐘鐘", 4), "鐘…");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(padded("鐘", 4), "鐘  ");
    }
}
