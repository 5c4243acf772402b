//! A leader in this process, on a Postgres and a Redis of its own and without executors: what it publishes, and when.

mod bench;
mod bounded;
#[path = "../common/mod.rs"]
mod common;
mod locked;
mod misplaced;
mod poison;
mod republish;
