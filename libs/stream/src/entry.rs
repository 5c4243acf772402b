//! The form of a stream entry: one field `e` holding JSON with short names and a version, so that it can be read in
//! `redis-cli`, and so that old and new binaries read each other's. A field may be added (readers ignore what they do not
//! know); a change of meaning raises the version, and an entry of a newer version is set aside, never guessed at.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use carillon_core::limits::PAYLOAD_BYTES_IN_ENTRY;
use carillon_core::retry::{Growth, Policy};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The newest form that this program writes and reads.
pub const VERSION: u8 = 1;

/// The field of the stream entry.
pub const FIELD: &str = "e";

/// An encoded entry is no larger: a payload of [`PAYLOAD_BYTES_IN_ENTRY`], a handler's name, and numbers.
pub const ENTRY_BYTES_MAX: usize = 8 * 1024;

/// The form of 55 characters, and room for a later one.
const TRACEPARENT_BYTES_MAX: usize = 256;

/// All that the ordinary case needs to run one attempt of one execution.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Form of the entry.
    #[serde(rename = "v")]
    pub version: u8,
    /// The execution.
    #[serde(rename = "x")]
    pub execution: Uuid,
    /// R0: number of the batch that claimed this attempt.
    #[serde(rename = "c")]
    pub claim: i64,
    /// Which attempt, from 1.
    #[serde(rename = "a")]
    pub attempt: u32,
    /// R6: published again by reconcile, so to be checked before it starts.
    #[serde(rename = "again", default, skip_serializing_if = "is_false")]
    pub again: bool,
    /// The job.
    #[serde(rename = "j")]
    pub job: Uuid,
    /// Revision of the job that this was claimed under.
    #[serde(rename = "r")]
    pub revision: i64,
    /// Name of the handler.
    #[serde(rename = "h")]
    pub handler: String,
    /// The scheduled instant of the fire.
    #[serde(rename = "s", with = "chrono::serde::ts_milliseconds")]
    pub scheduled_at: DateTime<Utc>,
    /// R23: not to be started before this instant of the database's clock: the scheduled one, or that of the retry.
    #[serde(rename = "n", with = "chrono::serde::ts_milliseconds")]
    pub not_before: DateTime<Utc>,
    /// Milliseconds that the attempt may take.
    #[serde(rename = "t")]
    pub timeout_ms: u32,
    /// Retries after the first attempt.
    #[serde(rename = "m")]
    pub max_retries: u32,
    /// Milliseconds before the first retry.
    #[serde(rename = "d")]
    pub retry_delay_ms: u32,
    /// How that grows with each further one.
    #[serde(rename = "g", default, skip_serializing_if = "Growth::is_usual")]
    pub retry_growth: Growth,
    /// The job has no instant after this one: whoever finishes it looks whether the job is complete.
    #[serde(rename = "l", default, skip_serializing_if = "is_false")]
    pub last: bool,
    /// The payload; absent when it is larger than what an entry carries, then it is fetched from Postgres.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// W3C trace context of whoever asked for it.
    #[serde(rename = "tp", default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// An entry that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableEntry {
    /// Written by a newer version: set aside for whoever can read it.
    #[error("written in form {0}, this program reads up to {VERSION}")]
    Newer(u8),
    /// Not an entry of ours.
    #[error("not an entry: {0}")]
    Malformed(String),
}

impl Entry {
    /// When retries follow.
    pub const fn retry(&self) -> Policy {
        Policy { delay_ms: self.retry_delay_ms, growth: self.retry_growth }
    }

    /// As it stands in the stream. What an entry does not carry is left out of it: a payload that is too large, which whoever
    /// runs it fetches from Postgres, and a trace context of no W3C form.
    ///
    /// # Errors
    /// Never for values of this type; the serializer's signature asks for it.
    pub fn encode(&self) -> Result<Bytes, serde_json::Error> {
        let is_large = |payload: &RawValue| payload.get().len() > PAYLOAD_BYTES_IN_ENTRY;
        let has_long = |text: &String| text.len() > TRACEPARENT_BYTES_MAX;
        if self.payload.as_deref().is_some_and(is_large) || self.traceparent.as_ref().is_some_and(has_long) {
            let payload = self.payload.clone().filter(|payload| !is_large(payload));
            let traceparent = self.traceparent.clone().filter(|text| !has_long(text));
            return serde_json::to_vec(&Self { payload, traceparent, ..self.clone() }).map(Bytes::from);
        }
        serde_json::to_vec(self).map(Bytes::from)
    }

    /// Reads what [`Entry::encode`] wrote, here or in another version of this program.
    ///
    /// # Errors
    /// [`UnreadableEntry`] if it is of a newer form, or none of ours.
    pub fn decode(text: &[u8]) -> Result<Self, UnreadableEntry> {
        #[derive(Deserialize)]
        struct Head {
            v: u8,
        }
        match serde_json::from_slice::<Self>(text) {
            Ok(entry) if entry.version <= VERSION => Ok(entry),
            Ok(entry) => Err(UnreadableEntry::Newer(entry.version)),
            Err(error) => match serde_json::from_slice::<Head>(text) {
                Ok(head) if head.v > VERSION => Err(UnreadableEntry::Newer(head.v)),
                _ => Err(UnreadableEntry::Malformed(error.to_string())),
            },
        }
    }
}

/// R1: the id of an entry is `number-seq`: the batch that published it and its place in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    /// Number of the batch.
    pub number: i64,
    /// Place in the batch, from 1.
    pub seq: i32,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, self.seq)
    }
}

