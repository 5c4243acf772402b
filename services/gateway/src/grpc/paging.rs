//! Pages of the listings that look among rows: where a page begins, and the token of the next one.
//!
//! A token says where to go on and by which filter it was made; it is opaque, and good for that filter alone. It is no secret: who
//! makes one up sees nothing that the filter does not show. The order is part of the filter.

use std::time::Duration;

use carillon_core::error::quoted;
use carillon_core::limits;
use carillon_store::scan::{Place, Scanned, Window};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::checks::Checks;

/// How long a page may look for what matches: with the reading of what it found that is 40 ms, about.
const BUDGET: Duration = Duration::from_millis(35);
/// That of the first system's calls, which promised answers within 20 ms: what they ask for has an index, or is the rare end of
/// what was recorded.
const BUDGET_PLAIN: Duration = Duration::from_millis(15);
/// Of a page's time, what is left for it where a total is asked for too.
const SHARE_BESIDE_TOTAL: u32 = 2;

/// What a request says of its page, taken out of it: the rest is the filter.
pub(super) struct Asked {
    pub(super) limit: Option<u32>,
    pub(super) offset: u32,
    pub(super) page_token: String,
    pub(super) show_total_size: bool,
}

/// What a request says of its page.
#[derive(Debug)]
pub(super) struct Paging {
    pub(super) window: Window,
    /// How long a total may be counted, if it is asked for.
    pub(super) count_for: Option<Duration>,
    /// Of the filter.
    hash: [u8; 8],
}

impl Paging {
    /// Checks what is asked of the list of that name. `filter` is the request without it, as it is on the wire. `is_plain`: it
    /// asks for nothing that the first system's clients could not.
    pub(super) fn read(asked: &Asked, list: &str, filter: &[u8], is_plain: bool, checks: &mut Checks) -> Self {
        let Asked { limit, offset, page_token, show_total_size } = asked;
        let (offset, page_token) = (*offset, page_token.as_str());
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
                        "is of a list with another filter or order: begin with its first page",
                    );
                    place
                }
                None => {
                    checks.refuse("page_token", format!("is no next_page_token, is {}", quoted(page_token)));
                    Place::first(0)
                }
            }
        };
        let budget = if is_plain { BUDGET_PLAIN } else { BUDGET };
        let budget = if *show_total_size { budget / SHARE_BESIDE_TOTAL } else { budget };
        Self { window: Window { limit, from, budget }, count_for: show_total_size.then_some(budget), hash }
    }

    /// The token of the page behind `scanned`; empty if there is none.
    pub(super) fn next<T>(&self, scanned: &Scanned<T>) -> String {
        let Some(Place { behind, key, skip }) = scanned.next else { return String::new() };
        let behind = behind.unwrap_or_default().simple();
        format!("{:016x}{key:016x}{behind}{skip:08x}", u64::from_be_bytes(self.hash))
    }
}

/// What a token says: the hash of its filter, and the place.
fn place(token: &str) -> Option<([u8; 8], Place)> {
    if token.len() != 72 || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let (hash, rest) = token.split_at(16);
    let (key, rest) = rest.split_at(16);
    let (behind, skip) = rest.split_at(32);
    let hash = u64::from_str_radix(hash, 16).ok()?.to_be_bytes();
    let key = u64::from_str_radix(key, 16).ok()?.cast_signed();
    let skip = u32::from_str_radix(skip, 16).ok().filter(|skip| *skip <= limits::OFFSET_MAX)?;
    Some((hash, Place { behind: Some(Uuid::try_parse(behind).ok()?), key, skip }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u32, token: &str, filter: &[u8]) -> (Paging, bool) {
        let mut checks = Checks::default();
        let asked = Asked { limit: None, offset, page_token: token.to_owned(), show_total_size: false };
        let paging = Paging::read(&asked, "things", filter, false, &mut checks);
        (paging, checks.is_clean())
    }

    #[test]
    fn a_token_leads_on_by_the_filter_that_it_was_made_for_alone() {
        let place = Place { behind: Some(Uuid::from_u128(77)), key: -5, skip: 3 };
        let (paging, _) = read(3, "", b"filter");
        assert_eq!(paging.window.from, Place::first(3));
        let token = paging.next(&Scanned::<()> { items: Vec::new(), next: Some(place) });
        let (next, is_clean) = read(0, &token, b"filter");
        assert_eq!((next.window.from, is_clean), (place, true));
        assert!(!read(0, &token, b"another").1 && !read(1, &token, b"filter").1);
        assert_eq!(paging.next(&Scanned::<()> { items: Vec::new(), next: None }), "");
        for wrong in
            ["x", &token[1..], &format!("{token}0"), &token.replace('0', "g"), &format!("{}ffffffff", &token[..64])]
        {
            assert!(!read(0, wrong, b"filter").1, "{wrong}");
        }
    }

    #[test]
    fn the_first_system_s_calls_look_for_less_long_and_a_total_takes_half_of_the_time() {
        let budget = |is_plain, show_total_size| {
            let asked = Asked { limit: None, offset: 0, page_token: String::new(), show_total_size };
            let paging = Paging::read(&asked, "things", b"", is_plain, &mut Checks::default());
            (paging.window.budget.as_millis(), paging.count_for.map(|time| time.as_millis()))
        };
        assert_eq!((budget(true, false), budget(false, false)), ((15, None), (35, None)));
        assert_eq!(budget(false, true), (17, Some(17)));
    }
}
