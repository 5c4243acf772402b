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
}

/// The sharing's memory. One per reading loop.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    weights: Vec<i64>,
    credits: Vec<i64>,
    backlog: Vec<bool>,
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
        Self { credits: vec![0; weights.len()], backlog: vec![false; weights.len()], weights }
    }

    /// Shares `free` slots. A line without known backlog is asked for one entry, as a probe, while slots last.
    pub fn next(&mut self, free: usize) -> Plan {
        if !self.backlog.contains(&true) {
            return Plan::Wait((free / self.weights.len().max(1)).max(1));
        }
        let mut shares = vec![0_usize; self.weights.len()];
        for _ in 0..free {
            let Some(line) = self.deal(&shares) else { break };
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

    fn deal(&mut self, shares: &[usize]) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for (line, share) in shares.iter().enumerate() {
            if !self.backlog[line] && *share > 0 {
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
        assert_eq!(backlogged(&[]).next(1), Plan::Wait(1));
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

    #[test]
    fn a_single_slot_starves_nobody() {
        let mut plan = backlogged(&[0, 1, 2, 3]);
        let mut served = [0_usize; 4];
        for _ in 0..400 {
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
