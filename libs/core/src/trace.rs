//! W3C trace context: which trace an execution belongs to, and which span asked for it. Read at the edge, kept in parts (a
//! trace is looked up by its id), and put together again where it is handed on.

use std::fmt;
use std::str::FromStr;

/// A `traceparent`, in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: u128,
    parent_span: u64,
    /// Bit 0 = sampled.
    pub flags: u8,
}

/// Not a trace context: as good as none (the standard says to go on without).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C trace context")]
pub struct NotATrace;

impl TraceContext {
    /// Of a trace id (32 hex digits) and the id of the span that asks (16), as they are kept.
    ///
    /// # Errors
    /// [`NotATrace`] if one of them is not of that form, or all zeros.
    pub fn of_parts(trace_id: &str, parent_span_id: &str, flags: u8) -> Result<Self, NotATrace> {
        let trace = u128::from_str_radix(hex(trace_id, 32)?, 16).map_err(|_| NotATrace)?;
        let parent_span = u64::from_str_radix(hex(parent_span_id, 16)?, 16).map_err(|_| NotATrace)?;
        if trace == 0 || parent_span == 0 { Err(NotATrace) } else { Ok(Self { trace, parent_span, flags }) }
    }

    /// 32 hex digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// 16 hex digits.
    pub fn parent_span_id(&self) -> String {
        format!("{:016x}", self.parent_span)
    }
}

/// As the header `traceparent` has it, version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent_span, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = NotATrace;

    /// Of a later version the first four parts are read, as the standard asks.
    fn from_str(text: &str) -> Result<Self, NotATrace> {
        let mut parts = text.splitn(5, '-');
        let mut part = || parts.next().ok_or(NotATrace);
        let (version, trace, parent, flags) = (part()?, part()?, part()?, part()?);
        let more = parts.next().is_some();
        if hex(version, 2)? == "ff" || (version == "00" && more) {
            return Err(NotATrace);
        }
        let flags = u8::from_str_radix(hex(flags, 2)?, 16).map_err(|_| NotATrace)?;
        Self::of_parts(trace, parent, flags)
    }
}

/// Lower case only, as the standard asks.
fn hex(text: &str, length: usize) -> Result<&str, NotATrace> {
    let fits = text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if fits { Ok(text) } else { Err(NotATrace) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_parts_of_a_trace_context_are_read() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
        let trace: TraceContext = text.parse().unwrap();
        assert_eq!(trace.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((trace.parent_span_id().as_str(), trace.flags), ("00f067aa0ba902b7", 1));
        assert_eq!(trace.to_string(), text);
    }

    #[test]
    fn what_is_none_is_refused_and_a_later_version_is_read_as_far_as_it_is_known() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7");
        for wrong in [
            String::new(),
            "trace".to_owned(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-+{}-{span}-01", &trace[1..]),
            format!("00-{:032}-{span}-01", 0),
            format!("00-{trace}-{:016}-01", 0),
        ] {
            assert_eq!(wrong.parse::<TraceContext>(), Err(NotATrace), "{wrong}");
        }
        let later: TraceContext = format!("7a-{trace}-{span}-03-more").parse().unwrap();
        assert_eq!((later.trace_id().as_str(), later.flags), (trace, 3));
    }

    proptest! {
        #[test]
        fn a_trace_context_reads_back(trace in 1_u128.., parent_span in 1_u64.., flags: u8) {
            let context = TraceContext { trace, parent_span, flags };
            prop_assert_eq!(context.to_string().parse::<TraceContext>(), Ok(context));
            let parts = TraceContext::of_parts(&context.trace_id(), &context.parent_span_id(), flags);
            prop_assert_eq!(parts, Ok(context));
        }

        #[test]
        fn no_text_breaks_the_reader(text in ".{0,80}") {
            if let Ok(read) = text.parse::<TraceContext>() {
                prop_assert_eq!(&read.to_string()[3..], &text[3..55]);
            }
        }
    }
}
