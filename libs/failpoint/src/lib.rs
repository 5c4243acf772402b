//! Named places between two steps where a test may kill, freeze or hold a process: `reach("claim:committed").await`.
//!
//! In release builds there is nothing of it. In debug builds the variable [`VARIABLE`] says what happens where:
//! ```text
//! claim:committed=kill,once:/tmp/x/once,when:/tmp/x/armed;record:write=hold:/tmp/x/held
//! ```
//! - `kill`: SIGKILL to the own process; `freeze`: SIGSTOP (whoever watches thaws it); `hold:<file>`: this task alone waits
//!   while the file exists.
//! - `once:<file>`: only the first process that gets there does it. It makes the file, with its process id in it.
//! - `when:<file>`: only while that file exists.
//!
//! A crate of its own, since the places are in the store and in the services, which share nothing else.

#![warn(missing_docs)]

/// The variable that says what happens where.
pub const VARIABLE: &str = "CARILLON_TEST_FAILPOINTS";

/// Each point there is: those that an execution passes, in that order, then that of a new incarnation and those of changes of a
/// job. What a test names must be among them.
pub const POINTS: [&str; 18] = [
    "claim:begin",
    "claim:commit",
    "claim:committed",
    "publish:send",
    "publish:answered",
    "settle:write",
    "settle:written",
    "take:seen",
    "take:taken",
    "payloads:read",
    "record:write",
    "record:commit",
    "record:committed",
    "acknowledge:send",
    "acknowledge:answered",
    "adopt:begin",
    "pause:commit",
    "update:commit",
];

/// The process is at this point.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[expect(clippy::unused_async, reason = "the debug build waits here")]
pub async fn reach(_point: &'static str) {}

/// The process is at this point.
///
/// # Panics
/// If [`VARIABLE`] cannot be read: a mistake in a test.
#[cfg(debug_assertions)]
pub async fn reach(point: &'static str) {
    debug_assert!(POINTS.contains(&point), "{point} is not in the list");
    armed::reach(point).await;
}

#[cfg(debug_assertions)]
mod armed {
    use std::fs::File;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};

    /// Between two looks at a file.
    const LOOK_EACH: Duration = Duration::from_millis(5);

    static ORDERS: OnceLock<Vec<Order>> = OnceLock::new();

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct Order {
        pub(super) point: String,
        pub(super) action: Action,
        pub(super) once: Option<PathBuf>,
        pub(super) when: Option<PathBuf>,
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) enum Action {
        Kill,
        Freeze,
        Hold(PathBuf),
    }

    pub(super) async fn reach(point: &str) {
        let orders = ORDERS.get_or_init(|| {
            let text = std::env::var(super::VARIABLE).unwrap_or_default();
            parse(&text).unwrap_or_else(|why| panic!("{}: {why}", super::VARIABLE))
        });
        for order in orders.iter().filter(|order| order.point == point) {
            obey(order).await;
        }
    }

    pub(super) async fn obey(order: &Order) {
        if order.when.as_ref().is_some_and(|file| !file.exists()) {
            return;
        }
        if order.once.as_ref().is_some_and(|file| !is_first(file)) {
            return;
        }
        match &order.action {
            // Both end or stop this very thread; an error cannot be helped, and the test sees that nothing happened.
            Action::Kill => drop(raise(Signal::SIGKILL)),
            Action::Freeze => drop(raise(Signal::SIGSTOP)),
            Action::Hold(file) => {
                while file.exists() {
                    tokio::time::sleep(LOOK_EACH).await;
                }
            }
        }
    }

    /// Made under another name first, so that who waits for the file finds the number in it.
    fn is_first(file: &Path) -> bool {
        let own = file.with_extension(std::process::id().to_string());
        let made = File::create(&own).and_then(|mut made| write!(made, "{}", std::process::id()));
        let first = made.is_ok() && std::fs::hard_link(&own, file).is_ok();
        let _ = std::fs::remove_file(&own);
        first
    }

    pub(super) fn parse(text: &str) -> Result<Vec<Order>, String> {
        let mut orders = Vec::new();
        for entry in text.split(';').filter(|entry| !entry.is_empty()) {
            let (point, what) = entry.split_once('=').ok_or_else(|| format!("{entry} has no ="))?;
            if !super::POINTS.contains(&point) {
                return Err(format!("there is no point {point}"));
            }
            let mut words = what.split(',');
            let action = words.next().unwrap_or_default();
            let action = match (action, action.strip_prefix("hold:")) {
                ("kill", _) => Action::Kill,
                ("freeze", _) => Action::Freeze,
                (_, Some(file)) => Action::Hold(file.into()),
                _ => return Err(format!("there is no action {action}")),
            };
            let mut order = Order { point: point.to_owned(), action, once: None, when: None };
            for word in words {
                match word.split_once(':') {
                    Some(("once", file)) => order.once = Some(file.into()),
                    Some(("when", file)) => order.when = Some(file.into()),
                    _ => return Err(format!("cannot read {word}")),
                }
            }
            orders.push(order);
        }
        Ok(orders)
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::path::PathBuf;

    use super::armed::{Action, Order, obey, parse};

    #[test]
    fn orders_are_read_and_mistakes_are_named() {
        let orders = parse("claim:begin=kill,once:/a,when:/b;record:write=hold:/c;take:seen=freeze").unwrap();
        let first = Order {
            point: "claim:begin".into(),
            action: Action::Kill,
            once: Some("/a".into()),
            when: Some("/b".into()),
        };
        assert_eq!((orders.len(), &orders[0]), (3, &first));
        assert_eq!(orders[1].action, Action::Hold("/c".into()));
        assert_eq!(parse("").unwrap(), []);
        for wrong in ["claim:begin", "claim:bigin=kill", "claim:begin=die", "claim:begin=kill,twice:/a"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_held_while_the_file_exists_and_others_pass() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| -> PathBuf { directory.path().join(name) };
        std::fs::write(file("held"), "").unwrap();
        let order = Order {
            point: "claim:begin".into(),
            action: Action::Hold(file("held")),
            once: Some(file("once")),
            when: Some(file("armed")),
        };
        obey(&order).await;
        assert!(!file("once").exists(), "it is not armed");
        std::fs::write(file("armed"), "").unwrap();
        let held = tokio::spawn({
            let order = order.clone();
            async move { obey(&order).await }
        });
        while !file("once").exists() {
            tokio::task::yield_now().await;
        }
        assert_eq!(std::fs::read_to_string(file("once")).unwrap(), std::process::id().to_string());
        obey(&order).await;
        assert!(!held.is_finished());
        std::fs::remove_file(file("held")).unwrap();
        held.await.unwrap();
    }
}
