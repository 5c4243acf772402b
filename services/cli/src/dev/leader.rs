//! Which dispatcher leads, as each says of itself in its metrics. A person who kills or freezes the leader sees who comes next.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::screen::Screen;
use super::services::{Services, get};

/// A look costs a dispatcher a page of metrics.
const LOOK_EACH: Duration = Duration::from_secs(1);

/// Who was last seen to lead.
pub(super) struct Leader {
    known: Option<String>,
    looked_at: Instant,
}

impl Leader {
    pub(super) const fn new(known: Option<String>, now: Instant) -> Self {
        Self { known, looked_at: now }
    }

    /// Says so if another one leads by now, or none.
    pub(super) async fn report(&mut self, services: &Services, screen: Screen) {
        if self.looked_at.elapsed() < LOOK_EACH {
            return;
        }
        let seen = who_leads(services).await;
        self.looked_at = Instant::now();
        if let Some(news) = news(self.known.as_deref(), seen.as_deref()) {
            screen.step(&news);
        }
        self.known = seen;
    }
}

fn news(known: Option<&str>, seen: Option<&str>) -> Option<String> {
    match (known, seen) {
        (known, seen) if known == seen => None,
        (_, Some(leader)) => Some(format!("{leader} leads now")),
        (Some(before), None) => Some(format!("{before} leads no more, and no other dispatcher does yet")),
        (None, None) => None,
    }
}

/// The one dispatcher that says that it leads. One that is frozen does not answer, and so is not believed to.
pub(super) async fn who_leads(services: &Services) -> Option<String> {
    let dispatchers: Vec<(String, SocketAddr)> = services.dispatchers().collect();
    // On a thread for blocking work: one that does not answer takes its time.
    let leading = tokio::task::spawn_blocking(move || {
        let leading = dispatchers.into_iter().filter(|(_, admin)| leads(*admin));
        leading.map(|(name, _)| name).collect::<Vec<String>>()
    });
    // Of two, in the moment of a change, it is not known yet.
    leading.await.ok().filter(|leading| leading.len() == 1)?.pop()
}

fn leads(admin: SocketAddr) -> bool {
    get(admin, "/metrics").is_ok_and(|metrics| says_that_it_leads(&metrics))
}

fn says_that_it_leads(metrics: &str) -> bool {
    let value = metrics.lines().find_map(|line| line.strip_prefix("carillon_dispatcher_leader "));
    value.and_then(|value| value.trim().parse::<f64>().ok()).is_some_and(|value| value > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_is_said() {
        assert_eq!(news(Some("dispatcher-1"), Some("dispatcher-1")), None);
        assert_eq!(news(Some("dispatcher-1"), Some("dispatcher-2")).as_deref(), Some("dispatcher-2 leads now"));
        assert_eq!(news(None, Some("dispatcher-2")).as_deref(), Some("dispatcher-2 leads now"));
        assert!(news(Some("dispatcher-1"), None).is_some_and(|news| news.contains("leads no more")));
        assert_eq!(news(None, None), None);
    }

    #[test]
    fn a_dispatcher_says_it_by_a_gauge() {
        let page = "# HELP carillon_dispatcher_leader 1 while it leads\n# TYPE carillon_dispatcher_leader gauge\n";
        assert!(says_that_it_leads(&format!("{page}carillon_dispatcher_leader 1\n")));
        assert!(!says_that_it_leads(&format!("{page}carillon_dispatcher_leader 0\n")) && !says_that_it_leads(page));
    }
}
