//! The API's statements against a real Postgres: creating (one and many), reading, changing and triggering jobs, reading
//! executions, documents, names of queues, who may see what.

mod bench;
mod cancel;
mod changes;
mod create;
mod lists;
mod many;
mod open;
mod queues;
mod read;
mod scope;
mod trigger;
mod update;
mod values;
mod ways;
