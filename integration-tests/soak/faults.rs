//! What can be done to a system on one machine: the rows of the matrix in `docs/reliability.md`, each a [`Kind`].
//!
//! A seed draws kinds from a bag that holds each as often as its weight and is filled anew when it is empty, so that each comes
//! about as often as the others although their order is random.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use carillon_testkit::{Role, Towards};

use crate::random::Random;

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Leader,
    Standby,
    Executor,
    Gateway,
}

impl Who {
    pub(crate) const fn role(self) -> Role {
        match self {
            Self::Leader | Self::Standby => Role::Dispatcher,
            Self::Executor => Role::Executor,
            Self::Gateway => Role::Gateway,
        }
    }
}

/// Whose line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Postgres,
    Redis,
}

/// What is locked by a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Stats,
    Job,
    Execution,
    /// The day of now, as a whole.
    Day,
    /// Statistics and then executions of the same jobs, which is the other way round than a flush has it: deadlocks.
    Crosswise,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// kill -9, started again soon.
    Kill(Who),
    /// SIGSTOP for less than a lease.
    Freeze(Who),
    /// SIGSTOP for longer than a lease.
    FreezeLong(Who),
    /// SIGTERM, started again.
    Stop(Who),
    /// Every connection is reset, new ones too.
    Cut(Who, To),
    /// Bytes vanish.
    Swallow(Who, To, Towards),
    /// Bytes vanish both ways for longer than a lease.
    SwallowLong(Who, To),
    /// Both lines silent and killed: as a host that loses its power.
    HostLost(Who),
    /// 300 ms more each way.
    Delay(Who, To),
    /// Hundreds of connections that say nothing, or begin a request and do not end it.
    Hostile(Who),
    /// All executors and all dispatchers towards Redis.
    DelayAll,
    LeaderSessionEnded,
    SomeSessionsEnded,
    /// Each of all sessions some hundred times a second, whatever it does at that moment.
    StatementsCancelled,
    PostgresFastRestart,
    PostgresImmediateRestart,
    PostgresAway,
    PostgresFrozen,
    PostgresReadOnly,
    PostgresSlotsUsedUp,
    PostgresDiskFull,
    RedisKilled,
    RedisAway,
    RedisFrozen,
    RedisWiped,
    StreamDeleted,
    StreamReplaced,
    GroupDestroyed,
    RedisFull,
    RedisPaused,
    UnknownEntry,
    Locked(Lock),
    LongSnapshot,
}

/// Each with its weight.
pub(crate) fn kinds() -> impl Iterator<Item = (Kind, usize)> {
    KINDS.into_iter()
}

