//! Postgres: every statement that Carillon runs stands in this crate. A function's full name says the resource first and then the
//! verb, and so does the constant that holds its text: [`jobs::create`] and `JOBS_INSERT`, [`Store::executions_take`] and
//! `EXECUTIONS_TAKE`.
//!
//! The API's side is functions: [`jobs`] and their [`revisions`], [`executions`], [`triggers`], [`cancels`]; each takes the
//! [`Scope`] of its caller. The data path's side is methods of what it must hold, a [`Store`] or a
//! [`LeaderSession`](leader_session::LeaderSession): [`leader_session`] (the advisory lock and all that may only be written under
//! it), [`recorder`] (finishing executions), [`ends`] (all other ends), [`takes`], [`withdrawals`], [`workers`]. Upkeep:
//! [`migrate`], [`partitions`], [`queues`], [`retention`], [`attention`], [`zones`].
//!
//! It knows the words of `carillon-core` and nothing of Redis, of the wire or of how a process is run. There is no trait
//! to stand in for it: the promises *are* Postgres semantics, and tests run against a real one.

pub mod attention;
mod bounded;
pub mod cancels;
pub mod claim;
pub mod clock;
mod columns;
pub mod days;
pub mod definitions;
mod document;
pub mod ends;
pub mod error;
pub mod executions;
mod history;
pub mod idempotency;
pub mod jobs;
pub mod leader_session;
pub mod migrate;
pub mod open_entries;
pub mod page;
pub mod partitions;
pub mod pool;
pub mod queues;
pub mod recent;
pub mod recorder;
pub mod retention;
pub mod revisions;
pub mod scan;
pub mod schema;
mod scope;
mod sorted;
pub mod takes;
pub mod triggers;
pub mod upcoming;
pub mod withdrawals;
pub mod workers;
pub mod zones;

pub use error::{Error, Result};
pub use pool::{Store, StoreOptions};
pub use schema::Schema;
pub use scope::Scope;
