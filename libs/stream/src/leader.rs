//! What the leader says to Redis: that it leads (R3), that this Redis may be trusted (R4), what is to run (R6), and which
//! entries it asks after (R19).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use carillon_core::line::Line;
use fred::prelude::Value;
use tracing::error;

use crate::entry::EntryId;
use crate::scripts::{ANNOUNCE, CERTIFY, MISSING, PASS_OVER, PUBLISH, STATE};
use crate::{Error, Redis, Result, reply};

/// Entries of one batch. One script appends them, in about 5 µs each, and nothing else runs in Redis meanwhile.
pub const PUBLISH_ENTRIES_MAX: usize = 5_000;
/// Bytes of the entries of one batch: that many go through a slow line (30 Mbit/s) within the time of one command, and are far from
/// what Redis takes in one (512 MiB an argument, 1 GiB in all).
pub const PUBLISH_BYTES_MAX: usize = 8 << 20;

/// Entries, or streams, that one script is asked about: some milliseconds, during which nothing else runs in Redis.
const ASKED_MAX: usize = 1_000;

/// R3: what Redis answers to a leader that announces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announced {
    /// Another leader announced a later term.
    Stale,
    /// This Redis carries a certificate that fits it.
    Certified(Standing),
    /// It does not (or the caller asked): the challenge is set, a certificate has to answer it.
    Challenged(Standing),
}

/// What Redis remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Number of the last batch appended.
    pub last: i64,
    /// Entries up to this number are doubtful.
    pub doubt: i64,
    /// The last certificate whose whole pass (R19) is over: below `doubt` it is still to be done.
    pub passed: i64,
    /// Replication id of the server that answered.
    pub replid: String,
}

/// R4: what becomes of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certified {
    /// Written.
    Done,
    /// Another leader announced a later term.
    Stale,
    /// Another server, or another challenge: announce again.
    Refused,
    /// The number is not greater than what the streams hold: draw one above this.
    Low(i64),
}

/// R6: what becomes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// Appended; the lengths of the touched streams, in the order of `lines`.
    Done(Vec<u64>),
    /// Appended before, or overtaken and never to be appended.
    Passed,
    /// This Redis carries no certificate that fits it.
    Uncertified,
    /// Another leader announced a later term.
    Stale,
    /// This leader has not announced its term to this Redis.
    Unannounced,
    /// A foreign entry with a greater id stands in a stream.
    Behind,
}

/// The one-second look of R3, and the lengths of the streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The certificate fits this server.
    pub certified: bool,
    /// The term that was announced last.
    pub term: i64,
    /// Number of the last batch appended.
    pub last: i64,
    /// Entries in each stream, in the order of the lines asked for.
    pub lengths: Vec<u64>,
}

/// One entry of a batch to be published.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Index of its line in the `lines` of the call.
    pub line: usize,
    /// Its place in the batch.
    pub seq: i32,
    /// The entry, encoded; cheap to clone, since a batch may be sent more than once.
    pub text: Bytes,
}

