//! R3 and R4: telling Redis who leads, and whether it may be trusted.

use carillon_core::error::with_causes;
use carillon_core::line::Line;
use carillon_stream::leader::{Announced, Certified};
use tracing::{info, warn};
use uuid::Uuid;

use crate::leader::{End, Leader};

impl Leader {
    /// Draws the number of the term, above all that Redis and Postgres remember (R1).
    ///
    /// # Errors
    /// The session is lost; the process stops and Redis does not answer.
    pub(crate) async fn draw_term(&mut self) -> Result<(), End> {
        let redis = self.redis.clone();
        // Read before the number is drawn on the lock's session: a leader that has lost its lock meanwhile fails to draw.
        let state = self.patiently(|| redis.state(&[])).await?;
        self.session.count_on_from(state.last.max(state.term));
        self.term = self.insist(|session| Box::pin(session.draw_number())).await?;
        Ok(())
    }

    /// R3, and R4 where it says so, or where `force` asks to be challenged. Where a certificate was written all that Redis
    /// holds is doubtful, and a whole pass of reconcile is due.
    ///
    /// # Errors
    /// [`End::Stale`] when another leader announced a later term; the session is lost; the process stops, or Redis is silent.
    pub(crate) async fn announce(&mut self, lines: &[Line], mut force: bool) -> Result<(), End> {
        let (redis, term) = (self.redis.clone(), self.term);
        let mut complained = false;
        loop {
            let challenge = Uuid::new_v4().simple().to_string();
            match self.patiently(|| redis.announce(term, &challenge, force)).await? {
                Announced::Stale => return Err(End::Stale),
                Announced::Certified(standing) => {
                    self.session.count_on_from(standing.last);
                    let last = standing.last;
                    let fits =
                        last == standing.doubt || self.insist(|session| Box::pin(session.batch_exists(last))).await?;
                    if fits && !force {
                        if standing.passed < standing.doubt {
                            // By a leader that is gone, or by ourselves, without an answer.
                            self.passes.certified(standing.doubt);
                        }
                        return Ok(());
                    }
                    // H15: Redis remembers a batch that this database has lost.
                    info!(
                        batch = standing.last,
                        "redis holds a batch that the database does not know: certifying anew"
                    );
                    force = true;
                }
                Announced::Challenged(standing) => {
                    self.session.count_on_from(standing.last.max(standing.doubt));
                    // Drawn after the challenge (R4), so that it is newer than all that was sent before it.
                    let number = self.insist(|session| Box::pin(session.draw_number())).await?;
                    let written = redis.certify(number, term, &standing.replid, &challenge, lines);
                    let written = self.alive(written).await?;
                    self.note_answer(&written);
                    match written {
                        Ok(Certified::Done) => {
                            info!(
                                number,
                                "redis is certified: entries up to this number are checked before they start"
                            );
                            self.passes.certified(number);
                            return Ok(());
                        }
                        Ok(Certified::Stale) => return Err(End::Stale),
                        Ok(Certified::Low(top)) => self.session.count_on_from(top),
                        // Another server or another challenge: announce again.
                        Ok(Certified::Refused) => {}
                        Err(error) => {
                            if !std::mem::replace(&mut complained, true) {
                                warn!("cannot certify redis, trying again: {}", with_causes(&error));
                            }
                            self.pause_for_redis().await?;
                        }
                    }
                }
            }
        }
    }
}
