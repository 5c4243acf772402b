//! Redis: every key, script, channel and stream entry of Carillon, and the only crate that knows the client library.
//!
//! [`leader`] is what a dispatcher says (announce, certify, publish, ask what is held), [`reader`] and [`claims`] what an
//! executor says (read, acknowledge, renew, take over), [`notices`] the pub/sub hints between the services. All scripts are
//! in `scripts.rs`, all names in [`keys`], the form of an entry in [`entry`].
//!
//! Whatever is asked goes through [`connection`], and has an end there: a Redis that is silent costs seconds, not for ever.
//!
//! Redis is transport: it may forget everything at any moment, and nothing in here is trusted beyond what the certificate
//! of PROTOCOL.md (R3, R4) says. The crate decides nothing about executions; it knows no SQL and no wire format.

pub mod claims;
pub mod client;
pub mod connection;
pub mod displaced;
pub mod entry;
pub mod error;
pub mod keys;
pub mod leader;
mod look;
pub mod notices;
pub mod reader;
mod reply;
mod scripts;
pub mod streams;
pub mod withdraw;

pub use client::{Redis, RedisOptions};
pub use entry::{Entry, EntryId};
pub use error::{Error, Result};