const KINDS: [(Kind, usize); 72] = [
    (Kind::Kill(Who::Leader), 3),
    (Kind::Kill(Who::Standby), 1),
    (Kind::Kill(Who::Executor), 4),
    (Kind::Kill(Who::Gateway), 2),
    (Kind::Freeze(Who::Leader), 2),
    (Kind::Freeze(Who::Standby), 1),
    (Kind::Freeze(Who::Executor), 3),
    (Kind::Freeze(Who::Gateway), 1),
    (Kind::FreezeLong(Who::Leader), 1),
    (Kind::FreezeLong(Who::Executor), 1),
    (Kind::FreezeLong(Who::Gateway), 1),
    (Kind::Stop(Who::Leader), 2),
    (Kind::Stop(Who::Standby), 1),
    (Kind::Stop(Who::Executor), 2),
    (Kind::Stop(Who::Gateway), 1),
    (Kind::Cut(Who::Leader, To::Postgres), 1),
    (Kind::Cut(Who::Leader, To::Redis), 1),
    (Kind::Cut(Who::Standby, To::Redis), 1),
    (Kind::Cut(Who::Executor, To::Postgres), 1),
    (Kind::Cut(Who::Executor, To::Redis), 1),
    (Kind::Cut(Who::Gateway, To::Postgres), 1),
    (Kind::Cut(Who::Gateway, To::Redis), 1),
    (Kind::Swallow(Who::Leader, To::Postgres, Towards::Both), 1),
    (Kind::Swallow(Who::Leader, To::Postgres, Towards::Server), 1),
    (Kind::Swallow(Who::Leader, To::Postgres, Towards::Client), 1),
    (Kind::Swallow(Who::Leader, To::Redis, Towards::Both), 1),
    (Kind::Swallow(Who::Leader, To::Redis, Towards::Server), 1),
    (Kind::Swallow(Who::Leader, To::Redis, Towards::Client), 1),
    (Kind::Swallow(Who::Executor, To::Postgres, Towards::Both), 1),
    (Kind::Swallow(Who::Executor, To::Postgres, Towards::Server), 1),
    (Kind::Swallow(Who::Executor, To::Postgres, Towards::Client), 1),
    (Kind::Swallow(Who::Executor, To::Redis, Towards::Both), 1),
    (Kind::Swallow(Who::Executor, To::Redis, Towards::Server), 1),
    (Kind::Swallow(Who::Executor, To::Redis, Towards::Client), 1),
    (Kind::Swallow(Who::Gateway, To::Postgres, Towards::Both), 1),
    (Kind::Swallow(Who::Gateway, To::Redis, Towards::Both), 1),
    (Kind::SwallowLong(Who::Leader, To::Postgres), 1),
    (Kind::SwallowLong(Who::Executor, To::Postgres), 1),
    (Kind::SwallowLong(Who::Executor, To::Redis), 1),
    (Kind::HostLost(Who::Leader), 1),
    (Kind::HostLost(Who::Executor), 2),
    (Kind::HostLost(Who::Gateway), 1),
    (Kind::Delay(Who::Leader, To::Postgres), 1),
    (Kind::Delay(Who::Executor, To::Postgres), 1),
    (Kind::DelayAll, 1),
    (Kind::LeaderSessionEnded, 2),
    (Kind::SomeSessionsEnded, 2),
    (Kind::StatementsCancelled, 1),
    (Kind::PostgresFastRestart, 1),
    (Kind::PostgresImmediateRestart, 2),
    (Kind::PostgresAway, 1),
    (Kind::PostgresFrozen, 1),
    (Kind::PostgresReadOnly, 1),
    (Kind::PostgresSlotsUsedUp, 1),
    (Kind::PostgresDiskFull, 1),
    (Kind::RedisKilled, 2),
    (Kind::RedisAway, 1),
    (Kind::RedisFrozen, 1),
    (Kind::RedisWiped, 2),
    (Kind::StreamDeleted, 2),
    (Kind::StreamReplaced, 1),
    (Kind::GroupDestroyed, 2),
    (Kind::RedisFull, 1),
    (Kind::RedisPaused, 1),
    (Kind::UnknownEntry, 1),
    (Kind::LongSnapshot, 1),
    (Kind::Locked(Lock::Stats), 1),
    (Kind::Locked(Lock::Job), 1),
    (Kind::Locked(Lock::Execution), 1),
    (Kind::Locked(Lock::Day), 1),
    (Kind::Locked(Lock::Crosswise), 1),
    (Kind::Hostile(Who::Gateway), 1),
];

/// A kind with what the seed says about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) lasts: Duration,
    /// Which of several targets.
    pub(crate) pick: usize,
}

impl Fault {
    /// The next one. How long it lasts fits its kind.
    pub(crate) fn draw(bag: &mut Bag, random: &mut Random) -> Self {
        let kind = bag.draw(random);
        let ms = match kind {
            Kind::Kill(_) | Kind::PostgresFastRestart | Kind::PostgresImmediateRestart | Kind::RedisKilled => {
                random.between(100, 3_000)
            }
            Kind::FreezeLong(_) | Kind::SwallowLong(..) => random.between(24_000, 28_000),
            Kind::PostgresAway => random.between(5_000, 20_000),
            Kind::RedisAway | Kind::LongSnapshot | Kind::HostLost(_) => random.between(4_000, 12_000),
            Kind::Locked(_) => random.between(2_000, 10_000),
            Kind::PostgresDiskFull | Kind::PostgresSlotsUsedUp | Kind::PostgresReadOnly | Kind::RedisFull => {
                random.between(2_000, 6_000)
            }
            _ => random.between(1_000, 8_000),
        };
        Self { kind, lasts: Duration::from_millis(ms), pick: random.index(1 << 20) }
    }
}

/// Kinds that are still to come.
#[derive(Debug)]
pub(crate) struct Bag {
    all: Vec<Kind>,
    left: Vec<Kind>,
}

impl Bag {
    /// All kinds, or some.
    pub(crate) fn new(only: &[Kind]) -> Self {
        let mut all = Vec::new();
        for (kind, weight) in kinds() {
            if only.is_empty() || only.contains(&kind) {
                all.extend(std::iter::repeat_n(kind, weight));
            }
        }
        Self { all, left: Vec::new() }
    }

    fn draw(&mut self, random: &mut Random) -> Kind {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
            random.shuffle(&mut self.left);
        }
        self.left.pop().unwrap_or(Kind::Kill(Who::Executor))
    }
}

impl fmt::Display for Kind {
    /// `swallow-executor-postgres-both`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut before_is_lower = false;
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_alphabetic() {
                if letter.is_ascii_uppercase() && before_is_lower {
                    text.push('-');
                }
                text.push(letter.to_ascii_lowercase());
                before_is_lower = true;
            } else if letter == '(' || letter == ',' {
                before_is_lower = true;
            }
        }
        f.write_str(&text)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = kinds().map(|(kind, _)| kind);
        all.find(|kind| kind.to_string() == text).ok_or_else(|| "no such fault: --list names them all".to_owned())
    }
}
