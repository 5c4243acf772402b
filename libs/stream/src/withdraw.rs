//! R6a: taking an entry back that nobody has read. Only Redis knows whether one was read, so one script says it and deletes
//! the entry in the same step. Anyone may call it at any time; after a crash, or where the outcome is unknown, R19 finds the
//! entry missing and publishes it again.

use std::time::Duration;

use carillon_core::line::Line;
use fred::prelude::Value;

use crate::entry::{EntryId, VERSION};
use crate::scripts::{NOGROUP, WITHDRAW};
use crate::{Error, Redis, Result, reply};

/// Entries that one call may name.
pub const WITHDRAWN_MAX: usize = 1_000;

/// What became of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// Nobody has read it, nobody will: it is deleted.
    Unread,
    /// It stands in the stream unread and is left there, but it, or an elder, may have been read before Redis forgot: a W has to
    /// pass before anything follows from that.
    Doubtful,
    /// Somebody holds it.
    Pending {
        /// Who read it last.
        consumer: String,
        /// Since that read or its last renewal.
        idle: Duration,
    },
    /// The stream does not hold it.
    Gone,
    /// This Redis carries no certificate that fits it: it can say nothing.
    Uncertified,
}

impl Redis {
    /// [`Redis::withdraw_all`] of one entry.
    ///
    /// # Errors
    /// As there.
    pub async fn withdraw(&self, line: &Line, id: EntryId) -> Result<Withdrawn> {
        let mut answers = self.withdraw_all(line, &[id]).await?;
        answers.pop().ok_or_else(|| Error::Unexpected("withdraw answered nothing".into()))
    }

    /// R6a: takes back those of `ids` ([`WITHDRAWN_MAX`] at most) that nobody has read; says of each what became of it, in their
    /// order.
    ///
    /// # Errors
    /// [`Error::NoGroup`]: R22 was done, the leader is to be told ([`Redis::tell_lost`]). [`Error::TooMuch`]: nothing was done.
    /// [`Error::Unavailable`]: some may have been taken back.
    pub async fn withdraw_all(&self, line: &Line, ids: &[EntryId]) -> Result<Vec<Withdrawn>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        if ids.len() > WITHDRAWN_MAX {
            return Err(Error::TooMuch { what: "entries to withdraw", asked: ids.len(), max: WITHDRAWN_MAX });
        }
        let stream = self.keys.stream(line);
        let mut args: Vec<Value> = vec![Value::Integer(i64::from(VERSION))];
        args.extend(ids.iter().map(|id| Value::from(id.to_string())));
        let outcome = self.connection.run(&WITHDRAW, vec![self.keys.ctl(), stream.clone()], args).await;
        if let Err(Error::NoGroup(_)) = outcome {
            self.connection.run(&NOGROUP, vec![self.keys.ctl(), self.keys.streams(), stream], Vec::new()).await?;
        }
        let mut answer = reply::array(outcome?)?.into_iter();
        match reply::text(&reply::next(&mut answer)?)?.as_str() {
            "UNCERTIFIED" => Ok(vec![Withdrawn::Uncertified; ids.len()]),
            "ANSWERED" if answer.len() == ids.len() => answer.map(parse).collect(),
            other => Err(Error::Unexpected(format!("withdraw answered {other} of {} entries", answer.len()))),
        }
    }
}

fn parse(answer: Value) -> Result<Withdrawn> {
    if let Value::Array(held) = answer {
        let mut held = held.into_iter();
        let consumer = reply::text(&reply::next(&mut held)?)?;
        let idle = u64::try_from(reply::integer(&reply::next(&mut held)?)?).unwrap_or(0);
        return Ok(Withdrawn::Pending { consumer, idle: Duration::from_millis(idle) });
    }
    match reply::text(&answer)?.as_str() {
        "UNREAD" => Ok(Withdrawn::Unread),
        "DOUBTFUL" => Ok(Withdrawn::Doubtful),
        "GONE" => Ok(Withdrawn::Gone),
        other => Err(Error::Unexpected(format!("withdraw said {other} of an entry"))),
    }
}
