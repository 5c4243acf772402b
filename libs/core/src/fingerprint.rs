//! What two failures have in common that are the same fault: a hash of the handler, of the error's text without what differs
//! from one time to the next, and of the first frame of the stack that is the handler's own.
//!
//! Out of the text go numbers (with what stands inside of them: `1,234.5`, `10.0.0.1:80`), ids (UUIDs, runs of hex digits, long
//! runs of letters and digits in a mixture) and what stands in quotation marks: names of files and hosts, keys, values. It is a
//! guess, and errs on both sides; whoever wants to be exact filters by the text. It may be refined: rows that were written
//! before keep what they have.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Characters of a fingerprint: hex digits, in lower case.
pub const CHARS: usize = 16;
/// Bytes of an error that are looked at: what follows is mostly what differs.
const ERROR_BYTES: usize = 2 * 1024;
/// Bytes of a stack that are looked at.
const STACK_BYTES: usize = 16 * 1024;
/// Bytes of a frame that are looked at.
const FRAME_BYTES: usize = 500;
/// A run of hex digits this long, a decimal one among them, is an id.
const HEX_LEAST: usize = 8;
/// A run of letters and digits this long, so many digits among them, is an id.
const MIXED_LEAST: (usize, usize) = (16, 4);

/// The fingerprint of a failure: 16 hex digits. The same, whatever numbers, ids and quoted parts the error has.
pub fn of(handler: &str, error: &str, stack: &str) -> String {
    let mut hash = Sha256::new();
    let error = plain(head(error, ERROR_BYTES), Quoted::Out);
    let frame = own_frame(head(stack, STACK_BYTES)).map(frame_text).unwrap_or_default();
    for part in [handler, &error, &frame] {
        // With its length, so that no two ways of cutting are alike.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut text = String::with_capacity(CHARS);
    for byte in &hash.finalize()[..CHARS / 2] {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether a text has the form of a fingerprint.
pub fn is_one(text: &str) -> bool {
    text.len() == CHARS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The beginning of a text, of so many bytes at most.
fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// What becomes of parts in quotation marks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoted {
    Out,
    Kept,
}

/// A text without numbers and ids, blanks drawn together.
fn plain(text: &str, quoted: Quoted) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = None;
    while let Some(first) = rest.chars().next() {
        let (taken, kept) = part(rest, first, before, quoted);
        let (part, behind) = rest.split_at(taken);
        if kept {
            out.push_str(part);
        }
        before = part.chars().next_back();
        rest = behind;
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How many bytes the part that `rest` begins with has, and whether it is kept.
fn part(rest: &str, first: char, before: Option<char>, quoted: Quoted) -> (usize, bool) {
    let in_word = before.is_some_and(char::is_alphanumeric);
    if quoted == Quoted::Out
        && !in_word
        && let Some(closing) = closing_of(first)
        && let Some(length) = quoted_length(rest, first, closing)
    {
        return (length, false);
    }
    if !first.is_alphanumeric() {
        // The sign of a number goes with it.
        let behind = &rest[first.len_utf8()..];
        let is_sign = matches!(first, '-' | '+') && !in_word && behind.starts_with(char::is_numeric);
        return (first.len_utf8(), !is_sign);
    }
    let word = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
    if !in_word {
        if let Some(length) = uuid_length(rest) {
            return (length, false);
        }
        if is_id(&rest[..word]) {
            return (word, false);
        }
    }
    if first.is_numeric() {
        return (number_length(rest), false);
    }
    (rest.find(|c: char| !c.is_alphanumeric() || c.is_numeric()).unwrap_or(rest.len()), true)
}

const fn closing_of(opening: char) -> Option<char> {
    match opening {
        '"' | '\'' | '`' => Some(opening),
        '“' => Some('”'),
        '‘' => Some('’'),
        '«' => Some('»'),
        _ => None,
    }
}

/// Bytes of a quoted part with its marks; `None` if it is not closed in its line. One that is escaped does not close, nor does an
/// apostrophe between two letters.
fn quoted_length(rest: &str, opening: char, closing: char) -> Option<usize> {
    let mut escaped = false;
    let mut before = opening;
    for (at, c) in rest.char_indices().skip(1) {
        let next = || rest[at + c.len_utf8()..].chars().next();
        if c == '\n' {
            return None;
        }
        let is_apostrophe = || c == '\'' && before.is_alphanumeric() && next().is_some_and(char::is_alphanumeric);
        if c == closing && !escaped && !is_apostrophe() {
            return Some(at + c.len_utf8());
        }
        escaped = c == '\\' && !escaped;
        before = c;
    }
    None
}

/// Bytes of the UUID that a text begins with.
fn uuid_length(rest: &str) -> Option<usize> {
    const LENGTH: usize = 36;
    let bytes = rest.as_bytes().get(..LENGTH)?;
    let fits = bytes.iter().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    // All of it is ASCII, so this is no middle of a character.
    (fits && !rest[LENGTH..].starts_with(char::is_alphanumeric)).then_some(LENGTH)
}

/// Whether a run of letters and digits is an id rather than a word.
fn is_id(word: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let letters = word.len() > digits;
    letters
        && digits > 0
        && (word.len() >= HEX_LEAST && is_hex(word)
            || word.strip_prefix("0x").is_some_and(|hex| !hex.is_empty() && is_hex(hex))
            || word.is_ascii() && word.len() >= MIXED_LEAST.0 && digits >= MIXED_LEAST.1)
}

/// Bytes of a number, with the marks between its digits.
fn number_length(rest: &str) -> usize {
    let mut length = 0;
    let mut chars = rest.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let goes_on = c.is_numeric()
            || matches!(c, '.' | ',' | ':' | '-' | '/' | '_')
                && chars.peek().is_some_and(|(_, next)| next.is_numeric());
        if !goes_on {
            break;
        }
        length = at + c.len_utf8();
    }
    length
}

/// What is not the handler's own: the runtimes and standard libraries of the languages that handlers are written in, and what
/// stands between a handler and this system.
const FOREIGN_PATHS: [&str; 18] = [
    "/rustc/",
    "/rustlib/",
    "/.cargo/registry/",
    "/.cargo/git/",
    "(node:",
    "at node:",
    "(internal/",
    "/node_modules/",
    "<anonymous>",
    "/lib/python",
    "\\lib\\python",
    "site-packages",
    "<frozen ",
    "/usr/local/go/src/",
    "/go/pkg/mod/",
    "java.base/",
    "(Native Method)",
    "(Unknown Source)",
];
const FOREIGN_NAMES: [&str; 18] = [
    "std::",
    "core::",
    "alloc::",
    "backtrace::",
    "anyhow::",
    "tokio::",
    "futures_util::",
    "rust_begin_unwind",
    "rust_panic",
    "__",
    "_start",
    "java.",
    "javax.",
    "jdk.",
    "sun.",
    "kotlin.",
    "scala.",
    "System.",
];

/// The first frame that is the handler's own; of a trace that begins with the outermost frame (Python) the last one.
fn own_frame(stack: &str) -> Option<&str> {
    let lines = || stack.lines().map(str::trim);
    if stack.contains("(most recent call last)") {
        return lines().rfind(|line| is_frame(line) && !is_foreign(line));
    }
    // Rust says a frame's place in a line of its own behind it: what lies in a library is no own frame.
    let mut lines = lines().peekable();
    while let Some(line) = lines.next() {
        let place = lines.next_if(|next| is_numbered(line) && next.starts_with("at ")).unwrap_or_default();
        if is_frame(line) && !is_foreign(line) && !is_foreign(place) {
            return Some(line);
        }
    }
    None
}

/// Whether a line says a place in the code, as Rust, JavaScript, Java, .NET, Python or Go write it, or is such a place alone.
fn is_frame(line: &str) -> bool {
    is_numbered(line)
        || line.starts_with("at ")
        || line.starts_with("File \"")
        || line.split_whitespace().any(|word| is_place(word.trim_end_matches([')', ','])))
}

/// `path:line` or `path:line:column`, and no `host:port`.
fn is_place(word: &str) -> bool {
    let without_number = |text: &str| -> Option<usize> {
        let (path, number) = text.rsplit_once(':')?;
        is_number(number).then_some(path.len())
    };
    let Some(mut end) = without_number(word) else { return false };
    end = without_number(&word[..end]).unwrap_or(end);
    let path = &word[..end];
    let is_name =
        |extension: &str| (1..=4).contains(&extension.len()) && extension.bytes().all(|b| b.is_ascii_alphabetic());
    !path.contains("://")
        && (path.contains(['/', '\\']) || path.rsplit_once('.').is_some_and(|(_, last)| is_name(last)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `12: name`, as Rust numbers its frames.
fn is_numbered(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(number, _)| is_number(number))
}

fn is_foreign(line: &str) -> bool {
    let name = name_of(line);
    FOREIGN_PATHS.iter().any(|path| line.contains(path)) || FOREIGN_NAMES.iter().any(|begin| name.starts_with(begin))
}

/// A frame's name, without the marks before it.
fn name_of(line: &str) -> &str {
    let line = if is_numbered(line) { line.split_once(": ").map_or(line, |(_, name)| name) } else { line };
    let line = line.strip_prefix("at ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    // `<core::pin::Pin<P> as core::future::Future>::poll`
    line.trim_start_matches(['<', '&', '*'])
}

/// A frame as it is hashed: its lines and columns, addresses and hashes of the compiler change with every build.
fn frame_text(frame: &str) -> String {
    plain(head(name_of(frame), FRAME_BYTES), Quoted::Kept)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn out(text: &str) -> String {
        plain(text, Quoted::Out)
    }

    #[test]
    fn what_differs_from_time_to_time_goes_out_of_the_text() {
        for (text, left) in [
            ("connection to 10.0.0.7:5432 refused after 1,234.5 ms", "connection to refused after ms"),
            ("no user 01a3185c-5000-831e-83d6-8ad6d7cd4720 here", "no user here"),
            ("object deadbeef42, at 0x7ffe, of order 01HZX3V9P4T5QK8W2N6M", "object , at , of order"),
            ("cannot open \"/tmp/a b.txt\": `x` and 'y' are “z”", "cannot open : and are"),
            ("can't read the user's 'it's here' file", "can't read the user's file"),
            ("a \"b \\\" c\" d", "a d"),
            ("an \"open mark", "an \"open mark"),
            ("temperature -5 of sensor7 in room B12", "temperature of sensor in room B"),
            ("2025-11-29T10:00:00.123Z failed", "TZ failed"),
            ("  two\n\tlines  ", "two lines"),
            ("facade decade", "facade decade"),
            ("", ""),
        ] {
            assert_eq!(out(text), left, "{text}");
        }
    }

    #[test]
    fn the_first_own_frame_is_found_in_the_traces_of_many_languages() {
        let rust = "   0: std::backtrace::Backtrace::create\n             at /rustc/abc/library/std/src/backtrace.rs:331:13\n\
                    \x20  1: anyhow::error::<impl anyhow::Error>::msg\n             at /root/.cargo/registry/src/x/anyhow/src/error.rs:1:1\n\
                    \x20  2: <alloc::boxed::Box<F> as core::ops::FnOnce>::call\n   3: reqwest::send\n             at /root/.cargo/registry/src/x/reqwest/src/lib.rs:5:1\n\
                    \x20  4: shop::orders::pay::{{closure}}\n             at ./src/orders.rs:12:5\n   5: shop::main\n";
        let python = "Traceback (most recent call last):\n  File \"/app/run.py\", line 3, in <module>\n    go()\n\
                      \x20 File \"/app/orders.py\", line 12, in pay\n    json.loads(x)\n\
                      \x20 File \"/usr/lib/python3.11/json/__init__.py\", line 346, in loads\n    raise\nValueError: x";
        let node = "Error: no stock\n    at new Promise (<anonymous>)\n    at checkServerIdentity (node:tls:341:12)\n\
                    \x20   at async Object.pay (/app/orders.js:12:5)\n    at main (/app/index.js:3:1)";
        let java = "java.lang.IllegalStateException: no stock\n\tat java.base/java.util.Objects.requireNonNull(Objects.java:233)\n\
                    \tat shop.Orders.pay(Orders.java:12)\n\tat shop.Main.main(Main.java:3)";
        let go = "goroutine 1 [running]:\npanic({0x1, 0x2})\n\t/usr/local/go/src/runtime/panic.go:884 +0x212\n\
                  shop.pay(0xc000)\n\t/app/orders.go:12 +0x1d\n";
        for (stack, found) in [
            (rust, Some("4: shop::orders::pay::{{closure}}")),
            (python, Some("File \"/app/orders.py\", line 12, in pay")),
            (node, Some("at async Object.pay (/app/orders.js:12:5)")),
            (java, Some("at shop.Orders.pay(Orders.java:12)")),
            (go, Some("/app/orders.go:12 +0x1d")),
            ("src/orders.rs:12:5", Some("src/orders.rs:12:5")),
            ("   0: core::panicking::panic\n   1: std::rt::lang_start\n", None),
            ("Error: connect 10.0.0.7:5432, db.internal:80\nsomewhere", None),
            ("", None),
        ] {
            assert_eq!(own_frame(stack), found, "{stack}");
        }
        assert_eq!(frame_text("4: shop::orders::pay::h0123456789abcdef"), "shop::orders::pay::");
        assert_eq!(frame_text("at async pay (/app/orders.js:12:5)"), "pay (/app/orders.js:)");
    }

    #[test]
    fn a_fingerprint_is_of_handler_error_and_frame() {
        let all = of("shop:pay", "no stock of \"tea\" for order 7", "src/orders.rs:12:5");
        assert!(is_one(&all) && !is_one("x") && !is_one(&all.to_uppercase().replace(char::is_numeric, "A")));
        assert_eq!(of("shop:pay", "no stock of \"coffee\" for order 12", "src/orders.rs:14:9"), all);
        for other in [
            of("shop:send", "no stock of \"tea\" for order 7", "src/orders.rs:12:5"),
            of("shop:pay", "no money of \"tea\" for order 7", "src/orders.rs:12:5"),
            of("shop:pay", "no stock of \"tea\" for order 7", "src/stock.rs:12:5"),
            of("shop:pay", "no stock of \"tea\" for order 7", ""),
        ] {
            assert_ne!(other, all);
        }
        assert_ne!(of("a", "b", ""), of("ab", "", ""));
    }

    proptest! {
        #[test]
        fn any_text_has_one_whatever_it_is(handler in ".{0,20}", error in "\\PC{0,300}", stack in "(\\PC{0,60}\n){0,8}") {
            prop_assert!(is_one(&of(&handler, &error, &stack)));
        }

        #[test]
        fn no_digit_is_left_and_what_is_plain_stays_so(text in "\\PC{0,200}") {
            let left = out(&text);
            prop_assert!(!left.contains(char::is_numeric), "{left:?}");
            prop_assert!(left.len() <= text.len());
        }

        #[test]
        fn numbers_ids_and_quoted_parts_are_all_the_same(
            one in any::<u32>(), other in any::<u32>(), ids in any::<(u128, u128)>(), names in ("[a-z .]{0,9}", "[a-z .]{0,9}")
        ) {
            let text = |n: u32, id: u128, name: &str| {
                format!("order {n} of {} was refused by \"{name}\" in {n}.5 ms", uuid::Uuid::from_u128(id))
            };
            prop_assert_eq!(
                of("a:b", &text(one, ids.0, &names.0), ""),
                of("a:b", &text(other, ids.1, &names.1), "")
            );
        }

        #[test]
        fn what_lies_beyond_the_bounds_changes_nothing(tail in "[a-z]{1,40}") {
            let long = "word ".repeat(1_000);
            prop_assert_eq!(of("a:b", &long, ""), of("a:b", &format!("{long}{tail}"), ""));
        }
    }
}
