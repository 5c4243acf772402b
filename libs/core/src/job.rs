//! The words of a job's definition, each with its one spelling.

use std::fmt;
use std::str::FromStr;

/// A word that is not one of the allowed ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {allowed}, is \"{found}\"")]
pub struct UnknownWord {
    /// What was found.
    pub found: String,
    /// The allowed words, separated by commas.
    pub allowed: String,
}

/// Declares an enum whose values are spelled the same in SQL, JSON and logs.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// Its one spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            /// Case is ignored: clients of the first system write lower case.
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                $(if text.eq_ignore_ascii_case($text) { return Ok($name::$variant); })+
                Err(UnknownWord { found: text.to_owned(), allowed: [$($text),+].join(", ") })
            }
        }
    };
}
pub(crate) use words;

words! {
    /// What makes a job fire.
    JobType {
        /// A cron expression in a time zone.
        Cron = "CRON",
        /// One instant.
        OneTime = "ONE_TIME",
        /// A fixed interval in real elapsed time.
        Recurring = "RECURRING",
        /// Only an event, a dependency or a hand.
        Event = "EVENT",
    }
}

words! {
    /// Whether a job fires.
    JobStatus {
        /// It does.
        Active = "ACTIVE",
        /// Not until it is resumed.
        Paused = "PAUSED",
        /// Its timetable has ended and nothing of it is open.
        Completed = "COMPLETED",
        /// It was deleted; its record stays.
        Cancelled = "CANCELLED",
    }
}

words! {
    /// Where a handler runs.
    HandlerType {
        /// In the executor.
        Function = "FUNCTION",
        /// In a worker process connected over gRPC.
        Agent = "AGENT",
        /// A graph of steps.
        Workflow = "WORKFLOW",
        /// A signed call to a URL.
        Http = "HTTP",
    }
}

words! {
    /// Which of several due fires goes first.
    Priority {
        /// Last, but never starved.
        Low = "LOW",
        /// The default.
        Medium = "MEDIUM",
        /// Before the default.
        High = "HIGH",
        /// First.
        Critical = "CRITICAL",
    }
}

impl Priority {
    /// As Postgres keeps it: 0 (LOW) to 3 (CRITICAL), so that it sorts.
    pub const fn rank(self) -> i16 {
        self as i16
    }

    /// The inverse of [`Priority::rank`]; ranks outside 0..=3 are taken as the nearest.
    pub fn from_rank(rank: i16) -> Self {
        match rank {
            i16::MIN..=0 => Self::Low,
            1 => Self::Medium,
            2 => Self::High,
            3..=i16::MAX => Self::Critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reads_back_in_any_case() {
        for word in JobType::ALL {
            assert_eq!(word.as_str().to_lowercase().parse(), Ok(*word));
        }
        let error = "weekly".parse::<JobType>().unwrap_err();
        assert_eq!(error.to_string(), "must be one of CRON, ONE_TIME, RECURRING, EVENT, is \"weekly\"");
    }

    #[test]
    fn a_rank_reads_back() {
        for priority in Priority::ALL {
            assert_eq!(Priority::from_rank(priority.rank()), *priority);
        }
    }
}
