//! Carillon end to end: the three real binaries on a Postgres and a Redis of their own, each run judged by the testkit's
//! history checker. One binary, so that it links once.
//!
//! - [`world`] is a cluster with what it runs on, and what the test did to it; [`api`] asks its gateway in JSON; [`load`] are
//!   the fires it works on.
//! - The others are the tests, one file a theme. What they inject and what must hold: `RELIABILITY.md`.
//!
//! Nothing here sleeps for a fixed time: tests wait for what they need to see, with a deadline whose message says what was
//! seen instead. The logs and the journal of a test that failed are kept under `target/tmp/it/<test>`.

mod api;
mod load;
mod world;
mod zones;

mod api_grpc;
mod api_job;
mod api_json;
mod api_lists;
mod api_many;
mod api_scope;
mod api_update;
mod bounds_leader;
mod cancelled_statements;
mod cancels;
mod clock_jumps;
mod deadly;
mod drain;
mod failover;
mod failpoints;
mod hostile;
mod locks;
mod long_handler;
mod lost_gateways;
mod lost_postgres;
mod lost_redis;
mod memory;
mod metadata;
mod much;
mod neighbours;
mod newer_entry;
mod pooler;
mod postgres_failover;
mod redis_away;
mod redis_full;
mod refusing_postgres;
mod retry;
mod schedule;
mod seeds;
mod slow_redis;
mod stalls;
mod stopping;
mod stops;
mod successions;
mod swallowed;
mod unrecorded;
mod updates;
mod values;
mod withdrawn;
