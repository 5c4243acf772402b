//! Private Postgres and Redis servers on this machine, for the two that need them: `carillon dev` and the testkit.
//! Found, initialised, started on a free port, stopped, and gone for sure when their owner is, however it died.
//!
//! A [`Home`] is a directory that holds all of it: data, logs, and a file per running process. Beside the owner runs a
//! watcher, a shell that waits for the end of its standard input; when the owner dies, even by kill -9, the pipe closes and
//! the watcher ends what the owner had started. Why not `PR_SET_PDEATHSIG`: it follows the *thread* that started the child,
//! is lost on a change of user, and macOS has none.

#![warn(missing_docs)]

mod home;
mod owner;
mod ports;
mod postgres;
mod process;
mod programs;
mod redis;

pub use home::{Home, InUse};
pub use owner::Owner;
pub use ports::free_port;
pub use postgres::{PostgresServer, StopMode, USER};
pub use process::Process;
pub use programs::{PostgresPrograms, find_pgbouncer, find_postgres, find_redis};
pub use redis::RedisServer;
