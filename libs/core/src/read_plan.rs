//! How an executor shares its free slots among the lines it serves: by priority, and none starved.
//!
//! XREADGROUP takes one COUNT for all streams it names, so priority has to come from asking each line for its own number.
//! The shares are dealt by smooth weighted round robin, whose credits live on between reads: even an executor with a single
//! free slot a read serves every line in proportion.

use crate::job::Priority;

/// What to ask the streams for next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// At least one line is known to hold more: take this many of each line (0 = leave it out), without waiting.
    Drain(Vec<usize>),
    /// Nothing is known to wait: block on all lines at once, at most this many of each.
    Wait(usize),
    /// There are fewer slots than lines, and a read of all lines may bring one entry of each: block until some line holds
    /// something, take nothing, and say which do. For those lines [`ReadPlan::learn`] is told one of one.
    Watch,
}

/// The sharing's memory. One per reading loop.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    weights: Vec<i64>,
    credits: Vec<i64>,
    backlog: Vec<bool>,
    /// With few slots: the backlog of every line was asked for, and nothing was taken since.
    is_watched: bool,
}

const fn weight(priority: Priority) -> i64 {
    match priority {
        Priority::Low => 1,
        Priority::Medium => 3,
        Priority::High => 9,
        Priority::Critical => 27,
    }
}

impl ReadPlan {
    /// For lines of these priorities, in this order.
    pub fn new(priorities: &[Priority]) -> Self {
        let weights: Vec<i64> = priorities.iter().map(|priority| weight(*priority)).collect();
        Self { credits: vec![0; weights.len()], backlog: vec![false; weights.len()], is_watched: false, weights }
    }

    /// Shares `free` slots: never does what is planned bring more entries. A line without known backlog is asked for one entry,
    /// as a probe, while slots last; where they don't last for all lines, what waits is asked for first.
    pub fn next(&mut self, free: usize) -> Plan {
        let lines = self.weights.len();
        let some_wait = self.backlog.contains(&true);
        if free < lines {
            let take = some_wait && self.is_watched;
            self.is_watched = !take;
            return if take { self.drain(free, false) } else { Plan::Watch };
        }
        if some_wait { self.drain(free, true) } else { Plan::Wait((free / lines.max(1)).max(1)) }
    }

    fn drain(&mut self, free: usize, probe: bool) -> Plan {
        let mut shares = vec![0_usize; self.weights.len()];
        for _ in 0..free {
            let Some(line) = self.deal(&shares, probe) else { break };
            shares[line] += 1;
        }
        Plan::Drain(shares)
    }

    /// What came of it: a line that gave all it was asked for is likely to hold more.
    pub fn learn(&mut self, line: usize, asked: usize, got: usize) {
        if asked > 0 {
            self.backlog[line] = got >= asked;
        }
    }

    fn deal(&mut self, shares: &[usize], probe: bool) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for (line, share) in shares.iter().enumerate() {
            if !self.backlog[line] && (!probe || *share > 0) {
                continue;
            }
            self.credits[line] += self.weights[line];
            total += self.weights[line];
            if best.is_none_or(|known| self.credits[line] > self.credits[known]) {
                best = Some(line);
            }
        }
        self.credits[best?] -= total;
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [Priority; 4] = [Priority::Critical, Priority::High, Priority::Medium, Priority::Low];

    fn backlogged(lines: &[usize]) -> ReadPlan {
        let mut plan = ReadPlan::new(&LINES);
        for line in lines {
            plan.learn(*line, 1, 1);
        }
        plan
    }

    #[test]
    fn without_backlog_it_waits_on_all() {
        assert_eq!(backlogged(&[]).next(100), Plan::Wait(25));
        assert_eq!(backlogged(&[]).next(4), Plan::Wait(1));
    }

    #[test]
    fn higher_priorities_get_more_and_the_lowest_gets_some() {
        let Plan::Drain(shares) = backlogged(&[0, 1, 2, 3]).next(400) else { panic!("must drain") };
        assert_eq!(shares.iter().sum::<usize>(), 400);
        assert!(shares.is_sorted_by(|a, b| a > b) && shares[3] >= 8, "{shares:?}");
    }

    #[test]
    fn one_backlogged_line_gets_nearly_all() {
        let Plan::Drain(shares) = backlogged(&[2]).next(100) else { panic!("must drain") };
        assert_eq!(shares, vec![1, 1, 97, 1]);
    }

    /// What may come of a plan.
    fn entries_max(plan: &Plan) -> usize {
        match plan {
            Plan::Drain(shares) => shares.iter().sum(),
            Plan::Wait(each) => each * LINES.len(),
            Plan::Watch => 0,
        }
    }

    #[test]
    fn no_plan_brings_more_than_there_are_slots() {
        for backlog in [&[][..], &[3], &[0, 1], &[0, 1, 2, 3]] {
            for free in 1..=9 {
                let mut plan = backlogged(backlog);
                for _ in 0..5 {
                    let next = plan.next(free);
                    assert!(entries_max(&next) <= free, "{next:?} with {free} slots and {backlog:?} waiting");
                }
            }
        }
    }

    #[test]
    fn with_fewer_slots_than_lines_it_watches_and_then_takes_of_what_waits() {
        let mut plan = backlogged(&[]);
        assert_eq!(plan.next(3), Plan::Watch);
        assert_eq!(plan.next(3), Plan::Watch, "nothing came");
        plan.learn(3, 1, 1);
        assert_eq!(plan.next(3), Plan::Drain(vec![0, 0, 0, 3]), "no empty line is asked");
        plan.learn(3, 3, 3);
        assert_eq!(plan.next(2), Plan::Watch, "something urgent may have come");
        plan.learn(0, 1, 1);
        let Plan::Drain(shares) = plan.next(2) else { panic!("must drain") };
        assert!(shares[0] > 0 && shares.iter().sum::<usize>() == 2, "{shares:?}");
    }

    #[test]
    fn a_single_slot_starves_nobody() {
        let mut plan = ReadPlan::new(&LINES);
        let mut served = [0_usize; 4];
        for _ in 0..400 {
            assert_eq!(plan.next(1), Plan::Watch);
            (0..4).for_each(|line| plan.learn(line, 1, 1));
            let Plan::Drain(shares) = plan.next(1) else { panic!("must drain") };
            let line = shares.iter().position(|share| *share == 1).unwrap();
            served[line] += 1;
            plan.learn(line, 1, 1);
        }
        assert!(served.is_sorted_by(|a, b| a > b) && served[3] >= 8, "{served:?}");
    }

    #[test]
    fn a_line_that_gave_less_than_asked_is_drained() {
        let mut plan = backlogged(&[1]);
        plan.learn(1, 50, 49);
        assert_eq!(plan.next(8), Plan::Wait(2));
    }
}
