//! What tests need beside the code under test, without any service that is assumed to run:
//! - [`Database`]: a migrated database for one test, on one Postgres per test process;
//! - [`Postgres`]: a server of one's own, to stop, restart and mistreat; [`Redis`]: one's own anyway, it starts in 20 ms;
//! - [`Pooler`]: a PgBouncer before Postgres;
//! - [`Disk`]: one that can be filled;
//! - [`Proxy`]: a line that can be cut, silenced, slowed, healed and laid to another server;
//! - [`Cluster`]: the real binaries as processes, to kill, freeze, thaw and stop;
//! - [`wall_clock`]: clocks of their own for processes;
//! - [`wait_until`]: instead of a sleep; says what it saw last when it gives up;
//! - [`journal`] and [`history`]: what handlers did, and the judge over it: lost, doubled, overlapped, early, miscounted,
//!   left behind.
//!
//! It depends on neither `carillon-store` nor `carillon-stream`: it judges them, with statements of its own. All servers
//! and processes end with the test process, however that ends (see `carillon-servers`).

#![warn(missing_docs)]

mod cluster;
mod disk;
pub mod history;
pub mod journal;
mod pooler;
mod postgres;
mod proxy;
mod redis;
mod resp;
mod wait;
pub mod wall_clock;

pub use carillon_servers::{Home, StopMode, free_port};
pub use cluster::{Cluster, ClusterOptions, Node, Role};
pub use disk::Disk;
pub use pooler::{PoolMode, Pooler};
pub use postgres::{Database, Postgres};
pub use proxy::{Proxy, Towards};
pub use redis::Redis;
pub use resp::{Reply, RespClient};
pub use wait::wait_until;
