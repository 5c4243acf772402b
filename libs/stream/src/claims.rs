//! Whose an entry is: acknowledging (R12), renewing (R14), and taking over what another has left (R15).

use std::time::Duration;

use carillon_core::line::Line;
use fred::prelude::Value;
use fred::types::{ClusterHash, CustomCommand};

use crate::entry::EntryId;
use crate::keys::GROUP;
use crate::reader::{Item, Received, SetAside, parse_item};
use crate::scripts::{ACKNOWLEDGE, FORGET, RENEW};
use crate::{Redis, Result, reply};

/// R18a: the consumer whose pending entries are everybody's: a holder moves there what it has released, or cannot run and leaves
/// to a check, and each executor takes as much as it has room for. No executor has this name (theirs end in a boot id).
pub const RELEASED: &str = "released";

/// Lua unpacks at most some thousands of values at once.
const UNPACKED_MAX: usize = 1_000;

/// An entry that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its id.
    pub id: EntryId,
    /// Who read it last.
    pub consumer: String,
    /// Since that read or its last renewal.
    pub idle: Duration,
}

/// What a take-over brought.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The entries, now pending under the caller.
    pub entries: Vec<Received>,
    /// What could not be read.
    pub set_aside: Vec<SetAside>,
}

impl Redis {
    /// R12: acknowledges and deletes entries at once, so that no acknowledged entry stays behind (H10). Only for what is
    /// recorded or over.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`]: they stay pending, and are found over when they are looked at next.
    pub async fn acknowledge(&self, line: &Line, ids: &[EntryId]) -> Result<()> {
        for some in ids.chunks(UNPACKED_MAX) {
            let args = some.iter().map(|id| Value::from(id.to_string())).collect();
            self.connection.run(&ACKNOWLEDGE, vec![self.keys.stream(line)], args).await?;
        }
        Ok(())
    }

