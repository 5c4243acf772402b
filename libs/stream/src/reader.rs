//! R8: reading. One connection per reading loop; a read is never cancelled in mid-flight, since its reply would be lost
//! while the entries are already ours (they would be found again among our own pending entries, but late).

use std::time::Duration;

use bytes::Bytes;
use carillon_core::line::Line;
use carillon_core::read_plan::Plan;
use fred::interfaces::{ClientLike, StreamsInterface};
use fred::prelude::Value;
use fred::types::{ClusterHash, CustomCommand};
use uuid::Uuid;

use crate::connection::Connection;
use crate::entry::{EntryId, UnreadableEntry};
use crate::keys::GROUP;
pub use crate::look::Look;
use crate::scripts::{HANDED, LOOK, NOGROUP};
use crate::{Entry, Error, Redis, Result, look, reply};

/// Streams that one script looks after: some milliseconds, during which nothing else runs in Redis.
const CREATED_MAX: usize = 1_000;

/// One entry as it was read.
#[derive(Debug)]
pub struct Received {
    /// Index of its line in the reader's lines.
    pub line: usize,
    /// Its id in the stream.
    pub id: EntryId,
    /// What it says.
    pub entry: Entry,
}

/// An entry that this program cannot read: it is left pending, reported and not spun on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Index of its line in the reader's lines.
    pub line: usize,
    /// Its id, as text: it may not be one of ours.
    pub id: String,
    /// Why it cannot be read.
    pub why: UnreadableEntry,
}

/// What one read brought.
#[derive(Debug, Default)]
pub struct Read {
    /// The entries, by line in the order asked for.
    pub entries: Vec<Received>,
    /// What could not be read.
    pub set_aside: Vec<SetAside>,
    /// How many entries each line gave, readable or not.
    pub counts: Vec<usize>,
    /// The last id that was seen and is one of ours, readable or not: where a listing goes on.
    pub last: Option<EntryId>,
    /// What Redis says of itself, read behind the entries in the same pipeline; what it says of cancels holds with it (R8a).
    pub look: Look,
}

/// A reading loop's connection.
#[derive(Debug)]
pub struct Reader {
    redis: Redis,
    connection: Connection,
    consumer: String,
    streams: Vec<String>,
    block: Duration,
}

impl Reader {
    /// A reader of `lines` under the name `consumer`, which waits at most `block` for something to come.
    ///
    /// # Errors
    /// If the connection cannot be set up (an unreachable Redis is no error here).
    pub fn new(redis: &Redis, consumer: impl Into<String>, lines: &[Line], block: Duration) -> Result<Self> {
        Ok(Self {
            connection: redis.own_connection(block)?,
            streams: lines.iter().map(|line| redis.keys.stream(line)).collect(),
            redis: redis.clone(),
            consumer: consumer.into(),
            block,
        })
    }

    /// Reads new entries as `plan` says, and looks at Redis behind them. [`Plan::Watch`] takes none and does not look: its
    /// counts say which lines hold something.
    ///
    /// # Errors
    /// [`Error::NoGroup`]: call [`Reader::create_missing`]. [`Error::Unavailable`]: whatever the read took is among our own
    /// pending entries.
    pub async fn read(&self, plan: &Plan) -> Result<Read> {
        if *plan == Plan::Watch {
            return self.watch().await;
        }
        let mut answers = self.send(plan).await?;
        let behind = answers.pop();
        let mut read = Read { counts: vec![0; self.streams.len()], ..Read::default() };
        let mut failure = None;
        for answer in answers {
            match answer {
                Ok(streams) => self.collect(streams, &mut read)?,
                Err(error) => failure = Some(Error::from(error)),
            }
        }
        let failure = self.connection.displace_after(failure.map_or(Ok(()), Err), &self.streams).await.err();
        // What was read is ours, so it is returned even if another line's stream is missing; the next read says so again.
        if let Some(error) = failure
            && read.entries.is_empty()
        {
            return Err(error);
        }
        read.look = match behind {
            Some(Ok(answer)) => {
                look::complete(&self.connection, &self.redis, answer, &executions(&read.entries)).await?
            }
            _ => self.look(&read.entries).await?,
        };
        Ok(read)
    }

