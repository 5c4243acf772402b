//! The decisions of Carillon, as pure functions and plain types: when a job fires, what state follows which, who may
//! take what. Nothing in here knows a clock, a socket, a database or an async runtime: `now` is always an argument. One thing
//! is read from disk, in one file (`schedule/zone.rs`): time zone data, a table per zone that is then the same for as long
//! as the process lives.
//! The effects live in `carillon-store` (Postgres) and `carillon-stream` (Redis); the services put both together.

pub mod agenda;
pub mod error;
pub mod execution;
pub mod fingerprint;
pub mod gate;
pub mod ids;
pub mod job;
pub mod json;
pub mod limits;
pub mod line;
pub mod misfire;
pub mod read_plan;
pub mod retry;
pub mod schedule;
pub mod shard;
pub mod take;
pub mod trace;