    /// R14: renews those of `ids` that are still pending under `consumer`. Saves work, is not for correctness.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn renew(&self, line: &Line, consumer: &str, ids: &[EntryId]) -> Result<i64> {
        let mut renewed = 0;
        for some in ids.chunks(UNPACKED_MAX) {
            let mut args: Vec<Value> = vec![consumer.into()];
            args.extend(some.iter().map(|id| Value::from(id.to_string())));
            renewed += reply::integer(&self.connection.run(&RENEW, vec![self.keys.stream(line)], args).await?)?;
        }
        Ok(renewed)
    }

    /// R15: entries of `line` that nobody renewed for `idle`, behind `after`, `count` at most.
    ///
    /// # Errors
    /// [`crate::Error::NoGroup`], [`crate::Error::Unavailable`].
    pub async fn pending_idle(
        &self,
        line: &Line,
        idle: Duration,
        after: Option<EntryId>,
        count: usize,
    ) -> Result<Vec<Pending>> {
        let idle = i64::try_from(idle.as_millis()).unwrap_or(i64::MAX);
        self.pending(line, vec!["IDLE".into(), Value::Integer(idle)], after, count, None).await
    }

    /// R15: entries of `line` that `consumer` holds, behind `after`, `count` at most.
    ///
    /// # Errors
    /// [`crate::Error::NoGroup`], [`crate::Error::Unavailable`].
    pub async fn pending_of(
        &self,
        line: &Line,
        consumer: &str,
        after: Option<EntryId>,
        count: usize,
    ) -> Result<Vec<Pending>> {
        self.pending(line, Vec::new(), after, count, Some(consumer)).await
    }

    /// R15: takes over those of `ids` that have been idle for `min_idle`. `line_index` is noted on what comes back.
    ///
    /// # Errors
    /// [`crate::Error::NoGroup`], [`crate::Error::Unavailable`].
    pub async fn claim(
        &self,
        line: &Line,
        line_index: usize,
        consumer: &str,
        min_idle: Duration,
        ids: &[EntryId],
    ) -> Result<Claimed> {
        if ids.is_empty() {
            return Ok(Claimed::default());
        }
        let min_idle = i64::try_from(min_idle.as_millis()).unwrap_or(i64::MAX);
        let mut args: Vec<Value> =
            vec![self.keys.stream(line).into(), GROUP.into(), consumer.into(), Value::Integer(min_idle)];
        args.extend(ids.iter().map(|id| Value::from(id.to_string())));
        let command = CustomCommand::new_static("XCLAIM", ClusterHash::FirstKey, false);
        let mut claimed = Claimed::default();
        for item in reply::array(self.connection.custom(command, self.keys.stream(line), args).await?)? {
            if matches!(item, Value::Null) {
                continue;
            }
            match parse_item(line_index, item)? {
                Item::Entry(received) => claimed.entries.push(*received),
                Item::SetAside(aside) => claimed.set_aside.push(aside),
                Item::Deleted(_) => {}
            }
        }
        Ok(claimed)
    }

    /// R18a: puts those of `ids` that somebody holds into the hands of `consumer`. It may come late, or twice: whose an execution
    /// is its row says.
    ///
    /// # Errors
    /// [`crate::Error::NoGroup`], [`crate::Error::Unavailable`].
    pub async fn hand_on(&self, line: &Line, consumer: &str, ids: &[EntryId]) -> Result<()> {
        for some in ids.chunks(UNPACKED_MAX) {
            let mut args: Vec<Value> =
                vec![self.keys.stream(line).into(), GROUP.into(), consumer.into(), Value::Integer(0)];
            args.extend(some.iter().map(|id| Value::from(id.to_string())));
            args.push("JUSTID".into());
            let command = CustomCommand::new_static("XCLAIM", ClusterHash::FirstKey, false);
            self.connection.custom(command, self.keys.stream(line), args).await?;
        }
        Ok(())
    }

    /// R15: the consumers that hold entries of `line`.
    ///
    /// # Errors
    /// [`crate::Error::NoGroup`], [`crate::Error::Unavailable`].
    pub async fn holders(&self, line: &Line) -> Result<Vec<String>> {
        let args: Vec<Value> = vec![self.keys.stream(line).into(), GROUP.into()];
        let command = CustomCommand::new_static("XPENDING", ClusterHash::FirstKey, false);
        // [count, first, last, [[consumer, count], …]]
        let summary = reply::array(self.connection.custom(command, self.keys.stream(line), args).await?)?;
        let Some(consumers) = summary.into_iter().nth(3) else { return Ok(Vec::new()) };
        let mut holders = Vec::new();
        for consumer in reply::array(consumers)? {
            holders.push(reply::text(&reply::next(&mut reply::array(consumer)?.into_iter())?)?);
        }
        Ok(holders)
    }

    /// All consumers known to the group of `line`.
    ///
    /// # Errors
    /// [`crate::Error::NoGroup`], [`crate::Error::Unavailable`].
    pub async fn consumers(&self, line: &Line) -> Result<Vec<String>> {
        let args: Vec<Value> = vec!["CONSUMERS".into(), self.keys.stream(line).into(), GROUP.into()];
        let command = CustomCommand::new_static("XINFO", ClusterHash::Offset(1), false);
        let mut consumers = Vec::new();
        for consumer in reply::array(self.connection.custom(command, self.keys.stream(line), args).await?)? {
            // [name, …, pending, …, idle, …]
            let fields = reply::array(consumer)?;
            if let Some(name) = fields.get(1) {
                consumers.push(reply::text(name)?);
            }
        }
        Ok(consumers)
    }

    /// Forgets `consumer` in the group of `line` if it holds nothing any more. Answers whether it is forgotten.
    ///
    /// # Errors
    /// [`crate::Error::NoGroup`], [`crate::Error::Unavailable`].
    pub async fn forget_consumer(&self, line: &Line, consumer: &str) -> Result<bool> {
        let answer = self.connection.run(&FORGET, vec![self.keys.stream(line)], vec![consumer.into()]).await?;
        Ok(reply::integer(&answer)? == 1)
    }

    async fn pending(
        &self,
        line: &Line,
        filter: Vec<Value>,
        after: Option<EntryId>,
        count: usize,
        consumer: Option<&str>,
    ) -> Result<Vec<Pending>> {
        let mut args: Vec<Value> = vec![self.keys.stream(line).into(), GROUP.into()];
        args.extend(filter);
        args.push(after.map_or_else(|| "-".to_owned(), |id| format!("({id}")).into());
        args.push("+".into());
        args.push(Value::Integer(i64::try_from(count).unwrap_or(i64::MAX)));
        args.extend(consumer.map(Value::from));
        let command = CustomCommand::new_static("XPENDING", ClusterHash::FirstKey, false);
        let mut pending = Vec::new();
        for item in reply::array(self.connection.custom(command, self.keys.stream(line), args).await?)? {
            let mut item = reply::array(item)?.into_iter();
            let id = reply::text(&reply::next(&mut item)?)?;
            let consumer = reply::text(&reply::next(&mut item)?)?;
            let idle = reply::integer(&reply::next(&mut item)?)?;
            // An id that is not ours was set aside by whoever read it.
            if let Ok(id) = id.parse() {
                pending.push(Pending { id, consumer, idle: Duration::from_millis(u64::try_from(idle).unwrap_or(0)) });
            }
        }
        Ok(pending)
    }
}
