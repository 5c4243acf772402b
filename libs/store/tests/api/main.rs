//! The API's statements against a real Postgres: creating, reading, changing and triggering jobs, reading executions.

mod bench;
mod changes;
mod create;
mod read;
mod trigger;