impl FromStr for EntryId {
    type Err = UnreadableEntry;

    fn from_str(text: &str) -> Result<Self, UnreadableEntry> {
        let malformed = || UnreadableEntry::Malformed(format!("\"{text}\" is not an id of ours"));
        let (number, seq) = text.split_once('-').ok_or_else(malformed)?;
        Ok(Self { number: number.parse().map_err(|_| malformed())?, seq: seq.parse().map_err(|_| malformed())? })
    }
}

#[cfg(test)]
mod tests {
    use carillon_core::retry::Backoff;

    use super::*;

    fn entry() -> Entry {
        Entry {
            version: VERSION,
            execution: Uuid::from_u128(1),
            claim: 1_800_000_000_123,
            attempt: 2,
            again: false,
            job: Uuid::from_u128(2),
            revision: 3,
            handler: "health:check".into(),
            scheduled_at: DateTime::from_timestamp_millis(1_800_000_000_000).unwrap(),
            not_before: DateTime::from_timestamp_millis(1_800_000_060_000).unwrap(),
            timeout_ms: 300_000,
            max_retries: 3,
            retry_delay_ms: 60_000,
            retry_growth: Growth::default(),
            last: false,
            payload: Some(RawValue::from_string("{\"a\":[1,2.50]}".into()).unwrap()),
            traceparent: None,
        }
    }

    /// Golden: this text was written by version 1 and must be read, and written, for as long as `VERSION` is 1.
    const GOLDEN: &str = concat!(
        r#"{"v":1,"x":"00000000-0000-0000-0000-000000000001","c":1800000000123,"a":2,"#,
        r#""j":"00000000-0000-0000-0000-000000000002","r":3,"h":"health:check","s":1800000000000,"n":1800000060000,"#,
        r#""t":300000,"m":3,"d":60000,"p":{"a":[1,2.50]}}"#
    );

    #[test]
    fn the_form_is_fixed() {
        assert_eq!(entry().encode().unwrap(), GOLDEN);
        assert_eq!(Entry::decode(GOLDEN.as_bytes()).unwrap().encode().unwrap(), GOLDEN);
    }

    #[test]
    fn the_largest_entry_is_within_its_bound_and_what_is_too_large_stays_in_postgres() {
        use carillon_core::limits::NAME_CHARS_MAX;
        let text = |length: usize| Some(RawValue::from_string(format!("\"{}\"", "x".repeat(length - 2))).unwrap());
        let largest = Entry {
            claim: i64::MIN,
            attempt: u32::MAX,
            again: true,
            revision: i64::MIN,
            // Six characters each.
            handler: "\u{1}".repeat(NAME_CHARS_MAX),
            scheduled_at: DateTime::<Utc>::MIN_UTC,
            not_before: DateTime::<Utc>::MIN_UTC,
            timeout_ms: u32::MAX,
            max_retries: u32::MAX,
            retry_delay_ms: u32::MAX,
            retry_growth: Growth { backoff: Backoff::Exponential, cap_ms: u32::MAX, jitter_percent: u32::MAX },
            last: true,
            payload: text(PAYLOAD_BYTES_IN_ENTRY),
            traceparent: Some("\u{1}".repeat(TRACEPARENT_BYTES_MAX)),
            ..entry()
        };
        let encoded = largest.encode().unwrap();
        assert!(encoded.len() <= ENTRY_BYTES_MAX, "{}", encoded.len());
        assert!(Entry::decode(&encoded).unwrap().payload.is_some());
        let larger = Entry { payload: text(PAYLOAD_BYTES_IN_ENTRY + 1), traceparent: Some("0".repeat(257)), ..largest };
        let read = Entry::decode(&larger.encode().unwrap()).unwrap();
        assert!(read.payload.is_none() && read.traceparent.is_none() && read.handler == larger.handler);
    }

    #[test]
    fn how_retries_follow_travels_where_it_is_not_the_usual() {
        let retry_growth = Growth { backoff: Backoff::Linear, cap_ms: 70, jitter_percent: 0 };
        let text = Entry { retry_growth, ..entry() }.encode().unwrap();
        let golden = GOLDEN.replace(",\"p\"", r#","g":{"backoff":"LINEAR","cap_ms":70,"jitter_percent":0},"p""#);
        assert_eq!(text, golden);
        assert_eq!(Entry::decode(&text).unwrap().retry(), Policy { delay_ms: 60_000, growth: retry_growth });
        assert!(Entry::decode(GOLDEN.as_bytes()).unwrap().retry_growth.is_usual());
    }

    #[test]
    fn a_field_of_a_later_version_is_ignored() {
        let later = GOLDEN.replace("\"c\":", "\"colour\":\"red\",\"c\":");
        assert_eq!(Entry::decode(later.as_bytes()).unwrap().encode().unwrap(), GOLDEN);
    }

    #[test]
    fn a_newer_form_is_told_from_rubbish() {
        assert_eq!(Entry::decode(br#"{"v":2,"shape":"other"}"#).unwrap_err(), UnreadableEntry::Newer(2));
        assert!(matches!(Entry::decode(b"hello"), Err(UnreadableEntry::Malformed(_))));
    }

    #[test]
    fn an_id_reads_back() {
        let id = EntryId { number: 1_800_000_000_123, seq: 42 };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("7".parse::<EntryId>().is_err());
    }
}
