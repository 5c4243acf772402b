//! Every name in Redis. All keys of a shard share one hash tag, so that a script may touch them together on a cluster.

use carillon_core::job::Priority;
use carillon_core::line::Line;

/// The consumer group of every stream.
pub const GROUP: &str = "executors";

/// Ends the name to which what stands at a key of ours and is of another kind is moved; the script of R4 says it too.
const DISPLACED: &str = ":displaced";
const CTL: &str = ":ctl";
const STREAMS: &str = ":streams";
const CANCELLED: &str = ":cancelled";
/// Begins what follows the tag in a stream's name.
const STREAM: &str = ":v1:";

/// The names of one shard of one installation.
#[derive(Clone, Debug)]
pub struct Keys {
    tag: String,
}

impl Keys {
    /// `namespace` keeps installations that share a Redis apart.
    pub fn new(namespace: &str, shard: i16) -> Self {
        Self { tag: format!("{{{namespace}:{shard}}}") }
    }

    /// R0: hash {server, last, doubt, passed, certified_at, term, challenge}.
    pub fn ctl(&self) -> String {
        format!("{}{CTL}", self.tag)
    }

    /// The stream of a line. `v1` is the form of its entries.
    pub fn stream(&self, line: &Line) -> String {
        format!("{}{STREAM}{}:{}", self.tag, line.queue, line.priority)
    }

    /// The line of a stream's key; none if it is not one of ours.
    pub fn line(&self, stream: &str) -> Option<Line> {
        let name = stream.strip_prefix(&self.tag)?.strip_prefix(STREAM)?;
        let (queue, priority) = name.rsplit_once(':')?;
        let priority = Priority::ALL.iter().find(|known| known.to_string() == priority)?;
        Some(Line::new(queue, *priority))
    }

    /// Set of the keys of all streams of this shard, for R4: a certificate must be newer than all of them.
    pub fn streams(&self) -> String {
        format!("{}{STREAMS}", self.tag)
    }

    /// R17: set of the ids of executions whose cancel was requested and that may still be in a stream.
    pub fn cancelled(&self) -> String {
        format!("{}{CANCELLED}", self.tag)
    }

    /// Channel: something may be due earlier than the leader knows, or has to be looked at.
    pub fn wake_channel(&self) -> String {
        format!("{}:wake", self.tag)
    }

    /// Channel: ids of jobs that were paused, changed or deleted (R23).
    pub fn jobs_channel(&self) -> String {
        format!("{}:jobs", self.tag)
    }

    /// Channel: ids of executions whose cancel was requested (R17).
    pub fn cancel_channel(&self) -> String {
        format!("{}:cancel", self.tag)
    }

    /// Channel: an executor has ended (R18); the others take what it handed back.
    pub fn ended_channel(&self) -> String {
        format!("{}:ended", self.tag)
    }

    /// Channel: names of consumers that an entry was handed on to (R18a).
    pub fn handed_on_channel(&self) -> String {
        format!("{}:handed-on", self.tag)
    }
}

/// The hash tag of a key of ours, and what follows it; none if it is not one of ours.
fn parts(key: &str) -> Option<(&str, &str)> {
    key.find('}').map(|end| key.split_at(end + 1))
}

/// What a key of ours is, as TYPE says it.
pub(crate) fn kind(key: &str) -> Option<&'static str> {
    match parts(key)?.1 {
        CTL => Some("hash"),
        STREAMS | CANCELLED => Some("set"),
        rest => rest.starts_with(STREAM).then_some("stream"),
    }
}

/// The hash of the certificate beside a key of ours.
pub(crate) fn ctl_beside(key: &str) -> Option<String> {
    parts(key).map(|(tag, _)| format!("{tag}{CTL}"))
}

/// Where that goes which stands at a key of ours and is of another kind.
pub(crate) fn displaced(key: &str) -> String {
    format!("{key}{DISPLACED}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: old and new binaries must mean the same keys.
    #[test]
    fn names_are_fixed() {
        let keys = Keys::new("carillon", 0);
        assert_eq!(keys.ctl(), "{carillon:0}:ctl");
        assert_eq!(keys.stream(&Line::new("default", Priority::High)), "{carillon:0}:v1:default:HIGH");
    }

    #[test]
    fn each_key_says_what_it_is() {
        let keys = Keys::new("a:b", 3);
        let stream = keys.stream(&Line::new("x:ctl", Priority::High));
        let of = [(keys.ctl(), "hash"), (keys.streams(), "set"), (keys.cancelled(), "set"), (stream, "stream")];
        for (key, wanted) in of {
            assert_eq!(kind(&key), Some(wanted), "{key}");
            assert_eq!(ctl_beside(&key), Some(keys.ctl()), "{key}");
            assert_eq!(keys.line(&displaced(&key)), None, "{key}");
        }
        assert_eq!((kind("other"), ctl_beside("other")), (None, None));
        assert_eq!(kind(&keys.wake_channel()), None);
    }

    #[test]
    fn a_line_reads_back_from_its_stream() {
        let keys = Keys::new("carillon", 0);
        for line in Line::all_of(&["default", "a:b", "v1", ""]) {
            assert_eq!(keys.line(&keys.stream(&line)), Some(line));
        }
        for other in [keys.ctl(), keys.streams(), Keys::new("carillon", 1).stream(&Line::new("default", Priority::Low))]
        {
            assert_eq!(keys.line(&other), None);
        }
        assert_eq!(keys.line("{carillon:0}:v1:default:URGENT"), None);
    }
}
