//! Payloads that are too large to travel in their entries: fetched from Postgres, a few at a time and only while there is room
//! for more bytes, so that ten thousand of the largest cost no more memory than the setting says.

use std::collections::HashMap;
use std::time::Instant;

use carillon_core::execution::AttemptEnd;
use carillon_store::takes::Payload;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Engine;
use crate::checks;
use crate::in_hand::{Key, State};

/// Fetched at once: of the largest, four megabytes.
const AT_ONCE: usize = 16;

impl Engine {
    /// Begins to fetch some that are lacking, if none are on their way.
    pub(super) fn fetch_payloads(&mut self) {
        if self.is_fetching || self.lacking.is_empty() || !self.shared.slots.has_room_for_payloads() {
            return;
        }
        let mut asked = Vec::with_capacity(AT_ONCE);
        while asked.len() < AT_ONCE
            && let Some(key) = self.lacking.pop_front()
        {
            // It may have been let go of, or ended otherwise.
            if self.items.get(&key).is_some_and(|item| !matches!(item.state, State::GivenUp | State::Ended { .. })) {
                asked.push(key);
            }
        }
        if !asked.is_empty() {
            self.is_fetching = true;
            checks::fetch_payloads(&self.shared, asked, self.own.clone());
        }
    }

    pub(super) fn payloads(&mut self, asked: &[Key], mut payloads: HashMap<Uuid, Payload>) {
        self.is_fetching = false;
        for key in asked {
            let Some(item) = self.items.get_mut(key) else { continue };
            // It may have left, or have come with another revision, meanwhile.
            if item.entry.payload.is_some() || matches!(item.state, State::GivenUp | State::Ended { .. }) {
                continue;
            }
            let payload = payloads.remove(&key.execution);
            // R23a: changed since its entry was written, and the notice is late. All that it is to run with is read, not the
            // payload alone; of what is doubtful the take says so.
            if payload.as_ref().is_some_and(|payload| payload.revision.is_some_and(|it| it != item.entry.revision)) {
                self.name(*key);
                continue;
            }
            let text = payload.and_then(|payload| payload.text);
            item.set_payload(text.and_then(|text| RawValue::from_string(text).ok()));
            match item.state {
                // Nobody else may have it, and what it was to run with is gone.
                State::Held if item.entry.payload.is_none() && item.take > 0 => {
                    self.finish_unstarted(*key, AttemptEnd::Failed { retry: false }, "its payload is gone");
                }
                // Unknown to Postgres: a check finds it over.
                State::Held | State::Named { .. } if item.entry.payload.is_none() => item.doubt(Instant::now()),
                State::Held => self.hold(*key),
                _ => {}
            }
        }
    }
}
