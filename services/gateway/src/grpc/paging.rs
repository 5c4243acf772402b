//! Pages of the listings that look among rows: where a page begins, and the token of the next one.
//!
//! A token says where to go on and by which filter it was made; it is opaque, and good for that filter alone. It is no secret: who
//! makes one up sees nothing that the filter does not show.

use std::time::Duration;

use carillon_core::error::quoted;
use carillon_core::limits;
use carillon_store::scan::{Place, Scanned, Window};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::checks::Checks;

/// How long a page may look for what matches.
const BUDGET: Duration = Duration::from_millis(40);
/// So long that of the first system's calls, whose clients know no tokens and go on by offset: what they ask for has an index, or
/// lies close together.
const BUDGET_WITHOUT_TOKENS: Duration = Duration::from_secs(2);

/// What a request says of its page.
#[derive(Debug)]
pub(super) struct Paging {
    pub(super) window: Window,
    /// Of the filter.
    hash: [u8; 8],
}

impl Paging {
    /// Checks `limit`, `offset` and `page_token` of the list of that name. `filter` is the request without them, as it is on the wire.
    /// `is_plain`: it asks for nothing that the first system's clients could not.
    pub(super) fn read(
        (limit, offset, page_token): (Option<u32>, u32, &str),
        list: &str,
        filter: &[u8],
        is_plain: bool,
        checks: &mut Checks,
    ) -> Self {
        let mut hash = [0; 8];
        hash.copy_from_slice(&Sha256::new().chain_update(list).chain_update(filter).finalize()[..8]);
        let limit = limit.unwrap_or(limits::PAGE_SIZE_DEFAULT);
        let limit = checks.number("limit", limit, 1, limits::PAGE_SIZE_MAX);
        let offset = checks.number("offset", offset, 0, limits::OFFSET_MAX);
        let from = if page_token.is_empty() {
            Place::first(offset)
        } else {
            checks.that(offset == 0, "offset", "must not be given together with page_token");
            match place(page_token) {
                Some((of, place)) => {
                    checks.that(
                        of == hash,
                        "page_token",
                        "is of a list with another filter: begin with its first page",
                    );
                    place
                }
                None => {
                    checks.refuse("page_token", format!("is no next_page_token, is {}", quoted(page_token)));
                    Place::first(0)
                }
            }
        };
        let budget = if is_plain && page_token.is_empty() { BUDGET_WITHOUT_TOKENS } else { BUDGET };
        Self { window: Window { limit, from, budget }, hash }
    }

    /// The token of the page behind `scanned`; empty if there is none.
    pub(super) fn next<T>(&self, scanned: &Scanned<T>) -> String {
        let Some(Place { below, skip }) = scanned.next else { return String::new() };
        format!("{:016x}{}{skip:08x}", u64::from_be_bytes(self.hash), below.simple())
    }
}

/// What a token says: the hash of its filter, and the place.
fn place(token: &str) -> Option<([u8; 8], Place)> {
    if token.len() != 56 || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let (hash, rest) = token.split_at(16);
    let (below, skip) = rest.split_at(32);
    let hash = u64::from_str_radix(hash, 16).ok()?.to_be_bytes();
    let skip = u32::from_str_radix(skip, 16).ok().filter(|skip| *skip <= limits::OFFSET_MAX)?;
    Some((hash, Place { below: Uuid::try_parse(below).ok()?, skip }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u32, token: &str, filter: &[u8]) -> (Paging, bool) {
        let mut checks = Checks::default();
        let paging = Paging::read((None, offset, token), "things", filter, false, &mut checks);
        (paging, checks.is_clean())
    }

    #[test]
    fn a_token_leads_on_by_the_filter_that_it_was_made_for_alone() {
        let place = Place { below: Uuid::from_u128(77), skip: 3 };
        let (paging, _) = read(3, "", b"filter");
        assert_eq!(paging.window.from, Place::first(3));
        let token = paging.next(&Scanned::<()> { items: Vec::new(), next: Some(place) });
        let (next, is_clean) = read(0, &token, b"filter");
        assert_eq!((next.window.from, is_clean), (place, true));
        assert!(!read(0, &token, b"another").1 && !read(1, &token, b"filter").1);
        assert_eq!(paging.next(&Scanned::<()> { items: Vec::new(), next: None }), "");
        for wrong in
            ["x", &token[1..], &format!("{token}0"), &token.replace('0', "g"), &format!("{}ffffffff", &token[..48])]
        {
            assert!(!read(0, wrong, b"filter").1, "{wrong}");
        }
    }
}