    /// The answers to the reads of one pipeline, in their order, and to the look behind them.
    async fn send(&self, plan: &Plan) -> Result<Vec<Result<Value, fred::error::Error>>> {
        let (reads, block) = self.reads(plan);
        // A read that waits does so before it is late.
        let limit = self.connection.limit() + block.map_or(Duration::ZERO, |_| self.block);
        let asked = reads.len();
        let answers = self.connection.ask_within(limit, |client| async move {
            let mut args: Vec<Value> = vec![LOOK.sha(&client).await?.into(), Value::Integer(2)];
            args.extend(self.redis.look_keys().into_iter().map(Value::from));
            let pipeline = client.pipeline();
            for (count, streams) in reads {
                let newest = vec![">"; streams.len()];
                let consumer = self.consumer.as_str();
                let _: Value = pipeline.xreadgroup(GROUP, consumer, Some(count), block, false, streams, newest).await?;
            }
            // The client has no EVALSHA for pipelines; the key to route by is the third argument.
            let evalsha = CustomCommand::new_static("EVALSHA", ClusterHash::Offset(2), false);
            let _: Value = pipeline.custom(evalsha, args).await?;
            Ok::<_, Error>(pipeline.try_all::<Value>().await)
        });
        let answers = answers.await?;
        if answers.len() != asked + 1 {
            // A pipeline that failed as a whole has one answer: why.
            let why = answers.into_iter().find_map(Result::err).map(Error::from);
            return Err(why.unwrap_or_else(|| Error::Unexpected("a pipeline has fewer answers than commands".into())));
        }
        Ok(answers)
    }

    /// What a plan asks the streams for, each with its COUNT, and how many milliseconds it waits.
    fn reads(&self, plan: &Plan) -> (Vec<(u64, Vec<&str>)>, Option<u64>) {
        match plan {
            Plan::Drain(shares) => {
                let asked = shares.iter().zip(&self.streams).filter(|(share, _)| **share > 0);
                (asked.map(|(share, stream)| (*share as u64, vec![stream.as_str()])).collect(), None)
            }
            Plan::Wait(each) => {
                let all = self.streams.iter().map(String::as_str).collect();
                (vec![(*each as u64, all)], Some(self.block_ms()))
            }
            Plan::Watch => (Vec::new(), None),
        }
    }

