//! R22: what stands at the name of a key of ours and is of another kind, since a person or a program mistook the name. Every
//! command on that key is refused, under each leader and at each executor, until somebody takes it away; so whoever meets it moves
//! it aside, where it can be looked at, and says so. What stood there of ours is lost, as if it had been deleted: the certificate
//! goes with it, so that the leader certifies anew and finds what is missing (R4, R19).
//!
//! One name a key: what is moved aside twice replaces what was moved aside before, so that nothing piles up.

use fred::prelude::{Client, Value};
use tracing::error;

use crate::connection::Connection;
use crate::keys::{ctl_beside, displaced, kind};
use crate::scripts::DISPLACE;
use crate::{Error, Result, reply};

/// Keys that one script looks at: below a millisecond, during which nothing else runs in Redis.
const LOOKED_AT_MAX: usize = 1_000;

/// Moves aside what is of another kind among `keys`, which are ours. Answers whether there was something.
pub(crate) async fn displace(client: &Client, keys: &[String]) -> Result<bool> {
    let mut any = false;
    for some in keys.chunks(LOOKED_AT_MAX) {
        let Some(ctl) = some.first().and_then(|key| ctl_beside(key)) else { continue };
        let mut names = vec![ctl];
        let mut kinds: Vec<Value> = Vec::new();
        for (key, kind) in some.iter().filter_map(|key| Some((key, kind(key)?))) {
            names.extend([key.clone(), displaced(key)]);
            kinds.push(kind.into());
        }
        let moved = reply::array(DISPLACE.run(client, names, kinds).await?)?;
        let mut moved = moved.iter().map(reply::text);
        while let (Some(key), Some(kind)) = (moved.next().transpose()?, moved.next().transpose()?) {
            any = true;
            let to = displaced(&key);
            error!(
                key,
                kind,
                moved.to = to,
                "a key of another kind stood where one of ours belongs, and was moved aside"
            );
        }
    }
    Ok(any)
}

impl Connection {
    /// Where a command on `keys` met one of another kind: moves that aside, for the next. The error is the command's still.
    pub(crate) async fn displace_after<T>(&self, outcome: Result<T>, keys: &[String]) -> Result<T> {
        if let Err(Error::WrongType(_)) = outcome {
            self.ask(|client| async move { displace(&client, keys).await }).await?;
        }
        outcome
    }
}
