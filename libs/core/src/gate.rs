//! A job's gate: whether a fire passes while others of the job are open (R20), and how many the job may have in all.

/// What a job lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Executions open at once, at most; `None`: any number.
    pub open_max: Option<i64>,
    /// Executions in all, at most; `None`: any number.
    pub max_executions: Option<i64>,
}

/// What becomes of a fire at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It is opened.
    Opens,
    /// Nothing yet: what is open now may have ended by its instant.
    Waits,
    /// It is SKIPPED.
    Skips,
}

impl Gate {
    /// By a job's fields: without overlap one is open at once, with it as many as `concurrency` says, 0 being any number.
    pub fn new(allow_overlap: bool, concurrency: i32, max_executions: Option<i64>) -> Self {
        let open_max = match (allow_overlap, concurrency) {
            (false, _) => Some(1),
            (true, 0) => None,
            (true, bound) => Some(bound.into()),
        };
        Self { open_max, max_executions }
    }

    /// What becomes of a fire while so many of its job are `open`; `is_due`: its instant has come.
    pub fn passage(self, open: i64, is_due: bool) -> Passage {
        match self.open_max {
            Some(max) if open >= max && is_due => Passage::Skips,
            Some(max) if open >= max => Passage::Waits,
            _ => Passage::Opens,
        }
    }

    /// Whether a job that has opened so many opens none any more.
    pub fn is_spent(self, claimed: i64) -> bool {
        self.max_executions.is_some_and(|max| claimed >= max)
    }

    /// Whether the next one of a job that has opened so many is its last.
    pub fn is_last(self, claimed: i64) -> bool {
        self.max_executions == Some(claimed.saturating_add(1))
    }

    /// Why one was skipped while so many were `open`.
    pub fn reason(self, open: i64) -> String {
        match self.open_max {
            Some(1) => "overlap: the previous execution of this job is still open (allow_overlap is false)".into(),
            max => format!("overlap: {open} executions of this job are open (concurrency is {})", max.unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(open_max: Option<i64>, max_executions: Option<i64>) -> Gate {
        Gate { open_max, max_executions }
    }

    #[test]
    fn without_overlap_one_is_open_at_once_and_with_it_as_many_as_is_said() {
        let open_max = |allow_overlap, concurrency| Gate::new(allow_overlap, concurrency, None).open_max;
        assert_eq!(
            (open_max(false, 0), open_max(false, 5), open_max(true, 0), open_max(true, 5)),
            (Some(1), Some(1), None, Some(5))
        );
    }

    #[test]
    fn a_fire_passes_while_there_is_room_waits_for_its_instant_and_is_skipped_at_it() {
        for (open_max, open, early, due) in [
            (None, 10_000, Passage::Opens, Passage::Opens),
            (Some(1), 0, Passage::Opens, Passage::Opens),
            (Some(1), 1, Passage::Waits, Passage::Skips),
            (Some(3), 2, Passage::Opens, Passage::Opens),
            (Some(3), 4, Passage::Waits, Passage::Skips),
        ] {
            let gate = gate(open_max, None);
            assert_eq!((gate.passage(open, false), gate.passage(open, true)), (early, due), "{open_max:?} {open}");
        }
    }

    #[test]
    fn the_last_of_all_is_known_and_nothing_follows_it() {
        let three = gate(None, Some(3));
        assert_eq!([0, 1, 2, 3, 4].map(|claimed| three.is_last(claimed)), [false, false, true, false, false]);
        assert_eq!([0, 2, 3, 4].map(|claimed| three.is_spent(claimed)), [false, false, true, true]);
        let any = gate(None, None);
        assert!(!any.is_last(i64::MAX - 1) && !any.is_spent(i64::MAX));
    }

    #[test]
    fn a_skip_says_why_by_what_is_set() {
        assert!(gate(Some(1), None).reason(1).contains("allow_overlap is false"));
        assert!(gate(Some(3), None).reason(4).contains("4 executions of this job are open (concurrency is 3)"));
    }
}