impl Redis {
    /// R3. `challenge` is a fresh random value; `force` asks to be challenged although certified.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn announce(&self, term: i64, challenge: &str, force: bool) -> Result<Announced> {
        let args = vec![term.to_string().into(), challenge.into(), if force { "1" } else { "0" }.into()];
        let mut answer = reply::array(self.connection.run(&ANNOUNCE, vec![self.keys.ctl()], args).await?)?.into_iter();
        let verdict = reply::text(&reply::next(&mut answer)?)?;
        if verdict == "STALE" {
            return Ok(Announced::Stale);
        }
        let standing = Standing {
            last: reply::integer(&reply::next(&mut answer)?)?,
            doubt: reply::integer(&reply::next(&mut answer)?)?,
            passed: reply::integer(&reply::next(&mut answer)?)?,
            replid: reply::text(&reply::next(&mut answer)?)?,
        };
        match verdict.as_str() {
            "CERTIFIED" => Ok(Announced::Certified(standing)),
            "CHALLENGE" => Ok(Announced::Challenged(standing)),
            other => Err(Error::Unexpected(format!("announce answered {other}"))),
        }
    }

    /// R4. Creates the missing streams of `lines`, and the missing groups of all streams. Only this creates a group on a
    /// stream that exists.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn certify(
        &self,
        number: i64,
        term: i64,
        replid: &str,
        challenge: &str,
        lines: &[Line],
    ) -> Result<Certified> {
        let mut keys = vec![self.keys.ctl(), self.keys.streams()];
        keys.extend(lines.iter().map(|line| self.keys.stream(line)));
        let args = vec![number.to_string().into(), term.to_string().into(), replid.into(), challenge.into()];
        let mut answer = reply::array(self.connection.run(&CERTIFY, keys, args).await?)?.into_iter();
        match reply::text(&reply::next(&mut answer)?)?.as_str() {
            "OK" => {
                for key in answer {
                    let key = reply::text(&key)?;
                    error!(key, "what stood at the name of a stream was none of ours, and was moved aside");
                }
                Ok(Certified::Done)
            }
            "STALE" => Ok(Certified::Stale),
            "REFUSED" => Ok(Certified::Refused),
            "LOW" => Ok(Certified::Low(reply::integer(&reply::next(&mut answer)?)?)),
            other => Err(Error::Unexpected(format!("certify answered {other}"))),
        }
    }

    /// R19: notes that the whole pass after the certificate of `number` is over, so that the next leader need not make one.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it makes one more.
    pub async fn pass_is_over(&self, term: i64, number: i64) -> Result<()> {
        let args = vec![term.to_string().into(), number.to_string().into()];
        self.connection.run(&PASS_OVER, vec![self.keys.ctl()], args).await.map(drop)
    }

    /// R6. May be sent any number of times, by anyone, at any time.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may or may not have been appended, send it again. [`Error::OutOfMemory`]: it was not.
    /// [`Error::TooMuch`]: beyond [`PUBLISH_ENTRIES_MAX`] or [`PUBLISH_BYTES_MAX`]; it was not sent and never can be.
    pub async fn publish(&self, number: i64, term: i64, lines: &[Line], entries: &[Outgoing]) -> Result<Published> {
        let bytes = entries.iter().map(|entry| entry.text.len()).sum();
        within("entries of a batch", entries.len(), PUBLISH_ENTRIES_MAX)?;
        within("lines of a batch", lines.len(), PUBLISH_ENTRIES_MAX)?;
        within("bytes of a batch", bytes, PUBLISH_BYTES_MAX)?;
        let mut keys = vec![self.keys.ctl(), self.keys.streams()];
        keys.extend(lines.iter().map(|line| self.keys.stream(line)));
        let mut args: Vec<Value> = Vec::with_capacity(2 + 3 * entries.len());
        args.push(number.to_string().into());
        args.push(term.to_string().into());
        for entry in entries {
            args.push(Value::Integer(i64::try_from(entry.line + 1).unwrap_or(i64::MAX)));
            args.push(Value::Integer(i64::from(entry.seq)));
            args.push(Value::Bytes(entry.text.clone()));
        }
        let mut answer = reply::array(self.connection.run(&PUBLISH, keys, args).await?)?.into_iter();
        match reply::text(&reply::next(&mut answer)?)?.as_str() {
            "OK" => Ok(Published::Done(lengths(answer)?)),
            "PASSED" => Ok(Published::Passed),
            "UNCERTIFIED" => Ok(Published::Uncertified),
            "STALE" => Ok(Published::Stale),
            "UNANNOUNCED" => Ok(Published::Unannounced),
            "BEHIND" => Ok(Published::Behind),
            other => Err(Error::Unexpected(format!("publish answered {other}"))),
        }
    }

    /// Whether the certificate and the term are still this leader's, and how long the streams of `lines` are. Where those are
    /// many it is asked in parts, and what holds of all of them is answered.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn state(&self, lines: &[Line]) -> Result<State> {
        let (first, rest) = lines.split_at(lines.len().min(ASKED_MAX));
        let mut state = self.state_of(first).await?;
        for some in rest.chunks(ASKED_MAX) {
            let later = self.state_of(some).await?;
            state.certified &= later.certified && later.term == state.term;
            state.lengths.extend(later.lengths);
            (state.term, state.last) = (later.term, later.last);
        }
        Ok(state)
    }

    async fn state_of(&self, lines: &[Line]) -> Result<State> {
        let mut keys = vec![self.keys.ctl()];
        keys.extend(lines.iter().map(|line| self.keys.stream(line)));
        let mut answer = reply::array(self.connection.run(&STATE, keys, Vec::new()).await?)?.into_iter();
        let certified = reply::integer(&reply::next(&mut answer)?)? == 1;
        let term = reply::integer(&reply::next(&mut answer)?)?;
        let last = reply::integer(&reply::next(&mut answer)?)?;
        Ok(State { certified, term, last, lengths: lengths(answer)? })
    }

    /// R19: which of these entries the streams do not hold (their positions in `entries`). Asks for each very entry, for so many
    /// at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn missing(&self, lines: &[Line], entries: &[(usize, EntryId)]) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        for (part, some) in entries.chunks(ASKED_MAX).enumerate() {
            let touched: BTreeSet<usize> = some.iter().map(|(line, _)| *line).collect();
            let place: BTreeMap<usize, usize> = touched.iter().zip(1..).map(|(line, place)| (*line, place)).collect();
            let keys = touched.iter().filter_map(|line| lines.get(*line)).map(|line| self.keys.stream(line)).collect();
            let mut args: Vec<Value> = Vec::with_capacity(2 * some.len());
            for (line, id) in some {
                args.push(place[line].to_string().into());
                args.push(id.to_string().into());
            }
            for position in reply::array(self.connection.run(&MISSING, keys, args).await?)? {
                let position = usize::try_from(reply::integer(&position)?).unwrap_or(0);
                let before = position.checked_sub(1);
                let before = before.ok_or_else(|| Error::Unexpected("a position before the first".into()))?;
                missing.push(part * ASKED_MAX + before);
            }
        }
        Ok(missing)
    }
}

fn within(what: &'static str, asked: usize, max: usize) -> Result<()> {
    if asked > max { Err(Error::TooMuch { what, asked, max }) } else { Ok(()) }
}

fn lengths(answer: impl Iterator<Item = Value>) -> Result<Vec<u64>> {
    answer.map(|length| Ok(u64::try_from(reply::integer(&length)?).unwrap_or(0))).collect()
}
