//! The streams of a shard: which there are, and the leaving of those that nobody needs. A queue's name that was used once would
//! else keep four streams, and their labels, for ever. A stream that has left is made again by R6 with the next batch, or by R22
//! when an executor asks for it.

use std::collections::BTreeSet;
use std::time::Duration;

use carillon_core::line::Line;
use fred::prelude::Value;
use fred::types::{ClusterHash, CustomCommand};

use crate::scripts::RETIRE;
use crate::{Error, Redis, Result, reply};

/// An executor lists its own pending entries of each stream that it serves several times a lease (R8): whoever has not for this
/// long serves it no more, or has been full for as long, and makes the stream again when it next reads (R22).
pub const UNSERVED_AFTER: Duration = Duration::from_secs(60 * 60);

/// Names that one command brings.
const PAGE: &str = "1000";

/// What became of a stream that was to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// It is gone, and its name with it.
    Gone,
    /// It holds something, or did lately.
    Used,
    /// Somebody reads it.
    Served,
    /// This Redis carries no certificate that fits it.
    Uncertified,
    /// Another leader announced a later term.
    Stale,
    /// This leader has not announced its term to this Redis.
    Unannounced,
}

impl Redis {
    /// The lines of all streams that were created and have not left, in no order that means anything.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn known_lines(&self) -> Result<BTreeSet<Line>> {
        let mut lines = BTreeSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let args: Vec<Value> = vec![self.keys.streams().into(), cursor.into(), "COUNT".into(), PAGE.into()];
            let command = CustomCommand::new_static("SSCAN", ClusterHash::FirstKey, false);
            let mut answer =
                reply::array(self.connection.custom(command, self.keys.streams(), args).await?)?.into_iter();
            cursor = reply::text(&reply::next(&mut answer)?)?;
            for name in reply::array(reply::next(&mut answer)?)? {
                lines.extend(self.keys.line(&reply::text(&name)?));
            }
            if cursor == "0" {
                return Ok(lines);
            }
        }
    }

    /// Lets the stream of `line` leave if it is empty, nothing was appended to it from the number `older_than` on (numbers are
    /// milliseconds, R1), and nobody has read it for [`UNSERVED_AFTER`].
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may have left.
    pub async fn retire(&self, line: &Line, term: i64, older_than: i64) -> Result<Retired> {
        let keys = vec![self.keys.ctl(), self.keys.streams(), self.keys.stream(line)];
        let unserved = UNSERVED_AFTER.as_millis().to_string();
        let args = vec![term.to_string().into(), older_than.to_string().into(), unserved.into()];
        match reply::text(&self.connection.run(&RETIRE, keys, args).await?)?.as_str() {
            "GONE" => Ok(Retired::Gone),
            "USED" => Ok(Retired::Used),
            "SERVED" => Ok(Retired::Served),
            "UNCERTIFIED" => Ok(Retired::Uncertified),
            "STALE" => Ok(Retired::Stale),
            "UNANNOUNCED" => Ok(Retired::Unannounced),
            other => Err(Error::Unexpected(format!("retire answered {other}"))),
        }
    }
}
