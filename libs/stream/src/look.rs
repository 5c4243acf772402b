//! R8, R8a, R23: what Redis says of itself, and of cancels. An answer about a cancel holds no further than the certificate that
//! came with it: a set that was wiped says "not cancelled" of everything, and then it says "uncertified" too.

use std::collections::HashSet;
use std::time::Duration;

use fred::prelude::Value;
use uuid::Uuid;

use crate::connection::Connection;
use crate::scripts::{LOOK, LOOK_FOR};
use crate::{Redis, Result, reply};

/// Ids that one question after the set names at most.
const ASKED_MAX: usize = 1_000;

/// What this Redis says of itself.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The certificate fits this server.
    pub certified: bool,
    /// Entries up to this number are doubtful.
    pub doubt: i64,
    /// How old the certificate is.
    pub certificate_age: Duration,
    /// Executions whose cancel was requested: all that are remembered, or where those are many, of the ones asked for.
    pub cancelled: HashSet<Uuid>,
}

impl Look {
    /// What both say: trusted only where both are, and no older than the newer certificate.
    fn and(mut self, later: Self) -> Self {
        self.certified &= later.certified;
        self.doubt = self.doubt.max(later.doubt);
        self.certificate_age = later.certificate_age;
        self.cancelled.extend(later.cancelled);
        self
    }
}

impl Redis {
    /// Looks at Redis. The cancelled set is left out where it is large.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn look(&self) -> Result<Look> {
        self.look_for(&[]).await
    }

    /// R8a, R23: looks at Redis while `executions` are held: which of them are named by the cancelled set, however large it is.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn look_for(&self, executions: &[Uuid]) -> Result<Look> {
        look(&self.connection, self, executions).await
    }

    pub(crate) fn look_keys(&self) -> Vec<String> {
        vec![self.keys.ctl(), self.keys.cancelled()]
    }
}

/// Looks at Redis on `connection`.
pub(crate) async fn look(connection: &Connection, redis: &Redis, executions: &[Uuid]) -> Result<Look> {
    let answer = connection.run(&LOOK, redis.look_keys(), Vec::new()).await?;
    complete(connection, redis, answer, executions).await
}

/// Reads the answer of LOOK and, where the set is too large to come whole, asks for `executions`. The certificate may have gone
/// since (H112), so what comes back
/// is what the later answer says too; asked on the same connection, since two may lead to two servers.
pub(crate) async fn complete(
    connection: &Connection,
    redis: &Redis,
    answer: Value,
    executions: &[Uuid],
) -> Result<Look> {
    let (mut look, is_whole) = parse(answer)?;
    if !is_whole {
        for some in executions.chunks(ASKED_MAX) {
            let ids = some.iter().map(|id| Value::from(id.to_string())).collect();
            let (later, _) = parse(connection.run(&LOOK_FOR, redis.look_keys(), ids).await?)?;
            look = look.and(later);
        }
    }
    Ok(look)
}

/// The look, and whether the set came with it.
fn parse(answer: Value) -> Result<(Look, bool)> {
    let mut answer = reply::array(answer)?.into_iter();
    let certified = reply::integer(&reply::next(&mut answer)?)? == 1;
    let doubt = reply::integer(&reply::next(&mut answer)?)?;
    let age = reply::integer(&reply::next(&mut answer)?)?;
    let mut cancelled = HashSet::new();
    let members = reply::next(&mut answer)?;
    let is_whole = matches!(members, Value::Array(_));
    if is_whole {
        for member in reply::array(members)? {
            if let Ok(id) = reply::text(&member)?.parse() {
                cancelled.insert(id);
            }
        }
    }
    let certificate_age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    Ok((Look { certified, doubt, certificate_age, cancelled }, is_whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_looks_are_trusted_as_far_as_both_are() {
        let look = |certified, doubt, age, cancelled: u128| Look {
            certified,
            doubt,
            certificate_age: Duration::from_secs(age),
            cancelled: HashSet::from([Uuid::from_u128(cancelled)]),
        };
        let both = look(true, 5, 60, 1).and(look(true, 9, 1, 2));
        assert_eq!((both.certified, both.doubt, both.certificate_age), (true, 9, Duration::from_secs(1)));
        assert_eq!(both.cancelled.len(), 2);
        assert!(!look(true, 5, 1, 1).and(look(false, 0, 1, 1)).certified);
        assert!(!look(false, 5, 1, 1).and(look(true, 0, 1, 1)).certified);
    }
}
