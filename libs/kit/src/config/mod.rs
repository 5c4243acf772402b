//! Settings: documented defaults < `DATABASE_URL`, `REDIS_URL` < a TOML file < `RUST_LOG` < `CARILLON_*`.
//!
//! The embedded defaults are the catalogue: they hold every setting, so what is not in them is unknown, and the type of a
//! default says how a variable is read (a password of digits stays a text). The variable of `postgres.connections_max` is
//! `CARILLON_POSTGRES_CONNECTIONS_MAX`, looked up from the catalogue, so that a `_` inside a name needs no rule; `__` for
//! the dot is understood too. An empty variable counts as not set.
//!
//! All that is wrong is said at once, each with the setting and where its value came from. Nothing here opens a socket.

mod catalogue;
mod check;
mod load;
mod print;
mod types;

pub(crate) use catalogue::catalogue;
pub use check::{Checks, Problem, Problems};
pub use load::{Loaded, load};
pub use types::{
    AdminConfig, LogConfig, LogFormat, PostgresConfig, ProtocolConfig, RedisConfig, SecretUrl, ShellConfig,
    ShutdownConfig, duration,
};

use serde::de::DeserializeOwned;

/// Defaults of what every process has: `[log]`, `[admin]`, `[shutdown]`.
pub const SHELL: &str = include_str!("../../config/shell.toml");
/// Defaults of `[postgres]`, read into [`PostgresConfig`].
pub const POSTGRES: &str = include_str!("../../config/postgres.toml");
/// Defaults of `[redis]`, read into [`RedisConfig`].
pub const REDIS: &str = include_str!("../../config/redis.toml");

/// Where the command line finds the gateway.
pub const ADDRESS_VARIABLE: &str = "CARILLON_ADDRESS";
/// The certificates that it trusts.
pub const CA_VARIABLE: &str = "CARILLON_CA";
/// The platform that it asks for.
pub const PLATFORM_VARIABLE: &str = "CARILLON_PLATFORM";
/// All variables of the command line: whoever has set them for it starts services in the same shell, which pass over them.
pub(crate) const COMMAND_LINE: [&str; 3] = [ADDRESS_VARIABLE, CA_VARIABLE, PLATFORM_VARIABLE];

/// The variable that sets `setting`: `CARILLON_POSTGRES_URL` for `postgres.url`.
pub fn variable_of(setting: &str) -> String {
    catalogue::variable(setting)
}

/// The settings of a service, without `[log]`, `[admin]` and `[shutdown]`, which the shell keeps to itself.
pub trait Settings: DeserializeOwned {
    /// Checks values, and relations between them, that types cannot express. Report all that is wrong.
    fn check(&self, checks: &mut Checks);
}
