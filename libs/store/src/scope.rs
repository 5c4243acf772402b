//! Whose jobs and executions a caller may see, and which of them it may change. Every function on the API's side takes a
//! [`Scope`], so that nobody can forget it, and hands it to the very statement that reads or locks: nothing is looked at first
//! and done afterwards.
//!
//! - What is of another platform is not there: [`crate::Error::NotFound`], as for an id that was never given.
//! - What is global is read, and triggered, by everybody. Who is of a platform does not change it: [`crate::Error::NotOwn`].
//! - What is made belongs to a platform of its maker's. What a trigger makes of a global job does too.
//!
//! Who asks is found out elsewhere; here it is a set of platforms, as one parameter of a statement.

use sqlx::{Postgres, QueryBuilder};

use crate::{Error, Result};

/// The platforms that a caller is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// `None`: all of them, and what is of none.
    platforms: Option<Vec<String>>,
}

impl Scope {
    /// Everything.
    pub const ALL: Self = Self { platforms: None };

    /// What is of these platforms, and what is global.
    pub fn of<P: Into<String>>(platforms: impl IntoIterator<Item = P>) -> Self {
        Self { platforms: Some(platforms.into_iter().map(Into::into).collect()) }
    }

    /// Whether it leaves nothing out.
    pub const fn is_all(&self) -> bool {
        self.platforms.is_none()
    }

    /// The platforms, as a statement takes them (`may_read!`, `may_change!`); `None`: all.
    pub fn platforms(&self) -> Option<&[String]> {
        self.platforms.as_deref()
    }

    /// The one platform that the caller is of. `None`: it may be of several.
    pub fn home(&self) -> Option<&str> {
        match self.platforms() {
            Some([only]) => Some(only),
            _ => None,
        }
    }

    /// Whether what is of this platform, or of none, is the caller's own.
    pub fn owns(&self, platform: Option<&str>) -> bool {
        match (self.platforms(), platform) {
            (None, _) => true,
            (Some(platforms), Some(platform)) => platforms.iter().any(|own| own == platform),
            (Some(_), None) => false,
        }
    }

    /// Refuses to make `name` for a platform that is not the caller's.
    pub(crate) fn require_own(&self, platform: Option<&str>, what: &'static str, name: impl ToString) -> Result<()> {
        if self.owns(platform) { Ok(()) } else { Err(Error::NotOwn { what, name: name.to_string() }) }
    }

    /// Restricts a statement whose condition has begun to what the caller may read, by `column`.
    pub(crate) fn push_may_read(&self, query: &mut QueryBuilder<Postgres>, column: &str) {
        if let Some(platforms) = self.platforms() {
            query.push(format_args!(" AND ({column} IS NULL OR {column} = ANY (")).push_bind(platforms).push("))");
        }
    }
}

/// That the caller may read what is of the platform `$platform`; `$scope` is the parameter that [`Scope::platforms`] is bound to.
macro_rules! may_read {
    ($platform:literal, $scope:literal) => {
        concat!(
            "(",
            $scope,
            "::text[] IS NULL OR ",
            $platform,
            " IS NULL OR ",
            $platform,
            " = ANY (",
            $scope,
            "::text[]))"
        )
    };
}

/// That the caller may change it: never NULL.
macro_rules! may_change {
    ($platform:literal, $scope:literal) => {
        concat!("(", $scope, "::text[] IS NULL OR COALESCE(", $platform, " = ANY (", $scope, "::text[]), false))")
    };
}

pub(crate) use {may_change, may_read};

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn what_is_of_a_platform_is_the_own_of_who_is_of_it() {
        let (one, two) = (Scope::of(["p"]), Scope::of(["p", "q"]));
        assert!(Scope::ALL.owns(None) && Scope::ALL.owns(Some("p")) && Scope::ALL.is_all());
        assert!(one.owns(Some("p")) && !one.owns(Some("q")) && !one.owns(None) && !one.owns(Some("")));
        assert!(two.owns(Some("q")) && !two.owns(None));
        assert_eq!((one.home(), two.home(), Scope::ALL.home()), (Some("p"), None, None));
        let nothing = Scope::of(Vec::<String>::new());
        assert!(!nothing.is_all() && !nothing.owns(None) && nothing.home().is_none());
    }

    /// Files whose functions no caller of the API leads to directly.
    const DATA_PATH_AND_UPKEEP: [&str; 21] = [
        "attention.rs",
        "bounded.rs",
        "claim.rs",
        "clock.rs",
        "days.rs",
        "definitions.rs",
        "leader_session.rs",
        "migrate.rs",
        "open_entries.rs",
        "partitions.rs",
        "pool.rs",
        "queues.rs",
        "recent.rs",
        "recorder.rs",
        "unlocked.rs",
        "retention.rs",
        "takes.rs",
        "upcoming.rs",
        "withdrawals.rs",
        "workers.rs",
        "zones.rs",
    ];

    /// Functions of that kind in other files: what goes on with a job that was deleted, what a transaction does that has locked
    /// its job, and what makes old things leave.
    const WITHOUT_A_CALLER: [(&str, &str); 4] =
        [("deletion.rs", "step"), ("revisions.rs", "add_on"), ("revisions.rs", "forget"), ("idempotency.rs", "forget")];

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn every_function_on_the_side_of_the_api_takes_a_scope() {
        let mut taken = 0;
        for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let file = path.file_name().unwrap().to_str().unwrap();
            if DATA_PATH_AND_UPKEEP.contains(&file) || file == "scope.rs" {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            for function in source.split("pub async fn ").skip(1) {
                let (name, rest) = function.split_once(['(', '<']).unwrap();
                let parameters = rest.split_once("->").unwrap().0;
                if !WITHOUT_A_CALLER.contains(&(file, name)) {
                    assert!(parameters.contains("scope: &Scope"), "{file}: {name} takes no Scope");
                    taken += 1;
                }
            }
        }
        assert!(taken >= 19, "{taken}");
    }
}
