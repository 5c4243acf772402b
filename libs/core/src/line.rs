//! A line: the fires of one queue and one priority. Each line is a stream of its own in Redis and is claimed by itself,
//! so that a full or unserved one holds up no other.

use std::fmt;

use crate::job::Priority;

/// Queue and priority.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line {
    /// The queue's name.
    pub queue: String,
    /// The priority within it.
    pub priority: Priority,
}

impl Line {
    /// The line of `queue` and `priority`.
    pub fn new(queue: impl Into<String>, priority: Priority) -> Self {
        Self { queue: queue.into(), priority }
    }

    /// The lines of `queues`, CRITICAL ones first.
    pub fn all_of<Q: AsRef<str>>(queues: &[Q]) -> Vec<Self> {
        let by_priority = Priority::ALL.iter().rev();
        by_priority.flat_map(|priority| queues.iter().map(|queue| Self::new(queue.as_ref(), *priority))).collect()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.queue, self.priority)
    }
}