    fn block_ms(&self) -> u64 {
        u64::try_from(self.block.as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until a line holds something that nobody has read, and takes nothing.
    async fn watch(&self) -> Result<Read> {
        let handed = reply::array(self.connection.run(&HANDED, self.streams.clone(), Vec::new()).await?)?;
        let handed = handed.iter().map(reply::text).collect::<Result<Vec<String>>>()?;
        let limit = self.connection.limit() + self.block;
        let waiting = self.connection.ask_within(limit, |client| async move {
            client.xread::<Value, _, _>(Some(1), Some(self.block_ms()), self.streams.clone(), handed).await
        });
        let mut read = Read { counts: vec![0; self.streams.len()], ..Read::default() };
        if let Value::Array(streams) = waiting.await? {
            for stream in streams {
                let key = reply::text(&reply::next(&mut reply::array(stream)?.into_iter())?)?;
                if let Some(line) = self.line(&key) {
                    read.counts[line] = 1;
                }
            }
        }
        Ok(read)
    }

    fn line(&self, key: &str) -> Option<usize> {
        self.streams.iter().position(|known| known == key)
    }

    /// Looks at Redis by itself: for what is held, and for what did not come by a read.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn look(&self, entries: &[Received]) -> Result<Look> {
        look::look(&self.connection, &self.redis, &executions(entries)).await
    }

    /// Our own pending entries of one line, `count` of them behind `after`: at start, after a reconnect, and each lease/4.
    ///
    /// # Errors
    /// [`Error::NoGroup`], [`Error::Unavailable`].
    pub async fn own_pending(&self, line: usize, after: Option<EntryId>, count: usize) -> Result<Read> {
        let after = after.map_or_else(|| "0".to_owned(), |id| id.to_string());
        let (consumer, stream) = (self.consumer.as_str(), self.streams[line].as_str());
        let listing = self.connection.ask(|client| async move {
            client
                .xreadgroup::<Value, _, _, _, _>(GROUP, consumer, Some(count as u64), None, false, stream, after)
                .await
        });
        let answer = self.connection.displace_after(listing.await, &self.streams[line..=line]).await?;
        let mut read = Read { counts: vec![0; self.streams.len()], ..Read::default() };
        self.collect(answer, &mut read)?;
        Ok(read)
    }

    /// R22: creates the streams that are missing; where a group is missing on a stream that exists, takes the certificate
    /// away instead. Answers how many groups were missing.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn create_missing(&self) -> Result<i64> {
        let mut groups = 0;
        for some in self.streams.chunks(CREATED_MAX) {
            let mut keys = vec![self.redis.keys.ctl(), self.redis.keys.streams()];
            keys.extend(some.iter().cloned());
            groups += reply::integer(&self.connection.run(&NOGROUP, keys, Vec::new()).await?)?;
        }
        Ok(groups)
    }

    /// A receiver that hears of each new connection of this reader: what it held before must be looked at again (R8).
    pub fn reconnects(&self) -> tokio::sync::broadcast::Receiver<()> {
        self.connection.reconnects()
    }

    fn collect(&self, answer: Value, read: &mut Read) -> Result<()> {
        for stream in reply::array(answer)? {
            let mut stream = reply::array(stream)?.into_iter();
            let key = reply::text(&reply::next(&mut stream)?)?;
            let Some(line) = self.line(&key) else { continue };
            for item in reply::array(reply::next(&mut stream)?)? {
                read.counts[line] += 1;
                match parse_item(line, item)? {
                    Item::Entry(received) => {
                        read.last = Some(received.id);
                        read.entries.push(*received);
                    }
                    Item::SetAside(aside) => {
                        read.last = aside.id.parse().ok().or(read.last);
                        read.set_aside.push(aside);
                    }
                    Item::Deleted(id) => read.last = id.parse().ok().or(read.last),
                }
            }
        }
        Ok(())
    }
}

fn executions(entries: &[Received]) -> Vec<Uuid> {
    entries.iter().map(|received| received.entry.execution).collect()
}

pub(crate) enum Item {
    Entry(Box<Received>),
    SetAside(SetAside),
    /// Pending, but no longer in the stream.
    Deleted(String),
}

/// Takes `[id, [field, value, …]]` apart.
pub(crate) fn parse_item(line: usize, item: Value) -> Result<Item> {
    let mut item = reply::array(item)?.into_iter();
    let id = reply::text(&reply::next(&mut item)?)?;
    let fields = match reply::next(&mut item)? {
        Value::Null => return Ok(Item::Deleted(id)),
        fields => reply::array(fields)?,
    };
    let mut text: Option<Bytes> = None;
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        if reply::text(&name)? == crate::entry::FIELD {
            text = Some(reply::bytes(value)?);
        }
    }
    let read = match text {
        Some(text) => Entry::decode(&text),
        None => Err(UnreadableEntry::Malformed("it has no field e".into())),
    };
    match (id.parse::<EntryId>(), read) {
        (Ok(id), Ok(entry)) => Ok(Item::Entry(Box::new(Received { line, id, entry }))),
        (_, Err(why)) | (Err(why), _) => Ok(Item::SetAside(SetAside { line, id, why })),
    }
}
