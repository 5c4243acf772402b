//! Who asks, as far as the store must know: whose jobs and executions a request may see and change ([`Scope`]). This is the one
//! place where that is made; a call takes it from here and hands it on with whatever it asks. Nobody is known yet: who names a
//! platform in the header `x-platform-id` is of that one, who names none is of all.

use carillon_core::error::quoted;
use carillon_core::limits::WORD_CHARS_MAX;
use carillon_proto::{PLATFORM_HEADER, v1};
use carillon_store::Scope;
use tonic::Request;

use super::checks::Checks;

const FIELD: &str = "platform_id";

/// The scope of whoever sends the request. One that cannot be read is refused, and never all.
pub(super) fn scope<T>(request: &Request<T>, checks: &mut Checks) -> Scope {
    let mut named = request.metadata().get_all(PLATFORM_HEADER).iter();
    let Some(first) = named.next() else { return Scope::ALL };
    if named.next().is_some() {
        checks.refuse(PLATFORM_HEADER, "must be given once");
    }
    match std::str::from_utf8(first.as_bytes()) {
        Ok(platform) => Scope::of([checks.given_text(PLATFORM_HEADER, platform, WORD_CHARS_MAX)]),
        Err(_) => {
            checks.refuse(PLATFORM_HEADER, "must be text in UTF-8");
            Scope::of(Vec::<String>::new())
        }
    }
}

/// Gives a job that is to be made the platform of its maker, unless it names that itself.
pub(super) fn place(scope: &Scope, job: &mut v1::Job, checks: &mut Checks) {
    match &job.platform_id {
        Some(given) => agree(scope, given, checks),
        None => job.platform_id = scope.home().map(str::to_owned),
    }
    // Who is of several says which.
    checks.that(job.platform_id.is_some() || scope.is_all(), FIELD, "must be given");
}

/// The platform that a list is asked for; `None`: whatever the caller may see.
pub(super) fn filter<'a>(scope: &Scope, given: &'a str, checks: &mut Checks) -> Option<&'a str> {
    let given = checks.part(FIELD, given)?;
    agree(scope, given, checks);
    Some(given)
}

fn agree(scope: &Scope, given: &str, checks: &mut Checks) {
    if !scope.owns(Some(given)) {
        let own = scope.home().map(quoted).unwrap_or_default();
        checks.refuse(FIELD, format!("is {}, but the header {PLATFORM_HEADER} says {own}", quoted(given)));
    }
}

/// What tells lists apart that are asked for alike, by callers of different platforms.
pub(super) fn told_apart(scope: &Scope) -> Vec<u8> {
    // No platform has a NUL.
    scope.platforms().map(|platforms| format!("\0{}", platforms.join("\0")).into_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    fn read(headers: &[&[u8]]) -> (Scope, Vec<String>) {
        let mut request = Request::new(());
        for header in headers {
            request.metadata_mut().append(PLATFORM_HEADER, MetadataValue::try_from(*header).unwrap());
        }
        let mut checks = Checks::default();
        let scope = scope(&request, &mut checks);
        (scope, checks.into_wrong().violations.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_header_names_a_platform_and_without_it_all_are_meant() {
        assert_eq!(read(&[]), (Scope::ALL, vec![]));
        assert_eq!(read(&[b"acme"]), (Scope::of(["acme"]), vec![]));
        assert_eq!(read(&["Köln/1".as_bytes()]), (Scope::of(["Köln/1"]), vec![]));
    }

    #[test]
    fn a_header_that_names_no_platform_is_refused_and_never_means_all() {
        let long = "x".repeat(WORD_CHARS_MAX + 1);
        for (headers, rule) in [
            (&[b"".as_slice()][..], "is empty: leave it out, or give 1 to 200 characters"),
            (&[b"  "], "must not be blank"),
            (&[long.as_bytes()], "must be at most 200 characters long, is 201"),
            (&[b"\xff"], "must be text in UTF-8"),
            (&[b"a", b"b"], "must be given once"),
            (&[b"a", b"a"], "must be given once"),
            (&[b"a", b""], "must be given once"),
        ] {
            let (scope, wrong) = read(headers);
            assert!(!scope.is_all());
            assert_eq!(wrong, [format!("x-platform-id: {rule}")]);
        }
    }

    #[test]
    fn what_is_made_is_its_makers_and_a_field_that_says_otherwise_is_refused() {
        let placed = |scope: &Scope, given: Option<&str>| {
            let mut job = v1::Job { platform_id: given.map(str::to_owned), ..v1::Job::default() };
            let mut checks = Checks::default();
            place(scope, &mut job, &mut checks);
            (job.platform_id, checks.into_wrong().violations.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let (one, two) = (Scope::of(["p"]), Scope::of(["p", "q"]));
        for (scope, given, made) in [
            (&Scope::ALL, None, None),
            (&Scope::ALL, Some("q"), Some("q")),
            (&one, None, Some("p")),
            (&one, Some("p"), Some("p")),
            (&two, Some("q"), Some("q")),
        ] {
            assert_eq!(placed(scope, given), (made.map(str::to_owned), vec![]));
        }
        let differs = "platform_id: is \"q\", but the header x-platform-id says \"p\"";
        assert_eq!(placed(&one, Some("q")).1, [differs]);
        assert_eq!(placed(&two, None).1, ["platform_id: must be given"]);
        let mut checks = Checks::default();
        assert_eq!(filter(&one, "p", &mut checks), Some("p"));
        assert_eq!(filter(&one, "", &mut checks), None);
        assert!(checks.is_clean());
        filter(&one, "q", &mut checks);
        assert_eq!(checks.into_wrong().violations[0].to_string(), differs);
    }

    #[test]
    fn lists_of_different_callers_are_told_apart() {
        let mut told: Vec<Vec<u8>> =
            [Scope::ALL, Scope::of(["p"]), Scope::of(["p", "q"]), Scope::of(["pq"])].iter().map(told_apart).collect();
        told.sort();
        told.dedup();
        assert_eq!(told.len(), 4);
    }

    /// A call that made one of its own would forget who asks, now or once callers are known.
    #[test]
    fn no_call_makes_a_scope_of_its_own() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc");
        let mut looked_into = 0;
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name != "caller.rs" && !name.ends_with("tests.rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                assert!(!source.contains("Scope::"), "{name}");
                looked_into += 1;
            }
        }
        assert!(looked_into >= 10);
    }
}
