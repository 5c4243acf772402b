//! R3 and R4: telling Redis who leads, and whether it may be trusted.

use carillon_core::line::Line;
use carillon_store::leader_session::LeaderSession;
use carillon_stream::Redis;
use carillon_stream::leader::{Announced, Certified};
use tracing::info;
use uuid::Uuid;

use crate::leader::{End, alive, patiently};

/// Draws the number of a term, above all that Redis and Postgres remember (R1).
///
/// # Errors
/// The session is lost.
pub async fn draw_term(session: &mut LeaderSession, redis: &Redis) -> Result<i64, End> {
    // Read before the number is drawn on the lock's session: a leader that has lost its lock meanwhile fails to draw.
    let state = patiently(session, || redis.state(&[])).await?;
    session.count_on_from(state.last.max(state.term));
    Ok(session.draw_number().await?)
}

/// R3, and R4 where it says so, or where `force` asks to be challenged. Answers whether a certificate was written: then all that Redis holds is doubtful, and a whole
/// pass of reconcile is due.
///
/// # Errors
/// [`End::Stale`] when another leader announced a later term; the session is lost.
pub async fn announce(
    session: &mut LeaderSession,
    redis: &Redis,
    term: i64,
    lines: &[Line],
    mut force: bool,
) -> Result<bool, End> {
    loop {
        let challenge = Uuid::new_v4().simple().to_string();
        match patiently(session, || redis.announce(term, &challenge, force)).await? {
            Announced::Stale => return Err(End::Stale),
            Announced::Certified(standing) => {
                session.count_on_from(standing.last);
                let fits = standing.last == standing.doubt || session.batch_exists(standing.last).await?;
                if fits && !force {
                    return Ok(false);
                }
                // H15: Redis remembers a batch that this database has lost.
                info!(batch = standing.last, "redis holds a batch that the database does not know: certifying anew");
                force = true;
            }
            Announced::Challenged(standing) => {
                session.count_on_from(standing.last.max(standing.doubt));
                // Drawn after the challenge (R4), so that it is newer than all that was sent before it.
                let number = session.draw_number().await?;
                let written = alive(session, redis.certify(number, term, &standing.replid, &challenge, lines)).await?;
                match written {
                    Ok(Certified::Done) => {
                        info!(number, "redis is certified: entries up to this number are checked before they start");
                        return Ok(true);
                    }
                    Ok(Certified::Stale) => return Err(End::Stale),
                    Ok(Certified::Low(top)) => session.count_on_from(top),
                    // Another server, another challenge, or no answer: announce again.
                    Ok(Certified::Refused) | Err(_) => {}
                }
            }
        }
    }
}
